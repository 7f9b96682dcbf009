package vacuum

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"cardinalsin/action"
	"cardinalsin/storage"
	"cardinalsin/txlog"
)

// aim sets what follows from the log alone: the horizon and the watermark.
func (p *Plan) aim(ctx context.Context, base *txlog.Snapshot, now time.Time) error {
	through, _, err := base.Vacuumed()
	if err != nil {
		return err
	}
	mark, err := base.Watermark()
	if err != nil {
		return err
	}
	p.Version, p.Settled = base.Version(), through
	if p.Horizon, err = p.horizon(ctx, base, through, now.Add(-p.opts.retain())); err != nil {
		return fmt.Errorf("find the horizon: %w", err)
	}
	p.Watermark = max(mark, p.Horizon)
	return nil
}

// horizon is the version that was the latest at the time cutoff, found by
// bisection over in-commit timestamps, which ascend strictly. It never goes
// back before what a finished run has settled: all commits after that are
// still there, and no version before it can be opened.
func (p *Plan) horizon(ctx context.Context, base *txlog.Snapshot, settled action.Version, cutoff time.Time) (action.Version, error) {
	want := cutoff.UnixMilli()
	// In-commit timestamps may run ahead of the clock by a millisecond a
	// version; where nothing is retained that must not matter.
	if base.Time().UnixMilli() <= want || p.opts.retain() == 0 {
		return base.Version(), nil
	}
	lo, hi := settled, base.Version() // the answer lies in [lo, hi)
	for hi-lo > 1 {
		mid := lo + (hi-lo)/2
		c, err := p.commit(ctx, mid)
		if err != nil {
			return 0, err
		}
		ict, _ := c.InCommitTimestamp()
		if ict <= want {
			lo = mid
		} else {
			hi = mid
		}
	}
	return max(lo, 0), nil
}

// commit reads one entry that must be there.
func (p *Plan) commit(ctx context.Context, v action.Version) (*action.Commit, error) {
	c, err := p.log.Commit(ctx, v)
	if !errors.Is(err, txlog.ErrVersionVacuumed) {
		return c, err
	}
	latest, lerr := p.log.Snapshot(ctx, txlog.Latest())
	if lerr != nil {
		return nil, lerr
	}
	if through, _, err := latest.Vacuumed(); err != nil {
		return nil, err
	} else if through >= v {
		return nil, fmt.Errorf("%w: it settled version %d", ErrSuperseded, int64(through))
	}
	return nil, fmt.Errorf("%w: commit %s is missing", action.ErrCorrupt, p.log.CommitKey(v))
}

// collect decides what to delete, as of the snapshot s; begun is a reading of
// the store's clock from before s, if s is a start commit. Pins are read
// first, and revoked only when executing.
func (p *Plan) collect(ctx context.Context, s *txlog.Snapshot, begun time.Time, executing bool) error {
	through, at, err := s.Vacuumed()
	if err != nil {
		return err
	}
	p.Version, p.Settled = s.Version(), through
	if err := p.readPins(ctx, executing); err != nil {
		return fmt.Errorf("read pins: %w", err)
	}
	p.Earliest = p.earliest()
	p.Reaches, p.reachedAt = through, at
	if err := p.collectData(ctx, s, begun); err != nil {
		return err
	}
	if err := p.collectSegments(ctx, s, begun); err != nil {
		return err
	}
	if p.LogObjects, err = p.collectLog(ctx, begun); err != nil {
		return fmt.Errorf("collect log objects: %w", err)
	}
	return nil
}

// earliest is the oldest version that anyone may be reading: no later than
// the horizon and every living pin. A pin below what a finished run settled
// belongs to nobody who may read there: that run had raised the watermark
// before it read the pins, so whoever came later was refused.
func (p *Plan) earliest() action.Version {
	e := p.Horizon
	for _, pin := range p.Pins {
		if p.protects(pin) {
			e = min(e, action.Version(pin.MinVersion))
		}
	}
	return max(e, p.Settled, 0)
}

// removal is a file that a commit took out.
type removal struct {
	version action.Version
	at      int64 // in-commit timestamp, as its tombstone repeats it
	bytes   int64
}

// collectData fills Files and Orphans. It replays the file actions of all
// commits after Settled, in order.
func (p *Plan) collectData(ctx context.Context, s *txlog.Snapshot, begun time.Time) error {
	removed := map[string]removal{} // by path as logged
	for v, c := range p.commits(ctx, p.Settled+1, p.Earliest) {
		if c.err != nil {
			return fmt.Errorf("collect removed files: %w", c.err)
		}
		for _, r := range c.Removes {
			removed[r.Path] = removal{version: v, at: r.DeletionTimestamp, bytes: r.Size}
		}
		for _, a := range c.Adds {
			delete(removed, a.Path) // a version removes first, then adds
		}
		p.Reaches = v
		p.reachedAt, _ = c.InCommitTimestamp()
		if len(removed) >= p.opts.MaxFiles {
			break
		}
	}
	named := map[string]bool{} // paths of file actions after Reaches
	if !p.opts.Full {
		dropLiving(removed, s)
	}
	if p.opts.Full || !settledBySnapshot(removed, s) {
		for _, c := range p.commits(ctx, p.Reaches+1, s.Version()) {
			if c.err != nil {
				return fmt.Errorf("collect files that came back: %w", c.err)
			}
			for _, a := range c.Adds {
				if !p.rules.readdBlind {
					delete(removed, a.Path)
				}
				if p.opts.Full {
					named[a.Path] = true
				}
			}
			for _, r := range c.Removes {
				if p.opts.Full {
					named[r.Path] = true
				}
			}
		}
	}
	for logged, r := range removed {
		key, err := p.dataKey(logged)
		if err != nil {
			return fmt.Errorf("file removed by version %d: %w", int64(r.version), err)
		}
		p.Files = append(p.Files, Object{Key: key, Bytes: r.bytes, Version: r.version})
	}
	sortByKey(p.Files)
	if !p.opts.Full {
		return nil
	}
	return p.collectOrphans(ctx, s, named, begun)
}

// dropLiving takes out what a later version added again and still has.
func dropLiving(removed map[string]removal, s *txlog.Snapshot) {
	for logged := range removed {
		if _, live := s.File(action.Key{Path: logged}); live {
			delete(removed, logged)
		}
	}
}

// settledBySnapshot reports whether the snapshot's tombstones prove that no
// file came back for a while and was removed again: each still carries the
// timestamp of the removal that we know. Checkpoints drop old tombstones, so
// there may be no proof; then the commits must be read.
func settledBySnapshot(removed map[string]removal, s *txlog.Snapshot) bool {
	if len(removed) == 0 {
		return true
	}
	proven := 0
	for r := range s.Tombstones() {
		if known, ok := removed[r.Path]; ok && known.at == r.DeletionTimestamp {
			proven++
		}
	}
	return proven == len(removed)
}

// collectOrphans lists the data. What no version from Reaches on names is
// either a removed file of long ago or an orphan; both may go once they are
// so old that nobody can commit them. named holds the paths of all file
// actions after Reaches: together with what is live in s that covers every
// file of these versions, since a file that was live and is not has been
// removed in between.
func (p *Plan) collectOrphans(ctx context.Context, s *txlog.Snapshot, named map[string]bool, begun time.Time) error {
	for d := range s.Domains() {
		if strings.HasPrefix(d, splitDomains) {
			p.opts.Logger.Warn("no search for orphans while a shard is being split", "table", p.log.Root(), "domain", d)
			return nil
		}
	}
	keep := map[string]bool{}
	for logged := range named {
		key, err := p.log.Key(logged)
		if err != nil {
			return fmt.Errorf("collect orphans: %w", err)
		}
		keep[key] = true
	}
	for a := range s.Files() {
		key, err := p.log.Key(a.Path)
		if err != nil {
			return fmt.Errorf("collect orphans: %w", err)
		}
		keep[key] = true
	}
	for _, f := range p.Files {
		keep[f.Key] = true // to be deleted already
	}
	for o, err := range p.listData(ctx) {
		if err != nil {
			return fmt.Errorf("collect orphans: %w", err)
		}
		if keep[o.Key] || begun.Sub(o.ModTime) <= p.opts.Margins.OrphanAge && !p.rules.orphanNow {
			continue
		}
		p.Orphans = append(p.Orphans, Object{Key: o.Key, Bytes: o.Size, Version: -1})
	}
	return nil
}

// splitDomains begins the name of each domain that holds a split's progress;
// the files that it names are part of no version yet.
const splitDomains = "cardinal.split."

// afterHidden sorts after every name that begins with an underscore.
const afterHidden = "_\U0010FFFF"

// listData yields the objects that may be chunks, in key order. It leaps over
// what begins with an underscore at the top, the log above all.
func (p *Plan) listData(ctx context.Context) iter.Seq2[storage.ObjectInfo, error] {
	return func(yield func(storage.ObjectInfo, error) bool) {
		prefix, after := p.log.Root()+"/", ""
		for leap := true; leap; {
			leap = false
			for o, err := range p.log.Store().List(ctx, prefix, after) {
				if err != nil {
					yield(storage.ObjectInfo{}, fmt.Errorf("list data: %w", err))
					return
				}
				if strings.HasPrefix(o.Key, prefix+"_") && after == "" {
					after, leap = prefix+afterHidden, true
					break
				}
				if visible(o.Key[len(prefix):]) && strings.HasSuffix(o.Key, ".parquet") && !yield(o, nil) {
					return
				}
			}
		}
	}
}

// visible reports whether no element of a relative path is hidden, as names
// that begin with an underscore or a dot are to every Delta engine.
func visible(rel string) bool {
	for e := range strings.SplitSeq(rel, "/") {
		if e == "" || e[0] == '_' || e[0] == '.' {
			return false
		}
	}
	return true
}

// dataKey is the store key of a logged path. It refuses what lies outside the
// table or is hidden: whatever a log entry says, vacuum deletes no such thing
// as a data file.
func (p *Plan) dataKey(logged string) (string, error) {
	key, err := p.log.Key(logged)
	if err != nil {
		return "", err
	}
	if !visible(strings.TrimPrefix(key, p.log.Root()+"/")) {
		return "", fmt.Errorf("%w: data file with a hidden name: %.200q", action.ErrCorrupt, logged)
	}
	return key, nil
}

// read is one commit or the error that ends the sequence.
type read struct {
	*action.Commit
	err error
}

// commits yields the commits of the versions from lo to hi, both inclusive,
// in order. Up to Parallel are fetched at once.
func (p *Plan) commits(ctx context.Context, lo, hi action.Version) iter.Seq2[action.Version, read] {
	return func(yield func(action.Version, read) bool) {
		for lo <= hi {
			batch := make([]*action.Commit, min(int(hi-lo)+1, p.opts.Parallel))
			g, gctx := errgroup.WithContext(ctx)
			for i := range batch {
				g.Go(func() (err error) {
					batch[i], err = p.commit(gctx, lo+action.Version(i))
					return err
				})
			}
			if err := g.Wait(); err != nil {
				yield(lo, read{err: err})
				return
			}
			for i, c := range batch {
				if !yield(lo+action.Version(i), read{Commit: c}) {
					return
				}
			}
			lo += action.Version(len(batch))
		}
	}
}

func sortByKey(objects []Object) {
	slices.SortFunc(objects, func(a, b Object) int { return cmp.Compare(a.Key, b.Key) })
}

// logObject is one entry of the log's listing.
type logObject struct {
	storage.ObjectInfo
	version action.Version
}

// parseLogName takes the name of a log object apart; ok is false for what is
// none of those that vacuum knows.
func parseLogName(key string) (v action.Version, ok bool) {
	name := path.Base(key)
	if len(name) < 21 {
		return 0, false
	}
	v, ok = action.ParseVersion(name[:20])
	if !ok {
		return 0, false
	}
	switch rest := name[20:]; {
	case rest == ".json", rest == ".crc", strings.HasPrefix(rest, ".checkpoint."):
		return v, true
	case len(rest) == len(".00000000000000000000.compacted.json") && strings.HasSuffix(rest, ".compacted.json"):
		_, ok = action.ParseVersion(rest[1:21])
		return v, ok
	}
	return 0, false
}
