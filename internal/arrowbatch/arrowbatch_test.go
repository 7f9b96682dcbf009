package arrowbatch

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/google/go-cmp/cmp"

	"cardinalsin/ingest"
	"cardinalsin/series"
)

var (
	text   = arrow.BinaryTypes.String
	micros = &arrow.TimestampType{Unit: arrow.Microsecond}
)

// TestLabelOf: contract 5's names of columns, read backwards.
func TestLabelOf(t *testing.T) {
	for column, want := range map[string]string{
		"metric_name": "__name__", "host": "host", "_value": "value", "_timestamp": "timestamp", "_date": "date",
		"__x": "_x", "___x": "__x", "__value": "_value", "_start_time_unix_nano": "start_time_unix_nano",
		"a b": "a b", "Host": "Host", "température": "température", "__name": "_name", "": "", "_x": "", "__name__": "", "_": "",
	} {
		got, err := LabelOf(column)
		if got != want || (err != nil) != (want == "") || err != nil && !errors.Is(err, ingest.ErrMalformed) {
			t.Errorf("column %q: label %q, %v; want %q", column, got, err, want)
		}
	}
}

// batch builds rows of (host, zone, time); "" is null.
func batch(t *testing.T, label arrow.DataType, rows ...[3]string) (*Converter, arrow.RecordBatch) {
	t.Helper()
	schema := arrow.NewSchema([]arrow.Field{
		{Name: "timestamp", Type: micros}, {Name: "metric_name", Type: text}, {Name: "value", Type: arrow.PrimitiveTypes.Float64},
		{Name: "host", Type: label, Nullable: true}, {Name: "zone", Type: label, Nullable: true},
	}, nil)
	var lines []string
	for i, r := range rows {
		line := fmt.Sprintf(`{"timestamp": %s, "metric_name": "m", "value": %d`, r[2], i)
		for k, name := range []string{"host", "zone"} {
			if r[k] != "" {
				line += fmt.Sprintf(`, %q: %q`, name, r[k])
			}
		}
		lines = append(lines, line+"}")
	}
	rec, _, err := array.RecordFromJSON(memory.DefaultAllocator, schema, strings.NewReader("["+strings.Join(lines, ",")+"]"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(schema)
	if err != nil {
		t.Fatal(err)
	}
	return c, rec
}

func printed(b series.Batch) string {
	var out strings.Builder
	for _, s := range b {
		fmt.Fprint(&out, s.Labels)
		for _, p := range s.Samples {
			fmt.Fprintf(&out, " %d=%v", p.Time, p.Value)
		}
		out.WriteByte('\n')
	}
	return out.String()
}

// TestGroups: rows of a series become one, wherever they lie, in their order.
func TestGroups(t *testing.T) {
	rows := [][3]string{{"a", "", "5"}, {"a", "x", "5"}, {"", "a", "1"}, {"a", "", "4"}, {"a", "", "5"}, {"", "", "9"}, {"", "a", "1"}}
	want := `{__name__="m", host="a"} 5=0 4=3 5=4
{__name__="m", host="a", zone="x"} 5=1
{__name__="m", zone="a"} 1=2 1=6
{__name__="m"} 9=5
`
	for _, label := range []arrow.DataType{text, &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int8, ValueType: text}} {
		c, rec := batch(t, label, rows...)
		for range 2 { // what is kept from one batch to the next must not show
			got, err := c.Batch(rec)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, printed(got)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", label, diff)
			}
		}
		got, err := c.Batch(rec.NewSlice(2, 5))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff("{__name__=\"m\", zone=\"a\"} 1=2\n{__name__=\"m\", host=\"a\"} 4=3 5=4\n", printed(got)); diff != "" {
			t.Errorf("%s, a slice (-want +got):\n%s", label, diff)
		}
	}
}

// TestCollision: series with the same hash stay apart.
func TestCollision(t *testing.T) {
	c, _ := batch(t, text, [3]string{"a", "b", "1"})
	columns := [][]int32{{1, 2, 1, 2}, {1, 1, 1, 2}}
	c.hashes, c.byHash = make([]uint64, 4), map[uint64]int32{}
	var got []int32
	for row := range int32(4) {
		got = append(got, c.find(row, columns))
	}
	if diff := cmp.Diff([]int32{0, 1, 0, 2}, got); diff != "" {
		t.Errorf("series of the rows (-want +got):\n%s", diff)
	}
}

// TestLargeDictionary: a dictionary much larger than the batch is read like any
// other, and an index beyond it is refused.
func TestLargeDictionary(t *testing.T) {
	typ := &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Uint64, ValueType: text}
	c, rec := batch(t, typ, [3]string{"a", "", "1"}, [3]string{"a", "", "2"}, [3]string{"a", "", "3"})
	words := array.NewStringBuilder(memory.DefaultAllocator)
	for i := range 70_000 {
		words.Append(fmt.Sprint(i))
	}
	dictionary := words.NewArray()
	for _, size := range []int{3, 70_000} {
		for _, last := range []uint64{2, uint64(size), 1 << 63} {
			index := array.NewUint64Builder(memory.DefaultAllocator)
			index.AppendValues([]uint64{2, 0, last}, []bool{true, false, true})
			columns := rec.Columns()
			a := array.NewDictionaryArray(typ, index.NewArray(), array.NewSlice(dictionary, 0, int64(size)))
			in := array.NewRecordBatch(rec.Schema(), []arrow.Array{columns[0], columns[1], columns[2], a, columns[4]}, 3)
			got, err := c.Batch(in)
			if last != 2 {
				if !errors.Is(err, ingest.ErrMalformed) {
					t.Errorf("index %d of %d: %v", last, size, err)
				}
				continue
			}
			if diff := cmp.Diff("{__name__=\"m\", host=\"2\"} 1=0 3=2\n{__name__=\"m\"} 2=1\n", printed(got)); diff != "" || err != nil {
				t.Errorf("dictionary of %d: %v (-want +got):\n%s", size, err, diff)
			}
		}
	}
}

// TestTooLarge: rows and rows times labels are bounded.
func TestTooLarge(t *testing.T) {
	_, rec := batch(t, text, [3]string{"a", "b", "1"})
	for _, n := range []int{MaxRows + 1, MaxRows} {
		columns := make([]arrow.Array, 0, 64)
		fields := rec.Schema().Fields()
		for len(fields) < 40 {
			fields = append(fields, arrow.Field{Name: fmt.Sprint("l", len(fields)), Type: text})
		}
		schema := arrow.NewSchema(fields, nil)
		shared := map[arrow.Type]arrow.Array{}
		for _, f := range fields {
			a := shared[f.Type.ID()]
			if a == nil {
				b := array.NewBuilder(memory.DefaultAllocator, f.Type)
				b.AppendEmptyValues(n)
				a = b.NewArray()
				shared[f.Type.ID()] = a
			}
			columns = append(columns, a)
		}
		c, err := New(schema)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Batch(array.NewRecordBatch(schema, columns, int64(n))); !errors.Is(err, ingest.ErrTooLarge) {
			t.Errorf("%d rows of %d columns: %v", n, len(columns), err)
		}
	}
}
