package storage

import (
	"net/url"
	"strings"
)

// URIStore is implemented by backends whose objects have absolute URIs.
type URIStore interface {
	// KeyOf returns the key of the object at an absolute URI, percent-encoded
	// by RFC 2396; ok is false where that is not in the store.
	KeyOf(uri string) (key string, ok bool)
}

// KeyOf returns the key of the object at an absolute URI if the store, or a
// store it decorates, knows such URIs and the object lies in it.
func KeyOf(s Store, uri string) (key string, ok bool) {
	for s != nil {
		if u, ok := s.(URIStore); ok {
			key, ok := u.KeyOf(uri)
			return key, ok && ValidateKey(key) == nil
		}
		w, ok := s.(Wrapper)
		if !ok {
			return "", false
		}
		s = w.Unwrap()
	}
	return "", false
}

// SplitURI takes an absolute URI apart: file:/x, file:///x and /x have no
// authority. ok is false for what is none.
func SplitURI(uri string) (scheme, authority, path string, ok bool) {
	if strings.HasPrefix(uri, "/") {
		scheme, path = "file", uri
	} else if scheme, path, ok = strings.Cut(uri, ":"); !ok || !strings.HasPrefix(path, "/") {
		return "", "", "", false
	} else if rest, has := strings.CutPrefix(path, "//"); has {
		authority, path, _ = strings.Cut(rest, "/")
		path = "/" + path
	}
	path, err := url.PathUnescape(path)
	return strings.ToLower(scheme), authority, path, err == nil
}
