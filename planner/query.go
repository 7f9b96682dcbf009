package planner

import (
	"slices"
	"strings"

	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/chunk"
	"cardinalsin/series"
	"cardinalsin/shard"
)

// query is a selector in terms of a table's columns.
type query struct {
	usable bool // the table has our layout: facts mean what they say
	rng    series.TimeRange
	never  bool // the range is empty
	// shards maps every shard of the table to whether it may own a selected
	// series; nil where the metric names are not a finite set.
	shards map[string]bool
	name   *labelQuery // nil: no matcher on the metric name
	labels []labelQuery
}

// labelQuery is all that a selector asks of one label.
type labelQuery struct {
	column   string // "" where the label has none
	matchers []*labels.Matcher
	// finite says that only the empty value and these can match.
	finite bool
	values []string
	empty  bool // the empty value matches: the label may be absent
}

func newQuery(table *tableFacts, sel series.Selector) *query {
	q := &query{rng: sel.Range, never: sel.Range.Min > sel.Range.Max}
	if table.layout == nil {
		return q
	}
	q.usable = true
	var names []string
	byName := map[string][]*labels.Matcher{}
	for _, m := range sel.Matchers {
		if _, ok := byName[m.Name]; !ok {
			names = append(names, m.Name)
		}
		byName[m.Name] = append(byName[m.Name], m)
	}
	for _, name := range names {
		l := newLabelQuery(byName[name])
		if name == series.MetricName {
			l.column = chunk.ColumnMetricName
			q.name = &l
			continue
		}
		l.column, _ = table.layout.Column(name)
		q.labels = append(q.labels, l)
	}
	if q.name != nil && q.name.finite {
		q.shards = owners(table.shards, q.name.values)
	}
	return q
}

// owners marks the shards whose range holds a key of any of the metrics, nil
// where the shards are not known. The metric's hash is the high half of the
// key, so its keys are one interval.
func owners(shards []shard.Shard, metrics []string) map[string]bool {
	if shards == nil {
		return nil
	}
	out := make(map[string]bool, len(shards))
	for _, s := range shards {
		out[string(s.ID)] = false
	}
	for _, metric := range metrics {
		low := shard.KeyOfMetric(metric, 0)
		keys := shard.Range{Min: low, Max: low | (1<<32 - 1)}
		for _, s := range shards {
			if s.Range.Min <= keys.Max && keys.Min <= s.Range.Max {
				out[string(s.ID)] = true
			}
		}
	}
	return out
}

func newLabelQuery(matchers []*labels.Matcher) labelQuery {
	q := labelQuery{matchers: matchers}
	q.empty = q.matches("")
	for _, m := range matchers {
		var values []string
		switch m.Type {
		case labels.MatchEqual:
			values = []string{m.Value}
		case labels.MatchRegexp:
			values = m.SetMatches()
		}
		if len(values) > 0 && (!q.finite || len(values) < len(q.values)) {
			q.finite, q.values = true, values
		}
	}
	// What one matcher allows, another may forbid; the filter copies, since
	// the slice belongs to the matcher.
	var values []string
	for _, v := range q.values {
		if q.matches(v) {
			values = append(values, v)
		}
	}
	q.values = values
	return q
}

func (q *labelQuery) matches(v string) bool {
	for _, m := range q.matchers {
		if !m.Matches(v) {
			return false
		}
	}
	return true
}

// excludesPlace reports whether it is certain that no row of the files with
// these partition values is selected, and by which fact.
func (q *query) excludesPlace(p *place) (Reason, bool) {
	if q.never {
		return ReasonTime, true
	}
	if !q.usable {
		return "", false
	}
	if p.hasDate && !p.date.Range().Overlaps(q.rng) {
		return ReasonDate, true
	}
	// An unknown shard may own anything.
	if owner, known := q.shards[p.shard]; p.hasShard && known && !owner {
		return ReasonShard, true
	}
	return "", false
}

// excludes is excludesPlace for the other facts about a file.
func (q *query) excludes(f *fileFacts) (Reason, bool) {
	if !q.usable {
		return "", false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if rng, ok := f.timeRange(); ok && !rng.Overlaps(q.rng) {
		return ReasonTime, true
	}
	if q.name != nil && !q.name.possible(f.names()) {
		return ReasonMetricName, true
	}
	for i := range q.labels {
		if !q.labels[i].possible(f.column(q.labels[i].column)) {
			return ReasonLabel, true
		}
	}
	return "", false
}

// possible reports whether a file whose column has these bounds may hold a
// value that all matchers accept. It is false only where that is certain.
func (q *labelQuery) possible(b bounds) bool {
	if b.nulls && q.empty {
		return true
	}
	if !b.values {
		return false
	}
	if q.finite {
		return slices.ContainsFunc(q.values, b.contain)
	}
	if b.hasMin && b.hasMax && b.min == b.max {
		return q.matches(b.min) // the only value there is
	}
	for _, m := range q.matchers {
		if m.Type == labels.MatchRegexp && !b.mayHavePrefix(m.Prefix()) {
			return false
		}
	}
	return true
}

// bounds is what is known about the values of one string column in one file.
// The zero value means that it holds nothing; see unknown.
type bounds struct {
	nulls, values  bool // a null, or a value, is possible
	min, max       string
	hasMin, hasMax bool
}

var unknown = bounds{nulls: true, values: true}

func (b bounds) contain(v string) bool {
	return (!b.hasMin || b.min <= v) && (!b.hasMax || v <= b.max)
}

// mayHavePrefix reports whether a value with the prefix may lie inside the
// bounds: those values lie from the prefix itself up to, not including, the
// least greater string that lacks it.
func (b bounds) mayHavePrefix(prefix string) bool {
	if b.hasMax && b.max < prefix {
		return false
	}
	return !b.hasMin || b.min <= prefix || strings.HasPrefix(b.min, prefix)
}
