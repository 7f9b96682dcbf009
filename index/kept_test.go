package index

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/internal/lru"
	"cardinalsin/series"
	"cardinalsin/storage"
	"cardinalsin/storage/meter"
)

// TestBlocksAreKept: a small question that is asked again makes no request, has
// the same answer, and others of the same blocks too; what is kept stays within
// its bytes.
func TestBlocksAreKept(t *testing.T) {
	var reads *meter.Store
	tb := newTable(t, func(s storage.Store) storage.Store {
		reads = meter.New(s, meter.Options{})
		return reads
	})
	var sets []labels.Labels
	for i := range 1000 {
		sets = append(sets, metric("cpu", "pod", fmt.Sprintf("pod-%04d", i)))
	}
	path := tb.write(0, 1, sets...)
	tb.index(Policy{MinFiles: 1})
	x := tb.open(Options{})
	far(t, tb, x)
	ask := func(x *Index, pod string) int64 {
		t.Helper()
		sel := podIs(pod)
		sel.Range = series.AllTime
		before := reads.Snapshot()
		found, err := x.Find(t.Context(), tb.latest(), sel, []string{path}, Limits{})
		if err != nil || len(found.Series) != 1 || found.Series[0].Labels.Get("pod") != pod || len(found.Covered[path]) == 0 {
			t.Fatalf("%s: %v, %v", pod, found, err)
		}
		return reads.Snapshot().Since(before)[storage.OpGetRange].Calls
	}
	if ask(x, "pod-0007") == 0 {
		t.Error("the first question makes no request")
	}
	for range 3 {
		if n := ask(x, "pod-0007"); n != 0 {
			t.Errorf("%d requests for what is kept", n)
		}
	}
	for i := range 1000 {
		ask(x, fmt.Sprintf("pod-%04d", i))
	}
	for i := range 1000 {
		if n := ask(x, fmt.Sprintf("pod-%04d", i)); n != 0 {
			t.Fatalf("%d requests for pod %d, which is kept", n, i)
		}
	}
}

// TestKeptBlocksAreBounded: the ones used last stay.
func TestKeptBlocksAreBounded(t *testing.T) {
	b := keptBlocks{lru.New[blockKey, []byte](16 << 10)}
	key := func(i int) blockKey { return blockKey{"s", int64(i)} }
	b.put(key(-1), make([]byte, 4<<10)) // more than its part
	if _, ok := b.Get(key(-1)); ok {
		t.Error("a block that takes too much is kept")
	}
	for i := range 100 {
		b.put(key(i), bytes.Repeat([]byte{byte(i)}, 1000))
		b.Get(key(0))
		if b.Used() > b.Most() || b.Used() < 0 {
			t.Fatalf("%d bytes are kept", b.Used())
		}
	}
	for i, want := range map[int]bool{0: true, 1: false, 50: false, 99: true} {
		raw, ok := b.Get(key(i))
		if ok != want || ok && raw[0] != byte(i) {
			t.Errorf("block %d is kept: %v, want %v", i, ok, want)
		}
	}
}
