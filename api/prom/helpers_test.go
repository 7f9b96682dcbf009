package prom

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/prompb"

	"cardinalsin/chunk"
	"cardinalsin/index"
	"cardinalsin/ingest"
	"cardinalsin/lease"
	"cardinalsin/reader"
	"cardinalsin/series"
	"cardinalsin/shard"
	"cardinalsin/storage/fault"
	"cardinalsin/storage/mem"
	"cardinalsin/txlog"
	"cardinalsin/wal"
	"cardinalsin/writer"
)

// clock is one time for the store and the process.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// table is a table with a writer and a reader, on a store in memory that can
// fail.
type table struct {
	clock  *clock
	store  *fault.Store
	log    *txlog.Log
	wal    *wal.Log
	writer *writer.Writer
	reader *reader.Reader
}

func newTable(t testing.TB) *table {
	t.Helper()
	ctx := context.Background()
	tb := &table{clock: &clock{now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}}
	tb.store = fault.New(mem.New(mem.Options{Now: tb.clock.Now}))
	var err error
	must := func() {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	tb.log, err = txlog.Create(ctx, tb.store, "tenant/metrics", txlog.CreateOptions{
		Schema: chunk.BaseSchema(), PartitionColumns: chunk.PartitionColumns(),
		Domains: map[string]string{shard.Domain: shard.Initial().Encode()},
	}, txlog.Options{Now: tb.clock.Now})
	must()
	tb.wal, err = wal.Open(t.TempDir(), wal.Options{Sync: wal.SyncDeferred})
	must()
	tb.writer, err = writer.Open(ctx, tb.log, tb.wal, writer.Options{Now: tb.clock.Now})
	must()
	pins := lease.NewPins(tb.store, "tenant/metrics/_cardinal/pins", "test", lease.Options{Now: tb.clock.Now})
	tb.reader = reader.New(tb.log, pins, reader.Options{FooterBytes: 1, Index: index.New(tb.log, index.Options{}), Head: func() reader.HeadView { return tb.writer.Head() }})
	return tb
}

func (tb *table) append(t testing.TB, batch ...series.Series) {
	t.Helper()
	if err := tb.writer.Append(context.Background(), batch); err != nil {
		t.Fatal(err)
	}
}

func (tb *table) flush(t testing.TB) {
	t.Helper()
	if err := tb.writer.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// Table implements ingest.Tables: there is but one.
func (tb *table) Table(context.Context, string, string) (ingest.Appender, func(), error) {
	return tb.writer, func() {}, nil
}

// serve starts the API as the server mounts it.
func (tb *table) serve(t testing.TB) *httptest.Server {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle("POST /api/v1/write", WriteHandler(ingest.New(ingest.Options{Tables: tb}), nil))
	mux.Handle("/api/v1/", Handler(Options{Reader: tb.reader, Version: "test"}))
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

// at is a time of 2026-01-02 as milliseconds since the epoch.
func at(offset time.Duration) int64 {
	return time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC).Add(offset).UnixMilli()
}

// floats is a series with a float sample every 15 s from offset on.
func floats(offset time.Duration, ls labels.Labels, values ...float64) series.Series {
	s := series.Series{Labels: ls}
	for i, v := range values {
		s.Samples = append(s.Samples, series.Sample{Time: series.FromMillis(at(offset) + int64(i)*15_000), Value: v})
	}
	return s
}

func lbl(pairs ...string) labels.Labels {
	return labels.FromStrings(append([]string{labels.MetricName}, pairs...)...)
}

// protoSeries is a series of a remote-write request, its labels in the order
// given.
func protoSeries(samples []prompb.Sample, pairs ...string) prompb.TimeSeries {
	ts := prompb.TimeSeries{Samples: samples}
	for i := 0; i < len(pairs); i += 2 {
		ts.Labels = append(ts.Labels, prompb.Label{Name: pairs[i], Value: pairs[i+1]})
	}
	return ts
}

func encode(t testing.TB, ts ...prompb.TimeSeries) []byte {
	t.Helper()
	body, err := (&prompb.WriteRequest{Timeseries: ts}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// response is a status and a body.
type response struct {
	code   int
	header http.Header
	body   string
}

func do(t testing.TB, req *http.Request) response {
	t.Helper()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response{resp.StatusCode, resp.Header, string(body)}
}

func get(t testing.TB, url string) response {
	t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return do(t, req)
}

// errorOf takes a Prometheus error response apart.
func errorOf(t testing.TB, r response) (errorType, message string) {
	t.Helper()
	var e struct{ Status, ErrorType, Error string }
	if err := json.Unmarshal([]byte(r.body), &e); err != nil {
		t.Fatalf("%d %s: %v", r.code, r.body, err)
	}
	if e.Status != "error" {
		t.Errorf("status %q in %s", e.Status, r.body)
	}
	return e.ErrorType, e.Error
}

// matchers selects one metric.
func matchers(t testing.TB, metric string) []*labels.Matcher {
	t.Helper()
	m, err := labels.NewMatcher(labels.MatchEqual, labels.MetricName, metric)
	if err != nil {
		t.Fatal(err)
	}
	return []*labels.Matcher{m}
}
