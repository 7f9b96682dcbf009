package merge

import (
	"errors"
	"fmt"
	"iter"
	"math"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"
	"pgregory.net/rapid"

	"cardinalsin/series"
)

func mk(name string, samples ...series.Sample) Series {
	l := labels.FromStrings(series.MetricName, name)
	return Series{Labels: l, ID: series.IDOf(l), Samples: samples}
}

func at(t int64, v float64) series.Sample {
	return series.Sample{Time: series.Timestamp(t), Value: v}
}

func TestSamples(t *testing.T) {
	nanos := func(t int64, n uint16, v float64) series.Sample {
		return series.Sample{Time: series.Timestamp(t), Nanos: n, Value: v}
	}
	low, high := Rank{1, "a"}, Rank{2, "a"}
	for _, tc := range []struct {
		name string
		runs []Run
		want []series.Sample
	}{
		{"none", nil, nil},
		{"one", []Run{{low, []series.Sample{at(1, 1), at(2, 2)}}}, []series.Sample{at(1, 1), at(2, 2)}},
		{"later in a run wins", []Run{{low, []series.Sample{at(1, 1), at(1, 2), at(1, 3), at(2, 4)}}}, []series.Sample{at(1, 3), at(2, 4)}},
		{"higher order wins, given last", []Run{{low, []series.Sample{at(1, 1)}}, {high, []series.Sample{at(1, 2)}}}, []series.Sample{at(1, 2)}},
		{"higher order wins, given first", []Run{{high, []series.Sample{at(1, 2)}}, {low, []series.Sample{at(1, 1)}}}, []series.Sample{at(1, 2)}},
		{"tie breaks equal order", []Run{{Rank{1, "b"}, []series.Sample{at(1, 2)}}, {Rank{1, "a"}, []series.Sample{at(1, 1)}}}, []series.Sample{at(1, 2)}},
		{"equal rank: later argument wins", []Run{{low, []series.Sample{at(1, 1)}}, {low, []series.Sample{at(1, 2)}}}, []series.Sample{at(1, 2)}},
		{"the head wins", []Run{{HeadRank, []series.Sample{at(1, 9)}}, {Rank{math.MaxInt64 - 1, "z"}, []series.Sample{at(1, 1)}}}, []series.Sample{at(1, 9)}},
		{
			"duplicates in both runs",
			[]Run{{low, []series.Sample{at(1, 1), at(1, 2), at(3, 3)}}, {high, []series.Sample{at(1, 4), at(1, 5), at(2, 6)}}},
			[]series.Sample{at(1, 5), at(2, 6), at(3, 3)},
		},
		{"nanos separate instants", []Run{{low, []series.Sample{nanos(1, 0, 1), nanos(1, 7, 2)}}, {high, []series.Sample{nanos(1, 7, 3)}}}, []series.Sample{nanos(1, 0, 1), nanos(1, 7, 3)}},
		{"negative times", []Run{{low, []series.Sample{at(-5, 1), at(3, 1)}}, {high, []series.Sample{at(-7, 2)}}}, []series.Sample{at(-7, 2), at(-5, 1), at(3, 1)}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, Samples(nil, tc.runs...)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
	t.Run("appends", func(t *testing.T) {
		got := Samples([]series.Sample{at(1, 1)}, Run{low, []series.Sample{at(1, 2)}})
		if diff := cmp.Diff([]series.Sample{at(1, 1), at(1, 2)}, got); diff != "" {
			t.Errorf("what dst held before must stay: -want +got:\n%s", diff)
		}
	})
}

// asFloats returns the same series with its samples as floats, if they can be.
func asFloats(s Series) Series {
	if !strictlyAscending(s.Samples) {
		return s
	}
	var f Floats
	for _, p := range s.Samples {
		if p.Nanos != 0 {
			return s
		}
		f.Times, f.Values = append(f.Times, p.Time), append(f.Values, p.Value)
	}
	s.Samples, s.Floats = nil, f
	return s
}

func collect(seq iter.Seq2[Series, error]) ([]Series, error) {
	var out []Series
	for s, err := range seq {
		if err != nil {
			return out, err
		}
		out = append(out, s)
	}
	return out, nil
}

// TestSourcesEqualsModel compares with a map keyed by label set and instant,
// into which sources are poured from the weakest to the strongest.
func TestSourcesEqualsModel(t *testing.T) {
	// Two label sets under one forged ID: hash collisions must not merge.
	twin := func(v string) Series {
		return Series{Labels: labels.FromStrings(series.MetricName, "twin", "a", v), ID: 42}
	}
	pool := []Series{mk("a"), mk("b"), mk("c"), twin("1"), twin("2")}
	slices.SortFunc(pool, func(a, b Series) int { return a.Compare(&b) })
	rapid.Check(t, func(rt *rapid.T) {
		type key struct {
			labels string
			time   series.Timestamp
			nanos  uint16
		}
		n := rapid.IntRange(0, 6).Draw(rt, "sources")
		sources := make([]Source, n)
		held := make([][]Series, n)
		value := 0.0
		for i := range sources {
			sources[i].Rank = Rank{rapid.Int64Range(0, 3).Draw(rt, "order"), rapid.SampledFrom([]string{"", "x"}).Draw(rt, "tie")}
			for _, s := range pool {
				if !rapid.Bool().Draw(rt, "has") {
					continue
				}
				for range rapid.IntRange(0, 8).Draw(rt, "samples") {
					value++
					s.Samples = append(slices.Clip(s.Samples), series.Sample{
						Time:  series.Timestamp(rapid.Int64Range(-3, 6).Draw(rt, "t")),
						Nanos: uint16(rapid.IntRange(0, 1).Draw(rt, "n")), Value: value,
					})
				}
				slices.SortStableFunc(s.Samples, series.Sample.Compare)
				held[i] = append(held[i], s)
			}
			given := slices.Clone(held[i])
			for j := range given {
				if rapid.Bool().Draw(rt, "floats") {
					given[j] = asFloats(given[j])
				}
			}
			sources[i].Series = Slice(given)
		}
		weakestFirst := make([]int, n)
		for i := range weakestFirst {
			weakestFirst[i] = i
		}
		slices.SortStableFunc(weakestFirst, func(a, b int) int { return sources[a].Rank.Compare(sources[b].Rank) })
		want := map[key]float64{}
		for _, i := range weakestFirst {
			for _, s := range held[i] {
				for _, p := range s.Samples {
					want[key{s.Labels.String(), p.Time, p.Nanos}] = p.Value
				}
			}
		}
		out, err := collect(Sources(sources...))
		if err != nil {
			rt.Fatal(err)
		}
		got := map[key]float64{}
		for i, s := range out {
			if i > 0 && out[i-1].Compare(&s) >= 0 {
				rt.Fatalf("series %s not after %s", s.Labels, out[i-1].Labels)
			}
			if len(s.Samples) > 0 && len(s.Floats.Times) > 0 {
				rt.Fatalf("%s has samples of both forms", s.Labels)
			}
			s.Samples = s.AllSamples()
			if !strictlyAscending(s.Samples) {
				rt.Fatalf("samples of %s not ascending: %v", s.Labels, s.Samples)
			}
			for _, p := range s.Samples {
				got[key{s.Labels.String(), p.Time, p.Nanos}] = p.Value
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			rt.Fatalf("-want +got:\n%s", diff)
		}
	})
}

func TestSourcesErrors(t *testing.T) {
	boom := errors.New("boom")
	failing := func(after ...Series) iter.Seq2[Series, error] {
		return func(yield func(Series, error) bool) {
			for _, s := range after {
				if !yield(s, nil) {
					return
				}
			}
			yield(Series{}, boom)
		}
	}
	for _, tc := range []struct {
		name   string
		source iter.Seq2[Series, error]
		want   error
	}{
		{"error at once", failing(), boom},
		{"error later", failing(mk("a", at(1, 1)), mk("b", at(1, 1))), boom},
		{"series twice", Slice([]Series{mk("a", at(1, 1)), mk("a", at(2, 1))}), ErrUnsorted},
		{"series descending", Slice([]Series{mk("b", at(1, 1)), mk("a", at(2, 1))}), ErrUnsorted},
		{"floats descending", Slice([]Series{{Labels: mk("a").Labels, ID: mk("a").ID, Floats: Floats{[]series.Timestamp{2, 1}, []float64{1, 1}}}}), ErrUnsorted},
		{"floats twice", Slice([]Series{{Labels: mk("a").Labels, ID: mk("a").ID, Floats: Floats{[]series.Timestamp{2, 2}, []float64{1, 1}}}}), ErrUnsorted},
		{"floats of two lengths", Slice([]Series{{Labels: mk("a").Labels, ID: mk("a").ID, Floats: Floats{[]series.Timestamp{2}, []float64{1, 1}}}}), ErrUnsorted},
		{"samples descending", Slice([]Series{mk("a", at(2, 1), at(1, 1))}), ErrUnsorted},
	} {
		t.Run(tc.name, func(t *testing.T) {
			other := Source{Series: Slice([]Series{mk("a", at(1, 1)), mk("z", at(1, 1))})}
			for _, sources := range [][]Source{{other, {Series: tc.source}}, {{Series: tc.source}}} {
				if _, err := collect(Sources(sources...)); !errors.Is(err, tc.want) {
					t.Errorf("of %d sources: got %v, want %v", len(sources), err, tc.want)
				}
			}
		})
	}
}

// TestSourcesStopEarly: leaving the loop stops every source.
func TestSourcesStopEarly(t *testing.T) {
	stopped := 0
	src := func(yield func(Series, error) bool) {
		defer func() { stopped++ }()
		for i := 0; ; i++ {
			if !yield(mk(fmt.Sprintf("m%06d", i), at(1, 1)), nil) {
				return
			}
		}
	}
	n := 0
	for _, err := range Sources(Source{Series: src}, Source{Series: src, Rank: Rank{Order: 1}}) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n == 3 {
			break
		}
	}
	if stopped != 2 {
		t.Errorf("%d sources stopped, want 2", stopped)
	}
}

func BenchmarkSources(b *testing.B) {
	for _, k := range []int{2, 16} {
		b.Run(fmt.Sprintf("sources=%d", k), func(b *testing.B) {
			const seriesPer, samplesPer = 1000, 60
			sources := make([]Source, k)
			for i := range sources {
				list := make([]Series, seriesPer)
				for j := range list {
					s := mk(fmt.Sprintf("m%06d", j))
					for t := range samplesPer {
						s.Samples = append(s.Samples, at(int64(i*samplesPer+t), 1))
					}
					list[j] = s
				}
				sources[i] = Source{Rank: Rank{Order: int64(i)}, Series: Slice(list)}
			}
			rows := 0
			for b.Loop() {
				for s, err := range Sources(sources...) {
					if err != nil {
						b.Fatal(err)
					}
					rows += len(s.Samples)
				}
			}
			b.ReportMetric(float64(rows)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}

// TestSourcesFloats: floats stay floats where sources do not overlap.
func TestSourcesFloats(t *testing.T) {
	weak, strong := Rank{Order: 1}, Rank{Order: 2}
	f := func(samples ...series.Sample) Series { return asFloats(mk("a", samples...)) }
	for _, tc := range []struct {
		name         string
		weak, strong Series
		floats       bool
		want         []series.Sample
	}{
		{"apart", f(at(1, 1), at(2, 2)), f(at(3, 3)), true, []series.Sample{at(1, 1), at(2, 2), at(3, 3)}},
		{"apart, later first", f(at(3, 3)), f(at(1, 1), at(2, 2)), true, []series.Sample{at(1, 1), at(2, 2), at(3, 3)}},
		{"one is empty", f(at(3, 3)), f(), true, []series.Sample{at(3, 3)}},
		{"meet", f(at(1, 1), at(2, 2)), f(at(2, 9), at(3, 3)), false, []series.Sample{at(1, 1), at(2, 9), at(3, 3)}},
		{"in between", f(at(1, 1), at(3, 3)), f(at(2, 2)), false, []series.Sample{at(1, 1), at(2, 2), at(3, 3)}},
		{"beside samples", f(at(1, 1)), mk("a", at(2, 2)), false, []series.Sample{at(1, 1), at(2, 2)}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out, err := collect(Sources(Source{Rank: weak, Series: Slice([]Series{tc.weak})}, Source{Rank: strong, Series: Slice([]Series{tc.strong})}))
			if err != nil || len(out) != 1 {
				t.Fatalf("%d series, %v", len(out), err)
			}
			if got := len(out[0].Floats.Times) > 0; got != tc.floats {
				t.Errorf("floats %v, want %v", got, tc.floats)
			}
			if diff := cmp.Diff(tc.want, out[0].AllSamples()); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}
