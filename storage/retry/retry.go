// Package retry decorates a store with tries of the calls that are safe to
// repeat.
//
// It stands on storage only, above the remote backends, whose own clients
// retry nothing.
//
// INVARIANT: PutIfAbsent and PutIfMatch pass through once, whatever they
// return. A repeated conditional put cannot tell its own success from a
// rival's; only the caller, which knows the bytes, can read back.
//
// Put is for keys that are unique by construction and for hints, so writing
// the same bytes again is harmless; so is deleting again. A write that gives
// up is still an unknown outcome.
package retry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"time"

	"cardinalsin/storage"
)

// Options configure the tries; the zero value is ready to use.
type Options struct {
	// Attempts is how often a call is made at most, the first included;
	// default 5. A List starts counting anew after each object it yields.
	Attempts int
	// MinDelay and MaxDelay bound the wait before a retry. Before the n-th
	// retry it is random between 0 and MinDelay·2ⁿ (n from 0), at most
	// MaxDelay: "full jitter", so that clients that failed together do not
	// return together. Defaults 100 ms and 5 s: with 5 attempts, at most
	// 0.1+0.2+0.4+0.8 = 1.5 s of waiting.
	MinDelay, MaxDelay time.Duration
	// Rand returns a number in [0, 1), concurrently; default math/rand/v2.
	Rand func() float64
	// OnRetry, if set, hears of every failure that is tried again.
	OnRetry func(op storage.Op, key string, attempt int, err error)
}

// EnsureDefaults fills what is not set.
func (o *Options) EnsureDefaults() {
	if o.Attempts <= 0 {
		o.Attempts = 5
	}
	if o.MinDelay <= 0 {
		o.MinDelay = 100 * time.Millisecond
	}
	if o.MaxDelay <= 0 {
		o.MaxDelay = 5 * time.Second
	}
	if o.Rand == nil {
		o.Rand = rand.Float64
	}
}

// Store is a storage.Store that retries. Its methods may be called
// concurrently.
type Store struct {
	inner storage.Store
	opts  Options
}

var (
	_ storage.Store   = (*Store)(nil)
	_ storage.Wrapper = (*Store)(nil)
)

// New decorates inner.
func New(inner storage.Store, opts Options) *Store {
	opts.EnsureDefaults()
	return &Store{inner: inner, opts: opts}
}

// Unwrap implements storage.Wrapper.
func (s *Store) Unwrap() storage.Store { return s.inner }

// PutIfAbsent implements storage.Store; it is never retried.
func (s *Store) PutIfAbsent(ctx context.Context, key string, data []byte) (storage.ObjectInfo, error) {
	return s.inner.PutIfAbsent(ctx, key, data)
}

// PutIfMatch implements storage.Store; it is never retried.
func (s *Store) PutIfMatch(ctx context.Context, key string, data []byte, etag storage.ETag) (storage.ObjectInfo, error) {
	return s.inner.PutIfMatch(ctx, key, data, etag)
}

// Get implements storage.Store.
func (s *Store) Get(ctx context.Context, key string) (data []byte, info storage.ObjectInfo, err error) {
	err = s.do(ctx, storage.OpGet, key, func() error {
		data, info, err = s.inner.Get(ctx, key)
		return err
	})
	return data, info, err
}

// GetRange implements storage.Store.
func (s *Store) GetRange(ctx context.Context, key string, offset, length int64) (data []byte, err error) {
	err = s.do(ctx, storage.OpGetRange, key, func() error {
		data, err = s.inner.GetRange(ctx, key, offset, length)
		return err
	})
	return data, err
}

// Put implements storage.Store.
func (s *Store) Put(ctx context.Context, key string, body io.ReadSeeker) (info storage.ObjectInfo, err error) {
	err = s.do(ctx, storage.OpPut, key, func() error {
		info, err = s.inner.Put(ctx, key, body) // reads body from its start, each time
		return err
	})
	return info, err
}

// Delete implements storage.Store.
func (s *Store) Delete(ctx context.Context, key string) error {
	return s.do(ctx, storage.OpDelete, key, func() error { return s.inner.Delete(ctx, key) })
}

// Now implements storage.Store.
func (s *Store) Now(ctx context.Context) (now time.Time, err error) {
	err = s.do(ctx, storage.OpNow, "", func() error {
		now, err = s.inner.Now(ctx)
		return err
	})
	return now, err
}

// List implements storage.Store. After a failure it goes on behind the last
// key it yielded, so that no object comes twice.
func (s *Store) List(ctx context.Context, prefix, startAfter string) iter.Seq2[storage.ObjectInfo, error] {
	return func(yield func(storage.ObjectInfo, error) bool) {
		after := startAfter
		for attempt := 1; ; attempt++ {
			var failure error
			for info, err := range s.inner.List(ctx, prefix, after) {
				if err != nil {
					failure = err
					break
				}
				after, attempt = info.Key, 1
				if !yield(info, nil) {
					return
				}
			}
			if failure == nil {
				return
			}
			if err := s.wait(ctx, storage.OpList, prefix, attempt, failure); err != nil {
				yield(storage.ObjectInfo{}, err)
				return
			}
		}
	}
}

func (s *Store) do(ctx context.Context, op storage.Op, key string, try func() error) error {
	for attempt := 1; ; attempt++ {
		err := try()
		if err == nil {
			return nil
		}
		if err := s.wait(ctx, op, key, attempt, err); err != nil {
			return err
		}
	}
}

// wait returns nil when the call should be made again, after the pause that
// this takes, and else the error to give back.
func (s *Store) wait(ctx context.Context, op storage.Op, key string, attempt int, err error) error {
	mayPass := errors.Is(err, storage.ErrUnavailable) || (op.Writes() && errors.Is(err, storage.ErrUnknownOutcome))
	if !mayPass || ctx.Err() != nil {
		return err
	}
	if attempt >= s.opts.Attempts {
		if attempt == 1 {
			return err
		}
		return fmt.Errorf("%d attempts: %w", attempt, err)
	}
	if s.opts.OnRetry != nil {
		s.opts.OnRetry(op, key, attempt, err)
	}
	timer := time.NewTimer(s.delay(attempt))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w (no time to retry: %w)", err, ctx.Err())
	}
}

func (s *Store) delay(attempt int) time.Duration {
	limit := s.opts.MinDelay
	for range attempt - 1 {
		limit *= 2
		if limit >= s.opts.MaxDelay {
			break // also ends the doubling before it can overflow
		}
	}
	return time.Duration(s.opts.Rand() * float64(min(limit, s.opts.MaxDelay)))
}
