package writer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"cardinalsin/internal/symbols"
	"cardinalsin/series"
	"cardinalsin/wal"
)

// ErrIncomplete: samples were acknowledged that are in the WAL and neither in
// the head nor in the table, because the store did not take flushes for so long
// that the head became full. It passes by itself once the store is back.
var ErrIncomplete = errors.New("acknowledged samples are in the wal only")

// How long a part of a flush may take, and within it the commit, before the
// store counts as out of order. A part of maxPartRows takes a few seconds to
// encode and upload; a commit is one put, which the log offers again and again
// while its outcome is unknown.
const (
	stallAfter       = time.Minute
	commitStallAfter = 5 * time.Second
)

// outage reports whether the store does not take flushes: the last one failed,
// or one hangs. A head that is full is then no reason to refuse batches.
func (w *Writer) outage() bool {
	if w.failing.Load() {
		return true
	}
	since := func(began *time.Time, limit time.Duration) bool {
		return began != nil && w.opts.Now().Sub(*began) > limit
	}
	return since(w.commitBegan.Load(), commitStallAfter) || since(w.flushBegan.Load(), stallAfter)
}

// take notes that the WAL has a batch and puts it into the head, if there is
// room, and if what came before it is there. insertMu is held.
func (w *Writer) take(seq wal.Sequence, p *pending) {
	w.acknowledged = max(w.acknowledged, seq)
	if seq <= w.inserted {
		return // refill was quicker
	}
	// Only admit lets a batch come this far that has no room.
	if held := w.headBytes.Load(); !w.spilled && w.full(held, p.bytes) {
		w.setSpilled(true)
		w.opts.Logger.Warn("the head is full and the store takes no flushes: going on in the wal alone",
			"table", w.log.Root(), "head_bytes", held, "after", uint64(w.inserted))
	}
	if !w.spilled {
		w.insert(seq, p.batch, p.sets)
	}
}

// setSpilled changes whether there are records after w.inserted that only the
// WAL has. insertMu is held.
func (w *Writer) setSpilled(spilled bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.spilled, w.spilledSince = spilled, w.opts.Now()
}

// maxChases is how often refill looks for what came while it was reading
// before it holds up appends to get level with them.
const maxChases = 3

// refill brings records that only the WAL has into the head, oldest first,
// until the head is due for a flush. When none is left, batches go into the
// head again. The caller is flushing.
func (w *Writer) refill(ctx context.Context) error {
	for chase := 0; ; chase++ {
		w.insertMu.Lock()
		if !w.spilled || w.enough() {
			w.insertMu.Unlock()
			return nil
		}
		if chase < maxChases {
			w.insertMu.Unlock()
		}
		// Records that the WAL has acknowledged and whose leader has not come
		// to take yet are taken here; take then leaves them out.
		err := w.replay(ctx, chase == maxChases)
		if chase < maxChases {
			w.insertMu.Lock()
		}
		level, through := err == nil && (chase == maxChases || w.inserted == w.acknowledged), w.inserted
		if level {
			w.setSpilled(false)
		}
		w.insertMu.Unlock()
		switch {
		case level:
			w.opts.Logger.Info("the head has everything again", "table", w.log.Root(), "through", uint64(through))
			return nil
		case errors.Is(err, errPause):
			return nil
		case err != nil:
			return fmt.Errorf("read back what is in the wal only: %w", err)
		}
	}
}

// enough reports whether the head should be flushed before more is read back.
func (w *Writer) enough() bool {
	held := w.headBytes.Load()
	return held >= w.opts.FlushBytes || w.full(held, 0)
}

// errPause ends a replay early, to make room.
var errPause = errors.New("head is full")

// replay puts what the WAL has after the head into it, until the head is due
// for a flush: then it returns an error that wraps errPause. locked says that
// the caller holds insertMu.
func (w *Writer) replay(ctx context.Context, locked bool) error {
	var sets symbols.Batch
	// Only flushes and recovery insert while this runs, and the caller is one.
	return w.wal.Replay(w.inserted, func(seq wal.Sequence, b series.Batch) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if w.enough() {
			return errPause
		}
		sets.Reset()
		for i := range b {
			if _, err := sets.Add(b[i].Labels); err != nil {
				return fmt.Errorf("record %d: series %d: %w", seq, i, err)
			}
		}
		if !locked {
			w.insertMu.Lock()
			defer w.insertMu.Unlock()
		}
		w.insert(seq, b, &sets)
		return nil
	})
}
