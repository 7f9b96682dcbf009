package index

import (
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
// where nothing is cached, a request for its directory and small labels, one
// for values of large ones, one for long postings where values alone do not
// narrow it down to a few pages, and one for series or a few more where these
// are many.
//
// A file is covered if the segments that know it can be read within the limits,
// and for less than the file's own identifying columns would take. The only
// error is that of ctx.
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
	settle(claims)
	var queue rowQueue
	for i := range claims {
		c := &claims[i]
		if !c.ok {
			continue
		}
		for f, want := range c.wanted {
			if want {
				if path := c.seg.files[f].path; out.Covered[path] == nil { // by another part
					out.Covered[path] = []Run{}
				}
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
	group  int    // claims of one group cover their files together
	wanted []bool // by file
	all    bool   // every file of the segment is wanted
	rows   []row
	ok     bool
}

// claim opens the segments and gives each of the files to one of them.
func (x *Index) claim(ctx context.Context, snap *txlog.Snapshot, rng series.TimeRange, files []string) ([]claim, error) {
	groups, err := x.usable(ctx, snap, rng)
	if err != nil {
		return nil, err
	}
	open := make(map[string]bool, len(files))
	for _, f := range files {
		open[f] = true
	}
	var out []claim
	for g, group := range groups {
		files := group[0].files
		wanted := make([]bool, len(files))
		n := 0
		for i := range files {
			if open[files[i].path] {
				delete(open, files[i].path)
				wanted[i] = true
				n++
			}
		}
		if n == 0 {
			continue
		}
		for _, s := range group {
			if !slices.EqualFunc(files, s.files, func(a, b indexed) bool { return a.path == b.path }) {
				if err := x.forgive(ctx, strings.TrimPrefix(s.key, x.log.Root()+"/"), fmt.Errorf("%w: other files than its first part has", ErrCorrupt)); err != nil {
					return nil, err
				}
				n = 0
			}
		}
		for _, s := range group[:min(n, 1)*len(group)] {
			out = append(out, claim{seg: s, group: g, wanted: wanted, all: n == len(files)})
		}
	}
	return out, nil
}

// settle takes back what parts of a group say of which another one failed.
func settle(claims []claim) {
	failed := map[int]bool{}
	for i := range claims {
		if !claims[i].ok {
			failed[claims[i].group] = true
		}
	}
	for i := range claims {
		claims[i].ok = !failed[claims[i].group]
	}
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
	var reach []bool
	if limit.Ahead != nil {
		reach = slices.Clone(c.wanted)
	}
	hits, exact, err := c.seg.candidates(ctx, sel.Matchers, limit.Bytes, reach)
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
	if len(ordinals) > 0 {
		for f, in := range reach {
			if in {
				limit.Ahead(c.seg.files[f].path)
			}
		}
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

// decoding decodes pages of series; its buffers are used again.
type decoding struct {
	last    [][]byte // by label
	set     []bool   // what last holds is of this page
	builder labels.ScratchBuilder
	buf     []byte // a page, decompressed
}

// starts splits the places of restarts from the series of a page; there are
// none where decoding begins at the first.
func (s *segment) starts(p int, raw []byte) (body, starts []byte, err error) {
	if s.restarts == 0 {
		return raw, nil, nil
	}
	inPage := min(s.total-p*seriesPerPage, seriesPerPage)
	n := 4 * ((inPage + s.restarts - 1) / s.restarts)
	if n > len(raw) {
		return nil, nil, fmt.Errorf("%w: restarts of a page of series", ErrCorrupt)
	}
	return raw[:len(raw)-n], raw[len(raw)-n:], nil
}

// errPage is made once: making it takes longer than reading a series.
var errPage = fmt.Errorf("%w: page of series", ErrCorrupt)

// page calls each for the wanted series of page p.
func (d *decoding) page(s *segment, p int, raw []byte, want []uint32, each func(row) error) error {
	if len(d.last) != len(s.labels) {
		d.last, d.set = make([][]byte, len(s.labels)), make([]bool, len(s.labels))
	}
	clear(d.set)
	body, starts, err := s.starts(p, raw)
	if err != nil {
		return err
	}
	r := &reading{b: body}
	first := p * seriesPerPage
	for o := first; o < min(s.total, first+seriesPerPage) && len(want) > 0; o++ {
		if starts != nil {
			// Go on at the last restart before what is wanted.
			if to := (int(want[0]) - first) / s.restarts; to > (o-first)/s.restarts {
				at := int64(binary.LittleEndian.Uint32(starts[4*to:]))
				if at > int64(len(body)) {
					return errPage
				}
				o, r.b = first+to*s.restarts, body[at:]
				clear(d.set)
			} else if (o-first)%s.restarts == 0 {
				clear(d.set)
			}
		}
		wanted := int(want[0]) == o
		head := r.bytes(8)
		if head == nil {
			return errPage
		}
		id := series.ID(binary.LittleEndian.Uint64(head))
		d.builder.Reset()
		for range r.count() {
			i := r.int(len(s.labels) - 1)
			if r.bad {
				return errPage
			}
			if !d.set[i] {
				d.set[i], d.last[i] = true, d.last[i][:0]
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
			return errPage
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
		return errPage
	}
	return nil
}
