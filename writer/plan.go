package writer

import (
	"iter"
	"maps"
	"slices"
	"sort"

	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/internal/merge"
	"cardinalsin/series"
	"cardinalsin/shard"
	"cardinalsin/wal"
)

const (
	// maxPartFiles bounds the files of one commit. txlog takes 10,000 file
	// actions; a record that fills this many still fits after the shard map
	// has doubled twice.
	maxPartFiles = 2_500
	// maxPartRows bounds the rows of one commit, and with it the memory of a
	// flush: 4 Mi samples in full form are 200 MB.
	maxPartRows = 4 << 20
)

// part is what one commit takes: the samples of a contiguous range of
// sequences, by partition.
type part struct {
	first, last wal.Sequence
	files       []*partition // ascending by date, then by the order of the map
	labels      []string     // names that occur, ascending; without __name__
	extras      extras
}

// partition is the content of one file: one UTC day of one shard.
type partition struct {
	date  series.Date
	shard shard.ID
	rows  []partRow // in the order of series.Compare
	first uint32    // first record that has samples here
	count int       // samples, before deduplication
}

// partRow is one series' samples in one partition, sorted, not deduplicated.
type partRow struct {
	labels  series.Labels
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
	// The last record with which the rows stay within the limit.
	n := sort.Search(len(h.rows), func(i int) bool { return h.rows[i]-start > uint64(l.rows) })
	hi := max(int64(n)-1, lo+1)

	p := cut(h, lo, uint32(hi), m)
	if len(p.files) > l.files {
		// Records bring partitions with them; stop before the one that
		// brings the first partition too many.
		firsts := make([]uint32, len(p.files))
		for i, f := range p.files {
			firsts[i] = f.first
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
	p := &part{extras: h.extras}
	owners := map[shard.ID]int{}
	for i, s := range m.Shards {
		owners[s.ID] = i
	}
	files := map[partitionKey]*partition{}
	names := nameSet{seen: map[string]bool{}}
	for _, name := range slices.Sorted(maps.Keys(h.metrics)) {
		refs := slices.Clone(h.metrics[name].series)
		sortRefs(refs, h.blocks)
		for _, r := range refs {
			s := at(h.blocks, r.ref)
			in := through(s.samples, hi)
			if lo >= 0 {
				in = after(in, uint32(lo))
			}
			if len(in) == 0 {
				continue
			}
			names.add(s.labels)
			owner := 0
			if len(m.Shards) > 1 {
				owner = owners[m.Of(shard.KeyOf(s.labels, s.id))]
			}
			for rest := sorted(in); len(rest) > 0; {
				date := rest[0].time.Date()
				end := date.Range().Max
				n := len(rest)
				if rest[n-1].time > end {
					n = sort.Search(n, func(i int) bool { return rest[i].time > end })
				}
				f := files[partitionKey{date, owner}]
				if f == nil {
					f = &partition{date: date, shard: m.Shards[owner].ID, first: hi}
					files[partitionKey{date, owner}] = f
				}
				f.rows = append(f.rows, partRow{s.labels, s.id, rest[:n]})
				f.count += n
				for i := range rest[:n] {
					f.first = min(f.first, rest[i].record)
				}
				rest = rest[n:]
			}
		}
	}
	p.labels = slices.Sorted(maps.Keys(names.seen))
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

// nameSet collects label names. Neighbouring series have the same ones, so
// each is compared with the one at its place in the series before.
type nameSet struct {
	seen map[string]bool
	last []string
}

func (n *nameSet) add(l series.Labels) {
	i := 0
	l.Range(func(l labels.Label) {
		if i == len(n.last) {
			n.last = append(n.last, "")
		}
		if n.last[i] != l.Name {
			n.last[i] = l.Name
			if l.Name != series.MetricName {
				n.seen[l.Name] = true
			}
		}
		i++
	})
}

// content yields the partition as a chunk takes it: each observation once, by
// the rule of internal/merge.
func (f *partition) content(e *extras) iter.Seq2[merge.Series, error] {
	return func(yield func(merge.Series, error) bool) {
		// One allocation for all rows: they live until the file is encoded.
		all := make([]series.Sample, 0, f.count)
		for _, r := range f.rows {
			from := len(all)
			all = e.expand(all, r.samples)
			out := all[from:len(all):len(all)]
			for i := 1; i < len(out); i++ {
				if out[i].Compare(out[i-1]) == 0 {
					out = merge.Samples(make([]series.Sample, 0, len(out)), merge.Run{Samples: out})
					break
				}
			}
			if !yield(merge.Series{Labels: r.labels, ID: r.id, Samples: out}, nil) {
				return
			}
		}
	}
}
