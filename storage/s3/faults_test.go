package s3_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cardinalsin/internal/faultproxy"
	"cardinalsin/internal/s3server"
	"cardinalsin/storage"
	"cardinalsin/storage/retry"
	"cardinalsin/storage/storetest"
)

// throughProxy starts a proxy that breaks what passes, and returns the server
// as seen through it.
func throughProxy(t *testing.T, server *s3server.Server, rules ...faultproxy.Rule) (*faultproxy.Proxy, *s3server.Server) {
	t.Helper()
	p, err := faultproxy.New(server.Endpoint, faultproxy.Options{Rules: rules})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		t.Log(p) // the seed above all
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p, &s3server.Server{
		Endpoint: p.URL, Region: server.Region, Bucket: server.Bucket,
		AccessKey: server.AccessKey, SecretKey: server.SecretKey,
	}
}

// Behind storage/retry the contract holds through faults in every tenth
// request or so. Conditional puts, which nobody may repeat, are spared here.
func TestConformanceThroughFaults(t *testing.T) {
	var rules []faultproxy.Rule
	for _, r := range []faultproxy.Rule{
		{Kind: faultproxy.LoseRequest},
		{Kind: faultproxy.LoseResponse},
		{Kind: faultproxy.Delay, MaxDelay: 20 * time.Millisecond},
		{Kind: faultproxy.AnswerBefore, Status: http.StatusServiceUnavailable, Code: "SlowDown"},
		{Kind: faultproxy.AnswerBefore, Status: http.StatusTooManyRequests, Code: "SlowDown"},
		{Kind: faultproxy.AnswerAfter, Status: http.StatusInternalServerError, Code: "InternalError"},
		{Kind: faultproxy.CutRequest},
		{Kind: faultproxy.CutResponse},
	} {
		r.When, r.Probability = faultproxy.Unconditional, 0.02
		rules = append(rules, r)
	}
	p, server := throughProxy(t, storetest.StartS3(t), rules...)
	var n atomic.Int64
	storetest.Run(t, func(t *testing.T) storage.Store {
		s := open(t, server, fmt.Sprintf("some/prefix/%d", n.Add(1)))
		return retry.New(s, retry.Options{Attempts: 10, MinDelay: time.Millisecond, MaxDelay: 5 * time.Millisecond})
	})
	for _, r := range rules {
		if p.Counts()[r.Kind] == 0 {
			t.Errorf("%s never struck: %v", r.Kind, p)
		}
	}
}

// Whatever a fault does to a conditional put, it is one request, it is
// reported as of unknown outcome, and the object tells what came of it. A
// retrying decorator changes nothing of that.
func TestConditionalPutsThroughFaults(t *testing.T) {
	server := storetest.StartS3(t)
	plain := open(t, server, "p")
	for _, c := range []struct {
		name    string
		rule    faultproxy.Rule
		applied bool
	}{
		{"lose request", faultproxy.Rule{Kind: faultproxy.LoseRequest}, false},
		{"lose response", faultproxy.Rule{Kind: faultproxy.LoseResponse}, true},
		{"late", faultproxy.Rule{Kind: faultproxy.Late, MaxDelay: time.Minute}, true},
		{"conflict", faultproxy.Rule{Kind: faultproxy.AnswerBefore, Status: http.StatusConflict, Code: "ConditionalRequestConflict"}, false},
		{"conflict with oneself", faultproxy.Rule{Kind: faultproxy.AnswerAfter, Status: http.StatusConflict, Code: "ConditionalRequestConflict"}, true},
		{"throttled", faultproxy.Rule{Kind: faultproxy.AnswerBefore, Status: http.StatusTooManyRequests, Code: "SlowDown"}, false},
		{"slow down", faultproxy.Rule{Kind: faultproxy.AnswerBefore, Status: http.StatusServiceUnavailable, Code: "SlowDown"}, false},
		{"slow down, applied", faultproxy.Rule{Kind: faultproxy.AnswerAfter, Status: http.StatusServiceUnavailable, Code: "SlowDown"}, true},
		{"error", faultproxy.Rule{Kind: faultproxy.AnswerBefore, Status: http.StatusInternalServerError, Code: "InternalError"}, false},
		{"error, applied", faultproxy.Rule{Kind: faultproxy.AnswerAfter, Status: http.StatusInternalServerError, Code: "InternalError"}, true},
		{"time-out", faultproxy.Rule{Kind: faultproxy.AnswerBefore, Status: http.StatusBadRequest, Code: "RequestTimeout"}, false},
		{"cut request", faultproxy.Rule{Kind: faultproxy.CutRequest}, false},
	} {
		for _, op := range []storage.Op{storage.OpPutIfAbsent, storage.OpPutIfMatch} {
			t.Run(fmt.Sprintf("%s %s", op, c.name), func(t *testing.T) {
				c.rule.Method, c.rule.Probability = http.MethodPut, 1
				p, broken := throughProxy(t, server, c.rule)
				s := retry.New(open(t, broken, "p"), retry.Options{})
				key := fmt.Sprintf("%s/%s", op, c.name)
				var err error
				before := ""
				if op == storage.OpPutIfAbsent {
					_, err = s.PutIfAbsent(t.Context(), key, []byte("mine"))
				} else {
					before = "old"
					info, putErr := plain.PutIfAbsent(t.Context(), key, []byte(before))
					if putErr != nil {
						t.Fatal(putErr)
					}
					_, err = s.PutIfMatch(t.Context(), key, []byte("mine"), info.ETag)
				}
				if conditions(err) != "unknown" {
					t.Errorf("%v", err)
				}
				if p.Requests() != 1 {
					t.Errorf("%v", p)
				}
				if err := p.Close(); err != nil { // a late request arrives
					t.Fatal(err)
				}
				want := before
				if c.applied {
					want = "mine"
				}
				data, _, err := plain.Get(t.Context(), key)
				if err != nil && !errors.Is(err, storage.ErrNotFound) {
					t.Fatal(err)
				}
				if string(data) != want {
					t.Errorf("the object holds %q, want %q", data, want)
				}
			})
		}
	}
}

// Reads that break are told so, and never give a part for the whole.
func TestReadsThroughFaults(t *testing.T) {
	server := storetest.StartS3(t)
	plain := open(t, server, "p")
	for i := range 3 {
		if _, err := plain.PutIfAbsent(t.Context(), fmt.Sprintf("k%d", i), []byte("0123456789")); err != nil {
			t.Fatal(err)
		}
	}
	for _, rule := range []faultproxy.Rule{
		{Kind: faultproxy.LoseRequest},
		{Kind: faultproxy.LoseResponse},
		{Kind: faultproxy.CutResponse},
		{Kind: faultproxy.AnswerAfter, Status: http.StatusServiceUnavailable, Code: "SlowDown"},
	} {
		t.Run(string(rule.Kind), func(t *testing.T) {
			rule.Method, rule.Probability = http.MethodGet, 1
			_, broken := throughProxy(t, server, rule)
			s := open(t, broken, "p")
			_, _, getErr := s.Get(t.Context(), "k0")
			_, rangeErr := s.GetRange(t.Context(), "k0", 2, 5)
			listed, listErr := storage.Collect(s.List(t.Context(), "", ""))
			want := []string{"unavailable", "unavailable", "unavailable"}
			if diff := cmp.Diff(want, []string{conditions(getErr), conditions(rangeErr), conditions(listErr)}); diff != "" || len(listed) != 0 {
				t.Errorf("%v; (-want +got):\n%s", listed, diff)
			}
		})
	}
}

// An error that breaks off within its body counts by its status, where that
// tells enough, and else says nothing: a missing object must not pass for a
// missing bucket, nor a time-out for a refusal.
func TestErrorsBreakOff(t *testing.T) {
	for _, c := range []struct {
		status int
		want   string // as in TestStatus
	}{
		{404, "unavailable, unavailable, unknown, unknown, unknown, unavailable, unknown"},
		{400, "unavailable, unavailable, unknown, unknown, unknown, unavailable, unknown"},
		{409, "unavailable, unavailable, unknown, unknown, unknown, unavailable, unknown"},
		{500, "unavailable, unavailable, unknown, unknown, unknown, unavailable, unknown"},
		{412, "untyped, untyped, untyped, exists, precondition, untyped, untyped"},
		{403, "permission, permission, permission, permission, permission, permission, permission"},
	} {
		t.Run(fmt.Sprint(c.status), func(t *testing.T) {
			server := newScripted(t, func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				w.Header().Set("Content-Length", "100")
				w.WriteHeader(c.status)
				_, _ = io.WriteString(w, "<Error><Co")
			})
			s := server.store(t)
			var got []string
			for _, call := range calls {
				got = append(got, conditions(call.call(t.Context(), s)))
			}
			if diff := cmp.Diff(c.want, strings.Join(got, ", ")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// A body whose end only the end of the connection shows may have been cut:
// some proxies answer so. It is no object.
func TestBodiesOfNoLength(t *testing.T) {
	server := newScripted(t, func(w http.ResponseWriter, r *http.Request) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		body := "01234"
		if r.URL.Query().Has("list-type") {
			body = `<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>p/a</Key><Size>1</Size><ETag>"x"</ETag></Contents>`
		}
		status := "200 OK"
		if r.Header.Get("Range") != "" {
			status = "206 Partial Content\r\nContent-Range: bytes 5-9/10"
		}
		_, _ = io.WriteString(conn, "HTTP/1.1 "+status+"\r\nConnection: close\r\nEtag: \"x\"\r\nLast-Modified: Sun, 22 Nov 2026 00:00:00 GMT\r\n\r\n"+body)
		_ = conn.Close()
	})
	s := server.store(t)
	if data, _, err := s.Get(t.Context(), "k"); conditions(err) != "refused" {
		t.Errorf("Get: %q, %v", data, err)
	}
	if data, err := s.GetRange(t.Context(), "k", 5, 5); conditions(err) != "refused" {
		t.Errorf("GetRange: %q, %v", data, err)
	}
	if listed, err := storage.Collect(s.List(t.Context(), "", "")); conditions(err) != "unavailable" {
		t.Errorf("List: %v, %v", listed, err)
	}
}
