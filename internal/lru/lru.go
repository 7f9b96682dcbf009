// Package lru keeps values that were used lately, up to a bound on what they
// take together.
//
// It stands on the lowest layer. What is kept in it follows from its key alone
// – parts of immutable objects, mostly – so that a value never has to be
// replaced by another, and losing one costs time only.
//
// INVARIANT: the sum of all sizes is at most the bound, after each call.
//
// It must never do I/O or run anything in the background.
package lru

import (
	"container/list"
	"sync"
)

// Cache keeps the values that were used last. It may be used concurrently.
type Cache[K comparable, V any] struct {
	most int64

	mu    sync.Mutex // guards what follows
	used  int64
	byKey map[K]*list.Element
	order list.List // of *entry, the last used in front
}

type entry[K comparable, V any] struct {
	key   K
	value V
	size  int64
}

// New returns a cache for values that together have at most the size most; with
// 0 it keeps nothing but what has no size.
func New[K comparable, V any](most int64) *Cache[K, V] {
	return &Cache[K, V]{most: most, byKey: map[K]*list.Element{}}
}

// Most is the bound.
func (c *Cache[K, V]) Most() int64 { return c.most }

// Used is the size of all that is kept.
func (c *Cache[K, V]) Used() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.used
}

// Len is the number of values.
func (c *Cache[K, V]) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.byKey)
}

// Get returns a value, which counts as a use. The caller shares it with others.
func (c *Cache[K, V]) Get(key K) (value V, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.byKey[key]
	if !ok {
		return value, false
	}
	c.order.MoveToFront(e)
	return e.Value.(*entry[K, V]).value, true
}

// Put keeps a value of a size above or equal to 0, unless there is one with that
// key, or it alone is above the bound; those that were not used for longest make
// room.
func (c *Cache[K, V]) Put(key K, value V, size int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.byKey[key]; ok || size > c.most {
		return
	}
	c.byKey[key] = c.order.PushFront(&entry[K, V]{key, value, size})
	c.used += size
	c.shrink()
}

// Update replaces a value by what change makes of it, with its size; what it is
// given is the zero value where there is none. change must not call the cache.
func (c *Cache[K, V]) Update(key K, change func(V) (value V, size int64)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.byKey[key]
	if !ok {
		e = c.order.PushFront(&entry[K, V]{key: key})
		c.byKey[key] = e
	}
	kept := e.Value.(*entry[K, V])
	c.used -= kept.size
	kept.value, kept.size = change(kept.value)
	c.used += kept.size
	c.shrink()
}

// Drop forgets a value.
func (c *Cache[K, V]) Drop(key K) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.byKey[key]; ok {
		c.remove(e)
	}
}

// shrink makes room. mu is held.
func (c *Cache[K, V]) shrink() {
	for c.used > c.most {
		c.remove(c.order.Back())
	}
}

// remove takes a value out. mu is held.
func (c *Cache[K, V]) remove(e *list.Element) {
	old := c.order.Remove(e).(*entry[K, V])
	delete(c.byKey, old.key)
	c.used -= old.size
}
