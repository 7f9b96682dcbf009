package chunk

import (
	"context"
	"errors"
	"fmt"
	"iter"

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
	return f.scan(ctx, &decoder{file: f, sel: sel, samples: true}, rowGroups)
}

// Series is like Select, but reads no samples: it yields the series of all
// row groups whose time range overlaps the selector's, which may have none
// within it.
func (f *File) Series(ctx context.Context, sel series.Selector, rowGroups []int) iter.Seq2[Series, error] {
	return f.scan(ctx, &decoder{file: f, sel: sel}, rowGroups)
}

// SelectRuns is like Select for series that are known to lie in these rows, in
// the order of the file, as Runs gave them: what identifies series is not read
// again. Rows that the file has not got wrap ErrInvalidInput.
func (f *File) SelectRuns(ctx context.Context, r series.TimeRange, runs []Run) iter.Seq2[Series, error] {
	return func(yield func(Series, error) bool) {
		d := &decoder{file: f, sel: series.Selector{Range: r}, samples: true, known: map[int][]match{}, ready: map[int][]Series{}}
		groups := []int{}
		for i := range runs {
			run := &runs[i]
			n := len(d.known[run.RowGroup])
			if run.RowGroup < 0 || run.RowGroup >= len(f.groups) || run.First < 0 || run.Rows <= 0 ||
				int64(run.First)+int64(run.Rows) > f.groups[run.RowGroup].Rows || n > 0 && d.known[run.RowGroup][n-1].end > run.First {
				yield(Series{}, fmt.Errorf("read %s: %w: rows %d to %d of row group %d", f.Name(), ErrInvalidInput, run.First, run.First+run.Rows, run.RowGroup))
				return
			}
			if n == 0 {
				groups = append(groups, run.RowGroup)
			}
			d.known[run.RowGroup] = append(d.known[run.RowGroup], match{run.Labels, run.ID, run.First, run.First + run.Rows})
		}
		f.scan(ctx, d, groups)(yield)
	}
}

func (f *File) scan(ctx context.Context, d *decoder, rowGroups []int) iter.Seq2[Series, error] {
	samples := d.samples
	return func(yield func(Series, error) bool) {
		fail := func(err error) { yield(Series{}, fmt.Errorf("read %s: %w", f.Name(), err)) }
		groups, err := f.pick(d.sel, rowGroups)
		if err != nil {
			fail(err)
			return
		}
		// The last series may go on in the next row group. owned says that
		// its samples are in an array of its own, which may grow.
		var held *Series
		owned := false
		for len(groups) > 0 {
			n := f.batch(groups, samples)
			read, err := d.readBatch(ctx, groups[:n])
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
							if samples {
								if err := d.join(held, owned, &s); err != nil {
									fail(fmt.Errorf("row group %d: %w", g, err))
									return
								}
								owned = true
							}
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

// readBatch reads what is needed of row groups: the samples where the series
// are known; else all of them if they fit a request; else, or where no samples
// are wanted, what identifies series.
func (d *decoder) readBatch(ctx context.Context, groups []int) (*blocks, error) {
	f := d.file
	if d.known != nil {
		var want []span
		for _, g := range groups {
			if f.floats {
				switch kept, err := d.decode(g, nil, d.known[g]); {
				case err == nil:
					d.ready[g] = kept
					continue
				case !errors.Is(err, errNotKept):
					return nil, err
				}
			}
			want = append(want, f.spans(&f.groups[g], f.dataColumns())...)
		}
		if len(want) == 0 {
			return &blocks{}, nil
		}
		return f.fetch(ctx, want)
	}
	first, last := &f.groups[groups[0]], &f.groups[groups[len(groups)-1]]
	whole := span{first.span.offset, last.span.end() - first.span.offset}
	if d.samples && whole.length <= maxRequest {
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
	for _, name := range []string{ColumnTimestamp, ColumnNanos, ColumnStart, ColumnValue, ColumnHistogram} {
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
	known   map[int][]match  // by row group, where they need not be looked for
	ready   map[int][]Series // by row group, what needed no reading
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

// matches returns the rows of the matching series of one row group.
func (d *decoder) matches(g int, read *blocks) (found []match, err error) {
	if d.known != nil {
		return d.known[g], nil
	}
	err = guard(func() (err error) {
		found, err = d.identify(&d.file.groups[g], read)
		return err
	})
	return found, err
}

// group returns the matching series of one row group.
func (d *decoder) group(ctx context.Context, g int, read *blocks) ([]Series, error) {
	if kept, ok := d.ready[g]; ok {
		delete(d.ready, g)
		return kept, nil
	}
	rg := &d.file.groups[g]
	matches, err := d.matches(g, read)
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
		if d.file.floats {
			if kept, err := d.decode(g, nil, matches); !errors.Is(err, errNotKept) {
				return kept, err
			}
		}
		if read, err = d.file.fetch(ctx, d.file.spans(rg, columns)); err != nil {
			return nil, err
		}
	}
	return d.decode(g, read, matches)
}

// decode returns the samples of the matches; see loadFloats for a call without
// blocks.
func (d *decoder) decode(g int, read *blocks, matches []match) (out []Series, err error) {
	err = guard(func() (err error) {
		if d.file.floats {
			out, err = d.loadFloats(g, read, matches)
		} else {
			out, err = d.load(&d.file.groups[g], read, matches)
		}
		return err
	})
	return out, err
}
