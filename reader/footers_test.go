package reader

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"cardinalsin/action"
	"cardinalsin/lease"
	"cardinalsin/storage"
	"cardinalsin/storage/meter"
	"cardinalsin/txlog"
)

// TestFootersAreShared: who wants a footer that is on its way waits for it, and
// fetches it himself where the other gave up.
func TestFootersAreShared(t *testing.T) {
	e := newEnv(t, "k")
	e.write(t, "date=2026-01-02/shard=1/f", one(1, lbl("m", "k", "a"), 1))
	// What a process shares must not be made in a bubble.
	if readAll(t, e) == "" {
		t.Fatal("nothing is there")
	}
	const key = "date=2026-01-02/shard=1/f"
	for _, tc := range []struct {
		name  string
		first time.Duration // until the first caller gives up
		want  int64         // requests
	}{
		{"beside each other", time.Hour, 1},
		{"the first gives up", time.Second, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var reads atomic.Int64
				slow := meter.New(waiting{e.inner}, meter.Options{OnCall: func(c meter.Event) {
					if c.Op == storage.OpGetRange {
						reads.Add(1)
					}
				}})
				log, err := txlog.Open(t.Context(), slow, root, txlog.Options{Now: e.clock.Now})
				if err != nil {
					t.Fatal(err)
				}
				r := New(log, lease.NewPins(slow, root+"/_cardinal/pins", "test", lease.Options{Now: e.clock.Now}), Options{})
				v, err := r.At(t.Context(), txlog.Latest())
				if err != nil {
					t.Fatal(err)
				}
				defer v.Close()
				a, ok := v.snapshot.File(action.Key{Path: key})
				if !ok {
					t.Fatal("no file")
				}
				open := func(ctx context.Context) error {
					_, err := r.footers.open(ctx, &fencedSource{view: v, key: root + "/" + key, size: a.Size})
					return err
				}
				first := make(chan error)
				ctx, cancel := context.WithTimeout(t.Context(), tc.first)
				defer cancel()
				go func() { first <- open(ctx) }()
				synctest.Wait()
				second := make(chan error)
				go func() { second <- open(t.Context()) }()
				if err := <-first; (err != nil) != (tc.want > 1) || err != nil && !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("first: %v", err)
				}
				if err := <-second; err != nil {
					t.Errorf("second: %v", err)
				}
				if n := reads.Load(); n != tc.want {
					t.Errorf("%d requests, want %d", n, tc.want)
				}
			})
		})
	}
}

// waiting is a store whose ranges take a minute.
type waiting struct{ storage.Store }

func (w waiting) GetRange(ctx context.Context, key string, offset, length int64) ([]byte, error) {
	select {
	case <-time.After(time.Minute):
		return w.Store.GetRange(ctx, key, offset, length)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func readAll(t *testing.T, e *env) string {
	t.Helper()
	r := New(e.admin, nil, Options{})
	v, err := r.At(t.Context(), txlog.Latest())
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	all, err := collect(v.Select(t.Context(), everything))
	if err != nil {
		t.Fatal(err)
	}
	return all
}
