package main

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"cardinalsin/internal/interop/process"
)

// messages are the two versions of remote write, by the agent that sends them.
var messages = []struct{ agent, message string }{
	{"rw1", "prometheus.WriteRequest"},
	{"rw2", "io.prometheus.write.v2.Request"},
}

const agentConfig = `
global: {scrape_interval: 500ms, scrape_native_histograms: true, external_labels: {agent: %[1]s}}
scrape_configs:
- job_name: target
  metrics_path: /%[1]s
  static_configs: [{targets: ['%[2]s']}]
remote_write:
- url: http://%[3]s/api/v1/write
  protobuf_message: %[4]s
  send_exemplars: true
  send_native_histograms: true
  metadata_config: {send_interval: 1s}
`

// agents are Prometheus processes in agent mode, which scrape a page of ours
// that knows how often it was read.
type agents struct {
	processes []*process.Process
	pages     map[string]*page
	listener  *http.Server
}

func startAgents(prometheus, dir, cardinal string) (_ *agents, err error) {
	a := &agents{pages: map[string]*page{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.stop())
		}
	}()
	mux := http.NewServeMux()
	for _, m := range messages {
		a.pages[m.agent] = newPage(m.agent)
		mux.Handle("/"+m.agent, a.pages[m.agent])
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	a.listener = &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	go func() { _ = a.listener.Serve(l) }() // ends with Close
	for _, m := range messages {
		address, err := process.FreeAddress()
		if err != nil {
			return nil, err
		}
		conf := filepath.Join(dir, m.agent+".yml")
		if err := os.WriteFile(conf, fmt.Appendf(nil, agentConfig, m.agent, l.Addr(), cardinal, m.message), 0o600); err != nil {
			return nil, err
		}
		p, err := process.Start(prometheus, "--agent", "--config.file", conf, "--storage.agent.path", filepath.Join(dir, m.agent),
			"--web.listen-address", address, "--enable-feature", "metadata-wal-records", "--log.level", "error")
		if err != nil {
			return nil, err
		}
		a.processes = append(a.processes, p)
	}
	return a, nil
}

// finish lets the page vanish, and tells what the agents have read of it.
func (a *agents) finish() (all []sent, err error) {
	for _, m := range messages {
		n := a.pages[m.agent].vanish()
		if n == 0 {
			return nil, fmt.Errorf("agent %s has scraped nothing", m.agent)
		}
		// Each series ends in one stale marker.
		all = append(all, sent{"agent-" + m.agent, map[string]figure{
			"it_requests_total@" + m.agent:  {instances * (n + 1), ptr(instances * float64(n) * float64(n+1) / 2)},
			"it_level@" + m.agent:           {instances * (n + 1), ptr(instances * float64(n) / 8)},
			"it_latency_seconds@" + m.agent: {n + 1, nil},
		}})
	}
	return all, nil
}

func ptr(f float64) *float64 { return &f }

// checkExemplarsAndMetadata reads the tables beside the samples', which nobody
// has open.
func (a *agents) checkExemplarsAndMetadata(cardinal string, store []string) error {
	exemplars, err := query(cardinal, store, "metrics_exemplars", `SELECT agent, count(*) FROM this_table WHERE metric_name = 'it_requests_total' GROUP BY ALL`)
	if err != nil {
		return err
	}
	help, err := query(cardinal, store, "metrics_metadata", `SELECT type || ' ' || help, count(*) FROM this_table WHERE metric_name = 'it_requests_total' GROUP BY ALL`)
	if err != nil {
		return err
	}
	for _, m := range messages {
		// An agent keeps one exemplar a scrape.
		n := a.pages[m.agent].scrapes
		fmt.Printf("%-16s %-36s %24d %24d\n", "agent-"+m.agent, "exemplars", n, exemplars[m.agent])
		if exemplars[m.agent] != n {
			return fmt.Errorf("%d exemplars of agent %s are stored, and %d were scraped", exemplars[m.agent], m.agent, n)
		}
		want := "counter " + helpOf(m.agent)
		fmt.Printf("%-16s %-36s %24d %24d\n", "agent-"+m.agent, "metadata", 1, help[want])
		if help[want] != 1 {
			return fmt.Errorf("metadata of agent %s: %v", m.agent, help)
		}
	}
	return nil
}

// query runs SQL whose rows are a name and a number.
func query(cardinal string, store []string, table, sql string) (map[string]int, error) {
	cmd := exec.Command(cardinal, append(append([]string{"sql", "--table", table, "--format", "csv"}, store...), sql)...)
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("sql on %s: %w\n%s", table, err, complaint.String())
	}
	rows, err := csv.NewReader(bytes.NewReader(out)).ReadAll()
	if err != nil {
		return nil, err
	}
	counts := map[string]int{}
	for _, r := range rows[1:] {
		if counts[r[0]], err = strconv.Atoi(r[1]); err != nil {
			return nil, err
		}
	}
	return counts, nil
}

func (a *agents) stop() error {
	var err error
	for _, p := range a.processes {
		err = errors.Join(err, p.Stop())
	}
	if a.listener != nil {
		err = errors.Join(err, a.listener.Close())
	}
	return err
}

// page is a metrics page that changes with every scrape.
type page struct {
	handler http.Handler
	change  func(scrape int)

	mu      sync.Mutex // guards what follows, and holds scrapes apart
	scrapes int
	gone    bool
}

const instances = 10

func helpOf(agent string) string { return "requests as " + agent + " sees them" }

func newPage(agent string) *page {
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "it_requests_total", Help: helpOf(agent)}, []string{"number"})
	level := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "it_level", Help: "a level"}, []string{"number"})
	latency := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "it_latency_seconds", Help: "a native histogram", NativeHistogramBucketFactor: 1.1})
	registry := prometheus.NewRegistry()
	registry.MustRegister(requests, level, latency)
	return &page{
		handler: promhttp.HandlerFor(registry, promhttp.HandlerOpts{EnableOpenMetrics: true}),
		change: func(scrape int) {
			for i := range instances {
				number := strconv.Itoa(i)
				c := requests.WithLabelValues(number)
				if i == 0 {
					c.(prometheus.ExemplarAdder).AddWithExemplar(1, prometheus.Labels{"trace_id": fmt.Sprintf("%s%08d", agent, scrape)})
				} else {
					c.Add(1)
				}
				level.WithLabelValues(number).Set(0.125)
			}
			latency.Observe(float64(scrape))
		},
	}
}

func (p *page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone {
		http.NotFound(w, r)
		return
	}
	p.scrapes++
	p.change(p.scrapes)
	p.handler.ServeHTTP(w, r)
}

// vanish ends the page and returns how often it was read.
func (p *page) vanish() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gone = true
	return p.scrapes
}
