package chunk

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
)

// hybrid reads Parquet's mix of run-length and bit-packed values
// (Encodings.md, "Run Length Encoding / Bit-Packing Hybrid").
type hybrid struct {
	data  []byte
	width uint
	// What is left of the current run: either count times value, or packed
	// values from bit position bit of group.
	left   int
	packed bool
	value  uint32
	group  []byte
	bit    int
}

func newHybrid(data []byte, width uint) (*hybrid, error) {
	if width > 32 {
		return nil, fmt.Errorf("%w: values of %d bits", ErrCorrupt, width)
	}
	return &hybrid{data: data, width: width}, nil
}

// next returns a value and how often it follows in a row, at least once and
// at most limit times.
func (h *hybrid) next(limit int) (value uint32, n int, err error) {
	if h.left == 0 {
		if err := h.header(); err != nil {
			return 0, 0, err
		}
	}
	if h.packed {
		value = h.unpack()
		h.left--
		return value, 1, nil
	}
	n = min(h.left, limit)
	h.left -= n
	return h.value, n, nil
}

// appendRuns reads n dictionary codes below entries and appends them as runs.
func (h *hybrid) appendRuns(runs []run, n, entries int) ([]run, error) {
	for n > 0 {
		if h.left == 0 {
			if err := h.header(); err != nil {
				return nil, err
			}
		}
		k := min(n, h.left)
		h.left -= k
		n -= k
		if !h.packed {
			if h.value >= uint32(entries) {
				return nil, fmt.Errorf("%w: code %d in a dictionary of %d", ErrCorrupt, h.value, entries)
			}
			runs = appendRun(runs, k, int32(h.value))
			continue
		}
		for k > 0 {
			v, same := h.unpack(), 1
			if v >= uint32(entries) {
				return nil, fmt.Errorf("%w: code %d in a dictionary of %d", ErrCorrupt, v, entries)
			}
			for k--; k > 0; k-- {
				bit := h.bit
				if h.unpack() != v {
					h.bit = bit
					break
				}
				same++
			}
			runs = appendRun(runs, same, int32(v))
		}
	}
	return runs, nil
}

func (h *hybrid) header() error {
	head, n := binary.Uvarint(h.data)
	if n <= 0 || head>>1 == 0 || head>>1 > math.MaxInt32/8 {
		return fmt.Errorf("%w: run header", ErrCorrupt)
	}
	h.data = h.data[n:]
	count := int(head >> 1)
	if head&1 == 1 {
		// Groups of eight values; the last may be cut short at the end.
		size := count * int(h.width)
		if size > len(h.data) {
			return fmt.Errorf("%w: %d bit-packed bytes of %d", ErrCorrupt, size, len(h.data))
		}
		h.packed, h.left, h.group, h.bit = true, count*8, h.data[:size], 0
		h.data = h.data[size:]
		return nil
	}
	size := int(h.width+7) / 8
	if size > len(h.data) {
		return fmt.Errorf("%w: run value", ErrCorrupt)
	}
	h.packed, h.left, h.value = false, count, 0
	for i := range size {
		h.value |= uint32(h.data[i]) << (8 * i)
	}
	h.data = h.data[size:]
	return nil
}

func (h *hybrid) unpack() uint32 {
	at := h.bit >> 3
	var word uint64
	if at+8 <= len(h.group) {
		word = binary.LittleEndian.Uint64(h.group[at:])
	} else {
		for i := at; i < len(h.group); i++ {
			word |= uint64(h.group[i]) << (8 * (i - at))
		}
	}
	v := word >> (h.bit & 7) & (1<<h.width - 1)
	h.bit += int(h.width)
	return uint32(v)
}

// levels calls visit for each run of equal levels among n.
func levels(data []byte, width uint, maxLevel int16, n int, visit func(level int16, n int) error) error {
	h, err := newHybrid(data, width)
	if err != nil {
		return err
	}
	for n > 0 {
		v, k, err := h.next(n)
		if err != nil {
			return err
		}
		if v > uint32(maxLevel) {
			return fmt.Errorf("%w: level %d", ErrCorrupt, v)
		}
		if err := visit(int16(v), k); err != nil {
			return err
		}
		n -= k
	}
	return nil
}

// plainText reads the next value of PLAIN byte arrays.
func plainText(data []byte) (value, rest []byte, err error) {
	if len(data) < 4 || uint64(binary.LittleEndian.Uint32(data)) > uint64(len(data)-4) {
		return nil, nil, fmt.Errorf("%w: byte array exceeds its page", ErrCorrupt)
	}
	n := 4 + int(binary.LittleEndian.Uint32(data))
	return data[4:n:n], data[n:], nil
}

// decodeTexts reads all n values of a PLAIN page; they share one string.
func decodeTexts(data []byte, n int) ([]string, error) {
	if n > len(data)/4 {
		return nil, fmt.Errorf("%w: %d byte arrays in %d bytes", ErrCorrupt, n, len(data))
	}
	text := string(data)
	out := make([]string, n)
	for i := range out {
		v, rest, err := plainText(data)
		if err != nil {
			return nil, err
		}
		at := len(text) - len(rest) - len(v)
		out[i] = text[at : at+len(v)]
		data = rest
	}
	if len(data) != 0 {
		return nil, fmt.Errorf("%w: %d bytes after the dictionary", ErrCorrupt, len(data))
	}
	return out, nil
}

// decodePlain64 reads n eight-byte values into out.
func decodePlain64(out []uint64, data []byte) error {
	if len(data) != 8*len(out) {
		return fmt.Errorf("%w: %d bytes for %d values", ErrCorrupt, len(data), len(out))
	}
	for i := range out {
		out[i] = binary.LittleEndian.Uint64(data[8*i:])
	}
	return nil
}

// decodeStreamSplit64 is the inverse of BYTE_STREAM_SPLIT for eight bytes:
// stream k holds byte k of every value.
func decodeStreamSplit64(out []uint64, data []byte) error {
	n := len(out)
	if len(data) != 8*n {
		return fmt.Errorf("%w: %d bytes for %d values", ErrCorrupt, len(data), n)
	}
	s0, s1, s2, s3 := data[:n], data[n:2*n], data[2*n:3*n], data[3*n:4*n]
	s4, s5, s6, s7 := data[4*n:5*n], data[5*n:6*n], data[6*n:7*n], data[7*n:]
	for i := range out {
		out[i] = uint64(s0[i]) | uint64(s1[i])<<8 | uint64(s2[i])<<16 | uint64(s3[i])<<24 |
			uint64(s4[i])<<32 | uint64(s5[i])<<40 | uint64(s6[i])<<48 | uint64(s7[i])<<56
	}
	return nil
}

// decodeDelta reads len(out) values of DELTA_BINARY_PACKED (Encodings.md,
// "Delta Encoding"). Arithmetic wraps, as the encoding demands.
func decodeDelta[T ~int64](out []T, data []byte) error {
	bad := func(what string) error { return fmt.Errorf("%w: delta coding: %s", ErrCorrupt, what) }
	uvarint := func() (uint64, bool) {
		v, n := binary.Uvarint(data)
		if n <= 0 {
			return 0, false
		}
		data = data[n:]
		return v, true
	}
	blockSize, ok1 := uvarint()
	miniCount, ok2 := uvarint()
	total, ok3 := uvarint()
	first, ok4 := uvarint()
	if !ok1 || !ok2 || !ok3 || !ok4 || total != uint64(len(out)) {
		return bad("header")
	}
	if miniCount == 0 || blockSize == 0 || blockSize > 1<<20 || miniCount > blockSize || blockSize%miniCount != 0 || blockSize/miniCount%32 != 0 {
		return bad("block size")
	}
	if len(out) == 0 {
		return nil
	}
	mini := int(blockSize / miniCount)
	value := int64(first>>1) ^ -int64(first&1)
	out[0] = T(value)
	at := 1
	for at < len(out) {
		m, ok := uvarint()
		if !ok || uint64(len(data)) < miniCount {
			return bad("block header")
		}
		least := int64(m>>1) ^ -int64(m&1)
		widths := data[:miniCount]
		data = data[miniCount:]
		for _, w := range widths {
			if at == len(out) {
				break // widths of miniblocks that hold nothing
			}
			if w > 64 {
				return bad("bit width")
			}
			size := mini * int(w) / 8
			if size > len(data) {
				return bad("miniblock")
			}
			n := min(mini, len(out)-at)
			value = unpackDeltas(out[at:at+n], data[:size], uint(w), least, value)
			at += n
			data = data[size:]
		}
	}
	return nil
}

// unpackDeltas writes the running sum of packed deltas and returns the last.
func unpackDeltas[T ~int64](out []T, data []byte, width uint, least, value int64) int64 {
	if width == 0 {
		for i := range out {
			value += least
			out[i] = T(value)
		}
		return value
	}
	mask := ^uint64(0) >> (64 - width)
	bit := 0
	for i := range out {
		at, shift := bit>>3, uint(bit&7)
		var word, high uint64
		if at+9 <= len(data) {
			word, high = binary.LittleEndian.Uint64(data[at:]), uint64(data[at+8])
		} else {
			for k := at; k < len(data); k++ {
				if k-at == 8 {
					high = uint64(data[k])
				} else {
					word |= uint64(data[k]) << (8 * (k - at))
				}
			}
		}
		v := word >> shift
		if shift > 0 {
			v |= high << (64 - shift)
		}
		value += int64(v&mask) + least
		out[i] = T(value)
		bit += int(width)
	}
	return value
}

// bitsFor is the width of levels up to a maximum.
func bitsFor(maxLevel int16) uint { return uint(bits.Len16(uint16(maxLevel))) }
