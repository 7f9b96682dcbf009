package s3

import (
	"strings"

	"cardinalsin/storage"
)

// KeyOf implements storage.URIStore. Hadoop's names for the scheme are taken
// too. The endpoint is no part of a URI: the bucket's name decides.
func (s *Store) KeyOf(uri string) (key string, ok bool) {
	scheme, bucket, path, ok := storage.SplitURI(uri)
	if !ok || scheme != "s3" && scheme != "s3a" && scheme != "s3n" || bucket != s.bucket {
		return "", false
	}
	return strings.CutPrefix(path, "/"+s.prefix)
}
