package writer

import (
	"testing"

	"pgregory.net/rapid"

	"cardinalsin/series"
)

// TestIDIndex: an index gives of each ID the series that was put last, whatever
// else has a tag near it, through growth.
func TestIDIndex(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var x idIndex
		if rapid.Bool().Draw(t, "guessed") {
			x.secret = 1 // IDs with the same upper half have the same tag
		}
		var blocks [][]memSeries
		want := map[series.ID]seriesRef{}
		// Few IDs, some in the same half; as many as make it grow.
		id := rapid.OneOf(rapid.Uint64Range(0, 9), rapid.Uint64Range(1<<32, 1<<32+9), rapid.Uint64())
		count := rapid.SampledFrom([]int{10, 60, 500}).Draw(t, "count")
		for n, raw := range rapid.SliceOfN(id, count, count).Draw(t, "ids") {
			id := series.ID(raw)
			s, tag := x.slot(id, blocks)
			if s.ref != want[id] {
				t.Fatalf("series %d of ID %d, want %d", s.ref, id, want[id])
			}
			if n%blockSeries == 0 {
				blocks = append(blocks, make([]memSeries, 0, blockSeries))
			}
			block := &blocks[len(blocks)-1]
			*block = append(*block, memSeries{id: id})
			want[id] = seriesRef(n + 1)
			x.put(s, tag, want[id])
		}
		for id, ref := range want {
			if s, _ := x.slot(id, blocks); s.ref != ref {
				t.Fatalf("series %d of ID %d, want %d", s.ref, id, ref)
			}
		}
		if x.used != len(want) || 4*x.used > 3*len(x.slots) {
			t.Fatalf("%d of %d slots used for %d IDs", x.used, len(x.slots), len(want))
		}
	})
}
