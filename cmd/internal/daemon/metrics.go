package daemon

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"cardinalsin"
	"cardinalsin/storage/meter"
	"cardinalsin/txlog"
	"cardinalsin/writer"
)

// Metrics turns the events of the lower layers into Prometheus metrics. Names
// end in their unit; durations are in seconds.
type Metrics struct {
	Registry *prometheus.Registry

	requests   *prometheus.CounterVec
	bytes      *prometheus.CounterVec
	commits    *prometheus.CounterVec
	conflicts  prometheus.Counter
	commit     prometheus.Histogram
	version    prometheus.Gauge
	appended   *prometheus.CounterVec
	samples    prometheus.Counter
	appendTime prometheus.Histogram
	flushes    *prometheus.CounterVec
	flushRows  prometheus.Counter
	flush      prometheus.Histogram
}

// NewMetrics makes a registry with the metrics of this process.
func NewMetrics() *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	// From 0.1 ms, an fsync of a fast disk, to about 1.6 s, in steps of four.
	buckets := prometheus.ExponentialBuckets(0.0001, 4, 8)
	histogram := func(name, help string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
	}
	m := &Metrics{
		Registry:   prometheus.NewRegistry(),
		requests:   counter("cardinal_store_calls_total", "Calls on the store by kind and outcome.", "op", "outcome"),
		bytes:      counter("cardinal_store_bytes_total", "Bytes read from and written to the store.", "op"),
		commits:    counter("cardinal_commits_total", "Attempts to commit an entry, by operation and outcome.", "operation", "outcome"),
		conflicts:  prometheus.NewCounter(prometheus.CounterOpts{Name: "cardinal_commit_conflicts_total", Help: "Versions that others won before an entry of ours."}),
		commit:     histogram("cardinal_commit_duration_seconds", "Time from the first attempt of an entry to its outcome."),
		version:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "cardinal_committed_version", Help: "Last version that this process committed."}),
		appended:   counter("cardinal_append_batches_total", "Batches by outcome.", "outcome"),
		samples:    prometheus.NewCounter(prometheus.CounterOpts{Name: "cardinal_append_samples_total", Help: "Samples acknowledged."}),
		appendTime: histogram("cardinal_append_duration_seconds", "Time until a batch was durable."),
		flushes:    counter("cardinal_flushes_total", "Flushes by outcome.", "outcome"),
		flushRows:  prometheus.NewCounter(prometheus.CounterOpts{Name: "cardinal_flush_rows_total", Help: "Rows committed by flushes."}),
		flush:      histogram("cardinal_flush_duration_seconds", "Time of a flush, encoding and uploads included."),
	}
	m.Registry.MustRegister(
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), collectors.NewBuildInfoCollector(),
		m.requests, m.bytes, m.commits, m.conflicts, m.commit, m.version, m.appended, m.samples, m.appendTime, m.flushes, m.flushRows, m.flush,
	)
	return m
}

// Observe subscribes to the events of a table that is about to be opened.
func (m *Metrics) Observe(o *cardinalsin.Options) {
	o.OnCall = func(e meter.Event) {
		m.requests.WithLabelValues(string(e.Op), meter.Outcome(e.Err)).Inc()
		m.bytes.WithLabelValues(string(e.Op)).Add(float64(e.Bytes))
	}
	o.Log.Events.CommitEnd = func(e txlog.CommitEvent) {
		m.commits.WithLabelValues(e.Operation, outcome(e.Err)).Inc()
		m.conflicts.Add(float64(e.Conflicts))
		m.commit.Observe(e.Duration.Seconds())
		if e.Err == nil {
			m.version.Set(float64(e.Version))
		}
	}
	o.Writer.Events.AppendEnd = func(e writer.AppendEvent) {
		m.appended.WithLabelValues(outcome(e.Err)).Inc()
		m.appendTime.Observe(e.Duration.Seconds())
		if e.Err == nil {
			m.samples.Add(float64(e.Samples))
		}
	}
	o.Writer.Events.FlushEnd = func(e writer.FlushEvent) {
		m.flushes.WithLabelValues(outcome(e.Err)).Inc()
		m.flush.Observe(e.Duration.Seconds())
		if e.Err == nil {
			m.flushRows.Add(float64(e.Rows))
		}
	}
}

func outcome(err error) string {
	if err != nil {
		return "error"
	}
	return "ok"
}
