package prom

import (
	"context"
	"fmt"
	"math"

	"github.com/prometheus/prometheus/prompb"
	"google.golang.org/protobuf/encoding/protowire"

	"cardinalsin/ingest"
	"cardinalsin/series"
)

// The fields of prometheus.WriteRequest, by message.
const (
	v1Series   protowire.Number = 1
	v1Metadata protowire.Number = 3

	v1SeriesLabel     protowire.Number = 1
	v1SeriesSample    protowire.Number = 2
	v1SeriesExemplar  protowire.Number = 3
	v1SeriesHistogram protowire.Number = 4

	v1LabelName  protowire.Number = 1
	v1LabelValue protowire.Number = 2

	v1ExemplarLabel protowire.Number = 1
	v1ExemplarValue protowire.Number = 2
	v1ExemplarTime  protowire.Number = 3

	// Those of a sample are the same in 2.0, which has a start besides.
	sampleValue protowire.Number = 1
	sampleTime  protowire.Number = 2
	sampleStart protowire.Number = 3
)

// decodeV1 decodes a prometheus.WriteRequest into the decoder's request.
func (d *decoder) decodeV1(ctx context.Context, message []byte) error {
	err := d.prepare(ctx, message, numbers{v1Series, v1Metadata, v1SeriesSample, v1SeriesHistogram, v1SeriesExemplar})
	if err != nil {
		return err
	}
	f := read(message)
	for f.next() {
		switch f.number {
		case v1Series:
			if !f.is(protowire.BytesType) {
				break
			}
			if err := d.seriesV1(f.bytes()); err != nil {
				return fmt.Errorf("series %d: %w", len(d.request.Samples), err)
			}
		case v1Metadata:
			if !f.is(protowire.BytesType) {
				break
			}
			if err := d.metadataV1(f.bytes()); err != nil {
				return fmt.Errorf("metadata %d: %w", len(d.request.Metadata), err)
			}
		}
	}
	return f.err
}

// seriesV1 decodes one series. Its labels may come last, so exemplars get
// theirs at the end.
func (d *decoder) seriesV1(message []byte) error {
	sample, exemplar := len(d.samples), len(d.request.Exemplars)
	d.begin()
	f := read(message)
	for f.next() {
		if f.number > v1SeriesHistogram || !f.is(protowire.BytesType) {
			continue
		}
		var err error
		switch f.number {
		case v1SeriesLabel:
			err = d.labelV1(f.bytes())
		case v1SeriesSample:
			err = d.sample(f.bytes(), false)
		case v1SeriesHistogram:
			err = d.addHistogram(f.bytes())
		}
		if err != nil {
			return err
		}
	}
	if f.err != nil {
		return f.err
	}
	l := d.finish(sample)
	if cap(d.request.Exemplars) == 0 {
		return nil
	}
	for f = read(message); f.next(); {
		if f.number != v1SeriesExemplar {
			continue
		}
		if err := d.exemplarV1(l, f.bytes()); err != nil {
			return fmt.Errorf("exemplar %d: %w", len(d.request.Exemplars)-exemplar, err)
		}
	}
	return f.err
}

func (d *decoder) labelV1(message []byte) error {
	if n, ok := plainLabel(message); ok {
		return d.label(textOf(message[2:2+n]), textOf(message[4+n:]))
	}
	var name, value string
	f := read(message)
	for f.next() {
		switch {
		case f.number > v1LabelValue || !f.is(protowire.BytesType):
		case f.number == v1LabelName:
			name = textOf(f.bytes())
		case f.number == v1LabelValue:
			value = textOf(f.bytes())
		}
	}
	if f.err != nil {
		return f.err
	}
	return d.label(name, value)
}

// plainLabel recognises a label as every encoder writes it, a name of n bytes
// before a value, both shorter than 128.
func plainLabel(m []byte) (n int, ok bool) {
	const name, value = byte(v1LabelName<<3) | byte(protowire.BytesType), byte(v1LabelValue<<3) | byte(protowire.BytesType)
	if len(m) < 4 || m[0] != name || m[1] >= 0x80 {
		return 0, false
	}
	n = int(m[1])
	return n, len(m) >= 4+n && m[2+n] == value && m[3+n] < 0x80 && len(m) == 4+n+int(m[3+n])
}

// sample decodes a float sample.
func (d *decoder) sample(message []byte, hasStart bool) error {
	var bits uint64
	var ms, start int64
	f := read(message)
	for f.next() {
		switch {
		case f.number == sampleValue && f.is(protowire.Fixed64Type):
			bits = f.bits
		case f.number == sampleTime && f.is(protowire.VarintType):
			ms = int64(f.bits)
		case hasStart && f.number == sampleStart && f.is(protowire.VarintType):
			start = int64(f.bits)
		}
	}
	if f.err != nil {
		return f.err
	}
	return d.add(bits, ms, start)
}

// exemplarV1 decodes an exemplar of the series with these labels.
func (d *decoder) exemplarV1(of series.Labels, message []byte) error {
	d.begin()
	var bits uint64
	var ms int64
	f := read(message)
	for f.next() {
		switch {
		case f.number == v1ExemplarLabel && f.is(protowire.BytesType):
			if err := d.spend(1); err != nil {
				return err
			}
			if err := d.labelV1(f.bytes()); err != nil {
				return err
			}
		case f.number == v1ExemplarValue && f.is(protowire.Fixed64Type):
			bits = f.bits
		case f.number == v1ExemplarTime && f.is(protowire.VarintType):
			ms = int64(f.bits)
		}
	}
	if f.err != nil {
		return f.err
	}
	return d.addExemplar(of, bits, ms)
}

// addExemplar appends an exemplar whose own labels are in the builder.
func (d *decoder) addExemplar(of series.Labels, bits uint64, ms int64) error {
	t, err := timestamp(ms)
	if err != nil {
		return err
	}
	d.request.Exemplars = append(d.request.Exemplars, series.Exemplar{
		Series: of, Labels: d.built(), Time: t, Value: math.Float64frombits(bits),
	})
	return nil
}

func (d *decoder) metadataV1(message []byte) error {
	var m prompb.MetricMetadata
	if err := m.Unmarshal(message); err != nil {
		return fmt.Errorf("%w: %w", ingest.ErrMalformed, err)
	}
	typ, err := metricType(int32(m.Type))
	if err != nil {
		return err
	}
	d.request.Metadata = append(d.request.Metadata, series.Metadata{Metric: m.MetricFamilyName, Type: typ, Unit: m.Unit, Help: m.Help})
	return nil
}

// metricTypes are the names of the types by number, in 1.0 and 2.0.
var metricTypes = [...]string{"", "counter", "gauge", "histogram", "gaugehistogram", "summary", "info", "stateset"}

// metricType names a type, "" for the one that is not known. A type that is
// newer than this program is refused, for it could not be told from that.
func metricType(t int32) (string, error) {
	if t < 0 || int(t) >= len(metricTypes) {
		return "", fmt.Errorf("%w: metric type %d", ingest.ErrUnsupported, t)
	}
	return metricTypes[t], nil
}
