package sqlengine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/storage"
	"cardinalsin/storage/cache"
	"cardinalsin/txlog"
)

// fetches is the number of files fetched at the same time.
const fetches = 16

// fetch makes the planned files local and returns their paths.
func (q *query) fetch(ctx context.Context) ([]string, error) {
	var paths []string
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(fetches)
	for _, g := range q.groups {
		if g.rows == nil {
			continue
		}
		t := g.rows
		t.paths = make([]string, len(t.scan.Files))
		t.excerpts = make([]*excerpt, len(t.scan.Files))
		releases := make([]func(), len(t.scan.Files))
		// Release what was fetched even if another file fails.
		q.release = append(q.release, func() {
			for _, f := range releases {
				if f != nil {
					f()
				}
			}
		})
		for i := range t.scan.Files {
			group.Go(func() (err error) {
				if t.hidden != nil {
					if t.paths[i], releases[i], t.excerpts[i], err = q.engine.excerpt(ctx, t, i); err != nil || t.paths[i] != "" {
						return err
					}
				}
				t.paths[i], releases[i], err = q.engine.local(ctx, t.scan.Files[i].Add, t.layout == nil)
				return err
			})
		}
	}
	err := group.Wait()
	for _, v := range q.views {
		if lost := v.Check(); lost != nil {
			return nil, lost
		}
	}
	if err != nil {
		return nil, err
	}
	for _, g := range q.groups {
		if g.rows != nil {
			paths = append(paths, g.rows.paths...)
		}
	}
	return slices.Compact(slices.Sorted(slices.Values(paths))), nil
}

// local returns the path of a data file. One of another engine has no seal,
// and may lie outside the table's directory.
func (e *Engine) local(ctx context.Context, add *action.Add, foreign bool) (path string, release func(), err error) {
	log := e.reader.Log()
	key, err := locations{e}.Key(add.Path)
	if err != nil {
		return "", nil, err
	}
	path, ok := storage.LocalPath(log.Store(), key)
	switch {
	case ok:
	case e.opts.Files == nil:
		return "", nil, fmt.Errorf("%w: %s", ErrNoLocalFiles, key)
	default:
		if path, release, err = e.opts.Files.File(ctx, log.Store(), key, add.Size); err != nil {
			return "", nil, missing(key, err)
		}
	}
	if path, err = printablePath(path); err != nil {
		return "", release, err
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "", release, fmt.Errorf("%w: the log names %s, which does not exist: %w", chunk.ErrCorrupt, key, err)
	case err != nil:
		return "", release, fmt.Errorf("data file %s: %w", key, err)
	case info.Size() != add.Size:
		return "", release, fmt.Errorf("%w: %s has %d bytes, the log says %d", chunk.ErrCorrupt, key, info.Size(), add.Size)
	}
	if foreign {
		if strings.ContainsAny(path, globs) {
			return link(path, release)
		}
		return path, release, nil
	}
	if err := e.verify(ctx, path, add); err != nil {
		return "", release, err
	}
	return path, release, nil
}

// printablePath makes a path absolute, and such as can stand in a statement.
func printablePath(path string) (string, error) {
	whole, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("path of %s: %w", path, err)
	}
	if !printable(whole) {
		return "", fmt.Errorf("%w: path %q is not UTF-8 text", txlog.ErrUnsupported, whole)
	}
	return whole, nil
}

// missing says what it means that a data file cannot be had.
func missing(key string, err error) error {
	switch {
	case errors.Is(err, storage.ErrNotFound), errors.Is(err, cache.ErrSizeMismatch):
		return fmt.Errorf("%w: %s is not what the log names: %w", chunk.ErrCorrupt, key, err)
	case errors.Is(err, cache.ErrNoRoom):
		return fmt.Errorf("%w: %w", ErrTooLarge, err)
	}
	return err
}

// globs are the characters by which DuckDB takes a path for a pattern, and it
// has no way to say that one is not.
const globs = `*?[\`

// link gives a file a second name without such characters, in a directory of
// its own.
func link(path string, release func()) (string, func(), error) {
	dir, err := os.MkdirTemp("", "cardinal-sql-")
	if err != nil {
		return "", release, fmt.Errorf("name %s anew: %w", path, err)
	}
	both := func() {
		_ = os.RemoveAll(dir) // the name, not the file
		if release != nil {
			release()
		}
	}
	name := filepath.Join(dir, "data.parquet")
	if err := os.Symlink(path, name); err != nil {
		return "", both, fmt.Errorf("name %s anew: %w", path, err)
	}
	if strings.ContainsAny(name, globs) {
		return "", both, fmt.Errorf("%w: DuckDB takes %q for a pattern", txlog.ErrUnsupported, path)
	}
	return name, both, nil
}

// maxFacts bounds what an engine remembers of files, and maxKeys the labels
// it remembers of one.
const (
	maxFacts = 200_000
	maxKeys  = 10_000
)

// maxSchemas is the number of files of a table of ours up to which their
// columns are looked up. Of many files, few are read alone.
const maxSchemas = 64

// learn finds the files that keep labels in their overflow maps which have a
// column by now, and the columns of a few. It costs a footer a file, once in an
// engine's life.
func (e *Engine) learn(ctx context.Context, d *database, t *rowsTable) error {
	t.dirty = map[int][]string{}
	if t.layout == nil {
		return nil
	}
	known := make([][]string, len(t.scan.Files))
	var ask []string
	byPath := map[string]int{}
	e.factsMu.Lock()
	for i := range t.scan.Files {
		labels, ok := e.facts[t.scan.Files[i].Add.Path]
		if known[i] = labels; !ok {
			ask = append(ask, t.paths[i])
			byPath[t.paths[i]] = i
		}
	}
	e.factsMu.Unlock()
	if len(ask) > 0 {
		found, err := overflowLabels(ctx, d, ask)
		if err != nil {
			return fmt.Errorf("read overflow labels: %w", err)
		}
		e.factsMu.Lock()
		if len(e.facts)+len(ask) > maxFacts {
			clear(e.facts)
		}
		for path, i := range byPath {
			known[i] = found[path]
			if len(known[i]) <= maxKeys {
				e.facts[t.scan.Files[i].Add.Path] = known[i]
			}
		}
		e.factsMu.Unlock()
	}
	if len(t.scan.Files) <= maxSchemas {
		var err error
		if t.schemas, err = e.footers(ctx, d, t); err != nil {
			return err
		}
	}
	for i, labels := range known {
		for _, l := range labels {
			if _, ok := t.layout.Column(l); ok {
				t.dirty[i] = append(t.dirty[i], l)
			}
		}
	}
	return nil
}

// chunkInfoKey is where a data file tells about itself (package chunk,
// "Format").
const chunkInfoKey = "cardinal.chunk"

// overflowLabels returns the labels that the overflow maps of files may hold.
func overflowLabels(ctx context.Context, d *database, paths []string) (map[string][]string, error) {
	rows, err := d.rows(ctx, "SELECT file_name, decode(value) FROM parquet_kv_metadata("+quoteTexts(paths)+") WHERE key = "+quoteText(chunkInfoKey)+"::BLOB")
	if err != nil {
		return nil, err
	}
	out := map[string][]string{}
	for _, r := range rows {
		var info struct{ Overflow []string }
		if err := json.Unmarshal([]byte(r[1]), &info); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", chunk.ErrCorrupt, r[0], err)
		}
		out[r[0]] = info.Overflow
	}
	return out, nil
}
