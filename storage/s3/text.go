package s3

import "unicode/utf8"

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
