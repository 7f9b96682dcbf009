package txlog_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cardinalsin/action"
	"cardinalsin/storage"
	"cardinalsin/storage/fault"
	"cardinalsin/storage/mem"
	"cardinalsin/txlog"
)

// between is a store during whose listings two versions are committed, of
// which the listing shows only the later: what is written meanwhile may or may
// not come (storage.Store, List).
type between struct {
	storage.Store
	commit func() (storage.ObjectInfo, bool)
}

func (b *between) List(ctx context.Context, prefix, startAfter string) iter.Seq2[storage.ObjectInfo, error] {
	return func(yield func(storage.ObjectInfo, error) bool) {
		objs, err := storage.Collect(b.Store.List(ctx, prefix, startAfter))
		if err != nil {
			yield(storage.ObjectInfo{}, err)
			return
		}
		later, ok := b.commit()
		for _, o := range objs {
			if ok && o.Key > later.Key {
				ok = false
				if !yield(later, nil) {
					return
				}
			}
			if !yield(o, nil) {
				return
			}
		}
		if ok {
			yield(later, nil)
		}
	}
}

// A version that a listing leaves out since it was committed meanwhile is no
// gap in the log.
func TestListingUnderCommits(t *testing.T) {
	for _, last := range []int{3, 80} {
		t.Run(fmt.Sprint(last), func(t *testing.T) {
			inner := mem.New(mem.Options{})
			l := create(t, inner, txlog.Options{})
			b := &between{Store: inner}
			for i := range last {
				if _, err := appendFile(t.Context(), l, nil, fmt.Sprint(i)); err != nil {
					t.Fatal(err)
				}
			}
			n := 0
			b.commit = func() (o storage.ObjectInfo, ok bool) {
				for range 2 {
					n++
					s, err := appendFile(t.Context(), l, nil, fmt.Sprintf("meanwhile%d", n))
					if err != nil {
						t.Fatal(err)
					}
					_, o, err = inner.Get(t.Context(), l.CommitKey(s.Version()))
					if err != nil {
						t.Fatal(err)
					}
				}
				return o, true
			}
			got, err := txlog.Open(t.Context(), b, root, txlog.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if v := int(latest(t, got).Version()); v != last+n {
				t.Errorf("opened at version %d, the latest is %d", v, last+n)
			}
		})
	}
}

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

// A transaction that cannot be encoded fails alone: not those that share its
// entry, and not the commits after it, whoever has gone meanwhile.
func TestBadMemberFailsAlone(t *testing.T) {
	for name, spoil := range map[string]func(*action.Add){
		"path":             func(a *action.Add) { a.Path = "x\x00" },
		"partition values": func(a *action.Add) { a.PartitionValues = "{" },
	} {
		t.Run(name, func(t *testing.T) {
			inner := mem.New(mem.Options{})
			create(t, inner, txlog.Options{})
			f := fault.New(inner)
			l, err := txlog.Open(t.Context(), f, root, txlog.Options{})
			if err != nil {
				t.Fatal(err)
			}
			// The first entry waits for three transactions to gather behind it;
			// as theirs is built, the caller of one goes.
			impatient, leave := context.WithCancel(t.Context())
			f.Inject(
				fault.Fault{Op: storage.OpPutIfAbsent, OnCall: func(context.Context, fault.Call) {
					for l.Waiting() < 3 {
						time.Sleep(time.Millisecond)
					}
				}},
				fault.Fault{Op: storage.OpNow, Skip: 1, OnCall: func(context.Context, fault.Call) {
					leave()
					time.Sleep(10 * time.Millisecond)
				}},
			)
			results := make(chan string, 4)
			commit := func(ctx context.Context, path string, edit func(*action.Add)) {
				tx := l.Begin(nil, txlog.Operation{Name: "TEST"})
				a := add(path)
				edit(&a)
				tx.Add(a)
				_, err := tx.Commit(ctx)
				switch {
				case err == nil:
					path += " committed"
				case errors.Is(err, context.Canceled):
					path += " left"
				default:
					path += " failed"
				}
				results <- path
			}
			whole := func(*action.Add) {}
			go commit(t.Context(), "first", whole)
			for f.Calls() < 4 { // open takes some; the put is under way or about to be
				time.Sleep(time.Millisecond)
			}
			for n, c := range []struct {
				ctx  context.Context
				path string
				edit func(*action.Add)
			}{{impatient, "gone", whole}, {t.Context(), "bad", spoil}, {t.Context(), "good", whole}} {
				go commit(c.ctx, c.path, c.edit)
				for l.Waiting() < n+1 && n < 2 {
					time.Sleep(time.Millisecond)
				}
			}
			var got []string
			for range 4 {
				select {
				case r := <-results:
					got = append(got, r)
				case <-time.After(5 * time.Second):
					t.Fatalf("only %q have ended", got)
				}
			}
			slices.Sort(got)
			want := []string{"bad failed", "first committed", "gone left", "good committed"}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			if _, err := appendFile(ctx, l, nil, "later"); err != nil {
				t.Errorf("later: %v", err)
			}
		})
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
