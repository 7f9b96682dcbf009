package main

import (
	"errors"
	"fmt"
	"sort"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/procfs"
	"github.com/prometheus/procfs/blockdevice"
	"github.com/prometheus/prometheus/prompb"
)

// hostMetrics gathers this machine's own metrics, under the names that
// node_exporter gives them, and those of this process.
type hostMetrics struct {
	registry *prometheus.Registry
}

func newHostMetrics() (*hostMetrics, error) {
	fs, err := procfs.NewDefaultFS()
	if err != nil {
		return nil, fmt.Errorf("open /proc: %w", err)
	}
	disks, err := blockdevice.NewDefaultFS()
	if err != nil {
		return nil, fmt.Errorf("open /sys: %w", err)
	}
	h := &hostMetrics{registry: prometheus.NewRegistry()}
	h.registry.MustRegister(
		collectors.NewGoCollector(collectors.WithGoCollectorRuntimeMetrics(collectors.MetricsAll)),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		&hostCollector{fs: fs, disks: disks},
	)
	return h, nil
}

// hostCollector reads /proc at each gathering. What a kernel does not offer
// is left out; a machine that offers nothing is an error.
type hostCollector struct {
	fs    procfs.FS
	disks blockdevice.FS
}

// Describe sends nothing: which metrics there are depends on the machine.
func (c *hostCollector) Describe(chan<- *prometheus.Desc) {}

func (c *hostCollector) Collect(ch chan<- prometheus.Metric) {
	send := func(kind prometheus.ValueType, name, help string, v float64, labels ...string) {
		var names, values []string
		for i := 0; i < len(labels); i += 2 {
			names, values = append(names, labels[i]), append(values, labels[i+1])
		}
		ch <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, names, nil), kind, v, values...)
	}
	gauge := func(name, help string, v float64, labels ...string) {
		send(prometheus.GaugeValue, name, help, v, labels...)
	}
	counter := func(name, help string, v float64, labels ...string) {
		send(prometheus.CounterValue, name, help, v, labels...)
	}
	var errs []error
	if s, err := c.fs.Stat(); err != nil {
		errs = append(errs, err)
	} else {
		for i, cpu := range s.CPU {
			for mode, v := range map[string]float64{
				"user": cpu.User, "nice": cpu.Nice, "system": cpu.System, "idle": cpu.Idle,
				"iowait": cpu.Iowait, "irq": cpu.IRQ, "softirq": cpu.SoftIRQ, "steal": cpu.Steal,
			} {
				counter("node_cpu_seconds_total", "Seconds the CPUs spent in each mode.", v, "cpu", fmt.Sprint(i), "mode", mode)
			}
		}
		counter("node_context_switches_total", "Context switches.", float64(s.ContextSwitches))
		counter("node_forks_total", "Forks.", float64(s.ProcessCreated))
		gauge("node_procs_running", "Runnable processes.", float64(s.ProcessesRunning))
		gauge("node_boot_time_seconds", "Boot time.", float64(s.BootTime))
	}
	if m, err := c.fs.Meminfo(); err != nil {
		errs = append(errs, err)
	} else {
		for name, v := range map[string]*uint64{
			"MemTotal": m.MemTotalBytes, "MemFree": m.MemFreeBytes, "MemAvailable": m.MemAvailableBytes,
			"Buffers": m.BuffersBytes, "Cached": m.CachedBytes, "Active": m.ActiveBytes, "Inactive": m.InactiveBytes,
			"Dirty": m.DirtyBytes, "Slab": m.SlabBytes, "SwapTotal": m.SwapTotalBytes, "SwapFree": m.SwapFreeBytes,
		} {
			if v != nil {
				gauge("node_memory_"+name+"_bytes", "Memory information field "+name+".", float64(*v))
			}
		}
	}
	if l, err := c.fs.LoadAvg(); err != nil {
		errs = append(errs, err)
	} else {
		gauge("node_load1", "1m load average.", l.Load1)
		gauge("node_load5", "5m load average.", l.Load5)
		gauge("node_load15", "15m load average.", l.Load15)
	}
	if devs, err := c.fs.NetDev(); err != nil {
		errs = append(errs, err)
	} else {
		for _, d := range devs {
			counter("node_network_receive_bytes_total", "Bytes received.", float64(d.RxBytes), "device", d.Name)
			counter("node_network_transmit_bytes_total", "Bytes sent.", float64(d.TxBytes), "device", d.Name)
			counter("node_network_receive_packets_total", "Packets received.", float64(d.RxPackets), "device", d.Name)
			counter("node_network_transmit_packets_total", "Packets sent.", float64(d.TxPackets), "device", d.Name)
		}
	}
	if stats, err := c.disks.ProcDiskstats(); err != nil {
		errs = append(errs, err)
	} else {
		for _, d := range stats {
			counter("node_disk_reads_completed_total", "Reads completed.", float64(d.ReadIOs), "device", d.DeviceName)
			counter("node_disk_writes_completed_total", "Writes completed.", float64(d.WriteIOs), "device", d.DeviceName)
		}
	}
	if len(errs) == 5 {
		ch <- prometheus.NewInvalidMetric(prometheus.NewInvalidDesc(errors.Join(errs...)), errors.Join(errs...))
	}
}

// gather reads everything once and stamps it with one time.
func (h *hostMetrics) gather(at time.Time, job string) ([]prompb.TimeSeries, error) {
	families, err := h.registry.Gather()
	if err != nil {
		return nil, fmt.Errorf("gather metrics: %w", err)
	}
	var out []prompb.TimeSeries
	emit := func(name string, v float64, m *dto.Metric, extra ...string) {
		ls := []prompb.Label{{Name: "__name__", Value: name}, {Name: "job", Value: job}}
		for _, p := range m.GetLabel() {
			ls = append(ls, prompb.Label{Name: p.GetName(), Value: p.GetValue()})
		}
		for i := 0; i < len(extra); i += 2 {
			ls = append(ls, prompb.Label{Name: extra[i], Value: extra[i+1]})
		}
		sort.Slice(ls, func(i, j int) bool { return ls[i].Name < ls[j].Name })
		out = append(out, prompb.TimeSeries{Labels: ls, Samples: []prompb.Sample{{Timestamp: at.UnixMilli(), Value: v}}})
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			switch f.GetType() {
			case dto.MetricType_COUNTER:
				emit(f.GetName(), m.GetCounter().GetValue(), m)
			case dto.MetricType_GAUGE:
				emit(f.GetName(), m.GetGauge().GetValue(), m)
			case dto.MetricType_UNTYPED:
				emit(f.GetName(), m.GetUntyped().GetValue(), m)
			case dto.MetricType_SUMMARY:
				s := m.GetSummary()
				for _, q := range s.GetQuantile() {
					emit(f.GetName(), q.GetValue(), m, "quantile", fmt.Sprint(q.GetQuantile()))
				}
				emit(f.GetName()+"_sum", s.GetSampleSum(), m)
				emit(f.GetName()+"_count", float64(s.GetSampleCount()), m)
			case dto.MetricType_HISTOGRAM, dto.MetricType_GAUGE_HISTOGRAM:
				hist := m.GetHistogram()
				inf := false
				for _, b := range hist.GetBucket() {
					inf = inf || fmt.Sprint(b.GetUpperBound()) == "+Inf"
					emit(f.GetName()+"_bucket", float64(b.GetCumulativeCount()), m, "le", fmt.Sprint(b.GetUpperBound()))
				}
				if !inf {
					emit(f.GetName()+"_bucket", float64(hist.GetSampleCount()), m, "le", "+Inf")
				}
				emit(f.GetName()+"_sum", hist.GetSampleSum(), m)
				emit(f.GetName()+"_count", float64(hist.GetSampleCount()), m)
			}
		}
	}
	return out, nil
}
