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
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"runtime"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/route"
	"github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	v1 "github.com/prometheus/prometheus/web/api/v1"

	"cardinalsin/action"
	"cardinalsin/lease"
	"cardinalsin/reader"
	"cardinalsin/txlog"
)

// Options configure the API; Reader is required.
type Options struct {
	Reader *reader.Reader
	// MaxSamples bounds the samples that one query holds at a time. Default
	// 50 million, as in Prometheus.
	MaxSamples int
	// Timeout of one query. Default 2 minutes.
	Timeout time.Duration
	// LookbackDelta is how old a sample may be to count. Default 5 minutes.
	LookbackDelta time.Duration
	// Version is what /status/buildinfo says of this build.
	Version string
	// Registry receives the engine's metrics; default a registry of its own.
	Registry *prometheus.Registry
	// Logger hears of requests that fail. Default discards.
	Logger *slog.Logger
}

// EnsureDefaults fills in what is unset.
func (o *Options) EnsureDefaults() {
	if o.MaxSamples <= 0 {
		o.MaxSamples = 50_000_000
	}
	if o.Timeout <= 0 {
		o.Timeout = 2 * time.Minute
	}
	if o.LookbackDelta <= 0 {
		o.LookbackDelta = 5 * time.Minute
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
	})
}

// Handler serves upstream's API; the caller mounts it at /api/v1/, with that
// prefix. Paths that have no meaning here answer as an idle Prometheus would.
func Handler(o Options) http.Handler {
	o.EnsureDefaults()
	started := time.Now()
	none := nothing{}
	api := v1.NewAPI(
		NewEngine(o), NewQueryable(o.Reader), nil, nil, none,
		func(context.Context) v1.ScrapePoolsRetriever { return none },
		func(context.Context) v1.TargetRetriever { return none },
		func(context.Context) v1.AlertmanagerRetriever { return none },
		func() config.Config { return config.DefaultConfig },
		map[string]string{},
		v1.GlobalURLOptions{},
		func(h http.HandlerFunc) http.HandlerFunc { return h },
		none, "", false, false, 0, o.Logger,
		func(context.Context) v1.RulesRetriever { return none },
		50_000_000, 10, 1<<20, // remote read: samples a query, queries at once, bytes a frame
		false, nil,
		func() (v1.RuntimeInfo, error) {
			return v1.RuntimeInfo{StartTime: started, GoroutineCount: runtime.NumGoroutine(), GOMAXPROCS: runtime.GOMAXPROCS(0), ReloadConfigSuccess: true}, nil
		},
		&v1.PrometheusVersion{Version: o.Version, GoVersion: runtime.Version()},
		nil, nil, o.Registry, o.Registry, nil,
		false, nil, false, false, false, false, o.LookbackDelta, false, false,
		statusOf, nil, v1.OpenAPIOptions{Version: o.Version},
		parser.NewParser(parser.Options{}),
	)
	router := route.New()
	api.Register(router)
	return http.StripPrefix("/api/v1", atVersion(router))
}

// statusOf gives the errors of versions and pins their codes. Its first
// argument is of a type that upstream does not export.
func statusOf[Kind any](_ Kind, err error) (code int, override bool) {
	var stored promql.ErrStorage
	if errors.As(err, &stored) {
		err = stored.Err
	}
	switch {
	case errors.Is(err, txlog.ErrVersionNotFound):
		return http.StatusNotFound, true
	case errors.Is(err, txlog.ErrVersionVacuumed):
		return http.StatusGone, true
	case errors.Is(err, lease.ErrPinLost):
		return http.StatusServiceUnavailable, true
	}
	return 0, false
}

// atVersion takes version= and as_of= from the query or the form.
func atVersion(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		at, err := ParseAt(r.FormValue("version"), r.FormValue("as_of"))
		if err != nil {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusBadRequest)
			// A client that is gone is no concern of ours.
			_, _ = fmt.Fprintf(w, `{"status":"error","errorType":"bad_data","error":%s}`, strconv.Quote(err.Error()))
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
