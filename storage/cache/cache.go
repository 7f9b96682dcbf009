// Package cache keeps immutable objects of a remote store near: as local files,
// whole or what was made of them, for DuckDB, which opens files only, and ranges
// of them in memory and on disk.
//
// It stands on storage only. One directory belongs to one store and, while it
// is open, to one process:
//
//	lock                                      flock of the process
//	tmp-<random>                              a file that is being written
//	obj-<key>-<size>-<content><extension>     an object, whole, or a file that is
//	                                          made of objects
//	rng-<key>-<size><extension>               ranges of an object at their places,
//	                                          and holes
//	rng-<key>-<size><extension>.map           which ranges
//
//	<key>      first 32 hex digits of the SHA-256 of the object's key, or of a
//	           recipe
//	<size>     bytes of the object, or the file, decimal
//	<content>  xxHash64 of the bytes, 16 hex digits
//
// A map is a row of records, one for each piece that is there. A piece is what
// was asked for, cut at multiples of 64 KiB. Numbers are little endian:
//
//	bytes  field
//	8      offset of the piece
//	8      length, 1 to 65536
//	8      xxHash64 of its bytes
//	8      xxHash64 of the 24 bytes before
//
// The map ends before the first record that is not whole; of two records of
// the same bytes the later one counts. Nothing needs to be synced: a file that
// a crash or a bad disk has damaged is found by its size, or by a sum when it
// is first used (pieces of ReadRange: whenever they are read from disk), and
// is fetched again.
//
// Ranges are kept by S3-FIFO: in memory by piece, on disk by object.
//
// INVARIANT: whole files and the reservations of running fetches together, the
// ranges on disk, and those in memory never exceed their bounds, and no file
// that is in use is removed. What is handed out is what the store gave.
//
// It must never remove a file that it did not make, and never cache an object
// whose key may get other bytes.
package cache

import (
	"container/list"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"cardinalsin/storage"
)

// Conditions a caller branches on.
var (
	// ErrNoRoom: the object does not fit, since it is larger than the cache,
	// or all that could make room for it is in use.
	ErrNoRoom = errors.New("cache has no room")
	// ErrSizeMismatch: the object does not have the size that the caller
	// knows it by.
	ErrSizeMismatch = errors.New("object has another size")
	// ErrDamaged: a file of the cache is not what it was. Callers never see
	// it, but for Events.
	ErrDamaged = errors.New("cached file is damaged")
	// ErrInUse: another process has the directory open.
	ErrInUse = errors.New("cache directory is in use")
)

const (
	lockName   = "lock"
	tempPrefix = "tmp-"
)

var objectName = regexp.MustCompile(`^obj-([0-9a-f]{32})-([0-9]{1,18})-([0-9a-f]{16})(\.[a-z0-9]{1,16})?$`)

// Cache is a bounded directory of objects. Its methods may be called
// concurrently.
type Cache struct {
	dir      string
	maxBytes int64
	lock     *os.File
	fills    sync.WaitGroup
	ranges   *ranges
	stop     context.CancelFunc // ends the requests for ranges
	events   Events

	// mu guards all below, and the fields of entries that say so.
	mu      sync.Mutex
	closed  bool
	used    int64 // bytes of files and reservations
	entries map[entryID]*entry
	lru     list.List // of *entry, the last used at the front
	stats   Stats
}

// Stats counts what a cache has done, and what it holds.
type Stats struct {
	Files, Bytes, MaxBytes int64 // Bytes include what is being fetched
	Hits, Misses, Evicted  int64 // files asked for and there, fetched, removed for room
	Ranges                 RangeStats
}

// entryID tells objects apart: by key, and by size, so that a caller with a
// wrong size gets no other's file.
type entryID struct {
	keyHash string
	size    int64
}

// entry is one file, or one on its way.
type entry struct {
	id   entryID
	done chan struct{} // closed when err is set, or the file can be used

	// Guarded by Cache.mu.
	path    string // empty until there is a file
	hash    string // of the file, by its name
	users   int
	started bool               // a goroutine verifies or fetches, or did
	ready   bool               // the file can be used
	gone    bool               // no longer in Cache.entries
	cancel  context.CancelFunc // ends the fetch
	element *list.Element

	err error // readable once done is closed
}

// Options say how large a cache is; the zero value keeps nothing.
type Options struct {
	// Dir is the directory, which is created if needed. Empty: memory only.
	Dir string
	// FileBytes bounds whole files, RangeBytes the ranges on disk, MemoryBytes
	// those in memory.
	FileBytes, RangeBytes, MemoryBytes int64
	Events                             Events
}

// Events tell what a cache does by itself. Fields may be nil; they are called
// concurrently, and must neither block nor call the cache.
type Events struct {
	// Damaged hears of each file or piece that was not what had been written,
	// and was thrown away; what is wanted of it is fetched again.
	Damaged func(Damage)
}

// Damage is what was found to be wrong on disk.
type Damage struct {
	Path string // of the file
	Key  string // of the object; empty where only its hash is known
	Span        // of the object, that is lost
	Err  error  // what is wrong; wraps ErrDamaged
}

// damaged reports damage. No lock is held.
func (e *Events) damaged(path, key string, at Span, cause error) {
	if e.Damaged == nil {
		return
	}
	err := fmt.Errorf("%w: a wrong sum", ErrDamaged)
	if cause != nil {
		err = fmt.Errorf("%w: %w", ErrDamaged, cause)
	}
	e.Damaged(Damage{Path: path, Key: key, Span: at, Err: err})
}

// New opens a cache with what an earlier process left in its directory, as far
// as there is room. Errors: ErrInUse.
func New(o Options) (*Cache, error) {
	ctx, stop := context.WithCancel(context.Background())
	r := newRanges(ctx, o.Dir, o.MemoryBytes, o.RangeBytes)
	r.events = o.Events
	if o.Dir == "" {
		r.disk.max = 0
		return &Cache{ranges: r, stop: stop, entries: map[entryID]*entry{}}, nil
	}
	c, err := openFiles(o.Dir, o.FileBytes, o.Events)
	if err != nil {
		stop()
		return nil, err
	}
	c.ranges, c.stop = r, stop
	if err := r.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("open cache: %w", err), c.Close())
	}
	return c, nil
}

// Open opens a cache for whole files only.
func Open(dir string, maxBytes int64) (*Cache, error) {
	return New(Options{Dir: dir, FileBytes: maxBytes})
}

func openFiles(dir string, maxBytes int64, events Events) (*Cache, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open cache: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open cache: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = fmt.Errorf("%w: %s", ErrInUse, dir)
		}
		return nil, errors.Join(fmt.Errorf("open cache: %w", err), lock.Close())
	}
	c := &Cache{dir: dir, maxBytes: maxBytes, lock: lock, entries: map[entryID]*entry{}, events: events}
	if err := c.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("open cache: %w", err), lock.Close())
	}
	return c, nil
}

// load indexes the directory and removes what is unfinished or of a wrong
// size. Whether the bytes are right is looked at when a file is first used.
func (c *Cache) load() error {
	dir, err := os.ReadDir(c.dir)
	if err != nil {
		return err
	}
	type found struct {
		entry *entry
		used  time.Time
	}
	var files []found
	for _, f := range dir {
		name := filepath.Join(c.dir, f.Name())
		parts := objectName.FindStringSubmatch(f.Name())
		if parts == nil {
			if strings.HasPrefix(f.Name(), tempPrefix) && f.Type().IsRegular() {
				if err := os.Remove(name); err != nil {
					return err
				}
			}
			continue
		}
		info, err := f.Info()
		if err != nil {
			return err
		}
		size, err := strconv.ParseInt(parts[2], 10, 64)
		if err != nil || !info.Mode().IsRegular() {
			continue // no file of ours
		}
		if info.Size() != size {
			if err := os.Remove(name); err != nil {
				return err
			}
			c.events.damaged(name, "", Span{0, size}, fmt.Errorf("%w: %d bytes", ErrSizeMismatch, info.Size()))
			continue
		}
		e := &entry{id: entryID{parts[1], size}, path: name, hash: parts[3], done: make(chan struct{})}
		files = append(files, found{e, info.ModTime()})
	}
	slices.SortFunc(files, func(a, b found) int { return b.used.Compare(a.used) })
	for _, f := range files {
		if _, ok := c.entries[f.entry.id]; ok || c.used+f.entry.id.size > c.maxBytes {
			if err := os.Remove(f.entry.path); err != nil {
				return err
			}
			continue
		}
		c.entries[f.entry.id] = f.entry
		f.entry.element = c.lru.PushBack(f.entry)
		c.used += f.entry.id.size
	}
	return nil
}

// Close gives the directory free for other processes; the files stay. Files
// that are still in use may be removed from then on. Running fetches end, and
// their callers get an error. Calling it again does nothing.
func (c *Cache) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	for _, e := range c.entries {
		if e.cancel != nil {
			e.cancel()
		}
	}
	c.mu.Unlock()
	c.ranges.mu.Lock()
	c.ranges.closed = true
	c.ranges.mu.Unlock()
	c.stop()
	c.fills.Wait()
	c.ranges.flights.Wait()
	if c.lock == nil {
		return nil
	}
	if err := c.lock.Close(); err != nil {
		return fmt.Errorf("close cache: %w", err)
	}
	return nil
}

// Stats returns the counts so far.
func (c *Cache) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stats
	s.Files, s.Bytes, s.MaxBytes = int64(c.lru.Len()), c.used, c.maxBytes
	s.Ranges = c.ranges.snapshot()
	return s
}

// File returns a local file with the bytes of an object of the given size,
// which it fetches unless it is there; callers that want the same object at
// the same time share one fetch. The file stays until release is called, which
// the caller must do once, and may do again. A store that keeps its objects as
// files gives their own paths.
//
// Errors: ErrNoRoom, ErrSizeMismatch, storage.ErrFull, and those of
// storage.Store.Get.
func (c *Cache) File(ctx context.Context, s storage.Store, key string, size int64) (path string, release func(), err error) {
	path, release, err = c.object(ctx, s, key, size)
	if err != nil {
		return "", nil, fmt.Errorf("cached file of %q: %w", key, err)
	}
	return path, release, nil
}

func (c *Cache) object(ctx context.Context, s storage.Store, key string, size int64) (string, func(), error) {
	if err := storage.ValidateKey(key); err != nil {
		return "", nil, err
	}
	if path, ok := storage.LocalPath(s, key); ok {
		if err := errors.Join(ctx.Err(), checkFile(path, size)); err != nil {
			return "", nil, err
		}
		return path, func() {}, nil
	}
	return c.file(ctx, size, origin{key: key, write: func(ctx context.Context, w io.Writer) error {
		return fetchInto(ctx, w, s, key, size)
	}})
}

// Holds reports whether the file of an object is there, or on its way.
func (c *Cache) Holds(key string, size int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.entries[entryID{keyHash(key), size}]
	return ok
}

// Derived is like File, for bytes that write makes of objects: always the same
// size bytes for one recipe, which tells of what objects and how. Where callers
// share a write and it fails, the others try their own. Errors: ErrNoRoom,
// ErrSizeMismatch, storage.ErrFull, and those of write.
func (c *Cache) Derived(ctx context.Context, recipe, extension string, size int64, write func(context.Context, io.Writer) error) (path string, release func(), err error) {
	path, release, err = c.file(ctx, size, origin{key: derivedPrefix + recipe + extension, write: write, own: true})
	if err != nil {
		return "", nil, fmt.Errorf("derived file: %w", err)
	}
	return path, release, nil
}

// derivedPrefix keeps recipes apart from keys, which cannot begin so.
const derivedPrefix = "/derived/"

// origin is where a file's bytes come from.
type origin struct {
	key   string // of the object, or what stands for it
	write func(context.Context, io.Writer) error
	own   bool // what write fails with may be its caller's own affair
}

func (c *Cache) file(ctx context.Context, size int64, from origin) (string, func(), error) {
	if err := ctx.Err(); err != nil {
		return "", nil, err
	}
	id := entryID{keyHash(from.key), size}
	for {
		e, mine, err := c.acquire(ctx, from, id)
		if err != nil {
			return "", nil, err
		}
		select {
		case <-e.done:
		case <-ctx.Done():
			c.release(e)
			return "", nil, ctx.Err()
		}
		if e.err != nil {
			c.release(e)
			if from.own && !mine {
				continue
			}
			if errors.Is(e.err, context.Canceled) {
				return "", nil, fmt.Errorf("cache: %w", fs.ErrClosed) // by Close; it was not ours
			}
			return "", nil, e.err
		}
		// Someone may have removed or cut the file since.
		if err := checkFile(e.path, size); err != nil {
			c.events.damaged(e.path, from.key, Span{0, size}, err)
			c.discard(e)
			c.release(e)
			continue
		}
		touch(e.path)
		return e.path, sync.OnceFunc(func() { c.release(e) }), nil
	}
}

func keyHash(key string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(key)))[:32] }

func checkFile(path string, size int64) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) || (err == nil && !info.Mode().IsRegular()):
		return fmt.Errorf("%w: no file %s", storage.ErrNotFound, path)
	case err != nil:
		return err
	case info.Size() != size:
		return fmt.Errorf("%w: %d bytes, not %d", ErrSizeMismatch, info.Size(), size)
	}
	return nil
}

// acquire returns the entry of a file, in use by the caller, and sees to it that
// it is on its way; mine: from where the caller says.
func (c *Cache) acquire(ctx context.Context, from origin, id entryID) (e *entry, mine bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, false, fmt.Errorf("cache: %w", fs.ErrClosed)
	}
	e, ok := c.entries[id]
	if !ok {
		if err := c.makeRoom(id.size); err != nil {
			return nil, false, err
		}
		e = &entry{id: id, done: make(chan struct{})}
		c.entries[id] = e
		e.element = c.lru.PushFront(e)
		c.used += id.size
		c.stats.Misses++
	} else {
		c.stats.Hits++
	}
	c.lru.MoveToFront(e.element)
	e.users++
	if !e.started {
		e.started, mine = true, true
		// The fetch outlives its first caller if others wait for it, and ends
		// when none does.
		ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		e.cancel = cancel
		c.fills.Go(func() {
			defer cancel()
			c.fill(ctx, e, from)
		})
	}
	return e, mine, nil
}

// makeRoom removes files that are not in use, those not used for longest
// first, until size bytes fit. The caller holds mu.
func (c *Cache) makeRoom(size int64) error {
	if size < 0 || size > c.maxBytes {
		return fmt.Errorf("%w: %d bytes in a cache of %d", ErrNoRoom, size, c.maxBytes)
	}
	for element := c.lru.Back(); element != nil && c.used+size > c.maxBytes; {
		e := element.Value.(*entry)
		element = element.Prev()
		if e.users > 0 || (e.started && !e.ready) {
			continue
		}
		if err := os.Remove(e.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("make room: %w", err)
		}
		c.remove(e)
		c.used -= e.id.size
		c.stats.Evicted++
	}
	if c.used+size > c.maxBytes {
		return fmt.Errorf("%w: %d bytes of %d are in use", ErrNoRoom, c.used, c.maxBytes)
	}
	return nil
}

// remove takes an entry out of the index. The caller holds mu, and gives its
// bytes back once its file is removed.
func (c *Cache) remove(e *entry) {
	delete(c.entries, e.id)
	c.lru.Remove(e.element)
	e.gone = true
}

// release ends one use. A fetch that nobody waits for any more is ended, and
// its entry given up at once, so that who comes next begins anew.
func (c *Cache) release(e *entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.users--
	if e.users == 0 && !e.ready && !e.gone && e.path == "" {
		c.remove(e)
		e.cancel()
	}
}

// discard gives up an entry whose file was found to be missing or cut.
func (c *Cache) discard(e *entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e.gone {
		return
	}
	c.remove(e)
	c.used -= e.id.size
	// Others may hold the cut file open; its name must not stand in the way.
	_ = os.Remove(e.path) // if it stays, the fetched one is renamed over it
}

// extension is the key's, if it is short and plain: some programs go by it.
func extension(key string) string {
	ext := path.Ext(key)
	if objectName.MatchString("obj-" + strings.Repeat("0", 32) + "-0-" + strings.Repeat("0", 16) + ext) {
		return ext
	}
	return ""
}
