package flight

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/flight"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"cardinalsin/ingest"
)

// serve runs the service on a free port of this machine and returns a client.
func serve(t testing.TB, sink ingest.Sink, o Options) flight.Client {
	t.Helper()
	l, err := net.Listen("tcp", "localhost:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(grpc.MaxRecvMsgSize(64 << 20))
	Register(srv, sink, o)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	client, err := flight.NewClientWithMiddleware(l.Addr().String(), nil, nil, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
		srv.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return client
}

// put sends record batches as one stream and returns the last app_metadata
// and how the stream ended.
func put(ctx context.Context, client flight.Client, d *flight.FlightDescriptor, schema *arrow.Schema, opts []ipc.Option, recs ...arrow.RecordBatch) (string, error) {
	stream, err := client.DoPut(ctx)
	if err != nil {
		return "", err
	}
	w := flight.NewRecordWriter(stream, append(opts, ipc.WithSchema(schema))...)
	w.SetFlightDescriptor(d)
	for _, rec := range recs {
		if err := w.Write(rec); err != nil {
			break // the server's status says why
		}
	}
	if err := w.Close(); err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("close writer: %w", err)
	}
	if err := stream.CloseSend(); err != nil {
		return "", fmt.Errorf("close stream: %w", err)
	}
	last := ""
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return last, nil
		}
		if err != nil {
			return last, err
		}
		last = string(r.AppMetadata)
	}
}

// record builds a batch of the schema by JSON rows, in Arrow's own form.
func record(t testing.TB, schema *arrow.Schema, rows string) arrow.RecordBatch {
	t.Helper()
	rec, _, err := array.RecordFromJSON(memory.DefaultAllocator, schema, strings.NewReader(rows))
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

var (
	text      = arrow.BinaryTypes.String
	words     = &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int32, ValueType: text}
	seconds   = &arrow.TimestampType{Unit: arrow.Second}
	micros    = &arrow.TimestampType{Unit: arrow.Microsecond, TimeZone: "UTC"}
	doubles   = arrow.PrimitiveTypes.Float64
	longs     = arrow.PrimitiveTypes.Int64
	textPairs = arrow.MapOf(text, text)
)

// schemaOf builds a schema by names and types in turn.
func schemaOf(pairs ...any) *arrow.Schema {
	var fields []arrow.Field
	for i := 0; i < len(pairs); i += 2 {
		fields = append(fields, arrow.Field{Name: pairs[i].(string), Type: pairs[i+1].(arrow.DataType), Nullable: true})
	}
	return arrow.NewSchema(fields, nil)
}

// plain is the least that a client sends: a value and one label.
var plain = schemaOf("timestamp", micros, "metric_name", text, "value", doubles, "host", text)
