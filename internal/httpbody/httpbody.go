// Package httpbody reads the body of a request that its client may have
// compressed.
//
// It stands beside the module's root, below the protocols that do not come
// with a handler of their upstream that does the same.
//
// INVARIANT: whatever a client sends, no more than the limit is read, before
// decompression and after it.
package httpbody

import (
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"cardinalsin/ingest"
)

// maxWindow bounds what a zstd frame may ask the decoder to remember. RFC 8878
// recommends that decoders support 8 MiB.
const maxWindow = 8 << 20

// Read returns the whole body, decompressed as Content-Encoding says: gzip,
// zstd or none. Its errors wrap ingest.ErrTooLarge for more than limit bytes,
// compressed or not, ingest.ErrUnsupported for another encoding, and
// ingest.ErrMalformed for bytes that are not what the encoding says, or that
// break off.
func Read(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	raw := http.MaxBytesReader(w, r.Body, limit)
	plain, err := decompress(raw, r.Header.Get("Content-Encoding"))
	if err != nil {
		return nil, reason(err)
	}
	body, err := io.ReadAll(io.LimitReader(plain, limit+1))
	if err = errors.Join(err, plain.Close()); err != nil {
		return nil, reason(err)
	}
	if int64(len(body)) > limit {
		return nil, fmt.Errorf("read body: %w: more than %d bytes after decompression", ingest.ErrTooLarge, limit)
	}
	return body, nil
}

func decompress(r io.ReadCloser, encoding string) (io.ReadCloser, error) {
	switch encoding {
	case "", "identity":
		return r, nil
	case "gzip":
		return gzip.NewReader(r)
	case "zstd":
		d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	}
	return nil, fmt.Errorf("%w: content encoding %.100q; send gzip, zstd or none", ingest.ErrUnsupported, encoding)
}

func reason(err error) error {
	var tooLarge *http.MaxBytesError
	switch {
	case errors.Is(err, ingest.ErrUnsupported):
		return fmt.Errorf("read body: %w", err)
	case errors.As(err, &tooLarge):
		return fmt.Errorf("read body: %w: more than %d bytes", ingest.ErrTooLarge, tooLarge.Limit)
	case errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, zstd.ErrDecoderSizeExceeded):
		return fmt.Errorf("read body: %w: %w", ingest.ErrTooLarge, err)
	}
	return fmt.Errorf("read body: %w: %w", ingest.ErrMalformed, err)
}
