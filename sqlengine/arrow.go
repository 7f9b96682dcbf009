package sqlengine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"strconv"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/decimal128"
	"github.com/apache/arrow-go/v18/arrow/memory"
	duckdb "github.com/duckdb/duckdb-go-bindings"
)

// columnType converts one type of DuckDB to Arrow. Its name is DuckDB's.
type columnType struct {
	name  string
	arrow arrow.DataType
	// put appends row i of v to b.
	put func(b array.Builder, v vector, i int) error
	// whole copies the first n rows of v at once; it is nil where the memory
	// is not alike.
	whole func(t arrow.DataType, v vector, n int) (arrow.Array, error)
}

// errNoArrow: Arrow has no equal; the statement has to cast the column.
var errNoArrow = errors.New("cast the column to VARCHAR")

// maxNesting bounds the recursion over nested types.
const maxNesting = 64

// typeOf builds the converter of a logical type. It returns an error that
// wraps ErrExecution for types that Arrow cannot carry.
func typeOf(lt duckdb.LogicalType, depth int) (columnType, error) {
	if depth > maxNesting {
		return columnType{}, fmt.Errorf("%w: type is nested too deeply", ErrExecution)
	}
	id := duckdb.GetTypeId(lt)
	if p, ok := primitives[id]; ok {
		if alias := duckdb.LogicalTypeGetAlias(lt); alias != "" {
			p.name = alias // JSON
		}
		return p, nil
	}
	switch id {
	case duckdb.TypeDecimal:
		return decimalType(lt), nil
	case duckdb.TypeEnum:
		return enumType(lt), nil
	case duckdb.TypeList:
		return listType(duckdb.ListTypeChildType(lt), depth)
	case duckdb.TypeArray:
		return arrayType(duckdb.ArrayTypeChildType(lt), int(duckdb.ArrayTypeArraySize(lt)), depth)
	case duckdb.TypeStruct:
		return structType(lt, depth)
	case duckdb.TypeMap:
		return mapType(lt, depth)
	}
	name, ok := typeNames[id]
	if !ok {
		name = fmt.Sprintf("type %d", id)
	}
	return columnType{}, fmt.Errorf("%w: a column of type %s has no equal outside DuckDB: %w", ErrExecution, name, errNoArrow)
}

var typeNames = map[duckdb.Type]string{
	duckdb.TypeUnion: "UNION", duckdb.TypeBigNum: "BIGNUM", duckdb.TypeVariant: "VARIANT", duckdb.TypeGeometry: "GEOMETRY",
}

// fixed converts a type whose memory is the same on both sides.
func fixed[T any, B interface {
	Append(T)
}](name string, t arrow.DataType) columnType {
	return columnType{
		name: name, arrow: t,
		put: func(b array.Builder, v vector, i int) error {
			any(b).(B).Append(*at[T](v, i))
			return nil
		},
		whole: wholeFixed[T],
	}
}

// asText converts a type to text, since no Arrow type holds it in a form that
// readers agree on.
func asText[T any](name string, format func(T) string) columnType {
	return columnType{name: name, arrow: arrow.BinaryTypes.String, put: func(b array.Builder, v vector, i int) error {
		b.(*array.StringBuilder).Append(format(*at[T](v, i)))
		return nil
	}}
}

func microseconds(zone string) *arrow.TimestampType {
	return &arrow.TimestampType{Unit: arrow.Microsecond, TimeZone: zone}
}

var primitives = map[duckdb.Type]columnType{
	duckdb.TypeBoolean: {name: "BOOLEAN", arrow: arrow.FixedWidthTypes.Boolean, put: func(b array.Builder, v vector, i int) error {
		b.(*array.BooleanBuilder).Append(*at[bool](v, i))
		return nil
	}},
	duckdb.TypeTinyInt:     fixed[int8, *array.Int8Builder]("TINYINT", arrow.PrimitiveTypes.Int8),
	duckdb.TypeSmallInt:    fixed[int16, *array.Int16Builder]("SMALLINT", arrow.PrimitiveTypes.Int16),
	duckdb.TypeInteger:     fixed[int32, *array.Int32Builder]("INTEGER", arrow.PrimitiveTypes.Int32),
	duckdb.TypeBigInt:      fixed[int64, *array.Int64Builder]("BIGINT", arrow.PrimitiveTypes.Int64),
	duckdb.TypeUTinyInt:    fixed[uint8, *array.Uint8Builder]("UTINYINT", arrow.PrimitiveTypes.Uint8),
	duckdb.TypeUSmallInt:   fixed[uint16, *array.Uint16Builder]("USMALLINT", arrow.PrimitiveTypes.Uint16),
	duckdb.TypeUInteger:    fixed[uint32, *array.Uint32Builder]("UINTEGER", arrow.PrimitiveTypes.Uint32),
	duckdb.TypeUBigInt:     fixed[uint64, *array.Uint64Builder]("UBIGINT", arrow.PrimitiveTypes.Uint64),
	duckdb.TypeFloat:       fixed[float32, *array.Float32Builder]("FLOAT", arrow.PrimitiveTypes.Float32),
	duckdb.TypeDouble:      fixed[float64, *array.Float64Builder]("DOUBLE", arrow.PrimitiveTypes.Float64),
	duckdb.TypeDate:        fixed[arrow.Date32, *array.Date32Builder]("DATE", arrow.FixedWidthTypes.Date32),
	duckdb.TypeTime:        fixed[arrow.Time64, *array.Time64Builder]("TIME", arrow.FixedWidthTypes.Time64us),
	duckdb.TypeTimeNS:      fixed[arrow.Time64, *array.Time64Builder]("TIME_NS", arrow.FixedWidthTypes.Time64ns),
	duckdb.TypeTimestamp:   fixed[arrow.Timestamp, *array.TimestampBuilder]("TIMESTAMP", microseconds("")),
	duckdb.TypeTimestampTZ: fixed[arrow.Timestamp, *array.TimestampBuilder]("TIMESTAMP WITH TIME ZONE", microseconds("UTC")),
	duckdb.TypeTimestampS:  fixed[arrow.Timestamp, *array.TimestampBuilder]("TIMESTAMP_S", &arrow.TimestampType{Unit: arrow.Second}),
	duckdb.TypeTimestampMS: fixed[arrow.Timestamp, *array.TimestampBuilder]("TIMESTAMP_MS", &arrow.TimestampType{Unit: arrow.Millisecond}),
	duckdb.TypeTimestampNS: fixed[arrow.Timestamp, *array.TimestampBuilder]("TIMESTAMP_NS", &arrow.TimestampType{Unit: arrow.Nanosecond}),
	duckdb.TypeVarchar: {name: "VARCHAR", arrow: arrow.BinaryTypes.String, whole: wholeTexts, put: func(b array.Builder, v vector, i int) error {
		b.(*array.StringBuilder).BinaryBuilder.Append(v.bytes(i))
		return nil
	}},
	duckdb.TypeBlob: {name: "BLOB", arrow: arrow.BinaryTypes.Binary, whole: wholeTexts, put: func(b array.Builder, v vector, i int) error {
		b.(*array.BinaryBuilder).Append(v.bytes(i))
		return nil
	}},
	duckdb.TypeInterval: {name: "INTERVAL", arrow: arrow.FixedWidthTypes.MonthDayNanoInterval, put: func(b array.Builder, v vector, i int) error {
		in := at[struct {
			months, days int32
			micros       int64
		}](v, i)
		nanos, ok := mul(in.micros, 1000)
		if !ok {
			return fmt.Errorf("%w: interval is too long: %w", ErrExecution, errNoArrow)
		}
		b.(*array.MonthDayNanoIntervalBuilder).Append(arrow.MonthDayNanoInterval{Months: in.months, Days: in.days, Nanoseconds: nanos})
		return nil
	}},
	duckdb.TypeHugeInt: {name: "HUGEINT", arrow: wideInt, put: func(b array.Builder, v vector, i int) error {
		n := at[int128](v, i)
		return putDecimal(b, decimal128.New(n.upper, n.lower))
	}},
	duckdb.TypeUHugeInt: {name: "UHUGEINT", arrow: wideInt, put: func(b array.Builder, v vector, i int) error {
		n := at[int128](v, i)
		if n.upper < 0 {
			return fmt.Errorf("%w: integer has more than 38 digits: %w", ErrExecution, errNoArrow)
		}
		return putDecimal(b, decimal128.New(n.upper, n.lower))
	}},
	duckdb.TypeUUID:    asText("UUID", formatUUID),
	duckdb.TypeTimeTZ:  asText("TIME WITH TIME ZONE", formatTimeTZ),
	duckdb.TypeBit:     {name: "BIT", arrow: arrow.BinaryTypes.String, put: putBits},
	duckdb.TypeSQLNull: {name: `"NULL"`, arrow: arrow.Null, put: func(b array.Builder, _ vector, _ int) error { b.AppendNull(); return nil }},
}

// wideInt carries the 128-bit integers, as DuckDB's own Arrow export does.
var wideInt = &arrow.Decimal128Type{Precision: 38}

type int128 struct {
	lower uint64
	upper int64
}

func putDecimal(b array.Builder, n decimal128.Num) error {
	if !n.FitsInPrecision(38) {
		return fmt.Errorf("%w: integer has more than 38 digits: %w", ErrExecution, errNoArrow)
	}
	b.(*array.Decimal128Builder).Append(n)
	return nil
}

// mul multiplies; ok is false where the product overflows.
func mul(a, b int64) (product int64, ok bool) {
	hi, lo := bits.Mul64(uint64(max(a, -a)), uint64(b))
	if a == math.MinInt64 || hi != 0 || lo > math.MaxInt64 {
		return 0, false
	}
	return a * b, true
}

// formatUUID undoes DuckDB's flip of the highest bit, which makes UUIDs sort.
func formatUUID(n int128) string {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], uint64(n.upper)^1<<63)
	binary.BigEndian.PutUint64(b[8:], n.lower)
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// formatTimeTZ reads DuckDB's packed form: 40 bits of microseconds, 24 bits of
// offset, stored as its distance from the greatest (dtime_tz_t).
func formatTimeTZ(packed uint64) string {
	const maxOffset = 16*60*60 - 1
	micros, offset := int64(packed>>24), maxOffset-int64(packed&0xffffff)
	sign := '+'
	if offset < 0 {
		sign, offset = '-', -offset
	}
	zone := fmt.Sprintf("%c%02d:%02d", sign, offset/3600, offset/60%60)
	if offset%60 != 0 {
		zone += fmt.Sprintf(":%02d", offset%60)
	}
	return formatClock(micros, 6) + zone
}

// putBits reads DuckDB's form of a bit string: a byte that counts the padding,
// then the bits, padded in front.
func putBits(b array.Builder, v vector, i int) error {
	raw := v.bytes(i)
	if len(raw) < 1 || int(raw[0]) > 7 {
		return fmt.Errorf("%w: malformed bit string", ErrExecution)
	}
	out := make([]byte, 0, len(raw)*8)
	for k, c := range raw[1:] {
		for bit := range 8 {
			if k == 0 && bit < int(raw[0]) {
				continue
			}
			out = append(out, '0'+c>>(7-bit)&1)
		}
	}
	b.(*array.StringBuilder).BinaryBuilder.Append(out)
	return nil
}

// decimalType reads the integer that DuckDB stores, whose size follows the
// width.
func decimalType(lt duckdb.LogicalType) columnType {
	width, scale := duckdb.DecimalWidth(lt), duckdb.DecimalScale(lt)
	c := columnType{name: fmt.Sprintf("DECIMAL(%d,%d)", width, scale), arrow: &arrow.Decimal128Type{Precision: int32(width), Scale: int32(scale)}}
	var get func(vector, int) decimal128.Num
	switch duckdb.DecimalInternalType(lt) {
	case duckdb.TypeSmallInt:
		get = func(v vector, i int) decimal128.Num { return decimal128.FromI64(int64(*at[int16](v, i))) }
	case duckdb.TypeInteger:
		get = func(v vector, i int) decimal128.Num { return decimal128.FromI64(int64(*at[int32](v, i))) }
	case duckdb.TypeBigInt:
		get = func(v vector, i int) decimal128.Num { return decimal128.FromI64(*at[int64](v, i)) }
	default:
		get = func(v vector, i int) decimal128.Num {
			n := at[int128](v, i)
			return decimal128.New(n.upper, n.lower)
		}
	}
	c.put = func(b array.Builder, v vector, i int) error {
		b.(*array.Decimal128Builder).Append(get(v, i))
		return nil
	}
	return c
}

func enumType(lt duckdb.LogicalType) columnType {
	values := make([]string, duckdb.EnumDictionarySize(lt))
	for i := range values {
		values[i] = duckdb.EnumDictionaryValue(lt, duckdb.IdxT(i))
	}
	internal := duckdb.EnumInternalType(lt)
	return columnType{name: "ENUM", arrow: arrow.BinaryTypes.String, put: func(b array.Builder, v vector, i int) error {
		var k uint32
		switch internal {
		case duckdb.TypeUTinyInt:
			k = uint32(*at[uint8](v, i))
		case duckdb.TypeUSmallInt:
			k = uint32(*at[uint16](v, i))
		default:
			k = *at[uint32](v, i)
		}
		b.(*array.StringBuilder).Append(values[k])
		return nil
	}}
}

// append adds row i, null or not.
func (c *columnType) append(b array.Builder, v vector, i int) error {
	if !v.valid(i) {
		b.AppendNull()
		return nil
	}
	return c.put(b, v, i)
}

func listType(childType duckdb.LogicalType, depth int) (columnType, error) {
	defer duckdb.DestroyLogicalType(&childType)
	child, err := typeOf(childType, depth+1)
	if err != nil {
		return columnType{}, err
	}
	return columnType{name: child.name + "[]", arrow: arrow.ListOf(child.arrow), put: func(b array.Builder, v vector, i int) error {
		lb := b.(*array.ListBuilder)
		lb.Append(true)
		in := vectorOf(duckdb.ListVectorGetChild(v.v))
		e := *at[entry](v, i)
		for k := range int(e.length) {
			if err := child.append(lb.ValueBuilder(), in, int(e.offset)+k); err != nil {
				return err
			}
		}
		return nil
	}}, nil
}

func arrayType(childType duckdb.LogicalType, size, depth int) (columnType, error) {
	defer duckdb.DestroyLogicalType(&childType)
	child, err := typeOf(childType, depth+1)
	if err != nil {
		return columnType{}, err
	}
	name := child.name + "[" + strconv.Itoa(size) + "]"
	return columnType{name: name, arrow: arrow.FixedSizeListOf(int32(size), child.arrow), put: func(b array.Builder, v vector, i int) error {
		lb := b.(*array.FixedSizeListBuilder)
		lb.Append(true)
		in := vectorOf(duckdb.ArrayVectorGetChild(v.v))
		for k := range size {
			if err := child.append(lb.ValueBuilder(), in, i*size+k); err != nil {
				return err
			}
		}
		return nil
	}}, nil
}

func structType(lt duckdb.LogicalType, depth int) (columnType, error) {
	n := int(duckdb.StructTypeChildCount(lt))
	children := make([]columnType, n)
	fields := make([]arrow.Field, n)
	name := "STRUCT("
	for k := range n {
		childType := duckdb.StructTypeChildType(lt, duckdb.IdxT(k))
		child, err := typeOf(childType, depth+1)
		duckdb.DestroyLogicalType(&childType)
		if err != nil {
			return columnType{}, err
		}
		children[k] = child
		fields[k] = arrow.Field{Name: duckdb.StructTypeChildName(lt, duckdb.IdxT(k)), Type: child.arrow, Nullable: true}
		if k > 0 {
			name += ", "
		}
		name += quoteName(fields[k].Name) + " " + child.name
	}
	return columnType{name: name + ")", arrow: arrow.StructOf(fields...), put: func(b array.Builder, v vector, i int) error {
		sb := b.(*array.StructBuilder)
		sb.Append(true)
		for k := range children {
			in := vectorOf(duckdb.StructVectorGetChild(v.v, duckdb.IdxT(k)))
			if err := children[k].append(sb.FieldBuilder(k), in, i); err != nil {
				return err
			}
		}
		return nil
	}}, nil
}

func mapType(lt duckdb.LogicalType, depth int) (columnType, error) {
	keyType, valueType := duckdb.MapTypeKeyType(lt), duckdb.MapTypeValueType(lt)
	defer duckdb.DestroyLogicalType(&keyType)
	defer duckdb.DestroyLogicalType(&valueType)
	key, err := typeOf(keyType, depth+1)
	if err != nil {
		return columnType{}, err
	}
	value, err := typeOf(valueType, depth+1)
	if err != nil {
		return columnType{}, err
	}
	name := "MAP(" + key.name + ", " + value.name + ")"
	return columnType{name: name, arrow: arrow.MapOf(key.arrow, value.arrow), put: func(b array.Builder, v vector, i int) error {
		mb := b.(*array.MapBuilder)
		mb.Append(true)
		child := duckdb.ListVectorGetChild(v.v)
		keys, values := vectorOf(duckdb.StructVectorGetChild(child, 0)), vectorOf(duckdb.StructVectorGetChild(child, 1))
		e := *at[entry](v, i)
		for k := range int(e.length) {
			if err := key.append(mb.KeyBuilder(), keys, int(e.offset)+k); err != nil {
				return err
			}
			if err := value.append(mb.ItemBuilder(), values, int(e.offset)+k); err != nil {
				return err
			}
		}
		return nil
	}}, nil
}

// converter turns data chunks of one result into Arrow records.
type converter struct {
	types  []columnType
	schema *arrow.Schema
}

// newConverter describes the columns of a result.
func newConverter(result *duckdb.Result) (*converter, error) {
	n := int(duckdb.ColumnCount(result))
	c := &converter{types: make([]columnType, n)}
	fields := make([]arrow.Field, n)
	for k := range n {
		lt := duckdb.ColumnLogicalType(result, duckdb.IdxT(k))
		t, err := typeOf(lt, 0)
		duckdb.DestroyLogicalType(&lt)
		name := duckdb.ColumnName(result, duckdb.IdxT(k))
		if err != nil {
			return nil, fmt.Errorf("column %s: %w", name, err)
		}
		c.types[k] = t
		fields[k] = arrow.Field{Name: name, Type: t.arrow, Nullable: true}
	}
	c.schema = arrow.NewSchema(fields, nil)
	return c, nil
}

// record copies a data chunk; the caller releases it.
func (c *converter) record(chunk duckdb.DataChunk) (arrow.RecordBatch, error) {
	n := int(duckdb.DataChunkGetSize(chunk))
	columns := make([]arrow.Array, 0, len(c.types))
	defer func() {
		for _, a := range columns {
			a.Release()
		}
	}()
	for k := range c.types {
		v := vectorOf(duckdb.DataChunkGetVector(chunk, duckdb.IdxT(k)))
		if whole := c.types[k].whole; whole != nil {
			all, err := whole(c.types[k].arrow, v, n)
			if err != nil {
				return nil, fmt.Errorf("column %s: %w", c.schema.Field(k).Name, err)
			}
			columns = append(columns, all)
			continue
		}
		b := array.NewBuilder(memory.DefaultAllocator, c.types[k].arrow)
		b.Reserve(n)
		for i := range n {
			if err := c.types[k].append(b, v, i); err != nil {
				b.Release()
				return nil, fmt.Errorf("column %s: %w", c.schema.Field(k).Name, err)
			}
		}
		columns = append(columns, b.NewArray())
		b.Release()
	}
	return array.NewRecordBatch(c.schema, columns, int64(n)), nil
}
