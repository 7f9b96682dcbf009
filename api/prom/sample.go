package prom

import (
	"fmt"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/prompb"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"

	"cardinalsin/series"
)

// memSeries is one series with its samples, ascending by millisecond; upstream
// iterates over it.
type memSeries struct {
	labels labels.Labels
	points points
}

func (s *memSeries) Labels() labels.Labels { return s.labels }

func (s *memSeries) Iterator(chunkenc.Iterator) chunkenc.Iterator {
	return storage.NewListSeriesIterator(s.points)
}

// points are samples as upstream reads them, without a copy. histograms holds
// the decoded native histograms by place; it is nil where there are none.
type points struct {
	samples    []series.Sample
	histograms map[int]*prompb.Histogram
}

// pointsOf keeps, of the samples that share a millisecond, the last one, since
// Prometheus knows no finer time, and decodes the histograms. Bytes that are
// no histogram are an error.
func pointsOf(s []series.Sample) (points, error) {
	p := points{samples: lastOfEachMillisecond(s)}
	for i := range p.samples {
		if p.samples[i].Histogram == nil {
			continue
		}
		h := &prompb.Histogram{}
		if err := h.Unmarshal(p.samples[i].Histogram); err != nil {
			return points{}, fmt.Errorf("stored histogram at %d µs: %w", p.samples[i].Time, err)
		}
		if p.histograms == nil {
			p.histograms = map[int]*prompb.Histogram{}
		}
		p.histograms[i] = h
	}
	return p, nil
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

func (p points) Len() int                { return len(p.samples) }
func (p points) Get(i int) chunks.Sample { return point{&p.samples[i], p.histograms[i]} }

// point is one sample.
type point struct {
	*series.Sample
	hist *prompb.Histogram // nil for a float
}

func (p point) ST() int64  { return 0 }
func (p point) T() int64   { return p.Time.Millis() }
func (p point) F() float64 { return p.Value }

func (p point) H() *histogram.Histogram {
	if p.hist == nil || p.hist.IsFloatHistogram() {
		return nil
	}
	return p.hist.ToIntHistogram()
}

func (p point) FH() *histogram.FloatHistogram {
	if p.hist == nil {
		return nil
	}
	return p.hist.ToFloatHistogram()
}

func (p point) Type() chunkenc.ValueType {
	switch {
	case p.hist == nil:
		return chunkenc.ValFloat
	case p.hist.IsFloatHistogram():
		return chunkenc.ValFloatHistogram
	}
	return chunkenc.ValHistogram
}

func (p point) Copy() chunks.Sample {
	s := *p.Sample
	return point{&s, p.hist}
}
