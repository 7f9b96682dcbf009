// Package prom is the Prometheus side of a table: PromQL and its HTTP API by
// upstream's own engine and handlers, and remote write.
//
// It stands on layer 7. It holds no query logic: upstream parses, evaluates
// and renders; this package only offers it the table as a storage. Every query
// reads one pinned version, the latest with the head, or the one that the
// extra parameters version= and as_of= name.
package prom

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"time"

	"github.com/grafana/regexp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/route"
	"github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	promstorage "github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/features"
	v1 "github.com/prometheus/prometheus/web/api/v1"

	"cardinalsin/action"
	"cardinalsin/lease"
	"cardinalsin/reader"
	"cardinalsin/storage"
	"cardinalsin/txlog"
	"cardinalsin/writer"
)

// Options configure the API; Reader is required.
type Options struct {
	Reader *reader.Reader
	// Exemplars and Metadata are the tables beside the one that is queried, as
	// ingest names them.
	Exemplars, Metadata SideTable
	// StartTimestamps lets rate() and its like take the samples' start times
	// into account. Default off, as in Prometheus.
	StartTimestamps bool
	// Language turns on what Prometheus has behind feature flags, such as
	// experimental functions. Default none of it.
	Language parser.Options
	// Engine evaluates; the handlers that share one share its limit of queries
	// at a time. Default one of NewEngine for this handler.
	Engine *promql.Engine
	// MaxSamples bounds the samples that upstream's engine holds of one query at
	// a time, 16 bytes each. It bounds, too, the samples of a remote read that are
	// not streamed, and exemplars and metadata. Default 50 million, as in
	// Prometheus.
	MaxSamples int
	// QueryBytes bounds the memory of one query, Memory that of all queries that
	// share it: label sets, samples, and the points that the engine makes of them,
	// by estimate, until the answer is written. Defaults 1 GiB, and 2 GiB for this
	// handler alone. What is above either fails with ErrMemory.
	QueryBytes int64
	Memory     *Memory
	// Timeout of one query. Default 2 minutes.
	Timeout time.Duration
	// MaxConcurrency is the number of PromQL queries that an engine runs at a
	// time; more of them wait. Default 20, as in Prometheus.
	MaxConcurrency int
	// LookbackDelta is how old a sample may be to count. Default 5 minutes.
	LookbackDelta time.Duration
	// Version is what /status/buildinfo says of this build.
	Version string
	// Registry receives the engine's metrics; default a registry of its own.
	Registry *prometheus.Registry
	// Logger hears of requests that fail. Default discards.
	Logger *slog.Logger
}

const defaultMaxSamples = 50_000_000

// EnsureDefaults fills in what is unset.
func (o *Options) EnsureDefaults() {
	if o.MaxSamples <= 0 {
		o.MaxSamples = defaultMaxSamples
	}
	if o.QueryBytes <= 0 {
		o.QueryBytes = defaultQueryBytes
	}
	if o.Memory == nil {
		o.Memory = NewMemory(defaultMemoryBytes)
	}
	if o.Timeout <= 0 {
		o.Timeout = 2 * time.Minute
	}
	if o.MaxConcurrency <= 0 {
		o.MaxConcurrency = 20
	}
	if o.LookbackDelta <= 0 {
		o.LookbackDelta = usualLookback
	}
	if o.Registry == nil {
		o.Registry = prometheus.NewRegistry()
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// NewEngine makes upstream's query engine with the features that Prometheus
// has on by default.
func NewEngine(o Options) *promql.Engine {
	o.EnsureDefaults()
	return promql.NewEngine(promql.EngineOpts{
		Logger: o.Logger, Reg: o.Registry,
		MaxSamples: o.MaxSamples, Timeout: o.Timeout, LookbackDelta: o.LookbackDelta,
		NoStepSubqueryIntervalFn: func(int64) int64 { return time.Minute.Milliseconds() },
		EnableAtModifier:         true, EnableNegativeOffset: true,
		ActiveQueryTracker: make(gate, o.MaxConcurrency),
		UseStartTimestamps: o.StartTimestamps,
		Parser:             parser.NewParser(o.Language),
	})
}

// gate bounds the queries that run at a time; upstream's own tracker wants a
// file to log them in.
type gate chan struct{}

func (g gate) GetMaxConcurrent() int { return cap(g) }
func (g gate) Delete(int)            { <-g }
func (g gate) Close() error          { return nil }

// Insert waits for a place until ctx ends.
func (g gate) Insert(ctx context.Context, _ string) (int, error) {
	select {
	case g <- struct{}{}:
		return 0, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// Handler serves upstream's API; the caller mounts it at /api/v1/, with that
// prefix. Paths that have no meaning here answer as an idle Prometheus would.
func Handler(o Options) http.Handler {
	o.EnsureDefaults()
	q := NewQueryable(o.Reader)
	q.QueryBytes, q.Memory = o.QueryBytes, o.Memory
	mux := http.NewServeMux()
	api := serve(o, q)
	mux.Handle("/", api)
	mux.Handle("POST /api/v1/read", remoteRead(api))
	mux.Handle("GET /api/v1/metadata", metadataHandler(o.Metadata, o.MaxSamples, o.Logger))
	mux.Handle("GET /api/v1/status/tsdb", statusHandler(q, o.Logger))
	return atVersion(heldUntilAnswered(mux, o.Memory, o.QueryBytes))
}

// serve is upstream's API over any storage.
func serve(o Options, q promstorage.SampleAndChunkQueryable) http.Handler {
	started := time.Now()
	none := nothing{}
	if o.Engine == nil {
		o.Engine = NewEngine(o)
	}
	api := v1.NewAPI(
		o.Engine, q, nil, nil, exemplars{o.Exemplars, o.MaxSamples, o.QueryBytes, o.Memory},
		func(context.Context) v1.ScrapePoolsRetriever { return none },
		func(context.Context) v1.TargetRetriever { return none },
		func(context.Context) v1.AlertmanagerRetriever { return none },
		func() config.Config { return config.DefaultConfig },
		map[string]string{},
		v1.GlobalURLOptions{},
		func(h http.HandlerFunc) http.HandlerFunc { return h },
		none, "", false, false, 0, o.Logger,
		func(context.Context) v1.RulesRetriever { return none },
		o.MaxSamples, 10, 1<<20, // remote read: samples a query, queries at once, bytes a frame
		false, noOrigin,
		func() (v1.RuntimeInfo, error) {
			return v1.RuntimeInfo{StartTime: started, GoroutineCount: runtime.NumGoroutine(), GOMAXPROCS: runtime.GOMAXPROCS(0), ReloadConfigSuccess: true}, nil
		},
		&v1.PrometheusVersion{Version: o.Version, GoVersion: runtime.Version()},
		none.notifications, none.subscribe, o.Registry, o.Registry, nil,
		false, nil, false, false, false, false, o.LookbackDelta, false, false,
		statusOf, features.NewRegistry(), v1.OpenAPIOptions{Version: o.Version},
		parser.NewParser(o.Language),
	)
	router := route.New()
	api.Register(router)
	return http.StripPrefix("/api/v1", router)
}

// noOrigin matches no origin: a page of another site may not read what is
// here with its visitor's rights. Upstream does not take nil for it.
var noOrigin = regexp.MustCompile(`^$`)

// tableError marks what went wrong below upstream's code: by default it
// answers 422, as for a query that makes no sense.
type tableError struct{ error }

func (e tableError) Unwrap() error { return e.error }

// statuses are the conditions with a code of their own, the first that applies.
var statuses = []struct {
	is   error
	code int
}{
	{txlog.ErrVersionNotFound, http.StatusNotFound},
	{txlog.ErrVersionVacuumed, http.StatusGone},
	{lease.ErrPinLost, http.StatusServiceUnavailable},
	{storage.ErrUnavailable, http.StatusServiceUnavailable},
	{storage.ErrUnknownOutcome, http.StatusServiceUnavailable}, // of the pin's write
	{writer.ErrIncomplete, http.StatusServiceUnavailable},
	{ErrMemory, http.StatusUnprocessableEntity},
	{writer.ErrOverloaded, http.StatusServiceUnavailable}, // too many tables are open
	{context.DeadlineExceeded, http.StatusServiceUnavailable},
}

// statusOf gives the table's errors their codes. Its first argument is of a
// type that upstream does not export.
func statusOf[Kind any](_ Kind, err error) (code int, override bool) {
	var ours tableError
	switch {
	case errors.Is(err, errNotHere):
		return http.StatusNotImplemented, true
	case !errors.As(err, &ours), errors.Is(err, context.Canceled):
		return 0, false
	}
	for _, s := range statuses {
		if errors.Is(ours.error, s.is) {
			return s.code, true
		}
	}
	return http.StatusInternalServerError, true
}

// sidePaths read other tables than the one whose version version= names.
var sidePaths = []string{"/api/v1/query_exemplars", "/api/v1/metadata"}

// atVersion takes version= and as_of= from the query or the form.
func atVersion(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		at, err := ParseAt(r.FormValue("version"), r.FormValue("as_of"))
		if err == nil && r.FormValue("version") != "" && slices.Contains(sidePaths, r.URL.Path) {
			err = fmt.Errorf("%w: exemplars and metadata have versions of their own; use as_of", ErrInvalidAt)
		}
		if err != nil {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusBadRequest)
			// A client that is gone is no concern of ours.
			_ = json.NewEncoder(w).Encode(map[string]string{"status": "error", "errorType": "bad_data", "error": err.Error()})
			return
		}
		if !at.IsLatest() {
			r = r.WithContext(AtContext(r.Context(), at))
		}
		next.ServeHTTP(w, r)
	})
}

// ErrInvalidAt: the parameters name no version.
var ErrInvalidAt = errors.New("invalid version")

// ParseAt reads the parameters that pick a version: a number, or a time in
// RFC 3339 or seconds since the epoch; both empty mean the latest. Its error
// wraps ErrInvalidAt.
func ParseAt(version, asOf string) (txlog.At, error) {
	switch {
	case version != "" && asOf != "":
		return txlog.At{}, fmt.Errorf("%w: version and as_of exclude each other", ErrInvalidAt)
	case version != "":
		v, err := strconv.ParseInt(version, 10, 64)
		if err != nil || v < 0 {
			return txlog.At{}, fmt.Errorf("%w: version %q", ErrInvalidAt, version)
		}
		return txlog.AtVersion(action.Version(v)), nil
	case asOf != "":
		if t, err := time.Parse(time.RFC3339Nano, asOf); err == nil {
			return txlog.AtTime(t), nil
		}
		seconds, err := strconv.ParseFloat(asOf, 64)
		if err != nil || math.IsNaN(seconds) || math.Abs(seconds) > 1e11 {
			return txlog.At{}, fmt.Errorf("%w: as_of %q", ErrInvalidAt, asOf)
		}
		return txlog.AtTime(time.UnixMilli(int64(seconds * 1000))), nil
	}
	return txlog.Latest(), nil
}
