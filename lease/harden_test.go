package lease

import (
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"cardinalsin/storage"
	"cardinalsin/storage/fault"
	"cardinalsin/storage/mem"
	"cardinalsin/storage/meter"
)

// contentETags is a store as S3 servers are: an object's ETag is the MD5 of
// its bytes, so that a write of the same bytes changes nothing but its age.
type contentETags struct{ storage.Store }

func tagged(data []byte, info storage.ObjectInfo) storage.ObjectInfo {
	info.ETag = storage.ETag(fmt.Sprintf("%x", md5.Sum(data)))
	return info
}

func (s contentETags) Get(ctx context.Context, key string) ([]byte, storage.ObjectInfo, error) {
	data, info, err := s.Store.Get(ctx, key)
	return data, tagged(data, info), err
}

func (s contentETags) PutIfAbsent(ctx context.Context, key string, data []byte) (storage.ObjectInfo, error) {
	info, err := s.Store.PutIfAbsent(ctx, key, data)
	return tagged(data, info), err
}

func (s contentETags) PutIfMatch(ctx context.Context, key string, data []byte, etag storage.ETag) (storage.ObjectInfo, error) {
	old, info, err := s.Store.Get(ctx, key)
	if err != nil || tagged(old, info).ETag != etag {
		return storage.ObjectInfo{}, errors.Join(storage.ErrPreconditionFailed, err)
	}
	info, err = s.Store.PutIfMatch(ctx, key, data, info.ETag)
	return tagged(data, info), err
}

// A revocation or a takeover that saw the object before a renewal must lose
// against it, also where the ETag is a hash of the bytes.
func TestRenewalChangesTheETag(t *testing.T) {
	t.Run("pin", func(t *testing.T) {
		c := newClock()
		store := contentETags{mem.New(mem.Options{Now: c.Now})}
		// The holder's clock stands still: it renews late and does not know.
		p := NewPins(store, prefix, "me", Options{Now: func() time.Time { return time.Unix(0, 0) }})
		h := hold(t, p, 4)
		for range 3 {
			c.advance(TTL + 2*Grace)
			seen := list(t, store)[0]
			if err := p.write(t.Context(), 4, false); err != nil {
				t.Fatal(err)
			}
			if won, err := Revoke(t.Context(), store, seen); err != nil || won {
				t.Fatalf("revoked a pin that was renewed: %v, %v", won, err)
			}
		}
		if err := h.Check(); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("claim", func(t *testing.T) {
		c := newClock()
		store := contentETags{mem.New(mem.Options{Now: c.Now})}
		a, err := Take(t.Context(), store, "k", "a", time.Minute, Options{Now: c.Now})
		if err != nil {
			t.Fatal(err)
		}
		c.advance(time.Minute + 2*Grace)
		// b sees an expired claim; a renews it before b's put arrives.
		f := fault.New(store)
		f.Inject(fault.Fault{Op: storage.OpPutIfMatch, OnCall: func(ctx context.Context, _ fault.Call) {
			if err := a.Renew(ctx); err != nil {
				t.Error(err)
			}
		}})
		if _, err := Take(t.Context(), f, "k", "b", time.Minute, Options{Now: c.Now}); !errors.Is(err, ErrClaimHeld) {
			t.Errorf("took over a claim that was renewed: %v", err)
		}
		if err := a.Renew(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// A claim survives any one call that fails, whichever it is: it is ours, or an
// error says that it is not, and a lost answer to a renewal is found out.
func TestClaimFaultSweep(t *testing.T) {
	for _, mode := range []fault.Mode{fault.Before, fault.After, fault.Late} {
		for i := 0; ; i++ {
			c := newClock()
			inner := contentETags{mem.New(mem.Options{Now: c.Now})}
			f := fault.New(inner)
			f.FailAt(i, mode)
			a, err := Take(t.Context(), f, "k", "a", time.Minute, Options{Now: c.Now})
			for range 3 {
				if err != nil {
					break
				}
				if err := a.Renew(t.Context()); errors.Is(err, ErrClaimLost) {
					t.Errorf("mode %v call %d: %v, and nobody took it", mode, i, err)
				}
			}
			if err == nil {
				if _, err := Take(t.Context(), inner, "k", "b", time.Minute, Options{Now: c.Now}); !errors.Is(err, ErrClaimHeld) {
					t.Errorf("mode %v call %d: a has it, and for b the error is %v", mode, i, err)
				}
			}
			f.Land(t.Context())
			c.advance(time.Hour)
			b, err := Take(t.Context(), inner, "k", "b", time.Minute, Options{Now: c.Now})
			if err != nil {
				t.Fatalf("mode %v call %d: not free after it expired: %v", mode, i, err)
			}
			if err := b.Release(t.Context()); err != nil {
				t.Error(err)
			}
			if f.Fired() == 0 {
				break
			}
		}
	}
}

// A lost answer costs requests, not the query: whichever put of a hold that is
// made, lowered or renewed is lost once, applied or not, the hold is given out.
func TestLostAnswerDoesNotFailTheHold(t *testing.T) {
	for _, mode := range []fault.Mode{fault.Before, fault.After, fault.Late} {
		for _, op := range []storage.Op{storage.OpPutIfAbsent, storage.OpPutIfMatch} {
			t.Run(fmt.Sprint(op, " ", mode), func(t *testing.T) {
				c := newClock()
				inner := mem.New(mem.Options{Now: c.Now})
				f := fault.New(inner)
				f.Inject(fault.Fault{Op: op, Mode: mode})
				p := NewPins(f, prefix, "me", Options{Now: c.Now})
				ten, three := hold(t, p, 10), hold(t, p, 3)
				if f.Fired() != 1 {
					t.Fatalf("%d faults fired", f.Fired())
				}
				for _, h := range []*Hold{ten, three} {
					if err := h.Check(); err != nil {
						t.Error(err)
					}
				}
				if got := minPin(t, inner); got != 3 {
					t.Errorf("pinned from %d", got)
				}
			})
		}
	}
	t.Run("for good", func(t *testing.T) {
		f := fault.New(mem.New(mem.Options{}))
		f.Inject(fault.Fault{Op: storage.OpPutIfAbsent, Mode: fault.Before, Times: -1})
		if _, err := NewPins(f, prefix, "me", Options{}).Hold(t.Context(), 1); !errors.Is(err, storage.ErrUnknownOutcome) {
			t.Errorf("error is %v", err)
		}
	})
}

// A machine that was suspended wakes with a monotonic clock that stood still:
// the wall clock fences it. One whose wall clock was set back is fenced by the
// monotonic one.
func TestFenceGoesByTheLongerClock(t *testing.T) {
	for _, tc := range []struct {
		name       string
		mono, wall time.Duration
		lost       bool
	}{
		{"both within TTL", TTL, TTL, false},
		{"suspended", time.Second, TTL + 1, true},
		{"set back", TTL + 1, -time.Hour, true},
		{"set back, within TTL", TTL, -time.Hour, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var now instant
			start := time.Unix(1_790_000_000, 0)
			p := NewPins(mem.New(mem.Options{}), prefix, "me", Options{clock: func() instant { return now }})
			now = instant{wall: start}
			h := hold(t, p, 1)
			now = instant{mono: tc.mono, wall: start.Add(tc.wall)}
			if err := h.Check(); errors.Is(err, ErrPinLost) != tc.lost {
				t.Errorf("after %s and %s: %v", tc.mono, tc.wall, err)
			}
		})
	}
	t.Run("readings of one clock", func(t *testing.T) {
		base := time.Now()
		next := []time.Time{base, base.Add(time.Minute), base.Add(3 * time.Minute).Round(0)}
		read := clockOf(func() time.Time { n := next[0]; next = next[1:]; return n })
		if d := read().since(instant{wall: base.Round(0)}); d != time.Minute {
			t.Errorf("got %s", d)
		}
		if d := read().since(instant{wall: base.Round(0)}); d != 3*time.Minute {
			t.Errorf("got %s", d)
		}
	})
}

// Run keeps a held pin for hours, takes an idle one back and then is silent.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := meter.New(mem.New(mem.Options{}), meter.Options{})
		p := NewPins(store, prefix, "me", Options{})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		h := hold(t, p, 5)
		for range 60 {
			time.Sleep(TTL / 2)
			if err := h.Check(); err != nil {
				t.Fatal(err)
			}
		}
		calls := store.Snapshot()
		if n := calls[storage.OpPutIfMatch].Calls; n < 60 || n > 100 {
			t.Errorf("%d renewals in %s", n, 30*TTL)
		}
		h.Release()
		time.Sleep(TTL)
		if pins := list(t, store); len(pins) != 0 {
			t.Errorf("left behind: %v", pins)
		}
		before := store.Snapshot()
		time.Sleep(24 * time.Hour)
		after := store.Snapshot()
		for _, op := range storage.Ops {
			if after[op].Calls != before[op].Calls {
				t.Errorf("%d calls of %s a day by an idle process", after[op].Calls-before[op].Calls, op)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestRunTellsOfRenewals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := fault.New(mem.New(mem.Options{}))
		var errs []error
		p := NewPins(f, prefix, "me", Options{Events: Events{RenewEnd: func(err error) { errs = append(errs, err) }}})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		h := hold(t, p, 5)
		f.Inject(fault.Fault{Op: storage.OpPutIfMatch, Mode: fault.Before, Times: -1, Err: storage.ErrPermission})
		time.Sleep(TTL / 2)
		f.Clear()
		time.Sleep(TTL)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if len(errs) < 2 || !errors.Is(errs[0], storage.ErrPermission) || errs[len(errs)-1] != nil {
			t.Errorf("told of %v", errs)
		}
		if err := h.Check(); err != nil {
			t.Errorf("one renewal that failed: %v", err)
		}
	})
}

func TestCloseGivesThePinBack(t *testing.T) {
	c := newClock()
	store := mem.New(mem.Options{Now: c.Now})
	p := NewPins(store, prefix, "me", Options{Now: c.Now})
	h := hold(t, p, 1)
	for range 2 {
		if err := p.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if pins := list(t, store); len(pins) != 0 {
		t.Errorf("left behind: %v", pins)
	}
	if err := h.Check(); !errors.Is(err, ErrPinLost) {
		t.Errorf("a hold outlived its pin: %v", err)
	}
	h.Release()
}

// A pin that its holder's vacuum revoked and deleted stays lost, and the next
// hold makes another.
func TestRevokedPinMayBeDeleted(t *testing.T) {
	c := newClock()
	store := mem.New(mem.Options{Now: c.Now})
	p := NewPins(store, prefix, "me", Options{Now: func() time.Time { return time.Unix(0, 0) }})
	h := hold(t, p, 1)
	c.advance(TTL + 2*Grace)
	pin := list(t, store)[0]
	if won, err := Revoke(t.Context(), store, pin); err != nil || !won {
		t.Fatalf("got %v, %v", won, err)
	}
	if err := store.Delete(t.Context(), pin.Key); err != nil {
		t.Fatal(err)
	}
	if err := p.write(t.Context(), 1, false); err != nil {
		t.Fatal(err)
	}
	if err := h.Check(); !errors.Is(err, ErrPinLost) {
		t.Errorf("got %v", err)
	}
	if err := hold(t, p, 1).Check(); err != nil {
		t.Error(err)
	}
	if pins := list(t, store); len(pins) != 1 || pins[0].Key == pin.Key || pins[0].Revoked {
		t.Errorf("got %v", pins)
	}
}

// What vacuum cannot read, or would have to read without end, protects all.
func TestDamagedPinsProtectVersionZero(t *testing.T) {
	c := newClock()
	for name, body := range map[string]string{
		"empty": "", "null": "null", "list": "[]", "negative": `{"min_version":-1}`, "text": `{"min_version":"7"}`,
		"fraction": `{"min_version":7.5}`, "revoked, perhaps": `{"min_version":"7","revoked":true}`,
		"huge": `{"min_version":7,"holder":"` + strings.Repeat("x", 1<<20) + `"}`,
	} {
		t.Run(name, func(t *testing.T) {
			store := meter.New(mem.New(mem.Options{Now: c.Now}), meter.Options{})
			if _, err := store.PutIfAbsent(t.Context(), prefix+"/x.json", []byte(body)); err != nil {
				t.Fatal(err)
			}
			pins := list(t, store)
			if len(pins) != 1 || pins[0].MinVersion != 0 || pins[0].Revoked || pins[0].Expired() {
				t.Errorf("got %+v", pins)
			}
			if n := store.Snapshot()[storage.OpGet].Calls; name == "huge" && n != 0 {
				t.Errorf("it was read %d times", n)
			}
		})
	}
}
