package chunk

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"

	"github.com/apache/arrow-go/v18/arrow/bitutil"
	"github.com/apache/arrow-go/v18/parquet"
	"github.com/apache/arrow-go/v18/parquet/compress"
	"github.com/apache/arrow-go/v18/parquet/file"
	"github.com/apache/arrow-go/v18/parquet/schema"
	"github.com/cespare/xxhash/v2"
)

// Paths of the leaf columns that the fixed schema names.
const (
	overflowKeyPath   = ColumnOverflow + ".key_value.key"
	overflowValuePath = ColumnOverflow + ".key_value.value"
)

const (
	// maxStatBytes bounds a column's min and max in footer and page index; a
	// longer value leaves the column without bounds.
	maxStatBytes = 256
	// maxPageBytes ends a page of histograms early.
	maxPageBytes = 1 << 20
)

// parquetSchema is the file's schema: the columns in the order that the
// package comment states.
func parquetSchema(has fileColumns, labelColumns []*labelColumn) *schema.GroupNode {
	var nodes schema.FieldList
	text := schema.StringLogicalType{}
	add := func(n schema.Node, err error) {
		if err != nil {
			panic(err) // only for a type that its logical type does not fit
		}
		nodes = append(nodes, n)
	}
	leaf := func(name string, rep parquet.Repetition, t parquet.Type) {
		add(schema.NewPrimitiveNode(name, rep, t, -1, -1))
	}
	add(schema.NewPrimitiveNodeLogical(ColumnMetricName, parquet.Repetitions.Required, text, parquet.Types.ByteArray, -1, -1))
	leaf(ColumnSeriesID, parquet.Repetitions.Required, parquet.Types.Int64)
	for _, c := range labelColumns {
		add(schema.NewPrimitiveNodeLogical(c.column, parquet.Repetitions.Optional, text, parquet.Types.ByteArray, -1, -1))
	}
	if has.overflow {
		key, err := schema.NewPrimitiveNodeLogical("key", parquet.Repetitions.Required, text, parquet.Types.ByteArray, -1, -1)
		if err != nil {
			panic(err)
		}
		value, err := schema.NewPrimitiveNodeLogical("value", parquet.Repetitions.Optional, text, parquet.Types.ByteArray, -1, -1)
		if err != nil {
			panic(err)
		}
		add(schema.MapOf(ColumnOverflow, key, value, parquet.Repetitions.Optional, -1))
	}
	add(schema.NewPrimitiveNodeLogical(ColumnTimestamp, parquet.Repetitions.Required,
		schema.NewTimestampLogicalTypeForce(true, schema.TimeUnitMicros), parquet.Types.Int64, -1, -1))
	if has.nanos {
		leaf(ColumnNanos, parquet.Repetitions.Optional, parquet.Types.Int32)
	}
	if has.start {
		leaf(ColumnStart, parquet.Repetitions.Optional, parquet.Types.Int64)
	}
	value := parquet.Repetitions.Required
	if has.histogram {
		value = parquet.Repetitions.Optional
	}
	leaf(ColumnValue, value, parquet.Types.Double)
	if has.histogram {
		leaf(ColumnHistogram, parquet.Repetitions.Optional, parquet.Types.ByteArray)
	}
	root, err := schema.NewGroupNode("schema", parquet.Repetitions.Required, nodes, -1)
	if err != nil {
		panic(err)
	}
	return root
}

// sink collects the file.
type sink struct{ data []byte }

func (s *sink) Write(p []byte) (int, error) {
	s.data = append(s.data, p...)
	return len(p), nil
}

// fileWriter drives arrow-go's column writers. It places page boundaries
// itself, hands over dictionary codes where arrow-go would hash each row, and
// supplies the statistics that arrow-go leaves out for such columns.
type fileWriter struct {
	opts   Options
	has    fileColumns
	labels []*labelColumn
	delta  bool // series_id is delta-coded
	sink   *sink
	w      *file.Writer

	defs   []int16 // scratch, a page
	reps   []int16
	codes  []int32
	valid  []byte
	longs  []int64
	floats []float64
	blobs  []parquet.ByteArray
}

func newFileWriter(opts Options, has fileColumns, labelColumns []*labelColumn, deltaIDs bool) *fileWriter {
	value := parquet.Encodings.Plain
	if opts.SplitValues {
		value = parquet.Encodings.ByteStreamSplit
	}
	props := []parquet.WriterProperty{
		parquet.WithCreatedBy(createdBy),
		parquet.WithVersion(parquet.V2_LATEST),
		// Version 1 pages are compressed as a whole, so that zstd's own
		// checksum covers all of their payload, in every reader.
		parquet.WithDataPageVersion(parquet.DataPageV1),
		// Pages end where this file ends them, dictionaries never give up:
		// the library must not flush by itself, since it panics when asked
		// to flush what it has flushed.
		parquet.WithDataPageSize(math.MaxInt64),
		parquet.WithBatchSize(math.MaxInt32),
		parquet.WithDictionaryPageSizeLimit(math.MaxInt64),
		parquet.WithCompression(compress.Codecs.Zstd),
		parquet.WithCompressionLevel(opts.Level),
		parquet.WithMaxStatsSize(maxStatBytes),
		parquet.WithPageIndexEnabled(true),
		parquet.WithDictionaryFor(ColumnTimestamp, false),
		parquet.WithEncodingFor(ColumnTimestamp, parquet.Encodings.DeltaBinaryPacked),
		parquet.WithDictionaryFor(ColumnStart, false),
		parquet.WithEncodingFor(ColumnStart, parquet.Encodings.Plain),
		parquet.WithDictionaryFor(ColumnValue, false),
		parquet.WithEncodingFor(ColumnValue, value),
		// Parquet's bounds leave NaN out, SQL puts it above all numbers:
		// DuckDB prunes NaN rows by such bounds and loses them.
		parquet.WithStatsFor(ColumnValue, false),
		parquet.WithPageIndexEnabledFor(ColumnValue, false),
		parquet.WithDictionaryFor(ColumnHistogram, false),
		parquet.WithStatsFor(ColumnHistogram, false),
		parquet.WithPageIndexEnabledFor(ColumnHistogram, false),
	}
	if deltaIDs {
		props = append(props,
			parquet.WithDictionaryFor(ColumnSeriesID, false),
			parquet.WithEncodingFor(ColumnSeriesID, parquet.Encodings.DeltaBinaryPacked))
	}
	out := &sink{}
	return &fileWriter{
		opts: opts, has: has, labels: labelColumns, delta: deltaIDs, sink: out,
		w: file.NewParquetWriter(out, parquetSchema(has, labelColumns),
			file.WithWriterProps(parquet.NewWriterProperties(props...))),
		valid: make([]byte, bitutil.BytesForBits(int64(opts.PageRows))),
	}
}

// writeRowGroup writes segments as one row group, column by column.
func (f *fileWriter) writeRowGroup(segs []segment, rows int) (err error) {
	rg := f.w.AppendRowGroup()
	next := func() file.ColumnChunkWriter {
		if err != nil {
			return nil
		}
		var cw file.ColumnChunkWriter
		if cw, err = rg.NextColumn(); err != nil {
			return nil
		}
		return cw
	}
	column := func(name string, write func(file.ColumnChunkWriter) error) {
		cw := next()
		if err != nil {
			return
		}
		if err = write(cw); err == nil {
			err = cw.Close()
		}
		if err != nil {
			err = fmt.Errorf("column %s: %w", name, err)
		}
	}
	column(ColumnMetricName, func(cw file.ColumnChunkWriter) error { return f.writeNames(cw, segs) })
	column(ColumnSeriesID, func(cw file.ColumnChunkWriter) error { return f.writeIDs(cw, segs) })
	for _, c := range f.labels {
		column(c.column, func(cw file.ColumnChunkWriter) error { return f.writeTexts(cw, segs, c.values, c.codes) })
	}
	if f.has.overflow {
		column(overflowKeyPath, func(cw file.ColumnChunkWriter) error { return f.writeOverflow(cw, segs, true) })
		column(overflowValuePath, func(cw file.ColumnChunkWriter) error { return f.writeOverflow(cw, segs, false) })
	}
	column(ColumnTimestamp, func(cw file.ColumnChunkWriter) error { return f.writeTimes(cw, segs) })
	if f.has.nanos {
		column(ColumnNanos, func(cw file.ColumnChunkWriter) error { return f.writeNanos(cw, segs) })
	}
	if f.has.start {
		column(ColumnStart, func(cw file.ColumnChunkWriter) error { return f.writeStarts(cw, segs) })
	}
	column(ColumnValue, func(cw file.ColumnChunkWriter) error { return f.writeValues(cw, segs) })
	if f.has.histogram {
		column(ColumnHistogram, func(cw file.ColumnChunkWriter) error { return f.writeHistograms(cw, segs) })
	}
	if err != nil {
		return err
	}
	n, err := rg.NumRows()
	if err != nil {
		return err
	}
	if n != rows {
		return fmt.Errorf("columns hold %d rows, not %d", n, rows)
	}
	return rg.Close()
}

// finish writes sums, footer and seal, and returns the whole file.
func (f *fileWriter) finish(in info) ([]byte, error) {
	md, err := f.w.FileMetadata()
	if err != nil {
		return nil, err
	}
	in.Format = formatVersion
	for i := range md.NumRowGroups() {
		rg := md.RowGroup(i)
		for j := range rg.NumColumns() {
			c, err := rg.ColumnChunk(j)
			if err != nil {
				return nil, err
			}
			start := c.DataPageOffset()
			if c.HasDictionaryPage() {
				start = c.DictionaryPageOffset()
			}
			in.Sums = binary.LittleEndian.AppendUint64(in.Sums, xxhash.Sum64(f.sink.data[start:start+c.TotalCompressedSize()]))
		}
	}
	text, err := json.Marshal(in)
	if err != nil {
		return nil, err
	}
	if err := f.w.AppendKeyValueMetadata(infoKey, string(text)); err != nil {
		return nil, err
	}
	// Close drops the error of what this does.
	if err := f.w.FlushWithFooter(); err != nil {
		return nil, err
	}
	if err := f.w.Close(); err != nil {
		return nil, err
	}
	return sealFile(f.sink.data)
}
