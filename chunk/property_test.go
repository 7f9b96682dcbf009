package chunk

import (
	"context"
	"encoding/json"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"pgregory.net/rapid"

	"cardinalsin/internal/merge"
	"cardinalsin/series"
)

// What goes wrong, goes wrong at such names and values.
var (
	weirdNames = []string{
		"host", "Host", "HOST", "value", "Value", "_value", "start_time_unix_nano", "__value", "timestamp", "nanos", "metric_name",
		"series_id", "histogram", "labels_overflow", "date", "shard", "_", "__", "a.b", "labels_overflow.key_value.key",
		"labels_overflow.key_value.value", "a b", "a,b", "a=b", "tab\tname", "nul\x00name", "é", "É", "ſ", "K", "k",
		"İ", "ı", "\U0010ffff", "key", "value ", strings.Repeat("n", 254), strings.Repeat("n", 255), strings.Repeat("n", 256), "z",
	}
	weirdValues = []string{
		"a", "b", "c", " ", "\x00", "ü", "\U0010ffff", strings.Repeat("\U0010ffff", 70), strings.Repeat("x", 32),
		strings.Repeat("x", 33), strings.Repeat("y", 40), strings.Repeat("z", 300), "\x7f", strings.Repeat("\x7e", 40) + "a", "null", "\"", "�",
	}
	weirdFloats = []uint64{
		0, 1 << 63, math.Float64bits(1), math.Float64bits(-1), math.Float64bits(math.Inf(1)), math.Float64bits(math.Inf(-1)),
		0x7ff0000000000002 /* stale marker */, 0x7ff8000000000001, 0xfff8000000000123, 1, math.MaxUint64, math.Float64bits(math.MaxFloat64),
	}
)

// genSeries makes sorted series of one day.
func genSeries(t *rapid.T) []Series {
	day := series.Date(rapid.SampledFrom([]int32{-719162, -1, 0, 20000, 2932896}).Draw(t, "day")).Range()
	byLabels := map[string]Series{}
	histograms := rapid.Bool().Draw(t, "histograms")
	for range rapid.IntRange(1, 9).Draw(t, "series") {
		pairs := map[string]string{series.MetricName: rapid.SampledFrom([]string{"a", "b", "é", strings.Repeat("m", 300)}).Draw(t, "metric")}
		for range rapid.IntRange(0, 6).Draw(t, "labels") {
			pairs[rapid.SampledFrom(weirdNames).Draw(t, "name")] = rapid.SampledFrom(weirdValues).Draw(t, "val")
		}
		l := labels.FromMap(pairs)
		byLabels[l.String()] = Series{Labels: l, ID: series.IDOf(l)}
	}
	var out []Series
	for _, key := range slices.Sorted(mapKeys(byLabels)) {
		s := byLabels[key]
		at := map[[2]int64]bool{}
		for range rapid.IntRange(1, 12).Draw(t, "samples") {
			p := series.Sample{
				Time:  day.Min + series.Timestamp(rapid.Int64Range(0, int64(day.Max-day.Min)).Draw(t, "time")),
				Value: math.Float64frombits(rapid.OneOf(rapid.SampledFrom(weirdFloats), rapid.Uint64()).Draw(t, "bits")),
			}
			if rapid.IntRange(0, 3).Draw(t, "with nanos") == 0 {
				p.Nanos = uint16(rapid.IntRange(0, 999).Draw(t, "nanos"))
			}
			if rapid.IntRange(0, 2).Draw(t, "with start") == 0 {
				p.Start = rapid.OneOf(rapid.SampledFrom([]int64{1, -1, math.MaxInt64, math.MinInt64}), rapid.Int64()).Draw(t, "start")
			}
			if histograms && rapid.Bool().Draw(t, "is histogram") {
				p.Value, p.Histogram = 0, rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "histogram")
			}
			if k := [2]int64{int64(p.Time), int64(p.Nanos)}; !at[k] {
				at[k] = true
				s.Samples = append(s.Samples, p)
			}
		}
		slices.SortFunc(s.Samples, series.Sample.Compare)
		out = append(out, s)
	}
	return sorted(out)
}

func mapKeys[V any](m map[string]V) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func genOptions(t *rapid.T) Options {
	return Options{
		RowGroupRows: rapid.IntRange(3, 60).Draw(t, "row group"),
		PageRows:     rapid.IntRange(1, 20).Draw(t, "page"),
		SplitValues:  rapid.Bool().Draw(t, "split"),
	}
}

func genMatcher(t *rapid.T, in []Series) *labels.Matcher {
	name := rapid.OneOf(rapid.SampledFrom(labelNames(in)), rapid.SampledFrom(weirdNames), rapid.Just("absent")).Draw(t, "matcher name")
	kind := rapid.SampledFrom([]labels.MatchType{labels.MatchEqual, labels.MatchNotEqual, labels.MatchRegexp, labels.MatchNotRegexp}).Draw(t, "kind")
	value := rapid.OneOf(rapid.SampledFrom(weirdValues), rapid.SampledFrom([]string{"", "a", "b", "m"})).Draw(t, "matcher value")
	if kind == labels.MatchRegexp || kind == labels.MatchNotRegexp {
		value = rapid.SampledFrom([]string{"", ".*", ".+", "a|b", "a|", "x+", "(?i)A", "m.*", "[a-b]", "xx.*", "é|a", "z{300}"}).Draw(t, "regex")
	}
	return labels.MustNewMatcher(kind, name, value)
}

// TestRoundTrip: what is written is read, bit for bit, and the file's
// description of itself is true.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		in := genSeries(rt)
		layout := grown(t, in, rapid.IntRange(0, 40).Draw(rt, "max labels"))
		enc, err := Encode(genOptions(rt), layout, merge.Slice(in))
		if err != nil {
			rt.Fatal(err)
		}
		if err := Verify(enc.Data); err != nil {
			rt.Fatal(err)
		}
		if !enc.Fits(layout) {
			rt.Fatal("does not fit its own layout")
		}
		got, err := read(enc.Data, everything)
		if err != nil {
			rt.Fatal(err)
		}
		if d := diff(in, got); d != "" {
			rt.Fatalf("-want +got:\n%s", d)
		}
		checkDescription(rt, layout, enc, in)
	})
}

// checkDescription compares statistics, bounds and footer with the rows.
func checkDescription(t *rapid.T, layout *Layout, enc *Encoded, in []Series) {
	var rows int64
	span := series.TimeRange{Min: series.MaxTimestamp, Max: series.MinTimestamp}
	bounds := map[string]Bounds{}
	check := func(column string, lower, upper bool) { // of one row's value
		if !lower || !upper {
			t.Fatalf("column %s: a value lies outside [%s, %s]", column, enc.Stats.Min[column], enc.Stats.Max[column])
		}
	}
	text := func(column, v string) {
		lo, hi := enc.Stats.Min[column], enc.Stats.Max[column]
		check(column, lo == nil || unquote(t, lo) <= v, hi == nil || unquote(t, hi) >= v)
		if lo != nil && len([]rune(unquote(t, lo))) > 32 || hi != nil && len([]rune(unquote(t, hi))) > 65 {
			t.Fatalf("column %s: bounds are not cut", column)
		}
	}
	nulls := map[string]int64{}
	for _, s := range in {
		n := int64(len(s.Samples))
		rows += n
		s.Labels.Range(func(l labels.Label) {
			if l.Name == series.MetricName {
				text(ColumnMetricName, l.Value)
				return
			}
			column, ok := layout.Column(l.Name)
			if !ok {
				return
			}
			text(column, l.Value)
			nulls[column] -= n
			b, seen := bounds[l.Name]
			if !seen {
				b = Bounds{Min: l.Value, Max: l.Value}
			}
			bounds[l.Name] = Bounds{min(b.Min, l.Value), max(b.Max, l.Value), b.Rows + n}
		})
		id := int64(s.ID)
		check(ColumnSeriesID, number[int64](t, enc.Stats.Min[ColumnSeriesID]) <= id, number[int64](t, enc.Stats.Max[ColumnSeriesID]) >= id)
		k := enc.Keys
		name := s.Labels.Get(series.MetricName)
		if name < k.MinName || name == k.MinName && s.ID < k.MinID ||
			k.Bounded && (name > k.MaxName || name == k.MaxName && s.ID > k.MaxID) {
			t.Fatalf("key of %s outside %+v", s.Labels, k)
		}
		for _, p := range s.Samples {
			span = span.Union(series.TimeRange{Min: p.Time, Max: p.Time})
			lo, hi := instant(t, enc.Stats.Min[ColumnTimestamp]), instant(t, enc.Stats.Max[ColumnTimestamp])
			check(ColumnTimestamp, lo <= p.Time, p.Time <= hi+999)
			if p.Nanos == 0 {
				nulls[ColumnNanos]++
			} else {
				v := int64(p.Nanos)
				check(ColumnNanos, number[int64](t, enc.Stats.Min[ColumnNanos]) <= v, v <= number[int64](t, enc.Stats.Max[ColumnNanos]))
			}
			if p.Start == 0 {
				nulls[ColumnStart]++
			} else {
				check(ColumnStart, number[int64](t, enc.Stats.Min[ColumnStart]) <= p.Start, p.Start <= number[int64](t, enc.Stats.Max[ColumnStart]))
			}
			if p.Histogram != nil {
				nulls[ColumnValue]++
				continue
			}
			nulls[ColumnHistogram]++
			// SQL orders NaN above every number.
			if lo := enc.Stats.Min[ColumnValue]; lo != nil {
				check(ColumnValue, math.IsNaN(p.Value) || number[float64](t, lo) <= p.Value, true)
			}
			if hi := enc.Stats.Max[ColumnValue]; hi != nil {
				check(ColumnValue, true, number[float64](t, hi) >= p.Value)
			}
		}
	}
	if rows != enc.Rows || rows != enc.Stats.NumRecords || int64(len(in)) != enc.Series || span != enc.Time {
		t.Fatalf("rows %d of %d, series %d of %d, time %v of %v", enc.Rows, rows, enc.Series, len(in), enc.Time, span)
	}
	if len(bounds) != len(enc.Labels) {
		t.Fatalf("bounds of %v, want %v", enc.Labels, bounds)
	}
	for name, b := range bounds {
		if enc.Labels[name] != b {
			t.Fatalf("label %q: %+v, want %+v", name, enc.Labels[name], b)
		}
	}
	fixedCounted := []string{ColumnTimestamp, ColumnMetricName, ColumnSeriesID, ColumnValue, ColumnNanos, ColumnStart, ColumnHistogram}
	for i, label := range layout.Labels() {
		column, _ := layout.Column(label)
		if i >= 32 {
			if _, ok := enc.Stats.NullCount[column]; ok {
				t.Fatalf("column %s is past the 32 with statistics", column)
			}
			continue
		}
		nulls[column] += rows
		fixedCounted = append(fixedCounted, column)
	}
	for _, column := range fixedCounted {
		raw, ok := enc.Stats.NullCount[column]
		if !ok || number[int64](t, raw) != nulls[column] {
			t.Fatalf("column %s: null count %s, want %d", column, raw, nulls[column])
		}
	}
}

func unquote(t *rapid.T, raw json.RawMessage) string {
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		t.Fatalf("%s: %v", raw, err)
	}
	return s
}

func number[N int64 | float64](t *rapid.T, raw json.RawMessage) N {
	var n N
	if err := json.Unmarshal(raw, &n); err != nil {
		t.Fatalf("%s: %v", raw, err)
	}
	return n
}

func instant(t *rapid.T, raw json.RawMessage) series.Timestamp {
	at, err := time.Parse("2006-01-02T15:04:05.000Z", unquote(t, raw))
	if err != nil {
		t.Fatal(err)
	}
	return series.FromTime(at)
}

// TestSelect: pruning and selective decoding change nothing in the answer.
func TestSelect(t *testing.T) {
	ctx := context.Background()
	rapid.Check(t, func(rt *rapid.T) {
		in := genSeries(rt)
		enc, err := Encode(genOptions(rt), grown(t, in, rapid.IntRange(0, 40).Draw(rt, "max labels")), merge.Slice(in))
		if err != nil {
			rt.Fatal(err)
		}
		f, err := Open(ctx, BytesSource("test", enc.Data), int64(len(enc.Data)))
		if err != nil {
			rt.Fatal(err)
		}
		sel := everything
		if rapid.Bool().Draw(rt, "limit time") {
			a := rapid.SampledFrom(in).Draw(rt, "a").Samples
			b := rapid.SampledFrom(in).Draw(rt, "b").Samples
			sel.Range = series.TimeRange{Min: a[len(a)/2].Time, Max: b[len(b)/2].Time}
		}
		for range rapid.IntRange(0, 3).Draw(rt, "matchers") {
			sel.Matchers = append(sel.Matchers, genMatcher(rt, in))
		}
		// Rows of some row groups, told by reading each whole.
		picked := []int{}
		var parts []merge.Source
		for g := range f.RowGroups() {
			if rapid.IntRange(0, 3).Draw(rt, "leave out") == 0 {
				continue
			}
			picked = append(picked, g)
			part, err := collect(f.Select(ctx, everything, []int{g}))
			if err != nil {
				rt.Fatal(err)
			}
			parts = append(parts, merge.Source{Series: merge.Slice(part)})
		}
		whole, err := collect(merge.Sources(parts...))
		if err != nil {
			rt.Fatal(err)
		}
		if len(picked) == len(f.RowGroups()) {
			if d := diff(in, whole); d != "" {
				rt.Fatalf("row group by row group: -want +got:\n%s", d)
			}
		}
		got, err := collect(f.Select(ctx, sel, picked))
		if err != nil {
			rt.Fatal(err)
		}
		want := filter(whole, sel)
		if d := diff(want, got); d != "" {
			rt.Fatalf("%v: -want +got:\n%s", sel, d)
		}
		// Series reports a superset in time, exact in labels.
		names, err := collect(f.Series(ctx, sel, picked))
		if err != nil {
			rt.Fatal(err)
		}
		listed := map[string]bool{}
		for _, s := range names {
			if !sel.Matches(s.Labels) || s.Samples != nil {
				rt.Fatalf("Series yields %s, %d samples", s.Labels, len(s.Samples))
			}
			listed[s.Labels.String()] = true
		}
		for _, s := range want {
			if !listed[s.Labels.String()] {
				rt.Fatalf("Series leaves out %s", s.Labels)
			}
		}
	})
}

// TestEncoderEqualsEncode: a file written a row group at a time by announced
// contents holds the same rows; what was not announced is refused.
func TestEncoderEqualsEncode(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		in := genSeries(rt)
		layout := grown(t, in, rapid.IntRange(0, 40).Draw(rt, "max labels"))
		contents := Contents{Labels: append(labelNames(in), "unused", "unused too"), Nanos: true, Starts: true, Histograms: true}
		e := NewEncoder(genOptions(rt), layout, contents)
		for _, s := range in {
			if err := e.Add(s); err != nil {
				rt.Fatal(err)
			}
		}
		enc, err := e.Finish()
		if err != nil {
			rt.Fatal(err)
		}
		got, err := read(enc.Data, everything)
		if err != nil {
			rt.Fatal(err)
		}
		if d := diff(in, got); d != "" {
			rt.Fatalf("-want +got:\n%s", d)
		}
		// Contents of the file are enough to write it again.
		f, err := Open(context.Background(), BytesSource("test", enc.Data), int64(len(enc.Data)))
		if err != nil {
			rt.Fatal(err)
		}
		again := NewEncoder(Options{}, layout, f.Contents())
		for _, s := range got {
			if err := again.Add(s); err != nil {
				rt.Fatal(err)
			}
		}
		if _, err := again.Finish(); err != nil {
			rt.Fatal(err)
		}
	})
}

func TestBoundsOfText(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := rapid.OneOf(rapid.String(), rapid.SampledFrom(weirdValues),
			rapid.StringOfN(rapid.SampledFrom([]rune{'a', 0x7e, 0x7f, 0x80, 0x10fffe, 0x10ffff}), 0, 90, -1)).Draw(rt, "s")
		n := rapid.IntRange(1, 40).Draw(rt, "n")
		if lo := cutChars(s, n); lo > s || len([]rune(lo)) > n {
			rt.Fatalf("lower bound %q of %q", lo, s)
		}
		hi, ok := upperBound(s, n)
		if ok && (hi < s || len([]rune(hi)) > 2*n+1) {
			rt.Fatalf("upper bound %q of %q", hi, s)
		}
		if !ok && !strings.HasPrefix(s, string([]rune(s)[:n])+strings.Repeat("\U0010ffff", n)) {
			rt.Fatalf("no upper bound of %q", s)
		}
	})
	for _, tc := range []struct{ in, want string }{
		{"abc", "abc"},
		{"abcd", "abcd"},
		{"abcde", "abcd\x7f"},
		{"abcd\x7f", "abcd\U0010ffff"},
		{"abcdü", "abcd\U0010ffff"},
		{"abcd\U0010ffffe", "abcd\U0010ffff\x7f"},
	} {
		if got, ok := upperBound(tc.in, 4); !ok || got != tc.want {
			t.Errorf("upperBound(%q) = %q, %v; want %q", tc.in, got, ok, tc.want)
		}
	}
	if got, ok := upperBound(strings.Repeat("\U0010ffff", 9), 4); ok {
		t.Errorf("nothing is above nine times U+10FFFF, got %q", got)
	}
}
