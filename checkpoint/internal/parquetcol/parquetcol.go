// Package parquetcol reads single columns of Parquet files whose origin is
// not known: checkpoints written by any Delta engine.
//
// It stands inside checkpoint, does no I/O and imports nothing of ours. The
// caller hands it the footer and the bytes of the column chunks it wants.
//
// Why not upstream's reader: it allocates what a header claims before it has
// seen the bytes, and panics on some damaged files; here every allocation is
// bounded by the bytes at hand (a page of nulls or of one repeated value:
// by maxPageValues), damage is [ErrCorrupt], and only the columns and pages
// that are asked for are decoded. It writes nothing; files are written with
// upstream's writer.
//
// Supported: data pages version 1 and 2, page checksums; codecs none, snappy,
// gzip, zstd, LZ4_RAW; encodings PLAIN, PLAIN_DICTIONARY, RLE_DICTIONARY, RLE,
// DELTA_BINARY_PACKED, DELTA_LENGTH_BYTE_ARRAY, DELTA_BYTE_ARRAY,
// BYTE_STREAM_SPLIT. Anything else is [ErrUnsupported].
//
// Layout of a Parquet file (parquet-format, "File format"):
//
//	"PAR1" | column chunks, by row group | footer (thrift) | footer length, u32 LE | "PAR1"
//	column chunk: [dictionary page] data page …
//	page:         header (thrift, compact) | body
package parquetcol

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/parquet-go/parquet-go/deprecated"
	"github.com/parquet-go/parquet-go/format"
)

var (
	// ErrCorrupt: the bytes are no valid Parquet.
	ErrCorrupt = errors.New("corrupt parquet")
	// ErrUnsupported: valid Parquet, perhaps, that this package cannot read:
	// encryption, a codec or an encoding that is not listed above.
	ErrUnsupported = errors.New("unsupported parquet feature")
)

// TailSize is the size of what ends a file: the footer's length and magic.
const TailSize = 8

const magic = "PAR1"

// FooterSize returns the length of the footer from the last TailSize bytes of
// a file of the given size.
func FooterSize(tail []byte, fileSize int64) (int64, error) {
	if len(tail) != TailSize || fileSize < TailSize+int64(len(magic)) {
		return 0, fmt.Errorf("%w: file of %d bytes is too short", ErrCorrupt, fileSize)
	}
	switch m := string(tail[4:]); m {
	case magic:
	case "PARE":
		return 0, fmt.Errorf("%w: encrypted footer", ErrUnsupported)
	default:
		return 0, fmt.Errorf("%w: magic at the end is %q", ErrCorrupt, m)
	}
	n := int64(binary.LittleEndian.Uint32(tail))
	if n > fileSize-TailSize-int64(len(magic)) {
		return 0, fmt.Errorf("%w: footer of %d bytes in a file of %d", ErrCorrupt, n, fileSize)
	}
	return n, nil
}

// File is a parsed footer.
type File struct {
	Root      *Node
	RowGroups []RowGroup
	NumRows   int64
	CreatedBy string
	// KeyValue holds the footer's key-value metadata.
	KeyValue map[string]string
}

// RowGroup is a horizontal slice of the rows.
type RowGroup struct {
	NumRows int64
	// Chunks holds one chunk a leaf of the schema, see Node.Leaf.
	Chunks []Chunk
}

// Chunk says where one column of one row group lies in the file.
type Chunk struct {
	Offset, Length int64 // bytes, inside the file
	NumValues      int64 // including nulls
	NullCount      int64 // by the writer's statistics; -1 where it gave none
	typ            format.Type
	codec          format.CompressionCodec
}

// Node is a field of the schema; a leaf is a column.
type Node struct {
	Name     string
	Children []*Node
	// Leaf numbers the columns from 0; -1 for a group.
	Leaf int
	// Def is the definition level from which on the field is present; for a
	// repeated field: has an element.
	Def int
	// Rep is the repetition level of the field's elements.
	Rep      int
	Physical format.Type // of a leaf
	Logical  Logical
	length   int // of FIXED_LEN_BYTE_ARRAY
}

// Child returns the field of that exact name, or nil; n may be nil.
func (n *Node) Child(names ...string) *Node {
	for _, name := range names {
		if n == nil {
			return nil
		}
		var next *Node
		for _, c := range n.Children {
			if c.Name == name {
				next = c
				break
			}
		}
		n = next
	}
	return n
}

// Logical is the meaning of a column's values, as far as it matters here.
type Logical struct {
	Kind  LogicalKind
	Scale int   // of a decimal
	Unit  int64 // of a timestamp: units a second
	UTC   bool  // a timestamp is an instant
}

// LogicalKind enumerates the meanings that are told apart.
type LogicalKind uint8

// Kinds of values. Other covers what has no form in Delta's statistics.
const (
	None LogicalKind = iota
	String
	Decimal
	Date
	Timestamp
	Integer
	Variant
	Other
)

// ParseFooter parses the footer's bytes; size is that of the whole file. Every
// chunk of the result lies inside the file, and every row group has one a leaf.
func ParseFooter(footer []byte, size int64) (*File, error) {
	t := &thriftReader{b: footer}
	f, elements := t.fileMetaData()
	if t.err != nil {
		return nil, fmt.Errorf("footer: %w", t.err)
	}
	b := treeBuilder{elements: elements}
	root, err := b.build(0, 0, 0, true)
	if err != nil {
		return nil, fmt.Errorf("schema: %w", err)
	}
	if b.next != len(elements) {
		return nil, fmt.Errorf("%w: schema: %d elements outside the tree", ErrCorrupt, len(elements)-b.next)
	}
	f.Root = root
	var rows int64
	for i, g := range f.RowGroups {
		if g.NumRows < 0 || g.NumRows > f.NumRows-rows {
			return nil, fmt.Errorf("%w: row group %d: %d rows, %d left in the file", ErrCorrupt, i, g.NumRows, f.NumRows-rows)
		}
		rows += g.NumRows
		if len(g.Chunks) != len(b.leaves) {
			return nil, fmt.Errorf("%w: row group %d: %d chunks for %d columns", ErrCorrupt, i, len(g.Chunks), len(b.leaves))
		}
		for j, c := range g.Chunks {
			if c.Offset < 0 || c.Length < 0 || c.Offset > size || c.Length > size-c.Offset || c.NumValues < 0 {
				return nil, fmt.Errorf("%w: row group %d: column %s lies outside the file", ErrCorrupt, i, b.leaves[j].Name)
			}
			if c.typ != b.leaves[j].Physical {
				return nil, fmt.Errorf("%w: row group %d: column %s is %v, its chunk %v", ErrCorrupt, i, b.leaves[j].Name, b.leaves[j].Physical, c.typ)
			}
		}
	}
	if rows != f.NumRows {
		return nil, fmt.Errorf("%w: row groups hold %d rows, the file %d", ErrCorrupt, rows, f.NumRows)
	}
	return f, nil
}

// Limits of a schema; a level fits a byte with room to spare.
const (
	maxDepth  = 64
	maxLevels = 127
)

// treeBuilder turns the depth-first list of schema elements into a tree.
type treeBuilder struct {
	elements []schemaElement
	next     int
	leaves   []*Node
}

func (b *treeBuilder) build(depth, def, rep int, root bool) (*Node, error) {
	if b.next >= len(b.elements) {
		return nil, fmt.Errorf("%w: fewer elements than a group claims", ErrCorrupt)
	}
	if depth > maxDepth {
		return nil, fmt.Errorf("%w: deeper than %d", ErrCorrupt, maxDepth)
	}
	e := &b.elements[b.next]
	b.next++
	if !root {
		switch e.repetition {
		case format.Optional:
			def++
		case format.Repeated:
			def++
			rep++
		}
	}
	if def > maxLevels || rep > maxLevels {
		return nil, fmt.Errorf("%w: more than %d levels", ErrCorrupt, maxLevels)
	}
	n := &Node{Name: e.name, Leaf: -1, Def: def, Rep: rep, Physical: e.typ, Logical: e.meaning(), length: e.length}
	if e.leaf {
		if e.typ == format.FixedLenByteArray && e.length <= 0 {
			return nil, fmt.Errorf("%w: %s has length %d", ErrCorrupt, e.name, e.length)
		}
		n.Leaf = len(b.leaves)
		b.leaves = append(b.leaves, n)
		return n, nil
	}
	for range e.children {
		c, err := b.build(depth+1, def, rep, false)
		if err != nil {
			return nil, err
		}
		n.Children = append(n.Children, c)
	}
	return n, nil
}

// meaning unites the current annotation and its deprecated forerunner.
func (e *schemaElement) meaning() Logical {
	if e.logical.Kind != None {
		return e.logical
	}
	switch e.converted {
	case deprecated.UTF8, deprecated.Enum, deprecated.Json:
		return Logical{Kind: String}
	case deprecated.Decimal:
		return Logical{Kind: Decimal, Scale: e.scale}
	case deprecated.Date:
		return Logical{Kind: Date}
	case deprecated.TimestampMillis:
		return Logical{Kind: Timestamp, Unit: 1e3, UTC: true}
	case deprecated.TimestampMicros:
		return Logical{Kind: Timestamp, Unit: 1e6, UTC: true}
	case deprecated.Int8, deprecated.Int16, deprecated.Int32, deprecated.Int64:
		return Logical{Kind: Integer}
	case deprecated.Map, deprecated.MapKeyValue, deprecated.List:
		return Logical{}
	case noConverted:
		if e.typ == format.Int96 && e.leaf {
			// Only ever used for timestamps; Column.Int gives microseconds.
			return Logical{Kind: Timestamp, Unit: 1e6, UTC: true}
		}
		return Logical{}
	}
	return Logical{Kind: Other}
}
