package cardinalsin

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"cardinalsin/ingest"
	"cardinalsin/storage/cache"
	"cardinalsin/storage/meter"
	"cardinalsin/txlog"
	"cardinalsin/writer"
)

// TenantsOptions configure Tenants; the zero value is useful.
type TenantsOptions struct {
	// Options are those of every table. Tenant and Table name the default one,
	// which stays open.
	Options
	// Compact lets every open table be compacted.
	Compact bool
	// MaxOpen bounds the tables that are open at a time. Default 1,000.
	MaxOpen int
	// MaxHeadBytes bounds the heads of all tables together, as
	// writer.Options.Budget does. Default 2 GiB.
	MaxHeadBytes int64
	// IdleAfter is the time without use after which a table is closed, but for
	// the default one. A table that is not open costs no request and no memory.
	// Default 15 minutes.
	IdleAfter time.Duration
	// Observe, if set, may change the options of a table that is about to be
	// opened, to subscribe to its events.
	Observe func(*Options)
	// Now is the local clock; it only measures idleness. Default time.Now.
	Now func() time.Time
}

// EnsureDefaults fills in what is unset.
func (o *TenantsOptions) EnsureDefaults() {
	o.Options.EnsureDefaults()
	if o.MaxOpen <= 0 {
		o.MaxOpen = 1000
	}
	if o.MaxHeadBytes <= 0 {
		o.MaxHeadBytes = 2 << 30
	}
	if o.IdleAfter <= 0 {
		o.IdleAfter = 15 * time.Minute
	}
	if o.Observe == nil {
		o.Observe = func(*Options) {}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
}

// ErrStopped: the tables are being closed.
var ErrStopped = errors.New("tables are closed")

// Tenants are the tables of all tenants in one store, opened as requests ask
// for them and closed when they are idle. It implements ingest.Tables and may
// be used concurrently.
type Tenants struct {
	opts  TenantsOptions
	store *meter.Store
	cache *cache.Cache // nil: the store is local

	left atomic.Bool // a table was closed with something left in its WAL

	mu     sync.Mutex // guards what follows
	open   map[tableName]*tableEntry
	run    func(*tableEntry) // starts a table's background work; nil before Run
	closed bool
}

type tableName struct{ tenant, table string }

// tableEntry is a table that is being opened, is open, or is being closed. Its
// fields, but for those set before ready is closed, are guarded by Tenants.mu.
type tableEntry struct {
	name  tableName
	ready chan struct{} // closed when db or err is set
	db    *DB
	err   error

	users   int // who may use db
	used    time.Time
	closing bool
	failed  bool          // its background work ended with an error
	gone    chan struct{} // closed when it has left the map
	stop    func()        // ends the background work and waits for it; nil if there is none
}

// NewTenants opens the store. With a WALDir the store is probed first.
// Errors: storage.ErrStoreRefused, ErrInvalidName, those of the store.
func NewTenants(ctx context.Context, opts TenantsOptions) (*Tenants, error) {
	opts.EnsureDefaults()
	if _, err := opts.root(); err != nil {
		return nil, err
	}
	opts.Writer.Budget = writer.NewBudget(opts.MaxHeadBytes)
	store, err := openStore(ctx, &opts.Options)
	if err != nil {
		return nil, err
	}
	c, err := openCache(&opts.Options, store)
	if err != nil {
		return nil, err
	}
	return &Tenants{opts: opts, store: store, cache: c, open: map[tableName]*tableEntry{}}, nil
}

// Table implements ingest.Tables.
func (t *Tenants) Table(ctx context.Context, tenant, table string) (ingest.Appender, func(), error) {
	db, release, err := t.acquire(ctx, tableName{tenant, table}, true)
	if err != nil {
		return nil, nil, err
	}
	if db.Writer == nil {
		release()
		return nil, nil, fmt.Errorf("table %s: %w", db.Log.Root(), txlog.ErrReadOnly)
	}
	return db.Writer, release, nil
}

// Get opens a table that exists. The caller calls release, once, when it is
// done with all that it took from it. tenant "" is the default one, table ""
// the default table. Errors: ErrInvalidName, txlog.ErrNotTable,
// writer.ErrOverloaded when too many tables are in use, those of Open.
func (t *Tenants) Get(ctx context.Context, tenant, table string) (db *DB, release func(), err error) {
	if tenant == "" {
		tenant = t.opts.Tenant
	}
	if table == "" {
		table = t.opts.Table
	}
	return t.acquire(ctx, tableName{tenant, table}, false)
}

// OpenDefault opens the default table, and makes it if there is none and a
// writer was asked for. It stays open.
func (t *Tenants) OpenDefault(ctx context.Context) (*DB, error) {
	db, release, err := t.acquire(ctx, t.defaultTable(), t.opts.WALDir != "")
	if err != nil {
		return nil, err
	}
	release()
	return db, nil
}

func (t *Tenants) defaultTable() tableName { return tableName{t.opts.Tenant, t.opts.Table} }

// Each calls fn with every table that is open.
func (t *Tenants) Each(fn func(tenant, table string, db *DB)) {
	for _, e := range t.entries() {
		select {
		case <-e.ready:
			if e.db != nil {
				fn(e.name.tenant, e.name.table, e.db)
			}
		default:
		}
	}
}

func (t *Tenants) entries() []*tableEntry {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]*tableEntry, 0, len(t.open))
	for _, e := range t.open {
		out = append(out, e)
	}
	return out
}

// Cache keeps files and ranges of the store for all tables; nil where it is
// local.
func (t *Tenants) Cache() *cache.Cache { return t.cache }

// acquire opens a table, or finds it open.
func (t *Tenants) acquire(ctx context.Context, name tableName, create bool) (*DB, func(), error) {
	for {
		e, mine, err := t.entry(name)
		if err != nil {
			return nil, nil, err
		}
		if e.closing {
			select {
			case <-e.gone:
				continue
			case <-ctx.Done():
				return nil, nil, ctx.Err()
			}
		}
		if mine {
			// Others wait for it, so it does not end with this request.
			t.openEntry(context.WithoutCancel(ctx), e, create)
		}
		select {
		case <-e.ready:
		case <-ctx.Done():
			t.release(e)
			return nil, nil, ctx.Err()
		}
		if e.err == nil {
			return e.db, sync.OnceFunc(func() { t.release(e) }), nil
		}
		if !mine && create && errors.Is(e.err, txlog.ErrNotTable) {
			continue // who opened it was not to make it
		}
		return nil, nil, e.err
	}
}

// entry finds a table's entry and counts the caller as a user of it, unless it
// is closing; mine means that the caller has to open it.
func (t *Tenants) entry(name tableName) (e *tableEntry, mine bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, false, ErrStopped
	}
	e, ok := t.open[name]
	if ok {
		if !e.closing {
			e.users++
		}
		return e, false, nil
	}
	for _, n := range []string{name.tenant, name.table} {
		if err := ValidateName(n); err != nil {
			return nil, false, err
		}
	}
	if len(t.open) >= t.opts.MaxOpen {
		idle := t.longestIdle()
		if idle == nil {
			return nil, false, fmt.Errorf("%w: %d tables are in use", writer.ErrOverloaded, len(t.open))
		}
		if !idle.closing {
			idle.closing = true
			go func() { _ = t.closeEntry(context.Background(), idle) }() // it logs, and outlives the request
		}
		return idle, false, nil // the caller waits until it is gone
	}
	e = &tableEntry{name: name, ready: make(chan struct{}), gone: make(chan struct{}), users: 1, used: t.opts.Now()}
	t.open[name] = e
	return e, true, nil
}

// longestIdle is the table that makes room; one that is being closed already
// comes first. mu is held.
func (t *Tenants) longestIdle() *tableEntry {
	var idle *tableEntry
	for _, e := range t.open {
		switch {
		case e.closing:
			return e
		case e.users > 0 || e.name == t.defaultTable():
		case idle == nil || e.used.Before(idle.used):
			idle = e
		}
	}
	return idle
}

// openEntry opens the table of an entry that the caller has made.
func (t *Tenants) openEntry(ctx context.Context, e *tableEntry, create bool) {
	opts := t.opts.Options
	opts.Tenant, opts.Table = e.name.tenant, e.name.table
	if opts.WALDir != "" && e.name != t.defaultTable() && opts.Compactor.Poll == 0 {
		opts.Compactor.Poll = -1 // an idle tenant costs no request: what others write, they compact
	}
	t.opts.Observe(&opts)
	e.db, e.err = open(ctx, t.store, t.cache, opts, create)
	t.mu.Lock()
	defer t.mu.Unlock()
	if e.err != nil {
		delete(t.open, e.name)
		close(e.gone)
	} else if t.run != nil {
		t.run(e)
	}
	close(e.ready)
}

func (t *Tenants) release(e *tableEntry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e.users--
	e.used = t.opts.Now()
}

// closeEntry closes a table that was marked as closing; nobody uses it. Where
// the flush fails, the samples are in the WAL, and Run opens it again.
func (t *Tenants) closeEntry(ctx context.Context, e *tableEntry) error {
	t.mu.Lock()
	stop := e.stop
	t.mu.Unlock()
	if stop != nil {
		stop()
	}
	err := e.db.Close(ctx)
	if err != nil {
		t.left.Store(true)
		t.opts.Logger.Warn("close table", "table", e.db.Log.Root(), "err", err)
	}
	t.mu.Lock()
	delete(t.open, e.name)
	close(e.gone)
	t.mu.Unlock()
	return err
}

// closeIdle closes what has failed, or nobody has used for long. A table that
// cannot be flushed for now stays open, where it can be read.
func (t *Tenants) closeIdle(ctx context.Context) {
	idle := func(e *tableEntry, users int) bool { // mu is held
		return e.users == users && !e.closing && e.name != t.defaultTable() && (e.failed || t.opts.Now().Sub(e.used) >= t.opts.IdleAfter)
	}
	for _, e := range t.entries() {
		t.mu.Lock()
		ours := idle(e, 0)
		if ours {
			e.users++
		}
		t.mu.Unlock()
		if !ours {
			continue
		}
		var err error
		if e.db.Writer != nil {
			err = e.db.Writer.Flush(ctx)
		}
		t.mu.Lock()
		ours = (err == nil || e.failed) && idle(e, 1)
		e.closing = e.closing || ours
		e.users--
		t.mu.Unlock()
		if ours {
			_ = t.closeEntry(ctx, e) // it logs
		}
	}
}

// Run does the background work of all open tables until ctx ends, closes idle
// ones, and recovers what earlier processes left in the WALs of tables that
// nobody has asked for yet. It returns an error when the default table cannot
// go on.
func (t *Tenants) Run(ctx context.Context) error {
	t.left.Store(true) // by the process before us
	g, ctx := errgroup.WithContext(ctx)
	start := func(e *tableEntry) { // mu is held
		ctx, cancel := context.WithCancel(ctx)
		done := make(chan struct{})
		e.stop = func() { cancel(); <-done }
		g.Go(func() error {
			defer close(done)
			err := e.db.Run(ctx, t.opts.Compact)
			if err == nil || e.name == t.defaultTable() {
				return err
			}
			// Others are none the worse for it. It is closed as soon as nobody
			// uses it, and whoever wants it then opens it anew.
			t.opts.Logger.Error("table stopped", "table", e.db.Log.Root(), "err", err)
			t.mu.Lock()
			e.failed = true
			t.mu.Unlock()
			return nil
		})
	}
	t.mu.Lock()
	for _, e := range t.open {
		if e.db != nil && e.stop == nil && !e.closing {
			start(e)
		}
	}
	t.run = start
	t.mu.Unlock()
	g.Go(func() error { return t.upkeep(ctx) })
	<-ctx.Done()
	t.mu.Lock()
	t.run = nil
	t.mu.Unlock()
	return g.Wait()
}

// upkeep closes idle tables and recovers WALs; what fails is tried again.
func (t *Tenants) upkeep(ctx context.Context) error {
	const every = 30 * time.Second
	tick := time.NewTicker(min(every, max(t.opts.IdleAfter/4, time.Millisecond)))
	defer tick.Stop()
	for {
		if t.left.Swap(false) {
			if err := t.recoverWALs(ctx); err != nil {
				t.left.Store(true)
				if ctx.Err() == nil {
					t.opts.Logger.Warn("recover the wals of tenants", "err", err)
				}
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		t.closeIdle(ctx)
	}
}

// recoverGrace bounds the recovery of WALs when a process ends.
const recoverGrace = 30 * time.Second

// Close closes all tables; Run must have ended, and nobody may be in the midst
// of using one. Where Run had not recovered all WALs yet, Close does. When it
// returns nil, nothing is left in any WAL. The errors of all are joined.
func (t *Tenants) Close(ctx context.Context) error {
	var left error
	if t.left.Load() {
		ctx, cancel := context.WithTimeout(ctx, recoverGrace)
		left = t.recoverWALs(ctx)
		cancel()
	}
	return errors.Join(left, t.closeAll(ctx))
}

func (t *Tenants) closeAll(ctx context.Context) error {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	g := errgroup.Group{}
	g.SetLimit(8)
	errs := make(chan error, t.opts.MaxOpen+1)
	for _, e := range t.entries() {
		g.Go(func() error {
			<-e.ready
			t.mu.Lock()
			ours := e.err == nil && !e.closing
			e.closing = true
			t.mu.Unlock()
			if ours {
				errs <- t.closeEntry(ctx, e)
				return nil
			}
			<-e.gone
			return nil
		})
	}
	err := g.Wait()
	close(errs)
	for e := range errs {
		err = errors.Join(err, e)
	}
	return errors.Join(err, closeCache(t.cache))
}
