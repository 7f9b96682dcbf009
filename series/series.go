// Package series is the data model: labels, series identity, samples,
// matchers and time ranges.
//
// It stands on the lowest layer and does no I/O. Labels and matchers are
// Prometheus' own types, so that every query engine and ingestion handler of
// that ecosystem speaks them without conversion.
//
// INVARIANT: a series is identified by its full label set. [ID] is only its
// hash: a sort and join key, never proof that two series are the same.
package series

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/prometheus/prometheus/model/labels"
)

// Labels is a label set sorted by name, __name__ included, with no empty
// values.
type Labels = labels.Labels

// Matcher selects series by one label; an absent label counts as "".
type Matcher = labels.Matcher

// MetricName is the label that carries a metric's name.
const MetricName = "__name__"

// Errors of [Validate].
var (
	ErrNoMetricName   = errors.New("series has no metric name")
	ErrDuplicateLabel = errors.New("duplicate label name")
	ErrUnsortedLabels = errors.New("label names out of order")
	ErrInvalidLabel   = errors.New("invalid label")
)

// Timestamp counts microseconds since the Unix epoch, UTC.
type Timestamp int64

// Bounds of a Timestamp: the years 1 to 9999, the range that every Delta
// reader's timestamp type and date partition can hold.
const (
	MinTimestamp Timestamp = -62135596800_000_000
	MaxTimestamp Timestamp = 253402300799_999_999
)

// FromMillis converts milliseconds since the epoch, saturating at the bounds.
func FromMillis(ms int64) Timestamp {
	switch {
	case ms < int64(MinTimestamp)/1000:
		return MinTimestamp
	case ms > int64(MaxTimestamp)/1000:
		return MaxTimestamp
	}
	return Timestamp(ms * 1000)
}

// FromTime converts a time, dropping what is below a microsecond.
func FromTime(t time.Time) Timestamp { return Timestamp(t.UnixMicro()) }

// Millis returns milliseconds since the epoch, rounded down.
func (t Timestamp) Millis() int64 { return floorDiv(int64(t), 1000) }

// Time returns the same instant in UTC.
func (t Timestamp) Time() time.Time { return time.UnixMicro(int64(t)).UTC() }

// Date returns the UTC day as days since the epoch.
func (t Timestamp) Date() Date { return Date(floorDiv(int64(t), microsPerDay)) }

const microsPerDay = 24 * 60 * 60 * 1_000_000

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

// Date is a UTC day, counted from the epoch.
type Date int32

// String formats the day as YYYY-MM-DD, the form of a Delta partition value.
func (d Date) String() string { return d.Start().Time().Format(time.DateOnly) }

// ParseDate is the inverse of String.
func ParseDate(s string) (Date, error) {
	t, err := time.Parse(time.DateOnly, s)
	if err != nil {
		return 0, fmt.Errorf("parse date: %w", err)
	}
	return FromTime(t).Date(), nil
}

// Start is the first microsecond of the day.
func (d Date) Start() Timestamp { return Timestamp(int64(d) * microsPerDay) }

// Range covers the whole day.
func (d Date) Range() TimeRange {
	return TimeRange{Min: d.Start(), Max: d.Start() + microsPerDay - 1}
}

// TimeRange is an interval, both ends inclusive.
type TimeRange struct{ Min, Max Timestamp }

// AllTime covers every timestamp.
var AllTime = TimeRange{Min: math.MinInt64, Max: math.MaxInt64}

// Contains reports whether t lies in the range.
func (r TimeRange) Contains(t Timestamp) bool { return r.Min <= t && t <= r.Max }

// Overlaps reports whether the two ranges share an instant.
func (r TimeRange) Overlaps(o TimeRange) bool { return r.Min <= o.Max && o.Min <= r.Max }

// Union is the smallest range that covers both.
func (r TimeRange) Union(o TimeRange) TimeRange {
	return TimeRange{Min: min(r.Min, o.Min), Max: max(r.Max, o.Max)}
}

// MaxNanos is the greatest Sample.Nanos: what is left of a microsecond.
const MaxNanos = 999

// Sample is one observation of one series.
type Sample struct {
	Time Timestamp
	// Nanos holds the last three digits of a nanosecond timestamp, 0–999.
	Nanos uint16
	// Value is kept bit for bit: stale markers, NaN payloads and −0 survive.
	// It has no meaning where Histogram is set.
	Value float64
	// Start is when the counter, histogram or interval began that the sample
	// belongs to, in nanoseconds since the Unix epoch; 0 where it is not known,
	// as in OTLP (start_time_unix_nano) and remote write 2.0.
	Start int64
	// Histogram is a native histogram in Prometheus' protobuf encoding, nil
	// for a float sample. It is shared, not copied: treat it as read-only.
	Histogram []byte
}

// Compare orders samples of one series by time, nanoseconds included.
func (s Sample) Compare(o Sample) int {
	switch {
	case s.Time != o.Time:
		if s.Time < o.Time {
			return -1
		}
		return 1
	default:
		return int(s.Nanos) - int(o.Nanos)
	}
}

// Equal reports whether two samples are the same, bit for bit.
func (s Sample) Equal(o Sample) bool {
	return s.Time == o.Time && s.Nanos == o.Nanos && s.Start == o.Start &&
		math.Float64bits(s.Value) == math.Float64bits(o.Value) &&
		slices.Equal(s.Histogram, o.Histogram) && (s.Histogram == nil) == (o.Histogram == nil)
}

// Series is a label set with samples in the order in which they came.
type Series struct {
	Labels  Labels
	Samples []Sample
}

// Batch is what one client request carries; it is accepted or refused whole.
type Batch []Series

// Samples counts the samples of all series.
func (b Batch) Samples() int {
	n := 0
	for i := range b {
		n += len(b[i].Samples)
	}
	return n
}

// Exemplar is one trace of what a series counted. Identity is the series, the
// exemplar's own labels and the time.
type Exemplar struct {
	Series Labels // of the series that it belongs to
	Labels Labels // its own, such as trace_id; may be empty
	Time   Timestamp
	Nanos  uint16 // as in Sample
	Value  float64
}

// Metadata is what a client said of a metric. The zero Type is "unknown".
type Metadata struct {
	Metric string // __name__, of a classic histogram or summary its family's
	Type   string // as in OpenMetrics: counter, gauge, histogram, …
	Unit   string
	Help   string
}

// Selector picks series and a time range; all matchers must hold.
type Selector struct {
	Matchers []*Matcher
	Range    TimeRange
}

// Matches reports whether a label set satisfies every matcher.
func (s Selector) Matches(l Labels) bool {
	for _, m := range s.Matchers {
		if !m.Matches(l.Get(m.Name)) {
			return false
		}
	}
	return true
}

// ID is the 64-bit hash of a full label set, stored as the column series_id.
type ID uint64

// IDOf hashes a label set: xxhash64 over name, 0xFF, value, 0xFF for each
// label in order. 0xFF occurs in no UTF-8 text, so no two label sets have the
// same pre-image. The value is stored in tables and never changes.
func IDOf(l Labels) ID {
	var buf [512]byte
	b := buf[:0]
	l.Range(func(l labels.Label) { b = AppendText(b, l) })
	return IDOfText(b)
}

// AppendText appends what one label adds to the text that [IDOf] hashes, for
// who walks a label set anyway: IDOfText of all labels in order is the ID.
func AppendText(b []byte, l labels.Label) []byte {
	b = append(b, l.Name...)
	b = append(b, 0xff)
	b = append(b, l.Value...)
	return append(b, 0xff)
}

// IDOfText hashes the text of a label set; see [AppendText].
func IDOfText(text []byte) ID { return ID(xxhash.Sum64(text)) }

// Compare is the order of series within a chunk: metric name, ID, then the
// label set itself, which separates series whose IDs collide.
func Compare(a, b Labels, aID, bID ID) int {
	an, bn := a.Get(MetricName), b.Get(MetricName)
	switch {
	case an < bn:
		return -1
	case an > bn:
		return 1
	case aID < bID:
		return -1
	case aID > bID:
		return 1
	}
	return labels.Compare(a, b)
}
