package mem_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cardinalsin/storage"
	"cardinalsin/storage/mem"
)

func TestConditionalPuts(t *testing.T) {
	ctx := context.Background()
	s := mem.New(mem.Options{})

	first, err := s.PutIfAbsent(ctx, "a", []byte("one"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.PutIfAbsent(ctx, "a", []byte("two")); !errors.Is(err, storage.ErrAlreadyExists) {
		t.Errorf("second PutIfAbsent: %v", err)
	}
	second, err := s.PutIfMatch(ctx, "a", []byte("one"), first.ETag)
	if err != nil {
		t.Fatal(err)
	}
	if second.ETag == first.ETag {
		t.Errorf("a write of equal bytes kept the ETag %s", first.ETag)
	}
	for _, etag := range []storage.ETag{first.ETag, "", "*"} {
		if _, err := s.PutIfMatch(ctx, "a", []byte("x"), etag); !errors.Is(err, storage.ErrPreconditionFailed) {
			t.Errorf("PutIfMatch(%q): %v", etag, err)
		}
	}
	if _, err := s.PutIfMatch(ctx, "gone", []byte("x"), second.ETag); !errors.Is(err, storage.ErrPreconditionFailed) {
		t.Errorf("PutIfMatch of an absent object: %v", err)
	}
}

func TestContentETags(t *testing.T) {
	ctx := context.Background()
	s := mem.New(mem.Options{ContentETags: true})
	a, err := s.PutIfAbsent(ctx, "k", []byte("one"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.PutIfMatch(ctx, "k", []byte("one"), a.ETag)
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.PutIfMatch(ctx, "k", []byte("two"), b.ETag)
	if err != nil {
		t.Fatal(err)
	}
	if a.ETag != b.ETag || b.ETag == c.ETag {
		t.Errorf("ETags %s, %s, %s", a.ETag, b.ETag, c.ETag)
	}
}

func TestSlicesAreCopied(t *testing.T) {
	ctx := context.Background()
	s := mem.New(mem.Options{})
	in := []byte("abc")
	if _, err := s.PutIfAbsent(ctx, "k", in); err != nil {
		t.Fatal(err)
	}
	in[0] = 'X'
	out, _, err := s.Get(ctx, "k")
	if err != nil {
		t.Fatal(err)
	}
	out[1] = 'X'
	part, err := s.GetRange(ctx, "k", 0, 3)
	if err != nil {
		t.Fatal(err)
	}
	if string(part) != "abc" {
		t.Errorf("stored bytes changed to %q", part)
	}
}

func TestListPages(t *testing.T) {
	ctx := context.Background()
	s := mem.New(mem.Options{})
	var want []string
	for i := range 2500 {
		key := fmt.Sprintf("p/%05d", i)
		want = append(want, key)
		if _, err := s.Put(ctx, key, strings.NewReader("x")); err != nil {
			t.Fatal(err)
		}
	}
	for _, other := range []string{"a", "p", "p-", "p0", "q"} {
		if _, err := s.Put(ctx, other, strings.NewReader("x")); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		startAfter string
		skip       int
	}{{"", 0}, {"a", 0}, {"p/00000", 1}, {"p/01233x", 1234}, {"p/02499", 2500}, {"q", 2500}} {
		infos, err := storage.Collect(s.List(ctx, "p/", c.startAfter))
		if err != nil {
			t.Fatal(err)
		}
		got := []string{}
		for _, info := range infos {
			got = append(got, info.Key)
		}
		if diff := cmp.Diff(want[c.skip:], got); diff != "" {
			t.Errorf("start after %q (-want +got):\n%s", c.startAfter, diff)
		}
	}
}

func TestInjectedClock(t *testing.T) {
	ctx := context.Background()
	at := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	s := mem.New(mem.Options{Now: func() time.Time { return at }})
	if _, err := s.Put(ctx, "k", strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	at = at.Add(time.Hour)
	now, err := s.Now(ctx)
	if err != nil {
		t.Fatal(err)
	}
	_, info, err := s.Get(ctx, "k")
	if err != nil {
		t.Fatal(err)
	}
	if age := now.Sub(info.ModTime); age != time.Hour {
		t.Errorf("age %v, want 1h", age)
	}
}
