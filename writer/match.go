package writer

import (
	"slices"

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
}

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
	p.h.mu.RUnlock()
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

// refs returns the first count series of one metric that match, in the order
// of series.Compare.
func (m *matching) refs(count, metric int) []idRef {
	var found []idRef
	for _, r := range m.index[metric] {
		if int(r.ref) > count {
			break // came after the view; so did all behind it
		}
		if m.matches(at(m.blocks, r.ref).set) {
			found = append(found, r)
		}
	}
	sortRefs(found, m.blocks, m.sets)
	return found
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
	where := &f.where[s.Shape()]
	if *where == 0 {
		*where = int32(slices.Index(v.ColumnsOf(s.Shape()), f.column)) + 1
		if *where == 0 {
			*where = absent
		}
	}
	if *where == absent {
		return f.without
	}
	code := v.Codes(s)[*where-1]
	verdict := &f.values[code]
	if *verdict == unknown {
		*verdict = differs
		if f.matcher.Matches(string(v.Text(f.column, code))) {
			*verdict = matches
		}
	}
	return *verdict == matches
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
