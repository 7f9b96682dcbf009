// Package fault decorates a store with planned failures, for tests.
//
// It stands on storage only. A fault is a value: which calls it strikes, and
// what happens to them. A test that must hold whatever call fails sweeps:
//
//	for i := 0; ; i++ {
//		f := fault.New(mem.New(mem.Options{}))
//		f.FailAt(i, fault.After)
//		err := operation(f)
//		if f.Fired() == 0 {
//			break // the operation makes fewer than i+1 calls
//		}
//		// reopen over f.Unwrap() and check what must hold
//	}
//
// INVARIANT: a failed call is either applied whole or not at all, as the mode
// says; a fault never damages bytes. Calls that no fault strikes pass through
// unchanged.
//
// One List is one call, counted when the consumer begins to range over it.
package fault

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"cardinalsin/internal/glob"
	"cardinalsin/storage"
)

// ErrCrashed is what every call returns once a crash has fired: to the code
// under test, its process has ended. It wraps no retryable condition.
var ErrCrashed = errors.New("process crashed (injected)")

// Mode is what a fault does to a call.
type Mode int

const (
	// Pass lets the call through; only the delay and the hooks apply.
	Pass Mode = iota
	// Before fails the call before the store sees it.
	Before
	// After applies the call and reports it failed: its response is lost,
	// also if it was an error. A List yields all its objects, and then fails.
	After
	// Late reports a write failed and applies it after Fault.LandAfter
	// further calls: a request that was still on its way when its sender
	// gave up. A read fails as with Before.
	Late
	// CrashBefore fails this call unapplied, and every call from now on.
	CrashBefore
	// CrashAfter applies this call, and fails it and every later one.
	CrashAfter
)

func (m Mode) String() string {
	switch m {
	case Pass:
		return "pass"
	case Before:
		return "before"
	case After:
		return "after"
	case Late:
		return "late"
	case CrashBefore:
		return "crash-before"
	case CrashAfter:
		return "crash-after"
	}
	return fmt.Sprintf("mode(%d)", int(m))
}

// Modes are those that a sweep runs through: all but Pass.
var Modes = []Mode{Before, After, Late, CrashBefore, CrashAfter}

// Call is one call on the store.
type Call struct {
	Index int // counts all calls on this store, from 0
	Op    storage.Op
	Key   string // for List, the prefix; for Now, empty
}

func (c Call) String() string { return fmt.Sprintf("call %d: %s %q", c.Index, c.Op, c.Key) }

// Fault says which calls to strike and how. The zero value strikes the first
// call, and lets it pass.
type Fault struct {
	// Op is the kind of call; empty means any.
	Op storage.Op
	// Key is a pattern for the whole key, in which * stands for any bytes,
	// slashes included; empty means any key.
	Key string
	// When, if set, must agree too. It runs under the store's lock, one call
	// at a time, and must not use the store.
	When func(Call) bool
	// Skip is the number of calls that match the above and are let through
	// first.
	Skip int
	// Times is how many calls to strike after that: 0 means one, and a
	// negative number all of them.
	Times int

	// Mode is what happens to a struck call.
	Mode Mode
	// Err is the error that the modes Before, After and Late report; default
	// storage.ErrUnknownOutcome for a write, storage.ErrUnavailable for a read.
	Err error
	// LandAfter is how many further calls return before a Late write is
	// applied: 0 means one (the sender reads back, finds nothing, and then it
	// lands), and a negative number that it waits for Land.
	LandAfter int
	// Delay holds the call back before it is applied, or until its context
	// ends.
	Delay time.Duration
	// OnCall runs before the call is applied and OnReturn after it, with the
	// error that its caller will see. Both may use the store, whose lock is
	// not held.
	OnCall   func(context.Context, Call)
	OnReturn func(context.Context, Call, error)
}

func (f *Fault) matches(c Call) bool {
	return (f.Op == "" || f.Op == c.Op) && (f.Key == "" || glob.Match(f.Key, c.Key)) && (f.When == nil || f.When(c))
}

// Store is a storage.Store with faults. Its methods may be called concurrently.
type Store struct {
	inner storage.Store

	// mu guards all below.
	mu      sync.Mutex
	calls   int
	fired   int
	crashed bool
	faults  []*armed
	late    []*lateWrite
}

type armed struct {
	Fault
	seen  int // calls that matched
	fired int
}

type lateWrite struct {
	wait  int // calls still to return before it lands; negative: for ever
	apply func(context.Context) error
}

// New decorates inner; with no fault injected it changes nothing.
func New(inner storage.Store) *Store { return &Store{inner: inner} }

// Unwrap implements storage.Wrapper: the store without faults, as a process
// that starts after a crash sees it.
func (s *Store) Unwrap() storage.Store { return s.inner }

// Inject adds faults. Each counts matching calls from now on.
func (s *Store) Inject(faults ...Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range faults {
		s.faults = append(s.faults, &armed{Fault: f})
	}
}

// FailAt strikes the i-th call from now on, whatever it is, counting from 0.
func (s *Store) FailAt(i int, mode Mode) { s.Inject(Fault{Skip: i, Mode: mode}) }

// Clear removes all faults and ends a crash. Late writes stay on their way.
func (s *Store) Clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults, s.crashed = nil, false
}

// Calls is the number of calls made, struck or not.
func (s *Store) Calls() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls
}

// Fired is the number of calls struck by a mode other than Pass; calls after
// a crash do not count.
func (s *Store) Fired() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fired
}

// Land applies every late write that is still on its way, oldest first. What
// the store answers to them nobody hears.
func (s *Store) Land(ctx context.Context) {
	s.mu.Lock()
	landing := s.late
	s.late = nil
	s.mu.Unlock()
	for _, w := range landing {
		_ = w.apply(ctx) // the sender has hung up
	}
}

// do runs one call under the faults. apply performs it on the inner store;
// detach returns an apply that owns its data and can run later (nil for reads).
func (s *Store) do(ctx context.Context, op storage.Op, key string, apply func(context.Context) error, detach func() (func(context.Context) error, error)) error {
	call, struck, crashed := s.begin(op, key)
	if crashed {
		return fmt.Errorf("%s: %w", call, ErrCrashed)
	}
	err := s.strike(ctx, call, struck, apply, detach)
	if s.hasCrashed() {
		err = fmt.Errorf("%s: %w", call, ErrCrashed)
	}
	for _, f := range struck {
		if f.OnReturn != nil {
			f.OnReturn(ctx, call, err)
		}
	}
	s.landDue(ctx, call)
	return err
}

// begin numbers a call and finds the faults that strike it.
func (s *Store) begin(op storage.Op, key string) (Call, []*armed, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	call := Call{Index: s.calls, Op: op, Key: key}
	s.calls++
	if s.crashed {
		return call, nil, true
	}
	var struck []*armed
	for _, f := range s.faults {
		if !f.matches(call) {
			continue
		}
		f.seen++
		if f.seen <= f.Skip || (f.Times >= 0 && f.fired >= max(f.Times, 1)) {
			continue
		}
		f.fired++
		struck = append(struck, f)
	}
	if f := deciding(struck); f != nil {
		s.fired++
	}
	return call, struck, false
}

// deciding returns the first fault that does more than let a call pass.
func deciding(struck []*armed) *armed {
	for _, f := range struck {
		if f.Mode != Pass {
			return f
		}
	}
	return nil
}

func (s *Store) strike(ctx context.Context, call Call, struck []*armed, apply func(context.Context) error, detach func() (func(context.Context) error, error)) error {
	for _, f := range struck {
		if err := sleep(ctx, f.Delay); err != nil {
			if call.Op.Writes() {
				// A sender cannot know how far its request got.
				return fmt.Errorf("%s: %w: %w", call, storage.ErrUnknownOutcome, err)
			}
			return fmt.Errorf("%s: %w", call, err)
		}
		if f.OnCall != nil {
			f.OnCall(ctx, call)
		}
	}
	f := deciding(struck)
	if f == nil {
		return apply(ctx)
	}
	switch f.Mode {
	case After:
		// The response is lost, whatever it was; only its text is kept.
		if err := apply(ctx); err != nil {
			return fmt.Errorf("%s: injected %s: %w (the store answered: %s)", call, f.Mode, f.reported(call.Op), err.Error())
		}
	case Late:
		if detach == nil {
			break
		}
		later, err := detach()
		if err != nil {
			return err
		}
		s.mu.Lock()
		// This call's own return counts too, hence one more.
		s.late = append(s.late, &lateWrite{wait: landAfter(f.LandAfter) + 1, apply: later})
		s.mu.Unlock()
	case CrashBefore:
		s.crash()
		return ErrCrashed
	case CrashAfter:
		err := apply(ctx)
		s.crash()
		return err // replaced by ErrCrashed in do
	}
	return fmt.Errorf("%s: injected %s: %w", call, f.Mode, f.reported(call.Op))
}

func landAfter(n int) int {
	switch {
	case n < 0:
		return -2 // stays negative for ever
	case n == 0:
		return 1
	}
	return n
}

func (f *Fault) reported(op storage.Op) error {
	switch {
	case f.Err != nil:
		return f.Err
	case op.Writes():
		return storage.ErrUnknownOutcome
	}
	return storage.ErrUnavailable
}

// landDue applies the late writes whose wait ends with the return of call.
func (s *Store) landDue(ctx context.Context, call Call) {
	s.mu.Lock()
	var due, waiting []*lateWrite
	for _, w := range s.late {
		if w.wait > 0 {
			w.wait--
		}
		if w.wait == 0 {
			due = append(due, w)
			continue
		}
		waiting = append(waiting, w)
	}
	s.late = waiting
	s.mu.Unlock()
	for _, w := range due {
		_ = w.apply(context.WithoutCancel(ctx)) // the sender has hung up
	}
}

func (s *Store) crash() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.crashed = true
}

func (s *Store) hasCrashed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.crashed
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
