package sqlengine

import (
	"unsafe"

	duckdb "github.com/duckdb/duckdb-go-bindings"
)

// vector is the memory of one column of a data chunk. The chunk owns it.
type vector struct {
	v        duckdb.Vector
	data     unsafe.Pointer
	validity unsafe.Pointer // one bit a row, nil: all rows are valid
}

func vectorOf(v duckdb.Vector) vector {
	return vector{v: v, data: duckdb.VectorGetData(v), validity: duckdb.VectorGetValidity(v)}
}

func (v vector) valid(i int) bool {
	if v.validity == nil {
		return true
	}
	word := *(*uint64)(unsafe.Add(v.validity, i/64*8))
	return word>>(i%64)&1 == 1
}

// setNull marks a row of a vector that is being filled.
func (v *vector) setNull(i int) {
	if v.validity == nil {
		duckdb.VectorEnsureValidityWritable(v.v)
		v.validity = duckdb.VectorGetValidity(v.v)
	}
	*(*uint64)(unsafe.Add(v.validity, i/64*8)) &^= 1 << (i % 64)
}

// at is one value of a fixed-size type.
func at[T any](v vector, i int) *T {
	var zero T
	return (*T)(unsafe.Add(v.data, i*int(unsafe.Sizeof(zero))))
}

// text is DuckDB's string_t (duckdb.h, duckdb_string_t): the length, then up
// to 12 bytes in place, or 4 bytes of prefix and a pointer.
type text struct {
	length uint32
	inline [4]byte
	rest   [8]byte
}

const inlineText = 12

// bytes is one value of a text or binary type; the chunk owns the memory.
func (v vector) bytes(i int) []byte {
	t := at[text](v, i)
	if t.length <= inlineText {
		return unsafe.Slice(&t.inline[0], t.length)
	}
	return unsafe.Slice(*(**byte)(unsafe.Pointer(&t.rest)), t.length)
}

// entry is a list's place in its child vector.
type entry struct{ offset, length uint64 }
