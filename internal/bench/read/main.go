// Command read measures our queries beside Prometheus' TSDB under the same
// PromQL engine, VictoriaMetrics, and plain DuckDB on our files: the same data,
// made by one generator, in the same run. `make bench-read` runs it.
//
// It prints one line a measurement,
//
//	bench <name> ours=… peer=… ratio=…
//
// ratio being how many times better ours is, above 1 where we are ahead, and
// notes beneath: memory, store requests, the target and whether it was met.
// What is measured on each side stands in the header that it prints.
//
// Prometheus and our table must answer the same, and SQL must return as many
// rows as DuckDB alone; else the run fails. A question that ours cannot answer
// is a missed target and not the end of the run.
//
// It stands above everything and is imported by nothing.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"time"

	"cardinalsin/internal/bench/harness"
)

const header = `# bench-read: our table beside Prometheus' TSDB (same engine, in process), VictoriaMetrics and plain DuckDB
#
# What is measured:
# - data, the same for all: "live", a million series, 320,000 of them every 15 s for 65 minutes, the others twice;
#   "long", 20,000 series every hour for 30 days and a million once a day on the last 14; "cpu", TSBS cpu-only at scale
#   4,000, one value a minute for 12 hours. With -quick all have a twentieth of the series.
# - ours: written through writer and flushes, compacted until nothing is left to do; Prometheus: one block;
#   VictoriaMetrics: merged by force. All on the same local disk, in the page cache.
# - warm: the median of the runs after the first, for some seconds each; a process of its own for each side and question,
#   which runs in turns with that of the peer.
#   Nothing is kept of results: the engine keeps none, and VictoriaMetrics is asked not to.
# - PromQL beside Prometheus: upstream's engine in process on both sides. Beside VictoriaMetrics: both over HTTP, until
#   the last byte of the answer.
# - SQL: our engine, beside one warm DuckDB of the same version with read_parquet over the same live files, with the same
#   threads and memory. Ours hands rows over as Arrow; DuckDB's are ` + arrowRows + `.
#   Three processes of each side, and the ratio is the median of those of neighbouring turns.
# - cold: nothing cached but the log's snapshot; each store request takes 50 ms more. Requests are those that the
#   question made, pins included.
# - memory: highest resident set (VmHWM) of the process, and what it had when it was open. GOGC is
#   75, as it is in cardinal's server and in Prometheus'.
`

type flags struct {
	victoria, dir, only, profile string
	quick                        bool
	budget                       float64
}

func main() {
	if len(os.Args) == 2 && os.Args[1] == "child" {
		if err := serve(context.Background(), os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "bench child:", err)
			os.Exit(1)
		}
		return
	}
	var f flags
	flag.StringVar(&f.victoria, "victoria", ".tools/bin/victoria-metrics", "the VictoriaMetrics server")
	flag.StringVar(&f.dir, "dir", "cardinal-bench", "where data are kept from run to run")
	flag.StringVar(&f.only, "only", "", "comma-separated names of the benches to run; default all")
	flag.StringVar(&f.profile, "profile", "", "folder for a processor profile of each side and its first question; default none")
	flag.BoolVar(&f.quick, "quick", false, "a twentieth of the series, for development")
	flag.Float64Var(&f.budget, "time", 4, "seconds that a question is repeated for; it is asked four times at least")
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
	scale int
}

// quickScale is what -quick divides the number of series by.
const quickScale = 20

func run(ctx context.Context, f flags) error {
	b := &bench{Report: harness.Report{Out: os.Stdout, Only: f.only}, flags: f, scale: 1}
	if f.quick {
		b.scale = quickScale
	}
	fmt.Print(header)
	begin := time.Now()
	err := b.Run(ctx,
		harness.Step{Name: "promql", Run: b.promql},
		harness.Step{Name: "head", Run: b.head},
		harness.Step{Name: "labels", Run: b.labels},
		harness.Step{Name: "cold", Run: b.cold},
		harness.Step{Name: "tsbs-sql", Run: b.tsbsSQL},
		harness.Step{Name: "tsbs-promql", Run: b.tsbsPromQL},
	)
	b.Note("whole run: %.0f s", time.Since(begin).Seconds())
	return err
}
