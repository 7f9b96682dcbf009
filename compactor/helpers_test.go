package compactor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/internal/merge"
	"cardinalsin/lease"
	"cardinalsin/series"
	"cardinalsin/shard"
	"cardinalsin/storage"
	"cardinalsin/storage/mem"
	"cardinalsin/txlog"
)

type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) tick(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// rows maps a sample's identity, in text, to its value.
type rows map[string]float64

// table is a table with a model of what it holds at each version.
type table struct {
	store storage.Store
	clock *clock
	log   *txlog.Log

	mu    sync.Mutex // guards the fields below
	order int64
	seq   uint64
	model rows // of everything written
	at    map[action.Version]rows
}

func newTable(t testing.TB) *table {
	t.Helper()
	c := &clock{t: epoch}
	tab := &table{store: mem.New(mem.Options{Now: c.now}), clock: c, model: rows{}, at: map[action.Version]rows{}}
	log, err := txlog.Create(t.Context(), tab.store, root, txlog.CreateOptions{
		Schema: chunk.BaseSchema(), PartitionColumns: chunk.PartitionColumns(),
		Domains: map[string]string{shard.Domain: shard.Initial().Encode()},
	}, txlog.Options{Now: c.now})
	if err != nil {
		t.Fatal(err)
	}
	tab.log = log
	return tab
}

func (tab *table) open(t testing.TB, store storage.Store) *txlog.Log {
	t.Helper()
	log, err := txlog.Open(t.Context(), store, root, txlog.Options{Now: tab.clock.now})
	if err != nil {
		t.Fatal(err)
	}
	return log
}

func (tab *table) runner(t testing.TB, store storage.Store, opts Options) *Runner {
	t.Helper()
	log := tab.open(t, store)
	return NewRunner(log, lease.NewPins(store, root+"/_cardinal/pins", "test", lease.Options{Now: tab.clock.now}), "test", opts)
}

// sample is one row as tests write it.
type sample struct {
	metric string
	labels []string // name, value, …
	minute int      // after the epoch
	value  float64
}

func (s sample) key() string {
	return fmt.Sprintf("%s@%d", s.set(), epoch.Add(time.Duration(s.minute)*time.Minute).UnixMicro())
}

func (s sample) set() labels.Labels {
	return labels.FromStrings(append([]string{series.MetricName, s.metric}, s.labels...)...)
}

// write flushes samples as one file and commits it, under the next order
// number; the model takes it that the later write wins.
func (tab *table) write(t testing.TB, shardID string, in ...sample) action.Version {
	t.Helper()
	v, err := tab.flush(t.Context(), tab.log, shardID, 0, in...)
	if err != nil {
		t.Fatal(err)
	}
	tab.mu.Lock()
	defer tab.mu.Unlock()
	for _, s := range in {
		tab.model[s.key()] = s.value
	}
	tab.at[v] = maps.Clone(tab.model)
	return v
}

// flush does what a writer does. order 0 means the next one.
func (tab *table) flush(ctx context.Context, log *txlog.Log, shardID string, order int64, in ...sample) (action.Version, error) {
	tab.mu.Lock()
	tab.seq++
	seq := tab.seq
	if order == 0 {
		tab.order += 10
		order = tab.order
	}
	tab.mu.Unlock()
	base, err := log.Snapshot(ctx, txlog.Latest())
	if err != nil {
		return 0, err
	}
	var names []string
	byLabels := map[string]*chunk.Series{}
	var all []*chunk.Series
	for _, s := range in {
		l := s.set()
		l.Range(func(l labels.Label) { names = append(names, l.Name) })
		g := byLabels[l.String()]
		if g == nil {
			g = &chunk.Series{Labels: l, ID: series.IDOf(l)}
			byLabels[l.String()] = g
			all = append(all, g)
		}
		g.Samples = append(g.Samples, series.Sample{Time: series.FromTime(epoch.Add(time.Duration(s.minute) * time.Minute)), Value: s.value, Start: startOf(s.value)})
	}
	slices.SortFunc(all, func(a, b *chunk.Series) int { return a.Compare(b) })
	for _, g := range all {
		slices.SortFunc(g.Samples, series.Sample.Compare)
	}
	layout, err := chunk.LayoutOf(base.Schema())
	if err != nil {
		return 0, err
	}
	columns := layout.WithMaxLabels(2).Grow(names) // some labels overflow
	grown := &action.Schema{Fields: append(slices.Clone(base.Schema().Fields), columns...)}
	if layout, err = chunk.LayoutOf(grown); err != nil {
		return 0, err
	}
	enc, err := chunk.Encode(chunk.Options{PageRows: 8, RowGroupRows: 64}, layout, func(yield func(chunk.Series, error) bool) {
		for _, g := range all {
			if !yield(*g, nil) {
				return
			}
		}
	})
	if err != nil {
		return 0, err
	}
	date := series.FromTime(epoch).Date().String()
	path := fmt.Sprintf("date=%s/shard=%s/%s.parquet", date, shardID, uuid.NewString())
	if _, err := log.Store().Put(ctx, root+"/"+path, bytes.NewReader(enc.Data)); err != nil {
		return 0, err
	}
	stats, err := enc.Stats.Encode()
	if err != nil {
		return 0, err
	}
	tags := chunk.Tags{Order: chunk.Order{Lo: order, Hi: order}, WAL: []chunk.WALRange{{Writer: "w", First: seq, Last: seq}}, Time: enc.Time, Keys: enc.Keys}
	tx := log.Begin(base, txlog.Operation{Name: "WRITE"})
	tx.AddColumns(columns...)
	tx.Add(action.Add{
		Path: path, PartitionValues: action.ObjectOf(map[string]string{"date": date, "shard": shardID}),
		Size: int64(len(enc.Data)), Stats: stats, Tags: tags.Encode(), DataChange: true,
	})
	s, err := tx.Commit(ctx)
	if err != nil {
		return 0, err
	}
	return s.Version(), nil
}

// startOf gives each sample of the tests a start time that tells it from
// others; some have none.
func startOf(v float64) int64 { return int64(v) / 2 * 1_000_000_007 }

// read returns the rows of a version, straight from its files.
func read(t testing.TB, store storage.Store, at txlog.At) rows {
	t.Helper()
	out, err := tryRead(t.Context(), store, at)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func tryRead(ctx context.Context, store storage.Store, at txlog.At) (rows, error) {
	log, err := txlog.Open(ctx, store, root, txlog.Options{})
	if err != nil {
		return nil, err
	}
	snap, err := log.Snapshot(ctx, at)
	if err != nil {
		return nil, err
	}
	var sources []merge.Source
	for a := range snap.Files() {
		tags, _, err := chunk.ParseTags(a.Tags)
		if err != nil {
			return nil, err
		}
		f, err := chunk.Open(ctx, chunk.StoreSource(store, root+"/"+a.Path), a.Size)
		if err != nil {
			return nil, err
		}
		sources = append(sources, merge.Source{Rank: merge.Rank{Order: tags.Order.Hi, Tie: a.Path}, Series: f.Select(ctx, series.Selector{Range: series.AllTime}, nil)})
	}
	out := rows{}
	for s, err := range merge.Sources(sources...) {
		if err != nil {
			return nil, err
		}
		for _, p := range s.Samples {
			if p.Start != startOf(p.Value) {
				return nil, fmt.Errorf("sample %v of %s starts at %d", p.Value, s.Labels, p.Start)
			}
			out[fmt.Sprintf("%s@%d", s.Labels, int64(p.Time))] = p.Value
		}
	}
	return out, nil
}

// checkVersions compares every version that the model knows, and the latest.
func (tab *table) checkVersions(t testing.TB, store storage.Store) {
	t.Helper()
	for v, want := range tab.at {
		if d := cmp.Diff(want, read(t, store, txlog.AtVersion(v))); d != "" {
			t.Fatalf("version %d: %s", v, d)
		}
	}
	if d := cmp.Diff(tab.model, read(t, store, txlog.Latest())); d != "" {
		t.Fatalf("latest version: %s", d)
	}
}

// small fills a table with n flushes, which overlap in series and instants.
func (tab *table) small(t testing.TB, shardID string, n int) {
	t.Helper()
	for i := range n {
		tab.write(t, shardID,
			sample{"up", []string{"job", "a"}, 2 + i, float64(i)},
			sample{"up", []string{"job", "a"}, 1, float64(100 + i)}, // always the same instant
			sample{"up", []string{"job", "b", "pod", fmt.Sprint(i % 2), "zone", "z"}, i, float64(i)},
			sample{"load", []string{"job", "a", "pod", "x", "extra", fmt.Sprint(i)}, i, 1},
		)
	}
}

func files(t testing.TB, store storage.Store) []string {
	t.Helper()
	log, err := txlog.Open(t.Context(), store, root, txlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for a := range snapshot(t, log).Files() {
		out = append(out, a.Path)
	}
	return out
}

func flip(t testing.TB, store storage.Store, path string, at int) (restore func()) {
	t.Helper()
	b, _, err := store.Get(t.Context(), root+"/"+path)
	if err != nil {
		t.Fatal(err)
	}
	put := func(b []byte) {
		if _, err := store.Put(t.Context(), root+"/"+path, bytes.NewReader(b)); err != nil {
			t.Fatal(err)
		}
	}
	bad := bytes.Clone(b)
	bad[at%len(b)] ^= 0x10
	put(bad)
	return func() { put(b) }
}

// copyStore returns a store with the same objects.
func copyStore(t testing.TB, tab *table) storage.Store {
	t.Helper()
	to := mem.New(mem.Options{Now: tab.clock.now})
	objs, err := storage.Collect(tab.store.List(t.Context(), "", ""))
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objs {
		b, _, err := tab.store.Get(t.Context(), o.Key)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := to.PutIfAbsent(t.Context(), o.Key, b); err != nil {
			t.Fatal(err)
		}
	}
	return to
}

func only(results []Result, err error) (Result, error) {
	if err == nil && len(results) != 1 {
		err = errors.New(strings.Repeat("job ", len(results)))
	}
	if err != nil {
		return Result{}, err
	}
	return results[0], nil
}
