package writer

import (
	"cmp"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/chunk"
	"cardinalsin/internal/symbols"
	"cardinalsin/series"
	"cardinalsin/wal"
)

// head is one generation of samples that are in the WAL and not in the table:
// a contiguous range of sequences. The active one grows; a sealed one never
// changes again and is dropped whole after its commit, so a series costs
// nothing once it is flushed.
//
// Everything in it is append-only. Whoever has copied a slice header under mu
// may read what lies below its length without the lock, for ever; that is
// what makes a view repeatable at no cost to the writer.
type head struct {
	// mu guards all below. Inserts are serialised by Writer.insertMu.
	mu    sync.RWMutex
	first wal.Sequence // of the first record; 0 while empty
	last  wal.Sequence // of the last record; 0 while empty
	since time.Time    // local clock when the first record came

	byID    idIndex       // newest series with an ID; memSeries.next leads on
	blocks  [][]memSeries // of blockSeries slots each, which never move
	firsts  []sample      // room for the first sample of each series in the last block
	count   int           // series
	sets    symbols.Table // of their labels
	metrics [][]idRef     // the series of each metric, by its code in sets, as they came
	nanos   bool          // a sample has some
	extras  extras
	rows    []uint64         // by record: samples in it and all before it
	span    series.TimeRange // of all samples
	bytes   int64            // estimate of the memory in use

	postings postings // has a lock of its own
	shown    atomic.Pointer[shown]
	scan     int // see scanSeries
}

// seriesRef is the position of a series in the blocks, from 1; 0 is none.
type seriesRef uint32

// blockSeries is the number of series a block holds: 64 KiB of memSeries, the
// most that growth ever copies or wastes.
const blockSeries = 1024

// memSeries is one series. Only samples and after change once it is there.
type memSeries struct {
	set     symbols.Set
	id      series.ID
	samples []sample  // in the order in which they came
	next    seriesRef // another series with the same ID
	after   seriesRef // the series that came after this one the last time
}

type idRef struct {
	id  series.ID
	ref seriesRef
}

// sample is a series.Sample in less than half the space and without pointers,
// which the garbage collector need not look at. What few samples have lies in
// extras.
type sample struct {
	time   series.Timestamp
	value  uint64 // bits of the float; with a flag, an index into extras
	record uint32 // sequence − head.first
	nanos  uint16
	flags  uint8
}

// Flags of a sample; flagStart comes before flagHistogram in what value means.
const (
	flagHistogram uint8 = 1 << iota // value is an index of extras.histograms
	flagStart                       // value is an index of extras.started
)

// extras are what samples have beside a float. They are append-only as all of
// a head is.
type extras struct {
	histograms [][]byte
	started    []started
}

// started is a sample that has a start.
type started struct {
	value uint64 // as sample.value would be without it
	start int64
}

const (
	sampleBytes  = int64(unsafe.Sizeof(sample{}))
	startedBytes = 2 * int64(unsafe.Sizeof(started{})) // slices grow to at most twice
	// seriesBytes is what a series takes beside its label set and samples: the
	// struct; its entry in byID, 8 bytes in a table that is at least 3/8 full;
	// and its entry in metrics, a slice that doubles.
	seriesBytes    = int64(unsafe.Sizeof(memSeries{})) + 22 + 24
	histogramBytes = int64(unsafe.Sizeof([]byte(nil)))
)

func newHead() *head {
	return &head{span: series.TimeRange{Min: math.MaxInt64, Max: math.MinInt64}, scan: scanSeries}
}

// insert adds a validated batch; sets are the label sets of its series.
// Sequences must come in order and without gaps. The head keeps no label text
// of the batch, which may lie in a request's buffer; histograms are shared.
func (h *head) insert(seq wal.Sequence, b series.Batch, sets *symbols.Batch, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	total := uint64(0)
	if h.first == 0 {
		h.first, h.since = seq, now
	} else {
		total = h.rows[len(h.rows)-1]
	}
	record := uint32(seq - h.first)
	held := h.sets.Bytes()
	h.sets.Bind(sets)
	defer h.sets.Bind(nil)
	before := seriesRef(0) // the series before
	guess := seriesRef(0)
	for i := range b {
		if len(b[i].Samples) == 0 {
			continue
		}
		series := h.count
		ref := h.find(i, sets.IDs[i], guess)
		if h.count > series && guess != 0 && int(guess) <= series {
			// It came in the place of the guess; what comes next is the same.
			at(h.blocks, ref).after = at(h.blocks, guess).after
		}
		if before != 0 && ref != guess {
			at(h.blocks, before).after = ref
		}
		s := at(h.blocks, ref)
		if before, guess = ref, s.after; guess == 0 {
			guess = ref + 1
		}
		room := cap(s.samples)
		if need := len(s.samples) + len(b[i].Samples); need > room {
			s.samples = append(make([]sample, 0, roomFor(need)), s.samples...)
		}
		for j := range b[i].Samples {
			in := &b[i].Samples[j]
			s.samples = append(s.samples, h.compact(in, record))
			h.span.Min, h.span.Max = min(h.span.Min, in.Time), max(h.span.Max, in.Time)
		}
		h.bytes += int64(cap(s.samples)-room) * sampleBytes
		total += uint64(len(b[i].Samples))
	}
	h.rows = append(h.rows, total)
	h.bytes += int64(unsafe.Sizeof(total)) + h.sets.Bytes() - held
	h.last = seq
}

// roomFor is the room that a series gets for n samples. A series that comes and
// goes has some ten: to double each time would leave a third of it empty.
func roomFor(n int) int {
	if n <= 16 {
		return (n + 3) / 4 * 4
	}
	return (n + n/2 + 7) / 8 * 8
}

// find returns the i-th series of the bound batch, which it adds if need be. It
// looks at guess first, if that is one: clients send their series in the same order
// every time, so the one that came next the last time is nearly always the
// next, and byID, a cache miss of its own, need not be asked.
func (h *head) find(i int, id series.ID, guess seriesRef) seriesRef {
	if guess != 0 && int(guess) <= h.count {
		if s := at(h.blocks, guess); s.id == id && h.sets.Equal(s.set, i) {
			return guess
		}
	}
	chain, tag := h.byID.slot(id, h.blocks)
	for r := chain.ref; r != 0; {
		s := at(h.blocks, r)
		if h.sets.Equal(s.set, i) {
			return r
		}
		r = s.next // another series with the same hash
	}
	slot := h.count % blockSeries
	if slot == 0 {
		h.blocks = append(h.blocks, make([]memSeries, 0, blockSeries))
		h.firsts = make([]sample, blockSeries)
	}
	block := &h.blocks[len(h.blocks)-1]
	set := h.sets.Add(i)
	// Most series get one sample between two flushes: no allocation for it.
	*block = append(*block, memSeries{set: set, id: id, next: chain.ref, samples: h.firsts[slot : slot : slot+1]})
	h.count++
	ref := seriesRef(h.count)
	h.byID.put(chain, tag, ref)

	metric := int(h.sets.NameCode(set))
	for metric >= len(h.metrics) {
		h.metrics = append(h.metrics, nil)
	}
	h.metrics[metric] = append(h.metrics[metric], idRef{id, ref})
	h.bytes += seriesBytes + sampleBytes
	return ref
}

func (h *head) compact(in *series.Sample, record uint32) sample {
	out := sample{time: in.Time, value: math.Float64bits(in.Value), record: record, nanos: in.Nanos}
	h.nanos = h.nanos || in.Nanos != 0
	if in.Histogram != nil {
		out.value, out.flags = uint64(len(h.extras.histograms)), flagHistogram
		h.extras.histograms = append(h.extras.histograms, in.Histogram)
		h.bytes += histogramBytes + int64(len(in.Histogram))
	}
	if in.Start != 0 {
		h.extras.started = append(h.extras.started, started{value: out.value, start: in.Start})
		out.value, out.flags = uint64(len(h.extras.started)-1), out.flags|flagStart
		h.bytes += startedBytes
	}
	return out
}

// contents is what a file of the head may hold. mu is held.
func (h *head) contents() chunk.Contents {
	names := slices.DeleteFunc(h.sets.Names(), func(name string) bool { return name == series.MetricName })
	slices.Sort(names)
	return chunk.Contents{Labels: names, Nanos: h.nanos, Starts: len(h.extras.started) > 0, Histograms: len(h.extras.histograms) > 0}
}

// metric is a metric name and its code.
type metric struct {
	name string
	code int
}

// metricsOf returns the metric names of a view of h.sets that all matchers
// take, in ascending order.
func metricsOf(v *symbols.View, matchers []*series.Matcher) []metric {
	column, ok := v.Column(series.MetricName)
	if !ok {
		return nil
	}
	var found []metric
	for code := range v.Values(column) {
		name := v.Text(column, int32(code))
		if !slices.ContainsFunc(matchers, func(m *series.Matcher) bool {
			if m.Type == labels.MatchEqual {
				return m.Value != string(name)
			}
			return !m.Matches(string(name))
		}) {
			found = append(found, metric{string(name), code})
		}
	}
	slices.SortFunc(found, func(a, b metric) int { return cmp.Compare(a.name, b.name) })
	return found
}

// at returns a series; blocks is head.blocks or a copy of it.
func at(blocks [][]memSeries, r seriesRef) *memSeries {
	return &blocks[(r-1)/blockSeries][(r-1)%blockSeries]
}

// expand appends samples in their full form to dst.
func (e *extras) expand(dst []series.Sample, in []sample) []series.Sample {
	for i := range in {
		s, value := series.Sample{Time: in[i].time, Nanos: in[i].nanos}, in[i].value
		if in[i].flags&flagStart != 0 {
			value, s.Start = e.started[value].value, e.started[value].start
		}
		if in[i].flags&flagHistogram != 0 {
			s.Histogram = e.histograms[value]
		} else {
			s.Value = math.Float64frombits(value)
		}
		dst = append(dst, s)
	}
	return dst
}

// compare orders samples as series.Sample.Compare does.
func (s *sample) compare(o *sample) int {
	if c := cmp.Compare(s.time, o.time); c != 0 {
		return c
	}
	return cmp.Compare(s.nanos, o.nanos)
}

// sorted returns samples in the order of (time, nanos), equal ones in the
// order in which they came. It returns in itself where that is sorted already,
// as it nearly always is, and never changes it.
func sorted(in []sample) []sample {
	for i := 1; i < len(in); i++ {
		if in[i].compare(&in[i-1]) < 0 {
			out := slices.Clone(in)
			slices.SortStableFunc(out, func(a, b sample) int { return a.compare(&b) })
			return out
		}
	}
	return in
}

// through returns the samples of records up to bound, inclusive.
func through(in []sample, bound uint32) []sample {
	n := len(in)
	if n == 0 || in[n-1].record <= bound {
		return in
	}
	n, _ = slices.BinarySearchFunc(in, bound, func(s sample, bound uint32) int {
		if s.record <= bound {
			return -1
		}
		return 1
	})
	return in[:n]
}

// after returns the samples of records above bound.
func after(in []sample, bound uint32) []sample { return in[len(through(in, bound)):] }
