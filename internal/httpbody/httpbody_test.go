package httpbody

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"testing"

	"github.com/klauspost/compress/zstd"

	"cardinalsin/ingest"
)

func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func zstded(t testing.TB, b []byte, o ...zstd.EOption) []byte {
	t.Helper()
	e, err := zstd.NewWriter(nil, o...)
	if err != nil {
		t.Fatal(err)
	}
	return e.EncodeAll(b, nil)
}

func TestRead(t *testing.T) {
	const limit = 1 << 20
	text := bytes.Repeat([]byte("cpu usage=1 "), 1000)
	exact, over := make([]byte, limit), make([]byte, limit+1)
	wide := zstded(t, bytes.Repeat([]byte("x"), 17<<20), zstd.WithWindowSize(16<<20), zstd.WithSingleSegment(false))
	for name, c := range map[string]struct {
		encoding string
		body     []byte
		want     []byte
		err      error
	}{
		"plain":              {"", text, text, nil},
		"identity":           {"identity", text, text, nil},
		"gzip":               {"gzip", gzipped(t, text), text, nil},
		"zstd":               {"zstd", zstded(t, text), text, nil},
		"empty":              {"", nil, []byte{}, nil},
		"at the limit":       {"", exact, exact, nil},
		"gzip at the limit":  {"gzip", gzipped(t, exact), exact, nil},
		"over the limit":     {"", over, nil, ingest.ErrTooLarge},
		"gzip over":          {"gzip", gzipped(t, over), nil, ingest.ErrTooLarge},
		"gzip bomb":          {"gzip", gzipped(t, make([]byte, 32<<20)), nil, ingest.ErrTooLarge},
		"zstd bomb":          {"zstd", zstded(t, make([]byte, 32<<20)), nil, ingest.ErrTooLarge},
		"zstd wide window":   {"zstd", wide, nil, ingest.ErrTooLarge},
		"gzip truncated":     {"gzip", gzipped(t, text)[:30], nil, ingest.ErrMalformed},
		"zstd truncated":     {"zstd", zstded(t, text)[:15], nil, ingest.ErrMalformed},
		"gzip that is none":  {"gzip", text, nil, ingest.ErrMalformed},
		"zstd that is none":  {"zstd", text, nil, ingest.ErrMalformed},
		"gzip of nothing":    {"gzip", nil, nil, ingest.ErrMalformed},
		"unknown encoding":   {"br", text, nil, ingest.ErrUnsupported},
		"several encodings":  {"gzip, gzip", text, nil, ingest.ErrUnsupported},
		"gzip of many bombs": {"gzip", bytes.Repeat(gzipped(t, make([]byte, 1<<20)), 10), nil, ingest.ErrTooLarge},
		"gzip of no end":     {"gzip", bytes.Repeat(gzipped(t, nil), limit/20), nil, ingest.ErrTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(c.body))
			r.Header.Set("Content-Encoding", c.encoding)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			got, err := Read(httptest.NewRecorder(), r, limit)
			runtime.ReadMemStats(&after)
			if !errors.Is(err, c.err) || (err == nil) != (c.err == nil) {
				t.Fatalf("error %v, want %v", err, c.err)
			}
			if err == nil && !bytes.Equal(got, c.want) {
				t.Errorf("%d bytes, want %d", len(got), len(c.want))
			}
			// io.ReadAll doubles as it goes; the decoders have their windows.
			if used := after.TotalAlloc - before.TotalAlloc; used > 16*limit {
				t.Errorf("allocated %d bytes for a limit of %d", used, limit)
			}
		})
	}
}

func TestReadBreaksOff(t *testing.T) {
	r := httptest.NewRequest(http.MethodPost, "/", io.MultiReader(bytes.NewReader([]byte("cpu ")), brokenReader{}))
	if _, err := Read(httptest.NewRecorder(), r, 100); !errors.Is(err, ingest.ErrMalformed) {
		t.Errorf("error %v, want %v", err, ingest.ErrMalformed)
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }
