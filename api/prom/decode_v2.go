package prom

import (
	"context"
	"fmt"
	"strings"
	"unsafe"

	"google.golang.org/protobuf/encoding/protowire"

	"cardinalsin/ingest"
	"cardinalsin/series"
)

// The fields of io.prometheus.write.v2.Request, by message.
const (
	v2Symbol protowire.Number = 4
	v2Series protowire.Number = 5

	v2SeriesLabels    protowire.Number = 1
	v2SeriesSample    protowire.Number = 2
	v2SeriesHistogram protowire.Number = 3
	v2SeriesExemplar  protowire.Number = 4
	v2SeriesMetadata  protowire.Number = 5
	// v2SeriesCreated was the start of all samples of the series before each
	// had its own. Senders of that time are about.
	v2SeriesCreated protowire.Number = 6

	v2ExemplarLabels protowire.Number = 1
	v2ExemplarValue  protowire.Number = 2
	v2ExemplarTime   protowire.Number = 3

	v2MetadataType protowire.Number = 1
	v2MetadataHelp protowire.Number = 3
	v2MetadataUnit protowire.Number = 4
)

// decodeV2 decodes an io.prometheus.write.v2.Request into the decoder's
// request.
func (d *decoder) decodeV2(ctx context.Context, message []byte) error {
	err := d.prepare(ctx, message, numbers{series: v2Series, samples: v2SeriesSample, histograms: v2SeriesHistogram, exemplars: v2SeriesExemplar})
	if err != nil {
		return err
	}
	d.symbols = d.symbols[:0]
	clear(d.said[:])
	f := read(message)
	for f.next() {
		if f.number == v2Symbol && f.is(protowire.BytesType) {
			d.symbols = append(d.symbols, textOf(f.bytes()))
		}
	}
	if f.err != nil {
		return f.err
	}
	if len(d.symbols) > 0 && d.symbols[0] != "" {
		// A unit or a help that is absent refers to it.
		return fmt.Errorf("%w: the first symbol is not empty", ingest.ErrMalformed)
	}
	for f = read(message); f.next(); {
		if f.number != v2Series || !f.is(protowire.BytesType) {
			continue
		}
		if err := d.seriesV2(f.bytes()); err != nil {
			return fmt.Errorf("series %d: %w", len(d.request.Samples), err)
		}
	}
	return f.err
}

// metadataV2 is what a series says of its metric.
type metadataV2 struct{ typ, help, unit uint32 }

// seriesV2 decodes one series, its exemplars and its metadata.
func (d *decoder) seriesV2(message []byte) error {
	sample, exemplar := len(d.samples), len(d.request.Exemplars)
	d.refs = d.refs[:0]
	var about metadataV2
	var created int64
	native := false
	f := read(message)
	for f.next() {
		var err error
		switch {
		case f.number == v2SeriesLabels:
			err = d.appendRefs(&f)
		case f.number == v2SeriesSample && f.is(protowire.BytesType):
			err = d.sample(f.bytes(), true)
		case f.number == v2SeriesHistogram && f.is(protowire.BytesType):
			native = true
			err = d.addHistogram(f.bytes())
		case f.number == v2SeriesMetadata && f.is(protowire.BytesType):
			err = about.decode(f.bytes())
		case f.number == v2SeriesCreated && f.is(protowire.VarintType):
			created, err = startOf(int64(f.bits))
		}
		if err != nil {
			return err
		}
	}
	if f.err != nil {
		return f.err
	}
	for i := range d.samples[sample:] {
		if s := &d.samples[sample+i]; s.Start == 0 {
			s.Start = created
		}
	}
	if err := d.symbolize(); err != nil {
		return err
	}
	l := d.finish(sample)
	if about != (metadataV2{}) {
		if err := d.addMetadata(l.Get(series.MetricName), about, native); err != nil {
			return err
		}
	}
	if cap(d.request.Exemplars) == 0 {
		return nil
	}
	for f = read(message); f.next(); {
		if f.number != v2SeriesExemplar || !f.is(protowire.BytesType) {
			continue
		}
		if err := d.exemplarV2(l, f.bytes()); err != nil {
			return fmt.Errorf("exemplar %d: %w", len(d.request.Exemplars)-exemplar, err)
		}
	}
	return f.err
}

// appendRefs reads references, packed or one by one.
func (d *decoder) appendRefs(f *fieldReader) error {
	if f.typ == protowire.VarintType {
		return d.appendRef(f.bits)
	}
	if !f.is(protowire.BytesType) {
		return f.err
	}
	for b := f.bytes(); len(b) > 0; {
		ref, n := protowire.ConsumeVarint(b)
		if n < 0 {
			return fmt.Errorf("%w: %w", ingest.ErrMalformed, protowire.ParseError(n))
		}
		if err := d.appendRef(ref); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func (d *decoder) appendRef(ref uint64) error {
	d.refs = append(d.refs, uint32(ref)) // what is above 32 bits is cut, by protobuf's rules
	return d.spend(1)
}

// symbol looks a reference up.
func (d *decoder) symbol(ref uint32) (string, error) {
	if uint64(ref) >= uint64(len(d.symbols)) {
		return "", fmt.Errorf("%w: symbol %d of %d", ingest.ErrMalformed, ref, len(d.symbols))
	}
	return d.symbols[ref], nil
}

// symbolize puts the labels that refs refer to into the builder.
func (d *decoder) symbolize() error {
	d.begin()
	if len(d.refs)%2 != 0 {
		return fmt.Errorf("%w: %d references for names and values", ingest.ErrMalformed, len(d.refs))
	}
	for i := 0; i < len(d.refs); i += 2 {
		name, err := d.symbol(d.refs[i])
		if err != nil {
			return err
		}
		value, err := d.symbol(d.refs[i+1])
		if err != nil {
			return err
		}
		if err := d.label(name, value); err != nil {
			return err
		}
	}
	return nil
}

// exemplarV2 decodes an exemplar of the series with these labels.
func (d *decoder) exemplarV2(of series.Labels, message []byte) error {
	d.refs = d.refs[:0]
	var bits uint64
	var ms int64
	f := read(message)
	for f.next() {
		switch {
		case f.number == v2ExemplarLabels:
			if err := d.appendRefs(&f); err != nil {
				return err
			}
		case f.number == v2ExemplarValue && f.is(protowire.Fixed64Type):
			bits = f.bits
		case f.number == v2ExemplarTime && f.is(protowire.VarintType):
			ms = int64(f.bits)
		}
	}
	if f.err != nil {
		return f.err
	}
	if err := d.symbolize(); err != nil {
		return err
	}
	return d.addExemplar(of, bits, ms)
}

func (m *metadataV2) decode(message []byte) error {
	f := read(message)
	for f.next() {
		var to *uint32
		switch f.number {
		case v2MetadataType:
			to = &m.typ
		case v2MetadataHelp:
			to = &m.help
		case v2MetadataUnit:
			to = &m.unit
		}
		if to != nil && f.is(protowire.VarintType) {
			*to = uint32(f.bits)
		}
	}
	return f.err
}

// said is metadata that this request has already, by where it lies. Every
// series repeats that of its metric, in any order; a table of a fixed size
// finds most of it.
type said struct {
	about metadataV2
	at    int // in the request's metadata, from 1; 0 is none
}

// addMetadata appends metadata that says something new.
func (d *decoder) addMetadata(metric string, about metadataV2, native bool) error {
	typ, err := metricType(int32(about.typ))
	if err != nil {
		return err
	}
	metric = familyOf(metric, typ, native)
	slot := &d.said[(about.help*31+about.unit*7+about.typ)%uint32(len(d.said))]
	if slot.at > 0 && slot.about == about && d.request.Metadata[slot.at-1].Metric == metric {
		return nil
	}
	help, err := d.symbol(about.help)
	if err != nil {
		return err
	}
	unit, err := d.symbol(about.unit)
	if err != nil {
		return err
	}
	if typ == "" && help == "" && unit == "" {
		return nil
	}
	if err := d.memory.tryTake(int64(len(help)+len(unit)) + int64(unsafe.Sizeof(series.Metadata{}))); err != nil {
		return err
	}
	d.request.Metadata = append(d.request.Metadata, series.Metadata{Metric: metric, Type: typ, Unit: strings.Clone(unit), Help: strings.Clone(help)})
	*slot = said{about, len(d.request.Metadata)}
	return nil
}
