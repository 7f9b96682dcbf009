package storage_test

import (
	"errors"
	"io/fs"
	"path"
	"strings"
	"testing"
	"unicode/utf8"

	"cardinalsin/storage"
)

var validKeys = []string{
	"a", "a/b", "_delta_log/00000000000000000000.json", "date=2026-11-22/shard=0/x.parquet",
	"a b", "a+b&c=d?e#f%2F", "ä/日本/🙂", "...", ".a", "a..b", "-", "~", "*", "\\", `"'<>`,
	strings.Repeat("a", storage.MaxKeyElementBytes),
	strings.Repeat("ab/", storage.MaxKeyBytes/3-1) + "abc",
	"\u00a0", "\ufffd",
}

var invalidKeys = []string{
	"", "/", "/a", "a/", "a//b", ".", "..", "./a", "a/.", "a/..", "../a", "a/../b", "a/./b",
	"\x00", "a\nb", "\x1f", "\x7f", "\u0085", "a/\ufffe", "\uffff", "\xff", "a/\xc3", "\xed\xa0\x80",
	strings.Repeat("a", storage.MaxKeyElementBytes+1),
	"a/" + strings.Repeat("b", storage.MaxKeyElementBytes+1),
	strings.Repeat("ab/", storage.MaxKeyBytes/3) + "a", // one byte too long
}

func TestValidateKey(t *testing.T) {
	for _, key := range validKeys {
		if err := storage.ValidateKey(key); err != nil {
			t.Errorf("%q: %v", key, err)
		}
	}
	for _, key := range invalidKeys {
		if err := storage.ValidateKey(key); !errors.Is(err, storage.ErrInvalidKey) {
			t.Errorf("%q: %v, want ErrInvalidKey", key, err)
		}
	}
}

// What is accepted is a path below its root by every other measure too, and
// what is refused breaks one of the rules.
func FuzzValidateKey(f *testing.F) {
	for _, key := range append(validKeys, invalidKeys...) {
		f.Add(key)
	}
	f.Fuzz(func(t *testing.T, key string) {
		err := storage.ValidateKey(key)
		if err != nil && !errors.Is(err, storage.ErrInvalidKey) {
			t.Fatalf("%q: %v is not typed", key, err)
		}
		plain := fs.ValidPath(key) && key != "." && utf8.ValidString(key) && path.Clean("/"+key) == "/"+key
		if err == nil && !plain {
			t.Fatalf("%q is accepted", key)
		}
		short := len(key) <= storage.MaxKeyElementBytes
		printable := !strings.ContainsFunc(key, func(r rune) bool {
			return r < 0x20 || (r >= 0x7f && r < 0xa0) || r == 0xfffe || r == 0xffff
		})
		if err != nil && plain && short && printable {
			t.Fatalf("%q is refused: %v", key, err)
		}
	})
}

type pathStore struct{ storage.Store }

func (pathStore) Path(key string) string { return "/root/" + key }

type wrapper struct{ storage.Store }

func (w wrapper) Unwrap() storage.Store { return w.Store }

func TestLocalPath(t *testing.T) {
	for _, c := range []struct {
		name  string
		store storage.Store
		want  string
		ok    bool
	}{
		{"bare", pathStore{}, "/root/k", true},
		{"twice wrapped", wrapper{wrapper{pathStore{}}}, "/root/k", true},
		{"no files below", wrapper{struct{ storage.Store }{}}, "", false},
		{"wrapper of nothing", wrapper{}, "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, ok := storage.LocalPath(c.store, "k")
			if got != c.want || ok != c.ok {
				t.Errorf("%q, %v; want %q, %v", got, ok, c.want, c.ok)
			}
		})
	}
}

func TestCollect(t *testing.T) {
	broken := errors.New("broken")
	seq := func(yield func(storage.ObjectInfo, error) bool) {
		_ = yield(storage.ObjectInfo{Key: "a"}, nil) && yield(storage.ObjectInfo{}, broken)
	}
	got, err := storage.Collect(seq)
	if got != nil || !errors.Is(err, broken) {
		t.Errorf("%v, %v: part of a listing must not pass for the whole", got, err)
	}
}

func TestWrites(t *testing.T) {
	for op, want := range map[storage.Op]bool{
		storage.OpGet: false, storage.OpGetRange: false, storage.OpList: false, storage.OpNow: false,
		storage.OpPut: true, storage.OpPutIfAbsent: true, storage.OpPutIfMatch: true, storage.OpDelete: true,
	} {
		if got := op.Writes(); got != want {
			t.Errorf("%s: %v", op, got)
		}
	}
}
