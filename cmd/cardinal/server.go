package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"runtime/debug"
	"strings"
	"time"

	ucli "github.com/urfave/cli/v2"
	"google.golang.org/grpc"

	"cardinalsin"
	"cardinalsin/api/flightsql"
	"cardinalsin/api/prom"
	sqlapi "cardinalsin/api/sql"
	"cardinalsin/cmd/internal/cli"
	"cardinalsin/cmd/internal/daemon"
	"cardinalsin/ingest"
	"cardinalsin/reader"
	"cardinalsin/sqlengine"
)

func serverCommand() *ucli.Command {
	return &ucli.Command{
		Name: "server", Usage: "ingest, query and maintain the tables of all tenants in one process",
		UsageText: "cardinal server --store s3://bucket/metrics --wal-dir /var/lib/cardinal/wal --http localhost:8080",
		Flags: append(daemon.Flags(),
			&ucli.StringFlag{Name: "roles", Value: "writer,query,maintain", Usage: "comma-separated `ROLES` of this process"},
			&ucli.StringFlag{Name: "cache-dir", Value: "./cardinal-cache", Usage: "`DIR` for what is read of remote stores"},
			&ucli.Int64Flag{Name: "cache-bytes", Value: 10 << 30, Usage: "bound of the cache on disk in `BYTES`"},
			&ucli.Int64Flag{Name: "cache-memory-bytes", Value: 64 << 20, Usage: "bound of the cache in memory in `BYTES`, 0 for none"},
			&ucli.Int64Flag{Name: "page-bytes", Value: 256 << 20, Usage: "bound of decoded samples that PromQL keeps in `BYTES`, 0 for none"},
			&ucli.Int64Flag{Name: "query-bytes", Value: 1 << 30, Usage: "most `BYTES` of label sets, samples and points that one PromQL query holds"},
			&ucli.Int64Flag{Name: "queries-bytes", Value: 2 << 30, Usage: "most `BYTES` that all PromQL queries together hold"},
			&ucli.IntFlag{Name: "query-samples", Value: 50_000_000, Usage: "most `SAMPLES` that PromQL's engine holds of one query at a time"},
			&ucli.IntFlag{Name: "query-concurrency", Value: 20, Usage: "`NUMBER` of PromQL queries of all tenants that run at a time; more of them wait"},
			&ucli.Int64Flag{Name: "sql-query-bytes", Value: 1 << 30, Usage: "most `BYTES` of memory that one SQL query may use"},
			&ucli.Int64Flag{Name: "sql-queries-bytes", Value: 4 << 30, Usage: "most `BYTES` of memory that all SQL queries together may use; more of them wait"},
			&ucli.StringFlag{Name: "flight-sql", Value: "localhost:8815", Usage: "listen on `ADDRESS` for Arrow Flight SQL; empty for none"},
			&ucli.BoolFlag{Name: "start-timestamps", Usage: "let rate() and its like take the start times of samples into account, as Prometheus' feature does"},
			&ucli.DurationFlag{Name: "compact-every", Value: 30 * time.Second, Usage: "how often to look for files to compact"},
		),
		Action: func(c *ucli.Context) error {
			if err := cli.NoArgs(c); err != nil {
				return err
			}
			o, err := serverFlags(c)
			if err != nil {
				return err
			}
			if _, set := os.LookupEnv("GOGC"); !set && !o.NoQuery {
				debug.SetGCPercent(gcPercent)
			}
			s, err := openServer(c.Context, o)
			if err != nil {
				return err
			}
			return s.Run(c.Context, c.App.Writer)
		},
	}
}

// gcPercent is how much garbage a server that queries lets come together, in
// percent of what is alive, unless GOGC says otherwise. It is Prometheus' own
// default: a query's memory is large and short-lived.
const gcPercent = 75

// serverOptions say what a server does. Without a WAL directory it does not
// write.
type serverOptions struct {
	daemon.Options
	CacheBytes int64
	// FlightSQL is an address to listen on, empty for none.
	FlightSQL string
	// NoQuery leaves that role to other processes.
	NoQuery bool
	// PromQL is what the tables of all tenants have in common; queries share the
	// memory.
	PromQL prom.Options
	// SQL is what their SQL engines have in common.
	SQL sqlengine.Options
}

func serverFlags(c *ucli.Context) (serverOptions, error) {
	common, err := daemon.OptionsOf(c)
	if err != nil {
		return serverOptions{}, err
	}
	o := serverOptions{Options: common, CacheBytes: c.Int64("cache-bytes"), FlightSQL: c.String("flight-sql"), NoQuery: true}
	for _, limit := range []string{"query-bytes", "queries-bytes", "query-samples", "query-concurrency", "sql-query-bytes", "sql-queries-bytes"} {
		if c.Int64(limit) <= 0 {
			return serverOptions{}, fmt.Errorf("%w: --%s must be above 0", cli.ErrUsage, limit)
		}
	}
	o.PromQL = prom.Options{
		StartTimestamps: c.Bool("start-timestamps"),
		QueryBytes:      c.Int64("query-bytes"), Memory: prom.NewMemory(c.Int64("queries-bytes")),
		MaxSamples: c.Int("query-samples"), MaxConcurrency: c.Int("query-concurrency"),
		Version: cli.Version(), Logger: common.Tables.Logger,
	}
	o.SQL = sqlengine.Options{MemoryBytes: c.Int64("sql-query-bytes"), Memory: sqlengine.NewMemory(c.Int64("sql-queries-bytes"))}
	o.Tables.CacheBytes, o.Tables.CacheMemoryBytes = c.Int64("cache-bytes"), c.Int64("cache-memory-bytes")
	if o.Tables.CacheMemoryBytes == 0 {
		o.Tables.CacheMemoryBytes = -1
	}
	if o.Tables.PageBytes = c.Int64("page-bytes"); o.Tables.PageBytes == 0 {
		o.Tables.PageBytes = -1
	}
	o.Tables.Compactor.Interval = c.Duration("compact-every")
	writes := false
	for _, role := range strings.Split(c.String("roles"), ",") {
		switch role {
		case "writer":
			writes = true
		case "query":
			o.NoQuery = false
			o.Tables.CacheDir = c.String("cache-dir")
		case "maintain":
			o.Tables.Compact = true
		default:
			return serverOptions{}, fmt.Errorf("%w: --roles: %q is none of writer, query, maintain", cli.ErrUsage, role)
		}
	}
	if !writes {
		o.Tables.WALDir = ""
	}
	return o, nil
}

// server is a daemon that answers queries, too.
type server struct {
	*daemon.Daemon
	sql sqlengine.Options // of every table's engine
}

func openServer(ctx context.Context, o serverOptions) (*server, error) {
	d, err := daemon.Open(ctx, o.Options)
	if err != nil {
		return nil, err
	}
	s := &server{Daemon: d, sql: o.SQL}
	if o.NoQuery {
		return s, nil
	}
	if c := d.Tenants.Cache(); c != nil {
		d.Metrics.Registry.MustRegister(cacheMetrics(c))
	}
	logger := o.Tables.Logger
	d.Handle("/api/v1/sql", d.PerTenant(func(db *cardinalsin.DB) (http.Handler, func() error, error) {
		engine, err := s.engine(ctx, db)
		if err != nil {
			return nil, nil, err
		}
		return sqlapi.Handler(engine, sqlapi.Options{Logger: logger}), nil, nil
	}, refuseSQL))
	if o.FlightSQL != "" {
		const maxMessage = 16 << 20 // a statement and its parameters
		err := d.ServeGRPC("flight_sql", o.FlightSQL, maxMessage, func(g *grpc.Server) {
			flightsql.Register(g, s.openTenant, flightsql.Options{Version: cli.Version(), Logger: logger})
		})
		if err != nil {
			return nil, errors.Join(err, d.Close(context.WithoutCancel(ctx)))
		}
	}
	o.PromQL.Registry = d.Metrics.Registry
	o.PromQL.Engine = prom.NewEngine(o.PromQL)
	d.Handle("/api/v1/", d.PerTenant(func(db *cardinalsin.DB) (http.Handler, func() error, error) {
		side := func(table string) prom.SideTable {
			return func(ctx context.Context) (*reader.Reader, func(), error) {
				db, release, err := d.Tenants.Get(ctx, db.Tenant(), table)
				if err != nil {
					return nil, nil, err
				}
				return db.Reader, release, nil
			}
		}
		o := o.PromQL
		if db != d.DB {
			o.Registry = nil // it takes the API's metrics once
		}
		o.Reader = db.Reader
		o.Exemplars, o.Metadata = side(ingest.ExemplarsTable(db.TableName())), side(ingest.MetadataTable(db.TableName()))
		return prom.Handler(o), nil, nil
	}, refuseProm))
	return s, nil
}

// engineKey is that of a table's SQL engine among what is attached to it.
type engineKey struct{}

// engine is the SQL engine of a table, one for all protocols.
func (s *server) engine(ctx context.Context, db *cardinalsin.DB) (*sqlengine.Engine, error) {
	v, err := db.Attach(engineKey{}, func() (any, func() error, error) {
		engine, err := newEngine(context.WithoutCancel(ctx), db, s.sql)
		if err != nil {
			return nil, nil, err
		}
		return engine, func() error { engine.Close(); return nil }, nil
	})
	if err != nil {
		return nil, err
	}
	return v.(*sqlengine.Engine), nil
}

// openTenant implements flightsql.Open.
func (s *server) openTenant(ctx context.Context, tenant string) (flightsql.Engine, func(), error) {
	db, release, err := s.Tenants.Get(ctx, tenant, "")
	if errors.Is(err, cardinalsin.ErrInvalidName) {
		err = fmt.Errorf("%w: %w", ingest.ErrInvalidTenant, err)
	}
	if err != nil {
		return nil, nil, err
	}
	engine, err := s.engine(ctx, db)
	if err != nil {
		release()
		return nil, nil, err
	}
	return engine, release, nil
}

// refuseProm answers in Prometheus' form where there is no table to ask.
func refuseProm(w http.ResponseWriter, code int, err error) {
	kind := "unavailable"
	switch code {
	case http.StatusNotFound:
		kind = "not_found"
	case http.StatusBadRequest:
		kind = "bad_data"
	}
	answerJSON(w, code, map[string]any{"status": "error", "errorType": kind, "error": err.Error()})
}

// refuseSQL answers in the form of the SQL API where there is no table to ask.
func refuseSQL(w http.ResponseWriter, code int, err error) {
	kind := "unavailable"
	switch code {
	case http.StatusNotFound:
		kind = "not_found"
	case http.StatusBadRequest:
		kind = "invalid"
	}
	answerJSON(w, code, map[string]any{"error": map[string]string{"code": kind, "message": err.Error()}})
}

// answerJSON writes a body; a client that is gone is no concern of ours.
func answerJSON(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v)
}
