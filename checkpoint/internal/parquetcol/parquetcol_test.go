package parquetcol

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress"
	"github.com/parquet-go/parquet-go/deprecated"
	"github.com/parquet-go/parquet-go/encoding"
	"github.com/parquet-go/parquet-go/format"
	"pgregory.net/rapid"
)

// TestMain lowers the number of random cases, which is a type and encoding
// each here, unless the command line says otherwise.
func TestMain(m *testing.M) {
	flag.Parse()
	if f := flag.Lookup("rapid.checks"); f != nil && f.Value.String() == f.DefValue {
		if err := f.Value.Set("25"); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

// kindOf is a physical type, how to draw a value of it, and how upstream
// writes and we read that value.
type kindOf struct {
	name      string
	node      parquet.Node
	encodings []encoding.Encoding
	draw      func(t *rapid.T) any // string or int64, as Column returns it
	value     func(v any) parquet.Value
}

var (
	dict = &parquet.RLEDictionary
	text = func(t *rapid.T) any {
		prefix := rapid.SampledFrom([]string{"", "date=2026-11-22/shard=0a/", strings.Repeat("p", 300)}).Draw(t, "prefix")
		return prefix + string(rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "text"))
	}
)

var kinds = []kindOf{
	{"string", parquet.String(), []encoding.Encoding{&parquet.Plain, dict, &parquet.DeltaLengthByteArray, &parquet.DeltaByteArray}, text,
		func(v any) parquet.Value { return parquet.ByteArrayValue([]byte(v.(string))) }},
	{"fixed", parquet.Leaf(parquet.FixedLenByteArrayType(5)), []encoding.Encoding{&parquet.Plain, dict, &parquet.DeltaByteArray, &parquet.ByteStreamSplit},
		func(t *rapid.T) any { return string(rapid.SliceOfN(rapid.Byte(), 5, 5).Draw(t, "fixed")) },
		func(v any) parquet.Value { return parquet.FixedLenByteArrayValue([]byte(v.(string))) }},
	{"int32", parquet.Leaf(parquet.Int32Type), []encoding.Encoding{&parquet.Plain, dict, &parquet.DeltaBinaryPacked, &parquet.ByteStreamSplit},
		func(t *rapid.T) any { return int64(rapid.Int32().Draw(t, "int32")) },
		func(v any) parquet.Value { return parquet.Int32Value(int32(v.(int64))) }},
	{"int64", parquet.Leaf(parquet.Int64Type), []encoding.Encoding{&parquet.Plain, dict, &parquet.DeltaBinaryPacked, &parquet.ByteStreamSplit},
		func(t *rapid.T) any { return rapid.Int64().Draw(t, "int64") },
		func(v any) parquet.Value { return parquet.Int64Value(v.(int64)) }},
	{"boolean", parquet.Leaf(parquet.BooleanType), []encoding.Encoding{&parquet.Plain, &parquet.RLE},
		func(t *rapid.T) any { return int64(rapid.IntRange(0, 1).Draw(t, "bool")) },
		func(v any) parquet.Value { return parquet.BooleanValue(v.(int64) == 1) }},
	{"double", parquet.Leaf(parquet.DoubleType), []encoding.Encoding{&parquet.Plain, dict, &parquet.ByteStreamSplit},
		func(t *rapid.T) any { return int64(math.Float64bits(rapid.Float64().Draw(t, "double"))) },
		func(v any) parquet.Value { return parquet.DoubleValue(math.Float64frombits(uint64(v.(int64)))) }},
	{"float", parquet.Leaf(parquet.FloatType), []encoding.Encoding{&parquet.Plain, dict, &parquet.ByteStreamSplit},
		func(t *rapid.T) any { return int64(math.Float64bits(float64(rapid.Float32().Draw(t, "float")))) },
		func(v any) parquet.Value { return parquet.FloatValue(float32(math.Float64frombits(uint64(v.(int64))))) }},
	{"int96", parquet.Leaf(parquet.Int96Type), []encoding.Encoding{&parquet.Plain, dict},
		func(t *rapid.T) any { return rapid.Int64Range(-1<<52, 1<<52).Draw(t, "micros") },
		func(v any) parquet.Value {
			const day = 86_400_000_000
			micros := v.(int64)
			d := micros / day
			if micros%day < 0 {
				d--
			}
			nanos := uint64(micros-d*day) * 1000
			return parquet.Int96Value(deprecated.Int96{uint32(nanos), uint32(nanos >> 32), uint32(d + 2440588)})
		}},
}

// shapes nest the leaf; fields of a row are drawn by level.
var shapes = []struct {
	name string
	wrap func(parquet.Node) parquet.Node
	path []string
	def  int
	rep  bool
}{
	{"required", func(n parquet.Node) parquet.Node { return n }, []string{"x"}, 0, false},
	{"optional", parquet.Optional, []string{"x"}, 1, false},
	{"nested", func(n parquet.Node) parquet.Node {
		return parquet.Optional(parquet.Group{"y": parquet.Group{"z": parquet.Optional(n)}})
	}, []string{"x", "y", "z"}, 2, false},
	{"list", func(n parquet.Node) parquet.Node { return parquet.Optional(parquet.List(parquet.Optional(n))) }, []string{"x", "list", "element"}, 3, true},
}

var codecs = []compress.Codec{&parquet.Uncompressed, &parquet.Snappy, &parquet.Gzip, &parquet.Zstd, &parquet.Lz4Raw}

// cheap draws the codecs whose encoders take megabytes, which the race
// detector looks at byte by byte, less often.
var cheap = append(slices.Repeat(codecs[:2], 8), codecs[2:]...)

type cell struct {
	Rep, Def int
	Value    any
}

// TestAgainstUpstream writes columns of all types, shapes, encodings, codecs
// and page versions with upstream's writer, and reads them here, with and
// without leaving out rows.
func TestAgainstUpstream(t *testing.T) {
	for _, k := range kinds {
		for _, enc := range k.encodings {
			t.Run(k.name+"/"+enc.String(), func(t *testing.T) {
				rapid.Check(t, func(t *rapid.T) { checkColumn(t, k, enc) })
			})
		}
	}
}

func checkColumn(t *rapid.T, k kindOf, enc encoding.Encoding) {
	shape := shapes[rapid.IntRange(0, len(shapes)-1).Draw(t, "shape")]
	if shape.rep && k.name != "string" {
		shape = shapes[1] // lists of others are not supported
	}
	// Each row is some cells; a column that does not repeat has one.
	var rows [][]cell
	pool := rapid.SliceOfN(rapid.Custom(k.draw), 1, 8).Draw(t, "pool")
	pick := rapid.IntRange(0, len(pool)-1)
	for i := range rapid.IntRange(1, 12).Draw(t, "rows") {
		n := 1
		if shape.rep {
			n = rapid.IntRange(1, 4).Draw(t, "elements")
		}
		repeat := rapid.SampledFrom([]int{1, 1, 17}).Draw(t, "repeat")
		for range repeat {
			var row []cell
			for j := range n {
				c := cell{Rep: min(j, 1), Def: rapid.IntRange(0, shape.def).Draw(t, "def")}
				if n > 1 {
					c.Def = max(c.Def, shape.def-1) // an element, null or not
				}
				if c.Def == shape.def {
					c.Value = pool[pick.Draw(t, "value")]
					if i%7 == 6 {
						c.Value = k.draw(t)
					}
				}
				row = append(row, c)
			}
			rows = append(rows, row)
		}
	}
	schema := parquet.NewSchema("s", parquet.Group{"x": shape.wrap(parquet.Encoded(k.node, enc))})
	var out bytes.Buffer
	w := parquet.NewWriter(&out, schema,
		parquet.Compression(rapid.SampledFrom(cheap).Draw(t, "codec")),
		parquet.DataPageVersion(rapid.IntRange(1, 2).Draw(t, "version")),
		parquet.PageBufferSize(rapid.SampledFrom([]int{16, 200, 4096}).Draw(t, "page")),
		parquet.DictionaryMaxBytes(rapid.SampledFrom([]int64{0, 64}).Draw(t, "dictionary")))
	groupRows := rapid.IntRange(1, len(rows)).Draw(t, "group")
	for i, row := range rows {
		var r parquet.Row
		for _, c := range row {
			v := parquet.NullValue()
			if c.Value != nil {
				v = k.value(c.Value)
			}
			r = append(r, v.Level(c.Rep, c.Def, 0))
		}
		if _, err := w.WriteRows([]parquet.Row{r}); err != nil {
			t.Fatal(err)
		}
		if (i+1)%groupRows == 0 {
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	f := parse(t, out.Bytes())
	leaf := f.Root.Child(shape.path...)
	if leaf == nil || leaf.Def != shape.def {
		t.Fatalf("leaf %+v, want level %d", leaf, shape.def)
	}
	stride := rapid.IntRange(1, 5).Draw(t, "stride")
	var got, want [][]cell
	from := 0
	for _, g := range f.RowGroups {
		chunk := g.Chunks[leaf.Leaf]
		c := NewColumn(leaf, chunk, out.Bytes()[chunk.Offset:chunk.Offset+chunk.Length])
		if err := c.End(g.NumRows); err != nil {
			t.Fatal(err)
		}
		for row := int64(0); row < g.NumRows; row += int64(stride) {
			got = append(got, readRow(c, row, shape.rep))
			want = append(want, rows[from+int(row)])
		}
		if err := c.Err(); err != nil {
			t.Fatal(err)
		}
		c.Close()
		from += int(g.NumRows)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("-want +got\n%s", diff)
	}
}

func readRow(c *Column, row int64, rep bool) (out []cell) {
	if rep {
		for i, e := range c.Row(row) {
			x := cell{Rep: min(i, 1), Def: e.Def}
			if e.Def == c.Node().Def {
				x.Value = e.Str
			}
			out = append(out, x)
		}
		return out
	}
	x := cell{Def: c.At(row)}
	if x.Def == c.Node().Def {
		if c.Node().bytes() {
			x.Value = c.Str()
		} else {
			x.Value = c.Int()
		}
	}
	return []cell{x}
}

type fataler interface {
	Fatal(...any)
}

func parse(t fataler, data []byte) *File {
	n, err := FooterSize(data[len(data)-TailSize:], int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	f, err := ParseFooter(data[int64(len(data))-TailSize-n:len(data)-TailSize], int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestLogicalTypes(t *testing.T) {
	schema := parquet.NewSchema("s", parquet.Group{
		"string": parquet.String(), "json": parquet.JSON(), "enum": parquet.Enum(), "bson": parquet.BSON(),
		"decimal": parquet.Decimal(2, 9, parquet.Int32Type), "date": parquet.Date(),
		"millis": parquet.Timestamp(parquet.Millisecond), "micros": parquet.TimestampAdjusted(parquet.Microsecond, false),
		"nanos": parquet.Timestamp(parquet.Nanosecond), "time": parquet.Time(parquet.Microsecond),
		"int16": parquet.Int(16), "uint16": parquet.Uint(16), "uuid": parquet.UUID(),
		"int96": parquet.Leaf(parquet.Int96Type), "bytes": parquet.Leaf(parquet.ByteArrayType),
		"variant": parquet.Variant(), "map": parquet.Map(parquet.String(), parquet.String()),
	})
	var out bytes.Buffer
	w := parquet.NewWriter(&out, schema)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	f := parse(t, out.Bytes())
	for name, want := range map[string]Logical{
		"string": {Kind: String}, "json": {Kind: String}, "enum": {Kind: String}, "bson": {Kind: Other},
		"decimal": {Kind: Decimal, Scale: 2}, "date": {Kind: Date},
		"millis": {Kind: Timestamp, Unit: 1e3, UTC: true}, "micros": {Kind: Timestamp, Unit: 1e6},
		"nanos": {Kind: Timestamp, Unit: 1e9, UTC: true}, "time": {Kind: Other},
		"int16": {Kind: Integer}, "uint16": {Kind: Other}, "uuid": {Kind: Other},
		"int96": {Kind: Timestamp, Unit: 1e6, UTC: true}, "bytes": {}, "variant": {Kind: Variant}, "map": {},
	} {
		if diff := cmp.Diff(want, f.Root.Child(name).Logical); diff != "" {
			t.Errorf("%s: -want +got\n%s", name, diff)
		}
	}
	if n := f.Root.Child("map", "key_value", "key"); n == nil || n.Rep != 1 || n.Def != 1 {
		t.Errorf("map key: %+v", n)
	}
	if n := f.Root.Child("map", "no such", "key"); n != nil {
		t.Errorf("no such field: %+v", n)
	}
}

// TestRefused: what is not supported is told from what is broken.
func TestRefused(t *testing.T) {
	for _, c := range []struct {
		name string
		tail []byte
		size int64
		want error
	}{
		{"short", []byte("PAR1"), 4, ErrCorrupt},
		{"no magic", []byte("\x01\x00\x00\x00PAR2"), 100, ErrCorrupt},
		{"encrypted", []byte("\x01\x00\x00\x00PARE"), 100, ErrUnsupported},
		{"footer longer than the file", []byte("\xff\xff\xff\xffPAR1"), 100, ErrCorrupt},
		{"footer over the magic", []byte("\x5a\x00\x00\x00PAR1"), 100, ErrCorrupt},
	} {
		if _, err := FooterSize(c.tail, c.size); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	brotli := &bytes.Buffer{}
	w := parquet.NewWriter(brotli, parquet.NewSchema("s", parquet.Group{"x": parquet.String()}), parquet.Compression(&parquet.Brotli))
	if _, err := w.WriteRows([]parquet.Row{{parquet.ByteArrayValue([]byte("abc")).Level(0, 0, 0)}}); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	f := parse(t, brotli.Bytes())
	chunk := f.RowGroups[0].Chunks[0]
	c := NewColumn(f.Root.Child("x"), chunk, brotli.Bytes()[chunk.Offset:chunk.Offset+chunk.Length])
	if d := c.At(0); d != -1 || !errors.Is(c.Err(), ErrUnsupported) {
		t.Errorf("brotli: level %d, %v, want ErrUnsupported", d, c.Err())
	}
	c.Close()
	if c.At(0) != -1 || c.Row(0) != nil || c.Str() != "" || c.Int() != 0 {
		t.Error("a closed column returns values")
	}
}

// TestHybridGroups: bit-packed groups that are cut off after the last value,
// and runs that reach beyond it, are read; a stream that ends early is not.
func TestHybridGroups(t *testing.T) {
	for _, c := range []struct {
		src  []byte
		n    int
		want string
	}{
		{[]byte{3, 0b10101010}, 3, "[0 1 0]"},
		{[]byte{5, 0b1}, 3, "[1 0 0]"},         // 16 values announced, 8 are there
		{[]byte{5, 0b1}, 9, "error"},           // 9 are wanted
		{[]byte{200, 1, 1}, 5, "[1 1 1 1 1]"},  // a run of 100
		{[]byte{4, 1, 4, 0}, 4, "[1 1 0 0]"},   // two runs
		{[]byte{4, 1}, 3, "error"},             // a run of 2
		{[]byte{0, 1}, 3, "error"},             // a run of 0
		{[]byte{1, 1}, 3, "error"},             // no groups
		{[]byte{0xff, 0xff, 0xff}, 3, "error"}, // no varint
		{[]byte{4}, 2, "error"},                // no value
		{nil, 0, "[]"},
	} {
		got, err := hybrid[uint8](nil, c.src, c.n, 1)
		if text := fmt.Sprint(got); (err == nil && text != c.want) || (err != nil) != (c.want == "error") {
			t.Errorf("%v: %s, %v, want %s", c.src, text, err, c.want)
		}
		if err != nil && !errors.Is(err, ErrCorrupt) {
			t.Errorf("%v: %v, want ErrCorrupt", c.src, err)
		}
	}
	if _, err := hybrid[uint32](nil, []byte{3, 1, 1, 1, 1, 1}, 8, 33); !errors.Is(err, ErrCorrupt) {
		t.Errorf("33 bits: %v", err)
	}
}

// FuzzFile reads every column of whatever is given as a file.
func FuzzFile(f *testing.F) {
	for _, k := range kinds {
		for i, enc := range k.encodings {
			var out bytes.Buffer
			w := parquet.NewWriter(&out, parquet.NewSchema("s", parquet.Group{"x": parquet.Optional(parquet.Encoded(k.node, enc))}),
				parquet.Compression(codecs[i%len(codecs)]), parquet.DataPageVersion(1+i%2))
			v := any(int64(1))
			if k.name == "string" || k.name == "fixed" {
				v = "abcde"
			}
			for range 3 {
				if _, err := w.WriteRows([]parquet.Row{{k.value(v).Level(0, 1, 0)}, {parquet.NullValue().Level(0, 0, 0)}}); err != nil {
					f.Fatal(err)
				}
			}
			if err := w.Close(); err != nil {
				f.Fatal(err)
			}
			f.Add(out.Bytes())
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) < TailSize {
			return
		}
		n, err := FooterSize(data[len(data)-TailSize:], int64(len(data)))
		if err != nil {
			return
		}
		file, err := ParseFooter(data[int64(len(data))-TailSize-n:len(data)-TailSize], int64(len(data)))
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnsupported) {
				t.Fatalf("%v is neither ErrCorrupt nor ErrUnsupported", err)
			}
			return
		}
		var walk func(n *Node)
		walk = func(n *Node) {
			for _, c := range n.Children {
				walk(c)
			}
			for _, g := range file.RowGroups {
				if n.Leaf < 0 {
					continue
				}
				chunk := g.Chunks[n.Leaf]
				c := NewColumn(n, chunk, data[chunk.Offset:chunk.Offset+chunk.Length])
				for row := int64(0); row < min(g.NumRows, 1000) && c.Err() == nil; row++ {
					if n.Rep > 0 {
						c.Row(row)
					} else if c.Present(row) {
						_, _ = c.Str(), c.Int()
					}
				}
				if err := c.Err(); err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnsupported) {
					t.Fatalf("%v is neither ErrCorrupt nor ErrUnsupported", err)
				}
				c.Close()
			}
		}
		walk(file.Root)
	})
}

// FuzzPage decodes whatever is given as the body of a page of any type,
// encoding, codec and shape, past the checksum that whole files have.
func FuzzPage(f *testing.F) {
	for enc := range uint8(10) {
		for codec := range uint8(8) {
			f.Add([]byte{2, 0, 0, 0, 6, 1, 128, 1, 4, 3, 2, 0, 0, 7, 7, 7, 7}, enc%8, enc, codec, uint8(1), uint8(0), uint16(3), enc%2 == 0)
		}
	}
	f.Fuzz(func(t *testing.T, body []byte, typ, enc, codec, def, rep uint8, n uint16, v2 bool) {
		node := &Node{
			Name: "x", Def: int(def % 5), Rep: int(rep % 2), length: 3,
			Physical: format.Type(typ % 8),
		}
		if node.Rep > 0 {
			node.Physical, node.Def = format.ByteArray, max(node.Def, 1)
		}
		c := NewColumn(node, Chunk{NumValues: int64(n), codec: format.CompressionCodec(codec % 8)}, nil)
		defer c.Close()
		h := pageHeader{
			kind: format.DataPage, uncompressed: len(body) * 3, values: int(n), encoding: format.Encoding(enc % 10),
			bodyCompressed: true, repBytes: len(body) / 5, defBytes: len(body) / 4,
		}
		if h.uncompressed /= 3; c.chunk.codec != format.Uncompressed {
			h.uncompressed = int(n)
		}
		if v2 {
			h.kind = format.DataPageV2
		}
		c.hasDict = true
		if node.bytes() {
			c.dictStrs = []string{"abc", "def"}
		} else {
			c.dictInts = []int64{1, 2}
		}
		c.n = int(n)
		if err := c.readData(&h, body); err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnsupported) {
				t.Fatalf("%v is neither ErrCorrupt nor ErrUnsupported", err)
			}
			return
		}
		// What was accepted is complete.
		present := c.n
		if node.Def > 0 {
			present = bytes.Count(c.def, []byte{byte(node.Def)})
		}
		if got := len(c.strs) + len(c.ints); got != present || (node.Def > 0 && len(c.def) != c.n) {
			t.Fatalf("%d values, want %d", got, present)
		}
	})
}

// TestPageClaims: what a page claims beyond its bytes is refused, before
// memory is taken for it.
func TestPageClaims(t *testing.T) {
	long := bytes.Repeat([]byte{'x'}, 1<<20)
	zipped, err := parquet.Zstd.Encode(nil, long)
	if err != nil {
		t.Fatal(err)
	}
	snapped, err := parquet.Snappy.Encode(nil, long)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		typ  format.Type
		def  int
		head pageHeader
		body []byte
		code format.CompressionCodec
	}{
		{name: "index beyond the dictionary", head: pageHeader{values: 1, encoding: format.RLEDictionary}, body: []byte{8, 2, 2}},
		{name: "width of 33 bits", head: pageHeader{values: 1, encoding: format.RLEDictionary}, body: []byte{33, 2, 0, 0, 0, 0, 0}},
		{name: "level beyond the greatest", def: 2, head: pageHeader{values: 1}, body: []byte{2, 0, 0, 0, 2, 3}},
		{name: "levels longer than the page", def: 1, head: pageHeader{values: 1}, body: []byte{200, 0, 0, 0, 2, 1}},
		{name: "a value longer than the page", head: pageHeader{values: 1}, body: []byte{200, 0, 0, 0, 'x'}},
		{name: "more values than fit", head: pageHeader{values: maxPageValues}, body: []byte{0, 0, 0, 0}},
		{name: "more numbers than fit", typ: format.Int64, head: pageHeader{values: maxPageValues}, body: make([]byte, 80)},
		{name: "more delta values than announced", typ: format.Int64, head: pageHeader{values: 3, encoding: format.DeltaBinaryPacked}, body: []byte{128, 1, 4, 2, 0, 0, 0, 0, 0, 0}},
		{name: "delta blocks of nothing", typ: format.Int64, head: pageHeader{values: 2, encoding: format.DeltaBinaryPacked}, body: []byte{0, 4, 2, 0, 0, 0}},
		{name: "prefix longer than the value before", head: pageHeader{values: 1, encoding: format.DeltaByteArray}, body: []byte{128, 1, 4, 1, 2, 128, 1, 4, 1, 0}},
		{name: "snappy of another size", head: pageHeader{values: 1, uncompressed: 60 * len(snapped)}, body: snapped, code: format.Snappy},
		{name: "snappy beyond its ratio", head: pageHeader{values: 1, uncompressed: maxPageBytes}, body: snapped[:100], code: format.Snappy},
		{name: "zstd that holds more", head: pageHeader{values: 1, uncompressed: 100}, body: zipped, code: format.Zstd},
		{name: "zstd that holds less", head: pageHeader{values: 1, uncompressed: 2 << 20}, body: zipped, code: format.Zstd},
		{name: "zstd beyond its ratio", head: pageHeader{values: 1, uncompressed: maxPageBytes}, body: zipped[:20], code: format.Zstd},
		{name: "page beyond the limit", head: pageHeader{values: 1, uncompressed: maxPageBytes + 1}, body: long, code: format.Zstd},
		{name: "plain page of another size", head: pageHeader{values: 1, uncompressed: 3}, body: []byte{0, 0, 0, 0}},
	} {
		t.Run(c.name, func(t *testing.T) {
			typ := c.typ
			if typ == 0 {
				typ = format.ByteArray
			}
			col := NewColumn(&Node{Name: "x", Physical: typ, Def: c.def}, Chunk{NumValues: int64(c.head.values), codec: c.code}, nil)
			defer col.Close()
			col.scratch = new(scratch)
			col.hasDict, col.dictStrs, col.n = true, []string{"a", "b"}, c.head.values
			h := c.head
			h.kind, h.bodyCompressed = format.DataPage, true
			h.defEncoding, h.repEncoding = format.RLE, format.RLE
			if h.uncompressed == 0 {
				h.uncompressed = len(c.body)
			}
			if err := col.readData(&h, c.body); !errors.Is(err, ErrCorrupt) {
				t.Errorf("%v, want ErrCorrupt", err)
			}
			if got := cap(col.body) + 16*cap(col.strs) + 8*cap(col.ints) + 4*cap(col.idx) + cap(col.def); got > max(64*len(c.body), 1<<16) && c.name != "zstd that holds less" {
				t.Errorf("%d bytes taken for a page of %d", got, len(c.body))
			}
		})
	}
}

// TestDecompressionBomb: a small page that would grow far beyond the size in
// its header is given up at that size.
func TestDecompressionBomb(t *testing.T) {
	const content = 64 << 20
	bomb, err := parquet.Zstd.Encode(nil, make([]byte, content))
	if err != nil {
		t.Fatal(err)
	}
	c := NewColumn(&Node{Name: "x", Physical: format.ByteArray}, Chunk{codec: format.Zstd}, nil)
	defer c.Close()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err = c.decompress(1000, bomb)
	runtime.ReadMemStats(&after)
	if !errors.Is(err, ErrCorrupt) {
		t.Errorf("%v, want ErrCorrupt", err)
	}
	if got := after.TotalAlloc - before.TotalAlloc; got > content/4 {
		t.Errorf("%d bytes allocated for a page of 1000", got)
	}
}
