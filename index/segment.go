package index

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"

	"golang.org/x/sync/errgroup"

	"cardinalsin/action"
	"cardinalsin/series"
	"cardinalsin/storage"
	"cardinalsin/txlog"
)

// span is a range of bytes in a segment.
type span struct{ offset, length int64 }

func (s span) end() int64 { return s.offset + s.length }

// segment is an open segment: its directory is read. It is immutable.
type segment struct {
	index    *Index
	key      string // in the store
	size     int64
	head     int64  // bytes of the end that are read first
	near     []byte // those of them before the directory, from nearAt on
	nearAt   int64
	kept     int64 // bytes that the segment takes while it is open
	restarts int   // of pages of series, every so many; 0: none

	files    []indexed
	sets     [][]uint32
	total    int // series
	pages    []span
	postings int64
	postEnd  int64
	labels   []label
	sorted   []int // labels by name
}

// label is one label of a segment.
type label struct {
	name   string
	set    int
	values int
	pages  []valuePage
}

type valuePage struct {
	first string
	span
}

// bytes is the size of all pages of a label.
func (l *label) bytes() (n int64) {
	for _, p := range l.pages {
		n += p.length
	}
	return n
}

// label finds a label, nil where no series has it.
func (s *segment) label(name string) *label {
	i, ok := sort.Find(len(s.sorted), func(i int) int { return strings.Compare(name, s.labels[s.sorted[i]].name) })
	if !ok {
		return nil
	}
	return &s.labels[s.sorted[i]]
}

// opened finds an open segment, nil where there is none.
func (x *Index) opened(key string) *segment {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.open[key]
}

// segment opens a segment, or finds it open: one request.
func (x *Index) segment(ctx context.Context, e *Segment) (*segment, error) {
	if s := x.opened(e.Key); s != nil {
		return s, nil
	}
	s := &segment{index: x, key: x.log.Root() + "/" + e.Key, size: e.Bytes, head: e.Directory, restarts: e.Restarts}
	if err := s.load(ctx); err != nil {
		return nil, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if _, ok := x.open[e.Key]; !ok {
		for k, old := range x.open {
			if x.kept+s.kept <= x.opts.DirectoryBytes {
				break
			}
			delete(x.open, k) // any: a map's order is as good as chance
			x.kept -= old.kept
		}
		x.open[e.Key] = s
		x.kept += s.kept
	}
	return s, nil
}

// read reads one range.
func (s *segment) read(ctx context.Context, at span) ([]byte, error) {
	if at.offset < 0 || at.length < 0 || at.offset > s.size || at.length > s.size-at.offset || at.length > maxBlock {
		return nil, fmt.Errorf("%w: range outside the segment", ErrCorrupt)
	}
	store := s.index.log.Store()
	var data []byte
	var err error
	if r := s.index.opts.Ranges; r != nil {
		data, err = r.ReadRange(ctx, store, s.key, s.size, at.offset, at.length)
	} else {
		data, err = store.GetRange(ctx, s.key, at.offset, at.length)
	}
	if errors.Is(err, storage.ErrInvalidRange) {
		return nil, fmt.Errorf("%w: shorter than the log says: %w", ErrCorrupt, err)
	}
	if err == nil && int64(len(data)) != at.length {
		return nil, fmt.Errorf("%w: short read", ErrCorrupt)
	}
	return data, err
}

// Two blocks that lie closer than maxGap are read in one request, as long as
// it does not exceed maxRequest.
const (
	maxGap     = 256 << 10
	maxRequest = 8 << 20
)

// isNear reports whether a block came with the directory.
func (s *segment) isNear(at span) bool {
	return at.offset >= s.nearAt && at.end() <= s.nearAt+int64(len(s.near))
}

// stored reads blocks and passes each through open. Requests run beside each
// other.
func (s *segment) stored(ctx context.Context, spans []span, open func([]byte) ([]byte, error)) ([][]byte, error) {
	out := make([][]byte, len(spans))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for from := 0; from < len(spans); {
		if s.isNear(spans[from]) {
			var err error
			if out[from], err = open(s.near[spans[from].offset-s.nearAt : spans[from].end()-s.nearAt]); err != nil {
				return nil, errors.Join(err, g.Wait())
			}
			from++
			continue
		}
		to := from + 1
		for to < len(spans) && !s.isNear(spans[to]) && spans[to].offset-spans[to-1].end() <= maxGap && spans[to].end()-spans[from].offset <= maxRequest {
			to++
		}
		near, into := spans[from:to], out[from:to]
		g.Go(func() error {
			start := near[0].offset
			data, err := s.read(gctx, span{start, near[len(near)-1].end() - start})
			if err != nil {
				return err
			}
			for i, at := range near {
				if into[i], err = open(data[at.offset-start : at.end()-start]); err != nil {
					return err
				}
			}
			return nil
		})
		from = to
	}
	return out, g.Wait()
}

func (s *segment) load(ctx context.Context) error {
	if s.size < int64(len(magic))+tailBytes {
		return fmt.Errorf("%w: %d bytes", ErrCorrupt, s.size)
	}
	guess := min(s.size, max(s.head, tailBytes))
	tail, err := s.read(ctx, span{s.size - guess, guess})
	if err != nil {
		return err
	}
	end := tail[guess-tailBytes:]
	n := binary.LittleEndian.Uint64(end)
	if string(end[8:]) != magic || n > uint64(s.size-tailBytes) {
		return fmt.Errorf("%w: no directory", ErrCorrupt)
	}
	length := int64(n)
	var block []byte
	if rest := guess - tailBytes - length; rest >= 0 {
		block = tail[rest : guess-tailBytes]
		if rest <= nearBytes {
			s.near, s.nearAt = slices.Clone(tail[:rest]), s.size-guess
		}
	} else if block, err = s.read(ctx, span{s.size - tailBytes - length, length}); err != nil {
		return err
	}
	raw, err := openBlock(block)
	if err != nil {
		return err
	}
	s.kept = int64(len(raw))*4 + int64(len(s.near)) // parsed it takes about that
	return s.parse(raw)
}

// parse takes the directory apart.
func (s *segment) parse(raw []byte) error {
	r := &reading{b: raw}
	length := func() int64 { return int64(r.int(int(s.size))) }
	s.files = make([]indexed, r.count())
	for i := range s.files {
		f := &s.files[i]
		f.path, f.size, f.identity = r.text(), int64(r.uvarint()), int64(r.uvarint())
		f.time = series.TimeRange{Min: series.Timestamp(r.zigzag()), Max: series.Timestamp(r.zigzag())}
	}
	s.sets = make([][]uint32, r.count())
	for i := range s.sets {
		n := r.count()
		s.sets[i] = make([]uint32, 0, n)
		r.ordinals(n, len(s.files), func(f int) { s.sets[i] = append(s.sets[i], uint32(f)) })
	}
	s.total = r.int(1 << 31)
	at := length()
	s.pages = make([]span, r.count())
	for i := range s.pages {
		s.pages[i] = span{at, length()}
		at = s.pages[i].end()
	}
	s.postings = length()
	s.postEnd = s.size
	s.labels = make([]label, r.count())
	s.sorted = make([]int, len(s.labels))
	for i := range s.labels {
		l := &s.labels[i]
		s.sorted[i] = i
		l.name, l.set, l.values = r.text(), r.int(len(s.sets)), r.int(s.total)
		at := length()
		l.pages = make([]valuePage, r.count())
		for j := range l.pages {
			l.pages[j].first = r.text()
			l.pages[j].span = span{at, length()}
			at = l.pages[j].end()
			if j > 0 && l.pages[j].first <= l.pages[j-1].first {
				r.bad = true
			}
		}
		if l.set >= len(s.sets) || l.name == "" || len(l.pages) == 0 {
			r.bad = true
		}
	}
	slices.SortFunc(s.sorted, func(a, b int) int { return strings.Compare(s.labels[a].name, s.labels[b].name) })
	if (s.total+seriesPerPage-1)/seriesPerPage != len(s.pages) {
		r.bad = true
	}
	return r.end("directory")
}

// value is one value of a label, as its page tells.
type value struct {
	text  []byte // good until the next one is read
	set   int
	count int
	kind  byte
	raw   []byte // the list, or the bitmap
	block span
}

// values takes a page apart, until each returns false.
func (s *segment) values(raw []byte, each func(v *value) bool) error {
	r := &reading{b: raw}
	var last []byte
	var v value
	for len(r.b) > 0 {
		shared := r.int(len(last))
		rest := r.bytes(r.count())
		last = append(last[:shared], rest...)
		v = value{text: last, set: r.int(len(s.sets)), count: r.int(s.total)}
		if b := r.bytes(1); len(b) == 1 {
			v.kind = b[0]
		}
		switch v.kind {
		case postingsList:
			v.raw = r.numbers(v.count)
		case postingsBitmap:
			v.raw = r.bytes(r.count())
		case postingsBlock:
			v.block = span{s.postings + int64(r.int(int(s.size))), int64(r.int(int(s.size)))}
		default:
			r.bad = true
		}
		if r.bad || v.set >= len(s.sets) || v.count == 0 {
			return fmt.Errorf("%w: page of values", ErrCorrupt)
		}
		if !each(&v) {
			return nil
		}
	}
	return r.end("page of values")
}

// row is a series as its page tells.
type row struct {
	Series
	runs []where
}

// series reads the series with these ordinals, which ascend, and calls each in
// order.
func (s *segment) series(ctx context.Context, ordinals []uint32, decode *decoding, each func(row) error) error {
	// Some pages at a time, so that memory holds no more than those.
	const pagesAtOnce = 1024
	for len(ordinals) > 0 {
		var pages []int
		n := 0
		for ; n < len(ordinals); n++ {
			p := int(ordinals[n]) / seriesPerPage
			if len(pages) == 0 || pages[len(pages)-1] != p {
				if len(pages) == pagesAtOnce {
					break
				}
				pages = append(pages, p)
			}
		}
		spans := make([]span, len(pages))
		for i, p := range pages {
			spans[i] = s.pages[p]
		}
		// Few are worth keeping; many are opened one after another into the
		// same memory.
		few := len(spans) <= fewBlocks
		var blocks [][]byte
		var err error
		if few {
			blocks, err = s.blocks(ctx, spans)
		} else {
			blocks, err = s.stored(ctx, spans, func(b []byte) ([]byte, error) { return b, nil })
		}
		if err != nil {
			return err
		}
		rest := ordinals[:n]
		for i, p := range pages {
			raw := blocks[i]
			if !few {
				if decode.buf, err = openInto(decode.buf, raw); err != nil {
					return err
				}
				raw = decode.buf
			}
			end := sort.Search(len(rest), func(i int) bool { return int(rest[i]) >= (p+1)*seriesPerPage })
			if err := decode.page(s, p, raw, rest[:end], each); err != nil {
				return err
			}
			rest = rest[end:]
		}
		ordinals = ordinals[n:]
	}
	return nil
}

// named are the segments that a text of the log names.
type named struct {
	text    string
	entries []dated
}

// dated is a segment with its day.
type dated struct {
	Segment
	day series.Date
}

// segments is Segments, parsed once for all versions that name the same.
func (x *Index) segments(snap *txlog.Snapshot) ([]dated, error) {
	text, _ := snap.Domain(Domain)
	if n := x.named.Load(); n != nil && n.text == text {
		return n.entries, nil
	}
	all, err := Segments(snap)
	if err != nil {
		return nil, err
	}
	n := &named{text: text, entries: make([]dated, len(all))}
	for i, s := range all {
		day, err := series.ParseDate(s.Date)
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %w", action.ErrCorrupt, Domain, err)
		}
		n.entries[i] = dated{s, day}
	}
	x.named.Store(n)
	return n.entries, nil
}

// usable opens the segments of a version that matter for a time range, in groups
// that cover their files together; a group of which one cannot be opened is
// left out.
func (x *Index) usable(ctx context.Context, snap *txlog.Snapshot, rng series.TimeRange) (out [][]*segment, err error) {
	entries, err := x.segments(snap)
	if err != nil {
		x.report(Domain, err)
		return nil, nil
	}
	var want []*Segment
	var open []*segment
	var missing []int // in want
	for i := range entries {
		e := &entries[i]
		if !e.day.Range().Overlaps(rng) || x.isDamaged(e.Key) {
			continue
		}
		s := x.opened(e.Key)
		if s == nil {
			missing = append(missing, len(want))
		}
		want, open = append(want, &e.Segment), append(open, s)
	}
	err = x.each(ctx, len(missing), func(ctx context.Context, i int) error {
		e := want[missing[i]]
		s, err := x.segment(ctx, e)
		if err = x.forgive(ctx, e.Key, err); err == nil {
			open[missing[i]] = s
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	groups := map[string][]*segment{}
	for i, s := range open {
		if s == nil {
			continue
		}
		if want[i].Parts == 0 {
			out = append(out, []*segment{s})
			continue
		}
		key := want[i].group()
		groups[key] = append(groups[key], s)
		if len(groups[key]) == want[i].Parts {
			out = append(out, groups[key])
		}
	}
	return out, nil
}

// each calls work n times, Parallel at once.
func (x *Index) each(ctx context.Context, n int, work func(ctx context.Context, i int) error) error {
	if n == 1 {
		return work(ctx, 0)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(x.opts.Parallel)
	for i := range n {
		g.Go(func() error { return work(gctx, i) })
	}
	return g.Wait()
}

// forgive turns what a segment failed with into nothing but the end of the
// caller's context. Damage is told once, and the segment not asked again.
func (x *Index) forgive(ctx context.Context, key string, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, ErrCorrupt) || errors.Is(err, storage.ErrNotFound) {
		x.report(key, err)
		x.mu.Lock()
		defer x.mu.Unlock()
		if s, ok := x.open[key]; ok {
			delete(x.open, key)
			x.kept -= s.kept
		}
	}
	return nil
}

func (x *Index) isDamaged(key string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.damaged[key]
}

func (x *Index) report(key string, err error) {
	x.mu.Lock()
	known := x.damaged[key]
	x.damaged[key] = true
	x.mu.Unlock()
	if !known {
		x.opts.Logger.Warn("index segment is of no use; its files are read instead until it is built anew", "table", x.log.Root(), "segment", key, "err", err)
	}
}
