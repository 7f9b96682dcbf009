//go:build duckdb_arrow

package main

import (
	"fmt"

	"github.com/apache/arrow-go/v18/arrow"
	duckdb "github.com/duckdb/duckdb-go-bindings"
)

// arrowRows says what becomes of DuckDB's rows.
const arrowRows = "as Arrow, by its own conversion"

// toArrow hands DuckDB's chunks over as Arrow, as its Go driver does.
type toArrow struct {
	options duckdb.ArrowOptions
	schema  *arrow.Schema
}

func newToArrow(conn duckdb.Connection, out *duckdb.Result) (*toArrow, error) {
	t := &toArrow{}
	duckdb.ConnectionGetArrowOptions(conn, &t.options)
	n := duckdb.ColumnCount(out)
	types, names := make([]duckdb.LogicalType, n), make([]string, n)
	for i := range n {
		types[i], names[i] = duckdb.ColumnLogicalType(out, i), duckdb.ColumnName(out, i)
	}
	schema, failed := duckdb.NewArrowSchema(t.options, types, names)
	for i := range types {
		duckdb.DestroyLogicalType(&types[i])
	}
	t.schema = schema
	return t, errorOf(failed)
}

func (t *toArrow) convert(chunk duckdb.DataChunk) error {
	batch, failed := duckdb.DataChunkToArrowArray(t.options, t.schema, chunk)
	if err := errorOf(failed); err != nil {
		return err
	}
	batch.Release()
	return nil
}

func (t *toArrow) close() { duckdb.DestroyArrowOptions(&t.options) }

func errorOf(e duckdb.ErrorData) error {
	defer duckdb.DestroyErrorData(&e)
	if duckdb.ErrorDataHasError(e) {
		return fmt.Errorf("%w: to Arrow: %s", errDuckDB, duckdb.ErrorDataMessage(e))
	}
	return nil
}
