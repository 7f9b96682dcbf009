package index

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/RoaringBitmap/roaring/v2"
	"github.com/blevesearch/vellum"
	"github.com/cespare/xxhash/v2"
	"github.com/parquet-go/parquet-go/bloom"
	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/series"
)

// BenchmarkStructures compares what could tell which of a day's files hold
// pod='x': a Parquet bloom filter or a binary fuse filter in each file, an FST
// whose values lead to postings (roaring bitmaps, or our lists), and the segment's front-coded pages.
// All but the filters tell the series too. It prints
//
//	bench index-structure-… bytes=… B/value fetched=… KiB hit=… µs miss=… µs wrong=… files
//
// bytes: all of it, by distinct values; fetched: what one question must read of
// it when nothing is cached; hit and miss: the time for a value that is there,
// or not, once that is in memory; wrong: files named that do not hold the
// value, by question.
func BenchmarkStructures(b *testing.B) {
	const files, values, perFile, metrics = 400, 100_000, 4, 4
	pod := func(i int) string {
		return fmt.Sprintf("checkout-%03d-%010x-%05x", i%500, i*2654435761, i*40503%(1<<20))
	}
	inFiles := func(i int) (out []uint32) {
		for j := range perFile {
			out = append(out, uint32((i*7+j)%files))
		}
		slices.Sort(out)
		return out
	}
	indexed := make([]indexed, files)
	byFile := make([][]uint64, files)
	var rows []structureRow
	for f := range indexed {
		indexed[f].path, indexed[f].size = fmt.Sprintf("date=2026-01-02/shard=0/%05d.parquet", f), 100<<20
	}
	for i := range values {
		h := xxhash.Sum64String(pod(i))
		for _, f := range inFiles(i) {
			byFile[f] = append(byFile[f], h)
		}
		for m := range metrics {
			l := metric(fmt.Sprintf("metric_%d", m), "pod", pod(i), "zone", fmt.Sprint(i%3))
			rows = append(rows, structureRow{l, series.IDOf(l), i})
		}
	}
	slices.SortFunc(rows, func(a, b structureRow) int { return series.Compare(a.labels, b.labels, a.id, b.id) })
	build := newBuilder(indexed)
	postings := map[string][]uint32{}
	for n, r := range rows {
		var runs []where
		for _, f := range inFiles(r.pod) {
			runs = append(runs, where{int(f), 0, n % 10_000, 100})
		}
		build.add(r.labels, r.id, runs)
		postings[pod(r.pod)] = append(postings[pod(r.pod)], uint32(n))
	}
	var all []structure
	for _, construct := range []func() structure{
		func() structure { return bloomFilters(byFile) },
		func() structure { return fuseFilters(b, byFile) },
		func() structure { return fst(b, "fst-roaring", postings, roaringPostings) },
		func() structure { return fst(b, "fst-list", postings, listPostings) },
		func() structure { return frontCoded(b, build) },
	} {
		all = append(all, construct())
	}
	for b.Loop() {
		for _, s := range all {
			const questions = 2000
			var hit, miss time.Duration
			wrong := 0
			for n := range questions {
				i := n * (values / questions)
				began := time.Now()
				found, series := s.ask(pod(i))
				hit += time.Since(began)
				for _, f := range inFiles(i) {
					if found != nil && !slices.Contains(found, f) {
						b.Fatalf("%s: file %d of %s is not found", s.name, f, pod(i))
					}
				}
				wrong += max(len(found)-perFile, 0)
				if found == nil && !slices.Equal(series, postings[pod(i)]) {
					b.Fatalf("%s: series of %s: %v, want %v", s.name, pod(i), series, postings[pod(i)])
				}
				began = time.Now()
				found, series = s.ask(pod(i) + "x")
				miss += time.Since(began)
				wrong += len(found)
				if len(series) > 0 {
					b.Fatalf("%s: series of a pod that is not there", s.name)
				}
			}
			fmt.Printf("bench index-structure-%s bytes=%.2f B/value fetched=%.1f KiB hit=%.1f µs miss=%.1f µs wrong=%.2f files\n",
				s.name, float64(s.bytes)/values, float64(s.fetched)/1024,
				float64(hit.Nanoseconds())/questions/1e3, float64(miss.Nanoseconds())/questions/1e3, float64(wrong)/(2*questions))
		}
	}
}

type structureRow struct {
	labels series.Labels
	id     series.ID
	pod    int
}

// structure answers for a value with files, or where it knows them with series.
type structure struct {
	name           string
	bytes, fetched int
	ask            func(value string) (files, series []uint32)
}

// bloomFilters has the default size of Parquet writers, 10 bits a value.
func bloomFilters(byFile [][]uint64) structure {
	s := structure{name: "parquet-bloom"}
	filters := make([]bloom.SplitBlockFilter, len(byFile))
	for f, keys := range byFile {
		filters[f] = make(bloom.SplitBlockFilter, bloom.NumSplitBlocksOf(int64(len(keys)), 10))
		filters[f].InsertBulk(keys)
		s.bytes += len(filters[f].Bytes())
		// A block of 32 bytes tells, but only once each file's footer has told
		// where the filter is; gathered in one object it is all of them.
	}
	s.fetched = s.bytes
	s.ask = func(v string) (out, _ []uint32) {
		out = []uint32{}
		h := xxhash.Sum64String(v)
		for f := range filters {
			if filters[f].Check(h) {
				out = append(out, uint32(f))
			}
		}
		return out, nil
	}
	return s
}

func fuseFilters(b *testing.B, byFile [][]uint64) structure {
	s := structure{name: "binary-fuse"}
	filters := make([]*fuseFilter, len(byFile))
	for f, keys := range byFile {
		var err error
		if filters[f], err = newFuse(keys); err != nil {
			b.Fatal(err)
		}
		s.bytes += len(filters[f].fingerprint) + 16
	}
	s.fetched = s.bytes
	s.ask = func(v string) (out, _ []uint32) {
		out = []uint32{}
		h := xxhash.Sum64String(v)
		for f := range filters {
			if filters[f].has(h) {
				out = append(out, uint32(f))
			}
		}
		return out, nil
	}
	return s
}

// postingsCode is how an FST's postings are written.
type postingsCode struct {
	write func([]uint32) ([]byte, error)
	read  func([]byte) ([]uint32, error)
}

var roaringPostings = postingsCode{
	func(list []uint32) ([]byte, error) {
		m := roaring.BitmapOf(list...)
		m.RunOptimize()
		return m.ToBytes()
	},
	func(b []byte) ([]uint32, error) {
		m := roaring.New()
		_, err := m.FromUnsafeBytes(b)
		return m.ToArray(), err
	},
}

// listPostings is what our pages have for few series.
var listPostings = postingsCode{
	func(list []uint32) ([]byte, error) {
		return appendOrdinals(binary.AppendUvarint(nil, uint64(len(list))), list), nil
	},
	func(b []byte) (out []uint32, err error) {
		r := &reading{b: b}
		r.ordinals(r.count(), math.MaxInt32, func(o int) { out = append(out, uint32(o)) })
		return out, r.end("postings")
	},
}

// fst leads to where a value's postings lie.
func fst(b *testing.B, name string, postings map[string][]uint32, code postingsCode) structure {
	check := func(err error) {
		if err != nil {
			b.Fatal(err)
		}
	}
	var out, lists bytes.Buffer
	build, err := vellum.New(&out, nil)
	check(err)
	for _, v := range slices.Sorted(maps.Keys(postings)) {
		check(build.Insert([]byte(v), uint64(lists.Len())))
		raw, err := code.write(postings[v])
		check(err)
		lists.Write(appendText(nil, string(raw)))
	}
	check(build.Close())
	f, err := vellum.Load(out.Bytes())
	check(err)
	data := lists.Bytes()
	return structure{name: name, bytes: out.Len() + len(data), fetched: out.Len() + len(data)/len(postings), ask: func(v string) (_, series []uint32) {
		at, ok, err := f.Get([]byte(v))
		check(err)
		if !ok {
			return nil, nil
		}
		r := &reading{b: data[at:]}
		series, err = code.read(r.bytes(r.count()))
		check(err)
		return nil, series
	}}
}

// frontCoded is the label's pages in a segment. A question reads the directory
// and a page.
func frontCoded(b *testing.B, build *builder) structure {
	data, directory, err := build.finish()
	if err != nil {
		b.Fatal(err)
	}
	tb := newTable(b, nil)
	const key = Folder + "/pods.idx"
	if _, err := tb.store.Put(b.Context(), root+"/"+key, bytes.NewReader(data)); err != nil {
		b.Fatal(err)
	}
	seg, err := tb.open(Options{}).segment(b.Context(), &Segment{Key: key, Bytes: int64(len(data)), Directory: directory})
	if err != nil {
		b.Fatal(err)
	}
	l := seg.label("pod")
	size := int(l.bytes())
	return structure{name: "front-coded", bytes: size + int(directory), fetched: int(directory) + size/len(l.pages), ask: func(v string) (_, series []uint32) {
		t, none := seg.newTask("pod", []*labels.Matcher{labels.MustNewMatcher(labels.MatchEqual, "pod", v)})
		if none {
			return nil, nil
		}
		hits, err := seg.ask(context.Background(), []*task{t})
		if err != nil {
			b.Fatal(err)
		}
		return nil, hits[0].ToArray()
	}}
}
