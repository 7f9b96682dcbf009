package index

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"
	"pgregory.net/rapid"

	"cardinalsin/series"
)

// TestIndexEqualsFiles: whatever the files, the matchers and the files that
// are gone, a covered file's runs are those that the file itself has, and
// names and values are those of the covered files.
func TestIndexEqualsFiles(t *testing.T) {
	covered, empty, values, parts := 0, 0, 0, 0
	rapid.Check(t, func(t *rapid.T) {
		tb := newTable(t, nil)
		// Some days' series take more than one segment.
		tb.segmentBytes = rapid.SampledFrom([]int64{0, 1, 3000}).Draw(t, "segment bytes")
		for range rapid.IntRange(1, 5).Draw(t, "files") {
			tb.write(rapid.IntRange(0, 1).Draw(t, "day"), rapid.IntRange(0, 1).Draw(t, "level"), genSets(t)...)
		}
		tb.index(Policy{MinFiles: 1, MaxFiles: rapid.IntRange(1, 3).Draw(t, "max"), MaxSegments: rapid.IntRange(1, 3).Draw(t, "segments")})
		if files := tb.files(); len(files) > 1 && rapid.Bool().Draw(t, "remove") {
			tb.remove(files[0])
			tb.index(Policy{MinFiles: 1})
		}
		if rapid.Bool().Draw(t, "more") {
			tb.write(0, 1, genSets(t)...)
		}
		segments, err := Segments(tb.latest())
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range segments {
			parts = max(parts, s.Parts)
		}
		x := tb.open(Options{})
		for range 6 {
			sel := series.Selector{Range: series.AllTime, Matchers: genMatchers(t)}
			if rapid.Bool().Draw(t, "first day") {
				sel.Range = firstDay.Date().Range()
			}
			var files []string
			for _, f := range tb.files() {
				if rapid.IntRange(0, 4).Draw(t, "want") > 0 && (sel.Range == series.AllTime || strings.Contains(f, firstDay.Date().String())) {
					files = append(files, f)
				}
			}
			var mu sync.Mutex
			ahead := map[string]bool{}
			limits := Limits{Ahead: func(path string) {
				mu.Lock()
				defer mu.Unlock()
				ahead[path] = true
			}}
			found, err := x.Find(t.Context(), tb.latest(), sel, files, limits)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.IsSortedFunc(found.Series, func(a, b Series) int { return series.Compare(a.Labels, b.Labels, a.ID, b.ID) }) {
				t.Fatalf("series out of order: %v", found.Series)
			}
			for path := range ahead {
				if !slices.Contains(files, path) {
					t.Fatalf("told ahead of %s, which nobody asked for", path)
				}
			}
			for path, runs := range found.Covered {
				if !slices.Contains(files, path) {
					t.Fatalf("told of %s, which nobody asked for", path)
				}
				got := []place{}
				for _, r := range runs {
					got = append(got, place{found.Series[r.Series].Labels.String(), r.RowGroup, r.First, r.Rows})
				}
				want := tb.read(path, sel)
				if diff := cmp.Diff(want, got); diff != "" {
					t.Fatalf("%s, %v: file (-), index (+)\n%s", path, sel.Matchers, diff)
				}
				if len(want) > 0 && !ahead[path] {
					t.Fatalf("%s was not told ahead for %v", path, sel.Matchers)
				}
				covered++
				if len(want) == 0 {
					empty++
				}
			}
			values += checkTexts(t, tb, x, sel, files)
		}
	})
	if covered == 0 || empty == 0 || values == 0 || parts < 2 {
		t.Errorf("%d files covered, %d of them without a series, %d values, %d parts: the test shows nothing", covered, empty, values, parts)
	}
	t.Logf("%d files covered, %d of them without a series, %d values, up to %d parts", covered, empty, values, parts)
}

// checkTexts compares names and values with those of the covered files.
func checkTexts(t *rapid.T, tb *table, x *Index, sel series.Selector, files []string) int {
	label := rapid.SampledFrom([]string{series.MetricName, "pod", "zone", "loose", "none"}).Draw(t, "label")
	limit := rapid.SampledFrom([]int{0, 0, 1, 2}).Draw(t, "limit")
	got, open, err := x.LabelValues(t.Context(), tb.latest(), label, sel, files, limit)
	if err != nil {
		t.Fatal(err)
	}
	names, openNames, err := x.LabelNames(t.Context(), tb.latest(), sel, files, limit)
	if err != nil {
		t.Fatal(err)
	}
	wantValues, wantNames := map[string]struct{}{}, map[string]struct{}{}
	for _, f := range files {
		for l := range tb.sets(f, sel) {
			if v := l.Get(label); v != "" && !slices.Contains(open, f) {
				wantValues[v] = struct{}{}
			}
			if !slices.Contains(openNames, f) {
				l.Range(func(l labels.Label) { wantNames[l.Name] = struct{}{} })
			}
		}
	}
	first := func(set map[string]struct{}) []string {
		out := sorted(set)
		if limit > 0 {
			out = out[:min(limit, len(out))]
		}
		return out
	}
	if want := first(wantValues); !slices.Equal(got, want) {
		t.Fatalf("values of %s for %v in %v, limit %d: %q, the files have %q", label, sel.Matchers, files, limit, got, want)
	}
	if want := first(wantNames); !slices.Equal(names, want) {
		t.Fatalf("names for %v: %q, the files have %q", sel.Matchers, names, want)
	}
	return len(got)
}

func genSets(t *rapid.T) []labels.Labels {
	seen := map[string]bool{}
	var out []labels.Labels
	for range rapid.IntRange(1, 30).Draw(t, "series") {
		b := labels.NewBuilder(labels.EmptyLabels())
		b.Set(series.MetricName, rapid.SampledFrom([]string{"cpu", "mem", "up"}).Draw(t, "name"))
		for _, l := range []string{"pod", "zone", "loose"} {
			if rapid.Bool().Draw(t, "has") {
				b.Set(l, fmt.Sprintf("%c%d", 'a'+rapid.IntRange(0, 2).Draw(t, "letter"), rapid.IntRange(0, 12).Draw(t, "number")))
			}
		}
		l := b.Labels()
		if !seen[l.String()] {
			seen[l.String()] = true
			out = append(out, l)
		}
	}
	return out
}

func genMatchers(t *rapid.T) []*labels.Matcher {
	var out []*labels.Matcher
	for range rapid.IntRange(0, 3).Draw(t, "matchers") {
		kind := rapid.SampledFrom([]labels.MatchType{labels.MatchEqual, labels.MatchNotEqual, labels.MatchRegexp, labels.MatchNotRegexp}).Draw(t, "kind")
		name := rapid.SampledFrom([]string{series.MetricName, "pod", "zone", "loose", "none"}).Draw(t, "on")
		value := rapid.SampledFrom([]string{"", "a1", "b2", "c12", "cpu", "zz"}).Draw(t, "value")
		if kind == labels.MatchRegexp || kind == labels.MatchNotRegexp {
			value = rapid.SampledFrom([]string{"", ".*", ".+", "a.*", "a1|b2", "a1|", "a1.*", ".*1", "cpu|mem", "[ab].+", "zz.*"}).Draw(t, "pattern")
		}
		out = append(out, labels.MustNewMatcher(kind, name, value))
	}
	return out
}
