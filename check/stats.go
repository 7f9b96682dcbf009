package check

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"time"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/series"
)

// counter sums up the rows of one file, to be held against its statistics.
type counter struct {
	layout *chunk.Layout
	inFile map[string]bool // labels that have a column in this file
	rows   int64

	time               series.TimeRange
	minName, maxName   string
	minID, maxID       int64
	values             int64 // rows that have a value, no histogram
	minValue, maxValue float64
	numbers            int64 // values that are no NaN
	nanos              int64 // rows that have nanos
	minNanos, maxNanos uint16
	starts             int64 // rows that have a start time
	minStart, maxStart int64
	labelRows          map[string]int64
	minLabel, maxLabel map[string]string
}

func newCounter(layout *chunk.Layout, f *chunk.File) *counter {
	c := &counter{layout: layout, inFile: map[string]bool{}, labelRows: map[string]int64{}, minLabel: map[string]string{}, maxLabel: map[string]string{}}
	for _, g := range f.RowGroups() {
		for l := range g.Labels {
			c.inFile[l] = true
		}
	}
	return c
}

func (c *counter) add(s chunk.Series) {
	n := int64(len(s.Samples))
	if n == 0 {
		return
	}
	name := s.Labels.Get(series.MetricName)
	span := series.TimeRange{Min: s.Samples[0].Time, Max: s.Samples[n-1].Time}
	if c.rows == 0 {
		c.time, c.minName, c.maxName, c.minID, c.maxID = span, name, name, int64(s.ID), int64(s.ID)
	}
	c.rows += n
	c.time = c.time.Union(span)
	c.minName, c.maxName = min(c.minName, name), max(c.maxName, name)
	c.minID, c.maxID = min(c.minID, int64(s.ID)), max(c.maxID, int64(s.ID))
	for _, p := range s.Samples {
		if p.Nanos != 0 {
			if c.nanos == 0 {
				c.minNanos, c.maxNanos = p.Nanos, p.Nanos
			}
			c.nanos++
			c.minNanos, c.maxNanos = min(c.minNanos, p.Nanos), max(c.maxNanos, p.Nanos)
		}
		if p.Start != 0 {
			if c.starts == 0 {
				c.minStart, c.maxStart = p.Start, p.Start
			}
			c.starts++
			c.minStart, c.maxStart = min(c.minStart, p.Start), max(c.maxStart, p.Start)
		}
		if p.Histogram != nil {
			continue
		}
		c.values++
		if math.IsNaN(p.Value) {
			continue
		}
		if c.numbers == 0 {
			c.minValue, c.maxValue = p.Value, p.Value
		}
		c.numbers++
		c.minValue, c.maxValue = min(c.minValue, p.Value), max(c.maxValue, p.Value)
	}
	for label := range c.inFile {
		v := s.Labels.Get(label)
		if v == "" {
			continue
		}
		if c.labelRows[label] == 0 {
			c.minLabel[label], c.maxLabel[label] = v, v
		}
		c.labelRows[label] += n
		c.minLabel[label], c.maxLabel[label] = min(c.minLabel[label], v), max(c.maxLabel[label], v)
	}
}

// compare returns an error that wraps errWrong where the statistics exclude a
// row that is there. Bounds may be wide, and may be missing; counts are exact.
func (c *counter) compare(st action.Stats) error {
	if st.NumRecords != c.rows {
		return fmt.Errorf("%w: %d rows, the statistics say %d", errWrong, c.rows, st.NumRecords)
	}
	nulls := map[string]int64{
		chunk.ColumnTimestamp: 0, chunk.ColumnMetricName: 0, chunk.ColumnSeriesID: 0,
		chunk.ColumnValue: c.rows - c.values, chunk.ColumnHistogram: c.values, chunk.ColumnNanos: c.rows - c.nanos, chunk.ColumnStart: c.rows - c.starts,
	}
	for _, label := range c.layout.Labels() {
		column, _ := c.layout.Column(label)
		nulls[column] = c.rows - c.labelRows[label] // all of them where the label is in the overflow map
	}
	for _, column := range slices.Sorted(keys(st.NullCount)) {
		want, known := nulls[column]
		var got int64
		if err := json.Unmarshal(st.NullCount[column], &got); known && (err != nil || got != want) {
			return fmt.Errorf("%w: column %q has %d nulls, the statistics say %s", errWrong, column, want, st.NullCount[column])
		}
	}
	if c.rows == 0 {
		return nil
	}
	// Timestamps are cut to milliseconds: a maximum stands for up to 999 µs more.
	if err := bound(st, chunk.ColumnTimestamp, c.time.Min, c.time.Max, func(raw json.RawMessage, upper bool) (series.Timestamp, error) {
		var t time.Time
		err := json.Unmarshal(raw, &t)
		at := series.FromTime(t)
		if upper {
			at += 999
		}
		return at, err
	}); err != nil {
		return err
	}
	if err := bound(st, chunk.ColumnMetricName, c.minName, c.maxName, parse[string]); err != nil {
		return err
	}
	if err := bound(st, chunk.ColumnSeriesID, c.minID, c.maxID, parse[int64]); err != nil {
		return err
	}
	if c.nanos > 0 {
		if err := bound(st, chunk.ColumnNanos, c.minNanos, c.maxNanos, parse[uint16]); err != nil {
			return err
		}
	}
	if c.starts > 0 {
		if err := bound(st, chunk.ColumnStart, c.minStart, c.maxStart, parse[int64]); err != nil {
			return err
		}
	}
	if c.numbers > 0 {
		if err := bound(st, chunk.ColumnValue, c.minValue, c.maxValue, parse[float64]); err != nil {
			return err
		}
	}
	for _, label := range c.layout.Labels() {
		if c.labelRows[label] == 0 {
			continue
		}
		column, _ := c.layout.Column(label)
		if err := bound(st, column, c.minLabel[label], c.maxLabel[label], parse[string]); err != nil {
			return err
		}
	}
	return nil
}

func parse[T any](raw json.RawMessage, _ bool) (v T, err error) {
	err = json.Unmarshal(raw, &v)
	return v, err
}

// bound checks that a column's bounds, if there are any, include its least and
// greatest value.
func bound[T interface {
	~int64 | ~uint16 | ~float64 | ~string
}](st action.Stats, column string, least, greatest T, parse func(raw json.RawMessage, upper bool) (T, error)) error {
	if raw, ok := st.Min[column]; ok {
		if b, err := parse(raw, false); err != nil || b > least {
			return fmt.Errorf("%w: column %q begins at %v, the statistics say %s", errWrong, column, least, raw)
		}
	}
	if raw, ok := st.Max[column]; ok {
		if b, err := parse(raw, true); err != nil || b < greatest {
			return fmt.Errorf("%w: column %q ends at %v, the statistics say %s", errWrong, column, greatest, raw)
		}
	}
	return nil
}
