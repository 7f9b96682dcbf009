package sqlengine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow/ipc"
	duckdb "github.com/duckdb/duckdb-go-bindings"
	"github.com/google/go-cmp/cmp"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/lease"
	"cardinalsin/reader"
	"cardinalsin/storage/cache"
	"cardinalsin/storage/mem"
	"cardinalsin/txlog"
)

// endless is a statement that no test waits for.
const endless = "SELECT sum(hash(i)) FROM range(1000000000000) t(i)"

func TestTimeout(t *testing.T) {
	tb := newTable(t, Options{})
	start := time.Now()
	_, err := tb.tryQuery(endless, QueryOptions{Timeout: 200 * time.Millisecond})
	if !errors.Is(err, ErrTimeout) {
		t.Errorf("error is %v", err)
	}
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("took %v", d)
	}
}

func TestCancel(t *testing.T) {
	tb := newTable(t, Options{})
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(200*time.Millisecond, cancel)
	_, err := tb.engine.Query(ctx, endless, QueryOptions{})
	if !errors.Is(err, context.Canceled) || errors.Is(err, ErrTimeout) {
		t.Errorf("error is %v", err)
	}
	// While rows are fetched.
	ctx, cancel = context.WithCancel(context.Background())
	defer cancel()
	rows, err := tb.engine.Query(ctx, "FROM range(1000000000)", QueryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	r, err := rows.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	r.Release()
	cancel()
	if _, err := rows.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
	// An error is final.
	if _, err := rows.Next(context.Background()); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
}

func TestLimits(t *testing.T) {
	spill := t.TempDir()
	tb := newTable(t, Options{MaxRows: 5000, MemoryBytes: 64 << 20, Memory: NewMemory(128 << 20)})
	big := newTable(t, Options{MemoryBytes: 64 << 20, SpillDir: spill, Threads: 1})
	// Far more than 64 MiB of texts that have to be sorted.
	sort := "SELECT max(x) FROM (SELECT hash(i)::VARCHAR || repeat('x', 100) AS x FROM range(1500000) t(i) ORDER BY x OFFSET 10)"
	for _, c := range []struct {
		name string
		tb   *table
		sql  string
		opts QueryOptions
		is   error
	}{
		{"rows", tb, "FROM range(6000)", QueryOptions{}, ErrTooLarge},
		{"rows in bounds", tb, "FROM range(5000)", QueryOptions{}, nil},
		{"fewer rows", tb, "FROM range(11)", QueryOptions{MaxRows: 10}, ErrTooLarge},
		{"no more rows than the engine's", tb, "FROM range(6000)", QueryOptions{MaxRows: 10000}, ErrTooLarge},
		{"bytes", tb, "SELECT repeat('x', 100000) FROM range(100)", QueryOptions{MaxBytes: 1 << 20}, ErrTooLarge},
		{"memory", tb, sort, QueryOptions{}, ErrTooLarge},
		{"memory, spilled", big, sort, QueryOptions{}, nil},
		{"after all that", tb, "SELECT 1", QueryOptions{}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := c.tb.tryQuery(c.sql, c.opts); !errors.Is(err, c.is) {
				t.Errorf("error is %v, want %v", err, c.is)
			}
		})
	}
	big.engine.Close() // a database that is kept has an empty directory
	if left, err := os.ReadDir(spill); err != nil || len(left) > 0 {
		t.Errorf("spilled and left: %v, %v", left, err)
	}
}

// TestMemoryIsShared: queries wait for the memory of those that run, also of
// other engines, and may have no more than there is for all.
func TestMemoryIsShared(t *testing.T) {
	memory := NewMemory(64 << 20)
	tb, other := newTable(t, Options{Memory: memory}), newTable(t, Options{Memory: memory})
	ctx := context.Background()
	rows, err := tb.engine.Query(ctx, "SELECT 1", QueryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, tb := range []*table{tb, other} {
		if _, err := tb.tryQuery("SELECT 2", QueryOptions{Timeout: 50 * time.Millisecond}); !errors.Is(err, ErrTimeout) {
			t.Errorf("error is %v", err)
		}
	}
	rows.Close()
	rows.Close() // again: nothing happens
	if _, err := other.tryQuery("SELECT 2", QueryOptions{}); err != nil {
		t.Errorf("error is %v", err)
	}
	if _, err := rows.Next(ctx); err == nil {
		t.Error("closed rows have a next one")
	}
}

// TestConcurrent: queries of different versions at the same time, each with
// its own rows.
func TestConcurrent(t *testing.T) {
	tb := newTable(t, Options{Threads: 1, MemoryBytes: 64 << 20, Memory: NewMemory(256 << 20)})
	for i := range 5 {
		tb.flush(t, one(float64(i), lbl("up", "host", "a"), int64(i)))
	}
	tb.head = newHead(one(9, lbl("up", "host", "a"), 9))
	var all sync.WaitGroup
	for worker := range 6 {
		all.Go(func() {
			for i := range 5 {
				v := (worker + i) % 7 // 6: the latest, with the head
				sql, want := "SELECT count(*)::VARCHAR || ' ' || max(value)::VARCHAR FROM metrics", fmt.Sprintf("%d %d.0", v, v-1)
				opts := QueryOptions{At: txlog.AtVersion(action.Version(v))}
				switch v {
				case 0:
					want = ""
				case 6:
					want, opts = "6 9.0", QueryOptions{}
				}
				got, err := tb.tryQuery(sql, opts)
				if err != nil || got[0] != want {
					t.Errorf("version %d: %q, %v; want %q", v, got, err, want)
				}
			}
		})
	}
	all.Wait()
}

// TestStreams: the first rows come before the last are computed.
func TestStreams(t *testing.T) {
	tb := newTable(t, Options{})
	rows, err := tb.engine.Query(context.Background(), "SELECT i, repeat('x', 1000) FROM range(100000000000) t(i)", QueryOptions{Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for range 3 {
		r, err := rows.Next(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		r.Release()
	}
}

// TestNothingIsLeft: goroutines end with their queries, also where a scan of
// the head is given up in the middle.
func TestNothingIsLeft(t *testing.T) {
	tb := newTable(t, Options{})
	var many []int64
	for i := range int64(50_000) {
		many = append(many, i)
	}
	tb.head = newHead(one(1, lbl("up", "host", "a"), many...), one(1, lbl("up", "host", "b"), many...),
		one(1, lbl("up", "host", "c"), many...), one(1, lbl("up", "host", "d"), many...))
	for range 3 {
		if got := tb.query(t, "FROM metrics LIMIT 1"); len(got) != 1 {
			t.Errorf("rows: %q", got)
		}
		if got := tb.query(t, "SELECT count(*) FROM metrics"); got[0] != "200000" {
			t.Errorf("rows: %q", got)
		}
	}
	// A thread of a database that is kept shows as a goroutine, too.
	stacks := make([]byte, 1<<20)
	for range 100 {
		stacks = stacks[:runtime.Stack(stacks[:cap(stacks)], true)]
		if !bytes.Contains(stacks, []byte("sqlengine.(*headS")) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("a scan of the head is left:\n%s", stacks)
}

func TestDamagedTable(t *testing.T) {
	for _, c := range []struct {
		name   string
		damage func(path string) error
	}{
		{"missing", os.Remove},
		{"short", func(path string) error { return os.Truncate(path, 100) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			tb := newTable(t, Options{})
			tb.flush(t, one(1, lbl("up"), 1))
			path := tb.dataFiles(t)[0]
			tb.query(t, "FROM metrics") // now it counts as sound
			if err := c.damage(path); err != nil {
				t.Fatal(err)
			}
			_, err := tb.tryQuery("FROM metrics", QueryOptions{})
			if !errors.Is(err, chunk.ErrCorrupt) || !strings.Contains(err.Error(), filepath.Base(path)) {
				t.Errorf("error is %v", err)
			}
			// A query that does not need the file does not mind.
			if _, err := tb.tryQuery("FROM metrics WHERE timestamp > '2030-01-01'", QueryOptions{}); err != nil {
				t.Errorf("error is %v", err)
			}
		})
	}
}

// TestPinLost: a result whose files may have gone fails, at the start and in
// the middle.
func TestPinLost(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	var mu sync.Mutex
	clock := func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return now
	}
	tb := newTable(t, Options{})
	tb.flush(t, one(1, lbl("up"), 1, 2, 3))
	pins := lease.NewPins(tb.store, root+"/_cardinal/pins", "test", lease.Options{Now: clock})
	r := reader.New(tb.log, pins, reader.Options{})
	e, err := New(context.Background(), r, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	rows, err := e.Query(context.Background(), "SELECT a.value FROM metrics a, range(100000)", QueryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	record, err := rows.Next(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	record.Release()
	mu.Lock()
	now = now.Add(24 * time.Hour)
	mu.Unlock()
	if _, err := rows.Next(context.Background()); !errors.Is(err, lease.ErrPinLost) {
		t.Errorf("error is %v", err)
	}
}

// TestRemoteStore reads the files of a store that has no local ones through a
// cache.
func TestRemoteStore(t *testing.T) {
	store := mem.New(mem.Options{})
	tb := newTableIn(t, store, Options{})
	tb.flush(t, one(1, lbl("up", "host", "a"), 1))
	tb.flush(t, one(2, lbl("up", "host", "a"), 1, 2))
	if _, err := tb.tryQuery("FROM metrics", QueryOptions{}); !errors.Is(err, ErrNoLocalFiles) {
		t.Errorf("error is %v", err)
	}
	files, err := cache.Open(t.TempDir(), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer files.Close()
	e, err := New(context.Background(), tb.reader, Options{Files: files})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	tb.engine.Close()
	tb.engine = e
	if d := cmp.Diff(tb.readerRows(t, txlog.Latest()), tb.sqlRows(t, "FROM metrics", QueryOptions{})); d != "" {
		t.Errorf("(-reader +SQL):\n%s", d)
	}
	// The log names what is not there: not in the cache either.
	tb.flush(t, one(3, lbl("up", "host", "b"), 9))
	gone := slices.Collect(tb.snapshot(t).Files())[2].Path
	if err := store.Delete(context.Background(), root+"/"+gone); err != nil {
		t.Fatal(err)
	}
	if _, err := tb.tryQuery("FROM metrics", QueryOptions{}); !errors.Is(err, chunk.ErrCorrupt) {
		t.Errorf("error is %v", err)
	}
	// A cache that is too small for the query.
	tiny, err := cache.Open(t.TempDir(), 10)
	if err != nil {
		t.Fatal(err)
	}
	defer tiny.Close()
	e.opts.Files = tiny
	if _, err := tb.tryQuery("FROM metrics", QueryOptions{}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("error is %v", err)
	}
}

func TestFormats(t *testing.T) {
	tb := newTable(t, Options{})
	sql := "SELECT i, i::VARCHAR AS s, [i] AS l, NULL::DOUBLE AS d, MAP {'k': i} AS m, TIMESTAMPTZ '2026-01-02 03:04:05+00' + to_seconds(i) AS t FROM range(5000) t(i)"
	text, err := tb.text(sql, FormatArrow, QueryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := ipc.NewReader(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	n := int64(0)
	for r.Next() {
		n += r.RecordBatch().NumRows()
	}
	if err := r.Err(); err != nil || n != 5000 {
		t.Errorf("arrow: %d rows, %v", n, err)
	}
	// DuckDB reads our Parquet, and finds the same rows.
	path := filepath.Join(t.TempDir(), "out.parquet")
	if text, err = tb.text(sql, FormatParquet, QueryOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := openDatabase(context.Background(), settings{threads: 1, memoryBytes: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	rows, err := d.rows(context.Background(), "SELECT count(*)::VARCHAR FROM (FROM "+quoteText(path)+" EXCEPT ALL "+sql+")")
	if err != nil || rows[0][0] != "0" {
		t.Errorf("parquet: %v, %v", rows, err)
	}
	rows, err = d.rows(context.Background(), "SELECT count(*)::VARCHAR, typeof(any_value(t)), typeof(any_value(m)) FROM "+quoteText(path))
	if d := cmp.Diff([][]string{{"5000", "TIMESTAMP WITH TIME ZONE", "MAP(VARCHAR, BIGINT)"}}, rows); d != "" || err != nil {
		t.Errorf("parquet: %s, %v", d, err)
	}
	for _, f := range []Format{FormatArrow, FormatParquet} {
		if text, err := tb.text("SELECT 1 AS a, 2 AS a WHERE false", f, QueryOptions{}); err != nil || text == "" {
			t.Errorf("%s without rows: %q, %v", f, text, err)
		}
	}
	if _, err := ParseFormat("xml"); !errors.Is(err, ErrUnknownFormat) {
		t.Errorf("error is %v", err)
	}
}

// TestHalfAResult: a failure in the middle leaves text that no reader of the
// format takes for whole.
func TestHalfAResult(t *testing.T) {
	// With many threads DuckDB often says "interrupted" in place of the cause.
	tb := newTable(t, Options{Threads: 8})
	sql := "SELECT CASE WHEN i = 900000 THEN error('half') ELSE i END AS i FROM range(1000000) t(i)"
	for f, whole := range map[Format]func(string) bool{
		FormatJSON:    func(s string) bool { return strings.HasSuffix(s, "]\n") },
		FormatArrow:   func(s string) bool { return strings.HasSuffix(s, "\xff\xff\xff\xff\x00\x00\x00\x00") },
		FormatParquet: func(s string) bool { return strings.HasSuffix(s, "PAR1") && len(s) > 4 },
	} {
		rows, err := tb.engine.Query(context.Background(), sql, QueryOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		_, err = f.Write(context.Background(), &out, rows)
		rows.Close()
		if !errors.Is(err, ErrExecution) || whole(out.String()) || !strings.Contains(err.Error(), "half") {
			t.Errorf("%s: %d bytes, error %v", f, out.Len(), err)
		}
		good, err := tb.text("SELECT 1", f, QueryOptions{})
		if err != nil || !whole(good) {
			t.Errorf("%s: a good result is not whole: %v", f, err)
		}
	}
	// A writer that fails ends the query.
	rows, err := tb.engine.Query(context.Background(), "FROM range(100000)", QueryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	if _, err := FormatCSV.Write(context.Background(), failingWriter{}, rows); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("error is %v", err)
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

// TestCauseOfInterruption: an interruption that nobody asked for hides the
// failure of another thread, which is found by running the statement again.
func TestCauseOfInterruption(t *testing.T) {
	tb := newTable(t, Options{})
	tb.flush(t, one(1, lbl("up", "host", "a"), 1))
	tb.head = newHead(one(2, lbl("up", "host", "x"), 2))
	ctx := context.Background()
	for _, c := range []struct {
		sql, want string
	}{
		{"SELECT host::INT FROM metrics; -- the end", "Could not convert string"},
		{"SELECT host, host FROM metrics AT (VERSION => 1) WHERE error('own') IS NULL", "own"},
		{"SELECT host FROM metrics", "interrupted"},
	} {
		q, err := tb.engine.open(ctx, c.sql, QueryOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := q.prepare(ctx); err != nil {
			t.Fatal(err)
		}
		stopped := &duckError{kind: duckdb.ErrorTypeInterrupt, message: "interrupted"}
		if err := q.cause(ctx, stopped); !errors.Is(err, ErrExecution) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.sql, err)
		}
		ended, cancel := context.WithCancel(ctx)
		cancel()
		if err := q.cause(ended, stopped); !errors.Is(err, stopped) || errors.Is(err, ErrExecution) {
			t.Errorf("somebody asked for it: %v", err)
		}
		q.close()
	}
}
