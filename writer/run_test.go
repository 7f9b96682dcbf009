package writer

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"cardinalsin/storage"
	"cardinalsin/storage/fault"
	"cardinalsin/storage/mem"
	"cardinalsin/txlog"
	"cardinalsin/wal"
)

// warm makes what package chunk keeps for all files of a process.
var warm sync.Once

// bubble runs a test with a fake clock. Compressors hold channels, and a channel
// made in a bubble must not be used outside it, nor the reverse. The one that
// chunk shares is therefore made before, and pools are emptied afterwards; and
// nothing in a bubble may read a chunk.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	warm.Do(func() {
		w, _ := newWriter(t, Options{})
		mustAppend(t, w, one("m", nil, at0(0, 1)))
		mustFlush(t, w)
	})
	defer func() {
		runtime.GC() // moves what is pooled aside
		runtime.GC() // frees it
	}()
	synctest.Test(t, f)
}

// runWriter opens a writer over a store that can fail, and runs it, inside a
// bubble. The WAL syncs when a flush needs it, so that thousands of appends
// take no real time.
func runWriter(t *testing.T, opts Options, limits ...wal.Options) (w *Writer, f *fault.Store, store *mem.Store, stop func()) {
	t.Helper()
	store = mem.New(mem.Options{})
	createTable(t, store)
	f = fault.New(store)
	log, err := txlog.Open(t.Context(), f, root, txlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	walOpts := wal.Options{}
	if len(limits) > 0 {
		walOpts = limits[0]
	}
	walOpts.Sync = wal.SyncDeferred
	disk, err := wal.Open(t.TempDir(), walOpts)
	if err != nil {
		t.Fatal(err)
	}
	w = openWriter(t, log, disk, opts)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	return w, f, store, func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
		if err := disk.Close(); err != nil {
			t.Error(err)
		}
	}
}

// version lets everything come to rest and reports the table's version.
func version(t *testing.T, store storage.Store) int64 {
	t.Helper()
	synctest.Wait()
	return int64(latest(t, store).Version())
}

func TestRun(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w, f, store, stop := runWriter(t, Options{FlushAge: 10 * time.Second, FlushBytes: 1 << 20})
		defer stop()

		// Idle costs nothing, however long.
		before := f.Calls()
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if n := f.Calls() - before; n != 0 {
			t.Errorf("%d store calls in an idle day", n)
		}

		// By age, counted from the oldest sample.
		mustAppend(t, w, one("m", nil, at0(1, 1)))
		time.Sleep(6 * time.Second)
		mustAppend(t, w, one("m", nil, at0(2, 1)))
		time.Sleep(4*time.Second - time.Millisecond)
		if v := version(t, store); v != 0 {
			t.Errorf("version %d before the age is reached", v)
		}
		time.Sleep(time.Millisecond)
		if v := version(t, store); v != 1 {
			t.Errorf("version %d when the age is reached", v)
		}
		time.Sleep(time.Hour)
		if v := version(t, store); v != 1 {
			t.Errorf("version %d with nothing new", v)
		}

		// By size, at once.
		for i := 0; w.headBytes.Load() < 1<<20; i++ {
			mustAppend(t, w, one("m", []string{"i", fmt.Sprint(i)}, at0(int64(i), 1)))
		}
		if v := version(t, store); v != 2 {
			t.Errorf("version %d when the size is reached", v)
		}
	})
}

// A WAL that is full is flushed and truncated at once, not when a sample is old
// enough.
func TestFullWALIsFlushed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w, _, store, stop := runWriter(t, Options{FlushAge: time.Hour}, wal.Options{MaxBytes: 64 << 10})
		defer stop()
		full := 0
		for i := range 2000 {
			err := w.Append(t.Context(), one("m", []string{"i", fmt.Sprint(i)}, at0(int64(i), 1)))
			switch {
			case errors.Is(err, wal.ErrFull):
				full++
				synctest.Wait()
			case err != nil:
				t.Fatal(err)
			}
		}
		if v := version(t, store); full == 0 || int64(full) != v {
			t.Errorf("full %d times, flushed %d times", full, v)
		}
	})
}

// Recovery of a WAL that is larger than the head may be flushes on the way.
func TestRecoveryInPieces(t *testing.T) {
	store := mem.New(mem.Options{})
	dir := t.TempDir()
	disk := openWAL(t, dir)
	w := openWriter(t, createTable(t, store), disk, Options{})
	want := rows{}
	for i := range 100 {
		b := one("m", []string{"i", fmt.Sprint(i)}, at0(int64(i), 1))
		mustAppend(t, w, b)
		want.addBatch(b)
	}
	all := w.headBytes.Load()
	limit := all / 4

	// No flush came before the crash.
	most := int64(0)
	next := openWriter(t, openTable(t, store), openWAL(t, copyDir(t, dir)), Options{FlushBytes: limit, Events: Events{FlushEnd: func(e FlushEvent) {
		most = max(most, e.Rows)
	}}})
	if got := next.headBytes.Load(); got > limit+all/50 {
		t.Errorf("after recovery the head takes %d bytes, limit %d", got, limit)
	}
	if most == 0 || most > 30 {
		t.Errorf("a flush of %d rows on the way", most)
	}
	got := tableRows(t, store)
	for p, v := range viewRows(next.Head()) {
		if got[p] != nil {
			t.Errorf("%v is in the table and in the head", p)
		}
		got[p] = v
	}
	if d := gocmp.Diff(want, got, gocmp.AllowUnexported(point{})); d != "" {
		t.Errorf("table and head (-want +got):\n%s", d)
	}
	if err := next.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if d := gocmp.Diff(want, tableRows(t, store), gocmp.AllowUnexported(point{})); d != "" {
		t.Errorf("table (-want +got):\n%s", d)
	}
}

// The flush number goes on from the files that are there, also when the
// store's clock is behind them, so that what comes later ranks higher.
func TestOrderSurvivesTheClock(t *testing.T) {
	now := time.Unix(2_000_000_000, 0)
	store := mem.New(mem.Options{Now: func() time.Time { return now }})
	dir := t.TempDir()
	w := openWriter(t, createTable(t, store), openWAL(t, dir), Options{})
	mustAppend(t, w, one("m", nil, at0(1, 1)))
	if err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	now = now.Add(-time.Hour)
	w = openWriter(t, openTable(t, store), openWAL(t, copyDir(t, dir)), Options{})
	mustAppend(t, w, one("m", nil, at0(1, 2)))
	mustFlush(t, w)
	if got, want := mergedTable(t, store), "1+0=2"; got != want {
		t.Errorf("table shows %q, want %q", got, want)
	}
}
