package index

import (
	"encoding/binary"
	"fmt"
	"math"
	"sync"

	"github.com/RoaringBitmap/roaring/v2"
	"github.com/cespare/xxhash/v2"
	"github.com/klauspost/compress/zstd"
)

const (
	magic = "CARDIDX1"
	// tailBytes end a segment: the directory's length, and the magic.
	tailBytes = 16
	// seriesPerPage: a query for one series decodes that many.
	seriesPerPage = 256
	// restartSeries: within a page, decoding can begin at every so many series.
	restartSeries = 16
	// valuePageBytes is when a page of values is full, before compression.
	valuePageBytes = 16 << 10
	// maxBlock bounds a block, as it is stored and when it is decompressed.
	maxBlock = 256 << 20
	// maxInline is the most postings, or bytes of a bitmap, in a value's page.
	maxInline = 64
	sumBytes  = 8
	// nearBytes bounds the values of small labels that are read with the
	// directory: a request costs more than that many bytes.
	nearBytes = 64 << 10
)

// Postings of a value.
const (
	postingsList = iota
	postingsBitmap
	postingsBlock
)

// codec is zstd's; both sides may be used concurrently.
var codec = sync.OnceValues(func() (*zstd.Encoder, *zstd.Decoder) {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderCRC(false))
	if err != nil {
		panic(err) // the options are constants
	}
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(maxBlock))
	if err != nil {
		panic(err)
	}
	return e, d
})

// plainCodec leaves literals as they are, which decodes in half the time. Pages
// of series are mostly ids and texts of which little is to be saved.
var plainCodec = sync.OnceValue(func() *zstd.Encoder {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderCRC(false), zstd.WithNoEntropyCompression(true))
	if err != nil {
		panic(err) // the options are constants
	}
	return e
})

// appendBlock appends raw as a block and returns its length.
func appendBlock(out, raw []byte) ([]byte, int) {
	e, _ := codec()
	return appendFrame(e, out, raw)
}

func appendFrame(e *zstd.Encoder, out, raw []byte) ([]byte, int) {
	start := len(out)
	out = e.EncodeAll(raw, out)
	out = binary.LittleEndian.AppendUint64(out, xxhash.Sum64(out[start:]))
	return out, len(out) - start
}

// openBlock checks and decompresses a block.
func openBlock(block []byte) ([]byte, error) { return openInto(nil, block) }

// openInto is openBlock into memory that is used again.
func openInto(buf, block []byte) ([]byte, error) {
	n := len(block) - sumBytes
	if n < 0 || xxhash.Sum64(block[:n]) != binary.LittleEndian.Uint64(block[n:]) {
		return nil, fmt.Errorf("%w: checksum of a block", ErrCorrupt)
	}
	_, d := codec()
	raw, err := d.DecodeAll(block[:n], buf[:0])
	if err != nil {
		return nil, fmt.Errorf("%w: block: %w", ErrCorrupt, err)
	}
	return raw, nil
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// reading takes a block apart. After the first fault all it returns is zero.
type reading struct {
	b   []byte
	bad bool
}

func (r *reading) uvarint() uint64 {
	if len(r.b) > 0 && r.b[0] < 0x80 { // most are
		v := uint64(r.b[0])
		r.b = r.b[1:]
		return v
	}
	return r.long()
}

// long reads a number of any length.
func (r *reading) long() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

// int reads a number of at most most.
func (r *reading) int(most int) int {
	v := r.uvarint()
	if v > uint64(most) {
		r.bad, r.b = true, nil
		return 0
	}
	return int(v)
}

// count reads how many things follow, each of at least one byte: so it bounds
// what is allocated for them.
func (r *reading) count() int { return r.int(len(r.b)) }

func (r *reading) bytes(n int) []byte {
	if n < 0 || n > len(r.b) {
		r.bad, r.b = true, nil
		return nil
	}
	out := r.b[:n:n]
	r.b = r.b[n:]
	return out
}

func (r *reading) text() string { return string(r.bytes(r.count())) }

func (r *reading) zigzag() int64 {
	v := r.uvarint()
	return int64(v>>1) ^ -int64(v&1)
}

func zigzag(v int64) uint64 { return uint64(v<<1) ^ uint64(v>>63) }

// numbers passes over n numbers of any length and returns their bytes, which
// nobody has looked at.
func (r *reading) numbers(n int) []byte {
	end := 0
	for ; n > 0 && end < len(r.b); end++ {
		if r.b[end] < 0x80 {
			n--
		}
	}
	return r.bytes(end + n) // above all there is, where they end too soon
}

// ordinals reads ascending numbers below limit, and calls each.
func (r *reading) ordinals(n, limit int, each func(int)) {
	at := -1
	for range n {
		at += 1 + r.int(math.MaxInt32)
		if r.bad || at >= limit {
			r.bad, r.b = true, nil
			return
		}
		each(at)
	}
}

func appendOrdinals(b []byte, list []uint32) []byte {
	last := int64(-1)
	for _, v := range list {
		b = binary.AppendUvarint(b, uint64(int64(v)-last-1))
		last = int64(v)
	}
	return b
}

// end returns an error unless all was read and sound.
func (r *reading) end(what string) error {
	if r.bad || len(r.b) > 0 {
		return fmt.Errorf("%w: %s", ErrCorrupt, what)
	}
	return nil
}

// openBitmap reads a bitmap of ordinals below limit.
func openBitmap(b []byte, limit int) (out *roaring.Bitmap, err error) {
	defer func() {
		if r := recover(); r != nil {
			out, err = nil, fmt.Errorf("%w: postings: %v", ErrCorrupt, r)
		}
	}()
	out = roaring.New()
	if _, err := out.FromUnsafeBytes(b); err != nil {
		return nil, fmt.Errorf("%w: postings: %w", ErrCorrupt, err)
	}
	if err := out.Validate(); err != nil {
		return nil, fmt.Errorf("%w: postings: %w", ErrCorrupt, err)
	}
	if !out.IsEmpty() && int(out.Maximum()) >= limit {
		return nil, fmt.Errorf("%w: postings beyond the last series", ErrCorrupt)
	}
	return out, nil
}
