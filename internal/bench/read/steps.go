package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"cardinalsin/internal/bench/harness"
)

// dataFormat is in the names of folders: data of another format are made anew.
const dataFormat = 3

func (b *bench) folder(dataset, side string) (string, error) {
	return filepath.Abs(filepath.Join(b.dir, fmt.Sprintf("v%d-%d", dataFormat, b.scale), dataset, side))
}

// data is the folder of a side's data, which are made when they are not there.
func (b *bench) data(ctx context.Context, d dataset, side string) (string, error) {
	dir, err := b.folder(d.name, side)
	if err != nil {
		return "", err
	}
	done := dir + ".done"
	if _, err := os.Stat(done); err == nil {
		return dir, nil
	}
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(filepath.Dir(dir), 0o755)); err != nil {
		return "", err
	}
	begin := time.Now()
	var a answer
	if side == victoria {
		err = b.loadVictoria(ctx, d, dir)
	} else {
		err = harness.Ask(ctx, "child", request{Side: side, Load: true, Dataset: d.name, Scale: b.scale, Dir: dir}, &a)
	}
	if err != nil {
		return "", fmt.Errorf("load %s into %s: %w", d.name, side, err)
	}
	size := a.Open.Bytes
	if size == 0 {
		if size, err = sizeOf(dir); err != nil {
			return "", err
		}
	}
	b.Note("loaded %s into %s: %d series, %d samples in %.0f s, %d MB (%.2f B a sample)", d.name, side, d.series(), d.samples(),
		time.Since(begin).Seconds(), size>>20, float64(size)/float64(d.samples()))
	return dir, os.WriteFile(done, nil, 0o644)
}

func sizeOf(dir string) (n int64, err error) {
	err = filepath.Walk(dir, func(_ string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() {
			n += info.Size()
		}
		return err
	})
	return n, err
}

// ask asks one question of a side, in a process of its own.
func (b *bench) ask(ctx context.Context, d dataset, side, kept string, q ...query) (a answer, err error) {
	dir, err := b.data(ctx, d, kept)
	if err != nil {
		return a, err
	}
	return a, b.child(ctx, d, side, dir, "", b.budget, q, &a)
}

// askBoth asks ours, of its data, and a peer of what is kept for it, each in a
// process of its own, in turns, for so many seconds a question.
func (b *bench) askBoth(ctx context.Context, d dataset, side, peer, kept string, budget float64, q ...query) (us, them answer, err error) {
	dir, err := b.data(ctx, d, ours)
	if err != nil {
		return us, them, err
	}
	keptIn, err := b.data(ctx, d, kept)
	if err != nil {
		return us, them, err
	}
	turns := dir + ".turns"
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return b.child(ctx, d, side, dir, turns, budget, q, &us) })
	g.Go(func() error { return b.child(ctx, d, peer, keptIn, turns, budget, q, &them) })
	return us, them, g.Wait()
}

func (b *bench) child(ctx context.Context, d dataset, side, dir, turns string, budget float64, q []query, a *answer) error {
	r := request{Side: side, Dataset: d.name, Scale: b.scale, Dir: dir, Queries: q, Budget: budget, Turns: turns}
	if b.profile != "" {
		r.Profile = filepath.Join(b.profile, side+"-"+q[0].Name+".pprof")
	}
	return harness.Ask(ctx, "child", r, a)
}

var errDisagree = errors.New("sides disagree")

// agree compares what two sides have found. Sums may differ in their last
// digits, as series come in another order.
func agree(q query, a, b result) error {
	if a.Series == b.Series && a.Points == b.Points && math.Abs(a.Sum-b.Sum) <= 1e-9*math.Abs(b.Sum) {
		return nil
	}
	return fmt.Errorf("%w on %s: ours %+v, peer %+v", errDisagree, q.Name, a, b)
}

// pairs are how many times better ours was in each turn than the peer in the
// next: what the machine does meanwhile comes to both.
func pairs(ours, peer measured) (ratios []float64) {
	for i := range min(len(ours.Turns), len(peer.Turns)) {
		ratios = append(ratios, peer.Turns[i]/ours.Turns[i])
	}
	return ratios
}

// compare prints a line; it tells whether ours has answered, and how many times
// better it is, 0 where there is nothing to compare.
func (b *bench) compare(name string, ours, peer measured) (ratio float64, ok bool) {
	if ours.Error == "" && peer.Error == "" {
		ratio = peer.Median / ours.Median
	}
	b.line(name, ours, peer, ratio)
	return ratio, ours.Error == ""
}

func (b *bench) line(name string, ours, peer measured, ratio float64) {
	text := func(side string, m measured) string {
		if m.Error != "" {
			b.Note("%s: %s failed: %s", name, side, m.Error)
			return "failed"
		}
		return harness.Millis(m.time())
	}
	b.Line(name, text("ours", ours), text("the peer", peer), ratio)
}

const memoryLimit = 2 << 30

func (b *bench) promql(ctx context.Context) error {
	d := live(b.scale)
	for _, q := range b.liveQueries() {
		us, peer, err := b.askBoth(ctx, d, ours, prometheus, prometheus, b.budget, q)
		if err != nil {
			return err
		}
		o, p := us.Queries[0], peer.Queries[0]
		ratio, ok := b.compare("promql-"+q.Name, o, p)
		b.Note("%d series, %d points; first time %s, prometheus %s; %d store requests of %d kB", o.Series, o.Points, harness.Millis(o.first()), harness.Millis(p.first()), o.Requests, o.Bytes>>10)
		b.Note("resident: %d MB, %d MB before; prometheus %d MB, %d MB before", us.Peak>>20, us.Base>>20, peer.Peak>>20, peer.Base>>20)
		if ok && p.Error == "" {
			if err := agree(q, o.result, p.result); err != nil {
				return err
			}
		}
		b.Target("at most 1.5 times Prometheus' time", ok && ratio >= 1/1.5)
		b.Target("(goal) ahead of Prometheus", ok && ratio > 1)
		b.Target("at most 2 GiB resident", ok && us.Peak <= memoryLimit)
	}
	return b.besideVictoria(ctx, d, b.liveQueries())
}

// besideVictoria asks both over HTTP.
func (b *bench) besideVictoria(ctx context.Context, d dataset, queries []query) error {
	us, err := b.ask(ctx, d, oursHTTP, ours, queries...)
	if err != nil {
		return err
	}
	peer, err := b.askVictoria(ctx, d, queries)
	if err != nil {
		return err
	}
	for i, q := range queries {
		b.compare(q.Name+"-victoria", us.Queries[i], peer.Queries[i])
		b.Note("answers of %d and %d bytes; first time %s, VictoriaMetrics %s", us.Queries[i].Points, peer.Queries[i].Points, harness.Millis(us.Queries[i].first()), harness.Millis(peer.Queries[i].first()))
	}
	b.Note("resident over all of them: %d MB; VictoriaMetrics %d MB", us.Peak>>20, peer.Peak>>20)
	return nil
}

func (b *bench) head(ctx context.Context) error {
	d := headData(b.scale)
	queries := b.headQueries()
	var got [2]answer
	for i, side := range []string{oursHead, promHead} {
		dir, err := b.folder(d.name, side)
		if err != nil {
			return err
		}
		if err := b.child(ctx, d, side, dir, "", b.budget, queries, &got[i]); err != nil {
			return err
		}
	}
	for i, q := range queries {
		o, p := got[0].Queries[i], got[1].Queries[i]
		ratio, ok := b.compare("head-"+q.Name, o, p)
		if ok && p.Error == "" {
			if err := agree(q, o.result, p.result); err != nil {
				return err
			}
		}
		b.Target("at most 1.5 times Prometheus' time", ok && ratio >= 1/1.5)
	}
	b.Note("%d series in the head; resident %d MB, prometheus %d MB", d.series(), got[0].Peak>>20, got[1].Peak>>20)
	return nil
}

func (b *bench) labels(ctx context.Context) error {
	d := long(b.scale)
	queries := labelQueries()
	us, peer, err := b.askBoth(ctx, d, ours, prometheus, prometheus, b.budget, queries...)
	if err != nil {
		return err
	}
	for i, q := range queries {
		o, p := us.Queries[i], peer.Queries[i]
		_, ok := b.compare(q.Name, o, p)
		b.Note("%d values; first time %s, prometheus %s; %d store requests of %d kB", o.Series, harness.Millis(o.first()), harness.Millis(p.first()), o.Requests, o.Bytes>>10)
		if ok && p.Error == "" {
			if err := agree(q, o.result, p.result); err != nil {
				return err
			}
		}
		b.Target("label values at 1 million series over 14 days: under 50 ms", ok && o.time() < 50*time.Millisecond)
	}
	b.Note("resident: %d MB, prometheus %d MB", us.Peak>>20, peer.Peak>>20)
	return b.besideVictoria(ctx, d, queries)
}

// cold asks questions of a slow store, each in a process of its own.
func (b *bench) cold(ctx context.Context) error {
	const most = 500 * time.Millisecond
	for _, q := range append([]query{b.monthOfOne()}, labelQueries()...) {
		a, err := b.ask(ctx, long(b.scale), oursCold, ours, q)
		if err != nil {
			return err
		}
		m := a.Queries[0]
		if m.Error != "" {
			b.Note("cold-%s: ours failed: %s", q.Name, m.Error)
		}
		b.Line("cold-"+q.Name, harness.Millis(m.first()), "-", 0)
		b.Note("%s; %d kB; again %s", m.Calls, m.Bytes>>10, harness.Millis(m.time()))
		b.Note("opening took %s: %s", harness.Millis(time.Duration(a.Open.First*float64(time.Second))), a.Open.Calls)
		b.Target("cold, with 50 ms a request: under 500 ms", m.Error == "" && m.first() < most)
	}
	return b.coldSQL(ctx)
}

// coldSQL asks the slow store two questions in SQL: how much of the data files
// they fetch.
func (b *bench) coldSQL(ctx context.Context) error {
	dir, err := b.data(ctx, cpu(b.scale), ours)
	if err != nil {
		return err
	}
	all, err := liveBytes(ctx, dir)
	if err != nil {
		return err
	}
	queries := b.tsbs()
	for _, q := range []query{queries[0], queries[len(queries)-1]} {
		a, err := b.ask(ctx, cpu(b.scale), coldSQL, ours, q)
		if err != nil {
			return err
		}
		m := a.Queries[0]
		if m.Error != "" {
			b.Note("cold-sql-%s: ours failed: %s", q.Name, m.Error)
		}
		b.Line("cold-sql-"+q.Name, harness.Millis(m.first()), "-", 0)
		b.Note("%s; %d of %d kB; again %s", m.Calls, m.Bytes>>10, all>>10, harness.Millis(m.time()))
	}
	return nil
}

// sqlRounds is how often each side of a question in SQL gets a new process: a
// difference of 5 % is less than what two runs of one program differ by.
const sqlRounds = 3

func (b *bench) tsbsSQL(ctx context.Context) error {
	d := cpu(b.scale)
	for _, q := range b.tsbs() {
		var o, p measured
		var ratios []float64
		var most, peers int64 // bytes resident
		for range sqlRounds {
			us, peer, err := b.askBoth(ctx, d, oursSQL, plainSQL, ours, b.budget/sqlRounds, q)
			if err != nil {
				return err
			}
			ratios = append(ratios, pairs(us.Queries[0], peer.Queries[0])...)
			o, p = o.and(us.Queries[0]), p.and(peer.Queries[0])
			most, peers = max(most, us.Peak), max(peers, peer.Peak)
		}
		ratio, ok := 0.0, o.Error == ""
		if ok && p.Error == "" {
			ratio = median(ratios)
		}
		b.line("sql-"+q.Name, o, p, ratio)
		b.Note("%d rows; first time %s, duckdb %s; %d pairs of turns; resident: %d MB, duckdb %d MB", o.Series, harness.Millis(o.first()), harness.Millis(p.first()), len(ratios), most>>20, peers>>20)
		if ok && p.Error == "" && o.Series != p.Series {
			return fmt.Errorf("%w on %s: %d rows and %d", errDisagree, q.Name, o.Series, p.Series)
		}
		b.Target("within 5 % of plain DuckDB", ok && ratio >= 1/1.05)
	}
	return nil
}

func (b *bench) tsbsPromQL(ctx context.Context) error {
	d := cpu(b.scale)
	queries := b.tsbs()
	for i := range queries {
		queries[i].Name = "tsbs-" + queries[i].Name
	}
	return b.besideVictoria(ctx, d, queries)
}
