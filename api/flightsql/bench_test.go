package flightsql

import (
	"fmt"
	"testing"
)

// BenchmarkQuery is a statement from Execute to its last row: what one costs,
// and what a row costs.
func BenchmarkQuery(b *testing.B) {
	s := serve(b, Options{})
	for _, rows := range []int{1, 5_000_000} {
		b.Run(fmt.Sprintf("rows=%d", rows), func(b *testing.B) {
			for b.Loop() {
				info, err := s.Execute(b.Context(), fmt.Sprintf("SELECT range, range * 0.5::DOUBLE, 'host' FROM range(%d)", rows))
				if err != nil {
					b.Fatal(err)
				}
				r, err := s.DoGet(b.Context(), info.Endpoint[0].Ticket)
				if err != nil {
					b.Fatal(err)
				}
				n := 0
				for r.Next() {
					n += int(r.RecordBatch().NumRows())
				}
				if r.Err() != nil || n != rows {
					b.Fatal(n, r.Err())
				}
				r.Release()
			}
			b.ReportMetric(float64(rows)*float64(b.N)/b.Elapsed().Seconds()/1e6, "Mrows/s")
		})
	}
}
