package faultproxy_test

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cardinalsin/internal/faultproxy"
)

// backend keeps bodies by path, and what it was asked.
type backend struct {
	*httptest.Server

	mu    sync.Mutex // guards the fields below
	held  map[string]string
	asked []string
	hosts map[string]bool
}

func newBackend(t *testing.T) *backend {
	b := &backend{held: map[string]string{}, hosts: map[string]bool{}}
	b.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		b.mu.Lock()
		defer b.mu.Unlock()
		b.hosts[r.Host] = true
		if err != nil {
			b.asked = append(b.asked, r.Method+" cut")
			return
		}
		b.asked = append(b.asked, r.Method)
		switch r.Method {
		case http.MethodPut:
			b.held[r.URL.Path] = string(body)
		case http.MethodDelete:
			delete(b.held, r.URL.Path)
		default:
			_, _ = io.WriteString(w, b.held[r.URL.Path])
		}
	}))
	t.Cleanup(b.Close)
	return b
}

func (b *backend) log() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.asked)
}

func proxy(t *testing.T, target string, seed uint64, rules ...faultproxy.Rule) *faultproxy.Proxy {
	t.Helper()
	p, err := faultproxy.New(target, faultproxy.Options{Seed: seed, Rules: rules})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// client makes one connection a request, and repeats none.
var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true}}

// do returns "status body", or "cut" or "closed" where no whole answer came.
func do(t *testing.T, method, url, body string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return "closed"
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Sprintf("%d %s cut", resp.StatusCode, data)
	case err != nil:
		t.Fatal(err)
	}
	return fmt.Sprintf("%d %s", resp.StatusCode, data)
}

func TestKinds(t *testing.T) {
	const slowDown = "503 " + `<?xml version="1.0" encoding="UTF-8"?>` + "\n" +
		`<Error><Code>SlowDown</Code><Message>injected</Message><RequestId>faultproxy</RequestId></Error>`
	for _, c := range []struct {
		rule     faultproxy.Rule
		put, get string
		asked    []string // of the server, once the proxy is closed
	}{
		{faultproxy.Rule{Kind: faultproxy.LoseRequest}, "closed", "closed", nil},
		{faultproxy.Rule{Kind: faultproxy.LoseResponse}, "closed", "closed", []string{"PUT", "GET"}},
		{faultproxy.Rule{Kind: faultproxy.Late, MaxDelay: time.Hour}, "closed", "closed", []string{"GET", "PUT"}},
		{faultproxy.Rule{Kind: faultproxy.Delay, MaxDelay: time.Millisecond}, "200 ", "200 0123456789", []string{"PUT", "GET"}},
		{faultproxy.Rule{Kind: faultproxy.AnswerBefore, Status: 503, Code: "SlowDown"}, slowDown, slowDown, nil},
		{faultproxy.Rule{Kind: faultproxy.AnswerAfter, Status: 503, Code: "SlowDown"}, slowDown, slowDown, []string{"PUT", "GET"}},
		{faultproxy.Rule{Kind: faultproxy.CutRequest}, "closed", "closed", []string{"PUT cut"}},
		{faultproxy.Rule{Kind: faultproxy.CutResponse}, "200 ", "200 01234 cut", []string{"PUT", "GET"}},
	} {
		t.Run(string(c.rule.Kind), func(t *testing.T) {
			b := newBackend(t)
			b.held["/b/k"] = "0123456789"
			c.rule.Probability = 1
			p := proxy(t, b.URL, 1, c.rule)
			got := []string{do(t, http.MethodPut, p.URL+"/b/k", "0123456789"), do(t, http.MethodGet, p.URL+"/b/k", "")}
			if diff := cmp.Diff([]string{c.put, c.get}, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
			for wait := time.Now().Add(5 * time.Second); len(b.log()) < len(c.asked) && time.Now().Before(wait); {
				time.Sleep(time.Millisecond)
			}
			b.Close() // waits for its handlers
			asked := b.log()
			slices.Sort(asked)
			slices.Sort(c.asked)
			if diff := cmp.Diff(c.asked, asked); diff != "" {
				t.Errorf("the server was asked (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(map[faultproxy.Kind]int{c.rule.Kind: 2}, p.Counts()); diff != "" {
				t.Errorf("counts (-want +got):\n%s", diff)
			}
			for host := range b.hosts {
				if "http://"+host != p.URL {
					t.Errorf("Host became %s", host)
				}
			}
			if want := fmt.Sprintf("seed 1: 2 requests, 2 %s", c.rule.Kind); p.String() != want {
				t.Errorf("it says %q", p)
			}
		})
	}
}

// Rules strike what they name, and nothing else.
func TestSelection(t *testing.T) {
	b := newBackend(t)
	all := faultproxy.Rule{Kind: faultproxy.AnswerBefore, Status: 500, Code: "InternalError", Probability: 1}
	for name, c := range map[string]struct {
		edit func(*faultproxy.Rule)
		want string // GET k, PUT k, list of k, GET a/k, PUT a/k if absent
	}{
		"all":           {func(*faultproxy.Rule) {}, "500 500 500 500 500"},
		"method":        {func(r *faultproxy.Rule) { r.Method = http.MethodPut }, "200 500 200 200 500"},
		"key":           {func(r *faultproxy.Rule) { r.Key = "k" }, "500 500 500 200 200"},
		"pattern":       {func(r *faultproxy.Rule) { r.Key = "a/*" }, "200 200 200 500 500"},
		"conditional":   {func(r *faultproxy.Rule) { r.When = faultproxy.Conditional }, "200 200 200 200 500"},
		"unconditional": {func(r *faultproxy.Rule) { r.When = faultproxy.Unconditional }, "500 500 500 500 200"},
	} {
		t.Run(name, func(t *testing.T) {
			rule := all
			c.edit(&rule)
			p := proxy(t, b.URL, 1, rule)
			var got []string
			for _, ask := range []struct{ method, path, condition string }{
				{http.MethodGet, "/b/k", ""}, {http.MethodPut, "/b/k", ""}, {http.MethodGet, "/b?list-type=2&prefix=k", ""},
				{http.MethodGet, "/b/a/k", ""}, {http.MethodPut, "/b/a/k", "*"},
			} {
				req, err := http.NewRequestWithContext(t.Context(), ask.method, p.URL+ask.path, nil)
				if err != nil {
					t.Fatal(err)
				}
				if ask.condition != "" {
					req.Header.Set("If-None-Match", ask.condition)
				}
				resp, err := client.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				if err := resp.Body.Close(); err != nil {
					t.Fatal(err)
				}
				got = append(got, fmt.Sprint(resp.StatusCode))
			}
			if diff := cmp.Diff(c.want, strings.Join(got, " ")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// A seed gives a plan: the same one again, by key, in whatever order and
// however many at once; another seed gives another. About as many are struck
// as the probability says.
func TestSeed(t *testing.T) {
	b := newBackend(t)
	rule := faultproxy.Rule{Kind: faultproxy.AnswerBefore, Status: 500, Code: "InternalError", Probability: 0.3}
	const keys, each = 20, 10
	plan := func(seed uint64, order []int) map[string]string {
		p := proxy(t, b.URL, seed, rule)
		var mu sync.Mutex
		got := map[string]string{}
		var group sync.WaitGroup
		for _, k := range order {
			group.Go(func() {
				for n := range each {
					answer, _, _ := strings.Cut(do(t, http.MethodGet, fmt.Sprintf("%s/b/%d", p.URL, k), ""), " ")
					mu.Lock()
					got[fmt.Sprintf("%d.%d", k, n)] = answer
					mu.Unlock()
				}
			})
		}
		group.Wait()
		if n := p.Counts()[rule.Kind]; p.Requests() != keys*each || n < keys*each*2/10 || n > keys*each*4/10 {
			t.Errorf("%v", p)
		}
		return got
	}
	up := make([]int, keys)
	for i := range up {
		up[i] = i
	}
	down := slices.Clone(up)
	slices.Reverse(down)
	first := plan(7, up)
	if diff := cmp.Diff(first, plan(7, down)); diff != "" {
		t.Errorf("one seed, two plans (-first +second):\n%s", diff)
	}
	if maps.Equal(first, plan(8, up)) {
		t.Error("two seeds, one plan")
	}
	if p := proxy(t, b.URL, 0); p.Seed == 0 {
		t.Error("no seed was drawn")
	}
}

func TestServerLost(t *testing.T) {
	b := newBackend(t)
	p := proxy(t, b.URL, 1)
	b.Close()
	if got := do(t, http.MethodGet, p.URL+"/b/k", ""); got != "closed" {
		t.Errorf("got %s", got)
	}
	if want := "seed 1: 1 requests, the server itself lost in 1"; p.String() != want {
		t.Errorf("it says %q", p)
	}
}

func TestBadRules(t *testing.T) {
	for name, r := range map[string]faultproxy.Rule{
		"no kind":        {Probability: 1},
		"never":          {Kind: faultproxy.LoseRequest},
		"beyond certain": {Kind: faultproxy.LoseRequest, Probability: 1.5},
		"no delay":       {Kind: faultproxy.Late, Probability: 1},
		"no status":      {Kind: faultproxy.AnswerAfter, Code: "SlowDown", Probability: 1},
		"no code":        {Kind: faultproxy.AnswerBefore, Status: 503, Probability: 1},
	} {
		if _, err := faultproxy.New("http://127.0.0.1:1", faultproxy.Options{Rules: []faultproxy.Rule{r}}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := faultproxy.New("http://a b", faultproxy.Options{}); err == nil {
		t.Error("no URL: no error")
	}
}
