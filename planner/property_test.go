package planner

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"pgregory.net/rapid"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/internal/merge"
	"cardinalsin/series"
	"cardinalsin/shard"
)

// Values that stress bounds: neighbours in byte order, texts longer than the
// 32 characters of statistics and the 96 bytes of a key tag, and characters
// around those that bounds are cut with.
var (
	long   = strings.Repeat("n", 40)
	values = []string{
		"a", "ab", "b", "c", "A", "a.b", "|", "\x7f", "é", "\U0010ffff",
		long, long + "a", long + "b", long + "\x7f", strings.Repeat("\U0010ffff", 33), strings.Repeat("\U0010ffff", 70),
		strings.Repeat("n", 31) + "\U0010ffff" + "x",
	}
	metrics  = []string{"a", "ab", "b", "cpu", "mem", long, long + "x", strings.Repeat("m", 120), strings.Repeat("m", 120) + "x"}
	names    = []string{"pod", "zone", "loose"} // loose has no column
	patterns = []string{".*", ".+", "a|b", "a.*", "(?i)a.*", "[a-c]", "a?", "a|", "|b", "(a|b)b?", "^a$", long + ".*", "n+", ".*b", "x{0}"}
)

// TestPrunedEqualsUnpruned is finding F18 for file skipping: whatever the
// data, the facts that are lost, and the matchers, no file that holds a
// selected sample is skipped. What was parsed for a plan is true in the next.
func TestPrunedEqualsUnpruned(t *testing.T) {
	skipped := map[Reason]int{}
	rapid.Check(t, func(t *rapid.T) {
		tb := newTable(t, tableOptions{labels: []string{"pod", "zone"}, shards: genShards(t)})
		files := genFiles(t, tb)
		var adds []action.Add
		for _, f := range files {
			adds = append(adds, f.add)
		}
		snap := tb.add(t, adds...)
		// Some of the files are remembered, all of them, or none.
		kept := New(rapid.SampledFrom([]int64{0, 5_000, 1 << 20}).Draw(t, "bytes kept"))
		for range 8 {
			sel := genSelector(t)
			scan, err := kept.Plan(snap, sel)
			if err != nil {
				t.Fatal(err)
			}
			if anew, err := new(Planner).Plan(snap, sel); err != nil || !reflect.DeepEqual(scan.Skipped, anew.Skipped) {
				t.Fatalf("skipped %v, and %v (%v) where nothing is remembered", scan.Skipped, anew.Skipped, err)
			}
			for r, n := range scan.Skipped {
				skipped[r] += n
			}
			planned := map[string]bool{}
			for _, f := range scan.Files {
				planned[f.Add.Path] = true
			}
			for _, f := range files {
				if s, ok := f.selected(sel); ok && !planned[f.add.Path] {
					t.Fatalf("skipped a file with %s\nselector %v %+v\nadd %+v", s, sel.Matchers, sel.Range, f.add)
				}
			}
		}
	})
	for _, r := range Reasons {
		if skipped[r] == 0 && r != ReasonIndex { // which is for readers to find
			t.Errorf("no file was ever skipped by %s: the test has no power", r)
		}
	}
}

// dataFile is an add and what its file holds.
type dataFile struct {
	add    action.Add
	series []chunk.Series
}

func (f *dataFile) selected(sel series.Selector) (string, bool) {
	for _, s := range f.series {
		if !sel.Matches(s.Labels) {
			continue
		}
		for _, p := range s.Samples {
			if sel.Range.Contains(p.Time) {
				return fmt.Sprintf("%s at %d", s.Labels, p.Time), true
			}
		}
	}
	return "", false
}

func genShards(t *rapid.T) shard.Map {
	m := shard.Initial()
	for range rapid.IntRange(0, 4).Draw(t, "splits") {
		metric := rapid.SampledFrom(metrics).Draw(t, "split at")
		key := shard.KeyOf(labels.FromStrings(series.MetricName, metric), series.ID(rapid.Uint64().Draw(t, "low half")))
		if next, err := m.Split(m.Of(key), key); err == nil {
			m = next
		}
	}
	return m
}

func genTime(t *rapid.T, label string) series.Timestamp {
	offset := rapid.SampledFrom([]int64{-1, 0, 1, 998, 999, 1000, 1001, 1999, 2000}).Draw(t, label)
	return day + series.Timestamp(offset) + series.Timestamp(rapid.IntRange(-1, 1).Draw(t, label+" day"))*86400_000_000
}

// genFiles writes random series as real files, cut by day and shard, with
// some of the facts about them lost.
func genFiles(t *rapid.T, tb *table) []dataFile {
	type place struct {
		date  series.Date
		shard shard.ID
		part  int
	}
	groups := map[place]map[string]*chunk.Series{}
	for range rapid.IntRange(1, 12).Draw(t, "samples") {
		pairs := []string{series.MetricName, rapid.SampledFrom(metrics).Draw(t, "metric")}
		for _, n := range names {
			if v := rapid.SampledFrom(append([]string{""}, values...)).Draw(t, n); v != "" && rapid.Bool().Draw(t, n+" present") {
				pairs = append(pairs, n, v)
			}
		}
		ls := labels.FromStrings(pairs...)
		at := genTime(t, "time")
		id := series.IDOf(ls)
		p := place{at.Date(), tb.shards.Of(shard.KeyOf(ls, id)), rapid.IntRange(0, 2).Draw(t, "part")}
		if groups[p] == nil {
			groups[p] = map[string]*chunk.Series{}
		}
		s := groups[p][ls.String()]
		if s == nil {
			s = &chunk.Series{Labels: ls, ID: id}
			groups[p][ls.String()] = s
		}
		s.Samples = append(s.Samples, series.Sample{Time: at})
	}
	var files []dataFile
	for p, group := range groups {
		f := dataFile{}
		for _, s := range group {
			slices.SortFunc(s.Samples, series.Sample.Compare)
			s.Samples = slices.CompactFunc(s.Samples, func(a, b series.Sample) bool { return a.Compare(b) == 0 })
			f.series = append(f.series, *s)
		}
		slices.SortFunc(f.series, func(a, b chunk.Series) int { return a.Compare(&b) })
		e, err := chunk.Encode(chunk.Options{}, tb.layout, merge.Slice(f.series))
		if err != nil {
			t.Fatalf("encode: %v", err)
		}
		stats, err := e.Stats.Encode()
		if err != nil {
			t.Fatalf("encode statistics: %v", err)
		}
		f.add = action.Add{
			Path: fmt.Sprintf("%s/%s/%d", p.date, p.shard, p.part), Size: 1, DataChange: true,
			PartitionValues: action.ObjectOf(map[string]string{chunk.ColumnDate: p.date.String(), chunk.ColumnShard: string(p.shard)}),
			Stats:           stats,
			Tags:            chunk.Tags{Order: chunk.Order{Lo: 1, Hi: 1}, Time: e.Time, Keys: e.Keys}.Encode(),
		}
		lose(t, &f.add, e.Stats)
		files = append(files, f)
	}
	slices.SortFunc(files, func(a, b dataFile) int { return strings.Compare(a.add.Path, b.add.Path) })
	return files
}

// lose takes facts away, as other writers and damage do.
func lose(t *rapid.T, a *action.Add, st action.Stats) {
	if rapid.Bool().Draw(t, "lose tags") {
		a.Tags = ""
	}
	switch rapid.IntRange(0, 6).Draw(t, "lose") {
	case 0:
		a.Stats = ""
	case 1:
		a.Stats = a.Stats[:len(a.Stats)/2]
	case 2:
		a.PartitionValues = ""
	case 3:
		drop := slices.Sorted(maps.Keys(st.NullCount))
		column := rapid.SampledFrom(drop).Draw(t, "drop")
		switch rapid.IntRange(0, 3).Draw(t, "drop what") {
		case 0:
			delete(st.Min, column)
		case 1:
			delete(st.Max, column)
		case 2:
			delete(st.NullCount, column)
		case 3:
			st.NumRecords = 0
		}
		text, err := st.Encode()
		if err != nil {
			t.Fatalf("encode statistics: %v", err)
		}
		a.Stats = text
	}
}

func genSelector(t *rapid.T) series.Selector {
	sel := series.Selector{Range: series.AllTime}
	if rapid.Bool().Draw(t, "range") {
		sel.Range = series.TimeRange{Min: genTime(t, "from"), Max: genTime(t, "to")}
	}
	for range rapid.IntRange(0, 3).Draw(t, "matchers") {
		name, pool := series.MetricName, metrics
		if rapid.Bool().Draw(t, "on a label") {
			name, pool = rapid.SampledFrom(names).Draw(t, "label"), values
		}
		typ := rapid.SampledFrom([]labels.MatchType{labels.MatchEqual, labels.MatchNotEqual, labels.MatchRegexp, labels.MatchNotRegexp}).Draw(t, "type")
		value := rapid.SampledFrom(append([]string{""}, pool...)).Draw(t, "value")
		if (typ == labels.MatchRegexp || typ == labels.MatchNotRegexp) && rapid.Bool().Draw(t, "pattern") {
			value = rapid.SampledFrom(patterns).Draw(t, "regexp")
		}
		m, err := labels.NewMatcher(typ, name, value)
		if err != nil {
			t.Fatalf("matcher: %v", err)
		}
		sel.Matchers = append(sel.Matchers, m)
	}
	return sel
}
