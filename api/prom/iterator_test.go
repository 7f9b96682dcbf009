package prom

import (
	"math"
	"testing"

	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"pgregory.net/rapid"

	"cardinalsin/internal/merge"
	"cardinalsin/series"
)

// TestFloatsIterateAsSamples: an iterator over floats does, step by step, what
// one over samples does.
func TestFloatsIterateAsSamples(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		f := merge.Floats{}
		at := series.Timestamp(rapid.SampledFrom([]int64{-5_000_000, 0, 17, int64(series.MinTimestamp), int64(series.MaxTimestamp) - 30_000}).Draw(rt, "first"))
		gaps := rapid.SampledFrom([][]int{{1, 400, 999, 1000, 1001, 15_000_000}, {1000, 5000}}).Draw(rt, "gaps")
		for i := range rapid.IntRange(1, 40).Draw(rt, "samples") {
			if at > series.MaxTimestamp {
				break
			}
			f.Times, f.Values = append(f.Times, at), append(f.Values, float64(i))
			at += series.Timestamp(rapid.SampledFrom(gaps).Draw(rt, "gap"))
		}
		given := append([]series.Timestamp(nil), f.Times...)
		a, err := pointsIn(&merge.Series{Floats: f})
		if err != nil {
			rt.Fatal(err)
		}
		b, err := pointsIn(&merge.Series{Samples: f.AppendTo(nil)})
		if err != nil {
			rt.Fatal(err)
		}
		x := (&tableSeries{points: a}).Iterator(nil)
		y := (&tableSeries{points: b}).Iterator(nil)
		for range 60 {
			var kx, ky chunkenc.ValueType
			if rapid.Bool().Draw(rt, "seek") {
				to := rapid.OneOf(
					rapid.SampledFrom([]int64{math.MinInt64, math.MaxInt64, int64(series.MaxTimestamp) / 1000, int64(series.MinTimestamp)/1000 - 1}),
					rapid.Map(rapid.SampledFrom(f.Times), func(at series.Timestamp) int64 { return at.Millis() }),
					rapid.Map(rapid.SampledFrom(f.Times), func(at series.Timestamp) int64 { return at.Millis() + 1 }),
				).Draw(rt, "to")
				kx, ky = x.Seek(to), y.Seek(to)
			} else {
				kx, ky = x.Next(), y.Next()
			}
			if kx != ky {
				rt.Fatalf("floats stand on %s, samples on %s", kx, ky)
			}
			if kx == chunkenc.ValNone {
				continue
			}
			tx, vx := x.At()
			ty, vy := y.At()
			if tx != ty || vx != vy || x.AtT() != tx || y.AtT() != ty || x.AtST() != y.AtST() {
				rt.Fatalf("floats stand on %d %v, samples on %d %v", tx, vx, ty, vy)
			}
		}
		for i := range given {
			if f.Times[i] != given[i] {
				rt.Fatal("the shared columns were changed")
			}
		}
	})
}
