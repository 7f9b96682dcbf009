package check

import (
	"context"
	"errors"
	"fmt"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/series"
	"cardinalsin/shard"
	"cardinalsin/storage"
	"cardinalsin/txlog"
)

// chunks reads every live file whole. One file is in memory at a time.
func (c *checker) chunks(ctx context.Context, head *txlog.Snapshot) error {
	var owners shard.Map
	if conf, ok := head.Domain(shard.Domain); ok {
		// An invalid map is a finding already; without one, rows are not held
		// against it.
		owners, _ = shard.Parse(conf)
	}
	for a := range head.Files() {
		key, err := c.log.Key(a.Path)
		if err != nil {
			return err
		}
		data, _, err := c.store.Get(ctx, key)
		if errors.Is(err, storage.ErrNotFound) {
			continue // found already
		}
		if err != nil {
			return fmt.Errorf("read chunk: %w", err)
		}
		if err := c.chunk(ctx, a, data, owners); errors.Is(err, errWrong) || errors.Is(err, chunk.ErrCorrupt) {
			c.found(KindChunk, key, "%v", err)
		} else if err != nil {
			return err
		}
	}
	return nil
}

// errWrong: a sound chunk holds something else than its add action says.
var errWrong = errors.New("not what the log says")

func (c *checker) chunk(ctx context.Context, a *action.Add, data []byte, owners shard.Map) error {
	if err := chunk.Verify(data); err != nil {
		return err
	}
	tags, tagged, err := chunk.ParseTags(a.Tags)
	if err != nil || !tagged {
		return nil // found already
	}
	f, err := chunk.Open(ctx, chunk.BytesSource(a.Path, data), int64(len(data)))
	if err != nil {
		return err
	}
	owner, _ := a.PartitionValues.Get(shard.Column)
	var rows int64
	var last *series.Labels
	var lastID series.ID
	for s, err := range f.Select(ctx, series.Selector{Range: series.AllTime}, nil) {
		if err != nil {
			return err
		}
		if id := series.IDOf(s.Labels); s.ID != id {
			return fmt.Errorf("%w: series %s has ID %d, its labels hash to %d", errWrong, s.Labels, s.ID, id)
		}
		if last != nil && series.Compare(*last, s.Labels, lastID, s.ID) >= 0 {
			return fmt.Errorf("%w: series %s is out of order", errWrong, s.Labels)
		}
		labels := s.Labels
		last, lastID = &labels, s.ID
		if len(owners.Shards) > 0 && string(owners.Of(shard.KeyOf(s.Labels, s.ID))) != owner {
			return fmt.Errorf("%w: series %s belongs to another shard than %s", errWrong, s.Labels, owner)
		}
		for i, p := range s.Samples {
			if !tags.Time.Contains(p.Time) {
				return fmt.Errorf("%w: a sample at %v lies outside %v to %v", errWrong, p.Time.Time(), tags.Time.Min.Time(), tags.Time.Max.Time())
			}
			if i > 0 && s.Samples[i-1].Compare(p) >= 0 {
				return fmt.Errorf("%w: samples of %s are out of order", errWrong, s.Labels)
			}
		}
		rows += int64(len(s.Samples))
	}
	stats, ok, err := action.ParseStats(a.Stats)
	switch {
	case err != nil:
		return fmt.Errorf("%w: statistics do not parse: %w", errWrong, err)
	case !ok:
		return fmt.Errorf("%w: it has no statistics", errWrong)
	case stats.NumRecords != rows:
		return fmt.Errorf("%w: %d rows, the statistics say %d", errWrong, rows, stats.NumRecords)
	}
	return nil
}
