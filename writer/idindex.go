package writer

import (
	"math/bits"
	"math/rand/v2"

	"cardinalsin/series"
)

// idIndex finds the newest series with an ID. It is a hash table with open
// addressing, eight bytes a slot: a new series is looked for and added by one
// look at memory, where a map takes three.
//
// The hash is the ID times a number that nobody outside knows, as IDs can be
// made to meet.
type idIndex struct {
	slots  []idSlot // a power of two, at most three quarters full
	used   int
	shift  int // of a tag, to the slot where it is looked for first
	secret uint64
}

type idSlot struct {
	tag uint32 // of the hash, its upper half
	ref seriesRef
}

const minIDSlots = 64

// slot returns the slot of an ID, or a free one, which must be filled by put
// before the next call.
func (x *idIndex) slot(id series.ID, blocks [][]memSeries) (s *idSlot, tag uint32) {
	if 4*(x.used+1) > 3*len(x.slots) {
		x.grow()
	}
	tag = uint32(uint64(id) * x.secret >> 32)
	mask := len(x.slots) - 1
	for i := int(tag >> x.shift); ; i = (i + 1) & mask {
		s := &x.slots[i]
		if s.ref == 0 || s.tag == tag && at(blocks, s.ref).id == id {
			return s, tag
		}
	}
}

// put makes a series the newest one of the slot.
func (x *idIndex) put(s *idSlot, tag uint32, ref seriesRef) {
	if s.ref == 0 {
		x.used++
	}
	*s = idSlot{tag, ref}
}

func (x *idIndex) grow() {
	old := x.slots
	if x.secret == 0 {
		x.secret = rand.Uint64() | 1
	}
	x.slots = make([]idSlot, max(minIDSlots, 2*len(old)))
	x.shift = 32 - bits.TrailingZeros(uint(len(x.slots)))
	mask := len(x.slots) - 1
	// Slots are in the order of their tags, but for what wrapped around the
	// end, so this walks both tables from front to back.
	for _, s := range old {
		if s.ref == 0 {
			continue
		}
		i := int(s.tag >> x.shift)
		for x.slots[i].ref != 0 {
			i = (i + 1) & mask
		}
		x.slots[i] = s
	}
}
