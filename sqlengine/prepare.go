package sqlengine

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	duckdb "github.com/duckdb/duckdb-go-bindings"
)

// Catalog and Schema may stand before the name of a table: cardinal.main.metrics.
const (
	Catalog = "cardinal"
	Schema  = "main"
)

// ErrArgument: the arguments of a query are not as many as its parameters, or
// of a type that none can have.
var ErrArgument = errors.New("wrong arguments")

// Prepared says what a statement returns and needs.
type Prepared struct {
	// Schema is that of the records, nil where it depends on the arguments.
	Schema *arrow.Schema
	// Parameters are in the order of QueryOptions.Arguments; there are none
	// where Arguments were given.
	Parameters []Parameter
}

// Parameter is one parameter of a statement.
type Parameter struct {
	Name string         // "1" of $1 and the first ?, "host" of $host
	Type arrow.DataType // nil: any
}

// Tables lists the names by which a statement knows the tables, the table's
// own first.
func (e *Engine) Tables() []string {
	var names []string
	for _, kind := range tableKinds {
		names = append(names, e.opts.Table+string(kind))
	}
	return names
}

// prepareMemoryBytes is what it takes to compile a statement over no rows.
const prepareMemoryBytes = 64 << 20

// Prepare checks a statement, with or without its arguments. It costs what the
// reader's views cost, and reads no data file.
func (e *Engine) Prepare(ctx context.Context, sql string, opts QueryOptions) (*Prepared, error) {
	opts.MemoryBytes = lowest(opts.MemoryBytes, prepareMemoryBytes)
	opts.dry = true
	q, err := e.open(ctx, sql, opts)
	if err != nil {
		return nil, fmt.Errorf("prepare: %w", err)
	}
	defer q.close()
	ctx, cancel := context.WithDeadline(ctx, q.deadline)
	defer cancel()
	if err := q.prepare(ctx); err != nil {
		return nil, fmt.Errorf("prepare: %w", q.typed(ctx, err))
	}
	p, err := q.db.prepare(ctx, q.sql)
	if err != nil {
		return nil, fmt.Errorf("prepare: %w", q.typed(ctx, err))
	}
	defer duckdb.DestroyPrepare(&p)
	_, names, err := q.statement.parameters()
	if err != nil {
		return nil, fmt.Errorf("prepare: %w", err)
	}
	types := map[string]arrow.DataType{} // that of AT is not among them
	for i := range duckdb.NParams(p) {
		lt := duckdb.ParamLogicalType(p, i+1)
		if t, err := typeOf(lt, 0); err == nil { // else it is open, or one that nobody can bind
			types[duckdb.ParameterName(p, i+1)] = t.arrow
		}
		duckdb.DestroyLogicalType(&lt)
	}
	out := &Prepared{}
	for _, name := range names {
		out.Parameters = append(out.Parameters, Parameter{Name: name, Type: types[name]})
	}
	out.Schema, err = preparedSchema(p)
	if err != nil {
		return nil, fmt.Errorf("prepare: %w", err)
	}
	return out, nil
}

// preparedSchema is the schema of a statement's records, nil if DuckDB does not
// know a column's type yet.
func preparedSchema(p duckdb.PreparedStatement) (*arrow.Schema, error) {
	fields := make([]arrow.Field, duckdb.PreparedStatementColumnCount(p))
	for k := range fields {
		name := duckdb.PreparedStatementColumnName(p, duckdb.IdxT(k))
		if duckdb.PreparedStatementColumnType(p, duckdb.IdxT(k)) == duckdb.TypeInvalid {
			return nil, nil
		}
		lt := duckdb.PreparedStatementColumnLogicalType(p, duckdb.IdxT(k))
		t, err := typeOf(lt, 0)
		duckdb.DestroyLogicalType(&lt)
		if err != nil {
			return nil, fmt.Errorf("column %s: %w", name, err)
		}
		fields[k] = arrow.Field{Name: name, Type: t.arrow, Nullable: true}
	}
	return arrow.NewSchema(fields, nil), nil
}

// parameters returns the nodes of the parse tree that stand for parameters, by
// name, and the names in order.
func (s *statement) parameters() (nodes map[string][]object, names []string, err error) {
	tree, _ := s.tree.(object)
	statements, _ := tree["statements"].([]any)
	for _, e := range statements {
		n, _ := e.(object)
		list, _ := n["named_param_map"].([]any)
		names = make([]string, len(list))
		for _, e := range list {
			entry, _ := e.(object)
			i, err := strconv.Atoi(fmt.Sprint(entry["value"]))
			if err != nil || i < 1 || i > len(list) {
				return nil, nil, fmt.Errorf("%w: parameter %v", ErrSyntax, entry["key"])
			}
			names[i-1], _ = entry["key"].(string)
		}
	}
	nodes = map[string][]object{}
	collect(s.tree, func(n object) {
		name, _ := n["identifier"].(string)
		nodes[name] = append(nodes[name], n)
	})
	return nodes, names, nil
}

// collect calls f with every parameter below a node of the tree.
func collect(v any, f func(object)) {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			collect(e, f)
		}
	case object:
		if v["class"] == "PARAMETER" {
			f(v)
			return
		}
		for _, e := range v {
			collect(e, f)
		}
	}
}

// bind puts constants in place of the parameters, so that what skips files is
// what runs. bound is false where there was nothing to do.
func (p *parser) bind(ctx context.Context, s *statement, arguments []any) (bound bool, err error) {
	nodes, names, err := s.parameters()
	if err != nil {
		return false, err
	}
	if len(arguments) != len(names) {
		return false, fmt.Errorf("%w: %d for %d parameters", ErrArgument, len(arguments), len(names))
	}
	if len(names) == 0 {
		return false, nil
	}
	if err := p.keepNames(ctx, s); err != nil {
		return false, err
	}
	for i, name := range names {
		constant, err := constantOf(arguments[i])
		if err != nil {
			return false, fmt.Errorf("%w: parameter %s: %w", ErrArgument, name, err)
		}
		for _, n := range nodes[name] {
			alias := n["alias"]
			clear(n)
			for k, v := range constant {
				n[k] = v
			}
			n["alias"] = alias
		}
	}
	tree, _ := s.tree.(object)
	for _, e := range tree["statements"].([]any) {
		if n, ok := e.(object); ok {
			n["named_param_map"] = []any{}
		}
	}
	return true, nil
}

// keepNames gives the columns that hold a parameter the names that they have
// by it.
func (p *parser) keepNames(ctx context.Context, s *statement) error {
	tree, _ := s.tree.(object)
	statements, _ := tree["statements"].([]any)
	for _, e := range statements {
		n, _ := e.(object)
		top, _ := n["node"].(object)
		list, _ := top["select_list"].([]any)
		for _, e := range list {
			n, _ := e.(object)
			found := false
			collect(n, func(object) { found = true })
			if !found || n["alias"] != "" {
				continue
			}
			text, err := p.text(ctx, selectTree([]any{n}, object{"type": "EMPTY", "alias": ""}, nil))
			if err != nil {
				return err
			}
			n["alias"] = strings.TrimPrefix(text, "SELECT ")
		}
	}
	return nil
}

// constantOf is the node of an argument's value. Values but text have their
// type by a cast, since a number alone would get the smallest that fits.
func constantOf(v any) (object, error) {
	cast := func(text, typ string) (object, error) {
		return object{
			"class": "CAST", "type": "OPERATOR_CAST", "alias": "", "try_cast": false,
			"cast_type": object{"id": typ, "type_info": nil}, "child": textConstant(text),
		}, nil
	}
	switch v := v.(type) {
	case nil:
		return object{
			"class": "CONSTANT", "type": "VALUE_CONSTANT", "alias": "",
			"value": object{"type": object{"id": "NULL", "type_info": nil}, "is_null": true},
		}, nil
	case bool:
		return cast(strconv.FormatBool(v), "BOOLEAN")
	case int64:
		return cast(strconv.FormatInt(v, 10), "BIGINT")
	case uint64:
		if v <= math.MaxInt64 {
			return cast(strconv.FormatUint(v, 10), "BIGINT")
		}
		return cast(strconv.FormatUint(v, 10), "UBIGINT")
	case float64:
		return cast(strconv.FormatFloat(v, 'g', -1, 64), "DOUBLE")
	case string:
		if !printable(v) {
			return nil, fmt.Errorf("text that is not UTF-8, or holds a zero byte")
		}
		return textConstant(v), nil
	case []byte:
		var b strings.Builder
		for chunk := range slices.Chunk(v, 1) {
			b.WriteString(`\x` + hex.EncodeToString(chunk))
		}
		return cast(b.String(), "BLOB")
	case time.Time:
		return cast(v.UTC().Format("2006-01-02 15:04:05.999999999Z07:00"), "TIMESTAMP WITH TIME ZONE")
	}
	return nil, fmt.Errorf("value of type %T", v)
}

func textConstant(s string) object {
	return object{
		"class": "CONSTANT", "type": "VALUE_CONSTANT", "alias": "",
		"value": object{"type": object{"id": "VARCHAR", "type_info": nil}, "is_null": false, "value": s},
	}
}
