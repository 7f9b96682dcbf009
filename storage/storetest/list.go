package storetest

import (
	"fmt"
	"slices"
	"sort"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"cardinalsin/storage"
)

// weirdKeys are legal and have each broken some store or client.
var weirdKeys = []string{
	"a b/c d", " lead", "trail ", "plus+plus", "percent%2Fslash", "percent%", "amp&eq=x", "ques?tion", "hash#tag",
	"semi;colon", "colon:", "at@", "quote'", "paren(1)", "brace{}", "bracket[]", "less<more>", "pipe|", "tilde~",
	"caret^", "tick`", "comma,", "star*", "dollar$", "bang!", `double"quote`,
	"ünï/cödé", "日本語", "emoji🙂", "e\u0301", "\u00e9", "dots...", "..a", "a..", ".hidden/.x", "-dash", "_under",
	"date=2026-11-22/shard=00/0198c5e2.parquet", "UPPER", "upper",
	strings.Repeat("é", storage.MaxKeyElementBytes/2),
	strings.Repeat("long/", 150) + "x",
}

func testWeirdKeys(t *testing.T, s storage.Store) {
	ctx := t.Context()
	for _, key := range weirdKeys {
		info, err := s.PutIfAbsent(ctx, key, []byte(key))
		if err != nil {
			t.Errorf("PutIfAbsent: %v", err)
			continue
		}
		if got, _ := get(t, s, key); got != key {
			t.Errorf("%q holds %q", key, got)
		}
		if _, err := s.PutIfMatch(ctx, key, []byte(key+"!"), info.ETag); err != nil {
			t.Errorf("PutIfMatch: %v", err)
		}
		if part, err := s.GetRange(ctx, key, 0, int64(len(key))+1); err != nil || string(part) != key+"!" {
			t.Errorf("GetRange: %q, %v", part, err)
		}
	}
	want := slices.Clone(weirdKeys)
	sort.Strings(want)
	wantKeys(t, s, "", "", want)
	for i, key := range want {
		if i%5 == 0 {
			wantKeys(t, s, "", key, slices.Clone(want[i+1:]))
			wantKeys(t, s, key, "", []string{key})
		}
	}
	for _, key := range weirdKeys {
		if err := s.Delete(ctx, key); err != nil {
			t.Errorf("Delete: %v", err)
		}
	}
	wantKeys(t, s, "", "", nil)
}

// orderKeys tell the byte order of keys from the order of directories: what
// sorts around a slash (0x2f) is - (0x2d), . (0x2e) and 0 (0x30).
var orderKeys = []string{
	"0", "A", "_z", "a-/x", "a-b", "a.b", "a.b-/c", "a/b", "a/b-", "a0", "aa/b/c", "aa/b0", "aa/c",
	"b", "log/00.json", "log/01.json", "log/01.json.crc", "log/10.json", "log0", "z/z/z/z", "~", "é", "🙂",
}

func fill(t *testing.T, s storage.Store, keys []string) {
	t.Helper()
	group, ctx := errgroup.WithContext(t.Context())
	group.SetLimit(32)
	// Backwards, so that no store lists by age.
	for _, key := range slices.Backward(keys) {
		group.Go(func() error {
			_, err := s.PutIfAbsent(ctx, key, []byte(key))
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
}

// listed computes a listing from the keys, which are sorted.
func listed(keys []string, prefix, startAfter string) []string {
	var out []string
	for _, key := range keys {
		if strings.HasPrefix(key, prefix) && key > startAfter {
			out = append(out, key)
		}
	}
	return out
}

func testListOrder(t *testing.T, s storage.Store) {
	if !sort.StringsAreSorted(orderKeys) {
		t.Fatal("orderKeys are not sorted")
	}
	fill(t, s, orderKeys)
	for _, prefix := range []string{"", "a", "a-", "a/", "a.", "a.b", "a/b", "aa", "aa/", "aa/b", "aa/b/", "l", "log", "log/", "log/0", "log/01.json", "log/01.json.", "z", "z/z/", "z/z/z/z", "nothing", "nothing/", "a/b/", "é"} {
		wantKeys(t, s, prefix, "", listed(orderKeys, prefix, ""))
	}
	infos, err := storage.Collect(s.List(t.Context(), "", ""))
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range infos {
		if info.Size != int64(len(info.Key)) || info.ETag == "" || info.ModTime.IsZero() {
			t.Errorf("listed as %+v", info)
		}
	}
}

func testListStartAfter(t *testing.T, s storage.Store) {
	fill(t, s, orderKeys)
	after := slices.Concat(orderKeys, []string{
		"!", "a", "a/", "a/a", "a/c", "aa", "aa/", "aa/b", "aa/b/", "aa/b/d", "log", "log/", "log/0", "log/01", "log/02", "z", "z/", "z/z/z/zz", "zz", "\U0010ffff",
	})
	for _, prefix := range []string{"", "a", "a/", "aa/b", "log/"} {
		for _, startAfter := range after {
			wantKeys(t, s, prefix, startAfter, listed(orderKeys, prefix, startAfter))
		}
	}
}

// More objects than one page of any store holds (S3: 1000), spread so that a
// page ends within a directory.
func testListPages(t *testing.T, s storage.Store) {
	var keys []string
	for i := range 1203 {
		keys = append(keys, fmt.Sprintf("p/%d/%04d", i/400, i))
	}
	fill(t, s, append([]string{"o", "q"}, keys...))
	wantKeys(t, s, "p/", "", slices.Clone(keys))
	wantKeys(t, s, "p/", keys[101], slices.Clone(keys[102:]))
	wantKeys(t, s, "p/", keys[1100], slices.Clone(keys[1101:]))
	wantKeys(t, s, "", "", slices.Concat([]string{"o"}, keys, []string{"q"}))
}

func testListIsLazy(t *testing.T, s storage.Store) {
	fill(t, s, []string{"a", "b", "c"})
	seq := s.List(t.Context(), "", "")
	for range 2 { // the sequence can be ranged over again
		var got []string
		for info, err := range seq {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, info.Key)
			if len(got) == 2 {
				break // and be left early
			}
		}
		if !slices.Equal(got, []string{"a", "b"}) {
			t.Errorf("got %q", got)
		}
	}
	// What is ranged over later sees what was written in between.
	fill(t, s, []string{"d"})
	infos, err := storage.Collect(seq)
	if err != nil || len(infos) != 4 {
		t.Errorf("%d objects, error %v", len(infos), err)
	}
}

// List is consistent with writes that returned before it began, and a
// consumer may delete what it is handed.
func testListFollowsWrites(t *testing.T, s storage.Store) {
	var want []string
	for i := range 20 {
		key := fmt.Sprintf("d%d/k%02d", i/10, i)
		put(t, s, key, "x")
		want = append(want, key)
		wantKeys(t, s, "", "", slices.Clone(want))
	}
	for info, err := range s.List(t.Context(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Delete(t.Context(), info.Key); err != nil {
			t.Fatal(err)
		}
	}
	wantKeys(t, s, "", "", nil)
}
