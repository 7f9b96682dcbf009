package scrape

import (
	"cmp"
	"context"
	"errors"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"

	"cardinalsin/ingest"
	"cardinalsin/internal/nativehist"
	"cardinalsin/series"
)

// appendable makes appenders for upstream's scrape loops, and remembers what
// they need to know of earlier scrapes.
type appendable struct {
	sink   ingest.Sink
	tenant string

	mu     sync.Mutex // guards what follows
	last   map[storage.SeriesRef]lastScrape
	pruned time.Time
}

// lastScrape is what a series had when it was kept last.
type lastScrape struct {
	at   int64  // ms
	bare uint64 // hash of its last exemplar that came without a time
	seen time.Time
}

// pruneAfter is how long a series that is scraped no more is remembered.
const pruneAfter = time.Hour

func newAppendable(sink ingest.Sink, tenant string) *appendable {
	return &appendable{sink: sink, tenant: tenant, last: map[storage.SeriesRef]lastScrape{}, pruned: time.Now()}
}

// AppenderV2 implements storage.AppendableV2.
func (a *appendable) AppenderV2(ctx context.Context) storage.AppenderV2 {
	return &appender{to: a, ctx: ctx, request: ingest.Request{Protocol: ingest.Scrape}, fresh: map[storage.SeriesRef]lastScrape{}}
}

func (a *appendable) lastOf(ref storage.SeriesRef) (lastScrape, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	l, ok := a.last[ref]
	return l, ok
}

// keep notes what a scrape that was accepted had.
func (a *appendable) keep(fresh map[storage.SeriesRef]lastScrape) {
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	for ref, l := range fresh {
		l.at = max(l.at, a.last[ref].at)
		l.seen = now
		a.last[ref] = l
	}
	if now.Sub(a.pruned) < pruneAfter {
		return
	}
	a.pruned = now
	for ref, l := range a.last {
		if now.Sub(l.seen) > pruneAfter {
			delete(a.last, ref)
		}
	}
}

// appender collects one scrape into a request. Like upstream's it serves one
// goroutine.
type appender struct {
	to      *appendable
	ctx     context.Context
	request ingest.Request
	fresh   map[storage.SeriesRef]lastScrape
}

// refOf makes a reference that is never 0, which upstream takes for unknown.
// Two series with one hash would share what is remembered of them: a marker of
// staleness or a repeated exemplar could be lost, no sample.
func refOf(ls labels.Labels) storage.SeriesRef {
	return storage.SeriesRef(cmp.Or(uint64(series.IDOf(ls)), 1))
}

// Append implements storage.AppenderV2. An error of upstream's storage makes
// the scrape loop leave a sample out, count and log it; any other ends the
// scrape.
func (a *appender) Append(_ storage.SeriesRef, ls labels.Labels, st, t int64, v float64, h *histogram.Histogram, fh *histogram.FloatHistogram, o storage.AOptions) (storage.SeriesRef, error) {
	s := series.Sample{Time: series.FromMillis(t), Value: v, Start: st * nanosPerMilli}
	if s.Time.Millis() != t || st != s.Start/nanosPerMilli {
		a.to.sink.Refuse(ingest.Scrape, "invalid_sample", 1)
		return 0, storage.ErrOutOfBounds
	}
	if err := series.Validate(ls); err != nil {
		return 0, a.refuse(err)
	}
	if h != nil || fh != nil {
		data, err := nativehist.FromModel(h, fh)
		if err != nil {
			return 0, a.refuse(err)
		}
		s.Value, s.Histogram = 0, data
	}
	ref := refOf(ls)
	last, known := a.fresh[ref]
	if !known {
		last, known = a.to.lastOf(ref)
	}
	if o.RejectOutOfOrder && known && t <= last.at {
		// A marker of staleness that comes after what it should come before,
		// as when a target was away for a moment.
		if t == last.at {
			return 0, storage.ErrDuplicateSampleForTimestamp
		}
		return 0, storage.ErrOutOfOrderSample
	}
	last.at = max(last.at, t)
	if !known {
		last.at = t
	}
	for _, e := range o.Exemplars {
		last.bare = a.exemplar(ls, e, last.bare)
	}
	a.fresh[ref] = last
	a.request.Samples = append(a.request.Samples, series.Series{Labels: ls, Samples: []series.Sample{s}})
	a.metadata(ls, o)
	return ref, nil
}

const nanosPerMilli = 1_000_000

// refuse counts a series that ends its scrape.
func (a *appender) refuse(err error) error {
	reason, _ := ingest.Classify(err)
	a.to.sink.Refuse(ingest.Scrape, reason, 1)
	return err
}

// exemplar keeps one. Where the target gives no time it is that of the scrape,
// so one that is still there the next time would count again; bare tells which
// that is.
func (a *appender) exemplar(ls labels.Labels, e exemplar.Exemplar, bare uint64) uint64 {
	t := series.FromMillis(e.Ts)
	if t.Millis() != e.Ts {
		a.to.sink.Refuse(ingest.Scrape, "invalid_sample", 1)
		return bare
	}
	if !e.HasTs {
		const mix = 0x9E3779B97F4A7C15 // so that value and labels do not cancel out
		hash := cmp.Or(e.Labels.Hash()^math.Float64bits(e.Value)*mix, 1)
		if hash == bare {
			return bare
		}
		bare = hash
	}
	a.request.Exemplars = append(a.request.Exemplars, series.Exemplar{Series: ls, Labels: e.Labels.Copy(), Time: t, Value: e.Value})
	return bare
}

// metadata keeps what the target says of a metric, once for each in a row.
func (a *appender) metadata(ls labels.Labels, o storage.AOptions) {
	m := series.Metadata{Metric: ls.Get(series.MetricName), Type: string(o.Metadata.Type), Unit: o.Metadata.Unit, Help: o.Metadata.Help}
	switch o.Metadata.Type {
	case model.MetricTypeHistogram, model.MetricTypeGaugeHistogram, model.MetricTypeSummary:
		m.Metric = cmp.Or(o.MetricFamilyName, m.Metric)
	case model.MetricTypeUnknown:
		m.Type = ""
	}
	if n := len(a.request.Metadata); m == (series.Metadata{Metric: m.Metric}) || n > 0 && a.request.Metadata[n-1] == m {
		return
	}
	m.Metric = strings.Clone(m.Metric) // the family's name is only lent
	a.request.Metadata = append(a.request.Metadata, m)
}

// Commit implements storage.AppenderTransaction: it hands the scrape over.
func (a *appender) Commit() error {
	if len(a.request.Samples) == 0 {
		return nil
	}
	if err := a.to.sink.Append(a.ctx, a.to.tenant, &a.request); err != nil {
		return errors.Join(err, a.Rollback())
	}
	a.to.keep(a.fresh)
	return nil
}

// Rollback implements storage.AppenderTransaction.
func (a *appender) Rollback() error {
	a.request, a.fresh = ingest.Request{}, nil
	return nil
}
