package chunk

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/action"
	"cardinalsin/internal/merge"
	"cardinalsin/series"
)

// with returns the series with samples at the given times.
func with(s Series, times ...series.Timestamp) Series {
	for _, t := range times {
		s.Samples = append(s.Samples, series.Sample{Time: t})
	}
	return s
}

func TestEncodeRefuses(t *testing.T) {
	raw := func(pairs ...string) Series {
		l := labels.FromStrings(pairs...)
		return Series{Labels: l, ID: series.IDOf(l)}
	}
	forged := mk("a")
	forged.ID++
	nanos := with(mk("a"), 1)
	nanos.Samples[0].Nanos = 1000
	day := series.Date(1).Start()
	for _, tc := range []struct {
		name string
		in   []Series
		also error
	}{
		{"nothing", nil, nil},
		{"only series without samples", []Series{mk("a")}, nil},
		{"series out of order", []Series{with(mk("b"), 1), with(mk("a"), 1)}, nil},
		{"series twice", []Series{with(mk("a"), 1), with(mk("a"), 2)}, nil},
		{"samples out of order", []Series{with(mk("a"), 2, 1)}, nil},
		{"sample twice", []Series{with(mk("a"), 1, 1)}, nil},
		{"two days in a series", []Series{with(mk("a"), day-1, day)}, nil},
		{"two days in two series", []Series{with(mk("a"), day-1), with(mk("b"), day)}, nil},
		{"before the year 1", []Series{with(mk("a"), series.MinTimestamp-1)}, nil},
		{"after the year 9999", []Series{with(mk("a"), series.MaxTimestamp+1)}, nil},
		{"no metric name", []Series{with(raw("host", "x"), 1)}, series.ErrNoMetricName},
		{"ID of another series", []Series{with(forged, 1)}, nil},
		{"1000 nanoseconds", []Series{nanos}, nil},
		{"label value is no UTF-8", []Series{with(mk("a", "host", "\xff"), 1)}, series.ErrInvalidLabel},
		{"overflow value is no UTF-8", []Series{with(mk("a", "bad name", "\xff"), 1)}, series.ErrInvalidLabel},
		{"label name is no UTF-8", []Series{with(mk("a", "\xff", "x"), 1)}, series.ErrInvalidLabel},
		{"empty label name", []Series{with(mk("a", "", "x"), 1)}, series.ErrInvalidLabel},
		{"metric name is no UTF-8", []Series{with(mk("\xff"), 1)}, series.ErrInvalidLabel},
		{"empty label value", []Series{with(mk("a", "host", ""), 1)}, series.ErrInvalidLabel},
		{"label set too large", []Series{with(mk("a", "host", strings.Repeat("x", maxValueBytes/2), "job", strings.Repeat("x", maxValueBytes/2)), 1)}, series.ErrInvalidLabel},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Encode(Options{}, grown(t, tc.in, DefaultMaxLabels), merge.Slice(tc.in))
			if !errors.Is(err, ErrInvalidInput) || tc.also != nil && !errors.Is(err, tc.also) {
				t.Fatalf("got %v, want ErrInvalidInput and %v", err, tc.also)
			}
		})
	}
	t.Run("error of the sequence", func(t *testing.T) {
		boom := errors.New("boom")
		_, err := Encode(Options{}, grown(t, nil, 1), func(yield func(Series, error) bool) {
			_ = yield(with(mk("a"), 1), nil) && yield(Series{}, boom)
		})
		if !errors.Is(err, boom) {
			t.Fatalf("got %v", err)
		}
	})
	t.Run("label that was not announced", func(t *testing.T) {
		s := with(mk("a", "host", "x", "bad name", "y"), 1)
		for _, announced := range [][]string{nil, {"host"}, {"bad name"}} {
			e := NewEncoder(Options{}, grown(t, []Series{s}, DefaultMaxLabels), Contents{Labels: announced})
			if err := e.Add(s); !errors.Is(err, ErrInvalidInput) {
				t.Fatalf("%v: got %v", announced, err)
			}
			if _, err := e.Finish(); !errors.Is(err, ErrInvalidInput) {
				t.Fatalf("an encoder that failed must not finish: %v", err)
			}
		}
	})
	t.Run("samples that were not announced", func(t *testing.T) {
		h, n := with(mk("a"), 1), with(mk("a"), 1)
		h.Samples[0].Histogram = []byte{}
		n.Samples[0].Nanos = 1
		st := with(mk("a"), 1)
		st.Samples[0].Start = 1
		for _, s := range []Series{h, n, st} {
			if err := NewEncoder(Options{}, grown(t, nil, 1), Contents{}).Add(s); !errors.Is(err, ErrInvalidInput) {
				t.Fatalf("got %v", err)
			}
		}
	})
	t.Run("finish twice", func(t *testing.T) {
		e := NewEncoder(Options{}, grown(t, nil, 1), Contents{})
		if err := e.Add(with(mk("a"), 1)); err != nil {
			t.Fatal(err)
		}
		if _, err := e.Finish(); err != nil {
			t.Fatal(err)
		}
		if _, err := e.Finish(); !errors.Is(err, ErrInvalidInput) {
			t.Fatalf("got %v", err)
		}
	})
}

// TestFits: a file may join a schema in which its labels still own their
// columns, and no other.
func TestFits(t *testing.T) {
	in := []Series{with(mk("a", "Rack", "x"), 1)}
	enc := encode(t, Options{}, in)
	base := BaseSchema()
	empty, err := LayoutOf(base)
	if err != nil {
		t.Fatal(err)
	}
	// Another writer grew by "rack" first, and ours came on top of it.
	clash := BaseSchema()
	clash.Fields = append(clash.Fields, empty.Grow([]string{"rack"})...)
	clash.Fields = append(clash.Fields, empty.Grow([]string{"Rack"})...)
	clashed, err := LayoutOf(clash)
	if err != nil {
		t.Fatal(err)
	}
	// Ours came first.
	wider := grown(t, append(in, mk("b", "rack", "x", "other", "y")), DefaultMaxLabels)
	if _, ok := wider.Column("Rack"); ok {
		t.Fatal("rack should own the column here")
	}
	own := BaseSchema()
	own.Fields = append(own.Fields, empty.Grow([]string{"Rack", "other"})...)
	owned, err := LayoutOf(own)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		layout *Layout
		want   bool
	}{
		{"the schema it was made for, grown", owned, true},
		{"a schema without the column", empty, false},
		{"the clash", clashed, false},
		{"a schema where the other came first", wider, false},
	} {
		if got := enc.Fits(tc.layout); got != tc.want {
			t.Errorf("%s: Fits is %v", tc.name, got)
		}
	}
	// A table that is too old for start times holds none.
	started := with(mk("a"), 1)
	started.Samples[0].Start = 7
	before := BaseSchema()
	before.Fields = slices.DeleteFunc(before.Fields, func(f action.Field) bool { return f.Name == ColumnStart })
	old, err := LayoutOf(before)
	if err != nil {
		t.Fatal(err)
	}
	if encode(t, Options{}, []Series{started}).Fits(old) {
		t.Error("start times without a column for them")
	}
	if !encode(t, Options{}, []Series{with(mk("a"), 1)}).Fits(old) {
		t.Error("a file without start times must fit an old table")
	}
	if _, err := Encode(Options{}, old, merge.Slice([]Series{started})); !errors.Is(err, ErrInvalidInput) {
		t.Errorf("start times into an old table: got %v", err)
	}
	if got := old.Grow(nil); len(got) != 1 || got[0].Name != ColumnStart {
		t.Errorf("an old table grows by %v", got)
	}
	// Encoded anew it fits, with the label in the overflow map.
	again, err := Encode(Options{}, clashed, merge.Slice(in))
	if err != nil {
		t.Fatal(err)
	}
	if !again.Fits(clashed) {
		t.Error("encoded anew it must fit")
	}
	got, err := read(again.Data, everything)
	if err != nil {
		t.Fatal(err)
	}
	if d := diff(in, got); d != "" {
		t.Error(d)
	}
}

// TestColumnNameLength: 255 bytes are a column, 256 are not.
func TestColumnNameLength(t *testing.T) {
	for n, want := range map[int]bool{255: true, 256: false} {
		name := strings.Repeat("n", n)
		if _, ok := grown(t, []Series{mk("a", name, "x")}, 10).Column(name); ok != want {
			t.Errorf("%d bytes: column is %v", n, ok)
		}
	}
}

// TestNoBoundsForNaN: SQL orders NaN above all numbers, so neither Delta's
// statistics nor Parquet's may bound a column that holds one.
func TestNoBoundsForNaN(t *testing.T) {
	s := with(mk("a"), 1, 2)
	s.Samples[0].Value = 5
	s.Samples[1].Value = math.Float64frombits(0x7ff0000000000002)
	enc := encode(t, Options{}, []Series{s})
	if got := enc.Stats.Max[ColumnValue]; got != nil {
		t.Errorf("maximum %s", got)
	}
	if got := string(enc.Stats.Min[ColumnValue]); got != "5" {
		t.Errorf("minimum %s", got)
	}
	for _, c := range parquetColumns(t, enc.Data) {
		if set, err := c.StatsSet(); err != nil || set && c.PathInSchema()[0] == ColumnValue {
			t.Errorf("column %s: statistics are set: %v, %v", c.PathInSchema(), set, err)
		}
	}
}

// TestRowGroupsByBytes: large labels and histograms end a row group, and a
// page, early.
func TestRowGroupsByBytes(t *testing.T) {
	s := mk("a")
	for i := range 12 {
		blob := make([]byte, maxPageBytes/2+i)
		for j := range blob {
			blob[j] = byte(j >> 12)
		}
		s.Samples = append(s.Samples, series.Sample{Time: series.Timestamp(i), Histogram: blob})
	}
	labelled := with(mk("b", "host", strings.Repeat("x", 4<<20)), 1, 2, 3)
	in := []Series{s, labelled, with(mk("c"), 1)}
	enc := encode(t, Options{rowGroupBytes: 4 << 20}, in)
	groups := reopen(t, enc.Data).RowGroups()
	var rows []int64
	for i := range groups {
		rows = append(rows, groups[i].Rows)
	}
	if d := cmp.Diff([]int64{7, 8, 1}, rows); d != "" {
		t.Errorf("rows of the row groups: -want +got:\n%s", d)
	}
	histogram := groups[0].columns[len(groups[0].columns)-1]
	p, err := splitPages(enc.Data[histogram.offset:histogram.end()], &histogram)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.data) != 4 {
		t.Errorf("%d pages of histograms, want 4", len(p.data))
	}
	got, err := read(enc.Data, everything)
	if err != nil {
		t.Fatal(err)
	}
	if d := diff(in, got); d != "" {
		t.Fatal("rows differ")
	}
	s.Samples = []series.Sample{{Histogram: make([]byte, maxValueBytes+1)}}
	if _, err := Encode(Options{}, grown(t, nil, 1), merge.Slice([]Series{s})); !errors.Is(err, ErrInvalidInput) {
		t.Fatalf("a histogram above the limit: got %v", err)
	}
}

func TestTags(t *testing.T) {
	for _, tags := range []Tags{
		{},
		{Level: 3, Order: Order{0, math.MaxInt64}, Time: series.AllTime, Keys: keyRangeOf("a,b/..%2C", 1, "é\x00", math.MaxUint64)},
		{Time: series.TimeRange{Min: -5, Max: -5}, WAL: []WALRange{{"w-1", 0, math.MaxUint64}, {"w-2", 3, 3}}, Keys: KeyRange{MinName: "x", MinID: 7}},
		{Keys: keyRangeOf(strings.Repeat("é", 200), 5, strings.Repeat("z", 200), 6)},
	} {
		got, ok, err := ParseTags(tags.Encode())
		if err != nil || !ok {
			t.Fatalf("%+v: %v, %v", tags, ok, err)
		}
		if d := cmp.Diff(tags, got); d != "" {
			t.Errorf("-want +got:\n%s", d)
		}
	}
	whole := map[string]string{TagLevel: "0", TagOrder: "1-2", TagTime: "-9..-3", TagKeys: "0000000000000000/a,00000000000000ff/b"}
	if _, ok, err := ParseTags(action.ObjectOf(whole)); err != nil || !ok {
		t.Fatal(ok, err)
	}
	for _, tc := range []struct{ key, value string }{
		{TagLevel, "x"}, {TagLevel, "-1"}, {TagLevel, ""},
		{TagOrder, "1"}, {TagOrder, "2-1"}, {TagOrder, "-1-2"}, {TagOrder, ""},
		{TagTime, "5"}, {TagTime, "5..4"}, {TagTime, "5-6"}, {TagTime, ""},
		{TagKeys, ""}, {TagKeys, "0/a,0/b"}, {TagKeys, "0000000000000000/a"}, {TagKeys, "0000000000000000/%zz,"},
		{TagWAL, "w"}, {TagWAL, "w:1"}, {TagWAL, "w:2-1"}, {TagWAL, ":1-2"}, {TagWAL, "w:1-2,"}, {TagWAL, "w:-1-2"},
	} {
		bad := map[string]string{tc.key: tc.value}
		for k, v := range whole {
			if k != tc.key {
				bad[k] = v
			}
		}
		if tc.value == "" {
			delete(bad, tc.key)
		}
		if _, _, err := ParseTags(action.ObjectOf(bad)); !errors.Is(err, ErrTags) {
			t.Errorf("%s=%q: got %v, want ErrTags", tc.key, tc.value, err)
		}
	}
	if _, ok, err := ParseTags(action.ObjectOf(map[string]string{"other": "x"})); ok || err != nil {
		t.Errorf("tags of another engine: %v, %v", ok, err)
	}
	if _, _, err := ParseTags(action.Object(`{"x":`)); !errors.Is(err, ErrTags) {
		t.Errorf("damaged object: %v", err)
	}
}

func TestMergeWAL(t *testing.T) {
	got := MergeWAL([]WALRange{{"b", 1, 2}, {"a", 5, 6}, {"a", 1, 2}, {"a", 3, 4}, {"b", 9, math.MaxUint64}, {"b", 10, 11}, {"a", 8, 8}})
	want := []WALRange{{"a", 1, 6}, {"a", 8, 8}, {"b", 1, 2}, {"b", 9, math.MaxUint64}}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

// TestKeyRangesOverlap: ranges that are said to be disjoint share no series.
func TestKeyRangesOverlap(t *testing.T) {
	var pool []Series
	for _, name := range []string{"a", "b", strings.Repeat("l", 200), strings.Repeat("l", 200) + "m", strings.Repeat("\U0010ffff", 150)} {
		for i := range 3 {
			pool = append(pool, mk(name, "i", fmt.Sprint(i)))
		}
	}
	sorted(pool)
	keys := func(i, j int) KeyRange {
		return keyRangeOf(pool[i].Labels.Get(series.MetricName), pool[i].ID, pool[j].Labels.Get(series.MetricName), pool[j].ID)
	}
	disjoint := 0
	for a := range pool {
		for b := a; b < len(pool); b++ {
			for c := range pool {
				for d := c; d < len(pool); d++ {
					share := a <= d && c <= b
					x, y := keys(a, b), keys(c, d)
					if share && !x.Overlaps(y) {
						t.Fatalf("%+v and %+v share a series", x, y)
					}
					if !x.Overlaps(y) {
						disjoint++
					}
					if x.Overlaps(y) != y.Overlaps(x) {
						t.Fatalf("%+v and %+v: not symmetric", x, y)
					}
				}
			}
		}
	}
	if disjoint == 0 {
		t.Fatal("no two ranges are disjoint: the bounds say nothing")
	}
	if !(KeyRange{}).Overlaps(keys(0, 0)) {
		t.Error("the zero range covers every series")
	}
}

// TestSeriesAcrossRowGroups: one series, many row groups, any part of them.
func TestSeriesAcrossRowGroups(t *testing.T) {
	s := mk("a")
	for i := range 1000 {
		s.Samples = append(s.Samples, series.Sample{Time: series.Timestamp(i), Value: float64(i)})
	}
	f := reopen(t, encode(t, Options{RowGroupRows: 64, PageRows: 10}, []Series{s}).Data)
	for _, r := range []series.TimeRange{series.AllTime, {Min: 100, Max: 899}, {Min: 63, Max: 64}, {Min: 640, Max: 640}, {Min: 1000, Max: 2000}} {
		sel := series.Selector{Range: r}
		got, err := collect(f.Select(context.Background(), sel, nil))
		if err != nil {
			t.Fatal(err)
		}
		if d := diff(filter([]Series{s}, sel), got); d != "" {
			t.Errorf("%v: -want +got:\n%s", r, d)
		}
	}
}
