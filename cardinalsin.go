// Package cardinalsin wires a table's parts together: store, log, pins, reader,
// and, where asked for, writer and maintenance; and opens the tables of many
// tenants as they are needed.
//
// It stands on layer 6 and holds no logic of its own. SQL is not wired here:
// sqlengine is the only package with cgo, and cardinal-writer must do without.
package cardinalsin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"cardinalsin/chunk"
	"cardinalsin/compactor"
	"cardinalsin/index"
	"cardinalsin/ingest"
	"cardinalsin/lease"
	"cardinalsin/reader"
	"cardinalsin/shard"
	"cardinalsin/storage"
	"cardinalsin/storage/cache"
	"cardinalsin/storage/meter"
	"cardinalsin/storage/storeurl"
	"cardinalsin/txlog"
	"cardinalsin/vacuum"
	"cardinalsin/wal"
	"cardinalsin/writer"
)

// ErrInvalidName: a tenant or table name that no path may be made of.
var ErrInvalidName = errors.New("invalid name")

// Options say which table to open, and for what.
type Options struct {
	// Store is the URL of the store. Default "./cardinal-data".
	Store string
	// Tenant and Table name the table. Defaults "default" and "metrics".
	Tenant, Table string
	// AnyPath lets both be paths, and Tenant "." for none, so that every folder
	// below the store can be named: for whoever owns the store, to read tables
	// of other engines. Never set it where the names come from others.
	AnyPath bool
	// WALDir holds the WALs of all tables of this process; a writer is opened
	// if it is set, and the table is created if there is none.
	WALDir string
	// Create makes the table if there is none, also without a writer.
	Create bool
	// CacheDir is where files and ranges of a remote store are kept, up to
	// CacheBytes; empty: nowhere. One process can use it at a time.
	CacheDir string
	// CacheBytes is shared by whole files and ranges, half and half. Default
	// 10 GiB.
	CacheBytes int64
	// CacheMemoryBytes bounds the ranges in memory. Default 64 MiB; negative:
	// none.
	CacheMemoryBytes int64
	// PageBytes bounds the decoded samples that PromQL keeps between queries, of
	// all tables together. Default 256 MiB; negative: none.
	PageBytes int64
	// CacheEvents hear of damage to the cache, which the Logger hears of, too.
	CacheEvents cache.Events

	Log       txlog.Options
	WAL       wal.Options
	Writer    writer.Options
	Compactor compactor.Options
	Indexer   index.RunnerOptions
	Pins      lease.Options
	// Wrap, if set, is laid around the store before anything uses it, as by
	// benchmarks that make it slow.
	Wrap func(storage.Store) storage.Store
	// OnCall, if set, hears of every store request.
	OnCall func(meter.Event)
	// Logger is passed to every part. Default discards.
	Logger *slog.Logger

	pages *chunk.Pages // what PageBytes bounds; shared by copies of the options
}

// EnsureDefaults fills in what is unset.
func (o *Options) EnsureDefaults() {
	if o.Store == "" {
		o.Store = "./cardinal-data"
	}
	if o.Tenant == "" {
		o.Tenant = "default"
	}
	if o.Table == "" {
		o.Table = "metrics"
	}
	if o.CacheBytes <= 0 {
		o.CacheBytes = 10 << 30
	}
	if o.CacheMemoryBytes == 0 {
		o.CacheMemoryBytes = 64 << 20
	}
	if o.PageBytes == 0 {
		o.PageBytes = 256 << 20
	}
	if o.pages == nil {
		o.pages = chunk.NewPages(max(o.PageBytes, 0))
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o.Log.Logger, o.Writer.Logger, o.Compactor.Logger, o.Indexer.Logger = o.Logger, o.Logger, o.Logger, o.Logger
}

// DB is one open table. Writer is nil unless a WAL directory was given.
type DB struct {
	Log       *txlog.Log
	Pins      *lease.Pins
	Reader    *reader.Reader
	Writer    *writer.Writer
	Compactor *compactor.Runner
	Index     *index.Index
	Indexer   *index.Runner
	Meter     *meter.Store

	opts     Options
	wal      *wal.Log
	cache    *cache.Cache // nil: the store is local
	ownCache bool         // to be closed with the table

	mu       sync.Mutex // guards what follows
	attached map[any]*attachment
	detach   []func() error
}

// ValidateName accepts the names of tenants and tables; see
// ingest.ValidateTenant. Its error wraps ErrInvalidName.
func ValidateName(name string) error {
	if err := ingest.ValidateTenant(name); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalidName, err)
	}
	return nil
}

// root is the table's key prefix. An error wraps ErrInvalidName.
func (o *Options) root() (string, error) {
	root := o.Tenant + "/" + o.Table
	if o.AnyPath {
		root = strings.Trim(strings.TrimPrefix(root, "./"), "/")
		if err := storage.ValidateKey(root); err != nil {
			return "", fmt.Errorf("%w: %q: %w", ErrInvalidName, root, err)
		}
		return root, nil
	}
	for _, n := range []string{o.Tenant, o.Table} {
		if err := ValidateName(n); err != nil {
			return "", err
		}
	}
	return root, nil
}

// writes tells whether the store is to be written to.
func (o *Options) writes() bool { return o.WALDir != "" || o.Create }

// Open opens a table. With a WALDir, or Create, the store is probed first, and
// the table created if it does not exist; without, it is only read and
// maintained.
// Errors: txlog.ErrNotTable, storage.ErrStoreRefused, ErrInvalidName,
// wal.ErrLocked, and what the parts return.
func Open(ctx context.Context, opts Options) (*DB, error) {
	opts.EnsureDefaults()
	if _, err := opts.root(); err != nil {
		return nil, err
	}
	store, err := openStore(ctx, &opts)
	if err != nil {
		return nil, err
	}
	c, err := openCache(&opts, store)
	if err != nil {
		return nil, err
	}
	db, err := open(ctx, store, c, opts, opts.writes())
	if err != nil {
		return nil, errors.Join(err, closeCache(c))
	}
	db.ownCache = true
	return db, nil
}

// openCache opens the cache of a remote store. One whose objects are files
// needs none, and gets nil.
func openCache(opts *Options, store storage.Store) (*cache.Cache, error) {
	if _, local := storage.LocalPath(store, "x"); local {
		return nil, nil
	}
	logger, also := opts.Logger, opts.CacheEvents.Damaged
	often := rate.NewLimiter(1, 5) // a bad disk is worth a warning, but not thousands
	return cache.New(cache.Options{
		Dir: opts.CacheDir, FileBytes: opts.CacheBytes / 2, RangeBytes: opts.CacheBytes / 2, MemoryBytes: opts.CacheMemoryBytes,
		Events: cache.Events{Damaged: func(d cache.Damage) {
			if often.Allow() {
				logger.Warn("damaged file of the cache; what is needed of it is fetched again", "file", d.Path, "object", d.Key, "offset", d.Offset, "bytes", d.Length, "err", d.Err)
			}
			if also != nil {
				also(d)
			}
		}},
	})
}

func closeCache(c *cache.Cache) error {
	if c == nil {
		return nil
	}
	return c.Close()
}

// openStore opens the store, and makes sure that it may be written to safely
// where that is what it is opened for.
func openStore(ctx context.Context, opts *Options) (*meter.Store, error) {
	inner, err := storeurl.Open(ctx, opts.Store)
	if err != nil {
		return nil, err
	}
	if opts.Wrap != nil {
		inner = opts.Wrap(inner)
	}
	store := meter.New(inner, meter.Options{OnCall: opts.OnCall})
	if opts.writes() {
		if _, err := storage.Probe(ctx, store, opts.Tenant+"/_cardinal_probe/"); err != nil {
			return nil, err
		}
	}
	return store, nil
}

// open opens a table, or makes it where there is none and create is set.
func open(ctx context.Context, store *meter.Store, c *cache.Cache, opts Options, mayCreate bool) (*DB, error) {
	root, err := opts.root()
	if err != nil {
		return nil, err
	}
	db := &DB{opts: opts, Meter: store, cache: c}
	db.Log, err = txlog.Open(ctx, store, root, opts.Log)
	if errors.Is(err, txlog.ErrNotTable) && mayCreate {
		db.Log, err = create(ctx, store, root, opts.Log)
		if errors.Is(err, txlog.ErrTableExists) { // another process was quicker
			db.Log, err = txlog.Open(ctx, store, root, opts.Log)
		}
	}
	if err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("name this host: %w", err)
	}
	holder := fmt.Sprintf("%s/%d", host, os.Getpid())
	db.Pins = lease.NewPins(db.Meter, db.PinPrefix(), holder, opts.Pins)
	if opts.WALDir != "" {
		if err := db.openWriter(ctx); err != nil {
			return nil, err
		}
	}
	pins, err := db.readPins(ctx)
	if err != nil {
		return nil, errors.Join(err, db.closeWAL())
	}
	indexed, read := index.Options{Logger: opts.Logger}, reader.Options{Head: db.head, Pages: opts.pages}
	if c != nil {
		indexed.Ranges, read.Ranges = c, c
	}
	db.Index = index.New(db.Log, indexed)
	read.Index = db.Index
	opts.Indexer.Index, opts.Indexer.Holder = db.Index, holder
	db.Indexer = index.NewRunner(db.Log, opts.Indexer)
	db.Reader = reader.New(db.Log, pins, read)
	db.Compactor = compactor.NewRunner(db.Log, db.Pins, holder, opts.Compactor)
	return db, nil
}

// readPins are the pins that protect readers from vacuum. No vacuum of ours
// works on the table of another engine, in whose folder nothing of ours
// belongs and which may be read-only.
func (db *DB) readPins(ctx context.Context) (*lease.Pins, error) {
	if db.Writer != nil {
		return db.Pins, nil
	}
	s, err := db.Log.Snapshot(ctx, txlog.Latest())
	if err != nil {
		return nil, err
	}
	if !slices.Contains(s.Protocol().WriterFeatures, txlog.ExclusiveFeature) {
		return nil, nil //nolint:nilnil // no pins are needed
	}
	return db.Pins, nil
}

// create makes the table as every table of ours begins.
func create(ctx context.Context, store storage.Store, root string, opts txlog.Options) (*txlog.Log, error) {
	return txlog.Create(ctx, store, root, txlog.CreateOptions{
		Schema:           chunk.BaseSchema(),
		PartitionColumns: chunk.PartitionColumns(),
		Domains:          map[string]string{shard.Domain: shard.Initial().Encode()},
	}, opts)
}

func (db *DB) openWriter(ctx context.Context) (err error) {
	dir := filepath.Join(db.opts.WALDir, db.opts.Tenant, db.opts.Table)
	if db.wal, err = wal.Open(dir, db.opts.WAL); err != nil {
		return fmt.Errorf("open the wal: %w", err)
	}
	if db.Writer, err = writer.Open(ctx, db.Log, db.wal, db.opts.Writer); err != nil {
		return errors.Join(err, db.wal.Close())
	}
	return nil
}

// head is the writer's head, nil where there is no writer.
func (db *DB) head() reader.HeadView {
	if db.Writer == nil {
		return nil
	}
	return db.Writer.Head()
}

// StoreURL is where the table lives.
func (db *DB) StoreURL() string { return db.opts.Store }

// Tenant is whose the table is.
func (db *DB) Tenant() string { return db.opts.Tenant }

// TableName is the table's own name, of a path the last element.
func (db *DB) TableName() string { return path.Base(db.opts.Table) }

// PinPrefix is the key prefix of the table's pins.
func (db *DB) PinPrefix() string { return db.Log.Root() + "/_cardinal/pins" }

// Cache keeps files and ranges of a remote store; nil where the store is
// local. It is closed with the table, or that of Tenants with them.
func (db *DB) Cache() *cache.Cache { return db.cache }

// Run does the work in the background until ctx ends: the upkeep of the log,
// flushes, renewal of the pin, and, if compact is set, compaction and the index.
func (db *DB) Run(ctx context.Context, compact bool) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return db.Log.Run(ctx) })
	g.Go(func() error { return db.Pins.Run(ctx) })
	if db.Writer != nil {
		g.Go(func() error { return db.Writer.Run(ctx) })
		g.Go(func() error { return db.wal.Run(ctx) })
	}
	if compact {
		g.Go(func() error { return db.Compactor.Run(ctx) })
		g.Go(func() error { return db.Indexer.Run(ctx) })
	}
	return g.Wait()
}

// Vacuum plans and executes one run.
func (db *DB) Vacuum(ctx context.Context, opts vacuum.Options) (vacuum.Report, error) {
	plan, err := vacuum.NewPlan(ctx, db.Log, opts)
	if err != nil {
		return vacuum.Report{}, err
	}
	return plan.Execute(ctx)
}

// Attach keeps what a caller builds over the table, such as an engine, as long
// as the table is open: build runs on the first call with that key, and close,
// if it is not nil, before the table is closed.
func (db *DB) Attach(key any, build func() (v any, close func() error, err error)) (any, error) {
	db.mu.Lock()
	a, ok := db.attached[key]
	if !ok {
		if db.attached == nil {
			db.attached = map[any]*attachment{}
		}
		a = &attachment{}
		db.attached[key] = a
	}
	db.mu.Unlock()
	a.mu.Lock() // and not db's: what is built may stand on what is attached, too
	defer a.mu.Unlock()
	if a.built {
		return a.v, nil
	}
	v, detach, err := build()
	if err != nil {
		return nil, err
	}
	a.v, a.built = v, true
	if detach != nil {
		db.mu.Lock()
		defer db.mu.Unlock()
		db.detach = append(db.detach, detach)
	}
	return v, nil
}

// attachment is what a caller has built over the table.
type attachment struct {
	mu    sync.Mutex // guards what follows; held while it is built
	v     any
	built bool
}

// Close closes what is attached, flushes the head, does the log's upkeep, and
// gives back the pin and the WAL. When the flush fails, what is left is in the
// WAL.
func (db *DB) Close(ctx context.Context) error {
	db.mu.Lock()
	detach := db.detach
	db.attached, db.detach = nil, nil
	db.mu.Unlock()
	var errs []error
	for _, f := range slices.Backward(detach) {
		errs = append(errs, f())
	}
	if db.Writer != nil {
		errs = append(errs, db.Writer.Close(ctx))
	}
	errs = append(errs, db.Log.Upkeep(ctx), db.Pins.Close(ctx), db.closeWAL())
	if db.ownCache {
		errs = append(errs, closeCache(db.cache))
	}
	return errors.Join(errs...)
}

func (db *DB) closeWAL() error {
	if db.wal == nil {
		return nil
	}
	return db.wal.Close()
}
