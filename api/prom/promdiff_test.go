package prom

import (
	"context"
	"fmt"
	"maps"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/prompb"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"

	"cardinalsin/compactor"
	"cardinalsin/index"
	"cardinalsin/series"
)

// diffCorpus adds to corpus what only some queries look at: gaps, series that
// come late or end early, histograms of all kinds, floats and histograms in one
// series, counters that reset in them, and series enough for limits and ties.
func diffCorpus(t testing.TB) []series.Series {
	t.Helper()
	all := corpus(t)
	stale := math.Float64frombits(value.StaleNaN)
	const start = -10 * time.Minute
	native := func(from time.Duration, ls labels.Labels, hs ...*histogram.Histogram) {
		s := series.Series{Labels: ls}
		for i, h := range hs {
			p := prompb.FromIntHistogram(0, h)
			s.Samples = append(s.Samples, series.Sample{Time: series.FromMillis(at(from) + int64(i)*15_000), Histogram: marshalHistogram(t, &p)})
		}
		all = append(all, s)
	}
	gap := floats(start, lbl("gap", "job", "api"), 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
	gap.Samples = append(gap.Samples, floats(2*time.Minute, lbl("gap"), 20, 21, 22).Samples...)
	all = append(all, gap,
		floats(time.Minute, lbl("late", "job", "api"), 5, 6, 7, 8, stale, 9, stale),
		floats(start, lbl("special"), 0, math.Copysign(0, -1), math.Inf(1), math.Inf(-1), math.NaN(), 5e-324, math.MaxFloat64, 1e-9, 123456789.125),
		floats(start, lbl("angle", "of", "a"), 0, 0.5, 1, -1, 3, 90, 180),
		floats(start, lbl("target_info", "instance", "a:1", "job", "api", "version", "1.2"), 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1),
		floats(start, lbl("stamp"), 1767225600, 1767312000.5, 951782400, -1, 1e10),
	)
	for i := range 12 {
		var values []float64
		for k := range 60 {
			values = append(values, float64((i*7+k*(i%3+1))%23)+float64(i)/100)
		}
		all = append(all, floats(start, lbl("many", "i", fmt.Sprint(i), "even", fmt.Sprint(i%2 == 0), "host", fmt.Sprintf("h%02d", i/3)), values...))
	}
	for _, job := range []string{"api", "db"} {
		for k, le := range []string{"0.1", "0.5", "1", "5", "+Inf"} {
			var values []float64
			for i := range 70 {
				values = append(values, float64(i*(k+1)*len(job)))
			}
			all = append(all, floats(start, lbl("dur_bucket", "job", job, "le", le), values...))
		}
	}
	custom := tsdbutil.GenerateTestCustomBucketsHistograms(40)
	native(start, lbl("custom", "job", "api"), custom...)
	resets := tsdbutil.GenerateTestHistograms(40)
	native(start, lbl("resets", "job", "api"), slices.Concat(resets[:20], resets[:20])...)
	native(time.Minute, lbl("resets", "job", "db"), resets[5:12]...)
	// Floats, then histograms, then floats: upstream warns where they meet.
	mixed := floats(start, lbl("mixed", "job", "api"), 1, 2, 3, 4, 5, 6, 7, 8)
	for i, h := range tsdbutil.GenerateTestHistograms(20) {
		p := prompb.FromIntHistogram(0, h)
		mixed.Samples = append(mixed.Samples, series.Sample{Time: series.FromMillis(at(start) + int64(8+i)*15_000), Histogram: marshalHistogram(t, &p)})
	}
	mixed.Samples = append(mixed.Samples, floats(start+28*15*time.Second, lbl("mixed"), 3, 2, 1, 7, 9).Samples...)
	all = append(all, mixed)
	return all
}

// spread stores series in every way at once: in compacted and indexed files, in
// files as they were flushed, and in the head, most series in more than one.
func spread(t testing.TB, tb *table, all []series.Series) {
	t.Helper()
	ctx := context.Background()
	part := func(k int) (batch []series.Series) {
		for i, s := range all {
			n := len(s.Samples)
			cuts := []int{0, n / 4, n / 2, 3 * n / 4, n}
			if i%5 == 0 { // all of it in one place
				cuts = []int{0, 0, 0, 0, 0}
				for j := range cuts[i/5%4+1:] {
					cuts[i/5%4+1+j] = n
				}
			}
			if cuts[k] < cuts[k+1] {
				batch = append(batch, series.Series{Labels: s.Labels, Samples: s.Samples[cuts[k]:cuts[k+1]]})
			}
		}
		return batch
	}
	for k := range 4 {
		tb.append(t, part(k)...)
		if k < 3 {
			tb.flush(t)
		}
		if k != 1 {
			continue
		}
		jobs, err := compactor.NewRunner(tb.log, nil, "test", compactor.Options{Policy: compactor.Policy{All: true, Settle: 1}}).RunAll(ctx)
		if err != nil {
			t.Fatal(err)
		}
		indexed, err := index.NewRunner(tb.log, index.RunnerOptions{Policy: index.Policy{Eager: true}}).RunAll(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if len(jobs) == 0 || len(indexed) == 0 {
			t.Fatalf("%d compactions, %d index jobs", len(jobs), len(indexed))
		}
	}
}

// diffQueries are the queries of TestPromQLDiff: of what upstream's parser
// knows, nothing can be left out.
func diffQueries(t testing.TB) []string {
	var out []string
	seen := map[string]bool{}
	add := func(queries ...string) {
		for _, q := range queries {
			if !seen[q] {
				seen[q] = true
				out = append(out, q)
			}
		}
	}
	// Functions, by the types of their arguments.
	vectors := []string{`many`, `http_requests_total{method="get"}`, `{__name__=~"native|resets"}`, `mixed`, `special`, `custom`}
	ranges := []string{`many[5m]`, `http_requests_total[4m]`, `{__name__=~"native|resets"}[5m]`, `mixed[8m]`, `gap[10m:40s]`, `custom[4m]`}
	// Functions whose arguments are not any of their types.
	own := map[string][]string{
		"label_replace":       {`label_replace(%s, "x", "$1-$2", "job", "(.)(.*)")`, `label_replace(%s, "job", "", "job", ".*")`, `label_replace(%s, "bad name", "y", "", "")`, `label_replace(%s, "i", "same", "", "")`},
		"label_join":          {`label_join(%s, "x", "-", "job", "i", "nope")`, `label_join(%s, "x", "")`, `label_join(%s, "i", ",", "even")`},
		"histogram_quantile":  {`histogram_quantile(0.9, %s)`, `histogram_quantile(-1, %s)`, `histogram_quantile(2, %s)`, `histogram_quantile(scalar(up{job="db"}), %s)`, `histogram_quantile(0.5, sum by (le, job) (rate(dur_bucket[5m])))`, `histogram_quantile(0.99, dur_bucket)`},
		"histogram_quantiles": {`histogram_quantiles(%s, "q", 0.1, 0.5, 0.9)`, `histogram_quantiles(rate(dur_bucket[5m]), "quantile", 0.5)`},
		"histogram_fraction":  {`histogram_fraction(0, 1, %s)`, `histogram_fraction(-1, 0.001, %s)`, `histogram_fraction(0.2, 0.8, rate(dur_bucket[5m]))`},
		"sort_by_label":       {`sort_by_label(many, "host", "i")`, `sort_by_label(up, "job")`, `sort_by_label(lat_bucket, "le", "nope")`},
		"sort_by_label_desc":  {`sort_by_label_desc(many, "even", "i")`, `sort_by_label_desc(up, "instance", "job")`},
		"info":                {`info(up)`, `info(%s)`, `info(up{job="api"}, {version=~".+"})`, `info(up, {__name__="target_info"})`},
		"holt_winters":        {`holt_winters(%s, 0.5, 0.1)`},
		"round":               {`round(%s)`, `round(%s, 0.5)`, `round(%s, -3)`, `round(%s, 0)`},
		"clamp":               {`clamp(%s, 1, 5)`, `clamp(%s, 5, 1)`},
		"vector":              {`vector(3)`, `vector(scalar(up{job="db"}))`, `vector(time())`},
		"scalar":              {`scalar(%s)`, `scalar(gap)`, `scalar(nope)`},
		"predict_linear":      {`predict_linear(%s, 600)`, `predict_linear(%s, -60.5)`},
		"quantile_over_time":  {`quantile_over_time(0.5, %s)`, `quantile_over_time(-1, %s)`, `quantile_over_time(1.5, %s)`},
		"time":                {`time()`}, "pi": {`pi()`},
		"absent": {`absent(%s)`, `absent(nope{a="b",c=~"d"})`, `absent(sum(nope))`, `absent(nope) or up`},
	}
	for _, name := range slices.Sorted(maps.Keys(parser.Functions)) {
		f := parser.Functions[name]
		forms := own[name]
		if forms == nil {
			var args []string
			operand := false
			for _, typ := range f.ArgTypes {
				switch {
				case (typ == parser.ValueTypeVector || typ == parser.ValueTypeMatrix) && !operand:
					args, operand = append(args, "%s"), true
				case typ == parser.ValueTypeScalar:
					args = append(args, "0.5")
				case typ == parser.ValueTypeString:
					args = append(args, `"a"`)
				default:
					t.Fatalf("%s has an argument of type %s that this test does not know", name, typ)
				}
			}
			forms = []string{name + "(" + strings.Join(args, ", ") + ")"}
			if f.Variadic != 0 && len(args) > 0 {
				forms = append(forms, name+"("+strings.Join(args[:len(args)-1], ", ")+")")
			}
			if f.Variadic == 1 && len(args) == 1 && args[0] == "%s" {
				forms = append(forms, name+"(stamp)", name+"()")
			}
		}
		operands := vectors
		if slices.Contains(f.ArgTypes, parser.ValueTypeMatrix) {
			operands = ranges
		}
		for _, form := range forms {
			if !strings.Contains(form, "%s") {
				add(form)
				continue
			}
			for _, o := range operands {
				add(fmt.Sprintf(form, o))
			}
		}
	}
	add(`acos(angle)`, `acosh(angle)`, `asin(angle)`, `atanh(angle)`, `deg(angle)`, `rad(angle)`, `day_of_month(stamp)`, `sqrt(angle)`, `ln(angle)`, `sgn(angle)`)

	// Aggregations, by what they group.
	groups := []string{"%s(%s)", "%s by (job, even) (%s)", "%s without (i, code, host) (%s)", "%s by () (%s)", "%s by (nope) (%s)"}
	for _, op := range []string{"sum", "avg", "min", "max", "count", "group", "stddev", "stdvar"} {
		for _, g := range groups {
			add(fmt.Sprintf(g, op, "many"))
		}
		for _, o := range vectors[1:] {
			add(fmt.Sprintf(groups[0], op, o), fmt.Sprintf(groups[1], op, o))
		}
	}
	for _, op := range []string{"topk(3, %s)", "bottomk(2, %s)", "topk by (even) (1, %s)", "topk(0, %s)", "topk(-1, %s)", "topk(1e9, %s)", "quantile(0.3, %s)", "quantile by (even) (1.2, %s)", "quantile(NaN, %s)",
		`count_values("v", %s)`, `count_values by (even) ("v", %s)`, `count_values("bad-name", %s)`, "limit_ratio(0.5, %s)", "limit_ratio(-0.5, %s)", "limit_ratio by (even) (0.3, %s)", "limit_ratio(1.1, %s)",
		"count(limitk(3, %s))", "limitk(1000, %s)", "limitk(0, %s)", "count by (even) (limitk by (even) (2, %s))"} {
		add(fmt.Sprintf(op, "many"), fmt.Sprintf(op, vectors[2]))
	}

	// Binary operators, by how their sides match.
	arithmetic := []string{"+", "-", "*", "/", "%", "^", "atan2", "==", "!=", ">", "<", ">=", "<="}
	for _, op := range arithmetic {
		add(fmt.Sprintf("many %s 7", op), fmt.Sprintf("3 %s many", op), fmt.Sprintf("many %s many", op),
			fmt.Sprintf("many %s on(i, even, host) many offset 1m", op),
			fmt.Sprintf("many %s ignoring(i, host) group_left sum by (even) (many)", op),
			fmt.Sprintf("sum by (host) (many) %s on(host) group_right(nope) many", op),
			fmt.Sprintf("resets %s resets offset 1m", op), fmt.Sprintf("native %s 2", op), fmt.Sprintf("mixed %s up", op))
		if strings.ContainsAny(op, "=<>!") {
			add(fmt.Sprintf("2 %s bool 3", op), fmt.Sprintf("many %s bool 7", op), fmt.Sprintf("many %s bool on(i) many offset 30s", op), fmt.Sprintf("2 %s 3", op))
		} else {
			add(fmt.Sprintf("2 %s 3", op), fmt.Sprintf("-many %s -1", op))
		}
	}
	for _, op := range []string{"and", "or", "unless"} {
		add(fmt.Sprintf(`many %s many{even="true"}`, op), fmt.Sprintf(`many %s on(even) many{i="0"}`, op), fmt.Sprintf(`many %s ignoring(i) many{host="h01"}`, op),
			fmt.Sprintf(`up %s on() vector(1)`, op), fmt.Sprintf(`up %s native`, op), fmt.Sprintf(`many %s 1`, op))
	}
	add(`many * on(i) group_left(host) (many{even="true"} > 3)`, `up * on(instance, job) group_left(version) target_info`, `up / ignoring(version) target_info`,
		`many + on(even) many`, `many + on(even) group_left many`, `sum(many) + on() group_left() many`, `many + fill(0) up`, `up + on(job) fill_left(1) sum by (job) (dur_bucket)`,
		`2 ^ 3 ^ 2`, `-2 ^ 2`, `1 / 0`, `0 / 0`, `-1 % 5`, `(1 + 2) * 3`, `"a" + "b"`)

	// Where in time.
	now, before := fmt.Sprint(at(0)/1000), fmt.Sprintf("%.3f", float64(at(-7*time.Minute)+1)/1000)
	for _, sel := range []string{`many{i="3"}`, `up`, `late`, `gap`, `native`} {
		add(sel+` offset 1m`, sel+` offset -2m`, sel+` @ `+now, sel+` @ `+before, sel+` @ start()`, sel+` @ end()`, sel+` @ end() offset 3m`, sel+` offset 30s @ `+now,
			`count_over_time(`+sel+`[3m])`, `count_over_time(`+sel+`[3m] offset 2m)`, `count_over_time(`+sel+`[3m] @ `+now+`)`,
			`last_over_time(`+sel+`[6m:1m])`, `count_over_time(`+sel+`[5m:35s] offset 1m)`, `count_over_time(`+sel+`[5m:] @ end())`)
	}
	add(`max_over_time(rate(http_requests_total[1m])[5m:30s])`, `sum_over_time(min_over_time(many[1m:20s])[3m:1m])`, `avg_over_time(sum(many)[4m:15s])`,
		`rate(http_requests_total[5m:15s] offset 30s)`, `(up > 0)[2m:30s]`, `up[1m]`, `native[45s]`, `late[10m]`, `special[10m]`, `many[1s]`, `up[1d]`, `up offset 1w`, `time() - stamp`,
		`sum_over_time((many - many offset 15s)[3m:15s])`, `count_over_time(vector(1)[5m:1m])`)

	// Which series.
	for _, m := range []string{`{i="0"}`, `{i!="0"}`, `{i=~"1.*"}`, `{i!~"1.*|2"}`, `{i=""}`, `{i!=""}`, `{i=~""}`, `{i=~".*"}`, `{i=~".+"}`, `{i!~".+"}`, `{nope=~"|x"}`, `{i="0",i!="1"}`, `{i="0",i="1"}`, `{host=~"h0[12]",even!="true"}`, `{i=~"(?i:A|3)"}`, `{__name__!=""}`} {
		add("many" + m)
	}
	add(`{__name__="many",i="2"}`, `{__name__=~"ma.*|up",job!~"d.*"}`, `{__name__!~"many|lat.*|dur.*",job="api"}`, `{"many",i="1"}`, `{"a.metric","a.label"=~"ü|x"}`, `{"nope.metric"}`, `cased{Foo="x",foo="y"}`,
		`sum by ("a.label") ({"a.metric"})`, `{job="api"}`, `{i=~"1|2|3"}`)

	// Faults.
	add(`many{`, `many{i=}`, `many{i=~"("}`, `sum(many`, `sum(many[5m])`, `rate(many)`, `rate(many[0s])`, `many[5m][5m]`, `nope(many)`, `many offset`, `many offset x`, `many @ x`, `{}`, `{i=""}`, `{i=~".*"}`,
		`topk(many, many)`, `quantile("x", many)`, `count_values(1, many)`, `many and 1`, `1 and many`, `1 > 2`, `many + "x"`, `many == bool`, `many + bool 1`, `sum by (i many)`, `on(i) many`, `many group_left many`, `many or group_left many`,
		`label_replace(many, "x", "$1", "i", "(")`, `label_replace(many, "", "y", "", "")`, `label_join(many, "~", ",", "i")`, `histogram_quantile(many, many)`, `absent(1)`, `vector(many)`, `scalar(1)`, `time(1)`, `rate()`, `rate(many[5m], 1)`,
		`"unclosed`, `1 +`, `+`, ``, ` `, `many # comment`, `many; many`, `5m`, `many[5m:]`, `many[5m:0s]`, `many[-5m]`, `limitk(NaN, many)`, `many @ NaN`, `predict_linear(many[5m], "x")`, `info(up, 1)`, "\xff", `many{i="\xff"}`)
	return out
}

// TestPromQLDiff sends more than 500 queries to this API, over a table whose
// samples lie in every way that there is, and to an upstream Prometheus API over
// Prometheus' own storage with the same samples, in the table's order. Status and
// JSON must be equal, to the last bit of numbers. It prints how many are.
func TestPromQLDiff(t *testing.T) {
	all := diffCorpus(t)
	tb := newTable(t)
	spread(t, tb, all)
	options := func() Options {
		o := Options{Reader: tb.reader, Language: parser.Options{EnableExperimentalFunctions: true, EnableBinopFillModifiers: true}}
		o.EnsureDefaults()
		return o
	}
	theirs := serve(options(), tableOrder{upstream(t, all)})
	streamed := NewQueryable(tb.reader)
	streamed.KeepSamples = 0
	ours := map[string]http.Handler{"kept": Handler(options()), "streamed": serve(options(), streamed)}

	queries := diffQueries(t)
	if raceEnabled {
		queries = slices.DeleteFunc(queries, func(q string) bool { return len(q)%8 != 0 })
		t.Log("one query in eight: the race detector makes them ten times as slow")
	}
	seconds := func(offset time.Duration) string { return fmt.Sprint(at(offset) / 1000) }
	passed, responses := 0, 0
	for _, q := range queries {
		requests := []request{
			{"query", url.Values{"query": {q}, "time": {seconds(0)}}},
			{"query", url.Values{"query": {q}, "time": {seconds(3 * time.Minute)}}},
			{"query_range", url.Values{"query": {q}, "start": {seconds(-11 * time.Minute)}, "end": {seconds(6 * time.Minute)}, "step": {"37s"}}},
			{"query_range", url.Values{"query": {q}, "start": {seconds(-8 * time.Minute)}, "end": {seconds(2 * time.Minute)}, "step": {"15s"}, "limit": {"4"}}},
		}
		ok := true
		for _, r := range requests {
			_, want := answerOf(t, theirs, r)
			for name, h := range ours {
				responses++
				if _, got := answerOf(t, h, r); got != want {
					ok = false
					t.Errorf("%s %s %v, %s:\nwant %.700s\ngot  %.700s", r.path, q, r.form, name, want, got)
				}
			}
		}
		if ok {
			passed++
		}
	}
	if len(queries) < 500 && !raceEnabled {
		t.Errorf("only %d queries", len(queries))
	}
	t.Logf("promql-diff: %d/%d queries equal, %d responses", passed, len(queries), responses)
}
