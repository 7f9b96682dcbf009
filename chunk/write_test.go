package chunk

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"cardinalsin/series"
)

// TestHybridWriter: what hybridWriter writes, hybrid reads, whatever the runs.
func TestHybridWriter(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		width := rapid.UintRange(1, 32).Draw(rt, "width")
		var w hybridWriter
		w.reset(width)
		var want []uint32
		for range rapid.IntRange(0, 30).Draw(rt, "runs") {
			v := uint32(rapid.Uint64Range(0, 1<<width-1).Draw(rt, "value"))
			n := rapid.SampledFrom([]int{1, 1, 1, 2, 3, 6, 7, 8, 9, 15, 100, 1000}).Draw(rt, "n")
			w.put(v, n)
			want = append(want, slices.Repeat([]uint32{v}, n)...)
		}
		r, err := newHybrid(w.finish(), width)
		if err != nil {
			rt.Fatal(err)
		}
		var got []uint32
		for len(got) < len(want) {
			v, n, err := r.next(len(want) - len(got))
			if err != nil {
				rt.Fatalf("after %d of %d values: %v", len(got), len(want), err)
			}
			got = append(got, slices.Repeat([]uint32{v}, n)...)
		}
		if d := cmp.Diff(want, got); d != "" {
			rt.Fatalf("-want +got:\n%s", d)
		}
		if len(r.data) > 0 {
			rt.Fatalf("%d bytes are left", len(r.data))
		}
	})
}

// TestDeltaWriter: what appendDelta writes, decodeDelta reads, extremes
// included.
func TestDeltaWriter(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		step := rapid.OneOf(rapid.Just(int64(15_000)), rapid.Int64Range(-3, 3), rapid.Int64(),
			rapid.SampledFrom([]int64{math.MinInt64, math.MaxInt64, 0, -1}))
		var want []int64
		last := rapid.Int64().Draw(rt, "first")
		for range rapid.SampledFrom([]int{0, 1, 2, 31, 32, 33, 34, 127, 128, 129, 130, 300}).Draw(rt, "n") {
			want = append(want, last)
			last += step.Draw(rt, "step")
		}
		got := make([]int64, len(want))
		if err := decodeDelta(got, appendDelta(nil, want)); err != nil {
			rt.Fatal(err)
		}
		if !slices.Equal(want, got) {
			rt.Fatalf("want %v, got %v", want, got)
		}
	})
}

// TestValueEncoding: values that repeat go by dictionary, with codes of one or
// two bytes; those that do not are as they are; all come back.
func TestValueEncoding(t *testing.T) {
	for _, tc := range []struct {
		distinct, rows int
		want           int32
	}{
		{1, 4, encodingRLEDict},
		{1, 3, encodingPlain},
		{255, 5000, encodingRLEDict},
		{256, 5000, encodingRLEDict},
		{257, 5000, encodingRLEDict},
		{1251, 5000, encodingPlain},
		{1250, 5000, encodingRLEDict},
		{32_768, 131_072, encodingRLEDict},
		{65_536, 262_144, encodingRLEDict},
		{65_537, 262_148, encodingPlain},
		{100_000, 100_000, encodingPlain},
	} {
		t.Run(fmt.Sprintf("%d of %d", tc.distinct, tc.rows), func(t *testing.T) {
			s := mk("m")
			for i := range tc.rows {
				v := math.Float64frombits(0x7ff0_0000_0000_0001 + uint64(i*tc.distinct/tc.rows)) // NaNs, each of its own
				s.Samples = append(s.Samples, series.Sample{Time: series.Timestamp(i), Value: v})
			}
			opts := Options{RowGroupRows: tc.rows}
			data := encode(t, opts, []Series{s}).Data
			f := reopen(t, data)
			c := f.groups[0].columns[f.byName[ColumnValue]]
			p, err := splitPages(data[c.offset:c.end()], &c)
			if err != nil {
				t.Fatal(err)
			}
			if got := p.data[0].encoding; got != tc.want {
				t.Errorf("encoding %d, want %d", got, tc.want)
			}
			got, err := read(data, everything)
			if err != nil {
				t.Fatal(err)
			}
			if len(got) != 1 || !slices.EqualFunc(s.Samples, got[0].Samples, series.Sample.Equal) {
				t.Error("rows differ")
			}
		})
	}
}
