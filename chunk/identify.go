package chunk

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/series"
)

// pagesOf checks and splits one column chunk.
func (d *decoder) pagesOf(rg *RowGroup, column int, read *blocks) (pages, error) {
	c := &rg.columns[column]
	data, ok := read.slice(c.span)
	if !ok {
		panic("column chunk was not read")
	}
	p, err := splitPages(data, c)
	if err != nil {
		return pages{}, fmt.Errorf("column %q: %w", d.file.leaves[column].path, err)
	}
	return p, nil
}

// labelRuns is one label of a row group, with a place to stand on.
type labelRuns struct {
	name string
	texts
	at int // run that covers the row of interest
}

// seek moves to the run that covers row; rows ascend.
func (c *labelRuns) seek(row int) *run {
	for int(c.runs[c.at].end) <= row {
		c.at++
	}
	return &c.runs[c.at]
}

// value of the run that seek found last, "" for null.
func (c *labelRuns) value() string {
	if code := c.runs[c.at].code; code >= 0 {
		return c.dict[code]
	}
	return ""
}

func (d *decoder) texts(rg *RowGroup, name string, column int, read *blocks, want []rows) (*labelRuns, error) {
	p, err := d.pagesOf(rg, column, read)
	if err != nil {
		return nil, err
	}
	l := &d.file.leaves[column]
	t, err := decodeTextColumn(&p, l, want, &d.buf)
	if err != nil {
		return nil, fmt.Errorf("column %q: %w", l.path, err)
	}
	return &labelRuns{name: name, texts: t}, nil
}

// identify finds the series whose labels match, with their rows.
func (d *decoder) identify(rg *RowGroup, read *blocks) ([]match, error) {
	f := d.file
	columns := make([]*labelRuns, 0, len(f.labelNames)+1) // sorted by label
	byLabel := map[string]*labelRuns{}
	candidates := []rows{{0, int(rg.Rows)}}
	add := func(name string, column int) error {
		if byLabel[name] != nil {
			return nil
		}
		c, err := d.texts(rg, name, column, read, candidates)
		if err == nil {
			byLabel[name] = c
		}
		return err
	}
	columnOf := func(label string) (int, bool) {
		if label == series.MetricName {
			return f.byName[ColumnMetricName], true
		}
		i, ok := f.byName[labelKey(label)]
		return i, ok
	}
	// The columns that matchers name decide which rows of the others are
	// decoded; the metric name first, since it cuts the most.
	matchers := slices.Clone(d.sel.Matchers)
	slices.SortStableFunc(matchers, func(a, b *labels.Matcher) int {
		return cmp.Compare(b2i(b.Name == series.MetricName), b2i(a.Name == series.MetricName))
	})
	var rest []*labels.Matcher // on labels without a column
	for _, m := range matchers {
		column, ok := columnOf(m.Name)
		if !ok {
			rest = append(rest, m)
			continue
		}
		if err := add(m.Name, column); err != nil {
			return nil, err
		}
		candidates = intersect(candidates, evaluate(m, byLabel[m.Name].texts))
		if len(candidates) == 0 {
			return nil, nil
		}
	}
	rest = slices.DeleteFunc(rest, func(m *labels.Matcher) bool {
		_, in := slices.BinarySearch(f.overflow, m.Name)
		return !in // MayMatch has asked whether it accepts the label's absence
	})
	names := append(slices.Clone(f.labelNames), series.MetricName)
	slices.Sort(names)
	for _, name := range names {
		column, _ := columnOf(name)
		if err := add(name, column); err != nil {
			return nil, err
		}
		columns = append(columns, byLabel[name])
	}
	idColumn := f.byName[ColumnSeriesID]
	p, err := d.pagesOf(rg, idColumn, read)
	if err != nil {
		return nil, err
	}
	id, err := decodeIDColumn(&p, &f.leaves[idColumn], candidates, &d.buf)
	if err != nil {
		return nil, fmt.Errorf("column %q: %w", ColumnSeriesID, err)
	}
	var over *overflow
	if len(f.overflow) > 0 {
		if over, err = d.overflow(rg, read); err != nil {
			return nil, fmt.Errorf("column %q: %w", ColumnOverflow, err)
		}
	}
	return d.sweep(int(rg.Rows), candidates, columns, &id, over, rest)
}

func (d *decoder) overflow(rg *RowGroup, read *blocks) (*overflow, error) {
	f := d.file
	k, v := f.byName[overflowKeyPath], f.byName[overflowValuePath]
	kp, err := d.pagesOf(rg, k, read)
	if err != nil {
		return nil, err
	}
	vp, err := d.pagesOf(rg, v, read)
	if err != nil {
		return nil, err
	}
	o, err := decodeOverflow(&kp, &vp, &f.leaves[k], &f.leaves[v], int(rg.Rows), &d.buf)
	return &o, err
}

// rows is a range of row numbers, end not included.
type rows struct{ start, end int }

// evaluate returns the rows where a matcher holds; it asks the matcher once
// for each value that occurs.
func evaluate(m *labels.Matcher, t texts) []rows {
	const (
		unknown = iota
		yes
		no
	)
	verdicts := make([]byte, len(t.dict)+1) // the first is for null
	var out []rows
	start := 0
	for _, r := range t.runs {
		if r.code != skippedCode {
			v := &verdicts[r.code+1]
			if *v == unknown {
				value := ""
				if r.code >= 0 {
					value = t.dict[r.code]
				}
				*v = no
				if m.Matches(value) {
					*v = yes
				}
			}
			if *v == yes {
				if n := len(out); n > 0 && out[n-1].end == start {
					out[n-1].end = int(r.end)
				} else {
					out = append(out, rows{start, int(r.end)})
				}
			}
		}
		start = int(r.end)
	}
	return out
}

// intersect returns the rows that are in both lists.
func intersect(a, b []rows) []rows {
	var both []rows
	for len(a) > 0 && len(b) > 0 {
		start, end := max(a[0].start, b[0].start), min(a[0].end, b[0].end)
		if start < end {
			both = append(both, rows{start, end})
		}
		if a[0].end < b[0].end {
			a = a[1:]
		} else {
			b = b[1:]
		}
	}
	return both
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// sweep walks the candidate rows from one change of any identifying column to
// the next: each stretch is one series.
func (d *decoder) sweep(n int, candidates []rows, columns []*labelRuns, id *ids, over *overflow, rest []*labels.Matcher) ([]match, error) {
	for _, c := range columns {
		if k := len(c.runs); k == 0 || int(c.runs[k-1].end) != n {
			return nil, fmt.Errorf("%w: label %q does not cover all rows", ErrCorrupt, c.name)
		}
	}
	if k := len(id.runs); k == 0 || int(id.runs[k-1].end) != n {
		return nil, fmt.Errorf("%w: series_id does not cover all rows", ErrCorrupt)
	}
	// Overflow runs and IDs step like the labels do.
	idRuns := &labelRuns{texts: texts{runs: id.runs}}
	var overRuns *labelRuns
	if over != nil {
		overRuns = &labelRuns{texts: texts{runs: over.runs}}
	}
	var out []match
	for _, c := range candidates {
		for row := c.start; row < c.end; {
			r := idRuns.seek(row)
			end := min(c.end, int(r.end))
			key := series.ID(id.values[r.code])
			for _, col := range columns {
				end = min(end, int(col.seek(row).end))
			}
			first := 0
			if over != nil {
				r := overRuns.seek(row)
				end = min(end, int(r.end))
				first = int(r.code)
			}
			ok := true
			for _, m := range rest {
				ok = ok && m.Matches(over.get(first, m.Name))
			}
			if ok {
				l, err := d.labels(columns, over, first)
				if err != nil {
					return nil, err
				}
				if series.IDOf(l) != key {
					return nil, fmt.Errorf("%w: series_id of row %d is not that of %s", ErrCorrupt, row, l)
				}
				if k := len(out) - 1; k >= 0 && series.Compare(out[k].labels, l, out[k].id, key) >= 0 {
					return nil, fmt.Errorf("%w: series %s in row %d after %s", ErrCorrupt, l, row, out[k].labels)
				}
				out = append(out, match{l, key, row, end})
			}
			row = end
		}
	}
	return out, nil
}

// labels builds the label set at the runs that the columns stand on.
func (d *decoder) labels(columns []*labelRuns, over *overflow, row int) (series.Labels, error) {
	d.builder.Reset()
	for _, c := range columns {
		if v := c.value(); v != "" {
			d.builder.Add(c.name, v)
		}
	}
	if over == nil || len(over.of(row)) == 0 {
		return d.builder.Labels(), nil
	}
	for _, p := range over.of(row) {
		d.builder.Add(over.keys[p.key], over.values[p.value])
	}
	d.builder.Sort()
	l := d.builder.Labels()
	if name, dup := l.HasDuplicateLabelNames(); dup {
		return l, fmt.Errorf("%w: label %q twice in %s", ErrCorrupt, name, l)
	}
	return l, nil
}
