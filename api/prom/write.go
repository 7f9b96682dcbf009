package prom

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/golang/snappy"
	"github.com/prometheus/client_golang/exp/api/remote"
	"golang.org/x/sync/semaphore"

	"cardinalsin/ingest"
	"cardinalsin/writer"
)

// Bounds of one request and of all that are being taken in.
const (
	// maxBody is upstream's bound, on the wire and decompressed.
	maxBody = 32 << 20
	// maxPlain bounds the decompressed bytes, and maxDecoded what they decode
	// to, of all requests that are being decoded or wait for the disk.
	maxPlain   = 256 << 20
	maxDecoded = 512 << 20
	// maxWait is how long a request waits for its share of either before it is
	// told to come back. Whoever holds memory for decoding waits for no other,
	// so that nobody waits in a circle.
	maxWait = 5 * time.Second
	// maxRatio is more than snappy can pack: its longest copy makes 64 bytes
	// of three.
	maxRatio = 22
)

// WriteHandler receives remote write 1.0 and 2.0: upstream's handler speaks
// the protocol, with the headers of what was written.
//
// A request is acknowledged with 204 once all of it is durable, samples,
// exemplars and metadata, and refused whole otherwise, with the status that
// ingest.Classify gives. It may be in several parts of a table's pipeline when
// the context of the request ends; then the client does not know, and sends it
// again, which changes nothing.
//
// logger hears of failures; nil discards.
func WriteHandler(sink ingest.Sink, logger *slog.Logger) http.Handler {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	s := &writeStore{sink: sink, plain: semaphore.NewWeighted(maxPlain), decoded: semaphore.NewWeighted(maxDecoded)}
	return remote.NewWriteHandler(s, remote.MessageTypes{remote.WriteV1MessageType, remote.WriteV2MessageType},
		remote.WithWriteHandlerLogger(logger), remote.WithWriteHandlerMiddlewares(s.unpack))
}

type writeStore struct {
	sink           ingest.Sink
	plain, decoded *semaphore.Weighted
}

// bodies are the buffers of bodies, compressed and not. What is decoded from
// one is copied, but for the histograms, which are encoded anew.
var bodies = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// maxKept bounds a buffer that is kept for the next request.
const maxKept = 4 << 20

func recycle(b *bytes.Buffer) {
	if b.Cap() <= maxKept {
		b.Reset()
		bodies.Put(b)
	}
}

// body is a decompressed body, as upstream's handler passes it to Store.
type body struct {
	*bytes.Reader
	data []byte
}

func (body) Close() error { return nil }

// unpack is upstream's SnappyDecodeMiddleware with buffers that are used again
// and with refusals that are counted. Method and media type are upstream's
// business, and come first, so that a body is only read for those that fit.
func (s *writeStore) unpack(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p := protocolOf(r)
		if r.Method != http.MethodPost {
			s.sink.Refuse(p, reasonMethod, 0)
			next.ServeHTTP(w, r)
			return
		}
		if ct := r.Header.Get("Content-Type"); ct != "" {
			if _, err := remote.ParseProtoMsg(ct); err != nil {
				s.sink.Refuse(p, reasonMediaType, 0)
				next.ServeHTTP(w, r)
				return
			}
		}
		if enc := r.Header.Get("Content-Encoding"); enc != "" && enc != string(remote.SnappyBlockCompression) {
			s.sink.Refuse(p, reasonMediaType, 0)
			http.Error(w, fmt.Sprintf("%v encoding (compression) is not accepted by this server; only %v is acceptable", enc, remote.SnappyBlockCompression), http.StatusUnsupportedMediaType)
			return
		}
		plain := bodies.Get().(*bytes.Buffer)
		defer recycle(plain)
		memory := share{of: s.plain}
		defer memory.release()
		data, err := decompress(r, plain, &memory)
		if err != nil {
			reason, code := ingest.Classify(err)
			s.sink.Refuse(p, reason, 0)
			retryLater(w.Header(), code)
			http.Error(w, err.Error(), code)
			return
		}
		r.Body = body{bytes.NewReader(data), data}
		r.Header.Del("Content-Encoding")
		next.ServeHTTP(w, r)
	})
}

// Reasons of refusals that need no error.
const (
	reasonMethod    ingest.Reason = "method"
	reasonMediaType ingest.Reason = "media_type"
)

func protocolOf(r *http.Request) ingest.Protocol {
	if t, err := remote.ParseProtoMsg(r.Header.Get("Content-Type")); err == nil && t == remote.WriteV2MessageType {
		return ingest.RemoteWrite2
	}
	return ingest.RemoteWrite1
}

// decompress reads the body into plain, and takes memory for it.
func decompress(r *http.Request, plain *bytes.Buffer, memory *share) ([]byte, error) {
	packed := bodies.Get().(*bytes.Buffer)
	defer recycle(packed)
	if r.ContentLength > 0 && r.ContentLength <= maxKept {
		packed.Grow(int(r.ContentLength) + bytes.MinRead)
	}
	n, err := packed.ReadFrom(io.LimitReader(r.Body, maxBody+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: read body: %w", ingest.ErrMalformed, err)
	case n > maxBody:
		return nil, fmt.Errorf("%w: a body of more than %d bytes", ingest.ErrTooLarge, maxBody)
	}
	size, err := snappy.DecodedLen(packed.Bytes())
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ingest.ErrMalformed, err)
	case size > maxBody:
		return nil, fmt.Errorf("%w: %d bytes decompressed, at most %d", ingest.ErrTooLarge, size, maxBody)
	case int64(size) > maxRatio*n:
		return nil, fmt.Errorf("%w: %d bytes cannot hold %d", ingest.ErrMalformed, n, size)
	}
	if err := memory.take(r.Context(), int64(size)); err != nil {
		return nil, err
	}
	plain.Grow(size)
	data, err := snappy.Decode(plain.AvailableBuffer()[:size], packed.Bytes())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ingest.ErrMalformed, err)
	}
	return data, nil
}

// share is what one request has of a memory that all share; nil has no bound.
type share struct {
	of    *semaphore.Weighted
	taken int64
}

// take waits for n bytes. Errors: writer.ErrOverloaded, that of ctx.
func (m *share) take(ctx context.Context, n int64) error {
	if m == nil {
		return nil
	}
	if !m.of.TryAcquire(n) {
		wait, cancel := context.WithTimeout(ctx, maxWait)
		defer cancel()
		if err := m.of.Acquire(wait, n); err != nil {
			if ctx.Err() != nil {
				return err
			}
			return errNoMemory
		}
	}
	m.taken += n
	return nil
}

// tryTake takes n bytes now or never.
func (m *share) tryTake(n int64) error {
	if m == nil {
		return nil
	}
	if !m.of.TryAcquire(n) {
		return errNoMemory
	}
	m.taken += n
	return nil
}

func (m *share) release() {
	m.of.Release(m.taken)
	m.taken = 0
}

var errNoMemory = fmt.Errorf("%w: too many requests at a time", writer.ErrOverloaded)

// Store implements the storage of upstream's handler; the body of r is
// decompressed already.
func (s *writeStore) Store(r *http.Request, t remote.WriteMessageType) (*remote.WriteResponse, error) {
	resp := remote.NewWriteResponse()
	err := s.store(r, t, resp)
	if err != nil {
		_, code := ingest.Classify(err)
		if r.Context().Err() != nil {
			code = statusGone
		}
		resp.SetStatusCode(code)
		if code == http.StatusTooManyRequests {
			resp.SetExtraHeader(retryAfter, ingest.RetryAfterSeconds)
		}
	}
	return resp, err
}

// store does the work, and says in resp what was written.
func (s *writeStore) store(r *http.Request, t remote.WriteMessageType, resp *remote.WriteResponse) error {
	b, ok := r.Body.(body)
	if !ok {
		return errors.New("the body was not decompressed")
	}
	memory := share{of: s.decoded}
	defer memory.release()
	d := newDecoder(&memory)
	defer d.release()
	p, decode := ingest.RemoteWrite1, d.decodeV1
	if t == remote.WriteV2MessageType {
		p, decode = ingest.RemoteWrite2, d.decodeV2
	}
	err := decode(r.Context(), b.data)
	if err != nil {
		reason, _ := ingest.Classify(err)
		s.sink.Refuse(p, reason, 0)
		return err
	}
	d.request.Protocol = p
	if err := s.sink.Append(r.Context(), r.Header.Get(ingest.TenantHeader), &d.request); err != nil {
		return err
	}
	resp.Samples, resp.Histograms, resp.Exemplars = d.floats, d.histograms, len(d.request.Exemplars)
	return nil
}

// statusGone is for a client that hung up, who does not read it; upstream's
// handler logs a 5xx as our failure.
const statusGone = 499

const retryAfter = "Retry-After"

// retryLater tells a client that comes too fast when to come again.
func retryLater(h http.Header, code int) {
	if code == http.StatusTooManyRequests {
		h.Set(retryAfter, ingest.RetryAfterSeconds)
	}
}
