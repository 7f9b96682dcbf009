package writer

import (
	"context"
	"fmt"
	"iter"

	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/internal/merge"
	"cardinalsin/series"
	"cardinalsin/txlog"
	"cardinalsin/wal"
)

// settle loads the latest version after a commit that failed or may have
// failed. If our records turn out to be in it, it advances; if not, it makes
// that version the base of the next attempt. Should an old request land even
// after that, it takes the version which the attempt wants, and the attempt
// ends here again.
//
// That our sequence moved is no proof that we moved it: the WAL directory may
// have been copied, and the copy be in use. Nor is that we remember no commit
// proof that it was not ours: the request may have been sent before a crash.
// The rows tell. If the table has for these sequences what the head has, they
// are committed, whoever did it; if not, another process used them for other
// data, and this one is fenced.
func (w *Writer) settle(ctx context.Context, h *head) error {
	snap, err := w.log.Snapshot(ctx, txlog.Latest())
	if err != nil {
		return fmt.Errorf("settle a commit: %w", err)
	}
	at := w.progress(snap)
	if at == w.committed {
		w.doubtful = false
		return w.setBase(snap)
	}
	ours := false
	if at > w.committed && at <= h.last {
		if ours, err = w.holds(ctx, snap, h, at); err != nil {
			return fmt.Errorf("settle a commit: %w", err)
		}
	}
	if !ours {
		return w.fence(snap, at)
	}
	return w.advance(snap, at, h)
}

// fence ends the writer: a version has records under its identity that are not
// its own.
func (w *Writer) fence(snap *txlog.Snapshot, at wal.Sequence) error {
	w.fenced = fmt.Errorf("%w: %s is at %d in version %d, expected %d", txlog.ErrFenced, w.app, at, int64(snap.Version()), w.committed)
	w.stop(w.fenced)
	return w.fenced
}

// holds reports whether the rows that the table got for our sequences after
// committed and up to last are those in the head. Cost: the versions back to
// the one that has the first of them, and a read of the files.
func (w *Writer) holds(ctx context.Context, snap *txlog.Snapshot, h *head, last wal.Sequence) (bool, error) {
	var sources []merge.Source
	found := false // the files that begin where we left off: the oldest
	for v := snap.Version(); v > w.base.Version() && !found; v-- {
		c, err := w.log.Commit(ctx, v)
		if err != nil {
			return false, err
		}
		for i := range c.Adds {
			s, from, err := w.source(ctx, &c.Adds[i])
			if err != nil {
				return false, err
			}
			if from > w.committed {
				sources = append(sources, s)
				found = found || from == w.committed+1
			}
		}
	}
	p := cut(h, int64(w.committed)-int64(h.first), uint32(last-h.first), *w.shards.Load())
	parts := make([]merge.Source, len(p.files))
	for i, f := range p.files {
		parts[i].Series = f.content(p)
	}
	return equal(merge.Sources(sources...), merge.Sources(parts...))
}

// source opens a file that a flush under our identity added, and says which
// sequence its commit begins with; 0 for any other file.
func (w *Writer) source(ctx context.Context, a *action.Add) (s merge.Source, from wal.Sequence, err error) {
	tags, ok, err := chunk.ParseTags(a.Tags)
	if err != nil {
		return s, 0, fmt.Errorf("%s: %w", a.Path, err)
	}
	if !ok || !a.DataChange || len(tags.WAL) != 1 || tags.WAL[0].Writer != w.wal.Writer().String() {
		return s, 0, nil
	}
	key, err := w.log.Key(a.Path)
	if err != nil {
		return s, 0, err
	}
	f, err := chunk.Open(ctx, chunk.StoreSource(w.log.Store(), key), a.Size)
	if err != nil {
		return s, 0, err
	}
	w.order = max(w.order, tags.Order.Hi) // what comes next must rank higher
	s.Rank = merge.Rank{Order: tags.Order.Hi, Tie: a.Path}
	s.Series = f.Select(ctx, series.Selector{Range: series.AllTime}, nil)
	return s, wal.Sequence(tags.WAL[0].First), nil
}

// equal reports whether two sequences hold the same series with the same
// samples, bit for bit.
func equal(a, b iter.Seq2[merge.Series, error]) (bool, error) {
	next, stop := iter.Pull2(b)
	defer stop()
	for x, err := range a {
		if err != nil {
			return false, err
		}
		y, err, ok := next()
		if err != nil {
			return false, err
		}
		if !ok || !labels.Equal(x.Labels, y.Labels) || len(x.Samples) != len(y.Samples) {
			return false, nil
		}
		for i := range x.Samples {
			if !x.Samples[i].Equal(y.Samples[i]) {
				return false, nil
			}
		}
	}
	_, err, more := next()
	return !more, err
}
