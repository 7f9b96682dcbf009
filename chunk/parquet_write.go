package chunk

import (
	"encoding/binary"
	"encoding/json"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/cespare/xxhash/v2"
	"github.com/klauspost/compress/zstd"

	"cardinalsin/internal/symbols"
)

// The writer lays pages and footer down itself. A general Parquet writer
// hashes every row of a dictionary column; here rows come as runs of series,
// so that a label costs by its runs, and integers and values are encoded from
// where they lie. What it writes is a small part of the format, which every
// reader of Parquet knows.

// Paths of the leaf columns that the fixed schema names.
const (
	overflowKeyPath   = ColumnOverflow + ".key_value.key"
	overflowValuePath = ColumnOverflow + ".key_value.value"
)

const (
	// maxStatBytes bounds a column's min and max in the footer; a longer
	// value leaves the column without bounds.
	maxStatBytes = 256
	// maxPageBytes ends a page of histograms early.
	maxPageBytes = 1 << 20
)

// Numbers of parquet.thrift.
const (
	typeInt32     = 1
	typeInt64     = 2
	typeDouble    = 5
	typeByteArray = 6

	required = 0
	optional = 1
	repeated = 2

	convertedNone   = -1
	convertedText   = 0
	convertedMap    = 1
	convertedMicros = 10

	codecZstd     = 6
	parquetFormat = 2 // version, in the footer
)

// leafColumn is one leaf column of the file.
type leafColumn struct {
	path           []string
	kind           int32
	maxDef, maxRep int16
}

// fileWriter writes one file, column by column, row group by row group.
type fileWriter struct {
	opts    Options
	has     fileColumns
	labels  []*labelColumn
	columns []leafColumn
	delta   bool // series_id is delta-coded
	zstd    *zstd.Encoder

	data   []byte       // the file so far
	before int          // bytes of the file before
	groups thriftWriter // RowGroup structs so far
	count  int          // of row groups
	rows   int64
	sums   []byte

	// The row group that is written: where the rows of each segment begin,
	// and one more at the end.
	starts []int32
	total  int // rows
	column columnProgress

	// Scratch, used again.
	header  thriftWriter
	packed  []byte // a compressed page
	raw     []byte // a page before that
	reps    hybridWriter
	defs    hybridWriter
	codes   hybridWriter
	longs   []int64
	floats  []uint64
	byValue valueDictionary
	texts   symbols.Dictionary
}

// columnProgress is what the footer will say about the column chunk.
type columnProgress struct {
	leaf       *leafColumn
	next       int // place of the next column
	start      int // offset of the first page
	dict, data int // offsets of the first pages of each kind; dict 0: none
	raw        int64
	values     int64
	nulls      int64
	encoding   int32
	least      []byte // nil: no bounds
	greatest   []byte
	noStats    bool
	zstd       *zstd.Encoder
}

// windowBytes is what a compressor keeps to look back to; few pages are longer.
const windowBytes = 1 << 20

// compressors are shared, one a level. They are made with their first use but
// for the one of all flushes: the best keeps 34 MB of tables.
var compressors = [...]func() *zstd.Encoder{
	zstd.SpeedFastest:           func() *zstd.Encoder { return fastest },
	zstd.SpeedDefault:           sync.OnceValue(func() *zstd.Encoder { return newCompressor(zstd.SpeedDefault, 0) }),
	zstd.SpeedBetterCompression: sync.OnceValue(func() *zstd.Encoder { return newCompressor(zstd.SpeedBetterCompression, 0) }),
	zstd.SpeedBestCompression:   sync.OnceValue(func() *zstd.Encoder { return newCompressor(zstd.SpeedBestCompression, 1) }),
}

var fastest = newCompressor(zstd.SpeedFastest, 0)

func compressor(level int) *zstd.Encoder { return compressors[zstd.EncoderLevelFromZstd(level)]() }

// newCompressor makes a compressor for so many pages at a time; 0 means one a
// processor.
func newCompressor(level zstd.EncoderLevel, atOnce int) *zstd.Encoder {
	if atOnce == 0 {
		atOnce = runtime.GOMAXPROCS(0)
	}
	// Frames carry zstd's own checksum, which every reader looks at. A page
	// of nothing is a frame too, or some readers would not take it.
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(atOnce),
		zstd.WithWindowSize(windowBytes), zstd.WithLowerEncoderMem(true),
		zstd.WithEncoderCRC(true), zstd.WithZeroFrames(true))
	if err != nil {
		panic(err) // the options are sound
	}
	e.EncodeAll(nil, nil) // makes its tables
	return e
}

// maxGuess bounds what is set aside for a file that may be small.
const maxGuess = 32 << 20

// forget drops what is of one file; the scratch stays.
func (f *fileWriter) forget() {
	f.before = len(f.data)
	f.data, f.labels = nil, nil
	f.columns, f.sums, f.groups.buf = f.columns[:0], f.sums[:0], f.groups.buf[:0]
	f.count, f.rows = 0, 0
}

// start begins a file; f is new, or has forgotten the one before.
func (f *fileWriter) start(opts Options, has fileColumns, labelColumns []*labelColumn, deltaIDs bool) {
	f.opts, f.has, f.labels, f.delta, f.zstd = opts, has, labelColumns, deltaIDs, compressor(opts.Level)
	// Files that follow each other are about as large; to grow one by copying
	// costs as much as a third of its encoding.
	f.data = append(make([]byte, 0, min(f.before+f.before/8, maxGuess)), parquetMagic...)
	leaf := func(path string, kind int32, maxDef, maxRep int16) {
		f.columns = append(f.columns, leafColumn{strings.Split(path, "."), kind, maxDef, maxRep})
	}
	leaf(ColumnMetricName, typeByteArray, 0, 0)
	leaf(ColumnSeriesID, typeInt64, 0, 0)
	for _, c := range labelColumns { // a name may hold a dot
		f.columns = append(f.columns, leafColumn{[]string{c.column}, typeByteArray, 1, 0})
	}
	if has.overflow {
		leaf(overflowKeyPath, typeByteArray, overflowEntryDef, 1)
		leaf(overflowValuePath, typeByteArray, overflowValueDef, 1)
	}
	leaf(ColumnTimestamp, typeInt64, 0, 0)
	if has.nanos {
		leaf(ColumnNanos, typeInt32, 1, 0)
	}
	if has.start {
		leaf(ColumnStart, typeInt64, 1, 0)
	}
	leaf(ColumnValue, typeDouble, int16(b2i(has.histogram)), 0)
	if has.histogram {
		leaf(ColumnHistogram, typeByteArray, 1, 0)
	}
}

// schema appends the file's schema to the footer: a list of elements, each
// group before its members.
func (f *fileWriter) schema(t *thriftWriter) {
	elements := 1 + len(f.columns)
	if f.has.overflow {
		elements += 2 // the map and its entries
	}
	t.list(2, thriftStruct, elements)
	group := func(name string, repetition int32, children int, converted int32) {
		t.open()
		if repetition >= 0 {
			t.int32(3, repetition)
		}
		t.text(4, name)
		t.int32(5, int32(children))
		if converted == convertedMap {
			t.int32(6, converted)
			t.begin(10)
			t.begin(2) // MAP
			t.end()
			t.end()
		}
		t.end()
	}
	leaf := func(c *leafColumn, repetition, converted int32) {
		t.open()
		t.int32(1, c.kind)
		t.int32(3, repetition)
		t.text(4, c.path[len(c.path)-1])
		if converted != convertedNone {
			t.int32(6, converted)
			t.begin(10)
			if converted == convertedText {
				t.begin(1) // STRING
				t.end()
			} else {
				t.begin(8) // TIMESTAMP, UTC, in microseconds
				t.field(1, thriftTrue)
				t.begin(2)
				t.begin(2)
				t.end()
				t.end()
				t.end()
			}
			t.end()
		}
		t.end()
	}
	top := len(f.columns)
	if f.has.overflow {
		top-- // two leaves in one map
	}
	group("schema", -1, top, convertedNone)
	for i := range f.columns {
		c := &f.columns[i]
		repetition, converted := int32(required), int32(convertedNone)
		if c.maxDef > 0 {
			repetition = optional
		}
		if c.kind == typeByteArray {
			converted = convertedText
		}
		name := c.path[len(c.path)-1]
		switch {
		case len(c.path) == 3 && name == "key":
			group(ColumnOverflow, optional, 1, convertedMap)
			group(c.path[1], repeated, 2, convertedNone)
			repetition = required
		case f.isLabel(i) || len(c.path) == 3:
		case name == ColumnTimestamp:
			converted = convertedMicros
		case name == ColumnHistogram:
			converted = convertedNone
		}
		leaf(c, repetition, converted)
	}
}

// isLabel reports whether a column is that of a label: those follow name and
// series_id.
func (f *fileWriter) isLabel(i int) bool { return i >= 2 && i < 2+len(f.labels) }

// writeRowGroup writes segments and their rows as one row group.
func (f *fileWriter) writeRowGroup(segs []segment, c *rowColumns) {
	rows := len(c.times)
	f.starts, f.total = append(f.starts[:0], 0), rows
	at := int32(0)
	for i := range segs {
		at += segs[i].rows
		f.starts = append(f.starts, at)
	}
	t := &f.groups
	t.open()
	t.list(1, thriftStruct, len(f.columns))
	start := len(f.data)
	f.column.next = 0
	var raw int64
	column := func(write func()) {
		f.begin()
		write()
		f.end()
		raw += f.column.raw
	}
	column(func() { f.writeNames(segs) })
	column(func() { f.writeIDs(segs) })
	for _, l := range f.labels {
		column(func() { f.writeLabel(l) })
	}
	if f.has.overflow {
		column(func() { f.writeOverflow(segs, true) })
		column(func() { f.writeOverflow(segs, false) })
	}
	column(func() { f.writeTimes(c.times) })
	if f.has.nanos {
		column(func() { f.writeNanos(c.nanos) })
	}
	if f.has.start {
		column(func() { f.writeStarts(c.starts) })
	}
	column(func() { f.writeValues(c) })
	if f.has.histogram {
		column(func() { f.writeHistograms(c.histograms) })
	}
	t.int64(2, raw)
	t.int64(3, int64(rows))
	t.int64(5, int64(start))
	t.int64(6, int64(len(f.data)-start))
	t.int16(7, int16(f.count))
	t.end()
	f.count++
	f.rows += int64(rows)
}

func (f *fileWriter) begin() {
	f.column = columnProgress{leaf: &f.columns[f.column.next], next: f.column.next + 1, start: len(f.data), zstd: f.zstd}
}

// writePage compresses f.raw and appends it as a page of n values.
func (f *fileWriter) writePage(kind int32, n int, encoding int32) {
	c := &f.column
	at := len(f.data)
	f.packed = f.column.zstd.EncodeAll(f.raw, f.packed[:0])
	t := &f.header
	t.buf, t.last, t.outer = t.buf[:0], 0, t.outer[:0]
	t.int32(1, kind)
	t.int32(2, int32(len(f.raw)))
	t.int32(3, int32(len(f.packed)))
	if kind == pageDictionary {
		t.begin(7)
		t.int32(1, int32(n))
		t.int32(2, encoding)
		t.end()
		c.dict = at
	} else {
		t.begin(5)
		t.int32(1, int32(n))
		t.int32(2, encoding)
		t.int32(3, encodingRLE) // of definition levels
		t.int32(4, encodingRLE) // of repetition levels
		t.end()
		if c.data == 0 {
			c.data = at
		}
		c.values += int64(n)
		c.encoding = encoding
	}
	t.buf = append(t.buf, 0)
	if n := len(t.buf) + len(f.packed); len(f.data)+n > cap(f.data) {
		// To grow by a quarter, as append does, copies a file four times over.
		f.data = slices.Grow(f.data, max(n, len(f.data)))
	}
	f.data = append(f.data, t.buf...)
	f.data = append(f.data, f.packed...)
	c.raw += int64(len(t.buf) + len(f.raw))
}

// levels begins a data page in f.raw with its levels, as far as the column
// has any, and makes room for those of the next.
func (f *fileWriter) levels() {
	f.raw = f.raw[:0]
	put := func(h *hybridWriter, most int16) {
		if most == 0 {
			return
		}
		b := h.finish()
		f.raw = append(binary.LittleEndian.AppendUint32(f.raw, uint32(len(b))), b...)
		h.reset(bitsFor(most))
	}
	put(&f.reps, f.column.leaf.maxRep)
	put(&f.defs, f.column.leaf.maxDef)
}

// bounds sets the column's least and greatest value, unless one is too long.
func (f *fileWriter) bounds(least, greatest []byte) {
	if len(least) <= maxStatBytes && len(greatest) <= maxStatBytes {
		f.column.least, f.column.greatest = least, greatest
	}
}

func longBytes(v int64) []byte { return binary.LittleEndian.AppendUint64(nil, uint64(v)) }

// end describes the column chunk in the footer.
func (f *fileWriter) end() {
	c := &f.column
	size := int64(len(f.data) - c.start)
	f.sums = binary.LittleEndian.AppendUint64(f.sums, xxhash.Sum64(f.data[c.start:]))
	t := &f.groups
	t.open()
	t.int64(2, int64(c.start))
	t.begin(3)
	t.int32(1, c.leaf.kind)
	encodings := []int32{c.encoding, encodingRLE}
	if c.dict > 0 {
		encodings = append(encodings, encodingPlain)
	}
	t.list(2, thriftI32, len(encodings))
	for _, e := range encodings {
		t.buf = binary.AppendVarint(t.buf, int64(e))
	}
	t.list(3, thriftBinary, len(c.leaf.path))
	for _, name := range c.leaf.path {
		t.element(name)
	}
	t.int32(4, codecZstd)
	t.int64(5, c.values)
	t.int64(6, c.raw)
	t.int64(7, size)
	t.int64(9, int64(c.data))
	if c.dict > 0 {
		t.int64(11, int64(c.dict))
	}
	if !c.noStats {
		t.begin(12)
		t.int64(3, c.nulls)
		if c.least != nil {
			t.binary(5, c.greatest)
			t.binary(6, c.least)
		}
		t.end()
	}
	t.end()
	t.end()
}

// finish writes footer and seal, and returns the whole file.
func (f *fileWriter) finish(in info) ([]byte, error) {
	in.Format, in.Sums = formatVersion, f.sums
	text, err := json.Marshal(in)
	if err != nil {
		return nil, err
	}
	t := &thriftWriter{}
	t.int32(1, parquetFormat)
	f.schema(t)
	t.int64(3, f.rows)
	t.list(4, thriftStruct, f.count)
	t.buf = append(t.buf, f.groups.buf...)
	t.list(5, thriftStruct, 1)
	t.open()
	t.text(1, infoKey)
	t.text(2, string(text))
	t.end()
	t.text(6, createdBy)
	t.list(7, thriftStruct, len(f.columns))
	for range f.columns {
		t.open()
		t.begin(1) // bounds are in the order of the type
		t.end()
		t.end()
	}
	t.buf = append(t.buf, 0)
	f.data = append(f.data, t.buf...)
	f.data = binary.LittleEndian.AppendUint32(f.data, uint32(len(t.buf)))
	f.data = append(f.data, parquetMagic...)
	return sealFile(f.data)
}
