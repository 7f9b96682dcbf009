package chunk

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/apache/arrow-go/v18/parquet"
	"github.com/apache/arrow-go/v18/parquet/compress"
	"github.com/apache/arrow-go/v18/parquet/metadata"
	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/series"
)

// File is an open data file: its footer is read and checked, its rows are
// not. It is immutable, may be used concurrently, and needs no closing.
type File struct {
	src    Source
	size   int64
	whole  []byte // all of a file that is no longer than the first read
	body   int64  // bytes before the seal
	sum    uint64 // of the body
	rows   int64
	groups []RowGroup

	labelNames []string // with a column, sorted
	overflow   []string // labels that may be in the map, sorted
	leaves     []leaf   // columns in the order of the file
	byName     map[string]int

	floats bool   // samples are given as Floats
	pages  *Pages // nil: nothing is kept
}

// leaf is one leaf column of the file's schema.
type leaf struct {
	path   string
	label  string // of a label column
	kind   parquet.Type
	maxDef int16
	maxRep int16
}

// columnChunk is where one column of one row group lies.
type columnChunk struct {
	span
	sum    uint64
	values int64 // nulls included
}

// RowGroup is what the footer says about a run of rows.
type RowGroup struct {
	Rows  int64
	Bytes int64 // compressed
	// Time is the exact range of timestamps.
	Time series.TimeRange
	// Names bounds the metric names; Labels bounds each label that has a
	// column in the file. Known is false where a bound was too long to keep.
	Names  LabelBounds
	Labels map[string]LabelBounds

	overflow []string
	span     span
	columns  []columnChunk
}

// LabelBounds says which values a label has in a row group.
type LabelBounds struct {
	Min, Max string
	Known    bool  // Min and Max are the exact bounds; false also where all rows lack the label
	Absent   int64 // rows without the label
}

// Open reads a file's footer: one request, or two where the footer is larger
// than 64 KiB. A file of up to 64 KiB is read whole, and asks for nothing more
// later. size is the object's size as the log states it. Errors:
// ErrCorrupt, ErrUnsupported, and those of the source; each names the file.
func Open(ctx context.Context, src Source, size int64) (*File, error) {
	f, err := open(ctx, src, size)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", src.Name(), err)
	}
	return f, nil
}

func open(ctx context.Context, src Source, size int64) (*File, error) {
	if size < int64(len(parquetMagic)+sealBytes+tailBytes) {
		return nil, fmt.Errorf("%w: %d bytes", ErrCorrupt, size)
	}
	guess := min(size, footerGuess)
	tail, err := readRange(ctx, src, span{size - guess, guess})
	if err != nil {
		return nil, err
	}
	n, err := footerBytes(tail, size)
	if err != nil {
		return nil, err
	}
	if n > guess {
		if tail, err = readRange(ctx, src, span{size - n, n}); err != nil {
			return nil, err
		}
	}
	footer, sum, err := openSeal(tail[int64(len(tail))-n:])
	if err != nil {
		return nil, err
	}
	f := &File{src: src, size: size, body: size - n, sum: sum, byName: map[string]int{}}
	if int64(len(tail)) == size {
		f.whole = tail
	}
	if err := guard(func() error { return f.parse(footer, size-n) }); err != nil {
		return nil, err
	}
	return f, nil
}

// From returns the same file read through another source of the same bytes.
func (f *File) From(src Source) *File {
	g := *f
	g.src = src
	return &g
}

// MemoryBytes estimates what an open file takes.
func (f *File) MemoryBytes() int64 {
	const (
		aColumn = 48  // columnChunk
		aLabel  = 150 // its bounds in the map, texts and all
	)
	n := int64(len(f.whole)) + 1024
	for i := range f.groups {
		n += 512 + aColumn*int64(len(f.leaves)) + aLabel*int64(len(f.groups[i].Labels))
	}
	return n
}

// guard turns a panic of a decoder into corruption. Only code that handles
// bytes of the file runs under it, never a caller's.
func guard(decode func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: decoder: %v", ErrCorrupt, r)
		}
	}()
	return decode()
}

// parse takes the footer apart; bodyEnd is where the seal begins.
func (f *File) parse(footer []byte, bodyEnd int64) error {
	md, err := metadata.NewFileMetaData(footer, nil)
	if err != nil {
		return fmt.Errorf("%w: footer: %w", ErrCorrupt, err)
	}
	var in info
	text := md.KeyValueMetadata().FindValue(infoKey)
	if text == nil {
		return fmt.Errorf("%w: no %s in the footer", ErrUnsupported, infoKey)
	}
	if err := json.Unmarshal([]byte(*text), &in); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrCorrupt, infoKey, err)
	}
	if in.Format < 1 || in.Format > formatVersion {
		return fmt.Errorf("%w: format %d", ErrUnsupported, in.Format)
	}
	f.rows = md.GetNumRows()
	if err := f.parseSchema(md, in); err != nil {
		return err
	}
	groups := md.NumRowGroups()
	if len(in.Sums) != groups*len(f.leaves)*8 {
		return fmt.Errorf("%w: %d bytes of sums for %d row groups of %d columns", ErrCorrupt, len(in.Sums), groups, len(f.leaves))
	}
	var rows int64
	for i := range groups {
		g, err := f.parseRowGroup(md.RowGroup(i), in.Sums[i*len(f.leaves)*8:], bodyEnd)
		if err != nil {
			return fmt.Errorf("row group %d: %w", i, err)
		}
		rows += g.Rows
		f.groups = append(f.groups, g)
	}
	if rows != f.rows {
		return fmt.Errorf("%w: row groups hold %d rows, file %d", ErrCorrupt, rows, f.rows)
	}
	return nil
}

// wantLeaf is the physical form of each fixed leaf.
var wantLeaf = map[string]leaf{
	ColumnMetricName:  {kind: parquet.Types.ByteArray},
	ColumnSeriesID:    {kind: parquet.Types.Int64},
	ColumnTimestamp:   {kind: parquet.Types.Int64},
	ColumnNanos:       {kind: parquet.Types.Int32, maxDef: 1},
	ColumnStart:       {kind: parquet.Types.Int64, maxDef: 1},
	ColumnValue:       {kind: parquet.Types.Double},
	ColumnHistogram:   {kind: parquet.Types.ByteArray, maxDef: 1},
	overflowKeyPath:   {kind: parquet.Types.ByteArray, maxDef: overflowEntryDef, maxRep: 1},
	overflowValuePath: {kind: parquet.Types.ByteArray, maxDef: overflowValueDef, maxRep: 1},
}

func (f *File) parseSchema(md *metadata.FileMetaData, in info) error {
	seen := map[string]bool{}
	for i := range md.Schema.NumColumns() {
		c := md.Schema.Column(i)
		l := leaf{path: c.Path(), kind: c.PhysicalType(), maxDef: c.MaxDefinitionLevel(), maxRep: c.MaxRepetitionLevel()}
		want, ok := wantLeaf[l.path]
		if l.path == ColumnValue {
			want.maxDef = min(l.maxDef, 1) // required where no histogram is
		}
		if len(c.ColumnPath()) == 1 {
			// A label may be called as a leaf of the map: the path alone
			// does not tell.
			if label, is := in.Labels[l.path]; is {
				if label == "" || label == series.MetricName || seen[label] {
					return fmt.Errorf("%w: column %q carries label %q", ErrCorrupt, l.path, label)
				}
				seen[label] = true
				l.label = label
				want, ok = leaf{kind: parquet.Types.ByteArray, maxDef: 1}, true
				f.labelNames = append(f.labelNames, label)
			}
		}
		if !ok || l.kind != want.kind || l.maxDef != want.maxDef || l.maxRep != want.maxRep {
			return fmt.Errorf("%w: column %q of type %s, levels %d and %d", ErrCorrupt, l.path, l.kind, l.maxDef, l.maxRep)
		}
		key := l.path
		if l.label != "" {
			key = labelKey(l.label)
		}
		if _, dup := f.byName[key]; dup {
			return fmt.Errorf("%w: column %q occurs twice", ErrCorrupt, l.path)
		}
		f.byName[key] = i
		f.leaves = append(f.leaves, l)
	}
	for _, name := range []string{ColumnMetricName, ColumnSeriesID, ColumnTimestamp, ColumnValue} {
		if _, ok := f.byName[name]; !ok {
			return fmt.Errorf("%w: no column %s", ErrCorrupt, name)
		}
	}
	_, key := f.byName[overflowKeyPath]
	_, value := f.byName[overflowValuePath]
	if key != value || key != (len(in.Overflow) > 0) || len(f.labelNames) != len(in.Labels) {
		return fmt.Errorf("%w: columns do not match the labels", ErrCorrupt)
	}
	for i, label := range in.Overflow {
		if seen[label] || label == "" || label == series.MetricName || i > 0 && label <= in.Overflow[i-1] {
			return fmt.Errorf("%w: label %q in the overflow map", ErrCorrupt, label)
		}
	}
	f.overflow = in.Overflow
	slices.Sort(f.labelNames)
	return nil
}

// labelKey keeps label columns apart from the fixed ones in byName.
func labelKey(label string) string { return "\x00" + label }

func (f *File) parseRowGroup(rg *metadata.RowGroupMetaData, sums []byte, bodyEnd int64) (RowGroup, error) {
	g := RowGroup{Rows: rg.NumRows(), Labels: map[string]LabelBounds{}, overflow: f.overflow}
	if g.Rows <= 0 || g.Rows > maxGroupRows || rg.NumColumns() != len(f.leaves) {
		return g, fmt.Errorf("%w: %d rows in %d columns", ErrCorrupt, g.Rows, rg.NumColumns())
	}
	for j := range f.leaves {
		l := &f.leaves[j]
		c, err := rg.ColumnChunk(j)
		if err != nil {
			return g, fmt.Errorf("%w: column %q: %w", ErrCorrupt, l.path, err)
		}
		start := c.DataPageOffset()
		if c.HasDictionaryPage() {
			start = c.DictionaryPageOffset()
		}
		chunk := columnChunk{
			span: span{start, c.TotalCompressedSize()}, values: c.NumValues(),
			sum: binary.LittleEndian.Uint64(sums[8*j:]),
		}
		if start < int64(len(parquetMagic)) || chunk.length <= 0 || chunk.length > bodyEnd-start {
			return g, fmt.Errorf("%w: column %q: %d bytes at %d", ErrCorrupt, l.path, chunk.length, start)
		}
		if chunk.values < g.Rows || chunk.values > g.Rows+maxExtra(l) || c.Compression() != compress.Codecs.Zstd {
			return g, fmt.Errorf("%w: column %q: %d values by %s", ErrCorrupt, l.path, chunk.values, c.Compression())
		}
		g.columns = append(g.columns, chunk)
		g.Bytes += chunk.length
		if j == 0 {
			g.span = chunk.span
		}
		end := max(g.span.end(), chunk.end())
		g.span.offset = min(g.span.offset, start)
		g.span.length = end - g.span.offset
		if err := g.parseStats(l, c); err != nil {
			return g, fmt.Errorf("column %q: %w", l.path, err)
		}
	}
	return g, nil
}

// maxExtra is how many values more than rows a column chunk may have: the
// encoder counts at least two bytes for each map entry of each row.
func maxExtra(l *leaf) int64 {
	if l.maxRep == 0 {
		return 0
	}
	return (maxRowGroupBytes + maxValueBytes) / 2
}

func (g *RowGroup) parseStats(l *leaf, c *metadata.ColumnChunkMetaData) error {
	if l.label == "" && l.path != ColumnMetricName && l.path != ColumnTimestamp {
		return nil
	}
	set, err := c.StatsSet()
	if err != nil {
		return fmt.Errorf("%w: statistics: %w", ErrCorrupt, err)
	}
	var stats metadata.TypedStatistics
	if set {
		if stats, err = c.Statistics(); err != nil {
			return fmt.Errorf("%w: statistics: %w", ErrCorrupt, err)
		}
	}
	if l.path == ColumnTimestamp && l.label == "" {
		s, ok := stats.(*metadata.Int64Statistics)
		if !ok || !s.HasMinMax() || s.Min() > s.Max() {
			return fmt.Errorf("%w: no bounds", ErrCorrupt)
		}
		g.Time = series.TimeRange{Min: series.Timestamp(s.Min()), Max: series.Timestamp(s.Max())}
		return nil
	}
	s, ok := stats.(*metadata.ByteArrayStatistics)
	if !ok || !s.HasNullCount() || s.NullCount() < 0 || s.NullCount() > g.Rows {
		return fmt.Errorf("%w: no count of nulls", ErrCorrupt)
	}
	b := LabelBounds{Absent: s.NullCount()}
	// A bound that was too long to keep reads as the empty text, which is no
	// value of a label.
	if lo, hi := string(s.Min()), string(s.Max()); s.HasMinMax() && lo != "" && hi != "" {
		if lo > hi {
			return fmt.Errorf("%w: bounds %.40q above %.40q", ErrCorrupt, lo, hi)
		}
		b.Min, b.Max, b.Known = lo, hi, true
	}
	if l.label == "" {
		g.Names = b
	} else {
		g.Labels[l.label] = b
	}
	return nil
}

// Name is the source's name.
func (f *File) Name() string { return f.src.Name() }

// Rows is the number of rows.
func (f *File) Rows() int64 { return f.rows }

// RowGroups describes the row groups, in the order of the file. Treat it as
// read-only.
func (f *File) RowGroups() []RowGroup { return f.groups }

// Contents tells what the file may hold; its labels are complete, those of
// the overflow map included.
func (f *File) Contents() Contents {
	_, nanos := f.byName[ColumnNanos]
	_, starts := f.byName[ColumnStart]
	_, histograms := f.byName[ColumnHistogram]
	return Contents{Labels: slices.Concat(f.labelNames, f.overflow), Nanos: nanos, Starts: starts, Histograms: histograms}
}

// MayMatch reports whether the row group may hold a row that the selector
// picks; false is certain.
func (g *RowGroup) MayMatch(sel series.Selector) bool {
	if !g.Time.Overlaps(sel.Range) {
		return false
	}
	for _, m := range sel.Matchers {
		if !g.mayMatch(m) {
			return false
		}
	}
	return true
}

func (g *RowGroup) mayMatch(m *labels.Matcher) bool {
	b, ok := g.Labels[m.Name]
	switch {
	case m.Name == series.MetricName:
		b = g.Names
	case ok:
	default:
		if _, in := slices.BinarySearch(g.overflow, m.Name); in {
			return true
		}
		return m.Matches("")
	}
	if b.Absent > 0 && m.Matches("") {
		return true
	}
	if b.Absent == g.Rows {
		return false
	}
	if !b.Known {
		return true
	}
	if b.Min == b.Max {
		return m.Matches(b.Min)
	}
	within := func(v string) bool { return v != "" && b.Min <= v && v <= b.Max }
	switch m.Type {
	case labels.MatchEqual:
		return within(m.Value)
	case labels.MatchRegexp:
		if set := m.SetMatches(); len(set) > 0 {
			return slices.ContainsFunc(set, within)
		}
		if p := m.Prefix(); p != "" {
			// Some value with the prefix lies in the bounds, unless all
			// of those are below or above.
			return p <= b.Max && b.Min <= p+"\xff"
		}
	}
	return true
}
