package sqlengine

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/apache/arrow-go/v18/arrow"
	duckdb "github.com/duckdb/duckdb-go-bindings"
)

// Column is one column of a result.
type Column struct {
	Name string
	Type string // in DuckDB's words, as "TIMESTAMP WITH TIME ZONE"
}

// Rows is the result of a query. It is used by one goroutine at a time and
// must be closed: it keeps files from being vacuumed and memory from other
// queries.
type Rows struct {
	query     *query
	cursor    *cursor
	converter *converter
	rows      int64
	bytes     int64
	err       error // what every further Next returns
	closed    bool
}

// Columns lists the columns.
func (r *Rows) Columns() []Column {
	out := make([]Column, len(r.converter.types))
	for i, t := range r.converter.types {
		out[i] = Column{Name: r.converter.schema.Field(i).Name, Type: t.name}
	}
	return out
}

// Schema is that of the records.
func (r *Rows) Schema() *arrow.Schema { return r.converter.schema }

// Tables says what the query reads.
func (r *Rows) Tables() []TableScan { return r.query.scans() }

// Next returns the next rows, at least one, as a record that the caller
// releases, after which nothing of it may be read: its memory is used again;
// after the last, io.EOF. An error is final, and what came before
// is then not the whole result: ErrTimeout, ErrTooLarge, ErrExecution,
// lease.ErrPinLost, the error of ctx.
func (r *Rows) Next(ctx context.Context) (arrow.RecordBatch, error) {
	if r.err != nil {
		return nil, r.err
	}
	record, err := r.next(ctx)
	if err != nil {
		r.err = err
		if !errors.Is(err, io.EOF) {
			r.err = fmt.Errorf("query: %w", err)
		}
		return nil, r.err
	}
	return record, nil
}

func (r *Rows) next(ctx context.Context) (arrow.RecordBatch, error) {
	ctx, cancel := context.WithDeadline(ctx, r.query.deadline)
	defer cancel()
	for {
		chunk, err := r.cursor.fetch(ctx)
		// Whatever was read is worth nothing if the files could have gone.
		for _, v := range r.query.views {
			if lost := v.Check(); lost != nil && err == nil {
				err = lost
			}
		}
		if err != nil {
			duckdb.DestroyDataChunk(&chunk)
			r.cursor.close()
			return nil, r.query.typed(ctx, r.query.cause(ctx, err))
		}
		if chunk.Ptr == nil {
			r.query.finished = true
			return nil, io.EOF
		}
		n := int64(duckdb.DataChunkGetSize(chunk))
		if n == 0 {
			duckdb.DestroyDataChunk(&chunk)
			continue
		}
		record, err := r.converter.record(chunk)
		duckdb.DestroyDataChunk(&chunk)
		if err != nil {
			return nil, err
		}
		r.rows += n
		r.bytes += recordBytes(record)
		limits := r.query.opts
		switch {
		case limits.MaxRows > 0 && r.rows > limits.MaxRows:
			err = fmt.Errorf("%w: more than %d rows", ErrTooLarge, limits.MaxRows)
		case limits.MaxBytes > 0 && r.bytes > limits.MaxBytes:
			err = fmt.Errorf("%w: more than %d bytes", ErrTooLarge, limits.MaxBytes)
		}
		if err != nil {
			record.Release()
			return nil, err
		}
		return record, nil
	}
}

// Close ends the query, finished or not. It is idempotent.
func (r *Rows) Close() {
	if !r.closed {
		r.closed = true
		if r.err == nil {
			r.err = errors.New("rows are closed")
		}
		r.cursor.close()
		r.query.close()
	}
}

// recordBytes is the memory of a record.
func recordBytes(r arrow.RecordBatch) int64 {
	var n int64
	for _, c := range r.Columns() {
		n += arrayBytes(c.Data())
	}
	return n
}

func arrayBytes(d arrow.ArrayData) int64 {
	var n int64
	for _, b := range d.Buffers() {
		if b != nil {
			n += int64(b.Len())
		}
	}
	for _, c := range d.Children() {
		n += arrayBytes(c)
	}
	return n
}
