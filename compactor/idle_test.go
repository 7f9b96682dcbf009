package compactor

import (
	"context"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"cardinalsin/lease"
	"cardinalsin/storage/meter"
	"cardinalsin/txlog"
	"cardinalsin/vacuum"
)

// TestIdle: a table in which nothing happens costs no request, or one an hour
// where other processes may write to it; and what happens is still found.
func TestIdle(t *testing.T) {
	// What the process makes once, it must not make in a bubble of synctest.
	warm := newTable(t)
	warm.small(t, "1", 4)
	if _, err := warm.runner(t, warm.store, Options{}).RunAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		poll  time.Duration
		calls int // of an idle day, at most
		other bool
	}{
		"own writes only":   {poll: -1},
		"others write, too": {calls: 24, other: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tab := newTable(t)
				trace := &meter.Trace{}
				store := meter.New(tab.store, meter.Options{OnCall: trace.Record})
				calls := func() int { return strings.Count(trace.Take(), "\n") }
				log := tab.open(t, store)
				pins := lease.NewPins(store, root+"/_cardinal/pins", "test", lease.Options{Now: tab.clock.now})
				r := NewRunner(log, pins, "test", Options{Poll: tc.poll})
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- r.Run(ctx) }()
				wrote := func() {
					tab.small(t, "1", 4)
					if !tc.other { // in this process, whose log knows of it
						if _, err := log.Snapshot(t.Context(), txlog.Latest()); err != nil {
							t.Fatal(err)
						}
					}
				}
				wrote()
				time.Sleep(24 * time.Hour)
				calls()
				time.Sleep(24 * time.Hour)
				if n := calls(); n > tc.calls {
					t.Errorf("%d requests in an idle day", n)
				}
				for range 2 {
					wrote()
					time.Sleep(time.Hour + time.Minute)
					if n := len(files(t, tab.store)); n > 4 {
						t.Errorf("%d files an hour after a write", n)
					}
				}
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
				tab.checkVersions(t, tab.store)
			})
		})
	}
}

// TestJobsLeaveNoTrace: after 10,000 jobs, and the vacuums of that time, the
// store holds what it held after the first thousand, no claim, no pin, and
// the process no goroutine and no note of them.
func TestJobsLeaveNoTrace(t *testing.T) {
	jobs := 10_000
	if raceEnabled || testing.Short() {
		jobs = 1_500
	}
	tab := newTable(t)
	pins := lease.NewPins(tab.store, root+"/_cardinal/pins", "test", lease.Options{Now: tab.clock.now})
	r := NewRunner(tab.log, pins, "test", Options{Policy: Policy{MinInputs: 2, All: true}})
	count := func(prefix string) int {
		n := 0
		for _, err := range tab.store.List(t.Context(), root+"/"+prefix, "") {
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
		return n
	}
	clean := func() {
		p, err := vacuum.NewPlan(t.Context(), tab.log, vacuum.Options{Retain: time.Hour, AllowShortRetention: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Execute(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	var objects, goroutines int
	for i := range jobs {
		// The same few samples again and again, so that the table stays small.
		tab.write(t, "1", sample{metric: "m", minute: i % 3, value: float64(i)})
		done, err := r.RunAll(t.Context())
		if err != nil || i > 0 && len(done) != 1 {
			t.Fatalf("job %d: %v, %v", i, done, err)
		}
		tab.clock.tick(5 * time.Minute)
		clear(tab.at) // of old versions, which vacuum takes
		if i%100 != 99 {
			continue
		}
		if err := tab.log.Upkeep(t.Context()); err != nil {
			t.Fatal(err)
		}
		clean()
		if n := count("_cardinal/leases/"); n != 0 {
			t.Fatalf("%d claims after %d jobs", n, i)
		}
		if i == 999 {
			objects, goroutines = count(""), runtime.NumGoroutine()
		}
	}
	for range 2 { // nobody renews the pins here: they expire, are revoked, and then deleted
		tab.clock.tick(time.Hour)
		clean()
	}
	if n := count(""); n > objects+objects/4 {
		t.Errorf("%d objects, %d after the first thousand jobs", n, objects)
	}
	if n := count("_cardinal/pins/"); n > 0 {
		t.Errorf("%d pins", n)
	}
	if n := runtime.NumGoroutine(); n > goroutines+10 {
		t.Errorf("%d goroutines, %d after the first thousand jobs", n, goroutines)
	}
	if len(r.quarantine) > 0 {
		t.Errorf("quarantine: %v", r.Quarantined())
	}
	tab.checkVersions(t, tab.store)
}
