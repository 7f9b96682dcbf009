package sqlengine

import (
	"slices"

	"cardinalsin/chunk"
	"cardinalsin/planner"
	"cardinalsin/series"
)

// contested says where files may hold the same observation twice: two files
// of one shard whose exact time ranges and key ranges intersect, or a file
// and the head. Everywhere else rows are read as they are.
type contested struct {
	files     []int // places in the scan, ascending
	intervals []series.TimeRange
	// The same for files against the head.
	headFiles     []int
	headIntervals []series.TimeRange
}

// maxIntervals bounds how long a condition on times gets. Fewer, wider
// intervals cost time, never rows.
const maxIntervals = 32

// maxOverlaps bounds the comparisons of key ranges that one file costs; after
// that its keys are taken to overlap, which costs time, never rows.
const maxOverlaps = 256

// findContested looks for overlaps. head is the range of the head's samples,
// ok whether it has any.
func findContested(files []planner.File, head series.TimeRange, hasHead bool) contested {
	var c contested
	byShard := map[string][]int{}
	var shards []string
	for i := range files {
		f := &files[i]
		span := fileRange(f)
		if hasHead && span.Overlaps(head) {
			c.headFiles = append(c.headFiles, i)
			c.headIntervals = append(c.headIntervals, intersect(span, head))
		}
		shard, ok := f.Add.PartitionValues.Get(chunk.ColumnShard)
		if !ok || !f.Tagged {
			shard = "" // may overlap anything: compared with all
		}
		if _, seen := byShard[shard]; !seen {
			shards = append(shards, shard)
		}
		byShard[shard] = append(byShard[shard], i)
	}
	marked := make([]bool, len(files))
	slices.Sort(shards)
	for _, shard := range shards {
		group := byShard[shard]
		if shard != "" {
			group = append(slices.Clone(group), byShard[""]...)
		}
		c.intervals = append(c.intervals, sweep(files, group, marked)...)
	}
	for i, m := range marked {
		if m {
			c.files = append(c.files, i)
		}
	}
	c.intervals = join(c.intervals)
	c.headIntervals = join(c.headIntervals)
	return c
}

// sweep finds the overlaps within one shard and marks the files.
func sweep(files []planner.File, group []int, marked []bool) []series.TimeRange {
	group = slices.Clone(group)
	slices.SortFunc(group, func(a, b int) int {
		x, y := fileRange(&files[a]), fileRange(&files[b])
		switch {
		case x.Min < y.Min:
			return -1
		case x.Min > y.Min:
			return 1
		}
		return a - b
	})
	var found []series.TimeRange
	var open []int // files whose range reaches the current one's start
	for _, i := range group {
		span := fileRange(&files[i])
		open = slices.DeleteFunc(open, func(j int) bool { return fileRange(&files[j]).Max < span.Min })
		for n, j := range open {
			if n < maxOverlaps && files[i].Tagged && files[j].Tagged && !files[i].Tags.Keys.Overlaps(files[j].Tags.Keys) {
				continue
			}
			marked[i], marked[j] = true, true
			found = append(found, intersect(span, fileRange(&files[j])))
		}
		open = append(open, i)
		if len(found) > 4*maxIntervals {
			found = join(found)
		}
	}
	return found
}

// fileRange is the exact range of a file's timestamps, all time if unknown.
func fileRange(f *planner.File) series.TimeRange {
	if !f.Tagged {
		return series.AllTime
	}
	return f.Tags.Time
}

func intersect(a, b series.TimeRange) series.TimeRange {
	return series.TimeRange{Min: max(a.Min, b.Min), Max: min(a.Max, b.Max)}
}

// join sorts intervals, merges those that touch, and then the nearest ones
// until few are left. It reuses the slice.
func join(in []series.TimeRange) []series.TimeRange {
	if len(in) == 0 {
		return nil
	}
	slices.SortFunc(in, func(a, b series.TimeRange) int {
		switch {
		case a.Min < b.Min:
			return -1
		case a.Min > b.Min:
			return 1
		}
		return 0
	})
	out := in[:1]
	for _, r := range in[1:] {
		last := &out[len(out)-1]
		if r.Min <= last.Max || r.Min == last.Max+1 {
			last.Max = max(last.Max, r.Max)
			continue
		}
		out = append(out, r)
	}
	if len(out) <= maxIntervals {
		return out
	}
	gaps := make([]int, len(out)-1) // places of the gaps, widest first
	for i := range gaps {
		gaps[i] = i
	}
	slices.SortFunc(gaps, func(a, b int) int {
		x, y := out[a+1].Min-out[a].Max, out[b+1].Min-out[b].Max
		switch {
		case x > y:
			return -1
		case x < y:
			return 1
		}
		return a - b
	})
	keep := make([]bool, len(out)-1)
	for _, g := range gaps[:maxIntervals-1] {
		keep[g] = true
	}
	wide := []series.TimeRange{out[0]}
	for i, r := range out[1:] {
		if keep[i] {
			wide = append(wide, r)
		} else {
			wide[len(wide)-1].Max = r.Max
		}
	}
	return wide
}
