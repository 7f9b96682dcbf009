package prom

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"
	v1 "github.com/prometheus/prometheus/web/api/v1"

	"cardinalsin/series"
)

// TestStatusTSDB: the cardinalities are those that upstream's definitions give for
// the same series, wherever these are stored, once each, and by version.
func TestStatusTSDB(t *testing.T) {
	tb := newTable(t)
	var all []series.Series
	for i := range 30 {
		all = append(all, floats(0, lbl(fmt.Sprint("m", i%3), "i", fmt.Sprint(i), "job", fmt.Sprint("j", i%7)), 1, 2))
	}
	tb.append(t, all[:20]...)
	tb.flush(t)               // version 1
	tb.append(t, all[10:]...) // ten are in files and in the head
	s := tb.serve(t)

	status := func(params string) (out v1.TSDBStatus) {
		t.Helper()
		r := get(t, s.URL+"/api/v1/status/tsdb?"+params)
		var body struct{ Data v1.TSDBStatus }
		if err := json.Unmarshal([]byte(r.body), &body); err != nil || r.code != http.StatusOK {
			t.Fatal(r.code, r.body, err)
		}
		return body.Data
	}
	counts := func(stats []v1.TSDBStat) map[string]uint64 {
		out := map[string]uint64{}
		for _, s := range stats {
			out[s.Name] = s.Value
		}
		return out
	}
	for _, c := range []struct {
		params string
		series []series.Series
		head   bool
	}{
		{"limit=100", all, true},
		{"limit=100&version=1", all[:20], false},
	} {
		names, metrics, pairs, size := map[string]uint64{}, map[string]uint64{}, map[string]uint64{}, map[string]uint64{}
		seen := map[string]bool{}
		for _, x := range c.series {
			x.Labels.Range(func(l labels.Label) {
				pair := l.Name + "=" + l.Value
				if !seen[pair] {
					seen[pair] = true
					names[l.Name]++
				}
				if l.Name == labels.MetricName {
					metrics[l.Value]++
				}
				pairs[pair]++
				size[l.Name] += labels.SizeOfLabels(l.Name, l.Value, 1)
			})
		}
		got := status(c.params)
		for _, x := range []struct {
			what string
			want map[string]uint64
			got  []v1.TSDBStat
		}{
			{"metrics", metrics, got.SeriesCountByMetricName},
			{"names", names, got.LabelValueCountByLabelName},
			{"pairs", pairs, got.SeriesCountByLabelValuePair},
			{"bytes", size, got.MemoryInBytesByLabelName},
		} {
			if d := gocmp.Diff(x.want, counts(x.got)); d != "" {
				t.Errorf("%s: %s: %s", c.params, x.what, d)
			}
			if !slices.IsSortedFunc(x.got, func(a, b v1.TSDBStat) int { return int(b.Value) - int(a.Value) }) {
				t.Errorf("%s: %s: %v is not in order", c.params, x.what, x.got)
			}
		}
		if h := got.HeadStats; h.NumSeries != uint64(len(c.series)) || h.NumLabelPairs != len(slices.Collect(maps.Keys(seen))) || (h.MaxTime != 0) != c.head {
			t.Errorf("%s: %+v", c.params, h)
		}
	}
	if got := status("limit=2"); len(got.SeriesCountByLabelValuePair) != 2 || got.SeriesCountByLabelValuePair[0] != (v1.TSDBStat{Name: "__name__=m0", Value: 10}) {
		t.Errorf("limit=2: %v", got.SeriesCountByLabelValuePair)
	}
	for params, want := range map[string]int{"limit=0": 400, "limit=x": 400, "limit=10001": 400, "version=99": 404, "version=-1": 400} {
		if r := get(t, s.URL+"/api/v1/status/tsdb?"+params); r.code != want {
			t.Errorf("%s: %d %s; want %d", params, r.code, r.body, want)
		}
	}
}

// TestTop keeps the largest, however many come.
func TestTop(t *testing.T) {
	many := top{limit: 3}
	for i := range 5000 {
		many.add(fmt.Sprint(i), uint64(i*7919%5000))
	}
	var got []uint64
	for _, s := range many.list() {
		got = append(got, s.Value)
	}
	if d := gocmp.Diff([]uint64{4999, 4998, 4997}, got); d != "" {
		t.Error(d)
	}
}
