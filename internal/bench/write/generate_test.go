package main

import (
	"fmt"
	"testing"

	"github.com/golang/snappy"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/prompb"

	"cardinalsin/series"
)

// decoded returns the times of each series of a round, by upstream's decoder.
func decoded(t *testing.T, round []body) map[string]int64 {
	t.Helper()
	out := map[string]int64{}
	b := labels.NewScratchBuilder(16)
	for k, one := range round {
		raw, err := snappy.Decode(nil, one.data)
		if err != nil {
			t.Fatal(err)
		}
		var req prompb.WriteRequest
		if err := req.Unmarshal(raw); err != nil {
			t.Fatal(err)
		}
		if len(req.Timeseries) != one.samples {
			t.Errorf("request %d has %d series and says %d", k, len(req.Timeseries), one.samples)
		}
		for _, ts := range req.Timeseries {
			l := ts.ToLabels(&b, nil)
			if err := series.Validate(l); err != nil {
				t.Errorf("%s: %v", l, err)
			}
			if l.Len() != 13 || len(ts.Samples) != 1 {
				t.Errorf("%s has %d labels and %d samples", l, l.Len(), len(ts.Samples))
			}
			out[l.String()] = ts.Samples[0].Timestamp
		}
	}
	return out
}

// TestGenerate: every round has each series once, later by a step, and other
// series in the share that churn says.
func TestGenerate(t *testing.T) {
	const now, n = 1_800_000_000_000, 2500
	for _, churn := range []int{0, 10} {
		t.Run(fmt.Sprint("churn=", churn), func(t *testing.T) {
			in := generate(workload{series: n, rounds: 4, churn: churn, perPost: 1000}, now)
			var prev map[string]int64
			for r, round := range in {
				got := decoded(t, round)
				if len(got) != n || len(round) != 3 {
					t.Fatalf("round %d: %d series in %d requests", r, len(got), len(round))
				}
				fresh := 0
				for l, at := range got {
					if want := int64(now - (4-r)*stepMillis); at != want {
						t.Fatalf("round %d: %s at %d, want %d", r, l, at, want)
					}
					if _, ok := prev[l]; !ok {
						fresh++
					}
				}
				if want := n * churn / 100; r > 0 && fresh != want {
					t.Errorf("round %d: %d new series, want %d", r, fresh, want)
				}
				prev = got
			}
		})
	}
}
