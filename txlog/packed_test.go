package txlog

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"cardinalsin/action"
)

func optional[T any](t *rapid.T, g *rapid.Generator[T], label string) *T {
	if !rapid.Bool().Draw(t, "has "+label) {
		return nil
	}
	v := g.Draw(t, label)
	return &v
}

func drawVector(t *rapid.T) *action.DeletionVector {
	if !rapid.Bool().Draw(t, "vector") {
		return nil
	}
	return &action.DeletionVector{
		StorageType: rapid.SampledFrom([]string{"", "u", "i", "p"}).Draw(t, "storage"), PathOrInlineDV: rapid.StringN(0, 8, 8).Draw(t, "inline"),
		Offset: optional(t, rapid.Int32(), "offset"), SizeInBytes: rapid.Int32().Draw(t, "vectorSize"), Cardinality: rapid.Int64().Draw(t, "cardinality"),
	}
}

// noNUL draws text for paths, of lengths around those where a varint grows.
func noNUL() *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		s := strings.ReplaceAll(rapid.String().Draw(t, "text"), "\x00", "")
		return s + strings.Repeat("x", rapid.SampledFrom([]int{1, 127, 128, 20_000}).Draw(t, "pad"))
	})
}

func drawAdd(t *rapid.T) action.Add {
	return action.Add{
		Path:            rapid.OneOf(noNUL(), rapid.SampledFrom([]string{"file:/a", "file:///a", "file://host/a", "file:", "/a"})).Draw(t, "path"),
		PartitionValues: action.Object(rapid.SampledFrom([]string{"", `{"a":"1"}`, `{"a":"` + strings.Repeat("v", maxValueText) + `"}`}).Draw(t, "values")),
		Size:            rapid.Int64().Draw(t, "size"), ModificationTime: rapid.Int64().Draw(t, "modified"), DataChange: rapid.Bool().Draw(t, "change"),
		Stats: rapid.StringN(0, 3, 9).Draw(t, "stats"), Tags: action.Object(rapid.StringN(0, 3, 9).Draw(t, "tags")),
		DeletionVector: drawVector(t), BaseRowID: optional(t, rapid.Int64(), "row"), DefaultRowCommitVersion: optional(t, rapid.Int64(), "commit"),
		ClusteringProvider: rapid.StringN(0, 3, 9).Draw(t, "clustering"),
	}
}

// What is packed comes out as it was, and neither it nor its neighbours change
// what is read later.
func TestPackedRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		values := newValueTable()
		k := packer{values: values}
		k.grow(rapid.IntRange(0, 300).Draw(t, "grow"))
		var adds []action.Add
		var removes []action.Remove
		var packedAdds, packedRemoves []packed
		for range rapid.IntRange(1, 8).Draw(t, "n") {
			a := drawAdd(t)
			p, err := k.add(&a)
			if err != nil {
				t.Fatal(err)
			}
			adds, packedAdds = append(adds, a), append(packedAdds, p)
			r := action.Remove{
				Path: a.Path, DeletionTimestamp: a.ModificationTime, DataChange: a.DataChange, ExtendedFileMetadata: rapid.Bool().Draw(t, "extended"),
				PartitionValues: a.PartitionValues, Size: a.Size, Stats: a.Stats, Tags: a.Tags, DeletionVector: a.DeletionVector,
				BaseRowID: a.BaseRowID, DefaultRowCommitVersion: a.DefaultRowCommitVersion,
			}
			if p, err = k.remove(&r); err != nil {
				t.Fatal(err)
			}
			removes, packedRemoves = append(removes, r), append(packedRemoves, p)
		}
		var f file
		for i := range adds {
			var a action.Add
			packedAdds[i].unpack(*values.texts.Load(), &f)
			f.add(&a)
			if d := cmp.Diff(adds[i], a); d != "" {
				t.Fatal(d)
			}
			var r action.Remove
			packedRemoves[i].unpack(*values.texts.Load(), &f)
			f.remove(&r)
			if d := cmp.Diff(removes[i], r); d != "" {
				t.Fatal(d)
			}
			if packedAdds[i].size() != a.Size || packedAdds[i].time() != a.ModificationTime {
				t.Fatalf("size %d, time %d: %+v", packedAdds[i].size(), packedAdds[i].time(), a)
			}
			probe, err := k.key(a.Key())
			if err != nil || less(probe, packedAdds[i]) || less(packedAdds[i], probe) || less(packedAdds[i], packedRemoves[i]) {
				t.Fatalf("keys of one file differ: %+v, %v", a, err)
			}
		}
	})
}

// A path with a NUL could be taken for another file with a deletion vector.
func TestPackedRefusesNUL(t *testing.T) {
	s := emptySnapshot()
	if _, err := s.apply(0, &action.Commit{Adds: []action.Add{{Path: "a\x00b"}}}); !errors.Is(err, action.ErrCorrupt) {
		t.Fatalf("got %v", err)
	}
	if _, ok := s.File(action.Key{Path: "a\x00b"}); ok {
		t.Fatal("found")
	}
}

// A file set behaves as a map that is copied whole at each version, for few
// actions at a time and for many.
func TestFileSetLikeMap(t *testing.T) {
	values := newValueTable()
	rapid.Check(t, func(t *rapid.T) {
		k := packer{values: values}
		pack := func(n, size int) packed {
			p, err := k.add(&action.Add{Path: fmt.Sprintf("f%05d", n), Size: int64(size)})
			if err != nil {
				t.Fatal(err)
			}
			return p
		}
		type version struct {
			set   fileSet
			model map[int]int
		}
		versions := []version{{newFileSet(), map[int]int{}}}
		for step := range rapid.IntRange(1, 6).Draw(t, "steps") {
			from := versions[rapid.IntRange(0, len(versions)-1).Draw(t, "from")]
			next := version{fileSet{from.set.tree.Copy()}, maps.Clone(from.model)}
			n := rapid.SampledFrom([]int{1, 50, bulkMin, 3 * bulkMin}).Draw(t, "n")
			first := rapid.IntRange(0, 8000).Draw(t, "first")
			stride := rapid.SampledFrom([]int{1, 3, 7919}).Draw(t, "stride")
			var all []packed
			var numbers []int // some strides come by a file twice
			for i := range n {
				numbers = append(numbers, (first+i*stride)%9000)
				all = append(all, pack(numbers[i], step+1))
			}
			var heard, want int
			hear := func(p packed) { heard += int(p.size()) }
			remove := rapid.IntRange(0, 2).Draw(t, "op") == 0
			for _, f := range numbers {
				want += next.model[f]
				if delete(next.model, f); !remove {
					next.model[f] = step + 1
				}
			}
			if remove {
				next.set.remove(all, hear)
			} else {
				next.set.put(all, hear)
			}
			if heard != want {
				t.Fatalf("heard of %d bytes, want %d", heard, want)
			}
			versions = append(versions, next)
		}
		for i, v := range versions {
			var got []string
			for a := range v.set.adds(values) {
				got = append(got, fmt.Sprint(a.Path, a.Size))
			}
			var want []string
			for _, f := range slices.Sorted(maps.Keys(v.model)) {
				want = append(want, fmt.Sprint(fmt.Sprintf("f%05d", f), v.model[f]))
			}
			if !slices.Equal(got, want) {
				t.Fatalf("version %d: %d files, want %d", i, len(got), len(want))
			}
		}
	})
}

// Adds that are kept stay what they were while the range goes on.
func TestFilesMayBeKept(t *testing.T) {
	s := emptySnapshot()
	c := firstCommit()
	for i := range 3 * yieldBatch {
		c.Adds = append(c.Adds, action.Add{Path: fmt.Sprintf("f%05d", i), Size: int64(i)})
	}
	s, err := s.apply(0, c)
	if err != nil {
		t.Fatal(err)
	}
	for i, a := range slices.Collect(s.Files()) {
		if d := cmp.Diff(c.Adds[i], *a); d != "" {
			t.Fatal(d)
		}
	}
}
