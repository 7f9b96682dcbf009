package sqlengine

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/parquet"
	"github.com/apache/arrow-go/v18/parquet/compress"
	"github.com/apache/arrow-go/v18/parquet/pqarrow"
)

// Format is how a result is written.
type Format string

// The formats. JSON is an array with one object a line; NDJSON is the objects
// alone. Of columns with the same name the later ones get a number in JSON and
// Parquet.
const (
	FormatTable   Format = "table"
	FormatCSV     Format = "csv"
	FormatJSON    Format = "json"
	FormatNDJSON  Format = "ndjson"
	FormatArrow   Format = "arrow" // an IPC stream
	FormatParquet Format = "parquet"
)

// Formats lists them.
var Formats = []Format{FormatTable, FormatCSV, FormatJSON, FormatNDJSON, FormatArrow, FormatParquet}

// ErrUnknownFormat: there is no such format.
var ErrUnknownFormat = errors.New("unknown format")

// ParseFormat finds a format by its name.
func ParseFormat(name string) (Format, error) {
	if f := Format(name); slices.Contains(Formats, f) {
		return f, nil
	}
	return "", fmt.Errorf("%w %q", ErrUnknownFormat, name)
}

// ContentType is the media type.
func (f Format) ContentType() string {
	switch f {
	case FormatCSV:
		return "text/csv; charset=utf-8; header=present"
	case FormatJSON:
		return "application/json"
	case FormatNDJSON:
		return "application/x-ndjson"
	case FormatArrow:
		return "application/vnd.apache.arrow.stream"
	case FormatParquet:
		return "application/vnd.apache.parquet"
	}
	return "text/plain; charset=utf-8"
}

// Write writes all rows to w as they come and returns their number. After an
// error, what was written is not the whole result, and no reader of JSON,
// Arrow or Parquet takes it for one. It does not close rows.
func (f Format) Write(ctx context.Context, w io.Writer, rows *Rows) (n int64, err error) {
	out, err := f.newEncoder(w, rows)
	if err != nil {
		return 0, err
	}
	for {
		record, err := rows.Next(ctx)
		if errors.Is(err, io.EOF) {
			return n, out.end()
		}
		if err != nil {
			out.abandon()
			return n, err
		}
		n += record.NumRows()
		err = out.write(record)
		record.Release()
		if err != nil {
			out.abandon()
			return n, fmt.Errorf("write %s: %w", f, err)
		}
	}
}

// encoder writes records in one format.
type encoder interface {
	write(arrow.RecordBatch) error
	// end writes what belongs at the end.
	end() error
	// abandon frees the encoder and writes no end.
	abandon()
}

func (f Format) newEncoder(w io.Writer, rows *Rows) (encoder, error) {
	schema := rows.Schema()
	switch f {
	case FormatTable:
		return newTableEncoder(w, schema), nil
	case FormatCSV:
		return newCSVEncoder(w, schema)
	case FormatJSON, FormatNDJSON:
		return newJSONEncoder(w, schema, f == FormatJSON), nil
	case FormatArrow:
		return &arrowEncoder{ipc.NewWriter(w, ipc.WithSchema(schema), ipc.WithZstd())}, nil
	case FormatParquet:
		return newParquetEncoder(w, schema)
	}
	return nil, fmt.Errorf("%w %q", ErrUnknownFormat, f)
}

// uniqueNames are the column names, with _1, _2 … where one occurs again.
func uniqueNames(schema *arrow.Schema) []string {
	names := make([]string, schema.NumFields())
	taken := map[string]bool{}
	for i := range names {
		name := schema.Field(i).Name
		for n := 1; taken[name]; n++ {
			name = schema.Field(i).Name + "_" + strconv.Itoa(n)
		}
		names[i], taken[name] = name, true
	}
	return names
}

type csvEncoder struct {
	w    io.Writer
	line []byte
}

func newCSVEncoder(w io.Writer, schema *arrow.Schema) (*csvEncoder, error) {
	e := &csvEncoder{w: w}
	for i := range schema.NumFields() {
		if i > 0 {
			e.line = append(e.line, ',')
		}
		e.line = appendCSVText(e.line, schema.Field(i).Name)
	}
	return e, e.flush()
}

func (e *csvEncoder) flush() error {
	e.line = append(e.line, '\n')
	_, err := e.w.Write(e.line)
	e.line = e.line[:0]
	return err
}

func (e *csvEncoder) write(r arrow.RecordBatch) error {
	buffer := bufio.NewWriter(e.w)
	for i := range int(r.NumRows()) {
		e.line = e.line[:0]
		for k, c := range r.Columns() {
			if k > 0 {
				e.line = append(e.line, ',')
			}
			e.line = appendCSV(e.line, c, i)
		}
		e.line = append(e.line, '\n')
		if _, err := buffer.Write(e.line); err != nil {
			return err
		}
	}
	e.line = e.line[:0]
	return buffer.Flush()
}

func (e *csvEncoder) end() error { return nil }
func (e *csvEncoder) abandon()   {}

type jsonEncoder struct {
	w      io.Writer
	keys   [][]byte // "name":
	array  bool
	opened bool
	line   []byte
}

func newJSONEncoder(w io.Writer, schema *arrow.Schema, array bool) *jsonEncoder {
	e := &jsonEncoder{w: w, array: array}
	for _, name := range uniqueNames(schema) {
		e.keys = append(e.keys, append(appendQuoted(nil, name), ':'))
	}
	return e
}

func (e *jsonEncoder) write(r arrow.RecordBatch) error {
	buffer := bufio.NewWriter(e.w)
	for i := range int(r.NumRows()) {
		e.line = e.line[:0]
		switch {
		case !e.array:
		case e.opened:
			e.line = append(e.line, ",\n"...)
		default:
			e.line = append(e.line, "[\n"...)
			e.opened = true
		}
		e.line = append(e.line, '{')
		for k, c := range r.Columns() {
			if k > 0 {
				e.line = append(e.line, ',')
			}
			e.line = appendJSON(append(e.line, e.keys[k]...), c, i)
		}
		e.line = append(e.line, '}')
		if !e.array {
			e.line = append(e.line, '\n')
		}
		if _, err := buffer.Write(e.line); err != nil {
			return err
		}
	}
	return buffer.Flush()
}

func (e *jsonEncoder) end() error {
	text := ""
	switch {
	case e.array && e.opened:
		text = "\n]\n"
	case e.array:
		text = "[]\n"
	}
	_, err := io.WriteString(e.w, text)
	return err
}

func (e *jsonEncoder) abandon() {}

// tableRows is how many rows the widths of a table's columns are taken from;
// later rows may stand out.
const tableRows = 1000

type tableEncoder struct {
	w      *bufio.Writer
	right  []bool // numbers
	widths []int
	first  [][]string // header and rows, until they are written
}

func newTableEncoder(w io.Writer, schema *arrow.Schema) *tableEncoder {
	e := &tableEncoder{w: bufio.NewWriter(w)}
	var header []string
	for i := range schema.NumFields() {
		f := schema.Field(i)
		header = append(header, oneLine(f.Name))
		e.right = append(e.right, arrow.IsPrimitive(f.Type.ID()) && !arrow.IsNested(f.Type.ID()) && isNumber(f.Type))
	}
	e.widths = make([]int, len(header))
	e.first = [][]string{header}
	return e
}

func isNumber(t arrow.DataType) bool {
	return arrow.IsInteger(t.ID()) || arrow.IsFloating(t.ID()) || arrow.IsDecimal(t.ID())
}

func (e *tableEncoder) write(r arrow.RecordBatch) error {
	for i := range int(r.NumRows()) {
		row := make([]string, 0, len(e.widths))
		for _, c := range r.Columns() {
			row = append(row, cellText(c, i))
		}
		if e.first == nil {
			e.row(row)
			continue
		}
		if e.first = append(e.first, row); len(e.first) > tableRows {
			e.flushFirst()
		}
	}
	return e.w.Flush()
}

func (e *tableEncoder) flushFirst() {
	for _, row := range e.first {
		for k, cell := range row {
			e.widths[k] = max(e.widths[k], width(cell))
		}
	}
	for i, row := range e.first {
		e.row(row)
		if i == 0 {
			line := make([]string, len(row))
			for k, n := range e.widths {
				line[k] = strings.Repeat("-", n)
			}
			e.row(line)
		}
	}
	e.first = nil
}

// row writes one line; errors stay in the buffer until it is flushed.
func (e *tableEncoder) row(cells []string) {
	var line strings.Builder
	for k, cell := range cells {
		if k > 0 {
			line.WriteString("  ")
		}
		pad := strings.Repeat(" ", max(e.widths[k]-width(cell), 0))
		if e.right[k] {
			line.WriteString(pad + cell)
		} else {
			line.WriteString(cell + pad)
		}
	}
	_, _ = e.w.WriteString(strings.TrimRight(line.String(), " ") + "\n")
}

func (e *tableEncoder) end() error {
	if e.first != nil {
		e.flushFirst()
	}
	return e.w.Flush()
}

func (e *tableEncoder) abandon() {}

type arrowEncoder struct{ w *ipc.Writer }

func (e *arrowEncoder) write(r arrow.RecordBatch) error { return e.w.Write(r) }

// end also writes the schema where there was no row.
func (e *arrowEncoder) end() error { return e.w.Close() }
func (e *arrowEncoder) abandon()   {}

type parquetEncoder struct {
	w      *pqarrow.FileWriter
	schema *arrow.Schema
}

func newParquetEncoder(w io.Writer, schema *arrow.Schema) (*parquetEncoder, error) {
	names := uniqueNames(schema)
	fields := schema.Fields()
	for i := range fields {
		fields[i].Name = names[i]
	}
	unique := arrow.NewSchema(fields, nil)
	pw, err := pqarrow.NewFileWriter(unique, writerOnly{w},
		parquet.NewWriterProperties(parquet.WithCompression(compress.Codecs.Zstd)),
		pqarrow.NewArrowWriterProperties(pqarrow.WithStoreSchema()))
	if err != nil {
		return nil, fmt.Errorf("%w: write parquet: %w", ErrExecution, err)
	}
	return &parquetEncoder{pw, unique}, nil
}

// writerOnly hides that w can be closed, which a Parquet writer would do.
type writerOnly struct{ io.Writer }

func (e *parquetEncoder) write(r arrow.RecordBatch) error {
	named := array.NewRecordBatch(e.schema, r.Columns(), r.NumRows())
	defer named.Release()
	return e.w.WriteBuffered(named)
}

func (e *parquetEncoder) end() error { return e.w.Close() }
func (e *parquetEncoder) abandon()   {}
