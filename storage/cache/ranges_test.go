package cache_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cardinalsin/storage"
	"cardinalsin/storage/cache"
	"cardinalsin/storage/fault"
	"cardinalsin/storage/local"
	"cardinalsin/storage/mem"
	"cardinalsin/storage/meter"
)

const bigSize = 3<<20 + 77

// randomBytes are the bytes of an object, none of them zero.
func randomBytes(seed uint64, n int) []byte {
	random := rand.New(rand.NewPCG(7, seed))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(1 + random.IntN(255))
	}
	return b
}

// bigStore holds n objects b0, b1, … of bigSize bytes.
func bigStore(t *testing.T, n int) (*meter.Store, *fault.Store, [][]byte) {
	t.Helper()
	inner := mem.New(mem.Options{})
	var all [][]byte
	for i := range n {
		data := randomBytes(uint64(i), bigSize)
		all = append(all, data)
		if _, err := inner.PutIfAbsent(t.Context(), fmt.Sprintf("b%d", i), data); err != nil {
			t.Fatal(err)
		}
	}
	f := fault.New(inner)
	return meter.New(f, meter.Options{}), f, all
}

func newCache(t *testing.T, o cache.Options) *cache.Cache {
	t.Helper()
	c, err := cache.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func readRange(t *testing.T, c *cache.Cache, s storage.Store, i int, want []byte, offset, length int64) {
	t.Helper()
	got, err := c.ReadRange(t.Context(), s, fmt.Sprintf("b%d", i), int64(len(want)), offset, length)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want[offset:offset+length]) {
		t.Errorf("%d bytes at %d of b%d are others", length, offset, i)
	}
}

func ranged(s *meter.Store) int64 { return s.Snapshot()[storage.OpGetRange].Calls }

// tiers are the ways a cache of ranges can be laid out.
func tiers(t *testing.T) map[string]cache.Options {
	return map[string]cache.Options{
		"memory": {MemoryBytes: 64 << 20},
		"disk":   {Dir: t.TempDir(), RangeBytes: 64 << 20},
		"both":   {Dir: t.TempDir(), RangeBytes: 64 << 20, MemoryBytes: 1 << 20},
	}
}

// Whatever is asked for, in any order, is what the store holds; and what was
// asked for once costs no request again.
func TestRanges(t *testing.T) {
	for name, o := range tiers(t) {
		t.Run(name, func(t *testing.T) {
			s, _, all := bigStore(t, 2)
			c := newCache(t, o)
			random := rand.New(rand.NewPCG(3, 5))
			type ask struct {
				i              int
				offset, length int64
			}
			var asked []ask
			for range 60 {
				a := ask{i: random.IntN(2), offset: random.Int64N(bigSize - 1)}
				a.length = 1 + random.Int64N(min(300<<10, bigSize-a.offset))
				asked = append(asked, a)
				readRange(t, c, s, a.i, all[a.i], a.offset, a.length)
			}
			// What is on its way to disk is found there, later.
			before := ranged(s)
			for _, a := range asked {
				readRange(t, c, s, a.i, all[a.i], a.offset, a.length)
			}
			if n := ranged(s) - before; n != 0 {
				t.Errorf("%d requests for what was there", n)
			}
		})
	}
}

func TestRangeArguments(t *testing.T) {
	s, _, all := bigStore(t, 1)
	c := newCache(t, cache.Options{MemoryBytes: 1 << 20})
	for _, x := range [][2]int64{{-1, 5}, {0, 0}, {0, -1}, {0, bigSize + 1}, {bigSize, 1}, {1 << 62, 1 << 62}} {
		if _, err := c.ReadRange(t.Context(), s, "b0", bigSize, x[0], x[1]); !errors.Is(err, storage.ErrInvalidRange) {
			t.Errorf("%v: %v", x, err)
		}
	}
	if _, err := c.ReadRange(t.Context(), s, "b0", bigSize+10, bigSize, 10); !errors.Is(err, cache.ErrSizeMismatch) {
		t.Errorf("a smaller object: %v", err)
	}
	if _, err := c.ReadRange(t.Context(), s, "none", 10, 0, 10); !errors.Is(err, storage.ErrNotFound) {
		t.Error(err)
	}
	readRange(t, c, s, 0, all[0], 0, 10)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ReadRange(t.Context(), s, "b0", bigSize, 0, 10); !errors.Is(err, os.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

// Misses that lie close together are one request, others are not.
func TestCoalesces(t *testing.T) {
	s, _, all := bigStore(t, 1)
	c := newCache(t, cache.Options{Dir: t.TempDir(), RangeBytes: 64 << 20, MemoryBytes: 64 << 20})
	for _, there := range [][2]int64{{5_000, 1000}, {50_000, 1000}, {1 << 20, 200_000}} {
		readRange(t, c, s, 0, all[0], there[0], there[1])
	}
	for _, x := range []struct{ offset, length, requests int64 }{
		{0, 100_000, 1},         // three gaps, near each other
		{0, 100_000, 0},         // it is all there
		{500_000, 1_000_000, 2}, // two gaps, far from each other
	} {
		before := ranged(s)
		readRange(t, c, s, 0, all[0], x.offset, x.length)
		if n := ranged(s) - before; n != x.requests {
			t.Errorf("%d bytes at %d: %d requests, want %d", x.length, x.offset, n, x.requests)
		}
	}
}

// Callers that want the same at the same time share one request, and one that
// leaves takes nothing from the others.
func TestSharedFetch(t *testing.T) {
	s, f, all := bigStore(t, 1)
	c := newCache(t, cache.Options{MemoryBytes: 64 << 20})
	inside, leave := make(chan struct{}), make(chan struct{})
	f.Inject(fault.Fault{Op: storage.OpGetRange, OnCall: func(context.Context, fault.Call) { close(inside); <-leave }})
	var group sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	group.Go(func() {
		if _, err := c.ReadRange(ctx, s, "b0", bigSize, 0, 1000); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	<-inside
	for range 8 {
		group.Go(func() { readRange(t, c, s, 0, all[0], 100, 800) })
	}
	for c.Stats().Ranges.Joined != 8 {
		if t.Failed() {
			break
		}
	}
	cancel()
	close(leave)
	group.Wait()
	if ranged(s) != 1 {
		t.Errorf("%d requests", ranged(s))
	}
}

// A failed request is its askers' error, and not the next ones'.
func TestRangeFault(t *testing.T) {
	s, f, all := bigStore(t, 1)
	c := newCache(t, cache.Options{MemoryBytes: 64 << 20})
	f.FailAt(0, fault.Before)
	if _, err := c.ReadRange(t.Context(), s, "b0", bigSize, 0, 1000); !errors.Is(err, storage.ErrUnavailable) {
		t.Error(err)
	}
	readRange(t, c, s, 0, all[0], 0, 1000)
}

// A scan over far more than there is room for does not push out what is read
// again and again.
func TestScan(t *testing.T) {
	for name, o := range map[string]cache.Options{
		"memory": {MemoryBytes: 8 << 20},
		"disk":   {Dir: t.TempDir(), RangeBytes: 10 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			s, _, all := bigStore(t, 12)
			c := newCache(t, o)
			hot := func() { readRange(t, c, s, 0, all[0], 0, 512<<10) }
			for range 3 {
				hot()
				c.Settle()
			}
			for i := 1; i < 12; i++ {
				readRange(t, c, s, i, all[i], 0, bigSize)
				if got := c.Stats().Ranges; got.MemoryBytes > o.MemoryBytes || got.DiskBytes > o.RangeBytes {
					t.Fatalf("over the bound: %+v", got)
				}
			}
			before := ranged(s)
			hot()
			if n := ranged(s) - before; n != 0 {
				t.Errorf("%d requests for what is hot, %+v", n, c.Stats().Ranges)
			}
			if c.Stats().Ranges.Evicted == 0 {
				t.Error("nothing was let go")
			}
		})
	}
}

// What is on disk is found after a restart, and whatever has happened to it
// costs requests and never other bytes.
func TestDisk(t *testing.T) {
	s, _, all := bigStore(t, 1)
	dir := t.TempDir()
	o := cache.Options{Dir: dir, RangeBytes: 64 << 20}
	c := newCache(t, o)
	spans := []cache.Span{{bigSize - 5000, 5000}, {100, 70000}, {1 << 20, 10}}
	check := func() {
		t.Helper()
		for _, span := range spans {
			readRange(t, c, s, 0, all[0], span.Offset, span.Length)
		}
		c.Settle()
		got, err := os.ReadFile(c.SparseFiles()[0])
		if err != nil || len(got) < bigSize {
			t.Fatal(len(got), err)
		}
		for _, span := range spans {
			if end := span.Offset + span.Length; !bytes.Equal(got[span.Offset:end], all[0][span.Offset:end]) {
				t.Errorf("%v holds other bytes", span)
			}
		}
		// What nobody asked for is a hole.
		if !bytes.Equal(got[2<<20:2<<20+4096], make([]byte, 4096)) {
			t.Error("there is no hole")
		}
	}
	check()
	before := ranged(s)
	check()
	if n := ranged(s) - before; n != 0 {
		t.Errorf("%d requests the second time", n)
	}
	// After a restart it is there still.
	reopen := func() {
		t.Helper()
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		c = newCache(t, o)
	}
	reopen()
	check()
	if n := ranged(s) - before; n != 0 {
		t.Errorf("%d requests after a restart", n)
	}
	file := c.SparseFiles()[0]
	write := func(name string, at int64, b []byte) {
		t.Helper()
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteAt(b, at)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	for name, damage := range map[string]func(){
		"a flipped bit": func() { write(file, 200, []byte{all[0][200] ^ 1}) },
		"a torn map":    func() { write(file+".map", 40, []byte{9, 9, 9}) },
		"an empty map":  func() { truncate(t, file+".map", 0) },
		"half a record": func() { truncate(t, file+".map", 40) },
		"no map":        func() { remove(t, file+".map") },
		"no file":       func() { remove(t, file) },
		"a short file":  func() { truncate(t, file, 1000) },
		"zeros":         func() { write(file, 0, make([]byte, 80000)) },
		"a longer file": func() { truncate(t, file, bigSize+1) },
	} {
		for _, open := range []bool{false, true} {
			if !open {
				if err := c.Close(); err != nil {
					t.Fatal(err)
				}
			}
			before := ranged(s)
			damage()
			if !open {
				c = newCache(t, o)
			}
			t.Log(name, open)
			check()
			// An open cache knows what is there, and needs no more of a file.
			if lost := ranged(s) > before; !lost && (!open || name == "a flipped bit" || name == "zeros" || name == "no file") {
				t.Errorf("%s cost no request", name)
			}
		}
		// The next damage meets a file that is whole.
		reopen()
		check()
	}
}

func truncate(t *testing.T, name string, n int64) {
	t.Helper()
	if err := os.Truncate(name, n); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, name string) {
	t.Helper()
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
}

// A piece that is damaged while the cache is open is fetched again.
func TestDamagedPiece(t *testing.T) {
	s, _, all := bigStore(t, 1)
	c := newCache(t, cache.Options{Dir: t.TempDir(), RangeBytes: 64 << 20})
	readRange(t, c, s, 0, all[0], 0, 200_000)
	c.Settle()
	if err := os.WriteFile(c.SparseFiles()[0], make([]byte, bigSize), 0o600); err != nil {
		t.Fatal(err)
	}
	readRange(t, c, s, 0, all[0], 10, 150000)
	if got := c.Stats().Ranges; got.Damaged == 0 || ranged(s) != 2 {
		t.Errorf("%d requests, %+v", ranged(s), got)
	}
}

// TestDamageIsTold: whatever is wrong with a file of the cache is told once, and
// what a crash may leave is not.
func TestDamageIsTold(t *testing.T) {
	type told struct {
		Key  string
		Span cache.Span
	}
	for _, tc := range []struct {
		name   string
		whole  bool // a whole file, not one of ranges
		open   bool // while the cache is open
		damage func(file string)
		want   []told
	}{
		{"a flipped bit", false, false, func(f string) { flip(t, f, 70_000) }, []told{{"b0", cache.Span{Offset: 65536, Length: 34464}}}},
		{"no file", false, true, func(f string) { remove(t, f) }, []told{{"b0", cache.Span{Length: 65536}}}},
		{"a short file", false, true, func(f string) { truncate(t, f, 1000) }, []told{{"b0", cache.Span{Length: 65536}}, {"b0", cache.Span{Offset: 65536, Length: 34464}}}},
		{"a short file at the start", false, false, func(f string) { truncate(t, f, 1000) }, []told{{"", cache.Span{Length: bigSize}}}},
		{"a torn map", false, false, func(f string) { truncate(t, f+".map", 40) }, nil},
		{"nothing", false, false, func(string) {}, nil},
		{"a flipped bit of a whole file", true, false, func(f string) { flip(t, f, 70_000) }, []told{{"b0", cache.Span{Length: bigSize}}}},
		{"a whole file is gone", true, true, func(f string) { remove(t, f) }, []told{{"b0", cache.Span{Length: bigSize}}}},
		{"a whole file is short at the start", true, false, func(f string) { truncate(t, f, 1000) }, []told{{"", cache.Span{Length: bigSize}}}},
		{"nothing of a whole file", true, false, func(string) {}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, _, all := bigStore(t, 1)
			var got []told
			o := cache.Options{Dir: t.TempDir(), RangeBytes: 64 << 20, FileBytes: 64 << 20, Events: cache.Events{Damaged: func(d cache.Damage) {
				if !errors.Is(d.Err, cache.ErrDamaged) || filepath.Dir(d.Path) == "." {
					t.Errorf("told %+v", d)
				}
				got = append(got, told{d.Key, d.Span})
			}}}
			c := newCache(t, o)
			ask := func() string {
				if !tc.whole {
					readRange(t, c, s, 0, all[0], 0, 100_000)
					c.Settle()
					return c.SparseFiles()[0]
				}
				path, release, err := c.File(t.Context(), s, "b0", bigSize)
				if err != nil {
					t.Fatal(err)
				}
				release()
				have, err := os.ReadFile(path)
				if err != nil || !bytes.Equal(have[:100_000], all[0][:100_000]) {
					t.Fatalf("other bytes, %v", err)
				}
				return path
			}
			file := ask()
			if !tc.open {
				if err := c.Close(); err != nil {
					t.Fatal(err)
				}
			}
			tc.damage(file)
			if !tc.open {
				c = newCache(t, o)
			}
			ask()
			ask()
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func flip(t *testing.T, name string, at int64) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	b[at] ^= 1
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// A full disk costs requests and nothing else.
func TestFullDisk(t *testing.T) {
	s, _, all := bigStore(t, 2)
	c := newCache(t, cache.Options{Dir: t.TempDir(), RangeBytes: 64 << 20, MemoryBytes: 100 << 10})
	c.FailWrites(syscall.ENOSPC)
	for range 2 {
		readRange(t, c, s, 0, all[0], 0, 1<<20)
	}
	c.Settle()
	if got := c.Stats().Ranges; got.Unwritten == 0 || got.DiskBytes != 0 || got.Damaged != 0 {
		t.Errorf("%+v", got)
	}
	c.FailWrites(nil)
	readRange(t, c, s, 1, all[1], 0, 1<<20)
	c.Settle()
	before := ranged(s)
	readRange(t, c, s, 1, all[1], 0, 1<<20)
	if n := ranged(s) - before; n != 0 {
		t.Errorf("%d requests once there was room again", n)
	}
}

// What is larger than the disk's share is not kept, and harms nothing.
func TestNoRoomOnDisk(t *testing.T) {
	s, _, all := bigStore(t, 2)
	c := newCache(t, cache.Options{Dir: t.TempDir(), RangeBytes: 64 << 10})
	for range 2 {
		readRange(t, c, s, 0, all[0], 0, 1<<20)
		c.Settle()
	}
	if got := c.Stats().Ranges; len(c.SparseFiles()) != 0 || got.Unwritten != 2 || got.Damaged != 0 || ranged(s) != 2 {
		t.Errorf("%d files, %d requests, %+v", len(c.SparseFiles()), ranged(s), got)
	}
}

// A file that is being written is not let go for another one.
func TestWrittenFileStays(t *testing.T) {
	s, _, all := bigStore(t, 2)
	c := newCache(t, cache.Options{Dir: t.TempDir(), RangeBytes: 3 << 20})
	writing, goOn := make(chan struct{}), make(chan struct{})
	c.HoldFirstWrite(func() { close(writing); <-goOn })
	readRange(t, c, s, 0, all[0], 0, 2<<20)
	<-writing
	readRange(t, c, s, 1, all[1], 0, 2<<20)
	for t.Context().Err() == nil && c.Stats().Ranges.Unwritten+c.Stats().Ranges.Evicted == 0 {
		time.Sleep(time.Millisecond)
	}
	close(goOn)
	c.Settle()
	before := ranged(s)
	readRange(t, c, s, 0, all[0], 0, 2<<20)
	if got := c.Stats().Ranges; ranged(s) != before || got.Unwritten != 1 || got.Evicted != 0 {
		t.Errorf("%d requests, %+v", ranged(s)-before, got)
	}
}

// stubborn is a store whose first ranged read answers late, whoever has gone.
type stubborn struct {
	storage.Store
	asked  chan struct{}
	answer chan struct{}
	seen   atomic.Bool
}

func (s *stubborn) GetRange(ctx context.Context, key string, offset, length int64) ([]byte, error) {
	if !s.seen.Swap(true) {
		close(s.asked)
		<-s.answer
		ctx = context.WithoutCancel(ctx)
	}
	return s.Store.GetRange(ctx, key, offset, length)
}

// What comes after everybody has left does no harm to the file that was made
// meanwhile.
func TestLateAnswer(t *testing.T) {
	inner, _, all := bigStore(t, 1)
	s := &stubborn{Store: inner, asked: make(chan struct{}), answer: make(chan struct{})}
	c := newCache(t, cache.Options{Dir: t.TempDir(), RangeBytes: 64 << 20})
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() {
		_, err := c.ReadRange(ctx, s, "b0", bigSize, 1<<20, 100_000)
		left <- err
	}()
	<-s.asked
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	readRange(t, c, inner, 0, all[0], 0, 100_000)
	for len(c.SparseFiles()) == 0 {
		if t.Context().Err() != nil {
			t.Fatal("nothing comes to disk")
		}
		time.Sleep(time.Millisecond)
	}
	file := c.SparseFiles()[0]
	close(s.answer)
	if err := c.Close(); err != nil { // waits for it
		t.Fatal(err)
	}
	have, err := os.ReadFile(file)
	if err != nil || !bytes.Equal(have[:100_000], all[0][:100_000]) {
		t.Errorf("a file has other bytes, %v", err)
	}
	if !bytes.Equal(have[1<<20:1<<20+100_000], make([]byte, 100_000)) {
		t.Error("what was given up came to disk")
	}
}

func TestRangesOfLocalStore(t *testing.T) {
	s, err := local.New(t.TempDir(), local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	data := randomBytes(0, 1000)
	if _, err := s.PutIfAbsent(t.Context(), "b0", data); err != nil {
		t.Fatal(err)
	}
	c := newCache(t, cache.Options{Dir: t.TempDir(), RangeBytes: 1 << 20, MemoryBytes: 1 << 20})
	readRange(t, c, s, 0, data, 10, 500)
	if got := c.Stats().Ranges; got != (cache.RangeStats{}) {
		t.Errorf("%+v", got)
	}
}

// Many goroutines over little room, with faults and callers that leave: what
// is handed out is right, and the bounds hold.
func TestRangesStress(t *testing.T) {
	s, f, all := bigStore(t, 6)
	f.Inject(fault.Fault{When: func(c fault.Call) bool { return c.Index%13 == 3 }, Mode: fault.Before, Times: -1})
	o := cache.Options{Dir: t.TempDir(), RangeBytes: 4 << 20, MemoryBytes: 1 << 20}
	c := newCache(t, o)
	var group sync.WaitGroup
	for worker := range 8 {
		group.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(worker)))
			for range 80 {
				i, offset := random.IntN(6), random.Int64N(bigSize-1)
				length := 1 + random.Int64N(min(400<<10, bigSize-offset))
				ctx, cancel := context.WithCancel(t.Context())
				if random.IntN(4) == 0 {
					go cancel()
				}
				key := fmt.Sprintf("b%d", i)
				got, err := c.ReadRange(ctx, s, key, bigSize, offset, length)
				cancel()
				switch {
				case err == nil:
					if !bytes.Equal(got, all[i][offset:offset+length]) {
						t.Error("other bytes")
					}
				case errors.Is(err, context.Canceled), errors.Is(err, storage.ErrUnavailable):
				default:
					t.Error(err)
				}
				if got := c.Stats().Ranges; got.MemoryBytes > o.MemoryBytes || got.DiskBytes > o.RangeBytes || got.DiskBytes < 0 {
					t.Errorf("%+v", got)
				}
			}
		})
	}
	group.Wait()
}
