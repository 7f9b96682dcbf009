// Package influx receives Influx line protocol on the paths of InfluxDB 1 and
// 2, with what their clients ask besides.
//
// It stands on the layer of the protocols. Lines become samples as package
// lineproto says; a database (v1) or bucket (v2) becomes the label db of what
// has no such tag. Retention policies, organizations and credentials have no
// meaning here; the tenant is named by ingest.TenantHeader.
//
//	POST /write          v1; precision n, ns, u, µ, us, ms, s, m, h
//	POST /api/v2/write   v2; the same
//	GET  /ping, /api/v2/ping, /health
//	POST /query          CREATE DATABASE only, which does nothing
//
// A request is stored whole and answered with 204, or refused whole. As in
// InfluxDB, text fields are the exception: the rest of the request is stored,
// and the answer is 400 with "partial write" and what was left out.
package influx

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"cardinalsin/ingest"
	"cardinalsin/internal/httpbody"
	"cardinalsin/internal/lineproto"
	"cardinalsin/series"
)

// Options of a Handler; the zero value is useful.
type Options struct {
	// Now is the time of lines that tell none. Default time.Now.
	Now func() time.Time
	// Logger hears of failures that are not the client's. Default: nobody.
	Logger *slog.Logger
}

// EnsureDefaults fills in what is unset.
func (o *Options) EnsureDefaults() {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// Bounds of one request.
const (
	maxBodyBytes  = 32 << 20 // before and after decompression
	maxSamples    = 1 << 20
	maxLabelBytes = 256 << 20 // each field repeats its line's tags
)

// version is what clients are told that they speak to; some parse it.
const version = "1.8.0-cardinalsin"

// WarningHeader tells, with a request that was accepted, what is not exactly
// as it was sent: integers that no float is equal to.
const WarningHeader = "X-Cardinal-Warning"

// Paths are what Handler serves, for whoever mounts it beside others.
func Paths() []string {
	return []string{"/write", "/api/v2/write", "/ping", "/api/v2/ping", "/health", "/query"}
}

// Handler serves Paths.
func Handler(sink ingest.Sink, o Options) http.Handler {
	o.EnsureDefaults()
	h := &handler{sink, o}
	mux := http.NewServeMux()
	mux.HandleFunc("/write", h.write(v1Error))
	mux.HandleFunc("/api/v2/write", h.write(v2Error))
	mux.HandleFunc("/ping", h.ping)
	mux.HandleFunc("/api/v2/ping", h.ping)
	mux.HandleFunc("/health", h.health)
	mux.HandleFunc("/query", h.query)
	return mux
}

type handler struct {
	sink ingest.Sink
	opts Options
}

// errorBody says a refusal in the words of one version.
type errorBody func(status int, message string) any

func v1Error(_ int, message string) any { return map[string]string{"error": message} }

// v2Error has the codes of InfluxDB 2's API, "Error".
func v2Error(status int, message string) any {
	code, ok := map[int]string{
		http.StatusBadRequest:            "invalid",
		http.StatusMethodNotAllowed:      "method not allowed",
		http.StatusRequestEntityTooLarge: "request too large",
		http.StatusTooManyRequests:       "too many requests",
		http.StatusServiceUnavailable:    "unavailable",
	}[status]
	if !ok {
		code = "internal error"
	}
	return map[string]string{"code": code, "message": message}
}

// partial is a request of which everything was stored but the text fields.
type partial struct{ lineproto.Stats }

func (p partial) Error() string {
	return fmt.Sprintf("partial write: %d text fields were not kept, the first in %s: samples are numbers; everything else was stored. dropped=%d", p.Strings, p.FirstString, p.Strings)
}

func (p partial) Unwrap() error { return ingest.ErrUnsupported }

func (h *handler) write(errorBody errorBody) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			w.Header().Set("Allow", http.MethodPost)
			h.answer(w, http.StatusMethodNotAllowed, errorBody(http.StatusMethodNotAllowed, "only POST writes"))
			return
		}
		err := h.store(w, r)
		if err == nil {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		reason, status := ingest.Classify(err)
		if status == http.StatusTooManyRequests {
			w.Header().Set("Retry-After", ingest.RetryAfterSeconds)
		}
		if status >= http.StatusInternalServerError {
			h.opts.Logger.Warn("write failed", "protocol", ingest.Influx, "reason", reason, "err", err)
		}
		h.answer(w, status, errorBody(status, err.Error()))
	}
}

// store takes one request. What it refuses by itself it counts.
func (h *handler) store(w http.ResponseWriter, r *http.Request) error {
	batch, stats, err := h.decode(w, r)
	if err != nil {
		reason, _ := ingest.Classify(err)
		h.sink.Refuse(ingest.Influx, reason, 0)
		return err
	}
	if stats.Rounded > 0 {
		w.Header().Set(WarningHeader, fmt.Sprintf("%d integers beyond 2^53 were rounded to the nearest float64", stats.Rounded))
	}
	if len(batch) > 0 {
		if err := h.sink.Append(r.Context(), r.Header.Get(ingest.TenantHeader), &ingest.Request{Protocol: ingest.Influx, Samples: batch}); err != nil {
			return err
		}
	}
	if stats.Strings > 0 {
		err := partial{stats}
		reason, _ := ingest.Classify(err)
		h.sink.Refuse(ingest.Influx, reason, stats.Strings)
		return err
	}
	return nil
}

func (h *handler) decode(w http.ResponseWriter, r *http.Request) (series.Batch, lineproto.Stats, error) {
	q := r.URL.Query()
	unit, err := precision(q.Get("precision"))
	if err != nil {
		return nil, lineproto.Stats{}, err
	}
	database := q.Get("db")
	if database == "" {
		database = q.Get("bucket")
	}
	body, err := httpbody.Read(w, r, maxBodyBytes)
	if err != nil {
		return nil, lineproto.Stats{}, err
	}
	lines := lineproto.NewReader(bytes.NewReader(body), lineproto.Options{
		Unit: unit, Now: h.opts.Now, Database: database,
		MaxSamples: maxSamples, MaxLabelBytes: maxLabelBytes,
	})
	batch, err := lines.Next()
	switch {
	case errors.Is(err, io.EOF):
		return nil, lines.Stats(), nil
	case err != nil:
		return nil, lineproto.Stats{}, err
	}
	if _, err := lines.Next(); !errors.Is(err, io.EOF) {
		return nil, lineproto.Stats{}, fmt.Errorf("%w: at least %d samples or %d bytes of labels; send fewer lines at a time", ingest.ErrTooLarge, maxSamples, maxLabelBytes)
	}
	return batch, lines.Stats(), nil
}

// precision gives the unit of timestamps; both versions' words are known.
func precision(name string) (time.Duration, error) {
	switch name {
	case "", "n", "ns":
		return time.Nanosecond, nil
	case "u", "µ", "us":
		return time.Microsecond, nil
	case "ms":
		return time.Millisecond, nil
	case "s":
		return time.Second, nil
	case "m":
		return time.Minute, nil
	case "h":
		return time.Hour, nil
	}
	return 0, fmt.Errorf("%w: invalid precision %.100q", ingest.ErrMalformed, name)
}

// ping answers as InfluxDB does: with no content but the version, which v1
// also gives as JSON to who asks.
func (h *handler) ping(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Influxdb-Version", version)
	w.Header().Set("X-Influxdb-Build", "CardinalSin")
	if v := r.URL.Query().Get("verbose"); v != "" && v != "0" && v != "false" {
		h.answer(w, http.StatusOK, map[string]string{"version": version})
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (h *handler) health(w http.ResponseWriter, _ *http.Request) {
	h.answer(w, http.StatusOK, map[string]any{
		"name": "influxdb", "message": "ready for writes", "status": "pass", "checks": []string{}, "version": version,
	})
}

// query lets clients do what they do before they write the first time.
func (h *handler) query(w http.ResponseWriter, r *http.Request) {
	words := strings.Fields(strings.ToUpper(r.FormValue("q")))
	if len(words) >= 3 && words[0] == "CREATE" && words[1] == "DATABASE" {
		h.answer(w, http.StatusOK, map[string]any{"results": []any{map[string]int{"statement_id": 0}}})
		return
	}
	h.answer(w, http.StatusBadRequest, v1Error(http.StatusBadRequest, "InfluxQL is not spoken here, but for CREATE DATABASE; ask by PromQL or SQL"))
}

func (h *handler) answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(body); err != nil {
		h.opts.Logger.Debug("client left before its answer", "protocol", ingest.Influx, "err", err)
	}
}
