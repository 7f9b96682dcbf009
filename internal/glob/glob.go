// Package glob matches keys against patterns, for the packages that inject
// faults: both choose by key what they strike. It is pure and imports nothing.
package glob

import "strings"

// Match reports whether s matches pattern, in which * stands for any bytes,
// slashes too, and nothing else is special.
func Match(pattern, s string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return s == pattern
	}
	s, ok := strings.CutPrefix(s, parts[0])
	if !ok {
		return false
	}
	for _, part := range parts[1 : len(parts)-1] {
		_, s, ok = strings.Cut(s, part)
		if !ok {
			return false
		}
	}
	return strings.HasSuffix(s, parts[len(parts)-1])
}
