package writer

import (
	"math/bits"
	"slices"

	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/internal/symbols"
	"cardinalsin/series"
)

// matching finds the series of a head for one query. It looks at a matcher
// once for each value that it meets, and then only at codes.
type matching struct {
	blocks  [][]memSeries
	sets    *symbols.View
	index   [][]idRef // head.metrics
	metrics []int     // codes of the metrics that match, by name
	filters []filter
	// wanted are the values that a series must have, by column; none says
	// that one of them is unknown, so that nothing matches.
	wanted []wanted
	none   bool
}

// wanted is a value of a label that a matcher asks for.
type wanted struct{ column, code int32 }

// filter is one matcher of another label than the metric name.
type filter struct {
	matcher *series.Matcher
	// where is the place of the label in the sets of each shape, one more so
	// that zero is not looked at yet; absent where they lack it.
	where []int32
	// values says of each value whether it matches.
	values  []verdict
	column  int32 // -1: no series has the label
	without bool  // a series without the label matches
}

const absent = -1

// verdict is what a matcher says of a value.
type verdict uint8

const (
	unknown verdict = iota
	matches
	differs
)

// matching prepares a query. It holds the lock for as long as it takes to copy
// the slices' headers.
func (p headPart) matching(matchers []*series.Matcher) *matching {
	p.h.mu.RLock()
	m := &matching{blocks: slices.Clone(p.h.blocks), sets: p.h.sets.View(), index: slices.Clone(p.h.metrics)}
	for _, matcher := range matchers {
		if matcher.Type != labels.MatchEqual || matcher.Value == "" {
			continue
		}
		if code, ok := p.h.sets.Find(matcher.Name, matcher.Value); !ok {
			m.none = true
		} else if column, ok := m.sets.Column(matcher.Name); ok && matcher.Name != series.MetricName {
			m.wanted = append(m.wanted, wanted{column, code})
		}
	}
	p.h.mu.RUnlock()
	if m.none {
		return m
	}
	for i := range m.blocks {
		m.blocks[i] = m.blocks[i][:cap(m.blocks[i])] // slots that are filled later are never looked at
	}
	var byName []*series.Matcher
	for _, matcher := range matchers {
		if matcher.Name == series.MetricName {
			byName = append(byName, matcher)
			continue
		}
		f := filter{matcher: matcher, column: -1, where: make([]int32, m.sets.Shapes()), without: matcher.Matches("")}
		if column, ok := m.sets.Column(matcher.Name); ok {
			f.column, f.values = column, make([]verdict, m.sets.Values(column))
		}
		m.filters = append(m.filters, f)
	}
	for _, metric := range metricsOf(m.sets, byName) {
		m.metrics = append(m.metrics, metric.code)
	}
	return m
}

// scanSeries is the number of series that are rather looked at one by one than
// by postings, which cost a look at all series of the head to make.
const scanSeries = 4096

// each calls do for the matching series of a part, in no order, metric after
// metric in the order of their names; it stops when do returns false.
func (m *matching) each(p headPart, do func(refs []idRef) bool) {
	candidates := func(metric int) []idRef { return m.index[metric] }
	all := 0
	for _, metric := range m.metrics {
		all += len(m.index[metric])
	}
	if all > p.h.scan && len(m.wanted) > 0 {
		if refs, ok := p.h.postings.find(p.count, m); ok {
			byMetric := map[int32][]idRef{}
			names, _ := m.sets.Column(series.MetricName)
			where := make([]int32, m.sets.Shapes())
			for _, r := range refs {
				code, _ := codeOf(m.sets, at(m.blocks, r.ref).set, names, where) // each set has one
				byMetric[code] = append(byMetric[code], r)
			}
			candidates = func(metric int) []idRef { return byMetric[int32(metric)] }
		}
	}
	for _, metric := range m.metrics {
		var found []idRef
		for _, r := range candidates(metric) {
			if int(r.ref) <= p.count && m.matches(at(m.blocks, r.ref).set) {
				found = append(found, r)
			}
		}
		if len(found) > 0 && !do(found) {
			return
		}
	}
}

func (m *matching) matches(s symbols.Set) bool {
	for i := range m.filters {
		if !m.filters[i].matches(m.sets, s) {
			return false
		}
	}
	return true
}

func (f *filter) matches(v *symbols.View, s symbols.Set) bool {
	if f.column < 0 {
		return f.without
	}
	code, ok := codeOf(v, s, f.column, f.where)
	if !ok {
		return f.without
	}
	verdict := &f.values[code]
	if *verdict == unknown {
		*verdict = differs
		if f.matcher.Matches(string(v.Text(f.column, code))) {
			*verdict = matches
		}
	}
	return *verdict == matches
}

// codeOf returns the code of a set's value of one label; ok is false where it has
// none. where remembers the place of the label by shape, as in filter.
func codeOf(v *symbols.View, s symbols.Set, column int32, where []int32) (code int32, ok bool) {
	w := &where[s.Shape()]
	if *w == 0 {
		*w = int32(slices.Index(v.ColumnsOf(s.Shape()), column)) + 1
		if *w == 0 {
			*w = absent
		}
	}
	if *w == absent {
		return 0, false
	}
	return v.Codes(s)[*w-1], true
}

// sortRefs orders series of one metric by ID, then labels.
func sortRefs(refs []idRef, blocks [][]memSeries, sets *symbols.View) {
	slices.SortFunc(refs, func(a, b idRef) int {
		switch {
		case a.id < b.id:
			return -1
		case a.id > b.id:
			return 1
		}
		return sets.Compare(at(blocks, a.ref).set, at(blocks, b.ref).set)
	})
}

// sortedRefs returns refs in the order of sortRefs. IDs are hashes: their upper
// bits bring each near to its place, among some eight others.
func sortedRefs(refs []idRef, blocks [][]memSeries, sets *symbols.View) []idRef {
	const together = 8
	width := bits.Len(uint(len(refs) / together))
	place := func(r *idRef) uint64 { return uint64(r.id) >> (64 - width) }
	ends := make([]int, 1<<width) // of the places before, at first
	for i := range refs {
		ends[place(&refs[i])]++
	}
	total := 0
	for i, n := range ends {
		ends[i] = total
		total += n
	}
	out := make([]idRef, len(refs))
	for i := range refs {
		end := &ends[place(&refs[i])]
		out[*end] = refs[i]
		*end++
	}
	from := 0
	for _, end := range ends {
		sortRefs(out[from:end], blocks, sets)
		from = end
	}
	return out
}
