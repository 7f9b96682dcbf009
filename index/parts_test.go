package index

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/action"
	"cardinalsin/series"
	"cardinalsin/txlog"
)

// TestBuilderMemory: what a builder says it keeps is about what it does, for
// values that many series have and for values that one has.
func TestBuilderMemory(t *testing.T) {
	if raceEnabled {
		t.Skip("under the race detector everything takes more memory")
	}
	const n = 100_000
	for _, tc := range []struct {
		name string
		of   func(i int) labels.Labels
	}{
		{"own values", func(i int) labels.Labels {
			return metric("m", "pod", fmt.Sprintf("pod-%07d", i), "uid", fmt.Sprintf("%016x", uint64(i)*0x9e3779b97f4a7c15))
		}},
		{"shared values", func(i int) labels.Labels {
			return metric("m", "a", fmt.Sprint(i%10), "b", fmt.Sprint(i%200), "c", fmt.Sprint(i%3000), "d", "d", "e", fmt.Sprint(i%7), "f", "f")
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			heap := func() int64 {
				var m runtime.MemStats
				runtime.GC()
				runtime.GC()
				runtime.ReadMemStats(&m)
				return int64(m.HeapAlloc)
			}
			build := func() *builder {
				b := newBuilder([]indexed{{path: "f"}})
				for i := range n {
					l := tc.of(i)
					b.add(l, series.IDOf(l), []where{{0, 0, i, 1}})
				}
				return b
			}
			build() // whatever stays from the first time is there now
			before := heap()
			b := build()
			kept := heap() - before
			t.Logf("%d bytes a series, said to be %d", kept/n, b.memory()/n)
			if said := b.memory(); said < kept*3/4 || said > kept*3/2 {
				t.Errorf("says %d, keeps %d", b.memory(), kept)
			}
			runtime.KeepAlive(b)
		})
	}
}

// manyParts is a day of 3000 series in two files, in several segments.
func manyParts(t *testing.T) (tb *table, paths []string, done Result) {
	t.Helper()
	tb = newTable(t, nil)
	tb.segmentBytes = 128 << 10
	paths = []string{tb.write(0, 1, pods(0, 2000)...), tb.write(0, 1, append(pods(1, 1000), pods(0, 500)...)...)}
	results := tb.index(Policy{MinFiles: 1})
	if len(results) != 1 || len(results[0].Segments) < 3 || results[0].Series != 3000 {
		t.Fatalf("made %+v", results)
	}
	return tb, paths, results[0]
}

// TestPartsAreBounded: however many series a day has, no segment is made of
// more than fits, and each file is covered as by one.
func TestPartsAreBounded(t *testing.T) {
	tb, paths, done := manyParts(t)
	segments := mustSegments(t, tb)
	if len(segments) != len(done.Segments) {
		t.Fatalf("%d segments, %d made", len(segments), len(done.Segments))
	}
	x := tb.open(Options{})
	for i, e := range segments {
		s, err := x.segment(t.Context(), &e)
		if err != nil {
			t.Fatal(err)
		}
		// Of these labels a series takes more than 100 bytes and less than 400.
		if most := int(tb.segmentBytes / 100); e.Part != i || e.Parts != len(segments) || e.Files != 2 || s.total > most {
			t.Errorf("segment %d: %+v, %d series of at most %d", i, e, s.total, most)
		}
	}
	found, err := x.Find(t.Context(), tb.latest(), series.Selector{Range: series.AllTime, Matchers: parse(t, `pod=~".*[05]"`)}, paths, Limits{})
	if err != nil || len(found.Series) != 600 || len(found.Covered) != 2 {
		t.Fatalf("%d series, %d files covered, %v", len(found.Series), len(found.Covered), err)
	}
	for _, path := range paths {
		got := []place{}
		for _, r := range found.Covered[path] {
			got = append(got, place{found.Series[r.Series].Labels.String(), r.RowGroup, r.First, r.Rows})
		}
		want := slices.DeleteFunc(tb.read(path, series.Selector{}), func(p place) bool {
			return !strings.Contains(p.Labels, `0", zone`) && !strings.Contains(p.Labels, `5", zone`)
		})
		if !slices.Equal(got, want) {
			t.Errorf("%s: %d runs, want %d", path, len(got), len(want))
		}
	}
	if jobs := Plan(tb.latest(), Policy{MinFiles: 1}); len(jobs) > 0 {
		t.Errorf("it is done again: %+v", jobs)
	}
	// Parts count once, so that the next file is no reason to make all anew.
	tb.write(0, 1, pods(9, 10)...)
	if jobs := Plan(tb.latest(), Policy{MinFiles: 1, MaxSegments: 2}); len(jobs) != 1 || len(jobs[0].Replaces) > 0 {
		t.Errorf("the next job: %+v", jobs)
	}
	if jobs := Plan(tb.latest(), Policy{MinFiles: 1, MaxSegments: 1}); len(jobs) != 1 || len(jobs[0].Replaces) != len(segments) {
		t.Errorf("one segment a day: %+v", jobs)
	}
}

// TestPartIsMissing: without one of its parts a day is not covered, and the next
// job makes all of them anew.
func TestPartIsMissing(t *testing.T) {
	tb, paths, done := manyParts(t)
	lost := done.Segments[1].Key
	if err := tb.store.Delete(t.Context(), root+"/"+lost); err != nil {
		t.Fatal(err)
	}
	x := tb.open(Options{})
	all := series.Selector{Range: series.AllTime}
	found, err := x.Find(t.Context(), tb.latest(), podIs("pod-0000003"), paths, Limits{})
	if err != nil || len(found.Covered) > 0 || len(found.Series) > 0 {
		t.Fatalf("found %+v, %v", found, err)
	}
	values, uncovered, err := x.LabelValues(t.Context(), tb.latest(), "pod", all, paths, 0)
	if err != nil || len(values) > 0 || !slices.Equal(uncovered, paths) {
		t.Fatalf("%d values, %v uncovered, %v", len(values), uncovered, err)
	}
	again, err := NewRunner(tb.log, RunnerOptions{Policy: Policy{MinFiles: 1}, Index: x}).RunAll(t.Context())
	if err != nil || len(again) != 1 || len(again[0].Job.Replaces) != len(done.Segments) || len(again[0].Segments) != 1 || again[0].Segments[0].Parts != 0 {
		t.Fatalf("mended: %+v, %v", again, err)
	}
	if values, uncovered, err = x.LabelValues(t.Context(), tb.latest(), "pod", all, paths, 0); err != nil || len(values) != 2000 || len(uncovered) > 0 {
		t.Errorf("after the repair: %d values, %v uncovered, %v", len(values), uncovered, err)
	}
}

// TestPartFails: a part that cannot be read this time leaves its files to the
// caller, whatever the others have found.
func TestPartFails(t *testing.T) {
	tb, paths, done := manyParts(t)
	n := len(done.Segments)
	for after := 0; ; after++ {
		broken := &brokenOnce{after: n + after}
		x := tb.open(Options{Ranges: broken, Parallel: 1})
		far(t, tb, x) // n reads
		found, err := x.Find(t.Context(), tb.latest(), series.Selector{Range: series.AllTime}, paths, Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if broken.after >= 0 {
			if len(found.Series) != 3000 || len(found.Covered) != 2 || after < n {
				t.Errorf("nothing failed: %d series, %d files covered, %d reads", len(found.Series), len(found.Covered), after)
			}
			return
		}
		if len(found.Covered) > 0 || len(found.Series) > 0 {
			t.Errorf("read %d failed: %d series, %d files covered", after, len(found.Series), len(found.Covered))
		}
	}
}

// TestPartsOfDomain: a domain that names some of a day's parts, or one of them
// twice, is damaged.
func TestPartsOfDomain(t *testing.T) {
	part := func(i, n int) string {
		return fmt.Sprintf(`{"key":"_index/%d.idx","bytes":9,"directory":9,"date":"2026-01-02","files":1,"after":-1,"through":5,"part":%d,"parts":%d}`, i, i, n)
	}
	for _, tc := range []struct {
		name, text string
		sound      bool
	}{
		{"all", `{"segments":null,"parts":[` + part(0, 2) + "," + part(1, 2) + `]}`, true},
		{"one missing", `{"parts":[` + part(0, 3) + "," + part(1, 3) + `]}`, false},
		{"one twice", `{"parts":[` + part(0, 2) + "," + part(1, 2) + "," + part(1, 2) + `]}`, false},
		{"beyond the last", `{"parts":[` + part(1, 2) + "," + part(2, 2) + `]}`, false},
		{"of one", `{"parts":[` + part(0, 1) + `]}`, false},
		{"negative", `{"parts":[` + part(-1, 2) + "," + part(1, 2) + `]}`, false},
		{"in the wrong list", `{"segments":[` + part(0, 2) + "," + part(1, 2) + `]}`, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tb := newTable(t, nil)
			tx := tb.log.Begin(nil, txlog.Operation{Name: "INDEX"})
			tx.SetDomain(Domain, tc.text)
			tb.commit(tx)
			got, err := Segments(tb.latest())
			if tc.sound && (err != nil || len(got) != 2) || !tc.sound && !errors.Is(err, action.ErrCorrupt) {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}
