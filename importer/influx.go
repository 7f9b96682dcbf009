package importer

import (
	"errors"
	"fmt"
	"io"
	"time"

	"cardinalsin/ingest"
	"cardinalsin/internal/lineproto"
)

func influxParser(path string, o Options) parser {
	return fileParser(path, func(file io.Reader, yield func(*part, error) bool) error {
		in := &countingReader{in: file}
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
				return nil
			}
			if err == nil && undated {
				err = fmt.Errorf("%w: a line without a timestamp", ingest.ErrMalformed)
			}
			if err != nil {
				return err
			}
			if !yield(&part{samples: b, end: in.read, leftOut: int64(r.Stats().Strings)}, nil) {
				return nil
			}
		}
	})
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
