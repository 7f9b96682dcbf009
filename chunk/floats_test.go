package chunk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand"
	"slices"
	"sync"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"pgregory.net/rapid"

	"cardinalsin/series"
)

// plain takes out of series what floats cannot be.
func plain(in []Series) []Series {
	var out []Series
	for _, s := range in {
		var kept []series.Sample
		for _, p := range s.Samples {
			if p.Histogram == nil && (len(kept) == 0 || kept[len(kept)-1].Time != p.Time) {
				kept = append(kept, series.Sample{Time: p.Time, Value: p.Value})
			}
		}
		if s.Samples = kept; len(kept) > 0 {
			out = append(out, s)
		}
	}
	return out
}

// asSamples gives floats the general form; it fails where there are samples.
func asSamples(t interface{ Fatalf(string, ...any) }, in []Series) []Series {
	out := slices.Clone(in)
	for i := range out {
		if len(out[i].Samples) > 0 || len(out[i].Floats.Times) == 0 {
			t.Fatalf("%s has %d samples and %d floats", out[i].Labels, len(out[i].Samples), len(out[i].Floats.Times))
		}
		out[i].Samples, out[i].Floats.Times, out[i].Floats.Values = out[i].Floats.AppendTo(nil), nil, nil
	}
	return out
}

// countingSource counts what is read.
type countingSource struct {
	Source
	mu    sync.Mutex
	reads int
	bytes int64
}

func (c *countingSource) ReadRange(ctx context.Context, offset, length int64) ([]byte, error) {
	c.mu.Lock()
	c.reads++
	c.bytes += length
	c.mu.Unlock()
	return c.Source.ReadRange(ctx, offset, length)
}

// runsOf returns the runs of the series that the selector picks.
func runsOf(t interface{ Fatalf(string, ...any) }, f *File, sel series.Selector) (out []Run) {
	for r, err := range f.Runs(context.Background()) {
		if err != nil {
			t.Fatalf("runs: %v", err)
		}
		if sel.Matches(r.Labels) {
			out = append(out, r)
		}
	}
	return out
}

// TestFloatsEqualSamples: however pages are kept, floats are what the samples
// are, found by selector or by runs.
func TestFloatsEqualSamples(t *testing.T) {
	ctx := context.Background()
	rapid.Check(t, func(rt *rapid.T) {
		in := plain(genSeries(rt))
		if len(in) == 0 {
			return
		}
		data := encode(t, genOptions(rt), in).Data
		whole := reopen(t, data)
		whole.whole = nil // so that it is read as a large file is
		pages := NewPages(rapid.SampledFrom([]int64{0, 600, 3000, 1 << 20}).Draw(rt, "limit"))
		f := whole.AsFloats(rapid.SampledFrom([]*Pages{nil, pages}).Draw(rt, "pages"))
		for range 4 {
			sel := series.Selector{Range: series.AllTime}
			if rapid.Bool().Draw(rt, "time") {
				times := []series.Timestamp{}
				for _, s := range in {
					for _, p := range s.Samples {
						times = append(times, p.Time)
					}
				}
				sel.Range.Min = rapid.SampledFrom(times).Draw(rt, "min") + series.Timestamp(rapid.IntRange(-1, 1).Draw(rt, "before"))
				sel.Range.Max = rapid.SampledFrom(times).Draw(rt, "max") + series.Timestamp(rapid.IntRange(-1, 1).Draw(rt, "after"))
			}
			if rapid.Bool().Draw(rt, "matcher") {
				sel.Matchers = []*labels.Matcher{genMatcher(rt, in)}
			}
			want := filter(in, sel)
			got, err := collect(f.Select(ctx, sel, nil))
			if err != nil {
				rt.Fatal(err)
			}
			if d := diff(want, asSamples(rt, got)); d != "" {
				rt.Fatalf("%v: -want +got:\n%s", sel, d)
			}
			if got, err = collect(f.SelectRuns(ctx, sel.Range, runsOf(rt, whole, sel))); err != nil {
				rt.Fatal(err)
			}
			if d := diff(want, asSamples(rt, got)); d != "" {
				rt.Fatalf("runs of %v: -want +got:\n%s", sel, d)
			}
			if pages.Bytes() > pages.Limit() {
				rt.Fatalf("%d bytes are kept, limit %d", pages.Bytes(), pages.Limit())
			}
		}
	})
}

// TestFloatsOfOtherSamples: what has more than a time and a value stays whole.
func TestFloatsOfOtherSamples(t *testing.T) {
	for name, p := range map[string]series.Sample{
		"nanos": {Time: 1, Nanos: 3, Value: 1}, "start": {Time: 1, Start: 5, Value: 1}, "histogram": {Time: 1, Histogram: []byte("h")},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := mk("a"), mk("b")
			a.Samples, b.Samples = []series.Sample{p}, []series.Sample{{Time: 2, Value: 2}}
			in := sorted([]Series{a, b})
			got, err := collect(reopen(t, encode(t, Options{}, in).Data).AsFloats(NewPages(1<<20)).Select(context.Background(), everything, nil))
			if err != nil {
				t.Fatal(err)
			}
			if d := diff(in, got); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

// TestPagesSaveReads: pages that are kept are not read again, by any opening of
// the file, and those that are not are.
func TestPagesSaveReads(t *testing.T) {
	ctx := context.Background()
	in := tsbs(40, 100)
	data := encode(t, Options{RowGroupRows: 4000, PageRows: 500}, in).Data
	pages := NewPages(1 << 20)
	open := func() (*File, *countingSource) {
		src := &countingSource{Source: BytesSource("test", data)}
		f, err := Open(ctx, src, int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		src.reads, src.bytes = 0, 0
		return f.AsFloats(pages), src
	}
	f, src := open()
	runs := runsOf(t, f, everything)
	src.reads = 0
	one := func(i int) {
		t.Helper()
		got, err := collect(f.SelectRuns(ctx, series.AllTime, runs[i:i+1]))
		if err != nil {
			t.Fatal(err)
		}
		if d := diff(in[i:i+1], asSamples(t, got)); d != "" {
			t.Fatal(d)
		}
	}
	one(7)
	if src.reads == 0 {
		t.Fatal("the first time reads nothing")
	}
	f, src = open()
	one(7)
	one(8) // in the same pages
	if src.reads != 0 {
		t.Errorf("%d reads of what is kept", src.reads)
	}
	one(300) // in another row group
	if src.reads == 0 {
		t.Error("no read of what is not kept")
	}
	if got, err := collect(f.SelectRuns(ctx, series.AllTime, runs)); err != nil || diff(in, asSamples(t, got)) != "" {
		t.Fatalf("all of them: %v", err)
	}
	f, src = open()
	if got, err := collect(f.SelectRuns(ctx, series.AllTime, runs)); err != nil || diff(in, asSamples(t, got)) != "" {
		t.Fatalf("all of them again: %v", err)
	}
	if src.reads != 0 {
		t.Errorf("%d reads of what is kept", src.reads)
	}
}

// TestPagesAtOnce: many read through the same small place.
func TestPagesAtOnce(t *testing.T) {
	ctx := context.Background()
	in := tsbs(20, 60)
	data := encode(t, Options{RowGroupRows: 1000, PageRows: 200}, in).Data
	pages := NewPages(40 << 10)
	var all sync.WaitGroup
	errs := make(chan error, 8)
	for i := range cap(errs) {
		all.Go(func() {
			f := reopen(t, data).AsFloats(pages)
			f.whole = nil
			for range 5 {
				got, err := collect(f.Select(ctx, everything, nil))
				if err == nil && diff(in, asSamples(t, got)) != "" {
					err = fmt.Errorf("reader %d got something else", i)
				}
				if err != nil {
					errs <- err
					return
				}
			}
		})
	}
	all.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	if b := pages.Bytes(); b > pages.Limit() || b == 0 {
		t.Errorf("%d bytes are kept, limit %d", b, pages.Limit())
	}
}

// TestFloatsOfDamage: the decoders of floats, too, stand on their own feet.
func TestFloatsOfDamage(t *testing.T) {
	in := plain(fixtureRows())
	data := encode(t, Options{RowGroupRows: 12, PageRows: 5}, in).Data
	r := rand.New(rand.NewSource(2))
	rounds := 3000
	if raceEnabled {
		rounds = 200
	}
	failed := 0
	for range rounds {
		bad := bytes.Clone(data)
		for range 1 + r.Intn(3) {
			bad[r.Intn(len(bad))] ^= 1 << r.Intn(8)
		}
		bad = reseal(bad)
		f, err := Open(context.Background(), BytesSource("test", bad), int64(len(bad)))
		if err == nil {
			pages := NewPages(1 << 20)
			for range 2 {
				if _, err = collect(f.AsFloats(pages).Select(context.Background(), everything, nil)); err != nil {
					break
				}
			}
		}
		if err != nil {
			failed++
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnsupported) {
				t.Fatalf("untyped error: %v", err)
			}
		}
	}
	if failed < rounds/10 {
		t.Errorf("only %d of %d damaged files were refused", failed, rounds)
	}
}
