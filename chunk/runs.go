package chunk

import (
	"context"
	"fmt"
	"iter"

	"cardinalsin/series"
)

// Run is where one series lies in one row group.
type Run struct {
	Labels   series.Labels
	ID       series.ID
	RowGroup int
	First    int // row within the row group
	Rows     int
}

// Runs yields where each series of the file lies, in the order of the rows:
// every row belongs to exactly one run. It reads the columns that identify
// series, one row group at a time. Errors are those of Select, and end the
// sequence.
func (f *File) Runs(ctx context.Context) iter.Seq2[Run, error] {
	return func(yield func(Run, error) bool) {
		d := &decoder{file: f, sel: series.Selector{Range: series.AllTime}}
		for g := range f.groups {
			rg := &f.groups[g]
			read, err := d.readBatch(ctx, []int{g})
			if err == nil {
				var found []match
				err = guard(func() (err error) {
					found, err = d.identify(rg, read)
					return err
				})
				for _, m := range found {
					if err != nil {
						break
					}
					if !yield(Run{Labels: m.labels, ID: m.id, RowGroup: g, First: m.start, Rows: m.end - m.start}, nil) {
						return
					}
				}
			}
			if err != nil {
				yield(Run{}, fmt.Errorf("read %s: row group %d: %w", f.Name(), g, err))
				return
			}
		}
	}
}

// IdentityBytes is the size of the columns that identify series: what Runs
// and Series read at most.
func (f *File) IdentityBytes() int64 {
	var n int64
	for i := range f.groups {
		for _, s := range f.spans(&f.groups[i], f.identity()) {
			n += s.length
		}
	}
	return n
}
