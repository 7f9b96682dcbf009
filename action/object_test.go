package action

import (
	"encoding/json"
	"errors"
	"testing"

	"pgregory.net/rapid"
)

func TestObjectUnmarshal(t *testing.T) {
	for text, want := range map[string]Object{`null`: "", `{}`: "", `{ }`: "", `{"a": "b"}`: `{"a": "b"}`} {
		o := Object("before")
		if err := o.UnmarshalJSON([]byte(text)); err != nil || o != want {
			t.Errorf("%s: got %q, %v", text, o, err)
		}
	}
	for _, text := range []string{``, `{}}`, `{"a":"b"} x`, `{"a":1}`, `[]`} {
		var o Object
		if err := o.UnmarshalJSON([]byte(text)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// checkObject compares Map and Get with encoding/json.
func checkObject(t interface {
	Helper()
	Fatalf(string, ...any)
}, text string) {
	t.Helper()
	var want map[string]*string
	wantErr := json.Unmarshal([]byte(text), &want)
	if text == "" {
		wantErr = nil
	}
	got, err := Object(text).Map()
	if (err == nil) != (wantErr == nil) || err != nil && !errors.Is(err, ErrCorrupt) {
		t.Fatalf("%q: got error %v, encoding/json has %v", text, err, wantErr)
	}
	if err != nil {
		if v, ok := Object(text).Get("a"); v != "" || ok {
			t.Fatalf("%q: got %q of a damaged object", text, v)
		}
		return
	}
	if len(want) != len(got) {
		t.Fatalf("%q: got %v, want %v", text, got, want)
	}
	for k, w := range want {
		g, in := got[k]
		v, ok := Object(text).Get(k)
		if !in || (g == nil) != (w == nil) || w != nil && (*g != *w || v != *w) || ok != (w != nil) {
			t.Fatalf("%q: member %q: got %v, Get %q, %v; want %v", text, k, g, v, ok, w)
		}
	}
	if _, ok := Object(text).Get("absent"); ok != (want["absent"] != nil) {
		t.Fatalf("%q has what it has not", text)
	}
}

var objects = []string{``, `null`, `{}`, ` { } `, `{"a":"b"}`, `{"a" : "b" , "c":null}`, `{"a":"b","a":null}`, `{"a":null,"a":"b"}`, `{"\u0061":"\n\ud83d\ude00"}`,
	`{"a":1}`, `{"b":1}`, `{"a":{}}`, `{"b":[]}`, `{"a":"b"`, `{"a":"b"}}`, `{"a":"b",}`, `{"":""}`, `[]`, `"x"`, `{"a"}`, `{"b":nul}`, "{\"a\xff\":\"\xff\"}", `{"b":"\x"}`, `{"a":"b"} x`}

func TestObject(t *testing.T) {
	for _, text := range objects {
		checkObject(t, text)
	}
	rapid.Check(t, func(t *rapid.T) {
		checkObject(t, string(ObjectOf(rapid.MapOf(rapid.String(), rapid.String()).Draw(t, "members"))))
	})
}

func FuzzObject(f *testing.F) {
	for _, text := range objects {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) { checkObject(t, text) })
}
