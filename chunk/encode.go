package chunk

import (
	"iter"
	"maps"
	"slices"
	"sync"

	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/action"
	"cardinalsin/series"
)

// Options shape a file. The zero value is the recommended shape.
type Options struct {
	// RowGroupRows bounds a row group; 131,072 by default, at most 2^24.
	// Engines prune by row group, and DuckDB's threads take one each.
	RowGroupRows int
	// PageRows bounds a page; 16,384 by default. A selective read decodes
	// whole pages.
	PageRows int
	// Level is the zstd level; 1 by default. From 3 on, values that repeat get
	// zstd's best: for files that are written once and kept.
	Level int
	// SplitValues encodes value as BYTE_STREAM_SPLIT, which saves a tenth to
	// a quarter of that column, in files that Spark before 4.2 cannot read.
	SplitValues bool

	rowGroupBytes int // maxRowGroupBytes, unless a test says less
}

// EnsureDefaults fills what is zero.
func (o *Options) EnsureDefaults() {
	if o.RowGroupRows <= 0 {
		o.RowGroupRows = 128 << 10
	}
	o.RowGroupRows = min(o.RowGroupRows, maxGroupRows)
	if o.PageRows <= 0 {
		o.PageRows = 16 << 10
	}
	if o.Level == 0 {
		o.Level = 1
	}
	if o.rowGroupBytes == 0 {
		o.rowGroupBytes = maxRowGroupBytes
	}
}

const (
	// maxRowGroupBytes closes a row group early when labels and histograms
	// are large; Parquet's sizes have 31 bits.
	maxRowGroupBytes = 128 << 20
	// maxGroupRows bounds what a reader believes of a footer.
	maxGroupRows = 16 << 20
	// maxValueBytes bounds one label set and one histogram.
	maxValueBytes = 16 << 20
)

// Bounds are the exact least and greatest value of one label in a file.
type Bounds struct {
	Min, Max string
	Rows     int64 // rows that have the label
}

// Encoded is a file that is ready to be stored.
type Encoded struct {
	Data   []byte
	Rows   int64
	Series int64
	// Time is the exact range of timestamps; both ends lie on one UTC day.
	Time series.TimeRange
	Keys KeyRange
	// Labels holds the bounds of each label that occurs and has a column.
	Labels map[string]Bounds
	// Stats are the statistics for the add action.
	Stats action.Stats

	columns map[string]string // label → column, as encoded
	start   bool              // holds start times
}

// Fits reports whether the file may be added under a newer schema: each of
// its label columns still belongs to its label, so no two columns that differ
// only in case are committed. Where it does not, encode anew.
func (e *Encoded) Fits(l *Layout) bool {
	if e.start && !l.start {
		return false
	}
	for label, column := range e.columns {
		if c, ok := l.Column(label); !ok || c != column {
			return false
		}
	}
	return true
}

// Encode writes series, strictly ascending by [series.Compare] with samples
// strictly ascending by (Time, Nanos), as one file. All rows must lie on one
// UTC day, the file's date partition. Labels without a column in the layout
// go to the overflow map. Only columns that hold something are written.
//
// It keeps every series until it returns; [Encoder] does not. Errors wrap
// ErrInvalidInput, or are those of the sequence.
func Encode(opts Options, layout *Layout, in iter.Seq2[Series, error]) (*Encoded, error) {
	input := inputs.Get().(*[]Series)
	all := *input
	defer func() {
		clear(all)
		*input = all[:0]
		inputs.Put(input)
	}()
	var c Contents
	var shape []string
	seen := map[string]bool{}
	for s, err := range in {
		if err != nil {
			return nil, err
		}
		if len(s.Samples) == 0 {
			continue
		}
		all = append(all, s)
		k := 0
		s.Labels.Range(func(l labels.Label) {
			if k == len(shape) || shape[k] != l.Name {
				shape = append(shape[:k], l.Name)
				seen[l.Name] = true
			}
			k++
		})
		for i := range s.Samples {
			c.Nanos = c.Nanos || s.Samples[i].Nanos != 0
			c.Starts = c.Starts || s.Samples[i].Start != 0
			c.Histograms = c.Histograms || s.Samples[i].Histogram != nil
		}
	}
	delete(seen, series.MetricName)
	c.Labels = slices.Collect(maps.Keys(seen))
	e := NewEncoder(opts, layout, c)
	for i := range all {
		if err := e.Add(all[i]); err != nil {
			return nil, err
		}
	}
	return e.Finish()
}

// inputs holds memory of Encode for the next call.
var inputs = sync.Pool{New: func() any { return new([]Series) }}

// Contents tells what a file may hold. Columns of what it does not are left
// out, in a file of one row group also those of what it only might; anything
// that was not announced is refused.
type Contents struct {
	// Labels are the names of labels; which of them have a column is the
	// layout's to say. The metric name need not be among them.
	Labels     []string
	Nanos      bool
	Starts     bool
	Histograms bool
}

// Union holds what either holds.
func (c Contents) Union(o Contents) Contents {
	return Contents{
		Labels: slices.Compact(slices.Sorted(slices.Values(slices.Concat(c.Labels, o.Labels)))),
		Nanos:  c.Nanos || o.Nanos, Starts: c.Starts || o.Starts, Histograms: c.Histograms || o.Histograms,
	}
}
