// Package sqlengine answers SQL over one table by DuckDB: the files of a
// version and the head, as one table without duplicates.
//
// It stands on layer 6, above reader, and is the only package that knows
// DuckDB and the only one with cgo. It writes nothing to the store.
//
// A query has a DuckDB to itself, in memory (opening one takes 10 ms, so two
// wait, opened), with its own limits on memory and threads. Afterwards it may
// serve others on exactly the same files, one at a time. It can open the files of the query's
// views and nothing else, and its configuration is locked before the
// statement is seen. The statement itself is checked on DuckDB's own parse
// tree (json_serialize_sql): one SELECT, our tables, functions from a list. What the
// tree says of a kind that we do not know is refused.
//
// Tables a statement can name, T being the table's own name or this_table:
//
//	T         every live row, columns by contract 5
//	T_series  the distinct series, with samples, first_time, last_time
//	T_files   the live files
//	T_shards  the shard map and what each shard holds
//	T_log     the history, newest first, at most 1000 versions
//
// Each takes AT (VERSION => n) or AT (TIMESTAMP => t) after its alias.
//
// One observation that lies in several places is shown once, by the rule of
// internal/merge: same full label set, same (timestamp, nanos), the greatest
// rank wins. Files whose exact time and key ranges do not touch are read
// plainly. Where they touch, the engine first looks for (series_id,
// timestamp, nanos) that occur twice; if there is none, which is usual, all
// files are read plainly; else only rows with those keys are compared by
// their full label sets.
//
// A table of another engine is read by its log alone. The schema says which
// columns there are, also where there is no file; the footer of each file where
// in it they lie, by name or by field id, and how its types become the
// table's; a partition's column is what the log says; deleted rows are taken
// out by their place in the file. No file is skipped, whatever its statistics
// say. A column of a type that we cannot read (variant) is refused when a
// statement reads it, and only then.
//
// INVARIANT: a statement sees the rows that reader.View.Select yields for the
// same version, bit for bit, or fails. Never a part of them: a pin that is
// lost fails the query.
package sqlengine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"cardinalsin/internal/lru"
	"cardinalsin/planner"
	"cardinalsin/reader"
	"cardinalsin/storage"
	"cardinalsin/txlog"
)

// Conditions a caller branches on. Those of reader, txlog, lease, chunk and
// storage pass through, among them txlog.ErrVersionNotFound,
// txlog.ErrVersionVacuumed and lease.ErrPinLost.
var (
	// ErrSyntax: the statement cannot be parsed, or names what does not
	// exist. The error holds DuckDB's message.
	ErrSyntax = errors.New("invalid SQL")
	// ErrNotAllowed: the statement does more than to read our tables.
	ErrNotAllowed = errors.New("statement not allowed")
	// ErrExecution: the statement is valid and its evaluation failed, as by a
	// cast or a division.
	ErrExecution = errors.New("query failed")
	// ErrTimeout: the query took longer than its limit.
	ErrTimeout = errors.New("query timed out")
	// ErrTooLarge: the query needs more memory, or returns more, than its
	// limits allow.
	ErrTooLarge = errors.New("query exceeds its limits")
	// ErrNoLocalFiles: the store is remote and Options.Files is not set.
	ErrNoLocalFiles = errors.New("data files are not local")
)

// Files makes objects of a store readable as local files; *cache.Cache is
// one. It must be safe for concurrent use.
type Files interface {
	// File returns the path of a file with the object's contents. The file
	// stays until release is called.
	File(ctx context.Context, store storage.Store, key string, size int64) (path string, release func(), err error)
	// Holds reports whether File would find the file there.
	Holds(key string, size int64) bool
	// Derived is like File for size bytes that write makes, the same each time
	// for one recipe.
	Derived(ctx context.Context, recipe, extension string, size int64, write func(context.Context, io.Writer) error) (path string, release func(), err error)
}

// Options configure an Engine; the zero value is useful.
type Options struct {
	// Table is the table's own name in SQL. Default "metrics".
	Table string
	// Files fetches data files; a store of local files needs none, and is
	// read in place.
	Files Files
	// Timeout, MemoryBytes, MaxRows and MaxBytes are the limits of one query,
	// which QueryOptions can lower. Default: 5 minutes, 1 GiB, none, none.
	Timeout     time.Duration
	MemoryBytes int64
	MaxRows     int64
	MaxBytes    int64 // of the result in memory
	// Memory is what all queries of the engines that share it may use; more
	// queries wait. No query has more than all of it. Default: four times
	// MemoryBytes, for this engine alone.
	Memory *Memory
	// Threads is the number of threads of one query. Default GOMAXPROCS.
	Threads int
	// SpillDir is where queries put what exceeds their memory, in
	// directories of their own. Default: nowhere, such queries fail.
	SpillDir string
	// SpillBytes bounds that for one query. Default 8 GiB.
	SpillBytes int64
}

// EnsureDefaults fills in what is unset.
func (o *Options) EnsureDefaults() {
	if o.Table == "" {
		o.Table = "metrics"
	}
	if o.Timeout <= 0 {
		o.Timeout = 5 * time.Minute
	}
	if o.MemoryBytes <= 0 {
		o.MemoryBytes = 1 << 30
	}
	if o.Memory == nil {
		o.Memory = NewMemory(4 * o.MemoryBytes)
	}
	o.MemoryBytes = min(o.MemoryBytes, o.Memory.limit)
	if o.Threads <= 0 {
		o.Threads = runtime.GOMAXPROCS(0)
	}
	if o.SpillBytes <= 0 {
		o.SpillBytes = 8 << 30
	}
}

// Memory bounds what queries use at a time, each as much as it may. Engines may
// share one.
type Memory struct {
	limit int64
	free  *semaphore.Weighted
}

// NewMemory returns room for limit bytes.
func NewMemory(limit int64) *Memory {
	return &Memory{limit: limit, free: semaphore.NewWeighted(limit)}
}

// QueryOptions are those of one query; a limit that is zero, or above the
// engine's, is the engine's.
type QueryOptions struct {
	// At is the version of the tables that have no AT clause. The latest one
	// comes with the head.
	At          txlog.At
	Timeout     time.Duration
	MemoryBytes int64
	MaxRows     int64
	MaxBytes    int64
	// Arguments are the values of the statement's parameters, in order: nil,
	// bool, string, int64, uint64, float64, []byte, time.Time.
	Arguments []any

	dry bool // the tables have their columns and no rows
}

// within lowers the engine's limits to those of the query.
func (o *QueryOptions) within(e *Options) {
	o.Timeout = lowest(o.Timeout, e.Timeout)
	o.MemoryBytes = lowest(o.MemoryBytes, e.MemoryBytes)
	o.MaxRows = lowest(o.MaxRows, e.MaxRows)
	o.MaxBytes = lowest(o.MaxBytes, e.MaxBytes)
}

// lowest is the lower of two limits, zero being none.
func lowest[T int64 | time.Duration](a, b T) T {
	if a <= 0 || b > 0 && b < a {
		return b
	}
	return a
}

// Engine answers queries. It may be used concurrently.
type Engine struct {
	reader *reader.Reader
	opts   Options
	parser *parser
	names  map[string]tableKind
	spares spares

	excerpts *excerptRules // nil: data files are always read whole

	factsMu sync.Mutex
	facts   map[string][]string // by path: labels in a file's overflow map
	schemas map[string]*footer  // by fileID
	shapes  map[string]*footer  // the same by their text

	statements *lru.Cache[string, *statement]   // by their text
	plans      *lru.Cache[string, planner.Scan] // see planned
	bounds     *lru.Cache[string, [][]string]   // see timeRanges
	unique     *lru.Cache[string, struct{}]     // see verdictKey
	parts      *lru.Cache[string, int64]        // bytes of excerpts, by recipe

	soundMu sync.Mutex
	sound   map[string]struct{} // files verified, by path as logged
}

// New returns an engine over a reader. It opens a small DuckDB to parse
// statements; Close frees it.
func New(ctx context.Context, r *reader.Reader, opts Options) (*Engine, error) {
	opts.EnsureDefaults()
	p, err := newParser(ctx)
	if err != nil {
		return nil, fmt.Errorf("open SQL engine: %w", err)
	}
	e := &Engine{
		reader: r, opts: opts, parser: p,
		names:    map[string]tableKind{},
		excerpts: &defaultExcerptRules,
		facts:    map[string][]string{}, schemas: map[string]*footer{}, shapes: map[string]*footer{},
		statements: lru.New[string, *statement](maxStatements), plans: lru.New[string, planner.Scan](maxPlans), bounds: lru.New[string, [][]string](maxBounds),
		unique: lru.New[string, struct{}](maxUnique), parts: lru.New[string, int64](maxPartBytes),
		sound: map[string]struct{}{},
	}
	for _, kind := range tableKinds {
		e.names[lower(opts.Table)+string(kind)] = kind
		e.names[thisTable+string(kind)] = kind
	}
	return e, nil
}

// Close frees the engine. No call may be running; rows that are open stay
// usable.
func (e *Engine) Close() {
	e.spares.close()
	e.parser.close()
}
