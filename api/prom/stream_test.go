package prom

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/prometheus/prompb"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"

	"cardinalsin/series"
)

// TestStream: whatever the order in which the series of a streamed selection
// are iterated, again or at once, each has the samples that it has in one that
// is kept, hints of histograms included.
func TestStream(t *testing.T) {
	tb := newTable(t)
	for part := range 2 { // in files and in the head
		var batch series.Batch
		for i := range 14 {
			s := floats(time.Duration(part)*time.Minute, lbl("m", "i", fmt.Sprint(i)), 1, 2, 3)
			if i%3 == 1 { // counters that go on from before the selection
				for k := range s.Samples {
					h := prompb.FromIntHistogram(0, tsdbutil.GenerateTestHistogram(int64(10*part+k)))
					s.Samples[k].Histogram = marshalHistogram(t, &h)
				}
			}
			if i%2 == 0 { // nothing in the selection
				s.Samples = s.Samples[:1]
				s.Samples[0].Time = series.FromMillis(at(0) + 1)
			}
			batch = append(batch, s)
		}
		tb.append(t, batch...)
		if part == 0 {
			tb.flush(t)
		}
	}
	selected := func(keep int) []storage.Series {
		q := NewQueryable(tb.reader)
		q.KeepSamples = keep
		querier, err := q.Querier(at(0)+15_000, at(0)+1000*1000)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = querier.Close() })
		var out []storage.Series
		set := querier.Select(context.Background(), false, nil, matchers(t, "m")...)
		for set.Next() {
			out = append(out, set.At())
		}
		if set.Err() != nil {
			t.Fatal(set.Err())
		}
		return out
	}
	want := map[string]string{}
	for _, s := range selected(1000) {
		want[s.Labels().String()] = samplesOf(t, s.Iterator(nil))
	}
	streamed := selected(0)
	if len(want) == 0 || len(streamed) <= len(want) {
		t.Fatalf("%d series kept, %d streamed: those without samples are only among the latter", len(want), len(streamed))
	}
	check := func(i int) {
		t.Helper()
		s := streamed[i]
		if got := samplesOf(t, s.Iterator(nil)); got != want[s.Labels().String()] {
			t.Errorf("series %d, %s: %s, want %s", i, s.Labels(), got, want[s.Labels().String()])
		}
	}
	last := len(streamed) - 1
	order := []int{}
	for i := range streamed {
		order = append(order, i)
	}
	for i := range streamed {
		order = append(order, last-i)
	}
	for i := range streamed {
		for k := range streamed {
			order = append(order, i, k)
		}
	}
	for _, i := range order {
		check(i)
	}
	// All iterators before any is used, then a step of each at a time.
	its := make([]chunkenc.Iterator, len(streamed))
	for i, s := range streamed {
		its[i] = s.Iterator(nil)
	}
	for step := range 3 {
		for i, it := range its {
			if it.Seek(at(0)+int64(step+1)*15_000) == chunkenc.ValNone && want[streamed[i].Labels().String()] != "" || it.Err() != nil {
				t.Errorf("series %d ends at step %d: %v", i, step, it.Err())
			}
		}
	}
}

// samplesOf prints what an iterator yields.
func samplesOf(t *testing.T, it chunkenc.Iterator) (out string) {
	t.Helper()
	for kind := it.Next(); kind != chunkenc.ValNone; kind = it.Next() {
		switch kind {
		case chunkenc.ValFloat:
			ms, v := it.At()
			out += fmt.Sprintf("%d %v;", ms, v)
		default:
			ms, h := it.AtFloatHistogram(nil)
			out += fmt.Sprintf("%d %s %d;", ms, h, h.CounterResetHint)
		}
	}
	if it.Err() != nil {
		t.Fatal(it.Err())
	}
	return out
}
