package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"cardinalsin/action"
	"cardinalsin/internal/bench/harness"
	"cardinalsin/storage/storeurl"
	"cardinalsin/txlog"
)

// table is the key prefix of the table that our server makes.
const table = "default/metrics"

// outcome is what one run of one server has measured.
type outcome struct {
	*sent
	cpu  time.Duration
	base int64 // resident set before the load
	peak int64
}

// perSample is the processor time that a sample took.
func (o *outcome) perSample() time.Duration { return o.cpu / time.Duration(max(1, o.samples)) }

func (o *outcome) String() string {
	return fmt.Sprintf("%.0f samples/s, p50 %s, p99 %s, max %s, cpu %.2f µs a sample, peak %d MB, %d refused for the moment",
		o.rate(), harness.Millis(o.quantile(0.5)), harness.Millis(o.quantile(0.99)), harness.Millis(o.quantile(1)),
		float64(o.perSample().Nanoseconds())/1e3, o.peak>>20, o.refused)
}

// starter starts a server with its data in a folder.
type starter func(context.Context, string) (*server, error)

func (b *bench) startOurs(more ...string) starter {
	return func(_ context.Context, dir string) (*server, error) { return b.ours(dir, more...) }
}

var errLost = errors.New("samples were lost")

// measure runs one server under a load, and sees that it has what it
// acknowledged.
func (b *bench) measure(ctx context.Context, start starter, in rounds, l load) (out *outcome, err error) {
	dir := b.folder("server")
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	s, err := start(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Stop()) }()
	before, err := s.Usage()
	if err != nil {
		return nil, err
	}
	out = &outcome{base: before.Resident}
	had, err := s.counters(ctx)
	if err != nil {
		return nil, err
	}
	out.sent, err = send(ctx, s.url(), in, l, func() (err error) {
		before, err = s.Usage()
		return err
	})
	if err != nil {
		return nil, err
	}
	after, err := s.Usage()
	if err != nil {
		return nil, err
	}
	out.peak = after.Peak
	has, err := s.counters(ctx)
	if err != nil {
		return nil, err
	}
	if n := int64(has[s.accepted] - had[s.accepted]); n != out.total {
		return nil, fmt.Errorf("%w: %s acknowledged %d and counts %d", errLost, s.Name, out.total, n)
	}
	if err := s.Stop(); err != nil {
		return nil, err
	}
	out.cpu = s.Cmd.ProcessState.UserTime() + s.Cmd.ProcessState.SystemTime() - before.CPU
	if s.Name != "ours" {
		return out, nil
	}
	n, err := rowsOf(ctx, "file://"+dir+"/store")
	if err == nil && n != out.total {
		err = fmt.Errorf("%w: acknowledged %d, the table has %d", errLost, out.total, n)
	}
	return out, err
}

// rowsOf counts the rows of our table by its log.
func rowsOf(ctx context.Context, url string) (int64, error) {
	store, err := storeurl.Open(ctx, url)
	if err != nil {
		return 0, err
	}
	log, err := txlog.Open(ctx, store, table, txlog.Options{})
	if err != nil {
		return 0, err
	}
	snap, err := log.Snapshot(ctx, txlog.Latest())
	if err != nil {
		return 0, err
	}
	n := int64(0)
	for f := range snap.Files() {
		stats, ok, err := action.ParseStats(f.Stats)
		if err != nil || !ok {
			return 0, fmt.Errorf("statistics of %s: %w", f.Path, cmp.Or(err, errLost))
		}
		n += stats.NumRecords
	}
	return n, nil
}

// side is one server of a comparison.
type side struct {
	name  string
	start starter
	in    rounds // nil: what all others get
}

// compare measures the servers in turns and returns of each the run with the
// median rate.
func (b *bench) compare(ctx context.Context, in rounds, l load, sides ...side) ([]*outcome, error) {
	all := make([][]*outcome, len(sides))
	for range b.repeat {
		for i, s := range sides {
			load := in
			if s.in != nil {
				load = s.in
			}
			out, err := b.measure(ctx, s.start, load, l)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", s.name, err)
			}
			all[i] = append(all[i], out)
		}
	}
	medians := make([]*outcome, len(sides))
	for i, outs := range all {
		slices.SortFunc(outs, func(a, b *outcome) int { return cmp.Compare(a.rate(), b.rate()) })
		medians[i] = outs[len(outs)/2]
		b.Note("%-16s %s (rates %.0f to %.0f)", sides[i].name, medians[i], outs[0].rate(), outs[len(outs)-1].rate())
	}
	return medians, nil
}

// standard is the workload of the remote-write benches.
func (b *bench) standard() (rounds, load) {
	w := workload{series: b.series, perPost: b.perPost, rounds: b.roundsFor(b.series)}
	return b.requests(w), load{clients: b.clients, warm: 1, limit: b.seconds}
}

// roundsFor is how many rounds a run needs at the most.
func (b *bench) roundsFor(series int) int {
	const fastest = 1_500_000 // samples a second that nobody reaches here
	return 2 + int(b.seconds.Seconds())*fastest/series
}

func (b *bench) always(ctx context.Context) error {
	in, l := b.standard()
	got, err := b.compare(ctx, in, l, side{"ours, always", b.startOurs(), nil}, side{"prometheus", b.startPrometheus, nil})
	if err != nil {
		return err
	}
	b.pair("rw-always", got[0], got[1])
	b.Target("Prometheus' rate", got[0].rate() >= got[1].rate())
	b.Target("161,000 samples/s", got[0].rate() >= 161_000)
	b.Target("p99 at most twice Prometheus'", got[0].quantile(0.99) <= 2*got[1].quantile(0.99))
	b.Target("(goal) 1.5 times Prometheus' rate", got[0].rate() >= 1.5*got[1].rate())
	return nil
}

func (b *bench) interval(ctx context.Context) error {
	in, l := b.standard()
	got, err := b.compare(ctx, in, l, side{"ours, interval", b.startOurs("--wal-sync", "interval=100ms"), nil}, side{"victoriametrics", b.startVictoria, nil})
	if err != nil {
		return err
	}
	b.pair("rw-interval", got[0], got[1])
	b.Target("VictoriaMetrics' rate", got[0].rate() > got[1].rate())
	b.Target("188,000 samples/s", got[0].rate() >= 188_000)
	b.Target("(goal) 1.5 times VictoriaMetrics' rate", got[0].rate() >= 1.5*got[1].rate())
	return nil
}

// pair prints the lines of a comparison.
func (b *bench) pair(name string, ours, peer *outcome) {
	b.Line(name, perSecond(ours.rate()), perSecond(peer.rate()), ours.rate()/peer.rate())
	b.Line(name+"-p99", harness.Millis(ours.quantile(0.99)), harness.Millis(peer.quantile(0.99)), peer.quantile(0.99).Seconds()/ours.quantile(0.99).Seconds())
	b.Line(name+"-cpu", fmt.Sprintf("%.2fµs", float64(ours.perSample().Nanoseconds())/1e3), fmt.Sprintf("%.2fµs", float64(peer.perSample().Nanoseconds())/1e3),
		float64(peer.perSample())/float64(ours.perSample()))
}

// churn compares a load in which a tenth of the series is others in each
// round with the usual one.
func (b *bench) churn(ctx context.Context) error {
	const percent = 10
	w := workload{series: b.series, perPost: b.perPost, rounds: b.roundsFor(b.series)}
	l := load{clients: b.clients, warm: 1, limit: b.seconds}
	steady := b.requests(w)
	w.churn = percent
	churned := b.requests(w)
	// In turns, so that what else the machine does comes to all of them.
	got, err := b.compare(ctx, steady, l,
		side{"ours, steady", b.startOurs(), nil}, side{"ours, churn", b.startOurs(), churned},
		side{"prometheus, steady", b.startPrometheus, nil}, side{"prometheus, churn", b.startPrometheus, churned})
	if err != nil {
		return err
	}
	kept := func(i int) float64 { return got[2*i+1].rate() / got[2*i].rate() }
	b.Line("churn", fmt.Sprintf("%.2f", kept(0)), fmt.Sprintf("%.2f", kept(1)), kept(0)/kept(1))
	b.Note("of the rate without churn, when %d %% of the series are others in each round", percent)
	b.Target("churn costs at most a tenth of the rate", kept(0) >= 0.9)
	return nil
}
