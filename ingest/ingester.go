package ingest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"cardinalsin/series"
	"cardinalsin/writer"
)

// Tables opens the tables of all tenants. It may be used concurrently.
type Tables interface {
	// Table opens a table to append to, and makes it if there is none. The
	// caller calls release, once, when it is done. Errors: ErrInvalidTenant,
	// writer.ErrOverloaded when too many are open, those of the store and the
	// disk.
	Table(ctx context.Context, tenant, table string) (a Appender, release func(), err error)
}

// Appender takes the samples of one table; see writer.Writer.Append.
type Appender interface {
	Append(ctx context.Context, b series.Batch) error
}

// Options configure an Ingester.
type Options struct {
	// Tables is where everything goes.
	Tables Tables
	// DefaultTenant is whose a request is that names no tenant. Default
	// "default".
	DefaultTenant string
	// Table is the name of the tenants' tables. Default "metrics".
	Table string
	// Limits of a tenant; the zero value of Limits has none. Default none. It
	// is called for each request.
	Limits func(tenant string) Limits
	// Now is the local clock: of the rates, and of the day under which
	// metadata is kept. Default time.Now.
	Now    func() time.Time
	Events Events
}

// EnsureDefaults fills in what is unset.
func (o *Options) EnsureDefaults() {
	if o.DefaultTenant == "" {
		o.DefaultTenant = "default"
	}
	if o.Table == "" {
		o.Table = "metrics"
	}
	if o.Limits == nil {
		o.Limits = func(string) Limits { return Limits{} }
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Events.AppendEnd == nil {
		o.Events.AppendEnd = func(AppendEvent) {}
	}
	if o.Events.Refused == nil {
		o.Events.Refused = func(Protocol, Reason, int) {}
	}
}

// Events are optional observers; each is called synchronously and must be
// quick and safe for concurrent use.
type Events struct {
	// AppendEnd: a request was accepted or refused.
	AppendEnd func(AppendEvent)
	// Refused is what Sink.Refuse was told.
	Refused func(p Protocol, reason Reason, n int)
}

// AppendEvent reports one request.
type AppendEvent struct {
	Tenant                       string
	Protocol                     Protocol
	Samples, Exemplars, Metadata int
	Duration                     time.Duration
	Err                          error  // nil if it was accepted
	Reason                       Reason // with Err
}

// Ingester is the Sink of a process that writes.
type Ingester struct {
	opts Options

	mu      sync.Mutex // guards tenants
	tenants map[string]*tenant
}

// New returns a Sink.
func New(o Options) *Ingester {
	o.EnsureDefaults()
	return &Ingester{opts: o, tenants: map[string]*tenant{}}
}

// Refuse implements Sink.
func (in *Ingester) Refuse(p Protocol, reason Reason, n int) { in.opts.Events.Refused(p, reason, n) }

// Append implements Sink. Samples go first: their writer checks them, and what
// else the request holds was checked before. So a request that can never be
// accepted leaves nothing; one that failed half-way for another reason leaves
// what the next try will write again, to the same rows.
func (in *Ingester) Append(ctx context.Context, tenant string, r *Request) error {
	start := in.opts.Now()
	if tenant == "" {
		tenant = in.opts.DefaultTenant
	}
	ev := AppendEvent{Tenant: tenant, Protocol: r.Protocol, Samples: r.Samples.Samples(), Exemplars: len(r.Exemplars), Metadata: len(r.Metadata)}
	if ev.Err = in.append(ctx, tenant, r, ev.Samples); ev.Err != nil {
		ev.Reason, _ = Classify(ev.Err)
	}
	ev.Duration = in.opts.Now().Sub(start)
	in.opts.Events.AppendEnd(ev)
	return ev.Err
}

func (in *Ingester) append(ctx context.Context, name string, r *Request, samples int) error {
	if err := ValidateTenant(name); err != nil {
		return err
	}
	t, known := in.tenant(name)
	if !known || samples == 0 {
		// No table is made for a request that its writer would refuse.
		if err := check(r.Samples); err != nil {
			return err
		}
	}
	exemplars, err := ExemplarRows(r.Exemplars)
	if err != nil {
		return err
	}
	now := in.opts.Now()
	metadata, err := t.unseen(r.Metadata, now)
	if err != nil {
		return err
	}
	if err := t.admit(r, samples, in.opts.Limits(name), now); err != nil {
		return fmt.Errorf("tenant %s: %w", name, err)
	}
	if samples > 0 {
		if err := in.store(ctx, name, in.opts.Table, r.Samples); err != nil {
			return err
		}
	}
	if len(exemplars)+len(metadata) > 0 {
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return in.store(ctx, name, ExemplarsTable(in.opts.Table), exemplars) })
		g.Go(func() error { return in.store(ctx, name, MetadataTable(in.opts.Table), metadata) })
		if err := g.Wait(); err != nil {
			return err
		}
		t.remember(r.Metadata, now)
	}
	if !known {
		in.keep(name, t)
	}
	return nil
}

// store appends a batch to one table.
func (in *Ingester) store(ctx context.Context, tenant, table string, b series.Batch) error {
	if len(b) == 0 {
		return nil
	}
	a, release, err := in.opts.Tables.Table(ctx, tenant, table)
	if err != nil {
		return fmt.Errorf("open table %s/%s: %w", tenant, table, err)
	}
	defer release()
	return a.Append(ctx, b)
}

// check finds what the writer of a table would refuse in the samples.
func check(b series.Batch) error {
	for i := range b {
		if err := series.Validate(b[i].Labels); err != nil {
			return fmt.Errorf("series %d: %.300s: %w", i, b[i].Labels, err)
		}
		for j := range b[i].Samples {
			if err := writer.CheckSample(&b[i].Samples[j]); err != nil {
				return fmt.Errorf("series %d: %.300s: sample %d: %w", i, b[i].Labels, j, err)
			}
		}
	}
	return nil
}

// ValidateTenant accepts what may be one element of a path: 1 to 128 of
// A–Z a–z 0–9 . _ -, not beginning with "." or "_". Its error wraps
// ErrInvalidTenant.
func ValidateTenant(name string) error {
	ok := len(name) >= 1 && len(name) <= 128 && name[0] != '.' && name[0] != '_'
	for _, c := range []byte(name) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("._-", c) >= 0)
	}
	if !ok {
		return fmt.Errorf("%w: %.200q", ErrInvalidTenant, name)
	}
	return nil
}
