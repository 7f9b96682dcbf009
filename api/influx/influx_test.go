package influx

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cardinalsin/ingest"
	"cardinalsin/ingest/ingesttest"
	"cardinalsin/writer"
)

func clock() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 678_901_234, time.UTC) }

func zip(b []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(b); err != nil {
		panic(err)
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return buf.Bytes()
}

func request(method, target string, body []byte, header ...string) *http.Request {
	r := httptest.NewRequest(method, target, bytes.NewReader(body))
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	return r
}

func serve(sink ingest.Sink, r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	Handler(sink, Options{Now: clock}).ServeHTTP(w, r)
	return w
}

// TestRoundTrip: what was written is read back bit for bit, from the head and
// from chunks.
func TestRoundTrip(t *testing.T) {
	lines := []byte("cpu,host=a usage=0.1,n=-7i,u=7u,up=t 1600000000123456789\n" +
		"cpu,host=a usage=-0 1600000000123456790\n" +
		"mem,host=ß\\ b used\\ %=1e-300 -1\n" +
		"now v=1\n")
	want := `{__name__="cpu_n", db="telegraf", host="a"} 1600000000123456789 c01c000000000000
{__name__="cpu_u", db="telegraf", host="a"} 1600000000123456789 401c000000000000
{__name__="cpu_up", db="telegraf", host="a"} 1600000000123456789 3ff0000000000000
{__name__="cpu_usage", db="telegraf", host="a"} 1600000000123456789 3fb999999999999a
{__name__="cpu_usage", db="telegraf", host="a"} 1600000000123456790 8000000000000000
{__name__="mem_used %", db="telegraf", host="ß b"} -1999 01a56e1fc2f8f359
{__name__="now_v", db="telegraf"} 1767323045678901234 3ff0000000000000
`
	for name, r := range map[string]*http.Request{
		"v1":      request("POST", "/write?db=telegraf&precision=n", lines),
		"v1 gzip": request("POST", "/write?db=telegraf", zip(lines), "Content-Encoding", "gzip"),
		"v2":      request("POST", "/api/v2/write?bucket=telegraf&org=o&precision=ns", lines, "Authorization", "Token x"),
	} {
		t.Run(name, func(t *testing.T) {
			sink := ingesttest.New(t, ingesttest.Options{})
			r.Header.Set(ingest.TenantHeader, "acme")
			if w := serve(sink, r); w.Code != http.StatusNoContent || w.Body.Len() > 0 {
				t.Fatalf("%d %s", w.Code, w.Body)
			}
			if d := cmp.Diff(want, ingesttest.Print(sink.Samples("acme"))); d != "" {
				t.Errorf("head, -want +got:\n%s", d)
			}
			sink.Flush()
			if d := cmp.Diff(want, ingesttest.Print(sink.Samples("acme"))); d != "" {
				t.Errorf("chunks, -want +got:\n%s", d)
			}
			if other := sink.Samples(""); len(other) > 0 {
				t.Errorf("the default tenant got %d series", len(other))
			}
		})
	}
}

func TestPrecision(t *testing.T) {
	for precision, want := range map[string]string{
		"": "7", "n": "7", "ns": "7", "u": "7000", "%C2%B5": "7000", "us": "7000",
		"ms": "7000000", "s": "7000000000", "m": "420000000000", "h": "25200000000000",
	} {
		for _, path := range []string{"/write?precision=", "/api/v2/write?precision="} {
			t.Run(path+precision, func(t *testing.T) {
				sink := ingesttest.New(t, ingesttest.Options{})
				if w := serve(sink, request("POST", path+precision, []byte("a b=1 7"))); w.Code != http.StatusNoContent {
					t.Fatalf("%d %s", w.Code, w.Body)
				}
				got := strings.Fields(ingesttest.Print(sink.Samples("")))[1]
				if got = strings.TrimLeft(got, "0"); got != want {
					t.Errorf("time %s, want %s", got, want)
				}
			})
		}
	}
}

// TestPartial: text is left out, told and counted; the rest is there.
func TestPartial(t *testing.T) {
	for path, want := range map[string]string{
		"/write":        `{"error":"partial write: 2 text fields were not kept, the first in line 1, field \"format\": samples are numbers; everything else was stored. dropped=2"}`,
		"/api/v2/write": `{"code":"invalid","message":"partial write: 2 text fields were not kept, the first in line 1, field \"format\": samples are numbers; everything else was stored. dropped=2"}`,
	} {
		t.Run(path, func(t *testing.T) {
			sink := ingesttest.New(t, ingesttest.Options{})
			w := serve(sink, request("POST", path, []byte("up format=\"1 day\",days=1 1\nup format=\"\" 2\nup days=2 3")))
			if d := cmp.Diff(want+"\n", w.Body.String()); w.Code != http.StatusBadRequest || d != "" {
				t.Errorf("%d, -want +got:\n%s", w.Code, d)
			}
			if n := sink.Refused("unsupported"); n != 2 {
				t.Errorf("%d refused, want 2", n)
			}
			if d := cmp.Diff("{__name__=\"up_days\"} 0001 3ff0000000000000\n{__name__=\"up_days\"} 0003 4000000000000000\n", ingesttest.Print(sink.Samples(""))); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
			// Nothing but text: nothing to store, and no table for it.
			sink = ingesttest.New(t, ingesttest.Options{})
			if w := serve(sink, request("POST", path, []byte("up format=\"1 day\" 1"))); w.Code != http.StatusBadRequest || sink.Tables() != 0 {
				t.Errorf("only text: %d, %d tables", w.Code, sink.Tables())
			}
		})
	}
}

func TestRounded(t *testing.T) {
	sink := ingesttest.New(t, ingesttest.Options{})
	w := serve(sink, request("POST", "/write", []byte("a b=9007199254740993i,c=9007199254740992i 1")))
	if got := w.Header().Get(WarningHeader); w.Code != http.StatusNoContent || got != "1 integers beyond 2^53 were rounded to the nearest float64" {
		t.Errorf("%d, warning %q", w.Code, got)
	}
}

func TestBadInput(t *testing.T) {
	fields := "a " + strings.Repeat("x=1,", maxSamples) + "x=1"
	for name, c := range map[string]struct {
		r      *http.Request
		status int
		reason ingest.Reason
	}{
		"syntax":            {request("POST", "/write", []byte("good v=1 1\nbad\n")), 400, "malformed"},
		"truncated":         {request("POST", "/write", []byte("good v=1 1\nbad v=")), 400, "malformed"},
		"wrong type":        {request("POST", "/write", []byte("\x0a\x04\x12\x02\x0a\x00")), 400, "malformed"},
		"invalid UTF-8":     {request("POST", "/write", []byte("good v=1 1\na,b=\xff v=1")), 400, "malformed"},
		"duplicate tags":    {request("POST", "/write", []byte("good v=1 1\na,b=1,b=2 v=1")), 400, "duplicate_label"},
		"empty tag name":    {request("POST", "/write", []byte("good v=1 1\na,=1 v=1")), 400, "malformed"},
		"tag __name__":      {request("POST", "/write", []byte("good v=1 1\na,__name__=1 v=1")), 400, "invalid_label"},
		"time out of range": {request("POST", "/write?precision=h", []byte("good v=1 1\na v=1 9223372036854775807")), 400, "invalid_sample"},
		"time no int64":     {request("POST", "/write", []byte("good v=1 1\na v=1 9223372036854775808")), 400, "malformed"},
		"unknown precision": {request("POST", "/write?precision=d", []byte("good v=1 1")), 400, "malformed"},
		"unknown encoding":  {request("POST", "/write", []byte("good v=1 1"), "Content-Encoding", "br"), 400, "unsupported"},
		"gzip cut":          {request("POST", "/write", zip([]byte("good v=1 1"))[:15], "Content-Encoding", "gzip"), 400, "malformed"},
		"gzip bomb":         {request("POST", "/write", zip(bytes.Repeat([]byte("good v=1 1\n"), maxBodyBytes/11+1)), "Content-Encoding", "gzip"), 413, "too_large"},
		"too many fields":   {request("POST", "/write", []byte(fields)), 413, "too_large"},
		"too many samples":  {request("POST", "/write", bytes.Repeat([]byte("a v=1 1\n"), maxSamples+1)), 413, "too_large"},
		"labels bomb":       {request("POST", "/write", []byte("a,t="+strings.Repeat("x", 1<<19)+" "+numbered(2000))), 413, "too_large"},
		"tenant":            {request("POST", "/write", []byte("good v=1 1"), ingest.TenantHeader, "../x"), 400, "invalid_tenant"},
		"v2 syntax":         {request("POST", "/api/v2/write", []byte("good v=1 1\nbad\n")), 400, "malformed"},
	} {
		t.Run(name, func(t *testing.T) {
			sink := ingesttest.New(t, ingesttest.Options{})
			w := serve(sink, c.r)
			if w.Code != c.status || !strings.HasPrefix(w.Body.String(), `{"`) {
				t.Errorf("%d %s, want %d", w.Code, w.Body, c.status)
			}
			if n := sink.Refused(c.reason); n != 1 {
				t.Errorf("%d refused as %s, want 1", n, c.reason)
			}
			if sink.Tables() != 0 {
				t.Error("something was stored")
			}
		})
	}
}

// numbered is n fields.
func numbered(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "f%d=1,", i)
	}
	return b.String() + "f=1"
}

func TestUnavailable(t *testing.T) {
	for name, c := range map[string]struct {
		err        error
		status     int
		retryAfter string
		body       string
	}{
		"overloaded": {writer.ErrOverloaded, 429, "10", `"code":"too many requests"`},
		"down":       {io.ErrClosedPipe, 503, "", `"code":"unavailable"`},
	} {
		t.Run(name, func(t *testing.T) {
			sink := ingesttest.New(t, ingesttest.Options{})
			sink.FailWith(c.err)
			w := serve(sink, request("POST", "/api/v2/write", []byte("a v=1,s=\"x\" 1")))
			if w.Code != c.status || w.Header().Get("Retry-After") != c.retryAfter || !strings.Contains(w.Body.String(), c.body) {
				t.Errorf("%d, retry after %q: %s", w.Code, w.Header().Get("Retry-After"), w.Body)
			}
			if n := sink.Refused("unsupported"); n != 0 {
				t.Errorf("%d text fields counted of a request that will come again", n)
			}
		})
	}
}

func TestWhatClientsAsk(t *testing.T) {
	for name, c := range map[string]struct {
		r      *http.Request
		status int
		body   string
	}{
		"ping":            {request("GET", "/ping", nil), 204, ""},
		"ping head":       {request("HEAD", "/ping", nil), 204, ""},
		"ping verbose":    {request("GET", "/ping?verbose=true", nil), 200, `{"version":"1.8.0-cardinalsin"}` + "\n"},
		"v2 ping":         {request("GET", "/api/v2/ping", nil), 204, ""},
		"health":          {request("GET", "/health", nil), 200, `{"checks":[],"message":"ready for writes","name":"influxdb","status":"pass","version":"1.8.0-cardinalsin"}` + "\n"},
		"create database": {request("POST", "/query?q=CREATE+DATABASE+%22telegraf%22", nil), 200, `{"results":[{"statement_id":0}]}` + "\n"},
		"InfluxQL":        {request("GET", "/query?q=SELECT+1", nil), 400, `{"error":"InfluxQL is not spoken here, but for CREATE DATABASE; ask by PromQL or SQL"}` + "\n"},
		"get write":       {request("GET", "/write", nil), 405, `{"error":"only POST writes"}` + "\n"},
		"empty write":     {request("POST", "/write", nil), 204, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := serve(ingesttest.New(t, ingesttest.Options{}), c.r)
			if d := cmp.Diff(c.body, w.Body.String()); w.Code != c.status || d != "" {
				t.Errorf("%d, want %d; -want +got:\n%s", w.Code, c.status, d)
			}
		})
	}
	for _, p := range Paths() {
		if w := serve(ingesttest.New(t, ingesttest.Options{}), request("GET", p, nil)); w.Code == http.StatusNotFound {
			t.Errorf("%s is not served", p)
		}
	}
}
