package txlog

import (
	"context"
	"fmt"
	"reflect"

	"github.com/tidwall/btree"

	"cardinalsin/action"
	"cardinalsin/checkpoint"
)

// Listing is what the store shows of the log.
type Listing struct {
	Commits     []action.Version // ascending
	Compactions []Compaction     // ascending by first, then last version
	Checkpoints []checkpoint.Ref // complete ones, ascending
	Checksums   []action.Version // ascending
}

// List lists the log. Cost: one listing.
func (l *Log) List(ctx context.Context) (*Listing, error) {
	seg, err := l.list(ctx, -1, latest)
	if err != nil {
		return nil, err
	}
	out := &Listing{Checksums: seg.checksums}
	for _, c := range seg.commits {
		out.Commits = append(out.Commits, c.version)
	}
	for _, c := range seg.compactions {
		out.Compactions = append(out.Compactions, c.Compaction)
	}
	for i := len(seg.checkpoints) - 1; i >= 0; i-- {
		out.Checkpoints = append(out.Checkpoints, seg.checkpoints[i])
	}
	return out, nil
}

// Rebuild builds the snapshot at version v from one given base and nothing
// else: from that checkpoint, or from version 0 if from is nil. It is for
// those who must know that a base is sound – vacuum before it deletes what
// lies below one, check when it compares two – where Snapshot would fall back
// to another. Cost: the checkpoint and each commit after it.
//
// Errors: checkpoint.ErrCorrupt; action.ErrCorrupt, also for a missing commit
// and for a checkpoint beyond v; storage errors.
func (l *Log) Rebuild(ctx context.Context, from *checkpoint.Ref, v action.Version) (*Snapshot, error) {
	var last *Snapshot
	err := l.Walk(ctx, from, v, func(s *Snapshot) error {
		last = s
		return nil
	})
	if err != nil {
		return nil, err
	}
	return last, nil
}

// Walk calls fn with the snapshot of every version from a base to v, both
// inclusive, ascending; base and errors are those of Rebuild. An error of fn
// ends the walk and is returned as it is.
func (l *Log) Walk(ctx context.Context, from *checkpoint.Ref, v action.Version, fn func(*Snapshot) error) error {
	s := emptySnapshot()
	if from != nil {
		if from.Version > v {
			return fmt.Errorf("%w: checkpoint %d lies beyond version %d", action.ErrCorrupt, int64(from.Version), int64(v))
		}
		var err error
		if s, err = l.readCheckpoint(ctx, *from); err != nil {
			return err
		}
		if err := l.readInfo(ctx, s); err != nil {
			return err
		}
		if err := fn(s); err != nil {
			return err
		}
	}
	for s.version < v {
		commits, err := l.readCommits(ctx, s.version+1, min(int(v-s.version), 4*fetchers))
		if err != nil {
			return err
		}
		for _, c := range commits {
			if c == nil {
				return l.missing(s.version + 1)
			}
			next, err := s.apply(s.version+1, c)
			if err != nil {
				return fmt.Errorf("%s: %w", l.CommitKey(s.version+1), err)
			}
			s = next
			if err := fn(s); err != nil {
				return err
			}
		}
	}
	return nil
}

// FirstDifference names the first thing in which two snapshots differ as the
// table's state goes, "" if they are the same: version, protocol, metadata,
// transactions, domains and live files with all that is known of them. What a
// checkpoint does not keep is no difference: tombstones past retention,
// dataChange, the time of the version.
func (s *Snapshot) FirstDifference(o *Snapshot) string {
	switch {
	case s.version != o.version:
		return fmt.Sprintf("version: %d, %d", int64(s.version), int64(o.version))
	case !reflect.DeepEqual(s.protocol, o.protocol):
		return fmt.Sprintf("protocol: %+v, %+v", s.protocol, o.protocol)
	case s.metadata.ID != o.metadata.ID:
		return fmt.Sprintf("table: %s, %s", s.metadata.ID, o.metadata.ID)
	case s.metadata.SchemaString != o.metadata.SchemaString:
		return "schema"
	case !sameMetadata(s.metadata, o.metadata):
		return "metadata"
	}
	if d := diffMaps("transaction", s.txns, o.txns, func(a, b action.SetTransaction) bool { return a == b }); d != "" {
		return d
	}
	if d := diffMaps("domain", s.domains, o.domains, func(a, b string) bool { return a == b }); d != "" {
		return d
	}
	return diffFiles(s, o)
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

// diffFiles walks both sets side by side; what is packed alike is alike, if
// both number partition values alike.
func diffFiles(s, o *Snapshot) string {
	i, j := s.files.tree.Iter(), o.files.tree.Iter()
	defer i.Release()
	defer j.Release()
	valuesI, valuesJ := *s.values.texts.Load(), *o.values.texts.Load()
	var f, g file
	x, y := i.First(), j.First()
	for x || y {
		switch {
		case !y || x && less(i.Item(), j.Item()):
			return fmt.Sprintf("file %q is only in the first", i.Item().key())
		case !x || less(j.Item(), i.Item()):
			return fmt.Sprintf("file %q is only in the second", j.Item().key())
		}
		i.Item().unpack(valuesI, &f)
		j.Item().unpack(valuesJ, &g)
		var a, b action.Add
		f.add(&a)
		g.add(&b)
		if !sameAdd(&a, &b) {
			return fmt.Sprintf("file %q: %+v, %+v", a.Path, a, b)
		}
		x, y = i.Next(), j.Next()
	}
	return ""
}

func diffMaps[V any](what string, a, b *btree.Map[string, V], same func(V, V) bool) (diff string) {
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
