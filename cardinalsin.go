// Package cardinalsin wires one table's parts together: store, log, pins,
// reader, and, where asked for, writer and maintenance.
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

	"golang.org/x/sync/errgroup"

	"cardinalsin/chunk"
	"cardinalsin/compactor"
	"cardinalsin/lease"
	"cardinalsin/reader"
	"cardinalsin/shard"
	"cardinalsin/storage"
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
	// CacheDir is where files of remote stores are kept for SQL.
	CacheDir string

	Log       txlog.Options
	Writer    writer.Options
	Compactor compactor.Options
	// OnCall, if set, hears of every store request.
	OnCall func(meter.Event)
	// Logger is passed to every part. Default discards.
	Logger *slog.Logger
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
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o.Log.Logger, o.Writer.Logger, o.Compactor.Logger = o.Logger, o.Logger, o.Logger
}

// DB is one open table. Writer is nil unless a WAL directory was given.
type DB struct {
	Log       *txlog.Log
	Pins      *lease.Pins
	Reader    *reader.Reader
	Writer    *writer.Writer
	Compactor *compactor.Runner
	Meter     *meter.Store

	opts Options
	wal  *wal.Log
}

// ValidateName accepts what may be one element of a path: 1 to 128 of
// A–Z a–z 0–9 . _ -, not beginning with "." or "_". Its error wraps
// ErrInvalidName.
func ValidateName(name string) error {
	ok := len(name) >= 1 && len(name) <= 128 && name[0] != '.' && name[0] != '_'
	for _, c := range []byte(name) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("._-", c) >= 0)
	}
	if !ok {
		return fmt.Errorf("%w: %q", ErrInvalidName, name)
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

// Open opens a table. With a WALDir the store is probed first, and the table
// created if it does not exist; without, it is only read and maintained.
// Errors: txlog.ErrNotTable, storage.ErrStoreRefused, ErrInvalidName,
// wal.ErrLocked, and what the parts return.
func Open(ctx context.Context, opts Options) (*DB, error) {
	opts.EnsureDefaults()
	root, err := opts.root()
	if err != nil {
		return nil, err
	}
	inner, err := storeurl.Open(ctx, opts.Store)
	if err != nil {
		return nil, err
	}
	db := &DB{opts: opts, Meter: meter.New(inner, meter.Options{OnCall: opts.OnCall})}
	if opts.WALDir != "" {
		if _, err := storage.Probe(ctx, db.Meter, opts.Tenant+"/_cardinal_probe/"); err != nil {
			return nil, err
		}
	}
	db.Log, err = txlog.Open(ctx, db.Meter, root, opts.Log)
	if errors.Is(err, txlog.ErrNotTable) && opts.WALDir != "" {
		db.Log, err = create(ctx, db.Meter, root, opts.Log)
		if errors.Is(err, txlog.ErrTableExists) { // another process was quicker
			db.Log, err = txlog.Open(ctx, db.Meter, root, opts.Log)
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
	db.Pins = lease.NewPins(db.Meter, db.PinPrefix(), holder, lease.Options{})
	if opts.WALDir != "" {
		if err := db.openWriter(ctx); err != nil {
			return nil, err
		}
	}
	pins, err := db.readPins(ctx)
	if err != nil {
		return nil, err
	}
	db.Reader = reader.New(db.Log, pins, reader.Options{Head: db.head})
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
	if db.wal, err = wal.Open(dir, wal.Options{}); err != nil {
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

// TableName is the table's own name, of a path the last element.
func (db *DB) TableName() string { return path.Base(db.opts.Table) }

// PinPrefix is the key prefix of the table's pins.
func (db *DB) PinPrefix() string { return db.Log.Root() + "/_cardinal/pins" }

// CacheDir is where files of remote stores may be kept.
func (db *DB) CacheDir() string { return db.opts.CacheDir }

// Run does the work in the background until ctx ends: the upkeep of the log,
// flushes, renewal of the pin, and compaction if compact is set.
func (db *DB) Run(ctx context.Context, compact bool) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return db.Log.Run(ctx) })
	g.Go(func() error { return db.Pins.Run(ctx) })
	if db.Writer != nil {
		g.Go(func() error { return db.Writer.Run(ctx) })
	}
	if compact {
		g.Go(func() error { return db.Compactor.Run(ctx) })
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

// Close flushes the head, does the log's upkeep, and gives back the pin and
// the WAL. When the flush fails, what is left is in the WAL.
func (db *DB) Close(ctx context.Context) error {
	var errs []error
	if db.Writer != nil {
		errs = append(errs, db.Writer.Close(ctx))
	}
	errs = append(errs, db.Log.Upkeep(ctx), db.Pins.Close(ctx))
	if db.wal != nil {
		errs = append(errs, db.wal.Close())
	}
	return errors.Join(errs...)
}
