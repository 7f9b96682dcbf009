package chunk

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"math"
	"slices"
	"sort"

	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/series"
)

// Select yields the series that the selector picks, in the order of
// [series.Compare], each once, with its samples in the selector's time range;
// a series without such samples is left out. rowGroups are indexes into
// RowGroups, ascending; nil means all. Row groups that cannot match are
// skipped whichever are given.
//
// It reads the columns that identify series first; matchers are evaluated on
// runs of equal rows, and pages of samples that hold no wanted row are not
// decompressed. A request covers up to 8 MiB of neighbouring row groups.
//
// Samples and histograms belong to the caller, who must not append to them.
// Errors name the file and end the sequence: ErrCorrupt, and those of the
// source. What was yielded before is correct but not complete.
func (f *File) Select(ctx context.Context, sel series.Selector, rowGroups []int) iter.Seq2[Series, error] {
	return f.scan(ctx, sel, rowGroups, true)
}

// Series is like Select, but reads no samples: it yields the series of all
// row groups whose time range overlaps the selector's, which may have none
// within it.
func (f *File) Series(ctx context.Context, sel series.Selector, rowGroups []int) iter.Seq2[Series, error] {
	return f.scan(ctx, sel, rowGroups, false)
}

func (f *File) scan(ctx context.Context, sel series.Selector, rowGroups []int, samples bool) iter.Seq2[Series, error] {
	return func(yield func(Series, error) bool) {
		fail := func(err error) { yield(Series{}, fmt.Errorf("read %s: %w", f.Name(), err)) }
		groups, err := f.pick(sel, rowGroups)
		if err != nil {
			fail(err)
			return
		}
		d := &decoder{file: f, sel: sel, samples: samples}
		// The last series may go on in the next row group. owned says that
		// its samples are in an array of its own, which may grow.
		var held *Series
		owned := false
		for len(groups) > 0 {
			n := f.batch(groups, samples)
			read, err := f.readBatch(ctx, groups[:n], samples)
			if err != nil {
				fail(err)
				return
			}
			for _, g := range groups[:n] {
				found, err := d.group(ctx, g, read)
				if err != nil {
					fail(fmt.Errorf("row group %d: %w", g, err))
					return
				}
				for i := range found {
					s := found[i]
					if held != nil {
						c := held.Compare(&s)
						if c > 0 {
							fail(fmt.Errorf("row group %d: %w: series %s after %s", g, ErrCorrupt, s.Labels, held.Labels))
							return
						}
						if c == 0 {
							if samples && held.Samples[len(held.Samples)-1].Compare(s.Samples[0]) >= 0 {
								fail(fmt.Errorf("row group %d: %w: samples of %s out of order", g, ErrCorrupt, s.Labels))
								return
							}
							if !owned {
								held.Samples, owned = slices.Clip(held.Samples), true
							}
							held.Samples = append(held.Samples, s.Samples...)
							continue
						}
						if !yield(*held, nil) {
							return
						}
					}
					held, owned = &s, false
				}
			}
			groups = groups[n:]
		}
		if held != nil {
			yield(*held, nil)
		}
	}
}

// pick checks the list of row groups and drops those that cannot match.
func (f *File) pick(sel series.Selector, rowGroups []int) ([]int, error) {
	if rowGroups == nil {
		rowGroups = make([]int, len(f.groups))
		for i := range rowGroups {
			rowGroups[i] = i
		}
	}
	var out []int
	for i, g := range rowGroups {
		if g < 0 || g >= len(f.groups) || i > 0 && g <= rowGroups[i-1] {
			return nil, fmt.Errorf("%w: row group %d of %d", ErrInvalidInput, g, len(f.groups))
		}
		if f.groups[g].MayMatch(sel) {
			out = append(out, g)
		}
	}
	return out, nil
}

// batch is how many of the row groups are read together: always one, more
// while they lie close together and stay within a request.
func (f *File) batch(groups []int, samples bool) int {
	if !samples {
		return 1
	}
	whole := f.groups[groups[0]].span
	n := 1
	for ; n < len(groups); n++ {
		s := f.groups[groups[n]].span
		if s.offset < whole.end() || s.offset-whole.end() > maxGap || s.end()-whole.offset > maxRequest {
			break
		}
		whole.length = s.end() - whole.offset
	}
	return n
}

// readBatch reads row groups whole if they fit a request; else, or where no
// samples are wanted, what identifies series.
func (f *File) readBatch(ctx context.Context, groups []int, samples bool) (*blocks, error) {
	first, last := &f.groups[groups[0]], &f.groups[groups[len(groups)-1]]
	whole := span{first.span.offset, last.span.end() - first.span.offset}
	if samples && whole.length <= maxRequest {
		return f.fetch(ctx, []span{whole})
	}
	return f.fetch(ctx, f.spans(first, f.identity()))
}

func (f *File) spans(g *RowGroup, columns []int) []span {
	out := make([]span, len(columns))
	for i, c := range columns {
		out[i] = g.columns[c].span
	}
	return out
}

// identity lists the columns that identify a series.
func (f *File) identity() []int {
	var out []int
	for i := range f.leaves {
		if l := &f.leaves[i]; l.label != "" || l.path == ColumnMetricName || l.path == ColumnSeriesID || l.maxRep > 0 {
			out = append(out, i)
		}
	}
	return out
}

// dataColumns lists the columns that hold samples.
func (f *File) dataColumns() []int {
	var out []int
	for _, name := range []string{ColumnTimestamp, ColumnNanos, ColumnValue, ColumnHistogram} {
		if i, ok := f.byName[name]; ok {
			out = append(out, i)
		}
	}
	return out
}

// decoder decodes row groups for one selector. Its buffers are used again
// from one row group to the next.
type decoder struct {
	file    *File
	sel     series.Selector
	samples bool
	buf     []byte
	builder labels.ScratchBuilder
	pagers  map[string]*pager
}

// match is one series' rows.
type match struct {
	labels     series.Labels
	id         series.ID
	start, end int // rows
}

// group returns the matching series of one row group.
func (d *decoder) group(ctx context.Context, g int, read *blocks) ([]Series, error) {
	rg := &d.file.groups[g]
	var matches []match
	err := guard(func() (err error) {
		matches, err = d.identify(rg, read)
		return err
	})
	if err != nil || len(matches) == 0 {
		return nil, err
	}
	if !d.samples {
		out := make([]Series, len(matches))
		for i, m := range matches {
			out[i] = Series{Labels: m.labels, ID: m.id}
		}
		return out, nil
	}
	columns := d.file.dataColumns()
	if _, ok := read.slice(rg.columns[columns[0]].span); !ok {
		if read, err = d.file.fetch(ctx, d.file.spans(rg, columns)); err != nil {
			return nil, err
		}
	}
	var out []Series
	err = guard(func() (err error) {
		out, err = d.load(rg, read, matches)
		return err
	})
	return out, err
}

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
	g.pages, g.next, g.first, g.end, g.dict = p, 0, 0, 0, nil
	return g, nil
}

// load reads the samples of the matches that lie in the time range.
func (d *decoder) load(rg *RowGroup, read *blocks, matches []match) ([]Series, error) {
	var open [4]*pager
	for i, name := range []string{ColumnTimestamp, ColumnNanos, ColumnValue, ColumnHistogram} {
		var err error
		if open[i], err = d.pager(rg, name, read); err != nil {
			return nil, err
		}
	}
	times, nanos, values, histograms := open[0], open[1], open[2], open[3]
	total := 0
	for _, m := range matches {
		total += m.end - m.start
	}
	if rg.Time.Min < d.sel.Range.Min || rg.Time.Max > d.sel.Range.Max {
		total = min(total, 1024) // how many remain is not known yet
	}
	slab := make([]series.Sample, 0, total)
	out := make([]Series, 0, len(matches))
	for _, m := range matches {
		from := len(slab)
		first, err := d.times(times, rg, m, &slab)
		if err != nil {
			return nil, fmt.Errorf("column %q: %w", ColumnTimestamp, err)
		}
		samples := slab[from:]
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

// times appends a sample for each row of the match in the time range, and
// returns the first such row. Rows of a series ascend in time.
func (d *decoder) times(p *pager, rg *RowGroup, m match, slab *[]series.Sample) (first int, err error) {
	first = m.start
	from := len(*slab)
	for row := m.start; row < m.end; {
		page, err := p.times(row)
		if err != nil {
			return 0, err
		}
		page = page[:min(len(page), m.end-row)]
		row += len(page)
		if len(*slab) > from && page[0] < int64(d.sel.Range.Min) {
			return 0, fmt.Errorf("%w: samples of %s out of order", ErrCorrupt, m.labels)
		}
		if page[len(page)-1] < int64(d.sel.Range.Min) {
			first = row
			continue
		}
		lo := sort.Search(len(page), func(i int) bool { return page[i] >= int64(d.sel.Range.Min) })
		if lo > 0 {
			first = row - len(page) + lo
		}
		for _, t := range page[lo:] {
			if t > int64(d.sel.Range.Max) {
				return first, nil
			}
			if !rg.Time.Contains(series.Timestamp(t)) {
				return 0, fmt.Errorf("%w: %d is outside the row group's bounds", ErrCorrupt, t)
			}
			*slab = append(*slab, series.Sample{Time: series.Timestamp(t)})
		}
	}
	return first, nil
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
