package otlp

import (
	"context"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"strings"

	"github.com/prometheus/otlptranslator"
	"github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/storage/remote/otlptranslator/prometheusremotewrite"
	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/pmetric"

	"cardinalsin/ingest"
	"cardinalsin/series"
)

// Bounds of what a request may become. Each series repeats the attributes of
// its resource, its scope and its data point.
const (
	maxSeries     = 1 << 20
	maxLabelBytes = 256 << 20
	// maxAttributeBytes bounds the names and values of one set of attributes;
	// package labels panics above 16 MiB.
	maxAttributeBytes = 1 << 20
)

// translation turns the metrics of one request into rows, in two passes. The
// first takes out what cannot be kept, and puts an index where each timestamp
// was: upstream's converter, which makes the second, knows milliseconds only.
// What it appends finds its way back to the nanoseconds by that index.
type translation struct {
	config  *config.OTLPConfig
	metrics otlptranslator.MetricNamer
	labels  otlptranslator.LabelNamer
	names   map[string]string // label names of attribute names
	// metricNames are the metrics of the request by the names they are given.
	metricNames map[string]string

	resources []resource
	points    []point           // by the index that stands for their times
	exemplars []series.Exemplar // the same; without the series
	report    report

	series     int // bounds of them
	labelBytes int

	out output
}

// resource is where its data points are in translation.points, from first to
// before end, and the labels of its target_info, if it has one.
type resource struct {
	first, end int
	target     series.Labels
}

// point is what upstream's converter does not hand through.
type point struct {
	time  series.Timestamp
	nanos uint16
	start int64
	kind  pmetric.MetricType
	stale bool
	noSum bool // of a native histogram
	// inexact counts the integers that no float is equal to.
	inexact int
	// min and max are there if has… says so.
	min, max       float64
	hasMin, hasMax bool
	zeroThreshold  float64
	// exemplars of a gauge are in translation.exemplars, from first to before
	// end; upstream hands those of all others through.
	exemplars struct{ first, end int }
}

func newTranslation(c *config.OTLPConfig) *translation {
	strategy := c.TranslationStrategy
	return &translation{
		config:  c,
		metrics: otlptranslator.MetricNamer{WithMetricSuffixes: strategy.ShouldAddSuffixes(), UTF8Allowed: !strategy.ShouldEscape()},
		labels: otlptranslator.LabelNamer{
			UTF8Allowed:                 !strategy.ShouldEscape(),
			UnderscoreLabelSanitization: c.LabelNameUnderscoreSanitization, //nolint:staticcheck // Prometheus' option, under its name
			PreserveMultipleUnderscores: c.LabelNamePreserveMultipleUnderscores,
		},
		names: map[string]string{}, metricNames: map[string]string{},
	}
}

// translate makes a request of md, which it changes. report tells what is not
// in it. Errors wrap ingest.ErrTooLarge, or are those of ctx.
func (t *translation) translate(ctx context.Context, md pmetric.Metrics) (*ingest.Request, error) {
	t.report.points = md.DataPointCount()
	for _, rm := range md.ResourceMetrics().All() {
		t.resource(rm)
		if t.series > maxSeries || t.labelBytes > maxLabelBytes {
			return nil, fmt.Errorf("%w: more than %d series or %d bytes of labels; send fewer data points at a time", ingest.ErrTooLarge, maxSeries, maxLabelBytes)
		}
	}
	strategy := t.config.TranslationStrategy
	notes, err := prometheusremotewrite.NewPrometheusConverter(t).FromMetrics(ctx, md, prometheusremotewrite.Settings{
		AddMetricSuffixes:                    strategy.ShouldAddSuffixes(),
		AllowUTF8:                            !strategy.ShouldEscape(),
		PromoteResourceAttributes:            prometheusremotewrite.NewPromoteResourceAttributes(*t.config),
		KeepIdentifyingResourceAttributes:    t.config.KeepIdentifyingResourceAttributes,
		ConvertHistogramsToNHCB:              t.config.ConvertHistogramsToNHCB,
		PromoteScopeMetadata:                 t.config.PromoteScopeMetadata,
		LookbackDelta:                        math.MaxInt64, // one target_info; see targets
		LabelNameUnderscoreSanitization:      t.config.LabelNameUnderscoreSanitization,
		LabelNamePreserveMultipleUnderscores: t.config.LabelNamePreserveMultipleUnderscores,
	})
	if err != nil {
		return nil, fmt.Errorf("translate: %w", err)
	}
	for _, note := range notes {
		t.report.note(1, note.Error())
	}
	t.targets()
	return t.out.request(), nil
}

// reserved are labels that the translation sets by itself.
type reserved struct{ job, instance, scope, le, quantile bool }

func (r reserved) has(label string) bool {
	switch label {
	case series.MetricName:
		return true
	case "job":
		return r.job
	case "instance":
		return r.instance
	case "otel_scope_name", "otel_scope_version", "otel_scope_schema_url":
		return r.scope
	case "le":
		return r.le
	case "quantile":
		return r.quantile
	}
	return false
}

// resource prepares the metrics of one resource.
func (t *translation) resource(rm pmetric.ResourceMetrics) {
	attributes := rm.Resource().Attributes()
	var labels reserved
	_, labels.job = attributes.Get("service.name")
	_, labels.instance = attributes.Get("service.instance.id")
	size, err := t.attributes(attributes, "", labels)
	if err != nil {
		for _, sm := range rm.ScopeMetrics().All() {
			t.rejectAll(sm.Metrics(), fmt.Errorf("resource: %w", err))
		}
		attributes.Clear() // upstream would stumble over them
		return
	}
	first := len(t.points)
	for _, sm := range rm.ScopeMetrics().All() {
		t.scope(sm, labels, size)
	}
	t.resources = append(t.resources, resource{first: first, end: len(t.points)})
	t.labelBytes += size
}

// rejectAll empties metrics.
func (t *translation) rejectAll(metrics pmetric.MetricSlice, err error) {
	metrics.RemoveIf(func(m pmetric.Metric) bool {
		t.report.reject(m.Name(), pointsOf(m), err)
		return true
	})
}

// scope prepares the metrics of one scope. size is what the labels of its
// resource have.
func (t *translation) scope(sm pmetric.ScopeMetrics, labels reserved, size int) {
	s := sm.Scope()
	var unnamed []attribute
	if t.config.PromoteScopeMetadata {
		n, err := t.attributes(s.Attributes(), "otel_scope_", reserved{scope: true})
		if err != nil {
			t.rejectAll(sm.Metrics(), fmt.Errorf("scope: %w", err))
			s.Attributes().Clear() // as above
			return
		}
		size += n + len(s.Name()) + len(s.Version()) + len(sm.SchemaUrl()) + len("otel_scope_name"+"otel_scope_version"+"otel_scope_schema_url")
		if labels.scope = s.Name() != ""; !labels.scope {
			// Upstream passes over a scope without a name, whatever else it has.
			unnamed = append(unnamed, attribute{"otel_scope_version", s.Version()}, attribute{"otel_scope_schema_url", sm.SchemaUrl()})
			for k, v := range s.Attributes().All() {
				unnamed = append(unnamed, attribute{"otel_scope_" + k, v.AsString()})
			}
		}
	}
	sm.Metrics().RemoveIf(func(m pmetric.Metric) bool {
		if err := t.metric(m, metricContext{labels: labels, size: size, scope: unnamed}); err != nil {
			t.report.reject(m.Name(), pointsOf(m), err)
			return true
		}
		return pointsOf(m) == 0
	})
}

type attribute struct{ name, value string }

// attributes checks the names of attributes that become labels, and renames
// those that would meet a label which the translation sets, as a scrape does:
// to exported_…. It returns the bytes of names and values.
func (t *translation) attributes(m pcommon.Map, prefix string, labels reserved) (int, error) {
	size, rename := 0, []attribute(nil)
	for k, v := range m.All() {
		name, err := t.label(prefix + k)
		if err != nil {
			return 0, err
		}
		switch v.Type() {
		case pcommon.ValueTypeMap, pcommon.ValueTypeSlice, pcommon.ValueTypeBytes:
			v.SetStr(v.AsString()) // as upstream would, for each series
			size += len(v.Str())
		case pcommon.ValueTypeStr:
			size += len(v.Str())
		default:
			size += 20
		}
		if size += len(name); size > maxAttributeBytes {
			return 0, fmt.Errorf("%w: more than %d bytes of attributes", series.ErrInvalidLabel, maxAttributeBytes)
		}
		if labels.has(name) {
			rename = append(rename, attribute{k, v.AsString()})
		}
	}
	if key, twice := duplicate(m); twice {
		return 0, fmt.Errorf("%w: attribute %.100q", series.ErrDuplicateLabel, key)
	}
	for _, a := range rename {
		m.Remove(a.name)
		name := "exported_" + a.name
		for _, taken := m.Get(name); taken; _, taken = m.Get(name) {
			name = "exported_" + name
		}
		m.PutStr(name, a.value)
	}
	return size, nil
}

// duplicate finds a name that is there twice.
func duplicate(m pcommon.Map) (string, bool) {
	var buf [32]string
	keys := buf[:0]
	for k := range m.All() {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for i := 1; i < len(keys); i++ {
		if keys[i] == keys[i-1] {
			return keys[i], true
		}
	}
	return "", false
}

// label is the label name of an attribute.
func (t *translation) label(attribute string) (string, error) {
	if name, known := t.names[attribute]; known {
		return name, nil
	}
	name, err := t.labels.Build(attribute)
	if err != nil {
		return "", fmt.Errorf("%w: attribute %.100q: %w", series.ErrInvalidLabel, attribute, err)
	}
	if strings.HasPrefix(name, ingest.ExemplarLabelPrefix) {
		return "", fmt.Errorf("%w: attribute %.100q: the prefix %s is ours", series.ErrInvalidLabel, attribute, ingest.ExemplarLabelPrefix)
	}
	t.names[attribute] = name
	return name, nil
}

// pointsOf counts data points.
func pointsOf(m pmetric.Metric) int {
	switch m.Type() {
	case pmetric.MetricTypeGauge:
		return m.Gauge().DataPoints().Len()
	case pmetric.MetricTypeSum:
		return m.Sum().DataPoints().Len()
	case pmetric.MetricTypeHistogram:
		return m.Histogram().DataPoints().Len()
	case pmetric.MetricTypeExponentialHistogram:
		return m.ExponentialHistogram().DataPoints().Len()
	case pmetric.MetricTypeSummary:
		return m.Summary().DataPoints().Len()
	}
	return 0
}

// exact reports whether a float is equal to an integer of that magnitude.
func exact(magnitude uint64) bool {
	return bits.Len64(magnitude)-bits.TrailingZeros64(magnitude) <= 53
}
