package merge

import (
	"cmp"
	"fmt"
	"slices"

	"cardinalsin/series"
)

// Floats are samples that have nothing but a time and a value, as two columns
// of equal length. Times ascend strictly. Both are shared with whoever reads
// the same file: treat them as read-only, and do not append to them.
type Floats struct {
	Times  []series.Timestamp
	Values []float64
}

// AppendTo appends the samples to dst.
func (f Floats) AppendTo(dst []series.Sample) []series.Sample {
	dst = slices.Grow(dst, len(f.Times))
	for i, t := range f.Times {
		dst = append(dst, series.Sample{Time: t, Value: f.Values[i]})
	}
	return dst
}

// check returns ErrUnsorted unless the columns are what Floats promises.
func (f Floats) check(l series.Labels) error {
	if len(f.Times) != len(f.Values) {
		return fmt.Errorf("%w: %d times and %d values of series %s", ErrUnsorted, len(f.Times), len(f.Values), l)
	}
	for i := 1; i < len(f.Times); i++ {
		if f.Times[i] <= f.Times[i-1] {
			return fmt.Errorf("%w: sample %d of series %s", ErrUnsorted, i, l)
		}
	}
	return nil
}

// chained joins the floats of one series from several sources that do not
// overlap in time, where no rule is needed to choose; ok is false where one
// has samples of another form, or two meet.
func chained(same []*cursor) (out Floats, ok bool) {
	parts := make([]Floats, 0, len(same))
	n := 0
	for _, c := range same {
		s := &c.current
		switch {
		case len(s.Samples) > 0:
			return Floats{}, false
		case len(s.Floats.Times) > 0:
			parts = append(parts, s.Floats)
			n += len(s.Floats.Times)
		}
	}
	slices.SortFunc(parts, func(a, b Floats) int { return cmp.Compare(a.Times[0], b.Times[0]) })
	for i := 1; i < len(parts); i++ {
		if before := parts[i-1].Times; parts[i].Times[0] <= before[len(before)-1] {
			return Floats{}, false
		}
	}
	if len(parts) == 1 {
		return parts[0], true
	}
	out = Floats{Times: make([]series.Timestamp, 0, n), Values: make([]float64, 0, n)}
	for _, p := range parts {
		out.Times = append(out.Times, p.Times...)
		out.Values = append(out.Values, p.Values...)
	}
	return out, true
}

// AllSamples returns what the series has, in the general form.
func (s *Series) AllSamples() []series.Sample {
	if len(s.Floats.Times) == 0 {
		return s.Samples
	}
	return s.Floats.AppendTo(nil)
}
