package chunk

import "encoding/binary"

// thriftWriter writes the compact protocol, as much as page headers and
// footers need.
type thriftWriter struct {
	buf   []byte
	last  int16   // field written last
	outer []int16 // the same of the structs around this one
}

func (t *thriftWriter) field(id int16, typ byte) {
	if d := id - t.last; d > 0 && d < 16 {
		t.buf = append(t.buf, byte(d)<<4|typ)
	} else {
		t.buf = append(t.buf, typ)
		t.buf = binary.AppendVarint(t.buf, int64(id))
	}
	t.last = id
}

func (t *thriftWriter) int16(id int16, v int16) {
	t.field(id, thriftI16)
	t.buf = binary.AppendVarint(t.buf, int64(v))
}

func (t *thriftWriter) int32(id int16, v int32) {
	t.field(id, thriftI32)
	t.buf = binary.AppendVarint(t.buf, int64(v))
}

func (t *thriftWriter) int64(id int16, v int64) {
	t.field(id, thriftI64)
	t.buf = binary.AppendVarint(t.buf, v)
}

func (t *thriftWriter) binary(id int16, v []byte) {
	t.field(id, thriftBinary)
	t.buf = append(binary.AppendUvarint(t.buf, uint64(len(v))), v...)
}

func (t *thriftWriter) text(id int16, v string) {
	t.field(id, thriftBinary)
	t.element(v)
}

// element writes a text as an element of a list.
func (t *thriftWriter) element(v string) {
	t.buf = append(binary.AppendUvarint(t.buf, uint64(len(v))), v...)
}

// list begins a list; its elements follow.
func (t *thriftWriter) list(id int16, typ byte, n int) {
	t.field(id, thriftList)
	if n < 15 {
		t.buf = append(t.buf, byte(n)<<4|typ)
		return
	}
	t.buf = binary.AppendUvarint(append(t.buf, 0xf0|typ), uint64(n))
}

// begin opens a struct that is a field, open one that is an element of a
// list; end closes either.
func (t *thriftWriter) begin(id int16) {
	t.field(id, thriftStruct)
	t.open()
}

func (t *thriftWriter) open() {
	t.outer = append(t.outer, t.last)
	t.last = 0
}

func (t *thriftWriter) end() {
	t.buf = append(t.buf, 0)
	t.last = t.outer[len(t.outer)-1]
	t.outer = t.outer[:len(t.outer)-1]
}
