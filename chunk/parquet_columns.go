package chunk

import (
	"bytes"
	"encoding/binary"
	"math"
	"slices"

	"cardinalsin/internal/symbols"
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
func (f *fileWriter) writeTextDict(d *symbols.Dictionary) {
	f.raw = append(f.raw[:0], d.Page()...)
	f.writePage(pageDictionary, d.Len(), encodingPlain)
	if d.Len() > 0 {
		f.bounds(d.Bounds())
	}
}

// writeNames writes metric_name, whose values ascend with the segments.
func (f *fileWriter) writeNames(segs []segment) {
	d := &f.texts
	d.Reset()
	for i := range segs {
		if i == 0 || segs[i].name != segs[i-1].name {
			d.Code(segs[i].name)
		}
	}
	f.writeTextDict(d)
	p := f.codePages(d.Len())
	code := int32(0)
	for i := range segs {
		if i > 0 && segs[i].name != segs[i-1].name {
			code++
		}
		p.put(code, int(segs[i].rows))
	}
}

func (f *fileWriter) writeLabel(c *labelColumn) {
	f.writeTextDict(&c.dict)
	p := f.codePages(c.dict.Len())
	for i, code := range c.codes {
		seg := i
		if len(c.segments) > 0 {
			seg = int(c.segments[i])
		}
		if gap := int(f.starts[seg]) - p.row; gap > 0 {
			p.put(nullCode, gap)
		}
		p.put(code, int(f.starts[seg+1]-f.starts[seg]))
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
		ids := f.longs[:0]
		for i := range segs {
			for range segs[i].rows {
				ids = append(ids, int64(segs[i].id))
			}
		}
		f.longs = ids
		f.writeLongs(ids)
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
		p.put(code, int(segs[i].rows))
	}
}

// pages calls write for the rows lo to hi of each page.
func (f *fileWriter) pages(rows int, write func(lo, hi int)) {
	for lo := 0; lo < f.total; lo += rows {
		write(lo, min(lo+rows, f.total))
	}
}

// writeLongs writes a required column of integers.
func (f *fileWriter) writeLongs(values []int64) {
	f.pages(f.opts.PageRows, func(lo, hi int) {
		f.raw = appendDelta(f.raw[:0], values[lo:hi])
		f.writePage(pageData, hi-lo, encodingDelta)
	})
}

func (f *fileWriter) writeTimes(times []int64) {
	f.bounds(longBytes(slices.Min(times)), longBytes(slices.Max(times)))
	f.writeLongs(times)
}

func (f *fileWriter) writeStarts(starts []int64) {
	least, greatest := int64(math.MaxInt64), int64(math.MinInt64)
	f.defs.reset(1)
	f.pages(f.opts.PageRows, func(lo, hi int) {
		present := f.longs[:0]
		for _, v := range starts[lo:hi] {
			f.defs.put(uint32(b2i(v != 0)), 1)
			if v != 0 {
				present = append(present, v)
				least, greatest = min(least, v), max(greatest, v)
			}
		}
		f.longs = present
		f.column.nulls += int64(hi - lo - len(present))
		f.levels()
		f.raw = appendDelta(f.raw, present)
		f.writePage(pageData, hi-lo, encodingDelta)
	})
	if least <= greatest {
		f.bounds(longBytes(least), longBytes(greatest))
	}
}

func (f *fileWriter) writeNanos(nanos []uint16) {
	var codes [series.MaxNanos + 1]int32 // by value; 0 is null
	for _, v := range nanos {
		codes[v] = 1
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
	for _, v := range nanos {
		p.put(codes[v], 1)
	}
}

// bestLevel is zstd's best. At a byte a row it costs little, and values are
// most of a file.
const bestLevel = 11

// valuePages is how many times more rows a page of value codes has: they are
// an eighth of the values, and zstd finds more in more of them.
const valuePages = 4

// writeValues writes value: by dictionary where values repeat much, else as
// they are.
//
// It states no bounds. Parquet's leave NaN out, and SQL puts it above all
// numbers: DuckDB prunes NaN rows by such bounds and loses them.
func (f *fileWriter) writeValues(c *rowColumns) {
	f.column.noStats = true
	d := &f.byValue
	if !d.fill(c.values, c.histograms) {
		f.writePlainValues(c)
		return
	}
	f.raw = f.raw[:0]
	for _, v := range d.values {
		f.raw = binary.LittleEndian.AppendUint64(f.raw, v)
	}
	f.writePage(pageDictionary, len(d.values), encodingPlain)
	if f.opts.Level >= 3 {
		f.column.zstd = compressor(bestLevel)
	}
	wide := len(d.values) > 1<<8
	f.defs.reset(bitsFor(f.column.leaf.maxDef))
	codes := d.codes
	f.pages(valuePages*f.opts.PageRows, func(lo, hi int) {
		n := hi - lo
		if f.has.histogram {
			n = 0
			for _, h := range c.histograms[lo:hi] {
				present := b2i(h == nil)
				f.defs.put(uint32(present), 1)
				n += present
			}
		}
		f.levels()
		f.raw = appendByteCodes(f.raw, codes[:n], wide)
		f.writePage(pageData, hi-lo, encodingRLEDict)
		codes = codes[n:]
	})
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

func (f *fileWriter) writePlainValues(c *rowColumns) {
	f.defs.reset(bitsFor(f.column.leaf.maxDef))
	f.pages(f.opts.PageRows, func(lo, hi int) {
		values := c.values[lo:hi]
		if f.has.histogram {
			f.floats = f.floats[:0]
			for k, h := range c.histograms[lo:hi] {
				f.defs.put(uint32(b2i(h == nil)), 1)
				if h == nil {
					f.floats = append(f.floats, values[k])
				}
			}
			values = f.floats
		}
		f.levels()
		encoding := int32(encodingPlain)
		if f.opts.SplitValues {
			encoding = encodingStreamSplit
			for shift := 0; shift < 64; shift += 8 {
				for _, v := range values {
					f.raw = append(f.raw, byte(v>>shift))
				}
			}
		} else {
			for _, v := range values {
				f.raw = binary.LittleEndian.AppendUint64(f.raw, v)
			}
		}
		f.writePage(pageData, hi-lo, encoding)
	})
}

func (f *fileWriter) writeHistograms(histograms [][]byte) {
	f.column.noStats = true
	f.defs.reset(1)
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
	f.pages(f.opts.PageRows, func(lo, hi int) {
		for _, h := range histograms[lo:hi] {
			rows++
			f.defs.put(uint32(b2i(h != nil)), 1)
			if h == nil {
				continue
			}
			values = append(binary.LittleEndian.AppendUint32(values, uint32(len(h))), h...)
			if len(values) >= maxPageBytes {
				write()
			}
		}
		write()
	})
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
	d.Reset()
	var codes []int32 // of the entries of all segments
	for i := range segs {
		for _, l := range segs[i].overflow {
			text := l.Value
			if keys {
				text = l.Name
			}
			code, _ := d.Code(text)
			codes = append(codes, code)
		}
	}
	f.writeTextDict(d)
	def := uint32(f.column.leaf.maxDef)
	width := codeWidth(d.Len())
	f.codes.reset(width)
	f.defs.reset(bitsFor(f.column.leaf.maxDef))
	f.reps.reset(bitsFor(f.column.leaf.maxRep))
	values, at, row := 0, 0, 0 // of the page; in codes; in the row group
	for i := range segs {
		n := len(segs[i].overflow)
		for range segs[i].rows {
			if n == 0 {
				f.defs.put(0, 1)
				f.reps.put(0, 1)
				values++
			}
			for k, c := range codes[at : at+n] {
				f.reps.put(uint32(min(k, 1)), 1)
				f.defs.put(def, 1)
				f.codes.put(uint32(c), 1)
				values++
			}
			if row++; row%f.opts.PageRows == 0 || row == f.total {
				f.levels()
				f.raw = append(f.raw, byte(width))
				f.raw = append(f.raw, f.codes.finish()...)
				f.writePage(pageData, values, encodingRLEDict)
				f.codes.reset(width)
				values = 0
			}
		}
		at += n
	}
}
