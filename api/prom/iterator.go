package prom

import (
	"fmt"
	"sort"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/prompb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"

	"cardinalsin/series"
)

// tableSeries is one series of a selection. Its samples are in memory, or come
// from a stream when they are asked for.
type tableSeries struct {
	labels labels.Labels
	id     series.ID
	points points
	stream *stream     // nil: points has them
	made   *evaluation // of the selector; nil where series have no samples
}

func (s *tableSeries) Labels() labels.Labels { return s.labels }

// Iterator implements storage.Series. It reads nothing yet: upstream may make
// the iterators of all series before it uses the first.
func (s *tableSeries) Iterator(again chunkenc.Iterator) chunkenc.Iterator {
	it, ok := again.(*iterator)
	if !ok {
		it = &iterator{first: true}
	} else {
		it.release()
		it.first = false
	}
	*it = iterator{series: s, points: s.points, at: -1, first: it.first}
	return it
}

// iterator walks over the samples of one series.
type iterator struct {
	series *tableSeries
	points points
	loaded bool
	at     int // -1: before the first
	err    error
	// An iterator that is used for one series after another holds the samples
	// of one. Others may be many, and what they hold is counted.
	first bool
	held  int64 // bytes that are counted
}

// release gives back what the iterator holds of a stream.
func (it *iterator) release() {
	if it.held > 0 {
		// It cannot fail: less is held than before.
		_ = it.series.stream.hold(-it.held)
		it.held = 0
	}
}

// ready loads the samples; false is an error.
func (it *iterator) ready() bool {
	if !it.loaded {
		it.loaded = true
		if err := it.load(); err != nil {
			it.points, it.err = points{}, tableError{fmt.Errorf("%s: %w", it.series.labels, err)}
			it.series.made.failure.note(it.err)
		}
	}
	return it.err == nil
}

func (it *iterator) load() (err error) {
	if from := it.series.stream; from != nil {
		if it.points, err = from.points(it.series); err != nil {
			return err
		}
		if it.first {
			it.points = it.points.alone()
			n := it.points.bytes()
			if err := from.hold(n); err != nil {
				return err
			}
			it.held = n
		}
	}
	return it.series.made.charge(&it.points)
}

func (it *iterator) Next() chunkenc.ValueType {
	if !it.ready() {
		return chunkenc.ValNone
	}
	it.at++
	return it.kind()
}

// near is how far it is looked for a time one by one: mostly it is one of the
// next few.
const near = 8

// seekTime returns the first place from at on that is not before t, in ms.
func seekTime(times []series.Timestamp, at int, t int64) int {
	if at >= len(times) {
		return len(times)
	}
	const milli = 1000
	if t > int64(series.MaxTimestamp)/milli || t < int64(series.MinTimestamp)/milli {
		for at < len(times) && times[at].Millis() < t {
			at++
		}
		return at
	}
	first, rest := series.Timestamp(t*milli), times[at:]
	n := 0
	for n < len(rest) && n < near && rest[n] < first {
		n++
	}
	if n == near {
		n += sort.Search(len(rest)-n, func(i int) bool { return rest[n+i] >= first })
	}
	return at + n
}

func (it *iterator) Seek(t int64) chunkenc.ValueType {
	if !it.ready() {
		return chunkenc.ValNone
	}
	it.at = max(it.at, 0)
	if times := it.points.floats.Times; len(times) > 0 {
		it.at = seekTime(times, it.at, t)
		return it.kind()
	}
	rest := it.points.samples[min(it.at, len(it.points.samples)):]
	n := 0
	for n < len(rest) && n < near && rest[n].Time.Millis() < t {
		n++
	}
	if n == near {
		n += sort.Search(len(rest)-n, func(i int) bool { return rest[n+i].Time.Millis() >= t })
	}
	it.at += n
	return it.kind()
}

// kind is the type of the sample that the iterator stands on.
func (it *iterator) kind() chunkenc.ValueType {
	if n := len(it.points.floats.Times); n > 0 {
		if it.at < n {
			return chunkenc.ValFloat
		}
		it.at = n
		return chunkenc.ValNone
	}
	if it.at >= len(it.points.samples) {
		it.at = len(it.points.samples)
		return chunkenc.ValNone
	}
	switch h := it.histogram(); {
	case h == nil:
		return chunkenc.ValFloat
	case h.IsFloatHistogram():
		return chunkenc.ValFloatHistogram
	}
	return chunkenc.ValHistogram
}

func (it *iterator) sample() *series.Sample { return &it.points.samples[it.at] }

// histogram is nil where the sample is a float.
func (it *iterator) histogram() *prompb.Histogram {
	if it.points.histograms == nil {
		return nil
	}
	return it.points.histograms[it.at]
}

func (it *iterator) At() (int64, float64) {
	if f := &it.points.floats; len(f.Times) > 0 {
		return f.Times[it.at].Millis(), f.Values[it.at]
	}
	s := it.sample()
	return s.Time.Millis(), s.Value
}

func (it *iterator) AtT() int64 {
	if f := &it.points.floats; len(f.Times) > 0 {
		return f.Times[it.at].Millis()
	}
	return it.sample().Time.Millis()
}

func (it *iterator) AtST() int64 {
	if len(it.points.floats.Times) > 0 {
		return 0
	}
	return startMillis(it.sample())
}

func (it *iterator) Err() error { return it.err }

func (it *iterator) AtHistogram(*histogram.Histogram) (int64, *histogram.Histogram) {
	h := it.histogram()
	if h == nil || h.IsFloatHistogram() {
		return it.AtT(), nil
	}
	return it.AtT(), h.ToIntHistogram().Copy()
}

func (it *iterator) AtFloatHistogram(*histogram.FloatHistogram) (int64, *histogram.FloatHistogram) {
	h := it.histogram()
	if h == nil {
		return it.AtT(), nil
	}
	// A copy: of a float histogram, upstream's conversion shares the buckets,
	// and the engine computes in what it gets.
	return it.AtT(), h.ToFloatHistogram().Copy()
}
