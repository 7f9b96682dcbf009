// Package daemon is what both servers share: the tables of all tenants, every
// protocol that writes to them, an HTTP and a gRPC listener that stop in good
// order, health, metrics, traces, and the flags and the file that configure
// them.
//
// It stands on layer 8, above the protocols. cardinal adds the queries, which
// need cgo.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"cardinalsin"
	"cardinalsin/api/flight"
	"cardinalsin/api/influx"
	"cardinalsin/api/otlp"
	"cardinalsin/api/prom"
	"cardinalsin/cmd/internal/cli"
	"cardinalsin/ingest"
	"cardinalsin/scrape"
	"cardinalsin/txlog"
)

// Options say what a daemon does.
type Options struct {
	// Tables are what it serves; without a WALDir it takes no samples.
	Tables cardinalsin.TenantsOptions
	// HTTP and GRPC are addresses to listen on. An empty GRPC is none.
	HTTP, GRPC string
	// Config is what the file of --config says.
	Config Config
	// Trace exports spans, where and how the OTEL_* environment says.
	Trace bool

	// For tests:
	tracer      *tracer       // in place of what Trace makes
	bodyTimeout time.Duration // default defaultBodyTimeout
}

// Daemon is a process that serves.
type Daemon struct {
	Metrics *Metrics
	Tenants *cardinalsin.Tenants
	// DB is the default table, which is always open.
	DB *cardinalsin.DB
	// Sink takes samples; nil without a WALDir.
	Sink ingest.Sink

	opts       Options
	trace      *tracer // nil for none
	http       *server
	httpListen net.Listener
	grpc       []grpcServer
}

// grpcServer is a gRPC server on a listener of its own.
type grpcServer struct {
	name   string
	server *grpc.Server
	listen net.Listener
}

// Open opens the default table and both listeners. Nothing is served before
// Run.
func Open(ctx context.Context, o Options) (_ *Daemon, err error) {
	o.Tables.EnsureDefaults()
	if o.bodyTimeout <= 0 {
		o.bodyTimeout = defaultBodyTimeout
	}
	d := &Daemon{Metrics: NewMetrics(), opts: o, trace: o.tracer}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close(context.WithoutCancel(ctx)))
		}
	}()
	if o.Trace {
		if d.trace, err = newTracer(ctx); err != nil {
			return nil, err
		}
	}
	tables := o.Tables
	tables.Observe = func(t *cardinalsin.Options) {
		d.Metrics.observe(t, t.Tenant == tables.Tenant && t.Table == tables.Table)
		d.trace.observe(t)
	}
	d.Metrics.observeStore(&tables.Options)
	if d.Tenants, err = cardinalsin.NewTenants(ctx, tables); err != nil {
		return nil, err
	}
	d.Metrics.observeTenants(d.Tenants)
	if d.DB, err = d.Tenants.OpenDefault(ctx); err != nil {
		return nil, err
	}
	d.http = newServer(d.Metrics.Registry)
	if d.trace != nil {
		d.http.wrap = d.trace.wrap
	}
	if d.httpListen, err = net.Listen("tcp", o.HTTP); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", o.HTTP, err)
	}
	if err = d.routes(); err != nil {
		return nil, err
	}
	return d, nil
}

// routes adds every protocol that writes.
func (d *Daemon) routes() error {
	if d.opts.Tables.WALDir == "" {
		return nil
	}
	logger := d.opts.Tables.Logger
	d.Sink = ingest.New(ingest.Options{
		Tables:        d.Tenants,
		DefaultTenant: d.opts.Tables.Tenant, Table: d.opts.Tables.Table,
		Limits: d.opts.Config.limits,
		Events: d.Metrics.ingestEvents(logger),
	})
	if d.trace != nil {
		d.Sink = d.trace.sink(d.Sink)
	}
	d.handleWrite("POST /api/v1/write", prom.WriteHandler(d.Sink, logger))
	metrics := otlp.Handler(d.Sink, otlp.Options{Logger: logger})
	d.handleWrite("POST /v1/metrics", metrics)
	d.handleWrite("POST /api/v1/otlp/v1/metrics", metrics)
	lines := influx.Handler(d.Sink, influx.Options{Logger: logger})
	for _, path := range influx.Paths() {
		d.handleWrite(path, lines)
	}
	if d.opts.GRPC == "" {
		return nil
	}
	const maxMessage = 64 << 20 // Flight clients send whole record batches
	return d.ServeGRPC("grpc", d.opts.GRPC, maxMessage, func(s *grpc.Server) {
		otlp.Register(s, d.Sink, otlp.Options{Logger: logger})
		flight.Register(s, d.Sink, flight.Options{Table: d.opts.Tables.Table, Logger: logger})
	})
}

// ServeGRPC listens on another address, whose services register adds. Run
// serves it, and says so under the name. maxMessage bounds a message in bytes.
func (d *Daemon) ServeGRPC(name, address string, maxMessage int, register func(*grpc.Server)) error {
	opts := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxConcurrentStreams(256), // of a connection
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.WaitForHandlers(true), // what they use is closed afterwards
	}
	if d.trace != nil {
		opts = append(opts, grpc.StatsHandler(otelgrpc.NewServerHandler()))
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", address, err)
	}
	s := grpc.NewServer(opts...)
	register(s)
	d.grpc = append(d.grpc, grpcServer{name, s, l})
	return nil
}

// Handle adds a handler for a pattern of net/http. Its requests are counted
// under the pattern.
func (d *Daemon) Handle(pattern string, h http.Handler) {
	d.http.mux.Handle(pattern, d.Metrics.count(pattern, h))
}

// defaultBodyTimeout is how long a client may take to send a body, so that
// those who send none do not hold what a request may take.
const defaultBodyTimeout = time.Minute

// handleWrite is Handle for what reads large bodies.
func (d *Daemon) handleWrite(pattern string, h http.Handler) {
	d.Handle(pattern, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := http.NewResponseController(w).SetReadDeadline(time.Now().Add(d.opts.bodyTimeout)); err != nil {
			d.opts.Tables.Logger.Error("bound the time of a body", "err", err)
		}
		h.ServeHTTP(w, r)
	}))
}

// PerTenant serves each request by the handler of its tenant's table. build
// makes that on the first request; closer, if not nil, is called before the
// table is closed. refuse answers where there is no table.
func (d *Daemon) PerTenant(build func(*cardinalsin.DB) (h http.Handler, closer func() error, err error), refuse func(w http.ResponseWriter, code int, err error)) http.Handler {
	key := new(int) // one of its own for each call
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		db, release, err := d.Tenants.Get(r.Context(), r.Header.Get(ingest.TenantHeader), "")
		if err != nil {
			refuse(w, openStatus(err), err)
			return
		}
		defer release()
		h, err := db.Attach(key, func() (any, func() error, error) { return build(db) })
		if err != nil {
			refuse(w, http.StatusServiceUnavailable, err)
			return
		}
		h.(http.Handler).ServeHTTP(w, r)
	})
}

// openStatus is the HTTP status for a table that cannot be opened to read.
func openStatus(err error) int {
	switch {
	case errors.Is(err, txlog.ErrNotTable):
		return http.StatusNotFound
	case errors.Is(err, cardinalsin.ErrInvalidName):
		return http.StatusBadRequest
	}
	_, status := ingest.Classify(err)
	return status
}

// HTTPAddr is where HTTP is served.
func (d *Daemon) HTTPAddr() string { return d.httpListen.Addr().String() }

// Run serves until ctx ends, says on stdout when it does, and then stops in
// good order: requests end, heads are flushed, tables closed. It must be
// called once.
func (d *Daemon) Run(ctx context.Context, stdout io.Writer) error {
	work, ctx := errgroup.WithContext(ctx)
	ready := "ready http=" + d.HTTPAddr()
	work.Go(func() error { return d.Tenants.Run(ctx) })
	work.Go(func() error { return d.http.serve(ctx, d.httpListen) })
	if d.Sink != nil && d.opts.Config.Scrape != nil {
		work.Go(func() error {
			return scrape.Run(ctx, d.opts.Config.Scrape, d.Sink, scrape.Options{Registry: d.Metrics.Registry, Logger: d.opts.Tables.Logger})
		})
	}
	for _, g := range d.grpc {
		ready += " " + g.name + "=" + g.listen.Addr().String()
		work.Go(func() error { return g.serve(ctx) })
	}
	d.http.ready.Store(true)
	err := cli.Printf(stdout, "%s\n", ready)
	return errors.Join(err, work.Wait(), d.Close(context.WithoutCancel(ctx)))
}

// serve answers until ctx ends, and then lets running calls finish for a
// while.
func (g *grpcServer) serve(ctx context.Context) error {
	failed := make(chan error, 1)
	go func() { failed <- g.server.Serve(g.listen) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve %s: %w", g.name, err)
	case <-ctx.Done():
	}
	hurry := time.AfterFunc(stopGrace, g.server.Stop)
	defer hurry.Stop()
	g.server.GracefulStop()
	if err := <-failed; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve %s: %w", g.name, err)
	}
	return nil
}

// Close gives back what Open has taken, whatever that is. Run calls it.
func (d *Daemon) Close(ctx context.Context) error {
	var errs []error
	var listeners []net.Listener
	if d.httpListen != nil {
		listeners = append(listeners, d.httpListen)
	}
	for _, g := range d.grpc {
		listeners = append(listeners, g.listen)
	}
	for _, l := range listeners {
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, fmt.Errorf("close listener: %w", err))
		}
	}
	if d.Tenants != nil {
		errs = append(errs, d.Tenants.Close(ctx))
	}
	errs = append(errs, d.trace.close(ctx))
	return errors.Join(errs...)
}
