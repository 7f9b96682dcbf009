package checkpoint

import (
	"encoding/json"
	"slices"
	"strings"
	"unicode/utf8"

	"cardinalsin/action"
)

// member is one entry of a flat object; a null has no value.
type member struct {
	key, value string
	null       bool
}

// appendObject appends the canonical text of an object: keys ascending, no
// spaces, escapes as encoding/json writes them. Equal maps have equal text,
// the text of [action.ObjectOf]. An empty object has none.
func appendObject(dst []byte, members []member) []byte {
	if len(members) == 0 {
		return dst
	}
	c := byte('{')
	for _, m := range members {
		dst = append(dst, c)
		c = ','
		dst = appendString(dst, m.key)
		dst = append(dst, ':')
		if m.null {
			dst = append(dst, "null"...)
			continue
		}
		dst = appendString(dst, m.value)
	}
	return append(dst, '}')
}

// sortMembers brings members into canonical order; of equal keys the last
// counts, as in encoding/json.
func sortMembers(members []member) []member {
	for i := 1; i < len(members); i++ {
		if members[i-1].key >= members[i].key {
			slices.SortStableFunc(members, func(a, b member) int { return strings.Compare(a.key, b.key) })
			n := 0
			for i := range members {
				if i+1 < len(members) && members[i+1].key == members[i].key {
					continue
				}
				members[n] = members[i]
				n++
			}
			return members[:n]
		}
	}
	return members
}

// plain reports whether a string stands in JSON as it is.
func plain(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case c < 0x20, c == '"', c == '\\', c == '<', c == '>', c == '&', c >= utf8.RuneSelf:
			return false
		}
	}
	return true
}

func appendString(dst []byte, s string) []byte {
	if plain(s) {
		dst = append(dst, '"')
		dst = append(dst, s...)
		return append(dst, '"')
	}
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // a string always encodes
	}
	return append(dst, b...)
}

// parseObject appends the members of an object to dst, in canonical order.
// Nearly all objects are flat, ascending and free of escapes, and a
// checkpoint holds two for each file: those are read here, the rest by
// encoding/json.
func parseObject(dst []member, o action.Object) ([]member, error) {
	if o == "" {
		return dst, nil
	}
	if members, ok := parsePlain(dst, string(o)); ok {
		return members, nil
	}
	m, err := o.Map()
	if err != nil {
		return dst, err
	}
	from := len(dst)
	for k, v := range m {
		e := member{key: k, null: v == nil}
		if v != nil {
			e.value = *v
		}
		dst = append(dst, e)
	}
	slices.SortFunc(dst[from:], func(a, b member) int { return strings.Compare(a.key, b.key) })
	return dst, nil
}

func parsePlain(dst []member, s string) ([]member, bool) {
	from := len(dst)
	if len(s) < 2 || s[0] != '{' {
		return dst, false
	}
	if s == "{}" {
		return dst, true
	}
	for s = s[1:]; ; {
		key, rest, ok := cutString(s)
		if !ok || len(rest) < 1 || rest[0] != ':' {
			return dst[:from], false
		}
		m := member{key: key}
		rest = rest[1:]
		if after, ok := strings.CutPrefix(rest, "null"); ok {
			m.null, rest = true, after
		} else if m.value, rest, ok = cutString(rest); !ok {
			return dst[:from], false
		}
		if len(dst) > from && dst[len(dst)-1].key >= key {
			return dst[:from], false
		}
		dst = append(dst, m)
		if rest == "}" {
			return dst, true
		}
		if len(rest) == 0 || rest[0] != ',' {
			return dst[:from], false
		}
		s = rest[1:]
	}
}

// cutString takes a string literal without escapes off the front.
func cutString(s string) (value, rest string, ok bool) {
	if len(s) < 2 || s[0] != '"' {
		return "", "", false
	}
	end := strings.IndexByte(s[1:], '"')
	if end < 0 || !plain(s[1:1+end]) {
		return "", "", false
	}
	return s[1 : 1+end], s[2+end:], true
}
