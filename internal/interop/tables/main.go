// Command tables makes the tables of ours that other engines then read: one
// for each shape that a log of ours can have. It writes them through the
// writer and the compactor, as a server does.
//
//	tables -store URL
//
// The rows are the same at every run: whole numbers, whose sums are exact in
// every engine in whatever order it adds them, besides NaNs, infinities and
// histograms. No series has a sample twice, so that engines which know
// nothing of our rank rule count what we count.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin"
	"cardinalsin/series"
)

// shape is one table: how many flushes it gets, and what its log looks like
// after them.
type shape struct {
	name    string
	flushes int
	// checkpointEvery is txlog's; 0 means never.
	checkpointEvery int64
	// growAt is the flush from which on the series have labels more; 0 means
	// never.
	growAt int
	// compactAfter is the flush after which all files are compacted; 0 means
	// never.
	compactAfter int
}

var shapes = []shape{
	{name: "young", flushes: 4},
	{name: "checkpointed", flushes: 15, checkpointEvery: 6},
	{name: "log_compacted", flushes: 36},
	{name: "grown", flushes: 6, growAt: 4, checkpointEvery: 5},
	{name: "compacted", flushes: 10, compactAfter: 8},
}

func main() {
	store := flag.String("store", "", "`URL` of the store that gets the tables")
	flag.Parse()
	if err := run(context.Background(), *store); err != nil {
		fmt.Fprintln(os.Stderr, "tables:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, store string) (err error) {
	wal, err := os.MkdirTemp("", "interop-tables-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(wal)) }()
	for _, s := range shapes {
		if err := s.make(ctx, store, filepath.Join(wal, s.name)); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

func (s shape) make(ctx context.Context, store, wal string) (err error) {
	opts := cardinalsin.Options{Store: store, Table: s.name, WALDir: wal}
	opts.Log.CheckpointEvery = s.checkpointEvery
	if s.checkpointEvery == 0 {
		opts.Log.CheckpointEvery = math.MaxInt64 / 2
	}
	opts.Compactor.Policy.All = true
	db, err := cardinalsin.Open(ctx, opts)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close(ctx)) }()
	for i := 1; i <= s.flushes; i++ {
		if err := db.Writer.Append(ctx, batch(i, s.growAt > 0 && i >= s.growAt)); err != nil {
			return err
		}
		if err := db.Writer.Flush(ctx); err != nil {
			return err
		}
		if err := db.Log.Upkeep(ctx); err != nil {
			return err
		}
		if i != s.compactAfter {
			continue
		}
		results, err := db.Compactor.RunAll(ctx)
		if err != nil {
			return err
		}
		if len(results) == 0 {
			return errors.New("there was nothing to compact")
		}
	}
	return nil
}

// begin is a minute before midnight, so that a table has two partitions.
var begin = time.Date(2026, 11, 21, 23, 59, 0, 0, time.UTC)

const samplesPerFlush = 12 // a series; 10 s apart

// batch is what flush i holds.
func batch(i int, grown bool) series.Batch {
	var b series.Batch
	add := func(value func(n int) series.Sample, pairs ...string) {
		s := series.Series{Labels: labels.FromStrings(pairs...)}
		for j := range samplesPerFlush {
			n := (i-1)*samplesPerFlush + j
			sample := value(n)
			sample.Time = series.FromTime(begin.Add(time.Duration(n)*10*time.Second + 123456*time.Microsecond))
			s.Samples = append(s.Samples, sample)
		}
		b = append(b, s)
	}
	for h := range 5 {
		host := fmt.Sprintf("host-%d", h)
		more := []string{}
		if grown {
			more = []string{"zone", fmt.Sprintf("zone %d, ü", h%2), "Rack", "r1"}
		}
		add(func(n int) series.Sample { return series.Sample{Value: float64(n * (h + 1))} },
			append(more, series.MetricName, "http_requests_total", "host", host, "code", "200")...)
		add(func(n int) series.Sample { return series.Sample{Value: float64(-n)} },
			append(more, series.MetricName, "queue_length", "host", host)...)
	}
	// A label that no column can carry goes to the overflow map.
	add(func(n int) series.Sample { return series.Sample{Value: 1 << 40, Nanos: uint16(n % 1000)} },
		series.MetricName, "overflown", "a label, in words", "x")
	add(func(n int) series.Sample {
		if n%samplesPerFlush == 1 {
			return series.Sample{Value: math.NaN()}
		}
		return series.Sample{Value: 1}
	}, series.MetricName, "sometimes_nan")
	add(func(int) series.Sample { return series.Sample{Value: math.Inf(1)} }, series.MetricName, "infinite")
	add(func(n int) series.Sample { return series.Sample{Histogram: []byte{8, byte(n)}} }, series.MetricName, "latency")
	return b
}
