package sqlengine

import (
	_ "embed"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// maxStatementBytes bounds the text of a statement.
const maxStatementBytes = 1 << 20

// statement is a checked SELECT.
type statement struct {
	sql  string
	tree any // DuckDB's parse tree, as json_serialize_sql gives it
	refs []*tableRef
	// qualified: a table has its schema's name before its own.
	qualified bool
}

// tableRef is one place of a statement that names a table of ours.
type tableRef struct {
	node  object
	kind  tableKind
	alias string // the name by which the statement's expressions know it
	at    *atClause
	where []any // conditions that every row taken from the table must satisfy
}

// atClause is AT (unit => expression).
type atClause struct {
	unit       string
	expression any
}

// tableKind tells our tables apart.
type tableKind string

const (
	kindRows   tableKind = ""
	kindLog    tableKind = "_log"
	kindFiles  tableKind = "_files"
	kindShards tableKind = "_shards"
	kindSeries tableKind = "_series"
)

var tableKinds = []tableKind{kindRows, kindLog, kindFiles, kindShards, kindSeries}

// thisTable is a second name of every table.
const thisTable = "this_table"

// object is a JSON object of the parse tree.
type object = map[string]any

//go:embed functions.txt
var functionsText string

// allowedFunctions are the scalar and aggregate functions and macros of
// DuckDB that neither look at anything beside their arguments and the clock
// nor change anything. A test holds the list against DuckDB's own, so that an
// upgrade's new functions stay refused until somebody has looked at them.
var allowedFunctions = sync.OnceValue(func() map[string]bool {
	m := map[string]bool{"unnest": true, "unlist": true} // the binder's own
	for name := range strings.FieldsSeq(functionsText) {
		m[name] = true
	}
	return m
})

// allowedTableFunctions make rows out of their arguments.
var allowedTableFunctions = map[string]bool{
	"generate_series": true, "range": true, "repeat": true, "repeat_row": true, "unnest": true,
	"json_each": true, "json_tree": true, "icu_calendar_names": true, "pg_timezone_names": true,
}

// checker walks a parse tree. What it does not know, it refuses.
type checker struct {
	names     map[string]tableKind
	statement *statement
	unknown   map[string]bool // functions that are not allowed
	where     []any           // conditions on the table that comes next
}

// scope is the common table expressions that a part of the tree can see.
type scope struct {
	name  string
	outer *scope
}

func (s *scope) has(name string) bool {
	for ; s != nil; s = s.outer {
		if s.name == name {
			return true
		}
	}
	return false
}

// expressionClasses are the kinds of expressions of a parse tree.
var expressionClasses = setOf(
	"BETWEEN", "CASE", "CAST", "COLLATE", "COLUMN_REF", "COMPARISON", "CONJUNCTION", "CONSTANT", "DEFAULT",
	"FUNCTION", "LAMBDA", "LAMBDA_REF", "OPERATOR", "PARAMETER", "POSITIONAL_REFERENCE", "STAR", "SUBQUERY", "TYPE", "WINDOW",
)

// nodeTypes are the kinds of all other nodes that have a kind: query nodes,
// table references, modifiers and the parts of orders and types.
var nodeTypes = setOf(
	"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE",
	"BASE_TABLE", "EMPTY", "EXPRESSION_LIST", "JOIN", "PIVOT", "SHOW_REF", "SUBQUERY", "TABLE_FUNCTION",
	"DISTINCT_MODIFIER", "LIMIT_MODIFIER", "LIMIT_PERCENT_MODIFIER", "ORDER_MODIFIER",
	"ORDER_DEFAULT", "ASCENDING", "DESCENDING",
)

func setOf(names ...string) map[string]bool {
	m := map[string]bool{}
	for _, n := range names {
		m[n] = true
	}
	return m
}

func (c *checker) walk(v any, sees *scope) error {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			if err := c.walk(e, sees); err != nil {
				return err
			}
		}
	case object:
		return c.node(v, sees)
	}
	return nil
}

func (c *checker) node(n object, sees *scope) error {
	class, _ := n["class"].(string)
	kind, _ := n["type"].(string)
	switch {
	case class != "":
		if !expressionClasses[class] {
			return fmt.Errorf("%w: expression of class %s", ErrNotAllowed, class)
		}
		if class == "FUNCTION" || class == "WINDOW" {
			if err := c.function(n); err != nil {
				return err
			}
		}
		if class == "CONSTANT" {
			return nil // a value cannot hold a node
		}
		return c.children(n, sees)
	case kind == "":
		return c.children(n, sees)
	case isTypeInfo(kind):
		return c.children(n, sees)
	case !nodeTypes[kind]:
		return fmt.Errorf("%w: %s", ErrNotAllowed, kind)
	}
	switch kind {
	case "BASE_TABLE":
		return c.table(n, sees)
	case "TABLE_FUNCTION":
		return c.tableFunction(n, sees)
	case "SHOW_REF":
		if n["query"] == nil { // SHOW TABLES and its kin look into the catalog
			return fmt.Errorf("%w: SHOW", ErrNotAllowed)
		}
	case "RECURSIVE_CTE_NODE":
		if name, ok := n["cte_name"].(string); ok {
			sees = &scope{lower(name), sees}
		}
	}
	return c.children(n, sees)
}

// isTypeInfo reports a part of a data type, which names no table or function.
func isTypeInfo(kind string) bool { return strings.HasSuffix(kind, "_TYPE_INFO") }

// children walks all members, the common table expressions first: each sees
// those before it, the rest of the node sees all.
func (c *checker) children(n object, sees *scope) error {
	if ctes, ok := n["cte_map"].(object); ok {
		list, _ := ctes["map"].([]any)
		for _, e := range list {
			cte, _ := e.(object)
			name, _ := cte["key"].(string)
			if strings.ContainsAny(name, `./\:*?[`) {
				// It could be taken for a file by whoever reads scopes otherwise.
				return fmt.Errorf("%w: common table expression named %q", ErrNotAllowed, name)
			}
			if err := c.walk(cte["value"], sees); err != nil {
				return err
			}
			sees = &scope{lower(name), sees}
		}
	}
	for key, v := range n {
		switch key {
		case "cte_map":
			continue
		case "from_table":
			c.where = conditions(n)
		}
		if err := c.walk(v, sees); err != nil {
			return err
		}
	}
	return nil
}

// table checks a reference by name.
func (c *checker) table(n object, sees *scope) error {
	name, _ := n["table_name"].(string)
	schema, _ := n["schema_name"].(string)
	catalog, _ := n["catalog_name"].(string)
	at, _ := n["at_clause"].(object)
	where := c.where
	c.where = nil
	inside := lower(schema) == Schema && (catalog == "" || lower(catalog) == Catalog)
	if kind, ok := c.names[lower(name)]; ok && inside {
		c.statement.qualified = true
		return c.reference(n, name, kind, at, where, sees)
	}
	if schema == "" && catalog == "" {
		if sees.has(lower(name)) {
			if at != nil {
				return fmt.Errorf("%w: AT on common table expression %s", ErrSyntax, name)
			}
			return nil
		}
		if kind, ok := c.names[lower(name)]; ok {
			return c.reference(n, name, kind, at, where, sees)
		}
		if isPlainName(name) {
			return fmt.Errorf("%w: no table %s", ErrSyntax, name)
		}
	}
	return fmt.Errorf("%w: %s is no table of this store", ErrNotAllowed, strings.Trim(catalog+"."+schema+"."+name, "."))
}

func (c *checker) reference(n object, name string, kind tableKind, at object, where []any, sees *scope) error {
	ref := &tableRef{node: n, kind: kind, alias: name, where: where}
	if alias, _ := n["alias"].(string); alias != "" {
		ref.alias = alias
	}
	if at != nil {
		unit, _ := at["unit"].(string)
		ref.at = &atClause{unit: strings.ToUpper(unit), expression: at["expr"]}
		if err := c.walk(at["expr"], sees); err != nil {
			return err
		}
	}
	c.statement.refs = append(c.statement.refs, ref)
	return nil
}

func isPlainName(s string) bool {
	for i, r := range s {
		if r != '_' && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (i == 0 || r < '0' || r > '9') {
			return false
		}
	}
	return s != ""
}

func (c *checker) tableFunction(n object, sees *scope) error {
	f, _ := n["function"].(object)
	name, _ := f["function_name"].(string)
	if class, _ := f["class"].(string); class != "FUNCTION" || !allowedTableFunctions[lower(name)] {
		c.unknown[lower(name)] = true
	}
	for key, v := range n {
		if key == "function" {
			continue
		}
		if err := c.walk(v, sees); err != nil {
			return err
		}
	}
	return c.children(f, sees)
}

func (c *checker) function(n object) error {
	name, _ := n["function_name"].(string)
	if !allowedFunctions()[lower(name)] {
		c.unknown[lower(name)] = true
	}
	return nil
}

// conditions returns the parts of the WHERE of a SELECT that reads one table
// and nothing else: conditions on that table's rows.
func conditions(n object) []any {
	from, _ := n["from_table"].(object)
	if kind, _ := from["type"].(string); kind != "BASE_TABLE" || n["where_clause"] == nil {
		return nil
	}
	if from["sample"] != nil { // it picks rows before WHERE does
		return nil
	}
	if names, _ := from["column_name_alias"].([]any); len(names) > 0 {
		return nil
	}
	return conjuncts(n["where_clause"], nil)
}

// conjuncts lists the parts of nested ANDs.
func conjuncts(e any, out []any) []any {
	n, ok := e.(object)
	if ok && n["class"] == "CONJUNCTION" && n["type"] == "CONJUNCTION_AND" {
		list, _ := n["children"].([]any)
		for _, c := range list {
			out = conjuncts(c, out)
		}
		return out
	}
	return append(out, e)
}

// dependsOnRows reports whether an expression has another value in another
// row or run: columns, queries, parameters.
func dependsOnRows(e any) bool {
	return anyNode(e, func(n object) bool {
		switch n["class"] {
		case "COLUMN_REF", "LAMBDA", "LAMBDA_REF", "PARAMETER", "POSITIONAL_REFERENCE", "STAR", "SUBQUERY", "WINDOW", "DEFAULT":
			return true
		case "FUNCTION":
			name := functionName(n)
			return !timelessFunctions[name] && !clockFunctions[name]
		}
		return false
	})
}

// usesClock reports whether an expression that is constant in a transaction may
// have another value in another one.
func usesClock(e any) bool {
	return anyNode(e, func(n object) bool { return n["class"] == "FUNCTION" && !timelessFunctions[functionName(n)] })
}

func functionName(n object) string {
	name, _ := n["function_name"].(string)
	return lower(name)
}

// anyNode reports whether a parse tree has a node such as is says.
func anyNode(e any, is func(object) bool) bool {
	below := func(v any) bool { return anyNode(v, is) }
	switch e := e.(type) {
	case []any:
		return slices.ContainsFunc(e, below)
	case object:
		if is(e) {
			return true
		}
		for _, v := range e {
			if below(v) {
				return true
			}
		}
	}
	return false
}

// clockFunctions have one value throughout a transaction, and another in
// another one.
var clockFunctions = setOf("now", "get_current_timestamp", "transaction_timestamp", "today", "current_date", "ago")

// timelessFunctions look at their arguments alone.
var timelessFunctions = setOf(
	"+", "-", "*", "/", "trunc", "date_trunc", "datetrunc", "time_bucket", "timezone",
	"to_microseconds", "to_milliseconds", "to_seconds", "to_minutes", "to_hours", "to_days", "to_weeks", "to_months", "to_years",
	"to_timestamp", "epoch_ms", "make_timestamp", "make_timestamptz", "make_date", "strptime",
)

// patternFunctions match a text, and look at their arguments alone too.
var patternFunctions = setOf("~~", "!~~", "starts_with", "prefix", "^@", "regexp_full_match", "regexp_matches")

// lower folds a name as DuckDB does: ASCII letters only.
func lower(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'A' && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
}
