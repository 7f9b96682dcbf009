package fault_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"cardinalsin/storage"
	"cardinalsin/storage/fault"
	"cardinalsin/storage/mem"
)

func newStore(t *testing.T) (*fault.Store, storage.Store) {
	t.Helper()
	inner := mem.New(mem.Options{})
	return fault.New(inner), inner
}

func has(t *testing.T, s storage.Store, key string) bool {
	t.Helper()
	_, _, err := s.Get(context.Background(), key)
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		t.Fatal(err)
	}
	return err == nil
}

// every call of the contract, by name, against an object "k" that exists.
var everyCall = map[storage.Op]func(context.Context, storage.Store) error{
	storage.OpGet: func(ctx context.Context, s storage.Store) error {
		_, _, err := s.Get(ctx, "k")
		return err
	},
	storage.OpGetRange: func(ctx context.Context, s storage.Store) error {
		_, err := s.GetRange(ctx, "k", 0, 1)
		return err
	},
	storage.OpPut: func(ctx context.Context, s storage.Store) error {
		_, err := s.Put(ctx, "new", bytes.NewReader([]byte("x")))
		return err
	},
	storage.OpPutIfAbsent: func(ctx context.Context, s storage.Store) error {
		_, err := s.PutIfAbsent(ctx, "new", []byte("x"))
		return err
	},
	storage.OpPutIfMatch: func(ctx context.Context, s storage.Store) error {
		// The ETag is found below the faults, so that this is one call.
		_, info, err := s.(storage.Wrapper).Unwrap().Get(ctx, "k")
		if err != nil {
			return err
		}
		_, err = s.PutIfMatch(ctx, "k", []byte("changed"), info.ETag)
		return err
	},
	storage.OpList: func(ctx context.Context, s storage.Store) error {
		_, err := storage.Collect(s.List(ctx, "", ""))
		return err
	},
	storage.OpDelete: func(ctx context.Context, s storage.Store) error { return s.Delete(ctx, "k") },
	storage.OpNow: func(ctx context.Context, s storage.Store) error {
		_, err := s.Now(ctx)
		return err
	},
}

// state prints what the store holds.
func state(t *testing.T, s storage.Store) string {
	t.Helper()
	infos, err := storage.Collect(s.List(context.Background(), "", ""))
	if err != nil {
		t.Fatal(err)
	}
	out := ""
	for _, info := range infos {
		data, _, err := s.Get(context.Background(), info.Key)
		if err != nil {
			t.Fatal(err)
		}
		out += fmt.Sprintf("%s=%s ", info.Key, data)
	}
	return out
}

func TestEveryModeOnEveryCall(t *testing.T) {
	applied := map[storage.Op]string{
		storage.OpPut: "k=old new=x ", storage.OpPutIfAbsent: "k=old new=x ",
		storage.OpPutIfMatch: "k=changed ", storage.OpDelete: "",
	}
	for _, op := range storage.Ops {
		for _, mode := range append([]fault.Mode{fault.Pass}, fault.Modes...) {
			t.Run(fmt.Sprintf("%s/%s", op, mode), func(t *testing.T) {
				ctx := context.Background()
				f, inner := newStore(t)
				if _, err := inner.PutIfAbsent(ctx, "k", []byte("old")); err != nil {
					t.Fatal(err)
				}
				f.FailAt(0, mode)
				err := everyCall[op](ctx, f)

				var wantErr error
				switch {
				case mode == fault.Pass:
				case mode == fault.CrashBefore || mode == fault.CrashAfter:
					wantErr = fault.ErrCrashed
				case op.Writes():
					wantErr = storage.ErrUnknownOutcome
				default:
					wantErr = storage.ErrUnavailable
				}
				if !errors.Is(err, wantErr) {
					t.Errorf("error %v, want %v", err, wantErr)
				}

				want := "k=old "
				if op.Writes() && (mode == fault.Pass || mode == fault.After || mode == fault.CrashAfter) {
					want = applied[op]
				}
				if got := state(t, inner); got != want {
					t.Errorf("state %q, want %q", got, want)
				}
				if mode == fault.Late && op.Writes() {
					f.Land(ctx)
					if got := state(t, inner); got != applied[op] {
						t.Errorf("state %q after it landed, want %q", got, applied[op])
					}
				}

				_, _, err = f.Get(ctx, "nothing")
				if crashed := errors.Is(err, fault.ErrCrashed); crashed != errors.Is(wantErr, fault.ErrCrashed) {
					t.Errorf("the next call says %v", err)
				}
			})
		}
	}
}

func TestPassesThroughUnstruck(t *testing.T) {
	f, inner := newStore(t)
	f.Inject(fault.Fault{Op: storage.OpGet, Key: "other", Mode: fault.Before, Times: -1})
	for _, op := range storage.Ops {
		if _, err := inner.Put(context.Background(), "k", bytes.NewReader([]byte("old"))); err != nil {
			t.Fatal(err)
		}
		if err := inner.Delete(context.Background(), "new"); err != nil {
			t.Fatal(err)
		}
		if err := everyCall[op](context.Background(), f); err != nil {
			t.Errorf("%s: %v", op, err)
		}
	}
	if f.Fired() != 0 || f.Calls() != len(storage.Ops) {
		t.Errorf("fired %d, calls %d", f.Fired(), f.Calls())
	}
	if f.Unwrap() != inner {
		t.Error("Unwrap is not the inner store")
	}
}

func TestSelectsCalls(t *testing.T) {
	ctx := context.Background()
	for _, c := range []struct {
		name  string
		fault fault.Fault
		want  []int // the indexes of calls that fail
	}{
		{"first", fault.Fault{}, []int{0}},
		{"third", fault.Fault{Skip: 2}, []int{2}},
		{"two", fault.Fault{Skip: 1, Times: 2}, []int{1, 2}},
		{"all", fault.Fault{Times: -1}, []int{0, 1, 2, 3, 4, 5}},
		{"all but the first two", fault.Fault{Skip: 2, Times: -1}, []int{2, 3, 4, 5}},
		{"by op", fault.Fault{Op: storage.OpDelete, Times: -1}, []int{1, 3, 5}},
		{"by key", fault.Fault{Key: "log/*.json", Times: -1}, []int{0, 1, 4, 5}},
		{"by op and key", fault.Fault{Op: storage.OpDelete, Key: "log/*.json", Skip: 1}, []int{5}},
		{"by predicate", fault.Fault{When: func(c fault.Call) bool { return c.Index%2 == 0 }, Times: -1}, []int{0, 2, 4}},
		{"never", fault.Fault{Op: storage.OpNow, Times: -1}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, _ := newStore(t)
			c.fault.Mode = fault.Before
			f.Inject(c.fault)
			var got []int
			for i, key := range []string{"log/1.json", "log/1.json", "data/1", "data/1", "log/2.json", "log/2.json"} {
				var err error
				if i%2 == 0 {
					_, err = f.PutIfAbsent(ctx, key, nil)
				} else {
					err = f.Delete(ctx, key)
				}
				if err != nil {
					got = append(got, i)
				}
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("failed calls (-want +got):\n%s", diff)
			}
			if f.Fired() != len(c.want) {
				t.Errorf("Fired() = %d, want %d", f.Fired(), len(c.want))
			}
		})
	}
}

func TestKeyPattern(t *testing.T) {
	ctx := context.Background()
	for _, c := range []struct {
		pattern, key string
		want         bool
	}{
		{"a/b", "a/b", true}, {"a/b", "a/bc", false}, {"*", "a/b", true},
		{"a/*", "a/b/c", true}, {"*/c", "a/b/c", true}, {"a*c", "a/b/c", true},
		{"a*b*c", "a/b/c", true}, {"a*x*c", "a/b/c", false}, {"ab*bc", "abc", false},
		{"*b*", "a/b/c", true}, {"b*", "a/b/c", false}, {"*b", "a/b/c", false},
	} {
		f, _ := newStore(t)
		f.Inject(fault.Fault{Key: c.pattern, Mode: fault.Before})
		err := f.Delete(ctx, c.key)
		if got := err != nil; got != c.want {
			t.Errorf("pattern %q, key %q: struck %v", c.pattern, c.key, got)
		}
	}
}

// A commit's nightmare: the put is reported lost, the read-back finds nothing,
// and then the put lands.
func TestLateWriteLandsAfterReadBack(t *testing.T) {
	ctx := context.Background()
	f, inner := newStore(t)
	f.Inject(fault.Fault{Op: storage.OpPutIfAbsent, Mode: fault.Late})
	data := []byte("mine")
	if _, err := f.PutIfAbsent(ctx, "k", data); !errors.Is(err, storage.ErrUnknownOutcome) {
		t.Fatal(err)
	}
	copy(data, "????") // the caller may use its slice again
	if _, _, err := f.Get(ctx, "k"); !errors.Is(err, storage.ErrNotFound) {
		t.Fatalf("the read-back says %v", err)
	}
	if got := state(t, inner); got != "k=mine " {
		t.Errorf("state %q after the read-back", got)
	}
	if _, err := f.PutIfAbsent(ctx, "k", []byte("mine")); !errors.Is(err, storage.ErrAlreadyExists) {
		t.Errorf("second try: %v", err)
	}
}

func TestLateWriteWaitsForLand(t *testing.T) {
	ctx := context.Background()
	f, inner := newStore(t)
	f.Inject(fault.Fault{Op: storage.OpPut, Mode: fault.Late, LandAfter: -1})
	if _, err := f.Put(ctx, "k", bytes.NewReader([]byte("x"))); !errors.Is(err, storage.ErrUnknownOutcome) {
		t.Fatal(err)
	}
	for range 10 {
		if has(t, f, "k") {
			t.Fatal("it landed by itself")
		}
	}
	f.Land(ctx)
	if !has(t, inner, "k") {
		t.Error("Land did not apply it")
	}
}

func TestListFailsAtItsEnd(t *testing.T) {
	ctx := context.Background()
	f, inner := newStore(t)
	for _, key := range []string{"a", "b"} {
		if _, err := inner.PutIfAbsent(ctx, key, nil); err != nil {
			t.Fatal(err)
		}
	}
	f.FailAt(0, fault.After)
	var keys []string
	var last error
	for info, err := range f.List(ctx, "", "") {
		if err != nil {
			last = err
			continue
		}
		keys = append(keys, info.Key)
	}
	if diff := cmp.Diff([]string{"a", "b"}, keys); diff != "" {
		t.Error(diff)
	}
	if !errors.Is(last, storage.ErrUnavailable) {
		t.Errorf("the listing ended with %v", last)
	}
	for range f.List(ctx, "", "") {
		break // leaving a listing early must not yield again, which would panic
	}
}

func TestHooksSeeTheCallAndMayUseTheStore(t *testing.T) {
	ctx := context.Background()
	f, inner := newStore(t)
	var trace []string
	f.Inject(fault.Fault{
		Op:   storage.OpPutIfAbsent,
		Mode: fault.After,
		OnCall: func(ctx context.Context, c fault.Call) {
			trace = append(trace, fmt.Sprintf("before %s: there %v", c, has(t, f, "k")))
		},
		OnReturn: func(ctx context.Context, c fault.Call, err error) {
			trace = append(trace, fmt.Sprintf("after %s: there %v, unknown %v", c, has(t, inner, "k"), errors.Is(err, storage.ErrUnknownOutcome)))
		},
	})
	if _, err := f.PutIfAbsent(ctx, "k", nil); err == nil {
		t.Fatal("not struck")
	}
	want := []string{
		`before call 0: put_if_absent "k": there false`,
		`after call 0: put_if_absent "k": there true, unknown true`,
	}
	if diff := cmp.Diff(want, trace); diff != "" {
		t.Error(diff)
	}
}

func TestDelayEndsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _ := newStore(t)
		f.Inject(fault.Fault{Delay: time.Hour, Times: -1})
		begin := time.Now()
		if err := f.Delete(context.Background(), "k"); err != nil {
			t.Error(err)
		}
		if took := time.Since(begin); took != time.Hour {
			t.Errorf("took %v", took)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		err := f.Delete(ctx, "k")
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, storage.ErrUnknownOutcome) {
			t.Errorf("write: %v", err)
		}
		if _, _, err := f.Get(ctx, "k"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("read: %v", err)
		}
	})
}

func TestClearHeals(t *testing.T) {
	f, _ := newStore(t)
	f.FailAt(0, fault.CrashBefore)
	for range 3 {
		if err := f.Delete(context.Background(), "k"); !errors.Is(err, fault.ErrCrashed) {
			t.Fatal(err)
		}
	}
	f.Clear()
	if err := f.Delete(context.Background(), "k"); err != nil {
		t.Error(err)
	}
}

func TestOwnError(t *testing.T) {
	f, _ := newStore(t)
	f.Inject(fault.Fault{Mode: fault.Before, Err: storage.ErrFull})
	_, err := f.PutIfAbsent(context.Background(), "k", nil)
	if !errors.Is(err, storage.ErrFull) || errors.Is(err, storage.ErrUnknownOutcome) {
		t.Error(err)
	}
}
