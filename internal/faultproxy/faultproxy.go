// Package faultproxy stands between an S3 client and an S3 server and breaks
// what passes, by a plan that a seed decides: for tests.
//
// It stands on nothing of ours. Requests reach the server as they were sent,
// Host header included, so that their signatures stay valid; the answers it
// makes up itself are those of S3 (S3 API reference, "Error responses").
//
// INVARIANT: a request is applied at most as often as it was sent, whole or
// not at all: but for CutRequest, which a sound server refuses, no fault
// changes a byte of what the server is given.
//
// It must never fail a request that no rule strikes.
package faultproxy

import (
	"context"
	"crypto/sha256"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"cardinalsin/internal/glob"
)

// Kind is what a fault does to a request.
type Kind string

// The kinds of faults. After each but Delay, CutResponse and the answers the
// client finds its connection closed.
const (
	// LoseRequest: the server never sees the request.
	LoseRequest Kind = "lose-request"
	// LoseResponse: the request is applied, and nobody hears what came of it.
	LoseResponse Kind = "lose-response"
	// Late loses the request to the client at once, and applies it after a
	// delay: it was still on its way when its sender gave up.
	Late Kind = "late"
	// Delay applies the request after a delay, also if the client has hung up.
	Delay Kind = "delay"
	// AnswerBefore answers with Rule.Status and Rule.Code; the server never
	// sees the request.
	AnswerBefore Kind = "answer-before"
	// AnswerAfter applies the request, and answers so all the same.
	AnswerAfter Kind = "answer-after"
	// CutRequest sends the server half of the body and hangs up on both. A
	// request without a body is lost.
	CutRequest Kind = "cut-request"
	// CutResponse hangs up within the body of the response, whose header
	// promises all of it. A response without a body passes whole.
	CutResponse Kind = "cut-response"
)

// Rule says which requests to strike, and how.
type Rule struct {
	Kind Kind
	// Method is the HTTP method; empty means any.
	Method string
	// Key is a pattern for the whole key (of a listing: for its prefix), in
	// which * stands for any bytes, slashes included; empty means any.
	Key string
	// When, if set, must agree too; it may run concurrently.
	When func(*http.Request) bool
	// Probability is that of a request which matches to be struck, 0 to 1.
	Probability float64
	// MaxDelay bounds the delay of Late and Delay, which is random.
	MaxDelay time.Duration
	// Status and Code make the answer of AnswerBefore and AnswerAfter, such as
	// 503 and SlowDown.
	Status int
	Code   string
}

// Conditional is a Rule.When for conditional puts.
func Conditional(r *http.Request) bool {
	return r.Header.Get("If-None-Match") != "" || r.Header.Get("If-Match") != ""
}

// Unconditional is a Rule.When for all else.
func Unconditional(r *http.Request) bool { return !Conditional(r) }

// Options configure a proxy.
type Options struct {
	// Seed decides the plan: the n-th request with a method and a key meets
	// the same fate, whatever happens beside it. 0 means a random one.
	Seed uint64
	// Rules are tried in their order; the first that strikes decides.
	Rules []Rule
}

// Proxy is a running proxy.
type Proxy struct {
	URL  string // http://127.0.0.1:port
	Seed uint64

	rules   []Rule
	reverse *httputil.ReverseProxy
	cutting *httputil.ReverseProxy // sends what comes before a cut
	server  *http.Server
	served  chan struct{} // closed when the server has ended
	closing chan struct{} // closed when delays are to end

	close    sync.Once
	closeErr error
	late     sync.WaitGroup

	mu     sync.Mutex // guards the fields below
	seen   map[string]int
	counts map[Kind]int
	total  int
	lost   int  // requests during which the server was lost
	closed bool // nothing more goes on its way late
}

// maxBody bounds a request body that is kept in memory.
const maxBody = 64 << 20

// New starts a proxy in front of target, a server's URL. The caller closes it.
func New(target string, opts Options) (*Proxy, error) {
	u, err := url.Parse(target)
	if err != nil {
		return nil, fmt.Errorf("fault proxy: %w", err)
	}
	for i := range opts.Rules {
		if err := opts.Rules[i].validate(); err != nil {
			return nil, fmt.Errorf("fault proxy: rule %d: %w", i, err)
		}
	}
	if opts.Seed == 0 {
		opts.Seed = rand.Uint64()
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("fault proxy: %w", err)
	}
	p := &Proxy{
		URL: "http://" + listener.Addr().String(), Seed: opts.Seed, rules: slices.Clone(opts.Rules),
		served: make(chan struct{}), closing: make(chan struct{}),
		seen: map[string]int{}, counts: map[Kind]int{},
	}
	silent := slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	reverse := func(writeBuffer int) *httputil.ReverseProxy {
		return &httputil.ReverseProxy{
			Rewrite: func(pr *httputil.ProxyRequest) {
				pr.SetURL(u)
				pr.Out.Host = pr.In.Host // it is signed
			},
			Transport: &http.Transport{
				DisableCompression:  true, // a header of its own would be unsigned
				MaxIdleConnsPerHost: 64,
				WriteBufferSize:     writeBuffer,
			},
			FlushInterval:  -1, // what comes before a cut is sent
			ModifyResponse: cutResponse,
			ErrorHandler:   p.serverLost,
			ErrorLog:       silent, // says that a copy was broken off
		}
	}
	p.reverse, p.cutting = reverse(0), reverse(1)
	p.server = &http.Server{Handler: http.HandlerFunc(p.serve), ErrorLog: silent}
	go func() {
		defer close(p.served)
		_ = p.server.Serve(listener) // ends with Close
	}()
	return p, nil
}

func (r *Rule) validate() error {
	switch r.Kind {
	case LoseRequest, LoseResponse, CutRequest, CutResponse:
	case Late, Delay:
		if r.MaxDelay <= 0 {
			return fmt.Errorf("%s without MaxDelay", r.Kind)
		}
	case AnswerBefore, AnswerAfter:
		if r.Status < 400 || r.Status > 599 || r.Code == "" {
			return fmt.Errorf("%s with status %d and code %q", r.Kind, r.Status, r.Code)
		}
	default:
		return fmt.Errorf("unknown kind %q", r.Kind)
	}
	if r.Probability <= 0 || r.Probability > 1 {
		return fmt.Errorf("probability %v", r.Probability)
	}
	return nil
}

// Close applies what is still on its way, at once, and ends the proxy. Calling
// it again does nothing.
func (p *Proxy) Close() error {
	p.close.Do(func() {
		p.mu.Lock()
		p.closed = true
		p.mu.Unlock()
		close(p.closing)
		p.late.Wait()
		p.closeErr = p.server.Close()
		<-p.served
		for _, r := range []*httputil.ReverseProxy{p.reverse, p.cutting} {
			r.Transport.(*http.Transport).CloseIdleConnections()
		}
	})
	return p.closeErr
}

// Counts returns how many requests met which fault.
func (p *Proxy) Counts() map[Kind]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.counts)
}

// Requests counts all requests, struck or not.
func (p *Proxy) Requests() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.total
}

// String says what was done, and by which seed.
func (p *Proxy) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d: %d requests", p.Seed, p.total)
	for _, kind := range slices.Sorted(maps.Keys(p.counts)) {
		fmt.Fprintf(&b, ", %d %s", p.counts[kind], kind)
	}
	if p.lost > 0 {
		fmt.Fprintf(&b, ", the server itself lost in %d", p.lost)
	}
	return b.String()
}

// strike is a rule that strikes a request.
type strike struct {
	*Rule
	delay time.Duration
}

// decide counts a request and draws its fate.
func (p *Proxy) decide(r *http.Request) *strike {
	key := keyOf(r)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.total++
	id := r.Method + " " + key
	n := p.seen[id]
	p.seen[id]++
	rng := rand.New(rand.NewChaCha8(sha256.Sum256(fmt.Appendf(nil, "%d %d %s", p.Seed, n, id))))
	for i := range p.rules {
		rule := &p.rules[i]
		hit, delay := rng.Float64() < rule.Probability, rng.Float64()
		if !hit || rule.Method != "" && rule.Method != r.Method || rule.Key != "" && !glob.Match(rule.Key, key) || rule.When != nil && !rule.When(r) {
			continue
		}
		p.counts[rule.Kind]++
		return &strike{rule, time.Duration(delay * float64(rule.MaxDelay))}
	}
	return nil
}

// keyOf is the object that a path-style request names, or the prefix that it
// lists.
func keyOf(r *http.Request) string {
	_, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if key == "" {
		return r.URL.Query().Get("prefix")
	}
	return key
}

func (p *Proxy) serve(w http.ResponseWriter, r *http.Request) {
	s := p.decide(r)
	if s == nil {
		p.reverse.ServeHTTP(w, r)
		return
	}
	switch s.Kind {
	case LoseRequest:
		panic(http.ErrAbortHandler)
	case AnswerBefore:
		s.answer(w)
	case CutResponse:
		p.reverse.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), cutKey{}, true)))
	case CutRequest:
		if r.ContentLength <= 0 {
			panic(http.ErrAbortHandler)
		}
		r.Body = &cut{ReadCloser: r.Body, left: r.ContentLength / 2}
		p.cutting.ServeHTTP(discard{}, r)
		panic(http.ErrAbortHandler)
	case LoseResponse:
		p.reverse.ServeHTTP(discard{}, detach(r))
		panic(http.ErrAbortHandler)
	case AnswerAfter:
		p.reverse.ServeHTTP(discard{}, detach(r))
		s.answer(w)
	case Delay:
		r = detach(r)
		p.sleep(s.delay)
		p.reverse.ServeHTTP(w, r)
	case Late:
		p.applyLater(detach(r), s.delay)
		panic(http.ErrAbortHandler)
	}
}

// applyLater sends a request whose sender has hung up, after a while.
func (p *Proxy) applyLater(r *http.Request, delay time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	p.late.Go(func() {
		defer func() {
			// This is how ReverseProxy ends where a connection breaks.
			v := recover()
			if err, ok := v.(error); v != nil && (!ok || !errors.Is(err, http.ErrAbortHandler)) {
				panic(v)
			}
		}()
		p.sleep(delay)
		p.reverse.ServeHTTP(discard{}, r)
	})
}

// sleep waits, until the proxy closes.
func (p *Proxy) sleep(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-p.closing:
	}
}

// serverLost is called when the server does not answer. The client finds its
// connection closed.
func (p *Proxy) serverLost(_ http.ResponseWriter, _ *http.Request, err error) {
	if !errors.Is(err, errCut) {
		p.mu.Lock()
		p.lost++
		p.mu.Unlock()
	}
	panic(http.ErrAbortHandler)
}

// answer is an error as S3 says it.
func (r *Rule) answer(w http.ResponseWriter) {
	body, err := xml.Marshal(struct {
		XMLName   xml.Name `xml:"Error"`
		Code      string
		Message   string
		RequestID string `xml:"RequestId"`
	}{Code: r.Code, Message: "injected", RequestID: "faultproxy"})
	if err != nil {
		panic(err) // a struct of strings
	}
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(r.Status)
	_, _ = w.Write(append([]byte(xml.Header), body...)) // the client may have hung up
}
