package writer

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
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

// The store is out for a minute, and for two hours, under load. Every batch is
// taken; memory stays bounded; tries are few; what is read meanwhile says that
// it is not everything; and when the store is back the backlog goes into the
// table piece by piece, once, with no more commits than its size asks for.
func TestOutage(t *testing.T) {
	for _, tc := range []struct {
		name         string
		outage, step time.Duration
		series       int
		head, flush  int64
	}{
		{"a minute", time.Minute, 50 * time.Millisecond, 10, 64 << 10, 16 << 10},
		{"two hours", 2 * time.Hour, 6 * time.Second, 10, 64 << 10, 16 << 10},
	} {
		t.Run(tc.name, func(t *testing.T) {
			want := rows{}
			var table *mem.Store
			bubble(t, func(t *testing.T) {
				const slack = 8 << 10 // by which the slices of one batch may grow at once
				var tries, commits, stored atomic.Int64
				most := int64(0)
				w, f, store, stop := runWriter(t, Options{
					FlushBytes: tc.flush, MaxHeadBytes: tc.head,
					Events: Events{FlushEnd: func(e FlushEvent) {
						tries.Add(1)
						if e.Err == nil {
							commits.Add(1)
							stored.Add(e.Rows)
						}
					}},
				})
				defer stop()
				table = store
				send := func(i int) {
					t.Helper()
					for j := range tc.series {
						b := one("m", []string{"i", fmt.Sprint(j)}, at0(int64(i), float64(j)))
						mustAppend(t, w, b)
						want.addBatch(b)
					}
					most = max(most, w.headBytes.Load())
				}
				send(0)
				if err := w.Head().Err(); err != nil {
					t.Errorf("before the outage: %v", err)
				}
				f.Inject(fault.Fault{Mode: fault.Before, Times: -1})
				i, began, incomplete := 1, time.Now(), 0
				for time.Since(began) < tc.outage {
					send(i)
					i++
					switch err := w.Head().Err(); {
					case errors.Is(err, ErrIncomplete):
						incomplete++
					case err != nil || i%50 == 0 && len(viewRows(w.Head())) != len(want):
						t.Fatalf("a view of %d of %d rows, error %v", len(viewRows(w.Head())), len(want), err)
					}
					time.Sleep(tc.step)
				}
				synctest.Wait()
				s := w.Stats()
				if incomplete == 0 || s.Behind == 0 || s.HeadBytes > tc.head+slack {
					t.Errorf("%d incomplete views, %+v", incomplete, s)
				}
				// A pause of 15 to 30 s, less at the start.
				seconds := int64(tc.outage / time.Second)
				if n := tries.Load(); n < seconds/30 || n > seconds/15+10 {
					t.Errorf("%d tries in %d s", n, seconds)
				}

				// It comes back, and the load goes on.
				calls, backlog := f.Calls(), w.headBytes.Load()
				f.Clear()
				for back := time.Now(); time.Since(back) < 31*time.Second; i++ {
					send(i)
					time.Sleep(tc.step)
				}
				synctest.Wait()
				if s := w.Stats(); s.Behind != 0 || w.Head().Err() != nil {
					t.Errorf("half a minute after the outage: %+v, %v", s, w.Head().Err())
				}
				if most > tc.head+slack {
					t.Errorf("the head took %d bytes, limit %d", most, tc.head)
				}
				// Each commit but a few takes a head that was due; and each takes
				// its files, the version and a look at the latest one.
				if n, limit := commits.Load(), 10+2*int64(len(want))*sampleBytes/tc.flush+backlog/tc.flush; n > limit {
					t.Errorf("%d commits for %d rows, limit %d", n, len(want), limit)
				}
				if n := int64(f.Calls() - calls); n > 20+8*commits.Load() {
					t.Errorf("%d store calls for %d commits", n, commits.Load())
				}
				if err := w.Close(t.Context()); err != nil {
					t.Fatal(err)
				}
				if stored.Load() != int64(len(want)) {
					t.Errorf("%d rows committed of %d", stored.Load(), len(want))
				}
			})
			if d := gocmp.Diff(want, tableRows(t, table), gocmp.AllowUnexported(point{})); d != "" {
				t.Errorf("table (-want +got):\n%.2000s", d)
			}
		})
	}
}

// The WAL has a limit: what is above it is refused, and stored nowhere; when
// the store is back there is room again.
func TestOutageBeyondTheWAL(t *testing.T) {
	want := rows{}
	var table *mem.Store
	bubble(t, func(t *testing.T) {
		const limit = 256 << 10
		w, f, store, stop := runWriter(t, Options{FlushBytes: 32 << 10, MaxHeadBytes: 64 << 10}, wal.Options{MaxBytes: limit, SegmentBytes: 32 << 10})
		defer stop()
		table = store
		f.Inject(fault.Fault{Mode: fault.Before, Times: -1})
		full := 0
		for i := 0; full < 10; i++ {
			b := one("m", []string{"i", fmt.Sprint(i % 50)}, at0(int64(i), 1))
			switch err := w.Append(t.Context(), b); {
			case err == nil:
				want.addBatch(b)
			case errors.Is(err, wal.ErrFull) && !errors.Is(err, ErrOverloaded):
				full++
			default:
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if s := w.Stats(); s.WALBytes > limit || s.Behind == 0 {
			t.Errorf("%+v", s)
		}
		f.Clear()
		time.Sleep(31 * time.Second)
		synctest.Wait()
		b := one("after", nil, at0(0, 1))
		mustAppend(t, w, b)
		want.addBatch(b)
		if err := w.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
	if d := gocmp.Diff(want, tableRows(t, table), gocmp.AllowUnexported(point{})); d != "" {
		t.Errorf("table (-want +got):\n%.2000s", d)
	}
}

// A store that neither takes a flush nor fails counts as out after a while; a
// commit that hangs, sooner.
func TestStoreThatHangs(t *testing.T) {
	for _, tc := range []struct {
		op    storage.Op
		limit time.Duration
	}{{storage.OpPut, stallAfter}, {storage.OpPutIfAbsent, commitStallAfter}} {
		t.Run(string(tc.op), func(t *testing.T) { testStoreThatHangs(t, tc.op, tc.limit) })
	}
}

func testStoreThatHangs(t *testing.T, op storage.Op, limit time.Duration) {
	bubble(t, func(t *testing.T) {
		w, f, _, stop := runWriter(t, Options{FlushBytes: 16 << 10, MaxHeadBytes: 64 << 10, MaxDelay: time.Millisecond})
		defer stop()
		release := make(chan struct{})
		f.Inject(fault.Fault{Op: op, Mode: fault.Pass, Times: 1, OnCall: func(context.Context, fault.Call) { <-release }})
		fill := func() error {
			for i := range 10_000 {
				if err := w.Append(t.Context(), one("m", []string{"i", fmt.Sprint(i)}, at0(int64(i), 1))); err != nil {
					return err
				}
				if errors.Is(w.Head().Err(), ErrIncomplete) {
					return nil
				}
			}
			return errors.New("the head took everything")
		}
		if err := fill(); !errors.Is(err, ErrOverloaded) {
			t.Errorf("a head that is full while a flush has just begun: %v", err)
		}
		time.Sleep(limit - time.Second)
		if err := fill(); !errors.Is(err, ErrOverloaded) {
			t.Errorf("shortly before %v: %v", limit, err)
		}
		time.Sleep(2 * time.Second)
		if err := fill(); err != nil {
			t.Errorf("after %v: %v", limit, err)
		}
		close(release)
		time.Sleep(time.Minute)
		synctest.Wait()
		if s := w.Stats(); s.Behind != 0 || s.HeadBytes != 0 || s.Acknowledged != s.Committed {
			t.Errorf("after the release: %+v", s)
		}
	})
}

// The process dies while records are in the WAL only.
func TestCrashInAnOutage(t *testing.T) {
	store := mem.New(mem.Options{})
	createTable(t, store)
	f := fault.New(store)
	dir := t.TempDir()
	w := openWriter(t, openTable(t, f), openWAL(t, dir), Options{FlushBytes: 4 << 10, MaxHeadBytes: 16 << 10})
	f.Inject(fault.Fault{Mode: fault.Before, Times: -1, Op: storage.OpPut})
	want := rows{}
	for i := range 500 {
		b := one("m", []string{"i", fmt.Sprint(i)}, at0(int64(i), 1))
		mustAppend(t, w, b)
		want.addBatch(b)
		if i == 0 {
			if err := w.Flush(t.Context()); err == nil {
				t.Fatal("a flush succeeded")
			}
		}
	}
	if w.Stats().Behind == 0 {
		t.Fatal("the head took everything")
	}
	f.Clear()
	next := openWriter(t, openTable(t, store), openWAL(t, copyDir(t, dir)), Options{FlushBytes: 4 << 10, MaxHeadBytes: 16 << 10})
	if err := next.Head().Err(); err != nil {
		t.Error(err)
	}
	checkOnce(t, store, next, want, want)
}

// spilledWriter is one with records in the WAL only, over a store that is back.
func spilledWriter(t *testing.T) (w *Writer, spy *spyWAL, store *mem.Store, want rows, send func()) {
	t.Helper()
	store = mem.New(mem.Options{})
	createTable(t, store)
	f := fault.New(store)
	spy = &spyWAL{Log: openWAL(t, t.TempDir())}
	w = openWriter(t, openTable(t, f), spy, Options{FlushBytes: 1 << 20, MaxHeadBytes: 1 << 10})
	want = rows{}
	i := 0
	send = func() {
		b := one("m", []string{"i", fmt.Sprint(i)}, at0(int64(i), 1))
		i++
		mustAppend(t, w, b)
		want.addBatch(b)
	}
	send()
	f.Inject(fault.Fault{Mode: fault.Before, Times: -1, Op: storage.OpPut})
	if err := w.Flush(t.Context()); err == nil {
		t.Fatal("a flush succeeded")
	}
	for w.Stats().Behind == 0 {
		send()
	}
	f.Clear()
	return w, spy, store, want, send
}

// Records that come while the backlog is read go to the WAL, and are not
// skipped when the head takes over.
func TestAppendWhileRefilling(t *testing.T) {
	w, spy, store, want, send := spilledWriter(t)
	replays := 0
	spy.after = func(call string) error {
		if strings.HasPrefix(call, "replay") {
			if replays++; replays < maxChases {
				send()
			}
		}
		return nil
	}
	before := want.clone()
	mustFlush(t, w)
	stored := tableRows(t, store)
	for p := range before {
		if stored[p] == nil {
			t.Errorf("row %d was acknowledged before the flush and is not in the table", p.time-day)
		}
	}
	if replays < maxChases {
		t.Errorf("%d replays", replays)
	}
	if err := w.Head().Err(); err != nil {
		t.Error(err)
	}
	send()
	checkOnce(t, store, w, want, want)
}

// A record that is in the WAL and was read back from there before the one who
// wrote it comes to put it into the head is not taken twice.
func TestRefillOvertakesAnAppend(t *testing.T) {
	w, spy, store, want, send := spilledWriter(t)
	spy.after = func(call string) error {
		if strings.HasPrefix(call, "append") {
			spy.after = nil
			mustFlush(t, w)
			if err := w.Head().Err(); err != nil {
				t.Error(err)
			}
		}
		return nil
	}
	send()
	send()
	checkOnce(t, store, w, want, want)
	if err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	checkOnce(t, store, w, want, want)
	if s := w.Stats(); s.HeadBytes != 0 || s.Acknowledged != s.Committed {
		t.Errorf("%+v", s)
	}
}

// Many clients write while the store comes and goes and somebody reads all the
// time: a view that does not say that it is incomplete has, with the version
// read after it, everything that was acknowledged before.
func TestNoSilentGap(t *testing.T) {
	store := mem.New(mem.Options{})
	createTable(t, store)
	f := fault.New(store)
	dir := t.TempDir()
	log, err := txlog.Open(t.Context(), f, root, txlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	disk, err := wal.Open(filepath.Join(dir, "wal"), wal.Options{Sync: wal.SyncDeferred})
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close() //nolint:errcheck // the test is over
	w := openWriter(t, log, disk, Options{
		FlushAge: 2 * time.Millisecond, FlushBytes: 8 << 10, MaxHeadBytes: 24 << 10, MaxDelay: time.Microsecond,
		RetryMin: time.Millisecond, RetryMax: 2 * time.Millisecond, MaxLevelZero: 1 << 20,
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var background, clients sync.WaitGroup
	background.Go(func() {
		if err := w.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	const writers, rounds = 4, 4
	var acked [writers]atomic.Int64
	batch := func(c int, i int64) (string, int64) { return fmt.Sprint(c), i }
	for c := range writers {
		clients.Go(func() {
			for i := int64(0); ctx.Err() == nil; {
				name, offset := batch(c, i)
				err := w.Append(t.Context(), one("m", []string{"c", name, "i", fmt.Sprint(i)}, at0(offset, 1)))
				if errors.Is(err, ErrOverloaded) {
					time.Sleep(time.Millisecond)
					continue
				}
				time.Sleep(200 * time.Microsecond) // so that the writer comes level now and then
				if err != nil {
					t.Error(err)
					return
				}
				i++
				acked[c].Store(i)
			}
		})
	}
	// look takes a view, and checks it if it says that it is complete.
	look := func() (complete bool) {
		var before [writers]int64
		for c := range before {
			before[c] = acked[c].Load()
		}
		view := w.Head()
		if err := view.Err(); err != nil {
			if !errors.Is(err, ErrIncomplete) {
				t.Error(err)
			}
			return false
		}
		seen := tableRows(t, store)
		for p := range viewRows(view) {
			seen[p] = map[string]int{}
		}
		for c, n := range before {
			for i := range n {
				name, offset := batch(c, i)
				p := point{one("m", []string{"c", name, "i", fmt.Sprint(i)})[0].Labels.String(), at0(offset, 0).Time, 0}
				if _, ok := seen[p]; !ok {
					t.Errorf("client %d: row %d of %d is missing", c, i, n)
					return true
				}
			}
		}
		return true
	}
	background.Go(func() {
		defer cancel()
		until := func(complete bool) {
			for began := time.Now(); look() != complete && !t.Failed(); {
				if time.Since(began) > 30*time.Second {
					t.Errorf("no view is complete: %t", complete)
				}
			}
		}
		for range rounds {
			f.Inject(fault.Fault{Mode: fault.Before, Times: -1, Op: storage.OpPut})
			until(false)
			f.Clear()
			until(true)
			look()
		}
	})
	clients.Wait()
	background.Wait()
	f.Clear()
	if err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := rows{}
	for c := range writers {
		for i := range acked[c].Load() {
			name, offset := batch(c, i)
			want.addBatch(one("m", []string{"c", name, "i", fmt.Sprint(i)}, at0(offset, 1)))
		}
	}
	if d := gocmp.Diff(want, tableRows(t, store), gocmp.AllowUnexported(point{})); d != "" {
		t.Errorf("table (-want +got):\n%.2000s", d)
	}
}

// The heads of several writers have one bound: while it is reached, a writer
// refuses, or, when the store is out, goes on in its WAL; and each may have one
// batch. A writer that was closed leaves its part to the others.
func TestBudget(t *testing.T) {
	store := mem.New(mem.Options{})
	createTable(t, store)
	f := fault.New(store)
	budget := NewBudget(16 << 10)
	open := func() *Writer {
		return openWriter(t, openTable(t, f), openWAL(t, t.TempDir()), Options{Budget: budget, MaxDelay: 1, FlushBytes: 4 << 10})
	}
	a, b, c := open(), open(), open()
	i := 0
	sent := rows{}
	send := func(w *Writer) error {
		i++
		batch := one("m", []string{"i", fmt.Sprint(i)}, at0(int64(i), 1))
		err := w.Append(t.Context(), batch)
		if err == nil {
			sent.addBatch(batch)
		}
		return err
	}
	if err := send(b); err != nil {
		t.Fatal(err)
	}
	var err error
	for err == nil {
		err = send(a)
	}
	if !errors.Is(err, ErrOverloaded) || budget.Used() > 16<<10 || a.Stats().Pressure < 0.9 {
		t.Errorf("error %v, %d bytes, %+v", err, budget.Used(), a.Stats())
	}
	if err := send(b); !errors.Is(err, ErrOverloaded) {
		t.Errorf("another writer: %v", err)
	}
	if err := send(c); err != nil {
		t.Errorf("a writer that holds nothing: %v", err)
	}

	f.Inject(fault.Fault{Mode: fault.Before, Times: -1, Op: storage.OpPut})
	for _, w := range []*Writer{a, b, c} {
		if err := w.Flush(t.Context()); err == nil {
			t.Error("a flush succeeded")
		}
		if err := send(w); err != nil || !errors.Is(w.Head().Err(), ErrIncomplete) {
			t.Errorf("in an outage: %v, view %v", err, w.Head().Err())
		}
	}
	if err := a.Close(t.Context()); err == nil {
		t.Error("Close succeeded")
	}
	if got := budget.Used(); got != b.headBytes.Load()+c.headBytes.Load() {
		t.Errorf("%d bytes after one was given up; the others hold %d and %d", got, b.headBytes.Load(), c.headBytes.Load())
	}
	f.Clear()
	for _, w := range []*Writer{a, b, c} {
		if err := w.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if got := budget.Used(); got != 0 {
		t.Errorf("%d bytes in the end", got)
	}
	if d := gocmp.Diff(sent, tableRows(t, store), gocmp.AllowUnexported(point{})); d != "" {
		t.Errorf("table (-want +got):\n%.2000s", d)
	}
}
