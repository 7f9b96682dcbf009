package sqlengine

import (
	"fmt"
	"math"
	"math/bits"
	"sync"
	"unsafe"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

// wholeFixed copies n values of a type whose memory is the same on both sides.
func wholeFixed[T any](t arrow.DataType, v vector, n int) (arrow.Array, error) {
	var zero T
	size := int(unsafe.Sizeof(zero))
	data := take(n * size)
	copy(data, unsafe.Slice((*byte)(v.data), len(data)))
	return arrayOf(t, v, n, data), nil
}

// wholeTexts copies n texts or binary values. Equal ones may share their memory
// in DuckDB, so that it does not bound how long they are together.
func wholeTexts(t arrow.DataType, v vector, n int) (arrow.Array, error) {
	places := take((n + 1) * arrow.Int32SizeBytes)
	offsets := arrow.Int32Traits.CastFromBytes(places)
	offsets[0] = 0
	total := int64(0)
	for i := range n {
		if v.valid(i) { // else the length is anything
			total += int64(at[text](v, i).length)
		}
		if total > math.MaxInt32 {
			return nil, fmt.Errorf("%w: %d rows have more than 2 GiB of text", ErrTooLarge, n)
		}
		offsets[i+1] = int32(total)
	}
	// Short texts are copied by their whole place, which ends within spare
	// room, and what is too much is written over by the next.
	data := take(int(total) + inlineText)
	for i := range n {
		from, to := offsets[i], offsets[i+1]
		switch {
		case from == to:
		case to-from <= inlineText:
			*(*[inlineText]byte)(data[from:]) = *(*[inlineText]byte)(unsafe.Pointer(&at[text](v, i).inline))
		default:
			copy(data[from:to], v.bytes(i))
		}
	}
	return arrayOf(t, v, n, places, data[:total]), nil
}

// recycled is the memory of most columns of a record: 2048 rows of 8 bytes.
const recycled = 16 << 10

// spareMemory keeps memory of records that were released, for the next ones: a
// large result would else call the garbage collector every few records.
var spareMemory = sync.Pool{New: func() any { return new([recycled]byte) }}

// take returns n bytes that hold anything.
func take(n int) []byte {
	if n > recycled || n < recycled/8 { // a pool of small ones would hold far more than it gives
		return make([]byte, n)
	}
	return spareMemory.Get().(*[recycled]byte)[:n]
}

// recycler takes memory back when the last who holds it releases it. What is
// never released is left to the garbage collector.
type recycler struct{ memory.Allocator }

func (recycler) Free(b []byte) {
	if cap(b) == recycled {
		spareMemory.Put((*[recycled]byte)(b[:recycled]))
	}
}

// arrayOf makes an array of n rows of memory that was taken and that nobody else
// uses.
func arrayOf(t arrow.DataType, v vector, n int, memories ...[]byte) arrow.Array {
	buffers := make([]*memory.Buffer, 1, 1+len(memories)) // the first is which rows are valid
	nulls := 0
	if v.validity != nil {
		valid := make([]byte, (n+7)/8)
		copy(valid, unsafe.Slice((*byte)(v.validity), len(valid)))
		if spare := n % 8; spare != 0 {
			valid[len(valid)-1] &= 1<<spare - 1
		}
		nulls = n
		for _, b := range valid {
			nulls -= bits.OnesCount8(b)
		}
		buffers[0] = memory.NewBufferBytes(valid)
	}
	for _, m := range memories {
		b := memory.NewBufferWithAllocator(m, recycler{memory.DefaultAllocator})
		defer b.Release() // the array holds it
		buffers = append(buffers, b)
	}
	data := array.NewData(t, n, buffers, nil, nulls, 0)
	defer data.Release()
	return array.MakeFromData(data)
}
