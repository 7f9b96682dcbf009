package sqlengine

import (
	"context"
	"fmt"
	"testing"
)

// TestUniqueRemembered: that overlapping files hold nothing twice is found out
// once for the same files and conditions, and never taken for the answer to
// another question: not after a commit, of another version, of other rows, with
// a head, or where the clock has a say.
func TestUniqueRemembered(t *testing.T) {
	tb := newTable(t, Options{})
	a, b := lbl("up", "host", "a"), lbl("up", "host", "b")
	tb.flush(t, one(1, a, 10, 30), one(1, b, 31))
	apart := tb.flush(t, one(2, a, 20, 40)) // overlaps, and no instant is there twice
	const all = "SELECT count(*), sum(value) FROM metrics"
	expect := func(sql, want string, remembered int) {
		t.Helper()
		if got := tb.query(t, sql); len(got) != 1 || got[0] != want {
			t.Errorf("%s: %q, want %q", sql, got, want)
		}
		if n := tb.engine.unique.Len(); n != remembered {
			t.Errorf("%s: %d verdicts are remembered, want %d", sql, n, remembered)
		}
	}
	// looked tells whether a query in a new database compares keys.
	looked := func(sql string) bool {
		t.Helper()
		s := &tb.engine.spares
		s.mu.Lock()
		for _, d := range s.kept {
			d.close()
		}
		s.kept = nil
		s.mu.Unlock()
		tb.query(t, sql)
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.kept) != 1 {
			t.Fatalf("%d databases are kept", len(s.kept))
		}
		rows, err := s.kept[0].rows(context.Background(), "SELECT count(*)::VARCHAR FROM duckdb_tables() WHERE table_name LIKE '%_twice'")
		if err != nil {
			t.Fatal(err)
		}
		return rows[0][0] != "0"
	}
	if !looked(all) {
		t.Error("the first query compares nothing")
	}
	expect(all, "5,7", 1)
	if looked(all) {
		t.Error("the second query compares the same files again")
	}
	expect(all+" WHERE host LIKE 'a%'", "4,6", 2)
	if looked(all + " WHERE host LIKE 'a%'") {
		t.Error("the same condition compares the same files again")
	}

	// now() is remembered by nobody.
	const until = all + " WHERE timestamp < now() + INTERVAL 100 YEAR"
	expect(until, "5,7", 2)
	if !looked(until) {
		t.Error("a condition on the clock is remembered")
	}

	// A head that holds one of the observations again: the files' verdict is
	// not that of the head.
	tb.head = newHead(one(5, a, 40))
	expect(all, "5,10", 2)
	tb.head = newHead(one(5, a, 41))
	expect(all, "6,12", 2)
	tb.head = nil
	expect(all, "5,7", 2)

	// One more file with an observation of the second: the latest wins, and
	// the older version is what it was.
	twice := tb.flush(t, one(7, a, 20), one(8, b, 35))
	expect(all, "6,20", 2)
	expect(fmt.Sprintf("%s AT (VERSION => %d)", all, int64(apart)), "5,7", 2)
	// The latter part of the same files has nothing twice. That says nothing
	// of the former.
	expect(all+" WHERE timestamp > '2026-01-02 00:00:30+00'", "3,11", 3)
	expect(all, "6,20", 3)
	// Host b alone has nothing twice. That says nothing of host a.
	expect(all+" WHERE host = 'b'", "2,9", 4)
	expect(all+" WHERE host = 'a'", "4,11", 4)
	expect(all, "6,20", 4)
	expect(fmt.Sprintf("%s AT (VERSION => %d)", all, int64(twice)), "6,20", 4)
}
