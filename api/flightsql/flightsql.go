// Package flightsql is SQL over Arrow Flight: statements, prepared statements
// with parameters, and what the tables are.
//
// It stands on layer 8, beside the other protocols, and only translates: calls
// into queries of package sqlengine, rows into a stream, errors into statuses.
// It makes no server and no listener: Register adds the service to a
// grpc.Server that others make.
//
// INVARIANT: a stream that ends with OK is the whole result. What a stream
// holds in memory is two batches of rows, however long it is. Nothing is kept
// between calls: a ticket and the handle of a prepared statement hold all there
// is to know, so any server of the same table can take the next call.
//
// # Metadata of a call
//
//	x-scope-orgid     the tenant
//	cardinal-version  in a request: the version that tables without AT have,
//	                  first of all in place of the ticket's; in the answer to
//	                  DoGet: the versions that were read, separated by commas
//
// # Handle
//
// The handle of a prepared statement and that in a statement's ticket are one
// JSON object. Clients must not look into it; a server believes nothing that it
// says, since any client could as well send the statement itself, and the
// tenant is not in it.
//
//	format      1
//	sql         the statement
//	version     the version that was pinned, if any
//	parameters  the names of the parameters, in order
//	arguments   their values, one list for each time that the statement runs;
//	            null, true, "text", {"int": "1"}, {"uint": "1"}, {"float": "1.5"},
//	            {"bytes": base64}, {"time": RFC 3339}
//	schema      hash of the schema that was promised
//	id          by which the running query can be cancelled
//
// # Errors
//
// A status holds a google.rpc.ErrorInfo with the domain "cardinal" and the
// reason, which is the code of the SQL API over HTTP:
//
//	INVALID_ARGUMENT    bad_request, syntax
//	INVALID_ARGUMENT    execution         its evaluation failed
//	PERMISSION_DENIED   not_allowed       the statement does more than to read
//	NOT_FOUND           not_a_table, version_not_found, version_vacuumed
//	UNIMPLEMENTED       unsupported       the table needs more than we can read
//	RESOURCE_EXHAUSTED  too_large         it exceeds a limit on memory or result
//	DEADLINE_EXCEEDED   timeout
//	ABORTED             schema_changed    since it was prepared: prepare it again
//	UNAVAILABLE         unavailable       the store, or a pin that was lost: try again
//	DATA_LOSS           corrupt
//	INTERNAL            internal
//	CANCELLED           cancelled
package flightsql

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync"

	"github.com/apache/arrow-go/v18/arrow/flight"
	"github.com/apache/arrow-go/v18/arrow/flight/flightsql"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"cardinalsin/ingest"
	"cardinalsin/internal/flightguard"
	"cardinalsin/sqlengine"
)

// VersionHeader is the metadata that pins a version, and names those read.
const VersionHeader = "cardinal-version"

// Engine answers the queries of one tenant; *sqlengine.Engine is one.
type Engine interface {
	Prepare(ctx context.Context, sql string, opts sqlengine.QueryOptions) (*sqlengine.Prepared, error)
	Query(ctx context.Context, sql string, opts sqlengine.QueryOptions) (*sqlengine.Rows, error)
	// Tables lists the names that a statement may use, the table itself first.
	Tables() []string
}

// Open gives the engine of a tenant, "" being the default one. release is
// called when the call is done with it. An error that wraps
// ingest.ErrInvalidTenant is the client's.
type Open func(ctx context.Context, tenant string) (engine Engine, release func(), err error)

// Options configure the service; the zero value is useful.
type Options struct {
	// Limits are those of every query.
	Limits sqlengine.QueryOptions
	// MaxRuns bounds the rows of parameters that are bound at a time: the
	// statement runs once for each. Default 1,000.
	MaxRuns int
	// Version is that of the program, for clients. Default "unknown".
	Version string
	// Logger reports what is our fault. Default discards.
	Logger *slog.Logger
}

// EnsureDefaults fills in what is unset.
func (o *Options) EnsureDefaults() {
	if o.MaxRuns <= 0 {
		o.MaxRuns = 1000
	}
	if o.Version == "" {
		o.Version = "unknown"
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// Register adds the service to a server, which bounds a message: 16 MiB
// (grpc.MaxRecvMsgSize) holds every statement and its parameters.
func Register(s *grpc.Server, open Open, o Options) {
	o.EnsureDefaults()
	sql := &service{open: open, opts: o, running: map[string]context.CancelCauseFunc{}}
	sql.Alloc = memory.DefaultAllocator
	sql.registerInfo()
	flight.RegisterFlightServiceServer(s, &front{sql: sql, FlightServer: flightsql.NewFlightServer(sql)})
}

// service answers Flight SQL's commands.
type service struct {
	flightsql.BaseServer
	open Open
	opts Options

	mu      sync.Mutex // guards running
	running map[string]context.CancelCauseFunc
}

// front stands between gRPC and arrow-go's dispatcher of commands: it says
// errors in gRPC's words, bounds what is decoded, and lets no panic out.
type front struct {
	flight.FlightServer
	sql *service
}

// answered turns what a call ended with into a status. It is deferred.
func (f *front) answered(ctx context.Context, call string, err *error) {
	if r := recover(); r != nil {
		f.sql.opts.Logger.ErrorContext(ctx, "flight call panicked", "call", call, "panic", r, "stack", string(debug.Stack()))
		*err = fmt.Errorf("%w: %s", errPanic, call)
	}
	*err = f.sql.status(ctx, *err)
}

// GetFlightInfo implements flight.FlightServer.
func (f *front) GetFlightInfo(ctx context.Context, d *flight.FlightDescriptor) (info *flight.FlightInfo, err error) {
	defer f.answered(ctx, "GetFlightInfo", &err)
	return f.FlightServer.GetFlightInfo(ctx, d)
}

// GetSchema implements flight.FlightServer.
func (f *front) GetSchema(ctx context.Context, d *flight.FlightDescriptor) (schema *flight.SchemaResult, err error) {
	defer f.answered(ctx, "GetSchema", &err)
	return f.FlightServer.GetSchema(ctx, d)
}

// PollFlightInfo implements flight.FlightServer.
func (f *front) PollFlightInfo(ctx context.Context, d *flight.FlightDescriptor) (info *flight.PollInfo, err error) {
	defer f.answered(ctx, "PollFlightInfo", &err)
	return f.FlightServer.PollFlightInfo(ctx, d)
}

// DoAction implements flight.FlightServer.
func (f *front) DoAction(a *flight.Action, stream flight.FlightService_DoActionServer) (err error) {
	defer f.answered(stream.Context(), "DoAction", &err)
	return f.FlightServer.DoAction(a, stream)
}

// DoGet implements flight.FlightServer.
func (f *front) DoGet(t *flight.Ticket, stream flight.FlightService_DoGetServer) (err error) {
	defer f.answered(stream.Context(), "DoGet", &err)
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	err = f.FlightServer.DoGet(t, &getStream{FlightService_DoGetServer: stream, ctx: ctx, cancel: cancel})
	if err == nil {
		err = ctx.Err() // rows end early then, too
	}
	return err
}

// getStream ends the query when a message cannot be sent: arrow-go goes on to
// read what nobody gets.
type getStream struct {
	flight.FlightService_DoGetServer
	ctx    context.Context
	cancel func()
}

func (s *getStream) Context() context.Context { return s.ctx }

func (s *getStream) Send(d *flight.FlightData) error {
	err := s.FlightService_DoGetServer.Send(d)
	if err != nil {
		s.cancel()
	}
	return err
}

// parameterLimits are those of a stream of parameters.
var parameterLimits = flightguard.Limits{Rows: 100_000, Bytes: 16 << 20}

// DoPut implements flight.FlightServer.
func (f *front) DoPut(stream flight.FlightService_DoPutServer) (err error) {
	defer f.answered(stream.Context(), "DoPut", &err)
	guard := flightguard.New(stream, parameterLimits)
	err = flightsql.NewFlightServerWithAllocator(f.sql, guard).DoPut(&putStream{FlightService_DoPutServer: stream, guard: guard})
	switch {
	case guard.Refusal() != nil:
		return fmt.Errorf("%w: %w", errBadRequest, guard.Refusal())
	case guard.StreamErr() != nil:
		return guard.StreamErr()
	}
	return err
}

// putStream is a stream of parameters.
type putStream struct {
	flight.FlightService_DoPutServer
	guard *flightguard.Guard
}

func (s *putStream) Recv() (*flight.FlightData, error) {
	first := s.guard.Descriptor() == nil
	d, err := s.guard.Recv()
	if err == nil && first && d.FlightDescriptor == nil {
		return nil, fmt.Errorf("%w: a stream without a command", errBadRequest) // arrow-go would look into it
	}
	return d, err
}

// tenantOf reads the metadata of a call.
func tenantOf(ctx context.Context) string { return header(ctx, ingest.TenantHeader) }

// header is the first value of a call's metadata, "" if there is none.
func header(ctx context.Context, name string) string {
	md, _ := metadata.FromIncomingContext(ctx)
	if v := md.Get(strings.ToLower(name)); len(v) > 0 {
		return v[0]
	}
	return ""
}
