package action

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// refDecode is Decode in terms of encoding/json, the yardstick. It keeps to
// what Scan says: names are exact, an object holds one action, and an action
// no member twice.
func refDecode(data []byte) (*Commit, error) {
	c := &Commit{}
	dec := json.NewDecoder(bytes.NewReader(data))
	for {
		var raw json.RawMessage
		if err := dec.Decode(&raw); errors.Is(err, io.EOF) {
			return c, nil
		} else if err != nil {
			return nil, err
		}
		line, err := refMembers(raw, "add", "remove", "txn", "domainMetadata", "commitInfo", "protocol", "metaData")
		if err != nil {
			return nil, err
		}
		if len(line) > 1 {
			return nil, errors.New("two actions")
		}
		for name, value := range line {
			if err := c.refPut(name, value); err != nil {
				return nil, err
			}
		}
	}
}

// refMembers returns the members of an object that are known and not null.
func refMembers(raw json.RawMessage, known ...string) (map[string]json.RawMessage, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	if tok, err := dec.Token(); err != nil || tok != json.Delim('{') {
		return nil, fmt.Errorf("%v, %w", tok, err)
	}
	out := map[string]json.RawMessage{}
	seen := map[string]bool{}
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return nil, err
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, err
		}
		name := tok.(string)
		for _, k := range known {
			null := string(value) == "null"
			action := len(known) == 7 // an action that is null is none
			if k != name || action && null {
				continue
			}
			if seen[name] {
				return nil, errors.New("twice")
			}
			seen[name] = true
			if !null {
				out[name] = value
			}
		}
	}
	_, err := dec.Token()
	return out, err
}

type refFields map[string]any

func (f refFields) decode(raw json.RawMessage) error {
	var names []string
	for name := range f {
		names = append(names, name)
	}
	members, err := refMembers(raw, names...)
	if err != nil {
		return err
	}
	for name, value := range members {
		if err := f[name].(func(json.RawMessage) error)(value); err != nil {
			return err
		}
	}
	return nil
}

func refInto(v any) any {
	return func(raw json.RawMessage) error { return json.Unmarshal(raw, v) }
}

func refObject(o *Object) any {
	return func(raw json.RawMessage) error {
		var m map[string]*string
		if err := json.Unmarshal(raw, &m); err != nil {
			return err
		}
		if len(m) > 0 {
			*o = Object(raw)
		}
		return nil
	}
}

func refVector(d **DeletionVector) any {
	return func(raw json.RawMessage) error {
		v := &DeletionVector{}
		*d = v
		return refFields{"storageType": refInto(&v.StorageType), "pathOrInlineDv": refInto(&v.PathOrInlineDV), "offset": refInto(&v.Offset),
			"sizeInBytes": refInto(&v.SizeInBytes), "cardinality": refInto(&v.Cardinality)}.decode(raw)
	}
}

func (c *Commit) refPut(name string, raw json.RawMessage) error {
	var err error
	switch name {
	case "add":
		var a Add
		err = refFields{"path": refInto(&a.Path), "partitionValues": refObject(&a.PartitionValues), "size": refInto(&a.Size),
			"modificationTime": refInto(&a.ModificationTime), "dataChange": refInto(&a.DataChange), "stats": refInto(&a.Stats), "tags": refObject(&a.Tags),
			"deletionVector": refVector(&a.DeletionVector), "baseRowId": refInto(&a.BaseRowID), "defaultRowCommitVersion": refInto(&a.DefaultRowCommitVersion),
			"clusteringProvider": refInto(&a.ClusteringProvider)}.decode(raw)
		if err == nil && a.Path == "" {
			err = errors.New("no path")
		}
		c.Adds = append(c.Adds, a)
	case "remove":
		var r Remove
		err = refFields{"path": refInto(&r.Path), "deletionTimestamp": refInto(&r.DeletionTimestamp), "dataChange": refInto(&r.DataChange),
			"extendedFileMetadata": refInto(&r.ExtendedFileMetadata), "partitionValues": refObject(&r.PartitionValues), "size": refInto(&r.Size),
			"stats": refInto(&r.Stats), "tags": refObject(&r.Tags), "deletionVector": refVector(&r.DeletionVector), "baseRowId": refInto(&r.BaseRowID),
			"defaultRowCommitVersion": refInto(&r.DefaultRowCommitVersion)}.decode(raw)
		if err == nil && r.Path == "" {
			err = errors.New("no path")
		}
		c.Removes = append(c.Removes, r)
	case "txn":
		var t SetTransaction
		err = refFields{"appId": refInto(&t.AppID), "version": refInto(&t.Version), "lastUpdated": refInto(&t.LastUpdated)}.decode(raw)
		c.Txns = append(c.Txns, t)
	case "domainMetadata":
		var d DomainMetadata
		err = refFields{"domain": refInto(&d.Domain), "configuration": refInto(&d.Configuration), "removed": refInto(&d.Removed)}.decode(raw)
		c.Domains = append(c.Domains, d)
	case "commitInfo":
		var i CommitInfo
		if err = json.Unmarshal(raw, &i); c.Info == nil {
			c.Info = &i
		}
	case "protocol":
		if c.Protocol != nil {
			return errTwice
		}
		c.Protocol = &Protocol{}
		err = json.Unmarshal(raw, c.Protocol)
	case "metaData":
		if c.Metadata != nil {
			return errTwice
		}
		c.Metadata = &Metadata{}
		err = json.Unmarshal(raw, c.Metadata)
	}
	return err
}

// checkDecode compares Decode with the yardstick.
func checkDecode(t interface {
	Helper()
	Fatalf(string, ...any)
}, data []byte) (*Commit, bool) {
	t.Helper()
	before := bytes.Clone(data)
	got, err := Decode(data)
	want, wantErr := refDecode(data)
	if (err == nil) != (wantErr == nil) {
		t.Fatalf("%q: got error %v, encoding/json has %v", data, err, wantErr)
	}
	if !bytes.Equal(before, data) {
		t.Fatalf("%q was changed to %q", before, data)
	}
	if err != nil {
		if !errors.Is(err, ErrCorrupt) {
			t.Fatalf("%q: untyped error %v", data, err)
		}
		return nil, false
	}
	clear(data) // what was decoded must not lie in it
	if d := cmp.Diff(want, got); d != "" {
		t.Fatalf("%q: -encoding/json +Decode\n%s", before, d)
	}
	// The strings come to at most three times the data (a byte that is no
	// UTF-8 becomes three), the structs to 13 times.
	if room := uintptr(13*len(before) + 1024); uintptr(cap(got.Adds))*unsafe.Sizeof(Add{}) > room || uintptr(cap(got.Removes))*unsafe.Sizeof(Remove{}) > room {
		t.Fatalf("%q: room for %d adds and %d removes", before, cap(got.Adds), cap(got.Removes))
	}
	return got, true
}

// oddities are entries that a plain scan would get wrong.
var oddities = []string{
	``, " \n\t\r ", `{}`, `{} {}{}`, "{\"add\":\n{\"path\"\n:\t\"p\" , \"size\" : 5 } }", `{"add":{"path":"a"}}{"add":{"path":"b"}}`,
	`{"add":null}`, `{"add":null,"remove":{"path":"p"}}`, `{"add":{"path":"p"},"remove":null}`, `{"add":{"path":"p"},"remove":{"path":"q"}}`,
	`{"add":{"path":"p"},"add":{"path":"q"}}`, `{"add":{"path":"p"},"cdc":{"path":"q"}}`, `{"cdc":{"path":7},"x":[1,-2.5e+3,{"y":[[],{}]}]}`,
	`{"add":{"path":"p","path":"q"}}`, `{"add":{"path":"p","size":1,"size":null}}`, `{"add":{"path":"p","novel":1,"novel":2}}`,
	`{"ADD":{"path":"p"}}`, `{"add":{"Path":"p"}}`, `{"add":{"path":"p","PATH":"q"}}`, `{"\u0061dd":{"p\u0061th":"p"}}`,
	`{"add":{"path":null}}`, `{"add":{"path":""}}`, `{"add":{}}`, `{"remove":{"path":null}}`, `{"add":[]}`, `{"add":"p"}`, `{"add":{"path":"p"}]`,
	`{"add":{"path":"p",}}`, `{"add":{,"path":"p"}}`, `{"add":{"path":"p"},}`, `{"add" "p"}`, `{"add":{"path":"p"}},`, `[{"add":{"path":"p"}}]`, `null`, `"x"`, `7`, `{`, `{"add"`, `{"add":`, `{"add":{"path":"p"`, `{"add":{"path":"p`, `{"add":{"path":"p\`, `{"add":{"path":"p\u12`,
	`{"add":{"path":"a\"b\\c\/d\b\f\n\r\te\u00e9\u4e2d"}}`, `{"add":{"path":"\ud83d\ude00 \ud83d \ude00 \ud83dx \ud83d\u0041 \ud83d\ud83d\ude00"}}`, `{"add":{"path":"\ud83d\u12"}}`, `{"add":{"path":"\ud83d\`,
	`{"add":{"path":"\x"}}`, `{"add":{"path":"\u12g4"}}`, `{"add":{"path":"\uD83D\uDE00"}}`, "{\"add\":{\"path\":\"a\x00b\"}}", "{\"add\":{\"path\":\"a\nb\"}}", "{\"add\":{\"path\":\"a\x7fb\"}}",
	"{\"add\":{\"path\":\"caf\xc3\xa9 \xff\xfe \xe2\x28 \xed\xa0\x80 \xf0\x9f\x98\x80\"}}", "{\"add\":{\"path\":\"\xf0\x9f\x98", "\xef\xbb\xbf{\"add\":{\"path\":\"bom\"}}",
	"{\"add\":{\"path\":\"12345678\xff\",\"partitionValues\":{\"a\xff\":\"b\xff\"}}}", "{\"a\xffdd\":{\"path\":\"p\"}}", "{\"add\":{\"path\":\"1234567\\n90123456\\\"8\"}}",
	`{"add":{"path":"p","size":0}}`, `{"add":{"path":"p","size":-0}}`, `{"add":{"path":"p","size":-5}}`, `{"add":{"path":"p","size":00}}`, `{"add":{"path":"p","size":01}}`, `{"add":{"path":"p","size":+1}}`, `{"add":{"path":"p","size":1.0}}`, `{"add":{"path":"p","size":1e3}}`, `{"add":{"path":"p","size":-}}`, `{"add":{"path":"p","size":1.}}`, `{"add":{"path":"p","size":.5}}`, `{"add":{"path":"p","size":1e}}`, `{"add":{"path":"p","size":"1"}}`, `{"add":{"path":"p","size":1 }}`, `{"add":{"path":"p","size":12x}}`, `{"add":{"path":"p","size":true}}`,
	`{"add":{"path":"p","size":999999999999999999}}`, `{"add":{"path":"p","size":9223372036854775807}}`, `{"add":{"path":"p","size":9223372036854775808}}`, `{"add":{"path":"p","size":-9223372036854775808}}`, `{"add":{"path":"p","size":1000000000000000000}}`,
	`{"add":{"path":"p","size":7`, `{"add":{"path":"p","size":null,"dataChange":null,"stats":null,"tags":null,"partitionValues":null,"deletionVector":null,"baseRowId":null}}`,
	`{"add":{"path":"p","dataChange":true,"baseRowId":0,"defaultRowCommitVersion":7,"clusteringProvider":"liquid"}}`, `{"add":{"path":"p","dataChange":tru}}`, `{"add":{"path":"p","dataChange":"true"}}`, `{"add":{"path":"p","dataChange":1}}`, `{"add":{"path":"p","dataChange":truex}}`,
	`{"add":{"path":"p","tags":{ }}}`, `{"add":{"path":"p","tags":{"a" : "b" , "c":null, "a":"d\"\u0041"}}}`, `{"add":{"path":"p","tags":{"a":1}}}`, `{"add":{"path":"p","tags":{"a":{}}}}`, `{"add":{"path":"p","tags":[]}}`, `{"add":{"path":"p","tags":{"a":"b",}}}`, `{"add":{"path":"p","tags":{"a":"b" "c":"d"}}}`, `{"add":{"path":"p","tags":{"a"}}}`, `{"add":{"path":"p","tags":{"a":"\q"}}}`, `{"add":{"path":"p","tags":{"a":"b`, `{"add":{"path":"p","tags":{"a":nul}}}`, `{"add":{"path":"p","tags":{"a":"b"}x}}`,
	`{"add":{"path":"p","partitionValues":{"a":"b"}}}{"add":{"path":"q","partitionValues":{"a":"b"}}}{"remove":{"path":"r","partitionValues": {"a":"b"}}}{"remove":{"path":"r","partitionValues":{"a":"b"`,
	`{"add":{"path":"p","deletionVector":{"storageType":"u","pathOrInlineDv":"x","offset":2147483647,"sizeInBytes":-2147483648,"cardinality":2147483648,"maxRowIndex":7}}}`, `{"add":{"path":"p","deletionVector":{}}}`, `{"add":{"path":"p","deletionVector":{"offset":2147483648}}}`, `{"add":{"path":"p","deletionVector":{"sizeInBytes":2147483648}}}`, `{"add":{"path":"p","deletionVector":{"offset":null}}}`, `{"add":{"path":"p","deletionVector":{"offset":1,"offset":2}}}`, `{"add":{"path":"p","deletionVector":7}}`,
	`{"remove":{"path":"p","deletionTimestamp":5,"dataChange":false,"extendedFileMetadata":true,"partitionValues":{"x":"1"},"size":2,"stats":"{\"numRecords\":2}","tags":{"y":"2"},"deletionVector":{"storageType":"p"},"baseRowId":3,"defaultRowCommitVersion":4,"more":{"z":[]}}}`,
	`{"txn":{"appId":"a","version":3,"lastUpdated":null,"x":[]}}{"txn":{}}{"txn":{"appId":7}}`, `{"txn":{"version":1,"version":1}}`, `{"domainMetadata":{"domain":"d","configuration":"{}","removed":false,"x":{}}}{"domainMetadata":{"removed":true}}`, `{"domainMetadata":{"removed":"x"}}`,
	`{"protocol":{"minReaderVersion":3,"readerFeatures":["a"]}}`, `{"protocol":{"minReaderVersion":1}}{"protocol":{"minReaderVersion":1}}`, `{"protocol":7}`, `{"protocol":{"minReaderVersion":"x"}}`, `{"metaData":{"id":"x"}}{"metaData":{}}`, `{"metaData":{"id":"x","configuration":{"a":"b"}}}`, `{"metaData":null}{"protocol":null}{"commitInfo":null}{"txn":null}`,
	`{"commitInfo":{"txnId":"a"}}{"commitInfo":{"txnId":"b"}}`, `{"commitInfo":[]}`, `{"commitInfo":{"inCommitTimestamp":"x"}}`,
	`{"x":tru}`, `{"x":[1,]}`, `{"x":[1 2]}`, `{"x":[,]}`, `{"x":{"a"}}`, `{"x":-}`, `{"x":"` + "\x01" + `"}`, `{"x":"\ud800"}`, `{"x":[`, `{"x":[1`, `{"x":nulx}`,
}

func TestDecodeOddities(t *testing.T) {
	for _, text := range oddities {
		t.Run(text[:min(len(text), 60)], func(t *testing.T) { checkDecode(t, []byte(text)) })
	}
}

// Values of any bytes at any offset to the eight that the scan looks at.
func TestDecodeStrings(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		raw := rapid.SliceOfN(rapid.SampledFrom([]byte("abcdefgh\"\\/ \x00\x1f\x7f\x80\xbf\xc3\xa9\xe2\x80\xa8\xed\xa0\xf0\x9f\x98u0041d83cnrt")), 0, 40).Draw(t, "raw")
		data := []byte(`{"add":{"path":"p","stats":"` + string(raw) + `"}}`)
		checkDecode(t, data)
		text, err := json.Marshal(string(raw))
		if err != nil {
			t.Fatalf("%v", err)
		}
		if _, ok := checkDecode(t, []byte(`{"add":{"path":"p","tags":{`+string(text)+`:`+string(text)+`}}}`)); !ok {
			t.Fatalf("%s was refused", text)
		}
	})
}

func TestDecodeDepth(t *testing.T) {
	for _, c := range []struct{ open, shut string }{{"[", "]"}, {`{"a":`, "}"}} {
		for depth, ok := range map[int]bool{maxDepth - 2: true, maxDepth - 1: true, maxDepth: false, 3_000_000: false} {
			inner := "1"
			data := []byte(`{"x":` + strings.Repeat(c.open, depth) + inner + strings.Repeat(c.shut, depth) + "}")
			if _, err := Decode(data); (err == nil) != ok {
				t.Errorf("%d of %s: %v", depth+1, c.open, err)
			}
			if _, err := refDecode(data); (err == nil) != ok {
				t.Errorf("%d of %s: encoding/json: %v", depth+1, c.open, err)
			}
			if _, err := Decode(data[:len(data)/2]); !errors.Is(err, ErrCorrupt) {
				t.Errorf("%d of %s, cut: %v", depth+1, c.open, err)
			}
		}
	}
}

// What a reader allocates is bounded by what it was given, whatever it is.
func TestDecodeMemory(t *testing.T) {
	const size = 4 << 20
	fill := func(s string) []byte { return []byte(strings.Repeat(s, size/len(s))) }
	for name, data := range map[string][]byte{
		"lines":     fill("\n"),
		"empty":     fill("{}"),
		"adds":      fill(`{"add":{"path":"p"}}`),
		"removes":   fill(`{"remove":{"path":"p"}}`),
		"txns":      fill(`{"txn":{}}`),
		"domains":   fill(`{"domainMetadata":{}}`),
		"vectors":   fill(`{"add":{"path":"p","deletionVector":{"offset":1}}}`),
		"late adds": append(fill(`{"remove":{"path":"p"}}`), fill(`{"add":{"path":"p"}}`)...),
		"bad text":  []byte(`{"add":{"path":"` + string(fill("\xff")) + `"}}`),
		"names":     fill(`{"add":{"path":"p","partitionValues":{"a":null},"` + strings.Repeat("n", 5000) + `":0}}`),
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			c, err := Decode(data)
			runtime.ReadMemStats(&after)
			if err != nil {
				t.Fatal(err)
			}
			runtime.KeepAlive(c)
			if got := float64(after.TotalAlloc-before.TotalAlloc) / float64(len(data)); got > 20 {
				t.Errorf("%.1f bytes allocated a byte", got)
			} else {
				t.Logf("%.2f bytes allocated a byte", got)
			}
		})
	}
}

func TestScan(t *testing.T) {
	data, err := full().Encode()
	if err != nil {
		t.Fatal(err)
	}
	data = append(data, `{"sidecar":{"path":"x"}}{"checkpointMetadata":null}{"n\u0065w":[1, "a"]}`...)
	var got []string
	note := func(format string, args ...any) error {
		got = append(got, fmt.Sprintf(format, args...))
		return nil
	}
	sink := &Sink{
		Info:     func(i *CommitInfo) error { return note("info %s", i.TxnID) },
		Protocol: func(p *Protocol) error { return note("protocol %d", p.MinWriterVersion) },
		Metadata: func(m *Metadata) error { return note("metadata %s", m.ID) },
		Txn:      func(x *SetTransaction) error { return note("txn %d", x.Version) },
		Domain:   func(d *DomainMetadata) error { return note("domain %s", d.Domain) },
		Remove:   func(r *Remove) error { return note("remove %s", r.Path) },
		Add:      func(a *Add) error { return note("add %s", a.Path) },
		Other:    func(name string, value json.RawMessage) error { return note("%s %s", name, value) },
	}
	if err := Scan(data, sink); err != nil {
		t.Fatal(err)
	}
	want := []string{"info 6e2c", "protocol 7", "metadata t", "txn 42", "domain cardinal.shards", "domain gone",
		"remove date=2026-11-22/a.parquet", "add date=2026-11-22/b.parquet", `sidecar {"path":"x"}`, `new [1, "a"]`}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if err := Scan(data, &Sink{}); err != nil {
		t.Errorf("nobody wants anything: %v", err)
	}
	stop := errors.New("enough")
	got = nil
	sink.Metadata = func(*Metadata) error { return stop }
	if err := Scan(data, sink); !errors.Is(err, stop) || errors.Is(err, ErrCorrupt) || len(got) != 2 {
		t.Errorf("%v after %v", err, got)
	}
	for _, text := range []string{`{"add":7}`, `{"add":{"path":"p"}`, `{"add":{"path":"p"},"txn":{}}`} {
		if err := Scan([]byte(text), &Sink{}); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s, which nobody wants: %v", text, err)
		}
	}
}

// Errors say which action it was.
func TestDecodeNamesTheAction(t *testing.T) {
	for text, want := range map[string]string{
		"{\"txn\":{}}\n\n{\"add\":{\"path\":7}}":                         "action 2: corrupt log entry: byte 27: want a string",
		`{"protocol":{}}{"x":1}{"protocol":{}}`:                          "action 3: corrupt log entry: protocol: action occurs twice in one version",
		`{"metaData":{"id":7}}`:                                          "action 1: corrupt log entry: byte 12: json: cannot unmarshal number into Go struct field Metadata.id of type string",
		`{"add":{"path":"p","size":92233720368547758080}}`:               `action 1: corrupt log entry: byte 26: strconv.ParseInt: parsing "92233720368547758080": value out of range`,
		`{"add":{"path":"p","partitionValues":{"a":"b"},"tags":{"a":"b"`: "action 1: corrupt log entry: byte 62: cut off: want , or }",
	} {
		_, err := Decode([]byte(text))
		if d := cmp.Diff(want, fmt.Sprint(err)); d != "" || !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: what people read: -want +got\n%s", text, d)
		}
	}
}

// Every log entry of the tables that other engines wrote decodes, and to what
// encoding/json makes of it.
func TestDecodeGolden(t *testing.T) {
	const dir = "../../shared/golden"
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		t.Skipf("no %s: the tables of other engines are not part of the project", dir)
	}
	entries := 0
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".json" || filepath.Base(filepath.Dir(path)) != "_delta_log" {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		entries++
		if _, ok := checkDecode(t, data); !ok {
			t.Errorf("%s is refused", path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if entries < 800 {
		t.Errorf("%d entries: the tables are not all there", entries)
	}
	t.Logf("%d entries", entries)
}

func FuzzDecode(f *testing.F) {
	data, err := full().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	for _, text := range oddities {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, ok := checkDecode(t, bytes.Clone(data))
		if !ok {
			return
		}
		checkEncode(t, c)
		again, err := c.Encode()
		if err != nil {
			t.Fatal(err)
		}
		back, err := Decode(again)
		if err != nil {
			t.Fatalf("what was encoded does not decode: %v", err)
		}
		if len(back.Adds) != len(c.Adds) || len(back.Removes) != len(c.Removes) || len(back.Txns) != len(c.Txns) || len(back.Domains) != len(c.Domains) {
			t.Fatalf("%s\nbecame %+v", again, back)
		}
	})
}

// entryOf is an entry of n adds as our writers make them, or those of the
// 300,000-file table when stats are not wanted.
func entryOf(n int, stats bool) []byte {
	var b bytes.Buffer
	for i := range n {
		p := strconv.Itoa(i%100 + 10)
		if !stats {
			fmt.Fprintf(&b, `{"add":{"path":"part_%s/file_%d.parquet","partitionValues":{"partition_col":"part_%s"},"size":1048576,"modificationTime":%d,"dataChange":true}}`+"\n", p, i, p, 1234567900+i)
			continue
		}
		fmt.Fprintf(&b, `{"add":{"path":"date=2026-11-22/shard=1/%08x-6d2c-4b5a-9f1e-0123456789ab.parquet","partitionValues":{"date":"2026-11-22","shard":"1"},"size":%d,"modificationTime":1790000000000,"dataChange":true,"stats":"{\"numRecords\":5000,\"minValues\":{\"metric_name\":\"node_cpu_seconds_total\",\"series_id\":-%d,\"timestamp\":\"2026-11-22T00:00:00.000Z\",\"value\":-0.0},\"maxValues\":{\"metric_name\":\"node_memory_Active_bytes\",\"series_id\":%d,\"timestamp\":\"2026-11-22T00:05:00.000Z\",\"value\":17.5},\"nullCount\":{\"histogram\":5000,\"metric_name\":0,\"nanos\":5000,\"series_id\":0,\"timestamp\":0,\"value\":0}}","tags":{"cardinal.level":"0","cardinal.order":"%d-%d","cardinal.time":"1790000000000000..1790000300000000"}}}`+"\n",
			i, 20000+i, i, i, i, i)
	}
	return b.Bytes()
}
