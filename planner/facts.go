package planner

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/series"
	"cardinalsin/shard"
	"cardinalsin/txlog"
)

// tableFacts are what the log says about the table.
type tableFacts struct {
	metadata  *action.Metadata // of which they are
	shardText string
	layout    *chunk.Layout // nil: not ours
	shards    []shard.Shard // nil: unknown
}

func newTableFacts(snap *txlog.Snapshot, shards string) *tableFacts {
	t := &tableFacts{metadata: snap.Metadata(), shardText: shards}
	// Column mapping gives statistics other names than the schema has, so a
	// table that uses it is none of ours.
	if mode := t.metadata.Configuration["delta.columnMapping.mode"]; mode != "" && mode != "none" {
		return t
	}
	if !slices.Equal(t.metadata.PartitionColumns, chunk.PartitionColumns()) {
		return t
	}
	if layout, err := chunk.LayoutOf(snap.Schema()); err == nil {
		t.layout = layout
	}
	// A map that does not parse tells nothing.
	if m, err := shard.Parse(shards); err == nil {
		t.shards = m.Shards
	}
	return t
}

// place is what a file's partition values say, which it shares with many.
type place struct {
	parsed   bool
	values   action.Object
	date     series.Date
	hasDate  bool
	shard    string
	hasShard bool
}

func placeOf(values action.Object) place {
	p := place{parsed: true, values: values}
	all, err := values.Map()
	if err != nil {
		return p
	}
	// The protocol writes null as "", too.
	if v := all[chunk.ColumnDate]; v != nil && *v != "" {
		d, err := series.ParseDate(*v)
		p.date, p.hasDate = d, err == nil
	}
	if v := all[chunk.ColumnShard]; v != nil && *v != "" {
		p.shard, p.hasShard = *v, true
	}
	return p
}

// fileFacts are what the log says about one file. Each is parsed when it is
// first asked for, the cheap ones first. They may be used concurrently.
type fileFacts struct {
	tagText   action.Object
	statsText string

	mu sync.Mutex // guards what follows

	tagged     bool
	fileTags   chunk.Tags
	tagsErr    error
	tagsParsed bool

	stats       action.Stats
	statsOK     bool
	statsParsed bool
	columns     map[string]bounds
}

// newFileFacts keeps no memory of the snapshot, whose files share it.
func newFileFacts(add *action.Add) *fileFacts {
	return &fileFacts{tagText: action.Object(strings.Clone(string(add.Tags))), statsText: strings.Clone(add.Stats)}
}

// of reports whether the facts are those of add.
func (f *fileFacts) of(add *action.Add) bool {
	return f.tagText == add.Tags && f.statsText == add.Stats
}

// size estimates the bytes that the facts take once all of them are parsed.
func (f *fileFacts) size() int64 {
	const fixed, parsed = 512, 6 // a column's bounds are JSON twice, and parsed
	return fixed + parsed*int64(len(f.statsText)+len(f.tagText))
}

func (f *fileFacts) tags() (chunk.Tags, bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.readTags()
}

// readTags is tags under mu.
func (f *fileFacts) readTags() (chunk.Tags, bool, error) {
	if !f.tagsParsed {
		f.tagsParsed = true
		f.fileTags, f.tagged, f.tagsErr = chunk.ParseTags(f.tagText)
	}
	return f.fileTags, f.tagged, f.tagsErr
}

// timeRange bounds the file's timestamps: exactly by its tags, else by its
// statistics, which Delta writers cut down to the millisecond, so that a
// maximum is up to 999 µs too low (delta-spark, DataSkippingReader). mu is held.
func (f *fileFacts) timeRange() (series.TimeRange, bool) {
	if t, tagged, err := f.readTags(); err == nil && tagged {
		return t.Time, true
	}
	st, ok := f.statistics()
	if !ok {
		return series.TimeRange{}, false
	}
	r := series.AllTime
	min, hasMin := timeBound(st.Min[chunk.ColumnTimestamp])
	max, hasMax := timeBound(st.Max[chunk.ColumnTimestamp])
	if hasMin {
		r.Min = min
	}
	if hasMax {
		r.Max = max + series.Timestamp(time.Millisecond.Microseconds())
	}
	return r, r.Min <= r.Max
}

// timeBound parses a timestamp of the statistics; one without a zone is not
// understood.
func timeBound(raw json.RawMessage) (series.Timestamp, bool) {
	s, ok := stringBound(raw)
	if !ok {
		return 0, false
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return 0, false
	}
	return series.FromTime(t), true
}

// names bounds the metric names: by the tags, which hold more characters than
// statistics do, else by the statistics. mu is held.
func (f *fileFacts) names() bounds {
	t, tagged, err := f.readTags()
	if err != nil || !tagged {
		b := f.column(chunk.ColumnMetricName)
		b.nulls = false // every series has a name
		return b
	}
	b := bounds{values: true, min: t.Keys.MinName, hasMin: true, max: t.Keys.MaxName, hasMax: t.Keys.Bounded}
	if b.hasMax && b.min > b.max {
		return unknown
	}
	return b
}

// column bounds the values of a string column by the statistics. A column
// that they do not mention is unknown: the file may be older than the column
// and carry the label in its overflow map. mu is held.
func (f *fileFacts) column(name string) bounds {
	if name == "" {
		return unknown
	}
	b, ok := f.columns[name]
	if !ok {
		if f.columns == nil {
			f.columns = map[string]bounds{}
		}
		b = f.readColumn(name)
		f.columns[name] = b
	}
	return b
}

func (f *fileFacts) readColumn(name string) bounds {
	st, ok := f.statistics()
	if !ok {
		return unknown
	}
	b := unknown
	// With wide bounds a count means something only at 0 and at all rows
	// (PROTOCOL.md, "Per-file Statistics"); nothing else is used.
	if n, ok := countBound(st.NullCount[name]); ok {
		switch {
		case n == 0:
			b.nulls = false
		case n == st.NumRecords:
			b.values = false
		}
	}
	b.min, b.hasMin = stringBound(st.Min[name])
	b.max, b.hasMax = stringBound(st.Max[name])
	if b.hasMin && b.hasMax && b.min > b.max {
		return unknown
	}
	return b
}

func (f *fileFacts) statistics() (*action.Stats, bool) {
	if !f.statsParsed {
		f.statsParsed = true
		st, ok, err := action.ParseStats(f.statsText)
		f.stats, f.statsOK = st, ok && err == nil
	}
	return &f.stats, f.statsOK
}

func countBound(raw json.RawMessage) (int64, bool) {
	n, err := strconv.ParseInt(string(raw), 10, 64)
	return n, err == nil && n >= 0
}

// stringBound decodes a JSON string. Bytes that are no UTF-8, and halves of
// surrogate pairs, turn into U+FFFD when they are decoded; such a text is no
// bound any more.
func stringBound(raw json.RawMessage) (string, bool) {
	var s *string
	if len(raw) == 0 || json.Unmarshal(raw, &s) != nil || s == nil {
		return "", false
	}
	return *s, !strings.ContainsRune(*s, utf8.RuneError)
}
