package sqlengine

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"cardinalsin/txlog"
)

func TestSmoke(t *testing.T) {
	tb := newTable(t, Options{})
	if got := tb.query(t, "SELECT count(*) FROM metrics"); got[0] != "0" {
		t.Fatalf("empty: %v", got)
	}
	tb.flush(t, one(1, lbl("up", "host", "a"), 1, 2, 3), one(2, lbl("up", "host", "b"), 1, 2, 3))
	v := tb.flush(t, one(3, lbl("up", "host", "a"), 3, 4), one(2, lbl("down", "zone", "b"), 1, 2, 3))
	tb.head = newHead(one(9, lbl("up", "host", "a"), 4, 5), one(7, lbl("new", "region", "x", "bad name", "y"), 5))
	for _, q := range []string{
		"SELECT * FROM metrics ORDER BY ALL",
		"SELECT count(*) FROM this_table",
		"SELECT count(*) FROM metrics AT (VERSION => 1)",
		"SELECT a.value, b.value FROM metrics a AT (VERSION => 1) JOIN metrics b USING (series_id, timestamp)",
		"SELECT * FROM metrics_files",
		"SELECT * FROM metrics_shards",
		"SELECT * FROM metrics_log",
		"SELECT * FROM metrics_series",
		"DESCRIBE metrics",
		"SELECT * FROM metrics WHERE host='a' AND timestamp > '2026-01-02 00:00:02' ORDER BY timestamp",
	} {
		t.Log(q)
		for _, l := range tb.query(t, q) {
			t.Log("   ", l)
		}
	}
	if d := cmp.Diff(tb.readerRows(t, txlog.Latest()), tb.sqlRows(t, "FROM metrics", QueryOptions{})); d != "" {
		t.Errorf("differ: %s", d)
	}
	if d := cmp.Diff(tb.readerRows(t, txlog.AtVersion(v)), tb.sqlRows(t, "FROM metrics", QueryOptions{At: txlog.AtVersion(v)})); d != "" {
		t.Errorf("differ: %s", d)
	}
}
