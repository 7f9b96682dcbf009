package otlp

import (
	"math"
	"slices"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/storage"

	"cardinalsin/ingest"
	"cardinalsin/internal/nativehist"
	"cardinalsin/series"
)

// output gathers what upstream's converter appends.
type output struct {
	labels    []series.Labels
	samples   []series.Sample // one for each of labels
	exemplars []series.Exemplar
	metadata  []series.Metadata
	last      series.Metadata // described last
	known     map[series.Metadata]struct{}
}

func (o *output) add(l series.Labels, p *point, v float64, h []byte) {
	o.labels = append(o.labels, l)
	o.samples = append(o.samples, series.Sample{Time: p.time, Nanos: p.nanos, Start: p.start, Value: v, Histogram: h})
}

func (o *output) describe(m series.Metadata) {
	if m == o.last {
		return // the usual case, and quick: their strings are the same ones
	}
	o.last = m
	if _, known := o.known[m]; known {
		return
	}
	if o.known == nil {
		o.known = map[series.Metadata]struct{}{}
	}
	o.known[m] = struct{}{}
	o.metadata = append(o.metadata, m)
}

func (o *output) request() *ingest.Request {
	batch := make(series.Batch, len(o.labels))
	for i, l := range o.labels {
		batch[i] = series.Series{Labels: l, Samples: o.samples[i : i+1 : i+1]}
	}
	return &ingest.Request{Protocol: ingest.OTLP, Samples: batch, Exemplars: o.exemplars, Metadata: o.metadata}
}

// Append implements storage.AppenderV2 for upstream's converter. st and t are
// indices; st is 0 where upstream made the sample up: of target_info.
func (t *translation) Append(_ storage.SeriesRef, l labels.Labels, st, at int64, v float64, h *histogram.Histogram, _ *histogram.FloatHistogram, o storage.AppendV2Options) (storage.SeriesRef, error) {
	p := &t.points[at-1]
	t.out.describe(metadataOf(o))
	if st == 0 {
		i, _ := slices.BinarySearchFunc(t.resources, int(at), func(r resource, at int) int { return r.end - at })
		t.resources[i].target = l
		return 0, nil
	}
	var encoded []byte
	if h != nil {
		var err error
		if encoded, err = nativeHistogram(h, p); err != nil {
			t.report.reject(o.MetricFamilyName, 1, err)
			return 0, nil
		}
		v = 0
	}
	t.out.add(l, p, v, encoded)
	if p.hasMin || p.hasMax {
		t.extremes(l, p, h != nil, o.MetricFamilyName)
	}
	for i := p.exemplars.first; i < p.exemplars.end; i++ {
		t.keepExemplar(l, i)
	}
	for _, e := range o.Exemplars {
		t.keepExemplar(l, int(e.Ts-1))
	}
	return 0, nil
}

func (t *translation) keepExemplar(l series.Labels, i int) {
	e := t.exemplars[i]
	e.Series = l
	t.out.exemplars = append(t.out.exemplars, e)
}

// extremes keeps the smallest and the largest observation, for which neither
// kind of histogram has a place, beside the histogram.
func (t *translation) extremes(l series.Labels, p *point, native bool, family string) {
	if !native && l.Get(series.MetricName) != family+"_count" {
		return // once
	}
	b := labels.NewBuilder(l)
	if p.hasMin {
		t.out.add(b.Set(series.MetricName, family+"_min").Labels(), p, p.min, nil)
	}
	if p.hasMax {
		t.out.add(b.Set(series.MetricName, family+"_max").Labels(), p, p.max, nil)
	}
}

// nativeHistogram encodes what upstream made of a histogram, and mends what it
// does not hand through.
func nativeHistogram(h *histogram.Histogram, p *point) ([]byte, error) {
	switch {
	case p.stale:
		// As a scrape writes it.
		h = &histogram.Histogram{Sum: math.Float64frombits(value.StaleNaN)}
	case p.noSum:
		h.Sum = math.NaN() // not known is not 0
	}
	if p.zeroThreshold > 0 {
		h.ZeroThreshold = p.zeroThreshold
	}
	return nativehist.FromModel(h, nil)
}

func metadataOf(o storage.AppendV2Options) series.Metadata {
	m := series.Metadata{Metric: o.MetricFamilyName, Type: string(o.Metadata.Type), Unit: o.Metadata.Unit, Help: o.Metadata.Help}
	if o.Metadata.Type == model.MetricTypeUnknown {
		m.Type = ""
	}
	return m
}

// Commit implements storage.AppenderV2; the converter does not call it.
func (t *translation) Commit() error { return nil }

// Rollback is like Commit.
func (t *translation) Rollback() error { return nil }

// targetInterval is how far samples of target_info may lie apart where its
// resource has data: half of the time for which PromQL takes a sample for
// current.
const targetInterval = series.Timestamp(150 * time.Second / time.Microsecond)

// targets writes target_info for each resource, at the first and the last
// data point of every interval in which the resource has any. So wherever a
// query sees a data point, it sees target_info; and there are never more of
// them than data points, however far those lie apart.
func (t *translation) targets() {
	for _, r := range t.resources {
		if r.target.IsEmpty() || r.first == r.end {
			continue
		}
		times := make([]series.Sample, 0, r.end-r.first)
		for _, p := range t.points[r.first:r.end] {
			times = append(times, series.Sample{Time: p.time, Nanos: p.nanos})
		}
		slices.SortFunc(times, series.Sample.Compare)
		times = slices.CompactFunc(times, series.Sample.Equal)
		for i, p := range times {
			first := i == 0 || times[i-1].Time/targetInterval != p.Time/targetInterval
			last := i == len(times)-1 || times[i+1].Time/targetInterval != p.Time/targetInterval
			if first || last {
				t.out.add(r.target, &point{time: p.Time, nanos: p.Nanos}, 1, nil)
			}
		}
	}
}

var _ storage.AppenderV2 = (*translation)(nil)
