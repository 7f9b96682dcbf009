package local

import (
	"path/filepath"
	"strings"

	"cardinalsin/storage"
)

// KeyOf implements storage.URIStore.
func (s *Store) KeyOf(uri string) (key string, ok bool) {
	scheme, host, path, ok := storage.SplitURI(uri)
	if !ok || scheme != "file" || host != "" && host != "localhost" {
		return "", false
	}
	dir := filepath.ToSlash(s.dir)
	return strings.CutPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}
