package chunk

import (
	"context"
	"iter"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/internal/merge"
	"cardinalsin/series"
)

// mk makes a series; pairs are label names and values beside the name.
func mk(name string, pairs ...string) Series {
	l := labels.FromStrings(append([]string{series.MetricName, name}, pairs...)...)
	return Series{Labels: l, ID: series.IDOf(l)}
}

// sorted puts series into the order of a file.
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

// grown is the layout after the base schema took what it can of the labels.
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

func encode(t testing.TB, opts Options, in []Series) *Encoded {
	t.Helper()
	enc, err := Encode(opts, grown(t, in, DefaultMaxLabels), merge.Slice(in))
	if err != nil {
		t.Fatal(err)
	}
	return enc
}

func reopen(t testing.TB, data []byte) *File {
	t.Helper()
	f, err := Open(context.Background(), BytesSource("test", data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	return f
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

// read opens a file and selects, whatever goes wrong.
func read(data []byte, sel series.Selector) ([]Series, error) {
	f, err := Open(context.Background(), BytesSource("test", data), int64(len(data)))
	if err != nil {
		return nil, err
	}
	return collect(f.Select(context.Background(), sel, nil))
}

var everything = series.Selector{Range: series.AllTime}

// diff compares series bit for bit.
func diff(want, got []Series) string {
	return cmp.Diff(want, got,
		cmp.Comparer(func(a, b series.Sample) bool { return a.Equal(b) }),
		cmp.Comparer(func(a, b labels.Labels) bool { return labels.Equal(a, b) }))
}

// filter is Select, told in the plainest way.
func filter(in []Series, sel series.Selector) []Series {
	var out []Series
	for _, s := range in {
		if !sel.Matches(s.Labels) {
			continue
		}
		var kept []series.Sample
		for _, p := range s.Samples {
			if sel.Range.Contains(p.Time) {
				kept = append(kept, p)
			}
		}
		if len(kept) > 0 {
			s.Samples = kept
			out = append(out, s)
		}
	}
	return out
}
