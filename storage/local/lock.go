package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"cardinalsin/storage"
)

// lockExclusive takes the lock against all other processes and goroutines.
// The returned function releases it, and so does the death of the process.
func (s *Store) lockExclusive(ctx context.Context, root *os.Root) (unlock func(), err error) {
	// Goroutines queue here, so that at most one a process waits below.
	select {
	case s.lock <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for the lock: %w", ctx.Err())
	}
	release, err := s.flock(ctx, root, unix.LOCK_EX, os.O_CREATE)
	if err != nil {
		<-s.lock
		return nil, err
	}
	return func() { release(); <-s.lock }, nil
}

// lockShared takes the lock together with other readers. It is fs.ErrNotExist
// if no process has ever taken it.
func (s *Store) lockShared(ctx context.Context, root *os.Root) (unlock func(), err error) {
	return s.flock(ctx, root, unix.LOCK_SH, 0)
}

// flock locks the lock file. A lock belongs to the opened file, so each call
// opens its own, and to close it is to unlock it.
func (s *Store) flock(ctx context.Context, root *os.Root, how, flags int) (unlock func(), err error) {
	for {
		f, err := root.OpenFile(lockFile, os.O_RDONLY|flags, 0o666)
		if err != nil {
			return nil, fmt.Errorf("open the lock: %w", typed(err))
		}
		wait := func() error { return waitFlock(ctx, f, how) }
		if how == unix.LOCK_EX {
			err = s.do("lock", wait)
		} else {
			err = wait()
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("take the lock: %w", typed(err)), f.Close())
		}
		// If someone has removed the file, we hold what nobody else asks for.
		mine, err := f.Stat()
		if err != nil {
			return nil, errors.Join(fmt.Errorf("take the lock: %w", typed(err)), f.Close())
		}
		named, err := root.Stat(lockFile)
		if err == nil && os.SameFile(mine, named) {
			return func() { _ = f.Close() }, nil // nothing is written to it
		}
		if err := f.Close(); err != nil {
			return nil, fmt.Errorf("close the lock: %w", typed(err))
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("take the lock: %w", typed(err))
		}
	}
}

// waitFlock asks until it gets the lock or ctx ends; a blocking flock(2) could
// not be left. Holders keep the lock for a few system calls.
func waitFlock(ctx context.Context, f *os.File, how int) error {
	const maxPause = 5 * time.Millisecond
	for pause := 50 * time.Microsecond; ; pause = min(2*pause, maxPause) {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINVAL):
			return fmt.Errorf("%w: the file system has no locks: %w", storage.ErrStoreRefused, err)
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR):
			return err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}
