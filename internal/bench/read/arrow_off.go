//go:build !duckdb_arrow

package main

import duckdb "github.com/duckdb/duckdb-go-bindings"

// arrowRows says what becomes of DuckDB's rows.
const arrowRows = "thrown away (built without the tag duckdb_arrow, so to DuckDB's advantage)"

// toArrow throws chunks away.
type toArrow struct{}

func newToArrow(duckdb.Connection, *duckdb.Result) (*toArrow, error) { return &toArrow{}, nil }
func (*toArrow) convert(duckdb.DataChunk) error                      { return nil }
func (*toArrow) close()                                              {}
