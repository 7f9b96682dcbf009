package sqlengine

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"pgregory.net/rapid"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/series"
	"cardinalsin/txlog"
)

// Label names that a column cannot hold, that differ only in case, and that
// mean something to DuckDB or to us.
var labelPool = []string{
	"host", "Host", "zone", "bad name", "a,b", "_x", "__y__", "value", "date", "nanos", "timestamp", "labels_overflow",
	"file_index", "filename", "file_row_number", "c0", "c1", "r", "d", "cardinal_rank", "cardinal_n", "select", `quo"te`, "it's", "ünïcode", "🙂",
}

var valuePool = []string{"a", "b", "", "it's", `"`, "ü", "\\", "line\nfeed", "0", "NULL", " "}

func drawLabels(t *rapid.T) labels.Labels {
	b := labels.NewBuilder(labels.EmptyLabels())
	b.Set(series.MetricName, rapid.SampledFrom([]string{"up", "cpu", "größe"}).Draw(t, "metric"))
	for range rapid.IntRange(0, 3).Draw(t, "labels") {
		b.Set(rapid.SampledFrom(labelPool).Draw(t, "name"), rapid.SampledFrom(valuePool).Draw(t, "value"))
	}
	return b.Labels()
}

func drawSample(t *rapid.T, of series.Date) series.Sample {
	s := series.Sample{Time: of.Start() + series.Timestamp(rapid.IntRange(0, 40).Draw(t, "second"))*500_000}
	if rapid.IntRange(0, 5).Draw(t, "nanos") == 0 {
		s.Nanos = uint16(rapid.IntRange(1, 999).Draw(t, "n"))
	}
	if rapid.IntRange(0, 2).Draw(t, "started") == 0 {
		s.Start = rapid.SampledFrom([]int64{1, -1, math.MaxInt64, math.MinInt64, 1_700_000_000_123_456_789}).Draw(t, "start")
	}
	switch rapid.IntRange(0, 6).Draw(t, "kind") {
	case 0:
		s.Value = math.Float64frombits(value.StaleNaN)
	case 1:
		s.Value = math.Float64frombits(0x7ff8dead00000000 | uint64(rapid.Uint32().Draw(t, "payload")))
	case 2:
		s.Value = rapid.SampledFrom([]float64{math.Copysign(0, -1), math.Inf(1), math.Inf(-1), math.MaxFloat64, 5e-324}).Draw(t, "special")
	case 3:
		s.Histogram = rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "histogram")
		if s.Histogram == nil {
			s.Histogram = []byte{}
		}
	default:
		s.Value = rapid.Float64().Draw(t, "float")
	}
	return s
}

// drawRows are series with samples of one day, each series and instant once.
func drawRows(t *rapid.T, pool []labels.Labels, of series.Date) []series.Series {
	byLabels := map[string]*series.Series{}
	var order []string
	for range rapid.IntRange(1, 25).Draw(t, "samples") {
		l := pool[rapid.IntRange(0, len(pool)-1).Draw(t, "series")]
		s := drawSample(t, of)
		key := l.String()
		if byLabels[key] == nil {
			byLabels[key] = &series.Series{Labels: l}
			order = append(order, key)
		}
		in := &byLabels[key].Samples
		if !slices.ContainsFunc(*in, func(o series.Sample) bool { return o.Compare(s) == 0 }) {
			*in = append(*in, s)
		}
	}
	var out []series.Series
	for _, key := range order {
		s := byLabels[key]
		slices.SortFunc(s.Samples, series.Sample.Compare)
		out = append(out, *s)
	}
	return out
}

// TestSameRowsAsReader: SQL by DuckDB and the Go reader see the same rows, bit
// for bit, at every version, with and without a head, whatever overlaps.
func TestSameRowsAsReader(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		tb := newTable(t, Options{})
		pool := make([]labels.Labels, rapid.IntRange(1, 6).Draw(r, "pool"))
		for i := range pool {
			pool[i] = drawLabels(r)
		}
		days := []series.Date{day.Date(), day.Date() + 1}
		for range rapid.IntRange(0, 4).Draw(r, "flushes") {
			// A limit that is raised later leaves labels in overflow maps that
			// have a column in newer files.
			tb.maxLabels = rapid.SampledFrom([]int{0, 1, 2, chunk.DefaultMaxLabels}).Draw(r, "max labels")
			tb.flush(r, drawRows(r, pool, rapid.SampledFrom(days).Draw(r, "day"))...)
		}
		if rapid.Bool().Draw(r, "head") {
			tb.head = newHead(drawRows(r, pool, rapid.SampledFrom(days).Draw(r, "head day"))...)
		}
		want := tb.readerRows(r, txlog.Latest())
		if d := cmp.Diff(want, tb.sqlRows(r, "FROM metrics", QueryOptions{})); d != "" {
			r.Fatalf("latest (-reader +SQL):\n%s", d)
		}
		v := action.Version(rapid.IntRange(0, int(tb.snapshot(r).Version())).Draw(r, "version"))
		want = tb.readerRows(r, txlog.AtVersion(v))
		if d := cmp.Diff(want, tb.sqlRows(r, fmt.Sprintf("FROM metrics AT (VERSION => %d)", v), QueryOptions{})); d != "" {
			r.Fatalf("version %d (-reader +SQL):\n%s", v, d)
		}
		// Conditions that the engine uses to skip files, and to look for
		// duplicates in fewer rows, against the same conditions on a subquery,
		// of which it understands nothing.
		where := drawCondition(r)
		plain := tb.sqlRows(r, "SELECT * FROM (SELECT * FROM metrics) AS m WHERE "+where, QueryOptions{})
		if d := cmp.Diff(plain, tb.sqlRows(r, "SELECT * FROM metrics AS m WHERE "+where, QueryOptions{})); d != "" {
			r.Fatalf("WHERE %s (-plain +narrowed):\n%s", where, d)
		}
	})
}

// drawCondition draws what may stand in WHERE. Columns are those that every
// table has.
func drawCondition(t *rapid.T) string {
	op := func() string { return rapid.SampledFrom([]string{"=", "<", "<=", ">", ">=", "<>"}).Draw(t, "op") }
	instant := func() string {
		text := (day + series.Timestamp(rapid.IntRange(-2, 22).Draw(t, "at"))*1_000_000).Time().Format("2006-01-02 15:04:05.999999")
		return rapid.SampledFrom([]string{"'%s'", "TIMESTAMP '%s'", "TIMESTAMPTZ '%s+00'", "'%s'::TIMESTAMP + INTERVAL 1 SECOND"}).Draw(t, "form") + "\x00" + text
	}
	form := func(s string) string {
		for i := range s {
			if s[i] == 0 {
				return fmt.Sprintf(s[:i], s[i+1:])
			}
		}
		return s
	}
	one := func() string {
		name := func() string { return rapid.SampledFrom([]string{"up", "cpu", "größe", "x"}).Draw(t, "text") }
		switch rapid.IntRange(0, 13).Draw(t, "condition") {
		case 8:
			return "m.metric_name " + rapid.SampledFrom([]string{"LIKE", "NOT LIKE", "ILIKE", "GLOB"}).Draw(t, "like") + " '" + rapid.SampledFrom([]string{"u%", "_p", "%", "up", "gr__e", "g%e", `u\p`}).Draw(t, "pattern") + "'"
		case 9:
			return fmt.Sprintf(rapid.SampledFrom([]string{"metric_name SIMILAR TO '%s'", "metric_name NOT SIMILAR TO '%s'", "regexp_matches(metric_name, '%s')", "regexp_matches(metric_name, '%s', 'i')", "starts_with(metric_name, '%s')"}).Draw(t, "expression"),
				rapid.SampledFrom([]string{"u.", "^c", "(?i)UP", "up|cpu", "^(u|g)", "p$", "^u|e$", "gr..e", ""}).Draw(t, "pattern"))
		case 10:
			return "metric_name NOT IN ('" + name() + "', '" + name() + "')"
		case 11:
			return "(metric_name = '" + name() + "' AND \"timestamp\" >= " + form(instant()) + " OR NOT (metric_name <> '" + name() + "' OR date > '2026-01-02'))"
		case 12:
			return "metric_name IS " + rapid.SampledFrom([]string{"NULL", "NOT NULL"}).Draw(t, "null")
		case 0:
			return `"timestamp" ` + op() + " " + form(instant())
		case 1:
			return form(instant()) + " " + op() + ` m."timestamp"`
		case 2:
			return `m."timestamp" BETWEEN ` + form(instant()) + " AND " + form(instant())
		case 3:
			return `"timestamp" NOT BETWEEN ` + form(instant()) + " AND " + form(instant())
		case 4:
			return "metric_name " + op() + " " + rapid.SampledFrom([]string{"'up'", "'cpu'", "'größe'", "'UP' COLLATE NOCASE"}).Draw(t, "name")
		case 5:
			return "metric_name IN ('up', 'x')"
		case 6:
			return "date " + op() + " " + rapid.SampledFrom([]string{"'2026-01-02'", "DATE '2026-01-03'", "TIMESTAMP '2026-01-02 12:00:00'"}).Draw(t, "date")
		case 7:
			return "value > 0"
		}
		return "shard = '1'"
	}
	out := one()
	for range rapid.IntRange(0, 2).Draw(t, "more") {
		out += rapid.SampledFrom([]string{" AND ", " AND ", " OR ", " AND NOT ", " OR NOT "}).Draw(t, "and") + one()
	}
	return out
}
