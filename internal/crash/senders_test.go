//go:build crash

package crash

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/flight"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/golang/snappy"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/prompb"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"
	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/pmetric"
	"go.opentelemetry.io/collector/pdata/pmetric/pmetricotlp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"cardinalsin/ingest"
)

// errRefused: the server said that this will never be accepted.
var errRefused = errors.New("refused for good")

// sender sends one batch and returns nil when the server has promised to keep
// it, errRefused when it has promised not to, any other error when nobody
// knows.
type sender func(ctx context.Context, c *clients, b *batch) error

// protocols are all ways in which the load comes.
var protocols = []struct {
	name string
	generator
	send sender
}{
	{"rw1", generator{step: 1e6, exemplars: true, metadata: true, histogram: true}, sendRemoteWrite1},
	{"rw2", generator{step: 1e6, exemplars: true, metadata: true, histogram: true}, sendRemoteWrite2},
	{"otlphttp", generator{step: 1e6 + 1, exemplars: true, metadata: true, histogram: true}, sendOTLPOverHTTP},
	{"otlpgrpc", generator{step: 1e6 + 1, exemplars: true, metadata: true, histogram: true}, sendOTLPOverGRPC},
	{"influx1", generator{step: 1e6 + 1}, sendInflux("/write?db=load&precision=n")},
	{"influx2", generator{step: 1e6 + 1}, sendInflux("/api/v2/write?org=o&bucket=load&precision=ns")},
	{"flight", generator{step: 1e6 + 1}, sendFlight},
}

// clients are the connections to one server.
type clients struct {
	http   *http.Client
	url    string
	conn   *grpc.ClientConn
	flight flight.Client
}

func dial(t *testing.T, s *server) *clients {
	t.Helper()
	conn, err := grpc.NewClient(s.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	return &clients{
		http: &http.Client{Timeout: requestTimeout, Transport: &http.Transport{MaxIdleConnsPerHost: 64}},
		url:  "http://" + s.http, conn: conn, flight: flight.NewClientFromConn(conn, nil),
	}
}

func (c *clients) close() {
	c.http.CloseIdleConnections()
	_ = c.conn.Close() // the server is gone
}

const requestTimeout = 20 * time.Second

// load lets all senders send until ctx ends, and keeps the ledgers.
func load(ctx context.Context, c *clients, senders []*generator, pause time.Duration) {
	var all sync.WaitGroup
	for _, g := range senders {
		all.Go(func() {
			for ctx.Err() == nil {
				b := g.next()
				err := sendBy(g.protocol)(ctx, c, b)
				g.settle(b, err)
				wait := pause
				if err != nil {
					wait = max(wait, 50*time.Millisecond)
				}
				select {
				case <-ctx.Done():
				case <-time.After(wait):
				}
			}
		})
	}
	all.Wait()
}

// loadBriefly loads a server that has been restarted. It comes to the logs of
// tables that nobody asks for by and by; the load asks for all of them.
func loadBriefly(t *testing.T, s *server, senders []*generator) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	c := dial(t, s)
	defer c.close()
	load(ctx, c, senders, 10*time.Millisecond)
}

func sendBy(protocol string) sender {
	for _, p := range protocols {
		if p.name == protocol {
			return p.send
		}
	}
	panic("no protocol " + protocol)
}

// post sends one HTTP request.
func (c *clients) post(ctx context.Context, b *batch, path string, body []byte, header ...string) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	if b.tenant != "" {
		req.Header.Set(ingest.TenantHeader, b.tenant)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil {
		return err
	}
	switch code := resp.StatusCode; {
	case code/100 == 2 && strings.HasPrefix(resp.Header.Get("Content-Type"), "application/x-protobuf") && strings.Contains(path, "/metrics"):
		return complete(answer)
	case code/100 == 2:
		return nil
	case code/100 == 4 && code != http.StatusTooManyRequests:
		return fmt.Errorf("%w: %d %s", errRefused, code, answer)
	default:
		return fmt.Errorf("status %d: %s", code, answer)
	}
}

func metricOf(s sample) string {
	if s.histogram {
		return histogramMetric
	}
	return floatMetric
}

// labelsOf: in the order of names.
func labelsOf(b *batch, s sample) labels.Labels {
	return labels.FromStrings("__name__", metricOf(s), "proto", b.protocol, "sender", strconv.Itoa(b.sender), "series", strconv.Itoa(s.series))
}

func nativeHistogram(sum float64) *histogram.Histogram {
	return &histogram.Histogram{Count: 3, Sum: sum, ZeroThreshold: 1e-128, PositiveSpans: []histogram.Span{{Length: 2}}, PositiveBuckets: []int64{1, 1}}
}

// bySeries gives each series' samples, series in the order of their numbers.
func bySeries(b *batch, each func(samples []sample)) {
	for i := range seriesPerBatch {
		var of []sample
		for _, s := range b.samples {
			if s.series == i {
				of = append(of, s)
			}
		}
		each(of)
	}
}

func sendRemoteWrite1(ctx context.Context, c *clients, b *batch) error {
	var r prompb.WriteRequest
	bySeries(b, func(samples []sample) {
		ts := prompb.TimeSeries{Labels: prompb.FromLabels(labelsOf(b, samples[0]), nil)}
		for _, s := range samples {
			if s.histogram {
				ts.Histograms = append(ts.Histograms, prompb.FromIntHistogram(s.nanos/1e6, nativeHistogram(s.value)))
			} else {
				ts.Samples = append(ts.Samples, prompb.Sample{Timestamp: s.nanos / 1e6, Value: s.value})
			}
		}
		if b.exemplar != "" && samples[0].series == 0 {
			ts.Exemplars = []prompb.Exemplar{{Labels: []prompb.Label{{Name: "trace_id", Value: b.exemplar}}, Timestamp: samples[0].nanos / 1e6, Value: samples[0].value}}
		}
		r.Timeseries = append(r.Timeseries, ts)
	})
	if b.help != "" {
		r.Metadata = []prompb.MetricMetadata{{Type: prompb.MetricMetadata_GAUGE, MetricFamilyName: floatMetric, Help: b.help}}
	}
	data, err := r.Marshal()
	if err != nil {
		return err
	}
	return c.post(ctx, b, "/api/v1/write", snappy.Encode(nil, data), "Content-Encoding", "snappy", "Content-Type", "application/x-protobuf", "X-Prometheus-Remote-Write-Version", "0.1.0")
}

func sendRemoteWrite2(ctx context.Context, c *clients, b *batch) error {
	symbols := writev2.NewSymbolTable()
	var r writev2.Request
	bySeries(b, func(samples []sample) {
		ts := writev2.TimeSeries{LabelsRefs: symbols.SymbolizeLabels(labelsOf(b, samples[0]), nil)}
		for _, s := range samples {
			if s.histogram {
				ts.Histograms = append(ts.Histograms, writev2.FromIntHistogram(0, s.nanos/1e6, nativeHistogram(s.value)))
			} else {
				ts.Samples = append(ts.Samples, writev2.Sample{Timestamp: s.nanos / 1e6, Value: s.value})
			}
		}
		if b.exemplar != "" && samples[0].series == 0 {
			ts.Exemplars = []writev2.Exemplar{{LabelsRefs: symbols.SymbolizeLabels(labels.FromStrings("trace_id", b.exemplar), nil), Timestamp: samples[0].nanos / 1e6, Value: samples[0].value}}
		}
		if b.help != "" && samples[0].series == 0 {
			ts.Metadata = writev2.Metadata{Type: writev2.FromMetadataType(model.MetricTypeGauge), HelpRef: symbols.Symbolize(b.help)}
		}
		r.Timeseries = append(r.Timeseries, ts)
	})
	r.Symbols = symbols.Symbols()
	data, err := r.Marshal()
	if err != nil {
		return err
	}
	return c.post(ctx, b, "/api/v1/write", snappy.Encode(nil, data), "Content-Encoding", "snappy", "Content-Type", "application/x-protobuf;proto=io.prometheus.write.v2.Request", "X-Prometheus-Remote-Write-Version", "2.0.0")
}

func otlp(b *batch) (pmetricotlp.ExportRequest, error) {
	md := pmetric.NewMetrics()
	scope := md.ResourceMetrics().AppendEmpty().ScopeMetrics().AppendEmpty()
	floats := scope.Metrics().AppendEmpty()
	floats.SetName(floatMetric)
	floats.SetDescription(b.help)
	gauge := floats.SetEmptyGauge()
	attributes := func(m pcommon.Map, s sample) {
		m.PutStr("proto", b.protocol)
		m.PutStr("sender", strconv.Itoa(b.sender))
		m.PutStr("series", strconv.Itoa(s.series))
	}
	for i, s := range b.samples {
		if s.histogram {
			continue
		}
		p := gauge.DataPoints().AppendEmpty()
		attributes(p.Attributes(), s)
		p.SetTimestamp(pcommon.Timestamp(s.nanos))
		p.SetDoubleValue(s.value)
		if i == 0 && b.exemplar != "" {
			var trace pcommon.TraceID
			if _, err := hex.Decode(trace[:], []byte(b.exemplar)); err != nil {
				return pmetricotlp.ExportRequest{}, err
			}
			e := p.Exemplars().AppendEmpty()
			e.SetTraceID(trace)
			e.SetTimestamp(pcommon.Timestamp(s.nanos))
			e.SetDoubleValue(s.value)
		}
	}
	histograms := scope.Metrics().AppendEmpty()
	histograms.SetName(histogramMetric)
	exponential := histograms.SetEmptyExponentialHistogram()
	exponential.SetAggregationTemporality(pmetric.AggregationTemporalityCumulative)
	for _, s := range b.samples {
		if !s.histogram {
			continue
		}
		p := exponential.DataPoints().AppendEmpty()
		attributes(p.Attributes(), s)
		p.SetTimestamp(pcommon.Timestamp(s.nanos))
		p.SetCount(3)
		p.SetSum(s.value)
		p.Positive().BucketCounts().FromRaw([]uint64{1, 2})
	}
	return pmetricotlp.NewExportRequestFromMetrics(md), nil
}

// errPartial: the server has left something out of a request that deserves
// nothing of the kind.
var errPartial = fmt.Errorf("%w: in part", errRefused)

func complete(answer []byte) error {
	resp := pmetricotlp.NewExportResponse()
	if err := resp.UnmarshalProto(answer); err != nil {
		return err
	}
	return completeOf(resp)
}

func completeOf(resp pmetricotlp.ExportResponse) error {
	if n := resp.PartialSuccess().RejectedDataPoints(); n > 0 {
		return fmt.Errorf("%w: %d points: %s", errPartial, n, resp.PartialSuccess().ErrorMessage())
	}
	return nil
}

func sendOTLPOverHTTP(ctx context.Context, c *clients, b *batch) error {
	r, err := otlp(b)
	if err != nil {
		return err
	}
	data, err := r.MarshalProto()
	if err != nil {
		return err
	}
	return c.post(ctx, b, "/v1/metrics", data, "Content-Type", "application/x-protobuf")
}

func sendOTLPOverGRPC(ctx context.Context, c *clients, b *batch) error {
	r, err := otlp(b)
	if err != nil {
		return err
	}
	ctx, cancel := overGRPC(ctx, b)
	defer cancel()
	resp, err := pmetricotlp.NewGRPCClient(c.conn).Export(ctx, r)
	if err != nil {
		return fromGRPC(err)
	}
	return completeOf(resp)
}

func overGRPC(ctx context.Context, b *batch) (context.Context, context.CancelFunc) {
	if b.tenant != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, ingest.TenantHeader, b.tenant)
	}
	return context.WithTimeout(ctx, requestTimeout)
}

func fromGRPC(err error) error {
	switch status.Code(err) {
	case codes.InvalidArgument, codes.Unimplemented, codes.Internal, codes.NotFound, codes.FailedPrecondition, codes.PermissionDenied, codes.Unauthenticated:
		return fmt.Errorf("%w: %w", errRefused, err)
	default:
		return err
	}
}

func sendInflux(path string) sender {
	return func(ctx context.Context, c *clients, b *batch) error {
		var body bytes.Buffer
		for _, s := range b.samples {
			fmt.Fprintf(&body, "load,proto=%s,sender=%d,series=%d v=%s %d\n", b.protocol, b.sender, s.series, strconv.FormatFloat(s.value, 'g', -1, 64), s.nanos)
		}
		return c.post(ctx, b, path, body.Bytes(), "Content-Type", "text/plain; charset=utf-8")
	}
}

var flightSchema = arrow.NewSchema([]arrow.Field{
	{Name: "timestamp", Type: &arrow.TimestampType{Unit: arrow.Nanosecond, TimeZone: "UTC"}},
	{Name: "metric_name", Type: arrow.BinaryTypes.String},
	{Name: "value", Type: arrow.PrimitiveTypes.Float64, Nullable: true},
	{Name: "proto", Type: arrow.BinaryTypes.String, Nullable: true},
	{Name: "sender", Type: arrow.BinaryTypes.String, Nullable: true},
	{Name: "series", Type: arrow.BinaryTypes.String, Nullable: true},
}, nil)

func sendFlight(ctx context.Context, c *clients, b *batch) (err error) {
	ctx, cancel := overGRPC(ctx, b)
	defer cancel()
	stream, err := c.flight.DoPut(ctx)
	if err != nil {
		return fromGRPC(err)
	}
	w := flight.NewRecordWriter(stream, ipc.WithSchema(flightSchema))
	w.SetFlightDescriptor(&flight.FlightDescriptor{Type: flight.DescriptorPATH, Path: []string{"metrics"}})
	rows := array.NewRecordBuilder(memory.DefaultAllocator, flightSchema)
	defer rows.Release()
	for _, s := range b.samples {
		rows.Field(0).(*array.TimestampBuilder).Append(arrow.Timestamp(s.nanos))
		rows.Field(1).(*array.StringBuilder).Append(floatMetric)
		rows.Field(2).(*array.Float64Builder).Append(s.value)
		rows.Field(3).(*array.StringBuilder).Append(b.protocol)
		rows.Field(4).(*array.StringBuilder).Append(strconv.Itoa(b.sender))
		rows.Field(5).(*array.StringBuilder).Append(strconv.Itoa(s.series))
	}
	record := rows.NewRecordBatch()
	defer record.Release()
	// Where the server has ended the stream, Recv says why.
	writeErr := errors.Join(w.Write(record), w.Close(), stream.CloseSend())
	for {
		result, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return errors.Join(errUnacknowledged, writeErr)
		case err != nil:
			return fromGRPC(err)
		}
		// This is the promise, whatever becomes of the stream.
		var done struct{ Rows int }
		if err := json.Unmarshal(result.AppMetadata, &done); err != nil {
			return err
		}
		if done.Rows == len(b.samples) {
			return nil
		}
	}
}

// errUnacknowledged: a stream ended well and promised nothing.
var errUnacknowledged = errors.New("the stream ended without a result")
