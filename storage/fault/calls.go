package fault

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"iter"
	"time"

	"cardinalsin/storage"
)

var (
	_ storage.Store   = (*Store)(nil)
	_ storage.Wrapper = (*Store)(nil)
)

// Get implements storage.Store.
func (s *Store) Get(ctx context.Context, key string) (data []byte, info storage.ObjectInfo, err error) {
	err = s.do(ctx, storage.OpGet, key, func(ctx context.Context) (err error) {
		data, info, err = s.inner.Get(ctx, key)
		return err
	}, nil)
	if err != nil {
		return nil, storage.ObjectInfo{}, err
	}
	return data, info, nil
}

// GetRange implements storage.Store.
func (s *Store) GetRange(ctx context.Context, key string, offset, length int64) (data []byte, err error) {
	err = s.do(ctx, storage.OpGetRange, key, func(ctx context.Context) (err error) {
		data, err = s.inner.GetRange(ctx, key, offset, length)
		return err
	}, nil)
	if err != nil {
		return nil, err
	}
	return data, nil
}

// Put implements storage.Store.
func (s *Store) Put(ctx context.Context, key string, body io.ReadSeeker) (storage.ObjectInfo, error) {
	var info storage.ObjectInfo
	return s.write(ctx, storage.OpPut, key, &info, func(ctx context.Context) (err error) {
		info, err = s.inner.Put(ctx, key, body)
		return err
	}, func() (func(context.Context) error, error) {
		if _, err := body.Seek(0, io.SeekStart); err != nil {
			return nil, fmt.Errorf("rewind body: %w", err)
		}
		data, err := io.ReadAll(body)
		if err != nil {
			return nil, fmt.Errorf("read body: %w", err)
		}
		return func(ctx context.Context) error {
			_, err := s.inner.Put(ctx, key, bytes.NewReader(data))
			return err
		}, nil
	})
}

// PutIfAbsent implements storage.Store.
func (s *Store) PutIfAbsent(ctx context.Context, key string, data []byte) (storage.ObjectInfo, error) {
	var info storage.ObjectInfo
	return s.write(ctx, storage.OpPutIfAbsent, key, &info, func(ctx context.Context) (err error) {
		info, err = s.inner.PutIfAbsent(ctx, key, data)
		return err
	}, func() (func(context.Context) error, error) {
		data := bytes.Clone(data)
		return func(ctx context.Context) error {
			_, err := s.inner.PutIfAbsent(ctx, key, data)
			return err
		}, nil
	})
}

// PutIfMatch implements storage.Store.
func (s *Store) PutIfMatch(ctx context.Context, key string, data []byte, etag storage.ETag) (storage.ObjectInfo, error) {
	var info storage.ObjectInfo
	return s.write(ctx, storage.OpPutIfMatch, key, &info, func(ctx context.Context) (err error) {
		info, err = s.inner.PutIfMatch(ctx, key, data, etag)
		return err
	}, func() (func(context.Context) error, error) {
		data := bytes.Clone(data)
		return func(ctx context.Context) error {
			_, err := s.inner.PutIfMatch(ctx, key, data, etag)
			return err
		}, nil
	})
}

// Delete implements storage.Store.
func (s *Store) Delete(ctx context.Context, key string) error {
	apply := func(ctx context.Context) error { return s.inner.Delete(ctx, key) }
	return s.do(ctx, storage.OpDelete, key, apply, func() (func(context.Context) error, error) { return apply, nil })
}

// List implements storage.Store.
func (s *Store) List(ctx context.Context, prefix, startAfter string) iter.Seq2[storage.ObjectInfo, error] {
	return func(yield func(storage.ObjectInfo, error) bool) {
		stopped := false
		err := s.do(ctx, storage.OpList, prefix, func(ctx context.Context) error {
			for info, err := range s.inner.List(ctx, prefix, startAfter) {
				if err != nil {
					return err
				}
				if s.hasCrashed() {
					return ErrCrashed
				}
				if !yield(info, nil) {
					stopped = true
					return nil
				}
			}
			return nil
		}, nil)
		if err != nil && !stopped {
			yield(storage.ObjectInfo{}, err)
		}
	}
}

// Now implements storage.Store.
func (s *Store) Now(ctx context.Context) (now time.Time, err error) {
	err = s.do(ctx, storage.OpNow, "", func(ctx context.Context) (err error) {
		now, err = s.inner.Now(ctx)
		return err
	}, nil)
	if err != nil {
		return time.Time{}, err
	}
	return now, nil
}

// write is do for calls that return the object's new state in *info, which
// apply sets; a failed call tells nothing about it.
func (s *Store) write(ctx context.Context, op storage.Op, key string, info *storage.ObjectInfo, apply func(context.Context) error, detach func() (func(context.Context) error, error)) (storage.ObjectInfo, error) {
	if err := s.do(ctx, op, key, apply, detach); err != nil {
		return storage.ObjectInfo{}, err
	}
	return *info, nil
}
