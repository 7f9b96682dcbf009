package action

import "strings"

// arena keeps strings one behind another, in blocks: one allocation for some
// hundred strings, of which each holds on to its block only.
type arena struct{ block strings.Builder }

const arenaBlock = 64 << 10

// keep returns a copy. At most rest bytes are still to be read; a block need
// not be greater.
func (a *arena) keep(b []byte, rest int) string {
	if len(b) == 0 {
		return ""
	}
	if a.block.Cap()-a.block.Len() < len(b) {
		if len(b) > arenaBlock/4 {
			return string(b)
		}
		a.block.Reset()
		a.block.Grow(min(arenaBlock, len(b)+rest))
	}
	from := a.block.Len()
	a.block.Write(b) // within the capacity, so earlier strings stay where they are
	return a.block.String()[from:]
}

// slab allocates small values by the dozen.
type slab[T any] struct{ free []T }

func (s *slab[T]) next() *T {
	if len(s.free) == 0 {
		s.free = make([]T, 32)
	}
	p := &s.free[0]
	s.free = s.free[1:]
	return p
}
