// Command read lets other people's clients read what a real Prometheus has
// scraped and sent to a real `cardinal server`, and holds what each gets
// against what the others get:
//
//	Grafana's data source   its calls, as grafana.txt has them, to both servers
//	promtool query          instant, range, series and labels, of both servers
//	ADBC                    Flight SQL: rows, prepared statements, metadata
//	DuckDB's extension      the files of the same version
//
// The comparisons are readers.py's. It exits 1 unless all agree.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"cardinalsin/internal/interop/process"
)

type programs struct {
	cardinal, prometheus, promtool, python, readers string
}

func main() {
	var p programs
	flag.StringVar(&p.cardinal, "cardinal", "bin/cardinal", "the cardinal program")
	flag.StringVar(&p.prometheus, "prometheus", ".tools/bin/prometheus", "the prometheus program")
	flag.StringVar(&p.promtool, "promtool", ".tools/bin/promtool", "the promtool program")
	flag.StringVar(&p.python, "python", ".tools/venv-read/bin/python", "python with the clients' libraries")
	flag.StringVar(&p.readers, "readers", "internal/interop/read/readers.py", "the script that uses them")
	duration := flag.Duration("duration", 20*time.Second, "how long Prometheus scrapes")
	flag.Parse()
	if err := run(context.Background(), p, *duration); err != nil {
		fmt.Fprintln(os.Stderr, "interop-read:", err)
		os.Exit(1)
	}
}

const config = `
global: {scrape_interval: 500ms, scrape_native_histograms: true}
scrape_configs:
- job_name: shop
  static_configs: [{targets: ['%[1]s']}]
remote_write:
- url: http://%[2]s/api/v1/write
  protobuf_message: io.prometheus.write.v2.Request
  send_exemplars: true
  send_native_histograms: true
`

func run(ctx context.Context, p programs, duration time.Duration) (err error) {
	dir, err := os.MkdirTemp("", "interop-read-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	store := filepath.Join(dir, "store")
	ours, at, err := process.Server(p.cardinal, "--store", "file://"+store, "--wal-dir", filepath.Join(dir, "wal"), "--grpc", "127.0.0.1:0", "--flush-age", "1s", "--compact-every", "5s")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ours.Stop()) }()

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	shop := &http.Server{Handler: newShop()}
	served := make(chan error, 1)
	go func() { served <- shop.Serve(l) }()
	defer func() {
		err = errors.Join(err, shop.Close())
		if e := <-served; !errors.Is(e, http.ErrServerClosed) {
			err = errors.Join(err, e)
		}
	}()
	address, err := process.FreeAddress()
	if err != nil {
		return err
	}
	conf := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(conf, fmt.Appendf(nil, config, l.Addr(), at["http"]), 0o600); err != nil {
		return err
	}
	theirs, err := process.Start(p.prometheus, "--config.file", conf, "--storage.tsdb.path", filepath.Join(dir, "tsdb"),
		"--web.listen-address", address, "--enable-feature", "exemplar-storage,metadata-wal-records", "--log.level", "error")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, theirs.Stop()) }()
	if err := process.AwaitListening(ctx, address); err != nil {
		return err
	}
	begin := time.Now()
	time.Sleep(duration)
	end := time.Now()
	if err := drained(ctx, address, at["http"], end); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, p.python, p.readers,
		"--prometheus", "http://"+address, "--cardinal", "http://"+at["http"], "--flight-sql", "grpc://"+at["flight_sql"],
		"--table", filepath.Join(store, "default", "metrics"), "--promtool", p.promtool,
		"--start", seconds(begin), "--end", seconds(end))
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("readers: %w", err)
	}
	return nil
}

func seconds(t time.Time) string { return strconv.FormatInt(t.Unix(), 10) }

// drained waits until everything up to a moment has been sent and committed.
func drained(ctx context.Context, theirs, ours string, end time.Time) error {
	count := func(address string) (n int, err error) {
		q := url.Values{"query": {`{__name__=~".+"}[1h]`}, "time": {seconds(end)}}
		var answer struct {
			Data struct {
				Result []struct{ Values, Histograms []any }
			}
		}
		if err := process.GetJSON(ctx, "http://"+address+"/api/v1/query?"+q.Encode(), &answer); err != nil {
			return 0, err
		}
		for _, s := range answer.Data.Result {
			n += len(s.Values) + len(s.Histograms)
		}
		return n, nil
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(500 * time.Millisecond) {
		a, err := count(theirs)
		if err != nil {
			return err
		}
		b, err := count(ours)
		if err != nil {
			return err
		}
		if a == b && time.Since(end) > 8*time.Second { // the queue sends after 5 s at the latest, a flush comes 1 s later
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("prometheus holds %d samples and cardinal %d", a, b)
		}
	}
}
