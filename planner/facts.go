package planner

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/series"
)

// facts are what the log says about one file. Each is parsed when it is first
// asked for, the cheap ones first.
type facts struct {
	add *action.Add

	partitions       map[string]*string
	partitionsParsed bool

	tagged     bool
	fileTags   chunk.Tags
	tagsErr    error
	tagsParsed bool

	stats       action.Stats
	statsOK     bool
	statsParsed bool
}

// partition returns a partition value; ok is false where it is null or
// unknown.
func (f *facts) partition(column string) (value string, ok bool) {
	if !f.partitionsParsed {
		f.partitionsParsed = true
		m, err := f.add.PartitionValues.Map()
		if err == nil {
			f.partitions = m
		}
	}
	v := f.partitions[column]
	if v == nil || *v == "" { // the protocol writes null as "" too
		return "", false
	}
	return *v, true
}

func (f *facts) date() (series.Date, bool) {
	v, ok := f.partition(chunk.ColumnDate)
	if !ok {
		return 0, false
	}
	d, err := series.ParseDate(v)
	return d, err == nil
}

func (f *facts) tags() (chunk.Tags, bool, error) {
	if !f.tagsParsed {
		f.tagsParsed = true
		f.fileTags, f.tagged, f.tagsErr = chunk.ParseTags(f.add.Tags)
	}
	return f.fileTags, f.tagged, f.tagsErr
}

// timeRange bounds the file's timestamps: exactly by its tags, else by its
// statistics, which Delta writers cut down to the millisecond, so that a
// maximum is up to 999 µs too low (delta-spark, DataSkippingReader).
func (f *facts) timeRange() (series.TimeRange, bool) {
	if t, tagged, err := f.tags(); err == nil && tagged {
		return t.Time, true
	}
	st, ok := f.statistics()
	if !ok {
		return series.TimeRange{}, false
	}
	r := series.AllTime
	min, hasMin := timeBound(st.Min[chunk.ColumnTimestamp])
	max, hasMax := timeBound(st.Max[chunk.ColumnTimestamp])
	if hasMin {
		r.Min = min
	}
	if hasMax {
		r.Max = max + series.Timestamp(time.Millisecond.Microseconds())
	}
	return r, r.Min <= r.Max
}

// timeBound parses a timestamp of the statistics; one without a zone is not
// understood.
func timeBound(raw json.RawMessage) (series.Timestamp, bool) {
	s, ok := stringBound(raw)
	if !ok {
		return 0, false
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return 0, false
	}
	return series.FromTime(t), true
}

// names bounds the metric names: by the tags, which hold more characters than
// statistics do, else by the statistics.
func (f *facts) names() bounds {
	t, tagged, err := f.tags()
	if err != nil || !tagged {
		b := f.column(chunk.ColumnMetricName)
		b.nulls = false // every series has a name
		return b
	}
	b := bounds{values: true, min: t.Keys.MinName, hasMin: true, max: t.Keys.MaxName, hasMax: t.Keys.Bounded}
	if b.hasMax && b.min > b.max {
		return unknown
	}
	return b
}

// column bounds the values of a string column by the statistics. A column
// that they do not mention is unknown: the file may be older than the column
// and carry the label in its overflow map.
func (f *facts) column(name string) bounds {
	st, ok := f.statistics()
	if !ok || name == "" {
		return unknown
	}
	b := unknown
	// With wide bounds a count means something only at 0 and at all rows
	// (PROTOCOL.md, "Per-file Statistics"); nothing else is used.
	if n, ok := countBound(st.NullCount[name]); ok {
		switch {
		case n == 0:
			b.nulls = false
		case n == st.NumRecords:
			b.values = false
		}
	}
	b.min, b.hasMin = stringBound(st.Min[name])
	b.max, b.hasMax = stringBound(st.Max[name])
	if b.hasMin && b.hasMax && b.min > b.max {
		return unknown
	}
	return b
}

func (f *facts) statistics() (*action.Stats, bool) {
	if !f.statsParsed {
		f.statsParsed = true
		st, ok, err := action.ParseStats(f.add.Stats)
		f.stats, f.statsOK = st, ok && err == nil
	}
	return &f.stats, f.statsOK
}

func countBound(raw json.RawMessage) (int64, bool) {
	n, err := strconv.ParseInt(string(raw), 10, 64)
	return n, err == nil && n >= 0
}

// stringBound decodes a JSON string. Bytes that are no UTF-8, and halves of
// surrogate pairs, turn into U+FFFD when they are decoded; such a text is no
// bound any more.
func stringBound(raw json.RawMessage) (string, bool) {
	var s *string
	if len(raw) == 0 || json.Unmarshal(raw, &s) != nil || s == nil {
		return "", false
	}
	return *s, !strings.ContainsRune(*s, utf8.RuneError)
}
