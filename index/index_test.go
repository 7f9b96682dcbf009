package index

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/action"
	"cardinalsin/series"
	"cardinalsin/storage"
	"cardinalsin/storage/fault"
	"cardinalsin/storage/meter"
	"cardinalsin/txlog"
)

func podIs(v string) series.Selector {
	return series.Selector{Range: series.AllTime, Matchers: []*labels.Matcher{labels.MustNewMatcher(labels.MatchEqual, "pod", v)}}
}

// TestCost counts requests and bytes.
//
//	table files=N per=M    N files of M pods each, 100 files a commit, two days
//	write                  one file more
//	index                  what the job costs
//	find pod [zone=]       what a cold query costs; ahead are the files that it
//	                       tells of early
//	values label [limit=]  likewise
func TestCost(t *testing.T) {
	if raceEnabled {
		t.Skip("10,000 files take long under the race detector, and nothing here runs beside anything that TestLarge does not")
	}
	datadriven.RunTest(t, "testdata/cost", func(t *testing.T, d *datadriven.TestData) string {
		return costs.run(t, d)
	})
}

type costTable struct {
	*table
	meter *meter.Store
}

var costs costTable

func (c *costTable) run(t *testing.T, d *datadriven.TestData) string {
	switch d.Cmd {
	case "table":
		var n, per int
		d.ScanArgs(t, "files", &n)
		d.ScanArgs(t, "per", &per)
		c.table = newTable(t, func(s storage.Store) storage.Store {
			c.meter = meter.New(s, meter.Options{})
			return c.meter
		})
		for f := 0; f < n; f += 100 {
			var files [][]labels.Labels
			for i := f; i < min(n, f+100); i++ {
				files = append(files, pods(i, per))
			}
			c.writeAll(f*2/n, 1, files...)
		}
		return ""
	case "write":
		c.t = t
		c.write(1, 1, pods(1_000_000, 3)...)
		return ""
	}
	c.t = t
	before := c.meter.Snapshot()
	var out strings.Builder
	switch d.Cmd {
	case "index":
		for _, r := range c.index(Policy{MinFiles: 1}) {
			fmt.Fprintf(&out, "%s: %d files, %d series, replaces %d\n", r.Job.Date, len(r.Job.Files), r.Series, len(r.Job.Replaces))
		}
	case "find":
		sel, zone := podIs(d.CmdArgs[0].Key), ""
		if d.MaybeScanArgs(t, "zone", &zone); zone != "" {
			sel.Matchers = append(sel.Matchers, labels.MustNewMatcher(labels.MatchEqual, "zone", zone))
		}
		var ahead atomic.Int64
		found, err := c.open(Options{}).Find(t.Context(), c.latest(), sel, c.files(), Limits{Ahead: func(string) { ahead.Add(1) }})
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range slices.Sorted(maps.Keys(found.Covered)) {
			for _, r := range found.Covered[path] {
				fmt.Fprintf(&out, "%s: %s group %d row %d\n", path, found.Series[r.Series].Labels, r.RowGroup, r.First)
			}
		}
		fmt.Fprintf(&out, "%d files covered, %d live, %d ahead\n", len(found.Covered), len(c.files()), ahead.Load())
	case "values":
		limit := 0
		d.MaybeScanArgs(t, "limit", &limit)
		got, uncovered, err := c.open(Options{}).LabelValues(t.Context(), c.latest(), d.CmdArgs[0].Key, series.Selector{Range: series.AllTime}, c.files(), limit)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&out, "%d values, first %s, %d files uncovered\n", len(got), got[0], len(uncovered))
	}
	spent := c.meter.Snapshot().Since(before)
	for _, op := range []storage.Op{storage.OpGetRange, storage.OpPut, storage.OpPutIfAbsent} {
		if n := spent[op]; n.Calls > 0 {
			fmt.Fprintf(&out, "%s: %d calls, %d KiB\n", op, n.Calls, (n.Bytes+1023)>>10)
		}
	}
	return out.String()
}

func pods(file, n int) (out []labels.Labels) {
	for i := range n {
		out = append(out, metric("cpu", "pod", fmt.Sprintf("pod-%07d", file*n+i), "zone", fmt.Sprintf("z%d", i%3)))
	}
	return out
}

// TestDamage: whatever becomes of a segment, an answer is right, what it does
// not cover is left to the caller, the log says so once, and the next job mends
// it.
func TestDamage(t *testing.T) {
	tb := newTable(t, nil)
	var sets []labels.Labels
	for i := range 300 {
		sets = append(sets, metric("cpu", "pod", fmt.Sprintf("p%03d", i), "zone", fmt.Sprintf("z%d", i%2)))
	}
	path := tb.write(0, 1, sets...)
	segment := tb.index(Policy{MinFiles: 1})[0].Segments[0]
	key := root + "/" + segment.Key
	whole, _, err := tb.store.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	want := tb.read(path, podIs("p123"))
	refused := 0
	try := func(t *testing.T, data []byte) {
		t.Helper()
		if _, err := tb.store.Put(t.Context(), key, bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
		var said bytes.Buffer
		x := tb.open(Options{Logger: slog.New(slog.NewTextHandler(&said, nil))})
		for range 2 {
			found, err := x.Find(t.Context(), tb.latest(), podIs("p123"), []string{path}, Limits{})
			if err != nil {
				t.Fatal(err)
			}
			runs, ok := found.Covered[path]
			if !ok {
				if !x.Damaged()[segment.Key] || strings.Count(said.String(), "\n") != 1 {
					t.Fatalf("not told once: %s", said.String())
				}
				refused++
				continue
			}
			got := []place{}
			for _, r := range runs {
				got = append(got, place{found.Series[r.Series].Labels.String(), r.RowGroup, r.First, r.Rows})
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatal(diff)
			}
		}
	}
	for i := 0; i < len(whole); i += 13 {
		flipped := slices.Clone(whole)
		flipped[i] ^= 1 << (i % 8)
		try(t, flipped)
	}
	for _, n := range []int{0, 1, 15, 16, len(whole) / 2, len(whole) - 1} {
		try(t, whole[:n])
	}
	if refused == 0 {
		t.Error("no damage was ever met")
	}
	if err := tb.store.Delete(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	x := tb.open(Options{})
	values, uncovered, err := x.LabelValues(t.Context(), tb.latest(), "pod", series.Selector{Range: series.AllTime}, []string{path}, 0)
	if err != nil || len(values) != 0 || !slices.Equal(uncovered, []string{path}) {
		t.Fatalf("missing segment: %v, %v, %v", values, uncovered, err)
	}
	done, err := NewRunner(tb.log, RunnerOptions{Index: x}).RunAll(t.Context())
	if err != nil || len(done) != 1 || !slices.Equal(done[0].Job.Replaces, []string{segment.Key}) {
		t.Fatalf("mended: %+v, %v", done, err)
	}
	found, err := x.Find(t.Context(), tb.latest(), podIs("p123"), []string{path}, Limits{})
	if err != nil || len(found.Covered[path]) == 0 {
		t.Fatalf("after the repair: %+v, %v", found, err)
	}
}

// TestDamagedDomain: without its domain there is no index, and a rebuild makes
// one.
func TestDamagedDomain(t *testing.T) {
	tb := newTable(t, nil)
	path := tb.write(0, 1, metric("cpu", "pod", "a"))
	tx := tb.log.Begin(nil, txlog.Operation{Name: "INDEX"})
	tx.SetDomain(Domain, `{"segments":[{"key":"../x"}]}`)
	tb.commit(tx)
	if _, err := Segments(tb.latest()); !errors.Is(err, action.ErrCorrupt) {
		t.Errorf("error = %v", err)
	}
	found, err := tb.open(Options{}).Find(t.Context(), tb.latest(), podIs("a"), []string{path}, Limits{})
	if err != nil || len(found.Covered) != 0 {
		t.Errorf("found %+v, %v", found, err)
	}
	if done := tb.index(Policy{MinFiles: 1}); len(done) != 0 {
		t.Errorf("a job by itself: %+v", done)
	}
	if done := tb.index(Policy{Rebuild: true}); len(done) != 1 {
		t.Errorf("rebuilt: %+v", done)
	}
}

// TestPlan prints jobs.
//
//	write day level [n]    n files of one commit each
//	remove n               the nth file
//	back n                 restore it as it was
//	index [options]        run what is planned
//	plan [options]         print it
//
// Options: hour, of the store's clock after the first midnight; min, max,
// segments; eager, rebuild.
func TestPlan(t *testing.T) {
	var tb *table
	var paths []string
	datadriven.RunTest(t, "testdata/plan", func(t *testing.T, d *datadriven.TestData) string {
		if tb == nil || d.Cmd == "table" {
			tb, paths = newTable(t, nil), nil
		}
		tb.t = t
		number := func(i int) (n int) {
			if _, err := fmt.Sscan(d.CmdArgs[i].Key, &n); err != nil {
				t.Fatal(err)
			}
			return n
		}
		p := Policy{Now: tb.now}
		var hour int
		if d.HasArg("hour") {
			d.ScanArgs(t, "hour", &hour)
			tb.now = firstDay.Time().Add(time.Duration(hour) * time.Hour)
			p.Now = tb.now
		}
		d.MaybeScanArgs(t, "min", &p.MinFiles)
		d.MaybeScanArgs(t, "max", &p.MaxFiles)
		d.MaybeScanArgs(t, "segments", &p.MaxSegments)
		p.Eager, p.Rebuild = d.HasArg("eager"), d.HasArg("rebuild")
		var out strings.Builder
		show := func(j Job) {
			fmt.Fprintf(&out, "%s: %d files, replaces %d\n", j.Date, len(j.Files), len(j.Replaces))
		}
		switch d.Cmd {
		case "write":
			n := 1
			if len(d.CmdArgs) > 2 {
				n = number(2)
			}
			for range n {
				paths = append(paths, tb.write(number(0), number(1), metric("cpu", "pod", "a")))
			}
		case "remove":
			tb.remove(paths[number(0)])
		case "back":
			var a *action.Add
			for v := tb.latest().Version() - 1; a == nil; v-- {
				snap, err := tb.log.Snapshot(t.Context(), txlog.AtVersion(v))
				if err != nil {
					t.Fatal(err)
				}
				a, _ = snap.File(action.Key{Path: paths[number(0)]})
			}
			tx := tb.log.Begin(nil, txlog.Operation{Name: "RESTORE"})
			tx.Add(*a)
			tb.commit(tx)
		case "plan":
			jobs, wait := plan(tb.latest(), p)
			for _, j := range jobs {
				show(j)
			}
			if wait > 0 {
				fmt.Fprintf(&out, "later\n")
			}
		case "index":
			for _, r := range tb.index(p) {
				show(r.Job)
			}
		}
		return out.String()
	})
}

// TestJobsConflict: of two jobs for one day one wins; jobs for two days both
// do; and what writers commit meanwhile is no conflict.
func TestJobsConflict(t *testing.T) {
	tb := newTable(t, nil)
	tb.write(0, 1, metric("cpu", "pod", "a"))
	tb.write(1, 1, metric("cpu", "pod", "b"))
	r := NewRunner(tb.log, RunnerOptions{Policy: Policy{MinFiles: 1}})
	jobs, err := r.Plan(t.Context())
	if err != nil || len(jobs) != 2 {
		t.Fatalf("%d jobs, %v", len(jobs), err)
	}
	tb.write(0, 1, metric("cpu", "pod", "c"))
	for _, j := range jobs {
		if _, err := r.RunJob(t.Context(), j); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.RunJob(t.Context(), jobs[0]); !errors.Is(err, txlog.ErrDomainChanged) {
		t.Errorf("the same job again: %v", err)
	}
	segments, err := Segments(tb.latest())
	if err != nil || len(segments) != 2 {
		t.Errorf("segments %+v, %v", segments, err)
	}
}

// TestFaultSweep: whatever call of a job fails, the table is sound, the files
// that are covered are told of rightly, and the next run finishes.
func TestFaultSweep(t *testing.T) {
	for _, mode := range fault.Modes {
		t.Run(mode.String(), func(t *testing.T) {
			for i := 0; ; i++ {
				tb := newTable(t, nil)
				paths := []string{tb.write(0, 1, pods(0, 20)...), tb.write(0, 1, pods(1, 20)...)}
				f := fault.New(tb.store)
				log, err := txlog.Open(t.Context(), f, root, txlog.Options{})
				if err != nil {
					t.Fatal(err)
				}
				f.FailAt(i, mode)
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				_, err = NewRunner(log, RunnerOptions{Policy: Policy{MinFiles: 1}}).RunAll(ctx)
				cancel()
				fired := f.Fired() > 0
				if fired {
					tb.now = tb.now.Add(time.Hour) // claims of the dead expire
				}
				again := tb.index(Policy{MinFiles: 1})
				if err == nil && len(again) > 0 {
					t.Fatalf("call %d: a run that succeeded left %+v", i, again)
				}
				found, err := tb.open(Options{}).Find(t.Context(), tb.latest(), podIs("pod-0000021"), paths, Limits{})
				if err != nil || len(found.Covered) != 2 || len(found.Covered[paths[0]]) != 0 || len(found.Covered[paths[1]]) != 1 {
					t.Fatalf("call %d: %+v, %v", i, found, err)
				}
				if !fired {
					t.Logf("%d calls", i)
					return
				}
			}
		})
	}
}

// TestDamagedFile: a file that cannot be read gets no index, and the others
// do.
func TestDamagedFile(t *testing.T) {
	tb := newTable(t, nil)
	bad, good := tb.write(0, 1, pods(0, 20)...), tb.write(0, 1, pods(1, 20)...)
	tb.damage(root+"/"+bad, func(b []byte) []byte { b[20] ^= 1; b[40] ^= 1; b[80] ^= 1; return b })
	done := tb.index(Policy{MinFiles: 1})
	if len(done) != 1 || !slices.Equal(done[0].Skipped, []string{bad}) {
		t.Fatalf("done %+v", done)
	}
	found, err := tb.open(Options{}).Find(t.Context(), tb.latest(), podIs("pod-0000021"), []string{bad, good}, Limits{})
	if _, ok := found.Covered[bad]; err != nil || ok || len(found.Covered[good]) != 1 {
		t.Errorf("found %+v, %v", found, err)
	}
	if again := tb.index(Policy{MinFiles: 1}); len(again) != 0 {
		t.Errorf("the damaged file makes a job each time: %+v", again)
	}
}

// TestLimits: what would cost too much is left to the caller.
func TestLimits(t *testing.T) {
	tb := newTable(t, nil)
	path := tb.write(0, 1, pods(0, 50)...)
	tb.index(Policy{MinFiles: 1})
	all := series.Selector{Range: series.AllTime}
	for _, c := range []struct {
		name    string
		limit   Limits
		covered int
	}{{"none", Limits{}, 1}, {"series", Limits{Series: 49}, 0}, {"enough", Limits{Series: 50}, 1}, {"bytes", Limits{Bytes: 10}, 0}} {
		t.Run(c.name, func(t *testing.T) {
			found, err := tb.open(Options{}).Find(t.Context(), tb.latest(), all, []string{path}, c.limit)
			if err != nil || len(found.Covered) != c.covered {
				t.Errorf("%d covered, %v", len(found.Covered), err)
			}
		})
	}
}
