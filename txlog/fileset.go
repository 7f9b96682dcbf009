package txlog

import (
	"cmp"
	"encoding/binary"
	"iter"
	"slices"
	"strings"

	"github.com/tidwall/btree"

	"cardinalsin/action"
)

// fileSet is a set of file actions, one a key, in the order of the keys.
// Copies share structure: a change costs memory and time for itself, and not
// for the set.
type fileSet struct {
	tree *btree.BTreeG[packed]
}

func less(a, b packed) bool { return a.key() < b.key() }

func newFileSet() fileSet {
	return fileSet{btree.NewBTreeGOptions(less, btree.Options{NoLocks: true})}
}

// bulkMin is the number of actions from which on sorting them and merging is
// considered; bulkShare, how many times as great the set may be then. One
// change at a time costs some 10 steps down the tree, merging one a file.
const (
	bulkMin   = 1024
	bulkShare = 8
)

// put adds actions, each in place of the one with its key; replaced hears of
// those. Actions with the same key: the last one wins. It reorders all.
func (s *fileSet) put(all []packed, replaced func(packed)) {
	if len(all) < bulkMin || len(all) < s.tree.Len()/bulkShare {
		for _, p := range all {
			if old, ok := s.tree.Set(p); ok {
				replaced(old)
			}
		}
		return
	}
	sortPacked(all)
	if last, ok := s.tree.Max(); !ok || less(last, all[0]) {
		for _, p := range all { // a copy of few nodes, and a plain append
			if old, ok := s.tree.Load(p); ok {
				replaced(old)
			}
		}
		return
	}
	merged := newFileSet()
	load := func(p packed) {
		if old, ok := merged.tree.Load(p); ok {
			replaced(old)
		}
	}
	s.tree.Scan(func(old packed) bool {
		for len(all) > 0 && less(all[0], old) {
			load(all[0])
			all = all[1:]
		}
		load(old)
		return true
	})
	for _, p := range all {
		load(p)
	}
	s.tree = merged.tree
}

// remove takes out what has a key of one of the actions; removed hears of it.
func (s *fileSet) remove(all []packed, removed func(packed)) {
	if s.tree.Len() == 0 {
		return
	}
	for _, p := range all {
		if old, ok := s.tree.Delete(p); ok {
			removed(old)
		}
	}
}

func compare(a, b packed) int { return strings.Compare(a.key(), b.key()) }

// sortPacked sorts by key and keeps the order of equal ones. Most keys differ
// in the 16 bytes after what is common to all, which are compared first.
func sortPacked(all []packed) {
	if len(all) < 2 || slices.IsSortedFunc(all, compare) {
		return
	}
	common := all[0].key()
	for _, p := range all[1:] {
		k := p.key()
		n := min(len(common), len(k))
		for common[:n] != k[:n] {
			for n--; common[:n] != k[:n]; n-- {
			}
		}
		common = common[:n]
	}
	type item struct {
		head, next uint64
		index      uint32
	}
	items := make([]item, len(all))
	for i, p := range all {
		var head [16]byte
		copy(head[:], p.key()[len(common):])
		items[i] = item{binary.BigEndian.Uint64(head[:]), binary.BigEndian.Uint64(head[8:]), uint32(i)}
	}
	slices.SortFunc(items, func(a, b item) int {
		if a.head != b.head {
			return cmp.Compare(a.head, b.head)
		}
		if a.next != b.next {
			return cmp.Compare(a.next, b.next)
		}
		if c := compare(all[a.index], all[b.index]); c != 0 {
			return c
		}
		return cmp.Compare(a.index, b.index)
	})
	sorted := make([]packed, len(all))
	for i, it := range items {
		sorted[i] = all[it.index]
	}
	copy(all, sorted)
}

// takeAdds moves the adds of the entry before into this one, if both are great
// and nothing comes between: it saves putting them into the set apart.
func (e *entry) takeAdds(before *entry) {
	if len(before.adds) < bulkMin || len(e.adds) < bulkMin || len(e.removes) > 0 {
		return
	}
	merged := make([]packed, 0, len(before.adds)+len(e.adds))
	a, b := before.adds, e.adds
	for len(a) > 0 && len(b) > 0 {
		if less(b[0], a[0]) {
			merged, b = append(merged, b[0]), b[1:]
		} else { // of equal ones the later comes later, and wins
			merged, a = append(merged, a[0]), a[1:]
		}
	}
	e.adds, before.adds = append(append(merged, a...), b...), nil
}

// adds yields the set's actions as adds that may be kept.
func (s *fileSet) adds(values *valueTable) iter.Seq[*action.Add] {
	return func(yield func(*action.Add) bool) {
		texts := *values.texts.Load()
		var batch []action.Add
		var f file
		s.tree.Scan(func(p packed) bool {
			if len(batch) == 0 {
				batch = make([]action.Add, min(yieldBatch, s.tree.Len()))
			}
			p.unpack(texts, &f)
			a := &batch[0]
			batch = batch[1:]
			f.add(a)
			return yield(a)
		})
	}
}

// each is adds for those who keep nothing: every add is overwritten by the next.
func (s *fileSet) each(values *valueTable) iter.Seq[*action.Add] {
	return func(yield func(*action.Add) bool) {
		texts := *values.texts.Load()
		var f file
		var a action.Add
		s.tree.Scan(func(p packed) bool {
			p.unpack(texts, &f)
			f.add(&a)
			return yield(&a)
		})
	}
}

// yieldBatch is how many actions are allocated at once for whoever ranges
// over them: one that is kept keeps the others.
const yieldBatch = 32

// removes is adds for tombstones.
func (s *fileSet) removes(values *valueTable) iter.Seq[*action.Remove] {
	return func(yield func(*action.Remove) bool) {
		texts := *values.texts.Load()
		var f file
		s.tree.Scan(func(p packed) bool {
			p.unpack(texts, &f)
			r := &action.Remove{}
			f.remove(r)
			return yield(r)
		})
	}
}
