package sqlengine

import (
	"context"
	"fmt"
	"strconv"

	duckdb "github.com/duckdb/duckdb-go-bindings"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/planner"
	"cardinalsin/series"
)

// Explanation says how a statement would be answered.
type Explanation struct {
	Tables []TableScan `json:"tables"`
	// Plan is DuckDB's, for people.
	Plan string `json:"plan"`
}

// TableScan is what a statement reads of one table at one version.
type TableScan struct {
	Table   string         `json:"table"`
	Version action.Version `json:"version"`
	// Head is whether the head is read too. Without it, a statement sees what
	// is committed: of an older version, or by a process that does not write.
	Head  bool  `json:"head"`
	Files int   `json:"files"`
	Bytes int64 `json:"bytes"`
	// Skipped counts the files that cannot hold a selected row, SkippedBytes
	// their bytes.
	Skipped      map[planner.Reason]int   `json:"skipped"`
	SkippedBytes map[planner.Reason]int64 `json:"skipped_bytes"`
	// Excerpts counts the files of a remote store of which only the columns and
	// row groups are read that the statement may touch, and ExcerptBytes the
	// bytes of those.
	Excerpts     int   `json:"excerpts"`
	ExcerptBytes int64 `json:"excerpt_bytes"`
	// RowGroups counts those of the files, and RowGroupsSkipped those of them
	// that lie outside the times that the statement asks for, and of an excerpt's
	// file those that cannot hold a selected row. Explain alone counts.
	RowGroups        int `json:"row_groups"`
	RowGroupsSkipped int `json:"row_groups_skipped"`
	// Compared counts the files that had to be compared for duplicates, and
	// Duplicates is whether there were any.
	Compared   int  `json:"compared"`
	Duplicates bool `json:"duplicates"`
}

// Explain does all that Query does short of running the statement.
func (e *Engine) Explain(ctx context.Context, sql string, opts QueryOptions) (*Explanation, error) {
	q, err := e.open(ctx, sql, opts)
	if err != nil {
		return nil, fmt.Errorf("explain: %w", err)
	}
	defer q.close()
	ctx, cancel := context.WithDeadline(ctx, q.deadline)
	defer cancel()
	if err := q.prepare(ctx); err != nil {
		return nil, fmt.Errorf("explain: %w", q.typed(ctx, err))
	}
	p, err := q.compile(ctx)
	if err != nil {
		return nil, fmt.Errorf("explain: %w", q.typed(ctx, err))
	}
	duckdb.DestroyPrepare(&p)
	rows, err := q.db.rows(ctx, "EXPLAIN "+q.sql)
	if err != nil {
		return nil, fmt.Errorf("explain: %w", q.typed(ctx, err))
	}
	x := &Explanation{Tables: q.scans()}
	for i, g := range q.groups {
		if g.rows == nil || g.rows.layout == nil {
			continue
		}
		if err := q.countRowGroups(ctx, g.rows, &x.Tables[i]); err != nil {
			return nil, fmt.Errorf("explain: %w", q.typed(ctx, err))
		}
	}
	for _, r := range rows {
		x.Plan += r[len(r)-1]
	}
	q.finished = true
	return x, nil
}

// scans describes what is read.
func (q *query) scans() []TableScan {
	var out []TableScan
	for _, g := range q.groups {
		s := TableScan{
			Table: q.engine.opts.Table + string(g.kind), Version: g.view.Version(),
			Skipped: map[planner.Reason]int{}, SkippedBytes: map[planner.Reason]int64{},
		}
		if t := g.rows; t != nil {
			s.Head = t.head >= 0
			s.Files, s.Bytes = len(t.scan.Files), t.scan.Bytes()
			s.Skipped, s.SkippedBytes = t.scan.Skipped, t.scan.SkippedBytes
			s.Excerpts, s.ExcerptBytes, _, _ = t.excerptsOf()
			s.Compared, s.Duplicates = len(t.disputed()), t.duplicates != ""
		}
		out = append(out, s)
	}
	return out
}

// countRowGroups looks into the footers of the files.
func (q *query) countRowGroups(ctx context.Context, t *rowsTable, out *TableScan) error {
	_, _, out.RowGroups, out.RowGroupsSkipped = t.excerptsOf()
	paths := t.wholePaths()
	if len(paths) == 0 {
		return nil
	}
	lo, hi := max(t.sel.Range.Min, series.MinTimestamp), min(t.sel.Range.Max, series.MaxTimestamp)
	rows, err := q.db.rows(ctx, fmt.Sprintf("SELECT count(*)::VARCHAR, (count(*) FILTER (TRY_CAST(stats_max_value AS TIMESTAMPTZ) < make_timestamptz(%d) OR TRY_CAST(stats_min_value AS TIMESTAMPTZ) > make_timestamptz(%d)))::VARCHAR FROM parquet_metadata(%s) WHERE path_in_schema = %s",
		int64(lo), int64(hi), quoteTexts(paths), quoteText(chunk.ColumnTimestamp)))
	if err != nil {
		return fmt.Errorf("count row groups: %w", err)
	}
	for i, n := range []*int{&out.RowGroups, &out.RowGroupsSkipped} {
		more, err := strconv.Atoi(rows[0][i])
		if err != nil {
			return fmt.Errorf("count row groups: %w", err)
		}
		*n += more
	}
	return nil
}
