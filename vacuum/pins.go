package vacuum

import (
	"context"
	"fmt"

	"cardinalsin/lease"
	"cardinalsin/storage"
)

// rules are those of log-protocol 6 that the tests take out, one at a time,
// to show what each is for. Nothing but a test changes one.
type rules struct {
	silent     bool // no start commit
	markBlind  bool // the start ignores what others did to the watermark
	orphanNow  bool // an orphan of any age is deleted
	readdBlind bool // files that were added again count as removed

	expired func(lease.Pin) bool
	revoke  func(context.Context, storage.Store, lease.Pin) (won bool, err error)
}

func theRules() rules { return rules{expired: lease.Pin.Expired, revoke: lease.Revoke} }

// readPins lists the pins. When executing it also revokes those that have
// expired; where a holder renews its pin just then, all are read again, since
// it counts.
func (p *Plan) readPins(ctx context.Context, executing bool) error {
	store, prefix := p.log.Store(), p.log.Root()+"/_cardinal/pins"
	for {
		pins, err := lease.ListPins(ctx, store, prefix)
		if err != nil {
			return err
		}
		p.Pins = pins
		if !executing {
			return nil
		}
		lost := false
		for i := range pins {
			if pins[i].Revoked || !p.rules.expired(pins[i]) {
				continue
			}
			won, err := p.rules.revoke(ctx, store, pins[i])
			if err != nil {
				return err
			}
			if !won {
				lost = true
				continue
			}
			pins[i].Revoked, pins[i].Age = true, 0 // it has just been written
			p.revoked++
		}
		if !lost {
			return nil
		}
	}
}

// protects reports whether a pin still holds its version. In a preview an
// expired pin does not: the run would revoke it.
func (p *Plan) protects(pin lease.Pin) bool { return !pin.Revoked && !p.rules.expired(pin) }

// dropPins deletes the pins that an earlier run revoked, once that is so long
// ago that the revocation itself has expired.
func (p *Plan) dropPins(ctx context.Context) (n int, err error) {
	for _, pin := range p.Pins {
		if !pin.Revoked || !pin.Expired() {
			continue
		}
		if err := p.log.Store().Delete(ctx, pin.Key); err != nil {
			return n, fmt.Errorf("delete %s: %w", pin.Key, err)
		}
		n++
	}
	return n, nil
}
