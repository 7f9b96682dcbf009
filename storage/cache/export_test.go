package cache

import (
	"os"
	"sync"
)

// FailWrites makes every write of ranges to disk fail, until it is called with
// nil.
func (c *Cache) FailWrites(err error) {
	c.ranges.mu.Lock()
	defer c.ranges.mu.Unlock()
	c.ranges.writeAt = writeAt
	if err != nil {
		c.ranges.writeAt = func(*os.File, []byte, int64) error { return err }
	}
}

// SparseFiles lists the files that hold ranges.
func (c *Cache) SparseFiles() []string {
	c.ranges.mu.Lock()
	defer c.ranges.mu.Unlock()
	var out []string
	for _, o := range c.ranges.objects {
		if o.file {
			out = append(out, c.ranges.path(o))
		}
	}
	return out
}

// Settle waits until what was fetched is on disk, or will not be. Nobody may be
// asking meanwhile.
func (c *Cache) Settle() { c.ranges.flights.Wait() }

// HoldFirstWrite calls hold before the first write of ranges to disk. Nobody
// may be asking meanwhile.
func (c *Cache) HoldFirstWrite(hold func()) {
	var once sync.Once
	c.ranges.writeAt = func(f *os.File, b []byte, at int64) error {
		first := false
		once.Do(func() { first = true })
		if first {
			hold()
		}
		return writeAt(f, b, at)
	}
}
