package txlog

import (
	"context"
	"errors"
	"fmt"

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
// Errors: action.ErrCorrupt, also for a missing commit and for a checkpoint
// beyond v; storage errors.
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
