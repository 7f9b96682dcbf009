package txlog_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cardinalsin/action"
	"cardinalsin/checkpoint"
	"cardinalsin/storage"
	"cardinalsin/storage/fault"
	"cardinalsin/storage/mem"
	"cardinalsin/txlog"
)

// onlyTheStore reports whether an error says that the store failed, and
// nothing about the table.
func onlyTheStore(err error) bool {
	for _, verdict := range []error{
		txlog.ErrNotTable, txlog.ErrTableExists, txlog.ErrVersionNotFound, txlog.ErrVersionVacuumed, txlog.ErrUnsupported,
		txlog.ErrReadOnly, txlog.ErrConflict, txlog.ErrFenced, action.ErrCorrupt, checkpoint.ErrCorrupt, storage.ErrNotFound,
	} {
		if errors.Is(err, verdict) {
			return false
		}
	}
	return errors.Is(err, storage.ErrUnavailable) || errors.Is(err, storage.ErrUnknownOutcome) || errors.Is(err, fault.ErrCrashed)
}

// grow commits versions up to and including last, with all that a snapshot
// holds: files that come and go, an application's number, a domain. It returns
// what the versions hold, from the one on which it builds.
func grow(t *testing.T, l *txlog.Log, last action.Version) map[action.Version]state {
	t.Helper()
	s := latest(t, l)
	states := map[action.Version]state{s.Version(): lasting(s)}
	for v := s.Version() + 1; v <= last; v++ {
		tx := l.Begin(s, txlog.Operation{Name: "TEST"})
		tx.Add(add(fmt.Sprintf("f%03d", v)))
		if old, ok := s.File(action.Key{Path: fmt.Sprintf("f%03d", v-2)}); ok && v%3 == 0 {
			tx.Remove(old.Tombstone(false))
		}
		tx.SetTransaction("app", int64(v))
		tx.SetDomain("d", fmt.Sprint(v))
		var err error
		if s, err = tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		states[v] = lasting(s)
	}
	return states
}

func at(t *testing.T, l *txlog.Log, v action.Version) state {
	t.Helper()
	s, err := l.Snapshot(t.Context(), txlog.AtVersion(v))
	if err != nil {
		t.Fatalf("version %d: %v", v, err)
	}
	return lasting(s)
}

// lasting is what a snapshot says, but for what concerns one commit only: a
// checkpoint keeps none of that.
func lasting(s *txlog.Snapshot) state {
	st := stateOf(s)
	for i := range st.Files {
		st.Files[i].DataChange = false
	}
	return st
}

// Whatever call fails, and however, while checksums, log compactions and
// checkpoints are written: every version is what it was, for whoever opens the
// table, then and after what was late has landed; and the log goes on.
func TestUpkeepFaultSweep(t *testing.T) {
	const last = 8
	opts := txlog.Options{CheckpointEvery: 6, CompactEvery: 4}
	for _, mode := range fault.Modes {
		swept, step := 0, 1
		if mode >= fault.CrashBefore {
			step = 3 // to the store a crash is one of the other modes, and nothing after it
		}
		for i := 0; ; i += step {
			inner := mem.New(mem.Options{})
			create(t, inner, txlog.Options{})
			f := fault.New(inner)
			l, err := txlog.Open(t.Context(), f, root, opts)
			if err != nil {
				t.Fatal(err)
			}
			want := grow(t, l, last)
			f.FailAt(i, mode)
			err = l.Upkeep(t.Context())
			if err == nil {
				_, err = l.Checkpoint(t.Context())
			}
			if f.Fired() == 0 {
				if err != nil {
					t.Fatal(err)
				}
				break
			}
			swept++
			if err != nil && !onlyTheStore(err) { // nil: who has left a listing early does not hear of its end
				t.Errorf("%v, call %d: %v", mode, i, err)
			}
			for _, when := range []string{"at once", "after what was late", "without checkpoints"} {
				switch when {
				case "after what was late":
					f.Land(t.Context())
				case "without checkpoints": // so that the compactions are read
					without(t, inner, hintKey, checkpointKey(6), checkpointKey(last))
				}
				fresh := open(t, inner)
				look := []action.Version{last}
				if when == "without checkpoints" {
					look = []action.Version{3, 4, 7, last} // 4 and 8 end a compaction
				}
				for _, v := range look {
					if diff := cmp.Diff(want[v], at(t, fresh, v)); diff != "" {
						t.Fatalf("%v, call %d, %s: version %d (-want +got):\n%s", mode, i, when, v, diff)
					}
				}
			}
			again, err := txlog.Open(t.Context(), inner, root, opts)
			if err != nil {
				t.Fatal(err)
			}
			want = grow(t, again, last+1)
			if err := again.Upkeep(t.Context()); err != nil {
				t.Errorf("%v, call %d: the next upkeep: %v", mode, i, err)
			}
			if diff := cmp.Diff(want[last+1], lasting(latest(t, open(t, inner)))); diff != "" {
				t.Errorf("%v, call %d: later (-committer +opened):\n%s", mode, i, diff)
			}
		}
		// 8 checksums, 2 compactions of 4 commits, 2 checkpoints
		if least := (8 + 2*5 + 2*2) / step; swept < least {
			t.Errorf("%v: %d calls swept, at least %d are made", mode, swept, least)
		}
	}
}

// loads are all ways to read the log, on a table whose latest version lies
// ahead of what l knows.
var loads = map[string]func(ctx context.Context, l *txlog.Log) (*txlog.Snapshot, error){
	"refresh": func(ctx context.Context, l *txlog.Log) (*txlog.Snapshot, error) {
		return l.Snapshot(ctx, txlog.Latest())
	},
	"open": func(ctx context.Context, l *txlog.Log) (*txlog.Snapshot, error) {
		fresh, err := txlog.Open(ctx, l.Store(), root, txlog.Options{})
		if err != nil {
			return nil, err
		}
		return fresh.Snapshot(ctx, txlog.Latest())
	},
	"version": func(ctx context.Context, l *txlog.Log) (*txlog.Snapshot, error) {
		return l.Snapshot(ctx, txlog.AtVersion(7))
	},
	"time": func(ctx context.Context, l *txlog.Log) (*txlog.Snapshot, error) {
		s, err := l.Snapshot(ctx, txlog.AtVersion(7))
		if err != nil {
			return nil, err
		}
		return l.Snapshot(ctx, txlog.AtTime(s.Time()))
	},
}

// tables are logs of several shapes: a maker of what comes before and what
// comes after l has been opened.
var tables = map[string]struct {
	opts   txlog.Options
	before action.Version
	last   action.Version
}{
	"commits only":        {txlog.Options{CheckpointEvery: 1000, CompactEvery: 1000}, 7, 9},
	"compacted":           {txlog.Options{CheckpointEvery: 1000, CompactEvery: 4}, 8, 10},
	"checkpoint and tail": {txlog.Options{CheckpointEvery: 6, CompactEvery: 4}, 8, 13},
	"far behind":          {txlog.Options{CheckpointEvery: 1000, CompactEvery: 16}, 3, 70},
}

// Whatever call fails while the log is read: the reader is told so, or is
// given what it asked for – never another state, and never a verdict on the
// table. Asked again, the same process gives the right answer.
func TestLoadFaultSweep(t *testing.T) {
	for shape, table := range tables {
		for way, load := range loads {
			t.Run(shape+", "+way, func(t *testing.T) {
				inner := mem.New(mem.Options{})
				maker := create(t, inner, table.opts)
				grow(t, maker, table.before)
				if err := maker.Upkeep(t.Context()); err != nil {
					t.Fatal(err)
				}
				early := copied(t, inner)
				grow(t, maker, table.last)
				if err := maker.Upkeep(t.Context()); err != nil {
					t.Fatal(err)
				}
				right, err := load(t.Context(), open(t, inner))
				if err != nil {
					t.Fatal(err)
				}
				want := lasting(right)
				for _, mode := range []fault.Mode{fault.Before, fault.After, fault.CrashBefore} {
					swept := 0
					for i := 0; ; i++ {
						if i > 30 {
							i += 4 // one like the other
						}
						m := &moved{early}
						f := fault.New(m)
						l := open(t, f)
						m.Store = inner // l is behind now
						f.FailAt(i, mode)
						s, err := load(t.Context(), l)
						switch {
						case err != nil && f.Fired() == 0:
							t.Fatal(err)
						case err != nil && !onlyTheStore(err):
							t.Errorf("%v, call %d: %v", mode, i, err)
						case err == nil:
							if diff := cmp.Diff(want, lasting(s)); diff != "" {
								t.Errorf("%v, call %d (-want +got):\n%s", mode, i, diff)
							}
						}
						if f.Fired() == 0 {
							break
						}
						swept++
						f.Clear()
						if s, err = load(t.Context(), l); err != nil {
							t.Errorf("%v, call %d, asked again: %v", mode, i, err)
						} else if diff := cmp.Diff(want, lasting(s)); diff != "" {
							t.Errorf("%v, call %d, asked again (-want +got):\n%s", mode, i, diff)
						}
					}
					if swept == 0 {
						t.Errorf("%v: nothing swept", mode)
					}
				}
			})
		}
	}
}

// moved is a store that is exchanged for another between two calls.
type moved struct{ storage.Store }

// copied is a store with the same objects.
func copied(t *testing.T, from storage.Store) storage.Store {
	t.Helper()
	to := mem.New(mem.Options{})
	for o, err := range from.List(t.Context(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		data, _, err := from.Get(t.Context(), o.Key)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := to.PutIfAbsent(t.Context(), o.Key, data); err != nil {
			t.Fatal(err)
		}
	}
	return to
}

// partly is a store whose listings break off after some objects.
type partly struct {
	storage.Store
	left int
}

func (p *partly) List(ctx context.Context, prefix, startAfter string) iter.Seq2[storage.ObjectInfo, error] {
	return func(yield func(storage.ObjectInfo, error) bool) {
		for o, err := range p.Store.List(ctx, prefix, startAfter) {
			if p.left == 0 {
				yield(storage.ObjectInfo{}, fmt.Errorf("list: %w", storage.ErrUnavailable))
				return
			}
			p.left--
			if !yield(o, err) {
				return
			}
		}
	}
}

// A listing that breaks off is no shorter log.
func TestListingBreaksOff(t *testing.T) {
	inner := mem.New(mem.Options{})
	l := create(t, inner, txlog.Options{CheckpointEvery: 4, CompactEvery: 4})
	grow(t, l, 10)
	if err := l.Upkeep(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := lasting(latest(t, l))
	for _, hint := range []bool{true, false} {
		if !hint {
			without(t, inner, hintKey)
		}
		for n := 0; ; n++ {
			broken, err := txlog.Open(t.Context(), &partly{inner, n}, root, txlog.Options{})
			if err != nil {
				if !onlyTheStore(err) {
					t.Errorf("hint %v, %d objects: %v", hint, n, err)
				}
				continue
			}
			if n == 0 {
				t.Errorf("hint %v: nothing was listed", hint)
			}
			if diff := cmp.Diff(want, lasting(latest(t, broken))); diff != "" {
				t.Errorf("hint %v, %d objects (-want +got):\n%s", hint, n, diff)
			}
			break
		}
	}
}

// Create under every fault: the table is there once or not at all, and
// whoever is told that it was made can use it.
func TestCreateFaultSweep(t *testing.T) {
	for _, mode := range fault.Modes {
		for i := 0; ; i++ {
			inner := mem.New(mem.Options{})
			f := fault.New(inner)
			f.FailAt(i, mode)
			ctx, cancel := context.WithCancel(t.Context())
			l, err := txlog.Create(ctx, f, root, txlog.CreateOptions{Schema: schema()}, txlog.Options{})
			cancel()
			fired := f.Fired()
			f.Land(t.Context())
			if err == nil {
				if _, err := appendFile(t.Context(), open(t, inner), nil, "a"); err != nil || l == nil {
					t.Errorf("%v, call %d: %v, %v", mode, i, l, err)
				}
			} else if !onlyTheStore(err) {
				t.Errorf("%v, call %d: %v", mode, i, err)
			}
			if err != nil { // try again: it is made, or is there
				_, err = txlog.Create(t.Context(), inner, root, txlog.CreateOptions{Schema: schema()}, txlog.Options{})
				if err != nil && !errors.Is(err, txlog.ErrTableExists) {
					t.Errorf("%v, call %d: tried again: %v", mode, i, err)
				}
				if s := latest(t, open(t, inner)); s.Version() != 0 {
					t.Errorf("%v, call %d: the table is at version %d", mode, i, s.Version())
				}
			}
			if fired == 0 {
				break
			}
		}
	}
}

// A swap that first loses two versions to a rival, with a fault in any call,
// and then the rival's swap of the same file: the file is taken out once, by
// the one who was told so, or by either if one cannot know.
func TestSwapFaultSweep(t *testing.T) {
	for _, mode := range fault.Modes {
		swept := 0
		for i := 0; ; i++ {
			inner := mem.New(mem.Options{})
			rival := create(t, inner, txlog.Options{})
			base, err := appendFile(t.Context(), rival, nil, "in")
			if err != nil {
				t.Fatal(err)
			}
			f := fault.New(inner)
			l, err := txlog.Open(t.Context(), f, root, txlog.Options{})
			if err != nil {
				t.Fatal(err)
			}
			for n := range 2 { // l does not know of these
				if _, err := appendFile(t.Context(), rival, nil, fmt.Sprint(n)); err != nil {
					t.Fatal(err)
				}
			}
			swap := func(ctx context.Context, l *txlog.Log, out string) error {
				in, ok := base.File(action.Key{Path: "in"})
				if !ok {
					t.Fatal("nothing to swap")
				}
				tx := l.Begin(base, txlog.Operation{Name: "OPTIMIZE"})
				tx.Remove(in.Tombstone(false))
				tx.Add(add(out))
				_, err := tx.Commit(ctx)
				return err
			}
			f.FailAt(i, mode)
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			mine := swap(ctx, l, "mine")
			cancel()
			fired := f.Fired()
			theirs := swap(t.Context(), rival, "theirs")
			f.Land(t.Context())

			s := latest(t, open(t, inner))
			_, isMine := s.File(action.Key{Path: "mine"})
			_, isTheirs := s.File(action.Key{Path: "theirs"})
			if _, still := s.File(action.Key{Path: "in"}); still || isMine == isTheirs || s.NumFiles() != 3 {
				t.Errorf("%v, call %d: the table holds %q", mode, i, paths(s))
			}
			if isTheirs != (theirs == nil) || theirs != nil && !errors.Is(theirs, txlog.ErrFilesRemoved) {
				t.Errorf("%v, call %d: the rival was told %v, the table holds %q", mode, i, theirs, paths(s))
			}
			switch {
			case mine == nil && !isMine, mine != nil && !onlyTheStore(mine):
				t.Errorf("%v, call %d: told %v, the table holds %q", mode, i, mine, paths(s))
			case mine != nil && isMine && !errors.Is(mine, storage.ErrUnknownOutcome) && !errors.Is(mine, fault.ErrCrashed):
				t.Errorf("%v, call %d: swapped, and told %v", mode, i, mine)
			}
			if fired == 0 {
				break
			}
			swept++
		}
		if swept < 8 { // three puts, two of them lost, and what they take to read
			t.Errorf("%v: %d calls swept", mode, swept)
		}
	}
}
