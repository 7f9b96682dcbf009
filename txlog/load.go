package txlog

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

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
	commits     []action.Version // ascending
	checkpoints []checkpoint.Ref // newest first
	checksums   []action.Version // ascending
}

func (s *segment) has(v action.Version) bool {
	_, ok := slices.BinarySearch(s.commits, v)
	return ok
}

// last is the greatest version of any commit or checkpoint, -1 for none.
func (s *segment) last() action.Version {
	v := action.Version(-1)
	if n := len(s.commits); n > 0 {
		v = s.commits[n-1]
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
			seg.commits = append(seg.commits, v)
		case name[20:] == ".crc":
			seg.checksums = append(seg.checksums, v)
		case strings.Contains(name, ".checkpoint."):
			objs = append(objs, o)
		}
	}
	seg.checkpoints = checkpoint.FromListing(objs)
	return seg, nil
}

// load builds the snapshot at version upTo, or the latest one. It lists from
// the hint, if there is a usable one, and takes the newest checkpoint that it
// can read and the commits after it; a damaged checkpoint costs a fallback to
// the one before, at last to version 0.
func (l *Log) load(ctx context.Context, upTo action.Version) (*Snapshot, error) {
	hint, ok, err := checkpoint.ReadHint(ctx, l.store, l.Dir())
	if err != nil {
		return nil, fmt.Errorf("read the checkpoint hint: %w", err)
	}
	if ok && 0 < hint.Version && hint.Version <= upTo {
		seg, err := l.list(ctx, hint.Version-1, upTo)
		if err != nil {
			return nil, err
		}
		if s, err := l.rebuild(ctx, seg, upTo); err == nil || !isCorrupt(err) && !errors.Is(err, ErrVersionVacuumed) && !errors.Is(err, ErrNotTable) {
			return s, err
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
		if isCorrupt(err) {
			l.opts.Logger.Warn("checkpoint is damaged, falling back", "version", int64(ref.Version), "err", err)
			damage = append(damage, err)
			continue
		}
		if err != nil {
			return nil, err
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

// replayTail applies the commits after s up to target, in order. A missing
// one is corruption: versions have no gaps.
func (l *Log) replayTail(ctx context.Context, s *Snapshot, seg *segment, target action.Version) (*Snapshot, error) {
	for v := s.version + 1; v <= target; v++ {
		if !seg.has(v) {
			return nil, fmt.Errorf("%w: commit %s is missing", action.ErrCorrupt, l.CommitKey(v))
		}
	}
	for s.version < target {
		n := min(int(target-s.version), 4*fetchers)
		commits := make([]*action.Commit, n)
		g, gctx := errgroup.WithContext(ctx)
		g.SetLimit(fetchers)
		for i := range commits {
			g.Go(func() (err error) {
				commits[i], err = l.readCommit(gctx, s.version+1+action.Version(i))
				return err
			})
		}
		if err := g.Wait(); err != nil {
			return nil, err
		}
		for _, c := range commits {
			next, err := s.apply(s.version+1, c)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", l.CommitKey(s.version+1), err)
			}
			s = next
		}
	}
	return s, nil
}

// readCommit fetches and decodes one entry. Errors: storage.ErrNotFound,
// action.ErrCorrupt naming the object.
func (l *Log) readCommit(ctx context.Context, v action.Version) (*action.Commit, error) {
	key := l.CommitKey(v)
	data, _, err := l.store.Get(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("read commit: %w", err)
	}
	c, err := action.Decode(data)
	if err != nil {
		return nil, fmt.Errorf("read commit %s: %w", key, err)
	}
	return c, nil
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

// refresher lets concurrent refreshes share one pass, but only one that began
// after they asked: an older pass may have missed a version that was
// committed before the question.
type refresher struct {
	mu      sync.Mutex // guards the fields below
	current *pass      // runs now
	next    *pass      // runs after it; those who ask now join it
}

type pass struct {
	started   bool          // guarded by refresher.mu
	done      chan struct{} // closed when the fields below are set
	s         *Snapshot
	err       error
	cancelled bool // the context of whoever ran it ended
}

// latestSnapshot returns a version that is at least as late as any committed
// before the call.
func (l *Log) latestSnapshot(ctx context.Context) (*Snapshot, error) {
	for {
		p, err := l.joinPass(ctx)
		if err != nil {
			return nil, err
		}
		if !p.cancelled || ctx.Err() != nil {
			return p.s, p.err
		}
	}
}

// joinPass waits for a pass that began after the call; it runs the pass
// itself if nobody else does.
func (l *Log) joinPass(ctx context.Context) (*pass, error) {
	r := &l.refresh
	r.mu.Lock()
	if r.next == nil {
		r.next = &pass{done: make(chan struct{})}
	}
	p := r.next
	for {
		if p.started {
			r.mu.Unlock()
			return p, wait(ctx, p.done)
		}
		if r.current == nil {
			r.current, r.next, p.started = p, nil, true
			r.mu.Unlock()
			p.s, p.err = l.refreshOnce(ctx)
			p.cancelled = ctx.Err() != nil
			r.mu.Lock()
			r.current = nil
			r.mu.Unlock()
			close(p.done)
			return p, nil
		}
		running := r.current.done
		r.mu.Unlock()
		if err := wait(ctx, running); err != nil {
			return nil, err
		}
		r.mu.Lock()
	}
}

func wait(ctx context.Context, done <-chan struct{}) error {
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// refreshOnce brings the head up to date.
func (l *Log) refreshOnce(ctx context.Context) (*Snapshot, error) {
	l.mu.Lock()
	head, confirmed := l.head, l.confirmed
	l.mu.Unlock()
	if head == nil || elapsed(confirmed, l.opts.Now()) >= MinLogAge/2 {
		at := l.opts.Now()
		s, err := l.load(ctx, latest)
		if err != nil {
			return nil, err
		}
		l.publish(s, at)
		return s, nil
	}
	return l.refreshFrom(ctx, head)
}

// refreshFrom applies what follows head: one GET a version and one that finds
// none; past refreshGap versions, one listing and parallel GETs.
func (l *Log) refreshFrom(ctx context.Context, head *Snapshot) (*Snapshot, error) {
	for range refreshGap {
		at := l.opts.Now()
		c, err := l.readCommit(ctx, head.version+1)
		if errors.Is(err, storage.ErrNotFound) {
			l.publish(head, at)
			return head, nil
		}
		if err != nil {
			return nil, err
		}
		if head, err = head.apply(head.version+1, c); err != nil {
			return nil, fmt.Errorf("%s: %w", l.CommitKey(head.version+1), err)
		}
	}
	at := l.opts.Now()
	seg, err := l.list(ctx, head.version, latest)
	if err != nil {
		return nil, err
	}
	if len(seg.commits) > 0 {
		if head, err = l.replayTail(ctx, head, seg, seg.commits[len(seg.commits)-1]); err != nil {
			return nil, err
		}
	}
	l.publish(head, at)
	return head, nil
}

// At names a version: the latest, a number, or a time. The zero value is the
// latest.
type At struct {
	kind    atKind
	version action.Version
	time    time.Time
}

type atKind int

const (
	atLatest atKind = iota
	atVersion
	atTime
)

// Latest is the version that is latest when it is asked for.
func Latest() At { return At{} }

// AtVersion is the version with that number.
func AtVersion(v action.Version) At { return At{kind: atVersion, version: v} }

// AtTime is the last version whose in-commit timestamp is not after t.
func AtTime(t time.Time) At { return At{kind: atTime, time: t} }

// IsLatest reports whether no particular version is meant.
func (a At) IsLatest() bool { return a.kind == atLatest }

// Snapshot returns the table at that point. The latest one costs one GET and
// one a new version; a past one costs a cold load. Errors:
// ErrVersionNotFound, ErrVersionVacuumed, action.ErrCorrupt, storage errors.
func (l *Log) Snapshot(ctx context.Context, at At) (*Snapshot, error) {
	if at.kind == atLatest {
		return l.latestSnapshot(ctx)
	}
	head, err := l.latestSnapshot(ctx)
	if err != nil {
		return nil, err
	}
	v := at.version
	if at.kind == atTime {
		if v, err = l.versionAt(ctx, head, at.time); err != nil {
			return nil, err
		}
	}
	switch {
	case v < 0 || v > head.version:
		return nil, fmt.Errorf("version %d: %w: the latest is %d", int64(v), ErrVersionNotFound, int64(head.version))
	case v == head.version:
		return head, nil
	}
	return l.load(ctx, v)
}

// versionAt finds the last version with an in-commit timestamp of at most t,
// by bisection: timestamps ascend strictly.
func (l *Log) versionAt(ctx context.Context, head *Snapshot, t time.Time) (action.Version, error) {
	want := t.UnixMilli()
	if head.ict <= want {
		return head.version, nil
	}
	all, err := l.list(ctx, -1, head.version)
	if err != nil {
		return 0, err
	}
	commits := all.commits
	lo, hi := 0, len(commits) // the answer's successor lies in commits[lo:hi]
	for lo < hi {
		mid := (lo + hi) / 2
		c, err := l.readCommit(ctx, commits[mid])
		if err != nil {
			return 0, err
		}
		ict, ok := c.InCommitTimestamp()
		if !ok && c.Info != nil {
			ict = c.Info.Timestamp
		}
		if ict <= want {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == 0 {
		if len(commits) > 0 && commits[0] > 0 {
			return 0, &VacuumedError{Version: commits[0] - 1, Oldest: l.oldest(ctx)}
		}
		return 0, fmt.Errorf("%w: the table did not exist at %s", ErrVersionNotFound, t.UTC().Format(time.RFC3339Nano))
	}
	return commits[lo-1], nil
}
