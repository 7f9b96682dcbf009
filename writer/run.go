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
	for w.waitDue(ctx) {
		err := w.work(ctx)
		if errors.Is(err, txlog.ErrFenced) {
			return err
		}
		if err == nil {
			pause = w.opts.RetryMin
			continue
		}
		if ctx.Err() != nil {
			break // stopped in the middle of it
		}
		// At least half of the pause, so that an outage is not hammered, and
		// the rest at random, so that many writers do not return as one.
		wait := pause/2 + rand.N(pause/2+1)
		w.opts.Logger.Warn("flush failed", "table", w.log.Root(), "retry_in", wait, "err", err)
		if !sleep(ctx, wait) {
			break
		}
		pause = min(2*pause, w.opts.RetryMax)
	}
	return nil //nolint:nilerr // ctx has ended, which is how Run is stopped
}

// work does what is due.
func (w *Writer) work(ctx context.Context) error {
	if w.oldest.Load() == nil && w.stale.Load() {
		return w.refresh(ctx)
	}
	return w.Flush(ctx) // and sees the latest version, too
}

// waitDue returns true when there is something to flush, and false when ctx
// has ended.
func (w *Writer) waitDue(ctx context.Context) bool {
	for ctx.Err() == nil {
		left, some := w.due()
		if some && left <= 0 {
			return true
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
	}
	return false
}

// due is the time until the head must be flushed, or the base looked at anew;
// some is false while neither is needed. A writer that is fenced is due to hear of it.
func (w *Writer) due() (left time.Duration, some bool) {
	w.queueMu.Lock()
	stopped := w.stopped
	w.queueMu.Unlock()
	if errors.Is(stopped, txlog.ErrFenced) {
		return 0, true
	}
	oldest := w.oldest.Load()
	if oldest == nil {
		if w.stale.Load() { // batches are refused by what the base says
			return w.opts.FlushAge - w.opts.Now().Sub(*w.based.Load()), true
		}
		return 0, false
	}
	if w.headBytes.Load() >= w.opts.FlushBytes || w.short.Load() {
		return 0, true
	}
	return w.opts.FlushAge - w.opts.Now().Sub(*oldest), true
}

// sleep returns false if ctx ends before.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
