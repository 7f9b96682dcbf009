// Package check verifies a table: that what the log says is true of the store,
// that what is derived from the log agrees with it, and that no row is in two
// files.
//
// It stands on layer 5 and only reads. It never repairs: what it finds, it
// names.
package check

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"cardinalsin/action"
	"cardinalsin/checkpoint"
	"cardinalsin/chunk"
	"cardinalsin/series"
	"cardinalsin/shard"
	"cardinalsin/storage"
	"cardinalsin/txlog"
)

// Kind says what is wrong.
type Kind string

// The kinds of findings.
const (
	KindLog        Kind = "log"        // a commit is missing or damaged
	KindCheckpoint Kind = "checkpoint" // it is damaged, or not what a replay gives
	KindChecksum   Kind = "checksum"   // it is not what a replay gives
	KindMissing    Kind = "missing"    // a live file is not in the store
	KindSize       Kind = "size"       // an object has not the size that the log states
	KindShards     Kind = "shards"     // the map is invalid, or a file's shard is not in it
	KindPartition  Kind = "partition"  // rows lie outside the file's partition
	KindTags       Kind = "tags"       // a file's tags are damaged or missing
	KindOverlap    Kind = "overlap"    // two files may hold the same rows
	KindChunk      Kind = "chunk"      // a chunk is damaged, or not what its add says
)

// Finding is one thing that is wrong with one object.
type Finding struct {
	Kind   Kind
	Object string // store key, or version where no object is at fault
	Detail string
}

func (f Finding) String() string { return string(f.Kind) + " " + f.Object + ": " + f.Detail }

// Options configure a check.
type Options struct {
	// Deep reads every chunk whole: each byte against its seal, each row
	// against the add action.
	Deep bool
}

// Run checks the latest version and the log that leads to it, and returns what
// it found, in the order found. An error means that the check could not be
// made. Cost: one listing of the table, one GET a version and a checkpoint;
// with Deep one GET a file.
func Run(ctx context.Context, log *txlog.Log, opts Options) ([]Finding, error) {
	c := &checker{log: log, store: log.Store()}
	head, err := log.Snapshot(ctx, txlog.Latest())
	if isDamage(err) {
		c.found(KindLog, log.Dir(), "%v", err)
		return c.findings, nil
	}
	if err != nil {
		return nil, err
	}
	for _, step := range []func(context.Context, *txlog.Snapshot) error{c.history, c.objects, c.files} {
		if err := step(ctx, head); err != nil {
			return nil, err
		}
	}
	if opts.Deep {
		if err := c.chunks(ctx, head); err != nil {
			return nil, err
		}
	}
	return c.findings, nil
}

type checker struct {
	log      *txlog.Log
	store    storage.Store
	findings []Finding
}

func (c *checker) found(k Kind, object, format string, args ...any) {
	c.findings = append(c.findings, Finding{k, object, fmt.Sprintf(format, args...)})
}

// isDamage tells what is wrong with an object from what is wrong with the
// store.
func isDamage(err error) bool {
	return errors.Is(err, action.ErrCorrupt) || errors.Is(err, checkpoint.ErrCorrupt) || errors.Is(err, chunk.ErrCorrupt) || errors.Is(err, storage.ErrNotFound)
}

// history replays the log version by version, and compares checkpoints and
// checksums with what it gives.
func (c *checker) history(ctx context.Context, _ *txlog.Snapshot) error {
	checkpoints, err := c.log.Checkpoints(ctx)
	if err != nil {
		return err
	}
	first := true
	err = c.log.Walk(ctx, func(s *txlog.Snapshot) error {
		defer func() { first = false }()
		if err := c.checksum(ctx, s); err != nil {
			return err
		}
		// The walk may have begun at a checkpoint: that one has nothing to be
		// compared with.
		if !slices.Contains(checkpoints, s.Version()) || first && s.Version() > 0 {
			return nil
		}
		return c.checkpoint(ctx, s)
	})
	if isDamage(err) {
		c.found(KindLog, c.log.Dir(), "%v", err)
		return nil
	}
	return err
}

func (c *checker) checksum(ctx context.Context, s *txlog.Snapshot) error {
	sum, ok, err := c.log.ReadChecksum(ctx, s.Version())
	if err != nil || !ok {
		return err
	}
	name := c.log.Dir() + "/" + s.Version().String() + ".crc"
	if sum.NumFiles != int64(s.NumFiles()) || sum.TableSizeBytes != s.Bytes() {
		c.found(KindChecksum, name, "says %d files of %d bytes, a replay gives %d of %d", sum.NumFiles, sum.TableSizeBytes, s.NumFiles(), s.Bytes())
	}
	return nil
}

func (c *checker) checkpoint(ctx context.Context, want *txlog.Snapshot) error {
	name := checkpoint.ClassicKey(c.log.Dir(), want.Version())
	got, err := c.log.FromCheckpoint(ctx, want.Version())
	if isDamage(err) {
		c.found(KindCheckpoint, name, "%v", err)
		return nil
	}
	if err != nil {
		return err
	}
	if d := difference(want, got); d != "" {
		c.found(KindCheckpoint, name, "%s", d)
	}
	return nil
}

// difference says in which respect a checkpoint is not what a replay gives; ""
// if it is.
func difference(replay, cp *txlog.Snapshot) string {
	if replay.NumFiles() != cp.NumFiles() || replay.Bytes() != cp.Bytes() {
		return fmt.Sprintf("holds %d files of %d bytes, a replay gives %d of %d", cp.NumFiles(), cp.Bytes(), replay.NumFiles(), replay.Bytes())
	}
	for a := range replay.Files() {
		b, ok := cp.File(a.Key())
		if !ok {
			return "lacks " + a.Path
		}
		if a.Size != b.Size || a.Stats != b.Stats || a.Tags != b.Tags || a.PartitionValues != b.PartitionValues {
			return "differs in " + a.Path
		}
	}
	for t := range replay.Transactions() {
		if got, ok := cp.Transaction(t.AppID); !ok || got.Version != t.Version {
			return "differs in the transaction of " + t.AppID
		}
	}
	for d, conf := range replay.Domains() {
		if got, ok := cp.Domain(d); !ok || got != conf {
			return "differs in the domain " + d
		}
	}
	if replay.Metadata().SchemaString != cp.Metadata().SchemaString {
		return "differs in the schema"
	}
	return ""
}

// objects compares the live files with a listing of the store.
func (c *checker) objects(ctx context.Context, head *txlog.Snapshot) error {
	prefix := c.log.Root() + "/"
	sizes := map[string]int64{}
	for o, err := range c.store.List(ctx, prefix, "") {
		if err != nil {
			return fmt.Errorf("list the table: %w", err)
		}
		if !strings.HasPrefix(o.Key[len(prefix):], "_") {
			sizes[o.Key] = o.Size
		}
	}
	for a := range head.Files() {
		key, err := c.log.Key(a.Path)
		if err != nil {
			return err
		}
		switch size, ok := sizes[key]; {
		case !ok:
			c.found(KindMissing, key, "live in version %d, and not in the store", int64(head.Version()))
		case size != a.Size:
			c.found(KindSize, key, "has %d bytes, the log says %d", size, a.Size)
		}
	}
	return nil
}

// files checks what the adds say of themselves and of one another.
func (c *checker) files(_ context.Context, head *txlog.Snapshot) error {
	shards := map[string]bool{}
	if conf, ok := head.Domain(shard.Domain); !ok {
		c.found(KindShards, shard.Domain, "the table has no shard map")
	} else if m, err := shard.Parse(conf); err != nil {
		c.found(KindShards, shard.Domain, "%v", err)
	} else {
		for _, s := range m.Shards {
			shards[string(s.ID)] = true
		}
	}
	type file struct {
		path string
		tags chunk.Tags
	}
	partitions := map[string][]file{}
	for a := range head.Files() {
		date, _ := a.PartitionValues.Get("date")
		owner, _ := a.PartitionValues.Get(shard.Column)
		if len(shards) > 0 && !shards[owner] {
			c.found(KindShards, a.Path, "shard %q is not in the map", owner)
		}
		tags, ok, err := chunk.ParseTags(a.Tags)
		if err != nil || !ok {
			c.found(KindTags, a.Path, "tags are damaged or missing: %v", err)
			continue
		}
		if day, err := series.ParseDate(date); err != nil || !day.Range().Contains(tags.Time.Min) || !day.Range().Contains(tags.Time.Max) {
			c.found(KindPartition, a.Path, "rows from %v to %v lie outside the day %q", tags.Time.Min.Time(), tags.Time.Max.Time(), date)
		}
		key := date + "/" + owner
		for _, o := range partitions[key] {
			if w, both := sharedWAL(tags.WAL, o.tags.WAL); both && tags.Keys.Overlaps(o.tags.Keys) && tags.Time.Overlaps(o.tags.Time) {
				c.found(KindOverlap, a.Path, "holds rows of writer %s from %d to %d, and so does %s", w.Writer, w.First, w.Last, o.path)
			}
		}
		partitions[key] = append(partitions[key], file{a.Path, tags})
	}
	return nil
}

// sharedWAL returns a range of sequences that both lists cover.
func sharedWAL(a, b []chunk.WALRange) (chunk.WALRange, bool) {
	for _, x := range a {
		for _, y := range b {
			if x.Writer == y.Writer && x.First <= y.Last && y.First <= x.Last {
				return chunk.WALRange{Writer: x.Writer, First: max(x.First, y.First), Last: min(x.Last, y.Last)}, true
			}
		}
	}
	return chunk.WALRange{}, false
}
