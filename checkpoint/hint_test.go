package checkpoint

import (
	"bytes"
	"errors"
	"path"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cardinalsin/action"
	"cardinalsin/storage"
	"cardinalsin/storage/fault"
	"cardinalsin/storage/mem"
)

func TestHintChecksum(t *testing.T) {
	// The example of PROTOCOL.md, "JSON checksum".
	const example = `{"k0":"'v 0'", "checksum": "adsaskfljadfkjadfkj", "k1":{"k2": 2, "k3": ["v3", [1, 2], {"k4": "v4", "k5": ["v5", "v6", "v7"]}]}}`
	got, err := hintChecksum([]byte(example))
	if err != nil || got != "6a92d155a59bf2eecbd4b4ec7fd1f875" {
		t.Errorf("checksum %s, %v", got, err)
	}
	for _, bad := range []string{"", "{", `{"a":1,"a":2}`, `{"a":1} x`, `[1,`} {
		if sum, err := hintChecksum([]byte(bad)); err == nil {
			t.Errorf("%q has checksum %s, want an error", bad, sum)
		}
	}
}

func TestParseHint(t *testing.T) {
	for _, c := range []struct {
		name, data string
		want       Hint
		ok         bool
	}{
		{name: "empty", data: ""},
		{name: "spaces", data: " \n"},
		{name: "not JSON", data: "PAR1"},
		{name: "cut off", data: `{"version":10,"size":1`},
		{name: "no version", data: `{"size":3}`},
		{name: "null version", data: `{"version":null,"size":3}`},
		{name: "negative version", data: `{"version":-1,"size":3}`},
		{name: "version as text", data: `{"version":"10"}`},
		{name: "fraction", data: `{"version":1.5}`},
		{name: "overflow", data: `{"version":99999999999999999999}`},
		{name: "array", data: `[10]`},
		{name: "least", data: `{"version":0}`, want: Hint{}, ok: true},
		{name: "parts null", data: `{"parts":null,"size":20622,"version":1}`, want: Hint{Version: 1, Size: 20622}, ok: true},
		{name: "all", data: `{"version":7,"size":6,"parts":3,"sizeInBytes":99,"numOfAddFiles":4,"tags":{"a":"b"}}`, want: Hint{Version: 7, Size: 6, Parts: 3, SizeInBytes: 99, NumAdds: 4}, ok: true},
		{name: "checksum wrong", data: `{"version":7,"size":6,"checksum":"00000000000000000000000000000000"}`},
		{name: "checksum of another version", data: `{"version":8,"size":6,"checksum":"` + mustSum(t, `{"version":7,"size":6}`) + `"}`},
		{name: "checksum right", data: `{"version":7,"size":6,"checksum":"` + mustSum(t, `{"version":7,"size":6}`) + `"}`, want: Hint{Version: 7, Size: 6}, ok: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, ok := parseHint([]byte(c.data))
			if ok != c.ok {
				t.Fatalf("ok %v, want %v", ok, c.ok)
			}
			if diff := cmp.Diff(c.want, h); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
}

func mustSum(t *testing.T, s string) string {
	sum, err := hintChecksum([]byte(s))
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// TestGoldenHints checks the checksums that Spark wrote, and that what the
// hints of other engines say is read.
func TestGoldenHints(t *testing.T) {
	read, summed := 0, 0
	for _, g := range manifest(t) {
		store := loadLog(t, g.path)
		data, _, err := store.Get(t.Context(), hintKey(logDir))
		if errors.Is(err, storage.ErrNotFound) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		h, ok, err := ReadHint(t.Context(), store, logDir)
		if err != nil {
			t.Fatal(err)
		}
		if len(bytes.TrimSpace(data)) == 0 {
			if ok {
				t.Errorf("%s: an empty hint is %+v", g.path, h)
			}
			continue
		}
		if !ok || h.Version > g.latest {
			t.Errorf("%s: hint %+v, %v of %.300s", g.path, h, ok, data)
		}
		read++
		if bytes.Contains(data, []byte(`"checksum"`)) {
			summed++
		}
	}
	t.Logf("%d hints, %d of them with a checksum", read, summed)
	if read < 40 || summed < 10 {
		t.Errorf("%d hints, %d with a checksum: the golden tables are not all there", read, summed)
	}
}

func TestReadHintStoreError(t *testing.T) {
	f := fault.New(mem.New(mem.Options{}))
	f.FailAt(0, fault.Before)
	if _, ok, err := ReadHint(t.Context(), f, logDir); ok || !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("ok %v, %v, want ErrUnavailable", ok, err)
	}
}

// TestWriteMovesHint: the hint goes forward, never back, and a useless one is
// replaced.
func TestWriteMovesHint(t *testing.T) {
	for _, c := range []struct {
		name, before string
		moved        bool
	}{
		{"absent", "-", true},
		{"empty", "", true},
		{"damaged", `{"version":99999,"size":1,"checksum":"x"}`, true},
		{"behind", `{"version":9,"size":1}`, true},
		{"the same", `{"version":10,"size":1}`, true},
		{"ahead", `{"version":11,"size":1}`, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			store := mem.New(mem.Options{})
			if c.before != "-" {
				if _, err := store.Put(t.Context(), path.Join(logDir, "_last_checkpoint"), strings.NewReader(c.before)); err != nil {
					t.Fatal(err)
				}
			}
			info, err := Write(t.Context(), store, logDir, sample(3).state(), Options{})
			if err != nil {
				t.Fatal(err)
			}
			h, ok, err := ReadHint(t.Context(), store, logDir)
			if err != nil || !ok {
				t.Fatalf("ok %v, %v", ok, err)
			}
			want := Hint{Version: 10, Size: info.Size, SizeInBytes: info.Ref.SizeInBytes(), NumAdds: 3}
			if !c.moved {
				want = Hint{Version: 11, Size: 1}
			}
			if diff := cmp.Diff(want, h); diff != "" || info.HintMoved != c.moved {
				t.Errorf("moved %v: -want +got\n%s", info.HintMoved, diff)
			}
			// Wherever the hint points, the checkpoint is found by listing.
			if got, err := readTable(t.Context(), store, classic(t, store, 10)); err != nil || len(got.Adds) != 3 {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestFromListing(t *testing.T) {
	const u = "80a083e8-7026-4e79-81be-64bd76c43a11"
	obj := func(names ...string) (objs []storage.ObjectInfo) {
		for _, n := range names {
			objs = append(objs, storage.ObjectInfo{Key: "t/_delta_log/" + n, Size: 5})
		}
		return objs
	}
	v := func(n int, rest string) string { return action.Version(n).String() + rest }
	for _, c := range []struct {
		name string
		objs []storage.ObjectInfo
		want []string
	}{
		{"none", nil, nil},
		{"commits and noise", obj(v(1, ".json"), v(1, ".crc"), "_last_checkpoint", v(1, ".checkpoint"), v(1, ".checkpoint.json"),
			"."+v(1, ".checkpoint.parquet.crc"), v(1, ".checkpoint.parquet.crc"), v(1, ".checkpoint.parquet.tmp"), "1.checkpoint.parquet",
			v(1, ".checkpoint."+u[1:]+".json"), v(1, ".checkpoint."+u+".crc"), v(1, ".checkpoint.0000000001.0000000001."+u+".parquet"),
			v(1, ".checkpoint..parquet"), v(1, ".checkpoint.0000000001.parquet"), v(1, ".checkpoint.0000000000.0000000001.parquet"),
			v(1, ".checkpoint.0000000002.0000000001.parquet"), v(1, ".checkpoint.1.1.parquet"), v(1, ".0000000000000000001.compacted.json"),
			"_sidecars/"+v(1, ".checkpoint.parquet"), "_staged_commits/"+v(1, ".checkpoint.parquet")), nil},
		{"kinds, newest first", obj(v(3, ".checkpoint.parquet"), v(10, ".checkpoint."+u+".json"), v(7, ".checkpoint."+u+".parquet"), v(7, ".checkpoint.parquet")),
			[]string{"10 v2-json", "7 classic", "7 v2-parquet", "3 classic"}},
		{"multi-part", obj(v(5, ".checkpoint.0000000002.0000000002.parquet"), v(5, ".checkpoint.0000000001.0000000002.parquet"), v(4, ".checkpoint.0000000001.0000000001.parquet")),
			[]string{"5 multi-part", "4 multi-part"}},
		{"multi-part, incomplete", obj(v(5, ".checkpoint.0000000001.0000000003.parquet"), v(5, ".checkpoint.0000000003.0000000003.parquet"),
			v(5, ".checkpoint.0000000001.9999999999.parquet"), v(5, ".checkpoint.0000000002.0000000002.parquet")), nil},
		{"multi-part, two sets", obj(v(5, ".checkpoint.0000000001.0000000002.parquet"), v(5, ".checkpoint.0000000002.0000000002.parquet"), v(5, ".checkpoint.0000000001.0000000003.parquet")),
			[]string{"5 multi-part"}},
		{"empty object", []storage.ObjectInfo{{Key: "t/_delta_log/" + v(1, ".checkpoint.parquet")}}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			for _, r := range FromListing(c.objs) {
				got = append(got, strings.TrimLeft(r.Version.String(), "0")+" "+r.Kind.String())
				if len(r.Keys) != len(r.Sizes) {
					t.Errorf("%d keys, %d sizes", len(r.Keys), len(r.Sizes))
				}
				for i, k := range r.Keys {
					if r.Kind == MultiPart && !strings.Contains(k, ".checkpoint.000000000"+string(rune('1'+i))+".") {
						t.Errorf("part %d is %s", i+1, k)
					}
				}
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
}
