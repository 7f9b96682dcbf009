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

// Between two tries to find out what became of a put.
const (
	backoffMin = 20 * time.Millisecond
	backoffMax = 2 * time.Second
)

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
		commits, err := l.readCommits(ctx, head.version+1, n)
		if err != nil {
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
