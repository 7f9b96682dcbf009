package chunk

import (
	"context"
	"fmt"
	"math"
	"math/rand"
	"testing"

	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/internal/merge"
	"cardinalsin/series"
)

// tsbs makes series like TSBS' cpu-only data: ten metrics a host, twelve
// labels, a sample every 10 s, values a clamped random walk.
func tsbs(hosts, samples int) []Series {
	r := rand.New(rand.NewSource(1))
	regions := []string{"us-east-1", "us-west-1", "us-west-2", "eu-west-1", "eu-central-1", "ap-southeast-1", "ap-southeast-2", "ap-northeast-1", "sa-east-1"}
	pick := func(list ...string) string { return list[r.Intn(len(list))] }
	metrics := []string{"usage_user", "usage_system", "usage_idle", "usage_nice", "usage_iowait", "usage_irq", "usage_softirq", "usage_steal", "usage_guest", "usage_guest_nice"}
	start := series.Timestamp(1700000000_000_000).Date().Start()
	var out []Series
	for h := range hosts {
		region := pick(regions...)
		tags := []string{
			"hostname", fmt.Sprintf("host_%d", h), "region", region, "datacenter", region + pick("a", "b", "c"),
			"rack", fmt.Sprint(r.Intn(100)), "os", pick("Ubuntu16.10", "Ubuntu16.04LTS", "Ubuntu15.10"), "arch", pick("x64", "x86"),
			"team", pick("SF", "NYC", "LON", "CHI"), "service", fmt.Sprint(r.Intn(20)), "service_version", fmt.Sprint(r.Intn(2)),
			"service_environment", pick("production", "staging", "test"), "job", "cpu", "instance", fmt.Sprintf("10.0.%d.%d:9100", h/256, h%256),
		}
		for _, m := range metrics {
			s := mk("cpu_"+m, tags...)
			v := r.Float64() * 100
			s.Samples = make([]series.Sample, samples)
			for i := range s.Samples {
				v = min(100, max(0, v+r.NormFloat64()))
				s.Samples[i] = series.Sample{Time: start + series.Timestamp(i)*10_000_000, Value: math.Floor(v)}
			}
			out = append(out, s)
		}
	}
	return sorted(out)
}

// shapes: a flush holds a sample or two of many series, a compacted file many
// samples of each.
var shapes = []struct{ hosts, samples int }{{1000, 1}, {10000, 1}, {1000, 6}, {100, 360}, {100, 2000}}

func BenchmarkEncode(b *testing.B) {
	for _, sh := range shapes {
		in := tsbs(sh.hosts, sh.samples)
		layout := grown(b, in, DefaultMaxLabels)
		rows := sh.hosts * 10 * sh.samples
		b.Run(fmt.Sprintf("series=%d/samples=%d", sh.hosts*10, sh.samples), func(b *testing.B) {
			b.ReportAllocs()
			var size int
			for b.Loop() {
				enc, err := Encode(Options{}, layout, merge.Slice(in))
				if err != nil {
					b.Fatal(err)
				}
				size = len(enc.Data)
			}
			b.ReportMetric(float64(rows)*float64(b.N)/b.Elapsed().Seconds(), "rows/s")
			b.ReportMetric(float64(size)/float64(rows), "B/row")
		})
	}
}

func BenchmarkSelect(b *testing.B) {
	ctx := context.Background()
	for _, sh := range shapes {
		in := tsbs(sh.hosts, sh.samples)
		enc, err := Encode(Options{}, grown(b, in, DefaultMaxLabels), merge.Slice(in))
		if err != nil {
			b.Fatal(err)
		}
		name := labels.MustNewMatcher(labels.MatchEqual, series.MetricName, "cpu_usage_user")
		for _, q := range []struct {
			name string
			sel  series.Selector
		}{
			{"all", everything},
			{"metric", series.Selector{Range: series.AllTime, Matchers: []*labels.Matcher{name}}},
			{"one", series.Selector{Range: series.AllTime, Matchers: []*labels.Matcher{name, labels.MustNewMatcher(labels.MatchEqual, "hostname", "host_7")}}},
		} {
			b.Run(fmt.Sprintf("series=%d/samples=%d/%s", sh.hosts*10, sh.samples, q.name), func(b *testing.B) {
				b.ReportAllocs()
				rows := 0
				for b.Loop() {
					f, err := Open(ctx, BytesSource("bench", enc.Data), int64(len(enc.Data)))
					if err != nil {
						b.Fatal(err)
					}
					for s, err := range f.Select(ctx, q.sel, nil) {
						if err != nil {
							b.Fatal(err)
						}
						rows += len(s.Samples)
					}
				}
				b.ReportMetric(float64(rows)/b.Elapsed().Seconds(), "rows/s")
			})
		}
	}
}
