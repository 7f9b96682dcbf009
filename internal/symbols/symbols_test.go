package symbols

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"pgregory.net/rapid"

	"cardinalsin/series"
)

// TestDictionary: codes tell texts apart and are those of their first
// occurrence, before and after a reset.
func TestDictionary(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var d Dictionary
		for range 2 {
			d.Reset()
			want := map[string]int32{}
			for _, text := range rapid.SliceOfN(rapid.StringN(0, 4, -1), 1, 200).Draw(rt, "texts") {
				found, ok := d.Find(text)
				code, fresh := d.Code(text)
				first, seen := want[text]
				if ok != seen || ok && found != first {
					rt.Fatalf("found %q as %d, %v; want %d, %v", text, found, ok, first, seen)
				}
				if !seen {
					first = int32(len(want))
					want[text] = first
				}
				if code != first || fresh == seen || string(d.Text(code)) != text {
					rt.Fatalf("%q has code %d of %q, fresh %v; want %d", text, code, d.Text(code), fresh, first)
				}
			}
			if d.Len() != len(want) {
				rt.Fatalf("%d texts, want %d", d.Len(), len(want))
			}
			least, greatest := d.Bounds()
			all := slices.Sorted(maps.Keys(want))
			if string(least) != all[0] || string(greatest) != all[len(all)-1] {
				rt.Fatalf("bounds %q and %q, want %q and %q", least, greatest, all[0], all[len(all)-1])
			}
			var copied Dictionary
			for code := range want {
				copied.Append([]byte(code))
			}
			if copied.Len() != len(want) || len(copied.Page()) != len(d.Page()) {
				rt.Fatalf("appended %d texts and %d bytes, want %d and %d", copied.Len(), len(copied.Page()), len(want), len(d.Page()))
			}
		}
	})
}

// draw makes a label set of few names and values, so that shapes and values
// come again.
func draw(rt *rapid.T) series.Labels {
	b := labels.NewBuilder(labels.EmptyLabels())
	b.Set(series.MetricName, rapid.SampledFrom([]string{"a", "b", "a long name"}).Draw(rt, "metric"))
	for range rapid.IntRange(0, 5).Draw(rt, "labels") {
		b.Set(rapid.SampledFrom([]string{"A", "b", "c", "zone", "ü"}).Draw(rt, "name"), rapid.StringN(1, 2, -1).Draw(rt, "value"))
	}
	return b.Labels()
}

// add keeps a label set by a batch of its own.
func add(t testing.TB, table *Table, l series.Labels) Set {
	var b Batch
	if _, err := b.Add(l); err != nil {
		t.Fatal(err)
	}
	table.Bind(&b)
	defer table.Bind(nil)
	return table.Add(0)
}

// TestTable: what was added is told from anything else, by the table and by
// views taken before and after, which a set never changes in.
func TestTable(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var table Table
		var all []series.Labels
		var sets []Set
		check := func(v *View, n int) {
			var b labels.ScratchBuilder
			for i := range n {
				if got := v.Labels(sets[i], &b); !labels.Equal(got, all[i]) {
					rt.Fatalf("set %d is %.200s, want %.200s", i, got, all[i])
				}
			}
		}
		var views []*View
		var counts []int
		var batch Batch
		for range rapid.IntRange(1, 9).Draw(rt, "batches") {
			batch.Reset()
			in := make([]series.Labels, rapid.IntRange(1, 6).Draw(rt, "sets"))
			for i := range in {
				in[i] = draw(rt)
				if _, err := batch.Add(in[i]); err != nil {
					rt.Fatal(err)
				}
			}
			before := table.Bytes()
			table.Bind(&batch)
			for i, l := range in {
				known := false
				for j := range all {
					if table.Equal(sets[j], i) != labels.Equal(all[j], l) {
						rt.Fatalf("Equal(%.200s, %.200s)", all[j], l)
					}
					known = known || labels.Equal(all[j], l)
				}
				if !known || rapid.IntRange(0, 3).Draw(rt, "again") == 0 {
					sets, all = append(sets, table.Add(i)), append(all, l)
				}
			}
			table.Bind(nil)
			if grown, most := table.Bytes()-before, batch.MostBytes(); grown > most || grown < 0 {
				rt.Fatalf("%d bytes more, at most %d", grown, most)
			}
			views, counts = append(views, table.View()), append(counts, len(all))
		}
		for i, v := range views {
			check(v, counts[i])
		}
		v := views[len(views)-1]
		for i := range sets {
			j := rapid.IntRange(0, len(sets)-1).Draw(rt, "other")
			if got, want := v.Compare(sets[i], sets[j]), labels.Compare(all[i], all[j]); cmp.Compare(got, 0) != cmp.Compare(want, 0) {
				rt.Fatalf("Compare(%.200s, %.200s) = %d, want %d", all[i], all[j], got, want)
			}
			all[i].Range(func(l labels.Label) {
				column, _ := v.Column(l.Name)
				if code, ok := table.Find(l.Name, l.Value); !ok || string(v.Text(column, code)) != l.Value {
					rt.Fatalf("Find(%q, %q) = %d, %v", l.Name, l.Value, code, ok)
				}
			})
			if _, ok := table.Find(series.MetricName, "none"); ok {
				rt.Fatal("found what is not there")
			}
			name, ok := v.Column(series.MetricName)
			if !ok || string(v.Text(name, table.NameCode(sets[i]))) != all[i].Get(series.MetricName) {
				rt.Fatalf("metric name of %.200s", all[i])
			}
		}
	})
}

// TestTableCopies: a table keeps nothing of the memory that a request's labels
// lie in.
func TestTableCopies(t *testing.T) {
	var table Table
	buf := labels.NewScratchBuilder(2)
	var l series.Labels
	var sets []Set
	for i := range 3 {
		buf.Reset()
		buf.Add(series.MetricName, "up")
		buf.Add(fmt.Sprint("label", i), fmt.Sprint(i))
		buf.Overwrite(&l) // the same memory every time, as a decoder does
		sets = append(sets, add(t, &table, l))
	}
	var b labels.ScratchBuilder
	for i, s := range sets {
		if got := table.View().Labels(s, &b).Get(fmt.Sprint("label", i)); got != fmt.Sprint(i) {
			t.Errorf("series %d has label %q", i, got)
		}
	}
}

// TestBlocks: no set crosses a block of codes, and one that is larger has one of
// its own.
func TestBlocks(t *testing.T) {
	var table Table
	var all []series.Labels
	var sets []Set
	for _, width := range []int{1, blockCodes - 1, 1, blockCodes, 2, blockCodes + 1, blockCodes / 2, blockCodes / 2, 1} {
		b := labels.NewScratchBuilder(width)
		b.Add(series.MetricName, fmt.Sprint(len(all)))
		for i := range width - 1 {
			b.Add(fmt.Sprintf("l%06d", i), fmt.Sprint(i%7))
		}
		all = append(all, b.Labels())
		sets = append(sets, add(t, &table, all[len(all)-1]))
	}
	var b labels.ScratchBuilder
	for i, s := range sets {
		if !labels.Equal(table.View().Labels(s, &b), all[i]) {
			t.Errorf("set %d of %d labels is another one", i, all[i].Len())
		}
	}
}
