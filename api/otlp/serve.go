package otlp

import (
	"context"
	"errors"
	"fmt"
	"mime"
	"net/http"

	"go.opentelemetry.io/collector/pdata/pmetric/pmetricotlp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	_ "google.golang.org/grpc/encoding/gzip" // what clients compress with
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"

	"cardinalsin/ingest"
	"cardinalsin/internal/httpbody"
)

const (
	typeProto = "application/x-protobuf"
	typeJSON  = "application/json"
)

func malformed(err error) error { return fmt.Errorf("decode: %w: %w", ingest.ErrMalformed, err) }

// Handler receives OTLP/HTTP on whatever path it is mounted: protobuf or JSON,
// plain, gzip or zstd. It answers in the encoding of the request; failures are
// a google.rpc.Status, as the protocol wants.
func Handler(sink ingest.Sink, o Options) http.Handler { return newReceiver(sink, o) }

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "only POST exports", http.StatusMethodNotAllowed)
		return
	}
	contentType, _, err := mime.ParseMediaType(req.Header.Get("Content-Type"))
	if err != nil {
		contentType = "" // of no kind that is known
	}
	response, err := r.exportHTTP(w, req, contentType)
	if contentType != typeJSON {
		contentType = typeProto
	}
	if err != nil {
		code := r.fail(err)
		if code == http.StatusTooManyRequests {
			w.Header().Set("Retry-After", ingest.RetryAfterSeconds)
		}
		answer := grpcStatus(err).Proto()
		if contentType == typeJSON {
			r.answer(w, contentType, code, func() ([]byte, error) { return protojson.Marshal(answer) })
			return
		}
		r.answer(w, contentType, code, func() ([]byte, error) { return proto.Marshal(answer) })
		return
	}
	marshal := response.MarshalProto
	if contentType == typeJSON {
		marshal = response.MarshalJSON
	}
	r.answer(w, contentType, http.StatusOK, marshal)
}

func (r *receiver) exportHTTP(w http.ResponseWriter, req *http.Request, contentType string) (pmetricotlp.ExportResponse, error) {
	var decode func([]byte) (pmetricotlp.ExportRequest, error)
	switch contentType {
	case typeProto:
		decode = decodeProto
	case typeJSON:
		decode = decodeJSON
	default:
		return pmetricotlp.NewExportResponse(), r.refuse(fmt.Errorf("%w: content type %.100q; send %s or %s", ingest.ErrUnsupported, req.Header.Get("Content-Type"), typeProto, typeJSON))
	}
	body, err := httpbody.Read(w, req, MaxMessageBytes)
	if err != nil {
		return pmetricotlp.NewExportResponse(), r.refuse(err)
	}
	request, err := decode(body)
	if err != nil {
		return pmetricotlp.NewExportResponse(), r.refuse(err)
	}
	return r.export(req.Context(), req.Header.Get(ingest.TenantHeader), request)
}

func (r *receiver) answer(w http.ResponseWriter, contentType string, code int, marshal func() ([]byte, error)) {
	body, err := marshal()
	if err != nil {
		r.opts.Logger.Error("answer cannot be encoded", "protocol", ingest.OTLP, "err", err)
		code = http.StatusInternalServerError
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(code)
	if _, err := w.Write(body); err != nil {
		r.opts.Logger.Debug("client left before its answer", "protocol", ingest.OTLP, "err", err)
	}
}

// fail gives the HTTP status of an error, and logs what is not the client's
// fault.
func (r *receiver) fail(err error) int {
	reason, code := ingest.Classify(err)
	if code >= http.StatusInternalServerError {
		r.opts.Logger.Warn("write failed", "protocol", ingest.OTLP, "reason", reason, "err", err)
	}
	return code
}

// grpcStatus says an error by gRPC's code: of those that OTLP lets clients
// retry only where that can help.
func grpcStatus(err error) *status.Status {
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return status.FromContextError(err)
	}
	_, code := ingest.Classify(err)
	switch code {
	case http.StatusTooManyRequests:
		s := status.New(codes.ResourceExhausted, err.Error())
		// Without this, clients take it for final.
		if detailed, err := s.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(ingest.RetryAfter)}); err == nil {
			return detailed
		}
		return s
	case http.StatusServiceUnavailable:
		return status.New(codes.Unavailable, err.Error())
	}
	return status.New(codes.InvalidArgument, err.Error())
}

// Register receives OTLP/gRPC on a server, plain or gzip.
//
// Its messages are taken as bytes and decoded as those of OTLP/HTTP are,
// rather than by upstream's service, which decodes whatever comes; see
// scanProto.
func Register(s grpc.ServiceRegistrar, sink ingest.Sink, o Options) {
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: "opentelemetry.proto.collector.metrics.v1.MetricsService",
		HandlerType: (*exporter)(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "Export", Handler: exportGRPC}},
		Metadata:    "opentelemetry/proto/collector/metrics/v1/metrics_service.proto",
	}, newReceiver(sink, o))
}

// exporter is what grpc checks that a receiver is. A message is an Empty with
// fields that it does not know: its bytes.
type exporter interface {
	exportGRPC(context.Context, *emptypb.Empty) (*emptypb.Empty, error)
	refuse(error) error
}

func exportGRPC(server any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
	message := &emptypb.Empty{}
	if err := decode(message); err != nil {
		return nil, grpcStatus(server.(exporter).refuse(malformed(err))).Err()
	}
	handle := func(ctx context.Context, message any) (any, error) {
		return server.(exporter).exportGRPC(ctx, message.(*emptypb.Empty))
	}
	if interceptor == nil {
		return handle(ctx, message)
	}
	return interceptor(ctx, message, &grpc.UnaryServerInfo{
		Server: server, FullMethod: "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
	}, handle)
}

func (r *receiver) exportGRPC(ctx context.Context, message *emptypb.Empty) (*emptypb.Empty, error) {
	request, err := decodeProto(message.ProtoReflect().GetUnknown())
	if err != nil {
		return nil, grpcStatus(r.refuse(err)).Err()
	}
	var tenant string
	if names := metadata.ValueFromIncomingContext(ctx, ingest.TenantHeader); len(names) > 0 {
		tenant = names[0]
	}
	response, err := r.export(ctx, tenant, request)
	if err != nil {
		r.fail(err)
		return nil, grpcStatus(err).Err()
	}
	body, err := response.MarshalProto()
	if err != nil {
		return nil, status.Errorf(codes.Internal, "encode the answer: %v", err)
	}
	answer := &emptypb.Empty{}
	answer.ProtoReflect().SetUnknown(body)
	return answer, nil
}
