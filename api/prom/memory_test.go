package prom

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/prompb"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"

	"cardinalsin/series"
)

// memoryTable has 200 series of floats and 20 of histograms, half of each in
// files and half in the head.
func memoryTable(t *testing.T) *table {
	tb := newTable(t)
	for part := range 2 {
		var batch series.Batch
		for i := range 200 {
			batch = append(batch, floats(time.Duration(part)*time.Minute, lbl("m", "i", fmt.Sprint(i)), 1, 2, 3, 4))
		}
		for i := range 20 {
			s := floats(time.Duration(part)*time.Minute, lbl("h", "i", fmt.Sprint(i)), 1, 2, 3, 4)
			for k := range s.Samples {
				h := prompb.FromIntHistogram(0, tsdbutil.GenerateTestHistogram(int64(k)))
				s.Samples[k].Histogram = marshalHistogram(t, &h)
			}
			batch = append(batch, s)
		}
		tb.append(t, batch...)
		if part == 0 {
			tb.flush(t)
		}
	}
	return tb
}

// TestMemoryLimits: label sets, kept samples and what many iterators hold of a
// stream are counted for the query and for the process; above either limit the
// error is typed, others go on, and all is given back in the end.
func TestMemoryLimits(t *testing.T) {
	ctx := context.Background()
	tb := memoryTable(t)
	// drain iterates over all series, with iterators of their own or with one.
	drain := func(set storage.SeriesSet, own bool) error {
		var it chunkenc.Iterator
		var all []chunkenc.Iterator
		for set.Next() {
			if own {
				it = nil
			}
			it = set.At().Iterator(it)
			all = append(all, it)
			for it.Next() != chunkenc.ValNone {
			}
			if it.Err() != nil {
				return it.Err()
			}
		}
		_ = all
		return set.Err()
	}
	for _, tc := range []struct {
		name   string
		metric string
		sorted bool
		keep   int
		own    bool
		hints  *storage.SelectHints
		least  int64 // that it must hold
		most   int64
		spare  int64 // held on the way and not in the end
	}{
		{name: "kept", metric: "m", keep: 1 << 20, least: 200*aSeries + 1600*aFloat, most: 400 << 10},
		{name: "sorted", metric: "m", sorted: true, least: 200*aSeries + 1600*aFloat, most: 400 << 10},
		{name: "sorted histograms", metric: "h", sorted: true, least: 20*aSeries + 160*(aHistogram+aSample), most: 400 << 10},
		{name: "streamed", metric: "m", keep: 100, least: 200 * aSeries, most: 200*aSeries + 200*50, spare: 8 * aSample},
		{name: "streamed, many iterators", metric: "m", own: true, least: 200*aSeries + 1600*aFloat, most: 400 << 10},
		{name: "label sets", metric: "m", hints: &storage.SelectHints{Start: at(0), End: at(time.Hour), Func: "series"}, least: 200 * aSeries, most: 200*aSeries + 200*50},
	} {
		t.Run(tc.name, func(t *testing.T) {
			memory := NewMemory(1 << 30)
			run := func(queryBytes int64, each func(*querier)) error {
				t.Helper()
				q := NewQueryable(tb.reader)
				q.KeepSamples, q.QueryBytes, q.Memory = tc.keep, queryBytes, memory
				one := q.querier(at(0), at(time.Hour))
				err := drain(one.Select(ctx, tc.sorted, tc.hints, matchers(t, tc.metric)...), tc.own)
				if each != nil {
					each(one)
				}
				if e := one.Close(); e != nil {
					t.Fatal(e)
				}
				return err
			}
			var held int64
			err := run(1<<30, func(q *querier) {
				if held = memory.Used(); held != q.own.bytes {
					t.Errorf("the process holds %d bytes, its only query %d", held, q.own.bytes)
				}
			})
			if err != nil || held < tc.least || held > tc.most {
				t.Fatalf("%d bytes are held, want %d to %d; %v", held, tc.least, tc.most, err)
			}
			if err := run(held+tc.spare, nil); err != nil {
				t.Errorf("just enough for the query: %v", err)
			}
			if err := run(held-1, nil); !errors.Is(err, ErrMemory) {
				t.Errorf("a byte too few for the query: %v", err)
			}
			if memory.Used() != 0 {
				t.Errorf("%d bytes are held after all", memory.Used())
			}
			// Another query, which goes on, takes all but a byte of the rest.
			memory = NewMemory(2*held - 1)
			err = run(0, func(*querier) {
				if err := run(0, nil); !errors.Is(err, ErrMemory) {
					t.Errorf("a byte too few for two queries: %v", err)
				}
				if memory.Used() != held {
					t.Errorf("%d bytes are held beside a query that failed, want %d", memory.Used(), held)
				}
			})
			if err != nil {
				t.Errorf("the query that was first: %v", err)
			}
			if err := run(0, nil); err != nil || memory.Used() != 0 {
				t.Errorf("once there is room again: %v; %d bytes are held", err, memory.Used())
			}
		})
	}
}

// TestMemoryAnswers: what is above a limit answers 422 with the reason, and the
// server lives on.
func TestMemoryAnswers(t *testing.T) {
	tb := memoryTable(t)
	for name, o := range map[string]Options{
		"query":   {QueryBytes: 60_000},
		"process": {Memory: NewMemory(60_000)},
	} {
		t.Run(name, func(t *testing.T) {
			o.Reader = tb.reader
			handler := Handler(o)
			ask := func(query string, want int) string {
				t.Helper()
				w := httptest.NewRecorder()
				handler.ServeHTTP(w, httptest.NewRequest("GET", "/api/v1/query?time="+fmt.Sprint(at(2*time.Minute)/1000)+"&query="+url.QueryEscape(query), nil))
				if w.Code != want {
					t.Errorf("%s: %d, want %d: %s", query, w.Code, want, w.Body)
				}
				return w.Body.String()
			}
			if body := ask("m", http.StatusUnprocessableEntity); !strings.Contains(body, "60000 bytes") {
				t.Errorf("the answer does not tell the limit: %s", body)
			}
			ask(`m{i="7"}`, http.StatusOK)
			ask(`h{i="7"}`, http.StatusOK)
			if o.Memory != nil && o.Memory.Used() != 0 {
				t.Errorf("%d bytes are held after all", o.Memory.Used())
			}
		})
	}
}

// TestLabelTextsAreHeld: label names and values count, too.
func TestLabelTextsAreHeld(t *testing.T) {
	ctx := context.Background()
	q := NewQueryable(memoryTable(t).reader)
	for _, c := range []struct {
		bytes int64
		fits  bool
	}{{4 << 10, true}, {1 << 10, false}} {
		memory := NewMemory(1 << 20)
		q.QueryBytes, q.Memory = c.bytes, memory
		querier, err := q.Querier(at(0), at(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		values, _, err := querier.LabelValues(ctx, "i", nil)
		if c.fits && (err != nil || len(values) != 200 || memory.Used() < 200*aText) || !c.fits && !errors.Is(err, ErrMemory) {
			t.Errorf("within %d bytes: %d values, %d bytes held, %v", c.bytes, len(values), memory.Used(), err)
		}
		if err := querier.Close(); err != nil || memory.Used() != 0 {
			t.Errorf("%d bytes are held in the end, %v", memory.Used(), err)
		}
	}
}

// writeWatcher notes what is held when the answer begins to be written.
type writeWatcher struct {
	*httptest.ResponseRecorder
	memory *Memory
	held   int64
}

func (w *writeWatcher) Write(b []byte) (int, error) {
	w.held = max(w.held, w.memory.Used())
	return w.ResponseRecorder.Write(b)
}

// TestPointsAreHeld: the points that the engine makes count, one a step in which
// a series has a sample, until the answer is written; so do the samples that a
// remote read answers with.
func TestPointsAreHeld(t *testing.T) {
	tb := memoryTable(t)
	const (
		lasts = 60 + 3*15 // s, from the first sample of a series to its last one
		reach = 300       // s
	)
	ranged := func(query string, step int) *http.Request {
		return httptest.NewRequest("GET", fmt.Sprintf("/api/v1/query_range?start=%d&end=%d&step=%d&query=%s", at(0)/1000, at(time.Hour)/1000, step, url.QueryEscape(query)), nil)
	}
	instant := func(query string) *http.Request {
		return httptest.NewRequest("GET", fmt.Sprintf("/api/v1/query?time=%d&query=%s", at(2*time.Minute)/1000, url.QueryEscape(query)), nil)
	}
	steps := func(n int64) int64 { return 200 * n * aFloat }
	for _, tc := range []struct {
		name        string
		ask         func() *http.Request
		least, most int64 // more than those of label sets and samples
	}{
		{"instant", func() *http.Request { return instant("sum(m)") }, steps(1), steps(1)},
		{"range", func() *http.Request { return ranged("sum(m)", 1) }, steps(lasts + reach), steps(lasts + reach + 1)},
		{"wide steps", func() *http.Request { return ranged("sum(m)", 60) }, steps((lasts + reach) / 60), steps((lasts+reach)/60 + 1)},
		{"all steps", func() *http.Request { return ranged("sum(last_over_time(m[2h]))", 10) }, steps(361), steps(361 + 720)},
		{"two selectors", func() *http.Request { return ranged("sum(m) + sum(m)", 60) }, 2 * steps((lasts+reach)/60), 2*steps((lasts+reach)/60+1) + 60_000},
		{"subquery", func() *http.Request { return instant("sum(max_over_time(m[1h:1s]))") }, steps(120), steps(lasts + reach + 1)},
		{"histograms", func() *http.Request { return ranged("count(h)", 60) }, 20 * 6 * aHistogram, 20 * 8 * (aHistogram + 500)},
		{"remote read", func() *http.Request { return readRequest(t, "/api/v1/read", prompb.ReadRequest_SAMPLES) }, 200 * 5 * aFloat, 200 * 5 * aFloat},
		{"remote read of chunks", func() *http.Request {
			return readRequest(t, "/api/v1/read", prompb.ReadRequest_STREAMED_XOR_CHUNKS)
		}, 0, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			run := func(o Options) (*writeWatcher, int) {
				o.Reader = tb.reader
				w := &writeWatcher{ResponseRecorder: httptest.NewRecorder(), memory: o.Memory}
				Handler(o).ServeHTTP(w, tc.ask())
				if o.Memory.Used() != 0 {
					t.Errorf("%d bytes are held after all", o.Memory.Used())
				}
				return w, w.Code
			}
			w, code := run(Options{Memory: NewMemory(1 << 30)})
			if code != http.StatusOK {
				t.Fatalf("%d: %s", code, w.Body)
			}
			beside := storedBytes(t, tb, tc.name)
			if w.held < beside+tc.least || w.held > beside+tc.most {
				t.Errorf("%d bytes are held while the answer is written, %d of them for label sets and samples; want %d to %d of others", w.held, beside, tc.least, tc.most)
			}
			for name, o := range map[string]Options{
				"query":   {Memory: NewMemory(1 << 30), QueryBytes: w.held - 1},
				"process": {Memory: NewMemory(w.held - 1)},
			} {
				if w, code := run(o); code != http.StatusUnprocessableEntity || !strings.Contains(w.Body.String(), ErrMemory.Error()) {
					t.Errorf("a byte too few for the %s: %d: %.100s", name, code, w.Body)
				}
			}
		})
	}
}

// storedBytes is what the label sets and samples of a case above take.
func storedBytes(t *testing.T, tb *table, name string) int64 {
	t.Helper()
	metric := "m"
	if name == "histograms" {
		metric = "h"
	}
	until := time.Hour
	if strings.HasPrefix(name, "remote read") {
		until = time.Minute
	}
	q := NewQueryable(tb.reader).querier(at(0), at(until))
	set := q.Select(context.Background(), false, nil, matchers(t, metric)...)
	if set.Err() != nil {
		t.Fatal(set.Err())
	}
	held := q.own.bytes
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	if name == "two selectors" {
		held *= 2
	}
	return held
}
