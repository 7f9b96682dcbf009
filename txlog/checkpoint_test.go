package txlog_test

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cardinalsin/action"
	"cardinalsin/storage"
	"cardinalsin/storage/mem"
	"cardinalsin/txlog"
)

// grown is a table of 20 versions with a remove in every third, and
// checkpoints at the given versions.
func grown(t *testing.T, checkpoints ...action.Version) (*mem.Store, *txlog.Log) {
	t.Helper()
	store := mem.New(mem.Options{})
	l := create(t, store, txlog.Options{})
	for i := 1; i <= 20; i++ {
		tx := l.Begin(latest(t, l), txlog.Operation{Name: "WRITE"})
		tx.Add(add(fmt.Sprintf("f%02d", i)))
		if i%3 == 0 {
			a, ok := latest(t, l).File(action.Key{Path: fmt.Sprintf("f%02d", i-1)})
			if !ok {
				t.Fatal("nothing to remove")
			}
			tx.Remove(a.Tombstone(true))
		}
		tx.SetTransaction("w", int64(i))
		tx.SetDomain("d", fmt.Sprint(i))
		s, err := tx.Commit(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range checkpoints {
			if v == s.Version() {
				if _, err := l.Checkpoint(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	return store, l
}

// state is all that a snapshot says, in a form that compares.
type state struct {
	Version action.Version
	Time    int64
	Bytes   int64
	Files   []action.Add
	Tombs   []action.Remove
	Txns    []action.SetTransaction
	Domains map[string]string
	Schema  string
}

func stateOf(s *txlog.Snapshot) state {
	st := state{Version: s.Version(), Time: s.Time().UnixMilli(), Bytes: s.Bytes(), Domains: map[string]string{}, Schema: s.Metadata().SchemaString}
	for a := range s.Files() {
		st.Files = append(st.Files, *a)
	}
	for r := range s.Tombstones() {
		// A checkpoint keeps of a tombstone what retention needs.
		st.Tombs = append(st.Tombs, action.Remove{Path: r.Path, DeletionTimestamp: r.DeletionTimestamp})
	}
	for x := range s.Transactions() {
		st.Txns = append(st.Txns, x)
	}
	for d, c := range s.Domains() {
		st.Domains[d] = c
	}
	return st
}

func without(t *testing.T, store storage.Store, keys ...string) storage.Store {
	t.Helper()
	for _, k := range keys {
		if err := store.Delete(t.Context(), k); err != nil {
			t.Fatal(err)
		}
	}
	return store
}

func checkpointKey(v action.Version) string {
	return root + "/_delta_log/" + v.String() + ".checkpoint.parquet"
}

const hintKey = root + "/_delta_log/_last_checkpoint"

// A checkpoint and the commits after it give the state that all commits give,
// whichever objects the log has lost.
func TestCheckpointEqualsReplay(t *testing.T) {
	_, plain := grown(t)
	want := stateOf(latest(t, plain))
	for name, prepare := range map[string]func(*testing.T, storage.Store){
		"hint":       func(*testing.T, storage.Store) {},
		"no hint":    func(t *testing.T, s storage.Store) { without(t, s, hintKey) },
		"empty hint": func(t *testing.T, s storage.Store) { put(t, s, hintKey, nil) },
		"wild hint":  func(t *testing.T, s storage.Store) { put(t, s, hintKey, []byte(`{"version":900,"size":1}`)) },
		"stale hint": func(t *testing.T, s storage.Store) { put(t, s, hintKey, []byte(`{"version":7,"size":1}`)) },
		"no commits before": func(t *testing.T, s storage.Store) {
			for v := action.Version(0); v < 16; v++ {
				without(t, s, root+"/_delta_log/"+v.String()+".json")
			}
		},
		"newest damaged": func(t *testing.T, s storage.Store) { damage(t, s, checkpointKey(16)) },
		"newest empty":   func(t *testing.T, s storage.Store) { put(t, s, checkpointKey(16), nil) },
		"all damaged": func(t *testing.T, s storage.Store) {
			damage(t, s, checkpointKey(16))
			damage(t, s, checkpointKey(7))
		},
	} {
		t.Run(name, func(t *testing.T) {
			store, _ := grown(t, 7, 16)
			prepare(t, store)
			got := stateOf(latest(t, open(t, store)))
			if d := cmp.Diff(strip(want), strip(got)); d != "" {
				t.Fatal(d)
			}
		})
	}
}

// strip takes out of a state what differs between two tables made one after
// the other, and dataChange, which a checkpoint does not keep.
func strip(s state) state {
	s.Time = 0
	for i := range s.Files {
		s.Files[i].ModificationTime = 0
		s.Files[i].DataChange = false
	}
	for i := range s.Tombs {
		s.Tombs[i].DeletionTimestamp = 0
	}
	for i := range s.Txns {
		s.Txns[i].LastUpdated = 0
	}
	return s
}

func put(t *testing.T, s storage.Store, key string, data []byte) {
	t.Helper()
	if _, err := s.Put(t.Context(), key, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
}

// damage cuts an object in half. (That a flipped byte which changes an action
// is found is checkpoint's own test.)
func damage(t *testing.T, s storage.Store, key string) {
	t.Helper()
	data, _, err := s.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, key, data[:len(data)/2])
}

// Where the only checkpoint is damaged and the commits before it are gone,
// the table is corrupt, and the error names the object.
func TestNoWayBackIsCorruption(t *testing.T) {
	store, _ := grown(t, 16)
	damage(t, store, checkpointKey(16))
	without(t, store, root+"/_delta_log/"+action.Version(3).String()+".json")
	_, err := txlog.Open(t.Context(), store, root, txlog.Options{})
	if !errors.Is(err, action.ErrCorrupt) {
		t.Fatalf("got %v", err)
	}
}

// A version whose commits were cleaned up is vacuumed, not unknown, and the
// error names the oldest that is left.
func TestVersionsBeforeTheOldest(t *testing.T) {
	store, _ := grown(t, 7, 16)
	for v := action.Version(0); v < 7; v++ {
		without(t, store, root+"/_delta_log/"+v.String()+".json")
	}
	l := open(t, store)
	_, err := l.Snapshot(t.Context(), txlog.AtVersion(3))
	var gone *txlog.VacuumedError
	if !errors.Is(err, txlog.ErrVersionVacuumed) || !errors.As(err, &gone) || gone.Oldest != 7 {
		t.Fatalf("got %v", err)
	}
	for v := action.Version(7); v <= 20; v++ {
		s, err := l.Snapshot(t.Context(), txlog.AtVersion(v))
		if err != nil {
			t.Fatalf("version %d: %v", v, err)
		}
		if s.Version() != v {
			t.Fatalf("asked for %d, got %d", v, s.Version())
		}
		if d, _ := s.Domain("d"); d != fmt.Sprint(int64(v)) {
			t.Errorf("version %d holds domain %s", v, d)
		}
	}
	if _, err := l.Commit(t.Context(), 3); !errors.Is(err, txlog.ErrVersionVacuumed) {
		t.Errorf("its commit: %v", err)
	}
}

// A table whose first versions were cleaned up is not created a second time.
func TestCreateOverACleanedLog(t *testing.T) {
	store, l := grown(t, 16)
	for v := action.Version(0); v < 16; v++ {
		without(t, store, l.CommitKey(v))
	}
	_, err := txlog.Create(t.Context(), store, root, txlog.CreateOptions{Schema: schema()}, txlog.Options{})
	if !errors.Is(err, txlog.ErrTableExists) {
		t.Fatalf("got %v", err)
	}
	if _, _, err := store.Get(t.Context(), l.CommitKey(0)); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("version 0 was written: %v", err)
	}
}

// Upkeep writes a checksum for each version of ours and a checkpoint where
// one is due; both agree with the snapshot.
func TestUpkeep(t *testing.T) {
	store := mem.New(mem.Options{})
	l := create(t, store, txlog.Options{CheckpointEvery: 4})
	for i := range 9 {
		if _, err := appendFile(t.Context(), l, nil, fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Upkeep(t.Context()); err != nil {
		t.Fatal(err)
	}
	for v := action.Version(0); v <= 9; v++ {
		s, err := l.Snapshot(t.Context(), txlog.AtVersion(v))
		if err != nil {
			t.Fatal(err)
		}
		sum, ok, err := l.ReadChecksum(t.Context(), v)
		if err != nil || !ok {
			t.Fatalf("checksum %d: %v, %v", v, ok, err)
		}
		if sum.NumFiles != int64(s.NumFiles()) || sum.TableSizeBytes != s.Bytes() || *sum.InCommitTimestamp != s.Time().UnixMilli() {
			t.Errorf("checksum %d: %+v", v, sum)
		}
		_, _, err = store.Get(t.Context(), checkpointKey(v))
		if has, want := err == nil, v > 0 && v%4 == 0; has != want {
			t.Errorf("checkpoint at %d: %v", v, err)
		}
	}
}
