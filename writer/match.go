package writer

import (
	"iter"
	"math/bits"
	"slices"

	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/internal/symbols"
	"cardinalsin/series"
)

// matching finds the series of a head for one query. It looks at a matcher
// once for each value that it meets, and then only at codes.
type matching struct {
	*shown
	metrics []int // codes of the metrics that match, by name
	filters []filter
	// wanted are the values that a series must have, by column; none says
	// that one of them is unknown, so that nothing matches.
	wanted []wanted
	none   bool
}

// shown is what queries need of a head's series; it stays true until another
// series comes.
type shown struct {
	count  int // series
	blocks [][]memSeries
	sets   *symbols.View
	index  [][]idRef // head.metrics
}

// show returns what queries need. mu is held for reading.
func (h *head) show() *shown {
	if last := h.shown.Load(); last != nil && last.count == h.count {
		return last
	}
	s := &shown{count: h.count, blocks: slices.Clone(h.blocks), sets: h.sets.View(), index: slices.Clone(h.metrics)}
	for i := range s.blocks {
		s.blocks[i] = s.blocks[i][:cap(s.blocks[i])] // slots that are filled later are never looked at
	}
	h.shown.Store(s)
	return s
}

// wanted is a value of a label that a matcher asks for.
type wanted struct {
	matcher      *series.Matcher
	column, code int32
}

// filter is one matcher of another label than the metric name.
type filter struct {
	matcher *series.Matcher
	// where is the place of the label in the sets of each shape, one more so
	// that zero is not looked at yet; absent where they lack it.
	where []int32
	// only is the one value that matches, or absent: values says it of each.
	only    int32
	values  []verdict
	column  int32 // -1: no series has the label
	without bool  // a series without the label matches
}

const absent = -1

// verdict is what a matcher says of a value.
type verdict uint8

const (
	unknown verdict = iota
	matches
	differs
)

// matching prepares a query. It holds the lock for as long as it takes to copy
// the slices' headers, if another series has come since the last query.
func (p headPart) matching(matchers []*series.Matcher) *matching {
	p.h.mu.RLock()
	m := &matching{shown: p.h.show()}
	for _, matcher := range matchers {
		if matcher.Type != labels.MatchEqual || matcher.Value == "" {
			continue
		}
		if code, ok := p.h.sets.Find(matcher.Name, matcher.Value); !ok {
			m.none = true
		} else if column, ok := m.sets.Column(matcher.Name); ok && matcher.Name != series.MetricName {
			m.wanted = append(m.wanted, wanted{matcher, column, code})
		}
	}
	p.h.mu.RUnlock()
	if m.none {
		return m
	}
	var byName []*series.Matcher
	for _, matcher := range matchers {
		if matcher.Name == series.MetricName {
			byName = append(byName, matcher)
			continue
		}
		f := filter{matcher: matcher, column: -1, where: make([]int32, m.sets.Shapes()), only: absent, without: matcher.Matches("")}
		if column, ok := m.sets.Column(matcher.Name); ok {
			f.column = column
			if i := slices.IndexFunc(m.wanted, func(w wanted) bool { return w.matcher == matcher }); i >= 0 {
				f.only = m.wanted[i].code
			} else {
				f.values = make([]verdict, m.sets.Values(column))
			}
		}
		m.filters = append(m.filters, f)
	}
	for _, metric := range metricsOf(m.sets, byName) {
		m.metrics = append(m.metrics, metric.code)
	}
	return m
}

// scanSeries is the number of series that are rather looked at one by one than
// by postings, which cost a look at all series of the head to make.
const scanSeries = 4096

// candidates yields the series of each metric that matches, in the order of
// names, or those of them that have a value that is asked for. Some may not match,
// or have come later.
func (m *matching) candidates(p headPart) iter.Seq[[]idRef] {
	lists := func(metric int) []idRef { return m.index[metric] }
	all := 0
	for _, metric := range m.metrics {
		all += len(m.index[metric])
	}
	if all > p.h.scan && len(m.wanted) > 0 {
		if refs, ok := p.h.postings.find(p.count, m); ok {
			byMetric := map[int32][]idRef{}
			names, _ := m.sets.Column(series.MetricName)
			where := make([]int32, m.sets.Shapes())
			for _, r := range refs {
				code, _ := codeOf(m.sets, at(m.blocks, r.ref).set, names, where) // each set has one
				byMetric[code] = append(byMetric[code], r)
			}
			lists = func(metric int) []idRef { return byMetric[int32(metric)] }
		}
	}
	return func(yield func([]idRef) bool) {
		for _, metric := range m.metrics {
			if list := lists(metric); len(list) > 0 && !yield(list) {
				return
			}
		}
	}
}

// each calls do for the matching series of a part, in no order, metric after
// metric in the order of their names; it stops when do returns false. do may
// keep and change what it is given.
func (m *matching) each(p headPart, do func(refs []idRef) bool) {
	for refs := range m.candidates(p) {
		var found []idRef
		for _, r := range refs {
			if int(r.ref) <= p.count && m.matches(at(m.blocks, r.ref).set) {
				found = append(found, r)
			}
		}
		if len(found) > 0 && !do(found) {
			return
		}
	}
}

func (m *matching) matches(s symbols.Set) bool {
	for i := range m.filters {
		if !m.filters[i].matches(m.sets, s) {
			return false
		}
	}
	return true
}

func (f *filter) matches(v *symbols.View, s symbols.Set) bool {
	if f.column < 0 {
		return f.without
	}
	code, ok := codeOf(v, s, f.column, f.where)
	if !ok {
		return f.without
	}
	if f.only != absent {
		return code == f.only
	}
	verdict := &f.values[code]
	if *verdict == unknown {
		*verdict = differs
		if f.matcher.Matches(string(v.Text(f.column, code))) {
			*verdict = matches
		}
	}
	return *verdict == matches
}

// codeOf returns the code of a set's value of one label; ok is false where it has
// none. where remembers the place of the label by shape, as in filter.
func codeOf(v *symbols.View, s symbols.Set, column int32, where []int32) (code int32, ok bool) {
	w := &where[s.Shape()]
	if *w == 0 {
		*w = int32(slices.Index(v.ColumnsOf(s.Shape()), column)) + 1
		if *w == 0 {
			*w = absent
		}
	}
	if *w == absent {
		return 0, false
	}
	return v.Codes(s)[*w-1], true
}

// sortRefs orders series of one metric by ID, then labels.
func sortRefs(refs []idRef, blocks [][]memSeries, sets *symbols.View) {
	slices.SortFunc(refs, func(a, b idRef) int {
		switch {
		case a.id < b.id:
			return -1
		case a.id > b.id:
			return 1
		}
		return sets.Compare(at(blocks, a.ref).set, at(blocks, b.ref).set)
	})
}

// sortedRefs returns refs in the order of sortRefs. IDs are hashes: their upper
// bits bring each near to its place, among some eight others.
func sortedRefs(refs []idRef, blocks [][]memSeries, sets *symbols.View) []idRef {
	const together = 8
	width := bits.Len(uint(len(refs) / together))
	place := func(r *idRef) uint64 { return uint64(r.id) >> (64 - width) }
	ends := make([]int, 1<<width) // of the places before, at first
	for i := range refs {
		ends[place(&refs[i])]++
	}
	total := 0
	for i, n := range ends {
		ends[i] = total
		total += n
	}
	out := make([]idRef, len(refs))
	for i := range refs {
		end := &ends[place(&refs[i])]
		out[*end] = refs[i]
		*end++
	}
	from := 0
	for _, end := range ends {
		sortRefs(out[from:end], blocks, sets)
		from = end
	}
	return out
}
