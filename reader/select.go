package reader

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"

	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/chunk"
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
)

// Select yields the series that the selector picks, merged over the files and
// the head, in the order of series.Compare; samples ascend strictly by
// (Time, Nanos), one an instant. Histograms are shared: treat them as
// read-only.
//
// Files are read as the sequence is consumed; each holds at most one request
// (8 MiB, or a row group where that is larger), one decoded row group and two
// batches in memory. The first error ends the sequence: lease.ErrPinLost,
// chunk.ErrCorrupt naming the file, ErrClosed, txlog.ErrUnsupported, storage
// errors, that of ctx. What was yielded before is true but not complete.
func (v *View) Select(ctx context.Context, sel series.Selector) iter.Seq2[series.Series, error] {
	return func(yield func(series.Series, error) bool) {
		for s, err := range v.merged(ctx, sel, (*chunk.File).Select) {
			if err != nil {
				yield(series.Series{}, err)
				return
			}
			if !yield(series.Series{Labels: s.Labels, Samples: s.Samples}, nil) {
				return
			}
		}
	}
}

// scanFunc is how a file is read: with samples or without.
type scanFunc func(f *chunk.File, ctx context.Context, sel series.Selector, rowGroups []int) iter.Seq2[chunk.Series, error]

// merged merges what scan finds in each planned file with the head.
func (v *View) merged(ctx context.Context, sel series.Selector, scan scanFunc) iter.Seq2[merge.Series, error] {
	return func(yield func(merge.Series, error) bool) {
		fail := func(err error) {
			yield(merge.Series{}, fmt.Errorf("select at version %d: %w", int64(v.Version()), err))
		}
		if err := v.Check(); err != nil {
			fail(err)
			return
		}
		if v.Foreign() {
			fail(fmt.Errorf("%w: a table of another engine has no series", txlog.ErrUnsupported))
			return
		}
		plan, err := v.Plan(sel)
		if err != nil {
			fail(err)
			return
		}
		// Producers end before the sequence does, whatever ends it.
		var running sync.WaitGroup
		defer running.Wait()
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		sources := make([]merge.Source, 0, len(plan.Files)+1)
		for i := range plan.Files {
			f := &plan.Files[i]
			sources = append(sources, merge.Source{Rank: f.Rank(), Series: v.produce(ctx, &running, f, sel, scan)})
		}
		if v.head != nil {
			sources = append(sources, merge.Source{Rank: merge.HeadRank, Series: headSeries(v.head, sel)})
		}
		for s, err := range merge.Sources(sources...) {
			if err != nil {
				fail(err)
				return
			}
			if !yield(s, nil) {
				return
			}
		}
	}
}

func headSeries(h HeadView, sel series.Selector) iter.Seq2[merge.Series, error] {
	return func(yield func(merge.Series, error) bool) {
		for s := range h.Select(sel) {
			if !yield(merge.Series{Labels: s.Labels, ID: series.IDOf(s.Labels), Samples: s.Samples}, nil) {
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
func (v *View) produce(ctx context.Context, running *sync.WaitGroup, f *planner.File, sel series.Selector, scan scanFunc) iter.Seq2[chunk.Series, error] {
	out := make(chan batch)
	send := func(b batch) bool {
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
		for s, err := range v.file(ctx, f, sel, scan) {
			if err != nil {
				// What came before is of no use to anyone.
				send(batch{err: err})
				return
			}
			b.series = append(b.series, s)
			samples += len(s.Samples)
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
func (v *View) file(ctx context.Context, f *planner.File, sel series.Selector, scan scanFunc) iter.Seq2[chunk.Series, error] {
	return func(yield func(chunk.Series, error) bool) {
		if f.Add.DeletionVector != nil {
			yield(chunk.Series{}, fmt.Errorf("%w: deletion vector of file %s", txlog.ErrUnsupported, f.Add.Path))
			return
		}
		key, err := v.reader.log.Key(f.Add.Path)
		if err != nil {
			yield(chunk.Series{}, err)
			return
		}
		open, err := chunk.Open(ctx, &fencedSource{view: v, key: key, size: f.Add.Size}, f.Add.Size)
		if err != nil {
			yield(chunk.Series{}, err)
			return
		}
		scan(open, ctx, sel, nil)(yield)
	}
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
// be among them whose samples lie near the time range and not in it. Errors
// are those of Select.
func (v *View) Series(ctx context.Context, sel series.Selector) iter.Seq2[series.Labels, error] {
	// The merge drops series without samples: give each one.
	here := []series.Sample{{}}
	scan := func(f *chunk.File, ctx context.Context, sel series.Selector, groups []int) iter.Seq2[chunk.Series, error] {
		return func(yield func(chunk.Series, error) bool) {
			for s, err := range f.Series(ctx, sel, groups) {
				s.Samples = here
				if !yield(s, err) || err != nil {
					return
				}
			}
		}
	}
	return func(yield func(series.Labels, error) bool) {
		for s, err := range v.merged(ctx, sel, scan) {
			if !yield(s.Labels, err) || err != nil {
				return
			}
		}
	}
}

// LabelNames returns the label names of the series that the selector picks,
// sorted. See Series for how it treats the time range, and for errors.
func (v *View) LabelNames(ctx context.Context, sel series.Selector) ([]string, error) {
	names := map[string]struct{}{}
	for l, err := range v.Series(ctx, sel) {
		if err != nil {
			return nil, err
		}
		l.Range(func(l labels.Label) { names[l.Name] = struct{}{} })
	}
	return sortedKeys(names), nil
}

// LabelValues returns the values of one label among the series that the
// selector picks, sorted. See Series for how it treats the time range, and
// for errors.
func (v *View) LabelValues(ctx context.Context, name string, sel series.Selector) ([]string, error) {
	values := map[string]struct{}{}
	for l, err := range v.Series(ctx, sel) {
		if err != nil {
			return nil, err
		}
		if value := l.Get(name); value != "" {
			values[value] = struct{}{}
		}
	}
	return sortedKeys(values), nil
}

func sortedKeys(set map[string]struct{}) []string {
	out := make([]string, 0, len(set))
	for k := range set {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
