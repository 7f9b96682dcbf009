package planner

import (
	"fmt"
	"testing"

	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/internal/merge"
	"cardinalsin/series"
	"cardinalsin/shard"
)

// BenchmarkPlan: one pod's series of one metric, in tables of one file an
// hour and pod; 20 labels have a column.
func BenchmarkPlan(b *testing.B) {
	for _, n := range []int{100, 1_000, 10_000} {
		b.Run(fmt.Sprintf("files=%d", n), func(b *testing.B) {
			var names []string
			for i := range 20 {
				names = append(names, fmt.Sprintf("label_%02d", i))
			}
			tb := newTable(b, tableOptions{labels: names, shards: shard.Initial()})
			var adds []action.Add
			for i := range n {
				pairs := []string{series.MetricName, "http_requests_total"}
				for _, l := range names {
					pairs = append(pairs, l, fmt.Sprintf("value-%d", i))
				}
				ls := labels.FromStrings(pairs...)
				s := chunk.Series{Labels: ls, ID: series.IDOf(ls), Samples: []series.Sample{{Time: day + series.Timestamp(i)}}}
				e, err := chunk.Encode(chunk.Options{}, tb.layout, merge.Slice([]chunk.Series{s}))
				if err != nil {
					b.Fatal(err)
				}
				stats, err := e.Stats.Encode()
				if err != nil {
					b.Fatal(err)
				}
				adds = append(adds, action.Add{
					Path: fmt.Sprint(i), Size: 1, DataChange: true, Stats: stats,
					PartitionValues: action.ObjectOf(map[string]string{chunk.ColumnDate: e.Time.Min.Date().String(), chunk.ColumnShard: "1"}),
					Tags:            chunk.Tags{Time: e.Time, Keys: e.Keys}.Encode(),
				})
			}
			snap := tb.add(b, adds...)
			for name, matchers := range map[string][]*labels.Matcher{
				"time": nil,
				"label": {
					labels.MustNewMatcher(labels.MatchEqual, series.MetricName, "http_requests_total"),
					labels.MustNewMatcher(labels.MatchEqual, "label_07", "value-5"),
				},
			} {
				b.Run(name, func(b *testing.B) {
					sel := series.Selector{Range: series.AllTime, Matchers: matchers}
					if matchers == nil {
						sel.Range.Max = day + 10
					}
					for b.Loop() {
						if _, err := new(Planner).Plan(snap, sel); err != nil {
							b.Fatal(err)
						}
					}
				})
			}
		})
	}
}
