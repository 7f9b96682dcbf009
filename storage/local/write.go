package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"syscall"
	"time"

	"cardinalsin/internal/crashpoint"
	"cardinalsin/storage"
)

// Put implements storage.Store.
func (s *Store) Put(ctx context.Context, key string, body io.ReadSeeker) (storage.ObjectInfo, error) {
	info, err := s.put(ctx, key, body)
	if err != nil {
		return storage.ObjectInfo{}, fmt.Errorf("put %q: %w", key, err)
	}
	return info, nil
}

func (s *Store) put(ctx context.Context, key string, body io.ReadSeeker) (storage.ObjectInfo, error) {
	if err := check(ctx, key); err != nil {
		return storage.ObjectInfo{}, err
	}
	if _, err := body.Seek(0, io.SeekStart); err != nil {
		return storage.ObjectInfo{}, fmt.Errorf("rewind body: %w", err)
	}
	return s.write(ctx, key, body, func(w *pending) error {
		return s.replace(ctx, w, func(storage.ObjectInfo, error) error { return nil })
	})
}

// PutIfAbsent implements storage.Store.
func (s *Store) PutIfAbsent(ctx context.Context, key string, data []byte) (storage.ObjectInfo, error) {
	info, err := s.putIfAbsent(ctx, key, data)
	if err != nil {
		return storage.ObjectInfo{}, fmt.Errorf("put %q if absent: %w", key, err)
	}
	return info, nil
}

func (s *Store) putIfAbsent(ctx context.Context, key string, data []byte) (storage.ObjectInfo, error) {
	if err := check(ctx, key); err != nil {
		return storage.ObjectInfo{}, err
	}
	return s.write(ctx, key, bytes.NewReader(data), func(w *pending) error {
		return taken(w.root, key, s.show("link", func() error { return w.root.Link(w.temp, key) }))
	})
}

// PutIfMatch implements storage.Store.
func (s *Store) PutIfMatch(ctx context.Context, key string, data []byte, etag storage.ETag) (storage.ObjectInfo, error) {
	info, err := s.putIfMatch(ctx, key, data, etag)
	if err != nil {
		return storage.ObjectInfo{}, fmt.Errorf("put %q if match %s: %w", key, etag, err)
	}
	return info, nil
}

func (s *Store) putIfMatch(ctx context.Context, key string, data []byte, etag storage.ETag) (storage.ObjectInfo, error) {
	if err := check(ctx, key); err != nil {
		return storage.ObjectInfo{}, err
	}
	matches := func(current storage.ObjectInfo, err error) error {
		switch {
		case errors.Is(err, storage.ErrNotFound):
			return fmt.Errorf("%w: the object is gone", storage.ErrPreconditionFailed)
		case err != nil:
			return err
		case current.ETag != etag:
			return fmt.Errorf("%w: the object is %s", storage.ErrPreconditionFailed, current.ETag)
		}
		return nil
	}
	// A look without the lock: who has lost already need write nothing.
	root, err := s.openRoot()
	if err != nil {
		return storage.ObjectInfo{}, matches(storage.ObjectInfo{}, absent(err))
	}
	if err := matches(stat(root, key)); err != nil {
		return storage.ObjectInfo{}, err
	}
	return s.write(ctx, key, bytes.NewReader(data), func(w *pending) error { return s.replace(ctx, w, matches) })
}

// Delete implements storage.Store.
func (s *Store) Delete(ctx context.Context, key string) error {
	if err := s.delete(ctx, key); err != nil {
		return fmt.Errorf("delete %q: %w", key, err)
	}
	return nil
}

func (s *Store) delete(ctx context.Context, key string) error {
	if err := check(ctx, key); err != nil {
		return err
	}
	root, err := s.openRoot()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return typed(err)
	}
	if _, err := stat(root, key); errors.Is(err, storage.ErrNotFound) {
		return nil // nothing to remove, or a directory, which is no object
	}
	if _, err := s.makeRoot(); err != nil { // for the lock
		return typed(err)
	}
	unlock, err := s.lockExclusive(ctx, root)
	if err != nil {
		return err
	}
	err = s.show("unlink", func() error { return root.Remove(key) })
	unlock()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := s.syncDir(root, path.Dir(key)); err != nil {
		return fmt.Errorf("%w: %w", storage.ErrUnknownOutcome, err)
	}
	return nil
}

// pending is an object that is written and synced, but has no name yet.
type pending struct {
	root *os.Root
	key  string
	temp string             // name of the temporary file
	info storage.ObjectInfo // what the object will be
}

// write stores body under key: it writes a temporary file, lets name give it
// its name, and makes the name durable.
func (s *Store) write(ctx context.Context, key string, body io.Reader, name func(*pending) error) (storage.ObjectInfo, error) {
	root, err := s.makeRoot()
	if err != nil {
		return storage.ObjectInfo{}, typed(err)
	}
	w := &pending{root: root, key: key, temp: tempName()}
	if err := s.makeParents(root, key); err != nil {
		return storage.ObjectInfo{}, fmt.Errorf("create directories: %w", typed(err))
	}
	if err := s.writeTemp(ctx, w, body); err != nil {
		return storage.ObjectInfo{}, fmt.Errorf("write temporary file: %w", errors.Join(typed(err), s.removeTemp(w)))
	}
	err = name(w)
	if errors.Is(err, syscall.ENOENT) {
		// Someone has removed the directory. What we knew of it is void.
		s.forget(path.Dir(key))
		if err = s.makeParents(root, key); err == nil {
			err = name(w)
		}
		err = typed(err)
	}
	if err != nil {
		return storage.ObjectInfo{}, errors.Join(err, s.removeTemp(w))
	}
	if err := s.syncDir(root, path.Dir(key)); err != nil {
		return storage.ObjectInfo{}, fmt.Errorf("%w: %w", storage.ErrUnknownOutcome, errors.Join(err, s.removeTemp(w)))
	}
	// The object is durable. That its temporary name stays is no failure of
	// the write: removeLeftovers gets it.
	_ = s.removeTemp(w)
	return w.info, nil
}

// show takes the one step that makes a write visible, and types its error:
// those known to mean that the step was not taken keep their meaning, the rest
// (EIO, say) leave it open.
func (s *Store) show(name string, step func() error) error {
	err := s.do(name, step)
	if err == nil || errors.Is(err, fs.ErrExist) || errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if known := typed(err); !errors.Is(err, known) {
		return known
	}
	return fmt.Errorf("%w: %w", storage.ErrUnknownOutcome, err)
}

// taken types the error of a link or rename to a name that exists. Where it is
// no object, "already exists" would send the caller to read it, in vain.
func taken(root *os.Root, key string, err error) error {
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	if info, err := root.Lstat(key); err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("%w: the name is taken by a %s", storage.ErrInvalidKey, info.Mode().Type())
	}
	return fmt.Errorf("%w: %w", storage.ErrAlreadyExists, err)
}

// replace gives w its name under the lock, in place of the object that agree
// is shown (or of none, with ErrNotFound) and accepts.
func (s *Store) replace(ctx context.Context, w *pending, agree func(storage.ObjectInfo, error) error) error {
	unlock, err := s.lockExclusive(ctx, w.root)
	if err != nil {
		return err
	}
	defer unlock()
	current, err := stat(w.root, w.key)
	if err := agree(current, err); err != nil {
		return err
	}
	if err == nil && !w.info.ModTime.After(current.ModTime) {
		// The clock went back, or both are of one microsecond. Every state
		// of an object must be later than the one it replaces.
		if err := s.stampAgain(w, current.ModTime.Add(1)); err != nil {
			return fmt.Errorf("write temporary file: %w", typed(err))
		}
	}
	return taken(w.root, w.key, s.show("rename", func() error { return w.root.Rename(w.temp, w.key) }))
}

func (s *Store) writeTemp(ctx context.Context, w *pending, body io.Reader) (err error) {
	var f *os.File
	err = s.do("create", func() (err error) {
		f, err = w.root.OpenFile(w.temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
		return err
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	err = s.do("write", func() error {
		_, err := io.Copy(f, &interruptible{ctx, body})
		crashpoint.Here(crashpoint.Uploading)
		return err
	})
	if err != nil {
		return err
	}
	micros := s.now().Truncate(time.Microsecond)
	return s.stamp(w, f, micros.Add(time.Duration(rand.IntN(1000))))
}

// stamp sets the file's modification time, which makes its ETag, and syncs
// the whole.
func (s *Store) stamp(w *pending, f *os.File, at time.Time) error {
	if err := w.root.Chtimes(w.temp, at, at); err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.ModTime().Equal(at) {
		return fmt.Errorf("%w: the file system keeps %v of the time %v", storage.ErrStoreRefused, info.ModTime(), at)
	}
	w.info = objectInfo(w.key, info)
	return s.do("sync", f.Sync)
}

func (s *Store) stampAgain(w *pending, at time.Time) (err error) {
	f, err := w.root.OpenFile(w.temp, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return s.stamp(w, f, at)
}

// removeTemp removes the temporary name, if there is one.
func (s *Store) removeTemp(w *pending) error {
	err := s.do("remove temp", func() error { return w.root.Remove(w.temp) })
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// makeParents creates the directories that lead to key and makes them
// durable. One that exists may be another process's, not synced yet, so it is
// synced here too, once a process.
func (s *Store) makeParents(root *os.Root, key string) error {
	for i := range key {
		if key[i] != '/' {
			continue
		}
		dir := key[:i]
		if s.isDurable(dir) {
			continue
		}
		err := s.do("mkdir "+dir, func() error { return root.Mkdir(dir, 0o777) })
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := s.syncDir(root, path.Dir(dir)); err != nil {
			return err
		}
		s.setDurable(dir)
	}
	return nil
}

func (s *Store) isDurable(dir string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.durable[dir]
	return ok
}

// maxDurable bounds the memory: directories beyond it are synced once more.
const maxDurable = 1 << 16

func (s *Store) setDurable(dir string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.durable) >= maxDurable {
		clear(s.durable)
	}
	s.durable[dir] = struct{}{}
}

// forget voids what is known of a directory and its parents.
func (s *Store) forget(dir string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ; dir != "."; dir = path.Dir(dir) {
		delete(s.durable, dir)
	}
}

func (s *Store) syncDir(root *os.Root, dir string) error {
	return s.do("sync dir "+dir, func() error {
		d, err := root.Open(dir)
		if err != nil {
			return err
		}
		err = errors.Join(d.Sync(), d.Close())
		if errors.Is(err, syscall.EINVAL) {
			return fmt.Errorf("%w: the file system cannot sync a directory: %w", storage.ErrStoreRefused, err)
		}
		return err
	})
}

// do takes one step, unless a test breaks it.
func (s *Store) do(name string, step func() error) error {
	if s.step != nil {
		if err := s.step(name); err != nil {
			return err
		}
	}
	return step()
}

// interruptible ends a copy when the context ends.
type interruptible struct {
	ctx  context.Context
	body io.Reader
}

func (r *interruptible) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.body.Read(p)
}
