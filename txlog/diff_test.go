package txlog_test

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"cardinalsin/action"
	"cardinalsin/storage/mem"
	"cardinalsin/txlog"
)

// What came between any two versions of a random history, a long one and with
// large commits, is what their sets of files say; and so for those of a
// process that has loaded the table later.
func TestChangesBetweenVersions(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	store := mem.New(mem.Options{})
	l := create(t, store, txlog.Options{})
	history := []*txlog.Snapshot{latest(t, l)}
	var late *txlog.Log
	for v := 1; v < 150; v++ {
		tx := l.Begin(nil, txlog.Operation{Name: "TEST"})
		live := map[string]bool{}
		for a := range history[len(history)-1].Files() {
			live[a.Path] = true
			if rng.IntN(4) == 0 {
				tx.Remove(a.Tombstone(true))
			}
		}
		for range rng.IntN(4) { // few names: files go and come back
			if p := fmt.Sprintf("f%02d", rng.IntN(40)); !live[p] {
				live[p] = true
				tx.Add(add(p))
			}
		}
		if v == 120 || v == 140 { // more than a snapshot remembers
			for i := range 9_000 {
				if p := fmt.Sprintf("many-%04d", i); !live[p] {
					tx.Add(add(p))
				}
			}
		}
		s, err := tx.Commit(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		history = append(history, s)
		if v == 130 {
			late = open(t, store)
		}
	}
	set := func(s *txlog.Snapshot) map[action.Key]bool {
		out := map[action.Key]bool{}
		for a := range s.Files() {
			out[a.Key()] = true
		}
		return out
	}
	less := func(a, b action.Key) int { return cmp.Compare(a.Path, b.Path) }
	minus := func(a, b map[action.Key]bool) []action.Key {
		out := []action.Key{}
		for k := range a {
			if !b[k] {
				out = append(out, k)
			}
		}
		slices.SortFunc(out, less)
		return out
	}
	keys := func(files []*action.Add) []action.Key {
		out := []action.Key{}
		for _, a := range files {
			out = append(out, a.Key())
		}
		return out
	}
	check := func(from, to *txlog.Snapshot) {
		t.Helper()
		a, b := set(from), set(to)
		c := txlog.CompareFiles(from, to)
		if d := gocmp.Diff(minus(b, a), keys(c.Added)); d != "" {
			t.Fatalf("added from %d to %d (-want +got):\n%s", from.Version(), to.Version(), d)
		}
		if d := gocmp.Diff(minus(a, b), keys(c.Removed)); d != "" {
			t.Fatalf("removed from %d to %d (-want +got):\n%s", from.Version(), to.Version(), d)
		}
		if from.Version() > to.Version() {
			return
		}
		came := keys(slices.Collect(to.AddedSince(from)))
		slices.SortFunc(came, less)
		if d := gocmp.Diff(minus(b, a), came); d != "" {
			t.Fatalf("came from %d to %d (-want +got):\n%s", from.Version(), to.Version(), d)
		}
	}
	for range 60 {
		check(history[rng.IntN(len(history))], history[rng.IntN(len(history))])
	}
	for _, near := range []int{0, 1, 5, 9, 10, 29, 30, 64, 65} { // around what is remembered
		check(history[149-near], history[149])
	}
	check(history[125], latest(t, late))
	check(history[135], latest(t, late))
}

// A file that got another deletion vector is another file; its rows are fewer.
// Files without statistics are counted, and their rows are not guessed.
func TestRowsOfChanges(t *testing.T) {
	stats := func(n int) string { return fmt.Sprintf(`{"numRecords":%d}`, n) }
	dv := &action.DeletionVector{StorageType: "i", PathOrInlineDV: "wi5b=000010000siXQKl0rr91000f55c8Xg0@@D72lkbi5=-{L", SizeInBytes: 40, Cardinality: 6}
	for _, c := range []struct {
		name string
		file action.Add
		rows int64
		ok   bool
	}{
		{"statistics", action.Add{Stats: stats(10)}, 10, true},
		{"deletion vector", action.Add{Stats: stats(10), DeletionVector: dv}, 4, true},
		{"none", action.Add{}, 0, false},
		{"none, with a deletion vector", action.Add{DeletionVector: dv}, 0, false},
		{"damaged", action.Add{Stats: "{"}, 0, false},
		{"more deleted than there are", action.Add{Stats: stats(5), DeletionVector: dv}, 0, false},
	} {
		if rows, ok := txlog.Rows(&c.file); ok != c.ok || ok && rows != c.rows {
			t.Errorf("%s: %d, %v", c.name, rows, ok)
		}
	}
	got := txlog.TotalOf([]*action.Add{{Size: 1, Stats: stats(10)}, {Size: 2}, {Size: 4, Stats: stats(10), DeletionVector: dv}})
	if want := (txlog.FileTotals{Files: 3, Bytes: 7, Rows: 14, Unknown: 1}); got != want {
		t.Errorf("total %+v, want %+v", got, want)
	}
}
