package checkpoint

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"testing"
	"time"

	"cardinalsin/action"
	"cardinalsin/storage"
	"cardinalsin/storage/mem"
)

// heapPeak samples the heap while f runs and returns how far it rose.
func heapPeak(f func()) uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	base := m.HeapAlloc
	var peak atomic.Uint64
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		var m runtime.MemStats
		for {
			runtime.ReadMemStats(&m)
			peak.Store(max(peak.Load(), m.HeapAlloc))
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	f()
	close(stop)
	<-done
	return max(peak.Load(), base) - base
}

// discard is a store that keeps nothing but counts, so that the memory of
// Write is seen and not that of the store.
func benchSizes() []int {
	sizes := []int{10_000, 300_000}
	if os.Getenv("CARDINAL_BENCH_LARGE") != "" {
		sizes = append(sizes, 1_000_000)
	}
	return sizes
}

func BenchmarkEncode(b *testing.B) {
	for _, n := range benchSizes() {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := sample(n).state()
			dir := b.TempDir()
			var peak uint64
			var size int64
			for b.Loop() {
				peak = max(peak, heapPeak(func() {
					f, err := os.CreateTemp(dir, "x")
					if err != nil {
						b.Fatal(err)
					}
					if _, err := encode(f, s, Options{RowGroupActions: 10_000}); err != nil {
						b.Fatal(err)
					}
					st, err := f.Stat()
					if err != nil {
						b.Fatal(err)
					}
					size = st.Size()
					f.Close()
				}))
			}
			b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "adds/s")
			b.ReportMetric(float64(peak)/(1<<20), "peak-MiB")
			b.ReportMetric(float64(size)/float64(n), "B/add")
		})
	}
}

func benchStore(b *testing.B, n int) (storage.Store, Ref) {
	store := mem.New(mem.Options{})
	info, err := Write(b.Context(), store, logDir, sample(n).state(), Options{})
	if err != nil {
		b.Fatal(err)
	}
	return store, info.Ref
}

func BenchmarkRead(b *testing.B) {
	for _, n := range benchSizes() {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			store, ref := benchStore(b, n)
			debug.FreeOSMemory()
			var peak uint64
			for b.Loop() {
				count := 0
				peak = max(peak, heapPeak(func() {
					err := Read(context.Background(), store, logDir, ref, Sink{
						Add:    func(*action.Add) error { count++; return nil },
						Remove: func(*action.Remove) error { return nil },
					})
					if err != nil || count != n {
						b.Fatal(err, count)
					}
				}))
			}
			b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "adds/s")
			b.ReportMetric(float64(peak)/(1<<20), "peak-MiB")
		})
	}
}
