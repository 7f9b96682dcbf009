package lease

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"cardinalsin/storage"
	"cardinalsin/storage/mem"
)

var errWork = errors.New("work failed")

// TestWork: a claim holds as long as the work does, ends the work where it is
// lost, and is gone afterwards, whatever the work said.
func TestWork(t *testing.T) {
	const key, ttl = "t/_cardinal/leases/job.json", time.Minute
	run := func(name string, f func(t *testing.T, store storage.Store, opts Options)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f(t, mem.New(mem.Options{Now: time.Now}), Options{Now: time.Now})
			})
		})
	}
	run("long", func(t *testing.T, store storage.Store, opts Options) {
		unreleased, err := Work(t.Context(), store, key, "a", ttl, opts, func(context.Context) error {
			for range 10 {
				time.Sleep(ttl)
				if _, err := Take(t.Context(), store, key, "b", ttl, opts); !errors.Is(err, ErrClaimHeld) {
					t.Errorf("another takes it: %v", err)
				}
			}
			return errWork
		})
		if unreleased != nil || !errors.Is(err, errWork) {
			t.Errorf("%v, %v", unreleased, err)
		}
		if _, err := Take(t.Context(), store, key, "b", ttl, opts); err != nil {
			t.Errorf("afterwards: %v", err)
		}
	})
	run("held", func(t *testing.T, store storage.Store, opts Options) {
		if _, err := Take(t.Context(), store, key, "a", ttl, opts); err != nil {
			t.Fatal(err)
		}
		worked := false
		work := func(context.Context) error { worked = true; return nil }
		if _, err := Work(t.Context(), store, key, "b", ttl, opts, work); !errors.Is(err, ErrClaimHeld) || worked {
			t.Errorf("%v, worked %v", err, worked)
		}
		time.Sleep(ttl + Grace + 2*time.Second)
		if _, err := Work(t.Context(), store, key, "b", ttl, opts, work); err != nil || !worked {
			t.Errorf("after the holder's death: %v, worked %v", err, worked)
		}
	})
	run("lost", func(t *testing.T, store storage.Store, opts Options) {
		unreleased, err := Work(t.Context(), store, key, "a", ttl, opts, func(ctx context.Context) error {
			if err := store.Delete(t.Context(), key); err != nil {
				t.Fatal(err)
			}
			if _, err := Take(t.Context(), store, key, "b", ttl, opts); err != nil {
				t.Fatal(err)
			}
			<-ctx.Done()
			return ctx.Err()
		})
		if unreleased != nil || !errors.Is(err, ErrClaimLost) {
			t.Errorf("%v, %v", unreleased, err)
		}
		if _, err := Take(t.Context(), store, key, "c", ttl, opts); !errors.Is(err, ErrClaimHeld) {
			t.Errorf("the other's claim is gone: %v", err)
		}
	})
}
