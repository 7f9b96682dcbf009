package main

import (
	"bytes"
	"crypto/md5"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"cardinalsin/cmd/internal/cli"
)

// careless is an S3 server that ignores If-None-Match and If-Match, as some
// real ones do, and is right in everything else that the probe looks at.
type careless struct {
	mu      sync.Mutex // guards objects
	objects map[string][]byte
}

func (s *careless) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, "/bucket"), "/")
	etag := func(data []byte) string { return fmt.Sprintf(`"%x"`, md5.Sum(data)) }
	switch {
	case r.Method == http.MethodPut:
		data, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		s.objects[key] = data
		w.Header().Set("ETag", etag(data))
	case r.Method == http.MethodDelete:
		delete(s.objects, key)
		w.WriteHeader(http.StatusNoContent)
	case key == "" && r.URL.Query().Get("list-type") == "2":
		s.list(w, r.URL.Query().Get("prefix"), r.URL.Query().Get("start-after"))
	default:
		data, ok := s.objects[key]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `<Error><Code>NoSuchKey</Code></Error>`)
			return
		}
		w.Header().Set("ETag", etag(data))
		http.ServeContent(w, r, "", time.Now().UTC().Truncate(time.Second), bytes.NewReader(data))
	}
}

func (s *careless) list(w http.ResponseWriter, prefix, after string) {
	type object struct {
		Key, ETag    string
		Size         int
		LastModified time.Time
	}
	result := struct {
		XMLName  xml.Name `xml:"ListBucketResult"`
		Name     string
		Prefix   string
		KeyCount int
		Contents []object
	}{Name: "bucket", Prefix: prefix}
	for k, data := range s.objects {
		if strings.HasPrefix(k, prefix) && k > after {
			result.Contents = append(result.Contents, object{k, fmt.Sprintf(`"%x"`, md5.Sum(data)), len(data), time.Now().UTC()})
		}
	}
	sort.Slice(result.Contents, func(i, j int) bool { return result.Contents[i].Key < result.Contents[j].Key })
	result.KeyCount = len(result.Contents)
	w.Header().Set("Content-Type", "application/xml")
	_ = xml.NewEncoder(w).Encode(result)
}

// A store that ignores the condition of a conditional put is refused by the
// name of the property with exit 13, by the probe and by a server; nothing of
// a table is written to it.
func TestCarelessStoreIsRefused(t *testing.T) {
	store := &careless{objects: map[string][]byte{}}
	srv := httptest.NewServer(store)
	defer srv.Close()
	t.Setenv("AWS_ACCESS_KEY_ID", "key")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	url := "s3://bucket/?endpoint=" + srv.URL + "&region=us-east-1&path_style=true"
	for _, args := range [][]string{
		{"cardinal", "probe", "--store", url},
		{"cardinal", "server", "--store", url, "--wal-dir", t.TempDir(), "--http", "127.0.0.1:0", "--flight-sql", ""},
	} {
		t.Run(args[1], func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			if code := run(args, strings.NewReader(""), &stdout, &stderr); code != cli.Refused {
				t.Fatalf("exit %d: %s", code, &stderr)
			}
			if !strings.Contains(stderr.String(), "put-if-absent") {
				t.Errorf("the property is not named: %s", &stderr)
			}
		})
	}
	for k := range store.objects {
		if strings.Contains(k, "_delta_log") {
			t.Errorf("%s was written to a store that was refused", k)
		}
	}
}
