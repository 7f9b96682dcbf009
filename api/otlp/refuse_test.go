package otlp

import (
	"bytes"
	"context"
	"io"
	"math"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/collector/pdata/pmetric/pmetricotlp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"cardinalsin/ingest"
	"cardinalsin/ingest/ingesttest"
	"cardinalsin/writer"
)

// gauge is a request of one resource with n data points of one attribute.
func gauge(n int, attribute string) pmetricotlp.ExportRequest {
	r := pmetricotlp.NewExportRequest()
	m := r.Metrics().ResourceMetrics().AppendEmpty().ScopeMetrics().AppendEmpty().Metrics().AppendEmpty()
	m.SetName("up")
	points := m.SetEmptyGauge().DataPoints()
	points.EnsureCapacity(n)
	for i := range n {
		p := points.AppendEmpty()
		p.SetTimestamp(1)
		p.SetIntValue(int64(i))
		p.Attributes().PutStr("a", attribute)
	}
	return r
}

// field is a length-delimited field; fields nests them.
func field(number protowire.Number, value []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, number, protowire.BytesType), value)
}

func fields(value []byte, numbers ...protowire.Number) []byte {
	for _, n := range numbers {
		value = field(n, value)
	}
	return value
}

// nested is an attribute of a resource, arrays depth deep. It is written from
// its end, so that it takes no longer than it is.
func nested(depth int) []byte {
	buf := make([]byte, 12*depth+100)
	at := len(buf) - 2
	copy(buf[at:], []byte{3 << 3, 1})
	wrap := func(number protowire.Number) {
		head := protowire.AppendVarint(protowire.AppendTag(nil, number, protowire.BytesType), uint64(len(buf)-at))
		at -= len(head)
		copy(buf[at:], head)
	}
	for range depth {
		wrap(1)
		wrap(5) // an AnyValue of an ArrayValue of it
	}
	for _, number := range []protowire.Number{2, 1, 1, 1} {
		wrap(number)
	}
	return buf[at:]
}

type badInput struct {
	body   []byte
	status int
	reason ingest.Reason
}

// badProto is what both transports refuse of protobuf.
func badProto(t testing.TB) map[string]badInput {
	good := marshal(t, gauge(3, "x"))
	wide := gauge(1, "x")
	h := wide.Metrics().ResourceMetrics().At(0).ScopeMetrics().At(0).Metrics().AppendEmpty()
	h.SetName("h")
	hist := h.SetEmptyHistogram()
	hist.SetAggregationTemporality(2)
	p := hist.DataPoints().AppendEmpty()
	p.SetTimestamp(1)
	p.Attributes().PutStr("a", strings.Repeat("x", 1<<19))
	for i := range 1000 {
		p.ExplicitBounds().Append(float64(i))
		p.BucketCounts().Append(0)
	}
	p.BucketCounts().Append(0)
	longResource := gauge(1000, "x")
	longResource.Metrics().ResourceMetrics().At(0).Resource().Attributes().PutStr("r", strings.Repeat("x", 1<<19))
	return map[string]badInput{
		"truncated":             {good[:len(good)-5], 400, "malformed"},
		"no protobuf":           {[]byte("cpu usage=1\n"), 400, "malformed"},
		"wrong wire type":       {protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 5), 400, "malformed"},
		"length past the end":   {append(protowire.AppendTag(nil, 1, protowire.BytesType), 0xff, 0xff, 0x7f), 400, "malformed"},
		"name no UTF-8":         {fields([]byte("\xff"), 1, 2, 2, 1), 400, "malformed"},
		"attribute no UTF-8":    {fields([]byte("\xc3"), 1, 1, 1, 1), 400, "malformed"},
		"value no UTF-8":        {fields([]byte("\xc3"), 1, 2, 1, 1, 1), 400, "malformed"},
		"nested value no UTF-8": {fields([]byte("\xc3"), 1, 1, 5, 2, 1, 1, 1), 400, "malformed"},
		"old name no UTF-8":     {fields([]byte("\xff"), 1, 2, 1000, 1), 400, "malformed"},
		"nested":                {nested(100), 413, "too_large"},
		"nested deep":           {nested(1 << 20), 413, "too_large"},
		"empty resources":       {bytes.Repeat(field(1, nil), maxElements+1), 413, "too_large"},
		"empty data points":     {fields(bytes.Repeat(field(1, nil), maxElements), 5, 2, 2, 1), 413, "too_large"},
		"buckets":               {fields(make([]byte, maxElements), 2, 8, 1, 10, 2, 2, 1), 413, "too_large"},
		"series bomb":           {marshal(t, wide), 413, "too_large"},
		"resource bomb":         {marshal(t, longResource), 413, "too_large"},
		"long attribute":        {marshal(t, gauge(1, strings.Repeat("x", maxAttributeBytes))), 400, "invalid_label"},
	}
}

func TestBadInput(t *testing.T) {
	good := marshal(t, gauge(3, "x"))
	goodJSON, err := gauge(3, "x").MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	type request struct {
		badInput
		contentType, encoding, tenant string
	}
	cases := map[string]request{
		"gzip cut":         {badInput{squeeze(t, "gzip", good)[:20], 400, "malformed"}, typeProto, "gzip", ""},
		"gzip that is not": {badInput{good, 400, "malformed"}, typeProto, "gzip", ""},
		"gzip bomb":        {badInput{squeeze(t, "gzip", make([]byte, MaxMessageBytes+1)), 413, "too_large"}, typeProto, "gzip", ""},
		"zstd bomb":        {badInput{squeeze(t, "zstd", make([]byte, MaxMessageBytes+1)), 413, "too_large"}, typeProto, "zstd", ""},
		"unknown encoding": {badInput{good, 400, "unsupported"}, typeProto, "br", ""},
		"unknown type":     {badInput{good, 400, "unsupported"}, "text/plain", "", ""},
		"no type":          {badInput{good, 400, "unsupported"}, "", "", ""},
		"bad tenant":       {badInput{good, 400, "invalid_tenant"}, typeProto, "", "../x"},
		"too large":        {badInput{make([]byte, MaxMessageBytes+1), 413, "too_large"}, typeProto, "", ""},
		"json truncated":   {badInput{goodJSON[:len(goodJSON)-4], 400, "malformed"}, typeJSON, "", ""},
		"json of protobuf": {badInput{good, 400, "malformed"}, typeJSON, "", ""},
		"json and more":    {badInput{append(bytes.Clone(goodJSON), goodJSON...), 400, "malformed"}, typeJSON, "", ""},
		"json wrong type":  {badInput{[]byte(`{"resourceMetrics":5}`), 400, "malformed"}, typeJSON, "", ""},
		"json time":        {badInput{bytes.Replace(goodJSON, []byte(`"timeUnixNano":"1"`), []byte(`"timeUnixNano":"18446744073709551616"`), 1), 400, "malformed"}, typeJSON, "", ""},
		"json no UTF-8":    {badInput{bytes.Replace(goodJSON, []byte("up"), []byte("\xff"), 1), 400, "malformed"}, typeJSON, "", ""},
		"json nested":      {badInput{[]byte(`{"resourceMetrics":` + strings.Repeat("[", 1<<20)), 413, "too_large"}, typeJSON, "", ""},
		"json elements":    {badInput{[]byte(`{"resourceMetrics":[` + strings.Repeat("{},", maxJSONTokens/2) + `{}]}`), 413, "too_large"}, typeJSON, "", ""},
	}
	for name, c := range badProto(t) {
		cases[name] = request{c, typeProto, "", ""}
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			sink := ingesttest.New(t, ingesttest.Options{})
			w := post(sink, c.contentType, c.body, "Content-Encoding", c.encoding, ingest.TenantHeader, c.tenant)
			checkRefused(t, sink, c.reason)
			if w.Code != c.status {
				t.Errorf("status %d, want %d", w.Code, c.status)
			}
			var said spb.Status
			unmarshal := proto.Unmarshal
			if c.contentType == typeJSON {
				unmarshal = protojson.Unmarshal
			}
			if err := unmarshal(w.Body.Bytes(), &said); err != nil || said.Code != int32(codes.InvalidArgument) || said.Message == "" {
				t.Errorf("answer %v of type %s, error %v", &said, w.Header().Get("Content-Type"), err)
			}
		})
	}
}

func checkRefused(t *testing.T, sink *ingesttest.Sink, reason ingest.Reason) {
	t.Helper()
	if n := sink.Refused(reason); n != 1 {
		t.Errorf("%d refused as %s, want 1", n, reason)
	}
	if sink.Tables() != 0 {
		t.Error("something was stored")
	}
}

// TestBadInputGRPC sends the same bytes over gRPC.
func TestBadInputGRPC(t *testing.T) {
	for name, c := range badProto(t) {
		t.Run(name, func(t *testing.T) {
			sink := ingesttest.New(t, ingesttest.Options{})
			err := dial(t, sink).Invoke(context.Background(), "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export", c.body, nil, grpc.ForceCodec(rawCodec{}))
			if status.Code(err) != codes.InvalidArgument {
				t.Errorf("%v, want %v", err, codes.InvalidArgument)
			}
			checkRefused(t, sink, c.reason)
		})
	}
	t.Run("bad tenant", func(t *testing.T) {
		sink := ingesttest.New(t, ingesttest.Options{})
		ctx := metadata.AppendToOutgoingContext(context.Background(), ingest.TenantHeader, "../x")
		_, err := pmetricotlp.NewGRPCClient(dial(t, sink)).Export(ctx, gauge(1, "x"))
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v, want %v", err, codes.InvalidArgument)
		}
		checkRefused(t, sink, "invalid_tenant")
	})
}

// rawCodec sends bytes as they are.
type rawCodec struct{}

func (rawCodec) Marshal(v any) ([]byte, error) { return v.([]byte), nil }
func (rawCodec) Unmarshal([]byte, any) error   { return nil }
func (rawCodec) Name() string                  { return "proto" }

// TestRefused: what a client is told when the writer refuses, by each
// transport, so that it tries again where that can help, and only there.
func TestRefused(t *testing.T) {
	for name, c := range map[string]struct {
		err        error
		status     int
		code       codes.Code
		retryAfter string
	}{
		"overloaded": {writer.ErrOverloaded, 429, codes.ResourceExhausted, "10"},
		"down":       {io.ErrClosedPipe, 503, codes.Unavailable, ""},
		"never":      {writer.ErrTooManyPartitions, 400, codes.InvalidArgument, ""},
	} {
		t.Run(name, func(t *testing.T) {
			sink := ingesttest.New(t, ingesttest.Options{})
			sink.FailWith(c.err)
			request := gauge(2, "x")
			request.Metrics().ResourceMetrics().At(0).ScopeMetrics().At(0).Metrics().At(0).Gauge().DataPoints().At(0).SetTimestamp(0)
			body := marshal(t, request)
			w := post(sink, typeProto, body)
			var said spb.Status
			if err := proto.Unmarshal(w.Body.Bytes(), &said); err != nil {
				t.Fatal(err)
			}
			if w.Code != c.status || w.Header().Get("Retry-After") != c.retryAfter || codes.Code(said.Code) != c.code {
				t.Errorf("HTTP %d, retry after %q, %v", w.Code, w.Header().Get("Retry-After"), &said)
			}
			_, err := pmetricotlp.NewGRPCClient(dial(t, sink)).Export(context.Background(), request)
			s := status.Convert(err)
			if s.Code() != c.code {
				t.Errorf("gRPC %v, want %v", err, c.code)
			}
			var delay time.Duration
			for _, d := range s.Details() {
				if retry, ok := d.(*errdetails.RetryInfo); ok {
					delay = retry.RetryDelay.AsDuration()
				}
			}
			if want := c.code == codes.ResourceExhausted; (delay == ingest.RetryAfter) != want {
				t.Errorf("gRPC retry delay %v", delay)
			}
			if n := sink.Refused("invalid_sample"); n != 0 && c.status != 400 {
				t.Errorf("%d data points counted of a request that will come again", n)
			}
		})
	}
	t.Run("method", func(t *testing.T) {
		r, err := http.NewRequest(http.MethodGet, "/v1/metrics", nil)
		if err != nil {
			t.Fatal(err)
		}
		w := recorder{header: http.Header{}}
		Handler(ingesttest.New(t, ingesttest.Options{}), Options{}).ServeHTTP(&w, r)
		if w.code != http.StatusMethodNotAllowed || w.header.Get("Allow") != http.MethodPost {
			t.Errorf("%d, allow %q", w.code, w.header.Get("Allow"))
		}
	})
}

type recorder struct {
	header http.Header
	code   int
	bytes.Buffer
}

func (r *recorder) Header() http.Header  { return r.header }
func (r *recorder) WriteHeader(code int) { r.code = code }

// TestBits: what JSON cannot say, the bits of a NaN, arrives by protobuf.
func TestBits(t *testing.T) {
	const payload = 0x7ff8dead00000001
	request := gauge(1, "x")
	metrics := request.Metrics().ResourceMetrics().At(0).ScopeMetrics().At(0).Metrics()
	metrics.At(0).Gauge().DataPoints().At(0).SetDoubleValue(math.Float64frombits(payload))
	e := metrics.At(0).Gauge().DataPoints().At(0).Exemplars().AppendEmpty()
	e.SetDoubleValue(math.Float64frombits(payload + 1))
	e.SetTimestamp(math.MaxUint64)
	late := metrics.AppendEmpty()
	late.SetName("late")
	p := late.SetEmptyGauge().DataPoints().AppendEmpty()
	p.SetTimestamp(math.MaxUint64)
	p.SetStartTimestamp(math.MaxInt64)
	p.SetDoubleValue(math.Copysign(0, -1))
	sink := ingesttest.New(t, ingesttest.Options{})
	if w := post(sink, typeProto, marshal(t, request)); w.Code != http.StatusOK {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	want := `{__name__="late"} 18446744073709551615 start=9223372036854775807 -0
{__name__="up", a="x"} 0001 NaN(7ff8dead00000001)
exemplar {__name__="up", a="x"} {} 18446744073709551615 NaN(7ff8dead00000002)
metadata late type="gauge" unit="" help=""
metadata up type="gauge" unit="" help=""
`
	for range 2 {
		if got := print(t, sink, ""); got != want {
			t.Errorf("got\n%swant\n%s", got, want)
		}
		sink.Flush()
	}
}
