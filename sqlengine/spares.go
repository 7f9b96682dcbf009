package sqlengine

import (
	"context"
	"slices"
	"sync"
)

// maxSpares is how many databases wait for queries, and maxKept how many that
// have served one wait for others on the same files.
const (
	maxSpares = 2
	maxKept   = 4
)

// spares are databases that were opened ahead and have not seen a statement,
// and some that served queries which ended well. One of these knows its files'
// footers and the views over them, and serves any query with the same settings
// on exactly the same files. Nothing else passes from query to query: a
// statement cannot change a setting or make an object, each has a transaction of
// its own, and the rows of the head are taken out.
type spares struct {
	mu      sync.Mutex
	ready   []*database
	kept    []*database // the latest at the end
	retired []*database // to be closed
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

// again returns a database that can open these files and no others, nil if none
// is kept.
func (s *spares) again(with settings, paths []string) *database {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, d := range slices.Backward(s.kept) {
		if d.with == with && slices.Equal(d.paths, paths) {
			s.kept = slices.Delete(s.kept, i, i+1)
			return d
		}
	}
	return nil
}

// keep takes a database back whose query has ended.
func (s *spares) keep(d *database) {
	d.sources.list = nil
	if err := d.exec(context.Background(), "COMMIT"); err != nil || d.spilled() {
		d.close() // nobody needs it
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		d.close()
		return
	}
	s.kept = append(s.kept, d)
	if len(s.kept) > maxKept {
		s.retired = append(s.retired, s.kept[0])
		s.kept = slices.Delete(s.kept, 0, 1)
	}
}

// fill opens what is missing, in the background and one at a time. A query
// calls it at its end, when it needs the processors no longer.
func (s *spares) fill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.filling || !s.work() {
		return
	}
	s.filling = true
	s.filler.Go(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		defer func() { s.filling = false }()
		for !s.closed && s.work() {
			retired := s.retired
			s.retired = nil
			missing := len(s.ready) < maxSpares
			s.mu.Unlock()
			for _, d := range retired {
				d.close()
			}
			var d *database
			var err error
			if missing {
				d, err = openBare(context.Background())
			}
			s.mu.Lock()
			if err != nil {
				return // the next query opens its own, and has the error if it stays
			}
			if d != nil {
				s.ready = append(s.ready, d)
			}
		}
	})
}

// work reports whether there is anything to do in the background.
func (s *spares) work() bool { return len(s.ready) < maxSpares || len(s.retired) > 0 }

// close closes all that wait. Nothing is opened any more.
func (s *spares) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.filler.Wait()
	for _, d := range slices.Concat(s.ready, s.kept, s.retired) {
		d.close()
	}
	s.ready, s.kept, s.retired = nil, nil, nil
}
