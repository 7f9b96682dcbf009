package sqlengine

import (
	"context"
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"
	"pgregory.net/rapid"

	"cardinalsin/chunk"
	"cardinalsin/series"
	"cardinalsin/storage"
	"cardinalsin/storage/cache"
	"cardinalsin/storage/mem"
	"cardinalsin/storage/meter"
)

// remoteTable is a table in a store that has no local files.
func remoteTable(t *testing.T) *table {
	t.Helper()
	return newTableIn(t, mem.New(mem.Options{}), Options{})
}

// engineOver is an engine with a cache and rules of its own.
func (tb *table) engineOver(t *testing.T, rules *excerptRules) *Engine {
	t.Helper()
	files, err := cache.Open(t.TempDir(), 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	e, err := New(context.Background(), tb.reader, Options{Files: files})
	if err != nil {
		t.Fatal(err)
	}
	e.excerpts = rules
	t.Cleanup(func() {
		e.Close()
		if err := files.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// always reads even the smallest files by excerpts.
var always = excerptRules{most: math.MaxInt64}

// answers runs a statement and returns its rows, sorted, or that it is wrong.
func (tb *table) answers(t tester, e *Engine, sql string) []string {
	t.Helper()
	tb.engine = e
	lines, err := tb.tryQuery(sql, QueryOptions{})
	if errors.Is(err, ErrSyntax) {
		return []string{"ErrSyntax"}
	}
	if err != nil {
		return []string{"error: " + err.Error()}
	}
	for i, l := range lines {
		for negativeZero.MatchString(l) { // neighbours share a comma
			l = negativeZero.ReplaceAllString(l, "${1}0$2$3")
		}
		lines[i] = l
	}
	slices.Sort(lines)
	return lines
}

// negativeZero is equal to zero: which of them stands for both is chance.
var negativeZero = regexp.MustCompile(`(^|,)-0(\.0)?(,|$)`)

// touching are statements in which {a} and {b} stand for columns, {w} for a
// condition: those that touch certain columns, and those that touch any.
var touching = []string{
	`SELECT {a} FROM metrics AS m WHERE {w}`,
	`SELECT {a}, max({b}) FROM metrics AS m WHERE {w} GROUP BY ALL ORDER BY ALL LIMIT 5`,
	`SELECT {a} FROM metrics ORDER BY COLUMNS(*)`,
	`SELECT {a}, count(*), min({b}) FROM metrics AS m WHERE {w} GROUP BY ALL`,
	`SELECT count(*) FROM metrics AS m WHERE {w}`,
	`SELECT count({a}) FILTER (WHERE {b} IS NULL) OVER () FROM metrics AS m`,
	`SELECT DISTINCT m.{a} FROM metrics AS m ORDER BY ALL LIMIT 3`,
	`SELECT x.{a}, y.{b} FROM metrics AS x JOIN metrics AS y USING ("timestamp", {a})`,
	`SELECT count(*) FROM metrics AS x NATURAL JOIN metrics AS y`,
	`SELECT {a} FROM metrics AS m UNION ALL BY NAME SELECT {b} FROM metrics AS n`,
	`WITH t AS (SELECT {a} AS q, {b} FROM metrics AS m WHERE {w}) SELECT t FROM t`,
	`SELECT q FROM (SELECT {a} FROM metrics) AS r(q)`,
	`SELECT {a} FROM metrics AS r(x1, x2)`,
	`SELECT x2 FROM metrics AS r(x1, x2)`,
	`SELECT m FROM metrics AS m WHERE {w}`,
	`SELECT metrics FROM metrics`,
	`SELECT count(DISTINCT m) FROM metrics AS m`,
	`SELECT struct_keys(m), {a} FROM metrics AS m`,
	`SELECT m.*, {a} FROM metrics AS m WHERE {w}`,
	`SELECT * EXCLUDE ({a}) FROM metrics AS m WHERE {w}`,
	`SELECT COLUMNS('e') FROM metrics AS m`,
	`SELECT count(COLUMNS(*)) FROM metrics AS m WHERE {w}`,
	`SELECT #2 FROM metrics`,
	`FROM metrics AS m WHERE {w}`,
	`SELECT EXISTS (FROM metrics AS m WHERE {w}), (SELECT min({a}) FROM metrics)`,
	`SELECT {a} FROM metrics AS m WHERE {b} = (SELECT max({b}) FROM metrics AS n WHERE n.{a} = m.{a})`,
	`SELECT {a} AS {b} FROM metrics AS m WHERE {b} IS NOT NULL`,
	`SELECT unpivoted FROM (UNPIVOT (SELECT {a}::VARCHAR AS p, {b}::VARCHAR AS r FROM metrics) ON p, r INTO NAME k VALUE unpivoted)`,
	`DESCRIBE metrics`,
	`SELECT column_name, column_type, min, max, count FROM (SUMMARIZE SELECT {a} FROM metrics)`,
	`SELECT labels_overflow['zone'], {a} FROM metrics`,
	`SELECT list_transform([1, 2], e -> e + length({a}::VARCHAR)) FROM metrics`,
	`SELECT nosuch FROM metrics`,
	`SELECT {a}.nosuch FROM metrics`,
	`SELECT metrics.main.{a} FROM metrics`,
	`SELECT cardinal.main.metrics.{a} FROM cardinal.main.metrics`,
	`SELECT {a} FROM metrics AT (VERSION => 1)`,
	`SELECT samples FROM metrics_series`,
	`SELECT {a} FROM metrics TABLESAMPLE 100%`,
	`PIVOT (SELECT {a}, 1 AS one FROM metrics) ON {a} USING sum(one)`,
}

// TestExcerptsGiveTheSameRows: a statement has the same answer whether it gets
// excerpts or whole files.
func TestExcerptsGiveTheSameRows(t *testing.T) {
	excerpts := 0
	rapid.Check(t, func(r *rapid.T) {
		tb := remoteTable(t)
		pool := make([]labels.Labels, rapid.IntRange(1, 6).Draw(r, "pool"))
		for i := range pool {
			pool[i] = drawLabels(r)
		}
		days := []series.Date{day.Date(), day.Date() + 1}
		tb.shape.RowGroupRows = 8
		for range rapid.IntRange(1, 3).Draw(r, "flushes") {
			tb.maxLabels = rapid.SampledFrom([]int{0, 1, chunk.DefaultMaxLabels}).Draw(r, "max labels")
			tb.flush(r, drawRows(r, pool, rapid.SampledFrom(days).Draw(r, "day"))...)
		}
		if rapid.Bool().Draw(r, "head") {
			tb.head = newHead(drawRows(r, pool, rapid.SampledFrom(days).Draw(r, "head day"))...)
		}
		var columns []string
		for _, f := range tb.snapshot(r).Schema().Fields {
			columns = append(columns, quoteName(f.Name))
		}
		own := tb.engine
		defer func() { tb.engine = own }()
		whole, parts := tb.engineOver(t, nil), tb.engineOver(t, &always)
		for range 6 {
			sql := strings.NewReplacer(
				"{a}", rapid.SampledFrom(columns).Draw(r, "a"), "{b}", rapid.SampledFrom(columns).Draw(r, "b"), "{w}", drawCondition(r),
			).Replace(rapid.SampledFrom(touching).Draw(r, "statement"))
			want, got := tb.answers(r, whole, sql), tb.answers(r, parts, sql)
			if d := cmp.Diff(want, got); d != "" {
				r.Fatalf("%s (-whole +excerpts):\n%s", sql, d)
			}
			if x, err := parts.Explain(context.Background(), sql, QueryOptions{}); err == nil {
				for _, s := range x.Tables {
					excerpts += s.Excerpts
				}
			}
		}
	})
	if excerpts == 0 {
		t.Error("no excerpt was made")
	}
	t.Logf("%d excerpts", excerpts)
}

// TestDuplicatesNeedWholeFiles: where observations occur twice, all labels
// decide which are the same, and not the hash of the series alone.
func TestDuplicatesNeedWholeFiles(t *testing.T) {
	tb := remoteTable(t)
	tb.flush(t, one(1, lbl("up", "host", "a"), 1, 2))
	tb.flush(t, one(2, lbl("up", "host", "b"), 1))
	e := tb.engineOver(t, &always)
	for i, want := range [][]string{{"1", "1", "2"}, {"1", "2", "3"}} {
		got := tb.answers(t, e, "SELECT value FROM metrics")
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("(-want +got)\n%s", d)
		}
		x, err := e.Explain(context.Background(), "SELECT value FROM metrics", QueryOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if s := x.Tables[0]; s.Duplicates != (i == 1) || s.Excerpts != 2*(1-i) {
			t.Errorf("explained as %+v", s)
		}
		tb.flush(t, one(3, lbl("up", "host", "a"), 1))
	}
}

// TestColumns: which statements are known to touch certain columns only.
func TestColumns(t *testing.T) {
	ctx := context.Background()
	tb := newTable(t, Options{})
	for _, c := range []struct {
		sql  string
		want string // of some names that could be columns; "all"
	}{
		{`SELECT count(*) FROM metrics`, ""},
		{`SELECT "A" FROM metrics WHERE lower(b) = 'x'`, "a b"},
		{`SELECT m.a FROM metrics m ORDER BY m.b`, "a b"},
		{`SELECT 1 FROM metrics x JOIN metrics y USING (a)`, "a"},
		{`SELECT 1 FROM metrics x ASOF JOIN metrics y USING (a, b)`, "a b"},
		{`SELECT a FROM metrics x NATURAL JOIN metrics y`, "all"},
		{`SELECT a FROM metrics x POSITIONAL JOIN metrics y`, "all"},
		{`SELECT m FROM metrics AS m`, "all"},
		{`SELECT main.metrics FROM metrics`, "all"},
		{`SELECT metrics FROM metrics AS m`, ""},
		{`SELECT a FROM metrics AS m(a, b)`, "all"},
		{`SELECT * FROM (SELECT a FROM metrics)`, "all"},
		{`SELECT a, #1 FROM metrics`, "all"},
		{`DESCRIBE SELECT a FROM metrics`, "all"},
		{`SELECT 'a' FROM metrics`, "a"},
		{`SELECT a FROM metrics GROUP BY ALL ORDER BY ALL DESC`, "a"},
		{`SELECT a FROM metrics UNION SELECT b FROM metrics ORDER BY ALL`, "a b"},
		{`SELECT a FROM metrics ORDER BY COLUMNS('b')`, "all"},
		{`SELECT a FROM metrics ORDER BY metrics.*`, "all"},
		{`SELECT a FROM metrics ORDER BY * EXCLUDE (b)`, "all"},
		{`SELECT list(a ORDER BY ALL) FROM metrics`, "all"},
	} {
		s, err := tb.engine.parsed(ctx, c.sql)
		if err != nil {
			t.Fatalf("%s: %v", c.sql, err)
		}
		names, ok := s.columns()
		got := "all"
		if ok {
			var list []string
			for _, n := range []string{"a", "b", "c"} {
				if names[n] {
					list = append(list, n)
				}
			}
			got = strings.Join(list, " ")
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.sql, got, c.want)
		}
	}
}

// TestExcerptsFetchLittle: of files of a remote store a statement fetches the
// columns and row groups that it may touch, once, and whole ones where it
// touches most of them.
func TestExcerptsFetchLittle(t *testing.T) {
	store := meter.New(mem.New(mem.Options{}), meter.Options{})
	tb := newTableIn(t, store, Options{})
	tb.shape = chunk.Options{RowGroupRows: 80_000}
	for file := range 2 {
		var batch []series.Series
		for i := range 100 {
			s := series.Series{Labels: lbl(fmt.Sprintf("m%d", i/20), "host", fmt.Sprintf("h%03d", i), "zone", fmt.Sprint(i%3))}
			for k := range 4000 {
				at := day + series.Timestamp(file*4000+k)*10_000_000
				s.Samples = append(s.Samples, series.Sample{Time: at, Value: math.Sqrt(float64(i*4000 + k))})
			}
			batch = append(batch, s)
		}
		tb.flush(t, batch...)
	}
	tb.engine = tb.engineOver(t, &defaultExcerptRules)
	var size int64
	for a := range tb.snapshot(t).Files() {
		size += a.Size
	}
	fetched := func(sql string, want []string) (bytes, calls int64) {
		t.Helper()
		before := store.Snapshot()
		got := tb.query(t, sql)
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: (-want +got)\n%s", sql, d)
		}
		after := store.Snapshot()
		for _, op := range []storage.Op{storage.OpGet, storage.OpGetRange} {
			bytes += after[op].Bytes - before[op].Bytes
			calls += after[op].Calls - before[op].Calls
		}
		return bytes, calls
	}
	count := `SELECT count(*) FROM metrics WHERE metric_name = 'm2' AND host = 'h042' AND "timestamp" < '` + (day + 5_000_000_000).Time().UTC().Format(time.RFC3339) + `'`
	bytes, calls := fetched(count, []string{"500"})
	t.Logf("%d of %d bytes in %d requests", bytes, size, calls)
	if bytes > size/20 || calls > 6 {
		t.Errorf("%d of %d bytes in %d requests", bytes, size, calls)
	}
	x, err := tb.engine.Explain(context.Background(), count, QueryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if s := x.Tables[0]; s.Excerpts != 1 || s.Files != 1 || s.ExcerptBytes <= 0 || s.ExcerptBytes > s.Bytes/10 || s.RowGroups != 5 || s.RowGroupsSkipped != 4 {
		t.Errorf("explained as %+v", s)
	}
	if bytes, calls = fetched(count, []string{"500"}); calls > 1 { // is there a next version?
		t.Errorf("again: %d bytes in %d requests", bytes, calls)
	}
	// All columns: the file that is not there yet, whole.
	all := `SELECT count(*) FROM (SELECT DISTINCT * FROM metrics WHERE "timestamp" >= '` + (day + 40_000_000_000).Time().UTC().Format(time.RFC3339) + `')`
	if bytes, _ = fetched(all, []string{"400000"}); bytes < size/3 || bytes > 2*size/3 {
		t.Errorf("all columns: %d of %d bytes", bytes, size)
	}
	if x, err = tb.engine.Explain(context.Background(), all, QueryOptions{}); err != nil || x.Tables[0].Excerpts != 0 {
		t.Errorf("all columns: %+v, %v", x, err)
	}
	// It is there now, and needs no excerpt.
	if _, calls = fetched(`SELECT max("timestamp") IS NULL FROM metrics WHERE host = 'none'`, []string{"true"}); calls > 3 {
		t.Errorf("%d requests", calls)
	}
}
