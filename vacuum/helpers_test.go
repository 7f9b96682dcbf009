package vacuum

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"cardinalsin/action"
	"cardinalsin/storage"
	"cardinalsin/storage/mem"
	"cardinalsin/txlog"
)

const (
	root = "default/metrics"
	dir  = "date=2026-11-22/shard=1/"
)

var epoch = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// clock is both the store's and the processes' clock; it stands still until
// it is moved.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: epoch} }

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

// table is a table on a store in memory, with files whose content is their
// own name.
type table struct {
	store storage.Store
	clock *clock
	log   *txlog.Log
}

func newTable(t testing.TB) *table {
	t.Helper()
	c := newClock()
	tab := &table{store: mem.New(mem.Options{Now: c.now}), clock: c}
	log, err := createTable(t.Context(), tab.store, c.now)
	if err != nil {
		t.Fatal(err)
	}
	tab.log = log
	return tab
}

func createTable(ctx context.Context, store storage.Store, now func() time.Time) (*txlog.Log, error) {
	schema := &action.Schema{Fields: []action.Field{
		{Name: "timestamp", Type: action.PrimitiveType("timestamp")},
		{Name: "date", Type: action.PrimitiveType("date"), Nullable: true},
		{Name: "shard", Type: action.PrimitiveType("string"), Nullable: true},
	}}
	return txlog.Create(ctx, store, root, txlog.CreateOptions{Schema: schema, PartitionColumns: []string{"date", "shard"}}, txlog.Options{Now: now})
}

func addOf(name string) action.Add {
	return action.Add{
		Path:            dir + name + ".parquet",
		PartitionValues: action.ObjectOf(map[string]string{"date": "2026-11-22", "shard": "1"}),
		Size:            int64(len(name)), DataChange: true,
	}
}

func removeOf(name string) action.Remove {
	a := addOf(name)
	return a.Tombstone(true)
}

func upload(ctx context.Context, store storage.Store, name string) error {
	_, err := store.Put(ctx, root+"/"+dir+name+".parquet", strings.NewReader(name))
	return err
}

// commit makes one version that adds and removes files; those that are added
// must have been uploaded.
func commit(ctx context.Context, log *txlog.Log, op string, adds, removes []string, req ...txlog.Requirement) (*txlog.Snapshot, error) {
	base, err := log.Snapshot(ctx, txlog.Latest())
	if err != nil {
		return nil, err
	}
	tx := log.Begin(base, txlog.Operation{Name: op})
	for _, name := range removes {
		tx.Remove(removeOf(name))
	}
	for _, name := range adds {
		tx.Add(addOf(name))
	}
	tx.Require(req...)
	return tx.Commit(ctx)
}

func (tab *table) upload(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		if err := upload(t.Context(), tab.store, name); err != nil {
			t.Fatal(err)
		}
	}
}

// write uploads and commits files, one version.
func (tab *table) write(t testing.TB, names ...string) action.Version {
	t.Helper()
	tab.upload(t, names...)
	return tab.commit(t, "WRITE", names, nil)
}

func (tab *table) remove(t testing.TB, names ...string) action.Version {
	t.Helper()
	return tab.commit(t, "DELETE", nil, names)
}

func (tab *table) commit(t testing.TB, op string, adds, removes []string) action.Version {
	t.Helper()
	s, err := commit(t.Context(), tab.log, op, adds, removes)
	if err != nil {
		t.Fatal(err)
	}
	return s.Version()
}

func (tab *table) plan(t testing.TB, opts Options) *Plan {
	t.Helper()
	p, err := NewPlan(t.Context(), tab.log, opts)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (tab *table) run(t testing.TB, opts Options) Report {
	t.Helper()
	r, err := tab.plan(t, opts).Execute(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// keys lists what is stored below the table's root, without its prefix.
func keys(t testing.TB, store storage.Store, under string) []string {
	t.Helper()
	objs, err := storage.Collect(store.List(t.Context(), root+"/"+under, ""))
	if err != nil {
		t.Fatal(err)
	}
	out := []string{}
	for _, o := range objs {
		out = append(out, strings.TrimPrefix(o.Key, root+"/"))
	}
	return out
}

// data lists the names of stored data files.
func data(t testing.TB, store storage.Store) []string {
	t.Helper()
	out := []string{}
	for _, k := range keys(t, store, dir) {
		out = append(out, strings.TrimSuffix(strings.TrimPrefix(k, dir), ".parquet"))
	}
	return out
}

// snapshotBytes is the whole content of a store, to compare.
func snapshotBytes(t testing.TB, store storage.Store) map[string]string {
	t.Helper()
	objs, err := storage.Collect(store.List(t.Context(), "", ""))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, o := range objs {
		b, _, err := store.Get(t.Context(), o.Key)
		if err != nil {
			t.Fatal(err)
		}
		out[o.Key] = string(b)
	}
	return out
}

func short(opts Options) Options {
	opts.AllowShortRetention = true
	return opts
}

func (o Object) String() string {
	return fmt.Sprintf("%s %d bytes, version %d", o.Key, o.Bytes, o.Version)
}

func putPin(t testing.TB, store storage.Store, id string, v action.Version) {
	t.Helper()
	body := fmt.Sprintf(`{"min_version":%d,"holder":%q}`, int64(v), id)
	if _, err := store.Put(t.Context(), root+"/_cardinal/pins/"+id+".json", strings.NewReader(body)); err != nil {
		t.Fatal(err)
	}
}

func (c *clock) set(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = t
}
