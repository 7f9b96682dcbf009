package importer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"time"

	"cardinalsin/ingest"
	"cardinalsin/internal/lineproto"
)

func influxParser(path string, o Options) parser {
	return func(ctx context.Context) iter.Seq2[*part, error] {
		return func(yield func(*part, error) bool) {
			f, err := os.Open(path)
			if err != nil {
				yield(nil, fmt.Errorf("open: %w", err))
				return
			}
			defer f.Close() //nolint:errcheck // only read
			in := &countingReader{in: &contextReader{ctx, f}}
			undated := false
			r := lineproto.NewReader(in, lineproto.Options{Unit: o.Unit, MaxSamples: o.partSamples, Now: func() time.Time {
				undated = undated || o.Time.IsZero()
				return o.Time
			}})
			for {
				b, err := r.Next()
				if errors.Is(err, io.EOF) {
					if n := r.Stats().Strings; n > 0 {
						o.Logger.Warn("text fields are left out", "file", path, "fields", n, "first", r.Stats().FirstString)
					}
					return
				}
				if err == nil && undated {
					err = fmt.Errorf("%w: a line without a timestamp", ingest.ErrMalformed)
				}
				if err != nil {
					yield(nil, err)
					return
				}
				if !yield(&part{samples: b, end: in.read, leftOut: int64(r.Stats().Strings)}, nil) {
					return
				}
			}
		}
	}
}

// countingReader counts what was read.
type countingReader struct {
	in   io.Reader
	read int64
}

func (c *countingReader) Read(b []byte) (int, error) {
	n, err := c.in.Read(b)
	c.read += int64(n)
	return n, err
}
