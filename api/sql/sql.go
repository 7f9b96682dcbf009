// Package sql is SQL over HTTP: one statement a request, the result streamed.
//
// It stands on layer 7, above sqlengine, and adds nothing to it but the form
// of requests and errors (contract 2).
package sql

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"cardinalsin/action"
	"cardinalsin/lease"
	"cardinalsin/sqlengine"
	"cardinalsin/txlog"
)

// maxRequestBytes bounds a request's body; a statement of a megabyte is a
// mistake.
const maxRequestBytes = 1 << 20

// Options configure the handler; the zero value is useful.
type Options struct {
	// Logger hears of results that broke off. Default discards.
	Logger *slog.Logger
}

// request is the body of a POST.
type request struct {
	Query   string            `json:"query"`
	Version *action.Version   `json:"version"`
	AsOf    *time.Time        `json:"as_of"` // RFC 3339
	Format  *sqlengine.Format `json:"format"`
}

// errBadRequest: the request is no JSON object of that form.
var errBadRequest = errors.New("bad request")

// Handler answers POST with the rows of a SELECT, by default as a JSON array.
// A result that breaks off after its first byte ends the connection, so that
// no client takes a part for the whole.
//
// Errors are {"error": {"code", "message"}}: 400 bad_request and syntax, 404
// version_not_found, 410 version_vacuumed, 413 request_too_large, 422
// not_allowed, execution and too_large, 503 unavailable, 504 timeout.
func Handler(engine *sqlengine.Engine, opts Options) http.Handler {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	return &handler{engine, opts}
}

type handler struct {
	engine *sqlengine.Engine
	opts   Options
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		h.fail(w, fmt.Errorf("%w: use POST", errBadRequest), http.StatusMethodNotAllowed)
		return
	}
	req, err := decode(http.MaxBytesReader(w, r.Body, maxRequestBytes))
	if err != nil {
		h.fail(w, err, 0)
		return
	}
	rows, err := h.engine.Query(r.Context(), req.Query, sqlengine.QueryOptions{At: req.at()})
	if err != nil {
		h.fail(w, err, 0)
		return
	}
	defer func() {
		if err := rows.Close(); err != nil {
			h.opts.Logger.Warn("close a result", "err", err)
		}
	}()
	format := *req.Format
	w.Header().Set("Content-Type", format.ContentType())
	out := &counter{w: w}
	if _, err := format.Write(r.Context(), out, rows); err != nil {
		if out.n == 0 {
			h.fail(w, err, 0)
			return
		}
		h.opts.Logger.Warn("a result broke off", "bytes", out.n, "err", err)
		panic(http.ErrAbortHandler)
	}
}

// counter tells whether anything was sent.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

func decode(body io.Reader) (request, error) {
	dec := json.NewDecoder(body)
	dec.DisallowUnknownFields()
	var req request
	if err := dec.Decode(&req); err != nil {
		return request{}, fmt.Errorf("%w: %w", errBadRequest, err)
	}
	if dec.More() {
		return request{}, fmt.Errorf("%w: more than one JSON object", errBadRequest)
	}
	format := sqlengine.FormatJSON
	if req.Format != nil {
		var err error
		if format, err = sqlengine.ParseFormat(string(*req.Format)); err != nil {
			return request{}, fmt.Errorf("%w: %w", errBadRequest, err)
		}
	}
	req.Format = &format
	switch {
	case req.Query == "":
		return request{}, fmt.Errorf("%w: query is empty", errBadRequest)
	case req.Version != nil && req.AsOf != nil:
		return request{}, fmt.Errorf("%w: version and as_of exclude each other", errBadRequest)
	case req.Version != nil && *req.Version < 0:
		return request{}, fmt.Errorf("%w: version %d", errBadRequest, *req.Version)
	}
	return req, nil
}

func (r request) at() txlog.At {
	switch {
	case r.Version != nil:
		return txlog.AtVersion(*r.Version)
	case r.AsOf != nil:
		return txlog.AtTime(*r.AsOf)
	}
	return txlog.Latest()
}

// statuses maps conditions to status and code, the first that applies.
var statuses = []struct {
	is     error
	status int
	code   string
}{
	{errBadRequest, http.StatusBadRequest, "bad_request"},
	{sqlengine.ErrSyntax, http.StatusBadRequest, "syntax"},
	{sqlengine.ErrNotAllowed, http.StatusUnprocessableEntity, "not_allowed"},
	{sqlengine.ErrExecution, http.StatusUnprocessableEntity, "execution"},
	{sqlengine.ErrTooLarge, http.StatusUnprocessableEntity, "too_large"},
	{sqlengine.ErrTimeout, http.StatusGatewayTimeout, "timeout"},
	{txlog.ErrVersionNotFound, http.StatusNotFound, "version_not_found"},
	{txlog.ErrVersionVacuumed, http.StatusGone, "version_vacuumed"},
	{lease.ErrPinLost, http.StatusServiceUnavailable, "unavailable"},
	{context.Canceled, http.StatusServiceUnavailable, "canceled"},
}

// fail answers with an error; status 0 is the condition's own.
func (h *handler) fail(w http.ResponseWriter, err error, status int) {
	code := "internal"
	own := http.StatusInternalServerError
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		own, code = http.StatusRequestEntityTooLarge, "request_too_large"
	} else {
		for _, s := range statuses {
			if errors.Is(err, s.is) {
				own, code = s.status, s.code
				break
			}
		}
	}
	if status == 0 {
		status = own
	}
	if status >= 500 {
		h.opts.Logger.Error("query failed", "code", code, "err", err)
	}
	type failure struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// A client that is gone is no concern of ours.
	_ = json.NewEncoder(w).Encode(map[string]failure{"error": {code, err.Error()}})
}
