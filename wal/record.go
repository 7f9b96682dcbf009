package wal

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/klauspost/compress/s2"
	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/internal/symbols"
	"cardinalsin/series"
)

// MaxRecordBytes bounds one record three ways, when it is written and when it
// is read: its payload before compression, its payload after it, and the label
// text that the payload expands to. 64 MiB is twice what Prometheus' own
// remote-write receiver accepts in one request.
const MaxRecordBytes = 64 << 20

// maxStringBytes is the longest string that series.Labels can hold.
const maxStringBytes = 1<<24 - 1

// Codecs of a record's payload. The numbers are stored.
const (
	codecNone byte = 0
	codecS2   byte = 1
)

// Flags of a batch payload: which optional columns follow. They are stored.
const (
	flagNanos      byte = 1 << 0
	flagHistograms byte = 1 << 1
	flagStarts     byte = 1 << 2
	knownFlags          = flagNanos | flagHistograms | flagStarts
)

// minCompressBytes is the payload size below which compression is not tried:
// s2 cannot gain on a handful of samples what its own header costs.
const minCompressBytes = 128

// Record is one batch, encoded and compressed, without a place in the log
// yet. It does not change and may be appended again after a failed Append.
// The zero Record is not valid.
type Record struct {
	payload []byte
	codec   byte
	samples int
}

// Bytes is what the record takes in a segment.
func (r Record) Bytes() int { return frameHeaderBytes + len(r.payload) }

// Samples counts the samples in the record.
func (r Record) Samples() int { return r.samples }

// Encode turns a batch into a record; sets are the label sets of its series,
// which it reads in place of their labels. It is pure, may run concurrently,
// and belongs into the goroutine of the request, not into that of the group
// commit. It keeps every bit of every field and does not retain the batch.
// Errors: ErrRecordTooLarge.
func Encode(b series.Batch, sets *symbols.Batch) (Record, error) {
	e := encoders.Get().(*encoder)
	defer e.release()
	raw, samples, err := e.encode(b, sets)
	if err != nil {
		return Record{}, fmt.Errorf("encode record of %d series: %w", len(b), err)
	}
	if len(raw) >= minCompressBytes {
		if packed := s2.Encode(e.packed[:cap(e.packed)], raw); len(packed) < len(raw) {
			e.packed = packed
			return Record{payload: clone(packed), codec: codecS2, samples: samples}, nil
		}
	}
	return Record{payload: clone(raw), codec: codecNone, samples: samples}, nil
}

func clone(b []byte) []byte { return append(make([]byte, 0, len(b)), b...) }

// encoder holds the scratch space of one Encode.
type encoder struct {
	labels []labelCode
	out    []byte
	packed []byte
}

// labelCode is what one label takes in the payload: the two indexes of its
// texts, as uvarints; a record of 64 MiB has none of more than four bytes.
type labelCode struct {
	bytes [8]byte
	n     int
}

var encoders = sync.Pool{New: func() any { return &encoder{} }}

// keepScratchBytes bounds what an idle encoder retains, so that one huge
// batch does not hold its memory for ever.
const keepScratchBytes = 4 << 20

func (e *encoder) release() {
	if cap(e.out)+cap(e.packed)+16*cap(e.labels) <= keepScratchBytes {
		encoders.Put(e)
	}
}

func (e *encoder) encode(b series.Batch, sets *symbols.Batch) ([]byte, int, error) {
	if sets.ExpandedBytes() > MaxRecordBytes {
		return nil, 0, fmt.Errorf("label text: %w", ErrRecordTooLarge)
	}
	var flags byte
	samples := 0
	for i := range b {
		samples += len(b[i].Samples)
		for j := range b[i].Samples {
			s := &b[i].Samples[j]
			if s.Nanos != 0 {
				flags |= flagNanos
			}
			if s.Histogram != nil {
				flags |= flagHistograms
			}
			if s.Start != 0 {
				flags |= flagStarts
			}
		}
	}
	if 9*samples > MaxRecordBytes {
		return nil, 0, ErrRecordTooLarge
	}

	out := append(e.out[:0], flags)
	texts := sets.Texts()
	out = binary.AppendUvarint(out, uint64(len(texts)))
	for _, text := range texts {
		if len(text) > maxStringBytes {
			return nil, 0, fmt.Errorf("label of %d bytes: %w", len(text), ErrRecordTooLarge)
		}
		out = binary.AppendUvarint(out, uint64(len(text)))
	}
	for _, text := range texts {
		out = append(out, text...)
	}
	e.labels = e.labels[:0]
	for _, l := range sets.Labels() {
		var c labelCode
		c.n = len(binary.AppendUvarint(binary.AppendUvarint(c.bytes[:0], uint64(l.Name)), uint64(l.Value)))
		e.labels = append(e.labels, c)
	}
	out = binary.AppendUvarint(out, uint64(len(b)))
	for i := range b {
		set := sets.Set(i)
		out = binary.AppendUvarint(out, uint64(len(set)))
		out = slices.Grow(out, len(set)*len(labelCode{}.bytes))
		for _, l := range set {
			// All eight bytes at once, though the next label begins earlier.
			c := &e.labels[l]
			n := len(out)
			out = out[:n+len(c.bytes)]
			copy(out[n:], c.bytes[:])
			out = out[:n+c.n]
		}
	}
	if len(out)+9*samples > MaxRecordBytes {
		return nil, 0, ErrRecordTooLarge
	}
	for i := range b {
		out = binary.AppendUvarint(out, uint64(len(b[i].Samples)))
	}
	out, err := appendSamples(out, b, flags)
	e.out = out
	if err != nil {
		return nil, 0, err
	}
	if len(out) > MaxRecordBytes {
		return nil, 0, ErrRecordTooLarge
	}
	return out, samples, nil
}

// appendSamples writes the samples of all series column by column, which is
// what lets the compressor see that a scrape has one timestamp.
func appendSamples(out []byte, b series.Batch, flags byte) ([]byte, error) {
	var prev series.Timestamp
	for i := range b {
		for j := range b[i].Samples {
			t := b[i].Samples[j].Time
			// The difference wraps for timestamps more than 2^63 apart, and
			// wraps back when it is added again.
			out = binary.AppendVarint(out, int64(t-prev))
			prev = t
		}
	}
	for i := range b {
		for j := range b[i].Samples {
			out = binary.LittleEndian.AppendUint64(out, math.Float64bits(b[i].Samples[j].Value))
		}
	}
	if flags&flagNanos != 0 {
		for i := range b {
			for j := range b[i].Samples {
				out = binary.AppendUvarint(out, uint64(b[i].Samples[j].Nanos))
			}
		}
	}
	if flags&flagHistograms != 0 {
		for i := range b {
			for j := range b[i].Samples {
				h := b[i].Samples[j].Histogram
				if h == nil {
					out = append(out, 0)
					continue
				}
				if len(h) > MaxRecordBytes-len(out) {
					return out, fmt.Errorf("histogram of %d bytes: %w", len(h), ErrRecordTooLarge)
				}
				out = binary.AppendUvarint(out, uint64(len(h))+1)
				out = append(out, h...)
			}
		}
	}
	if flags&flagStarts != 0 {
		prev := int64(0)
		for i := range b {
			for j := range b[i].Samples {
				s := b[i].Samples[j].Start
				out = binary.AppendVarint(out, s-prev) // wraps as the timestamps do
				prev = s
			}
		}
	}
	return out, nil
}

// decodePayload is the inverse of Encode. The batch shares no memory with
// payload. Its errors wrap ErrCorrupt, or ErrUnsupportedVersion for a codec
// or flag of a later version.
//
// Nothing is allocated before a count was checked against the bytes that must
// hold it, so memory stays within a small multiple of MaxRecordBytes whatever
// the bytes are.
func decodePayload(codec byte, payload []byte) (series.Batch, error) {
	switch codec {
	case codecNone:
	case codecS2:
		n, err := s2.DecodedLen(payload)
		if err != nil {
			return nil, fmt.Errorf("%w: s2 length: %w", ErrCorrupt, err)
		}
		if n > MaxRecordBytes {
			return nil, fmt.Errorf("%w: s2 length %d is above %d", ErrCorrupt, n, MaxRecordBytes)
		}
		raw, err := s2.Decode(nil, payload)
		if err != nil {
			return nil, fmt.Errorf("%w: s2: %w", ErrCorrupt, err)
		}
		payload = raw
	default:
		return nil, fmt.Errorf("%w: codec %d", ErrUnsupportedVersion, codec)
	}
	if len(payload) > MaxRecordBytes {
		return nil, fmt.Errorf("%w: payload of %d bytes is above %d", ErrCorrupt, len(payload), MaxRecordBytes)
	}
	return decodeBatch(&decoder{rest: payload})
}

func decodeBatch(d *decoder) (series.Batch, error) {
	flags := d.byte("flags")
	if d.err == nil && flags&^knownFlags != 0 {
		return nil, fmt.Errorf("%w: batch flags %#x", ErrUnsupportedVersion, flags)
	}
	table := d.stringTable()
	b := make(series.Batch, d.count("series", 2)) // at least its counts of labels and samples
	expanded := 0
	builder := labels.NewScratchBuilder(16)
	for i := range b {
		builder.Reset()
		for range d.count("labels", 2) {
			name, value := d.string(table), d.string(table)
			if expanded += len(name) + len(value); expanded > MaxRecordBytes {
				d.fail("label text above %d bytes", MaxRecordBytes)
			}
			if d.err != nil {
				return nil, d.err
			}
			builder.Add(name, value)
		}
		b[i].Labels = builder.Labels()
	}
	total := d.sampleCounts(b)
	if d.err != nil {
		return nil, d.err
	}
	d.samples(b, total, flags)
	if d.err == nil && len(d.rest) != 0 {
		d.fail("%d bytes after the last column", len(d.rest))
	}
	if d.err != nil {
		return nil, d.err
	}
	return b, nil
}

// decoder reads fields off the front of rest. After the first error every
// read yields zero.
type decoder struct {
	rest []byte
	err  error
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: "+format, append([]any{ErrCorrupt}, args...)...)
	}
	d.rest = nil
}

func (d *decoder) byte(what string) byte {
	if len(d.rest) == 0 {
		d.fail("payload ends before %s", what)
		return 0
	}
	v := d.rest[0]
	d.rest = d.rest[1:]
	return v
}

func (d *decoder) uvarint(what string) uint64 {
	if len(d.rest) > 0 && d.rest[0] < 0x80 {
		v := uint64(d.rest[0])
		d.rest = d.rest[1:]
		return v
	}
	v, n := binary.Uvarint(d.rest)
	if n <= 0 {
		d.fail("payload ends within %s", what)
		return 0
	}
	d.rest = d.rest[n:]
	return v
}

func (d *decoder) varint(what string) int64 {
	v, n := binary.Varint(d.rest)
	if n <= 0 {
		d.fail("payload ends within %s", what)
		return 0
	}
	d.rest = d.rest[n:]
	return v
}

// count reads a number of items of which each takes at least minBytes of what
// is left.
func (d *decoder) count(what string, minBytes int) int {
	v := d.uvarint("number of " + what)
	if v > uint64(len(d.rest)/minBytes) {
		d.fail("%d %s in %d bytes", v, what, len(d.rest))
		return 0
	}
	return int(v)
}

func (d *decoder) bytes(n int, what string) []byte {
	if n > len(d.rest) {
		d.fail("payload ends within %s", what)
		return nil
	}
	v := d.rest[:n]
	d.rest = d.rest[n:]
	return v
}

// stringTable reads the table; its strings share one allocation, which lives
// until the labels are built.
func (d *decoder) stringTable() []string {
	n := d.uvarint("number of strings")
	// Strings are distinct, so all but one take two bytes or more.
	if n > uint64(len(d.rest)/2+1) {
		d.fail("%d strings in %d bytes", n, len(d.rest))
		return nil
	}
	lengths := decoder{rest: d.rest} // walks the lengths again once their sum is known
	total := uint64(0)
	for range n {
		l := d.uvarint("string length")
		if total += l; l > maxStringBytes || total > uint64(len(d.rest)) {
			d.fail("string of %d bytes", l)
			return nil
		}
	}
	text := string(d.bytes(int(total), "string table"))
	table := make([]string, n)
	for i := range table {
		l := lengths.uvarint("string length")
		table[i], text = text[:l], text[l:]
	}
	return table
}

func (d *decoder) string(table []string) string {
	i := d.uvarint("string reference")
	if i >= uint64(len(table)) {
		d.fail("string %d of %d", i, len(table))
		return ""
	}
	return table[i]
}

// sampleCounts reads how many samples each series has and gives each its part
// of one allocation.
func (d *decoder) sampleCounts(b series.Batch) int {
	counts := make([]int, len(b))
	total := 0
	for i := range counts {
		// A sample takes a byte of timestamp and eight of value.
		counts[i] = d.count("samples", 9)
		if total += counts[i]; total > len(d.rest)/9 {
			d.fail("%d samples in %d bytes", total, len(d.rest))
			return 0
		}
	}
	all := make([]series.Sample, total)
	for i, n := range counts {
		if n > 0 { // a series with no samples keeps a nil slice
			b[i].Samples, all = all[:n:n], all[n:]
		}
	}
	return total
}

func (d *decoder) samples(b series.Batch, total int, flags byte) {
	var prev series.Timestamp
	for i := range b {
		for j := range b[i].Samples {
			prev += series.Timestamp(d.varint("timestamps"))
			if d.err != nil {
				return
			}
			b[i].Samples[j].Time = prev
		}
	}
	values := d.bytes(8*total, "values")
	if d.err != nil {
		return
	}
	for i := range b {
		for j := range b[i].Samples {
			b[i].Samples[j].Value = math.Float64frombits(binary.LittleEndian.Uint64(values))
			values = values[8:]
		}
	}
	if flags&flagNanos != 0 {
		for i := range b {
			for j := range b[i].Samples {
				v := d.uvarint("nanoseconds")
				if v > math.MaxUint16 {
					d.fail("nanoseconds %d", v)
					return
				}
				b[i].Samples[j].Nanos = uint16(v)
			}
		}
	}
	if flags&flagHistograms != 0 {
		for i := range b {
			for j := range b[i].Samples {
				n := d.uvarint("histogram length")
				if n == 0 {
					continue
				}
				if n-1 > uint64(len(d.rest)) {
					d.fail("histogram of %d bytes in %d", n-1, len(d.rest))
					return
				}
				b[i].Samples[j].Histogram = clone(d.bytes(int(n-1), "histogram"))
			}
		}
	}
	if flags&flagStarts != 0 {
		start := int64(0)
		for i := range b {
			for j := range b[i].Samples {
				start += d.varint("start times")
				if d.err != nil {
					return
				}
				b[i].Samples[j].Start = start
			}
		}
	}
}
