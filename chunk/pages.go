package chunk

import (
	"container/list"
	"sync"

	"cardinalsin/series"
)

// Pages keeps decoded pages of samples from one call to the next, those that
// were used last, up to a number of bytes. A file is immutable, so what is kept
// stays true. It may be used concurrently, and by all files of one store.
type Pages struct {
	limit int64

	mu     sync.Mutex // guards what follows
	bytes  int64
	groups map[groupKey]*list.Element // of *keptGroup
	order  list.List                  // the last used in front
}

// groupKey is a row group of a file.
type groupKey struct {
	file  string
	group int
}

// keptGroup is what is kept of a row group.
type keptGroup struct {
	key    groupKey
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
func NewPages(limit int64) *Pages { return &Pages{limit: limit} }

// Limit is the greatest number of bytes that are kept.
func (p *Pages) Limit() int64 { return p.limit }

// Bytes is what is kept now.
func (p *Pages) Bytes() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.bytes
}

// find returns what is kept of a column: its slices are not to be changed, and
// may be used after it was dropped.
func find[T any](p *Pages, key groupKey, of func(*keptGroup) *keptColumn[T]) keptColumn[T] {
	if p == nil {
		return keptColumn[T]{}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	e, ok := p.groups[key]
	if !ok {
		return keptColumn[T]{}
	}
	p.order.MoveToFront(e)
	c := of(e.Value.(*keptGroup))
	// A copy: pages are added under the lock only.
	return keptColumn[T]{firsts: c.firsts, pages: append([][]T(nil), c.pages...)}
}

// wordBytes is what a time or a value takes.
const wordBytes = 8

// keep adds pages, of a column whose pages begin at firsts.
func keep[T any](p *Pages, key groupKey, of func(*keptGroup) *keptColumn[T], firsts []int, pages [][]T) {
	const overhead = 512 // of a row group and its place
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	e, ok := p.groups[key]
	if !ok {
		if p.groups == nil {
			p.groups = map[groupKey]*list.Element{}
		}
		e = p.order.PushFront(&keptGroup{key: key, bytes: overhead + int64(len(key.file))})
		p.groups[key] = e
		p.bytes += e.Value.(*keptGroup).bytes
	}
	g := e.Value.(*keptGroup)
	p.bytes -= g.bytes
	c := of(g)
	if c.firsts == nil {
		const aPage = 32 // its slice, and its first row
		c.firsts, c.pages = firsts, make([][]T, len(firsts)-1)
		g.bytes += aPage * int64(len(firsts))
	}
	for i, page := range pages {
		if page != nil && c.pages[i] == nil {
			c.pages[i] = page
			g.bytes += wordBytes * int64(cap(page))
		}
	}
	p.bytes += g.bytes
	for p.bytes > p.limit && p.order.Len() > 0 {
		old := p.order.Remove(p.order.Back()).(*keptGroup)
		delete(p.groups, old.key)
		p.bytes -= old.bytes
	}
}
