package sqlengine

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/internal/merge"
	"cardinalsin/reader"
	"cardinalsin/reader/readertest"
	"cardinalsin/series"
	"cardinalsin/shard"
	"cardinalsin/storage"
	"cardinalsin/storage/local"
	"cardinalsin/txlog"
)

const (
	root = "default/metrics"
	day  = series.Timestamp(1767312000_000_000) // 2026-01-02
)

// tester is what *testing.T and *rapid.T share.
type tester interface {
	Helper()
	Fatalf(format string, args ...any)
}

// table is a table of ours in a local store, with a head in memory.
type table struct {
	store     storage.Store
	log       *txlog.Log
	reader    *reader.Reader
	engine    *Engine
	order     int64
	head      memHead
	maxLabels int
	shape     chunk.Options // of files
}

func newTable(t testing.TB, opts Options) *table {
	t.Helper()
	store, err := local.New(t.TempDir(), local.Options{})
	if err != nil {
		t.Fatalf("store: %v", err)
	}
	return newTableIn(t, store, opts)
}

func newTableIn(t testing.TB, store storage.Store, opts Options) *table {
	t.Helper()
	return newTableOf(t, store, chunk.BaseSchema(), opts)
}

func newTableOf(t testing.TB, store storage.Store, schema *action.Schema, opts Options) *table {
	t.Helper()
	ctx := context.Background()
	log, err := txlog.Create(ctx, store, root, txlog.CreateOptions{
		Schema: schema, PartitionColumns: chunk.PartitionColumns(),
		Domains: map[string]string{shard.Domain: shard.Initial().Encode()},
	}, txlog.Options{})
	if err != nil {
		t.Fatalf("create: %v", err)
	}
	// Small row groups and pages, so that small tables have several.
	tb := &table{store: store, log: log, maxLabels: chunk.DefaultMaxLabels, shape: chunk.Options{RowGroupRows: 64, PageRows: 16}}
	tb.reader = reader.New(log, nil, reader.Options{Head: func() reader.HeadView {
		if tb.head == nil {
			return nil
		}
		return tb.head
	}})
	tb.engine, err = New(ctx, tb.reader, opts)
	if err != nil {
		t.Fatalf("engine: %v", err)
	}
	t.Cleanup(func() { tb.engine.Close() })
	return tb
}

func (tb *table) snapshot(t tester) *txlog.Snapshot {
	t.Helper()
	s, err := tb.log.Snapshot(context.Background(), txlog.Latest())
	if err != nil {
		t.Fatalf("snapshot: %v", err)
	}
	return s
}

// flush writes series as one file of one day and commits it. The schema grows
// as a writer grows it.
func (tb *table) flush(t tester, rows ...series.Series) action.Version {
	t.Helper()
	ctx := context.Background()
	snap := tb.snapshot(t)
	layout, err := chunk.LayoutOf(snap.Schema())
	if err != nil {
		t.Fatalf("layout: %v", err)
	}
	names := labelNames(memHead(rows))
	txn := tb.log.Begin(snap, txlog.Operation{Name: "WRITE"})
	if grown := layout.WithMaxLabels(tb.maxLabels).Grow(names); len(grown) > 0 {
		txn.AddColumns(grown...)
		schema := &action.Schema{Fields: append(slices.Clone(snap.Schema().Fields), grown...)}
		if layout, err = chunk.LayoutOf(schema); err != nil {
			t.Fatalf("layout: %v", err)
		}
	}
	var in []merge.Series
	for _, r := range newHead(rows...) {
		in = append(in, merge.Series{Labels: r.Labels, ID: series.IDOf(r.Labels), Samples: r.Samples})
	}
	enc, err := chunk.Encode(tb.shape, layout, merge.Slice(in))
	if err != nil {
		t.Fatalf("encode: %v", err)
	}
	stats, err := enc.Stats.Encode()
	if err != nil {
		t.Fatalf("statistics: %v", err)
	}
	tb.order++
	date := enc.Time.Min.Date().String()
	path := fmt.Sprintf("date=%s/shard=1/%04d.parquet", date, tb.order)
	if _, err := tb.store.Put(ctx, root+"/"+path, bytes.NewReader(enc.Data)); err != nil {
		t.Fatalf("put: %v", err)
	}
	txn.Add(action.Add{
		Path: path, Size: int64(len(enc.Data)), DataChange: true, Stats: stats,
		PartitionValues: action.ObjectOf(map[string]string{chunk.ColumnDate: date, chunk.ColumnShard: "1"}),
		Tags:            chunk.Tags{Order: chunk.Order{Lo: tb.order, Hi: tb.order}, Time: enc.Time, Keys: enc.Keys}.Encode(),
	})
	s, err := txn.Commit(ctx)
	if err != nil {
		t.Fatalf("commit: %v", err)
	}
	return s.Version()
}

// query returns the rows as CSV lines without the header.
func (tb *table) query(t tester, sql string) []string {
	t.Helper()
	lines, err := tb.tryQuery(sql, QueryOptions{})
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return lines
}

func (tb *table) tryQuery(sql string, opts QueryOptions) ([]string, error) {
	ctx := context.Background()
	rows, err := tb.engine.Query(ctx, sql, opts)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out bytes.Buffer
	if _, err := FormatCSV.Write(ctx, &out, rows); err != nil {
		return nil, err
	}
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	return lines[1:], nil
}

// rowText is one row of the table in a form that tells any two rows apart:
// the full label set, the instant, and the bits of the value.
func rowText(l labels.Labels, s series.Sample) string {
	if s.Histogram != nil {
		return fmt.Sprintf("%s %d.%03d @%d h%x", l, int64(s.Time), s.Nanos, s.Start, s.Histogram)
	}
	return fmt.Sprintf("%s %d.%03d @%d %016x", l, int64(s.Time), s.Nanos, s.Start, math.Float64bits(s.Value))
}

// sqlRows reads all columns of a table and puts each row back into the text of
// rowText, sorted.
func (tb *table) sqlRows(t tester, sql string, opts QueryOptions) []string {
	t.Helper()
	ctx := context.Background()
	rows, err := tb.engine.Query(ctx, sql, opts)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	defer rows.Close()
	var out []string
	for {
		r, err := rows.Next(ctx)
		if errors.Is(err, io.EOF) {
			slices.Sort(out)
			return out
		}
		if err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
		for i := range int(r.NumRows()) {
			b := labels.NewBuilder(labels.EmptyLabels())
			var s series.Sample
			var id int64
			for k, c := range r.Columns() {
				name := r.ColumnName(k)
				if c.IsNull(i) {
					continue
				}
				switch name {
				case chunk.ColumnTimestamp:
					s.Time = series.Timestamp(c.(*array.Timestamp).Value(i))
				case chunk.ColumnNanos:
					s.Nanos = uint16(c.(*array.Int32).Value(i))
				case chunk.ColumnStart:
					s.Start = c.(*array.Int64).Value(i)
				case chunk.ColumnSeriesID:
					id = c.(*array.Int64).Value(i)
				case chunk.ColumnValue:
					s.Value = c.(*array.Float64).Value(i)
				case chunk.ColumnHistogram:
					s.Histogram = bytes.Clone(c.(*array.Binary).Value(i))
					if s.Histogram == nil {
						s.Histogram = []byte{}
					}
				case chunk.ColumnMetricName:
					b.Set(series.MetricName, c.(*array.String).Value(i))
				case chunk.ColumnOverflow:
					m := c.(*array.Map)
					from, to := m.ValueOffsets(i)
					for e := int(from); e < int(to); e++ {
						b.Set(m.Keys().(*array.String).Value(e), m.Items().(*array.String).Value(e))
					}
				case chunk.ColumnDate, chunk.ColumnShard:
				default:
					label := name
					if strings.HasPrefix(name, "_") {
						label = name[1:]
					}
					b.Set(label, c.(*array.String).Value(i))
				}
			}
			l := b.Labels()
			if series.ID(id) != series.IDOf(l) {
				t.Fatalf("series_id of %s is %d, want %d", l, id, int64(series.IDOf(l)))
			}
			out = append(out, rowText(l, s))
		}
		r.Release()
	}
}

// readerRows reads the same by the Go reader.
func (tb *table) readerRows(t tester, at txlog.At) []string {
	t.Helper()
	ctx := context.Background()
	v, err := tb.reader.At(ctx, at)
	if err != nil {
		t.Fatalf("view: %v", err)
	}
	defer v.Close()
	var out []string
	for s, err := range v.Select(ctx, series.Selector{Range: series.AllTime}) {
		if err != nil {
			t.Fatalf("select: %v", err)
		}
		for _, p := range s.Samples {
			out = append(out, rowText(s.Labels, p))
		}
	}
	slices.Sort(out)
	return out
}

func lbl(pairs ...string) labels.Labels {
	return labels.FromStrings(append([]string{series.MetricName}, pairs...)...)
}

// one is a series with float samples at the given seconds after day.
func one(v float64, l labels.Labels, at ...int64) series.Series {
	s := series.Series{Labels: l}
	for _, t := range at {
		s.Samples = append(s.Samples, series.Sample{Time: day + series.Timestamp(t)*1_000_000, Value: v})
	}
	return s
}

// memHead is a head in memory.
type memHead = readertest.Head

func newHead(all ...series.Series) memHead { return readertest.NewHead(all...) }

// dataFiles are the paths of the live files on disk.
func (tb *table) dataFiles(t tester) []string {
	t.Helper()
	var out []string
	for a := range tb.snapshot(t).Files() {
		key, err := tb.log.Key(a.Path)
		if err != nil {
			t.Fatalf("key: %v", err)
		}
		path, ok := storage.LocalPath(tb.store, key)
		if !ok {
			t.Fatalf("%s is not local", key)
		}
		out = append(out, path)
	}
	return out
}

// TestMain lowers the number of random tables: each costs several databases.
func TestMain(m *testing.M) {
	flag.Parse()
	if f := flag.Lookup("rapid.checks"); f.Value.String() == f.DefValue {
		if err := f.Value.Set("20"); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}
