package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/klauspost/compress/s2"
	"github.com/prometheus/prometheus/prompb"
	promstorage "github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"

	"cardinalsin"
	"cardinalsin/index"
	"cardinalsin/series"
	"cardinalsin/txlog"
	"cardinalsin/wal"
)

// openOurs opens our table below dir; walDir is empty for a table that is only
// read.
func openOurs(ctx context.Context, dir, walDir string) (*cardinalsin.DB, error) {
	opts := cardinalsin.Options{Store: "file://" + filepath.Join(dir, "store"), WALDir: walDir}
	// What is loaded is flushed when we say so.
	opts.Writer.FlushBytes, opts.Writer.FlushAge = 16<<30, time.Hour
	opts.WAL.Sync = wal.SyncDeferred
	opts.Compactor.Policy.All = true
	opts.Indexer.Policy.Eager = true
	return cardinalsin.Open(ctx, opts)
}

// batch is a part as our writer takes it.
func batch(p *part) series.Batch {
	b := make(series.Batch, len(p.labels))
	for i, l := range p.labels {
		b[i] = series.Series{Labels: l, Samples: make([]series.Sample, len(p.values[i]))}
		for k, v := range p.values[i] {
			b[i].Samples[k] = series.Sample{Time: series.FromMillis(p.times[i][k]), Value: v}
		}
	}
	return b
}

// flushSamples is how many samples the head has when it is flushed: about what
// it has by default at a calm rate, so that there is something to compact.
const flushSamples = 16_000_000

// loadOurs writes through writer and flushes, compacts until nothing is left to
// do, and tells the size of the live files.
func loadOurs(ctx context.Context, d dataset, dir string) (size int64, err error) {
	db, err := openOurs(ctx, dir, filepath.Join(dir, "wal"))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, db.Close(ctx), os.RemoveAll(filepath.Join(dir, "wal"))) }()
	var mu sync.Mutex // guards n, and makes one flush at a time
	n := 0
	err = d.each(ctx, func(ctx context.Context, p *part) error {
		if err := db.Writer.Append(ctx, batch(p)); err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		if n += p.samples(); n < flushSamples {
			return nil
		}
		n = 0
		return db.Writer.Flush(ctx)
	})
	if err != nil {
		return 0, err
	}
	if err := db.Writer.Flush(ctx); err != nil {
		return 0, err
	}
	if _, err := db.Compactor.RunAll(ctx); err != nil {
		return 0, err
	}
	if _, err := db.Indexer.RunAll(ctx); err != nil {
		return 0, err
	}
	snap, err := db.Log.Snapshot(ctx, txlog.Latest())
	if err != nil {
		return 0, err
	}
	segments, err := index.Segments(snap)
	if err != nil {
		return 0, err
	}
	for _, s := range segments {
		size += s.Bytes
	}
	for f := range snap.Files() {
		size += f.Size
	}
	return size, nil
}

// appendTo appends a part through a Prometheus appender.
func appendTo(a promstorage.Appender, p *part) error {
	for i, l := range p.labels {
		ref := promstorage.SeriesRef(0)
		var err error
		for k, v := range p.values[i] {
			if ref, err = a.Append(ref, l, p.times[i][k], v); err != nil {
				return fmt.Errorf("append %s: %w", l, errors.Join(err, a.Rollback()))
			}
		}
	}
	return a.Commit()
}

// loadPrometheus writes one block. A server would have several; one is the
// quickest to read.
func loadPrometheus(ctx context.Context, d dataset, dir string) (err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	// An appender takes samples that are older than the newest by up to half
	// of the block's length.
	w, err := tsdb.NewBlockWriter(slog.New(slog.DiscardHandler), dir, 4*d.span().Milliseconds())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	err = d.each(ctx, func(ctx context.Context, p *part) error { return appendTo(w.Appender(ctx), p) })
	if err != nil {
		return err
	}
	_, err = w.Flush(ctx)
	return err
}

var errRefused = errors.New("request refused")

// sendTo sends the dataset by remote write.
func sendTo(ctx context.Context, d dataset, url string) error {
	return d.each(ctx, func(ctx context.Context, p *part) error {
		w := prompb.WriteRequest{Timeseries: make([]prompb.TimeSeries, len(p.labels))}
		for i, l := range p.labels {
			ts := &w.Timeseries[i]
			ts.Labels = prompb.FromLabels(l, nil)
			ts.Samples = make([]prompb.Sample, len(p.values[i]))
			for k, v := range p.values[i] {
				ts.Samples[k] = prompb.Sample{Timestamp: p.times[i][k], Value: v}
			}
		}
		raw, err := w.Marshal()
		if err != nil {
			return err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(s2.EncodeSnappy(nil, raw)))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", "application/x-protobuf")
		req.Header.Set("Content-Encoding", "snappy")
		req.Header.Set("X-Prometheus-Remote-Write-Version", "0.1.0")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		if err = errors.Join(err, resp.Body.Close()); err != nil {
			return err
		}
		if resp.StatusCode/100 != 2 {
			return fmt.Errorf("%w: %d %s", errRefused, resp.StatusCode, text)
		}
		return nil
	})
}
