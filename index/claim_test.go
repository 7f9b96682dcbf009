package index

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"cardinalsin/lease"
	"cardinalsin/storage"
	"cardinalsin/storage/meter"
	"cardinalsin/txlog"
)

// TestTwoRunners: of two that want the same job exactly one builds, whether
// they meet or come one after the other, and the other says why it did not.
// Without claims both do, which shows that this counts.
func TestTwoRunners(t *testing.T) {
	for _, tc := range []struct {
		name     string
		noClaims bool
		together bool
		built    int
		want     error
	}{
		{"beside each other", false, true, 1, lease.ErrClaimHeld},
		{"one after the other", false, false, 1, txlog.ErrDomainChanged},
		{"without claims", true, false, 2, txlog.ErrDomainChanged},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var mu sync.Mutex
			built := 0
			uploading, goOn := make(chan struct{}), make(chan struct{})
			tb := newTable(t, func(s storage.Store) storage.Store {
				return meter.New(s, meter.Options{OnCall: func(e meter.Event) {
					if e.Op == storage.OpPut && strings.Contains(e.Key, "/"+Folder+"/") {
						mu.Lock()
						built++
						n := built
						mu.Unlock()
						if tc.together && n == 1 {
							close(uploading)
							<-goOn
						}
					}
				}})
			})
			tb.write(0, 1, pods(0, 20)...)
			var jobs []Job
			runner := func(name string) *Runner {
				r := NewRunner(tb.log, RunnerOptions{Policy: Policy{MinFiles: 1}, Holder: name, NoClaims: tc.noClaims})
				found, err := r.Plan(t.Context())
				if err != nil || len(found) != 1 {
					t.Fatalf("%d jobs, %v", len(found), err)
				}
				jobs = append(jobs, found[0])
				return r
			}
			a, b := runner("host-a/1"), runner("host-b/2")
			first := make(chan error, 1)
			go func() {
				_, err := a.RunJob(t.Context(), jobs[0])
				first <- err
			}()
			if tc.together {
				<-uploading
			} else if err := <-first; err != nil {
				t.Fatal(err)
			}
			_, err := b.RunJob(t.Context(), jobs[1])
			if !errors.Is(err, tc.want) {
				t.Errorf("the second: %v", err)
			}
			var held *lease.HeldError
			if tc.together {
				if !errors.As(err, &held) || held.Holder != "host-a/1" {
					t.Errorf("who holds it: %v", err)
				}
				close(goOn)
				if err := <-first; err != nil {
					t.Errorf("the first: %v", err)
				}
			}
			if built != tc.built {
				t.Errorf("%d segments were built, want %d", built, tc.built)
			}
			if n := len(mustSegments(t, tb)); n != 1 {
				t.Errorf("%d segments", n)
			}
			left, err := storage.Collect(tb.store.List(t.Context(), root+"/_cardinal/leases/", ""))
			if err != nil || len(left) > 0 {
				t.Errorf("claims are left: %v, %v", left, err)
			}
		})
	}
}

// TestDeadHolder: who died with a claim holds up its day until the claim
// expires, other days not at all, and the log says what is left to whom.
func TestDeadHolder(t *testing.T) {
	tb := newTable(t, nil)
	tb.write(0, 1, pods(0, 20)...)
	tb.write(1, 1, pods(1, 20)...)
	key := fmt.Sprintf("%s/_cardinal/leases/index-%s.json", root, firstDay.Date())
	now := lease.Options{Now: func() time.Time { return tb.now }}
	if _, err := lease.Take(t.Context(), tb.store, key, "host-a/1", claimTTL, now); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	r := NewRunner(tb.log, RunnerOptions{Policy: Policy{MinFiles: 1}, Holder: "host-b/2", Logger: slog.New(slog.NewTextHandler(&log, nil))})
	done, claimed, err := r.runAll(context.Background())
	if err != nil || len(done) != 1 || claimed != 1 || done[0].Job.Date == firstDay.Date() {
		t.Fatalf("done %+v, %d claimed, %v", done, claimed, err)
	}
	if !strings.Contains(log.String(), "left to another process") || !strings.Contains(log.String(), "host-a/1") {
		t.Errorf("the log says %q", log.String())
	}
	tb.now = tb.now.Add(claimTTL + lease.Grace + 2*time.Second)
	if done, claimed, err = r.runAll(context.Background()); err != nil || len(done) != 1 || claimed != 0 {
		t.Errorf("afterwards: done %+v, %d claimed, %v", done, claimed, err)
	}
}
