package s3_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/google/go-cmp/cmp"

	"cardinalsin/storage"
	"cardinalsin/storage/s3"
)

// scripted is a server that answers every request alike, and counts them.
type scripted struct {
	*httptest.Server

	// mu guards requests.
	mu       sync.Mutex
	requests []*http.Request
}

func newScripted(t *testing.T, answer http.HandlerFunc) *scripted {
	t.Helper()
	s := &scripted{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.requests = append(s.requests, r)
		s.mu.Unlock()
		answer(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *scripted) seen() []*http.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests
}

func (s *scripted) store(t *testing.T, change ...func(*s3.Options)) *s3.Store {
	t.Helper()
	opts := s3.Options{
		Bucket: "b", Prefix: "p", Endpoint: s.URL, Region: "r", PathStyle: true,
		Credentials: credentials.NewStaticCredentialsProvider("id", "secret", ""),
	}
	for _, c := range change {
		c(&opts)
	}
	store, err := s3.Open(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func failure(status int, code string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(status)
		if code != "" {
			fmt.Fprintf(w, "<Error><Code>%s</Code><Message>m</Message></Error>", code)
		}
	}
}

var calls = []struct {
	op   storage.Op
	call func(context.Context, storage.Store) error
}{
	{storage.OpGet, func(ctx context.Context, s storage.Store) error { _, _, err := s.Get(ctx, "k"); return err }},
	{storage.OpGetRange, func(ctx context.Context, s storage.Store) error { _, err := s.GetRange(ctx, "k", 5, 5); return err }},
	{storage.OpPut, func(ctx context.Context, s storage.Store) error {
		_, err := s.Put(ctx, "k", strings.NewReader("body"))
		return err
	}},
	{storage.OpPutIfAbsent, func(ctx context.Context, s storage.Store) error {
		_, err := s.PutIfAbsent(ctx, "k", []byte("body"))
		return err
	}},
	{storage.OpPutIfMatch, func(ctx context.Context, s storage.Store) error {
		_, err := s.PutIfMatch(ctx, "k", []byte("body"), `"etag"`)
		return err
	}},
	{storage.OpList, func(ctx context.Context, s storage.Store) error {
		_, err := storage.Collect(s.List(ctx, "", ""))
		return err
	}},
	{storage.OpDelete, func(ctx context.Context, s storage.Store) error { return s.Delete(ctx, "k") }},
}

// sentinels that classification can give, by the letters of the table below.
var sentinels = map[string]error{
	"notfound": storage.ErrNotFound, "exists": storage.ErrAlreadyExists, "precondition": storage.ErrPreconditionFailed,
	"unknown": storage.ErrUnknownOutcome, "unavailable": storage.ErrUnavailable, "permission": storage.ErrPermission,
	"range": storage.ErrInvalidRange, "refused": storage.ErrStoreRefused, "full": storage.ErrFull,
	"nostore": storage.ErrNoStore, "key": storage.ErrInvalidKey,
}

// conditions lists the sentinels that an error is.
func conditions(err error) string {
	if err == nil {
		return "ok"
	}
	var names []string
	for _, name := range []string{"notfound", "exists", "precondition", "unknown", "unavailable", "permission", "range", "refused", "full", "nostore", "key"} {
		if errors.Is(err, sentinels[name]) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return "untyped"
	}
	return strings.Join(names, " ")
}

// Every status and code, for every call: the condition, and one request.
func TestStatus(t *testing.T) {
	for _, c := range []struct {
		status int
		code   string
		// get, get range, put, put if absent, put if match, list, delete
		want string
	}{
		{404, "NoSuchKey", "notfound, notfound, notfound, notfound, precondition, notfound, ok"},
		{404, "NoSuchBucket", "nostore, nostore, nostore, nostore, nostore, nostore, nostore"},
		{404, "", "nostore, nostore, nostore, nostore, nostore, nostore, nostore"},
		{412, "PreconditionFailed", "untyped, untyped, untyped, exists, precondition, untyped, untyped"},
		{409, "ConditionalRequestConflict", "unavailable, unavailable, unknown, unknown, unknown, unavailable, unknown"},
		{409, "ObjectParentIsFile", "key, key, key, key, key, key, key"},
		{403, "AccessDenied", "permission, permission, permission, permission, permission, permission, permission"},
		{401, "", "permission, permission, permission, permission, permission, permission, permission"},
		{400, "ExpiredToken", "permission, permission, permission, permission, permission, permission, permission"},
		{400, "InvalidArgument", "untyped, untyped, untyped, untyped, untyped, untyped, untyped"},
		{400, "RequestTimeout", "unavailable, unavailable, unknown, unknown, unknown, unavailable, unknown"},
		{416, "InvalidRange", "range, range, range, range, range, range, range"},
		{408, "", "unavailable, unavailable, unknown, unknown, unknown, unavailable, unknown"},
		{429, "SlowDown", "unavailable, unavailable, unknown, unknown, unknown, unavailable, unknown"},
		{500, "InternalError", "unavailable, unavailable, unknown, unknown, unknown, unavailable, unknown"},
		{503, "SlowDown", "unavailable, unavailable, unknown, unknown, unknown, unavailable, unknown"},
		{502, "", "unavailable, unavailable, unknown, unknown, unknown, unavailable, unknown"},
		{501, "NotImplemented", "refused, refused, refused, refused, refused, refused, refused"},
		{400, "NotImplemented", "refused, refused, refused, refused, refused, refused, refused"},
		{507, "", "full, full, full, full, full, full, full"},
		{301, "PermanentRedirect", "nostore, nostore, nostore, nostore, nostore, nostore, nostore"},
		{307, "TemporaryRedirect", "nostore, nostore, nostore, nostore, nostore, nostore, nostore"},
	} {
		t.Run(fmt.Sprintf("%d %s", c.status, c.code), func(t *testing.T) {
			server := newScripted(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Location", "/elsewhere")
				failure(c.status, c.code)(w, r)
			})
			s := server.store(t)
			var got []string
			for i, call := range calls {
				got = append(got, conditions(call.call(t.Context(), s)))
				if n := len(server.seen()); n != i+1 {
					t.Fatalf("%s made %d requests", call.op, n-i)
				}
			}
			if diff := cmp.Diff(c.want, strings.Join(got, ", ")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// Connections that break, at every point: one request a call, also on a
// connection that was used before, where net/http may repeat of its own.
func TestBrokenConnections(t *testing.T) {
	const want = "unavailable, unavailable, unknown, unknown, unknown, unavailable, unknown"
	hijack := func(w http.ResponseWriter, say string) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		_, _ = io.WriteString(conn, say)
		_ = conn.Close()
	}
	for name, answer := range map[string]http.HandlerFunc{
		"before the response": func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			hijack(w, "")
		},
		"within the header": func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			hijack(w, "HTTP/1.1 200 OK\r\nContent-Le")
		},
		"no HTTP": func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			hijack(w, "hello\r\n\r\n")
		},
	} {
		t.Run(name, func(t *testing.T) {
			var healthy bool
			server := newScripted(t, func(w http.ResponseWriter, r *http.Request) {
				if healthy {
					failure(http.StatusForbidden, "AccessDenied")(w, r)
					return
				}
				answer(w, r)
			})
			s := server.store(t)
			var got []string
			for _, call := range calls {
				healthy = true
				_, _, _ = s.Get(t.Context(), "k") // leaves a connection to use again
				healthy = false
				before := len(server.seen())
				got = append(got, conditions(call.call(t.Context(), s)))
				if n := len(server.seen()) - before; call.op.Writes() && n != 1 {
					t.Errorf("%s made %d requests", call.op, n)
				}
			}
			if diff := cmp.Diff(want, strings.Join(got, ", ")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	t.Run("no server", func(t *testing.T) {
		server := newScripted(t, failure(500, ""))
		s := server.store(t)
		server.Close()
		var got []string
		for _, call := range calls {
			got = append(got, conditions(call.call(t.Context(), s)))
		}
		if diff := cmp.Diff(want, strings.Join(got, ", ")); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
	t.Run("within the body", func(t *testing.T) {
		server := newScripted(t, func(w http.ResponseWriter, r *http.Request) {
			hijack(w, "HTTP/1.1 206 OK\r\nContent-Length: 5\r\nContent-Range: bytes 5-9/10\r\nEtag: \"x\"\r\n\r\nab")
		})
		s := server.store(t)
		if _, _, err := s.Get(t.Context(), "k"); conditions(err) != "unavailable" {
			t.Errorf("Get: %v", err)
		}
		if _, err := s.GetRange(t.Context(), "k", 5, 5); conditions(err) != "unavailable" {
			t.Errorf("GetRange: %v", err)
		}
		if _, err := storage.Collect(s.List(t.Context(), "", "")); conditions(err) != "unavailable" {
			t.Errorf("List: %v", err)
		}
	})
}

func TestStall(t *testing.T) {
	release := make(chan struct{})
	server := newScripted(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-release
	})
	defer close(release)
	s := server.store(t, func(o *s3.Options) { o.StallTimeout = 50 * time.Millisecond })
	want := "unavailable, unavailable, unknown, unknown, unknown, unavailable, unknown"
	var got []string
	for _, call := range calls {
		begin := time.Now()
		got = append(got, conditions(call.call(t.Context(), s)))
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("%s took %v", call.op, took)
		}
	}
	if diff := cmp.Diff(want, strings.Join(got, ", ")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A slow transfer that goes on is no stall.
func TestSlowIsNotStalled(t *testing.T) {
	server := newScripted(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			_, _ = io.Copy(io.Discard, r.Body)
			w.Header().Set("Etag", `"x"`)
			return
		}
		w.Header().Set("Etag", `"x"`)
		w.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
		w.Header().Set("Content-Length", "6")
		for range 6 {
			time.Sleep(100 * time.Millisecond)
			_, _ = io.WriteString(w, "x")
			w.(http.Flusher).Flush()
		}
	})
	s := server.store(t, func(o *s3.Options) { o.StallTimeout = 400 * time.Millisecond })
	if data, _, err := s.Get(t.Context(), "k"); err != nil || string(data) != "xxxxxx" {
		t.Errorf("Get: %q, %v", data, err)
	}
	body := &slow{Reader: bytes.NewReader([]byte("123456"))}
	if _, err := s.Put(t.Context(), "k", body); err != nil {
		t.Errorf("Put: %v", err)
	}
}

// slow gives a byte at a time, with a pause.
type slow struct{ *bytes.Reader }

func (s *slow) Read(p []byte) (int, error) {
	time.Sleep(60 * time.Millisecond)
	return s.Reader.Read(p[:1])
}

func (s *slow) WriteTo(w io.Writer) (int64, error) { return io.Copy(w, struct{ io.Reader }{s}) }

// The caller's context ends while a request is under way: a write may have
// been applied.
func TestContextEndsUnderWay(t *testing.T) {
	for _, call := range calls {
		t.Run(string(call.op), func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			release := make(chan struct{})
			server := newScripted(t, func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				cancel()
				<-release
			})
			defer close(release)
			err := call.call(ctx, server.store(t))
			if !errors.Is(err, context.Canceled) || errors.Is(err, storage.ErrUnknownOutcome) != call.op.Writes() || errors.Is(err, storage.ErrUnavailable) {
				t.Error(err)
			}
		})
	}
}

// A response that came is what counts, also if the context ended with it.
func TestAnswerBeatsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	server := newScripted(t, func(w http.ResponseWriter, r *http.Request) {
		failure(http.StatusPreconditionFailed, "PreconditionFailed")(w, r)
	})
	s := server.store(t)
	_, err := s.PutIfAbsent(ctx, "k", nil)
	cancel()
	if !errors.Is(err, storage.ErrAlreadyExists) {
		t.Error(err)
	}
}

func TestConditionsAreSent(t *testing.T) {
	server := newScripted(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Etag", `"new"`)
	})
	s := server.store(t)
	for _, call := range calls {
		if call.op == storage.OpPut || call.op == storage.OpPutIfAbsent || call.op == storage.OpPutIfMatch {
			if err := call.call(t.Context(), s); err != nil {
				t.Errorf("%s: %v", call.op, err)
			}
		}
	}
	var got []string
	for _, r := range server.seen() {
		got = append(got, fmt.Sprintf("%s %s none=%s match=%s length=%d", r.Method, r.URL.Path, r.Header.Get("If-None-Match"), r.Header.Get("If-Match"), r.ContentLength))
	}
	want := []string{
		"PUT /b/p/k none= match= length=4",
		"PUT /b/p/k none=* match= length=4",
		`PUT /b/p/k none= match="etag" length=4`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// ETags that would make a conditional put an unconditional one never leave.
func TestDangerousETags(t *testing.T) {
	server := newScripted(t, func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Etag", `"new"`) })
	s := server.store(t)
	for _, etag := range []storage.ETag{"", "*", " ", `"a", "b"`, "\"a\"\r\nX: y"} {
		if _, err := s.PutIfMatch(t.Context(), "k", nil, etag); !errors.Is(err, storage.ErrPreconditionFailed) {
			t.Errorf("%q: %v", etag, err)
		}
	}
	if n := len(server.seen()); n != 0 {
		t.Errorf("%d requests were made", n)
	}
}

func TestAnswersThatBreakTheContract(t *testing.T) {
	answer := func(status int, header map[string]string, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			for name, value := range header {
				w.Header().Set(name, value)
			}
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		}
	}
	list := func(more bool, keys ...string) http.HandlerFunc {
		var body strings.Builder
		fmt.Fprintf(&body, "<ListBucketResult><IsTruncated>%v</IsTruncated>", more)
		for _, key := range keys {
			fmt.Fprintf(&body, `<Contents><Key>%s</Key><Size>1</Size><ETag>"x"</ETag><LastModified>2026-11-22T00:00:00Z</LastModified></Contents>`, key)
		}
		body.WriteString("</ListBucketResult>")
		return answer(200, nil, body.String())
	}
	const modified = "Sun, 22 Nov 2026 00:00:00 GMT"
	for _, c := range []struct {
		name   string
		answer http.HandlerFunc
		op     storage.Op
		want   string
	}{
		{"get without ETag", answer(200, map[string]string{"Last-Modified": modified}, "x"), storage.OpGet, "refused"},
		{"get without time", answer(200, map[string]string{"Etag": `"x"`}, "x"), storage.OpGet, "refused"},
		{"get", answer(200, map[string]string{"Etag": `"x"`, "Last-Modified": modified}, "x"), storage.OpGet, "ok"},
		{"put without ETag", answer(200, nil, ""), storage.OpPutIfAbsent, "unknown"},
		{"range ignored", answer(200, map[string]string{"Etag": `"x"`}, "0123456789"), storage.OpGetRange, "refused"},
		{"another range", answer(206, map[string]string{"Content-Range": "bytes 4-8/10"}, "45678"), storage.OpGetRange, "refused"},
		{"longer range", answer(206, map[string]string{"Content-Range": "bytes 5-10/11"}, "56789a"), storage.OpGetRange, "refused"},
		{"object ends earlier", answer(206, map[string]string{"Content-Range": "bytes 5-8/9"}, "5678"), storage.OpGetRange, "range"},
		{"range", answer(206, map[string]string{"Content-Range": "bytes 5-9/10"}, "56789"), storage.OpGetRange, "ok"},
		{"list", list(false, "p/a", "p/b"), storage.OpList, "ok"},
		{"list with markers", list(false, "p/", "p/a/", "p/a/b"), storage.OpList, "ok"},
		{"list out of order", list(false, "p/b", "p/a"), storage.OpList, "refused"},
		{"list with a key twice", list(false, "p/a", "p/a"), storage.OpList, "refused"},
		{"list with a foreign key", list(false, "q/a"), storage.OpList, "refused"},
		{"list with an empty page", list(true), storage.OpList, "refused"},
		{"list whose start-after is ignored", list(true, "p/a", "p/b"), storage.OpList, "refused"},
		{"list that is no XML", answer(200, nil, "<html><body>hello<br>"), storage.OpList, "unavailable"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newScripted(t, c.answer).store(t)
			for _, call := range calls {
				if call.op != c.op {
					continue
				}
				if err := call.call(t.Context(), s); conditions(err) != c.want {
					t.Errorf("%v, want %s", err, c.want)
				}
			}
		})
	}
}

func TestOptions(t *testing.T) {
	for name, o := range map[string]s3.Options{
		"no bucket":   {Region: "r"},
		"bad prefix":  {Region: "r", Bucket: "b", Prefix: "a//b"},
		"long prefix": {Region: "r", Bucket: "b", Prefix: strings.Repeat("p", 130)},
	} {
		if _, err := s3.Open(t.Context(), o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	t.Run("no region", func(t *testing.T) {
		for _, name := range []string{"AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"} {
			t.Setenv(name, "")
		}
		t.Setenv("AWS_CONFIG_FILE", "/dev/null")
		if _, err := s3.Open(t.Context(), s3.Options{Bucket: "b"}); err == nil {
			t.Error("no error")
		}
	})
}

// Without credentials nothing is sent, so a write is known not to be applied.
func TestNoCredentials(t *testing.T) {
	server := newScripted(t, failure(500, ""))
	s := server.store(t, func(o *s3.Options) {
		o.Credentials = failingCredentials{}
	})
	for _, call := range calls {
		err := call.call(t.Context(), s)
		if !errors.Is(err, errNoCredentials) || conditions(err) != "untyped" {
			t.Errorf("%s: %v", call.op, err)
		}
	}
	if n := len(server.seen()); n != 0 {
		t.Errorf("%d requests were made", n)
	}
}
