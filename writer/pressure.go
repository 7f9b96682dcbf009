package writer

import (
	"context"
	"fmt"
	"time"

	"cardinalsin/txlog"
	"cardinalsin/wal"
)

// Stats is what a Writer holds and how near it is to its limits.
type Stats struct {
	QueueBatches int   // waiting for the WAL
	QueueBytes   int64 // of these and of the group being written, as in the head
	HeadBytes    int64 // estimate of the memory in use
	HeadSeries   int   // a series counts twice while a flush of it is under way
	HeadSamples  int64
	WALBytes     int64
	// Oldest is the age of the oldest sample that is not in the table; 0 if
	// there is none.
	Oldest time.Duration
	// Acknowledged and Committed are the last sequences in the WAL and in the
	// table; Behind is the number of records that only the WAL has.
	Acknowledged, Committed, Behind wal.Sequence
	// LevelZero is the most uncompacted files that one partition has, as of
	// the last version that the writer has seen.
	LevelZero int
	// Pressure is 0 while nothing is slowed, 1 where batches are refused.
	Pressure float64
}

// Stats reports the present state. It does no I/O.
func (w *Writer) Stats() Stats {
	s := Stats{
		HeadBytes: w.headBytes.Load(), WALBytes: w.wal.Bytes(), Oldest: w.age(), Committed: wal.Sequence(w.flushed.Load()),
		LevelZero: int(w.levelZero.Load()), Pressure: w.pressure(),
	}
	w.queueMu.Lock()
	s.QueueBatches, s.QueueBytes = len(w.queue), w.queueBytes
	w.queueMu.Unlock()
	w.insertMu.Lock()
	s.Acknowledged, s.Behind = w.acknowledged, w.acknowledged-w.inserted
	w.insertMu.Unlock()
	for _, p := range w.Head().parts {
		p.h.mu.RLock()
		s.HeadSeries += p.h.count
		s.HeadSamples += int64(p.h.rows[len(p.h.rows)-1])
		p.h.mu.RUnlock()
	}
	return s
}

// age is that of the oldest sample which is not in the table.
func (w *Writer) age() time.Duration {
	oldest := w.oldest.Load()
	if oldest == nil {
		return 0
	}
	return w.opts.Now().Sub(*oldest)
}

// pressure is how near the writer is to its nearest limit: 0 up to half of it,
// then linear up to 1 at the limit.
func (w *Writer) pressure() float64 {
	p := strain(int64(w.age()), int64(w.opts.MaxUnflushedAge))
	p = max(p, strain(w.levelZero.Load(), int64(w.opts.MaxLevelZero)))
	if !w.mayspill() {
		p = max(p, strain(w.headBytes.Load(), w.opts.MaxHeadBytes))
		if b := w.opts.Budget; b != nil {
			p = max(p, strain(b.used.Load(), b.limit))
		}
	}
	return p
}

func strain(used, limit int64) float64 {
	return min(max(2*float64(used)/float64(limit)-1, 0), 1)
}

// mayspill reports whether a full head is no reason to refuse batches.
func (w *Writer) mayspill() bool {
	w.mu.RLock()
	spilled := w.spilled
	w.mu.RUnlock()
	return spilled || w.outage()
}

// minDelay is the delay below which the timer costs more than it helps.
const minDelay = time.Millisecond

// slowDown lets a batch wait for as long as the pressure says, and returns how
// long that was. At the limit it does not wait: admit refuses.
func (w *Writer) slowDown(ctx context.Context) (time.Duration, error) {
	p := w.pressure()
	d := time.Duration(p * p * float64(w.opts.MaxDelay))
	if p >= 1 || d < minDelay {
		return 0, nil
	}
	if !sleep(ctx, d) {
		return d, ctx.Err()
	}
	return d, nil
}

// admit says why a batch cannot be queued. queueMu is held.
func (w *Writer) admit(p *pending) error {
	if w.stopped != nil {
		return w.stopped
	}
	if w.queueBytes > 0 && w.queueBytes+p.bytes > w.opts.MaxQueueBytes {
		return fmt.Errorf("%w: %d bytes wait for the wal", ErrOverloaded, w.queueBytes)
	}
	if used := w.queueBytes + w.headBytes.Load(); w.full(used, p.bytes) && !w.mayspill() {
		if used+p.bytes <= w.opts.MaxHeadBytes {
			return fmt.Errorf("%w: all heads together hold %d bytes", ErrOverloaded, w.opts.Budget.Used())
		}
		return fmt.Errorf("%w: the head holds %d bytes", ErrOverloaded, used)
	}
	if age := w.age(); age > w.opts.MaxUnflushedAge {
		return fmt.Errorf("%w: the oldest sample waits for its flush since %v", ErrOverloaded, age.Round(time.Second))
	}
	if n := w.levelZero.Load(); n >= int64(w.opts.MaxLevelZero) {
		if w.stale.CompareAndSwap(false, true) {
			w.wakeRun() // it may have been compacted: Run looks
		}
		return fmt.Errorf("%w: a partition has %d files that wait for compaction", ErrOverloaded, n)
	}
	return nil
}

// refresh takes the latest version for a base, to see what was compacted.
func (w *Writer) refresh(ctx context.Context) error {
	select {
	case w.flushing <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-w.flushing }()
	if w.doubtful || w.fenced != nil {
		return w.fenced // a flush was quicker, and the next will settle
	}
	snap, err := w.log.Snapshot(ctx, txlog.Latest())
	if err != nil {
		return fmt.Errorf("look for compaction: %w", err)
	}
	if at := w.progress(snap); at != w.committed {
		return w.fence(snap, at) // no commit of ours is under way
	}
	return w.setBase(snap)
}
