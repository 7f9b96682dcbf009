package importer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"

	"cardinalsin/ingest"
	"cardinalsin/series"
	"cardinalsin/wal"
)

// partSamples is the number of samples after which a part ends. A part's
// samples may all lie on different days, and one commit must hold a file for
// each; 8,192 is below what a commit of the log takes.
const partSamples = 8192

// exemplarsAtOnce may all lie on different days, as ingest allows.
const exemplarsAtOnce = 64

// part is what a stretch of the input says. It is valid until the next one is
// asked for, except for histograms.
type part struct {
	samples   series.Batch
	exemplars []series.Exemplar
	metadata  []described
	end       int64 // of the stretch, in bytes from the start of the input
	leftOut   int64 // in all parts so far
}

// described is a metric's metadata and the day it belongs to.
type described struct {
	series.Metadata
	day series.Date
}

// parser yields the parts of an input, always the same ones; an error is the
// last thing it yields.
type parser func(ctx context.Context) iter.Seq2[*part, error]

// errReadOnly: an input is no log to write to.
var errReadOnly = errors.New("an import's input takes no records")

// source is an input as the log of a writer: the parts that hold something of
// one kind are its records, numbered from 1.
type source struct {
	ctx      context.Context // of the run
	in       *input
	kind     Kind
	id       wal.WriterID
	found    *[kinds]int64 // by kind, set in the samples' pass
	leftOut  *int64
	progress func(read, total int64)

	next    func() (*part, error, bool)
	stop    func()
	at      wal.Sequence // last record that was parsed
	current series.Batch // the record at, until it was taken
	ended   bool
	failed  error // what is wrong with the input
}

// Writer implements writer.WAL.
func (s *source) Writer() wal.WriterID { return s.id }

// LastSequence implements writer.WAL: how many there are shows at the end.
func (s *source) LastSequence() wal.Sequence { return endless }

// Bytes implements writer.WAL: nothing is kept.
func (s *source) Bytes() int64 { return 0 }

// Append implements writer.WAL.
func (s *source) Append([]wal.Record) (first, last wal.Sequence, err error) {
	return 0, 0, errReadOnly
}

// Sync implements writer.WAL: the input is there already.
func (s *source) Sync() error { return nil }

// Truncate implements writer.WAL: the input stays.
func (s *source) Truncate(wal.Sequence) error { return nil }

// Replay implements writer.WAL. It goes on where the last call ended, and from
// the start only if it must.
func (s *source) Replay(after wal.Sequence, fn func(wal.Sequence, series.Batch) error) error {
	if s.next == nil || s.at > after+1 || s.at == after+1 && s.current == nil {
		s.close()
		s.next, s.stop = iter.Pull2(s.in.parse(s.ctx))
		s.at, s.current, s.ended = 0, nil, false
		if s.kind == Samples {
			*s.found = [kinds]int64{}
		}
	}
	for {
		if s.current == nil {
			if err := s.advance(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				s.failed = err
				return err
			}
		}
		if s.at > after {
			if err := fn(s.at, s.current); err != nil {
				return err
			}
		}
		s.current = nil
	}
	if s.at < after {
		return fmt.Errorf("%w: the input ends with record %d, the table has %d", wal.ErrSequenceGap, s.at, after)
	}
	return nil
}

// advance parses until the next record.
func (s *source) advance() error {
	for !s.ended {
		p, err, ok := s.next()
		if !ok {
			s.ended = true
			s.progress(s.in.size, s.in.size)
			break
		}
		if err != nil {
			s.ended = true
			s.close()
			return err
		}
		b, err := s.record(p)
		if err != nil {
			return err
		}
		s.progress(min(p.end, s.in.size), s.in.size)
		if len(b) > 0 {
			s.at, s.current = s.at+1, b
			return nil
		}
	}
	return io.EOF
}

// record is what a part holds for the table.
func (s *source) record(p *part) (series.Batch, error) {
	if s.kind == Samples {
		if err := check(p.samples); err != nil {
			return nil, err
		}
		s.found[Samples] += int64(p.samples.Samples())
		s.found[Exemplars] += int64(len(p.exemplars))
		s.found[Metadata] += int64(len(p.metadata))
		*s.leftOut = p.leftOut
	}
	// Of a part with an error nothing is stored, so the samples' pass makes
	// the other rows too.
	var exemplars, metadata series.Batch
	for some := range slices.Chunk(p.exemplars, exemplarsAtOnce) {
		b, err := ingest.ExemplarRows(some)
		if err != nil {
			return nil, err
		}
		exemplars = append(exemplars, b...)
	}
	for _, m := range p.metadata {
		row, err := ingest.MetadataRow(m.Metadata, m.day)
		if err != nil {
			return nil, err
		}
		metadata = append(metadata, row)
	}
	return [kinds]series.Batch{p.samples, exemplars, metadata}[s.kind], nil
}

func (s *source) close() {
	if s.stop != nil {
		s.stop()
		s.next, s.stop = nil, nil
	}
}
