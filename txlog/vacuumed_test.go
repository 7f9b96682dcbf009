package txlog_test

import (
	"errors"
	"testing"

	"cardinalsin/action"
	"cardinalsin/storage/mem"
	"cardinalsin/txlog"
)

// Tombstones that a vacuum has dealt with are forgotten, by the process that
// saw the removal and by one that opens the table later; others stay.
func TestSettledTombstonesAreForgotten(t *testing.T) {
	store := mem.New(mem.Options{})
	l := create(t, store, txlog.Options{})
	s := latest(t, l)
	commit := func(build func(*txlog.Transaction)) {
		t.Helper()
		tx := l.Begin(s, txlog.Operation{Name: "TEST"})
		build(tx)
		var err error
		if s, err = tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	remove := func(path string) {
		a := add(path)
		commit(func(tx *txlog.Transaction) { tx.Add(a) })
		commit(func(tx *txlog.Transaction) { tx.Remove(a.Tombstone(true)) })
	}
	remove("a")
	settled := s
	remove("b")
	commit(func(tx *txlog.Transaction) {
		tx.SetDomain(txlog.VacuumDomain, txlog.EncodeVacuumed(settled.Version(), settled.Time().UnixMilli()))
	})
	for name, got := range map[string]*txlog.Snapshot{"committer": s, "opened later": latest(t, open(t, store))} {
		var paths []string
		for r := range got.Tombstones() {
			paths = append(paths, r.Path)
		}
		if len(paths) != 1 || paths[0] != "b" {
			t.Errorf("%s: tombstones of %v", name, paths)
		}
		through, at, err := got.Vacuumed()
		if err != nil || through != settled.Version() || at != settled.Time().UnixMilli() {
			t.Errorf("%s: vacuumed through %d at %d, %v", name, through, at, err)
		}
	}
	if settled.NumTombstones() != 1 {
		t.Error("an older snapshot has changed")
	}
	var v action.Version = 99
	commit(func(tx *txlog.Transaction) { tx.SetDomain(txlog.VacuumDomain, txlog.EncodeVacuumed(v, 1)) })
	if _, _, err := s.Vacuumed(); !errors.Is(err, action.ErrCorrupt) {
		t.Error("a vacuum that went beyond the table is believed")
	}
}
