package check

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"reflect"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"cardinalsin/action"
	"cardinalsin/checkpoint"
	"cardinalsin/storage"
	"cardinalsin/txlog"
)

// history replays the log version by version, and compares every checkpoint
// and checksum with what that gives.
func (c *checker) history(ctx context.Context, head *txlog.Snapshot) error {
	const tries = 2 // the log may be trimmed while it is read
	for try := 1; ; try++ {
		n := len(c.findings)
		damaged, err := c.replay(ctx, head)
		if err != nil {
			return err
		}
		if !damaged || try == tries {
			return nil
		}
		c.findings = c.findings[:n]
	}
}

// replay reports whether it found commits damaged or missing.
func (c *checker) replay(ctx context.Context, head *txlog.Snapshot) (damaged bool, err error) {
	listing, err := c.log.List(ctx)
	if err != nil {
		return false, err
	}
	base, damaged, ok := c.base(listing, head)
	if !ok {
		return true, nil
	}
	var expected []*txlog.Snapshot // whose checksums are still to be compared
	flush := func() error {
		err := c.checksums(ctx, expected)
		expected = expected[:0]
		return err
	}
	var last *txlog.Snapshot
	compactions := compactions{checker: c, listing: listing, got: map[txlog.Compaction]*txlog.Snapshot{}}
	if base == nil {
		if err := compactions.begin(ctx, nil, 0); err != nil {
			return damaged, err
		}
	}
	err = c.log.Walk(ctx, base, head.Version(), func(s *txlog.Snapshot) error {
		if last != nil && !last.Time().Before(s.Time()) && !last.Time().IsZero() {
			c.found(KindLog, c.log.CommitKey(s.Version()), "its time %v does not come after the version before, %v", s.Time().Format(time.RFC3339Nano), last.Time().Format(time.RFC3339Nano))
		}
		// The walk's own base has nothing to be compared with.
		if last != nil || base == nil {
			if err := c.checkpoints(ctx, listing, s); err != nil {
				return err
			}
		}
		if err := compactions.at(ctx, s); err != nil {
			return err
		}
		last = s
		if _, has := slices.BinarySearch(listing.Checksums, s.Version()); has {
			if expected = append(expected, s); len(expected) == 4*c.opts.Parallel {
				return flush()
			}
		}
		return nil
	})
	if isDamage(err) {
		c.found(KindLog, c.log.Dir(), "%v", err)
		return true, flush()
	}
	if err != nil {
		return damaged, err
	}
	if d := head.FirstDifference(last); d != "" {
		c.found(KindLog, c.log.CommitKey(head.Version()), "what this process knows differs from a replay: %s", d)
	}
	return damaged, flush()
}

// base chooses where to begin: at version 0, or at the oldest checkpoint from
// which all commits are there. Commits up to where the last vacuum settled may
// be gone, whole or in part; each later one must be there, and so must a base
// for the oldest version that may be read.
func (c *checker) base(l *txlog.Listing, head *txlog.Snapshot) (from *checkpoint.Ref, damaged, ok bool) {
	settled, _, err := head.Vacuumed()
	if err != nil {
		settled = -1 // found by domains
	}
	have := map[action.Version]bool{}
	for _, v := range l.Commits {
		have[v] = true
	}
	first := head.Version() + 1 // of the commits that lead to the head without a gap
	for have[first-1] {
		first--
	}
	for v := max(settled+1, 0); v < first; v++ {
		if !have[v] {
			c.found(KindLog, c.log.CommitKey(v), "the commit is missing")
			damaged = true
		}
	}
	if first == 0 {
		return nil, damaged, true
	}
	for i := range l.Checkpoints {
		if ref := &l.Checkpoints[i]; ref.Version >= first-1 && ref.Version <= head.Version() {
			if mark, err := head.Watermark(); err == nil && ref.Version > mark && !damaged {
				c.found(KindLog, c.log.Dir(), "version %d, the oldest that may be read, cannot be rebuilt: the oldest base is the checkpoint at %d", int64(mark), int64(ref.Version))
			}
			return ref, damaged, true
		}
	}
	c.found(KindLog, c.log.Dir(), "there is neither commit 0 nor a checkpoint from which all later commits are there")
	return nil, true, false
}

// checkpoints compares every checkpoint of a version with the replay.
func (c *checker) checkpoints(ctx context.Context, l *txlog.Listing, want *txlog.Snapshot) error {
	i, _ := slices.BinarySearchFunc(l.Checkpoints, want.Version(), func(r checkpoint.Ref, v action.Version) int { return int(r.Version - v) })
	for ; i < len(l.Checkpoints) && l.Checkpoints[i].Version == want.Version(); i++ {
		ref := &l.Checkpoints[i]
		got, err := c.log.Rebuild(ctx, ref, ref.Version)
		switch {
		case isDamage(err):
			c.found(KindCheckpoint, ref.Keys[0], "%v", err)
			continue
		case err != nil:
			return err
		}
		if d := want.FirstDifference(got); d != "" {
			c.found(KindCheckpoint, ref.Keys[0], "a replay and it differ: %s", d)
		}
		c.tombstones(ref.Keys[0], want, got)
	}
	return nil
}

// compactions compares log compactions with the commits that they stand for.
type compactions struct {
	*checker
	listing *txlog.Listing
	got     map[txlog.Compaction]*txlog.Snapshot // by those whose range is being walked
}

// begin replays the compactions that may follow base, which is just before
// version first.
func (c *compactions) begin(ctx context.Context, base *txlog.Snapshot, first action.Version) error {
	i, _ := slices.BinarySearchFunc(c.listing.Compactions, first, func(r txlog.Compaction, v action.Version) int { return int(r.First - v) })
	for ; i < len(c.listing.Compactions) && c.listing.Compactions[i].First == first; i++ {
		r := c.listing.Compactions[i]
		s, err := c.log.ReplayCompaction(ctx, base, r)
		if isDamage(err) {
			c.found(KindLog, c.log.CompactionKey(r), "%v", err)
			continue
		}
		if err != nil && !errors.Is(err, storage.ErrNotFound) {
			return err
		}
		if err == nil { // else trimmed meanwhile
			c.got[r] = s
		}
	}
	return nil
}

// at compares those that end at a version, and begins those that follow it.
func (c *compactions) at(ctx context.Context, want *txlog.Snapshot) error {
	for r, got := range c.got {
		if r.Last != want.Version() {
			continue
		}
		delete(c.got, r)
		if d := want.FirstDifference(got); d != "" {
			c.found(KindLog, c.log.CompactionKey(r), "the commits and it differ: %s", d)
		} else if d := differentTombstones(want, got); d != "" {
			c.found(KindLog, c.log.CompactionKey(r), "the commits and it differ: %s", d)
		}
	}
	return c.begin(ctx, want, want.Version()+1)
}

// differentTombstones names the first tombstone in which two snapshots
// differ, "" for none.
func differentTombstones(want, got *txlog.Snapshot) string {
	next, stop := iter.Pull(got.Tombstones())
	defer stop()
	for a := range want.Tombstones() {
		b, ok := next()
		if !ok || a.Key() != b.Key() || a.DeletionTimestamp != b.DeletionTimestamp {
			return fmt.Sprintf("tombstone of %s", a.Path)
		}
	}
	if b, ok := next(); ok {
		return fmt.Sprintf("tombstone of %s", b.Path)
	}
	return ""
}

// tombstones checks those of a checkpoint: it may have dropped old ones, but
// has none that the replay lacks, and none of a live file.
func (c *checker) tombstones(object string, want, got *txlog.Snapshot) {
	known := map[action.Key]int64{}
	for r := range want.Tombstones() {
		known[r.Key()] = r.DeletionTimestamp
	}
	for r := range got.Tombstones() {
		if _, live := got.File(r.Key()); live {
			c.found(KindTombstone, object, "%s is live and removed at once", r.Path)
		} else if at, ok := known[r.Key()]; !ok || at != r.DeletionTimestamp {
			c.found(KindTombstone, object, "%s is removed at %d; a replay says %d", r.Path, r.DeletionTimestamp, at)
		}
	}
}

// checksums compares version checksums with the snapshots of a replay.
func (c *checker) checksums(ctx context.Context, want []*txlog.Snapshot) error {
	wrong := make([]string, len(want))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(c.opts.Parallel)
	for i, s := range want {
		g.Go(func() error {
			sum, ok, err := c.log.ReadChecksum(gctx, s.Version())
			if err == nil && !ok {
				wrong[i] = "it is damaged"
			} else if err == nil {
				wrong[i] = differs(s, sum)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for i, s := range want {
		if wrong[i] != "" {
			c.found(KindChecksum, c.log.Dir()+"/"+s.Version().String()+".crc", "%s", wrong[i])
		}
	}
	return nil
}

// differs says in which respect a checksum is not what a replay gives.
func differs(s *txlog.Snapshot, sum txlog.Checksum) string {
	if sum.NumFiles != int64(s.NumFiles()) || sum.TableSizeBytes != s.Bytes() {
		return fmt.Sprintf("it says %d files of %d bytes, a replay gives %d of %d", sum.NumFiles, sum.TableSizeBytes, s.NumFiles(), s.Bytes())
	}
	if sum.InCommitTimestamp != nil && *sum.InCommitTimestamp != s.Time().UnixMilli() {
		return fmt.Sprintf("it says time %d, the commit %d", *sum.InCommitTimestamp, s.Time().UnixMilli())
	}
	if sum.SetTransactions != nil {
		txns := slices.Collect(s.Transactions())
		slices.SortFunc(sum.SetTransactions, func(a, b action.SetTransaction) int { return compare(a.AppID, b.AppID) })
		if !slices.Equal(txns, sum.SetTransactions) {
			return fmt.Sprintf("it says transactions %v, a replay gives %v", sum.SetTransactions, txns)
		}
	}
	if sum.DomainMetadata != nil {
		domains := map[string]string{}
		for _, d := range sum.DomainMetadata {
			domains[d.Domain] = d.Configuration
		}
		want := map[string]string{}
		for d, conf := range s.Domains() {
			want[d] = conf
		}
		if !reflect.DeepEqual(domains, want) {
			return fmt.Sprintf("it says domains %v, a replay gives %v", domains, want)
		}
	}
	if sum.Protocol != nil && !reflect.DeepEqual(sum.Protocol, s.Protocol()) {
		return fmt.Sprintf("it says protocol %+v, a replay gives %+v", sum.Protocol, s.Protocol())
	}
	if sum.Metadata != nil && (sum.Metadata.ID != s.Metadata().ID || sum.Metadata.SchemaString != s.Metadata().SchemaString) {
		return "its metadata is not what a replay gives"
	}
	return ""
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// domains checks what readers and vacuum go by, and the head's tombstones.
func (c *checker) domains(_ context.Context, head *txlog.Snapshot) error {
	mark, err := head.Watermark()
	if err != nil {
		c.found(KindDomain, txlog.WatermarkDomain, "%v", err)
	} else if mark > head.Version() {
		c.found(KindDomain, txlog.WatermarkDomain, "version %d may be read at the earliest, and %d is the latest", int64(mark), int64(head.Version()))
	}
	if through, _, verr := head.Vacuumed(); verr != nil {
		c.found(KindDomain, txlog.VacuumDomain, "%v", verr)
	} else if err == nil && through > mark {
		// Vacuum raises the watermark before it deletes anything.
		c.found(KindDomain, txlog.VacuumDomain, "files are deleted up to version %d, but %d may still be read", int64(through), int64(mark))
	}
	for r := range head.Tombstones() {
		if at := time.UnixMilli(r.DeletionTimestamp); at.After(head.Time()) {
			c.found(KindTombstone, r.Path, "removed at %v, after the latest version's %v", at.UTC().Format(time.RFC3339Nano), head.Time().Format(time.RFC3339Nano))
		}
	}
	return nil
}
