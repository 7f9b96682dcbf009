package chunk

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"sort"

	"cardinalsin/internal/merge"
	"cardinalsin/series"
)

// AsFloats returns the same file, of which Select and SelectRuns give the
// samples as Floats, without a copy of them, if no sample of the file has more
// than a time and a value. Decoded pages are kept in pages, and not read again
// while they are there; nil keeps nothing.
func (f *File) AsFloats(pages *Pages) *File {
	g := *f
	g.pages = pages
	g.floats = f.plain()
	return &g
}

// plain reports whether samples have nothing but a time and a value.
func (f *File) plain() bool {
	for _, name := range []string{ColumnNanos, ColumnStart, ColumnHistogram} {
		if _, ok := f.byName[name]; ok {
			return false
		}
	}
	return f.leaves[f.byName[ColumnValue]].maxDef == 0
}

// errNotKept: a page is not at hand, and must be read.
var errNotKept = errors.New("page is not kept")

// pageColumn is one data column of a row group, whose pages are decoded when
// they are asked for.
type pageColumn[T any] struct {
	keptColumn[T]
	decode func(page int) ([]T, error) // nil: what is not kept is not at hand
	new    [][]T                       // decoded here
	at     int                         // page that was used last; rows ascend
}

// page returns a decoded page.
func (c *pageColumn[T]) page(i int) ([]T, error) {
	if c.pages[i] != nil {
		return c.pages[i], nil
	}
	if c.new != nil && c.new[i] != nil {
		return c.new[i], nil
	}
	if c.decode == nil {
		return nil, errNotKept
	}
	data, err := c.decode(i)
	if err != nil {
		return nil, err
	}
	if c.new == nil {
		c.new = make([][]T, len(c.pages))
	}
	c.new[i] = data
	return data, nil
}

// rows returns rows from start to end, not included: a part of a page, or a copy
// where they lie in several.
func (c *pageColumn[T]) rows(start, end int) ([]T, error) {
	if c.firsts == nil {
		return nil, errNotKept
	}
	if start < c.firsts[c.at] {
		c.at = 0
	}
	for c.firsts[c.at+1] <= start {
		c.at++
	}
	first, next := c.firsts[c.at], c.firsts[c.at+1]
	page, err := c.page(c.at)
	if err != nil {
		return nil, err
	}
	if end <= next {
		return page[start-first : end-first : end-first], nil
	}
	out := append(make([]T, 0, end-start), page[start-first:]...)
	for i := c.at + 1; len(out) < end-start; i++ {
		if page, err = c.page(i); err != nil {
			return nil, err
		}
		out = append(out, page[:min(len(page), end-start-len(out))]...)
	}
	return out, nil
}

// columnPages splits a column chunk whose pages must hold the row group's rows,
// and returns where each begins.
func (d *decoder) columnPages(rg *RowGroup, name string, read *blocks) (*pager, []int, error) {
	g, err := d.pager(rg, name, read)
	if err != nil {
		return nil, nil, err
	}
	firsts := make([]int, len(g.pages.data)+1)
	for i := range g.pages.data {
		firsts[i+1] = firsts[i] + int(g.pages.data[i].values)
	}
	if firsts[len(firsts)-1] != int(rg.Rows) {
		return nil, nil, fmt.Errorf("%w: column %q holds %d of %d rows", ErrCorrupt, name, firsts[len(firsts)-1], rg.Rows)
	}
	return g, firsts, nil
}

// loadFloats is load for files that are plain. Without blocks it does with what
// is kept, or returns errNotKept.
func (d *decoder) loadFloats(group int, read *blocks, matches []match) ([]Series, error) {
	rg := &d.file.groups[group]
	key := groupKey{d.file.Name(), group}
	times := pageColumn[series.Timestamp]{keptColumn: find(d.file.pages, key, timesOf)}
	values := pageColumn[float64]{keptColumn: find(d.file.pages, key, valuesOf)}
	if read != nil {
		tp, firsts, err := d.columnPages(rg, ColumnTimestamp, read)
		if err != nil {
			return nil, err
		}
		if times.firsts == nil {
			times.keptColumn = keptColumn[series.Timestamp]{firsts, make([][]series.Timestamp, len(firsts)-1)}
		}
		times.decode = func(i int) ([]series.Timestamp, error) { return tp.timestamps(&tp.pages.data[i], rg.Time) }
		vp, firsts, err := d.columnPages(rg, ColumnValue, read)
		if err != nil {
			return nil, err
		}
		if values.firsts == nil {
			values.keptColumn = keptColumn[float64]{firsts, make([][]float64, len(firsts)-1)}
		}
		values.decode = func(i int) ([]float64, error) { return vp.floats(&vp.pages.data[i]) }
	}
	out := make([]Series, 0, len(matches))
	for _, m := range matches {
		floats, err := d.floatsOf(&times, &values, m)
		if err != nil {
			return nil, err
		}
		if len(floats.Times) > 0 {
			out = append(out, Series{Labels: m.labels, ID: m.id, Floats: floats})
		}
	}
	if times.new != nil {
		keep(d.file.pages, key, timesOf, times.firsts, times.new)
	}
	if values.new != nil {
		keep(d.file.pages, key, valuesOf, values.firsts, values.new)
	}
	return out, nil
}

// floatsOf returns what a match has in the time range.
func (d *decoder) floatsOf(times *pageColumn[series.Timestamp], values *pageColumn[float64], m match) (f merge.Floats, err error) {
	if f.Times, err = times.rows(m.start, m.end); err != nil {
		return f, fmt.Errorf("column %q: %w", ColumnTimestamp, err)
	}
	for i := 1; i < len(f.Times); i++ {
		if f.Times[i] <= f.Times[i-1] {
			return f, fmt.Errorf("%w: samples of %s out of order", ErrCorrupt, m.labels)
		}
	}
	lo, hi := 0, len(f.Times)
	if f.Times[0] < d.sel.Range.Min {
		lo = sort.Search(hi, func(i int) bool { return f.Times[i] >= d.sel.Range.Min })
	}
	if f.Times[hi-1] > d.sel.Range.Max {
		hi = lo + sort.Search(hi-lo, func(i int) bool { return f.Times[lo+i] > d.sel.Range.Max })
	}
	f.Times = f.Times[lo:hi:hi]
	if lo == hi {
		return f, nil
	}
	if f.Values, err = values.rows(m.start+lo, m.start+hi); err != nil {
		return f, fmt.Errorf("column %q: %w", ColumnValue, err)
	}
	return f, nil
}

// timestamps decodes a page of times, which must lie in bounds.
func (p *pager) timestamps(page *dataPage, bounds series.TimeRange) ([]series.Timestamp, error) {
	raw, _, _, values, err := page.content(p.buf, p.leaf)
	if err != nil {
		return nil, err
	}
	p.buf = raw
	if page.encoding != encodingDelta {
		return nil, fmt.Errorf("%w: encoding %d in an integer column", ErrCorrupt, page.encoding)
	}
	out := make([]series.Timestamp, page.values)
	if err := decodeDelta(out, values); err != nil {
		return nil, err
	}
	for _, t := range out {
		if !bounds.Contains(t) {
			return nil, fmt.Errorf("%w: %d is outside the row group's bounds", ErrCorrupt, t)
		}
	}
	return out, nil
}

// floats decodes a page of values, of which none is null.
func (p *pager) floats(page *dataPage) ([]float64, error) {
	raw, _, _, values, err := page.content(p.buf, p.leaf)
	if err != nil {
		return nil, err
	}
	p.buf = raw
	p.bits = grow(p.bits, int(page.values))
	if err := p.doubles(p.bits, page.encoding, values); err != nil {
		return nil, err
	}
	out := make([]float64, page.values)
	for i, bits := range p.bits {
		out[i] = math.Float64frombits(bits)
	}
	return out, nil
}

// join appends to the series that is held what the next row group has of it.
// owned says that it has memory of its own, which may grow.
func (d *decoder) join(held *Series, owned bool, s *Series) error {
	unordered := func() error { return fmt.Errorf("%w: samples of %s out of order", ErrCorrupt, s.Labels) }
	if d.file.floats {
		if held.Floats.Times[len(held.Floats.Times)-1] >= s.Floats.Times[0] {
			return unordered()
		}
		if !owned {
			held.Floats.Times, held.Floats.Values = slices.Clip(held.Floats.Times), slices.Clip(held.Floats.Values)
		}
		held.Floats.Times = append(held.Floats.Times, s.Floats.Times...)
		held.Floats.Values = append(held.Floats.Values, s.Floats.Values...)
		return nil
	}
	if held.Samples[len(held.Samples)-1].Compare(s.Samples[0]) >= 0 {
		return unordered()
	}
	if !owned {
		held.Samples = slices.Clip(held.Samples)
	}
	held.Samples = append(held.Samples, s.Samples...)
	return nil
}
