package parquetcol

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/parquet-go/parquet-go/deprecated"
	"github.com/parquet-go/parquet-go/format"
)

// thriftReader decodes the compact protocol of Thrift, as far as Parquet's
// footers and page headers need it. It keeps the first error; after one, all
// reads return zero. Nothing is allocated ahead of the bytes that are there.
type thriftReader struct {
	b     []byte
	p     int
	depth int
	err   error
}

// Wire types of the compact protocol.
const (
	tTrue   = 1
	tFalse  = 2
	tI8     = 3
	tI16    = 4
	tI32    = 5
	tI64    = 6
	tDouble = 7
	tBinary = 8
	tList   = 9
	tSet    = 10
	tMap    = 11
	tStruct = 12
	tUUID   = 13
)

func (t *thriftReader) fail(format string, args ...any) {
	if t.err == nil {
		t.err = fmt.Errorf("%w: at byte %d: "+format, append([]any{ErrCorrupt, t.p}, args...)...)
		t.p = len(t.b)
	}
}

func (t *thriftReader) byte() byte {
	if t.p >= len(t.b) {
		t.fail("ends early")
		return 0
	}
	t.p++
	return t.b[t.p-1]
}

func (t *thriftReader) uvarint() uint64 {
	v, n := binary.Uvarint(t.b[t.p:])
	if n <= 0 {
		t.fail("no varint")
		return 0
	}
	t.p += n
	return v
}

func (t *thriftReader) varint() int64 {
	v := t.uvarint()
	return int64(v>>1) ^ -int64(v&1)
}

func (t *thriftReader) bytes() []byte {
	n := t.uvarint()
	if n > uint64(len(t.b)-t.p) {
		t.fail("%d bytes of text in %d", n, len(t.b)-t.p)
		return nil
	}
	t.p += int(n)
	return t.b[t.p-int(n) : t.p]
}

// list reads the head of a list; each element takes at least one byte.
func (t *thriftReader) list() (size int, typ byte) {
	h := t.byte()
	n := uint64(h >> 4)
	if n == 15 {
		n = t.uvarint()
	}
	if n > uint64(len(t.b)-t.p) {
		t.fail("%d elements in %d bytes", n, len(t.b)-t.p)
		return 0, 0
	}
	return int(n), h & 15
}

// structs calls f for each element of a list of structs.
func (t *thriftReader) structs(typ byte, f func()) {
	if typ != tList {
		t.skip(typ)
		return
	}
	n, elem := t.list()
	if n > 0 && elem != tStruct {
		t.fail("list of type %d, want structs", elem)
	}
	for ; n > 0 && t.err == nil; n-- {
		f()
	}
}

// fields calls f for each field of a struct; f reads the value or skips it.
func (t *thriftReader) fields(f func(id int, typ byte)) {
	t.depth++
	defer func() { t.depth-- }()
	if t.depth > maxDepth {
		t.fail("nested deeper than %d", maxDepth)
		return
	}
	id := 0
	for t.err == nil {
		h := t.byte()
		if h == 0 {
			return
		}
		if d := int(h >> 4); d != 0 {
			id += d
		} else {
			id = int(int16(t.varint()))
		}
		f(id, h&15)
	}
}

func (t *thriftReader) skip(typ byte) {
	switch typ {
	case tTrue, tFalse:
	case tI8:
		t.byte()
	case tI16, tI32, tI64:
		t.uvarint()
	case tDouble:
		t.skipBytes(8)
	case tUUID:
		t.skipBytes(16)
	case tBinary:
		t.bytes()
	case tList, tSet:
		n, elem := t.list()
		t.skipElements(n, elem)
	case tMap:
		n := t.uvarint()
		if n == 0 {
			return
		}
		kv := t.byte()
		if n > uint64(len(t.b)-t.p) {
			t.fail("map of %d in %d bytes", n, len(t.b)-t.p)
			return
		}
		for ; n > 0 && t.err == nil; n-- {
			t.skipElements(1, kv>>4)
			t.skipElements(1, kv&15)
		}
	case tStruct:
		t.fields(func(_ int, typ byte) { t.skip(typ) })
	default:
		t.fail("wire type %d", typ)
	}
}

func (t *thriftReader) skipElements(n int, typ byte) {
	t.depth++
	defer func() { t.depth-- }()
	if t.depth > maxDepth {
		t.fail("nested deeper than %d", maxDepth)
		return
	}
	for ; n > 0 && t.err == nil; n-- {
		if typ == tTrue || typ == tFalse {
			t.byte() // a boolean takes a byte in a list, none in a field
			continue
		}
		t.skip(typ)
	}
}

func (t *thriftReader) skipBytes(n int) {
	if n > len(t.b)-t.p {
		t.fail("ends early")
		return
	}
	t.p += n
}

// integer reads an integer field of any width.
func (t *thriftReader) integer(typ byte) int64 {
	switch typ {
	case tI8:
		return int64(int8(t.byte()))
	case tI16, tI32, tI64:
		return t.varint()
	}
	t.fail("wire type %d, want an integer", typ)
	return 0
}

func (t *thriftReader) int32(typ byte) int32 {
	v := t.integer(typ)
	if v < math.MinInt32 || v > math.MaxInt32 {
		t.fail("%d overflows", v)
		return 0
	}
	return int32(v)
}

func (t *thriftReader) text(typ byte) string {
	if typ != tBinary {
		t.fail("wire type %d, want text", typ)
		return ""
	}
	return string(t.bytes())
}

func (t *thriftReader) boolean(typ byte) bool {
	if typ != tTrue && typ != tFalse {
		t.fail("wire type %d, want a boolean", typ)
	}
	return typ == tTrue
}

// noConverted stands for an absent converted type.
const noConverted = deprecated.ConvertedType(-1)

// schemaElement is one entry of the footer's flattened schema.
type schemaElement struct {
	name       string
	leaf       bool
	typ        format.Type
	length     int
	repetition format.FieldRepetitionType
	children   int
	converted  deprecated.ConvertedType
	scale      int
	logical    Logical
}

func (t *thriftReader) fileMetaData() (*File, []schemaElement) {
	f := &File{}
	var elements []schemaElement
	t.fields(func(id int, typ byte) {
		switch id {
		case 2:
			t.structs(typ, func() { elements = append(elements, t.schemaElement()) })
		case 3:
			f.NumRows = t.integer(typ)
		case 4:
			t.structs(typ, func() { f.RowGroups = append(f.RowGroups, t.rowGroup()) })
		case 5:
			t.structs(typ, func() {
				var k, v string
				t.fields(func(id int, typ byte) {
					switch id {
					case 1:
						k = t.text(typ)
					case 2:
						v = t.text(typ)
					default:
						t.skip(typ)
					}
				})
				if f.KeyValue == nil {
					f.KeyValue = map[string]string{}
				}
				f.KeyValue[k] = v
			})
		case 6:
			f.CreatedBy = t.text(typ)
		case 8:
			t.unsupported("encryption")
		default:
			t.skip(typ)
		}
	})
	return f, elements
}

func (t *thriftReader) unsupported(what string) {
	if t.err == nil {
		t.err = fmt.Errorf("%w: %s", ErrUnsupported, what)
		t.p = len(t.b)
	}
}

func (t *thriftReader) schemaElement() schemaElement {
	e := schemaElement{converted: noConverted}
	t.fields(func(id int, typ byte) {
		switch id {
		case 1:
			e.typ, e.leaf = format.Type(t.int32(typ)), true
		case 2:
			e.length = int(t.int32(typ))
		case 3:
			e.repetition = format.FieldRepetitionType(t.int32(typ))
		case 4:
			e.name = t.text(typ)
		case 5:
			e.children = int(t.int32(typ))
		case 6:
			e.converted = deprecated.ConvertedType(t.int32(typ))
		case 7:
			e.scale = int(t.int32(typ))
		case 10:
			if typ != tStruct {
				t.fail("wire type %d, want a struct", typ)
				return
			}
			e.logical = t.logicalType()
		default:
			t.skip(typ)
		}
	})
	return e
}

func (t *thriftReader) logicalType() Logical {
	l := Logical{}
	t.fields(func(id int, typ byte) {
		if typ != tStruct {
			t.fail("wire type %d, want a struct", typ)
			return
		}
		switch id {
		case 1, 4, 12: // STRING, ENUM, JSON
			l.Kind = String
		case 5:
			l.Kind = Decimal
		case 6:
			l.Kind = Date
		case 8:
			l.Kind = Timestamp
		case 10:
			l.Kind = Integer
		case 16:
			l.Kind = Variant
		case 2, 3: // MAP, LIST
		default:
			l.Kind = Other
		}
		kind := l.Kind
		t.fields(func(id int, typ byte) {
			switch {
			case kind == Decimal && id == 1:
				l.Scale = int(t.int32(typ))
			case kind == Timestamp && id == 1:
				l.UTC = t.boolean(typ)
			case kind == Timestamp && id == 2 && typ == tStruct:
				t.fields(func(id int, typ byte) {
					switch id {
					case 1:
						l.Unit = 1e3
					case 2:
						l.Unit = 1e6
					case 3:
						l.Unit = 1e9
					}
					t.skip(typ)
				})
			case kind == Integer && id == 2:
				if !t.boolean(typ) {
					l.Kind = Other // unsigned
				}
			default:
				t.skip(typ)
			}
		})
	})
	if l.Kind == Timestamp && l.Unit == 0 {
		l.Kind = Other
	}
	return l
}

func (t *thriftReader) rowGroup() RowGroup {
	var g RowGroup
	t.fields(func(id int, typ byte) {
		switch id {
		case 1:
			t.structs(typ, func() { g.Chunks = append(g.Chunks, t.columnChunk()) })
		case 3:
			g.NumRows = t.integer(typ)
		default:
			t.skip(typ)
		}
	})
	return g
}

func (t *thriftReader) columnChunk() Chunk {
	c := Chunk{NullCount: -1, Offset: -1}
	t.fields(func(id int, typ byte) {
		switch id {
		case 1:
			if t.text(typ) != "" {
				t.unsupported("column chunk in another file")
			}
		case 3:
			if typ != tStruct {
				t.fail("wire type %d, want a struct", typ)
				return
			}
			t.columnMetaData(&c)
		case 8, 9:
			t.unsupported("encrypted column")
		default:
			t.skip(typ)
		}
	})
	return c
}

func (t *thriftReader) columnMetaData(c *Chunk) {
	var data, dict int64
	t.fields(func(id int, typ byte) {
		switch id {
		case 1:
			c.typ = format.Type(t.int32(typ))
		case 4:
			c.codec = format.CompressionCodec(t.int32(typ))
		case 5:
			c.NumValues = t.integer(typ)
		case 7:
			c.Length = t.integer(typ)
		case 9:
			data = t.integer(typ)
		case 11:
			dict = t.integer(typ)
		case 12:
			if typ != tStruct {
				t.fail("wire type %d, want a struct", typ)
				return
			}
			t.fields(func(id int, typ byte) {
				if id == 3 {
					c.NullCount = t.integer(typ)
					return
				}
				t.skip(typ)
			})
		default:
			t.skip(typ)
		}
	})
	c.Offset = data
	// Some writers leave a zero, others an offset after the data pages.
	if dict > 0 && dict < data {
		c.Offset = dict
	}
}

// pageHeader is the union of the headers of all kinds of pages.
type pageHeader struct {
	kind                     format.PageType
	uncompressed, compressed int
	crc                      uint32
	hasCRC                   bool
	values                   int
	encoding                 format.Encoding
	defEncoding, repEncoding format.Encoding // version 1
	defBytes, repBytes       int             // version 2
	bodyCompressed           bool            // version 2
}

func (t *thriftReader) pageHeader() pageHeader {
	h := pageHeader{kind: -1, values: -1, bodyCompressed: true, defEncoding: format.RLE, repEncoding: format.RLE}
	size := func(typ byte) int {
		v := t.int32(typ)
		if v < 0 {
			t.fail("negative size %d", v)
			return 0
		}
		return int(v)
	}
	t.fields(func(id int, typ byte) {
		switch id {
		case 1:
			h.kind = format.PageType(t.int32(typ))
		case 2:
			h.uncompressed = size(typ)
		case 3:
			h.compressed = size(typ)
		case 4:
			h.crc, h.hasCRC = uint32(t.int32(typ)), true
		case 5, 7, 8:
			if typ != tStruct {
				t.fail("wire type %d, want a struct", typ)
				return
			}
			kind := id
			t.fields(func(id int, typ byte) {
				switch {
				case id == 1:
					h.values = size(typ)
				case id == 2 && kind != 8, id == 4 && kind == 8:
					h.encoding = format.Encoding(t.int32(typ))
				case id == 3 && kind == 5:
					h.defEncoding = format.Encoding(t.int32(typ))
				case id == 4 && kind == 5:
					h.repEncoding = format.Encoding(t.int32(typ))
				case id == 5 && kind == 8:
					h.defBytes = size(typ)
				case id == 6 && kind == 8:
					h.repBytes = size(typ)
				case id == 7 && kind == 8:
					h.bodyCompressed = t.boolean(typ)
				default:
					t.skip(typ)
				}
			})
		default:
			t.skip(typ)
		}
	})
	return h
}
