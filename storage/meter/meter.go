// Package meter decorates a store with counts of requests and bytes, and with
// a trace of its calls.
//
// It stands on storage only and never changes a call or its outcome. Below
// storage/retry it counts every try; above it, what the caller asked for.
package meter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"strings"
	"sync"
	"time"

	"cardinalsin/storage"
)

// listPage is how many objects one LIST request returns (S3 API,
// ListObjectsV2, MaxKeys).
const listPage = 1000

// Counts sums up the calls of one kind.
type Counts struct {
	Calls int64
	// Requests is what an object store would bill: one a call, one for each
	// 1000 objects of a List, none for Now.
	Requests int64
	Failed   int64 // calls that returned an error
	Bytes    int64 // read by Get and GetRange, written by puts that succeeded
	Objects  int64 // yielded by List
	// Time is the sum of the calls' durations; for a List, its consumer's
	// time is in it.
	Time time.Duration
}

func (c Counts) plus(d Counts, sign int64) Counts {
	return Counts{
		Calls:    c.Calls + sign*d.Calls,
		Requests: c.Requests + sign*d.Requests,
		Failed:   c.Failed + sign*d.Failed,
		Bytes:    c.Bytes + sign*d.Bytes,
		Objects:  c.Objects + sign*d.Objects,
		Time:     c.Time + time.Duration(sign)*d.Time,
	}
}

// Snapshot holds the counts of every kind of call made so far.
type Snapshot map[storage.Op]Counts

// Total adds up all kinds.
func (s Snapshot) Total() Counts {
	var total Counts
	for _, c := range s {
		total = total.plus(c, 1)
	}
	return total
}

// Since returns what was counted after the earlier snapshot.
func (s Snapshot) Since(earlier Snapshot) Snapshot {
	out := Snapshot{}
	for op, c := range s {
		if d := c.plus(earlier[op], -1); d != (Counts{}) {
			out[op] = d
		}
	}
	return out
}

// Event is one finished call.
type Event struct {
	Op      storage.Op
	Key     string // for List, the prefix; for Now, empty
	Bytes   int64  // as in Counts
	Objects int64  // as in Counts
	Time    time.Duration
	Err     error
}

// String prints the call and its outcome in one line that is the same at
// every run: no sizes and no times.
func (e Event) String() string {
	return strings.Join(strings.Fields(fmt.Sprintf("%s %s %s", e.Op, e.Key, Outcome(e.Err))), " ")
}

// Outcome names the condition of an error in one word, "ok" for none. Use it
// as a metric's label or in a golden file.
func Outcome(err error) string {
	if err == nil {
		return "ok"
	}
	for _, c := range outcomes {
		if errors.Is(err, c.err) {
			return c.name
		}
	}
	return "error"
}

// outcomes are in the order in which they are tried: an unknown outcome stays
// one also when a context's end was its cause.
var outcomes = []struct {
	err  error
	name string
}{
	{storage.ErrNotFound, "not_found"},
	{storage.ErrAlreadyExists, "already_exists"},
	{storage.ErrPreconditionFailed, "precondition_failed"},
	{storage.ErrUnknownOutcome, "unknown_outcome"},
	{storage.ErrUnavailable, "unavailable"},
	{storage.ErrPermission, "permission"},
	{storage.ErrInvalidRange, "invalid_range"},
	{storage.ErrInvalidKey, "invalid_key"},
	{storage.ErrStoreRefused, "store_refused"},
	{storage.ErrFull, "full"},
	{context.Canceled, "canceled"},
	{context.DeadlineExceeded, "deadline_exceeded"},
}

// Trace collects events as lines; pass its Record as Options.OnCall. The zero
// value is ready to use, also concurrently.
type Trace struct {
	// mu guards lines.
	mu    sync.Mutex
	lines []string
}

// Record adds an event.
func (t *Trace) Record(e Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lines = append(t.lines, e.String())
}

// Take returns the lines recorded since the last Take, each ended by a
// newline, in the order in which the calls returned.
func (t *Trace) Take() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out strings.Builder
	for _, line := range t.lines {
		out.WriteString(line + "\n")
	}
	t.lines = nil
	return out.String()
}

// Options configure a meter; the zero value counts and traces nothing.
type Options struct {
	// OnCall, if set, hears of every call after it returned and was counted,
	// on the caller's goroutine; concurrent calls call it concurrently.
	OnCall func(Event)
}

// Store is a storage.Store that counts. Its methods may be called
// concurrently.
type Store struct {
	inner  storage.Store
	onCall func(Event)

	// mu guards counts.
	mu     sync.Mutex
	counts Snapshot
}

var (
	_ storage.Store   = (*Store)(nil)
	_ storage.Wrapper = (*Store)(nil)
)

// New decorates inner.
func New(inner storage.Store, opts Options) *Store {
	return &Store{inner: inner, onCall: opts.OnCall, counts: Snapshot{}}
}

// Unwrap implements storage.Wrapper.
func (s *Store) Unwrap() storage.Store { return s.inner }

// Snapshot returns a copy of the counts.
func (s *Store) Snapshot() Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.counts)
}

func (s *Store) count(begin time.Time, e Event) {
	e.Time = time.Since(begin)
	c := Counts{Calls: 1, Requests: 1, Bytes: e.Bytes, Objects: e.Objects, Time: e.Time}
	switch e.Op {
	case storage.OpList:
		c.Requests = max(1, (e.Objects+listPage-1)/listPage)
	case storage.OpNow:
		c.Requests = 0
	}
	if e.Err != nil {
		c.Failed = 1
	}
	s.mu.Lock()
	s.counts[e.Op] = s.counts[e.Op].plus(c, 1)
	s.mu.Unlock()
	if s.onCall != nil {
		s.onCall(e)
	}
}

// Get implements storage.Store.
func (s *Store) Get(ctx context.Context, key string) ([]byte, storage.ObjectInfo, error) {
	begin := time.Now()
	data, info, err := s.inner.Get(ctx, key)
	s.count(begin, Event{Op: storage.OpGet, Key: key, Bytes: int64(len(data)), Err: err})
	return data, info, err
}

// GetRange implements storage.Store.
func (s *Store) GetRange(ctx context.Context, key string, offset, length int64) ([]byte, error) {
	begin := time.Now()
	data, err := s.inner.GetRange(ctx, key, offset, length)
	s.count(begin, Event{Op: storage.OpGetRange, Key: key, Bytes: int64(len(data)), Err: err})
	return data, err
}

// Put implements storage.Store.
func (s *Store) Put(ctx context.Context, key string, body io.ReadSeeker) (storage.ObjectInfo, error) {
	begin := time.Now()
	info, err := s.inner.Put(ctx, key, body)
	s.count(begin, Event{Op: storage.OpPut, Key: key, Bytes: info.Size, Err: err})
	return info, err
}

// PutIfAbsent implements storage.Store.
func (s *Store) PutIfAbsent(ctx context.Context, key string, data []byte) (storage.ObjectInfo, error) {
	begin := time.Now()
	info, err := s.inner.PutIfAbsent(ctx, key, data)
	s.count(begin, Event{Op: storage.OpPutIfAbsent, Key: key, Bytes: info.Size, Err: err})
	return info, err
}

// PutIfMatch implements storage.Store.
func (s *Store) PutIfMatch(ctx context.Context, key string, data []byte, etag storage.ETag) (storage.ObjectInfo, error) {
	begin := time.Now()
	info, err := s.inner.PutIfMatch(ctx, key, data, etag)
	s.count(begin, Event{Op: storage.OpPutIfMatch, Key: key, Bytes: info.Size, Err: err})
	return info, err
}

// List implements storage.Store.
func (s *Store) List(ctx context.Context, prefix, startAfter string) iter.Seq2[storage.ObjectInfo, error] {
	return func(yield func(storage.ObjectInfo, error) bool) {
		begin := time.Now()
		e := Event{Op: storage.OpList, Key: prefix}
		for info, err := range s.inner.List(ctx, prefix, startAfter) {
			if err != nil {
				e.Err = err
			} else {
				e.Objects++
			}
			if !yield(info, err) {
				break
			}
		}
		s.count(begin, e)
	}
}

// Delete implements storage.Store.
func (s *Store) Delete(ctx context.Context, key string) error {
	begin := time.Now()
	err := s.inner.Delete(ctx, key)
	s.count(begin, Event{Op: storage.OpDelete, Key: key, Err: err})
	return err
}

// Now implements storage.Store.
func (s *Store) Now(ctx context.Context) (time.Time, error) {
	begin := time.Now()
	now, err := s.inner.Now(ctx)
	s.count(begin, Event{Op: storage.OpNow, Err: err})
	return now, err
}
