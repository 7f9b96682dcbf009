// Package vacuum is the only code that deletes objects of a table: data files
// that no readable version names, orphans that nobody can commit any more,
// segments of the index that are replaced, and what the log no longer needs.
//
// It stands on layer 5. It rests on three agreements with others
// (log-protocol 5 and 6): readers write their pin before they read the
// watermark, vacuum commits the watermark before it reads the pins, and
// committers refuse files whose upload began too long ago. [Margins] names
// every span of time that those agreements need.
//
// An executing run:
//
//  1. commits VACUUM START, which raises the watermark to the oldest version
//     inside retention. Nothing is listed before that.
//  2. reads the pins, revokes expired ones, and so knows the earliest version
//     that anyone may read.
//  3. collects the files that commits up to that version removed and that no
//     later commit added again. It reads the commits since the last finished
//     run, all of which are kept for it, so no file is ever overlooked.
//  4. in a full run lists the data, and collects orphans.
//  5. collects log objects below the newest sound checkpoint that lies at or
//     before the point which the last finished run had settled.
//  6. deletes, and commits VACUUM END with the figures.
//
// A crash leaves objects that the next run finds again: nothing that a run
// has to know lives outside the log, and the log is trimmed only up to where
// the last *finished* run had come.
//
// The domain cardinal.vacuum (txlog.VacuumDomain) holds, as JSON:
//
//	deleted_through  number: files that commits up to this version removed
//	                 are deleted, unless a later one added them again
//	timestamp        number: that version's in-commit timestamp, ms
//
// INVARIANT: no file is deleted that is live in a version which someone may
// still read, or that may still be committed. It must never touch an object
// under a name that begins with an underscore, the log's own, expired pins and
// segments of the index excepted.
package vacuum

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"cardinalsin/action"
	"cardinalsin/lease"
	"cardinalsin/txlog"
)

// NoRetention as Options.Retain keeps the latest version only, and those that
// are pinned.
const NoRetention time.Duration = -1

// Conditions a caller branches on.
var (
	// ErrMarginTooSmall: an option is below its safety margin, and
	// AllowShortRetention is not set.
	ErrMarginTooSmall = errors.New("below the safety margin")
	// ErrSuperseded: another run finished meanwhile and trimmed the log that
	// this one was reading. Nothing is wrong; run again if need be.
	ErrSuperseded = fmt.Errorf("%w: superseded by another vacuum run", txlog.ErrConflict)
)

// Margins are the spans of time that keep vacuum from deleting what someone
// still needs. The zero value of each stands for its default. Those of pins
// are not among them: lease.TTL and lease.Grace are promises to the readers,
// and only package lease may revoke by them.
type Margins struct {
	// Retain is the least retention that is accepted without
	// AllowShortRetention. Default 1 hour: readers of other engines hold no
	// pins, and a query of theirs may well take minutes.
	Retain time.Duration
	// OrphanAge is how old an unnamed file must be to count as an orphan.
	// Default DefaultOrphanAge. Committers refuse files whose upload began
	// half of it ago, and the other half covers clocks that run at different
	// speeds, time stamps of whole seconds, and machines that stood still.
	OrphanAge time.Duration
	// LogAge is how old a log object must be. Default txlog.MinLogAge: a
	// process that was asleep for less takes an absent next version as proof
	// that it was never committed, so none may vanish that early.
	LogAge time.Duration
}

// DefaultOrphanAge is the age from which an unnamed file is an orphan.
// Whoever commits files requires txlog.UploadedSince with at most half of it.
const DefaultOrphanAge = 24 * time.Hour

// Options configure a run; the zero value is the safe one.
type Options struct {
	// Retain is how long a version stays readable after it was replaced.
	// Default 168 hours; NoRetention for none.
	Retain time.Duration
	// Full also looks for orphans, at the price of listing all data.
	Full bool
	// AllowShortRetention accepts values below their margins: for tests, and
	// for who knows that no other engine reads and nobody else writes.
	AllowShortRetention bool
	Margins             Margins
	// MaxFiles bounds the removed files that one run takes on, and so its
	// memory; the next run goes on. Default 500,000.
	MaxFiles int
	// Parallel is the number of requests in flight. Default 16.
	Parallel int
	// Logger reports what is found amiss and left alone. Default discards.
	Logger *slog.Logger
	Events Events
}

// Events are optional observers.
type Events struct {
	// VacuumEnd is called when an executing run ends, with what it did; err
	// is nil if it finished.
	VacuumEnd func(r Report, err error)
}

// EnsureDefaults fills in what is unset.
func (o *Options) EnsureDefaults() {
	setDefault := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	setDefault(&o.Retain, 168*time.Hour)
	if o.Retain < 0 {
		o.Retain = NoRetention
	}
	setDefault(&o.Margins.Retain, time.Hour)
	setDefault(&o.Margins.OrphanAge, DefaultOrphanAge)
	setDefault(&o.Margins.LogAge, txlog.MinLogAge)
	if o.MaxFiles <= 0 {
		o.MaxFiles = 500_000
	}
	if o.Parallel <= 0 {
		o.Parallel = 16
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// Validate refuses values below the margins, with ErrMarginTooSmall naming
// the margin, unless they are explicitly allowed.
func (o *Options) Validate() error {
	if o.AllowShortRetention {
		return nil
	}
	for _, m := range []struct {
		name        string
		have, least time.Duration
	}{
		{"retention", o.Retain, max(o.Margins.Retain, time.Hour)},
		{"age of orphans", o.Margins.OrphanAge, DefaultOrphanAge},
		{"age of log objects", o.Margins.LogAge, txlog.MinLogAge},
	} {
		if m.have < m.least {
			return fmt.Errorf("%w: %s is %v, the least is %v", ErrMarginTooSmall, m.name, max(m.have, 0), m.least)
		}
	}
	return nil
}

// retain is the retention as a span.
func (o *Options) retain() time.Duration { return max(o.Retain, 0) }

// Object is one object to delete.
type Object struct {
	Key   string
	Bytes int64 // 0 where unknown
	// Version is the commit that removed a file, or that a log object belongs
	// to; -1 for an orphan.
	Version action.Version
}

// Plan is what a run would delete. It is a preview, made without a write:
// Execute commits its start first and then decides anew, since only what is
// read after that commit counts.
type Plan struct {
	Version   action.Version // the latest, on which the plan rests
	Horizon   action.Version // oldest version inside retention
	Watermark action.Version // oldest version that may be opened after a run
	Earliest  action.Version // oldest version that anyone may be reading
	Settled   action.Version // the last finished run came this far; -1: none
	// Reaches is how far this plan goes: Earliest, or less if MaxFiles ends
	// it before.
	Reaches    action.Version
	Pins       []lease.Pin // in key order; expired ones would be revoked
	Files      []Object    // removed files, in key order
	Orphans    []Object    // in key order; nil unless Full
	Segments   []Object    // of the index, in key order
	LogObjects []Object    // in version order

	log       *txlog.Log
	opts      Options
	rules     rules
	reachedAt int64 // in-commit timestamp of Reaches
	revoked   int   // pins
}

// NewPlan decides what a run would delete now. It only reads: the log's
// commits since the last finished run, the pins, and with Full all names of
// data. Errors: ErrMarginTooSmall, action.ErrCorrupt, storage errors.
func NewPlan(ctx context.Context, log *txlog.Log, opts Options) (*Plan, error) {
	opts.EnsureDefaults()
	if err := opts.Validate(); err != nil {
		return nil, fmt.Errorf("plan vacuum: %w", err)
	}
	p := &Plan{log: log, opts: opts, rules: theRules()}
	if err := p.preview(ctx); err != nil {
		return nil, fmt.Errorf("plan vacuum: %w", err)
	}
	return p, nil
}

func (p *Plan) preview(ctx context.Context) error {
	base, err := p.log.Snapshot(ctx, txlog.Latest())
	if err != nil {
		return err
	}
	now, err := p.log.Store().Now(ctx)
	if err != nil {
		return fmt.Errorf("read the store's clock: %w", err)
	}
	if err := p.aim(ctx, base, now); err != nil {
		return err
	}
	return p.collect(ctx, base, now, false)
}
