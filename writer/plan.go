package writer

import (
	"iter"
	"maps"
	"math"
	"slices"
	"sort"

	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/chunk"
	"cardinalsin/internal/merge"
	"cardinalsin/internal/symbols"
	"cardinalsin/series"
	"cardinalsin/shard"
	"cardinalsin/wal"
)

const (
	// maxPartFiles bounds the files of one commit. txlog takes 10,000 file
	// actions; a record that fills this many still fits after the shard map
	// has doubled twice.
	maxPartFiles = 2_500
	// maxPartRows bounds the rows of one commit, and with it the files that
	// are in memory before their upload.
	maxPartRows = 4 << 20
)

// part is what one commit takes: the samples of a contiguous range of
// sequences, by partition.
type part struct {
	first, last wal.Sequence
	files       []*partition // ascending by date, then by the order of the map
	// contents is what the whole head holds, and so the part at most.
	contents chunk.Contents
	extras   extras
	sets     *symbols.View
}

// partition is the content of one file: one UTC day of one shard.
type partition struct {
	date  series.Date
	shard shard.ID
	rows  []partRow // in the order of series.Compare
}

// partRow is one series' samples in one partition, as they came.
type partRow struct {
	set     symbols.Set
	id      series.ID
	samples []sample
}

// limits bound a part; a record is never split, so it may exceed them alone.
type limits struct{ rows, files int }

// planPart takes as many records from first on as the limits allow, and cuts
// them by day and by the map's shards. h must be sealed. It is pure.
func planPart(h *head, first wal.Sequence, m shard.Map, l limits) *part {
	lo := int64(first-h.first) - 1 // record before the first
	start := uint64(0)
	if lo >= 0 {
		start = h.rows[lo]
	}
	// The last record with which the rows stay within the limit. Those before
	// the part have fewer rows than start, and are not to be asked.
	rest := h.rows[lo+1:]
	n := sort.Search(len(rest), func(i int) bool { return rest[i]-start > uint64(l.rows) })
	hi := lo + int64(max(n, 1))

	p := cut(h, lo, uint32(hi), m)
	if len(p.files) > l.files {
		// Records bring partitions with them; stop before the one that
		// brings the first partition too many.
		firsts := make([]uint32, len(p.files))
		for i, f := range p.files {
			firsts[i] = f.first()
		}
		slices.Sort(firsts)
		hi = max(int64(firsts[l.files])-1, lo+1)
		p = cut(h, lo, uint32(hi), m)
	}
	p.first, p.last = first, h.first+wal.Sequence(hi)
	return p
}

type partitionKey struct {
	date  series.Date
	shard int // position in the map
}

// cut collects the samples of the records above lo and up to hi.
func cut(h *head, lo int64, hi uint32, m shard.Map) *part {
	h.mu.RLock() // sealed: nobody writes, but the race detector cannot know
	defer h.mu.RUnlock()
	p := &part{contents: h.contents(), extras: h.extras, sets: h.sets.View()}
	owners := map[shard.ID]int{}
	for i, s := range m.Shards {
		owners[s.ID] = i
	}
	files := map[partitionKey]*partition{}
	// Most parts lie on one day, so each shard's first file gets all of its
	// series; shards are about equal.
	expected, first := h.count/len(m.Shards)+1, h.span.Min.Date()
	add := func(s *memSeries, date series.Date, owner int, samples []sample) {
		f := files[partitionKey{date, owner}]
		if f == nil {
			f = &partition{date: date, shard: m.Shards[owner].ID}
			if date == first {
				f.rows = make([]partRow, 0, expected)
			}
			files[partitionKey{date, owner}] = f
		}
		f.rows = append(f.rows, partRow{s.set, s.id, samples})
	}
	// Nearly always a part is the whole head and lies on one day. Then no
	// sample need be looked at, each of which costs a cache miss.
	whole := lo < 0 && int(hi) == len(h.rows)-1
	oneDay := h.span.Min.Date() == h.span.Max.Date()
	for _, metric := range metricsOf(p.sets, nil) {
		refs := sortedRefs(h.metrics[metric.code], h.blocks, p.sets)
		for i, r := range refs {
			if i%ahead == 0 {
				fetchSeries(h.blocks, refs[i:min(i+ahead, len(refs))])
			}
			s := at(h.blocks, r.ref)
			in := s.samples
			if !whole {
				in = through(in, hi)
				if lo >= 0 {
					in = after(in, uint32(lo))
				}
			}
			if len(in) == 0 {
				continue
			}
			owner := 0
			if len(m.Shards) > 1 {
				owner = owners[m.Of(shard.KeyOfMetric(metric.name, s.id))]
			}
			if oneDay {
				add(s, h.span.Min.Date(), owner, in)
				continue
			}
			for rest := sorted(in); len(rest) > 0; {
				date := rest[0].time.Date()
				end := date.Range().Max
				n := len(rest)
				if rest[n-1].time > end {
					n = sort.Search(n, func(i int) bool { return rest[i].time > end })
				}
				add(s, date, owner, rest[:n])
				rest = rest[n:]
			}
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(files), func(a, b partitionKey) int {
		if a.date != b.date {
			return int(a.date - b.date)
		}
		return a.shard - b.shard
	}) {
		p.files = append(p.files, files[k])
	}
	return p
}

// first is the first record that has samples here.
func (f *partition) first() uint32 {
	first := uint32(math.MaxUint32)
	for _, r := range f.rows {
		for i := range r.samples {
			first = min(first, r.samples[i].record)
		}
	}
	return first
}

// each yields the series of the partition as a chunk takes them: each
// observation once, by the rule of internal/merge. With reuse the samples of a
// series are overwritten by those of the next.
func (f *partition) each(p *part, reuse bool) iter.Seq2[*partRow, []series.Sample] {
	return func(yield func(*partRow, []series.Sample) bool) {
		e, sets := &p.extras, p.sets
		var scratch []series.Sample
		for i := range f.rows {
			if i%ahead == 0 {
				fetchRows(sets, f.rows[i:min(i+ahead, len(f.rows))])
			}
			r := &f.rows[i]
			out := e.expand(scratch[:0], sorted(r.samples))
			if reuse {
				scratch = out
			}
			for i := 1; i < len(out); i++ {
				if out[i].Compare(out[i-1]) == 0 {
					out = merge.Samples(make([]series.Sample, 0, len(out)), merge.Run{Samples: out})
					break
				}
			}
			if !yield(r, out) {
				return
			}
		}
	}
}

// ahead is how many series are fetched at a time. Files have them in another
// order than they came in, so that each is a cache miss, or more. If that is
// all there is to do, nothing waits for it, and the processor has many of them
// on their way at once.
const ahead = 16

// fetchSeries looks at series.
//
//go:noinline
func fetchSeries(blocks [][]memSeries, refs []idRef) (sum int) {
	for i := range refs {
		sum += len(at(blocks, refs[i].ref).samples)
	}
	return sum
}

// fetchRows looks at the labels and the samples of rows, in each line of the
// cache that the first of these take.
//
//go:noinline
func fetchRows(sets *symbols.View, rows []partRow) (sum uint32) {
	const line, most = 64 / int(sampleBytes), 24
	for i := range rows {
		sum += uint32(sets.Codes(rows[i].set)[0])
		in := rows[i].samples
		for k := 0; k < min(len(in), most); k += line {
			sum += in[k].record
		}
	}
	return sum
}

// content yields the partition with its labels, which the caller may keep.
func (f *partition) content(p *part) iter.Seq2[merge.Series, error] {
	return func(yield func(merge.Series, error) bool) {
		var b labels.ScratchBuilder
		for r, samples := range f.each(p, false) {
			if !yield(merge.Series{Labels: p.sets.Labels(r.set, &b), ID: r.id, Samples: samples}, nil) {
				return
			}
		}
	}
}

// encode makes the partition's file, a series at a time.
func (f *partition) encode(opts chunk.Options, layout *chunk.Layout, p *part) (*chunk.Encoded, error) {
	e := chunk.NewEncoder(opts, layout, p.contents)
	for r, samples := range f.each(p, true) {
		if err := e.AddSet(p.sets, r.set, r.id, samples); err != nil {
			return nil, err
		}
	}
	return e.Finish()
}
