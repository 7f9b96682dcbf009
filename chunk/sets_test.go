package chunk

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"pgregory.net/rapid"

	"cardinalsin/internal/symbols"
	"cardinalsin/series"
)

// bySets writes series as sets of a table that holds others, too, and has seen
// them in another order.
func bySets(opts Options, layout *Layout, contents Contents, in []Series) (*Encoded, error) {
	var table symbols.Table
	table.Add(labels.FromStrings(series.MetricName, "another", "host", "another"))
	sets := make([]symbols.Set, len(in))
	for i := len(in) - 1; i >= 0; i-- {
		sets[i] = table.Add(in[i].Labels)
	}
	view := table.View()
	e := NewEncoder(opts, layout, contents)
	for i, s := range in {
		if err := e.AddSet(view, sets[i], s.ID, s.Samples); err != nil {
			return nil, err
		}
	}
	return e.Finish()
}

// TestSetsEqualLabels: a file of sets is that of their labels, byte for byte.
func TestSetsEqualLabels(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		in := genSeries(rt)
		layout := grown(t, in, rapid.IntRange(0, 40).Draw(rt, "max labels"))
		contents := Contents{Labels: append(labelNames(in), "unused"), Nanos: true, Starts: true, Histograms: true}
		opts := genOptions(rt)
		e := NewEncoder(opts, layout, contents)
		for _, s := range in {
			if err := e.Add(s); err != nil {
				rt.Fatal(err)
			}
		}
		want, err := e.Finish()
		if err != nil {
			rt.Fatal(err)
		}
		// Twice, as the second takes over the memory of the first.
		for range 2 {
			got, err := bySets(opts, layout, contents, in)
			if err != nil {
				rt.Fatal(err)
			}
			if !bytes.Equal(got.Data, want.Data) {
				rt.Fatal("another file")
			}
		}
	})
}

// TestSetsRefuse: what a reader could not tell from damage is refused.
func TestSetsRefuse(t *testing.T) {
	long := with(mk("b", "host", strings.Repeat("x", 4<<20)), 1)
	for name, c := range map[string]struct {
		in   []Series
		also error
	}{
		"nothing":             {nil, ErrInvalidInput},
		"order":               {[]Series{with(mk("b"), 1), with(mk("a"), 1)}, ErrInvalidInput},
		"twice":               {[]Series{with(mk("a", "host", "x"), 1), with(mk("a", "host", "x"), 2)}, ErrInvalidInput},
		"order of times":      {[]Series{with(mk("a"), 2, 1)}, ErrInvalidInput},
		"value is no UTF-8":   {[]Series{with(mk("a", "host", "\xff"), 1)}, series.ErrInvalidLabel},
		"empty value":         {[]Series{with(raw("host", "", series.MetricName, "a"), 1)}, series.ErrInvalidLabel},
		"overflow no UTF-8":   {[]Series{with(mk("a", "bad name", "\xff"), 1)}, series.ErrInvalidLabel},
		"name is no UTF-8":    {[]Series{with(mk("a", "\xff", "x"), 1)}, series.ErrInvalidLabel},
		"metric is no UTF-8":  {[]Series{with(mk("\xff"), 1)}, series.ErrInvalidLabel},
		"no metric name":      {[]Series{with(raw("host", "x"), 1)}, series.ErrNoMetricName},
		"label not announced": {[]Series{with(mk("a", "other", "x"), 1)}, ErrInvalidInput},
	} {
		t.Run(name, func(t *testing.T) {
			layout := grown(t, []Series{mk("a", "host", "x")}, 1)
			_, err := bySets(Options{}, layout, Contents{Labels: []string{"host", "bad name", "\xff"}}, c.in)
			if !errors.Is(err, ErrInvalidInput) || !errors.Is(err, c.also) {
				t.Errorf("err = %v", err)
			}
		})
	}
	t.Run("two views", func(t *testing.T) {
		var table symbols.Table
		a, b := table.Add(mk("a").Labels), table.Add(mk("b").Labels)
		e := NewEncoder(Options{}, grown(t, nil, 1), Contents{})
		samples := with(mk("a"), 1).Samples
		if err := e.AddSet(table.View(), a, mk("a").ID, samples); err != nil {
			t.Fatal(err)
		}
		if err := e.AddSet(table.View(), b, mk("b").ID, samples); !errors.Is(err, ErrInvalidInput) {
			t.Errorf("err = %v", err)
		}
	})
	// Large values end a row group, each counted once.
	in := []Series{with(mk("a", "host", "y"), 1, 2), long, with(mk("c", "host", "y"), 1)}
	enc, err := bySets(Options{rowGroupBytes: 4 << 20}, grown(t, in, 10), Contents{Labels: []string{"host"}}, in)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(reopen(t, enc.Data).RowGroups()); n != 2 {
		t.Errorf("%d row groups", n)
	}
}

func raw(pairs ...string) Series {
	b := labels.NewScratchBuilder(2)
	for i := 0; i < len(pairs); i += 2 {
		b.Add(pairs[i], pairs[i+1])
	}
	l := b.Labels()
	return Series{Labels: l, ID: series.IDOf(l)}
}
