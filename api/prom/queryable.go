package prom

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/annotations"

	"cardinalsin/internal/merge"
	"cardinalsin/reader"
	"cardinalsin/series"
	"cardinalsin/txlog"
)

// Queryable is a table as Prometheus' query engine sees it. Each Querier
// reads one view, and so one version, for all selectors of a query: the
// latest, or the one that AtContext named.
type Queryable struct {
	reader *reader.Reader
	// QueryBytes bounds what one query holds in memory: label sets, and samples
	// that are not streamed. A query above it fails with ErrMemory. Default
	// 1 GiB; 0: no bound.
	QueryBytes int64
	// Memory bounds what all queries hold together, those of other tables that
	// share it included. Default 2 GiB.
	Memory *Memory
	// KeepSamples is how many samples of a selector are kept; those of a larger
	// one are streamed as the engine asks for them. Default 1 million.
	KeepSamples int
}

// defaultKeepSamples takes 16 to 60 MB.
const defaultKeepSamples = 1_000_000

// NewQueryable wraps a reader.
func NewQueryable(r *reader.Reader) *Queryable {
	return &Queryable{
		reader: r, KeepSamples: defaultKeepSamples,
		QueryBytes: defaultQueryBytes, Memory: NewMemory(defaultMemoryBytes),
	}
}

// Querier implements storage.Queryable; mint and maxt are ms since the epoch,
// both inclusive. The view is opened by the first call that has a context.
func (q *Queryable) Querier(mint, maxt int64) (storage.Querier, error) {
	return q.querier(mint, maxt), nil
}

// ChunkQuerier implements storage.ChunkQueryable, for remote read.
func (q *Queryable) ChunkQuerier(mint, maxt int64) (storage.ChunkQuerier, error) {
	one := q.querier(mint, maxt)
	one.passesOn = true
	return &chunkQuerier{one}, nil
}

func (q *Queryable) querier(mint, maxt int64) *querier {
	return &querier{reader: q.reader, mint: mint, maxt: maxt, keepSamples: q.KeepSamples, own: holding{memory: q.Memory, most: q.QueryBytes}}
}

type atKey struct{}

// AtContext makes the queries under ctx read that version.
func AtContext(ctx context.Context, at txlog.At) context.Context {
	return context.WithValue(ctx, atKey{}, at)
}

type querier struct {
	reader      *reader.Reader
	mint, maxt  int64
	keepSamples int
	passesOn    bool    // samples are encoded and written as they are read
	own         holding // outside of a request

	mu      sync.Mutex // guards the fields below
	request *holding   // what counts instead, and longer than the querier lives
	view    *reader.View
	closed  bool
	streams []*stream
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
		q.view, q.request = v, holdingOf(ctx)
	}
	return q.view, nil
}

// hold counts bytes for the request that the querier belongs to, or for itself.
func (q *querier) hold(n int64) error {
	q.mu.Lock()
	request := q.request
	q.mu.Unlock()
	if request != nil {
		return request.hold(n)
	}
	return q.own.hold(n)
}

// weight counts samples as upstream does.
func weight(s *merge.Series) int {
	const sampleBytes = 16 // promql, totalHPointSize
	n := len(s.Floats.Times) + len(s.Samples)
	for i := range s.Samples {
		n += len(s.Samples[i].Histogram) / sampleBytes
	}
	return n
}

// Close gives the view back.
func (q *querier) Close() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.own.giveBack()
	if q.view == nil {
		return nil
	}
	for _, s := range q.streams {
		s.Close()
	}
	v := q.view
	q.view, q.streams = nil, nil
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

// Select implements storage.Querier. What is small, or must be sorted – the
// table's order is not that of labels – is read before it returns. Of what is
// large only the label sets are, and the samples while upstream iterates:
// series may then turn out to have none.
func (q *querier) Select(ctx context.Context, sortSeries bool, hints *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
	mint, maxt, limit := q.mint, q.maxt, 0
	if hints != nil {
		mint, maxt, limit = hints.Start, hints.End, hints.Limit
	}
	view, err := q.open(ctx)
	if err != nil {
		return failed(ctx, err)
	}
	if sortSeries {
		limit = 0 // the first in order may be the last to come
	}
	sel := selector(mint, maxt, matchers)
	var found []*tableSeries
	if hints != nil && hints.Func == "series" {
		// The series API wants label sets only.
		found, err = q.labelSets(ctx, view, sel, limit)
	} else {
		made := q.evaluationOf(ctx, hints)
		found, err = q.samples(ctx, view, sel, limit, !sortSeries && limit == 0, &made)
	}
	if err != nil {
		return failed(ctx, err)
	}
	if sortSeries {
		slices.SortFunc(found, func(a, b *tableSeries) int { return labels.Compare(a.labels, b.labels) })
		if hints != nil && hints.Limit > 0 && len(found) > hints.Limit {
			found = found[:hints.Limit]
		}
	}
	return &seriesSet{series: found}
}

// failed marks an error as the table's.
func failed(ctx context.Context, err error) storage.SeriesSet {
	err = tableError{err}
	readFailureOf(ctx).note(err)
	return storage.ErrSeriesSet(err)
}

// labelSets returns up to limit series without samples; 0 is no limit.
func (q *querier) labelSets(ctx context.Context, view *reader.View, sel series.Selector, limit int) ([]*tableSeries, error) {
	var found []*tableSeries
	for l, err := range view.Series(ctx, sel) {
		if err != nil {
			return nil, err
		}
		if err := q.hold(labelBytes(l)); err != nil {
			return nil, err
		}
		if found = append(found, &tableSeries{labels: l}); len(found) == limit {
			break
		}
	}
	return found, nil
}

// streamed returns series whose samples are read when they are asked for.
func (q *querier) streamed(ctx context.Context, view *reader.View, sel series.Selector, chosen *reader.Selection, made *evaluation) ([]*tableSeries, error) {
	from := newStream(ctx, view, sel, chosen)
	from.hold = q.hold
	found := make([]*tableSeries, 0, chosen.Labels())
	var slab []tableSeries // neighbours live as long as each other
	for s, err := range chosen.Series(ctx) {
		if err != nil {
			return nil, err
		}
		if len(slab) == cap(slab) {
			slab = make([]tableSeries, 0, 256)
		}
		if err := q.hold(labelBytes(s.Labels)); err != nil {
			return nil, err
		}
		slab = append(slab, tableSeries{labels: s.Labels, id: s.ID, stream: from, made: made})
		found = append(found, &slab[len(slab)-1])
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return nil, reader.ErrClosed
	}
	q.streams = append(q.streams, from)
	return found, nil
}

// lookback selects what came shortly before a selection.
func lookback(sel series.Selector) series.Selector {
	return series.Selector{Matchers: sel.Matchers, Range: series.TimeRange{Min: sel.Range.Min - resetLookback, Max: sel.Range.Min - 1}}
}

// samples returns up to limit series; 0 is no limit. Those of a large selection
// are streamed if they may be.
func (q *querier) samples(ctx context.Context, view *reader.View, sel series.Selector, limit int, mayStream bool, made *evaluation) ([]*tableSeries, error) {
	chosen, err := view.Choose(ctx, sel)
	if err != nil {
		return nil, err
	}
	if mayStream && chosen.Rows() > int64(q.keepSamples) {
		return q.streamed(ctx, view, sel, chosen, made)
	}
	kept := 0
	var bytes int64
	var found []*tableSeries
	first := map[series.ID][]*tableSeries{} // those whose first sample needs the one before
	for s, err := range chosen.Columns(ctx) {
		if err != nil {
			return nil, err
		}
		if kept += weight(&s); mayStream && kept > q.keepSamples {
			if err := q.hold(-bytes); err != nil {
				return nil, err
			}
			return q.streamed(ctx, view, sel, chosen, made)
		}
		p, err := pointsIn(&s)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.Labels, err)
		}
		p = p.alone()
		size := labelBytes(s.Labels) + p.bytes()
		if err := q.hold(size); err != nil {
			return nil, err
		}
		bytes += size
		m := &tableSeries{labels: s.Labels, id: s.ID, points: p, made: made}
		if p.opensCounter() {
			first[s.ID] = append(first[s.ID], m)
		}
		if found = append(found, m); len(found) == limit {
			break
		}
	}
	if len(first) == 0 || sel.Range.Min == series.MinTimestamp {
		return found, nil
	}
	// A TSDB knows of a series' first selected histogram whether it goes on
	// from the one before; so look a little further back. This second read is
	// made for series with native histograms only.
	if chosen, err = view.Choose(ctx, lookback(sel)); err != nil {
		return nil, err
	}
	for s, err := range chosen.Columns(ctx) {
		if err != nil {
			return nil, err
		}
		for _, m := range first[s.ID] {
			if !labels.Equal(m.labels, s.Labels) {
				continue
			}
			if err := m.points.follow(lastSample(&s)); err != nil {
				return nil, fmt.Errorf("%s: %w", s.Labels, err)
			}
		}
	}
	return found, nil
}

// lastSample is the last one of a series that has some.
func lastSample(s *merge.Series) series.Sample {
	if n := len(s.Floats.Times); n > 0 {
		return series.Sample{Time: s.Floats.Times[n-1], Value: s.Floats.Values[n-1]}
	}
	return s.Samples[len(s.Samples)-1]
}

// resetLookback is how far back the sample before a selection is looked for,
// in µs: five minutes, past which a series counts as ended.
const resetLookback = 5 * 60 * 1_000_000

// LabelValues implements storage.Querier.
func (q *querier) LabelValues(ctx context.Context, name string, hints *storage.LabelHints, matchers ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return q.strings(ctx, func(v *reader.View) ([]string, error) {
		return v.LabelValues(ctx, name, selector(q.mint, q.maxt, matchers), limitOf(hints))
	})
}

// LabelNames implements storage.Querier.
func (q *querier) LabelNames(ctx context.Context, hints *storage.LabelHints, matchers ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return q.strings(ctx, func(v *reader.View) ([]string, error) {
		return v.LabelNames(ctx, selector(q.mint, q.maxt, matchers), limitOf(hints))
	})
}

func (q *querier) strings(ctx context.Context, read func(*reader.View) ([]string, error)) ([]string, annotations.Annotations, error) {
	view, err := q.open(ctx)
	if err != nil {
		return nil, nil, tableError{err}
	}
	found, err := read(view)
	if err == nil {
		n := int64(aText * len(found))
		for _, s := range found {
			n += int64(len(s))
		}
		err = q.hold(n)
	}
	if err != nil {
		return nil, nil, tableError{err}
	}
	return found, nil, nil
}

// limitOf is how many texts are asked for, 0 for all.
func limitOf(hints *storage.LabelHints) int {
	if hints == nil {
		return 0
	}
	return max(hints.Limit, 0)
}

// chunkQuerier encodes what the querier finds.
type chunkQuerier struct{ *querier }

func (q *chunkQuerier) Select(ctx context.Context, sortSeries bool, hints *storage.SelectHints, matchers ...*labels.Matcher) storage.ChunkSeriesSet {
	return storage.NewSeriesSetToChunkSet(q.querier.Select(ctx, sortSeries, hints, matchers...))
}

type seriesSet struct {
	series []*tableSeries
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
