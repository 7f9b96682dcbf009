package chunk

import (
	"encoding/json"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"cardinalsin/action"
	"cardinalsin/series"
)

// Statistics follow the rules that Delta's own writers keep (PROTOCOL.md,
// "Per-file Statistics"; delta-spark's StatisticsCollection): the first 32
// label columns, strings cut at 32 characters, timestamps rounded down to a
// millisecond. A reader that skips by a maximal timestamp therefore allows for
// 999 µs above it; our own planner uses the exact range in the tags.
const (
	statsLabelColumns = 32
	statsStringChars  = 32
)

// bounds of one string column; set is false while it holds no value.
type stringBounds struct {
	min, max string
	set      bool
}

func (b *stringBounds) add(v string) {
	if !b.set {
		b.min, b.max, b.set = v, v, true
		return
	}
	if v < b.min {
		b.min = v
	}
	if v > b.max {
		b.max = v
	}
}

// floatBounds collects a column of doubles.
type floatBounds struct {
	min, max float64 // of the values that are no NaN
	set      bool    // at least one is no NaN
	nan      bool    // at least one is NaN
}

func (b *floatBounds) add(v float64) {
	switch {
	case v != v:
		b.nan = true
	case !b.set:
		b.min, b.max, b.set = v, v, true
	case v < b.min:
		b.min = v
	case v > b.max:
		b.max = v
	}
}

// json returns the bounds as JSON numbers, nil where there is none that is
// sound for every engine. NaN is above all numbers in SQL engines, so a NaN
// leaves no maximum; JSON has no infinity; and of the two zeros a minimum is
// the negative, a maximum the positive, since some engines order them.
func (b *floatBounds) json() (lower, upper json.RawMessage) {
	if !b.set {
		return nil, nil
	}
	if !math.IsInf(b.min, 0) {
		lower = floatJSON(b.min, "-0.0")
	}
	if !math.IsInf(b.max, 0) && !b.nan {
		upper = floatJSON(b.max, "0.0")
	}
	return lower, upper
}

func floatJSON(v float64, zero string) json.RawMessage {
	if v == 0 {
		return json.RawMessage(zero)
	}
	return json.RawMessage(strconv.FormatFloat(v, 'g', -1, 64))
}

func stringJSON(s string) json.RawMessage {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // a string always encodes
	}
	return b
}

func intJSON(v int64) json.RawMessage { return strconv.AppendInt(nil, v, 10) }

func timeJSON(t series.Timestamp) json.RawMessage {
	return stringJSON(time.UnixMilli(t.Millis()).UTC().Format("2006-01-02T15:04:05.000Z"))
}

// summary is what is known about the rows of a file.
type summary struct {
	rows       int64
	seriesN    int64
	time       series.TimeRange
	names      stringBounds
	first      series.ID // of the least series
	last       series.ID // of the greatest
	minID      int64     // series_id as the column's signed type orders it
	maxID      int64
	value      floatBounds
	histograms int64 // rows with a histogram: their value is null
	nanos      int64 // rows with nanos
	minNanos   int32
	maxNanos   int32
	starts     int64 // rows with a start time
	minStart   int64
	maxStart   int64
	labels     []labelSummary // in the order of the layout's labels
}

type labelSummary struct {
	column string
	rows   int64 // not null
	bounds stringBounds
}

// stats returns the file's statistics.
func (s *summary) stats(layout *Layout) action.Stats {
	st := action.Stats{
		NumRecords: s.rows,
		Min:        map[string]json.RawMessage{},
		Max:        map[string]json.RawMessage{},
		NullCount:  map[string]json.RawMessage{},
	}
	put := func(column string, nulls int64, lower, upper json.RawMessage) {
		st.NullCount[column] = intJSON(nulls)
		if lower != nil {
			st.Min[column] = lower
		}
		if upper != nil {
			st.Max[column] = upper
		}
	}
	putString := func(column string, nulls int64, b stringBounds) {
		if !b.set {
			put(column, nulls, nil, nil)
			return
		}
		var upper json.RawMessage
		if v, ok := upperBound(b.max, statsStringChars); ok {
			upper = stringJSON(v)
		}
		put(column, nulls, stringJSON(cutChars(b.min, statsStringChars)), upper)
	}
	put(ColumnTimestamp, 0, timeJSON(s.time.Min), timeJSON(s.time.Max))
	putString(ColumnMetricName, 0, s.names)
	put(ColumnSeriesID, 0, intJSON(s.minID), intJSON(s.maxID))
	lower, upper := s.value.json()
	put(ColumnValue, s.histograms, lower, upper)
	put(ColumnHistogram, s.rows-s.histograms, nil, nil)
	if s.nanos > 0 {
		put(ColumnNanos, s.rows-s.nanos, intJSON(int64(s.minNanos)), intJSON(int64(s.maxNanos)))
	} else {
		put(ColumnNanos, s.rows, nil, nil)
	}
	if s.starts > 0 {
		put(ColumnStart, s.rows-s.starts, intJSON(s.minStart), intJSON(s.maxStart))
	} else if layout.start {
		put(ColumnStart, s.rows, nil, nil)
	}
	present := map[string]*labelSummary{}
	for i := range s.labels {
		present[s.labels[i].column] = &s.labels[i]
	}
	for i, label := range layout.labels {
		if i == statsLabelColumns {
			break
		}
		column := layout.columns[label]
		if l := present[column]; l != nil {
			putString(column, s.rows-l.rows, l.bounds)
		} else {
			put(column, s.rows, nil, nil)
		}
	}
	return st
}

// cutChars is the prefix of at most n characters.
func cutChars(s string, n int) string {
	for i := range s {
		if n == 0 {
			return s[:i]
		}
		n--
	}
	return s
}

// cutPrefix is the longest prefix of at most n bytes that ends between two
// characters.
func cutPrefix(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// upperBound is a text that is not below s in byte order and has little more
// than n characters: s itself if it is short, else a prefix and a greater
// character, U+007F where that is enough and U+10FFFF where not. A prefix
// that is followed by U+10FFFF cannot end there and grows to at most 2n
// characters; after that there is no bound, and ok is false.
func upperBound(s string, n int) (bound string, ok bool) {
	chars := 0
	for i, r := range s {
		if chars < n || chars < 2*n && r == utf8.MaxRune {
			chars++
			continue
		}
		switch {
		case r < 0x7f:
			return s[:i] + "\x7f", true
		case r < utf8.MaxRune:
			return strings.Clone(s[:i]) + string(utf8.MaxRune), true
		}
		return "", false
	}
	return s, true
}
