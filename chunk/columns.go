package chunk

import "fmt"

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
