// Package symbols keeps texts and label sets as small numbers.
//
// A [Dictionary] gives texts codes. A [Table] gives each label name a column
// and each value a code in it, so that a label set is its shape – which columns
// it has – and four bytes a label. A [Batch] is the label sets of one request on
// their way there. It stands below wal, the writer's head and chunk, which keep
// and write series so, without looking at their texts again.
//
// INVARIANT: of one column, equal texts have one code and different texts have
// different codes; what was added once is never moved or changed, so a [View]
// may be read without a lock for ever.
//
// It must never do I/O, and never forget one set alone: a table is dropped
// whole.
package symbols

import (
	"encoding/binary"

	"cardinalsin/series"
)

// Table keeps label sets. The zero value is empty and ready. It needs a lock
// around all calls; a View does not.
type Table struct {
	columns []column
	byName  map[string]int32
	shapes  [][]int32 // the columns of the labels, in their order
	byShape map[string]int32
	blocks  [][]int32 // codes of sets; a set never crosses a block
	bytes   int64

	// The batch that Bind has named, and where its labels are here.
	batch *Batch
	found []entry
	// The shape of the set that was added last, which the next has most of
	// the time, and scratch for its columns.
	last    int32
	scratch []int32
}

// entry is where a label of the bound batch is in the table.
type entry struct {
	column int32 // one more, so that zero is not looked up yet
	code   int32
}

// column is one label name and its values.
type column struct {
	name   string
	values Dictionary
}

// Set is a label set of a table.
type Set struct {
	shape int32
	at    uint32 // block, then the place in it
}

const (
	blockCodes = 1 << 14
	// maxBlocks bounds the blocks of a table, 64 KiB each.
	maxBlocks = 1 << 18

	columnBytes = 192 // of a column, with its entry in byName
	shapeBytes  = 96  // of a shape, with its entry in byShape, beside 8 a label
	codeBytes   = 4
)

// Bytes is about what the table takes.
func (t *Table) Bytes() int64 { return t.bytes }

// Names returns all label names, in the order in which they came.
func (t *Table) Names() []string {
	names := make([]string, len(t.columns))
	for i := range t.columns {
		names[i] = t.columns[i].name
	}
	return names
}

// Bind names the batch that Equal and Add speak of from here on; nil lets go of
// the last one.
func (t *Table) Bind(b *Batch) {
	t.batch = b
	if b == nil {
		return
	}
	clear(t.found)
	if n := len(b.labels); n <= cap(t.found) {
		t.found = t.found[:n]
	} else {
		t.found = make([]entry, n, n+n/4)
	}
}

// find looks a label of the batch up, which joins the table if need be: then
// it is of a set that will, too.
func (t *Table) find(label uint32) entry {
	e := &t.found[label]
	if e.column == 0 {
		l := t.batch.labels[label]
		i := t.column(t.batch.texts[l.Name])
		value := t.batch.texts[l.Value]
		code, fresh := t.columns[i].values.Code(value)
		if fresh {
			t.bytes += entryBytes + int64(len(value))
		}
		*e = entry{i + 1, code}
	}
	return *e
}

// Equal reports whether a set of the table is the i-th of the batch.
func (t *Table) Equal(s Set, i int) bool {
	shape, set := t.shapes[s.shape], t.batch.Set(i)
	if len(shape) != len(set) {
		return false
	}
	codes := codesOf(t.blocks, s.at, len(shape))
	for k, label := range set {
		if e := t.find(label); e.column != shape[k]+1 || e.code != codes[k] {
			return false
		}
	}
	return true
}

// Add keeps the i-th set of the batch. It copies all text, and gives equal sets
// different places: ask Equal first.
func (t *Table) Add(i int) Set {
	set := t.batch.Set(i)
	var shape []int32
	if len(t.shapes) > 0 {
		shape = t.shapes[t.last]
	}
	same := len(t.shapes) > 0 && len(shape) == len(set)
	codes, at := t.room(len(set))
	t.scratch = t.scratch[:0]
	for k, label := range set {
		e := t.find(label)
		codes[k] = e.code
		t.scratch = append(t.scratch, e.column-1)
		same = same && shape[k] == e.column-1
	}
	if !same {
		t.last = t.shapeOf(t.scratch)
	}
	return Set{t.last, at}
}

// column returns the column of a name, a new one if need be.
func (t *Table) column(name string) int32 {
	if i, ok := t.byName[name]; ok {
		return i
	}
	if t.byName == nil {
		t.byName = map[string]int32{}
	}
	name = string(append([]byte(nil), name...))
	i := int32(len(t.columns))
	t.columns = append(t.columns, column{name: name})
	t.byName[name] = i
	t.bytes += columnBytes + int64(len(name))
	return i
}

func (t *Table) shapeOf(columns []int32) int32 {
	key := make([]byte, 0, 4*len(columns))
	for _, c := range columns {
		key = binary.LittleEndian.AppendUint32(key, uint32(c))
	}
	if s, ok := t.byShape[string(key)]; ok {
		return s
	}
	if t.byShape == nil {
		t.byShape = map[string]int32{}
	}
	s := int32(len(t.shapes))
	t.shapes = append(t.shapes, append([]int32(nil), columns...))
	t.byShape[string(key)] = s
	t.bytes += shapeBytes + 8*int64(len(columns))
	return s
}

// room makes room for the codes of a set, which stay there.
func (t *Table) room(codes int) (room []int32, at uint32) {
	n := len(t.blocks)
	if n == 0 || cap(t.blocks[n-1])-len(t.blocks[n-1]) < codes {
		if n == maxBlocks {
			panic("symbols: more label sets than memory") // 16 GiB of codes
		}
		t.blocks = append(t.blocks, make([]int32, 0, max(blockCodes, codes)))
		n++
	}
	b := &t.blocks[n-1]
	from := len(*b)
	*b = (*b)[:from+codes]
	t.bytes += codeBytes * int64(codes)
	return (*b)[from:], uint32(n-1)*blockCodes + uint32(from)
}

// Find returns the code of a value among those of a label name; ok is false
// where no set has it.
func (t *Table) Find(name, value string) (code int32, ok bool) {
	i, ok := t.byName[name]
	if !ok {
		return 0, false
	}
	return t.columns[i].values.Find(value)
}

// NameCode is the code of a set's metric name among the values of __name__;
// the set must have one.
func (t *Table) NameCode(s Set) int32 {
	for k, c := range t.shapes[s.shape] {
		if t.columns[c].name == series.MetricName {
			return codesOf(t.blocks, s.at, k+1)[k]
		}
	}
	panic("symbols: a label set without a metric name")
}

func codesOf(blocks [][]int32, at uint32, n int) []int32 {
	from := at % blockCodes
	return blocks[at/blockCodes][from:][:n:n]
}
