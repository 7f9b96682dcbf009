package writer

import (
	"fmt"
	"iter"
	"math"
	"slices"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/internal/merge"
	"cardinalsin/series"
)

// HeadView is what was acknowledged and not yet dropped at one moment: every
// sample up to a WAL sequence. It never changes, outlives the flush of what
// it shows, and may be used concurrently. Nothing needs to be closed; the
// garbage collector takes it.
//
// What a commit has put into the table may still be in a view, and is then in
// both; a reader merges it away, the head being the stronger (see package
// internal/merge).
type HeadView struct {
	parts []headPart // oldest first
	err   error
}

// headPart bounds one generation.
type headPart struct {
	h     *head
	last  uint32 // last record
	count int    // series that were there
	span  series.TimeRange
}

// Head returns a view of what is in memory now. It does no I/O and costs the
// same whatever the head holds. A sample is in every view taken after its
// Append returned, until after its commit; a view of which that is not true
// says so by Err.
func (w *Writer) Head() *HeadView {
	w.mu.RLock()
	heads := []*head{w.sealed, w.active}
	v := &HeadView{}
	if w.spilled {
		v.err = fmt.Errorf("%w since %s", ErrIncomplete, w.spilledSince.UTC().Format(time.RFC3339))
	}
	w.mu.RUnlock()
	for _, h := range heads {
		if h == nil {
			continue
		}
		h.mu.RLock()
		if h.first != 0 {
			v.parts = append(v.parts, headPart{h: h, last: uint32(h.last - h.first), count: h.count, span: h.span})
		}
		h.mu.RUnlock()
	}
	return v
}

// Err is not nil when samples had been acknowledged that are not in the view
// and perhaps not in the table either; it wraps ErrIncomplete. What reads the
// latest state must then fail.
func (v *HeadView) Err() error { return v.err }

// Range covers the timestamps of all samples in the view; ok is false where
// there is none.
func (v *HeadView) Range() (r series.TimeRange, ok bool) {
	for i, p := range v.parts {
		if i == 0 {
			r = p.span
		}
		r = r.Union(p.span)
	}
	return r, len(v.parts) > 0
}

// Select yields the series that match, with their samples inside the range,
// in the order of series.Compare; series without such samples are left out.
// Samples are strictly ascending by (Time, Nanos): of those with the same
// instant, the one with the later WAL sequence. A series of plain floats has
// them as Floats. Nothing of it is to be changed.
func (v *HeadView) Select(sel series.Selector) iter.Seq[merge.Series] {
	return v.merged(sel, headPart.selectSeries)
}

// Series yields the same series, with samples that mean nothing.
func (v *HeadView) Series(sel series.Selector) iter.Seq[merge.Series] {
	return v.merged(sel, headPart.labelSets)
}

func (v *HeadView) merged(sel series.Selector, of func(headPart, series.Selector) iter.Seq2[merge.Series, error]) iter.Seq[merge.Series] {
	return func(yield func(merge.Series) bool) {
		sources := make([]merge.Source, 0, len(v.parts))
		for i, p := range v.parts {
			if p.span.Overlaps(sel.Range) {
				sources = append(sources, merge.Source{Rank: merge.Rank{Order: int64(i)}, Series: of(p, sel)})
			}
		}
		for s, err := range merge.Sources(sources...) {
			if err != nil {
				panic(err) // the head broke its own order
			}
			if !yield(s) {
				return
			}
		}
	}
}

// lockSeries is how many series are looked at under one hold of the lock, so
// that a query of a million series does not hold up inserts.
const lockSeries = 256

// selectSeries yields matching series in order, their samples sorted but not
// deduplicated; merge.Sources does that.
func (p headPart) selectSeries(sel series.Selector) iter.Seq2[merge.Series, error] {
	return func(yield func(merge.Series, error) bool) {
		m := p.matching(sel.Matchers)
		var b labels.ScratchBuilder
		var samples [lockSeries][]sample
		var room columns
		m.each(p, func(found []idRef) bool {
			found = sortedRefs(found, m.blocks, m.sets)
			for len(found) > 0 {
				n := min(lockSeries, len(found))
				p.h.mu.RLock()
				for i, f := range found[:n] {
					samples[i] = at(m.blocks, f.ref).samples
				}
				extras := p.h.extras
				p.h.mu.RUnlock()
				for i, f := range found[:n] {
					in := inRange(through(samples[i], p.last), sel.Range)
					if len(in) == 0 {
						continue
					}
					out := merge.Series{Labels: m.sets.Labels(at(m.blocks, f.ref).set, &b), ID: f.id}
					if plain(in) {
						out.Floats = room.floats(in, len(found)-i)
					} else {
						out.Samples = extras.expand(make([]series.Sample, 0, len(in)), in)
					}
					if !yield(out, nil) {
						return false
					}
				}
				found = found[n:]
			}
			return true
		})
	}
}

// labelSets yields matching series in order, with samples that mean nothing.
func (p headPart) labelSets(sel series.Selector) iter.Seq2[merge.Series, error] {
	return func(yield func(merge.Series, error) bool) {
		m := p.matching(sel.Matchers)
		var b labels.ScratchBuilder
		m.each(p, func(found []idRef) bool {
			for _, f := range sortedRefs(p.within(m, found, sel.Range), m.blocks, m.sets) {
				if !yield(merge.Series{Labels: m.sets.Labels(at(m.blocks, f.ref).set, &b), ID: f.id, Samples: merge.Present}, nil) {
					return false
				}
			}
			return true
		})
	}
}

// plain reports whether all samples are a time and a float, and nothing else.
func plain(in []sample) bool {
	for i := range in {
		if in[i].nanos != 0 || in[i].flags != 0 {
			return false
		}
	}
	return true
}

// columns are where floats go: neighbours share an allocation.
type columns struct {
	times  []series.Timestamp // length 0
	values []float64
}

// columnsAtOnce is how many samples of short series share an allocation: a
// series that is kept holds its neighbours, so it must not be many.
const columnsAtOnce = 4096

// floats returns plain samples, which are sorted, as columns: of those of one
// instant the last. They are of the first of so many series that may have as
// many samples each.
func (c *columns) floats(in []sample, like int) merge.Floats {
	if cap(c.times) < len(in) {
		n := max(len(in), min(columnsAtOnce, like*len(in)))
		c.times, c.values = make([]series.Timestamp, 0, n), make([]float64, 0, n)
	}
	times, values := c.times, c.values
	for i := range in {
		if n := len(times); n > 0 && times[n-1] == in[i].time {
			times, values = times[:n-1], values[:n-1]
		}
		times, values = append(times, in[i].time), append(values, math.Float64frombits(in[i].value))
	}
	n := len(times)
	c.times, c.values = times[n:n], values[n:n]
	return merge.Floats{Times: times[:n:n], Values: values[:n:n]}
}

// inRange returns the samples inside the range, sorted.
func inRange(in []sample, r series.TimeRange) []sample {
	in = sorted(in)
	lo, _ := slices.BinarySearchFunc(in, r.Min, func(s sample, t series.Timestamp) int {
		if s.time < t {
			return -1
		}
		return 1
	})
	in = in[lo:]
	hi, _ := slices.BinarySearchFunc(in, r.Max, func(s sample, t series.Timestamp) int {
		if s.time <= t {
			return -1
		}
		return 1
	})
	return in[:hi]
}
