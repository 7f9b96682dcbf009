package cache_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"cardinalsin/storage"
	"cardinalsin/storage/cache"
	"cardinalsin/storage/fault"
	"cardinalsin/storage/local"
	"cardinalsin/storage/mem"
	"cardinalsin/storage/meter"
)

// content is the bytes of an object, by its key and size.
func content(key string, size int) []byte {
	data := bytes.Repeat([]byte(key+"|"), size/(len(key)+1)+1)
	return data[:size]
}

// remote is a store that counts, can fail, and holds 20 objects k00 to k19 of
// 100 bytes.
func remote(t *testing.T) (*meter.Store, *fault.Store) {
	t.Helper()
	inner := mem.New(mem.Options{})
	for i := range 20 {
		key := fmt.Sprintf("k%02d", i)
		if _, err := inner.PutIfAbsent(t.Context(), key, content(key, 100)); err != nil {
			t.Fatal(err)
		}
	}
	f := fault.New(inner)
	return meter.New(f, meter.Options{}), f
}

func gets(s *meter.Store) int64 { return s.Snapshot()[storage.OpGet].Calls }

func open(t *testing.T, dir string, maxBytes int64) *cache.Cache {
	t.Helper()
	c, err := cache.Open(dir, maxBytes)
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

// use takes a file, checks its bytes and returns its path and release.
func use(t *testing.T, c *cache.Cache, s storage.Store, key string, size int) (string, func()) {
	t.Helper()
	path, release, err := c.File(t.Context(), s, key, int64(size))
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(data, content(key, size)) {
		t.Errorf("the file of %s holds %d other bytes", key, len(data))
	}
	return path, release
}

func touchAll(t *testing.T, c *cache.Cache, s storage.Store, keys ...string) {
	t.Helper()
	for _, key := range keys {
		_, release := use(t, c, s, key, 100)
		release()
	}
}

func files(t *testing.T, dir, prefix string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, prefix+"*"))
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func TestFetchesOnce(t *testing.T) {
	s, _ := remote(t)
	c := open(t, t.TempDir(), 1000)
	path, release := use(t, c, s, "k00", 100)
	again, release2 := use(t, c, s, "k00", 100)
	if path != again || gets(s) != 1 {
		t.Errorf("%d requests, %s and %s", gets(s), path, again)
	}
	release()
	release() // the second time does nothing
	release2()
	if diff := cmp.Diff(cache.Stats{Files: 1, Bytes: 100, MaxBytes: 1000, Hits: 1, Misses: 1}, c.Stats()); diff != "" {
		t.Error(diff)
	}
}

func TestNames(t *testing.T) {
	s := mem.New(mem.Options{})
	c := open(t, t.TempDir(), 1000)
	for key, want := range map[string]string{"a/b.parquet": ".parquet", "a.b/c": "", "x.Strange Ext": "", "y.toolongtobeanextension": "", "z.": ""} {
		if _, err := s.PutIfAbsent(t.Context(), key, content(key, 10)); err != nil {
			t.Fatal(err)
		}
		path, release := use(t, c, s, key, 10)
		if got := filepath.Ext(path); got != want {
			t.Errorf("%q is kept as %q", key, filepath.Base(path))
		}
		release()
	}
	if _, _, err := c.File(t.Context(), s, "../x", 1); !errors.Is(err, storage.ErrInvalidKey) {
		t.Error(err)
	}
}

func TestEvictsTheLeastRecentlyUsed(t *testing.T) {
	s, _ := remote(t)
	dir := t.TempDir()
	c := open(t, dir, 350)
	touchAll(t, c, s, "k00", "k01", "k02", "k00") // k01 is now the oldest
	touchAll(t, c, s, "k03")
	if n := len(files(t, dir, "obj-")); n != 3 || c.Stats().Evicted != 1 {
		t.Errorf("%d files, %+v", n, c.Stats())
	}
	before := gets(s)
	touchAll(t, c, s, "k00", "k02", "k03")
	if gets(s) != before {
		t.Error("another than the oldest was evicted")
	}
	touchAll(t, c, s, "k01")
	if gets(s) != before+1 {
		t.Error("the oldest was not evicted")
	}
}

func TestInUseIsNotEvicted(t *testing.T) {
	s, _ := remote(t)
	c := open(t, t.TempDir(), 250)
	path0, release0 := use(t, c, s, "k00", 100)
	path1, release1 := use(t, c, s, "k01", 100)
	if _, _, err := c.File(t.Context(), s, "k02", 100); !errors.Is(err, cache.ErrNoRoom) {
		t.Errorf("a third file: %v", err)
	}
	for _, path := range []string{path0, path1} {
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
	release0()
	touchAll(t, c, s, "k02")
	if _, err := os.Stat(path1); err != nil {
		t.Error(err)
	}
	release1()
	if _, _, err := c.File(t.Context(), s, "k03", 251); !errors.Is(err, cache.ErrNoRoom) {
		t.Errorf("larger than the cache: %v", err)
	}
	if _, _, err := c.File(t.Context(), s, "k03", -1); !errors.Is(err, cache.ErrNoRoom) {
		t.Errorf("negative size: %v", err)
	}
}

func TestCallersShareAFetch(t *testing.T) {
	s, f := remote(t)
	c := open(t, t.TempDir(), 1000)
	inside, goOn := make(chan struct{}), make(chan struct{})
	f.Inject(fault.Fault{Op: storage.OpGet, OnCall: func(context.Context, fault.Call) { close(inside); <-goOn }})

	first, cancelFirst := context.WithCancel(t.Context())
	firstDone := make(chan error, 1)
	go func() { _, _, err := c.File(first, s, "k00", 100); firstDone <- err }()
	<-inside
	var group sync.WaitGroup
	for range 16 {
		group.Go(func() {
			path, release, err := c.File(t.Context(), s, "k00", 100)
			if err != nil {
				t.Error(err)
				return
			}
			defer release()
			if data, err := os.ReadFile(path); err != nil || !bytes.Equal(data, content("k00", 100)) {
				t.Errorf("%d bytes, %v", len(data), err)
			}
		})
	}
	for c.Stats().Hits < 16 {
		time.Sleep(time.Millisecond)
	}
	cancelFirst() // the others go on without the one that began
	if err := <-firstDone; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	close(goOn)
	group.Wait()
	if gets(s) != 1 {
		t.Errorf("%d requests", gets(s))
	}
}

func TestFetchThatNobodyWaitsForEnds(t *testing.T) {
	s, f := remote(t)
	dir := t.TempDir()
	c := open(t, dir, 150)
	inside, ended := make(chan struct{}), make(chan struct{})
	f.Inject(fault.Fault{Op: storage.OpGet, OnCall: func(ctx context.Context, _ fault.Call) {
		close(inside)
		<-ctx.Done()
		close(ended)
	}})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { _, _, err := c.File(ctx, s, "k00", 100); done <- err }()
	<-inside
	if _, _, err := c.File(t.Context(), s, "k01", 100); !errors.Is(err, cache.ErrNoRoom) {
		t.Errorf("a running fetch holds no room: %v", err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	<-ended
	// Its room is given back when its temporary file is gone, a moment later.
	// Who comes then begins anew.
	for {
		_, release, err := c.File(t.Context(), s, "k00", 100)
		if errors.Is(err, cache.ErrNoRoom) {
			time.Sleep(time.Millisecond)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		release()
		break
	}
	for c.Stats().Bytes != 100 {
		time.Sleep(time.Millisecond)
	}
	if n := len(files(t, dir, "tmp-")); n != 0 {
		t.Errorf("%d temporary files are left", n)
	}
}

// Each call of the store fails once: the caller hears it, nothing is left, and
// the next try succeeds.
func TestFaults(t *testing.T) {
	const size = 20 << 20 // three requests and one for the size
	for i := 0; ; i++ {
		inner := mem.New(mem.Options{})
		if _, err := inner.PutIfAbsent(t.Context(), "big", content("big", size)); err != nil {
			t.Fatal(err)
		}
		f := fault.New(inner)
		f.FailAt(i, fault.Before)
		dir := t.TempDir()
		c := open(t, dir, size)
		_, release, err := c.File(t.Context(), f, "big", size)
		if f.Fired() == 0 {
			release()
			if err != nil || i != 4 {
				t.Errorf("after %d calls: %v", i, err)
			}
			return
		}
		if !errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("call %d: %v", i, err)
		}
		if left := append(files(t, dir, "tmp-"), files(t, dir, "obj-")...); len(left) != 0 || c.Stats().Bytes != 0 {
			t.Errorf("call %d: left %q, %+v", i, left, c.Stats())
		}
		_, release = use(t, c, f, "big", size)
		release()
	}
}

func TestSizes(t *testing.T) {
	s := mem.New(mem.Options{})
	const big = 9 << 20
	for key, size := range map[string]int{"small": 100, "big": big, "empty": 0} {
		if _, err := s.PutIfAbsent(t.Context(), key, content(key, size)); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	c := open(t, dir, 64<<20)
	for _, x := range []struct {
		key  string
		size int64
	}{{"small", 99}, {"small", 101}, {"small", big}, {"big", big - 1}, {"big", big + 1}, {"big", 100}, {"empty", 1}, {"small", 0}} {
		if _, _, err := c.File(t.Context(), s, x.key, x.size); !errors.Is(err, cache.ErrSizeMismatch) {
			t.Errorf("%s as %d bytes: %v", x.key, x.size, err)
		}
	}
	if n := len(files(t, dir, "")); n != 1 || c.Stats().Bytes != 0 { // the lock
		t.Errorf("%d files are left, %+v", n, c.Stats())
	}
	for key, size := range map[string]int{"small": 100, "big": big, "empty": 0} {
		_, release := use(t, c, s, key, size)
		release()
	}
	if _, _, err := c.File(t.Context(), s, "none", 1); !errors.Is(err, storage.ErrNotFound) {
		t.Error(err)
	}
}

func TestRestart(t *testing.T) {
	s, _ := remote(t)
	dir := t.TempDir()
	c := open(t, dir, 1000)
	touchAll(t, c, s, "k00", "k01", "k02", "k03", "k04")
	paths := map[string]string{}
	for _, key := range []string{"k00", "k01", "k02", "k03", "k04"} {
		path, release := use(t, c, s, key, 100)
		release()
		paths[key] = path
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}

	// What a crash, a bad disk and a stranger leave.
	writeFile := func(path string, data []byte) {
		t.Helper()
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	writeFile(paths["k01"], content("k01", 100)[:60])                         // cut
	writeFile(paths["k02"], bytes.Repeat([]byte{0}, 100))                     // right size, wrong bytes
	writeFile(filepath.Join(dir, "tmp-123"), []byte("half"))                  // a fetch that was under way
	writeFile(filepath.Join(dir, "precious.txt"), []byte("not the cache's"))  // never ours
	writeFile(filepath.Join(dir, "obj-short-1-0"), []byte("not the cache's")) // nor this

	c = open(t, dir, 1000)
	if diff := cmp.Diff(cache.Stats{Files: 4, Bytes: 400, MaxBytes: 1000}, c.Stats()); diff != "" {
		t.Error(diff)
	}
	before := gets(s)
	touchAll(t, c, s, "k00", "k03", "k04")
	if n := gets(s) - before; n != 0 {
		t.Errorf("%d requests for files that were there", n)
	}
	touchAll(t, c, s, "k01", "k02")
	if n := gets(s) - before; n != 2 {
		t.Errorf("%d requests for two damaged files", n)
	}
	if n := len(files(t, dir, "tmp-")); n != 0 {
		t.Errorf("%d temporary files", n)
	}
	for _, name := range []string{"precious.txt", "obj-short-1-0"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}

	// A smaller cache keeps what was used last.
	for i, key := range []string{"k00", "k03", "k04", "k01", "k02"} {
		at := time.Now().Add(time.Duration(i-10) * time.Minute)
		if err := os.Chtimes(paths[key], at, at); err != nil {
			t.Fatal(err)
		}
	}
	c = open(t, dir, 250)
	before = gets(s)
	touchAll(t, c, s, "k01", "k02")
	if n := gets(s) - before; n != 0 || c.Stats().Files != 2 || len(files(t, dir, "obj-"+strings.Repeat("?", 32)+"-")) != 2 {
		t.Errorf("%d requests, %+v", n, c.Stats())
	}
}

// Who waits for a damaged file to be fetched again may leave.
func TestDamagedFileThatNobodyWaitsFor(t *testing.T) {
	s, _ := remote(t)
	dir := t.TempDir()
	c := open(t, dir, 1000)
	path, release := use(t, c, s, "k00", 100)
	release()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, make([]byte, 100), 0o600); err != nil {
		t.Fatal(err)
	}
	c = open(t, dir, 1000)
	for range 50 {
		ctx, cancel := context.WithCancel(t.Context())
		go cancel()
		_, release, err := c.File(ctx, s, "k00", 100)
		if err == nil {
			release()
		} else if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
	touchAll(t, c, s, "k00")
}

func TestFileLostWhileOpen(t *testing.T) {
	s, _ := remote(t)
	c := open(t, t.TempDir(), 1000)
	for name, damage := range map[string]func(string) error{
		"removed": os.Remove,
		"cut":     func(path string) error { return os.Truncate(path, 10) },
	} {
		path, held := use(t, c, s, "k00", 100)
		if err := damage(path); err != nil {
			t.Fatal(err)
		}
		before := gets(s)
		_, release := use(t, c, s, "k00", 100)
		if gets(s) != before+1 {
			t.Errorf("%s: %d requests", name, gets(s)-before)
		}
		held()
		release()
		if got := c.Stats(); got.Files != 1 || got.Bytes != 100 {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestLocalStoreIsNotCopied(t *testing.T) {
	s, err := local.New(t.TempDir(), local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.PutIfAbsent(t.Context(), "a/k", content("a/k", 100)); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	c := open(t, dir, 10) // no room is needed
	path, release := use(t, c, meter.New(s, meter.Options{}), "a/k", 100)
	release()
	if path != s.Path("a/k") || len(files(t, dir, "obj-")) != 0 {
		t.Errorf("path %s", path)
	}
	if _, _, err := c.File(t.Context(), s, "a/k", 99); !errors.Is(err, cache.ErrSizeMismatch) {
		t.Error(err)
	}
	for _, key := range []string{"a/none", "a"} {
		if _, _, err := c.File(t.Context(), s, key, 1); !errors.Is(err, storage.ErrNotFound) {
			t.Error(err)
		}
	}
}

func TestOneProcess(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir, 10)
	if _, err := cache.Open(dir, 10); !errors.Is(err, cache.ErrInUse) {
		t.Errorf("open twice: %v", err)
	}
	for range 2 {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	open(t, dir, 10)
	if _, _, err := c.File(t.Context(), mem.New(mem.Options{}), "k", 1); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

func TestCloseEndsFetches(t *testing.T) {
	s, f := remote(t)
	c := open(t, t.TempDir(), 1000)
	inside := make(chan struct{})
	f.Inject(fault.Fault{Op: storage.OpGet, OnCall: func(ctx context.Context, _ fault.Call) { close(inside); <-ctx.Done() }})
	done := make(chan error, 1)
	go func() { _, _, err := c.File(t.Context(), s, "k00", 100); done <- err }()
	<-inside
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, fs.ErrClosed) {
		t.Error(err)
	}
}

// Many goroutines over a cache that holds a few of the objects: whoever holds
// a file sees its bytes, and the bound holds at every moment.
func TestStress(t *testing.T) {
	s, f := remote(t)
	f.Inject(fault.Fault{When: func(c fault.Call) bool { return c.Index%17 == 3 }, Mode: fault.Before, Times: -1})
	dir := t.TempDir()
	const maxBytes = 850
	c := open(t, dir, maxBytes)
	var group sync.WaitGroup
	for worker := range 8 {
		group.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(worker)))
			for range 150 {
				key := fmt.Sprintf("k%02d", random.IntN(20))
				ctx, cancel := context.WithCancel(t.Context())
				if random.IntN(4) == 0 {
					go cancel()
				}
				path, release, err := c.File(ctx, s, key, 100)
				cancel()
				switch {
				case err == nil:
					data, err := os.ReadFile(path)
					if err != nil || !bytes.Equal(data, content(key, 100)) {
						t.Errorf("%s: %d bytes, %v", key, len(data), err)
					}
					release()
				case errors.Is(err, context.Canceled), errors.Is(err, storage.ErrUnavailable), errors.Is(err, cache.ErrNoRoom):
				default:
					t.Error(err)
				}
				if got := c.Stats().Bytes; got > maxBytes || got < 0 {
					t.Errorf("%d bytes", got)
				}
			}
		})
	}
	group.Wait()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	stats := c.Stats()
	if n := len(files(t, dir, "obj-")); int64(n) != stats.Files || stats.Bytes != stats.Files*100 {
		t.Errorf("%d files, %+v", n, stats)
	}
	if n := len(files(t, dir, "tmp-")); n != 0 {
		t.Errorf("%d temporary files", n)
	}
}

// The deadline of the caller who began the fetch is not that of the others.
func TestDeadlineIsTheCallersOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, f := remote(t)
		c := open(t, t.TempDir(), 1000)
		f.Inject(fault.Fault{Op: storage.OpGet, Delay: time.Minute})
		var group sync.WaitGroup
		for _, limit := range []time.Duration{time.Second, time.Hour} {
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			group.Go(func() {
				_, release, err := c.File(ctx, s, "k00", 100)
				if limit < time.Minute {
					if !errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("limit %v: %v", limit, err)
					}
					return
				}
				if err != nil {
					t.Errorf("limit %v: %v", limit, err)
					return
				}
				release()
			})
		}
		group.Wait()
	})
}

// TestDerived: what is made of objects is made once for all callers, is bounded
// and survives as objects are, and who waited for another's failure tries for
// himself.
func TestDerived(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	c, err := cache.Open(dir, 250)
	if err != nil {
		t.Fatal(err)
	}
	var made atomic.Int64
	write := func(text string) func(context.Context, io.Writer) error {
		return func(_ context.Context, w io.Writer) error {
			made.Add(1)
			_, err := io.WriteString(w, text)
			return err
		}
	}
	same := func(c *cache.Cache, recipe, text string, calls int64) string {
		t.Helper()
		path, release, err := c.Derived(ctx, recipe, ".parquet", int64(len(text)), write(text))
		if err != nil {
			t.Fatal(err)
		}
		defer release()
		data, err := os.ReadFile(path)
		if err != nil || string(data) != text || filepath.Ext(path) != ".parquet" {
			t.Errorf("%s holds %q, %v", path, data, err)
		}
		if n := made.Load(); n != calls {
			t.Errorf("made %d times, want %d", n, calls)
		}
		return path
	}
	a := same(c, "a", "first", 1)
	same(c, "a", "first", 1)
	same(c, "b", "other", 2)
	if c.Holds("a.parquet", 5) {
		t.Error("a recipe is taken for a key")
	}
	if _, _, err := c.Derived(ctx, "c", "", 7, write("eight...")); !errors.Is(err, cache.ErrSizeMismatch) {
		t.Errorf("another size than was said: %v", err)
	}
	if _, _, err := c.Derived(ctx, "c", "", 251, write("")); !errors.Is(err, cache.ErrNoRoom) {
		t.Errorf("more than the cache holds: %v", err)
	}
	failed := errors.New("failed")
	begun, fail := make(chan struct{}), make(chan struct{})
	first := make(chan error)
	go func() {
		_, _, err := c.Derived(ctx, "d", "", 5, func(context.Context, io.Writer) error {
			close(begun)
			<-fail
			return failed
		})
		first <- err
	}()
	<-begun
	second := make(chan error)
	go func() {
		_, release, err := c.Derived(ctx, "d", "", 5, write("right"))
		if err == nil {
			release()
		}
		second <- err
	}()
	for c.Stats().Hits < 2 { // until the second waits for the first
		runtime.Gosched()
	}
	close(fail)
	if err := <-first; !errors.Is(err, failed) {
		t.Errorf("who failed: %v", err)
	}
	if err := <-second; err != nil {
		t.Errorf("who waited for it: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	made.Store(0)
	c = open(t, dir, 250)
	same(c, "a", "first", 0)
	c.Close()
	if err := os.WriteFile(a, []byte("FIRST"), 0o600); err != nil {
		t.Fatal(err)
	}
	same(open(t, dir, 250), "a", "first", 1)
}

// TestHolds: a file is there once it is asked for, until it is let go.
func TestHolds(t *testing.T) {
	s, _ := remote(t)
	c := open(t, t.TempDir(), 100)
	if c.Holds("k00", 100) {
		t.Error("before")
	}
	_, release := use(t, c, s, "k00", 100)
	release()
	if !c.Holds("k00", 100) || c.Holds("k00", 99) || c.Holds("k01", 100) {
		t.Error("after")
	}
	_, release = use(t, c, s, "k01", 100)
	release()
	if c.Holds("k00", 100) {
		t.Error("once another took its place")
	}
}
