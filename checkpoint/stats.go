package checkpoint

import (
	"encoding/json"
	"math"
	"math/big"
	"strconv"
	"strings"
	"time"

	"github.com/parquet-go/parquet-go/format"

	"cardinalsin/checkpoint/internal/parquetcol"
)

// structReader turns a struct of columns into JSON: stats_parsed into the
// text that add.stats would have (PROTOCOL.md, "Per-file Statistics"), and
// partitionValues_parsed into partition values.
//
// What cannot be said in that text is left out, which means "not known" in
// statistics: binary values, NaN and infinities, variants. Timestamps are cut
// down to milliseconds, as the protocol has it for the text.
type structReader struct {
	root structNode
	text []byte
}

type structNode struct {
	name     string
	def      int
	column   *parquetcol.Column // of a leaf
	children []structNode
}

func (g *groupReader) openStruct(n *parquetcol.Node) *structReader {
	return &structReader{root: g.structNode(n)}
}

func (g *groupReader) structNode(n *parquetcol.Node) structNode {
	s := structNode{name: n.Name, def: n.Def}
	if n.Leaf >= 0 {
		s.column = g.leaf(n)
		return s
	}
	for _, c := range n.Children {
		if c.Rep > 0 || c.Logical.Kind == parquetcol.Variant || isVariant(c) {
			continue
		}
		s.children = append(s.children, g.structNode(c))
	}
	return s
}

// isVariant recognises a variant that is not annotated as one.
func isVariant(n *parquetcol.Node) bool {
	m, v := n.Child("metadata"), n.Child("value")
	return m != nil && v != nil && m.Leaf >= 0 && v.Leaf >= 0 &&
		m.Physical == format.ByteArray && m.Logical.Kind == parquetcol.None &&
		v.Physical == format.ByteArray && v.Logical.Kind == parquetcol.None
}

// stats returns the statistics at a row, "" where there are none.
func (s *structReader) stats(row int64) string {
	s.text = s.text[:0]
	if !s.append(&s.root, row) {
		return ""
	}
	return string(s.text)
}

// append writes a node and reports whether there was anything to write.
func (s *structReader) append(n *structNode, row int64) bool {
	if n.column != nil {
		if !n.column.Present(row) {
			return false
		}
		var ok bool
		s.text, ok = appendValue(s.text, n.column)
		return ok
	}
	at := len(s.text)
	c := byte('{')
	for i := range n.children {
		child := &n.children[i]
		before := len(s.text)
		s.text = append(s.text, c)
		s.text = appendString(s.text, child.name)
		s.text = append(s.text, ':')
		if !s.append(child, row) {
			s.text = s.text[:before]
			continue
		}
		c = ','
	}
	if len(s.text) == at {
		return false
	}
	s.text = append(s.text, '}')
	return true
}

// values returns the partition values at a row in canonical form; every
// column is a member, null or not. The bytes are valid until the next call.
func (s *structReader) values(row int64) []byte {
	members := make([]member, 0, len(s.root.children))
	for i := range s.root.children {
		n := &s.root.children[i]
		m := member{key: n.name, null: true}
		if n.column != nil && n.column.Present(row) {
			m.value, m.null = partitionText(n.column), false
		}
		members = append(members, m)
	}
	s.text = appendObject(s.text[:0], sortMembers(members))
	return s.text
}

// instant turns a timestamp's number into a time.
func instant(v, unit int64) time.Time {
	return time.Unix(v/unit, v%unit*(1e9/unit)).UTC()
}

// appendValue writes a leaf's value as JSON; ok is false for what has no form.
func appendValue(dst []byte, c *parquetcol.Column) (out []byte, ok bool) {
	n := c.Node()
	switch l := n.Logical; l.Kind {
	case parquetcol.String:
		if n.Physical != format.ByteArray {
			return dst, false
		}
		return appendString(dst, c.Str()), true
	case parquetcol.Date:
		return appendString(dst, time.Unix(c.Int()*86_400, 0).UTC().Format(time.DateOnly)), true
	case parquetcol.Timestamp:
		form := "2006-01-02T15:04:05.000"
		if l.UTC {
			form += "Z"
		}
		// Format cuts off, so the result is rounded down.
		return appendString(dst, instant(c.Int(), l.Unit).Format(form)), true
	case parquetcol.Decimal:
		text, ok := decimalText(unscaled(c), l.Scale)
		return append(dst, text...), ok
	case parquetcol.None, parquetcol.Integer:
	default:
		return dst, false
	}
	switch n.Physical {
	case format.Boolean:
		return strconv.AppendBool(dst, c.Int() != 0), true
	case format.Int32, format.Int64:
		return strconv.AppendInt(dst, c.Int(), 10), true
	case format.Float, format.Double:
		f := math.Float64frombits(uint64(c.Int()))
		var v any = f
		if n.Physical == format.Float {
			v = float32(f)
		}
		b, err := json.Marshal(v)
		if err != nil {
			return dst, false // NaN or infinite
		}
		return append(dst, b...), true
	}
	return dst, false
}

// maxScale bounds the digits of a decimal; Delta's have at most 38.
const maxScale = 1000

// unscaled is the integer that a decimal column holds.
func unscaled(c *parquetcol.Column) *big.Int {
	switch c.Node().Physical {
	case format.ByteArray, format.FixedLenByteArray:
		return twosComplement(c.Str())
	}
	return big.NewInt(c.Int())
}

// twosComplement decodes a signed integer, highest byte first.
func twosComplement(s string) *big.Int {
	v := new(big.Int).SetBytes([]byte(s))
	if len(s) > 0 && s[0]&0x80 != 0 {
		v.Sub(v, new(big.Int).Lsh(big.NewInt(1), uint(8*len(s))))
	}
	return v
}

// decimalText writes an unscaled integer with its point; ok is false for
// what no decimal of Delta's can be.
func decimalText(v *big.Int, scale int) (text string, ok bool) {
	if scale < 0 || scale > maxScale || v.BitLen() > 4*maxScale {
		return "", false
	}
	digits := new(big.Int).Abs(v).String()
	if missing := scale + 1 - len(digits); missing > 0 {
		digits = strings.Repeat("0", missing) + digits
	}
	if scale > 0 {
		digits = digits[:len(digits)-scale] + "." + digits[len(digits)-scale:]
	}
	if v.Sign() < 0 {
		digits = "-" + digits
	}
	return digits, true
}

// partitionText is a leaf's value as a partition value (PROTOCOL.md,
// "Partition Value Serialization"); an instant in the form that names its
// zone.
func partitionText(c *parquetcol.Column) string {
	n := c.Node()
	switch l := n.Logical; l.Kind {
	case parquetcol.Date:
		return time.Unix(c.Int()*86_400, 0).UTC().Format(time.DateOnly)
	case parquetcol.Timestamp:
		if l.UTC {
			return instant(c.Int(), l.Unit).Format("2006-01-02T15:04:05.000000Z")
		}
		return instant(c.Int(), l.Unit).Format("2006-01-02 15:04:05.000000")
	case parquetcol.Decimal:
		text, _ := decimalText(unscaled(c), l.Scale)
		return text
	}
	switch n.Physical {
	case format.Boolean:
		return strconv.FormatBool(c.Int() != 0)
	case format.Float:
		return strconv.FormatFloat(math.Float64frombits(uint64(c.Int())), 'g', -1, 32)
	case format.Double:
		return strconv.FormatFloat(math.Float64frombits(uint64(c.Int())), 'g', -1, 64)
	case format.ByteArray, format.FixedLenByteArray:
		return c.Str()
	}
	return strconv.FormatInt(c.Int(), 10)
}
