// Package readertest is what tests of views, and of what stands on them, share.
//
// It stands beside storage/storetest: only tests import it. Package reader's own
// do, so it must not import reader.
package readertest

import (
	"iter"
	"maps"
	"slices"

	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/internal/merge"
	"cardinalsin/series"
)

// Head is a head of a writer in memory: series in the order of series.Compare.
type Head []series.Series

// LabelNames implements reader.HeadView.
func (h Head) LabelNames(sel series.Selector) []string {
	names := map[string]struct{}{}
	for s := range h.Select(sel) {
		s.Labels.Range(func(l labels.Label) { names[l.Name] = struct{}{} })
	}
	return slices.Collect(maps.Keys(names))
}

// LabelValues implements reader.HeadView.
func (h Head) LabelValues(name string, sel series.Selector) []string {
	values := map[string]struct{}{}
	for s := range h.Select(sel) {
		if v := s.Labels.Get(name); v != "" {
			values[v] = struct{}{}
		}
	}
	return slices.Collect(maps.Keys(values))
}

// Select implements reader.HeadView. Every second series that can comes as
// Floats.
func (h Head) Select(sel series.Selector) iter.Seq[merge.Series] {
	return func(yield func(merge.Series) bool) {
		for i, s := range h {
			if !sel.Matches(s.Labels) {
				continue
			}
			out := merge.Series{Labels: s.Labels, ID: series.IDOf(s.Labels)}
			plain := i%2 == 0
			for _, p := range s.Samples {
				if sel.Range.Contains(p.Time) {
					out.Samples = append(out.Samples, p)
					plain = plain && p.Nanos == 0 && p.Start == 0 && p.Histogram == nil
				}
			}
			if plain {
				for _, p := range out.Samples {
					out.Floats.Times = append(out.Floats.Times, p.Time)
					out.Floats.Values = append(out.Floats.Values, p.Value)
				}
				out.Samples = nil
			}
			if len(out.Samples)+len(out.Floats.Times) > 0 && !yield(out) {
				return
			}
		}
	}
}

// Series implements reader.HeadView.
func (h Head) Series(sel series.Selector) iter.Seq[merge.Series] {
	return func(yield func(merge.Series) bool) {
		for s := range h.Select(sel) {
			if !yield(merge.Series{Labels: s.Labels, ID: s.ID, Samples: merge.Present}) {
				return
			}
		}
	}
}

// Err implements reader.HeadView: it lacks nothing.
func (h Head) Err() error { return nil }

// Range implements reader.HeadView.
func (h Head) Range() (r series.TimeRange, ok bool) {
	for _, s := range h {
		for _, p := range s.Samples {
			at := series.TimeRange{Min: p.Time, Max: p.Time}
			if !ok {
				r, ok = at, true
			}
			r = r.Union(at)
		}
	}
	return r, ok
}

// NewHead sorts series into a head.
func NewHead(all ...series.Series) Head {
	h := Head(slices.Clone(all))
	slices.SortFunc(h, func(a, b series.Series) int {
		return series.Compare(a.Labels, b.Labels, series.IDOf(a.Labels), series.IDOf(b.Labels))
	})
	return h
}
