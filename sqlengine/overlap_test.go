package sqlengine

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/planner"
	"cardinalsin/series"
)

// TestContestedIsComplete: whatever instant and key two files of a shard, or a
// file and the head, may share lies in what is compared.
func TestContestedIsComplete(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		span := func(of string) series.TimeRange {
			lo := rapid.IntRange(0, 200).Draw(r, of)
			return series.TimeRange{Min: series.Timestamp(lo), Max: series.Timestamp(lo + rapid.IntRange(0, 12).Draw(r, "length"))}
		}
		files := make([]planner.File, rapid.IntRange(0, 60).Draw(r, "files"))
		for i := range files {
			first := rapid.IntRange(0, 5).Draw(r, "key")
			files[i] = planner.File{
				Tagged: rapid.IntRange(0, 30).Draw(r, "tagged") > 0,
				Tags: chunk.Tags{Time: span("start"), Keys: chunk.KeyRange{
					MinName: "m", MinID: series.ID(first), MaxName: "m", MaxID: series.ID(first + rapid.IntRange(0, 3).Draw(r, "keys")),
					Bounded: rapid.IntRange(0, 9).Draw(r, "bounded") > 0,
				}},
				Add: &action.Add{Path: fmt.Sprint(i), PartitionValues: action.ObjectOf(map[string]string{"shard": rapid.SampledFrom([]string{"1", "2"}).Draw(r, "shard")})},
			}
		}
		head, hasHead := span("head"), rapid.Bool().Draw(r, "has head")
		c := findContested(files, head, hasHead)
		covered := func(in []series.TimeRange, want series.TimeRange) bool {
			return slices.ContainsFunc(in, func(r series.TimeRange) bool { return r.Min <= want.Min && want.Max <= r.Max })
		}
		for i := range files {
			a := fileRange(&files[i])
			if hasHead && a.Overlaps(head) && (!slices.Contains(c.headFiles, i) || !covered(c.headIntervals, intersect(a, head))) {
				r.Fatalf("file %d and the head: %+v", i, c)
			}
			for j := range i {
				b := fileRange(&files[j])
				shardOf := func(f *planner.File) string { s, _ := f.Add.PartitionValues.Get("shard"); return s }
				both := files[i].Tagged && files[j].Tagged
				if !a.Overlaps(b) || both && (shardOf(&files[i]) != shardOf(&files[j]) || !files[i].Tags.Keys.Overlaps(files[j].Tags.Keys)) {
					continue
				}
				if !slices.Contains(c.files, i) || !slices.Contains(c.files, j) || !covered(c.intervals, intersect(a, b)) {
					r.Fatalf("files %d and %d: %+v", i, j, c)
				}
			}
		}
		for _, in := range [][]series.TimeRange{c.intervals, c.headIntervals} {
			if len(in) > maxIntervals {
				r.Fatalf("%d intervals", len(in))
			}
			for k := 1; k < len(in); k++ {
				if in[k].Min <= in[k-1].Max {
					r.Fatalf("intervals out of order: %v", in)
				}
			}
		}
	})
}

// TestDisjointIsFree: files that do not overlap are not compared.
func TestDisjointIsFree(t *testing.T) {
	file := func(shard string, lo, hi series.Timestamp, first, last series.ID) planner.File {
		return planner.File{Tagged: true, Tags: chunk.Tags{
			Time: series.TimeRange{Min: lo, Max: hi}, Keys: chunk.KeyRange{MinName: "m", MinID: first, MaxName: "m", MaxID: last, Bounded: true},
		}, Add: &action.Add{PartitionValues: action.ObjectOf(map[string]string{"shard": shard})}}
	}
	files := []planner.File{
		file("1", 0, 9, 0, 9),
		file("1", 10, 19, 0, 9),  // later
		file("1", 0, 19, 10, 19), // other keys
		file("2", 0, 19, 0, 19),  // other shard
	}
	c := findContested(files, series.TimeRange{Min: 20, Max: 30}, true)
	if len(c.files)+len(c.headFiles)+len(c.intervals)+len(c.headIntervals) > 0 {
		t.Errorf("compared: %+v", c)
	}
}
