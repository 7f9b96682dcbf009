package sqlengine

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/planner"
	"cardinalsin/reader"
	"cardinalsin/series"
	"cardinalsin/shard"
)

// listing is a small table in memory. A cell is a string, an int64, or nil
// for null; an int64 of a timestamp column counts µs, one of a date column
// days.
type listing struct {
	list  []sourceColumn
	cells [][]any
}

func (l *listing) columns() []sourceColumn { return l.list }
func (l *listing) rows() int64             { return int64(len(l.cells)) }

func (l *listing) scan(wanted []int) (scan, error) {
	return &listingScan{listing: l, wanted: wanted}, nil
}

type listingScan struct {
	listing *listing
	wanted  []int
	next    int
}

func (s *listingScan) close() {}

func (s *listingScan) fill(out *rowsOut) (int, error) {
	n := min(out.max, len(s.listing.cells)-s.next)
	for i := range n {
		for place, k := range s.wanted {
			if k < 0 {
				continue
			}
			v := &out.columns[k]
			switch cell := s.listing.cells[s.next+i][place].(type) {
			case nil:
				v.setNull(i)
			case string:
				v.text(i, cell)
			case int64:
				if v.kind == kindInt || v.kind == kindDate {
					*at[int32](v.vector, i) = int32(cell)
				} else {
					*at[int64](v.vector, i) = cell
				}
			}
		}
	}
	s.next += n
	return n, nil
}

// filesListing is <table>_files: the live files of a version.
func filesListing(ctx context.Context, view *reader.View) (*listing, error) {
	l := &listing{list: []sourceColumn{
		{"path", kindText}, {"date", kindDate}, {"shard", kindText}, {"level", kindInt},
		{"min_time", kindTimestamp}, {"max_time", kindTimestamp},
		{"num_rows", kindBigInt}, {"bytes", kindBigInt}, {"modified", kindTimestamp},
	}}
	scan, err := view.Plan(ctx, series.Selector{Range: series.AllTime})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(scan.Files, func(a, b planner.File) int { return compareText(a.Add.Path, b.Add.Path) })
	for i := range scan.Files {
		f := &scan.Files[i]
		row := []any{f.Add.Path, nil, nil, nil, nil, nil, nil, f.Add.Size, f.Add.ModificationTime * 1000}
		if v, ok := f.Add.PartitionValues.Get(chunk.ColumnDate); ok {
			if d, err := series.ParseDate(v); err == nil {
				row[1] = int64(d)
			}
		}
		if v, ok := f.Add.PartitionValues.Get(chunk.ColumnShard); ok {
			row[2] = v
		}
		if f.Tagged {
			row[3], row[4], row[5] = int64(f.Tags.Level), int64(f.Tags.Time.Min), int64(f.Tags.Time.Max)
		}
		if n, ok := numRecords(f.Add); ok {
			row[6] = n
		}
		l.cells = append(l.cells, row)
	}
	return l, nil
}

func compareText(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func numRecords(a *action.Add) (int64, bool) {
	st, ok, err := action.ParseStats(a.Stats)
	if err != nil || !ok {
		return 0, false
	}
	return st.NumRecords, true
}

// shardsListing is <table>_shards: the shard map of a version and what each
// shard holds.
func shardsListing(view *reader.View) (*listing, error) {
	l := &listing{list: []sourceColumn{
		{"shard", kindText}, {"epoch", kindBigInt}, {"min_key", kindText}, {"max_key", kindText},
		{"files", kindBigInt}, {"num_rows", kindBigInt}, {"bytes", kindBigInt},
	}}
	snap := view.Snapshot()
	conf, ok := snap.Domain(shard.Domain)
	if !ok {
		return l, nil
	}
	m, err := shard.Parse(conf)
	if err != nil {
		return nil, fmt.Errorf("version %d: %w", int64(snap.Version()), err)
	}
	type figures struct{ files, rows, bytes int64 }
	held := map[string]figures{}
	for a := range snap.Files() {
		name, _ := a.PartitionValues.Get(chunk.ColumnShard)
		f := held[name]
		n, _ := numRecords(a)
		held[name] = figures{f.files + 1, f.rows + n, f.bytes + a.Size}
	}
	for _, s := range m.Shards {
		f := held[string(s.ID)]
		// Keys have 64 bits without a sign: as text of fixed width they sort.
		l.cells = append(l.cells, []any{
			string(s.ID), m.Epoch, fmt.Sprintf("%016x", uint64(s.Range.Min)), fmt.Sprintf("%016x", uint64(s.Range.Max)),
			f.files, f.rows, f.bytes,
		})
	}
	return l, nil
}

// maxLogVersions bounds how far back <table>_log goes: each version costs one
// request.
const maxLogVersions = 1000

// newLogListing is <table>_log without its rows.
func newLogListing() *listing {
	return &listing{list: []sourceColumn{
		{"version", kindBigInt}, {"timestamp", kindTimestamp}, {"operation", kindText},
		{"files_added", kindBigInt}, {"files_removed", kindBigInt},
		{"rows_added", kindBigInt}, {"bytes_added", kindBigInt}, {"bytes_removed", kindBigInt},
		{"transaction", kindText}, {"engine", kindText},
	}}
}

// fillLog adds the history up to a version, newest first, as far as it is kept.
func (e *Engine) fillLog(ctx context.Context, view *reader.View, l *listing) error {
	last, log := view.Version(), e.reader.Log()
	for v := last; v >= 0 && last-v < maxLogVersions; v -= fetches {
		commits := make([]*action.Commit, min(fetches, int(v)+1))
		group, ctx := errgroup.WithContext(ctx)
		for i := range commits {
			group.Go(func() error {
				c, err := log.Commit(ctx, v-action.Version(i))
				if isGone(err) {
					return nil // the history begins after it
				}
				if err != nil {
					return fmt.Errorf("history: version %d: %w", int64(v)-int64(i), err)
				}
				commits[i] = c
				return nil
			})
		}
		if err := group.Wait(); err != nil {
			return err
		}
		for i, c := range commits {
			if c == nil {
				return nil
			}
			l.cells = append(l.cells, logRow(v-action.Version(i), c))
		}
	}
	return nil
}

func logRow(v action.Version, c *action.Commit) []any {
	row := []any{int64(v), nil, nil, int64(len(c.Adds)), int64(len(c.Removes)), nil, nil, nil, nil, nil}
	if t, ok := c.InCommitTimestamp(); ok {
		row[1] = t * 1000
	} else if c.Info != nil && c.Info.Timestamp != 0 {
		row[1] = c.Info.Timestamp * 1000
	}
	if c.Info != nil {
		for i, s := range map[int]string{2: c.Info.Operation, 8: c.Info.TxnID, 9: c.Info.EngineInfo} {
			if s != "" {
				row[i] = s
			}
		}
	}
	rows, added, removed, counted := int64(0), int64(0), int64(0), true
	for i := range c.Adds {
		added += c.Adds[i].Size
		n, ok := numRecords(&c.Adds[i])
		rows += n
		counted = counted && ok
	}
	for i := range c.Removes {
		removed += c.Removes[i].Size
	}
	if counted {
		row[5] = rows
	}
	row[6], row[7] = added, removed
	return row
}

// seriesSQL is <table>_series: the distinct series of a version with the
// number of their samples and when they were seen.
func seriesSQL(rows string, t *rowsTable) string {
	list := chunk.ColumnMetricName + ", " + chunk.ColumnSeriesID
	for _, c := range t.columns {
		if c.label != "" {
			list += ", " + quoteName(c.name)
		}
	}
	list += ", " + chunk.ColumnOverflow
	return "SELECT " + list + `, count(*) AS samples, min("timestamp") AS first_time, max("timestamp") AS last_time FROM ` + rows + " GROUP BY ALL"
}
