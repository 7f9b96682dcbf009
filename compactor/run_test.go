package compactor

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/google/go-cmp/cmp"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/lease"
	"cardinalsin/storage"
	"cardinalsin/storage/fault"
	"cardinalsin/storage/meter"
	"cardinalsin/txlog"
	"cardinalsin/vacuum"
)

// Compaction changes no row of any version: the latest equals the model, and
// every earlier one reads as it did.
func TestRowsStay(t *testing.T) {
	tab := newTable(t)
	tab.small(t, "1", 6)
	tab.small(t, "10", 4)
	r := tab.runner(t, tab.store, Options{})
	results, err := r.RunAll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(results) != 2 {
		t.Fatalf("%d jobs", len(results))
	}
	tab.checkVersions(t, tab.store)
	if n := len(files(t, tab.store)); n != 2 {
		t.Errorf("%d files are left", n)
	}
	// 6 flushes of 4 samples, one of them always of the same instant.
	if res := results[0]; res.RowsIn != 24 || res.Rows != 19 {
		t.Errorf("%d rows of %d", res.Rows, res.RowsIn)
	}
	jobs, err := r.Plan(t.Context())
	if err != nil || len(jobs) != 0 {
		t.Errorf("planning again: %v, %v", jobs, err)
	}
	// A second generation, on top of compacted files.
	tab.small(t, "1", 4)
	if _, err := tab.runner(t, tab.store, Options{Policy: Policy{All: true}}).RunAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	tab.checkVersions(t, tab.store)
	if n := len(files(t, tab.store)); n != 2 {
		t.Errorf("%d files are left", n)
	}
}

// The output says what it holds: level, order, WAL ranges and bounds.
func TestOutput(t *testing.T) {
	tab := newTable(t)
	tab.small(t, "1", 4)
	res, err := only(tab.runner(t, tab.store, Options{}).RunAll(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	snap := snapshot(t, tab.log)
	a, ok := snap.File(action.Key{Path: res.Path})
	if !ok || a.DataChange || a.Size != res.Bytes {
		t.Fatalf("got %+v", a)
	}
	tags, _, err := chunk.ParseTags(a.Tags)
	if err != nil {
		t.Fatal(err)
	}
	if tags.Level != 1 || tags.Order != (chunk.Order{Lo: 10, Hi: 40}) {
		t.Errorf("got %+v", tags)
	}
	if d := cmp.Diff([]chunk.WALRange{{Writer: "w", First: 1, Last: 4}}, tags.WAL); d != "" {
		t.Error(d)
	}
	c, err := tab.log.Commit(t.Context(), res.Version)
	if err != nil {
		t.Fatal(err)
	}
	if c.Info.Operation != "OPTIMIZE" || len(c.Removes) != 4 || len(c.Adds) != 1 {
		t.Errorf("got %+v", c)
	}
	for _, r := range c.Removes {
		if r.DataChange {
			t.Errorf("%s: dataChange", r.Path)
		}
	}
}

// Where all inputs hold the same samples one set is left, the newest.
func TestEverythingMergesAway(t *testing.T) {
	tab := newTable(t)
	for i := range 5 {
		tab.write(t, "1", sample{"up", nil, 0, float64(i)}, sample{"up", nil, 1, float64(i)})
	}
	res, err := only(tab.runner(t, tab.store, Options{}).RunAll(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	if res.RowsIn != 10 || res.Rows != 2 {
		t.Errorf("%d rows of %d", res.Rows, res.RowsIn)
	}
	tab.checkVersions(t, tab.store)
}

// TestTrace pins the store calls of a job: the claim and the pin first, the
// watermark after the pin, one GET an input, one put, one conditional put.
func TestTrace(t *testing.T) {
	names := regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f-]{27}`)
	datadriven.RunTest(t, "testdata/trace/compact", func(t *testing.T, d *datadriven.TestData) string {
		tab := newTable(t)
		tab.small(t, "1", 4)
		trace := &meter.Trace{}
		store := meter.New(tab.store, meter.Options{OnCall: trace.Record})
		r := tab.runner(t, store, Options{Reads: 1})
		jobs, err := r.Plan(t.Context())
		if err != nil || len(jobs) != 1 {
			t.Fatal(jobs, err)
		}
		trace.Take()
		if _, err := r.RunJob(t.Context(), jobs[0]); err != nil {
			t.Fatal(err)
		}
		return names.ReplaceAllString(strings.ReplaceAll(trace.Take(), root+"/", ""), "<uuid>")
	})
}

// Whatever call fails, and however: the rows are what they were, nothing that
// is live is missing, and a later run completes the work.
func TestFaultSweep(t *testing.T) {
	tab := newTable(t)
	tab.small(t, "1", 4)
	for _, mode := range fault.Modes {
		t.Run(mode.String(), func(t *testing.T) {
			for i := 0; ; i++ {
				store := copyStore(t, tab)
				f := fault.New(store)
				r := tab.runner(t, f, Options{Reads: 1})
				ctx, cancel := context.WithCancel(t.Context())
				strike := fault.Fault{Skip: i, Mode: mode}
				if mode == fault.CrashBefore || mode == fault.CrashAfter {
					strike.OnReturn = func(context.Context, fault.Call, error) { cancel() }
				}
				f.Inject(strike)
				_, err := r.RunAll(ctx)
				cancel()
				if f.Fired() == 0 {
					if err != nil {
						t.Fatalf("no call failed, and the run did: %v", err)
					}
					if i < 12 {
						t.Errorf("only %d calls", i)
					}
					return
				}
				if d := cmp.Diff(tab.model, read(t, store, txlog.Latest())); d != "" {
					t.Fatalf("call %d: %s", i, d)
				}
				f.Land(t.Context())
				tab.clock.tick(time.Hour) // claims of the dead expire
				if _, err := tab.runner(t, store, Options{}).RunAll(t.Context()); err != nil {
					t.Fatalf("call %d: the next run: %v", i, err)
				}
				tab.checkVersions(t, store)
				if n := len(files(t, store)); n != 1 {
					t.Fatalf("call %d: %d files are left", i, n)
				}
			}
		})
	}
}

// Compactors that race, with claims or without, and a writer beside them: the
// rows are the model's, and nobody sees an error.
func TestCompactorsRace(t *testing.T) {
	for _, noClaims := range []bool{false, true} {
		t.Run(fmt.Sprintf("noClaims=%v", noClaims), func(t *testing.T) {
			tab := newTable(t)
			tab.small(t, "1", 8)
			tab.small(t, "2", 8)
			var mu sync.Mutex
			jobs, lost := 0, 0
			opts := Options{NoClaims: noClaims, Policy: Policy{MinInputs: 2}, Events: Events{CompactEnd: func(_ Job, _ Result, err error) {
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					jobs++
				} else if errors.Is(err, txlog.ErrConflict) {
					lost++
				}
			}}}
			var wg sync.WaitGroup
			for range 3 {
				r := tab.runner(t, tab.store, opts)
				wg.Go(func() {
					for range 3 {
						if _, err := r.RunAll(t.Context()); err != nil {
							t.Error(err)
						}
					}
				})
			}
			wg.Go(func() {
				for i := range 6 {
					tab.write(t, "1", sample{"new", nil, i, float64(i)}, sample{"up", []string{"job", "a"}, 1, float64(1000 + i)})
				}
			})
			wg.Wait()
			if _, err := tab.runner(t, tab.store, opts).RunAll(t.Context()); err != nil {
				t.Fatal(err)
			}
			tab.checkVersions(t, tab.store)
			if jobs < 2 {
				t.Errorf("%d jobs", jobs)
			}
			t.Logf("%d jobs, %d lost", jobs, lost)
		})
	}
}

// A claim that another process holds is left to it; an expired one is taken
// over.
func TestClaims(t *testing.T) {
	tab := newTable(t)
	tab.small(t, "1", 4)
	key := root + "/_cardinal/leases/compact-2026-11-22-1.json"
	if _, err := lease.Take(t.Context(), tab.store, key, "other", claimTTL, lease.Options{Now: tab.clock.now}); err != nil {
		t.Fatal(err)
	}
	r := tab.runner(t, tab.store, Options{})
	jobs, err := r.Plan(t.Context())
	if err != nil || len(jobs) != 1 {
		t.Fatal(jobs, err)
	}
	if _, err := r.RunJob(t.Context(), jobs[0]); !errors.Is(err, lease.ErrClaimHeld) {
		t.Fatalf("got %v", err)
	}
	if res, err := r.RunAll(t.Context()); err != nil || len(res) != 0 {
		t.Fatalf("got %v, %v", res, err)
	}
	tab.clock.tick(time.Hour)
	if _, err := only(r.RunAll(t.Context())); err != nil {
		t.Fatal(err)
	}
	// Ten thousand jobs leave no trace but the log.
	left, err := storage.Collect(tab.store.List(t.Context(), root+"/_cardinal/leases/", ""))
	if err != nil || len(left) != 0 {
		t.Errorf("claims are left: %v, %v", left, err)
	}
}

// A byte flipped anywhere in an input ends its job with the file's name;
// nothing is removed, the file is left alone from then on, and other jobs are
// done.
func TestFlippedByte(t *testing.T) {
	tab := newTable(t)
	tab.small(t, "1", 4)
	tab.small(t, "2", 4)
	bad := files(t, tab.store)[1]
	size := 0
	for a := range snapshot(t, tab.log).Files() {
		if a.Path == bad {
			size = int(a.Size)
		}
	}
	step := max(size/25, 1)
	for at := 0; at < size; at += step {
		store := copyStore(t, tab)
		restore := flip(t, store, bad, at)
		r := tab.runner(t, store, Options{})
		results, err := r.RunAll(t.Context())
		if !errors.Is(err, chunk.ErrCorrupt) || !strings.Contains(err.Error(), bad) {
			t.Fatalf("byte %d: %v", at, err)
		}
		if len(results) != 1 || results[0].Job.Shard != "2" {
			t.Fatalf("byte %d: %d jobs", at, len(results))
		}
		if d := cmp.Diff([]string{bad}, r.Quarantined()); d != "" {
			t.Fatal(d)
		}
		if results, err := r.RunAll(t.Context()); err != nil || len(results) != 0 {
			t.Fatalf("byte %d: again %v, %v", at, results, err)
		}
		restore()
		tab.checkVersions(t, store)
	}
}

func TestMissingInput(t *testing.T) {
	tab := newTable(t)
	tab.small(t, "1", 4)
	before := files(t, tab.store)
	if err := tab.store.Delete(t.Context(), root+"/"+before[2]); err != nil {
		t.Fatal(err)
	}
	_, err := tab.runner(t, tab.store, Options{}).RunAll(t.Context())
	if !errors.Is(err, ErrInputMissing) || !strings.Contains(err.Error(), before[2]) {
		t.Fatalf("got %v", err)
	}
	if d := cmp.Diff(before, files(t, tab.store)); d != "" {
		t.Error(d)
	}
}

// A store that is away for a moment puts no file into quarantine.
func TestUnavailableIsNoDamage(t *testing.T) {
	tab := newTable(t)
	tab.small(t, "1", 4)
	f := fault.New(tab.store)
	r := tab.runner(t, f, Options{})
	f.Inject(fault.Fault{Op: storage.OpGet, Key: "*.parquet", Mode: fault.Before})
	if _, err := r.RunAll(t.Context()); !errors.Is(err, storage.ErrUnavailable) {
		t.Fatalf("got %v", err)
	}
	if q := r.Quarantined(); len(q) != 0 {
		t.Errorf("quarantined: %v", q)
	}
	if _, err := only(r.RunAll(t.Context())); err != nil {
		t.Fatal(err)
	}
}

// beforeSwap runs do once, when a runner is about to commit.
func beforeSwap(f *fault.Store, do func()) {
	f.Inject(fault.Fault{Op: storage.OpPutIfAbsent, Key: "*/_delta_log/*.json", OnCall: func(context.Context, fault.Call) { do() }})
}

// Rule FilesLive: inputs that were deleted while the job ran must not come
// back in its output.
func TestMutantPatchedConflict(t *testing.T) {
	for name, mutant := range map[string]bool{"rule": false, "mutant": true} {
		t.Run(name, func(t *testing.T) {
			tab := newTable(t)
			tab.small(t, "1", 4)
			gone := tab.write(t, "1", sample{"secret", nil, 0, 1})
			f := fault.New(tab.store)
			r := tab.runner(t, f, Options{})
			r.rules.patchConflict = mutant
			jobs, err := r.Plan(t.Context())
			if err != nil || len(jobs) != 1 || len(jobs[0].Inputs) != 5 {
				t.Fatal(jobs, err)
			}
			beforeSwap(f, func() {
				base := snapshot(t, tab.log)
				c, err := tab.log.Commit(t.Context(), gone)
				if err != nil {
					t.Fatal(err)
				}
				tx := tab.log.Begin(base, txlog.Operation{Name: "DELETE"})
				tx.Remove(c.Adds[0].Tombstone(true))
				if _, err := tx.Commit(t.Context()); err != nil {
					t.Fatal(err)
				}
			})
			_, err = r.RunJob(t.Context(), jobs[0])
			if !mutant && (!errors.Is(err, txlog.ErrFilesRemoved) || !errors.Is(err, txlog.ErrConflict)) {
				t.Fatalf("got %v", err)
			}
			_, back := read(t, tab.store, txlog.Latest())[sample{"secret", nil, 0, 1}.key()]
			if back != mutant {
				t.Errorf("deleted rows are back: %v", back)
			}
			if mutant {
				return
			}
			// Planned anew it works.
			if _, err := only(r.RunAll(t.Context())); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// Rule of contiguous orders: a flush whose number lies among the inputs', and
// which is committed while the job runs, must keep its place.
func TestMutantAnyOrder(t *testing.T) {
	for name, mutant := range map[string]bool{"rule": false, "mutant": true} {
		t.Run(name, func(t *testing.T) {
			tab := newTable(t)
			for i := range 4 {
				tab.write(t, "1", sample{"up", nil, i, 1}, sample{"up", nil, 30 - i, 1})
			}
			f := fault.New(tab.store)
			r := tab.runner(t, f, Options{})
			r.rules.anyOrder = mutant
			jobs, err := r.Plan(t.Context())
			if err != nil || len(jobs) != 1 {
				t.Fatal(jobs, err)
			}
			late := sample{"up", nil, 0, 2} // overrides the first flush's
			beforeSwap(f, func() {
				if _, err := tab.flush(t.Context(), tab.log, "1", 15, late); err != nil {
					t.Fatal(err)
				}
			})
			_, err = r.RunJob(t.Context(), jobs[0])
			if !mutant && !errors.Is(err, txlog.ErrNewFiles) {
				t.Fatalf("got %v", err)
			}
			if lost := read(t, tab.store, txlog.Latest())[late.key()] != 2; lost != mutant {
				t.Errorf("the later sample lost: %v", lost)
			}
		})
	}
}

// An upload that took too long is not committed: vacuum may take it for an
// orphan.
func TestUploadsTooOld(t *testing.T) {
	tab := newTable(t)
	tab.small(t, "1", 4)
	f := fault.New(tab.store)
	r := tab.runner(t, f, Options{})
	jobs, err := r.Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f.Inject(fault.Fault{Op: storage.OpPut, OnReturn: func(context.Context, fault.Call, error) { tab.clock.tick(12 * time.Hour) }})
	if _, err := r.RunJob(t.Context(), jobs[0]); !errors.Is(err, txlog.ErrUploadsTooOld) {
		t.Fatalf("got %v", err)
	}
	tab.checkVersions(t, tab.store)
}

// A vacuum that keeps nothing runs at every request of a job: the pin keeps
// the inputs, or the job finds out in time; never a missing file, never a lost
// row.
func TestVacuumDuringAJob(t *testing.T) {
	tab := newTable(t)
	tab.small(t, "1", 5)
	for i := 0; ; i++ {
		store := copyStore(t, tab)
		f := fault.New(store)
		r := tab.runner(t, f, Options{Reads: 1})
		other := tab.open(t, store)
		jobs, err := r.Plan(t.Context())
		if err != nil || len(jobs) != 1 {
			t.Fatal(jobs, err)
		}
		f.Inject(fault.Fault{Skip: i, OnCall: func(context.Context, fault.Call) {
			// The inputs become tombstones, and vacuum comes for them.
			base := snapshot(t, other)
			tx := other.Begin(base, txlog.Operation{Name: "DELETE"})
			for a := range base.Files() {
				tx.Remove(a.Tombstone(true))
			}
			if _, err := tx.Commit(t.Context()); err != nil && !errors.Is(err, txlog.ErrConflict) {
				t.Error(err)
			}
			p, err := vacuum.NewPlan(t.Context(), other, vacuum.Options{Retain: vacuum.NoRetention, AllowShortRetention: true})
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := p.Execute(t.Context()); err != nil {
				t.Error(err)
			}
		}})
		_, err = r.RunJob(t.Context(), jobs[0])
		switch {
		case f.Fired() == 0 && i > 5 && err == nil && len(files(t, store)) == 1:
			return
		case errors.Is(err, ErrInputMissing):
			t.Fatalf("call %d: %v", i, err)
		case err != nil && !errors.Is(err, txlog.ErrConflict):
			t.Fatalf("call %d: %v", i, err)
		}
		if _, err := tryRead(t.Context(), store, txlog.Latest()); err != nil {
			t.Fatalf("call %d: %v", i, err)
		}
		if i > 100 {
			t.Fatal("a job makes no hundred calls")
		}
	}
}

// Run compacts in the background until its context ends.
func TestRun(t *testing.T) {
	tab := newTable(t)
	tab.small(t, "1", 4)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	var once sync.Once
	r := tab.runner(t, tab.store, Options{Interval: time.Millisecond, Events: Events{CompactEnd: func(_ Job, _ Result, err error) {
		if err != nil {
			t.Error(err)
		}
		once.Do(cancel)
	}}})
	go func() { done <- r.Run(ctx) }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("nothing was compacted")
	}
	tab.checkVersions(t, tab.store)
}
