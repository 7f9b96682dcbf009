package sqlengine

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"cardinalsin/txlog"
)

// convert returns SQL that turns e, which DuckDB reads from a file's node,
// into a value of the schema's type. An error wraps txlog.ErrUnsupported: the
// file holds another type than the table, in no way that the protocol knows.
func convert(n *node, t *deltaType, e string, depth int) (string, error) {
	mismatch := func() error {
		return fmt.Errorf("%w: a file holds %s where the table has %s", txlog.ErrUnsupported, n.describe(), t.sql)
	}
	variable := "x" + strconv.Itoa(depth)
	switch {
	case t.element != nil:
		child := n.element()
		if child == nil {
			return "", mismatch()
		}
		body, err := convert(child, t.element, variable, depth+1)
		if err != nil || body == variable {
			return e, err
		}
		return "list_transform(" + e + ", lambda " + variable + ": " + body + ")", nil
	case t.key != nil:
		k, v := n.entry()
		if k == nil {
			return "", mismatch()
		}
		key, value := variable+".key", variable+`."value"`
		keySQL, err := convert(k, t.key, key, depth+1)
		if err != nil {
			return "", err
		}
		valueSQL, err := convert(v, t.value, value, depth+1)
		if err != nil || keySQL == key && valueSQL == value {
			return e, err
		}
		return fmt.Sprintf(`CASE WHEN %s IS NOT NULL THEN map_from_entries(list_transform(map_entries(%s), lambda %s: struct_pack(key := %s, "value" := %s))) END`,
			e, e, variable, keySQL, valueSQL), nil
	case t.fields != nil:
		return convertStruct(n, t, e, depth, mismatch)
	case n.sqlType == t.sql:
		return e, nil
	case len(n.children) > 0:
		return "", mismatch()
	}
	return convertLeaf(n.sqlType, t.sql, e, mismatch)
}

func convertStruct(n *node, t *deltaType, e string, depth int, mismatch func() error) (string, error) {
	if len(n.children) == 0 || n.kind != "" {
		return "", mismatch()
	}
	same := len(n.children) == len(t.fields)
	parts := make([]string, len(t.fields))
	for i := range t.fields {
		f := &t.fields[i]
		place, ok := find(n.children, f)
		value := "CAST(NULL AS " + f.typ.sql + ")" // a field that came later
		if ok {
			child := n.children[place]
			at := "struct_extract(" + e + ", " + quoteText(child.name) + ")"
			var err error
			if value, err = convert(child, f.typ, at, depth+1); err != nil {
				return "", err
			}
			same = same && place == i && child.name == f.name && value == at
		}
		same = same && ok
		parts[i] = quoteName(f.name) + " := " + value
	}
	if same {
		return e, nil
	}
	return "CASE WHEN " + e + " IS NOT NULL THEN struct_pack(" + strings.Join(parts, ", ") + ") END", nil
}

// integers ascend by width.
var integers = []string{"TINYINT", "UTINYINT", "SMALLINT", "USMALLINT", "INTEGER", "UINTEGER", "BIGINT", "UBIGINT"}

// convertLeaf casts where the protocol lets files hold another type than the
// table ("Type Widening"), and where Parquet has several forms for one type. A
// cast that loses digits is none of them.
func convertLeaf(from, to, e string, mismatch func() error) (string, error) {
	cast := "CAST(" + e + " AS " + to + ")"
	isInteger := func(s string) bool { return slices.Contains(integers, s) }
	var fromWidth, fromScale, toWidth, toScale int
	fromDecimal := isDecimal(from, &fromWidth, &fromScale)
	toDecimal := isDecimal(to, &toWidth, &toScale)
	times := []string{"TIMESTAMP", "TIMESTAMP WITH TIME ZONE", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS"}
	switch {
	// A type that is too narrow fails when a value does not fit. Parquet
	// has no 8 and 16 bits: what has no annotation is read as wider.
	case isInteger(from) && isInteger(to),
		isInteger(from) && (to == "DOUBLE" || toDecimal),
		from == "FLOAT" && to == "DOUBLE",
		fromDecimal && toDecimal && fromScale <= toScale,
		fromDecimal && fromScale == 0 && isInteger(to),
		from == "DATE" && to == "TIMESTAMP",
		slices.Contains(times, from) && slices.Contains(times, to),
		(from == "UUID" || from == "JSON") && to == "VARCHAR":
		return cast, nil
	case from == "BLOB" && to == "VARCHAR": // text without an annotation
		return "decode(" + e + ")", nil
	case from == "VARCHAR" && to == "BLOB":
		return "encode(" + e + ")", nil
	}
	return "", mismatch()
}

func isDecimal(t string, width, scale *int) bool {
	n, err := fmt.Sscanf(t, "DECIMAL(%d,%d)", width, scale)
	return err == nil && n == 2
}

// describe names the type of a node.
func (n *node) describe() string {
	switch {
	case n.kind != "":
		return "a " + n.kind
	case len(n.children) > 0:
		return "a group"
	}
	return n.sqlType
}
