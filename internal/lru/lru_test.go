package lru

import (
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// TestModel: a cache keeps what a list of the last used would.
func TestModel(t *testing.T) {
	type kept struct{ key, value, size int }
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.IntRange(0, 12).Draw(t, "most")
		c := New[int, int](int64(most))
		var model []kept // the last used in front
		used := func() (n int) {
			for _, k := range model {
				n += k.size
			}
			return n
		}
		shrink := func() {
			for used() > most {
				model = model[:len(model)-1]
			}
		}
		for i := range rapid.IntRange(1, 40).Draw(t, "calls") {
			key, size := rapid.IntRange(0, 5).Draw(t, "key"), rapid.IntRange(0, 6).Draw(t, "size")
			at := slices.IndexFunc(model, func(k kept) bool { return k.key == key })
			switch rapid.IntRange(0, 3).Draw(t, "call") {
			case 0:
				value, ok := c.Get(key)
				if ok != (at >= 0) || ok && value != model[at].value {
					t.Fatalf("%d is %d, %v; the model is %v", key, value, ok, model)
				}
				if ok {
					k := model[at]
					model = slices.Insert(slices.Delete(model, at, at+1), 0, k)
				}
			case 1:
				c.Put(key, i, int64(size))
				if at < 0 && size <= most {
					model = slices.Insert(model, 0, kept{key, i, size})
					shrink()
				}
			case 2:
				c.Update(key, func(v int) (int, int64) {
					if at >= 0 && v != model[at].value || at < 0 && v != 0 {
						t.Fatalf("%d is %d; the model is %v", key, v, model)
					}
					return v + 1, int64(size)
				})
				if at < 0 {
					model, at = slices.Insert(model, 0, kept{key: key}), 0
				}
				model[at].value, model[at].size = model[at].value+1, size
				shrink()
			case 3:
				c.Drop(key)
				if at >= 0 {
					model = slices.Delete(model, at, at+1)
				}
			}
			if c.Len() != len(model) || c.Used() != int64(used()) || c.Used() > c.Most() {
				t.Fatalf("%d values of %d, the model is %v", c.Len(), c.Used(), model)
			}
		}
	})
}

// TestConcurrent is for the race detector.
func TestConcurrent(t *testing.T) {
	c := New[int, *int](50)
	var group sync.WaitGroup
	for g := range 4 {
		group.Go(func() {
			for i := range 1000 {
				key := (i*7 + g) % 30
				c.Put(key, &key, 3)
				if v, ok := c.Get(key); ok && *v != key {
					t.Errorf("%d is %d", key, *v)
				}
				c.Update(key, func(*int) (*int, int64) { return &key, 4 })
				if i%5 == 0 {
					c.Drop(key)
				}
			}
		})
	}
	group.Wait()
	if c.Used() > c.Most() {
		t.Errorf("%d of %d", c.Used(), c.Most())
	}
}
