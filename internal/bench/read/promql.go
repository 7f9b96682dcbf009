package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/prometheus/prometheus/promql"
	promstorage "github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"

	"cardinalsin"
	"cardinalsin/api/prom"
)

// evaluate asks upstream's engine.
func evaluate(ctx context.Context, engine *promql.Engine, over promstorage.Queryable, q query) (r result, err error) {
	if q.Label != "" {
		return labelValues(ctx, over, q)
	}
	for _, expr := range q.Exprs {
		var asked promql.Query
		if q.Step > 0 {
			asked, err = engine.NewRangeQuery(ctx, over, nil, expr, q.Start, q.End, q.Step)
		} else {
			asked, err = engine.NewInstantQuery(ctx, over, nil, expr, q.End)
		}
		if err != nil {
			return r, err
		}
		answer := asked.Exec(ctx)
		if answer.Err != nil {
			asked.Close()
			return r, answer.Err
		}
		switch v := answer.Value.(type) {
		case promql.Matrix:
			for _, s := range v {
				r.Series++
				for _, p := range s.Floats {
					r.add(p.F)
				}
			}
		case promql.Vector:
			for _, s := range v {
				r.Series++
				r.add(s.F)
			}
		}
		asked.Close()
	}
	return r, nil
}

func (r *result) add(v float64) {
	r.Points++
	if !math.IsNaN(v) {
		r.Sum += v
	}
}

func labelValues(ctx context.Context, over promstorage.Queryable, q query) (r result, err error) {
	querier, err := over.Querier(q.Start.UnixMilli(), q.End.UnixMilli())
	if err != nil {
		return r, err
	}
	values, _, err := querier.LabelValues(ctx, q.Label, &promstorage.LabelHints{Limit: q.Limit})
	r.Series = len(values)
	for _, v := range values {
		r.Points += len(v)
	}
	return r, errors.Join(err, querier.Close())
}

// newEngine is the engine of both sides, with Prometheus' limits.
func newEngine() *promql.Engine { return prom.NewEngine(prom.Options{Timeout: 10 * time.Minute}) }

func engineOver(over promstorage.Queryable) func(context.Context, query) (result, error) {
	engine := newEngine()
	return func(ctx context.Context, q query) (result, error) { return evaluate(ctx, engine, over, q) }
}

// counted counts what a table asks of its store.
func counted(db *cardinalsin.DB) func() (requests, bytes int64) {
	return func() (requests, bytes int64) {
		for _, c := range db.Meter.Snapshot() {
			requests += c.Requests
			bytes += c.Bytes
		}
		return requests, bytes
	}
}

func closing(ctx context.Context, db *cardinalsin.DB) func() error {
	return func() error { return db.Close(ctx) }
}

// openEngine is our table under the engine, without a writer.
func openEngine(ctx context.Context, dir string) (*opened, error) {
	db, err := openOurs(ctx, dir, "")
	if err != nil {
		return nil, err
	}
	return &opened{ask: engineOver(prom.NewQueryable(db.Reader)), count: counted(db), close: closing(ctx, db)}, nil
}

// openHTTP is our table behind its HTTP API.
func openHTTP(ctx context.Context, dir string) (*opened, error) {
	db, err := openOurs(ctx, dir, "")
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, errors.Join(err, db.Close(ctx))
	}
	server := &http.Server{Handler: prom.Handler(prom.Options{Reader: db.Reader, Timeout: 10 * time.Minute}), ReadHeaderTimeout: time.Minute}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	return &opened{
		ask: func(ctx context.Context, q query) (result, error) {
			return askHTTP(ctx, "http://"+l.Addr().String(), q)
		},
		count: counted(db),
		close: func() error {
			err := server.Close()
			if e := <-served; !errors.Is(e, http.ErrServerClosed) {
				err = errors.Join(err, e)
			}
			return errors.Join(err, db.Close(ctx))
		},
	}, nil
}

// askHTTP asks a server and reads its answers to the end, without a look into
// them; Points are their bytes.
func askHTTP(ctx context.Context, base string, q query) (r result, err error) {
	seconds := func(t time.Time) string { return strconv.FormatInt(t.Unix(), 10) }
	ask := func(path string, v url.Values) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+path+"?"+v.Encode(), nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		head := make([]byte, 512)
		n, err := io.ReadFull(resp.Body, head)
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			return errors.Join(err, resp.Body.Close())
		}
		rest, err := io.Copy(io.Discard, resp.Body)
		if err = errors.Join(err, resp.Body.Close()); err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%w: %d %s", errRefused, resp.StatusCode, head[:n])
		}
		r.Points += n + int(rest)
		return nil
	}
	if q.Label != "" {
		v := url.Values{"start": {seconds(q.Start)}, "end": {seconds(q.End)}}
		if q.Limit > 0 {
			v.Set("limit", strconv.Itoa(q.Limit))
		}
		return r, ask("/api/v1/label/"+q.Label+"/values", v)
	}
	for _, expr := range q.Exprs {
		v := url.Values{"query": {expr}, "nocache": {"1"}} // VictoriaMetrics keeps results
		path := "/api/v1/query"
		if q.Step > 0 {
			path = "/api/v1/query_range"
			v.Set("start", seconds(q.Start))
			v.Set("end", seconds(q.End))
			v.Set("step", strconv.FormatFloat(q.Step.Seconds(), 'f', -1, 64))
		} else {
			v.Set("time", seconds(q.End))
		}
		if err := ask(path, v); err != nil {
			return r, err
		}
	}
	return r, nil
}

// tsdbOptions keep a TSDB from deleting old data and from compacting.
func tsdbOptions() *tsdb.Options {
	o := tsdb.DefaultOptions()
	o.RetentionDuration = (100 * 365 * 24 * time.Hour).Milliseconds()
	o.MinBlockDuration = (1000 * time.Hour).Milliseconds()
	o.MaxBlockDuration = o.MinBlockDuration
	return o
}

func openTSDB(dir string) (*opened, error) {
	db, err := tsdb.Open(dir, slog.New(slog.DiscardHandler), nil, tsdbOptions(), nil)
	if err != nil {
		return nil, err
	}
	db.DisableCompactions()
	return &opened{ask: engineOver(db), close: db.Close}, nil
}

// openTSDBHead is a TSDB that has all in its head.
func openTSDBHead(ctx context.Context, d dataset, dir string) (_ *opened, err error) {
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	db, err := tsdb.Open(dir, slog.New(slog.DiscardHandler), nil, tsdbOptions(), nil)
	if err != nil {
		return nil, err
	}
	db.DisableCompactions()
	err = d.each(ctx, func(ctx context.Context, p *part) error { return appendTo(db.Appender(ctx), p) })
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return &opened{ask: engineOver(db), close: func() error { return errors.Join(db.Close(), os.RemoveAll(dir)) }}, nil
}

// openOursHead is a writer that has all in its head.
func openOursHead(ctx context.Context, d dataset, dir string) (*opened, error) {
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	db, err := openOurs(ctx, dir, filepath.Join(dir, "wal"))
	if err != nil {
		return nil, err
	}
	err = d.each(ctx, func(ctx context.Context, p *part) error { return db.Writer.Append(ctx, batch(p)) })
	if err != nil {
		return nil, errors.Join(err, db.Close(ctx))
	}
	return &opened{
		ask: engineOver(prom.NewQueryable(db.Reader)), count: counted(db),
		close: func() error { return errors.Join(db.Close(ctx), os.RemoveAll(dir)) },
	}, nil
}
