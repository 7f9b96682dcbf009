// Command prometheus runs a real Prometheus that scrapes itself and sends
// everything it scrapes to a real `cardinal server` by remote write, for a
// minute, and then asks both how many samples they hold. It exits 1 unless
// the answers are equal, for the whole and for every metric.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"

	"cardinalsin/internal/interop/process"
)

func main() {
	cardinal := flag.String("cardinal", "bin/cardinal", "the cardinal program")
	prometheus := flag.String("prometheus", ".tools/bin/prometheus", "the prometheus program")
	duration := flag.Duration("duration", time.Minute, "how long Prometheus scrapes")
	flag.Parse()
	if err := run(context.Background(), *cardinal, *prometheus, *duration); err != nil {
		fmt.Fprintln(os.Stderr, "interop-prometheus:", err)
		os.Exit(1)
	}
}

const config = `
global: {scrape_interval: 1s}
scrape_configs:
- job_name: prometheus
  static_configs: [{targets: ['%[1]s']}]
- job_name: cardinal
  static_configs: [{targets: ['%[2]s']}]
remote_write:
- url: http://%[2]s/api/v1/write
`

func run(ctx context.Context, cardinal, prometheus string, duration time.Duration) (err error) {
	dir, err := os.MkdirTemp("", "interop-prometheus-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	ours, ourAddr, _, err := process.Cardinal(cardinal, "--store", "file://"+filepath.Join(dir, "store"), "--wal-dir", filepath.Join(dir, "wal"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ours.Stop()) }()
	promAddr, err := process.FreeAddress()
	if err != nil {
		return err
	}
	conf := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(conf, fmt.Appendf(nil, config, promAddr, ourAddr), 0o600); err != nil {
		return err
	}
	theirs, err := process.Start(prometheus, "--config.file", conf, "--storage.tsdb.path", filepath.Join(dir, "tsdb"), "--web.listen-address", promAddr, "--log.level", "error")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, theirs.Stop()) }()
	fmt.Printf("prometheus at %s sends to cardinal at %s for %v\n", promAddr, ourAddr, duration)
	time.Sleep(duration)

	// Count up to a moment that lies far enough back for the queue of the
	// sender to have drained; wait for it, but not for ever.
	at := time.Now()
	var a, b map[string]int
	for deadline := time.Now().Add(30 * time.Second); ; {
		if a, err = count(ctx, promAddr, at); err != nil {
			return fmt.Errorf("ask prometheus: %w", err)
		}
		if b, err = count(ctx, ourAddr, at); err != nil {
			return fmt.Errorf("ask cardinal: %w", err)
		}
		if equal(a, b) || time.Now().After(deadline) {
			break
		}
		time.Sleep(time.Second)
	}
	fmt.Printf("%-12s %10s %10s\n", "", "metrics", "samples")
	fmt.Printf("%-12s %10d %10d\n", "prometheus", len(a), total(a))
	fmt.Printf("%-12s %10d %10d\n", "cardinal", len(b), total(b))
	if !equal(a, b) {
		var names []string
		for n := range a {
			if a[n] != b[n] {
				names = append(names, fmt.Sprintf("%s %d/%d", n, a[n], b[n]))
			}
		}
		sort.Strings(names)
		return fmt.Errorf("counts differ: %s", strings.Join(names, ", "))
	}
	if total(a) == 0 {
		return fmt.Errorf("nothing was scraped")
	}
	fmt.Println("equal, for the whole and for every metric")
	return nil
}

// count asks for the number of samples of each metric up to a moment, one
// metric a query: a count drops the metric's name, and across metrics series
// would coincide.
func count(ctx context.Context, addr string, at time.Time) (map[string]int, error) {
	var names struct{ Data []string }
	if err := process.GetJSON(ctx, "http://"+addr+"/api/v1/label/__name__/values", &names); err != nil {
		return nil, err
	}
	counts := map[string]int{}
	for _, name := range names.Data {
		q := url.Values{
			"query": {fmt.Sprintf(`sum(count_over_time({__name__=%q}[1h]))`, name)},
			"time":  {strconv.FormatFloat(float64(at.UnixMilli())/1000, 'f', 3, 64)},
		}
		var answer struct {
			Data struct {
				Result []struct{ Value [2]any }
			}
		}
		if err := process.GetJSON(ctx, "http://"+addr+"/api/v1/query?"+q.Encode(), &answer); err != nil {
			return nil, err
		}
		if len(answer.Data.Result) == 0 {
			continue // it has no sample before that moment
		}
		text, ok := answer.Data.Result[0].Value[1].(string)
		if !ok {
			return nil, fmt.Errorf("value %v is no string", answer.Data.Result[0].Value[1])
		}
		n, err := strconv.Atoi(text)
		if err != nil {
			return nil, err
		}
		counts[name] = n
	}
	return counts, nil
}

func equal(a, b map[string]int) bool {
	if len(a) != len(b) {
		return false
	}
	for n := range a {
		if a[n] != b[n] {
			return false
		}
	}
	return true
}

func total(m map[string]int) (n int) {
	for _, v := range m {
		n += v
	}
	return n
}
