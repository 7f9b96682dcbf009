package chunk

import (
	"fmt"
	"math"
	"slices"
	"sort"

	"cardinalsin/series"
)

// pager opens a data column of a row group, nil if the file has none.
func (d *decoder) pager(rg *RowGroup, name string, read *blocks) (*pager, error) {
	column, ok := d.file.byName[name]
	if !ok {
		return nil, nil
	}
	p, err := d.pagesOf(rg, column, read)
	if err != nil {
		return nil, err
	}
	if d.pagers == nil {
		d.pagers = map[string]*pager{}
	}
	g := d.pagers[name]
	if g == nil {
		g = &pager{leaf: &d.file.leaves[column]}
		d.pagers[name] = g
	}
	g.pages, g.next, g.first, g.end, g.dict, g.words = p, 0, 0, 0, nil, nil
	return g, nil
}

// load reads the samples of the matches that lie in the time range.
func (d *decoder) load(rg *RowGroup, read *blocks, matches []match) ([]Series, error) {
	var open [5]*pager
	for i, name := range []string{ColumnTimestamp, ColumnNanos, ColumnStart, ColumnValue, ColumnHistogram} {
		var err error
		if open[i], err = d.pager(rg, name, read); err != nil {
			return nil, err
		}
	}
	times, nanos, starts, values, histograms := open[0], open[1], open[2], open[3], open[4]
	var slab slab
	for _, m := range matches {
		slab.rows += m.end - m.start
	}
	out := make([]Series, 0, len(matches))
	for _, m := range matches {
		samples, first, err := d.times(times, rg, m, &slab)
		if err != nil {
			return nil, fmt.Errorf("column %q: %w", ColumnTimestamp, err)
		}
		slab.rows -= m.end - m.start
		if len(samples) == 0 {
			continue
		}
		if nanos != nil {
			for i := range samples {
				if samples[i].Nanos, err = nanos.nanos(first + i); err != nil {
					return nil, fmt.Errorf("column %q: %w", ColumnNanos, err)
				}
			}
		}
		if starts != nil {
			for i := range samples {
				if samples[i].Start, err = starts.start(first + i); err != nil {
					return nil, fmt.Errorf("column %q: %w", ColumnStart, err)
				}
			}
		}
		if err := fillValues(samples, first, values, histograms); err != nil {
			return nil, err
		}
		for i := 1; i < len(samples); i++ {
			if samples[i-1].Compare(samples[i]) >= 0 {
				return nil, fmt.Errorf("%w: samples of %s out of order", ErrCorrupt, m.labels)
			}
		}
		out = append(out, Series{Labels: m.labels, ID: m.id, Samples: slices.Clip(samples)})
	}
	return out, nil
}

// slabSamples is how many samples of short series share an allocation: a
// series that is kept holds its neighbours, so it must not be many.
const slabSamples = 4096

// slab is where the samples of a row group go.
type slab struct {
	free []series.Sample // length 0
	rows int             // that may still come
}

// grow makes room for n more samples behind those of a series, which move if
// they must.
func (b *slab) grow(samples []series.Sample, n int) []series.Sample {
	if samples == nil {
		samples = b.free
	}
	if cap(samples)-len(samples) >= n {
		return samples
	}
	need := len(samples) + n
	return append(make([]series.Sample, 0, max(need, min(b.rows, slabSamples))), samples...)
}

// times returns a sample for each row of the match in the time range, and the
// first such row. Rows of a series ascend in time.
func (d *decoder) times(p *pager, rg *RowGroup, m match, b *slab) (samples []series.Sample, first int, err error) {
	first = m.start
	for row := m.start; row < m.end; {
		page, err := p.times(row)
		if err != nil {
			return nil, 0, err
		}
		page = page[:min(len(page), m.end-row)]
		row += len(page)
		if len(samples) > 0 && page[0] < int64(d.sel.Range.Min) {
			return nil, 0, fmt.Errorf("%w: samples of %s out of order", ErrCorrupt, m.labels)
		}
		if page[len(page)-1] < int64(d.sel.Range.Min) {
			first = row
			continue
		}
		lo := sort.Search(len(page), func(i int) bool { return page[i] >= int64(d.sel.Range.Min) })
		if lo > 0 {
			first = row - len(page) + lo
		}
		hi := lo + sort.Search(len(page)-lo, func(i int) bool { return page[lo+i] > int64(d.sel.Range.Max) })
		if hi == lo {
			break
		}
		samples = b.grow(samples, hi-lo)
		for _, t := range page[lo:hi] {
			if !rg.Time.Contains(series.Timestamp(t)) {
				return nil, 0, fmt.Errorf("%w: %d is outside the row group's bounds", ErrCorrupt, t)
			}
			samples = append(samples, series.Sample{Time: series.Timestamp(t)})
		}
		if hi < len(page) {
			break
		}
	}
	if len(samples) > 0 {
		b.free = samples[len(samples):]
	}
	return samples, first, nil
}

// fillValues sets value or histogram of rows from first on; exactly one of
// the two is there.
func fillValues(samples []series.Sample, first int, values, histograms *pager) error {
	for i := 0; i < len(samples); {
		bits, null, err := values.values(first + i)
		if err != nil {
			return fmt.Errorf("column %q: %w", ColumnValue, err)
		}
		for k := 0; k < len(bits) && i < len(samples); k, i = k+1, i+1 {
			if histograms != nil {
				h, err := histograms.histogram(first + i)
				if err != nil {
					return fmt.Errorf("column %q: %w", ColumnHistogram, err)
				}
				samples[i].Histogram = h
			}
			if null[k] != (samples[i].Histogram != nil) {
				return fmt.Errorf("%w: row %d needs either a value or a histogram", ErrCorrupt, first+i)
			}
			if !null[k] {
				samples[i].Value = math.Float64frombits(bits[k])
			}
		}
	}
	return nil
}
