package chunk

import (
	"bytes"
	"encoding/binary"
	"hash/maphash"
	"math/bits"
)

// dictionary gives texts codes in the order in which they come. It keeps them
// as a Parquet dictionary page holds them, close together: a chunk of short
// series asks it for every label, and most of that is waiting for memory.
type dictionary struct {
	page  []byte // each text after its length in four bytes
	ends  []int  // in page, by code
	slots []slot // by hash, open addressing, a power of two; at most half full
	seed  maphash.Seed
}

// slot holds a code, one more so that zero is free, and bits of the hash.
type slot struct {
	tag  uint32
	code int32
}

// text is the text of a code.
func (d *dictionary) text(code int32) []byte {
	start := 4
	if code > 0 {
		start += d.ends[code-1]
	}
	return d.page[start:d.ends[code]]
}

// code returns the code of a text; fresh says that the text is new.
func (d *dictionary) code(text string) (code int32, fresh bool) {
	if len(d.ends)*2 >= len(d.slots) {
		d.grow()
	}
	h := maphash.String(d.seed, text)
	mask := len(d.slots) - 1
	for i := int(h) & mask; ; i = (i + 1) & mask {
		s := &d.slots[i]
		if s.code == 0 {
			d.page = append(binary.LittleEndian.AppendUint32(d.page, uint32(len(text))), text...)
			d.ends = append(d.ends, len(d.page))
			*s = slot{uint32(h >> 32), int32(len(d.ends))}
			return s.code - 1, true
		}
		if s.tag == uint32(h>>32) && string(d.text(s.code-1)) == text {
			return s.code - 1, false
		}
	}
}

func (d *dictionary) grow() {
	if len(d.slots) == 0 {
		d.seed = maphash.MakeSeed()
	}
	d.slots = make([]slot, max(16, 4*len(d.slots)))
	mask := len(d.slots) - 1
	for code := range d.ends {
		h := maphash.Bytes(d.seed, d.text(int32(code)))
		i := int(h) & mask
		for d.slots[i].code != 0 {
			i = (i + 1) & mask
		}
		d.slots[i] = slot{uint32(h >> 32), int32(code + 1)}
	}
}

// bounds returns the least and the greatest text; there must be one.
func (d *dictionary) bounds() (least, greatest []byte) {
	least, greatest = d.text(0), d.text(0)
	for code := range d.ends {
		t := d.text(int32(code))
		if bytes.Compare(t, least) < 0 {
			least = t
		}
		if bytes.Compare(t, greatest) > 0 {
			greatest = t
		}
	}
	return least, greatest
}

// reset forgets all texts.
func (d *dictionary) reset() {
	if len(d.ends) == 0 {
		return
	}
	clear(d.slots)
	d.page, d.ends = d.page[:0], d.ends[:0]
}

// Bounds of what a dictionary of values may hold. Codes have whole bytes, one
// or two, since zstd finds in bytes what it cannot find in bits.
const (
	maxValueCodes  = 1 << 16
	valueCodesStep = 1 << 12 // rows after which it is looked whether it pays
)

// valueDictionary gives the bits of doubles codes, as far as that pays.
type valueDictionary struct {
	values []uint64
	slots  []int32 // a code, one more so that zero is free; as in dictionary
	shift  int     // 64 less the bits of len(slots)
	codes  []uint16
}

// fill gives the values codes, those without a histogram if there are any; it
// returns false where a dictionary would not pay.
func (d *valueDictionary) fill(values []uint64, histograms [][]byte) bool {
	if len(d.slots) == 0 || len(d.slots) > 1<<10 {
		d.resize(1 << 10)
	}
	clear(d.slots)
	d.values, d.codes = d.values[:0], d.codes[:0]
	last, code := uint64(0), int32(-1)
	for i, v := range values {
		if len(histograms) > 0 && histograms[i] != nil {
			continue
		}
		if v != last || code < 0 {
			if code = d.code(v); code < 0 {
				return false
			}
			last = v
		}
		d.codes = append(d.codes, uint16(code))
	}
	return len(d.codes) > 0 && len(d.values) <= len(d.codes)/4
}

// code returns the code of a value, -1 where there are too many.
func (d *valueDictionary) code(v uint64) int32 {
	i := d.find(v)
	if c := d.slots[i]; c > 0 {
		return c - 1
	}
	n := len(d.values)
	if n == maxValueCodes || len(d.codes) >= valueCodesStep && n > len(d.codes)/2 {
		return -1
	}
	d.values = append(d.values, v)
	d.slots[i] = int32(n + 1)
	if 2*len(d.values) > len(d.slots) {
		d.resize(4 * len(d.slots))
		for c, v := range d.values {
			d.slots[d.find(v)] = int32(c + 1)
		}
	}
	return int32(n)
}

func (d *valueDictionary) resize(n int) {
	d.slots = make([]int32, n)
	d.shift = 64 - bits.Len(uint(n-1))
}

// find returns the slot of a value, or the free one where it belongs.
func (d *valueDictionary) find(v uint64) int {
	// Few bits of round numbers differ, and those at the top: multiplying
	// spreads them.
	h := int(v * 0x9e3779b97f4a7c15 >> d.shift)
	for {
		if c := d.slots[h]; c == 0 || d.values[c-1] == v {
			return h
		}
		h = (h + 1) & (len(d.slots) - 1)
	}
}
