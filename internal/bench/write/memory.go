package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/prompb"

	"cardinalsin"
	"cardinalsin/internal/bench/harness"
	"cardinalsin/series"
)

// memory sends a million series, three samples of each, to all servers.
func (b *bench) memory(ctx context.Context) error {
	const million = 1_000_000
	const rounds = 3
	in := b.requests(workload{series: million, perPost: b.perPost, rounds: rounds})
	sides := []side{{"ours, always", b.startOurs(), nil}, {"prometheus", b.startPrometheus, nil}, {"victoriametrics", b.startVictoria, nil}}
	got := make([]*outcome, len(sides))
	for i, s := range sides {
		out, err := b.measure(ctx, s.start, in, load{clients: b.clients, warm: 1, limit: time.Hour})
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		got[i] = out
		b.Note("%-16s %s", s.name, out)
	}
	clear(b.made)
	perSeries := func(o *outcome) float64 { return float64(o.peak-o.base) / million }
	for i, name := range []string{"prometheus", "victoria"} {
		b.Line("memory-series-"+name, fmt.Sprintf("%.0fB", perSeries(got[0])), fmt.Sprintf("%.0fB", perSeries(got[i+1])), perSeries(got[i+1])/perSeries(got[0]))
	}
	b.Target("at most 1 KB of resident memory an active series at the worst moment", perSeries(got[0]) <= 1024)
	heap, err := b.heap(ctx, heapRequest{Dir: b.folder("heap"), Series: million})
	if err != nil {
		return err
	}
	b.Note("heap of ours after a collection: %d B a series in the head, %.1f B a series after the flush", heap.Active/million, float64(heap.Flushed)/million)
	b.Target("at most 1 KB of heap an active series", heap.Active/million <= 1024)
	b.Target("a series costs nothing after its flush (under 1 B of heap)", heap.Flushed < million)
	return nil
}

// heapRequest asks a child to take in that many series with one sample each
// and to flush them.
type heapRequest struct {
	Dir    string `json:"dir"`
	Series int    `json:"series"`
}

// heapAnswer is the growth of the heap, in bytes after a collection.
type heapAnswer struct {
	Active  int64 `json:"active"`  // when all are in the head
	Flushed int64 `json:"flushed"` // when all are in the table
}

// heap asks a process of its own, where nothing else is on the heap.
func (b *bench) heap(ctx context.Context, r heapRequest) (a heapAnswer, err error) {
	return a, errors.Join(harness.Ask(ctx, "heap", r, &a), os.RemoveAll(r.Dir))
}

// heapChild is the child's side.
func heapChild(ctx context.Context, in io.Reader, out io.Writer) (err error) {
	var r heapRequest
	if err := json.NewDecoder(in).Decode(&r); err != nil {
		return err
	}
	opts := cardinalsin.Options{Store: "file://" + r.Dir + "/store", WALDir: r.Dir + "/wal"}
	opts.Writer.FlushBytes, opts.Writer.FlushAge = 8<<30, time.Hour // when we say so
	db, err := cardinalsin.Open(ctx, opts)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close(ctx)) }()
	// What a process makes once, such as compressors, is no cost of a series.
	if err := appendSeriesOf(ctx, db, 100_000); err != nil {
		return err
	}
	if err := db.Writer.Flush(ctx); err != nil {
		return err
	}
	before := heapInUse()
	if err := appendSeriesOf(ctx, db, r.Series); err != nil {
		return err
	}
	var a heapAnswer
	a.Active = heapInUse() - before
	if err := db.Writer.Flush(ctx); err != nil {
		return err
	}
	a.Flushed = heapInUse() - before
	return json.NewEncoder(out).Encode(a)
}

// appendSeriesOf appends one sample of each of n series.
func appendSeriesOf(ctx context.Context, db *cardinalsin.DB, n int) error {
	const part = 10_000
	for from := 0; from < n; from += part {
		b, err := batchOf(from, min(from+part, n))
		if err != nil {
			return err
		}
		if err := db.Writer.Append(ctx, b); err != nil {
			return err
		}
	}
	return nil
}

// batchOf is one sample of each of those series.
func batchOf(from, to int) (series.Batch, error) {
	var raw []byte
	now := time.Now().UnixMilli()
	for i := from; i < to; i++ {
		raw = appendSeries(raw, labelsOf(i, 0), 1, now)
	}
	var req prompb.WriteRequest
	if err := req.Unmarshal(raw); err != nil {
		return nil, err
	}
	batch := make(series.Batch, len(req.Timeseries))
	b := labels.NewScratchBuilder(16)
	for i, ts := range req.Timeseries {
		batch[i] = series.Series{
			Labels:  ts.ToLabels(&b, nil),
			Samples: []series.Sample{{Time: series.FromMillis(ts.Samples[0].Timestamp), Value: ts.Samples[0].Value}},
		}
	}
	return batch, nil
}

// heapInUse is what lives on the heap. Pools let go with the second
// collection.
func heapInUse() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
