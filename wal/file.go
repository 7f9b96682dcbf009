package wal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
)

const (
	lockName     = "LOCK"
	identityName = "writer.id"
	tempSuffix   = ".tmp"
)

// file is what the log needs of an open segment.
type file interface {
	WriteAt(b []byte, offset int64) (int, error)
	Truncate(size int64) error
	// Datasync makes the bytes, and what it takes to read them, durable.
	Datasync() error
	// Sync makes everything durable, the size after Truncate included.
	Sync() error
	Close() error
}

type osFile struct{ *os.File }

func (f osFile) Datasync() error { return datasync(f.File) }

func openOSFile(path string) (file, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

// makeDir creates the directory and its missing parents, durably.
func makeDir(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	parent := filepath.Dir(filepath.Clean(dir))
	if parent != filepath.Clean(dir) {
		if err := makeDir(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("create directory: %w", full(err))
	}
	return syncDir(parent)
}

// lockDir takes the lock that keeps a writer's identity to one process. The
// kernel drops it when the process ends, however it ends.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open lock file: %w", full(err))
	}
	switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
	case errors.Is(err, unix.EWOULDBLOCK):
		return nil, errors.Join(ErrLocked, f.Close())
	case err != nil:
		return nil, errors.Join(fmt.Errorf("lock directory: %w", err), f.Close())
	}
	return f, nil
}

// loadIdentity reads the writer's UUID. found is false when there is none.
func loadIdentity(dir string) (id WriterID, found bool, err error) {
	f, err := os.Open(filepath.Join(dir, identityName))
	if errors.Is(err, os.ErrNotExist) {
		return WriterID{}, false, nil
	}
	if err != nil {
		return WriterID{}, false, fmt.Errorf("open identity: %w", err)
	}
	defer f.Close() //nolint:errcheck // nothing was written
	var text [64]byte
	n, err := f.ReadAt(text[:], 0)
	if n == 0 || n == len(text) {
		return WriterID{}, false, fmt.Errorf("%w: identity file %s has %d bytes or more: %w", ErrCorrupt, identityName, n, err)
	}
	u, err := uuid.Parse(strings.TrimSuffix(string(text[:n]), "\n"))
	if err != nil {
		return WriterID{}, false, fmt.Errorf("%w: identity file %s: %w", ErrCorrupt, identityName, err)
	}
	return WriterID(u), true, nil
}

func createIdentity(dir string) (WriterID, error) {
	u, err := uuid.NewRandom()
	if err != nil {
		return WriterID{}, fmt.Errorf("make identity: %w", err)
	}
	if err := writeFile(dir, identityName, []byte(u.String()+"\n")); err != nil {
		return WriterID{}, fmt.Errorf("write identity: %w", err)
	}
	return WriterID(u), nil
}

// errUnsettled: a file was renamed into place but its name may not be durable.
var errUnsettled = errors.New("directory not synced")

// writeFile puts a file in place whole: after a crash it is there with all its
// bytes, or not at all.
func writeFile(dir, name string, data []byte) error {
	temp := filepath.Join(dir, name+tempSuffix)
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return full(err)
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(temp, filepath.Join(dir, name))
	}
	if err != nil {
		return errors.Join(full(err), os.Remove(temp))
	}
	if err := syncDir(dir); err != nil {
		return fmt.Errorf("%w: %w", errUnsettled, err)
	}
	return nil
}

// syncDir makes creations, renames and removals in a directory durable.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("open directory: %w", err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	return nil
}

// full adds ErrFull to an error that says so.
func full(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return err
}
