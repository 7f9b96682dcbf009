package txlog_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"cardinalsin/action"
	"cardinalsin/checkpoint"
	"cardinalsin/storage"
	"cardinalsin/storage/local"
	"cardinalsin/storage/mem"
	"cardinalsin/storage/meter"
	"cardinalsin/txlog"
)

// heap is what is live after a collection.
func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// jsonTable writes a table of n files without statistics, in commits of
// 100,000, as text, in the form of kernel-rs's benchmark table.
func jsonTable(b testing.TB, store storage.Store, n int) {
	b.Helper()
	text, err := schema().Encode()
	if err != nil {
		b.Fatal(err)
	}
	first := action.Commit{
		Protocol: &action.Protocol{MinReaderVersion: 1, MinWriterVersion: 2},
		Metadata: &action.Metadata{ID: "bench", Format: action.Format{Provider: "parquet"}, SchemaString: text, PartitionColumns: []string{"partition_col"}},
	}
	data, err := first.Encode()
	if err != nil {
		b.Fatal(err)
	}
	for v, from := 0, 0; ; v++ {
		key := fmt.Sprintf("%s/_delta_log/%020d.json", root, v)
		if _, err := store.PutIfAbsent(context.Background(), key, data); err != nil {
			b.Fatal(err)
		}
		if from == n {
			return
		}
		var buf bytes.Buffer
		for to := min(n, from+100_000); from < to; from++ {
			p := from % 10
			fmt.Fprintf(&buf, `{"add":{"path":"part_%d/file_%d.parquet","partitionValues":{"partition_col":"part_%d"},"size":%d,"modificationTime":%d,"dataChange":true}}`+"\n", p, from, p, 1024*(p+1), 1234567890+from)
		}
		data = buf.Bytes()
	}
}

// BenchmarkLoadJSON loads 300,000 adds from JSON; CARDINAL_BENCH_TABLE names
// a table's directory to be loaded in place of the made one.
func BenchmarkLoadJSON(b *testing.B) {
	var inner storage.Store
	at := root
	if dir := os.Getenv("CARDINAL_BENCH_TABLE"); dir != "" {
		i := strings.LastIndexByte(dir, '/')
		s, err := local.New(dir[:i], local.Options{})
		if err != nil {
			b.Fatal(err)
		}
		inner, at = s, dir[i+1:]
	} else {
		inner = mem.New(mem.Options{})
		jsonTable(b, inner, 300_000)
	}
	benchLoad(b, inner, at)
}

// cpuSeconds does not grow while other processes have the machine.
func cpuSeconds(b *testing.B) float64 {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return float64(r.Utime.Sec+r.Stime.Sec) + float64(r.Utime.Usec+r.Stime.Usec)/1e6
}

func benchLoad(b *testing.B, inner storage.Store, at string) {
	b.Helper()
	store := meter.New(inner, meter.Options{})
	var l *txlog.Log
	before := heap()
	cpu := cpuSeconds(b)
	for b.Loop() {
		var err error
		if l, err = txlog.Open(b.Context(), store, at, txlog.Options{}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric((cpuSeconds(b)-cpu)/float64(b.N), "cpu-s/op")
	requests := float64(store.Snapshot().Total().Requests) / float64(b.N)
	after := heap()
	s := latest(b, l)
	b.ReportMetric(requests, "requests/op")
	b.ReportMetric(float64(after-before)/float64(s.NumFiles()), "B/file")
}

// ourTable writes version 0 and a checkpoint of version 1 with n files like
// ours: names of a day, a shard and a UUID.
func ourTable(b testing.TB, store storage.Store, n int) *txlog.Log {
	b.Helper()
	l, err := txlog.Create(context.Background(), store, root, txlog.CreateOptions{Schema: schema()}, txlog.Options{})
	if err != nil {
		b.Fatal(err)
	}
	s, err := appendFile(context.Background(), l, nil, "zzz")
	if err != nil {
		b.Fatal(err)
	}
	perDay := max(n/30, 1)
	_, err = checkpoint.Write(context.Background(), store, l.Dir(), checkpoint.State{
		Version: s.Version(), Protocol: s.Protocol(), Metadata: s.Metadata(),
		Adds: func(yield func(*action.Add) bool) {
			for i := range n {
				day := i / perDay
				if !yield(ourFile(day, i)) {
					return
				}
			}
		},
	}, checkpoint.Options{})
	if err != nil {
		b.Fatal(err)
	}
	if l, err = txlog.Open(context.Background(), store, root, txlog.Options{}); err != nil {
		b.Fatal(err)
	}
	return l
}

func ourFile(day, i int) *action.Add {
	h := uint64(i) * 0x9e3779b97f4a7c15
	return &action.Add{
		Path:            fmt.Sprintf("date=2026-%02d-%02d/shard=%04d/%08x-%016x.parquet", 1+day/28, 1+day%28, 7, i, h),
		PartitionValues: action.Object(fmt.Sprintf(`{"date":"2026-%02d-%02d","shard":"%04d"}`, 1+day/28, 1+day%28, 7)),
		Size:            int64(1_000_000 + h%1_000_000), ModificationTime: 1790000000000 + int64(i)*1000,
	}
}

func BenchmarkLoadCheckpoint(b *testing.B) {
	for _, n := range []int{100_000, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			store := mem.New(mem.Options{})
			ourTable(b, store, n)
			benchLoad(b, store, root)
		})
	}
}

// BenchmarkRefresh follows one commit of ten adds by another process.
func BenchmarkRefresh(b *testing.B) {
	for _, n := range []int{1000, 100_000, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			inner := mem.New(mem.Options{})
			ourTable(b, inner, n)
			store := meter.New(inner, meter.Options{})
			l := open(b, store)
			v := int64(latest(b, l).Version())
			file := 10_000_000
			var times []time.Duration
			before := store.Snapshot().Total().Requests
			for b.Loop() {
				b.StopTimer()
				c := action.Commit{Info: &action.CommitInfo{TxnID: "x", InCommitTimestamp: new(int64)}}
				for range 10 {
					file++
					c.Adds = append(c.Adds, *ourFile(file%30, file))
				}
				data, err := c.Encode()
				if err != nil {
					b.Fatal(err)
				}
				v++
				if _, err := inner.PutIfAbsent(b.Context(), l.CommitKey(action.Version(v)), data); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				start := time.Now()
				if s := latest(b, l); int64(s.Version()) != v {
					b.Fatalf("version %d, want %d", s.Version(), v)
				}
				times = append(times, time.Since(start))
			}
			slices.Sort(times)
			b.ReportMetric(float64(times[len(times)/2].Nanoseconds()), "median-ns")
			b.ReportMetric(float64(store.Snapshot().Total().Requests-before)/float64(b.N), "requests/op")
		})
	}
}

func BenchmarkFiles(b *testing.B) {
	l := ourTable(b, mem.New(mem.Options{}), 1_000_000)
	s := latest(b, l)
	var size int64
	for b.Loop() {
		for a := range s.Files() {
			size += a.Size
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1e6, "ns/file")
}

// BenchmarkCheckpoint writes a checkpoint of a million files to a disk, and
// reports how far the heap rose above the snapshot, as a multiple of it.
func BenchmarkCheckpoint(b *testing.B) {
	store, err := local.New(b.TempDir(), local.Options{})
	if err != nil {
		b.Fatal(err)
	}
	before := heap()
	l := ourTable(b, store, 1_000_000)
	snapshot := heap() - before
	var peak uint64
	for b.Loop() {
		b.StopTimer()
		s, err := appendFile(b.Context(), l, nil, fmt.Sprint(latest(b, l).Version()))
		if err != nil {
			b.Fatal(err)
		}
		heap() // nothing is left of the load
		stop, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			var m runtime.MemStats
			for {
				runtime.ReadMemStats(&m)
				peak = max(peak, m.HeapAlloc)
				select {
				case <-stop:
					return
				case <-time.After(2 * time.Millisecond):
				}
			}
		}()
		b.StartTimer()
		if _, err := l.Checkpoint(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		close(stop)
		<-done
		b.ReportMetric(float64(s.NumFiles()), "files")
		b.StartTimer()
	}
	b.ReportMetric(float64(snapshot)/(1<<20), "snapshot-MiB")
	b.ReportMetric(float64(peak-before)/float64(snapshot), "peak/snapshot")
}
