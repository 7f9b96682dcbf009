package parquetcol

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
	"github.com/parquet-go/parquet-go/format"
	"github.com/pierrec/lz4/v4"
)

// maxPageBytes bounds a page after decompression. Writers aim at 1 MiB; the
// rest is for pages of a few very long values.
const maxPageBytes = 256 << 20

// decoders holds zstd decoders: one is some hundred kB of tables.
var decoders = sync.Pool{New: func() any {
	d, err := zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(1),
		zstd.WithDecodeAllCapLimit(true), // never beyond the size the header claims
		zstd.WithDecoderMaxMemory(maxPageBytes))
	if err != nil {
		panic(err) // the options are constants
	}
	return d
}}

// decompress returns the page's body in its plain form, of exactly size bytes.
// What it returns is valid until the next call.
func (c *Column) decompress(size int, body []byte) ([]byte, error) {
	if c.chunk.codec == format.Uncompressed {
		if len(body) != size {
			return nil, fmt.Errorf("%w: page of %d bytes, want %d", ErrCorrupt, len(body), size)
		}
		return body, nil
	}
	ratio := 0 // the most that a byte can stand for
	switch c.chunk.codec {
	case format.Snappy:
		ratio = 64
	case format.Gzip:
		ratio = 1032
	case format.Lz4Raw:
		ratio = 255
	case format.Zstd:
		ratio = 64 << 10
	default:
		return nil, fmt.Errorf("%w: codec %v", ErrUnsupported, c.chunk.codec)
	}
	// The frame of each codec is at least a byte.
	if size > maxPageBytes || size > ratio*len(body) {
		return nil, fmt.Errorf("%w: page of %d bytes from %d", ErrCorrupt, size, len(body))
	}
	if cap(c.body) < size {
		c.body = make([]byte, size)
	}
	dst, n, err := c.body[:size:size], 0, error(nil)
	switch c.chunk.codec {
	case format.Snappy:
		if n, err = snappy.DecodedLen(body); err == nil && n == size {
			dst, err = snappy.Decode(dst, body)
			n = len(dst)
		}
	case format.Gzip:
		n, err = gunzip(dst, body)
	case format.Lz4Raw:
		n, err = lz4.UncompressBlock(body, dst)
	case format.Zstd:
		d := decoders.Get().(*zstd.Decoder)
		dst, err = d.DecodeAll(body, dst[:0])
		decoders.Put(d)
		n = len(dst)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %v: %w", ErrCorrupt, c.chunk.codec, err)
	}
	if n != size {
		return nil, fmt.Errorf("%w: page of %d bytes, want %d", ErrCorrupt, n, size)
	}
	return dst, nil
}

// gunzip fills dst and makes sure that nothing follows.
func gunzip(dst, body []byte) (int, error) {
	r, err := gzip.NewReader(bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	n, err := io.ReadFull(r, dst)
	if err != nil {
		return n, err
	}
	var more [1]byte
	if k, err := r.Read(more[:]); k != 0 {
		return n, fmt.Errorf("more than %d bytes", n)
	} else if !errors.Is(err, io.EOF) {
		return n, fmt.Errorf("end of stream: %w", err)
	}
	return n, nil
}
