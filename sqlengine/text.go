package sqlengine

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
)

// appendText appends a value as plain text, and nothing for null. Nested
// values are JSON, binary ones \x and hex.
func appendText(b []byte, a arrow.Array, i int) []byte {
	if a.IsNull(i) {
		return b
	}
	switch a := a.(type) {
	case *array.String:
		return append(b, a.Value(i)...)
	case *array.Binary:
		return hex.AppendEncode(append(b, `\x`...), a.Value(i))
	case *array.List, *array.FixedSizeList, *array.Struct, *array.Map:
		return appendJSON(b, a, i)
	case *array.Float64:
		return appendFloat(b, a.Value(i), 64)
	case *array.Float32:
		return appendFloat(b, float64(a.Value(i)), 32)
	}
	return appendScalar(b, a, i)
}

// appendJSON appends a value as JSON. Numbers keep all their digits; numbers
// that JSON has not are the texts "NaN", "Infinity" and "-Infinity"; binary
// values are base64.
func appendJSON(b []byte, a arrow.Array, i int) []byte {
	if a.IsNull(i) {
		return append(b, "null"...)
	}
	switch a := a.(type) {
	case *array.String:
		return appendQuoted(b, a.Value(i))
	case *array.Binary:
		b = base64.StdEncoding.AppendEncode(append(b, '"'), a.Value(i))
		return append(b, '"')
	case *array.Float64:
		return appendJSONFloat(b, a.Value(i), 64)
	case *array.Float32:
		return appendJSONFloat(b, float64(a.Value(i)), 32)
	case *array.List:
		from, to := a.ValueOffsets(i)
		return appendList(b, a.ListValues(), int(from), int(to))
	case *array.FixedSizeList:
		from, to := a.ValueOffsets(i)
		return appendList(b, a.ListValues(), int(from), int(to))
	case *array.Struct:
		fields := a.DataType().(*arrow.StructType).Fields()
		b = append(b, '{')
		for k, f := range fields {
			if k > 0 {
				b = append(b, ',')
			}
			b = append(appendQuoted(b, f.Name), ':')
			b = appendJSON(b, a.Field(k), i)
		}
		return append(b, '}')
	case *array.Map:
		from, to := a.ValueOffsets(i)
		b = append(b, '{')
		for k := int(from); k < int(to); k++ {
			if k > int(from) {
				b = append(b, ',')
			}
			b = append(appendQuoted(b, string(appendText(nil, a.Keys(), k))), ':')
			b = appendJSON(b, a.Items(), k)
		}
		return append(b, '}')
	case *array.Boolean, *array.Int8, *array.Int16, *array.Int32, *array.Int64,
		*array.Uint8, *array.Uint16, *array.Uint32, *array.Uint64, *array.Decimal128:
		return appendScalar(b, a, i)
	}
	b = appendScalar(append(b, '"'), a, i)
	return append(b, '"')
}

func appendList(b []byte, values arrow.Array, from, to int) []byte {
	b = append(b, '[')
	for k := from; k < to; k++ {
		if k > from {
			b = append(b, ',')
		}
		b = appendJSON(b, values, k)
	}
	return append(b, ']')
}

// appendScalar appends what looks the same as text and inside JSON; what it
// writes needs no escape there.
func appendScalar(b []byte, a arrow.Array, i int) []byte {
	switch a := a.(type) {
	case *array.Boolean:
		return strconv.AppendBool(b, a.Value(i))
	case *array.Int8:
		return strconv.AppendInt(b, int64(a.Value(i)), 10)
	case *array.Int16:
		return strconv.AppendInt(b, int64(a.Value(i)), 10)
	case *array.Int32:
		return strconv.AppendInt(b, int64(a.Value(i)), 10)
	case *array.Int64:
		return strconv.AppendInt(b, a.Value(i), 10)
	case *array.Uint8:
		return strconv.AppendUint(b, uint64(a.Value(i)), 10)
	case *array.Uint16:
		return strconv.AppendUint(b, uint64(a.Value(i)), 10)
	case *array.Uint32:
		return strconv.AppendUint(b, uint64(a.Value(i)), 10)
	case *array.Uint64:
		return strconv.AppendUint(b, a.Value(i), 10)
	case *array.Decimal128:
		return append(b, a.Value(i).ToString(a.DataType().(*arrow.Decimal128Type).Scale)...)
	case *array.Date32:
		return append(b, formatDate(int32(a.Value(i)))...)
	case *array.Time64:
		digits := 6
		if a.DataType().(*arrow.Time64Type).Unit == arrow.Nanosecond {
			digits = 9
		}
		return append(b, formatClock(int64(a.Value(i)), digits)...)
	case *array.Timestamp:
		t := a.DataType().(*arrow.TimestampType)
		return append(b, formatTimestamp(int64(a.Value(i)), t.Unit, t.TimeZone != "")...)
	case *array.MonthDayNanoInterval:
		return append(b, formatInterval(a.Value(i))...)
	}
	return append(b, a.ValueStr(i)...)
}

// appendFloat writes the shortest text that gives the same number back.
func appendFloat(b []byte, v float64, size int) []byte {
	switch {
	case math.IsNaN(v):
		return append(b, "NaN"...)
	case math.IsInf(v, 1):
		return append(b, "Infinity"...)
	case math.IsInf(v, -1):
		return append(b, "-Infinity"...)
	}
	format := byte('f')
	if m := math.Abs(v); m != 0 && (m < 1e-6 || m >= 1e21) {
		format = 'e'
	}
	return strconv.AppendFloat(b, v, format, -1, size)
}

func appendJSONFloat(b []byte, v float64, size int) []byte {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return append(appendFloat(append(b, '"'), v, size), '"')
	}
	return appendFloat(b, v, size)
}

func appendQuoted(b []byte, s string) []byte {
	q, err := json.Marshal(s)
	if err != nil {
		panic(err) // a string always encodes
	}
	return append(b, q...)
}

// Infinite dates and times have the greatest and the least number but one
// (DuckDB, date_t and timestamp_t).
const (
	infinity         = "infinity"
	negativeInfinity = "-infinity"
)

func formatDate(days int32) string {
	switch days {
	case math.MaxInt32:
		return infinity
	case -math.MaxInt32:
		return negativeInfinity
	}
	return time.Unix(int64(days)*86400, 0).UTC().Format(time.DateOnly)
}

// formatTimestamp is RFC 3339, without a zone where the type has none.
func formatTimestamp(v int64, unit arrow.TimeUnit, zone bool) string {
	switch v {
	case math.MaxInt64:
		return infinity
	case -math.MaxInt64:
		return negativeInfinity
	}
	per := int64(time.Second / unit.Multiplier())
	second, rest := v/per, v%per
	if rest < 0 {
		second, rest = second-1, rest+per
	}
	layout := "2006-01-02T15:04:05.999999999"
	if zone {
		layout += "Z07:00"
	}
	return time.Unix(second, rest*int64(unit.Multiplier())).UTC().Format(layout)
}

// formatClock is a time of day; v counts units of 10^-digits seconds.
func formatClock(v int64, digits int) string {
	per := int64(math.Pow10(digits))
	second, rest := v/per, v%per
	s := fmt.Sprintf("%02d:%02d:%02d", second/3600, second/60%60, second%60)
	if rest != 0 {
		s += "." + strings.TrimRight(fmt.Sprintf("%0*d", digits, rest), "0")
	}
	return s
}

// formatInterval is ISO 8601, each part with a sign of its own.
func formatInterval(v arrow.MonthDayNanoInterval) string {
	s := "P"
	if v.Months != 0 {
		s += strconv.Itoa(int(v.Months)) + "M"
	}
	if v.Days != 0 {
		s += strconv.Itoa(int(v.Days)) + "D"
	}
	if v.Nanoseconds != 0 {
		sign, n := "", uint64(v.Nanoseconds)
		if v.Nanoseconds < 0 {
			sign, n = "-", -n
		}
		s += "T" + sign + strconv.FormatUint(n/1e9, 10)
		if n%1e9 != 0 {
			s += "." + strings.TrimRight(fmt.Sprintf("%09d", n%1e9), "0")
		}
		s += "S"
	}
	if s == "P" {
		return "PT0S"
	}
	return s
}

// appendCSV quotes a field where it has to be: an empty text is quoted, so
// that it differs from null.
func appendCSV(b []byte, a arrow.Array, i int) []byte {
	if a.IsNull(i) {
		return b
	}
	return appendCSVText(b, string(appendText(nil, a, i)))
}

func appendCSVText(b []byte, s string) []byte {
	if s != "" && !strings.ContainsAny(s, ",\"\r\n") && s[0] != ' ' && s[len(s)-1] != ' ' {
		return append(b, s...)
	}
	b = append(b, '"')
	b = append(b, strings.ReplaceAll(s, `"`, `""`)...)
	return append(b, '"')
}

// cellText is a value on one line of a terminal: what could move the cursor is
// escaped.
func cellText(a arrow.Array, i int) string {
	if a.IsNull(i) {
		return "NULL"
	}
	return oneLine(string(appendText(nil, a, i)))
}

func oneLine(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return !strconv.IsPrint(r) }) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if strconv.IsPrint(r) {
			b.WriteRune(r)
			continue
		}
		q := strconv.QuoteRune(r)
		b.WriteString(q[1 : len(q)-1])
	}
	return b.String()
}

// width counts characters.
func width(s string) int { return utf8.RuneCountInString(s) }
