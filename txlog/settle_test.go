package txlog_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"cardinalsin/storage"
	"cardinalsin/storage/fault"
	"cardinalsin/storage/mem"
	"cardinalsin/txlog"
)

// The error of a context that ends before the entry is sent is the caller's.
func TestDeadlineBeforeSending(t *testing.T) {
	inner := mem.New(mem.Options{})
	create(t, inner, txlog.Options{})
	for range 50 {
		f := fault.New(inner)
		l, err := txlog.Open(t.Context(), f, root, txlog.Options{})
		if err != nil {
			t.Fatal(err)
		}
		f.Inject(fault.Fault{Op: storage.OpNow, Delay: time.Hour})
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Millisecond)
		_, err = appendFile(ctx, l, nil, "a")
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %v", err)
		}
	}
}

// A transaction is committed once: offering it again after an unknown outcome
// is refused.
func TestCommitTwice(t *testing.T) {
	l := create(t, mem.New(mem.Options{}), txlog.Options{})
	tx := l.Begin(nil, txlog.Operation{Name: "TEST"})
	tx.SetDomain("d", "1")
	if _, err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s, err := tx.Commit(t.Context()); !errors.Is(err, txlog.ErrCommitted) {
		t.Fatalf("committed again: %v, %v", s, err)
	}
}

// repeating is a store behind something that sends every put twice, as an
// HTTP client or a proxy may: the answer is the second one's.
type repeating struct{ storage.Store }

func (r repeating) PutIfAbsent(ctx context.Context, key string, data []byte) (storage.ObjectInfo, error) {
	if _, err := r.Store.PutIfAbsent(ctx, key, data); err != nil {
		return storage.ObjectInfo{}, err
	}
	return r.Store.PutIfAbsent(ctx, key, data)
}

// A commit that is told "already exists" of its own put has won all the same.
func TestOwnPutExists(t *testing.T) {
	inner := mem.New(mem.Options{})
	create(t, repeating{inner}, txlog.Options{})
	l := open(t, repeating{inner})
	for n := range 3 {
		s, err := appendFile(t.Context(), l, nil, fmt.Sprint(n))
		if err != nil || int(s.Version()) != n+1 {
			t.Fatalf("commit %d: %v", n+1, err)
		}
	}
	if got := latest(t, open(t, inner)); got.NumFiles() != 3 || got.Version() != 3 {
		t.Errorf("version %d with %d files", got.Version(), got.NumFiles())
	}
}
