package symbols

import (
	"bytes"
	"encoding/binary"
	"hash/maphash"
)

// Dictionary gives texts codes, 0, 1, 2 and so on, in the order in which they
// come. It keeps them close together, as a Parquet dictionary page holds them:
// who asks for every label of short series mostly waits for memory.
//
// The zero value is empty and ready. Changes need a lock around all; what lies
// below Len at one moment never changes until Reset, see [Table.View].
type Dictionary struct {
	texts
	slots []slot // by hash, open addressing, a power of two; at most half full
	seed  maphash.Seed
}

// texts is the part of a dictionary that is only ever appended to.
type texts struct {
	page []byte // each text after its length in four bytes
	ends []int  // in page, by code
	most int    // bytes of the longest text
}

// slot holds a code, one more so that zero is free, and bits of the hash.
type slot struct {
	tag  uint32
	code int32
}

// entryBytes is what a text takes beside itself: its length, its end, and two
// to eight slots.
const entryBytes = 4 + 8 + 32

// Len is the number of texts.
func (d *texts) Len() int { return len(d.ends) }

// Page is the dictionary page: each text after its length in four bytes,
// little-endian, in the order of the codes.
func (d *texts) Page() []byte { return d.page }

// Text is the text of a code, to be read only.
func (d *texts) Text(code int32) []byte {
	start := 4
	if code > 0 {
		start += d.ends[code-1]
	}
	return d.page[start:d.ends[code]]
}

// Bounds returns the least and the greatest text by their bytes; there must be
// one.
func (d *texts) Bounds() (least, greatest []byte) {
	least, greatest = d.Text(0), d.Text(0)
	for code := range d.ends {
		t := d.Text(int32(code))
		if bytes.Compare(t, least) < 0 {
			least = t
		}
		if bytes.Compare(t, greatest) > 0 {
			greatest = t
		}
	}
	return least, greatest
}

// Code returns the code of a text; fresh says that the text is new.
func (d *Dictionary) Code(text string) (code int32, fresh bool) {
	if len(d.ends)*2 >= len(d.slots) {
		d.grow()
	}
	s, h := d.find(text)
	if s.code != 0 {
		return s.code - 1, false
	}
	code = appendTo(&d.texts, text)
	*s = slot{uint32(h >> 32), code + 1}
	return code, true
}

// Find returns the code of a text; ok is false where it has none.
func (d *Dictionary) Find(text string) (code int32, ok bool) {
	if len(d.slots) == 0 {
		return 0, false
	}
	s, _ := d.find(text)
	return s.code - 1, s.code != 0
}

// find returns the slot of a text, or the free one where it belongs.
func (d *Dictionary) find(text string) (s *slot, h uint64) {
	h = maphash.String(d.seed, text)
	mask := len(d.slots) - 1
	for i := int(h) & mask; ; i = (i + 1) & mask {
		s := &d.slots[i]
		if s.code == 0 || s.tag == uint32(h>>32) && string(d.Text(s.code-1)) == text {
			return s, h
		}
	}
}

// Append gives a text that is known to be new the next code, and does not
// look. A dictionary that is filled so cannot be asked for a text.
func (d *Dictionary) Append(text []byte) int32 { return appendTo(&d.texts, text) }

// appendTo gives a text the next code.
func appendTo[T string | []byte](d *texts, text T) int32 {
	d.page = append(binary.LittleEndian.AppendUint32(d.page, uint32(len(text))), text...)
	d.ends = append(d.ends, len(d.page))
	d.most = max(d.most, len(text))
	return int32(len(d.ends) - 1)
}

func (d *Dictionary) grow() {
	if len(d.slots) == 0 {
		d.seed = maphash.MakeSeed()
	}
	d.slots = make([]slot, max(16, 4*len(d.slots)))
	mask := len(d.slots) - 1
	for code := range d.ends {
		h := maphash.Bytes(d.seed, d.Text(int32(code)))
		i := int(h) & mask
		for d.slots[i].code != 0 {
			i = (i + 1) & mask
		}
		d.slots[i] = slot{uint32(h >> 32), int32(code + 1)}
	}
}

// Reset forgets all texts and keeps the memory.
func (d *Dictionary) Reset() {
	if len(d.ends) == 0 {
		return
	}
	clear(d.slots)
	d.page, d.ends, d.most = d.page[:0], d.ends[:0], 0
}
