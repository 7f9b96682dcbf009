package vacuum

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cardinalsin/action"
	"cardinalsin/lease"
	"cardinalsin/storage"
	"cardinalsin/storage/mem"
	"cardinalsin/txlog"
)

// The tests in this file run readers, committers, a compactor, a restorer and vacuum – the
// real code of txlog, lease and this package – against one store in memory,
// and let a seeded scheduler choose, before and after every request, whose
// turn it is and whether time passes. It is the model of log-protocol 6 over
// the code itself: with the rules as they are no schedule may lose a file; and
// with each rule taken out some schedule must.

const (
	// orphanAge is Margins.OrphanAge in these tests; committers refuse
	// uploads that began half of it ago.
	orphanAge = 10 * time.Minute
	deadline  = orphanAge / 2
)

// scenario says who takes part, and which rule is taken out.
type scenario struct {
	reader, committer, compactor bool
	restorer                     bool          // restores version 1
	past                         bool          // the reader reads version 1, which B has replaced already
	opened                       time.Duration // the reader opened its view that long ago
	vacuums                      int           // runs, one after the other, of each of
	vacuumers                    int           // processes; default 1
	ticks                        int           // how often time passes
	tick                         time.Duration // by how much

	rules func(*rules) // changes to vacuum's rules

	// Rules of others.
	watermarkFirst, noWatermarkCheck, noFence bool // the reader's
	noAgeCheck, ageOnce                       bool // the committers'
	restoreUnchecked                          bool // the restorer's
}

// world is one run of a scenario.
type world struct {
	scenario
	rng   *rand.Rand
	store *mem.Store

	mu      sync.Mutex // guards the fields below
	running bool       // turns are given out; before, every request passes
	aborted bool
	waiting []*turn
	actors  int // still at work
	found   []string
	failed  []error

	// The scheduler's own view of the log.
	old     *txlog.Snapshot // version 1
	pins    *lease.Pins     // the reader's, where its view is open
	hold    *lease.Hold
	version action.Version
	live    map[string]bool
	trace   []string
}

// turn is one request that waits to go on.
type turn struct {
	actor, label string
	granted      chan struct{}
}

var errAborted = errors.New("schedule aborted")

func (w *world) await(ctx context.Context, actor, label string) error {
	w.mu.Lock()
	if !w.running {
		w.mu.Unlock()
		return nil
	}
	if w.aborted {
		w.mu.Unlock()
		return errAborted
	}
	t := &turn{actor: actor, label: label, granted: make(chan struct{})}
	w.waiting = append(w.waiting, t)
	w.mu.Unlock()
	select {
	case <-t.granted:
	case <-ctx.Done():
		w.mu.Lock()
		w.waiting = slices.DeleteFunc(w.waiting, func(o *turn) bool { return o == t })
		w.mu.Unlock()
		return ctx.Err()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.aborted {
		return errAborted
	}
	return nil
}

func (w *world) violation(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.found = append(w.found, fmt.Sprintf(format, args...))
}

// gated is the store as one actor sees it: each request waits for its turn,
// and so does each answer to a write.
type gated struct {
	storage.Store
	w     *world
	actor string
}

func (g *gated) write(ctx context.Context, label string, do func() error) error {
	if err := g.w.await(ctx, g.actor, label); err != nil {
		return err
	}
	err := do()
	if aerr := g.w.await(ctx, g.actor, label+" answered"); aerr != nil {
		return aerr
	}
	return err
}

func (g *gated) Get(ctx context.Context, key string) ([]byte, storage.ObjectInfo, error) {
	if err := g.w.await(ctx, g.actor, "get "+key); err != nil {
		return nil, storage.ObjectInfo{}, err
	}
	return g.Store.Get(ctx, key)
}

func (g *gated) GetRange(ctx context.Context, key string, offset, length int64) ([]byte, error) {
	if err := g.w.await(ctx, g.actor, "get part of "+key); err != nil {
		return nil, err
	}
	return g.Store.GetRange(ctx, key, offset, length)
}

func (g *gated) List(ctx context.Context, prefix, after string) iter.Seq2[storage.ObjectInfo, error] {
	return func(yield func(storage.ObjectInfo, error) bool) {
		if err := g.w.await(ctx, g.actor, "list "+prefix); err != nil {
			yield(storage.ObjectInfo{}, err)
			return
		}
		// One page: it shows one moment, whatever happens while it is read.
		objs, err := storage.Collect(g.Store.List(ctx, prefix, after))
		for _, o := range objs {
			if !yield(o, nil) {
				return
			}
		}
		if err != nil {
			yield(storage.ObjectInfo{}, err)
		}
	}
}

func (g *gated) Put(ctx context.Context, key string, body io.ReadSeeker) (info storage.ObjectInfo, err error) {
	err = g.write(ctx, "put "+key, func() error { info, err = g.Store.Put(ctx, key, body); return err })
	return info, err
}

func (g *gated) PutIfAbsent(ctx context.Context, key string, data []byte) (info storage.ObjectInfo, err error) {
	err = g.write(ctx, "create "+key, func() error { info, err = g.Store.PutIfAbsent(ctx, key, data); return err })
	return info, err
}

func (g *gated) PutIfMatch(ctx context.Context, key string, data []byte, etag storage.ETag) (info storage.ObjectInfo, err error) {
	err = g.write(ctx, "replace "+key, func() error { info, err = g.Store.PutIfMatch(ctx, key, data, etag); return err })
	return info, err
}

func (g *gated) Delete(ctx context.Context, key string) error {
	return g.write(ctx, "delete "+key, func() error { return g.Store.Delete(ctx, key) })
}

// read opens a view by log-protocol 5 and reads its files three times, with a
// renewal between.
func (w *world) read(ctx context.Context, log *txlog.Log) error {
	s, pins, hold, err := w.old, w.pins, w.hold, error(nil)
	if hold == nil {
		if s, pins, hold, err = w.open(ctx, log); err != nil || hold == nil {
			return err
		}
	}
	for round := range 3 {
		if round > 0 || w.hold != nil {
			if err := pins.Renew(ctx); err != nil {
				return err
			}
		}
		for a := range s.Files() {
			key, err := log.Key(a.Path)
			if err != nil {
				return err
			}
			_, _, err = log.Store().Get(ctx, key)
			fenced := hold.Check() != nil && !w.noFence
			switch {
			case fenced:
				return nil
			case errors.Is(err, storage.ErrNotFound):
				w.violation("the reader of version %d misses %s", int64(s.Version()), a.Path)
			case err != nil:
				return err
			}
		}
	}
	return nil
}

// open returns no hold if the version may not be read any more.
func (w *world) open(ctx context.Context, log *txlog.Log) (*txlog.Snapshot, *lease.Pins, *lease.Hold, error) {
	s := w.old
	if !w.past {
		var err error
		if s, err = log.Snapshot(ctx, txlog.Latest()); err != nil {
			return nil, nil, nil, err
		}
	}
	pins := lease.NewPins(log.Store(), root+"/_cardinal/pins", "reader", lease.Options{})
	readable := func() (bool, error) {
		head, err := log.Snapshot(ctx, txlog.Latest())
		if err != nil {
			return false, err
		}
		mark, err := head.Watermark()
		return mark <= s.Version() || w.noWatermarkCheck, err
	}
	if w.watermarkFirst {
		if ok, err := readable(); err != nil || !ok {
			return nil, nil, nil, err
		}
	}
	hold, err := pins.Hold(ctx, int64(s.Version()))
	if err != nil {
		return nil, nil, nil, err
	}
	if !w.watermarkFirst {
		if ok, err := readable(); err != nil || !ok {
			return nil, nil, nil, err
		}
	}
	return s, pins, hold, nil
}

// swap uploads one file and commits it, in place of others.
func (w *world) swap(ctx context.Context, log *txlog.Log, adds string, removes ...string) error {
	base, err := log.Snapshot(ctx, txlog.Latest())
	if err != nil {
		return err
	}
	for _, r := range removes {
		if _, live := base.File(action.Key{Path: dir + r + ".parquet"}); !live {
			return nil
		}
	}
	began := time.Now()
	if err := upload(ctx, log.Store(), adds); err != nil {
		return err
	}
	tx := log.Begin(base, txlog.Operation{Name: "SWAP"})
	for _, r := range removes {
		tx.Remove(removeOf(r))
	}
	tx.Add(addOf(adds))
	switch {
	case w.noAgeCheck:
	case w.ageOnce:
		if time.Since(began) >= deadline {
			return nil
		}
	default:
		tx.Require(txlog.UploadedSince(began, deadline))
	}
	if _, err := tx.Commit(ctx); err != nil && !errors.Is(err, txlog.ErrConflict) {
		return err
	}
	return nil
}

// restore brings version 1 back, if vacuum lets it.
func (w *world) restore(ctx context.Context, log *txlog.Log) error {
	plan, err := log.PlanRestore(ctx, 1)
	if err == nil && !w.restoreUnchecked {
		_, err = plan.Commit(ctx)
	}
	if err == nil && w.restoreUnchecked {
		tx := log.Begin(nil, txlog.Operation{Name: "RESTORE"})
		for _, a := range plan.Changes.Added {
			tx.Add(*a)
		}
		for _, a := range plan.Changes.Removed {
			tx.Remove(a.Tombstone(true))
		}
		_, err = tx.Commit(ctx)
	}
	if errors.Is(err, txlog.ErrVersionVacuumed) || errors.Is(err, txlog.ErrConflict) {
		return nil
	}
	return err
}

func (w *world) vacuum(ctx context.Context, log *txlog.Log) error {
	opts := Options{Retain: NoRetention, Full: true, AllowShortRetention: true, Margins: Margins{OrphanAge: orphanAge}, Parallel: 2}
	opts.EnsureDefaults()
	for range w.vacuums {
		p := &Plan{log: log, opts: opts, rules: theRules()}
		if w.rules != nil {
			w.rules(&p.rules)
		}
		if _, err := p.Execute(ctx); err != nil && !errors.Is(err, txlog.ErrConflict) {
			return err
		}
	}
	return nil
}

// observe brings the scheduler's own view up to date and checks that the
// latest version's files are there.
func (w *world) observe(t *testing.T) {
	for {
		b, _, err := w.store.Get(context.Background(), fmt.Sprintf("%s/_delta_log/%s.json", root, w.version+1))
		if errors.Is(err, storage.ErrNotFound) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		c, err := action.Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range c.Removes {
			delete(w.live, r.Path)
		}
		for _, a := range c.Adds {
			w.live[a.Path] = true
		}
		w.version++
	}
	for path := range w.live {
		if _, err := w.store.GetRange(context.Background(), root+"/"+path, 0, 1); err != nil {
			w.violation("version %d names %s, which is gone", int64(w.version), path)
		}
	}
}

// explore runs one schedule and returns what it violated.
func explore(t *testing.T, sc scenario, seed uint64) (found []string, trace []string) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{scenario: sc, rng: rand.New(rand.NewPCG(seed, 1)), store: mem.New(mem.Options{}), version: -1, live: map[string]bool{}}
		log, err := createTable(t.Context(), w.store, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		if err := upload(t.Context(), w.store, "A"); err != nil {
			t.Fatal(err)
		}
		if w.old, err = commit(t.Context(), log, "WRITE", []string{"A"}, nil); err != nil {
			t.Fatal(err)
		}
		if sc.past {
			if err := w.swap(t.Context(), log, "B", "A"); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		w.observe(t)
		w.launch(t)
		w.schedule(t)
		if len(w.failed) > 0 {
			t.Fatalf("seed %d: %v\n%s", seed, errors.Join(w.failed...), strings.Join(w.trace, "\n"))
		}
		found, trace = w.found, w.trace
		if len(found) > 0 {
			return
		}
		// The table opens anew and agrees with the scheduler's view.
		log, err = txlog.Open(t.Context(), w.store, root, txlog.Options{})
		if err != nil {
			t.Fatal(err)
		}
		s, err := log.Snapshot(t.Context(), txlog.Latest())
		if err != nil {
			t.Fatal(err)
		}
		if s.NumFiles() != len(w.live) || s.Version() != w.version {
			t.Fatalf("version %d with %d files, want %d with %d", s.Version(), s.NumFiles(), w.version, len(w.live))
		}
	})
	return found, trace
}

// launch starts the actors, each a process of its own. They have loaded the
// log before the schedule begins, and wait for a first turn to begin.
func (w *world) launch(t *testing.T) {
	logs := map[string]*txlog.Log{}
	open := func(actor string) {
		log, err := txlog.Open(t.Context(), &gated{w.store, w, actor}, root, txlog.Options{})
		if err != nil {
			t.Fatal(err)
		}
		logs[actor] = log
	}
	if w.opened > 0 {
		open("reader")
		var err error
		if _, w.pins, w.hold, err = w.open(t.Context(), logs["reader"]); err != nil || w.hold == nil {
			t.Fatal(w.hold, err)
		}
		time.Sleep(w.opened)
	}
	runs := map[string]func(context.Context, *txlog.Log) error{}
	if w.reader {
		runs["reader"] = w.read
	}
	if w.committer {
		runs["committer"] = func(ctx context.Context, log *txlog.Log) error { return w.swap(ctx, log, "F") }
	}
	if w.compactor {
		runs["compactor"] = func(ctx context.Context, log *txlog.Log) error { return w.swap(ctx, log, "B", "A") }
	}
	if w.restorer {
		runs["restorer"] = w.restore
	}
	for i := range max(w.vacuumers, 1) {
		runs[fmt.Sprintf("vacuum%d", i)] = w.vacuum
	}
	for actor := range runs {
		if logs[actor] == nil {
			open(actor)
		}
	}
	w.mu.Lock()
	w.running = true
	w.actors = len(runs)
	w.mu.Unlock()
	for actor, run := range runs {
		go func() {
			err := w.await(t.Context(), actor, "begin")
			if err == nil {
				err = run(t.Context(), logs[actor])
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			w.actors--
			if err != nil && !errors.Is(err, errAborted) {
				w.failed = append(w.failed, fmt.Errorf("%s: %w", actor, err))
			}
		}()
	}
}

// schedule gives out turns until everybody is done or something is violated.
func (w *world) schedule(t *testing.T) {
	choose := w.randomly()
	if w.rng.IntN(2) > 0 {
		choose = w.byPriority()
	}
	ticks := w.ticks
	for {
		synctest.Wait()
		w.observe(t)
		w.mu.Lock()
		if len(w.found) > 0 && !w.aborted {
			w.aborted = true
			for _, turn := range w.waiting {
				close(turn.granted)
			}
			w.waiting = nil
		}
		// In an order that does not depend on how goroutines were woken.
		slices.SortFunc(w.waiting, func(a, b *turn) int { return strings.Compare(a.actor+a.label, b.actor+b.label) })
		names := []string{}
		for _, turn := range w.waiting {
			names = append(names, turn.actor)
		}
		actors := w.actors
		w.mu.Unlock()
		if actors == 0 {
			return
		}
		if len(names) == 0 {
			time.Sleep(10 * time.Millisecond) // somebody backs off
			continue
		}
		if ticks > 0 {
			names = append(names, "clock")
		}
		i := choose(names)
		if names[i] == "clock" {
			ticks--
			w.trace = append(w.trace, "tick")
			time.Sleep(w.tick)
			continue
		}
		w.mu.Lock()
		turn := w.waiting[i]
		w.waiting = slices.Delete(w.waiting, i, i+1)
		w.trace = append(w.trace, turn.actor+": "+strings.ReplaceAll(turn.label, root+"/", ""))
		w.mu.Unlock()
		close(turn.granted)
	}
}

// randomly stays with the one who went last for a while, then picks anybody.
func (w *world) randomly() func([]string) int {
	last := ""
	stay := []float64{0.5, 0.8, 0.95}[w.rng.IntN(3)]
	return func(names []string) int {
		i := slices.Index(names, last)
		if i < 0 || last == "clock" || w.rng.Float64() > stay {
			i = w.rng.IntN(len(names))
		}
		last = names[i]
		return i
	}
}

// byPriority lets the one with the highest priority go, and demotes whoever
// went last at a few random moments: most faults need few changes of turn, but
// at the right places (Burckhardt and others, "A Randomized Scheduler with
// Probabilistic Guarantees of Finding Bugs", ASPLOS 2010).
func (w *world) byPriority() func([]string) int {
	priority := map[string]int{}
	demote := map[int]bool{}
	for range 1 + w.rng.IntN(3) {
		demote[w.rng.IntN(60)] = true
	}
	step, last, least := 0, "", 0
	return func(names []string) int {
		best := 0
		for i, name := range names {
			if _, ok := priority[name]; !ok {
				priority[name] = 1 + w.rng.IntN(1000)
			}
			if priority[name] > priority[names[best]] {
				best = i
			}
		}
		if step++; demote[step] && names[best] == last {
			least--
			priority[last] = least
		}
		last = names[best]
		return best
	}
}

// schedules is how many are tried of each scenario. A mutant must show in 30
// times as many.
var schedules = flag.Uint64("schedules", 60, "schedules to explore of each scenario")

// TestNoScheduleLosesAFile explores the rules as they are.
func TestNoScheduleLosesAFile(t *testing.T) {
	for name, sc := range scenarios {
		t.Run(name, func(t *testing.T) {
			for seed := range *schedules {
				if found, trace := explore(t, sc, seed); len(found) > 0 {
					t.Fatalf("seed %d: %s\n%s", seed, strings.Join(found, "\n"), strings.Join(trace, "\n"))
				}
			}
		})
	}
}

// scenarios: a query and a compaction under one or two vacuums, where minutes
// matter; commits under a vacuum, where hours would.
var scenarios = map[string]scenario{
	"reader and compactor":    {reader: true, compactor: true, vacuums: 1, ticks: 5, tick: 50 * time.Second},
	"time travel":             {reader: true, past: true, vacuums: 2, ticks: 5, tick: 50 * time.Second},
	"renewal":                 {reader: true, past: true, opened: 100 * time.Second, vacuums: 2, ticks: 3, tick: 100 * time.Second},
	"two runs":                {reader: true, compactor: true, vacuums: 2, ticks: 5, tick: 50 * time.Second},
	"two vacuums at once":     {reader: true, compactor: true, vacuums: 1, vacuumers: 2, ticks: 5, tick: 50 * time.Second},
	"committer":               {committer: true, vacuums: 1, ticks: 4, tick: 4 * time.Minute},
	"committer and compactor": {committer: true, compactor: true, vacuums: 2, ticks: 4, tick: 4 * time.Minute},
	"restorer":                {restorer: true, past: true, vacuums: 2, ticks: 3, tick: 50 * time.Second},
	"restorer and reader":     {restorer: true, reader: true, past: true, vacuums: 2, ticks: 3, tick: 50 * time.Second},
	"restorer and compactor":  {restorer: true, compactor: true, vacuums: 2, ticks: 3, tick: 50 * time.Second},
	"all":                     {reader: true, committer: true, compactor: true, vacuums: 1, ticks: 6, tick: 100 * time.Second},
}

// TestMutantsAreCaught takes out one rule at a time: some schedule must lose a
// file, or the rule is not tested – or not needed.
func TestMutantsAreCaught(t *testing.T) {
	query := func(change func(*scenario)) scenario {
		sc := scenario{reader: true, past: true, vacuums: 1}
		change(&sc)
		return sc
	}
	renew := func(change func(*scenario)) scenario {
		sc := scenario{reader: true, past: true, opened: 100 * time.Second, vacuums: 1, ticks: 1, tick: 100 * time.Second}
		change(&sc)
		return sc
	}
	load := func(change func(*scenario)) scenario {
		sc := scenario{committer: true, vacuums: 1, ticks: 4, tick: 4 * time.Minute}
		change(&sc)
		return sc
	}
	blunt := func(ctx context.Context, store storage.Store, p lease.Pin) (bool, error) {
		// lease.Revoke refuses what has not expired; this does not.
		data, info, err := store.Get(ctx, p.Key)
		if err != nil {
			return false, err
		}
		revoked := strings.Replace(string(data), "{", `{"revoked":true,`, 1)
		_, err = store.PutIfMatch(ctx, p.Key, []byte(revoked), info.ETag)
		return err == nil, nil
	}
	for name, sc := range map[string]scenario{
		"vacuum-silent": query(func(s *scenario) { s.rules = func(r *rules) { r.silent = true } }),
		"revoke-early": renew(func(s *scenario) {
			s.rules = func(r *rules) { r.expired, r.revoke = func(lease.Pin) bool { return true }, blunt }
		}),
		"revoke-blind": renew(func(s *scenario) {
			s.rules = func(r *rules) {
				r.revoke = func(context.Context, storage.Store, lease.Pin) (bool, error) { return true, nil }
			}
		}),
		"watermark-first":    query(func(s *scenario) { s.watermarkFirst = true }),
		"no-watermark-check": query(func(s *scenario) { s.noWatermarkCheck = true }),
		"no-fence":           renew(func(s *scenario) { s.noFence = true }),
		"orphan-now":         load(func(s *scenario) { s.rules = func(r *rules) { r.orphanNow = true } }),
		"no-age-check":       load(func(s *scenario) { s.noAgeCheck = true }),
		"restore-unchecked":  query(func(s *scenario) { s.reader, s.restorer, s.restoreUnchecked = false, true, true }),
		"age-once":           load(func(s *scenario) { s.ageOnce = true }),
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range 30 * *schedules {
				if found, trace := explore(t, sc, seed); len(found) > 0 {
					t.Logf("seed %d: %s\n%s", seed, strings.Join(found, "\n"), strings.Join(trace, "\n"))
					return
				}
			}
			t.Fatal("no schedule shows what the rule is for")
		})
	}
}
