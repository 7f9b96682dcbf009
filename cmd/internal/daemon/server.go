package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// stopGrace is how long requests that run may take to end once the server is
// told to stop.
const stopGrace = 10 * time.Second

// server is an HTTP server with the endpoints that every daemon has. It is not
// ready until ready is set.
type server struct {
	mux   *http.ServeMux
	ready atomic.Bool
	// wrap goes around all handlers; nil for nothing.
	wrap func(http.Handler) http.Handler
}

func newServer(metrics prometheus.Gatherer) *server {
	s := &server{mux: http.NewServeMux()}
	s.mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{EnableOpenMetrics: true}))
	s.mux.HandleFunc("GET /-/healthy", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, "CardinalSin is healthy.\n")
	})
	s.mux.HandleFunc("GET /-/ready", func(w http.ResponseWriter, _ *http.Request) {
		if !s.ready.Load() {
			answer(w, http.StatusServiceUnavailable, "CardinalSin is not ready.\n")
			return
		}
		answer(w, http.StatusOK, "CardinalSin is ready.\n")
	})
	return s
}

// answer writes a plain text; a client that is gone is no concern of ours.
func answer(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	_, _ = w.Write([]byte(text))
}

// serve answers on the listener until ctx ends, and then lets running requests
// finish for a while.
func (s *server) serve(ctx context.Context, l net.Listener) error {
	var h http.Handler = s.mux
	if s.wrap != nil {
		h = s.wrap(h)
	}
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
	}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(l) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve http: %w", err)
	case <-ctx.Done():
	}
	s.ready.Store(false)
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopGrace)
	defer cancel()
	err := srv.Shutdown(stop)
	if errors.Is(err, context.DeadlineExceeded) {
		err = srv.Close()
	}
	if serveErr := <-failed; !errors.Is(serveErr, http.ErrServerClosed) {
		err = errors.Join(err, serveErr)
	}
	if err != nil {
		return fmt.Errorf("stop http: %w", err)
	}
	return nil
}
