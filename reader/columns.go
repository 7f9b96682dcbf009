package reader

import (
	"context"
	"iter"

	"cardinalsin/chunk"
	"cardinalsin/index"
	"cardinalsin/internal/merge"
	"cardinalsin/planner"
	"cardinalsin/series"
)

// Selection is what a selector picks of a view, found once and read as often
// as is needed. It may be used concurrently, while its view is open, and needs
// no closing.
type Selection struct {
	view *View
	sel  series.Selector
	at   located
	rows int64
	keep bool // decoded pages are worth keeping
}

// Choose finds what the selector picks: the files, and in those that the index
// covers the rows. Errors are those of Select.
func (v *View) Choose(ctx context.Context, sel series.Selector) (*Selection, error) {
	ahead, wait, cancel := v.openAhead(ctx)
	l, err := v.locate(ctx, sel, index.Limits{Ahead: ahead})
	if err != nil {
		cancel()
		wait()
		return nil, v.failed("select", err)
	}
	wait()
	cancel()
	s := &Selection{view: v, sel: sel, at: l}
	for _, runs := range l.found.Covered {
		for i := range runs {
			s.rows += int64(runs[i].Rows)
		}
	}
	const sampleBytes = 16
	s.keep = s.rows <= v.reader.opts.Pages.Limit()/2/sampleBytes
	return s, nil
}

// Rows is how many rows the selected series have in files that the index
// covers, within the time range or near it.
func (s *Selection) Rows() int64 { return s.rows }

// Labels is how many label sets the index found.
func (s *Selection) Labels() int { return len(s.at.found.Series) }

// Columns is Select, but for the form of the samples: where they have nothing
// but a time and a value they come as Floats, which are shared. Decoded pages
// are kept for later calls, unless the selection is so large that it would
// displace all others.
func (s *Selection) Columns(ctx context.Context) iter.Seq2[merge.Series, error] {
	v := s.view
	read := func(f *planner.File, open *chunk.File, ctx context.Context) iter.Seq2[chunk.Series, error] {
		pages := v.reader.opts.Pages
		runs, ok := s.at.runs(f)
		if !s.keep || !ok && open.Rows() > pages.Limit()/64 {
			pages = nil
		}
		open = open.AsFloats(pages)
		if ok {
			return open.SelectRuns(ctx, s.sel.Range, runs)
		}
		return open.Select(ctx, s.sel, nil)
	}
	ahead := batchesAhead
	if len(s.at.Files) == 1 && s.rows <= batchSamples {
		if _, covered := s.at.found.Covered[s.at.Files[0].Add.Path]; covered {
			ahead = inPlace
		}
	}
	return func(yield func(merge.Series, error) bool) {
		for found, err := range v.merged(ctx, s.at.Files, v.fromHead(HeadView.Select, s.sel), nil, ahead, read) {
			if err != nil {
				yield(merge.Series{}, v.failed("select", err))
				return
			}
			if !yield(found, nil) {
				return
			}
		}
	}
}

// Series yields the label sets, with their IDs; see View.Series.
func (s *Selection) Series(ctx context.Context) iter.Seq2[index.Series, error] {
	uncovered := s.at.uncovered()
	if len(uncovered) > 0 || s.view.head != nil {
		return s.view.labelSets(ctx, s.sel, uncovered, s.view.fromHead(HeadView.Series, s.sel), s.at.found.Series)
	}
	return func(yield func(index.Series, error) bool) {
		if err := s.view.Check(); err != nil {
			yield(index.Series{}, s.view.failed("list series", err))
			return
		}
		for _, found := range s.at.found.Series {
			if !yield(found, nil) {
				return
			}
		}
	}
}
