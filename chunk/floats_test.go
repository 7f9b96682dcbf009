package chunk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand"
	"slices"
	"strings"
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
// the file, and those that are not are; another file has pages of its own.
func TestPagesSaveReads(t *testing.T) {
	ctx := context.Background()
	opts := Options{RowGroupRows: 4000, PageRows: 500}
	in, other := tsbs(40, 100), tsbs(40, 100)
	for i := range other {
		for k := range other[i].Samples {
			other[i].Samples[k].Time++
			other[i].Samples[k].Value++
		}
	}
	files := map[string][]byte{"a": encode(t, opts, in).Data, "b": encode(t, opts, other).Data}
	pages := NewPages(2 << 20)
	open := func(name string) (*File, *countingSource) {
		src := &countingSource{Source: BytesSource(name, files[name])}
		f, err := Open(ctx, src, int64(len(files[name])))
		if err != nil {
			t.Fatal(err)
		}
		src.reads, src.bytes = 0, 0
		return f.AsFloats(pages), src
	}
	f, src := open("a")
	runs := runsOf(t, f, everything)
	src.reads = 0
	want := func(rows []Series, r series.TimeRange, runs []Run) {
		t.Helper()
		got, err := collect(f.SelectRuns(ctx, r, runs))
		if err != nil {
			t.Fatal(err)
		}
		for i := range got {
			// What is kept is not what they who append to a series write to.
			_, _ = append(got[i].Floats.Times, 1), append(got[i].Floats.Values, -1)
		}
		if d := diff(filter(rows, series.Selector{Range: r}), asSamples(t, got)); d != "" {
			t.Fatal(d)
		}
	}
	one := func(i int) {
		t.Helper()
		want(in[i:i+1], series.AllTime, runs[i:i+1])
	}
	one(7)
	if src.reads == 0 {
		t.Fatal("the first time reads nothing")
	}
	f, src = open("a")
	one(7)
	one(8) // in the same pages
	begin := in[7].Samples[0].Time
	want(in[7:9], series.TimeRange{Min: begin, Max: begin + 100_000_000}, runs[7:9])
	one(7)
	one(8)
	if src.reads != 0 {
		t.Errorf("%d reads of what is kept", src.reads)
	}
	one(300) // in another row group
	if src.reads == 0 {
		t.Error("no read of what is not kept")
	}
	want(in, series.AllTime, runs)
	f, src = open("a")
	want(in, series.AllTime, runs)
	if src.reads != 0 {
		t.Errorf("%d reads of what is kept", src.reads)
	}
	var first [2]*series.Timestamp
	for i := range first {
		got, err := collect(f.SelectRuns(ctx, series.AllTime, runs[5:6])) // a page begins with it
		if err != nil {
			t.Fatal(err)
		}
		first[i] = &got[0].Floats.Times[0]
	}
	if first[0] != first[1] {
		t.Error("a part of a page is a copy")
	}
	rows := int64(0)
	for _, s := range in {
		rows += int64(len(s.Samples))
	}
	if b, few := pages.Bytes(), 2*wordBytes*rows; b < few || b > few+few/10 {
		t.Errorf("%d bytes are counted for %d samples", b, rows)
	}
	f, src = open("b")
	if want(other, series.AllTime, runs); src.reads == 0 {
		t.Error("the other file was not read")
	}
	f, _ = open("a")
	want(in, series.AllTime, runs)
}

// TestPagesKeep: what was found stays as it is when more is kept, what is kept
// twice counts once, and the bound is the one that was asked for.
func TestPagesKeep(t *testing.T) {
	pages, key, firsts := NewPages(1500), groupKey{"f", 1}, []int{0, 2, 4}
	a, b := []float64{1, 2}, []float64{3, 4}
	keep(pages, key, valuesOf, firsts, [][]float64{a, nil})
	early, bytes := find(pages, key, valuesOf), pages.Bytes()
	keep(pages, key, valuesOf, firsts, [][]float64{{1, 2}, b})
	if early.pages[1] != nil {
		t.Error("what was found has changed")
	}
	if got := pages.Bytes() - bytes; got != 2*wordBytes {
		t.Errorf("%d bytes more for a page of two values", got)
	}
	late := find(pages, key, valuesOf)
	if &late.pages[0][0] != &a[0] || &late.pages[1][0] != &b[0] || len(find(pages, key, timesOf).pages) != 0 {
		t.Errorf("found %v", late)
	}
	for g := range 5 {
		keep(pages, groupKey{"f", g}, valuesOf, firsts, [][]float64{a, b})
		if b := pages.Bytes(); b > 1500 || b == 0 || pages.Limit() != 1500 {
			t.Errorf("%d bytes of %d are kept", b, pages.Limit())
		}
	}
}

// TestPagesAtOnce: many read through the same place, whether all of a file goes
// in, or not, and come upon pages in any order (run with -race).
func TestPagesAtOnce(t *testing.T) {
	ctx := context.Background()
	in := tsbs(20, 60)
	data := encode(t, Options{RowGroupRows: 900, PageRows: 200}, in).Data // no series lies in two row groups
	for _, limit := range []int64{40 << 10, 1 << 20} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			whole := reopen(t, data)
			whole.whole = nil
			runs := runsOf(t, whole, everything)
			pages := NewPages(limit)
			var all sync.WaitGroup
			errs := make(chan error, 8)
			for i := range cap(errs) {
				all.Go(func() {
					r := rand.New(rand.NewSource(int64(i)))
					f := whole.AsFloats(pages)
					for range 100 {
						k := r.Intn(len(in))
						got, err := collect(f.SelectRuns(ctx, series.AllTime, runs[k:k+1]))
						if err == nil && diff(in[k:k+1], asSamples(t, got)) != "" {
							err = fmt.Errorf("reader %d got something else of series %d", i, k)
						}
						if err != nil {
							errs <- err
							return
						}
					}
					got, err := collect(f.Select(ctx, everything, nil))
					if err == nil && diff(in, asSamples(t, got)) != "" {
						err = fmt.Errorf("reader %d got something else", i)
					}
					if err != nil {
						errs <- err
					}
				})
			}
			all.Wait()
			close(errs)
			for err := range errs {
				t.Error(err)
			}
			// Whoever was second to decode a page adds nothing to what is counted.
			most := min(limit, 2*wordBytes*int64(len(in)*len(in[0].Samples))*11/10)
			if b := pages.Bytes(); b > most || b < 30<<10 {
				t.Errorf("%d bytes are kept, at most %d are right", b, most)
			}
		})
	}
}

// TestFloatsOfDamage: the decoders of floats, too, stand on their own feet. They
// refuse what the decoders of samples refuse, also when some pages of the file
// are kept by then, and else give the same.
func TestFloatsOfDamage(t *testing.T) {
	few := plain(fixtureRows())
	for i := range few {
		for k := range few[i].Samples {
			few[i].Samples[k].Value = float64((i + k) % 3)
		}
	}
	for name, in := range map[string][]Series{"values": plain(fixtureRows()), "few values": few} {
		for _, split := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, split %v", name, split), func(t *testing.T) {
				data := encode(t, Options{RowGroupRows: 12, PageRows: 5, SplitValues: split}, in).Data
				tried, refused := 0, 0
				try := func(bad []byte) {
					tried++
					if !sameOfDamage(t, bad) {
						refused++
					}
				}
				r := rand.New(rand.NewSource(2))
				rounds, step := 300, 3
				if raceEnabled {
					rounds, step = 50, 37
				}
				for range rounds {
					bad := bytes.Clone(data)
					for range 1 + r.Intn(3) {
						bad[r.Intn(len(bad))] ^= 1 << r.Intn(8)
					}
					try(reseal(bad))
				}
				// All bits of the columns that only these decoders read.
				f := reopen(t, data)
				for g := range f.groups {
					for _, s := range f.spans(&f.groups[g], f.dataColumns()) {
						for bit := s.offset * 8; bit < s.end()*8; bit += int64(step) {
							bad := bytes.Clone(data)
							bad[bit/8] ^= 1 << (bit % 8)
							try(reseal(bad))
						}
					}
				}
				if refused < tried/10 {
					t.Errorf("only %d of %d damaged files were refused", refused, tried)
				}
			})
		}
	}
}

// TestFloatsRefuse: pages whose sums are right, and whose contents are not, as a
// faulty writer would leave them: flipped bits do not get past the sums.
func TestFloatsRefuse(t *testing.T) {
	ctx := context.Background()
	in := plain(fixtureRows())
	data := encode(t, Options{RowGroupRows: 12, PageRows: 5}, in).Data
	pages := func(f *File, column string, change func(*pager)) *pager {
		read, err := f.fetch(ctx, f.spans(&f.groups[0], f.dataColumns()))
		if err != nil {
			t.Fatal(err)
		}
		p, _, err := (&decoder{file: f}).columnPages(&f.groups[0], column, read)
		if err != nil {
			t.Fatal(err)
		}
		change(p)
		return p
	}
	times := func(f *File, group int, change func(page []series.Timestamp)) {
		if _, err := collect(f.Select(ctx, everything, []int{group})); err != nil {
			t.Fatal(err)
		}
		change(find(f.pages, groupKey{f.Name(), group}, timesOf).pages[0])
	}
	longer := func(p *pager) { p.pages.data[0].values++ }
	for name, read := range map[string]func(f *File, runs []Run) error{
		"a time above the bounds": func(f *File, runs []Run) error {
			f.groups[0].Time.Max--
			_, err := collect(f.SelectRuns(ctx, series.AllTime, runs))
			return err
		},
		"a time below the bounds": func(f *File, runs []Run) error {
			f.groups[0].Time.Min++
			_, err := collect(f.SelectRuns(ctx, series.AllTime, runs))
			return err
		},
		"too few rows": func(f *File, runs []Run) error {
			f.groups[0].Rows++
			_, err := collect(f.SelectRuns(ctx, series.AllTime, runs))
			return err
		},
		"too many rows": func(f *File, runs []Run) error {
			f.groups[0].Rows--
			_, err := collect(f.SelectRuns(ctx, series.AllTime, runs[:1]))
			return err
		},
		"a time twice": func(f *File, runs []Run) error {
			times(f, 0, func(page []series.Timestamp) { page[1] = page[0] })
			_, err := collect(f.SelectRuns(ctx, series.AllTime, runs))
			return err
		},
		"times that descend": func(f *File, runs []Run) error {
			times(f, 0, func(page []series.Timestamp) { page[1], page[2] = page[2], page[1] })
			_, err := collect(f.SelectRuns(ctx, series.AllTime, runs))
			return err
		},
		"times that descend from one row group to the next": func(f *File, runs []Run) error {
			times(f, 1, func(page []series.Timestamp) { page[0] = 0 })
			_, err := collect(f.SelectRuns(ctx, series.AllTime, runs))
			return err
		},
		"a page of times that ends early": func(f *File, _ []Run) error {
			p := pages(f, ColumnTimestamp, longer)
			_, err := p.timestamps(&p.pages.data[0], series.AllTime)
			return err
		},
		"a page of values that ends early": func(f *File, _ []Run) error {
			p := pages(f, ColumnValue, longer)
			_, err := p.floats(&p.pages.data[0])
			return err
		},
		"a code of a run that the dictionary lacks": func(*File, []Run) error {
			return decodeWords(make([]uint64, 2), []byte{8, 2 << 1, 1}, []uint64{7})
		},
		"a packed code that the dictionary lacks": func(*File, []Run) error {
			return decodeWords(make([]uint64, 8), []byte{8, 1<<1 | 1, 0, 0, 0, 0, 0, 0, 0, 1}, []uint64{7})
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := reopen(t, data)
			f.groups = slices.Clone(f.groups)
			f.whole = nil
			runs := runsOf(t, f, everything)
			f = f.AsFloats(NewPages(1 << 20))
			if err := read(f, runs); !errors.Is(err, ErrCorrupt) || strings.Contains(err.Error(), "decoder:") {
				t.Errorf("got %v, want ErrCorrupt", err)
			}
		})
	}
}

// sameOfDamage reads a damaged file as floats and as samples, and reports whether
// it can be read.
func sameOfDamage(t *testing.T, bad []byte) bool {
	t.Helper()
	ctx := context.Background()
	f, err := Open(ctx, BytesSource("test", bad), int64(len(bad)))
	if err != nil {
		if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnsupported) {
			t.Fatalf("untyped error: %v", err)
		}
		return false
	}
	want, wrong := collect(f.Select(ctx, everything, nil))
	pages := NewPages(1 << 20)
	for range 2 {
		got, err := collect(f.AsFloats(pages).Select(ctx, everything, nil))
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnsupported) {
				t.Fatalf("untyped error: %v", err)
			}
			return false
		}
		if wrong != nil {
			t.Fatalf("floats are read where samples are not: %v", wrong)
		}
		for i := range got {
			if len(got[i].Floats.Times) > 0 {
				got[i].Samples, got[i].Floats.Times, got[i].Floats.Values = got[i].Floats.AppendTo(nil), nil, nil
			}
		}
		if d := diff(want, got); d != "" {
			t.Fatalf("-samples +floats:\n%s", d)
		}
	}
	return true
}
