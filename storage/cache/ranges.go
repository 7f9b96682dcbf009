package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sort"
	"strconv"
	"sync"

	"github.com/cespare/xxhash/v2"

	"cardinalsin/storage"
)

// Span is a range of an object.
type Span struct{ Offset, Length int64 } // bytes

func (s Span) end() int64 { return s.Offset + s.Length }

const (
	// pieceBytes is what one sum covers; pieces end at multiples of it.
	pieceBytes = 64 << 10
	// joinBytes is what one request reads in vain rather than being two.
	joinBytes = 128 << 10
	// fetches is the number of requests in flight: one for each day of two
	// months.
	fetches = 64
	// attempts is how often damage is fetched anew before the cache is left
	// out.
	attempts = 3
)

// ranges are the tiers of ranges: memory before disk. Objects never change, so
// whatever of one is there is right if its sum is.
type ranges struct {
	dir    string // empty: memory only
	places chan struct{}
	events Events

	// mu guards all below and the fields of objects and pieces. No I/O is done
	// under it but the removal of files.
	mu           sync.Mutex
	objects      map[entryID]*object
	memory, disk policy
	closed       bool
	ctx          context.Context // ends with the cache
	stats        RangeStats

	flights sync.WaitGroup
	writeAt func(f *os.File, b []byte, at int64) error // tests let it fail
}

// RangeStats counts what the tiers of ranges have done, and what they hold.
type RangeStats struct {
	MemoryBytes, DiskBytes       int64
	MemoryHits, DiskHits, Joined int64 // pieces found, and found on their way
	Fetches, FetchedBytes        int64
	Evicted, Damaged, Unwritten  int64 // let go, refetched for a wrong sum, not kept for want of room
}

// object is what is known of one object.
type object struct {
	id      entryID
	key     string // empty until it is asked for
	ext     string
	pieces  []*piece // ascending, apart from each other
	flights []*flight
	users   int        // of its file
	file    bool       // there is one
	life    int        // how many files there have been
	item    item       // of the disk tier
	writing sync.Mutex // held by who writes the file
}

// piece is a part of an object that is there.
type piece struct {
	Span
	sum     uint64
	disk    bool
	storing bool   // on its way to disk
	data    []byte // nil: not in memory
	item    item   // of the memory tier
}

// flight is one request.
type flight struct {
	Span
	o       *object
	waiters int // guarded by ranges.mu
	cancel  context.CancelFunc
	done    chan struct{} // data and err are set
	data    []byte
	err     error
}

func writeAt(f *os.File, b []byte, at int64) error {
	_, err := f.WriteAt(b, at)
	return err
}

func newRanges(ctx context.Context, dir string, memoryBytes, diskBytes int64) *ranges {
	r := &ranges{dir: dir, places: make(chan struct{}, fetches), objects: map[entryID]*object{}, ctx: ctx, writeAt: writeAt}
	r.memory = policy{max: memoryBytes, ghosts: map[entryID]struct{}{}, evict: func(i *item) bool {
		i.owner.(*piece).data = nil
		return true
	}}
	r.disk = policy{max: diskBytes, ghosts: map[entryID]struct{}{}, evict: func(i *item) bool {
		o := i.owner.(*object)
		if o.users > 0 {
			return false
		}
		r.forget(o)
		return true
	}}
	return r
}

// ReadRange returns a range of an object of the given size, from memory, disk
// or the store. What is missing is fetched, with one request where it lies
// close together, and callers that want the same at the same time share it.
// The slice is shared: it must not be changed. Errors:
// storage.ErrInvalidRange, ErrSizeMismatch where the object is smaller than
// size, and those of storage.Store.GetRange. A full or failing disk is no
// error: it only costs requests.
func (c *Cache) ReadRange(ctx context.Context, s storage.Store, key string, size, offset, length int64) ([]byte, error) {
	if offset < 0 || length <= 0 || offset > size || length > size-offset {
		return nil, fmt.Errorf("%w: %d bytes at %d of %d of %q", storage.ErrInvalidRange, length, offset, size, key)
	}
	if _, ok := storage.LocalPath(s, key); ok {
		return s.GetRange(ctx, key, offset, length) // the kernel caches files
	}
	data, err := c.ranges.read(ctx, s, key, size, Span{offset, length})
	if err != nil {
		return nil, fmt.Errorf("cached range of %q: %w", key, err)
	}
	return data, nil
}

// part is where bytes of a span come from: a piece in memory, a piece on disk,
// or a flight.
type part struct {
	Span
	o      *object
	piece  *piece
	data   []byte // the piece's
	flight *flight
}

func (r *ranges) read(ctx context.Context, s storage.Store, key string, size int64, want Span) ([]byte, error) {
	for range attempts {
		parts, flights, err := r.plan(ctx, s, key, size, want)
		if err != nil {
			return nil, err
		}
		if err := r.wait(ctx, flights); err != nil {
			return nil, err
		}
		out, ok := r.join(parts, want)
		if ok {
			return out, nil
		}
	}
	return s.GetRange(ctx, key, want.Offset, want.Length)
}

// join puts parts together; false: a part on disk was damaged, and is gone.
func (r *ranges) join(parts []part, want Span) ([]byte, bool) {
	var out []byte
	whole := true
	for _, p := range parts {
		var have []byte
		var at Span
		switch {
		case p.flight != nil:
			have, at = p.flight.data, p.flight.Span
		case p.data != nil:
			have, at = p.data, p.piece.Span
		default:
			data, ok := r.load(p.o, p.piece)
			if !ok {
				whole = false // look at the others, too, to fetch all at once
				continue
			}
			have, at = data, p.piece.Span
		}
		have = have[p.Offset-at.Offset : p.end()-at.Offset]
		if len(parts) == 1 && whole {
			return slices.Clip(have), true
		}
		if out == nil {
			out = make([]byte, 0, want.Length)
		}
		out = append(out, have...)
	}
	return out, whole
}

// plan finds the parts of a span and starts the requests that are needed. The
// caller waits for the flights.
func (r *ranges) plan(ctx context.Context, s storage.Store, key string, size int64, want Span) ([]part, []*flight, error) {
	if err := storage.ValidateKey(key); err != nil {
		return nil, nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, nil, fmt.Errorf("cache: %w", fs.ErrClosed)
	}
	o := r.object(key, size)
	for _, gap := range o.gaps(want) {
		r.start(ctx, o, s, key, gap)
	}
	var parts []part
	var flights []*flight
	for at := want.Offset; at < want.end(); {
		p := part{o: o}
		var have Span
		if p.piece = o.find(at); p.piece != nil {
			have, p.data = p.piece.Span, p.piece.data
			if p.data != nil {
				r.memory.hit(&p.piece.item)
				r.stats.MemoryHits++
			} else {
				r.stats.DiskHits++
			}
			if p.piece.disk {
				r.disk.hit(&o.item)
			}
		} else {
			p.flight = o.flying(at)
			have = p.flight.Span
			if !slices.Contains(flights, p.flight) {
				p.flight.waiters++
				flights = append(flights, p.flight)
				if p.flight.waiters > 1 {
					r.stats.Joined++
				}
			}
		}
		end := min(have.end(), want.end())
		p.Span = Span{at, end - at}
		parts = append(parts, p)
		at = end
	}
	return parts, flights, nil
}

// wait waits for flights, and gives them up where it fails: a request that
// nobody waits for ends.
func (r *ranges) wait(ctx context.Context, flights []*flight) (err error) {
	for _, f := range flights {
		select {
		case <-f.done:
			err = f.err
		case <-ctx.Done():
			err = ctx.Err()
		}
		if err != nil {
			break
		}
	}
	r.mu.Lock()
	for _, f := range flights {
		if f.waiters--; f.waiters == 0 {
			select {
			case <-f.done:
			default:
				f.cancel()
				f.o.flights = slices.DeleteFunc(f.o.flights, func(x *flight) bool { return x == f })
				r.prune(f.o)
			}
		}
	}
	r.mu.Unlock()
	if errors.Is(err, context.Canceled) && ctx.Err() == nil {
		return fmt.Errorf("cache: %w", fs.ErrClosed) // by Close; it was not ours
	}
	return err
}

// object returns what is known of an object. The caller holds mu.
func (r *ranges) object(key string, size int64) *object {
	id := entryID{keyHash(key), size}
	o := r.objects[id]
	if o == nil {
		o = &object{id: id, ext: extension(key)}
		o.item = item{id: id, owner: o}
		r.objects[id] = o
	}
	o.key = key
	return o
}

// find returns the piece that holds a byte, if there is one.
func (o *object) find(at int64) *piece {
	i := sort.Search(len(o.pieces), func(i int) bool { return o.pieces[i].end() > at })
	if i < len(o.pieces) && o.pieces[i].Offset <= at && (o.pieces[i].disk || o.pieces[i].data != nil) {
		return o.pieces[i]
	}
	return nil
}

// flying returns the flight that will bring a byte, if there is one that
// somebody waits for: another one may have been ended.
func (o *object) flying(at int64) *flight {
	for _, f := range o.flights {
		if f.Offset <= at && at < f.end() && f.err == nil {
			return f
		}
	}
	return nil
}

// gaps are what must be fetched for a span, in requests.
func (o *object) gaps(want Span) []Span {
	var gaps []Span
	for at := want.Offset; at < want.end(); {
		if p := o.find(at); p != nil {
			at = p.end()
			continue
		}
		if f := o.flying(at); f != nil {
			at = f.end()
			continue
		}
		end := want.end()
		for _, p := range o.pieces[sort.Search(len(o.pieces), func(i int) bool { return o.pieces[i].Offset > at }):] {
			if p.disk || p.data != nil {
				end = min(end, p.Offset)
				break
			}
		}
		for _, f := range o.flights {
			if f.Offset > at && f.err == nil {
				end = min(end, f.Offset)
			}
		}
		if n := len(gaps); n > 0 && at-gaps[n-1].end() <= joinBytes && end-gaps[n-1].Offset <= fetchBytes {
			gaps[n-1].Length = end - gaps[n-1].Offset
		} else {
			for ; end-at > fetchBytes; at += fetchBytes {
				gaps = append(gaps, Span{at, fetchBytes})
			}
			gaps = append(gaps, Span{at, end - at})
		}
		at = end
	}
	return gaps
}

// start begins a request. The caller holds mu.
func (r *ranges) start(ctx context.Context, o *object, s storage.Store, key string, span Span) {
	// It outlives its first caller if others wait for it, and ends when none
	// does, or the cache is closed.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	f := &flight{Span: span, o: o, cancel: cancel, done: make(chan struct{})}
	o.flights = append(o.flights, f)
	unhook := context.AfterFunc(r.ctx, cancel)
	r.flights.Go(func() {
		defer cancel()
		defer unhook()
		data, err := r.get(ctx, s, key, o.id.size, span)
		r.mu.Lock()
		f.data, f.err = data, err
		var pieces []*piece
		// What came though it was given up is not kept: the object may be gone
		// since, and another one have its file.
		if err == nil && slices.Contains(o.flights, f) {
			r.stats.Fetches++
			r.stats.FetchedBytes += span.Length
			pieces = r.keep(o, f)
		}
		r.mu.Unlock()
		close(f.done)
		if len(pieces) > 0 && r.disk.max > 0 {
			r.store(o, pieces, func(p *piece) []byte { return data[p.Offset-span.Offset : p.end()-span.Offset] })
		}
		r.mu.Lock()
		o.flights = slices.DeleteFunc(o.flights, func(x *flight) bool { return x == f })
		r.prune(o)
		r.mu.Unlock()
	})
}

func (r *ranges) get(ctx context.Context, s storage.Store, key string, size int64, span Span) ([]byte, error) {
	select {
	case r.places <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-r.places }()
	data, err := s.GetRange(ctx, key, span.Offset, span.Length)
	switch {
	case errors.Is(err, storage.ErrInvalidRange):
		return nil, fmt.Errorf("%w: less than %d bytes: %w", ErrSizeMismatch, size, err)
	case err != nil:
		return nil, err
	case int64(len(data)) != span.Length:
		return nil, fmt.Errorf("%w: %d bytes for %d", ErrSizeMismatch, len(data), span.Length)
	}
	return data, nil
}

// keep cuts what a flight brought into pieces and keeps them in memory as far
// as there is room. It returns those that are new. The caller holds mu.
func (r *ranges) keep(o *object, f *flight) []*piece {
	o.sweep()
	var out []*piece
	for at := f.Offset; at < f.end(); {
		i := sort.Search(len(o.pieces), func(i int) bool { return o.pieces[i].end() > at })
		if i < len(o.pieces) && o.pieces[i].Offset <= at {
			at = o.pieces[i].end()
			continue
		}
		end := min(f.end(), (at/pieceBytes+1)*pieceBytes)
		if i < len(o.pieces) {
			end = min(end, o.pieces[i].Offset)
		}
		// A copy: a piece that is kept must not keep the whole request.
		data := slices.Clone(f.data[at-f.Offset : end-f.Offset])
		p := &piece{Span: Span{at, end - at}, sum: xxhash.Sum64(data), storing: r.disk.max > 0}
		r.remember(o, p, data)
		o.pieces = slices.Insert(o.pieces, i, p)
		out = append(out, p)
		at = end
	}
	return out
}

// remember keeps a piece's bytes in memory if there is room. The caller holds
// mu.
func (r *ranges) remember(o *object, p *piece, data []byte) {
	if p.data != nil {
		return
	}
	p.item.id = entryID{o.id.keyHash + "/" + strconv.FormatInt(p.Offset, 10), p.Length}
	p.item.owner = p
	if p.item.element == nil && r.memory.grow(&p.item, p.Length) {
		p.data = data
	}
}

// sweep forgets pieces that are nowhere.
func (o *object) sweep() {
	o.pieces = slices.DeleteFunc(o.pieces, func(p *piece) bool { return !p.disk && !p.storing && p.data == nil })
}

// prune forgets pieces that are nowhere, and an object of which nothing is
// left. The caller holds mu.
func (r *ranges) prune(o *object) {
	if len(o.flights) > 0 {
		return
	}
	o.sweep()
	if len(o.pieces) == 0 && o.users == 0 && !o.file && r.objects[o.id] == o {
		delete(r.objects, o.id)
	}
}

func (r *ranges) snapshot() RangeStats {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.stats
	s.MemoryBytes, s.DiskBytes = r.memory.used, r.disk.used
	s.Evicted = r.memory.evicted + r.disk.evicted
	return s
}
