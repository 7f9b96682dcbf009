package writer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/internal/crashpoint"
	"cardinalsin/shard"
	"cardinalsin/storage"
	"cardinalsin/txlog"
	"cardinalsin/wal"
)

// maxConflicts is how often a flush is planned anew before it is left to the
// next: by then somebody changes the shard map or the schema faster than we
// can encode.
const maxConflicts = 8

// Flush commits everything that was acknowledged before the call; when it
// returns nil that is in the table. One flush runs at a time; others wait.
// With nothing to flush it costs no store request; otherwise one put a file
// and one conditional put, nearly always for one commit.
//
// After an error the head and the WAL are as they were, less what was
// committed on the way, and Flush may be called again. An error of the WAL's
// truncation comes after the commit. txlog.ErrFenced is terminal: the writer
// accepts nothing more, and the WAL keeps what the table refused.
func (w *Writer) Flush(ctx context.Context) error {
	select {
	case w.flushing <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-w.flushing }()
	if err := w.flush(ctx); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	return nil
}

func (w *Writer) flush(ctx context.Context) error {
	if w.fenced != nil {
		return w.fenced
	}
	w.short.Store(false)
	w.insertMu.Lock()
	goal := w.acknowledged
	w.insertMu.Unlock()
	for w.committed < goal {
		if err := w.refill(ctx); err != nil {
			return err
		}
		if err := w.flushPart(ctx); err != nil {
			return err
		}
	}
	return w.truncate()
}

// seal closes the active head, if there is no sealed one yet, and returns the
// sealed one. The active head must not be empty.
func (w *Writer) seal() *head {
	w.insertMu.Lock()
	defer w.insertMu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.sealed == nil {
		w.sealed, w.active = w.active, newHead()
	}
	return w.sealed
}

// drop lets go of the sealed head, all of which is committed.
func (w *Writer) drop() {
	w.insertMu.Lock()
	defer w.insertMu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.account(-w.sealed.bytes)
	w.sealed = nil
	w.oldest.Store(nil)
	if w.active.first != 0 {
		w.oldest.Store(&w.active.since)
	} else if w.spilled {
		since := w.spilledSince
		w.oldest.Store(&since)
	}
}

// flushPart makes one commit of the oldest sequences that are not in the
// table, after as many conflicts as it takes.
func (w *Writer) flushPart(ctx context.Context) error {
	start := w.opts.Now()
	w.flushBegan.Store(&start)
	var ev FlushEvent
	ev.Err = w.commitPart(ctx, &ev)
	w.flushBegan.Store(nil)
	if ev.Err == nil || ctx.Err() == nil { // a caller that has gone says nothing of the store
		w.failing.Store(ev.Err != nil)
	}
	if w.opts.Events.FlushEnd != nil {
		ev.Duration = w.opts.Now().Sub(start)
		w.opts.Events.FlushEnd(ev)
	}
	return ev.Err
}

func (w *Writer) commitPart(ctx context.Context, ev *FlushEvent) error {
	h := w.seal()
	for ; ; ev.Conflicts++ {
		if w.doubtful {
			before := w.committed
			err := w.settle(ctx, h)
			if w.committed > before {
				ev.First, ev.Last, ev.Version = before+1, w.committed, w.base.Version()
				return err
			}
			if err != nil {
				return err
			}
		}
		p := planPart(h, w.committed+1, *w.shards.Load(), w.opts.limits)
		ev.First, ev.Last = p.first, p.last
		snap, err := w.tryPart(ctx, p, ev)
		if err == nil {
			ev.Version = snap.Version()
			return w.advance(snap, p.last, h)
		}
		// Of what was uploaded, what no version names becomes an orphan. Being
		// fenced is for settle to say.
		if !w.doubtful || !errors.Is(err, txlog.ErrFenced) && (ctx.Err() != nil || ev.Conflicts >= maxConflicts) {
			return err
		}
	}
}

// tryPart uploads a part and commits it, once. It sets doubtful if the table
// may be another one than the base says: then only settle may follow.
func (w *Writer) tryPart(ctx context.Context, p *part, ev *FlushEvent) (*txlog.Snapshot, error) {
	ev.Files, ev.Rows, ev.Bytes = 0, 0, 0
	layout, err := chunk.LayoutOf(w.base.Schema())
	if err != nil {
		return nil, err
	}
	columns := layout.WithMaxLabels(w.opts.MaxLabelColumns).Grow(p.contents.Labels)
	if layout, err = grown(w.base.Schema(), columns); err != nil {
		return nil, err
	}
	began := w.log.Now()
	start := w.opts.Now()
	files, err := w.upload(ctx, p, layout)
	ev.Upload, ev.Commit = w.opts.Now().Sub(start), 0
	if err != nil {
		return nil, err
	}
	crashpoint.Here(crashpoint.Uploaded)
	// With deferred syncs the table must not get ahead of the WAL. If the
	// WAL has failed, what it acknowledged is better in the table than
	// nowhere.
	if err := w.wal.Sync(); err != nil {
		if !errors.Is(err, wal.ErrFailed) {
			return nil, err
		}
		w.opts.Logger.Error("flushing what a failed wal acknowledged", "table", w.log.Root(), "err", err)
	}
	now, err := w.log.Store().Now(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the store's clock: %w", err)
	}
	w.order = max(now.UnixMicro(), w.order+1)

	t := w.log.Begin(w.base, txlog.Operation{Name: "WRITE", Parameters: map[string]any{"mode": "Append"}, BlindAppend: true})
	tags := chunk.Tags{
		Order: chunk.Order{Lo: w.order, Hi: w.order},
		WAL:   []chunk.WALRange{{Writer: w.wal.Writer().String(), First: uint64(p.first), Last: uint64(p.last)}},
	}
	for i, f := range files {
		add, err := f.add(p.files[i], tags)
		if err != nil {
			return nil, err
		}
		t.Add(add)
		ev.Rows += f.encoded.Rows
		ev.Bytes += add.Size
	}
	ev.Files = len(files)
	if len(columns) > 0 {
		t.AddColumns(columns...)
		t.Require(txlog.SchemaAllows(func(s *action.Schema) bool {
			after, err := grown(s, columns)
			return err == nil && !slices.ContainsFunc(files, func(f file) bool { return !f.encoded.Fits(after) })
		}))
	}
	t.SetTransaction(w.app, int64(p.last))
	t.Require(
		txlog.TransactionAt(w.app, int64(w.committed)),
		txlog.DomainUnchanged(shard.Domain),
		txlog.UploadedSince(began, w.opts.MinOrphanAge/2),
		txlog.NoNewFiles(w.outranks(w.order)),
	)
	// COMMIT POINT: a crash before it leaves orphans, one after it leaves WAL
	// records that recovery skips.
	start = w.opts.Now()
	w.commitBegan.Store(&start)
	snap, err := t.Commit(ctx)
	w.commitBegan.Store(nil)
	ev.Commit = w.opts.Now().Sub(start)
	if err != nil {
		// A conflict needs another base. An unknown outcome may be a commit,
		// and fenced may mean that an earlier one of ours has landed late.
		w.doubtful = errors.Is(err, txlog.ErrConflict) || errors.Is(err, storage.ErrUnknownOutcome) || errors.Is(err, txlog.ErrFenced)
		return nil, err
	}
	crashpoint.Here(crashpoint.Committed)
	return snap, nil
}

// grown is the layout of a schema with columns appended that it lacks.
func grown(s *action.Schema, columns []action.Field) (*chunk.Layout, error) {
	all := action.Schema{Fields: slices.Clone(s.Fields)}
	for _, f := range columns {
		if s.Field(f.Name) == nil {
			all.Fields = append(all.Fields, f)
		}
	}
	return chunk.LayoutOf(&all)
}

// file is a chunk in the store.
type file struct {
	path    string // below the table's root
	size    int64
	encoded *chunk.Encoded // without its data
}

// upload encodes and puts the files of a part under fresh names.
func (w *Writer) upload(ctx context.Context, p *part, layout *chunk.Layout) ([]file, error) {
	files := make([]file, len(p.files))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(w.opts.Uploads) // and so the encoded files in memory
	for i, f := range p.files {
		if gctx.Err() != nil {
			break
		}
		encoded, err := f.encode(w.opts.Chunk, layout, p)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("encode %s of shard %s: %w", f.date, f.shard, err), g.Wait())
		}
		id, err := uuid.NewV7()
		if err != nil {
			return nil, errors.Join(fmt.Errorf("name a file: %w", err), g.Wait())
		}
		path := fmt.Sprintf("%s=%s/%s=%s/%s.parquet", chunk.ColumnDate, f.date, chunk.ColumnShard, f.shard, id)
		data := encoded.Data
		encoded.Data = nil
		files[i] = file{path: path, size: int64(len(data)), encoded: encoded}
		g.Go(func() error {
			if _, err := w.log.Store().Put(gctx, w.log.Root()+"/"+path, bytes.NewReader(data)); err != nil {
				return fmt.Errorf("upload %s: %w", path, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return files, nil
}

// add is the file's action.
func (f file) add(p *partition, tags chunk.Tags) (action.Add, error) {
	stats, err := f.encoded.Stats.Encode()
	if err != nil {
		return action.Add{}, fmt.Errorf("%s: %w", f.path, err)
	}
	tags.Time, tags.Keys = f.encoded.Time, f.encoded.Keys
	return action.Add{
		Path: f.path,
		PartitionValues: action.ObjectOf(map[string]string{
			chunk.ColumnDate: p.date.String(), chunk.ColumnShard: string(p.shard),
		}),
		Size: f.size, DataChange: true, Stats: stats, Tags: tags.Encode(),
	}, nil
}

// advance notes that a version has our records up to last. The caller flushes
// from h.
func (w *Writer) advance(snap *txlog.Snapshot, last wal.Sequence, h *head) error {
	w.committed, w.doubtful = last, false
	w.flushed.Store(uint64(last))
	err := errors.Join(w.setBase(snap), w.truncate())
	// The version is out, so readers that do not see the head any more see
	// the table; whether the WAL could be truncated does not matter for that.
	if last == h.last {
		w.drop()
	}
	return err
}

// truncate frees the WAL of what is committed. It costs nothing if that was
// done.
func (w *Writer) truncate() error {
	if w.truncated == w.committed {
		return nil
	}
	crashpoint.Here(crashpoint.Truncating)
	if err := w.wal.Truncate(w.committed); err != nil {
		return err
	}
	w.truncated = w.committed
	return nil
}

// outranks tells the files that have rows of ours and rank no lower than a
// flush of that order. If one came since the base, our earlier rows were merged
// with another writer's later ones while this flush was on its way, and would
// win over its rows: it must take a number anew. The base has no such file, see
// setBase.
func (w *Writer) outranks(order int64) func(*action.Add) bool {
	id := w.wal.Writer().String()
	return func(a *action.Add) bool {
		hi, err := orderWith(a, id)
		return err != nil || hi >= order
	}
}

// setBase takes a version to plan the next flush on, which must rank above
// every file in it that has rows of ours.
func (w *Writer) setBase(snap *txlog.Snapshot) error {
	conf, ok := snap.Domain(shard.Domain)
	if !ok {
		return fmt.Errorf("version %d: %w: the table has none", int64(snap.Version()), shard.ErrInvalidMap)
	}
	m, err := shard.Parse(conf)
	if err != nil {
		return fmt.Errorf("version %d: %w", int64(snap.Version()), err)
	}
	came := snap.Files()
	if w.base != nil {
		came = snap.AddedSince(w.base)
	}
	last, err := lastOrder(came, w.wal.Writer().String())
	if err != nil {
		return err
	}
	for a := range came {
		w.pile.add(a)
	}
	w.pile.settle(snap, w.opts.MaxLevelZero/2)
	w.levelZero.Store(int64(w.pile.deepest))
	w.base, w.order = snap, max(w.order, last)
	now := w.opts.Now()
	w.based.Store(&now)
	w.stale.Store(false)
	w.shards.Store(&m)
	return nil
}

// lastOrder is the greatest flush number of those files that have rows of the
// writer, compacted ones included; 0 if none has.
func lastOrder(files iter.Seq[*action.Add], writer string) (int64, error) {
	last := int64(0)
	for a := range files {
		hi, err := orderWith(a, writer)
		if err != nil {
			return 0, err
		}
		last = max(last, hi)
	}
	return last, nil
}

// orderWith is the upper end of a file's order if it has rows of the writer,
// else -1.
func orderWith(a *action.Add, writer string) (int64, error) {
	if !strings.Contains(string(a.Tags), writer) {
		return -1, nil // cheaper than to parse the tags of a million files
	}
	t, ok, err := chunk.ParseTags(a.Tags)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", a.Path, err)
	}
	if !ok {
		return -1, nil
	}
	return t.Order.Hi, nil
}
