package harness

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestReport(t *testing.T) {
	var out strings.Builder
	r := Report{Out: &out, Only: "one,three"}
	var ran []string
	step := func(name string, met bool) Step {
		return Step{name, func(context.Context) error {
			ran = append(ran, name)
			r.Line(name, "1ms", "2ms", 2)
			r.Line(name+"-alone", "1ms", "-", 0)
			r.Target("5 % of "+name, met)
			return nil
		}}
	}
	if err := r.Run(t.Context(), step("one", true), step("two", true), step("three", false)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"one", "three"}, ran); diff != "" {
		t.Error(diff)
	}
	want := `bench one ours=1ms peer=2ms ratio=2.00
bench one-alone ours=1ms peer=- ratio=-
  target 5 % of one: met
  (one took 0 s)
bench three ours=1ms peer=2ms ratio=2.00
bench three-alone ours=1ms peer=- ratio=-
  target 5 % of three: MISSED
  (three took 0 s)
targets: 1 met, 1 missed
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
	failure := errors.New("failure")
	fails := func(context.Context) error { return failure }
	err := r.Run(t.Context(), Step{"one", fails}, Step{"three", func(context.Context) error { t.Error("went on after a failure"); return nil }})
	if !errors.Is(err, failure) {
		t.Errorf("got %v", err)
	}
}

func TestMillis(t *testing.T) {
	for d, want := range map[time.Duration]string{
		12345 * time.Nanosecond: "0.012ms", 1500 * time.Microsecond: "1.5ms", 2345 * time.Millisecond: "2345ms", 0: "0.000ms",
	} {
		if got := Millis(d); got != want {
			t.Errorf("%v: got %s, want %s", d, got, want)
		}
	}
}

func TestUsageOf(t *testing.T) {
	before, err := UsageOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	big := make([]byte, 64<<20)
	for i := range big {
		big[i] = byte(i)
	}
	for begin := time.Now(); time.Since(begin) < 30*time.Millisecond; {
		big[0]++
	}
	after, err := UsageOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if after.CPU <= before.CPU || after.Peak < after.Resident || after.Peak < int64(len(big)) || before.Resident == 0 {
		t.Errorf("before %+v, after %+v and %d bytes", before, after, len(big))
	}
	if _, err := UsageOf(-1); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no such process: %v", err)
	}
}

func TestGet(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/page" {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write([]byte("text"))
	}))
	defer s.Close()
	if got, err := Get(t.Context(), s.URL+"/page"); got != "text" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := Get(t.Context(), s.URL+"/other"); !errors.Is(err, errStatus) {
		t.Errorf("a page that is not there: %v", err)
	}
}

// TestMain is also the server and the child that the tests start.
func TestMain(m *testing.M) {
	switch {
	case len(os.Args) == 2 && strings.HasPrefix(os.Args[1], "-listen="):
		_ = http.ListenAndServe(strings.TrimPrefix(os.Args[1], "-listen="), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { //nolint:gosec // a test
			_, _ = w.Write([]byte("ready"))
		}))
		os.Exit(1)
	case len(os.Args) == 2 && os.Args[1] == "double":
		text := make([]byte, 100)
		n, _ := os.Stdin.Read(text)
		_, _ = os.Stdout.WriteString(`"` + strings.Repeat(strings.Trim(string(text[:n]), "\"\n"), 2) + `"`)
		os.Exit(0)
	case len(os.Args) == 2 && os.Args[1] == "fail":
		os.Exit(3)
	}
	os.Exit(m.Run())
}

func TestServer(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s, err := StartServer(t.Context(), "self", "/", self, "-listen=")
	if err != nil {
		t.Fatal(err)
	}
	if u, err := s.Usage(); err != nil || u.Peak == 0 {
		t.Errorf("usage %+v, %v", u, err)
	}
	if err := s.Stop(); err == nil { // it has no handler of SIGTERM
		t.Error("a server that a signal ended has stopped in good order")
	}
	if err := s.Stop(); err != nil {
		t.Errorf("stopped twice: %v", err)
	}
}

func TestAsk(t *testing.T) {
	var got string
	if err := Ask(t.Context(), "double", "ab", &got); err != nil || got != "abab" {
		t.Errorf("got %q, %v", got, err)
	}
	if err := Ask(t.Context(), "fail", "ab", &got); err == nil {
		t.Error("a child that failed has answered")
	}
}
