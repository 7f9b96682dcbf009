package writer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/internal/merge"
	"cardinalsin/series"
	"cardinalsin/shard"
	"cardinalsin/storage"
	"cardinalsin/storage/fault"
	"cardinalsin/storage/mem"
	"cardinalsin/txlog"
	"cardinalsin/wal"
)

func latest(t testing.TB, store storage.Store) *txlog.Snapshot {
	t.Helper()
	s, err := openTable(t, store).Snapshot(t.Context(), txlog.Latest())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func fileCount(t testing.TB, store storage.Store) (live, stored int) {
	t.Helper()
	all, err := storage.Collect(store.List(t.Context(), root+"/date=", ""))
	if err != nil {
		t.Fatal(err)
	}
	return latest(t, store).NumFiles(), len(all)
}

// Two writers share a table and nothing else: both grow the schema, both
// commit all the time, and every row is there once.
func TestTwoWriters(t *testing.T) {
	store := mem.New(mem.Options{})
	createTable(t, store)
	want := rows{}
	var mu sync.Mutex
	var g errgroup.Group
	for who := range 2 {
		w := openWriter(t, openTable(t, store), openWAL(t, t.TempDir()), Options{})
		g.Go(func() error {
			for n := range 20 {
				b := one("m", []string{"l" + fmt.Sprint(n%5*(who+1)), "x", "who", fmt.Sprint(who)}, at0(int64(n), float64(who)))
				if err := w.Append(t.Context(), b); err != nil {
					return err
				}
				mu.Lock()
				want.addBatch(b)
				mu.Unlock()
				if n%2 == 1 {
					if err := w.Flush(t.Context()); err != nil {
						return err
					}
				}
			}
			return w.Close(t.Context())
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if d := gocmp.Diff(want, tableRows(t, store), gocmp.AllowUnexported(point{})); d != "" {
		t.Errorf("table (-want +got):\n%s", d)
	}
	if v := latest(t, store).Version(); v != 20 {
		t.Errorf("version %d after 20 flushes", v)
	}
}

// Two processes with one identity, by a copied WAL directory: the first to
// commit goes on; the other is told so for good, and loses nothing from its
// WAL. When what the two hold is the same, neither is harmed.
func TestSameIdentity(t *testing.T) {
	store := mem.New(mem.Options{})
	log := createTable(t, store)
	dir := t.TempDir()
	a := openWriter(t, log, openWAL(t, dir), Options{})
	mustAppend(t, a, one("m", nil, at0(1, 1))) // before the copy: both have it
	dirB := copyDir(t, dir)
	walB := openWAL(t, dirB)
	b := openWriter(t, openTable(t, store), walB, Options{})

	mustFlush(t, a)
	mustFlush(t, b) // the same record under the same sequence: committed by a
	if got := latest(t, store).Version(); got != 1 {
		t.Fatalf("version %d after the same flush of two", got)
	}
	mustAppend(t, a, one("m", nil, at0(2, 2)))
	mustAppend(t, b, one("m", nil, at0(2, 3))) // same sequence, other data
	mustFlush(t, a)
	var ev FlushEvent
	b.opts.Events.FlushEnd = func(e FlushEvent) { ev = e }
	for range 2 { // terminal: told again without asking the store
		if err := b.Flush(t.Context()); !errors.Is(err, txlog.ErrFenced) || errors.Is(err, txlog.ErrConflict) {
			t.Fatalf("flush of the second process: %v", err)
		}
	}
	if !errors.Is(ev.Err, txlog.ErrFenced) {
		t.Errorf("event %+v", ev)
	}
	if err := b.Append(t.Context(), one("m", nil, at0(3, 3))); !errors.Is(err, txlog.ErrFenced) {
		t.Errorf("append after being fenced: %v", err)
	}
	if err := b.Run(t.Context()); !errors.Is(err, txlog.ErrFenced) {
		t.Errorf("run after being fenced: %v", err)
	}
	if err := b.Close(t.Context()); !errors.Is(err, txlog.ErrFenced) {
		t.Errorf("close after being fenced: %v", err)
	}
	kept := rows{}
	if err := walB.Replay(1, func(_ wal.Sequence, b series.Batch) error { kept.addBatch(b); return nil }); err != nil {
		t.Fatal(err)
	}
	want := rows{}
	want.addBatch(one("m", nil, at0(2, 3)))
	if d := gocmp.Diff(want, kept, gocmp.AllowUnexported(point{})); d != "" {
		t.Errorf("the fenced wal (-want +got):\n%s", d)
	}
	if got := viewRows(b.Head()); len(got) != 1 {
		t.Errorf("the fenced head holds\n%s", got)
	}
	mustAppend(t, a, one("m", nil, at0(4, 4)))
	if err := a.Close(t.Context()); err != nil {
		t.Errorf("the first process: %v", err)
	}

	// A directory that stayed behind does not open at all: its next sequence
	// would be one that the table has.
	_, err := Open(t.Context(), openTable(t, store), openWAL(t, copyDir(t, dirB)), Options{})
	if !errors.Is(err, txlog.ErrFenced) || !errors.Is(err, wal.ErrSequenceGap) {
		t.Errorf("open behind the table: %v", err)
	}
}

// Routing goes by the map that the commit checks: a writer with an old one
// reroutes, and no row is misplaced.
func TestReroute(t *testing.T) {
	w, store := newWriter(t, Options{})
	want := rows{}
	for i := range 50 {
		b := one(fmt.Sprintf("metric_%d", i), []string{"i", fmt.Sprint(i)}, at0(int64(i), 1))
		mustAppend(t, w, b)
		want.addBatch(b)
	}
	splitMap(t, store, 1<<63)
	mustFlush(t, w)
	if d := gocmp.Diff(want, tableRows(t, store), gocmp.AllowUnexported(point{})); d != "" {
		t.Errorf("table (-want +got):\n%s", d)
	}
	shards := map[string]int{}
	for a := range latest(t, store).Files() {
		id, _ := a.PartitionValues.Get(chunk.ColumnShard)
		shards[id]++
	}
	if d := gocmp.Diff(map[string]int{"10": 1, "11": 1}, shards); d != "" {
		t.Errorf("files by shard (-want +got):\n%s", d)
	}
	// tableRows allows for files that are older than a split; here none is.
	m := *w.shards.Load()
	for s := range tableSeries(t, store) {
		if owner := m.Of(shard.KeyOf(s.Labels, s.ID)); owner != "10" && owner != "11" {
			t.Errorf("%s is owned by %s", s.Labels, owner)
		}
	}
	if live, stored := fileCount(t, store); live != 2 || stored != 3 {
		t.Errorf("%d files live of %d, want 2 of 3", live, stored)
	}
}

// Of two writers that bring labels which differ only in case, the second
// takes the overflow map: no version has two such columns.
func TestSchemaClash(t *testing.T) {
	store := mem.New(mem.Options{})
	createTable(t, store)
	a := openWriter(t, openTable(t, store), openWAL(t, t.TempDir()), Options{})
	b := openWriter(t, openTable(t, store), openWAL(t, t.TempDir()), Options{})
	want := rows{}
	for w, label := range map[*Writer]string{a: "Pod", b: "pod"} {
		batch := one("m", []string{label, "x", "shared", "y"}, at0(1, 1))
		mustAppend(t, w, batch)
		want.addBatch(batch)
	}
	mustFlush(t, a)
	var ev FlushEvent
	b.opts.Events.FlushEnd = func(e FlushEvent) { ev = e }
	mustFlush(t, b)
	if ev.Conflicts != 1 {
		t.Errorf("event %+v, want one conflict", ev)
	}
	if d := gocmp.Diff(want, tableRows(t, store), gocmp.AllowUnexported(point{})); d != "" {
		t.Errorf("table (-want +got):\n%s", d)
	}
	var columns []string
	for _, f := range latest(t, store).Schema().Fields {
		if f.Metadata[chunk.LabelMetadata] != nil {
			columns = append(columns, f.Name)
		}
	}
	if d := gocmp.Diff([]string{"Pod", "shared"}, columns); d != "" {
		t.Errorf("label columns (-want +got):\n%s", d)
	}
}

// Columns that two writers add at once, and that do not clash, cost no retry.
func TestSchemaMerges(t *testing.T) {
	store := mem.New(mem.Options{})
	createTable(t, store)
	a := openWriter(t, openTable(t, store), openWAL(t, t.TempDir()), Options{})
	b := openWriter(t, openTable(t, store), openWAL(t, t.TempDir()), Options{})
	mustAppend(t, a, one("m", []string{"both", "x", "mine", "x"}, at0(1, 1)))
	mustAppend(t, b, one("m", []string{"both", "x", "yours", "x"}, at0(1, 1)))
	mustFlush(t, a)
	var ev FlushEvent
	b.opts.Events.FlushEnd = func(e FlushEvent) { ev = e }
	mustFlush(t, b)
	if ev.Conflicts != 0 {
		t.Errorf("event %+v, want no conflict", ev)
	}
	layout, err := chunk.LayoutOf(latest(t, store).Schema())
	if err != nil {
		t.Fatal(err)
	}
	if d := gocmp.Diff([]string{"both", "mine", "yours"}, layout.Labels()); d != "" {
		t.Errorf("labels (-want +got):\n%s", d)
	}
}

// The limit on label columns holds; what is past it is kept in the map.
func TestColumnLimit(t *testing.T) {
	w, store := newWriter(t, Options{MaxLabelColumns: 3})
	want := rows{}
	for i := range 5 {
		b := one("m", []string{fmt.Sprintf("l%d", i), "x"}, at0(int64(i), 1))
		mustAppend(t, w, b)
		want.addBatch(b)
		mustFlush(t, w)
	}
	if d := gocmp.Diff(want, tableRows(t, store), gocmp.AllowUnexported(point{})); d != "" {
		t.Errorf("table (-want +got):\n%s", d)
	}
	if got, want := len(latest(t, store).Schema().Fields), len(chunk.BaseSchema().Fields)+3; got != want {
		t.Errorf("%d columns, want %d", got, want)
	}
}

// A flush takes its number and then hangs, for longer than the compactor waits
// for such a one (Policy.Settle). Meanwhile another writer flushes, and the
// hanging writer's earlier file is merged with that. The merged file ranks as
// its newest part; so the flush must take a new number, or the writer's older
// value would win over its newer one.
func TestMergedPastAHangingFlush(t *testing.T) {
	for name, back := range map[string]time.Duration{
		"clock runs on":            0,
		"clock of another is fast": 2 * time.Minute, // and the number comes from that
	} {
		t.Run(name, func(t *testing.T) {
			now := time.Unix(1_700_000_000, 0)
			clock := func() time.Time { return now }
			store := mem.New(mem.Options{Now: clock})
			createTable(t, store)
			f := fault.New(store)
			log, err := txlog.Open(t.Context(), f, root, txlog.Options{})
			if err != nil {
				t.Fatal(err)
			}
			var ev FlushEvent
			w := openWriter(t, log, openWAL(t, t.TempDir()), Options{Events: Events{FlushEnd: func(e FlushEvent) { ev = e }}})
			other := openWriter(t, openTable(t, store), openWAL(t, t.TempDir()), Options{})
			mustAppend(t, w, one("m", nil, at0(1, 1)))
			mustFlush(t, w)

			now = now.Add(time.Second)
			mustAppend(t, w, one("m", nil, at0(1, 2)))
			f.Inject(fault.Fault{Op: storage.OpPutIfAbsent, Mode: fault.Pass, OnCall: func(context.Context, fault.Call) {
				now = now.Add(2 * time.Minute)
				mustAppend(t, other, one("m", nil, at0(2, 3)))
				mustFlush(t, other)
				mergeAll(t, store)
				now = now.Add(-back)
			}})
			mustFlush(t, w)
			if got, want := mergedTable(t, store), "1+0=2 2+0=3"; got != want {
				t.Errorf("table shows %q, want %q", got, want)
			}
			if ev.Conflicts != 1 {
				t.Errorf("event %+v, want one conflict", ev)
			}
			// What is merged later ranks the same.
			mergeAll(t, store)
			if got, want := mergedTable(t, store), "1+0=2 2+0=3"; got != want {
				t.Errorf("merged again the table shows %q, want %q", got, want)
			}
		})
	}
}

// mergeAll does to a table of one day and shard what a compactor does.
func mergeAll(t *testing.T, store storage.Store) {
	t.Helper()
	log := openTable(t, store)
	snap := latest(t, store)
	tx := log.Begin(snap, txlog.Operation{Name: "OPTIMIZE"})
	var sources []merge.Source
	var tags chunk.Tags
	var values action.Object
	for a := range snap.Files() {
		in, _, err := chunk.ParseTags(a.Tags)
		if err != nil {
			t.Fatal(err)
		}
		sources = append(sources, merge.Source{Rank: merge.Rank{Order: in.Order.Hi, Tie: a.Path}, Series: merge.Slice(readFile(t, log, a))})
		if len(sources) == 1 {
			tags.Order = in.Order
		}
		tags.Order, tags.WAL, values = tags.Order.Union(in.Order), append(tags.WAL, in.WAL...), a.PartitionValues
		tx.Remove(a.Tombstone(false))
	}
	layout, err := chunk.LayoutOf(snap.Schema())
	if err != nil {
		t.Fatal(err)
	}
	out, err := chunk.Encode(chunk.Options{}, layout, merge.Sources(sources...))
	if err != nil {
		t.Fatal(err)
	}
	stats, err := out.Stats.Encode()
	if err != nil {
		t.Fatal(err)
	}
	tags.WAL, tags.Time, tags.Keys, tags.Level = chunk.MergeWAL(tags.WAL), out.Time, out.Keys, 1
	date, _ := values.Get(chunk.ColumnDate)
	id, _ := values.Get(chunk.ColumnShard)
	add := action.Add{
		Path: fmt.Sprintf("date=%s/shard=%s/merged-%d.parquet", date, id, snap.Version()), PartitionValues: values,
		Size: int64(len(out.Data)), Stats: stats, Tags: tags.Encode(),
	}
	if _, err := store.Put(t.Context(), root+"/"+add.Path, bytes.NewReader(out.Data)); err != nil {
		t.Fatal(err)
	}
	tx.Add(add)
	if _, err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// Files that took so long to upload that vacuum may take them for orphans are
// not committed; they are uploaded again.
func TestUploadsTooOld(t *testing.T) {
	var mu sync.Mutex
	now := time.Unix(1_700_000_000, 0)
	clock := func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return now
	}
	store := mem.New(mem.Options{Now: clock})
	createTable(t, store)
	f := fault.New(store)
	f.Inject(fault.Fault{Op: storage.OpPut, Mode: fault.Pass, OnCall: func(context.Context, fault.Call) {
		mu.Lock()
		defer mu.Unlock()
		now = now.Add(13 * time.Hour) // the first upload only
	}})
	log, err := txlog.Open(t.Context(), f, root, txlog.Options{Now: clock})
	if err != nil {
		t.Fatal(err)
	}
	var ev FlushEvent
	w := openWriter(t, log, openWAL(t, t.TempDir()), Options{Now: clock, Events: Events{FlushEnd: func(e FlushEvent) { ev = e }}})
	mustAppend(t, w, one("m", nil, at0(1, 1)))
	mustFlush(t, w)
	if ev.Conflicts != 1 {
		t.Errorf("event %+v, want one conflict", ev)
	}
	if live, stored := fileCount(t, store); live != 1 || stored != 2 {
		t.Errorf("%d files live of %d, want 1 of 2", live, stored)
	}
	for a := range latest(t, store).Files() {
		key, err := log.Key(a.Path)
		if err != nil {
			t.Fatal(err)
		}
		if _, info, err := store.Get(t.Context(), key); err != nil || clock().Sub(info.ModTime) > time.Hour {
			t.Errorf("%s is live, written %v (%v)", a.Path, info.ModTime, err)
		}
	}
}

// A commit is cut where it would grow too large, in files or in rows, always
// between records, and every cut is exactly once by itself.
func TestPartCommits(t *testing.T) {
	for name, lim := range map[string]limits{
		"by rows":  {rows: 7, files: 1000},
		"by files": {rows: 1000, files: 3},
		"by both":  {rows: 1, files: 1},
	} {
		t.Run(name, func(t *testing.T) {
			var flushes []FlushEvent
			w, store := newWriter(t, Options{limits: lim, Events: Events{FlushEnd: func(e FlushEvent) { flushes = append(flushes, e) }}})
			want := rows{}
			for n := range 10 {
				b := one("m", []string{"n", fmt.Sprint(n)}, at0(int64(n), 1), at0(int64(n)*24*3600*1_000_000, 2), at0(int64(n)+1, 3))
				if n == 0 {
					b[0].Samples = b[0].Samples[1:] // its first two are one instant
				}
				mustAppend(t, w, b)
				want.addBatch(b)
			}
			splitMap(t, store, 1<<63)
			mustFlush(t, w)
			if d := gocmp.Diff(want, tableRows(t, store), gocmp.AllowUnexported(point{})); d != "" {
				t.Errorf("table (-want +got):\n%s", d)
			}
			next := wal.Sequence(1)
			for _, e := range flushes {
				if e.First != next || e.Err != nil {
					t.Errorf("flush %+v, expected from %d", e, next)
				}
				if e.Last > e.First && (e.Rows > int64(lim.rows) || e.Files > lim.files) {
					t.Errorf("flush %+v exceeds %+v", e, lim)
				}
				next = e.Last + 1
			}
			if next != 11 || len(flushes) < 2 {
				t.Errorf("%d flushes up to %d", len(flushes), next-1)
			}
		})
	}
}

// Of two values for one instant the later accepted wins: within a batch, in
// the head, across a seal, and after the flush; and a batch that is sent
// again changes nothing that a reader sees.
func TestLaterWins(t *testing.T) {
	w, store := newWriter(t, Options{})
	show := func() string {
		var out []string
		for s := range w.Head().Select(series.Selector{Range: series.AllTime}) {
			for _, p := range s.AllSamples() {
				out = append(out, fmt.Sprintf("%d+%d=%g", p.Time-day, p.Nanos, p.Value))
			}
		}
		return strings.Join(out, " ")
	}
	check := func(step, want string) {
		t.Helper()
		if got := show(); got != want {
			t.Errorf("%s: head shows %q, want %q", step, got, want)
		}
	}
	batch := one("m", nil, at0(1, 1), at0(0, 5), at0(1, 2), series.Sample{Time: day + 1, Nanos: 7, Value: 3})
	mustAppend(t, w, batch)
	check("within a batch", "0+0=5 1+0=2 1+7=3")
	mustAppend(t, w, one("m", nil, at0(1, 9)))
	check("next batch", "0+0=5 1+0=9 1+7=3")
	mustAppend(t, w, one("m", nil, at0(1, 9)))
	check("sent again", "0+0=5 1+0=9 1+7=3")
	w.seal()
	mustAppend(t, w, one("m", nil, at0(0, 6)))
	check("across a seal", "0+0=6 1+0=9 1+7=3")
	mustFlush(t, w)
	check("after the flush", "")
	// The two heads made two files; ranked by order, the later has the word.
	if got, want := mergedTable(t, store), "0+0=6 1+0=9 1+7=3"; got != want {
		t.Errorf("table shows %q, want %q", got, want)
	}
	// The whole batch again, after its flush: a reader sees it overwrite.
	mustAppend(t, w, batch)
	mustFlush(t, w)
	if got, want := mergedTable(t, store), "0+0=5 1+0=2 1+7=3"; got != want {
		t.Errorf("table shows %q, want %q", got, want)
	}
}
