package flightsql

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/flight"
	"github.com/apache/arrow-go/v18/arrow/flight/flightsql"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"cardinalsin/sqlengine"
	"cardinalsin/txlog"
)

// statement makes the handle of a statement as a call gives it.
func (s *service) statement(ctx context.Context, sql string, transaction []byte) (*handle, error) {
	if len(transaction) > 0 {
		return nil, fmt.Errorf("%w: there are no transactions", errBadRequest)
	}
	h := &handle{SQL: sql}
	return h, h.pin(header(ctx, VersionHeader))
}

// prepared reads the handle of a prepared statement.
func (s *service) prepared(ctx context.Context, raw []byte) (*handle, error) {
	h, err := decodeHandle(raw, s.opts.MaxRuns)
	if err != nil {
		return nil, err
	}
	return h, h.pin(header(ctx, VersionHeader))
}

// options are those of one run of a statement.
func (s *service) options(h *handle, run int) sqlengine.QueryOptions {
	o := s.opts.Limits
	if v, ok := h.version(); ok {
		o.At = txlog.AtVersion(v)
	}
	if run < len(h.Arguments) {
		for _, a := range h.Arguments[run] {
			o.Arguments = append(o.Arguments, a.value)
		}
	}
	return o
}

// runs is how often a statement runs: once for each row of parameters.
func (h *handle) runs() (int, error) {
	if len(h.Parameters) > 0 && len(h.Arguments) == 0 {
		return 0, fmt.Errorf("%w: the statement has %d parameters and no values are bound to them", errBadRequest, len(h.Parameters))
	}
	return max(len(h.Arguments), 1), nil
}

// prepare finds out what a statement returns and needs.
func (s *service) prepare(ctx context.Context, h *handle) (*sqlengine.Prepared, error) {
	engine, release, err := s.open(ctx, tenantOf(ctx))
	if err != nil {
		return nil, err
	}
	defer release()
	return engine.Prepare(ctx, h.SQL, s.options(h, 0))
}

// info says where the rows of a statement are: here, under a ticket that holds
// the statement.
func (s *service) info(ctx context.Context, h *handle, d *flight.FlightDescriptor) (*flight.FlightInfo, error) {
	p, err := s.prepare(ctx, h)
	if err != nil {
		return nil, err
	}
	if len(h.Arguments) == 0 {
		h.Parameters = namesOf(p.Parameters)
	}
	if _, err := h.runs(); err != nil {
		return nil, err
	}
	h.Schema, h.ID = fingerprint(p.Schema), rand.Text()
	raw, err := h.encode()
	if err != nil {
		return nil, err
	}
	ticket, err := flightsql.CreateStatementQueryTicket(raw)
	if err != nil {
		return nil, fmt.Errorf("make a ticket: %w", err)
	}
	info := &flight.FlightInfo{
		FlightDescriptor: d,
		Endpoint:         []*flight.FlightEndpoint{{Ticket: &flight.Ticket{Ticket: ticket}}},
		TotalRecords:     -1, TotalBytes: -1,
	}
	if p.Schema != nil {
		info.Schema = flight.SerializeSchema(p.Schema, memory.DefaultAllocator)
	}
	return info, nil
}

// schema is that of a statement's rows, empty if it depends on the arguments.
func (s *service) schema(ctx context.Context, h *handle) (*flight.SchemaResult, error) {
	p, err := s.prepare(ctx, h)
	if err != nil {
		return nil, err
	}
	if p.Schema == nil {
		return &flight.SchemaResult{}, nil
	}
	return &flight.SchemaResult{Schema: flight.SerializeSchema(p.Schema, memory.DefaultAllocator)}, nil
}

// GetFlightInfoStatement implements flightsql.Server.
func (s *service) GetFlightInfoStatement(ctx context.Context, q flightsql.StatementQuery, d *flight.FlightDescriptor) (*flight.FlightInfo, error) {
	h, err := s.statement(ctx, q.GetQuery(), q.GetTransactionId())
	if err != nil {
		return nil, err
	}
	return s.info(ctx, h, d)
}

// GetSchemaStatement implements flightsql.Server.
func (s *service) GetSchemaStatement(ctx context.Context, q flightsql.StatementQuery, _ *flight.FlightDescriptor) (*flight.SchemaResult, error) {
	h, err := s.statement(ctx, q.GetQuery(), q.GetTransactionId())
	if err != nil {
		return nil, err
	}
	return s.schema(ctx, h)
}

// DoGetStatement implements flightsql.Server.
func (s *service) DoGetStatement(ctx context.Context, t flightsql.StatementQueryTicket) (*arrow.Schema, <-chan flight.StreamChunk, error) {
	return s.run(ctx, t.GetStatementHandle())
}

// CreatePreparedStatement implements flightsql.Server.
func (s *service) CreatePreparedStatement(ctx context.Context, r flightsql.ActionCreatePreparedStatementRequest) (result flightsql.ActionCreatePreparedStatementResult, err error) {
	h, err := s.statement(ctx, r.GetQuery(), r.GetTransactionId())
	if err != nil {
		return result, err
	}
	p, err := s.prepare(ctx, h)
	if err != nil {
		return result, err
	}
	h.Parameters = namesOf(p.Parameters)
	if result.Handle, err = h.encode(); err != nil {
		return result, err
	}
	result.DatasetSchema, result.ParameterSchema = p.Schema, parameterSchema(p.Parameters)
	return result, nil
}

// ClosePreparedStatement implements flightsql.Server: there is nothing to free.
func (s *service) ClosePreparedStatement(_ context.Context, r flightsql.ActionClosePreparedStatementRequest) error {
	_, err := decodeHandle(r.GetPreparedStatementHandle(), s.opts.MaxRuns)
	return err
}

// DoPutPreparedStatementQuery implements flightsql.Server: the handle that it
// returns holds the arguments.
func (s *service) DoPutPreparedStatementQuery(_ context.Context, q flightsql.PreparedStatementQuery, r flight.MessageReader, _ flight.MetadataWriter) ([]byte, error) {
	h, err := decodeHandle(q.GetPreparedStatementHandle(), s.opts.MaxRuns)
	if err != nil {
		return nil, err
	}
	if h.Arguments, err = readArguments(r, h.Parameters, s.opts.MaxRuns); err != nil {
		return nil, err
	}
	return h.encode()
}

// GetFlightInfoPreparedStatement implements flightsql.Server.
func (s *service) GetFlightInfoPreparedStatement(ctx context.Context, q flightsql.PreparedStatementQuery, d *flight.FlightDescriptor) (*flight.FlightInfo, error) {
	h, err := s.prepared(ctx, q.GetPreparedStatementHandle())
	if err != nil {
		return nil, err
	}
	if _, err := h.runs(); err != nil {
		return nil, err
	}
	return s.info(ctx, h, d)
}

// GetSchemaPreparedStatement implements flightsql.Server.
func (s *service) GetSchemaPreparedStatement(ctx context.Context, q flightsql.PreparedStatementQuery, _ *flight.FlightDescriptor) (*flight.SchemaResult, error) {
	h, err := s.prepared(ctx, q.GetPreparedStatementHandle())
	if err != nil {
		return nil, err
	}
	return s.schema(ctx, h)
}

// DoGetPreparedStatement implements flightsql.Server.
func (s *service) DoGetPreparedStatement(ctx context.Context, q flightsql.PreparedStatementQuery) (*arrow.Schema, <-chan flight.StreamChunk, error) {
	return s.run(ctx, q.GetPreparedStatementHandle())
}

// namesOf are the names of parameters, in order.
func namesOf(ps []sqlengine.Parameter) []string {
	var names []string
	for _, p := range ps {
		names = append(names, p.Name)
	}
	return names
}

// parameterSchema tells a client what to bind. Where any type will do it says
// text, which every client can bind.
func parameterSchema(ps []sqlengine.Parameter) *arrow.Schema {
	fields := make([]arrow.Field, len(ps))
	for i, p := range ps {
		fields[i] = arrow.Field{Name: p.Name, Type: p.Type, Nullable: true}
		if p.Type == nil {
			fields[i].Type = arrow.BinaryTypes.String
		}
	}
	return arrow.NewSchema(fields, nil)
}

// run starts a statement and streams its rows.
func (s *service) run(ctx context.Context, raw []byte) (*arrow.Schema, <-chan flight.StreamChunk, error) {
	h, err := s.prepared(ctx, raw)
	if err != nil {
		return nil, nil, err
	}
	runs, err := h.runs()
	if err != nil {
		return nil, nil, err
	}
	engine, release, err := s.open(ctx, tenantOf(ctx))
	if err != nil {
		return nil, nil, err
	}
	call := ctx // which may go on where the query is cancelled
	ctx, done := s.started(call, h.ID)
	rows, err := engine.Query(ctx, h.SQL, s.options(h, 0))
	if err != nil {
		err = cancelled(ctx, err)
		done()
		release()
		return nil, nil, err
	}
	st := &stream{service: s, engine: engine, handle: h, schema: rows.Schema(), out: make(chan flight.StreamChunk)}
	if h.Schema != "" && h.Schema != fingerprint(st.schema) {
		err = errSchemaChanged
	} else if v := versions(rows); v != "" {
		err = grpc.SetHeader(ctx, metadata.Pairs(VersionHeader, v))
	}
	if err != nil {
		rows.Close()
		done()
		release()
		return nil, nil, err
	}
	go func() {
		// The call ends when the channel closes: everything must be free by then.
		defer close(st.out)
		defer release()
		defer done()
		if err := st.send(ctx, rows, runs); err != nil {
			select {
			case st.out <- flight.StreamChunk{Err: cancelled(ctx, err)}:
			case <-call.Done():
			}
		}
	}()
	return st.schema, st.out, nil
}

// stream sends the rows of a statement.
type stream struct {
	service *service
	engine  Engine
	handle  *handle
	schema  *arrow.Schema
	out     chan flight.StreamChunk
}

// send sends the rows of the first run, and then those of the others.
func (st *stream) send(ctx context.Context, rows *sqlengine.Rows, runs int) error {
	for run := 0; ; {
		if err := st.sendRows(ctx, rows); err != nil {
			return err
		}
		if run++; run == runs {
			return nil
		}
		var err error
		if rows, err = st.engine.Query(ctx, st.handle.SQL, st.service.options(st.handle, run)); err != nil {
			return err
		}
		if !rows.Schema().Equal(st.schema) {
			rows.Close()
			return fmt.Errorf("%w: with row %d of the parameters they are others", errSchemaChanged, run+1)
		}
	}
}

// sendRows sends the rows of one run and closes them.
func (st *stream) sendRows(ctx context.Context, rows *sqlengine.Rows) error {
	defer rows.Close()
	for {
		rec, err := rows.Next(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		err = st.sendRecord(ctx, rec)
		rec.Release()
		if err != nil {
			return err
		}
	}
}

// maxBatchBytes bounds a message, as long as it has more than one row: clients
// refuse messages of more than 4 MiB (gRPC's default) or 16 MiB (ADBC's).
const maxBatchBytes = 2 << 20

// sendRecord sends a record, in parts if it is large.
func (st *stream) sendRecord(ctx context.Context, rec arrow.RecordBatch) error {
	parts := min(max(recordBytes(rec)/maxBatchBytes+1, 1), max(rec.NumRows(), 1))
	each := (rec.NumRows() + parts - 1) / parts
	for from := int64(0); from < rec.NumRows(); from += each {
		part := rec.NewSlice(from, min(from+each, rec.NumRows()))
		select {
		case st.out <- flight.StreamChunk{Data: part}: // whoever takes it releases it
		case <-ctx.Done():
			part.Release()
			return ctx.Err()
		}
	}
	return nil
}

// recordBytes is the memory of a record.
func recordBytes(r arrow.RecordBatch) (n int64) {
	for _, c := range r.Columns() {
		n += int64(c.Data().SizeInBytes())
	}
	return n
}

// versions lists what was read.
func versions(rows *sqlengine.Rows) string {
	var list []int64
	for _, t := range rows.Tables() {
		list = append(list, int64(t.Version))
	}
	slices.Sort(list)
	var text []string
	for _, v := range slices.Compact(list) {
		text = append(text, strconv.FormatInt(v, 10))
	}
	return strings.Join(text, ",")
}
