package sqlengine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// hostile lists statements that do more than to read our tables. In each, $F
// is a text file, $P a Parquet file, $D a directory, all outside the table,
// and $T a data file of the table.
var hostile = []struct {
	sql string
	is  error
}{
	// Writes.
	{"CREATE TABLE x AS SELECT 1", ErrNotAllowed},
	{"CREATE VIEW x AS SELECT 1", ErrNotAllowed},
	{"CREATE MACRO f(a) AS a", ErrNotAllowed},
	{"CREATE SECRET (TYPE s3)", ErrNotAllowed},
	{"INSERT INTO metrics SELECT * FROM metrics", ErrNotAllowed},
	{"UPDATE metrics SET value = 1", ErrNotAllowed},
	{"DELETE FROM metrics", ErrNotAllowed},
	{"TRUNCATE metrics", ErrNotAllowed},
	{"DROP VIEW metrics", ErrNotAllowed},
	{"ALTER TABLE metrics ADD COLUMN x INT", ErrNotAllowed},
	{"MERGE INTO metrics USING metrics b ON false WHEN MATCHED THEN DELETE", ErrNotAllowed},
	{"WITH x AS (INSERT INTO metrics SELECT 1 RETURNING *) FROM x", ErrSyntax},
	{"SELECT 1 INTO x", ErrSyntax},
	{"COPY (SELECT 1) TO '$D/out.csv'", ErrNotAllowed},
	{"COPY metrics TO '$D/out.parquet'", ErrNotAllowed},
	{"COPY (SELECT 1) TO '$T' (USE_TMP_FILE false)", ErrNotAllowed},
	{"COPY metrics FROM '$F'", ErrNotAllowed},
	{"EXPORT DATABASE '$D/export'", ErrNotAllowed},
	{"IMPORT DATABASE '$D'", ErrNotAllowed},
	{"VACUUM", ErrNotAllowed},
	{"CHECKPOINT", ErrNotAllowed},
	// Other databases, extensions, settings.
	{"ATTACH '$D/x.db'", ErrNotAllowed},
	{"ATTACH ':memory:' AS x", ErrNotAllowed},
	{"DETACH memory", ErrNotAllowed},
	{"USE memory", ErrNotAllowed},
	{"INSTALL httpfs", ErrNotAllowed},
	{"LOAD httpfs", ErrNotAllowed},
	{"UPDATE EXTENSIONS", ErrNotAllowed},
	{"SET memory_limit = '100GB'", ErrNotAllowed},
	{"SET enable_external_access = true", ErrNotAllowed},
	{"RESET lock_configuration", ErrNotAllowed},
	{"SET VARIABLE x = 1", ErrNotAllowed},
	{"PRAGMA enable_profiling", ErrNotAllowed},
	{"PRAGMA database_list", ErrNotAllowed},
	{"CALL pragma_version()", ErrNotAllowed},
	{"BEGIN", ErrNotAllowed},
	{"COMMIT", ErrNotAllowed},
	{"PREPARE p AS SELECT 1", ErrNotAllowed},
	{"EXECUTE p", ErrNotAllowed},
	{"EXPLAIN SELECT 1", ErrNotAllowed},
	{"EXPLAIN ANALYZE SELECT 1", ErrNotAllowed},
	// Several statements.
	{"SELECT 1; SELECT 2", ErrNotAllowed},
	{"SELECT 1; DROP VIEW metrics", ErrNotAllowed},
	// Other files.
	{"FROM '$P'", ErrNotAllowed},
	{"FROM '$T'", ErrNotAllowed},
	{"SELECT * FROM \"$P\"", ErrNotAllowed},
	{"SELECT * FROM '$F'", ErrNotAllowed},
	{"SELECT * FROM 'x.csv'", ErrNotAllowed},
	{"SELECT * FROM 'https://example.com/x.parquet'", ErrNotAllowed},
	{"SELECT (SELECT count(*) FROM '$P')", ErrNotAllowed},
	{"SELECT 1 WHERE 1 IN (SELECT 1 FROM '$P')", ErrNotAllowed},
	{"SELECT 1 ORDER BY (SELECT count(*) FROM '$P')", ErrNotAllowed},
	{"SELECT 1 LIMIT (SELECT count(*) FROM '$P')", ErrNotAllowed},
	{"WITH x AS (FROM '$P') SELECT 1", ErrNotAllowed},
	{"SELECT * FROM (WITH \"$P\" AS (SELECT 1) SELECT 1), '$P'", ErrNotAllowed},
	{"WITH \"x.parquet\" AS (SELECT 1) FROM \"x.parquet\"", ErrNotAllowed},
	{"SELECT 1 UNION ALL SELECT count(*) FROM '$P'", ErrNotAllowed},
	{"FROM '$P' PIVOT (count(*) FOR a IN (1))", ErrNotAllowed},
	{"DESCRIBE '$P'", ErrNotAllowed},
	{"SUMMARIZE '$P'", ErrNotAllowed},
	{"FROM metrics JOIN '$P' ON true", ErrNotAllowed},
	{"FROM metrics, LATERAL (SELECT * FROM '$P')", ErrNotAllowed},
	{"SELECT * FROM read_parquet('$P')", ErrNotAllowed},
	{"SELECT * FROM parquet_scan('$T')", ErrNotAllowed},
	{"SELECT * FROM Read_CSV('$F')", ErrNotAllowed},
	{"SELECT * FROM read_csv_auto('$F')", ErrNotAllowed},
	{"SELECT * FROM read_text('$F')", ErrNotAllowed},
	{"SELECT * FROM read_blob('$F')", ErrNotAllowed},
	{"SELECT * FROM read_json('$F')", ErrNotAllowed},
	{"SELECT * FROM read_ndjson_objects('$F')", ErrNotAllowed},
	{"SELECT * FROM read_duckdb('$F')", ErrNotAllowed},
	{"SELECT * FROM sniff_csv('$F')", ErrNotAllowed},
	{"SELECT * FROM glob('$D/*')", ErrNotAllowed},
	{"SELECT * FROM parquet_metadata('$P')", ErrNotAllowed},
	{"SELECT * FROM parquet_kv_metadata('$T')", ErrNotAllowed},
	{"SELECT * FROM \"main\".\"read_text\"('$F')", ErrNotAllowed},
	{"SELECT * FROM system.main.read_text('$F')", ErrNotAllowed},
	{"SELECT * FROM metrics, read_text('$F')", ErrNotAllowed},
	// SQL inside SQL.
	{"FROM query('SELECT 42')", ErrNotAllowed},
	{"FROM query_table('metrics')", ErrNotAllowed},
	{"FROM query_table(['$P'])", ErrNotAllowed},
	{"FROM histogram_values('$P', a)", ErrNotAllowed},
	{"SELECT json_execute_serialized_sql('{}')", ErrNotAllowed},
	{"FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))", ErrNotAllowed},
	{"SELECT json_serialize_plan('SELECT * FROM read_text(''$F'')')", ErrNotAllowed},
	// The engine itself.
	{"FROM cardinal_scan(0)", ErrNotAllowed},
	{"FROM seq_scan('metrics')", ErrNotAllowed},
	{"FROM arrow_scan(0, 0, 0)", ErrNotAllowed},
	{"FROM duckdb_settings()", ErrNotAllowed},
	{"FROM duckdb_views()", ErrNotAllowed},
	{"FROM duckdb_secrets()", ErrNotAllowed},
	{"FROM duckdb_functions()", ErrNotAllowed},
	{"FROM duckdb_logs", ErrSyntax},
	{"FROM pragma_table_info('metrics')", ErrNotAllowed},
	{"FROM pragma_database_size()", ErrNotAllowed},
	{"FROM information_schema.tables", ErrNotAllowed},
	{"FROM pg_catalog.pg_class", ErrNotAllowed},
	{"FROM sqlite_master", ErrSyntax},
	{"FROM temp.metrics", ErrNotAllowed},
	{"FROM temp.metrics", ErrNotAllowed},
	{"SHOW TABLES", ErrNotAllowed},
	{"SHOW ALL TABLES", ErrNotAllowed},
	{"SHOW DATABASES", ErrNotAllowed},
	{"SELECT current_setting('allowed_paths')", ErrNotAllowed},
	{"SELECT getvariable('x')", ErrNotAllowed},
	{"SELECT getenv('HOME')", ErrSyntax}, // exists only in DuckDB's shell
	{"SELECT pg_get_viewdef(1)", ErrNotAllowed},
	{"SELECT current_query()", ErrNotAllowed},
	{"SELECT nextval('x')", ErrNotAllowed},
	{"SELECT write_log('x')", ErrNotAllowed},
	{"SELECT sleep_ms(100000)", ErrNotAllowed},
	{"SELECT x.sleep_ms() FROM (SELECT 1 AS x)", ErrNotAllowed},
	{"SELECT list_transform([1], lambda x: getvariable('y'))", ErrNotAllowed},
	{"SELECT sum(x) FILTER (current_setting('a') = 'b') FROM range(1) t(x)", ErrNotAllowed},
	{"SELECT first(x ORDER BY current_setting('a')) FROM range(1) t(x)", ErrNotAllowed},
	{"SELECT sum(x) OVER (PARTITION BY current_setting('a')) FROM range(1) t(x)", ErrNotAllowed},
	{"SELECT sum(x) OVER (ROWS current_setting('a')::INT PRECEDING) FROM range(1) t(x)", ErrNotAllowed},
	{"SELECT 1 GROUP BY ALL HAVING current_setting('a') = ''", ErrNotAllowed},
	{"FROM metrics AT (VERSION => current_setting('a')::INT)", ErrNotAllowed},
	{"FROM range((SELECT count(*) FROM '$P'))", ErrNotAllowed},
	{"FROM (VALUES ((SELECT count(*) FROM '$P')))", ErrNotAllowed},
	{"SELECT * REPLACE (current_setting('a') AS value) FROM metrics", ErrNotAllowed},
	{"SELECT COLUMNS(lambda c: c = current_setting('a')) FROM metrics", ErrNotAllowed},
	{"SELECT ARRAY(SELECT 1 FROM '$P')", ErrNotAllowed},
	{"FROM metrics m SEMI JOIN metrics n ON current_setting('a') = n.host", ErrNotAllowed},
	// What is no statement.
	{"", ErrSyntax},
	{"-- nothing", ErrSyntax},
	{"SELEC 1", ErrSyntax},
	{"SELECT 1;;;SELECT", ErrSyntax},
	{"SELECT '\x00'", ErrSyntax},
	{"SELECT '\xff'", ErrSyntax},
	{"SELECT " + strings.Repeat("abs(", 5000) + "1" + strings.Repeat(")", 5000), ErrSyntax},
	{"SELECT '" + strings.Repeat("x", maxStatementBytes) + "'", ErrSyntax},
	{"FROM nothing", ErrSyntax},
	{"FROM metrics_secret", ErrSyntax},
	{"SELECT nothing FROM metrics", ErrSyntax},
	{"SELECT no_such_function(1)", ErrSyntax},
	{"SELECT ?", ErrArgument},
	{"SELECT $x", ErrArgument},
	{"WITH x AS (SELECT 1) FROM x AT (VERSION => 1)", ErrSyntax},
	{"FROM metrics AT (VERSION => 1 + value)", ErrSyntax},
	{"FROM metrics AT (VERSION => (SELECT 1))", ErrSyntax},
	{"FROM metrics AT (VERSION => -1)", ErrSyntax},
	{"FROM metrics AT (VERSION => 'x')", ErrSyntax},
	{"FROM metrics AT (TIMESTAMP => 'x')", ErrSyntax},
	{"FROM metrics AT (TIMESTAMP => 5)", ErrSyntax},
	{"FROM metrics AT (TIMESTAMP => random())", ErrSyntax},
	{"FROM metrics AT (PLACE => 5)", ErrSyntax},
}

func TestHostileStatements(t *testing.T) {
	tb := newTable(t, Options{})
	tb.flush(t, one(1, lbl("up", "host", "a"), 1))
	fill := outside(t, tb)
	for _, c := range hostile {
		name := c.sql
		if len(name) > 100 {
			name = name[:100]
		}
		t.Run(name, func(t *testing.T) {
			_, err := tb.tryQuery(fill.Replace(c.sql), QueryOptions{})
			if !errors.Is(err, c.is) {
				t.Errorf("error is %v, want %v", err, c.is)
			}
		})
	}
	unchanged(t, fill)
}

// outside makes the files that hostile statements want.
func outside(t *testing.T, tb *table) *strings.Replacer {
	t.Helper()
	dir := t.TempDir()
	text := filepath.Join(dir, "secret.txt")
	if err := os.WriteFile(text, []byte("secret\n1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	parquet := filepath.Join(dir, "secret.parquet")
	var out bytes.Buffer
	rows, err := tb.engine.Query(context.Background(), "SELECT 1 AS a", QueryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	if _, err := FormatParquet.Write(context.Background(), &out, rows); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(parquet, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	own := tb.dataFiles(t)[0]
	return strings.NewReplacer("$F", text, "$P", parquet, "$D", dir, "$T", own)
}

// unchanged checks that nothing was written beside the files, or into them.
func unchanged(t *testing.T, fill *strings.Replacer) {
	t.Helper()
	entries, err := os.ReadDir(fill.Replace("$D"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if d := cmp.Diff([]string{"secret.parquet", "secret.txt"}, names); d != "" {
		t.Errorf("files outside the table changed:\n%s", d)
	}
	data, err := os.ReadFile(fill.Replace("$T"))
	if err != nil || !bytes.HasPrefix(data, []byte("PAR1")) {
		t.Errorf("data file of the table: %v", err)
	}
}

// TestDuckDBRefusesToo runs statements in a locked database without the check
// of the parse tree: DuckDB's own switches are the second net.
func TestDuckDBRefusesToo(t *testing.T) {
	tb := newTable(t, Options{})
	tb.flush(t, one(1, lbl("up", "host", "a"), 1))
	fill := outside(t, tb)
	ctx := context.Background()
	open := func(t *testing.T) *database {
		d, err := openDatabase(ctx, settings{threads: 1, memoryBytes: 64 << 20})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(d.close)
		if err := d.lock(ctx, []string{fill.Replace("$T")}); err != nil {
			t.Fatal(err)
		}
		return d
	}
	t.Run("own file", func(t *testing.T) {
		rows, err := open(t).rows(ctx, fill.Replace("SELECT count(*)::VARCHAR FROM '$T'"))
		if err != nil || rows[0][0] != "1" {
			t.Errorf("rows %v, error %v", rows, err)
		}
	})
	for _, sql := range []string{
		"COPY (SELECT 1) TO '$D/out.csv'",
		"COPY (SELECT 1) TO '$T'",
		"EXPORT DATABASE '$D/export'",
		"IMPORT DATABASE '$D'",
		"ATTACH '$D/x.db'",
		"INSTALL httpfs",
		"LOAD httpfs",
		"LOAD '$D/x.duckdb_extension'",
		"SET memory_limit = '100GB'",
		"SET enable_external_access = true",
		"SET allowed_paths = ['$F']",
		"SET lock_configuration = false",
		"RESET lock_configuration",
		"FROM '$P'",
		"FROM '$F'",
		"SELECT * FROM read_parquet('$P')",
		"SELECT * FROM read_parquet('$D/*.parquet')",
		"SELECT * FROM read_parquet('$T/../../../../../../secret.parquet')",
		"SELECT * FROM read_csv('$F')",
		"SELECT * FROM read_text('$F')",
		"SELECT * FROM read_blob('$F')",
		"SELECT * FROM read_json('$F')",
		"SELECT * FROM sniff_csv('$F')",
		"SELECT * FROM glob('$D/*')",
		"SELECT * FROM parquet_metadata('$P')",
		"SELECT * FROM 'https://example.com/x.parquet'",
		"SELECT json_serialize_plan('SELECT * FROM read_text(''$F'')')::VARCHAR WHERE false OR error('x') IS NULL",
	} {
		t.Run(sql, func(t *testing.T) {
			rows, err := open(t).rows(ctx, fill.Replace(sql))
			var refused *duckError
			if !errors.As(err, &refused) {
				t.Errorf("rows %v, error %v", rows, err)
			}
		})
	}
	unchanged(t, fill)
}

// TestFunctionsAreKnown holds the list of allowed functions against DuckDB's:
// what is in neither file is new and has to be looked at.
func TestFunctionsAreKnown(t *testing.T) {
	p, err := newParser(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	rows, err := p.rows(context.Background(), "SELECT DISTINCT function_name FROM duckdb_functions() WHERE function_type IN ('scalar', 'aggregate', 'macro') ORDER BY ALL")
	if err != nil {
		t.Fatal(err)
	}
	refused := readNames(t, "testdata/refused_functions.txt")
	known := map[string]bool{}
	for _, r := range rows {
		known[r[0]] = true
		if allowedFunctions()[r[0]] == slices.Contains(refused, r[0]) {
			t.Errorf("function %s: allowed is %v, and so is refused", r[0], allowedFunctions()[r[0]])
		}
	}
	for name := range allowedFunctions() {
		if !known[name] && name != "unnest" && name != "unlist" {
			t.Errorf("function %s does not exist", name)
		}
	}
	rows, err = p.rows(context.Background(), "SELECT DISTINCT function_name FROM duckdb_functions() WHERE function_type IN ('table', 'table_macro', 'pragma')")
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]tableKind{"metrics": kindRows}
	for _, r := range rows {
		_, err := p.parse(context.Background(), fmt.Sprintf("FROM %s(1)", quoteName(r[0])), names)
		if allowed := err == nil; allowed != allowedTableFunctions[r[0]] {
			t.Errorf("table function %s: %v", r[0], err)
		}
	}
}

func readNames(t *testing.T, path string) []string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(data))
}
