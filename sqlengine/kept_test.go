package sqlengine

import (
	"context"
	"fmt"
	"sync"
	"testing"
)

// TestKeptDatabases: a database that is used again gives each query the rows of
// its own version, head and condition, whatever the one before it read; on other
// files it is not used; and one that did not end well is not kept.
func TestKeptDatabases(t *testing.T) {
	tb := newTable(t, Options{})
	first := tb.flush(t, one(1, lbl("up", "host", "a"), 1, 2), one(2, lbl("down", "host", "b"), 3))
	tb.flush(t, one(3, lbl("up", "host", "c"), 4))
	kept := func() int {
		tb.engine.spares.mu.Lock()
		defer tb.engine.spares.mu.Unlock()
		return len(tb.engine.spares.kept)
	}
	expect := func(t testing.TB, sql, want string) {
		t.Helper()
		if got := tb.query(t, sql); len(got) != 1 || got[0] != want {
			t.Errorf("%s: %q, want %q", sql, got, want)
		}
	}
	const all = "SELECT count(*) FROM metrics"
	past := fmt.Sprintf("%s AT (VERSION => %d)", all, int64(first))
	for range 2 {
		expect(t, all, "4")
		expect(t, past, "3")
		expect(t, all+" WHERE metric_name = 'up'", "3")
		expect(t, all+" WHERE value > 1.5", "2")
		expect(t, "SELECT count(*) FROM metrics_series", "3")
		expect(t, "SELECT count(*) FROM metrics m JOIN metrics_series s USING (series_id)", "4")
	}
	if n := kept(); n == 0 || n > maxKept {
		t.Errorf("%d databases are kept", n)
	}
	tb.head = newHead(one(9, lbl("up", "host", "new"), 5, 6))
	expect(t, all, "6")
	expect(t, past, "3")
	tb.head = newHead(one(9, lbl("up", "host", "new"), 5, 6, 7))
	expect(t, all, "7")
	tb.head = nil
	expect(t, all, "4")

	// A query that is left in the middle, or fails, leaves none behind.
	tb.engine.spares.mu.Lock()
	for _, d := range tb.engine.spares.kept {
		d.close()
	}
	tb.engine.spares.kept = nil
	tb.engine.spares.mu.Unlock()
	rows, err := tb.engine.Query(context.Background(), "SELECT value FROM metrics, range(1000000)", QueryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	rows.Close()
	if _, err := tb.tryQuery("SELECT error('no') FROM metrics", QueryOptions{}); err == nil {
		t.Error("no error")
	}
	if n := kept(); n > 0 {
		t.Errorf("%d databases are kept", n)
	}
	expect(t, all, "4")

	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			for range 5 {
				sql, want := all, "4"
				if i%2 == 0 {
					sql, want = past, "3"
				}
				if got, err := tb.tryQuery(sql, QueryOptions{}); err != nil || len(got) != 1 || got[0] != want {
					t.Errorf("%s: %q, %v; want %q", sql, got, err, want)
				}
			}
		})
	}
	group.Wait()
	tb.engine.Close()
	if n := kept(); n != 0 {
		t.Errorf("%d databases are left", n)
	}
}
