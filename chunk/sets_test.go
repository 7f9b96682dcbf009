package chunk

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"pgregory.net/rapid"

	"cardinalsin/internal/symbols"
	"cardinalsin/series"
)

// bySets writes series as sets of a table that holds others, too, and has seen
// them in another order.
func bySets(t testing.TB, opts Options, layout *Layout, contents Contents, in []Series) (*Encoded, error) {
	all := []series.Labels{labels.FromStrings(series.MetricName, "another", "host", "another")}
	for i := len(in) - 1; i >= 0; i-- {
		all = append(all, in[i].Labels)
	}
	view, sets := tableOf(t, all...)
	slices.Reverse(sets)
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
			got, err := bySets(t, opts, layout, contents, in)
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
	for name, in := range map[string][]Series{
		"nothing":             nil,
		"order":               {with(mk("b"), 1), with(mk("a"), 1)},
		"twice":               {with(mk("a", "host", "x"), 1), with(mk("a", "host", "x"), 2)},
		"order of times":      {with(mk("a"), 2, 1)},
		"label not announced": {with(mk("a", "other", "x"), 1)},
	} {
		t.Run(name, func(t *testing.T) {
			layout := grown(t, []Series{mk("a", "host", "x")}, 1)
			_, err := bySets(t, Options{}, layout, Contents{Labels: []string{"host"}}, in)
			if !errors.Is(err, ErrInvalidInput) {
				t.Errorf("err = %v", err)
			}
		})
	}
	t.Run("two views", func(t *testing.T) {
		view, sets := tableOf(t, mk("a").Labels, mk("b").Labels)
		other := *view
		e := NewEncoder(Options{}, grown(t, nil, 1), Contents{})
		samples := with(mk("a"), 1).Samples
		if err := e.AddSet(view, sets[0], mk("a").ID, samples); err != nil {
			t.Fatal(err)
		}
		if err := e.AddSet(&other, sets[1], mk("b").ID, samples); !errors.Is(err, ErrInvalidInput) {
			t.Errorf("err = %v", err)
		}
	})
	// Large values end a row group, each counted once.
	in := []Series{with(mk("a", "host", "y"), 1, 2), long, with(mk("c", "host", "y"), 1)}
	enc, err := bySets(t, Options{rowGroupBytes: 4 << 20}, grown(t, in, 10), Contents{Labels: []string{"host"}}, in)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(reopen(t, enc.Data).RowGroups()); n != 2 {
		t.Errorf("%d row groups", n)
	}
}

// tableOf makes a table of label sets, which may be stored.
func tableOf(t testing.TB, all ...series.Labels) (*symbols.View, []symbols.Set) {
	t.Helper()
	var batch symbols.Batch
	for _, l := range all {
		if _, err := batch.Add(l); err != nil {
			t.Fatal(err)
		}
	}
	var table symbols.Table
	table.Bind(&batch)
	sets := make([]symbols.Set, len(all))
	for i := range all {
		sets[i] = table.Add(i)
	}
	return table.View(), sets
}
