package check

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/series"
	"cardinalsin/shard"
	"cardinalsin/storage"
	"cardinalsin/txlog"
)

// chunks reads every live file whole, Parallel at a time.
func (c *checker) chunks(ctx context.Context, head *txlog.Snapshot) error {
	var owners shard.Map
	if conf, ok := head.Domain(shard.Domain); ok {
		// An invalid map is a finding already; without one, rows are not held
		// against it.
		owners, _ = shard.Parse(conf)
	}
	layout, err := chunk.LayoutOf(head.Schema())
	if err != nil {
		c.found(KindChunk, c.log.Root(), "the schema: %v", err)
		return nil
	}
	batch := make([]*action.Add, 0, c.opts.Parallel)
	flush := func() error {
		wrong := make([]error, len(batch))
		g, gctx := errgroup.WithContext(ctx)
		for i, a := range batch {
			g.Go(func() (err error) {
				wrong[i], err = c.read(gctx, a, owners, layout)
				return err
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
		for i, a := range batch {
			if wrong[i] != nil {
				c.found(KindChunk, c.log.Root()+"/"+a.Path, "%v", wrong[i])
			}
		}
		batch = batch[:0]
		return nil
	}
	for a := range head.Files() {
		if batch = append(batch, a); len(batch) == c.opts.Parallel {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

// read returns what is wrong with one file.
func (c *checker) read(ctx context.Context, a *action.Add, owners shard.Map, layout *chunk.Layout) (wrong, err error) {
	key, ok := c.key(a)
	if !ok {
		return nil, nil // found already
	}
	data, _, err := c.store.Get(ctx, key)
	if errors.Is(err, storage.ErrNotFound) {
		return nil, nil // found already, or gone since the check began
	}
	if err != nil {
		return nil, fmt.Errorf("read chunk: %w", err)
	}
	err = verify(ctx, a, data, owners, layout)
	if errors.Is(err, errWrong) || isDamage(err) {
		return err, nil
	}
	return nil, err
}

// errWrong: a sound chunk holds something else than its add action says.
var errWrong = errors.New("not what the log says")

// verify decodes one file and holds every row against the add action.
func verify(ctx context.Context, a *action.Add, data []byte, owners shard.Map, layout *chunk.Layout) error {
	if err := chunk.Verify(data); err != nil {
		return err
	}
	tags, isTagged, err := chunk.ParseTags(a.Tags)
	if err != nil || !isTagged {
		return nil // found already
	}
	f, err := chunk.Open(ctx, chunk.BytesSource(a.Path, data), int64(len(data)))
	if err != nil {
		return err
	}
	owner, _ := a.PartitionValues.Get(chunk.ColumnShard)
	counted := newCounter(layout, f)
	var last chunk.Series
	for s, err := range f.Select(ctx, series.Selector{Range: series.AllTime}, nil) {
		if err != nil {
			return err
		}
		if id := series.IDOf(s.Labels); s.ID != id {
			return fmt.Errorf("%w: series %s has ID %d, its labels hash to %d", errWrong, s.Labels, s.ID, id)
		}
		if counted.rows > 0 && last.Compare(&s) >= 0 {
			return fmt.Errorf("%w: series %s is out of order", errWrong, s.Labels)
		}
		last = s
		if !within(tags.Keys, s) {
			return fmt.Errorf("%w: series %s lies outside the bounds of its tags", errWrong, s.Labels)
		}
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
		counted.add(s)
	}
	stats, ok, err := action.ParseStats(a.Stats)
	switch {
	case err != nil:
		return fmt.Errorf("%w: statistics do not parse: %w", errWrong, err)
	case !ok:
		return fmt.Errorf("%w: it has no statistics", errWrong)
	}
	return counted.compare(stats)
}

// within reports whether a series lies in the bounds of the tags.
func within(k chunk.KeyRange, s chunk.Series) bool {
	name := s.Labels.Get(series.MetricName)
	if name < k.MinName || name == k.MinName && s.ID < k.MinID {
		return false
	}
	return !k.Bounded || name < k.MaxName || name == k.MaxName && s.ID <= k.MaxID
}
