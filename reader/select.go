package reader

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/index"
	"cardinalsin/internal/merge"
	"cardinalsin/planner"
	"cardinalsin/series"
	"cardinalsin/storage"
	"cardinalsin/txlog"
)

// Bounds of what one file hands over at once. A file's producer runs at most
// one batch ahead of the merge.
const (
	batchSeries  = 64
	batchSamples = 16 << 10
	// batchesAhead is how many more a producer of floats makes, about a row
	// group of them, so that the next one is decoded while this one is used.
	batchesAhead = 8
	// inPlace: a file is read where it is asked for. To hand a few samples over
	// takes longer than to read them.
	inPlace = -1
)

// Select yields the series that the selector picks, merged over the files and
// the head, in the order of series.Compare; samples ascend strictly by
// (Time, Nanos), one an instant. Histograms are shared: treat them as
// read-only.
//
// Files are read as the sequence is consumed; each holds at most one request
// (8 MiB, or a row group where that is larger), one decoded row group and two
// batches in memory. Of a file that the index covers only the samples of the
// selected series are read. The first error ends the sequence:
// lease.ErrPinLost, chunk.ErrCorrupt naming the file, ErrClosed,
// txlog.ErrUnsupported, storage errors, that of ctx. What was yielded before is
// true but not complete.
func (v *View) Select(ctx context.Context, sel series.Selector) iter.Seq2[series.Series, error] {
	return func(yield func(series.Series, error) bool) {
		fail := func(err error) { yield(series.Series{}, v.failed("select", err)) }
		ahead, wait, cancel := v.openAhead(ctx)
		defer wait()
		defer cancel()
		l, err := v.locate(ctx, sel, index.Limits{Ahead: ahead})
		if err != nil {
			fail(err)
			return
		}
		read := func(f *planner.File, open *chunk.File, ctx context.Context) iter.Seq2[chunk.Series, error] {
			if runs, ok := l.runs(f); ok {
				return open.SelectRuns(ctx, sel.Range, runs)
			}
			return open.Select(ctx, sel, nil)
		}
		for s, err := range v.merged(ctx, l.Files, v.fromHead(HeadView.Select, sel), nil, 0, read) {
			if err != nil {
				fail(err)
				return
			}
			if !yield(series.Series{Labels: s.Labels, Samples: s.AllSamples()}, nil) {
				return
			}
		}
	}
}

func (v *View) failed(step string, err error) error {
	return fmt.Errorf("%s at version %d: %w", step, int64(v.Version()), err)
}

// located is what a selector needs of the files.
type located struct {
	planner.Scan
	found index.Found
}

// runs returns where the selected series of a file lie, if the index knows.
func (l *located) runs(f *planner.File) ([]chunk.Run, bool) {
	in, ok := l.found.Covered[f.Add.Path]
	if !ok {
		return nil, false
	}
	out := make([]chunk.Run, len(in))
	for i, r := range in {
		s := &l.found.Series[r.Series]
		out[i] = chunk.Run{Labels: s.Labels, ID: s.ID, RowGroup: r.RowGroup, First: r.First, Rows: r.Rows}
	}
	return out, true
}

// plan chooses files by what the log says of them.
func (v *View) plan(sel series.Selector) (planner.Scan, error) {
	if err := v.Check(); err != nil {
		return planner.Scan{}, err
	}
	if v.Foreign() {
		return planner.Scan{}, fmt.Errorf("%w: a table of another engine has no series", txlog.ErrUnsupported)
	}
	return v.reader.planner.Plan(v.snapshot, sel)
}

// locate chooses files also by what the index says of them, within limits.
func (v *View) locate(ctx context.Context, sel series.Selector, limits index.Limits) (located, error) {
	scan, err := v.plan(sel)
	if err != nil {
		return located{}, err
	}
	return v.look(ctx, sel, scan, limits)
}

// look asks the index about the files of a scan.
func (v *View) look(ctx context.Context, sel series.Selector, scan planner.Scan, limits index.Limits) (located, error) {
	l := located{Scan: scan}
	if v.reader.opts.Index == nil || len(sel.Matchers) == 0 || len(scan.Files) == 0 {
		return l, nil
	}
	var err error
	if l.found, err = v.reader.opts.Index.Find(ctx, v.snapshot, sel, paths(scan.Files), limits); err != nil {
		return located{}, err
	}
	l.Files = slices.DeleteFunc(l.Files, func(f planner.File) bool {
		runs, covered := l.found.Covered[f.Add.Path]
		if covered && len(runs) == 0 {
			l.Skipped[planner.ReasonIndex]++
			l.SkippedBytes[planner.ReasonIndex] += f.Add.Size
			return true
		}
		return false
	})
	return l, nil
}

// openAhead returns what opens files, by path, while the caller is still busy
// with something else; whoever reads one later says what is wrong with it. wait
// returns when nothing is under way any more, cancel ends what is.
func (v *View) openAhead(ctx context.Context) (open func(path string), wait, cancel func()) {
	ctx, stop := context.WithCancel(ctx)
	running := &sync.WaitGroup{}
	free := atomic.Int64{}
	free.Store(int64(v.reader.opts.Reads))
	open = func(path string) {
		a, ok := v.snapshot.File(action.Key{Path: path})
		key, err := v.reader.log.Key(path)
		if !ok || err != nil || v.reader.footers.has(key) || free.Add(-1) < 0 {
			return
		}
		running.Go(func() { _, _ = v.reader.footers.open(ctx, &fencedSource{view: v, key: key, size: a.Size}) })
	}
	return open, running.Wait, stop
}

func paths(files []planner.File) []string {
	out := make([]string, len(files))
	for i := range files {
		out[i] = files[i].Add.Path
	}
	return out
}

// readFunc is how an open file is read: with samples or without.
type readFunc func(f *planner.File, open *chunk.File, ctx context.Context) iter.Seq2[chunk.Series, error]

// merged merges what read finds in each of the files with the head, and with
// series that are known, which are weaker than both. Each file is read so many
// batches ahead, or inPlace.
func (v *View) merged(ctx context.Context, files []planner.File, head iter.Seq2[merge.Series, error], known []index.Series, ahead int, read readFunc) iter.Seq2[merge.Series, error] {
	return func(yield func(merge.Series, error) bool) {
		if err := v.Check(); err != nil {
			yield(merge.Series{}, err)
			return
		}
		// Producers end before the sequence does, whatever ends it.
		var running sync.WaitGroup
		defer running.Wait()
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		sources := make([]merge.Source, 0, len(files)+2)
		if len(known) > 0 {
			sources = append(sources, merge.Source{Series: knownSeries(known)})
		}
		for i := range files {
			f := &files[i]
			from := v.file(ctx, f, read)
			if ahead == inPlace {
				from = v.checked(from)
			} else {
				from = v.produce(ctx, &running, ahead, from)
			}
			sources = append(sources, merge.Source{Rank: f.Rank(), Series: from})
		}
		if head != nil {
			sources = append(sources, merge.Source{Rank: merge.HeadRank, Series: head})
		}
		for s, err := range merge.Sources(sources...) {
			if !yield(s, err) || err != nil {
				return
			}
		}
	}
}

func knownSeries(known []index.Series) iter.Seq2[merge.Series, error] {
	return func(yield func(merge.Series, error) bool) {
		for _, s := range known {
			if !yield(merge.Series{Labels: s.Labels, ID: s.ID, Samples: merge.Present}, nil) {
				return
			}
		}
	}
}

// fromHead yields what a method of the head does, nil if there is no head.
func (v *View) fromHead(method func(HeadView, series.Selector) iter.Seq[merge.Series], sel series.Selector) iter.Seq2[merge.Series, error] {
	if v.head == nil {
		return nil
	}
	return func(yield func(merge.Series, error) bool) {
		for s := range method(v.head, sel) {
			if !yield(s, nil) {
				return
			}
		}
	}
}

// checked yields from a file as long as nothing is wrong with the view: what was
// kept needed no reading, which checks.
func (v *View) checked(file iter.Seq2[chunk.Series, error]) iter.Seq2[chunk.Series, error] {
	return func(yield func(chunk.Series, error) bool) {
		for s, err := range file {
			if lost := v.Check(); lost != nil && err == nil {
				s, err = chunk.Series{}, lost
			}
			if !yield(s, err) || err != nil {
				return
			}
		}
	}
}

// batch is what a producer hands over: series, or the error that ends it.
type batch struct {
	series []chunk.Series
	err    error
}

// produce reads one file in a goroutine of its own, so that many files are
// read at the same time though a merge asks one after the other. The
// goroutine ends when the file does, or ctx.
func (v *View) produce(ctx context.Context, running *sync.WaitGroup, ahead int, file iter.Seq2[chunk.Series, error]) iter.Seq2[chunk.Series, error] {
	out := make(chan batch, ahead)
	send := func(b batch) bool {
		if err := v.Check(); err != nil && b.err == nil {
			b = batch{err: err} // what was kept needed no reading, which checks
		}
		select {
		case out <- b:
			return true
		case <-ctx.Done():
			return false
		}
	}
	running.Go(func() {
		defer close(out)
		var b batch
		samples := 0
		for s, err := range file {
			if err != nil {
				// What came before is of no use to anyone.
				send(batch{err: err})
				return
			}
			b.series = append(b.series, s)
			samples += len(s.Samples) + len(s.Floats.Times)
			if len(b.series) >= batchSeries || samples >= batchSamples {
				if !send(b) {
					return
				}
				b, samples = batch{}, 0
			}
		}
		if len(b.series) > 0 {
			send(b)
		}
	})
	return func(yield func(chunk.Series, error) bool) {
		for b := range out {
			if b.err != nil {
				yield(chunk.Series{}, b.err)
				return
			}
			for i := range b.series {
				if !yield(b.series[i], nil) {
					return
				}
			}
		}
		// A producer that ctx stopped closes the channel early: an end that
		// is none.
		if err := ctx.Err(); err != nil {
			yield(chunk.Series{}, err)
		}
	}
}

// file reads one file of the plan.
func (v *View) file(ctx context.Context, f *planner.File, read readFunc) iter.Seq2[chunk.Series, error] {
	return func(yield func(chunk.Series, error) bool) {
		open, err := v.File(ctx, f.Add)
		if err != nil {
			yield(chunk.Series{}, err)
			return
		}
		for s, err := range read(f, open, ctx) {
			if errors.Is(err, chunk.ErrCorrupt) {
				v.reader.footers.files.Drop(open.Name()) // the store may have the right bytes
			}
			if !yield(s, err) || err != nil {
				return
			}
		}
	}
}

// File opens a data file of the view, whose footer costs a request or two unless
// it is kept. What is read of it is read under the view's pin, through
// Options.Ranges. Errors: chunk.ErrCorrupt, txlog.ErrUnsupported,
// lease.ErrPinLost, ErrClosed, and those of the store.
func (v *View) File(ctx context.Context, add *action.Add) (*chunk.File, error) {
	if add.DeletionVector != nil {
		return nil, fmt.Errorf("%w: deletion vector of file %s", txlog.ErrUnsupported, add.Path)
	}
	key, err := v.reader.log.Key(add.Path)
	if err != nil {
		return nil, err
	}
	f, err := v.reader.footers.open(ctx, &fencedSource{view: v, key: key, size: add.Size})
	if err == nil {
		err = v.Check() // what is kept was read under another view's pin
	}
	return f, err
}

// fencedSource reads ranges of a data file under the view's pin.
type fencedSource struct {
	view *View
	key  string
	size int64 // as logged
}

// Name implements chunk.Source.
func (s *fencedSource) Name() string { return s.key }

// ReadRange implements chunk.Source. The pin is checked after every read: if
// it holds then, it held when the store answered, and vacuum had to keep the
// file. So what is missing under a pin that holds is corruption, and under
// one that is lost it means nothing, and neither does any answer.
func (s *fencedSource) ReadRange(ctx context.Context, offset, length int64) ([]byte, error) {
	v := s.view
	select {
	case v.reader.reads <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	var data []byte
	var err error
	if store := v.reader.log.Store(); v.reader.opts.Ranges == nil {
		data, err = store.GetRange(ctx, s.key, offset, length)
	} else {
		data, err = v.reader.opts.Ranges.ReadRange(ctx, store, s.key, s.size, offset, length)
	}
	<-v.reader.reads
	if lost := v.Check(); lost != nil {
		return nil, lost
	}
	if errors.Is(err, storage.ErrNotFound) && v.hold != nil {
		return nil, fmt.Errorf("%w: the log names %s, which does not exist: %w", chunk.ErrCorrupt, s.key, err)
	}
	return data, err
}

// Series yields the label sets that the selector picks, in the order of
// series.Compare, each once, without reading samples of files: a series may
// be among them whose samples lie near the time range and not in it. Of files
// that the index covers nothing is read. Errors are those of Select.
func (v *View) Series(ctx context.Context, sel series.Selector) iter.Seq2[series.Labels, error] {
	return func(yield func(series.Labels, error) bool) {
		l, err := v.locate(ctx, sel, index.Limits{})
		if err != nil {
			yield(labels.EmptyLabels(), v.failed("list series", err))
			return
		}
		for s, err := range v.labelSets(ctx, sel, l.uncovered(), v.fromHead(HeadView.Series, sel), l.found.Series) {
			if !yield(s.Labels, err) || err != nil {
				return
			}
		}
	}
}

// uncovered lists the files that the index says nothing of.
func (l *located) uncovered() []planner.File {
	return slices.DeleteFunc(slices.Clone(l.Files), func(f planner.File) bool {
		_, covered := l.found.Covered[f.Add.Path]
		return covered
	})
}

// labelSets yields the selected label sets of files and head, and those known.
func (v *View) labelSets(ctx context.Context, sel series.Selector, files []planner.File, head iter.Seq2[merge.Series, error], known []index.Series) iter.Seq2[index.Series, error] {
	read := func(_ *planner.File, open *chunk.File, ctx context.Context) iter.Seq2[chunk.Series, error] {
		return func(yield func(chunk.Series, error) bool) {
			for s, err := range open.Series(ctx, sel, nil) {
				s.Samples = merge.Present
				if !yield(s, err) || err != nil {
					return
				}
			}
		}
	}
	return func(yield func(index.Series, error) bool) {
		for s, err := range v.merged(ctx, files, head, known, 0, read) {
			if err != nil {
				yield(index.Series{}, v.failed("list series", err))
				return
			}
			if !yield(index.Series{Labels: s.Labels, ID: s.ID}, nil) {
				return
			}
		}
	}
}

// LabelNames returns the label names of the series that the selector picks,
// sorted; with a limit above 0 the first of them, up to that many. See Series
// for how it treats the time range, and for errors.
func (v *View) LabelNames(ctx context.Context, sel series.Selector, limit int) ([]string, error) {
	ask := func(files []string) (names, uncovered []string, err error) {
		return v.reader.opts.Index.LabelNames(ctx, v.snapshot, sel, files, limit)
	}
	inHead := func(h HeadView) []string { return h.LabelNames(sel) }
	return v.texts(ctx, sel, limit, ask, inHead, func(l series.Labels, add func(string)) {
		l.Range(func(l labels.Label) { add(l.Name) })
	})
}

// LabelValues returns the values of one label among the series that the
// selector picks, sorted; with a limit above 0 the first of them, up to that
// many. See Series for how it treats the time range, and for errors.
func (v *View) LabelValues(ctx context.Context, name string, sel series.Selector, limit int) ([]string, error) {
	ask := func(files []string) (values, uncovered []string, err error) {
		return v.reader.opts.Index.LabelValues(ctx, v.snapshot, name, sel, files, limit)
	}
	inHead := func(h HeadView) []string { return h.LabelValues(name, sel) }
	return v.texts(ctx, sel, limit, ask, inHead, func(l series.Labels, add func(string)) {
		if value := l.Get(name); value != "" {
			add(value)
		}
	})
}

// texts joins what the index says with what the head and the rest of the files
// hold.
func (v *View) texts(ctx context.Context, sel series.Selector, limit int, ask func(files []string) (texts, uncovered []string, err error), inHead func(HeadView) []string, of func(l series.Labels, add func(string))) ([]string, error) {
	scan, err := v.plan(sel)
	if err != nil {
		return nil, v.failed("list labels", err)
	}
	var known []string
	if v.reader.opts.Index != nil && len(scan.Files) > 0 {
		var uncovered []string
		if known, uncovered, err = ask(paths(scan.Files)); err != nil {
			return nil, v.failed("list labels", err)
		}
		left := make(map[string]bool, len(uncovered))
		for _, p := range uncovered {
			left[p] = true
		}
		scan.Files = slices.DeleteFunc(scan.Files, func(f planner.File) bool { return !left[f.Add.Path] })
	}
	set := map[string]struct{}{}
	if v.head != nil {
		for _, s := range inHead(v.head) {
			set[s] = struct{}{}
		}
	}
	for l, err := range v.labelSets(ctx, sel, scan.Files, nil, nil) {
		if err != nil {
			return nil, err
		}
		of(l.Labels, func(s string) { set[s] = struct{}{} })
	}
	if len(set) > 0 {
		more := make([]string, 0, len(set))
		for s := range set {
			more = append(more, s)
		}
		slices.Sort(more)
		known = union(known, more)
	}
	if limit > 0 && len(known) > limit {
		known = known[:limit]
	}
	if known == nil {
		known = []string{}
	}
	return known, v.Check()
}

// union merges two ascending lists without repetitions.
func union(a, b []string) []string {
	if len(a) == 0 {
		return b
	}
	out := make([]string, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		switch c := strings.Compare(a[0], b[0]); {
		case c < 0:
			out, a = append(out, a[0]), a[1:]
		case c > 0:
			out, b = append(out, b[0]), b[1:]
		default:
			out, a, b = append(out, a[0]), a[1:], b[1:]
		}
	}
	return append(append(out, a...), b...)
}
