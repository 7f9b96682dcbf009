package sqlengine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"cardinalsin/chunk"
	"cardinalsin/storage"
)

// Of a remote store, a statement gets excerpts of the data files: Parquet files
// with the columns and row groups that it may touch. Its tables then have no
// other columns, so DuckDB refuses a statement that touches more as one that
// names no column, before the first row, and it gets the files whole. What
// could give fewer columns and no error – a star, the row of a table as one
// value – is found in the parse tree (columns).

// excerpt is what was fetched of a data file.
type excerpt struct {
	bytes   int64
	groups  int // row groups of the file
	skipped int // those of them that cannot hold a selected row
	id      string
}

// excerptRules say which data files are read by excerpts.
type excerptRules struct {
	above int64 // bytes; of a smaller one the footer alone costs as much
	most  int64 // per cent of a file that an excerpt has
}

var defaultExcerptRules = excerptRules{above: 256 << 10, most: 50}

// columns returns the names, in lower case, among which are those of all
// columns that the statement touches; ok is false if it may touch any. It errs
// on the side of more: every text of the parse tree is such a name.
func (s *statement) columns() (names map[string]bool, ok bool) {
	tables := map[string]bool{} // by the names that stand for their rows
	for _, r := range s.refs {
		tables[lower(r.alias)] = true
	}
	if touchesAll(s.tree, tables) {
		return nil, false
	}
	names = map[string]bool{}
	collectTexts(s.tree, names)
	return names, true
}

// touchesAll reports whether a part of a parse tree stands for columns that it
// does not name.
func touchesAll(v any, tables map[string]bool) bool {
	switch v := v.(type) {
	case []any:
		return slices.ContainsFunc(v, func(e any) bool { return touchesAll(e, tables) })
	case object:
		if standsForAll(v, tables) {
			return true
		}
		for key, e := range v {
			if key == "modifiers" {
				list, _ := e.([]any)
				e = slices.DeleteFunc(slices.Clone(list), orderedByAll)
			}
			if touchesAll(e, tables) {
				return true
			}
		}
	}
	return false
}

// orderedByAll reports that a query's modifier is ORDER BY ALL, a star that
// stands for what the query selects.
func orderedByAll(modifier any) bool {
	m, _ := modifier.(object)
	orders, _ := m["orders"].([]any)
	if m["type"] != "ORDER_MODIFIER" || len(orders) != 1 {
		return false
	}
	order, _ := orders[0].(object)
	star, _ := order["expression"].(object)
	for _, list := range []string{"exclude_list", "replace_list", "rename_list", "qualified_exclude_list"} {
		if some, _ := star[list].([]any); len(some) > 0 {
			return false
		}
	}
	return star["class"] == "STAR" && star["expr"] == nil && star["relation_name"] == ""
}

// standsForAll is touchesAll of one node.
func standsForAll(n object, tables map[string]bool) bool {
	switch n["class"] {
	case "STAR", "POSITIONAL_REFERENCE":
		return true
	case "COLUMN_REF":
		names, _ := n["column_names"].([]any)
		if len(names) == 0 {
			return true
		}
		last, _ := names[len(names)-1].(string)
		return tables[lower(last)] // maybe the whole row
	}
	switch n["type"] {
	case "PIVOT", "SHOW_REF":
		return true
	case "JOIN":
		return n["ref_type"] != "REGULAR" && n["ref_type"] != "CROSS" && n["ref_type"] != "ASOF"
	}
	renamed, _ := n["column_name_alias"].([]any)
	return len(renamed) > 0
}

// collectTexts adds all texts of a parse tree.
func collectTexts(v any, out map[string]bool) {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			collectTexts(e, out)
		}
	case object:
		for _, e := range v {
			collectTexts(e, out)
		}
	case string:
		out[lower(v)] = true
	}
}

// errWhole: the statement cannot be answered by excerpts.
var errWhole = errors.New("the data files are needed whole")

// remote reports whether data files come through a cache.
func (e *Engine) remote() bool {
	log := e.reader.Log()
	_, local := storage.LocalPath(log.Store(), log.Root())
	return !local && e.opts.Files != nil
}

// restrict leaves a group's table only the columns that the statement may
// touch, where its files are remote.
func (q *query) restrict(g *group) {
	t := g.rows
	if q.whole || q.engine.excerpts == nil || g.kind != kindRows || !q.engine.remote() {
		return
	}
	names, ok := q.statement.columns()
	if !ok {
		return
	}
	// These cost next to nothing; a file has at least one column, and labels
	// may be in the map that have a column by now.
	names[chunk.ColumnMetricName], names[chunk.ColumnOverflow] = true, true
	if len(t.contested.files)+len(t.contested.headFiles) > 0 {
		for _, key := range []string{chunk.ColumnSeriesID, chunk.ColumnTimestamp, chunk.ColumnNanos} {
			names[key] = true
		}
	}
	t.hidden = map[string]bool{}
	t.columns = slices.DeleteFunc(t.columns, func(c column) bool {
		if names[lower(c.name)] {
			return false
		}
		t.hidden[c.physical] = true
		return true
	})
}

// excerpt makes the part of a data file local that a restricted table needs. It
// returns no path where the whole file is the better choice.
func (e *Engine) excerpt(ctx context.Context, t *rowsTable, i int) (path string, release func(), x *excerpt, err error) {
	f := &t.scan.Files[i]
	key, err := e.reader.Log().Key(f.Add.Path)
	if err != nil {
		return "", nil, nil, err
	}
	if !f.Tagged || f.Add.DeletionVector != nil || f.Add.Size <= e.excerpts.above || e.opts.Files.Holds(key, f.Add.Size) {
		return "", nil, nil, nil
	}
	open, err := t.view.File(ctx, f.Add)
	if err != nil {
		return "", nil, nil, missing(key, err)
	}
	groups := open.RowGroups()
	var picked []int
	for k := range groups {
		if groups[k].MayMatch(t.sel) {
			picked = append(picked, k)
		}
	}
	if len(picked) == 0 {
		picked = []int{0}
	}
	columns := map[string]bool{}
	var list []string
	for _, c := range t.columns {
		if c.physical != "" {
			columns[c.physical] = true
			list = append(list, c.physical)
		}
	}
	cut := sync.OnceValues(func() (*chunk.Excerpt, error) {
		return open.Excerpt(ctx, func(name string) bool { return columns[name] }, picked)
	})
	recipe := fmt.Sprintf("excerpt of %q, %d bytes: columns %q, row groups %v", key, f.Add.Size, list, picked)
	size, known := e.parts.Get(recipe)
	if !known {
		part, err := cut()
		if err != nil {
			return "", nil, nil, missing(key, err)
		}
		size = part.Size()
		e.parts.Put(recipe, size, int64(len(recipe)))
	}
	if size/e.excerpts.most > f.Add.Size/100 {
		return "", nil, nil, nil
	}
	path, release, err = e.opts.Files.Derived(ctx, recipe, ".parquet", size, func(ctx context.Context, w io.Writer) error {
		part, err := cut()
		if err != nil {
			return err
		}
		return part.Write(ctx, w)
	})
	if err != nil {
		return "", nil, nil, missing(key, err)
	}
	if path, err = printablePath(path); err != nil {
		return "", release, nil, err
	}
	return path, release, &excerpt{bytes: size, groups: len(groups), skipped: len(groups) - len(picked), id: recipe}, nil
}

// fileID is equal for what has the same columns: a data file, or an excerpt.
func (t *rowsTable) fileID(i int) string {
	if x := t.excerpts[i]; x != nil {
		return x.id
	}
	return t.scan.Files[i].Add.Path
}

// excerptsOf describes what was fetched of the files: how many excerpts, their
// bytes, and the row groups of their files.
func (t *rowsTable) excerptsOf() (n int, bytes int64, groups, skipped int) {
	for _, x := range t.excerpts {
		if x != nil {
			n++
			bytes += x.bytes
			groups += x.groups
			skipped += x.skipped
		}
	}
	return n, bytes, groups, skipped
}

// wholePaths are the paths of the files that are there whole.
func (t *rowsTable) wholePaths() []string {
	var out []string
	for i, p := range t.paths {
		if t.excerpts[i] == nil {
			out = append(out, p)
		}
	}
	return out
}
