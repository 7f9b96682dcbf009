package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"cardinalsin"
	"cardinalsin/api/prom"
	"cardinalsin/sqlengine"
	"cardinalsin/storage"
)

// requestDelay is what each request of the cold benches takes more.
const requestDelay = 50 * time.Millisecond

// remote hides that files have paths, as those of an object store have none.
type remote struct{ storage.Store }

// openCold is our table on a slow store, with nothing in any cache but the
// log's latest snapshot, as a server that has just started has it.
func openCold(ctx context.Context, dir string, withSQL bool) (*opened, error) {
	cache, err := os.MkdirTemp("", "bench-read-cache-")
	if err != nil {
		return nil, err
	}
	made := &calls{}
	db, err := cardinalsin.Open(ctx, cardinalsin.Options{
		Store: "file://" + filepath.Join(dir, "store"), CacheDir: cache,
		Wrap:   func(s storage.Store) storage.Store { return remote{s} },
		OnCall: made.slow,
	})
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(cache))
	}
	o := &opened{
		ask: engineOver(prom.NewQueryable(db.Reader)), count: counted(db), calls: made.take,
		close: func() error { return errors.Join(db.Close(ctx), os.RemoveAll(cache)) },
	}
	if withSQL {
		engine, err := sqlengine.New(ctx, db.Reader, sqlengine.Options{Files: db.Cache()})
		if err != nil {
			return nil, errors.Join(err, o.close())
		}
		o.ask = func(ctx context.Context, q query) (result, error) { return askEngine(ctx, engine, q.SQL) }
		closeTable := o.close
		o.close = func() error { engine.Close(); return closeTable() }
	}
	return o, nil
}
