package sqlengine

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"

	"cardinalsin/deletion"
	"cardinalsin/planner"
	"cardinalsin/storage"
	"cardinalsin/txlog"
)

// A table of another engine is read by its log alone: the schema says which
// columns there are, the footer of each file where in it they lie, the log
// what is deleted. No file is left out for its statistics or its partition:
// what is skipped wrongly is lost, and DuckDB skips row groups by itself.

// describeForeign reads the columns, in the order of the schema. Of columns
// whose names differ only in case SQL can tell just one; the first stays. A
// column of a type that we cannot read is refused when a statement reads it.
func (t *rowsTable) describeForeign(snap *txlog.Snapshot) error {
	m, err := mappingOf(snap.Metadata().Configuration)
	if err != nil {
		return err
	}
	taken := map[string]bool{}
	for i := range snap.Schema().Fields {
		f := &snap.Schema().Fields[i]
		if lowered := strings.ToLower(f.Name); taken[lowered] {
			continue
		} else {
			taken[lowered] = true
		}
		c := column{name: f.Name, sqlType: kindText.String()}
		if c.field, err = m.field(f, 0); err != nil {
			c.refused = fmt.Errorf("column %s: %w", f.Name, err)
		} else {
			c.sqlType = c.field.typ.sql
		}
		if slices.Contains(snap.Metadata().PartitionColumns, f.Name) {
			c.partition = c.field.physical
		}
		t.columns = append(t.columns, c)
	}
	return nil
}

// planForeign takes all files and reads their deletion vectors. It returns
// the sources with the table's added.
func (q *query) planForeign(ctx context.Context, t *rowsTable, sources []source) ([]source, error) {
	snap := t.view.Snapshot()
	t.scan = planner.Scan{Version: snap.Version(), Skipped: map[planner.Reason]int{}}
	for add := range snap.Files() {
		t.scan.Files = append(t.scan.Files, planner.File{Add: add})
	}
	for i := range t.columns {
		if c := &t.columns[i]; c.refused != nil {
			c.refusal = len(q.refusals)
			q.refusals = append(q.refusals, c.refused)
		}
	}
	deleted, err := q.readVectors(ctx, t)
	if err != nil {
		return nil, err
	}
	if len(deleted.files) > 0 {
		t.vectors = len(sources)
		sources = append(sources, deleted)
	}
	return sources, nil
}

// readVectors reads the deletion vectors of all files.
func (q *query) readVectors(ctx context.Context, t *rowsTable) (*vectorSource, error) {
	s := &vectorSource{}
	for i := range t.scan.Files {
		if t.scan.Files[i].Add.DeletionVector != nil {
			s.files = append(s.files, i)
		}
	}
	s.vectors = make([]*deletion.Vector, len(s.files))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(fetches)
	for k, i := range s.files {
		g.Go(func() (err error) {
			add := t.scan.Files[i].Add
			s.vectors[k], err = deletion.Read(ctx, q.engine.reader.Log().Store(), locations{q.engine}, add.DeletionVector)
			if err != nil {
				return fmt.Errorf("deleted rows of %s: %w", add.Path, err)
			}
			return nil
		})
	}
	return s, g.Wait()
}

// locations says where the objects of the engine's table are.
type locations struct{ e *Engine }

func (l locations) Root() string { return l.e.reader.Log().Root() }

// Key returns the key of a data file or an absolute URI, as logged. An error
// wraps txlog.ErrUnsupported for what lies outside the store.
func (l locations) Key(path string) (string, error) {
	if !isAbsolute(path) {
		return l.e.reader.Log().Key(path)
	}
	key, ok := storage.KeyOf(l.e.reader.Log().Store(), path)
	if !ok {
		return "", fmt.Errorf("%w: %.200q lies outside the store", txlog.ErrUnsupported, path)
	}
	return key, nil
}

// isAbsolute: a path with a scheme, or from the root of a file system
// (RFC 2396, section 3.1).
func isAbsolute(path string) bool {
	if strings.HasPrefix(path, "/") {
		return true
	}
	scheme, rest, ok := strings.Cut(path, ":")
	return ok && scheme != "" && strings.HasPrefix(rest, "/") && strings.Trim(strings.ToLower(scheme), "abcdefghijklmnopqrstuvwxyz0123456789+-.") == ""
}

// foreignSQL is the SELECT of all rows. Files with equal schemas are read
// together; those with deleted rows apart.
func (t *rowsTable) foreignSQL(ctx context.Context, e *Engine, d *database) (string, error) {
	if len(t.scan.Files) == 0 {
		return t.empty(), nil
	}
	var err error
	if t.schemas, err = e.footers(ctx, d, t); err != nil {
		return "", err
	}
	type kind struct {
		*footer
		deleted bool
	}
	groups := map[kind][]int{}
	var order []kind
	for i, f := range t.schemas {
		k := kind{f, t.scan.Files[i].Add.DeletionVector != nil}
		if groups[k] == nil {
			order = append(order, k)
		}
		groups[k] = append(groups[k], i)
	}
	var parts []string
	for _, k := range order {
		sql, err := t.readForeign(groups[k], k.footer, k.deleted)
		if err != nil {
			return "", fmt.Errorf("file %s: %w", t.scan.Files[groups[k][0]].Add.Path, err)
		}
		parts = append(parts, sql)
	}
	if len(t.columns) == 0 {
		return "SELECT NULL AS empty FROM (" + strings.Join(parts, " UNION ALL ") + ")", nil
	}
	return t.named("(" + strings.Join(parts, " UNION ALL ") + ")"), nil
}

// readForeign is the SELECT of files with one schema.
func (t *rowsTable) readForeign(files []int, f *footer, deleted bool) (string, error) {
	list := make([]string, 0, len(t.columns)+1)
	for i, c := range t.columns {
		var e string
		switch {
		case c.refused != nil:
			e = refuse(c.refusal)
		case c.partition != "":
			e = perFile(files, c.sqlType, func(i int) string { return t.partitionValue(i, c) })
		default:
			place, ok := find(f.columns, &c.field)
			if c.field.id != 0 && !f.hasIDs {
				// By name it would be a guess, and null would be wrong.
				return "", fmt.Errorf("%w: no column has an id, by which the table finds columns", txlog.ErrUnsupported)
			}
			if !ok { // the file is older than the column
				e = "CAST(NULL AS " + c.sqlType + ")"
				break
			}
			var err error
			if e, err = convert(f.columns[place], c.field.typ, outer(place), 0); err != nil {
				return "", fmt.Errorf("column %s: %w", c.name, err)
			}
		}
		list = append(list, e+" AS "+inner(i))
	}
	if len(list) == 0 {
		list = append(list, "1 AS "+inner(0))
	}
	paths := make([]string, len(files))
	for k, i := range files {
		paths[k] = t.paths[i]
	}
	// Names are given by place: what a file calls its columns could be what
	// DuckDB calls something else.
	names := make([]string, len(f.columns))
	for i := range names {
		names[i] = outer(i)
	}
	sql := "SELECT " + strings.Join(list, ", ") + " FROM read_parquet(" + quoteTexts(paths) + ", hive_partitioning = false) AS r(" + strings.Join(names, ", ") + ")"
	if deleted {
		place := make([]string, len(files))
		for k, i := range files {
			place[k] = fmt.Sprint(i)
		}
		sql += fmt.Sprintf(" ANTI JOIN %s(%d) AS d ON d.place = (CAST([%s] AS BIGINT[]))[r.file_index::BIGINT + 1] AND d.line = r.file_row_number",
			scanFunction, t.vectors, strings.Join(place, ","))
	}
	return sql, nil
}

// outer names a file's column by its place.
func outer(i int) string { return fmt.Sprintf("f%d", i) }

// vectorSource is the deleted rows of all files: the file's place in the scan
// and the row's in the file.
type vectorSource struct {
	files   []int
	vectors []*deletion.Vector // by place in files
}

func (s *vectorSource) columns() []sourceColumn {
	return []sourceColumn{{"place", kindBigInt}, {"line", kindBigInt}}
}

func (s *vectorSource) rows() (n int64) {
	for _, v := range s.vectors {
		n += v.Len()
	}
	return n
}

func (s *vectorSource) scan(wanted []int) (scan, error) {
	return &vectorScan{source: s, wanted: wanted}, nil
}

type vectorScan struct {
	source *vectorSource
	wanted []int
	at     int // place in files
	next   func([]uint64) int
	buf    []uint64
}

func (s *vectorScan) close() {}

// fill implements scan.
func (s *vectorScan) fill(out *rowsOut) (int, error) {
	if s.buf == nil {
		s.buf = make([]uint64, out.max)
	}
	for s.at < len(s.source.files) {
		if s.next == nil {
			s.next = s.source.vectors[s.at].Rows()
		}
		n := s.next(s.buf[:out.max])
		if n == 0 {
			s.at, s.next = s.at+1, nil
			continue
		}
		for i, row := range s.buf[:n] {
			for column, value := range []int64{int64(s.source.files[s.at]), int64(row)} { //nolint:gosec // package deletion bounds it
				if k := s.wanted[column]; k >= 0 {
					*at[int64](out.columns[k].vector, i) = value
				}
			}
		}
		return n, nil
	}
	return 0, nil
}

// refusalMark begins the text of the error that DuckDB raises when it
// evaluates a column that we cannot read; the refusal's number follows. The
// text is ours from end to end: DuckDB carries nothing else.
const refusalMark = "cardinal: column refused: "

// refuse is SQL that fails when it is evaluated. DuckDB does not evaluate what
// a statement does not use.
func refuse(n int) string {
	return "CAST(error(" + quoteText(refusalMark+strconv.Itoa(n)+".") + ") AS " + kindText.String() + ")"
}

// refusal is why a statement failed that reads a column which we cannot read,
// nil if it failed for another reason.
func (q *query) refusal(said string) error {
	_, rest, ok := strings.Cut(said, refusalMark)
	number, _, closed := strings.Cut(rest, ".")
	n, err := strconv.Atoi(number)
	if !ok || !closed || err != nil || n < 0 || n >= len(q.refusals) {
		return nil //nolint:nilerr // not our text
	}
	return q.refusals[n]
}
