// Package storetest is the one conformance suite of storage.Store: every
// backend and every decorator passes it.
//
// It stands on storage only (and, for [StartS3], on internal/s3server)
// and tests what the contract promises, never how a backend does it.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cardinalsin/storage"
)

// Run tests the stores that open returns. Each call of open must return an
// empty store; cleaning up is open's task, by t.Cleanup.
func Run(t *testing.T, open func(t *testing.T) storage.Store) {
	for _, c := range []struct {
		name string
		test func(*testing.T, storage.Store)
	}{
		{"Absent", testAbsent},
		{"PutGet", testPutGet},
		{"PutOverwrites", testPutOverwrites},
		{"PutReadsFromTheStart", testPutReadsFromTheStart},
		{"PutIfAbsent", testPutIfAbsent},
		{"PutIfMatch", testPutIfMatch},
		{"ETagsAgree", testETagsAgree},
		{"Delete", testDelete},
		{"GetRange", testGetRange},
		{"BigObject", testBigObject},
		{"SlicesAreTheCallers", testSlices},
		{"InvalidKeys", testInvalidKeys},
		{"WeirdKeys", testWeirdKeys},
		{"ListOrder", testListOrder},
		{"ListStartAfter", testListStartAfter},
		{"ListPages", testListPages},
		{"ListIsLazyAndRepeatable", testListIsLazy},
		{"ListFollowsWrites", testListFollowsWrites},
		{"Clock", testClock},
		{"CancelledContext", testCancelled},
		{"RacePutIfAbsent", testRacePutIfAbsent},
		{"RacePutIfMatch", testRacePutIfMatch},
		{"RaceCounter", testRaceCounter},
		{"RaceDelete", testRaceDelete},
		{"PutsAreAtomic", testPutsAreAtomic},
		{"Probe", testProbe},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, open(t)) })
	}
}

func put(t *testing.T, s storage.Store, key, data string) storage.ObjectInfo {
	t.Helper()
	info, err := s.Put(t.Context(), key, bytes.NewReader([]byte(data)))
	if err != nil {
		t.Fatalf("put %q: %v", key, err)
	}
	return info
}

func get(t *testing.T, s storage.Store, key string) (string, storage.ObjectInfo) {
	t.Helper()
	data, info, err := s.Get(t.Context(), key)
	if err != nil {
		t.Fatalf("get %q: %v", key, err)
	}
	return string(data), info
}

func wantErr(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: error %v, want %v", what, err, want)
	}
}

func testAbsent(t *testing.T, s storage.Store) {
	ctx := t.Context()
	_, _, err := s.Get(ctx, "a/b")
	wantErr(t, "Get", err, storage.ErrNotFound)
	_, err = s.GetRange(ctx, "a/b", 0, 1)
	wantErr(t, "GetRange", err, storage.ErrNotFound)
	_, err = s.PutIfMatch(ctx, "a/b", []byte("x"), `"etag"`)
	wantErr(t, "PutIfMatch", err, storage.ErrPreconditionFailed)
	if err := s.Delete(ctx, "a/b"); err != nil {
		t.Errorf("Delete: %v", err)
	}
	wantKeys(t, s, "", "", nil)

	// A directory, where there are any, is no object; nor is what lies below
	// an object.
	put(t, s, "a/b/c", "x")
	for _, key := range []string{"a", "a/b", "a/b/c/d"} {
		_, _, err = s.Get(ctx, key)
		wantErr(t, "Get "+key, err, storage.ErrNotFound)
		_, err = s.GetRange(ctx, key, 0, 1)
		wantErr(t, "GetRange "+key, err, storage.ErrNotFound)
		if _, err = s.PutIfMatch(ctx, key, nil, `"etag"`); !errors.Is(err, storage.ErrInvalidKey) {
			wantErr(t, "PutIfMatch "+key, err, storage.ErrPreconditionFailed)
		}
		if err := s.Delete(ctx, key); err != nil {
			t.Errorf("Delete %s: %v", key, err)
		}
	}
	wantKeys(t, s, "", "", []string{"a/b/c"})
}

func testPutGet(t *testing.T, s storage.Store) {
	for _, data := range []string{"value", "", "\x00\xff\r\n"} {
		key := fmt.Sprintf("k/%d", len(data))
		before := storeNow(t, s)
		info := put(t, s, key, data)
		after := storeNow(t, s)
		got, read := get(t, s, key)
		if got != data {
			t.Errorf("%q came back as %q", data, got)
		}
		if info.Key != key || info.Size != int64(len(data)) || info.ETag == "" {
			t.Errorf("Put returned %+v", info)
		}
		if read.Key != info.Key || read.Size != info.Size || read.ETag != info.ETag {
			t.Errorf("Put returned %+v, Get %+v", info, read)
		}
		for _, at := range []time.Time{info.ModTime, read.ModTime} {
			// The clock and ModTime may each be whole seconds.
			if at.Before(before.Add(-2*time.Second)) || at.After(after.Add(2*time.Second)) {
				t.Errorf("ModTime %v is outside %v – %v", at, before, after)
			}
		}
	}
}

func testPutOverwrites(t *testing.T, s storage.Store) {
	first := put(t, s, "k", "a longer value")
	second := put(t, s, "k", "short")
	if first.ETag == second.ETag {
		t.Errorf("two states share the ETag %s", first.ETag)
	}
	if got, _ := get(t, s, "k"); got != "short" {
		t.Errorf("got %q", got)
	}
	_, err := s.PutIfMatch(t.Context(), "k", []byte("x"), first.ETag)
	wantErr(t, "PutIfMatch of the overwritten state", err, storage.ErrPreconditionFailed)
}

func testPutReadsFromTheStart(t *testing.T, s storage.Store) {
	body := bytes.NewReader([]byte("whole"))
	if _, err := body.Seek(3, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Put(t.Context(), "k", body); err != nil {
		t.Fatal(err)
	}
	if got, _ := get(t, s, "k"); got != "whole" {
		t.Errorf("got %q", got)
	}
}

func testPutIfAbsent(t *testing.T, s storage.Store) {
	ctx := t.Context()
	info, err := s.PutIfAbsent(ctx, "log/1", []byte("first"))
	if err != nil {
		t.Fatal(err)
	}
	if info.Key != "log/1" || info.Size != 5 || info.ETag == "" || info.ModTime.IsZero() {
		t.Errorf("returned %+v", info)
	}
	for _, data := range []string{"second", "first", ""} {
		_, err = s.PutIfAbsent(ctx, "log/1", []byte(data))
		wantErr(t, "second put", err, storage.ErrAlreadyExists)
	}
	if got, _ := get(t, s, "log/1"); got != "first" {
		t.Errorf("the loser changed the object to %q", got)
	}
	if err := s.Delete(ctx, "log/1"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.PutIfAbsent(ctx, "log/1", nil); err != nil {
		t.Errorf("after a delete: %v", err)
	}
	if got, _ := get(t, s, "log/1"); got != "" {
		t.Errorf("got %q", got)
	}
}

func testPutIfMatch(t *testing.T, s storage.Store) {
	ctx := t.Context()
	first := put(t, s, "pin", "one")
	second, err := s.PutIfMatch(ctx, "pin", []byte("two!"), first.ETag)
	if err != nil {
		t.Fatal(err)
	}
	if second.Key != "pin" || second.Size != 4 || second.ETag == "" || second.ETag == first.ETag || second.ModTime.IsZero() {
		t.Errorf("returned %+v after %+v", second, first)
	}
	// An empty ETag must not mean "any", and * must not either.
	for _, etag := range []storage.ETag{first.ETag, "", "*", `"*"`, `"no such"`} {
		_, err = s.PutIfMatch(ctx, "pin", []byte("lost"), etag)
		wantErr(t, fmt.Sprintf("ETag %q", etag), err, storage.ErrPreconditionFailed)
		if got, _ := get(t, s, "pin"); got != "two!" {
			t.Fatalf("ETag %q: the loser changed the object to %q", etag, got)
		}
	}
	if _, err := s.PutIfMatch(ctx, "pin", []byte("three"), second.ETag); err != nil {
		t.Error(err)
	}
	if err := s.Delete(ctx, "pin"); err != nil {
		t.Fatal(err)
	}
	_, err = s.PutIfMatch(ctx, "pin", []byte("lost"), second.ETag)
	wantErr(t, "after a delete", err, storage.ErrPreconditionFailed)
	_, _, err = s.Get(ctx, "pin")
	wantErr(t, "Get after a delete", err, storage.ErrNotFound)
}

// An ETag is the same by whichever call it is learnt, and good for a
// PutIfMatch.
func testETagsAgree(t *testing.T, s storage.Store) {
	ctx := t.Context()
	written := put(t, s, "d/k", "one")
	for i := range 3 {
		_, read := get(t, s, "d/k")
		infos, err := storage.Collect(s.List(ctx, "d/", ""))
		if err != nil || len(infos) != 1 {
			t.Fatalf("%d objects, error %v", len(infos), err)
		}
		listed := infos[0]
		if written.ETag != read.ETag || read.ETag != listed.ETag {
			t.Fatalf("write %d: ETag %s by the write, %s by Get, %s by List", i, written.ETag, read.ETag, listed.ETag)
		}
		if listed.Size != read.Size || !listed.ModTime.Truncate(time.Second).Equal(read.ModTime.Truncate(time.Second)) {
			t.Errorf("Get says %+v, List %+v", read, listed)
		}
		written, err = s.PutIfMatch(ctx, "d/k", fmt.Appendf(nil, "write %d", i), listed.ETag)
		if err != nil {
			t.Fatal(err)
		}
	}
}

func testDelete(t *testing.T, s storage.Store) {
	ctx := t.Context()
	put(t, s, "a/b", "x")
	put(t, s, "a/c", "y")
	for range 2 {
		if err := s.Delete(ctx, "a/b"); err != nil {
			t.Fatal(err)
		}
		_, _, err := s.Get(ctx, "a/b")
		wantErr(t, "Get", err, storage.ErrNotFound)
	}
	wantKeys(t, s, "", "", []string{"a/c"})
	if err := s.Delete(ctx, "a/c"); err != nil {
		t.Fatal(err)
	}
	wantKeys(t, s, "", "", nil)
	put(t, s, "a/b", "again")
	wantKeys(t, s, "", "", []string{"a/b"})
}

func testGetRange(t *testing.T, s storage.Store) {
	const data = "0123456789"
	put(t, s, "k", data)
	put(t, s, "empty", "")
	for _, c := range []struct {
		key            string
		offset, length int64
		want           string
		err            error
	}{
		{"k", 0, 10, data, nil},
		{"k", 0, 1, "0", nil},
		{"k", 3, 4, "3456", nil},
		{"k", 9, 1, "9", nil},
		{"k", 9, 2, "", storage.ErrInvalidRange},
		{"k", 10, 1, "", storage.ErrInvalidRange},
		{"k", 0, 11, "", storage.ErrInvalidRange},
		{"k", 1 << 40, 1, "", storage.ErrInvalidRange},
		{"k", 1, 1<<63 - 1, "", storage.ErrInvalidRange},
		{"k", 1<<63 - 1, 1<<63 - 1, "", storage.ErrInvalidRange},
		{"k", 0, 0, "", storage.ErrInvalidRange},
		{"k", 3, -1, "", storage.ErrInvalidRange},
		{"k", -1, 1, "", storage.ErrInvalidRange},
		{"empty", 0, 1, "", storage.ErrInvalidRange},
	} {
		got, err := s.GetRange(t.Context(), c.key, c.offset, c.length)
		if string(got) != c.want || !errors.Is(err, c.err) {
			t.Errorf("GetRange(%s, %d, %d) = %q, %v; want %q, %v", c.key, c.offset, c.length, got, err, c.want, c.err)
		}
	}
}

func testBigObject(t *testing.T, s storage.Store) {
	ctx := t.Context()
	const size = 9<<20 + 7 // above the part sizes and buffers on the way
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(i * 2654435761 >> 13)
	}
	info, err := s.Put(ctx, "big", bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if info.Size != size {
		t.Errorf("size %d", info.Size)
	}
	got, _, err := s.Get(ctx, "big")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, data) {
		t.Errorf("%d bytes came back, not the same", len(got))
	}
	part, err := s.GetRange(ctx, "big", size-5<<20, 5<<20)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(part, data[size-5<<20:]) {
		t.Error("the range is not the same")
	}
	if _, err := s.PutIfAbsent(ctx, "big2", data); err != nil {
		t.Fatal(err)
	}
	if got, _ := get(t, s, "big2"); got != string(data) {
		t.Error("put-if-absent: not the same")
	}
}

func testSlices(t *testing.T, s storage.Store) {
	ctx := t.Context()
	in := []byte("value")
	info, err := s.PutIfAbsent(ctx, "k", in)
	if err != nil {
		t.Fatal(err)
	}
	copy(in, "?????")
	out, _, err := s.Get(ctx, "k")
	if err != nil {
		t.Fatal(err)
	}
	copy(out, "?????")
	part, err := s.GetRange(ctx, "k", 0, 5)
	if err != nil || string(part) != "value" {
		t.Errorf("%q, %v", part, err)
	}
	copy(part, "?????")
	next := []byte("other")
	if _, err := s.PutIfMatch(ctx, "k", next, info.ETag); err != nil {
		t.Fatal(err)
	}
	copy(next, "?????")
	if got, _ := get(t, s, "k"); got != "other" {
		t.Errorf("got %q", got)
	}
}

func testInvalidKeys(t *testing.T, s storage.Store) {
	ctx := t.Context()
	for _, key := range []string{"", "/a", "a/", "a//b", "..", "../a", "a/../../b", "./a", "a\x00b", "a\nb", "\xff"} {
		_, _, err := s.Get(ctx, key)
		wantErr(t, fmt.Sprintf("Get %q", key), err, storage.ErrInvalidKey)
		_, err = s.GetRange(ctx, key, 0, 1)
		wantErr(t, fmt.Sprintf("GetRange %q", key), err, storage.ErrInvalidKey)
		_, err = s.Put(ctx, key, bytes.NewReader(nil))
		wantErr(t, fmt.Sprintf("Put %q", key), err, storage.ErrInvalidKey)
		_, err = s.PutIfAbsent(ctx, key, nil)
		wantErr(t, fmt.Sprintf("PutIfAbsent %q", key), err, storage.ErrInvalidKey)
		_, err = s.PutIfMatch(ctx, key, nil, `"etag"`)
		wantErr(t, fmt.Sprintf("PutIfMatch %q", key), err, storage.ErrInvalidKey)
		wantErr(t, fmt.Sprintf("Delete %q", key), s.Delete(ctx, key), storage.ErrInvalidKey)
	}
	put(t, s, "a/b", "x")
	// No key begins with these, so they list nothing.
	for _, prefix := range []string{"/", "../", "./", "a/../", "a//", "a\x00", "\xff", "a/b/../b"} {
		wantKeys(t, s, prefix, "", nil)
	}
}

func testClock(t *testing.T, s storage.Store) {
	first := storeNow(t, s)
	if skew := time.Since(first).Abs(); skew > time.Minute {
		t.Errorf("the store's clock is %v away from ours", skew)
	}
	put(t, s, "k", "x")
	time.Sleep(20 * time.Millisecond)
	second := storeNow(t, s)
	if second.Before(first.Add(-time.Second)) {
		t.Errorf("the clock went back from %v to %v", first, second)
	}
}

func storeNow(t *testing.T, s storage.Store) time.Time {
	t.Helper()
	now, err := s.Now(t.Context())
	if err != nil {
		t.Fatalf("Now: %v", err)
	}
	return now
}

// A store that passes this suite passes the probe.
func testProbe(t *testing.T, s storage.Store) {
	report, err := storage.Probe(t.Context(), s, "t/table/")
	if err != nil {
		t.Error(err)
	}
	if report.Requests > 150 {
		t.Errorf("%d requests", report.Requests)
	}
	for _, r := range report.Properties {
		t.Logf("%-16s held=%v: %s", r.Property, r.Held, r.Detail)
	}
	wantKeys(t, s, "", "", nil)
}

// A context that has ended before the call: the call fails by the context's
// error, and nothing is written.
func testCancelled(t *testing.T, s storage.Store) {
	etag := put(t, s, "k", "value").ETag
	ctx, cancel := context.WithCancel(t.Context())
	cancel()

	_, _, err := s.Get(ctx, "k")
	wantErr(t, "Get", err, context.Canceled)
	_, err = s.GetRange(ctx, "k", 0, 1)
	wantErr(t, "GetRange", err, context.Canceled)
	_, err = s.Put(ctx, "new", bytes.NewReader([]byte("x")))
	wantErr(t, "Put", err, context.Canceled)
	_, err = s.PutIfAbsent(ctx, "new", []byte("x"))
	wantErr(t, "PutIfAbsent", err, context.Canceled)
	_, err = s.PutIfMatch(ctx, "k", []byte("x"), etag)
	wantErr(t, "PutIfMatch", err, context.Canceled)
	wantErr(t, "Delete", s.Delete(ctx, "k"), context.Canceled)
	_, err = storage.Collect(s.List(ctx, "", ""))
	wantErr(t, "List", err, context.Canceled)

	wantKeys(t, s, "", "", []string{"k"})
	if got, _ := get(t, s, "k"); got != "value" {
		t.Errorf("got %q", got)
	}
}

// wantKeys compares a whole listing with the keys it should have.
func wantKeys(t *testing.T, s storage.Store, prefix, startAfter string, want []string) {
	t.Helper()
	infos, err := storage.Collect(s.List(t.Context(), prefix, startAfter))
	if err != nil {
		t.Errorf("List(%q, %q): %v", prefix, startAfter, err)
		return
	}
	var got []string
	for _, info := range infos {
		got = append(got, info.Key)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("List(%q, %q) (-want +got):\n%s", prefix, startAfter, diff)
	}
}
