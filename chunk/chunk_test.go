package chunk

import (
	"context"
	"fmt"
	"iter"
	"math"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/action"
	"cardinalsin/internal/merge"
	"cardinalsin/series"
)

// mk makes a series; pairs are label names and values beside the name.
func mk(name string, pairs ...string) Series {
	l := labels.FromStrings(append([]string{series.MetricName, name}, pairs...)...)
	return Series{Labels: l, ID: series.IDOf(l)}
}

// sorted puts series into file order.
func sorted(in []Series) []Series {
	slices.SortFunc(in, func(a, b Series) int { return a.Compare(&b) })
	return in
}

// labelNames lists all labels that occur.
func labelNames(in []Series) []string {
	var names []string
	for _, s := range in {
		s.Labels.Range(func(l labels.Label) { names = append(names, l.Name) })
	}
	return names
}

// grown is the layout after the schema took all labels of the series.
func grown(t testing.TB, in []Series, maxLabels int) *Layout {
	t.Helper()
	s := BaseSchema()
	l, err := LayoutOf(s)
	if err != nil {
		t.Fatal(err)
	}
	s.Fields = append(s.Fields, l.WithMaxLabels(maxLabels).Grow(labelNames(in))...)
	if l, err = LayoutOf(s); err != nil {
		t.Fatal(err)
	}
	return l
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

func readAll(t testing.TB, data []byte, sel series.Selector) []Series {
	t.Helper()
	f, err := Open(context.Background(), BytesSource("test", data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	out, err := collect(f.Select(context.Background(), sel, nil))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

var all = series.Selector{Range: series.AllTime}

// diff compares series bit for bit.
func diff(want, got []Series) string {
	return cmp.Diff(want, got,
		cmp.Comparer(func(a, b series.Sample) bool { return a.Equal(b) }),
		cmp.Comparer(func(a, b labels.Labels) bool { return labels.Equal(a, b) }))
}

var _ action.Stats
var _ = merge.Slice
var _ = math.Pi

func TestRoundTripSmall(t *testing.T) {
	var in []Series
	for i := range 10 {
		s := mk(fmt.Sprintf("m%d", i/4), "host", fmt.Sprintf("h%d", i), "value", "x", "_a", "y", "bad name", "z")
		for k := range 7 {
			s.Samples = append(s.Samples, series.Sample{Time: series.Timestamp(-50000 + k*1000), Value: float64(k)})
		}
		in = append(in, s)
	}
	sorted(in)
	enc, err := Encode(Options{RowGroupRows: 16, PageRows: 4}, grown(t, in, 100), merge.Slice(in))
	if err != nil {
		t.Fatal(err)
	}
	if err := Verify(enc.Data); err != nil {
		t.Fatal(err)
	}
	got := readAll(t, enc.Data, all)
	if d := diff(in, got); d != "" {
		t.Fatal(d)
	}
}
