package deletion

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/RoaringBitmap/roaring/v2/roaring64"
	"github.com/google/go-cmp/cmp"

	"cardinalsin/action"
	"cardinalsin/storage/mem"
)

// here is a table at "t" whose absolute URIs are those of a file system.
type here struct{}

var errOutside = errors.New("outside the store")

func (here) Root() string { return "t" }
func (here) Key(uri string) (string, error) {
	if key, ok := strings.CutPrefix(uri, "file:/store/"); ok {
		return key, nil
	}
	return "", fmt.Errorf("%w: %s", errOutside, uri)
}

// bitmapOf encodes rows as a vector without its frame.
func bitmapOf(t testing.TB, rows ...uint64) []byte {
	t.Helper()
	b, err := roaring64.BitmapOf(rows...).ToPortableBytes()
	if err != nil {
		t.Fatal(err)
	}
	return append(binary.LittleEndian.AppendUint32(nil, magic), b...)
}

func frame(bitmap []byte) []byte {
	out := binary.BigEndian.AppendUint32(nil, uint32(len(bitmap)))
	return binary.BigEndian.AppendUint32(append(out, bitmap...), crc32.ChecksumIEEE(bitmap))
}

// encodeZ85 is the inverse of decodeZ85, with padding.
func encodeZ85(b []byte) string {
	var out strings.Builder
	for ; len(b) > 0; b = b[min(4, len(b)):] {
		var four [4]byte
		copy(four[:], b)
		n := binary.BigEndian.Uint32(four[:])
		var digits [5]byte
		for i := range digits {
			digits[4-i] = z85[n%85]
			n /= 85
		}
		out.Write(digits[:])
	}
	return out.String()
}

// all collects the rows of a vector, at most n.
func all(v *Vector, n int) []uint64 {
	var out []uint64
	next := v.Rows()
	for buf := make([]uint64, 3); len(out) < n; {
		k := next(buf)
		if k == 0 {
			return out
		}
		out = append(out, buf[:k]...)
	}
	return out[:n]
}

func ptr(n int32) *int32 { return &n }

// TestRead reads each way to store a vector, and each way to damage one.
func TestRead(t *testing.T) {
	ctx := context.Background()
	rows := []uint64{0, 3, 4, 70_000, 1 << 33}
	bitmap := bitmapOf(t, rows...)
	other := bitmapOf(t, 7)
	size := int32(len(bitmap))
	const id = "61d16c75-6994-46b7-a15b-8b538852e50e" // of "vBn[lx{q8@P<9BNH/isA", as delta-rs' table-with-dv-small has it
	const encoded = "vBn[lx{q8@P<9BNH/isA"
	object := slices.Concat([]byte{version}, frame(bitmap), frame(other))
	second := int32(1 + len(bitmap) + 8)
	spoil := func(at int, mask byte) []byte {
		b := slices.Clone(object)
		b[at] ^= mask
		return b
	}
	for _, c := range []struct {
		name string
		dv   action.DeletionVector
		key  string
		data []byte
		want []uint64
		err  error
	}{
		{"uuid", action.DeletionVector{StorageType: "u", PathOrInlineDV: encoded, Offset: ptr(1), SizeInBytes: size, Cardinality: 5}, "t/deletion_vector_" + id + ".bin", object, rows, nil},
		{"no offset", action.DeletionVector{StorageType: "u", PathOrInlineDV: encoded, SizeInBytes: size, Cardinality: 5}, "t/deletion_vector_" + id + ".bin", object, rows, nil},
		{"prefix", action.DeletionVector{StorageType: "u", PathOrInlineDV: "ab" + encoded, Offset: ptr(1), SizeInBytes: size, Cardinality: 5}, "t/ab/deletion_vector_" + id + ".bin", object, rows, nil},
		{"name of delta-spark's tests", action.DeletionVector{StorageType: "u", PathOrInlineDV: encoded, Offset: ptr(1), SizeInBytes: size, Cardinality: 5}, "t/test%dv%prefix-deletion_vector_" + id + ".bin", object, rows, nil},
		{"second in its object", action.DeletionVector{StorageType: "u", PathOrInlineDV: encoded, Offset: &second, SizeInBytes: int32(len(other)), Cardinality: 1}, "t/deletion_vector_" + id + ".bin", object, []uint64{7}, nil},
		{"absolute", action.DeletionVector{StorageType: "p", PathOrInlineDV: "file:/store/a/b.bin", Offset: ptr(1), SizeInBytes: size, Cardinality: 5}, "a/b.bin", object, rows, nil},
		{"outside", action.DeletionVector{StorageType: "p", PathOrInlineDV: "s3://x/b.bin", Offset: ptr(1), SizeInBytes: size, Cardinality: 5}, "a/b.bin", object, nil, errOutside},
		{"inline", action.DeletionVector{StorageType: "i", PathOrInlineDV: encodeZ85(bitmap), SizeInBytes: size, Cardinality: 5}, "x", nil, rows, nil},
		{"inline of delta-spark", action.DeletionVector{StorageType: "i", PathOrInlineDV: "^Bg9^0rr910000000000iXQKl0rr91000935c8Xg000311onP9", SizeInBytes: 40, Cardinality: 4}, "x", nil, []uint64{0, 1, 4, 5}, nil},

		{"inline of the Rust kernel", action.DeletionVector{StorageType: "i", PathOrInlineDV: "^Bg9^0rr910000000000iXQKl0rr91000005c8Xg##093", SizeInBytes: 34, Cardinality: 1}, "x", nil, []uint64{3}, nil},

		{"missing", action.DeletionVector{StorageType: "u", PathOrInlineDV: encoded, Offset: ptr(1), SizeInBytes: size, Cardinality: 5}, "x", nil, nil, ErrCorrupt},
		{"short", action.DeletionVector{StorageType: "u", PathOrInlineDV: encoded, Offset: ptr(1), SizeInBytes: size, Cardinality: 5}, "t/deletion_vector_" + id + ".bin", object[:size], nil, ErrCorrupt},
		{"other size", action.DeletionVector{StorageType: "u", PathOrInlineDV: encoded, Offset: ptr(1), SizeInBytes: size - 1, Cardinality: 5}, "t/deletion_vector_" + id + ".bin", object, nil, ErrCorrupt},
		{"huge size", action.DeletionVector{StorageType: "u", PathOrInlineDV: encoded, Offset: ptr(1), SizeInBytes: 1<<31 - 1, Cardinality: 5}, "t/deletion_vector_" + id + ".bin", object, nil, ErrCorrupt},
		{"other cardinality", action.DeletionVector{StorageType: "u", PathOrInlineDV: encoded, Offset: ptr(1), SizeInBytes: size, Cardinality: 4}, "t/deletion_vector_" + id + ".bin", object, nil, ErrCorrupt},
		{"other version", action.DeletionVector{StorageType: "u", PathOrInlineDV: encoded, Offset: ptr(1), SizeInBytes: size, Cardinality: 5}, "t/deletion_vector_" + id + ".bin", spoil(0, 3), nil, ErrCorrupt},
		{"a bit flipped", action.DeletionVector{StorageType: "u", PathOrInlineDV: encoded, Offset: ptr(1), SizeInBytes: size, Cardinality: 5}, "t/deletion_vector_" + id + ".bin", spoil(1+4+int(size)-1, 4), nil, ErrCorrupt},
		{"negative offset", action.DeletionVector{StorageType: "u", PathOrInlineDV: encoded, Offset: ptr(-1), SizeInBytes: size, Cardinality: 5}, "t/deletion_vector_" + id + ".bin", object, nil, ErrCorrupt},
		{"no uuid", action.DeletionVector{StorageType: "u", PathOrInlineDV: encoded[1:], Offset: ptr(1), SizeInBytes: size, Cardinality: 5}, "x", nil, nil, ErrCorrupt},
		{"uuid not in Z85", action.DeletionVector{StorageType: "u", PathOrInlineDV: "~" + encoded[1:], Offset: ptr(1), SizeInBytes: size, Cardinality: 5}, "x", nil, nil, ErrCorrupt},
		{"a prefix that leaves the table", action.DeletionVector{StorageType: "u", PathOrInlineDV: "../x" + encoded, Offset: ptr(1), SizeInBytes: size, Cardinality: 5}, "x", nil, nil, ErrCorrupt},
		{"unknown storage", action.DeletionVector{StorageType: "z", PathOrInlineDV: encoded, SizeInBytes: size, Cardinality: 5}, "x", nil, nil, ErrCorrupt},
		{"inline, other size", action.DeletionVector{StorageType: "i", PathOrInlineDV: encodeZ85(bitmap), SizeInBytes: 4, Cardinality: 5}, "x", nil, nil, ErrCorrupt},
		{"inline, no magic", action.DeletionVector{StorageType: "i", PathOrInlineDV: encodeZ85(bitmap[4:]), SizeInBytes: size - 4, Cardinality: 5}, "x", nil, nil, ErrCorrupt},
		{"inline, not in Z85", action.DeletionVector{StorageType: "i", PathOrInlineDV: "####~", SizeInBytes: 4, Cardinality: 5}, "x", nil, nil, ErrCorrupt},
		{"inline, more than 32 bits", action.DeletionVector{StorageType: "i", PathOrInlineDV: "%nSc100000", SizeInBytes: 4, Cardinality: 5}, "x", nil, nil, ErrCorrupt},
		{"a row beyond any file", action.DeletionVector{StorageType: "i", PathOrInlineDV: encodeZ85(bitmapOf(t, 1<<63)), SizeInBytes: int32(len(bitmapOf(t, 1<<63))), Cardinality: 1}, "x", nil, nil, ErrCorrupt},
	} {
		t.Run(c.name, func(t *testing.T) {
			store := mem.New(mem.Options{})
			if _, err := store.Put(ctx, c.key, bytes.NewReader(c.data)); err != nil {
				t.Fatal(err)
			}
			v, err := Read(ctx, store, here{}, &c.dv)
			if !errors.Is(err, c.err) || (err != nil) != (c.err != nil) {
				t.Fatalf("error is %v, not %v", err, c.err)
			}
			if errors.Is(err, ErrCorrupt) && strings.HasPrefix(c.key, "t/") && !strings.Contains(err.Error(), c.key) {
				t.Errorf("%v does not name %s", err, c.key)
			}
			if c.want == nil {
				return
			}
			got := all(v, 1<<16)
			if d := cmp.Diff(c.want, got); d != "" || v.Len() != int64(len(c.want)) {
				t.Errorf("%d rows (-want +got):\n%s", v.Len(), d)
			}
		})
	}
}

// FuzzDecode: no bytes make the decoders panic or take more memory than in
// proportion to them.
func FuzzDecode(f *testing.F) {
	f.Add(bitmapOf(f, 1, 2, 3, 1<<40), int64(4))
	f.Add(frame(bitmapOf(f, 9)), int64(1))
	f.Add(append(binary.LittleEndian.AppendUint32(nil, magic), 0, 0, 0, 0, 1, 0, 0, 0), int64(0))
	runs := roaring64.New()
	runs.AddRange(0, 1<<20)
	runs.RunOptimize()
	b, err := runs.ToPortableBytes()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append(binary.LittleEndian.AppendUint32(nil, magic), b...), int64(1<<20))
	f.Fuzz(func(t *testing.T, data []byte, rows int64) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		bitmap, err := unframe(data)
		if err != nil {
			bitmap = data
		}
		v, err := decode(bitmap, rows)
		runtime.ReadMemStats(&after)
		// A header of 65,536 containers is read at once: 256 KiB.
		if spent := after.TotalAlloc - before.TotalAlloc; spent > 1<<20+64*uint64(len(data)) {
			t.Fatalf("%d bytes for %d", spent, len(data))
		}
		if err != nil {
			return
		}
		got := all(v, 1<<16)
		if n := min(rows, 1<<16); int64(len(got)) != n {
			t.Fatalf("%d rows, not %d", len(got), n)
		}
		if !slices.IsSorted(got) || len(got) > 0 && got[len(got)-1] >= maxRows {
			t.Fatalf("rows %d", got)
		}
	})
}

func FuzzZ85(f *testing.F) {
	f.Add("vBn[lx{q8@P<9BNH/isA")
	f.Fuzz(func(t *testing.T, s string) {
		b, err := decodeZ85(s)
		if err == nil && len(b)%4 == 0 && encodeZ85(b) != s {
			t.Fatalf("%q is %x, which is %q", s, b, encodeZ85(b))
		}
	})
}
