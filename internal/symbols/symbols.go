// Package symbols keeps texts and label sets as small numbers.
//
// A [Dictionary] gives texts codes. A [Table] gives each label name a column
// and each value a code in it, so that a label set is its shape – which columns
// it has – and four bytes a label. It stands beside the writer's head, which
// keeps its series so, and package chunk, which writes them without looking at
// their texts again.
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

	"github.com/prometheus/prometheus/model/labels"

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

	// The shape of the set before, which the next has most of the time, and
	// the codes of the set that is being added.
	last    int32
	codes   []int32
	scratch []int32
}

// column is one label name and its values.
type column struct {
	name   string
	values Dictionary
	// The value that came last: neighbours share most of theirs.
	last int32
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

// MostBytes bounds what Add of a label set adds to Bytes, of which so many
// labels, with so many bytes of text, may be new to the table.
func MostBytes(labels, fresh, freshText int) int64 {
	n := int64(labels) * codeBytes
	if fresh > 0 {
		n += int64(labels)*8 + shapeBytes + int64(fresh)*(columnBytes+entryBytes) + int64(freshText)
	}
	return n
}

// Add keeps a label set: sorted by name, each name once. It copies all text,
// and gives equal sets different places: ask Equal first.
func (t *Table) Add(l series.Labels) Set {
	shape := []int32(nil)
	if len(t.shapes) > 0 {
		shape = t.shapes[t.last]
	}
	t.codes, t.scratch = t.codes[:0], t.scratch[:0]
	same := true
	l.Range(func(l labels.Label) {
		k := len(t.codes)
		var i int32
		if k < len(shape) && t.columns[shape[k]].name == l.Name {
			i = shape[k]
		} else {
			same = false
			i = t.column(l.Name)
		}
		t.codes = append(t.codes, t.columns[i].code(t, l.Value))
		t.scratch = append(t.scratch, i)
	})
	if !same || len(t.codes) != len(shape) || len(t.shapes) == 0 {
		t.last = t.shapeOf(t.scratch)
	}
	return Set{t.last, t.keep(t.codes)}
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
	t.columns = append(t.columns, column{name: name, last: -1})
	t.byName[name] = i
	t.bytes += columnBytes + int64(len(name))
	return i
}

func (c *column) code(t *Table, value string) int32 {
	if c.last >= 0 && string(c.values.Text(c.last)) == value {
		return c.last
	}
	code, fresh := c.values.Code(value)
	if fresh {
		t.bytes += entryBytes + int64(len(value))
	}
	c.last = code
	return code
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

// keep copies the codes of a set to where they stay.
func (t *Table) keep(codes []int32) uint32 {
	n := len(t.blocks)
	if n == 0 || cap(t.blocks[n-1])-len(t.blocks[n-1]) < len(codes) {
		if n == maxBlocks {
			panic("symbols: more label sets than memory") // 16 GiB of codes
		}
		t.blocks = append(t.blocks, make([]int32, 0, max(blockCodes, len(codes))))
		n++
	}
	b := &t.blocks[n-1]
	at := uint32(n-1)*blockCodes + uint32(len(*b))
	*b = append(*b, codes...)
	t.bytes += codeBytes * int64(len(codes))
	return at
}

// Equal reports whether a set is that of the labels.
func (t *Table) Equal(s Set, l series.Labels) bool {
	shape := t.shapes[s.shape]
	codes := codesOf(t.blocks, s.at, len(shape))
	k, equal := 0, true
	l.Range(func(l labels.Label) {
		if !equal {
			return
		}
		if k == len(shape) {
			equal = false
			return
		}
		c := &t.columns[shape[k]]
		equal = c.name == l.Name && string(c.values.Text(codes[k])) == l.Value
		k++
	})
	return equal && k == len(shape)
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
