package sqlengine

/*
#include <stdlib.h>

void cardinal_scan_bind(void *);
void cardinal_scan_init(void *);
void cardinal_scan_fill(void *, void *);
void cardinal_scan_free(void *);
*/
import "C"

import (
	"errors"
	"fmt"
	"runtime/cgo"
	"unsafe"

	duckdb "github.com/duckdb/duckdb-go-bindings"
)

// scanFunction is the table function through which DuckDB reads rows that are
// in our memory: scanFunction(n) is the n-th source of the database.
const scanFunction = "cardinal_scan"

// source is a table in our memory. DuckDB may scan it any number of times,
// also at the same time.
type source interface {
	columns() []sourceColumn
	// rows estimates how many there are.
	rows() int64
	// scan starts a pass over the rows. Only the columns whose place in
	// wanted is not negative are asked for; that place is their vector.
	scan(wanted []int) (scan, error)
}

type sourceColumn struct {
	name string
	kind kind
}

// scan is one pass. It is used by one thread at a time, not always the same.
type scan interface {
	// fill writes at most len rows and returns how many; 0 ends the pass.
	fill(out *rowsOut) (int, error)
	close()
}

// kind is the type of a source's column.
type kind int

const (
	kindText      kind = iota
	kindInt            // INTEGER
	kindBigInt         // BIGINT
	kindDouble         // DOUBLE
	kindTimestamp      // TIMESTAMP WITH TIME ZONE, µs
	kindDate           // DATE, days
	kindBlob           // BLOB
	kindTextMap        // MAP(VARCHAR, VARCHAR)
)

func (k kind) String() string {
	return [...]string{"VARCHAR", "INTEGER", "BIGINT", "DOUBLE", "TIMESTAMP WITH TIME ZONE", "DATE", "BLOB", "MAP(VARCHAR, VARCHAR)"}[k]
}

// logical returns the type for DuckDB; the caller destroys it.
func (k kind) logical() duckdb.LogicalType {
	if k == kindTextMap {
		t := duckdb.CreateLogicalType(duckdb.TypeVarchar)
		defer duckdb.DestroyLogicalType(&t)
		return duckdb.CreateMapType(t, t)
	}
	return duckdb.CreateLogicalType([...]duckdb.Type{
		duckdb.TypeVarchar, duckdb.TypeInteger, duckdb.TypeBigInt, duckdb.TypeDouble,
		duckdb.TypeTimestampTZ, duckdb.TypeDate, duckdb.TypeBlob,
	}[k])
}

// sourceList is what a database's scan reads. It changes between queries only.
type sourceList struct{ list []source }

// register makes the sources of d.sources readable in the database.
func (d *database) register() error {
	d.sources = &sourceList{}
	f := duckdb.CreateTableFunction()
	defer duckdb.DestroyTableFunction(&f)
	duckdb.TableFunctionSetName(f, scanFunction)
	number := duckdb.CreateLogicalType(duckdb.TypeBigInt)
	defer duckdb.DestroyLogicalType(&number)
	duckdb.TableFunctionAddParameter(f, number)
	duckdb.TableFunctionSupportsProjectionPushdown(f, true)
	duckdb.TableFunctionSetBind(f, unsafe.Pointer(C.cardinal_scan_bind))
	duckdb.TableFunctionSetInit(f, unsafe.Pointer(C.cardinal_scan_init))
	duckdb.TableFunctionSetFunction(f, unsafe.Pointer(C.cardinal_scan_fill))
	duckdb.TableFunctionSetExtraInfo(f, hold(d.sources), unsafe.Pointer(C.cardinal_scan_free))
	if duckdb.RegisterTableFunction(d.conn, f) == duckdb.StateError {
		return errors.New("register the scan of our rows")
	}
	return nil
}

// hold gives DuckDB a pointer that stands for a Go value until it is freed.
func hold(v any) unsafe.Pointer {
	p := C.malloc(C.size_t(unsafe.Sizeof(cgo.Handle(0))))
	*(*cgo.Handle)(p) = cgo.NewHandle(v)
	return p
}

func held[T any](p unsafe.Pointer) T { return (*(*cgo.Handle)(p)).Value().(T) }

//export cardinal_scan_free
func cardinal_scan_free(p unsafe.Pointer) {
	h := *(*cgo.Handle)(p)
	if s, ok := h.Value().(*activeScan); ok {
		s.scan.close()
	}
	h.Delete()
	C.free(p)
}

//export cardinal_scan_bind
func cardinal_scan_bind(p unsafe.Pointer) {
	info := duckdb.BindInfo{Ptr: p}
	sources := held[*sourceList](duckdb.BindGetExtraInfo(info)).list
	value := duckdb.BindGetParameter(info, 0)
	n := duckdb.GetInt64(value)
	duckdb.DestroyValue(&value)
	if n < 0 || n >= int64(len(sources)) {
		duckdb.BindSetError(info, fmt.Sprintf("no source %d", n))
		return
	}
	s := sources[n]
	for _, c := range s.columns() {
		t := c.kind.logical()
		duckdb.BindAddResultColumn(info, c.name, t)
		duckdb.DestroyLogicalType(&t)
	}
	duckdb.BindSetCardinality(info, duckdb.IdxT(max(s.rows(), 0)), false)
	duckdb.BindSetBindData(info, hold(s), unsafe.Pointer(C.cardinal_scan_free))
}

// activeScan is a pass with the kinds of the columns it fills.
type activeScan struct {
	scan  scan
	kinds []kind
}

//export cardinal_scan_init
func cardinal_scan_init(p unsafe.Pointer) {
	info := duckdb.InitInfo{Ptr: p}
	s := held[source](duckdb.InitGetBindData(info))
	columns := s.columns()
	wanted := make([]int, len(columns))
	for i := range wanted {
		wanted[i] = -1
	}
	active := &activeScan{}
	for k := range int(duckdb.InitGetColumnCount(info)) {
		c := uint64(duckdb.InitGetColumnIndex(info, duckdb.IdxT(k)))
		if c >= uint64(len(columns)) { // the row identifier, asked for to count rows
			active.kinds = append(active.kinds, kindBigInt)
			continue
		}
		wanted[c] = k
		active.kinds = append(active.kinds, columns[c].kind)
	}
	pass, err := s.scan(wanted)
	if err != nil {
		duckdb.InitSetError(info, err.Error())
		return
	}
	active.scan = pass
	duckdb.InitSetMaxThreads(info, 1)
	duckdb.InitSetInitData(info, hold(active), unsafe.Pointer(C.cardinal_scan_free))
}

//export cardinal_scan_fill
func cardinal_scan_fill(p, chunk unsafe.Pointer) {
	info := duckdb.FunctionInfo{Ptr: p}
	active := held[*activeScan](duckdb.FunctionGetInitData(info))
	out := &rowsOut{chunk: duckdb.DataChunk{Ptr: chunk}, max: int(duckdb.VectorSize())}
	for k, kind := range active.kinds {
		out.columns = append(out.columns, columnOut{vector: vectorOf(duckdb.DataChunkGetVector(out.chunk, duckdb.IdxT(k))), kind: kind})
	}
	n, err := active.scan.fill(out)
	if err != nil {
		duckdb.FunctionSetError(info, err.Error())
		return
	}
	duckdb.DataChunkSetSize(out.chunk, duckdb.IdxT(n))
}

// rowsOut is a data chunk to be filled.
type rowsOut struct {
	chunk   duckdb.DataChunk
	max     int // rows
	columns []columnOut
}

// columnOut is one of its columns.
type columnOut struct {
	vector
	kind kind
	// entries counts what is in the child vectors of a map.
	entries int
}

// text writes a text.
func (c *columnOut) text(i int, s string) {
	duckdb.VectorAssignStringElement(c.v, duckdb.IdxT(i), s)
}

// binary writes a binary value.
func (c *columnOut) binary(i int, b []byte) {
	duckdb.VectorAssignStringElementLen(c.v, duckdb.IdxT(i), b)
}

// again repeats the value of the row before, without another copy of a text.
func (c *columnOut) again(i int) {
	if !c.valid(i - 1) {
		c.setNull(i)
		return
	}
	switch c.kind {
	case kindText, kindBlob:
		*at[text](c.vector, i) = *at[text](c.vector, i-1)
	case kindTextMap:
		*at[entry](c.vector, i) = *at[entry](c.vector, i-1)
	case kindInt, kindDate:
		*at[int32](c.vector, i) = *at[int32](c.vector, i-1)
	default:
		*at[uint64](c.vector, i) = *at[uint64](c.vector, i-1)
	}
}

// pair is a key and a value of a map.
type pair struct{ key, value string }

// textMap writes a map.
func (c *columnOut) textMap(i int, pairs []pair) error {
	from := c.entries
	c.entries += len(pairs)
	if duckdb.ListVectorReserve(c.v, duckdb.IdxT(c.entries)) == duckdb.StateError ||
		duckdb.ListVectorSetSize(c.v, duckdb.IdxT(c.entries)) == duckdb.StateError {
		return errors.New("grow a map column")
	}
	child := duckdb.ListVectorGetChild(c.v)
	keys, values := duckdb.StructVectorGetChild(child, 0), duckdb.StructVectorGetChild(child, 1)
	for k, p := range pairs {
		duckdb.VectorAssignStringElement(keys, duckdb.IdxT(from+k), p.key)
		duckdb.VectorAssignStringElement(values, duckdb.IdxT(from+k), p.value)
	}
	*at[entry](c.vector, i) = entry{uint64(from), uint64(len(pairs))}
	return nil
}
