// Package txlog is the table's transaction log: versions, snapshots, time
// travel, and optimistic commits with their conflict rules.
//
// It stands on layer 3. A version exists when, and only when, its JSON object
// was created by a put-if-absent; checkpoints, version checksums and the hint
// are derived and can be lost. This is the only package that creates log
// objects, and it never rewrites or deletes one.
//
// Layout below the table's root (log-protocol 1):
//
//	_delta_log/%020d.json                 commit, one action a line
//	_delta_log/%020d.crc                  version checksum
//	_delta_log/%020d.%020d.compacted.json log compaction, first and last version
//	_delta_log/%020d.checkpoint.parquet   checkpoint
//	_delta_log/_last_checkpoint           hint, overwritten
//
// INVARIANT: a committed transaction's requirements held against the version
// just before its own.
package txlog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"

	"cardinalsin/action"
	"cardinalsin/storage"
)

// Conditions a caller branches on. Damaged log objects wrap
// action.ErrCorrupt, or checkpoint.ErrCorrupt, and name the object.
var (
	// ErrNotTable: there is no log under that root.
	ErrNotTable = errors.New("not a table")
	// ErrTableExists: Create found a log.
	ErrTableExists = errors.New("table already exists")
	// ErrVersionNotFound: the version lies ahead of the latest, or the time
	// before the first.
	ErrVersionNotFound = errors.New("version not found")
	// ErrVersionVacuumed: the version was, but can no longer be read; see
	// VacuumedError.
	ErrVersionVacuumed = errors.New("version vacuumed")
	// ErrUnsupported: the table needs a feature that we lack, named in the
	// error.
	ErrUnsupported = errors.New("unsupported table feature")
	// ErrReadOnly: the table is not one of ours; we read it only.
	ErrReadOnly = errors.New("table is read-only for this engine")

	// ErrConflict is wrapped by every failure that planning anew may cure.
	ErrConflict = errors.New("commit conflict")
	// ErrFilesRemoved: a file that the transaction relies on is gone.
	ErrFilesRemoved = fmt.Errorf("%w: files removed", ErrConflict)
	// ErrNewFiles: files came that the transaction must not miss.
	ErrNewFiles = fmt.Errorf("%w: new files", ErrConflict)
	// ErrDomainChanged: a configuration that the transaction rests on is
	// another one now.
	ErrDomainChanged = fmt.Errorf("%w: domain changed", ErrConflict)
	// ErrUploadsTooOld: vacuum might take the uploaded files for orphans;
	// upload them anew.
	ErrUploadsTooOld = fmt.Errorf("%w: uploads too old", ErrConflict)
	// ErrSchemaConflict: a column exists with another type.
	ErrSchemaConflict = fmt.Errorf("%w: schema", ErrConflict)

	// ErrFenced: another process commits under this writer's identity. It is
	// terminal and does not wrap ErrConflict.
	ErrFenced = errors.New("writer fenced: its identity is in use elsewhere")
)

// VacuumedError says which version could not be read, and the oldest that can.
type VacuumedError struct {
	Version, Oldest action.Version
}

func (e *VacuumedError) Error() string {
	return fmt.Sprintf("version %d: %v; the oldest readable version is %d", int64(e.Version), ErrVersionVacuumed, int64(e.Oldest))
}

// Is makes errors.Is(err, ErrVersionVacuumed) hold.
func (e *VacuumedError) Is(target error) bool { return target == ErrVersionVacuumed }

// MinLogAge is how long every log object is kept after it was written,
// whatever the retention says. A process whose knowledge of the latest
// version is younger than half of it may take an absent next version for
// proof that none was committed; an older one must list. Vacuum honours it.
const MinLogAge = 24 * time.Hour

// Events are optional observers; each is called synchronously and must be
// quick and safe for concurrent use.
type Events struct {
	CommitEnd     func(CommitEvent)
	CheckpointEnd func(CheckpointEvent)
}

// CommitEvent reports one attempt to commit one entry.
type CommitEvent struct {
	Version      action.Version
	Operation    string
	Transactions int // transactions in the entry
	Conflicts    int // versions that others won before
	Duration     time.Duration
	Err          error
}

// CheckpointEvent reports one checkpoint.
type CheckpointEvent struct {
	Version  action.Version
	Actions  int64
	Duration time.Duration
	Err      error
}

// Options configure a Log; the zero value is useful.
type Options struct {
	// CheckpointEvery is the number of versions from one checkpoint to the
	// next. Default 64.
	CheckpointEvery int64
	// CompactEvery is the number of commits that a log compaction stands for.
	// Default 16; negative for none.
	CompactEvery int64
	// TombstoneRetention is how long checkpoints keep removes. Default 10
	// days: longer than vacuum's default retention of 7, so that a process which
	// starts anew finds in the checkpoint what vacuum has not settled yet.
	TombstoneRetention time.Duration
	// EngineInfo goes into every commit. Default "cardinalsin".
	EngineInfo string
	// Now is the local clock; it only measures intervals. Default time.Now.
	Now func() time.Time
	// Logger reports what fails off the commit path. Default discards.
	Logger *slog.Logger
	Events Events
}

// EnsureDefaults fills in what is unset.
func (o *Options) EnsureDefaults() {
	if o.CheckpointEvery <= 0 {
		o.CheckpointEvery = 64
	}
	if o.CompactEvery == 0 {
		o.CompactEvery = 16
	}
	if o.TombstoneRetention <= 0 {
		o.TombstoneRetention = 10 * 24 * time.Hour
	}
	if o.EngineInfo == "" {
		o.EngineInfo = "cardinalsin"
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// Log is one table's log. It may be used concurrently.
type Log struct {
	store storage.Store
	root  string // key prefix of the table, no slash at the end
	opts  Options

	refresh refresher
	past    pastSnapshots

	mu        sync.Mutex // guards the fields below
	head      *Snapshot  // latest version known
	confirmed time.Time  // local clock when head was last seen to be the latest
	commits   commitQueue
	pace      pace
	upkeep    []*Snapshot
	due       chan struct{} // signals Run that upkeep is not empty
}

// Open loads the latest version of the table at root, a key prefix without a
// slash at the end. Cost: the hint, one listing from it, one checkpoint and
// the commits after it. Errors: ErrNotTable, ErrUnsupported,
// action.ErrCorrupt, storage errors.
func Open(ctx context.Context, store storage.Store, root string, opts Options) (*Log, error) {
	opts.EnsureDefaults()
	l := newLog(store, root, opts)
	at := opts.Now()
	s, err := l.load(ctx, latest)
	if err != nil {
		return nil, fmt.Errorf("open table %s: %w", root, err)
	}
	l.publish(s, at)
	return l, nil
}

// CreateOptions describe a new table.
type CreateOptions struct {
	Schema           *action.Schema
	PartitionColumns []string
	// Configuration is added to the properties that every table of ours has.
	Configuration map[string]string
	// Domains are set in version 0.
	Domains map[string]string
}

// Create commits version 0 and opens the table. It lists first: where clean-up
// has taken version 0 away, its absence does not mean that there is no table.
// Errors: ErrTableExists, storage errors.
func Create(ctx context.Context, store storage.Store, root string, c CreateOptions, opts Options) (*Log, error) {
	opts.EnsureDefaults()
	l := newLog(store, root, opts)
	seg, err := l.list(ctx, -1, latest)
	if err != nil {
		return nil, fmt.Errorf("create table %s: %w", root, err)
	}
	if seg.last() >= 0 {
		return nil, fmt.Errorf("create table %s: %w", root, ErrTableExists)
	}
	schema, err := c.Schema.Encode()
	if err != nil {
		return nil, fmt.Errorf("create table %s: %w", root, err)
	}
	conf := map[string]string{"delta.enableInCommitTimestamps": "true"}
	for k, v := range c.Configuration {
		conf[k] = v
	}
	proto := OwnProtocol()
	t := l.Begin(nil, Operation{Name: "CREATE TABLE"})
	t.protocol = &proto
	t.metadata = &action.Metadata{
		ID:               uuid.NewString(),
		Format:           action.Format{Provider: "parquet", Options: map[string]string{}},
		SchemaString:     schema,
		PartitionColumns: c.PartitionColumns,
		Configuration:    conf,
	}
	for d, v := range c.Domains {
		t.SetDomain(d, v)
	}
	if _, err := t.Commit(ctx); err != nil {
		return nil, fmt.Errorf("create table %s: %w", root, err)
	}
	return l, nil
}

func newLog(store storage.Store, root string, opts Options) *Log {
	return &Log{store: store, root: root, opts: opts, due: make(chan struct{}, 1)}
}

// Root is the table's key prefix in the store.
func (l *Log) Root() string { return l.root }

// Store is where the table lives.
func (l *Log) Store() storage.Store { return l.store }

// Key returns the store key of a data file by its path as logged. An error
// wraps action.ErrCorrupt, or ErrUnsupported for a path outside the table.
func (l *Log) Key(path string) (string, error) {
	p, err := action.DecodePath(path)
	if err != nil {
		return "", err
	}
	key := l.root + "/" + p
	if storage.ValidateKey(key) != nil || storage.ValidateKey(p) != nil {
		return "", fmt.Errorf("%w: data file outside the table: %.200q", ErrUnsupported, path)
	}
	return key, nil
}

// Dir is the key prefix of the log's objects, no slash at the end.
func (l *Log) Dir() string { return l.root + "/_delta_log" }

// CommitKey is the key of a version's commit.
func (l *Log) CommitKey(v action.Version) string { return l.Dir() + "/" + v.String() + ".json" }

// Now reads the local clock that the log measures intervals by, such as the
// age of uploads.
func (l *Log) Now() time.Time { return l.opts.Now() }

// elapsed is the time between two readings of the local clock: by the
// monotonic clock or the wall clock, whichever says more, so that neither a
// suspended machine nor a clock that is set back makes an interval shorter.
func elapsed(from, to time.Time) time.Duration {
	return max(to.Sub(from), to.Round(0).Sub(from.Round(0)))
}
