package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// server is a process that takes remote write: ours or a peer.
type server struct {
	name    string
	cmd     *exec.Cmd
	address string // host:port
	path    string // of remote write
	// accepted sums the counter by which it tells how many samples it took.
	accepted string
}

func (s *server) url() string { return "http://" + s.address + s.path }

// ours starts cardinal-writer on a store and a WAL below dir.
func (b *bench) ours(dir string, more ...string) (*server, error) {
	args := append([]string{"--store", "file://" + filepath.Join(dir, "store"), "--wal-dir", filepath.Join(dir, "wal"), "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--log-level", "warn"}, more...)
	s := &server{name: "ours", path: "/api/v1/write", accepted: "cardinal_append_samples_total", cmd: exec.Command(b.cardinal, args...)}
	s.cmd.Stderr = os.Stderr
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	lines := bufio.NewReader(out)
	line, err := lines.ReadString('\n')
	if err != nil {
		return nil, errors.Join(fmt.Errorf("wait for our server: %w", err), s.stop())
	}
	for _, f := range strings.Fields(line) {
		if a, ok := strings.CutPrefix(f, "http="); ok {
			s.address = a
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
	return startPeer(ctx, &server{name: "prometheus", path: "/api/v1/write", accepted: "prometheus_tsdb_head_samples_appended_total"}, "/-/ready", b.prometheus,
		"--web.enable-remote-write-receiver", "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--log.level=error", "--web.listen-address=")
}

// victoria starts a VictoriaMetrics server, which keeps no WAL.
func (b *bench) startVictoria(ctx context.Context, dir string) (*server, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	return startPeer(ctx, &server{name: "victoriametrics", path: "/api/v1/write", accepted: "vm_rows_inserted_total"}, "/health", b.victoria,
		"-storageDataPath="+filepath.Join(dir, "data"), "-loggerLevel=ERROR", "-httpListenAddr=")
}

// startPeer runs a program, whose last argument lacks the address, until the
// page ready answers.
func startPeer(ctx context.Context, s *server, ready, program string, args ...string) (*server, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s.address = l.Addr().String()
	if err := l.Close(); err != nil {
		return nil, err
	}
	args[len(args)-1] += s.address
	s.cmd = exec.Command(program, args...)
	s.cmd.Stderr = os.Stderr
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(30 * time.Second); ; {
		text, err := get(ctx, "http://"+s.address+ready)
		if err == nil && text != "" {
			return s, nil
		}
		if time.Now().After(deadline) {
			return nil, errors.Join(fmt.Errorf("%s does not become ready: %w", s.name, err), s.stop())
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func get(ctx context.Context, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	text, err := io.ReadAll(resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%w: %d %s", errRefused, resp.StatusCode, text)
	}
	return string(text), nil
}

// stop lets the server end in good order, which for ours means to flush.
func (s *server) stop() error {
	if s.cmd.ProcessState != nil {
		return nil
	}
	err := s.cmd.Process.Signal(syscall.SIGTERM)
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	killer := time.AfterFunc(2*time.Minute, func() { _ = s.cmd.Process.Kill() })
	defer killer.Stop()
	if err = errors.Join(err, s.cmd.Wait()); err != nil {
		return fmt.Errorf("stop %s: %w", s.name, err)
	}
	return nil
}

// counters sums each metric of the server over its labels.
func (s *server) counters(ctx context.Context) (map[string]float64, error) {
	text, err := get(ctx, "http://"+s.address+"/metrics")
	if err != nil {
		return nil, err
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("metrics of %s: %w", s.name, err)
	}
	sums := map[string]float64{}
	for name, f := range families {
		for _, m := range f.Metric {
			sums[name] += m.GetCounter().GetValue() + m.GetGauge().GetValue() + m.GetUntyped().GetValue()
		}
	}
	return sums, nil
}

// usage is what a process has used so far.
type usage struct {
	cpu            time.Duration
	resident, peak int64 // bytes
}

var errProc = errors.New("unexpected text in /proc")

// usage reads the process' figures from /proc.
func (s *server) usage() (usage, error) {
	dir := filepath.Join("/proc", strconv.Itoa(s.cmd.Process.Pid))
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return usage{}, err
	}
	// Behind the name, which may hold anything: state is field 3, utime 14
	// and stime 15, in hundredths of a second.
	f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(f) < 13 {
		return usage{}, fmt.Errorf("%w: %q", errProc, stat)
	}
	var u usage
	for _, text := range f[11:13] {
		ticks, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return usage{}, fmt.Errorf("%w: %w", errProc, err)
		}
		u.cpu += time.Duration(ticks) * 10 * time.Millisecond
	}
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return usage{}, err
	}
	for line := range strings.Lines(string(status)) {
		name, rest, _ := strings.Cut(line, ":")
		if name != "VmHWM" && name != "VmRSS" {
			continue
		}
		var kb int64
		if _, err := fmt.Sscanf(rest, "%d kB", &kb); err != nil {
			return usage{}, fmt.Errorf("%w: %q: %w", errProc, line, err)
		}
		if name == "VmHWM" {
			u.peak = kb << 10
		} else {
			u.resident = kb << 10
		}
	}
	return u, nil
}
