package check

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/series"
	"cardinalsin/shard"
	"cardinalsin/txlog"
)

// objects compares the live files with a listing of the store.
func (c *checker) objects(ctx context.Context, head *txlog.Snapshot) error {
	sizes := make(map[string]int64, head.NumFiles())
	for a := range head.Files() {
		if key, ok := c.key(a); ok {
			sizes[key] = -1
		}
	}
	prefix := c.log.Root() + "/"
	after := ""
	for again := true; again; {
		again = false
		for o, err := range c.store.List(ctx, prefix, after) {
			if err != nil {
				return fmt.Errorf("list the table: %w", err)
			}
			if strings.HasPrefix(o.Key, prefix+"_") && after == "" {
				// The log is longer than all the data; leap over it.
				after, again = prefix+"_\U0010FFFF", true
				break
			}
			if _, wanted := sizes[o.Key]; wanted {
				sizes[o.Key] = o.Size
			}
		}
	}
	for a := range head.Files() {
		key, err := c.log.Key(a.Path)
		if err != nil {
			c.found(KindPartition, a.Path, "%v", err)
			continue
		}
		switch size := sizes[key]; size {
		case a.Size:
		case -1:
			live, err := c.live(ctx, a)
			if err != nil {
				return err
			}
			if live {
				c.found(KindMissing, key, "live in version %d, and not in the store", int64(head.Version()))
			}
		default:
			c.found(KindSize, key, "has %d bytes, the log says %d", size, a.Size)
		}
	}
	return nil
}

// key is a file's key in the store; ok is false for a path outside the table.
func (c *checker) key(a *action.Add) (key string, ok bool) {
	key, err := c.log.Key(a.Path)
	return key, err == nil
}

// tagged is a file with its parsed tags.
type tagged struct {
	path string
	tags chunk.Tags
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
	partitions := map[action.Object][]tagged{}
	var order []action.Object
	for a := range head.Files() {
		owner, _ := a.PartitionValues.Get(chunk.ColumnShard)
		if len(shards) > 0 && !shards[owner] {
			c.found(KindShards, a.Path, "shard %q is not in the map", owner)
		}
		date, _ := a.PartitionValues.Get(chunk.ColumnDate)
		if dir := fmt.Sprintf("%s=%s/%s=%s/", chunk.ColumnDate, date, chunk.ColumnShard, owner); !strings.HasPrefix(a.Path, dir) {
			c.found(KindPartition, a.Path, "its partition values are those of %s", dir)
		}
		tags, ok, err := chunk.ParseTags(a.Tags)
		switch {
		case err != nil:
			c.found(KindTags, a.Path, "%v", err)
			continue
		case !ok:
			c.found(KindTags, a.Path, "it has no tags")
			continue
		}
		if day, err := series.ParseDate(date); err != nil || !day.Range().Contains(tags.Time.Min) || !day.Range().Contains(tags.Time.Max) {
			c.found(KindPartition, a.Path, "rows from %v to %v lie outside the day %q", tags.Time.Min.Time(), tags.Time.Max.Time(), date)
		}
		if _, seen := partitions[a.PartitionValues]; !seen {
			order = append(order, a.PartitionValues)
		}
		partitions[a.PartitionValues] = append(partitions[a.PartitionValues], tagged{a.Path, tags})
	}
	for _, p := range order {
		c.overlaps(partitions[p])
	}
	return nil
}

// overlaps finds files of one date and shard that hold rows of the same WAL
// records: those were committed twice, unless time or series tell them apart.
// Ranges are swept in order, so that the cost follows what overlaps.
func (c *checker) overlaps(files []tagged) {
	type span struct {
		chunk.WALRange
		file int
	}
	byWriter := map[string][]span{}
	for i, f := range files {
		for _, r := range f.tags.WAL {
			byWriter[r.Writer] = append(byWriter[r.Writer], span{r, i})
		}
	}
	said := map[[2]int]bool{}
	for _, w := range slices.Sorted(keys(byWriter)) {
		spans := byWriter[w]
		slices.SortFunc(spans, func(a, b span) int { return cmp.Or(cmp.Compare(a.First, b.First), cmp.Compare(a.file, b.file)) })
		var open []span
		for _, s := range spans {
			open = slices.DeleteFunc(open, func(o span) bool { return o.Last < s.First })
			for _, o := range open {
				i, j := min(s.file, o.file), max(s.file, o.file)
				a, b := files[i], files[j]
				if i == j || said[[2]int{i, j}] || !a.tags.Keys.Overlaps(b.tags.Keys) || !a.tags.Time.Overlaps(b.tags.Time) {
					continue
				}
				said[[2]int{i, j}] = true
				c.found(KindOverlap, b.path, "holds rows of writer %s from %d to %d, and so does %s", w, s.First, min(s.Last, o.Last), a.path)
			}
			open = append(open, s)
		}
	}
}

func keys[V any](m map[string]V) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}
