// Package reader opens views of a table: one version, pinned so that its
// files stay, with the head of a writer on top.
//
// It stands on layer 5: planner says which files, chunk reads them, merge
// joins them with the head, lease holds the pin. It writes nothing but the
// pin, and never deletes.
//
// INVARIANT: what a view returns is the whole truth of its version, or an
// error: never a part, and never an older or a newer version's files. A view
// whose pin is lost returns lease.ErrPinLost and nothing else.
package reader

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync/atomic"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/index"
	"cardinalsin/internal/lru"
	"cardinalsin/internal/merge"
	"cardinalsin/lease"
	"cardinalsin/planner"
	"cardinalsin/series"
	"cardinalsin/storage"
	"cardinalsin/txlog"
)

// ErrClosed: the view was closed before or during the call.
var ErrClosed = errors.New("view is closed")

// HeadView is a frozen view of what a writer has accepted and not yet
// committed, or committed lately. Its methods may be called concurrently.
type HeadView interface {
	// Select yields matching series in the order of series.Compare with
	// samples strictly ascending by (Time, Nanos), also as Floats. Series is the
	// same for who wants only the labels: what samples there are means nothing.
	Select(series.Selector) iter.Seq[merge.Series]
	Series(series.Selector) iter.Seq[merge.Series]
	// LabelNames and LabelValues tell of the series that Select would yield, in
	// any order, each text once.
	LabelNames(series.Selector) []string
	LabelValues(name string, sel series.Selector) []string
	// Range covers its samples; ok is false where there are none.
	Range() (r series.TimeRange, ok bool)
	// Err is not nil where the view lacks something that was acknowledged:
	// the latest version is then not to be read.
	Err() error
}

// Ranges reads ranges of immutable objects. It may be used concurrently.
type Ranges interface {
	// ReadRange reads exactly length bytes from offset of an object of the
	// given size. The slice is not changed by the caller. Errors are those of
	// storage.Store.GetRange.
	ReadRange(ctx context.Context, store storage.Store, key string, size, offset, length int64) ([]byte, error)
}

// Options configure a Reader; the zero value reads committed data only.
type Options struct {
	// Head returns the writer's head; nil, also as its result, means that
	// there is none in this process.
	Head func() HeadView
	// Ranges is what data files are read through, as a cache; nil: the store.
	Ranges Ranges
	// Index finds series without reading files; nil: there is none.
	Index *index.Index
	// FooterBytes bounds the footers that are kept between queries. Default
	// 64 MiB.
	FooterBytes int64
	// Pages keeps decoded samples between queries; readers of one store may
	// share it. Default: 256 MiB of its own.
	Pages *chunk.Pages
	// Reads is the number of ranged reads in flight, over all views: a file of
	// each day of a month in one wave, and some. Default 64.
	Reads int
}

// EnsureDefaults fills in what is unset.
func (o *Options) EnsureDefaults() {
	if o.Reads <= 0 {
		o.Reads = 64
	}
	if o.FooterBytes <= 0 {
		o.FooterBytes = 64 << 20
	}
	if o.Pages == nil {
		o.Pages = chunk.NewPages(256 << 20)
	}
}

// factBytes bounds what is kept of the statistics of files: of some ten
// thousand, which is more than a query should ask for.
const factBytes = 32 << 20

// Reader opens views of one table. It may be used concurrently.
type Reader struct {
	log   *txlog.Log
	pins  *lease.Pins
	opts  Options
	reads chan struct{} // a place for each read in flight
	// footers of files that were read lately
	footers footers
	planner *planner.Planner
	rules   rules

	// seen is the greatest version that a snapshot of this reader had, -1
	// before the first.
	seen atomic.Int64
}

// rules takes single rules of log-protocol 5 out. It is always zero but in the
// tests that show what each rule prevents.
type rules struct {
	watermarkFirst   bool // read the watermark before the pin is written
	noWatermarkCheck bool
	noFence          bool
	snapshotFirst    bool // take the head after the snapshot
}

// New returns a reader. Without pins (nil) its views are not protected from
// vacuum: that is for tables that no vacuum of ours works on, such as those
// of other engines.
func New(log *txlog.Log, pins *lease.Pins, opts Options) *Reader {
	opts.EnsureDefaults()
	r := &Reader{log: log, pins: pins, opts: opts, reads: make(chan struct{}, opts.Reads), footers: footers{files: lru.New[string, *chunk.File](opts.FooterBytes)}, planner: planner.New(factBytes)}
	r.seen.Store(-1)
	return r
}

// Log is the table's log.
func (r *Reader) Log() *txlog.Log { return r.log }

// View is the table at one version. It may be used concurrently. It must be
// closed: until then its files cannot be vacuumed.
type View struct {
	reader   *Reader
	snapshot *txlog.Snapshot
	head     HeadView
	hold     *lease.Hold // nil: not pinned
	closed   atomic.Bool
}

// At opens a view. The latest version comes with the head, if this process
// has one, and holds every sample that was acknowledged here, and every
// version that was committed anywhere, before the call; a past version has no
// head. Cost for the latest: one GET and one more a new version, and no
// request for the pin while it is fresh and covers what this reader has seen.
// A past version costs a cold load. Errors: txlog.ErrVersionNotFound,
// txlog.ErrVersionVacuumed (a *txlog.VacuumedError), lease.ErrPinLost,
// action.ErrCorrupt, that of the head, storage errors.
func (r *Reader) At(ctx context.Context, at txlog.At) (*View, error) {
	v := &View{reader: r}
	open := v.openPast
	if at.IsLatest() {
		open = v.openLatest
	}
	if err := open(ctx, at); err != nil {
		v.Close()
		return nil, fmt.Errorf("open view: %w", err)
	}
	return v, nil
}

// openLatest opens the latest version and the head.
//
// The head comes first. A flush that commits between the two is then in both,
// and merges away; in the other order it would be in neither.
//
// The pin comes before the refresh, on a version (base) that is not above the
// one which the refresh will find (v). So the one refresh gives the snapshot
// and is the watermark's read of log-protocol 5(b) too:
//
//   - When Hold has returned, a write of a pin at min ≤ base is acknowledged,
//     by this call or by an earlier one, and no later write raises it above
//     base while it is held.
//   - The refresh begins after that and finds v ≥ base ≥ min, so the pin covers
//     v, and the watermark in v is that of the latest version.
//   - A vacuum that has committed its start by then has committed a watermark
//     of at most v, which admit compares. One that commits later lists the
//     pins after its commit, hence after our acknowledgement, and sees ours.
//
// To refresh first and then find the pin covering v would not do: it may have
// been written for another view meanwhile, after a vacuum had listed the pins,
// and only a refresh after that write tells.
func (v *View) openLatest(ctx context.Context, _ txlog.At) error {
	r := v.reader
	if !r.rules.snapshotFirst {
		if err := v.takeHead(); err != nil {
			return err
		}
	}
	// What the log knows will do as well as what this reader has seen: both
	// were committed, so that the refresh finds no less.
	base := max(action.Version(r.seen.Load()), r.log.Known())
	if r.pins != nil && base < 0 {
		s, err := r.log.Snapshot(ctx, txlog.Latest())
		if err != nil {
			return err
		}
		base = s.Version()
	}
	if !r.rules.watermarkFirst {
		if err := v.pin(ctx, base); err != nil {
			return err
		}
	}
	s, err := r.log.Snapshot(ctx, txlog.Latest())
	if err != nil {
		return err
	}
	if r.rules.snapshotFirst {
		if err := v.takeHead(); err != nil {
			return err
		}
	}
	if err := v.admit(s, s); err != nil {
		return err
	}
	if r.rules.watermarkFirst {
		return v.pin(ctx, s.Version())
	}
	return v.raise(ctx, base)
}

// openPast opens a version that the caller names: find it, pin it, and then
// read the watermark in the latest version.
func (v *View) openPast(ctx context.Context, at txlog.At) error {
	r := v.reader
	s, err := r.log.Snapshot(ctx, at)
	if err != nil {
		return err
	}
	if !r.rules.watermarkFirst {
		if err := v.pin(ctx, s.Version()); err != nil {
			return err
		}
	}
	latest, err := r.log.Snapshot(ctx, txlog.Latest())
	if err != nil {
		return err
	}
	if err := v.admit(s, latest); err != nil {
		return err
	}
	if r.rules.watermarkFirst {
		return v.pin(ctx, s.Version())
	}
	return nil
}

// takeHead returns the error of a head that is not whole: a gap must not pass
// for the truth.
func (v *View) takeHead() error {
	if v.reader.opts.Head == nil {
		return nil
	}
	v.head = v.reader.opts.Head()
	if v.head == nil {
		return nil
	}
	return v.head.Err()
}

// pin makes sure that a pin on version is acknowledged.
func (v *View) pin(ctx context.Context, version action.Version) (err error) {
	if v.reader.pins != nil {
		v.hold, err = v.reader.pins.Hold(ctx, int64(version))
	}
	return err
}

// admit checks the watermark in latest, which was read under the pin, and
// gives the view its snapshot.
func (v *View) admit(s, latest *txlog.Snapshot) error {
	oldest, err := latest.Watermark()
	if err != nil {
		return fmt.Errorf("version %d: %w", int64(latest.Version()), err)
	}
	if s.Version() < oldest && !v.reader.rules.noWatermarkCheck {
		return &txlog.VacuumedError{Version: s.Version(), Oldest: oldest}
	}
	v.snapshot = s
	for {
		seen := v.reader.seen.Load()
		if int64(latest.Version()) <= seen || v.reader.seen.CompareAndSwap(seen, int64(latest.Version())) {
			return nil
		}
	}
}

// raise lets the pin go up from base to the view's version, so that the files
// in between can be vacuumed. While the hold on base is good, so is the new
// one: they are on the same pin. Where the raise fails, base is held on.
func (v *View) raise(ctx context.Context, base action.Version) error {
	if v.hold == nil || base == v.snapshot.Version() {
		return nil
	}
	old := v.hold
	next, err := v.reader.pins.Hold(ctx, int64(v.snapshot.Version()))
	if err != nil {
		return nil //nolint:nilerr // the view is pinned, only lower than need be
	}
	if err := old.Check(); err != nil {
		next.Release()
		return err
	}
	v.hold = next
	old.Release()
	return nil
}

// Version is the view's version.
func (v *View) Version() action.Version { return v.snapshot.Version() }

// Snapshot is the table at that version.
func (v *View) Snapshot() *txlog.Snapshot { return v.snapshot }

// Head is the writer's head, nil for a past version or where this process has
// none. It outranks all files.
func (v *View) Head() HeadView { return v.head }

// Foreign reports that another engine made the table. It has no series, and
// what its columns are called means nothing to us.
func (v *View) Foreign() bool {
	s := v.snapshot
	return !slices.Contains(s.Protocol().WriterFeatures, txlog.ExclusiveFeature) || !slices.Equal(s.Metadata().PartitionColumns, chunk.PartitionColumns())
}

// Plan chooses the files that a selector needs, also by the index where the
// selector picks few series. It may read ranges of the index; of a table that
// is not ours all files are chosen. Errors: chunk.ErrTags, that of ctx.
func (v *View) Plan(ctx context.Context, sel series.Selector) (planner.Scan, error) {
	scan, err := v.reader.planner.Plan(v.snapshot, sel)
	if err != nil {
		return planner.Scan{}, err
	}
	// Whoever reads whole files gains nothing from the places of many series.
	const few = 10_000
	l, err := v.look(ctx, sel, scan, index.Limits{Series: few})
	return l.Scan, err
}

// Check returns an error once nothing may be returned from the view any more:
// lease.ErrPinLost, or ErrClosed. What was read before a Check that returns
// nil is true. It makes no request.
func (v *View) Check() error {
	if v.closed.Load() {
		return ErrClosed
	}
	if v.hold == nil || v.reader.rules.noFence {
		return nil
	}
	return v.hold.Check()
}

// Close gives the pin back. It may be called again, and while the view is in
// use, which then fails with ErrClosed.
func (v *View) Close() {
	v.closed.Store(true)
	if v.hold != nil {
		v.hold.Release()
	}
}
