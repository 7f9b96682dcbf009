// Package arrowbatch turns Arrow record batches in the table's schema
// (contract 5) into series with samples: what Flight clients send, and what a
// Parquet file holds.
//
// It stands on layer 7, beside the wiring and below whoever reads Arrow. It
// does no I/O and trusts nothing in a batch but what Go checks by itself:
// lengths and offsets that contradict each other are ErrMalformed.
//
// INVARIANT: a batch is converted whole, bit for bit, or refused with the row
// that is at fault. It must never guess: a column that it does not know by
// name and type is refused.
//
// # Columns
//
//	timestamp             timestamp of any unit, read as UTC; required
//	metric_name           text; required
//	value                 double or float; null where there is a histogram
//	histogram             binary, Prometheus' protobuf; null where there is a value
//	nanos                 integer, 0–999; beside timestamps of µs and coarser
//	start_time_unix_nano  long; null and 0 are unknown
//	labels_overflow       map<text, text>, labels that have no column
//	series_id             long; if given, it must be the label set's hash
//	date, shard           where the table had the row; not looked at
//	any other             text: a label. Its name is the field's metadata
//	                      cardinal.label or else follows from the column's name
//
// Text is string, large string or string view, and a dictionary of those. A
// null and an empty text are an absent label.
package arrowbatch

import (
	"fmt"
	"slices"
	"strings"

	"github.com/apache/arrow-go/v18/arrow"

	"cardinalsin/chunk"
	"cardinalsin/ingest"
	"cardinalsin/series"
)

const (
	// MaxRows bounds one record batch.
	MaxRows = 1 << 20
	// maxCells bounds rows times text columns of one batch, each of which
	// takes four bytes while it is converted.
	maxCells = 32 << 20
	// maxTextBytes bounds one label's name or value; the writer refuses label
	// sets of that size.
	maxTextBytes = 1 << 20
)

// Converter reads record batches of one schema. It keeps buffers from one
// batch to the next, so it is for one goroutine.
type Converter struct {
	schema *arrow.Schema
	time, nanos, value, histogram,
	start, id, overflow int // places of fixed columns, -1 where there is none
	texts []*textColumn // ascending by label, __name__ included
	scratch
}

// New reads a schema. Its error wraps ingest.ErrMalformed and names the column
// that is missing, has a wrong type or carries no label.
func New(schema *arrow.Schema) (*Converter, error) {
	c := &Converter{schema: schema}
	fixed := map[string]*int{
		chunk.ColumnTimestamp: &c.time, chunk.ColumnNanos: &c.nanos, chunk.ColumnValue: &c.value,
		chunk.ColumnHistogram: &c.histogram, chunk.ColumnStart: &c.start, chunk.ColumnSeriesID: &c.id,
		chunk.ColumnOverflow: &c.overflow,
	}
	for _, place := range fixed {
		*place = -1
	}
	layout, err := chunk.LayoutOf(chunk.BaseSchema())
	if err != nil {
		return nil, err
	}
	seen := map[string]string{} // label → column
	for i, f := range schema.Fields() {
		place := fixed[f.Name]
		switch {
		case f.Name == chunk.ColumnDate || f.Name == chunk.ColumnShard:
			continue
		case place != nil:
			if *place >= 0 {
				return nil, fmt.Errorf("%w: column %q twice", ingest.ErrMalformed, f.Name)
			}
			if want := types[f.Name]; !want.ok(f.Type) {
				return nil, fmt.Errorf("%w: column %q has type %.200s, expected %s", ingest.ErrMalformed, f.Name, f.Type, want.name)
			}
			*place = i
			continue
		}
		label, err := labelOf(layout, f)
		if err != nil {
			return nil, err
		}
		if !isText(f.Type) {
			return nil, fmt.Errorf("%w: column %.200q has type %.200s; a label is text", ingest.ErrMalformed, f.Name, f.Type)
		}
		if other, dup := seen[label]; dup {
			return nil, fmt.Errorf("%w: columns %.200q and %.200q carry the same label", ingest.ErrMalformed, other, f.Name)
		}
		seen[label] = f.Name
		c.texts = append(c.texts, &textColumn{place: i, column: f.Name, label: label})
	}
	switch {
	case c.time < 0:
		return nil, fmt.Errorf("%w: no column %q", ingest.ErrMalformed, chunk.ColumnTimestamp)
	case seen[series.MetricName] == "":
		return nil, fmt.Errorf("%w: no column %q", ingest.ErrMalformed, chunk.ColumnMetricName)
	case c.value < 0 && c.histogram < 0:
		return nil, fmt.Errorf("%w: no column %q and no column %q", ingest.ErrMalformed, chunk.ColumnValue, chunk.ColumnHistogram)
	}
	slices.SortFunc(c.texts, func(a, b *textColumn) int { return strings.Compare(a.label, b.label) })
	return c, nil
}

// LabelOf is the label that a column of the table carries, by its name alone:
// contract 5 read backwards. Its error wraps ingest.ErrMalformed where no label
// has that column.
func LabelOf(column string) (string, error) {
	layout, err := chunk.LayoutOf(chunk.BaseSchema())
	if err != nil {
		return "", err
	}
	return labelOf(layout, arrow.Field{Name: column})
}

func labelOf(base *chunk.Layout, f arrow.Field) (string, error) {
	if f.Name == chunk.ColumnMetricName {
		return series.MetricName, nil
	}
	if label, ok := f.Metadata.GetValue(chunk.LabelMetadata); ok {
		if label == "" || label == series.MetricName || len(label) > maxTextBytes {
			return "", fmt.Errorf("%w: column %.200q: %s is %.200q", ingest.ErrMalformed, f.Name, chunk.LabelMetadata, label)
		}
		return label, nil
	}
	if f.Name == "" || len(f.Name) > maxTextBytes {
		return "", fmt.Errorf("%w: a column's name has %d bytes", ingest.ErrMalformed, len(f.Name))
	}
	if f.Name == series.MetricName {
		return "", fmt.Errorf("%w: column %q: the metric's name is in column %q", ingest.ErrMalformed, f.Name, chunk.ColumnMetricName)
	}
	// A label with a column of its own name, or one underscore less.
	for _, label := range []string{f.Name, strings.TrimPrefix(f.Name, "_")} {
		fields := base.Grow([]string{label})
		if len(fields) == 1 && fields[0].Name == f.Name {
			return label, nil
		}
	}
	if strings.HasPrefix(f.Name, "_") {
		return "", fmt.Errorf("%w: column %.200q: the column of label %.200q is %.200q", ingest.ErrMalformed, f.Name, f.Name, "_"+f.Name)
	}
	return f.Name, nil // a name that no Parquet column can have, but Arrow's can
}

// columnType is what a fixed column may have.
type columnType struct {
	name string
	ok   func(arrow.DataType) bool
}

var types = map[string]columnType{
	chunk.ColumnTimestamp: {"timestamp", func(t arrow.DataType) bool { return t.ID() == arrow.TIMESTAMP }},
	chunk.ColumnNanos:     {"an integer", func(t arrow.DataType) bool { return arrow.IsInteger(t.ID()) }},
	chunk.ColumnValue: {"double or float", func(t arrow.DataType) bool {
		return t.ID() == arrow.FLOAT64 || t.ID() == arrow.FLOAT32
	}},
	chunk.ColumnHistogram: {"binary", func(t arrow.DataType) bool {
		return t.ID() == arrow.BINARY || t.ID() == arrow.LARGE_BINARY || t.ID() == arrow.BINARY_VIEW
	}},
	chunk.ColumnStart:    {"long (int64)", func(t arrow.DataType) bool { return t.ID() == arrow.INT64 }},
	chunk.ColumnSeriesID: {"long (int64)", func(t arrow.DataType) bool { return t.ID() == arrow.INT64 }},
	chunk.ColumnOverflow: {"map<string, string>", func(t arrow.DataType) bool {
		m, ok := t.(*arrow.MapType)
		return ok && isText(m.KeyType()) && isText(m.ItemType())
	}},
}

func isText(t arrow.DataType) bool {
	if d, ok := t.(*arrow.DictionaryType); ok {
		t = d.ValueType
	}
	return t.ID() == arrow.STRING || t.ID() == arrow.LARGE_STRING || t.ID() == arrow.STRING_VIEW
}
