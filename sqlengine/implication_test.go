package sqlengine

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestSkipping: which files a condition leaves, and that the rows are those of
// the same condition where nothing can be skipped. File i holds up on host
// web-i, at second i; the last one has no host.
func TestSkipping(t *testing.T) {
	const files = 5
	tb := newTable(t, Options{Threads: 1})
	for i := range files {
		l := lbl("up", "host", fmt.Sprintf("web-%d", i), "zone", fmt.Sprint(i%2))
		if i == files-1 {
			l = lbl("up", "zone", "0")
		}
		tb.flush(t, one(float64(i), l, int64(i)))
	}
	at := func(s int) string { return fmt.Sprintf("'2026-01-02 00:00:0%d'", s) }
	for _, c := range []struct {
		where string
		read  int
		rows  int
	}{
		{"host = 'web-1'", 1, 1},
		{"'web-1' = host", 1, 1},
		{"NOT host <> 'web-1'", 1, 1},
		{"host <> 'web-1'", 4, 3}, // the file without hosts is not sure to have none
		{"host IN ('web-1', 'web-3', 'web-9')", 2, 2},
		{"host NOT IN ('web-1', 'web-3')", 3, 2},
		{"NOT (host NOT IN ('web-1', 'web-3'))", 2, 2},
		{"host = 'web-1' OR host = 'web-2'", 2, 2},
		{"host = 'web-1' OR value = 2", 5, 2},
		{"NOT (host = 'web-1' OR host = 'web-2')", 3, 2},
		{"NOT (host <> 'web-1' AND host <> 'web-2')", 2, 2},
		{"host = 'web-1' AND zone = '1' OR host = 'web-2' AND zone = '0'", 2, 2},
		{"host = 'web-1' OR timestamp = " + at(2), 5, 2},
		{"timestamp = " + at(1) + " OR timestamp = " + at(2), 2, 2},
		{"timestamp IN (" + at(1) + ", " + at(2) + ")", 2, 2},
		{"timestamp < " + at(1) + " OR timestamp BETWEEN " + at(3) + " AND " + at(2), 1, 1},
		{"NOT (timestamp < " + at(2) + " OR timestamp > " + at(3) + ")", 2, 2},
		{"NOT (timestamp NOT BETWEEN " + at(2) + " AND " + at(3) + ")", 2, 2},
		{"host LIKE 'web-1'", 1, 1},
		{"host LIKE 'web%'", 4, 4},
		{"host LIKE 'db%'", 0, 0},
		{"NOT host NOT LIKE 'web-_'", 4, 4},
		{"host NOT LIKE 'web-1'", 5, 3},
		{"host ILIKE 'WEB-1'", 5, 1},
		{"host SIMILAR TO 'web-(1|2)'", 2, 2},
		{"host ~ 'web-[23]'", 2, 2},
		{"host NOT SIMILAR TO 'web-(1|2)'", 5, 2},
		{"regexp_matches(host, '-1$')", 1, 1},
		{"regexp_matches(host, '^db')", 0, 0},
		{"regexp_matches(host, '^DB|WEB-2', 'i')", 5, 1},
		{"regexp_matches(host, '(?i)WEB-2')", 5, 1},
		{"starts_with(host, 'web-2')", 1, 1},
		{"host ^@ 'x'", 0, 0},
		{"host IS NULL", 1, 1},
		{"host IS NOT NULL", 5, 4},
		{"NOT host IS NOT NULL", 1, 1},
		{"host IS NULL OR host = 'web-1'", 2, 2},
		{"(host = 'web-1') IS NULL", 5, 1},
		{"(host = 'web-1') IS NOT TRUE", 5, 4},
		{"coalesce(host, 'web-1') = 'web-1'", 5, 2},
		{"lower(host) = 'web-1'", 5, 1},
		{"CASE WHEN host = 'web-1' THEN false ELSE true END", 5, 4},
		{"metric_name = 'up' AND host = 'web-1'", 1, 1},
		{"metric_name LIKE 'cpu%'", 0, 0},
	} {
		t.Run(c.where, func(t *testing.T) {
			sql := "SELECT value FROM metrics WHERE " + c.where + " ORDER BY ALL"
			x, err := tb.engine.Explain(context.Background(), sql, QueryOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if got := x.Tables[0].Files; got != c.read {
				t.Errorf("%d files read, want %d", got, c.read)
			}
			want := tb.sqlRowsAsText(t, "SELECT value FROM (SELECT * FROM metrics) WHERE "+c.where+" ORDER BY ALL")
			if d := cmp.Diff(want, tb.sqlRowsAsText(t, sql)); d != "" || len(want) != c.rows {
				t.Errorf("%d rows, want %d (-plain +skipped):\n%s", len(want), c.rows, d)
			}
		})
	}
	// Two references are one table: what either asks for is read.
	x, err := tb.engine.Explain(context.Background(), "FROM (FROM metrics WHERE host = 'web-1') UNION ALL FROM (FROM metrics WHERE host = 'web-3' AND zone = '1')", QueryOptions{})
	if err != nil || x.Tables[0].Files != 2 {
		t.Errorf("%d files read, want 2: %v", x.Tables[0].Files, err)
	}
}

// TestRowGroupsAreCounted: row groups hold 64 rows here.
func TestRowGroupsAreCounted(t *testing.T) {
	tb := newTable(t, Options{Threads: 1})
	var at []int64
	for i := range int64(300) {
		at = append(at, i)
	}
	tb.flush(t, one(1, lbl("up"), at...))
	x, err := tb.engine.Explain(context.Background(), "FROM metrics WHERE timestamp < '2026-01-02 00:01:00'", QueryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := x.Tables[0]; got.RowGroups != 5 || got.RowGroupsSkipped != 4 || got.Bytes == 0 {
		t.Errorf("got %+v", got)
	}
}

// sqlRowsAsText returns the rows, of which there may be none.
func (tb *table) sqlRowsAsText(t *testing.T, sql string) []string {
	t.Helper()
	text, err := tb.text(sql, FormatNDJSON, QueryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(text) {
		out = append(out, line)
	}
	return out
}
