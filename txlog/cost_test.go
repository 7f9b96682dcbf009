package txlog_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cardinalsin/storage"
	"cardinalsin/storage/mem"
	"cardinalsin/storage/meter"
	"cardinalsin/txlog"
)

// What each operation asks of the store is reviewed as a golden file: the
// order is the durability argument, the number is the bill. Run with
// UPDATE_GOLDEN=1 to write it anew.
func TestRequestCosts(t *testing.T) {
	inner := mem.New(mem.Options{})
	var mu sync.Mutex // guards out while calls run
	var out strings.Builder
	store := meter.New(inner, meter.Options{OnCall: func(e meter.Event) {
		if e.Op != storage.OpNow { // no request
			mu.Lock()
			defer mu.Unlock()
			fmt.Fprintf(&out, "  %s %s %s\n", e.Op, strings.TrimPrefix(e.Key, root+"/"), meter.Outcome(e.Err))
		}
	}})
	step := func(name string, fn func() error) {
		fmt.Fprintf(&out, "%s\n", name)
		if err := fn(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	var l *txlog.Log
	step("create", func() (err error) {
		l, err = txlog.Create(t.Context(), store, root, txlog.CreateOptions{Schema: schema()}, txlog.Options{})
		return err
	})
	step("commit", func() error { _, err := appendFile(t.Context(), l, nil, "a"); return err })
	step("refresh, nothing new", func() error { _, err := l.Snapshot(t.Context(), txlog.Latest()); return err })
	other := open(t, inner)
	if _, err := appendFile(t.Context(), other, nil, "b"); err != nil {
		t.Fatal(err)
	}
	step("refresh, one new version", func() error { _, err := l.Snapshot(t.Context(), txlog.Latest()); return err })
	if _, err := appendFile(t.Context(), other, nil, "c"); err != nil {
		t.Fatal(err)
	}
	step("commit, one conflict", func() error { _, err := appendFile(t.Context(), l, nil, "d"); return err })
	step("upkeep of two versions", func() error { return l.Upkeep(t.Context()) })
	step("checkpoint", func() error { _, err := l.Checkpoint(t.Context()); return err })
	step("cold open", func() error { _, err := txlog.Open(t.Context(), store, root, txlog.Options{}); return err })
	step("time travel to 0", func() error { _, err := l.Snapshot(t.Context(), txlog.AtVersion(0)); return err })
	costs := out.String()
	every4, err := txlog.Open(t.Context(), inner, root, txlog.Options{CompactEvery: 4})
	if err != nil {
		t.Fatal(err)
	}
	for v := 5; v < 8; v++ {
		if _, err := appendFile(t.Context(), every4, nil, fmt.Sprint(v)); err != nil {
			t.Fatal(err)
		}
	}
	if every4, err = txlog.Open(t.Context(), store, root, txlog.Options{CompactEvery: 4}); err != nil {
		t.Fatal(err)
	}
	if _, err := appendFile(t.Context(), every4, nil, "8"); err != nil {
		t.Fatal(err)
	}
	out.Reset()
	out.WriteString(costs)
	step("upkeep, a log compaction is due", func() error { return every4.Upkeep(t.Context()) })
	step("cold open after it", func() error { _, err := txlog.Open(t.Context(), store, root, txlog.Options{}); return err })

	golden := filepath.Join("testdata", "costs")
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(golden, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), out.String()); d != "" {
		t.Fatal(d)
	}
}

// TestRefreshFollowsTheChange: what a refresh allocates, and with it what it
// touches, follows the commit and not the table (F6). The time of it is
// measured by make bench-log.
func TestRefreshFollowsTheChange(t *testing.T) {
	ctx := t.Context()
	refreshed := func(files int) uint64 {
		store := mem.New(mem.Options{})
		theirs := ourTable(t, store, files)
		l := open(t, store)
		const rounds = 20
		var total uint64
		for i := range rounds {
			txn := theirs.Begin(nil, txlog.Operation{Name: "WRITE"})
			for k := range 10 {
				txn.Add(*ourFile(k, 10_000_000+10*i+k))
			}
			if _, err := txn.Commit(ctx); err != nil {
				t.Fatal(err)
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			s := latest(t, l)
			runtime.ReadMemStats(&after)
			if want := files + 10*(i+1); s.NumFiles() != want {
				t.Fatalf("%d files, want %d", s.NumFiles(), want)
			}
			total += after.TotalAlloc - before.TotalAlloc
		}
		return total / rounds
	}
	small, great := refreshed(1000), refreshed(100_000)
	t.Logf("a refresh after 10 adds allocates %d bytes at 1,000 files and %d at 100,000", small, great)
	if great > 2*small {
		t.Errorf("a refresh allocates %d bytes at 100,000 files, %d at 1,000: it must follow the commit", great, small)
	}
}
