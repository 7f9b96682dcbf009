package chunk

import (
	"encoding/binary"
	"fmt"

	"cardinalsin/series"
)

// longs decodes a page of a required int64 column into out[:0].
func (p *dataPage) longs(out []int64, l *leaf, buf *[]byte) ([]int64, error) {
	raw, _, _, values, err := p.content(*buf, l)
	if err != nil {
		return nil, err
	}
	*buf = raw
	out = grow(out, int(p.values))
	if p.encoding != encodingDelta {
		return nil, fmt.Errorf("%w: encoding %d in an integer column", ErrCorrupt, p.encoding)
	}
	return out, decodeDelta(out, values)
}

// grow returns a slice of n elements, of which the contents do not matter. n
// is a page's number of rows, checked against the row group's.
func grow[T any](s []T, n int) []T {
	if cap(s) < n {
		return make([]T, n)
	}
	return s[:n]
}

// pager gives the rows of one column in ascending order, a page at a time.
type pager struct {
	leaf  *leaf
	pages pages
	next  int // page to look at next
	first int // rows of the page that is decoded: first..end
	end   int
	buf   []byte

	longs []int64
	// For optional columns: null says which rows of the page have no value.
	null  []bool
	bits  []uint64 // value, zero where null
	blobs [][]byte
	codes []int32
	dict  []int32
	words []uint64 // dictionary of values; nil: not read yet
}

// seek makes the page that holds row the decoded one, by decode.
func (p *pager) seek(row int, decode func(*dataPage) error) error {
	if row < p.end {
		if row < p.first {
			return fmt.Errorf("%w: rows out of order", ErrCorrupt)
		}
		return nil
	}
	for ; p.next < len(p.pages.data); p.next++ {
		page := &p.pages.data[p.next]
		if row < page.first+int(page.values) {
			if row < page.first {
				break
			}
			if err := decode(page); err != nil {
				return err
			}
			p.first, p.end = page.first, page.first+int(page.values)
			p.next++
			return nil
		}
	}
	return fmt.Errorf("%w: no page holds row %d", ErrCorrupt, row)
}

// times returns the timestamps from row to the end of its page.
func (p *pager) times(row int) ([]int64, error) {
	err := p.seek(row, func(page *dataPage) (err error) {
		p.longs, err = page.longs(p.longs, p.leaf, &p.buf)
		return err
	})
	if err != nil {
		return nil, err
	}
	return p.longs[row-p.first:], nil
}

// optional decodes a page of an optional column: present is called with the
// positions of the values that are there, in order.
func (p *pager) optional(page *dataPage, start func(values []byte, present int) error, present func(at, n int) error) error {
	raw, _, defs, values, err := page.content(p.buf, p.leaf)
	if err != nil {
		return err
	}
	p.buf = raw
	n := int(page.values)
	p.null = grow(p.null, n)
	if p.leaf.maxDef == 0 {
		clear(p.null)
		if err := start(values, n); err != nil {
			return err
		}
		return present(0, n)
	}
	at, count := 0, 0
	err = levels(defs, bitsFor(p.leaf.maxDef), p.leaf.maxDef, n, func(level int16, k int) error {
		for i := at; i < at+k; i++ {
			p.null[i] = level != p.leaf.maxDef
		}
		if level == p.leaf.maxDef {
			count += k
		}
		at += k
		return nil
	})
	if err != nil {
		return err
	}
	if err := start(values, count); err != nil {
		return err
	}
	for i := 0; i < n; {
		j := i
		for j < n && !p.null[j] {
			j++
		}
		if j > i {
			if err := present(i, j-i); err != nil {
				return err
			}
		}
		for i = j; i < n && p.null[i]; i++ {
		}
	}
	return nil
}

// values returns the bits of doubles from row to the end of its page, and
// which of them are null.
func (p *pager) values(row int) ([]uint64, []bool, error) {
	err := p.seek(row, func(page *dataPage) error {
		n := int(page.values)
		p.bits = grow(p.bits, n)
		var dense []uint64
		return p.optional(page, func(values []byte, present int) error {
			dense = p.bits[n-present:] // spread to the front below
			return p.doubles(dense, page.encoding, values)
		}, func(at, k int) error {
			// at never overtakes dense: n-present nulls lie between at most.
			copy(p.bits[at:at+k], dense[:k])
			dense = dense[k:]
			return nil
		})
	})
	if err != nil {
		return nil, nil, err
	}
	return p.bits[row-p.first:], p.null[row-p.first:], nil
}

// doubles decodes values that are there into out, as bits.
func (p *pager) doubles(out []uint64, encoding int32, values []byte) error {
	switch encoding {
	case encodingPlain:
		return decodePlain64(out, values)
	case encodingStreamSplit:
		return decodeStreamSplit64(out, values)
	case encodingRLEDict:
		if p.words == nil {
			if err := p.wordsDict(); err != nil {
				return err
			}
		}
		return decodeWords(out, values, p.words)
	}
	return fmt.Errorf("%w: encoding %d for value", ErrCorrupt, encoding)
}

func (p *pager) wordsDict() error {
	p.words = []uint64{}
	if p.pages.dict == nil {
		return nil
	}
	raw, err := p.pages.dict.decompress(nil)
	if err != nil {
		return err
	}
	if len(raw) != 8*int(p.pages.dict.values) {
		return fmt.Errorf("%w: dictionary of %d bytes", ErrCorrupt, len(raw))
	}
	p.words = make([]uint64, p.pages.dict.values)
	return decodePlain64(p.words, raw)
}

// decodeWords reads len(out) values by their codes into a dictionary.
func decodeWords(out []uint64, data []byte, dict []uint64) error {
	codes, err := codeReader(data)
	if err != nil {
		return err
	}
	for len(out) > 0 {
		// Codes have one or two whole bytes, mostly.
		n, err := codes.wholeBytes(out, dict)
		if err != nil {
			return err
		}
		if n > 0 {
			out = out[n:]
			continue
		}
		v, n, err := codes.next(len(out))
		if err != nil {
			return err
		}
		if v >= uint32(len(dict)) {
			return errCode(v, len(dict))
		}
		for i := range n {
			out[i] = dict[v]
		}
		out = out[n:]
	}
	return nil
}

func errCode(v uint32, entries int) error {
	return fmt.Errorf("%w: code %d in a dictionary of %d values", ErrCorrupt, v, entries)
}

// wholeBytes reads values of a run that is packed in codes of one or two whole
// bytes, and returns how many: 0 where the run is another.
func (h *hybrid) wholeBytes(out, dict []uint64) (n int, err error) {
	if h.left == 0 {
		if err := h.header(); err != nil {
			return 0, err
		}
	}
	if !h.packed || h.width != 8 && h.width != 16 {
		return 0, nil
	}
	n = min(h.left, len(out))
	out = out[:n]
	if h.width == 8 {
		for i, c := range h.group[h.bit/8:][:n] {
			if int(c) >= len(dict) {
				return 0, errCode(uint32(c), len(dict))
			}
			out[i] = dict[c]
		}
	} else {
		codes := h.group[h.bit/8:][:2*n]
		for i := range out {
			c := binary.LittleEndian.Uint16(codes[2*i:])
			if int(c) >= len(dict) {
				return 0, errCode(uint32(c), len(dict))
			}
			out[i] = dict[c]
		}
	}
	h.left -= n
	h.bit += n * int(h.width)
	return n, nil
}

// nanos returns the nanoseconds of a row, 0 where null.
func (p *pager) nanos(row int) (uint16, error) {
	err := p.seek(row, func(page *dataPage) error {
		if p.dict == nil {
			if err := p.nanosDict(); err != nil {
				return err
			}
		}
		p.codes = grow(p.codes, int(page.values))
		var codes *hybrid
		return p.optional(page, func(values []byte, _ int) (err error) {
			if page.encoding != encodingRLEDict && page.encoding != encodingPlainDict {
				return fmt.Errorf("%w: encoding %d for nanos", ErrCorrupt, page.encoding)
			}
			codes, err = codeReader(values)
			return err
		}, func(at, k int) error {
			for k > 0 {
				v, n, err := codes.next(k)
				if err != nil {
					return err
				}
				if v >= uint32(len(p.dict)) {
					return fmt.Errorf("%w: code %d for nanos", ErrCorrupt, v)
				}
				for i := at; i < at+n; i++ {
					p.codes[i] = p.dict[v]
				}
				at, k = at+n, k-n
			}
			return nil
		})
	})
	if err != nil || p.null[row-p.first] {
		return 0, err
	}
	return uint16(p.codes[row-p.first]), nil
}

// start returns the start time of a row, 0 where null.
func (p *pager) start(row int) (int64, error) {
	err := p.seek(row, func(page *dataPage) error {
		n := int(page.values)
		p.longs = grow(p.longs, n)
		var dense []int64
		return p.optional(page, func(values []byte, present int) error {
			if page.encoding != encodingDelta {
				return fmt.Errorf("%w: encoding %d for start times", ErrCorrupt, page.encoding)
			}
			dense = p.longs[n-present:] // spread to the front below
			return decodeDelta(dense, values)
		}, func(at, k int) error {
			// at never overtakes dense: n-present nulls lie between at most.
			copy(p.longs[at:at+k], dense[:k])
			dense = dense[k:]
			return nil
		})
	})
	if err != nil || p.null[row-p.first] {
		return 0, err
	}
	v := p.longs[row-p.first]
	if v == 0 {
		return 0, fmt.Errorf("%w: start time 0 in row %d", ErrCorrupt, row)
	}
	return v, nil
}

func (p *pager) nanosDict() error {
	p.dict = []int32{}
	if p.pages.dict == nil {
		return nil
	}
	raw, err := p.pages.dict.decompress(nil)
	if err != nil {
		return err
	}
	for ; len(raw) >= 4; raw = raw[4:] {
		v := binary.LittleEndian.Uint32(raw)
		if v == 0 || v > series.MaxNanos {
			return fmt.Errorf("%w: %d nanoseconds", ErrCorrupt, v)
		}
		p.dict = append(p.dict, int32(v))
	}
	return nil
}

// histogram returns the histogram of a row, nil where null; it shares memory
// with the other histograms of its page, with nothing else.
func (p *pager) histogram(row int) ([]byte, error) {
	err := p.seek(row, func(page *dataPage) error {
		p.blobs = grow(p.blobs, int(page.values))
		p.buf = nil // the page before is in use by samples
		var rest []byte
		return p.optional(page, func(values []byte, _ int) error {
			if page.encoding != encodingPlain {
				return fmt.Errorf("%w: encoding %d for histogram", ErrCorrupt, page.encoding)
			}
			rest = values
			return nil
		}, func(at, k int) (err error) {
			for i := at; i < at+k; i++ {
				if p.blobs[i], rest, err = plainText(rest); err != nil {
					return err
				}
			}
			return nil
		})
	})
	if err != nil || p.null[row-p.first] {
		return nil, err
	}
	return p.blobs[row-p.first], nil
}
