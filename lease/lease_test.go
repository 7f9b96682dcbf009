package lease

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"testing"
	"time"

	"cardinalsin/storage"
	"cardinalsin/storage/fault"
	"cardinalsin/storage/mem"
	"cardinalsin/storage/meter"
)

const prefix = "t/metrics/_cardinal/pins"

// clock is the local clock and the store's at once.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Unix(1_790_000_000, 0)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func hold(t *testing.T, p *Pins, v int64) *Hold {
	t.Helper()
	h, err := p.Hold(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func list(t *testing.T, s storage.Store) []Pin {
	t.Helper()
	pins, err := ListPins(t.Context(), s, prefix)
	if err != nil {
		t.Fatal(err)
	}
	return pins
}

// minPin is the oldest version that a vacuum would find pinned.
func minPin(t *testing.T, s storage.Store) int64 {
	t.Helper()
	least := int64(-1)
	for _, p := range list(t, s) {
		if !p.Revoked && (least < 0 || p.MinVersion < least) {
			least = p.MinVersion
		}
	}
	return least
}

// A thousand queries at one version, and at later ones, cost one put.
func TestOnePinForAllQueries(t *testing.T) {
	store := meter.New(mem.New(mem.Options{}), meter.Options{})
	p := NewPins(store, prefix, "me", Options{})
	var wg sync.WaitGroup
	for i := range 1000 {
		wg.Go(func() {
			h, err := p.Hold(t.Context(), 7+int64(i%5))
			if err != nil {
				t.Error(err)
				return
			}
			defer h.Release()
			if err := h.Check(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	s := store.Snapshot()
	if n := s[storage.OpPutIfAbsent].Calls; n != 1 {
		t.Errorf("%d pins made", n)
	}
	// The first to come may have pinned a later version than another asks for.
	if n := s[storage.OpPutIfMatch].Calls; n > 4 {
		t.Errorf("pin lowered %d times", n)
	}
	if got := minPin(t, store); got != 7 {
		t.Errorf("pinned from %d", got)
	}
}

func TestPinFollowsItsHolds(t *testing.T) {
	c := newClock()
	store := mem.New(mem.Options{Now: c.Now})
	p := NewPins(store, prefix, "me", Options{Now: c.Now})
	ten := hold(t, p, 10)
	three := hold(t, p, 3)
	if got := minPin(t, store); got != 3 {
		t.Fatalf("lowered to %d", got)
	}
	three.Release()
	c.advance(TTL / 3)
	if err := p.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := minPin(t, store); got != 10 {
		t.Fatalf("raised to %d", got)
	}
	// What the pin no longer covers costs a put, and is covered then.
	hold(t, p, 5).Release()
	if got := minPin(t, store); got != 5 {
		t.Fatalf("lowered to %d", got)
	}
	ten.Release()
	for range 3 {
		c.advance(TTL / 3)
		if err := p.Renew(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if pins := list(t, store); len(pins) != 0 {
		t.Errorf("an idle process leaves %v", pins)
	}
}

// Rule no-fence: a reader that did not renew for longer than TTL is told so,
// before vacuum may have taken its pin.
func TestRuleFence(t *testing.T) {
	c := newClock()
	store := mem.New(mem.Options{Now: c.Now})
	p := NewPins(store, prefix, "me", Options{Now: c.Now})
	h := hold(t, p, 1)
	c.advance(TTL)
	if err := h.Check(); err != nil {
		t.Fatalf("within TTL: %v", err)
	}
	c.advance(time.Millisecond)
	if err := h.Check(); !errors.Is(err, ErrPinLost) {
		t.Fatalf("after TTL: %v", err)
	}
	if list(t, store)[0].Expired() {
		t.Fatal("the pin expires for others before its holder is fenced")
	}
	// Time does not run backwards for a pin that is lost, and a new hold does
	// not bring it back.
	c.advance(-time.Minute)
	next := hold(t, p, 1)
	if err := h.Check(); !errors.Is(err, ErrPinLost) {
		t.Fatalf("lost, then %v", err)
	}
	if err := next.Check(); err != nil {
		t.Fatal(err)
	}
}

// The fence counts from when the last acknowledged renewal was sent: one that
// takes long to be acknowledged does not make the pin younger.
func TestFenceCountsFromTheSending(t *testing.T) {
	c := newClock()
	f := fault.New(mem.New(mem.Options{Now: c.Now}))
	p := NewPins(f, prefix, "me", Options{Now: c.Now})
	h := hold(t, p, 1)
	c.advance(TTL / 3)
	f.Inject(fault.Fault{Op: storage.OpPutIfMatch, OnReturn: func(context.Context, fault.Call, error) { c.advance(TTL / 2) }})
	if err := p.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.advance(TTL / 2)
	if err := h.Check(); err != nil {
		t.Fatalf("TTL after the sending: %v", err)
	}
	c.advance(time.Millisecond)
	if err := h.Check(); !errors.Is(err, ErrPinLost) {
		t.Fatalf("later: %v", err)
	}
}

// Rule revoke-early: what is not expired cannot be revoked.
func TestRuleRevokeOnlyExpired(t *testing.T) {
	c := newClock()
	store := mem.New(mem.Options{Now: c.Now})
	hold(t, NewPins(store, prefix, "me", Options{Now: c.Now}), 1)
	c.advance(TTL + Grace)
	if won, err := Revoke(t.Context(), store, list(t, store)[0]); err == nil || won {
		t.Fatalf("revoked at %v: %v", TTL+Grace, err)
	}
	c.advance(time.Second)
	if won, err := Revoke(t.Context(), store, list(t, store)[0]); err != nil || !won {
		t.Fatalf("got %v, %v", won, err)
	}
}

// Rule revoke-blind: a revocation that races with a renewal loses, and one
// that wins makes the renewal fail.
func TestRuleRevokeRacesRenewal(t *testing.T) {
	c := newClock()
	store := mem.New(mem.Options{Now: c.Now})
	// The holder's own clock stands still, so that it would renew late.
	p := NewPins(store, prefix, "me", Options{Now: func() time.Time { return time.Unix(0, 0) }})
	h := hold(t, p, 4)
	c.advance(TTL + 2*Grace)
	seen := list(t, store)[0]
	if err := p.write(t.Context(), 4, false); err != nil {
		t.Fatal(err)
	}
	if won, err := Revoke(t.Context(), store, seen); err != nil || won {
		t.Fatalf("revoked a pin that was renewed: %v, %v", won, err)
	}
	if err := h.Check(); err != nil {
		t.Fatal(err)
	}
	c.advance(TTL + 2*Grace)
	if won, err := Revoke(t.Context(), store, list(t, store)[0]); err != nil || !won {
		t.Fatalf("got %v, %v", won, err)
	}
	if err := p.write(t.Context(), 4, false); err != nil {
		t.Fatal(err)
	}
	if err := h.Check(); !errors.Is(err, ErrPinLost) {
		t.Fatalf("the holder of a revoked pin: %v", err)
	}
}

// Whatever call of hold, lower and renew fails, and however: a hold that was
// given out is covered by the object in the store.
func TestPinFaultSweep(t *testing.T) {
	for _, mode := range fault.Modes {
		for i := 0; ; i++ {
			c := newClock()
			inner := mem.New(mem.Options{Now: c.Now})
			f := fault.New(inner)
			f.FailAt(i, mode)
			p := NewPins(f, prefix, "me", Options{Now: c.Now})
			live := map[int64]*Hold{}
			check := func(step string) {
				t.Helper()
				for v, h := range live {
					if h.Check() != nil {
						delete(live, v)
						continue
					}
					if got := minPin(t, inner); got < 0 || got > v {
						t.Errorf("mode %v call %d: after %s, %d is held, the store says %d", mode, i, step, v, got)
					}
				}
			}
			take := func(v int64) {
				if h, err := p.Hold(t.Context(), v); err == nil {
					live[v] = h
				}
			}
			drop := func(v int64) {
				if h := live[v]; h != nil {
					h.Release()
					delete(live, v)
				}
			}
			take(10)
			check("the first hold")
			take(3)
			check("lowering")
			drop(3)
			for range 3 {
				c.advance(TTL / 3)
				if err := p.Renew(t.Context()); err != nil && mode == fault.Pass {
					t.Error(err)
				}
				check("a renewal")
			}
			take(5)
			check("lowering again")
			f.Land(t.Context())
			check("a late write")
			if f.Fired() == 0 {
				break
			}
		}
	}
}

func TestDamagedPinCountsUntilItExpires(t *testing.T) {
	c := newClock()
	store := mem.New(mem.Options{Now: c.Now})
	if _, err := store.PutIfAbsent(t.Context(), prefix+"/x.json", []byte("{")); err != nil {
		t.Fatal(err)
	}
	if got := minPin(t, store); got != 0 {
		t.Fatalf("pinned from %d", got)
	}
	c.advance(TTL + Grace + time.Second)
	if won, err := Revoke(t.Context(), store, list(t, store)[0]); err != nil || !won {
		t.Fatalf("got %v, %v", won, err)
	}
}

func TestClaims(t *testing.T) {
	const key, ttl = "t/metrics/_cardinal/leases/compact-1", time.Minute
	c := newClock()
	store := mem.New(mem.Options{Now: c.Now})
	o := Options{Now: c.Now}
	a, err := Take(t.Context(), store, key, "a", ttl, o)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Take(t.Context(), store, key, "b", ttl, o)
	var held *HeldError
	if !errors.Is(err, ErrClaimHeld) || !errors.As(err, &held) || held.Holder != "a" {
		t.Fatalf("got %v", err)
	}
	c.advance(ttl)
	if err := a.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.advance(ttl + Grace)
	if _, err := Take(t.Context(), store, key, "b", ttl, o); !errors.Is(err, ErrClaimHeld) {
		t.Fatalf("taken over before it expired: %v", err)
	}
	c.advance(time.Second)
	b, err := Take(t.Context(), store, key, "b", ttl, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Renew(t.Context()); !errors.Is(err, ErrClaimLost) {
		t.Fatalf("got %v", err)
	}
	// a does not delete what is b's by now.
	if err := a.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := b.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := b.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if objs, err := storage.Collect(store.List(t.Context(), "", "")); err != nil || len(objs) != 0 {
		t.Fatalf("left behind: %v, %v", objs, err)
	}
}

// Of any number of processes that want a job, new or expired, one gets it.
func TestClaimRace(t *testing.T) {
	c := newClock()
	store := mem.New(mem.Options{Now: c.Now})
	race := func() int {
		var wg sync.WaitGroup
		var mu sync.Mutex
		won := 0
		for range 16 {
			wg.Go(func() {
				_, err := Take(t.Context(), store, "k", "x", time.Minute, Options{Now: c.Now})
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					won++
				} else if !errors.Is(err, ErrClaimHeld) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		return won
	}
	if n := race(); n != 1 {
		t.Errorf("%d won a new claim", n)
	}
	c.advance(time.Hour)
	if n := race(); n != 1 {
		t.Errorf("%d took over an expired claim", n)
	}
}

func FuzzPinBody(f *testing.F) {
	f.Add([]byte(`{"min_version":3,"holder":"h","seq":1}`))
	f.Add([]byte(`{"min_version":-3}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		store := mem.New(mem.Options{})
		if _, err := store.PutIfAbsent(context.Background(), prefix+"/x.json", data); err != nil {
			t.Fatal(err)
		}
		pins, err := ListPins(context.Background(), store, prefix)
		if err != nil || len(pins) != 1 || pins[0].MinVersion < 0 {
			t.Fatalf("%v, %v", pins, err)
		}
		if !json.Valid(data) && (pins[0].MinVersion != 0 || pins[0].Revoked) {
			t.Fatalf("a damaged pin protects only from %d", pins[0].MinVersion)
		}
	})
}

// A hold waits for the acknowledgement: while the put that lowers the pin is
// on its way, nobody gets a hold that rests on it; while one raises it, nobody
// gets a hold that rests on the old state.
func TestHoldWaitsForTheAcknowledgement(t *testing.T) {
	c := newClock()
	f := fault.New(mem.New(mem.Options{Now: c.Now}))
	p := NewPins(f, prefix, "me", Options{Now: c.Now})
	seven, ten := hold(t, p, 7), hold(t, p, 10)
	var early *Hold
	f.Inject(fault.Fault{Op: storage.OpPutIfMatch, OnCall: func(context.Context, fault.Call) { early = p.tryHold(3) }})
	hold(t, p, 3).Release()
	if early != nil {
		t.Error("a hold was given out before its pin was acknowledged")
	}
	seven.Release()
	f.Inject(fault.Fault{Op: storage.OpPutIfMatch, OnCall: func(context.Context, fault.Call) { early = p.tryHold(7) }})
	c.advance(TTL/3 - TTL/12) // due, and still fresh
	if err := p.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	if early != nil {
		t.Error("a hold was given out on a pin that is being raised above it")
	}
	if err := ten.Check(); err != nil {
		t.Fatal(err)
	}
}
