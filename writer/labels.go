package writer

import (
	"maps"
	"slices"

	"github.com/RoaringBitmap/roaring/v2"

	"cardinalsin/internal/symbols"
	"cardinalsin/series"
)

// LabelNames returns the names of the labels of all series that the selector
// picks, each once, in no order.
func (v *HeadView) LabelNames(sel series.Selector) []string {
	seen := map[string]bool{}
	for _, p := range v.parts {
		if sets := p.whole(sel); sets != nil {
			for column := range sets.Columns() {
				seen[sets.Name(column)] = true
			}
			continue
		}
		sets, shapes := p.distinct(sel, (*symbols.View).Shapes, func(_ *symbols.View, s symbols.Set) (int32, bool) { return s.Shape(), true })
		for shape := range roaring.Values(shapes) {
			for _, column := range sets.ColumnsOf(int32(shape)) {
				seen[sets.Name(column)] = true
			}
		}
	}
	return slices.Collect(maps.Keys(seen))
}

// LabelValues returns the values of one label among the series that the selector
// picks, each once, in no order.
func (v *HeadView) LabelValues(name string, sel series.Selector) []string {
	seen := map[string]bool{}
	for _, p := range v.parts {
		if sets := p.whole(sel); sets != nil {
			if column, ok := sets.Column(name); ok {
				for code := range sets.Values(column) {
					seen[string(sets.Text(column, int32(code)))] = true
				}
			}
			continue
		}
		var column int32
		var where []int32 // nil: nobody has the label
		values := func(sets *symbols.View) (n int) {
			var ok bool
			if column, ok = sets.Column(name); ok {
				n, where = sets.Values(column), make([]int32, sets.Shapes())
			}
			return n
		}
		sets, codes := p.distinct(sel, values, func(sets *symbols.View, s symbols.Set) (int32, bool) { return codeOf(sets, s, column, where) })
		for code := range roaring.Values(codes) {
			seen[string(sets.Text(column, int32(code)))] = true
		}
	}
	return slices.Collect(maps.Keys(seen))
}

// whole returns the label sets of a part of which the selector picks every
// series, so that names and values need no look at series; nil where it may not,
// or where series came since the view was taken.
func (p headPart) whole(sel series.Selector) *symbols.View {
	if len(sel.Matchers) > 0 || !sel.Range.Contains(p.span.Min) || !sel.Range.Contains(p.span.Max) {
		return nil
	}
	p.h.mu.RLock()
	defer p.h.mu.RUnlock()
	if p.h.count != p.count {
		return nil
	}
	return p.h.show().sets
}

// distinct returns which kinds of label sets there are among the series that the
// selector picks and that have a sample in its range. A series of a kind that is
// found is not looked at again, and none once all kinds are.
func (p headPart) distinct(sel series.Selector, kinds func(*symbols.View) int, kindOf func(*symbols.View, symbols.Set) (kind int32, ok bool)) (*symbols.View, *roaring.Bitmap) {
	m := p.matching(sel.Matchers)
	found := roaring.New()
	all := kinds(m.sets)
	if all == 0 || !p.span.Overlaps(sel.Range) {
		return m.sets, found
	}
	n := 0
	whole := sel.Range.Contains(p.span.Min) && sel.Range.Contains(p.span.Max)
	for refs := range m.candidates(p) {
		for _, r := range refs {
			if int(r.ref) > p.count {
				continue
			}
			s := at(m.blocks, r.ref)
			kind, ok := kindOf(m.sets, s.set)
			if !ok || found.Contains(uint32(kind)) || !m.matches(s.set) {
				continue
			}
			if !whole {
				p.h.mu.RLock()
				samples := s.samples
				p.h.mu.RUnlock()
				if !anyIn(through(samples, p.last), sel.Range) {
					continue
				}
			}
			found.Add(uint32(kind))
			if n++; n == all {
				return m.sets, found
			}
		}
	}
	return m.sets, found
}

// within leaves those of the series that have a sample in a range.
func (p headPart) within(m *matching, refs []idRef, r series.TimeRange) []idRef {
	if r.Contains(p.span.Min) && r.Contains(p.span.Max) {
		return refs
	}
	var samples [lockSeries][]sample
	kept := refs[:0]
	for len(refs) > 0 {
		n := min(lockSeries, len(refs))
		p.h.mu.RLock()
		for i, f := range refs[:n] {
			samples[i] = at(m.blocks, f.ref).samples
		}
		p.h.mu.RUnlock()
		for i, f := range refs[:n] {
			if anyIn(through(samples[i], p.last), r) {
				kept = append(kept, f)
			}
		}
		refs = refs[n:]
	}
	return kept
}

// anyIn reports whether one of the samples, in any order, lies in the range.
func anyIn(in []sample, r series.TimeRange) bool {
	for i := range in {
		if r.Contains(in[i].time) {
			return true
		}
	}
	return false
}
