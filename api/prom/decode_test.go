package prom

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/prompb"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"
	"google.golang.org/protobuf/encoding/protowire"

	"cardinalsin/ingest"
	"cardinalsin/series"
)

// TestElementBombs: messages whose elements are much larger decoded than on
// the wire are refused before they are decoded.
func TestElementBombs(t *testing.T) {
	const size = 8 << 20
	wrap := func(level ...byte) []byte {
		inner := bytes.Repeat([]byte{level[len(level)-1], 0}, size/2)
		for i := len(level) - 2; i >= 0; i-- {
			inner = append(protowire.AppendVarint([]byte{level[i]}, uint64(len(inner))), inner...)
		}
		return inner
	}
	// One symbol of 1 MiB that labels refer to again and again.
	text := protowire.AppendBytes([]byte{0x22, 0, 0x22}, bytes.Repeat([]byte{'x'}, 1<<20))
	refs := protowire.AppendBytes([]byte{0x0a}, bytes.Repeat([]byte{1}, 1<<10))
	text = append(protowire.AppendVarint(append(text, 0x2a), uint64(len(refs))), refs...)
	v1, v2 := (*decoder).decodeV1, (*decoder).decodeV2
	for name, c := range map[string]struct {
		decode func(*decoder, context.Context, []byte) error
		body   []byte
	}{
		"series":               {v1, wrap(0x0a)},
		"metadata":             {v1, wrap(0x1a)},
		"labels":               {v1, wrap(0x0a, 0x0a)},
		"samples":              {v1, wrap(0x0a, 0x12)},
		"exemplars":            {v1, wrap(0x0a, 0x1a)},
		"exemplar labels":      {v1, wrap(0x0a, 0x1a, 0x0a)},
		"histograms":           {v1, wrap(0x0a, 0x22)},
		"symbols, 2.0":         {v2, wrap(0x22)},
		"series, 2.0":          {v2, wrap(0x2a)},
		"references, 2.0":      {v2, wrap(0x2a, 0x0a)},
		"samples, 2.0":         {v2, wrap(0x2a, 0x12)},
		"histograms, 2.0":      {v2, wrap(0x2a, 0x1a)},
		"exemplars, 2.0":       {v2, wrap(0x2a, 0x22)},
		"exemplar labels, 2.0": {v2, wrap(0x2a, 0x22, 0x08)},
		"text, 2.0":            {v2, text},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDecoder(nil)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			err := c.decode(d, context.Background(), c.body)
			runtime.ReadMemStats(&after)
			if !errors.Is(err, ingest.ErrTooLarge) {
				t.Errorf("err = %v", err)
			}
			// References are kept as they are read, four bytes for each.
			if n := after.TotalAlloc - before.TotalAlloc; n > 32<<20 {
				t.Errorf("%d bytes were allocated for a message of %d", n, len(c.body))
			}
		})
	}
}

// TestDecodedSurvivesItsBuffer: what is decoded has nothing of the body's
// memory, which the next request overwrites.
func TestDecodedSurvivesItsBuffer(t *testing.T) {
	ts, _, _ := allKinds(0)
	v1 := encode(t, ts...)
	v2, err := requestV2(5, ts...).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		decode func(*decoder, context.Context, []byte) error
		body   []byte
	}{"1.0": {(*decoder).decodeV1, v1}, "2.0": {(*decoder).decodeV2, v2}} {
		t.Run(name, func(t *testing.T) {
			want, got := &decoder{}, &decoder{}
			if err := errors.Join(c.decode(want, context.Background(), c.body), c.decode(got, context.Background(), slices.Clone(c.body))); err != nil {
				t.Fatal(err)
			}
			body := slices.Clone(c.body)
			if err := c.decode(got, context.Background(), body); err != nil {
				t.Fatal(err)
			}
			clear(body)
			if d := cmp.Diff(want.request, got.request, sameBits); d != "" {
				t.Error(d)
			}
		})
	}
}

// byUpstreamV1 decodes with upstream's types.
func byUpstreamV1(body []byte) (*ingest.Request, error) {
	var req prompb.WriteRequest
	if err := req.Unmarshal(body); err != nil {
		return nil, err
	}
	out := &ingest.Request{}
	b := labels.NewScratchBuilder(0)
	sorted := func(ls []prompb.Label) labels.Labels {
		b.Reset()
		for _, l := range ls {
			b.Add(l.Name, l.Value)
		}
		b.Sort()
		return b.Labels()
	}
	for _, ts := range req.Timeseries {
		s := series.Series{Labels: sorted(ts.Labels)}
		for _, p := range ts.Samples {
			s.Samples = append(s.Samples, series.Sample{Time: series.FromMillis(p.Timestamp), Value: p.Value})
		}
		for _, h := range ts.Histograms {
			p := series.Sample{Time: series.FromMillis(h.Timestamp)}
			h.Timestamp, h.XXX_unrecognized = 0, nil
			p.Histogram, _ = h.Marshal()
			s.Samples = append(s.Samples, p)
		}
		out.Samples = append(out.Samples, s)
		for _, e := range ts.Exemplars {
			out.Exemplars = append(out.Exemplars, series.Exemplar{Series: s.Labels, Labels: sorted(e.Labels), Time: series.FromMillis(e.Timestamp), Value: e.Value})
		}
	}
	for _, m := range req.Metadata {
		typ := strings.ToLower(m.Type.String())
		if typ == "unknown" {
			typ = ""
		}
		out.Metadata = append(out.Metadata, series.Metadata{Metric: m.MetricFamilyName, Type: typ, Unit: m.Unit, Help: m.Help})
	}
	return out, nil
}

// byUpstreamV2 decodes with upstream's types.
func byUpstreamV2(body []byte) (*ingest.Request, error) {
	var req writev2.Request
	if err := req.Unmarshal(body); err != nil {
		return nil, err
	}
	out := &ingest.Request{}
	b := labels.NewScratchBuilder(0)
	for _, ts := range req.Timeseries {
		ls, err := ts.ToLabels(&b, req.Symbols)
		if err != nil {
			return nil, err
		}
		s := series.Series{Labels: ls}
		for _, p := range ts.Samples {
			s.Samples = append(s.Samples, series.Sample{Time: series.FromMillis(p.Timestamp), Value: p.Value, Start: p.StartTimestamp * 1_000_000})
		}
		for _, h := range ts.Histograms {
			p := series.Sample{Time: series.FromMillis(h.Timestamp), Start: h.StartTimestamp * 1_000_000}
			h.Timestamp, h.StartTimestamp, h.XXX_unrecognized = 0, 0, nil
			p.Histogram, _ = h.Marshal()
			s.Samples = append(s.Samples, p)
		}
		out.Samples = append(out.Samples, s)
		for _, e := range ts.Exemplars {
			x, err := e.ToExemplar(&b, req.Symbols)
			if err != nil {
				return nil, err
			}
			out.Exemplars = append(out.Exemplars, series.Exemplar{Series: ls, Labels: x.Labels, Time: series.FromMillis(x.Ts), Value: x.Value})
		}
		if m := ts.Metadata; m.Type != 0 || m.HelpRef != 0 || m.UnitRef != 0 {
			m, err := ts.ToMetadata(req.Symbols)
			if err != nil {
				return nil, err
			}
			about := series.Metadata{Type: string(m.Type), Unit: m.Unit, Help: m.Help}
			if about.Type == "unknown" {
				about.Type = ""
			}
			if about != (series.Metadata{}) {
				about.Metric = familyOf(ls.Get("__name__"), about.Type, len(ts.Histograms) > 0)
				out.Metadata = append(out.Metadata, about)
			}
		}
	}
	return out, nil
}

// distinct leaves out what came before.
func distinct(list []series.Metadata) (out []series.Metadata) {
	for _, m := range list {
		if !slices.Contains(out, m) {
			out = append(out, m)
		}
	}
	return out
}

// sameAsUpstream fails if we accept what upstream does not, or read it
// differently.
func sameAsUpstream(t *testing.T, body []byte, decode func(*decoder, context.Context, []byte) error, upstream func([]byte) (*ingest.Request, error)) {
	d := newDecoder(nil)
	defer d.release()
	if err := decode(d, context.Background(), body); err != nil {
		if reason, code := ingest.Classify(err); code/100 != 4 {
			t.Errorf("%v is %s, %d", err, reason, code)
		}
		return
	}
	want, err := upstream(body)
	if err != nil {
		t.Fatalf("upstream: %v", err)
	}
	// Upstream has floats before histograms, and we the order of the message.
	got := d.request
	for i := range got.Samples {
		slices.SortStableFunc(got.Samples[i].Samples, func(a, b series.Sample) int {
			return map[bool]int{true: 1}[a.Histogram != nil] - map[bool]int{true: 1}[b.Histogram != nil]
		})
		for j, s := range got.Samples[i].Samples {
			if s.Histogram != nil { // -0 is kept at the end of ours
				var h prompb.Histogram
				if err := h.Unmarshal(s.Histogram); err != nil {
					t.Fatal(err)
				}
				got.Samples[i].Samples[j].Histogram, _ = h.Marshal()
			}
		}
	}
	// Metadata that is repeated may come once.
	got.Metadata, want.Metadata = distinct(got.Metadata), distinct(want.Metadata)
	if diff := cmp.Diff(want, &got, sameBits, cmpopts.EquateEmpty()); diff != "" {
		t.Error(diff)
	}
}

// seeds are sound requests for the fuzz tests.
func seeds(f *testing.F) (v1, v2 [][]byte) {
	ts, _, _ := allKinds(0)
	ts = append(ts, protoSeries([]prompb.Sample{{Timestamp: 1}}, "b", "1", "a", "2", "__name__", "m"))
	for i := range ts {
		v1 = append(v1, encode(f, ts[i]))
		req := requestV2(77, ts[i])
		req.Timeseries[0].Metadata = writev2.Metadata{Type: writev2.Metadata_METRIC_TYPE_HISTOGRAM, HelpRef: 1}
		data, err := req.Marshal()
		if err != nil {
			f.Fatal(err)
		}
		v2 = append(v2, data)
	}
	withMetadata, err := (&prompb.WriteRequest{Metadata: []prompb.MetricMetadata{{Type: 3, MetricFamilyName: "m", Help: "h", Unit: "u"}}}).Marshal()
	if err != nil {
		f.Fatal(err)
	}
	return append(v1, withMetadata, []byte{0x0a, 0x00, 0x1a, 0x00}), append(v2, []byte{0x22, 0x00, 0x2a, 0x04, 0x08, 0x00, 0x08, 0x00})
}

func FuzzDecodeV1(f *testing.F) {
	v1, _ := seeds(f)
	for _, b := range v1 {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, body []byte) { sameAsUpstream(t, body, (*decoder).decodeV1, byUpstreamV1) })
}

func FuzzDecodeV2(f *testing.F) {
	_, v2 := seeds(f)
	for _, b := range v2 {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, body []byte) { sameAsUpstream(t, body, (*decoder).decodeV2, byUpstreamV2) })
}

// TestCreatedTimestamp: a series' created timestamp, as 2.0 had it before each
// sample got its own, is the start of the samples that have none.
func TestCreatedTimestamp(t *testing.T) {
	inner, err := (&writev2.TimeSeries{LabelsRefs: []uint32{1, 2}, Samples: []writev2.Sample{{Timestamp: 5}, {Timestamp: 6, StartTimestamp: 4}}}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	inner = protowire.AppendVarint(protowire.AppendTag(inner, 6, protowire.VarintType), 3)
	body, err := (&writev2.Request{Symbols: []string{"", "__name__", "m"}}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	body = protowire.AppendBytes(protowire.AppendTag(body, 5, protowire.BytesType), inner)
	d := newDecoder(nil)
	if err := d.decodeV2(context.Background(), body); err != nil {
		t.Fatal(err)
	}
	want := series.Batch{{Labels: lbl("m"), Samples: []series.Sample{{Time: 5000, Start: 3e6}, {Time: 6000, Start: 4e6}}}}
	if diff := cmp.Diff(want, d.request.Samples, sameBits); diff != "" {
		t.Error(diff)
	}
}

// TestMetadataOnce: every series of a metric repeats its metadata, and
// different metadata is never taken for the same.
func TestMetadataOnce(t *testing.T) {
	req := writev2.Request{Symbols: []string{"", "__name__", "a", "b_bucket", "b_sum", "one", "two"}}
	add := func(name uint32, m writev2.Metadata) {
		req.Timeseries = append(req.Timeseries, writev2.TimeSeries{LabelsRefs: []uint32{1, name}, Metadata: m})
	}
	one := writev2.Metadata{Type: writev2.Metadata_METRIC_TYPE_GAUGE, HelpRef: 5}
	two := writev2.Metadata{Type: writev2.Metadata_METRIC_TYPE_HISTOGRAM, HelpRef: 6, UnitRef: 5}
	for range 3 {
		add(2, one)
		add(3, two)
		add(4, two)
	}
	add(3, one) // the same words of another metric
	add(2, writev2.Metadata{Type: writev2.Metadata_METRIC_TYPE_GAUGE, HelpRef: 6})
	add(2, writev2.Metadata{})
	// Other words at the same place of the table.
	req.Symbols = append(req.Symbols, make([]string, 256)...)
	req.Symbols[5+256] = "three"
	add(2, one)
	add(2, writev2.Metadata{Type: writev2.Metadata_METRIC_TYPE_GAUGE, HelpRef: 5 + 256})
	body, err := req.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	want := []series.Metadata{
		{Metric: "a", Type: "gauge", Help: "one"}, {Metric: "b", Type: "histogram", Help: "two", Unit: "one"},
		{Metric: "b_bucket", Type: "gauge", Help: "one"}, {Metric: "a", Type: "gauge", Help: "two"},
		{Metric: "a", Type: "gauge", Help: "one"}, {Metric: "a", Type: "gauge", Help: "three"},
	}
	d := newDecoder(nil)
	for range 2 { // the second request begins anew
		if err := d.decodeV2(context.Background(), body); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, d.request.Metadata); diff != "" {
			t.Error(diff)
		}
	}
}

// TestMetricTypes: the names are upstream's, in both versions.
func TestMetricTypes(t *testing.T) {
	for n, name := range prompb.MetricMetadata_MetricType_name {
		got, err := metricType(n)
		if want := strings.TrimPrefix(strings.ToLower(name), "unknown"); err != nil || got != want {
			t.Errorf("type %d is %q, %v; want %q", n, got, err, want)
		}
	}
	for n, name := range writev2.Metadata_MetricType_name {
		got, err := metricType(n)
		if want := strings.TrimPrefix(strings.ToLower(strings.TrimPrefix(name, "METRIC_TYPE_")), "unspecified"); err != nil || got != want {
			t.Errorf("type %d of 2.0 is %q, %v; want %q", n, got, err, want)
		}
	}
	for _, n := range []int32{-1, int32(len(metricTypes))} {
		if _, err := metricType(n); !errors.Is(err, ingest.ErrUnsupported) {
			t.Errorf("type %d: %v", n, err)
		}
	}
}

func TestFamilyOf(t *testing.T) {
	for _, c := range []struct {
		name, typ string
		native    bool
		want      string
	}{
		{"x_bucket", "histogram", false, "x"},
		{"x_sum", "histogram", false, "x"},
		{"x_count", "summary", false, "x"},
		{"x_gcount", "gaugehistogram", false, "x"},
		{"x_count", "counter", false, "x_count"},
		{"x_count", "histogram", true, "x_count"},
		{"_count", "histogram", false, "_count"},
		{"x_total", "counter", false, "x_total"},
		{"x", "summary", false, "x"},
	} {
		if got := familyOf(c.name, c.typ, c.native); got != c.want {
			t.Errorf("familyOf(%s, %s, %v) = %s, want %s", c.name, c.typ, c.native, got, c.want)
		}
	}
}

// benchSeries are series like a node's: a dozen labels, one sample each.
func benchSeries(n int) []prompb.TimeSeries {
	r := rand.New(rand.NewPCG(1, 2))
	out := make([]prompb.TimeSeries, n)
	for i := range out {
		out[i] = protoSeries([]prompb.Sample{{Timestamp: 1_700_000_000_000, Value: r.Float64()}},
			"__name__", fmt.Sprintf("cpu_usage_%d", i%10), "arch", "x64", "datacenter", fmt.Sprintf("eu-central-1%c", 'a'+i%3),
			"hostname", fmt.Sprintf("host_%d", i), "instance", fmt.Sprintf("10.0.%d.%d:9100", i/250, i%250), "job", "node",
			"os", "Ubuntu16.10", "rack", fmt.Sprint(i%100), "region", "eu-central-1", "service", fmt.Sprint(i%20),
			"service_environment", "production", "service_version", "1", "team", "SF")
	}
	return out
}

// BenchmarkDecode: our decoders beside upstream's types, a request of 2,000
// series of 13 labels.
func BenchmarkDecode(b *testing.B) {
	ts := benchSeries(2000)
	v1 := encode(b, ts...)
	v2, err := requestV2(0, ts...).Marshal()
	if err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct {
		name     string
		body     []byte
		decode   func(*decoder, context.Context, []byte) error
		upstream func([]byte) (*ingest.Request, error)
	}{
		{"v1", v1, (*decoder).decodeV1, byUpstreamV1},
		{"v2", v2, (*decoder).decodeV2, byUpstreamV2},
	} {
		report := func(b *testing.B) {
			n := float64(b.N) * float64(len(ts))
			b.ReportMetric(n/b.Elapsed().Seconds(), "samples/s")
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/n, "ns/sample")
		}
		b.Run(c.name+"/ours", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				d := newDecoder(nil)
				if err := c.decode(d, context.Background(), c.body); err != nil {
					b.Fatal(err)
				}
				d.release()
			}
			report(b)
		})
		b.Run(c.name+"/upstream", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.upstream(c.body); err != nil {
					b.Fatal(err)
				}
			}
			report(b)
		})
	}
}
