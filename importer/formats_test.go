package importer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/arrow-go/v18/parquet"
	"github.com/apache/arrow-go/v18/parquet/pqarrow"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	promstorage "github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"

	"cardinalsin/ingest"
	"cardinalsin/ingest/ingesttest"
	"cardinalsin/internal/nativehist"
	"cardinalsin/series"
	"cardinalsin/storage"
	"cardinalsin/writer"
)

const dayMillis = 24 * 60 * 60 * 1000

// block makes a block of Prometheus' TSDB, which stores start times.
type block struct {
	t    *testing.T
	head *tsdb.Head
	app  promstorage.AppenderV2
	want map[string][]series.Sample // by labels
	sets []series.Labels
}

func newBlock(t *testing.T) *block {
	t.Helper()
	opts := tsdb.DefaultHeadOptions()
	opts.ChunkRange, opts.ChunkDirRoot = 100*dayMillis, t.TempDir()
	opts.EnableSTStorage.Store(true)
	opts.FloatChunkEncoding.Store(uint32(chunkenc.EncXOR2))
	head, err := tsdb.NewHead(nil, nil, nil, nil, opts, tsdb.NewHeadStats())
	if err == nil {
		err = head.Init(math.MinInt64)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := head.Close(); err != nil {
			t.Error(err)
		}
	})
	return &block{t: t, head: head, app: head.AppenderV2(context.Background()), want: map[string][]series.Sample{}}
}

func (b *block) add(l series.Labels, st, ms int64, v float64, h *histogram.Histogram, fh *histogram.FloatHistogram) {
	b.t.Helper()
	if _, err := b.app.Append(0, l, st, ms, v, h, fh, promstorage.AppendV2Options{}); err != nil {
		b.t.Fatal(err)
	}
	s := series.Sample{Time: series.FromMillis(ms), Value: v, Start: st * 1_000_000}
	if h != nil || fh != nil {
		var err error
		if s.Histogram, err = nativehist.FromModel(h, fh); err != nil {
			b.t.Fatal(err)
		}
		s.Value = 0
	}
	if b.want[l.String()] == nil {
		b.sets = append(b.sets, l)
	}
	b.want[l.String()] = append(b.want[l.String()], s)
}

func (b *block) write(dir string) string {
	b.t.Helper()
	if err := b.app.Commit(); err != nil {
		b.t.Fatal(err)
	}
	c, err := tsdb.NewLeveledCompactor(b.t.Context(), nil, nil, []int64{100 * dayMillis}, chunkenc.NewPool(), nil)
	if err != nil {
		b.t.Fatal(err)
	}
	ids, err := c.Write(dir, b.head, b.head.MinTime(), b.head.MaxTime()+1, nil)
	if err != nil || len(ids) != 1 {
		b.t.Fatal(ids, err)
	}
	return filepath.Join(dir, ids[0].String())
}

// rows are what was added, in the order of the table.
func (b *block) rows() []series.Series {
	var out []series.Series
	for _, l := range b.sets {
		out = append(out, series.Series{Labels: l, Samples: b.want[l.String()]})
	}
	sortRows(out)
	return out
}

// TestTSDB: floats with start times (histograms have none in upstream's
// chunks), stale markers and both kinds of native histograms
// of several days arrive bit for bit, whether the block is named or the
// folder that it is in; what was deleted does not; a second run adds nothing.
// The histograms are gauges, since of counters the TSDB itself sets the hint
// that tells of resets.
func TestTSDB(t *testing.T) {
	const start = 1_700_000_000_000 // in the afternoon
	b := newBlock(t)
	for step := range 60 {
		ms := int64(start + step*dayMillis/20)
		b.add(labels.FromStrings("__name__", "f", "host", "a"), start-5, ms, float64(step)/3, nil, nil)
		b.add(labels.FromStrings("__name__", "g"), 0, ms, math.Float64frombits(value.StaleNaN), nil, nil)
		b.add(labels.FromStrings("__name__", "h"), 0, ms, 0, tsdbutil.GenerateTestGaugeHistogram(int64(step)), nil)
		b.add(labels.FromStrings("__name__", "i"), 0, ms, 0, nil, tsdbutil.GenerateTestGaugeFloatHistogram(int64(step)))
	}
	dead := labels.FromStrings("__name__", "dead")
	b.add(dead, 0, start, 1, nil, nil)
	dir := t.TempDir()
	path := b.write(dir)
	opened, err := tsdb.OpenBlock(nil, path, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(opened.Delete(t.Context(), 0, math.MaxInt64, labels.MustNewMatcher(labels.MatchEqual, "__name__", "dead")), opened.Close()); err != nil {
		t.Fatal(err)
	}
	want := ""
	for _, s := range b.rows() {
		if !labels.Equal(s.Labels, dead) {
			want += ingesttest.Print([]series.Series{s})
		}
	}
	for _, opts := range []Options{{}, {partSamples: 7, FlushBytes: 1}} {
		tables := newTables(t)
		for i, p := range []string{path, dir, path} {
			results, err := Run(t.Context(), tables, p, opts)
			if err != nil {
				t.Fatal(err)
			}
			added := map[int]int64{0: 240}[i]
			if r := total(results); len(results) != 1 || r.Samples != 240 || r.Rows != added || r.Files > 0 != (added > 0) {
				t.Errorf("run %d: %+v", i, results)
			}
			if diff := cmp.Diff(want, tables.print()); diff != "" {
				t.Fatalf("run %d (-want +got)\n%s", i, diff)
			}
		}
	}
}

// TestTSDBRefuses: a damaged block, a series without a name, and a folder
// without a block.
func TestTSDBRefuses(t *testing.T) {
	nameless := newBlock(t)
	nameless.add(labels.FromStrings("__name__", "a"), 0, 1000, 1, nil, nil)
	nameless.add(labels.FromStrings("job", "b"), 0, 1000, 1, nil, nil)
	damaged := newBlock(t)
	damaged.add(labels.FromStrings("__name__", "a"), 0, 1000, 1, nil, nil)
	path := damaged.write(t.TempDir())
	index := filepath.Join(path, "index")
	data, err := os.ReadFile(index)
	if err != nil {
		t.Fatal(err)
	}
	for i := range data[len(data)/2:] {
		data[len(data)/2+i] ^= 0x55
	}
	if err := os.WriteFile(index, data, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, path string
		is         error
	}{
		{"no name", nameless.write(t.TempDir()), series.ErrNoMetricName},
		{"damaged index", path, ingest.ErrMalformed},
		{"no block", t.TempDir(), ErrFormat},
	} {
		t.Run(c.name, func(t *testing.T) {
			tables := newTables(t)
			if _, err := Run(t.Context(), tables, c.path, Options{}); !errors.Is(err, c.is) {
				t.Errorf("%v; want %v", err, c.is)
			}
			if got := tables.print(); got != "" {
				t.Errorf("stored:\n%s", got)
			}
		})
	}
}

// parquetFile writes rows in the table's schema, as another engine does: text
// in dictionaries, row groups of any size.
func parquetFile(t *testing.T, n, groupRows int) (path, want string) {
	t.Helper()
	text := arrow.BinaryTypes.String
	schema := arrow.NewSchema([]arrow.Field{
		{Name: "timestamp", Type: arrow.FixedWidthTypes.Timestamp_us}, {Name: "metric_name", Type: text}, {Name: "value", Type: arrow.PrimitiveTypes.Float64, Nullable: true},
		{Name: "host", Type: text, Nullable: true}, {Name: "labels_overflow", Type: arrow.MapOf(text, text), Nullable: true},
		{Name: "date", Type: arrow.FixedWidthTypes.Date32}, {Name: "shard", Type: text},
	}, nil)
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	var rows []series.Series
	for i := range n {
		b.Field(0).(*array.TimestampBuilder).Append(arrow.Timestamp(1_700_000_000_000_000 + i))
		b.Field(1).(*array.StringBuilder).Append("m")
		b.Field(2).(*array.Float64Builder).Append(float64(i))
		l := []string{"__name__", "m"}
		if host := fmt.Sprint(i / 10); i%3 == 0 {
			b.Field(3).(*array.StringBuilder).Append(host)
			l = append(l, "host", host)
		} else {
			b.Field(3).AppendNull()
		}
		m := b.Field(4).(*array.MapBuilder)
		if i%5 == 0 {
			m.Append(true)
			m.KeyBuilder().(*array.StringBuilder).Append("a b")
			m.ItemBuilder().(*array.StringBuilder).Append("c")
			l = append(l, "a b", "c")
		} else {
			m.AppendNull()
		}
		b.Field(5).(*array.Date32Builder).Append(0)
		b.Field(6).(*array.StringBuilder).Append("1")
		rows = append(rows, series.Series{Labels: labels.FromStrings(l...), Samples: []series.Sample{{Time: series.Timestamp(1_700_000_000_000_000 + i), Value: float64(i)}}})
	}
	sortRows(rows)
	var file bytes.Buffer
	w, err := pqarrow.NewFileWriter(schema, &file, parquet.NewWriterProperties(parquet.WithMaxRowGroupLength(int64(groupRows))), pqarrow.DefaultWriterProps())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Write(b.NewRecordBatch()), w.Close()); err != nil {
		t.Fatal(err)
	}
	return write1(t, "a.parquet", file.String()), ingesttest.Print(rows)
}

// TestParquet: rows arrive as they are, however the file is divided.
func TestParquet(t *testing.T) {
	for _, groupRows := range []int{1, 7, 100, 1000} {
		path, want := parquetFile(t, 100, groupRows)
		for _, size := range []int{0, 10, 33} {
			tables := newTables(t)
			results, err := Run(t.Context(), tables, path, Options{partSamples: size, FlushBytes: 1})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, tables.print()); diff != "" || results[0].Rows != 100 {
				t.Errorf("row groups of %d, parts of %d: %+v (-want +got)\n%s", groupRows, size, results[0], diff)
			}
			again, err := Run(t.Context(), tables, path, Options{partSamples: size, FlushBytes: 1})
			if err != nil || again[0].Rows != 0 || again[0].Files != 0 {
				t.Errorf("second run: %+v, %v", again, err)
			}
		}
	}
}

// TestParquetRefuses: what no table takes is refused whole, with the row where
// there is one, and so are files that are no table.
func TestParquetRefuses(t *testing.T) {
	for _, c := range []struct {
		name, metric string
		at           int64
		column       string
		is           error
	}{
		{"time beyond the year 9999", "m", int64(series.MaxTimestamp) + 1, "value", writer.ErrInvalidSample},
		{"no metric name", "", 0, "value", series.ErrNoMetricName},
		{"not UTF-8", "\xff", 0, "value", series.ErrInvalidLabel},
		{"no column of values", "m", 0, "host", ingest.ErrMalformed},
	} {
		t.Run(c.name, func(t *testing.T) {
			schema := arrow.NewSchema([]arrow.Field{
				{Name: "timestamp", Type: arrow.FixedWidthTypes.Timestamp_us}, {Name: "metric_name", Type: arrow.BinaryTypes.String}, {Name: c.column, Type: arrow.PrimitiveTypes.Float64},
			}, nil)
			b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
			for _, row := range []struct {
				metric string
				at     int64
			}{{"sound", 0}, {c.metric, c.at}} {
				b.Field(0).(*array.TimestampBuilder).Append(arrow.Timestamp(row.at))
				b.Field(1).(*array.StringBuilder).Append(row.metric)
				b.Field(2).(*array.Float64Builder).Append(1)
			}
			var file bytes.Buffer
			w, err := pqarrow.NewFileWriter(schema, &file, nil, pqarrow.DefaultWriterProps())
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(w.Write(b.NewRecordBatch()), w.Close()); err != nil {
				t.Fatal(err)
			}
			tables := newTables(t)
			if _, err := Run(t.Context(), tables, write1(t, "a.parquet", file.String()), Options{}); !errors.Is(err, c.is) {
				t.Errorf("%v; want %v", err, c.is)
			}
			if got := tables.print(); got != "" {
				t.Errorf("stored:\n%s", got)
			}
		})
	}
}

// TestDamagedParquet: whichever byte of a file changes or is missing (a sample
// of them here; each was tried once), the import ends with a reason or with a result, and does not panic.
func TestDamagedParquet(t *testing.T) {
	path, _ := parquetFile(t, 20, 7)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	failed := 0
	for i := 0; i < len(data); i += 29 {
		for _, bad := range [][]byte{data[:i], append(append(bytes.Clone(data[:i]), data[i]^0xff), data[i+1:]...)} {
			_, err := Run(t.Context(), newTables(t), write1(t, "a.parquet", string(bad)), Options{})
			if err != nil {
				failed++
				if reason, _ := ingest.Classify(err); reason == "unavailable" {
					t.Errorf("byte %d of %d: an error without a reason: %v", i, len(data), err)
				}
			}
		}
	}
	if failed < len(data)/29 {
		t.Errorf("only %d of the files failed", failed)
	}
}

// TestOwnFiles: the files of a table are importable as they are, so that a
// table can be put together again from them.
func TestOwnFiles(t *testing.T) {
	first := newTables(t)
	if _, err := Run(t.Context(), first, write1(t, "a.om", openMetricsText), Options{}); err != nil {
		t.Fatal(err)
	}
	second := newTables(t)
	for o, err := range first.store.List(t.Context(), "default/metrics/date", "") {
		if err != nil {
			t.Fatal(err)
		}
		second.importObject(first.store, o.Key)
	}
	if diff := cmp.Diff(ingesttest.Print(first.rows(Samples)), ingesttest.Print(second.rows(Samples))); diff != "" {
		t.Errorf("(-first +second)\n%s", diff)
	}
}

func (f *tables) importObject(store storage.Store, key string) {
	f.t.Helper()
	data, _, err := store.Get(f.t.Context(), key)
	if err == nil {
		_, err = Run(f.t.Context(), f, write1(f.t, "a.parquet", string(data)), Options{})
	}
	if err != nil {
		f.t.Fatalf("%s: %v", strings.TrimPrefix(key, "default/"), err)
	}
}
