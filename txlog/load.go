package txlog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"cardinalsin/action"
	"cardinalsin/checkpoint"
	"cardinalsin/storage"
)

const (
	// latest stands for "no upper bound" where a version is asked for.
	latest = action.Version(1<<63 - 1)
	// refreshGap is how many versions a refresh fetches one by one before it
	// lists: a listing page holds 1,000 keys and costs about ten times a GET.
	refreshGap = 64
	// fetchers is the number of commits fetched at once on a cold load.
	fetchers = 16
)

// segment is what a listing of the log shows, from some version on.
type segment struct {
	commits     []commitObject   // ascending
	compactions []compactObject  // ascending by first, then last version
	checkpoints []checkpoint.Ref // newest first
	checksums   []action.Version // ascending
}

type commitObject struct {
	version action.Version
	size    int64 // bytes
}

type compactObject struct {
	Compaction
	size int64 // bytes
}

func (s *segment) has(v action.Version) bool {
	_, ok := s.find(v)
	return ok
}

func (s *segment) find(v action.Version) (int, bool) {
	return slices.BinarySearchFunc(s.commits, v, func(o commitObject, v action.Version) int { return cmp.Compare(o.version, v) })
}

// last is the greatest version of any commit or checkpoint, -1 for none.
func (s *segment) last() action.Version {
	v := action.Version(-1)
	if n := len(s.commits); n > 0 {
		v = s.commits[n-1].version
	}
	if len(s.checkpoints) > 0 {
		v = max(v, s.checkpoints[0].Version)
	}
	return v
}

// list reads the log's listing for versions greater than after and at most
// upTo.
func (l *Log) list(ctx context.Context, after, upTo action.Version) (*segment, error) {
	prefix := l.Dir() + "/"
	start := ""
	if after >= 0 {
		start = prefix + after.String() + "~" // past every object of that version
	}
	seg := &segment{}
	var objs []storage.ObjectInfo
	for o, err := range l.store.List(ctx, prefix, start) {
		if err != nil {
			return nil, fmt.Errorf("list the log: %w", err)
		}
		name := o.Key[len(prefix):]
		if name[0] > '9' {
			break // "_last_checkpoint", "_sidecars/…" sort after the digits
		}
		if len(name) < 20 {
			continue
		}
		v, ok := action.ParseVersion(name[:20])
		if !ok {
			continue
		}
		if v > upTo {
			break
		}
		switch {
		case name[20:] == ".json":
			seg.commits = append(seg.commits, commitObject{v, o.Size})
		case name[20:] == ".crc":
			seg.checksums = append(seg.checksums, v)
		case strings.HasSuffix(name, compactedSuffix):
			if c, ok := parseCompaction(name); ok && c.Last <= upTo {
				seg.compactions = append(seg.compactions, compactObject{c, o.Size})
			}
		case strings.Contains(name, ".checkpoint."):
			objs = append(objs, o)
		}
	}
	seg.checkpoints = checkpoint.FromListing(objs)
	return seg, nil
}

// listBack is how many versions before the one wanted are listed first, where
// no hint helps: with their checksums they fit one page of 1,000 keys.
const listBack = 450

// load builds the snapshot at version upTo, or the latest one. It lists from
// the hint, if there is a usable one, or from a little before upTo, and takes
// the newest checkpoint that it can read and the commits after it; a damaged
// checkpoint costs a fallback to the one before, at last to version 0.
func (l *Log) load(ctx context.Context, upTo action.Version) (*Snapshot, error) {
	hint, ok, err := checkpoint.ReadHint(ctx, l.store, l.Dir())
	if err != nil {
		return nil, fmt.Errorf("read the checkpoint hint: %w", err)
	}
	after := action.Version(-1)
	if ok && 0 < hint.Version && hint.Version <= upTo {
		after = hint.Version - 1
	} else if upTo != latest {
		after = max(upTo-listBack, 0) - 1
	}
	if after >= 0 {
		seg, err := l.list(ctx, after, upTo)
		if err != nil {
			return nil, err
		}
		if len(seg.checkpoints) > 0 {
			if s, err := l.rebuild(ctx, seg, upTo); err == nil || !isCorrupt(err) && !errors.Is(err, ErrVersionVacuumed) && !errors.Is(err, ErrNotTable) {
				return s, err
			}
		}
		// The hint led nowhere; it is never trusted over the listing.
	}
	seg, err := l.list(ctx, -1, upTo)
	if err != nil {
		return nil, err
	}
	return l.rebuild(ctx, seg, upTo)
}

// rebuild replays what a listing shows into the snapshot at upTo, a version
// that is known to have been.
func (l *Log) rebuild(ctx context.Context, seg *segment, upTo action.Version) (*Snapshot, error) {
	target := upTo
	if upTo == latest {
		if target = seg.last(); target < 0 {
			return nil, fmt.Errorf("%s: %w", l.Dir(), ErrNotTable)
		}
	}
	var damage []error
	for _, ref := range seg.checkpoints {
		s, err := l.readCheckpoint(ctx, ref)
		// Who writes a checkpoint without a protocol is not to be trusted in
		// the commits either.
		if isCorrupt(err) && !errors.Is(err, checkpoint.ErrIncomplete) {
			l.opts.Logger.Warn("checkpoint is damaged, falling back", "version", int64(ref.Version), "err", err)
			damage = append(damage, err)
			continue
		}
		if err != nil {
			return nil, err
		}
		if s.version == target {
			return s, l.readInfo(ctx, s)
		}
		return l.replayTail(ctx, s, seg, target)
	}
	if len(damage) == 0 && upTo != latest && !seg.has(0) {
		return nil, &VacuumedError{Version: upTo, Oldest: l.oldest(ctx)}
	}
	s, err := l.replayTail(ctx, emptySnapshot(), seg, target)
	if err != nil {
		return nil, errors.Join(append(damage, err)...)
	}
	return s, nil
}

// isCorrupt reports damage to an object, as against a store that fails.
func isCorrupt(err error) bool {
	return errors.Is(err, action.ErrCorrupt) || errors.Is(err, checkpoint.ErrCorrupt)
}

// oldest is the first version that the log can still rebuild, -1 if a listing
// does not tell.
func (l *Log) oldest(ctx context.Context) action.Version {
	all, err := l.list(ctx, -1, latest)
	switch {
	case err != nil:
		return -1
	case all.has(0):
		return 0
	case len(all.checkpoints) > 0:
		return all.checkpoints[len(all.checkpoints)-1].Version
	}
	return -1
}

// step is one object to replay: a commit, or a compaction in place of some.
type step struct {
	Compaction
	size int64
}

func (t *step) isCommit() bool { return t.First == t.Last }

// maxUnlisted bounds the commits that are looked for though the listing lacks
// them.
const maxUnlisted = 1000

// steps chooses what leads from version after to target: at each version the
// longest compaction that begins there, else the commit. A commit need not be
// listed: a listing may lack what is written while it runs, and show what is
// written later.
func (l *Log) steps(seg *segment, bad map[Compaction]bool, after, target action.Version) ([]step, error) {
	var out []step
	unlisted := action.Version(0)
	compactions := seg.compactions
	for v := after + 1; v <= target; {
		next := step{Compaction: Compaction{First: v, Last: -1}}
		for len(compactions) > 0 && compactions[0].First <= v {
			c := &compactions[0]
			compactions = compactions[1:]
			if c.First == v && c.Last <= target && !bad[c.Compaction] {
				next = step{c.Compaction, c.size} // the last one is the longest
			}
		}
		if next.Last < 0 {
			next = step{Compaction: Compaction{v, v}}
			if i, ok := seg.find(v); ok {
				next.size = seg.commits[i].size
			} else if unlisted++; unlisted > maxUnlisted {
				return nil, l.missing(v - maxUnlisted)
			}
		}
		out = append(out, next)
		v = next.Last + 1
	}
	return out, nil
}

// fetchBytes bounds the size of the objects that are read at once, but for one.
const fetchBytes = 64 << 20

// replayTail applies the versions after s up to target, in order, to a copy
// of s: versions in between are nobody's.
func (l *Log) replayTail(ctx context.Context, s *Snapshot, seg *segment, target action.Version) (*Snapshot, error) {
	if s.version >= target {
		return s, nil
	}
	bad := map[Compaction]bool{}
	todo, err := l.steps(seg, bad, s.version, target)
	if err != nil {
		return nil, err
	}
	s = s.clone()
	last := todo[len(todo)-1]
	for len(todo) > 0 {
		n, size := 1, todo[0].size
		for n < len(todo) && n < 4*fetchers && size+todo[n].size <= fetchBytes {
			size += todo[n].size
			n++
		}
		damage, err := l.replaySteps(ctx, s, todo[:n])
		if err != nil {
			return nil, err
		}
		if todo = todo[n:]; damage != nil {
			bad[*damage] = true
			if todo, err = l.steps(seg, bad, s.version, target); err != nil {
				return nil, err
			}
			last = todo[len(todo)-1]
		}
	}
	if !last.isCommit() {
		if err := l.readInfo(ctx, s); err != nil {
			return nil, err
		}
	}
	s.recent = recentAdds{from: s.version}
	return s, checkReadable(s.protocol)
}

// replaySteps reads objects at once and applies them to s. It stops before a
// compaction that cannot be used, and returns it: the commits are there.
func (l *Log) replaySteps(ctx context.Context, s *Snapshot, steps []step) (damaged *Compaction, err error) {
	entries := make([]*entry, len(steps))
	damage := make([]string, len(steps)) // what is wrong with a compaction
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(fetchers)
	for i := range steps {
		g.Go(func() (err error) {
			if steps[i].isCommit() {
				entries[i], err = l.readEntry(gctx, s.values, l.CommitKey(steps[i].First))
				if errors.Is(err, storage.ErrNotFound) {
					err = l.missing(steps[i].First)
				}
				return err
			}
			entries[i], err = l.readCompaction(gctx, s.values, steps[i].Compaction)
			if isCorrupt(err) || errors.Is(err, storage.ErrNotFound) {
				damage[i], err = err.Error(), nil
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for i := 1; i < len(steps); i++ {
		if steps[i-1].isCommit() && steps[i].isCommit() {
			entries[i].takeAdds(entries[i-1])
		}
	}
	for i := range steps {
		t := &steps[i]
		if damage[i] != "" {
			l.opts.Logger.Warn("log compaction is damaged, reading the commits", "first", int64(t.First), "last", int64(t.Last), "err", damage[i])
			return &t.Compaction, nil
		}
		if t.isCommit() {
			if err := s.step(t.First, entries[i]); err != nil {
				return nil, fmt.Errorf("%s: %w", l.CommitKey(t.First), err)
			}
			entries[i] = nil
			continue
		}
		s.version = t.Last
		s.replay(entries[i])
		if err := s.finish(); err != nil {
			return nil, fmt.Errorf("%s: %w", l.CompactionKey(t.Compaction), err)
		}
		entries[i] = nil
	}
	return nil, nil
}

// missing is the error of a commit that is not there: versions have no gaps.
func (l *Log) missing(v action.Version) error {
	return fmt.Errorf("%w: commit %s is missing", action.ErrCorrupt, l.CommitKey(v))
}

// readInfo completes a snapshot that no commit led to: a checkpoint and a
// compaction lack the version's time and transaction. They are taken from its
// commit, or from its checksum, where one of them is there.
func (l *Log) readInfo(ctx context.Context, s *Snapshot) error {
	s.txnID = ""
	c, modified, err := l.readCommitAt(ctx, s.version)
	switch {
	case err == nil:
		s.ict = 0 // the version before is not known
		s.setInfo(c, modified)
		return nil
	case !errors.Is(err, storage.ErrNotFound) && !errors.Is(err, action.ErrCorrupt):
		return err
	}
	sum, ok, err := l.ReadChecksum(ctx, s.version)
	if err != nil {
		return err
	}
	if ok {
		s.txnID = sum.TxnID
		if sum.InCommitTimestamp != nil {
			s.ict = *sum.InCommitTimestamp
		}
	}
	return nil
}

// readCommit fetches and decodes one entry. Errors: storage.ErrNotFound,
// action.ErrCorrupt naming the object.
func (l *Log) readCommit(ctx context.Context, v action.Version) (*action.Commit, error) {
	c, _, err := l.readCommitAt(ctx, v)
	return c, err
}

// readCommitAt returns beside it when the store says it was written, in ms.
func (l *Log) readCommitAt(ctx context.Context, v action.Version) (c *action.Commit, modified int64, err error) {
	key := l.CommitKey(v)
	data, info, err := l.store.Get(ctx, key)
	if err != nil {
		return nil, 0, fmt.Errorf("read commit: %w", err)
	}
	if c, err = action.Decode(data); err != nil {
		return nil, 0, fmt.Errorf("read commit %s: %w", key, err)
	}
	return c, info.ModTime.UnixMilli(), nil
}

// readCommits reads n commits from version v on, several at a time; one that is
// not there is nil.
func (l *Log) readCommits(ctx context.Context, v action.Version, n int) ([]*action.Commit, error) {
	commits := make([]*action.Commit, n)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(fetchers)
	for i := range commits {
		g.Go(func() error {
			c, err := l.readCommit(gctx, v+action.Version(i))
			if err != nil && !errors.Is(err, storage.ErrNotFound) {
				return err
			}
			commits[i] = c
			return nil
		})
	}
	return commits, g.Wait()
}

// readEntry reads an object of the log that is to be replayed.
func (l *Log) readEntry(ctx context.Context, values *valueTable, key string) (*entry, error) {
	data, info, err := l.store.Get(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("read commit: %w", err)
	}
	e, err := prepareText(values, data)
	if err != nil {
		return nil, fmt.Errorf("read commit %s: %w", key, err)
	}
	e.modified = info.ModTime.UnixMilli()
	return e, nil
}

// Commit returns the actions of one version, as they were logged. Errors:
// ErrVersionNotFound, ErrVersionVacuumed, action.ErrCorrupt.
func (l *Log) Commit(ctx context.Context, v action.Version) (*action.Commit, error) {
	c, err := l.readCommit(ctx, v)
	if errors.Is(err, storage.ErrNotFound) {
		return nil, l.absent(ctx, v)
	}
	return c, err
}

// absent says why a version's commit is not there.
func (l *Log) absent(ctx context.Context, v action.Version) error {
	head, err := l.Snapshot(ctx, Latest())
	if err != nil {
		return err
	}
	if v < 0 || v > head.version {
		return fmt.Errorf("version %d: %w: the latest is %d", int64(v), ErrVersionNotFound, int64(head.version))
	}
	return &VacuumedError{Version: v, Oldest: l.oldest(ctx)}
}
