package action

import (
	"encoding/json"
	"fmt"
)

// Schema is a table's schema in Delta's JSON form (PROTOCOL.md, "Schema
// Serialization Format"). A type is a JSON string for a primitive and an
// object for anything nested; both are kept as they stand.
type Schema struct {
	Fields []Field
}

// Field is one column.
type Field struct {
	Name     string          `json:"name"`
	Type     json.RawMessage `json:"type"`
	Nullable bool            `json:"nullable"`
	Metadata map[string]any  `json:"metadata"`
}

type structType struct {
	Type   string  `json:"type"`
	Fields []Field `json:"fields"`
}

// PrimitiveType is the JSON form of a primitive type's name.
func PrimitiveType(name string) json.RawMessage { return json.RawMessage(`"` + name + `"`) }

// Primitive returns the name of a primitive type, "" for a nested one.
func (f *Field) Primitive() string {
	var s string
	if json.Unmarshal(f.Type, &s) != nil {
		return ""
	}
	return s
}

// Field returns the column with that exact name, or nil.
func (s *Schema) Field(name string) *Field {
	for i := range s.Fields {
		if s.Fields[i].Name == name {
			return &s.Fields[i]
		}
	}
	return nil
}

// Encode returns the schemaString of a Metadata.
func (s *Schema) Encode() (string, error) {
	t := structType{Type: "struct", Fields: make([]Field, len(s.Fields))}
	for i, f := range s.Fields {
		if f.Metadata == nil {
			f.Metadata = map[string]any{}
		}
		t.Fields[i] = f
	}
	b, err := json.Marshal(t)
	if err != nil {
		return "", fmt.Errorf("encode schema: %w", err)
	}
	return string(b), nil
}

// ParseSchema is the inverse of Encode.
func ParseSchema(schemaString string) (*Schema, error) {
	var t structType
	if err := json.Unmarshal([]byte(schemaString), &t); err != nil {
		return nil, fmt.Errorf("%w: schema: %w", ErrCorrupt, err)
	}
	if t.Type != "struct" {
		return nil, fmt.Errorf("%w: schema is a %q, not a struct", ErrCorrupt, t.Type)
	}
	return &Schema{Fields: t.Fields}, nil
}
