package flightsql

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/deletion"
	"cardinalsin/ingest"
	"cardinalsin/lease"
	"cardinalsin/sqlengine"
	"cardinalsin/storage"
	"cardinalsin/txlog"
	"cardinalsin/writer"
)

var (
	// errBadRequest: the call is not what Flight SQL or the package comment says.
	errBadRequest = errors.New("bad request")
	// errSchemaChanged: the result has other columns than were promised.
	errSchemaChanged = errors.New("the columns of the result have changed since the statement was prepared")
	errPanic         = errors.New("call panicked")
)

// domain is that of the reasons.
const domain = "cardinal"

// conditions tells what an error means to a client. The first that holds is
// it: corruption comes before what it leads to.
var conditions = []struct {
	is     error
	code   codes.Code
	reason string
}{
	{errBadRequest, codes.InvalidArgument, "bad_request"},
	{ingest.ErrInvalidTenant, codes.InvalidArgument, "bad_request"},
	{chunk.ErrCorrupt, codes.DataLoss, "corrupt"},
	{action.ErrCorrupt, codes.DataLoss, "corrupt"},
	{deletion.ErrCorrupt, codes.DataLoss, "corrupt"},
	{chunk.ErrTags, codes.DataLoss, "corrupt"},
	{sqlengine.ErrArgument, codes.InvalidArgument, "bad_request"},
	{sqlengine.ErrSyntax, codes.InvalidArgument, "syntax"},
	{sqlengine.ErrNotAllowed, codes.PermissionDenied, "not_allowed"},
	{sqlengine.ErrTooLarge, codes.ResourceExhausted, "too_large"},
	{sqlengine.ErrExecution, codes.InvalidArgument, "execution"},
	{sqlengine.ErrTimeout, codes.DeadlineExceeded, "timeout"},
	{errSchemaChanged, codes.Aborted, "schema_changed"},
	{txlog.ErrVersionNotFound, codes.NotFound, "version_not_found"},
	{txlog.ErrNotTable, codes.NotFound, "not_a_table"},
	{txlog.ErrVersionVacuumed, codes.NotFound, "version_vacuumed"},
	{txlog.ErrUnsupported, codes.Unimplemented, "unsupported"},
	{lease.ErrPinLost, codes.Unavailable, "unavailable"},
	{storage.ErrUnavailable, codes.Unavailable, "unavailable"},
	{writer.ErrOverloaded, codes.Unavailable, "unavailable"}, // too many tables are open
	{context.DeadlineExceeded, codes.DeadlineExceeded, "timeout"},
	{errCancelled, codes.Canceled, "cancelled"},
	{context.Canceled, codes.Canceled, "cancelled"},
}

// classify finds the condition of an error.
func classify(err error) (codes.Code, string) {
	for _, c := range conditions {
		if errors.Is(err, c.is) {
			return c.code, c.reason
		}
	}
	return codes.Internal, "internal"
}

// status says an error in gRPC's words. What is our own fault is reported in
// full to the log, and only its kind to the client.
func (s *service) status(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err // said already, or arrow-go's own
	}
	code, reason := classify(err)
	message := err.Error()
	if code == codes.Internal || code == codes.DataLoss {
		s.opts.Logger.ErrorContext(ctx, "Flight SQL call failed", "err", err)
	}
	if code == codes.Internal {
		message = "internal error; the server's log has the cause"
	}
	st, detailErr := status.New(code, message).WithDetails(&errdetails.ErrorInfo{Reason: reason, Domain: domain})
	if detailErr != nil {
		return fmt.Errorf("describe %s: %w", reason, detailErr)
	}
	return st.Err()
}
