package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"cardinalsin/internal/bench/harness"
)

// victoria is the side that is a server of its own.
const victoria = "victoria"

func (b *bench) startVictoria(ctx context.Context, dir string) (*harness.Server, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	return harness.StartServer(ctx, "victoriametrics", "/health", b.victoria,
		"-storageDataPath="+filepath.Join(dir, "data"), "-retentionPeriod=100y", "-loggerLevel=ERROR",
		"-search.maxUniqueTimeseries=2000000", "-search.maxSamplesPerQuery=2000000000", "-search.maxQueryDuration=5m", "-search.logSlowQueryDuration=0", "-search.maxPointsPerTimeseries=100000",
		"-search.maxSeries=2000000", "-search.maxLabelsAPISeries=2000000",
		"-httpListenAddr=")
}

// loadVictoria sends the dataset, and merges it.
func (b *bench) loadVictoria(ctx context.Context, d dataset, dir string) (err error) {
	s, err := b.startVictoria(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Stop()) }()
	if err := sendTo(ctx, d, "http://"+s.Address+"/api/v1/write"); err != nil {
		return err
	}
	for _, page := range []string{"/internal/force_flush", "/internal/force_merge"} {
		// They answer with nothing, or when it is done.
		if _, err := harness.Get(ctx, "http://"+s.Address+page); err != nil {
			return err
		}
	}
	return nil
}

// askVictoria asks a fresh server.
func (b *bench) askVictoria(ctx context.Context, d dataset, queries []query) (a answer, err error) {
	dir, err := b.data(ctx, d, victoria)
	if err != nil {
		return a, err
	}
	s, err := b.startVictoria(ctx, dir)
	if err != nil {
		return a, err
	}
	defer func() { err = errors.Join(err, s.Stop()) }()
	o := opened{ask: func(ctx context.Context, q query) (result, error) {
		return askHTTP(ctx, "http://"+s.Address, q)
	}}
	for _, q := range queries {
		a.Queries = append(a.Queries, o.measure(ctx, q, time.Duration(b.budget*float64(time.Second))))
	}
	u, err := s.Usage()
	a.Peak = u.Peak
	return a, err
}
