package sqlengine

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// parser is a DuckDB that only parses.
type parser struct {
	mu sync.Mutex // one statement at a time
	db *database
}

const parserMemoryBytes = 256 << 20

func newParser(ctx context.Context) (*parser, error) {
	db, err := openDatabase(ctx, settings{threads: 1, memoryBytes: parserMemoryBytes})
	if err != nil {
		return nil, err
	}
	if err := db.lock(ctx, nil); err != nil {
		db.close()
		return nil, err
	}
	return &parser{db: db}, nil
}

func (p *parser) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.db.close()
}

// parse checks that sql is one statement that only reads our tables, and
// finds them. names maps what tables are called, in lower case, to what they
// are. Errors wrap ErrSyntax or ErrNotAllowed.
func (p *parser) parse(ctx context.Context, sql string, names map[string]tableKind) (*statement, error) {
	if len(sql) > maxStatementBytes {
		return nil, fmt.Errorf("%w: statement is longer than %d bytes", ErrSyntax, maxStatementBytes)
	}
	if !printable(sql) {
		return nil, fmt.Errorf("%w: statement is not UTF-8 text, or holds a zero byte", ErrSyntax)
	}
	rows, err := p.rows(ctx, "SELECT json_serialize_sql(?::VARCHAR)", sql)
	if err != nil {
		return nil, fmt.Errorf("parse: %w", err)
	}
	if len(rows) != 1 {
		return nil, fmt.Errorf("parse: DuckDB answers with %d rows", len(rows))
	}
	tree, err := decodeTree(rows[0][0])
	if err != nil {
		return nil, err
	}
	if err := treeError(tree); err != nil {
		return nil, err
	}
	statements, _ := tree["statements"].([]any)
	switch {
	case len(statements) == 0:
		return nil, fmt.Errorf("%w: no statement", ErrSyntax)
	case len(statements) > 1:
		return nil, fmt.Errorf("%w: more than one statement", ErrNotAllowed)
	}
	s := &statement{sql: sql, tree: tree}
	c := checker{names: names, statement: s, unknown: map[string]bool{}}
	if err := c.walk(statements[0], nil); err != nil {
		return nil, err
	}
	if len(c.unknown) > 0 {
		return nil, p.unknownFunctions(ctx, c.unknown)
	}
	return s, nil
}

// rows queries the parser's database.
func (p *parser) rows(ctx context.Context, sql string, arguments ...string) ([][]string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.db.rows(ctx, sql, arguments...)
}

// text turns a parse tree back into SQL.
func (p *parser) text(ctx context.Context, tree any) (string, error) {
	b, err := json.Marshal(exactDoubles(tree))
	if err != nil {
		return "", fmt.Errorf("encode the parse tree: %w", err)
	}
	rows, err := p.rows(ctx, "SELECT json_deserialize_sql(?::JSON)", string(b))
	if err != nil {
		return "", fmt.Errorf("write the statement: %w", err)
	}
	if len(rows) != 1 {
		return "", fmt.Errorf("write the statement: DuckDB answers with %d rows", len(rows))
	}
	return rows[0][0], nil
}

// exactDoubles replaces constants of type DOUBLE by casts from text: DuckDB
// writes them as decimals, which have another type, and other digits when they
// are read again.
func exactDoubles(v any) any {
	switch v := v.(type) {
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = exactDoubles(v[i])
		}
		return out
	case object:
		value, _ := v["value"].(object)
		kind, _ := value["type"].(object)
		if number, ok := value["value"].(json.Number); ok && v["class"] == "CONSTANT" && kind["id"] == "DOUBLE" {
			return object{
				"class": "CAST", "type": "OPERATOR_CAST", "alias": v["alias"], "try_cast": false,
				"cast_type": object{"id": "DOUBLE", "type_info": nil},
				"child": object{
					"class": "CONSTANT", "type": "VALUE_CONSTANT", "alias": "",
					"value": object{"type": object{"id": "VARCHAR", "type_info": nil}, "is_null": false, "value": strings.Replace(number.String(), outOfRange, "inf", 1)},
				},
			}
		}
		out := make(object, len(v))
		for k := range v {
			out[k] = exactDoubles(v[k])
		}
		return out
	}
	return v
}

// outOfRange stands for infinity in a decoded tree.
const outOfRange = "1e999"

// unknownFunctions says whether functions are refused or do not exist.
func (p *parser) unknownFunctions(ctx context.Context, names map[string]bool) error {
	var list []string
	for name := range names {
		list = append(list, name)
	}
	slices.Sort(list)
	rows, err := p.rows(ctx, "SELECT DISTINCT function_name FROM duckdb_functions() WHERE list_contains("+quoteTexts(list)+", function_name)")
	if err != nil {
		return fmt.Errorf("look up functions: %w", err)
	}
	switch {
	case len(rows) > 0:
		return fmt.Errorf("%w: function %s", ErrNotAllowed, rows[0][0])
	case names[scanFunction]:
		return fmt.Errorf("%w: function %s", ErrNotAllowed, scanFunction)
	}
	return fmt.Errorf("%w: no function %s", ErrSyntax, list[0])
}

// decodeTree parses DuckDB's JSON, which has a form of infinity that JSON has
// not; numbers stay as they are written.
func decodeTree(text string) (object, error) {
	dec := json.NewDecoder(bytes.NewReader(plainNumbers(text)))
	dec.UseNumber()
	var tree object
	if err := dec.Decode(&tree); err != nil {
		return nil, fmt.Errorf("%w: parse tree: %w", ErrSyntax, err)
	}
	return tree, nil
}

// plainNumbers writes a number for Infinity and NaN outside texts.
func plainNumbers(s string) []byte {
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); {
		switch c := s[i]; {
		case c == '"':
			end := i + 1
			for end < len(s) && s[end] != '"' {
				if s[end] == '\\' {
					end++
				}
				end++
			}
			end = min(end+1, len(s))
			out = append(out, s[i:end]...)
			i = end
		case strings.HasPrefix(s[i:], "Infinity"):
			out = append(out, outOfRange...)
			i += len("Infinity")
		case strings.HasPrefix(s[i:], "NaN"):
			out = append(out, outOfRange...)
			i += len("NaN")
		default:
			out = append(out, c)
			i++
		}
	}
	return out
}

// treeError is the error that DuckDB returned in place of a tree.
func treeError(tree object) error {
	if failed, _ := tree["error"].(bool); !failed {
		return nil
	}
	message, _ := tree["error_message"].(string)
	if kind, _ := tree["error_type"].(string); kind == "not implemented" {
		// The tree has a form for SELECT only.
		return fmt.Errorf("%w: only SELECT statements are", ErrNotAllowed)
	}
	return fmt.Errorf("%w: %s", ErrSyntax, message)
}
