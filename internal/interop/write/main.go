// Command write runs other people's clients against a real `cardinal server`,
// every write protocol at once, and holds what each says it has sent against
// what is stored:
//
//	Prometheus in agent mode    remote write 1.0 and 2.0
//	OpenTelemetry SDK           OTLP over HTTP and gRPC
//	OpenTelemetry Collector     the SDK's points, passed on over HTTP and gRPC
//	InfluxDB clients 1 and 2    line protocol
//	pyarrow                     Flight DoPut
//
// It exits 1 unless all counts are equal.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"cardinalsin/internal/interop/process"
)

type programs struct {
	cardinal, prometheus, otelcol, python, clients string
}

func main() {
	var p programs
	flag.StringVar(&p.cardinal, "cardinal", "bin/cardinal", "the cardinal program")
	flag.StringVar(&p.prometheus, "prometheus", ".tools/bin/prometheus", "the prometheus program")
	flag.StringVar(&p.otelcol, "otelcol", ".tools/bin/otelcol", "the OpenTelemetry Collector")
	flag.StringVar(&p.python, "python", ".tools/venv-write/bin/python", "python with the clients' libraries")
	flag.StringVar(&p.clients, "clients", "internal/interop/clients.py", "the script that uses them")
	duration := flag.Duration("duration", 20*time.Second, "how long the Prometheus agents scrape")
	flag.Parse()
	if err := run(context.Background(), p, *duration); err != nil {
		fmt.Fprintln(os.Stderr, "interop-write:", err)
		os.Exit(1)
	}
}

// figure is a count of samples and the sum of their values, NaN left out; the
// sum is null where only the count is known.
type figure struct {
	count int
	sum   *float64
}

func (f *figure) UnmarshalJSON(data []byte) error {
	return json.Unmarshal(data, &[]any{&f.count, &f.sum})
}

func (f figure) String() string {
	if f.sum == nil {
		return fmt.Sprintf("%d", f.count)
	}
	return fmt.Sprintf("%d (sum %g)", f.count, *f.sum)
}

func (f figure) agrees(stored figure) bool {
	return f.count == stored.count && (f.sum == nil || stored.sum != nil && *f.sum == *stored.sum)
}

// sent is what one client says it has sent, by metric.
type sent struct {
	client  string
	figures map[string]figure
}

func run(ctx context.Context, p programs, duration time.Duration) (err error) {
	dir, err := os.MkdirTemp("", "interop-write-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	store := []string{"--store", "file://" + filepath.Join(dir, "store")}
	ours, http, grpc, err := process.Cardinal(p.cardinal, append(store, "--wal-dir", filepath.Join(dir, "wal"), "--grpc", "127.0.0.1:0", "--flush-age", "1s")...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ours.Stop()) }()

	agents, err := startAgents(p.prometheus, dir, http)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, agents.stop()) }()
	begin := time.Now()
	col, err := startCollector(p.otelcol, dir, http, grpc)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, col.process.Stop()) }()

	var all []sent
	for _, c := range []struct{ name, address string }{
		{"otel-http", http},
		{"otel-grpc", grpc},
		{"collector-http", col.toHTTP},
		{"collector-grpc", col.toGRPC},
		{"influx1", http},
		{"influx2", http},
		{"flight", grpc},
	} {
		s, err := runClient(ctx, p, c.name, c.address)
		if err != nil {
			return err
		}
		all = append(all, s)
	}
	time.Sleep(time.Until(begin.Add(duration)))
	fromAgents, err := agents.finish()
	if err != nil {
		return err
	}
	all = append(all, fromAgents...)

	// The queues of the agents and of the collector drain by themselves; wait
	// for that, but not for ever. What comes twice is seen all the same.
	var table map[string]figure
	for deadline := time.Now().Add(30 * time.Second); ; {
		if table, err = stored(ctx, http); err != nil {
			return err
		}
		if report(all, table, nil) == nil || time.Now().After(deadline) {
			break
		}
		time.Sleep(time.Second)
	}
	if err := report(all, table, os.Stdout); err != nil {
		return err
	}
	// The clients first: they would wait for a server that is gone.
	if err := errors.Join(agents.stop(), col.process.Stop(), ours.Stop()); err != nil {
		return err
	}
	if err := agents.checkExemplarsAndMetadata(p.cardinal, store); err != nil {
		return err
	}
	for _, name := range []string{"metrics", "metrics_exemplars", "metrics_metadata"} {
		if out, err := exec.Command(p.cardinal, append([]string{"check", "--deep", "--table", name}, store...)...).CombinedOutput(); err != nil {
			return fmt.Errorf("check %s: %w\n%s", name, err, out)
		}
	}
	fmt.Println("equal for every client; check --deep: sound")
	return nil
}

// runClient runs one client to its end.
func runClient(ctx context.Context, p programs, name, address string) (sent, error) {
	cmd := exec.CommandContext(ctx, p.python, p.clients, name, address)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return sent{}, fmt.Errorf("%s: %w", name, err)
	}
	s := sent{client: name}
	if err := json.Unmarshal(out, &s.figures); err != nil {
		return sent{}, fmt.Errorf("%s: %w", name, err)
	}
	if len(s.figures) == 0 {
		return sent{}, fmt.Errorf("%s has sent nothing", name)
	}
	return s, nil
}

// stored asks for all metrics at once. The agents' have their agent's name
// behind their own.
func stored(ctx context.Context, http string) (map[string]figure, error) {
	const sql = `SELECT metric_name || coalesce('@' || agent, '') AS name, count(*) AS n, sum(value) FILTER (NOT isnan(value)) AS total FROM metrics GROUP BY ALL`
	var rows []struct {
		Name  string
		N     int
		Total *float64
	}
	if err := process.PostJSON(ctx, "http://"+http+"/api/v1/sql", map[string]string{"query": sql}, &rows); err != nil {
		return nil, err
	}
	table := map[string]figure{}
	for _, r := range rows {
		table[r.Name] = figure{r.N, r.Total}
	}
	return table, nil
}

// report holds both sides against each other, and prints them if it may.
func report(all []sent, table map[string]figure, w *os.File) error {
	var b bytes.Buffer
	var differ []string
	fmt.Fprintf(&b, "%-16s %-36s %24s %24s\n", "client", "metric", "sent", "stored")
	for _, s := range all {
		for _, metric := range slices.Sorted(maps.Keys(s.figures)) {
			want, got := s.figures[metric], table[metric]
			note := ""
			if !want.agrees(got) {
				note = "  DIFFERS"
				differ = append(differ, metric)
			}
			if want.sum == nil {
				got.sum = nil
			}
			fmt.Fprintf(&b, "%-16s %-36s %24s %24s%s\n", s.client, metric, want, got, note)
		}
	}
	if w != nil {
		if _, err := w.Write(b.Bytes()); err != nil {
			return err
		}
	}
	if len(differ) > 0 {
		return fmt.Errorf("what was sent is not what is stored: %s", strings.Join(differ, ", "))
	}
	return nil
}
