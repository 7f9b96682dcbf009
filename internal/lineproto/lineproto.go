// Package lineproto turns Influx line protocol into samples, by the decoder
// of InfluxData.
//
// It stands beside the module's root, below those who receive line protocol
// and those who import it from files.
//
// A field becomes a sample of the metric measurement_field, as in
// VictoriaMetrics; the tags become its labels, under their own names.
//
//	float             the value
//	integer, unsigned the nearest float; Stats counts those that differ
//	boolean           1 or 0
//	string            left out, and counted: a sample is a number
//
// INVARIANT: Next returns what every line said that was read since, or an
// error; nothing is skipped that Stats does not count. Memory is bounded by
// the options, whatever the input.
package lineproto

import (
	"errors"
	"fmt"
	"io"
	"math/bits"
	"slices"
	"strconv"
	"time"

	"github.com/influxdata/line-protocol/v2/lineprotocol"
	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/ingest"
	"cardinalsin/series"
	"cardinalsin/writer"
)

// DatabaseLabel is the label that tells Options.Database.
const DatabaseLabel = "db"

// Options say how to read; the zero value is useful.
type Options struct {
	// Unit of timestamps, a microsecond or a multiple of that, or a nanosecond,
	// which is the default.
	Unit time.Duration
	// Now is the time of lines that tell none, rounded down to the unit.
	// Default time.Now.
	Now func() time.Time
	// Database is the label db of what has no such tag; "" adds none.
	Database string
	// MaxSamples and MaxLabelBytes bound a batch: Next returns after the line
	// that reaches one of them. Default 65,536 and 64 MiB. No line may have
	// more by itself.
	MaxSamples    int
	MaxLabelBytes int
}

// EnsureDefaults fills in what is unset.
func (o *Options) EnsureDefaults() {
	if o.Unit == 0 {
		o.Unit = time.Nanosecond
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.MaxSamples == 0 {
		o.MaxSamples = 1 << 16
	}
	if o.MaxLabelBytes == 0 {
		o.MaxLabelBytes = 64 << 20
	}
}

// maxLabelSetBytes bounds the names and values of one line's labels; package
// labels panics above 16 MiB.
const maxLabelSetBytes = 1 << 20

// Stats tell what could not be kept as it was.
type Stats struct {
	Strings     int    // fields left out because they are text
	FirstString string // where the first of them is
	Rounded     int    // integers beyond 2^53 that no float is equal to
}

// Reader reads lines. It must not be used concurrently.
type Reader struct {
	opts  Options
	lines *lineReader
	dec   *lineprotocol.Decoder
	stats Stats
	err   error // of the last Next; it stays

	// Of the batch that is being read.
	batch      series.Batch
	index      map[string]int // of a series in batch, by its key
	arena      []series.Sample
	samples    int
	labelBytes int

	// Of the line that is being read.
	key     []byte // measurement and tags, each followed by 0xFF, which no UTF-8 text has
	metric  []byte // measurement_field
	tags    []span
	added   []place
	builder labels.ScratchBuilder
}

// span says where in Reader.key a tag is.
type span struct{ name, value, end int }

// place says where in Reader.batch a sample is.
type place struct{ series, sample int }

// NewReader reads line protocol from r.
func NewReader(r io.Reader, o Options) *Reader {
	o.EnsureDefaults()
	lines := newLineReader(r)
	return &Reader{opts: o, lines: lines, dec: lineprotocol.NewDecoder(lines), builder: labels.NewScratchBuilder(16)}
}

// Stats counts since the beginning.
func (r *Reader) Stats() Stats { return r.stats }

// Next returns the samples of the next lines, io.EOF after the last. The batch
// belongs to the caller. Errors name the line, counted from 1, and wrap
// ingest.ErrMalformed, ingest.ErrTooLarge, series.ErrInvalidLabel,
// series.ErrDuplicateLabel or writer.ErrInvalidSample, or are those of the
// input; none of the batch is to be kept then, and all later calls fail.
func (r *Reader) Next() (series.Batch, error) {
	if r.err != nil {
		return nil, r.err
	}
	r.batch, r.arena, r.samples, r.labelBytes = nil, nil, 0, 0
	r.index = map[string]int{}
	for r.samples < r.opts.MaxSamples && r.labelBytes < r.opts.MaxLabelBytes {
		r.lines.begin()
		if !r.dec.Next() {
			r.err = io.EOF
			break
		}
		if err := r.line(); err != nil {
			r.err = r.reason(err)
			return nil, r.err
		}
	}
	if err := r.dec.Err(); err != nil {
		r.err = r.reason(err)
		return nil, r.err
	}
	if len(r.batch) == 0 && r.err != nil {
		return nil, r.err
	}
	return r.batch, nil
}

// reason adds the line, and the sentinel that a fault in the syntax has.
func (r *Reader) reason(err error) error {
	if input := r.dec.Err(); input != nil {
		err = input // the decoder took it for the end
	}
	var syntax *lineprotocol.DecodeError
	if errors.As(err, &syntax) {
		return fmt.Errorf("line %d, column %d: %w: %w", syntax.Line, syntax.Column, ingest.ErrMalformed, syntax.Err)
	}
	return fmt.Errorf("line %d: %w", r.lines.number, err)
}

// line reads one line into the batch.
func (r *Reader) line() error {
	if err := r.head(); err != nil {
		return err
	}
	r.added = r.added[:0]
	lineBytes := r.labelBytes
	for {
		field, value, err := r.dec.NextField()
		if err != nil {
			return err
		}
		if field == nil {
			break
		}
		if err := r.field(field, value); err != nil {
			return err
		}
		if len(r.added) > r.opts.MaxSamples || r.labelBytes-lineBytes > r.opts.MaxLabelBytes {
			return fmt.Errorf("%w: more than %d fields, or %d bytes of labels", ingest.ErrTooLarge, r.opts.MaxSamples, r.opts.MaxLabelBytes)
		}
	}
	text, err := r.dec.TimeBytes()
	if err != nil {
		return err
	}
	t, nanos, err := r.time(text)
	if err != nil {
		return err
	}
	for _, at := range r.added {
		p := &r.batch[at.series].Samples[at.sample]
		p.Time, p.Nanos = t, nanos
	}
	return nil
}

// head reads measurement and tags into key.
func (r *Reader) head() error {
	measurement, err := r.dec.Measurement()
	if err != nil {
		return err
	}
	r.key = append(append(r.key[:0], measurement...), 0xff)
	r.metric = append(append(r.metric[:0], measurement...), '_')
	r.tags = r.tags[:0]
	for {
		name, value, err := r.dec.NextTag()
		if err != nil {
			return err
		}
		if name == nil {
			break
		}
		if len(r.key)+len(name)+len(value) > maxLabelSetBytes {
			return fmt.Errorf("%w: more than %d bytes of tags", series.ErrInvalidLabel, maxLabelSetBytes)
		}
		s := span{name: len(r.key)}
		r.key = append(append(r.key, name...), 0xff)
		s.value = len(r.key)
		r.key = append(append(r.key, value...), 0xff)
		s.end = len(r.key) - 1
		r.tags = append(r.tags, s)
	}
	slices.SortFunc(r.tags, func(a, b span) int { return slices.Compare(r.tagName(a), r.tagName(b)) })
	for i, tag := range r.tags {
		switch name := r.tagName(tag); {
		case i > 0 && slices.Equal(name, r.tagName(r.tags[i-1])):
			return fmt.Errorf("%w: tag %.100q", series.ErrDuplicateLabel, name)
		case string(name) == series.MetricName:
			return fmt.Errorf("%w: a tag cannot be named %s", series.ErrInvalidLabel, series.MetricName)
		}
	}
	return nil
}

func (r *Reader) tagName(s span) []byte { return r.key[s.name : s.value-1] }

// field adds one sample; its time is set when it is known.
func (r *Reader) field(name []byte, value lineprotocol.Value) error {
	var v float64
	switch value.Kind() {
	case lineprotocol.Float:
		v = value.FloatV()
	case lineprotocol.Int:
		n := value.IntV()
		v = float64(n)
		r.count(uint64(max(n, -n)))
	case lineprotocol.Uint:
		v = float64(value.UintV())
		r.count(value.UintV())
	case lineprotocol.Bool:
		if value.BoolV() {
			v = 1
		}
	case lineprotocol.String:
		if r.stats.Strings++; r.stats.Strings == 1 {
			r.stats.FirstString = fmt.Sprintf("line %d, field %.100q", r.lines.number, name)
		}
		return nil
	default:
		return fmt.Errorf("%w: field %.100q has an unknown type", ingest.ErrMalformed, name)
	}
	if len(r.key)+len(name) > maxLabelSetBytes {
		return fmt.Errorf("%w: more than %d bytes of tags and field name", series.ErrInvalidLabel, maxLabelSetBytes)
	}
	head := len(r.key)
	r.key = append(r.key, name...)
	at, known := r.index[string(r.key)]
	if !known {
		at = len(r.batch)
		r.index[string(r.key)] = at
		r.batch = append(r.batch, series.Series{Labels: r.labels(name), Samples: r.one()})
		r.labelBytes += 2 * len(r.key)
	}
	r.key = r.key[:head]
	s := &r.batch[at]
	s.Samples = append(s.Samples, series.Sample{Value: v})
	r.added = append(r.added, place{at, len(s.Samples) - 1})
	r.samples++
	return nil
}

// count counts an integer that is not exactly a float, which has 53 bits.
func (r *Reader) count(magnitude uint64) {
	if bits.Len64(magnitude)-bits.TrailingZeros64(magnitude) > 53 {
		r.stats.Rounded++
	}
}

// one is room for one sample, of which most series have no more in a request.
func (r *Reader) one() []series.Sample {
	if len(r.arena) == cap(r.arena) {
		r.arena = make([]series.Sample, 0, min(max(64, 2*cap(r.arena)), 4096))
	}
	n := len(r.arena)
	r.arena = r.arena[:n+1]
	return r.arena[n : n : n+1]
}

func (r *Reader) labels(field []byte) series.Labels {
	text, metric := string(r.key), string(append(r.metric, field...))
	r.builder.Reset()
	r.builder.Add(series.MetricName, metric)
	database := r.opts.Database != ""
	for _, tag := range r.tags {
		name := text[tag.name : tag.value-1]
		database = database && name != DatabaseLabel
		r.builder.Add(name, text[tag.value:tag.end])
	}
	if database {
		r.builder.Add(DatabaseLabel, r.opts.Database)
	}
	r.builder.Sort()
	return r.builder.Labels()
}

// time converts a timestamp; none means now.
func (r *Reader) time(text []byte) (series.Timestamp, uint16, error) {
	unit := int64(r.opts.Unit)
	var n int64
	if text == nil {
		now := r.opts.Now()
		micros := now.UnixMicro()
		if unit >= 1000 {
			micros -= modulo(micros, unit/1000)
			return series.Timestamp(micros), 0, nil
		}
		return series.Timestamp(micros), uint16(now.Nanosecond() % 1000), nil
	}
	n, err := strconv.ParseInt(string(text), 10, 64)
	if err != nil {
		return 0, 0, fmt.Errorf("%w: timestamp %.100q", ingest.ErrMalformed, text)
	}
	if unit < 1000 {
		nanos, micros := modulo(n, 1000), n/1000
		if nanos != 0 && n < 0 {
			micros-- // rounded down, not towards zero
		}
		return series.Timestamp(micros), uint16(nanos), nil
	}
	t := series.Timestamp(n * (unit / 1000))
	if int64(t)/(unit/1000) != n || t < series.MinTimestamp || t > series.MaxTimestamp {
		return 0, 0, fmt.Errorf("%w: timestamp %d in units of %v is out of range", writer.ErrInvalidSample, n, r.opts.Unit)
	}
	return t, 0, nil
}

// modulo is never negative.
func modulo(a, b int64) int64 { return (a%b + b) % b }
