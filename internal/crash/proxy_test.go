//go:build crash

package crash

import (
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"regexp"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// proxy stands between the server and its S3 store: it ends the server in the
// middle of a request, which no point within the server can, or takes the
// store away.
type proxy struct {
	url    string
	down   atomic.Bool
	passed atomic.Int64 // requests, refused ones too

	mu   sync.Mutex // guards trap
	trap *trap
}

// trap ends a process at the n-th put of a key that matches: with half of the
// body sent, or with all of it applied and the answer on its way.
type trap struct {
	key  *regexp.Regexp
	half bool
	left atomic.Int64
	kill func()
}

var (
	chunkFile = regexp.MustCompile(`\.parquet$`)
	commit    = regexp.MustCompile(`/_delta_log/[0-9]{20}\.json$`)
)

var errKilled = errors.New("its sender is gone")

func startProxy(t *testing.T, target string) *proxy {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{}
	reverse := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(u)
			r.Out.Host = r.In.Host // it is signed
		},
		Transport: &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64},
		ModifyResponse: func(r *http.Response) error {
			if trap, ok := r.Request.Context().Value(trapKey{}).(*trap); ok && !trap.half {
				trap.kill()
				return errKilled
			}
			return nil
		},
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
		ErrorLog:     slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.passed.Add(1)
		if p.down.Load() {
			panic(http.ErrAbortHandler)
		}
		if trap := p.caught(r); trap != nil {
			r = r.WithContext(withTrap(r.Context(), trap))
			if trap.half {
				r.Body = &halved{ReadCloser: r.Body, left: r.ContentLength / 2, end: trap.kill}
			}
		}
		reverse.ServeHTTP(w, r)
	}))
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.Start()
	t.Cleanup(s.Close)
	p.url = s.URL
	return p
}

func (p *proxy) set(t *trap) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.trap = t
}

func (p *proxy) caught(r *http.Request) *trap {
	p.mu.Lock()
	defer p.mu.Unlock()
	if t := p.trap; t != nil && r.Method == http.MethodPut && t.key.MatchString(r.URL.Path) && t.left.Add(-1) == 0 {
		return t
	}
	return nil
}

// halved is a body that ends its sender when half of it was read.
type halved struct {
	io.ReadCloser
	left int64
	end  func()
}

func (h *halved) Read(b []byte) (int, error) {
	if h.left <= 0 {
		// What was read before is given time to reach the store.
		time.Sleep(5 * time.Millisecond)
		h.end()
		return 0, errKilled
	}
	n, err := h.ReadCloser.Read(b[:min(int64(len(b)), h.left)])
	h.left -= int64(n)
	return n, err
}
