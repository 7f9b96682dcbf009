// Package local is a store in a directory, shared by any number of processes.
//
// It stands beside the other backends and gives the guarantees of
// [storage.Store] with what a local file system has (log-protocol, section 9):
//
//	<root>/<key>                  one object
//	<root>/.cardinal/tmp/<hex>    objects being written
//	<root>/.cardinal/lock         flock for what replaces or removes an object
//
//	Put          temporary file, fsync, lock, rename(2), unlock, fsync directory
//	PutIfAbsent  temporary file, fsync, link(2), fsync directory
//	PutIfMatch   temporary file, fsync, lock, compare, rename(2), unlock, fsync directory
//	Delete       lock, unlink(2), unlock, fsync directory
//
// Before the link or the rename nothing of a write can be seen, and an error
// means that nothing was stored; after it the object is there whole, and an
// error means that the outcome is unknown. A crash leaves at most a temporary
// file, which the first write of a later process removes when it is a day old.
//
// INVARIANT: link(2) fails if the name is taken, so one of many PutIfAbsent
// wins. INVARIANT: whatever replaces or removes an object holds the lock from
// its look at the object until the rename, so a PutIfMatch that saw its ETag
// is alone. List reads each directory under the same lock, shared, because a
// file system may show a name that is renamed over to no concurrent reader of
// the directory, or twice.
//
// An ETag is inode, modification time and size. Inode numbers are used again
// at once and the kernel's clock ticks in milliseconds, so the time is set by
// us: microseconds by the clock, nanoseconds at random, and always later than
// that of the object it replaces. A file system that does not keep the
// nanoseconds, or has no locks or links, is refused (storage.ErrStoreRefused).
//
// Directories are never removed, not even empty ones: a process that knows a
// directory to be durable does not fsync its parents again, and could
// acknowledge an object in a directory that another process has removed and
// made anew and not yet synced.
//
// It must never follow a symbolic link out of the root; links are not listed.
package local

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"cardinalsin/storage"
)

const (
	hiddenDir = ".cardinal" // keys in it are refused and not listed
	tempDir   = hiddenDir + "/tmp"
	lockFile  = hiddenDir + "/lock"

	// tempMaxAge is when a temporary file is left over from a crash. A writer
	// that is slower than that fails, and stores nothing.
	tempMaxAge = 24 * time.Hour
)

// Options configure a store; the zero value is ready to use.
type Options struct {
	// Now is the store's clock; default time.Now. All processes that share
	// the directory must share the clock.
	Now func() time.Time
}

// EnsureDefaults fills what is not set.
func (o *Options) EnsureDefaults() {
	if o.Now == nil {
		o.Now = time.Now
	}
}

// Store is a storage.Store in a directory. Its methods may be called
// concurrently, by many processes too.
type Store struct {
	dir  string // absolute
	now  func() time.Time
	lock chan struct{} // holds one token while this process wants or has the lock

	// step, if set, is called before each step of a write and its error taken
	// for the step's own; tests record and break writes with it.
	step func(name string) error

	// mu guards all below.
	mu      sync.Mutex
	root    *os.Root
	rootDir *os.File            // the same, set with it
	ready   bool                // hiddenDir exists
	durable map[string]struct{} // directories whose entry in their parent is synced
}

var (
	_ storage.Store     = (*Store)(nil)
	_ storage.PathStore = (*Store)(nil)
)

// New returns the store in dir, which the first write creates. A dir that is
// something else is ErrNoStore.
func New(dir string, opts Options) (*Store, error) {
	opts.EnsureDefaults()
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("local store %q: %w", dir, err)
	}
	info, err := os.Stat(abs)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("local store %q: %w", dir, typed(err))
	case !info.IsDir():
		return nil, fmt.Errorf("local store %q: not a directory: %w", dir, storage.ErrNoStore)
	}
	return &Store{dir: abs, now: opts.Now, lock: make(chan struct{}, 1), durable: map[string]struct{}{}}, nil
}

// Path implements storage.PathStore.
func (s *Store) Path(key string) string { return filepath.Join(s.dir, filepath.FromSlash(key)) }

// Get implements storage.Store.
func (s *Store) Get(ctx context.Context, key string) ([]byte, storage.ObjectInfo, error) {
	f, info, err := s.open(ctx, key)
	if err != nil {
		return nil, storage.ObjectInfo{}, fmt.Errorf("get %q: %w", key, err)
	}
	defer f.Close() // opened for reading: no error that matters
	data := make([]byte, info.Size)
	if _, err := io.ReadFull(f, data); err != nil {
		return nil, storage.ObjectInfo{}, fmt.Errorf("get %q: %w", key, typed(err))
	}
	return data, info, nil
}

// GetRange implements storage.Store.
func (s *Store) GetRange(ctx context.Context, key string, offset, length int64) ([]byte, error) {
	if err := check(ctx, key); err != nil {
		return nil, fmt.Errorf("get range of %q: %w", key, err)
	}
	if offset < 0 || length < 1 {
		return nil, fmt.Errorf("get range of %q: offset %d, length %d: %w", key, offset, length, storage.ErrInvalidRange)
	}
	f, info, err := s.open(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("get range of %q: %w", key, err)
	}
	defer f.Close() // opened for reading: no error that matters
	// Written so that offset+length cannot overflow.
	if offset > info.Size || length > info.Size-offset {
		return nil, fmt.Errorf("get range of %q: offset %d, length %d of %d bytes: %w", key, offset, length, info.Size, storage.ErrInvalidRange)
	}
	data := make([]byte, length)
	if _, err := f.ReadAt(data, offset); err != nil {
		return nil, fmt.Errorf("get range of %q: %w", key, typed(err))
	}
	return data, nil
}

// Now implements storage.Store: the machine's clock.
func (s *Store) Now(ctx context.Context) (time.Time, error) {
	if err := ctx.Err(); err != nil {
		return time.Time{}, fmt.Errorf("store clock: %w", err)
	}
	return s.now().Round(0), nil
}

// open opens an object for reading. A file is never changed once it has its
// name, so what is read from it is one state, that of info.
func (s *Store) open(ctx context.Context, key string) (*os.File, storage.ObjectInfo, error) {
	if err := check(ctx, key); err != nil {
		return nil, storage.ObjectInfo{}, err
	}
	root, err := s.openRoot()
	if err != nil {
		return nil, storage.ObjectInfo{}, absent(err)
	}
	f, known, err := openBeneath(s.rootDir, key)
	if !known {
		f, err = root.OpenFile(key, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	}
	if err != nil {
		return nil, storage.ObjectInfo{}, absent(err)
	}
	stat, err := f.Stat()
	if err == nil && !stat.Mode().IsRegular() {
		err = fs.ErrNotExist // a directory, say, is no object
	}
	if err != nil {
		return nil, storage.ObjectInfo{}, errors.Join(absent(err), f.Close())
	}
	return f, objectInfo(key, stat), nil
}

// stat describes an object without reading it.
func stat(root *os.Root, key string) (storage.ObjectInfo, error) {
	info, err := root.Stat(key)
	if err == nil && !info.Mode().IsRegular() {
		err = fs.ErrNotExist
	}
	if err != nil {
		return storage.ObjectInfo{}, absent(err)
	}
	return objectInfo(key, info), nil
}

func objectInfo(key string, info fs.FileInfo) storage.ObjectInfo {
	inode := info.Sys().(*syscall.Stat_t).Ino
	return storage.ObjectInfo{
		Key:     key,
		Size:    info.Size(),
		ModTime: info.ModTime(),
		ETag:    storage.ETag(fmt.Sprintf(`"%x-%x-%x"`, inode, info.ModTime().UnixNano(), info.Size())),
	}
}

// openRoot opens the root directory once; fs.ErrNotExist if it is not there.
func (s *Store) openRoot() (*os.Root, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.openRootLocked()
}

func (s *Store) openRootLocked() (*os.Root, error) {
	if s.root == nil {
		root, err := os.OpenRoot(s.dir)
		if err != nil {
			return nil, err
		}
		dir, err := root.Open(".")
		if err != nil {
			return nil, errors.Join(err, root.Close())
		}
		s.root, s.rootDir = root, dir
	}
	return s.root, nil
}

// makeRoot is openRoot for writers: at its first call it creates what is
// missing, durably, and removes what crashed writers left.
func (s *Store) makeRoot() (*os.Root, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ready {
		return s.root, nil
	}
	_, openErr := s.openRootLocked()
	if openErr != nil && !errors.Is(openErr, fs.ErrNotExist) {
		return nil, openErr
	}
	// One that exists is synced too: its maker may not have got that far.
	// Where its parent is not ours to read we did not make it, and trust it.
	if err := makeDurable(s.dir); err != nil && (openErr != nil || !errors.Is(err, fs.ErrPermission)) {
		return nil, fmt.Errorf("create %s: %w", s.dir, err)
	}
	root, err := s.openRootLocked()
	if err != nil {
		return nil, err
	}
	if err := root.MkdirAll(tempDir, 0o777); err != nil {
		return nil, err
	}
	if err := removeLeftovers(root, s.now()); err != nil {
		return nil, fmt.Errorf("remove old temporary files: %w", err)
	}
	s.ready = true
	return root, nil
}

// makeDurable creates a directory and its missing parents, and syncs the
// directories that hold the new entries.
func makeDurable(dir string) error {
	err := os.Mkdir(dir, 0o777)
	if errors.Is(err, fs.ErrNotExist) {
		if err := makeDurable(filepath.Dir(dir)); err != nil {
			return err
		}
		err = os.Mkdir(dir, 0o777)
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	parent, err := os.Open(filepath.Dir(dir))
	if err != nil {
		return err
	}
	return errors.Join(parent.Sync(), parent.Close())
}

func removeLeftovers(root *os.Root, now time.Time) error {
	names, err := fs.ReadDir(root.FS(), tempDir)
	if err != nil {
		return err
	}
	for _, name := range names {
		info, err := name.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // its writer is done with it
		}
		if err != nil {
			return err
		}
		if now.Sub(info.ModTime()) < tempMaxAge {
			continue
		}
		if err := root.Remove(path.Join(tempDir, name.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func tempName() string {
	var random [16]byte
	_, _ = rand.Read(random[:]) // never fails (crypto/rand)
	return path.Join(tempDir, hex.EncodeToString(random[:]))
}

func check(ctx context.Context, key string) error {
	if err := checkKey(key); err != nil {
		return err
	}
	return ctx.Err()
}

func checkKey(key string) error {
	if err := storage.ValidateKey(key); err != nil {
		return err
	}
	if key == hiddenDir || strings.HasPrefix(key, hiddenDir+"/") {
		return fmt.Errorf("%w: %q is the store's own", storage.ErrInvalidKey, hiddenDir)
	}
	return nil
}

// absent is typed for what looks for an object by its key: what no object can
// be is not there.
func absent(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return fmt.Errorf("%w: %w", storage.ErrNotFound, err)
	}
	return typed(err)
}

// typed adds the condition that a caller can branch on to an error of the
// file system, or returns it as it is.
func typed(err error) error {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		var pathErr *fs.PathError
		var linkErr *os.LinkError
		if (errors.As(err, &pathErr) || errors.As(err, &linkErr)) && !errors.Is(err, fs.ErrClosed) {
			// An error that no system call gave is os.Root's own: the path
			// leaves the root through a symbolic link.
			return fmt.Errorf("%w: %w", storage.ErrInvalidKey, err)
		}
		return err
	}
	switch errno {
	case syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG:
		return fmt.Errorf("%w: %w", storage.ErrFull, err)
	case syscall.EACCES, syscall.EPERM, syscall.EROFS:
		return fmt.Errorf("%w: %w", storage.ErrPermission, err)
	case syscall.ENOTDIR, syscall.EISDIR, syscall.ENOTEMPTY, syscall.ENAMETOOLONG, syscall.ELOOP:
		// One key would be a directory of another, or is too long here.
		return fmt.Errorf("%w: %w", storage.ErrInvalidKey, err)
	case syscall.ENOLCK, syscall.ENOTSUP, syscall.ENOSYS, syscall.EXDEV, syscall.EMLINK:
		return fmt.Errorf("%w: %w", storage.ErrStoreRefused, err)
	case syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EINTR, syscall.EAGAIN, syscall.ESTALE, syscall.ETIMEDOUT:
		return fmt.Errorf("%w: %w", storage.ErrUnavailable, err)
	}
	return err
}
