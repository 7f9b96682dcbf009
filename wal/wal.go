// Package wal is the local durable record of accepted batches until a version
// of the table covers them.
//
// It stands on layer 1 and imports only series. A writer appends groups of
// records, acknowledges its clients once Append has returned, replays the log
// after a crash, and truncates it behind each commit.
//
// INVARIANT: a record that Append acknowledged is replayed, bit for bit and
// under the same sequence, until Truncate names that sequence; and no sequence
// is given to two acknowledged records, also across restarts and truncations.
// The package must never return bytes it cannot vouch for: what fails its
// checksum is either a torn tail, which was never acknowledged and is trimmed,
// or a *CorruptionError.
//
// # Directory
//
//	LOCK              locked by flock for as long as a Log is open
//	writer.id         the writer's UUID as text, and a newline
//	%020d.wal         segments, named by the first sequence they may hold
//	*.tmp             files not yet renamed into place; removed by Open
//
// Sequences run from 1 without gaps, also from one segment to the next. The
// last segment takes the appends and is never deleted, so that its header
// keeps the counter when every record is gone.
//
// A directory with an identity and no segment gets a new identity: with the
// segments the counter is lost, and a sequence used twice would be taken for
// one that the table already holds. Segments without an identity are an error.
//
// # Segment
//
// Numbers are little-endian. The header keeps its layout in every version.
//
//	offset size field
//	     0    8 magic "CARDWAL\n"
//	     8    2 format version, 1
//	    10    2 zero
//	    12   16 UUID of the writer
//	    28    8 first sequence
//	    36    4 CRC32C (Castagnoli) of bytes 0–35
//
// Frames follow, each:
//
//	offset size field
//	     0    4 length of what follows the checksum: 18 + payload
//	     4    4 CRC32C of the length and of what follows the checksum, continued
//	            from the header's: a frame of another segment does not pass
//	     8    1 kind: 1 batch, 2 seal
//	     9    1 codec of the payload: 0 none, 1 s2
//	    10    8 sequence; of a seal, the last one in the segment
//	    18    8 synced: bytes of this segment that were durable before this
//	            frame was written
//	    26    … payload
//
// A seal ends a segment that was closed in good order. Every segment but the
// last has one; the last has one after Close.
//
// The payload of a batch, before compression ("uv" is a uvarint):
//
//	flags            1 byte: 1 nanos column, 2 histogram column, 4 start column
//	strings          uv count, uv length of each, then the bytes of all;
//	                 names and values in order of first use
//	series           uv count; for each: uv labels, then for each label
//	                 uv name and uv value, both places in the strings
//	sample counts    uv for each series
//	timestamps       for each sample of all series: zigzag varint of the
//	                 difference in µs to the one before, the first from 0
//	values           8 bytes each, the bits of the float
//	nanos            uv for each sample, if flagged
//	histograms       for each sample, if flagged: uv 0 for none, else
//	                 length+1 and the bytes
//	starts           for each sample, if flagged: zigzag varint of the
//	                 difference in ns to the one before, the first from 0
//
// The codec is s2: on a scrape of 12 labels a series it cost 25 ns a sample
// and left 12 bytes of 40; zstd at its fastest cost 120 ns and left 7. Segments
// are not preallocated: fdatasync of a file filled with zeros beforehand was
// 15 to 30 % faster than of one that grows, which one group commit more than
// makes up for.
//
// # Torn tail or damage
//
// A segment with a successor, or with a seal, was durable as a whole, so
// whatever is wrong in it is damage. In a last segment without a seal the
// first bad frame, at offset X, is damage if any frame after it is intact and
// says synced > X: the bad bytes had been durable once. Otherwise a crash left
// them: the frames of a group reach the disk in any order, none of them was
// acknowledged, and all from X on is cut off. So the one change that passes
// for a torn tail is of bytes in the last group before a crash.
//
// # Durability modes
//
// With SyncAlways a group is on the disk when Append returns: no crash loses
// it. With SyncDeferred it is with the kernel: a crash of the process loses
// nothing; a crash of the machine loses what was appended after the last sync
// began, with Run at most Options.SyncInterval plus the time of one sync.
//
// # Failures
//
// A write that fails (ErrFull, when no space is left) is cut back to where it
// began and the cut is synced, so the next Append may succeed. When that
// fails, or an fsync does, the state of the file is unknown: the kernel may
// have dropped the pages and forgotten the error. From then on the log says
// ErrFailed and acknowledges nothing until it is opened again. Open writes
// whatever the last frame does not prove durable over itself, so that the
// kernel must take it to the disk again, and syncs it. A group whose Append
// returned an error may be there after that, or not.
package wal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
)

// Conditions a caller branches on; test with errors.Is.
var (
	// ErrLocked: another Log, of this process or another, has the directory.
	ErrLocked = errors.New("wal directory is locked")
	// ErrCorrupt: bytes that were durable have changed or are gone. Where a
	// segment is concerned the error is a *CorruptionError.
	ErrCorrupt = errors.New("wal is corrupt")
	// ErrUnsupportedVersion: intact bytes of a version we do not know.
	ErrUnsupportedVersion = errors.New("unsupported wal version")
	// ErrRecordTooLarge: a batch is above MaxRecordBytes. It will never fit.
	ErrRecordTooLarge = errors.New("wal record too large")
	// ErrFull: no space is left, or Options.MaxBytes is reached; nothing of the
	// group was kept, and the log can be used again when there is space.
	ErrFull = errors.New("no space left for the wal")
	// ErrFailed: durability is in doubt; nothing is accepted until the log
	// is opened again.
	ErrFailed = errors.New("wal failed")
	// ErrClosed: the log was closed.
	ErrClosed = errors.New("wal is closed")
	// ErrSequenceGap: the log does not join on to the sequence given to
	// Replay: records after it are gone, or the log ends before it.
	ErrSequenceGap = errors.New("wal does not join on to the sequence")
)

// CorruptionError says where a segment is damaged. It wraps ErrCorrupt.
type CorruptionError struct {
	Segment string // file name within the directory
	Offset  int64  // of the first frame that is bad, in bytes
	Err     error  // what is wrong with it
}

func (e *CorruptionError) Error() string {
	return fmt.Sprintf("segment %s is damaged at offset %d: %v", e.Segment, e.Offset, e.Err)
}

// Unwrap makes errors.Is find ErrCorrupt and the cause.
func (e *CorruptionError) Unwrap() []error { return []error{ErrCorrupt, e.Err} }

// Sequence numbers the records of one writer, from 1. 0 means none.
type Sequence uint64

// WriterID is a writer's identity, as long as its log lives.
type WriterID uuid.UUID

// String is the usual form in hexadecimal with dashes.
func (w WriterID) String() string { return uuid.UUID(w).String() }

// SyncPolicy says when appended records become durable.
type SyncPolicy int

const (
	// SyncAlways: before Append returns.
	SyncAlways SyncPolicy = iota
	// SyncDeferred: by Run within SyncInterval, when Sync is called, or a
	// segment is full. A crash of the process loses nothing. One of the machine
	// loses what was appended since the last sync began: with Run, at most
	// SyncInterval and the time that one sync takes. Call Sync before
	// committing appended records to the table: otherwise such a crash leaves
	// the log behind the table.
	SyncDeferred
)

// minSegmentBytes is the least that SegmentBytes is set to by default.
const minSegmentBytes = 64 << 10

// Options configure a log; the zero value is ready to use.
type Options struct {
	// SegmentBytes is the size at which a segment is sealed and the next one
	// begun; only a group that is larger by itself exceeds it. Default 64 MiB,
	// or a quarter of MaxBytes if that is less.
	SegmentBytes int64
	// Sync is the durability of Append. Default SyncAlways.
	Sync SyncPolicy
	// SyncInterval is how long a record waits for its sync with SyncDeferred,
	// if Run runs. Default 100 ms.
	SyncInterval time.Duration
	// MaxBytes is the size of all segments above which Append returns ErrFull,
	// unless Truncate has covered every record; 0 leaves it to the disk.
	MaxBytes int64
	// Events are told what happens; all are optional.
	Events Events

	// openFile opens a segment for writing; tests put faults here.
	openFile func(path string) (file, error)
}

// Events are called in the goroutine of the call they tell of and must be
// quick.
type Events struct {
	// TailTrimmed: Open cut bytes of a torn tail off a segment at offset.
	TailTrimmed func(segment string, offset, bytes int64)
	// SyncEnd: a sync of appended bytes took so long.
	SyncEnd func(bytes int64, took time.Duration, err error)
}

// EnsureDefaults fills what is not set.
func (o *Options) EnsureDefaults() {
	if o.SegmentBytes == 0 {
		o.SegmentBytes = 64 << 20
		if o.MaxBytes > 0 {
			o.SegmentBytes = min(o.SegmentBytes, max(o.MaxBytes/4, minSegmentBytes))
		}
	}
	if o.SyncInterval == 0 {
		o.SyncInterval = 100 * time.Millisecond
	}
	if o.Events.TailTrimmed == nil {
		o.Events.TailTrimmed = func(string, int64, int64) {}
	}
	if o.Events.SyncEnd == nil {
		o.Events.SyncEnd = func(int64, time.Duration, error) {}
	}
	if o.openFile == nil {
		o.openFile = openOSFile
	}
}

// Validate refuses what has no meaning.
func (o *Options) Validate() error {
	if o.SegmentBytes < 0 {
		return fmt.Errorf("segment size %d is negative", o.SegmentBytes)
	}
	if o.MaxBytes < 0 || o.SyncInterval < 0 {
		return fmt.Errorf("size limit %d or sync interval %v is negative", o.MaxBytes, o.SyncInterval)
	}
	if o.Sync != SyncAlways && o.Sync != SyncDeferred {
		return fmt.Errorf("sync policy %d is unknown", o.Sync)
	}
	return nil
}

// Log is an open directory. Its methods may be called concurrently; appends
// run one after the other. Locks are taken in the order of the fields.
type Log struct {
	dir    string
	opts   Options
	writer WriterID
	lock   *os.File

	// appendMu serialises what writes: Append, Sync, rotation, Close. It
	// guards the fields down to filesMu.
	appendMu sync.Mutex
	active   file   // nil when the last segment is sealed
	seed     uint32 // of the active segment's checksums
	synced   int64  // bytes of the active segment that are durable
	buf      []byte // the group being written
	failed   error  // wraps ErrFailed, once the file's state is unknown

	// syncMu is held while a segment is synced; whoever closes one takes it.
	syncMu  sync.Mutex
	syncErr error // of the first sync that failed

	// unsynced wakes Run: when the first append came that no sync has covered.
	unsynced chan time.Time

	// filesMu is held for reading by Replay and for writing by Truncate and
	// Close, so that no segment is deleted or unlocked while it is read.
	filesMu sync.RWMutex

	// mu guards what the methods without I/O return.
	mu       sync.Mutex
	closed   bool
	segments []segment // ascending; only the last may be active
	last     Sequence  // last sequence that was acknowledged or recovered
	covered  Sequence  // last that Truncate was called with
	replayed place     // where the last replay ended
}

// segment is one file of the log.
type segment struct {
	first Sequence // first sequence it holds, or will
	bytes int64    // as far as frames were acknowledged, the seal included
}

func (s segment) name() string { return segmentName(s.first) }

// Open locks the directory, creating it if need be, loads or creates the
// writer's identity, and recovers the last segment: a torn tail is trimmed and
// told to Events.TailTrimmed. Segments before the last are read by Replay.
// Errors: ErrLocked, ErrCorrupt, ErrUnsupportedVersion, ErrFull.
func Open(dir string, opts Options) (*Log, error) {
	if err := opts.Validate(); err != nil {
		return nil, fmt.Errorf("open wal: %w", err)
	}
	opts.EnsureDefaults()
	if err := makeDir(dir); err != nil {
		return nil, fmt.Errorf("open wal: %w", err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open wal: %w", err)
	}
	l := &Log{dir: dir, opts: opts, lock: lock, unsynced: make(chan time.Time, 1)}
	if err := l.recoverDir(); err != nil {
		return nil, fmt.Errorf("open wal: %w", errors.Join(err, l.closeFiles()))
	}
	return l, nil
}

// Writer is the identity kept in the directory.
func (l *Log) Writer() WriterID { return l.writer }

// LastSequence is the last sequence that was acknowledged, or was recovered
// by Open; 0 before the first.
func (l *Log) LastSequence() Sequence {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

// Bytes is the size of all segments.
func (l *Log) Bytes() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := int64(0)
	for _, s := range l.segments {
		n += s.bytes
	}
	return n
}

// Close waits for Replay to end, seals the active segment and unlocks the
// directory; a second call does nothing. When Truncate has covered every
// record it leaves none behind, so that Pending need not say that there may be
// some. Every record that was acknowledged stays durable whatever it returns,
// but with SyncDeferred an error means that those since the last Sync may not
// be.
func (l *Log) Close() error {
	if err := l.empty(); err != nil && !errors.Is(err, ErrFull) {
		return fmt.Errorf("close wal: %w", errors.Join(err, l.close()))
	}
	return l.close()
}

func (l *Log) close() error {
	l.appendMu.Lock()
	defer l.appendMu.Unlock()
	l.filesMu.Lock()
	defer l.filesMu.Unlock()
	l.mu.Lock()
	closed := l.closed
	l.closed = true
	l.mu.Unlock()
	if closed {
		return nil
	}
	var err error
	if l.failed == nil && l.active != nil && !l.activeIsEmpty() {
		err = l.seal()
	}
	if err = errors.Join(err, l.closeFiles()); err != nil {
		return fmt.Errorf("close wal: %w", err)
	}
	return nil
}

// closeFiles closes what is open and releases the lock, by name: a process that
// is being started by this one holds a copy of the lock's file until it runs
// its program, so that closing ours alone would leave the directory locked.
func (l *Log) closeFiles() error {
	var err error
	if l.active != nil {
		l.syncMu.Lock()
		err = l.active.Close()
		l.syncMu.Unlock()
		l.active = nil
	}
	return errors.Join(err, unix.Flock(int(l.lock.Fd()), unix.LOCK_UN), l.lock.Close())
}

func (l *Log) path(name string) string { return filepath.Join(l.dir, name) }
