package checkpoint

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/google/go-cmp/cmp"
	"github.com/parquet-go/parquet-go"
	"pgregory.net/rapid"

	"cardinalsin/action"
	"cardinalsin/checkpoint/internal/parquetcol"
	"cardinalsin/storage"
	"cardinalsin/storage/fault"
	"cardinalsin/storage/mem"
)

// TestMain lowers the number of random cases unless the command line says
// otherwise: with the race detector each takes a tenth of a second.
func TestMain(m *testing.M) {
	flag.Parse()
	if f := flag.Lookup("rapid.checks"); f != nil && f.Value.String() == f.DefValue {
		if err := f.Value.Set("40"); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

func TestRoundTrip(t *testing.T) {
	for _, n := range []int{0, 1, 7, 2500} {
		for _, opts := range []Options{{}, {RowGroupActions: 1}, {RowGroupActions: 700, Snappy: true}} {
			if opts.RowGroupActions == 1 && n > 100 {
				continue
			}
			store := mem.New(mem.Options{})
			in := sample(n)
			info, err := Write(t.Context(), store, logDir, in.state(), opts)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(classic(t, store, in.Version), info.Ref); diff != "" {
				t.Errorf("%d files: ref: -listed +written\n%s", n, diff)
			}
			want := stored(in)
			if info.NumAdds != int64(n) || info.NumRemoves != int64(len(in.Removes)) ||
				info.Size != int64(2+len(in.Txns)+len(in.Domains)+n+len(in.Removes)) || info.Existed || !info.HintMoved {
				t.Errorf("%d files: %+v", n, info)
			}
			got, err := readTable(t.Context(), store, info.Ref)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("%d files: -want +got\n%s", n, diff)
			}
		}
	}
}

// drawTable draws a table with odd values in every place.
func drawTable(t *rapid.T) *table {
	text := rapid.OneOf(rapid.StringMatching(`[a-z0-9=/%._-]{1,12}`), rapid.String(), rapid.SampledFrom([]string{"", " ", `"`, `\`, "<&>", "\u2028", "\x00", "日本", "null", "{}"}))
	full := rapid.Custom(func(t *rapid.T) string { return "x" + text.Draw(t, "text") })
	object := rapid.Custom(func(t *rapid.T) action.Object {
		m := rapid.MapOfN(text, text, 0, 3).Draw(t, "map")
		if len(m) == 0 {
			return rapid.SampledFrom([]action.Object{"", "{}"}).Draw(t, "empty")
		}
		var b strings.Builder
		sep := "{"
		for k, v := range m { // in any order, with spaces and nulls
			key, value := string(action.ObjectOf(map[string]string{k: ""})), string(action.ObjectOf(map[string]string{"": v}))
			value = value[4 : len(value)-1]
			if rapid.IntRange(0, 3).Draw(t, "null") == 0 {
				value = "null"
			}
			b.WriteString(sep + key[1:len(key)-4] + rapid.SampledFrom([]string{":", ": "}).Draw(t, "colon") + value)
			sep = rapid.SampledFrom([]string{",", ", "}).Draw(t, "comma")
		}
		return action.Object(b.String() + "}")
	})
	optional := rapid.Ptr(rapid.Int64(), true)
	vector := rapid.Ptr(rapid.Custom(func(t *rapid.T) action.DeletionVector {
		return action.DeletionVector{
			StorageType: rapid.SampledFrom([]string{"u", "i", "p"}).Draw(t, "storage"), PathOrInlineDV: full.Draw(t, "dv"),
			Offset: rapid.Ptr(rapid.Int32(), true).Draw(t, "offset"), SizeInBytes: rapid.Int32().Draw(t, "bytes"), Cardinality: rapid.Int64().Draw(t, "cardinality"),
		}
	}), true)
	words := rapid.SliceOfN(full, 0, 3)
	settings := rapid.MapOfN(text, text, 0, 3)
	out := &table{
		Version: action.Version(rapid.Int64Range(0, 1<<62).Draw(t, "version")),
		Protocol: &action.Protocol{
			MinReaderVersion: rapid.IntRange(1, 4).Draw(t, "reader"), MinWriterVersion: rapid.IntRange(1, 8).Draw(t, "writer"),
			ReaderFeatures: words.Draw(t, "readerFeatures"), WriterFeatures: words.Draw(t, "writerFeatures"),
		},
		Metadata: &action.Metadata{
			ID: text.Draw(t, "id"), Name: text.Draw(t, "name"), Description: text.Draw(t, "description"),
			Format: action.Format{Provider: text.Draw(t, "provider"), Options: settings.Draw(t, "options")}, SchemaString: text.Draw(t, "schema"),
			PartitionColumns: words.Draw(t, "columns"), CreatedTime: optional.Draw(t, "created"), Configuration: settings.Draw(t, "configuration"),
		},
	}
	for id, v := range rapid.MapOfN(text, rapid.Int64(), 0, 5).Draw(t, "txns") {
		out.Txns = append(out.Txns, action.SetTransaction{AppID: id, Version: v, LastUpdated: rapid.Int64Range(-1, 1).Draw(t, "updated")})
	}
	for name, conf := range rapid.MapOfN(text, text, 0, 5).Draw(t, "domains") {
		out.Domains = append(out.Domains, action.DomainMetadata{Domain: name, Configuration: conf})
	}
	for range rapid.IntRange(0, 9).Draw(t, "adds") {
		out.Adds = append(out.Adds, action.Add{
			Path: full.Draw(t, "path"), PartitionValues: object.Draw(t, "partition"), Size: rapid.Int64().Draw(t, "size"),
			ModificationTime: rapid.Int64().Draw(t, "modified"), DataChange: rapid.Bool().Draw(t, "change"), Stats: text.Draw(t, "stats"),
			Tags: object.Draw(t, "tags"), DeletionVector: vector.Draw(t, "vector"), BaseRowID: optional.Draw(t, "base"),
			DefaultRowCommitVersion: optional.Draw(t, "commit"), ClusteringProvider: text.Draw(t, "clustering"),
		})
	}
	for range rapid.IntRange(0, 5).Draw(t, "removes") {
		out.Removes = append(out.Removes, action.Remove{
			Path: full.Draw(t, "path"), DeletionTimestamp: rapid.Int64().Draw(t, "deleted"), DataChange: rapid.Bool().Draw(t, "change"),
			ExtendedFileMetadata: rapid.Bool().Draw(t, "extended"), PartitionValues: object.Draw(t, "partition"), Size: rapid.Int64().Draw(t, "size"),
			Stats: text.Draw(t, "stats"), Tags: object.Draw(t, "tags"), DeletionVector: vector.Draw(t, "vector"),
			BaseRowID: optional.Draw(t, "base"), DefaultRowCommitVersion: optional.Draw(t, "commit"),
		})
	}
	out.sort()
	out.Adds = slices.CompactFunc(out.Adds, func(a, b action.Add) bool { return a.Key() == b.Key() })
	out.Removes = slices.CompactFunc(out.Removes, func(a, b action.Remove) bool { return a.Key() == b.Key() })
	return out
}

func TestRoundTripRandom(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := drawTable(t)
		store := mem.New(mem.Options{})
		opts := Options{RowGroupActions: rapid.SampledFrom([]int{1, 3, 10_000}).Draw(t, "group"), Snappy: rapid.Bool().Draw(t, "snappy")}
		info, err := Write(t.Context(), store, logDir, in.state(), opts)
		if err != nil {
			t.Fatal(err)
		}
		got, err := readTable(t.Context(), store, info.Ref)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(stored(in), got); diff != "" {
			t.Fatalf("-want +got\n%s", diff)
		}
	})
}

// TestSchema pins the Parquet schema, the footer's marks and the hint.
func TestSchema(t *testing.T) {
	datadriven.RunTest(t, "testdata/schema", func(t *testing.T, d *datadriven.TestData) string {
		store := mem.New(mem.Options{})
		info, err := Write(t.Context(), store, logDir, sample(20).state(), Options{RowGroupActions: 16})
		if err != nil {
			t.Fatal(err)
		}
		data, _, err := store.Get(t.Context(), info.Ref.Keys[0])
		if err != nil {
			t.Fatal(err)
		}
		f, err := parquet.OpenFile(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		switch d.Cmd {
		case "schema":
			return f.Schema().String() + "\n"
		case "footer":
			var b strings.Builder
			fmt.Fprintf(&b, "created by: %s\n", f.Metadata().CreatedBy)
			for _, kv := range f.Metadata().KeyValueMetadata {
				fmt.Fprintf(&b, "%s: %s\n", kv.Key, kv.Value)
			}
			for i, g := range f.Metadata().RowGroups {
				fmt.Fprintf(&b, "row group %d: %d rows:", i, g.NumRows)
				for _, c := range g.Columns {
					if n := c.MetaData.NumValues - c.MetaData.Statistics.NullCount; n > 0 && len(c.MetaData.PathInSchema) == 2 {
						fmt.Fprintf(&b, " %s %d", strings.Join(c.MetaData.PathInSchema, "."), n)
					}
				}
				b.WriteByte('\n')
			}
			return b.String()
		case "hint":
			data, _, err := store.Get(t.Context(), hintKey(logDir))
			if err != nil {
				t.Fatal(err)
			}
			return string(data) + "\n"
		}
		t.Fatalf("unknown command %s", d.Cmd)
		return ""
	})
}

// large is a table whose checkpoint is too large to be read in one request:
// statistics that do not compress.
func large(n int) *table {
	in := sample(n)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range in.Adds {
		b := make([]byte, 2400)
		for j := range b {
			b[j] = byte(r.Uint32())
		}
		in.Adds[i].Stats = `{"numRecords":1,"minValues":{"text":"` + hex.EncodeToString(b) + `"}}`
	}
	return in
}

// TestRanges: a large checkpoint is read in ranges, some row groups at a time.
func TestRanges(t *testing.T) {
	inner := mem.New(mem.Options{})
	in := large(2000)
	info, err := Write(t.Context(), inner, logDir, in.state(), Options{RowGroupActions: 300})
	if err != nil {
		t.Fatal(err)
	}
	if size := info.Ref.SizeInBytes(); size <= wholeBytes {
		t.Fatalf("only %d bytes", size)
	}
	want := stored(in)
	for _, sized := range []bool{true, false} {
		f := fault.New(inner)
		var ops []storage.Op
		f.Inject(fault.Fault{Times: -1, When: func(c fault.Call) bool { ops = append(ops, c.Op); return false }})
		ref := info.Ref
		wantOps := []storage.Op{storage.OpGetRange, storage.OpGetRange}
		if !sized {
			ref.Sizes = nil
			wantOps = []storage.Op{storage.OpGet}
		}
		got, err := readTable(t.Context(), f, ref)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("-want +got\n%s", diff)
		}
		if diff := cmp.Diff(wantOps, ops); diff != "" {
			t.Errorf("requests: -want +got\n%s", diff)
		}
	}
	// A failure of any request is reported as what it is.
	for i := range 2 {
		f := fault.New(inner)
		f.FailAt(i, fault.Before)
		if _, err := readTable(t.Context(), f, info.Ref); !errors.Is(err, storage.ErrUnavailable) || errors.Is(err, ErrCorrupt) {
			t.Errorf("request %d: %v, want ErrUnavailable", i, err)
		}
	}
}

func TestSpans(t *testing.T) {
	const mib = 1 << 20
	chunks := map[int][]parquetcol.Chunk{
		0: {{Offset: 4, Length: 6 * mib}, {Offset: 6*mib + 4, Length: 0}},
		1: {{Offset: 8 * mib, Length: mib}, {Offset: 6*mib + 4, Length: mib}}, // a gap of less than a MiB
		2: {{Offset: 9 * mib, Length: 8*mib + 1}},                             // would be too much
		3: {{Offset: 17 * mib, Length: mib}},
		4: {}, // nothing is needed
		5: {{Offset: 18 * mib, Length: 40 * mib}},
	}
	src := &source{file: &parquetcol.File{}}
	for range 6 {
		src.file.RowGroups = append(src.file.RowGroups, parquetcol.RowGroup{NumRows: 1})
	}
	var got []string
	for _, sp := range src.spans(spanBytes, func(g int) []parquetcol.Chunk { return chunks[g] }) {
		got = append(got, fmt.Sprintf("%v %v %d", sp.groups, sp.ranges, sp.bytes))
	}
	want := []string{
		"[0 1] [{4 7340036} {8388608 9437184}] 8388608",
		"[2 3] [{9437184 18874368}] 9437184",
		"[5] [{18874368 60817408}] 41943040",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

// FuzzRead reads whatever is given as a checkpoint of each kind.
func FuzzRead(f *testing.F) {
	f.Add(encoded(f, sample(3)), uint8(0))
	f.Add(encodedN(f, sample(0), 10), uint8(0))
	f.Add([]byte(`{"checkpointMetadata":{"version":10}}
{"protocol":{"minReaderVersion":1,"minWriterVersion":2}}
{"metaData":{"id":"x","schemaString":"{}"}}
{"add":{"path":"a","partitionValues":{"d":null},"tags":{"x":"y"},"deletionVector":{"storageType":"u","pathOrInlineDv":"x"}}}
{"remove":{"path":"b"}}
{"txn":{"appId":"x","version":1}}
{"domainMetadata":{"domain":"d"}}
{"sidecar":{"path":"s.parquet","sizeInBytes":9}}`), uint8(UUIDJSON))
	f.Fuzz(func(t *testing.T, data []byte, kind uint8) {
		store, ref := put(t, data)
		ref.Kind = Kind(kind % 4)
		_, err := readTable(t.Context(), store, ref)
		if err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnsupported) && !errors.Is(err, ErrIncomplete) {
			t.Fatalf("%v is none of the package's errors", err)
		}
		// Summing up goes other ways with the text, and sees what reading sees.
		if _, summed := verify(t.Context(), store, logDir, ref); (err == nil) != (summed == nil) {
			t.Fatalf("read: %v; summed up: %v", err, summed)
		}
	})
}

// FuzzHint parses whatever is given as a hint.
func FuzzHint(f *testing.F) {
	f.Add([]byte(`{"version":10,"size":13,"checksum":"6a92d155a59bf2eecbd4b4ec7fd1f875","k":[1,{"a":null}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if h, ok := parseHint(data); ok && h.Version < 0 {
			t.Fatalf("%+v", h)
		}
		_, _ = hintChecksum(data)
	})
}

// FuzzObject: the quick parser of objects agrees with encoding/json.
func FuzzObject(f *testing.F) {
	for _, s := range []string{"{}", `{"a":"b"}`, `{"a":"b","c":null}`, `{"c":"b","a":null}`, `{"a":"\u003c"}`, `{"a" : "b" }`, `{"a":"b",}`, `{"a":1}`, `{"a":"x","a":"y"}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := parseObject(nil, action.Object(s))
		m, wantErr := action.Object(s).Map()
		if (err != nil) != (wantErr != nil) {
			t.Fatalf("%q: %v, encoding/json says %v", s, err, wantErr)
		}
		if err != nil {
			return
		}
		back := map[string]*string{}
		for i, e := range got {
			if i > 0 && got[i-1].key >= e.key {
				t.Fatalf("%q: %q after %q", s, e.key, got[i-1].key)
			}
			back[e.key] = nil
			if !e.null {
				back[e.key] = &e.value
			}
		}
		if len(m) == 0 {
			m = map[string]*string{}
		}
		if diff := cmp.Diff(m, back); diff != "" {
			t.Fatalf("%q: -want +got\n%s", s, diff)
		}
	})
}

// What is read back after writing is summed up out of memory that pages take
// one after the other, also where an action's entries meet the end of a page.
func TestVerifyAcrossPages(t *testing.T) {
	in := sample(40_000)
	for _, opts := range []Options{{RowGroupActions: 40_000}, {}} {
		store := mem.New(mem.Options{})
		info, err := Write(t.Context(), store, logDir, in.state(), opts)
		if err != nil {
			t.Fatal(err)
		}
		if info.NumAdds != int64(len(in.Adds)) || info.NumRemoves != int64(len(in.Removes)) {
			t.Errorf("%+v", info)
		}
	}
}

// Writing a checkpoint leaves little garbage: what it allocates, pools that it
// fills included, is less than the text of the files.
func TestWriteMemory(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates, too")
	}
	// A collection at the wrong moment, as on a busy machine, empties the pools.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	in := sample(60_000)
	var text int64
	for i := range in.Adds {
		a := &in.Adds[i]
		text += int64(len(a.Path) + len(a.PartitionValues) + len(a.Stats) + len(a.Tags))
	}
	allocated := func(fn func()) int64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		fn()
		runtime.ReadMemStats(&after)
		return int64(after.TotalAlloc - before.TotalAlloc)
	}
	var out bytes.Buffer
	out.Grow(int(text))
	for round := range 2 { // the first fills the pools
		out.Reset()
		wrote := allocated(func() {
			if _, err := encode(&out, in.state(), Options{RowGroupActions: 10_000}); err != nil {
				t.Fatal(err)
			}
		})
		store, ref := put(t, out.Bytes())
		summed := allocated(func() {
			if _, err := verify(t.Context(), store, logDir, ref); err != nil {
				t.Fatal(err)
			}
		})
		if round > 0 && (wrote > text*5/4 || summed > text*5/4) {
			t.Errorf("encoding allocates %d, summing up %d; the text is %d", wrote, summed, text)
		}
		t.Logf("%d bytes of text, %d in the file; encoding allocates %d, summing up %d", text, out.Len(), wrote, summed)
	}
}
