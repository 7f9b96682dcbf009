package vacuum

import (
	"context"
	"errors"
	"fmt"
	"time"

	"cardinalsin/action"
	"cardinalsin/checkpoint"
	"cardinalsin/storage"
)

// collectLog finds the log objects that nobody needs. The last finished run
// settled some version: nobody reads an earlier one, and the removes up to it
// are dealt with. What is needed to rebuild that version stays: the newest
// sound checkpoint at or before it with its commit, and all that follows.
// What lies below goes, up to the first object that is too young, so that the
// rest of the log is never interrupted.
func (p *Plan) collectLog(ctx context.Context, now time.Time) ([]Object, error) {
	if p.Settled < 0 {
		return nil, nil
	}
	objects, err := p.listLog(ctx, p.Settled)
	if err != nil {
		return nil, err
	}
	infos := make([]storage.ObjectInfo, len(objects))
	for i, o := range objects {
		infos[i] = o.ObjectInfo
	}
	for _, ref := range checkpoint.FromListing(infos) { // newest first
		doomed := logBelow(objects, ref.Version, now, p.opts.Margins.LogAge)
		if len(doomed) == 0 {
			return nil, nil // nor below any older checkpoint
		}
		// Only what has just been read in full may replace what is deleted.
		_, err := p.log.Rebuild(ctx, &ref, p.Settled)
		if err == nil {
			return doomed, nil
		}
		if !errors.Is(err, checkpoint.ErrCorrupt) && !errors.Is(err, action.ErrCorrupt) {
			return nil, err
		}
		p.opts.Logger.Warn("checkpoint is damaged, the log below it is kept", "table", p.log.Root(), "version", int64(ref.Version), "err", err)
	}
	return nil, nil
}

// logBelow picks the objects of versions below limit, and below the first
// one that is younger than age. objects ascend by version.
func logBelow(objects []logObject, limit action.Version, now time.Time, age time.Duration) []Object {
	for _, o := range objects {
		if now.Sub(o.ModTime) < age {
			limit = min(limit, o.version)
			break
		}
	}
	var out []Object
	for _, o := range objects {
		if o.version >= limit {
			break
		}
		out = append(out, Object{Key: o.Key, Bytes: o.Size, Version: o.version})
	}
	return out
}

// listLog lists the log's objects of versions up to upTo, in version order.
func (p *Plan) listLog(ctx context.Context, upTo action.Version) ([]logObject, error) {
	var out []logObject
	prefix := p.log.Dir() + "/"
	for o, err := range p.log.Store().List(ctx, prefix, "") {
		if err != nil {
			return nil, fmt.Errorf("list the log: %w", err)
		}
		if o.Key[len(prefix)] > '9' {
			break // "_last_checkpoint", "_sidecars/…" sort after the digits
		}
		v, ok := parseLogName(o.Key)
		if !ok {
			continue
		}
		if v > upTo {
			break
		}
		out = append(out, logObject{ObjectInfo: o, version: v})
	}
	return out, nil
}
