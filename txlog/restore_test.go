package txlog_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"cardinalsin/action"
	"cardinalsin/storage"
	"cardinalsin/storage/fault"
	"cardinalsin/storage/mem"
	"cardinalsin/storage/meter"
	"cardinalsin/txlog"
)

func putFile(t testing.TB, store storage.Store, path string) {
	t.Helper()
	if _, err := store.Put(t.Context(), root+"/"+path, bytes.NewReader(make([]byte, 10))); err != nil {
		t.Fatal(err)
	}
}

// commit makes one version.
func commit(t testing.TB, l *txlog.Log, build func(*txlog.Transaction)) *txlog.Snapshot {
	t.Helper()
	tx := l.Begin(nil, txlog.Operation{Name: "TEST"})
	build(tx)
	s, err := tx.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A restore brings back a version's files as they were, statistics and tags
// included, and says that data changed; everything else of the table stays.
func TestRestore(t *testing.T) {
	store := mem.New(mem.Options{})
	l := create(t, store, txlog.Options{})
	for _, p := range []string{"a", "b", "c"} {
		putFile(t, store, p)
	}
	a := add("a")
	a.Stats, a.Tags, a.DataChange = `{"numRecords":7}`, action.ObjectOf(map[string]string{"x": "y"}), false
	old := commit(t, l, func(tx *txlog.Transaction) {
		tx.Add(a)
		tx.Add(add("b"))
		tx.SetTransaction("w", 1)
		tx.SetDomain("d", "old")
	})
	commit(t, l, func(tx *txlog.Transaction) {
		tx.Remove(a.Tombstone(true))
		tx.Add(add("c"))
		tx.SetTransaction("w", 2)
		tx.SetDomain("d", "new")
		tx.AddColumns(action.Field{Name: "pod", Type: action.PrimitiveType("string"), Nullable: true})
	})
	plan, err := l.PlanRestore(t.Context(), old.Version())
	if err != nil {
		t.Fatal(err)
	}
	if plan.Base != 2 || len(plan.Changes.Added) != 1 || plan.Changes.Added[0].Path != "a" || len(plan.Changes.Removed) != 1 || plan.Changes.Removed[0].Path != "c" {
		t.Errorf("plan %+v", plan.Changes)
	}
	if got := latest(t, l).Version(); got != 2 {
		t.Errorf("the plan committed version %d", got)
	}
	if _, err := plan.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	s := latest(t, open(t, store))
	if d := gocmp.Diff(paths(old), paths(s)); d != "" {
		t.Errorf("files (-want +got):\n%s", d)
	}
	was, _ := old.File(action.Key{Path: "a"})
	is, _ := s.File(action.Key{Path: "a"})
	want := *was
	want.DataChange = is.DataChange // a snapshot need not keep it
	if d := gocmp.Diff(&want, is); d != "" {
		t.Errorf("file (-want +got):\n%s", d)
	}
	if txn, _ := s.Transaction("w"); txn.Version != 2 {
		t.Errorf("the writer's number went back to %d: it would send its records again", txn.Version)
	}
	if d, _ := s.Domain("d"); d != "new" {
		t.Errorf("domain %q", d)
	}
	if s.Schema().Field("pod") == nil {
		t.Error("the column is gone under live writers")
	}
	c, err := l.Commit(t.Context(), s.Version())
	if err != nil {
		t.Fatal(err)
	}
	if c.Metadata != nil || c.Info.Operation != "RESTORE" || !c.Adds[0].DataChange || !c.Removes[0].DataChange {
		t.Errorf("entry %+v", c)
	}
}

func TestRestoreRefuses(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(*txlog.Log, storage.Store)
		want  error
	}{
		{"a version ahead", func(*txlog.Log, storage.Store) {}, txlog.ErrVersionNotFound},
		{"a missing file", func(_ *txlog.Log, s storage.Store) {
			if err := s.Delete(t.Context(), root+"/a"); err != nil {
				t.Fatal(err)
			}
		}, action.ErrCorrupt},
		{"a short file", func(_ *txlog.Log, s storage.Store) {
			if _, err := s.Put(t.Context(), root+"/a", strings.NewReader("short")); err != nil {
				t.Fatal(err)
			}
		}, action.ErrCorrupt},
		{"a vacuumed version", func(l *txlog.Log, _ storage.Store) {
			commit(t, l, func(tx *txlog.Transaction) { tx.SetDomain(txlog.WatermarkDomain, txlog.EncodeWatermark(2)) })
		}, txlog.ErrVersionVacuumed},
		{"another shard map", func(l *txlog.Log, _ storage.Store) {
			commit(t, l, func(tx *txlog.Transaction) { tx.SetDomain("cardinal.shards", "x") })
		}, txlog.ErrNotRestorable},
	} {
		t.Run(c.name, func(t *testing.T) {
			store := mem.New(mem.Options{})
			l := create(t, store, txlog.Options{})
			putFile(t, store, "a")
			commit(t, l, func(tx *txlog.Transaction) { tx.Add(add("a")) })
			a := add("a")
			commit(t, l, func(tx *txlog.Transaction) { tx.Remove(a.Tombstone(true)) })
			c.spoil(l, store)
			v := action.Version(1)
			if errors.Is(c.want, txlog.ErrVersionNotFound) {
				v = 9
			}
			if _, err := l.PlanRestore(t.Context(), v); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

// A vacuum that passes the version while files are looked for is why one is
// missing; that is no corruption.
func TestRestoreOvertakenByVacuum(t *testing.T) {
	inner := mem.New(mem.Options{})
	other := create(t, inner, txlog.Options{})
	putFile(t, inner, "a")
	a := add("a")
	commit(t, other, func(tx *txlog.Transaction) { tx.Add(a) })
	commit(t, other, func(tx *txlog.Transaction) { tx.Remove(a.Tombstone(true)) })
	f := fault.New(inner)
	l := open(t, f)
	f.Inject(fault.Fault{Op: storage.OpGetRange, Mode: fault.Pass, OnCall: func(context.Context, fault.Call) {
		commit(t, other, func(tx *txlog.Transaction) { tx.SetDomain(txlog.WatermarkDomain, txlog.EncodeWatermark(2)) })
		if err := inner.Delete(context.Background(), root+"/a"); err != nil {
			t.Error(err)
		}
	}})
	if _, err := l.PlanRestore(t.Context(), 1); !errors.Is(err, txlog.ErrVersionVacuumed) {
		t.Errorf("got %v", err)
	}
}

// One version holds a restore of more files than any other commit may have,
// and each file that comes back costs one small request, no other any.
func TestLargeRestore(t *testing.T) {
	store := mem.New(mem.Options{})
	l := create(t, store, txlog.Options{})
	const perCommit, commits = 6_000, 2
	path := func(i int) string { return fmt.Sprintf("f%06d", i) }
	for n := range commits {
		commit(t, l, func(tx *txlog.Transaction) {
			for i := range perCommit {
				putFile(t, store, path(n*perCommit+i))
				tx.Add(add(path(n*perCommit + i)))
			}
		})
	}
	full := latest(t, l)
	for n := range commits {
		commit(t, l, func(tx *txlog.Transaction) {
			for i := range perCommit {
				if n+i > 0 { // one stays
					a := add(path(n*perCommit + i))
					tx.Remove(a.Tombstone(true))
				}
			}
		})
	}
	calls := meter.New(store, meter.Options{})
	metered := open(t, calls)
	before := calls.Snapshot()
	plan, err := metered.PlanRestore(t.Context(), full.Version())
	if err != nil {
		t.Fatal(err)
	}
	s, err := plan.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s.NumFiles() != commits*perCommit || s.Bytes() != full.Bytes() {
		t.Errorf("%d files of %d bytes", s.NumFiles(), s.Bytes())
	}
	looks := calls.Snapshot().Since(before)[storage.OpGetRange].Calls
	if looks != commits*perCommit-1 {
		t.Errorf("%d lookups for %d files that come back", looks, commits*perCommit-1)
	}
	again := latest(t, open(t, store))
	if again.NumFiles() != s.NumFiles() {
		t.Errorf("opened anew: %d files", again.NumFiles())
	}
}

// Whatever call of a restore fails, and however: the table is at the old or at
// the new state, and a restore that says it is done is.
func TestRestoreFaultSweep(t *testing.T) {
	for _, mode := range fault.Modes {
		for i := 0; ; i++ {
			inner := mem.New(mem.Options{})
			setup := create(t, inner, txlog.Options{})
			putFile(t, inner, "a")
			putFile(t, inner, "b")
			a := add("a")
			commit(t, setup, func(tx *txlog.Transaction) { tx.Add(a) })
			commit(t, setup, func(tx *txlog.Transaction) { tx.Remove(a.Tombstone(true)); tx.Add(add("b")) })
			f := fault.New(inner)
			l := open(t, f)
			f.Inject(fault.Fault{Skip: i, Mode: mode})
			plan, err := l.PlanRestore(t.Context(), 1)
			if err == nil {
				_, err = plan.Commit(t.Context())
			}
			fired := f.Fired()
			f.Land(t.Context())
			got := strings.Join(paths(latest(t, open(t, inner))), " ")
			if got != "a" && (got != "b" || err == nil) {
				t.Errorf("mode %v call %d: files %q after %v", mode, i, got, err)
			}
			if fired == 0 {
				break
			}
		}
	}
}
