package checkpoint

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cardinalsin/action"
	"cardinalsin/storage"
	"cardinalsin/storage/fault"
	"cardinalsin/storage/mem"
)

// find is what a loader does, in short: the hint is optional, the newest
// listed checkpoint that can be read is taken.
func find(ctx context.Context, store storage.Store) (*table, error) {
	if _, _, err := ReadHint(ctx, store, logDir); err != nil {
		return nil, err
	}
	objs, err := storage.Collect(store.List(ctx, logDir+"/0", ""))
	if err != nil {
		return nil, err
	}
	for _, ref := range FromListing(objs) {
		t, err := readTable(ctx, store, ref)
		if errors.Is(err, ErrCorrupt) {
			continue
		}
		return t, err
	}
	return nil, nil
}

// TestWriteFaults fails each call of Write in each way: a reader then finds
// the checkpoint that was there or the new one, whole, and a second Write
// succeeds and moves the hint.
func TestWriteFaults(t *testing.T) {
	old := sample(2)
	old.Version = 5
	next := sample(12)
	calls := 0
	for _, mode := range fault.Modes {
		for i := 0; ; i++ {
			inner := mem.New(mem.Options{})
			if _, err := Write(t.Context(), inner, logDir, old.state(), Options{}); err != nil {
				t.Fatal(err)
			}
			f := fault.New(inner)
			f.FailAt(i, mode)
			_, err := Write(t.Context(), f, logDir, next.state(), Options{RowGroupActions: 8})
			if f.Fired() == 0 {
				if err != nil {
					t.Fatal(err)
				}
				calls = i
				break
			}
			if err == nil {
				t.Errorf("%v, call %d: no error", mode, i)
			}
			for _, landed := range []bool{false, true} {
				if landed {
					f.Land(t.Context())
				}
				got, err := find(t.Context(), inner)
				if err != nil || got == nil {
					t.Fatalf("%v, call %d: %v, %v", mode, i, got, err)
				}
				want := stored(next)
				if got.Version == old.Version {
					want = stored(old)
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Fatalf("%v, call %d: -want +got\n%s", mode, i, diff)
				}
				h, ok, err := ReadHint(t.Context(), inner, logDir)
				if err != nil || !ok || h.Version > got.Version {
					t.Fatalf("%v, call %d: the hint is %+v, %v, %v, found is %d", mode, i, h, ok, err, got.Version)
				}
			}
			if _, err := Write(t.Context(), inner, logDir, next.state(), Options{RowGroupActions: 8}); err != nil {
				t.Fatalf("%v, call %d: second try: %v", mode, i, err)
			}
			if h, ok, err := ReadHint(t.Context(), inner, logDir); err != nil || !ok || h.Version != next.Version {
				t.Fatalf("%v, call %d: second try: the hint is %+v, %v, %v", mode, i, h, ok, err)
			}
		}
	}
	t.Logf("Write makes %d calls, each failed in %d ways", calls, len(fault.Modes))
	if calls < 5 {
		t.Errorf("only %d calls", calls)
	}
}

// TestReadFaults: an error of the store is never taken for damage.
func TestReadFaults(t *testing.T) {
	inner := mem.New(mem.Options{})
	info, err := Write(t.Context(), inner, logDir, sample(40).state(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	f := fault.New(inner)
	f.FailAt(0, fault.Before)
	if _, err := readTable(t.Context(), f, info.Ref); !errors.Is(err, storage.ErrUnavailable) || errors.Is(err, ErrCorrupt) {
		t.Errorf("%v, want ErrUnavailable and not ErrCorrupt", err)
	}
}

func TestReadCancelled(t *testing.T) {
	store := mem.New(mem.Options{})
	info, err := Write(t.Context(), store, logDir, sample(3000).state(), Options{RowGroupActions: 100})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	n := 0
	err = Read(ctx, store, logDir, info.Ref, Sink{Add: func(*action.Add) error {
		if n++; n == 500 {
			cancel()
		}
		return nil
	}})
	if !errors.Is(err, context.Canceled) || errors.Is(err, ErrCorrupt) {
		t.Errorf("%v after %d adds, want context.Canceled and not ErrCorrupt", err, n)
	}
}

func TestSinkError(t *testing.T) {
	store := mem.New(mem.Options{})
	info, err := Write(t.Context(), store, logDir, sample(3000).state(), Options{RowGroupActions: 100})
	if err != nil {
		t.Fatal(err)
	}
	stop := errors.New("enough")
	for name, sink := range map[string]Sink{
		"protocol": {Protocol: func(*action.Protocol) error { return stop }},
		"metadata": {Metadata: func(*action.Metadata) error { return stop }},
		"txn":      {Txn: func(action.SetTransaction) error { return stop }},
		"domain":   {Domain: func(action.DomainMetadata) error { return stop }},
		"add":      {Add: func(*action.Add) error { return stop }},
		"remove":   {Remove: func(*action.Remove) error { return stop }},
	} {
		if err := Read(t.Context(), store, logDir, info.Ref, sink); !errors.Is(err, stop) || err.Error() != stop.Error() {
			t.Errorf("%s: %v, want the sink's error as it is", name, err)
		}
	}
}

// TestConcurrentWriters: two that write the same version at a time both
// succeed, and a third that reads meanwhile never sees a mixture.
func TestConcurrentWriters(t *testing.T) {
	store := mem.New(mem.Options{})
	in := sample(3000)
	want := stored(in)
	if _, err := Write(t.Context(), store, logDir, in.state(), Options{}); err != nil {
		t.Fatal(err)
	}
	first, _, err := store.Get(t.Context(), ClassicKey(logDir, in.Version))
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		if err := store.Delete(t.Context(), ClassicKey(logDir, in.Version)); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				if _, err := Write(t.Context(), store, logDir, in.state(), Options{}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Go(func() {
			for range 20 {
				got, err := find(t.Context(), store)
				if err != nil || (got != nil && !cmp.Equal(want, got)) {
					t.Errorf("%v, or the table is another", err)
				}
			}
		})
		wg.Wait()
		again, _, err := store.Get(t.Context(), ClassicKey(logDir, in.Version))
		if err != nil || !bytes.Equal(first, again) {
			t.Fatalf("the same state gave %d and %d bytes that differ, %v", len(first), len(again), err)
		}
	}
}

// TestWriteKeepsSound: a sound checkpoint is not written again, a damaged one
// is.
func TestWriteKeepsSound(t *testing.T) {
	store := mem.New(mem.Options{})
	in := sample(20)
	if info, err := Write(t.Context(), store, logDir, in.state(), Options{}); err != nil || info.Existed || !info.HintMoved {
		t.Fatalf("%+v, %v", info, err)
	}
	key := ClassicKey(logDir, in.Version)
	_, before, err := store.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	info, err := Write(t.Context(), store, logDir, in.state(), Options{})
	if err != nil || !info.Existed || info.NumAdds != 20 || info.NumRemoves != int64(len(in.Removes)) {
		t.Fatalf("%+v, %v", info, err)
	}
	data, after, err := store.Get(t.Context(), key)
	if err != nil || before.ETag != after.ETag {
		t.Fatalf("a sound checkpoint was replaced, %v", err)
	}
	for name, bad := range map[string][]byte{"empty": {}, "cut off": data[:len(data)/2], "another version": otherVersion(t)} {
		if _, err := store.Put(t.Context(), key, bytes.NewReader(bad)); err != nil {
			t.Fatal(err)
		}
		if info, err := Write(t.Context(), store, logDir, in.state(), Options{}); err != nil || info.Existed {
			t.Fatalf("%s: %+v, %v", name, info, err)
		}
		if now, _, err := store.Get(t.Context(), key); err != nil || !bytes.Equal(now, data) {
			t.Fatalf("%s: not repaired, %v", name, err)
		}
	}
}

func otherVersion(t *testing.T) []byte {
	s := sample(20)
	s.Version = 11
	return encoded(t, s)
}

func encoded(t testing.TB, s *table) []byte { return encodedN(t, s, 16) }

func encodedN(t testing.TB, s *table, rows int) []byte {
	t.Helper()
	var b bytes.Buffer
	st, err := normalState(s.state())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := encode(&b, st, Options{RowGroupActions: rows}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// silent drops an object's Put but reports success: what Write reads back is
// not what it wrote.
type silent struct {
	storage.Store
	replace []byte
}

func (s silent) Put(ctx context.Context, key string, body io.ReadSeeker) (storage.ObjectInfo, error) {
	if strings.HasSuffix(key, ".parquet") {
		return s.Store.Put(ctx, key, bytes.NewReader(s.replace))
	}
	return s.Store.Put(ctx, key, body)
}

// TestWriteVerifies: the hint does not move to a checkpoint that was damaged
// on its way.
func TestWriteVerifies(t *testing.T) {
	good := encoded(t, sample(20))
	flipped := bytes.Clone(good)
	flipped[bytes.Index(good, []byte(`"sum":"`))+7] ^= 1
	for name, bad := range map[string][]byte{"cut off": good[:len(good)-1], "flipped": flipped, "another version": otherVersion(t)} {
		store := mem.New(mem.Options{})
		_, err := Write(t.Context(), silent{store, bad}, logDir, sample(20).state(), Options{RowGroupActions: 16})
		if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), ClassicKey(logDir, 10)) {
			t.Errorf("%s: %v, want ErrCorrupt that names the object", name, err)
		}
		if h, ok, err := ReadHint(t.Context(), store, logDir); ok || err != nil {
			t.Errorf("%s: the hint is %+v, %v", name, h, err)
		}
	}
}

func TestWriteInvalidState(t *testing.T) {
	for name, change := range map[string]func(*table){
		"no protocol":          func(s *table) { s.Protocol = nil },
		"no metaData":          func(s *table) { s.Metadata = nil },
		"negative version":     func(s *table) { s.Version = -1 },
		"two txn":              func(s *table) { s.Txns = append(s.Txns, action.SetTransaction{AppID: s.Txns[0].AppID, Version: 3}) },
		"two domains":          func(s *table) { s.Domains = append(s.Domains, s.Domains[0]) },
		"removed domain":       func(s *table) { s.Domains[0].Removed = true },
		"adds out of order":    func(s *table) { s.Adds[3], s.Adds[4] = s.Adds[4], s.Adds[3] },
		"two adds":             func(s *table) { s.Adds[3] = s.Adds[4] },
		"add without path":     func(s *table) { s.Adds[0].Path = "" },
		"removes out of order": func(s *table) { s.Removes[0], s.Removes[1] = s.Removes[1], s.Removes[0] },
		"two vectors backwards": func(s *table) {
			s.Adds[4] = s.Adds[3]
			s.Adds[3].DeletionVector = &action.DeletionVector{StorageType: "u", PathOrInlineDV: "b"}
			s.Adds[4].DeletionVector = &action.DeletionVector{StorageType: "u", PathOrInlineDV: "a"}
		},
	} {
		s := sample(20)
		change(s)
		store := mem.New(mem.Options{})
		dir := t.TempDir()
		if _, err := Write(t.Context(), store, logDir, s.state(), Options{TempDir: dir}); !errors.Is(err, ErrInvalidState) {
			t.Errorf("%s: %v, want ErrInvalidState", name, err)
		}
		objs, err := storage.Collect(store.List(t.Context(), "", ""))
		if err != nil || len(objs) > 0 {
			t.Errorf("%s: stored %v, %v", name, objs, err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%s: left %v, %v", name, left, err)
		}
	}
	s := sample(20)
	s.Adds[0].Tags = `{"a":1}`
	if _, err := Write(t.Context(), mem.New(mem.Options{}), logDir, s.state(), Options{}); !errors.Is(err, action.ErrCorrupt) {
		t.Errorf("tags that are no text: %v, want action.ErrCorrupt", err)
	}
}

// put stores bytes as the checkpoint of version 10.
func put(t testing.TB, data []byte) (storage.Store, Ref) {
	t.Helper()
	store := mem.New(mem.Options{})
	key := ClassicKey(logDir, 10)
	if _, err := store.Put(t.Context(), key, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	return store, Ref{Version: 10, Keys: []string{key}, Sizes: []int64{int64(len(data))}}
}

// TestDamage changes a checkpoint of ours in every byte: it is refused by
// name, or it still says what it said. Nothing in between.
func TestDamage(t *testing.T) {
	in := sample(4)
	want := stored(in)
	data := encoded(t, in)
	harmless := map[string]int{}
	var most uint64
	check := func(what string, data []byte) {
		store, ref := put(t, data)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		got, err := readTable(t.Context(), store, ref)
		runtime.ReadMemStats(&after)
		most = max(most, after.TotalAlloc-before.TotalAlloc)
		switch {
		case err == nil:
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s: went unseen: -want +got\n%s", what, diff)
			}
			harmless[strings.Fields(what)[0]]++
		case errors.Is(err, ErrUnsupported) || errors.Is(err, ErrCorrupt) || errors.Is(err, ErrIncomplete):
			if !strings.Contains(err.Error(), ref.Keys[0]) {
				t.Errorf("%s: %v does not name the object", what, err)
			}
		default:
			t.Errorf("%s: %v, want ErrCorrupt", what, err)
		}
	}
	// All bytes take a minute; a prime step meets all parts of the file.
	step := 31
	if os.Getenv("CARDINAL_EXHAUSTIVE") != "" {
		step = 1
	}
	flips := 0
	for i := 0; i < len(data); i += step {
		bits := byte(1) << (i / step % 8)
		if i/step%3 == 0 {
			bits = 0xff
		}
		bad := bytes.Clone(data)
		bad[i] ^= bits
		flips++
		check(fmt.Sprintf("flip of %02x at %d of %d", bits, i, len(data)), bad)
	}
	for i := 0; i < len(data); i += step {
		store, ref := put(t, data[:i])
		if _, err := readTable(t.Context(), store, ref); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), ref.Keys[0]) {
			t.Errorf("cut at %d: %v, want ErrCorrupt that names the object", i, err)
		}
	}
	// What does no harm: the page index and column statistics, which are not
	// used, and the magic at the front.
	t.Logf("%d bytes, %d flips, %d of them refused, the others harmless; one reading allocates at most %d kB", len(data), flips, flips-harmless["flip"], most>>10)
	if limit := uint64(16 << 20); most > limit {
		t.Errorf("a damaged file of %d bytes made the reader allocate %d", len(data), most)
	}
	if harmless["flip"] > flips*3/4 {
		t.Errorf("%d of %d flips made no difference", harmless["flip"], flips)
	}
}

// TestContentsRemoved: a file of ours cannot pass for one of another engine,
// which nothing sums up.
func TestContentsRemoved(t *testing.T) {
	data := encoded(t, sample(4))
	bad := bytes.Replace(data, []byte(contentsKey), []byte(strings.ToUpper(contentsKey)), 1)
	store, ref := put(t, bad)
	if _, err := readTable(t.Context(), store, ref); bytes.Equal(data, bad) || !errors.Is(err, ErrCorrupt) {
		t.Errorf("%v, want ErrCorrupt", err)
	}
}

// TestMissing: objects that are listed and gone are damage that is named.
func TestMissing(t *testing.T) {
	for _, kind := range []Kind{Classic, UUIDParquet, UUIDJSON, MultiPart} {
		ref := Ref{Version: 3, Kind: kind, Keys: []string{"t/_delta_log/gone"}, Sizes: []int64{wholeBytes * 2}}
		for _, r := range []Ref{ref, {Version: 3, Kind: kind, Keys: ref.Keys}} {
			_, err := readTable(t.Context(), mem.New(mem.Options{}), r)
			if !errors.Is(err, ErrCorrupt) || !errors.Is(err, storage.ErrNotFound) || !strings.Contains(err.Error(), "t/_delta_log/gone") {
				t.Errorf("%v: %v, want ErrCorrupt and ErrNotFound", kind, err)
			}
		}
	}
	if _, err := readTable(t.Context(), mem.New(mem.Options{}), Ref{Version: 3}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("no keys: %v, want ErrCorrupt", err)
	}
}

// TestSizeDiffers: an object that is not as long as listed.
func TestSizeDiffers(t *testing.T) {
	data := encoded(t, sample(20))
	store, ref := put(t, data)
	ref.Sizes = []int64{wholeBytes * 2} // so that ranges beyond its end are asked for
	if _, err := readTable(t.Context(), store, ref); !errors.Is(err, ErrCorrupt) || !errors.Is(err, storage.ErrInvalidRange) {
		t.Errorf("%v, want ErrCorrupt and ErrInvalidRange", err)
	}
}

// TestFooterClaims: a footer that claims too much is refused before anything
// is allocated for it.
func TestFooterClaims(t *testing.T) {
	data := encoded(t, sample(1))
	for _, n := range []uint32{0, 1, uint32(len(data)) - 11, 1 << 30, 1<<32 - 1} {
		bad := bytes.Clone(data)
		binary.LittleEndian.PutUint32(bad[len(bad)-8:], n)
		store, ref := put(t, bad)
		if _, err := readTable(t.Context(), store, ref); !errors.Is(err, ErrCorrupt) {
			t.Errorf("footer of %d bytes: %v, want ErrCorrupt", n, err)
		}
	}
}
