package parquetcol

import (
	"encoding/binary"
	"fmt"
	"math"
	"unsafe"

	"github.com/parquet-go/parquet-go/format"
)

// prefixed cuts a part off the front whose length stands before it, u32 LE.
func prefixed(b []byte) (part, rest []byte, err error) {
	if len(b) < 4 {
		return nil, nil, fmt.Errorf("%w: %d bytes, want a length", ErrCorrupt, len(b))
	}
	n := binary.LittleEndian.Uint32(b)
	b = b[4:]
	if uint64(n) > uint64(len(b)) {
		return nil, nil, fmt.Errorf("%w: part of %d bytes in %d", ErrCorrupt, n, len(b))
	}
	return b[:n], b[n:], nil
}

// hybrid decodes n values of the RLE/bit-packing hybrid (parquet-format,
// "Encodings") with the given bits a value, at most 32, and appends them.
func hybrid[T uint8 | uint32](dst []T, src []byte, n, width int) ([]T, error) {
	if width > 32 {
		return dst, fmt.Errorf("%w: %d bits a value", ErrCorrupt, width)
	}
	mask := uint64(1)<<width - 1
	for n > 0 {
		head, k := binary.Uvarint(src)
		if k <= 0 {
			return dst, fmt.Errorf("%w: %d values are missing", ErrCorrupt, n)
		}
		src = src[k:]
		if head&1 == 0 { // a run
			size := (width + 7) / 8
			if len(src) < size || head == 0 {
				return dst, fmt.Errorf("%w: run of %d", ErrCorrupt, head>>1)
			}
			var v uint64
			for i := range size {
				v |= uint64(src[i]) << (8 * i)
			}
			src = src[size:]
			run := n
			if head>>1 < uint64(n) {
				run = int(head >> 1)
			}
			value := T(v & mask)
			for range run {
				dst = append(dst, value)
			}
			n -= run
			continue
		}
		// Bit-packed groups of eight; the last may be cut off after the
		// values that count.
		count := n
		if head>>1 < uint64(n+7)/8 {
			count = int(head>>1) * 8
		}
		count = min(count, n)
		need := (count*width + 7) / 8
		if len(src) < need || head == 1 {
			return dst, fmt.Errorf("%w: %d packed values in %d bytes", ErrCorrupt, count, len(src))
		}
		var acc uint64
		var have int
		p := 0
		for range count {
			for have < width {
				acc |= uint64(src[p]) << have
				p++
				have += 8
			}
			dst = append(dst, T(acc&mask))
			acc >>= width
			have -= width
		}
		n -= count
		full := len(src)
		if head>>1 <= uint64(full) { // so that the product cannot overflow
			full = min(full, int(head>>1)*width)
		}
		src = src[full:]
	}
	return dst, nil
}

// levels decodes repetition or definition levels.
func levels(dst []uint8, src []byte, n, width, max int) ([]uint8, error) {
	if width == 0 {
		return dst, nil
	}
	dst, err := hybrid(dst, src, n, width)
	if err != nil {
		return dst, err
	}
	for _, l := range dst {
		if int(l) > max {
			return dst, fmt.Errorf("%w: level %d of %d", ErrCorrupt, l, max)
		}
	}
	return dst, nil
}

// indexes decodes the values of a page that refers to a dictionary.
func indexes(dst []uint32, src []byte, n int) ([]uint32, error) {
	if len(src) == 0 {
		return dst, fmt.Errorf("%w: no width", ErrCorrupt)
	}
	return hybrid(dst, src[1:], n, int(src[0]))
}

func rleBooleans(dst []int64, body []byte, n int) ([]int64, error) {
	part, _, err := prefixed(body)
	if err != nil {
		return dst, err
	}
	bools, err := hybrid[uint8](nil, part, n, 1)
	for _, b := range bools {
		dst = append(dst, int64(b))
	}
	return dst, err
}

// plainStrings decodes byte arrays. The page is copied once, as a string that
// all its values share; or not at all, if they may share memory with body.
func plainStrings(dst []string, body []byte, n int, node *Node, share bool) ([]string, error) {
	text := func(b []byte) string {
		if share {
			return unsafe.String(unsafe.SliceData(b), len(b))
		}
		return string(b)
	}
	if node.Physical == format.FixedLenByteArray {
		if len(body) < n*node.length {
			return dst, fmt.Errorf("%w: %d bytes for %d values", ErrCorrupt, len(body), n)
		}
		s := text(body[:n*node.length])
		for i := range n {
			dst = append(dst, s[i*node.length:(i+1)*node.length])
		}
		return dst, nil
	}
	if len(body) < 4*n {
		return dst, fmt.Errorf("%w: %d bytes for %d values", ErrCorrupt, len(body), n)
	}
	s := text(body)
	p := 0
	for range n {
		if len(body)-p < 4 {
			return dst, fmt.Errorf("%w: ends inside a value", ErrCorrupt)
		}
		size := int(binary.LittleEndian.Uint32(body[p:]))
		p += 4
		if size > len(body)-p {
			return dst, fmt.Errorf("%w: value of %d bytes in %d", ErrCorrupt, size, len(body)-p)
		}
		dst = append(dst, s[p:p+size])
		p += size
	}
	return dst, nil
}

func plainInts(dst []int64, body []byte, n int, typ format.Type) ([]int64, error) {
	size := fixedSize(&Node{Physical: typ})
	if need := size * n; len(body) < need || (typ == format.Boolean && len(body) < (n+7)/8) {
		return dst, fmt.Errorf("%w: %d bytes for %d values", ErrCorrupt, len(body), n)
	}
	switch typ {
	case format.Boolean:
		for i := range n {
			dst = append(dst, int64(body[i/8]>>(i%8)&1))
		}
	case format.Int32:
		for i := range n {
			dst = append(dst, int64(int32(binary.LittleEndian.Uint32(body[4*i:]))))
		}
	case format.Int64:
		for i := range n {
			dst = append(dst, int64(binary.LittleEndian.Uint64(body[8*i:])))
		}
	case format.Float:
		for i := range n {
			f := math.Float32frombits(binary.LittleEndian.Uint32(body[4*i:]))
			dst = append(dst, int64(math.Float64bits(float64(f))))
		}
	case format.Double:
		for i := range n {
			dst = append(dst, int64(binary.LittleEndian.Uint64(body[8*i:])))
		}
	case format.Int96:
		// Nanoseconds of the day, then the Julian day.
		const epoch = 2440588 // the Julian day of 1970-01-01
		for i := range n {
			nanos := int64(binary.LittleEndian.Uint64(body[12*i:]))
			day := int64(int32(binary.LittleEndian.Uint32(body[12*i+8:])))
			micros := nanos / 1000
			if nanos%1000 < 0 {
				micros-- // rounds down
			}
			dst = append(dst, (day-epoch)*86_400_000_000+micros)
		}
	default:
		return dst, fmt.Errorf("%w: type %v", ErrUnsupported, typ)
	}
	return dst, nil
}

// deltaInts decodes DELTA_BINARY_PACKED values and returns what follows them:
//
//	block size | miniblocks a block | count | first value, zigzag
//	block: smallest delta, zigzag | a width for each miniblock | miniblocks
func deltaInts(dst []int64, src []byte, n int) ([]int64, []byte, error) {
	var head [3]uint64
	for i := range head {
		v, k := binary.Uvarint(src)
		if k <= 0 {
			return dst, nil, fmt.Errorf("%w: delta header", ErrCorrupt)
		}
		head[i], src = v, src[k:]
	}
	block, minis, count := head[0], head[1], head[2]
	if minis == 0 || minis > 1<<16 || block > 1<<24 || block%minis != 0 || (block/minis)%8 != 0 || block == 0 || count != uint64(n) {
		return dst, nil, fmt.Errorf("%w: delta blocks of %d in %d parts, %d values, want %d", ErrCorrupt, block, minis, count, n)
	}
	value, k := binary.Varint(src)
	if k <= 0 {
		return dst, nil, fmt.Errorf("%w: delta header", ErrCorrupt)
	}
	src = src[k:]
	if n == 0 {
		return dst, src, nil
	}
	dst = append(dst, value)
	n--
	per := int(block / minis)
	for n > 0 {
		low, k := binary.Varint(src)
		if k <= 0 || len(src)-k < int(minis) {
			return dst, nil, fmt.Errorf("%w: delta block", ErrCorrupt)
		}
		widths := src[k : k+int(minis)]
		src = src[k+int(minis):]
		for _, w := range widths {
			if n == 0 {
				break // parts without values are not stored
			}
			if w > 64 {
				return dst, nil, fmt.Errorf("%w: %d bits a delta", ErrCorrupt, w)
			}
			size := per / 8 * int(w)
			use := min(per, n)
			if len(src) < (use*int(w)+7)/8 {
				return dst, nil, fmt.Errorf("%w: delta block of %d bytes in %d", ErrCorrupt, size, len(src))
			}
			bit := 0
			for range use {
				value += low + int64(unpack(src, bit, int(w)))
				bit += int(w)
				dst = append(dst, value)
			}
			n -= use
			src = src[min(size, len(src)):]
		}
	}
	return dst, src, nil
}

// unpack reads width bits, least significant first, from a bit offset.
func unpack(b []byte, bit, width int) uint64 {
	var v uint64
	for got := 0; got < width; {
		off := (bit + got) & 7
		take := min(8-off, width-got)
		v |= uint64(b[(bit+got)>>3]>>off&(1<<take-1)) << got
		got += take
	}
	return v
}

// deltaLengthStrings decodes lengths, then the bytes of all values.
func deltaLengthStrings(dst []string, body []byte, n int) ([]string, error) {
	lengths, body, err := deltaInts(nil, body, n)
	if err != nil {
		return dst, err
	}
	s := string(body)
	for _, l := range lengths {
		if l < 0 || l > int64(len(s)) {
			return dst, fmt.Errorf("%w: value of %d bytes in %d", ErrCorrupt, l, len(s))
		}
		dst = append(dst, s[:l])
		s = s[l:]
	}
	return dst, nil
}

// deltaStrings decodes values that each share a prefix with the one before.
func deltaStrings(dst []string, body []byte, n int) ([]string, error) {
	prefixes, body, err := deltaInts(nil, body, n)
	if err != nil {
		return dst, err
	}
	suffixes, err := deltaLengthStrings(nil, body, n)
	if err != nil {
		return dst, err
	}
	last, total := "", 0
	for i, suffix := range suffixes {
		p := prefixes[i]
		if p < 0 || p > int64(len(last)) {
			return dst, fmt.Errorf("%w: prefix of %d in %d", ErrCorrupt, p, len(last))
		}
		if total += int(p) + len(suffix); total > maxPageBytes {
			return dst, fmt.Errorf("%w: page of more than %d bytes", ErrCorrupt, maxPageBytes)
		}
		last = last[:p] + suffix
		dst = append(dst, last)
	}
	return dst, nil
}
