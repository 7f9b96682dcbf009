package chunk

import "math/bits"

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
