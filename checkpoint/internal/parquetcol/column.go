package parquetcol

import (
	"errors"
	"fmt"
	"hash/crc32"
	"math/bits"
	"strings"
	"sync"

	"github.com/parquet-go/parquet-go/format"
)

// maxPageValues bounds the values of one page, nulls included. Writers cut
// pages at 1 MiB or 20,000 rows; only runs of nulls and of one value reach
// more, at most a row group of 1 Mi rows in every writer that is known.
const maxPageValues = 4 << 20

// Column reads one column of one row group, forward only. It is not safe for
// concurrent use. After an error every method returns zero; see Err.
//
// Strings share memory with their neighbours of one page.
type Column struct {
	node  *Node
	chunk Chunk
	data  []byte // the chunk's bytes
	p     int    // the next page starts here
	err   error

	left    int64 // values, nulls included, in pages not yet visited
	started bool

	// dictionary, of one of the two kinds
	dictStrs []string
	dictInts []int64
	hasDict  bool

	// the current page; its levels and values are in the scratch
	pageRow int64 // of a column that does not repeat: row of its first entry
	n       int   // entries: values and nulls
	pos     int   // next entry
	v       int   // values before pos

	row int64 // of a column that repeats: row of the next entry

	borrow bool // see Borrow

	*scratch // nil after Close
}

// scratch is memory that columns use one after the other. A checkpoint of a
// million files has some thousand column chunks; garbage of a megabyte each
// would keep the collector busy.
type scratch struct {
	body     []byte // a page after decompression
	rep, def []uint8
	strs     []string
	ints     []int64
	idx      []uint32
	entries  []Entry
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// Entry is one element of a repeated field, or the place of an absent one.
type Entry struct {
	Def int // definition level
	Str string
}

// NewColumn reads the column that leaf describes from data, which are the
// bytes of chunk. Only BYTE_ARRAY columns may repeat.
func NewColumn(leaf *Node, chunk Chunk, data []byte) *Column {
	c := &Column{node: leaf, chunk: chunk, data: data, left: chunk.NumValues, scratch: scratches.Get().(*scratch)}
	if int64(len(data)) != chunk.Length {
		c.fail(fmt.Errorf("%w: %d bytes of a chunk of %d", ErrCorrupt, len(data), chunk.Length))
	}
	if leaf.Rep > 0 && leaf.Physical != format.ByteArray {
		c.fail(fmt.Errorf("%w: repeated column of type %v", ErrUnsupported, leaf.Physical))
	}
	return c
}

// Borrow lets strings point into memory of the column's own, which is cheaper:
// each is valid only until the next call of At, Present or Row.
func (c *Column) Borrow() { c.borrow = true }

// Node returns the column's place in the schema.
func (c *Column) Node() *Node { return c.node }

// errClosed is the error of a column after Close.
var errClosed = errors.New("column is closed")

// Close gives the column's memory to others. What the column has returned
// stays valid, but for the slice of Row; the column is of no use any more.
func (c *Column) Close() {
	if c.scratch == nil {
		return
	}
	c.fail(errClosed)
	clear(c.strs) // so that the pool holds on to no pages
	clear(c.entries)
	c.strs, c.ints, c.entries = c.strs[:0], c.ints[:0], c.entries[:0]
	scratches.Put(c.scratch)
	c.scratch = nil
}

// Err returns the first error.
func (c *Column) Err() error { return c.err }

func (c *Column) fail(err error) {
	if c.err == nil {
		c.err = fmt.Errorf("column %s: %w", c.node.Name, err)
		c.n, c.pos, c.v, c.left = 0, 0, 0, 0
	}
}

// At moves to a row, counted from 0 in the row group and never backwards,
// and returns the definition level there; -1 after an error. The column must
// not repeat. Pages in between are not decoded.
func (c *Column) At(row int64) int {
	for c.err == nil && (!c.started || row >= c.pageRow+int64(c.n)) {
		c.nextPage(row)
	}
	if c.err != nil {
		return -1
	}
	max := c.node.Def
	if max == 0 {
		c.v = int(row - c.pageRow)
		return 0
	}
	to := int(row - c.pageRow)
	for ; c.pos < to; c.pos++ {
		if int(c.def[c.pos]) == max {
			c.v++
		}
	}
	return int(c.def[to])
}

// Present reports whether the column has a value at the row.
func (c *Column) Present(row int64) bool { return c.At(row) == c.node.Def }

// Str returns the value at the last At, which must have been present, of a
// column of byte arrays.
func (c *Column) Str() string {
	if c.err != nil || c.v >= len(c.strs) {
		return ""
	}
	return c.strs[c.v]
}

// Int returns the value at the last At, which must have been present, of a
// column that holds no byte arrays: booleans as 0 and 1, floats and doubles
// as the bits of a float64, INT96 as microseconds since the epoch.
func (c *Column) Int() int64 {
	if c.err != nil || c.v >= len(c.ints) {
		return 0
	}
	return c.ints[c.v]
}

// Row returns the entries of a row of a column that repeats: at least one,
// whose definition level tells an absent list from an empty one. The slice
// is valid until the next call. Rows before it that were not asked for are
// passed over.
func (c *Column) Row(row int64) []Entry {
	if c.err != nil {
		return nil
	}
	c.entries = c.entries[:0]
	for c.row <= row {
		if !c.fill() {
			if c.err == nil {
				c.fail(fmt.Errorf("%w: ends before row %d", ErrCorrupt, row))
			}
			return nil
		}
		for first := true; first || (c.more() && c.rep[c.pos] > 0); first = false {
			if first && c.rep[c.pos] != 0 {
				c.fail(fmt.Errorf("%w: a row begins inside a list", ErrCorrupt))
				return nil
			}
			e := Entry{Def: int(c.def[c.pos])}
			if e.Def == c.node.Def {
				e.Str = c.strs[c.v]
				c.v++
			}
			c.pos++
			if c.row == row {
				c.entries = append(c.entries, e)
			}
		}
		c.row++
	}
	if c.err != nil {
		return nil
	}
	return c.entries
}

// End checks that the column has no more rows than the row group. It does not
// decode what is left.
func (c *Column) End(rows int64) error {
	if c.err == nil && c.node.Rep == 0 && c.chunk.NumValues != rows {
		c.fail(fmt.Errorf("%w: %d values in a row group of %d rows", ErrCorrupt, c.chunk.NumValues, rows))
	}
	return c.err
}

// more is fill inside of a row. The next page may take the memory that what
// was found of the row points to.
func (c *Column) more() bool {
	if c.borrow && c.pos == c.n {
		for i := range c.entries {
			c.entries[i].Str = strings.Clone(c.entries[i].Str)
		}
	}
	return c.fill()
}

// fill makes the next entry current; false at the end or after an error.
func (c *Column) fill() bool {
	for c.err == nil && c.pos == c.n {
		if c.left == 0 {
			return false
		}
		c.nextPage(-1)
	}
	return c.err == nil
}

// nextPage reads the next data page. One whose rows all lie before the row is
// passed over: it becomes current without its contents.
func (c *Column) nextPage(row int64) {
	if c.err != nil {
		return
	}
	c.pageRow += int64(c.n)
	c.n, c.pos, c.v, c.started = 0, 0, 0, true
	c.strs, c.ints = c.strs[:0], c.ints[:0]
	for {
		if c.left == 0 || c.p >= len(c.data) {
			c.fail(fmt.Errorf("%w: %d values are missing", ErrCorrupt, max(c.left, 1)))
			return
		}
		t := thriftReader{b: c.data[c.p:]}
		h := t.pageHeader()
		if t.err != nil {
			c.fail(fmt.Errorf("page header: %w", t.err))
			return
		}
		c.p += t.p
		if h.compressed > len(c.data)-c.p {
			c.fail(fmt.Errorf("%w: page of %d bytes, %d are left", ErrCorrupt, h.compressed, len(c.data)-c.p))
			return
		}
		body := c.data[c.p : c.p+h.compressed]
		c.p += h.compressed
		var err error
		switch h.kind {
		case format.IndexPage:
			continue
		case format.DictionaryPage:
			err = c.readDictionary(&h, body)
		case format.DataPage, format.DataPageV2:
			if h.values < 0 || h.values > maxPageValues || int64(h.values) > c.left {
				err = fmt.Errorf("%w: page of %d values, %d are left", ErrCorrupt, h.values, c.left)
				break
			}
			c.left -= int64(h.values)
			c.n = h.values
			if c.node.Rep == 0 && row >= c.pageRow+int64(c.n) {
				return
			}
			if err = c.readData(&h, body); err == nil {
				return
			}
		default:
			err = fmt.Errorf("%w: page type %d", ErrUnsupported, h.kind)
		}
		if err != nil {
			c.fail(err)
			return
		}
	}
}

// checkCRC verifies a page's checksum, where its writer made one. It covers
// the body as stored, not the header.
func checkCRC(h *pageHeader, body []byte) error {
	if !h.hasCRC {
		return nil
	}
	if got := crc32.ChecksumIEEE(body); got != h.crc {
		return fmt.Errorf("%w: page checksum is %08x, want %08x", ErrCorrupt, got, h.crc)
	}
	return nil
}

func (c *Column) readDictionary(h *pageHeader, body []byte) error {
	if c.hasDict {
		return fmt.Errorf("%w: second dictionary", ErrCorrupt)
	}
	if h.encoding != format.Plain && h.encoding != format.PlainDictionary {
		return fmt.Errorf("%w: dictionary encoded as %v", ErrUnsupported, h.encoding)
	}
	if err := checkCRC(h, body); err != nil {
		return err
	}
	body, err := c.decompress(h.uncompressed, body)
	if err != nil {
		return err
	}
	if h.values < 0 || h.values > maxPageValues {
		return fmt.Errorf("%w: dictionary of %d values", ErrCorrupt, h.values)
	}
	if c.node.bytes() {
		c.dictStrs, err = plainStrings(c.dictStrs[:0], body, h.values, c.node, false)
	} else {
		c.dictInts, err = plainInts(c.dictInts[:0], body, h.values, c.node.Physical)
	}
	c.hasDict = err == nil
	return err
}

// readData decodes a data page into rep, def and strs or ints.
func (c *Column) readData(h *pageHeader, body []byte) (err error) {
	if err := checkCRC(h, body); err != nil {
		return err
	}
	repWidth, defWidth := bits.Len(uint(c.node.Rep)), bits.Len(uint(c.node.Def))
	var rep, def []byte
	if h.kind == format.DataPage {
		if body, err = c.decompress(h.uncompressed, body); err != nil {
			return err
		}
		if repWidth > 0 {
			if rep, body, err = levelsV1(h.repEncoding, body); err != nil {
				return err
			}
		}
		if defWidth > 0 {
			if def, body, err = levelsV1(h.defEncoding, body); err != nil {
				return err
			}
		}
	} else {
		if h.repBytes > len(body) || h.defBytes > len(body)-h.repBytes || h.uncompressed < h.repBytes+h.defBytes {
			return fmt.Errorf("%w: levels of %d and %d bytes in a page of %d", ErrCorrupt, h.repBytes, h.defBytes, len(body))
		}
		rep, def, body = body[:h.repBytes], body[h.repBytes:h.repBytes+h.defBytes], body[h.repBytes+h.defBytes:]
		// A page of nulls alone may have no body, compressed or not.
		if h.bodyCompressed && len(body) > 0 {
			if body, err = c.decompress(h.uncompressed-h.repBytes-h.defBytes, body); err != nil {
				return err
			}
		}
	}
	if c.rep, err = levels(c.rep[:0], rep, c.n, repWidth, c.node.Rep); err != nil {
		return fmt.Errorf("repetition levels: %w", err)
	}
	if c.def, err = levels(c.def[:0], def, c.n, defWidth, c.node.Def); err != nil {
		return fmt.Errorf("definition levels: %w", err)
	}
	values := c.n
	if max := uint8(c.node.Def); max > 0 {
		values = 0
		for _, d := range c.def {
			if d == max {
				values++
			}
		}
	}
	if values == 0 {
		return nil
	}
	if err := c.readValues(h.encoding, body, values); err != nil {
		return fmt.Errorf("%d values as %v: %w", values, h.encoding, err)
	}
	return nil
}

// levelsV1 cuts length-prefixed levels off the front of a page of version 1.
func levelsV1(enc format.Encoding, body []byte) (levels, rest []byte, err error) {
	if enc != format.RLE {
		return nil, nil, fmt.Errorf("%w: levels encoded as %v", ErrUnsupported, enc)
	}
	return prefixed(body)
}

func (n *Node) bytes() bool {
	return n.Physical == format.ByteArray || n.Physical == format.FixedLenByteArray
}

func (c *Column) readValues(enc format.Encoding, body []byte, n int) (err error) {
	str := c.node.bytes()
	switch enc {
	case format.Plain:
		if str {
			c.strs, err = plainStrings(c.strs, body, n, c.node, c.borrow)
		} else {
			c.ints, err = plainInts(c.ints, body, n, c.node.Physical)
		}
		return err
	case format.PlainDictionary, format.RLEDictionary:
		if !c.hasDict {
			return fmt.Errorf("%w: no dictionary", ErrCorrupt)
		}
		if c.idx, err = indexes(c.idx[:0], body, n); err != nil {
			return err
		}
		size := len(c.dictStrs) + len(c.dictInts) // one of them is empty
		for _, i := range c.idx {
			if int(i) >= size {
				return fmt.Errorf("%w: index %d into a dictionary of %d", ErrCorrupt, i, size)
			}
			if str {
				c.strs = append(c.strs, c.dictStrs[i])
			} else {
				c.ints = append(c.ints, c.dictInts[i])
			}
		}
		return nil
	case format.RLE:
		if c.node.Physical == format.Boolean {
			c.ints, err = rleBooleans(c.ints, body, n)
			return err
		}
	case format.DeltaBinaryPacked:
		if c.node.Physical == format.Int32 || c.node.Physical == format.Int64 {
			c.ints, _, err = deltaInts(c.ints, body, n)
			if c.node.Physical == format.Int32 {
				for i, v := range c.ints {
					c.ints[i] = int64(int32(v))
				}
			}
			return err
		}
	case format.DeltaLengthByteArray:
		if c.node.Physical == format.ByteArray {
			c.strs, err = deltaLengthStrings(c.strs, body, n)
			return err
		}
	case format.DeltaByteArray:
		if str {
			c.strs, err = deltaStrings(c.strs, body, n)
			if err == nil && c.node.Physical == format.FixedLenByteArray {
				for _, s := range c.strs {
					if len(s) != c.node.length {
						return fmt.Errorf("%w: %d bytes, want %d", ErrCorrupt, len(s), c.node.length)
					}
				}
			}
			return err
		}
	case format.ByteStreamSplit:
		size := fixedSize(c.node)
		if size == 0 || len(body) != size*n {
			return fmt.Errorf("%w: %d bytes for %d values", ErrCorrupt, len(body), n)
		}
		joined := make([]byte, len(body))
		for i := range n {
			for j := range size {
				joined[i*size+j] = body[j*n+i]
			}
		}
		if str {
			c.strs, err = plainStrings(c.strs, joined, n, c.node, true)
		} else {
			c.ints, err = plainInts(c.ints, joined, n, c.node.Physical)
		}
		return err
	}
	return fmt.Errorf("%w: type %v encoded as %v", ErrUnsupported, c.node.Physical, enc)
}

// fixedSize is the width of a value, 0 for booleans and byte arrays.
func fixedSize(n *Node) int {
	switch n.Physical {
	case format.Int32, format.Float:
		return 4
	case format.Int64, format.Double:
		return 8
	case format.Int96:
		return 12
	case format.FixedLenByteArray:
		return n.length
	}
	return 0
}
