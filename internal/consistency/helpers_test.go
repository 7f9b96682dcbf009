package consistency

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin"
	"cardinalsin/compactor"
	"cardinalsin/series"
	"cardinalsin/sqlengine"
	"cardinalsin/wal"
)

// tester is what the helpers need of *testing.T and *rapid.T.
type tester interface {
	Helper()
	Fatalf(format string, args ...any)
}

// process opens a table as a process of its own would: with a log, pins and a
// reader that share nothing with others' but the store.
func process(t tester, dir string, change func(*cardinalsin.Options)) *cardinalsin.DB {
	t.Helper()
	o := cardinalsin.Options{Store: filepath.Join(dir, "store")}
	o.WAL.Sync = wal.SyncDeferred // no machine fails here
	o.Compactor.Policy = compactor.Policy{All: true, Settle: 1}
	if change != nil {
		change(&o)
	}
	db, err := cardinalsin.Open(context.Background(), o)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return db
}

// ingests makes it the process that writes.
func ingests(dir string) func(*cardinalsin.Options) {
	return func(o *cardinalsin.Options) { o.WALDir = filepath.Join(dir, "wal") }
}

func closeDB(t tester, db *cardinalsin.DB) {
	t.Helper()
	if err := db.Close(context.Background()); err != nil {
		t.Fatalf("close: %v", err)
	}
}

func sqlOf(t testing.TB, db *cardinalsin.DB) *sqlengine.Engine {
	t.Helper()
	e, err := sqlengine.New(context.Background(), db.Reader, sqlengine.Options{})
	if err != nil {
		t.Fatalf("open SQL engine: %v", err)
	}
	t.Cleanup(e.Close)
	return e
}

// rowsOf runs a statement and returns its rows as text.
func rowsOf(ctx context.Context, e *sqlengine.Engine, sql string, opts sqlengine.QueryOptions) (out [][]string, err error) {
	rows, err := e.Query(ctx, sql, opts)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for {
		r, err := rows.Next(ctx)
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		out = append(out, texts(r)...)
		r.Release()
	}
}

func texts(r arrow.RecordBatch) [][]string {
	out := make([][]string, r.NumRows())
	for i := range out {
		for _, c := range r.Columns() {
			out[i] = append(out[i], c.ValueStr(i))
		}
	}
	return out
}

// start is the first instant of all data.
const start = series.Timestamp(1_767_312_000_000_000) // 2026-01-02T00:00:00Z

// sample is one float at a number of milliseconds from start.
func sample(ms int, v float64) series.Sample {
	return series.Sample{Time: start + series.Timestamp(ms)*1000, Value: v}
}

func labelsOf(pairs ...string) series.Labels { return labels.FromStrings(pairs...) }

// describe prints a label set so that equal ones are equal texts.
func describe(l series.Labels) string {
	var b strings.Builder
	l.Range(func(l labels.Label) { fmt.Fprintf(&b, "%s=%q,", l.Name, l.Value) })
	return b.String()
}
