package action

import (
	"bytes"
	"encoding/json"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// line is one action as encoding/json takes it.
type line struct {
	CommitInfo     *CommitInfo     `json:"commitInfo,omitempty"`
	Protocol       *Protocol       `json:"protocol,omitempty"`
	MetaData       *Metadata       `json:"metaData,omitempty"`
	Txn            *SetTransaction `json:"txn,omitempty"`
	DomainMetadata *DomainMetadata `json:"domainMetadata,omitempty"`
	Remove         *Remove         `json:"remove,omitempty"`
	Add            *Add            `json:"add,omitempty"`
}

// stdEncode is Encode by encoding/json alone, the yardstick.
func stdEncode(c *Commit) ([]byte, error) {
	var lines []line
	if c.Info != nil {
		lines = append(lines, line{CommitInfo: c.Info})
	}
	if c.Protocol != nil {
		lines = append(lines, line{Protocol: c.Protocol})
	}
	if c.Metadata != nil {
		lines = append(lines, line{MetaData: c.Metadata})
	}
	for i := range c.Txns {
		lines = append(lines, line{Txn: &c.Txns[i]})
	}
	for i := range c.Domains {
		lines = append(lines, line{DomainMetadata: &c.Domains[i]})
	}
	for i := range c.Removes {
		lines = append(lines, line{Remove: &c.Removes[i]})
	}
	for i := range c.Adds {
		lines = append(lines, line{Add: &c.Adds[i]})
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	for _, l := range lines {
		if err := enc.Encode(l); err != nil {
			return nil, err
		}
	}
	return buf.Bytes(), nil
}

// checkEncode compares Encode with the yardstick.
func checkEncode(t interface {
	Helper()
	Fatalf(string, ...any)
}, c *Commit) {
	t.Helper()
	want, wantErr := stdEncode(c)
	got, err := c.Encode()
	if (err == nil) != (wantErr == nil) {
		t.Fatalf("got error %v, encoding/json has %v", err, wantErr)
	}
	if d := cmp.Diff(string(want), string(got)); err == nil && d != "" {
		t.Fatalf("-encoding/json +Encode\n%s", d)
	}
}

func TestEncodeEqualsEncodingJSON(t *testing.T) {
	checkEncode(t, full())
	checkEncode(t, &Commit{})
	for _, o := range []Object{"", "{}", "{ }", `{"a": "b"}`, `{"a":"b c"}`, "{\"a\":\n\"b\"}", `{"a":null}`, `{"a":{"b":1}}`, `[1, 2]`, `7`,
		`{"a":"<&>"}`, "{\"a\":\"\u2028\xff\"}", `{"a":"b"`, `{"a":"b"}}`, `x`, `{"a":"b"} `, ` `} {
		checkEncode(t, &Commit{Adds: []Add{{Path: "p", PartitionValues: o, Tags: o}}})
		checkEncode(t, &Commit{Removes: []Remove{{Path: "p", PartitionValues: o, Tags: o}}})
	}
	var all bytes.Buffer
	for c := range 256 {
		all.WriteByte(byte(c))
		all.WriteString(string(rune(c)))
	}
	all.WriteString("\u2027\u2028\u2029\u202a\ufffd\U0001f600\xf0\x9f")
	checkEncode(t, &Commit{Adds: []Add{{Path: all.String(), Stats: all.String()}}, Txns: []SetTransaction{{}}, Domains: []DomainMetadata{{}}})

	rapid.Check(t, func(t *rapid.T) {
		text := func(name string) string {
			if rapid.Bool().Draw(t, name+" is text") {
				return rapid.String().Draw(t, name)
			}
			return string(rapid.SliceOf(rapid.Byte()).Draw(t, name))
		}
		number := func(name string) int64 {
			return rapid.OneOf(rapid.Just(int64(0)), rapid.Just(int64(math.MinInt64)), rapid.Int64()).Draw(t, name)
		}
		some := func(name string) *int64 {
			if rapid.Bool().Draw(t, name+" is nil") {
				return nil
			}
			return ptr(number(name))
		}
		object := func(name string) Object {
			return ObjectOf(rapid.MapOfN(rapid.String(), rapid.String(), 0, 3).Draw(t, name))
		}
		var vector *DeletionVector
		if rapid.Bool().Draw(t, "vector") {
			vector = &DeletionVector{StorageType: text("storage"), PathOrInlineDV: text("inline"), SizeInBytes: int32(number("size")), Cardinality: number("cardinality")}
			if o := some("offset"); o != nil {
				vector.Offset = ptr(int32(*o))
			}
		}
		checkEncode(t, &Commit{
			Txns:    []SetTransaction{{AppID: text("app"), Version: number("version"), LastUpdated: number("updated")}},
			Domains: []DomainMetadata{{Domain: text("domain"), Configuration: text("configuration"), Removed: rapid.Bool().Draw(t, "removed")}},
			Removes: []Remove{{Path: text("path"), DeletionTimestamp: number("deleted"), DataChange: rapid.Bool().Draw(t, "change"), ExtendedFileMetadata: rapid.Bool().Draw(t, "extended"),
				PartitionValues: object("values"), Size: number("size"), Stats: text("stats"), Tags: object("tags"), DeletionVector: vector, BaseRowID: some("row"), DefaultRowCommitVersion: some("commit")}},
			Adds: []Add{{Path: text("path"), PartitionValues: object("values"), Size: number("size"), ModificationTime: number("time"), DataChange: rapid.Bool().Draw(t, "change"),
				Stats: text("stats"), Tags: object("tags"), DeletionVector: vector, BaseRowID: some("row"), DefaultRowCommitVersion: some("commit"), ClusteringProvider: text("provider")}},
		})
	})
}

// TestNoNullMaps: other engines refuse a metaData action whose maps or lists
// are null.
func TestNoNullMaps(t *testing.T) {
	c := Commit{Metadata: &Metadata{ID: "x", SchemaString: "<&>"}}
	data, err := c.Encode()
	if err != nil {
		t.Fatal(err)
	}
	want := `{"metaData":{"id":"x","format":{"provider":"","options":{}},"schemaString":"<&>","partitionColumns":[],"configuration":{}}}` + "\n"
	if d := cmp.Diff(want, string(data)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if c.Metadata.Configuration != nil {
		t.Error("the caller's metadata changed")
	}
}
