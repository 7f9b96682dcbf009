package compactor

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/series"
	"cardinalsin/shard"
	"cardinalsin/txlog"
)

// Policy says what is worth rewriting. The zero value is the recommended one.
type Policy struct {
	// TargetBytes is the size of file aimed at; larger files are left alone,
	// and the inputs of a job have at most that size together, which also
	// bounds a job's memory. Default 128 MiB.
	TargetBytes int64
	// MinInputs is how many neighbours of one level make a job. Default 4:
	// each sample is rewritten about log4(TargetBytes / flush size) times.
	MinInputs int
	// MaxInputs bounds the files of one job. Default 256.
	MaxInputs int
	// All makes jobs of any two neighbours below the target, whatever their
	// level: as few files as there can be.
	All bool
	// Settle is how old, by the table's own time, a file must be to be merged
	// with another writer's. Default 1 minute. A flush that got its order
	// number before another writer's, and is committed after it, must find
	// its place between the two; it takes milliseconds.
	Settle time.Duration
	// Exclude names files, by path, that are not to be read. They end a run
	// of neighbours like files that are large enough.
	Exclude map[string]bool
}

// EnsureDefaults fills in what is unset.
func (p *Policy) EnsureDefaults() {
	if p.TargetBytes <= 0 {
		p.TargetBytes = 128 << 20
	}
	if p.MinInputs < 2 {
		p.MinInputs = 4
	}
	if p.MaxInputs < 2 {
		p.MaxInputs = 256
	}
	p.MaxInputs = max(p.MaxInputs, p.MinInputs)
	if p.Settle == 0 {
		p.Settle = time.Minute
	}
}

// Job is one rewrite: files of one date and shard that become one.
type Job struct {
	Date   series.Date
	Shard  shard.ID
	Inputs []*action.Add // ascending by rank; do not modify
	Order  chunk.Order   // covers the inputs'
	Level  int           // of the output
	Bytes  int64         // of the inputs

	base *txlog.Snapshot // what the job was planned on
}

// Key names the job's claim: one job at a time works on a date and shard.
func (j *Job) Key() string { return "compact-" + j.Date.String() + "-" + string(j.Shard) }

// Version is that of the snapshot on which the job was planned.
func (j *Job) Version() action.Version { return j.base.Version() }

// Plan chooses what to rewrite, as jobs that do not touch each other, in
// ascending order of date, shard and rank. It is pure; its cost is a look at
// every live file. Running the jobs and planning again on what they leave
// yields no job.
//
// Only neighbours are merged: of a date and shard, files whose order ranges
// follow one another with no other file's in between. A merged file takes the
// rank of its newest input, so if another file stood in between, samples of
// older inputs would begin to win over that one's.
//
// Files without our tags are never an input; a date and shard in which a
// file's tags are damaged is left alone.
func Plan(snap *txlog.Snapshot, policy Policy) []Job {
	policy.EnsureDefaults()
	var jobs []Job
	for _, p := range partitions(snap) {
		for _, u := range p.compact(snap, policy) {
			job := Job{Date: p.date, Shard: p.shard, Order: u.order, Level: u.level, Bytes: u.bytes, base: snap}
			for _, f := range u.files {
				job.Inputs = append(job.Inputs, f.add)
			}
			jobs = append(jobs, job)
		}
	}
	return jobs
}

// file is a live file with its tags.
type file struct {
	add  *action.Add
	tags chunk.Tags
}

// partition is one date and shard.
type partition struct {
	date    series.Date
	shard   shard.ID
	files   []file
	damaged bool
}

// partitions groups the files that have tags, in ascending order.
func partitions(snap *txlog.Snapshot) []*partition {
	byValues := map[action.Object]*partition{}
	var all []*partition
	for a := range snap.Files() {
		p, ok := byValues[a.PartitionValues]
		if !ok {
			p = partitionOf(a)
			byValues[a.PartitionValues] = p
			if p != nil {
				all = append(all, p)
			}
		}
		if p == nil {
			continue
		}
		tags, tagged, err := chunk.ParseTags(a.Tags)
		switch {
		case err != nil:
			p.damaged = true
		case tagged:
			p.files = append(p.files, file{a, tags})
		}
	}
	slices.SortFunc(all, func(a, b *partition) int {
		return cmp.Or(cmp.Compare(a.date, b.date), cmp.Compare(a.shard, b.shard))
	})
	return all
}

// partitionOf reads a file's partition values; nil if they are none of ours.
func partitionOf(a *action.Add) *partition {
	date, ok := a.PartitionValues.Get(chunk.ColumnDate)
	if !ok {
		return nil
	}
	d, err := series.ParseDate(date)
	if err != nil {
		return nil
	}
	id, ok := a.PartitionValues.Get(chunk.ColumnShard)
	if !ok || id == "" {
		return nil
	}
	return &partition{date: d, shard: shard.ID(id)}
}

// unit is what cannot be taken apart: files whose order ranges overlap, or
// the output of a merge that is planned already.
type unit struct {
	files []file // ascending by rank
	order chunk.Order
	level int
	bytes int64
	fixed bool // not to be merged
	// merged tells a planned output from files that are there.
	merged bool
}

// inputs is how many files the unit is before a merge: a planned output counts
// as the one that it will be.
func (u *unit) inputs() int {
	if u.merged {
		return 1
	}
	return len(u.files)
}

// compact returns the units to be merged.
func (p *partition) compact(snap *txlog.Snapshot, policy Policy) []*unit {
	if p.damaged {
		return nil
	}
	units := p.units(snap, policy)
	// A merge may complete a run one level up, and so on: what can be foreseen
	// is merged at once instead of level by level.
	for again := true; again; {
		again = false
		if policy.All {
			units, again = mergeRuns(units, policy, func(*unit) bool { return true }, 2)
			continue
		}
		for level := 0; level <= topLevel(units); level++ {
			var merged bool
			units, merged = mergeRuns(units, policy, func(u *unit) bool { return u.level == level }, policy.MinInputs)
			again = again || merged
		}
	}
	return slices.DeleteFunc(units, func(u *unit) bool { return !u.merged })
}

func topLevel(units []*unit) int {
	top := 0
	for _, u := range units {
		top = max(top, u.level)
	}
	return top
}

// units sorts the files and joins those whose ranges overlap.
func (p *partition) units(snap *txlog.Snapshot, policy Policy) []*unit {
	slices.SortFunc(p.files, func(a, b file) int {
		return cmp.Or(cmp.Compare(a.tags.Order.Lo, b.tags.Order.Lo), cmp.Compare(a.tags.Order.Hi, b.tags.Order.Hi), strings.Compare(a.add.Path, b.add.Path))
	})
	unsettled := int64(1<<63 - 1)
	if severalWriters(p.files) {
		unsettled = snap.Time().Add(-policy.Settle).UnixMicro()
	}
	var out []*unit
	for _, f := range p.files {
		var u *unit
		if n := len(out); n > 0 && f.tags.Order.Lo <= out[n-1].order.Hi {
			u = out[n-1]
			u.order = u.order.Union(f.tags.Order)
		} else {
			u = &unit{order: f.tags.Order}
			out = append(out, u)
		}
		u.files = append(u.files, f)
		u.level = max(u.level, f.tags.Level)
		u.bytes += f.add.Size
		u.fixed = u.fixed || policy.Exclude[f.add.Path] || u.order.Hi > unsettled ||
			u.bytes >= policy.TargetBytes || len(u.files) > policy.MaxInputs
	}
	for _, u := range out {
		sortByRank(u.files)
	}
	return out
}

func sortByRank(files []file) {
	slices.SortFunc(files, func(a, b file) int {
		return cmp.Or(cmp.Compare(a.tags.Order.Hi, b.tags.Order.Hi), strings.Compare(a.add.Path, b.add.Path))
	})
}

func severalWriters(files []file) bool {
	first := ""
	for _, f := range files {
		for _, r := range f.tags.WAL {
			if first == "" {
				first = r.Writer
			}
			if r.Writer != first {
				return true
			}
		}
	}
	return false
}

// mergeRuns cuts the units into runs that may be merged, narrows each run to
// where it begins and ends with a unit that counts, and merges it if enough
// do. Units of a higher level than those that count end a run; those of a
// lower one in between go along. again reports whether anything was merged.
func mergeRuns(units []*unit, policy Policy, counts func(*unit) bool, least int) (out []*unit, again bool) {
	level := -1
	for _, u := range units {
		if counts(u) {
			level = max(level, u.level)
		}
	}
	for i := 0; i < len(units); {
		if units[i].fixed || units[i].level > level || !counts(units[i]) {
			out = append(out, units[i])
			i++
			continue
		}
		last := i
		for j := i; j < len(units) && !units[j].fixed && units[j].level <= level; j++ {
			if counts(units[j]) {
				last = j
			}
		}
		done, merged := mergeRun(units[i:last+1], policy, counts, least)
		out, again = append(out, done...), again || merged
		i = last + 1
	}
	return out, again
}

// mergeRun packs a run into as few outputs as the limits allow. A group is
// merged if enough of its units count, or if it is full.
func mergeRun(run []*unit, policy Policy, counts func(*unit) bool, least int) (out []*unit, merged bool) {
	for len(run) > 0 {
		n, files, total, counted, bytes := 0, 0, 0, 0, int64(0)
		for n < len(run) && (n == 0 || bytes+run[n].bytes <= policy.TargetBytes && files+len(run[n].files) <= policy.MaxInputs) {
			bytes += run[n].bytes
			files += len(run[n].files)
			if counts(run[n]) {
				counted += run[n].inputs()
			}
			total += run[n].inputs()
			n++
		}
		full := n < len(run) && bytes >= policy.TargetBytes/2
		if total >= 2 && (counted >= least || full) {
			out, merged = append(out, join(run[:n])), true
		} else {
			out = append(out, run[:n]...)
		}
		run = run[n:]
	}
	return out, merged
}

func join(units []*unit) *unit {
	m := &unit{order: units[0].order, merged: true}
	for _, u := range units {
		m.files = append(m.files, u.files...)
		m.order = m.order.Union(u.order)
		m.level = max(m.level, u.level)
		m.bytes += u.bytes
	}
	m.level++
	return m
}
