package sqlengine

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cardinalsin/series"
)

// TestOneFileIsPlain: DuckDB knows of a file that is read alone what it would
// know of it without us: from the footer it has the number of rows, without
// which it does not use more than one thread. Files that are read together have
// an estimate.
func TestOneFileIsPlain(t *testing.T) {
	tb := newTable(t, Options{})
	var rows []series.Series
	for i := range 300 {
		rows = append(rows, one(float64(i), lbl("cpu", "host", fmt.Sprint(i)), 0))
	}
	tb.flush(t, rows...)
	tb.flush(t, one(1, lbl("cpu", "host", "late", "zone", "z"), 1))

	// DuckDB takes a filter to leave a fifth.
	for _, c := range []struct{ name, where, rows, got string }{
		{"old file, without a column", "timestamp <= '2026-01-02 00:00:00'", "~60 rows", "300,0,44850"},
		{"new file", "timestamp > '2026-01-02 00:00:00.5'", "~1 row ", "1,1,1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			x, err := tb.engine.Explain(context.Background(), "SELECT value, zone FROM metrics WHERE "+c.where, QueryOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if x.Tables[0].Files != 1 || !strings.Contains(x.Plan, "READ_PARQUET") {
				t.Fatalf("%d files, plan\n%s", x.Tables[0].Files, x.Plan)
			}
			if !strings.Contains(x.Plan, c.rows) {
				t.Errorf("the plan does not say %q:\n%s", c.rows, x.Plan)
			}
			got := tb.query(t, "SELECT count(*), count(zone), sum(value) FROM metrics WHERE "+c.where)
			if diff := cmp.Diff([]string{c.got}, got); diff != "" {
				t.Errorf("rows (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("both", func(t *testing.T) {
		x, err := tb.engine.Explain(context.Background(), "SELECT value FROM metrics", QueryOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if x.Tables[0].Files != 2 || !strings.Contains(strings.ReplaceAll(x.Plan, ",", ""), fmt.Sprintf("~%d rows", x.Tables[0].Bytes/2)) {
			t.Errorf("%d files, plan\n%s", x.Tables[0].Files, x.Plan)
		}
	})
}
