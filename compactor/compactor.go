// Package compactor rewrites live files into better ones: many small files of
// one date and shard become one.
//
// It stands on layer 5. [Plan] decides, from a snapshot alone; [Runner] does:
// it claims a job, reads the inputs under a pin, merges them by the one dedup
// rule, uploads the output under a fresh name, and swaps all of it in one
// commit that requires every input to be live still. Whoever loses a race
// leaves an orphan for vacuum and plans anew; nothing is ever patched.
//
// Claims save work and are not what makes a result right: any number of
// compactors, with claims or without, leave the same rows.
//
// INVARIANT: the rows of a version are those of the version before, for every
// query. It must never take out a file that it has not read in full and found
// sound.
package compactor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/lease"
	"cardinalsin/txlog"
)

// Conditions a caller branches on. Conflicts are txlog's, claims that others
// hold are lease.ErrClaimHeld, damage is chunk.ErrCorrupt.
var (
	// ErrInputMissing: a live file is not in the store. That is corruption:
	// the pin was held.
	ErrInputMissing = errors.New("compaction input is missing")
	// ErrRowsChanged: the output would not hold what the inputs do. It is a
	// bug of ours, caught before it did harm.
	ErrRowsChanged = errors.New("compaction changes the rows")
)

// Options configure a Runner; the zero value is useful.
type Options struct {
	Policy Policy
	// Interval is how often Run looks whether there is a version that it has
	// not planned on. Default 30 seconds.
	Interval time.Duration
	// Poll is the longest that Run waits before it asks the store for versions
	// of other processes: it asks after Interval, then after twice as long each
	// time that nothing has come. Default 1 hour. If it is negative, Run never
	// asks and plans on what this process commits and reads: a table in which
	// nothing happens costs no request.
	Poll time.Duration
	// MinOrphanAge is vacuum's Margins.OrphanAge; an output whose upload began
	// half of it ago is not committed. Default 24 hours.
	MinOrphanAge time.Duration
	// Reads is the number of inputs fetched at once. Default 4.
	Reads int
	// Chunk shapes the outputs. Default level 3.
	Chunk chunk.Options
	// NoClaims works without job claims: the rows are the same, only work is
	// done twice where several processes compact.
	NoClaims bool
	// Logger reports jobs that failed in the background. Default discards.
	Logger *slog.Logger
	Events Events
}

// Events are optional observers; each is called synchronously.
type Events struct {
	// CompactEnd is called when a job has ended; r is what it did as far as
	// it came.
	CompactEnd func(j Job, r Result, err error)
}

// EnsureDefaults fills in what is unset.
func (o *Options) EnsureDefaults() {
	o.Policy.EnsureDefaults()
	if o.Interval <= 0 {
		o.Interval = 30 * time.Second
	}
	if o.Poll == 0 {
		o.Poll = time.Hour
	}
	if o.MinOrphanAge <= 0 {
		o.MinOrphanAge = 24 * time.Hour
	}
	if o.Reads <= 0 {
		o.Reads = 4
	}
	if o.Chunk.Level == 0 {
		o.Chunk.Level = 3
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// Runner executes jobs, one at a time. It may be used concurrently.
type Runner struct {
	log    *txlog.Log
	pins   *lease.Pins
	holder string
	opts   Options
	rules  rules

	mu         sync.Mutex // guards what follows
	quarantine map[string]bool
	planned    action.Version // the latest version planned on
}

// rules takes rules out, for the tests that show what each of them is for.
// Nothing but a test sets one.
type rules struct {
	patchConflict bool // commit although inputs are gone
	anyOrder      bool // ignore new files among the inputs
}

// NewRunner returns a runner for one table. pins is the process's pin on that
// table; holder names the process in claims.
func NewRunner(log *txlog.Log, pins *lease.Pins, holder string, opts Options) *Runner {
	opts.EnsureDefaults()
	return &Runner{log: log, pins: pins, holder: holder, opts: opts, quarantine: map[string]bool{}, planned: -1}
}

// Plan chooses the jobs that the runner's policy asks for in the latest
// version, less what this process found damaged. Cost: a refresh of the log.
func (r *Runner) Plan(ctx context.Context) ([]Job, error) {
	snap, err := r.log.Snapshot(ctx, txlog.Latest())
	if err != nil {
		return nil, fmt.Errorf("plan compaction: %w", err)
	}
	r.mu.Lock()
	r.planned = max(r.planned, snap.Version())
	r.mu.Unlock()
	policy := r.opts.Policy
	policy.Exclude = map[string]bool{}
	for path := range r.opts.Policy.Exclude {
		policy.Exclude[path] = true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for path := range r.quarantine {
		policy.Exclude[path] = true
	}
	return Plan(snap, policy), nil
}

// maxRounds bounds how often RunAll plans anew; each round leaves less to do
// unless others write faster than we merge.
const maxRounds = 64

// RunAll plans and runs until the policy asks for nothing more, and returns
// what was done. A job that another process claims is left to it. A damaged
// input ends its job, is named in the error and left out from then on; the
// other jobs go on.
func (r *Runner) RunAll(ctx context.Context) ([]Result, error) {
	done, _, err := r.runAll(ctx)
	return done, err
}

// runAll also tells how many partitions it left to other processes.
func (r *Runner) runAll(ctx context.Context) (done []Result, claimed int, err error) {
	var failed []error
	skip := map[string]bool{} // partitions to leave alone in this call
	for range maxRounds {
		jobs, err := r.Plan(ctx)
		if err != nil {
			return done, len(skip), errors.Join(append(failed, err)...)
		}
		worked := false
		for _, j := range jobs {
			if skip[j.Key()] {
				continue
			}
			res, err := r.RunJob(ctx, j)
			switch {
			case err == nil:
				done = append(done, res)
				worked = true
			case errors.Is(err, lease.ErrClaimHeld):
				skip[j.Key()] = true
			case ctx.Err() != nil:
				return done, len(skip), errors.Join(append(failed, err)...)
			case errors.Is(err, txlog.ErrConflict):
				worked = true // plan anew
			case r.damaged(err):
				failed = append(failed, err)
				worked = true // plan around it
			default:
				return done, len(skip), errors.Join(append(failed, err)...)
			}
		}
		if !worked {
			break
		}
	}
	return done, len(skip), errors.Join(failed...)
}

// damaged reports whether a job failed for what its inputs are, rather than
// for the store's or the log's state.
func (r *Runner) damaged(err error) bool {
	return errors.Is(err, chunk.ErrCorrupt) || errors.Is(err, chunk.ErrUnsupported) || errors.Is(err, ErrInputMissing)
}

// Run compacts every Interval until ctx ends, if there is a version that it
// has not planned on; see Options.Poll. Failures are logged and tried again.
func (r *Runner) Run(ctx context.Context) error {
	tick := time.NewTicker(r.opts.Interval)
	defer tick.Stop()
	again := true // the last pass did not get to all, or there was none
	pause, waited := r.opts.Interval, time.Duration(0)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		waited += r.opts.Interval
		before := r.lastPlanned()
		news := again || r.log.Known() > before
		if !news && (r.opts.Poll < 0 || waited < pause) {
			continue
		}
		waited = 0
		_, claimed, err := r.runAll(ctx)
		if err != nil && ctx.Err() == nil {
			r.opts.Logger.Error("compaction failed", "table", r.log.Root(), "err", err)
		}
		// Whoever holds a claim may die, and no version follow.
		again = err != nil || claimed > 0
		if r.lastPlanned() > before {
			pause = r.opts.Interval
		} else {
			pause = min(2*pause, max(r.opts.Poll, r.opts.Interval))
		}
	}
}

func (r *Runner) lastPlanned() action.Version {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.planned
}

// Quarantined lists the files that this process found damaged, by path.
func (r *Runner) Quarantined() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return sortedKeys(r.quarantine)
}
