// Command write measures our ingestion beside a Prometheus server with its
// remote-write receiver and VictoriaMetrics: the same requests, made
// beforehand by one generator, in the same run. `make bench-write` runs it.
//
// It prints one line a measurement,
//
//	bench <name> ours=… peer=… ratio=…
//
// ratio being how many times better ours is, above 1 where we are ahead, and
// notes beneath: the target, whether it was met, processor time, memory. What
// is measured on each side stands in the header that it prints.
//
// Every server must tell in the end that it took as many samples as were
// acknowledged to the generator, and of ours the table must hold them: a
// server that loses some fails the run.
//
// It stands above everything and is imported by nothing.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"cardinalsin/internal/bench/harness"
)

const header = `# bench-write: cardinal-writer beside Prometheus (remote-write receiver) and VictoriaMetrics
#
# What is measured:
# - data: TSBS cpu-only as exporters have it: ten metrics a host, 12 labels and the name; one sample of each series a
#   round, 15 s apart; requests of remote write 1.0, made and compressed beforehand. All servers get the same bytes.
# - load: clients wait for each answer before they send the next request; the first round, which makes the series,
#   is not counted. Generator and server share the machine.
# - latency: of a request, from its first byte to the answer that accepts it, with the waits of refused ones.
# - cpu: processor time of the server, user and system, from the end of the first round until it has stopped in good
#   order, so with what it put off: flushes of ours, merges and flushes of VictoriaMetrics.
# - durability: ours "always" syncs its WAL to disk before each answer; "interval" every 100 ms. Prometheus writes a WAL
#   and does not sync it; VictoriaMetrics keeps none. All three store on the same local disk.
# - memory: resident set of the server, highest (VmHWM); per series less what it has when it is idle and empty.
`

type flags struct {
	cardinal, prometheus, victoria, dir, only string

	series, perPost, clients, repeat int
	seconds                          time.Duration
}

func main() {
	if len(os.Args) == 2 && os.Args[1] == "heap" {
		if err := heapChild(context.Background(), os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "bench heap:", err)
			os.Exit(1)
		}
		return
	}
	var f flags
	flag.StringVar(&f.cardinal, "cardinal", "bin/cardinal-writer", "our server")
	flag.StringVar(&f.prometheus, "prometheus", ".tools/bin/prometheus", "the prometheus server")
	flag.StringVar(&f.victoria, "victoria", ".tools/bin/victoria-metrics", "the VictoriaMetrics server")
	flag.StringVar(&f.dir, "dir", "", "where servers keep their data; default a temporary folder")
	flag.StringVar(&f.only, "only", "", "comma-separated names of the benches to run; default all")
	flag.IntVar(&f.series, "series", 200_000, "series of the remote-write benches")
	flag.IntVar(&f.perPost, "per-request", 2000, "samples of a request")
	flag.IntVar(&f.clients, "clients", 8, "clients that send at the same time")
	flag.IntVar(&f.repeat, "repeat", 3, "runs of each server, which take turns; the median counts")
	flag.DurationVar(&f.seconds, "time", 20*time.Second, "length of a run")
	flag.Parse()
	if err := run(context.Background(), f); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench is one run.
type bench struct {
	harness.Report
	flags
	made map[workload]rounds // requests made so far; times are shared
	runs int                 // servers started, for the names of folders
}

func run(ctx context.Context, f flags) (err error) {
	if f.dir == "" {
		if f.dir, err = os.MkdirTemp("", "bench-write-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(f.dir)) }()
	}
	b := &bench{Report: harness.Report{Out: os.Stdout, Only: f.only}, flags: f, made: map[workload]rounds{}}
	fmt.Print(header)
	return b.Run(ctx,
		harness.Step{Name: "rw-always", Run: b.always},
		harness.Step{Name: "rw-interval", Run: b.interval},
		harness.Step{Name: "churn", Run: b.churn},
		harness.Step{Name: "memory", Run: b.memory},
		harness.Step{Name: "idle", Run: b.idle},
	)
}

// folder is a new one for a server.
func (b *bench) folder(name string) string {
	b.runs++
	return filepath.Join(b.dir, fmt.Sprintf("%02d-%s", b.runs, name))
}

// requests are those of a workload, which are made when they are first asked
// for.
func (b *bench) requests(w workload) rounds {
	if b.made[w] == nil {
		clear(b.made) // one workload may take half a gigabyte
		b.made[w] = generate(w, time.Now().UnixMilli())
	}
	return b.made[w]
}

func perSecond(rate float64) string { return fmt.Sprintf("%.0f/s", rate) }
