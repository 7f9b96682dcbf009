package lease

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"cardinalsin/storage"
)

// Pin is a pin as others see it.
type Pin struct {
	Key        string
	Holder     string
	MinVersion int64
	Age        time.Duration // since its last write, by the store's clock
	// Revoked: it protects nothing any more. Once Expired too, its object may
	// be deleted: its holder is fenced, and finds it gone as it would find it
	// revoked.
	Revoked bool

	etag storage.ETag
}

// Expired reports whether the holder's own fence has fallen for sure.
func (p Pin) Expired() bool { return p.Age > TTL+Grace }

// ListPins reads all pins below prefix. One that cannot be parsed counts as a
// pin on version 0 until it expires. Cost: one listing and one GET a pin.
func ListPins(ctx context.Context, store storage.Store, prefix string) ([]Pin, error) {
	var pins []Pin
	for o, err := range store.List(ctx, prefix+"/", "") {
		if err != nil {
			return nil, fmt.Errorf("list pins: %w", err)
		}
		p, err := readPin(ctx, store, o)
		if errors.Is(err, storage.ErrNotFound) {
			continue // given back meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("list pins: %w", err)
		}
		pins = append(pins, p)
	}
	return pins, nil
}

// readPin reads the object of which o tells the key and, if known, the size.
func readPin(ctx context.Context, store storage.Store, o storage.ObjectInfo) (Pin, error) {
	var data []byte
	info := o
	if o.Size <= maxObjectBytes {
		var err error
		if data, info, err = store.Get(ctx, o.Key); err != nil {
			return Pin{}, err
		}
	}
	now, err := store.Now(ctx)
	if err != nil {
		return Pin{}, err
	}
	var b pinBody
	if json.Unmarshal(data, &b) != nil || b.MinVersion < 0 {
		b = pinBody{Holder: "unknown (the object is damaged)"}
	}
	return Pin{Key: o.Key, Holder: b.Holder, MinVersion: b.MinVersion, Age: now.Sub(info.ModTime), Revoked: b.Revoked, etag: info.ETag}, nil
}

// Revoke takes an expired pin away, by put-if-match on the state that was
// seen. If the holder has renewed it meanwhile, won is false, and the pin
// counts. Errors: those of the store; a pin that is not expired is refused.
func Revoke(ctx context.Context, store storage.Store, p Pin) (won bool, err error) {
	if !p.Expired() {
		return false, fmt.Errorf("revoke %s: it is %v old and may be in use", p.Key, p.Age)
	}
	return revoke(ctx, store, p)
}

func revoke(ctx context.Context, store storage.Store, p Pin) (won bool, err error) {
	body, err := json.Marshal(pinBody{MinVersion: p.MinVersion, Holder: p.Holder, Revoked: true})
	if err != nil {
		return false, fmt.Errorf("revoke %s: %w", p.Key, err)
	}
	_, err = store.PutIfMatch(ctx, p.Key, body, p.etag)
	switch {
	case err == nil:
		return true, nil
	case !errors.Is(err, storage.ErrPreconditionFailed) && !errors.Is(err, storage.ErrUnknownOutcome):
		return false, fmt.Errorf("revoke %s: %w", p.Key, err)
	}
	now, rerr := readPin(ctx, store, storage.ObjectInfo{Key: p.Key})
	switch {
	case errors.Is(rerr, storage.ErrNotFound):
		return true, nil // its holder gave it back
	case rerr != nil:
		return false, fmt.Errorf("revoke %s: %w", p.Key, errors.Join(err, rerr))
	case now.Revoked:
		return true, nil // by us, or by another vacuum
	case now.etag == p.etag:
		return false, fmt.Errorf("revoke %s: %w", p.Key, err) // not applied yet
	}
	return false, nil
}
