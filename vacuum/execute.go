package vacuum

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"cardinalsin/action"
	"cardinalsin/txlog"
)

// Report says what a run did.
type Report struct {
	Start    action.Version // VACUUM START
	End      action.Version // VACUUM END; -1 if the run did not get there
	Earliest action.Version
	// Reached is how far the removes are dealt with now.
	Reached     action.Version
	Files       int // removed files that were deleted
	Orphans     int
	Segments    int // of the index
	LogObjects  int
	Bytes       int64 // of all of them, as far as known
	PinsRevoked int
	PinsDeleted int
	Duration    time.Duration
}

// String says it in one line, for people.
func (r Report) String() string {
	return fmt.Sprintf("deleted %d removed files, %d orphans and %d log objects, %d bytes in all; versions from %d on are intact",
		r.Files, r.Orphans, r.LogObjects, r.Bytes, int64(r.Earliest))
}

const (
	// startTries bounds how often the start gives way to other runs.
	startTries = 8
	// endTries likewise, for the end.
	endTries = 8
	// batch is how many objects are deleted before the next are begun; the
	// log goes in version order, batch by batch.
	batch = 256
)

// Execute runs vacuum with the plan's options: it commits the start, decides
// anew on what is there after it, deletes, and commits the end. What a crash
// or an error leaves, the next run finishes.
//
// Errors: txlog.ErrReadOnly, ErrSuperseded, txlog.ErrDomainChanged where
// other runs kept getting in between, action.ErrCorrupt, storage errors. The
// report is right also if there is an error.
func (p *Plan) Execute(ctx context.Context) (Report, error) {
	began := p.log.Now()
	run := &Plan{log: p.log, opts: p.opts, rules: p.rules}
	r := Report{Start: -1, End: -1}
	err := run.execute(ctx, &r)
	r.Duration = p.log.Now().Sub(began)
	if err != nil {
		err = fmt.Errorf("vacuum: %w", err)
	}
	if p.opts.Events.VacuumEnd != nil {
		p.opts.Events.VacuumEnd(r, err)
	}
	return r, err
}

func (p *Plan) execute(ctx context.Context, r *Report) error {
	start, begun, err := p.start(ctx)
	if err != nil {
		return err
	}
	r.Start = start.Version()
	err = p.collect(ctx, start, begun, true)
	r.PinsRevoked = p.revoked
	if err != nil {
		return err
	}
	r.Earliest, r.Reached = p.Earliest, p.Settled
	if err := p.delete(ctx, p.Files, &r.Files, &r.Bytes); err != nil {
		return fmt.Errorf("delete removed files: %w", err)
	}
	if err := p.delete(ctx, p.Orphans, &r.Orphans, &r.Bytes); err != nil {
		return fmt.Errorf("delete orphans: %w", err)
	}
	if err := p.delete(ctx, p.Segments, &r.Segments, &r.Bytes); err != nil {
		return fmt.Errorf("delete segments of the index: %w", err)
	}
	if err := p.delete(ctx, p.LogObjects, &r.LogObjects, &r.Bytes); err != nil {
		return fmt.Errorf("delete log objects: %w", err)
	}
	if r.PinsDeleted, err = p.dropPins(ctx); err != nil {
		return fmt.Errorf("delete dead pins: %w", err)
	}
	end, err := p.end(ctx, start, *r)
	if err != nil {
		return err
	}
	r.Reached, r.End = p.Reaches, end
	return nil
}

// start commits VACUUM START. It returns the snapshot at it, and a reading of
// the store's clock from before.
func (p *Plan) start(ctx context.Context) (*txlog.Snapshot, time.Time, error) {
	for try := 1; ; try++ {
		base, err := p.log.Snapshot(ctx, txlog.Latest())
		if err != nil {
			return nil, time.Time{}, err
		}
		begun, err := p.log.Store().Now(ctx)
		if err != nil {
			return nil, time.Time{}, fmt.Errorf("read the store's clock: %w", err)
		}
		if err := p.aim(ctx, base, begun); err != nil {
			return nil, time.Time{}, err
		}
		if p.rules.silent {
			return base, begun, nil
		}
		tx := p.log.Begin(base, txlog.Operation{
			Name: "VACUUM START",
			Parameters: map[string]any{
				"retentionMillis": p.opts.retain().Milliseconds(),
				"full":            p.opts.Full,
				"horizon":         int64(p.Horizon),
			},
		})
		tx.SetDomain(txlog.WatermarkDomain, txlog.EncodeWatermark(p.Watermark))
		if !p.rules.markBlind {
			tx.Require(txlog.DomainUnchanged(txlog.WatermarkDomain))
		}
		s, err := tx.Commit(ctx)
		if err == nil {
			return s, begun, nil
		}
		if !errors.Is(err, txlog.ErrDomainChanged) || try == startTries {
			return nil, time.Time{}, err
		}
	}
}

// end commits VACUUM END with the figures and how far the run came. Where
// another run has recorded more meanwhile, that stands.
func (p *Plan) end(ctx context.Context, start *txlog.Snapshot, r Report) (action.Version, error) {
	base := start
	for try := 1; ; try++ {
		through, _, err := base.Vacuumed()
		if err != nil {
			return -1, err
		}
		tx := p.log.Begin(base, txlog.Operation{Name: "VACUUM END", Metrics: r.metrics(), Parameters: map[string]any{
			"startVersion": int64(r.Start), "earliest": int64(p.Earliest),
		}})
		if through < p.Reaches {
			tx.SetDomain(txlog.VacuumDomain, txlog.EncodeVacuumed(p.Reaches, p.reachedAt))
			tx.Require(txlog.DomainUnchanged(txlog.VacuumDomain))
		}
		s, err := tx.Commit(ctx)
		if err == nil {
			return s.Version(), nil
		}
		if !errors.Is(err, txlog.ErrDomainChanged) || try == endTries {
			return -1, err
		}
		if base, err = p.log.Snapshot(ctx, txlog.Latest()); err != nil {
			return -1, err
		}
	}
}

func (r Report) metrics() map[string]string {
	return map[string]string{
		"numDeletedFiles":      strconv.Itoa(r.Files),
		"numDeletedOrphans":    strconv.Itoa(r.Orphans),
		"numDeletedSegments":   strconv.Itoa(r.Segments),
		"numDeletedLogObjects": strconv.Itoa(r.LogObjects),
		"numDeletedBytes":      strconv.FormatInt(r.Bytes, 10),
		"numRevokedPins":       strconv.Itoa(r.PinsRevoked),
	}
}

// delete removes the objects in order, batch by batch, and counts those that
// are known to be gone. Deleting what is gone already is no error.
func (p *Plan) delete(ctx context.Context, objects []Object, n *int, bytes *int64) error {
	for len(objects) > 0 {
		b := objects[:min(batch, len(objects))]
		objects = objects[len(b):]
		errs := make([]error, len(b))
		g := errgroup.Group{}
		g.SetLimit(p.opts.Parallel)
		for i := range b {
			g.Go(func() error {
				if errs[i] = ctx.Err(); errs[i] == nil {
					errs[i] = p.log.Store().Delete(ctx, b[i].Key)
				}
				return errs[i]
			})
		}
		err := g.Wait()
		for i := range b {
			if errs[i] == nil {
				*n++
				*bytes += b[i].Bytes
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}
