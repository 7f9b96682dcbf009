package checkpoint

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/parquet-go/parquet-go"

	"cardinalsin/action"
	"cardinalsin/storage/mem"
)

// measure runs f until the benchmark is done and reports, beside the time,
// the processor time (which other load on the machine does not stretch), the
// rate by it, and how far the heap rose.
func measure(b *testing.B, adds int, f func()) {
	b.Helper()
	var peak uint64
	before := cpuSeconds(b)
	for b.Loop() {
		peak = max(peak, heapPeak(f))
	}
	cpu := (cpuSeconds(b) - before) / float64(b.N)
	b.ReportMetric(cpu, "cpu-s/op")
	b.ReportMetric(float64(adds)/cpu, "adds/cpu-s")
	b.ReportMetric(float64(peak)/(1<<20), "peak-MiB")
}

func cpuSeconds(b *testing.B) float64 {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return float64(r.Utime.Sec+r.Stime.Sec) + float64(r.Utime.Usec+r.Stime.Usec)/1e6
}

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

// benchSizes are numbers of files; a million take some GB to prepare.
func benchSizes() []int {
	sizes := []int{10_000, 300_000}
	if os.Getenv("CARDINAL_BENCH_LARGE") != "" {
		sizes = append(sizes, 1_000_000)
	}
	return sizes
}

// BenchmarkEncode builds the file, without storing and verifying it.
func BenchmarkEncode(b *testing.B) {
	for _, n := range benchSizes() {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := sample(n).state()
			var size counter
			measure(b, n, func() {
				size = 0
				if _, err := encode(&size, s, Options{RowGroupActions: 10_000}); err != nil {
					b.Fatal(err)
				}
			})
			b.ReportMetric(float64(size)/float64(n), "B/add")
		})
	}
}

type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// BenchmarkRead reads from memory: Read, the same for the protocol alone, and
// as peers upstream's reader of Go structs and its reader of bare values,
// which makes no actions and checks no sum.
func BenchmarkRead(b *testing.B) {
	for _, n := range benchSizes() {
		store := mem.New(mem.Options{})
		info, err := Write(b.Context(), store, logDir, sample(n).state(), Options{})
		if err != nil {
			b.Fatal(err)
		}
		data, _, err := store.Get(b.Context(), info.Ref.Keys[0])
		if err != nil {
			b.Fatal(err)
		}
		for _, c := range []struct {
			name string
			read func(b *testing.B) int
		}{
			{"ours", func(b *testing.B) (adds int) {
				err := Read(context.Background(), store, logDir, info.Ref, Sink{
					Add:    func(*action.Add) error { adds++; return nil },
					Remove: func(*action.Remove) error { return nil },
				})
				if err != nil {
					b.Fatal(err)
				}
				return adds
			}},
			{"protocol", func(b *testing.B) int {
				found := 0
				err := Read(context.Background(), store, logDir, info.Ref, Sink{Protocol: func(*action.Protocol) error { found = n; return nil }})
				if err != nil {
					b.Fatal(err)
				}
				return found
			}},
			{"upstream-structs", func(b *testing.B) int { return upstreamStructs(b, data) }},
			{"upstream-values", func(b *testing.B) int { return upstreamValues(b, data) }},
		} {
			b.Run(fmt.Sprintf("%d/%s", n, c.name), func(b *testing.B) {
				measure(b, n, func() {
					if got := c.read(b); got != n {
						b.Fatalf("%d adds, want %d", got, n)
					}
				})
			})
		}
	}
}

type upstreamRow struct {
	Add *struct {
		Path             string            `parquet:"path,optional"`
		PartitionValues  map[string]string `parquet:"partitionValues,optional"`
		Size             int64             `parquet:"size,optional"`
		ModificationTime int64             `parquet:"modificationTime,optional"`
		DataChange       bool              `parquet:"dataChange,optional"`
		Stats            string            `parquet:"stats,optional"`
		Tags             map[string]string `parquet:"tags,optional"`
	} `parquet:"add,optional"`
}

func upstreamStructs(b *testing.B, data []byte) (adds int) {
	f, err := parquet.OpenFile(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		b.Fatal(err)
	}
	r := parquet.NewGenericReader[upstreamRow](f)
	rows := make([]upstreamRow, 1000)
	for {
		n, err := r.Read(rows)
		for i := range n {
			if rows[i].Add != nil {
				adds++
			}
		}
		clear(rows)
		if errors.Is(err, io.EOF) {
			return adds
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

func upstreamValues(b *testing.B, data []byte) (adds int) {
	f, err := parquet.OpenFile(bytes.NewReader(data), int64(len(data)), parquet.SkipPageIndex(true))
	if err != nil {
		b.Fatal(err)
	}
	values := make([]parquet.Value, 1024)
	for _, g := range f.RowGroups() {
		for i, chunk := range g.ColumnChunks() {
			path := f.Schema().Columns()[i]
			if path[0] != "add" {
				continue
			}
			pages := chunk.Pages()
			for {
				page, err := pages.ReadPage()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					b.Fatal(err)
				}
				for r := page.Values(); ; {
					n, err := r.ReadValues(values)
					for _, v := range values[:n] {
						if path[1] == "path" && !v.IsNull() {
							adds++
						}
					}
					if err != nil {
						break
					}
				}
				parquet.Release(page)
			}
			if err := pages.Close(); err != nil {
				b.Fatal(err)
			}
		}
	}
	return adds
}
