// Package check verifies a table: that what the log says is true of the store,
// that what is derived from the log agrees with it, and that no row is in two
// files.
//
// It stands on layer 5 and only reads. It never repairs: what it finds, it
// names. It may run beside writers, compactors and vacuum: what they change
// meanwhile is no finding.
package check

import (
	"context"
	"errors"
	"fmt"

	"cardinalsin/action"
	"cardinalsin/checkpoint"
	"cardinalsin/chunk"
	"cardinalsin/storage"
	"cardinalsin/txlog"
)

// Kind says what is wrong.
type Kind string

// The kinds of findings.
const (
	KindLog        Kind = "log"        // a commit is missing, damaged, or out of order in time
	KindCheckpoint Kind = "checkpoint" // it is damaged, or not what a replay gives
	KindChecksum   Kind = "checksum"   // it is damaged, or not what a replay gives
	KindDomain     Kind = "domain"     // the watermark, or how far vacuum came, cannot be true
	KindTombstone  Kind = "tombstone"  // a tombstone cannot be true
	KindMissing    Kind = "missing"    // a live file is not in the store
	KindSize       Kind = "size"       // an object has not the size that the log states
	KindShards     Kind = "shards"     // the map is invalid, or a file's shard is not in it
	KindPartition  Kind = "partition"  // path, partition values and rows disagree
	KindTags       Kind = "tags"       // a file's tags are damaged or missing
	KindOverlap    Kind = "overlap"    // two files may hold the same rows
	KindChunk      Kind = "chunk"      // a chunk is damaged, or not what its add says
)

// Finding is one thing that is wrong with one object.
type Finding struct {
	Kind   Kind
	Object string // store key; the name of a domain where that is at fault
	Detail string
}

func (f Finding) String() string { return string(f.Kind) + " " + f.Object + ": " + f.Detail }

// Options configure a check.
type Options struct {
	// Deep reads every chunk whole: each byte against its seal, each row
	// against the add action's tags and statistics.
	Deep bool
	// Parallel is the number of requests in flight, and with Deep of chunks
	// in memory. Default 8; with Deep 2.
	Parallel int
}

// EnsureDefaults fills in what is unset.
func (o *Options) EnsureDefaults() {
	if o.Parallel > 0 {
		return
	}
	o.Parallel = 8
	if o.Deep {
		o.Parallel = 2
	}
}

// Run checks the latest version and the log that leads to it, and returns what
// it found: the log first, then files in the order of their paths. An error
// means that the check could not be made. Cost: two listings, one GET a
// version, a checksum and a checkpoint; with Deep one GET a file.
func Run(ctx context.Context, log *txlog.Log, opts Options) ([]Finding, error) {
	opts.EnsureDefaults()
	c := &checker{log: log, store: log.Store(), opts: opts}
	head, err := log.Snapshot(ctx, txlog.Latest())
	if isDamage(err) {
		c.found(KindLog, log.Dir(), "%v", err)
		return c.findings, nil
	}
	if err != nil {
		return nil, fmt.Errorf("check: %w", err)
	}
	steps := []func(context.Context, *txlog.Snapshot) error{c.history, c.domains, c.objects, c.files}
	if opts.Deep {
		steps = append(steps, c.chunks)
	}
	for _, step := range steps {
		if err := step(ctx, head); err != nil {
			return c.findings, fmt.Errorf("check: %w", err)
		}
	}
	return c.findings, nil
}

type checker struct {
	log      *txlog.Log
	store    storage.Store
	opts     Options
	findings []Finding
}

func (c *checker) found(k Kind, object, format string, args ...any) {
	c.findings = append(c.findings, Finding{k, object, fmt.Sprintf(format, args...)})
}

// isDamage tells what is wrong with an object from what is wrong with the
// store.
func isDamage(err error) bool {
	return errors.Is(err, action.ErrCorrupt) || errors.Is(err, checkpoint.ErrCorrupt) ||
		errors.Is(err, chunk.ErrCorrupt) || errors.Is(err, chunk.ErrUnsupported) || errors.Is(err, storage.ErrNotFound)
}

// live reports whether a file is live in the version that is latest now. What
// a compaction replaced since the check began, vacuum may have taken.
func (c *checker) live(ctx context.Context, a *action.Add) (bool, error) {
	now, err := c.log.Snapshot(ctx, txlog.Latest())
	if err != nil {
		return false, err
	}
	_, ok := now.File(a.Key())
	return ok, nil
}
