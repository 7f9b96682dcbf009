package sql

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/internal/merge"
	"cardinalsin/lease"
	"cardinalsin/reader"
	"cardinalsin/series"
	"cardinalsin/shard"
	"cardinalsin/sqlengine"
	"cardinalsin/storage"
	"cardinalsin/storage/local"
	"cardinalsin/txlog"
)

const day = series.Timestamp(1767312000_000_000) // 2026-01-02

// server is a server over a table with versions 0 (empty), 1 and 2; vacuum has
// set the watermark in version 3 to 1.
type server struct {
	*httptest.Server
	mu  sync.Mutex
	log bytes.Buffer
	fed *feed
}

// feed wraps the engine to see whether queries end.
type feed struct {
	Engine
	err error // returned in place of a result
}

func (f *feed) Query(ctx context.Context, sql string, opts sqlengine.QueryOptions) (*sqlengine.Rows, error) {
	if f.err != nil {
		return nil, f.err
	}
	return f.Engine.Query(ctx, sql, opts)
}

func (s *server) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.Write(p)
}

func (s *server) logged() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.String()
}

func newServer(t *testing.T, opts Options) *server {
	t.Helper()
	ctx := context.Background()
	store, err := local.New(t.TempDir(), local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	const root = "default/metrics"
	schema := chunk.BaseSchema()
	base, err := chunk.LayoutOf(schema)
	if err != nil {
		t.Fatal(err)
	}
	schema.Fields = append(schema.Fields, base.Grow([]string{"host"})...)
	layout, err := chunk.LayoutOf(schema)
	if err != nil {
		t.Fatal(err)
	}
	log, err := txlog.Create(ctx, store, root, txlog.CreateOptions{
		Schema: schema, PartitionColumns: chunk.PartitionColumns(), Domains: map[string]string{shard.Domain: shard.Initial().Encode()},
	}, txlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	commit := func(change func(*txlog.Transaction)) {
		snap, err := log.Snapshot(ctx, txlog.Latest())
		if err != nil {
			t.Fatal(err)
		}
		txn := log.Begin(snap, txlog.Operation{Name: "TEST"})
		change(txn)
		if _, err := txn.Commit(ctx); err != nil {
			t.Fatal(err)
		}
	}
	for i := range int64(2) {
		l := labels.FromStrings(series.MetricName, "up", "host", "a")
		enc, err := chunk.Encode(chunk.Options{}, layout, merge.Slice([]merge.Series{{
			Labels: l, ID: series.IDOf(l), Samples: []series.Sample{{Time: day + series.Timestamp(i)*1_000_000, Value: float64(i)}},
		}}))
		if err != nil {
			t.Fatal(err)
		}
		path := fmt.Sprintf("date=2026-01-02/shard=1/%d.parquet", i)
		if _, err := store.Put(ctx, root+"/"+path, bytes.NewReader(enc.Data)); err != nil {
			t.Fatal(err)
		}
		commit(func(txn *txlog.Transaction) {
			txn.Add(action.Add{
				Path: path, Size: int64(len(enc.Data)), DataChange: true,
				PartitionValues: action.ObjectOf(map[string]string{"date": "2026-01-02", "shard": "1"}),
				Tags:            chunk.Tags{Order: chunk.Order{Lo: i, Hi: i}, Time: enc.Time, Keys: enc.Keys}.Encode(),
			})
		})
	}
	commit(func(txn *txlog.Transaction) { txn.SetDomain(txlog.WatermarkDomain, txlog.EncodeWatermark(1)) })
	engine, err := sqlengine.New(ctx, reader.New(log, nil, reader.Options{}), sqlengine.Options{MemoryBytes: 128 << 20, Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { engine.Close() })
	s := &server{fed: &feed{Engine: engine}}
	opts.Logger = slog.New(slog.NewTextHandler(s, nil))
	s.Server = httptest.NewUnstartedServer(Handler(s.fed, opts))
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	s.Start()
	t.Cleanup(s.Server.Close)
	return s
}

// post returns status, body and what went wrong while the body was read.
func (s *server) post(t *testing.T, body string) (*http.Response, string, error) {
	t.Helper()
	r, err := s.Client().Post(s.URL, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	return r, string(b), err
}

func TestResults(t *testing.T) {
	s := newServer(t, Options{})
	for _, c := range []struct {
		body, contentType, want, versions string
	}{
		{`{"query": "SELECT host, value FROM metrics ORDER BY timestamp"}`, "application/json",
			"[\n{\"host\":\"a\",\"value\":0},\n{\"host\":\"a\",\"value\":1}\n]\n", "3"},
		{`{"query": "SELECT count(*) AS n FROM metrics", "version": 1, "format": "csv"}`, "text/csv; charset=utf-8; header=present", "n\n1\n", "1"},
		{`{"query": "SELECT count(*) AS n FROM metrics", "as_of": "2100-01-01T00:00:00Z", "format": "table"}`, "text/plain; charset=utf-8", "n\n-\n2\n", "3"},
		{`{"query": "SELECT value FROM metrics AT (VERSION => 2) WHERE value NOT IN (SELECT value FROM metrics AT (VERSION => 1))", "format": "ndjson"}`,
			"application/x-ndjson", "{\"value\":1}\n", "1,2"},
		{`{"query": "SELECT 1 AS a"}`, "application/json", "[\n{\"a\":1}\n]\n", ""},
		{`{"query": "SELECT 1 AS a WHERE false"}`, "application/json", "[]\n", ""},
	} {
		r, got, err := s.post(t, c.body)
		if err != nil || r.StatusCode != http.StatusOK || r.Header.Get("Content-Type") != c.contentType || r.Header.Get(VersionHeader) != c.versions {
			t.Errorf("%s: status %d, headers %v, error %v", c.body, r.StatusCode, r.Header, err)
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.body, d)
		}
	}
}

// TestArguments: each keeps its type, and is no part of the statement.
func TestArguments(t *testing.T) {
	s := newServer(t, Options{})
	for _, c := range []struct{ body, want string }{
		{`{"query": "SELECT value FROM metrics WHERE host = $1 AND value = $2", "arguments": ["a", 1]}`, `[{"value":1}]`},
		{`{"query": "SELECT value FROM metrics WHERE host = ?", "arguments": ["' OR 1=1 --"]}`, `[]`},
		{`{"query": "SELECT typeof(?) AS a, typeof(?) AS b, typeof(?) AS c, typeof(?) AS d, ? IS NULL AS e, ? AS f", "arguments": [1, 18446744073709551615, 1.5, true, null, 9007199254740993]}`,
			`[{"a":"BIGINT","b":"UBIGINT","c":"DOUBLE","d":"BOOLEAN","e":true,"f":9007199254740993}]`},
	} {
		r, got, err := s.post(t, c.body)
		if err != nil || r.StatusCode != http.StatusOK {
			t.Errorf("%s: status %d, error %v: %s", c.body, r.StatusCode, err, got)
		}
		if d := cmp.Diff(c.want, strings.ReplaceAll(got, "\n", "")); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.body, d)
		}
	}
}

// TestExplain: what is read and skipped, by reason; no row is.
func TestExplain(t *testing.T) {
	s := newServer(t, Options{})
	r, body, err := s.post(t, `{"query": "SELECT error('it runs') FROM metrics WHERE timestamp < ?", "arguments": ["2026-01-02 00:00:01"], "explain": true}`)
	if err != nil || r.StatusCode != http.StatusOK || r.Header.Get("Content-Type") != "application/json" {
		t.Fatalf("status %d, %v, error %v: %s", r.StatusCode, r.Header, err, body)
	}
	var x struct {
		Tables []map[string]any `json:"tables"`
		Plan   string           `json:"plan"`
	}
	if err := json.Unmarshal([]byte(body), &x); err != nil || len(x.Tables) != 1 || x.Plan == "" {
		t.Fatalf("error %v: %s", err, body)
	}
	got := x.Tables[0]
	skipped, _ := got["skipped_bytes"].(map[string]any)
	if n, _ := skipped["time"].(float64); n < 100 {
		t.Errorf("%v bytes skipped by time", n)
	}
	if n, _ := got["bytes"].(float64); n < 100 {
		t.Errorf("%v bytes read", n)
	}
	delete(got, "skipped_bytes")
	delete(got, "bytes")
	want := map[string]any{
		"table": "metrics", "version": 3.0, "head": false, "files": 1.0, "row_groups": 1.0, "row_groups_skipped": 0.0,
		"skipped": map[string]any{"time": 1.0}, "compared": 0.0, "duplicates": false, "excerpts": 0.0, "excerpt_bytes": 0.0,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestErrors(t *testing.T) {
	s := newServer(t, Options{MaxBodyBytes: 1000, Limits: sqlengine.QueryOptions{MaxRows: 1000, Timeout: 300 * time.Millisecond}})
	for _, c := range []struct {
		body   string
		status int
		code   string
	}{
		{``, 400, "bad_request"},
		{`{`, 400, "bad_request"},
		{`[]`, 400, "bad_request"},
		{`{}`, 400, "bad_request"},
		{`{"query": 1}`, 400, "bad_request"},
		{`{"query": "SELECT 1", "sql": ""}`, 400, "bad_request"},
		{`{"query": "SELECT 1"} {}`, 400, "bad_request"},
		{`{"query": "SELECT 1", "format": "xml"}`, 400, "bad_request"},
		{`{"query": "SELECT 1", "version": -1}`, 400, "bad_request"},
		{`{"query": "SELECT 1", "version": 1.5}`, 400, "bad_request"},
		{`{"query": "SELECT 1", "as_of": "yesterday"}`, 400, "bad_request"},
		{`{"query": "SELECT 1", "as_of": "2026-01-02T00:00:00Z", "version": 1}`, 400, "bad_request"},
		{`{"query": "` + strings.Repeat("x", 1000) + `"}`, 413, "body_too_large"},
		{`{"query": "SELECT ?"}`, 400, "bad_request"},
		{`{"query": "SELECT ?", "arguments": [1, 2]}`, 400, "bad_request"},
		{`{"query": "SELECT ?", "arguments": [[1]]}`, 400, "bad_request"},
		{`{"query": "SELECT ?", "arguments": [{}]}`, 400, "bad_request"},
		{`{"query": "SELECT ?", "arguments": [1e999]}`, 400, "bad_request"},
		{`{"query": "SELECT ?", "arguments": 1}`, 400, "bad_request"},
		{`{"query": "DROP TABLE metrics", "explain": true}`, 422, "not_allowed"},
		{`{"query": "FROM metrics", "explain": true, "version": 0}`, 410, "version_vacuumed"},
		{`{"query": ""}`, 400, "syntax"},
		{`{"query": "SELEC 1"}`, 400, "syntax"},
		{`{"query": "SELECT nothing FROM metrics"}`, 400, "syntax"},
		{`{"query": "FROM nothing"}`, 400, "syntax"},
		{`{"query": "DROP TABLE metrics"}`, 422, "not_allowed"},
		{`{"query": "ATTACH 'x.db'"}`, 422, "not_allowed"},
		{`{"query": "COPY metrics TO 'x.csv'"}`, 422, "not_allowed"},
		{`{"query": "FROM read_csv('/etc/passwd')"}`, 422, "not_allowed"},
		{`{"query": "FROM 'x.parquet'"}`, 422, "not_allowed"},
		{`{"query": "SELECT 'x'::INT"}`, 422, "execution"},
		{`{"query": "FROM range(2000)"}`, 422, "too_large"},
		{`{"query": "SELECT sum(hash(i)) FROM range(1000000000000) t(i)"}`, 504, "timeout"},
		{`{"query": "FROM metrics", "version": 9}`, 404, "version_not_found"},
		{`{"query": "FROM metrics AT (VERSION => 9)"}`, 404, "version_not_found"},
		{`{"query": "FROM metrics", "as_of": "2000-01-01T00:00:00Z"}`, 404, "version_not_found"},
		{`{"query": "FROM metrics", "version": 0}`, 410, "version_vacuumed"},
		{`{"query": "FROM metrics AT (VERSION => 0)"}`, 410, "version_vacuumed"},
	} {
		t.Run(c.body[:min(len(c.body), 80)], func(t *testing.T) {
			r, body, err := s.post(t, c.body)
			if err != nil {
				t.Fatal(err)
			}
			checkError(t, r, body, c.status, c.code)
		})
	}
	t.Run("GET", func(t *testing.T) {
		r, err := s.Client().Get(s.URL)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		checkError(t, r, string(b), 405, "method_not_allowed")
	})
	if s.logged() != "" {
		t.Errorf("clients' errors are logged: %s", s.logged())
	}
}

// TestErrorsOfTheStore: conditions that a statement alone does not bring about.
func TestErrorsOfTheStore(t *testing.T) {
	s := newServer(t, Options{})
	for _, c := range []struct {
		err    error
		status int
		code   string
	}{
		{lease.ErrPinLost, 503, "unavailable"},
		{storage.ErrUnavailable, 503, "unavailable"},
		{txlog.ErrNotTable, 404, "not_a_table"},
		{txlog.ErrUnsupported, 422, "unsupported"},
		{chunk.ErrCorrupt, 500, "corrupt"},
		{action.ErrCorrupt, 500, "corrupt"},
		{errors.New("the secret cause"), 500, "internal"},
	} {
		s.fed.err = fmt.Errorf("query: %w", c.err)
		r, body, err := s.post(t, `{"query": "FROM metrics"}`)
		if err != nil {
			t.Fatal(err)
		}
		checkError(t, r, body, c.status, c.code)
		if strings.Contains(body, "secret") {
			t.Errorf("an internal error is told to the client: %s", body)
		}
		if logged := strings.Contains(s.logged(), c.err.Error()); logged != (c.status == 500) {
			t.Errorf("%v: logged is %v", c.err, logged)
		}
	}
}

func checkError(t *testing.T, r *http.Response, body string, status int, code string) {
	t.Helper()
	var e struct {
		Error struct{ Code, Message string }
	}
	if err := json.Unmarshal([]byte(body), &e); err != nil {
		t.Fatalf("body %q: %v", body, err)
	}
	if r.StatusCode != status || e.Error.Code != code || e.Error.Message == "" || r.Header.Get("Content-Type") != "application/json" {
		t.Errorf("status %d, body %s; want %d %s", r.StatusCode, body, status, code)
	}
}

// TestStreams: the first bytes come while the query runs, and a client that
// leaves ends it.
func TestStreams(t *testing.T) {
	s := newServer(t, Options{BufferBytes: 1000})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	q, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL, strings.NewReader(`{"query": "FROM range(1000000000000)", "format": "csv"}`))
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.Client().Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	lines := bufio.NewScanner(r.Body)
	for range 100_000 {
		if !lines.Scan() {
			t.Fatal(lines.Err())
		}
	}
	cancel()
	// The server only stops when no request is left.
	done := make(chan struct{})
	go func() {
		s.Server.Close()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("the query goes on without its client")
	}
}

// TestHalfAResult: what fails after the first bytes were sent breaks the
// connection, in every format.
func TestHalfAResult(t *testing.T) {
	s := newServer(t, Options{BufferBytes: 1000})
	for _, f := range sqlengine.Formats {
		body := fmt.Sprintf(`{"query": "SELECT CASE WHEN i = 400000 THEN error('half') ELSE i END AS i FROM range(500000) t(i)", "format": "%s"}`, f)
		r, got, err := s.post(t, body)
		if f == sqlengine.FormatParquet { // nothing was sent yet: a row group goes as one
			checkError(t, r, got, 422, "execution")
			continue
		}
		if r.StatusCode != http.StatusOK || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: status %d, %d bytes, error %v", f, r.StatusCode, len(got), err)
		}
	}
	// With room to hold it all back, the same is an error with a status.
	s = newServer(t, Options{BufferBytes: 100 << 20})
	r, got, err := s.post(t, `{"query": "SELECT CASE WHEN i = 400000 THEN error('half') ELSE i END AS i FROM range(500000) t(i)"}`)
	if err != nil {
		t.Fatal(err)
	}
	checkError(t, r, got, 422, "execution")
}
