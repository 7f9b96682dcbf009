package chunk

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/bitutil"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/arrow-go/v18/parquet"
	"github.com/apache/arrow-go/v18/parquet/file"
	"github.com/apache/arrow-go/v18/parquet/metadata"
)

// pages cuts the segments into pages and calls visit for each run of rows of
// one segment, then end at the end of each page.
func (f *fileWriter) pages(segs []segment, visit func(seg, lo, hi, at int), end func(rows int) error) error {
	at := 0 // rows in the page so far
	for i := range segs {
		n := len(segs[i].samples)
		for lo := 0; lo < n; {
			hi := min(n, lo+f.opts.PageRows-at)
			visit(i, lo, hi, at)
			at += hi - lo
			lo = hi
			if at == f.opts.PageRows {
				if err := end(at); err != nil {
					return err
				}
				at = 0
			}
		}
	}
	if at > 0 {
		return end(at)
	}
	return nil
}

// dictWriter is what arrow-go's dictionary encoders offer beside their
// interface.
type dictWriter interface{ PutDictionary(arrow.Array) error }

type pageFlusher interface{ FlushCurrentPage() error }

func flushPage(cw file.ColumnChunkWriter) error { return cw.(pageFlusher).FlushCurrentPage() }

// writeNames writes metric_name, whose values ascend with the segments.
func (f *fileWriter) writeNames(cw file.ColumnChunkWriter, segs []segment) error {
	codes := make([]int32, len(segs))
	var values []string
	for i := range segs {
		if i == 0 || segs[i].name != segs[i-1].name {
			values = append(values, segs[i].name)
		}
		codes[i] = int32(len(values) - 1)
	}
	return f.writeTexts(cw, segs, values, codes)
}

// writeTexts writes a dictionary column of strings; codes has one code a
// segment, -1 for null.
func (f *fileWriter) writeTexts(cw file.ColumnChunkWriter, segs []segment, values []string, codes []int32) error {
	// With the dictionary sorted, the least code is the least value.
	order := make([]int32, len(values))
	for i := range order {
		order[i] = int32(i)
	}
	slices.SortFunc(order, func(a, b int32) int { return cmp.Compare(values[a], values[b]) })
	rank := make([]int32, len(values))
	build := array.NewStringBuilder(memory.DefaultAllocator)
	defer build.Release()
	for r, code := range order {
		rank[code] = int32(r)
		build.Append(values[code])
	}
	dict := build.NewStringArray()
	defer dict.Release()
	ranked := make([]int32, len(codes))
	for i, code := range codes {
		ranked[i] = -1
		if code >= 0 {
			ranked[i] = rank[code]
		}
	}
	stats := func(lo, hi int32) {
		cw.PageStatistics().(*metadata.ByteArrayStatistics).SetMinMax(
			parquet.ByteArray(values[order[lo]]), parquet.ByteArray(values[order[hi]]))
	}
	return f.writeCodes(cw, dict, segs, stats, func(i, _ int) int32 { return ranked[i] }, true)
}

// writeCodes writes a dictionary column by codes in the order of the values.
// code gives that of one row, or of a whole segment if constant; stats takes
// the least and the greatest code of a page.
func (f *fileWriter) writeCodes(cw file.ColumnChunkWriter, dict arrow.Array, segs []segment,
	stats func(lo, hi int32), code func(seg, row int) int32, constant bool,
) error {
	enc, ok := cw.CurrentEncoder().(dictWriter)
	if !ok {
		return fmt.Errorf("encoder %T takes no dictionary", cw.CurrentEncoder())
	}
	if err := enc.PutDictionary(dict); err != nil {
		return err
	}
	optional := cw.Descr().MaxDefinitionLevel() > 0
	f.codes = slices.Grow(f.codes[:0], f.opts.PageRows)[:f.opts.PageRows]
	f.defs = slices.Grow(f.defs[:0], f.opts.PageRows)[:f.opts.PageRows]
	least, greatest, nulls := int32(math.MaxInt32), int32(-1), 0
	put := func(at, n int, c int32) {
		def := int16(1)
		if c < 0 {
			c, def = 0, 0
			nulls += n
			bitutil.SetBitsTo(f.valid, int64(at), int64(n), false)
		} else {
			least, greatest = min(least, c), max(greatest, c)
			bitutil.SetBitsTo(f.valid, int64(at), int64(n), true)
		}
		for k := at; k < at+n; k++ {
			f.codes[k], f.defs[k] = c, def
		}
	}
	return f.pages(segs, func(seg, lo, hi, at int) {
		if constant {
			put(at, hi-lo, code(seg, lo))
			return
		}
		for k := lo; k < hi; k++ {
			put(at+k-lo, 1, code(seg, k))
		}
	}, func(rows int) error {
		st := cw.PageStatistics()
		st.IncNulls(int64(nulls))
		st.IncNumValues(int64(rows - nulls))
		if greatest >= 0 {
			stats(least, greatest)
		}
		var valid *memory.Buffer
		var defs []int16
		if optional {
			valid, defs = memory.NewBufferBytes(f.valid), f.defs[:rows]
		}
		data := array.NewData(arrow.PrimitiveTypes.Int32, rows,
			[]*memory.Buffer{valid, memory.NewBufferBytes(arrow.Int32Traits.CastToBytes(f.codes[:rows]))}, nil, nulls, 0)
		defer data.Release()
		indices := array.NewInt32Data(data)
		defer indices.Release()
		if err := cw.WriteDictIndices(indices, defs, nil); err != nil {
			return err
		}
		least, greatest, nulls = math.MaxInt32, -1, 0
		return flushPage(cw)
	})
}

func (f *fileWriter) writeIDs(cw file.ColumnChunkWriter, segs []segment) error {
	if f.delta {
		w := cw.(*file.Int64ColumnChunkWriter)
		return f.writeLongs(w, segs, func(seg, _ int) int64 { return int64(segs[seg].id) })
	}
	// Within a metric IDs ascend as unsigned numbers, but the column is
	// signed, and metrics begin anew: sort.
	values := make([]int64, len(segs))
	for i := range segs {
		values[i] = int64(segs[i].id)
	}
	sorted := slices.Compact(slices.Sorted(slices.Values(values)))
	build := array.NewInt64Builder(memory.DefaultAllocator)
	defer build.Release()
	build.AppendValues(sorted, nil)
	dict := build.NewInt64Array()
	defer dict.Release()
	codes := make([]int32, len(segs))
	for i, v := range values {
		at, _ := slices.BinarySearch(sorted, v)
		codes[i] = int32(at)
	}
	stats := func(lo, hi int32) {
		cw.PageStatistics().(*metadata.Int64Statistics).SetMinMax(sorted[lo], sorted[hi])
	}
	return f.writeCodes(cw, dict, segs, stats, func(i, _ int) int32 { return codes[i] }, true)
}

func (f *fileWriter) writeTimes(cw file.ColumnChunkWriter, segs []segment) error {
	w := cw.(*file.Int64ColumnChunkWriter)
	return f.writeLongs(w, segs, func(seg, row int) int64 { return int64(segs[seg].samples[row].Time) })
}

func (f *fileWriter) writeLongs(cw *file.Int64ColumnChunkWriter, segs []segment, value func(seg, row int) int64) error {
	f.longs = f.longs[:0]
	return f.pages(segs, func(seg, lo, hi, _ int) {
		for k := lo; k < hi; k++ {
			f.longs = append(f.longs, value(seg, k))
		}
	}, func(int) error {
		if _, err := cw.WriteBatch(f.longs, nil, nil); err != nil {
			return err
		}
		f.longs = f.longs[:0]
		return flushPage(cw)
	})
}

func (f *fileWriter) writeNanos(cw file.ColumnChunkWriter, segs []segment) error {
	var codes [maxNanos + 1]int32 // by value; 0 is null
	for i := range segs {
		for k := range segs[i].samples {
			codes[segs[i].samples[k].Nanos] = 1
		}
	}
	codes[0] = -1
	build := array.NewInt32Builder(memory.DefaultAllocator)
	defer build.Release()
	var values []int32
	for n := int32(1); n <= maxNanos; n++ {
		if codes[n] != 0 {
			codes[n] = int32(len(values))
			values = append(values, n)
		}
	}
	build.AppendValues(values, nil)
	dict := build.NewInt32Array()
	defer dict.Release()
	stats := func(lo, hi int32) {
		cw.PageStatistics().(*metadata.Int32Statistics).SetMinMax(values[lo], values[hi])
	}
	return f.writeCodes(cw, dict, segs, stats, func(seg, row int) int32 { return codes[segs[seg].samples[row].Nanos] }, false)
}

func (f *fileWriter) writeStarts(cw file.ColumnChunkWriter, segs []segment) error {
	w := cw.(*file.Int64ColumnChunkWriter)
	f.longs, f.defs = f.longs[:0], f.defs[:0]
	return f.pages(segs, func(seg, lo, hi, _ int) {
		for k := lo; k < hi; k++ {
			start := segs[seg].samples[k].Start
			if start == 0 {
				f.defs = append(f.defs, 0)
				continue
			}
			f.defs = append(f.defs, 1)
			f.longs = append(f.longs, start)
		}
	}, func(int) error {
		if _, err := w.WriteBatch(f.longs, f.defs, nil); err != nil {
			return err
		}
		f.longs, f.defs = f.longs[:0], f.defs[:0]
		return flushPage(cw)
	})
}

func (f *fileWriter) writeValues(cw file.ColumnChunkWriter, segs []segment) error {
	w := cw.(*file.Float64ColumnChunkWriter)
	f.floats, f.defs = f.floats[:0], f.defs[:0]
	if !f.has.histogram {
		return f.pages(segs, func(seg, lo, hi, _ int) {
			for k := lo; k < hi; k++ {
				f.floats = append(f.floats, segs[seg].samples[k].Value)
			}
		}, func(int) error {
			if _, err := w.WriteBatch(f.floats, nil, nil); err != nil {
				return err
			}
			f.floats = f.floats[:0]
			return flushPage(cw)
		})
	}
	return f.pages(segs, func(seg, lo, hi, _ int) {
		for k := lo; k < hi; k++ {
			p := &segs[seg].samples[k]
			if p.Histogram != nil {
				f.defs = append(f.defs, 0)
				continue
			}
			f.defs = append(f.defs, 1)
			f.floats = append(f.floats, p.Value)
		}
	}, func(int) error {
		if _, err := w.WriteBatch(f.floats, f.defs, nil); err != nil {
			return err
		}
		f.floats, f.defs = f.floats[:0], f.defs[:0]
		return flushPage(cw)
	})
}

func (f *fileWriter) writeHistograms(cw file.ColumnChunkWriter, segs []segment) error {
	w := cw.(*file.ByteArrayColumnChunkWriter)
	f.blobs, f.defs = f.blobs[:0], f.defs[:0]
	size := 0
	var err error
	write := func() error {
		if len(f.defs) == 0 {
			return nil
		}
		if _, err := w.WriteBatch(f.blobs, f.defs, nil); err != nil {
			return err
		}
		f.blobs, f.defs, size = f.blobs[:0], f.defs[:0], 0
		return flushPage(cw)
	}
	return f.pages(segs, func(seg, lo, hi, _ int) {
		for k := lo; k < hi && err == nil; k++ {
			h := segs[seg].samples[k].Histogram
			if h == nil {
				f.defs = append(f.defs, 0)
				continue
			}
			f.defs = append(f.defs, 1)
			f.blobs = append(f.blobs, h)
			if size += len(h); size >= maxPageBytes {
				err = write()
			}
		}
	}, func(int) error {
		if err == nil {
			err = write()
		}
		return err
	})
}

// Levels of the overflow map: the map itself is optional, its entries
// repeat, a key is required, a value optional.
const (
	overflowEntryDef = 2 // there is an entry
	overflowValueDef = 3 // with a value
)

func (f *fileWriter) writeOverflow(cw file.ColumnChunkWriter, segs []segment, keys bool) error {
	w := cw.(*file.ByteArrayColumnChunkWriter)
	f.blobs, f.defs, f.reps = f.blobs[:0], f.defs[:0], f.reps[:0]
	return f.pages(segs, func(seg, lo, hi, _ int) {
		entries := segs[seg].overflow
		for range hi - lo {
			if len(entries) == 0 {
				f.defs, f.reps = append(f.defs, 0), append(f.reps, 0)
				continue
			}
			for i, l := range entries {
				rep := int16(0)
				if i > 0 {
					rep = 1
				}
				f.reps = append(f.reps, rep)
				if keys {
					f.defs, f.blobs = append(f.defs, overflowEntryDef), append(f.blobs, parquet.ByteArray(l.Name))
				} else {
					f.defs, f.blobs = append(f.defs, overflowValueDef), append(f.blobs, parquet.ByteArray(l.Value))
				}
			}
		}
	}, func(int) error {
		if _, err := w.WriteBatch(f.blobs, f.defs, f.reps); err != nil {
			return err
		}
		f.blobs, f.defs, f.reps = f.blobs[:0], f.defs[:0], f.reps[:0]
		return flushPage(cw)
	})
}
