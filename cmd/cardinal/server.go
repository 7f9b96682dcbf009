package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	ucli "github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"cardinalsin"
	"cardinalsin/api/prom"
	sqlapi "cardinalsin/api/sql"
	"cardinalsin/cmd/internal/cli"
	"cardinalsin/cmd/internal/daemon"
	"cardinalsin/sqlengine"
	"cardinalsin/storage"
	"cardinalsin/storage/cache"
)

func serverCommand() *ucli.Command {
	return &ucli.Command{
		Name: "server", Usage: "ingest, query and maintain one table in one process",
		UsageText: "cardinal server --store s3://bucket/metrics --wal-dir /var/lib/cardinal/wal --http localhost:8080",
		Flags: append(append(cli.TableFlags(), daemon.WriterFlags()...),
			&ucli.StringFlag{Name: "roles", Value: "writer,query,maintain", Usage: "comma-separated `ROLES` of this process"},
			&ucli.StringFlag{Name: "cache-dir", Value: "./cardinal-cache", Usage: "`DIR` for files of remote stores"},
			&ucli.Int64Flag{Name: "cache-bytes", Value: 10 << 30, Usage: "bound of the cache in `BYTES`"},
			&ucli.DurationFlag{Name: "compact-every", Value: 30 * time.Second, Usage: "how often to look for files to compact"},
		),
		Action: func(c *ucli.Context) error {
			if err := cli.NoArgs(c); err != nil {
				return err
			}
			o, err := serverFlags(c)
			if err != nil {
				return err
			}
			srv, err := startServer(c.Context, o)
			if err != nil {
				return err
			}
			if err := cli.Printf(c.App.Writer, "ready http=%s\n", srv.addr); err != nil {
				return errors.Join(err, srv.wait())
			}
			return srv.wait()
		},
	}
}

// serverOptions say what a server does.
type serverOptions struct {
	DB         cardinalsin.Options
	HTTP       string
	CacheBytes int64
	// NoQuery and NoMaintain leave those roles to other processes; without a
	// WAL directory the server does not write.
	NoQuery, NoMaintain bool
}

func serverFlags(c *ucli.Context) (serverOptions, error) {
	db, err := daemon.Options(c)
	if err != nil {
		return serverOptions{}, err
	}
	db.CacheDir = c.String("cache-dir")
	db.Compactor.Interval = c.Duration("compact-every")
	o := serverOptions{DB: db, HTTP: c.String("http"), CacheBytes: c.Int64("cache-bytes"), NoQuery: true, NoMaintain: true}
	writes := false
	for _, role := range strings.Split(c.String("roles"), ",") {
		switch role {
		case "writer":
			writes = true
		case "query":
			o.NoQuery = false
		case "maintain":
			o.NoMaintain = false
		default:
			return serverOptions{}, fmt.Errorf("%w: --roles: %q is none of writer, query, maintain", cli.ErrUsage, role)
		}
	}
	if !writes {
		o.DB.WALDir = ""
	}
	return o, nil
}

// server is a running server.
type server struct {
	db   *cardinalsin.DB
	addr string
	stop context.CancelFunc
	work *errgroup.Group
	// finish runs when everything has stopped.
	finish func() error
}

// startServer opens the table and serves until ctx ends; wait returns how it
// went.
func startServer(ctx context.Context, o serverOptions) (_ *server, err error) {
	metrics := daemon.NewMetrics()
	metrics.Observe(&o.DB)
	db, err := cardinalsin.Open(ctx, o.DB)
	if err != nil {
		return nil, err
	}
	finish := []func() error{func() error { return db.Close(context.WithoutCancel(ctx)) }}
	defer func() {
		if err != nil {
			for _, f := range finish {
				err = errors.Join(err, f())
			}
		}
	}()
	http := daemon.NewServer(metrics.Registry)
	if db.Writer != nil {
		http.Handle("POST /api/v1/write", prom.WriteHandler(db.Writer.Append, o.DB.Logger))
	}
	if !o.NoQuery {
		engine, closeSQL, err := openSQL(ctx, db, o.CacheBytes)
		if err != nil {
			return nil, err
		}
		finish = append([]func() error{closeSQL}, finish...)
		http.Handle("/api/v1/sql", sqlapi.Handler(engine, sqlapi.Options{Logger: o.DB.Logger}))
		http.Handle("/api/v1/", prom.Handler(prom.Options{Reader: db.Reader, Version: cli.Version(), Registry: metrics.Registry, Logger: o.DB.Logger}))
	}
	listener, err := net.Listen("tcp", o.HTTP)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", o.HTTP, err)
	}
	ctx, stop := context.WithCancel(ctx)
	work, ctx := errgroup.WithContext(ctx)
	work.Go(func() error { return db.Run(ctx, !o.NoMaintain) })
	work.Go(func() error { return http.Serve(ctx, listener) })
	http.SetReady(true)
	return &server{db: db, addr: listener.Addr().String(), stop: stop, work: work, finish: func() (err error) {
		for _, f := range finish {
			err = errors.Join(err, f())
		}
		return err
	}}, nil
}

// wait returns when the server's context has ended and everything is flushed
// and closed.
func (s *server) wait() error {
	err := s.work.Wait()
	s.stop()
	return errors.Join(err, s.finish())
}

// openSQL makes an engine over the table. Files of a remote store are kept in
// a cache, which one process can use at a time: where nobody has asked for a
// certain directory, a second process takes one of its own for as long as it
// runs. The function that is returned closes it all.
func openSQL(ctx context.Context, db *cardinalsin.DB, cacheBytes int64) (*sqlengine.Engine, func() error, error) {
	opts := sqlengine.Options{Table: db.TableName()}
	release := func() error { return nil }
	if _, local := storage.LocalPath(db.Log.Store(), db.Log.Root()); !local {
		files, own, err := openCache(db.CacheDir(), cacheBytes)
		if err != nil {
			return nil, nil, err
		}
		opts.Files = files
		release = func() error {
			err := files.Close()
			if own != "" {
				err = errors.Join(err, os.RemoveAll(own))
			}
			return err
		}
	}
	engine, err := sqlengine.New(ctx, db.Reader, opts)
	if err != nil {
		return nil, nil, errors.Join(err, release())
	}
	return engine, func() error { engine.Close(); return release() }, nil
}

// openCache opens a cache; own is a directory to be removed after it is
// closed, if there is one.
func openCache(dir string, maxBytes int64) (c *cache.Cache, own string, err error) {
	if maxBytes <= 0 {
		maxBytes = 10 << 30
	}
	if dir != "" {
		c, err = cache.Open(dir, maxBytes)
		return c, "", err
	}
	c, err = cache.Open(filepath.Join(os.TempDir(), fmt.Sprintf("cardinal-cache-%d", os.Getuid())), maxBytes)
	if !errors.Is(err, cache.ErrInUse) {
		return c, "", err
	}
	if own, err = os.MkdirTemp("", "cardinal-cache-"); err != nil {
		return nil, "", fmt.Errorf("make a cache directory: %w", err)
	}
	if c, err = cache.Open(own, maxBytes); err != nil {
		return nil, "", errors.Join(err, os.RemoveAll(own))
	}
	return c, own, nil
}
