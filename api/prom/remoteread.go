package prom

import (
	"context"
	"net/http"
	"sync"
)

// remoteRead gives remote read the codes that the other paths have. Upstream's
// handler answers 500 to every error but one of a type that only it can make.
func remoteRead(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f := &readFailure{}
		next.ServeHTTP(&readWriter{w, f}, r.WithContext(context.WithValue(r.Context(), readFailureKey{}, f)))
	})
}

type readFailureKey struct{}

// readFailure is the first thing that went wrong below upstream's handler.
type readFailure struct {
	mu  sync.Mutex
	err error
}

// readFailureOf is nil outside of remote read.
func readFailureOf(ctx context.Context) *readFailure {
	f, _ := ctx.Value(readFailureKey{}).(*readFailure)
	return f
}

// note may be called on nil.
func (f *readFailure) note(err error) {
	if f == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = err
	}
}

// code is what an answer of 500 becomes.
func (f *readFailure) code() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if code, ok := statusOf(0, f.err); ok {
		return code
	}
	return http.StatusInternalServerError
}

// readWriter puts the code in place of 500.
type readWriter struct {
	http.ResponseWriter
	failure *readFailure
}

func (w *readWriter) WriteHeader(code int) {
	if code == http.StatusInternalServerError {
		code = w.failure.code()
	}
	w.ResponseWriter.WriteHeader(code)
}

// Flush implements http.Flusher, without which upstream streams no chunks.
func (w *readWriter) Flush() {
	// Whoever cannot flush keeps it until the end.
	_ = http.NewResponseController(w.ResponseWriter).Flush()
}
