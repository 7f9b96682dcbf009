// Package writer takes batches in, makes them durable in the WAL, serves them
// from the head, and flushes them into the table, one commit a flush.
//
// It stands on layer 5, above wal, chunk and txlog. One Writer serves one
// table under one identity, that of its WAL directory. It never deletes an
// object, and it acknowledges nothing that is not in the WAL.
//
// INVARIANT: every acknowledged sample is readable, from the head or from the
// table, and is in the table once (log-protocol 4).
//
// # Append
//
//  1. Validate the whole batch; one bad part refuses all of it.
//  2. Encode the WAL record, in the caller's goroutine.
//  3. Queue. The first in the queue writes for all that wait: one write and
//     one fsync a group. DURABILITY POINT: the fsync.
//  4. Insert into the head, in the order of the sequences. While one group is
//     inserted the next is being written.
//  5. Acknowledge.
//
// A crash before 3's fsync ends leaves nothing that was acknowledged; one
// after it leaves the records in the WAL, acknowledged or not, and recovery
// brings them back.
//
// # Flush
//
//  1. Seal the head: a contiguous range of sequences.
//  2. Route by the shard map of the latest known version and by UTC date,
//     sort, encode a chunk for each (date, shard).
//  3. Put the chunks under names never used before. A crash here leaves
//     orphans, which vacuum removes; the WAL still has everything.
//  4. COMMIT POINT: one transaction with all adds, the new columns, and
//     txn{cardinal/writer/<uuid>, last sequence}. It requires that the
//     writer's sequence is what we left it at, that the shard map is the one
//     we routed by, that our columns clash with none that came meanwhile, and
//     that the chunks are too young for vacuum.
//  5. Truncate the WAL through that sequence. A crash before it leaves
//     records that the table has; recovery replays only what follows txn, and
//     truncates again.
//  6. Drop the sealed head. A reader that took the head before this and the
//     version after the commit has both; the merge rule makes them one.
//
// # Limits
//
// From half of a limit on (head, age of what is not in the table, uncompacted
// files of a partition) batches are slowed, the more the nearer it is; at the
// limit they are refused with ErrOverloaded.
//
// A full head is no limit while the store takes no flushes. Then batches go
// into the WAL alone, until that is full, too; the heads keep what they have,
// and every view says that it is incomplete. When a flush succeeds again, the
// records that are only in the WAL are read back piece by piece, each flushed
// before the next is read, while new batches queue up behind them in the WAL;
// when none is left, batches go into the head again. So memory is bounded by
// the head, loss by nothing but the WAL, and the store sees one flush at a
// time.
//
// A flush that fails anywhere leaves the head and the WAL as they were, and is
// tried again from 2 on, under new names. When it is not known whether a
// commit happened, nothing else is done before the latest version tells: by
// the writer's txn, and by comparing the rows it added with those in the head,
// since under the same identity another process could have moved it. That
// also recognises a commit whose request outlived the process that sent it.
package writer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/series"
	"cardinalsin/shard"
	"cardinalsin/txlog"
	"cardinalsin/wal"
)

// Conditions a caller branches on. An Append that fails with none of these,
// nor with an error of series.Validate, ErrInvalidSample,
// ErrTooManyPartitions or wal.ErrRecordTooLarge, may succeed later:
// wal.ErrFull when there is space again, wal.ErrFailed when the WAL has been
// opened anew. txlog.ErrFenced is terminal.
var (
	// ErrInvalidSample: a timestamp outside series.MinTimestamp to
	// MaxTimestamp, more than 999 nanoseconds, or a histogram above 8 MiB. It
	// will never be accepted.
	ErrInvalidSample = errors.New("invalid sample")
	// ErrTooManyPartitions: a batch spans more days and shards than one
	// commit can hold files for. Split it by time.
	ErrTooManyPartitions = errors.New("batch spans too many days")
	// ErrOverloaded: the head or the queue is full, or flushes have failed
	// for too long. Nothing was stored; try again after a while.
	ErrOverloaded = errors.New("writer overloaded")
	// ErrClosed: Close was called.
	ErrClosed = errors.New("writer closed")
)

// AppPrefix and the WAL's identity make the appId under which a writer records
// its progress in the table.
const AppPrefix = "cardinal/writer/"

// Options configure a Writer; the zero value is useful.
type Options struct {
	// FlushAge is how long an acknowledged sample waits for its flush, if
	// flushes succeed. Default 10 s.
	FlushAge time.Duration
	// FlushBytes is the memory of the head from which it is flushed at once.
	// Default 128 MiB: at half of that, 200,000 series are flushed with one or
	// two samples each, which took a fifth more CPU a sample.
	FlushBytes int64
	// MaxHeadBytes is the memory of the head, and of what waits to enter it,
	// above which batches are refused; while the store takes no flushes they
	// are kept in the WAL alone instead. Default 4 times FlushBytes.
	MaxHeadBytes int64
	// Budget, if set, is shared with other writers and bounds all heads
	// together in the same way.
	Budget *Budget
	// MaxQueueBytes bounds the batches that wait for the WAL, measured by
	// what they may add to the head. Default 64 MiB; one batch always fits.
	MaxQueueBytes int64
	// MaxUnflushedAge is the age of the oldest sample that is not in the
	// table from which batches are refused. Default 24 hours.
	MaxUnflushedAge time.Duration
	// MaxLevelZero is the number of uncompacted files in one partition from
	// which batches are refused: every query has to open them all. Default
	// 2000.
	MaxLevelZero int
	// MaxDelay is the longest that a batch waits when the writer is near one
	// of these limits; from half of a limit on the wait grows with the square
	// of what is used of the other half. Default 1 s.
	MaxDelay time.Duration
	// MinOrphanAge is vacuum's MinAge; uploads older than half of it are not
	// committed. Default 24 hours.
	MinOrphanAge time.Duration
	// MaxLabelColumns is the number of labels that get a column. Default
	// chunk.DefaultMaxLabels.
	MaxLabelColumns int
	// Uploads is the number of chunks uploaded at once. Default 4.
	Uploads int
	// RetryMin and RetryMax bound the pause that Run makes after a flush that
	// failed; it doubles each time, less up to half at random. Defaults 1 s
	// and 30 s.
	RetryMin, RetryMax time.Duration
	// Chunk shapes the files.
	Chunk chunk.Options
	// Now is the local clock; it only measures intervals. Default time.Now.
	Now func() time.Time
	// Logger reports what Run tries again. Default discards.
	Logger *slog.Logger
	Events Events

	limits limits // of a commit; tests lower them
}

// EnsureDefaults fills in what is unset.
func (o *Options) EnsureDefaults() {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&o.FlushAge, 10*time.Second)
	def(&o.MaxUnflushedAge, 24*time.Hour)
	def(&o.MinOrphanAge, 24*time.Hour)
	def(&o.MaxDelay, time.Second)
	def(&o.RetryMin, time.Second)
	def(&o.RetryMax, max(30*time.Second, o.RetryMin))
	if o.FlushBytes <= 0 {
		o.FlushBytes = 128 << 20
	}
	if o.MaxHeadBytes <= 0 {
		o.MaxHeadBytes = 4 * o.FlushBytes
	}
	if o.MaxQueueBytes <= 0 {
		o.MaxQueueBytes = 64 << 20
	}
	if o.MaxLevelZero <= 0 {
		o.MaxLevelZero = 2000
	}
	if o.MaxLabelColumns <= 0 {
		o.MaxLabelColumns = chunk.DefaultMaxLabels
	}
	if o.Uploads <= 0 {
		o.Uploads = 4
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.limits == (limits{}) {
		o.limits = limits{rows: maxPartRows, files: maxPartFiles}
	}
}

// Events are optional observers; each is called synchronously and must be
// quick and safe for concurrent use.
type Events struct {
	AppendEnd func(AppendEvent)
	FlushEnd  func(FlushEvent)
}

// AppendEvent reports one Append.
type AppendEvent struct {
	Series, Samples int
	Bytes           int // of the WAL record; 0 if none was made
	// Delay is what back-pressure had it wait, Queued from then on until its
	// group was written; both are in Duration.
	Delay, Queued time.Duration
	Duration      time.Duration
	Err           error
}

// FlushEvent reports one commit of a flush, or the failure of one.
type FlushEvent struct {
	// Version that holds the rows; meaningless with an error.
	Version action.Version
	// First and Last WAL sequence, inclusive; 0 if it failed before it knew.
	First, Last wal.Sequence
	Rows        int64
	Files       int
	Bytes       int64 // of the files
	Conflicts   int   // attempts that had to be planned anew
	// Upload is the time that it took to encode and put the files, Commit that
	// of the commit, both of the last attempt.
	Upload, Commit time.Duration
	Duration       time.Duration
	Err            error
}

// WAL is what a Writer needs of a log; *wal.Log is one. Another may be whatever
// keeps numbered records under an identity of its own, as an import's input
// does: what the table has under that identity is not taken a second time.
// The methods have the meaning and the errors of those of *wal.Log, and may
// be called concurrently. What Replay gives for a sequence must always be the
// same, bit for bit.
type WAL interface {
	Writer() wal.WriterID
	LastSequence() wal.Sequence
	Bytes() int64
	Append([]wal.Record) (first, last wal.Sequence, err error)
	Replay(after wal.Sequence, fn func(wal.Sequence, series.Batch) error) error
	Sync() error
	Truncate(through wal.Sequence) error
}

var _ WAL = (*wal.Log)(nil)

// Writer appends to one table under one identity. Its methods may be called
// concurrently.
type Writer struct {
	log  *txlog.Log
	wal  WAL
	opts Options
	app  string // appId of its progress in the table

	// queueMu guards the batches on their way into the WAL.
	queueMu    sync.Mutex
	queue      []*pending
	queueBytes int64 // of what is in the queue or being written
	leading    bool  // somebody writes a group, or was told to
	stopped    error // why nothing is accepted any more
	appends    sync.WaitGroup

	// insertMu serialises what changes the heads: inserts and seals. The
	// leader of a group takes it before it lets the next one write, so that
	// groups are inserted in the order of their sequences.
	insertMu     sync.Mutex
	inserted     wal.Sequence // last that is, or was, in the heads
	acknowledged wal.Sequence // last in the WAL, as far as its leader came
	released     bool         // the head no longer counts for the budget

	// mu guards what makes a view, which changes under insertMu too.
	mu     sync.RWMutex
	active *head
	sealed *head // being flushed; nil if none is
	// spilled: the records after inserted are in the WAL only.
	spilled      bool
	spilledSince time.Time // local clock

	headBytes atomic.Int64              // of both heads
	oldest    atomic.Pointer[time.Time] // arrival of the oldest sample in them or spilled; nil if there is none
	shards    atomic.Pointer[shard.Map] // of base
	based     atomic.Pointer[time.Time] // when base was taken
	levelZero atomic.Int64              // most uncompacted files of a partition in base
	short     atomic.Bool               // the WAL is full
	stale     atomic.Bool               // batches are refused because of levelZero
	flushed   atomic.Uint64             // committed
	// flushBegan and commitBegan are when the part under way began and when it
	// was offered to the log, nil while there is none; failing: the last one
	// failed.
	flushBegan, commitBegan atomic.Pointer[time.Time]
	failing                 atomic.Bool

	wake chan struct{} // tells Run that something became due sooner

	// flushing holds a token for whoever flushes, who owns the fields below.
	flushing  chan struct{}
	base      *txlog.Snapshot // what the next flush is planned on; its txn of ours is committed
	committed wal.Sequence    // last in the table
	truncated wal.Sequence    // last that the WAL was truncated through
	pile      *pile           // uncompacted files of base
	order     int64           // last flush number; no file in base with rows of ours ranks above it
	doubtful  bool            // the table may have moved: settle first
	fenced    error           // terminal
}

// Open recovers a writer: it reads the writer's progress from the latest
// version, replays the WAL after it into the head, and truncates what the
// table has. If the WAL holds more than FlushBytes of it, it flushes on the
// way. The WAL stays the caller's to close, after the Writer. log must have
// the table's shard map.
//
// Errors: txlog.ErrFenced together with wal.ErrSequenceGap when the table is
// ahead of the WAL, which then is not, or not all of, the one that wrote it;
// *wal.CorruptionError; chunk.ErrSchema; shard.ErrInvalidMap; txlog.ErrReadOnly
// with the first flush; those of the store and of the disk.
func Open(ctx context.Context, log *txlog.Log, l WAL, opts Options) (*Writer, error) {
	opts.EnsureDefaults()
	w := &Writer{
		log: log, wal: l, opts: opts,
		app:      AppPrefix + l.Writer().String(),
		active:   newHead(),
		pile:     newPile(),
		wake:     make(chan struct{}, 1),
		flushing: make(chan struct{}, 1),
	}
	if err := w.recover(ctx); err != nil {
		return nil, fmt.Errorf("open writer %s: %w", l.Writer(), err)
	}
	return w, nil
}

func (w *Writer) recover(ctx context.Context) error {
	snap, err := w.log.Snapshot(ctx, txlog.Latest())
	if err != nil {
		return err
	}
	if err := w.setBase(snap); err != nil {
		return err
	}
	w.committed = w.progress(snap)
	w.flushed.Store(uint64(w.committed))
	w.inserted, w.acknowledged = w.committed, w.committed
	if last := w.wal.LastSequence(); last < w.committed {
		return fmt.Errorf("%w: %w: the table has its records up to %d, the wal ends at %d", txlog.ErrFenced, wal.ErrSequenceGap, w.committed, last)
	}
	for {
		err := w.replay(ctx, false)
		if err == nil {
			break
		}
		if !errors.Is(err, errPause) {
			return err
		}
		if err := w.Flush(ctx); err != nil {
			return err
		}
	}
	return w.truncate()
}

// progress is the last sequence that a version has of ours.
func (w *Writer) progress(s *txlog.Snapshot) wal.Sequence {
	t, _ := s.Transaction(w.app)
	return wal.Sequence(max(t.Version, 0))
}

// Identity is the writer's, as its WAL directory keeps it.
func (w *Writer) Identity() wal.WriterID { return w.wal.Writer() }

// Close refuses further batches, waits for those on their way, and flushes
// what is left. When it fails everything is still in the WAL, and it may be
// called again. It does not close the WAL. Either way the head no longer counts
// for Options.Budget. Errors: those of Flush.
func (w *Writer) Close(ctx context.Context) error {
	w.stop(ErrClosed)
	w.appends.Wait()
	defer w.release()
	if err := w.Flush(ctx); err != nil {
		return fmt.Errorf("close writer: %w", err)
	}
	return nil
}

// stop refuses further batches for that reason, unless there is one already;
// being fenced outranks being closed.
func (w *Writer) stop(reason error) {
	w.queueMu.Lock()
	defer w.queueMu.Unlock()
	if w.stopped == nil || errors.Is(reason, txlog.ErrFenced) {
		w.stopped = reason
	}
	w.wakeRun()
}

// wakeRun lets Run look again at what is due.
func (w *Writer) wakeRun() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}
