package txlog

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"cardinalsin/action"
)

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

// pastSnapshots keeps the past versions that were asked for last: a dashboard
// asks for the same one again and again.
type pastSnapshots struct {
	mu   sync.Mutex  // guards kept
	kept []*Snapshot // the one used last is last
}

const (
	// maxPast and maxPastFiles bound them: what was loaded apart shares no
	// memory with the latest version.
	maxPast      = 4
	maxPastFiles = 200_000
)

func (p *pastSnapshots) get(v action.Version) (*Snapshot, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.IndexFunc(p.kept, func(s *Snapshot) bool { return s.version == v })
	if i < 0 {
		return nil, false
	}
	s := p.kept[i]
	p.kept = append(slices.Delete(p.kept, i, i+1), s)
	return s, true
}

func (p *pastSnapshots) put(s *Snapshot) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.kept = append(slices.DeleteFunc(p.kept, func(o *Snapshot) bool { return o.version == s.version }), s)
	files := 0
	for i := len(p.kept) - 1; i >= 0; i-- {
		if files += p.kept[i].NumFiles(); files > maxPastFiles || len(p.kept)-i > maxPast {
			p.kept = slices.Delete(p.kept, 0, i+1)
			return
		}
	}
}

// Known is the latest version that this process has seen, committed or read,
// -1 before the first. It makes no request.
func (l *Log) Known() action.Version {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.head == nil {
		return -1
	}
	return l.head.version
}

// Snapshot returns the table at that point. The latest one costs one GET and
// one a new version; a past one costs a cold load beside it, unless it was
// asked for lately. Errors: ErrVersionNotFound, ErrVersionVacuumed, action.ErrCorrupt, storage errors.
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
	// What vacuum may have taken away must not be served from memory.
	mark, err := head.Watermark()
	if readable := err == nil && v >= mark; readable {
		if s, ok := l.past.get(v); ok {
			return s, nil
		}
	}
	s, err := l.load(ctx, v)
	if err != nil {
		return nil, err
	}
	l.past.put(s)
	return s, nil
}

// versionAt finds the last version whose time is at most t.
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
	var n int // of the commits at or before t
	if slices.Contains(head.protocol.WriterFeatures, "inCommitTimestamp") {
		n, err = l.bisect(ctx, commits, want)
	} else {
		n, err = l.scanTimes(ctx, commits, want)
	}
	if err != nil {
		return 0, err
	}
	if n == 0 {
		if len(commits) > 0 && commits[0].version > 0 {
			return 0, &VacuumedError{Version: commits[0].version - 1, Oldest: l.oldest(ctx)}
		}
		return 0, fmt.Errorf("%w: the table did not exist at %s", ErrVersionNotFound, t.UTC().Format(time.RFC3339Nano))
	}
	return commits[n-1].version, nil
}

// bisect counts the commits with a time of at most want: in-commit timestamps
// ascend strictly.
func (l *Log) bisect(ctx context.Context, commits []commitObject, want int64) (int, error) {
	lo, hi := 0, len(commits) // the answer's successor lies in commits[lo:hi]
	for lo < hi {
		mid := (lo + hi) / 2
		c, modified, err := l.readCommitAt(ctx, commits[mid].version)
		if err != nil {
			return 0, err
		}
		at, ok := c.InCommitTimestamp()
		if !ok {
			at = commitTime(c, modified)
		}
		if at <= want {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo, nil
}

// scanTimes is bisect for a table of another engine, whose clocks may go back:
// every commit is read, and moves the time on as it does in a replay.
func (l *Log) scanTimes(ctx context.Context, commits []commitObject, want int64) (int, error) {
	times := make([]int64, len(commits))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(fetchers)
	for i := range commits {
		g.Go(func() error {
			c, modified, err := l.readCommitAt(gctx, commits[i].version)
			if err != nil {
				return err
			}
			var ok bool
			if times[i], ok = c.InCommitTimestamp(); !ok {
				times[i] = commitTime(c, modified)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return 0, err
	}
	at := int64(0)
	for i, t := range times {
		if at = max(t, at+1); at > want {
			return i, nil
		}
	}
	return len(times), nil
}
