package vacuum

import (
	"context"
	"fmt"
	"path"
	"time"

	"cardinalsin/index"
	"cardinalsin/txlog"
)

// collectSegments finds segments of the index that the version does not name
// and that nobody can commit any more. Once out of the log a segment never
// comes back. A reader of an older version may miss it, and then reads the
// files themselves; so no pin protects one.
func (p *Plan) collectSegments(ctx context.Context, s *txlog.Snapshot, begun time.Time) error {
	p.Segments = nil
	if _, ok := s.Domain(index.Domain); !ok && !p.opts.Full {
		return nil // a table without an index is not asked for one
	}
	named, err := index.Segments(s)
	if err != nil {
		p.opts.Logger.Warn("no segments of the index are deleted", "table", p.log.Root(), "err", err)
		return nil
	}
	keep := map[string]bool{}
	for _, n := range named {
		keep[p.log.Root()+"/"+n.Key] = true
	}
	for o, err := range p.log.Store().List(ctx, p.log.Root()+"/"+index.Folder+"/", "") {
		if err != nil {
			return fmt.Errorf("collect segments of the index: %w", err)
		}
		if keep[o.Key] || path.Ext(o.Key) != ".idx" || begun.Sub(o.ModTime) <= p.opts.Margins.OrphanAge {
			continue
		}
		p.Segments = append(p.Segments, Object{Key: o.Key, Bytes: o.Size, Version: -1})
	}
	return nil
}
