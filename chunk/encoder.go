package chunk

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
	"unicode/utf8"

	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/internal/symbols"
	"cardinalsin/series"
)

// Encoder writes one file, a row group at a time, for inputs that do not fit
// in memory. It is not safe for concurrent use.
type Encoder struct {
	opts    Options
	layout  *Layout
	has     fileColumns
	columns []*labelColumn
	byLabel map[string]*labelColumn
	// overflow holds the announced labels without a column: true.
	overflow map[string]bool
	// shape is the columns of the labels of the series before, in order:
	// neighbours nearly always have the same label names.
	shape []shapeEntry

	*workspace
	pendingBytes int
	summary      summary
	// The series that is added, and the one before.
	current, last identity
	sets          setShapes
	out           *fileWriter
	err           error // the first failure, which ends the encoder
}

// identity is which series it is: by its labels, or a set of a view.
type identity struct {
	name string
	id   series.ID
	all  series.Labels
	view *symbols.View
	set  symbols.Set
}

// labels builds the label set if need be; only ties and errors ask for it.
func (i *identity) labels() series.Labels {
	if i.view == nil {
		return i.all
	}
	var b labels.ScratchBuilder
	return i.view.Labels(i.set, &b)
}

// workspace is memory that goes from one encoder to the next, through a pool:
// a writer encodes a file after the other.
type workspace struct {
	pending []segment
	rows    rowColumns
	labels  []labels.Label // of the series being added
	text    []byte         // what its ID is the hash of
	file    fileWriter
}

var (
	workspaces   = sync.Pool{New: func() any { return &workspace{} }}
	labelColumns = sync.Pool{New: func() any { return &labelColumn{} }}
)

// release gives the memory back, without what it held.
func (e *Encoder) release() {
	clear(e.labels[:cap(e.labels)])
	e.file.forget()
	workspaces.Put(e.workspace)
	e.workspace, e.out = nil, nil
	for _, c := range e.columns {
		*c = labelColumn{segments: c.segments, codes: c.codes, dict: c.dict, fileCodes: c.fileCodes[:0], used: c.used}
		labelColumns.Put(c)
	}
	e.columns, e.byLabel, e.shape = nil, nil, nil
}

type shapeEntry struct {
	name   string
	column *labelColumn // nil: overflow
}

// rowColumns holds what the pending rows do not share with their neighbours.
type rowColumns struct {
	times  []int64
	values []uint64 // bits; 0 where there is a histogram
	// Empty where the file has no such column.
	nanos      []uint16
	starts     []int64
	histograms [][]byte // nil: none
}

// labelColumn is one label column of the pending row group.
type labelColumn struct {
	label, column string
	codes         []int32 // one for each segment that has the label
	segments      []int32 // those, ascending; empty while they are the first ones
	dict          symbols.Dictionary
	lastCode      int32 // -1: none
	summary       labelSummary
	// For sets of a view: the code that a value of the view has in this row
	// group, one more so that zero is none; and which values have one.
	fileCodes, used []int32
}

// segment is the rows of one series in the pending row group.
type segment struct {
	name     string
	id       series.ID
	set      symbols.Set // of the view, if there is one
	rows     int32
	overflow []labels.Label
}

// NewEncoder starts a file that may hold the given contents.
func NewEncoder(opts Options, layout *Layout, has Contents) *Encoder {
	opts.EnsureDefaults()
	e := &Encoder{
		opts: opts, layout: layout, workspace: workspaces.Get().(*workspace),
		byLabel:  map[string]*labelColumn{},
		overflow: map[string]bool{},
	}
	has = has.Union(Contents{}) // sorted, and not the caller's
	for _, label := range has.Labels {
		column, ok := layout.Column(label)
		if label == series.MetricName {
			continue
		}
		if !ok {
			e.overflow[label] = true
			continue
		}
		c := labelColumns.Get().(*labelColumn)
		c.label, c.column, c.lastCode, c.fileCodes = label, column, -1, c.fileCodes[:0]
		c.summary.column = column
		e.columns = append(e.columns, c)
		e.byLabel[label] = c
	}
	if has.Starts && !layout.start {
		e.err = fmt.Errorf("%w: the table has no column %s", ErrInvalidInput, ColumnStart)
	}
	e.has = fileColumns{nanos: has.Nanos, start: has.Starts, histogram: has.Histograms, overflow: len(e.overflow) > 0}
	return e
}

// fileColumns tells which of the fixed columns that may be left out a file
// has.
type fileColumns struct{ nanos, start, histogram, overflow bool }

// Rows is the number of rows added so far.
func (e *Encoder) Rows() int64 { return e.summary.rows }

// Size is the number of bytes written so far; up to a row group more is
// pending.
func (e *Encoder) Size() int64 {
	if e.out == nil {
		return 0
	}
	return int64(len(e.out.data))
}

// Add appends one series under the conditions of [Encode]; one without
// samples is ignored. It copies the samples; it keeps labels and histograms
// until the row group is written. After an error the encoder is of no use.
func (e *Encoder) Add(s Series) error {
	if e.err == nil && len(s.Samples) > 0 {
		e.err = e.add(s)
	}
	return e.err
}

func (e *Encoder) add(s Series) error {
	if e.sets.view != nil {
		return fmt.Errorf("%w: %s is not of the view that the others are of", ErrInvalidInput, s.Labels)
	}
	e.current = identity{name: e.take(s.Labels), id: s.ID, all: s.Labels}
	if err := e.check(s.Samples); err != nil {
		return err
	}
	if series.IDOfText(e.text) != s.ID {
		return fmt.Errorf("%w: ID %d is not that of %s", ErrInvalidInput, s.ID, s.Labels)
	}
	if n := s.Labels.ByteSize(); n > maxValueBytes {
		return fmt.Errorf("%w: %w: label set of %d bytes", ErrInvalidInput, series.ErrInvalidLabel, n)
	}
	return e.write(s.Samples)
}

// take takes a label set apart, once for all that follows, and returns the
// metric name.
func (e *Encoder) take(l series.Labels) (name string) {
	e.labels, e.text = e.labels[:0], e.text[:0]
	l.Range(func(l labels.Label) {
		e.text = series.AppendText(e.text, l)
		if l.Name == series.MetricName {
			name = l.Value
			return
		}
		e.labels = append(e.labels, l)
	})
	return name
}

// write adds the rows of the current series, and row groups as they fill up.
func (e *Encoder) write(samples []series.Sample) error {
	e.summarise(samples)
	for rest := samples; len(rest) > 0; {
		n := min(len(rest), e.opts.RowGroupRows-len(e.rows.times))
		if e.has.histogram {
			// At least one row, then as many as the byte limit allows.
			bytes := e.pendingBytes
			for i := range n {
				if bytes += len(rest[i].Histogram); i > 0 && bytes > e.opts.rowGroupBytes {
					n = i
					break
				}
			}
		}
		if e.current.view != nil {
			e.pendSet(rest[:n])
		} else if err := e.pend(rest[:n]); err != nil {
			return err
		}
		rest = rest[n:]
		if len(e.rows.times) >= e.opts.RowGroupRows || e.pendingBytes >= e.opts.rowGroupBytes || len(rest) > 0 {
			e.flush(false)
		}
	}
	e.last = e.current
	return nil
}

// check refuses what a reader could not tell from damage.
func (e *Encoder) check(samples []series.Sample) error {
	current := &e.current
	if e.summary.rows > 0 {
		prev := &e.last
		c := 1
		switch {
		case prev.name < current.name:
			c = -1
		case prev.name == current.name && prev.id < current.id:
			c = -1
		case prev.name == current.name && prev.id == current.id:
			c = labels.Compare(prev.labels(), current.labels())
		}
		if c >= 0 {
			return fmt.Errorf("%w: series %s does not come after %s", ErrInvalidInput, current.labels(), prev.labels())
		}
	}
	if current.name == "" {
		return fmt.Errorf("%w: %w", ErrInvalidInput, series.ErrNoMetricName)
	}
	if !utf8.ValidString(current.name) {
		return badValue(series.MetricName, current.name)
	}
	for i := range samples {
		if p := &samples[i]; p.Nanos > series.MaxNanos || len(p.Histogram) > maxValueBytes {
			return fmt.Errorf("%w: %d ns or a histogram of %d bytes in %s", ErrInvalidInput, p.Nanos, len(p.Histogram), current.labels())
		}
		if p := &samples[i]; p.Nanos != 0 && !e.has.nanos || p.Start != 0 && !e.has.start || p.Histogram != nil && !e.has.histogram {
			return fmt.Errorf("%w: nanoseconds, a start time or a histogram of %s were not announced", ErrInvalidInput, current.labels())
		}
		if i > 0 && samples[i-1].Compare(samples[i]) >= 0 {
			return fmt.Errorf("%w: sample %d of %s does not come after the one before", ErrInvalidInput, i, current.labels())
		}
	}
	first, last := samples[0].Time, samples[len(samples)-1].Time
	if first < series.MinTimestamp || last > series.MaxTimestamp {
		return fmt.Errorf("%w: time of %s outside the years 1 to 9999", ErrInvalidInput, current.labels())
	}
	day := first.Date()
	if last.Date() != day || e.summary.rows > 0 && e.summary.time.Min.Date() != day {
		return fmt.Errorf("%w: rows of more than one day at %s", ErrInvalidInput, current.labels())
	}
	return nil
}

func (e *Encoder) summarise(samples []series.Sample) {
	m := &e.summary
	id := int64(e.current.id)
	span := series.TimeRange{Min: samples[0].Time, Max: samples[len(samples)-1].Time}
	if m.rows == 0 {
		m.first, m.minID, m.maxID, m.time = e.current.id, id, id, span
		m.minNanos, m.maxNanos = math.MaxInt32, math.MinInt32
		m.minStart, m.maxStart = math.MaxInt64, math.MinInt64
	}
	m.last = e.current.id
	m.names.add(e.current.name)
	m.minID, m.maxID = min(m.minID, id), max(m.maxID, id)
	m.time = m.time.Union(span)
	m.rows += int64(len(samples))
	m.seriesN++
	for i := range samples {
		p := &samples[i]
		if p.Histogram != nil {
			m.histograms++
		} else {
			m.value.add(p.Value)
		}
		if p.Nanos != 0 {
			m.nanos++
			m.minNanos, m.maxNanos = min(m.minNanos, int32(p.Nanos)), max(m.maxNanos, int32(p.Nanos))
		}
		if p.Start != 0 {
			m.starts++
			m.minStart, m.maxStart = min(m.minStart, p.Start), max(m.maxStart, p.Start)
		}
	}
}

// pend adds rows of the series that was taken to the pending row group.
func (e *Encoder) pend(samples []series.Sample) error {
	seg := segment{name: e.current.name, id: e.current.id, rows: int32(len(samples))}
	at := len(e.pending)
	for k, l := range e.labels {
		if k == len(e.shape) || e.shape[k].name != l.Name {
			column := e.byLabel[l.Name]
			if column == nil && !e.overflow[l.Name] {
				return fmt.Errorf("%w: label %q was not announced", ErrInvalidInput, l.Name)
			}
			if l.Name == "" || !utf8.ValidString(l.Name) {
				return fmt.Errorf("%w: %w: name %q", ErrInvalidInput, series.ErrInvalidLabel, l.Name)
			}
			e.shape = append(e.shape[:k], shapeEntry{l.Name, column})
		}
		c := e.shape[k].column
		if c == nil {
			if l.Value == "" || !utf8.ValidString(l.Value) {
				return badValue(l.Name, l.Value)
			}
			seg.overflow = append(seg.overflow, l)
			e.pendingBytes += (len(l.Name) + len(l.Value)) * len(samples)
			continue
		}
		code, err := c.code(l.Value)
		if err != nil {
			return err
		}
		c.room(at, 1)[0] = code
		c.summary.rows += int64(len(samples))
		e.pendingBytes += len(l.Value)
	}
	e.pendRows(seg, samples)
	return nil
}

// pendRows adds a segment whose labels are pending already.
func (e *Encoder) pendRows(seg segment, samples []series.Sample) {
	e.pending = append(e.pending, seg)
	e.pendingBytes += len(seg.name)
	e.rows.add(samples, e.has)
	if e.has.histogram {
		for i := range samples {
			e.pendingBytes += len(samples[i].Histogram)
		}
	}
}

func (c *rowColumns) add(samples []series.Sample, has fileColumns) {
	for i := range samples {
		p := &samples[i]
		bits := math.Float64bits(p.Value)
		if p.Histogram != nil {
			bits = 0
		}
		c.times = append(c.times, int64(p.Time))
		c.values = append(c.values, bits)
	}
	if has.nanos {
		for i := range samples {
			c.nanos = append(c.nanos, samples[i].Nanos)
		}
	}
	if has.start {
		for i := range samples {
			c.starts = append(c.starts, samples[i].Start)
		}
	}
	if has.histogram {
		for i := range samples {
			c.histograms = append(c.histograms, samples[i].Histogram)
		}
	}
}

func (c *rowColumns) reset() {
	clear(c.histograms)
	c.times, c.values, c.nanos, c.starts, c.histograms = c.times[:0], c.values[:0], c.nanos[:0], c.starts[:0], c.histograms[:0]
}

func badValue(name, value string) error {
	return fmt.Errorf("%w: %w: %q=%q", ErrInvalidInput, series.ErrInvalidLabel, name, value)
}

// code returns the code of a value, a new one if need be.
func (c *labelColumn) code(value string) (int32, error) {
	if c.lastCode >= 0 && string(c.dict.Text(c.lastCode)) == value {
		return c.lastCode, nil
	}
	code, fresh := c.dict.Code(value)
	if fresh {
		if value == "" || !utf8.ValidString(value) {
			return 0, badValue(c.label, value)
		}
	}
	c.lastCode = code
	return code, nil
}

// room adds n codes, of the segments from one on, and returns them to be set.
func (c *labelColumn) room(from, n int) []int32 {
	have := len(c.codes)
	if have < from { // some segments do not have the label
		for i := len(c.segments); i < have; i++ {
			c.segments = append(c.segments, int32(i))
		}
		for i := range n {
			c.segments = append(c.segments, int32(from+i))
		}
	}
	c.codes = slices.Grow(c.codes, n)[:have+n]
	return c.codes[have:]
}

// flush writes the pending rows as a row group, the last one or not.
func (e *Encoder) flush(last bool) {
	if len(e.pending) == 0 {
		return
	}
	if e.sets.view != nil {
		e.pendLabels()
	}
	if e.out == nil {
		if last {
			e.prune()
		}
		// Most series have one row: a dictionary would be longer than what
		// it stands for.
		deltaIDs := len(e.pending)*2 > len(e.rows.times)
		e.out = &e.file
		e.out.start(e.opts, e.has, e.columns, deltaIDs)
	}
	e.out.writeRowGroup(e.pending, &e.rows)
	clear(e.pending)
	e.pending, e.pendingBytes, e.sets.done = e.pending[:0], 0, 0
	e.rows.reset()
	for _, c := range e.columns {
		if len(c.codes) > 0 {
			least, greatest := c.dict.Bounds()
			c.summary.bounds.add(string(least))
			c.summary.bounds.add(string(greatest))
		}
		c.dict.Reset()
		for _, code := range c.used {
			c.fileCodes[code] = 0
		}
		c.used = c.used[:0]
		c.segments, c.codes, c.lastCode = c.segments[:0], c.codes[:0], -1
	}
}

// prune leaves out the columns of a file of one row group that were announced
// and hold nothing.
func (e *Encoder) prune() {
	e.columns = slices.DeleteFunc(e.columns, func(c *labelColumn) bool {
		empty := len(c.codes) == 0
		if empty {
			labelColumns.Put(c)
		}
		return empty
	})
	over := map[string]bool{}
	for i := range e.pending {
		for _, l := range e.pending[i].overflow {
			over[l.Name] = true
		}
	}
	e.overflow = over
	e.has = fileColumns{
		nanos: e.summary.nanos > 0, start: e.summary.starts > 0,
		histogram: e.summary.histograms > 0, overflow: len(over) > 0,
	}
}

// Finish completes the file. A file without rows is an error that wraps
// ErrInvalidInput.
func (e *Encoder) Finish() (*Encoded, error) {
	if e.err != nil {
		return nil, e.err
	}
	e.err = fmt.Errorf("%w: the encoder has finished", ErrInvalidInput)
	if e.summary.rows == 0 {
		return nil, fmt.Errorf("%w: no rows", ErrInvalidInput)
	}
	e.flush(true)
	out := &Encoded{
		Rows: e.summary.rows, Series: e.summary.seriesN, Time: e.summary.time,
		Keys:   keyRangeOf(e.summary.names.min, e.summary.first, e.summary.names.max, e.summary.last),
		Labels: map[string]Bounds{}, columns: map[string]string{},
	}
	out.start = e.has.start
	in := info{Labels: map[string]string{}, Overflow: slices.Sorted(maps.Keys(e.overflow))}
	for _, c := range e.columns {
		in.Labels[c.column] = c.label
		out.columns[c.label] = c.column
		if b := &c.summary.bounds; b.set {
			out.Labels[c.label] = Bounds{Min: b.min, Max: b.max, Rows: c.summary.rows}
		}
		e.summary.labels = append(e.summary.labels, c.summary)
	}
	out.Stats = e.summary.stats(e.layout)
	var err error
	if out.Data, err = e.out.finish(in); err != nil {
		return nil, fmt.Errorf("finish file: %w", err)
	}
	e.release()
	return out, nil
}
