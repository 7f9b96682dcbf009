package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"cardinalsin/internal/bench/harness"
)

// server is a process that takes remote write: ours or a peer.
type server struct {
	*harness.Server
	path string // of remote write
	// accepted sums the counter by which it tells how many samples it took.
	accepted string
}

func (s *server) url() string { return "http://" + s.Address + s.path }

// ours starts cardinal-writer on a store and a WAL below dir.
func (b *bench) ours(dir string, more ...string) (*server, error) {
	args := append([]string{"--store", "file://" + filepath.Join(dir, "store"), "--wal-dir", filepath.Join(dir, "wal"), "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--log-level", "warn"}, more...)
	s := &server{
		Server: &harness.Server{Name: "ours", Cmd: exec.Command(b.cardinal, args...)},
		path:   "/api/v1/write", accepted: "cardinal_append_samples_total",
	}
	s.Cmd.Stderr = os.Stderr
	out, err := s.Cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.Cmd.Start(); err != nil {
		return nil, err
	}
	lines := bufio.NewReader(out)
	line, err := lines.ReadString('\n')
	if err != nil {
		return nil, errors.Join(fmt.Errorf("wait for our server: %w", err), s.Stop())
	}
	for _, f := range strings.Fields(line) {
		if a, ok := strings.CutPrefix(f, "http="); ok {
			s.Address = a
		}
	}
	go func() { _, _ = io.Copy(io.Discard, lines) }() // so that it can go on printing
	return s, nil
}

// prometheus starts a Prometheus server that only receives. It keeps a WAL,
// which it does not sync.
func (b *bench) startPrometheus(ctx context.Context, dir string) (*server, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(config, []byte("global: {}\n"), 0o644); err != nil {
		return nil, err
	}
	s, err := harness.StartServer(ctx, "prometheus", "/-/ready", b.prometheus,
		"--web.enable-remote-write-receiver", "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--log.level=error", "--web.listen-address=")
	return &server{s, "/api/v1/write", "prometheus_tsdb_head_samples_appended_total"}, err
}

// victoria starts a VictoriaMetrics server, which keeps no WAL.
func (b *bench) startVictoria(ctx context.Context, dir string) (*server, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	s, err := harness.StartServer(ctx, "victoriametrics", "/health", b.victoria,
		"-storageDataPath="+filepath.Join(dir, "data"), "-loggerLevel=ERROR", "-httpListenAddr=")
	return &server{s, "/api/v1/write", "vm_rows_inserted_total"}, err
}

// counters sums each metric of the server over its labels.
func (s *server) counters(ctx context.Context) (map[string]float64, error) {
	text, err := harness.Get(ctx, "http://"+s.Address+"/metrics")
	if err != nil {
		return nil, err
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("metrics of %s: %w", s.Name, err)
	}
	sums := map[string]float64{}
	for name, f := range families {
		for _, m := range f.Metric {
			sums[name] += m.GetCounter().GetValue() + m.GetGauge().GetValue() + m.GetUntyped().GetValue()
		}
	}
	return sums, nil
}
