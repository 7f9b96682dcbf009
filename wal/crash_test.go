package wal

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cardinalsin/series"
)

func randomBytes(n int) []byte {
	rng := rand.NewChaCha8([32]byte{1})
	b := make([]byte, n)
	if _, err := rng.Read(b); err != nil {
		panic(err)
	}
	return b
}

// dirState is every file of a directory with its contents.
func dirState(t testing.TB, dir string) map[string]string {
	t.Helper()
	state := map[string]string{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		state[e.Name()] = string(b)
	}
	return state
}

func copyDir(t testing.TB, dir string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil && !errors.Is(err, fs.ErrExist) {
		t.Fatal(err)
	}
	return to
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func wantDamage(t testing.TB, err error, segment string, offset int64) {
	t.Helper()
	damage := (*CorruptionError)(nil)
	if !errors.Is(err, ErrCorrupt) || !errors.As(err, &damage) {
		t.Fatalf("error is %v, want damage at %s:%d", err, segment, offset)
	}
	if damage.Segment != segment || damage.Offset != offset {
		t.Errorf("damage at %s:%d, want %s:%d: %v", damage.Segment, damage.Offset, segment, offset, err)
	}
}

// replayed opens a log and lists what it holds, sequences and batches checked;
// the error is that of Open or of Replay.
func replayed(t testing.TB, dir string) (records int, trimmed int64, err error) {
	t.Helper()
	l, err := Open(dir, Options{Events: Events{TailTrimmed: func(_ string, _, n int64) { trimmed += n }}})
	if err != nil {
		return 0, 0, err
	}
	defer func() {
		if closeErr := l.Close(); closeErr != nil {
			t.Error(closeErr)
		}
	}()
	size := int64(0)
	for name, text := range dirState(t, dir) {
		if strings.HasSuffix(name, segmentSuffix) {
			size += int64(len(text))
		}
	}
	if l.Bytes() != size {
		t.Errorf("after recovery the log has %d bytes, its files %d", l.Bytes(), size)
	}
	err = l.Replay(0, func(s Sequence, b series.Batch) error {
		records++
		if s != Sequence(records) {
			t.Errorf("record %d has sequence %d", records, s)
		}
		if want := testBatch(records); !batchesEqual(want, b) {
			t.Errorf("record %d is not what was appended", s)
		}
		return nil
	})
	return records, trimmed, err
}

func batchesEqual(a, b series.Batch) bool {
	ra, errA := encodeBatch(a)
	rb, errB := encodeBatch(b)
	return errA == nil && errB == nil && string(ra.payload) == string(rb.payload)
}

// buildLog makes a log of groups of records 1, 2, …, ends it by a crash or by
// Close, and returns where in the last segment each frame begins and, last,
// where the file ends.
func buildLog(t testing.TB, opts Options, sealed bool, groups ...int) (dir string, offsets []int64) {
	t.Helper()
	dir = t.TempDir()
	l := mustOpen(t, dir, opts)
	n := 0
	for _, size := range groups {
		var ns []int
		for range size {
			n++
			ns = append(ns, n)
		}
		mustAppend(t, l, ns...)
	}
	if sealed {
		mustClose(t, l)
	} else {
		crash(t, l)
	}
	names := segmentNames(t, dir)
	last := names[len(names)-1]
	if err := Dump(dir, func(e Entry) error {
		if e.Segment == last && e.Kind != EntryHeader {
			offsets = append(offsets, e.Offset)
		}
		return e.Err
	}); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, last))
	if err != nil {
		t.Fatal(err)
	}
	return dir, append(offsets, info.Size())
}

// edit changes the last segment of a log in place.
func edit(t testing.TB, dir string, change func([]byte) []byte) {
	t.Helper()
	names := segmentNames(t, dir)
	path := filepath.Join(dir, names[len(names)-1])
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, change(b), 0o600); err != nil {
		t.Fatal(err)
	}
}

// framesBefore is how many of the frames end at or before size.
func framesBefore(offsets []int64, size int64) int {
	n := 0
	for _, end := range offsets[1:] {
		if end <= size {
			n++
		}
	}
	return n
}

// TestTornTail cuts the file at every byte offset of its last records: exactly
// the records that are whole are recovered, the rest is told to be trimmed, and
// appends go on.
func TestTornTail(t *testing.T) {
	t.Parallel()
	dir, offsets := buildLog(t, Options{}, false, 1, 2, 3)
	base := dirState(t, dir)
	for size := offsets[2]; size <= offsets[6]; size++ {
		restoreDir(t, dir, base)
		edit(t, dir, func(b []byte) []byte { return b[:size] })
		want := framesBefore(offsets, size)
		got, trimmed, err := replayed(t, dir)
		if err != nil {
			t.Fatalf("cut at %d: %v", size, err)
		}
		if got != want {
			t.Errorf("cut at %d: %d records, want %d", size, got, want)
		}
		if wantTrimmed := size - offsets[want]; trimmed != wantTrimmed {
			t.Errorf("cut at %d: %d bytes trimmed, want %d", size, trimmed, wantTrimmed)
		}
	}
	l := mustOpen(t, dir, Options{})
	if first, _ := mustAppend(t, l, 7); first != 7 {
		t.Errorf("appending goes on at %d", first)
	}
}

func restoreDir(t testing.TB, dir string, state map[string]string) {
	t.Helper()
	for name := range dirState(t, dir) {
		if _, ok := state[name]; !ok {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, text := range state {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFlippedByte changes a bit of each byte of a segment: what is replayed is right,
// and where records are missing the error names the place. Only in the last
// group of a segment without a seal may the change pass for a torn tail.
func TestFlippedByte(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		opts   Options
		sealed bool
		// tornFrom is the first frame whose damage passes for a torn tail.
		tornFrom int
	}{
		{"crashed", Options{}, false, 3},
		{"closed", Options{}, true, 6},
		{"deferred", Options{Sync: SyncDeferred}, false, 0},
		{"deferred and closed", Options{Sync: SyncDeferred}, true, 6},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			dir, offsets := buildLog(t, tc.opts, tc.sealed, 1, 2, 3)
			base := dirState(t, dir)
			name := segmentName(1)
			for at := range offsets[len(offsets)-1] {
				restoreDir(t, dir, base)
				edit(t, dir, func(b []byte) []byte { b[at] ^= 1 << (at % 8); return b })
				got, _, err := replayed(t, dir)
				intact := framesBefore(offsets, at) // whole frames before the flipped byte
				switch {
				case at < segmentHeaderBytes:
					wantDamage(t, err, name, 0)
				case intact < tc.tornFrom:
					wantDamage(t, err, name, offsets[intact])
				case err != nil:
					t.Fatalf("byte %d: a torn tail is refused: %v", at, err)
				case got != min(intact, 6):
					t.Errorf("byte %d: %d records replayed, want %d", at, got, intact)
				}
				if t.Failed() {
					t.Fatalf("byte %d of frame %d was flipped", at, intact)
				}
			}
		})
	}
}

// TestFlippedByteInEarlierSegment: no byte of a segment with a successor may
// change unnoticed, its last ones included.
func TestFlippedByteInEarlierSegment(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := mustOpen(t, dir, Options{SegmentBytes: 1})
	mustAppend(t, l, 1, 2)
	mustAppend(t, l, 3)
	crash(t, l)
	base := dirState(t, dir)
	path := filepath.Join(dir, segmentName(1))
	for at := range base[segmentName(1)] {
		restoreDir(t, dir, base)
		b := []byte(base[segmentName(1)])
		b[at] ^= 0x10
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := replayed(t, dir); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("byte %d flipped: error is %v", at, err)
		}
		// What the table has already need not be read again.
		l, err := Open(dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if got := contents(t, l, 2); got != "3:3" {
			t.Errorf("byte %d flipped: after 2 the log holds %q", at, got)
		}
		mustClose(t, l)
	}
	t.Run("cut", func(t *testing.T) {
		for size := range base[segmentName(1)] {
			restoreDir(t, dir, base)
			if err := os.Truncate(path, int64(size)); err != nil {
				t.Fatal(err)
			}
			if _, _, err := replayed(t, dir); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("cut at %d: error is %v", size, err)
			}
		}
	})
	t.Run("missing", func(t *testing.T) {
		restoreDir(t, dir, base)
		l := mustOpen(t, dir, Options{SegmentBytes: 1})
		mustAppend(t, l, 4)
		mustClose(t, l)
		if err := os.Remove(filepath.Join(dir, segmentName(3))); err != nil {
			t.Fatal(err)
		}
		_, _, err := replayed(t, dir)
		wantDamage(t, err, segmentName(1), int64(len(base[segmentName(1)])))
	})
}

// TestGroupTornAnywhere: a crash during the write of a group leaves any of its
// blocks and not the others. No record of it was acknowledged, and the log must
// open, with the groups before it.
func TestGroupTornAnywhere(t *testing.T) {
	t.Parallel()
	for _, deferred := range []bool{false, true} {
		t.Run(fmt.Sprint("deferred=", deferred), func(t *testing.T) {
			opts, from := Options{}, 2
			if deferred {
				opts, from = Options{Sync: SyncDeferred}, 0 // nothing was ever synced
			}
			dir, offsets := buildLog(t, opts, false, 1, 1, 4)
			base := dirState(t, dir)
			const block = 16
			start, end := offsets[from], offsets[len(offsets)-1]
			rng := rand.New(rand.NewPCG(1, 2))
			for range 120 {
				restoreDir(t, dir, base)
				lost := end
				edit(t, dir, func(b []byte) []byte {
					for at := start; at < end; at += block {
						if rng.IntN(4) == 0 {
							clear(b[at:min(at+block, end)])
							lost = min(lost, at)
						}
					}
					return b
				})
				got, _, err := replayed(t, dir)
				if err != nil {
					t.Fatal(err)
				}
				if want := framesBefore(offsets, lost); got < from || got > 6 || got < want {
					t.Fatalf("%d records, want at least %d", got, want)
				}
			}
		})
	}
}

// TestTearThatHoldsFrames: bytes of a client that look like frames of this
// very segment do not turn a torn tail into damage unless they prove it, and
// never into records.
func TestTearThatHoldsFrames(t *testing.T) {
	dir, offsets := buildLog(t, Options{}, false, 1, 1, 1)
	edit(t, dir, func(b []byte) []byte {
		// The last group is torn right after its header; an older frame lies
		// behind, as in a block that the file system used before.
		old := b[offsets[1]:offsets[2]]
		return append(b[:offsets[2]+frameHeaderBytes], old...)
	})
	got, trimmed, err := replayed(t, dir)
	if err != nil || got != 2 || trimmed != frameHeaderBytes+offsets[2]-offsets[1] {
		t.Errorf("%d records, %d bytes trimmed, error %v", got, trimmed, err)
	}
}

func TestFrameOfAnotherSegmentDoesNotPass(t *testing.T) {
	dir, offsets := buildLog(t, Options{}, true, 1, 1)
	other, _ := buildLog(t, Options{}, true, 1, 1) // the same records of another writer
	foreign := dirState(t, other)[segmentName(1)]
	edit(t, dir, func(b []byte) []byte {
		copy(b[offsets[0]:offsets[1]], foreign[offsets[0]:])
		return b
	})
	_, _, err := replayed(t, dir)
	wantDamage(t, err, segmentName(1), offsets[0])
}

func TestSegmentUnderAnotherName(t *testing.T) {
	dir, _ := buildLog(t, Options{}, true, 1)
	if err := os.Rename(filepath.Join(dir, segmentName(1)), filepath.Join(dir, segmentName(9))); err != nil {
		t.Fatal(err)
	}
	_, err := Open(dir, Options{})
	wantDamage(t, err, segmentName(9), 0)
}

// TestUnsupportedVersion: intact bytes of a later version are not called
// damage, and nothing is trimmed.
func TestUnsupportedVersion(t *testing.T) {
	reseal := func(h segmentHeader, change func(b []byte)) []byte {
		b := h.encode()
		change(b)
		return crcHeader(b)
	}
	for _, tc := range []struct {
		name string
		edit func(t *testing.T, dir string, h segmentHeader, b []byte) []byte
	}{
		{"segment format", func(_ *testing.T, _ string, h segmentHeader, b []byte) []byte {
			return append(reseal(h, func(b []byte) { b[8] = 2 }), b[segmentHeaderBytes:]...)
		}},
		{"segment flags", func(_ *testing.T, _ string, h segmentHeader, b []byte) []byte {
			return append(reseal(h, func(b []byte) { b[10] = 1 }), b[segmentHeaderBytes:]...)
		}},
		{"frame kind", func(_ *testing.T, _ string, h segmentHeader, b []byte) []byte {
			return frame{kind: 9, sequence: 2, synced: int64(len(b)), payload: []byte("?")}.append(b, h.seed())
		}},
		{"codec", func(_ *testing.T, _ string, h segmentHeader, b []byte) []byte {
			return frame{kind: kindBatch, codec: 9, sequence: 2, synced: int64(len(b)), payload: []byte("?")}.append(b, h.seed())
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir, _ := buildLog(t, Options{}, false, 1)
			id, _, err := loadIdentity(dir)
			if err != nil {
				t.Fatal(err)
			}
			edit(t, dir, func(b []byte) []byte { return tc.edit(t, dir, segmentHeader{writer: id, first: 1}, b) })
			before := dirState(t, dir)
			_, _, err = replayed(t, dir)
			if !errors.Is(err, ErrUnsupportedVersion) || errors.Is(err, ErrCorrupt) {
				t.Errorf("error is %v", err)
			}
			if !strings.HasPrefix(dirState(t, dir)[segmentName(1)], before[segmentName(1)]) {
				t.Error("the segment was cut")
			}
		})
	}
}

func TestDump(t *testing.T) {
	dir, offsets := buildLog(t, Options{}, true, 1, 1, 1, 1)
	edit(t, dir, func(b []byte) []byte { b[offsets[1]+30] ^= 1; return b })
	dump := func(t *testing.T) string {
		t.Helper()
		before := dirState(t, dir)
		var out []string
		end := map[string]int64{}
		if err := Dump(dir, func(e Entry) error {
			if e.Offset != end[e.Segment] || e.Bytes <= 0 {
				t.Errorf("entry at %s:%d of %d bytes; the one before ended at %d", e.Segment, e.Offset, e.Bytes, end[e.Segment])
			}
			end[e.Segment] = e.Offset + e.Bytes
			if (e.Kind == EntryDamage) != (e.Err != nil) || (e.Kind == EntryBatch) != (e.Batch != nil) {
				t.Errorf("entry does not fit: %+v", e)
			}
			if e.Kind == EntryBatch && !batchesEqual(e.Batch, testBatch(int(e.Sequence))) {
				t.Errorf("batch %d is not what was appended", e.Sequence)
			}
			out = append(out, fmt.Sprintf("%s%d", e.Kind, e.Sequence))
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		for name, size := range end {
			if int64(len(before[name])) != size {
				t.Errorf("the entries of %s end at %d of %d", name, size, len(before[name]))
			}
		}
		if fmt.Sprint(before) != fmt.Sprint(dirState(t, dir)) {
			t.Error("the directory was changed")
		}
		return strings.Join(out, " ")
	}
	if got, want := dump(t), "header1 batch1 damage0 batch3 batch4 seal4"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	// It reads beside an open log, and past a bad header.
	other, _ := buildLog(t, Options{}, false, 1, 1)
	dir = other
	mustOpen(t, dir, Options{})
	if got, want := dump(t), "header1 batch1 batch2"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	edit(t, dir, func(b []byte) []byte { b[20] ^= 1; return append(b, 1, 2, 3) })
	if got, want := dump(t), "damage0 batch1 batch2 damage0"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	stop := errors.New("stop")
	if err := Dump(dir, func(Entry) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("error is %v", err)
	}
	if err := Dump(filepath.Join(dir, "none"), func(Entry) error { return nil }); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error is %v", err)
	}
}
