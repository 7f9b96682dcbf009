package flight

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/flight"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"golang.org/x/sys/unix"

	"cardinalsin/chunk"
	"cardinalsin/ingest"
	"cardinalsin/shard"
	"cardinalsin/storage/local"
	"cardinalsin/txlog"
	"cardinalsin/wal"
	"cardinalsin/writer"
)

// BenchmarkDoPut sends TSBS-like cpu rows, 10 metrics of 1,000 hosts with 11
// labels beside the metric's name, over gRPC: each batch is synced to disk
// before its acknowledgement, while flushes write into a store on the same
// disk. The rate is per second of processor time of the whole process, the
// client, fsyncs, encoding and uploads included. "series" has ten rows of a
// series one after the other, "time" never two.
func BenchmarkDoPut(b *testing.B) {
	for _, order := range []string{"series", "time"} {
		for _, dict := range []bool{true, false} {
			b.Run(fmt.Sprintf("order=%s/dictionaries=%t", order, dict), func(b *testing.B) { benchDoPut(b, order, dict) })
		}
	}
}

func benchDoPut(b *testing.B, order string, dict bool) {
	const batches = 20
	sink := newDiskSink(b)
	client := serve(b, sink, Options{})
	schema, recs := cpuRows(b, order, dict, batches)
	runtime.GC()
	b.ResetTimer()
	before, began := cpuSeconds(b), time.Now()
	rows := int64(0)
	for n := range b.N {
		shift := int64(n) * batches * int64(10*time.Second/time.Microsecond) * 10
		stream, err := client.DoPut(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		w := flight.NewRecordWriter(stream, ipc.WithSchema(schema), ipc.WithDictionaryDeltas(true))
		for _, rec := range recs {
			rec = shifted(b, rec, shift)
			if err := w.Write(rec); err != nil {
				b.Fatal(err)
			}
			rows += rec.NumRows()
		}
		if err := errors.Join(w.Close(), stream.CloseSend()); err != nil {
			b.Fatal(err)
		}
		for {
			if _, err := stream.Recv(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				b.Fatal(err)
			}
		}
	}
	if err := sink.writer.Flush(context.Background()); err != nil {
		b.Fatal(err)
	}
	b.StopTimer()
	b.ReportMetric(float64(rows)/(cpuSeconds(b)-before), "rows/cpu-s")
	b.ReportMetric(float64(rows)/time.Since(began).Seconds(), "rows/s")
}

// diskSink appends to a table on this machine's disk, as the server does.
type diskSink struct{ writer *writer.Writer }

func (s *diskSink) Append(ctx context.Context, _ string, r *ingest.Request) error {
	return s.writer.Append(ctx, r.Samples)
}

func (s *diskSink) Refuse(ingest.Protocol, ingest.Reason, int) {}

func newDiskSink(b *testing.B) *diskSink {
	b.Helper()
	store, err := local.New(b.TempDir(), local.Options{})
	if err != nil {
		b.Fatal(err)
	}
	log, err := txlog.Create(b.Context(), store, "tenant/metrics", txlog.CreateOptions{
		Schema: chunk.BaseSchema(), PartitionColumns: chunk.PartitionColumns(),
		Domains: map[string]string{shard.Domain: shard.Initial().Encode()},
	}, txlog.Options{})
	if err != nil {
		b.Fatal(err)
	}
	disk, err := wal.Open(b.TempDir(), wal.Options{})
	if err != nil {
		b.Fatal(err)
	}
	w, err := writer.Open(b.Context(), log, disk, writer.Options{})
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(b.Context())
	ran := make(chan error, 1)
	go func() { ran <- w.Run(ctx) }()
	b.Cleanup(func() {
		stop()
		if err := errors.Join(<-ran, w.Close(context.Background()), disk.Close()); err != nil && !errors.Is(err, context.Canceled) {
			b.Error(err)
		}
	})
	return &diskSink{w}
}

func cpuSeconds(b *testing.B) float64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}

var cpuLabels = []string{"hostname", "region", "datacenter", "rack", "os", "arch", "team", "service", "service_version", "service_environment", "job"}

// cpuRows makes batches of 10,000 rows.
func cpuRows(b *testing.B, order string, dict bool, batches int) (*arrow.Schema, []arrow.RecordBatch) {
	var label arrow.DataType = text
	if dict {
		label = words
	}
	pairs := []any{"timestamp", micros, "metric_name", label, "value", doubles}
	for _, name := range cpuLabels {
		pairs = append(pairs, name, label)
	}
	schema := schemaOf(pairs...)
	var recs []arrow.RecordBatch
	builder := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	put := func(column int, s string) {
		var err error
		switch f := builder.Field(column).(type) {
		case *array.StringBuilder:
			f.Append(s)
		case *array.BinaryDictionaryBuilder:
			err = f.AppendString(s)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	row := func(metric, host, step int) {
		builder.Field(0).(*array.TimestampBuilder).Append(arrow.Timestamp(1_700_000_000_000_000 + int64(step)*10_000_000))
		put(1, fmt.Sprintf("cpu_usage_%d", metric))
		builder.Field(2).(*array.Float64Builder).Append(float64((metric*7 + host*13 + step*3) % 101))
		put(3, fmt.Sprintf("host_%d", host))
		for k := 1; k < len(cpuLabels); k++ {
			put(3+k, fmt.Sprintf("%s-%d", cpuLabels[k], host%(k+3)))
		}
	}
	for n := range batches {
		if order == "time" {
			for k := range 10_000 {
				row(k%10, k/10, n)
			}
		} else {
			for k := range 1000 {
				for step := range 10 {
					row(k%10, n%10*100+k/10, n/10*10+step)
				}
			}
		}
		recs = append(recs, builder.NewRecordBatch())
	}
	return schema, recs
}

// shifted is the batch at another time.
func shifted(b *testing.B, rec arrow.RecordBatch, by int64) arrow.RecordBatch {
	old := rec.Column(0).(*array.Timestamp)
	builder := array.NewTimestampBuilder(memory.DefaultAllocator, micros)
	builder.Reserve(old.Len())
	for _, t := range old.Values() {
		builder.UnsafeAppend(t + arrow.Timestamp(by))
	}
	out, err := rec.SetColumn(0, builder.NewTimestampArray())
	if err != nil {
		b.Fatal(err)
	}
	return out
}
