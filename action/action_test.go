package action

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func ptr[T any](v T) *T { return &v }

func full() *Commit {
	return &Commit{
		Info: &CommitInfo{TxnID: "6e2c", InCommitTimestamp: ptr(int64(1790000000000)), Timestamp: 1790000000000, Operation: "WRITE",
			OperationParameters: map[string]any{"mode": "Append"}, OperationMetrics: map[string]string{"numAddedFiles": "1"},
			ReadVersion: ptr(int64(3)), IsBlindAppend: ptr(true), EngineInfo: "cardinalsin", GroupTxnIDs: []string{"6e2c", "77aa"}},
		Protocol: &Protocol{MinReaderVersion: 1, MinWriterVersion: 7, WriterFeatures: []string{"domainMetadata"}},
		Metadata: &Metadata{ID: "t", Format: Format{Provider: "parquet", Options: map[string]string{}}, SchemaString: `{"type":"struct","fields":[]}`,
			PartitionColumns: []string{"date", "shard"}, CreatedTime: ptr(int64(5)), Configuration: map[string]string{"a": "b"}},
		Txns:    []SetTransaction{{AppID: "cardinal/writer/1", Version: 42, LastUpdated: 7}},
		Domains: []DomainMetadata{{Domain: "cardinal.shards", Configuration: `{"epoch":1}`}, {Domain: "gone", Removed: true}},
		Removes: []Remove{{Path: "date=2026-11-22/a.parquet", DeletionTimestamp: 9, ExtendedFileMetadata: true, PartitionValues: `{"date":"2026-11-22"}`, Size: 3}},
		Adds: []Add{{Path: "date=2026-11-22/b.parquet", PartitionValues: `{"date":"2026-11-22","shard":"1"}`, Size: 12, ModificationTime: 8, DataChange: true,
			Stats: `{"numRecords":2}`, Tags: `{"cardinal.level":"0"}`,
			DeletionVector: &DeletionVector{StorageType: "u", PathOrInlineDV: "ab^-aqEH.-t@S}K{vb[*k^", Offset: ptr(int32(4)), SizeInBytes: 40, Cardinality: 6}}},
	}
}

func TestCommitRoundTrip(t *testing.T) {
	data, err := full().Encode()
	if err != nil {
		t.Fatal(err)
	}
	back, err := Decode(data)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(full(), back); d != "" {
		t.Fatal(d)
	}
}

// The bytes of an entry are a format that others read: a golden file pins
// them. Run with UPDATE_GOLDEN=1 to write it anew.
func TestCommitGolden(t *testing.T) {
	data, err := full().Encode()
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "commit.json")
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(golden, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(data)); d != "" {
		t.Fatal(d)
	}
	if !strings.HasPrefix(string(data), `{"commitInfo":`) {
		t.Error("commitInfo does not come first, as inCommitTimestamp demands")
	}
}

func TestDecodeIgnoresTheUnknown(t *testing.T) {
	c, err := Decode([]byte(`{"cdc":{"path":"x"}}
{"future":{"a":1}}
{"add":{"path":"p","partitionValues":{},"size":1,"modificationTime":1,"dataChange":true,"novel":[1,{"b":2}]}}
{"remove":{"path":"q","partitionValues":{"a":null}}}

`))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Adds) != 1 || c.Adds[0].Path != "p" || len(c.Removes) != 1 {
		t.Fatalf("%+v", c)
	}
	if _, ok := c.Removes[0].PartitionValues.Get("a"); ok {
		t.Error("a null partition value has a value")
	}
}

// commitInfo of other engines: metrics as numbers, parameters of any form.
func TestCommitInfoOfOtherEngines(t *testing.T) {
	c, err := Decode([]byte(`{"commitInfo":{"timestamp":5,"operation":"WRITE","operationMetrics":{"num_added_rows":7,"time":"3"},"operationParameters":"none","readVersion":"x","txnId":"t"}}`))
	if err != nil {
		t.Fatal(err)
	}
	want := &CommitInfo{TxnID: "t", Timestamp: 5, Operation: "WRITE", OperationMetrics: map[string]string{"num_added_rows": "7", "time": "3"}}
	if d := cmp.Diff(want, c.Info); d != "" {
		t.Fatal(d)
	}
	if _, err := Decode([]byte(`{"commitInfo":{"inCommitTimestamp":"x"}}`)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a time that is none: %v", err)
	}
}

func TestDecodeRefusesDamage(t *testing.T) {
	for name, text := range map[string]string{
		"cut":              `{"add":{"path":"p"`,
		"no JSON":          `hello`,
		"no object":        `[1]`,
		"no path":          `{"add":{"size":1}}`,
		"no path removed":  `{"remove":{"deletionTimestamp":1}}`,
		"wrong type":       `{"add":{"path":7}}`,
		"nested tags":      `{"add":{"path":"p","tags":{"a":{"b":1}}}}`,
		"two metadata":     `{"metaData":{"id":"a"}}` + "\n" + `{"metaData":{"id":"b"}}`,
		"two protocols":    `{"protocol":{"minReaderVersion":1}}` + "\n" + `{"protocol":{"minReaderVersion":1}}`,
		"binary":           "\x00\x01\x02",
		"garbage at end":   `{"txn":{"appId":"a","version":1}} x`,
		"overflowing size": `{"add":{"path":"p","size":99999999999999999999}}`,
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Decode([]byte(text)); !errors.Is(err, ErrCorrupt) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestVersion(t *testing.T) {
	for _, v := range []Version{0, 7, 1<<63 - 1} {
		if got, ok := ParseVersion(v.String()); !ok || got != v {
			t.Errorf("%d: got %d, %v", v, got, ok)
		}
	}
	for _, s := range []string{"", "7", "0000000000000000000x", "-0000000000000000001", "99999999999999999999", "09223372036854775808"} {
		if v, ok := ParseVersion(s); ok {
			t.Errorf("%q parsed as %d", s, v)
		}
	}
}

func TestDeletionVectorUniqueID(t *testing.T) {
	a := full().Adds[0]
	if got := a.Key().DV; got != "uab^-aqEH.-t@S}K{vb[*k^@4" {
		t.Errorf("got %q", got)
	}
	if (&Add{Path: "x"}).Key().DV != "" {
		t.Error("a file without a deletion vector has an ID for it")
	}
}

func TestDecodePath(t *testing.T) {
	for in, want := range map[string]string{
		"date=2026-11-22/a.parquet":  "date=2026-11-22/a.parquet",
		"a%20b/c%25d":                "a b/c%d",
		"s3://bucket/a%20b":          "s3://bucket/a%20b",
		"part=2021-01-01%2000%3A00/": "part=2021-01-01 00:00/",
	} {
		if got, err := DecodePath(in); err != nil || got != want {
			t.Errorf("%q: got %q, %v", in, got, err)
		}
	}
	if _, err := DecodePath("a%zz"); !errors.Is(err, ErrCorrupt) {
		t.Errorf("got %v", err)
	}
}

func TestSchemaRoundTrip(t *testing.T) {
	s := &Schema{Fields: []Field{
		{Name: "timestamp", Type: PrimitiveType("timestamp"), Metadata: map[string]any{}},
		{Name: "pod", Type: PrimitiveType("string"), Nullable: true, Metadata: map[string]any{"cardinal.label": "pod"}},
	}}
	text, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	back, err := ParseSchema(text)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(s, back); d != "" {
		t.Fatal(d)
	}
	if s.Field("pod").Primitive() != "string" || s.Field("none") != nil {
		t.Error("lookup by name")
	}
	if _, err := ParseSchema(`{"type":"array"}`); !errors.Is(err, ErrCorrupt) {
		t.Errorf("got %v", err)
	}
}

func TestTombstone(t *testing.T) {
	a := Add{Path: "p", Size: 7, Stats: `{"numRecords":3,"minValues":{"x":1}}`, Tags: `{"k":"v"}`}
	want := Remove{Path: "p", Size: 7, DataChange: true, ExtendedFileMetadata: true, Stats: `{"numRecords":3}`, Tags: `{"k":"v"}`}
	if d := cmp.Diff(want, a.Tombstone(true)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	a.Stats = ""
	if r := a.Tombstone(true); r.Stats != "" {
		t.Errorf("statistics %q of a file that has none", r.Stats)
	}
}
