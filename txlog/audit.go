package txlog

import (
	"context"
	"fmt"

	"cardinalsin/action"
)

// Checkpoints lists the versions that have a complete checkpoint, ascending.
// Cost: one listing.
func (l *Log) Checkpoints(ctx context.Context) ([]action.Version, error) {
	seg, err := l.list(ctx, -1, latest)
	if err != nil {
		return nil, err
	}
	var out []action.Version
	for i := len(seg.checkpoints) - 1; i >= 0; i-- {
		if v := seg.checkpoints[i].Version; len(out) == 0 || out[len(out)-1] != v {
			out = append(out, v)
		}
	}
	return out, nil
}

// FromCheckpoint builds the snapshot at version from that checkpoint alone,
// for comparison with a replay. Errors: checkpoint.ErrCorrupt.
func (l *Log) FromCheckpoint(ctx context.Context, version action.Version) (*Snapshot, error) {
	seg, err := l.list(ctx, version-1, version)
	if err != nil {
		return nil, err
	}
	if len(seg.checkpoints) == 0 {
		return nil, fmt.Errorf("checkpoint %d: %w", int64(version), ErrVersionNotFound)
	}
	return l.readCheckpoint(ctx, seg.checkpoints[0])
}

// Walk calls fn with the snapshot of every version that the log can rebuild by
// replay, ascending, starting from version 0 or, where its commit is gone,
// from the oldest checkpoint. It reads no other checkpoint. A missing commit
// is an error that wraps action.ErrCorrupt; an error of fn ends the walk. Cost:
// one listing and one GET a version.
func (l *Log) Walk(ctx context.Context, fn func(*Snapshot) error) error {
	seg, err := l.list(ctx, -1, latest)
	if err != nil {
		return err
	}
	last := seg.last()
	if last < 0 {
		return fmt.Errorf("%s: %w", l.Dir(), ErrNotTable)
	}
	s := emptySnapshot()
	if !seg.has(0) {
		if len(seg.checkpoints) == 0 {
			return fmt.Errorf("%w: commit %s is missing", action.ErrCorrupt, l.CommitKey(0))
		}
		if s, err = l.readCheckpoint(ctx, seg.checkpoints[len(seg.checkpoints)-1]); err != nil {
			return err
		}
		if err := fn(s); err != nil {
			return err
		}
	}
	for s.version < last {
		if s, err = l.replayTail(ctx, s, seg, s.version+1); err != nil {
			return err
		}
		if err := fn(s); err != nil {
			return err
		}
	}
	return nil
}
