package chunk

import (
	"bytes"
	"encoding/binary"
	"math"

	"cardinalsin/series"
)

// codePages writes a column of dictionary codes. A page ends at a multiple of
// PageRows rows, once it has some bytes: where series are long, a label is a
// few runs, and a page of them costs more than what is in it.
type codePages struct {
	f       *fileWriter
	width   uint
	row     int // rows put so far
	pageEnd int
	values  int // in this page, nulls included
}

// minCodeBytes is the part of PageRows that a page of codes has in bytes
// before it ends.
const minCodeBytes = 4

func (f *fileWriter) codePages(entries int) codePages {
	p := codePages{f: f, width: codeWidth(entries), pageEnd: min(f.opts.PageRows, f.total)}
	f.codes.reset(p.width)
	f.defs.reset(bitsFor(f.column.leaf.maxDef))
	return p
}

// put appends n rows with one code, or null where it is nullCode.
func (p *codePages) put(code int32, n int) {
	f := p.f
	def := uint32(1)
	if code < 0 {
		def = 0
		f.column.nulls += int64(n)
	}
	for n > 0 {
		k := min(n, p.pageEnd-p.row)
		if f.column.leaf.maxDef > 0 {
			f.defs.put(def, k)
		}
		if code >= 0 {
			f.codes.put(uint32(code), k)
		}
		p.row += k
		p.values += k
		n -= k
		if p.row < p.pageEnd {
			return
		}
		if p.row == f.total || f.codes.size()+f.defs.size() >= f.opts.PageRows/minCodeBytes {
			p.endPage()
		}
		p.pageEnd = min(p.row+f.opts.PageRows, f.total)
	}
}

func (p *codePages) endPage() {
	f := p.f
	f.levels()
	f.raw = append(f.raw, byte(p.width))
	f.raw = append(f.raw, f.codes.finish()...)
	f.writePage(pageData, p.values, encodingRLEDict)
	f.codes.reset(p.width)
	p.values = 0
}

// writeTextDict writes the dictionary page of strings and the column's bounds.
func (f *fileWriter) writeTextDict(values []string) {
	f.raw = f.raw[:0]
	var b stringBounds
	for _, v := range values {
		b.add(v)
		f.raw = append(binary.LittleEndian.AppendUint32(f.raw, uint32(len(v))), v...)
	}
	f.writePage(pageDictionary, len(values), encodingPlain)
	if b.set {
		f.bounds([]byte(b.min), []byte(b.max))
	}
}

// writeNames writes metric_name, whose values ascend with the segments.
func (f *fileWriter) writeNames(segs []segment) {
	var values []string
	for i := range segs {
		if i == 0 || segs[i].name != segs[i-1].name {
			values = append(values, segs[i].name)
		}
	}
	f.writeTextDict(values)
	p := f.codePages(len(values))
	code := int32(0)
	for i := range segs {
		if i > 0 && segs[i].name != segs[i-1].name {
			code++
		}
		p.put(code, len(segs[i].samples))
	}
}

func (f *fileWriter) writeLabel(c *labelColumn) {
	f.writeTextDict(c.dict.values)
	p := f.codePages(len(c.dict.values))
	for i, seg := range c.segments {
		if gap := int(f.starts[seg]) - p.row; gap > 0 {
			p.put(nullCode, gap)
		}
		p.put(c.codes[i], int(f.starts[seg+1]-f.starts[seg]))
	}
	if gap := f.total - p.row; gap > 0 {
		p.put(nullCode, gap)
	}
}

func (f *fileWriter) writeIDs(segs []segment) {
	least, greatest := int64(math.MaxInt64), int64(math.MinInt64)
	for i := range segs {
		least, greatest = min(least, int64(segs[i].id)), max(greatest, int64(segs[i].id))
	}
	f.bounds(longBytes(least), longBytes(greatest))
	if f.delta {
		f.writeLongs(segs, func(seg *segment, lo, hi int) {
			for range hi - lo {
				f.longs = append(f.longs, int64(seg.id))
			}
		})
		return
	}
	f.raw = f.raw[:0]
	n := 0
	for i := range segs {
		if i == 0 || segs[i].id != segs[i-1].id {
			f.raw = binary.LittleEndian.AppendUint64(f.raw, uint64(segs[i].id))
			n++
		}
	}
	f.writePage(pageDictionary, n, encodingPlain)
	p := f.codePages(n)
	code := int32(0)
	for i := range segs {
		if i > 0 && segs[i].id != segs[i-1].id {
			code++
		}
		p.put(code, len(segs[i].samples))
	}
}

// pages cuts the segments into pages of so many rows and calls visit for each
// run of rows of one segment, then end at the end of each page.
func (f *fileWriter) pages(segs []segment, rows int, visit func(seg *segment, lo, hi int), end func(rows int)) {
	at := 0 // rows in the page so far
	for i := range segs {
		s := &segs[i]
		for lo := 0; lo < len(s.samples); {
			hi := min(len(s.samples), lo+rows-at)
			visit(s, lo, hi)
			at += hi - lo
			lo = hi
			if at == rows {
				end(at)
				at = 0
			}
		}
	}
	if at > 0 {
		end(at)
	}
}

// writeLongs writes a column of integers that visit appends to f.longs, and
// for an optional one their levels to f.defs.
func (f *fileWriter) writeLongs(segs []segment, visit func(seg *segment, lo, hi int)) {
	f.longs = f.longs[:0]
	f.defs.reset(bitsFor(f.column.leaf.maxDef))
	f.pages(segs, f.opts.PageRows, visit, func(rows int) {
		f.levels()
		f.raw = appendDelta(f.raw, f.longs)
		f.writePage(pageData, rows, encodingDelta)
		f.longs = f.longs[:0]
	})
}

func (f *fileWriter) writeTimes(segs []segment) {
	span := series.TimeRange{Min: math.MaxInt64, Max: math.MinInt64}
	for i := range segs {
		s := segs[i].samples
		span = span.Union(series.TimeRange{Min: s[0].Time, Max: s[len(s)-1].Time})
	}
	f.bounds(longBytes(int64(span.Min)), longBytes(int64(span.Max)))
	f.writeLongs(segs, func(seg *segment, lo, hi int) {
		for k := lo; k < hi; k++ {
			f.longs = append(f.longs, int64(seg.samples[k].Time))
		}
	})
}

func (f *fileWriter) writeStarts(segs []segment) {
	least, greatest := int64(math.MaxInt64), int64(math.MinInt64)
	present := 0
	f.writeLongs(segs, func(seg *segment, lo, hi int) {
		for k := lo; k < hi; k++ {
			v := seg.samples[k].Start
			if v == 0 {
				f.defs.put(0, 1)
				continue
			}
			f.defs.put(1, 1)
			f.longs = append(f.longs, v)
			least, greatest = min(least, v), max(greatest, v)
			present++
		}
	})
	f.column.nulls = int64(f.total - present)
	if present > 0 {
		f.bounds(longBytes(least), longBytes(greatest))
	}
}

func (f *fileWriter) writeNanos(segs []segment) {
	var codes [maxNanos + 1]int32 // by value; 0 is null
	for i := range segs {
		for k := range segs[i].samples {
			codes[segs[i].samples[k].Nanos] = 1
		}
	}
	codes[0] = nullCode
	f.raw = f.raw[:0]
	n := int32(0)
	for v := range codes {
		if v > 0 && codes[v] != 0 {
			codes[v] = n
			f.raw = binary.LittleEndian.AppendUint32(f.raw, uint32(v))
			n++
		}
	}
	if n > 0 {
		f.bounds(bytes.Clone(f.raw[:4]), bytes.Clone(f.raw[len(f.raw)-4:]))
	}
	f.writePage(pageDictionary, int(n), encodingPlain)
	p := f.codePages(int(n))
	for i := range segs {
		for k := range segs[i].samples {
			p.put(codes[segs[i].samples[k].Nanos], 1)
		}
	}
}

// valuePages is how many times more rows a page of value codes has: they are
// an eighth of the values, and zstd finds more in more of them.
const valuePages = 4

// writeValues writes value: by dictionary where values repeat much, else as
// they are.
//
// It states no bounds. Parquet's leave NaN out, and SQL puts it above all
// numbers: DuckDB prunes NaN rows by such bounds and loses them.
func (f *fileWriter) writeValues(segs []segment) {
	f.column.noStats = true
	optional := f.column.leaf.maxDef > 0
	d := &f.byValue
	d.reset()
	if !f.collectValues(segs) || !d.pays() {
		f.writePlainValues(segs, optional)
		return
	}
	f.raw = f.raw[:0]
	for _, v := range d.values {
		f.raw = binary.LittleEndian.AppendUint64(f.raw, v)
	}
	f.writePage(pageDictionary, len(d.values), encodingPlain)
	wide := len(d.values) > 1<<8
	f.defs.reset(bitsFor(f.column.leaf.maxDef))
	from, to := 0, 0 // codes of the page
	f.pages(segs, valuePages*f.opts.PageRows, func(seg *segment, lo, hi int) {
		if !optional {
			to += hi - lo
			return
		}
		for k := lo; k < hi; k++ {
			present := b2i(seg.samples[k].Histogram == nil)
			f.defs.put(uint32(present), 1)
			to += present
		}
	}, func(rows int) {
		f.levels()
		f.raw = appendByteCodes(f.raw, d.codes[from:to], wide)
		f.writePage(pageData, rows, encodingRLEDict)
		from = to
	})
}

// collectValues gives each value a code; it returns false where that does not
// pay.
func (f *fileWriter) collectValues(segs []segment) bool {
	for i := range segs {
		samples := segs[i].samples
		for k := range samples {
			if samples[k].Histogram == nil && !f.byValue.add(math.Float64bits(samples[k].Value)) {
				return false
			}
		}
	}
	return true
}

// appendByteCodes appends codes of eight bits, or sixteen if wide, as one
// packed run.
func appendByteCodes(out []byte, codes []uint16, wide bool) []byte {
	width := 1 + b2i(wide)
	out = append(out, byte(8*width))
	if len(codes) == 0 {
		return out
	}
	groups := (len(codes) + 7) / 8
	out = binary.AppendUvarint(out, uint64(groups)<<1|1)
	for _, c := range codes {
		out = append(out, byte(c))
		if wide {
			out = append(out, byte(c>>8))
		}
	}
	for range width * (8*groups - len(codes)) {
		out = append(out, 0)
	}
	return out
}

func (f *fileWriter) writePlainValues(segs []segment, optional bool) {
	f.floats = f.floats[:0]
	f.defs.reset(bitsFor(f.column.leaf.maxDef))
	f.pages(segs, f.opts.PageRows, func(seg *segment, lo, hi int) {
		for k := lo; k < hi; k++ {
			p := &seg.samples[k]
			if optional {
				f.defs.put(uint32(b2i(p.Histogram == nil)), 1)
			}
			if p.Histogram == nil {
				f.floats = append(f.floats, math.Float64bits(p.Value))
			}
		}
	}, func(rows int) {
		f.levels()
		encoding := int32(encodingPlain)
		if f.opts.SplitValues {
			encoding = encodingStreamSplit
			for shift := 0; shift < 64; shift += 8 {
				for _, v := range f.floats {
					f.raw = append(f.raw, byte(v>>shift))
				}
			}
		} else {
			for _, v := range f.floats {
				f.raw = binary.LittleEndian.AppendUint64(f.raw, v)
			}
		}
		f.writePage(pageData, rows, encoding)
		f.floats = f.floats[:0]
	})
}

func (f *fileWriter) writeHistograms(segs []segment) {
	f.column.noStats = true
	f.defs.reset(bitsFor(f.column.leaf.maxDef))
	var values []byte
	rows := 0
	write := func() {
		if rows == 0 {
			return
		}
		f.levels()
		f.raw = append(f.raw, values...)
		f.writePage(pageData, rows, encodingPlain)
		values, rows = values[:0], 0
	}
	f.pages(segs, f.opts.PageRows, func(seg *segment, lo, hi int) {
		for k := lo; k < hi; k++ {
			rows++
			h := seg.samples[k].Histogram
			if h == nil {
				f.defs.put(0, 1)
				continue
			}
			f.defs.put(1, 1)
			values = append(binary.LittleEndian.AppendUint32(values, uint32(len(h))), h...)
			if len(values) >= maxPageBytes {
				write()
			}
		}
	}, func(int) { write() })
}

// Levels of the overflow map: the map itself is optional, its entries
// repeat, a key is required, a value optional.
const (
	overflowEntryDef = 2 // there is an entry
	overflowValueDef = 3 // with a value
)

func (f *fileWriter) writeOverflow(segs []segment, keys bool) {
	f.column.noStats = true
	d := &f.texts
	d.reset()
	var codes []int32 // of the entries of all segments
	for i := range segs {
		for _, l := range segs[i].overflow {
			text := l.Value
			if keys {
				text = l.Name
			}
			code, _ := d.code(text)
			codes = append(codes, code)
		}
	}
	f.writeTextDict(d.values)
	f.column.least, f.column.greatest = nil, nil
	def := uint32(f.column.leaf.maxDef)
	width := codeWidth(len(d.values))
	f.codes.reset(width)
	f.defs.reset(bitsFor(f.column.leaf.maxDef))
	f.reps.reset(bitsFor(f.column.leaf.maxRep))
	values := 0
	last, first := -1, 0 // where the codes of the segment last seen begin
	f.pages(segs, f.opts.PageRows, func(seg *segment, lo, hi int) {
		n := len(seg.overflow)
		if n == 0 {
			f.defs.put(0, hi-lo)
			f.reps.put(0, hi-lo)
			values += hi - lo
			return
		}
		if lo == 0 {
			first = last + 1
			last += n
		}
		for range hi - lo {
			for i, c := range codes[first : first+n] {
				f.reps.put(uint32(min(i, 1)), 1)
				f.defs.put(def, 1)
				f.codes.put(uint32(c), 1)
			}
		}
		values += n * (hi - lo)
	}, func(int) {
		f.levels()
		f.raw = append(f.raw, byte(width))
		f.raw = append(f.raw, f.codes.finish()...)
		f.writePage(pageData, values, encodingRLEDict)
		f.codes.reset(width)
		values = 0
	})
}
