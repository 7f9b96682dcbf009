package index

import (
	"bytes"
	"container/heap"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/lease"
	"cardinalsin/series"
	"cardinalsin/storage"
	"cardinalsin/txlog"
)

// RunnerOptions configure a Runner; the zero value is useful.
type RunnerOptions struct {
	Policy Policy
	// Index, if set, tells which segments are damaged.
	Index *Index
	// Interval is how often Run looks whether there is a version that it has
	// not planned on. Default 30 seconds.
	Interval time.Duration
	// MinOrphanAge is vacuum's Margins.OrphanAge; a segment whose upload began
	// half of it ago is not committed. Default 24 hours.
	MinOrphanAge time.Duration
	// Reads is the number of files opened at once. Default 16.
	Reads int
	// SegmentBytes bounds what a job keeps in memory of the segment it makes:
	// what would exceed it goes into one more segment for the same files.
	// Default 256 MiB, which takes about a million series with a label of their
	// own and five that they share.
	SegmentBytes int64
	// Holder names this process in claims, for people. Default "unnamed".
	Holder string
	// NoClaims works without claims on days: the result is the same, only work
	// is done twice.
	NoClaims bool
	// Logger reports jobs that failed in the background, and files that no
	// index can be made of. Default discards.
	Logger *slog.Logger
	// OnEnd, if set, hears of each job that has ended.
	OnEnd func(j Job, r Result, err error)
}

// EnsureDefaults fills in what is unset.
func (o *RunnerOptions) EnsureDefaults() {
	o.Policy.EnsureDefaults()
	if o.Interval <= 0 {
		o.Interval = 30 * time.Second
	}
	if o.MinOrphanAge <= 0 {
		o.MinOrphanAge = 24 * time.Hour
	}
	if o.Reads <= 0 {
		o.Reads = 16
	}
	if o.SegmentBytes <= 0 {
		o.SegmentBytes = 256 << 20
	}
	if o.Holder == "" {
		o.Holder = "unnamed"
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// Result is what a job did.
type Result struct {
	Job      Job
	Version  action.Version // of the commit
	Segments []Segment      // that were made, by their part
	Bytes    int64          // of them
	Series   int
	// Skipped are the paths of files that could not be read; queries read them
	// without the index, and say what is wrong with them.
	Skipped []string
}

// Runner executes jobs. It may be used concurrently.
type Runner struct {
	log  *txlog.Log
	opts RunnerOptions

	mu      sync.Mutex
	planned action.Version // the latest version planned on
	due     time.Time      // by the local clock: time alone makes a job; zero for never
}

// NewRunner returns a runner for one table.
func NewRunner(log *txlog.Log, o RunnerOptions) *Runner {
	o.EnsureDefaults()
	return &Runner{log: log, opts: o, planned: -1}
}

// Plan chooses the jobs for the latest version. Cost: a refresh of the log.
func (r *Runner) Plan(ctx context.Context) ([]Job, error) {
	snap, err := r.log.Snapshot(ctx, txlog.Latest())
	if err != nil {
		return nil, fmt.Errorf("plan index: %w", err)
	}
	p := r.opts.Policy
	if p.Now, err = r.log.Store().Now(ctx); err != nil {
		return nil, fmt.Errorf("plan index: read the store's clock: %w", err)
	}
	if r.opts.Index != nil {
		p.Damaged = r.opts.Index.Damaged()
	}
	jobs, wait := plan(snap, p)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.planned, r.due = max(r.planned, snap.Version()), time.Time{}
	if wait > 0 {
		r.due = r.log.Now().Add(wait)
	}
	return jobs, nil
}

// RunAll plans, runs every job, and returns what was done. A job that another
// process has claimed, or was quicker with, is left to it; the log says so.
// Errors: storage errors, those of the log.
func (r *Runner) RunAll(ctx context.Context) ([]Result, error) {
	done, _, err := r.runAll(ctx)
	return done, err
}

// runAll also tells how many jobs it left to other processes that may yet die.
func (r *Runner) runAll(ctx context.Context) (done []Result, claimed int, err error) {
	jobs, err := r.Plan(ctx)
	if err != nil {
		return nil, 0, err
	}
	for _, j := range jobs {
		res, err := r.RunJob(ctx, j)
		switch {
		case err == nil:
			done = append(done, res)
		case errors.Is(err, lease.ErrClaimHeld) || errors.Is(err, lease.ErrClaimLost):
			claimed++
			r.opts.Logger.Info("indexing is left to another process", "table", r.log.Root(), "err", err)
		case errors.Is(err, txlog.ErrConflict):
			r.opts.Logger.Info("another process has indexed it", "table", r.log.Root(), "err", err)
		default:
			return done, claimed, err
		}
	}
	return done, claimed, nil
}

// Run executes what is due every Interval until ctx ends, if there is a version
// that it has not planned on. It asks the store for none: whoever compacts or
// writes does. Failures are logged and tried again.
func (r *Runner) Run(ctx context.Context) error {
	tick := time.NewTicker(r.opts.Interval)
	defer tick.Stop()
	again := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		r.mu.Lock()
		due := again || r.log.Known() > r.planned || !r.due.IsZero() && r.log.Now().After(r.due)
		r.mu.Unlock()
		if !due {
			continue
		}
		_, claimed, err := r.runAll(ctx)
		// Whoever holds a claim may die, and no version follow.
		again = err != nil || claimed > 0
		if err != nil && ctx.Err() == nil {
			r.opts.Logger.Error("indexing failed", "table", r.log.Root(), "err", err)
		}
	}
}

// RunJob makes the job's segment, or segments where one would be too large. When
// it returns nil they are committed, with no change of files. It reads the
// columns of the files that identify series, one row group of each file at a
// time, and keeps one segment, with the values of all labels, in memory:
// RunnerOptions.SegmentBytes, and while that is encoded about half as much
// again, whatever the files hold.
//
// It needs no pin: a file that is gone is one that no new version names, and is
// left out. Errors: lease.ErrClaimHeld where another process works on the day,
// lease.ErrClaimLost; txlog.ErrDomainChanged where another has changed the day's
// segments, before or after the work; storage errors.
func (r *Runner) RunJob(ctx context.Context, j Job) (Result, error) {
	res := Result{Job: j}
	err := r.claimed(ctx, j, func(ctx context.Context) error { return r.run(ctx, j, &res) })
	if err != nil {
		err = fmt.Errorf("index %s: %w", j.Date, err)
	}
	if r.opts.OnEnd != nil {
		r.opts.OnEnd(j, res, err)
	}
	return res, err
}

// claimTTL is how long a claim outlives its process. A job renews it every
// third of that.
const claimTTL = time.Minute

// claimed runs work under the claim on the job's day. The claim saves work and
// is not what makes the result right: the commit is.
func (r *Runner) claimed(ctx context.Context, j Job, work func(context.Context) error) error {
	if r.opts.NoClaims || len(j.Files) == 0 {
		return work(ctx)
	}
	key := fmt.Sprintf("%s/_cardinal/leases/index-%s.json", r.log.Root(), j.Date)
	unreleased, err := lease.Work(ctx, r.log.Store(), key, r.opts.Holder, claimTTL, lease.Options{Now: r.log.Now}, func(ctx context.Context) error {
		// Who had the claim before may have done it.
		snap, err := r.log.Snapshot(ctx, txlog.Latest())
		if err != nil {
			return err
		}
		if segments, err := Segments(snap); err == nil {
			if _, err := j.others(segments); err != nil {
				return err
			}
		}
		return work(ctx)
	})
	if unreleased != nil {
		r.opts.Logger.Warn("claim is left to expire", "key", key, "err", unreleased)
	}
	return err
}

// others are the segments that stay beside the job's own.
func (j *Job) others(segments []Segment) (out []Segment, err error) {
	for _, s := range segments {
		switch {
		case slices.Contains(j.Replaces, s.Key):
		case len(j.Files) > 0 && s.Date == j.Date.String() && s.Through > j.After && j.Through > s.After:
			return nil, fmt.Errorf("%w: %s has the segment %s now", txlog.ErrDomainChanged, s.Date, s.Key)
		default:
			out = append(out, s)
		}
	}
	return out, nil
}

func (r *Runner) run(ctx context.Context, j Job, res *Result) error {
	began := r.log.Now()
	if len(j.Files) > 0 {
		if err := r.build(ctx, j, res); err != nil {
			return err
		}
	}
	snap, err := r.commit(ctx, j, res.Segments, began)
	if err != nil {
		return err
	}
	res.Version = snap.Version()
	return nil
}

// upload puts a segment under a fresh name.
func (r *Runner) upload(ctx context.Context, j Job, b *builder, res *Result) error {
	data, head, err := b.finish()
	if err != nil {
		return err
	}
	var name [8]byte
	if _, err := rand.Read(name[:]); err != nil {
		return fmt.Errorf("name the segment: %w", err)
	}
	s := Segment{
		Key:   fmt.Sprintf("%s/%s-%s.idx", Folder, j.Date, hex.EncodeToString(name[:])),
		Bytes: int64(len(data)), Directory: head, Date: j.Date.String(), Files: len(j.Files), After: j.After, Through: j.Through, Restarts: restartSeries,
	}
	if _, err := r.log.Store().Put(ctx, r.log.Root()+"/"+s.Key, bytes.NewReader(data)); err != nil {
		return fmt.Errorf("upload %s: %w", s.Key, err)
	}
	res.Segments = append(res.Segments, s)
	res.Bytes += s.Bytes
	res.Series += b.total
	return nil
}

// commitTries bounds how often a job gives way to jobs for other days.
const commitTries = 8

// commit names the segments in the log.
func (r *Runner) commit(ctx context.Context, j Job, made []Segment, began time.Time) (*txlog.Snapshot, error) {
	base := j.base
	for try := 1; ; try++ {
		segments, err := Segments(base)
		if err != nil {
			segments = nil // Plan has seen that, and makes all anew
		}
		others, err := j.others(segments)
		if err != nil {
			return nil, err
		}
		text, err := encode(append(others, made...))
		if err != nil {
			return nil, err
		}
		tx := r.log.Begin(base, txlog.Operation{Name: "INDEX", Parameters: map[string]any{"date": j.Date.String(), "files": len(j.Files)}})
		tx.SetDomain(Domain, text)
		tx.Require(txlog.DomainUnchanged(Domain), txlog.UploadedSince(began, r.opts.MinOrphanAge/2))
		// COMMIT POINT: before it the segment is an orphan.
		snap, err := tx.Commit(ctx)
		if err == nil || !errors.Is(err, txlog.ErrDomainChanged) || try == commitTries {
			return snap, err
		}
		if base, err = r.log.Snapshot(ctx, txlog.Latest()); err != nil {
			return nil, err
		}
	}
}

// badFile is an error for which one file is to blame.
type badFile struct {
	file int
	err  error
}

func (e *badFile) Error() string { return e.err.Error() }
func (e *badFile) Unwrap() error { return e.err }

// build reads the files and uploads the segments. A file that is damaged or gone
// is left out, and the rest begun anew.
func (r *Runner) build(ctx context.Context, j Job, res *Result) error {
	adds := slices.Clone(j.Files)
	for {
		err := r.merge(ctx, adds, func(b *builder) error { return r.upload(ctx, j, b, res) })
		var bad *badFile
		if err != nil && errors.As(err, &bad) && (errors.Is(err, chunk.ErrCorrupt) || errors.Is(err, chunk.ErrUnsupported) || errors.Is(err, storage.ErrNotFound)) {
			path := adds[bad.file].Path
			r.opts.Logger.Warn("no index is made of a file", "table", r.log.Root(), "file", path, "err", err)
			res.Skipped = append(res.Skipped, path)
			adds = slices.Delete(adds, bad.file, bad.file+1)
			res.Segments, res.Bytes, res.Series = nil, 0, 0 // orphans
			continue
		}
		if n := len(res.Segments); n > 1 {
			for i := range res.Segments {
				res.Segments[i].Part, res.Segments[i].Parts = i, n
			}
		}
		return err
	}
}

// merge makes the segments of these files, and calls full with each.
func (r *Runner) merge(ctx context.Context, adds []*action.Add, full func(*builder) error) error {
	files, open, err := r.openFiles(ctx, adds)
	if err != nil {
		return err
	}
	b := newBuilder(files)
	var queue runQueue
	defer func() {
		for _, c := range queue {
			c.stop()
		}
	}()
	for i, f := range open {
		next, stop := iter.Pull2(f.Runs(ctx))
		c := &runCursor{file: i, next: next, stop: stop}
		queue = append(queue, c)
		if err := c.advance(); err != nil {
			return err
		}
	}
	queue = slices.DeleteFunc(queue, func(c *runCursor) bool { return c.done })
	heap.Init(&queue)
	for len(queue) > 0 {
		var runs []where
		l, id := queue[0].run.Labels, queue[0].run.ID
		for len(queue) > 0 && series.Compare(queue[0].run.Labels, l, queue[0].run.ID, id) == 0 {
			c := queue[0]
			runs = append(runs, where{c.file, c.run.RowGroup, c.run.First, c.run.Rows})
			if err := c.advance(); err != nil {
				return err
			}
			if c.done {
				c.stop()
				heap.Pop(&queue)
			} else {
				heap.Fix(&queue, 0)
			}
		}
		if b.total > 0 && b.memory() >= r.opts.SegmentBytes {
			if err := full(b); err != nil {
				return err
			}
			b = newBuilder(files)
		}
		b.add(l, id, runs)
	}
	return full(b)
}

// openFiles opens the files of a job.
func (r *Runner) openFiles(ctx context.Context, adds []*action.Add) ([]indexed, []*chunk.File, error) {
	files := make([]indexed, len(adds))
	open := make([]*chunk.File, len(adds))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(r.opts.Reads)
	for i, a := range adds {
		g.Go(func() error {
			key, err := r.log.Key(a.Path)
			if err != nil {
				return err
			}
			f, err := chunk.Open(gctx, chunk.StoreSource(r.log.Store(), key), a.Size)
			if err != nil {
				return &badFile{i, err}
			}
			open[i] = f
			files[i] = indexed{path: a.Path, size: a.Size, identity: f.IdentityBytes()}
			for n, rg := range f.RowGroups() {
				if n == 0 {
					files[i].time = rg.Time
				}
				files[i].time = files[i].time.Union(rg.Time)
			}
			return nil
		})
	}
	return files, open, g.Wait()
}

// runCursor stands on a run of a file.
type runCursor struct {
	file int
	next func() (chunk.Run, error, bool)
	stop func()
	run  chunk.Run
	done bool
}

func (c *runCursor) advance() error {
	run, err, ok := c.next()
	switch {
	case err != nil:
		return &badFile{c.file, err}
	case !ok:
		c.done = true
		return nil
	case c.run.Rows > 0 && series.Compare(c.run.Labels, run.Labels, c.run.ID, run.ID) > 0:
		return &badFile{c.file, fmt.Errorf("%w: series out of order", chunk.ErrCorrupt)}
	}
	c.run = run
	return nil
}

// runQueue orders cursors by series, then by file.
type runQueue []*runCursor

func (q runQueue) Len() int { return len(q) }
func (q runQueue) Less(i, j int) bool {
	a, b := q[i], q[j]
	if c := series.Compare(a.run.Labels, b.run.Labels, a.run.ID, b.run.ID); c != 0 {
		return c < 0
	}
	return a.file < b.file
}
func (q runQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *runQueue) Push(v any)   { *q = append(*q, v.(*runCursor)) }
func (q *runQueue) Pop() any {
	old := *q
	last := old[len(old)-1]
	*q = old[:len(old)-1]
	return last
}
