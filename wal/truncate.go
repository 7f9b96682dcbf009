package wal

import (
	"errors"
	"fmt"
	"os"
)

// recycleBytes is the size from which Truncate also replaces the active
// segment: below it, the syncs of a new segment cost more than the space.
const recycleBytes = 1 << 20

// Truncate deletes the segments whose records all have sequences ≤ through,
// which a committed version must cover. The last segment stays, and with it
// the counter; when all its records are covered and it is large, an empty one
// takes its place. It waits for Replay to end. A crash within leaves segments
// that the next Truncate deletes; so does an error, ErrFull included, after
// what could be deleted was deleted. It works on a log that failed, too.
// Errors: ErrFull, ErrFailed, ErrClosed.
func (l *Log) Truncate(through Sequence) error {
	if err := l.truncate(through); err != nil {
		return fmt.Errorf("truncate wal through %d: %w", through, err)
	}
	return nil
}

func (l *Log) truncate(through Sequence) error {
	l.mu.Lock()
	l.covered = max(l.covered, through)
	l.mu.Unlock()
	// Old segments first: on a full disk they are the space for the next.
	if err := l.removeCovered(through); err != nil {
		return err
	}
	atLeast := int64(recycleBytes)
	if l.opts.MaxBytes > 0 {
		atLeast = min(atLeast, l.opts.MaxBytes/4) // the space counts more
	}
	if err := l.retireActive(through, atLeast); err != nil {
		return err
	}
	return l.removeCovered(through)
}

// removeCovered deletes segments oldest first, and makes each removal durable
// before the next, so that no crash leaves a gap between segments.
func (l *Log) removeCovered(through Sequence) error {
	l.filesMu.Lock()
	defer l.filesMu.Unlock()
	for {
		l.mu.Lock()
		closed := l.closed
		covered := len(l.segments) > 1 && l.segments[1].first-1 <= through
		oldest := l.segments[0]
		l.mu.Unlock()
		if closed {
			return ErrClosed
		}
		if !covered {
			return nil
		}
		if err := os.Remove(l.path(oldest.name())); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove segment: %w", err)
		}
		if err := syncDir(l.dir); err != nil {
			return err
		}
		l.mu.Lock()
		l.segments = l.segments[1:]
		l.mu.Unlock()
	}
}

// empty leaves the log without records if all of them are covered.
func (l *Log) empty() error {
	l.mu.Lock()
	covered, closed := l.covered, l.closed
	l.mu.Unlock()
	if closed || covered == 0 {
		return nil
	}
	if err := l.retireActive(covered, 0); err != nil {
		return err
	}
	return l.removeCovered(covered)
}

// Pending tells, without opening or locking it, whether a directory may hold
// records that no Truncate has covered: false where there is no log, and after
// Close if the last Truncate covered everything. Errors: those of reading the
// directory.
func Pending(dir string) (bool, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look into wal: %w", err)
	}
	segments := 0
	for _, e := range entries {
		if _, ok := parseSegmentName(e.Name()); !ok {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, os.ErrNotExist) {
			continue // truncated meanwhile
		}
		if err != nil {
			return false, fmt.Errorf("look into wal: %w", err)
		}
		if segments++; segments > 1 || info.Size() > segmentHeaderBytes {
			return true, nil
		}
	}
	return false, nil
}

// retireActive seals the active segment and begins the next if all its records
// are covered and it has so many bytes.
func (l *Log) retireActive(through Sequence, atLeast int64) error {
	l.appendMu.Lock()
	defer l.appendMu.Unlock()
	if l.failed != nil || l.active == nil || l.activeIsEmpty() || l.last > through || l.activeSegment().bytes < atLeast {
		return nil
	}
	if err := l.seal(); err != nil {
		return fmt.Errorf("seal segment: %w", err)
	}
	return l.makeRoom(0)
}
