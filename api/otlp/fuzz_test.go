package otlp

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.opentelemetry.io/collector/pdata/pmetric"
	"go.opentelemetry.io/collector/pdata/pmetric/pmetricotlp"

	"github.com/prometheus/prometheus/prompb"
	"pgregory.net/rapid"

	"cardinalsin/ingest"
	"cardinalsin/series"
)

// checkRequest decodes and translates what anybody may send: no panic, errors
// of a kind, and rows that the tables would take.
func checkRequest(t *testing.T, request pmetricotlp.ExportRequest, err error) {
	if err != nil {
		if !errors.Is(err, ingest.ErrMalformed) && !errors.Is(err, ingest.ErrTooLarge) {
			t.Fatalf("an error of no kind: %v", err)
		}
		return
	}
	var o Options
	o.EnsureDefaults()
	tr := newTranslation(o.Translate)
	points := request.Metrics().DataPointCount()
	rows, err := tr.translate(context.Background(), request.Metrics())
	if err != nil {
		if !errors.Is(err, ingest.ErrTooLarge) {
			t.Fatalf("an error of no kind: %v", err)
		}
		return
	}
	for _, s := range rows.Samples {
		if err := series.Validate(s.Labels); err != nil {
			t.Fatalf("series %s: %v", s.Labels, err)
		}
		for _, p := range s.Samples {
			if p.Time < 0 || p.Time > series.MaxTimestamp || p.Nanos > 999 || p.Start < 0 {
				t.Fatalf("sample %+v of %s", p, s.Labels)
			}
		}
	}
	for _, e := range rows.Exemplars {
		if err := series.Validate(e.Series); err != nil {
			t.Fatalf("exemplar of %s: %v", e.Series, err)
		}
	}
	left := tr.report.left()
	if left > points || left == points && len(rows.Samples) > 0 || left < points && len(rows.Samples) == 0 {
		t.Fatalf("%d of %d data points left out, and %d samples", left, points, len(rows.Samples))
	}
	if (left > 0) != strings.Contains(tr.report.String(), "were not kept") {
		t.Fatalf("%d left out: %q", left, tr.report.String())
	}
}

// seeds are the requests of the goldens.
func seeds(f *testing.F) []string {
	files, err := filepath.Glob("testdata/export/*")
	if err != nil || len(files) == 0 {
		f.Fatalf("%d files, error %v", len(files), err)
	}
	var out []string
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		for _, part := range strings.Split(string(b), "export\n")[1:] {
			input, _, _ := strings.Cut(part, "----")
			out = append(out, input)
		}
	}
	return out
}

func FuzzProto(f *testing.F) {
	for _, s := range seeds(f) {
		request := pmetricotlp.NewExportRequest()
		if err := request.UnmarshalJSON([]byte(s)); err != nil {
			f.Fatal(err)
		}
		f.Add(marshal(f, request))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		request, err := decodeProto(body)
		checkRequest(t, request, err)
	})
}

func FuzzJSON(f *testing.F) {
	for _, s := range seeds(f) {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		request, err := decodeJSON(body)
		checkRequest(t, request, err)
	})
}

// TestExponentialBuckets: the buckets of an exponential histogram are those of
// the native one, merged where its scale is finer than any of ours.
func TestExponentialBuckets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		request := pmetricotlp.NewExportRequest()
		m := request.Metrics().ResourceMetrics().AppendEmpty().ScopeMetrics().AppendEmpty().Metrics().AppendEmpty()
		m.SetName("e")
		m.SetEmptyExponentialHistogram().SetAggregationTemporality(pmetric.AggregationTemporalityCumulative)
		p := m.ExponentialHistogram().DataPoints().AppendEmpty()
		p.SetTimestamp(1)
		p.SetScale(rapid.Int32Range(-4, 20).Draw(t, "scale"))
		schema := min(p.Scale(), 8)
		want := map[string]uint64{}
		var count uint64
		for _, side := range []struct {
			sign    string
			buckets pmetric.ExponentialHistogramDataPointBuckets
		}{{"+", p.Positive()}, {"-", p.Negative()}} {
			side.buckets.SetOffset(rapid.Int32Range(-50, 50).Draw(t, "offset"))
			for i, n := range rapid.SliceOfN(rapid.Uint64Range(0, 3), 0, 40).Draw(t, "counts") {
				side.buckets.BucketCounts().Append(n)
				count += n
				// (base^i, base^(i+1)] of the finer scale lies in the coarser
				// bucket i>>shift; Prometheus counts from the upper bound.
				at := (side.buckets.Offset()+int32(i))>>(p.Scale()-schema) + 1
				if n > 0 {
					want[fmt.Sprint(side.sign, at)] += n
				}
			}
		}
		p.SetCount(count)
		p.SetSum(0)
		var o Options
		o.EnsureDefaults()
		tr := newTranslation(o.Translate)
		rows, err := tr.translate(context.Background(), request.Metrics())
		if err != nil || len(rows.Samples) != 1 {
			t.Fatalf("%d series, error %v, %s", len(rows.Samples), err, tr.report.String())
		}
		var encoded prompb.Histogram
		if err := encoded.Unmarshal(rows.Samples[0].Samples[0].Histogram); err != nil {
			t.Fatal(err)
		}
		h := encoded.ToIntHistogram()
		got := map[string]uint64{}
		for it := h.PositiveBucketIterator(); it.Next(); {
			if b := it.At(); b.Count > 0 {
				got[fmt.Sprint("+", b.Index)] = b.Count
			}
		}
		for it := h.NegativeBucketIterator(); it.Next(); {
			if b := it.At(); b.Count > 0 {
				got[fmt.Sprint("-", b.Index)] = b.Count
			}
		}
		if fmt.Sprint(want) != fmt.Sprint(got) || h.Schema != schema || h.Count != count {
			t.Fatalf("schema %d, count %d, buckets %v; want %d, %d, %v", h.Schema, h.Count, got, schema, count, want)
		}
	})
}

// BenchmarkDecode has what a Collector sends by default: 8,192 data points.
func BenchmarkDecode(b *testing.B) {
	request := pmetricotlp.NewExportRequest()
	rm := request.Metrics().ResourceMetrics().AppendEmpty()
	for _, k := range []string{"service.name", "service.instance.id", "host.name", "os.type", "cloud.region"} {
		rm.Resource().Attributes().PutStr(k, "value-of-"+k)
	}
	metrics := rm.ScopeMetrics().AppendEmpty().Metrics()
	for i := range 64 {
		m := metrics.AppendEmpty()
		m.SetName(fmt.Sprintf("metric.%d", i))
		m.SetDescription("what it is")
		m.SetEmptySum().SetIsMonotonic(true)
		m.Sum().SetAggregationTemporality(pmetric.AggregationTemporalityCumulative)
		for j := range 128 {
			p := m.Sum().DataPoints().AppendEmpty()
			p.SetTimestamp(1_600_000_000_123_456_789)
			p.SetStartTimestamp(1_500_000_000_123_456_789)
			p.SetDoubleValue(float64(j))
			p.Attributes().PutStr("http.request.method", "GET")
			p.Attributes().PutStr("http.route", fmt.Sprintf("/a/%d", j))
			p.Attributes().PutInt("http.response.status_code", 200)
		}
	}
	body, err := request.MarshalProto()
	if err != nil {
		b.Fatal(err)
	}
	var o Options
	o.EnsureDefaults()
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		request, err := decodeProto(body)
		if err != nil {
			b.Fatal(err)
		}
		rows, err := newTranslation(o.Translate).translate(context.Background(), request.Metrics())
		if err != nil || len(rows.Samples) != 64*128+1 {
			b.Fatalf("%d series, error %v", len(rows.Samples), err)
		}
	}
	b.ReportMetric(64*128*float64(b.N)/b.Elapsed().Seconds(), "points/s")
}
