package importer

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/chunk"
	"cardinalsin/ingest"
	"cardinalsin/internal/arrowbatch"
	"cardinalsin/series"
	"cardinalsin/writer"
)

func csvParser(path string, o Options) parser {
	return fileParser(path, func(file io.Reader, yield func(*part, error) bool) error {
		in := &recordLimit{in: file}
		r := &csvReader{in: csv.NewReader(in), limit: in, opts: o}
		r.in.ReuseRecord = true
		return r.run(yield)
	})
}

// recordLimit bounds what one record may take: a quote that is never closed
// makes the rest of the file one cell.
type recordLimit struct {
	in    io.Reader
	taken int64 // since the last record began
}

func (l *recordLimit) Read(b []byte) (int, error) {
	if l.taken > maxLineBytes {
		return 0, fmt.Errorf("%w: a record of more than %d bytes", ingest.ErrTooLarge, maxLineBytes)
	}
	n, err := l.in.Read(b)
	l.taken += int64(n)
	return n, err
}

type csvReader struct {
	in    *csv.Reader
	limit *recordLimit
	opts  Options
	rows  rows
	line  int // on which the last record began

	// Places of the columns, -1 where there is none.
	time, name, value, nanos, start int
	empty                           []int // columns that must be
	labels                          []csvLabel
	header                          []string
	builder                         labels.ScratchBuilder
}

type csvLabel struct {
	column int
	name   string
}

func (r *csvReader) run(yield func(*part, error) bool) error {
	header, err := r.in.Read()
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("line 1: %w: no header", ingest.ErrMalformed)
	}
	if err != nil {
		return r.readError(err)
	}
	if err := r.bind(slices.Clone(header)); err != nil {
		return fmt.Errorf("line 1: %w", err)
	}
	r.rows.reset()
	for {
		r.limit.taken = 0
		record, err := r.in.Read()
		last := errors.Is(err, io.EOF)
		if err != nil && !last {
			return r.readError(err)
		}
		if !last {
			r.line, _ = r.in.FieldPos(0)
			if err := r.row(record); err != nil {
				return fmt.Errorf("line %d: %w", r.line, err)
			}
		}
		if r.rows.count >= r.opts.partSamples || last && r.rows.count > 0 {
			if !yield(&part{samples: r.rows.batch, end: r.in.InputOffset()}, nil) {
				return nil
			}
			r.rows.reset()
		}
		if last {
			return nil
		}
	}
}

// readError tells malformed input, with its line, from a disk that fails.
func (r *csvReader) readError(err error) error {
	var syntax *csv.ParseError
	if errors.As(err, &syntax) {
		return fmt.Errorf("line %d: %w: %w", syntax.Line, ingest.ErrMalformed, syntax.Err)
	}
	return fmt.Errorf("after line %d: %w", r.line, err)
}

// bind reads the header.
func (r *csvReader) bind(header []string) error {
	r.header = header
	r.time, r.name, r.value, r.nanos, r.start = -1, -1, -1, -1, -1
	header[0] = strings.TrimPrefix(header[0], "\ufeff") // as some programs begin a file
	seen := map[string]bool{}
	for i, column := range header {
		if seen[column] {
			return fmt.Errorf("%w: column %.200q twice", ingest.ErrMalformed, column)
		}
		seen[column] = true
		switch column {
		case chunk.ColumnTimestamp:
			r.time = i
		case chunk.ColumnMetricName:
			r.name = i
		case chunk.ColumnValue:
			r.value = i
		case chunk.ColumnNanos:
			r.nanos = i
		case chunk.ColumnStart:
			r.start = i
		case chunk.ColumnHistogram, chunk.ColumnOverflow:
			r.empty = append(r.empty, i)
		case chunk.ColumnSeriesID, chunk.ColumnDate, chunk.ColumnShard:
		default:
			label, err := arrowbatch.LabelOf(column)
			if err != nil {
				return err
			}
			r.labels = append(r.labels, csvLabel{i, label})
		}
	}
	for name, place := range map[string]int{chunk.ColumnTimestamp: r.time, chunk.ColumnMetricName: r.name, chunk.ColumnValue: r.value} {
		if place < 0 {
			return fmt.Errorf("%w: no column %q", ingest.ErrMalformed, name)
		}
	}
	r.labels = append(r.labels, csvLabel{r.name, series.MetricName})
	slices.SortFunc(r.labels, func(a, b csvLabel) int { return strings.Compare(a.name, b.name) })
	return nil
}

func (r *csvReader) row(record []string) error {
	for _, i := range r.empty {
		if record[i] != "" {
			return fmt.Errorf("%w: column %q in CSV; use Parquet", ingest.ErrUnsupported, r.header[i])
		}
	}
	r.builder.Reset()
	size := 0
	for _, l := range r.labels {
		if v := record[l.column]; v != "" {
			if size += len(l.name) + len(v); size > writer.MaxLabelBytes {
				return fmt.Errorf("%w: label set of more than %d bytes", series.ErrInvalidLabel, writer.MaxLabelBytes)
			}
			r.builder.Add(l.name, v)
		}
	}
	l := r.builder.Labels()
	if err := checkLabels(l); err != nil {
		return err
	}
	s, err := r.sample(record)
	if err != nil {
		return err
	}
	r.rows.add(r.rows.find(l), s)
	return nil
}

func (r *csvReader) sample(record []string) (s series.Sample, err error) {
	if s.Value, err = strconv.ParseFloat(record[r.value], 64); err != nil {
		return s, fmt.Errorf("%w: column %q: %w", ingest.ErrMalformed, chunk.ColumnValue, err)
	}
	if s.Time, s.Nanos, err = r.timestamp(record[r.time]); err != nil {
		return s, err
	}
	if r.nanos >= 0 && record[r.nanos] != "" {
		n, err := strconv.ParseUint(record[r.nanos], 10, 16)
		if err != nil || n > series.MaxNanos || n > 0 && s.Nanos > 0 {
			return s, fmt.Errorf("%w: %.80q in column %q", writer.ErrInvalidSample, record[r.nanos], chunk.ColumnNanos)
		}
		s.Nanos = max(s.Nanos, uint16(n))
	}
	if r.start >= 0 && record[r.start] != "" {
		if s.Start, err = strconv.ParseInt(record[r.start], 10, 64); err != nil {
			return s, fmt.Errorf("%w: column %q: %w", ingest.ErrMalformed, chunk.ColumnStart, err)
		}
	}
	return s, writer.CheckSample(&s)
}

// layouts are how programs print times; a fraction is read after any of them.
var layouts = []string{time.RFC3339, "2006-01-02 15:04:05Z07:00", "2006-01-02 15:04:05Z07"}

// timestamp reads a time, or a number if its unit is known.
func (r *csvReader) timestamp(text string) (series.Timestamp, uint16, error) {
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		if r.opts.Unit <= 0 {
			return 0, 0, fmt.Errorf("%w: timestamp %d has no unit; name one", ingest.ErrMalformed, n)
		}
		if r.opts.Unit < time.Microsecond {
			if n > math.MaxInt64/int64(r.opts.Unit) || n < math.MinInt64/int64(r.opts.Unit) {
				return 0, 0, fmt.Errorf("%w: timestamp %d", writer.ErrInvalidSample, n)
			}
			t, ns := split(n * int64(r.opts.Unit))
			return t, ns, nil
		}
		per := int64(r.opts.Unit / time.Microsecond)
		if n > math.MaxInt64/per || n < math.MinInt64/per {
			return 0, 0, fmt.Errorf("%w: timestamp %d", writer.ErrInvalidSample, n)
		}
		return series.Timestamp(n * per), 0, nil
	}
	for _, layout := range layouts {
		if t, err := time.Parse(layout, text); err == nil {
			// A Go time goes beyond what counts nanoseconds in 64 bits.
			return series.Timestamp(t.UnixMicro()), uint16(t.Nanosecond() % 1000), nil
		}
	}
	return 0, 0, fmt.Errorf("%w: timestamp %.80q", ingest.ErrMalformed, text)
}
