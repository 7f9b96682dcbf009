package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	duckdb "github.com/duckdb/duckdb-go-bindings"

	"cardinalsin/sqlengine"
	"cardinalsin/txlog"
)

// openSQL is our table under our SQL engine.
func openSQL(ctx context.Context, dir string) (*opened, error) {
	db, err := openOurs(ctx, dir, "")
	if err != nil {
		return nil, err
	}
	engine, err := sqlengine.New(ctx, db.Reader, sqlengine.Options{})
	if err != nil {
		return nil, errors.Join(err, db.Close(ctx))
	}
	return &opened{
		ask:   func(ctx context.Context, q query) (result, error) { return askEngine(ctx, engine, q.SQL) },
		count: counted(db),
		close: func() error {
			engine.Close()
			return db.Close(ctx)
		},
	}, nil
}

func askEngine(ctx context.Context, engine *sqlengine.Engine, sql string) (r result, err error) {
	rows, err := engine.Query(ctx, sql, sqlengine.QueryOptions{})
	if err != nil {
		return r, err
	}
	defer rows.Close()
	for {
		batch, err := rows.Next(ctx)
		if errors.Is(err, io.EOF) {
			return r, nil
		}
		if err != nil {
			return r, err
		}
		r.Series += int(batch.NumRows())
		batch.Release()
	}
}

var errDuckDB = errors.New("duckdb")

// openDuckDB is DuckDB alone over the live files of our table, which it takes
// for one table as they are: one database for all questions, with its caches,
// and the threads and memory that a query of ours has.
func openDuckDB(ctx context.Context, dir string) (*opened, error) {
	files, err := liveFiles(ctx, dir)
	if err != nil {
		return nil, err
	}
	d := new(plain)
	var message string
	var config duckdb.Config
	if duckdb.CreateConfig(&config) == duckdb.StateError {
		return nil, fmt.Errorf("%w: no configuration", errDuckDB)
	}
	defer duckdb.DestroyConfig(&config)
	if duckdb.OpenExt("", &d.db, config, &message) == duckdb.StateError {
		return nil, fmt.Errorf("%w: %s", errDuckDB, message)
	}
	if duckdb.Connect(d.db, &d.conn) == duckdb.StateError {
		duckdb.Close(&d.db)
		return nil, fmt.Errorf("%w: no connection", errDuckDB)
	}
	var ours sqlengine.Options
	ours.EnsureDefaults()
	for _, sql := range []string{
		fmt.Sprintf("SET threads = %d", ours.Threads),
		fmt.Sprintf("SET memory_limit = '%dKiB'", ours.MemoryBytes>>10),
		"SET TimeZone = 'UTC'",
		"CREATE VIEW metrics AS SELECT * FROM read_parquet(['" + strings.Join(files, "','") + "'], union_by_name = true)",
	} {
		if _, err := d.run(sql); err != nil {
			return nil, errors.Join(err, d.close())
		}
	}
	return &opened{ask: func(_ context.Context, q query) (result, error) { return d.run(q.SQL) }, close: d.close}, nil
}

// liveBytes is the size of our table's files.
func liveBytes(ctx context.Context, dir string) (n int64, err error) {
	files, err := liveFiles(ctx, dir)
	for _, f := range files {
		info, failed := os.Stat(f)
		if failed != nil {
			return 0, failed
		}
		n += info.Size()
	}
	return n, err
}

// liveFiles are the paths of our table's files.
func liveFiles(ctx context.Context, dir string) (files []string, err error) {
	db, err := openOurs(ctx, dir, "")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close(ctx)) }()
	snap, err := db.Log.Snapshot(ctx, txlog.Latest())
	if err != nil {
		return nil, err
	}
	for f := range snap.Files() {
		key, err := db.Log.Key(f.Path)
		if err != nil {
			return nil, err
		}
		files = append(files, filepath.Join(dir, "store", key))
	}
	return files, nil
}

// plain is a DuckDB with one connection.
type plain struct {
	db   duckdb.Database
	conn duckdb.Connection
}

// run counts the rows of a statement.
func (d *plain) run(sql string) (r result, err error) {
	var p duckdb.PreparedStatement
	defer duckdb.DestroyPrepare(&p)
	if duckdb.Prepare(d.conn, sql, &p) == duckdb.StateError {
		return r, fmt.Errorf("%w: %s", errDuckDB, duckdb.PrepareError(p))
	}
	var out duckdb.Result
	defer duckdb.DestroyResult(&out)
	if duckdb.ExecutePreparedStreaming(p, &out) == duckdb.StateError {
		return r, fmt.Errorf("%w: %s", errDuckDB, duckdb.ResultError(&out))
	}
	arrow, err := newToArrow(d.conn, &out)
	if err != nil {
		return r, err
	}
	defer arrow.close()
	for {
		chunk := duckdb.FetchChunk(out)
		if chunk.Ptr == nil {
			break
		}
		r.Series += int(duckdb.DataChunkGetSize(chunk))
		err := arrow.convert(chunk)
		duckdb.DestroyDataChunk(&chunk)
		if err != nil {
			return r, err
		}
	}
	if message := duckdb.ResultError(&out); message != "" {
		return r, fmt.Errorf("%w: %s", errDuckDB, message)
	}
	return r, nil
}

func (d *plain) close() error {
	duckdb.Disconnect(&d.conn)
	duckdb.Close(&d.db)
	return nil
}
