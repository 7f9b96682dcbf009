package chunk

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/cespare/xxhash/v2"
	"github.com/klauspost/compress/zstd"
)

// The reader walks pages itself: so it decompresses only the pages that hold
// wanted rows, sees dictionary columns as runs, and believes no length before
// it has checked it. It knows the encodings that Encoder writes, no others.

// Page types and encodings (parquet.thrift).
const (
	pageData       = 0
	pageDictionary = 2

	encodingPlain       = 0
	encodingPlainDict   = 2
	encodingRLE         = 3
	encodingDelta       = 5
	encodingRLEDict     = 8
	encodingStreamSplit = 9
)

const (
	// maxPageRawBytes bounds a page, decompressed: a row group's labels in a
	// dictionary, and one value more.
	maxPageRawBytes = maxRowGroupBytes + 2*maxValueBytes
	// maxZstdRatio is what four bytes of zstd can say: one block of 128 KiB.
	maxZstdRatio = 128 << 10 / 4
)

// pageHeader is what we need of parquet.thrift's PageHeader.
type pageHeader struct {
	kind       int32
	raw        int32 // bytes, decompressed
	compressed int32 // bytes
	values     int32 // nulls included
	encoding   int32
	defs       int32 // encoding of definition levels
	reps       int32
}

// dataPage is one page that is not yet decompressed.
type dataPage struct {
	pageHeader
	payload []byte
	first   int // number of the first value in the column chunk
}

// pages is a column chunk, taken apart.
type pages struct {
	dict *dataPage // nil: none
	data []dataPage
}

// splitPages checks the sum over a column chunk and finds its pages.
func splitPages(data []byte, c *columnChunk) (p pages, err error) {
	if xxhash.Sum64(data) != c.sum {
		return pages{}, fmt.Errorf("%w: checksum", ErrCorrupt)
	}
	first := int64(0)
	for len(data) > 0 {
		h, n, err := parsePageHeader(data)
		if err != nil {
			return pages{}, err
		}
		data = data[n:]
		if h.compressed < 0 || int(h.compressed) > len(data) ||
			h.raw < 0 || int64(h.raw) > maxPageRawBytes || int64(h.raw) > int64(h.compressed)*maxZstdRatio ||
			h.values < 0 {
			return pages{}, fmt.Errorf("%w: page of %d bytes, %d decompressed, %d values", ErrCorrupt, h.compressed, h.raw, h.values)
		}
		page := dataPage{pageHeader: h, payload: data[:h.compressed], first: int(first)}
		data = data[h.compressed:]
		switch h.kind {
		case pageDictionary:
			if p.dict != nil || len(p.data) > 0 || h.encoding != encodingPlain && h.encoding != encodingPlainDict {
				return pages{}, fmt.Errorf("%w: unexpected dictionary page", ErrCorrupt)
			}
			p.dict = &page
		case pageData:
			if first += int64(h.values); first > c.values {
				return pages{}, fmt.Errorf("%w: pages hold more than %d values", ErrCorrupt, c.values)
			}
			p.data = append(p.data, page)
		default:
			return pages{}, fmt.Errorf("%w: page type %d", ErrCorrupt, h.kind)
		}
	}
	if first != c.values {
		return pages{}, fmt.Errorf("%w: pages hold %d of %d values", ErrCorrupt, first, c.values)
	}
	return p, nil
}

var decompressor = func() *zstd.Decoder {
	// Concurrency 0: as many at a time as there are processors. The memory
	// limit is a second fence behind the check of each page's size.
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(maxPageRawBytes))
	if err != nil {
		panic(err) // the options are constant
	}
	return d
}()

// decompress appends the page's content to buf[:0].
func (p *dataPage) decompress(buf []byte) ([]byte, error) {
	if cap(buf) < int(p.raw) {
		buf = make([]byte, 0, p.raw)
	}
	out, err := decompressor.DecodeAll(p.payload, buf[:0])
	if err != nil {
		return nil, fmt.Errorf("%w: decompress: %w", ErrCorrupt, err)
	}
	if len(out) != int(p.raw) {
		return nil, fmt.Errorf("%w: page has %d bytes, header says %d", ErrCorrupt, len(out), p.raw)
	}
	return out, nil
}

// content decompresses a data page and cuts it into repetition levels,
// definition levels (nil where the column has none) and values.
func (p *dataPage) content(buf []byte, l *leaf) (raw, reps, defs, values []byte, err error) {
	if raw, err = p.decompress(buf); err != nil {
		return nil, nil, nil, nil, err
	}
	rest := raw
	cut := func(encoding int32) []byte {
		if err != nil {
			return nil
		}
		if encoding != encodingRLE || len(rest) < 4 || uint64(binary.LittleEndian.Uint32(rest)) > uint64(len(rest)-4) {
			err = fmt.Errorf("%w: levels do not fit the page", ErrCorrupt)
			return nil
		}
		n := 4 + int(binary.LittleEndian.Uint32(rest))
		levels := rest[4:n:n]
		rest = rest[n:]
		return levels
	}
	if l.maxRep > 0 {
		reps = cut(p.reps)
	}
	if l.maxDef > 0 {
		defs = cut(p.defs)
	}
	return raw, reps, defs, rest, err
}

// parsePageHeader reads a PageHeader in thrift's compact protocol and returns
// its length.
func parsePageHeader(data []byte) (h pageHeader, n int, err error) {
	t := &thriftReader{data: data}
	h = pageHeader{kind: -1, raw: -1, compressed: -1, values: -1, encoding: -1, defs: -1, reps: -1}
	t.fields(0, func(id int16, typ byte) bool {
		switch {
		case id == 1 && typ == thriftI32:
			h.kind = t.int32()
		case id == 2 && typ == thriftI32:
			h.raw = t.int32()
		case id == 3 && typ == thriftI32:
			h.compressed = t.int32()
		case (id == 5 || id == 7) && typ == thriftStruct: // data page, dictionary page
			t.fields(1, func(id int16, typ byte) bool {
				switch {
				case id == 1 && typ == thriftI32:
					h.values = t.int32()
				case id == 2 && typ == thriftI32:
					h.encoding = t.int32()
				case id == 3 && typ == thriftI32:
					h.defs = t.int32()
				case id == 4 && typ == thriftI32:
					h.reps = t.int32()
				default:
					return false
				}
				return true
			})
		default:
			return false
		}
		return true
	})
	if t.bad {
		return h, 0, fmt.Errorf("%w: page header", ErrCorrupt)
	}
	return h, t.at, nil
}

// Types of the compact protocol.
const (
	thriftTrue   = 1
	thriftFalse  = 2
	thriftByte   = 3
	thriftI16    = 4
	thriftI32    = 5
	thriftI64    = 6
	thriftDouble = 7
	thriftBinary = 8
	thriftList   = 9
	thriftSet    = 10
	thriftMap    = 11
	thriftStruct = 12
)

const maxThriftDepth = 8

// thriftReader reads just enough of the compact protocol; bad is set at the
// first thing that is not as it should be.
type thriftReader struct {
	data []byte
	at   int
	bad  bool
}

func (t *thriftReader) byte() byte {
	if t.bad || t.at >= len(t.data) {
		t.bad = true
		return 0
	}
	t.at++
	return t.data[t.at-1]
}

func (t *thriftReader) uvarint() uint64 {
	if t.bad {
		return 0
	}
	v, n := binary.Uvarint(t.data[t.at:])
	if n <= 0 {
		t.bad = true
		return 0
	}
	t.at += n
	return v
}

func (t *thriftReader) varint() int64 {
	v := t.uvarint()
	return int64(v>>1) ^ -int64(v&1)
}

func (t *thriftReader) int32() int32 {
	v := t.varint()
	if v < math.MinInt32 || v > math.MaxInt32 {
		t.bad = true
		return -1
	}
	return int32(v)
}

// fields visits the fields of a struct; visit reads a field or returns false
// to have it skipped.
func (t *thriftReader) fields(depth int, visit func(id int16, typ byte) bool) {
	id := int16(0)
	for !t.bad {
		b := t.byte()
		if b == 0 {
			return
		}
		if delta := int16(b >> 4); delta != 0 {
			id += delta
		} else {
			id = int16(t.varint())
		}
		if typ := b & 0x0f; !visit(id, typ) {
			t.skip(typ, depth+1)
		}
	}
}

func (t *thriftReader) skip(typ byte, depth int) {
	if depth > maxThriftDepth {
		t.bad = true
		return
	}
	switch typ {
	case thriftTrue, thriftFalse:
	case thriftByte:
		t.byte()
	case thriftI16, thriftI32, thriftI64:
		t.uvarint()
	case thriftDouble:
		t.advance(8)
	case thriftBinary:
		t.advance(t.uvarint())
	case thriftList, thriftSet:
		b := t.byte()
		n := uint64(b >> 4)
		if n == 15 {
			n = t.uvarint()
		}
		for i := uint64(0); i < n && !t.bad; i++ {
			t.element(b&0x0f, depth)
		}
	case thriftMap:
		if n := t.uvarint(); n > 0 {
			kv := t.byte()
			for i := uint64(0); i < n && !t.bad; i++ {
				t.element(kv>>4, depth)
				t.element(kv&0x0f, depth)
			}
		}
	case thriftStruct:
		t.fields(depth, func(int16, byte) bool { return false })
	default:
		t.bad = true
	}
}

// element skips a member of a collection, where a boolean takes a byte.
func (t *thriftReader) element(typ byte, depth int) {
	if typ == thriftTrue || typ == thriftFalse {
		t.byte()
		return
	}
	t.skip(typ, depth+1)
}

func (t *thriftReader) advance(n uint64) {
	if t.bad || n > uint64(len(t.data)-t.at) {
		t.bad = true
		return
	}
	t.at += int(n)
}
