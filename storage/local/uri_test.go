package local_test

import (
	"path/filepath"
	"testing"

	"cardinalsin/storage"
	"cardinalsin/storage/local"
	"cardinalsin/storage/meter"
)

// TestKeyOf: an absolute URI names an object of the store, or nothing: never
// one outside, and never another.
func TestKeyOf(t *testing.T) {
	dir := t.TempDir()
	store, err := local.New(dir, local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	at := filepath.ToSlash(dir)
	for _, c := range []struct{ uri, key string }{
		{"file:" + at + "/t/a%20b%25.parquet", "t/a b%.parquet"},
		{"file://" + at + "/t/a", "t/a"},
		{"file://localhost" + at + "/t/a", "t/a"},
		{"FILE:" + at + "/t/a", "t/a"},
		{at + "/t/a", "t/a"},
		{"file://elsewhere" + at + "/t/a", ""},
		{"file:" + at + "x/t/a", ""},
		{"file:" + at + "/../a", ""},
		{"file:" + at + "/%2E%2E/a", ""},
		{"file:" + at + "/", ""},
		{"file:" + at + "/%zz", ""},
		{"t/a", ""},
		{"s3://b/lake/x/t/a", ""},
	} {
		t.Run(c.uri, func(t *testing.T) {
			key, ok := storage.KeyOf(meter.New(store, meter.Options{}), c.uri)
			if ok != (c.key != "") || ok && key != c.key {
				t.Errorf("%q, %v, not %q", key, ok, c.key)
			}
		})
	}
}
