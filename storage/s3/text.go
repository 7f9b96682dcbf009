package s3

import (
	"strings"
	"unicode/utf8"
)

// notInXML reports characters that no key can hold, see storage.ValidateKey.
func notInXML(r rune) bool {
	return r < 0x20 || (r >= 0x7f && r < 0xa0) || r == 0xfffe || r == 0xffff
}

// validPart cuts s before the first character that no key can hold. What
// comes behind s then also comes behind its valid part.
func validPart(s string) string {
	for i, r := range s {
		_, size := utf8.DecodeRuneInString(s[i:])
		if notInXML(r) || (r == utf8.RuneError && size == 1) {
			return s[:i]
		}
	}
	return s
}

// beginsKey reports whether some key can begin with prefix. Servers refuse to
// list what cannot be a path (minio does), where there simply is nothing.
func beginsKey(prefix string) bool {
	if validPart(prefix) != prefix {
		return false
	}
	elements := strings.Split(prefix, "/")
	for _, element := range elements[:len(elements)-1] { // the last may go on
		if element == "" || element == "." || element == ".." {
			return false
		}
	}
	return true
}
