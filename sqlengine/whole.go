package sqlengine

import (
	"fmt"
	"math"
	"math/bits"
	"unsafe"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

// wholeFixed copies n values of a type whose memory is the same on both sides.
func wholeFixed[T any](t arrow.DataType, v vector, n int) (arrow.Array, error) {
	var zero T
	size := int(unsafe.Sizeof(zero))
	data := make([]byte, n*size)
	copy(data, unsafe.Slice((*byte)(v.data), len(data)))
	return arrayOf(t, v, n, data), nil
}

// wholeTexts copies n texts or binary values. Equal ones may share their memory
// in DuckDB, so that it does not bound how long they are together.
func wholeTexts(t arrow.DataType, v vector, n int) (arrow.Array, error) {
	offsets := make([]int32, n+1)
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
	data := make([]byte, 0, total)
	for i := range n {
		if offsets[i+1] > offsets[i] {
			data = append(data, v.bytes(i)...)
		}
	}
	return arrayOf(t, v, n, arrow.Int32Traits.CastToBytes(offsets), data), nil
}

// arrayOf makes an array of n rows of memory that nobody else uses.
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
		buffers = append(buffers, memory.NewBufferBytes(m))
	}
	data := array.NewData(t, n, buffers, nil, nulls, 0)
	defer data.Release()
	return array.MakeFromData(data)
}
