package action

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"strconv"
	"strings"
	"unicode/utf8"
)

// scanner reads JSON text where it lies. It takes what encoding/json takes
// and gives the values that encoding/json gives, bytes that are no UTF-8 and
// halves of surrogate pairs included; both are held together by FuzzDecode.
type scanner struct {
	data []byte
	pos  int

	scratch []byte // of the last string that was not plain
	kept    arena
	values  Object // the last partition values: neighbours often share them
	int64s  slab[int64]
	int32s  slab[int32]
	vectors slab[DeletionVector]
}

// maxDepth bounds how deep values nest, as encoding/json does.
const maxDepth = 10_000

func (s *scanner) fail(what string) error {
	if s.pos >= len(s.data) {
		what = "cut off: " + what
	}
	return fmt.Errorf("%w: byte %d: %s", ErrCorrupt, s.pos, what)
}

// peek skips white space and returns the byte after it, 0 at the end. (A zero
// byte begins no token, so whoever meets one fails.)
func (s *scanner) peek() byte {
	if s.pos < len(s.data) && s.data[s.pos] > ' ' {
		return s.data[s.pos]
	}
	return s.peekPastSpace()
}

func (s *scanner) peekPastSpace() byte {
	for ; s.pos < len(s.data); s.pos++ {
		switch c := s.data[s.pos]; c {
		case ' ', '\t', '\r', '\n':
		default:
			return c
		}
	}
	return 0
}

// open enters an object.
func (s *scanner) open() error {
	if s.peek() != '{' {
		return s.fail("want an object")
	}
	s.pos++
	return nil
}

// member reads a name and its colon; more is false at the end of the object.
// The name is good until the next string is read.
func (s *scanner) member(first bool) (name []byte, more bool, err error) {
	c := s.peek()
	if c == '}' {
		s.pos++
		return nil, false, nil
	}
	if !first {
		if c != ',' {
			return nil, false, s.fail("want , or }")
		}
		s.pos++
		c = s.peek()
	}
	if c != '"' {
		return nil, false, s.fail("want a name")
	}
	if name, err = s.str(); err != nil {
		return nil, false, err
	}
	if s.peek() != ':' {
		return nil, false, s.fail("want :")
	}
	s.pos++
	return name, true, nil
}

// null consumes a null, if there is one.
func (s *scanner) null() bool {
	return s.peek() == 'n' && s.word("null")
}

func (s *scanner) word(w string) bool {
	if len(s.data)-s.pos < len(w) || string(s.data[s.pos:s.pos+len(w)]) != w {
		return false
	}
	s.pos += len(w)
	return true
}

// special returns the index of the first byte from i on that cannot be taken
// as it is within a string: a quote, a backslash, a control character, or one
// that is not ASCII. It looks at eight bytes at once: subtracting borrows from
// the top bit of a byte that was too small, and the lowest byte so marked is
// never marked in error.
func special(data []byte, i int) int {
	const ones, tops = 0x0101010101010101, 0x8080808080808080
	for ; i+8 <= len(data); i += 8 {
		v := binary.LittleEndian.Uint64(data[i:])
		hit := (v | (v - ones*' ') | ((v ^ ones*'"') - ones) | ((v ^ ones*'\\') - ones)) & tops
		if hit != 0 {
			return i + bits.TrailingZeros64(hit)/8
		}
	}
	for ; i < len(data); i++ {
		if c := data[i]; c < ' ' || c == '"' || c == '\\' || c >= utf8.RuneSelf {
			return i
		}
	}
	return i
}

// str reads a string, and must stand at its quote. The bytes are good until
// the next string is read.
func (s *scanner) str() ([]byte, error) {
	start := s.pos + 1
	end := special(s.data, start)
	if end < len(s.data) && s.data[end] == '"' {
		s.pos = end + 1
		return s.data[start:end], nil
	}
	return s.unescape(start, end)
}

// unescape reads the rest of a string that begins at start and is plain up to
// from.
func (s *scanner) unescape(start, from int) ([]byte, error) {
	out := append(s.scratch[:0], s.data[start:from]...)
	defer func() { s.scratch = out }()
	for s.pos = from; s.pos < len(s.data); {
		switch c := s.data[s.pos]; {
		case c == '"':
			s.pos++
			return out, nil
		case c == '\\':
			r, err := s.escape()
			if err != nil {
				return nil, err
			}
			if r < utf8.RuneSelf {
				out = append(out, byte(r))
			} else {
				out = utf8.AppendRune(out, r)
			}
		case c < ' ':
			return nil, s.fail("control character in a string")
		case c >= utf8.RuneSelf:
			r, n := utf8.DecodeRune(s.data[s.pos:])
			out = utf8.AppendRune(out, r)
			s.pos += n
		default:
			end := special(s.data, s.pos)
			out = append(out, s.data[s.pos:end]...)
			s.pos = end
		}
	}
	return nil, s.fail("want the end of a string")
}

// escape reads what a backslash begins. Two halves of a surrogate pair are
// one character, a half alone is U+FFFD.
func (s *scanner) escape() (rune, error) {
	if s.pos+1 >= len(s.data) {
		s.pos = len(s.data)
		return 0, s.fail("want the rest of an escape")
	}
	c := s.data[s.pos+1]
	switch c {
	case '"', '\\', '/':
	case 'b':
		c = '\b'
	case 'f':
		c = '\f'
	case 'n':
		c = '\n'
	case 'r':
		c = '\r'
	case 't':
		c = '\t'
	case 'u':
		r, ok := hex4(s.data, s.pos+2)
		if !ok {
			return 0, s.fail("want four hexadecimal digits")
		}
		s.pos += 6
		if 0xd800 <= r && r < 0xe000 {
			if r < 0xdc00 && s.pos+1 < len(s.data) && s.data[s.pos] == '\\' && s.data[s.pos+1] == 'u' {
				if low, ok := hex4(s.data, s.pos+2); ok && 0xdc00 <= low && low < 0xe000 {
					s.pos += 6
					return (r-0xd800)<<10 | (low - 0xdc00) + 0x10000, nil
				}
			}
			return utf8.RuneError, nil
		}
		return r, nil
	default:
		return 0, s.fail("unknown escape")
	}
	s.pos += 2
	return rune(c), nil
}

func hex4(data []byte, i int) (r rune, ok bool) {
	if i+4 > len(data) {
		return 0, false
	}
	for _, c := range data[i : i+4] {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}

// text reads a string, or null, to keep.
func (s *scanner) text() (string, error) {
	if s.peek() != '"' {
		if s.null() {
			return "", nil
		}
		return "", s.fail("want a string")
	}
	b, err := s.str()
	if err != nil {
		return "", err
	}
	return s.kept.keep(b, len(s.data)-s.pos), nil
}

// integer reads a number of that many bits, or null, which is 0.
func (s *scanner) integer(bitSize int) (v int64, null bool, err error) {
	c := s.peek()
	if c == 'n' && s.null() {
		return 0, true, nil
	}
	start := s.pos
	if '1' <= c && c <= '9' {
		i := s.pos
		for end := min(i+18, len(s.data)); i < end; i++ {
			d := s.data[i] - '0'
			if d > 9 {
				break
			}
			v = v*10 + int64(d)
		}
		// What follows a number is , or } in nearly all cases; the rest,
		// longer numbers included, is left to the slower way.
		if i < len(s.data) && (s.data[i] == ',' || s.data[i] == '}') && (bitSize == 64 || v < 1<<31) {
			s.pos = i
			return v, false, nil
		}
	}
	if err := s.skipNumber(); err != nil {
		return 0, false, err
	}
	v, err = strconv.ParseInt(string(s.data[start:s.pos]), 10, bitSize)
	if err != nil {
		return 0, false, fmt.Errorf("%w: byte %d: %w", ErrCorrupt, start, err)
	}
	return v, false, nil
}

func (s *scanner) optional() (*int64, error) {
	v, null, err := s.integer(64)
	if null || err != nil {
		return nil, err
	}
	p := s.int64s.next()
	*p = v
	return p, nil
}

// boolean reads true or false, or null, which is false.
func (s *scanner) boolean() (bool, error) {
	switch c := s.peek(); {
	case c == 't' && s.word("true"):
		return true, nil
	case c == 'f' && s.word("false"), c == 'n' && s.word("null"):
		return false, nil
	}
	return false, s.fail("want true or false")
}

// object reads a flat object, or null, and returns its text as it stands,
// without any if it is empty. The text is good as long as the data.
func (s *scanner) object() ([]byte, error) {
	if s.null() {
		return nil, nil
	}
	if err := s.open(); err != nil {
		return nil, err
	}
	start := s.pos - 1
	for first := true; ; first = false {
		c := s.peek()
		if c == '}' {
			s.pos++
			if first {
				return nil, nil
			}
			return s.data[start:s.pos], nil
		}
		if !first {
			if c != ',' {
				return nil, s.fail("want , or }")
			}
			s.pos++
			c = s.peek()
		}
		if c != '"' {
			return nil, s.fail("want a name")
		}
		if err := s.skipString(); err != nil {
			return nil, err
		}
		if s.peek() != ':' {
			return nil, s.fail("want :")
		}
		s.pos++
		if s.peek() == '"' {
			if err := s.skipString(); err != nil {
				return nil, err
			}
		} else if !s.null() {
			return nil, s.fail("want a string or null")
		}
	}
}

// partition is object for partition values.
func (s *scanner) partition() (Object, error) {
	s.peek()
	if n := len(s.values); n > 0 && len(s.data)-s.pos >= n && string(s.data[s.pos:s.pos+n]) == string(s.values) {
		s.pos += n
		return s.values, nil
	}
	b, err := s.object()
	if err != nil || len(b) == 0 {
		return "", err
	}
	s.values = Object(s.kept.keep(b, len(s.data)-s.pos))
	return s.values, nil
}

func (s *scanner) tags() (Object, error) {
	b, err := s.object()
	if err != nil {
		return "", err
	}
	return Object(s.kept.keep(b, len(s.data)-s.pos)), nil
}

// skip passes over a value of any form, which stands at that depth (the
// object of a line is at 1), and checks that it is well-formed.
func (s *scanner) skip(depth int) error {
	switch c := s.peek(); {
	case c == '"':
		return s.skipString()
	case (c == '{' || c == '[') && depth > maxDepth:
		return s.fail("nested too deep")
	case c == '{':
		s.pos++
		for first := true; ; first = false {
			_, more, err := s.member(first)
			if err != nil || !more {
				return err
			}
			if err := s.skip(depth + 1); err != nil {
				return err
			}
		}
	case c == '[':
		s.pos++
		if s.peek() == ']' {
			s.pos++
			return nil
		}
		for {
			if err := s.skip(depth + 1); err != nil {
				return err
			}
			switch s.peek() {
			case ',':
				s.pos++
			case ']':
				s.pos++
				return nil
			default:
				return s.fail("want , or ]")
			}
		}
	case c == 't' && s.word("true"), c == 'f' && s.word("false"), c == 'n' && s.word("null"):
		return nil
	}
	return s.skipNumber()
}

// skipString passes over a string, and must stand at its quote.
func (s *scanner) skipString() error {
	for s.pos = special(s.data, s.pos+1); s.pos < len(s.data); s.pos = special(s.data, s.pos) {
		switch c := s.data[s.pos]; {
		case c == '"':
			s.pos++
			return nil
		case c == '\\':
			if _, err := s.escape(); err != nil {
				return err
			}
		case c < ' ':
			return s.fail("control character in a string")
		default:
			s.pos++
		}
	}
	return s.fail("want the end of a string")
}

// skipNumber passes over a number (RFC 8259, section 6).
func (s *scanner) skipNumber() error {
	i := s.pos
	digits := func() bool {
		from := i
		for i < len(s.data) && s.data[i]-'0' <= 9 {
			i++
		}
		return i > from
	}
	at := func(chars string) bool {
		return i < len(s.data) && strings.IndexByte(chars, s.data[i]) >= 0
	}
	if at("-") {
		i++
	}
	if at("0") {
		i++
	} else if !digits() {
		return s.fail("want a value of another form")
	}
	if at(".") {
		if i++; !digits() {
			return s.fail("want a number")
		}
	}
	if at("eE") {
		if i++; at("+-") {
			i++
		}
		if !digits() {
			return s.fail("want a number")
		}
	}
	s.pos = i
	return nil
}
