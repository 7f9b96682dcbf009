package txlog

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"cardinalsin/storage"
)

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
		c, modified, err := l.readCommitAt(ctx, head.version+1)
		if errors.Is(err, storage.ErrNotFound) {
			l.publish(head, at)
			return head, nil
		}
		if err != nil {
			return nil, err
		}
		next, err := head.applyAt(head.version+1, c, modified)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", l.CommitKey(head.version+1), err)
		}
		head = next
	}
	at := l.opts.Now()
	seg, err := l.list(ctx, head.version, latest)
	if err != nil {
		return nil, err
	}
	if len(seg.commits) > 0 {
		if head, err = l.replayTail(ctx, head, seg, seg.commits[len(seg.commits)-1].version); err != nil {
			return nil, err
		}
	}
	l.publish(head, at)
	return head, nil
}
