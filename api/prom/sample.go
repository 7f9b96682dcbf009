package prom

import (
	"fmt"
	"slices"

	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/prompb"

	"cardinalsin/chunk"
	"cardinalsin/internal/merge"
	"cardinalsin/series"
)

// points are the samples of a series as upstream is to see them, ascending by
// millisecond, without a copy. histograms holds
// the decoded native histograms by place; it is nil where there are none.
type points struct {
	samples    []series.Sample
	histograms map[int]*prompb.Histogram
	// floats stand in place of samples that have nothing but a time and a
	// value.
	floats merge.Floats
}

// span returns the times of the first and the last point in ms, and how many
// there are.
func (p *points) span() (first, last int64, n int) {
	if n = len(p.floats.Times); n > 0 {
		return p.floats.Times[0].Millis(), p.floats.Times[n-1].Millis(), n
	}
	if n = len(p.samples); n > 0 {
		return p.samples[0].Time.Millis(), p.samples[n-1].Time.Millis(), n
	}
	return 0, 0, 0
}

// pointsIn returns the points of a series, whichever form its samples have.
func pointsIn(s *merge.Series) (points, error) {
	if len(s.Floats.Times) > 0 {
		return points{floats: lastFloats(s.Floats)}, nil
	}
	return pointsOf(s.Samples)
}

// alone returns the points with floats of their own: a few that are kept would
// hold whole pages, which nobody counts.
func (p points) alone() points {
	p.floats = merge.Floats{Times: slices.Clone(p.floats.Times), Values: slices.Clone(p.floats.Values)}
	return p
}

// pointsOf keeps, of the samples that share a millisecond, the last one, since
// Prometheus knows no finer time, and decodes the histograms. Bytes that are
// no histogram are an error.
//
// It also says of each counter histogram whether it goes on from the one
// before it, as a TSDB does (tsdb/chunkenc, counterResetHint): not_reset where
// that is certain, else unknown. What the sender said is not repeated: here
// the sample before may be another one than there.
func pointsOf(s []series.Sample) (points, error) {
	p := points{samples: lastOfEachMillisecond(s)}
	var before *prompb.Histogram
	for i := range p.samples {
		if p.samples[i].Histogram == nil {
			before = nil
			continue
		}
		h, err := decodeHistogram(&p.samples[i])
		if err != nil {
			return points{}, err
		}
		if p.histograms == nil {
			p.histograms = map[int]*prompb.Histogram{}
		}
		p.histograms[i] = h
		setHint(h, before)
		before = h
	}
	return p, nil
}

func decodeHistogram(s *series.Sample) (*prompb.Histogram, error) {
	h := &prompb.Histogram{}
	if err := h.Unmarshal(s.Histogram); err != nil {
		return nil, fmt.Errorf("%w: histogram at %d µs: %w", chunk.ErrCorrupt, s.Time, err)
	}
	return h, nil
}

// setHint sets the counter reset hint of a histogram that comes after before;
// before is nil where nothing, or no histogram, came before it.
func setHint(h, before *prompb.Histogram) {
	const gauge, unknown, notReset = prompb.Histogram_GAUGE, prompb.Histogram_UNKNOWN, prompb.Histogram_NO
	reset := h.ResetHint == prompb.Histogram_YES
	if h.ResetHint == gauge {
		return
	}
	h.ResetHint = unknown
	if reset || before == nil || before.ResetHint == gauge ||
		h.IsFloatHistogram() != before.IsFloatHistogram() ||
		h.Schema != before.Schema || h.ZeroThreshold != before.ZeroThreshold ||
		value.IsStaleNaN(h.Sum) || value.IsStaleNaN(before.Sum) ||
		h.ToFloatHistogram().DetectReset(before.ToFloatHistogram()) {
		return
	}
	h.ResetHint = notReset
}

// opensCounter reports whether the first sample is a counter histogram, of
// which only the sample before it tells whether it goes on.
func (p points) opensCounter() bool {
	if len(p.floats.Times) > 0 {
		return false
	}
	h := p.histograms[0]
	return h != nil && h.ResetHint != prompb.Histogram_GAUGE
}

// follow completes the hint of the first sample, which comes after s.
func (p points) follow(s series.Sample) error {
	if s.Histogram == nil {
		return nil
	}
	before, err := decodeHistogram(&s)
	if err == nil {
		setHint(p.histograms[0], before)
	}
	return err
}

// lastFloats is lastOfEachMillisecond of floats.
func lastFloats(f merge.Floats) merge.Floats {
	t := f.Times
	const milli = 1000 // µs
	for i := 1; i < len(t); i++ {
		if t[i]-t[i-1] >= milli || t[i].Millis() != t[i-1].Millis() {
			continue
		}
		out := merge.Floats{Times: slices.Clone(t[:i]), Values: slices.Clone(f.Values[:i])}
		for ; i < len(t); i++ {
			if last := len(out.Times) - 1; t[i].Millis() == out.Times[last].Millis() {
				out.Times[last], out.Values[last] = t[i], f.Values[i]
			} else {
				out.Times, out.Values = append(out.Times, t[i]), append(out.Values, f.Values[i])
			}
		}
		return out
	}
	return f
}

// lastOfEachMillisecond returns s itself where every sample has a millisecond
// of its own, as it is with all data that came from Prometheus.
func lastOfEachMillisecond(s []series.Sample) []series.Sample {
	same := func(i int) bool { return i+1 < len(s) && s[i].Time.Millis() == s[i+1].Time.Millis() }
	for i := range s {
		if !same(i) {
			continue
		}
		out := append([]series.Sample(nil), s[:i]...)
		for ; i < len(s); i++ {
			if !same(i) {
				out = append(out, s[i])
			}
		}
		return out
	}
	return s
}

// startMillis is the start in milliseconds, rounded down; 0 where it is not known.
func startMillis(s *series.Sample) int64 {
	ms := s.Start / 1_000_000
	if s.Start%1_000_000 < 0 {
		ms--
	}
	return ms
}
