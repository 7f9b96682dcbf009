package txlog_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cardinalsin/action"
	"cardinalsin/storage"
	"cardinalsin/storage/fault"
	"cardinalsin/storage/mem"
	"cardinalsin/txlog"
)

// skewed is a store as a process sees it that is wrong about its clock.
type skewed struct {
	storage.Store
	by time.Duration
}

func (s skewed) Now(ctx context.Context) (time.Time, error) {
	now, err := s.Store.Now(ctx)
	return now.Add(s.by), err
}

// Processes whose clocks differ by hours, local ones and what they take for
// the store's, commit while the store's own clock is set to and fro: the log's
// time ascends strictly, and time travel finds each version by it.
func TestClocksApart(t *testing.T) {
	start := time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)
	var offset atomic.Int64
	inner := mem.New(mem.Options{Now: func() time.Time { return start.Add(time.Duration(offset.Load())) }})
	create(t, inner, txlog.Options{})
	const each = 12
	var group sync.WaitGroup
	for i, by := range []time.Duration{-time.Hour, 0, time.Hour, 25 * time.Hour} {
		var ticks atomic.Int64
		now := func() time.Time { return start.Add(by + time.Duration(ticks.Add(1))) }
		if i == 3 { // a local clock that runs backwards
			now = func() time.Time { return start.Add(-time.Duration(ticks.Add(1)) * time.Second) }
		}
		l, err := txlog.Open(t.Context(), skewed{inner, by}, root, txlog.Options{Now: now})
		if err != nil {
			t.Fatal(err)
		}
		group.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(i)))
			for n := range each {
				offset.Store(rng.Int64N(int64(4*time.Hour)) - int64(2*time.Hour))
				tx := l.Begin(nil, txlog.Operation{Name: "TEST"})
				tx.Add(add(fmt.Sprintf("%d-%d", i, n)))
				tx.Require(txlog.UploadedSince(l.Now(), time.Hour))
				if _, err := tx.Commit(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	l := open(t, inner)
	head := latest(t, l)
	if head.Version() != 4*each {
		t.Errorf("the latest version is %d", head.Version())
	}
	last := int64(-1)
	for v := action.Version(0); v <= head.Version(); v++ {
		c, err := l.Commit(t.Context(), v)
		if err != nil {
			t.Fatal(err)
		}
		ict, ok := c.InCommitTimestamp()
		if !ok || ict <= last {
			t.Errorf("version %d is of %d, after %d", v, ict, last)
		}
		if s, err := l.Snapshot(t.Context(), txlog.AtTime(time.UnixMilli(ict))); err != nil || s.Version() != v {
			t.Errorf("at the time of version %d: another version, or %v", v, err)
		}
		s, err := l.Snapshot(t.Context(), txlog.AtTime(time.UnixMilli(ict-1)))
		if v == 0 && !errors.Is(err, txlog.ErrVersionNotFound) || v > 0 && (err != nil || s.Version() != v-1) {
			t.Errorf("just before version %d: not the one before, or %v", v, err)
		}
		last = ict
	}
}

// The context ends in the middle of a put whose response is lost: the outcome
// is unknown, the error names the transaction, and whatever then becomes of
// the request, a load tells.
func TestUnknownOutcomeIsSettledByALoad(t *testing.T) {
	const mine, theirs = "mine", "theirs"
	for name, c := range map[string]struct {
		then func(t *testing.T, f *fault.Store, l *txlog.Log)
		want []string // files by version, from 1 on
	}{
		"it lands": {func(t *testing.T, f *fault.Store, _ *txlog.Log) { f.Land(t.Context()) }, []string{mine}},
		"another process wins": {func(t *testing.T, f *fault.Store, _ *txlog.Log) {
			other := open(t, f.Unwrap())
			if _, err := appendFile(t.Context(), other, nil, theirs); err != nil {
				t.Fatal(err)
			}
			f.Land(t.Context())
		}, []string{theirs}},
		"this process goes on before it lands": {func(t *testing.T, f *fault.Store, l *txlog.Log) {
			if _, err := appendFile(t.Context(), l, nil, theirs); err != nil {
				t.Fatal(err)
			}
			f.Land(t.Context())
		}, []string{theirs}},
		"this process goes on, and it lands just then": {func(t *testing.T, f *fault.Store, l *txlog.Log) {
			f.Inject(fault.Fault{Op: storage.OpPutIfAbsent, OnCall: func(ctx context.Context, _ fault.Call) { f.Land(ctx) }})
			if _, err := appendFile(t.Context(), l, nil, theirs); err != nil {
				t.Fatal(err)
			}
		}, []string{mine, theirs}},
		"it lands, and this process goes on": {func(t *testing.T, f *fault.Store, l *txlog.Log) {
			f.Land(t.Context())
			if _, err := appendFile(t.Context(), l, nil, theirs); err != nil {
				t.Fatal(err)
			}
		}, []string{mine, theirs}},
	} {
		t.Run(name, func(t *testing.T) {
			inner := mem.New(mem.Options{})
			create(t, inner, txlog.Options{})
			f := fault.New(inner)
			l, err := txlog.Open(t.Context(), f, root, txlog.Options{})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			f.Inject(fault.Fault{Op: storage.OpPutIfAbsent, Mode: fault.Late, LandAfter: -1, OnReturn: func(context.Context, fault.Call, error) { cancel() }})
			tx := l.Begin(nil, txlog.Operation{Name: "TEST"})
			tx.Add(add(mine))
			_, err = tx.Commit(ctx)
			if !errors.Is(err, storage.ErrUnknownOutcome) || !strings.Contains(err.Error(), tx.ID()) {
				t.Fatalf("%v, want an unknown outcome of %s", err, tx.ID())
			}
			c.then(t, f, l)
			for who, l := range map[string]*txlog.Log{"the committer": l, "who opens the table": open(t, inner)} {
				s := latest(t, l)
				var got []string
				found := false
				for v := action.Version(1); v <= s.Version(); v++ {
					entry, err := l.Commit(t.Context(), v)
					if err != nil {
						t.Fatal(err)
					}
					for _, a := range entry.Adds {
						got = append(got, a.Path)
						if a.Path == mine && entry.Info.TxnID == tx.ID() {
							found = true
						}
					}
				}
				if diff := cmp.Diff(c.want, got); diff != "" {
					t.Errorf("%s (-want +got):\n%s", who, diff)
				}
				if want := c.want[0] == mine; found != want {
					t.Errorf("%s: the transaction is in the log by its ID: %v", who, found)
				}
			}
		})
	}
}
