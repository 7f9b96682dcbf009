package wal

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/google/uuid"
	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/series"
)

// crcHeader puts the right checksum to a header.
func crcHeader(b []byte) []byte {
	return binary.LittleEndian.AppendUint32(b[:36:36], crc32.Checksum(b[:36], castagnoli))
}

var testWriter = WriterID(uuid.MustParse("00112233-4455-6677-8899-aabbccddeeff"))

// TestFormat pins every byte of the format: a change of the golden is a change
// of the format and needs a new version.
func TestFormat(t *testing.T) {
	h := segmentHeader{writer: testWriter, first: 258}
	batch := series.Batch{
		{Labels: labels.FromStrings("__name__", "up", "job", "node"), Samples: []series.Sample{{Time: 1_700_000_000_000_000, Value: 1}, {Time: 1_700_000_000_000_100, Nanos: 999, Value: -0.5}}},
		{Labels: labels.FromStrings("__name__", "up", "job", "db"), Samples: []series.Sample{{Time: 1_700_000_000_000_000, Histogram: []byte{1, 2, 3}}}},
	}
	datadriven.RunTest(t, "testdata/format", func(t *testing.T, d *datadriven.TestData) string {
		switch d.Cmd {
		case "header":
			return hex.Dump(h.encode())
		case "batch":
			r := mustEncode(t, batch)
			return hex.Dump(frame{kind: kindBatch, codec: r.codec, sequence: 258, synced: 40, payload: r.payload}.append(nil, h.seed()))
		case "decode":
			// What the compressor writes is its own affair; it must be read.
			b, err := hex.DecodeString(strings.Join(strings.Fields(d.Input), ""))
			if err != nil {
				return err.Error()
			}
			f, n, ok := parseFrameHeader(b)
			if !ok || n != len(b)-frameHeaderBytes || frameChecksum(b, h.seed()) != binary.LittleEndian.Uint32(b[4:]) {
				return "not an intact frame"
			}
			got, err := decodePayload(f.codec, b[frameHeaderBytes:])
			if err != nil {
				return err.Error()
			}
			var out strings.Builder
			fmt.Fprintf(&out, "kind %d codec %d sequence %d synced %d\n", f.kind, f.codec, f.sequence, f.synced)
			for _, s := range got {
				for _, v := range s.Samples {
					fmt.Fprintf(&out, "%s %d.%03d %v %x\n", s.Labels, v.Time, v.Nanos, v.Value, v.Histogram)
				}
			}
			return out.String()
		case "seal":
			return hex.Dump(frame{kind: kindSeal, sequence: 259, synced: 300}.append(nil, h.seed()))
		case "name":
			return segmentName(258)
		}
		return "unknown command " + d.Cmd
	})
}

func TestSegmentName(t *testing.T) {
	for name, want := range map[string]Sequence{
		segmentName(1): 1, segmentName(1 << 62): 1 << 62, segmentName(0): 0,
		"1.wal": 0, "00000000000000000001.wal.tmp": 0, "0000000000000000000x.wal": 0, "-0000000000000000001.wal": 0, "99999999999999999999.wal": 0,
	} {
		if got, ok := parseSegmentName(name); got != want || ok != (want != 0) {
			t.Errorf("%s: %d, %t", name, got, ok)
		}
	}
}

// testSegment is a segment of groups of records, 0 standing for a seal.
func testSegment(t testing.TB, first Sequence, groups ...int) []byte {
	t.Helper()
	h := segmentHeader{writer: testWriter, first: first}
	b, next := h.encode(), first
	for _, n := range groups {
		synced := int64(len(b))
		if n == 0 {
			b = frame{kind: kindSeal, sequence: next - 1, synced: synced}.append(b, h.seed())
		}
		for range n {
			r := mustEncode(t, testBatch(int(next)))
			b = frame{kind: kindBatch, codec: r.codec, sequence: next, synced: synced, payload: r.payload}.append(b, h.seed())
			next++
		}
	}
	return b
}

// FuzzSegment reads any bytes as a segment the two ways that there are. Both
// end, recovery yields nothing but a prefix, and what the dump finds covers
// the file.
func FuzzSegment(f *testing.F) {
	whole := testSegment(f, 1, 1, 2, 1, 0)
	f.Add(whole)
	f.Add(testSegment(f, 1))
	f.Add(whole[:len(whole)-5])
	f.Add(append(bytes.Clone(whole[:200]), make([]byte, 100)...))
	holed := bytes.Clone(whole)
	clear(holed[150:170])
	f.Add(holed)
	f.Fuzz(func(t *testing.T, b []byte) {
		name := segmentName(1)
		r, err := openSegmentReader(name, bytes.NewReader(b), int64(len(b)))
		if err == nil {
			err = r.readToTear()
			if r.offset > r.size || r.synced > r.offset {
				t.Fatalf("read to %d of %d, synced to %d", r.offset, r.size, r.synced)
			}
			if err == nil {
				// What was recovered is a segment in which nothing is torn.
				again, err := openSegmentReader(name, bytes.NewReader(b[:r.offset]), r.offset)
				if err != nil {
					t.Fatal(err)
				}
				for err == nil {
					_, err = again.read()
				}
				if !errors.Is(err, io.EOF) || again.next != r.next {
					t.Fatalf("recovered to record %d, read again to %d: %v", r.next, again.next, err)
				}
			}
		}
		if err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnsupportedVersion) {
			t.Fatalf("error of no kind: %v", err)
		}
		if r == nil {
			if r, err = salvageReader(name, bytes.NewReader(b), int64(len(b))); err != nil || r == nil {
				return
			}
		}
		r.seek(segmentHeaderBytes)
		r.next, r.sealed = 1, false
		end := int64(segmentHeaderBytes)
		if err := r.dump(func(e Entry) error {
			if e.Offset != end || e.Bytes <= 0 {
				return fmt.Errorf("entry at %d of %d bytes, the one before ends at %d", e.Offset, e.Bytes, end)
			}
			end += e.Bytes
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if end != int64(len(b)) {
			t.Fatalf("entries end at %d of %d", end, len(b))
		}
	})
}

// TestLengthIsCheckedBeforeAllocation: a frame that claims more bytes than the
// file has, or than a record may have, allocates nothing.
func TestLengthIsCheckedBeforeAllocation(t *testing.T) {
	for _, length := range []uint32{0, frameFixedBytes - 1, frameFixedBytes + 1000, frameFixedBytes + MaxRecordBytes, 1<<32 - 1} {
		b := testSegment(t, 1, 1)
		at := len(b)
		b = append(b, make([]byte, frameHeaderBytes)...)
		binary.LittleEndian.PutUint32(b[at:], length)
		r, err := openSegmentReader(segmentName(1), bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.read(); err != nil {
			t.Fatal(err)
		}
		allocs := cap(r.buf)
		_, err = r.read()
		wantDamage(t, err, segmentName(1), int64(at))
		if cap(r.buf) != allocs {
			t.Errorf("length %d: the buffer grew to %d", length, cap(r.buf))
		}
	}
}

// TestFrameOutOfPlace: intact frames that do not belong where they are.
func TestFrameOutOfPlace(t *testing.T) {
	h := segmentHeader{writer: testWriter, first: 1}
	good := testSegment(t, 1, 1)
	payload := mustEncode(t, testBatch(1)).payload
	for name, f := range map[string]frame{
		"sequence repeated":     {kind: kindBatch, sequence: 1, synced: 40, payload: payload},
		"sequence left out":     {kind: kindBatch, sequence: 3, synced: 40, payload: payload},
		"seal of another place": {kind: kindSeal, sequence: 2, synced: 40},
		"synced to the future":  {kind: kindBatch, sequence: 2, synced: int64(len(good)) + 1, payload: payload},
		"synced below zero":     {kind: kindBatch, sequence: 2, synced: -1, payload: payload},
	} {
		t.Run(name, func(t *testing.T) {
			b := f.append(bytes.Clone(good), h.seed())
			r, err := openSegmentReader(segmentName(1), bytes.NewReader(b), int64(len(b)))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := r.read(); err != nil {
				t.Fatal(err)
			}
			_, err = r.read()
			wantDamage(t, err, segmentName(1), int64(len(good)))
		})
	}
	t.Run("after the seal", func(t *testing.T) {
		b := testSegment(t, 1, 1, 0, 1)
		r, err := openSegmentReader(segmentName(1), bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		if err := r.readToTear(); !errors.Is(err, ErrCorrupt) || !strings.Contains(fmt.Sprint(r.next), "2") {
			t.Errorf("error is %v at record %d", err, r.next)
		}
	})
}

// TestFindAcrossWindows puts an intact frame where the scan's windows meet.
func TestFindAcrossWindows(t *testing.T) {
	h := segmentHeader{writer: testWriter, first: 1}
	for _, shift := range []int{-frameHeaderBytes - 1, -frameHeaderBytes, -1, 0, 1} {
		b := h.encode()
		hole := scanBytes + 1 + shift
		b = append(b, make([]byte, hole)...)
		want := int64(len(b))
		b = frame{kind: kindBatch, sequence: 2, synced: want, payload: []byte("x")}.append(b, h.seed())
		r, err := openSegmentReader(segmentName(1), bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		at, found, err := r.find(segmentHeaderBytes)
		if err != nil || !found || at != want {
			t.Errorf("shift %d: found %t at %d, want %d, error %v", shift, found, at, want, err)
		}
	}
}
