package writer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/series"
	"cardinalsin/storage"
	"cardinalsin/storage/fault"
	"cardinalsin/storage/mem"
	"cardinalsin/txlog"
	"cardinalsin/wal"
)

// sweepBatch is the n-th batch of the workloads here: rows that no other
// batch has, and a new label each time; the first spans two days.
func sweepBatch(n int) series.Batch {
	var b series.Batch
	for i := range 3 {
		b = append(b, series.Series{
			Labels: labels.FromStrings(series.MetricName, "m", "i", fmt.Sprint(i), fmt.Sprintf("l%d", n), "x"),
			Samples: []series.Sample{
				at0(int64(n), float64(n)),
				{Time: day + 100, Nanos: uint16(n), Histogram: fmt.Appendf(nil, "h%d", n)},
			},
		})
	}
	if n == 0 {
		b[0].Samples = append(b[0].Samples, at0(24*3600*1_000_000, 1))
	}
	return b
}

// workload writes batches through a store that fails, as one process: it opens
// the table and the WAL, flushes in between, lives through a split of the
// shard map, and closes. acked and sent are what the outside knows.
type workload struct {
	acked, sent rows
	mu          sync.Mutex // guards both
	dir         string     // of the WAL
	spy         func(*spyWAL)
}

func (l *workload) snapshot() (acked, sent rows) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.acked.clone(), l.sent.clone()
}

func (l *workload) append(ctx context.Context, w *Writer, n int) error {
	b := sweepBatch(n)
	l.mu.Lock()
	l.sent.addBatch(b)
	l.mu.Unlock()
	if err := w.Append(ctx, b); err != nil {
		return err
	}
	l.mu.Lock()
	l.acked.addBatch(b)
	l.mu.Unlock()
	return nil
}

// run returns the first error that the process cannot live with. A flush that
// fails is tried again a few times, as Run does.
func (l *workload) run(ctx context.Context, t *testing.T, store storage.Store, inner storage.Store) (err error) {
	log, err := txlog.Open(ctx, store, root, txlog.Options{})
	if err != nil {
		return err
	}
	disk, err := wal.Open(l.dir, wal.Options{})
	if err != nil {
		return err
	}
	defer func() {
		l.dir = copyDir(t, l.dir) // as a crash leaves it, before Close seals
		if cerr := disk.Close(); cerr != nil {
			t.Error(cerr)
		}
	}()
	spied := &spyWAL{Log: disk}
	if l.spy != nil {
		l.spy(spied)
	}
	w, err := Open(ctx, log, spied, Options{Uploads: 1})
	if err != nil {
		return err
	}
	flush := func(f func(context.Context) error) error {
		for try := 0; ; try++ {
			err := f(ctx)
			if err == nil || try == 2 || errors.Is(err, fault.ErrCrashed) {
				return err
			}
		}
	}
	for n, step := range []string{"append", "append", "flush", "append", "split", "flush", "append", "close"} {
		switch step {
		case "append":
			err = l.append(ctx, w, n)
		case "flush":
			err = flush(w.Flush)
		case "close":
			err = flush(w.Close)
		case "split":
			splitMap(t, inner, 1<<63)
		}
		if err != nil {
			return fmt.Errorf("step %d: %s: %w", n, step, err)
		}
	}
	return nil
}

// checkRecovery opens the table and the WAL as the next process does, and
// checks that every acknowledged row is there once, before and after the
// flush, and that the WAL keeps nothing that the table has. land, if set, runs
// between the open and the flush.
func checkRecovery(t *testing.T, store storage.Store, dir string, acked, sent rows, land func()) {
	t.Helper()
	w := openWriter(t, openTable(t, store), openWAL(t, dir), Options{})
	checkOnce(t, store, w, acked, sent)
	if land != nil {
		land()
	}
	if err := w.Close(t.Context()); err != nil {
		t.Fatalf("close after recovery: %v", err)
	}
	if v := viewRows(w.Head()); len(v) != 0 {
		t.Errorf("after Close the head holds\n%s", v)
	}
	checkOnce(t, store, w, acked, sent)
	again := openWriter(t, openTable(t, store), openWAL(t, copyDir(t, dir)), Options{})
	if v := viewRows(again.Head()); len(v) != 0 {
		t.Errorf("after Close the wal holds\n%s", v)
	}
}

// Whatever store call fails, and however: nothing acknowledged is lost or
// doubled, no version names a file that is not there, and the next process,
// or the same one, goes on.
func TestFaultSweep(t *testing.T) {
	type mode struct {
		name  string
		fault fault.Fault
		land  string // when a late write lands: "dead", "open": before or after the next process opens
	}
	var modes []mode
	for _, m := range fault.Modes {
		modes = append(modes, mode{name: m.String(), fault: fault.Fault{Mode: m}})
	}
	for _, land := range []string{"dead", "open"} {
		modes = append(modes, mode{"late-" + land, fault.Fault{Mode: fault.Late, LandAfter: -1}, land})
	}
	stride := 1
	if raceDetector {
		stride = 4
		t.Log("the race detector makes chunks slow: every fourth call only, another one in each mode")
	}
	for k, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			for i := k % stride; ; i += stride {
				store := mem.New(mem.Options{})
				createTable(t, store)
				f := fault.New(store)
				m.fault.Skip = i
				ctx, die := context.WithCancel(t.Context())
				m.fault.OnReturn = func(_ context.Context, _ fault.Call, err error) {
					if errors.Is(err, fault.ErrCrashed) {
						die() // a dead process waits for nothing
					}
				}
				f.Inject(m.fault)
				l := &workload{acked: rows{}, sent: rows{}, dir: t.TempDir()}
				err := l.run(ctx, t, f, store)
				die()
				if f.Fired() == 0 {
					if err != nil {
						t.Fatalf("without a fault: %v", err)
					}
					if i < 18 {
						t.Fatalf("the workload makes %d store calls only", i)
					}
					return
				}
				land := func() { f.Land(t.Context()) }
				if m.land != "open" {
					land()
					land = nil
				}
				checkRecovery(t, store, l.dir, l.acked, l.sent, land)
				if t.Failed() {
					t.Fatalf("call %d failed (%v); the workload ended with: %v", i, m.fault.Mode, err)
				}
			}
		})
	}
}

// The process dies at every point between two steps, on the store or on the
// disk: recovery finds every row that had been acknowledged by then, once.
// At each truncation the table has what is cut off.
func TestCrashAnywhere(t *testing.T) {
	store := mem.New(mem.Options{})
	createTable(t, store)
	l := &workload{acked: rows{}, sent: rows{}, dir: t.TempDir()}
	dir := l.dir
	type moment struct {
		name        string
		store       *mem.Store
		dir         string
		acked, sent rows
	}
	var moments []moment
	capture := func(name string) {
		acked, sent := l.snapshot()
		moments = append(moments, moment{name, copyStore(t, store), copyDir(t, dir), acked, sent})
	}
	l.spy = func(s *spyWAL) {
		app := AppPrefix + s.Writer().String()
		s.before = func(call string) error {
			capture("before " + call)
			var through int64
			if _, err := fmt.Sscanf(call, "truncate through %d", &through); err == nil {
				snap, err := openTable(t, store).Snapshot(t.Context(), txlog.Latest())
				if err != nil {
					t.Fatal(err)
				}
				if done, _ := snap.Transaction(app); done.Version < through {
					t.Errorf("%s, but the table has %d", call, done.Version)
				}
			}
			return nil
		}
		s.after = func(call string) error {
			capture("after " + call)
			return nil
		}
	}
	f := fault.New(store)
	f.Inject(fault.Fault{
		Times: -1, Mode: fault.Pass,
		OnCall:   func(_ context.Context, c fault.Call) { capture(fmt.Sprintf("before %s", c)) },
		OnReturn: func(_ context.Context, c fault.Call, _ error) { capture(fmt.Sprintf("after %s", c)) },
	})
	if err := l.run(t.Context(), t, f, store); err != nil {
		t.Fatal(err)
	}
	if len(moments) < 60 {
		t.Errorf("%d moments only", len(moments))
	}
	for i, m := range moments {
		t.Run(fmt.Sprintf("%d %s", i, strings.ReplaceAll(m.name, "/", "_")), func(t *testing.T) {
			t.Parallel()
			checkRecovery(t, m.store, m.dir, m.acked, m.sent, nil)
		})
	}
}

// A commit whose request is still on its way when its sender gives up, or
// dies, is recognised when it lands, whoever meets it: its rows are there
// once, and the writer is not taken for a stranger.
func TestLateCommit(t *testing.T) {
	for _, who := range []string{"same process", "same process, at once", "next process"} {
		t.Run(who, func(t *testing.T) {
			store := mem.New(mem.Options{})
			createTable(t, store)
			f := fault.New(store)
			dir := t.TempDir()
			l := &workload{acked: rows{}, sent: rows{}}
			w := openWriter(t, openTable(t, f), openWAL(t, dir), Options{})
			for n := range 3 {
				if err := l.append(t.Context(), w, n); err != nil {
					t.Fatal(err)
				}
			}
			// The commit is sent, and no answer comes before the caller loses
			// patience.
			ctx, cancel := context.WithCancel(t.Context())
			f.Inject(
				fault.Fault{Op: storage.OpPutIfAbsent, Mode: fault.Late, LandAfter: -1},
				fault.Fault{Op: storage.OpGet, Key: "*.json", Mode: fault.Before, Times: -1, OnCall: func(context.Context, fault.Call) { cancel() }},
			)
			if err := w.Flush(ctx); !errors.Is(err, storage.ErrUnknownOutcome) {
				t.Fatalf("Flush: %v", err)
			}
			f.Clear()
			if got := w.wal.(*wal.Log).LastSequence(); got != 3 || w.truncated != 0 {
				t.Errorf("wal ends at %d, truncated through %d", got, w.truncated)
			}
			// More comes in meanwhile, and goes after it.
			if err := l.append(t.Context(), w, 3); err != nil {
				t.Fatal(err)
			}
			if who == "next process" {
				dir = copyDir(t, dir)
				w = openWriter(t, openTable(t, f), openWAL(t, dir), Options{})
			}
			if who == "same process, at once" {
				f.Land(t.Context())
			}
			// Else the look that should settle the doubt comes too early: it
			// lands during the next upload.
			f.Inject(fault.Fault{Op: storage.OpPut, Mode: fault.Pass, OnCall: func(ctx context.Context, _ fault.Call) { f.Land(ctx) }})
			var ev []FlushEvent
			w.opts.Events.FlushEnd = func(e FlushEvent) { ev = append(ev, e) }
			mustFlush(t, w)
			checkOnce(t, store, w, l.acked, l.sent)
			if len(ev) != 2 || ev[0].Last != 3 || ev[1].First != 4 {
				t.Errorf("flushes: %+v", ev)
			}
			live, stored := fileCount(t, store)
			if orphans := stored - live; (orphans == 0) != (who == "same process, at once") {
				t.Errorf("%d files live of %d: the doubt must be settled before anything is uploaded", live, stored)
			}
			checkRecovery(t, store, copyDir(t, dir), l.acked, l.sent, nil)
		})
	}
}

// At every step of a flush an acknowledged row is readable: in the head that a
// reader takes first, or in the version that it takes after.
func TestAlwaysReadable(t *testing.T) {
	store := mem.New(mem.Options{})
	createTable(t, store)
	acked := rows{}
	var w *Writer
	looks, inHead, inTable := 0, 0, 0
	look := func(when string) {
		if w == nil {
			return
		}
		looks++
		head := viewRows(w.Head())
		table := tableRows(t, store)
		for p := range acked {
			if len(head[p]) == 0 && len(table[p]) == 0 {
				t.Errorf("%s: acknowledged row %v is nowhere", when, p)
			}
			inHead += len(head[p])
			inTable += len(table[p])
		}
	}
	f := fault.New(store)
	f.Inject(fault.Fault{
		Times: -1, Mode: fault.Pass,
		OnCall:   func(_ context.Context, c fault.Call) { look(fmt.Sprintf("before %s", c)) },
		OnReturn: func(_ context.Context, c fault.Call, _ error) { look(fmt.Sprintf("after %s", c)) },
	})
	spy := &spyWAL{
		Log:    openWAL(t, t.TempDir()),
		before: func(call string) error { look("before " + call); return nil },
		after:  func(call string) error { look("after " + call); return nil },
	}
	w = openWriter(t, openTable(t, f), spy, Options{Uploads: 1, limits: limits{rows: 8, files: 10}})
	for n := range 4 {
		b := sweepBatch(n)
		mustAppend(t, w, b)
		acked.addBatch(b)
		if n%2 == 1 {
			mustFlush(t, w)
		}
	}
	if looks < 20 || inHead == 0 || inTable == 0 {
		t.Errorf("%d looks saw %d rows in the head and %d in the table", looks, inHead, inTable)
	}
}
