package chunk

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"cardinalsin/action"
	"cardinalsin/series"
)

// Fixed columns of the table (contract 5).
const (
	ColumnTimestamp  = "timestamp"
	ColumnNanos      = "nanos"
	ColumnStart      = "start_time_unix_nano" // in tables from before there was one: added when they grow
	ColumnMetricName = "metric_name"
	ColumnSeriesID   = "series_id"
	ColumnValue      = "value"
	ColumnHistogram  = "histogram"
	ColumnOverflow   = "labels_overflow"
	ColumnDate       = "date"  // partition
	ColumnShard      = "shard" // partition
)

// LabelMetadata is the key in a column's field metadata that holds the exact
// name of the label the column carries.
const LabelMetadata = "cardinal.label"

const (
	// DefaultMaxLabels is the number of label columns after which labels go
	// to the overflow map. Parquet libraries stop at 32,767 columns; planning
	// and footers grow with every column long before.
	DefaultMaxLabels = 1000
	// maxColumnNameBytes is what common file formats and catalogues accept.
	maxColumnNameBytes = 255
)

const mapType = `{"type":"map","keyType":"string","valueType":"string","valueContainsNull":true}`

// BaseSchema is the schema of a table without labels: the fixed columns, then
// the partition columns. Label columns are appended as labels appear, which
// is the only growth that every Delta engine accepts.
func BaseSchema() *action.Schema {
	field := func(name, typ string, nullable bool) action.Field {
		return action.Field{Name: name, Type: action.PrimitiveType(typ), Nullable: nullable}
	}
	return &action.Schema{Fields: []action.Field{
		field(ColumnTimestamp, "timestamp", false),
		field(ColumnNanos, "integer", true),
		field(ColumnStart, "long", true),
		field(ColumnMetricName, "string", false),
		field(ColumnSeriesID, "long", false),
		field(ColumnValue, "double", true),
		field(ColumnHistogram, "binary", true),
		{Name: ColumnOverflow, Type: []byte(mapType), Nullable: true},
		field(ColumnDate, "date", true),
		field(ColumnShard, "string", true),
	}}
}

// PartitionColumns are the table's partition columns, in order.
func PartitionColumns() []string { return []string{ColumnDate, ColumnShard} }

// Layout says which column holds which label, for one table schema. It is
// immutable and may be shared.
//
// Of two columns whose names differ only in case, which two writers that grow
// the schema at the same time can bring about, the first owns its label; the
// label of the other has no column, and its values go to the overflow map. A
// writer whose schema change is rebased takes the layout of the new schema
// and asks [Encoded.Fits].
type Layout struct {
	columns   map[string]string // label → column
	taken     map[string]bool   // folded names of all columns
	labels    []string          // labels with a column, in schema order
	start     bool              // there is a column for start times
	maxLabels int
}

// LayoutOf reads the layout out of a table's schema. It returns an error that
// wraps ErrSchema where a fixed column is missing or has another type, where
// two columns carry one label, and where a column carries a label that the
// rules of [Layout.Grow] would give another column.
func LayoutOf(s *action.Schema) (*Layout, error) {
	l := &Layout{columns: map[string]string{}, taken: map[string]bool{}, maxLabels: DefaultMaxLabels}
	base := BaseSchema()
	for i := range base.Fields {
		want := &base.Fields[i]
		got := s.Field(want.Name)
		if got == nil && want.Name == ColumnStart {
			continue // a table from before there was one
		}
		if got == nil {
			return nil, fmt.Errorf("%w: no column %s", ErrSchema, want.Name)
		}
		if got.Primitive() != want.Primitive() {
			return nil, fmt.Errorf("%w: column %s has type %s, not %s", ErrSchema, want.Name, got.Type, want.Type)
		}
	}
	l.start = s.Field(ColumnStart) != nil
	for i := range s.Fields {
		f := &s.Fields[i]
		key := fold(f.Name)
		owner := !l.taken[key]
		l.taken[key] = true
		v, ok := f.Metadata[LabelMetadata]
		if !ok {
			continue
		}
		label, ok := v.(string)
		if !ok || base.Field(f.Name) != nil || columnFor(label) != f.Name || f.Primitive() != "string" {
			return nil, fmt.Errorf("%w: column %q cannot carry label %q", ErrSchema, f.Name, v)
		}
		if _, ok := l.columns[label]; ok {
			return nil, fmt.Errorf("%w: two columns carry label %q", ErrSchema, label)
		}
		if owner {
			l.columns[label] = f.Name
			l.labels = append(l.labels, label)
		}
	}
	return l, nil
}

// WithMaxLabels is the same layout with another limit on label columns, which
// only Grow looks at.
func (l *Layout) WithMaxLabels(n int) *Layout {
	c := *l
	c.maxLabels = n
	return &c
}

// Column returns the column that holds a label; ok is false where the label
// lives in the overflow map. The metric name has its own column.
func (l *Layout) Column(label string) (column string, ok bool) {
	column, ok = l.columns[label]
	return column, ok
}

// Labels lists the labels that have a column, in the order of the schema.
func (l *Layout) Labels() []string { return slices.Clone(l.labels) }

// Grow returns the columns to append to the schema for labels that have none,
// in ascending order of their names, after a fixed column that the table is
// too old to have. A label gets none, and stays in the overflow map, if its
// column's name
//
//   - is empty, longer than 255 bytes, or no UTF-8 text;
//   - holds a control character or one of " ,;{}()\n\t=", which Delta
//     engines refuse;
//   - differs from an existing column's only in case;
//   - would exceed the limit on label columns.
//
// Of new labels whose columns differ only in case, one in lower case gets the
// column. The result depends only on the
// schema and on the set of names. The schema that holds the result grows no
// further by the same names.
func (l *Layout) Grow(labelNames []string) []action.Field {
	type candidate struct {
		fold, column, label string
		upper               int // 1: not in lower case
	}
	var candidates []candidate
	for _, name := range labelNames {
		if _, has := l.columns[name]; has || name == series.MetricName {
			continue
		}
		if column := columnFor(name); holdable(column) {
			c := candidate{fold: fold(column), column: column, label: name}
			if strings.ToLower(column) != column {
				c.upper = 1
			}
			candidates = append(candidates, c)
		}
	}
	slices.SortFunc(candidates, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.fold, b.fold), cmp.Compare(a.upper, b.upper), cmp.Compare(a.column, b.column))
	})
	var fields []action.Field
	if !l.start {
		fields = append(fields, *BaseSchema().Field(ColumnStart))
	}
	room := l.maxLabels - len(l.labels)
	for i, c := range candidates {
		if room <= 0 {
			break
		}
		if l.taken[c.fold] || i > 0 && candidates[i-1].fold == c.fold {
			continue
		}
		fields = append(fields, action.Field{
			Name: c.column, Type: action.PrimitiveType("string"), Nullable: true,
			Metadata: map[string]any{LabelMetadata: c.label},
		})
		room--
	}
	return fields
}

// columnFor names the column of a label: its own name, with one more
// underscore where it begins with one or is that of a fixed column. The map
// is one-to-one, since only fixed names gain their first underscore.
func columnFor(label string) string {
	if strings.HasPrefix(label, "_") || fixed[label] {
		return "_" + label
	}
	return label
}

var fixed = func() map[string]bool {
	m := map[string]bool{}
	for _, f := range BaseSchema().Fields {
		m[f.Name] = true
	}
	return m
}()

// holdable reports whether Parquet and Delta engines take the column name
// (PROTOCOL.md, "Column Mapping", names what they refuse without it).
func holdable(column string) bool {
	if column == "" || len(column) > maxColumnNameBytes || !utf8.ValidString(column) {
		return false
	}
	for _, r := range column {
		if unicode.IsControl(r) || strings.ContainsRune(" ,;{}()=", r) {
			return false
		}
	}
	return true
}

// fold maps names that some engine takes for the same, for it compares
// without regard to case, to one text. It joins Unicode's simple folding with
// lower-casing, which differ for a few letters.
func fold(name string) string {
	return strings.Map(func(r rune) rune {
		least := unicode.ToLower(r)
		for f := unicode.SimpleFold(least); f != unicode.ToLower(r); f = unicode.SimpleFold(f) {
			least = min(least, f)
		}
		return least
	}, name)
}
