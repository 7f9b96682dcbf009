// Package sql is SQL over HTTP: POST /api/v1/sql.
//
// It stands on layer 7, above sqlengine, and only translates: a request into a
// query, rows into a body that streams, and errors into statuses.
//
//	request   {"query": text, "arguments"?: [value, …], "version"?: n,
//	          "as_of"?: RFC 3339, "format"?: name, "explain"?: bool}
//	response  the rows; json by default, an array with one object a row
//	          with explain, {"tables": […], "plan": text}: what would be read
//	error     {"error": {"code": text, "message": text}}
//
//	status  code
//	400     bad_request        no JSON, unknown member, bad format or time
//	400     syntax             the statement cannot be parsed or bound
//	404     not_a_table, version_not_found
//	405     method_not_allowed
//	410     version_vacuumed
//	413     body_too_large
//	422     not_allowed        the statement does more than to read
//	422     execution          its evaluation failed
//	422     too_large          it exceeds a limit on memory or result
//	503     unavailable        the store, or a pin that was lost: try again
//	504     timeout
//	500     corrupt, internal
//
// INVARIANT: a body that ends properly is the whole result. What fails before
// the first 256 KiB has a status of its own; what fails later breaks the
// connection.
package sql

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/deletion"
	"cardinalsin/lease"
	"cardinalsin/sqlengine"
	"cardinalsin/storage"
	"cardinalsin/txlog"
)

// VersionHeader of a response names the versions that were read, separated by
// commas.
const VersionHeader = "Cardinal-Version"

// Engine answers queries; *sqlengine.Engine is one.
type Engine interface {
	Query(ctx context.Context, sql string, opts sqlengine.QueryOptions) (*sqlengine.Rows, error)
	Explain(ctx context.Context, sql string, opts sqlengine.QueryOptions) (*sqlengine.Explanation, error)
}

// Options configure a handler; the zero value is useful.
type Options struct {
	// MaxBodyBytes bounds a request. Default 2 MiB.
	MaxBodyBytes int64
	// BufferBytes is how much of a result is held back so that an error can
	// still have a status. Default 256 KiB.
	BufferBytes int
	// Limits are those of every query.
	Limits sqlengine.QueryOptions
	// Logger reports what is our fault. Default discards.
	Logger *slog.Logger
}

// EnsureDefaults fills in what is unset.
func (o *Options) EnsureDefaults() {
	if o.MaxBodyBytes <= 0 {
		o.MaxBodyBytes = 2 << 20
	}
	if o.BufferBytes <= 0 {
		o.BufferBytes = 256 << 10
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// Handler serves /api/v1/sql.
func Handler(engine Engine, opts Options) http.Handler {
	opts.EnsureDefaults()
	return &handler{engine: engine, opts: opts}
}

type handler struct {
	engine Engine
	opts   Options
}

// request is the body.
type request struct {
	Query   *string `json:"query"`
	Version *int64  `json:"version"`
	AsOf    *string `json:"as_of"`
	Format  *string `json:"format"`
	// Arguments are null, true, false, numbers and texts.
	Arguments []any `json:"arguments"`
	Explain   bool  `json:"explain"`
}

// errBadRequest: the request is not what the package comment says.
var errBadRequest = errors.New("bad request")

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		writeError(w, http.StatusMethodNotAllowed, "method_not_allowed", "use POST")
		return
	}
	q, err := parse(http.MaxBytesReader(w, r.Body, h.opts.MaxBodyBytes))
	if err != nil {
		h.fail(w, r, err)
		return
	}
	opts := h.opts.Limits
	opts.At, opts.Arguments = q.at, q.arguments
	if q.explain {
		h.explain(w, r, q.sql, opts)
		return
	}
	rows, err := h.engine.Query(r.Context(), q.sql, opts)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	defer rows.Close()
	w.Header().Set("Content-Type", q.format.ContentType())
	if v := versions(rows); v != "" {
		w.Header().Set(VersionHeader, v)
	}
	out := &response{w: w, limit: h.opts.BufferBytes}
	if _, err = q.format.Write(r.Context(), out, rows); err == nil {
		err = out.commit()
	}
	switch {
	case err == nil:
	case out.committed:
		// The status is gone; an end without the end of the body is all that
		// is left to say it.
		h.report(r, err)
		panic(http.ErrAbortHandler)
	default:
		w.Header().Del(VersionHeader)
		h.fail(w, r, err)
	}
}

// explain says what a statement would read.
func (h *handler) explain(w http.ResponseWriter, r *http.Request, sql string, opts sqlengine.QueryOptions) {
	x, err := h.engine.Explain(r.Context(), sql, opts)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	b, err := json.Marshal(x)
	if err != nil {
		h.fail(w, r, fmt.Errorf("encode the explanation: %w", err))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(b, '\n')) // the client may have gone
}

// query is a checked request.
type query struct {
	sql       string
	arguments []any
	at        txlog.At
	format    sqlengine.Format
	explain   bool
}

func parse(body io.Reader) (query, error) {
	var r request
	d := json.NewDecoder(body)
	d.DisallowUnknownFields()
	d.UseNumber()
	if err := d.Decode(&r); err != nil {
		return query{}, fmt.Errorf("%w: %w", errBadRequest, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return query{}, fmt.Errorf("%w: more than one JSON value", errBadRequest)
	}
	if r.Query == nil {
		return query{}, fmt.Errorf("%w: no query", errBadRequest)
	}
	q := query{sql: *r.Query, format: sqlengine.FormatJSON, explain: r.Explain}
	for i, a := range r.Arguments {
		a, err := argument(a)
		if err != nil {
			return query{}, fmt.Errorf("%w: argument %d: %w", errBadRequest, i+1, err)
		}
		q.arguments = append(q.arguments, a)
	}
	if r.Format != nil {
		f, err := sqlengine.ParseFormat(*r.Format)
		if err != nil {
			return query{}, fmt.Errorf("%w: %w", errBadRequest, err)
		}
		q.format = f
	}
	switch {
	case r.Version != nil && r.AsOf != nil:
		return query{}, fmt.Errorf("%w: version and as_of exclude each other", errBadRequest)
	case r.Version != nil:
		if *r.Version < 0 {
			return query{}, fmt.Errorf("%w: version %d is negative", errBadRequest, *r.Version)
		}
		q.at = txlog.AtVersion(action.Version(*r.Version))
	case r.AsOf != nil:
		t, err := time.Parse(time.RFC3339Nano, *r.AsOf)
		if err != nil {
			return query{}, fmt.Errorf("%w: as_of: %w", errBadRequest, err)
		}
		q.at = txlog.AtTime(t)
	}
	return q, nil
}

// argument gives a number the type that keeps it whole. What is no argument at
// all the engine refuses.
func argument(v any) (any, error) {
	n, ok := v.(json.Number)
	if !ok {
		return v, nil
	}
	if i, err := strconv.ParseInt(n.String(), 10, 64); err == nil {
		return i, nil
	}
	if u, err := strconv.ParseUint(n.String(), 10, 64); err == nil {
		return u, nil
	}
	return n.Float64()
}

// versions lists what was read.
func versions(rows *sqlengine.Rows) string {
	var list []int64
	for _, t := range rows.Tables() {
		list = append(list, int64(t.Version))
	}
	slices.Sort(list)
	var text []string
	for _, v := range slices.Compact(list) {
		text = append(text, strconv.FormatInt(v, 10))
	}
	return strings.Join(text, ",")
}

// response holds the first bytes back, and after that passes all on at once.
type response struct {
	w         http.ResponseWriter
	limit     int
	held      bytes.Buffer
	committed bool
}

func (r *response) Write(p []byte) (int, error) {
	if !r.committed {
		if r.held.Len()+len(p) <= r.limit {
			return r.held.Write(p)
		}
		if err := r.commit(); err != nil {
			return 0, err
		}
	}
	n, err := r.w.Write(p)
	if err != nil {
		return n, err
	}
	return n, r.flush()
}

// commit sends what is held back, and with it the status.
func (r *response) commit() error {
	if r.committed {
		return nil
	}
	r.committed = true
	_, err := r.w.Write(r.held.Bytes())
	r.held = bytes.Buffer{}
	return err
}

func (r *response) flush() error {
	if err := http.NewResponseController(r.w).Flush(); !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}

// statusOf tells what an error means to a client.
func statusOf(err error) (status int, code string) {
	var tooLong *http.MaxBytesError
	for _, c := range []struct {
		is     error
		status int
		code   string
	}{
		{errBadRequest, http.StatusBadRequest, "bad_request"},
		{sqlengine.ErrUnknownFormat, http.StatusBadRequest, "bad_request"},
		{chunk.ErrCorrupt, http.StatusInternalServerError, "corrupt"},
		{action.ErrCorrupt, http.StatusInternalServerError, "corrupt"},
		{deletion.ErrCorrupt, http.StatusInternalServerError, "corrupt"},
		{chunk.ErrTags, http.StatusInternalServerError, "corrupt"},
		{sqlengine.ErrArgument, http.StatusBadRequest, "bad_request"},
		{sqlengine.ErrSyntax, http.StatusBadRequest, "syntax"},
		{sqlengine.ErrNotAllowed, http.StatusUnprocessableEntity, "not_allowed"},
		{sqlengine.ErrTooLarge, http.StatusUnprocessableEntity, "too_large"},
		{sqlengine.ErrExecution, http.StatusUnprocessableEntity, "execution"},
		{sqlengine.ErrTimeout, http.StatusGatewayTimeout, "timeout"},
		{txlog.ErrVersionNotFound, http.StatusNotFound, "version_not_found"},
		{txlog.ErrNotTable, http.StatusNotFound, "not_a_table"},
		{txlog.ErrVersionVacuumed, http.StatusGone, "version_vacuumed"},
		{txlog.ErrUnsupported, http.StatusUnprocessableEntity, "unsupported"},
		{lease.ErrPinLost, http.StatusServiceUnavailable, "unavailable"},
		{storage.ErrUnavailable, http.StatusServiceUnavailable, "unavailable"},
		{context.DeadlineExceeded, http.StatusGatewayTimeout, "timeout"},
	} {
		if errors.As(err, &tooLong) {
			return http.StatusRequestEntityTooLarge, "body_too_large"
		}
		if errors.Is(err, c.is) {
			return c.status, c.code
		}
	}
	return http.StatusInternalServerError, "internal"
}

// fail answers with an error. What is our own fault is reported in full to
// the log, and only its kind to the client.
func (h *handler) fail(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		return // nobody listens
	}
	status, code := statusOf(err)
	message := err.Error()
	if status == http.StatusInternalServerError {
		h.report(r, err)
		if code == "internal" {
			message = "internal error; the server's log has the cause"
		}
	}
	writeError(w, status, code, message)
}

func (h *handler) report(r *http.Request, err error) {
	h.opts.Logger.ErrorContext(r.Context(), "SQL query failed", "err", err)
}

func writeError(w http.ResponseWriter, status int, code, message string) {
	type detail struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	b, err := json.Marshal(map[string]detail{"error": {code, message}})
	if err != nil {
		panic(err) // texts always encode
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n')) // the client may have gone
}
