// Package storeurl opens a store by its URL, as users write it.
//
// It stands above the backends, and is what commands and tests call:
//
//	DIR                                      a directory; also a relative path
//	file:///DIR                              the same
//	mem://                                   a new store in memory, for tests
//	s3://BUCKET[/PREFIX][?endpoint=URL][&region=NAME][&path_style=BOOL]
//
// An S3 store is wrapped in storage/retry. Its path_style is true by default
// where an endpoint is given, since a server's address seldom has a name for
// each bucket; its credentials come from the AWS chain.
//
// It must never take a URL with credentials in it, nor repeat one in an error:
// URLs stand on command lines and in logs.
package storeurl

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"cardinalsin/storage"
	"cardinalsin/storage/local"
	"cardinalsin/storage/mem"
	"cardinalsin/storage/retry"
	"cardinalsin/storage/s3"
)

// ErrInvalidURL: the URL names no store.
var ErrInvalidURL = errors.New("invalid store URL")

// Open opens the store. It makes no request to a remote store, and creates no
// directory. Errors: ErrInvalidURL, storage.ErrNoStore.
func Open(ctx context.Context, rawURL string) (storage.Store, error) {
	t, err := parse(rawURL)
	if err != nil {
		return nil, err
	}
	switch t.scheme {
	case "mem":
		return mem.New(mem.Options{}), nil
	case "file":
		return openLocal(t.dir)
	}
	store, err := s3.Open(ctx, t.s3)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	return retry.New(store, retry.Options{}), nil
}

func openLocal(dir string) (storage.Store, error) {
	store, err := local.New(dir, local.Options{})
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	return store, nil
}

// target is what a URL names.
type target struct {
	scheme string // file, mem or s3
	dir    string
	s3     s3.Options
}

// mistyped matches a path that was meant to be a URL, such as s3:/bucket. As
// a path it would silently become a new directory.
var mistyped = regexp.MustCompile(`^(?i:s3|s3a|file|mem|gs|az|https?):`)

func parse(rawURL string) (target, error) {
	if !strings.Contains(rawURL, "://") {
		switch {
		case rawURL == "":
			return target{}, fmt.Errorf("%w: it is empty", ErrInvalidURL)
		case strings.ContainsRune(rawURL, 0):
			return target{}, fmt.Errorf("%w: it contains a zero byte", ErrInvalidURL)
		case mistyped.MatchString(rawURL):
			return target{}, fmt.Errorf("%w: after the scheme comes :// (for a directory of that name write ./%s)", ErrInvalidURL, rawURL)
		}
		return target{scheme: "file", dir: rawURL}, nil
	}
	u, err := url.Parse(rawURL)
	if err != nil {
		// The parser's error repeats the URL or parts of it, such as a
		// password taken for a port. Of its reasons only this one is short.
		var escape url.EscapeError
		if errors.As(err, &escape) {
			return target{}, fmt.Errorf("%w: %w", ErrInvalidURL, escape)
		}
		return target{}, fmt.Errorf("%w: it is not of the form scheme://host/path?name=value", ErrInvalidURL)
	}
	switch {
	case u.User != nil:
		return target{}, fmt.Errorf("%w: credentials do not belong into it; set them in the environment", ErrInvalidURL)
	case u.Fragment != "" || strings.Contains(rawURL, "#"):
		return target{}, fmt.Errorf("%w: it has a fragment (#…)", ErrInvalidURL)
	case u.Opaque != "":
		return target{}, fmt.Errorf("%w: after the scheme comes ://", ErrInvalidURL)
	}
	switch u.Scheme {
	case "file":
		return parseFile(u)
	case "mem":
		return parseMem(u)
	case "s3":
		return parseS3(u)
	}
	return target{}, fmt.Errorf("%w: scheme %q is not file, s3 or mem", ErrInvalidURL, u.Scheme)
}

func parseFile(u *url.URL) (target, error) {
	if _, err := parameters(u); err != nil {
		return target{}, err
	}
	if u.Host != "" && u.Host != "localhost" {
		return target{}, fmt.Errorf("%w: the directory of a file URL begins with a third slash: file:///%s%s", ErrInvalidURL, u.Host, u.Path)
	}
	if u.Path == "" || strings.ContainsRune(u.Path, 0) {
		return target{}, fmt.Errorf("%w: it names no directory", ErrInvalidURL)
	}
	return target{scheme: "file", dir: u.Path}, nil
}

func parseMem(u *url.URL) (target, error) {
	if _, err := parameters(u); err != nil {
		return target{}, err
	}
	if u.Host != "" || u.Path != "" {
		return target{}, fmt.Errorf("%w: a store in memory has no name: mem://", ErrInvalidURL)
	}
	return target{scheme: "mem"}, nil
}

func parseS3(u *url.URL) (target, error) {
	query, err := parameters(u, "endpoint", "region", "path_style")
	if err != nil {
		return target{}, err
	}
	o := s3.Options{
		Bucket:   u.Host,
		Prefix:   strings.Trim(u.Path, "/"),
		Endpoint: query["endpoint"],
		Region:   query["region"],
	}
	if u.Port() != "" {
		return target{}, fmt.Errorf("%w: a bucket has no port; the server belongs into endpoint=", ErrInvalidURL)
	}
	if o.Endpoint != "" {
		if err := checkEndpoint(o.Endpoint); err != nil {
			return target{}, err
		}
		o.PathStyle = true
	}
	if style, ok := query["path_style"]; ok {
		if o.PathStyle, err = strconv.ParseBool(style); err != nil {
			return target{}, fmt.Errorf("%w: path_style is %q, not true or false", ErrInvalidURL, style)
		}
	}
	if err := o.Validate(); err != nil {
		return target{}, fmt.Errorf("%w: %w", ErrInvalidURL, err)
	}
	return target{scheme: "s3", s3: o}, nil
}

func checkEndpoint(endpoint string) error {
	u, err := url.Parse(endpoint)
	switch {
	case err != nil:
		return fmt.Errorf("%w: endpoint is no URL", ErrInvalidURL)
	case u.User != nil:
		return fmt.Errorf("%w: credentials do not belong into the endpoint; set them in the environment", ErrInvalidURL)
	case (u.Scheme != "http" && u.Scheme != "https") || u.Host == "":
		return fmt.Errorf("%w: endpoint is not http://… or https://…", ErrInvalidURL)
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return fmt.Errorf("%w: endpoint is more than scheme, host and port", ErrInvalidURL)
	}
	return nil
}

// parameters returns the query, each of whose names must be allowed, have a
// value, and come once.
func parameters(u *url.URL, allowed ...string) (map[string]string, error) {
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, fmt.Errorf("%w: query: %w", ErrInvalidURL, err)
	}
	out := map[string]string{}
	for _, name := range allowed {
		values, ok := query[name]
		if !ok {
			continue
		}
		if len(values) != 1 || values[0] == "" {
			return nil, fmt.Errorf("%w: parameter %q needs one value", ErrInvalidURL, name)
		}
		out[name] = values[0]
		delete(query, name)
	}
	for name := range query {
		return nil, fmt.Errorf("%w: unknown parameter %q (%s:// knows %q)", ErrInvalidURL, name, u.Scheme, allowed)
	}
	return out, nil
}
