package wal

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/s2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"pgregory.net/rapid"

	"cardinalsin/internal/symbols"
	"cardinalsin/series"
)

// equalBatches compares bit for bit; NaN equals the same NaN only.
var equalBatches = cmp.Options{
	cmp.Comparer(func(a, b series.Sample) bool { return a.Equal(b) }),
	cmp.Comparer(func(a, b series.Labels) bool { return labels.Equal(a, b) }),
}

// encodeBatch encodes a batch whose label sets may be stored.
func encodeBatch(b series.Batch) (Record, error) {
	var sets symbols.Batch
	for i := range b {
		if _, err := sets.Add(b[i].Labels); err != nil {
			return Record{}, err
		}
	}
	return Encode(b, &sets)
}

func mustEncode(t testing.TB, b series.Batch) Record {
	t.Helper()
	r, err := encodeBatch(b)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func float(t series.Timestamp, v float64) series.Sample { return series.Sample{Time: t, Value: v} }

func TestRecordRoundTrip(t *testing.T) {
	up := labels.FromStrings("__name__", "up", "instance", "a:1", "job", "node")
	down := labels.FromStrings("__name__", "down", "instance", "b:1", "job", "node", "zone", "x")
	var scrape series.Batch
	for i := range 100 {
		scrape = append(scrape, series.Series{
			Labels:  labels.FromStrings("__name__", fmt.Sprint("m", i), "instance", "a:1"),
			Samples: []series.Sample{float(1700000000_000_000, float64(i))},
		})
	}
	// Around the counts of labels that take one byte, and two.
	var wide series.Batch
	for _, n := range []int{2, 127, 128, 129, 16_383, 16_384, 3} {
		pairs := append(make([]string, 0, 2*n), "__name__", "wide")
		for i := range n - 1 {
			pairs = append(pairs, fmt.Sprintf("l%05d", i), "v")
		}
		wide = append(wide, series.Series{Labels: labels.FromStrings(pairs...), Samples: []series.Sample{float(1, 2)}})
	}
	for _, tc := range []struct {
		name  string
		batch series.Batch
		codec byte
	}{
		{"many labels", wide, codecS2},
		{"empty", series.Batch{}, codecNone},
		{"one", series.Batch{{Labels: up, Samples: []series.Sample{float(1, 2)}}}, codecNone},
		{"no samples", series.Batch{{Labels: up}, {Labels: down, Samples: []series.Sample{float(1, 2)}}, {Labels: up}}, codecNone},
		{"same series twice", series.Batch{{Labels: up, Samples: []series.Sample{float(1, 2)}}, {Labels: up, Samples: []series.Sample{float(1, 3)}}}, codecNone},
		{"out of order", series.Batch{{Labels: up, Samples: []series.Sample{float(5, 2), float(-7, 3), float(5, 4)}}}, codecNone},
		{"bounds of time", series.Batch{{Labels: up, Samples: []series.Sample{
			float(series.MinTimestamp, 1), float(series.MaxTimestamp, 1), float(math.MinInt64, 1), float(math.MaxInt64, 1), float(math.MinInt64, 1),
		}}}, codecNone},
		{"special values", series.Batch{{Labels: up, Samples: []series.Sample{
			float(1, math.Float64frombits(value.StaleNaN)), float(2, math.Float64frombits(value.NormalNaN)),
			float(3, math.Float64frombits(0xfff8dead0000beef)), float(4, math.Copysign(0, -1)), float(5, 0),
			float(6, math.Inf(1)), float(7, math.Inf(-1)), float(8, math.SmallestNonzeroFloat64), float(9, math.MaxFloat64),
		}}}, codecNone},
		{"nanoseconds", series.Batch{{Labels: up, Samples: []series.Sample{{Time: 1, Nanos: 999, Value: 1}, {Time: 1, Value: 2}, {Time: 2, Nanos: 1}}}}, codecNone},
		{"histograms", series.Batch{{Labels: up, Samples: []series.Sample{
			{Time: 1, Histogram: []byte{1, 2, 3}}, float(2, 5), {Time: 3, Histogram: []byte{}}, {Time: 4, Value: 7, Nanos: 3, Histogram: bytes.Repeat([]byte{9}, 300)},
		}}}, codecS2},
		{"start times", series.Batch{{Labels: up, Samples: []series.Sample{
			{Time: 1, Value: 1, Start: 1}, float(2, 5), {Time: 3, Histogram: []byte{}, Start: math.MinInt64}, {Time: 4, Value: 7, Nanos: 3, Start: math.MaxInt64},
		}}}, codecNone},
		{"long label", series.Batch{{Labels: labels.FromStrings("__name__", "long", "l", strings.Repeat("x", 1<<20))}}, codecS2},
		{"scrape", scrape, codecS2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := mustEncode(t, tc.batch)
			if r.codec != tc.codec {
				t.Errorf("codec is %d, want %d", r.codec, tc.codec)
			}
			if r.Samples() != tc.batch.Samples() {
				t.Errorf("record of %d samples, want %d", r.Samples(), tc.batch.Samples())
			}
			got, err := decodePayload(r.codec, r.payload)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.batch, got, equalBatches); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestRecordOwnsItsBytes: a record neither follows changes of its batch, nor
// does a decoded batch follow those of the payload.
func TestRecordOwnsItsBytes(t *testing.T) {
	h := []byte{1, 2, 3}
	b := series.Batch{{Labels: labels.FromStrings("__name__", "b"), Samples: []series.Sample{{Time: 1, Histogram: h}}}}
	r := mustEncode(t, b)
	h[0] = 9
	got, err := decodePayload(r.codec, r.payload)
	if err != nil {
		t.Fatal(err)
	}
	clear(r.payload)
	want := series.Batch{{Labels: labels.FromStrings("__name__", "b"), Samples: []series.Sample{{Time: 1, Histogram: []byte{1, 2, 3}}}}}
	if diff := cmp.Diff(want, got, equalBatches); diff != "" {
		t.Error(diff)
	}
}

func genBatch(t *rapid.T) series.Batch {
	word := rapid.OneOf(rapid.SampledFrom([]string{"a", "b", "job", "up"}), rapid.StringN(1, -1, -1))
	sample := rapid.Custom(func(t *rapid.T) series.Sample {
		s := series.Sample{
			Time:  series.Timestamp(rapid.Int64().Draw(t, "time")),
			Nanos: rapid.SampledFrom([]uint16{0, 0, 0, 1, 999, math.MaxUint16}).Draw(t, "nanos"),
			Value: math.Float64frombits(rapid.Uint64().Draw(t, "value")),
		}
		if rapid.IntRange(0, 4).Draw(t, "kind") == 0 {
			s.Histogram = append([]byte{}, rapid.SliceOf(rapid.Byte()).Draw(t, "histogram")...)
		}
		if rapid.Bool().Draw(t, "started") {
			s.Start = rapid.Int64().Draw(t, "start")
		}
		return s
	})
	return rapid.SliceOf(rapid.Custom(func(t *rapid.T) series.Series {
		m := rapid.MapOf(word, word).Draw(t, "labels")
		m[series.MetricName] = word.Draw(t, "metric")
		samples := rapid.SliceOf(sample).Draw(t, "samples")
		if len(samples) == 0 {
			samples = nil
		}
		return series.Series{Labels: labels.FromMap(m), Samples: samples}
	})).Draw(t, "batch")
}

func TestRecordRoundTripOfAnything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := genBatch(t)
		r, err := encodeBatch(b)
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodePayload(r.codec, r.payload)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(b, got, equalBatches); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestEncodeRefusesWhatIsTooLarge(t *testing.T) {
	long, up := labels.FromStrings("__name__", strings.Repeat("x", 1<<20-8)), labels.FromStrings("__name__", "up")
	big := make([]byte, MaxRecordBytes)
	samples := func(n int) []series.Sample { return make([]series.Sample, n) }
	for _, tc := range []struct {
		name  string
		batch series.Batch
		want  error
	}{
		{"label text at the bound", repeat(series.Series{Labels: long}, 64), nil},
		{"label text", repeat(series.Series{Labels: long}, 65), ErrRecordTooLarge},
		{"histogram", series.Batch{{Labels: up, Samples: []series.Sample{{Histogram: big}}}}, ErrRecordTooLarge},
		{"histograms together", series.Batch{{Labels: up, Samples: []series.Sample{{Histogram: big[:MaxRecordBytes/2]}, {Histogram: big[:MaxRecordBytes/2]}}}}, ErrRecordTooLarge},
		{"samples", repeat(series.Series{Labels: up, Samples: samples(1 << 16)}, MaxRecordBytes/9/(1<<16)+1), ErrRecordTooLarge},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, err := encodeBatch(tc.batch)
			if !errors.Is(err, tc.want) {
				t.Fatalf("error is %v, want %v", err, tc.want)
			}
			if err == nil {
				if _, err := decodePayload(r.codec, r.payload); err != nil {
					t.Fatalf("what was accepted cannot be read: %v", err)
				}
			}
		})
	}
}

func repeat(s series.Series, n int) series.Batch {
	b := make(series.Batch, n)
	for i := range b {
		b[i] = s
	}
	return b
}

// uv builds a payload from numbers and strings.
func uv(parts ...any) []byte {
	var b []byte
	for _, p := range parts {
		switch p := p.(type) {
		case int:
			b = binary.AppendUvarint(b, uint64(p))
		case uint64:
			b = binary.AppendUvarint(b, p)
		case string:
			b = append(b, p...)
		}
	}
	return b
}

func TestDecodeRefuses(t *testing.T) {
	eight := strings.Repeat("\x00", 8)
	manySeries := func(n, refs int) []byte { // n series with refs labels each of the same megabyte
		b := uv(0, 1, 1<<20, strings.Repeat("x", 1<<20), n)
		for range n {
			b = append(b, uv(refs)...)
			for range refs {
				b = append(b, 0, 0)
			}
		}
		return append(b, make([]byte, n)...)
	}
	for _, tc := range []struct {
		name    string
		codec   byte
		payload []byte
		want    error
	}{
		{"nothing", codecNone, nil, ErrCorrupt},
		{"unknown codec", 7, uv(0, 0, 0), ErrUnsupportedVersion},
		{"unknown flag", codecNone, uv(8, 0, 0), ErrUnsupportedVersion},
		{"no strings", codecNone, uv(0), ErrCorrupt},
		{"more strings than bytes", codecNone, uv(0, 1<<40, 0), ErrCorrupt},
		{"string beyond the end", codecNone, uv(0, 1, 5, "abc"), ErrCorrupt},
		{"string lengths that wrap around", codecNone, uv(0, 2, uint64(math.MaxUint64), 1, "abc", 0), ErrCorrupt},
		{"varint without end", codecNone, append([]byte{0}, bytes.Repeat([]byte{0x80}, 20)...), ErrCorrupt},
		{"more series than bytes", codecNone, uv(0, 0, 1<<40), ErrCorrupt},
		{"more labels than bytes", codecNone, uv(0, 0, 1, 1<<40, 0, 0), ErrCorrupt},
		{"string that is not in the table", codecNone, uv(0, 1, 1, "a", 1, 1, 0, 1, 0), ErrCorrupt},
		{"labels that expand", codecNone, manySeries(64, 1), ErrCorrupt},
		{"labels that expand in one series", codecNone, manySeries(1, 40), ErrCorrupt},
		{"more samples than bytes", codecNone, uv(0, 0, 1, 0, 1<<40, eight), ErrCorrupt},
		{"no value", codecNone, uv(0, 0, 1, 0, 1, 0, eight[:7]), ErrCorrupt},
		{"timestamps without end", codecNone, append(uv(0, 0, 1, 0, 1), bytes.Repeat([]byte{0xff}, 30)...), ErrCorrupt},
		{"bytes left over", codecNone, uv(0, 0, 1, 0, 1, 0, eight, "x"), ErrCorrupt},
		{"nanos missing", codecNone, uv(int(flagNanos), 0, 1, 0, 1, 0, eight), ErrCorrupt},
		{"nanos too large", codecNone, uv(int(flagNanos), 0, 1, 0, 1, 0, eight, 1<<16), ErrCorrupt},
		{"histogram missing", codecNone, uv(int(flagHistograms), 0, 1, 0, 1, 0, eight), ErrCorrupt},
		{"histogram beyond the end", codecNone, uv(int(flagHistograms), 0, 1, 0, 1, 0, eight, 5, "abc"), ErrCorrupt},
		{"histogram of any length", codecNone, uv(int(flagHistograms), 0, 1, 0, 1, 0, eight, uint64(math.MaxUint64), "abc"), ErrCorrupt},
		{"starts missing", codecNone, uv(int(flagStarts), 0, 1, 0, 1, 0, eight), ErrCorrupt},
		{"s2 that is not", codecS2, []byte{200, 1, 2, 3}, ErrCorrupt},
		{"s2 bomb", codecS2, uv(1<<30, "xxxx"), ErrCorrupt},
		{"s2 of any length", codecS2, uv(uint64(math.MaxUint64), "xxxx"), ErrCorrupt},
		{"payload above the bound", codecNone, make([]byte, MaxRecordBytes+1), ErrCorrupt},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			b, err := decodePayload(tc.codec, tc.payload)
			runtime.ReadMemStats(&after)
			if !errors.Is(err, tc.want) {
				t.Errorf("error is %v, want %v", err, tc.want)
			}
			if b != nil {
				t.Error("a batch came with the error")
			}
			if grown := after.TotalAlloc - before.TotalAlloc; grown > 2*MaxRecordBytes {
				t.Errorf("%d bytes were allocated", grown)
			}
		})
	}
}

// TestDecodeCutShort: no prefix of a payload decodes.
func TestDecodeCutShort(t *testing.T) {
	r := mustEncode(t, series.Batch{{
		Labels:  labels.FromStrings("__name__", "up"),
		Samples: []series.Sample{{Time: 1 << 40, Nanos: 5, Value: 1}, {Time: 1 << 41, Histogram: []byte{1, 2}}},
	}})
	for n := range r.payload {
		if _, err := decodePayload(r.codec, r.payload[:n]); !errors.Is(err, ErrCorrupt) {
			t.Errorf("first %d of %d bytes: error is %v", n, len(r.payload), err)
		}
	}
}

func FuzzDecodePayload(f *testing.F) {
	for i := range 3 {
		r := mustEncode(f, testBatch(i*40+1))
		f.Add(r.codec, r.payload)
		raw, err := s2.Decode(nil, r.payload)
		if err == nil {
			f.Add(codecNone, raw)
		}
	}
	hist, err := hex.DecodeString("020001000100" + "0000000000000000" + "03" + "0102")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(codecNone, hist)
	f.Fuzz(func(t *testing.T, codec byte, payload []byte) {
		b, err := decodePayload(codec, payload)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnsupportedVersion) {
				t.Fatalf("error of no kind: %v", err)
			}
			return
		}
		for i := range b {
			if series.Validate(b[i].Labels) != nil || b[i].Labels.WithoutEmpty().Len() < b[i].Labels.Len() {
				return // nobody writes it
			}
		}
		r, err := encodeBatch(b)
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		again, err := decodePayload(r.codec, r.payload)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(b, again, equalBatches); diff != "" {
			t.Fatal(diff)
		}
	})
}
