package prom

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"

	"cardinalsin/ingest"
	"cardinalsin/ingest/ingesttest"
	"cardinalsin/reader"
	"cardinalsin/series"
	"cardinalsin/storage"
	"cardinalsin/txlog"
)

// sideOf is a table of a sink, which may not be there yet.
func sideOf(sink *ingesttest.Sink, name string) SideTable {
	return func(context.Context) (*reader.Reader, func(), error) {
		if r := sink.Reader("", name); r != nil {
			return r, func() {}, nil
		}
		return nil, nil, fmt.Errorf("%s: %w", name, txlog.ErrNotTable)
	}
}

// withSides is the API over a sink.
func withSides(sink *ingesttest.Sink) http.Handler {
	return Handler(Options{
		Reader:    sink.Reader("", "metrics"),
		Exemplars: sideOf(sink, ingest.ExemplarsTable("metrics")), Metadata: sideOf(sink, ingest.MetadataTable("metrics")),
	})
}

// ask gets a path and returns the status and what the answer holds.
func ask(t *testing.T, h http.Handler, path string, query url.Values) (int, string) {
	t.Helper()
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/api/v1/"+path+"?"+query.Encode(), nil))
	var answer struct {
		Data  json.RawMessage
		Error string
	}
	if err := json.Unmarshal(rec.Body.Bytes(), &answer); err != nil {
		t.Fatalf("%d %s: %v", rec.Code, rec.Body, err)
	}
	return rec.Code, string(answer.Data) + answer.Error
}

func TestQueryExemplars(t *testing.T) {
	sink := ingesttest.New(t, ingesttest.Options{})
	get, post := lbl("latency_bucket", "le", "1", "method", "GET"), lbl("latency_bucket", "le", "1", "method", "POST")
	exemplar := func(of labels.Labels, trace string, ms int64, v float64) series.Exemplar {
		return series.Exemplar{Series: of, Labels: labels.FromStrings("trace_id", trace), Time: series.FromMillis(ms), Value: v}
	}
	if err := sink.Append(context.Background(), "", &ingest.Request{Samples: series.Batch{floats(0, get, 1)}}); err != nil {
		t.Fatal(err)
	}
	h := withSides(sink)
	everything := url.Values{"query": {"latency_bucket"}}
	if code, body := ask(t, h, "query_exemplars", everything); code != 200 || body != "[]" {
		t.Errorf("without exemplars: %d %s", code, body)
	}
	err := sink.Append(context.Background(), "", &ingest.Request{Exemplars: []series.Exemplar{
		exemplar(post, "c", 3000, 0.3), exemplar(get, "b", 2000, 0.2), exemplar(get, "a", 1000, 0.1), exemplar(lbl("other"), "d", 1000, 1),
		{Series: get, Time: series.FromMillis(1500), Value: 0.5},
	}})
	if err != nil {
		t.Fatal(err)
	}
	const a = `{"labels":{"trace_id":"a"},"value":"0.1","timestamp":1}`
	const bare = `{"labels":{},"value":"0.5","timestamp":1.500}`
	const b = `{"labels":{"trace_id":"b"},"value":"0.2","timestamp":2}`
	const c = `{"labels":{"trace_id":"c"},"value":"0.3","timestamp":3}`
	of := func(method string, list ...string) string {
		return `{"seriesLabels":{"__name__":"latency_bucket","le":"1","method":"` + method + `"},"exemplars":[` + strings.Join(list, ",") + `]}`
	}
	for range 2 { // head, then chunks
		for _, q := range []struct {
			query url.Values
			code  int
			want  string
		}{
			{everything, 200, "[" + of("GET", a, bare, b) + "," + of("POST", c) + "]"},
			{url.Values{"query": {`latency_bucket{method="POST"} + latency_bucket{le="1"}`}}, 200, "[" + of("GET", a, bare, b) + "," + of("POST", c) + "]"},
			{url.Values{"query": {`rate(latency_bucket{method="GET"}[5m])`}, "start": {"1.5"}, "end": {"2"}}, 200, "[" + of("GET", bare, b) + "]"},
			{url.Values{"query": {"nothing"}}, 200, "[]"},
			{url.Values{"query": {"("}}, 400, "unclosed left parenthesis"},
			{url.Values{"query": {"latency_bucket"}, "version": {"1"}}, 400, "use as_of"},
			{url.Values{"query": {"latency_bucket"}, "as_of": {"1"}}, 404, "not found"},
		} {
			if code, body := ask(t, h, "query_exemplars", q.query); code != q.code || body != q.want && (code == 200 || !strings.Contains(body, q.want)) {
				t.Errorf("%v: %d %s; want %d %s", q.query, code, body, q.code, q.want)
			}
		}
		sink.Flush()
	}
	table, memory := sideOf(sink, ingest.ExemplarsTable("metrics")), NewMemory(1<<20)
	for _, few := range []exemplars{
		{table, 2, 0, memory},
		{table, 0, 100, memory},
		{table, 0, 0, NewMemory(100)},
	} {
		querier, err := few.ExemplarQuerier(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		var tooMany promql.ErrTooManySamples
		_, err = querier.Select(0, 5000, matchers(t, "latency_bucket"))
		if few.maxSamples > 0 != errors.As(err, &tooMany) || few.maxSamples == 0 && !errors.Is(err, ErrMemory) {
			t.Errorf("a query above its limit: %v", err)
		}
		if few.memory.Used() != 0 {
			t.Errorf("%d bytes are held after the query", few.memory.Used())
		}
	}
}

func TestMetadataAPI(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	sink := ingesttest.New(t, ingesttest.Options{Now: func() time.Time { return now }})
	send := func(list ...series.Metadata) {
		t.Helper()
		if err := sink.Append(context.Background(), "", &ingest.Request{Samples: series.Batch{floats(0, lbl("m"), 1)}, Metadata: list}); err != nil {
			t.Fatal(err)
		}
	}
	send()
	h := withSides(sink)
	if code, body := ask(t, h, "metadata", nil); code != 200 || body != "{}" {
		t.Errorf("without metadata: %d %s", code, body)
	}
	send(series.Metadata{Metric: "a", Type: "counter", Unit: "s", Help: "old"}, series.Metadata{Metric: "b", Help: "two\nlines"})
	now = now.Add(24 * time.Hour)
	send(series.Metadata{Metric: "a", Type: "counter", Unit: "s", Help: "zero is new"})
	const older, newer = `{"type":"counter","unit":"s","help":"old"}`, `{"type":"counter","unit":"s","help":"zero is new"}`
	const b = `"b":[{"type":"unknown","unit":"","help":"two\nlines"}]`
	for range 2 { // head, then chunks
		for _, q := range []struct {
			query url.Values
			code  int
			want  string
		}{
			{nil, 200, `{"a":[` + newer + `,` + older + `],` + b + `}`},
			{url.Values{"metric": {"b"}}, 200, `{` + b + `}`},
			{url.Values{"metric": {"c"}}, 200, `{}`},
			{url.Values{"limit": {"1"}, "limit_per_metric": {"1"}}, 200, `{"a":[` + newer + `]}`},
			{url.Values{"limit": {"0"}}, 200, `{}`},
			{url.Values{"limit": {"x"}}, 400, "limit must be a number"},
			{url.Values{"limit_per_metric": {"x"}}, 400, "limit_per_metric must be a number"},
			{url.Values{"version": {"1"}}, 400, "use as_of"},
		} {
			if code, body := ask(t, h, "metadata", q.query); code != q.code || body != q.want && (code == 200 || !strings.Contains(body, q.want)) {
				t.Errorf("%v: %d %s; want %d %s", q.query, code, body, q.code, q.want)
			}
		}
		sink.Flush()
	}
}

// TestSideTableErrors: what goes wrong below has its status on both paths.
func TestSideTableErrors(t *testing.T) {
	sink := ingesttest.New(t, ingesttest.Options{})
	if err := sink.Append(context.Background(), "", &ingest.Request{Samples: series.Batch{floats(0, lbl("m"), 1)}}); err != nil {
		t.Fatal(err)
	}
	for err, want := range map[error]int{storage.ErrUnavailable: 503, errors.New("unforeseen"): 500} {
		side := func(context.Context) (*reader.Reader, func(), error) { return nil, nil, err }
		h := Handler(Options{Reader: sink.Reader("", "metrics"), Exemplars: side, Metadata: side})
		for path, query := range map[string]url.Values{"metadata": nil, "query_exemplars": {"query": {"m"}}} {
			if code, body := ask(t, h, path, query); code != want || !strings.Contains(body, err.Error()) {
				t.Errorf("%s: %d %s; want %d", path, code, body, want)
			}
		}
	}
}

// TestStartTimestamp: the engine gets starts in milliseconds, rounded down.
func TestStartTimestamp(t *testing.T) {
	for ns, want := range map[int64]int64{0: 0, 1: 0, 999_999: 0, 1_000_000: 1, 1_700_000_000_123_456_789: 1_700_000_000_123, -1: -1, -1_000_000: -1, -1_000_001: -2} {
		if got := startMillis(&series.Sample{Start: ns}); got != want {
			t.Errorf("ST of %d ns is %d, want %d", ns, got, want)
		}
	}
	// The counter began anew between its first two samples, which only the
	// start tells.
	tb := newTable(t)
	s := floats(0, lbl("c"), 30, 45, 60)
	for i, start := range []int64{-30_000, 5_000, 5_000} {
		s.Samples[i].Start = (at(0) + start) * 1_000_000
	}
	tb.append(t, s)
	for _, c := range []struct {
		starts bool
		want   string
	}{{false, `"37.5"`}, {true, `"75"`}} {
		tb.flush(t)
		h := Handler(Options{Reader: tb.reader, StartTimestamps: c.starts})
		_, body := ask(t, h, "query", url.Values{"query": {"increase(c[60s])"}, "time": {fmt.Sprint(float64(at(30*time.Second)) / 1000)}})
		if !strings.Contains(body, c.want) {
			t.Errorf("starts %v: %s; want %s", c.starts, body, c.want)
		}
	}
}
