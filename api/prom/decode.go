package prom

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"unsafe"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/prompb"
	"google.golang.org/protobuf/encoding/protowire"

	"cardinalsin/ingest"
	"cardinalsin/internal/nativehist"
	"cardinalsin/series"
	"cardinalsin/writer"
)

// Requests are decoded here from their wire format, by protobuf's own
// protowire, and not by upstream's generated types: those make two strings of
// every label and grow every list, which takes several times as long
// (BenchmarkDecode), and a bomb of empty elements decodes to a hundred times
// its size. FuzzDecodeV1 and FuzzDecodeV2 hold both against each other. Native
// histograms, which are rare, are upstream's types.

// Bounds of one request, beyond those of its bytes.
const (
	// maxElements bounds series, labels, samples and the like together. A
	// sender's request has some ten thousand.
	maxElements = 1 << 20
	// maxLabelBytes bounds a label's name or value; package labels panics
	// above 16 MiB.
	maxLabelBytes = 1 << 20
	// maxLabels bounds the labels of one series.
	maxLabels = 1 << 16
	// maxText bounds the text of all labels, which in 2.0 may be referred to
	// any number of times.
	maxText = 64 << 20
	// maxHistogramBytes bounds a histogram on the wire; decoded it is some ten
	// times as large. One of 10,000 buckets has 40 KiB.
	maxHistogramBytes = 1 << 20
	// textStep is the logarithm of the steps in which the text of labels takes
	// memory.
	textStep = 20
)

// decoder turns the bytes of a request into what a Sink takes. It is used
// again: the request is valid until release.
type decoder struct {
	request            ingest.Request
	floats, histograms int // the samples by their kind

	samples []series.Sample // of all series
	builder labels.ScratchBuilder
	// labels are in the builder, of which last is the name of the last, and
	// unsorted says that they do not ascend; peak is the most that it held.
	labels, peak int
	last         string
	unsorted     bool

	symbols []string // 2.0; of the body's memory
	refs    []uint32
	said    [256]said
	memory  *share
	// elements may still come, and text bytes of labels have come.
	elements, text int
}

var decoders = sync.Pool{New: func() any { return &decoder{builder: labels.NewScratchBuilder(32)} }}

func newDecoder(memory *share) *decoder {
	d := decoders.Get().(*decoder)
	d.memory = memory
	return d
}

// maxKeptItems bounds each list that a decoder keeps for the next request.
const maxKeptItems = 1 << 16

func (d *decoder) release() {
	r := &d.request
	if max(cap(d.samples), cap(r.Samples), cap(r.Exemplars), cap(r.Metadata), cap(d.symbols), cap(d.refs), d.peak) > maxKeptItems {
		return
	}
	// What was decoded must not outlive its request.
	clear(d.samples)
	clear(d.symbols)
	clear(r.Samples)
	clear(r.Exemplars)
	clear(r.Metadata)
	d.builder.Reset()
	*d = decoder{
		request: ingest.Request{Samples: r.Samples[:0], Exemplars: r.Exemplars[:0], Metadata: r.Metadata[:0]},
		samples: d.samples[:0], builder: d.builder, symbols: d.symbols[:0], refs: d.refs[:0],
	}
	decoders.Put(d)
}

// fieldReader takes a message apart. It allocates nothing, and moves by
// numbers: to store a pointer for each field would cost a write barrier each.
type fieldReader struct {
	message    []byte
	at         int // of the next field
	number     protowire.Number
	typ        protowire.Type
	start, end int    // of a length-delimited field
	bits       uint64 // of any other
	err        error
}

func read(message []byte) fieldReader { return fieldReader{message: message} }

// bytes is the content of a length-delimited field.
func (f *fieldReader) bytes() []byte { return f.message[f.start:f.end] }

// next reads the next field; it returns false at the end and on an error. What
// has neither bytes nor bits, as groups have not, is passed over.
func (f *fieldReader) next() bool {
	if f.at == len(f.message) || f.err != nil {
		return false
	}
	// Nearly every field has a number below 16 and fewer than 128 bytes: a byte
	// each for the tag and for the length.
	if m, start := f.message, f.at+2; start <= len(m) && m[f.at]&0x87 == byte(protowire.BytesType) && m[f.at] >= 1<<3 && int(m[f.at+1]) < min(0x80, len(m)-start+1) {
		f.number, f.typ, f.bits = protowire.Number(m[f.at]>>3), protowire.BytesType, 0
		f.start, f.end = start, start+int(m[f.at+1])
		f.at = f.end
		return true
	}
	number, typ, n := protowire.ConsumeTag(f.message[f.at:])
	if n < 0 {
		return f.fail(n)
	}
	f.at += n
	f.number, f.typ, f.start, f.end, f.bits = number, typ, f.at, f.at, 0
	switch typ {
	case protowire.BytesType:
		var size uint64
		if size, n = protowire.ConsumeVarint(f.message[f.at:]); n < 0 {
			break
		}
		if size > uint64(len(f.message)-f.at-n) {
			return f.fail(tooShort)
		}
		f.start = f.at + n
		n += int(size)
		f.end = f.at + n
	case protowire.VarintType:
		f.bits, n = protowire.ConsumeVarint(f.message[f.at:])
	case protowire.Fixed64Type:
		f.bits, n = protowire.ConsumeFixed64(f.message[f.at:])
	default:
		n = protowire.ConsumeFieldValue(number, typ, f.message[f.at:])
	}
	if n < 0 {
		return f.fail(n)
	}
	f.at += n
	return true
}

// tooShort is what protowire returns where a message ends too soon.
const tooShort = -1

func (f *fieldReader) fail(n int) bool {
	f.err = fmt.Errorf("%w: %w", ingest.ErrMalformed, protowire.ParseError(n))
	return false
}

// is reports whether the field has the type that its number asks for, and
// fails otherwise.
func (f *fieldReader) is(typ protowire.Type) bool {
	if f.typ != typ {
		f.err = fmt.Errorf("%w: field %d is of wire type %d, not %d", ingest.ErrMalformed, f.number, f.typ, typ)
	}
	return f.err == nil
}

// spend takes n elements from what a request may have.
func (d *decoder) spend(n int) error {
	if d.elements -= n; d.elements < 0 {
		return fmt.Errorf("%w: more than %d series, labels and samples; send fewer at a time", ingest.ErrTooLarge, maxElements)
	}
	return nil
}

// numbers are the fields that are counted: of a request, and of a series.
type numbers struct{ series, metadata, samples, histograms, exemplars protowire.Number }

// prepare counts what is in a request, takes the memory that it will need, and
// makes room. Every field of a request and of its series is an element.
func (d *decoder) prepare(ctx context.Context, message []byte, n numbers) error {
	d.elements, d.text = maxElements, 0
	var serieses, metadata, samples, exemplars int
	f := read(message)
	for f.next() {
		if err := d.spend(1); err != nil {
			return err
		}
		switch {
		case f.typ != protowire.BytesType:
			continue
		case f.number == n.metadata:
			metadata++
			continue
		case f.number != n.series:
			continue
		}
		serieses++
		in := read(f.bytes())
		for in.next() {
			if err := d.spend(1); err != nil {
				return err
			}
			switch in.number {
			case n.samples, n.histograms:
				samples++
			case n.exemplars:
				exemplars++
			}
		}
		if in.err != nil {
			return fmt.Errorf("series %d: %w", serieses-1, in.err)
		}
	}
	if f.err != nil {
		return f.err
	}
	size := int64(len(message)) + int64(serieses)*int64(unsafe.Sizeof(series.Series{})) +
		int64(samples)*int64(unsafe.Sizeof(series.Sample{})) +
		int64(exemplars)*int64(unsafe.Sizeof(series.Exemplar{})) + int64(metadata)*int64(unsafe.Sizeof(series.Metadata{}))
	if err := d.memory.take(ctx, size); err != nil {
		return err
	}
	d.request.Samples = slices.Grow(d.request.Samples[:0], serieses)
	d.samples = slices.Grow(d.samples[:0], samples)
	d.request.Exemplars = slices.Grow(d.request.Exemplars[:0], exemplars)
	d.request.Metadata = slices.Grow(d.request.Metadata[:0], metadata)
	return nil
}

// label adds a label to the builder. The strings are of the body's memory; the
// builder copies them.
func (d *decoder) label(name, value string) error {
	if len(name) > maxLabelBytes || len(value) > maxLabelBytes {
		return fmt.Errorf("%w: label %.100q of %d bytes with a value of %d", series.ErrInvalidLabel, name, len(name), len(value))
	}
	before := d.text
	if d.text += len(name) + len(value); d.text > maxText {
		return fmt.Errorf("%w: more than %d bytes of labels", ingest.ErrTooLarge, maxText)
	}
	if d.text>>textStep != before>>textStep {
		if err := d.memory.tryTake(1 << textStep); err != nil {
			return err
		}
	}
	if d.labels++; d.labels > maxLabels {
		return fmt.Errorf("%w: more than %d labels of one series or exemplar", ingest.ErrTooLarge, maxLabels)
	}
	d.peak = max(d.peak, d.labels)
	d.unsorted = d.unsorted || name < d.last
	d.last = name
	d.builder.Add(name, value)
	return nil
}

// add appends a float sample to the series that is being decoded.
func (d *decoder) add(bits uint64, ms, startMs int64) error {
	t, err := timestamp(ms)
	if err != nil {
		return err
	}
	start, err := startOf(startMs)
	if err != nil {
		return err
	}
	d.floats++
	d.samples = append(d.samples, series.Sample{Time: t, Start: start, Value: math.Float64frombits(bits)})
	return nil
}

// addHistogram appends a native histogram. The messages of 1.0 and 2.0 have
// the same fields, but that 2.0 has a start.
func (d *decoder) addHistogram(message []byte) error {
	if len(message) > maxHistogramBytes {
		return fmt.Errorf("%w: a histogram of %d bytes, at most %d", ingest.ErrTooLarge, len(message), maxHistogramBytes)
	}
	const startTimestamp = 17
	var startMs int64
	f := read(message)
	for f.next() {
		if f.number == startTimestamp && f.is(protowire.VarintType) {
			startMs = int64(f.bits)
		}
	}
	if f.err != nil {
		return f.err
	}
	var h prompb.Histogram
	if err := h.Unmarshal(message); err != nil {
		return fmt.Errorf("%w: %w", ingest.ErrMalformed, err)
	}
	t, err := timestamp(h.Timestamp)
	if err != nil {
		return err
	}
	start, err := startOf(startMs)
	if err != nil {
		return err
	}
	data, err := nativehist.Encode(&h)
	if err != nil {
		return err
	}
	d.histograms++
	d.samples = append(d.samples, series.Sample{Time: t, Start: start, Histogram: data})
	return nil
}

// begin empties the builder.
func (d *decoder) begin() {
	d.builder.Reset()
	d.labels, d.last, d.unsorted = 0, "", false
}

// built is the label set in the builder, sorted: senders should sort, and not
// all do. Upstream's receiver sorts, too.
func (d *decoder) built() series.Labels {
	if d.unsorted {
		d.builder.Sort()
	}
	return d.builder.Labels()
}

// finish makes a series of the labels in the builder and of the samples from
// first on.
func (d *decoder) finish(first int) series.Labels {
	l := d.built()
	d.request.Samples = append(d.request.Samples, series.Series{Labels: l, Samples: d.samples[first:len(d.samples):len(d.samples)]})
	return l
}

// textOf is b without a copy.
func textOf(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// timestamp refuses what series.FromMillis would saturate.
func timestamp(ms int64) (series.Timestamp, error) {
	t := series.FromMillis(ms)
	if t.Millis() != ms {
		return 0, fmt.Errorf("%w: timestamp %d ms is out of range", writer.ErrInvalidSample, ms)
	}
	return t, nil
}

// startOf converts a start, 0 for none.
func startOf(ms int64) (ns int64, err error) {
	if ms > math.MaxInt64/1_000_000 || ms < math.MinInt64/1_000_000 {
		return 0, fmt.Errorf("%w: start timestamp %d ms is out of range", writer.ErrInvalidSample, ms)
	}
	return ms * 1_000_000, nil
}

// familyOf is the metric to which the metadata of a series belongs: of a
// classic histogram or summary its family.
func familyOf(name, typ string, native bool) string {
	var suffixes []string
	switch typ {
	case "histogram":
		suffixes = []string{"_bucket", "_count", "_sum"}
	case "gaugehistogram":
		suffixes = []string{"_bucket", "_gcount", "_gsum"}
	case "summary":
		suffixes = []string{"_count", "_sum"}
	}
	if !native {
		for _, s := range suffixes {
			if family, ok := strings.CutSuffix(name, s); ok && family != "" {
				return family
			}
		}
	}
	return name
}
