package consistency

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"cardinalsin"
	"cardinalsin/api/prom"
	"cardinalsin/lease"
	"cardinalsin/reader"
	"cardinalsin/series"
	"cardinalsin/sqlengine"
	"cardinalsin/txlog"
	"cardinalsin/vacuum"
)

// The load of TestQueriesUnderMaintenance, of each of the two processes that
// query.
const (
	senders       = 4
	promQLQueries = 1500
	sqlQueries    = 60
)

// counter is a series whose n-th sample, n ms after start, has the value n. So
// whoever counts one sample more than the greatest value has seen every sample
// up to that one, each once.
type counter struct {
	name  string
	acked atomic.Int64 // samples acknowledged
}

func (c *counter) send(ctx context.Context, db *cardinalsin.DB) error {
	n := c.acked.Load()
	err := db.Writer.Append(ctx, series.Batch{{
		Labels:  labelsOf(series.MetricName, "n", "counter", c.name),
		Samples: []series.Sample{sample(int(n), float64(n))},
	}})
	if err == nil {
		c.acked.Add(1)
	}
	return err
}

// check judges an answer: from what was acknowledged before the question up to
// what was sent when the answer came.
func (c *counter) check(least int64, count, greatest float64) error {
	most := c.acked.Load() + 1
	if count != greatest+1 {
		return fmt.Errorf("counter %s: %v samples up to %v: some are missing or twice there", c.name, count, greatest)
	}
	if count < float64(least) || count > float64(most) {
		return fmt.Errorf("counter %s: %v samples; at least %d must be seen and at most %d can", c.name, count, least, most)
	}
	return nil
}

// client asks one process, in one language.
type client struct {
	ask func(ctx context.Context, counter string) (count, greatest float64, err error)
	// head says that the process writes: it must see what was acknowledged,
	// others what they have seen before.
	head bool
	seen [senders]int64
}

func (c *client) run(ctx context.Context, counters []*counter, queries int, rnd *rand.Rand) error {
	for range queries {
		i := rnd.IntN(len(counters))
		least := c.seen[i]
		if c.head {
			least = counters[i].acked.Load()
		}
		count, greatest, err := c.ask(ctx, counters[i].name)
		if err == nil {
			err = counters[i].check(least, count, greatest)
		}
		if err != nil {
			return err
		}
		c.seen[i] = int64(count)
	}
	return nil
}

func promQLClient(db *cardinalsin.DB, head bool) *client {
	engine, q := prom.NewEngine(prom.Options{}), prom.NewQueryable(db.Reader)
	at := start.Time().Add(time.Hour)
	one := func(ctx context.Context, expr string) (float64, error) {
		query, err := engine.NewInstantQuery(ctx, q, nil, expr, at)
		if err != nil {
			return 0, err
		}
		defer query.Close()
		r := query.Exec(ctx)
		v, err := r.Vector()
		if err != nil {
			return 0, err
		}
		if len(v) != 1 {
			return 0, fmt.Errorf("%s: %d results", expr, len(v))
		}
		return v[0].F, nil
	}
	return &client{head: head, ask: func(ctx context.Context, counter string) (count, greatest float64, err error) {
		// One query, so one version, for both numbers.
		const expr = `label_replace(count_over_time(n{counter=%[1]q}[2h]), "is", "count", "", "") * 1e9 + on (counter) max_over_time(n{counter=%[1]q}[2h])`
		both, err := one(ctx, fmt.Sprintf(expr, counter))
		count = math.Floor(both / 1e9)
		return count, both - count*1e9, err
	}}
}

func sqlClient(t *testing.T, db *cardinalsin.DB, head bool) *client {
	e := sqlOf(t, db)
	return &client{head: head, ask: func(ctx context.Context, counter string) (count, greatest float64, err error) {
		rows, err := rowsOf(ctx, e, "SELECT count(*), max(value) FROM metrics WHERE metric_name = 'n' AND counter = '"+counter+"'", sqlengine.QueryOptions{})
		if err != nil {
			return 0, 0, err
		}
		if count, err = strconv.ParseFloat(rows[0][0], 64); err != nil {
			return 0, 0, err
		}
		greatest, err = strconv.ParseFloat(rows[0][1], 64)
		return count, greatest, err
	}}
}

// TestQueriesUnderMaintenance: while samples come in, heads are flushed, files
// compacted, and all that nobody pins is vacuumed at once, every query of the
// process that writes sees what was acknowledged before it, once; every query
// of another process sees no less than the one before it; a view that is held
// for long reads the same at its end as at its beginning; and a process has one
// pin object, however many queries it runs.
func TestQueriesUnderMaintenance(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	dir := t.TempDir()
	// Pins are renewed every second, not every half a minute.
	began := time.Now()
	fast := func(o *cardinalsin.Options) {
		o.Pins.Now = func() time.Time { return began.Add(30 * time.Since(began)) }
	}
	writes := process(t, dir, func(o *cardinalsin.Options) { fast(o); ingests(dir)(o) })
	reads, cron := process(t, dir, fast), process(t, dir, fast)
	defer closeDB(t, cron)
	defer closeDB(t, reads)
	defer closeDB(t, writes)
	counters := make([]*counter, senders)
	for i := range counters {
		counters[i] = &counter{name: strconv.Itoa(i)}
		if err := counters[i].send(t.Context(), writes); err != nil {
			t.Fatal(err)
		}
	}
	if err := writes.Writer.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	work, ctx := errgroup.WithContext(ctx)
	// forever repeats a step until the queries are done, or anything fails.
	forever := func(what string, pause time.Duration, step func() error) {
		work.Go(func() error {
			for {
				if err := step(); err != nil && ctx.Err() == nil {
					return fmt.Errorf("%s: %w", what, err)
				}
				select {
				case <-ctx.Done():
					return nil
				case <-time.After(pause):
				}
			}
		})
	}
	for _, c := range counters {
		forever("send", time.Millisecond, func() error { return c.send(ctx, writes) })
	}
	var flushes, jobs, vacuumed, holds, mostPins atomic.Int64
	forever("flush", 30*time.Millisecond, func() error { flushes.Add(1); return writes.Writer.Flush(ctx) })
	forever("compact", 50*time.Millisecond, func() error {
		done, err := writes.Compactor.RunAll(ctx)
		jobs.Add(int64(len(done)))
		return err
	})
	forever("vacuum", 50*time.Millisecond, func() error {
		r, err := cron.Vacuum(ctx, vacuum.Options{Retain: vacuum.NoRetention, AllowShortRetention: true, Full: true})
		vacuumed.Add(int64(r.Files))
		if errors.Is(err, vacuum.ErrSuperseded) {
			return nil
		}
		return err
	})
	// A pin that is always in use goes up when it is renewed.
	forever("renew", 100*time.Millisecond, func() error { return errors.Join(writes.Pins.Renew(ctx), reads.Pins.Renew(ctx)) })
	forever("long view", 0, func() error {
		if err := holdLong(ctx, reads); err != nil {
			return err
		}
		holds.Add(1)
		return nil
	})
	forever("count pins", 20*time.Millisecond, func() error {
		pins, err := lease.ListPins(ctx, writes.Log.Store(), writes.PinPrefix())
		mostPins.Store(max(mostPins.Load(), int64(len(pins))))
		return err
	})

	asked := time.Now()
	queries, queryCtx := errgroup.WithContext(ctx)
	for i, c := range []*client{
		promQLClient(writes, true), promQLClient(reads, false), sqlClient(t, writes, true), sqlClient(t, reads, false),
	} {
		n := promQLQueries
		if i >= 2 {
			n = sqlQueries
		}
		queries.Go(func() error { return c.run(queryCtx, counters, n, rand.New(rand.NewPCG(seed, uint64(i)))) })
	}
	err := queries.Wait()
	took := time.Since(asked)
	stop()
	// What broke the work broke the queries, too.
	if err := errors.Join(work.Wait(), err); err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
	var acked int64
	for _, c := range counters {
		acked += c.acked.Load()
	}
	t.Logf("seed %d: %d queries in %v beside %d samples, %d flushes, %d compactions, %d files vacuumed; %d long views; at most %d pin objects of 3 processes",
		seed, 2*(promQLQueries+sqlQueries), took.Round(time.Millisecond), acked, flushes.Load(), jobs.Load(), vacuumed.Load(), holds.Load(), mostPins.Load())
	if mostPins.Load() > 3 {
		t.Errorf("%d pin objects", mostPins.Load())
	}
	if jobs.Load() == 0 || vacuumed.Load() == 0 || holds.Load() == 0 {
		t.Error("there was no maintenance to survive")
	}
}

// holdLong keeps a view open through several flushes, compactions and vacuums.
func holdLong(ctx context.Context, db *cardinalsin.DB) error {
	v, err := db.Reader.At(ctx, txlog.Latest())
	if err != nil {
		return err
	}
	defer v.Close()
	first, err := digest(ctx, v)
	if err != nil {
		return err
	}
	for range 3 {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
		again, err := digest(ctx, v)
		if err != nil {
			return err
		}
		if again != first {
			return fmt.Errorf("version %d reads %s, at first %s", int64(v.Version()), again, first)
		}
	}
	return nil
}

// digest is a text that differs for views that differ in any sample.
func digest(ctx context.Context, v *reader.View) (string, error) {
	h := fnv.New64a()
	n := 0
	for s, err := range v.Select(ctx, series.Selector{Range: series.AllTime}) {
		if err != nil {
			return "", err
		}
		fmt.Fprintln(h, describe(s.Labels))
		for _, p := range s.Samples {
			fmt.Fprintln(h, p.Time, p.Nanos, math.Float64bits(p.Value))
			n++
		}
	}
	return fmt.Sprintf("%d samples, %016x", n, h.Sum64()), nil
}

// TestFreshness: what one process commits another sees with its next query,
// and what is only acknowledged the process that took it; the other one says
// that it has no head.
func TestFreshness(t *testing.T) {
	dir := t.TempDir()
	writes, reads := process(t, dir, ingests(dir)), process(t, dir, nil)
	defer closeDB(t, reads)
	defer closeDB(t, writes)
	c := &counter{name: "0"}
	if err := c.send(t.Context(), writes); err != nil {
		t.Fatal(err)
	}
	if err := writes.Writer.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	clients := map[string]struct{ here, there *client }{
		"PromQL": {promQLClient(writes, true), promQLClient(reads, false)},
		"SQL":    {sqlClient(t, writes, true), sqlClient(t, reads, false)},
	}
	expect := func(what string, c *client, want int64) {
		t.Helper()
		count, _, err := c.ask(t.Context(), "0")
		if err != nil || int64(count) != want {
			t.Fatalf("%s: %v samples, %v; want %d", what, count, err, want)
		}
	}
	for range 20 {
		if err := c.send(t.Context(), writes); err != nil {
			t.Fatal(err)
		}
		for name, p := range clients {
			expect(name+", acknowledged, here", p.here, c.acked.Load())
			expect(name+", acknowledged, elsewhere", p.there, c.acked.Load()-1)
		}
		if err := writes.Writer.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		for name, p := range clients {
			expect(name+", committed, here", p.here, c.acked.Load())
			expect(name+", committed, elsewhere", p.there, c.acked.Load())
		}
	}
	if err := c.send(t.Context(), writes); err != nil {
		t.Fatal(err)
	}
	for _, p := range []struct {
		db   *cardinalsin.DB
		head bool
	}{{writes, true}, {reads, false}} {
		x, err := sqlOf(t, p.db).Explain(t.Context(), "SELECT count(*) FROM metrics", sqlengine.QueryOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if len(x.Tables) != 1 || x.Tables[0].Head != p.head {
			t.Errorf("explained: %+v; want head %v", x.Tables, p.head)
		}
	}
}
