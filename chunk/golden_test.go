package chunk

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/parquet/file"
	"github.com/apache/arrow-go/v18/parquet/metadata"
	"github.com/apache/arrow-go/v18/parquet/schema"
	"github.com/cockroachdb/datadriven"

	"cardinalsin/action"
	"cardinalsin/internal/merge"
	"cardinalsin/series"
)

func describeField(f *action.Field) string {
	typ := f.Primitive()
	if typ == "" {
		typ = string(f.Type)
	}
	out := fmt.Sprintf("%+q %s", f.Name, typ)
	if !f.Nullable {
		out += " not null"
	}
	if l, ok := f.Metadata[LabelMetadata]; ok {
		out += fmt.Sprintf(" label=%+q", l)
	}
	return out + "\n"
}

// TestLayout prints how labels become columns. Commands: base, a schema
// without labels; grow max=N, by the quoted label names in the input; field,
// which appends columns as another writer might; columns, of the quoted
// labels in the input.
func TestLayout(t *testing.T) {
	datadriven.RunTest(t, "testdata/layout", func(t *testing.T, d *datadriven.TestData) string {
		return layoutCommand(t, d)
	})
}

var layoutSchema *action.Schema // of the file that runs

func layoutCommand(t *testing.T, d *datadriven.TestData) string {
	var names []string
	for line := range strings.Lines(d.Input) {
		name, err := strconv.Unquote(strings.TrimSpace(line))
		if err != nil {
			return fmt.Sprintf("%s: %v\n", line, err)
		}
		names = append(names, name)
	}
	var out strings.Builder
	switch d.Cmd {
	case "base":
		layoutSchema = BaseSchema()
		for i := range layoutSchema.Fields {
			out.WriteString(describeField(&layoutSchema.Fields[i]))
		}
		fmt.Fprintf(&out, "partitioned by %q\n", PartitionColumns())
	case "grow":
		l, err := LayoutOf(layoutSchema)
		if err != nil {
			return err.Error() + "\n"
		}
		limit := DefaultMaxLabels
		d.MaybeScanArgs(t, "max", &limit)
		l = l.WithMaxLabels(limit)
		fields := l.Grow(names)
		slices.Reverse(names)
		if again := l.Grow(append(names, names...)); len(again) != len(fields) {
			return "the order of the names matters\n"
		}
		for i := range fields {
			out.WriteString(describeField(&fields[i]))
		}
		layoutSchema.Fields = append(layoutSchema.Fields, fields...)
		// What was grown must parse after a round trip through the log, and
		// grow no further.
		text, err := layoutSchema.Encode()
		if err != nil {
			return err.Error() + "\n"
		}
		if layoutSchema, err = action.ParseSchema(text); err != nil {
			return err.Error() + "\n"
		}
		if l, err = LayoutOf(layoutSchema); err != nil {
			return err.Error() + "\n"
		}
		if more := l.WithMaxLabels(limit).Grow(names); len(more) > 0 {
			fmt.Fprintf(&out, "grows again: %v\n", more)
		}
	case "field":
		var label, typ string
		d.MaybeScanArgs(t, "label", &label)
		d.ScanArgs(t, "type", &typ)
		for _, name := range names {
			f := action.Field{Name: name, Type: action.PrimitiveType(typ), Nullable: true}
			if label != "" {
				f.Metadata = map[string]any{LabelMetadata: label}
			}
			layoutSchema.Fields = append(layoutSchema.Fields, f)
		}
		if _, err := LayoutOf(layoutSchema); err != nil {
			layoutSchema.Fields = layoutSchema.Fields[:len(layoutSchema.Fields)-len(names)]
			return err.Error() + "\n"
		}
	case "columns":
		l, err := LayoutOf(layoutSchema)
		if err != nil {
			return err.Error() + "\n"
		}
		for _, name := range names {
			if column, ok := l.Column(name); ok {
				fmt.Fprintf(&out, "%+q in %+q\n", name, column)
			} else {
				fmt.Fprintf(&out, "%+q in the overflow map\n", name)
			}
		}
	default:
		return "unknown command\n"
	}
	return out.String()
}

// TestFile pins the format: schema, encodings, statistics, tags.
func TestFile(t *testing.T) {
	datadriven.RunTest(t, "testdata/file", func(t *testing.T, d *datadriven.TestData) string {
		return describeFile(t, d)
	})
}

func describeFile(t *testing.T, d *datadriven.TestData) string {
	var opts Options
	d.MaybeScanArgs(t, "row-group", &opts.RowGroupRows)
	d.MaybeScanArgs(t, "page", &opts.PageRows)
	opts.SplitValues = d.HasArg("split")
	day := series.Timestamp(1764000000_000_000).Date().Start()
	var in []Series
	samples := 3
	d.MaybeScanArgs(t, "samples", &samples)
	for i := range 6 {
		pairs := []string{"host", fmt.Sprintf("h%d", i%2), "value", "v"}
		if d.HasArg("overflow") && i%3 == 0 {
			pairs = append(pairs, "bad name", fmt.Sprint(i))
		}
		s := mk(fmt.Sprintf("metric_%d", i/2), pairs...)
		for k := range samples {
			p := series.Sample{Time: day + series.Timestamp(k)*1_500_000 + 123_456, Value: float64(k)}
			if d.HasArg("nanos") && k == 1 {
				p.Nanos = 789
			}
			if d.HasArg("starts") && k > 0 {
				p.Start = 1763942400_000_000_001
			}
			if d.HasArg("histograms") && i == 1 {
				p.Value, p.Histogram = 0, []byte{1, 2, 3}
			}
			s.Samples = append(s.Samples, p)
		}
		in = append(in, s)
	}
	sorted(in)
	enc, err := Encode(opts, grown(t, in, DefaultMaxLabels), merge.Slice(in))
	if err != nil {
		return err.Error() + "\n"
	}
	var out strings.Builder
	r, err := file.NewParquetReader(bytes.NewReader(enc.Data))
	if err != nil {
		return err.Error() + "\n"
	}
	defer func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}()
	schema.PrintSchema(r.MetaData().Schema.Root(), &out, 2)
	for g := range r.NumRowGroups() {
		rg := r.MetaData().RowGroup(g)
		fmt.Fprintf(&out, "row group %d: %d rows\n", g, rg.NumRows())
		for j := range rg.NumColumns() {
			c, err := rg.ColumnChunk(j)
			if err != nil {
				return err.Error() + "\n"
			}
			pages, err := splitPages(enc.Data[reopen(t, enc.Data).groups[g].columns[j].offset:][:c.TotalCompressedSize()], &reopen(t, enc.Data).groups[g].columns[j])
			if err != nil {
				return err.Error() + "\n"
			}
			fmt.Fprintf(&out, "  %s: %s %v, %d data pages, encoding %d\n", c.PathInSchema(), c.Compression(), c.Encodings(), len(pages.data), pages.data[0].encoding)
		}
	}
	var kv info
	if err := json.Unmarshal([]byte(*r.MetaData().KeyValueMetadata().FindValue(infoKey)), &kv); err != nil {
		return err.Error() + "\n"
	}
	fmt.Fprintf(&out, "key/value: format %d, labels %v, overflow %q, %d sums\n", kv.Format, kv.Labels, kv.Overflow, len(kv.Sums)/8)
	stats, err := enc.Stats.Encode()
	if err != nil {
		return err.Error() + "\n"
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, []byte(stats), "", "  "); err != nil {
		return err.Error() + "\n"
	}
	fmt.Fprintf(&out, "stats: %s\n", indented.String())
	tags := Tags{
		Level: 1, Order: Order{10, 20}, WAL: []WALRange{{"0190f5fe-0000-7000-8000-000000000001", 5, 9}},
		Time: enc.Time, Keys: enc.Keys,
	}
	text, err := tags.Encode().MarshalJSON()
	if err != nil {
		return err.Error() + "\n"
	}
	fmt.Fprintf(&out, "tags: %s\n", text)
	return out.String()
}

// parquetColumns returns the column chunks as the library sees them.
func parquetColumns(t testing.TB, data []byte) []*metadata.ColumnChunkMetaData {
	t.Helper()
	r, err := file.NewParquetReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	var out []*metadata.ColumnChunkMetaData
	for g := range r.NumRowGroups() {
		rg := r.MetaData().RowGroup(g)
		for j := range rg.NumColumns() {
			c, err := rg.ColumnChunk(j)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, c)
		}
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	return out
}
