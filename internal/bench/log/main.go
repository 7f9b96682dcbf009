// Command bench measures our log against others' on the same tables in the
// same run: delta-rs (PyPI deltalake) and the Rust kernel as DuckDB's delta
// extension uses it. `make bench-log` runs it.
//
// It prints one line a measurement,
//
//	bench <name> ours=… peer=… ratio=…
//
// ratio being how many times better ours is, above 1 where we are ahead, and
// notes beneath: the target, whether it was met, store requests, memory. What
// is measured on each side stands in the header that it prints.
//
// Ours and the peers take turns, each load in a process of its own, so that
// neither finds memory or caches that an earlier one has warmed; the page
// cache is warm for all. Loads give the best of their runs, refreshes and
// commits the median.
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
	"strings"
	"time"
)

const header = `# bench-log: our log beside delta-rs (deltalake) and the Rust kernel (DuckDB's delta extension)
#
# What is measured:
# - load: ours txlog.Open; delta-rs DeltaTable(path), which reads the files, too; kernel EXPLAIN of a scan
#   of all files, the cheapest statement that makes it list them (it opens no data file, and plans for some
#   milliseconds). New process each, its start and imports not counted; page cache warm; best of the runs.
# - refresh: one commit of 10 adds as a flush makes them (of one day, names by time) by our writer in another
#   process, then ours Log.Snapshot, delta-rs update_incremental, both of the same table; the three sizes take turns,
#   too; median of 401, of delta-rs, which takes seconds, of the first 11.
# - commit: 10 adds, ours Transaction.Commit on a table of ours; delta-rs create_write_transaction on an equal
#   table of protocol 1/2, since it refuses ours, without checkpoint and clean-up after the commit, as ours; both
#   then know the new version. delta-rs opens its table anew before each, not timed, as it gets slower with each
#   commit through the same object. Taking turns; median. On disk ours waits for the disk (fsync of file and folder),
#   delta-rs does not; in memory (tmpfs) neither has to.
# - memory: of ours the Go heap after a collection, which is what the snapshot holds, and the resident set; of
#   the peers the growth of the resident set.
`

type flags struct {
	python, peers, archive, dir, only string
}

func main() {
	if len(os.Args) == 2 && os.Args[1] == "child" {
		if err := child(context.Background(), os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "bench child:", err)
			os.Exit(1)
		}
		return
	}
	var f flags
	flag.StringVar(&f.python, "python", ".tools/venv/bin/python", "Python with the peers")
	flag.StringVar(&f.peers, "peers", "internal/bench/log/peers.py", "the peers' side")
	flag.StringVar(&f.archive, "archive", "../shared/golden/kernel-data/300k-add-files-100-col-partitioned.tar.zst", "table of 300,000 adds")
	flag.StringVar(&f.dir, "dir", "", "where tables are made; default a temporary folder")
	flag.StringVar(&f.only, "only", "", "comma-separated names of the benches to run; default all")
	flag.Parse()
	if err := run(context.Background(), f); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench is one run: where its tables are, and how its targets fared.
type bench struct {
	flags
	met, missed int
}

func run(ctx context.Context, f flags) (err error) {
	if f.dir == "" {
		if f.dir, err = os.MkdirTemp("", "bench-log-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(f.dir)) }()
	}
	b := &bench{flags: f}
	fmt.Print(header)
	for _, s := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"load300k", b.load300k},
		{"load1M", b.load1M},
		{"refresh", b.refresh},
		{"commit", b.commit},
		{"groupcommit", b.groupCommit},
		{"checkpoint1M", b.checkpoint1M},
	} {
		if f.only != "" && !strings.Contains(","+f.only+",", ","+s.name+",") {
			continue
		}
		begin := time.Now()
		if err := s.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		fmt.Printf("  (%s took %.0f s)\n", s.name, time.Since(begin).Seconds())
	}
	fmt.Printf("targets: %d met, %d missed\n", b.met, b.missed)
	return nil
}

// table is where a table of that size is; ours or a foreign one that peers may
// write to. It is made when it is first asked for.
func (b *bench) table(ctx context.Context, kind string, n int) (string, error) {
	store := filepath.Join(b.dir, fmt.Sprintf("%s-%d", kind, n))
	return makeTable(ctx, store, kind, n)
}

// line prints a measurement; ratio is how many times better ours is.
func (b *bench) line(name, ours, peer string, ratio float64) {
	fmt.Printf("bench %s ours=%s peer=%s ratio=%.2f\n", name, ours, peer, ratio)
}

func (b *bench) note(format string, args ...any) {
	fmt.Printf("  %s\n", fmt.Sprintf(format, args...))
}

// target notes whether a target was met.
func (b *bench) target(text string, met bool) {
	word := "met"
	if met {
		b.met++
	} else {
		b.missed++
		word = "MISSED"
	}
	b.note("target %s: %s", text, word)
}

func seconds(s float64) string {
	switch {
	case s < 0.001:
		return fmt.Sprintf("%.0fµs", s*1e6)
	case s < 1:
		return fmt.Sprintf("%.2fms", s*1e3)
	default:
		return fmt.Sprintf("%.2fs", s)
	}
}

func megabytes(n int64) string { return fmt.Sprintf("%.0f MB", float64(n)/1e6) }
