package wal

import (
	"fmt"
	"testing"

	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/series"
)

// benchBatch is what a scraper of so many hosts sends: ten metrics of twelve
// labels each, one sample a series.
func benchBatch(hosts int) series.Batch {
	var b series.Batch
	for h := range hosts {
		for m := range 10 {
			b = append(b, series.Series{
				Labels: labels.FromStrings("__name__", fmt.Sprintf("cpu_usage_metric_%d", m), "arch", "x64",
					"datacenter", fmt.Sprintf("eu-west-1%c", 'a'+h%3), "hostname", fmt.Sprintf("host_%d", h),
					"instance", fmt.Sprintf("10.0.%d.%d:9100", h/256, h%256), "job", "node", "os", "Ubuntu24.04LTS",
					"rack", fmt.Sprint(h%97), "region", "eu-west-1", "service", fmt.Sprint(h%19),
					"service_environment", "production", "team", fmt.Sprintf("team-%d", h%7)),
				Samples: []series.Sample{float(1_700_000_000_000_000, float64((h*7919+m*104729)%10000)/100)},
			})
		}
	}
	return b
}

func perSample(b *testing.B, samples int) {
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(samples), "ns/sample")
}

func BenchmarkEncode(b *testing.B) {
	for _, hosts := range []int{1, 50, 1000} {
		batch := benchBatch(hosts)
		b.Run(fmt.Sprintf("samples=%d", batch.Samples()), func(b *testing.B) {
			var r Record
			for b.Loop() {
				r = mustEncode(b, batch)
			}
			perSample(b, batch.Samples())
			b.ReportMetric(float64(r.Bytes())/float64(batch.Samples()), "B/sample")
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, hosts := range []int{1, 50, 1000} {
		batch := benchBatch(hosts)
		r := mustEncode(b, batch)
		b.Run(fmt.Sprintf("samples=%d", batch.Samples()), func(b *testing.B) {
			for b.Loop() {
				if _, err := decodePayload(r.codec, r.payload); err != nil {
					b.Fatal(err)
				}
			}
			perSample(b, batch.Samples())
		})
	}
}

// BenchmarkAppend shows what a group gains: one sync for all its records of
// 500 samples each.
func BenchmarkAppend(b *testing.B) {
	r := mustEncode(b, benchBatch(50))
	for _, size := range []int{1, 4, 16, 64} {
		b.Run(fmt.Sprintf("group=%d", size), func(b *testing.B) {
			l := mustOpen(b, b.TempDir(), Options{})
			group := make([]Record, size)
			for i := range group {
				group[i] = r
			}
			for b.Loop() {
				if _, last, err := l.Append(group); err != nil {
					b.Fatal(err)
				} else if last%1024 == 0 {
					if err := l.Truncate(last); err != nil {
						b.Fatal(err)
					}
				}
			}
			perSample(b, size*r.Samples())
		})
	}
}
