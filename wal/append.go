package wal

import (
	"errors"
	"fmt"
	"math"
	"time"

	"cardinalsin/internal/crashpoint"
)

// MaxSequence is the last sequence a log can assign; the table keeps sequences
// as signed numbers.
const MaxSequence Sequence = math.MaxInt64

// keepGroupBytes bounds the buffer that is kept from one group to the next.
const keepGroupBytes = 4 << 20

// Append gives the records the next sequences, in order, and writes them as
// one group: one write and, with SyncAlways, one sync, after which they are
// durable. Either all of them are acknowledged or none. first and last are
// inclusive. Errors: ErrFull, ErrFailed, ErrClosed, ErrRecordTooLarge.
func (l *Log) Append(records []Record) (first, last Sequence, err error) {
	l.appendMu.Lock()
	defer l.appendMu.Unlock()
	if first, last, err = l.append(records); err != nil {
		return 0, 0, fmt.Errorf("append %d records to wal: %w", len(records), err)
	}
	return first, last, nil
}

func (l *Log) append(records []Record) (first, last Sequence, err error) {
	size := int64(0)
	for i := range records {
		switch n := len(records[i].payload); {
		case n == 0:
			return 0, 0, errors.New("record was not made by Encode")
		case n > MaxRecordBytes:
			return 0, 0, ErrRecordTooLarge
		}
		size += int64(records[i].Bytes())
	}
	if size == 0 {
		return 0, 0, errors.New("group is empty")
	}
	if err := l.usable(); err != nil {
		return 0, 0, err
	}
	if err := l.withinLimit(size); err != nil {
		return 0, 0, err
	}
	if err := l.makeRoom(size); err != nil {
		return 0, 0, err
	}

	first = l.last + 1
	if last = l.last + Sequence(len(records)); last > MaxSequence {
		return 0, 0, fmt.Errorf("sequence %d is beyond the last", last)
	}
	buf := grow(l.buf[:0], int(size))[:0]
	for i, r := range records {
		f := frame{kind: kindBatch, codec: r.codec, sequence: first + Sequence(i), synced: l.synced, payload: r.payload}
		buf = f.append(buf, l.seed)
	}
	if l.buf = buf; cap(buf) > keepGroupBytes {
		l.buf = nil
	}
	if err := l.write(buf, false); err != nil {
		return 0, 0, err
	}
	crashpoint.Here(crashpoint.WALWritten)
	if l.opts.Sync == SyncAlways {
		// Durability point: when sync returns, the group survives a crash.
		if err := l.sync(l.activeSegment().bytes + int64(len(buf))); err != nil {
			return 0, 0, err
		}
	}
	crashpoint.Here(crashpoint.WALSynced)
	l.acknowledge(size, last)
	if l.opts.Sync == SyncDeferred {
		select {
		case l.unsynced <- time.Now():
		default: // Run has an earlier one
		}
	}
	return first, last, nil
}

func (l *Log) usable() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return ErrClosed
	}
	return l.failed
}

// withinLimit refuses what goes above MaxBytes. A log whose records are all
// covered takes any group, or a large one could never be written.
func (l *Log) withinLimit(size int64) error {
	held := l.Bytes()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.opts.MaxBytes > 0 && held+size > l.opts.MaxBytes && l.covered < l.last {
		return fmt.Errorf("%w: it holds %d bytes, limit %d", ErrFull, held, l.opts.MaxBytes)
	}
	return nil
}

// makeRoom sees to it that there is an active segment which takes size bytes
// more, sealing the present one if need be. With ErrFull the log is as usable
// as before.
func (l *Log) makeRoom(size int64) error {
	if l.active != nil && !l.activeIsEmpty() && l.activeSegment().bytes+size > l.opts.SegmentBytes {
		if err := l.seal(); err != nil {
			return fmt.Errorf("seal segment: %w", err)
		}
	}
	if l.active != nil {
		return nil
	}
	if err := l.createSegment(l.last + 1); err != nil {
		return fmt.Errorf("begin segment: %w", err)
	}
	return nil
}

// seal ends the active segment: everything in it is made durable, then a frame
// that says so. A crash in between leaves an active segment as any other.
func (l *Log) seal() error {
	s := l.activeSegment()
	if err := l.sync(s.bytes); err != nil {
		return err
	}
	b := frame{kind: kindSeal, sequence: l.last, synced: l.synced}.append(nil, l.seed)
	if err := l.write(b, true); err != nil {
		return err
	}
	l.acknowledge(int64(len(b)), l.last)
	err := l.active.Close()
	l.active = nil
	if err != nil {
		return l.fail(fmt.Errorf("close segment: %w", err))
	}
	return nil
}

// createSegment puts an empty segment in place, durably, and takes it for
// appends. Its name and header keep the sequence counter from then on.
func (l *Log) createSegment(first Sequence) error {
	name := segmentName(first)
	header := segmentHeader{writer: l.writer, first: first}
	if err := writeFile(l.dir, name, header.encode()); err != nil {
		if errors.Is(err, errUnsettled) {
			return l.fail(err)
		}
		return err
	}
	l.mu.Lock()
	l.segments = append(l.segments, segment{first: first, bytes: segmentHeaderBytes})
	l.mu.Unlock()
	if err := l.activate(header, segmentHeaderBytes); err != nil {
		return l.fail(err)
	}
	return nil
}

// activate takes a segment for appends.
func (l *Log) activate(h segmentHeader, synced int64) error {
	f, err := l.opts.openFile(l.path(segmentName(h.first)))
	if err != nil {
		return fmt.Errorf("open segment: %w", err)
	}
	l.active, l.seed, l.synced = f, h.seed(), synced
	return nil
}

// write puts b behind the active segment and syncs it if asked. When the write
// fails, what it left is cut off again: the group was not acknowledged, and
// the next one goes to the same place under the same sequences.
func (l *Log) write(b []byte, sync bool) error {
	end := l.activeSegment().bytes
	if _, err := l.active.WriteAt(b, end); err != nil {
		err = fmt.Errorf("write: %w", full(err))
		if cutErr := l.active.Truncate(end); cutErr != nil {
			return l.fail(fmt.Errorf("%w; truncate: %w", err, cutErr))
		}
		// Else a crash could bring the cut bytes back behind later ones.
		if syncErr := l.barrier(l.active.Sync); syncErr != nil {
			return l.fail(fmt.Errorf("%w; sync: %w", err, syncErr))
		}
		l.synced = end
		return err
	}
	if sync {
		return l.sync(end + int64(len(b)))
	}
	return nil
}

// fail ends the log's usefulness until it is opened again.
func (l *Log) fail(err error) error {
	l.failed = fmt.Errorf("%w: %w", ErrFailed, err)
	return l.failed
}

// acknowledge publishes what was written. The caller holds appendMu.
func (l *Log) acknowledge(bytes int64, last Sequence) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.segments[len(l.segments)-1].bytes += bytes
	l.last = last
}

// activeSegment is the one that takes appends. Only holders of appendMu change
// it, and the caller is one.
func (l *Log) activeSegment() segment {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.segments[len(l.segments)-1]
}

func (l *Log) activeIsEmpty() bool { return l.activeSegment().first > l.last }
