// Command compliance runs upstream's remote-write receiver compliance suite
// (1.0 and 2.0) against a real `cardinal server`, and then reads back that
// everything which the server accepted is stored, once from the running server
// and once after a restart. It exits 1 on any difference.
//
// It stands outside the layers. A proxy between the suite and the server notes
// what was acknowledged, decoded by upstream's types and none of ours.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"cardinalsin/internal/interop/process"
)

// The suite's module declares another path than the one it is served under, so
// it cannot be required; it is run from a copy.
const suite = "github.com/prometheus/compliance/remotewrite/receiver@v0.0.0-20260806071727-67b8327a2e93"

func main() {
	cardinal := flag.String("cardinal", "bin/cardinal", "the cardinal program")
	goTool := flag.String("go", "go", "the go program")
	verbose := flag.Bool("v", false, "show what the suite says of every test")
	flag.Parse()
	if err := run(context.Background(), *cardinal, *goTool, *verbose); err != nil {
		fmt.Fprintln(os.Stderr, "test-write-compliance:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, cardinal, goTool string, verbose bool) (err error) {
	dir, err := os.MkdirTemp("", "write-compliance-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	tests, err := copySuite(ctx, goTool, filepath.Join(dir, "suite"))
	if err != nil {
		return fmt.Errorf("get the suite: %w", err)
	}

	start := func() (*process.Process, string, error) {
		p, addr, _, err := process.Cardinal(cardinal, "--store", "file://"+filepath.Join(dir, "store"), "--wal-dir", filepath.Join(dir, "wal"), "--cache-dir", filepath.Join(dir, "cache"))
		return p, addr, err
	}
	server, addr, err := start()
	if err != nil {
		return err
	}
	stop := func() error {
		s := server
		server = nil
		return s.Stop()
	}
	defer func() {
		if server != nil {
			err = errors.Join(err, stop())
		}
	}()

	sent := newLedger()
	proxy := httptest.NewServer(sent.watch(httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: addr})))
	defer proxy.Close()
	if err := runSuite(ctx, goTool, tests, proxy.URL+"/api/v1/write", verbose); err != nil {
		return err
	}
	if err := sent.err(); err != nil {
		return fmt.Errorf("note what was accepted: %w", err)
	}
	fmt.Printf("accepted: %d requests of 1.0, %d of 2.0; %d refused; %d samples, %d with a start, %d histograms, %d exemplars, metadata of %d metrics\n",
		sent.accepted[0], sent.accepted[1], sent.refused, len(sent.floats), len(sent.starts), len(sent.histograms), len(sent.exemplars), len(sent.metadata))
	if sent.accepted[0] == 0 || sent.accepted[1] == 0 || sent.refused == 0 || len(sent.floats) == 0 || len(sent.starts) == 0 || len(sent.histograms) == 0 || len(sent.exemplars) == 0 || len(sent.metadata) == 0 {
		return errors.New("the suite did not send all kinds")
	}

	for _, when := range []string{"running", "after a restart"} {
		if err := sent.compare(ctx, "http://"+addr); err != nil {
			return fmt.Errorf("read back, %s: %w", when, err)
		}
		fmt.Printf("read back, %s: all there, bit for bit, and nothing else\n", when)
		if when != "running" {
			break
		}
		if err := stop(); err != nil {
			return err
		}
		if server, addr, err = start(); err != nil {
			return err
		}
	}
	return nil
}

// copySuite copies the suite's module from the module cache, which is
// read-only.
func copySuite(ctx context.Context, goTool, dir string) (string, error) {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, goTool, "mod", "download", "-json", suite)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go mod download: %w: %s%s", err, stderr.Bytes(), out)
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(out, &module); err != nil {
		return "", fmt.Errorf("go mod download: %w", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	files, err := os.ReadDir(module.Dir)
	if err != nil {
		return "", err
	}
	for _, f := range files {
		if f.IsDir() {
			continue
		}
		data, err := os.ReadFile(filepath.Join(module.Dir, f.Name()))
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(dir, f.Name()), data, 0o600); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// runSuite runs the tests and prints how many there were; one that fails or is
// skipped is an error.
func runSuite(ctx context.Context, goTool, dir, receiver string, verbose bool) error {
	config := filepath.Join(dir, "cardinal.yml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "remote_write:\n  - name: cardinal\n    url: %s\n", receiver), 0o600); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, goTool, "test", "-count=1", "-json", ".")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PROMETHEUS_RW2_COMPLIANCE_CONFIG_FILE="+config, "GOFLAGS=-mod=mod", "GOWORK=off")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return fmt.Errorf("run the suite: %w", err)
	}
	results, said := map[string]int{}, map[string]string{}
	for lines := json.NewDecoder(bytes.NewReader(out)); ; {
		var e struct{ Action, Test, Output string }
		if derr := lines.Decode(&e); errors.Is(derr, io.EOF) {
			break
		} else if derr != nil {
			return fmt.Errorf("run the suite: %w\n%s", derr, out)
		}
		switch e.Action {
		case "output":
			said[e.Test] += e.Output
		case "pass", "fail", "skip":
			if e.Test != "" {
				results[e.Action]++
			}
			if e.Action != "pass" || verbose {
				fmt.Printf("%s %s\n%s", strings.ToUpper(e.Action), e.Test, said[e.Test])
			}
		}
	}
	fmt.Printf("suite: %d passed, %d failed, %d skipped\n", results["pass"], results["fail"], results["skip"])
	if err != nil || results["pass"] == 0 || results["fail"]+results["skip"] > 0 {
		return errors.Join(errors.New("the suite did not pass"), err)
	}
	return nil
}

// watch passes requests on and notes those of remote write that are
// acknowledged.
func (l *ledger) watch(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		answer := &status{ResponseWriter: w}
		next.ServeHTTP(answer, r)
		l.note(answer.code, r.Header.Get("Content-Type"), body)
	})
}

// status remembers the code of an answer.
type status struct {
	http.ResponseWriter
	code int
}

func (s *status) WriteHeader(code int) {
	s.code = code
	s.ResponseWriter.WriteHeader(code)
}
