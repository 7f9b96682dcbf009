package index

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"cardinalsin/internal/lru"
	"cardinalsin/series"
	"cardinalsin/storage"
	"cardinalsin/storage/meter"
)

// TestValuesAreKept: the same question to the same segments is answered without
// a request, any other is not answered by it, and what the caller does to the
// answer changes none.
func TestValuesAreKept(t *testing.T) {
	var reads *meter.Store
	tb := newTable(t, func(s storage.Store) storage.Store {
		reads = meter.New(s, meter.Options{})
		return reads
	})
	a := tb.write(0, 1, metric("cpu", "pod", "a", "zone", "z"), metric("cpu", "pod", "b"))
	b := tb.write(0, 1, metric("cpu", "pod", "c"))
	later := tb.write(1, 1, metric("cpu", "pod", "b"), metric("cpu", "pod", "d"))
	tb.index(Policy{MinFiles: 1})
	x := tb.open(Options{BlockBytes: 1}) // which keeps none
	far(t, tb, x)
	steps := []struct {
		name  string
		label string
		sel   series.Selector
		files []string
		limit int
		want  []string
		kept  bool
	}{
		{"limited", "pod", series.Selector{}, []string{a, b}, 1, []string{"a"}, false},
		{"first", "pod", series.Selector{}, []string{a, b}, 0, []string{"a", "b", "c"}, false},
		{"again", "pod", series.Selector{}, []string{a, b}, 0, []string{"a", "b", "c"}, true},
		{"in another order", "pod", series.Selector{}, []string{b, a}, 0, []string{"a", "b", "c"}, true},
		{"limit", "pod", series.Selector{}, []string{a, b}, 2, []string{"a", "b"}, true},
		{"large limit", "pod", series.Selector{}, []string{a, b}, 9, []string{"a", "b", "c"}, true},
		{"one file", "pod", series.Selector{}, []string{a}, 0, []string{"a", "b"}, false},
		{"the other", "pod", series.Selector{}, []string{b}, 0, []string{"c"}, false},
		{"one file again", "pod", series.Selector{}, []string{a}, 0, []string{"a", "b"}, true},
		{"another label", "zone", series.Selector{}, []string{a, b}, 0, []string{"z"}, false},
		{"matchers", "pod", podIs("b"), []string{a, b}, 0, []string{"b"}, false},
		{"matchers again", "pod", podIs("b"), []string{a, b}, 0, []string{"b"}, false},
		{"more segments", "pod", series.Selector{}, []string{a, b, later}, 0, []string{"a", "b", "c", "d"}, false},
		{"again", "pod", series.Selector{}, []string{a, b, later}, 0, []string{"a", "b", "c", "d"}, true},
		{"still", "pod", series.Selector{}, []string{a, b}, 0, []string{"a", "b", "c"}, true},
	}
	for i, s := range steps {
		s.sel.Range = series.AllTime
		snap := tb.latest()
		before := reads.Snapshot()
		got, uncovered, err := x.LabelValues(t.Context(), snap, s.label, s.sel, append(s.files, "nowhere"), s.limit)
		if err != nil || !slices.Equal(got, s.want) || !slices.Equal(uncovered, []string{"nowhere"}) {
			t.Fatalf("%d, %s: %v, uncovered %v, %v", i, s.name, got, uncovered, err)
		}
		if n := reads.Snapshot().Since(before)[storage.OpGetRange].Calls; (n == 0) != s.kept {
			t.Errorf("%d, %s: %d requests", i, s.name, n)
		}
		for i := range got {
			got[i] = "changed"
		}
	}
	// A file that comes is not among them.
	late := tb.write(0, 1, metric("cpu", "pod", "e"))
	all := series.Selector{Range: series.AllTime}
	if got, uncovered, err := x.LabelValues(t.Context(), tb.latest(), "pod", all, []string{a, b, late}, 0); err != nil || !slices.Equal(got, []string{"a", "b", "c"}) || !slices.Equal(uncovered, []string{late}) {
		t.Errorf("before its index: %v, uncovered %v, %v", got, uncovered, err)
	}
	tb.index(Policy{MinFiles: 1})
	if got, uncovered, err := x.LabelValues(t.Context(), tb.latest(), "pod", all, []string{a, b, late}, 0); err != nil || !slices.Equal(got, []string{"a", "b", "c", "e"}) || len(uncovered) > 0 {
		t.Errorf("after it: %v, uncovered %v, %v", got, uncovered, err)
	}
}

// far opens the segments and forgets what came with their directories, as if
// they were large.
func far(t *testing.T, tb *table, x *Index) {
	t.Helper()
	for _, e := range mustSegments(t, tb) {
		s, err := x.segment(t.Context(), &e)
		if err != nil {
			t.Fatal(err)
		}
		s.near = nil
	}
}

// TestValuesOfFailureAreNotKept: a segment that failed once is asked again.
func TestValuesOfFailureAreNotKept(t *testing.T) {
	tb := newTable(t, nil)
	paths := []string{tb.write(0, 1, metric("cpu", "pod", "a")), tb.write(1, 1, metric("cpu", "pod", "b"))}
	tb.index(Policy{MinFiles: 1})
	broken := &brokenOnce{after: 2} // both directories
	x := tb.open(Options{Ranges: broken, Parallel: 1})
	far(t, tb, x)
	all := series.Selector{Range: series.AllTime}
	got, uncovered, err := x.LabelValues(t.Context(), tb.latest(), "pod", all, paths, 0)
	if err != nil || len(got) != 1 || len(uncovered) != 1 {
		t.Fatalf("%v, uncovered %v, %v", got, uncovered, err)
	}
	got, uncovered, err = x.LabelValues(t.Context(), tb.latest(), "pod", all, paths, 0)
	if err != nil || !slices.Equal(got, []string{"a", "b"}) || len(uncovered) > 0 {
		t.Errorf("again: %v, uncovered %v, %v", got, uncovered, err)
	}
}

var errOnce = errors.New("once")

// brokenOnce fails one read.
type brokenOnce struct{ after int }

func (b *brokenOnce) ReadRange(ctx context.Context, store storage.Store, key string, _, offset, length int64) ([]byte, error) {
	if b.after--; b.after == -1 {
		return nil, errOnce
	}
	return store.GetRange(ctx, key, offset, length)
}

// TestListsAreBounded: whatever comes, the bytes stay within the bound, and
// what is asked for stays longest.
func TestListsAreBounded(t *testing.T) {
	l := lists{lru.New[string, []string](10_000)}
	values := []string{strings.Repeat("v", 1000), "w", strings.Repeat("x", 500)}
	l.put("wanted", values)
	for i := range 100 {
		l.put(fmt.Sprint(i), values)
		if got, ok := l.Get("wanted"); !ok || !slices.Equal(got, values) {
			t.Fatalf("%d: lost %v", i, ok)
		}
		if l.Used() > l.Most() {
			t.Fatalf("%d bytes, %d lists", l.Used(), l.Len())
		}
	}
	var sum int64
	n := 0
	for i := range 101 {
		key := fmt.Sprint(i)
		if i == 100 {
			key = "wanted"
		}
		if _, ok := l.Get(key); ok {
			sum += int64(2*len(key)) + 3*16 + 1501 + 256
			n++
		}
	}
	if l.Used() != sum || l.Len() != n {
		t.Fatalf("%d bytes of %d lists, %d of %d are there", l.Used(), l.Len(), sum, n)
	}
	if l.Len() < 4 {
		t.Errorf("%d lists are kept", l.Len())
	}
	l.put("large", []string{strings.Repeat("v", 10_000)})
	if _, ok := l.Get("large"); ok || l.Len() < 4 {
		t.Error("a list beyond the bound drove out the others")
	}
}

// TestPack: texts come back as they were, over the borders of chunks too.
func TestPack(t *testing.T) {
	var values []string
	for i := range 3000 {
		values = append(values, strings.Repeat("é", i%97)+fmt.Sprint(i))
	}
	values = append(values, strings.Repeat("y", 200<<10), "", "z")
	if got := pack(values); !slices.Equal(got, values) {
		t.Error("texts have changed")
	}
	if got := pack(nil); len(got) != 0 {
		t.Errorf("of nothing: %v", got)
	}
}

// TestListsConcurrently: callers beside each other, with lists that come and go,
// each get their own.
func TestListsConcurrently(t *testing.T) {
	l := lists{lru.New[string, []string](3_000)}
	var g errgroup.Group
	for worker := range 4 {
		g.Go(func() error {
			for i := range 500 {
				key := fmt.Sprint((i * (worker + 1)) % 7)
				want := []string{key, strings.Repeat(key, 100)}
				if got, ok := l.Get(key); ok && !slices.Equal(got, want) {
					return fmt.Errorf("%s: %v", key, got)
				}
				l.put(key, want)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	if l.Used() > l.Most() || l.Len() == 0 {
		t.Errorf("%d bytes, %d lists", l.Used(), l.Len())
	}
}
