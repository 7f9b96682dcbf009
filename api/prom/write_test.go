package prom

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"

	"github.com/golang/snappy"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/prompb"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"
	"google.golang.org/protobuf/encoding/protowire"

	"cardinalsin/series"
	"cardinalsin/storage"
	"cardinalsin/txlog"
	"cardinalsin/wal"
	"cardinalsin/writer"
)

// TestWriteRefuses: what will never work is 400 with the reason, and nothing
// of the request is stored, also not its sound part.
func TestWriteRefuses(t *testing.T) {
	tb := newTable(t)
	url := tb.serve(t).URL
	one := []prompb.Sample{{Timestamp: at(0), Value: 1}}
	sound := protoSeries(one, "__name__", "sound")
	badHistogram := prompb.FromIntHistogram(at(0), tsdbutil.GenerateTestHistogram(1))
	badHistogram.PositiveDeltas = badHistogram.PositiveDeltas[1:]
	badFloatHistogram := prompb.FromFloatHistogram(at(0), tsdbutil.GenerateTestFloatHistogram(1))
	badFloatHistogram.PositiveCounts[0] = -1
	unknownSchema := prompb.FromIntHistogram(at(0), tsdbutil.GenerateTestHistogram(1))
	unknownSchema.Schema = 77

	for _, c := range []struct {
		name   string
		ts     prompb.TimeSeries
		reason string
	}{
		{"no metric name", protoSeries(one, "job", "x"), "no metric name"},
		{"no labels", protoSeries(one), "no metric name"},
		{"empty metric name", protoSeries(one, "__name__", ""), "no metric name"},
		{"duplicate label", protoSeries(one, "__name__", "m", "a", "1", "a", "2"), "duplicate label name"},
		{"duplicate label, same value", protoSeries(one, "__name__", "m", "a", "1", "a", "1"), "duplicate label name"},
		{"labels out of order", protoSeries(one, "__name__", "m", "b", "1", "a", "2"), "out of order"},
		{"name last", protoSeries(one, "a", "2", "__name__", "m"), "out of order"},
		{"empty label name", protoSeries(one, "", "x", "__name__", "m"), "invalid label"},
		{"label is no UTF-8", protoSeries(one, "__name__", "m", "a", "\xff"), "invalid label"},
		{"label name is no UTF-8", protoSeries(one, "__name__", "m", "a\xff", "1"), "invalid label"},
		{"huge label", protoSeries(one, "__name__", "m", "a", strings.Repeat("x", 17<<20)), "invalid label"},
		{"no samples, bad labels", protoSeries(nil, "job", "x"), "no metric name"},
		{"time before the year 1", protoSeries([]prompb.Sample{{Timestamp: math.MinInt64}}, "__name__", "m"), "out of range"},
		{"time after the year 9999", protoSeries([]prompb.Sample{{Timestamp: math.MaxInt64}}, "__name__", "m"), "out of range"},
		{"histogram with missing buckets", prompb.TimeSeries{Labels: sound.Labels, Histograms: []prompb.Histogram{badHistogram}}, "histogram"},
		{"histogram with a negative bucket", prompb.TimeSeries{Labels: sound.Labels, Histograms: []prompb.Histogram{badFloatHistogram}}, "histogram"},
		{"histogram of an unknown schema", prompb.TimeSeries{Labels: sound.Labels, Histograms: []prompb.Histogram{unknownSchema}}, "histogram"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, ts := range [][]prompb.TimeSeries{{c.ts}, {sound, c.ts}, {c.ts, sound}} {
				r := write(t, url, ts...)
				if r.code != http.StatusBadRequest || !strings.Contains(r.body, c.reason) {
					t.Errorf("%d %.300s; want 400 and %q", r.code, r.body, c.reason)
				}
			}
			if !tb.empty() {
				t.Error("something was stored")
			}
		})
	}
}

// TestWriteRefusesBytes: bodies that are no request, and those that would be a
// large one.
func TestWriteRefusesBytes(t *testing.T) {
	tb := newTable(t)
	url := tb.serve(t).URL
	sound := encode(t, protoSeries([]prompb.Sample{{Timestamp: at(0)}}, "__name__", "m"))
	packed := snappy.Encode(nil, sound)
	for _, c := range []struct {
		name string
		body []byte
		code int
	}{
		{"empty body", nil, http.StatusBadRequest},
		{"no snappy", []byte("hello"), http.StatusBadRequest},
		{"cut snappy", packed[:len(packed)-1], http.StatusBadRequest},
		{"snappy that claims 4 GiB", []byte{0xff, 0xff, 0xff, 0xff, 0x0f, 0}, http.StatusBadRequest},
		{"33 MiB of zeros", snappy.Encode(nil, make([]byte, 33<<20)), http.StatusBadRequest},
		{"no protobuf", snappy.Encode(nil, []byte("hello")), http.StatusBadRequest},
		{"cut protobuf", snappy.Encode(nil, sound[:len(sound)-1]), http.StatusBadRequest},
		{"a million empty series", snappy.Encode(nil, bytes.Repeat([]byte{0x0a, 0}, 1<<20)), http.StatusBadRequest},
		{"over 32 MiB on the wire", make([]byte, 33<<20), http.StatusRequestEntityTooLarge},
	} {
		t.Run(c.name, func(t *testing.T) {
			if r := post(t, url, c.body); r.code != c.code || r.body == "" {
				t.Errorf("%d %.300s; want %d with a reason", r.code, r.body, c.code)
			}
		})
	}
	for _, c := range []struct {
		name, method, contentType, encoding string
		code                                int
	}{
		{"JSON", http.MethodPost, "application/json", "snappy", http.StatusUnsupportedMediaType},
		{"gzip", http.MethodPost, "application/x-protobuf", "gzip", http.StatusUnsupportedMediaType},
		{"remote write 2.0", http.MethodPost, "application/x-protobuf;proto=io.prometheus.write.v2.Request", "snappy", http.StatusUnsupportedMediaType},
		{"GET", http.MethodGet, "", "", http.StatusMethodNotAllowed},
	} {
		t.Run(c.name, func(t *testing.T) {
			req := httptest.NewRequest(c.method, "/", bytes.NewReader(packed))
			req.Header.Set("Content-Type", c.contentType)
			req.Header.Set("Content-Encoding", c.encoding)
			rec := httptest.NewRecorder()
			WriteHandler(tb.writer.Append, nil).ServeHTTP(rec, req)
			if rec.Code != c.code {
				t.Errorf("%d %s; want %d", rec.Code, rec.Body, c.code)
			}
		})
	}
	if !tb.empty() {
		t.Error("something was stored")
	}
	// A request without series is sound, and there is nothing to store.
	if r := write(t, url); r.code != http.StatusNoContent {
		t.Errorf("request without series: %d %s", r.code, r.body)
	}
}

// TestElementBombs: messages whose elements are much larger decoded than on
// the wire are refused before they are decoded.
func TestElementBombs(t *testing.T) {
	const size = 8 << 20
	wrap := func(level ...byte) []byte {
		inner := bytes.Repeat([]byte{level[len(level)-1], 0}, size/2)
		for i := len(level) - 2; i >= 0; i-- {
			head := []byte{level[i]}
			for n := len(inner); ; n >>= 7 {
				if n < 0x80 {
					head = append(head, byte(n))
					break
				}
				head = append(head, byte(n)|0x80)
			}
			inner = append(head, inner...)
		}
		return inner
	}
	for name, body := range map[string][]byte{
		"series":          wrap(0x0a),
		"metadata":        wrap(0x1a),
		"labels":          wrap(0x0a, 0x0a),
		"samples":         wrap(0x0a, 0x12),
		"exemplars":       wrap(0x0a, 0x1a),
		"exemplar labels": wrap(0x0a, 0x1a, 0x0a),
		"histograms":      wrap(0x0a, 0x22),
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := decodeV1(body)
			runtime.ReadMemStats(&after)
			if !errors.Is(err, errMalformed) {
				t.Errorf("err = %v", err)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
				t.Errorf("%d bytes were allocated for a message of %d", n, len(body))
			}
		})
	}
}

func TestWriteStatus(t *testing.T) {
	body := snappy.Encode(nil, encode(t, protoSeries([]prompb.Sample{{Timestamp: at(0)}}, "__name__", "m")))
	for _, c := range []struct {
		err  error
		code int
	}{
		{nil, http.StatusNoContent},
		{series.ErrNoMetricName, http.StatusBadRequest},
		{series.ErrDuplicateLabel, http.StatusBadRequest},
		{series.ErrUnsortedLabels, http.StatusBadRequest},
		{series.ErrInvalidLabel, http.StatusBadRequest},
		{writer.ErrInvalidSample, http.StatusBadRequest},
		{writer.ErrTooManyPartitions, http.StatusBadRequest},
		{wal.ErrRecordTooLarge, http.StatusBadRequest},
		{writer.ErrOverloaded, http.StatusTooManyRequests},
		{wal.ErrFull, http.StatusServiceUnavailable},
		{wal.ErrFailed, http.StatusServiceUnavailable},
		{wal.ErrClosed, http.StatusServiceUnavailable},
		{writer.ErrClosed, http.StatusServiceUnavailable},
		{txlog.ErrFenced, http.StatusServiceUnavailable},
		{storage.ErrUnavailable, http.StatusServiceUnavailable},
		{context.Canceled, http.StatusServiceUnavailable},
		{errors.New("unforeseen"), http.StatusServiceUnavailable},
	} {
		t.Run(fmt.Sprint(c.err), func(t *testing.T) {
			h := WriteHandler(func(context.Context, series.Batch) error {
				if c.err == nil {
					return nil
				}
				return fmt.Errorf("append: %w", c.err)
			}, nil)
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(body)))
			if rec.Code != c.code {
				t.Errorf("%d %s; want %d", rec.Code, rec.Body, c.code)
			}
			if got := rec.Header().Get("Retry-After"); (got != "") != (c.code == http.StatusTooManyRequests) {
				t.Errorf("Retry-After is %q", got)
			}
			if c.err != nil && !strings.Contains(rec.Body.String(), c.err.Error()) {
				t.Errorf("no reason in %q", rec.Body)
			}
		})
	}
}

// TestWriteIsOneBatch: a request is one Append, so it is durable whole or not
// at all.
func TestWriteIsOneBatch(t *testing.T) {
	var batches []series.Batch
	h := WriteHandler(func(_ context.Context, b series.Batch) error {
		batches = append(batches, b)
		return nil
	}, nil)
	body := snappy.Encode(nil, encode(t,
		protoSeries([]prompb.Sample{{Timestamp: 1, Value: 1}, {Timestamp: 2, Value: 2}}, "__name__", "a"),
		protoSeries([]prompb.Sample{{Timestamp: -1, Value: 3}}, "__name__", "b", "k", "v")))
	h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(body)))
	want := []series.Batch{{
		{Labels: lbl("a"), Samples: []series.Sample{{Time: 1000, Value: 1}, {Time: 2000, Value: 2}}},
		{Labels: lbl("b", "k", "v"), Samples: []series.Sample{{Time: -1000, Value: 3}}},
	}}
	if d := cmp.Diff(want, batches, cmp.Comparer(labels.Equal)); d != "" {
		t.Error(d)
	}
}

// TestWriteKeepsBits: values come back bit for bit, from the head and from
// files, and histograms as they were sent.
func TestWriteKeepsBits(t *testing.T) {
	tb := newTable(t)
	url := tb.serve(t).URL
	bits := []uint64{
		value.StaleNaN, value.NormalNaN, 0x7ff0000000000001, 0xfff8000000000123, // NaNs, quiet and signalling
		math.Float64bits(math.Inf(1)), math.Float64bits(math.Inf(-1)), 1 << 63, 0, 1, math.Float64bits(math.MaxFloat64),
	}
	// By hand: upstream's encoder takes -0 for 0 and leaves it out.
	head := protoSeries(nil, "__name__", "m")
	ts, err := head.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	for i, b := range bits {
		sample := protowire.AppendFixed64(protowire.AppendTag(nil, 1, protowire.Fixed64Type), b)
		sample = protowire.AppendVarint(protowire.AppendTag(sample, 2, protowire.VarintType), uint64(at(0)+int64(i)))
		ts = protowire.AppendBytes(protowire.AppendTag(ts, 2, protowire.BytesType), sample)
		fmt.Fprintf(&want, "%s %d %016x \n", lbl("m"), (at(0)+int64(i))*1000, b)
	}
	body := protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), ts)
	if r := post(t, url, snappy.Encode(nil, body)); r.code != http.StatusNoContent {
		t.Fatalf("%d %s", r.code, r.body)
	}
	for _, where := range []string{"head", "files"} {
		if d := cmp.Diff(want.String(), tb.rows(t)); d != "" {
			t.Errorf("in %s: %s", where, d)
		}
		tb.flush(t)
	}

	hists := []prompb.Histogram{
		prompb.FromIntHistogram(at(0), tsdbutil.GenerateTestHistogram(3)),
		prompb.FromFloatHistogram(at(0)+1, tsdbutil.GenerateTestGaugeFloatHistogram(4)),
		prompb.FromFloatHistogram(at(0)+2, &histogram.FloatHistogram{Sum: math.Float64frombits(value.StaleNaN)}),
		prompb.FromIntHistogram(at(0)+3, tsdbutil.GenerateTestCustomBucketsHistogram(5)),
	}
	if r := write(t, url, prompb.TimeSeries{Labels: protoSeries(nil, "__name__", "h").Labels, Histograms: hists}); r.code != http.StatusNoContent {
		t.Fatalf("%d %s", r.code, r.body)
	}
	view, err := tb.reader.At(context.Background(), txlog.Latest())
	if err != nil {
		t.Fatal(err)
	}
	defer view.Close()
	for s, err := range view.Select(context.Background(), selector(0, math.MaxInt64, matchers(t, "h"))) {
		if err != nil {
			t.Fatal(err)
		}
		for i, p := range s.Samples {
			var got prompb.Histogram
			if err := got.Unmarshal(p.Histogram); err != nil {
				t.Fatal(err)
			}
			got.Timestamp = p.Time.Millis()
			if a, b := marshal(t, &hists[i]), marshal(t, &got); !bytes.Equal(a, b) {
				t.Errorf("histogram %d came back as %v", i, got)
			}
		}
		if len(s.Samples) != len(hists) {
			t.Errorf("%d of %d histograms came back", len(s.Samples), len(hists))
		}
	}
}

func marshal(t *testing.T, h *prompb.Histogram) []byte {
	t.Helper()
	b, err := h.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func FuzzDecodeV1(f *testing.F) {
	f.Add(encode(f, protoSeries([]prompb.Sample{{Timestamp: 1, Value: 1}}, "__name__", "m", "k", "v")))
	f.Add(encode(f, prompb.TimeSeries{Histograms: []prompb.Histogram{prompb.FromIntHistogram(1, tsdbutil.GenerateTestHistogram(1))}}))
	f.Add([]byte{0x0a, 0x00, 0x1a, 0x00})
	f.Fuzz(func(t *testing.T, body []byte) {
		batch, err := decodeV1(body)
		if err == nil {
			_ = batch.Samples()
			for _, s := range batch {
				_ = series.Validate(s.Labels) // must not panic on what was decoded
			}
		}
	})
}
