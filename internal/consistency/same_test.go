package consistency

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"pgregory.net/rapid"

	"cardinalsin"
	"cardinalsin/action"
	"cardinalsin/api/prom"
	"cardinalsin/series"
	"cardinalsin/sqlengine"
	"cardinalsin/txlog"
)

// What a label may be called, and be worth. All of them have columns.
var (
	metricPool = []string{"up", "cpu", "größe"}
	namePool   = []string{"pod", "zone", "value", "_x"}
	valuePool  = []string{"a", "b", "ab", "a.b", "ü", `"`, "line\nfeed"}
	exprPool   = []string{"a.*", ".*", ".+", "a|b", "a|", "(?i)A.*", "[ab]+", "a.b", "", "nothing"}
)

// TestPromQLEqualsSQL: for random writes – out of order, doubled, overwritten,
// stale – flushes, compactions and restores, at random versions, PromQL's
// storage and a SELECT yield the same series with the same samples for the same
// selector.
func TestPromQLEqualsSQL(t *testing.T) {
	compared, nonEmpty := 0, 0
	rapid.Check(t, func(r *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "table-")
		if err != nil {
			r.Fatalf("%v", err)
		}
		db := process(r, dir, ingests(dir))
		defer closeDB(r, db)
		engine, err := sqlengine.New(context.Background(), db.Reader, sqlengine.Options{})
		if err != nil {
			r.Fatalf("open SQL engine: %v", err)
		}
		defer engine.Close()
		mutate(r, db)
		for range 6 {
			q := drawQuestion(r, db)
			byPromQL, byEngine := askPromQL(r, db, q), askSQL(r, engine, q)
			if d := cmp.Diff(byPromQL, byEngine); d != "" {
				r.Fatalf("%s (-PromQL +SQL):\n%s", q, d)
			}
			if compared++; len(byPromQL) > 0 {
				nonEmpty++
			}
		}
	})
	t.Logf("%d selections compared, %d of them not empty", compared, nonEmpty)
	if nonEmpty == 0 {
		t.Error("nothing was ever selected")
	}
}

// mutate changes a table at random, by what processes do to it.
func mutate(t *rapid.T, db *cardinalsin.DB) {
	ctx := context.Background()
	must := func(what string, err error) {
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	for range rapid.IntRange(1, 10).Draw(t, "operations") {
		switch rapid.SampledFrom([]string{"append", "append", "append", "flush", "flush", "compact", "restore"}).Draw(t, "operation") {
		case "append":
			must("append", db.Writer.Append(ctx, drawBatch(t)))
		case "flush":
			must("flush", db.Writer.Flush(ctx))
		case "compact":
			_, err := db.Compactor.RunAll(ctx)
			must("compact", err)
		case "restore":
			must("flush", db.Writer.Flush(ctx)) // what it takes out must be in the table
			s, err := db.Log.Snapshot(ctx, txlog.Latest())
			must("snapshot", err)
			v := action.Version(rapid.IntRange(0, int(s.Version())).Draw(t, "restored"))
			p, err := db.Log.PlanRestore(ctx, v)
			must("plan restore", err)
			_, err = p.Commit(ctx)
			must("restore", err)
		}
	}
}

// drawBatch draws what one client may send: any order, any instant again, with
// another value.
func drawBatch(t *rapid.T) series.Batch {
	var b series.Batch
	seen := map[string]bool{}
	for range rapid.IntRange(1, 5).Draw(t, "series") {
		set := map[string]string{series.MetricName: rapid.SampledFrom(metricPool).Draw(t, "metric")}
		for range rapid.IntRange(0, 2).Draw(t, "labels") {
			set[rapid.SampledFrom(namePool).Draw(t, "name")] = rapid.SampledFrom(valuePool).Draw(t, "value")
		}
		s := series.Series{Labels: labels.FromMap(set)}
		if seen[describe(s.Labels)] {
			continue
		}
		seen[describe(s.Labels)] = true
		for range rapid.IntRange(1, 6).Draw(t, "samples") {
			p := sample(rapid.IntRange(0, 30).Draw(t, "at"), rapid.SampledFrom([]float64{
				0, 1, math.Copysign(0, -1), math.Inf(1), math.NaN(), math.Float64frombits(value.StaleNaN), 0.1, 1e300,
			}).Draw(t, "v"))
			if rapid.IntRange(0, 3).Draw(t, "next day") == 0 {
				p.Time += 24 * 3600 * 1_000_000
			}
			s.Samples = append(s.Samples, p)
		}
		b = append(b, s)
	}
	return b
}

// question is one selection.
type question struct {
	at         txlog.At
	name       string // of at
	mint, maxt int64  // ms, inclusive
	matchers   []*labels.Matcher
}

func (q question) String() string {
	return fmt.Sprintf("%v from %d to %d at %s", q.matchers, q.mint, q.maxt, q.name)
}

func drawQuestion(t *rapid.T, db *cardinalsin.DB) question {
	q := question{at: txlog.Latest(), name: "latest"}
	if rapid.Bool().Draw(t, "past") {
		s, err := db.Log.Snapshot(context.Background(), txlog.Latest())
		if err != nil {
			t.Fatalf("snapshot: %v", err)
		}
		v := rapid.IntRange(0, int(s.Version())).Draw(t, "version")
		q.at, q.name = txlog.AtVersion(action.Version(v)), fmt.Sprint("version ", v)
	}
	first := start.Millis()
	q.mint, q.maxt = first, first+48*3600*1000
	if rapid.IntRange(0, 3).Draw(t, "range") == 0 {
		q.mint += int64(rapid.IntRange(-1, 20).Draw(t, "from"))
		q.maxt = q.mint + int64(rapid.IntRange(0, 20).Draw(t, "for"))
	}
	for range rapid.SampledFrom([]int{0, 1, 1, 2}).Draw(t, "matchers") {
		kind := rapid.SampledFrom([]labels.MatchType{labels.MatchEqual, labels.MatchNotEqual, labels.MatchRegexp, labels.MatchNotRegexp}).Draw(t, "kind")
		name, values := rapid.SampledFrom(namePool).Draw(t, "label"), append([]string{""}, valuePool...)
		if rapid.IntRange(0, 2).Draw(t, "by name") == 0 {
			name, values = series.MetricName, metricPool
		}
		if kind == labels.MatchRegexp || kind == labels.MatchNotRegexp {
			values = exprPool
		}
		q.matchers = append(q.matchers, labels.MustNewMatcher(kind, name, rapid.SampledFrom(values).Draw(t, "operand")))
	}
	return q
}

// askPromQL asks what upstream's engine asks.
func askPromQL(t *rapid.T, db *cardinalsin.DB, q question) []string {
	ctx := prom.AtContext(context.Background(), q.at)
	querier, err := prom.NewQueryable(db.Reader).Querier(q.mint, q.maxt)
	if err != nil {
		t.Fatalf("querier: %v", err)
	}
	defer querier.Close()
	set := querier.Select(ctx, false, &storage.SelectHints{Start: q.mint, End: q.maxt}, q.matchers...)
	var out []string
	for set.Next() {
		s := set.At()
		it := s.Iterator(nil)
		for it.Next() == chunkenc.ValFloat {
			ms, v := it.At()
			out = append(out, line(describe(s.Labels()), ms, math.Float64bits(v)))
		}
		if it.Err() != nil {
			t.Fatalf("%s: iterate: %v", q, it.Err())
		}
	}
	if set.Err() != nil {
		t.Fatalf("%s: select: %v", q, set.Err())
	}
	slices.Sort(out)
	return out
}

func line(labels string, ms int64, bits uint64) string {
	return fmt.Sprintf("%s %d %016x", labels, ms, bits)
}

// columnOf is the column of a label, by contract 5.
func columnOf(label string) string {
	switch label {
	case series.MetricName:
		return "metric_name"
	case "value", "_x":
		label = "_" + label
	}
	return `"` + label + `"`
}

// askSQL asks the same in SQL. A label that has no column at that version is
// null in every row.
func askSQL(t *rapid.T, engine *sqlengine.Engine, q question) []string {
	ctx := context.Background()
	opts := sqlengine.QueryOptions{At: q.at}
	x, err := engine.Query(ctx, "SELECT * FROM metrics LIMIT 0", opts)
	if err != nil {
		t.Fatalf("%s: columns: %v", q, err)
	}
	have := map[string]bool{}
	for _, c := range x.Columns() {
		have[`"`+c.Name+`"`], have[c.Name] = true, true
	}
	x.Close()
	value := func(label string) string {
		if c := columnOf(label); have[c] {
			return c
		}
		return "NULL::VARCHAR"
	}
	sql := "SELECT epoch_us(\"timestamp\") // 1000, value, metric_name"
	for _, n := range namePool {
		sql += ", " + value(n)
	}
	sql += " FROM metrics AS m WHERE \"timestamp\" >= " + instant(q.mint) + " AND \"timestamp\" <= " + instant(q.maxt)
	for _, m := range q.matchers {
		sql += " AND " + condition(value(m.Name), m)
	}
	rows, err := engine.Query(ctx, sql, opts)
	if err != nil {
		t.Fatalf("%s: %s: %v", q, sql, err)
	}
	defer rows.Close()
	return lines(t, ctx, rows)
}

// instant is a millisecond as SQL has it.
func instant(ms int64) string {
	return "TIMESTAMPTZ '" + series.FromMillis(ms).Time().Format("2006-01-02 15:04:05.000") + "+00'"
}

// condition says in SQL what a matcher says: an absent label is an empty one.
func condition(column string, m *labels.Matcher) string {
	text := "'" + strings.ReplaceAll(m.Value, "'", "''") + "'"
	switch m.Type {
	case labels.MatchEqual:
		if m.Value != "" {
			return column + " = " + text // in the form that files are skipped by
		}
		return column + " IS NULL"
	case labels.MatchNotEqual:
		return column + " IS DISTINCT FROM " + map[bool]string{true: "NULL", false: text}[m.Value == ""]
	case labels.MatchRegexp:
		return "regexp_full_match(coalesce(" + column + ", ''), " + text + ", 's')"
	}
	return "NOT regexp_full_match(coalesce(" + column + ", ''), " + text + ", 's')"
}

// lines prints rows of (ms, value, metric, labels…) as askPromQL prints samples.
func lines(t *rapid.T, ctx context.Context, rows *sqlengine.Rows) []string {
	var out []string
	for {
		r, err := rows.Next(ctx)
		if errors.Is(err, io.EOF) {
			slices.Sort(out)
			return out
		}
		if err != nil {
			t.Fatalf("rows: %v", err)
		}
		ms, values := r.Column(0).(*array.Int64), r.Column(1).(*array.Float64)
		for i := range int(r.NumRows()) {
			set := map[string]string{series.MetricName: r.Column(2).ValueStr(i)}
			for k, n := range namePool {
				if c := r.Column(3 + k); !c.IsNull(i) {
					set[n] = c.ValueStr(i)
				}
			}
			out = append(out, line(describe(labels.FromMap(set)), ms.Value(i), math.Float64bits(values.Value(i))))
		}
		r.Release()
	}
}
