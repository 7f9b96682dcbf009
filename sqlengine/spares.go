package sqlengine

import (
	"context"
	"sync"
)

// maxSpares is how many databases wait for queries.
const maxSpares = 2

// spares are databases that were opened ahead and have not seen a statement.
// Each serves one query and is closed after it, so that queries share nothing.
type spares struct {
	mu      sync.Mutex
	ready   []*database
	filling bool
	closed  bool
	filler  sync.WaitGroup
}

// take returns a database with the settings, one that waits if there is one.
func (s *spares) take(ctx context.Context, with settings) (*database, error) {
	s.mu.Lock()
	var d *database
	if n := len(s.ready); n > 0 {
		d = s.ready[n-1]
		s.ready = s.ready[:n-1]
	}
	s.mu.Unlock()
	if d == nil {
		return openDatabase(ctx, with)
	}
	if err := d.configure(ctx, with); err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

// fill opens what is missing, in the background and one at a time. A query
// calls it at its end, when it needs the processors no longer.
func (s *spares) fill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.filling || len(s.ready) >= maxSpares {
		return
	}
	s.filling = true
	s.filler.Go(func() {
		for {
			d, err := openBare(context.Background())
			s.mu.Lock()
			if err == nil {
				s.ready = append(s.ready, d)
			}
			// The next query opens its own, and has the error if it stays.
			if err != nil || s.closed || len(s.ready) >= maxSpares {
				s.filling = false
				s.mu.Unlock()
				return
			}
			s.mu.Unlock()
		}
	})
}

// close closes all that wait. Nothing is opened any more.
func (s *spares) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.filler.Wait()
	for _, d := range s.ready {
		d.close()
	}
	s.ready = nil
}
