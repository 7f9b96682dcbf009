// Package merge holds the one rule by which samples from several places
// become one answer: chunks, the head and compaction inputs are merged here
// and nowhere else.
//
// It is pure and imports series only. reader, compactor, the head and chunk
// use it; SQL states the same rule in its own words, and a test compares the
// two.
//
// The rule. Two samples are the same observation if their series has the same
// full label set and their (Time, Nanos) are equal. Of those, the one from
// the source with the greater [Rank] wins; within one source, and between
// sources of equal rank, the later one wins.
//
// INVARIANT: the output holds each series once, in the order of
// [series.Compare], and each of its samples once, strictly ascending by
// (Time, Nanos). Never a sample that no source holds; never a silent answer
// from a source that breaks its order.
package merge

import (
	"cmp"
	"container/heap"
	"errors"
	"fmt"
	"iter"
	"math"
	"slices"

	"cardinalsin/series"
)

// ErrUnsorted reports a source whose series or samples are out of order.
var ErrUnsorted = errors.New("merge source out of order")

// Series is one series with its samples sorted by (Time, Nanos).
type Series struct {
	Labels series.Labels
	// ID is series.IDOf(Labels).
	ID      series.ID
	Samples []series.Sample
	// Floats, where it is not empty, stands in place of Samples. Only readers
	// that ask for it are given it.
	Floats Floats
}

// Present are the samples of a series of which only the labels are wanted: a
// merge drops series without samples.
var Present = []series.Sample{{}}

// Compare orders two series as [series.Compare] does.
func (s *Series) Compare(o *Series) int { return series.Compare(s.Labels, o.Labels, s.ID, o.ID) }

// Rank decides between two observations of the same instant: the greater
// wins. Order is the upper end of a file's order tag, Tie its path.
type Rank struct {
	Order int64
	Tie   string
}

// HeadRank is above the rank of every file.
var HeadRank = Rank{Order: math.MaxInt64}

// Compare returns -1, 0 or 1.
func (r Rank) Compare(o Rank) int {
	if c := cmp.Compare(r.Order, o.Order); c != 0 {
		return c
	}
	return cmp.Compare(r.Tie, o.Tie)
}

// Source is a sequence of series, strictly ascending by [Series.Compare]. An
// error ends it.
type Source struct {
	Rank   Rank
	Series iter.Seq2[Series, error]
}

// Slice turns series in memory into a sequence.
func Slice(s []Series) iter.Seq2[Series, error] {
	return func(yield func(Series, error) bool) {
		for i := range s {
			if !yield(s[i], nil) {
				return
			}
		}
	}
}

// Sources merges any number of sources. Series without samples are dropped.
// The samples of a series that only one source holds are passed on without a
// copy: treat them as read-only. The first error of any source, or
// ErrUnsorted, ends the sequence.
//
// Sources are pulled from the goroutine that ranges over the result.
func Sources(sources ...Source) iter.Seq2[Series, error] {
	if len(sources) == 1 {
		return single(sources[0])
	}
	return func(yield func(Series, error) bool) {
		m := merger{cursors: make([]*cursor, 0, len(sources))}
		defer m.stop()
		for i, s := range sources {
			c := &cursor{rank: s.Rank, position: i}
			c.next, c.stop = iter.Pull2(s.Series)
			m.all = append(m.all, c)
			ok, err := c.advance()
			if err != nil {
				yield(Series{}, err)
				return
			}
			if ok {
				m.cursors = append(m.cursors, c)
			}
		}
		heap.Init(&m)
		for len(m.cursors) > 0 {
			s, err := m.take()
			if err != nil {
				yield(Series{}, err)
				return
			}
			if len(s.Samples)+len(s.Floats.Times) > 0 && !yield(s, nil) {
				return
			}
		}
	}
}

// single is Sources of one, which needs no heap, and nobody to wait for.
func single(from Source) iter.Seq2[Series, error] {
	return func(yield func(Series, error) bool) {
		var c cursor
		for s, err := range from.Series {
			if err == nil {
				err = c.stand(s)
			}
			if err != nil {
				yield(Series{}, err)
				return
			}
			if !strictlyAscending(s.Samples) {
				s.Samples = Samples(make([]series.Sample, 0, len(s.Samples)), Run{Rank: from.Rank, Samples: s.Samples})
			}
			if len(s.Samples)+len(s.Floats.Times) > 0 && !yield(s, nil) {
				return
			}
		}
	}
}

// cursor is one source and the series that it stands on.
type cursor struct {
	rank     Rank
	position int // in the argument list: breaks ties of rank
	next     func() (Series, error, bool)
	stop     func()
	current  Series
	name     string // metric name of current
	started  bool
}

// advance moves to the next series; ok is false at the end.
func (c *cursor) advance() (ok bool, err error) {
	s, err, ok := c.next()
	if err != nil {
		return false, err
	}
	if !ok {
		return false, nil
	}
	err = c.stand(s)
	return err == nil, err
}

// stand moves to a series, which must be in order.
func (c *cursor) stand(s Series) error {
	name := s.Labels.Get(series.MetricName)
	if c.started && compare(c.name, &c.current, name, &s) >= 0 {
		return fmt.Errorf("%w: series %s does not come after %s", ErrUnsorted, s.Labels, c.current.Labels)
	}
	for i := 1; i < len(s.Samples); i++ {
		if s.Samples[i].Compare(s.Samples[i-1]) < 0 {
			return fmt.Errorf("%w: sample %d of series %s", ErrUnsorted, i, s.Labels)
		}
	}
	if err := s.Floats.check(s.Labels); err != nil {
		return err
	}
	c.current, c.name, c.started = s, name, true
	return nil
}

func compare(an string, a *Series, bn string, b *Series) int {
	if c := cmp.Compare(an, bn); c != 0 {
		return c
	}
	if c := cmp.Compare(a.ID, b.ID); c != 0 {
		return c
	}
	return series.Compare(a.Labels, b.Labels, a.ID, b.ID)
}

// merger is a heap of cursors by the series that each stands on.
type merger struct {
	cursors []*cursor
	all     []*cursor
	same    []*cursor // scratch: the cursors that stand on the least series
	runs    []Run     // scratch
}

func (m *merger) stop() {
	for _, c := range m.all {
		c.stop()
	}
}

// take removes the least series from every source that holds it.
func (m *merger) take() (Series, error) {
	first := m.cursors[0]
	out, name := first.current, first.name
	m.same = append(m.same[:0], heap.Pop(m).(*cursor))
	for len(m.cursors) > 0 && compare(m.cursors[0].name, &m.cursors[0].current, name, &out) == 0 {
		m.same = append(m.same, heap.Pop(m).(*cursor))
	}
	if len(m.same) == 1 && strictlyAscending(out.Samples) {
		// As it is: floats always ascend strictly.
	} else if floats, ok := chained(m.same); ok {
		out.Samples, out.Floats = nil, floats
	} else {
		// The heap gives them in any order; position decides equal ranks.
		slices.SortFunc(m.same, func(a, b *cursor) int { return cmp.Compare(a.position, b.position) })
		n := 0
		m.runs = m.runs[:0]
		for _, c := range m.same {
			samples := c.current.AllSamples()
			m.runs = append(m.runs, Run{Rank: c.rank, Samples: samples})
			n += len(samples)
		}
		out.Floats = Floats{}
		out.Samples = Samples(make([]series.Sample, 0, n), m.runs...)
	}
	for _, c := range m.same {
		ok, err := c.advance()
		if err != nil {
			return Series{}, err
		}
		if ok {
			heap.Push(m, c)
		}
	}
	return out, nil
}

func strictlyAscending(s []series.Sample) bool {
	for i := 1; i < len(s); i++ {
		if s[i].Compare(s[i-1]) <= 0 {
			return false
		}
	}
	return true
}

// Len, Less, Swap, Push and Pop implement heap.Interface.
func (m *merger) Len() int { return len(m.cursors) }

func (m *merger) Less(i, j int) bool {
	a, b := m.cursors[i], m.cursors[j]
	return compare(a.name, &a.current, b.name, &b.current) < 0
}

func (m *merger) Swap(i, j int) { m.cursors[i], m.cursors[j] = m.cursors[j], m.cursors[i] }
func (m *merger) Push(x any)    { m.cursors = append(m.cursors, x.(*cursor)) }
func (m *merger) Pop() any {
	last := len(m.cursors) - 1
	c := m.cursors[last]
	m.cursors = m.cursors[:last]
	return c
}
