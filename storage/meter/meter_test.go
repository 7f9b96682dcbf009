package meter_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"cardinalsin/storage"
	"cardinalsin/storage/fault"
	"cardinalsin/storage/mem"
	"cardinalsin/storage/meter"
)

// exercise makes one call of each kind and some that fail.
func exercise(t *testing.T, s storage.Store) {
	t.Helper()
	ctx := context.Background()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, err := s.Put(ctx, "a", bytes.NewReader(make([]byte, 10)))
	must(err)
	info, err := s.PutIfAbsent(ctx, "b", make([]byte, 20))
	must(err)
	if _, err := s.PutIfAbsent(ctx, "b", make([]byte, 99)); !errors.Is(err, storage.ErrAlreadyExists) {
		t.Fatal(err)
	}
	_, err = s.PutIfMatch(ctx, "b", make([]byte, 30), info.ETag)
	must(err)
	if _, err := s.PutIfMatch(ctx, "b", make([]byte, 99), info.ETag); !errors.Is(err, storage.ErrPreconditionFailed) {
		t.Fatal(err)
	}
	_, _, err = s.Get(ctx, "b")
	must(err)
	if _, _, err := s.Get(ctx, "c"); !errors.Is(err, storage.ErrNotFound) {
		t.Fatal(err)
	}
	_, err = s.GetRange(ctx, "b", 5, 7)
	must(err)
	if _, err := s.GetRange(ctx, "b", 29, 2); !errors.Is(err, storage.ErrInvalidRange) {
		t.Fatal(err)
	}
	_, err = storage.Collect(s.List(ctx, "", ""))
	must(err)
	must(s.Delete(ctx, "a"))
	_, err = s.Now(ctx)
	must(err)
}

func TestCountsAndTrace(t *testing.T) {
	var trace meter.Trace
	s := meter.New(mem.New(mem.Options{}), meter.Options{OnCall: trace.Record})
	exercise(t, s)

	want := meter.Snapshot{
		storage.OpPut:         {Calls: 1, Requests: 1, Bytes: 10},
		storage.OpPutIfAbsent: {Calls: 2, Requests: 2, Failed: 1, Bytes: 20},
		storage.OpPutIfMatch:  {Calls: 2, Requests: 2, Failed: 1, Bytes: 30},
		storage.OpGet:         {Calls: 2, Requests: 2, Failed: 1, Bytes: 30},
		storage.OpGetRange:    {Calls: 2, Requests: 2, Failed: 1, Bytes: 7},
		storage.OpList:        {Calls: 1, Requests: 1, Objects: 2},
		storage.OpDelete:      {Calls: 1, Requests: 1},
		storage.OpNow:         {Calls: 1},
	}
	noTime := cmpopts.IgnoreFields(meter.Counts{}, "Time")
	first := s.Snapshot()
	if diff := cmp.Diff(want, first, noTime); diff != "" {
		t.Errorf("counts (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(meter.Counts{Calls: 12, Requests: 11, Failed: 4, Bytes: 97, Objects: 2}, first.Total(), noTime); diff != "" {
		t.Errorf("total (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(meter.Snapshot{}, s.Snapshot().Since(first)); diff != "" {
		t.Errorf("nothing happened since (-want +got):\n%s", diff)
	}

	if err := s.Delete(context.Background(), "b"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(meter.Snapshot{storage.OpDelete: {Calls: 1, Requests: 1}}, s.Snapshot().Since(first), noTime); diff != "" {
		t.Errorf("since (-want +got):\n%s", diff)
	}

	wantTrace := `put a ok
put_if_absent b ok
put_if_absent b already_exists
put_if_match b ok
put_if_match b precondition_failed
get b ok
get c not_found
get_range b ok
get_range b invalid_range
list ok
delete a ok
now ok
delete b ok
`
	if diff := cmp.Diff(wantTrace, trace.Take()); diff != "" {
		t.Errorf("trace (-want +got):\n%s", diff)
	}
	if rest := trace.Take(); rest != "" {
		t.Errorf("Take left %q", rest)
	}
}

func TestListRequestsAndErrors(t *testing.T) {
	ctx := context.Background()
	inner := mem.New(mem.Options{})
	f := fault.New(inner)
	s := meter.New(f, meter.Options{})
	for i := range 2001 {
		if _, err := inner.PutIfAbsent(ctx, fmt.Sprintf("%04d", i), nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := storage.Collect(s.List(ctx, "", "")); err != nil {
		t.Fatal(err)
	}
	for range s.List(ctx, "", "") {
		break
	}
	f.Inject(fault.Fault{Mode: fault.After})
	if _, err := storage.Collect(s.List(ctx, "", "1999")); !errors.Is(err, storage.ErrUnavailable) {
		t.Fatal(err)
	}
	got := s.Snapshot()[storage.OpList]
	got.Time = 0
	if diff := cmp.Diff(meter.Counts{Calls: 3, Requests: 3 + 1 + 1, Failed: 1, Objects: 2001 + 1 + 1}, got); diff != "" {
		t.Error(diff)
	}
}

func TestOutcome(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{nil, "ok"},
		{fmt.Errorf("get %q: %w", "k", storage.ErrNotFound), "not_found"},
		{fmt.Errorf("%w: %w", storage.ErrUnknownOutcome, context.Canceled), "unknown_outcome"},
		{context.DeadlineExceeded, "deadline_exceeded"},
		{errors.New("other"), "error"},
	} {
		if got := meter.Outcome(c.err); got != c.want {
			t.Errorf("Outcome(%v) = %q, want %q", c.err, got, c.want)
		}
	}
}

func TestConcurrentCallsAreAllCounted(t *testing.T) {
	s := meter.New(mem.New(mem.Options{Now: func() time.Time { return time.Unix(0, 0) }}), meter.Options{})
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 100 {
				if err := s.Delete(context.Background(), "k"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	if got := s.Snapshot()[storage.OpDelete].Calls; got != 800 {
		t.Errorf("counted %d", got)
	}
}
