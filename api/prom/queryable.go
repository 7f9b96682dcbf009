package prom

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/annotations"

	"cardinalsin/reader"
	"cardinalsin/series"
	"cardinalsin/txlog"
)

// Queryable is a table as Prometheus' query engine sees it. Each Querier
// reads one view, and so one version, for all selectors of a query: the
// latest, or the one that AtContext named.
type Queryable struct{ reader *reader.Reader }

// NewQueryable wraps a reader.
func NewQueryable(r *reader.Reader) *Queryable { return &Queryable{reader: r} }

// Querier implements storage.Queryable; mint and maxt are ms since the epoch,
// both inclusive. The view is opened by the first call that has a context.
func (q *Queryable) Querier(mint, maxt int64) (storage.Querier, error) {
	return &querier{reader: q.reader, mint: mint, maxt: maxt}, nil
}

// ChunkQuerier implements storage.ChunkQueryable, for remote read.
func (q *Queryable) ChunkQuerier(mint, maxt int64) (storage.ChunkQuerier, error) {
	return &chunkQuerier{querier{reader: q.reader, mint: mint, maxt: maxt}}, nil
}

type atKey struct{}

// AtContext makes the queries under ctx read that version.
func AtContext(ctx context.Context, at txlog.At) context.Context {
	return context.WithValue(ctx, atKey{}, at)
}

type querier struct {
	reader     *reader.Reader
	mint, maxt int64

	mu     sync.Mutex // guards view
	view   *reader.View
	closed bool
}

// open returns the querier's view, opened once.
func (q *querier) open(ctx context.Context) (*reader.View, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return nil, reader.ErrClosed
	}
	if q.view == nil {
		at, _ := ctx.Value(atKey{}).(txlog.At)
		v, err := q.reader.At(ctx, at)
		if err != nil {
			return nil, err
		}
		q.view = v
	}
	return q.view, nil
}

// Close gives the view back.
func (q *querier) Close() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	if q.view == nil {
		return nil
	}
	v := q.view
	q.view = nil
	v.Close()
	return nil
}

// selector covers every microsecond whose millisecond lies in [mint, maxt].
func selector(mint, maxt int64, matchers []*labels.Matcher) series.Selector {
	end := series.FromMillis(maxt)
	if end <= series.MaxTimestamp-999 {
		end += 999
	}
	return series.Selector{Matchers: matchers, Range: series.TimeRange{Min: series.FromMillis(mint), Max: end}}
}

func (q *querier) Select(ctx context.Context, sortSeries bool, hints *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
	mint, maxt, limit := q.mint, q.maxt, 0
	if hints != nil {
		mint, maxt, limit = hints.Start, hints.End, hints.Limit
	}
	view, err := q.open(ctx)
	if err != nil {
		return storage.ErrSeriesSet(err)
	}
	sel := selector(mint, maxt, matchers)
	var found []storage.Series
	if hints != nil && hints.Func == "series" {
		// The series API wants label sets only.
		for l, err := range view.Series(ctx, sel) {
			if err != nil {
				return storage.ErrSeriesSet(err)
			}
			found = append(found, &memSeries{labels: l})
			if limit > 0 && len(found) == limit && !sortSeries {
				break
			}
		}
	} else {
		for s, err := range view.Select(ctx, sel) {
			if err != nil {
				return storage.ErrSeriesSet(err)
			}
			p, err := pointsOf(s.Samples)
			if err != nil {
				return storage.ErrSeriesSet(fmt.Errorf("%s: %w", s.Labels, err))
			}
			found = append(found, &memSeries{labels: s.Labels, points: p})
			if limit > 0 && len(found) == limit && !sortSeries {
				break
			}
		}
	}
	if sortSeries {
		slices.SortFunc(found, func(a, b storage.Series) int { return labels.Compare(a.Labels(), b.Labels()) })
		if limit > 0 && len(found) > limit {
			found = found[:limit]
		}
	}
	return &seriesSet{series: found}
}

func (q *querier) LabelValues(ctx context.Context, name string, hints *storage.LabelHints, matchers ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	view, err := q.open(ctx)
	if err != nil {
		return nil, nil, err
	}
	values, err := view.LabelValues(ctx, name, selector(q.mint, q.maxt, matchers))
	return limited(values, hints), nil, err
}

func (q *querier) LabelNames(ctx context.Context, hints *storage.LabelHints, matchers ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	view, err := q.open(ctx)
	if err != nil {
		return nil, nil, err
	}
	names, err := view.LabelNames(ctx, selector(q.mint, q.maxt, matchers))
	return limited(names, hints), nil, err
}

func limited(s []string, hints *storage.LabelHints) []string {
	if hints != nil && hints.Limit > 0 && len(s) > hints.Limit {
		return s[:hints.Limit]
	}
	return s
}

// chunkQuerier encodes what the querier finds.
type chunkQuerier struct{ querier }

func (q *chunkQuerier) Select(ctx context.Context, sortSeries bool, hints *storage.SelectHints, matchers ...*labels.Matcher) storage.ChunkSeriesSet {
	return storage.NewSeriesSetToChunkSet(q.querier.Select(ctx, sortSeries, hints, matchers...))
}

type seriesSet struct {
	series []storage.Series
	at     int // 1-based
}

func (s *seriesSet) Next() bool {
	if s.at == len(s.series) {
		return false
	}
	s.at++
	return true
}
func (s *seriesSet) At() storage.Series                { return s.series[s.at-1] }
func (s *seriesSet) Err() error                        { return nil }
func (s *seriesSet) Warnings() annotations.Annotations { return nil }
