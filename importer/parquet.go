package importer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"slices"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/arrow-go/v18/parquet"
	"github.com/apache/arrow-go/v18/parquet/file"
	"github.com/apache/arrow-go/v18/parquet/pqarrow"

	"cardinalsin/ingest"
	"cardinalsin/internal/arrowbatch"
	"cardinalsin/series"
)

func parquetParser(path string, o Options) parser {
	return func(ctx context.Context) iter.Seq2[*part, error] {
		return func(yield func(*part, error) bool) {
			stopped := false
			err := readParquet(ctx, path, int64(o.partSamples), func(p *part) bool {
				stopped = !yield(p, nil)
				return !stopped
			})
			if err != nil && !stopped {
				yield(nil, err)
			}
		}
	}
}

// readParquet yields parts of size rows, in the order of the file,
// whatever its row groups are. In a damaged file arrow-go may panic.
func readParquet(ctx context.Context, path string, size int64, yield func(*part) bool) (err error) {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer f.Close() //nolint:errcheck // only read
	row := int64(0)
	inYield := false
	defer func() {
		if r := recover(); r != nil {
			if inYield {
				panic(r)
			}
			err = fmt.Errorf("after row %d: %w: %v", row, ingest.ErrMalformed, r)
		}
	}()
	in, err := file.NewParquetReader(f, file.WithReadProps(parquet.NewReaderProperties(memory.DefaultAllocator)))
	if err != nil {
		return fmt.Errorf("%w: %w", ingest.ErrMalformed, err)
	}
	defer in.Close() //nolint:errcheck // only read
	props := pqarrow.ArrowReadProperties{BatchSize: size}
	// Text is not asked for as dictionaries: arrow-go 18.5.1 then reads rows of
	// one row group by the dictionary of another where a batch spans several.
	reader, err := pqarrow.NewFileReader(in, props, memory.DefaultAllocator)
	if err != nil {
		return fmt.Errorf("%w: %w", ingest.ErrMalformed, err)
	}
	schema, err := reader.Schema()
	if err != nil {
		return fmt.Errorf("%w: %w", ingest.ErrMalformed, err)
	}
	converter, err := arrowbatch.New(schema)
	if err != nil {
		return err
	}
	if err := verifyNested(in); err != nil {
		return err
	}
	records, err := reader.GetRecordReader(ctx, nil, nil)
	if err != nil {
		return fmt.Errorf("%w: %w", ingest.ErrMalformed, err)
	}
	defer records.Release()
	total := in.NumRows()
	bytes, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("size: %w", err)
	}
	c := cutter{size: size, converter: converter, yield: func(b series.Batch, rows int64) bool {
		row = rows
		inYield = true
		defer func() { inYield = false }()
		return yield(&part{samples: b, end: int64(float64(bytes) * float64(rows) / float64(max(total, 1)))})
	}}
	for {
		rec, err := records.Read()
		if errors.Is(err, io.EOF) {
			return c.finish(total)
		}
		if err != nil {
			return fmt.Errorf("after row %d: %w: %w", c.done, ingest.ErrMalformed, err)
		}
		more, err := c.add(rec)
		if err != nil || !more {
			return err
		}
	}
}

// verifyNested decodes the columns of the map once, in this goroutine: arrow-go
// reads nested columns in goroutines of its own, where a panic over damage
// would end the process.
func verifyNested(in *file.Reader) error {
	const step = 1024
	values := make([]parquet.ByteArray, step)
	def, rep := make([]int16, step), make([]int16, step)
	for g := range in.NumRowGroups() {
		group := in.RowGroup(g)
		for i := range in.MetaData().Schema.NumColumns() {
			if len(in.MetaData().Schema.Column(i).ColumnPath()) == 1 {
				continue
			}
			column, err := group.Column(i)
			if err != nil {
				return fmt.Errorf("row group %d: %w: %w", g, ingest.ErrMalformed, err)
			}
			texts, ok := column.(*file.ByteArrayColumnChunkReader)
			if !ok {
				return fmt.Errorf("row group %d: %w: column %d is no text", g, ingest.ErrMalformed, i)
			}
			for texts.HasNext() {
				n, _, err := texts.ReadBatch(step, values, def, rep)
				if err != nil {
					return fmt.Errorf("row group %d: %w: %w", g, ingest.ErrMalformed, err)
				}
				if n == 0 {
					break
				}
			}
			if err := texts.Err(); err != nil {
				return fmt.Errorf("row group %d: %w: %w", g, ingest.ErrMalformed, err)
			}
		}
	}
	return nil
}

// cutter makes parts of equal size from record batches of any.
type cutter struct {
	size      int64
	converter *arrowbatch.Converter
	yield     func(b series.Batch, rows int64) bool
	batch     series.Batch // of the part that is being collected
	have      int64        // rows in it
	done      int64        // rows of the file before it
}

// add takes a record batch; more says whether to go on.
func (c *cutter) add(rec arrow.RecordBatch) (more bool, err error) {
	for at := int64(0); at < rec.NumRows(); {
		n := min(c.size-c.have, rec.NumRows()-at)
		piece := rec.NewSlice(at, at+n)
		b, err := c.converter.Batch(piece)
		piece.Release()
		if err != nil {
			return false, fmt.Errorf("rows %d and on, counted from 0: %w", c.done+c.have, err)
		}
		if n < c.size {
			// The converter uses its memory anew.
			b = slices.Clone(b)
			for i := range b {
				b[i].Samples = slices.Clone(b[i].Samples)
			}
		}
		c.batch = append(c.batch, b...)
		c.have += n
		at += n
		if c.have == c.size {
			if !c.flush() {
				return false, nil
			}
		}
	}
	return true, nil
}

func (c *cutter) flush() bool {
	b := c.batch
	c.done += c.have
	c.batch, c.have = nil, 0
	return c.yield(b, c.done)
}

// finish yields the last part, if the file held what it said.
func (c *cutter) finish(total int64) error {
	if c.done+c.have != total {
		return fmt.Errorf("after row %d: %w: the file says it has %d rows", c.done+c.have, ingest.ErrMalformed, total)
	}
	if c.have > 0 {
		c.flush()
	}
	return nil
}
