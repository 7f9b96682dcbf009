package flightsql

import (
	"context"
	"errors"
	"fmt"

	"github.com/apache/arrow-go/v18/arrow/flight"
	"github.com/apache/arrow-go/v18/arrow/flight/flightsql"
)

// errCancelled: another call has cancelled the query.
var errCancelled = errors.New("query cancelled")

// started notes a query that runs, so that it can be cancelled by its id, which
// nobody can guess. done forgets it.
func (s *service) started(ctx context.Context, id string) (_ context.Context, done func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	if id == "" {
		return ctx, func() { cancel(nil) }
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running[id] = cancel
	return ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.running, id)
		cancel(nil)
	}
}

// cancelled tells a query that was cancelled from one that failed.
func cancelled(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, errCancelled) {
		return cause
	}
	return err
}

// CancelFlightInfo implements flightsql.Server: it ends the query, if it runs
// in this process.
func (s *service) CancelFlightInfo(_ context.Context, r *flight.CancelFlightInfoRequest) (flight.CancelFlightInfoResult, error) {
	found := flight.CancelStatusNotCancellable
	for _, e := range r.GetInfo().GetEndpoint() {
		ok, err := s.cancel(e.GetTicket())
		if err != nil {
			return flight.CancelFlightInfoResult{}, err
		}
		if ok {
			found = flight.CancelStatusCancelling
		}
	}
	return flight.CancelFlightInfoResult{Status: found}, nil
}

// cancel ends the query of a ticket; ok is false where there is none.
func (s *service) cancel(t *flight.Ticket) (ok bool, err error) {
	if t == nil {
		return false, nil
	}
	q, err := flightsql.GetStatementQueryTicket(t)
	if err != nil {
		return false, fmt.Errorf("%w: ticket: %w", errBadRequest, err)
	}
	h, err := decodeHandle(q.GetStatementHandle(), s.opts.MaxRuns)
	if err != nil {
		return false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	cancel, ok := s.running[h.ID]
	if ok {
		cancel(errCancelled)
	}
	return ok, nil
}
