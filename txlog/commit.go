package txlog

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"cardinalsin/action"
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

// commitGroup makes one entry of the group, after as many conflicts as it
// takes, and tells every member its outcome.
func (l *Log) commitGroup(group []*pending) {
	ctx, cancel := groupContext(group)
	defer cancel()
	start := l.opts.Now()
	ev := CommitEvent{Operation: group[0].t.op.Name}
	s, err := l.commitEntry(ctx, &group, &ev)
	for _, p := range group {
		own := err
		if p.ctx.Err() != nil && errors.Is(err, context.Canceled) && !errors.Is(err, storage.ErrUnknownOutcome) {
			own = p.ctx.Err() // the group's context ended because its members' did
		}
		p.done <- outcome{s, own}
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
		if ev.Conflicts%2 == 0 {
			// Others are busy: step aside for a moment, then catch up, so that
			// we do not offer versions that are long taken. Not every time:
			// whoever won pauses for less than that takes.
			l.mu.Lock()
			backoff := l.pace.backoff()
			l.mu.Unlock()
			if err := sleep(ctx, rand.N(backoff)); err != nil {
				return nil, err
			}
			if head, err = l.catchUp(ctx, head); err != nil {
				return nil, err
			}
		}
	}
}

// catchUp applies what follows head. It asks for several versions at once: one
// by one, each a round trip, it would stay behind a process that commits one a
// round trip.
func (l *Log) catchUp(ctx context.Context, head *Snapshot) (*Snapshot, error) {
	for n := 4; ; n = min(2*n, 4*fetchers) {
		at := l.opts.Now()
		commits := make([]*action.Commit, n) // nil: there is none
		g, gctx := errgroup.WithContext(ctx)
		g.SetLimit(fetchers)
		for i := range commits {
			g.Go(func() error {
				c, err := l.readCommit(gctx, head.version+1+action.Version(i))
				if err != nil && !errors.Is(err, storage.ErrNotFound) {
					return err
				}
				commits[i] = c
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			return nil, err
		}
		for _, c := range commits {
			if c == nil {
				l.publish(head, at)
				return head, nil
			}
			next, err := head.apply(head.version+1, c)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", l.CommitKey(head.version+1), err)
			}
			head = next
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
// results; the others are told why and removed from the group, and so are those
// whose callers have gone. Each member follows head and the members before it.
//
// INVARIANT: when it returns, also with an error, who was told has left the
// group: nobody would take a second outcome, and the commit loop would wait for
// ever.
func (l *Log) buildEntry(ctx context.Context, head *Snapshot, group *[]*pending) ([]byte, *Snapshot, error) {
	storeNow, err := l.store.Now(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("read the store's clock: %w", err)
	}
	ict := max(storeNow.UnixMilli(), head.ict+1)
	for {
		parts := l.follow(head, group)
		if len(parts) == 0 {
			return nil, nil, nil
		}
		data, next, err := l.encodeEntry(head, *group, parts, ict)
		if err == nil {
			return data, next, nil
		}
		if !dropUnsound(head, group, parts) {
			return nil, nil, err
		}
	}
}

// follow returns what each member does after head and the members before it.
// Who cannot follow is told why and leaves the group.
func (l *Log) follow(head *Snapshot, group *[]*pending) []*action.Commit {
	now := l.opts.Now()
	view := head
	var parts []*action.Commit
	var kept []*pending
	for i, p := range *group {
		err := p.ctx.Err()
		var own *action.Commit
		if err == nil {
			own, err = p.t.follow(view, now)
		}
		if err == nil && i < len(*group)-1 {
			var after *Snapshot
			if after, err = view.apply(view.version+1, own); err == nil {
				after.version = head.version + 1 // all are of this entry
				view = after
			}
		}
		if err != nil {
			p.done <- outcome{err: err}
			continue
		}
		kept, parts = append(kept, p), append(parts, own)
	}
	*group = kept
	return parts
}

// dropUnsound tells the members that cannot be encoded even alone, and takes
// them out of the group; it reports whether there were any and others are left.
func dropUnsound(head *Snapshot, group *[]*pending, parts []*action.Commit) bool {
	var sound []*pending
	errs := make([]error, len(parts))
	for i, p := range *group {
		if _, errs[i] = parts[i].Encode(); errs[i] == nil {
			_, errs[i] = head.apply(head.version+1, parts[i])
		}
		if errs[i] == nil {
			sound = append(sound, p)
		}
	}
	if len(sound) == 0 || len(sound) == len(parts) {
		return false
	}
	for i, p := range *group {
		if errs[i] != nil {
			p.done <- outcome{err: errs[i]}
		}
	}
	*group = sound
	return true
}

// encodeEntry makes one entry of the members' parts.
func (l *Log) encodeEntry(head *Snapshot, group []*pending, parts []*action.Commit, ict int64) ([]byte, *Snapshot, error) {
	entry := &action.Commit{}
	for _, own := range parts {
		merge(entry, own)
	}
	for i := range entry.Txns {
		entry.Txns[i].LastUpdated = ict
	}
	for i := range entry.Removes {
		entry.Removes[i].DeletionTimestamp = ict
	}
	for i := range entry.Adds {
		if entry.Adds[i].ModificationTime == 0 {
			entry.Adds[i].ModificationTime = ict
		}
	}
	entry.Info = entryInfo(group, entry, head, ict, l.opts.EngineInfo)
	data, err := entry.Encode()
	if err != nil {
		return nil, nil, err
	}
	next, err := head.apply(head.version+1, entry)
	if err != nil {
		return nil, nil, err
	}
	return data, next, nil
}

// merge appends a member's actions to the entry's. Only one member has a
// protocol; of the metadata the last one holds what those before it changed.
func merge(entry, own *action.Commit) {
	if own.Protocol != nil {
		entry.Protocol = own.Protocol
	}
	if own.Metadata != nil {
		entry.Metadata = own.Metadata
	}
	entry.Txns = append(entry.Txns, own.Txns...)
	entry.Domains = append(entry.Domains, own.Domains...)
	entry.Removes = append(entry.Removes, own.Removes...)
	entry.Adds = append(entry.Adds, own.Adds...)
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
			if errors.Is(err, action.ErrCorrupt) && !doubtful {
				return false, nil, err
			}
			// What does not pass, such as credentials that were withdrawn, is
			// for the caller to hear of.
			if !errors.Is(err, storage.ErrUnavailable) || sleep(ctx, rand.N(backoff)) != nil {
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
	now := l.opts.Now()
	l.mu.Lock()
	l.pace.won(next, elapsed(sent, now), now, rand.Float64())
	l.mu.Unlock()
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
		if l.head != nil && s.version > l.head.version {
			l.pace.saw(s)
		}
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
