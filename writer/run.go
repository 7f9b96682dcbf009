package writer

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"cardinalsin/txlog"
)

// Run flushes by age and by size until ctx ends; then it returns nil, and
// Close flushes the rest. What fails is logged and tried again after a pause,
// at most RetryMax; only txlog.ErrFenced ends it with an error. While nothing
// is written it makes no store request and sets no timer.
func (w *Writer) Run(ctx context.Context) error {
	pause := w.opts.RetryMin
	for {
		if err := w.waitDue(ctx); err != nil {
			return nil //nolint:nilerr // ctx ended, which is how Run is stopped
		}
		err := w.Flush(ctx)
		switch {
		case err == nil:
			pause = w.opts.RetryMin
			continue
		case errors.Is(err, txlog.ErrFenced):
			return err
		case ctx.Err() != nil:
			return nil
		}
		// At least half of the pause, so that an outage is not hammered, and
		// the rest at random, so that many writers do not return as one.
		wait := pause/2 + rand.N(pause/2+1)
		w.opts.Logger.Warn("flush failed", "table", w.log.Root(), "retry_in", wait, "err", err)
		if sleep(ctx, wait) != nil {
			return nil
		}
		pause = min(2*pause, w.opts.RetryMax)
	}
}

// waitDue returns when there is something to flush, or ctx has ended.
func (w *Writer) waitDue(ctx context.Context) error {
	for {
		left, some := w.due()
		if some && left <= 0 {
			return ctx.Err()
		}
		var timer *time.Timer
		var due <-chan time.Time
		if some {
			timer = time.NewTimer(left)
			due = timer.C
		}
		select {
		case <-ctx.Done():
		case <-w.wake:
		case <-due:
		}
		if timer != nil {
			timer.Stop()
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// due is the time until the head must be flushed; some is false while it is
// empty. A writer that is fenced is due to hear of it.
func (w *Writer) due() (left time.Duration, some bool) {
	w.queueMu.Lock()
	stopped := w.stopped
	w.queueMu.Unlock()
	if errors.Is(stopped, txlog.ErrFenced) {
		return 0, true
	}
	oldest := w.oldest.Load()
	if oldest == nil {
		return 0, false
	}
	if w.headBytes.Load() >= w.opts.FlushBytes {
		return 0, true
	}
	return w.opts.FlushAge - w.opts.Now().Sub(*oldest), true
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
