package arrowbatch

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/prompb"

	"cardinalsin/chunk"
	"cardinalsin/ingest"
	"cardinalsin/series"
	"cardinalsin/writer"
)

// scratch is what a converter keeps from one batch to the next.
type scratch struct {
	codes   []int32
	extra   overflowColumn
	hashes  []uint64
	changed []bool           // by row: another series than the row before
	byHash  map[uint64]int32 // newest series with that hash
	next    []int32          // by series: another one with the same hash, -1 for none
	firsts  []int32          // by series: its first row
	counts  []int32          // by series: its rows
	of      []int32          // by row: its series
	samples []series.Sample
	builder labels.ScratchBuilder
}

// Batch converts a record batch: rows with the same label set become one
// series, in the order of its first row, with samples in the order of the
// rows. The result is valid until the next call, except for histograms, which
// are copies; the record batch may be released at once.
//
// Errors say which row is at fault: ingest.ErrMalformed, ErrTooLarge,
// ErrInvalidHistogram, series.ErrInvalidLabel, series.ErrNoMetricName,
// writer.ErrInvalidSample. What else may be wrong with a label set or a time is
// the writer's to refuse.
func (c *Converter) Batch(rec arrow.RecordBatch) (b series.Batch, err error) {
	// Offsets, indices and lengths that do not fit the buffers panic in
	// arrow-go, with nothing read that is not the batch's.
	defer func() {
		if r := recover(); r != nil {
			b, err = nil, fmt.Errorf("%w: arrays contradict their buffers: %v", ingest.ErrMalformed, r)
		}
	}()
	if rec.NumRows() > MaxRows {
		return nil, fmt.Errorf("%w: a batch of %d rows, at most %d", ingest.ErrTooLarge, rec.NumRows(), MaxRows)
	}
	n := int(rec.NumRows())
	if n == 0 {
		return nil, nil
	}
	if rec.NumCols() != int64(c.schema.NumFields()) {
		return nil, fmt.Errorf("%w: %d columns in a schema of %d", ingest.ErrMalformed, rec.NumCols(), c.schema.NumFields())
	}
	for i, a := range rec.Columns() {
		if a.Len() != n {
			return nil, fmt.Errorf("%w: column %q has %d rows of %d", ingest.ErrMalformed, c.schema.Field(i).Name, a.Len(), n)
		}
	}
	if err := c.readTexts(rec, n); err != nil {
		return nil, err
	}
	c.group(n)
	if err := c.readSamples(rec, n); err != nil {
		return nil, err
	}
	return c.assemble(rec)
}

// readTexts codes all text columns.
func (c *Converter) readTexts(rec arrow.RecordBatch, n int) error {
	used := 1
	for _, t := range c.texts {
		if !allNull(rec.Column(t.place), n) {
			used++
		}
	}
	if used*n > maxCells {
		return fmt.Errorf("%w: %d rows with %d labels; send fewer rows at a time", ingest.ErrTooLarge, n, used)
	}
	c.codes = slices.Grow(c.codes[:0], used*n)[:used*n]
	free := c.codes
	for _, t := range c.texts {
		if err := t.read(rec.Column(t.place), n, free); err != nil {
			return err
		}
		if t.codes != nil {
			free = free[n:]
		}
		if t.label != series.MetricName {
			continue
		}
		if i := slices.Index(t.codes, 0); i >= 0 || t.codes == nil {
			return fmt.Errorf("row %d: %w: column %q is null", max(i, 0), series.ErrNoMetricName, t.column)
		}
	}
	c.extra.reset()
	if c.overflow < 0 {
		return nil
	}
	return c.extra.read(rec.Column(c.overflow).(*array.Map), n, free)
}

// identity lists the columns of codes that tell one series from another.
func (c *Converter) identity() [][]int32 {
	out := make([][]int32, 0, len(c.texts)+1)
	for _, t := range c.texts {
		if t.codes != nil {
			out = append(out, t.codes)
		}
	}
	if c.extra.codes != nil {
		out = append(out, c.extra.codes)
	}
	return out
}

// group gives each row its series: column by column, so that the inner loops
// are short, and then one look-up for each row that differs from the one
// before.
func (c *Converter) group(n int) {
	c.hashes = slices.Grow(c.hashes[:0], n)[:n]
	c.changed = slices.Grow(c.changed[:0], n)[:n]
	c.of = slices.Grow(c.of[:0], n)[:n]
	clear(c.hashes)
	clear(c.changed)
	columns := c.identity()
	for _, codes := range columns {
		last := codes[0]
		for i, code := range codes {
			if code != last {
				c.changed[i] = true
				last = code
			}
		}
	}
	c.changed[0] = true
	for k, codes := range columns {
		salt := uint64(k+1) * 0x9E3779B97F4A7C15
		for i, code := range codes {
			if c.changed[i] {
				h := (c.hashes[i] ^ uint64(code)) * 0xFF51AFD7ED558CCD
				c.hashes[i] = (h ^ h>>32) + salt
			}
		}
	}
	if c.byHash == nil {
		c.byHash = map[uint64]int32{}
	}
	clear(c.byHash)
	c.firsts, c.counts, c.next = c.firsts[:0], c.counts[:0], c.next[:0]
	current := int32(0)
	for i := range n {
		if c.changed[i] {
			current = c.find(int32(i), columns)
		}
		c.of[i] = current
		c.counts[current]++
	}
}

// find returns the series of a row, which it adds if need be.
func (c *Converter) find(row int32, columns [][]int32) int32 {
	chain, ok := c.byHash[c.hashes[row]]
	if !ok {
		chain = -1
	}
	for s := chain; s >= 0; s = c.next[s] {
		first, same := c.firsts[s], true
		for _, codes := range columns {
			if codes[row] != codes[first] {
				same = false
				break
			}
		}
		if same {
			return s
		}
	}
	s := int32(len(c.firsts))
	c.firsts, c.counts, c.next = append(c.firsts, row), append(c.counts, 0), append(c.next, chain)
	c.byHash[c.hashes[row]] = s
	return s
}

// readSamples fills samples, grouped by series, from the other columns.
func (c *Converter) readSamples(rec arrow.RecordBatch, n int) error {
	c.samples = slices.Grow(c.samples[:0], n)[:n]
	clear(c.samples)
	// ends[s] is where the next sample of series s goes.
	at := int32(0)
	ends := make([]int32, len(c.counts))
	for s, count := range c.counts {
		ends[s] = at
		at += count
	}
	time, err := c.timeReader(rec)
	if err != nil {
		return err
	}
	value, err := c.valueReader(rec)
	if err != nil {
		return err
	}
	var start []int64
	var noStart nulls
	if c.start >= 0 {
		a := rec.Column(c.start).(*array.Int64)
		start, noStart = a.Int64Values(), nullsOf(a)
	}
	for i := range n {
		s := &c.samples[ends[c.of[i]]]
		ends[c.of[i]]++
		if err := time(i, s); err != nil {
			return fmt.Errorf("row %d: %w", i, err)
		}
		if err := value(i, s); err != nil {
			return fmt.Errorf("row %d: %w", i, err)
		}
		if start != nil && !noStart.at(i) {
			s.Start = start[i]
		}
	}
	return nil
}

// timeReader reads timestamp and nanos of a row.
func (c *Converter) timeReader(rec arrow.RecordBatch) (func(int, *series.Sample) error, error) {
	a := rec.Column(c.time).(*array.Timestamp)
	unit := c.schema.Field(c.time).Type.(*arrow.TimestampType).Unit
	values, missing := a.Values(), nullsOf(a)
	scale := map[arrow.TimeUnit]int64{arrow.Second: 1_000_000, arrow.Millisecond: 1000, arrow.Microsecond: 1}[unit]

	nanos := func(int) int64 { return 0 }
	var noNanos nulls
	if c.nanos >= 0 {
		col := rec.Column(c.nanos)
		var err error
		if nanos, err = indices(col); err != nil {
			return nil, fmt.Errorf("column %q: %w", chunk.ColumnNanos, err)
		}
		noNanos = nullsOf(col)
	}
	return func(i int, s *series.Sample) error {
		if missing.at(i) {
			return fmt.Errorf("%w: column %q is null", ingest.ErrMalformed, chunk.ColumnTimestamp)
		}
		v := int64(values[i])
		if scale == 0 {
			micros := v / 1000
			rest := v % 1000
			if rest < 0 {
				micros, rest = micros-1, rest+1000
			}
			s.Time, s.Nanos = series.Timestamp(micros), uint16(rest)
		} else {
			if t := v * scale; t/scale == v {
				s.Time = series.Timestamp(t)
			} else {
				return fmt.Errorf("%w: time %d %s is out of range", writer.ErrInvalidSample, v, unit)
			}
		}
		if noNanos.at(i) {
			return nil
		}
		switch k := nanos(i); {
		case k == 0:
		case k < 0 || k > 999:
			return fmt.Errorf("%w: %d in column %q", writer.ErrInvalidSample, k, chunk.ColumnNanos)
		case scale == 0:
			return fmt.Errorf("%w: column %q beside timestamps of nanoseconds", ingest.ErrMalformed, chunk.ColumnNanos)
		default:
			s.Nanos = uint16(k)
		}
		return nil
	}, nil
}

// valueReader reads value and histogram of a row, of which one is there.
func (c *Converter) valueReader(rec arrow.RecordBatch) (func(int, *series.Sample) error, error) {
	value := func(int) float64 { return 0 }
	noValue := func(int) bool { return true }
	if c.value >= 0 {
		col := rec.Column(c.value)
		switch a := col.(type) {
		case *array.Float64:
			values := a.Float64Values()
			value = func(i int) float64 { return values[i] }
		case *array.Float32:
			values := a.Float32Values()
			value = func(i int) float64 { return float64(values[i]) }
		}
		noValue = nullsOf(col).at
	}
	floats := func(i int, s *series.Sample) error {
		if noValue(i) {
			return fmt.Errorf("%w: neither a value nor a histogram", ingest.ErrMalformed)
		}
		s.Value = value(i)
		return nil
	}
	if c.histogram < 0 || allNull(rec.Column(c.histogram), int(rec.NumRows())) {
		return floats, nil
	}
	col := rec.Column(c.histogram)
	blob := col.(interface{ Value(int) []byte })
	noBlob := nullsOf(col)
	return func(i int, s *series.Sample) error {
		switch {
		case noBlob.at(i):
			return floats(i, s)
		case !noValue(i):
			return fmt.Errorf("%w: both a value and a histogram", ingest.ErrMalformed)
		}
		h := blob.Value(i)
		if err := validateHistogram(h); err != nil {
			return fmt.Errorf("%w: %w", ingest.ErrInvalidHistogram, err)
		}
		s.Histogram = bytes.Clone(h)
		return nil
	}, nil
}

var errNoBytes = errors.New("no bytes")

// validateHistogram refuses what the query engine could not read.
func validateHistogram(data []byte) error {
	if len(data) == 0 {
		return errNoBytes
	}
	var h prompb.Histogram
	if err := h.Unmarshal(data); err != nil {
		return err
	}
	if h.IsFloatHistogram() {
		return h.ToFloatHistogram().Validate()
	}
	return h.ToIntHistogram().Validate()
}

// assemble builds the label sets.
func (c *Converter) assemble(rec arrow.RecordBatch) (series.Batch, error) {
	out := make(series.Batch, len(c.firsts))
	from := int32(0)
	for s, row := range c.firsts {
		c.builder.Reset()
		for _, t := range c.texts {
			if t.codes != nil && t.codes[row] != 0 {
				c.builder.Add(t.label, t.texts[t.codes[row]])
			}
		}
		if o := &c.extra; o.codes != nil && o.codes[row] != 0 {
			for _, p := range o.sets[o.codes[row]] {
				c.builder.Add(p.name, p.value)
			}
			c.builder.Sort() // a name that is there twice is the writer's to refuse
		}
		to := from + c.counts[s]
		out[s] = series.Series{Labels: c.builder.Labels(), Samples: c.samples[from:to:to]}
		from = to
	}
	if c.id >= 0 {
		return out, c.checkIDs(rec, out)
	}
	return out, nil
}

// checkIDs compares the IDs that were sent with those of the label sets.
func (c *Converter) checkIDs(rec arrow.RecordBatch, b series.Batch) error {
	a := rec.Column(c.id).(*array.Int64)
	values, missing := a.Int64Values(), nullsOf(a)
	ids := make([]series.ID, len(b))
	for s := range b {
		ids[s] = series.IDOf(b[s].Labels)
	}
	for i, s := range c.of {
		if !missing.at(i) && series.ID(values[i]) != ids[s] {
			return fmt.Errorf("row %d: %w: %s %d is not the hash of %.300s", i, ingest.ErrMalformed, chunk.ColumnSeriesID, values[i], b[s].Labels)
		}
	}
	return nil
}
