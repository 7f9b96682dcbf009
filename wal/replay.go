package wal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"cardinalsin/series"
)

// Replay calls fn for each record after the sequence, in order, up to the last
// one acknowledged when it was called; the batch is fn's to keep. An error of
// fn ends it and is returned wrapped. fn must not call Truncate or Close. Every
// segment that holds such a record is read and checked whole, but a replay that
// goes on where an earlier one ended begins there, so that to replay in pieces
// costs no more than at once. Errors: *CorruptionError, ErrUnsupportedVersion,
// ErrSequenceGap, ErrClosed.
func (l *Log) Replay(after Sequence, fn func(Sequence, series.Batch) error) error {
	if err := l.replay(after, fn); err != nil {
		return fmt.Errorf("replay wal after %d: %w", after, err)
	}
	return nil
}

func (l *Log) replay(after Sequence, fn func(Sequence, series.Batch) error) error {
	l.filesMu.RLock()
	defer l.filesMu.RUnlock()
	l.mu.Lock()
	segments, last, closed := slices.Clone(l.segments), l.last, l.closed
	l.mu.Unlock()
	if closed {
		return ErrClosed
	}
	if first := segments[0].first; after+1 < first || after > last {
		return fmt.Errorf("%w: it holds %d to %d", ErrSequenceGap, first, last)
	}
	for i, s := range segments {
		lastSegment := i == len(segments)-1
		if !lastSegment && segments[i+1].first <= after+1 {
			continue
		}
		next := last + 1
		if !lastSegment {
			next = segments[i+1].first
		}
		if err := l.replaySegment(s, next, !lastSegment, after, fn); err != nil {
			return err
		}
	}
	return nil
}

// replaySegment reads a segment up to where it was acknowledged; it must end
// right before next and, if it has a successor, with a seal.
func (l *Log) replaySegment(s segment, next Sequence, succeeded bool, after Sequence, fn func(Sequence, series.Batch) error) error {
	in, err := os.Open(l.path(s.name()))
	if errors.Is(err, os.ErrNotExist) {
		return &CorruptionError{Segment: s.name(), Err: fmt.Errorf("%w: %w", ErrCorrupt, err)}
	}
	if err != nil {
		return fmt.Errorf("open segment: %w", err)
	}
	defer in.Close() //nolint:errcheck // only read
	r, err := openSegmentReader(s.name(), in, s.bytes)
	if err != nil {
		return err
	}
	if r.header.writer != l.writer {
		return r.wrap(0, fmt.Errorf("%w: writer is %s, not %s", ErrCorrupt, r.header.writer, l.writer))
	}
	if c := l.place(); c.segment == s.first && c.next-1 <= after {
		r.seek(c.offset)
		r.next = c.next
	}
	for {
		at := r.offset
		f, err := r.read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if f.kind != kindBatch || f.sequence <= after {
			continue
		}
		b, err := decodePayload(f.codec, f.payload)
		if err != nil {
			return r.wrap(at, fmt.Errorf("record %d: %w", f.sequence, err))
		}
		if err := fn(f.sequence, b); err != nil {
			l.setPlace(place{segment: s.first, next: f.sequence, offset: at})
			return fmt.Errorf("record %d: %w", f.sequence, err)
		}
	}
	if r.next != next || succeeded && !r.sealed {
		return r.wrap(r.offset, fmt.Errorf("%w: ends before record %d, sealed %t, where %d begins the next", ErrCorrupt, r.next, r.sealed, next))
	}
	if !r.sealed {
		l.setPlace(place{segment: s.first, next: next, offset: r.offset})
	}
	return nil
}

// place is where a replay ended: before the frame of the record next.
type place struct {
	segment Sequence // its first
	next    Sequence
	offset  int64
}

func (l *Log) place() place {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.replayed
}

func (l *Log) setPlace(p place) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.replayed = p
}
