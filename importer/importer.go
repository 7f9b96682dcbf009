// Package importer brings files of other systems into a table: OpenMetrics and
// Prometheus text, Prometheus TSDB blocks, Influx line protocol, CSV, Parquet.
//
// It stands on layer 8, beside the protocols. It writes through package writer,
// whose WAL here is the input itself: a parser cuts it into parts of 8,192
// samples, and a part is a record. The identity under which the table keeps the
// progress is a hash of the content and of what decides its meaning.
//
// INVARIANT: what the table has of an input is its first parts, each whole and
// once. So an import that is run again, after its end or after a crash, adds
// what is missing and nothing else; and of a part with an error nothing is
// stored. The parts of an input must never change: the rules by which it is cut
// are part of its format, and a change of them needs another version in
// identityVersion.
//
// # Formats
//
//	openmetrics  OpenMetrics 1.0 text, up to "# EOF". Timestamps are kept to the
//	             nanosecond. Exemplars go to the exemplars' table, TYPE, UNIT
//	             and HELP to the metadata's, on the day of the newest sample
//	             before them in their part. Series that end in _created stay
//	             series.
//	prometheus   Prometheus' text format, timestamps in milliseconds.
//	             In both, every sample needs a timestamp, unless Options.Time
//	             gives one.
//	tsdb         a block of Prometheus' TSDB, or a folder of them; what its WAL
//	             has is not in a block. Native histograms and start times
//	             included, what tombstones delete excluded.
//	influx       line protocol, timestamps by Options.Unit (nanoseconds); see
//	             package internal/lineproto for names. Text fields are left out
//	             and counted.
//	csv          with a header. Columns: timestamp (RFC 3339, with a space for
//	             the T too, or a number by Options.Unit, which then must be
//	             given), metric_name, value; optional nanos and
//	             start_time_unix_nano; series_id, date and shard are not looked
//	             at; histogram and labels_overflow must be empty, since CSV has
//	             no form for them. Any other column is a label, named as the
//	             table names its columns; an empty cell is an absent label.
//	parquet      the table's schema, by whatever engine it was written; see
//	             package internal/arrowbatch.
package importer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"cardinalsin/series"
	"cardinalsin/txlog"
	"cardinalsin/wal"
	"cardinalsin/writer"
)

// ErrFormat: the input's format is unknown, or cannot be told.
var ErrFormat = errors.New("unknown format")

// Format of an input.
type Format string

// The formats; Auto tells by name and content.
const (
	Auto        Format = ""
	OpenMetrics Format = "openmetrics"
	Prometheus  Format = "prometheus"
	TSDB        Format = "tsdb"
	Influx      Format = "influx"
	CSV         Format = "csv"
	Parquet     Format = "parquet"
)

// identityVersion is part of every identity.
const identityVersion = "cardinal import 1"

// Options of a run; the zero value is useful.
type Options struct {
	// Format of the inputs. Default: each by its name and content.
	Format Format
	// Unit of timestamps that are plain numbers, in line protocol and CSV.
	// Default nanoseconds for line protocol; CSV has none.
	Unit time.Duration
	// Time of samples that have none, in text formats and line protocol. By
	// default such a sample is an error.
	Time time.Time
	// FlushBytes is the memory that a commit's samples may take. Default
	// 256 MiB.
	FlushBytes int64
	// Progress, if set, is told how many bytes of the input have been read.
	Progress func(read, total int64)
	// Logger hears of what is left out. Default discards.
	Logger *slog.Logger

	partSamples int // partSamples; tests lower it
}

// EnsureDefaults fills in what is unset.
func (o *Options) EnsureDefaults() {
	if o.FlushBytes <= 0 {
		o.FlushBytes = 256 << 20
	}
	if o.partSamples == 0 {
		o.partSamples = partSamples
	}
	if o.Progress == nil {
		o.Progress = func(int64, int64) {}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// Tables opens tables of one tenant, and makes those that do not exist.
type Tables interface {
	// Table returns the log of a table: the samples', or that of its
	// exemplars or metadata, which are opened only if an input has some.
	Table(ctx context.Context, kind Kind) (*txlog.Log, error)
}

// Kind says what a table holds.
type Kind int

// The kinds of tables.
const (
	Samples Kind = iota
	Exemplars
	Metadata
	kinds
)

// Result says what a run found in an input and did.
type Result struct {
	Path      string
	Format    Format
	Samples   int64 // that the input holds
	Exemplars int64
	Metadata  int64
	// Rows and Files were added to the tables by this run: none where the
	// input had been imported before. Rows that an input holds twice are one.
	Rows, Files int64
	LeftOut     int64 // what no table can hold, such as text fields
}

// Run imports one input, a file or, of TSDB, a folder. A folder of several
// blocks is several inputs; so there is a result for each, up to the one that
// failed, whose result says what was done before. Nothing else may import the
// same input at the same time.
//
// Errors: ErrFormat; what is wrong with the input, with its line, row or
// series, wrapping ingest.ErrMalformed, ErrTooLarge, ErrInvalidHistogram,
// an error of series.Validate or writer.ErrInvalidSample; txlog.ErrFenced where
// another process is at the same input; those of the disk and of the store.
func Run(ctx context.Context, tables Tables, path string, o Options) ([]Result, error) {
	o.EnsureDefaults()
	inputs, err := open(path, o)
	if err != nil {
		return nil, fmt.Errorf("import %s: %w", path, err)
	}
	var results []Result
	for _, in := range inputs {
		r, err := run(ctx, tables, in, o)
		results = append(results, r)
		if err != nil {
			return results, fmt.Errorf("import %s: %w", in.path, err)
		}
	}
	return results, nil
}

// input is one file or block, ready to be read any number of times.
type input struct {
	path   string
	format Format
	files  []string // what is hashed, in order
	size   int64    // bytes of all
	parse  parser
}

func run(ctx context.Context, tables Tables, in *input, o Options) (Result, error) {
	r := Result{Path: in.path, Format: in.format}
	content, err := in.hash(ctx)
	if err != nil {
		return r, err
	}
	found := [kinds]int64{}
	for kind := range kinds {
		// Exemplars and metadata have tables only if there are any, which the
		// samples' pass has found out.
		if kind != Samples && found[kind] == 0 {
			continue
		}
		log, err := tables.Table(ctx, kind)
		if err != nil {
			return r, err
		}
		w := &source{ctx: ctx, in: in, kind: kind, id: in.identity(content, kind, o), found: &found, leftOut: &r.LeftOut, progress: o.Progress}
		err = write(ctx, log, w, o, &r)
		w.close()
		r.Samples, r.Exemplars, r.Metadata = found[Samples], found[Exemplars], found[Metadata]
		if err != nil {
			return r, err
		}
	}
	return r, nil
}

// write is one pass over the input: opening the writer replays the input into
// the table, closing it commits what is left.
func write(ctx context.Context, log *txlog.Log, s *source, o Options, r *Result) error {
	opts := writer.Options{FlushBytes: o.FlushBytes, Logger: o.Logger}
	opts.Events.FlushEnd = func(e writer.FlushEvent) {
		if e.Err == nil {
			r.Rows += e.Rows
			r.Files += int64(e.Files)
		}
	}
	w, err := writer.Open(ctx, log, s, opts)
	if s.failed != nil {
		return s.failed // the writer's part in it is no help to the user
	}
	if err != nil {
		return err
	}
	return w.Close(ctx)
}

// hash is over the content of all files, each with its name and size.
func (in *input) hash(ctx context.Context) ([]byte, error) {
	h := sha256.New()
	for _, name := range in.files {
		f, err := os.Open(name)
		if err != nil {
			return nil, fmt.Errorf("open: %w", err)
		}
		rel := ""
		if len(in.files) > 1 {
			if rel, err = filepath.Rel(in.path, name); err != nil {
				return nil, errors.Join(fmt.Errorf("name of %s: %w", name, err), f.Close())
			}
		}
		n, err := io.Copy(h, &contextReader{ctx, f})
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		fmt.Fprintf(h, "\x00%s\x00%d\x00", filepath.ToSlash(rel), n)
	}
	return h.Sum(nil), nil
}

// fileParser opens the file for each pass and lets run read it, which tells an
// error, or that there is no more to come.
func fileParser(path string, run func(file io.Reader, yield func(*part, error) bool) error) parser {
	return func(ctx context.Context) iter.Seq2[*part, error] {
		return func(yield func(*part, error) bool) {
			f, err := os.Open(path)
			if err != nil {
				yield(nil, fmt.Errorf("open: %w", err))
				return
			}
			defer f.Close() //nolint:errcheck // only read
			if err := run(&contextReader{ctx, f}, yield); err != nil {
				yield(nil, err)
			}
		}
	}
}

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(b)
}

// identity is who writes to a table: the same content read in the same way.
func (in *input) identity(content []byte, kind Kind, o Options) wal.WriterID {
	at := ""
	if !o.Time.IsZero() {
		at = strconv.FormatInt(o.Time.UnixNano(), 10)
	}
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%s\n%d\n%s\n%d\n%x", identityVersion, in.format, o.Unit, at, kind, content)
	id := wal.WriterID(h.Sum(nil)[:16])
	id[6] = id[6]&0x0f | 0x80 // version 8: of our own making
	id[8] = id[8]&0x3f | 0x80
	return id
}

// check refuses what the writer would refuse if it came by a request, and
// drops labels with empty values.
func check(b series.Batch) error {
	for i := range b {
		if err := checkLabels(b[i].Labels); err != nil {
			return fmt.Errorf("series %.300s: %w", b[i].Labels, err)
		}
		b[i].Labels = b[i].Labels.WithoutEmpty()
		for j := range b[i].Samples {
			if err := writer.CheckSample(&b[i].Samples[j]); err != nil {
				return fmt.Errorf("series %.300s: %w", b[i].Labels, err)
			}
		}
	}
	return nil
}

func checkLabels(l series.Labels) error {
	if err := series.Validate(l); err != nil {
		return err
	}
	if n := l.ByteSize(); n > writer.MaxLabelBytes {
		return fmt.Errorf("%w: label set of %d bytes, limit %d", series.ErrInvalidLabel, n, writer.MaxLabelBytes)
	}
	return nil
}

// split makes a time of nanoseconds since the epoch.
func split(ns int64) (series.Timestamp, uint16) {
	us, rest := ns/1000, ns%1000
	if rest < 0 {
		us, rest = us-1, rest+1000
	}
	return series.Timestamp(us), uint16(rest)
}

// open finds out what there is to import at a path.
func open(path string, o Options) ([]*input, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	if info.IsDir() {
		if o.Format != Auto && o.Format != TSDB {
			return nil, fmt.Errorf("%w: a folder is no %s", ErrFormat, o.Format)
		}
		return openBlocks(path, o)
	}
	in := &input{path: path, format: o.Format, files: []string{path}, size: info.Size()}
	sure := o.Format != Auto
	if !sure {
		if in.format, err = detect(path); err != nil {
			return nil, err
		}
	}
	switch in.format {
	case OpenMetrics, Prometheus:
		in.parse = textParser(path, in.format, o, sure)
	case Influx:
		in.parse = influxParser(path, o)
	case CSV:
		in.parse = csvParser(path, o)
	case Parquet:
		in.parse = parquetParser(path, o)
	default:
		return nil, fmt.Errorf("%w: %q is none of a file", ErrFormat, in.format)
	}
	return []*input{in}, nil
}

// detect tells a file's format by its name or, where that says nothing, by its
// content.
func detect(path string) (Format, error) {
	switch strings.ToLower(filepath.Ext(path)) {
	case ".om", ".openmetrics":
		return OpenMetrics, nil
	case ".csv":
		return CSV, nil
	case ".parquet":
		return Parquet, nil
	case ".lp", ".influx", ".line":
		return Influx, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return Auto, fmt.Errorf("open: %w", err)
	}
	defer f.Close() //nolint:errcheck // only read
	head, tail := make([]byte, 4), make([]byte, 64)
	info, err := f.Stat()
	if err != nil {
		return Auto, fmt.Errorf("read: %w", err)
	}
	if n, err := f.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return Auto, fmt.Errorf("read: %w", err)
	} else if string(head[:n]) == "PAR1" {
		return Parquet, nil
	}
	n, err := f.ReadAt(tail, max(0, info.Size()-int64(len(tail))))
	if err != nil && !errors.Is(err, io.EOF) {
		return Auto, fmt.Errorf("read: %w", err)
	}
	if strings.HasSuffix(strings.TrimRight(string(tail[:n]), "\r\n"), "# EOF") {
		return OpenMetrics, nil
	}
	if ext := strings.ToLower(filepath.Ext(path)); ext == ".prom" {
		return Prometheus, nil
	}
	return Auto, fmt.Errorf("%w: neither name nor content tells; name one of %s", ErrFormat,
		strings.Join([]string{string(OpenMetrics), string(Prometheus), string(TSDB), string(Influx), string(CSV), string(Parquet)}, ", "))
}

// endless is the last sequence of an input whose parts are not counted yet.
const endless = wal.Sequence(math.MaxInt64)

var _ writer.WAL = (*source)(nil)
