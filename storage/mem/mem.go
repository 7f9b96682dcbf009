// Package mem is a store in memory, for tests and for mem:// URLs.
//
// It stands beside the other backends and keeps the whole contract of
// [storage.Store]: every operation takes effect at one instant, under one
// mutex, so of any number of racing conditional puts exactly one is admitted.
// It must never be kinder than a real store: slices are copied both ways, and
// an ETag changes at every write, also when the bytes are equal (unless
// Options.ContentETags asks for S3's way).
//
// What it holds is lost with the process. A key may be a directory of another
// ("a" and "a/b"), as in S3 and unlike in a file system.
package mem

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"iter"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/tidwall/btree"

	"cardinalsin/storage"
)

// pageSize is the number of objects that List reads under one hold of the
// mutex: as many as one page of S3's ListObjectsV2, so that a listing may see
// changes made while it is consumed just as it may there.
const pageSize = 1000

// Options configure a store; the zero value is ready to use.
type Options struct {
	// Now is the store's clock; default time.Now.
	Now func() time.Time
	// ContentETags makes an ETag follow from the bytes alone, as S3's do:
	// for tests that must hold when a write of equal bytes changes none.
	ContentETags bool
}

// EnsureDefaults fills what is not set.
func (o *Options) EnsureDefaults() {
	if o.Now == nil {
		o.Now = time.Now
	}
}

// Store is a storage.Store in memory. Its methods may be called concurrently.
type Store struct {
	now          func() time.Time
	contentETags bool

	// mu guards objects and writes.
	mu      sync.Mutex
	objects btree.Map[string, object]
	writes  uint64 // number of writes so far; the source of ETags
}

var _ storage.Store = (*Store)(nil)

type object struct {
	data    []byte // never changed once stored
	modTime time.Time
	etag    storage.ETag
}

func (o object) info(key string) storage.ObjectInfo {
	return storage.ObjectInfo{Key: key, Size: int64(len(o.data)), ModTime: o.modTime, ETag: o.etag}
}

// New returns an empty store.
func New(opts Options) *Store {
	opts.EnsureDefaults()
	return &Store{now: opts.Now, contentETags: opts.ContentETags}
}

// Get implements storage.Store.
func (s *Store) Get(ctx context.Context, key string) ([]byte, storage.ObjectInfo, error) {
	if err := check(ctx, key); err != nil {
		return nil, storage.ObjectInfo{}, fmt.Errorf("get %q: %w", key, err)
	}
	o, err := s.object(key)
	if err != nil {
		return nil, storage.ObjectInfo{}, fmt.Errorf("get %q: %w", key, err)
	}
	return bytes.Clone(o.data), o.info(key), nil
}

// GetRange implements storage.Store.
func (s *Store) GetRange(ctx context.Context, key string, offset, length int64) ([]byte, error) {
	if err := check(ctx, key); err != nil {
		return nil, fmt.Errorf("get range of %q: %w", key, err)
	}
	if offset < 0 || length < 1 {
		return nil, fmt.Errorf("get range of %q: offset %d, length %d: %w", key, offset, length, storage.ErrInvalidRange)
	}
	o, err := s.object(key)
	if err != nil {
		return nil, fmt.Errorf("get range of %q: %w", key, err)
	}
	size := int64(len(o.data))
	// Written so that offset+length cannot overflow.
	if offset > size || length > size-offset {
		return nil, fmt.Errorf("get range of %q: offset %d, length %d of %d bytes: %w", key, offset, length, size, storage.ErrInvalidRange)
	}
	return bytes.Clone(o.data[offset : offset+length]), nil
}

// Put implements storage.Store.
func (s *Store) Put(ctx context.Context, key string, body io.ReadSeeker) (storage.ObjectInfo, error) {
	if err := check(ctx, key); err != nil {
		return storage.ObjectInfo{}, fmt.Errorf("put %q: %w", key, err)
	}
	if _, err := body.Seek(0, io.SeekStart); err != nil {
		return storage.ObjectInfo{}, fmt.Errorf("put %q: rewind body: %w", key, err)
	}
	data, err := io.ReadAll(body)
	if err != nil {
		return storage.ObjectInfo{}, fmt.Errorf("put %q: read body: %w", key, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.storeLocked(key, data), nil
}

// PutIfAbsent implements storage.Store.
func (s *Store) PutIfAbsent(ctx context.Context, key string, data []byte) (storage.ObjectInfo, error) {
	if err := check(ctx, key); err != nil {
		return storage.ObjectInfo{}, fmt.Errorf("put %q if absent: %w", key, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.objects.Get(key); ok {
		return storage.ObjectInfo{}, fmt.Errorf("put %q if absent: %w", key, storage.ErrAlreadyExists)
	}
	return s.storeLocked(key, bytes.Clone(data)), nil
}

// PutIfMatch implements storage.Store.
func (s *Store) PutIfMatch(ctx context.Context, key string, data []byte, etag storage.ETag) (storage.ObjectInfo, error) {
	if err := check(ctx, key); err != nil {
		return storage.ObjectInfo{}, fmt.Errorf("put %q if match: %w", key, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if o, ok := s.objects.Get(key); !ok || o.etag != etag {
		return storage.ObjectInfo{}, fmt.Errorf("put %q if match %s: %w", key, etag, storage.ErrPreconditionFailed)
	}
	return s.storeLocked(key, bytes.Clone(data)), nil
}

// List implements storage.Store.
func (s *Store) List(ctx context.Context, prefix, startAfter string) iter.Seq2[storage.ObjectInfo, error] {
	return func(yield func(storage.ObjectInfo, error) bool) {
		after := startAfter
		for {
			if err := ctx.Err(); err != nil {
				yield(storage.ObjectInfo{}, fmt.Errorf("list %q: %w", prefix, err))
				return
			}
			page := s.page(prefix, after)
			for _, info := range page {
				if !yield(info, nil) {
					return
				}
			}
			if len(page) < pageSize {
				return
			}
			after = page[len(page)-1].Key
		}
	}
}

// Delete implements storage.Store.
func (s *Store) Delete(ctx context.Context, key string) error {
	if err := check(ctx, key); err != nil {
		return fmt.Errorf("delete %q: %w", key, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.objects.Delete(key)
	return nil
}

// Now implements storage.Store.
func (s *Store) Now(ctx context.Context) (time.Time, error) {
	if err := ctx.Err(); err != nil {
		return time.Time{}, fmt.Errorf("store clock: %w", err)
	}
	return s.wall(), nil
}

func (s *Store) object(key string) (object, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, ok := s.objects.Get(key)
	if !ok {
		return object{}, storage.ErrNotFound
	}
	return o, nil
}

// page returns up to pageSize objects with the prefix and a key above after.
func (s *Store) page(prefix, after string) []storage.ObjectInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	var page []storage.ObjectInfo
	s.objects.Ascend(max(prefix, after), func(key string, o object) bool {
		if !strings.HasPrefix(key, prefix) {
			return false // keys with the prefix lie together, and we began at them
		}
		if key > after {
			page = append(page, o.info(key))
		}
		return len(page) < pageSize
	})
	return page
}

// storeLocked keeps data, which it now owns, under key.
func (s *Store) storeLocked(key string, data []byte) storage.ObjectInfo {
	s.writes++
	state := strconv.FormatUint(s.writes, 16)
	if s.contentETags {
		state = fmt.Sprintf("%x", sha256.Sum256(data))
	}
	o := object{data: data, modTime: s.wall(), etag: storage.ETag(strconv.Quote(state))}
	s.objects.Set(key, o)
	return o.info(key)
}

// wall strips the monotonic reading, which no real store's clock carries.
func (s *Store) wall() time.Time { return s.now().Round(0) }

func check(ctx context.Context, key string) error {
	if err := storage.ValidateKey(key); err != nil {
		return err
	}
	return ctx.Err()
}
