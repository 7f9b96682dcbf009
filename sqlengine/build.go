package sqlengine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
)

// build makes the database: one that has served the same files before, if
// there is one, else a new one.
func (q *query) build(ctx context.Context) error {
	var sources []source
	var err error
	for _, g := range q.groups {
		if sources, err = q.plan(ctx, g, sources); err != nil {
			return err
		}
	}
	paths, err := q.fetch(ctx)
	if err != nil {
		return err
	}
	if q.db == nil && q.reusable() {
		if q.db = q.engine.spares.again(q.settings(), paths); q.db != nil {
			if err := q.db.exec(ctx, "BEGIN TRANSACTION"); err != nil {
				return err
			}
		}
	}
	d, err := q.database(ctx)
	if err != nil {
		return err
	}
	if d.paths == nil {
		if err := d.register(); err != nil {
			return err
		}
		if err := d.lock(ctx, paths); err != nil {
			return err
		}
	}
	d.sources.list = sources
	for _, g := range q.groups {
		if err := q.create(ctx, g); err != nil {
			return err
		}
	}
	return nil
}

// database opens a database and begins the query's transaction, once: now() is
// the same in all that follows.
func (q *query) database(ctx context.Context) (*database, error) {
	if q.db != nil {
		return q.db, nil
	}
	d, err := q.engine.spares.take(ctx, q.settings())
	if err != nil {
		return nil, err
	}
	q.db = d
	return d, d.exec(ctx, "BEGIN TRANSACTION")
}

func (q *query) settings() settings {
	o := &q.engine.opts
	return settings{threads: o.Threads, memoryBytes: q.opts.MemoryBytes, spillDir: o.SpillDir, spillBytes: o.SpillBytes}
}

// maxKeptBytes bounds the files of a database that is kept, since it remembers
// their footers.
const maxKeptBytes = 512 << 20

// reusable reports whether the query's database can be one that other queries
// use too: it is open to the same files, and a statement that reads our tables
// leaves nothing in it. Files of other engines are opened anew each time.
func (q *query) reusable() bool {
	if q.remade || q.opts.dry {
		return false
	}
	var bytes int64
	for _, g := range q.groups {
		if t := g.rows; t != nil {
			if t.layout == nil {
				return false
			}
			bytes += t.scan.Bytes()
		}
	}
	return bytes <= maxKeptBytes
}

// keepable reports whether the database may serve another query.
func (q *query) keepable() bool {
	return q.finished && q.db.paths != nil && q.reusable() && !slices.ContainsFunc(q.groups, func(g *group) bool { return g.rows != nil && g.rows.duplicates != "" })
}

// create makes a group a table of the database, under every name by which the
// statement knows it.
func (q *query) create(ctx context.Context, g *group) error {
	body := fmt.Sprintf("SELECT * FROM %s(%d)", scanFunction, g.source)
	// key is equal for views that are equal, columns included; empty: none is.
	key := ""
	switch {
	case g.rows == nil:
	case g.kind == kindSeries && g.rows.layout == nil:
		return fmt.Errorf("%w: a table of another engine has no series", ErrSyntax)
	case q.opts.dry:
		body = g.rows.empty()
	case g.rows.layout == nil:
		var err error
		if body, err = g.rows.foreignSQL(ctx, q.engine, q.db); err != nil {
			return err
		}
	default:
		if err := q.engine.learn(ctx, q.db, g.rows); err != nil {
			return err
		}
		if err := g.rows.findDuplicates(ctx, q.engine, q.db, g.where, g.name+"_twice"); err != nil {
			return err
		}
		if g.rows.duplicates != "" && g.rows.hidden != nil {
			return errWhole // whole label sets decide which rows are the same
		}
		body = g.rows.sql()
		key = body
	}
	if g.kind == kindSeries {
		if err := q.db.view(ctx, g.name+"_rows", body, key); err != nil {
			return err
		}
		body = seriesSQL(g.name+"_rows", g.rows)
	}
	names := []string{g.name}
	if q.sql == q.statement.sql {
		names = names[:0]
		for _, ref := range g.refs {
			if name, _ := ref.node["table_name"].(string); !slices.Contains(names, lower(name)) {
				names = append(names, lower(name))
			}
		}
	}
	for i, name := range names {
		if i > 0 {
			body = "SELECT * FROM " + quoteName(names[0])
		}
		if err := q.db.view(ctx, name, body, key); err != nil {
			return err
		}
	}
	return nil
}

// view makes a view, or leaves the one that is there where it is the same. Of a
// view with a key, sql follows from the key and the name.
func (d *database) view(ctx context.Context, name, sql, key string) error {
	if key != "" && d.views[name] == key+sql {
		return nil
	}
	delete(d.views, name)
	if err := d.exec(ctx, "CREATE OR REPLACE TEMP VIEW "+quoteName(name)+" AS "+sql); err != nil {
		return fmt.Errorf("make table: %w", err)
	}
	if key != "" {
		d.views[name] = key + sql
	}
	return nil
}

// planned is what t.view.Plan returns, which follows from the version and the
// selector.
func (e *Engine) planned(ctx context.Context, t *rowsTable) (err error) {
	snap := t.view.Snapshot()
	var key strings.Builder
	fmt.Fprintf(&key, "%s %d %d %d", snap.Metadata().ID, int64(snap.Version()), int64(t.sel.Range.Min), int64(t.sel.Range.Max))
	for _, m := range t.sel.Matchers {
		key.WriteByte(0)
		key.WriteString(m.String())
	}
	if scan, ok := e.plans.Get(key.String()); ok {
		t.scan = scan
		return t.view.Check()
	}
	if t.scan, err = t.view.Plan(ctx, t.sel); err != nil {
		return err
	}
	if len(t.scan.Files) <= maxPlanFiles && key.Len() <= maxKeyBytes {
		e.plans.Put(key.String(), t.scan, 1)
	}
	return nil
}

// spill gives a database a directory of its own for what exceeds its memory:
// files of two have the same names.
func spill(base string) (string, error) {
	if base == "" {
		return "", nil
	}
	dir, err := os.MkdirTemp(base, "sql-")
	if err != nil {
		return "", fmt.Errorf("make spill directory: %w", err)
	}
	return dir, nil
}

// spilled reports whether anything is left in the database's spill directory.
func (d *database) spilled() bool {
	if d.spill == "" {
		return false
	}
	list, err := os.ReadDir(d.spill)
	return len(list) > 0 || err != nil && !errors.Is(err, os.ErrNotExist)
}

// Bounds of what an engine remembers of statements and plans.
const (
	maxStatements = 256
	maxKeyBytes   = 4 << 10 // of a statement, or of what else it is remembered by
	maxPlans      = 64
	maxPlanFiles  = 4096
	maxBounds     = 1024
	maxUnique     = 4096 // of 32 bytes
	maxPartBytes  = 4 << 20
)
