package checkpoint

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"path"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/parquet-go/parquet-go"

	"cardinalsin/action"
	"cardinalsin/storage"
	"cardinalsin/storage/mem"
)

// The structs below are checkpoint schemas as other engines write them.

type fProtocol struct {
	MinReaderVersion int32    `parquet:"minReaderVersion"`
	MinWriterVersion int32    `parquet:"minWriterVersion"`
	ReaderFeatures   []string `parquet:"readerFeatures,list,optional"`
}

type fMetadata struct {
	ID               string            `parquet:"id"`
	SchemaString     string            `parquet:"schemaString"`
	PartitionColumns []string          `parquet:"partitionColumns"` // two levels: a repeated leaf
	Configuration    map[string]string `parquet:"configuration"`
}

type fAdd struct {
	Path            string            `parquet:"path"`
	PartitionValues map[string]string `parquet:"partitionValues"`
	Size            int32             `parquet:"size"` // an int, not a long
	Unknown         []fUnknown        `parquet:"unknown,list,optional"`
}

type fUnknown struct {
	A int64   `parquet:"a"`
	B *string `parquet:"b,optional"`
}

type fSidecar struct {
	Path        string `parquet:"path"`
	SizeInBytes int64  `parquet:"sizeInBytes"`
}

type fManifest struct {
	Version int64 `parquet:"version"`
}

type fOther struct {
	Field string `parquet:"field"`
}

type fRow struct {
	Protocol *fProtocol `parquet:"protocol,optional"`
	MetaData *fMetadata `parquet:"metaData,optional"`
	Add      *fAdd      `parquet:"add,optional"`
	Sidecar  *fSidecar  `parquet:"sidecar,optional"`
	Manifest *fManifest `parquet:"checkpointMetadata,optional"`
	Future   *fOther    `parquet:"someFutureAction,optional"`
}

func foreign[T any](t testing.TB, rows []T, opts ...parquet.WriterOption) []byte {
	t.Helper()
	var b bytes.Buffer
	w := parquet.NewGenericWriter[T](&b, opts...)
	if _, err := w.Write(rows); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func storeOf(t testing.TB, objects map[string][]byte) storage.Store {
	t.Helper()
	s := mem.New(mem.Options{})
	for name, data := range objects {
		if _, err := s.Put(t.Context(), path.Join(logDir, name), bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func refsOf(t testing.TB, s storage.Store) []Ref {
	t.Helper()
	objs, err := storage.Collect(s.List(t.Context(), logDir+"/0", ""))
	if err != nil {
		t.Fatal(err)
	}
	return FromListing(objs)
}

var (
	fp = &fProtocol{MinReaderVersion: 3, MinWriterVersion: 7, ReaderFeatures: []string{"v2Checkpoint"}}
	fm = &fMetadata{ID: "id", SchemaString: "{}", PartitionColumns: []string{"a", "b"}, Configuration: map[string]string{"k": "v"}}
)

// TestForeignShapes: fields that are missing are null, those that are not
// known are passed over, lists may have two levels, integers any width.
func TestForeignShapes(t *testing.T) {
	rows := []fRow{
		{Future: &fOther{"x"}},
		{Add: &fAdd{Path: "b", PartitionValues: map[string]string{"z": "1", "a": ""}, Size: -5, Unknown: []fUnknown{{1, nil}, {2, ptr("x")}}}},
		{MetaData: fm},
		{Add: &fAdd{Path: "a"}},
		{Protocol: fp},
	}
	s := storeOf(t, map[string][]byte{v4 + ".checkpoint.parquet": foreign(t, rows)})
	got, err := readTable(t.Context(), s, refsOf(t, s)[0])
	if err != nil {
		t.Fatal(err)
	}
	want := &table{
		Version:  4,
		Protocol: &action.Protocol{MinReaderVersion: 3, MinWriterVersion: 7, ReaderFeatures: []string{"v2Checkpoint"}},
		Metadata: &action.Metadata{ID: "id", SchemaString: "{}", PartitionColumns: []string{"a", "b"},
			Configuration: map[string]string{"k": "v"}, Format: action.Format{Options: map[string]string{}}},
		Adds: []action.Add{{Path: "b", PartitionValues: `{"a":"","z":"1"}`, Size: -5}, {Path: "a"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

const (
	v4   = "00000000000000000004"
	uuid = "80a083e8-7026-4e79-81be-64bd76c43a11"
)

func adds(names ...string) (rows []fRow) {
	for _, n := range names {
		rows = append(rows, fRow{Add: &fAdd{Path: n}})
	}
	return rows
}

// TestForeignKinds reads one state from each kind of checkpoint, and what
// breaks each.
func TestForeignKinds(t *testing.T) {
	base := []fRow{{Protocol: fp}, {MetaData: fm}}
	manifest := append([]fRow{{Manifest: &fManifest{4}}}, base...)
	sidecars := []fRow{{Sidecar: &fSidecar{"one.parquet", 0}}, {Sidecar: &fSidecar{"file:/elsewhere/_delta_log/_sidecars/tw%20o.parquet", 0}}}
	jsonBase := `{"checkpointMetadata":{"version":4}}
{"protocol":{"minReaderVersion":3,"minWriterVersion":7,"readerFeatures":["v2Checkpoint"]}}
{"metaData":{"id":"id","format":{"provider":"","options":{}},"schemaString":"{}","partitionColumns":["a","b"],"configuration":{"k":"v"}}}
`
	one, two := foreign(t, adds("a", "b")), foreign(t, adds("c"))
	join := func(parts ...[]fRow) (rows []fRow) {
		for _, p := range parts {
			rows = append(rows, p...)
		}
		return rows
	}
	multi := func(i int) string { return fmt.Sprintf("%s.checkpoint.%010d.0000000003.parquet", v4, i) }
	for _, c := range []struct {
		name    string
		objects map[string][]byte
		want    error  // nil: the adds a, b, c
		names   string // in the error
	}{
		{name: "classic", objects: map[string][]byte{v4 + ".checkpoint.parquet": foreign(t, join(base, adds("a", "b", "c")))}},
		{name: "classic V2 with sidecars", objects: map[string][]byte{
			v4 + ".checkpoint.parquet": foreign(t, join(manifest, sidecars)), "_sidecars/one.parquet": one, "_sidecars/tw o.parquet": two}},
		{name: "V2 Parquet with sidecars", objects: map[string][]byte{
			v4 + ".checkpoint." + uuid + ".parquet": foreign(t, join(sidecars, manifest)), "_sidecars/one.parquet": one, "_sidecars/tw o.parquet": two}},
		{name: "V2 Parquet without", objects: map[string][]byte{v4 + ".checkpoint." + uuid + ".parquet": foreign(t, join(manifest, adds("a", "b", "c")))}},
		{name: "V2 JSON with sidecars", objects: map[string][]byte{
			v4 + ".checkpoint." + uuid + ".json": []byte(jsonBase + `{"sidecar":{"path":"one.parquet","sizeInBytes":` + fmt.Sprint(len(one)) + `}}
{"sidecar":{"path":"tw%20o.parquet","sizeInBytes":` + fmt.Sprint(len(two)) + `,"modificationTime":1,"tags":{}}}`),
			"_sidecars/one.parquet": one, "_sidecars/tw o.parquet": two}},
		{name: "V2 JSON without", objects: map[string][]byte{v4 + ".checkpoint." + uuid + ".json": []byte(jsonBase + `{"add":{"path":"a"}}
{"futureAction":{}}
{"add":{"path":"b"}}
{"add":{"path":"c","unknown":[1]}}`)}},
		{name: "multi-part", objects: map[string][]byte{
			multi(1): foreign(t, join(adds("a"), base[:1])), multi(2): foreign(t, adds("b")), multi(3): foreign(t, join(base[1:], adds("c")))}},

		{name: "sidecar missing", objects: map[string][]byte{v4 + ".checkpoint.parquet": foreign(t, join(manifest, sidecars)), "_sidecars/one.parquet": one},
			want: ErrCorrupt, names: "_sidecars/tw o.parquet"},
		{name: "sidecar damaged", objects: map[string][]byte{v4 + ".checkpoint.parquet": foreign(t, join(manifest, sidecars)), "_sidecars/one.parquet": one[:40], "_sidecars/tw o.parquet": two},
			want: ErrCorrupt, names: "_sidecars/one.parquet"},
		{name: "sidecar twice", objects: map[string][]byte{v4 + ".checkpoint.parquet": foreign(t, join(manifest, sidecars, sidecars[:1])), "_sidecars/one.parquet": one, "_sidecars/tw o.parquet": two},
			want: ErrCorrupt, names: v4 + ".checkpoint.parquet"},
		{name: "sidecar outside", objects: map[string][]byte{v4 + ".checkpoint.parquet": foreign(t, join(manifest, []fRow{{Sidecar: &fSidecar{"..%2F..%2Fsecret.parquet", 0}}}))},
			want: ErrCorrupt, names: v4 + ".checkpoint.parquet"},
		{name: "sidecar in a directory", objects: map[string][]byte{v4 + ".checkpoint.parquet": foreign(t, join(manifest, []fRow{{Sidecar: &fSidecar{"a%2Fone.parquet", 0}}})), "_sidecars/a/one.parquet": one},
			want: ErrCorrupt, names: v4 + ".checkpoint.parquet"},
		{name: "sidecars without checkpointMetadata", objects: map[string][]byte{v4 + ".checkpoint.parquet": foreign(t, join(base, sidecars)), "_sidecars/one.parquet": one, "_sidecars/tw o.parquet": two},
			want: ErrCorrupt, names: v4 + ".checkpoint.parquet"},
		{name: "V2 without checkpointMetadata", objects: map[string][]byte{v4 + ".checkpoint." + uuid + ".parquet": foreign(t, base)},
			want: ErrCorrupt, names: uuid},
		{name: "V2 with two checkpointMetadata", objects: map[string][]byte{v4 + ".checkpoint." + uuid + ".parquet": foreign(t, join(manifest, manifest[:1]))},
			want: ErrCorrupt, names: uuid},
		{name: "V2 of another version", objects: map[string][]byte{v4 + ".checkpoint." + uuid + ".json": []byte(strings.Replace(jsonBase, `:4}`, `:5}`, 1))},
			want: ErrCorrupt, names: uuid},
		{name: "V2 JSON cut off", objects: map[string][]byte{v4 + ".checkpoint." + uuid + ".json": []byte(jsonBase + `{"add":{"path":"a`)},
			want: ErrCorrupt, names: uuid},
		{name: "V2 JSON add without path", objects: map[string][]byte{v4 + ".checkpoint." + uuid + ".json": []byte(jsonBase + `{"add":{"size":1}}`)},
			want: ErrCorrupt, names: uuid},
		{name: "V2 JSON remove without path", objects: map[string][]byte{v4 + ".checkpoint." + uuid + ".json": []byte(jsonBase + `{"remove":{"size":1}}`)},
			want: ErrCorrupt, names: uuid},
		{name: "part damaged", objects: map[string][]byte{multi(1): foreign(t, base), multi(2): []byte("PAR1PAR1"), multi(3): foreign(t, adds("c"))},
			want: ErrCorrupt, names: multi(2)},
		{name: "add without path", objects: map[string][]byte{v4 + ".checkpoint.parquet": foreign(t, join(base, adds("")))},
			want: ErrCorrupt, names: v4 + ".checkpoint.parquet"},
		{name: "two protocols", objects: map[string][]byte{v4 + ".checkpoint.parquet": foreign(t, join(base, base[:1]))},
			want: ErrCorrupt, names: v4 + ".checkpoint.parquet"},
		{name: "no metaData", objects: map[string][]byte{v4 + ".checkpoint.parquet": foreign(t, base[:1])},
			want: ErrIncomplete, names: v4 + ".checkpoint.parquet"},
		{name: "no protocol", objects: map[string][]byte{v4 + ".checkpoint." + uuid + ".json": []byte(`{"checkpointMetadata":{"version":4}}`)},
			want: ErrIncomplete, names: uuid},
		{name: "no known action", objects: map[string][]byte{v4 + ".checkpoint.parquet": foreign(t, []fOther{{"x"}})},
			want: ErrIncomplete, names: v4 + ".checkpoint.parquet"},
		{name: "add without a path column", objects: map[string][]byte{v4 + ".checkpoint.parquet": foreign(t, []struct {
			Add fOther `parquet:"add"`
		}{{fOther{"x"}}})}, want: ErrCorrupt, names: v4 + ".checkpoint.parquet"},
		{name: "path is a number", objects: map[string][]byte{v4 + ".checkpoint.parquet": foreign(t, []struct {
			Add struct {
				Path int64 `parquet:"path"`
			} `parquet:"add"`
		}{{}})}, want: ErrCorrupt, names: v4 + ".checkpoint.parquet"},
		{name: "size is text", objects: map[string][]byte{v4 + ".checkpoint.parquet": foreign(t, []struct {
			Add struct {
				Path string `parquet:"path"`
				Size string `parquet:"size"`
			} `parquet:"add"`
		}{{}})}, want: ErrCorrupt, names: v4 + ".checkpoint.parquet"},
		{name: "partition values are a list", objects: map[string][]byte{v4 + ".checkpoint.parquet": foreign(t, []struct {
			Add struct {
				Path            string   `parquet:"path"`
				PartitionValues []string `parquet:"partitionValues"`
			} `parquet:"add"`
		}{{}})}, want: ErrCorrupt, names: v4 + ".checkpoint.parquet"},
		{name: "codec not supported", objects: map[string][]byte{v4 + ".checkpoint.parquet": foreign(t, base, parquet.Compression(&parquet.Brotli))},
			want: ErrUnsupported, names: v4 + ".checkpoint.parquet"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := storeOf(t, c.objects)
			refs := refsOf(t, s)
			if len(refs) != 1 {
				t.Fatalf("%d checkpoints", len(refs))
			}
			for _, sized := range []bool{true, false} {
				ref := refs[0]
				if !sized {
					ref.Sizes = nil
				}
				got, err := readTable(t.Context(), s, ref)
				if c.want != nil {
					if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.names) {
						t.Errorf("%v, want %v that names %s", err, c.want, c.names)
					}
					for _, other := range []error{ErrCorrupt, ErrIncomplete, ErrUnsupported} {
						if !errors.Is(c.want, other) && errors.Is(err, other) {
							t.Errorf("%v is also %v", err, other)
						}
					}
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				var paths []string
				for _, a := range got.Adds {
					paths = append(paths, a.Path)
				}
				if diff := cmp.Diff([]string{"a", "b", "c"}, paths); diff != "" {
					t.Errorf("-want +got\n%s", diff)
				}
				if got.Protocol.MinReaderVersion != 3 || got.Metadata.ID != "id" {
					t.Errorf("%+v, %+v", got.Protocol, got.Metadata)
				}
			}
		})
	}
}

// TestOnlyWhatIsAsked: a sink without file actions costs no read of sidecars.
func TestOnlyWhatIsAsked(t *testing.T) {
	s := storeOf(t, map[string][]byte{v4 + ".checkpoint.parquet": foreign(t, []fRow{
		{Manifest: &fManifest{4}}, {Protocol: fp}, {MetaData: fm}, {Sidecar: &fSidecar{"not there.parquet", 7}}})})
	n := 0
	err := Read(t.Context(), s, logDir, refsOf(t, s)[0], Sink{Protocol: func(*action.Protocol) error { n++; return nil }})
	if err != nil || n != 1 {
		t.Errorf("%d protocols, %v", n, err)
	}
}

type fStats struct {
	NumRecords  int64    `parquet:"numRecords,optional"`
	TightBounds *bool    `parquet:"tightBounds,optional"`
	Min         *fBounds `parquet:"minValues,optional"`
	Max         *fBounds `parquet:"maxValues,optional"`
	Nulls       *fNulls  `parquet:"nullCount,optional"`
}

type fBounds struct {
	Text    *string   `parquet:"text,optional"`
	Raw     []byte    `parquet:"raw,optional"`
	Date    *int32    `parquet:"date,optional,date"`
	Instant *int64    `parquet:"instant,optional,timestamp(microsecond)"`
	Local   *int64    `parquet:"local,optional,timestamp(millisecond:local)"`
	Price   *int64    `parquet:"price,optional,decimal(2:18)"`
	Double  *float64  `parquet:"double,optional"`
	Float   *float32  `parquet:"float,optional"`
	Flag    *bool     `parquet:"flag,optional"`
	Nested  *fNested  `parquet:"nested,optional"`
	Variant *fVariant `parquet:"variant,optional"`
	List    []int64   `parquet:"list,list,optional"`
}

type fNested struct {
	Byte *int8 `parquet:"byte,optional"`
}

type fVariant struct {
	Metadata []byte `parquet:"metadata"`
	Value    []byte `parquet:"value,optional"`
}

type fNulls struct {
	Text *int64 `parquet:"text,optional"`
}

type fPartition struct {
	Date    *int32   `parquet:"date,optional,date"`
	Instant *int64   `parquet:"instant,optional,timestamp(microsecond)"`
	Flag    *bool    `parquet:"flag,optional"`
	Text    *string  `parquet:"text,optional"`
	Number  *int32   `parquet:"number,optional"`
	Ratio   *float64 `parquet:"ratio,optional"`
}

type fParsedAdd struct {
	Path       string      `parquet:"path"`
	Stats      *string     `parquet:"stats,optional"`
	Parsed     *fStats     `parquet:"stats_parsed,optional"`
	Partitions *fPartition `parquet:"partitionValues_parsed,optional"`
}

type fParsedRow struct {
	Protocol *fProtocol  `parquet:"protocol,optional"`
	MetaData *fMetadata  `parquet:"metaData,optional"`
	Add      *fParsedAdd `parquet:"add,optional"`
}

// TestStructForms: statistics and partition values that are there as structs
// only are rebuilt in the forms of the protocol; where there is text, it is
// taken as it is.
func TestStructForms(t *testing.T) {
	full := &fBounds{
		Text: ptr(`a"b`), Raw: []byte{1}, Date: ptr(int32(-1)), Instant: ptr(int64(-1)), Local: ptr(int64(1_700_000_000_123)),
		Price: ptr(int64(-5)), Double: ptr(1e21), Float: ptr(float32(0.1)), Flag: ptr(true), Nested: &fNested{ptr(int8(-3))},
		Variant: &fVariant{[]byte{1}, []byte{2}}, List: []int64{1},
	}
	rows := []fParsedRow{
		{Protocol: fp}, {MetaData: fm},
		{Add: &fParsedAdd{Path: "full", Parsed: &fStats{NumRecords: 3, TightBounds: ptr(false), Min: full,
			Max: &fBounds{Instant: ptr(int64(1_700_000_000_123_999)), Price: ptr(int64(123456)), Double: ptr(math.Inf(1)), Float: ptr(float32(math.NaN()))}, Nulls: &fNulls{ptr(int64(0))}},
			Partitions: &fPartition{Date: ptr(int32(20_000)), Instant: ptr(int64(1_700_000_000_123_456)), Flag: ptr(false), Text: ptr(""), Number: ptr(int32(-7)), Ratio: ptr(0.25)}}},
		{Add: &fParsedAdd{Path: "text too", Stats: ptr(`{"numRecords":9}`), Parsed: &fStats{NumRecords: 3}}},
		{Add: &fParsedAdd{Path: "none"}},
		{Add: &fParsedAdd{Path: "little", Parsed: &fStats{NumRecords: 1, Min: &fBounds{}}, Partitions: &fPartition{Text: ptr("x")}}},
	}
	// In one row group, and in one for each row, where most have no text at
	// all.
	for _, per := range []int64{100, 1} {
		s := storeOf(t, map[string][]byte{v4 + ".checkpoint.parquet": foreign(t, rows, parquet.MaxRowsPerRowGroup(per))})
		got, err := readTable(t.Context(), s, refsOf(t, s)[0])
		if err != nil {
			t.Fatal(err)
		}
		const allNull = `"instant":null,"number":null,"ratio":null,`
		want := []action.Add{
			{Path: "full",
				Stats:           `{"numRecords":3,"tightBounds":false,"minValues":{"text":"a\"b","date":"1969-12-31","instant":"1969-12-31T23:59:59.999Z","local":"2023-11-14T22:13:20.123","price":-0.05,"double":1e+21,"float":0.1,"flag":true,"nested":{"byte":-3}},"maxValues":{"instant":"2023-11-14T22:13:20.123Z","price":1234.56},"nullCount":{"text":0}}`,
				PartitionValues: `{"date":"2024-10-04","flag":"false","instant":"2023-11-14T22:13:20.123456Z","number":"-7","ratio":"0.25","text":""}`},
			{Path: "text too", Stats: `{"numRecords":9}`, PartitionValues: `{"date":null,"flag":null,` + allNull + `"text":null}`},
			{Path: "none", PartitionValues: `{"date":null,"flag":null,` + allNull + `"text":null}`},
			{Path: "little", Stats: `{"numRecords":1}`, PartitionValues: `{"date":null,"flag":null,` + allNull + `"text":"x"}`},
		}
		if diff := cmp.Diff(want, got.Adds); diff != "" {
			t.Errorf("%d rows a group: -want +got\n%s", per, diff)
		}
	}
}

// TestForeignDamage flips bits in the pages of another engine's checkpoint.
// They are not compressed and nothing sums them up, so it is the pages'
// checksums alone that tell.
func TestForeignDamage(t *testing.T) {
	rows := append([]fRow{{Protocol: fp}, {MetaData: fm}}, adds("one", "two", "three")...)
	data := foreign(t, rows)
	read := func(data []byte) (*table, error) {
		s := storeOf(t, map[string][]byte{v4 + ".checkpoint.parquet": data})
		return readTable(t.Context(), s, refsOf(t, s)[0])
	}
	want, err := read(data)
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for _, text := range []string{"one", "three", "v2Checkpoint"} {
		at := bytes.Index(data, []byte(text))
		if at < 0 {
			t.Fatalf("%s is not in the file", text)
		}
		for i := range text {
			bad := bytes.Clone(data)
			bad[at+i] ^= 1
			got, err := read(bad)
			if errors.Is(err, ErrCorrupt) {
				refused++
				continue
			}
			if diff := cmp.Diff(want, got); diff != "" || err != nil {
				t.Errorf("%s, byte %d: %v: -want +got\n%s", text, i, err, diff)
			}
		}
	}
	if refused == 0 {
		t.Error("no damage was refused")
	}
}

func TestDecimals(t *testing.T) {
	for _, c := range []struct {
		bytes string
		scale int
		want  string
	}{
		{"", 0, "0"},
		{"\x00", 2, "0.00"},
		{"\x7f", 0, "127"},
		{"\x80", 0, "-128"},
		{"\xff\xff", 3, "-0.001"},
		{"\x00\xff", 1, "25.5"},
		{"\xff\x38", 2, "-2.00"},
		{"\x4b\x3b\x4c\xa8\x5a\x86\xc4\x7a\x09\x8a\x22\x3f\xff\xff\xff\xff", 38, "0.99999999999999999999999999999999999999"},
		{"\x01", -1, ""},
		{"\x01", maxScale + 1, ""},
		{strings.Repeat("\x11", maxScale), 0, ""},
	} {
		if got, ok := decimalText(twosComplement(c.bytes), c.scale); got != c.want || ok != (c.want != "") {
			t.Errorf("%x, scale %d: %q, %v, want %q", c.bytes, c.scale, got, ok, c.want)
		}
	}
}

// TestWrongVersionAtOnce: a checkpoint under the name of another version is
// refused also by who asks for the protocol alone.
func TestWrongVersionAtOnce(t *testing.T) {
	store, ref := put(t, otherVersion(t))
	err := Read(t.Context(), store, logDir, ref, Sink{Protocol: func(*action.Protocol) error { return nil }})
	if !errors.Is(err, ErrCorrupt) {
		t.Errorf("%v, want ErrCorrupt", err)
	}
}
