package prom

import (
	"context"
	"time"

	"github.com/prometheus/prometheus/storage"
)

// evaluation is what upstream makes of the samples of a selector: a point a
// step in which one of them counts, or each of them where they are the answer.
// The engine tells nobody how many points it has, and bounds those of one query
// only (Options.MaxSamples), so they are counted here as they come to be, once
// a selector: of an expression's operators it holds two results at a time, of
// which the second is not counted. The zero value makes nothing.
type evaluation struct {
	steps int64 // 0: all samples are the answer, if hold is set
	step  int64 // ms
	reach int64 // ms for which a sample counts
	hold  func(int64) error
	// failure is to hear of what goes wrong while samples are read; it may be nil.
	failure *readFailure
}

// evaluationOf tells it from what a selector is asked for. A request of remote
// read has the hints of an engine that is elsewhere.
func (q *querier) evaluationOf(ctx context.Context, hints *storage.SelectHints) evaluation {
	failure := readFailureOf(ctx)
	switch {
	case q.passesOn:
		return evaluation{failure: failure}
	case failure != nil:
		return evaluation{failure: failure, hold: q.hold}
	case hints == nil:
		return evaluation{}
	}
	e := evaluation{hold: q.hold, steps: 1, step: 1, reach: max(hints.Range, usualLookback.Milliseconds())}
	if hints.Step > 0 {
		e.step = hints.Step
		e.steps = (hints.End-hints.Start)/hints.Step + 1
	}
	return e
}

// usualLookback is how long a sample counts where nobody says otherwise.
const usualLookback = 5 * time.Minute

// charge counts what is made of the points of a series.
func (e *evaluation) charge(p *points) error {
	if e == nil || e.hold == nil {
		return nil
	}
	first, last, n := p.span()
	if n == 0 {
		return nil
	}
	made := int64(n)
	if e.steps > 0 {
		made = min(e.steps, (last-first+e.reach)/e.step+1)
	}
	size := int64(aFloat)
	if len(p.histograms) > 0 {
		size += p.bytes() / int64(n)
	}
	return e.hold(made * size)
}
