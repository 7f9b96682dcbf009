package storeurl

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cardinalsin/storage"
	"cardinalsin/storage/storetest"
)

func TestParse(t *testing.T) {
	for url, want := range map[string]string{
		"./cardinal-data":    "file ./cardinal-data",
		"data":               "file data",
		"/var/lib/cardinal":  "file /var/lib/cardinal",
		"a b?c#d%20":         "file a b?c#d%20", // a path is taken as it is
		"./s3:/bucket":       "file ./s3:/bucket",
		"file:///a/b":        "file /a/b",
		"file://localhost/a": "file /a",
		"file:///a%20b":      "file /a b",
		"mem://":             "mem ",
		"s3://bucket":        "s3 bucket prefix= endpoint= region= path_style=false",
		"s3://bucket/":       "s3 bucket prefix= endpoint= region= path_style=false",
		"s3://bucket/a/b/":   "s3 bucket prefix=a/b endpoint= region= path_style=false",
		"s3://my.bucket-1/a%20b?region=eu-central-1":                               "s3 my.bucket-1 prefix=a b endpoint= region=eu-central-1 path_style=false",
		"s3://b/p?endpoint=http://127.0.0.1:7070&region=us-east-1&path_style=true": "s3 b prefix=p endpoint=http://127.0.0.1:7070 region=us-east-1 path_style=true",
		"s3://b?endpoint=https%3A%2F%2Fs3.example.org%2F":                          "s3 b prefix= endpoint=https://s3.example.org/ region= path_style=true",
		"s3://b?endpoint=https://s3.example.org&path_style=false":                  "s3 b prefix= endpoint=https://s3.example.org region= path_style=false",
	} {
		got, err := parse(url)
		if err != nil {
			t.Errorf("%q: %v", url, err)
			continue
		}
		text := fmt.Sprintf("%s %s", got.scheme, got.dir)
		if got.scheme == "s3" {
			text = fmt.Sprintf("s3 %s prefix=%s endpoint=%s region=%s path_style=%v", got.s3.Bucket, got.s3.Prefix, got.s3.Endpoint, got.s3.Region, got.s3.PathStyle)
		}
		if diff := cmp.Diff(want, text); diff != "" {
			t.Errorf("%q (-want +got):\n%s", url, diff)
		}
	}
}

func TestInvalid(t *testing.T) {
	for _, url := range []string{
		"", "a\x00b", "s3:bucket", "s3:/bucket", "S3:/bucket", "file:/dir", "mem:", "http:host",
		"http://host/", "gs://bucket", "://x", "S3A://bucket/x", "s3 ://b",
		"file://", "file://host/dir", "file://dir", "file:///a?x=1", "file:///a#b", "file:///a%00b",
		"mem://name", "mem:///", "mem://?x=1",
		"s3://", "s3:///prefix", "s3://b/a//b", "s3://b/../x", "s3://b/" + strings.Repeat("p", 200), "s3://b:80/p",
		"s3://b?regoin=x", "s3://b?region=", "s3://b?region=a&region=b", "s3://b?path_style=yes", "s3://b?endpoint=host:80",
		"s3://b?endpoint=ftp://host", "s3://b?endpoint=http://", "s3://b?endpoint=http://host/path", "s3://b?endpoint=http://host%3Fa=b",
		"s3://b#f", "s3://b#", "s3://b?region=%zz", "s3://b/%zz", "s3://b;x=y?a;b",
	} {
		if _, err := Open(t.Context(), url); !errors.Is(err, ErrInvalidURL) {
			t.Errorf("%q: %v", url, err)
		}
	}
}

func TestNoSecretInErrors(t *testing.T) {
	for _, url := range []string{
		"s3://key:hush@bucket/p", "s3://key:hush@bucket:%zz/p", "s3://b?endpoint=http://key:hush@host",
		"s3://b?endpoint=http://key:hush@host:%zz", "s3://key:hush@b\x7f", "file://key:hush@/x",
		"s3://key:hush/p", "s3://b?secret=hush", "s3://b?endpoint=http://key:hush/",
	} {
		_, err := Open(t.Context(), url)
		if !errors.Is(err, ErrInvalidURL) {
			t.Errorf("%q: %v", url, err)
		} else if strings.Contains(err.Error(), "hush") {
			t.Errorf("%q is repeated: %v", url, err)
		}
	}
}

func TestOpenFile(t *testing.T) {
	dir := t.TempDir()
	for _, url := range []string{dir, "file://" + dir} {
		s, err := Open(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		if path, ok := storage.LocalPath(s, "a/k"); !ok || path != filepath.Join(dir, "a", "k") {
			t.Errorf("%s: path %q, %v", url, path, ok)
		}
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), file); !errors.Is(err, storage.ErrNoStore) {
		t.Error(err)
	}
}

func TestOpenMem(t *testing.T) {
	a, err := Open(t.Context(), "mem://")
	if err != nil {
		t.Fatal(err)
	}
	b, err := Open(t.Context(), "mem://")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.PutIfAbsent(t.Context(), "k", nil); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Get(t.Context(), "k"); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("two stores are one: %v", err)
	}
}

// The whole way: URL, AWS chain, server.
func TestOpenS3(t *testing.T) {
	server := storetest.StartS3(t)
	for _, setting := range server.Env() {
		name, value, _ := strings.Cut(setting, "=")
		t.Setenv(name, value)
	}
	s, err := Open(t.Context(), server.StoreURL("a/b"))
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := s.(storage.Wrapper); !ok {
		t.Errorf("a remote store is not wrapped: %T", s)
	}
	if _, err := s.PutIfAbsent(t.Context(), "k", []byte("value")); err != nil {
		t.Fatal(err)
	}
	whole, err := Open(t.Context(), server.StoreURL(""))
	if err != nil {
		t.Fatal(err)
	}
	if data, _, err := whole.Get(t.Context(), "a/b/k"); err != nil || string(data) != "value" {
		t.Errorf("%q, %v", data, err)
	}
	missing, err := Open(t.Context(), strings.Replace(server.StoreURL("x"), "s3://"+server.Bucket, "s3://no-such-bucket", 1))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := missing.Get(t.Context(), "k"); !errors.Is(err, storage.ErrNoStore) {
		t.Errorf("missing bucket: %v", err)
	}
	t.Setenv("AWS_SECRET_ACCESS_KEY", "wrong")
	stranger, err := Open(t.Context(), server.StoreURL(""))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := stranger.Get(t.Context(), "k"); !errors.Is(err, storage.ErrPermission) {
		t.Errorf("wrong secret: %v", err)
	}
}
