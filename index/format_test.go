package index

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"
	"github.com/cockroachdb/datadriven"
	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/series"
)

// smallSegment has all that the format knows: two pages of series, two sets of
// files, series without a label, and a label whose values have their postings
// as a list, a bitmap and a block.
func smallSegment(t testing.TB) (data []byte, head int64) {
	t.Helper()
	b := newBuilder([]indexed{
		{path: "date=2026-01-02/shard=0/a.parquet", size: 1000, identity: 100, time: series.TimeRange{Min: firstDay, Max: firstDay + 59_000_000}},
		{path: "date=2026-01-02/shard=0/b.parquet", size: 2000, identity: 200, time: series.TimeRange{Min: -1, Max: firstDay + 119_000_000}},
	})
	var sets []labels.Labels
	for i := range 260 {
		zone := "west"
		switch {
		case i < 90:
			zone = "east"
		case i >= 250:
			zone = "weird"
		case i%3 > 0:
			zone = ""
		}
		pairs := []string{"n", fmt.Sprintf("%03d", i)}
		if zone != "" {
			pairs = append(pairs, "zone", zone)
			if i%2 > 0 {
				pairs = append(pairs, "odd", "é")
			}
		}
		sets = append(sets, metric("cpu", pairs...))
	}
	slices.SortFunc(sets, func(a, b labels.Labels) int { return series.Compare(a, b, series.IDOf(a), series.IDOf(b)) })
	for i, l := range sets {
		runs := []where{{0, 0, i, 1}}
		if i >= 250 {
			runs = []where{{0, 1, i, 2}, {1, 0, 300, 7}}
		}
		b.add(l, series.IDOf(l), runs)
	}
	data, head, err := b.finish()
	if err != nil {
		t.Fatal(err)
	}
	return data, head
}

// TestFormat pins the format.
//
//	write  a hash of smallSegment; a new version of zstd may change it
//	read [restarts=n]
//	       what the bytes of the input say. The input never changes: segments
//	       lie in stores
func TestFormat(t *testing.T) {
	datadriven.RunTest(t, "testdata/format", func(t *testing.T, d *datadriven.TestData) string {
		switch d.Cmd {
		case "write":
			data, head := smallSegment(t)
			return fmt.Sprintf("%d bytes, of them %d to be read first, xxhash64 %016x\n", len(data), head, xxhash.Sum64(data))
		case "read":
			data, err := hex.DecodeString(strings.Join(strings.Fields(d.Input), ""))
			if err != nil {
				t.Fatal(err)
			}
			restarts := 0
			d.MaybeScanArgs(t, "restarts", &restarts)
			return dump(t, data, restarts)
		}
		t.Fatalf("unknown command %s", d.Cmd)
		return ""
	})
}

// TestFormatIsWritten: what the builder makes says what the pinned bytes say,
// whatever zstd makes of it.
func TestFormatIsWritten(t *testing.T) {
	var pinned string
	datadriven.RunTest(t, "testdata/format", func(t *testing.T, d *datadriven.TestData) string {
		if d.Cmd == "read" {
			pinned = d.Expected
		}
		return d.Expected
	})
	data, _ := smallSegment(t)
	if got := dump(t, data, restartSeries); pinned == "" || got != pinned {
		t.Errorf("the builder's segment says\n%s\nand not\n%s", got, pinned)
	}
}

// brief is bytes in hex, or their sum.
func brief(b []byte) string {
	if len(b) > 512 {
		return fmt.Sprintf("%d bytes, xxhash64 %016x\n", len(b), xxhash.Sum64(b))
	}
	var out strings.Builder
	for ; len(b) > 0; b = b[min(len(b), 40):] {
		fmt.Fprintf(&out, "%x\n", b[:min(len(b), 40)])
	}
	return out.String()
}

// dump tells what a segment holds: pages of a few values and of a few series as
// bytes, decompressed, and in words; of many the first and the last, and a sum.
func dump(t testing.TB, data []byte, restarts int) string {
	t.Helper()
	tb := newTable(t, nil)
	const key = Folder + "/small.idx"
	if _, err := tb.store.Put(t.Context(), root+"/"+key, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	s, err := tb.open(Options{}).segment(t.Context(), &Segment{Key: key, Bytes: int64(len(data)), Restarts: restarts})
	if err != nil {
		t.Fatal(err)
	}
	block := func(at span) []byte {
		raw, err := s.blocks(t.Context(), []span{at})
		if err != nil {
			t.Fatal(err)
		}
		return raw[0]
	}
	var out strings.Builder
	fmt.Fprintf(&out, "magic %s\n", data[:len(magic)])
	for i, f := range s.files {
		fmt.Fprintf(&out, "file %d: %s, %d bytes, identity %d, time %d to %d\n", i, f.path, f.size, f.identity, f.time.Min, f.time.Max)
	}
	for i, set := range s.sets {
		fmt.Fprintf(&out, "file set %d: %v\n", i, set)
	}
	for _, i := range s.sorted {
		l := &s.labels[i]
		fmt.Fprintf(&out, "label %d %s: file set %d, %d values, %d pages\n", i, l.name, l.set, l.values, len(l.pages))
		for j, p := range l.pages {
			raw := block(p.span)
			fmt.Fprintf(&out, "page %d from %q:\n%s", j, p.first, brief(raw))
			n := 0
			if err := s.values(raw, func(v *value) bool {
				if n++; n > 4 {
					return true
				}
				fmt.Fprintf(&out, "  %q: file set %d, %d series, ", v.text, v.set, v.count)
				m := newBitmap()
				switch v.kind {
				case postingsBlock:
					if m, err = openBitmap(block(v.block), s.total); err != nil {
						t.Fatal(err)
					}
				default:
					if err := s.postingsInto(m, v); err != nil {
						t.Fatal(err)
					}
				}
				fmt.Fprintf(&out, "%s %s\n", []string{"list", "bitmap", "block"}[v.kind], m)
				return true
			}); err != nil {
				t.Fatal(err)
			}
		}
	}
	fmt.Fprintf(&out, "%d series, %d pages:\n", s.total, len(s.pages))
	for _, p := range s.pages {
		out.WriteString(brief(block(p)))
	}
	for o := range s.total { // alone it is what it is among all
		if err := s.series(t.Context(), []uint32{uint32(o)}, &decoding{}, func(row) error { return nil }); err != nil {
			t.Fatalf("series %d alone: %v", o, err)
		}
	}
	n := 0
	if err := s.series(t.Context(), s.ordinals(nil), &decoding{}, func(r row) error {
		if n++; n > 4 && n <= s.total-4 {
			return nil
		}
		fmt.Fprintf(&out, "  %016x %s %v\n", uint64(r.ID), r.Labels, r.runs)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// FuzzBlocks: no content of a block, checksum or not, does more than fail. The
// seeds are small and so is what is tried, since go test makes an input that
// is of interest smaller by trying all its parts: of 2 KiB, two million.
func FuzzBlocks(f *testing.F) {
	data, _ := smallSegment(f)
	end := len(data) - tailBytes
	dir := data[end-int(binary.LittleEndian.Uint64(data[end:])) : end]
	raw, err := openBlock(dir)
	if err != nil {
		f.Fatal(err)
	}
	sound := &segment{size: int64(len(data))}
	if err := sound.parse(raw); err != nil {
		f.Fatal(err)
	}
	seeds := [][]byte{nil, dir, raw}
	for _, at := range []span{sound.pages[1], sound.label("odd").pages[0].span, sound.label("zone").pages[0].span} {
		b, err := openBlock(data[at.offset:at.end()])
		if err != nil {
			f.Fatal(err)
		}
		seeds = append(seeds, b)
	}
	if err := sound.values(seeds[len(seeds)-1], func(v *value) bool {
		if v.kind == postingsBlock {
			b, err := openBlock(data[v.block.offset:v.block.end()])
			if err != nil {
				f.Fatal(err)
			}
			seeds = append(seeds, b)
		}
		return true
	}); err != nil {
		f.Fatal(err)
	}
	const most = 512
	for _, seed := range seeds {
		if len(seed) > most {
			f.Fatalf("a seed of %d bytes", len(seed))
		}
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > most {
			return
		}
		check := func(err error) {
			if err != nil && !errors.Is(err, ErrCorrupt) {
				t.Fatalf("error = %v", err)
			}
		}
		_, err := openBlock(b)
		check(err)
		block, n := appendBlock(nil, b)
		if again, err := openBlock(block); err != nil || n != len(block) || !bytes.Equal(again, b) {
			t.Fatalf("a block comes back as %x, %v", again, err)
		}
		s := &segment{size: int64(len(data))}
		check(s.parse(b))
		check(sound.values(b, func(v *value) bool {
			if v.kind != postingsBlock {
				check(sound.postingsInto(newBitmap(), v))
			}
			return true
		}))
		for _, restarts := range []int{0, restartSeries} {
			paged := *sound
			paged.restarts = restarts
			check((&decoding{}).page(&paged, 1, b, []uint32{256, 257, 259}, func(row) error { return nil }))
			check((&decoding{}).page(&paged, 0, b, []uint32{17, 200}, func(row) error { return nil }))
		}
		_, err = openBitmap(b, sound.total)
		check(err)
	})
}
