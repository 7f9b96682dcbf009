package checkpoint

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"cardinalsin/checkpoint/internal/parquetcol"
	"cardinalsin/storage"
)

// Sizes of reads.
const (
	// wholeBytes: an object up to this size is read in one request; the
	// footer, read first otherwise, would cost a round trip.
	wholeBytes = 4 << 20
	// tailBytes is read first of a greater object. A footer takes about
	// 100 bytes a column of a row group: 45 columns, 100 row groups.
	tailBytes = 512 << 10
	// spanBytes is how much a ranged read aims at.
	spanBytes = 16 << 20
	// gapBytes is what is read in vain rather than asking twice.
	gapBytes = 256 << 10
	// aheadBytes bounds what has been read and is not decoded yet.
	aheadBytes = 64 << 20
	// sumSpanBytes and sumAheadBytes are the same where a file is only summed
	// up.
	sumSpanBytes, sumAheadBytes = 1 << 20, 2 << 20
	// groupWaste is about what decoding a row group leaves beside its bytes.
	groupWaste = 512 << 10
	// aheadObjects bounds the objects that are opened ahead.
	aheadObjects = 8
)

// damaged names the object; what is not supported is told from what is broken.
func damaged(key string, err error) error {
	if errors.Is(err, parquetcol.ErrUnsupported) {
		return fmt.Errorf("%w: %s: %w", ErrUnsupported, key, err)
	}
	return fmt.Errorf("%w: %s: %w", ErrCorrupt, key, err)
}

// storeErr tells objects that are missing or shorter than listed, which is
// damage, from a store that does not answer.
func storeErr(key string, err error) error {
	if errors.Is(err, storage.ErrNotFound) || errors.Is(err, storage.ErrInvalidRange) {
		return fmt.Errorf("%w: %s: %w", ErrCorrupt, key, err)
	}
	return err
}

// part is one object to read; its size is 0 where it is not known.
type part struct {
	key  string
	size int64
}

func parts(keys []string, sizes []int64) []part {
	out := make([]part, len(keys))
	for i, k := range keys {
		out[i].key = k
		if i < len(sizes) {
			out[i].size = sizes[i]
		}
	}
	return out
}

// source is an opened Parquet object.
type source struct {
	store storage.Store
	part
	whole []byte // its bytes, if it was read whole
	file  *parquetcol.File
	want  *contents
}

// openSource reads the footer.
func openSource(ctx context.Context, store storage.Store, p part) (*source, error) {
	s := &source{store: store, part: p}
	var tail []byte
	var err error
	if p.size <= wholeBytes {
		if s.whole, _, err = store.Get(ctx, p.key); err != nil {
			return nil, storeErr(p.key, err)
		}
		s.size, tail = int64(len(s.whole)), s.whole
	} else if tail, err = store.GetRange(ctx, p.key, p.size-tailBytes, tailBytes); err != nil {
		return nil, storeErr(p.key, err)
	}
	end := tail[max(0, len(tail)-parquetcol.TailSize):]
	n, err := parquetcol.FooterSize(end, s.size)
	if err != nil {
		return nil, damaged(p.key, err)
	}
	var footer []byte
	if have := int64(len(tail) - parquetcol.TailSize); n <= have {
		footer = tail[have-n : have]
	} else if footer, err = store.GetRange(ctx, p.key, s.size-parquetcol.TailSize-n, n); err != nil {
		return nil, storeErr(p.key, err)
	}
	if s.file, err = parquetcol.ParseFooter(footer, s.size); err != nil {
		return nil, damaged(p.key, err)
	}
	if text, ok := s.file.KeyValue[contentsKey]; ok {
		c, err := parseContents(text)
		if err != nil {
			return nil, damaged(p.key, err)
		}
		s.want = &c
	} else if strings.HasPrefix(s.file.CreatedBy, createdBy+" ") {
		return nil, damaged(p.key, errors.New("the footer lacks its contents"))
	}
	return s, nil
}

// span is a range of an object that serves several row groups.
type span struct {
	ranges []byteRange
	groups []int
	bytes  int64
}

type byteRange struct{ from, to int64 }

// spans cuts an object into spans of about limit bytes; chunks tells what is needed of a group.
func (s *source) spans(limit int64, chunks func(group int) []parquetcol.Chunk) []span {
	var out []span
	for g := range s.file.RowGroups {
		var ranges []byteRange
		for _, c := range chunks(g) {
			if c.Length > 0 {
				ranges = append(ranges, byteRange{c.Offset, c.Offset + c.Length})
			}
		}
		if s.file.RowGroups[g].NumRows == 0 || len(ranges) == 0 {
			continue
		}
		ranges = coalesce(ranges)
		if n := len(out); n > 0 {
			both := coalesce(slices.Concat(out[n-1].ranges, ranges))
			if total(both) <= limit {
				out[n-1].ranges, out[n-1].bytes = both, total(both)
				out[n-1].groups = append(out[n-1].groups, g)
				continue
			}
		}
		out = append(out, span{ranges: ranges, groups: []int{g}, bytes: total(ranges)})
	}
	return out
}

// coalesce sorts ranges and unites those that lie close together.
func coalesce(ranges []byteRange) []byteRange {
	slices.SortFunc(ranges, func(a, b byteRange) int { return cmp.Compare(a.from, b.from) })
	n := 0
	for _, r := range ranges[1:] {
		if last := &ranges[n]; r.from <= last.to+gapBytes {
			last.to = max(last.to, r.to)
			continue
		}
		n++
		ranges[n] = r
	}
	return ranges[:n+1]
}

func total(ranges []byteRange) (n int64) {
	for _, r := range ranges {
		n += r.to - r.from
	}
	return n
}

// window holds the bytes of a span.
type window struct {
	ranges []byteRange
	data   [][]byte
}

func (s *source) fetch(ctx context.Context, sp span) (*window, error) {
	w := &window{ranges: sp.ranges}
	for _, r := range sp.ranges {
		if s.whole != nil {
			w.data = append(w.data, s.whole[r.from:r.to])
			continue
		}
		b, err := s.store.GetRange(ctx, s.key, r.from, r.to-r.from)
		if err != nil {
			return nil, storeErr(s.key, err)
		}
		if int64(len(b)) != r.to-r.from {
			return nil, damaged(s.key, fmt.Errorf("%d bytes at %d, want %d", len(b), r.from, r.to-r.from))
		}
		w.data = append(w.data, b)
	}
	return w, nil
}

// chunk returns the bytes of a chunk that was asked for.
func (w *window) chunk(c parquetcol.Chunk) []byte {
	for i, r := range w.ranges {
		if c.Offset >= r.from && c.Offset+c.Length <= r.to {
			return w.data[i][c.Offset-r.from : c.Offset-r.from+c.Length]
		}
	}
	return nil
}

// future is a value that is being fetched.
type future[T any] struct {
	done chan struct{}
	v    T
	err  error
}

func start[T any](g *errgroup.Group, f func() (T, error)) *future[T] {
	u := &future[T]{done: make(chan struct{})}
	g.Go(func() error {
		defer close(u.done)
		u.v, u.err = f()
		return nil // reported where it is waited for, so that the first part's error wins
	})
	return u
}

func (u *future[T]) wait(ctx context.Context) (T, error) {
	select {
	case <-u.done:
		return u.v, u.err
	case <-ctx.Done():
		var zero T
		return zero, context.Cause(ctx)
	}
}

// job is one row group on its way from the store to the sink.
type job struct {
	src    *source
	reader *fileReader
	group  int
	window *future[*window]
	weight int64 // of the budget, given back when the group is decoded
	out    chan *batch
	err    error // set before out is closed
}

// readParquet reads objects in order and delivers their actions:
//
//	open (ahead) → fetch spans (ahead, within a budget) → decode row groups
//	(a goroutine a processor) → deliver, in the order of the file
func readParquet(ctx context.Context, store storage.Store, files []part, sidecars bool, d *delivery) error {
	outer := ctx
	ctx, cancel := context.WithCancel(ctx)
	var g errgroup.Group
	defer func() {
		cancel()
		_ = g.Wait() // all errors come through the jobs
	}()
	workers := runtime.GOMAXPROCS(0)
	if d.sink.sumOnly {
		workers = 1
	}
	ordered := make(chan *job, workers+1)
	todo := make(chan *job, workers+1)
	spanLimit, ahead := int64(spanBytes), int64(aheadBytes)
	if d.sink.sumOnly {
		spanLimit, ahead = sumSpanBytes, sumAheadBytes
	}
	budget := semaphore.NewWeighted(ahead)
	interned := newInterner()

	g.Go(func() error {
		defer close(ordered)
		defer close(todo)
		// fail passes an error on in its place in the order.
		fail := func(err error) {
			j := &job{out: make(chan *batch), err: err}
			close(j.out)
			select {
			case ordered <- j:
			case <-ctx.Done():
			}
		}
		opened := make([]*future[*source], 0, len(files))
		for i := range files {
			for len(opened) < len(files) && len(opened) < i+aheadObjects {
				p := files[len(opened)]
				opened = append(opened, start(&g, func() (*source, error) { return openSource(ctx, store, p) }))
			}
			src, err := opened[i].wait(ctx)
			if err != nil {
				fail(err)
				return nil
			}
			opened[i] = nil
			r, err := newFileReader(src.file, &d.sink, sidecars, src.want != nil && d.sink.all(), interned)
			if err != nil {
				fail(damaged(src.key, err))
				return nil
			}
			for _, sp := range src.spans(spanLimit, r.chunks) {
				weight := min(sp.bytes, ahead) / int64(len(sp.groups))
				if err := budget.Acquire(ctx, weight*int64(len(sp.groups))); err != nil {
					return nil
				}
				w := start(&g, func() (*window, error) { return src.fetch(ctx, sp) })
				for _, group := range sp.groups {
					j := &job{src: src, reader: r, group: group, window: w, weight: weight, out: make(chan *batch, 2)}
					// First to the workers: a job that waits in the order is
					// always decoded.
					for _, queue := range []chan *job{todo, ordered} {
						select {
						case queue <- j:
						case <-ctx.Done():
							return nil
						}
					}
				}
			}
			if src.want != nil && !sidecars {
				// No job looks at it; the deferred check runs after all of them.
				d.want = src.want
			}
		}
		return nil
	})
	for range workers {
		g.Go(func() error {
			for j := range todo {
				j.err = j.decode(ctx)
				budget.Release(j.weight)
				close(j.out)
			}
			return nil
		})
	}
	var waste garbage
	for j := range ordered {
		for b := range j.out {
			if err := d.deliver(b); err != nil {
				return err
			}
		}
		if j.err != nil {
			// A cancelled caller hears of that, not of what it led to.
			return cmp.Or(context.Cause(outer), j.err)
		}
		if d.sink.sumOnly {
			waste.add(j.weight + groupWaste)
		}
	}
	return context.Cause(outer)
}

// decode turns the row group into batches.
func (j *job) decode(ctx context.Context) (err error) {
	// The codecs are libraries that promise no panic on bad input but have
	// had some; a damaged file must not end the process.
	defer func() {
		if p := recover(); p != nil {
			err = damaged(j.src.key, fmt.Errorf("row group %d: panic: %v", j.group, p))
		}
	}()
	w, err := j.window.wait(ctx)
	if err != nil {
		return err
	}
	emit := func(b *batch) error {
		select {
		case j.out <- b:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	err = j.reader.readGroup(j.group, w, emit)
	if err != nil && ctx.Err() == nil {
		return damaged(j.src.key, fmt.Errorf("row group %d: %w", j.group, err))
	}
	return err
}
