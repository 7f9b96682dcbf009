package txlog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"cardinalsin/action"
	"cardinalsin/storage"
)

// Compaction names a log compaction: one object that stands for the commits
// from First to Last, both inclusive (PROTOCOL.md, "Log Compaction Files").
// It is derived: where it is missing or damaged, the commits are read.
type Compaction struct{ First, Last action.Version }

const compactedSuffix = ".compacted.json"

// parseCompaction takes a name below the log's directory apart; ok is false
// for what stands for less than two versions.
func parseCompaction(name string) (c Compaction, ok bool) {
	if len(name) != 41+len(compactedSuffix) || name[20] != '.' || name[41:] != compactedSuffix {
		return c, false
	}
	var a, b bool
	c.First, a = action.ParseVersion(name[:20])
	c.Last, b = action.ParseVersion(name[21:41])
	return c, a && b && c.First < c.Last
}

// CompactionKey is the key of a log compaction.
func (l *Log) CompactionKey(c Compaction) string {
	return l.Dir() + "/" + c.First.String() + "." + c.Last.String() + compactedSuffix
}

// maxCompactBytes bounds the commits that are reconciled in memory; a range
// with more than that is little better off as one object.
const maxCompactBytes = 64 << 20

// writeCompaction writes the compaction of a range whose commits are all
// there. Cost: a GET a commit and a put-if-absent: whoever comes second finds
// the work done.
func (l *Log) writeCompaction(ctx context.Context, r Compaction) error {
	c, ok, err := l.compact(ctx, r)
	if err != nil {
		return fmt.Errorf("compact the log from %d to %d: %w", int64(r.First), int64(r.Last), err)
	}
	if !ok {
		return nil
	}
	data, err := c.Encode()
	if err != nil {
		return fmt.Errorf("compact the log from %d to %d: %w", int64(r.First), int64(r.Last), err)
	}
	_, err = l.store.PutIfAbsent(ctx, l.CompactionKey(r), data)
	if err != nil && !errors.Is(err, storage.ErrAlreadyExists) {
		return fmt.Errorf("write log compaction from %d to %d: %w", int64(r.First), int64(r.Last), err)
	}
	return nil
}

// compact reconciles the commits of a range; ok is false for one that is
// better not compacted.
func (l *Log) compact(ctx context.Context, r Compaction) (c *action.Commit, ok bool, err error) {
	rec := newReconciler()
	size := 0
	for v := r.First; v <= r.Last; v++ {
		data, _, err := l.store.Get(ctx, l.CommitKey(v))
		if err != nil {
			return nil, false, fmt.Errorf("read commit: %w", err)
		}
		if size += len(data); size > maxCompactBytes {
			return nil, false, nil
		}
		c, err := action.Decode(data)
		if err != nil {
			return nil, false, fmt.Errorf("read commit %s: %w", l.CommitKey(v), err)
		}
		rec.apply(c)
	}
	// A vacuum settles tombstones while its domain is set. One that is set
	// and taken away inside the range would leave no trace in the result.
	if d, ok := rec.domains[VacuumDomain]; ok && d.Removed {
		return nil, false, nil
	}
	return rec.commit(), true, nil
}

// reconciler reduces commits to the actions that matter to who replays them
// all: the last one of each key. Removes stay, since the file may have been
// live before, and so do domains that were removed.
type reconciler struct {
	protocol *action.Protocol
	metadata *action.Metadata
	txns     map[string]action.SetTransaction
	domains  map[string]action.DomainMetadata
	adds     map[action.Key]*action.Add
	removes  map[action.Key]*action.Remove
}

func newReconciler() *reconciler {
	return &reconciler{
		txns: map[string]action.SetTransaction{}, domains: map[string]action.DomainMetadata{},
		adds: map[action.Key]*action.Add{}, removes: map[action.Key]*action.Remove{},
	}
}

func canonicalKey(k action.Key) action.Key {
	k.Path, _ = canonicalPath(k.Path)
	return k
}

func (r *reconciler) apply(c *action.Commit) {
	r.protocol = cmp.Or(c.Protocol, r.protocol)
	r.metadata = cmp.Or(c.Metadata, r.metadata)
	for _, t := range c.Txns {
		r.txns[t.AppID] = t
	}
	for _, d := range c.Domains {
		r.domains[d.Domain] = d
	}
	for i := range c.Removes {
		k := canonicalKey(c.Removes[i].Key())
		delete(r.adds, k)
		r.removes[k] = &c.Removes[i]
	}
	for i := range c.Adds {
		k := canonicalKey(c.Adds[i].Key())
		delete(r.removes, k)
		r.adds[k] = &c.Adds[i]
	}
}

func compareKey(a, b action.Key) int {
	return cmp.Or(strings.Compare(a.Path, b.Path), strings.Compare(a.DV, b.DV))
}

// commit returns what is left, in one order, whoever makes it.
func (r *reconciler) commit() *action.Commit {
	c := &action.Commit{Protocol: r.protocol, Metadata: r.metadata}
	for _, k := range slices.Sorted(maps.Keys(r.txns)) {
		c.Txns = append(c.Txns, r.txns[k])
	}
	for _, k := range slices.Sorted(maps.Keys(r.domains)) {
		c.Domains = append(c.Domains, r.domains[k])
	}
	for _, k := range slices.SortedFunc(maps.Keys(r.removes), compareKey) {
		c.Removes = append(c.Removes, *r.removes[k])
	}
	for _, k := range slices.SortedFunc(maps.Keys(r.adds), compareKey) {
		c.Adds = append(c.Adds, *r.adds[k])
	}
	return c
}

// readCompaction reads a compaction that is to be replayed. Errors:
// storage.ErrNotFound, action.ErrCorrupt naming the object.
func (l *Log) readCompaction(ctx context.Context, values *valueTable, r Compaction) (*entry, error) {
	e, err := l.readEntry(ctx, values, l.CompactionKey(r))
	if err != nil {
		return nil, err
	}
	// Some hold the actions of all their commits: what came last cannot be
	// told, since the order of actions has no meaning.
	all := append(slices.Clone(e.adds), e.removes...)
	sortPacked(all)
	for i := 1; i < len(all); i++ {
		if !less(all[i-1], all[i]) {
			return nil, fmt.Errorf("%w: log compaction %s is not reconciled: two actions of %.200q", action.ErrCorrupt, l.CompactionKey(r), all[i].key())
		}
	}
	return e, nil
}

// ReplayCompaction returns the snapshot at a compaction's last version as it
// follows from the compaction alone; base is the snapshot just before its
// first, nil for none. It is for those who compare it with the commits. The
// snapshot has no time. Errors: action.ErrCorrupt naming the object; storage
// errors.
func (l *Log) ReplayCompaction(ctx context.Context, base *Snapshot, r Compaction) (*Snapshot, error) {
	s := emptySnapshot()
	if base != nil {
		s = base.clone()
	}
	if s.version+1 != r.First {
		return nil, fmt.Errorf("%w: %s cannot follow version %d", action.ErrCorrupt, l.CompactionKey(r), int64(s.version))
	}
	e, err := l.readCompaction(ctx, s.values, r)
	if err != nil {
		return nil, err
	}
	s.version, s.ict, s.txnID = r.Last, 0, ""
	s.replay(e)
	if err := s.finish(); err != nil {
		return nil, fmt.Errorf("%s: %w", l.CompactionKey(r), err)
	}
	return s, nil
}
