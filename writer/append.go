package writer

import (
	"context"
	"errors"
	"slices"
	"time"

	"cardinalsin/internal/symbols"
	"cardinalsin/series"
	"cardinalsin/wal"
)

// maxGroupBytes bounds the records of one group, so that the first to wait
// does not wait for ever. A record larger than that goes alone.
const maxGroupBytes = 16 << 20

// pending is one batch on its way into the WAL.
type pending struct {
	batch  series.Batch
	sets   *symbols.Batch // of its label sets
	record wal.Record
	bytes  int64 // at most what it adds to the head
	// queued and written are when it joined the queue, and when its group left
	// it.
	queued, written time.Time
	// turn is told once what to do: return an outcome, or lead first. It has
	// room for both, so that nobody waits to tell.
	turn chan turn
}

type turn struct {
	lead bool // write the next group; you are in it
	err  error
}

// Append makes a batch durable and readable. It is accepted or refused whole:
// when Append returns nil, every sample is in the WAL, synced if the WAL was
// opened so, and in every head taken from then on, unless that head says that
// it is incomplete; with an error of validation, ErrOverloaded, wal.ErrFull or
// an ended context nothing was stored; after wal.ErrFailed it may be there when
// the WAL is opened again.
//
// Labels with empty values are dropped, series without samples ignored. A
// sample with the same series, time and nanos as an earlier one replaces it,
// within a batch too; so resending a batch changes nothing. The batch is not
// changed, and not kept except for its histograms, which must not change.
//
// It may be called concurrently: batches that arrive while the disk is busy
// share the next write. Cost: one fsync, shared; no store request. The nearer
// the writer is to one of its limits the longer Append waits first, up to
// MaxDelay; at the limit it returns ErrOverloaded. Something must empty the
// head: Run, or calls of Flush.
func (w *Writer) Append(ctx context.Context, b series.Batch) error {
	start := w.opts.Now()
	ev := AppendEvent{Series: len(b), Samples: b.Samples()}
	ev.Err = w.append(ctx, b, &ev)
	if w.opts.Events.AppendEnd != nil {
		ev.Duration = w.opts.Now().Sub(start)
		w.opts.Events.AppendEnd(ev)
	}
	return ev.Err
}

func (w *Writer) append(ctx context.Context, b series.Batch, ev *AppendEvent) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	sets := labelSets.Get().(*symbols.Batch)
	defer func() {
		sets.Reset() // it must not hold the request's memory
		labelSets.Put(sets)
	}()
	v, err := validate(b, w.shards.Load(), sets)
	if err != nil {
		return err
	}
	if v.samples == 0 {
		return nil
	}
	record, err := wal.Encode(b, sets)
	if err != nil {
		return err
	}
	ev.Bytes = record.Bytes()
	if ev.Delay, err = w.slowDown(ctx); err != nil {
		return err
	}
	p := &pending{batch: b, sets: sets, record: record, bytes: v.bytes, queued: w.opts.Now(), turn: make(chan turn, 2)}
	err = w.submit(ctx, p)
	if !p.written.IsZero() {
		ev.Queued = p.written.Sub(p.queued)
	}
	return err
}

// submit queues a batch and waits for its outcome, writing a group when it is
// its turn.
func (w *Writer) submit(ctx context.Context, p *pending) error {
	w.queueMu.Lock()
	if err := w.admit(p); err != nil {
		w.queueMu.Unlock()
		return err
	}
	w.appends.Add(1)
	defer w.appends.Done()
	w.queue = append(w.queue, p)
	w.queueBytes += p.bytes
	lead := !w.leading
	w.leading = true
	w.queueMu.Unlock()
	if lead {
		return w.lead(p)
	}

	var t turn
	select {
	case t = <-p.turn:
	case <-ctx.Done():
		if w.withdraw(p) {
			return ctx.Err()
		}
		t = <-p.turn // it is being written: the disk will tell
	}
	if t.lead {
		return w.lead(p)
	}
	return t.err
}

// withdraw takes a batch back whose caller has gone. It fails when the batch
// is being written. If its turn to lead had come, the next one leads.
func (w *Writer) withdraw(p *pending) bool {
	w.queueMu.Lock()
	defer w.queueMu.Unlock()
	i := slices.Index(w.queue, p)
	if i < 0 {
		return false
	}
	w.queue = slices.Delete(w.queue, i, i+1)
	w.queueBytes -= p.bytes
	select {
	case <-p.turn: // still queued, so this can only be the turn to lead
		w.passLead()
	default:
	}
	return true
}

// passLead lets the first in the queue write the next group. queueMu is held.
func (w *Writer) passLead() {
	if len(w.queue) == 0 {
		w.leading = false
		return
	}
	w.queue[0].turn <- turn{lead: true}
}

// lead writes the group at the front of the queue, in which p is the first.
func (w *Writer) lead(p *pending) error {
	group := w.takeGroup()
	records := make([]wal.Record, len(group))
	now := w.opts.Now()
	for i, g := range group {
		records[i], g.written = g.record, now
	}
	// DURABILITY POINT: when this returns, the group survives a crash.
	first, _, err := w.wal.Append(records)
	if errors.Is(err, wal.ErrFull) {
		w.short.Store(true) // a flush makes room
		w.wakeRun()
	}
	if err == nil {
		// Taken before the next group may be written: its insert waits here.
		w.insertMu.Lock()
	}
	w.queueMu.Lock()
	w.passLead()
	w.queueMu.Unlock()
	if err == nil {
		for i, g := range group {
			w.take(first+wal.Sequence(i), g)
		}
		w.insertMu.Unlock()
	}

	bytes := int64(0)
	for _, g := range group {
		bytes += g.bytes
	}
	// Only now, so that no batch is left out of the count on its way from
	// the queue to the head.
	w.queueMu.Lock()
	w.queueBytes -= bytes
	w.queueMu.Unlock()
	for _, g := range group {
		if g != p {
			g.turn <- turn{err: err}
		}
	}
	return err
}

// takeGroup removes the batches that are written together.
func (w *Writer) takeGroup() []*pending {
	w.queueMu.Lock()
	defer w.queueMu.Unlock()
	n, bytes := 0, 0
	for n < len(w.queue) {
		bytes += w.queue[n].record.Bytes()
		if n > 0 && bytes > maxGroupBytes {
			break
		}
		n++
	}
	group := slices.Clone(w.queue[:n])
	w.queue = slices.Delete(w.queue, 0, n)
	return group
}

// insert puts a record into the active head. insertMu is held.
func (w *Writer) insert(seq wal.Sequence, b series.Batch, sets *symbols.Batch) {
	before := w.active.bytes
	now := w.opts.Now()
	if w.spilled {
		now = w.spilledSince // it has waited in the WAL
	}
	first := w.active.first == 0
	w.active.insert(seq, b, sets, now)
	w.inserted, w.acknowledged = seq, max(w.acknowledged, seq)
	bytes := w.account(w.active.bytes - before)
	if first {
		w.oldest.CompareAndSwap(nil, &now)
	}
	if first || bytes >= w.opts.FlushBytes {
		w.wakeRun()
	}
}
