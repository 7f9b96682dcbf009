package lease

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"cardinalsin/storage"
)

// Claim is this process' claim on one job. It is used by one goroutine.
type Claim struct {
	store  storage.Store
	key    string
	holder string
	token  string
	ttl    time.Duration
	opts   Options
	seq    int64
	etag   storage.ETag
	sent   instant // when the last acknowledged write was sent
}

type claimBody struct {
	Holder    string `json:"holder"`
	Token     string `json:"token"`
	TTLMillis int64  `json:"ttl_ms"`
	Seq       int64  `json:"seq"`
}

// Take claims a job for ttl, by put-if-absent; a claim that has expired is
// taken over by put-if-match. Errors: *HeldError, which wraps ErrClaimHeld;
// those of the store. An outcome that stays unknown is an error; if it was
// applied, it expires.
func Take(ctx context.Context, store storage.Store, key, holder string, ttl time.Duration, opts Options) (*Claim, error) {
	opts.EnsureDefaults()
	c := &Claim{store: store, key: key, holder: holder, token: uuid.NewString(), ttl: ttl, opts: opts, sent: opts.clock()}
	info, err := store.PutIfAbsent(ctx, key, c.body())
	if err == nil {
		c.etag = info.ETag
		return c, nil
	}
	if !errors.Is(err, storage.ErrAlreadyExists) && !errors.Is(err, storage.ErrUnknownOutcome) {
		return nil, fmt.Errorf("claim %s: %w", key, err)
	}
	data, info, gerr := store.Get(ctx, key)
	if gerr != nil {
		return nil, fmt.Errorf("claim %s: %w", key, errors.Join(err, gerr))
	}
	now, err := store.Now(ctx)
	if err != nil {
		return nil, fmt.Errorf("claim %s: %w", key, err)
	}
	// A damaged claim holds as long as ours would.
	b := claimBody{Holder: "unknown (the object is damaged)", TTLMillis: ttl.Milliseconds()}
	if err := json.Unmarshal(data, &b); err == nil && b.Token == c.token {
		c.etag = info.ETag
		return c, nil
	}
	if age := now.Sub(info.ModTime); age <= time.Duration(b.TTLMillis)*time.Millisecond+Grace {
		return nil, &HeldError{Key: key, Holder: b.Holder, Age: age}
	}
	c.etag, c.sent = info.ETag, opts.clock()
	if err := c.Renew(ctx); errors.Is(err, ErrClaimLost) {
		return nil, &HeldError{Key: key, Holder: "another process, just now"}
	} else if err != nil {
		return nil, err
	}
	return c, nil
}

// Renew writes the claim again; it is due every third of its ttl. Errors:
// ErrClaimLost; those of the store.
func (c *Claim) Renew(ctx context.Context) error {
	for try := 1; ; try++ {
		err := c.renew(ctx)
		if err == nil {
			return nil
		}
		if !errors.Is(err, errNotApplied) || try == maxTries {
			return fmt.Errorf("renew %s: %w", c.key, err)
		}
	}
}

// renew writes once. After errNotApplied it may be tried again at once.
func (c *Claim) renew(ctx context.Context) error {
	sent := c.opts.clock()
	info, err := c.store.PutIfMatch(ctx, c.key, c.body(), c.etag)
	if err == nil {
		c.etag, c.sent = info.ETag, sent
		return nil
	}
	if !errors.Is(err, storage.ErrPreconditionFailed) && !errors.Is(err, storage.ErrUnknownOutcome) {
		return err
	}
	data, info, gerr := c.store.Get(ctx, c.key)
	if gerr != nil && !errors.Is(gerr, storage.ErrNotFound) {
		return errors.Join(err, gerr)
	}
	var b claimBody
	if gerr != nil || json.Unmarshal(data, &b) != nil || b.Token != c.token {
		return ErrClaimLost
	}
	c.etag = info.ETag
	if b.Seq != c.seq {
		return fmt.Errorf("%w: %w", errNotApplied, err) // it is as before, or as an earlier try left it
	}
	c.sent = sent
	return nil
}

// Release deletes the claim, if nobody can have taken it over: a delete has
// no condition, and a successor's claim is not ours to delete. An older one is
// left to expire.
func (c *Claim) Release(ctx context.Context) error {
	if c.opts.clock().since(c.sent) >= c.ttl {
		return nil
	}
	if err := c.store.Delete(ctx, c.key); err != nil {
		return fmt.Errorf("release %s: %w", c.key, err)
	}
	return nil
}

// body is the object's next content, unlike any before.
func (c *Claim) body() []byte {
	c.seq++
	b, err := json.Marshal(claimBody{Holder: c.holder, Token: c.token, TTLMillis: c.ttl.Milliseconds(), Seq: c.seq})
	if err != nil {
		panic(err) // numbers and strings always encode
	}
	return b
}
