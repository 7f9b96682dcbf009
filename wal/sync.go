package wal

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Sync makes everything appended so far durable; with SyncAlways it always is.
// Appends go on while the disk works. Errors: ErrFailed, ErrClosed.
func (l *Log) Sync() error {
	if err := l.syncBeside(); err != nil {
		return fmt.Errorf("sync wal: %w", err)
	}
	return nil
}

// Run makes what is appended durable within Options.SyncInterval, until ctx
// ends; then it returns nil, and Close syncs the rest. With SyncAlways there is
// nothing to do, and it returns at once. While nothing is appended it sets no
// timer. Errors: ErrFailed.
func (l *Log) Run(ctx context.Context) error {
	if l.opts.Sync == SyncAlways {
		return nil
	}
	for {
		var since time.Time
		select {
		case <-ctx.Done():
			return nil
		case since = <-l.unsynced:
		}
		if left := l.opts.SyncInterval - time.Since(since); left > 0 {
			timer := time.NewTimer(left)
			select {
			case <-ctx.Done():
				timer.Stop()
				return nil
			case <-timer.C:
			}
		}
		select {
		case <-l.unsynced: // covered by what follows
		default:
		}
		if err := l.Sync(); err != nil && !errors.Is(err, ErrClosed) {
			return err
		}
	}
}

// syncBeside is a sync that does not hold up appends: what they write while it
// runs is left to the next.
func (l *Log) syncBeside() error {
	l.appendMu.Lock()
	if err := l.usable(); err != nil {
		l.appendMu.Unlock()
		return err
	}
	if l.active == nil || l.synced == l.activeSegment().bytes {
		l.appendMu.Unlock()
		return nil
	}
	f, from, end := l.active, l.synced, l.activeSegment().bytes
	// Taken before appendMu is let go: whoever is to close the file waits.
	l.syncMu.Lock()
	l.appendMu.Unlock()
	err := l.datasync(f, end-from)
	l.syncMu.Unlock()

	l.appendMu.Lock()
	defer l.appendMu.Unlock()
	if err != nil {
		return l.fail(fmt.Errorf("sync: %w", err))
	}
	if l.active == f {
		l.synced = max(l.synced, end)
	}
	return nil
}

// sync makes the active segment durable up to end. appendMu is held.
func (l *Log) sync(end int64) error {
	if l.synced == end {
		return nil
	}
	l.syncMu.Lock()
	err := l.datasync(l.active, end-l.synced)
	l.syncMu.Unlock()
	if err != nil {
		return l.fail(fmt.Errorf("sync: %w", err))
	}
	l.synced = end
	return nil
}

// datasync is fdatasync with its event. syncMu is held.
func (l *Log) datasync(f file, bytes int64) error {
	began := time.Now()
	err := l.settle(f.Datasync)
	l.opts.Events.SyncEnd(bytes, time.Since(began), err)
	return err
}

// barrier runs a sync of the active segment after any that runs beside.
func (l *Log) barrier(sync func() error) error {
	l.syncMu.Lock()
	defer l.syncMu.Unlock()
	return l.settle(sync)
}

// settle runs a sync unless one has failed before it: a kernel reports a lost
// page once, and would call the next sync of the file a success. syncMu is
// held.
func (l *Log) settle(sync func() error) error {
	if l.syncErr == nil {
		l.syncErr = sync()
	}
	return l.syncErr
}
