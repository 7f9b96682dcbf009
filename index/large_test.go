package index

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/series"
	"cardinalsin/txlog"
)

// manyPods are series whose values fill several pages.
func manyPods(from, to int) (out []labels.Labels) {
	for i := from; i < to; i++ {
		out = append(out, metric("cpu", "pod", fmt.Sprintf("pod-%06d", i), "uid", fmt.Sprintf("%08x%s", i*2654435761%(1<<32), strings.Repeat("u", i%7)), "zone", fmt.Sprintf("z%d", i*3/6000)))
	}
	return out
}

// TestLarge: selectors for which a segment of several pages is read in one way
// or another find what matching every series finds.
func TestLarge(t *testing.T) {
	tb := newTable(t, nil)
	all := manyPods(0, 6000)
	low, high := tb.write(0, 1, all[:3000]...), tb.write(0, 1, all[3000:]...)
	tb.index(Policy{MinFiles: 1})
	x := tb.open(Options{})
	if s, err := x.segment(t.Context(), &mustSegments(t, tb)[0]); err != nil || len(s.label("pod").pages) < 3 {
		t.Fatalf("too small to show anything: %v", err)
	}
	for _, c := range []string{
		`pod="pod-000123"`, `pod=~"pod-00012.*"`, `pod=~"pod-0029.+|pod-0030.+"`, `pod!~"pod-00[0-5].*"`, `pod=~"pod-005.*"`, `pod=~"zzz.*"`, `pod=~"a.*"`,
		`pod="pod-000123",uid=~".*9.*"`, `pod="pod-000123",uid!~".*9.*"`, `pod=~"pod-000123|pod-000124|pod-000125",uid=~".*[0-7]u*"`,
		`pod="pod-000123",zone="z0"`, `pod="pod-000123",zone="z1"`, `pod="pod-000123",zone!="z0"`, `pod=~"pod-000123|pod-004000",zone=~"z0|z2"`,
		`zone="z1"`, `zone="z1",pod!="pod-003000"`, `zone!="z1"`, `pod!~"pod-002.*"`,
	} {
		t.Run(c, func(t *testing.T) {
			sel := series.Selector{Range: series.AllTime, Matchers: parse(t, c)}
			for _, files := range [][]string{{low, high}, {high}, {low}} {
				var want []string
				zones := map[string]struct{}{}
				for i, l := range all {
					if sel.Matches(l) && slices.Contains(files, []string{low, high}[i/3000]) {
						want = append(want, l.String())
						zones[l.Get("zone")] = struct{}{}
					}
				}
				found, err := x.Find(t.Context(), tb.latest(), sel, files, Limits{})
				if err != nil || len(found.Covered) != len(files) {
					t.Fatalf("%d covered, %v", len(found.Covered), err)
				}
				var got []string
				for _, s := range found.Series {
					got = append(got, s.Labels.String())
				}
				slices.Sort(got)
				slices.Sort(want)
				if !slices.Equal(got, want) {
					t.Errorf("%d series, want %d", len(got), len(want))
				}
				values, uncovered, err := x.LabelValues(t.Context(), tb.latest(), "zone", sel, files, 0)
				if err != nil || len(uncovered) > 0 || !slices.Equal(values, sorted(zones)) {
					t.Errorf("zones %v, want %v; %v uncovered, %v", values, sorted(zones), uncovered, err)
				}
			}
		})
	}
	// The postings of one zone lie in both files, and of another in one.
	zones, _, err := x.LabelValues(t.Context(), tb.latest(), "zone", series.Selector{Range: series.AllTime, Matchers: parse(t, `__name__="cpu"`)}, []string{low}, 0)
	if err != nil || !slices.Equal(zones, []string{"z0", "z1"}) {
		t.Errorf("zones of one file: %v, %v", zones, err)
	}
}

func parse(t *testing.T, text string) (out []*labels.Matcher) {
	t.Helper()
	for m := range strings.SplitSeq(text, ",") {
		for _, op := range []struct {
			text string
			kind labels.MatchType
		}{{"=~", labels.MatchRegexp}, {"!~", labels.MatchNotRegexp}, {"!=", labels.MatchNotEqual}, {"=", labels.MatchEqual}} {
			if name, value, ok := strings.Cut(m, op.text); ok {
				matcher, err := labels.NewMatcher(op.kind, name, strings.Trim(value, `"`))
				if err != nil {
					t.Fatal(err)
				}
				out = append(out, matcher)
				break
			}
		}
	}
	return out
}

func mustSegments(t *testing.T, tb *table) []Segment {
	t.Helper()
	s, err := Segments(tb.latest())
	if err != nil || len(s) == 0 {
		t.Fatalf("segments %v, %v", s, err)
	}
	return s
}

// TestFileInTwoSegments: only one of them answers for it.
func TestFileInTwoSegments(t *testing.T) {
	tb := newTable(t, nil)
	path := tb.write(0, 1, pods(0, 10)...)
	tb.index(Policy{MinFiles: 1})
	segment := mustSegments(t, tb)[0]
	data, _, err := tb.store.Get(t.Context(), root+"/"+segment.Key)
	if err != nil {
		t.Fatal(err)
	}
	twin := segment
	twin.Key = Folder + "/twin.idx"
	if _, err := tb.store.Put(t.Context(), root+"/"+twin.Key, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(configuration{Segments: []Segment{segment, twin}})
	if err != nil {
		t.Fatal(err)
	}
	tx := tb.log.Begin(nil, txlog.Operation{Name: "INDEX"})
	tx.SetDomain(Domain, string(text))
	tb.commit(tx)
	found, err := tb.open(Options{}).Find(t.Context(), tb.latest(), podIs("pod-0000003"), []string{path}, Limits{})
	if err != nil || len(found.Covered[path]) != 1 {
		t.Errorf("found %+v, %v", found, err)
	}
}

// TestGapIsClosed: where the first of a day's jobs failed, its files are
// indexed all the same.
func TestGapIsClosed(t *testing.T) {
	tb := newTable(t, nil)
	for range 4 {
		tb.write(0, 1, metric("cpu", "pod", "a"))
	}
	r := NewRunner(tb.log, RunnerOptions{Policy: Policy{MinFiles: 1, MaxFiles: 2}})
	jobs, err := r.Plan(t.Context())
	if err != nil || len(jobs) != 2 {
		t.Fatalf("%d jobs, %v", len(jobs), err)
	}
	if _, err := r.RunJob(t.Context(), jobs[1]); err != nil {
		t.Fatal(err)
	}
	tb.index(Policy{MinFiles: 1, MaxFiles: 2})
	found, err := tb.open(Options{}).Find(t.Context(), tb.latest(), podIs("a"), tb.files(), Limits{})
	if err != nil || len(found.Covered) != 4 {
		t.Errorf("%d files covered, %v", len(found.Covered), err)
	}
}
