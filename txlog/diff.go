package txlog

import (
	"iter"

	"cardinalsin/action"
)

// FileChanges is what leads from one version's files to another's, each in
// ascending order of the paths.
type FileChanges struct {
	Added, Removed []*action.Add // do not modify
}

// CompareFiles returns the files that to has and from lacks, and the other way
// round; to may be the earlier version. A file with another deletion vector is
// another file. It is pure; its cost is a look at both sets of files.
func CompareFiles(from, to *Snapshot) FileChanges {
	var c FileChanges
	if from == to {
		return c
	}
	next, stop := iter.Pull(to.Files())
	defer stop()
	b, more := next()
	for a := range from.Files() {
		key, order := canonicalKey(a.Key()), -1
		for more {
			if order = compareKey(canonicalKey(b.Key()), key); order >= 0 {
				break
			}
			c.Added = append(c.Added, b)
			b, more = next()
		}
		if more && order == 0 {
			b, more = next()
			continue
		}
		c.Removed = append(c.Removed, a)
	}
	for ; more; b, more = next() {
		c.Added = append(c.Added, b)
	}
	return c
}

// Rows is the number of rows that a file contributes: its records less those
// that its deletion vector hides. ok is false where the file has no usable
// statistics.
func Rows(a *action.Add) (rows int64, ok bool) {
	stats, ok, err := action.ParseStats(a.Stats)
	if err != nil || !ok {
		return 0, false
	}
	rows = stats.NumRecords
	if a.DeletionVector != nil {
		rows -= a.DeletionVector.Cardinality
	}
	return rows, rows >= 0
}

// FileTotals sums up files.
type FileTotals struct {
	Files   int
	Bytes   int64
	Rows    int64
	Unknown int // files without statistics: their rows are not in Rows
}

// TotalOf sums up files.
func TotalOf(files []*action.Add) FileTotals {
	t := FileTotals{Files: len(files)}
	for _, a := range files {
		t.Bytes += a.Size
		if rows, ok := Rows(a); ok {
			t.Rows += rows
		} else {
			t.Unknown++
		}
	}
	return t
}
