package sqlengine

import (
	"container/list"
	"sync"
)

// memo remembers what follows from its key alone, and of that what was asked
// for last. It may be used concurrently.
type memo[V any] struct {
	most int // entries

	mu      sync.Mutex
	entries map[string]*list.Element
	order   list.List // the latest in front
}

type remembered[V any] struct {
	key   string
	value V
}

func newMemo[V any](most int) *memo[V] {
	return &memo[V]{most: most, entries: map[string]*list.Element{}}
}

// get returns what is known; nobody changes it.
func (m *memo[V]) get(key string) (v V, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.entries[key]
	if !ok {
		return v, false
	}
	m.order.MoveToFront(e)
	return e.Value.(remembered[V]).value, true
}

func (m *memo[V]) put(key string, v V) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e, ok := m.entries[key]; ok {
		m.order.Remove(e)
	}
	m.entries[key] = m.order.PushFront(remembered[V]{key, v})
	if m.order.Len() > m.most {
		delete(m.entries, m.order.Remove(m.order.Back()).(remembered[V]).key)
	}
}
