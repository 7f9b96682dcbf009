package chunk

import (
	"encoding/binary"
	"math/bits"
)

// hybridWriter writes what hybrid reads: long runs of equal values as one
// header and the value, others packed by bits in groups of eight.
type hybridWriter struct {
	out   []byte
	width uint
	// The run that is not in out yet.
	value uint32
	count int
	// Groups of a packed run that is not closed, and a group not yet full.
	packed []byte
	group  [8]uint32
	have   int
}

func (h *hybridWriter) reset(width uint) {
	*h = hybridWriter{out: h.out[:0], packed: h.packed[:0], width: width}
}

// size is about how many bytes there are so far.
func (h *hybridWriter) size() int { return len(h.out) + len(h.packed) }

// put appends n equal values of at most width bits.
func (h *hybridWriter) put(v uint32, n int) {
	if v == h.value {
		h.count += n
		return
	}
	h.settle()
	h.value, h.count = v, n
}

func (h *hybridWriter) settle() {
	n := h.count
	h.count = 0
	for ; h.have > 0 && n > 0; n-- { // the group that is open comes first
		h.add()
	}
	// A run is a byte and the value. One that is shorter than a group pays
	// where codes are wide: a few rows of each of many series.
	if bytes := int(h.width+7) / 8; n >= 8 || n*int(h.width) > 8*(bytes+2) {
		h.closePacked()
		h.out = binary.AppendUvarint(h.out, uint64(n)<<1)
		for k := uint(0); k < h.width; k += 8 {
			h.out = append(h.out, byte(h.value>>k))
		}
		return
	}
	for ; n > 0; n-- {
		h.add()
	}
}

// add puts the current value into the open group.
func (h *hybridWriter) add() {
	h.group[h.have] = h.value
	if h.have++; h.have < 8 {
		return
	}
	h.have = 0
	var word uint64
	filled := uint(0)
	for _, v := range h.group {
		word |= uint64(v) << filled
		if filled += h.width; filled >= 32 {
			h.packed = binary.LittleEndian.AppendUint32(h.packed, uint32(word))
			word >>= 32
			filled -= 32
		}
	}
	for ; filled > 0; filled -= 8 { // eight values fill whole bytes
		h.packed = append(h.packed, byte(word))
		word >>= 8
	}
}

func (h *hybridWriter) closePacked() {
	if len(h.packed) == 0 {
		return
	}
	h.out = binary.AppendUvarint(h.out, uint64(len(h.packed)/int(h.width))<<1|1)
	h.out = append(h.out, h.packed...)
	h.packed = h.packed[:0]
}

// finish returns all that was put; it is good until the next reset.
func (h *hybridWriter) finish() []byte {
	h.settle()
	for h.value = 0; h.have > 0; { // a last group is filled up, and its rest not read
		h.add()
	}
	h.closePacked()
	return h.out
}

// codeWidth is the bits of a code into a dictionary; never 0, which few
// writers use and readers may not expect.
func codeWidth(entries int) uint { return uint(max(1, bits.Len(uint(max(entries, 1)-1)))) }

// Shape of the blocks that appendDelta writes: that of parquet-mr.
const (
	deltaBlock = 128
	deltaMini  = 32
)

// appendDelta appends values by DELTA_BINARY_PACKED; decodeDelta reads them.
// Differences wrap around, as the encoding demands.
func appendDelta(out []byte, values []int64) []byte {
	out = binary.AppendUvarint(out, deltaBlock)
	out = binary.AppendUvarint(out, deltaBlock/deltaMini)
	out = binary.AppendUvarint(out, uint64(len(values)))
	if len(values) == 0 {
		return binary.AppendVarint(out, 0)
	}
	out = binary.AppendVarint(out, values[0])
	last := values[0]
	var deltas [deltaBlock]uint64
	for rest := values[1:]; len(rest) > 0; {
		n := min(len(rest), deltaBlock)
		least := rest[0] - last
		for i, v := range rest[:n] {
			d := v - last
			deltas[i] = uint64(d)
			least = min(least, d)
			last = v
		}
		rest = rest[n:]
		clear(deltas[n:])
		out = binary.AppendVarint(out, least)
		at := len(out)
		out = append(out, 0, 0, 0, 0) // widths
		for m := 0; m*deltaMini < n; m++ {
			mini := deltas[m*deltaMini : (m+1)*deltaMini]
			var all uint64
			for i := range min(deltaMini, n-m*deltaMini) {
				mini[i] -= uint64(least)
				all |= mini[i]
			}
			width := bits.Len64(all)
			out[at+m] = byte(width)
			out = appendPacked(out, mini, uint(width))
		}
	}
	return out
}

// appendPacked appends a multiple of 32 values of width bits each.
func appendPacked(out []byte, values []uint64, width uint) []byte {
	if width == 0 {
		return out
	}
	var word uint64
	filled := uint(0)
	for _, v := range values {
		word |= v << filled
		if filled+width < 64 {
			filled += width
			continue
		}
		out = binary.LittleEndian.AppendUint64(out, word)
		word = v >> (64 - filled) // 0 where filled is 0: Go shifts all bits out
		filled += width - 64
	}
	if filled > 0 { // 32 values of an odd width end in the middle of a word
		out = binary.LittleEndian.AppendUint32(out, uint32(word))
	}
	return out
}
