package lease

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"

	"cardinalsin/storage"
)

// Options configure Pins; the zero value is useful.
type Options struct {
	// Now is the local clock; it only measures intervals. Default time.Now.
	Now func() time.Time
	// Events are told what happens; all are optional.
	Events Events

	clock func() instant // of Now; tests suspend machines here
}

// Events are called with no lock held.
type Events struct {
	// RenewEnd: Run wrote the pin, or gave it back as idle. It goes on after
	// an error; whether the holds are still good, Hold.Check tells.
	RenewEnd func(err error)
}

// EnsureDefaults fills in what is unset.
func (o *Options) EnsureDefaults() {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Events.RenewEnd == nil {
		o.Events.RenewEnd = func(error) {}
	}
	if o.clock == nil {
		o.clock = clockOf(o.Now)
	}
}

// Pins is this process' pin on one table: one object serves all of its
// readers, so that a query at a version which is pinned already costs no
// request. It may be used concurrently.
type Pins struct {
	store  storage.Store
	prefix string
	holder string
	opts   Options

	writing chan struct{} // holds a token while a request changes the pin

	mu  sync.Mutex // guards cur and the fields of every pin
	cur *pin       // nil: none
}

// pin is one object. Once lost it stays lost; its holders keep pointing here.
type pin struct {
	key   string
	etag  storage.ETag
	seq   int64
	min   int64   // acknowledged, and not about to be raised above
	sent  instant // when the last acknowledged write was sent
	lost  bool
	idle  bool // nobody held it at the last renewal
	holds map[int64]int
	// doubt holds writes without an answer: what the object says, and since
	// when, if it turns out that one of them was applied.
	doubt map[int64]written
}

type written struct {
	min  int64
	sent instant
}

type pinBody struct {
	MinVersion int64  `json:"min_version"`
	Holder     string `json:"holder"`
	Seq        int64  `json:"seq"`
	Revoked    bool   `json:"revoked,omitempty"`
}

// NewPins prepares a pin below prefix, a key without a slash at the end; it
// makes no request. holder is for people.
func NewPins(store storage.Store, prefix, holder string, opts Options) *Pins {
	opts.EnsureDefaults()
	return &Pins{store: store, prefix: prefix, holder: holder, opts: opts, writing: make(chan struct{}, 1)}
}

// Hold is one reader's hold on a version.
type Hold struct {
	pins    *Pins
	pin     *pin
	version int64
	once    sync.Once
}

// Hold returns once a write of the pin that covers version is acknowledged.
// Whoever opens a version must read the watermark after that. It costs no
// request while the pin covers the version and is fresh, else one put. Errors:
// those of the store.
func (p *Pins) Hold(ctx context.Context, version int64) (*Hold, error) {
	for lost := 0; ; {
		if h := p.tryHold(version); h != nil {
			return h, nil
		}
		err := p.write(ctx, version, true)
		if lost++; errors.Is(err, errNotApplied) && lost < maxTries {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("pin version %d: %w", version, err)
		}
	}
}

// errNotApplied: the answer to a write was lost, and the object, read back, is
// as before. It may change yet, and another write settles that it does not.
var errNotApplied = errors.New("write not applied")

// maxTries bounds the writes of one Hold whose answers are lost.
const maxTries = 3

// tryHold takes a hold if an acknowledged write covers version.
func (p *Pins) tryHold(version int64) *Hold {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.cur
	if c == nil || p.fencedLocked(c) || c.min > version || p.opts.clock().since(c.sent) >= TTL/3 {
		return nil
	}
	c.holds[version]++
	c.idle = false
	return &Hold{pins: p, pin: c, version: version}
}

// Check returns an error that wraps ErrPinLost once the pin cannot be trusted
// any more. It makes no request. What was read before a Check that returns nil
// was there.
func (h *Hold) Check() error {
	h.pins.mu.Lock()
	defer h.pins.mu.Unlock()
	if h.pins.fencedLocked(h.pin) {
		return fmt.Errorf("version %d: %w", h.version, ErrPinLost)
	}
	return nil
}

// Release gives the hold back; calling it again does nothing.
func (h *Hold) Release() {
	h.once.Do(func() {
		h.pins.mu.Lock()
		defer h.pins.mu.Unlock()
		if h.pin.holds[h.version]--; h.pin.holds[h.version] == 0 {
			delete(h.pin.holds, h.version)
		}
	})
}

// fencedLocked reports whether a pin is lost: told so, or too long without an
// acknowledged renewal. The fence is the holder's own; vacuum waits Grace
// longer. p.mu is held.
func (p *Pins) fencedLocked(c *pin) bool {
	if p.opts.clock().since(c.sent) > TTL {
		c.lost = true
	}
	return c.lost
}

// Run renews the pin every third of TTL until ctx ends, and removes it when
// nobody has used it for that long. A renewal that fails is tried again with
// the next one; the fence tells readers when it is too late.
func (p *Pins) Run(ctx context.Context) error {
	t := time.NewTicker(TTL / 6)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			if wrote, err := p.renew(ctx); wrote && ctx.Err() == nil {
				p.opts.Events.RenewEnd(err)
			}
		}
	}
}

// Renew writes the pin if it is due: raised to the oldest version still held,
// or removed if none is. Run calls it; a process without Run may.
func (p *Pins) Renew(ctx context.Context) error {
	_, err := p.renew(ctx)
	return err
}

// renew reports whether a write was due.
func (p *Pins) renew(ctx context.Context) (wrote bool, err error) {
	p.mu.Lock()
	c := p.cur
	if c == nil || p.fencedLocked(c) {
		p.mu.Unlock()
		return false, nil
	}
	oldest, held := c.oldest()
	due := p.opts.clock().since(c.sent) >= TTL/3-TTL/12
	remove := due && !held && c.idle
	if due && !held {
		c.idle = true
	}
	p.mu.Unlock()
	switch {
	case remove:
		return true, p.remove(ctx)
	case due && held:
		return true, p.write(ctx, oldest, false)
	}
	return false, nil
}

func (c *pin) oldest() (v int64, ok bool) {
	for h := range c.holds {
		if !ok || h < v {
			v, ok = h, true
		}
	}
	return v, ok
}

// write creates, lowers, renews or raises the pin so that it covers version
// and all holds. With wanted set it does nothing if another request did that
// meanwhile.
func (p *Pins) write(ctx context.Context, version int64, wanted bool) error {
	select {
	case p.writing <- struct{}{}:
		defer func() { <-p.writing }()
	case <-ctx.Done():
		return ctx.Err()
	}
	now := p.opts.clock()
	p.mu.Lock()
	c := p.cur
	if c == nil || p.fencedLocked(c) {
		p.cur = nil
		p.mu.Unlock()
		return p.create(ctx, version)
	}
	if wanted && c.min <= version && now.since(c.sent) < TTL/3 {
		p.mu.Unlock()
		return nil
	}
	if oldest, held := c.oldest(); held {
		version = min(version, oldest)
	}
	// From here on no hold below version is given out on the old write.
	was := c.min
	c.min = max(c.min, version)
	c.seq++
	seq := c.seq
	c.doubt[seq] = written{version, now}
	body, etag := p.body(version, seq), c.etag
	p.mu.Unlock()

	info, err := p.store.PutIfMatch(ctx, c.key, body, etag)
	if err == nil {
		p.acknowledge(c, seq, info.ETag)
		return nil
	}
	if !errors.Is(err, storage.ErrPreconditionFailed) && !errors.Is(err, storage.ErrUnknownOutcome) {
		p.mu.Lock()
		delete(c.doubt, seq)
		c.min = was
		p.mu.Unlock()
		return err
	}
	return p.readBack(ctx, c, seq, err)
}

// create makes a new object that covers version. One whose outcome stays
// unknown is left behind: if it lands, it expires.
func (p *Pins) create(ctx context.Context, version int64) error {
	c := &pin{key: p.prefix + "/" + uuid.NewString() + ".json", seq: 1, min: version, sent: p.opts.clock(), holds: map[int64]int{}, doubt: map[int64]written{}}
	info, err := p.store.PutIfAbsent(ctx, c.key, p.body(version, 1))
	if errors.Is(err, storage.ErrUnknownOutcome) || errors.Is(err, storage.ErrAlreadyExists) {
		_, got, gerr := p.store.Get(ctx, c.key)
		if errors.Is(gerr, storage.ErrNotFound) {
			return fmt.Errorf("%w: %w", errNotApplied, err)
		}
		if gerr != nil {
			return errors.Join(err, gerr)
		}
		info, err = got, nil
	}
	if err != nil {
		return err
	}
	c.etag = info.ETag
	p.mu.Lock()
	p.cur = c
	p.mu.Unlock()
	return nil
}

// readBack finds out what became of a write that failed or has no answer.
func (p *Pins) readBack(ctx context.Context, c *pin, seq int64, cause error) error {
	data, info, err := p.store.Get(ctx, c.key)
	if errors.Is(err, storage.ErrNotFound) {
		p.lose(c)
		return nil // the next attempt makes a new pin
	}
	if err != nil {
		return errors.Join(cause, err)
	}
	var b pinBody
	if json.Unmarshal(data, &b) != nil || b.Revoked {
		p.lose(c)
		return nil //nolint:nilerr // revoked is lost; the next attempt makes a new pin
	}
	if p.acknowledge(c, b.Seq, info.ETag); b.Seq != seq {
		return fmt.Errorf("%w: %w", errNotApplied, cause)
	}
	return nil
}

// acknowledge notes that the object holds write seq under etag.
func (p *Pins) acknowledge(c *pin, seq int64, etag storage.ETag) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c.etag = etag
	if w, ok := c.doubt[seq]; ok {
		c.min, c.sent = w.min, w.sent
	}
	// Writes before it can no longer be applied: the ETag they name is gone.
	for s := range c.doubt {
		if s <= seq {
			delete(c.doubt, s)
		}
	}
}

func (p *Pins) lose(c *pin) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c.lost = true
	if p.cur == c {
		p.cur = nil
	}
}

func (p *Pins) body(version, seq int64) []byte {
	b, err := json.Marshal(pinBody{MinVersion: version, Holder: p.holder, Seq: seq})
	if err != nil {
		panic(err) // numbers and strings always encode
	}
	return b
}

// remove deletes the pin unless somebody holds it again.
func (p *Pins) remove(ctx context.Context) error {
	select {
	case p.writing <- struct{}{}:
		defer func() { <-p.writing }()
	case <-ctx.Done():
		return ctx.Err()
	}
	p.mu.Lock()
	c := p.cur
	if c == nil || len(c.holds) > 0 {
		p.mu.Unlock()
		return nil
	}
	p.cur, c.lost = nil, true // a Hold from now on makes a new pin
	p.mu.Unlock()
	if err := p.store.Delete(ctx, c.key); err != nil {
		return fmt.Errorf("remove pin: %w", err)
	}
	return nil
}

// Close removes the pin; holds that are left are lost. It may be called again.
func (p *Pins) Close(ctx context.Context) error {
	p.mu.Lock()
	if p.cur != nil {
		p.cur.lost = true
		p.cur.holds = map[int64]int{}
	}
	p.mu.Unlock()
	return p.remove(ctx)
}
