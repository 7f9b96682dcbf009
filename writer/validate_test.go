package writer

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
	"pgregory.net/rapid"

	"cardinalsin/series"
	"cardinalsin/wal"
)

// rawLabels builds a label set as given, in any order and with duplicates.
func rawLabels(pairs ...string) series.Labels {
	b := labels.NewScratchBuilder(len(pairs) / 2)
	for i := 0; i < len(pairs); i += 2 {
		b.Add(pairs[i], pairs[i+1])
	}
	return b.Labels()
}

// Every batch here has a good series first and last: one bad part refuses the
// whole, and nothing of it is stored, in the WAL or in the head.
func TestAppendRefuses(t *testing.T) {
	good := func(name string) series.Series {
		return series.Series{Labels: rawLabels(series.MetricName, name), Samples: []series.Sample{at0(0, 1)}}
	}
	scattered := make([]series.Sample, maxPartFiles+1)
	for i := range scattered {
		scattered[i] = at0(int64(i)*24*3600*1_000_000, 1)
	}
	ok := []series.Sample{at0(1, 2)}
	for name, c := range map[string]struct {
		bad  series.Series
		want error
	}{
		"no labels":           {series.Series{Samples: ok}, series.ErrNoMetricName},
		"no metric name":      {series.Series{Labels: rawLabels("job", "a"), Samples: ok}, series.ErrNoMetricName},
		"empty metric name":   {series.Series{Labels: rawLabels(series.MetricName, "", "job", "a"), Samples: ok}, series.ErrNoMetricName},
		"no name no samples":  {series.Series{Labels: rawLabels("job", "a")}, series.ErrNoMetricName},
		"duplicate label":     {series.Series{Labels: rawLabels(series.MetricName, "up", "job", "a", "job", "b"), Samples: ok}, series.ErrDuplicateLabel},
		"unsorted labels":     {series.Series{Labels: rawLabels(series.MetricName, "up", "z", "a", "job", "b"), Samples: ok}, series.ErrUnsortedLabels},
		"empty label name":    {series.Series{Labels: rawLabels("", "a", series.MetricName, "up"), Samples: ok}, series.ErrInvalidLabel},
		"name not UTF-8":      {series.Series{Labels: rawLabels(series.MetricName, "up", "job\xff", "a"), Samples: ok}, series.ErrInvalidLabel},
		"value not UTF-8":     {series.Series{Labels: rawLabels(series.MetricName, "up", "job", "a\xff"), Samples: ok}, series.ErrInvalidLabel},
		"before year 1":       {series.Series{Labels: rawLabels(series.MetricName, "up"), Samples: []series.Sample{{Time: series.MinTimestamp - 1}}}, ErrInvalidSample},
		"after year 9999":     {series.Series{Labels: rawLabels(series.MetricName, "up"), Samples: []series.Sample{{Time: series.MaxTimestamp + 1}}}, ErrInvalidSample},
		"least integer":       {series.Series{Labels: rawLabels(series.MetricName, "up"), Samples: []series.Sample{{Time: math.MinInt64}}}, ErrInvalidSample},
		"1000 nanoseconds":    {series.Series{Labels: rawLabels(series.MetricName, "up"), Samples: []series.Sample{{Time: day, Nanos: 1000}}}, ErrInvalidSample},
		"too many days":       {series.Series{Labels: rawLabels(series.MetricName, "up"), Samples: scattered}, ErrTooManyPartitions},
		"label set too large": {series.Series{Labels: rawLabels(series.MetricName, "up", "x", strings.Repeat("x", MaxLabelBytes)), Samples: ok}, series.ErrInvalidLabel},
		"histogram too large": {series.Series{Labels: rawLabels(series.MetricName, "up"), Samples: []series.Sample{{Time: day, Histogram: make([]byte, maxHistogramBytes+1)}}}, ErrInvalidSample},
		"batch too large": {series.Series{Labels: rawLabels(series.MetricName, "up"), Samples: slices.Repeat([]series.Sample{{
			Time: day, Histogram: make([]byte, maxHistogramBytes),
		}}, wal.MaxRecordBytes/maxHistogramBytes)}, wal.ErrRecordTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			w, _ := newWriter(t, Options{})
			var ev AppendEvent
			w.opts.Events.AppendEnd = func(e AppendEvent) { ev = e }
			b := series.Batch{good("first"), c.bad, good("last")}
			if err := w.Append(t.Context(), b); !errors.Is(err, c.want) {
				t.Fatalf("Append: %v, want %v", err, c.want)
			}
			if !errors.Is(ev.Err, c.want) || ev.Series != 3 {
				t.Errorf("event: %+v", ev)
			}
			if got := viewRows(w.Head()); len(got) != 0 {
				t.Errorf("the head holds\n%s", got)
			}
			if last := w.wal.LastSequence(); last != 0 {
				t.Errorf("the wal holds %d records", last)
			}
			mustAppend(t, w, series.Batch{good("first"), good("last")})
			if got := len(viewRows(w.Head())); got != 2 {
				t.Errorf("after a good batch the head holds %d rows, want 2", got)
			}
		})
	}
}

func TestAppendAccepts(t *testing.T) {
	w, store := newWriter(t, Options{})
	in := series.Batch{
		// An empty value is an absent label: both are one series.
		{Labels: rawLabels(series.MetricName, "up", "gone", "", "job", "a"), Samples: []series.Sample{at0(0, 1)}},
		{Labels: rawLabels(series.MetricName, "up", "job", "a"), Samples: []series.Sample{at0(1, 2)}},
		{Labels: rawLabels(series.MetricName, "idle")}, // no samples: ignored
		{Labels: rawLabels(series.MetricName, "bounds"), Samples: []series.Sample{{Time: series.MinTimestamp}, {Time: series.MaxTimestamp, Nanos: 999}}},
		{Labels: rawLabels(series.MetricName, "bits"), Samples: []series.Sample{
			at0(0, math.Copysign(0, -1)), at0(1, math.Float64frombits(0x7ff0000000000002)), at0(2, math.Inf(-1)),
			{Time: day + 3, Histogram: []byte("native histogram")}, {Time: day + 3, Nanos: 1, Value: 5},
		}},
	}
	before := fmt.Sprint(in)
	mustAppend(t, w, in)
	if got := fmt.Sprint(in); got != before {
		t.Errorf("the batch was changed:\n%s\nwas\n%s", got, before)
	}
	want := rows{}
	want.add(rawLabels(series.MetricName, "up", "job", "a"), []series.Sample{at0(0, 1), at0(1, 2)})
	want.addBatch(in[3:])
	if d := cmp.Diff(want, viewRows(w.Head()), cmp.AllowUnexported(point{})); d != "" {
		t.Errorf("head (-want +got):\n%s", d)
	}
	mustFlush(t, w)
	if d := cmp.Diff(want, tableRows(t, store), cmp.AllowUnexported(point{})); d != "" {
		t.Errorf("table (-want +got):\n%s", d)
	}
}

// Batches that hold nothing cost nothing.
func TestAppendNothing(t *testing.T) {
	w, _ := newWriter(t, Options{})
	for name, b := range map[string]series.Batch{
		"nil": nil, "empty": {}, "no samples": {{Labels: rawLabels(series.MetricName, "up")}},
	} {
		if err := w.Append(t.Context(), b); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if last := w.wal.LastSequence(); last != 0 {
		t.Errorf("the wal holds %d records", last)
	}
}

// Whatever is accepted can be flushed and read back bit for bit: a batch that
// no chunk takes would block every flush after it.
func TestAcceptedIsFlushable(t *testing.T) {
	w, store := newWriter(t, Options{MaxLabelColumns: 20})
	want := rows{}
	send := func(t interface{ Errorf(string, ...any) }, b series.Batch) {
		if err := w.Append(context.Background(), b); err != nil {
			if !errors.Is(err, series.ErrNoMetricName) && !errors.Is(err, series.ErrDuplicateLabel) && !errors.Is(err, series.ErrInvalidLabel) {
				t.Errorf("Append: %v", err)
			}
			return
		}
		for _, s := range b {
			want.add(s.Labels.WithoutEmpty(), s.Samples)
		}
	}
	big := strings.Repeat("x", MaxLabelBytes-64)
	send(t, series.Batch{
		{Labels: rawLabels(series.MetricName, "big", "x", big), Samples: []series.Sample{at0(0, 1)}},
		{Labels: rawLabels(series.MetricName, "big", big, "x"), Samples: []series.Sample{at0(0, 1)}},
		{Labels: rawLabels(series.MetricName, big), Samples: []series.Sample{at0(0, 1)}},
		{Labels: rawLabels(series.MetricName, "big"), Samples: []series.Sample{
			{Time: day, Histogram: make([]byte, maxHistogramBytes)}, {Time: day + 1, Histogram: []byte{}},
		}},
	})
	unique := series.Timestamp(0)
	rapid.Check(t, func(t *rapid.T) {
		names := rapid.SliceOfNDistinct(rapid.OneOf(
			rapid.SampledFrom([]string{
				"value", "_value", "__value", "timestamp", "date", "shard", "labels_overflow", "metric_name", "series_id", "nanos", "histogram",
				"Value", "VALUE", "a b", "a,b", "a;b", "{", "(", "=", "\t", "\n", "\x00", "\x7f", "ſ", "s", "S", "K", "k", "\u212a", "İ", "i",
				strings.Repeat("n", 255), strings.Repeat("n", 256), ".", "a.b", "key_value", "list", "element", "\"", "\\", "é", "e\u0301", "\U0010ffff",
			}),
			rapid.String()), 0, 8, rapid.ID[string]).Draw(t, "names")
		names = append(names, series.MetricName)
		slices.Sort(names)
		var pairs []string
		for _, n := range names {
			pairs = append(pairs, n, rapid.OneOf(rapid.SampledFrom([]string{"", "v", "\x00", "null", "\U0010ffff\U0010ffff"}), rapid.String()).Draw(t, "value"))
		}
		unique++
		send(t, series.Batch{{Labels: rawLabels(pairs...), Samples: []series.Sample{{
			Time:  day + unique,
			Value: math.Float64frombits(rapid.Uint64().Draw(t, "bits")),
			Nanos: uint16(rapid.IntRange(0, 999).Draw(t, "nanos")),
		}}}})
		if unique%10 == 0 {
			if err := w.Flush(context.Background()); err != nil {
				t.Fatalf("flush: %v", err)
			}
		}
	})
	mustFlush(t, w)
	if len(want) < 20 {
		t.Errorf("only %d rows accepted", len(want))
	}
	if d := cmp.Diff(want, tableRows(t, store), cmp.AllowUnexported(point{})); d != "" {
		t.Errorf("table (-want +got):\n%.3000s", d)
	}
}
