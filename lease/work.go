package lease

import (
	"context"
	"errors"
	"time"

	"cardinalsin/storage"
)

// Work takes a claim and runs work under it, renewing it every third of ttl. A
// claim that is lost ends the work's context: somebody else does it. unreleased
// says why the claim is left to expire, which changes nothing about what the
// work did. Errors: those of Take; ErrClaimLost; the work's own.
func Work(ctx context.Context, store storage.Store, key, holder string, ttl time.Duration, opts Options, work func(context.Context) error) (unreleased, err error) {
	claim, err := Take(ctx, store, key, holder, ttl, opts)
	if err != nil {
		return nil, err
	}
	wctx, cancel := context.WithCancelCause(ctx)
	renewed := make(chan struct{})
	go func() {
		defer close(renewed)
		tick := time.NewTicker(ttl / 3)
		defer tick.Stop()
		for {
			select {
			case <-wctx.Done():
				return
			case <-tick.C:
				// Other failures may pass; the claim outlives two of them.
				if err := claim.Renew(wctx); errors.Is(err, ErrClaimLost) {
					cancel(err)
					return
				}
			}
		}
	}()
	err = work(wctx)
	lost := context.Cause(wctx)
	cancel(nil)
	<-renewed
	if errors.Is(lost, ErrClaimLost) {
		return nil, errors.Join(lost, err)
	}
	return claim.Release(context.WithoutCancel(ctx)), err
}
