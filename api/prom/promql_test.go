package prom

import (
	"context"
	"errors"
	"math"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/prompb"
	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/prometheus/prometheus/storage"

	"cardinalsin/compactor"
	"cardinalsin/index"
	"cardinalsin/series"
)

// testStorage offers a table to upstream's test suites as the storage they
// know.
type testStorage struct {
	*Queryable
	table   *table
	mode    mode
	compact *compactor.Runner
	index   *index.Runner
}

// mode is where the samples are that a query finds.
type mode int

const (
	allInHead mode = iota
	allFlushed
	// halfCompacted compacts the first half of every commit, with all before,
	// and leaves the rest as it was flushed; what is there then is indexed, and
	// samples are streamed.
	halfCompacted
)

func (m mode) String() string {
	return [...]string{"all in the head", "all flushed", "half flushed, half compacted"}[m]
}

func newTestStorage(t testing.TB, mode mode) *testStorage {
	tb := newTable(t)
	q := NewQueryable(tb.reader)
	if mode == halfCompacted {
		q.KeepSamples = 0
	}
	return &testStorage{
		Queryable: q, table: tb, mode: mode,
		compact: compactor.NewRunner(tb.log, nil, "test", compactor.Options{Policy: compactor.Policy{All: true, Settle: 1}}),
		index:   index.NewRunner(tb.log, index.RunnerOptions{Policy: index.Policy{Eager: true}}),
	}
}

func (s *testStorage) StartTime() (int64, error) { return math.MinInt64, nil }
func (s *testStorage) Close() error {
	return errors.Join(s.table.writer.Close(context.Background()), s.table.wal.Close())
}
func (s *testStorage) Appender(ctx context.Context) storage.Appender {
	return &appender{s: s, ctx: ctx}
}
func (s *testStorage) AppenderV2(ctx context.Context) storage.AppenderV2 {
	return &appenderV2{appender{s: s, ctx: ctx}}
}

// appender collects samples into one batch.
type appender struct {
	s     *testStorage
	ctx   context.Context
	batch series.Batch
}

func (a *appender) add(ls labels.Labels, p series.Sample) {
	a.batch = append(a.batch, series.Series{Labels: ls, Samples: []series.Sample{p}})
}

func (a *appender) Append(_ storage.SeriesRef, ls labels.Labels, t int64, v float64) (storage.SeriesRef, error) {
	a.add(ls, series.Sample{Time: series.FromMillis(t), Value: v})
	return 1, nil
}

func (a *appender) AppendHistogram(_ storage.SeriesRef, ls labels.Labels, t int64, h *histogram.Histogram, fh *histogram.FloatHistogram) (storage.SeriesRef, error) {
	var p prompb.Histogram
	if fh != nil {
		p = prompb.FromFloatHistogram(0, fh)
	} else {
		p = prompb.FromIntHistogram(0, h)
	}
	data, err := p.Marshal()
	a.add(ls, series.Sample{Time: series.FromMillis(t), Histogram: data})
	return 1, err
}

func (a *appender) Commit() error {
	batch := a.batch
	a.batch = nil
	w := a.s.table.writer
	if a.s.mode == halfCompacted {
		for _, part := range []series.Batch{batch[:len(batch)/4], batch[len(batch)/4 : len(batch)/2]} {
			if err := errors.Join(w.Append(a.ctx, part), w.Flush(a.ctx)); err != nil {
				return err
			}
		}
		done, err := a.s.compact.RunAll(a.ctx)
		if err != nil {
			return err
		}
		compactions.Add(int64(len(done)))
		indexed, err := a.s.index.RunAll(a.ctx)
		if err != nil {
			return err
		}
		indexes.Add(int64(len(indexed)))
		batch = batch[len(batch)/2:]
	}
	err := w.Append(a.ctx, batch)
	if err == nil && a.s.mode != allInHead {
		err = w.Flush(a.ctx)
	}
	return err
}

// compactions and indexes count those of the suite, which proves nothing
// without.
var compactions, indexes atomic.Int64

func (a *appender) Rollback() error {
	a.batch = nil
	return nil
}

func (*appender) SetOptions(*storage.AppendOptions) {}
func (*appender) AppendExemplar(storage.SeriesRef, labels.Labels, exemplar.Exemplar) (storage.SeriesRef, error) {
	return 1, nil
}
func (*appender) UpdateMetadata(storage.SeriesRef, labels.Labels, metadata.Metadata) (storage.SeriesRef, error) {
	return 1, nil
}
func (*appender) AppendSTZeroSample(storage.SeriesRef, labels.Labels, int64, int64) (storage.SeriesRef, error) {
	return 1, nil
}
func (*appender) AppendHistogramSTZeroSample(storage.SeriesRef, labels.Labels, int64, int64, *histogram.Histogram, *histogram.FloatHistogram) (storage.SeriesRef, error) {
	return 1, nil
}

type appenderV2 struct{ appender }

func (a *appenderV2) Append(_ storage.SeriesRef, ls labels.Labels, st, t int64, v float64, h *histogram.Histogram, fh *histogram.FloatHistogram, _ storage.AppendV2Options) (storage.SeriesRef, error) {
	var err error
	if h != nil || fh != nil {
		_, err = a.AppendHistogram(0, ls, t, h, fh)
	} else {
		_, err = a.appender.Append(0, ls, t, v)
	}
	if err == nil {
		last := a.batch[len(a.batch)-1].Samples
		last[len(last)-1].Start = st * 1_000_000
	}
	return 1, err
}

// suite leaves out most files of upstream's suite under the race detector, and
// says so.
type suite struct {
	*testing.T
	total, passed, skipped int
}

func (s *suite) Run(name string, f func(*testing.T)) bool {
	s.total++
	return s.T.Run(name, func(t *testing.T) {
		defer func() {
			switch {
			case t.Skipped():
				s.skipped++
			case !t.Failed():
				s.passed++
			}
		}()
		if raceEnabled && !strings.HasSuffix(name, "selectors.test") && !strings.HasSuffix(name, "staleness.test") {
			t.Skip("runs without the race detector, which makes the suite ten times as slow; other tests race the same code")
		}
		f(t)
	})
}

// TestPromQLBuiltin is upstream's own acceptance suite of PromQL, over a table
// in each way in which it may be stored; it prints what passed.
func TestPromQLBuiltin(t *testing.T) {
	for _, mode := range []mode{allInHead, allFlushed, halfCompacted} {
		t.Run(mode.String(), func(t *testing.T) {
			engine := promqltest.NewTestEngine(t, false, 0, promqltest.DefaultMaxSamplesPerQuery)
			s := &suite{T: t}
			promqltest.RunBuiltinTestsWithStorage(s, engine, func(t testing.TB) storage.Storage { return newTestStorage(t, mode) })
			t.Logf("%s: %d of %d files passed, %d skipped", mode, s.passed, s.total, s.skipped)
			if s.total == 0 {
				t.Error("upstream's suite has no files")
			}
			if mode == halfCompacted {
				t.Logf("%d compactions, %d index jobs", compactions.Load(), indexes.Load())
				if compactions.Load() == 0 || indexes.Load() == 0 {
					t.Error("nothing was compacted, or nothing indexed")
				}
			}
		})
	}
}
