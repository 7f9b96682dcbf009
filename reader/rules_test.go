package reader

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"cardinalsin/chunk"
	"cardinalsin/lease"
	"cardinalsin/series"
	"cardinalsin/storage/fault"
	"cardinalsin/txlog"
)

// outcome is what a reader met in one interleaving.
type outcome struct {
	complete, refused int
	violation         error
}

// interleave runs read with the steps of others placed before its requests
// (or, if after is set, between a request and what the reader does next) in
// every possible way: steps keep their order, any number of them may run at
// one place, and some may not run at all. A run that neither returns want nor
// is refused is a violation.
//
// It stops at the first violation.
func interleave(t *testing.T, after bool, setup func() (e *env, read func() (string, error), want string, steps []func())) outcome {
	t.Helper()
	e, read, want, steps := setup()
	e.store.Clear()
	before := e.store.Calls()
	if got, err := read(); err != nil || got != want {
		t.Fatalf("undisturbed: %q, %v; want %q", got, err, want)
	}
	calls := e.store.Calls() - before
	var out outcome
	places := make([]int, len(steps)) // request before which each step runs; calls: never
	for {
		e, read, want, steps := setup()
		next, call := 0, 0
		var mu sync.Mutex // a cold load sends requests at the same time
		due := func() {
			mu.Lock()
			defer mu.Unlock()
			for next < len(steps) && places[next] <= call {
				steps[next]()
				next++
			}
			call++
		}
		f := fault.Fault{Times: -1, OnCall: func(context.Context, fault.Call) { due() }}
		if after {
			f = fault.Fault{Times: -1, OnReturn: func(context.Context, fault.Call, error) { due() }}
		}
		e.store.Inject(f)
		got, err := read()
		switch {
		case err == nil && got == want:
			out.complete++
		case refused(err):
			out.refused++
		case err != nil:
			out.violation = fmt.Errorf("steps at requests %v: read %q: %w", places, got, err)
			return out
		default:
			out.violation = fmt.Errorf("steps at requests %v: read %q, want %q", places, got, want)
			return out
		}
		// The next placement: ascending tuples over 0…calls.
		i := len(places) - 1
		for i >= 0 && places[i] == calls {
			i--
		}
		if i < 0 {
			return out
		}
		places[i]++
		for j := i + 1; j < len(places); j++ {
			places[j] = places[i]
		}
	}
}

var (
	rowA = one(1, lbl("m", "k", "a"), 1, 2)
	rowB = one(1, lbl("m", "k", "b"), 3)
)

// compactThenVacuum is a table of two files whose reading process is about to
// read, and the other process that replaces them by one file and vacuums them
// away with no retention at all.
func compactThenVacuum(t *testing.T, r rules, at txlog.At, warm, expire bool) func() (*env, func() (string, error), string, []func()) {
	return func() (*env, func() (string, error), string, []func()) {
		e := newEnv(t, "k")
		a, b := e.upload(t, "fa", rowA), e.upload(t, "fb", rowB)
		e.commit(t, nil, []file{a, b})
		rd := e.start(t, Options{Reads: 1})
		rd.rules = r
		if warm {
			// An earlier query has left a pin and told the latest version.
			if _, err := query(rd, txlog.Latest()); err != nil {
				t.Fatal(err)
			}
		}
		v := &vacuum{env: e}
		compact := func() { e.commit(t, []file{a, b}, []file{e.upload(t, "fc", rowA, rowB)}) }
		steps := []func(){
			compact,
			func() { v.announce(t) },
			func() { v.collect(t) },
			func() { v.sweep(t) },
		}
		if expire {
			steps = []func(){
				func() {
					compact()
					v.announce(t)
				},
				// A pin that nobody renews can be revoked after this.
				func() { e.clock.advance(lease.TTL + lease.Grace + time.Second) },
				func() {
					v.collect(t)
					v.sweep(t)
				},
			}
		}
		return e, func() (string, error) { return query(rd, at) }, rowsOf(rowA, rowB), steps
	}
}

// TestPinsAgainstVacuum walks every interleaving of a reader's requests with
// a compaction and a vacuum (log-protocol 5 and 6): the answer is complete or
// refused. Each rule taken out breaks it: the names of the mutants are those
// of the design's model.
func TestPinsAgainstVacuum(t *testing.T) {
	reads := []struct {
		name string
		at   txlog.At
		warm bool
	}{
		{"latest, first query", txlog.Latest(), false},
		{"latest, pinned before", txlog.Latest(), true},
		{"version 1", txlog.AtVersion(1), false},
		{"version 1, pinned before", txlog.AtVersion(1), true},
	}
	for _, c := range reads {
		t.Run(c.name, func(t *testing.T) {
			out := interleave(t, false, compactThenVacuum(t, rules{}, c.at, c.warm, false))
			t.Logf("%d complete, %d refused", out.complete, out.refused)
			if out.violation != nil {
				t.Error(out.violation)
			}
			if out.complete == 0 {
				t.Error("no interleaving gave an answer")
			}
			out = interleave(t, false, compactThenVacuum(t, rules{}, c.at, c.warm, true))
			t.Logf("with the pin expiring: %d complete, %d refused", out.complete, out.refused)
			if out.violation != nil {
				t.Error(out.violation)
			}
			if out.refused == 0 {
				t.Error("no expired pin was noticed")
			}
		})
	}
}

func TestMutantWatermarkFirst(t *testing.T) {
	for _, at := range []txlog.At{txlog.Latest(), txlog.AtVersion(1)} {
		mustViolate(t, interleave(t, false, compactThenVacuum(t, rules{watermarkFirst: true}, at, false, false)))
	}
}

func TestMutantNoWatermarkCheck(t *testing.T) {
	mustViolate(t, interleave(t, false, compactThenVacuum(t, rules{noWatermarkCheck: true}, txlog.AtVersion(1), false, false)))
}

func TestMutantNoFence(t *testing.T) {
	mustViolate(t, interleave(t, false, compactThenVacuum(t, rules{noFence: true}, txlog.Latest(), false, true)))
}

func mustViolate(t *testing.T, out outcome) {
	t.Helper()
	if out.violation == nil {
		t.Fatal("without the rule nothing breaks: the test has no power")
	}
	if !errors.Is(out.violation, chunk.ErrCorrupt) {
		t.Errorf("the reader did not miss a file: %v", out.violation)
	}
	t.Log(out.violation)
}

// flushing is a head that is committed, and then dropped, between any two
// requests of the reader. A sample of it is in the table before too, with an
// older value.
func flushing(t *testing.T, r rules) func() (*env, func() (string, error), string, []func()) {
	return func() (*env, func() (string, error), string, []func()) {
		e := newEnv(t, "k")
		old, fresh := one(1, lbl("m", "k", "a"), 1, 2), one(2, lbl("m", "k", "a"), 2, 3)
		e.write(t, "fa", old)
		head := newHead(fresh)
		rd := e.start(t, Options{Head: func() HeadView { return head }})
		rd.rules = r
		steps := []func(){
			func() { e.write(t, "fb", fresh) },
			func() { head = nil },
		}
		want := rowsOf(series.Series{Labels: old.Labels, Samples: append(old.Samples[:1:1], fresh.Samples...)})
		return e, func() (string, error) { return query(rd, txlog.Latest()) }, want, steps
	}
}

// TestHeadBeforeSnapshot: a flush between any two requests of a query loses
// nothing and doubles nothing.
func TestHeadBeforeSnapshot(t *testing.T) {
	for _, after := range []bool{false, true} {
		out := interleave(t, after, flushing(t, rules{}))
		if out.violation != nil || out.complete == 0 {
			t.Errorf("%d complete: %v", out.complete, out.violation)
		}
	}
}

func TestMutantSnapshotFirst(t *testing.T) {
	out := interleave(t, true, flushing(t, rules{snapshotFirst: true}))
	if out.violation == nil {
		t.Fatal("in the other order nothing is lost: the test has no power")
	}
	t.Log(out.violation)
}
