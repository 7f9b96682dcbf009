package daemon

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/prometheus/prompb"
	"go.opentelemetry.io/collector/pdata/pmetric"
	"go.opentelemetry.io/collector/pdata/pmetric/pmetricotlp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"cardinalsin"
	"cardinalsin/ingest"
	"cardinalsin/internal/remotewrite"
	"cardinalsin/series"
	"cardinalsin/txlog"
	"cardinalsin/wal"
)

// running is a daemon over a store on disk.
type running struct {
	*Daemon
	t     *testing.T
	ready string
	stop  func() error // stops it and says how that went
}

func start(t *testing.T, dir string, change func(*Options), then func(*Daemon)) *running {
	t.Helper()
	o := Options{HTTP: "127.0.0.1:0", GRPC: "127.0.0.1:0"}
	o.Tables.Store, o.Tables.WALDir = filepath.Join(dir, "store"), filepath.Join(dir, "wal")
	o.Tables.WAL.Sync = wal.SyncDeferred
	if change != nil {
		change(&o)
	}
	d, err := Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	if then != nil {
		then(d)
	}
	ctx, cancel := context.WithCancel(context.Background())
	in, out := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx, out) }()
	line, err := bufio.NewReader(in).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	r := &running{Daemon: d, t: t, ready: line}
	stopped := false
	r.stop = func() error {
		stopped = true
		cancel()
		return <-done
	}
	t.Cleanup(func() {
		if stopped {
			return
		}
		if err := r.stop(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// byTenant is a client that names its tenant.
func byTenant(tenant string) *http.Client {
	return &http.Client{Timeout: 10 * time.Second, Transport: named{tenant}}
}

type named struct{ tenant string }

func (n named) RoundTrip(r *http.Request) (*http.Response, error) {
	if n.tenant != "" {
		r.Header.Set(ingest.TenantHeader, n.tenant)
	}
	return http.DefaultTransport.RoundTrip(r)
}

func (r *running) write(tenant string, samples int) error {
	ts := prompb.TimeSeries{Labels: []prompb.Label{{Name: "__name__", Value: "m"}}}
	for i := range samples {
		ts.Samples = append(ts.Samples, prompb.Sample{Timestamp: int64(i + 1), Value: 1})
	}
	c := remotewrite.Client{URL: "http://" + r.HTTPAddr() + "/api/v1/write", HTTP: byTenant(tenant)}
	return c.Send(context.Background(), []prompb.TimeSeries{ts})
}

// post returns the status of a request.
func (r *running) post(path, tenant, body string) int {
	r.t.Helper()
	resp, err := byTenant(tenant).Post("http://"+r.HTTPAddr()+path, "text/plain", strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

func (r *running) get(path, tenant string) (int, string) {
	r.t.Helper()
	resp, err := byTenant(tenant).Get("http://" + r.HTTPAddr() + path)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// metric is the value of one series on /metrics, 0 if it is not there.
func (r *running) metric(name string) float64 {
	r.t.Helper()
	_, body := r.get("/metrics", "")
	for line := range strings.Lines(body) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			if err != nil {
				r.t.Fatal(err)
			}
			return v
		}
	}
	return 0
}

func (r *running) otlp(tenant string) error {
	conn, err := grpc.NewClient(r.grpc[0].listen.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		r.t.Fatal(err)
	}
	defer conn.Close()
	ctx := context.Background()
	if tenant != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, ingest.TenantHeader, tenant)
	}
	md := pmetric.NewMetrics()
	m := md.ResourceMetrics().AppendEmpty().ScopeMetrics().AppendEmpty().Metrics().AppendEmpty()
	m.SetName("otlp")
	p := m.SetEmptyGauge().DataPoints().AppendEmpty()
	p.SetTimestamp(1)
	p.SetIntValue(1)
	_, err = pmetricotlp.NewGRPCClient(conn).Export(ctx, pmetricotlp.NewExportRequestFromMetrics(md))
	return err
}

// rows counts what a tenant's table holds, by metric name, with no writer's
// head: what was committed.
func rows(t *testing.T, dir, tenant string) map[string]int {
	t.Helper()
	ctx := context.Background()
	db, err := cardinalsin.Open(ctx, cardinalsin.Options{Store: filepath.Join(dir, "store"), Tenant: tenant})
	if err != nil {
		t.Fatal(err)
	}
	view, err := db.Reader.At(ctx, txlog.Latest())
	if err != nil {
		t.Fatal(err)
	}
	n := map[string]int{}
	for s, err := range view.Select(ctx, series.Selector{Range: series.AllTime}) {
		if err != nil {
			t.Fatal(err)
		}
		n[s.Labels.Get("__name__")] += len(s.Samples)
	}
	view.Close()
	if err := db.Close(ctx); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestEveryProtocolByTenant: each protocol's requests go to the table of their
// tenant and are counted; a stop commits them all.
func TestEveryProtocolByTenant(t *testing.T) {
	dir := t.TempDir()
	r := start(t, dir, nil, nil)
	if want := fmt.Sprintf("ready http=%s grpc=%s\n", r.HTTPAddr(), r.grpc[0].listen.Addr()); r.ready != want {
		t.Errorf("%q, want %q", r.ready, want)
	}
	for _, tenant := range []string{"", "acme"} {
		if err := r.write(tenant, 3); err != nil {
			t.Error(err)
		}
		for _, path := range []string{"/write?db=x", "/api/v2/write?bucket=x"} {
			if code := r.post(path, tenant, "cpu usage="+strconv.Itoa(len(path))+" "+strconv.Itoa(len(path))); code != http.StatusNoContent {
				t.Errorf("%s: %d", path, code)
			}
		}
		if err := r.otlp(tenant); err != nil {
			t.Error(err)
		}
	}
	for name, want := range map[string]float64{
		`cardinal_ingest_accepted_total{kind="samples",protocol="remote_write_1"}`: 6,
		`cardinal_ingest_accepted_total{kind="samples",protocol="influx"}`:         4,
		`cardinal_ingest_accepted_total{kind="requests",protocol="otlp"}`:          2,
		`cardinal_http_requests_total{code="204",handler="POST /api/v1/write"}`:    2,
		"cardinal_append_samples_total":                                            r.metric("cardinal_head_samples"),
	} {
		if got := r.metric(name); got != want || want == 0 {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	if code, _ := r.get("/-/ready", ""); code != http.StatusOK {
		t.Errorf("/-/ready: %d", code)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	for _, tenant := range []string{"default", "acme"} {
		n := rows(t, dir, tenant)
		if n["m"] != 3 || n["cpu_usage"] != 2 || n["otlp"] != 1 {
			t.Errorf("%s has %v", tenant, n)
		}
	}
	if conn, err := http.Get("http://" + r.HTTPAddr() + "/-/healthy"); err == nil {
		conn.Body.Close()
		t.Error("it still serves")
	}
}

// TestRefusalsAreCounted by protocol and reason, and leave nothing.
func TestRefusalsAreCounted(t *testing.T) {
	r := start(t, t.TempDir(), func(o *Options) {
		o.Config = Config{Limits: ingest.Limits{MaxSamplesPerRequest: 5}, Tenants: map[string]ingest.Limits{"big": {MaxSamplesPerRequest: 50}, "slow": {SamplesPerSecond: 0.001, Burst: 2}}}
	}, nil)
	code := func(err error) int {
		var s *remotewrite.StatusError
		if errors.As(err, &s) {
			return s.Code
		}
		if err != nil {
			t.Error(err)
		}
		return http.StatusNoContent
	}
	for _, c := range []struct {
		tenant  string
		samples int
		code    int
	}{
		{"../x", 1, http.StatusBadRequest},
		{"", 6, http.StatusBadRequest},
		{"big", 6, http.StatusNoContent},
		{"slow", 2, http.StatusNoContent},
		{"slow", 1, http.StatusTooManyRequests},
	} {
		if got := code(r.write(c.tenant, c.samples)); got != c.code {
			t.Errorf("%q with %d samples: %d, want %d", c.tenant, c.samples, got, c.code)
		}
	}
	if code := r.post("/write", "", "not a line"); code != http.StatusBadRequest {
		t.Errorf("line protocol: %d", code)
	}
	if err := r.otlp("a/b"); status.Code(err) != codes.InvalidArgument {
		t.Errorf("otlp: %v", err)
	}
	for name, want := range map[string]float64{
		`cardinal_ingest_refused_requests_total{protocol="remote_write_1",reason="invalid_tenant"}`: 1,
		`cardinal_ingest_refused_requests_total{protocol="remote_write_1",reason="limit"}`:          1,
		`cardinal_ingest_refused_samples_total{protocol="remote_write_1",reason="limit"}`:           6,
		`cardinal_ingest_refused_requests_total{protocol="remote_write_1",reason="rate"}`:           1,
		`cardinal_ingest_refused_requests_total{protocol="influx",reason="malformed"}`:              1,
		`cardinal_ingest_refused_requests_total{protocol="otlp",reason="invalid_tenant"}`:           1,
		`cardinal_open_tables`: 3, // default, big, slow
	} {
		if got := r.metric(name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
}

// TestPerTenant: a handler is made once for each table, and where there is
// none the caller's refusal answers.
func TestPerTenant(t *testing.T) {
	var built, closed atomic.Int32
	r := start(t, t.TempDir(), nil, func(d *Daemon) {
		d.Handle("/who", d.PerTenant(func(db *cardinalsin.DB) (http.Handler, func() error, error) {
			built.Add(1)
			return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, db.Tenant()) }),
				func() error { closed.Add(1); return nil }, nil
		}, func(w http.ResponseWriter, code int, err error) { answer(w, code, "refused: "+err.Error()) }))
	})
	if err := r.write("acme", 1); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		tenant string
		code   int
		body   string
	}{
		{"", http.StatusOK, "default"},
		{"acme", http.StatusOK, "acme"},
		{"acme", http.StatusOK, "acme"},
		{"nobody", http.StatusNotFound, "refused: "},
		{"..", http.StatusBadRequest, "refused: "},
	} {
		if code, body := r.get("/who", c.tenant); code != c.code || !strings.HasPrefix(body, c.body) {
			t.Errorf("%q: %d %q", c.tenant, code, body)
		}
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if built.Load() != 2 || closed.Load() != 2 {
		t.Errorf("built %d, closed %d", built.Load(), closed.Load())
	}
}

// TestReadOnly: without a WAL nothing is written.
func TestReadOnly(t *testing.T) {
	dir := t.TempDir()
	w := start(t, dir, nil, nil)
	if err := w.write("", 2); err != nil {
		t.Fatal(err)
	}
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	r := start(t, dir, func(o *Options) { o.Tables.WALDir = "" }, nil)
	if r.ready != fmt.Sprintf("ready http=%s\n", r.HTTPAddr()) {
		t.Errorf("%q", r.ready)
	}
	if code := r.post("/write", "", "cpu usage=1"); code != http.StatusNotFound {
		t.Errorf("%d", code)
	}
}

// TestPortInUse: what was opened is given back, so that the WAL can be opened
// again.
func TestPortInUse(t *testing.T) {
	dir := t.TempDir()
	taken := start(t, t.TempDir(), nil, nil)
	o := Options{HTTP: taken.HTTPAddr()}
	o.Tables.Store, o.Tables.WALDir = filepath.Join(dir, "store"), filepath.Join(dir, "wal")
	if _, err := Open(context.Background(), o); err == nil {
		t.Fatal("two daemons listen on one port")
	}
	start(t, dir, nil, nil)
}

// TestSlowBody: a client that stops in the middle of a body is given up, also
// behind everything that is wrapped around the handler.
func TestSlowBody(t *testing.T) {
	r := start(t, t.TempDir(), func(o *Options) {
		o.bodyTimeout = 50 * time.Millisecond
		o.tracer = tracerTo(sdktrace.NewSimpleSpanProcessor(tracetest.NewInMemoryExporter()), resource.Empty())
	}, nil)
	for _, path := range []string{"/api/v1/write", "/v1/metrics", "/write"} {
		conn, err := net.Dial("tcp", r.HTTPAddr())
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\nContent-Length: 1000\r\n\r\nx", path); err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(conn) // until the server hangs up
		if err != nil {
			t.Errorf("%s: %v after %q", path, err, answer)
		}
		if strings.HasPrefix(string(answer), "HTTP/1.1 2") {
			t.Errorf("%s: %q", path, answer)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestTraces: a request is a span, what it appends one below it, and flushes
// and commits have their own.
func TestTraces(t *testing.T) {
	spans := tracetest.NewInMemoryExporter()
	r := start(t, t.TempDir(), func(o *Options) { o.tracer = tracerTo(sdktrace.NewSimpleSpanProcessor(keep{spans}), resource.Empty()) }, nil)
	if err := r.write("acme", 2); err != nil {
		t.Fatal(err)
	}
	if code := r.post("/write", "", "not a line"); code != http.StatusBadRequest {
		t.Errorf("%d", code)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	byName := map[string]tracetest.SpanStub{}
	for _, s := range spans.GetSpans() {
		byName[s.Name] = s
	}
	request, ok := byName["POST /api/v1/write"]
	if !ok {
		t.Fatalf("spans: %v", byName)
	}
	if got := byName["ingest append"]; got.Parent.SpanID() != request.SpanContext.SpanID() {
		t.Errorf("the append is below %v, not %v", got.Parent.SpanID(), request.SpanContext.SpanID())
	}
	for _, name := range []string{"flush", "commit"} {
		s, ok := byName[name]
		if !ok || s.EndTime.Before(s.StartTime) {
			t.Errorf("%s: %v", name, s)
		}
	}
}

// keep keeps spans that a shutdown would drop.
type keep struct{ *tracetest.InMemoryExporter }

func (keep) Shutdown(context.Context) error { return nil }
