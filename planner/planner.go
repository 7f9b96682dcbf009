// Package planner decides which data files a query must read: data skipping.
//
// It stands on layer 4, above txlog. A snapshot and a selector go in, a list of
// files comes out, with the reason for every file that is left out. It reads no
// file and no clock; what a [Planner] remembers changes its cost and nothing
// else.
//
// Skipping is three-valued. A fact about a file (a bound, a partition value, a
// null count) answers "may a row of this file be selected?" with yes, no or
// unknown, and only a certain no skips the file. A fact that is missing, that
// does not parse or that contradicts itself is unknown. Facts are only used
// for tables in the layout of package chunk; in any other table all files are
// kept.
//
// INVARIANT: a file that holds a selected sample is in the scan.
package planner

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/internal/lru"
	"cardinalsin/internal/merge"
	"cardinalsin/series"
	"cardinalsin/shard"
	"cardinalsin/txlog"
)

// Reason says why a file is skipped. A file that several reasons exclude
// counts for the first of them in the order of [Reasons].
type Reason string

// The reasons.
const (
	ReasonDate       Reason = "date"        // the day of its partition
	ReasonShard      Reason = "shard"       // no wanted metric belongs to its shard
	ReasonTime       Reason = "time"        // the range of its timestamps
	ReasonMetricName Reason = "metric_name" // the range of its metric names
	ReasonLabel      Reason = "label"       // the range of a label's values
	ReasonIndex      Reason = "index"       // the index: no selected series is in it
)

// Reasons lists them in the order in which they are tried: cheapest first. Plan
// itself knows nothing of the index; readers skip by it.
var Reasons = []Reason{ReasonDate, ReasonShard, ReasonTime, ReasonMetricName, ReasonLabel, ReasonIndex}

// Scan is what a query reads.
type Scan struct {
	// Version is that of the snapshot.
	Version action.Version
	// Files ascend by Rank: what a later file says about an instant of a
	// series outranks what an earlier one says.
	Files []File
	// Skipped counts the files left out; only reasons that occurred are in it.
	Skipped map[Reason]int
	// SkippedBytes is their size.
	SkippedBytes map[Reason]int64
}

// Bytes is the size of all files of the scan.
func (s *Scan) Bytes() int64 {
	var n int64
	for i := range s.Files {
		n += s.Files[i].Add.Size
	}
	return n
}

// File is one file to read.
type File struct {
	Add *action.Add // do not modify
	// Tags are our facts about the file, valid where Tagged is true: files of
	// other engines have none.
	Tags   chunk.Tags
	Tagged bool
}

// Rank is the file's strength in a merge. A file without tags is weaker than
// all that have them.
func (f *File) Rank() merge.Rank { return merge.Rank{Order: f.Tags.Order.Hi, Tie: f.Add.Path} }

// Planner plans over the snapshots of one table, and remembers what it parsed:
// the log says what it knows of a file as JSON. It may be used concurrently.
// The zero value is ready and remembers no file.
type Planner struct {
	table atomic.Pointer[tableFacts]
	files *lru.Cache[string, *fileFacts] // by path
}

// New returns a planner that remembers as much about files as takes so many
// bytes, by estimate.
func New(bytes int64) *Planner { return &Planner{files: lru.New[string, *fileFacts](bytes)} }

// Plan chooses the files that may hold what sel selects. It costs CPU in
// proportion to the live files. An error wraps chunk.ErrTags and names the
// file: tags that are damaged would make a wrong merge, so a file that is not
// skipped by other facts must not have them.
func (p *Planner) Plan(snap *txlog.Snapshot, sel series.Selector) (Scan, error) {
	q := newQuery(p.tableOf(snap), sel)
	scan := Scan{Version: snap.Version(), Skipped: map[Reason]int{}, SkippedBytes: map[Reason]int64{}}
	var at place
	for add := range snap.Files() {
		if !at.parsed || at.values != add.PartitionValues {
			at = placeOf(add.PartitionValues)
		}
		reason, skip := q.excludesPlace(&at)
		var f *fileFacts
		if !skip {
			f = p.factsOf(add)
			reason, skip = q.excludes(f)
		}
		if skip {
			scan.Skipped[reason]++
			scan.SkippedBytes[reason] += add.Size
			continue
		}
		tags, tagged, err := f.tags()
		if err != nil {
			return Scan{}, fmt.Errorf("plan version %d: file %s: %w", int64(snap.Version()), add.Path, err)
		}
		scan.Files = append(scan.Files, File{Add: add, Tags: tags, Tagged: tagged})
	}
	slices.SortFunc(scan.Files, func(a, b File) int { return a.Rank().Compare(b.Rank()) })
	return scan, nil
}

// tableOf returns what the table's metadata says, which is nearly always what
// it said the last time.
func (p *Planner) tableOf(snap *txlog.Snapshot) *tableFacts {
	shards, _ := snap.Domain(shard.Domain)
	t := p.table.Load()
	if t == nil || t.metadata != snap.Metadata() || t.shardText != shards {
		t = newTableFacts(snap, shards)
		p.table.Store(t)
	}
	return t
}

// factsOf returns what the log says about a file.
func (p *Planner) factsOf(add *action.Add) *fileFacts {
	if p.files == nil {
		return newFileFacts(add)
	}
	if f, ok := p.files.Get(add.Path); ok {
		if f.of(add) {
			return f
		}
		p.files.Drop(add.Path) // another commit says something else
	}
	f := newFileFacts(add)
	p.files.Put(strings.Clone(add.Path), f, f.size())
	return f
}
