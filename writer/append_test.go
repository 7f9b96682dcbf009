package writer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"cardinalsin/internal/symbols"
	"cardinalsin/shard"
	"cardinalsin/storage/mem"
	"cardinalsin/wal"
)

// gate holds up WAL appends until it is opened, and counts them.
type gate struct {
	arrived chan string   // a call has come
	open    chan struct{} // one receive lets one call through
}

func gatedWriter(t *testing.T, opts Options) (*Writer, *gate, *spyWAL) {
	t.Helper()
	g := &gate{arrived: make(chan string, 1000), open: make(chan struct{})}
	spy := &spyWAL{Log: openWAL(t, t.TempDir())}
	w := openWriter(t, createTable(t, mem.New(mem.Options{})), spy, opts)
	spy.before = func(call string) error {
		g.arrived <- call
		<-g.open
		return nil
	}
	return w, g, spy
}

func (w *Writer) queued() int {
	w.queueMu.Lock()
	defer w.queueMu.Unlock()
	return len(w.queue)
}

func waitFor(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// Batches that arrive while the disk is busy share the next write and the
// next fsync; nothing is acknowledged, or readable, before it.
func TestGroupCommit(t *testing.T) {
	const n = 64
	var fsyncs atomic.Int64
	g := &gate{arrived: make(chan string, 1000), open: make(chan struct{})}
	disk, err := wal.Open(t.TempDir(), wal.Options{Events: wal.Events{
		SyncEnd: func(int64, time.Duration, error) { fsyncs.Add(1) },
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close() //nolint:errcheck // the test has failed before, if at all
	spy := &spyWAL{Log: disk}
	w := openWriter(t, createTable(t, mem.New(mem.Options{})), spy, Options{})
	spy.before = func(call string) error {
		g.arrived <- call
		<-g.open
		return nil
	}
	var acked atomic.Int64
	var group errgroup.Group
	want := rows{}
	send := func(i int) {
		b := one("m", []string{"i", fmt.Sprint(i)}, at0(0, float64(i)))
		want.addBatch(b)
		group.Go(func() error {
			defer acked.Add(1)
			return w.Append(t.Context(), b)
		})
	}
	send(0)
	if call := <-g.arrived; call != "append 1" {
		t.Fatalf("first call: %s", call)
	}
	for i := 1; i < n; i++ {
		send(i)
	}
	waitFor(t, "the others to queue", func() bool { return w.queued() == n-1 })
	if a, v := acked.Load(), viewRows(w.Head()); a != 0 || len(v) != 0 {
		t.Errorf("before the disk answers, %d are acknowledged, and the head holds\n%s", a, v)
	}
	g.open <- struct{}{}
	if call := <-g.arrived; call != fmt.Sprintf("append %d", n-1) {
		t.Errorf("second call: %s", call)
	}
	waitFor(t, "the first acknowledgement", func() bool { return acked.Load() > 0 })
	time.Sleep(20 * time.Millisecond) // for any that come too early
	if a := acked.Load(); a != 1 {
		t.Errorf("%d are acknowledged after the first write", a)
	}
	if v := viewRows(w.Head()); len(v) != 1 {
		t.Errorf("after the first write the head holds\n%s", v)
	}
	close(g.open)
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if got := fsyncs.Load(); got != 2 {
		t.Errorf("%d fsyncs for %d batches, want 2", got, n)
	}
	if d := gocmp.Diff(want, viewRows(w.Head()), gocmp.AllowUnexported(point{})); d != "" {
		t.Errorf("head (-want +got):\n%s", d)
	}
}

// A caller whose context ends while its batch waits takes it back: nothing of
// it is stored. If the turn to write had come to it, the next one writes.
func TestWithdraw(t *testing.T) {
	for name, cancelAfterTurn := range map[string]bool{"waiting": false, "about to lead": true} {
		t.Run(name, func(t *testing.T) {
			w, g, _ := gatedWriter(t, Options{})
			ctx, cancel := context.WithCancel(t.Context())
			var group errgroup.Group
			group.Go(func() error { return w.Append(t.Context(), one("first", nil, at0(0, 1))) })
			<-g.arrived
			gone := make(chan error, 1)
			p := &pending{batch: one("gone", nil, at0(0, 1)), bytes: 1, turn: make(chan turn, 2)}
			p.sets = setsOf(t, p.batch)
			var err error
			if p.record, err = wal.Encode(p.batch, p.sets); err != nil {
				t.Fatal(err)
			}
			if cancelAfterTurn {
				// Queued by hand, so that the turn comes before the look at
				// the context.
				w.queueMu.Lock()
				w.queue = append(w.queue, p)
				w.queueBytes += p.bytes
				w.queueMu.Unlock()
			} else {
				go func() { gone <- w.submit(ctx, p) }()
			}
			waitFor(t, "the second to queue", func() bool { return w.queued() == 1 })
			group.Go(func() error { return w.Append(t.Context(), one("last", nil, at0(0, 1))) })
			waitFor(t, "the third to queue", func() bool { return w.queued() == 2 })
			if cancelAfterTurn {
				g.open <- struct{}{}
				waitFor(t, "the turn", func() bool { return len(p.turn) == 1 })
				if !w.withdraw(p) {
					t.Error("could not withdraw")
				}
			} else {
				cancel()
				if err := <-gone; !errors.Is(err, context.Canceled) {
					t.Errorf("withdrawn append: %v", err)
				}
			}
			cancel()
			close(g.open)
			if err := group.Wait(); err != nil {
				t.Fatal(err)
			}
			want := rows{}
			want.addBatch(one("first", nil, at0(0, 1)))
			want.addBatch(one("last", nil, at0(0, 1)))
			if d := gocmp.Diff(want, viewRows(w.Head()), gocmp.AllowUnexported(point{})); d != "" {
				t.Errorf("head (-want +got):\n%s", d)
			}
			if w.queueBytes != 0 || w.leading {
				t.Errorf("%d bytes in the queue, leading %t", w.queueBytes, w.leading)
			}
		})
	}
}

// A context that ends while the batch is being written leaves it to the disk:
// the caller is told what became of it.
func TestNoWithdrawalFromTheDisk(t *testing.T) {
	w, g, _ := gatedWriter(t, Options{})
	var group errgroup.Group
	group.Go(func() error { return w.Append(t.Context(), one("first", nil, at0(0, 1))) })
	<-g.arrived
	ctx, cancel := context.WithCancel(t.Context())
	group.Go(func() error { return w.Append(t.Context(), one("second", nil, at0(0, 1))) })
	waitFor(t, "the second to queue", func() bool { return w.queued() == 1 })
	third := make(chan error, 1)
	go func() { third <- w.Append(ctx, one("third", nil, at0(0, 1))) }()
	waitFor(t, "the third to queue", func() bool { return w.queued() == 2 })
	g.open <- struct{}{}
	<-g.arrived // the second leads, and writes the third too
	cancel()
	close(g.open)
	if err := <-third; err != nil {
		t.Errorf("third: %v", err)
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if got := len(viewRows(w.Head())); got != 3 {
		t.Errorf("the head holds %d rows, want 3", got)
	}
	if err := w.Append(ctx, one("fourth", nil, at0(0, 1))); !errors.Is(err, context.Canceled) {
		t.Errorf("append with a context that has ended: %v", err)
	}
}

// A disk that is full or broken acknowledges nothing, of none of the batches
// in the group; when it is well again, so is the writer.
func TestDiskFails(t *testing.T) {
	for name, failure := range map[string]error{"full": wal.ErrFull, "failed": wal.ErrFailed} {
		t.Run(name, func(t *testing.T) {
			store := mem.New(mem.Options{})
			spy := &spyWAL{Log: openWAL(t, t.TempDir())}
			w := openWriter(t, createTable(t, store), spy, Options{})
			mustAppend(t, w, one("kept", nil, at0(0, 1)))
			spy.before = func(call string) error {
				if call == "append 1" || errors.Is(failure, wal.ErrFailed) && call == "sync" {
					return failure
				}
				return nil
			}
			if err := w.Append(t.Context(), one("lost", nil, at0(0, 1))); !errors.Is(err, failure) {
				t.Fatalf("Append: %v", err)
			}
			want := rows{}
			want.addBatch(one("kept", nil, at0(0, 1)))
			if d := gocmp.Diff(want, viewRows(w.Head()), gocmp.AllowUnexported(point{})); d != "" {
				t.Errorf("head (-want +got):\n%s", d)
			}
			mustFlush(t, w) // what was acknowledged still goes out
			if d := gocmp.Diff(want, tableRows(t, store), gocmp.AllowUnexported(point{})); d != "" {
				t.Errorf("table (-want +got):\n%s", d)
			}
			spy.before = nil
			mustAppend(t, w, one("later", nil, at0(0, 1)))
			want.addBatch(one("later", nil, at0(0, 1)))
			if err := w.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			if d := gocmp.Diff(want, tableRows(t, store), gocmp.AllowUnexported(point{})); d != "" {
				t.Errorf("table (-want +got):\n%s", d)
			}
		})
	}
}

// A WAL that cannot be truncated fails the flush after its commit: the rows
// are in the table, once, and not in the head; the next flush truncates.
func TestTruncateFails(t *testing.T) {
	store := mem.New(mem.Options{})
	spy := &spyWAL{Log: openWAL(t, t.TempDir())}
	w := openWriter(t, createTable(t, store), spy, Options{})
	mustAppend(t, w, one("m", nil, at0(0, 1)))
	var calls []string
	spy.before = func(call string) error {
		calls = append(calls, call)
		if call == "truncate through 1" {
			return wal.ErrFull
		}
		return nil
	}
	if err := w.Flush(t.Context()); !errors.Is(err, wal.ErrFull) {
		t.Fatalf("Flush: %v", err)
	}
	if v := viewRows(w.Head()); len(v) != 0 {
		t.Errorf("the head holds\n%s", v)
	}
	if got := len(tableRows(t, store)); got != 1 {
		t.Errorf("the table holds %d rows", got)
	}
	spy.before = func(call string) error { calls = append(calls, call); return nil }
	mustFlush(t, w)
	if d := gocmp.Diff([]string{"sync", "truncate through 1", "truncate through 1"}, calls); d != "" {
		t.Errorf("calls (-want +got):\n%s", d)
	}
}

func TestOverload(t *testing.T) {
	b := one("m", nil, at0(0, 1))
	everything := shard.Initial()
	v, err := validate(b, &everything, new(symbols.Batch))
	if err != nil {
		t.Fatal(err)
	}
	t.Run("head", func(t *testing.T) {
		w, _ := newWriter(t, Options{MaxHeadBytes: 3 * v.bytes, MaxDelay: 1})
		n := 0
		for ; n < 100; n++ {
			if err = w.Append(t.Context(), one("m", []string{"n", fmt.Sprint(n)}, at0(int64(n), 1))); err != nil {
				break
			}
		}
		if !errors.Is(err, ErrOverloaded) || n == 0 || n == 100 {
			t.Fatalf("append %d: %v", n, err)
		}
		if got := w.headBytes.Load(); got > 3*v.bytes {
			t.Errorf("the head takes %d bytes, limit %d", got, 3*v.bytes)
		}
		if got := len(viewRows(w.Head())); got != n {
			t.Errorf("the head holds %d rows, %d were acknowledged", got, n)
		}
		mustFlush(t, w)
		if got := w.headBytes.Load(); got != 0 {
			t.Errorf("an empty head takes %d bytes", got)
		}
		mustAppend(t, w, b)
	})
	t.Run("batch above the limit", func(t *testing.T) {
		w, _ := newWriter(t, Options{MaxHeadBytes: 1, MaxQueueBytes: 1, MaxDelay: 1})
		mustAppend(t, w, b) // else it could never be written
		if err := w.Append(t.Context(), b); !errors.Is(err, ErrOverloaded) {
			t.Errorf("second: %v", err)
		}
	})
	t.Run("queue", func(t *testing.T) {
		w, g, _ := gatedWriter(t, Options{MaxQueueBytes: 2 * v.bytes})
		var group errgroup.Group
		group.Go(func() error { return w.Append(t.Context(), b) })
		<-g.arrived
		group.Go(func() error { return w.Append(t.Context(), b) })
		waitFor(t, "the second to queue", func() bool { return w.queued() == 1 })
		if err := w.Append(t.Context(), b); !errors.Is(err, ErrOverloaded) {
			t.Errorf("third: %v", err)
		}
		close(g.open)
		if err := group.Wait(); err != nil {
			t.Fatal(err)
		}
		mustAppend(t, w, b)
	})
	t.Run("age", func(t *testing.T) {
		now := time.Unix(1_700_000_000, 0)
		w, _ := newWriter(t, Options{MaxUnflushedAge: time.Hour, MaxDelay: 1, Now: func() time.Time { return now }})
		mustAppend(t, w, b)
		now = now.Add(time.Hour)
		mustAppend(t, w, b)
		now = now.Add(time.Second)
		if err := w.Append(t.Context(), b); !errors.Is(err, ErrOverloaded) {
			t.Errorf("above the age: %v", err)
		}
		mustFlush(t, w)
		mustAppend(t, w, b)
	})
}

// Close refuses what comes later, waits for what is on its way, and flushes.
func TestCloseWaits(t *testing.T) {
	w, g, _ := gatedWriter(t, Options{})
	first := make(chan error, 1)
	go func() { first <- w.Append(t.Context(), one("m", nil, at0(0, 1))) }()
	<-g.arrived
	closed := make(chan error, 1)
	go func() { closed <- w.Close(t.Context()) }()
	waitFor(t, "Close to begin", func() bool {
		w.queueMu.Lock()
		defer w.queueMu.Unlock()
		return w.stopped != nil
	})
	if err := w.Append(t.Context(), one("m", nil, at0(1, 1))); !errors.Is(err, ErrClosed) {
		t.Errorf("append after Close: %v", err)
	}
	select {
	case err := <-closed:
		t.Fatalf("Close did not wait: %v", err)
	default:
	}
	close(g.open)
	if err := <-first; err != nil {
		t.Errorf("append: %v", err)
	}
	if err := <-closed; err != nil {
		t.Errorf("close: %v", err)
	}
	if w.committed != 1 {
		t.Errorf("committed through %d", w.committed)
	}
}

// Many appenders, a flusher and readers at once. Every reader, at every
// moment, sees every row that was acknowledged before it looked: in the head
// that it took first, or in the version that it took after.
func TestConcurrent(t *testing.T) {
	const appenders, batches = 8, 40
	store := mem.New(mem.Options{})
	log := createTable(t, store)
	w := openWriter(t, log, openWAL(t, t.TempDir()), Options{})
	acked := rows{}
	var mu sync.Mutex
	var appending, rest errgroup.Group
	done := make(chan struct{})
	for a := range appenders {
		appending.Go(func() error {
			r := rand.New(rand.NewPCG(uint64(a), 1))
			for n := range batches {
				b := one(fmt.Sprintf("m%d", r.IntN(3)), []string{"a", fmt.Sprint(a)}, at0(int64(n), float64(n)), at0(int64(r.IntN(3))*24*3600*1_000_000+int64(n)+1000, 1))
				if err := w.Append(t.Context(), b); err != nil {
					return err
				}
				mu.Lock()
				acked.addBatch(b)
				mu.Unlock()
			}
			return nil
		})
	}
	rest.Go(func() error {
		for {
			select {
			case <-done:
				return nil
			default:
			}
			if err := w.Flush(t.Context()); err != nil {
				return err
			}
		}
	})
	looks := 0
	rest.Go(func() error {
		for {
			select {
			case <-done:
				return nil
			default:
			}
			mu.Lock()
			want := acked.clone()
			mu.Unlock()
			view := w.Head()
			table := tableRows(t, store)
			head := viewRows(view)
			again := viewRows(view)
			if d := gocmp.Diff(head, again, gocmp.AllowUnexported(point{})); d != "" {
				return fmt.Errorf("a view changed: %s", d)
			}
			for p := range want {
				if len(table[p]) == 0 && len(head[p]) == 0 {
					return fmt.Errorf("acknowledged row %v is nowhere", p)
				}
			}
			looks++
		}
	})
	err := appending.Wait()
	close(done)
	if err != nil {
		t.Fatal(err)
	}
	if err := rest.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if d := gocmp.Diff(acked, tableRows(t, store), gocmp.AllowUnexported(point{})); d != "" {
		t.Errorf("table (-want +got):\n%s", d)
	}
	t.Logf("%d looks", looks)
}
