package txlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"cardinalsin/action"
	"cardinalsin/storage"
	"cardinalsin/storage/local"
	"cardinalsin/storage/mem"
	"cardinalsin/storage/meter"
)

const compactRoot = "t/compacted"

// tester is what testing.T and rapid.T have in common.
type tester interface{ Fatal(args ...any) }

func putCommit(t tester, store storage.Store, v action.Version, c *action.Commit) {
	data, err := c.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.PutIfAbsent(context.Background(), compactRoot+"/_delta_log/"+v.String()+".json", data); err != nil {
		t.Fatal(err)
	}
}

func testLog(store storage.Store) *Log {
	opts := Options{}
	opts.EnsureDefaults()
	return newLog(store, compactRoot, opts)
}

func firstCommit() *action.Commit {
	ict := int64(1000)
	p := OwnProtocol()
	return &action.Commit{
		Info:     &action.CommitInfo{TxnID: "0", InCommitTimestamp: &ict},
		Protocol: &p,
		Metadata: &action.Metadata{ID: "t", Format: action.Format{Provider: "parquet"}, SchemaString: `{"type":"struct","fields":[]}`},
	}
}

// different names the first thing that is not alike in two snapshots, the
// tombstones with all that is known of them included.
func different(a, b *Snapshot) string {
	if d := a.FirstDifference(b); d != "" {
		return d
	}
	if a.Time() != b.Time() || a.txnID != b.txnID || a.Bytes() != b.Bytes() || a.NumFiles() != b.NumFiles() {
		return fmt.Sprintf("time, transaction, bytes or files: %v %q %d %d, %v %q %d %d", a.Time(), a.txnID, a.Bytes(), a.NumFiles(), b.Time(), b.txnID, b.Bytes(), b.NumFiles())
	}
	return cmp.Diff(slices.Collect(a.Tombstones()), slices.Collect(b.Tombstones()))
}

// drawHistory commits versions as an engine may: files come, go and come
// back, with deletion vectors and without; domains are set and removed; vacuum
// settles tombstones.
func drawHistory(t *rapid.T, store storage.Store) (last action.Version) {
	putCommit(t, store, 0, firstCommit())
	live := map[action.Key]action.Add{}
	last = action.Version(rapid.IntRange(2, 24).Draw(t, "versions"))
	ict := int64(1000)
	times := []int64{ict}
	settled := action.Version(-1)
	for v := action.Version(1); v <= last; v++ {
		ict += rapid.Int64Range(1, 5).Draw(t, "ms")
		now := ict
		times = append(times, now)
		c := &action.Commit{Info: &action.CommitInfo{TxnID: fmt.Sprint(v), InCommitTimestamp: &now}}
		used := map[string]bool{}
		for range rapid.IntRange(0, 4).Draw(t, "actions") {
			path := rapid.SampledFrom([]string{"a", "b", "c", "/d", "file:/d", "file:///d"}).Draw(t, "path")
			canonical, _ := canonicalPath(path)
			if used[canonical] {
				continue
			}
			used[canonical] = true
			var dv *action.DeletionVector
			if rapid.Bool().Draw(t, "vector") {
				dv = &action.DeletionVector{StorageType: "u", PathOrInlineDV: fmt.Sprint(v), SizeInBytes: 1, Cardinality: 1}
			}
			for k, old := range live { // a file has one vector at a time
				if k.Path == canonical {
					r := old.Tombstone(true)
					r.Path = path
					r.DeletionTimestamp = now
					c.Removes = append(c.Removes, r)
					delete(live, k)
				}
			}
			if rapid.IntRange(0, 2).Draw(t, "add") > 0 {
				a := action.Add{
					Path: path, PartitionValues: action.Object(fmt.Sprintf(`{"p":"%d"}`, v%3)), Size: int64(v), ModificationTime: now,
					DataChange: rapid.Bool().Draw(t, "dataChange"), Stats: fmt.Sprintf(`{"numRecords":%d}`, v), DeletionVector: dv,
				}
				c.Adds = append(c.Adds, a)
				live[action.Key{Path: canonical, DV: dv.UniqueID()}] = a
			}
		}
		if rapid.IntRange(0, 3).Draw(t, "txn") == 0 {
			c.Txns = append(c.Txns, action.SetTransaction{AppID: rapid.SampledFrom([]string{"x", "y"}).Draw(t, "app"), Version: int64(v)})
		}
		if rapid.IntRange(0, 3).Draw(t, "domain") == 0 {
			c.Domains = append(c.Domains, action.DomainMetadata{Domain: "d", Configuration: fmt.Sprint(v), Removed: rapid.Bool().Draw(t, "removed")})
		}
		if rapid.IntRange(0, 5).Draw(t, "vacuum") == 0 && settled+1 < v {
			settled = action.Version(rapid.Int64Range(int64(settled)+1, int64(v)-1).Draw(t, "settled"))
			c.Domains = append(c.Domains, action.DomainMetadata{Domain: VacuumDomain, Configuration: EncodeVacuumed(settled, times[settled])})
		}
		if rapid.IntRange(0, 6).Draw(t, "metadata") == 0 {
			m := *firstCommit().Metadata
			m.Name = fmt.Sprint(v)
			c.Metadata = &m
		}
		putCommit(t, store, v, c)
	}
	return last
}

// A log gives the same with compactions of any ranges as without: live files,
// tombstones, domains, all of it, at each version.
func TestCompactionsChangeNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ctx := context.Background()
		inner := mem.New(mem.Options{})
		var used atomic.Int64
		store := meter.New(inner, meter.Options{OnCall: func(e meter.Event) {
			if e.Op == storage.OpGet && strings.HasSuffix(e.Key, compactedSuffix) {
				used.Add(1)
			}
		}})
		last := drawHistory(t, inner)
		l := testLog(store)
		want := map[action.Version]*Snapshot{}
		if err := l.Walk(ctx, nil, last, func(s *Snapshot) error { want[s.version] = s; return nil }); err != nil {
			t.Fatal(err)
		}
		ranges := []Compaction{{0, last}} // at least one that is of use
		for range rapid.IntRange(0, 4).Draw(t, "ranges") {
			first := action.Version(rapid.Int64Range(0, int64(last)-1).Draw(t, "first"))
			ranges = append(ranges, Compaction{first, action.Version(rapid.Int64Range(int64(first)+1, int64(last)).Draw(t, "last"))})
		}
		for _, r := range ranges {
			if err := l.writeCompaction(ctx, r); err != nil {
				t.Fatal(err)
			}
			var base *Snapshot
			if r.First > 0 {
				base = want[r.First-1]
			}
			got, err := l.ReplayCompaction(ctx, base, r)
			if err != nil {
				t.Fatal(err)
			}
			if d := want[r.Last].FirstDifference(got); d != "" {
				t.Fatalf("%v: %s", r, d)
			}
		}
		for v := action.Version(0); v <= last; v++ {
			used.Store(0)
			got, err := l.load(ctx, v)
			if err != nil {
				t.Fatal(err)
			}
			if d := different(want[v], got); d != "" {
				t.Fatalf("version %d: %s", v, d)
			}
			if v == last && used.Load() == 0 {
				t.Fatal("no compaction was used")
			}
		}
	})
}

// The compactions of a table of kernel-rs hold the actions of all their
// commits, newest first: such ones are not used. Ours of the same commits are,
// and give the same.
func TestCompactionsNotReconciled(t *testing.T) {
	const table = "kernel-data/compacted-log-files-table"
	dir := filepath.Join("..", "..", "shared", "golden")
	if _, err := os.Stat(filepath.Join(dir, table)); err != nil {
		t.Skipf("golden tables are not here: %v", err)
	}
	golden, err := local.New(dir, local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	plain := mem.New(mem.Options{})
	var compactions []Compaction
	var last action.Version
	for o, err := range golden.List(t.Context(), table+"/_delta_log/", "") {
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Base(o.Key)
		if c, ok := parseCompaction(name); ok {
			compactions = append(compactions, c)
			continue
		}
		if v, ok := action.ParseVersion(strings.TrimSuffix(name, ".json")); ok {
			last = max(last, v)
		}
		data, _, err := golden.Get(t.Context(), o.Key)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := plain.PutIfAbsent(t.Context(), o.Key, data); err != nil {
			t.Fatal(err)
		}
	}
	if len(compactions) < 3 {
		t.Fatalf("%d compactions", len(compactions))
	}
	opts := Options{}
	opts.EnsureDefaults()
	with, without := newLog(golden, table, opts), newLog(plain, table, opts)
	snapshots := map[action.Version]*Snapshot{}
	for v := action.Version(0); v <= last; v++ {
		want, err := without.load(t.Context(), v)
		if err != nil {
			t.Fatal(err)
		}
		got, err := with.load(t.Context(), v)
		if err != nil {
			t.Fatal(err)
		}
		if d := want.FirstDifference(got); d != "" {
			t.Errorf("version %d: %s", v, d)
		}
		tombstone := func(r *action.Remove) string { return fmt.Sprint(r.Key(), r.DeletionTimestamp) }
		var a, b []string
		for r := range want.Tombstones() {
			a = append(a, tombstone(r))
		}
		for r := range got.Tombstones() {
			b = append(b, tombstone(r))
		}
		if d := cmp.Diff(a, b); d != "" {
			t.Errorf("version %d: %s", v, d)
		}
		snapshots[v] = want
	}
	for _, r := range compactions {
		if _, err := with.ReplayCompaction(t.Context(), snapshots[r.First-1], r); !errors.Is(err, action.ErrCorrupt) {
			t.Errorf("%v: got %v", r, err)
		}
		if err := without.writeCompaction(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		ours, err := without.ReplayCompaction(t.Context(), snapshots[r.First-1], r)
		if err != nil {
			t.Fatal(err)
		}
		if d := snapshots[r.Last].FirstDifference(ours); d != "" {
			t.Errorf("%v: %s", r, d)
		}
	}
}

// threes is a table of 13 versions, 0 to 12, one file each, with compactions
// of four versions.
func threes(t *testing.T) (*mem.Store, *Log) {
	t.Helper()
	store := mem.New(mem.Options{})
	l := testLog(store)
	l.opts.CompactEvery = 4
	putCommit(t, store, 0, firstCommit())
	for v := action.Version(1); v <= 12; v++ {
		ict := 1000 + int64(v)
		putCommit(t, store, v, &action.Commit{
			Info: &action.CommitInfo{TxnID: fmt.Sprint(v), InCommitTimestamp: &ict},
			Adds: []action.Add{{Path: fmt.Sprintf("f%02d", v), Size: 1}},
		})
	}
	for v := action.Version(4); v <= 12; v += 4 {
		s, err := l.load(t.Context(), v)
		if err != nil {
			t.Fatal(err)
		}
		l.addUpkeep(s)
	}
	if err := l.Upkeep(t.Context()); err != nil {
		t.Fatal(err)
	}
	return store, l
}

// Whatever of the log is lost, the rest serves; what cannot be rebuilt is an
// error that names the commit.
func TestCompactionsAndGaps(t *testing.T) {
	commit := func(v action.Version) string { return compactRoot + "/_delta_log/" + v.String() + ".json" }
	compaction := func(a, b action.Version) string {
		return compactRoot + "/_delta_log/" + a.String() + "." + b.String() + ".compacted.json"
	}
	for _, c := range []struct {
		name    string
		at      action.Version
		damage  map[string]string // key → text; "-" deletes
		missing action.Version    // expected in the error; 0 for none
		gets    string            // objects read, in order of their keys
	}{
		{"sound", 12, nil, 0, "0 1-4 12 5-8 9-12"},
		{"in between", 10, nil, 0, "0 1-4 10 5-8 9"},
		{"a compaction ends past the target", 7, nil, 0, "0 1-4 5 6 7"},
		{"damaged", 12, map[string]string{compaction(5, 8): "x"}, 0, "0 1-4 12 5 5-8 6 7 8 9-12"},
		{"damaged and commits gone", 12, map[string]string{compaction(5, 8): "x", commit(6): "-"}, 6, ""},
		{"commits gone", 12, map[string]string{commit(5): "-", commit(6): "-", commit(8): "-"}, 0, "0 1-4 12 5-8 9-12"},
		{"all gone", 12, map[string]string{compaction(5, 8): "-", commit(7): "-"}, 7, ""},
		{"overlapping, the longer is taken", 12, map[string]string{compaction(5, 7): `{"txn":{"appId":"short","version":1}}`}, 0, "0 1-4 12 5-8 9-12"},
		{"a bad name", 12, map[string]string{compaction(8, 5): "x", compaction(5, 5): "x", compaction(5, 99): "x"}, 0, "0 1-4 12 5-8 9-12"},
		{"the target's commit is gone", 12, map[string]string{commit(12): "-"}, 0, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			store, plain := threes(t)
			want, err := plain.Rebuild(t.Context(), nil, c.at)
			if err != nil {
				t.Fatal(err)
			}
			for key, text := range c.damage {
				if text == "-" {
					err = store.Delete(t.Context(), key)
				} else {
					_, err = store.Put(t.Context(), key, bytes.NewReader([]byte(text)))
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			var mu sync.Mutex // guards read
			read := map[string]bool{}
			l := testLog(meter.New(store, meter.Options{OnCall: func(e meter.Event) {
				if e.Op == storage.OpGet && e.Err == nil {
					name := strings.TrimSuffix(filepath.Base(e.Key), ".json")
					if r, ok := parseCompaction(filepath.Base(e.Key)); ok {
						name = fmt.Sprintf("%d-%d", r.First, r.Last)
					} else if v, ok := action.ParseVersion(name); ok {
						name = fmt.Sprint(int64(v))
					}
					mu.Lock()
					read[name] = true
					mu.Unlock()
				}
			}}))
			got, err := l.load(t.Context(), c.at)
			if c.missing > 0 {
				if !errors.Is(err, action.ErrCorrupt) || !strings.Contains(err.Error(), commit(c.missing)) {
					t.Fatalf("got %v, want one that names %s", err, commit(c.missing))
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if d := different(want, got); d != "" {
				t.Error(d)
			}
			var names []string
			for n := range read {
				names = append(names, n)
			}
			slices.Sort(names)
			if have := strings.Join(names, " "); c.gets != "" && have != c.gets {
				t.Errorf("read %q, want %q", have, c.gets)
			}
		})
	}
}

// Two that compact the same range leave one object, and neither fails.
func TestCompactionRace(t *testing.T) {
	store, l := threes(t)
	key := l.CompactionKey(Compaction{1, 4})
	want, _, err := store.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Delete(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	errs := make(chan error)
	for range 8 {
		go func() { errs <- testLog(store).writeCompaction(context.Background(), Compaction{1, 4}) }()
	}
	for range 8 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	got, _, err := store.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Error(d)
	}
}
