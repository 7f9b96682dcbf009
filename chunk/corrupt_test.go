package chunk

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/parquet/metadata"
	"github.com/cespare/xxhash/v2"
	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/series"
)

// fixture is a small file in which every kind of column and page occurs:
// several row groups and pages, nulls, overflow, nanos, start times,
// histograms, values by dictionary and as they are.
func fixture(t testing.TB, opts Options) ([]byte, []Series) {
	t.Helper()
	in := fixtureRows()
	for i := range in {
		for k := range in[i].Samples {
			p := &in[i].Samples[k]
			if k%2 == 1 {
				p.Start = int64(i+1) * 1_000_000_007
			}
			if in[i].Labels.Get(series.MetricName) == "m0" {
				p.Value = float64(k % 2)
			}
		}
	}
	return encode(t, opts, in).Data, in
}

// fixtureRows are the rows of the files of format 1 in testdata.
func fixtureRows() []Series {
	var in []Series
	for i := range 6 {
		pairs := []string{"host", fmt.Sprintf("h%d", i)}
		if i%2 == 0 {
			pairs = append(pairs, "bad name", fmt.Sprintf("o%d", i/2), "job", "x")
		}
		s := mk(fmt.Sprintf("m%d", i/3), pairs...)
		for k := range 5 {
			p := series.Sample{Time: series.Timestamp(1000 * k * k), Value: float64(i) / float64(k+1)}
			if k == 2 {
				p.Nanos = uint16(i + 1)
			}
			if i == 3 && k%2 == 0 {
				p.Value, p.Histogram = 0, []byte{byte(k), 2, 3}
			}
			s.Samples = append(s.Samples, p)
		}
		in = append(in, s)
	}
	return sorted(in)
}

// TestFlippedByte: whichever byte of a file changes, a reader fails by
// ErrCorrupt or ErrUnsupported and names the file, or returns the same rows,
// where the byte carries none; Verify always fails.
func TestFlippedByte(t *testing.T) {
	for _, opts := range []Options{{RowGroupRows: 12, PageRows: 5}, {SplitValues: true}} {
		t.Run(fmt.Sprintf("rows=%d", opts.RowGroupRows), func(t *testing.T) {
			data, in := fixture(t, opts)
			inPages := map[int]bool{}
			for _, g := range reopen(t, data).RowGroups() {
				for _, c := range g.columns {
					for i := c.offset; i < c.end(); i++ {
						inPages[int(i)] = true
					}
				}
			}
			step := 1
			if raceEnabled {
				step = 17
			}
			silent := 0
			for i := 0; i < len(data); i += step {
				bad := bytes.Clone(data)
				bad[i] ^= 1 << (i % 8)
				if err := Verify(bad); !errors.Is(err, ErrCorrupt) {
					t.Fatalf("byte %d: Verify: got %v, want ErrCorrupt", i, err)
				}
				if f, err := Open(context.Background(), BytesSource("test", bad), int64(len(bad))); err == nil {
					if err := f.Verify(context.Background()); !errors.Is(err, ErrCorrupt) {
						t.Fatalf("byte %d: File.Verify: got %v, want ErrCorrupt", i, err)
					}
				}
				got, err := read(bad, everything)
				if err != nil {
					if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "test") {
						t.Fatalf("byte %d: got %v, want ErrCorrupt that names the file", i, err)
					}
					continue
				}
				silent++
				if inPages[i] {
					t.Fatalf("byte %d of %d lies in a page and went unnoticed", i, len(data))
				}
				if d := diff(in, got); d != "" {
					t.Fatalf("byte %d: wrong rows without an error:\n%s", i, d)
				}
			}
			if len(inPages) == 0 || silent == len(data) {
				t.Fatal("the test looked at nothing")
			}
		})
	}
}

// TestTruncated: a file cut short at any place is corrupt.
func TestTruncated(t *testing.T) {
	data, _ := fixture(t, Options{})
	for n := range data {
		if err := Verify(data[:n]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("%d bytes: Verify: got %v, want ErrCorrupt", n, err)
		}
		if _, err := read(data[:n], everything); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("%d bytes: got %v, want ErrCorrupt", n, err)
		}
		// The log knows the true size; the object is shorter.
		_, err := Open(context.Background(), BytesSource("test", data[:n]), int64(len(data)))
		if !errors.Is(err, ErrCorrupt) {
			t.Fatalf("%d bytes, size as logged: got %v, want ErrCorrupt", n, err)
		}
	}
}

// TestForgedIdentity: rows whose series_id is not the hash of their labels, or
// that are out of order, are corrupt, even where every sum is right.
func TestForgedIdentity(t *testing.T) {
	forged := with(mk("b"), 1)
	forged.ID++
	for name, in := range map[string][]Series{
		"ID":             {with(mk("a"), 1), forged},
		"order":          {with(mk("b"), 1), with(mk("a"), 1)},
		"series twice":   {with(mk("a"), 1), with(mk("b"), 1), with(mk("a"), 2)},
		"order of times": {with(mk("a"), 2, 1)},
		"time twice":     {with(mk("a"), 1, 1)},
	} {
		for _, rowGroup := range []int{1, 2, 100} {
			e := NewEncoder(Options{RowGroupRows: rowGroup}, grown(t, in, 10), Contents{})
			for _, s := range in { // what Add does, without its checks
				e.current = identity{name: e.take(s.Labels), id: s.ID, all: s.Labels}
				e.summarise(s.Samples)
				for i := range s.Samples {
					if err := e.pend(s.Samples[i : i+1]); err != nil {
						t.Fatal(err)
					}
					if len(e.rows.times) >= rowGroup {
						e.flush(false)
					}
				}
			}
			enc, err := e.Finish()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := read(enc.Data, everything); !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s, row groups of %d: got %v, want ErrCorrupt", name, rowGroup, err)
			}
		}
	}
}

// reseal makes the sums of a damaged file right again, so that the damage
// reaches the decoders. The key/value text keeps its length.
func reseal(data []byte) []byte {
	data = bytes.Clone(data)
	if len(data) < tailBytes+sealBytes+4 {
		return data
	}
	n := int(binary.LittleEndian.Uint32(data[len(data)-tailBytes:]))
	at := len(data) - tailBytes - n
	if n < 0 || at < sealBytes+4 {
		return data
	}
	resum(data, data[at:len(data)-tailBytes])
	copy(data[at-sealBytes:], sealMagic)
	binary.LittleEndian.PutUint64(data[at-16:], xxhash.Sum64(data[:at-sealBytes]))
	binary.LittleEndian.PutUint64(data[at-8:], xxhash.Sum64(data[at:]))
	return data
}

// resum rewrites the sums of the column chunks in the footer, if it parses.
func resum(data, footer []byte) {
	defer func() { _ = recover() }() // a footer that the library chokes on stays as it is
	md, err := metadata.NewFileMetaData(footer, nil)
	if err != nil {
		return
	}
	text := md.KeyValueMetadata().FindValue(infoKey)
	if text == nil {
		return
	}
	var in info
	if json.Unmarshal([]byte(*text), &in) != nil {
		return
	}
	old := base64.StdEncoding.EncodeToString(in.Sums)
	where := bytes.Index(footer, []byte(old))
	if where < 0 {
		return
	}
	k := 0
	for i := range md.NumRowGroups() {
		rg := md.RowGroup(i)
		for j := range rg.NumColumns() {
			c, err := rg.ColumnChunk(j)
			if err != nil {
				return
			}
			start := c.DataPageOffset()
			if c.HasDictionaryPage() {
				start = c.DictionaryPageOffset()
			}
			if end := start + c.TotalCompressedSize(); start >= 0 && end >= start && end <= int64(len(data)) && 8*k+8 <= len(in.Sums) {
				binary.LittleEndian.PutUint64(in.Sums[8*k:], xxhash.Sum64(data[start:end]))
			}
			k++
		}
	}
	copy(footer[where:], base64.StdEncoding.EncodeToString(in.Sums))
}

// tryAll reads a file in several ways; it may fail, but only by a typed
// error, and must not panic.
func tryAll(t testing.TB, data []byte) {
	f, err := Open(context.Background(), BytesSource("test", data), int64(len(data)))
	if err != nil {
		if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnsupported) {
			t.Fatalf("untyped error: %v", err)
		}
		return
	}
	for _, sel := range []series.Selector{
		everything,
		{Range: series.TimeRange{Min: 1000, Max: 9000}, Matchers: []*labels.Matcher{labels.MustNewMatcher(labels.MatchEqual, "host", "h4")}},
		{Range: series.AllTime, Matchers: []*labels.Matcher{labels.MustNewMatcher(labels.MatchRegexp, "bad name", "o.*")}},
	} {
		if _, err := collect(f.Select(context.Background(), sel, nil)); err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatalf("untyped error: %v", err)
		}
	}
}

// TestDamageBehindTheSums: the decoders stand on their own feet.
func TestDamageBehindTheSums(t *testing.T) {
	data, in := fixture(t, Options{RowGroupRows: 12, PageRows: 5})
	if d := func() string { got, _ := read(reseal(data), everything); return diff(in, got) }(); d != "" {
		t.Fatalf("reseal must leave a sound file sound:\n%s", d)
	}
	r := rand.New(rand.NewSource(1))
	rounds := 4000
	if raceEnabled {
		rounds = 200
	}
	for range rounds {
		bad := bytes.Clone(data)
		for range 1 + r.Intn(4) {
			switch i := r.Intn(len(bad)); r.Intn(3) {
			case 0:
				bad[i] ^= 1 << r.Intn(8)
			case 1:
				bad[i] = byte(r.Intn(256))
			default:
				copy(bad[i:], bytes.Repeat([]byte{0xff}, 1+r.Intn(5)))
			}
		}
		tryAll(t, reseal(bad))
	}
}

func FuzzOpen(f *testing.F) {
	for _, opts := range []Options{{}, {RowGroupRows: 12, PageRows: 5}, {SplitValues: true}} {
		data, _ := fixture(f, opts)
		f.Add(data, false)
		f.Add(data, true)
	}
	one := mk("a")
	one.Samples = []series.Sample{{Value: math.NaN()}}
	f.Add(encode(f, Options{}, []Series{one}).Data, true)
	f.Add([]byte("PAR1"), false)
	f.Fuzz(func(t *testing.T, data []byte, seal bool) {
		if seal {
			data = reseal(data)
		}
		tryAll(t, data)
	})
}

// FuzzDecoders feeds the value decoders directly.
func FuzzDecoders(f *testing.F) {
	f.Add([]byte{0x80, 0x01, 0x04, 0x03, 0x02, 0x02, 0, 0, 0, 0}, uint8(3))
	f.Add([]byte{0x03, 0x88, 0xc6, 0xfa}, uint8(8))
	f.Add([]byte{1, 0, 0, 0, 'a'}, uint8(1))
	f.Fuzz(func(t *testing.T, data []byte, n uint8) {
		fail := func(err error) {
			if err != nil && !errors.Is(err, ErrCorrupt) {
				t.Fatalf("untyped error: %v", err)
			}
		}
		fail(decodeDelta(make([]int64, n), data))
		_, err := decodeTexts(data, int(n))
		fail(err)
		if len(data) > 0 {
			if h, err := newHybrid(data[1:], uint(data[0])); err == nil {
				_, err := h.appendRuns(nil, int(n), int(n))
				fail(err)
			}
			fail(levels(data, 1, 1, int(n), func(int16, int) error { return nil }))
		}
		_, _, err = parsePageHeader(data)
		fail(err)
		_, err = splitPages(data, &columnChunk{sum: xxhash.Sum64(data), values: int64(n)})
		fail(err)
	})
}
