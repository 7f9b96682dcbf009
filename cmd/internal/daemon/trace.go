package daemon

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"cardinalsin"
	"cardinalsin/ingest"
	"cardinalsin/txlog"
	"cardinalsin/writer"
)

// tracer exports spans. A nil one does nothing.
type tracer struct {
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
}

// newTracer exports over HTTP; the OTEL_* environment says where to, how much
// is sampled (default all) and what the service is called.
func newTracer(ctx context.Context) (*tracer, error) {
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, fmt.Errorf("open the export of traces: %w", err)
	}
	res, err := resource.New(ctx, resource.WithAttributes(attribute.String("service.name", "cardinal")), resource.WithFromEnv(), resource.WithHost(), resource.WithProcessPID())
	if err != nil {
		return nil, fmt.Errorf("name the service: %w", err)
	}
	return tracerTo(sdktrace.NewBatchSpanProcessor(exporter), res), nil
}

func tracerTo(p sdktrace.SpanProcessor, res *resource.Resource) *tracer {
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(p), sdktrace.WithResource(res))
	// gRPC's handler takes them from there.
	otel.SetTracerProvider(provider)
	otel.SetTextMapPropagator(propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{}))
	return &tracer{provider: provider, tracer: provider.Tracer("cardinalsin")}
}

func (t *tracer) close(ctx context.Context) error {
	if t == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		return fmt.Errorf("export the last traces: %w", err)
	}
	return nil
}

// wrap makes a span of each HTTP request.
func (t *tracer) wrap(h http.Handler) http.Handler {
	return otelhttp.NewHandler(h, "http", otelhttp.WithTracerProvider(t.provider), otelhttp.WithSpanNameFormatter(func(_ string, r *http.Request) string {
		return r.Method + " " + r.URL.Path
	}))
}

// sink makes a span of each Append, within that of its request.
func (t *tracer) sink(s ingest.Sink) ingest.Sink { return tracedSink{s, t.tracer} }

type tracedSink struct {
	ingest.Sink
	tracer trace.Tracer
}

func (s tracedSink) Append(ctx context.Context, tenant string, r *ingest.Request) error {
	ctx, span := s.tracer.Start(ctx, "ingest append", trace.WithAttributes(
		attribute.String("tenant", tenant), attribute.String("protocol", string(r.Protocol)),
		attribute.Int("series", len(r.Samples)), attribute.Int("samples", r.Samples.Samples()),
		attribute.Int("exemplars", len(r.Exemplars)), attribute.Int("metadata", len(r.Metadata))))
	defer span.End()
	err := s.Sink.Append(ctx, tenant, r)
	fail(span, err)
	return err
}

func fail(span trace.Span, err error) {
	if err != nil {
		span.RecordError(err)
		span.SetStatus(codes.Error, "")
	}
}

// past makes a span of what has just ended and took so long.
func (t *tracer) past(name string, took time.Duration, err error, attributes ...attribute.KeyValue) {
	now := time.Now()
	_, span := t.tracer.Start(context.Background(), name, trace.WithTimestamp(now.Add(-took)), trace.WithAttributes(attributes...))
	fail(span, err)
	span.End(trace.WithTimestamp(now))
}

// observe makes spans of a table's flushes and commits, which belong to no
// request.
func (t *tracer) observe(o *cardinalsin.Options) {
	if t == nil {
		return
	}
	table := attribute.String("table", o.Tenant+"/"+o.Table)
	flushEnd, commitEnd := o.Writer.Events.FlushEnd, o.Log.Events.CommitEnd
	o.Writer.Events.FlushEnd = func(e writer.FlushEvent) {
		flushEnd(e)
		t.past("flush", e.Duration, e.Err, table, attribute.Int64("version", int64(e.Version)), attribute.Int64("rows", e.Rows), attribute.Int("files", e.Files), attribute.Int64("bytes", e.Bytes))
	}
	o.Log.Events.CommitEnd = func(e txlog.CommitEvent) {
		commitEnd(e)
		t.past("commit", e.Duration, e.Err, table, attribute.String("operation", e.Operation), attribute.Int64("version", int64(e.Version)), attribute.Int("conflicts", e.Conflicts))
	}
}
