package sqlengine

import (
	"encoding/json"
	"fmt"
	"strings"

	"cardinalsin/action"
	"cardinalsin/txlog"
)

// deltaType is a type of a Delta schema, and what SQL makes of it.
type deltaType struct {
	sql     string // in DuckDB's words
	element *deltaType
	key     *deltaType
	value   *deltaType
	fields  []deltaField // of a struct
}

// deltaField is a field of a struct, or a column.
type deltaField struct {
	name     string
	physical string // its name inside data files
	id       int64  // its field id inside data files, where these decide
	typ      *deltaType
}

// deltaTypes are Delta's primitive types in DuckDB's words. A void column
// holds nothing but nulls, for which DuckDB has no type that a table can have.
var deltaTypes = map[string]string{
	"string": "VARCHAR", "long": "BIGINT", "integer": "INTEGER", "short": "SMALLINT", "byte": "TINYINT",
	"float": "FLOAT", "double": "DOUBLE", "boolean": "BOOLEAN", "binary": "BLOB", "date": "DATE",
	"timestamp": kindTimestamp.String(), "timestamp_ntz": "TIMESTAMP", "void": "INTEGER",
}

// mapping is how columns are found inside data files (PROTOCOL.md, "Column
// Mapping").
type mapping int

const (
	byName     mapping = iota
	byPhysical         // by the name that the field's metadata states
	byID
)

// mappingOf reads a table's mapping mode. An error wraps txlog.ErrUnsupported.
func mappingOf(conf map[string]string) (mapping, error) {
	switch mode := conf["delta.columnMapping.mode"]; mode {
	case "", "none":
		return byName, nil
	case "name":
		return byPhysical, nil
	case "id":
		return byID, nil
	default:
		return 0, fmt.Errorf("%w: column mapping mode %.40q", txlog.ErrUnsupported, mode)
	}
}

// field translates a field of a schema. An error wraps txlog.ErrUnsupported;
// the names are valid all the same.
func (m mapping) field(f *action.Field, depth int) (deltaField, error) {
	out := deltaField{name: f.Name, physical: f.Name}
	if m != byName {
		if p, ok := f.Metadata["delta.columnMapping.physicalName"].(string); ok {
			out.physical = p
		}
	}
	if m == byID {
		id, ok := f.Metadata["delta.columnMapping.id"].(float64)
		if !ok {
			return out, fmt.Errorf("%w: column %q has no id", txlog.ErrUnsupported, f.Name)
		}
		out.id = int64(id)
	}
	t, err := m.parse(f.Type, depth)
	out.typ = t
	return out, err
}

// parse translates a type. An error wraps txlog.ErrUnsupported.
func (m mapping) parse(raw json.RawMessage, depth int) (*deltaType, error) {
	unsupported := fmt.Errorf("%w: type %.100s", txlog.ErrUnsupported, raw)
	if depth > maxNesting {
		return nil, unsupported
	}
	var name string
	if json.Unmarshal(raw, &name) == nil {
		if t, ok := deltaTypes[name]; ok {
			return &deltaType{sql: t}, nil
		}
		var width, scale int
		if n, err := fmt.Sscanf(name, "decimal(%d,%d)", &width, &scale); err == nil && n == 2 && width >= 1 && width <= 38 && scale >= 0 && scale <= width {
			return &deltaType{sql: fmt.Sprintf("DECIMAL(%d,%d)", width, scale)}, nil
		}
		return nil, unsupported
	}
	var nested struct {
		Type        string
		ElementType json.RawMessage
		KeyType     json.RawMessage
		ValueType   json.RawMessage
		Fields      []action.Field
	}
	if json.Unmarshal(raw, &nested) != nil {
		return nil, unsupported
	}
	switch nested.Type {
	case "array":
		e, err := m.parse(nested.ElementType, depth+1)
		if err != nil {
			return nil, err
		}
		return &deltaType{sql: e.sql + "[]", element: e}, nil
	case "map":
		k, err := m.parse(nested.KeyType, depth+1)
		if err != nil {
			return nil, err
		}
		v, err := m.parse(nested.ValueType, depth+1)
		if err != nil {
			return nil, err
		}
		return &deltaType{sql: "MAP(" + k.sql + ", " + v.sql + ")", key: k, value: v}, nil
	case "struct":
		t := &deltaType{}
		var parts []string
		for i := range nested.Fields {
			f, err := m.field(&nested.Fields[i], depth+1)
			if err != nil {
				return nil, err
			}
			t.fields = append(t.fields, f)
			parts = append(parts, quoteName(f.name)+" "+f.typ.sql)
		}
		if len(parts) > 0 { // DuckDB has no struct without fields
			t.sql = "STRUCT(" + strings.Join(parts, ", ") + ")"
			return t, nil
		}
	}
	return nil, unsupported
}
