package writer

import (
	"math/bits"

	"cardinalsin/internal/symbols"
	"cardinalsin/series"
)

// LabelNames returns the names of the labels of all series that the selector
// picks, each once, in no order.
func (v *HeadView) LabelNames(sel series.Selector) []string {
	seen := map[string]bool{}
	for _, p := range v.parts {
		var shapes set
		sets := p.eachSet(sel, func(_ *symbols.View, s symbols.Set) { shapes.add(s.Shape()) })
		shapes.each(func(shape int32) {
			for _, column := range sets.ColumnsOf(shape) {
				seen[sets.Name(column)] = true
			}
		})
	}
	return keys(seen)
}

// LabelValues returns the values of one label among the series that the selector
// picks, each once, in no order.
func (v *HeadView) LabelValues(name string, sel series.Selector) []string {
	seen := map[string]bool{}
	for _, p := range v.parts {
		var codes set
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
				codes.add(code)
			}
		})
		codes.each(func(code int32) { seen[string(sets.Text(column, code))] = true })
	}
	return keys(seen)
}

func keys(m map[string]bool) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	return out
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

// set is a set of small numbers.
type set struct{ words []uint64 }

func (s *set) add(n int32) {
	for int(n>>6) >= len(s.words) {
		s.words = append(s.words, 0)
	}
	s.words[n>>6] |= 1 << (n & 63)
}

func (s *set) each(do func(int32)) {
	for i, w := range s.words {
		for ; w != 0; w &= w - 1 {
			do(int32(i<<6 + bits.TrailingZeros64(w)))
		}
	}
}
