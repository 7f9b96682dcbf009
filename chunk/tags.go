package chunk

import (
	"errors"
	"fmt"
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"cardinalsin/action"
	"cardinalsin/series"
)

// Keys of add.tags.
const (
	TagLevel = "cardinal.level" // 0: flushed; 1 and above: compacted
	TagOrder = "cardinal.order" // "lo-hi", see Order
	TagWAL   = "cardinal.wal"   // "writer:first-last,…", see WALRange
	TagTime  = "cardinal.time"  // "min..max", µs since the epoch, inclusive
	TagKeys  = "cardinal.keys"  // "id/name,id/name", see KeyRange
)

// ErrTags marks add.tags that do not parse.
var ErrTags = errors.New("malformed file tags")

// Tags are the facts about a file, beyond Delta's statistics, that its add
// action carries: what it holds of the writers' logs, how strong its samples
// are in a merge, and exact bounds.
type Tags struct {
	Level int
	Order Order
	WAL   []WALRange
	// Time is the exact range of the rows' timestamps.
	Time series.TimeRange
	Keys KeyRange
}

// Order is the range of flush numbers a file covers, both at least 0. Each
// flush gets one number, max(store clock in µs, last + 1); compaction takes
// the union. Hi with the path is the file's rank in a merge.
//
// A merge by rank equals a merge of the flushes only if no file with a number
// inside another's range may hold the same series at the same time; whoever
// chooses what to compact keeps that.
type Order struct{ Lo, Hi int64 }

// Union covers both.
func (o Order) Union(p Order) Order { return Order{min(o.Lo, p.Lo), max(o.Hi, p.Hi)} }

// WALRange is a range of one writer's WAL sequences, both ends inclusive.
type WALRange struct {
	Writer      string // UUID
	First, Last uint64
}

// MergeWAL sorts ranges by writer and sequence and joins those that touch.
func MergeWAL(ranges []WALRange) []WALRange {
	out := slices.Clone(ranges)
	slices.SortFunc(out, func(a, b WALRange) int {
		if c := strings.Compare(a.Writer, b.Writer); c != 0 {
			return c
		}
		switch {
		case a.First < b.First:
			return -1
		case a.First > b.First:
			return 1
		}
		return 0
	})
	n := 0
	for _, r := range out {
		if n > 0 && out[n-1].Writer == r.Writer && (out[n-1].Last == math.MaxUint64 || r.First <= out[n-1].Last+1) {
			out[n-1].Last = max(out[n-1].Last, r.Last)
			continue
		}
		out[n] = r
		n++
	}
	return out[:n]
}

// KeyRange bounds the series of a file in the order of [series.Compare]: from
// (MinName, MinID) to (MaxName, MaxID), both inclusive. Long names are cut,
// which only widens the range. The zero value covers every series.
type KeyRange struct {
	MinName string
	MinID   series.ID
	MaxName string
	MaxID   series.ID
	// Bounded is false where no upper bound is known.
	Bounded bool
}

// Overlaps reports whether a series may lie in both ranges.
func (k KeyRange) Overlaps(o KeyRange) bool {
	return k.reaches(o) && o.reaches(k)
}

// reaches reports whether o's upper bound is not below k's lower.
func (k KeyRange) reaches(o KeyRange) bool {
	return !o.Bounded || k.MinName < o.MaxName || k.MinName == o.MaxName && k.MinID <= o.MaxID
}

// maxKeyNameBytes bounds the names in a tag.
const maxKeyNameBytes = 96

// keyRangeOf bounds the series from first to last.
func keyRangeOf(firstName string, firstID series.ID, lastName string, lastID series.ID) KeyRange {
	k := KeyRange{MinName: firstName, MinID: firstID, MaxName: lastName, MaxID: lastID, Bounded: true}
	if len(k.MinName) > maxKeyNameBytes {
		// A prefix is below all that it begins, whatever the ID.
		k.MinName, k.MinID = cutPrefix(k.MinName, maxKeyNameBytes), 0
	}
	if len(k.MaxName) > maxKeyNameBytes {
		name, ok := upperBound(k.MaxName, maxKeyNameBytes/4)
		k.MaxName, k.MaxID, k.Bounded = name, math.MaxUint64, ok
		if !ok {
			k.MaxName, k.MaxID = "", 0
		}
	}
	return k
}

// Encode returns the tags of an add action.
func (t Tags) Encode() action.Object {
	m := map[string]string{
		TagLevel: strconv.Itoa(t.Level),
		TagOrder: fmt.Sprintf("%d-%d", t.Order.Lo, t.Order.Hi),
		TagTime:  fmt.Sprintf("%d..%d", t.Time.Min, t.Time.Max),
		TagKeys:  t.Keys.encode(),
	}
	if len(t.WAL) > 0 {
		parts := make([]string, len(t.WAL))
		for i, r := range t.WAL {
			parts[i] = fmt.Sprintf("%s:%d-%d", r.Writer, r.First, r.Last)
		}
		m[TagWAL] = strings.Join(parts, ",")
	}
	return action.ObjectOf(m)
}

func (k KeyRange) encode() string {
	lower := fmt.Sprintf("%016x/%s", uint64(k.MinID), url.QueryEscape(k.MinName))
	if !k.Bounded {
		return lower + ","
	}
	return fmt.Sprintf("%s,%016x/%s", lower, uint64(k.MaxID), url.QueryEscape(k.MaxName))
}

// ParseTags is the inverse of Encode. ok is false where the file carries none
// of our tags, as a file of another engine; tags that are damaged, or of
// which a part is missing, are an error that wraps ErrTags.
func ParseTags(o action.Object) (t Tags, ok bool, err error) {
	m, err := o.Map()
	if err != nil {
		return Tags{}, false, fmt.Errorf("%w: %w", ErrTags, err)
	}
	get := func(key string) string {
		if v := m[key]; v != nil {
			ok = true
			return *v
		}
		return ""
	}
	level, order, wal, span, keys := get(TagLevel), get(TagOrder), get(TagWAL), get(TagTime), get(TagKeys)
	if !ok {
		return Tags{}, false, nil
	}
	bad := func(key, value string) (Tags, bool, error) {
		return Tags{}, false, fmt.Errorf("%w: %s is %.200q", ErrTags, key, value)
	}
	if t.Level, err = strconv.Atoi(level); err != nil || t.Level < 0 {
		return bad(TagLevel, level)
	}
	if t.Order.Lo, t.Order.Hi, ok = parseRange(order, "-"); !ok || t.Order.Lo < 0 {
		return bad(TagOrder, order)
	}
	lo, hi, ok := parseRange(span, "..")
	if !ok {
		return bad(TagTime, span)
	}
	t.Time = series.TimeRange{Min: series.Timestamp(lo), Max: series.Timestamp(hi)}
	if t.Keys, ok = parseKeys(keys); !ok {
		return bad(TagKeys, keys)
	}
	if wal != "" {
		for part := range strings.SplitSeq(wal, ",") {
			r, ok := parseWAL(part)
			if !ok {
				return bad(TagWAL, wal)
			}
			t.WAL = append(t.WAL, r)
		}
	}
	return t, true, nil
}

// parseRange parses two numbers, the first not above the second.
func parseRange(s, sep string) (lo, hi int64, ok bool) {
	a, b, ok := strings.Cut(s, sep)
	if !ok {
		return 0, 0, false
	}
	lo, err1 := strconv.ParseInt(a, 10, 64)
	hi, err2 := strconv.ParseInt(b, 10, 64)
	return lo, hi, err1 == nil && err2 == nil && lo <= hi
}

func parseWAL(s string) (r WALRange, ok bool) {
	writer, span, ok := strings.Cut(s, ":")
	if !ok || writer == "" {
		return WALRange{}, false
	}
	a, b, _ := strings.Cut(span, "-")
	first, err1 := strconv.ParseUint(a, 10, 64)
	last, err2 := strconv.ParseUint(b, 10, 64)
	return WALRange{writer, first, last}, err1 == nil && err2 == nil && first <= last
}

func parseKeys(s string) (k KeyRange, ok bool) {
	lower, upper, ok := strings.Cut(s, ",") // QueryEscape writes a comma as %2C
	if !ok {
		return KeyRange{}, false
	}
	if k.MinID, k.MinName, ok = parseKey(lower); !ok || upper == "" {
		return k, ok
	}
	k.Bounded = true
	k.MaxID, k.MaxName, ok = parseKey(upper)
	return k, ok
}

func parseKey(s string) (id series.ID, name string, ok bool) {
	if len(s) < 17 || s[16] != '/' {
		return 0, "", false
	}
	n, err := strconv.ParseUint(s[:16], 16, 64)
	if err != nil {
		return 0, "", false
	}
	name, err = url.QueryUnescape(s[17:])
	return series.ID(n), name, err == nil
}
