package otlp

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"sort"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/prometheus/prometheus/prompb"
	"go.opentelemetry.io/collector/pdata/pmetric/pmetricotlp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"cardinalsin/ingest"
	"cardinalsin/ingest/ingesttest"
)

// post sends a body to the handler.
func post(sink ingest.Sink, contentType string, body []byte, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, "/v1/metrics", bytes.NewReader(body))
	r.Header.Set("Content-Type", contentType)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	Handler(sink, Options{}).ServeHTTP(w, r)
	return w
}

// dial starts a gRPC server over a sink.
func dial(t testing.TB, sink ingest.Sink) *grpc.ClientConn {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.MaxRecvMsgSize(MaxMessageBytes))
	Register(s, sink, Options{})
	done := make(chan error)
	go func() { done <- s.Serve(l) }()
	c, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		s.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return c
}

func squeeze(t testing.TB, encoding string, b []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	var w io.WriteCloser = gzip.NewWriter(&buf)
	if encoding == "zstd" {
		var err error
		if w, err = zstd.NewWriter(&buf); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func marshal(t testing.TB, request pmetricotlp.ExportRequest) []byte {
	t.Helper()
	b, err := request.MarshalProto()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// transports send a request each their way, and give the answer as JSON or the
// refusal's text.
var transports = map[string]func(*testing.T, ingest.Sink, pmetricotlp.ExportRequest) string{
	"json": func(t *testing.T, sink ingest.Sink, request pmetricotlp.ExportRequest) string {
		b, err := request.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		w := post(sink, typeJSON, b)
		return fmt.Sprintf("%d %s", w.Code, w.Body)
	},
	"protobuf": func(t *testing.T, sink ingest.Sink, request pmetricotlp.ExportRequest) string {
		return answer(t, post(sink, typeProto, marshal(t, request)))
	},
	"gzip": func(t *testing.T, sink ingest.Sink, request pmetricotlp.ExportRequest) string {
		return answer(t, post(sink, typeProto, squeeze(t, "gzip", marshal(t, request)), "Content-Encoding", "gzip"))
	},
	"zstd": func(t *testing.T, sink ingest.Sink, request pmetricotlp.ExportRequest) string {
		return answer(t, post(sink, typeProto, squeeze(t, "zstd", marshal(t, request)), "Content-Encoding", "zstd"))
	},
	"grpc": func(t *testing.T, sink ingest.Sink, request pmetricotlp.ExportRequest) string {
		return export(t, dial(t, sink), request)
	},
	"grpc gzip": func(t *testing.T, sink ingest.Sink, request pmetricotlp.ExportRequest) string {
		return export(t, dial(t, sink), request, grpc.UseCompressor("gzip"))
	},
}

func answer(t *testing.T, w *httptest.ResponseRecorder) string {
	if w.Code != http.StatusOK {
		return fmt.Sprintf("%d %s", w.Code, w.Body)
	}
	response := pmetricotlp.NewExportResponse()
	if err := response.UnmarshalProto(w.Body.Bytes()); err != nil {
		t.Fatal(err)
	}
	return asJSON(t, response)
}

func export(t *testing.T, c *grpc.ClientConn, request pmetricotlp.ExportRequest, o ...grpc.CallOption) string {
	response, err := pmetricotlp.NewGRPCClient(c).Export(context.Background(), request, o...)
	if err != nil {
		return status.Convert(err).Message()
	}
	return asJSON(t, response)
}

func asJSON(t *testing.T, response pmetricotlp.ExportResponse) string {
	b, err := response.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	return "200 " + string(b)
}

// print is all that a sink has, floats exactly, histograms decoded.
func print(t *testing.T, sink *ingesttest.Sink, tenant string) string {
	var b strings.Builder
	for _, s := range sink.Samples(tenant) {
		for _, p := range s.Samples {
			fmt.Fprintf(&b, "%s %d%03d", s.Labels, p.Time, p.Nanos)
			if p.Start != 0 {
				fmt.Fprintf(&b, " start=%d", p.Start)
			}
			if p.Histogram == nil {
				fmt.Fprintf(&b, " %s\n", float(p.Value))
				continue
			}
			var h prompb.Histogram
			if err := h.Unmarshal(p.Histogram); err != nil {
				t.Fatal(err)
			}
			i := h.ToIntHistogram()
			fmt.Fprintf(&b, " schema=%d zero=%d≤%s sum=%s %s\n", i.Schema, i.ZeroCount, float(i.ZeroThreshold), float(i.Sum), i)
		}
	}
	for _, e := range sink.Exemplars(tenant) {
		fmt.Fprintf(&b, "exemplar %s %s %d%03d %s\n", e.Series, e.Labels, e.Time, e.Nanos, float(e.Value))
	}
	for _, m := range sink.Metadata(tenant) {
		fmt.Fprintf(&b, "metadata %s type=%q unit=%q help=%q\n", m.Metric, m.Type, m.Unit, m.Help)
	}
	for _, reason := range []ingest.Reason{"unsupported", "invalid_sample", "invalid_histogram", "invalid_label", "duplicate_label", "no_metric_name", "malformed", "too_large", "unavailable"} {
		if n := sink.Refused(reason); n > 0 {
			fmt.Fprintf(&b, "refused %d: %s\n", n, reason)
		}
	}
	return b.String()
}

func float(v float64) string {
	if math.IsNaN(v) {
		return fmt.Sprintf("NaN(%x)", math.Float64bits(v))
	}
	return strconv.FormatFloat(v, 'g', -1, 64)
}

// TestExport sends the requests of testdata/export by every transport, and
// prints the answer and what is stored then. It must be the same for all, in
// the head and in chunks.
func TestExport(t *testing.T) {
	datadriven.Walk(t, "testdata/export", func(t *testing.T, path string) {
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			if d.Cmd != "export" {
				d.Fatalf(t, "unknown command %s", d.Cmd)
			}
			names := make([]string, 0, len(transports))
			for name := range transports {
				names = append(names, name)
			}
			sort.Strings(names)
			var first string
			for _, name := range names {
				request := pmetricotlp.NewExportRequest()
				if err := request.UnmarshalJSON([]byte(d.Input)); err != nil {
					d.Fatalf(t, "%v", err)
				}
				sink := ingesttest.New(t, ingesttest.Options{})
				answer := transports[name](t, sink, request)
				head := print(t, sink, "")
				sink.Flush()
				if d := cmp.Diff(head, print(t, sink, "")); d != "" {
					t.Errorf("%s: -head +chunks:\n%s", name, d)
				}
				if strings.HasPrefix(answer, "200") {
					answer += "\n"
				} else {
					answer = "refused\n" // each transport has its own words; see TestRefused
				}
				if got := answer + head; first == "" {
					first = got
				} else if d := cmp.Diff(first, got); d != "" {
					t.Errorf("-%s +%s:\n%s", names[0], name, d)
				}
			}
			return first
		})
	})
}

func TestTenant(t *testing.T) {
	request := func() pmetricotlp.ExportRequest {
		r := pmetricotlp.NewExportRequest()
		m := r.Metrics().ResourceMetrics().AppendEmpty().ScopeMetrics().AppendEmpty().Metrics().AppendEmpty()
		m.SetName("up")
		p := m.SetEmptyGauge().DataPoints().AppendEmpty()
		p.SetTimestamp(1)
		p.SetIntValue(1)
		return r
	}
	sink := ingesttest.New(t, ingesttest.Options{})
	if w := post(sink, typeProto, marshal(t, request()), ingest.TenantHeader, "a"); w.Code != http.StatusOK {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	ctx := metadata.AppendToOutgoingContext(context.Background(), ingest.TenantHeader, "b")
	if _, err := pmetricotlp.NewGRPCClient(dial(t, sink)).Export(ctx, request()); err != nil {
		t.Fatal(err)
	}
	for tenant, want := range map[string]int{"a": 1, "b": 1, "": 0} {
		if got := len(sink.Samples(tenant)); got != want {
			t.Errorf("tenant %q has %d series, want %d", tenant, got, want)
		}
	}
}
