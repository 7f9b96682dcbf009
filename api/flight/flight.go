// Package flight takes Arrow Flight's DoPut: record batches in the table's
// schema, which package internal/arrowbatch reads.
//
// It stands on layer 8, beside the other protocols. It makes no server and no
// listener: Register adds the service to a grpc.Server that others make.
//
// INVARIANT: a record batch is acknowledged when all of its rows are durable,
// and stored whole or not at all. What one stream holds in memory is one record
// batch and the dictionaries, however long the stream is.
//
// # Stream
//
// The tenant is the gRPC metadata x-scope-orgid. The descriptor is absent, or
// the path of the table ("metrics"). The first message is the schema. After
// each record batch that became durable comes a PutResult whose app_metadata is
// a JSON object; counts run from the start of the stream, and a client that
// does not read is sent only the last:
//
//	{"batches": 12, "rows": 120000}
//
// A batch that cannot be kept ends the stream with a status that names the
// batch and the row; the batches before it stay. INVALID_ARGUMENT is for what
// will never be accepted, RESOURCE_EXHAUSTED for what comes too fast (trailer
// retry-after, seconds), UNAVAILABLE for what may pass; a message above the
// server's bound is gRPC's own RESOURCE_EXHAUSTED, without the trailer. To send
// a batch again is safe: rows that are there already change nothing.
//
// Speed: rows that follow each other in one series are cheapest, and text as
// dictionaries; batches of 10,000 rows and more make one disk sync cost
// nothing.
package flight

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/flight"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"cardinalsin/ingest"
	"cardinalsin/internal/arrowbatch"
	"cardinalsin/internal/flightguard"
)

// Options configure the service; the zero value is useful.
type Options struct {
	// Table is the name that a descriptor may have. Default "metrics".
	Table string
	// MaxStreams bounds the streams at one time, since each holds a record
	// batch in memory; more are told to come back. Default 32.
	MaxStreams int
	// Logger hears of what fails for no fault of the client's. Default
	// discards.
	Logger *slog.Logger
}

// EnsureDefaults fills in what is unset.
func (o *Options) EnsureDefaults() {
	if o.Table == "" {
		o.Table = "metrics"
	}
	if o.MaxStreams <= 0 {
		o.MaxStreams = 32
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// Register adds the Flight service to a server, which bounds a message: a
// record batch must fit one, so 64 MiB (grpc.MaxRecvMsgSize) is a good bound.
func Register(s *grpc.Server, sink ingest.Sink, o Options) {
	o.EnsureDefaults()
	flight.RegisterFlightServiceServer(s, &service{sink: sink, opts: o, streams: make(chan struct{}, o.MaxStreams)})
}

type service struct {
	flight.BaseFlightServer
	sink    ingest.Sink
	opts    Options
	streams chan struct{} // a token for each that runs
}

// progress is the app_metadata of a PutResult.
type progress struct {
	Batches int64 `json:"batches"`
	Rows    int64 `json:"rows"`
}

// errBusy: as many streams as there may be.
var errBusy = errors.New("too many streams")

// DoPut takes one stream.
func (s *service) DoPut(stream flight.FlightService_DoPutServer) error {
	select {
	case s.streams <- struct{}{}:
	default:
		err := fmt.Errorf("%w: %w: %d at a time", ingest.ErrRate, errBusy, s.opts.MaxStreams)
		s.refuse(err)
		return s.status(stream, err)
	}
	defer func() { <-s.streams }()

	acks := startAcks(stream)
	done, err := s.put(stream, acks)
	ackErr := acks.finish()
	if err == nil {
		err = ackErr
	}
	if err != nil {
		return s.status(stream, fmt.Errorf("record batch %d, after %d rows: %w", done.Batches, done.Rows, err))
	}
	return nil
}

// limits are those of a stream of samples.
var limits = flightguard.Limits{Rows: arrowbatch.MaxRows, Bytes: 128 << 20}

// put takes the batches of a stream until it ends, and tells how far it came.
func (s *service) put(stream flight.FlightService_DoPutServer, acks *acks) (done progress, err error) {
	in := flightguard.New(stream, limits)
	reader, err := flight.NewRecordReader(in, ipc.WithAllocator(in))
	if err != nil {
		return done, s.decodeError(in, err)
	}
	defer reader.Release()
	in.Expect(reader.Schema())
	if err := s.checkDescriptor(in.Descriptor()); err != nil {
		s.refuse(err)
		return done, err
	}
	converter, err := arrowbatch.New(reader.Schema())
	if err != nil {
		s.refuse(err)
		return done, err
	}
	tenant := tenantOf(stream.Context())
	for {
		rec, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return done, nil
		}
		if err != nil {
			return done, s.decodeError(in, err)
		}
		if err := s.append(stream.Context(), tenant, converter, rec); err != nil {
			return done, err
		}
		done.Batches++
		done.Rows += rec.NumRows()
		acks.tell(done)
	}
}

// append makes one record batch durable.
func (s *service) append(ctx context.Context, tenant string, c *arrowbatch.Converter, rec arrow.RecordBatch) error {
	samples, err := c.Batch(rec)
	if err != nil {
		s.refuse(err)
		return err
	}
	if len(samples) == 0 {
		return nil
	}
	return s.sink.Append(ctx, tenant, &ingest.Request{Protocol: ingest.Flight, Samples: samples})
}

// decodeError is why the stream could not be read on: it ended, our own checks
// refused a message, or arrow-go did.
func (s *service) decodeError(in *flightguard.Guard, err error) error {
	switch {
	case status.Code(in.StreamErr()) == codes.ResourceExhausted:
		err = fmt.Errorf("%w: %s", ingest.ErrTooLarge, status.Convert(in.StreamErr()).Message())
	case in.StreamErr() != nil:
		return in.StreamErr() // a client that is gone was refused nothing
	case in.Refusal() != nil:
		err = in.Refusal()
	case errors.Is(err, ingest.ErrTooLarge): // by our allocator
	default:
		err = fmt.Errorf("%w: %w", ingest.ErrMalformed, err)
	}
	s.refuse(err)
	return err
}

// refuse counts what was not handed to the sink.
func (s *service) refuse(err error) {
	reason, _ := ingest.Classify(err)
	s.sink.Refuse(ingest.Flight, reason, 0)
}

// checkDescriptor: rows for another table must not land in this one.
func (s *service) checkDescriptor(d *flight.FlightDescriptor) error {
	if d == nil || len(d.Path) == 0 && len(d.Cmd) == 0 || len(d.Cmd) == 0 && slices.Equal(d.Path, []string{s.opts.Table}) {
		return nil
	}
	return fmt.Errorf("%w: descriptor of path %.200q and a command of %d bytes; the only table to write to is %q", ingest.ErrMalformed, d.Path, len(d.Cmd), s.opts.Table)
}

func tenantOf(ctx context.Context) string {
	md, _ := metadata.FromIncomingContext(ctx)
	if v := md.Get(strings.ToLower(ingest.TenantHeader)); len(v) > 0 {
		return v[0]
	}
	return ""
}

// status says an error in gRPC's words.
func (s *service) status(stream grpc.ServerStream, err error) error {
	if ctxErr := stream.Context().Err(); ctxErr != nil {
		return status.FromContextError(ctxErr).Err()
	}
	if st, ok := status.FromError(err); ok {
		return st.Err() // the stream's own
	}
	_, code := ingest.Classify(err)
	switch code {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge:
		return status.Error(codes.InvalidArgument, err.Error())
	case http.StatusTooManyRequests:
		stream.SetTrailer(metadata.Pairs("retry-after", ingest.RetryAfterSeconds))
		return status.Error(codes.ResourceExhausted, err.Error())
	}
	s.opts.Logger.Error("flight put failed", "err", err)
	return status.Error(codes.Unavailable, err.Error())
}

// acks sends the latest progress in the background: a client that writes
// everything before it reads must not stop the stream, and one that reads late
// needs only the last count.
type acks struct {
	latest chan progress // holds one
	failed chan error
}

func startAcks(stream flight.FlightService_DoPutServer) *acks {
	a := &acks{latest: make(chan progress, 1), failed: make(chan error, 1)}
	go func() {
		var err error
		for p := range a.latest {
			if err == nil {
				err = sendProgress(stream, p)
			}
		}
		a.failed <- err
	}()
	return a
}

func sendProgress(stream flight.FlightService_DoPutServer, p progress) error {
	text, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("encode progress: %w", err)
	}
	return stream.Send(&flight.PutResult{AppMetadata: text})
}

// tell replaces a count that was not sent yet. Only one goroutine calls it.
func (a *acks) tell(p progress) {
	select {
	case <-a.latest:
	default:
	}
	a.latest <- p
}

// finish waits until the last count is sent, or the client has gone.
func (a *acks) finish() error {
	close(a.latest)
	return <-a.failed
}
