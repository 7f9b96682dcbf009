package daemon

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/time/rate"

	"cardinalsin"
	"cardinalsin/compactor"
	"cardinalsin/ingest"
	"cardinalsin/storage/cache"
	"cardinalsin/storage/meter"
	"cardinalsin/txlog"
	"cardinalsin/writer"
)

// Metrics turns the events of the lower layers into Prometheus metrics. Names
// end in their unit; durations are in seconds. Those of tables are over all
// tenants.
type Metrics struct {
	Registry *prometheus.Registry

	httpRequests *prometheus.CounterVec

	accepted  *prometheus.CounterVec
	refused   *prometheus.CounterVec
	leftOut   *prometheus.CounterVec
	requestIn *prometheus.HistogramVec

	requests   *prometheus.CounterVec
	bytes      *prometheus.CounterVec
	damaged    prometheus.Counter
	commits    *prometheus.CounterVec
	conflicts  prometheus.Counter
	commit     prometheus.Histogram
	version    prometheus.Gauge
	appended   *prometheus.CounterVec
	samples    prometheus.Counter
	appendTime prometheus.Histogram
	delay      prometheus.Histogram
	queued     prometheus.Histogram
	walSync    prometheus.Histogram
	walSyncs   *prometheus.CounterVec
	walTrimmed prometheus.Counter
	flushes    *prometheus.CounterVec
	flushRows  prometheus.Counter
	flushFiles prometheus.Counter
	flushBytes prometheus.Counter
	flush      prometheus.Histogram
	// conflictsOfFlush are those that made a flush plan anew.
	conflictsOfFlush prometheus.Counter
	upload           prometheus.Histogram
	flushWait        prometheus.Histogram
	jobs             *prometheus.CounterVec
}

// NewMetrics makes a registry with the metrics of this process.
func NewMetrics() *Metrics {
	r := prometheus.NewRegistry()
	vec := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		r.MustRegister(c)
		return c
	}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		r.MustRegister(c)
		return c
	}
	// From 0.1 ms, an fsync of a fast disk, to about 1.6 s, in steps of four.
	buckets := prometheus.ExponentialBuckets(0.0001, 4, 8)
	histogram := func(name, help string) prometheus.Histogram {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
		r.MustRegister(h)
		return h
	}
	m := &Metrics{
		Registry:     r,
		httpRequests: vec("cardinal_http_requests_total", "HTTP requests by pattern and status.", "handler", "code"),
		accepted:     vec("cardinal_ingest_accepted_total", "What was acknowledged, by protocol and kind: requests, samples, exemplars, metadata.", "protocol", "kind"),
		refused:      vec("cardinal_ingest_refused_requests_total", "Requests refused, by protocol and reason.", "protocol", "reason"),
		leftOut:      vec("cardinal_ingest_refused_samples_total", "Samples refused, alone or with their request, by protocol and reason.", "protocol", "reason"),
		requestIn: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "cardinal_ingest_duration_seconds", Help: "Time from a decoded request to its acknowledgement.", Buckets: buckets,
		}, []string{"protocol"}),
		requests:         vec("cardinal_store_calls_total", "Calls on the store by kind and outcome.", "op", "outcome"),
		bytes:            vec("cardinal_store_bytes_total", "Bytes read from and written to the store.", "op"),
		damaged:          counter("cardinal_cache_damaged_bytes_total", "Bytes of the cache on disk that were found damaged, and thrown away."),
		commits:          vec("cardinal_commits_total", "Attempts to commit an entry, by operation and outcome.", "operation", "outcome"),
		conflicts:        counter("cardinal_commit_conflicts_total", "Versions that others won before an entry of ours."),
		commit:           histogram("cardinal_commit_duration_seconds", "Time from the first attempt of an entry to its outcome."),
		version:          prometheus.NewGauge(prometheus.GaugeOpts{Name: "cardinal_committed_version", Help: "Last version of the default table that this process committed."}),
		appended:         vec("cardinal_append_batches_total", "Batches by outcome.", "outcome"),
		samples:          counter("cardinal_append_samples_total", "Samples acknowledged."),
		appendTime:       histogram("cardinal_append_duration_seconds", "Time until a batch was durable."),
		delay:            histogram("cardinal_append_delay_seconds", "Time for which back-pressure held a batch up."),
		queued:           histogram("cardinal_append_queued_seconds", "Time until the group of a batch was written to the log."),
		walSync:          histogram("cardinal_wal_sync_duration_seconds", "Time of a sync of the write-ahead log."),
		walSyncs:         vec("cardinal_wal_syncs_total", "Syncs of the write-ahead log by outcome.", "outcome"),
		walTrimmed:       counter("cardinal_wal_trimmed_bytes_total", "Bytes of torn tails, never acknowledged, that were cut off when a log was opened."),
		flushes:          vec("cardinal_flushes_total", "Flushes by outcome.", "outcome"),
		flushRows:        counter("cardinal_flush_rows_total", "Rows committed by flushes."),
		flushFiles:       counter("cardinal_flush_files_total", "Files committed by flushes."),
		flushBytes:       counter("cardinal_flush_bytes_total", "Bytes of the files committed by flushes."),
		flush:            histogram("cardinal_flush_duration_seconds", "Time of a flush, encoding and uploads included."),
		conflictsOfFlush: counter("cardinal_flush_conflicts_total", "Commits of flushes that had to be planned anew."),
		upload:           histogram("cardinal_flush_upload_duration_seconds", "Time in which the files of a flush were encoded and put."),
		flushWait:        histogram("cardinal_flush_commit_duration_seconds", "Time in which a flush was committed."),
		jobs:             vec("cardinal_compactions_total", "Compaction jobs by outcome.", "outcome"),
	}
	r.MustRegister(
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), collectors.NewBuildInfoCollector(),
		m.requestIn, m.version,
	)
	return m
}

// count counts the requests of a handler.
func (m *Metrics) count(pattern string, h http.Handler) http.Handler {
	return promhttp.InstrumentHandlerCounter(m.httpRequests.MustCurryWith(prometheus.Labels{"handler": pattern}), h)
}

// ingestEvents counts requests, and logs those that are refused.
func (m *Metrics) ingestEvents(logger *slog.Logger) ingest.Events {
	often := rate.NewLimiter(1, 5) // what is ours is worth a warning, but not thousands
	return ingest.Events{
		AppendEnd: func(e ingest.AppendEvent) {
			p := string(e.Protocol)
			m.requestIn.WithLabelValues(p).Observe(e.Duration.Seconds())
			if e.Err != nil {
				m.refused.WithLabelValues(p, string(e.Reason)).Inc()
				m.leftOut.WithLabelValues(p, string(e.Reason)).Add(float64(e.Samples))
				level := slog.LevelDebug // the client's affair, and it was told
				if _, status := ingest.Classify(e.Err); status == http.StatusServiceUnavailable && often.Allow() {
					level = slog.LevelWarn
				}
				logger.Log(context.Background(), level, "request refused", "tenant", e.Tenant, "protocol", p, "reason", e.Reason, "samples", e.Samples, "err", e.Err)
				return
			}
			m.accepted.WithLabelValues(p, "requests").Inc()
			m.accepted.WithLabelValues(p, "samples").Add(float64(e.Samples))
			m.accepted.WithLabelValues(p, "exemplars").Add(float64(e.Exemplars))
			m.accepted.WithLabelValues(p, "metadata").Add(float64(e.Metadata))
		},
		Refused: func(p ingest.Protocol, reason ingest.Reason, n int) {
			if n == 0 {
				m.refused.WithLabelValues(string(p), string(reason)).Inc()
				return
			}
			m.leftOut.WithLabelValues(string(p), string(reason)).Add(float64(n))
		},
	}
}

// observeStore subscribes to the calls on the store of all tables.
func (m *Metrics) observeStore(o *cardinalsin.Options) {
	o.OnCall = func(e meter.Event) {
		m.requests.WithLabelValues(string(e.Op), meter.Outcome(e.Err)).Inc()
		m.bytes.WithLabelValues(string(e.Op)).Add(float64(e.Bytes))
	}
	o.CacheEvents.Damaged = func(d cache.Damage) { m.damaged.Add(float64(d.Length)) }
}

// observe subscribes to the events of a table that is about to be opened.
func (m *Metrics) observe(o *cardinalsin.Options, isDefault bool) {
	o.Log.Events.CommitEnd = func(e txlog.CommitEvent) {
		m.commits.WithLabelValues(e.Operation, outcome(e.Err)).Inc()
		m.conflicts.Add(float64(e.Conflicts))
		m.commit.Observe(e.Duration.Seconds())
		if e.Err == nil && isDefault {
			m.version.Set(float64(e.Version))
		}
	}
	o.WAL.Events.SyncEnd = func(_ int64, took time.Duration, err error) {
		m.walSyncs.WithLabelValues(outcome(err)).Inc()
		m.walSync.Observe(took.Seconds())
	}
	logger, table := o.Logger, o.Tenant+"/"+o.Table
	o.WAL.Events.TailTrimmed = func(segment string, offset, bytes int64) {
		m.walTrimmed.Add(float64(bytes))
		logger.Info("torn tail of the wal cut off", "table", table, "segment", segment, "offset", offset, "bytes", bytes)
	}
	o.Writer.Events.AppendEnd = func(e writer.AppendEvent) {
		m.appended.WithLabelValues(outcome(e.Err)).Inc()
		m.appendTime.Observe(e.Duration.Seconds())
		m.delay.Observe(e.Delay.Seconds())
		m.queued.Observe(e.Queued.Seconds())
		if e.Err == nil {
			m.samples.Add(float64(e.Samples))
		}
	}
	o.Writer.Events.FlushEnd = func(e writer.FlushEvent) {
		m.flushes.WithLabelValues(outcome(e.Err)).Inc()
		m.flush.Observe(e.Duration.Seconds())
		if e.Err == nil {
			m.upload.Observe(e.Upload.Seconds())
			m.flushWait.Observe(e.Commit.Seconds())
			m.conflictsOfFlush.Add(float64(e.Conflicts))
			m.flushRows.Add(float64(e.Rows))
			m.flushFiles.Add(float64(e.Files))
			m.flushBytes.Add(float64(e.Bytes))
			logger.Debug("flushed", "table", table, "version", int64(e.Version), "rows", e.Rows, "files", e.Files, "bytes", e.Bytes, "took", e.Duration)
		}
	}
	o.Compactor.Events.CompactEnd = func(_ compactor.Job, _ compactor.Result, err error) {
		m.jobs.WithLabelValues(outcome(err)).Inc()
	}
}

// tableGauges are sums over the open tables, but for those named worst.
var tableGauges = []struct {
	name, help string
	worst      bool
	of         func(writer.Stats) float64
}{
	{"cardinal_head_bytes", "Memory of the heads.", false, func(s writer.Stats) float64 { return float64(s.HeadBytes) }},
	{"cardinal_head_series", "Series in the heads.", false, func(s writer.Stats) float64 { return float64(s.HeadSeries) }},
	{"cardinal_head_samples", "Samples in the heads.", false, func(s writer.Stats) float64 { return float64(s.HeadSamples) }},
	{"cardinal_wal_bytes", "Size of the write-ahead logs.", false, func(s writer.Stats) float64 { return float64(s.WALBytes) }},
	{"cardinal_wal_behind_records", "Acknowledged batches that are only in a write-ahead log.", false, func(s writer.Stats) float64 { return float64(s.Behind) }},
	{"cardinal_append_queue_batches", "Batches that wait for a write-ahead log.", false, func(s writer.Stats) float64 { return float64(s.QueueBatches) }},
	{"cardinal_append_queue_bytes", "Bytes of the batches that wait for a write-ahead log.", false, func(s writer.Stats) float64 { return float64(s.QueueBytes) }},
	{"cardinal_unflushed_age_seconds", "Age of the oldest sample that is in no version yet, of the worst table.", true, func(s writer.Stats) float64 { return s.Oldest.Seconds() }},
	{"cardinal_level0_files", "Files that wait for compaction, of the worst table.", true, func(s writer.Stats) float64 { return float64(s.LevelZero) }},
	{"cardinal_pressure_ratio", "How far requests are slowed down, 0 to 1, of the worst table.", true, func(s writer.Stats) float64 { return s.Pressure }},
}

// tables collects the gauges of all open tables when it is asked for them.
type tables struct {
	tenants *cardinalsin.Tenants
	open    *prometheus.Desc
	descs   []*prometheus.Desc
}

func (m *Metrics) observeTenants(t *cardinalsin.Tenants) {
	c := &tables{tenants: t, open: prometheus.NewDesc("cardinal_open_tables", "Tables that are open.", nil, nil)}
	for _, g := range tableGauges {
		c.descs = append(c.descs, prometheus.NewDesc(g.name, g.help, nil, nil))
	}
	m.Registry.MustRegister(c)
}

// Describe implements prometheus.Collector.
func (c *tables) Describe(out chan<- *prometheus.Desc) {
	out <- c.open
	for _, d := range c.descs {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c *tables) Collect(out chan<- prometheus.Metric) {
	open := 0
	values := make([]float64, len(tableGauges))
	c.tenants.Each(func(_, _ string, db *cardinalsin.DB) {
		open++
		if db.Writer == nil {
			return
		}
		s := db.Writer.Stats()
		for i, g := range tableGauges {
			if g.worst {
				values[i] = max(values[i], g.of(s))
			} else {
				values[i] += g.of(s)
			}
		}
	})
	out <- prometheus.MustNewConstMetric(c.open, prometheus.GaugeValue, float64(open))
	for i, d := range c.descs {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, values[i])
	}
}

func outcome(err error) string {
	if err != nil {
		return "error"
	}
	return "ok"
}
