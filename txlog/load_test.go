package txlog

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"cardinalsin/action"
	"cardinalsin/checkpoint"
	"cardinalsin/storage"
	"cardinalsin/storage/mem"
	"cardinalsin/storage/meter"
)

func putObject(t tester, store storage.Store, name string, data []byte) {
	if _, err := store.Put(context.Background(), compactRoot+"/_delta_log/"+name, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
}

// plainCommit is an entry of an engine without in-commit timestamps.
func plainCommit(timestamp int64, path string) *action.Commit {
	c := &action.Commit{Info: &action.CommitInfo{Timestamp: timestamp}, Adds: []action.Add{{Path: path, Size: 1}}}
	if timestamp == 0 {
		c.Info = nil
	}
	return c
}

// Without in-commit timestamps a version's time is what its writer says, else
// what the store says, and always later than the version before: one version
// is found at each time, and the same whatever it is loaded through.
func TestTimesOfOtherEngines(t *testing.T) {
	now := time.UnixMilli(5000)
	store := mem.New(mem.Options{Now: func() time.Time { return now }})
	first := plainCommit(1000, "f0")
	first.Protocol = &action.Protocol{MinReaderVersion: 1, MinWriterVersion: 2}
	first.Metadata = &action.Metadata{ID: "x", Format: action.Format{Provider: "parquet"}} // no schema, as of old
	putCommit(t, store, 0, first)
	for v, timestamp := range []int64{3000, 2000, 0, 0, 4000} { // a clock that goes back; two that say nothing
		putCommit(t, store, action.Version(v+1), plainCommit(timestamp, fmt.Sprintf("f%d", v+1)))
	}
	want := []int64{1000, 3000, 3001, 5000, 5001, 5002}
	l := testLog(store)
	for v, ms := range want {
		s, err := l.Snapshot(t.Context(), AtVersion(action.Version(v)))
		if err != nil {
			t.Fatal(err)
		}
		if got := s.Time().UnixMilli(); got != ms {
			t.Errorf("version %d: time %d, want %d", v, got, ms)
		}
		next := int64(1 << 40)
		if v+1 < len(want) {
			next = want[v+1]
		}
		for _, at := range []int64{ms, next - 1} {
			s, err := l.Snapshot(t.Context(), AtTime(time.UnixMilli(at)))
			if err != nil {
				t.Fatal(err)
			}
			if s.Version() != action.Version(v) {
				t.Errorf("at %d: version %d, want %d", at, s.Version(), v)
			}
		}
	}
	if _, err := l.Snapshot(t.Context(), AtTime(time.UnixMilli(999))); !errors.Is(err, ErrVersionNotFound) {
		t.Errorf("before the table: %v", err)
	}
	refreshed := testLog(store) // one version at a time
	s, err := refreshed.load(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if s, err = refreshed.refreshFrom(t.Context(), s); err != nil || s.Time().UnixMilli() != 5002 {
		t.Errorf("refreshed: time %v, %v", s, err)
	}
}

// Only what the wanted version needs must be supported; a feature that is
// missing is named.
func TestFeatures(t *testing.T) {
	for _, f := range readerFeatures {
		if err := checkReadable(&action.Protocol{MinReaderVersion: 3, MinWriterVersion: 7, ReaderFeatures: []string{f}}); err != nil {
			t.Error(err)
		}
	}
	store := mem.New(mem.Options{})
	putCommit(t, store, 0, firstCommit())
	own := OwnProtocol()
	putCommit(t, store, 1, &action.Commit{Protocol: &action.Protocol{MinReaderVersion: 3, MinWriterVersion: 7, ReaderFeatures: []string{"time-machine"}}})
	putCommit(t, store, 2, &action.Commit{Protocol: &own})
	l := testLog(store)
	if _, err := l.load(t.Context(), 2); err != nil {
		t.Errorf("version 2: %v", err)
	}
	if _, err := l.load(t.Context(), 1); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "time-machine") {
		t.Errorf("version 1: %v", err)
	}
	s := &Snapshot{protocol: &own, schema: &action.Schema{Fields: []action.Field{{Name: "plain", Metadata: map[string]any{"comment": "x"}}}}}
	if err := checkWritable(s); err != nil {
		t.Error(err)
	}
	s.schema.Fields = append(s.schema.Fields, action.Field{Name: "checked", Metadata: map[string]any{"delta.invariants": `{"expression":{"expression":"x > 3"}}`}})
	if err := checkWritable(s); !errors.Is(err, ErrReadOnly) || !strings.Contains(err.Error(), "checked") {
		t.Errorf("got %v", err)
	}
}

// A version long ago is found from the checkpoint before it, without a
// listing of all that there is; and where there is none, all the same.
func TestPastVersionsListLittle(t *testing.T) {
	store := mem.New(mem.Options{})
	putCommit(t, store, 0, firstCommit())
	l := testLog(store)
	s, err := l.load(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	const last, base = listBack + 150, 100
	for v := action.Version(1); v <= last; v++ {
		ict := 1000 + int64(v)
		c := &action.Commit{Info: &action.CommitInfo{TxnID: fmt.Sprint(v), InCommitTimestamp: &ict}, Adds: []action.Add{{Path: fmt.Sprintf("f%05d", v)}}}
		putCommit(t, store, v, c)
		if s, err = s.apply(v, c); err != nil {
			t.Fatal(err)
		}
		if v == base {
			if err := l.writeCheckpoint(t.Context(), s); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, hint := range []string{`{"version":9999,"size":1}`, "", "x"} { // ahead, empty, damaged
		putObject(t, store, "_last_checkpoint", []byte(hint))
		for _, v := range []action.Version{0, base - 1, base, base + 1, base + listBack - 1, base + listBack, base + listBack + 1, last} {
			s, err := testLog(store).load(t.Context(), v)
			if err != nil {
				t.Fatalf("hint %q, version %d: %v", hint, v, err)
			}
			if s.Version() != v || s.NumFiles() != int(v) {
				t.Errorf("hint %q: version %d, %d files; want %d", hint, s.Version(), s.NumFiles(), v)
			}
		}
	}
}

// The newest checkpoints are damaged, and those before them.
func TestCheckpointFallback(t *testing.T) {
	store := mem.New(mem.Options{})
	l := testLog(store)
	putCommit(t, store, 0, firstCommit())
	var want *Snapshot
	for v := action.Version(1); v <= 9; v++ {
		ict := 1000 + int64(v)
		putCommit(t, store, v, &action.Commit{Info: &action.CommitInfo{TxnID: fmt.Sprint(v), InCommitTimestamp: &ict}, Adds: []action.Add{{Path: fmt.Sprintf("f%d", v)}}})
		s, err := l.load(t.Context(), v)
		if err != nil {
			t.Fatal(err)
		}
		if v%3 == 0 {
			if err := l.writeCheckpoint(t.Context(), s); err != nil {
				t.Fatal(err)
			}
		}
		want = s
	}
	for i, v := range []action.Version{9, 6, 3} {
		putObject(t, store, v.String()+".checkpoint.parquet", []byte("PAR1, or is it"))
		got, err := testLog(store).load(t.Context(), latest)
		if err != nil {
			t.Fatalf("%d damaged: %v", i+1, err)
		}
		if d := different(want, got); d != "" {
			t.Errorf("%d damaged: %s", i+1, d)
		}
	}
	if err := store.Delete(t.Context(), l.CommitKey(2)); err != nil {
		t.Fatal(err)
	}
	if _, err := testLog(store).load(t.Context(), latest); !errors.Is(err, action.ErrCorrupt) || !errors.Is(err, checkpoint.ErrCorrupt) || !strings.Contains(err.Error(), l.CommitKey(2)) {
		t.Errorf("got %v, want one that names the checkpoints and commit 2", err)
	}
}

// A past version that is asked for again costs no more than the latest, until
// vacuum may have taken it away; and few are kept.
func TestPastVersionsAreKept(t *testing.T) {
	inner := mem.New(mem.Options{})
	putCommit(t, inner, 0, firstCommit())
	for v := action.Version(1); v <= 9; v++ {
		putCommit(t, inner, v, plainCommit(1000+int64(v), fmt.Sprintf("f%d", v)))
	}
	store := meter.New(inner, meter.Options{})
	l := testLog(store)
	requests := func(v action.Version) int64 {
		t.Helper()
		before := store.Snapshot().Total().Requests
		s, err := l.Snapshot(t.Context(), AtVersion(v))
		if err != nil {
			t.Fatal(err)
		}
		if s.Version() != v || s.NumFiles() != int(v) {
			t.Fatalf("version %d, %d files; want %d", s.Version(), s.NumFiles(), v)
		}
		return store.Snapshot().Total().Requests - before
	}
	requests(9)
	cold := requests(3)
	if again := requests(3); again != 1 || cold < 5 {
		t.Errorf("%d requests, then %d; want 1", cold, again)
	}
	for v := action.Version(4); v < 4+maxPast; v++ {
		requests(v)
	}
	if n := requests(3); n == 1 {
		t.Error("more are kept than should be")
	}
	putCommit(t, inner, 10, &action.Commit{Domains: []action.DomainMetadata{{Domain: WatermarkDomain, Configuration: EncodeWatermark(8)}}})
	requests(3)
	if n := requests(3); n == 1 {
		t.Error("a version below the watermark came from memory")
	}
	p := pastSnapshots{}
	s := emptySnapshot()
	all := make([]packed, maxPastFiles+1)
	k := packer{values: s.values}
	for i := range all {
		var err error
		if all[i], err = k.add(&action.Add{Path: fmt.Sprintf("%09d", i)}); err != nil {
			t.Fatal(err)
		}
	}
	s.files.put(all, func(packed) {})
	if p.put(s); len(p.kept) != 0 {
		t.Error("a great one is kept")
	}
}

// FuzzLog loads a log in which any object may hold anything: it loads, or an
// error says what is wrong, and memory follows the size of the objects.
func FuzzLog(f *testing.F) {
	encode := func(c *action.Commit) []byte {
		data, err := c.Encode()
		if err != nil {
			f.Fatal(err)
		}
		return data
	}
	ict := int64(2000)
	commit := encode(&action.Commit{
		Info: &action.CommitInfo{InCommitTimestamp: &ict}, Txns: []action.SetTransaction{{AppID: "a", Version: 1}},
		Domains: []action.DomainMetadata{{Domain: VacuumDomain, Configuration: EncodeVacuumed(0, 1000)}},
		Removes: []action.Remove{{Path: "file:/b", DeletionTimestamp: 5}}, Adds: []action.Add{drawnAdd},
	})
	crc, err := json.Marshal(Checksum{TxnID: "x", NumFiles: 1, InCommitTimestamp: &ict})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(commit, commit, crc, []byte(`{"version":1,"size":3}`))
	f.Add(encode(firstCommit()), []byte("{}"), []byte("{"), []byte(`{"version":-1}`))
	f.Add([]byte(`{"metaData":{"id":"x","schemaString":"{}"}}`), []byte(`{"add":{"path":"a\u0000b"}}`), []byte("null"), []byte(nil))
	f.Add([]byte(`{"protocol":{"minReaderVersion":9,"minWriterVersion":9}}`), bytes.Repeat([]byte("["), 5000), []byte(`{"numFiles":"x"}`), []byte("[]"))
	f.Fuzz(func(t *testing.T, commit, compaction, crc, hint []byte) {
		store := mem.New(mem.Options{})
		putCommit(t, store, 0, firstCommit())
		putObject(t, store, action.Version(1).String()+".json", commit)
		putCommit(t, store, 2, plainCommit(0, "c"))
		putObject(t, store, action.Version(1).String()+"."+action.Version(2).String()+compactedSuffix, compaction)
		putObject(t, store, action.Version(2).String()+".crc", crc)
		putObject(t, store, "_last_checkpoint", hint)
		size := len(commit) + len(compaction) + len(crc) + len(hint)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for _, v := range []action.Version{latest, 1, 2} {
			l := testLog(store)
			s, err := l.load(t.Context(), v)
			if err != nil {
				if !isCorrupt(err) && !errors.Is(err, ErrUnsupported) {
					t.Fatalf("%v is no error of the log", err)
				}
				continue
			}
			if n := len(slices.Collect(s.Files())); n != s.NumFiles() {
				t.Fatalf("%d files, %d counted", n, s.NumFiles())
			}
			for a := range s.Files() {
				if got, ok := s.File(a.Key()); !ok || got.Path != a.Path {
					t.Fatalf("%q is not found by its key", a.Path)
				}
			}
			if _, _, err := l.ReadChecksum(t.Context(), 2); err != nil {
				t.Fatal(err)
			}
		}
		runtime.ReadMemStats(&after)
		if used := after.TotalAlloc - before.TotalAlloc; used > 4<<20+1000*uint64(size) {
			t.Fatalf("%d bytes were allocated for %d", used, size)
		}
	})
}

var drawnAdd = action.Add{
	Path: "a%20b", PartitionValues: `{"d":null}`, Size: 1, Stats: `{"numRecords":1}`, Tags: `{"t":"v"}`,
	DeletionVector: &action.DeletionVector{StorageType: "u", PathOrInlineDV: "x", SizeInBytes: 1, Cardinality: 1},
}

// Great entries take other ways into a snapshot than small ones: they are
// packed while they are read, sorted, and put in with their neighbours. What
// comes out is the same.
func TestGreatEntries(t *testing.T) {
	store := mem.New(mem.Options{})
	putCommit(t, store, 0, firstCommit())
	rng := rand.New(rand.NewPCG(1, 2))
	const last = 6
	for v := action.Version(1); v <= last; v++ {
		ict := 1000 + int64(v)
		c := &action.Commit{
			Info: &action.CommitInfo{TxnID: fmt.Sprint(v), InCommitTimestamp: &ict},
			Txns: []action.SetTransaction{{AppID: "a", Version: int64(v)}}, Domains: []action.DomainMetadata{{Domain: "d", Configuration: fmt.Sprint(v)}},
		}
		for _, i := range rng.Perm(4 * bulkMin)[:2*bulkMin] { // half of them are there already
			a := drawnAdd
			a.Path, a.Size = fmt.Sprintf("date=2026-01-%02d/%d", i%30, i), int64(v)*10_000+int64(i)
			if i%5 > 0 {
				a.DeletionVector = nil
			}
			c.Adds = append(c.Adds, a)
		}
		if v == 4 {
			for i := range c.Adds[:100] {
				r := c.Adds[i].Tombstone(true)
				r.DeletionTimestamp = ict
				c.Removes = append(c.Removes, r)
			}
			c.Adds = c.Adds[50:]
		}
		putCommit(t, store, v, c)
	}
	l := testLog(store)
	small := emptySnapshot()
	for v := action.Version(0); v <= last; v++ {
		c, err := l.readCommit(t.Context(), v)
		if err != nil {
			t.Fatal(err)
		}
		c.Adds, c.Removes = slices.Clone(c.Adds), slices.Clone(c.Removes)
		adds := c.Adds
		c.Adds = nil
		e, err := prepare(small.values, c)
		if err != nil {
			t.Fatal(err)
		}
		if err := small.step(v, e); err != nil {
			t.Fatal(err)
		}
		for len(adds) > 0 { // a few at a time
			n := min(len(adds), 100)
			if e, err = prepare(small.values, &action.Commit{Adds: adds[:n]}); err != nil {
				t.Fatal(err)
			}
			small.replay(e)
			adds = adds[n:]
		}
		got, err := l.load(t.Context(), v)
		if err != nil {
			t.Fatal(err)
		}
		if d := different(small, got); d != "" {
			t.Fatalf("version %d: %s", v, d)
		}
	}
	for _, name := range []string{"protocol", "metaData"} {
		text := bytes.Repeat([]byte(`{"`+name+`":{"minReaderVersion":1,"schemaString":"{}"}}`+"\n"), arenaBytes/40)
		if _, err := prepareText(newValueTable(), text); !errors.Is(err, action.ErrCorrupt) {
			t.Errorf("%s twice: %v", name, err)
		}
	}
}
