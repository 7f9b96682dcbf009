package sqlengine

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"

	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/chunk"
	"cardinalsin/series"
)

// predicate is what the conditions of one table reference say that we are
// certain of. A condition that is not understood is not in it, and prunes
// nothing.
//
// All of it is about columns on which rows that are the same observation
// agree, so that it may be applied before duplicates are removed.
type predicate struct {
	// alias is the name of the table in the conditions.
	alias string
	// conditions are those about such columns alone, as parse trees.
	conditions []any
	// implied follows from the conditions.
	implied implication
	bounds  []timeBound
}

// timeBound is: a time column, op, a constant.
type timeBound struct {
	op     string
	date   bool // the column is date, else timestamp
	bound  any  // parse tree
	isText bool // the constant is a text literal
}

// keyColumn is a column that conditions may be about.
type keyColumn struct {
	name  string
	label string // of a label column and of metric_name
	time  bool
	date  bool
}

// understand reads the conditions of a reference. columns are by their name in
// lower case.
func understand(ref *tableRef, columns map[string]keyColumn) predicate {
	u := understanding{columns: columns, alias: lower(ref.alias), out: predicate{alias: ref.alias}}
	var all []implication
	for _, e := range ref.where {
		n, _ := e.(object)
		implied, pure := u.condition(n, false)
		all = append(all, implied)
		if pure {
			u.out.conditions = append(u.out.conditions, e)
		}
	}
	u.out.implied = implication{all: all}
	return u.out
}

type understanding struct {
	columns map[string]keyColumn
	alias   string
	out     predicate
}

// flipped is the operator with its sides exchanged, opposite the one that is
// true exactly where it is false: neither is where a side is null.
var (
	flipped = map[string]string{
		"COMPARE_EQUAL":                "COMPARE_EQUAL",
		"COMPARE_NOTEQUAL":             "COMPARE_NOTEQUAL",
		"COMPARE_LESSTHAN":             "COMPARE_GREATERTHAN",
		"COMPARE_GREATERTHAN":          "COMPARE_LESSTHAN",
		"COMPARE_LESSTHANOREQUALTO":    "COMPARE_GREATERTHANOREQUALTO",
		"COMPARE_GREATERTHANOREQUALTO": "COMPARE_LESSTHANOREQUALTO",
	}
	opposite = map[string]string{
		"COMPARE_EQUAL":                "COMPARE_NOTEQUAL",
		"COMPARE_NOTEQUAL":             "COMPARE_EQUAL",
		"COMPARE_LESSTHAN":             "COMPARE_GREATERTHANOREQUALTO",
		"COMPARE_GREATERTHAN":          "COMPARE_LESSTHANOREQUALTO",
		"COMPARE_LESSTHANOREQUALTO":    "COMPARE_GREATERTHAN",
		"COMPARE_GREATERTHANOREQUALTO": "COMPARE_LESSTHAN",
	}
)

// condition reads one condition, or its negation. What it implies holds
// wherever it is true, not where it is null: a row is kept in the first case
// only. pure says that it is about key columns and constants alone.
func (u *understanding) condition(n object, negated bool) (implied implication, pure bool) {
	op, _ := n["type"].(string)
	children, _ := n["children"].([]any)
	switch n["class"] {
	case "CONJUNCTION":
		parts := make([]implication, len(children))
		pure = true
		for i, e := range children {
			child, _ := e.(object)
			var ok bool
			parts[i], ok = u.condition(child, negated)
			pure = pure && ok
		}
		switch {
		case op == "CONJUNCTION_AND" && !negated, op == "CONJUNCTION_OR" && negated:
			return implication{all: parts}, pure
		case op == "CONJUNCTION_AND", op == "CONJUNCTION_OR":
			return implication{any: parts}, pure
		}
	case "COMPARISON":
		if flipped[op] == "" {
			return implication{}, false
		}
		if negated {
			op = opposite[op]
		}
		if c, ok := u.column(n["left"]); ok {
			return u.compare(c, op, n["right"])
		}
		if c, ok := u.column(n["right"]); ok {
			return u.compare(c, flipped[op], n["left"])
		}
	case "BETWEEN":
		c, ok := u.column(n["input"])
		if !ok || op != "COMPARE_BETWEEN" || !comparable(c, n["lower"]) || !comparable(c, n["upper"]) {
			return implication{}, false
		}
		low, high := "COMPARE_GREATERTHANOREQUALTO", "COMPARE_LESSTHANOREQUALTO"
		if negated {
			low, high = opposite[low], opposite[high]
		}
		above, _ := u.compare(c, low, n["lower"])
		below, _ := u.compare(c, high, n["upper"])
		if negated {
			return implication{any: []implication{above, below}}, true
		}
		return implication{all: []implication{above, below}}, true
	case "OPERATOR":
		return u.operator(op, children, negated)
	case "FUNCTION":
		return u.function(n, children, negated)
	}
	return implication{}, false
}

// operator reads NOT, IN and IS NULL.
func (u *understanding) operator(op string, children []any, negated bool) (implied implication, pure bool) {
	if len(children) == 0 {
		return implication{}, false
	}
	if child, _ := children[0].(object); op == "OPERATOR_NOT" && len(children) == 1 {
		return u.condition(child, !negated)
	}
	c, ok := u.column(children[0])
	if !ok {
		return implication{}, false
	}
	switch op {
	case "COMPARE_IN", "COMPARE_NOT_IN":
		var parts []implication
		equal := (op == "COMPARE_IN") != negated
		for _, e := range children[1:] {
			compare := "COMPARE_EQUAL"
			if !equal {
				compare = "COMPARE_NOTEQUAL"
			}
			part, ok := u.compare(c, compare, e)
			if !ok {
				return implication{}, false
			}
			parts = append(parts, part)
		}
		switch {
		case len(parts) == 0:
			return implication{}, false
		case equal:
			return implication{any: parts}, true
		}
		return implication{all: parts}, true
	case "OPERATOR_IS_NULL", "OPERATOR_IS_NOT_NULL":
		if (op == "OPERATOR_IS_NULL") != negated && c.label != "" && len(children) == 1 {
			return matching(labels.MatchEqual, c.label, ""), true
		}
		return implication{}, len(children) == 1
	}
	return implication{}, false
}

// function reads LIKE and its kin, prefixes and regular expressions.
func (u *understanding) function(n object, children []any, negated bool) (implied implication, pure bool) {
	if len(children) != 2 || n["filter"] != nil || n["distinct"] == true {
		return implication{}, false
	}
	c, ok := u.column(children[0])
	pattern, isText := textLiteral(children[1])
	if !ok || !isText || c.time || c.date {
		return implication{}, false
	}
	name, _ := n["function_name"].(string)
	expression := ""
	switch lower(name) {
	case "~~":
		expression = likeExpression(pattern)
	case "!~~": // true where LIKE is false
		negated = !negated
		expression = likeExpression(pattern)
	case "starts_with", "prefix", "^@":
		expression = regexp.QuoteMeta(pattern) + ".*"
	case "regexp_full_match":
		expression = wholeExpression(pattern)
	case "regexp_matches":
		if expression = wholeExpression(pattern); expression != "" {
			expression = ".*" + expression + ".*"
		}
	default:
		return implication{}, false
	}
	if negated || expression == "" || c.label == "" {
		// An expression is wider than what DuckDB matches: its negation says
		// nothing.
		return implication{}, true
	}
	return matching(labels.MatchRegexp, c.label, expression), true
}

// column recognises a column of the table.
func (u *understanding) column(e any) (keyColumn, bool) {
	n, _ := e.(object)
	if n["class"] != "COLUMN_REF" {
		return keyColumn{}, false
	}
	names, _ := n["column_names"].([]any)
	if len(names) == 2 {
		if table, _ := names[0].(string); lower(table) != u.alias {
			return keyColumn{}, false
		}
		names = names[1:]
	}
	if len(names) != 1 {
		return keyColumn{}, false
	}
	name, _ := names[0].(string)
	c, ok := u.columns[lower(name)]
	return c, ok
}

// comparable reports whether DuckDB compares the column with the expression
// in the column's own type, and the expression is constant.
func comparable(c keyColumn, e any) bool {
	if c.time || c.date {
		return !dependsOnRows(e)
	}
	_, ok := textLiteral(e)
	return ok
}

// textLiteral is the value of a constant of type VARCHAR.
func textLiteral(e any) (string, bool) {
	n, _ := e.(object)
	value, _ := n["value"].(object)
	kind, _ := value["type"].(object)
	if n["class"] != "CONSTANT" || kind["id"] != "VARCHAR" || value["is_null"] != false {
		return "", false
	}
	s, ok := value["value"].(string)
	return s, ok
}

// compare reads a comparison with a constant.
func (u *understanding) compare(c keyColumn, op string, e any) (implied implication, pure bool) {
	if !comparable(c, e) {
		return implication{}, false
	}
	if c.time || c.date {
		_, isText := textLiteral(e)
		u.out.bounds = append(u.out.bounds, timeBound{op: op, date: c.date, bound: e, isText: isText})
		return implication{bound: len(u.out.bounds)}, true
	}
	value, _ := textLiteral(e)
	switch {
	case c.label == "" || value == "":
	case op == "COMPARE_EQUAL":
		return matching(labels.MatchEqual, c.label, value), true
	case op == "COMPARE_NOTEQUAL":
		return matching(labels.MatchNotEqual, c.label, value), true
	}
	return implication{}, true
}

// timeRanges evaluates the bounds in the database of the query, inside its
// transaction, so that now() is the same here and there. A bound that says
// nothing is all time.
func (q *query) timeRanges(ctx context.Context, bounds []timeBound) ([]series.TimeRange, error) {
	if len(bounds) == 0 {
		return nil, nil
	}
	list := make([]any, len(bounds))
	for i, b := range bounds {
		list[i] = b.bound
	}
	rows, err := q.evaluate(ctx, list)
	if err != nil {
		return nil, err
	}
	out := make([]series.TimeRange, len(bounds))
	for i, b := range bounds {
		out[i] = series.AllTime
		switch kind := rows[0][2*i]; {
		case kind == "VARCHAR" && b.isText, kind == "DATE":
		case (kind == "TIMESTAMP" || kind == "TIMESTAMP WITH TIME ZONE") && !b.date:
		default:
			continue // compared in a type of which we know nothing
		}
		us, err := strconv.ParseInt(rows[0][2*i+1], 10, 64)
		if err != nil {
			continue // null, or infinite
		}
		out[i] = narrow(series.AllTime, b, series.Timestamp(us))
	}
	return out, nil
}

// evaluate returns one row: the type and the µs since the epoch of each of the
// expressions, which are constant in a transaction.
func (q *query) evaluate(ctx context.Context, list []any) ([][]string, error) {
	p := q.engine.parser
	run, key := p.rows, ""
	if usesClock(list) {
		d, err := q.database(ctx)
		if err != nil {
			return nil, err
		}
		run = d.rows
	} else {
		b, err := json.Marshal(list)
		if err != nil {
			return nil, fmt.Errorf("encode the parse tree: %w", err)
		}
		if rows, ok := q.engine.bounds.Get(string(b)); ok {
			return rows, nil
		}
		key = string(b)
	}
	text, err := p.text(ctx, selectTree(list, object{"type": "EMPTY"}, nil))
	if err != nil {
		return nil, err
	}
	outer, names := "", ""
	for i := range list {
		if i > 0 {
			outer, names = outer+", ", names+", "
		}
		c := "c" + strconv.Itoa(i)
		names += c
		outer += fmt.Sprintf("typeof(%s), TRY(epoch_us(CAST(%s AS TIMESTAMPTZ)))::VARCHAR", c, c)
	}
	rows, err := run(ctx, "SELECT "+outer+" FROM ("+text+") AS t("+names+")")
	if err != nil {
		return nil, err
	}
	if len(rows) != 1 {
		return nil, fmt.Errorf("evaluate time bounds: %d rows", len(rows))
	}
	if key != "" && len(key) <= maxKeyBytes {
		q.engine.bounds.Put(key, rows, 1)
	}
	return rows, nil
}

// narrow applies one bound.
func narrow(r series.TimeRange, b timeBound, t series.Timestamp) series.TimeRange {
	if t < series.MinTimestamp || t > series.MaxTimestamp {
		return r
	}
	first, last := t, t
	if b.date {
		day := t.Date().Range()
		first, last = day.Min, day.Max
	}
	switch b.op {
	case "COMPARE_EQUAL":
		r.Min, r.Max = max(r.Min, first), min(r.Max, last)
	case "COMPARE_LESSTHAN":
		r.Max = min(r.Max, first-1)
	case "COMPARE_LESSTHANOREQUALTO":
		r.Max = min(r.Max, last)
	case "COMPARE_GREATERTHAN":
		r.Min = max(r.Min, last+1)
	case "COMPARE_GREATERTHANOREQUALTO":
		r.Min = max(r.Min, first)
	}
	return r
}

// selectTree is the parse tree of SELECT list FROM from WHERE conditions.
func selectTree(list []any, from object, conditions []any) object {
	var where any
	switch len(conditions) {
	case 0:
	case 1:
		where = conditions[0]
	default:
		where = object{"class": "CONJUNCTION", "type": "CONJUNCTION_AND", "children": conditions}
	}
	return object{"error": false, "statements": []any{object{
		"node": object{
			"type": "SELECT_NODE", "modifiers": []any{}, "cte_map": object{"map": []any{}},
			"select_list": list, "from_table": from, "where_clause": where,
			"group_expressions": []any{}, "group_sets": []any{}, "aggregate_handling": "STANDARD_HANDLING",
			"having": nil, "sample": nil, "qualify": nil,
		},
		"named_param_map": []any{},
	}}}
}

// tableTree is a reference to a table by name.
func tableTree(name, alias string) object {
	return object{
		"type": "BASE_TABLE", "alias": alias, "sample": nil, "schema_name": "", "table_name": name,
		"column_name_alias": []any{}, "catalog_name": "", "at_clause": nil,
	}
}

// keyColumnsOf lists the columns of one of our tables that identify an
// observation. columnLabel maps label columns to labels.
func keyColumnsOf(columnLabel map[string]string) map[string]keyColumn {
	m := map[string]keyColumn{
		chunk.ColumnTimestamp:  {name: chunk.ColumnTimestamp, time: true},
		chunk.ColumnDate:       {name: chunk.ColumnDate, date: true},
		chunk.ColumnMetricName: {name: chunk.ColumnMetricName, label: series.MetricName},
		chunk.ColumnShard:      {name: chunk.ColumnShard},
	}
	for column, label := range columnLabel {
		m[lower(column)] = keyColumn{name: column, label: label}
	}
	return m
}
