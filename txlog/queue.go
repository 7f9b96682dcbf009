package txlog

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"cardinalsin/storage"
)

const (
	// maxGroupActions bounds one entry: 10,000 file actions of some 600 bytes
	// are 6 MB of JSON, what one request still carries in a second.
	maxGroupActions = 10_000
	// maxGroup bounds the transactions of one entry.
	maxGroup = 1024
	// maxQueue and maxQueueActions bound the transactions that wait, and the
	// file actions in them; more are refused.
	maxQueue        = 65_536
	maxQueueActions = 1_000_000
	// maxGather bounds how long an entry waits for those who made the last
	// one together.
	maxGather = 5 * time.Millisecond
)

// ErrQueueFull: too many transactions wait for the log; the caller should
// slow down. Nothing was committed.
var ErrQueueFull = errors.New("commit queue is full")

// pending is one transaction on its way. Its ctx is the caller's.
type pending struct {
	ctx  context.Context
	t    *Transaction
	done chan outcome // buffered, receives once
}

type outcome struct {
	snapshot *Snapshot
	err      error
}

// commitQueue holds what waits for the commit loop. Log.mu guards it.
type commitQueue struct {
	waiting []*pending
	actions int  // file actions in waiting
	looping bool // a commit loop is running
	// arrived tells the loop, where it waits for more, that one came.
	arrived chan struct{}
}

// commit queues a transaction for the commit loop and waits for its outcome.
func (l *Log) commit(ctx context.Context, t *Transaction) (*Snapshot, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p := &pending{ctx: ctx, t: t, done: make(chan outcome, 1)}
	if err := l.enqueue(p); err != nil {
		return nil, err
	}
	select {
	case o := <-p.done:
		return o.snapshot, o.err
	case <-ctx.Done():
	}
	if l.dequeue(p) {
		return nil, ctx.Err()
	}
	select {
	case o := <-p.done:
		return o.snapshot, o.err
	default:
		// The entry may be on its way, for others who still wait too.
		return nil, fmt.Errorf("%w: transaction %s: %w", storage.ErrUnknownOutcome, t.id, ctx.Err())
	}
}

func (l *Log) enqueue(p *pending) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	q := &l.commits
	if len(q.waiting) >= maxQueue || q.actions > 0 && q.actions+p.t.actions() > maxQueueActions {
		return ErrQueueFull
	}
	q.waiting = append(q.waiting, p)
	q.actions += p.t.actions()
	if !q.looping {
		q.looping, q.arrived = true, make(chan struct{}, 1)
		go l.commitLoop()
		return nil
	}
	select {
	case q.arrived <- struct{}{}:
	default:
	}
	return nil
}

// dequeue takes a transaction back that the loop has not taken yet.
func (l *Log) dequeue(p *pending) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	q := &l.commits
	i := slices.Index(q.waiting, p)
	if i < 0 {
		return false
	}
	q.waiting = slices.Delete(q.waiting, i, i+1)
	q.actions -= p.t.actions()
	return true
}

// commitLoop commits what is queued, group by group, and ends when nothing
// is. At most one runs.
func (l *Log) commitLoop() {
	last := 0
	for {
		l.gather(last)
		l.mu.Lock()
		group := l.commits.take()
		if group == nil {
			l.commits.looping = false
			l.mu.Unlock()
			return
		}
		l.mu.Unlock()
		last = len(group)
		l.commitGroup(group)
	}
}

// gather waits a little for as many transactions as last committed together and
// came meanwhile: those who have just committed are likely to be back soon.
// Without that the first to come back would take a whole round trip for
// itself, with all others behind it. Then it waits until the next entry may go
// out, if there is to be one.
func (l *Log) gather(last int) {
	l.mu.Lock()
	patience := min(l.pace.roundTrip/16, maxGather)
	n := min(last+len(l.commits.waiting), maxGroup)
	l.mu.Unlock()
	if last > 0 && n > 1 && patience > 0 {
		l.awaitArrivals(n, patience)
	}
	l.mu.Lock()
	pause := min(l.pace.free.Sub(l.opts.Now()), maxPause)
	if len(l.commits.waiting) == 0 {
		pause = 0
	}
	l.mu.Unlock()
	if pause > 0 {
		time.Sleep(pause)
	}
}

// awaitArrivals waits until n transactions wait, for at most d.
func (l *Log) awaitArrivals(n int, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		l.mu.Lock()
		waiting, arrived := len(l.commits.waiting), l.commits.arrived
		l.mu.Unlock()
		if waiting >= n {
			return
		}
		select {
		case <-arrived:
		case <-timer.C:
			return
		}
	}
}

// take removes from the queue what may share the next entry, in the order of
// its arrival: no two transactions set the same application's number, domain
// or file, and a few go alone. What does not fit stays, and whatever conflicts
// with that stays behind it; the first of the queue always goes, so nobody is
// overtaken for ever. Log.mu is held.
func (q *commitQueue) take() []*pending {
	claimed := map[string]bool{}
	var group, rest []*pending
	actions, looked := 0, 0
	for ; looked < len(q.waiting) && looked < 4*maxGroup && len(group) < maxGroup; looked++ {
		p := q.waiting[looked]
		keys := p.t.claims()
		fits := len(group) == 0 || !p.t.alone() && actions+p.t.actions() <= maxGroupActions
		if fits {
			fits = !slices.ContainsFunc(keys, func(k string) bool { return claimed[k] })
		}
		for _, k := range keys {
			claimed[k] = true
		}
		if !fits {
			rest = append(rest, p)
			continue
		}
		group = append(group, p)
		actions += p.t.actions()
		if p.t.alone() {
			looked++
			break
		}
	}
	q.waiting = append(rest, q.waiting[looked:]...)
	q.actions -= actions
	return group
}

// alone reports whether t needs an entry of its own: it makes the table, or
// its file actions are not known before.
func (t *Transaction) alone() bool { return t.metadata != nil || t.restore != nil }

// claims are what only one transaction of an entry may touch.
func (t *Transaction) claims() []string {
	keys := make([]string, 0, len(t.txns)+len(t.domains)+t.actions())
	for i := range t.txns {
		keys = append(keys, "t"+t.txns[i].AppID)
	}
	for i := range t.domains {
		keys = append(keys, "d"+t.domains[i].Domain)
	}
	for i := range t.removes {
		keys = append(keys, "f"+t.removes[i].Path)
	}
	for i := range t.adds {
		keys = append(keys, "f"+t.adds[i].Path)
	}
	return keys
}

// groupContext ends when every caller's context has ended.
func groupContext(group []*pending) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(group[0].ctx))
	stop := make(chan struct{})
	go func() {
		for _, p := range group {
			select {
			case <-p.ctx.Done():
			case <-stop:
				return
			}
		}
		cancel()
	}()
	return ctx, func() { close(stop); cancel() }
}
