package prom

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/prompb"

	"cardinalsin/series"
)

// ErrMemory: a query would hold more bytes than it, or all queries together,
// may.
var ErrMemory = errors.New("query needs too much memory")

// Memory bounds what all queries that share it hold at a time: label sets,
// samples that are not streamed, and the points that upstream's engine makes of
// them. It may be used concurrently.
type Memory struct {
	limit int64
	used  atomic.Int64
}

// NewMemory returns room for limit bytes.
func NewMemory(limit int64) *Memory { return &Memory{limit: limit} }

// Used is how many bytes are held now.
func (m *Memory) Used() int64 { return m.used.Load() }

const (
	defaultQueryBytes  = 1 << 30
	defaultMemoryBytes = 2 << 30
)

// holding is what one query holds, until it gives all of it back.
type holding struct {
	memory *Memory
	most   int64 // 0: no limit of its own

	mu    sync.Mutex // guards what follows
	bytes int64
	over  bool // all was given back
}

// hold counts bytes that the query holds until it is closed, or gives back
// those that it holds no more.
func (h *holding) hold(n int64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.over {
		return nil
	}
	if n > 0 && h.most > 0 && h.bytes+n > h.most {
		return fmt.Errorf("%w: more than the %d bytes that one query may hold", ErrMemory, h.most)
	}
	if all := h.memory.used.Add(n); n > 0 && all > h.memory.limit {
		h.memory.used.Add(-n)
		return fmt.Errorf("%w: all queries together would hold more than %d bytes", ErrMemory, h.memory.limit)
	}
	h.bytes += n
	return nil
}

type holdingKey struct{}

// heldUntilAnswered makes what a request reads count until its answer is
// written: results outlive their queriers.
func heldUntilAnswered(next http.Handler, memory *Memory, most int64) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := &holding{memory: memory, most: most}
		defer h.giveBack()
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), holdingKey{}, h)))
	})
}

// holdingOf is what the request of ctx holds; nil outside of one.
func holdingOf(ctx context.Context) *holding {
	h, _ := ctx.Value(holdingKey{}).(*holding)
	return h
}

// giveBack ends the holding.
func (h *holding) giveBack() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.memory.used.Add(-h.bytes)
	h.bytes, h.over = 0, true
}

// What things take beside their texts and samples.
const (
	aSeries    = 200 // tableSeries, where it stands in lists, its place in the index
	aSample    = 56  // series.Sample
	aFloat     = 16  // a time and a value
	aHistogram = 400 // prompb.Histogram, its place in a map
	aText      = 16  // a string
	anExemplar = 120 // exemplar.Exemplar, and its row in the table
)

func labelBytes(l labels.Labels) int64 { return int64(l.ByteSize()) + aSeries }

// bytes estimates what points take that share memory with nothing else.
func (p points) bytes() int64 {
	n := aFloat*int64(len(p.floats.Times)) + aSample*int64(cap(p.samples))
	for i := range p.samples {
		if h := p.histograms[i]; h != nil {
			n += histogramBytes(&p.samples[i], h)
		}
	}
	return n
}

func histogramBytes(s *series.Sample, h *prompb.Histogram) int64 {
	const word = 8
	return aHistogram + int64(len(s.Histogram)) + word*int64(len(h.PositiveSpans)+len(h.NegativeSpans)+len(h.PositiveDeltas)+len(h.NegativeDeltas)+
		len(h.PositiveCounts)+len(h.NegativeCounts)+len(h.CustomValues))
}
