package prom

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/golang/snappy"
	gocmp "github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/prompb"
	"github.com/prometheus/prometheus/promql"
	promstorage "github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"
	"github.com/prometheus/prometheus/util/teststorage"

	"cardinalsin/chunk"
	"cardinalsin/lease"
	"cardinalsin/series"
	"cardinalsin/storage"
	"cardinalsin/storage/fault"
	"cardinalsin/txlog"
)

// corpus is data around a midnight: counters with a reset, a series that goes
// stale, classic and native histograms, label names that have no column of
// their own.
func corpus(t testing.TB) []series.Series {
	t.Helper()
	const start = -10 * time.Minute
	stale := math.Float64frombits(value.StaleNaN)
	count := func(step, reset float64) []float64 {
		var out []float64
		v := 0.0
		for i := range 80 {
			if v += step; reset > 0 && i == int(reset) {
				v = 1
			}
			out = append(out, v)
		}
		return out
	}
	all := []series.Series{
		floats(start, lbl("up", "instance", "a:1", "job", "api"), count(0, 0)...),
		floats(start, lbl("up", "instance", "b:1", "job", "api"), 1, 1, 0, 1, stale),
		floats(start, lbl("up", "instance", "a:1", "job", "db"), 1, math.Inf(1), math.NaN(), -1),
		floats(start, lbl("http_requests_total", "code", "200", "method", "get"), count(3, 40)...),
		floats(start, lbl("http_requests_total", "code", "500", "method", "get"), count(0.1, 0)...),
		floats(start, lbl("http_requests_total", "code", "200", "method", "post"), count(1, 17)...),
		floats(start, lbl("cased", "Foo", "x", "foo", "y"), 1, 2, 3),
		floats(start, labels.FromStrings(labels.MetricName, "a.metric", "a.label", "ü"), 1, 2, 3),
	}
	for _, le := range []string{"0.1", "1", "+Inf"} {
		all = append(all, floats(start, lbl("lat_bucket", "le", le), count(float64(len(le)), 0)...))
	}
	for i, h := range tsdbutil.GenerateTestHistograms(40) {
		p := prompb.FromIntHistogram(0, h)
		all = append(all, series.Series{Labels: lbl("native", "i", "0"), Samples: []series.Sample{{Time: series.FromMillis(at(start) + int64(i)*15_000), Histogram: marshalHistogram(t, &p)}}})
	}
	for i, h := range tsdbutil.GenerateTestGaugeFloatHistograms(40) {
		p := prompb.FromFloatHistogram(0, h)
		all = append(all, series.Series{Labels: lbl("native", "i", "1"), Samples: []series.Sample{{Time: series.FromMillis(at(start) + int64(i)*15_000), Histogram: marshalHistogram(t, &p)}}})
	}
	return all
}

func marshalHistogram(t testing.TB, p *prompb.Histogram) []byte {
	t.Helper()
	b, err := p.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// upstream loads the same into Prometheus' own storage, by nothing of ours.
func upstream(t testing.TB, all []series.Series) promstorage.SampleAndChunkQueryable {
	t.Helper()
	s := teststorage.New(t)
	app := s.Appender(context.Background())
	for _, x := range all {
		for _, p := range x.Samples {
			at, err := int64(p.Time)/1000, error(nil)
			var h prompb.Histogram
			switch {
			case p.Histogram == nil:
				_, err = app.Append(0, x.Labels, at, p.Value)
			case h.Unmarshal(p.Histogram) != nil:
				t.Fatalf("%s: a histogram that does not decode", x.Labels)
			case h.IsFloatHistogram():
				_, err = app.AppendHistogram(0, x.Labels, at, nil, h.ToFloatHistogram())
			default:
				_, err = app.AppendHistogram(0, x.Labels, at, h.ToIntHistogram(), nil)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := app.Commit(); err != nil {
		t.Fatal(err)
	}
	return s
}

// TestSameAsPrometheus sends the same requests to this API and to upstream's
// over upstream's own storage; status and JSON must be equal. Half of the
// data is in files, half in the head.
func TestSameAsPrometheus(t *testing.T) {
	all := corpus(t)
	tb := newTable(t)
	tb.append(t, all[:len(all)/2]...)
	tb.flush(t)
	tb.append(t, all[len(all)/2:]...)
	ours := Handler(Options{Reader: tb.reader, Version: "v"})
	o := Options{Version: "v"}
	o.EnsureDefaults()
	theirs := serve(o, upstream(t, all))

	now := fmt.Sprint(at(5*time.Minute) / 1000)
	start := fmt.Sprint(at(-12*time.Minute) / 1000)
	var requests []request
	for _, q := range []string{
		`up`, `up{job="api"}`, `up{job!="api"}`, `up{job=~"a.*|x"}`, `up{job!~"a.*"}`, `up{nothing=""}`, `{job="db"}`, `{__name__=~"u.|cased"}`,
		`sum by (method) (rate(http_requests_total[5m]))`, `increase(http_requests_total[10m])`, `irate(http_requests_total[1m])`,
		`resets(http_requests_total[20m])`, `max_over_time(up[20m])`, `count_over_time(up[20m])`, `last_over_time(up[20m])`, `present_over_time(up[20m])`,
		`http_requests_total offset 5m`, `http_requests_total @ ` + start, `http_requests_total @ end()`, `sum(http_requests_total) / on() group_left() sum(up)`,
		`rate(http_requests_total[5m:30s])`, `histogram_quantile(0.9, rate(lat_bucket[5m]))`, `histogram_quantile(0.5, native)`,
		`rate(native[5m])`, `sum(native)`, `histogram_count(native)`, `native`, `native[1m]`, `avg_over_time(native[2m])`, `histogram_count(sum_over_time(native[1m]))`,
		`cased{Foo="x"}`, `cased{foo="x"}`, `cased{foo="y"}`, `{"a.metric"}`, `{"a.metric","a.label"="ü"}`,
		`topk(2, http_requests_total)`, `quantile(0.5, http_requests_total)`, `absent(nope)`, `absent(up{job="api"})`, `count({__name__=~".+"})`,
		`label_replace(up, "x", "$1", "job", "(.*)")`, `up == bool 1`, `up and on(job) up{instance="a:1"}`, `http_requests_total > 20`, `vector(1)`, `1 + 1`, `"text"`, `time()`, `scalar(up)`,
		`changes(up[20m])`, `deriv(http_requests_total[5m])`, `predict_linear(http_requests_total[5m], 60)`, `quantile_over_time(0.9, up[20m])`,
		// Faults of the query.
		`up{`, `sum(`, `rate(up)`, `nope(up)`, `up[5m`, `{}`, `{job=~".*"}`, `up + on(job) up`, `label_replace(up, "x", "$1", "job", "(")`,
	} {
		requests = append(requests,
			request{"query", url.Values{"query": {q}, "time": {now}}},
			request{"query", url.Values{"query": {q}, "time": {fmt.Sprint(at(-5*time.Minute) / 1000)}}},
			request{"query_range", url.Values{"query": {q}, "start": {start}, "end": {now}, "step": {"37s"}}})
	}
	requests = append(requests,
		request{"query", url.Values{"query": {"up"}, "time": {"tomorrow"}}},
		request{"query", url.Values{"query": {"up"}, "timeout": {"x"}}},
		request{"query", url.Values{"query": {"up"}, "time": {now}, "limit": {"1"}, "stats": {""}}},
		request{"query", url.Values{}},
		request{"query_range", url.Values{"query": {"up"}, "start": {now}, "end": {start}, "step": {"1s"}}},
		request{"query_range", url.Values{"query": {"up"}, "start": {"0"}, "end": {now}, "step": {"1s"}}}, // too many points
		request{"query_range", url.Values{"query": {"up"}, "start": {start}, "end": {now}, "step": {"0"}}},
		request{"query_range", url.Values{"query": {"up[1m]"}, "start": {start}, "end": {now}, "step": {"10s"}}},
		request{"format_query", url.Values{"query": {"sum(up)by(job)"}}},
		request{"format_query", url.Values{"query": {"sum("}}},
		request{"parse_query", url.Values{"query": {"sum by (job) (rate(up[5m]))"}}},
		request{"labels", url.Values{}},
		request{"labels", url.Values{"match[]": {"up"}}},
		request{"labels", url.Values{"match[]": {"up", "cased"}, "limit": {"2"}}},
		request{"labels", url.Values{"match[]": {"{"}}},
		request{"labels", url.Values{"start": {start}, "end": {now}}},
		request{"label/job/values", url.Values{}},
		request{"label/__name__/values", url.Values{}},
		request{"label/instance/values", url.Values{"match[]": {`up{job="db"}`}}},
		request{"label/U__a_2e_label/values", url.Values{}},
		request{"label/nope/values", url.Values{}},
		request{"label/job/values", url.Values{"limit": {"1"}}},
		request{"label/bad-name/values", url.Values{}},
		request{"series", url.Values{"match[]": {"up"}}},
		request{"series", url.Values{"match[]": {"up", `{code="200"}`}, "limit": {"2"}}},
		request{"series", url.Values{"match[]": {"up"}, "start": {start}, "end": {now}}},
		request{"series", url.Values{}},
		request{"series", url.Values{"match[]": {"{}"}}},
		request{"query_exemplars", url.Values{"query": {"up"}, "start": {start}, "end": {now}}},
		request{"metadata", url.Values{}},
		request{"rules", url.Values{}},
		request{"alerts", url.Values{}},
		request{"targets", url.Values{}},
		request{"alertmanagers", url.Values{}},
		request{"status/buildinfo", url.Values{}},
		request{"status/flags", url.Values{}},
		request{"status/config", url.Values{}},
	)
	same := 0
	for _, req := range requests {
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			want, got := req.send(t, theirs, method), req.send(t, ours, method)
			if d := gocmp.Diff(want, got); d != "" {
				t.Errorf("%s %s %v: %s", method, req.path, req.form, d)
				continue
			}
			same++
		}
	}
	t.Logf("%d of %d responses equal", same, 2*len(requests))
}

type request struct {
	path string
	form url.Values
}

// do sends the request; answer is nil where the body is no JSON object.
func (r request) do(h http.Handler, method string) (rec *httptest.ResponseRecorder, answer map[string]any) {
	target, body := "/api/v1/"+r.path, ""
	if method == http.MethodPost {
		body = r.form.Encode()
	} else {
		target += "?" + r.form.Encode()
	}
	req := httptest.NewRequest(method, target, strings.NewReader(body))
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	rec = httptest.NewRecorder()
	h.ServeHTTP(rec, req)
	if json.Unmarshal(rec.Body.Bytes(), &answer) != nil {
		answer = nil
	}
	return rec, answer
}

// send returns status and body; what is a set is sorted.
func (r request) send(t testing.TB, h http.Handler, method string) string {
	t.Helper()
	rec, answer := r.do(h, method)
	if answer == nil {
		return fmt.Sprintf("%d %s", rec.Code, rec.Body)
	}
	if d, ok := answer["data"].(map[string]any); ok {
		sortAny(d["result"])
		delete(d, "stats")
	}
	sortAny(answer["data"])
	out, err := json.MarshalIndent(answer, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d %s", rec.Code, out)
}

// sortAny sorts a list of objects: series come in the order of the storage.
func sortAny(v any) {
	list, ok := v.([]any)
	if !ok || len(list) == 0 {
		return
	}
	if _, ok := list[0].(map[string]any); !ok {
		return
	}
	slices.SortFunc(list, func(a, b any) int { return cmp.Compare(text(a), text(b)) })
}

func text(v any) string {
	b, _ := json.Marshal(v) // came from JSON
	return string(b)
}

// TestVersions: version= and as_of= read the past, on every path that reads,
// and say what is wrong with them.
func TestVersions(t *testing.T) {
	tb := newTable(t)
	tb.append(t, floats(0, lbl("m", "k", "old"), 1))
	tb.flush(t) // version 1
	tb.clock.advance(time.Hour)
	then := tb.clock.Now()
	tb.clock.advance(time.Hour)
	tb.append(t, floats(0, lbl("m", "k", "new"), 2))
	tb.flush(t) // version 2
	tb.append(t, floats(0, lbl("m", "k", "head"), 3))
	s := tb.serve(t)
	now := fmt.Sprint(at(0) / 1000)
	for _, c := range []struct{ path, param, want string }{
		{"query?query=count(m)&time=" + now, "", `"3"`},
		{"query?query=count(m)&time=" + now, "version=2", `"2"`},
		{"query?query=count(m)&time=" + now, "version=1", `"1"`},
		{"query?query=count(m)&time=" + now, "as_of=" + then.Format(time.RFC3339), `"1"`},
		{"query?query=count(m)&time=" + now, "as_of=" + fmt.Sprint(then.Unix()), `"1"`},
		{"query_range?query=count(m)&step=1&start=" + now + "&end=" + now, "version=1", `"1"`},
		{"label/k/values?x=", "version=1", `["old"]`},
		{"label/k/values?x=", "version=2", `["new","old"]`},
		{"label/k/values?x=", "", `["head","new","old"]`},
		{"series?match[]=m", "version=1", `[{"__name__":"m","k":"old"}]`},
	} {
		r := get(t, s.URL+"/api/v1/"+c.path+"&"+c.param)
		if r.code != http.StatusOK || !strings.Contains(r.body, c.want) {
			t.Errorf("%s %s: %d %s; want %s", c.path, c.param, r.code, r.body, c.want)
		}
	}
	// In a form, too.
	resp, err := http.PostForm(s.URL+"/api/v1/query", url.Values{"query": {"count(m)"}, "time": {now}, "version": {"1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var got struct {
		Data struct{ Result []struct{ Value [2]any } }
	}
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil || got.Data.Result[0].Value[1] != "1" {
		t.Errorf("form: %v, %v", got, err)
	}

	base, err := tb.log.Snapshot(context.Background(), txlog.Latest())
	if err != nil {
		t.Fatal(err)
	}
	txn := tb.log.Begin(base, txlog.Operation{Name: "VACUUM START"})
	txn.SetDomain(txlog.WatermarkDomain, txlog.EncodeWatermark(2))
	if _, err := txn.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
	paths := []string{"query?query=m&time=" + now, "query_range?query=m&step=1&start=" + now + "&end=" + now, "labels?x=", "label/k/values?x=", "series?match[]=m"}
	for _, c := range []struct {
		param string
		code  int
	}{
		{"version=1", http.StatusGone},
		{"version=99", http.StatusNotFound},
		{"as_of=2020-01-01T00:00:00Z", http.StatusNotFound},
		{"version=-1", http.StatusBadRequest},
		{"version=x%22%00", http.StatusBadRequest},
		{"as_of=yesterday", http.StatusBadRequest},
		{"as_of=NaN", http.StatusBadRequest},
		{"version=1&as_of=1", http.StatusBadRequest},
	} {
		for _, path := range paths {
			r := get(t, s.URL+"/api/v1/"+path+"&"+c.param)
			if r.code != c.code {
				t.Errorf("%s %s: %d %s; want %d", path, c.param, r.code, r.body, c.code)
			}
			if _, message := errorOf(t, r); message == "" {
				t.Errorf("%s %s: no reason", path, c.param)
			}
		}
	}
}

// TestQuerierHoldsOneView: all selectors of a query read one version, and its
// head, whatever is written and flushed meanwhile.
func TestQuerierHoldsOneView(t *testing.T) {
	ctx := context.Background()
	tb := newTable(t)
	tb.append(t, floats(0, lbl("a"), 1), floats(0, lbl("b"), 1))
	q, err := NewQueryable(tb.reader).Querier(at(0), at(0))
	if err != nil {
		t.Fatal(err)
	}
	if got := drain(t, q.Select(ctx, true, nil, matchers(t, "a")...)); got != "a 1;" {
		t.Errorf("first selector: %s", got)
	}
	tb.append(t, floats(0, lbl("b"), 2), floats(0, lbl("b", "k", "new"), 3))
	tb.flush(t)
	if got := drain(t, q.Select(ctx, true, nil, matchers(t, "b")...)); got != "b 1;" {
		t.Errorf("second selector: %s", got)
	}
	names, _, err := q.LabelNames(ctx, nil)
	if err != nil || len(names) != 1 {
		t.Errorf("label names: %v, %v", names, err)
	}
	for range 2 {
		if err := q.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if set := q.Select(ctx, true, nil, matchers(t, "b")...); set.Next() || set.Err() == nil {
		t.Error("a closed querier answers")
	}
	q, err = NewQueryable(tb.reader).Querier(at(0), at(0))
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	if got := drain(t, q.Select(ctx, true, nil, matchers(t, "b")...)); got != "b 2;b 3;" {
		t.Errorf("the next query: %s", got)
	}
}

// drain prints the name and the first value of each series.
func drain(t *testing.T, set promstorage.SeriesSet) string {
	t.Helper()
	var out strings.Builder
	for set.Next() {
		it := set.At().Iterator(nil)
		it.Next()
		_, v := it.At()
		fmt.Fprintf(&out, "%s %v;", set.At().Labels().Get(labels.MetricName), v)
	}
	if set.Err() != nil {
		t.Fatal(set.Err())
	}
	return out.String()
}

// TestMilliseconds: Prometheus sees the last sample of each millisecond, at
// the bounds of a query too, and negative times are rounded down.
func TestMilliseconds(t *testing.T) {
	t.Run("head", func(t *testing.T) { testMilliseconds(t, false) })
	t.Run("file", func(t *testing.T) { testMilliseconds(t, true) })
}

func testMilliseconds(t *testing.T, stored bool) {
	tb := newTable(t)
	s := series.Series{Labels: lbl("m")}
	for _, us := range []int64{-1001, -1000, -1, 0, 999, 1000, 1001, 1999, 2000} {
		s.Samples = append(s.Samples, series.Sample{Time: series.Timestamp(us), Value: float64(us)})
	}
	tb.append(t, s)
	if stored {
		tb.flush(t)
	}
	for _, c := range []struct {
		mint, maxt int64
		want       string
	}{
		{-10, 10, "-2:-1001 -1:-1 0:999 1:1999 2:2000 "},
		{-1, 1, "-1:-1 0:999 1:1999 "},
		{1, 1, "1:1999 "},
		{3, 9, ""},
	} {
		q, err := NewQueryable(tb.reader).Querier(c.mint, c.maxt)
		if err != nil {
			t.Fatal(err)
		}
		var got strings.Builder
		set := q.Select(context.Background(), false, nil, matchers(t, "m")...)
		for set.Next() {
			for it := set.At().Iterator(nil); it.Next() != chunkenc.ValNone; {
				ms, v := it.At()
				fmt.Fprintf(&got, "%d:%v ", ms, v)
			}
		}
		if set.Err() != nil || got.String() != c.want {
			t.Errorf("[%d, %d]: %q, %v; want %q", c.mint, c.maxt, got.String(), set.Err(), c.want)
		}
		if err := q.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestHistogramsAreCopies: the engine computes in what an iterator gives it.
func TestHistogramsAreCopies(t *testing.T) {
	tb := newTable(t)
	for i, p := range []prompb.Histogram{
		prompb.FromIntHistogram(0, tsdbutil.GenerateTestHistogram(1)),
		prompb.FromFloatHistogram(0, tsdbutil.GenerateTestFloatHistogram(1)),
	} {
		tb.append(t, series.Series{Labels: lbl("m"), Samples: []series.Sample{{Time: series.FromMillis(at(0) + int64(i)), Histogram: marshalHistogram(t, &p)}}})
	}
	q, err := NewQueryable(tb.reader).Querier(at(0), at(0)+1)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	set := q.Select(context.Background(), false, nil, matchers(t, "m")...)
	if !set.Next() {
		t.Fatal(set.Err())
	}
	read := func(spoil bool) (out []string) {
		for it := set.At().Iterator(nil); it.Next() != chunkenc.ValNone; {
			_, fh := it.AtFloatHistogram(nil)
			out = append(out, fh.String())
			if spoil {
				fh.PositiveBuckets[0], fh.PositiveSpans[0].Length, fh.Count = -1, 99, -1
			}
		}
		return out
	}
	want := read(true)
	if d := gocmp.Diff(want, read(false)); d != "" || len(want) != 2 {
		t.Errorf("changed by its reader: %s", d)
	}
}

// TestTableErrors: what goes wrong below upstream's code has its own status on
// every path, never that of a bad query.
func TestTableErrors(t *testing.T) {
	now := fmt.Sprint(at(0) / 1000)
	paths := []string{"query?query=m&time=" + now, "query_range?query=m&step=1&start=" + now + "&end=" + now, "labels", "label/k/values", "series?match[]=m"}
	for _, c := range []struct {
		name  string
		spoil func(*testing.T, *table)
		code  int
	}{
		{"file missing", func(t *testing.T, tb *table) {
			for o, err := range tb.store.List(context.Background(), "tenant/metrics/date=", "") {
				if err != nil {
					t.Fatal(err)
				}
				if err := tb.store.Delete(context.Background(), o.Key); err != nil {
					t.Fatal(err)
				}
			}
		}, http.StatusInternalServerError},
		{"store down for data", func(_ *testing.T, tb *table) {
			tb.store.Inject(fault.Fault{Op: storage.OpGetRange, Times: -1, Mode: fault.Before})
		}, http.StatusServiceUnavailable},
		{"store down for the log", func(_ *testing.T, tb *table) {
			tb.store.Inject(fault.Fault{Op: storage.OpGet, Times: -1, Mode: fault.Before})
		}, http.StatusServiceUnavailable},
		{"store refuses us", func(_ *testing.T, tb *table) {
			tb.store.Inject(fault.Fault{Op: storage.OpGetRange, Times: -1, Mode: fault.Before, Err: storage.ErrPermission})
		}, http.StatusInternalServerError},
		{"pin lost on the way", func(_ *testing.T, tb *table) {
			tb.store.Inject(fault.Fault{Op: storage.OpGetRange, Times: -1, OnCall: func(context.Context, fault.Call) { tb.clock.advance(lease.TTL + time.Second) }})
		}, http.StatusServiceUnavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			tb := newTable(t)
			tb.append(t, floats(0, lbl("m", "k", "v"), 1))
			tb.flush(t)
			s := tb.serve(t)
			for _, path := range paths {
				if r := get(t, s.URL+"/api/v1/"+path); r.code != http.StatusOK {
					t.Fatalf("%s: %d %s", path, r.code, r.body)
				}
			}
			c.spoil(t, tb)
			for _, path := range paths {
				r := get(t, s.URL+"/api/v1/"+path)
				if r.code != c.code {
					t.Errorf("%s: %d %s; want %d", path, r.code, r.body, c.code)
				}
				errorOf(t, r)
			}
		})
	}
}

func TestStatusOf(t *testing.T) {
	for _, c := range []struct {
		err  error
		code int // 0: upstream's own
	}{
		{errors.New("bad query"), 0},
		{promql.ErrTooManySamples("x"), 0},
		{tableError{context.Canceled}, 0},
		{errNotHere, http.StatusNotImplemented},
		{tableError{fmt.Errorf("x: %w", txlog.ErrVersionNotFound)}, http.StatusNotFound},
		{tableError{&txlog.VacuumedError{Version: 1, Oldest: 2}}, http.StatusGone},
		{fmt.Errorf("expanding series: %w", tableError{lease.ErrPinLost}), http.StatusServiceUnavailable},
		{promql.ErrStorage{Err: errors.New("x")}, 0},
		{tableError{context.DeadlineExceeded}, http.StatusServiceUnavailable},
		{tableError{storage.ErrUnknownOutcome}, http.StatusServiceUnavailable},
		{tableError{chunk.ErrCorrupt}, http.StatusInternalServerError},
		{tableError{errors.New("unforeseen")}, http.StatusInternalServerError},
	} {
		code, override := statusOf(0, c.err)
		if code != c.code || override != (c.code != 0) {
			t.Errorf("%v: %d, %v; want %d", c.err, code, override, c.code)
		}
	}
}

// TestEveryPathAnswers: no path of upstream's API panics for want of something
// that Prometheus has and a table has not, and no page of another origin may
// read any.
func TestEveryPathAnswers(t *testing.T) {
	tb := newTable(t)
	h := Handler(Options{Reader: tb.reader})
	datadriven.RunTest(t, "testdata/paths", func(t *testing.T, d *datadriven.TestData) string {
		var got strings.Builder
		for path := range strings.FieldsSeq(d.Input) {
			fmt.Fprintf(&got, "%-28s", path)
			for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodOptions} {
				ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
				req := httptest.NewRequestWithContext(ctx, method, "/api/v1/"+path, nil)
				req.Header.Set("Origin", "https://elsewhere.example")
				rec := httptest.NewRecorder()
				h.ServeHTTP(rec, req)
				cancel()
				fmt.Fprintf(&got, " %s %d", method, rec.Code)
				if o := rec.Header().Get("Access-Control-Allow-Origin"); o != "" {
					t.Errorf("%s %s may be read by %s", method, path, o)
				}
			}
			got.WriteByte('\n')
		}
		return got.String()
	})
}

func TestQueriesAtATimeAreBounded(t *testing.T) {
	g := make(gate, 1)
	if _, err := g.Insert(context.Background(), "a"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if _, err := g.Insert(ctx, "b"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second query ran: %v", err)
	}
	g.Delete(0)
	if _, err := g.Insert(context.Background(), "c"); err != nil {
		t.Error(err)
	}
}

// TestRemoteRead: another Prometheus reads samples, and by version too.
func TestRemoteRead(t *testing.T) {
	tb := newTable(t)
	tb.append(t, floats(0, lbl("m", "k", "a"), 1, 2))
	tb.flush(t)
	tb.append(t, floats(0, lbl("m", "k", "b"), 3))
	s := tb.serve(t)
	read := func(params string) string {
		t.Helper()
		r := do(t, readRequest(t, s.URL+"/api/v1/read"+params))
		if r.code != http.StatusOK {
			t.Fatalf("%d %s", r.code, r.body)
		}
		data, err := snappy.Decode(nil, []byte(r.body))
		if err != nil {
			t.Fatal(err)
		}
		var got prompb.ReadResponse
		if err := got.Unmarshal(data); err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, ts := range got.Results[0].Timeseries {
			line := ts.Labels[1].Name + "=" + ts.Labels[1].Value
			for _, p := range ts.Samples {
				line += fmt.Sprintf(" %v", p.Value)
			}
			out = append(out, line+";")
		}
		slices.Sort(out)
		return strings.Join(out, "")
	}
	if got := read(""); got != "k=a 1 2;k=b 3;" {
		t.Errorf("latest: %s", got)
	}
	if got := read("?version=1"); got != "k=a 1 2;" {
		t.Errorf("version 1: %s", got)
	}
}

// readRequest asks for all of a metric m, in one of the forms.
func readRequest(t *testing.T, url string, forms ...prompb.ReadRequest_ResponseType) *http.Request {
	t.Helper()
	body, err := (&prompb.ReadRequest{AcceptedResponseTypes: forms, Queries: []*prompb.Query{{
		StartTimestampMs: at(0), EndTimestampMs: at(time.Minute),
		Matchers: []*prompb.LabelMatcher{{Name: "__name__", Value: "m"}},
	}}}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, url, bytes.NewReader(snappy.Encode(nil, body)))
	if err != nil {
		t.Fatal(err)
	}
	return req
}

// TestRemoteReadErrors: remote read has the codes of the other paths.
func TestRemoteReadErrors(t *testing.T) {
	tb := newTable(t)
	tb.append(t, floats(0, lbl("m", "k", "a"), 1, 2))
	tb.flush(t)
	for _, c := range []struct {
		params string
		o      Options
		code   int
		chunks int // 0: as code
	}{
		{"", Options{}, http.StatusOK, 0},
		{"", Options{QueryBytes: 10}, http.StatusUnprocessableEntity, 0},
		{"", Options{Memory: NewMemory(10)}, http.StatusUnprocessableEntity, 0},
		{"", Options{MaxSamples: 1}, http.StatusBadRequest, http.StatusOK},
		{"?version=99", Options{}, http.StatusNotFound, 0},
		{"?version=x", Options{}, http.StatusBadRequest, 0},
	} {
		c.o.Reader = tb.reader
		for _, form := range []prompb.ReadRequest_ResponseType{prompb.ReadRequest_SAMPLES, prompb.ReadRequest_STREAMED_XOR_CHUNKS} {
			rec := httptest.NewRecorder()
			Handler(c.o).ServeHTTP(rec, readRequest(t, "/api/v1/read"+c.params, form))
			want := c.code
			if form == prompb.ReadRequest_STREAMED_XOR_CHUNKS && c.chunks != 0 {
				want = c.chunks // upstream has no such limit for them
			}
			if rec.Code != want || rec.Body.Len() == 0 {
				t.Errorf("%q as %s: %d %s; want %d", c.params, form, rec.Code, rec.Body, want)
			}
		}
	}
}
