package index

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/RoaringBitmap/roaring/v2"
	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/internal/merge"
	"cardinalsin/series"
	"cardinalsin/shard"
	"cardinalsin/storage"
	"cardinalsin/storage/mem"
	"cardinalsin/txlog"
)

// tester is what golden, property and fuzz tests need of *testing.T.
type tester interface {
	Helper()
	Fatalf(format string, args ...any)
}

const root = "tenant/metrics"

// firstDay is 2026-01-02.
const firstDay = series.Timestamp(1767312000_000_000)

// table is a table of small files.
type table struct {
	t     tester
	store storage.Store
	log   *txlog.Log
	order int64
	now   time.Time
	// segmentBytes is RunnerOptions.SegmentBytes of index
	segmentBytes int64
}

func newTable(t tester, wrap func(storage.Store) storage.Store) *table {
	t.Helper()
	tb := &table{t: t, now: firstDay.Time().Add(time.Hour)}
	tb.store = mem.New(mem.Options{Now: func() time.Time { return tb.now }})
	if wrap != nil {
		tb.store = wrap(tb.store)
	}
	base, err := chunk.LayoutOf(chunk.BaseSchema())
	if err != nil {
		t.Fatalf("layout: %v", err)
	}
	schema := chunk.BaseSchema()
	schema.Fields = append(schema.Fields, base.Grow([]string{"pod", "zone"})...)
	tb.log, err = txlog.Create(context.Background(), tb.store, root, txlog.CreateOptions{
		Schema: schema, PartitionColumns: chunk.PartitionColumns(),
		Domains: map[string]string{shard.Domain: shard.Initial().Encode()},
	}, txlog.Options{})
	if err != nil {
		t.Fatalf("create: %v", err)
	}
	return tb
}

// set is a label set from name, value, ….
func set(pairs ...string) labels.Labels { return labels.FromStrings(pairs...) }

// metric is a label set with a metric name.
func metric(name string, pairs ...string) labels.Labels {
	return set(append([]string{series.MetricName, name}, pairs...)...)
}

// write commits a file with two samples of each series, on a day after the
// first, and returns its path.
func (tb *table) write(day, level int, sets ...labels.Labels) string {
	tb.t.Helper()
	return tb.writeAll(day, level, sets)[0]
}

// writeAll commits some files at once.
func (tb *table) writeAll(day, level int, files ...[]labels.Labels) (paths []string) {
	tb.t.Helper()
	start := firstDay + series.Timestamp(day)*series.Timestamp(24*time.Hour/time.Microsecond)
	layout, err := chunk.LayoutOf(tb.latest().Schema())
	if err != nil {
		tb.t.Fatalf("layout: %v", err)
	}
	tx := tb.log.Begin(nil, txlog.Operation{Name: "WRITE"})
	for _, sets := range files {
		var in []chunk.Series
		for _, l := range sets {
			in = append(in, chunk.Series{Labels: l, ID: series.IDOf(l), Samples: []series.Sample{{Time: start, Value: 1}, {Time: start + 1000, Value: 2}}})
		}
		slices.SortFunc(in, func(a, b chunk.Series) int { return series.Compare(a.Labels, b.Labels, a.ID, b.ID) })
		// Row groups so small that series go on in the next.
		rows := 5
		if len(sets) > 1000 {
			rows = 501
		}
		e, err := chunk.Encode(chunk.Options{RowGroupRows: rows}, layout, merge.Slice(in))
		if err != nil {
			tb.t.Fatalf("encode: %v", err)
		}
		tb.order++
		path := fmt.Sprintf("date=%s/shard=0/%05d.parquet", start.Date(), tb.order)
		if _, err := tb.store.Put(context.Background(), root+"/"+path, bytes.NewReader(e.Data)); err != nil {
			tb.t.Fatalf("put: %v", err)
		}
		stats, err := e.Stats.Encode()
		if err != nil {
			tb.t.Fatalf("stats: %v", err)
		}
		tx.Add(action.Add{
			Path: path, Size: int64(len(e.Data)), DataChange: true, Stats: stats,
			PartitionValues: action.ObjectOf(map[string]string{chunk.ColumnDate: start.Date().String(), chunk.ColumnShard: "0"}),
			Tags:            chunk.Tags{Level: level, Order: chunk.Order{Lo: tb.order, Hi: tb.order}, Time: e.Time, Keys: e.Keys}.Encode(),
		})
		paths = append(paths, path)
	}
	tb.commit(tx)
	return paths
}

func (tb *table) remove(path string) {
	tb.t.Helper()
	a, ok := tb.latest().File(action.Key{Path: path})
	if !ok {
		tb.t.Fatalf("%s is not live", path)
	}
	tx := tb.log.Begin(nil, txlog.Operation{Name: "DELETE"})
	tx.Remove(a.Tombstone(true))
	tb.commit(tx)
}

func (tb *table) commit(tx *txlog.Transaction) {
	tb.t.Helper()
	if _, err := tx.Commit(context.Background()); err != nil {
		tb.t.Fatalf("commit: %v", err)
	}
}

func (tb *table) latest() *txlog.Snapshot {
	tb.t.Helper()
	s, err := tb.log.Snapshot(context.Background(), txlog.Latest())
	if err != nil {
		tb.t.Fatalf("snapshot: %v", err)
	}
	return s
}

// files are the paths of all live files.
func (tb *table) files() []string {
	var out []string
	for a := range tb.latest().Files() {
		out = append(out, a.Path)
	}
	return out
}

// index runs all jobs of a policy.
func (tb *table) index(p Policy) []Result {
	tb.t.Helper()
	done, err := NewRunner(tb.log, RunnerOptions{Policy: p, SegmentBytes: tb.segmentBytes}).RunAll(context.Background())
	if err != nil {
		tb.t.Fatalf("index: %v", err)
	}
	return done
}

// place is where a series lies, in text.
type place struct {
	Labels   string
	RowGroup int
	First    int
	Rows     int
}

// read is what the files themselves say of a selector.
func (tb *table) read(path string, sel series.Selector) []place {
	tb.t.Helper()
	a, ok := tb.latest().File(action.Key{Path: path})
	if !ok {
		tb.t.Fatalf("%s is not live", path)
	}
	f, err := chunk.Open(context.Background(), chunk.StoreSource(tb.store, root+"/"+path), a.Size)
	if err != nil {
		tb.t.Fatalf("open: %v", err)
	}
	out := []place{}
	for r, err := range f.Runs(context.Background()) {
		if err != nil {
			tb.t.Fatalf("runs: %v", err)
		}
		if sel.Matches(r.Labels) {
			out = append(out, place{r.Labels.String(), r.RowGroup, r.First, r.Rows})
		}
	}
	return out
}

func (tb *table) open(o Options) *Index { return New(tb.log, o) }

// damage overwrites an object.
func (tb *table) damage(key string, change func([]byte) []byte) {
	tb.t.Helper()
	data, _, err := tb.store.Get(context.Background(), key)
	if err != nil {
		tb.t.Fatalf("get: %v", err)
	}
	if _, err := tb.store.Put(context.Background(), key, bytes.NewReader(change(slices.Clone(data)))); err != nil {
		tb.t.Fatalf("put: %v", err)
	}
}

// sets yields the label sets of a file that a selector picks.
func (tb *table) sets(path string, sel series.Selector) map[labels.Labels]bool {
	tb.t.Helper()
	a, _ := tb.latest().File(action.Key{Path: path})
	f, err := chunk.Open(context.Background(), chunk.StoreSource(tb.store, root+"/"+path), a.Size)
	if err != nil {
		tb.t.Fatalf("open: %v", err)
	}
	out := map[labels.Labels]bool{}
	for s, err := range f.Series(context.Background(), series.Selector{Matchers: sel.Matchers, Range: series.AllTime}, nil) {
		if err != nil {
			tb.t.Fatalf("series: %v", err)
		}
		out[s.Labels] = true
	}
	return out
}

func newBitmap() *roaring.Bitmap { return roaring.New() }
