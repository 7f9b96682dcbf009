package chunk

import (
	"bytes"
	"fmt"
	"math"
	"math/rand"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	arrowparquet "github.com/apache/arrow-go/v18/parquet"
	"github.com/apache/arrow-go/v18/parquet/compress"
	"github.com/apache/arrow-go/v18/parquet/pqarrow"
	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress/zstd"
	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/internal/merge"
	"cardinalsin/series"
)

// BenchmarkPeers writes the same rows by this package, as a flush and as a
// compaction do, and by the general writers of arrow-go and parquet-go, in one
// run, and prints a line each:
//
//	bench chunk-encode-… ours=… peer=… ratio=…
//
// rows/s are rows a core-second: user and system time of the process, garbage
// collection included. Peers get their columns ready-made, as far as they take
// them; dictionary labels and byte-stream-split values under zstd 1 for
// arrow-go, the same with delta-coded times for parquet-go.
func BenchmarkPeers(b *testing.B) {
	for _, sh := range []struct {
		name           string
		hosts, samples int
		noise          bool
	}{{"compacted", 100, 2000, false}, {"short", 1000, 6, false}, {"single", 10000, 1, false}, {"noise", 100, 500, true}} {
		in := tsbs(sh.hosts, sh.samples)
		if sh.noise { // values of which no two are alike
			r := rand.New(rand.NewSource(2))
			for i := range in {
				for k := range in[i].Samples {
					in[i].Samples[k].Value += r.Float64()
				}
			}
		}
		layout := grown(b, in, DefaultMaxLabels)
		ours := func(level int) func() int {
			return func() int {
				enc, err := Encode(Options{Level: level}, layout, merge.Slice(in))
				if err != nil {
					b.Fatal(err)
				}
				return len(enc.Data)
			}
		}
		flat := flatten(in)
		rows := float64(len(flat.times))
		var rate, size [4]float64
		for i, write := range []func() int{ours(1), ours(3), flat.arrowGo(b), flat.parquetGo(b)} {
			rate[i], size[i] = coreSeconds(rows, write)
		}
		for i, peer := range []string{"arrow-go", "parquet-go"} {
			fmt.Printf("bench chunk-encode-%s-%s ours=%.2fM peer=%.2fM rows/core-s ratio=%.1f\n", sh.name, peer, rate[0]/1e6, rate[2+i]/1e6, rate[0]/rate[2+i])
			fmt.Printf("bench chunk-bytes-%s-%s ours=%.3f peer=%.3f B/row ratio=%.2f\n", sh.name, peer, size[0], size[2+i], size[0]/size[2+i])
			fmt.Printf("bench chunk-compact-encode-%s-%s ours=%.2fM peer=%.2fM rows/core-s ratio=%.1f\n", sh.name, peer, rate[1]/1e6, rate[2+i]/1e6, rate[1]/rate[2+i])
			fmt.Printf("bench chunk-compact-bytes-%s-%s ours=%.3f peer=%.3f B/row ratio=%.2f\n", sh.name, peer, size[1], size[2+i], size[1]/size[2+i])
		}
	}
}

// coreSeconds runs write for half a second, and once before.
func coreSeconds(rows float64, write func() int) (rate, size float64) {
	size = float64(write()) / rows
	runtime.GC()
	begin, n := cpuTime(), 0
	for start := time.Now(); n == 0 || time.Since(start) < time.Second/2; n++ {
		write()
	}
	return rows * float64(n) / (cpuTime() - begin).Seconds(), size
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// flatRows are the rows as columns.
type flatRows struct {
	names  []string // of the labels, sorted; the metric's is apart
	series []int32  // by row
	labels [][]string
	metric []string
	ids    []int64
	times  []int64
	values []float64
}

func flatten(in []Series) *flatRows {
	f := &flatRows{}
	in[0].Labels.Range(func(l labels.Label) {
		if l.Name != series.MetricName {
			f.names = append(f.names, l.Name)
		}
	})
	f.labels = make([][]string, len(f.names))
	for i, s := range in {
		for k, name := range f.names {
			f.labels[k] = append(f.labels[k], s.Labels.Get(name))
		}
		f.metric = append(f.metric, s.Labels.Get(series.MetricName))
		for _, p := range s.Samples {
			f.series = append(f.series, int32(i))
			f.ids = append(f.ids, int64(s.ID))
			f.times = append(f.times, int64(p.Time))
			f.values = append(f.values, p.Value)
		}
	}
	return f
}

func (f *flatRows) arrowGo(b *testing.B) func() int {
	dict := &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int32, ValueType: arrow.BinaryTypes.String}
	var fields []arrow.Field
	var columns []arrow.Array
	text := func(name string, bySeries []string) {
		values := slices.Compact(slices.Sorted(slices.Values(bySeries)))
		builder := array.NewDictionaryBuilder(memory.DefaultAllocator, dict).(*array.BinaryDictionaryBuilder)
		all := array.NewStringBuilder(memory.DefaultAllocator)
		all.AppendValues(values, nil)
		if err := builder.InsertStringDictValues(all.NewStringArray()); err != nil {
			b.Fatal(err)
		}
		codes := make([]int, len(bySeries))
		for i, v := range bySeries {
			codes[i], _ = slices.BinarySearch(values, v)
		}
		indices := make([]int, len(f.series))
		for row, s := range f.series {
			indices[row] = codes[s]
		}
		builder.AppendIndices(indices, nil)
		fields = append(fields, arrow.Field{Name: name, Type: dict})
		columns = append(columns, builder.NewArray())
	}
	text(ColumnMetricName, f.metric)
	for k, name := range f.names {
		text(name, f.labels[k])
	}
	ids, times := array.NewInt64Builder(memory.DefaultAllocator), array.NewInt64Builder(memory.DefaultAllocator)
	ids.AppendValues(f.ids, nil)
	times.AppendValues(f.times, nil)
	values := array.NewFloat64Builder(memory.DefaultAllocator)
	values.AppendValues(f.values, nil)
	fields = append(fields, arrow.Field{Name: ColumnSeriesID, Type: arrow.PrimitiveTypes.Int64},
		arrow.Field{Name: ColumnTimestamp, Type: arrow.PrimitiveTypes.Int64}, arrow.Field{Name: ColumnValue, Type: arrow.PrimitiveTypes.Float64})
	columns = append(columns, ids.NewArray(), times.NewArray(), values.NewArray())
	schema := arrow.NewSchema(fields, nil)
	batch := array.NewRecordBatch(schema, columns, int64(len(f.times)))
	props := arrowparquet.NewWriterProperties(arrowparquet.WithCompression(compress.Codecs.Zstd), arrowparquet.WithCompressionLevel(1),
		arrowparquet.WithMaxRowGroupLength(128<<10),
		arrowparquet.WithDictionaryFor(ColumnTimestamp, false), arrowparquet.WithEncodingFor(ColumnTimestamp, arrowparquet.Encodings.DeltaBinaryPacked),
		arrowparquet.WithDictionaryFor(ColumnValue, false), arrowparquet.WithEncodingFor(ColumnValue, arrowparquet.Encodings.ByteStreamSplit))
	return func() int {
		var out bytes.Buffer
		w, err := pqarrow.NewFileWriter(schema, &out, props, pqarrow.DefaultWriterProps())
		if err != nil {
			b.Fatal(err)
		}
		if err := w.Write(batch); err != nil {
			b.Fatal(err)
		}
		if err := w.Close(); err != nil {
			b.Fatal(err)
		}
		return out.Len()
	}
}

// parquetRow has the labels of the benchmark's rows, in their order.
type parquetRow struct {
	Metric string  `parquet:"metric_name,dict"`
	ID     int64   `parquet:"series_id,dict"`
	L0     string  `parquet:"l0,dict"`
	L1     string  `parquet:"l1,dict"`
	L2     string  `parquet:"l2,dict"`
	L3     string  `parquet:"l3,dict"`
	L4     string  `parquet:"l4,dict"`
	L5     string  `parquet:"l5,dict"`
	L6     string  `parquet:"l6,dict"`
	L7     string  `parquet:"l7,dict"`
	L8     string  `parquet:"l8,dict"`
	L9     string  `parquet:"l9,dict"`
	L10    string  `parquet:"l10,dict"`
	L11    string  `parquet:"l11,dict"`
	Time   int64   `parquet:"timestamp,delta"`
	Value  float64 `parquet:"value,split"`
}

func (f *flatRows) parquetGo(b *testing.B) func() int {
	if len(f.names) != 12 || math.MaxInt32 < len(f.series) {
		b.Fatalf("rows have %d labels", len(f.names))
	}
	rows := make([]parquetRow, len(f.series))
	for i, s := range f.series {
		l := func(k int) string { return f.labels[k][s] }
		rows[i] = parquetRow{
			Metric: f.metric[s], ID: f.ids[i], Time: f.times[i], Value: f.values[i],
			L0: l(0), L1: l(1), L2: l(2), L3: l(3), L4: l(4), L5: l(5), L6: l(6), L7: l(7), L8: l(8), L9: l(9), L10: l(10), L11: l(11),
		}
	}
	return func() int {
		var out bytes.Buffer
		w := parquet.NewGenericWriter[parquetRow](&out, parquet.Compression(&zstd.Codec{Level: zstd.SpeedFastest}), parquet.MaxRowsPerRowGroup(128<<10))
		if _, err := w.Write(rows); err != nil {
			b.Fatal(err)
		}
		if err := w.Close(); err != nil {
			b.Fatal(err)
		}
		return out.Len()
	}
}
