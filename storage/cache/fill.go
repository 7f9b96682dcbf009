package cache

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/cespare/xxhash/v2"

	"cardinalsin/storage"
)

// fetchBytes is how much of an object one request asks for and memory holds.
const fetchBytes = 8 << 20

// fill makes an entry's file usable: it verifies the one that is there, or
// fetches one. It runs once for an entry and closes done.
func (c *Cache) fill(ctx context.Context, e *entry, from origin) {
	defer close(e.done)
	if e.path != "" { // set by load, before anybody could see the entry
		sum, err := sumFile(e.path)
		if err == nil && sum == e.hash {
			c.mu.Lock()
			e.ready = true
			c.mu.Unlock()
			return
		}
		c.events.damaged(e.path, from.key, Span{0, e.id.size}, err)
		if !c.refetch(e) {
			e.err = fmt.Errorf("damaged file: %w", context.Canceled)
			return
		}
	}
	temp, sum, err := c.fetch(ctx, from, e.id.size)
	if err != nil {
		e.err = err
		c.giveUp(e)
		return
	}
	e.err = c.install(e, temp, sum, extension(from.key))
}

// refetch removes a damaged file. It is false if nobody wants the object any
// more.
func (c *Cache) refetch(e *entry) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = os.Remove(e.path) // if it stays, it is found damaged again
	e.path, e.hash = "", ""
	c.stats.Hits--
	c.stats.Misses++
	if e.users == 0 {
		c.remove(e)
		c.used -= e.id.size
		return false
	}
	return true
}

// giveUp ends a failed fetch: the entry goes, and its reservation.
func (c *Cache) giveUp(e *entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.used -= e.id.size
	if !e.gone {
		c.remove(e)
	}
}

// install gives a complete file its name. Under the lock, since an entry that
// was given up meanwhile may have a successor of the same name.
func (c *Cache) install(e *entry, temp, sum, extension string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	path := filepath.Join(c.dir, fmt.Sprintf("obj-%s-%d-%s%s", e.id.keyHash, e.id.size, sum, extension))
	var err error = context.Canceled
	if !e.gone {
		err = os.Rename(temp, path)
	}
	if err != nil {
		c.used -= e.id.size
		if !e.gone {
			c.remove(e)
		}
		return errors.Join(err, os.Remove(temp))
	}
	e.path, e.hash, e.ready = path, sum, true
	return nil
}

// fetch writes the bytes to a temporary file and returns its name and hash.
func (c *Cache) fetch(ctx context.Context, from origin, size int64) (temp, sum string, err error) {
	f, err := os.CreateTemp(c.dir, tempPrefix)
	if err != nil {
		return "", "", fmt.Errorf("fetch: %w", typed(err))
	}
	digest := xxhash.New()
	out := &counter{Writer: io.MultiWriter(f, digest)}
	if err = from.write(ctx, out); err == nil && out.n != size {
		err = fmt.Errorf("%w: %d bytes, not %d", ErrSizeMismatch, out.n, size)
	}
	if err = errors.Join(typed(err), typed(f.Close())); err != nil {
		return "", "", fmt.Errorf("fetch: %w", errors.Join(err, os.Remove(f.Name())))
	}
	return f.Name(), sumText(digest), nil
}

// counter counts what is written.
type counter struct {
	io.Writer
	n int64
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.Writer.Write(b)
	c.n += int64(n)
	return n, err
}

// fetchInto writes an object, and proves its size.
func fetchInto(ctx context.Context, w io.Writer, s storage.Store, key string, size int64) error {
	if size <= fetchBytes {
		data, _, err := s.Get(ctx, key)
		if err != nil {
			return err
		}
		if int64(len(data)) != size {
			return fmt.Errorf("%w: %d bytes, not %d", ErrSizeMismatch, len(data), size)
		}
		_, err = w.Write(data)
		return err
	}
	for offset := int64(0); offset < size; offset += fetchBytes {
		data, err := s.GetRange(ctx, key, offset, min(fetchBytes, size-offset))
		if errors.Is(err, storage.ErrInvalidRange) {
			return fmt.Errorf("%w: less than %d bytes: %w", ErrSizeMismatch, size, err)
		}
		if err != nil {
			return err
		}
		if _, err := w.Write(data); err != nil {
			return err
		}
	}
	// Ranges show that the object is not smaller; this, that it is not larger.
	switch _, err := s.GetRange(ctx, key, size, 1); {
	case err == nil:
		return fmt.Errorf("%w: more than %d bytes", ErrSizeMismatch, size)
	case !errors.Is(err, storage.ErrInvalidRange):
		return err
	}
	return nil
}

func sumFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close() // opened for reading: no error that matters
	digest := xxhash.New()
	if _, err := io.Copy(digest, f); err != nil {
		return "", err
	}
	return sumText(digest), nil
}

func sumText(h hash.Hash64) string { return fmt.Sprintf("%016x", h.Sum64()) }

// touch notes the use of a file, for the order of eviction after a restart,
// which is all that suffers if it fails.
func touch(path string) {
	now := time.Now()
	_ = os.Chtimes(path, now, now)
}

func typed(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", storage.ErrFull, err)
	}
	if errors.Is(err, fs.ErrPermission) && !errors.Is(err, storage.ErrPermission) {
		return fmt.Errorf("%w: %w", storage.ErrPermission, err)
	}
	return err
}
