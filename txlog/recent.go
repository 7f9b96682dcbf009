package txlog

import (
	"iter"

	"cardinalsin/action"
)

const (
	// recentVersions and recentKeys bound what a snapshot remembers of the
	// versions before it: two minutes of a busy table, two megabytes of keys.
	recentVersions = 64
	recentKeys     = 16_384
)

// recentAdds are the keys of the files that the last versions added. A commit
// that lost a race looks at what came, not at the whole table. It is
// immutable.
type recentAdds struct {
	from  action.Version // the versions after it are known
	keys  [][]action.Key // of from+1, from+2, …
	total int
}

// then is what is known once version v has followed.
func (r recentAdds) then(v action.Version, c *action.Commit) recentAdds {
	n := len(r.keys)
	if v != r.from+action.Version(n)+1 {
		r, n = recentAdds{from: v - 1}, 0
	}
	keys := make([]action.Key, len(c.Adds))
	for i := range c.Adds {
		keys[i] = c.Adds[i].Key()
	}
	// Neighbours share the slice up to their length: append must copy.
	r.keys, r.total = append(r.keys[:n:n], keys), r.total+len(keys)
	for len(r.keys) > recentVersions || r.total > recentKeys && len(r.keys) > 0 {
		r.total -= len(r.keys[0])
		r.keys, r.from = r.keys[1:], r.from+1
	}
	return r
}

// AddedSince yields the live files that were not live in old, an earlier
// version of the same table, each once, in no particular order; do not modify
// them. Its cost follows the commits between, if they are few; else it is a
// look at every live file.
func (s *Snapshot) AddedSince(old *Snapshot) iter.Seq[*action.Add] {
	return func(yield func(*action.Add) bool) {
		if s == old {
			return
		}
		r := &s.recent
		if old.version < r.from || old.version > s.version || r.from+action.Version(len(r.keys)) < s.version {
			for a := range s.Files() {
				if _, was := old.File(a.Key()); !was && !yield(a) {
					return
				}
			}
			return
		}
		seen := map[action.Key]bool{}
		for _, keys := range r.keys[old.version-r.from:] {
			for _, k := range keys {
				a, live := s.File(k)
				if _, was := old.File(k); !live || was || seen[k] {
					continue
				}
				seen[k] = true
				if !yield(a) {
					return
				}
			}
		}
	}
}
