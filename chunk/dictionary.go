package chunk

import (
	"hash/maphash"
	"math/bits"
)

// dictionary gives texts codes in the order in which they come. Unlike a map
// it finds a text without a second look at its bucket, and is emptied without
// giving its memory back: a chunk of short series asks it for every label.
type dictionary struct {
	values []string
	slots  []slot // by hash, open addressing, a power of two; at most half full
	seed   maphash.Seed
}

// slot holds a code, one more so that zero is free, and bits of the hash.
type slot struct {
	tag  uint32
	code int32
}

// code returns the code of a text; fresh says that the text is new.
func (d *dictionary) code(text string) (code int32, fresh bool) {
	if len(d.values)*2 >= len(d.slots) {
		d.grow()
	}
	h := maphash.String(d.seed, text)
	mask := len(d.slots) - 1
	for i := int(h) & mask; ; i = (i + 1) & mask {
		s := &d.slots[i]
		if s.code == 0 {
			d.values = append(d.values, text)
			*s = slot{uint32(h >> 32), int32(len(d.values))}
			return s.code - 1, true
		}
		if s.tag == uint32(h>>32) && d.values[s.code-1] == text {
			return s.code - 1, false
		}
	}
}

func (d *dictionary) grow() {
	if len(d.slots) == 0 {
		d.seed = maphash.MakeSeed()
	}
	d.slots = make([]slot, max(16, 2*len(d.slots)))
	mask := len(d.slots) - 1
	for code, text := range d.values {
		h := maphash.String(d.seed, text)
		i := int(h) & mask
		for d.slots[i].code != 0 {
			i = (i + 1) & mask
		}
		d.slots[i] = slot{uint32(h >> 32), int32(code + 1)}
	}
}

// reset forgets all texts.
func (d *dictionary) reset() {
	if len(d.values) == 0 {
		return
	}
	clear(d.values) // they keep the caller's label sets alive
	clear(d.slots)
	d.values = d.values[:0]
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

func (d *valueDictionary) reset() {
	if len(d.slots) == 0 || len(d.slots) > 1<<10 {
		d.resize(1 << 10)
	}
	clear(d.slots)
	d.values, d.codes = d.values[:0], d.codes[:0]
}

func (d *valueDictionary) resize(n int) {
	d.slots = make([]int32, n)
	d.shift = 64 - bits.Len(uint(n-1))
}

// add appends the code of one more row; it returns false where there would be
// too many.
func (d *valueDictionary) add(v uint64) bool {
	if n := len(d.codes); n > 0 && d.values[d.codes[n-1]] == v {
		d.codes = append(d.codes, d.codes[n-1])
		return true
	}
	i := d.find(v)
	code := d.slots[i] - 1
	if code < 0 {
		code = int32(len(d.values))
		if n := len(d.codes); code == maxValueCodes || n >= valueCodesStep && int(code) > n/2 {
			return false
		}
		d.values = append(d.values, v)
		d.slots[i] = code + 1
		if 2*len(d.values) > len(d.slots) {
			d.resize(2 * len(d.slots))
			for c, v := range d.values {
				d.slots[d.find(v)] = int32(c + 1)
			}
		}
	}
	d.codes = append(d.codes, uint16(code))
	return true
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

// pays reports whether dictionary and codes are much shorter than the values.
func (d *valueDictionary) pays() bool { return len(d.codes) > 0 && len(d.values) <= len(d.codes)/4 }
