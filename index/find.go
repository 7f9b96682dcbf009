package index

import (
	"cmp"
	"container/heap"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/RoaringBitmap/roaring/v2"
	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/series"
	"cardinalsin/txlog"
)

// Find locates the series that a selector picks in the given files, paths as
// the snapshot logs them. Segments are read beside each other; each costs,
// where nothing is cached, a request for its directory, one for values, one
// for long postings, and one for series or a few more where these are many.
//
// A file is covered if a segment that knows it can be read within the limits,
// and for less than the file's own identifying columns would take. Errors: that
// of ctx, storage errors of which none says that a segment is damaged.
func (x *Index) Find(ctx context.Context, snap *txlog.Snapshot, sel series.Selector, files []string, limit Limits) (Found, error) {
	limit.ensureDefaults()
	out := Found{Covered: map[string][]Run{}}
	claims, err := x.claim(ctx, snap, sel.Range, files)
	if err != nil {
		return Found{}, fmt.Errorf("find in the index: %w", err)
	}
	err = x.each(ctx, len(claims), func(ctx context.Context, i int) error {
		c := &claims[i]
		ok, err := c.find(ctx, sel, limit)
		c.ok = ok && err == nil
		return x.forgive(ctx, strings.TrimPrefix(c.seg.key, x.log.Root()+"/"), err)
	})
	if err != nil {
		return Found{}, fmt.Errorf("find in the index: %w", err)
	}
	var queue rowQueue
	for i := range claims {
		c := &claims[i]
		if !c.ok {
			continue
		}
		for f, want := range c.wanted {
			if want {
				out.Covered[c.seg.files[f].path] = []Run{}
			}
		}
		if len(c.rows) > 0 {
			queue = append(queue, c)
		}
	}
	heap.Init(&queue)
	for len(queue) > 0 {
		c := queue[0]
		r := &c.rows[0]
		n := len(out.Series) - 1
		if n < 0 || series.Compare(out.Series[n].Labels, r.Labels, out.Series[n].ID, r.ID) != 0 {
			out.Series = append(out.Series, r.Series)
			n++
		}
		for _, w := range r.runs {
			path := c.seg.files[w.file].path
			out.Covered[path] = append(out.Covered[path], Run{Series: n, RowGroup: w.group, First: w.first, Rows: w.rows})
		}
		c.rows[0] = row{}
		if c.rows = c.rows[1:]; len(c.rows) == 0 {
			heap.Pop(&queue)
		} else {
			heap.Fix(&queue, 0)
		}
	}
	return out, nil
}

// claim is a segment with the files that a call wants from it.
type claim struct {
	seg    *segment
	wanted []bool // by file
	all    bool   // every file of the segment is wanted
	rows   []row
	ok     bool
}

// claim opens the segments and gives each of the files to one of them.
func (x *Index) claim(ctx context.Context, snap *txlog.Snapshot, rng series.TimeRange, files []string) ([]claim, error) {
	segments, err := x.usable(ctx, snap, rng)
	if err != nil {
		return nil, err
	}
	open := make(map[string]bool, len(files))
	for _, f := range files {
		open[f] = true
	}
	var out []claim
	for _, s := range segments {
		c := claim{seg: s, wanted: make([]bool, len(s.files)), all: true}
		n := 0
		for i := range s.files {
			if open[s.files[i].path] {
				delete(open, s.files[i].path)
				c.wanted[i] = true
				n++
			}
		}
		c.all = n == len(s.files)
		if n > 0 {
			out = append(out, c)
		}
	}
	return out, nil
}

// rowQueue orders claims by the series that each stands on.
type rowQueue []*claim

func (q rowQueue) Len() int { return len(q) }
func (q rowQueue) Less(i, j int) bool {
	a, b := &q[i].rows[0], &q[j].rows[0]
	return series.Compare(a.Labels, b.Labels, a.ID, b.ID) < 0
}
func (q rowQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *rowQueue) Push(v any)   { *q = append(*q, v.(*claim)) }
func (q *rowQueue) Pop() any {
	old := *q
	last := old[len(old)-1]
	*q = old[:len(old)-1]
	return last
}

// find fills rows; ok is false where it would cost too much.
func (c *claim) find(ctx context.Context, sel series.Selector, limit Limits) (ok bool, err error) {
	hits, exact, err := c.seg.candidates(ctx, sel.Matchers, limit.Bytes)
	if err != nil {
		return false, err
	}
	n := c.seg.total
	if hits != nil {
		n = int(hits.GetCardinality())
	}
	if n > limit.Series {
		return false, nil
	}
	ordinals := c.seg.ordinals(hits)
	// A request is worth as much as a megabyte.
	if bytes := c.seg.pageBytes(ordinals); bytes > limit.Bytes || bytes > 2*c.identity()+1<<20 {
		return false, nil
	}
	if exact {
		sel.Matchers = nil
	}
	c.rows = make([]row, 0, min(n, 1<<16))
	err = c.seg.series(ctx, ordinals, &decoding{}, func(r row) error {
		if !sel.Matches(r.Labels) {
			return nil
		}
		r.runs = slices.DeleteFunc(r.runs, func(w where) bool { return !c.wanted[w.file] })
		if len(r.runs) > 0 {
			c.rows = append(c.rows, r)
		}
		return nil
	})
	return err == nil, err
}

// identity is what the wanted files' identifying columns take.
func (c *claim) identity() (n int64) {
	for f, want := range c.wanted {
		if want {
			n += c.seg.files[f].identity
		}
	}
	return n
}

// wants reports whether a set holds a wanted file.
func (c *claim) wants(set int) bool {
	if c.all {
		return true
	}
	return slices.ContainsFunc(c.seg.sets[set], func(f uint32) bool { return c.wanted[f] })
}

// ordinals lists what a bitmap holds; nil stands for all series.
func (s *segment) ordinals(hits *roaring.Bitmap) []uint32 {
	if hits != nil {
		return hits.ToArray()
	}
	out := make([]uint32, s.total)
	for i := range out {
		out[i] = uint32(i)
	}
	return out
}

// pageBytes is what must be read for these series.
func (s *segment) pageBytes(ordinals []uint32) (n int64) {
	last := -1
	for _, o := range ordinals {
		if p := int(o) / seriesPerPage; p != last {
			n += s.pages[p].length
			last = p
		}
	}
	return n
}

// task is what a selector asks of one label.
type task struct {
	label    *label
	matchers []*labels.Matcher
	// exclude: the label may be absent, so that the values which do not match
	// are looked for, and their series taken out.
	exclude bool
	// finite: only these values can be what is looked for. They ascend.
	finite bool
	values []string
	prefix string
	pages  []valuePage
}

// newTask plans one label. none is true where no series can match.
func (s *segment) newTask(name string, matchers []*labels.Matcher) (t *task, none bool) {
	t = &task{label: s.label(name), matchers: matchers}
	t.exclude = t.matches("")
	if t.label == nil {
		return nil, !t.exclude
	}
	for _, m := range matchers {
		var set []string
		switch {
		case !t.exclude && m.Type == labels.MatchEqual, t.exclude && m.Type == labels.MatchNotEqual:
			set = []string{m.Value}
		case !t.exclude && m.Type == labels.MatchRegexp, t.exclude && m.Type == labels.MatchNotRegexp:
			set = m.SetMatches()
		}
		switch {
		case t.exclude:
			// Excluded is what any of them refuses, so all must be finite.
			if len(set) == 0 {
				t.finite, t.values = false, nil
				goto planned
			}
			t.finite = true
			t.values = append(t.values, set...)
		case len(set) > 0 && (!t.finite || len(set) < len(t.values)):
			t.finite, t.values = true, slices.Clone(set)
		case m.Type == labels.MatchRegexp && len(m.Prefix()) > len(t.prefix):
			t.prefix = m.Prefix()
		}
	}
planned:
	slices.Sort(t.values)
	t.values = slices.Compact(t.values)
	t.values = slices.DeleteFunc(t.values, func(v string) bool { return v == "" || t.matches(v) == t.exclude })
	t.choosePages()
	return t, t.finite && len(t.values) == 0 && !t.exclude
}

func (t *task) matches(v string) bool {
	for _, m := range t.matchers {
		if !m.Matches(v) {
			return false
		}
	}
	return true
}

// hit reports whether the value is one that is looked for.
func (t *task) hit(v string) bool {
	if t.finite {
		_, ok := slices.BinarySearch(t.values, v)
		return ok
	}
	return t.matches(v) != t.exclude
}

// choosePages keeps the pages that can hold a value which is looked for.
func (t *task) choosePages() {
	all := t.label.pages
	pageOf := func(v string) int { // the last page that begins with v or less
		i, ok := slices.BinarySearchFunc(all, v, func(p valuePage, v string) int { return strings.Compare(p.first, v) })
		if !ok {
			i--
		}
		return i
	}
	switch {
	case t.finite:
		last := -1
		for _, v := range t.values {
			if i := pageOf(v); i > last {
				t.pages = append(t.pages, all[i])
				last = i
			}
		}
	case t.prefix != "" && !t.exclude:
		from := max(pageOf(t.prefix), 0)
		for _, p := range all[from:] {
			if p.first > t.prefix && !strings.HasPrefix(p.first, t.prefix) {
				break
			}
			t.pages = append(t.pages, p)
		}
	default:
		t.pages = all
	}
}

func (t *task) bytes() (n int64) {
	for _, p := range t.pages {
		n += p.length
	}
	return n
}

// fewPages: where what is left lies in so few pages of series, their labels
// tell the rest.
const fewPages = 16

// candidates returns the series that may match, nil for all; exact says that
// all of them do. Matchers that name values are asked first; of the others
// only those that cost less than what they can save.
func (s *segment) candidates(ctx context.Context, matchers []*labels.Matcher, limit int64) (hits *roaring.Bitmap, exact bool, err error) {
	byName := map[string][]*labels.Matcher{}
	var names []string
	for _, m := range matchers {
		if byName[m.Name] == nil {
			names = append(names, m.Name)
		}
		byName[m.Name] = append(byName[m.Name], m)
	}
	var named, scans []*task
	for _, name := range names {
		t, none := s.newTask(name, byName[name])
		switch {
		case none:
			return roaring.New(), true, nil
		case t == nil:
		case t.finite:
			named = append(named, t)
		default:
			scans = append(scans, t)
		}
	}
	apply := func(tasks []*task) error {
		sets, err := s.ask(ctx, tasks)
		if err != nil {
			return err
		}
		for i, t := range tasks {
			switch {
			case !t.exclude && hits == nil:
				hits = sets[i]
			case !t.exclude:
				hits.And(sets[i])
			case !sets[i].IsEmpty():
				if hits == nil {
					hits = roaring.New()
					hits.AddRange(0, uint64(s.total))
				}
				hits.AndNot(sets[i])
			}
		}
		return nil
	}
	// Those that take out come last: they need something to take from.
	slices.SortStableFunc(named, func(a, b *task) int { return cmp.Compare(b2i(a.exclude), b2i(b.exclude)) })
	if err := apply(named); err != nil {
		return nil, false, err
	}
	slices.SortStableFunc(scans, func(a, b *task) int { return cmp.Compare(a.bytes(), b.bytes()) })
	exact = true
	for _, t := range scans {
		left := int64(math.MaxInt64)
		if hits != nil {
			if hits.IsEmpty() {
				return hits, true, nil
			}
			if hits.GetCardinality() <= fewPages*seriesPerPage {
				left = s.pageBytes(hits.ToArray())
			}
		}
		if t.bytes() > min(left, limit) {
			exact = false
			continue
		}
		if err := apply([]*task{t}); err != nil {
			return nil, false, err
		}
	}
	return hits, exact, nil
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// ask finds the series with the values that each task looks for: one round
// trip for the pages of all, one for long postings.
func (s *segment) ask(ctx context.Context, tasks []*task) ([]*roaring.Bitmap, error) {
	var pages []span
	for _, t := range tasks {
		for _, p := range t.pages {
			pages = append(pages, p.span)
		}
	}
	raw, err := s.spans(ctx, pages)
	if err != nil {
		return nil, err
	}
	out := make([]*roaring.Bitmap, len(tasks))
	later := make([][]span, len(tasks))
	var long []span
	for i, t := range tasks {
		out[i] = roaring.New()
		var fault error
		for _, p := range t.pages {
			err := s.values(raw[p.span], func(v *value) bool {
				if !t.hit(v.text) {
					return true
				}
				if v.kind == postingsBlock {
					later[i] = append(later[i], v.block)
					long = append(long, v.block)
					return true
				}
				fault = s.postingsInto(out[i], v)
				return fault == nil
			})
			if err == nil {
				err = fault
			}
			if err != nil {
				return nil, err
			}
		}
	}
	if len(long) == 0 {
		return out, nil
	}
	if raw, err = s.spans(ctx, long); err != nil {
		return nil, err
	}
	for i := range tasks {
		for _, at := range later[i] {
			m, err := openBitmap(raw[at], s.total)
			if err != nil {
				return nil, err
			}
			out[i].Or(m)
		}
	}
	return out, nil
}

// spans reads blocks in any order, each once.
func (s *segment) spans(ctx context.Context, want []span) (map[span][]byte, error) {
	want = slices.Clone(want)
	slices.SortFunc(want, func(a, b span) int { return cmp.Compare(a.offset, b.offset) })
	want = slices.Compact(want)
	raw, err := s.blocks(ctx, want)
	if err != nil {
		return nil, err
	}
	out := make(map[span][]byte, len(want))
	for i, at := range want {
		out[at] = raw[i]
	}
	return out, nil
}

// postingsInto adds the series of a value whose postings lie in its page.
func (s *segment) postingsInto(m *roaring.Bitmap, v *value) error {
	if v.kind == postingsBitmap {
		p, err := openBitmap(v.raw, s.total)
		if err == nil {
			m.Or(p)
		}
		return err
	}
	r := &reading{b: v.raw}
	r.ordinals(v.count, s.total, func(o int) { m.Add(uint32(o)) })
	return r.end("postings")
}

// decoding decodes pages of series; its buffers are used again.
type decoding struct {
	last    [][]byte // by label
	set     []int    // the page that last was set in, 1 more
	builder labels.ScratchBuilder
}

// page calls each for the wanted series of page p.
func (d *decoding) page(s *segment, p int, raw []byte, want []uint32, each func(row) error) error {
	if len(d.last) != len(s.labels) {
		d.last, d.set = make([][]byte, len(s.labels)), make([]int, len(s.labels))
	}
	clear(d.set)
	r := &reading{b: raw}
	fault := fmt.Errorf("%w: page of series", ErrCorrupt)
	for o := p * seriesPerPage; o < min(s.total, (p+1)*seriesPerPage) && len(want) > 0; o++ {
		wanted := int(want[0]) == o
		head := r.bytes(8)
		if head == nil {
			return fault
		}
		id := series.ID(binary.LittleEndian.Uint64(head))
		d.builder.Reset()
		for range r.count() {
			i := r.int(len(s.labels) - 1)
			if r.bad {
				return fault
			}
			if d.set[i] == 0 {
				d.set[i], d.last[i] = 1, d.last[i][:0]
			}
			shared := r.int(len(d.last[i]))
			d.last[i] = append(d.last[i][:shared], r.bytes(r.count())...)
			if wanted {
				d.builder.Add(s.labels[i].name, string(d.last[i]))
			}
		}
		n := r.count()
		var runs []where
		if wanted {
			runs = make([]where, 0, n)
		}
		for range n {
			w := where{r.int(len(s.files) - 1), r.int(math.MaxInt32), r.int(math.MaxInt32), r.int(math.MaxInt32)}
			if wanted {
				runs = append(runs, w)
			}
		}
		if r.bad {
			return fault
		}
		if !wanted {
			continue
		}
		want = want[1:]
		l := d.builder.Labels()
		if series.IDOf(l) != id {
			return fmt.Errorf("%w: id of series %d", ErrCorrupt, o)
		}
		if err := each(row{Series{l, id}, runs}); err != nil {
			return err
		}
	}
	if len(want) > 0 {
		return fault
	}
	return nil
}
