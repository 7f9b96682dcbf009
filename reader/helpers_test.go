package reader

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/index"
	"cardinalsin/internal/merge"
	"cardinalsin/lease"
	"cardinalsin/reader/readertest"
	"cardinalsin/series"
	"cardinalsin/shard"
	"cardinalsin/storage"
	"cardinalsin/storage/fault"
	"cardinalsin/storage/mem"
	"cardinalsin/txlog"
)

const (
	root = "tenant/metrics"
	day  = series.Timestamp(1767312000_000_000) // 2026-01-02
)

// tester is what *testing.T and *rapid.T share.
type tester interface {
	Helper()
	Fatalf(format string, args ...any)
}

// clock is one time for the store and for every process.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// env is a table with a process that reads it, on a store with faults, and
// the process that writes and vacuums it, on the same store without.
type env struct {
	clock *clock
	inner storage.Store
	store *fault.Store
	admin *txlog.Log // of the other process
	log   *txlog.Log // of the reading process
	pins  *lease.Pins
	order int64
}

func newEnv(t tester, labelColumns ...string) *env {
	t.Helper()
	e := &env{clock: newClock()}
	e.inner = mem.New(mem.Options{Now: e.clock.Now})
	e.store = fault.New(e.inner)
	schema := chunk.BaseSchema()
	base, err := chunk.LayoutOf(schema)
	if err != nil {
		t.Fatalf("layout: %v", err)
	}
	schema.Fields = append(schema.Fields, base.Grow(labelColumns)...)
	e.admin, err = txlog.Create(context.Background(), e.inner, root, txlog.CreateOptions{
		Schema: schema, PartitionColumns: chunk.PartitionColumns(),
		Domains: map[string]string{shard.Domain: shard.Initial().Encode()},
	}, txlog.Options{Now: e.clock.Now})
	if err != nil {
		t.Fatalf("create: %v", err)
	}
	return e
}

// start begins the reading process.
func (e *env) start(t tester, opts Options) *Reader {
	t.Helper()
	var err error
	if e.log, err = txlog.Open(context.Background(), e.store, root, txlog.Options{Now: e.clock.Now}); err != nil {
		t.Fatalf("open: %v", err)
	}
	e.pins = lease.NewPins(e.store, root+"/_cardinal/pins", "test", lease.Options{Now: e.clock.Now})
	return New(e.log, e.pins, opts)
}

// index covers what nothing covers yet, and returns how many versions it made.
func (e *env) index(t tester) int {
	t.Helper()
	done, err := index.NewRunner(e.admin, index.RunnerOptions{Policy: index.Policy{Eager: true}}).RunAll(context.Background())
	if err != nil {
		t.Fatalf("index: %v", err)
	}
	return len(done)
}

// file is a data file that is stored but in no version yet.
type file struct {
	add  action.Add
	rows []series.Series
}

// upload encodes and stores a file; its order number is the next.
func (e *env) upload(t tester, path string, rows ...series.Series) file {
	t.Helper()
	layout, err := chunk.LayoutOf(e.snapshot(t).Schema())
	if err != nil {
		t.Fatalf("layout: %v", err)
	}
	enc := encode(t, layout, rows)
	stats, err := enc.Stats.Encode()
	if err != nil {
		t.Fatalf("statistics: %v", err)
	}
	if _, err := e.inner.Put(context.Background(), root+"/"+path, bytes.NewReader(enc.Data)); err != nil {
		t.Fatalf("put: %v", err)
	}
	e.order++
	return file{rows: rows, add: action.Add{
		Path: path, Size: int64(len(enc.Data)), DataChange: true, Stats: stats,
		PartitionValues: action.ObjectOf(map[string]string{chunk.ColumnDate: enc.Time.Min.Date().String(), chunk.ColumnShard: "1"}),
		Tags:            chunk.Tags{Order: chunk.Order{Lo: e.order, Hi: e.order}, Time: enc.Time, Keys: enc.Keys}.Encode(),
	}}
}

// encodings keeps files, since the same few are written thousands of times.
var encodings sync.Map

func encode(t tester, layout *chunk.Layout, rows []series.Series) *chunk.Encoded {
	t.Helper()
	key := fmt.Sprintf("%q %s", layout.Labels(), rowsOf(rows...))
	if enc, ok := encodings.Load(key); ok {
		return enc.(*chunk.Encoded)
	}
	in := make([]merge.Series, len(rows))
	for i, r := range rows {
		in[i] = merge.Series{Labels: r.Labels, ID: series.IDOf(r.Labels), Samples: r.Samples}
	}
	slices.SortFunc(in, func(a, b merge.Series) int { return a.Compare(&b) })
	enc, err := chunk.Encode(chunk.Options{RowGroupRows: 64, PageRows: 16}, layout, merge.Slice(in))
	if err != nil {
		t.Fatalf("encode: %v", err)
	}
	encodings.Store(key, enc)
	return enc
}

func (e *env) snapshot(t tester) *txlog.Snapshot {
	t.Helper()
	s, err := e.admin.Snapshot(context.Background(), txlog.Latest())
	if err != nil {
		t.Fatalf("snapshot: %v", err)
	}
	return s
}

// commit makes a version with these changes.
func (e *env) commit(t tester, removes, adds []file) action.Version {
	t.Helper()
	txn := e.admin.Begin(e.snapshot(t), txlog.Operation{Name: "TEST"})
	for _, f := range removes {
		txn.Remove(f.add.Tombstone(false))
	}
	for _, f := range adds {
		txn.Add(f.add)
	}
	s, err := txn.Commit(context.Background())
	if err != nil {
		t.Fatalf("commit: %v", err)
	}
	return s.Version()
}

// write uploads and commits one file.
func (e *env) write(t tester, path string, rows ...series.Series) action.Version {
	t.Helper()
	return e.commit(t, nil, []file{e.upload(t, path, rows...)})
}

// vacuum does what package vacuum does with no retention, in steps that tests
// run between the reader's requests.
type vacuum struct {
	env     *env
	horizon action.Version // H
	keep    action.Version // E
}

// announce commits the watermark at the latest version.
func (v *vacuum) announce(t tester) {
	t.Helper()
	base := v.env.snapshot(t)
	v.horizon = base.Version()
	txn := v.env.admin.Begin(base, txlog.Operation{Name: "VACUUM START"})
	txn.SetDomain(txlog.WatermarkDomain, txlog.EncodeWatermark(v.horizon))
	txn.Require(txlog.DomainUnchanged(txlog.WatermarkDomain))
	if _, err := txn.Commit(context.Background()); err != nil {
		t.Fatalf("vacuum start: %v", err)
	}
}

// collect lists the pins and revokes the expired.
func (v *vacuum) collect(t tester) {
	t.Helper()
	v.keep = v.horizon
	pins, err := lease.ListPins(context.Background(), v.env.inner, root+"/_cardinal/pins")
	if err != nil {
		t.Fatalf("list pins: %v", err)
	}
	for _, p := range pins {
		if p.Revoked {
			continue
		}
		if p.Expired() {
			won, err := lease.Revoke(context.Background(), v.env.inner, p)
			if err != nil {
				t.Fatalf("revoke: %v", err)
			}
			if won {
				continue
			}
		}
		v.keep = min(v.keep, action.Version(p.MinVersion))
	}
}

// sweep deletes the files that no version from keep on holds.
func (v *vacuum) sweep(t tester) {
	t.Helper()
	latest := v.env.snapshot(t)
	live := map[string]bool{}
	for w := v.keep; w <= latest.Version(); w++ {
		s, err := v.env.admin.Snapshot(context.Background(), txlog.AtVersion(w))
		if err != nil {
			t.Fatalf("snapshot %d: %v", int64(w), err)
		}
		for a := range s.Files() {
			live[a.Path] = true
		}
	}
	for o, err := range v.env.inner.List(context.Background(), root+"/f", "") {
		if err != nil {
			t.Fatalf("list: %v", err)
		}
		if !live[strings.TrimPrefix(o.Key, root+"/")] {
			if err := v.env.inner.Delete(context.Background(), o.Key); err != nil {
				t.Fatalf("delete: %v", err)
			}
		}
	}
}

// one is a series with float samples at the given µs after day; their value
// is v.
func one(v float64, lbls labels.Labels, at ...int64) series.Series {
	s := series.Series{Labels: lbls}
	for _, t := range at {
		s.Samples = append(s.Samples, series.Sample{Time: day + series.Timestamp(t), Value: v})
	}
	return s
}

func lbl(pairs ...string) labels.Labels {
	return labels.FromStrings(append([]string{series.MetricName}, pairs...)...)
}

var everything = series.Selector{Range: series.AllTime}

// collect prints what a selection yields, a line a sample.
func collect(seq iter.Seq2[series.Series, error]) (string, error) {
	var out strings.Builder
	for s, err := range seq {
		if err != nil {
			return out.String(), err
		}
		for _, p := range s.Samples {
			fmt.Fprintf(&out, "%s %d.%03d %v %x", s.Labels, p.Time-day, p.Nanos, p.Value, p.Histogram)
			if p.Start != 0 {
				fmt.Fprintf(&out, " since %d", p.Start)
			}
			out.WriteByte('\n')
		}
	}
	return out.String(), nil
}

// rowsOf prints series as collect does, sorted into its order.
func rowsOf(all ...series.Series) string {
	all = slices.Clone(all)
	slices.SortFunc(all, func(a, b series.Series) int {
		return series.Compare(a.Labels, b.Labels, series.IDOf(a.Labels), series.IDOf(b.Labels))
	})
	out, _ := collect(func(yield func(series.Series, error) bool) {
		for _, s := range all {
			if !yield(s, nil) {
				return
			}
		}
	})
	return out
}

// query opens a view, reads everything and closes it.
func query(r *Reader, at txlog.At) (string, error) {
	v, err := r.At(context.Background(), at)
	if err != nil {
		return "", err
	}
	defer v.Close()
	return collect(v.Select(context.Background(), everything))
}

func mustQuery(t *testing.T, r *Reader, at txlog.At, want string) {
	t.Helper()
	got, err := query(r, at)
	if err != nil {
		t.Fatalf("query: %v", err)
	}
	if got != want {
		t.Errorf("query = %q, want %q", got, want)
	}
}

// memHead is a head in memory.
type memHead = readertest.Head

func newHead(all ...series.Series) memHead { return readertest.NewHead(all...) }

// refused reports whether an error is one that a reader may meet when vacuum
// was faster: no answer instead of a wrong one.
func refused(err error) bool {
	return errors.Is(err, txlog.ErrVersionVacuumed) || errors.Is(err, lease.ErrPinLost)
}

func version(n int64) action.Version { return action.Version(n) }

func equal(name, value string) *series.Matcher {
	return labels.MustNewMatcher(labels.MatchEqual, name, value)
}
