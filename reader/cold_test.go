package reader

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/datadriven"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/index"
	"cardinalsin/internal/merge"
	"cardinalsin/lease"
	"cardinalsin/series"
	"cardinalsin/storage"
	"cardinalsin/storage/cache"
	"cardinalsin/storage/meter"
	"cardinalsin/txlog"
)

// TestColdGolden asks a table for the first time, on a store where each
// request takes a round, and prints how many requests and rounds it takes.
// Clocks are those of the test's bubble: all else takes no time.
//
//	table days=n series=n [files=n]   a file a day, or so many, with the index
//	select k=value                    one series over all days
//	values                            of label k
func TestColdGolden(t *testing.T) {
	datadriven.Walk(t, "testdata/cold", func(t *testing.T, path string) {
		var e *env
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			switch d.Cmd {
			case "table":
				days, number, files := 1, 1, 1
				d.MaybeScanArgs(t, "days", &days)
				d.MaybeScanArgs(t, "series", &number)
				d.MaybeScanArgs(t, "files", &files)
				e = newEnv(t, "k")
				var all []file
				for i := range days {
					for f := range files {
						all = append(all, e.uploadDay(t, i, f, number))
					}
				}
				e.commit(t, nil, all)
				e.index(t)
				return ""
			case "select":
				var k string
				d.ScanArgs(t, "k", &k)
				return e.cold(t, func(ctx context.Context, v *View) (string, error) {
					sel := series.Selector{Range: series.AllTime, Matchers: []*series.Matcher{equal(series.MetricName, "m"), equal("k", k)}}
					found, n := 0, 0
					for s, err := range v.Select(ctx, sel) {
						if err != nil {
							return "", err
						}
						found, n = found+1, n+len(s.Samples)
					}
					return fmt.Sprintf("%d series, %d samples", found, n), nil
				})
			case "values":
				return e.cold(t, func(ctx context.Context, v *View) (string, error) {
					found, err := v.LabelValues(ctx, "k", everything, 0)
					return fmt.Sprintf("%d values", len(found)), err
				})
			}
			t.Fatalf("unknown command %q", d.Cmd)
			return ""
		})
	})
}

// uploadDay stores a file of a day that is too large to be read with its
// footer.
func (e *env) uploadDay(t tester, days, of, number int) file {
	t.Helper()
	layout, err := chunk.LayoutOf(e.snapshot(t).Schema())
	if err != nil {
		t.Fatalf("layout: %v", err)
	}
	start := day + series.Timestamp(days)*series.Timestamp(24*time.Hour/time.Microsecond)
	r := rand.New(rand.NewPCG(uint64(days), uint64(of)))
	in := make([]merge.Series, number)
	for i := range in {
		l := lbl("m", "k", fmt.Sprintf("%05d", i))
		in[i] = merge.Series{Labels: l, ID: series.IDOf(l)}
		for hour := range 24 {
			at := start + series.Timestamp(hour)*series.Timestamp(time.Hour/time.Microsecond) + series.Timestamp(of)
			in[i].Samples = append(in[i].Samples, series.Sample{Time: at, Value: r.Float64()})
		}
	}
	slices.SortFunc(in, func(a, b merge.Series) int { return a.Compare(&b) })
	enc, err := chunk.Encode(chunk.Options{RowGroupRows: 4096}, layout, merge.Slice(in))
	if err != nil {
		t.Fatalf("encode: %v", err)
	}
	if len(enc.Data) < 100<<10 {
		t.Fatalf("a file of %d bytes is read whole", len(enc.Data))
	}
	stats, err := enc.Stats.Encode()
	if err != nil {
		t.Fatalf("statistics: %v", err)
	}
	path := fmt.Sprintf("date=%s/shard=1/%d.parquet", start.Date(), of)
	if _, err := e.inner.Put(context.Background(), root+"/"+path, bytes.NewReader(enc.Data)); err != nil {
		t.Fatalf("put: %v", err)
	}
	e.order++
	return file{add: action.Add{
		Path: path, Size: int64(len(enc.Data)), DataChange: true, Stats: stats,
		PartitionValues: action.ObjectOf(map[string]string{chunk.ColumnDate: start.Date().String(), chunk.ColumnShard: "1"}),
		Tags:            chunk.Tags{Level: 1, Order: chunk.Order{Lo: e.order, Hi: e.order}, Time: enc.Time, Keys: enc.Keys}.Encode(),
	}}
}

// cold asks in a process that has opened the table and nothing else.
func (e *env) cold(t *testing.T, ask func(context.Context, *View) (string, error)) (out string) {
	t.Helper()
	const round = 50 * time.Millisecond
	// What is shared by the process must not be made in a bubble.
	warm := New(e.admin, nil, Options{Index: index.New(e.admin, index.Options{})})
	v, err := warm.At(context.Background(), txlog.Latest())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ask(context.Background(), v); err != nil {
		t.Fatal(err)
	}
	v.Close()
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		var mu sync.Mutex
		count := map[string]int{}
		slow := meter.New(e.inner, meter.Options{OnCall: func(c meter.Event) {
			if c.Op == storage.OpNow { // which earlier answers carry
				return
			}
			time.Sleep(round)
			kind := "data"
			for in, what := range map[string]string{"/_delta_log/": "log", "/_cardinal/": "pins", "/_index/": "index"} {
				if strings.Contains(c.Key, in) {
					kind = what
				}
			}
			mu.Lock()
			defer mu.Unlock()
			count[kind]++
		}})
		log, err := txlog.Open(ctx, slow, root, txlog.Options{Now: e.clock.Now})
		if err != nil {
			t.Fatal(err)
		}
		near, err := cache.New(cache.Options{MemoryBytes: 64 << 20})
		if err != nil {
			t.Fatal(err)
		}
		pins := lease.NewPins(slow, root+"/_cardinal/pins", "test", lease.Options{Now: e.clock.Now})
		r := New(log, pins, Options{Ranges: near, Index: index.New(log, index.Options{Ranges: near})})
		clear(count)
		begin := time.Now()
		v, err := r.At(ctx, txlog.Latest())
		if err != nil {
			t.Fatal(err)
		}
		out, err = ask(ctx, v)
		took := time.Since(begin)
		v.Close()
		if err != nil {
			t.Fatal(err)
		}
		if err := near.Close(); err != nil {
			t.Fatal(err)
		}
		sum := 0
		for _, n := range count {
			sum += n
		}
		out += fmt.Sprintf("\n%d requests in %d rounds:", sum, (took+round-1)/round)
		for _, kind := range slices.Sorted(maps.Keys(count)) {
			out += fmt.Sprintf(" %s %d", kind, count[kind])
		}
		out += "\n"
		if took%round != 0 {
			t.Errorf("took %v, no multiple of %v", took, round)
		}
	})
	return out
}
