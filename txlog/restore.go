package txlog

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"cardinalsin/action"
	"cardinalsin/shard"
	"cardinalsin/storage"
)

const (
	// maxRestoreActions bounds the one version that a restore is: 250,000
	// file actions are some 150 MB of JSON in one request.
	maxRestoreActions = 250_000
	// restoreChecks is how many files are looked for at once.
	restoreChecks = 32
	// maxRestorePlans bounds how often a restore is planned anew.
	maxRestorePlans = 8
)

// ErrNotRestorable: the version's files cannot come back as they were; the
// error says why. Planning anew does not help.
var ErrNotRestorable = errors.New("version cannot be restored")

// errUnchecked: a file would have to come back that was live when the restore
// was planned, so nobody has made sure that it is there.
var errUnchecked = fmt.Errorf("%w: a file of the version to restore was removed meanwhile", ErrConflict)

// Restore is a plan to give the table the files of an earlier version again,
// as a new version. Files come and go; nothing else goes back:
//
//   - The applications' sequence numbers stay. What was committed after the
//     version is taken out on purpose, and no writer sends it again; what a
//     writer has acknowledged and not yet committed comes after the restore.
//   - The columns stay, so that live writers may go on. Rows of old have no
//     value in newer columns.
//   - The shard map, the watermark and every other domain stay. A version of
//     another shard map cannot be restored: its files belong to shards that
//     are no more.
type Restore struct {
	To action.Version // the version whose files are to come back
	// Base is the version that Changes lead from, and after Commit the one
	// just before the new version.
	Base    action.Version
	Changes FileChanges

	log     *Log
	target  *Snapshot
	head    *Snapshot           // the version planned on
	checked map[action.Key]bool // files that are there
	used    bool                // Commit was called

	// What the transaction came to follow; the commit loop's until Commit has
	// returned a version.
	followed struct {
		base    action.Version
		changes FileChanges
	}
}

// PlanRestore finds out what it takes to restore version v, and changes
// nothing. It makes sure that each file which is to come back is there. Cost:
// a cold load of v, and a request of one byte for each of these files.
//
// Errors: ErrVersionNotFound, ErrVersionVacuumed, ErrReadOnly, ErrAppendOnly,
// ErrNotRestorable; action.ErrCorrupt, also for a file that is missing; storage
// errors.
func (l *Log) PlanRestore(ctx context.Context, v action.Version) (*Restore, error) {
	r := &Restore{To: v, log: l, checked: map[action.Key]bool{}}
	if err := r.plan(ctx); err != nil {
		return nil, fmt.Errorf("restore version %d: %w", int64(v), err)
	}
	return r, nil
}

// plan makes the plan for the latest version.
func (r *Restore) plan(ctx context.Context) error {
	head, err := r.log.Snapshot(ctx, Latest())
	if err != nil {
		return err
	}
	if r.target == nil {
		if r.target, err = r.log.Snapshot(ctx, AtVersion(r.To)); err != nil {
			return err
		}
	}
	if err := checkWritable(head); err != nil {
		return err
	}
	if err := readable(r.To).check(nil, head, r.log.Now()); err != nil {
		return err
	}
	c, err := r.changes(head)
	if err != nil {
		return err
	}
	if len(c.Removed) > 0 && appendOnly(head) {
		return fmt.Errorf("%w: %d files would be removed", ErrAppendOnly, len(c.Removed))
	}
	if err := r.look(ctx, c.Added); err != nil {
		return err
	}
	r.head, r.Base, r.Changes = head, head.Version(), c
	return nil
}

// changes lead from head's files to the target's, unless something forbids
// that.
func (r *Restore) changes(head *Snapshot) (FileChanges, error) {
	was, had := r.target.Domain(shard.Domain)
	is, has := head.Domain(shard.Domain)
	if was != is || had != has {
		return FileChanges{}, fmt.Errorf("%w: the shard map is another one since", ErrNotRestorable)
	}
	if r.target.Metadata().ID != head.Metadata().ID || !slices.Equal(r.target.Metadata().PartitionColumns, head.Metadata().PartitionColumns) {
		return FileChanges{}, fmt.Errorf("%w: it is of another table or partitioned in another way", ErrNotRestorable)
	}
	for i := range r.target.Schema().Fields {
		f := &r.target.Schema().Fields[i]
		if have := head.Schema().Field(f.Name); have == nil || string(have.Type) != string(f.Type) {
			return FileChanges{}, fmt.Errorf("%w: column %q is gone or has another type since", ErrNotRestorable, f.Name)
		}
	}
	c := CompareFiles(head, r.target)
	if n := len(c.Added) + len(c.Removed); n > maxRestoreActions {
		return FileChanges{}, fmt.Errorf("%w: it takes %d file actions, one version holds at most %d", ErrNotRestorable, n, maxRestoreActions)
	}
	return c, nil
}

// look makes sure that files are there, up to their last byte.
func (r *Restore) look(ctx context.Context, files []*action.Add) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(restoreChecks)
	for _, a := range files {
		if r.checked[a.Key()] {
			continue
		}
		g.Go(func() error {
			key, err := r.log.Key(a.Path)
			if err != nil {
				return err
			}
			_, err = r.log.Store().GetRange(gctx, key, a.Size-1, 1)
			if errors.Is(err, storage.ErrNotFound) || errors.Is(err, storage.ErrInvalidRange) {
				return r.missing(ctx, a, err)
			}
			if err != nil {
				return fmt.Errorf("look for %s: %w", a.Path, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, a := range files {
		r.checked[a.Key()] = true
	}
	return nil
}

// missing says why a file is not there: vacuum may have passed the version
// since it was opened. Else nobody may have taken the file.
func (r *Restore) missing(ctx context.Context, a *action.Add, cause error) error {
	head, err := r.log.Snapshot(ctx, Latest())
	if err != nil {
		return err
	}
	if err := readable(r.To).check(nil, head, r.log.Now()); err != nil {
		return err
	}
	return fmt.Errorf("%w: file %s of %d bytes is not there: %w", action.ErrCorrupt, a.Path, a.Size, cause)
}

// Commit makes the plan a version, whatever others commit meanwhile: what came
// goes, what went comes back. It is called once, by one goroutine. Cost: one
// conditional put, as any commit; more lookups if files of the version were
// removed since the plan.
//
// Errors: those of PlanRestore and of Transaction.Commit; ErrConflict if others
// kept removing the version's files faster than they can be looked up.
func (r *Restore) Commit(ctx context.Context) (*Snapshot, error) {
	if r.used {
		return nil, fmt.Errorf("restore version %d: %w", int64(r.To), ErrCommitted)
	}
	r.used = true
	for plans := 1; ; plans++ {
		t := r.log.Begin(r.head, Operation{Name: "RESTORE", Parameters: map[string]any{"version": int64(r.To)}})
		t.restore = r
		// What vacuum may have deleted must not be named again: a vacuum that
		// could has committed a watermark above To before it listed anything.
		t.Require(readable(r.To))
		// COMMIT POINT: before it nothing has changed.
		s, err := t.Commit(ctx)
		if err == nil {
			r.Base, r.Changes = r.followed.base, r.followed.changes
		}
		if !errors.Is(err, errUnchecked) || plans == maxRestorePlans {
			return s, err
		}
		if err := r.plan(ctx); err != nil {
			return nil, fmt.Errorf("restore version %d: %w", int64(r.To), err)
		}
	}
}

// follow fills in the actions that bring the target's files back after head.
func (r *Restore) follow(head *Snapshot, c *action.Commit) error {
	changes, err := r.changes(head)
	if err != nil {
		return err
	}
	for _, a := range changes.Added {
		if !r.checked[a.Key()] {
			return fmt.Errorf("%w: %s", errUnchecked, a.Path)
		}
		back := *a
		back.DataChange = true
		c.Adds = append(c.Adds, back)
	}
	for _, a := range changes.Removed {
		c.Removes = append(c.Removes, a.Tombstone(true))
	}
	r.followed.base, r.followed.changes = head.Version(), changes
	return nil
}
