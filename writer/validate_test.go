package writer

import (
	"errors"
	"fmt"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"

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
		"no labels":          {series.Series{Samples: ok}, series.ErrNoMetricName},
		"no metric name":     {series.Series{Labels: rawLabels("job", "a"), Samples: ok}, series.ErrNoMetricName},
		"empty metric name":  {series.Series{Labels: rawLabels(series.MetricName, "", "job", "a"), Samples: ok}, series.ErrNoMetricName},
		"no name no samples": {series.Series{Labels: rawLabels("job", "a")}, series.ErrNoMetricName},
		"duplicate label":    {series.Series{Labels: rawLabels(series.MetricName, "up", "job", "a", "job", "b"), Samples: ok}, series.ErrDuplicateLabel},
		"unsorted labels":    {series.Series{Labels: rawLabels(series.MetricName, "up", "z", "a", "job", "b"), Samples: ok}, series.ErrUnsortedLabels},
		"empty label name":   {series.Series{Labels: rawLabels("", "a", series.MetricName, "up"), Samples: ok}, series.ErrInvalidLabel},
		"name not UTF-8":     {series.Series{Labels: rawLabels(series.MetricName, "up", "job\xff", "a"), Samples: ok}, series.ErrInvalidLabel},
		"value not UTF-8":    {series.Series{Labels: rawLabels(series.MetricName, "up", "job", "a\xff"), Samples: ok}, series.ErrInvalidLabel},
		"before year 1":      {series.Series{Labels: rawLabels(series.MetricName, "up"), Samples: []series.Sample{{Time: series.MinTimestamp - 1}}}, ErrInvalidSample},
		"after year 9999":    {series.Series{Labels: rawLabels(series.MetricName, "up"), Samples: []series.Sample{{Time: series.MaxTimestamp + 1}}}, ErrInvalidSample},
		"least integer":      {series.Series{Labels: rawLabels(series.MetricName, "up"), Samples: []series.Sample{{Time: math.MinInt64}}}, ErrInvalidSample},
		"1000 nanoseconds":   {series.Series{Labels: rawLabels(series.MetricName, "up"), Samples: []series.Sample{{Time: day, Nanos: 1000}}}, ErrInvalidSample},
		"too many days":      {series.Series{Labels: rawLabels(series.MetricName, "up"), Samples: scattered}, ErrTooManyPartitions},
		"too large": {series.Series{Labels: rawLabels(series.MetricName, "up"), Samples: []series.Sample{{
			Time: day, Histogram: make([]byte, wal.MaxRecordBytes+1),
		}}}, wal.ErrRecordTooLarge},
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
