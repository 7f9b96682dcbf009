package txlog_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cardinalsin/action"
	"cardinalsin/storage"
	"cardinalsin/storage/fault"
	"cardinalsin/storage/mem"
	"cardinalsin/txlog"
)

const root = "t/metrics"

func schema() *action.Schema {
	return &action.Schema{Fields: []action.Field{
		{Name: "timestamp", Type: action.PrimitiveType("timestamp")},
		{Name: "value", Type: action.PrimitiveType("double"), Nullable: true},
		{Name: "date", Type: action.PrimitiveType("date"), Nullable: true},
	}}
}

func create(t testing.TB, store storage.Store, opts txlog.Options) *txlog.Log {
	t.Helper()
	l, err := txlog.Create(t.Context(), store, root, txlog.CreateOptions{Schema: schema(), PartitionColumns: []string{"date"}}, opts)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func open(t testing.TB, store storage.Store) *txlog.Log {
	t.Helper()
	l, err := txlog.Open(context.Background(), store, root, txlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func add(path string) action.Add {
	return action.Add{Path: path, PartitionValues: action.ObjectOf(map[string]string{"date": "2026-11-22"}), Size: 10, DataChange: true}
}

func latest(t testing.TB, l *txlog.Log) *txlog.Snapshot {
	t.Helper()
	s, err := l.Snapshot(context.Background(), txlog.Latest())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func paths(s *txlog.Snapshot) []string {
	out := []string{}
	for a := range s.Files() {
		out = append(out, a.Path)
	}
	return out
}

func appendFile(ctx context.Context, l *txlog.Log, base *txlog.Snapshot, path string) (*txlog.Snapshot, error) {
	tx := l.Begin(base, txlog.Operation{Name: "WRITE", BlindAppend: true})
	tx.Add(add(path))
	return tx.Commit(ctx)
}

func TestOpenRefusesWhatIsNoTable(t *testing.T) {
	_, err := txlog.Open(t.Context(), mem.New(mem.Options{}), root, txlog.Options{})
	if !errors.Is(err, txlog.ErrNotTable) {
		t.Fatalf("got %v", err)
	}
}

func TestCreateTwice(t *testing.T) {
	store := mem.New(mem.Options{})
	create(t, store, txlog.Options{})
	_, err := txlog.Create(t.Context(), store, root, txlog.CreateOptions{Schema: schema()}, txlog.Options{})
	if !errors.Is(err, txlog.ErrTableExists) {
		t.Fatalf("got %v", err)
	}
}

func TestProtocolKeepsOtherWritersOut(t *testing.T) {
	s := latest(t, create(t, mem.New(mem.Options{}), txlog.Options{}))
	want := &action.Protocol{MinReaderVersion: 1, MinWriterVersion: 7, WriterFeatures: []string{"cardinal-exclusive", "domainMetadata", "inCommitTimestamp", "invariants"}}
	if d := cmp.Diff(want, s.Protocol()); d != "" {
		t.Fatal(d)
	}
}

// A table that another engine made is readable and refuses our commits; one
// with a feature that we do not know refuses to open, by the feature's name.
func TestForeignTables(t *testing.T) {
	commit := func(p action.Protocol) storage.Store {
		text, err := schema().Encode()
		if err != nil {
			t.Fatal(err)
		}
		c := action.Commit{Protocol: &p, Metadata: &action.Metadata{ID: "x", Format: action.Format{Provider: "parquet"}, SchemaString: text}}
		data, err := c.Encode()
		if err != nil {
			t.Fatal(err)
		}
		store := mem.New(mem.Options{})
		if _, err := store.PutIfAbsent(t.Context(), root+"/_delta_log/00000000000000000000.json", data); err != nil {
			t.Fatal(err)
		}
		return store
	}
	for name, p := range map[string]action.Protocol{
		"old writer":             {MinReaderVersion: 1, MinWriterVersion: 2},
		"unknown writer feature": {MinReaderVersion: 1, MinWriterVersion: 7, WriterFeatures: []string{"cardinal-exclusive", "zorder-ng"}},
	} {
		t.Run(name, func(t *testing.T) {
			l := open(t, commit(p))
			if _, err := appendFile(t.Context(), l, latest(t, l), "a"); !errors.Is(err, txlog.ErrReadOnly) {
				t.Fatalf("got %v", err)
			}
			if _, err := l.Checkpoint(t.Context()); !errors.Is(err, txlog.ErrReadOnly) {
				t.Fatalf("checkpoint: got %v", err)
			}
		})
	}
	_, err := txlog.Open(t.Context(), commit(action.Protocol{MinReaderVersion: 3, MinWriterVersion: 7, ReaderFeatures: []string{"catalogManaged"}}), root, txlog.Options{})
	if !errors.Is(err, txlog.ErrUnsupported) {
		t.Fatalf("got %v", err)
	}
}

// Whatever call of a commit fails, and however: a transaction that says it is
// committed is in the log once; one that says it is not, is not; and one whose
// outcome is unknown is there once or not at all.
func TestCommitFaultSweep(t *testing.T) {
	for _, mode := range fault.Modes {
		for i := 0; ; i++ {
			inner := mem.New(mem.Options{})
			create(t, inner, txlog.Options{})
			f := fault.New(inner)
			l, err := txlog.Open(t.Context(), f, root, txlog.Options{})
			if err != nil {
				t.Fatal(err)
			}
			f.Inject(fault.Fault{Skip: i, Mode: mode})
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			done := map[string]error{}
			for n := range 3 {
				path := fmt.Sprintf("f%d", n)
				_, done[path] = appendFile(ctx, l, latest(t, open(t, inner)), path)
			}
			cancel()
			fired := f.Fired()
			f.Land(t.Context())
			count := map[string]int{}
			fresh := open(t, inner)
			head := latest(t, fresh)
			for v := action.Version(0); v <= head.Version(); v++ {
				c, err := fresh.Commit(t.Context(), v)
				if err != nil {
					t.Fatalf("mode %v call %d: version %d: %v", mode, i, v, err)
				}
				for _, a := range c.Adds {
					count[a.Path]++
				}
			}
			for path, err := range done {
				n := count[path]
				switch {
				case err == nil && n != 1:
					t.Errorf("mode %v call %d: %s is committed %d times, reported once", mode, i, path, n)
				case errors.Is(err, storage.ErrUnknownOutcome) && n > 1:
					t.Errorf("mode %v call %d: %s is committed %d times", mode, i, path, n)
				case err != nil && !errors.Is(err, storage.ErrUnknownOutcome) && !errors.Is(err, fault.ErrCrashed) && n != 0:
					t.Errorf("mode %v call %d: %s is committed, reported %v", mode, i, path, err)
				}
				// Without the store's clock nothing is sent; that is for the caller
				// to try again.
				if mode < fault.CrashBefore && err != nil && !errors.Is(err, storage.ErrUnavailable) {
					t.Errorf("mode %v call %d: %s: one passing fault ended the commit: %v", mode, i, path, err)
				}
			}
			if fired == 0 {
				break
			}
		}
	}
}

// A put whose outcome stays unknown is never followed by one at a later
// version, and ends as unknown when its caller gives up.
func TestUnknownOutcomeStaysAtItsVersion(t *testing.T) {
	inner := mem.New(mem.Options{})
	create(t, inner, txlog.Options{})
	f := fault.New(inner)
	l, err := txlog.Open(t.Context(), f, root, txlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	keys := map[string]bool{}
	f.Inject(fault.Fault{Op: storage.OpPutIfAbsent, Times: -1, Mode: fault.Before, OnCall: func(_ context.Context, c fault.Call) {
		mu.Lock()
		defer mu.Unlock()
		keys[c.Key] = true
	}})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := appendFile(ctx, l, latest(t, l), "a"); !errors.Is(err, storage.ErrUnknownOutcome) {
		t.Fatalf("got %v", err)
	}
	mu.Lock()
	defer mu.Unlock()
	if d := cmp.Diff(map[string]bool{l.CommitKey(1): true}, keys); d != "" {
		t.Fatal(d)
	}
}

// Time runs forward in the log whatever the store's clock does, and time
// travel goes by it.
func TestInCommitTimestamps(t *testing.T) {
	now := time.UnixMilli(1_000_000)
	store := mem.New(mem.Options{Now: func() time.Time { return now }})
	l := create(t, store, txlog.Options{})
	for i, at := range []int64{2_000_000, 1_500_000, 1_500_000, 3_000_000} {
		now = time.UnixMilli(at)
		if _, err := appendFile(t.Context(), l, latest(t, l), fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		at   int64
		want action.Version
	}{{1_000_000, 0}, {1_999_999, 0}, {2_000_000, 1}, {2_000_001, 2}, {2_000_002, 3}, {2_999_999, 3}, {3_000_000, 4}, {9_000_000, 4}} {
		s, err := l.Snapshot(t.Context(), txlog.AtTime(time.UnixMilli(c.at)))
		if err != nil {
			t.Fatal(err)
		}
		if s.Version() != c.want {
			t.Errorf("at %d: version %d, want %d", c.at, s.Version(), c.want)
		}
	}
	if _, err := l.Snapshot(t.Context(), txlog.AtTime(time.UnixMilli(999_999))); !errors.Is(err, txlog.ErrVersionNotFound) {
		t.Errorf("before the table: %v", err)
	}
	if _, err := l.Snapshot(t.Context(), txlog.AtVersion(5)); !errors.Is(err, txlog.ErrVersionNotFound) {
		t.Errorf("ahead of the table: %v", err)
	}
}

func TestGapIsCorruption(t *testing.T) {
	store := mem.New(mem.Options{})
	l := create(t, store, txlog.Options{})
	for i := range 3 {
		if _, err := appendFile(t.Context(), l, latest(t, l), fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := store.Delete(t.Context(), l.CommitKey(2)); err != nil {
		t.Fatal(err)
	}
	if _, err := txlog.Open(t.Context(), store, root, txlog.Options{}); !errors.Is(err, action.ErrCorrupt) {
		t.Fatalf("got %v", err)
	}
}

func TestDamagedCommitIsNamed(t *testing.T) {
	store := mem.New(mem.Options{})
	l := create(t, store, txlog.Options{})
	if _, err := store.PutIfAbsent(t.Context(), l.CommitKey(1), []byte(`{"add":{"path":"x"`)); err != nil {
		t.Fatal(err)
	}
	_, err := txlog.Open(t.Context(), store, root, txlog.Options{})
	if !errors.Is(err, action.ErrCorrupt) {
		t.Fatalf("got %v", err)
	}
	if _, err := l.Snapshot(t.Context(), txlog.Latest()); !errors.Is(err, action.ErrCorrupt) {
		t.Fatalf("refresh: %v", err)
	}
}

// Snapshots are values: an old one does not change when the table does.
func TestSnapshotsAreImmutable(t *testing.T) {
	l := create(t, mem.New(mem.Options{}), txlog.Options{})
	s1, err := appendFile(t.Context(), l, latest(t, l), "a")
	if err != nil {
		t.Fatal(err)
	}
	a, _ := s1.File(action.Key{Path: "a"})
	tx := l.Begin(s1, txlog.Operation{Name: "OPTIMIZE"})
	tx.Remove(a.Tombstone(false))
	tx.Add(add("b"))
	s2, err := tx.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([][]string{{"a"}, {"b"}}, [][]string{paths(s1), paths(s2)}); d != "" {
		t.Fatal(d)
	}
	if s1.NumTombstones() != 0 || s2.NumTombstones() != 1 || s1.Bytes() != 10 || s2.Bytes() != 10 {
		t.Fatalf("tombstones %d, %d; bytes %d, %d", s1.NumTombstones(), s2.NumTombstones(), s1.Bytes(), s2.Bytes())
	}
	for r := range s2.Tombstones() {
		if got := time.UnixMilli(r.DeletionTimestamp).UTC(); !got.Equal(s2.Time()) {
			t.Errorf("deleted at %v, committed at %v", got, s2.Time())
		}
	}
}

// Many goroutines and several processes commit at once: every version is
// there, and every file once.
func TestConcurrentCommits(t *testing.T) {
	store := mem.New(mem.Options{})
	create(t, store, txlog.Options{})
	const processes, writers, each = 3, 8, 10
	var wg sync.WaitGroup
	for p := range processes {
		l := open(t, store)
		for w := range writers {
			wg.Go(func() {
				for i := range each {
					if _, err := appendFile(t.Context(), l, nil, fmt.Sprintf("%d-%d-%d", p, w, i)); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
	fresh := open(t, store)
	s := latest(t, fresh)
	if got := s.NumFiles(); got != processes*writers*each {
		t.Errorf("%d files", got)
	}
	n := 0
	for v := action.Version(0); v <= s.Version(); v++ {
		c, err := fresh.Commit(t.Context(), v)
		if err != nil {
			t.Fatal(err)
		}
		n += len(c.Adds)
	}
	if n != processes*writers*each {
		t.Errorf("%d adds in %d versions", n, s.Version())
	}
}

// A log that has not looked for half a day does not take an absent next
// version for the end: clean-up may have made room. It lists, and commits on
// top of the real latest version.
func TestIdleProcessCannotCommitIntoACleanedLog(t *testing.T) {
	store := mem.New(mem.Options{})
	now := time.Now()
	clock := func() time.Time { return now }
	create(t, store, txlog.Options{})
	idle, err := txlog.Open(t.Context(), store, root, txlog.Options{Now: clock})
	if err != nil {
		t.Fatal(err)
	}
	busy := open(t, store)
	for i := range 10 {
		if _, err := appendFile(t.Context(), busy, nil, fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := busy.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	for v := action.Version(0); v < 10; v++ {
		if err := store.Delete(t.Context(), busy.CommitKey(v)); err != nil {
			t.Fatal(err)
		}
	}
	now = now.Add(txlog.MinLogAge / 2)
	s, err := appendFile(t.Context(), idle, nil, "late")
	if err != nil {
		t.Fatal(err)
	}
	if s.Version() != 11 || s.NumFiles() != 11 {
		t.Errorf("committed as version %d with %d files", s.Version(), s.NumFiles())
	}
}
