package prom

import (
	"context"
	"fmt"
	"iter"
	"sync"

	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/reader"
	"cardinalsin/series"
)

// stream gives the samples of a selection that is too large to be kept, one
// series after another in the table's order, as upstream's engine iterates. A
// series that was passed makes it begin anew: slow, and still right.
type stream struct {
	ctx    context.Context //nolint:containedctx // of the query: iterators have none
	view   *reader.View
	sel    series.Selector
	before *stream // samples shortly before the selection, made when first needed

	mu   sync.Mutex // guards what follows
	next func() (series.Series, error, bool)
	stop func()
	held series.Series // read from next, not asked for yet
	id   series.ID
	end  bool
}

func newStream(ctx context.Context, view *reader.View, sel series.Selector) *stream {
	s := &stream{ctx: ctx, view: view, sel: sel}
	if sel.Range.Min != series.MinTimestamp {
		s.before = &stream{ctx: ctx, view: view, sel: lookback(sel)}
	}
	return s
}

// points returns what a series has in the selection, perhaps nothing.
func (s *stream) points(l labels.Labels) (points, error) {
	p, err := s.decode(l)
	if err != nil {
		return points{}, tableError{fmt.Errorf("%s: %w", l, err)}
	}
	return p, nil
}

func (s *stream) decode(l labels.Labels) (points, error) {
	samples, err := s.take(l)
	if err != nil {
		return points{}, err
	}
	p, err := pointsOf(samples)
	if err != nil || s.before == nil || !p.opensCounter() {
		return p, err
	}
	earlier, err := s.before.take(l)
	if err != nil || len(earlier) == 0 {
		return p, err
	}
	return p, p.follow(earlier[len(earlier)-1])
}

// take goes on to a series and returns its samples.
func (s *stream) take(l labels.Labels) ([]series.Sample, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := series.IDOf(l)
	if c := s.compare(l, id); s.next == nil || c > 0 || c == 0 && s.end { // it was passed
		if err := s.restart(); err != nil {
			return nil, err
		}
	}
	for !s.end {
		switch c := s.compare(l, id); {
		case c == 0:
			return s.held.Samples, nil
		case c > 0:
			return nil, nil // it has none
		}
		if err := s.advance(); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// compare tells whether the series that the stream stands on comes after
// another. At the end it stands on the last one.
func (s *stream) compare(l labels.Labels, id series.ID) int {
	return series.Compare(s.held.Labels, l, s.id, id)
}

// restart begins at the first series.
func (s *stream) restart() error {
	s.close()
	s.next, s.stop = iter.Pull2(s.view.Select(s.ctx, s.sel))
	s.held, s.id, s.end = series.Series{}, 0, false
	return s.advance()
}

func (s *stream) advance() error {
	next, err, ok := s.next()
	if err != nil {
		s.close()
		return err
	}
	if !ok {
		s.end = true
		return nil
	}
	s.held, s.id = next, series.IDOf(next.Labels)
	return nil
}

// close ends the reading; whoever asks again begins anew. mu is held.
func (s *stream) close() {
	if s.stop != nil {
		s.stop()
		s.next, s.stop = nil, nil
	}
}

// Close gives free what the stream holds.
func (s *stream) Close() {
	s.mu.Lock()
	s.close()
	s.mu.Unlock()
	if s.before != nil {
		s.before.Close()
	}
}
