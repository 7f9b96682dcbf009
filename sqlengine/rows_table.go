package sqlengine

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/planner"
	"cardinalsin/reader"
	"cardinalsin/series"
	"cardinalsin/shard"
)

// column is one column of a table as a statement sees it.
type column struct {
	name      string
	sqlType   string
	physical  string     // name inside the data files; empty: a partition column
	partition string     // name of the partition value
	label     string     // of a label column
	field     deltaField // of a table of another engine
	refused   error      // what a statement fails with that reads the column; nil: nothing
	refusal   int        // its number in the query
}

// rowsTable is the rows of one view: its files, its head and how they become
// one table without duplicates.
type rowsTable struct {
	view    *reader.View
	columns []column
	layout  *chunk.Layout // nil: the table of another engine, whose rows are taken as they are
	shards  *shard.Map    // nil: unknown
	sel     series.Selector
	scan    planner.Scan
	paths   []string // local files, by place in scan.Files
	// hidden are the columns, by their names in data files, that the statement
	// does not touch; nil: the table has all.
	hidden   map[string]bool
	excerpts []*excerpt // by place in scan.Files, nil: the file is there whole
	// dirty lists, by place in scan.Files, the labels that the file keeps in
	// its overflow map though they have a column now.
	dirty map[int][]string
	head  int // number of the head's source, -1: no head
	// vectors is, of the table of another engine, the number of the source of
	// its deleted rows, -1: there are none.
	vectors int
	// schemas are those of the files, by place in scan.Files. Of a table of
	// ours there are none if it has many files.
	schemas []*footer
	// duplicates is the temporary table of the keys that occur more than
	// once, empty: there are none.
	duplicates string
	contested  contested
}

// newRowsTable reads the schema of a view. headLabels are the label names of
// the head, which may have no column yet: they get the one that the next
// flush gives them.
func newRowsTable(view *reader.View, headLabels []string) (*rowsTable, error) {
	t := &rowsTable{view: view, head: -1, vectors: -1, sel: series.Selector{Range: series.AllTime}}
	snap := view.Snapshot()
	schema := snap.Schema()
	layout, err := chunk.LayoutOf(schema)
	if err != nil || view.Foreign() {
		return t, t.describeForeign(snap)
	}
	if grown := layout.Grow(headLabels); len(grown) > 0 {
		schema = &action.Schema{Fields: append(slices.Clone(schema.Fields), grown...)}
		if layout, err = chunk.LayoutOf(schema); err != nil {
			return nil, err
		}
	}
	t.layout = layout
	if conf, ok := snap.Domain(shard.Domain); ok {
		m, err := shard.Parse(conf)
		if err != nil {
			return nil, fmt.Errorf("version %d: %w", int64(snap.Version()), err)
		}
		t.shards = &m
	}
	fixed := func(name, sqlType string) {
		t.columns = append(t.columns, column{name: name, sqlType: sqlType, physical: name})
	}
	// In the order of contract 5.
	fixed(chunk.ColumnTimestamp, kindTimestamp.String())
	fixed(chunk.ColumnNanos, kindInt.String())
	fixed(chunk.ColumnStart, kindBigInt.String())
	fixed(chunk.ColumnMetricName, kindText.String())
	fixed(chunk.ColumnSeriesID, kindBigInt.String())
	fixed(chunk.ColumnValue, kindDouble.String())
	fixed(chunk.ColumnHistogram, kindBlob.String())
	for _, label := range layout.Labels() {
		name, _ := layout.Column(label)
		t.columns = append(t.columns, column{name: name, sqlType: kindText.String(), physical: name, label: label})
	}
	fixed(chunk.ColumnOverflow, kindTextMap.String())
	t.columns = append(t.columns,
		column{name: chunk.ColumnDate, sqlType: kindDate.String(), partition: chunk.ColumnDate},
		column{name: chunk.ColumnShard, sqlType: kindText.String(), partition: chunk.ColumnShard})
	return t, nil
}

// columnLabels maps label columns to labels.
func (t *rowsTable) columnLabels() map[string]string {
	m := map[string]string{}
	for _, c := range t.columns {
		if c.label != "" {
			m[c.name] = c.label
		}
	}
	return m
}

// all is every file of the scan.
func (t *rowsTable) all() []int {
	out := make([]int, len(t.scan.Files))
	for i := range out {
		out[i] = i
	}
	return out
}

// Inside, columns are named by number, and get their own names at the end: a
// label may be called like anything that the SQL here or DuckDB itself gives a
// meaning, as file_index.
func inner(i int) string { return "c" + strconv.Itoa(i) }

// rankColumn orders the copies of one observation; the greatest wins.
const rankColumn = "k"

// place is the number of one of the fixed columns.
func (t *rowsTable) place(name string) int {
	return slices.IndexFunc(t.columns, func(c column) bool { return c.name == name })
}

// sql is the SELECT of all rows.
func (t *rowsTable) sql() string {
	var parts []string
	if t.duplicates == "" {
		parts = t.branches(t.all(), t.head >= 0, false)
	} else {
		disputed := t.disputed()
		isDisputed := map[int]bool{}
		for _, i := range disputed {
			isDisputed[i] = true
		}
		rest := slices.DeleteFunc(t.all(), func(i int) bool { return isDisputed[i] })
		from := " FROM (" + strings.Join(t.branches(disputed, t.head >= 0, true), " UNION ALL ") + ") AS r WHERE "
		within := t.within(append(slices.Clone(t.contested.intervals), t.contested.headIntervals...))
		same := "EXISTS (SELECT 1 FROM " + t.duplicates + " AS d WHERE " + t.sameKey("d", "r") + ")"
		list := "SELECT " + t.inner()
		parts = append(t.branches(rest, false, false),
			// Most rows lie outside the times of any overlap and need no look
			// at their keys.
			list+from+"NOT "+within,
			list+from+within+" AND NOT "+same,
			// The hash found them; what decides is the full label set.
			list+" FROM (SELECT *, row_number() OVER (PARTITION BY "+t.identity()+" ORDER BY "+rankColumn+" DESC) AS n"+from+within+" AND "+same+") WHERE n = 1")
	}
	if len(parts) == 0 {
		return t.empty()
	}
	return t.named("(" + strings.Join(parts, " UNION ALL ") + ")")
}

// named selects all columns under their own names.
func (t *rowsTable) named(from string) string {
	list := make([]string, len(t.columns))
	for i, c := range t.columns {
		list[i] = inner(i) + " AS " + quoteName(c.name)
	}
	return "SELECT " + strings.Join(list, ", ") + " FROM " + from
}

func (t *rowsTable) inner() string {
	list := make([]string, len(t.columns))
	for i := range t.columns {
		list[i] = inner(i)
	}
	return strings.Join(list, ", ")
}

// disputed lists the files that may hold duplicates.
func (t *rowsTable) disputed() []int {
	return slices.Compact(slices.Sorted(slices.Values(append(slices.Clone(t.contested.files), t.contested.headFiles...))))
}

// sameKey compares the keys of a row of keys, under its alias, with those of a
// row under another alias.
func (t *rowsTable) sameKey(keys, row string) string {
	return fmt.Sprintf(`%s.series_id = %s.%s AND %s."timestamp" = %s.%s AND %s.nanos IS NOT DISTINCT FROM %s.%s`,
		keys, row, inner(t.place(chunk.ColumnSeriesID)),
		keys, row, inner(t.place(chunk.ColumnTimestamp)),
		keys, row, inner(t.place(chunk.ColumnNanos)))
}

// identity lists what makes two rows the same observation: the full label set
// and the instant.
func (t *rowsTable) identity() string {
	var list []string
	for i, c := range t.columns {
		switch c.name {
		case chunk.ColumnTimestamp, chunk.ColumnNanos, chunk.ColumnMetricName, chunk.ColumnSeriesID:
			list = append(list, inner(i))
		case chunk.ColumnOverflow:
			list = append(list, "list_sort(map_entries("+inner(i)+"))")
		default:
			if c.label != "" {
				list = append(list, inner(i))
			}
		}
	}
	return strings.Join(list, ", ")
}

// empty is a table with the columns and no row.
func (t *rowsTable) empty() string {
	list := make([]string, len(t.columns))
	for i, c := range t.columns {
		list[i] = "NULL::" + c.sqlType + " AS " + quoteName(c.name)
	}
	if len(list) == 0 {
		list = []string{"NULL AS empty"}
	}
	return "SELECT " + strings.Join(list, ", ") + " WHERE false"
}

// branches are the SELECTs of some files and of the head.
func (t *rowsTable) branches(files []int, head, ranked bool) []string {
	var parts []string
	byDirt := map[string][]int{}
	var order []string
	for _, i := range files {
		key := strings.Join(t.dirty[i], "\x00")
		if _, seen := byDirt[key]; !seen {
			order = append(order, key)
		}
		byDirt[key] = append(byDirt[key], i)
	}
	for _, key := range order {
		parts = append(parts, t.readFiles(byDirt[key], ranked))
	}
	if head {
		list := t.inner()
		if ranked {
			list += fmt.Sprintf(", %d AS %s", len(t.scan.Files), rankColumn)
		}
		parts = append(parts, fmt.Sprintf("SELECT %s FROM %s(%d)", list, scanFunction, t.head))
	}
	return parts
}

// readFiles is the SELECT of files that keep the same labels in their overflow
// maps.
func (t *rowsTable) readFiles(files []int, ranked bool) string {
	var list []string
	dirty := t.dirty[files[0]]
	overflow := outer(t.place(chunk.ColumnOverflow))
	for i, c := range t.columns {
		e := outer(i)
		switch {
		case c.physical == "":
			e = perFile(files, c.sqlType, func(i int) string { return t.partitionValue(i, c) })
		case c.label != "" && slices.Contains(dirty, c.label):
			e = fmt.Sprintf("coalesce(%s, %s[%s])", e, overflow, quoteText(c.label))
		case len(dirty) > 0 && e == overflow:
			e = fmt.Sprintf("nullif(map_from_entries(list_filter(map_entries(%s), lambda e: NOT list_contains(%s, e.key))), MAP {}::%s)", e, quoteTexts(dirty), c.sqlType)
		}
		list = append(list, e+" AS "+inner(i))
	}
	if ranked {
		// Places in the scan ascend by rank.
		list = append(list, perFile(files, "BIGINT", strconv.Itoa)+" AS "+rankColumn)
	}
	return "SELECT " + strings.Join(list, ", ") + " FROM " + t.from(files)
}

// from reads files, with the columns of the table as outer names them.
func (t *rowsTable) from(files []int) string {
	paths := make([]string, len(files))
	var bytes int64
	for k, i := range files {
		paths[k] = t.paths[i]
		bytes += t.scan.Files[i].Add.Size
	}
	from := "read_parquet(" + quoteTexts(paths) + ", hive_partitioning = false"
	if len(files) == 1 && len(t.schemas) > 0 {
		if names, missing, ok := t.inside(t.schemas[files[0]]); ok {
			from += ") AS f(" + names + ")"
			if missing != "" {
				from = "(SELECT *, " + missing + " FROM " + from + ")"
			}
			return from
		}
	}
	// In the order of the files, by which DuckDB evaluates filters.
	var first, last []string
	for i, c := range t.columns {
		if c.physical == "" {
			continue
		}
		one := fmt.Sprintf("%s: {'name': '%s', 'type': %s, 'default_value': NULL}", quoteText(c.physical), outer(i), quoteText(c.sqlType))
		if t.identifies(c) {
			first = append(first, one)
		} else {
			last = append(last, one)
		}
	}
	// How many rows there are decides in what order tables are joined. A row
	// takes a byte or some.
	from += fmt.Sprintf(", explicit_cardinality = %d", max(bytes/2, 1))
	return from + ", schema = MAP {" + strings.Join(append(first, last...), ", ") + "})"
}

// inside names the columns of one file, in its order, and those that it has
// not got. To DuckDB, a file that it takes as it is has a known number of rows
// and of row groups, and statistics; with a schema of ours it has none of
// them, and is read by one thread.
func (t *rowsTable) inside(f *footer) (names, missing string, ok bool) {
	places := map[string]int{}
	for i, c := range t.columns {
		if c.physical != "" {
			places[c.physical] = i
		}
	}
	var have, lack []string
	for _, c := range f.columns {
		i, ok := places[c.name]
		switch {
		case ok:
			delete(places, c.name)
			have = append(have, outer(i))
		case t.hidden[c.name]:
			have = append(have, "h"+strconv.Itoa(len(have)))
		default:
			return "", "", false // it is not certain what DuckDB makes of it
		}
	}
	for i, c := range t.columns {
		if _, ok := places[c.physical]; ok {
			lack = append(lack, "CAST(NULL AS "+c.sqlType+") AS "+outer(i))
		}
	}
	return strings.Join(have, ", "), strings.Join(lack, ", "), true
}

// identifies reports whether a column belongs to the labels, which come first
// in our files.
func (t *rowsTable) identifies(c column) bool {
	switch c.name {
	case chunk.ColumnMetricName, chunk.ColumnSeriesID, chunk.ColumnOverflow:
		return true
	}
	return c.label != ""
}

// perFile is an expression with a value for each file. DuckDB numbers the
// files of a scan from 0.
func perFile(files []int, sqlType string, value func(i int) string) string {
	list := make([]string, len(files))
	same := true
	for k, i := range files {
		list[k] = value(i)
		same = same && list[k] == list[0]
	}
	if same {
		return "CAST(" + list[0] + " AS " + sqlType + ")"
	}
	return "CAST([" + strings.Join(list, ",") + "] AS " + sqlType + "[])[file_index::BIGINT + 1]"
}

func (t *rowsTable) partitionValue(i int, c column) string {
	v, ok := t.scan.Files[i].Add.PartitionValues.Get(c.partition)
	if !ok || v == "" { // the protocol writes null as "" too
		return "NULL"
	}
	switch {
	case c.sqlType == kindBlob.String():
		return quoteBytes(v)
	case !printable(v):
		return "decode(" + quoteBytes(v) + ")"
	}
	return quoteText(v)
}

// findDuplicates looks where the same instant of one series hash occurs twice
// and puts what it finds into a temporary table. In most tables there is
// none, and the statement then reads plain files; that the files have none is
// remembered, as files do not change.
func (t *rowsTable) findDuplicates(ctx context.Context, e *Engine, d *database, where predicate, name string) error {
	if t.layout == nil {
		return nil
	}
	var queries []string
	verdict := ""
	if len(t.contested.files) > 0 {
		keys := name + "_files"
		view := t.keysOf(t.contested.files, t.contested.intervals)
		var err error
		if verdict, err = t.verdictKey(view, where); err != nil {
			return err
		}
		if _, none := e.unique.Get(verdict); verdict == "" || !none {
			q, err := t.keysWhere(ctx, e.parser, d, keys, view, where)
			if err != nil {
				return err
			}
			queries = append(queries, `SELECT series_id, "timestamp", nanos FROM (`+q+") GROUP BY ALL HAVING count(*) > 1")
		}
	}
	if len(t.contested.headFiles) > 0 { // never remembered: a head changes
		q, err := t.keysWhere(ctx, e.parser, d, name+"_head", t.keysOf(t.contested.headFiles, t.contested.headIntervals), where)
		if err != nil {
			return err
		}
		queries = append(queries, fmt.Sprintf(`SELECT series_id, "timestamp", nanos FROM (%s) AS f WHERE EXISTS (SELECT 1 FROM %s(%d) AS h WHERE %s)`, q, scanFunction, t.head, t.sameKey("f", "h")))
	}
	if len(queries) == 0 {
		return nil
	}
	if err := d.exec(ctx, "CREATE OR REPLACE TEMP TABLE "+name+" AS "+strings.Join(queries, " UNION ")); err != nil {
		return fmt.Errorf("find duplicates: %w", err)
	}
	rows, err := d.rows(ctx, "SELECT count(*)::VARCHAR FROM "+name)
	if err != nil {
		return fmt.Errorf("count duplicates: %w", err)
	}
	switch {
	case rows[0][0] != "0":
		t.duplicates = name
	case verdict != "":
		e.unique.Put(verdict, struct{}{}, 1)
	}
	return nil
}

// verdictKey is equal for questions about the same rows of the same files: keys
// is their SELECT, and holds the paths, the columns and the intervals. It is
// empty where the answer must not be remembered, since the conditions hold a
// function that may look at the clock.
func (t *rowsTable) verdictKey(keys string, where predicate) (string, error) {
	if anyNode(where.conditions, func(n object) bool {
		name := functionName(n)
		return n["class"] == "FUNCTION" && !timelessFunctions[name] && !patternFunctions[name]
	}) {
		return "", nil
	}
	conditions, err := json.Marshal(where.conditions)
	if err != nil {
		return "", fmt.Errorf("encode the parse tree: %w", err)
	}
	h := sha256.New()
	part := func(s string) { // with its length: no two lists of parts are one text
		fmt.Fprintf(h, "%d:%s", len(s), s)
	}
	part(t.view.Snapshot().Metadata().ID)
	part(keys)
	part(where.alias)
	part(string(conditions))
	for _, i := range t.contested.files {
		key := t.scan.Files[i].Add.Key()
		part(key.Path)
		part(key.DV)
	}
	return string(h.Sum(nil)), nil
}

// keysOf selects the rows of some files within some intervals.
func (t *rowsTable) keysOf(files []int, intervals []series.TimeRange) string {
	return t.named("("+strings.Join(t.branches(files, false, false), " UNION ALL ")+")") + " WHERE " + t.within(intervals)
}

// within is the condition that a row's time lies in one of the intervals.
func (t *rowsTable) within(intervals []series.TimeRange) string {
	at := inner(t.place(chunk.ColumnTimestamp))
	var times []string
	for _, r := range join(intervals) {
		lo, hi := max(r.Min, series.MinTimestamp), min(r.Max, series.MaxTimestamp)
		times = append(times, fmt.Sprintf("%s BETWEEN make_timestamptz(%d) AND make_timestamptz(%d)", at, int64(lo), int64(hi)))
	}
	return "(" + strings.Join(times, " OR ") + ")"
}

// keysWhere selects the keys of some rows under the statement's own conditions;
// it makes the rows a view for that.
func (t *rowsTable) keysWhere(ctx context.Context, p *parser, d *database, name, rows string, where predicate) (string, error) {
	if err := d.exec(ctx, "CREATE OR REPLACE TEMP VIEW "+name+" AS "+rows); err != nil {
		return "", fmt.Errorf("find duplicates: %w", err)
	}
	var list []any
	for _, c := range []string{chunk.ColumnSeriesID, chunk.ColumnTimestamp, chunk.ColumnNanos} {
		list = append(list, object{"class": "COLUMN_REF", "type": "COLUMN_REF", "alias": "", "column_names": []any{c}})
	}
	return p.text(ctx, selectTree(list, tableTree(name, where.alias), where.conditions))
}
