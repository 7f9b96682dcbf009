package chunk

import (
	"encoding/binary"
	"fmt"
)

// run is rows up to end, not included, that hold one code.
type run struct{ end, code int32 }

// Codes that stand for no value.
const (
	nullCode    = -1
	skippedCode = -2 // not decoded, since no row of the page is wanted
)

func appendRun(runs []run, n int, code int32) []run {
	end := int32(n)
	if last := len(runs) - 1; last >= 0 {
		if runs[last].code == code {
			runs[last].end += end
			return runs
		}
		end += runs[last].end
	}
	return append(runs, run{end, code})
}

// wanted reports whether any of the rows lies in [start, end). It drops rows
// before start from the list; calls ascend.
func wanted(list *[]rows, start, end int) bool {
	for len(*list) > 0 && (*list)[0].end <= start {
		*list = (*list)[1:]
	}
	return len(*list) > 0 && (*list)[0].start < end
}

// decodeCodes reads the codes of a dictionary column as runs of rows, of the
// pages that hold wanted rows. entries is the size of the dictionary.
func decodeCodes(p *pages, l *leaf, entries int, want []rows, buf *[]byte) ([]run, error) {
	var runs []run
	for i := range p.data {
		page := &p.data[i]
		if !wanted(&want, page.first, page.first+int(page.values)) {
			runs = appendRun(runs, int(page.values), skippedCode)
			continue
		}
		raw, _, defs, values, err := page.content(*buf, l)
		if err != nil {
			return nil, err
		}
		*buf = raw
		if page.encoding != encodingRLEDict && page.encoding != encodingPlainDict {
			return nil, fmt.Errorf("%w: encoding %d in a dictionary column", ErrCorrupt, page.encoding)
		}
		codes, err := codeReader(values)
		if err != nil {
			return nil, err
		}
		if l.maxDef == 0 {
			runs, err = codes.appendRuns(runs, int(page.values), entries)
		} else {
			err = levels(defs, bitsFor(l.maxDef), l.maxDef, int(page.values), func(level int16, n int) error {
				if level == l.maxDef {
					runs, err = codes.appendRuns(runs, n, entries)
					return err
				}
				runs = appendRun(runs, n, nullCode)
				return nil
			})
		}
		if err != nil {
			return nil, err
		}
	}
	return runs, nil
}

// codeReader reads dictionary codes: a byte of width, then the hybrid. A page
// whose values are all null may hold nothing at all.
func codeReader(values []byte) (*hybrid, error) {
	if len(values) == 0 {
		return newHybrid(nil, 0)
	}
	return newHybrid(values[1:], uint(values[0]))
}

// texts is a decoded column of strings.
type texts struct {
	dict []string
	runs []run
}

func decodeTextColumn(p *pages, l *leaf, want []rows, buf *[]byte) (c texts, err error) {
	if c.dict, err = decodeTextDict(p, buf); err != nil {
		return c, err
	}
	c.runs, err = decodeCodes(p, l, len(c.dict), want, buf)
	return c, err
}

func decodeTextDict(p *pages, buf *[]byte) ([]string, error) {
	if p.dict == nil {
		return nil, nil
	}
	raw, err := p.dict.decompress(*buf)
	if err != nil {
		return nil, err
	}
	*buf = raw
	return decodeTexts(raw, int(p.dict.values))
}

// ids is a decoded series_id column.
type ids struct {
	values []uint64 // by code
	runs   []run
}

func decodeIDColumn(p *pages, l *leaf, want []rows, buf *[]byte) (c ids, err error) {
	if p.dict != nil {
		raw, err := p.dict.decompress(*buf)
		if err != nil {
			return c, err
		}
		*buf = raw
		if len(raw) != 8*int(p.dict.values) {
			return c, fmt.Errorf("%w: dictionary of %d bytes", ErrCorrupt, len(raw))
		}
		c.values = make([]uint64, p.dict.values)
		if err := decodePlain64(c.values, raw); err != nil {
			return c, err
		}
		c.runs, err = decodeCodes(p, l, len(c.values), want, buf)
		return c, err
	}
	var page []int64
	for i := range p.data {
		d := &p.data[i]
		if !wanted(&want, d.first, d.first+int(d.values)) {
			c.runs = appendRun(c.runs, int(d.values), skippedCode)
			continue
		}
		if page, err = d.longs(page, l, buf); err != nil {
			return c, err
		}
		for _, v := range page {
			if n := len(c.values); n == 0 || c.values[n-1] != uint64(v) {
				c.values = append(c.values, uint64(v))
			}
			c.runs = appendRun(c.runs, 1, int32(len(c.values)-1))
		}
	}
	return c, nil
}

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
			switch page.encoding {
			case encodingPlain:
				return decodePlain64(dense, values)
			case encodingStreamSplit:
				return decodeStreamSplit64(dense, values)
			}
			return fmt.Errorf("%w: encoding %d for value", ErrCorrupt, page.encoding)
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
		if v == 0 || v > maxNanos {
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

// pair is one entry of an overflow map, by codes into the two dictionaries.
type pair struct{ key, value int32 }

// overflow is the decoded labels_overflow column.
type overflow struct {
	keys, values []string
	pairs        []pair
	starts       []int // by row, where its pairs begin; one more at the end
	runs         []run // rows with equal maps; the code is the first row
}

func decodeOverflow(keys, values *pages, kl, vl *leaf, rows int, buf *[]byte) (o overflow, err error) {
	kc, kstarts, err := decodeRepeated(keys, kl, rows, overflowEntryDef, &o.keys, buf)
	if err != nil {
		return o, err
	}
	vc, vstarts, err := decodeRepeated(values, vl, rows, overflowValueDef, &o.values, buf)
	if err != nil {
		return o, err
	}
	if len(kc) != len(vc) {
		return o, fmt.Errorf("%w: %d keys and %d values", ErrCorrupt, len(kc), len(vc))
	}
	o.starts = kstarts
	o.pairs = make([]pair, len(kc))
	for i := range kc {
		o.pairs[i] = pair{kc[i], vc[i]}
	}
	for row := range rows {
		if kstarts[row] != vstarts[row] {
			return o, fmt.Errorf("%w: keys and values of row %d do not match", ErrCorrupt, row)
		}
		code := int32(row)
		if row > 0 && o.same(row, row-1) {
			code = o.runs[len(o.runs)-1].code
		}
		o.runs = appendRun(o.runs, 1, code)
	}
	return o, nil
}

func (o *overflow) of(row int) []pair { return o.pairs[o.starts[row]:o.starts[row+1]] }

func (o *overflow) same(a, b int) bool {
	x, y := o.of(a), o.of(b)
	if len(x) != len(y) {
		return false
	}
	for i := range x {
		if x[i] != y[i] {
			return false
		}
	}
	return true
}

// get returns the value of a label in a row, "" where it is absent.
func (o *overflow) get(row int, label string) string {
	for _, p := range o.of(row) {
		if o.keys[p.key] == label {
			return o.values[p.value]
		}
	}
	return ""
}

// decodeRepeated reads one leaf of the map: the codes of its entries, and
// where each row's entries begin. entryDef is the level of a full entry.
func decodeRepeated(p *pages, l *leaf, rows int, entryDef int16, dict *[]string, buf *[]byte) (codes []int32, starts []int, err error) {
	if *dict, err = decodeTextDict(p, buf); err != nil {
		return nil, nil, err
	}
	starts = make([]int, 0, rows+1)
	for i := range p.data {
		page := &p.data[i]
		raw, reps, defs, values, err := page.content(*buf, l)
		if err != nil {
			return nil, nil, err
		}
		*buf = raw
		if page.encoding != encodingRLEDict && page.encoding != encodingPlainDict {
			return nil, nil, fmt.Errorf("%w: encoding %d in a map", ErrCorrupt, page.encoding)
		}
		h, err := codeReader(values)
		if err != nil {
			return nil, nil, err
		}
		rep, err := newHybrid(reps, bitsFor(l.maxRep))
		if err != nil {
			return nil, nil, err
		}
		err = levels(defs, bitsFor(l.maxDef), l.maxDef, int(page.values), func(def int16, n int) error {
			for range n {
				r, _, err := rep.next(1)
				if err != nil {
					return err
				}
				switch {
				case r == 0 && len(starts) < rows:
					starts = append(starts, len(codes))
				case r == 1 && len(starts) > 0 && def == entryDef && len(codes) > starts[len(starts)-1]:
				default:
					return fmt.Errorf("%w: repetition level %d", ErrCorrupt, r)
				}
				switch def {
				case entryDef:
					v, _, err := h.next(1)
					if err != nil {
						return err
					}
					if v >= uint32(len(*dict)) {
						return fmt.Errorf("%w: code %d in a dictionary of %d", ErrCorrupt, v, len(*dict))
					}
					codes = append(codes, int32(v))
				case 0, 1: // no map, or an empty one
				default:
					return fmt.Errorf("%w: map entry without a value", ErrCorrupt)
				}
			}
			return nil
		})
		if err != nil {
			return nil, nil, err
		}
	}
	if len(starts) != rows {
		return nil, nil, fmt.Errorf("%w: map of %d rows, not %d", ErrCorrupt, len(starts), rows)
	}
	return codes, append(starts, len(codes)), nil
}
