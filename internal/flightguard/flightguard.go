// Package flightguard reads the messages of an Arrow Flight stream before
// arrow-go does, which allocates what a message claims, and refuses claims
// beyond given bounds.
//
// It stands on layer 7, below the protocols that take record batches.
//
// INVARIANT: for one message, arrow-go allocates at most twice Limits.Bytes.
// It must never refuse what a well-behaved writer sends within the bounds.
package flightguard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/flight"
	"github.com/apache/arrow-go/v18/arrow/memory"
	flatbuffers "github.com/google/flatbuffers/go"
	"github.com/klauspost/compress/zstd"

	"cardinalsin/ingest"
)

// maxWindow bounds zstd's memory; Arrow's writers use far less.
const maxWindow = 8 << 20

// Limits bound a stream; all must be set.
type Limits struct {
	// Rows are those of one message.
	Rows int64
	// Bytes bounds what the buffers of one message say they decompress to, and
	// the dictionaries that the stream has at one time.
	Bytes int64
}

// Guard reads one stream. It is a flight.DataStreamReader and the
// memory.Allocator with which arrow-go must decode what it returns, and is used
// by one goroutine.
type Guard struct {
	stream       flight.DataStreamReader
	limits       Limits
	descriptor   *flight.FlightDescriptor // of the first message
	began        bool
	dictionaries map[int64]int64 // by id, bytes
	buffers      int             // that the schema needs of a record batch; -1 if that varies
	allocated    int64           // bytes, by arrow-go for the message at hand

	streamErr error // of the stream, other than its end
	refusal   error // of a message, by us
}

// New guards a stream.
func New(stream flight.DataStreamReader, limits Limits) *Guard {
	return &Guard{stream: stream, limits: limits, dictionaries: map[int64]int64{}}
}

// Descriptor is that of the first message, nil if it has none.
func (g *Guard) Descriptor() *flight.FlightDescriptor { return g.descriptor }

// StreamErr is why the stream itself failed, other than by its end.
func (g *Guard) StreamErr() error { return g.streamErr }

// Refusal is why a message was refused. It wraps an error of package ingest.
func (g *Guard) Refusal() error { return g.refusal }

// Recv implements flight.DataStreamReader.
func (g *Guard) Recv() (*flight.FlightData, error) {
	data, err := g.stream.Recv()
	if err != nil {
		if !errors.Is(err, io.EOF) {
			g.streamErr = err
		}
		return nil, err
	}
	g.allocated = 0
	if !g.began {
		g.began, g.descriptor = true, data.FlightDescriptor
	}
	if len(data.DataHeader) == 0 {
		return data, nil
	}
	if err := g.check(data.DataHeader, data.DataBody); err != nil {
		g.refusal = err
		return nil, err
	}
	return data, nil
}

// Allocate implements memory.Allocator, as the last line of defence: a panic
// with an error is what arrow-go's reader makes an error of.
func (g *Guard) Allocate(size int) []byte {
	most := 2 * g.limits.Bytes // buffers are rounded up, and joined
	if g.allocated += int64(size); size < 0 || int64(size) > most || g.allocated > most {
		panic(fmt.Errorf("%w: a message needs more than %d bytes", ingest.ErrTooLarge, most))
	}
	return memory.DefaultAllocator.Allocate(size)
}

// Reallocate implements memory.Allocator.
func (g *Guard) Reallocate(size int, b []byte) []byte {
	if size <= cap(b) {
		return memory.DefaultAllocator.Reallocate(size, b)
	}
	out := g.Allocate(size)
	copy(out, b)
	return out
}

// Free implements memory.Allocator.
func (g *Guard) Free(b []byte) { memory.DefaultAllocator.Free(b) }

// Expect takes the schema, which tells how many buffers a record batch has.
// arrow-go reads as many, whether the message has them or not.
func (g *Guard) Expect(schema *arrow.Schema) {
	g.buffers = 0
	for _, f := range schema.Fields() {
		n := buffersOf(f.Type)
		if n < 0 {
			g.buffers = -1
			return
		}
		g.buffers += n
	}
}

// textBuffers are those of text: validity, offsets, bytes.
const textBuffers = 3

// buffersOf counts the buffers of a type that may be a column's, -1 where that
// is for each message to say, as of views, or the type is no column's.
func buffersOf(t arrow.DataType) int {
	switch t := t.(type) {
	case *arrow.DictionaryType:
		if buffersOf(t.ValueType) != textBuffers {
			return -1
		}
		return 2
	case *arrow.MapType:
		key, item := buffersOf(t.KeyType()), buffersOf(t.ItemType())
		if key < 0 || item < 0 {
			return -1
		}
		return 3 + key + item // validity and offsets of the map, validity of the pair
	case *arrow.StringType, *arrow.LargeStringType, *arrow.BinaryType, *arrow.LargeBinaryType:
		return textBuffers
	case arrow.FixedWidthDataType:
		if t.ID() != arrow.EXTENSION && t.ID() != arrow.FIXED_SIZE_LIST {
			return 2
		}
	}
	return -1
}

// Kinds of messages, and the slots of the fields that matter, from
// Message.fbs: 4 + 2 × the field's number.
const (
	kindDictionary = 2
	kindRecords    = 3

	slotKind, slotHeader                     = 6, 8     // Message
	slotID, slotData, slotDelta              = 4, 6, 8  // DictionaryBatch
	slotLength, slotBuffers, slotCompression = 4, 8, 10 // RecordBatch
	slotCodec                                = 4        // BodyCompression

	codecZstd   = 1
	blockRepeat = 1 // zstd's block of one byte that is repeated
)

// check refuses a message that claims too much. Flatbuffers that point outside
// themselves panic.
func (g *Guard) check(header, body []byte) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: message header: %v", ingest.ErrMalformed, r)
		}
	}()
	message := table(header, flatbuffers.GetUOffsetT(header))
	kind := message.GetByteSlot(slotKind, 0)
	if kind != kindDictionary && kind != kindRecords {
		return nil
	}
	at, ok := child(message, slotHeader)
	if !ok {
		return fmt.Errorf("%w: message without a header", ingest.ErrMalformed)
	}
	records := at
	if kind == kindDictionary {
		if records, ok = child(at, slotData); !ok {
			return fmt.Errorf("%w: dictionary without data", ingest.ErrMalformed)
		}
	}
	rows := records.GetInt64Slot(slotLength, 0)
	if rows < 0 || rows > g.limits.Rows {
		return fmt.Errorf("%w: %d rows in a message, at most %d", ingest.ErrTooLarge, rows, g.limits.Rows)
	}
	need := textBuffers // of a dictionary
	if kind == kindRecords || g.buffers < 0 {
		need = g.buffers
	}
	size, err := expanded(records, body, need, g.limits)
	if err != nil {
		return err
	}
	if kind == kindRecords {
		return nil
	}
	id := at.GetInt64Slot(slotID, 0)
	if at.GetBoolSlot(slotDelta, false) {
		size += g.dictionaries[id]
	}
	g.dictionaries[id] = size
	total := int64(0)
	for _, n := range g.dictionaries {
		total += n
	}
	if total > g.limits.Bytes {
		return fmt.Errorf("%w: dictionaries of %d bytes, at most %d in one stream", ingest.ErrTooLarge, total, g.limits.Bytes)
	}
	return nil
}

func table(b []byte, pos flatbuffers.UOffsetT) flatbuffers.Table {
	return flatbuffers.Table{Bytes: b, Pos: pos}
}

func child(t flatbuffers.Table, slot flatbuffers.VOffsetT) (flatbuffers.Table, bool) {
	o := flatbuffers.UOffsetT(t.Offset(slot))
	if o == 0 {
		return flatbuffers.Table{}, false
	}
	return table(t.Bytes, t.Indirect(o+t.Pos)), true
}

// expanded is the size of a message's buffers once they are decompressed. need
// is how many there must be at least.
func expanded(records flatbuffers.Table, body []byte, need int, limits Limits) (int64, error) {
	compression, ok := child(records, slotCompression)
	if !ok {
		return int64(len(body)), nil
	}
	codec := compression.GetByteSlot(slotCodec, 0)
	o := flatbuffers.UOffsetT(records.Offset(slotBuffers))
	if need < 0 {
		return 0, fmt.Errorf("%w: a compressed message with views; send it without compression", ingest.ErrUnsupported)
	}
	if o == 0 || records.VectorLen(o) < need {
		return 0, fmt.Errorf("%w: a message with fewer buffers than the %d of its schema", ingest.ErrMalformed, need)
	}
	const bufferBytes = 16 // offset, length
	start, n := records.Vector(o), records.VectorLen(o)
	total := int64(0)
	for i := range n {
		at := start + flatbuffers.UOffsetT(i)*bufferBytes
		offset, length := records.GetInt64(at), records.GetInt64(at+8)
		if length == 0 {
			continue
		}
		if offset < 0 || length < 8 || offset > int64(len(body)) || length > int64(len(body))-offset {
			return 0, fmt.Errorf("%w: buffer of %d bytes at %d of %d", ingest.ErrMalformed, length, offset, len(body))
		}
		data := body[offset : offset+length]
		size := int64(binary.LittleEndian.Uint64(data))
		if size == -1 { // not compressed
			size = length
		} else if codec == codecZstd {
			if err := checkZstd(data[8:], limits); err != nil {
				return 0, err
			}
		}
		if size < 0 || size > limits.Bytes || total+size > limits.Bytes {
			return 0, fmt.Errorf("%w: a message decompresses to more than %d bytes", ingest.ErrTooLarge, limits.Bytes)
		}
		total += size
	}
	return total, nil
}

// checkZstd accepts one frame with a small window: a decoder allocates the
// window of each frame that it meets.
func checkZstd(data []byte, limits Limits) error {
	var h zstd.Header
	if err := h.Decode(data); err != nil {
		return fmt.Errorf("%w: zstd: %w", ingest.ErrMalformed, err)
	}
	if h.Skippable {
		return fmt.Errorf("%w: zstd: a frame without content", ingest.ErrMalformed)
	}
	window, limit := h.WindowSize, uint64(maxWindow)
	if h.SingleSegment {
		window, limit = h.FrameContentSize, uint64(limits.Bytes)
	}
	if window > limit {
		return fmt.Errorf("%w: zstd: window of %d bytes, at most %d", ingest.ErrTooLarge, window, limit)
	}
	rest := data[h.HeaderSize:]
	for last := false; !last; {
		if len(rest) < 3 {
			return fmt.Errorf("%w: zstd: frame is cut short", ingest.ErrMalformed)
		}
		block := uint32(rest[0]) | uint32(rest[1])<<8 | uint32(rest[2])<<16
		last = block&1 == 1
		size := int(block >> 3)
		if block>>1&3 == blockRepeat {
			size = 1
		}
		if len(rest) < 3+size {
			return fmt.Errorf("%w: zstd: frame is cut short", ingest.ErrMalformed)
		}
		rest = rest[3+size:]
	}
	if h.HasCheckSum {
		if len(rest) < 4 {
			return fmt.Errorf("%w: zstd: frame is cut short", ingest.ErrMalformed)
		}
		rest = rest[4:]
	}
	if len(rest) > 0 {
		return fmt.Errorf("%w: zstd: %d bytes after the frame", ingest.ErrMalformed, len(rest))
	}
	return nil
}
