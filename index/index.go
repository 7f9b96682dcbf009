// Package index finds the series of a table without reading its files: an
// inverted index over the data files of each day.
//
// It stands on layer 4, beside planner. Segments, immutable objects
// `_index/<date>-<random>.idx` below the table's root, say which series lie in
// which rows of which files. The domain cardinal.index of the log names them, so
// that a snapshot brings its index. [Index] answers queries from them, [Plan]
// and [Runner] build them.
//
// All of it is derived. A file that no segment covers, or whose segment is
// missing or damaged, is left to the caller, who reads it as if there were no
// index. Deleting unnamed segments is vacuum's affair.
//
// INVARIANT: for a file that an answer covers, the answer is complete and true:
// it is what reading the file would give. It must never tell of files that
// the caller did not ask for.
//
// # The domain
//
// The configuration of cardinal.index is JSON, {"segments": […]}, each with
//
//	key        object below the table's root, "_index/…"
//	bytes      its size
//	directory  bytes of its end to be read first: the directory, and values of
//	           small labels
//	date       the day of its files, YYYY-MM-DD
//	files      how many files it was made for
//	after      ms: it is for the day's files that were committed later than this
//	through    ms: and not later than this
//	restarts   every how many series decoding a page can begin; 0: at its first
//
// Where a day's series are too many for one segment, several are made of the
// same files, each with the series that follow those of the one before. They
// stand in a list of their own, "parts", which an older release ignores, and
// have besides
//
//	part       which of them it is, from 0
//	parts      how many there are
//
// A file is covered by all of them or by none.
//
// # Segments
//
// Numbers are unsigned varints, texts have their length in front. A block is
// a zstd frame, then the xxhash64 of its bytes (8 bytes, little endian). A series
// is known by its ordinal in the order of series.Compare.
//
//	bytes     field
//	8         "CARDIDX1"
//	…         series pages: blocks of 256 series
//	…         postings: for values that many series have, a block each
//	…         value pages: blocks of about 16 KiB, by label, the one with the
//	          largest pages first, then by value
//	…         directory: a block
//	8         length of the directory's block, little endian
//	8         "CARDIDX1"
//
// A series in a page: id (8 bytes, little endian), labels (their number; of
// each the label's ordinal, the length shared with the value that the label
// had last in this page, the rest), runs (their number; of each file, row group,
// first row, rows).
//
// A value in a page: length shared with the value before, the rest, its file
// set, the number of series, and their postings: 0 and the differences of
// ordinals, 1 and a roaring bitmap, or 2 and where its block lies (from the
// first posting, length).
//
// The directory: files (number; path, size, bytes that identify series, first
// and last µs zigzag), file sets (number; number of ordinals, differences),
// series (number; where pages begin, number of pages, lengths), where postings
// begin, labels (number; name, file set, number of values, where pages begin,
// number of pages; of each its first value, length). The labels ascend.
package index

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"cardinalsin/action"
	"cardinalsin/internal/lru"
	"cardinalsin/series"
	"cardinalsin/storage"
	"cardinalsin/txlog"
)

// Domain is the log's domain that names the segments.
const Domain = "cardinal.index"

// Folder holds the segments, below the table's root.
const Folder = "_index"

// ErrCorrupt: a segment is not what the job wrote. Queries do without it.
var ErrCorrupt = errors.New("corrupt index segment")

// Segment is one segment as the log names it.
type Segment struct {
	Key   string `json:"key"` // below the table's root
	Bytes int64  `json:"bytes"`
	// Directory is what to read first, from the end: the directory, and what
	// lies close before it.
	Directory int64  `json:"directory"`
	Date      string `json:"date"`
	Files     int    `json:"files"`
	After     int64  `json:"after"`
	Through   int64  `json:"through"`
	Restarts  int    `json:"restarts,omitempty"` // in a page of series, every so many; 0: none
	// Part of Parts segments that only together cover their files; 0 of 0 for
	// one that does alone.
	Part  int `json:"part,omitempty"`
	Parts int `json:"parts,omitempty"`
}

// group names what covers files together.
func (s *Segment) group() string {
	if s.Parts == 0 {
		return s.Key
	}
	return fmt.Sprintf("%s/%d", s.Date, s.Through)
}

type configuration struct {
	Segments []Segment `json:"segments"`
	Parts    []Segment `json:"parts,omitempty"`
}

// encode returns the domain's configuration.
func encode(segments []Segment) (string, error) {
	var c configuration
	for _, s := range segments {
		if s.Parts > 0 {
			c.Parts = append(c.Parts, s)
		} else {
			c.Segments = append(c.Segments, s)
		}
	}
	for _, list := range [][]Segment{c.Segments, c.Parts} {
		slices.SortFunc(list, func(a, b Segment) int {
			return cmp.Or(cmp.Compare(a.Date, b.Date), cmp.Compare(a.Through, b.Through), cmp.Compare(a.Part, b.Part), cmp.Compare(a.Key, b.Key))
		})
	}
	text, err := json.Marshal(c)
	if err != nil {
		return "", fmt.Errorf("encode %s: %w", Domain, err)
	}
	return string(text), nil
}

// Segments lists the segments of a version. Its error wraps
// action.ErrCorrupt.
func Segments(snap *txlog.Snapshot) ([]Segment, error) {
	text, ok := snap.Domain(Domain)
	if !ok {
		return nil, nil
	}
	var c configuration
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", action.ErrCorrupt, Domain, err)
	}
	parts := map[string]map[int]bool{} // of each group
	for _, s := range c.Parts {
		if s.Parts < 2 || s.Part < 0 || s.Part >= s.Parts {
			return nil, fmt.Errorf("%w: %s: part %d of %d", action.ErrCorrupt, Domain, s.Part, s.Parts)
		}
		if parts[s.group()] == nil {
			parts[s.group()] = map[int]bool{}
		}
		if parts[s.group()][s.Part] {
			return nil, fmt.Errorf("%w: %s: part %d of %s twice", action.ErrCorrupt, Domain, s.Part, s.Date)
		}
		parts[s.group()][s.Part] = true
	}
	for _, s := range c.Parts {
		if len(parts[s.group()]) != s.Parts {
			return nil, fmt.Errorf("%w: %s: parts of %s are missing", action.ErrCorrupt, Domain, s.Date)
		}
	}
	for _, s := range c.Segments {
		if s.Parts != 0 || s.Part != 0 {
			return nil, fmt.Errorf("%w: %s: a part among segments", action.ErrCorrupt, Domain)
		}
	}
	all := append(c.Segments, c.Parts...)
	for _, s := range all {
		if !strings.HasPrefix(s.Key, Folder+"/") || storage.ValidateKey(s.Key) != nil {
			return nil, fmt.Errorf("%w: %s names %.200q", action.ErrCorrupt, Domain, s.Key)
		}
		if _, err := series.ParseDate(s.Date); err != nil || s.Bytes < 0 || s.Directory < 0 || s.Files < 0 || s.Restarts < 0 {
			return nil, fmt.Errorf("%w: %s: segment %s", action.ErrCorrupt, Domain, s.Key)
		}
	}
	return all, nil
}

// Ranges reads ranges of immutable objects; size is the object's.
type Ranges interface {
	ReadRange(ctx context.Context, store storage.Store, key string, size, offset, length int64) ([]byte, error)
}

// Options configure an Index; the zero value is useful.
type Options struct {
	// Ranges is the cache to read through. Default: none, each range is a
	// request.
	Ranges Ranges
	// DirectoryBytes bounds the directories of segments that are kept parsed.
	// Default 64 MiB.
	DirectoryBytes int64
	// ValueBytes bounds the values of labels that are kept for calls without
	// matchers. Default 64 MiB.
	ValueBytes int64
	// BlockBytes bounds the blocks that are kept for small questions. Default
	// 32 MiB.
	BlockBytes int64
	// Parallel is the number of segments that one call reads at once. Default
	// 64.
	Parallel int
	// Logger hears once of each segment that is missing or damaged. Default
	// discards.
	Logger *slog.Logger
}

// EnsureDefaults fills in what is unset.
func (o *Options) EnsureDefaults() {
	if o.DirectoryBytes <= 0 {
		o.DirectoryBytes = 64 << 20
	}
	if o.ValueBytes <= 0 {
		o.ValueBytes = 64 << 20
	}
	if o.BlockBytes <= 0 {
		o.BlockBytes = 32 << 20
	}
	if o.Parallel <= 0 {
		o.Parallel = 64
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// Index answers from a table's segments. It may be used concurrently.
type Index struct {
	log    *txlog.Log
	opts   Options
	lists  lists
	blocks keptBlocks

	mu      sync.Mutex // guards what follows
	open    map[string]*segment
	kept    int64 // bytes of open
	damaged map[string]bool

	named atomic.Pointer[named]
}

// New returns the index of a table. It makes no request.
func New(log *txlog.Log, o Options) *Index {
	o.EnsureDefaults()
	return &Index{log: log, opts: o, lists: lists{lru.New[string, []string](o.ValueBytes)}, blocks: keptBlocks{lru.New[blockKey, []byte](o.BlockBytes)}, open: map[string]*segment{}, damaged: map[string]bool{}}
}

// Run is a stretch of rows of one series.
type Run struct {
	Series   int // index into Found.Series
	RowGroup int
	First    int // row within the row group
	Rows     int
}

// Series is one series that was found.
type Series struct {
	Labels series.Labels
	ID     series.ID
}

// Found is where the selected series lie.
type Found struct {
	// Series are those with runs in covered files, in the order of
	// series.Compare, each once. All of them match the selector; whether they
	// have samples in its time range, only the files tell.
	Series []Series
	// Covered maps the path of each file that the index answers for to all
	// its runs of these series, in the order of its rows. No run: nothing in it
	// is selected. A file that is not in the map must be read.
	Covered map[string][]Run
}

// Limits bound an answer; what would exceed them is left uncovered. The zero
// value of each stands for its default.
type Limits struct {
	// Series bounds the series of one segment. Default 500,000.
	Series int
	// Bytes bounds what is read of one segment for one call. Default 64 MiB.
	Bytes int64
	// Ahead, if set, hears of the files in which selected series may lie as soon
	// as the values of their labels tell, which is before the call returns: it
	// can begin to open them. It is called concurrently, and must not block.
	Ahead func(path string)
}

func (l *Limits) ensureDefaults() {
	if l.Series <= 0 {
		l.Series = 500_000
	}
	if l.Bytes <= 0 {
		l.Bytes = 64 << 20
	}
}

// Damaged lists the keys of segments that this process could not use, for the
// job that builds them anew.
func (x *Index) Damaged() map[string]bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	out := make(map[string]bool, len(x.damaged))
	for k := range x.damaged {
		out[k] = true
	}
	return out
}
