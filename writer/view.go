package writer

import (
	"fmt"
	"iter"
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
// instant, the one with the later WAL sequence. The caller owns the slices,
// not the histograms in them.
func (v *HeadView) Select(sel series.Selector) iter.Seq[series.Series] {
	return func(yield func(series.Series) bool) {
		sources := make([]merge.Source, 0, len(v.parts))
		for i, p := range v.parts {
			if p.span.Overlaps(sel.Range) {
				sources = append(sources, merge.Source{Rank: merge.Rank{Order: int64(i)}, Series: p.selectSeries(sel)})
			}
		}
		for s, err := range merge.Sources(sources...) {
			if err != nil {
				panic(err) // the head broke its own order
			}
			if !yield(series.Series{Labels: s.Labels, Samples: s.Samples}) {
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
		m.each(p, func(found []idRef) bool {
			sortRefs(found, m.blocks, m.sets)
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
					out := merge.Series{
						Labels: m.sets.Labels(at(m.blocks, f.ref).set, &b), ID: f.id,
						Samples: extras.expand(make([]series.Sample, 0, len(in)), in),
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
