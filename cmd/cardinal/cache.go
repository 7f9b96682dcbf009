package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"

	"cardinalsin"
	"cardinalsin/sqlengine"
	"cardinalsin/storage/cache"
)

// openSQL makes an engine over a table. The function that is returned closes
// it.
func openSQL(ctx context.Context, db *cardinalsin.DB) (*sqlengine.Engine, func() error, error) {
	engine, err := newEngine(ctx, db, sqlengine.Options{})
	if err != nil {
		return nil, nil, err
	}
	return engine, func() error { engine.Close(); return nil }, nil
}

// newEngine makes an engine over a table, with limits.
func newEngine(ctx context.Context, db *cardinalsin.DB, opts sqlengine.Options) (*sqlengine.Engine, error) {
	opts.Table = db.TableName()
	if c := db.Cache(); c != nil {
		opts.Files = c
	}
	return sqlengine.New(ctx, db.Reader, opts)
}

// openWithCache opens a table with a directory for what is read of a remote
// store, which one process can use at a time: where nobody has asked for a
// certain directory, a second process takes one of its own for as long as it
// runs. The function that is returned closes the table.
func openWithCache(ctx context.Context, opts cardinalsin.Options) (*cardinalsin.DB, func(context.Context) error, error) {
	asked := opts.CacheDir != ""
	if !asked {
		opts.CacheDir = filepath.Join(os.TempDir(), fmt.Sprintf("cardinal-cache-%d", os.Getuid()))
	}
	own := ""
	db, err := cardinalsin.Open(ctx, opts)
	if errors.Is(err, cache.ErrInUse) && !asked {
		if own, err = os.MkdirTemp("", "cardinal-cache-"); err != nil {
			return nil, nil, fmt.Errorf("make a cache directory: %w", err)
		}
		opts.CacheDir = own
		if db, err = cardinalsin.Open(ctx, opts); err != nil {
			return nil, nil, errors.Join(err, os.RemoveAll(own))
		}
	}
	if err != nil {
		return nil, nil, err
	}
	return db, func(ctx context.Context) error {
		err := db.Close(ctx)
		if own != "" {
			err = errors.Join(err, os.RemoveAll(own))
		}
		return err
	}, nil
}

// cacheCollector shows a cache's counts.
type cacheCollector struct {
	cache *cache.Cache
	descs []*prometheus.Desc
}

// cacheCounts are the metrics of a cache.
var cacheCounts = []struct {
	name, help string
	kind       prometheus.ValueType
	of         func(cache.Stats) int64
}{
	{"cardinal_cache_file_bytes", "Whole files on disk.", prometheus.GaugeValue, func(s cache.Stats) int64 { return s.Bytes }},
	{"cardinal_cache_disk_bytes", "Ranges on disk.", prometheus.GaugeValue, func(s cache.Stats) int64 { return s.Ranges.DiskBytes }},
	{"cardinal_cache_memory_bytes", "Ranges in memory.", prometheus.GaugeValue, func(s cache.Stats) int64 { return s.Ranges.MemoryBytes }},
	{"cardinal_cache_memory_hits_total", "Pieces found in memory.", prometheus.CounterValue, func(s cache.Stats) int64 { return s.Ranges.MemoryHits }},
	{"cardinal_cache_disk_hits_total", "Pieces found on disk.", prometheus.CounterValue, func(s cache.Stats) int64 { return s.Ranges.DiskHits }},
	{"cardinal_cache_joined_total", "Pieces found on their way for somebody else.", prometheus.CounterValue, func(s cache.Stats) int64 { return s.Ranges.Joined }},
	{"cardinal_cache_fetches_total", "Requests for ranges.", prometheus.CounterValue, func(s cache.Stats) int64 { return s.Ranges.Fetches }},
	{"cardinal_cache_fetched_bytes_total", "Bytes of ranges fetched.", prometheus.CounterValue, func(s cache.Stats) int64 { return s.Ranges.FetchedBytes }},
	{"cardinal_cache_evicted_total", "Pieces and files of ranges let go for room.", prometheus.CounterValue, func(s cache.Stats) int64 { return s.Ranges.Evicted }},
	{"cardinal_cache_damaged_total", "Pieces on disk with a wrong sum, fetched again.", prometheus.CounterValue, func(s cache.Stats) int64 { return s.Ranges.Damaged }},
	{"cardinal_cache_unwritten_total", "Requests whose bytes the disk had no room for, or failed to take.", prometheus.CounterValue, func(s cache.Stats) int64 { return s.Ranges.Unwritten }},
}

func cacheMetrics(c *cache.Cache) prometheus.Collector {
	out := &cacheCollector{cache: c}
	for _, m := range cacheCounts {
		out.descs = append(out.descs, prometheus.NewDesc(m.name, m.help, nil, nil))
	}
	return out
}

// Describe implements prometheus.Collector.
func (c *cacheCollector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range c.descs {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c *cacheCollector) Collect(out chan<- prometheus.Metric) {
	s := c.cache.Stats()
	for i, m := range cacheCounts {
		out <- prometheus.MustNewConstMetric(c.descs[i], m.kind, float64(m.of(s)))
	}
}
