package prom

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/promql/parser"
)

// diffLanguage is all of PromQL that the pinned parser knows.
var diffLanguage = parser.Options{EnableExperimentalFunctions: true, EnableBinopFillModifiers: true, ExperimentalDurationExpr: true, EnableExtendedRangeSelectors: true}

// diffRequests are those of which more than the query is looked at: the order
// of the answer, which series a limit leaves, parameters and their faults, and
// the endpoints that answer label sets.
func diffRequests() (out []request) {
	add := func(path string, pairs ...string) {
		form := url.Values{}
		for i := 0; i < len(pairs); i += 2 {
			form.Add(pairs[i], pairs[i+1])
		}
		out = append(out, request{path, form})
	}
	s := func(d time.Duration) string { return fmt.Sprint(at(d) / 1000) }
	// Ranges come in the order of labels, before a limit cuts them.
	for _, q := range []string{`many`, `up`, `{job="api"}`, `{__name__=~".+"}`, `sum by (host, even) (many)`, `topk(3, many)`, `rate(http_requests_total[5m])`, `native`, `lat_bucket or many`, `limitk(1000, sum by (i) (many))`} {
		for _, limit := range []string{"", "0", "1", "3", "1000"} {
			add("query_range", "query", q, "start", s(-9*time.Minute), "end", s(2*time.Minute), "step", "50s", "limit", limit)
		}
	}
	for _, q := range []string{`sort(many)`, `sort_desc(many)`, `sort_by_label(many, "host", "i")`, `sort_by_label_desc(many, "even", "i")`, `topk(5, many)`, `bottomk(5, many)`, `sort(up)`} {
		add("query", "query", q, "time", s(0))
		add("query", "query", q, "time", s(0), "limit", "2")
	}
	// Native histograms cut at a bound.
	for _, op := range []string{"</", ">/"} {
		for _, v := range []string{"native", "custom", "resets", "mixed", "many", "2"} {
			for _, bound := range []string{"0", "0.5", "-1", "1e9", "+Inf", "NaN", "scalar(up{job=\"db\"})"} {
				add("query", "query", v+" "+op+" "+bound, "time", s(-4*time.Minute))
				add("query_range", "query", v+" "+op+" "+bound, "start", s(-9*time.Minute), "end", s(2*time.Minute), "step", "50s")
			}
		}
		add("query", "query", "native "+op+" native", "time", s(0))
	}
	// Ranges whose ends are made up, and computed durations.
	for _, sel := range []string{"many", "gap", "late", "native", "http_requests_total"} {
		for _, q := range []string{"rate(%s[3m] smoothed)", "increase(%s[3m] anchored)", "changes(%s[3m] anchored)", "delta(%s[3m] smoothed)", "%s smoothed", "%s[2m] anchored", "rate(%s[3m*2])", "%s offset (1m+30s)", "%s offset step()", "sum_over_time(%s[max_of(step(), 2m)])"} {
			add("query", "query", fmt.Sprintf(q, sel), "time", s(-30*time.Second))
			add("query_range", "query", fmt.Sprintf(q, sel), "start", s(-9*time.Minute), "end", s(5*time.Minute), "step", "37s")
		}
	}
	// Edges of the lookback, of staleness, of ranges.
	for _, d := range []time.Duration{-10 * time.Minute, -10*time.Minute - time.Millisecond, -7*time.Minute - 45*time.Second, 2*time.Minute - time.Millisecond, 2 * time.Minute, 150 * time.Second, 150*time.Second + time.Millisecond, 7*time.Minute + 30*time.Second, 7*time.Minute + 29*time.Second} {
		t := fmt.Sprintf("%.3f", float64(at(d))/1000)
		for _, q := range []string{"gap", "late", "up", "native", "gap[2m]", "late[2m]", "count_over_time(late[2m])", "late offset 15s", "absent(late)", "absent_over_time(gap[1m])", "resets[5m]", "mixed[3m]", "up[15s]", "up[15001ms]"} {
			add("query", "query", q, "time", t)
		}
	}
	// Parameters and their faults.
	for _, t := range []string{"", "0", "-1", "1.5", "NaN", "Inf", "1e30", "tomorrow", "2026-01-02T00:00:00Z", "2026-01-02T00:00:00.5Z", "2026-01-02T00:00:00+01:00", "2026-01-02", "2026-01-02 00:00:00"} {
		if t != "" { // now is another one for each
			add("query", "query", "up", "time", t)
		}
		add("query_range", "query", "up", "start", t, "end", s(0), "step", "1h")
		add("query_range", "query", "up", "start", s(0), "end", t, "step", "60")
		add("series", "match[]", "up", "start", t)
		add("series", "match[]", "up", "end", t)
		add("labels", "start", t)
		add("label/job/values", "end", t)
	}
	for _, step := range []string{"", "0", "-1", "1ms", "0.1", "1m", "1m30s", "1y", "x", "NaN", "1e20", "1", "1x"} {
		add("query_range", "query", "up", "start", s(-time.Minute), "end", s(0), "step", step)
	}
	for _, p := range []string{"limit", "timeout", "lookback_delta", "stats"} {
		for _, v := range []string{"-1", "x", "1e3", "99999999999999999999", "0", "1", "2", "1s", "1m"} {
			if p == "stats" || p == "timeout" && (v == "0" || v == "1" || v == "-1" || v == "2") {
				continue
			}
			add("query", "query", "count(up)", "time", s(0), p, v)
			add("query_range", "query", "many", "start", s(-time.Minute), "end", s(0), "step", "15", p, v)
			if p == "limit" {
				add("labels", "match[]", "many", p, v)
				add("label/i/values", "match[]", "many", p, v)
				add("series", "match[]", "many", "match[]", "up", p, v)
			}
		}
	}
	for _, path := range []string{"query", "query_range", "series", "labels", "label/job/values", "label/U__/values", "format_query", "parse_query", "nope"} {
		add(path)
		add(path, "query", "up")
		add(path, "match[]", "", "query", "")
		add(path, "start", s(0), "end", s(-time.Minute), "query", "up", "step", "1", "match[]", "up")
	}
	// Label sets.
	matches := [][]string{{"many"}, {"many", "up"}, {"many", "many"}, {`{job="api"}`}, {`{job!="api"}`}, {`{i=~"1.*"}`, `{i="2"}`}, {`{i=""}`, "up"}, {`{nope="x"}`}, {`{__name__=~".+"}`}, {`{"a.metric"}`}, {`{"a.label"="ü"}`}, {`{job=~".*"}`}, {`{}`}, {`up{`}, {`up[5m]`}, {`sum(up)`}, {"native", "custom", "resets", "mixed"}, {`{i!~".+",job=~".+"}`}}
	spans := [][]string{{}, {"start", s(-20 * time.Minute), "end", s(-11 * time.Minute)}, {"start", s(-10 * time.Minute), "end", s(5 * time.Minute)}}
	for _, ms := range matches {
		for _, span := range spans {
			for _, limit := range []string{"", "1", "3"} {
				pairs := append([]string{"limit", limit}, span...)
				for _, m := range ms {
					pairs = append(pairs, "match[]", m)
				}
				add("series", pairs...)
				add("labels", pairs...)
				for _, name := range []string{"job", "__name__", "i", "nope", "U__a_2e_label"} {
					add("label/"+name+"/values", pairs...)
				}
			}
		}
	}
	return out
}

// TestPromQLDiffRequests compares what TestPromQLDiff leaves aside with an
// upstream Prometheus: it prints how many requests are answered alike, and how
// many are not for a reason that [apart] names.
func TestPromQLDiffRequests(t *testing.T) {
	all := diffCorpus(t)
	tb := newTable(t)
	spread(t, tb, all)
	options := func(maxSamples int) Options {
		o := Options{Reader: tb.reader, MaxSamples: maxSamples, Language: diffLanguage}
		o.EnsureDefaults()
		return o
	}
	up := tableOrder{upstream(t, all)}
	streamed := NewQueryable(tb.reader)
	streamed.KeepSamples = 0
	passed, total, reasons := 0, 0, map[string]int{}
	compare := func(theirs, ours http.Handler, who string, r request) {
		total++
		w, want := answerOf(t, theirs, r)
		g, got := answerOf(t, ours, r)
		why := ""
		if want != got {
			why = apart(t, theirs, r, w, g)
		}
		switch {
		case want == got:
			passed++
		case why != "":
			reasons[why]++
		default:
			t.Errorf("%s %s, %s:\nwant %.500s\ngot  %.500s", r.path, r.form.Encode(), who, want, got)
		}
	}
	requests := diffRequests()
	if raceEnabled {
		requests = slices.DeleteFunc(requests, func(r request) bool { return len(r.form.Encode())%8 != 0 })
		t.Log("one request in eight: the race detector makes them ten times as slow")
	}
	theirs, kept, streams := serve(options(0), up), Handler(options(0)), serve(options(0), streamed)
	for _, r := range requests {
		compare(theirs, kept, "kept", r)
		compare(theirs, streams, "streamed", r)
	}
	// Upstream counts the samples that a query holds at a time.
	for _, most := range []int{1, 5, 20, 100, 300, 1000, 3000} {
		kept, few, streams := Handler(options(most)), serve(options(most), up), serve(options(most), streamed)
		for _, q := range []string{"many[10m]", `{__name__=~".+"}[10m]`, "count_over_time(many[10m])", "up", "native[5m]", `sum(count_over_time({__name__=~".+"}[10m]))`, "many + many offset 1m", "rate(native[5m])", "max_over_time(many[10m:1m])"} {
			for _, r := range []request{
				{"query", url.Values{"query": {q}, "time": {fmt.Sprint(at(0) / 1000)}}},
				{"query_range", url.Values{"query": {q}, "start": {fmt.Sprint(at(-time.Minute) / 1000)}, "end": {fmt.Sprint(at(0) / 1000)}, "step": {"30"}}},
			} {
				compare(few, kept, fmt.Sprintf("%d samples, kept", most), r)
				compare(few, streams, fmt.Sprintf("%d samples, streamed", most), r)
			}
		}
	}
	if len(reasons) > 0 && passed < 20*(total-passed) {
		t.Errorf("too many are apart: %v", reasons)
	}
	t.Logf("promql-diff requests: %d/%d answered alike; apart: %v", passed, total, reasons)
}

// TestPromQLDiffComplete: no function, aggregation or operator of the parser is
// without a query that parses.
func TestPromQLDiffComplete(t *testing.T) {
	p := parser.NewParser(diffLanguage)
	seen := map[string]bool{}
	queries := diffQueries(t)
	for _, r := range diffRequests() {
		queries = append(queries, r.form.Get("query"))
	}
	parsed := 0
	for _, q := range queries {
		e, err := p.ParseExpr(q)
		if err != nil {
			continue
		}
		parsed++
		parser.Inspect(e, func(n parser.Node, _ []parser.Node) error {
			switch n := n.(type) {
			case *parser.Call:
				seen[n.Func.Name] = true
			case *parser.AggregateExpr:
				seen[n.Op.String()] = true
			case *parser.BinaryExpr:
				seen[n.Op.String()] = true
			}
			return nil
		})
	}
	for name := range parser.Functions {
		if !seen[name] {
			t.Errorf("no query has the function %s", name)
		}
	}
	for item, name := range parser.ItemTypeStr {
		if (item.IsOperator() || item.IsAggregator()) && !seen[name] && name != "=~" && name != "!~" && name != "@" {
			t.Errorf("no query has %s", name)
		}
	}
	t.Logf("%d of %d queries parse", parsed, len(queries))
}

// apart says why two answers that are not equal may differ, "" where they must not.
func apart(t testing.TB, theirs http.Handler, r request, want, got map[string]any) string {
	t.Helper()
	if want["code"] != got["code"] {
		return ""
	}
	if (r.path == "labels" || strings.HasPrefix(r.path, "label/")) && text(got["data"]) == text(labelTexts(t, theirs, r)) {
		return "labels of just the time asked for" // upstream's head has them of all times
	}
	return ""
}

// labelTexts is what a request for label names or values should find, going by
// the series of the same time.
func labelTexts(t testing.TB, h http.Handler, r request) []any {
	t.Helper()
	form := maps.Clone(r.form)
	form.Del("limit")
	if !form.Has("match[]") {
		form.Set("match[]", `{__name__=~".+"}`)
	}
	answer, _ := answerOf(t, h, request{"series", form})
	list, _ := answer["data"].([]any)
	name := strings.TrimSuffix(strings.TrimPrefix(r.path, "label/"), "/values")
	found := map[string]bool{}
	for _, l := range list {
		for k, v := range l.(map[string]any) {
			switch {
			case r.path == "labels":
				found[k] = true
			case k == name:
				found[v.(string)] = true
			}
		}
	}
	texts := []any{}
	for _, s := range slices.Sorted(maps.Keys(found)) {
		texts = append(texts, s)
	}
	limit, _ := strconv.Atoi(r.form.Get("limit"))
	return first(texts, limit)
}
