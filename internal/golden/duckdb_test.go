package golden

import (
	"encoding/csv"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	duckdb "github.com/duckdb/duckdb-go-bindings"
)

// judge is a DuckDB that knows nothing of Delta. It compares Parquet files.
type judge struct {
	db   duckdb.Database
	conn duckdb.Connection
	dir  string
}

func newJudge(t testing.TB) *judge {
	t.Helper()
	j := &judge{dir: t.TempDir()}
	if duckdb.Open("", &j.db) == duckdb.StateError || duckdb.Connect(j.db, &j.conn) == duckdb.StateError {
		t.Fatal("open DuckDB")
	}
	t.Cleanup(func() {
		duckdb.Disconnect(&j.conn)
		duckdb.Close(&j.db)
	})
	if _, err := j.ask("SELECT 1"); err != nil {
		t.Fatal(err)
	}
	if err := j.do("SET TimeZone = 'UTC'"); err != nil {
		t.Fatal(err)
	}
	return j
}

func (j *judge) do(sql string) error {
	var r duckdb.Result
	defer duckdb.DestroyResult(&r)
	if duckdb.Query(j.conn, sql, &r) == duckdb.StateError {
		return fmt.Errorf("%s: %s", sql, duckdb.ResultError(&r))
	}
	return nil
}

// ask returns the rows of a SELECT as text. Nulls are empty.
func (j *judge) ask(sql string) ([][]string, error) {
	file := filepath.Join(j.dir, "answer.csv")
	if err := j.do("COPY (" + sql + ") TO " + text(file) + " (FORMAT csv, HEADER false)"); err != nil {
		return nil, err
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	rows, err := csv.NewReader(f).ReadAll()
	return rows, errors.Join(err, f.Close())
}

func text(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
func name(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }

func texts(list []string) string {
	quoted := make([]string, len(list))
	for i, s := range list {
		quoted[i] = text(s)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// sameRows compares our rows with the expected ones, as multisets and under
// our types, but for some columns. It returns the columns that only one side
// has.
func (j *judge) sameRows(ours string, expected, without []string) (missing []string, err error) {
	from := func(files string) string {
		return "read_parquet(" + files + ", union_by_name = true, hive_partitioning = false)"
	}
	a, b := from(texts([]string{ours})), from(texts(expected))
	describe := func(from string) (map[string]string, []string, error) {
		rows, err := j.ask("SELECT column_name, column_type FROM (DESCRIBE SELECT * FROM " + from + ")")
		types, order := map[string]string{}, []string{}
		for _, r := range rows {
			types[r[0]] = r[1]
			order = append(order, r[0])
		}
		return types, order, err
	}
	types, order, err := describe(a)
	if err != nil {
		return nil, err
	}
	theirs, theirOrder, err := describe(b)
	if err != nil {
		return nil, err
	}
	var left, right []string
	for _, c := range order {
		if slices.Contains(without, c) {
			continue
		}
		if theirs[c] == "" {
			missing = append(missing, c+" (only ours)")
			continue
		}
		left = append(left, name(c))
		right = append(right, "CAST("+name(c)+" AS "+types[c]+")")
	}
	for _, c := range theirOrder {
		if types[c] == "" {
			missing = append(missing, c+" (only expected)")
		}
	}
	if len(left) == 0 {
		return missing, errors.New("no column in common")
	}
	x, y := "SELECT "+strings.Join(left, ", ")+" FROM "+a, "SELECT "+strings.Join(right, ", ")+" FROM "+b
	for _, pair := range [][3]string{{x, y, "ours, not expected"}, {y, x, "expected, not ours"}} {
		rows, err := j.ask("SELECT * FROM (" + pair[0] + " EXCEPT ALL " + pair[1] + ") LIMIT 3")
		if err != nil {
			return missing, err
		}
		if len(rows) > 0 {
			return missing, fmt.Errorf("rows %s: %q", pair[2], rows)
		}
	}
	return missing, nil
}
