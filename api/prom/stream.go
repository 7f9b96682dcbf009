package prom

import (
	"context"
	"iter"
	"sync"

	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/internal/merge"
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
	hold   func(int64) error // counts what iterators hold
	before *stream           // samples shortly before the selection, read when first needed

	mu     sync.Mutex        // guards what follows
	chosen *reader.Selection // nil: not looked for yet
	next   func() (merge.Series, error, bool)
	stop   func()
	held   merge.Series // read from next, not asked for yet
	end    bool
}

func newStream(ctx context.Context, view *reader.View, sel series.Selector, chosen *reader.Selection) *stream {
	s := &stream{ctx: ctx, view: view, sel: sel, chosen: chosen}
	if sel.Range.Min != series.MinTimestamp {
		s.before = &stream{ctx: ctx, view: view, sel: lookback(sel)}
	}
	return s
}

// points returns what a series has in the selection, perhaps nothing.
func (s *stream) points(of *tableSeries) (points, error) {
	found, ok, err := s.take(of)
	if err != nil || !ok {
		return points{}, err
	}
	p, err := pointsIn(&found)
	if err != nil || s.before == nil || !p.opensCounter() {
		return p, err
	}
	earlier, ok, err := s.before.take(of)
	if err != nil || !ok {
		return p, err
	}
	return p, p.follow(lastSample(&earlier))
}

// take goes on to a series and returns it; ok is false where it has no samples.
func (s *stream) take(of *tableSeries) (found merge.Series, ok bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.compare(of); s.next == nil || c > 0 || c == 0 && s.end { // it was passed
		if err := s.restart(); err != nil {
			return found, false, err
		}
	}
	for !s.end {
		switch c := s.compare(of); {
		case c == 0:
			return s.held, true, nil
		case c > 0:
			return found, false, nil
		}
		if err := s.advance(); err != nil {
			return found, false, err
		}
	}
	return found, false, nil
}

// compare tells whether the series that the stream stands on comes after
// another. At the end it stands on the last one.
func (s *stream) compare(of *tableSeries) int {
	if s.held.ID == of.id && labels.Equal(s.held.Labels, of.labels) {
		return 0
	}
	return series.Compare(s.held.Labels, of.labels, s.held.ID, of.id)
}

// restart begins at the first series.
func (s *stream) restart() error {
	s.close()
	if s.chosen == nil {
		chosen, err := s.view.Choose(s.ctx, s.sel)
		if err != nil {
			return err
		}
		s.chosen = chosen
	}
	s.next, s.stop = iter.Pull2(s.chosen.Columns(s.ctx))
	s.held, s.end = merge.Series{}, false
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
	s.held = next
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
