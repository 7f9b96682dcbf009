package otlp

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"math"
	"math/bits"
	"slices"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage/remote/otlptranslator/prometheusremotewrite"
	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/pmetric"

	"cardinalsin/ingest"
	"cardinalsin/series"
	"cardinalsin/writer"
)

// metricContext is what the data points of a metric have in common.
type metricContext struct {
	name   string
	kind   pmetric.MetricType
	labels reserved
	size   int         // bytes of labels that each series has
	scope  []attribute // labels of a scope without a name
}

// metric prepares the data points of one metric and takes out those that
// cannot be kept. An error tells why none of them can.
func (t *translation) metric(m pmetric.Metric, c metricContext) error {
	if m.Name() == "" {
		return series.ErrNoMetricName
	}
	name, err := t.metrics.Build(prometheusremotewrite.TranslatorMetricFromOtelMetric(m))
	if err != nil {
		return fmt.Errorf("%w: %w", series.ErrInvalidLabel, err)
	}
	if len(name) > maxAttributeBytes {
		return fmt.Errorf("%w: a metric name of %d bytes", series.ErrInvalidLabel, len(name))
	}
	if other, known := t.metricNames[name]; known && other != m.Name() {
		t.report.note(1, fmt.Sprintf("metrics %.200q and %.200q are both named %.200q", other, m.Name(), name))
	}
	t.metricNames[name] = m.Name()
	c.name, c.kind = m.Name(), m.Type()
	c.size += len(series.MetricName) + len(name) + 64 // suffix, and what a series is besides its labels
	switch c.kind {
	case pmetric.MetricTypeGauge:
		each(t, m.Gauge().DataPoints(), c, t.number)
	case pmetric.MetricTypeSum:
		if err := cumulative(m.Sum().AggregationTemporality()); err != nil {
			return err
		}
		each(t, m.Sum().DataPoints(), c, t.number)
	case pmetric.MetricTypeHistogram:
		if err := cumulative(m.Histogram().AggregationTemporality()); err != nil {
			return err
		}
		c.labels.le = !t.config.ConvertHistogramsToNHCB
		each(t, m.Histogram().DataPoints(), c, t.histogram)
	case pmetric.MetricTypeExponentialHistogram:
		if err := cumulative(m.ExponentialHistogram().AggregationTemporality()); err != nil {
			return err
		}
		each(t, m.ExponentialHistogram().DataPoints(), c, t.exponential)
	case pmetric.MetricTypeSummary:
		c.labels.quantile = true
		each(t, m.Summary().DataPoints(), c, t.summary)
	}
	return nil
}

// cumulative refuses deltas: a sample that stands for the time since the one
// before it would be taken for a counter by everything that reads it.
func cumulative(a pmetric.AggregationTemporality) error {
	switch a {
	case pmetric.AggregationTemporalityCumulative:
		return nil
	case pmetric.AggregationTemporalityDelta:
		return fmt.Errorf("%w: delta temporality; set OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE=cumulative, or convert with the Collector's deltatocumulative processor", ingest.ErrUnsupported)
	}
	return fmt.Errorf("%w: no aggregation temporality", writer.ErrInvalidSample)
}

// dataPoint is what all kinds have.
type dataPoint interface {
	Attributes() pcommon.Map
	Timestamp() pcommon.Timestamp
	SetTimestamp(pcommon.Timestamp)
	StartTimestamp() pcommon.Timestamp
	SetStartTimestamp(pcommon.Timestamp)
	Flags() pmetric.DataPointFlags
}

// each prepares the data points of a metric. prepare checks what a kind has of
// its own, and tells how many series come of it.
func each[P dataPoint](t *translation, points interface{ RemoveIf(func(P) bool) }, c metricContext, prepare func(P, *point) (int, error)) {
	points.RemoveIf(func(p P) bool {
		if err := prepareOne(t, p, c, prepare); err != nil {
			t.report.reject(c.name, 1, err)
			return true
		}
		return false
	})
}

func prepareOne[P dataPoint](t *translation, p P, c metricContext, prepare func(P, *point) (int, error)) error {
	at, start := p.Timestamp(), p.StartTimestamp()
	if at == 0 {
		return fmt.Errorf("%w: no timestamp", writer.ErrInvalidSample)
	}
	if start > math.MaxInt64 {
		return fmt.Errorf("%w: start time %d ns is out of range", writer.ErrInvalidSample, start)
	}
	pt := point{kind: c.kind, start: int64(start), stale: p.Flags().NoRecordedValue()}
	pt.time, pt.nanos = split(at)
	n, err := prepare(p, &pt)
	if err != nil {
		return err
	}
	attributes := p.Attributes()
	for _, a := range c.scope {
		if _, known := attributes.Get(a.name); !known && a.value != "" {
			attributes.PutStr(a.name, a.value)
		}
	}
	size, err := t.attributes(attributes, "", c.labels)
	if err != nil {
		return err
	}
	size += c.size
	first := len(t.exemplars)
	if withExemplars, ok := any(p).(interface{ Exemplars() pmetric.ExemplarSlice }); ok {
		t.takeExemplars(withExemplars.Exemplars(), &pt, size)
	}
	if c.kind == pmetric.MetricTypeGauge {
		pt.exemplars.first, pt.exemplars.end = first, len(t.exemplars)
	}
	t.series += n
	t.labelBytes += n * size
	t.report.note(pt.inexact, "integer beyond 2^53 rounded to the nearest float64")
	t.points = append(t.points, pt)
	p.SetTimestamp(index(len(t.points) - 1))
	p.SetStartTimestamp(index(len(t.points) - 1))
	return nil
}

// split converts a time; every one has its place before the year 9999.
func split(at pcommon.Timestamp) (series.Timestamp, uint16) {
	return series.Timestamp(at / 1000), uint16(at % 1000)
}

// index is a timestamp that upstream turns into i+1 milliseconds, never 0.
func index(i int) pcommon.Timestamp { return pcommon.Timestamp(i+1) * 1_000_000 }

func (t *translation) number(p pmetric.NumberDataPoint, pt *point) (int, error) {
	switch {
	case pt.stale:
	case p.ValueType() == pmetric.NumberDataPointValueTypeEmpty:
		return 0, fmt.Errorf("%w: no value", writer.ErrInvalidSample)
	case p.ValueType() == pmetric.NumberDataPointValueTypeInt:
		pt.rounded(magnitude(p.IntValue()))
	}
	return 1, nil
}

func magnitude(v int64) uint64 { return uint64(max(v, -v)) } // of the smallest, too: it wraps

// rounded counts an integer that no float is equal to.
func (p *point) rounded(magnitude uint64) {
	if !exact(magnitude) {
		p.inexact++
	}
}

func (t *translation) histogram(p pmetric.HistogramDataPoint, pt *point) (int, error) {
	bounds, counts := p.ExplicitBounds(), p.BucketCounts()
	for i := range bounds.Len() {
		if b := bounds.At(i); math.IsNaN(b) || math.IsInf(b, 1) || i > 0 && b <= bounds.At(i-1) {
			return 0, fmt.Errorf("%w: bucket bounds are not finite and ascending", writer.ErrInvalidSample)
		}
	}
	if pt.stale {
		// So that upstream marks all series stale that the histogram has.
		p.SetSum(0)
		counts.FromRaw(make([]uint64, bounds.Len()+1))
		p.SetCount(0)
	}
	if n := counts.Len(); n > 0 {
		if n != bounds.Len()+1 {
			return 0, fmt.Errorf("%w: the number of buckets is not that of bounds and one", writer.ErrInvalidSample)
		}
		var sum, carry uint64
		for i := range n {
			var c uint64
			sum, c = bits.Add64(sum, counts.At(i), 0)
			carry |= c
			if i < n-1 {
				pt.rounded(sum)
			}
		}
		if sum != p.Count() || carry != 0 {
			return 0, fmt.Errorf("%w: count is not the sum of the buckets", writer.ErrInvalidSample)
		}
	}
	pt.rounded(p.Count())
	pt.noSum = !p.HasSum()
	if !pt.stale {
		pt.hasMin, pt.min, pt.hasMax, pt.max = p.HasMin(), p.Min(), p.HasMax(), p.Max()
	}
	if t.config.ConvertHistogramsToNHCB {
		return 3, nil // with min and max
	}
	return bounds.Len() + 5, nil // and +Inf, sum, count, min, max
}

func (t *translation) exponential(p pmetric.ExponentialHistogramDataPoint, pt *point) (int, error) {
	if p.Scale() < histogram.ExponentialSchemaMin {
		return 0, fmt.Errorf("%w: a histogram of scale %d; the coarsest kept is %d", ingest.ErrUnsupported, p.Scale(), histogram.ExponentialSchemaMin)
	}
	total, carry := bits.Add64(p.ZeroCount(), 0, 0)
	for _, side := range []pmetric.ExponentialHistogramDataPointBuckets{p.Positive(), p.Negative()} {
		counts, offset := side.BucketCounts(), int64(side.Offset())
		if offset <= math.MinInt32 || offset+int64(counts.Len()) >= math.MaxInt32 {
			return 0, fmt.Errorf("%w: bucket offset %d is out of range", ingest.ErrInvalidHistogram, offset)
		}
		for i := range counts.Len() {
			var c uint64
			total, c = bits.Add64(total, counts.At(i), 0)
			carry |= c
		}
	}
	if carry != 0 || total > math.MaxInt64 {
		return 0, fmt.Errorf("%w: counts are out of range", ingest.ErrInvalidHistogram)
	}
	if z := p.ZeroThreshold(); math.IsNaN(z) || math.IsInf(z, 0) || z < 0 {
		return 0, fmt.Errorf("%w: zero threshold %v", ingest.ErrInvalidHistogram, z)
	}
	if !pt.stale && total != p.Count() && !(math.IsNaN(p.Sum()) && total < p.Count()) {
		return 0, fmt.Errorf("%w: count is not the sum of the buckets", ingest.ErrInvalidHistogram)
	}
	if fine := p.Scale() - histogram.ExponentialSchemaMax; fine > 0 {
		coarsen(p.Positive(), fine)
		coarsen(p.Negative(), fine)
		p.SetScale(histogram.ExponentialSchemaMax)
	}
	pt.noSum, pt.zeroThreshold = !p.HasSum(), p.ZeroThreshold()
	if !pt.stale {
		pt.hasMin, pt.min, pt.hasMax, pt.max = p.HasMin(), p.Min(), p.HasMax(), p.Max()
	}
	return 3 + (p.Positive().BucketCounts().Len()+p.Negative().BucketCounts().Len())/8, nil
}

// coarsen merges the buckets of a scale into those of one that is by so much
// smaller. Upstream does that, too, but puts counts into the bucket below
// where an empty one comes first (v0.315.0, convertBucketsLayout).
func coarsen(b pmetric.ExponentialHistogramDataPointBuckets, by int32) {
	counts, offset := b.BucketCounts(), b.Offset()
	if counts.Len() == 0 {
		return
	}
	first := offset >> by
	merged := make([]uint64, (offset+int32(counts.Len())-1)>>by-first+1)
	for i := range counts.Len() {
		merged[(offset+int32(i))>>by-first] += counts.At(i)
	}
	b.SetOffset(first)
	counts.FromRaw(merged)
}

func (t *translation) summary(p pmetric.SummaryDataPoint, pt *point) (int, error) {
	quantiles := make([]float64, 0, p.QuantileValues().Len())
	for _, q := range p.QuantileValues().All() {
		if !(q.Quantile() >= 0 && q.Quantile() <= 1) {
			return 0, fmt.Errorf("%w: quantile %v", writer.ErrInvalidSample, q.Quantile())
		}
		quantiles = append(quantiles, q.Quantile()+0) // −0 is 0
	}
	slices.Sort(quantiles)
	if len(slices.Compact(quantiles)) < p.QuantileValues().Len() {
		return 0, fmt.Errorf("%w: a quantile is there twice", writer.ErrInvalidSample)
	}
	pt.rounded(p.Count())
	return p.QuantileValues().Len() + 2, nil
}

// takeExemplars converts exemplars, and leaves of each in the message what
// upstream needs to find the series that it belongs to: the bucket whose
// bound is not below its value.
func (t *translation) takeExemplars(exemplars pmetric.ExemplarSlice, pt *point, size int) {
	exemplars.RemoveIf(func(e pmetric.Exemplar) bool {
		converted, n, err := t.exemplar(e, pt)
		if err != nil {
			t.report.rejectExemplar(err)
			return true
		}
		t.labelBytes += 2 * (size + n)
		t.exemplars = append(t.exemplars, converted)
		e.SetTimestamp(index(len(t.exemplars) - 1))
		if math.IsNaN(converted.Value) {
			e.SetDoubleValue(math.Inf(1)) // no bound is below
		}
		e.FilteredAttributes().Clear()
		e.SetTraceID(pcommon.TraceID{})
		e.SetSpanID(pcommon.SpanID{})
		return false
	})
	if pt.kind == pmetric.MetricTypeHistogram {
		ascending(exemplars)
	}
}

// ascending sorts what is left of exemplars by value: upstream takes them for
// sorted.
func ascending(exemplars pmetric.ExemplarSlice) {
	type left struct {
		value float64
		index pcommon.Timestamp
	}
	sorted := make([]left, 0, exemplars.Len())
	for _, e := range exemplars.All() {
		sorted = append(sorted, left{exemplarValue(e), e.Timestamp()})
	}
	slices.SortStableFunc(sorted, func(a, b left) int { return cmp.Compare(a.value, b.value) })
	for i, e := range exemplars.All() {
		e.SetDoubleValue(sorted[i].value)
		e.SetTimestamp(sorted[i].index)
	}
}

func exemplarValue(e pmetric.Exemplar) float64 {
	if e.ValueType() == pmetric.ExemplarValueTypeInt {
		return float64(e.IntValue())
	}
	return e.DoubleValue()
}

// exemplar converts one, and tells the bytes of its labels.
func (t *translation) exemplar(e pmetric.Exemplar, pt *point) (series.Exemplar, int, error) {
	out := series.Exemplar{Time: pt.time, Nanos: pt.nanos, Value: exemplarValue(e)}
	switch e.ValueType() {
	case pmetric.ExemplarValueTypeEmpty:
		return out, 0, fmt.Errorf("%w: no value", writer.ErrInvalidSample)
	case pmetric.ExemplarValueTypeInt:
		pt.rounded(magnitude(e.IntValue()))
	}
	if at := e.Timestamp(); at != 0 {
		out.Time, out.Nanos = split(at)
	}
	b, size := labels.NewScratchBuilder(4), 0
	ids := map[string]string{}
	if id := e.TraceID(); !id.IsEmpty() {
		ids["trace_id"] = hex.EncodeToString(id[:])
	}
	if id := e.SpanID(); !id.IsEmpty() {
		ids["span_id"] = hex.EncodeToString(id[:])
	}
	for k, v := range ids {
		b.Add(k, v)
		size += len(k) + len(v)
	}
	for k, v := range e.FilteredAttributes().All() {
		value := v.AsString()
		if k == "" || size+len(k)+len(value) > maxAttributeBytes {
			return out, 0, fmt.Errorf("%w: attribute %.100q of an exemplar, %d bytes", series.ErrInvalidLabel, k, len(value))
		}
		if _, taken := ids[k]; taken {
			k = "exported_" + k
		}
		if value != "" {
			b.Add(k, value)
		}
		size += len(k) + len(value)
	}
	b.Sort()
	out.Labels = b.Labels()
	if name, twice := out.Labels.HasDuplicateLabelNames(); twice {
		return out, 0, fmt.Errorf("%w: attribute %.100q of an exemplar", series.ErrDuplicateLabel, name)
	}
	return out, size, nil
}
