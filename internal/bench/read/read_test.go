package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cardinalsin/internal/bench/harness"
)

// tiny is a scale at which every family has its least number of series.
const tiny = 50_000

// child plays the child for one request.
func child(t *testing.T, r request) answer {
	t.Helper()
	r.Scale = tiny
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := serve(t.Context(), bytes.NewReader(text), &out); err != nil {
		t.Fatalf("%s of %s: %v", r.Side, r.Dataset, err)
	}
	var a answer
	if err := json.Unmarshal(out.Bytes(), &a); err != nil {
		t.Fatal(err)
	}
	for i, m := range a.Queries {
		if m.Error != "" {
			t.Fatalf("%s: %s: %s", r.Side, r.Queries[i].Name, m.Error)
		}
		if m.Series == 0 && r.Side != oursHTTP {
			t.Errorf("%s: %s finds nothing", r.Side, r.Queries[i].Name)
		}
		if m.Runs == 0 || m.Median <= 0 || m.First <= 0 {
			t.Errorf("%s: %s: no times: %+v", r.Side, r.Queries[i].Name, m)
		}
	}
	return a
}

// TestSidesAgree asks every question of every side but VictoriaMetrics, on data
// loaded as the benchmark does.
func TestSidesAgree(t *testing.T) {
	b := &bench{scale: tiny}
	dir := t.TempDir()
	at := func(dataset, side string) string { return filepath.Join(dir, dataset, side) }
	load := func(d dataset, side string) {
		child(t, request{Side: side, Load: true, Dataset: d.name, Dir: at(d.name, side)})
	}
	pair := func(t *testing.T, d dataset, queries []query, a, inA, b, inB string) {
		t.Helper()
		one := child(t, request{Side: a, Dataset: d.name, Dir: at(d.name, inA), Queries: queries})
		two := child(t, request{Side: b, Dataset: d.name, Dir: at(d.name, inB), Queries: queries})
		for i, q := range queries {
			if err := agree(q, one.Queries[i].result, two.Queries[i].result); err != nil {
				t.Error(err)
			}
		}
	}
	for _, d := range []dataset{live(tiny), long(tiny)} {
		load(d, ours)
		load(d, prometheus)
	}
	load(cpu(tiny), ours)
	load(cpu(tiny), prometheus)

	t.Run("live", func(t *testing.T) { pair(t, live(tiny), b.liveQueries(), ours, ours, prometheus, prometheus) })
	t.Run("head", func(t *testing.T) { pair(t, headData(tiny), b.headQueries(), oursHead, oursHead, promHead, promHead) })
	labels := append(labelQueries(), b.monthOfOne())
	t.Run("labels", func(t *testing.T) { pair(t, long(tiny), labels, ours, ours, prometheus, prometheus) })
	t.Run("tsbs promql", func(t *testing.T) { pair(t, cpu(tiny), b.tsbs(), ours, ours, prometheus, prometheus) })
	t.Run("tsbs sql", func(t *testing.T) { pair(t, cpu(tiny), b.tsbs(), oursSQL, ours, plainSQL, ours) })
	t.Run("http", func(t *testing.T) {
		a := child(t, request{Side: oursHTTP, Dataset: "live", Dir: at("live", ours), Queries: b.liveQueries()})
		for i, m := range a.Queries {
			if m.Points < 100 {
				t.Errorf("%s answers with %d bytes", b.liveQueries()[i].Name, m.Points)
			}
		}
	})
	t.Run("cold", func(t *testing.T) {
		a := child(t, request{Side: oursCold, Dataset: "long", Dir: at("long", ours), Queries: []query{b.monthOfOne()}})
		m := a.Queries[0]
		if m.Points != longDays*24 {
			t.Errorf("%d points of one series over %d days", m.Points, longDays)
		}
		if m.Requests == 0 || m.Bytes == 0 || m.first() < requestDelay {
			t.Errorf("a cold question took %v, %d requests, %d bytes", m.first(), m.Requests, m.Bytes)
		}
	})
}

// TestDataAreTheSame: each side loads what the generator makes, so it must make
// the same every time, each series once.
func TestDataAreTheSame(t *testing.T) {
	for _, d := range []dataset{live(tiny), headData(tiny), long(tiny), cpu(tiny)} {
		t.Run(d.name, func(t *testing.T) {
			made := func() map[string][]float64 {
				var mu sync.Mutex
				all := map[string][]float64{}
				err := d.each(t.Context(), func(_ context.Context, p *part) error {
					mu.Lock()
					defer mu.Unlock()
					for i, l := range p.labels {
						if _, twice := all[l.String()]; twice {
							t.Errorf("%s comes twice", l)
						}
						all[l.String()] = p.values[i]
					}
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
				return all
			}
			one := made()
			if diff := cmp.Diff(one, made()); diff != "" {
				t.Error(diff)
			}
			if len(one) != d.series() {
				t.Errorf("%d series in place of %d", len(one), d.series())
			}
		})
	}
}

func TestFullScale(t *testing.T) {
	for name, got := range map[string][2]int{
		"live":       {live(1).series(), 1_000_000},
		"head":       {headData(1).series(), 1_000_000},
		"long":       {long(1).series(), 1_020_000},
		"tsbs hosts": {cpu(1).series(), 4000 * 10},
	} {
		if got[0] != got[1] {
			t.Errorf("%s: %d series in place of %d", name, got[0], got[1])
		}
	}
}

func TestAgree(t *testing.T) {
	base := result{Series: 3, Points: 9, Sum: 1e6}
	for name, c := range map[string]struct {
		other result
		want  error
	}{
		"the same":        {base, nil},
		"last digits":     {result{3, 9, 1e6 + 1e-6}, nil},
		"another sum":     {result{3, 9, 1e6 + 1}, errDisagree},
		"another series":  {result{2, 9, 1e6}, errDisagree},
		"a point is lost": {result{3, 8, 1e6}, errDisagree},
	} {
		t.Run(name, func(t *testing.T) {
			if err := agree(query{}, c.other, base); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

// TestCompare: a side that fails is told, and is no end of the run.
func TestCompare(t *testing.T) {
	var out strings.Builder
	b := &bench{Report: harness.Report{Out: &out}}
	if ratio, ok := b.compare("q", measured{Median: 1}, measured{Median: 3}); ratio != 3 || !ok {
		t.Errorf("ratio %v, %v", ratio, ok)
	}
	if _, ok := b.compare("failing", measured{Error: "too many samples"}, measured{Median: 3}); ok {
		t.Error("a failed question counts as answered")
	}
	if ratio, ok := b.compare("alone", measured{Median: 1}, measured{Error: "no such thing"}); ratio != 0 || !ok {
		t.Errorf("without a peer: ratio %v, %v", ratio, ok)
	}
	want := "bench q ours=1000ms peer=3000ms ratio=3.00\n" +
		"  failing: ours failed: too many samples\nbench failing ours=failed peer=3000ms ratio=-\n" +
		"  alone: the peer failed: no such thing\nbench alone ours=1000ms peer=failed ratio=-\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
}

// TestDataAreKept: data are made once, and anew when a load did not end.
func TestDataAreKept(t *testing.T) {
	b := &bench{scale: tiny, flags: flags{dir: t.TempDir()}}
	dir, err := b.folder("live", ours)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+".done", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := b.data(t.Context(), live(tiny), ours); err != nil || got != dir {
		t.Errorf("got %q, %v", got, err)
	}
	_, err = (&request{Side: "nobody", Load: true}).run(t.Context())
	if !errors.Is(err, errSide) {
		t.Errorf("an unknown side: %v", err)
	}
}
