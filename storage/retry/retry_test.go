package retry_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"cardinalsin/storage"
	"cardinalsin/storage/fault"
	"cardinalsin/storage/mem"
	"cardinalsin/storage/retry"
)

var (
	background = context.Background()
	calls      = map[storage.Op]func(context.Context, storage.Store) error{
		storage.OpGet:      func(ctx context.Context, s storage.Store) error { _, _, err := s.Get(ctx, "k"); return err },
		storage.OpGetRange: func(ctx context.Context, s storage.Store) error { _, err := s.GetRange(ctx, "k", 0, 1); return err },
		storage.OpPut: func(ctx context.Context, s storage.Store) error {
			_, err := s.Put(ctx, "k", bytes.NewReader([]byte("x")))
			return err
		},
		storage.OpPutIfAbsent: func(ctx context.Context, s storage.Store) error { _, err := s.PutIfAbsent(ctx, "n", nil); return err },
		storage.OpPutIfMatch: func(ctx context.Context, s storage.Store) error {
			_, err := s.PutIfMatch(ctx, "k", nil, "some")
			return err
		},
		storage.OpList: func(ctx context.Context, s storage.Store) error {
			_, err := storage.Collect(s.List(ctx, "", ""))
			return err
		},
		storage.OpDelete: func(ctx context.Context, s storage.Store) error { return s.Delete(ctx, "k") },
		storage.OpNow:    func(ctx context.Context, s storage.Store) error { _, err := s.Now(ctx); return err },
	}
)

func newStore(t *testing.T, opts retry.Options) (*retry.Store, *fault.Store) {
	t.Helper()
	inner := mem.New(mem.Options{})
	if _, err := inner.PutIfAbsent(background, "k", []byte("value")); err != nil {
		t.Fatal(err)
	}
	f := fault.New(inner)
	return retry.New(f, opts), f
}

// Which calls are made again, after which errors.
func TestWhatIsRetried(t *testing.T) {
	const failures = 3
	for _, op := range storage.Ops {
		for name, cause := range map[string]error{
			"unavailable": storage.ErrUnavailable,
			"unknown":     storage.ErrUnknownOutcome,
			"not found":   storage.ErrNotFound,
			"permission":  storage.ErrPermission,
			"full":        storage.ErrFull,
			"crash":       fault.ErrCrashed,
		} {
			t.Run(fmt.Sprintf("%s/%s", op, name), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s, f := newStore(t, retry.Options{})
					f.Inject(fault.Fault{Mode: fault.Before, Times: failures, Err: cause})
					err := calls[op](background, s)

					conditional := op == storage.OpPutIfAbsent || op == storage.OpPutIfMatch
					again := !conditional && (errors.Is(cause, storage.ErrUnavailable) || errors.Is(cause, storage.ErrUnknownOutcome) && op.Writes())
					if again {
						if err != nil || f.Calls() != failures+1 {
							t.Errorf("%d calls, error %v; want %d and none", f.Calls(), err, failures+1)
						}
						return
					}
					if !errors.Is(err, cause) || f.Calls() != 1 {
						t.Errorf("%d calls, error %v; want one and the cause", f.Calls(), err)
					}
				})
			})
		}
	}
}

func TestAttemptsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var heard []int
		s, f := newStore(t, retry.Options{Attempts: 4, OnRetry: func(op storage.Op, key string, attempt int, err error) {
			if op != storage.OpGet || key != "k" || !errors.Is(err, storage.ErrUnavailable) {
				t.Errorf("OnRetry(%s, %q, %v)", op, key, err)
			}
			heard = append(heard, attempt)
		}})
		f.Inject(fault.Fault{Mode: fault.Before, Times: -1})
		_, _, err := s.Get(background, "k")
		if !errors.Is(err, storage.ErrUnavailable) || f.Calls() != 4 {
			t.Errorf("%d calls, error %v", f.Calls(), err)
		}
		if diff := cmp.Diff([]int{1, 2, 3}, heard); diff != "" {
			t.Error(diff)
		}
	})
}

func TestDelaysGrowToTheirLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var at []time.Duration
		begin := time.Now()
		s, f := newStore(t, retry.Options{
			Attempts: 7, MinDelay: time.Second, MaxDelay: 10 * time.Second,
			Rand: func() float64 { return 0.5 },
		})
		f.Inject(fault.Fault{Mode: fault.Before, Times: -1, OnCall: func(context.Context, fault.Call) {
			at = append(at, time.Since(begin))
		}})
		if err := s.Delete(background, "k"); !errors.Is(err, storage.ErrUnknownOutcome) {
			t.Error(err)
		}
		// Halves of 1, 2, 4, 8, 10 and 10 s.
		var want []time.Duration
		for _, ms := range []int64{0, 500, 1500, 3500, 7500, 12500, 17500} {
			want = append(want, time.Duration(ms)*time.Millisecond)
		}
		if diff := cmp.Diff(want, at); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

func TestContextEndsTheTries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, f := newStore(t, retry.Options{MinDelay: time.Hour, MaxDelay: time.Hour, Rand: func() float64 { return 1 }})
		f.Inject(fault.Fault{Mode: fault.Before, Times: -1})
		ctx, cancel := context.WithTimeout(background, time.Minute)
		defer cancel()
		for _, op := range []storage.Op{storage.OpDelete, storage.OpList} {
			begin := time.Now()
			err := calls[op](ctx, s)
			cause := storage.ErrUnavailable
			if op.Writes() {
				cause = storage.ErrUnknownOutcome
			}
			if !errors.Is(err, cause) {
				t.Errorf("%s: %v", op, err)
			}
			if op == storage.OpDelete && (!errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != time.Minute) {
				t.Errorf("%s: %v after %v", op, err, time.Since(begin))
			}
		}
		if f.Calls() != 2 {
			t.Errorf("%d calls", f.Calls())
		}
	})
}

func TestPutSendsTheWholeBodyEachTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, f := newStore(t, retry.Options{})
		f.Inject(fault.Fault{Mode: fault.After, Times: 2})
		if _, err := s.Put(background, "body", bytes.NewReader([]byte("whole"))); err != nil {
			t.Fatal(err)
		}
		data, _, err := s.Get(background, "body")
		if err != nil || string(data) != "whole" {
			t.Errorf("%q, %v", data, err)
		}
	})
}

// breaking fails every listing with ErrUnavailable after some objects.
type breaking struct {
	storage.Store
	objects  int
	listings int
}

func (b *breaking) List(ctx context.Context, prefix, startAfter string) iter.Seq2[storage.ObjectInfo, error] {
	return func(yield func(storage.ObjectInfo, error) bool) {
		b.listings++
		left := b.objects
		for info, err := range b.Store.List(ctx, prefix, startAfter) {
			if left == 0 {
				yield(storage.ObjectInfo{}, storage.ErrUnavailable)
				return
			}
			left--
			if !yield(info, err) {
				return
			}
		}
	}
}

func TestListGoesOnBehindTheLastKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := mem.New(mem.Options{})
		var want []string
		for i := range 20 {
			key := fmt.Sprintf("p/%02d", i)
			if _, err := inner.PutIfAbsent(background, key, nil); err != nil {
				t.Fatal(err)
			}
			if i > 2 {
				want = append(want, key)
			}
		}
		b := &breaking{Store: inner, objects: 3}
		// More failures than attempts: progress starts the count anew.
		s := retry.New(b, retry.Options{Attempts: 2})
		infos, err := storage.Collect(s.List(background, "p/", "p/02"))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, info := range infos {
			got = append(got, info.Key)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if b.listings != 6 {
			t.Errorf("%d listings", b.listings)
		}

		b.objects, b.listings = 0, 0
		if _, err := storage.Collect(s.List(background, "p/", "")); !errors.Is(err, storage.ErrUnavailable) || b.listings != 2 {
			t.Errorf("no progress: %d listings, %v", b.listings, err)
		}
		for range s.List(background, "p/", "") {
			break // leaving early must not yield again
		}
	})
}
