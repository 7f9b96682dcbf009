package chunk

import (
	"slices"

	"cardinalsin/internal/lru"
	"cardinalsin/series"
)

// Pages keeps decoded pages of samples from one call to the next, those of the
// row groups that were used last, up to a number of bytes. A file is immutable,
// so what is kept stays true. It may be used concurrently, and by all files of
// one store.
type Pages struct {
	groups *lru.Cache[groupKey, keptGroup]
}

// groupKey is a row group of a file.
type groupKey struct {
	file  string
	group int
}

// keptGroup is what is kept of a row group. It is replaced and never changed.
type keptGroup struct {
	bytes  int64
	times  keptColumn[series.Timestamp]
	values keptColumn[float64]
}

// keptColumn is a column of a row group: which rows its pages hold, and those
// pages that are kept.
type keptColumn[T any] struct {
	firsts []int // the first row of each page, and the number of rows; nil: not known
	pages  [][]T // nil: not kept
}

func timesOf(g *keptGroup) *keptColumn[series.Timestamp] { return &g.times }
func valuesOf(g *keptGroup) *keptColumn[float64]         { return &g.values }

// NewPages returns a place for up to limit bytes of decoded samples, 16 bytes
// each.
func NewPages(limit int64) *Pages { return &Pages{lru.New[groupKey, keptGroup](limit)} }

// Limit is the greatest number of bytes that are kept.
func (p *Pages) Limit() int64 { return p.groups.Most() }

// Bytes is what is kept now.
func (p *Pages) Bytes() int64 { return p.groups.Used() }

// find returns what is kept of a column: its slices are not to be changed, and
// may be used after it was dropped.
func find[T any](p *Pages, key groupKey, of func(*keptGroup) *keptColumn[T]) keptColumn[T] {
	if p == nil {
		return keptColumn[T]{}
	}
	g, _ := p.groups.Get(key)
	return *of(&g)
}

// wordBytes is what a time or a value takes.
const wordBytes = 8

// keep adds pages, of a column whose pages begin at firsts.
func keep[T any](p *Pages, key groupKey, of func(*keptGroup) *keptColumn[T], firsts []int, pages [][]T) {
	const (
		overhead = 512 // of a row group and its place
		aPage    = 32  // its slice, and its first row
	)
	if p == nil {
		return
	}
	p.groups.Update(key, func(g keptGroup) (keptGroup, int64) {
		if g.bytes == 0 {
			g.bytes = overhead + int64(len(key.file))
		}
		c := of(&g)
		if c.firsts == nil {
			c.firsts, c.pages = firsts, make([][]T, len(firsts)-1)
			g.bytes += aPage * int64(len(firsts))
		} else {
			c.pages = slices.Clone(c.pages)
		}
		for i, page := range pages {
			if page != nil && c.pages[i] == nil {
				c.pages[i] = page
				g.bytes += wordBytes * int64(cap(page))
			}
		}
		return g, g.bytes
	})
}
