package flightsql

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/flight"

	"cardinalsin/ingest"
)

// readArguments reads the rows of a stream of parameters.
func readArguments(r flight.MessageReader, names []string, maxRuns int) (rows [][]argument, err error) {
	// What the buffers hold is the client's; arrow-go panics on offsets that
	// lead out of them.
	defer func() {
		if p := recover(); p != nil {
			rows, err = nil, fmt.Errorf("%w: parameters: %v", errBadRequest, p)
		}
	}()
	for {
		rec, err := r.Read()
		if errors.Is(err, io.EOF) {
			return rows, nil
		}
		if errors.Is(err, errBadRequest) {
			return nil, err
		}
		if err != nil {
			return nil, fmt.Errorf("%w: parameters: %w", errBadRequest, err)
		}
		columns, err := columnsFor(rec, names)
		if err != nil {
			return nil, err
		}
		if int64(len(rows))+rec.NumRows() > int64(maxRuns) {
			return nil, fmt.Errorf("%w: more than %d rows of parameters", errBadRequest, maxRuns)
		}
		for i := range int(rec.NumRows()) {
			row := make([]argument, len(columns))
			for k, c := range columns {
				if row[k].value, err = valueOf(c, i); err != nil {
					return nil, fmt.Errorf("%w: parameter %s: %w", errBadRequest, names[k], err)
				}
			}
			rows = append(rows, row)
		}
	}
}

// columnsFor finds the column of each parameter: by name, if the columns have
// the names of the parameters, or else by place.
func columnsFor(rec arrow.RecordBatch, names []string) ([]arrow.Array, error) {
	if int(rec.NumCols()) != len(names) {
		return nil, fmt.Errorf("%w: %d columns for %d parameters", errBadRequest, rec.NumCols(), len(names))
	}
	byName := make([]arrow.Array, len(names))
	for k := range names {
		if i := slices.Index(names, rec.ColumnName(k)); i >= 0 {
			byName[i] = rec.Column(k)
		}
	}
	if slices.Contains(byName, nil) {
		return rec.Columns(), nil
	}
	return byName, nil
}

// errNoValue: a type that no parameter can have.
var errNoValue = errors.New("no parameter can have this type")

// valueOf is one value of a column, of the types of argument. Dates, times and
// decimals are texts, which the engine converts to what it needs.
func valueOf(a arrow.Array, i int) (any, error) {
	if a.IsNull(i) {
		return nil, nil
	}
	switch a := a.(type) {
	case *array.Boolean:
		return a.Value(i), nil
	case *array.Int8:
		return int64(a.Value(i)), nil
	case *array.Int16:
		return int64(a.Value(i)), nil
	case *array.Int32:
		return int64(a.Value(i)), nil
	case *array.Int64:
		return a.Value(i), nil
	case *array.Uint8:
		return uint64(a.Value(i)), nil
	case *array.Uint16:
		return uint64(a.Value(i)), nil
	case *array.Uint32:
		return uint64(a.Value(i)), nil
	case *array.Uint64:
		return a.Value(i), nil
	case *array.Float16:
		return float64(a.Value(i).Float32()), nil
	case *array.Float32:
		return float64(a.Value(i)), nil
	case *array.Float64:
		return a.Value(i), nil
	case *array.String:
		return textOf(a.Value(i))
	case *array.LargeString:
		return textOf(a.Value(i))
	case *array.StringView:
		return textOf(a.Value(i))
	case *array.Binary:
		return slices.Clone(a.Value(i)), nil
	case *array.LargeBinary:
		return slices.Clone(a.Value(i)), nil
	case *array.BinaryView:
		return slices.Clone(a.Value(i)), nil
	case *array.FixedSizeBinary:
		return slices.Clone(a.Value(i)), nil
	case *array.Timestamp:
		return a.Value(i).ToTime(a.DataType().(*arrow.TimestampType).Unit), nil
	case *array.Date32:
		return a.Value(i).ToTime().Format(time.DateOnly), nil
	case *array.Date64:
		return a.Value(i).ToTime().Format(time.DateOnly), nil
	case *array.Decimal128, *array.Decimal256:
		return a.ValueStr(i), nil
	case *array.Dictionary:
		return valueOf(a.Dictionary(), a.GetValueIndex(i))
	case array.ExtensionArray:
		return valueOf(a.Storage(), i)
	}
	return nil, fmt.Errorf("%w: %s", errNoValue, a.DataType())
}

// textOf checks a text, and gives it memory of its own.
func textOf(s string) (any, error) {
	if !utf8.ValidString(s) {
		return nil, fmt.Errorf("%w: text that is not UTF-8", ingest.ErrMalformed)
	}
	return string([]byte(s)), nil
}
