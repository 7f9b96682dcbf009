package prom

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/prompb"
	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/prometheus/prometheus/storage"

	"cardinalsin/series"
)

// testStorage offers a table to upstream's test suites as the storage they
// know.
type testStorage struct {
	*Queryable
	table *table
	flush bool // after every commit of the suite
}

func newTestStorage(t testing.TB, flush bool) *testStorage {
	tb := newTable(t)
	return &testStorage{Queryable: NewQueryable(tb.reader), table: tb, flush: flush}
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
	err := a.s.table.writer.Append(a.ctx, batch)
	if err == nil && a.s.flush {
		err = a.s.table.writer.Flush(a.ctx)
	}
	return err
}

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
type suite struct{ *testing.T }

func (s suite) Run(name string, f func(*testing.T)) bool {
	return s.T.Run(name, func(t *testing.T) {
		if raceEnabled && !strings.HasSuffix(name, "selectors.test") && !strings.HasSuffix(name, "staleness.test") {
			t.Skip("runs without the race detector, which makes the suite ten times as slow; other tests race the same code")
		}
		f(t)
	})
}

// TestPromQLBuiltin is upstream's own acceptance suite of PromQL, over a
// table: all in the head, and all in files.
func TestPromQLBuiltin(t *testing.T) {
	for _, flush := range []bool{false, true} {
		t.Run(fmt.Sprintf("flush=%v", flush), func(t *testing.T) {
			engine := promqltest.NewTestEngine(t, false, 0, promqltest.DefaultMaxSamplesPerQuery)
			promqltest.RunBuiltinTestsWithStorage(suite{t}, engine, func(t testing.TB) storage.Storage { return newTestStorage(t, flush) })
		})
	}
}
