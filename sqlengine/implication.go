package sqlengine

import (
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"

	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/series"
)

// implication is what certainly holds of the rows for which a condition is
// true. The zero value says nothing.
type implication struct {
	all, any []implication   // all of these hold, one of these holds
	bound    int             // this bound holds, counted from 1
	matcher  *series.Matcher // the label matches
}

// matching says that a label matches, or nothing if there is no such matcher.
func matching(kind labels.MatchType, label, value string) implication {
	m, err := labels.NewMatcher(kind, label, value)
	if err != nil {
		return implication{} // DuckDB has the last word on the expression
	}
	return implication{matcher: m}
}

// times is the range outside of which nothing can be true. It is empty, Min
// above Max, if nothing can be true at all.
func (m implication) times(bounds []series.TimeRange) series.TimeRange {
	out := series.AllTime
	if m.bound > 0 {
		out = bounds[m.bound-1]
	}
	for _, part := range m.all {
		out = intersect(out, part.times(bounds))
	}
	if len(m.any) == 0 {
		return out
	}
	var union series.TimeRange
	found := false
	for _, part := range m.any {
		r := part.times(bounds)
		switch {
		case r.Min > r.Max:
		case found:
			union = union.Union(r)
		default:
			union, found = r, true
		}
	}
	if !found {
		return series.TimeRange{Min: 1, Max: 0}
	}
	return intersect(out, union)
}

// maxExpression bounds the regular expression that alternatives make: a longer
// one is not used.
const maxExpression = 64 << 10

// matchers are about labels, each of which must match.
func (m implication) matchers() []*series.Matcher {
	var out []*series.Matcher
	if m.matcher != nil {
		out = append(out, m.matcher)
	}
	for _, part := range m.all {
		out = append(out, part.matchers()...)
	}
	if len(m.any) == 0 {
		return out
	}
	// Of alternatives only those labels are certain of which each says
	// something, and of these the values that any allows.
	var order []string
	choices := map[string][]string{}
	for i, part := range m.any {
		for _, one := range part.matchers() {
			expression := one.Value
			switch one.Type {
			case labels.MatchEqual:
				expression = regexp.QuoteMeta(expression)
			case labels.MatchRegexp:
				expression = "(?:" + expression + ")"
			default:
				continue
			}
			if len(choices[one.Name]) != i {
				continue // this one has spoken, the first will do; or one before said nothing
			}
			if i == 0 {
				order = append(order, one.Name)
			}
			choices[one.Name] = append(choices[one.Name], expression)
		}
	}
	for _, label := range order {
		expression := strings.Join(choices[label], "|")
		if len(choices[label]) == len(m.any) && len(expression) <= maxExpression {
			if one := matching(labels.MatchRegexp, label, expression).matcher; one != nil {
				out = append(out, one)
			}
		}
	}
	return out
}

// likeExpression is a regular expression that matches at least what LIKE does.
// Without ESCAPE no character escapes another.
func likeExpression(pattern string) string {
	var b strings.Builder
	for _, r := range pattern {
		switch r {
		case '%', '_': // whatever a character is
			b.WriteString(".*")
		default:
			b.WriteString(regexp.QuoteMeta(string(r)))
		}
	}
	return b.String()
}

// wholeExpression is a regular expression that matches at least what it
// matches in DuckDB, empty where that is not certain. Both are RE2; they may
// know other versions of Unicode.
func wholeExpression(pattern string) string {
	if strings.Contains(pattern, `\p`) || strings.Contains(pattern, `\P`) {
		return ""
	}
	tree, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil || folds(tree) {
		return ""
	}
	return "(?:" + pattern + ")"
}

// folds reports whether an expression is blind to case anywhere.
func folds(tree *syntax.Regexp) bool {
	return tree.Flags&syntax.FoldCase != 0 || slices.ContainsFunc(tree.Sub, folds)
}
