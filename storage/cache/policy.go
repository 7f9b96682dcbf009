package cache

import "container/list"

// policy decides what a tier keeps: S3-FIFO (Yang et al., SOSP 2023). What
// comes new waits in a small queue of a tenth of the room and goes from there
// unless somebody asks for it again; so a scan, which asks once, passes
// through the small queue and leaves the main one alone. Of what went lately
// the ids are remembered, and who comes back is new no more.
//
// Its methods are called under the tier's lock.
type policy struct {
	max, used   int64
	small, main list.List // of *item, the newest at the front
	smallBytes  int64
	ghosts      map[entryID]struct{}
	ghostOrder  []entryID
	// evict takes an item's bytes away; false: it is in use.
	evict   func(*item) bool
	evicted int64
}

// item is what a policy keeps or lets go.
type item struct {
	id      entryID
	owner   any
	size    int64
	hits    int8
	isMain  bool
	element *list.Element // nil: not kept
}

const (
	maxHits   = 3
	maxGhosts = 1 << 16
)

func (p *policy) queue(i *item) *list.List {
	if i.isMain {
		return &p.main
	}
	return &p.small
}

// hit notes that an item was of use.
func (p *policy) hit(i *item) { i.hits = min(i.hits+1, maxHits) }

// grow gives an item more bytes, and a place if it has none. It is false
// where there is no room.
func (p *policy) grow(i *item, n int64) bool {
	if n > p.max || !p.makeRoom(n, i) {
		return false
	}
	if i.element == nil {
		_, i.isMain = p.ghosts[i.id]
		i.hits = 0
		i.element = p.queue(i).PushFront(i)
	}
	p.add(i, n)
	return true
}

func (p *policy) add(i *item, n int64) {
	i.size += n
	p.used += n
	if !i.isMain {
		p.smallBytes += n
	}
}

// remove takes an item out that is lost or let go.
func (p *policy) remove(i *item) {
	if i.element == nil {
		return
	}
	p.add(i, -i.size)
	p.queue(i).Remove(i.element)
	i.element = nil
}

// makeRoom lets items go until n bytes fit; keep stays.
func (p *policy) makeRoom(n int64, keep *item) bool {
	// Each item gives up a hit at every turn, or goes, or is in use.
	for turns := (maxHits + 2) * (p.small.Len() + p.main.Len() + 1); p.used+n > p.max; turns-- {
		if turns == 0 {
			return false
		}
		queue := &p.main
		if p.small.Len() > 0 && (p.smallBytes > p.max/10 || p.main.Len() == 0) {
			queue = &p.small
		}
		last := queue.Back()
		if last == nil {
			if last = p.small.Back(); last == nil {
				return false
			}
		}
		i := last.Value.(*item)
		switch {
		case i.hits > 0 && !i.isMain:
			size := i.size
			p.remove(i)
			i.isMain, i.hits = true, 0
			i.element = p.main.PushFront(i)
			p.add(i, size)
		case i.hits > 0:
			i.hits--
			p.main.MoveToFront(last)
		case i == keep || !p.evict(i):
			p.queue(i).MoveToFront(last)
		default:
			if !i.isMain {
				p.remember(i.id)
			}
			p.remove(i)
			p.evicted++
		}
	}
	return true
}

func (p *policy) remember(id entryID) {
	if _, known := p.ghosts[id]; known {
		return
	}
	if bound := min(maxGhosts, 64+p.small.Len()+p.main.Len()); len(p.ghostOrder) >= bound {
		n := len(p.ghostOrder) - bound + 1
		for _, old := range p.ghostOrder[:n] {
			delete(p.ghosts, old)
		}
		p.ghostOrder = append(p.ghostOrder[:0], p.ghostOrder[n:]...)
	}
	p.ghosts[id] = struct{}{}
	p.ghostOrder = append(p.ghostOrder, id)
}
