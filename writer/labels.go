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
		var shapes roaring.Bitmap
		sets := p.eachSet(sel, func(_ *symbols.View, s symbols.Set) { shapes.Add(uint32(s.Shape())) })
		for shape := range roaring.Values(&shapes) {
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
		var codes roaring.Bitmap
		var where []int32
		column, known := int32(0), false
		sets := p.eachSet(sel, func(sets *symbols.View, s symbols.Set) {
			if where == nil {
				column, known = sets.Column(name)
				where = make([]int32, sets.Shapes())
			}
			if !known {
				return
			}
			if code, ok := codeOf(sets, s, column, where); ok {
				codes.Add(uint32(code))
			}
		})
		for code := range roaring.Values(&codes) {
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
	return p.h.sets.View()
}

// eachSet calls do for the label set of each series that the selector picks and
// that has a sample in its range. It returns the view that the sets are of.
func (p headPart) eachSet(sel series.Selector, do func(*symbols.View, symbols.Set)) *symbols.View {
	m := p.matching(sel.Matchers)
	if !p.span.Overlaps(sel.Range) {
		return m.sets
	}
	all := sel.Range.Contains(p.span.Min) && sel.Range.Contains(p.span.Max)
	var samples [lockSeries][]sample
	m.each(p, func(found []idRef) bool {
		for len(found) > 0 {
			n := min(lockSeries, len(found))
			if !all {
				p.h.mu.RLock()
				for i, f := range found[:n] {
					samples[i] = at(m.blocks, f.ref).samples
				}
				p.h.mu.RUnlock()
			}
			for i, f := range found[:n] {
				if all || anyIn(through(samples[i], p.last), sel.Range) {
					do(m.sets, at(m.blocks, f.ref).set)
				}
			}
			found = found[n:]
		}
		return true
	})
	return m.sets
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
