package sqlengine

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"cardinalsin/chunk"
)

// node is a column of a Parquet file, or a part of one.
type node struct {
	name     string
	id       int64 // field id, -1: none
	repeated bool
	kind     string // LIST, MAP, or empty
	sqlType  string // of a leaf: how DuckDB reads it
	children []*node
}

// footer is the schema of a Parquet file. Files with equal schemas share one.
type footer struct {
	columns []*node
	hasIDs  bool
	text    string // equal for equal schemas
}

// footers returns the schemas of the files of a scan, by place. It costs a
// footer a file, once in an engine's life.
func (e *Engine) footers(ctx context.Context, d *database, t *rowsTable) ([]*footer, error) {
	out := make([]*footer, len(t.scan.Files))
	var ask []string
	e.factsMu.Lock()
	for i := range t.scan.Files {
		if out[i] = e.schemas[t.fileID(i)]; out[i] == nil {
			ask = append(ask, t.paths[i])
		}
	}
	e.factsMu.Unlock()
	if len(ask) == 0 {
		return out, nil
	}
	ask = slices.Compact(slices.Sorted(slices.Values(ask)))
	found, err := readFooters(ctx, d, ask)
	if err != nil {
		return nil, fmt.Errorf("read the schemas of data files: %w", err)
	}
	e.factsMu.Lock()
	defer e.factsMu.Unlock()
	if len(e.schemas)+len(ask) > maxFacts {
		clear(e.schemas)
		clear(e.shapes)
	}
	for i := range out {
		if out[i] != nil {
			continue
		}
		id := t.fileID(i)
		f := found[t.paths[i]]
		if f == nil {
			return nil, fmt.Errorf("%w: %s has no schema", chunk.ErrCorrupt, id)
		}
		if same := e.shapes[f.text]; same != nil {
			f = same
		}
		e.shapes[f.text], e.schemas[id], out[i] = f, f, f
	}
	return out, nil
}

// readFooters reads the schemas of Parquet files, by path. DuckDB lists the
// elements of a schema depth first, each with the number of its children.
func readFooters(ctx context.Context, d *database, paths []string) (map[string]*footer, error) {
	rows, err := d.rows(ctx, "SELECT file_name, name, num_children::VARCHAR, repetition_type, converted_type, logical_type, field_id::VARCHAR, duckdb_type"+
		" FROM parquet_schema("+quoteTexts(paths)+") ORDER BY file_name, column_id")
	if err != nil {
		return nil, err
	}
	out := map[string]*footer{}
	byText := map[string]*footer{}
	for len(rows) > 0 {
		path, n := rows[0][0], 1
		for n < len(rows) && rows[n][0] == path {
			n++
		}
		f := &footer{}
		root, rest, err := f.parse(rows[:n], 0)
		if err != nil || len(rest) > 0 {
			return nil, fmt.Errorf("%w: %s: its schema is no tree", chunk.ErrCorrupt, path)
		}
		f.columns = root.children
		if same := byText[f.text]; same != nil {
			f = same
		}
		byText[f.text], out[path] = f, f
		rows = rows[n:]
	}
	return out, nil
}

// parse reads one node and what is below it.
func (f *footer) parse(rows [][]string, depth int) (n *node, rest [][]string, err error) {
	if len(rows) == 0 || depth > 2*maxNesting {
		return nil, nil, strconv.ErrRange
	}
	r := rows[0]
	rows = rows[1:]
	f.text += strings.Join(r[1:], "\x01") + "\x02"
	n = &node{name: r[1], id: -1, repeated: r[3] == "REPEATED", sqlType: r[7]}
	switch {
	case r[4] == "LIST", strings.HasPrefix(r[5], "ListType"):
		n.kind = "LIST"
	case r[4] == "MAP", r[4] == "MAP_KEY_VALUE", strings.HasPrefix(r[5], "MapType"):
		n.kind = "MAP"
	}
	if r[6] != "" {
		if n.id, err = strconv.ParseInt(r[6], 10, 64); err != nil {
			return nil, nil, err
		}
		f.hasIDs = true
	}
	count := 0
	if r[2] != "" {
		if count, err = strconv.Atoi(r[2]); err != nil {
			return nil, nil, err
		}
	}
	for range count {
		var child *node
		if child, rows, err = f.parse(rows, depth+1); err != nil {
			return nil, nil, err
		}
		n.children = append(n.children, child)
	}
	return n, rows, nil
}

// element returns what a list holds, nil if the node is none. Lists that old
// writers made have two levels in place of three (parquet-format,
// LogicalTypes.md, "Backward-compatibility rules").
func (n *node) element() *node {
	if n.kind != "LIST" || len(n.children) != 1 || !n.children[0].repeated {
		return nil
	}
	r := n.children[0]
	if len(r.children) != 1 || r.name == "array" || r.name == n.name+"_tuple" {
		return &node{name: r.name, id: r.id, sqlType: r.sqlType, children: r.children}
	}
	return r.children[0]
}

// entry returns the key and the value of a map, nil if the node is none.
func (n *node) entry() (key, value *node) {
	if n.kind != "MAP" || len(n.children) != 1 || len(n.children[0].children) != 2 {
		return nil, nil
	}
	return n.children[0].children[0], n.children[0].children[1]
}

// find looks for a field among columns: by id where ids decide, else by its
// physical name, at last whatever the case of that name.
func find(columns []*node, f *deltaField) (place int, ok bool) {
	if f.id != 0 {
		for i, c := range columns {
			if c.id == f.id {
				return i, true
			}
		}
		return 0, false
	}
	for i, c := range columns {
		if c.name == f.physical {
			return i, true
		}
	}
	for i, c := range columns {
		if strings.EqualFold(c.name, f.physical) {
			return i, true
		}
	}
	return 0, false
}
