package txlog

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"cardinalsin/action"
	"cardinalsin/storage"
)

const (
	// maxGroupActions bounds one entry: 10,000 file actions of some 600 bytes
	// are 6 MB of JSON, what one request still carries in a second.
	maxGroupActions = 10_000
	// maxGroup bounds the transactions of one entry.
	maxGroup = 1024
	// maxQueue bounds the transactions that wait; more are refused.
	maxQueue = 65_536

	backoffMin = 20 * time.Millisecond
	backoffMax = 2 * time.Second
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

// commit queues a transaction for the commit loop and waits for its outcome.
func (l *Log) commit(ctx context.Context, t *Transaction) (*Snapshot, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p := &pending{ctx: ctx, t: t, done: make(chan outcome, 1)}
	l.mu.Lock()
	if len(l.queue) >= maxQueue {
		l.mu.Unlock()
		return nil, ErrQueueFull
	}
	l.queue = append(l.queue, p)
	if !l.looping {
		l.looping = true
		go l.commitLoop()
	}
	l.mu.Unlock()

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

// dequeue takes a transaction back that the loop has not taken yet.
func (l *Log) dequeue(p *pending) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, q := range l.queue {
		if q == p {
			l.queue = append(l.queue[:i], l.queue[i+1:]...)
			return true
		}
	}
	return false
}

// commitLoop commits what is queued, group by group, and ends when nothing
// is. At most one runs.
func (l *Log) commitLoop() {
	for {
		l.mu.Lock()
		group := l.takeGroup()
		if group == nil {
			l.looping = false
			l.mu.Unlock()
			return
		}
		l.mu.Unlock()
		l.commitGroup(group)
	}
}

// takeGroup removes the longest prefix of the queue that may share one entry:
// no two of its transactions set the same application's number, domain, or
// file. l.mu is held.
func (l *Log) takeGroup() []*pending {
	seen := map[string]bool{}
	claim := func(t *Transaction) bool {
		keys := make([]string, 0, len(t.txns)+len(t.domains)+len(t.removes)+len(t.adds))
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
		for _, k := range keys {
			if seen[k] {
				return false
			}
		}
		for _, k := range keys {
			seen[k] = true
		}
		return true
	}
	n, actions := 0, 0
	for n < len(l.queue) && n < maxGroup {
		t := l.queue[n].t
		actions += len(t.adds) + len(t.removes)
		alone := t.metadata != nil || t.columns != nil // changes the schema
		if n > 0 && (alone || actions > maxGroupActions) || !claim(t) {
			break
		}
		n++
		if alone {
			break
		}
	}
	if n == 0 {
		return nil
	}
	group := append([]*pending(nil), l.queue[:n]...)
	l.queue = append(l.queue[:0], l.queue[n:]...)
	return group
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

// commitGroup makes one entry of the group, after as many conflicts as it
// takes, and tells every member its outcome.
func (l *Log) commitGroup(group []*pending) {
	ctx, cancel := groupContext(group)
	defer cancel()
	start := l.opts.Now()
	ev := CommitEvent{Operation: group[0].t.op.Name}
	s, err := l.commitEntry(ctx, &group, &ev)
	for _, p := range group {
		p.done <- outcome{s, err}
	}
	if len(group) > 0 && l.opts.Events.CommitEnd != nil {
		ev.Transactions, ev.Err, ev.Duration = len(group), err, elapsed(start, l.opts.Now())
		l.opts.Events.CommitEnd(ev)
	}
}

// commitEntry runs log-protocol 3. Members whose requirements fail are told
// at once and leave the group.
func (l *Log) commitEntry(ctx context.Context, group *[]*pending, ev *CommitEvent) (*Snapshot, error) {
	head, err := l.commitBase(ctx, (*group)[0].t)
	if err != nil {
		return nil, err
	}
	backoff := backoffMin
	for {
		data, next, err := l.buildEntry(ctx, head, group)
		if err != nil || len(*group) == 0 {
			return nil, err
		}
		ev.Version = next.version
		sent := l.opts.Now()
		// COMMIT POINT: this put creates the version, or nothing does.
		won, winner, err := l.put(ctx, next.version, next.txnID, data)
		switch {
		case err != nil:
			return nil, err
		case won:
			if err := l.settle(ctx, next, sent); err != nil {
				return nil, err
			}
			return next, nil
		}
		ev.Conflicts++
		if head, err = head.apply(next.version, winner); err != nil {
			return nil, fmt.Errorf("%s: %w", l.CommitKey(next.version), err)
		}
		l.publish(head, time.Time{})
		if ev.Conflicts > 1 {
			// Others are busy: step aside for a moment, then catch up, so that
			// we do not offer versions that are long taken.
			if err := sleep(ctx, rand.N(backoff)); err != nil {
				return nil, err
			}
			backoff = min(2*backoff, backoffMax)
			if head, err = l.refreshFrom(ctx, head); err != nil {
				return nil, err
			}
		}
	}
}

// commitBase is the version that an entry is first tried on: the latest we
// know, unless our knowledge is too old for an absent version to prove that
// it was never there.
func (l *Log) commitBase(ctx context.Context, t *Transaction) (*Snapshot, error) {
	if t.metadata != nil {
		return emptySnapshot(), nil
	}
	l.mu.Lock()
	head, confirmed := l.head, l.confirmed
	l.mu.Unlock()
	if elapsed(confirmed, l.opts.Now()) < MinLogAge/2 {
		return head, nil
	}
	at := l.opts.Now()
	head, err := l.load(ctx, latest)
	if err != nil {
		return nil, err
	}
	l.publish(head, at)
	return head, nil
}

// buildEntry encodes the members that may follow head, and the snapshot that
// results; the others are told why and removed from the group.
func (l *Log) buildEntry(ctx context.Context, head *Snapshot, group *[]*pending) ([]byte, *Snapshot, error) {
	storeNow, err := l.store.Now(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("read the store's clock: %w", err)
	}
	ict := max(storeNow.UnixMilli(), head.ict+1)
	now := l.opts.Now()
	c := &action.Commit{}
	kept := (*group)[:0:0]
	for _, p := range *group {
		if err := p.t.follow(head, c, now); err != nil {
			p.done <- outcome{err: err}
			continue
		}
		kept = append(kept, p)
	}
	*group = kept
	if len(kept) == 0 {
		return nil, nil, nil
	}
	for i := range c.Txns {
		c.Txns[i].LastUpdated = ict
	}
	for i := range c.Removes {
		c.Removes[i].DeletionTimestamp = ict
	}
	for i := range c.Adds {
		if c.Adds[i].ModificationTime == 0 {
			c.Adds[i].ModificationTime = ict
		}
	}
	c.Info = entryInfo(kept, c, head, ict, l.opts.EngineInfo)
	data, err := c.Encode()
	if err != nil {
		return nil, nil, err
	}
	next, err := head.apply(head.version+1, c)
	if err != nil {
		return nil, nil, err
	}
	return data, next, nil
}

// put tries to create version v. It returns won, or the winner's entry. While
// it cannot know, it offers the same bytes at the same version again, never a
// later one: the first request may still land.
func (l *Log) put(ctx context.Context, v action.Version, txnID string, data []byte) (won bool, winner *action.Commit, err error) {
	key := l.CommitKey(v)
	backoff := backoffMin
	doubtful := false // an earlier request may have been applied
	for {
		_, err := l.store.PutIfAbsent(ctx, key, data)
		switch {
		case err == nil:
			return true, nil, nil
		case errors.Is(err, storage.ErrAlreadyExists):
		case errors.Is(err, storage.ErrUnknownOutcome):
			doubtful = true
		case doubtful:
			return false, nil, errors.Join(storage.ErrUnknownOutcome, err)
		default:
			return false, nil, err
		}
		for {
			c, err := l.readCommit(ctx, v)
			if err == nil {
				if c.Info != nil && c.Info.TxnID == txnID {
					return true, nil, nil // an earlier request of ours had won
				}
				return false, c, nil
			}
			if errors.Is(err, storage.ErrNotFound) {
				break // offer it again
			}
			if errors.Is(err, action.ErrCorrupt) {
				return false, nil, err
			}
			if sleep(ctx, rand.N(backoff)) != nil {
				return false, nil, fmt.Errorf("%w: version %d, transaction %s: %w", storage.ErrUnknownOutcome, int64(v), txnID, err)
			}
			backoff = min(2*backoff, backoffMax)
		}
		if sleep(ctx, rand.N(backoff)) != nil {
			return false, nil, fmt.Errorf("%w: version %d, transaction %s", storage.ErrUnknownOutcome, int64(v), txnID)
		}
		backoff = min(2*backoff, backoffMax)
	}
}

// settle publishes a version that our put created; sent is when. If the put
// came so late that log clean-up could have made room for it, the entry is
// part of the log only if no checkpoint lies beyond it, which a listing shows.
// Otherwise it may lie where nobody reads any more, and the outcome is
// unknown: a load settles it.
func (l *Log) settle(ctx context.Context, next *Snapshot, sent time.Time) error {
	l.mu.Lock()
	confirmed := l.confirmed
	l.mu.Unlock()
	if next.version > 0 && elapsed(confirmed, l.opts.Now()) >= MinLogAge/2 {
		seg, err := l.list(ctx, next.version, latest)
		if err == nil && len(seg.checkpoints) > 0 {
			err = fmt.Errorf("a checkpoint at version %d lies beyond", int64(seg.checkpoints[0].Version))
		}
		if err != nil {
			return fmt.Errorf("%w: version %d, transaction %s: %w", storage.ErrUnknownOutcome, int64(next.version), next.txnID, err)
		}
	}
	l.publish(next, sent)
	l.addUpkeep(next)
	return nil
}

// publish makes s the latest version known, unless a later one is. confirmed
// is the local time at which it was the latest; zero if that is not known.
func (l *Log) publish(s *Snapshot, confirmed time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.head == nil || s.version >= l.head.version {
		l.head = s
		if !confirmed.IsZero() {
			l.confirmed = confirmed
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
