// Package chunk is one data file of the table: Parquet encoding, statistics,
// tags and selective decoding.
//
// It stands on layer 2: writer and compactor encode, reader and compactor
// decode, planner decides by the bounds that are stated here. It does I/O
// only through [Source], never writes or deletes an object, and knows nothing
// of the log beyond the action types.
//
// INVARIANT: rows lie in the order of [series.Compare], then (Time, Nanos),
// each (series, Time, Nanos) once; and what is read equals, bit for bit, what
// was written. A byte that changed in storage is an error that wraps
// ErrCorrupt and names the file. It must never give a partial answer.
//
// # Format
//
// A file is Parquet that any reader of the format takes (data page version 1,
// zstd), laid down by this package. Columns, in this order; those marked † are
// left out of files in which they hold nothing:
//
//	column                Parquet type              encoding
//	metric_name           required string           dictionary
//	series_id             required int64            dictionary, or delta where most series have one row
//	one a label †         optional string           dictionary
//	labels_overflow †     optional map              dictionary
//	timestamp             required timestamp µs UTC  delta
//	nanos †               optional int32            dictionary
//	start_time_unix_nano† optional int64            delta
//	value                 double, optional if there  dictionary where values repeat much;
//	                      are histograms            else plain, or byte-stream-split by option
//	histogram †           optional binary           plain
//
// date and shard are partition columns and not in the file. What identifies a
// series comes first, so that matchers are evaluated before samples are read.
// A row group has at most 131,072 rows; a page has 16,384, of value codes
// 65,536, of other codes as many as give it some bytes. Value codes have one or
// two whole bytes, since zstd finds in bytes what it cannot find in bits. There
// is no page index: row groups are small, and rows sorted.
//
// The Parquet key "cardinal.chunk" holds, as JSON:
//
//	format    2; 1 has neither start times nor dictionaries of values
//	labels    object: column → exact label name
//	overflow  array: the labels that the overflow map may hold, sorted
//	sums      base64 of one xxhash64 (little endian) a column chunk, by row
//	          group, then column, over its bytes
//
// Parquet's own page checksums are optional and most readers ignore them, so
// integrity rests on these sums and on the seal, 24 bytes before the footer
// that no Parquet reader looks at:
//
//	bytes  field
//	8      "CARDSEAL"
//	8      xxhash64 of everything before the seal, little endian
//	8      xxhash64 of everything after the seal, little endian
//
// A ranged read checks the seal over the footer and a sum over each column
// chunk; [Verify] checks the whole file.
package chunk

import (
	"errors"

	"cardinalsin/internal/merge"
)

// Series is one series with its samples, as it goes into a file and comes out
// of one.
type Series = merge.Series

// Conditions a caller branches on.
var (
	// ErrCorrupt: the bytes are not what an Encoder wrote.
	ErrCorrupt = errors.New("corrupt chunk")
	// ErrUnsupported: the file was written by a newer version of this
	// package, or is whole Parquet of another origin.
	ErrUnsupported = errors.New("unsupported chunk")
	// ErrSchema: the table's schema breaks the rules of contract 5.
	ErrSchema = errors.New("schema breaks the table's rules")
	// ErrInvalidInput: series or samples that no file may hold: out of order,
	// twice, of several days, or labels that are not UTF-8 text.
	ErrInvalidInput = errors.New("invalid chunk input")
)

const (
	infoKey       = "cardinal.chunk"
	formatVersion = 2
	createdBy     = "cardinal version 1.0.0"
)

// info is the JSON under infoKey.
type info struct {
	Format int               `json:"format"`
	Labels map[string]string `json:"labels"`
	// Overflow lists the labels that the overflow map may hold, sorted.
	Overflow []string `json:"overflow,omitempty"`
	Sums     []byte   `json:"sums"`
}
