package txlog

import (
	"context"
	"errors"
	"fmt"
	"reflect"

	"github.com/tidwall/btree"

	"cardinalsin/action"
	"cardinalsin/checkpoint"
	"cardinalsin/storage"
)

// Rebuild builds the snapshot at version v from one given base and nothing
// else: from that checkpoint, or from version 0 if from is nil. It is for
// those who must know that a base is sound – vacuum before it deletes what
// lies below one, check when it compares two – where Snapshot would fall back
// to another. Cost: the checkpoint and each commit after it.
//
// Errors: checkpoint.ErrCorrupt; action.ErrCorrupt, also for a missing commit
// and for a checkpoint beyond v; storage errors.
func (l *Log) Rebuild(ctx context.Context, from *checkpoint.Ref, v action.Version) (*Snapshot, error) {
	s := emptySnapshot()
	if from != nil {
		if from.Version > v {
			return nil, fmt.Errorf("%w: checkpoint %d lies beyond version %d", action.ErrCorrupt, int64(from.Version), int64(v))
		}
		var err error
		if s, err = l.readCheckpoint(ctx, *from); err != nil {
			return nil, err
		}
	}
	seg := &segment{commits: make([]action.Version, 0, v-s.version)}
	for u := s.version + 1; u <= v; u++ {
		seg.commits = append(seg.commits, u)
	}
	s, err := l.replayTail(ctx, s, seg, v)
	if errors.Is(err, storage.ErrNotFound) {
		return nil, fmt.Errorf("%w: commit is missing: %w", action.ErrCorrupt, err)
	}
	return s, err
}

// Diff names the first thing in which two snapshots differ as the table's
// state goes, "" if they are the same: version, protocol, metadata,
// transactions, domains and live files with all that is known of them. What a
// checkpoint does not keep is no difference: tombstones past retention,
// dataChange, the time of the version.
func (s *Snapshot) Diff(o *Snapshot) string {
	switch {
	case s.version != o.version:
		return fmt.Sprintf("version: %d, %d", int64(s.version), int64(o.version))
	case !reflect.DeepEqual(s.protocol, o.protocol):
		return fmt.Sprintf("protocol: %+v, %+v", s.protocol, o.protocol)
	case !sameMetadata(s.metadata, o.metadata):
		return fmt.Sprintf("metadata: %+v, %+v", s.metadata, o.metadata)
	}
	if d := diffTrees("transaction", s.txns, o.txns, func(a, b action.SetTransaction) bool { return a == b }); d != "" {
		return d
	}
	if d := diffTrees("domain", s.domains, o.domains, func(a, b string) bool { return a == b }); d != "" {
		return d
	}
	return diffTrees("file", s.files, o.files, sameAdd)
}

func sameMetadata(a, b *action.Metadata) bool {
	x, y := *a, *b
	if len(x.Configuration) == 0 && len(y.Configuration) == 0 {
		x.Configuration, y.Configuration = nil, nil
	}
	if len(x.Format.Options) == 0 && len(y.Format.Options) == 0 {
		x.Format.Options, y.Format.Options = nil, nil
	}
	if len(x.PartitionColumns) == 0 && len(y.PartitionColumns) == 0 {
		x.PartitionColumns, y.PartitionColumns = nil, nil
	}
	return reflect.DeepEqual(x, y)
}

func sameAdd(a, b *action.Add) bool {
	x, y := *a, *b
	if !sameObject(x.PartitionValues, y.PartitionValues) || !sameObject(x.Tags, y.Tags) {
		return false
	}
	x.PartitionValues, x.Tags, x.DataChange = y.PartitionValues, y.Tags, y.DataChange
	return reflect.DeepEqual(x, y)
}

// sameObject compares the members: another engine's text may have spaces.
func sameObject(a, b action.Object) bool {
	if a == b {
		return true
	}
	x, errX := a.Map()
	y, errY := b.Map()
	return errX == nil && errY == nil && reflect.DeepEqual(x, y)
}

func diffTrees[V any](what string, a, b *btree.Map[string, V], same func(V, V) bool) (diff string) {
	i, j := a.Iter(), b.Iter()
	x, y := i.First(), j.First()
	for x || y {
		switch {
		case !y || x && i.Key() < j.Key():
			return fmt.Sprintf("%s %q is only in the first", what, i.Key())
		case !x || j.Key() < i.Key():
			return fmt.Sprintf("%s %q is only in the second", what, j.Key())
		case !same(i.Value(), j.Value()):
			return fmt.Sprintf("%s %q: %+v, %+v", what, i.Key(), i.Value(), j.Value())
		}
		x, y = i.Next(), j.Next()
	}
	return ""
}
