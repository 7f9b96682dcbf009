package index

import (
	"slices"
	"strings"

	"cardinalsin/internal/lru"
)

// lists keeps the values of labels as whole sets of segments have them, since
// dashboards ask for the same ones over and over. Segments are immutable, so
// that a list is true for good, and must not be changed.
type lists struct {
	*lru.Cache[string, []string]
}

// listKey names all that a label's list follows from: the segments, and the
// files that are wanted of each.
func listKey(name string, claims []claim) string {
	key := appendText(nil, name)
	for i := range claims {
		c := &claims[i]
		key = appendText(key, c.seg.key)
		if c.all {
			key = append(key, 1)
			continue
		}
		key = append(key, 0)
		at := len(key)
		key = append(key, make([]byte, (len(c.wanted)+7)/8)...)
		for f, want := range c.wanted {
			if want {
				key[at+f/8] |= 1 << (f % 8)
			}
		}
	}
	return string(key)
}

// put keeps a copy of a list, unless it alone is too large.
func (l lists) put(key string, values []string) {
	const each = 16 // of a string, besides its text
	n := int64(2*len(key)) + int64(len(values)*each) + 256
	for _, v := range values {
		n += int64(len(v))
	}
	if n <= l.Most() {
		l.Put(key, pack(values), n)
	}
}

// pack copies strings into few large ones, which the garbage collector follows
// faster than a million small ones; not into one, so that who holds on to a
// value does not hold all.
func pack(values []string) []string {
	const chunk = 64 << 10
	out := slices.Clone(values)
	for from := 0; from < len(out); {
		n, to := 0, from
		for to < len(out) && (to == from || n+len(out[to]) <= chunk) {
			n += len(out[to])
			to++
		}
		var b strings.Builder
		b.Grow(n)
		for _, v := range out[from:to] {
			b.WriteString(v)
		}
		text := b.String()
		for i := from; i < to; i++ {
			n := len(out[i])
			out[i], text = text[:n], text[n:]
		}
		from = to
	}
	return out
}
