package writer

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/chunk"
	"cardinalsin/series"
	"cardinalsin/shard"
	"cardinalsin/storage/mem"
	"cardinalsin/wal"
)

// scrapes yields batches of n samples that go round all series, one sample
// each a round, 10 s apart. With churn, one series in ten is replaced by a new
// one every round.
func scrapes(all []series.Labels, n int, churn bool) func() series.Batch {
	var mu sync.Mutex
	next, round := 0, int64(0)
	return func() series.Batch {
		mu.Lock()
		from, r := next, round
		if next += n; next+n > len(all) {
			next, round = 0, round+1
		}
		mu.Unlock()
		b := make(series.Batch, n)
		samples := make([]series.Sample, n)
		for i := range b {
			samples[i] = at0(r*10_000_000, float64(r)*1.5+float64(from+i))
			l := all[from+i]
			if churn && (from+i)%10 == int(r%10) {
				l = labels.NewBuilder(l).Set("pod", fmt.Sprintf("replaced-in-round-%d", r)).Labels()
			}
			b[i] = series.Series{Labels: l, Samples: samples[i : i+1 : i+1]}
		}
		return b
	}
}

// BenchmarkAppend writes batches over 200,000 series by as many clients as the
// name says, while Run flushes into a store in memory: with an fsync before
// each acknowledgement, with one every 100 ms, and so with churn.
func BenchmarkAppend(b *testing.B) {
	all := manySeries(200_000)
	for _, size := range []int{1000, 10_000} {
		for _, clients := range []int{1, 8} {
			for _, mode := range []string{"always", "interval", "churn"} {
				b.Run(fmt.Sprintf("samples=%d/clients=%d/%s", size, clients, mode), func(b *testing.B) {
					opts := wal.Options{}
					if mode != "always" {
						opts.Sync = wal.SyncDeferred
					}
					benchAppend(b, scrapes(all, size, mode == "churn"), size, clients, opts)
				})
			}
		}
	}
}

func benchAppend(b *testing.B, batch func() series.Batch, size, clients int, opts wal.Options) {
	disk, err := wal.Open(b.TempDir(), opts)
	if err != nil {
		b.Fatal(err)
	}
	defer disk.Close() //nolint:errcheck // the benchmark is over
	w, err := Open(b.Context(), createTable(b, mem.New(mem.Options{})), disk, Options{})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	var running sync.WaitGroup
	for _, run := range []func(context.Context) error{w.Run, disk.Run} {
		running.Go(func() {
			if err := run(ctx); err != nil {
				b.Error(err)
			}
		})
	}
	var left atomic.Int64
	left.Store(int64(b.N))
	var group sync.WaitGroup
	b.ReportAllocs()
	b.ResetTimer()
	for range clients {
		group.Go(func() {
			for left.Add(-1) >= 0 {
				if err := w.Append(ctx, batch()); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	b.StopTimer()
	cancel()
	running.Wait()
	b.ReportMetric(float64(b.N)*float64(size)/b.Elapsed().Seconds(), "samples/s")
}

// BenchmarkFlush cuts, sorts, encodes and commits a head of 200,000 series
// with five samples each.
func BenchmarkFlush(b *testing.B) {
	all := manySeries(200_000)
	disk, err := wal.Open(b.TempDir(), wal.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer disk.Close() //nolint:errcheck // the benchmark is over
	w, err := Open(b.Context(), createTable(b, mem.New(mem.Options{})), disk, Options{})
	if err != nil {
		b.Fatal(err)
	}
	for range b.N {
		b.StopTimer()
		batch := scrapes(all, len(all), false)
		sets := setsOf(b, batch())
		w.insertMu.Lock()
		for range 5 {
			w.insert(w.inserted+1, batch(), sets)
		}
		w.insertMu.Unlock()
		b.StartTimer()
		if err := w.Flush(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)*float64(5*len(all))/b.Elapsed().Seconds(), "rows/s")
}

// BenchmarkEncodePart cuts and encodes a head of 25 rounds over 200,000 series,
// of which none or a tenth are others in each round.
func BenchmarkEncodePart(b *testing.B) {
	const rounds = 25
	for _, churn := range []bool{false, true} {
		b.Run(fmt.Sprintf("churn=%t", churn), func(b *testing.B) {
			all := manySeries(200_000)
			h := newHead()
			rows := 0
			for r := range rounds {
				for from := 0; from < len(all); from += 2000 {
					batch := make(series.Batch, 0, 2000)
					for i := from; i < from+2000; i++ {
						if churn && (i/100+r)%10 == 0 {
							host := fmt.Sprintf("host-%d-%d.example.com", i/100, r)
							all[i] = labels.NewBuilder(all[i]).Set("hostname", host).Labels()
						}
						batch = append(batch, series.Series{Labels: all[i], Samples: []series.Sample{at0(int64(r)*10_000_000, float64(i%100+r))}})
					}
					h.insert(wal.Sequence(1+rows/2000), batch, setsOf(b, batch), time.Time{})
					rows += len(batch)
				}
			}
			layout, err := chunk.LayoutOf(chunk.BaseSchema())
			if err != nil {
				b.Fatal(err)
			}
			if layout, err = grown(chunk.BaseSchema(), layout.Grow(h.contents().Labels)); err != nil {
				b.Fatal(err)
			}
			b.ResetTimer()
			for range b.N {
				p := planPart(h, 1, shard.Initial(), limits{rows: 1 << 30, files: maxPartFiles})
				for _, f := range p.files {
					if _, err := f.encode(chunk.Options{}, layout, p); err != nil {
						b.Fatal(err)
					}
				}
			}
			b.ReportMetric(float64(h.count), "series")
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(rows), "ns/row")
		})
	}
}
