package reader

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"pgregory.net/rapid"

	"cardinalsin/action"
	"cardinalsin/index"
	"cardinalsin/internal/merge"
	"cardinalsin/series"
	"cardinalsin/txlog"
)

// model is a table as maps: the strongest sample of each instant.
type model struct {
	labels  map[string]series.Labels
	samples map[string]map[[2]int64]series.Sample
}

func (m *model) put(s series.Series) {
	k := s.Labels.String()
	if m.samples[k] == nil {
		m.labels[k], m.samples[k] = s.Labels, map[[2]int64]series.Sample{}
	}
	for _, p := range s.Samples {
		m.samples[k][[2]int64{int64(p.Time), int64(p.Nanos)}] = p
	}
}

func (m *model) selected(sel series.Selector) string {
	var all []series.Series
	for k, l := range m.labels {
		s := series.Series{Labels: l}
		for _, p := range m.samples[k] {
			if sel.Matches(l) && sel.Range.Contains(p.Time) {
				s.Samples = append(s.Samples, p)
			}
		}
		slices.SortFunc(s.Samples, series.Sample.Compare)
		all = append(all, s)
	}
	return rowsOf(all...)
}

// texts are the label names of the selected series, and the values of one.
func (m *model) texts(sel series.Selector, label string) (names, values []string) {
	for _, l := range m.labels {
		if !sel.Matches(l) {
			continue
		}
		l.Range(func(l labels.Label) { names = append(names, l.Name) })
		if v := l.Get(label); v != "" {
			values = append(values, v)
		}
	}
	slices.Sort(names)
	slices.Sort(values)
	return slices.Compact(names), slices.Compact(values)
}

func (m *model) clone() *model {
	c := newModel()
	for k, l := range m.labels {
		s := series.Series{Labels: l}
		for _, p := range m.samples[k] {
			s.Samples = append(s.Samples, p)
		}
		c.put(s)
	}
	return c
}

func newModel() *model {
	return &model{labels: map[string]series.Labels{}, samples: map[string]map[[2]int64]series.Sample{}}
}

// TestSelectEqualsModel: any files with any overlap, and a head, read at any
// version as one table in which the later word on an instant holds.
func TestSelectEqualsModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := newEnv(t, "k")
		m := newModel()
		versions := []*model{m.clone()}
		for i := range rapid.IntRange(0, 5).Draw(t, "files") {
			rows := genRows(t, float64(i))
			for _, s := range rows {
				m.put(s)
			}
			e.write(t, fmt.Sprintf("f%d", i), rows...)
			versions = append(versions, m.clone())
			if rapid.Bool().Draw(t, "index") {
				for range e.index(t) {
					versions = append(versions, m.clone())
				}
			}
		}
		head := newHead(genRows(t, 99)...)
		for _, s := range head {
			m.put(s)
		}
		r := e.start(t, Options{Head: func() HeadView { return head }, Reads: 2})
		r.opts.Index = index.New(e.log, index.Options{})
		check := func(at txlog.At, want *model) {
			v, err := r.At(context.Background(), at)
			if err != nil {
				t.Fatal(err)
			}
			defer v.Close()
			for range 3 {
				sel := genSelector(t)
				got, err := collect(v.Select(context.Background(), sel))
				if err != nil {
					t.Fatal(err)
				}
				if want := want.selected(sel); got != want {
					t.Fatalf("select %v %v:\n%swant:\n%s", sel.Matchers, sel.Range, got, want)
				}
				chosen, err := v.Choose(context.Background(), sel)
				if err != nil {
					t.Fatal(err)
				}
				for range 2 { // the second time from what is kept
					if got, err = collect(rowsIn(chosen.Columns(context.Background()))); err != nil {
						t.Fatal(err)
					}
					if want := want.selected(sel); got != want {
						t.Fatalf("columns of %v %v:\n%swant:\n%s", sel.Matchers, sel.Range, got, want)
					}
				}
				sel.Range = series.AllTime // which labels are near a range is left open
				names, values := want.texts(sel, "k")
				limit := rapid.IntRange(0, 3).Draw(t, "limit")
				for what, q := range map[string]struct {
					want []string
					ask  func() ([]string, error)
				}{
					"names":  {names, func() ([]string, error) { return v.LabelNames(context.Background(), sel, limit) }},
					"values": {values, func() ([]string, error) { return v.LabelValues(context.Background(), "k", sel, limit) }},
				} {
					if limit > 0 && len(q.want) > limit {
						q.want = q.want[:limit]
					}
					if got, err := q.ask(); err != nil || !slices.Equal(got, q.want) {
						t.Fatalf("%s of %v, at most %d: %v, %v; want %v", what, sel.Matchers, limit, got, err, q.want)
					}
				}
			}
		}
		check(txlog.Latest(), m)
		past := rapid.IntRange(0, len(versions)-1).Draw(t, "version")
		check(txlog.AtVersion(action.Version(past)), versions[past])
	})
}

// genRows is what one flush may hold: each series once, its samples strictly
// ascending, all of one day.
func genRows(t *rapid.T, value float64) []series.Series {
	var rows []series.Series
	for i := range rapid.IntRange(1, 3).Draw(t, "series") {
		s := series.Series{Labels: genLabels(t, i)}
		// Some with more samples than a page and a row group hold.
		n := rapid.SampledFrom([]int{1, 2, 5, 100}).Draw(t, "samples")
		at := rapid.IntRange(0, 4).Draw(t, "first")
		for range n {
			p := series.Sample{Time: day + series.Timestamp(at), Value: value, Nanos: uint16(rapid.SampledFrom([]int{0, 0, 7}).Draw(t, "nanos")),
				Start: rapid.SampledFrom([]int64{0, 0, 9}).Draw(t, "start")}
			if rapid.IntRange(0, 9).Draw(t, "histogram") == 0 {
				p.Histogram, p.Value = []byte{1, byte(value)}, 0
			}
			s.Samples = append(s.Samples, p)
			at += rapid.IntRange(1, 2).Draw(t, "gap")
		}
		rows = append(rows, s)
	}
	if rapid.Bool().Draw(t, "plain") {
		for _, s := range rows {
			for i, p := range s.Samples {
				s.Samples[i] = series.Sample{Time: p.Time, Value: value}
			}
		}
	}
	return rows
}

// rowsIn gives what Columns yields the form of Select.
func rowsIn(seq iter.Seq2[merge.Series, error]) iter.Seq2[series.Series, error] {
	return func(yield func(series.Series, error) bool) {
		for s, err := range seq {
			if !yield(series.Series{Labels: s.Labels, Samples: s.Floats.AppendTo(s.Samples)}, err) || err != nil {
				return
			}
		}
	}
}

// genLabels gives label sets that differ for different i.
func genLabels(t *rapid.T, i int) series.Labels {
	metric := rapid.SampledFrom([]string{"m", "n"}).Draw(t, "metric")
	name := rapid.SampledFrom([]string{"k", "loose"}).Draw(t, "label") // loose has no column
	return lbl(metric, name, []string{"a", "b", "c"}[i])
}

func genSelector(t *rapid.T) series.Selector {
	sel := everything
	if rapid.Bool().Draw(t, "range") {
		from := rapid.IntRange(-1, 150).Draw(t, "from")
		sel.Range = series.TimeRange{Min: day + series.Timestamp(from), Max: day + series.Timestamp(from+rapid.IntRange(0, 80).Draw(t, "width"))}
	}
	for range rapid.IntRange(0, 2).Draw(t, "matchers") {
		sel.Matchers = append(sel.Matchers, labels.MustNewMatcher(
			rapid.SampledFrom([]labels.MatchType{labels.MatchEqual, labels.MatchNotEqual, labels.MatchRegexp, labels.MatchNotRegexp}).Draw(t, "type"),
			rapid.SampledFrom([]string{series.MetricName, "k", "loose"}).Draw(t, "name"),
			rapid.SampledFrom([]string{"", "m", "a", "a|b", ".+", "n"}).Draw(t, "value")))
	}
	return sel
}
