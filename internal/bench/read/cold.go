package main

import (
	"context"
	"errors"
	"io"
	"iter"
	"os"
	"path/filepath"
	"time"

	"cardinalsin"
	"cardinalsin/api/prom"
	"cardinalsin/storage"
)

// requestDelay is what each request of the cold benches takes more.
const requestDelay = 50 * time.Millisecond

// delayed is a remote store, as far as anything above can tell: each request
// takes a while, and no file has a path.
type delayed struct{ storage.Store }

func (s delayed) wait(ctx context.Context) error {
	select {
	case <-time.After(requestDelay):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s delayed) Get(ctx context.Context, key string) ([]byte, storage.ObjectInfo, error) {
	if err := s.wait(ctx); err != nil {
		return nil, storage.ObjectInfo{}, err
	}
	return s.Store.Get(ctx, key)
}

func (s delayed) GetRange(ctx context.Context, key string, offset, length int64) ([]byte, error) {
	if err := s.wait(ctx); err != nil {
		return nil, err
	}
	return s.Store.GetRange(ctx, key, offset, length)
}

func (s delayed) Put(ctx context.Context, key string, body io.ReadSeeker) (storage.ObjectInfo, error) {
	if err := s.wait(ctx); err != nil {
		return storage.ObjectInfo{}, err
	}
	return s.Store.Put(ctx, key, body)
}

func (s delayed) PutIfAbsent(ctx context.Context, key string, data []byte) (storage.ObjectInfo, error) {
	if err := s.wait(ctx); err != nil {
		return storage.ObjectInfo{}, err
	}
	return s.Store.PutIfAbsent(ctx, key, data)
}

func (s delayed) PutIfMatch(ctx context.Context, key string, data []byte, etag storage.ETag) (storage.ObjectInfo, error) {
	if err := s.wait(ctx); err != nil {
		return storage.ObjectInfo{}, err
	}
	return s.Store.PutIfMatch(ctx, key, data, etag)
}

func (s delayed) List(ctx context.Context, prefix, startAfter string) iter.Seq2[storage.ObjectInfo, error] {
	return func(yield func(storage.ObjectInfo, error) bool) {
		if err := s.wait(ctx); err != nil {
			yield(storage.ObjectInfo{}, err)
			return
		}
		for info, err := range s.Store.List(ctx, prefix, startAfter) {
			if !yield(info, err) {
				return
			}
		}
	}
}

func (s delayed) Delete(ctx context.Context, key string) error {
	if err := s.wait(ctx); err != nil {
		return err
	}
	return s.Store.Delete(ctx, key)
}

// openCold is our table on a slow store, with nothing in any cache but the
// log's latest snapshot, as a server that has just started has it.
func openCold(ctx context.Context, dir string) (*opened, error) {
	cache, err := os.MkdirTemp("", "bench-read-cache-")
	if err != nil {
		return nil, err
	}
	db, err := cardinalsin.Open(ctx, cardinalsin.Options{
		Store: "file://" + filepath.Join(dir, "store"), CacheDir: cache,
		Wrap: func(s storage.Store) storage.Store { return delayed{s} },
	})
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(cache))
	}
	return &opened{
		ask: engineOver(prom.NewQueryable(db.Reader)), count: counted(db),
		close: func() error { return errors.Join(db.Close(ctx), os.RemoveAll(cache)) },
	}, nil
}
