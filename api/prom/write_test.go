package prom

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/golang/snappy"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/prompb"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"
	"golang.org/x/sync/semaphore"
	"google.golang.org/protobuf/encoding/protowire"

	"cardinalsin/ingest"
	"cardinalsin/ingest/ingesttest"
	"cardinalsin/series"
	"cardinalsin/storage"
	"cardinalsin/txlog"
	"cardinalsin/wal"
	"cardinalsin/writer"
)

const (
	contentV1 = "application/x-protobuf"
	contentV2 = "application/x-protobuf;proto=io.prometheus.write.v2.Request"
)

// sendTo gives a handler a body that is compressed already.
func sendTo(h http.Handler, contentType string, body []byte) *httptest.ResponseRecorder {
	req := httptest.NewRequest(http.MethodPost, "/api/v1/write", bytes.NewReader(body))
	req.Header.Set("Content-Type", contentType)
	req.Header.Set("Content-Encoding", "snappy")
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, req)
	return rec
}

// requestV2 makes a 2.0 request of series as 1.0 has them, each with the
// start.
func requestV2(start int64, ts ...prompb.TimeSeries) *writev2.Request {
	symbols := writev2.NewSymbolTable()
	req := &writev2.Request{}
	for i := range ts {
		s := writev2.TimeSeries{}
		for _, l := range ts[i].Labels {
			s.LabelsRefs = append(s.LabelsRefs, symbols.Symbolize(l.Name), symbols.Symbolize(l.Value))
		}
		for _, p := range ts[i].Samples {
			s.Samples = append(s.Samples, writev2.Sample{Value: p.Value, Timestamp: p.Timestamp, StartTimestamp: start})
		}
		for _, h := range ts[i].Histograms {
			s.Histograms = append(s.Histograms, histogramV2(start, h))
		}
		for _, e := range ts[i].Exemplars {
			x := writev2.Exemplar{Value: e.Value, Timestamp: e.Timestamp}
			for _, l := range e.Labels {
				x.LabelsRefs = append(x.LabelsRefs, symbols.Symbolize(l.Name), symbols.Symbolize(l.Value))
			}
			s.Exemplars = append(s.Exemplars, x)
		}
		req.Timeseries = append(req.Timeseries, s)
	}
	req.Symbols = symbols.Symbols()
	return req
}

// histogramV2 converts by the bytes, which the two versions share; the
// differential fuzz test checks that they do.
func histogramV2(start int64, h prompb.Histogram) writev2.Histogram {
	data, err := h.Marshal()
	var out writev2.Histogram
	if err = errors.Join(err, out.Unmarshal(data)); err != nil {
		panic(err)
	}
	out.StartTimestamp = start
	return out
}

type marshaler interface{ Marshal() ([]byte, error) }

func pack(t testing.TB, m marshaler) []byte {
	t.Helper()
	data, err := m.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return snappy.Encode(nil, data)
}

// TestWriteRefuses: what will never work is 4xx with the reason, it is
// counted, and nothing of the request is stored, also not its sound part.
func TestWriteRefuses(t *testing.T) {
	one := []prompb.Sample{{Timestamp: at(0), Value: 1}}
	sound := protoSeries(one, "__name__", "sound")
	badHistogram := prompb.FromIntHistogram(at(0), tsdbutil.GenerateTestHistogram(1))
	badHistogram.PositiveDeltas = badHistogram.PositiveDeltas[1:]
	badFloatHistogram := prompb.FromFloatHistogram(at(0), tsdbutil.GenerateTestFloatHistogram(1))
	badFloatHistogram.PositiveCounts[0] = -1
	unknownSchema := prompb.FromIntHistogram(at(0), tsdbutil.GenerateTestHistogram(1))
	unknownSchema.Schema = 77
	hugeHistogram := prompb.Histogram{Timestamp: at(0), PositiveDeltas: make([]int64, 1<<20)}
	withHistogram := func(h prompb.Histogram) prompb.TimeSeries {
		return prompb.TimeSeries{Labels: sound.Labels, Histograms: []prompb.Histogram{h}}
	}
	withExemplar := func(at int64, pairs ...string) prompb.TimeSeries {
		ts := sound
		ts.Exemplars = []prompb.Exemplar{{Timestamp: at, Labels: protoSeries(nil, pairs...).Labels}}
		return ts
	}

	for _, c := range []struct {
		name   string
		ts     prompb.TimeSeries
		reason ingest.Reason
		code   int
		says   string
	}{
		{"no metric name", protoSeries(one, "job", "x"), "no_metric_name", 400, "no metric name"},
		{"no labels", protoSeries(one), "no_metric_name", 400, "no metric name"},
		{"empty metric name", protoSeries(one, "__name__", ""), "no_metric_name", 400, "no metric name"},
		{"duplicate label", protoSeries(one, "__name__", "m", "a", "1", "a", "2"), "duplicate_label", 400, "duplicate label name"},
		{"duplicate label, same value", protoSeries(one, "__name__", "m", "a", "1", "a", "1"), "duplicate_label", 400, "duplicate label name"},
		{"duplicate label, apart", protoSeries(one, "a", "1", "__name__", "m", "a", "2"), "duplicate_label", 400, "duplicate label name"},
		{"empty label name", protoSeries(one, "", "x", "__name__", "m"), "invalid_label", 400, "invalid label"},
		{"label is no UTF-8", protoSeries(one, "__name__", "m", "a", "\xff"), "invalid_label", 400, "invalid label"},
		{"label name is no UTF-8", protoSeries(one, "__name__", "m", "a\xff", "1"), "invalid_label", 400, "invalid label"},
		{"huge label", protoSeries(one, "__name__", "m", "a", strings.Repeat("x", 17<<20)), "invalid_label", 400, "invalid label"},
		{"no samples, bad labels", protoSeries(nil, "job", "x"), "no_metric_name", 400, "no metric name"},
		{"time before the year 1", protoSeries([]prompb.Sample{{Timestamp: math.MinInt64}}, "__name__", "m"), "invalid_sample", 400, "out of range"},
		{"time after the year 9999", protoSeries([]prompb.Sample{{Timestamp: math.MaxInt64}}, "__name__", "m"), "invalid_sample", 400, "out of range"},
		{"histogram with missing buckets", withHistogram(badHistogram), "invalid_histogram", 400, "histogram"},
		{"histogram with a negative bucket", withHistogram(badFloatHistogram), "invalid_histogram", 400, "histogram"},
		{"histogram of an unknown schema", withHistogram(unknownSchema), "invalid_histogram", 400, "histogram"},
		{"histogram after the year 9999", withHistogram(prompb.Histogram{Timestamp: math.MaxInt64}), "invalid_sample", 400, "out of range"},
		{"histogram of a million buckets", withHistogram(hugeHistogram), "too_large", 413, "histogram"},
		{"exemplar after the year 9999", withExemplar(math.MaxInt64, "trace_id", "1"), "invalid_sample", 400, "out of range"},
		{"exemplar with a duplicate label", withExemplar(at(0), "a", "1", "a", "2"), "duplicate_label", 400, "duplicate label name"},
		{"exemplar is no UTF-8", withExemplar(at(0), "a", "\xff"), "invalid_label", 400, "invalid label"},
	} {
		t.Run(c.name, func(t *testing.T) {
			sink := ingesttest.New(t, ingesttest.Options{})
			h := WriteHandler(sink, nil)
			n := 0
			for _, ts := range [][]prompb.TimeSeries{{c.ts}, {sound, c.ts}, {c.ts, sound}} {
				for contentType, body := range map[string][]byte{
					contentV1: pack(t, &prompb.WriteRequest{Timeseries: ts}),
					contentV2: pack(t, requestV2(0, ts...)),
				} {
					n++
					r := sendTo(h, contentType, body)
					if r.Code != c.code || !strings.Contains(r.Body.String(), c.says) {
						t.Errorf("%s: %d %.300s; want %d and %q", contentType, r.Code, r.Body, c.code, c.says)
					}
					if got := sink.Refused(c.reason); got != n {
						t.Errorf("%d of %d refusals are counted as %s", got, n, c.reason)
					}
				}
			}
			if sink.Tables() != 0 {
				t.Error("something was stored")
			}
		})
	}
}

// TestWriteRefusesV2 has what only 2.0 can say.
func TestWriteRefusesV2(t *testing.T) {
	sample := []writev2.Sample{{Timestamp: at(0)}}
	symbols := []string{"", "__name__", "m"}
	name := []uint32{1, 2}
	for _, c := range []struct {
		name   string
		req    writev2.Request
		reason ingest.Reason
	}{
		{"odd references", writev2.Request{Symbols: symbols, Timeseries: []writev2.TimeSeries{{LabelsRefs: []uint32{1, 2, 1}, Samples: sample}}}, "malformed"},
		{"reference beyond the symbols", writev2.Request{Symbols: symbols, Timeseries: []writev2.TimeSeries{{LabelsRefs: []uint32{1, 3}, Samples: sample}}}, "malformed"},
		{"no symbols", writev2.Request{Timeseries: []writev2.TimeSeries{{LabelsRefs: name, Samples: sample}}}, "malformed"},
		{"first symbol is not empty", writev2.Request{Symbols: symbols[1:], Timeseries: []writev2.TimeSeries{{LabelsRefs: []uint32{0, 1}, Samples: sample}}}, "malformed"},
		{"help beyond the symbols", writev2.Request{Symbols: symbols, Timeseries: []writev2.TimeSeries{{LabelsRefs: name, Samples: sample, Metadata: writev2.Metadata{HelpRef: 3}}}}, "malformed"},
		{"unit beyond the symbols", writev2.Request{Symbols: symbols, Timeseries: []writev2.TimeSeries{{LabelsRefs: name, Samples: sample, Metadata: writev2.Metadata{UnitRef: 1 << 31}}}}, "malformed"},
		{"unknown metric type", writev2.Request{Symbols: symbols, Timeseries: []writev2.TimeSeries{{LabelsRefs: name, Samples: sample, Metadata: writev2.Metadata{Type: 8}}}}, "unsupported"},
		{"exemplar with odd references", writev2.Request{Symbols: symbols, Timeseries: []writev2.TimeSeries{{LabelsRefs: name, Exemplars: []writev2.Exemplar{{LabelsRefs: name[:1]}}}}}, "malformed"},
		{"exemplar beyond the symbols", writev2.Request{Symbols: symbols, Timeseries: []writev2.TimeSeries{{LabelsRefs: name, Exemplars: []writev2.Exemplar{{LabelsRefs: []uint32{3, 3}}}}}}, "malformed"},
		{"start that nanoseconds cannot hold", writev2.Request{Symbols: symbols, Timeseries: []writev2.TimeSeries{{LabelsRefs: name, Samples: []writev2.Sample{{StartTimestamp: math.MaxInt64 / 1000}}}}}, "invalid_sample"},
	} {
		t.Run(c.name, func(t *testing.T) {
			sink := ingesttest.New(t, ingesttest.Options{})
			r := sendTo(WriteHandler(sink, nil), contentV2, pack(t, &c.req))
			if r.Code != http.StatusBadRequest || r.Body.Len() == 0 || sink.Refused(c.reason) != 1 || sink.Tables() != 0 {
				t.Errorf("%d %s; %d counted, %d tables", r.Code, r.Body, sink.Refused(c.reason), sink.Tables())
			}
			for _, h := range []string{"Samples", "Histograms", "Exemplars"} {
				if got := r.Header().Get("X-Prometheus-Remote-Write-" + h + "-Written"); got != "0" {
					t.Errorf("%s written: %q", h, got)
				}
			}
		})
	}
}

// TestWriteRefusesBytes: bodies that are no request, and those that would be a
// large one; methods, media types and encodings that are not the protocol's.
func TestWriteRefusesBytes(t *testing.T) {
	ts := protoSeries([]prompb.Sample{{Timestamp: at(0)}}, "__name__", "m")
	v1, v2 := encode(t, ts), []byte(nil)
	v2, err := requestV2(0, ts).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	snap := func(b []byte) []byte { return snappy.Encode(nil, b) }
	for _, c := range []struct {
		name, method, contentType, encoding string
		body                                []byte
		code                                int
		reason                              ingest.Reason
	}{
		{"empty body", "POST", contentV1, "snappy", nil, 400, "malformed"},
		{"no snappy", "POST", contentV1, "snappy", []byte("hello"), 400, "malformed"},
		{"cut snappy", "POST", contentV1, "snappy", snap(v1)[:len(snap(v1))-1], 400, "malformed"},
		{"snappy that claims 4 GiB", "POST", contentV1, "snappy", []byte{0xff, 0xff, 0xff, 0xff, 0x0f, 0}, 413, "too_large"},
		{"snappy that claims 32 MiB", "POST", contentV1, "snappy", append(protowire.AppendVarint(nil, 32<<20), 0), 400, "malformed"},
		{"33 MiB of zeros", "POST", contentV1, "snappy", snap(make([]byte, 33<<20)), 413, "too_large"},
		{"over 32 MiB on the wire", "POST", contentV1, "snappy", make([]byte, 33<<20), 413, "too_large"},
		{"no protobuf", "POST", contentV1, "snappy", snap([]byte("hello")), 400, "malformed"},
		{"no protobuf, 2.0", "POST", contentV2, "snappy", snap([]byte("hello")), 400, "malformed"},
		{"cut protobuf", "POST", contentV1, "snappy", snap(v1[:len(v1)-1]), 400, "malformed"},
		{"cut protobuf, 2.0", "POST", contentV2, "snappy", snap(v2[:len(v2)-1]), 400, "malformed"},
		{"wrong wire type", "POST", contentV1, "snappy", snap([]byte{0x08, 1}), 400, "malformed"},
		{"wrong wire type, 2.0", "POST", contentV2, "snappy", snap([]byte{0x28, 1}), 400, "malformed"},
		{"two million empty series", "POST", contentV1, "snappy", snap(bytes.Repeat([]byte{0x0a, 0}, 1<<21)), 413, "too_large"},
		{"JSON", "POST", "application/json", "snappy", snap(v1), 415, "media_type"},
		{"unknown message", "POST", contentV1 + ";proto=a.b", "snappy", snap(v1), 415, "media_type"},
		{"gzip", "POST", contentV1, "gzip", snap(v1), 415, "media_type"},
		{"GET", "GET", "", "", nil, 405, "method"},
		{"tenant that leaves the root", "POST", contentV1, "snappy", snap(v1), 400, "invalid_tenant"},
	} {
		t.Run(c.name, func(t *testing.T) {
			sink := ingesttest.New(t, ingesttest.Options{})
			req := httptest.NewRequest(c.method, "/", bytes.NewReader(c.body))
			req.Header.Set("Content-Type", c.contentType)
			req.Header.Set("Content-Encoding", c.encoding)
			if c.reason == "invalid_tenant" {
				req.Header.Set(ingest.TenantHeader, "../other")
			}
			rec := httptest.NewRecorder()
			WriteHandler(sink, nil).ServeHTTP(rec, req)
			if rec.Code != c.code || rec.Body.Len() == 0 || sink.Refused(c.reason) != 1 || sink.Tables() != 0 {
				t.Errorf("%d %s; want %d; %d refusals counted, %d tables", rec.Code, rec.Body, c.code, sink.Refused(c.reason), sink.Tables())
			}
		})
	}
	// A request of the other version is an empty one, as the specification
	// wants it, and there is nothing to store.
	for name, c := range map[string]struct {
		contentType string
		body        []byte
	}{"no series": {contentV1, nil}, "no series, 2.0": {contentV2, nil}, "1.0 as 2.0": {contentV2, v1}, "2.0 as 1.0": {contentV1, v2}} {
		t.Run(name, func(t *testing.T) {
			sink := ingesttest.New(t, ingesttest.Options{})
			if r := sendTo(WriteHandler(sink, nil), c.contentType, snap(c.body)); r.Code != http.StatusNoContent || sink.Tables() != 0 {
				t.Errorf("%d %s, %d tables", r.Code, r.Body, sink.Tables())
			}
		})
	}
}

// TestSnappyBomb: a body that claims more than its bytes can hold is refused
// before there is memory for it.
func TestSnappyBomb(t *testing.T) {
	body := append(protowire.AppendVarint(nil, 32<<20), make([]byte, 1000)...)
	h := WriteHandler(ingesttest.New(t, ingesttest.Options{}), nil)
	sendTo(h, contentV1, body) // what is made once
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r := sendTo(h, contentV1, body)
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; r.Code != http.StatusBadRequest || n > 1<<20 {
		t.Errorf("%d %s; %d bytes were allocated", r.Code, r.Body, n)
	}
}

// TestWriteStatus: what the sink says becomes the status.
func TestWriteStatus(t *testing.T) {
	body := pack(t, &prompb.WriteRequest{Timeseries: []prompb.TimeSeries{protoSeries([]prompb.Sample{{Timestamp: at(0)}}, "__name__", "m")}})
	for _, c := range []struct {
		err  error
		code int
	}{
		{nil, http.StatusNoContent},
		{series.ErrNoMetricName, http.StatusBadRequest},
		{writer.ErrInvalidSample, http.StatusBadRequest},
		{writer.ErrTooManyPartitions, http.StatusBadRequest},
		{ingest.ErrLimit, http.StatusBadRequest},
		{wal.ErrRecordTooLarge, http.StatusRequestEntityTooLarge},
		{writer.ErrOverloaded, http.StatusTooManyRequests},
		{ingest.ErrRate, http.StatusTooManyRequests},
		{wal.ErrFull, http.StatusServiceUnavailable},
		{wal.ErrFailed, http.StatusServiceUnavailable},
		{txlog.ErrFenced, http.StatusServiceUnavailable},
		{storage.ErrUnavailable, http.StatusServiceUnavailable},
		{context.Canceled, http.StatusServiceUnavailable},
		{errors.New("unforeseen"), http.StatusServiceUnavailable},
	} {
		t.Run(fmt.Sprint(c.err), func(t *testing.T) {
			sink := ingesttest.New(t, ingesttest.Options{})
			sink.FailWith(c.err)
			rec := sendTo(WriteHandler(sink, nil), contentV1, body)
			if rec.Code != c.code {
				t.Errorf("%d %s; want %d", rec.Code, rec.Body, c.code)
			}
			if got := rec.Header().Get("Retry-After"); (got == "10") != (c.code == http.StatusTooManyRequests) {
				t.Errorf("Retry-After is %q", got)
			}
			if c.err != nil && !strings.Contains(rec.Body.String(), c.err.Error()) {
				t.Errorf("no reason in %q", rec.Body)
			}
		})
	}
}

// TestWriteClientGone: a client that hangs up is no failure of ours to log;
// one of the store is.
func TestWriteClientGone(t *testing.T) {
	body := pack(t, requestV2(0, protoSeries([]prompb.Sample{{Timestamp: at(0)}}, "__name__", "m")))
	for _, gone := range []bool{true, false} {
		sink := ingesttest.New(t, ingesttest.Options{})
		sink.FailWith(context.Canceled)
		var log bytes.Buffer
		ctx, cancel := context.WithCancel(context.Background())
		if gone {
			cancel()
		}
		req := httptest.NewRequestWithContext(ctx, http.MethodPost, "/", bytes.NewReader(body))
		req.Header.Set("Content-Type", contentV2)
		WriteHandler(sink, slog.New(slog.NewTextHandler(&log, nil))).ServeHTTP(httptest.NewRecorder(), req)
		if (log.Len() == 0) != gone {
			t.Errorf("client gone: %v; the log says %q", gone, log.String())
		}
		cancel()
	}
}

// TestWriteWaitsForMemory: requests that find no memory are told to come
// again, and give back what they had.
func TestWriteWaitsForMemory(t *testing.T) {
	sink := ingesttest.New(t, ingesttest.Options{})
	s := &writeStore{sink: sink, plain: semaphore.NewWeighted(1 << 20), decoded: semaphore.NewWeighted(1 << 20)}
	body := pack(t, requestV2(0, protoSeries([]prompb.Sample{{Timestamp: at(0)}}, "__name__", "m")))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := (&share{of: s.plain}).take(ctx, 1); err != nil {
		t.Fatalf("free memory: %v", err)
	}
	s.plain.Release(1)
	m := share{of: s.plain}
	if err := m.take(ctx, 2<<20); !errors.Is(err, context.Canceled) {
		t.Errorf("a client that is gone: %v", err)
	}
	if err := m.tryTake(2 << 20); !errors.Is(err, writer.ErrOverloaded) {
		t.Errorf("no memory: %v", err)
	}
	if r := sendTo(s.unpack(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.plain.TryAcquire(1 << 20) {
			t.Error("a body takes no memory")
		}
		resp, err := s.Store(r, "io.prometheus.write.v2.Request")
		if err != nil || resp.Samples != 1 {
			t.Errorf("%+v, %v", resp, err)
		}
	})), contentV2, body); r.Code != http.StatusOK {
		t.Errorf("%d %s", r.Code, r.Body)
	}
	if !s.plain.TryAcquire(1<<20) || !s.decoded.TryAcquire(1<<20) {
		t.Error("memory was not given back")
	}
}

// allKinds is one series of each kind that remote write carries, and what a
// table then has of it, with that start.
func allKinds(start int64) ([]prompb.TimeSeries, []series.Series, []series.Exemplar) {
	bits := []uint64{
		value.StaleNaN, value.NormalNaN, 0x7ff0000000000001, 0xfff8000000000123, // NaNs, quiet and signalling
		math.Float64bits(math.Inf(1)), math.Float64bits(math.Inf(-1)), 0, 1, math.Float64bits(math.MaxFloat64),
	}
	floats := protoSeries(nil, "__name__", "m", "unicode", "ü\n\"", "with.dots and blanks", "1")
	row := series.Series{Labels: lbl("m", "unicode", "ü\n\"", "with.dots and blanks", "1")}
	for i, b := range bits {
		ms := at(0) + int64(i) - 3
		floats.Samples = append(floats.Samples, prompb.Sample{Timestamp: ms, Value: math.Float64frombits(b)})
		row.Samples = append(row.Samples, series.Sample{Time: series.FromMillis(ms), Value: math.Float64frombits(b), Start: start})
	}
	old := protoSeries([]prompb.Sample{{Timestamp: -1, Value: 7}, {Timestamp: 0, Value: 8}}, "__name__", "old")
	oldRow := series.Series{Labels: lbl("old"), Samples: []series.Sample{{Time: -1000, Value: 7, Start: start}, {Time: 0, Value: 8, Start: start}}}

	hists := protoSeries(nil, "__name__", "h")
	histRow := series.Series{Labels: lbl("h")}
	for i, h := range []prompb.Histogram{
		prompb.FromIntHistogram(at(0), tsdbutil.GenerateTestHistogram(3)),
		prompb.FromFloatHistogram(at(0)+1, tsdbutil.GenerateTestGaugeFloatHistogram(4)),
		prompb.FromFloatHistogram(at(0)+2, &histogram.FloatHistogram{Sum: math.Float64frombits(value.StaleNaN)}),
		prompb.FromIntHistogram(at(0)+3, tsdbutil.GenerateTestCustomBucketsHistogram(5)),
		prompb.FromFloatHistogram(at(0)+4, tsdbutil.GenerateTestCustomBucketsFloatHistogram(6)),
	} {
		hists.Histograms = append(hists.Histograms, h)
		h.Timestamp = 0
		data, err := h.Marshal()
		if err != nil {
			panic(err)
		}
		histRow.Samples = append(histRow.Samples, series.Sample{Time: series.FromMillis(at(0) + int64(i)), Histogram: data, Start: start})
	}

	exemplars := protoSeries([]prompb.Sample{{Timestamp: at(0), Value: 1}}, "__name__", "x", "job", "j")
	exemplars.Exemplars = []prompb.Exemplar{
		{Labels: protoSeries(nil, "trace_id", "abc", "a", "b").Labels, Value: math.Float64frombits(value.NormalNaN), Timestamp: at(0) + 1},
		{Value: -1, Timestamp: at(0) + 2},
	}
	of := lbl("x", "job", "j")
	exemplarRow := series.Series{Labels: of, Samples: []series.Sample{{Time: series.FromMillis(at(0)), Value: 1, Start: start}}}
	want := []series.Exemplar{
		{Series: of, Labels: labels.FromStrings("a", "b", "trace_id", "abc"), Time: series.FromMillis(at(0) + 1), Value: math.Float64frombits(value.NormalNaN)},
		{Series: of, Time: series.FromMillis(at(0) + 2), Value: -1},
	}
	return []prompb.TimeSeries{floats, old, hists, exemplars}, []series.Series{row, oldRow, histRow, exemplarRow}, want
}

// sameBits compares floats by their bits.
var sameBits = cmp.Options{
	cmp.Comparer(func(a, b float64) bool { return math.Float64bits(a) == math.Float64bits(b) }),
	cmp.Comparer(labels.Equal),
}

// TestWriteRoundTrip: every kind comes back bit for bit, from the head and
// from chunks, and the answer says what was written.
func TestWriteRoundTrip(t *testing.T) {
	const start = 1_700_000_000_123
	v1, _, _ := allKinds(0)
	metadata := []series.Metadata{
		{Metric: "m", Type: "counter", Unit: "s", Help: "what it is\n"},
		{Metric: "h", Type: "gaugehistogram"},
		{Metric: "x", Help: "unknown"},
	}
	v2 := requestV2(start, v1...)
	symbol := func(s string) uint32 {
		v2.Symbols = append(v2.Symbols, s)
		return uint32(len(v2.Symbols) - 1)
	}
	for i, about := range map[int]series.Metadata{0: metadata[0], 2: metadata[1], 3: metadata[2]} {
		v2.Timeseries[i].Metadata = writev2.Metadata{
			Type:    writev2.Metadata_MetricType(writev2.Metadata_MetricType_value["METRIC_TYPE_"+strings.ToUpper(about.Type)]),
			UnitRef: symbol(about.Unit), HelpRef: symbol(about.Help),
		}
	}
	req := &prompb.WriteRequest{Timeseries: v1}
	for _, m := range metadata {
		req.Metadata = append(req.Metadata, prompb.MetricMetadata{
			Type:             prompb.MetricMetadata_MetricType(prompb.MetricMetadata_MetricType_value[strings.ToUpper(m.Type)]),
			MetricFamilyName: m.Metric, Unit: m.Unit, Help: m.Help,
		})
	}
	for _, c := range []struct {
		name, contentType string
		body              []byte
		start             int64
		written           []string
	}{
		{"1.0", contentV1, pack(t, req), 0, []string{"", "", ""}},
		{"2.0", contentV2, pack(t, v2), start * 1_000_000, []string{"12", "5", "2"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			sink := ingesttest.New(t, ingesttest.Options{})
			r := sendTo(WriteHandler(sink, nil), c.contentType, c.body)
			if r.Code != http.StatusNoContent {
				t.Fatalf("%d %s", r.Code, r.Body)
			}
			var written []string
			for _, h := range []string{"Samples", "Histograms", "Exemplars"} {
				written = append(written, r.Header().Get("X-Prometheus-Remote-Write-"+h+"-Written"))
			}
			if d := cmp.Diff(c.written, written); d != "" {
				t.Errorf("written: %s", d)
			}
			_, rows, exemplars := allKinds(c.start)
			slices.SortFunc(rows, func(a, b series.Series) int {
				return series.Compare(a.Labels, b.Labels, series.IDOf(a.Labels), series.IDOf(b.Labels))
			})
			slices.SortFunc(metadata, func(a, b series.Metadata) int { return strings.Compare(a.Metric, b.Metric) })
			for _, where := range []string{"head", "chunks"} {
				if d := cmp.Diff(ingesttest.Print(rows), ingesttest.Print(sink.Samples(""))); d != "" {
					t.Errorf("samples in %s: %s", where, d)
				}
				got := sink.Exemplars("")
				slices.SortFunc(got, func(a, b series.Exemplar) int { return int(a.Time - b.Time) })
				if d := cmp.Diff(exemplars, got, sameBits); d != "" {
					t.Errorf("exemplars in %s: %s", where, d)
				}
				if d := cmp.Diff(metadata, sink.Metadata("")); d != "" {
					t.Errorf("metadata in %s: %s", where, d)
				}
				sink.Flush()
			}
		})
	}
}

// TestWriteNegativeZero: upstream's encoders take -0 for 0 and leave it out;
// a sender that does not is understood.
func TestWriteNegativeZero(t *testing.T) {
	field := func(n protowire.Number, b []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, n, protowire.BytesType), b)
	}
	zero := protowire.AppendFixed64(protowire.AppendTag(nil, 1, protowire.Fixed64Type), 1<<63)
	zero = protowire.AppendVarint(protowire.AppendTag(zero, 2, protowire.VarintType), uint64(at(0)))
	label := append(field(1, []byte("__name__")), field(2, []byte("m"))...)
	v1 := field(1, append(field(1, label), field(2, zero)...))
	v2 := slices.Concat(field(4, nil), field(4, []byte("__name__")), field(4, []byte("m")),
		field(5, append(field(1, []byte{1, 2}), field(2, zero)...)))
	for contentType, body := range map[string][]byte{contentV1: v1, contentV2: v2} {
		sink := ingesttest.New(t, ingesttest.Options{})
		if r := sendTo(WriteHandler(sink, nil), contentType, snappy.Encode(nil, body)); r.Code != http.StatusNoContent {
			t.Fatalf("%s: %d %s", contentType, r.Code, r.Body)
		}
		want := fmt.Sprintf("%s %d000000 %016x\n", lbl("m"), at(0), uint64(1)<<63)
		for range 2 {
			if d := cmp.Diff(want, ingesttest.Print(sink.Samples(""))); d != "" {
				t.Errorf("%s: %s", contentType, d)
			}
			sink.Flush()
		}
	}
}

// TestWriteTenants: a request goes to the table of its tenant.
func TestWriteTenants(t *testing.T) {
	sink := ingesttest.New(t, ingesttest.Options{})
	h := WriteHandler(sink, nil)
	for _, tenant := range []string{"a", "b"} {
		req := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(pack(t, requestV2(0, protoSeries([]prompb.Sample{{Timestamp: at(0)}}, "__name__", "of_"+tenant)))))
		req.Header.Set("Content-Type", contentV2)
		req.Header.Set(ingest.TenantHeader, tenant)
		rec := httptest.NewRecorder()
		if h.ServeHTTP(rec, req); rec.Code != http.StatusNoContent {
			t.Fatalf("%d %s", rec.Code, rec.Body)
		}
	}
	for _, tenant := range []string{"a", "b"} {
		rows := sink.Samples(tenant)
		if len(rows) != 1 || rows[0].Labels.Get("__name__") != "of_"+tenant {
			t.Errorf("tenant %s has %v", tenant, rows)
		}
	}
}
