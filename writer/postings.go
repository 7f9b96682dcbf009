package writer

import "sync"

// postings find the series of a head that have a value of a label. They are made
// for a label when a query of many series first asks for it, and brought up to
// date by the next: who only writes pays nothing. They take four bytes a series
// and eight a value, beside what the head counts, for maxPostings labels.
type postings struct {
	mu     sync.Mutex
	labels map[int32]*chains // by column
}

// maxPostings bounds the labels of one head that have postings.
const maxPostings = 8

// chains are the series of each value of one label, each leading to the one that
// came before it.
type chains struct {
	through int         // series that are in
	last    []seriesRef // by code: the newest
	count   []int32     // by code
	before  []seriesRef // by series, from 0
}

// find returns the series that have the rarest of the values which m asks for, of
// the first count all and perhaps later ones, the newest first; ok is false where there are no postings of any.
func (p *postings) find(count int, m *matching) (refs []idRef, ok bool) {
	p.mu.Lock()
	var best *chains
	var ref seriesRef
	least := int32(0)
	for _, w := range m.wanted {
		c := p.labels[w.column]
		if c == nil {
			if len(p.labels) == maxPostings {
				continue
			}
			if p.labels == nil {
				p.labels = map[int32]*chains{}
			}
			c = &chains{}
			p.labels[w.column] = c
		}
		c.extend(count, w.column, m)
		if best == nil || c.count[w.code] < least {
			best, ref, least = c, c.last[w.code], c.count[w.code]
		}
	}
	if best == nil {
		p.mu.Unlock()
		return nil, false
	}
	before := best.before // what is in it never changes
	p.mu.Unlock()

	refs = make([]idRef, 0, least)
	for ; ref != 0; ref = before[ref-1] {
		refs = append(refs, idRef{at(m.blocks, ref).id, ref})
	}
	return refs, true
}

// extend brings the chains of a column up to count series.
func (c *chains) extend(count int, column int32, m *matching) {
	if n := m.sets.Values(column); n > len(c.last) {
		c.last = append(c.last, make([]seriesRef, n-len(c.last))...)
		c.count = append(c.count, make([]int32, n-len(c.count))...)
	}
	where := make([]int32, m.sets.Shapes())
	for ; c.through < count; c.through++ {
		ref := seriesRef(c.through + 1)
		var before seriesRef
		if code, ok := codeOf(m.sets, at(m.blocks, ref).set, column, where); ok {
			before, c.last[code] = c.last[code], ref
			c.count[code]++
		}
		c.before = append(c.before, before)
	}
}
