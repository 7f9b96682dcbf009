package s3_test

import (
	"testing"

	"github.com/aws/aws-sdk-go-v2/credentials"

	"cardinalsin/storage"
	"cardinalsin/storage/meter"
	"cardinalsin/storage/s3"
)

// TestKeyOf: an absolute URI names an object of the store, or nothing.
func TestKeyOf(t *testing.T) {
	store, err := s3.Open(t.Context(), s3.Options{
		Bucket: "b", Prefix: "lake/x", Endpoint: "http://127.0.0.1:1", Region: "r", Credentials: credentials.NewStaticCredentialsProvider("k", "s", ""),
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ uri, key string }{
		{"s3://b/lake/x/t/a%20b", "t/a b"},
		{"s3a://b/lake/x/t/a", "t/a"},
		{"s3://b/lake/y/t/a", ""},
		{"s3://b/lake/xy", ""},
		{"s3://c/lake/x/t/a", ""},
		{"file:///lake/x/t/a", ""},
		{"gs://b/lake/x/t/a", ""},
	} {
		t.Run(c.uri, func(t *testing.T) {
			key, ok := storage.KeyOf(meter.New(store, meter.Options{}), c.uri)
			if ok != (c.key != "") || ok && key != c.key {
				t.Errorf("%q, %v, not %q", key, ok, c.key)
			}
		})
	}
}
