package writer

import (
	"cmp"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"
	"pgregory.net/rapid"

	"cardinalsin/internal/symbols"
	"cardinalsin/series"
	"cardinalsin/shard"
	"cardinalsin/wal"
)

// genBatch draws from few series, instants and values, so that everything
// collides: same series twice in a batch, same instant, any order.
func genBatch(t *rapid.T, maxSeries int) series.Batch {
	b := make(series.Batch, rapid.IntRange(1, maxSeries).Draw(t, "series"))
	for i := range b {
		b[i].Labels = labels.FromStrings(
			series.MetricName, rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "name"),
			"x", rapid.SampledFrom([]string{"1", "2"}).Draw(t, "x"))
		if rapid.IntRange(0, 2).Draw(t, "more") == 0 {
			l := labels.NewBuilder(b[i].Labels)
			l.Set(rapid.SampledFrom([]string{"A", "y"}).Draw(t, "label"), rapid.SampledFrom([]string{"1", "a"}).Draw(t, "y"))
			b[i].Labels = l.Labels()
		}
		n := rapid.IntRange(1, 4).Draw(t, "samples")
		for range n {
			s := series.Sample{
				Time:  day + series.Timestamp(rapid.IntRange(0, 3).Draw(t, "day"))*24*3600*1_000_000 + series.Timestamp(rapid.IntRange(0, 3).Draw(t, "time")),
				Nanos: uint16(rapid.IntRange(0, 1).Draw(t, "nanos")),
			}
			if v := rapid.IntRange(0, 1000).Draw(t, "value"); v%7 == 0 {
				s.Histogram = []byte(strconv.Itoa(v))
			} else {
				s.Value = float64(v)
			}
			if rapid.IntRange(0, 2).Draw(t, "started") == 0 {
				s.Start = rapid.Int64Range(-2, 2).Draw(t, "start")
			}
			b[i].Samples = append(b[i].Samples, s)
		}
	}
	return b
}

// last keeps of each observation the one that came last.
type last map[point]series.Sample

func (m last) apply(b series.Batch) {
	for _, s := range b {
		for _, p := range s.Samples {
			m[point{s.Labels.String(), p.Time, p.Nanos}] = p
		}
	}
}

func (m last) selectRows(sel series.Selector, parse map[string]series.Labels) rows {
	out := rows{}
	for p, s := range m {
		if l := parse[p.labels]; sel.Range.Contains(p.time) && sel.Matches(l) {
			out.add(l, []series.Sample{s})
		}
	}
	return out
}

// sameTexts reports whether a list has what is in a set, each once.
func sameTexts(want map[string]bool, got []string) bool {
	for _, s := range got {
		if !want[s] {
			return false
		}
	}
	slices.Sort(got)
	return len(slices.Compact(got)) == len(want)
}

// setsOf are the label sets of a batch.
func setsOf(t testing.TB, b series.Batch) *symbols.Batch {
	sets := &symbols.Batch{}
	for i := range b {
		if _, err := sets.Add(b[i].Labels); err != nil {
			t.Fatal(err)
		}
	}
	return sets
}

// colliding hashes a batch so that all series of a metric collide.
func colliding(t testing.TB, b series.Batch) *symbols.Batch {
	sets := setsOf(t, b)
	for i := range b {
		sets.IDs[i] = series.ID(len(b[i].Labels.Get(series.MetricName)))
	}
	return sets
}

// A view shows what had come when it was taken, whatever comes after it, in
// the order of series.Compare, each instant once and the later one of two;
// through seals, and with every hash the same.
func TestViewAgainstModel(tt *testing.T) {
	rapid.Check(tt, func(t *rapid.T) {
		w := &Writer{active: newHead()}
		w.opts.EnsureDefaults()
		model, parse := last{}, map[string]series.Labels{}
		type taken struct {
			view *HeadView
			want last
		}
		var views []taken
		seq := wal.Sequence(rapid.Uint32().Draw(t, "first"))
		scan := rapid.SampledFrom([]int{0, 3, scanSeries}).Draw(t, "scan")
		for range rapid.IntRange(1, 8).Draw(t, "batches") {
			b := genBatch(t, 4)
			seq++
			w.active.scan = scan
			w.insert(seq, b, colliding(tt, b))
			model.apply(b)
			for _, s := range b {
				parse[s.Labels.String()] = s.Labels
			}
			if w.sealed == nil && rapid.IntRange(0, 3).Draw(t, "seal") == 0 {
				w.seal()
			}
			kept := last{}
			for p, s := range model {
				kept[p] = s
			}
			views = append(views, taken{w.Head(), kept})
			if rapid.Bool().Draw(t, "asked before more comes") {
				for range views[len(views)-1].view.Series(series.Selector{Range: series.AllTime}) {
				}
			}
		}
		if w.sealed != nil {
			w.drop() // its views live on
		}
		sel := series.Selector{Range: series.TimeRange{
			Min: day + series.Timestamp(rapid.IntRange(-1, 2).Draw(t, "min")),
			Max: day + series.Timestamp(rapid.IntRange(0, 3*24*3600*1_000_000).Draw(t, "max")),
		}}
		for range rapid.IntRange(0, 2).Draw(t, "matchers") {
			sel.Matchers = append(sel.Matchers, labels.MustNewMatcher(
				rapid.SampledFrom([]labels.MatchType{labels.MatchEqual, labels.MatchNotEqual, labels.MatchRegexp, labels.MatchNotRegexp}).Draw(t, "type"),
				rapid.SampledFrom([]string{series.MetricName, "x", "y", "absent"}).Draw(t, "label"),
				rapid.SampledFrom([]string{"a", "1", "", "none"}).Draw(t, "operand")))
		}
		if rapid.Bool().Draw(t, "by a value") {
			sel.Matchers = append(sel.Matchers, labels.MustNewMatcher(labels.MatchEqual,
				rapid.SampledFrom([]string{"x", "y"}).Draw(t, "label"), rapid.SampledFrom([]string{"a", "1"}).Draw(t, "value")))
		}
		if rapid.Bool().Draw(t, "newest first") {
			slices.Reverse(views)
		}
		for i, v := range views {
			got := rows{}
			var prev series.Labels
			n := 0
			for one := range v.view.Select(sel) {
				s := series.Series{Labels: one.Labels, Samples: one.AllSamples()}
				if one.ID != 1 {
					t.Fatalf("view %d: %s has ID %d", i, s.Labels, one.ID)
				}
				if n > 0 && series.Compare(prev, s.Labels, 1, 1) >= 0 {
					t.Fatalf("view %d: %s after %s", i, s.Labels, prev)
				}
				for j := 1; j < len(s.Samples); j++ {
					if s.Samples[j-1].Compare(s.Samples[j]) >= 0 {
						t.Fatalf("view %d: samples of %s out of order", i, s.Labels)
					}
				}
				got.add(s.Labels, s.Samples)
				prev = s.Labels
				n++
			}
			if d := gocmp.Diff(v.want.selectRows(sel, parse), got, gocmp.AllowUnexported(point{})); d != "" {
				t.Fatalf("view %d (-want +got):\n%s", i, d)
			}
			for _, sel := range []series.Selector{sel, {Range: series.AllTime}, {Range: series.AllTime, Matchers: sel.Matchers}} {
				names, values, sets := map[string]bool{}, map[string]bool{}, map[string]bool{}
				for p := range v.want.selectRows(sel, parse) {
					sets[p.labels] = true
					parse[p.labels].Range(func(l labels.Label) {
						names[l.Name] = true
						if l.Name == "x" {
							values[l.Value] = true
						}
					})
				}
				var got []string
				for s := range v.view.Series(sel) {
					got = append(got, s.Labels.String())
				}
				if !sameTexts(sets, got) {
					t.Fatalf("view %d has series %v, want %v", i, got, sets)
				}
				if got := v.view.LabelNames(sel); !sameTexts(names, got) {
					t.Fatalf("view %d has names %v, want %v", i, got, names)
				}
				if got := v.view.LabelValues("x", sel); !sameTexts(values, got) {
					t.Fatalf("view %d has values %v, want %v", i, got, values)
				}
				if got := v.view.LabelValues("absent", sel); len(got) > 0 {
					t.Fatalf("view %d has values %v of a label that nobody has", i, got)
				}
			}
			r, ok := v.view.Range()
			if !ok {
				t.Fatalf("view %d has no range", i)
			}
			for p := range v.want {
				if !r.Contains(p.time) {
					t.Fatalf("view %d: %d outside range %v", i, p.time, r)
				}
			}
		}
	})
}

// TestFloatsOfHead: series of plain floats come as columns, each with its own,
// and of two values for one instant the later.
func TestFloatsOfHead(t *testing.T) {
	w, _ := newWriter(t, Options{})
	long := one("long", nil)
	for i := range int64(2*columnsAtOnce + 1) {
		long[0].Samples = append(long[0].Samples, at0(i, float64(i)))
	}
	for _, b := range []series.Batch{
		one("a", nil, at0(2, 1), at0(1, 5), at0(2, 2)), one("b", nil, at0(1, 7)), long,
		one("n", nil, at0(1, 1), series.Sample{Time: day + 2, Nanos: 1}), one("s", nil, series.Sample{Time: day, Start: 1}),
		one("h", nil, series.Sample{Time: day, Histogram: []byte{1}}),
	} {
		mustAppend(t, w, b)
	}
	var got []string
	for s := range w.Head().Select(series.Selector{Range: series.TimeRange{Min: day, Max: day + 3}}) {
		name := s.Labels.Get(series.MetricName)
		for i, at := range s.Floats.Times {
			name += fmt.Sprintf(" %d=%g", at-day, s.Floats.Values[i])
		}
		if len(s.Samples) > 0 {
			name += " in general"
		}
		if s.ID != series.IDOf(s.Labels) || cap(s.Floats.Times) != len(s.Floats.Times) || cap(s.Floats.Values) != len(s.Floats.Values) {
			t.Errorf("%s: ID %d, room for %d", name, s.ID, cap(s.Floats.Times))
		}
		got = append(got, name)
	}
	want := []string{"a 1=5 2=2", "b 1=7", "h in general", "long 0=0 1=1 2=2 3=3", "n in general", "s in general"}
	if d := gocmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	n := 0
	for s := range w.Head().Select(series.Selector{Range: series.AllTime}) {
		n += len(s.Floats.Times)
	}
	if n != 3+2*columnsAtOnce+1 {
		t.Errorf("%d floats", n)
	}
}

// Parts cover every record once, in order, within their limits; each row lies
// in the file of its day and of the shard that owns it, each file is in the
// order that chunks want, and nothing is lost or invented.
func TestPlanParts(tt *testing.T) {
	rapid.Check(tt, func(t *rapid.T) {
		h := newHead()
		first := wal.Sequence(rapid.IntRange(1, 9).Draw(t, "first"))
		n := rapid.IntRange(1, 8).Draw(t, "records")
		var batches []series.Batch
		for i := range n {
			b := genBatch(t, 3)
			h.insert(first+wal.Sequence(i), b, setsOf(tt, b), time.Time{})
			batches = append(batches, b)
		}
		m := shard.Initial()
		for range rapid.IntRange(0, 3).Draw(t, "splits") {
			id := m.Shards[rapid.IntRange(0, len(m.Shards)-1).Draw(t, "shard")].ID
			if split, err := m.Split(id, shard.Key(rapid.Uint64().Draw(t, "boundary"))); err == nil {
				m = split
			}
		}
		lim := limits{rows: rapid.IntRange(1, 20).Draw(t, "rows"), files: rapid.IntRange(1, 6).Draw(t, "files")}

		next := first
		for next <= h.last {
			p := planPart(h, next, m, lim)
			if p.first != next || p.last < p.first || p.last > h.last {
				t.Fatalf("part %d–%d after %d of %d", p.first, p.last, next-1, h.last)
			}
			want, got := last{}, rows{}
			parse := map[string]series.Labels{}
			rowCount := 0
			for seq := p.first; seq <= p.last; seq++ {
				b := batches[seq-first]
				want.apply(b)
				rowCount += b.Samples()
				for _, s := range b {
					parse[s.Labels.String()] = s.Labels
				}
			}
			if p.last > p.first && (rowCount > lim.rows || len(p.files) > lim.files) {
				t.Fatalf("part of %d records has %d rows in %d files, limits %+v", p.last-p.first+1, rowCount, len(p.files), lim)
			}
			if p.last < h.last && rowCount+batches[p.last+1-first].Samples() <= lim.rows &&
				len(cut(h, int64(p.first-first)-1, uint32(p.last+1-first), m).files) <= lim.files {
				t.Fatalf("part ends with record %d, and the next would have fitted: %d rows, limits %+v", p.last, rowCount, lim)
			}
			for i, f := range p.files {
				if i > 0 && cmp.Or(cmp.Compare(p.files[i-1].date, f.date), slices.IndexFunc(m.Shards, is(p.files[i-1].shard))-slices.IndexFunc(m.Shards, is(f.shard))) >= 0 {
					t.Fatalf("file %d out of order", i)
				}
				var prev series.Labels
				k := 0
				for s, err := range f.content(p) {
					if err != nil {
						t.Fatal(err)
					}
					if k > 0 && series.Compare(prev, s.Labels, series.IDOf(prev), s.ID) >= 0 {
						t.Fatalf("%s after %s", s.Labels, prev)
					}
					prev, k = s.Labels, k+1
					if owner := m.Of(shard.KeyOf(s.Labels, s.ID)); owner != f.shard {
						t.Fatalf("%s in shard %s, owner is %s", s.Labels, f.shard, owner)
					}
					for j := range s.Samples {
						if s.Samples[j].Time.Date() != f.date || j > 0 && s.Samples[j-1].Compare(s.Samples[j]) >= 0 {
							t.Fatalf("sample %d of %s", j, s.Labels)
						}
					}
					got.add(s.Labels, s.Samples)
				}
			}
			if d := gocmp.Diff(want.selectRows(series.Selector{Range: series.AllTime}, parse), got, gocmp.AllowUnexported(point{})); d != "" {
				t.Fatalf("part %d–%d (-want +got):\n%s", p.first, p.last, d)
			}
			names := map[string]bool{}
			for _, b := range batches {
				for _, s := range b {
					s.Labels.Range(func(l labels.Label) { names[l.Name] = true })
				}
			}
			delete(names, series.MetricName)
			if !sameTexts(names, p.contents.Labels) || !slices.IsSorted(p.contents.Labels) {
				t.Fatalf("labels are %v, want %v", p.contents.Labels, names)
			}
			next = p.last + 1
		}
	})
}

func is(id shard.ID) func(shard.Shard) bool { return func(s shard.Shard) bool { return s.ID == id } }

// manySeries builds label sets like those of a node: a name and eleven labels,
// some 250 bytes of text.
func manySeries(n int) []series.Labels {
	out := make([]series.Labels, n)
	for i := range out {
		host := i / 100
		out[i] = labels.FromStrings(
			series.MetricName, "node_metric_"+strconv.Itoa(i%100)+"_total",
			"arch", "x86_64", "cluster", "production-"+strconv.Itoa(host%7), "datacenter", "eu-central-1b",
			"hostname", "host-"+strconv.Itoa(host)+".example.com", "instance", "10.0."+strconv.Itoa(host/250)+"."+strconv.Itoa(host%250)+":9100",
			"job", "node", "os", "Ubuntu 24.04", "rack", strconv.Itoa(host%80), "region", "eu-central-1", "service", "service-"+strconv.Itoa(host%19), "team", "observability")
	}
	return out
}

// Issue 4 allows 1 KB an active series; a head takes less than half of it,
// and its own estimate, which back-pressure goes by, is near the truth.
func TestHeadMemory(t *testing.T) {
	const n = 50_000
	all := manySeries(n)
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	b := make(series.Batch, n)
	for i := range b {
		b[i] = series.Series{Labels: all[i], Samples: []series.Sample{{Time: day}}}
	}
	sets := setsOf(t, b)
	before := heap()
	h := newHead()
	seq := wal.Sequence(0)
	for range 3 {
		seq++
		h.insert(seq, b, sets, time.Time{})
		got := heap() - before
		t.Logf("%d samples a series: %d bytes a series, estimate %d, label text %d", seq, got/n, h.bytes/n, all[n/2].ByteSize())
		if got/n > 512 {
			t.Errorf("%d bytes a series", got/n)
		}
		if ratio := float64(h.bytes) / float64(got); ratio < 0.85 || ratio > 1.25 {
			t.Errorf("estimate is %.2f of the truth", ratio)
		}
	}
	runtime.KeepAlive(b)
	runtime.KeepAlive(sets)
	if h.count != n {
		t.Errorf("%d series", h.count)
	}
}
