package importer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"math"
	"os"
	"path/filepath"
	"slices"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"

	"cardinalsin/ingest"
	"cardinalsin/internal/nativehist"
	"cardinalsin/series"
	"cardinalsin/writer"
)

const metaFile = "meta.json"

// openBlocks finds the blocks in a folder, oldest first, or takes the folder
// for one.
func openBlocks(path string, o Options) ([]*input, error) {
	if _, err := os.Stat(filepath.Join(path, metaFile)); err == nil {
		in, err := openBlock(path, o)
		return []*input{in}, err
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, fmt.Errorf("read: %w", err)
	}
	var blocks []*input
	for _, e := range entries { // a ULID's order is that of its time
		if _, err := ulid.ParseStrict(e.Name()); err != nil || !e.IsDir() {
			continue
		}
		in, err := openBlock(filepath.Join(path, e.Name()), o)
		if err != nil {
			return nil, err
		}
		blocks = append(blocks, in)
	}
	if len(blocks) == 0 {
		return nil, fmt.Errorf("%w: a folder without a block of Prometheus' TSDB", ErrFormat)
	}
	if _, err := os.Stat(filepath.Join(path, "wal")); err == nil {
		o.Logger.Warn("the newest samples of a TSDB are in its WAL, which is not imported; a snapshot has them as a block", "folder", path)
	}
	return blocks, nil
}

func openBlock(path string, o Options) (*input, error) {
	in := &input{path: path, format: TSDB, parse: blockParser(path, o)}
	err := filepath.WalkDir(path, func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		in.size += info.Size()
		in.files = append(in.files, name)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read: %w", err)
	}
	slices.Sort(in.files)
	return in, nil
}

// blockParser reads a block day by day, so that a commit's samples lie on few
// days.
func blockParser(path string, o Options) parser {
	return func(ctx context.Context) iter.Seq2[*part, error] {
		return func(yield func(*part, error) bool) {
			b := &blockReader{ctx: ctx, opts: o, yield: yield}
			if err := b.run(path); err != nil && !errors.Is(err, errStopped) {
				yield(nil, err)
			}
		}
	}
}

type blockReader struct {
	ctx   context.Context
	opts  Options
	yield func(*part, error) bool
	rows  rows
	meta  tsdb.BlockMeta
	size  int64
}

func (b *blockReader) run(path string) (err error) {
	block, err := tsdb.OpenBlock(b.opts.Logger, path, nil, nil)
	if err != nil {
		return fmt.Errorf("%w: %w", ingest.ErrMalformed, err)
	}
	defer func() {
		if closeErr := block.Close(); err == nil && closeErr != nil {
			err = fmt.Errorf("close: %w", closeErr)
		}
	}()
	b.meta, b.size = block.Meta(), block.Size()
	b.rows.reset()
	const day = 24 * 60 * 60 * 1000
	first, last := b.meta.MinTime, b.meta.MaxTime-1 // MaxTime is not in the block
	if first < series.MinTimestamp.Millis() || last > series.MaxTimestamp.Millis() {
		return fmt.Errorf("%w: a block from %d to %d ms", writer.ErrInvalidSample, first, last)
	}
	for from := first; from <= last; {
		to := min(last, series.FromMillis(from).Date().Start().Millis()+day-1)
		if err := b.day(block, from, to); err != nil {
			return err
		}
		from = to + 1
	}
	return b.emit(last)
}

// day reads all series in a range of milliseconds, both ends inclusive.
func (b *blockReader) day(block *tsdb.Block, from, to int64) (err error) {
	q, err := tsdb.NewBlockQuerier(block, from, to)
	if err != nil {
		return fmt.Errorf("%w: %w", ingest.ErrMalformed, err)
	}
	defer func() {
		if closeErr := q.Close(); err == nil && closeErr != nil {
			err = fmt.Errorf("close: %w", closeErr)
		}
	}()
	set := q.Select(b.ctx, true, nil, labels.MustNewMatcher(labels.MatchRegexp, "", ".*"))
	var it chunkenc.Iterator
	for set.Next() {
		if err := b.ctx.Err(); err != nil {
			return err
		}
		l := set.At().Labels()
		if err := checkLabels(l); err != nil {
			return fmt.Errorf("series %.300s: %w", l, err)
		}
		it = set.At().Iterator(it)
		for kind := it.Next(); kind != chunkenc.ValNone; kind = it.Next() {
			s, err := sampleAt(it, kind)
			if err != nil {
				return fmt.Errorf("series %.300s: %w", l, err)
			}
			b.rows.add(b.rows.find(l), s)
			if b.rows.count >= b.opts.partSamples {
				if err := b.emit(from); err != nil {
					return err
				}
			}
		}
		if err := it.Err(); err != nil {
			return fmt.Errorf("series %.300s: %w: %w", l, ingest.ErrMalformed, err)
		}
	}
	if err := set.Err(); err != nil {
		return fmt.Errorf("%w: %w", ingest.ErrMalformed, err)
	}
	return nil
}

func sampleAt(it chunkenc.Iterator, kind chunkenc.ValueType) (s series.Sample, err error) {
	ms := it.AtT()
	switch kind {
	case chunkenc.ValFloat:
		_, s.Value = it.At()
	case chunkenc.ValHistogram:
		_, h := it.AtHistogram(nil)
		s.Histogram, err = nativehist.FromModel(h, nil)
	case chunkenc.ValFloatHistogram:
		_, h := it.AtFloatHistogram(nil)
		s.Histogram, err = nativehist.FromModel(nil, h)
	default:
		err = fmt.Errorf("%w: sample of kind %s", ingest.ErrUnsupported, kind)
	}
	if err != nil {
		return s, err
	}
	s.Time = series.FromMillis(ms)
	if st := it.AtST(); st > math.MaxInt64/1_000_000 || st < math.MinInt64/1_000_000 {
		return s, fmt.Errorf("%w: start time %d ms", writer.ErrInvalidSample, st)
	} else {
		s.Start = st * 1_000_000
	}
	return s, nil
}

// emit yields what was collected; at is how far in time the block was read,
// which stands for the bytes.
func (b *blockReader) emit(at int64) error {
	if b.rows.count == 0 {
		return nil
	}
	share := float64(at-b.meta.MinTime) / float64(max(b.meta.MaxTime-b.meta.MinTime, 1))
	if !b.yield(&part{samples: b.rows.batch, end: int64(share * float64(b.size))}, nil) {
		return errStopped
	}
	b.rows.reset()
	return nil
}
