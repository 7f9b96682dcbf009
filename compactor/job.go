package compactor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/internal/merge"
	"cardinalsin/lease"
	"cardinalsin/series"
	"cardinalsin/storage"
	"cardinalsin/txlog"
)

// claimTTL is how long a claim outlives its process. A job renews it every
// third of that.
const claimTTL = time.Minute

// Result is what a job did.
type Result struct {
	Job     Job
	Version action.Version // of the swap
	Path    string         // of the output
	RowsIn  int64
	Rows    int64 // in the output: fewer where inputs held the same sample
	Bytes   int64 // of the output
}

// RunJob rewrites the job's inputs. When it returns nil the swap is committed.
// It keeps the inputs and the output in memory as they are encoded, so about
// twice Policy.TargetBytes, and a row group of each input decoded.
//
// Errors: lease.ErrClaimHeld; those that wrap txlog.ErrConflict, after which
// to plan anew (ErrFilesRemoved: others were first); chunk.ErrCorrupt and
// ErrInputMissing, which name the file and keep it out of later plans;
// storage.ErrUnknownOutcome. Unless the swap was committed, the table is as it
// was, and vacuum finds what was uploaded.
func (r *Runner) RunJob(ctx context.Context, j Job) (Result, error) {
	res := Result{Job: j}
	err := r.claimed(ctx, j, func(ctx context.Context) error { return r.rewrite(ctx, j, &res) })
	if err != nil {
		err = fmt.Errorf("compact %s of shard %s: %w", j.Date, j.Shard, err)
	}
	if r.opts.Events.CompactEnd != nil {
		r.opts.Events.CompactEnd(j, res, err)
	}
	return res, err
}

// claimed runs work under the job's claim, which it renews meanwhile. A claim
// that is lost ends the work: somebody else does it.
func (r *Runner) claimed(ctx context.Context, j Job, work func(context.Context) error) error {
	if r.opts.NoClaims {
		return work(ctx)
	}
	key := r.log.Root() + "/_cardinal/leases/" + j.Key() + ".json"
	unreleased, err := lease.Work(ctx, r.log.Store(), key, r.holder, claimTTL, lease.Options{Now: r.log.Now}, work)
	if unreleased != nil {
		r.opts.Logger.Warn("claim is left to expire", "key", j.Key(), "err", unreleased)
	}
	return err
}

// rewrite reads, merges, uploads and swaps.
func (r *Runner) rewrite(ctx context.Context, j Job, res *Result) error {
	inputs, err := r.readInputs(ctx, j)
	if err != nil {
		return err
	}
	layout, err := chunk.LayoutOf(j.base.Schema())
	if err != nil {
		return err
	}
	out, err := encode(ctx, r.opts.Chunk, layout, inputs)
	if err != nil {
		return r.blame(err)
	}
	if res.RowsIn, err = checkRows(inputs, out); err != nil {
		return err
	}
	res.Rows, res.Bytes = out.Rows, int64(len(out.Data))
	id, err := uuid.NewV7()
	if err != nil {
		return fmt.Errorf("name the output: %w", err)
	}
	res.Path = fmt.Sprintf("%s=%s/%s=%s/%s.parquet", chunk.ColumnDate, j.Date, chunk.ColumnShard, j.Shard, id)
	key, err := r.log.Key(res.Path)
	if err != nil {
		return err
	}
	began := r.log.Now()
	if _, err := r.log.Store().Put(ctx, key, bytes.NewReader(out.Data)); err != nil {
		return fmt.Errorf("upload %s: %w", res.Path, err)
	}
	snap, err := r.swap(ctx, j, inputs, out, res.Path, began)
	if err != nil {
		return err
	}
	res.Version = snap.Version()
	return nil
}

// input is a file in memory.
type input struct {
	add  *action.Add
	tags chunk.Tags
	rank merge.Rank
	file *chunk.File
}

// readInputs fetches the inputs whole, under a pin, and checks them: every
// byte against the file's seal, the number of rows against the log.
func (r *Runner) readInputs(ctx context.Context, j Job) ([]input, error) {
	hold, err := r.hold(ctx, j)
	if err != nil {
		return nil, err
	}
	if hold != nil {
		defer hold.Release()
	}
	inputs := make([]input, len(j.Inputs))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(r.opts.Reads)
	for i, a := range j.Inputs {
		g.Go(func() (err error) {
			inputs[i], err = r.readInput(gctx, j, a)
			return err
		})
	}
	err = g.Wait()
	// Without the pin a missing file says nothing, and neither does one that
	// was there: vacuum is free to take the next.
	if hold != nil {
		if herr := hold.Check(); herr != nil {
			return nil, errors.Join(herr, err)
		}
	}
	return inputs, r.blame(err)
}

// hold pins the job's version and then makes sure that vacuum has not passed
// it (log-protocol 5).
func (r *Runner) hold(ctx context.Context, j Job) (*lease.Hold, error) {
	if r.pins == nil {
		return nil, nil
	}
	hold, err := r.pins.Hold(ctx, int64(j.Version()))
	if err != nil {
		return nil, err
	}
	head, err := r.log.Snapshot(ctx, txlog.Latest())
	if err != nil {
		hold.Release()
		return nil, err
	}
	oldest, err := head.Watermark()
	if err == nil && j.Version() < oldest {
		// The inputs may well be live still, in a version that can be pinned.
		err = fmt.Errorf("%w: %w", txlog.ErrConflict, &txlog.VacuumedError{Version: j.Version(), Oldest: oldest})
	}
	if err != nil {
		hold.Release()
		return nil, err
	}
	return hold, nil
}

// badInput is an error for which one file is to blame.
type badInput struct {
	path string
	err  error
}

func (e *badInput) Error() string { return e.path + ": " + e.err.Error() }
func (e *badInput) Unwrap() error { return e.err }

// blame keeps a damaged file out of later plans of this process.
func (r *Runner) blame(err error) error {
	var bad *badInput
	if errors.As(err, &bad) && r.damaged(err) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.quarantine[bad.path] = true
	}
	return err
}

func (r *Runner) readInput(ctx context.Context, j Job, a *action.Add) (input, error) {
	in := input{add: a}
	fail := func(err error) (input, error) { return input{}, &badInput{path: a.Path, err: err} }
	tags, tagged, err := chunk.ParseTags(a.Tags)
	if err != nil || !tagged {
		return fail(fmt.Errorf("input has no tags of ours: %w", errors.Join(chunk.ErrTags, err)))
	}
	in.tags, in.rank = tags, merge.Rank{Order: tags.Order.Hi, Tie: a.Path}
	key, err := r.log.Key(a.Path)
	if err != nil {
		return fail(err)
	}
	data, _, err := r.log.Store().Get(ctx, key)
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return fail(fmt.Errorf("%w: %w", ErrInputMissing, err))
	case err != nil:
		return fail(err)
	case int64(len(data)) != a.Size:
		return fail(fmt.Errorf("%w: %d bytes, the log says %d", chunk.ErrCorrupt, len(data), a.Size))
	}
	if err := chunk.Verify(data); err != nil {
		return fail(err)
	}
	if in.file, err = chunk.Open(ctx, chunk.BytesSource(key, data), a.Size); err != nil {
		return fail(err)
	}
	if in.file.Rows() == 0 {
		return fail(fmt.Errorf("%w: no rows", chunk.ErrCorrupt))
	}
	stats, ok, err := action.ParseStats(a.Stats)
	if err != nil {
		return fail(err)
	}
	if ok && stats.NumRecords != in.file.Rows() {
		return fail(fmt.Errorf("%w: %d rows, the log says %d", chunk.ErrCorrupt, in.file.Rows(), stats.NumRecords))
	}
	if span := timeOf(in.file); span != tags.Time || span.Min.Date() != j.Date || span.Max.Date() != j.Date {
		return fail(fmt.Errorf("%w: rows of %v, the log says %v on %s", chunk.ErrCorrupt, span, tags.Time, j.Date))
	}
	return in, nil
}

// timeOf is the exact range of a file's timestamps; it has rows.
func timeOf(f *chunk.File) series.TimeRange {
	groups := f.RowGroups()
	span := groups[0].Time
	for _, g := range groups[1:] {
		span = span.Union(g.Time)
	}
	return span
}

// encode merges the inputs into one file.
func encode(ctx context.Context, opts chunk.Options, layout *chunk.Layout, inputs []input) (*chunk.Encoded, error) {
	var has chunk.Contents
	sources := make([]merge.Source, len(inputs))
	for i, in := range inputs {
		has = has.Union(in.file.Contents())
		rows := in.file.Select(ctx, series.Selector{Range: series.AllTime}, nil)
		sources[i] = merge.Source{Rank: in.rank, Series: func(yield func(merge.Series, error) bool) {
			for s, err := range rows {
				if err != nil {
					err = &badInput{path: in.add.Path, err: err}
				}
				if !yield(s, err) {
					return
				}
			}
		}}
	}
	enc := chunk.NewEncoder(opts, layout, has)
	for s, err := range merge.Sources(sources...) {
		if err != nil {
			return nil, fmt.Errorf("merge: %w", err)
		}
		if err := enc.Add(s); err != nil {
			return nil, fmt.Errorf("encode: %w", err)
		}
	}
	out, err := enc.Finish()
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	return out, nil
}

// checkRows is a last look before the swap. Each input holds a sample once, so
// the output has at least as many rows as the largest input, and at most as
// many as all; and its bounds cover exactly what theirs do.
func checkRows(inputs []input, out *chunk.Encoded) (total int64, err error) {
	most := int64(0)
	span := timeOf(inputs[0].file)
	for _, in := range inputs {
		total += in.file.Rows()
		most = max(most, in.file.Rows())
		span = span.Union(timeOf(in.file))
	}
	if out.Rows < most || out.Rows > total || out.Time != span {
		return total, fmt.Errorf("%w: %d rows in %v; %d inputs hold %d, the largest %d, in %v", ErrRowsChanged, out.Rows, out.Time, len(inputs), total, most, span)
	}
	return total, nil
}

// swap commits the output in the inputs' place.
func (r *Runner) swap(ctx context.Context, j Job, inputs []input, out *chunk.Encoded, path string, began time.Time) (*txlog.Snapshot, error) {
	stats, err := out.Stats.Encode()
	if err != nil {
		return nil, err
	}
	tags := chunk.Tags{Level: j.Level, Order: j.Order, Time: out.Time, Keys: out.Keys}
	for _, in := range inputs {
		tags.WAL = append(tags.WAL, in.tags.WAL...)
	}
	tags.WAL = chunk.MergeWAL(tags.WAL)
	add := action.Add{
		Path: path, PartitionValues: j.Inputs[0].PartitionValues, Size: int64(len(out.Data)),
		Stats: stats, Tags: tags.Encode(), DataChange: false,
	}
	live := j.Inputs
	for {
		tx := r.log.Begin(j.base, txlog.Operation{Name: "OPTIMIZE", Parameters: map[string]any{
			"date": j.Date.String(), "shard": string(j.Shard), "level": j.Level,
		}})
		for _, a := range live {
			tx.Remove(a.Tombstone(false)) // each is required to be live
		}
		tx.Add(add)
		tx.Require(
			txlog.UploadedSince(began, r.opts.MinOrphanAge/2),
			txlog.SchemaAllows(func(s *action.Schema) bool {
				layout, err := chunk.LayoutOf(s)
				return err == nil && out.Fits(layout)
			}),
		)
		if !r.rules.anyOrder {
			tx.Require(txlog.NoNewFiles(j.between))
		}
		// COMMIT POINT: before it the output is an orphan, after it the inputs
		// are tombstones.
		snap, err := tx.Commit(ctx)
		if !r.rules.patchConflict || !errors.Is(err, txlog.ErrFilesRemoved) {
			return snap, err
		}
		now, serr := r.log.Snapshot(ctx, txlog.Latest())
		if serr != nil {
			return nil, serr
		}
		live = slices.DeleteFunc(slices.Clone(live), func(a *action.Add) bool { _, ok := now.File(a.Key()); return !ok })
	}
}

// between reports whether a file stands among the inputs: merged without it,
// older inputs would outrank it.
func (j *Job) between(a *action.Add) bool {
	if a.PartitionValues != j.Inputs[0].PartitionValues {
		return false
	}
	tags, tagged, err := chunk.ParseTags(a.Tags)
	return err != nil || tagged && tags.Order.Lo <= j.Order.Hi && tags.Order.Hi >= j.Order.Lo
}

func sortedKeys(m map[string]bool) []string { return slices.Sorted(maps.Keys(m)) }
