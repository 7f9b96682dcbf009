package prom

import (
	"context"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	promstorage "github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/annotations"

	"cardinalsin/series"
)

// tableOrder gives what a storage has in the order of a table, and the first of
// it where there is a limit. Upstream leaves both to the storage, and they show:
// in the last bits of sums, in what a limit leaves, in which series of several an
// error names. Ours is not sorted for the comparison: sorted selections are
// never streamed.
type tableOrder struct {
	promstorage.SampleAndChunkQueryable
}

func (o tableOrder) Querier(mint, maxt int64) (promstorage.Querier, error) {
	q, err := o.SampleAndChunkQueryable.Querier(mint, maxt)
	return orderedQuerier{q}, err
}

type orderedQuerier struct{ promstorage.Querier }

func (q orderedQuerier) Select(ctx context.Context, sorted bool, hints *promstorage.SelectHints, m ...*labels.Matcher) promstorage.SeriesSet {
	limit := 0
	if hints != nil {
		limit = hints.Limit
		all := *hints
		all.Limit = 0
		hints = &all
	}
	set := q.Querier.Select(ctx, true, hints, m...)
	var found []promstorage.Series
	for set.Next() {
		found = append(found, set.At())
	}
	if !sorted {
		slices.SortFunc(found, func(a, b promstorage.Series) int {
			return series.Compare(a.Labels(), b.Labels(), series.IDOf(a.Labels()), series.IDOf(b.Labels()))
		})
	}
	return &orderedSet{SeriesSet: set, series: first(found, limit)}
}

func (q orderedQuerier) LabelValues(ctx context.Context, name string, hints *promstorage.LabelHints, m ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	found, warnings, err := q.Querier.LabelValues(ctx, name, nil, m...)
	return first(slices.Sorted(slices.Values(found)), most(hints)), warnings, err
}

func (q orderedQuerier) LabelNames(ctx context.Context, hints *promstorage.LabelHints, m ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	found, warnings, err := q.Querier.LabelNames(ctx, nil, m...)
	return first(slices.Sorted(slices.Values(found)), most(hints)), warnings, err
}

// most is not our limitOf, which is under test.
func most(hints *promstorage.LabelHints) int {
	if hints == nil {
		return 0
	}
	return hints.Limit
}

func first[T any](list []T, limit int) []T {
	if limit > 0 && len(list) > limit {
		return list[:limit]
	}
	return list
}

// orderedSet has its errors and warnings from the set that it was made of.
type orderedSet struct {
	promstorage.SeriesSet
	series []promstorage.Series
	at     int // 1-based
}

func (s *orderedSet) At() promstorage.Series { return s.series[s.at-1] }
func (s *orderedSet) Next() bool {
	if s.at == len(s.series) {
		return false
	}
	s.at++
	return true
}

var orders = regexp.MustCompile(`^(sort|topk|bottomk)`)

// answerOf is status and JSON of a response, as they came but for what upstream's
// engine may keep in maps: warnings, and instant vectors that the query does not
// order (count_values, info, binary operations in a subquery).
func answerOf(t testing.TB, h http.Handler, r request) (answer map[string]any, all string) {
	t.Helper()
	rec, answer := r.do(h, http.MethodGet)
	if answer == nil { // a path that there is not
		answer = map[string]any{"body": rec.Body.String()}
	}
	for _, kind := range []string{"warnings", "infos"} {
		if list, ok := answer[kind].([]any); ok {
			slices.SortFunc(list, func(a, b any) int { return strings.Compare(a.(string), b.(string)) })
		}
	}
	if r.path == "query" && !orders.MatchString(r.form.Get("query")) {
		if d, ok := answer["data"].(map[string]any); ok {
			sortAny(d["result"])
		}
	}
	answer["code"] = rec.Code
	return answer, text(answer)
}
