// Package storage is the object-store contract that everything above it
// relies on: typed errors, listing order, conditional writes and a clock.
//
// It stands on the lowest layer and imports nothing of ours. Backends are
// local, mem and s3, and storeurl opens them; retry, meter and fault decorate
// any Store; cache keeps remote objects as local files; storetest is the
// conformance suite. A decorator has an Unwrap() Store method, so that
// [LocalPath] and tests can look through it. [Probe] tries out whether a store
// keeps the contract.
//
// What a Store promises (log-protocol, section 9):
//
//   - strong read-after-write and list-after-write consistency;
//   - a put is atomic: readers see the old object or the new one, whole;
//   - PutIfAbsent and PutIfMatch admit exactly one of any number of
//     concurrent writers, and tell each loser so by a typed error;
//   - List yields keys in ascending byte order;
//   - Now is the store's clock, the same for every process that uses it.
//
// Nothing here ever falls back from a conditional put to an overwriting one.
package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Conditions a caller branches on. Backends wrap them with the operation and
// the key; test with errors.Is.
var (
	// ErrNotFound: the object does not exist.
	ErrNotFound = errors.New("object not found")
	// ErrAlreadyExists: PutIfAbsent lost, an object with that key is there.
	// It may be our own, if an earlier try was applied and its response lost.
	ErrAlreadyExists = errors.New("object already exists")
	// ErrPreconditionFailed: PutIfMatch lost, the object has another ETag or
	// is gone.
	ErrPreconditionFailed = errors.New("precondition failed")
	// ErrUnknownOutcome: a write may or may not have been applied (time-out,
	// lost connection, 409, 5xx). Read back before trying anything else.
	ErrUnknownOutcome = errors.New("outcome of the write is unknown")
	// ErrUnavailable: a read failed for a reason that may pass (time-out,
	// lost connection, throttling, 5xx). From a write it means that nothing
	// was stored.
	ErrUnavailable = errors.New("store unavailable")
	// ErrPermission: the store knows us and says no.
	ErrPermission = errors.New("permission denied")
	// ErrInvalidRange: GetRange asked for bytes outside the object.
	ErrInvalidRange = errors.New("range outside the object")
	// ErrInvalidKey: the key breaks the rules of [ValidateKey].
	ErrInvalidKey = errors.New("invalid object key")
	// ErrStoreRefused: the store lacks a property that correctness rests on;
	// see [PropertyError].
	ErrStoreRefused = errors.New("store refused")
	// ErrFull: no space is left for the write; nothing was stored.
	ErrFull = errors.New("no space left")
	// ErrNoStore: the bucket behind the store does not exist. It is never
	// reported as ErrNotFound, which would read as an empty table.
	ErrNoStore = errors.New("store does not exist")
)

// ETag names one state of one object. It is opaque and never empty for an
// object that exists. On S3 it follows from the bytes, so that writing equal
// bytes again may leave it as it was: an object that is guarded by PutIfMatch
// must hold something that differs at each write, such as a counter.
type ETag string

// ObjectInfo describes one object at one moment.
type ObjectInfo struct {
	Key  string
	Size int64 // bytes
	// ModTime is when the object was last written, by the store's clock;
	// its resolution may be as coarse as one second.
	ModTime time.Time
	ETag    ETag
}

// Store is one bucket, prefix or directory. All methods may be called
// concurrently. Keys are slash-separated relative paths, see [ValidateKey]; a
// key must not be a directory of another ("a" and "a/b"), which file systems
// cannot hold.
//
// A call whose ctx has ended returns the context's error. If it was a write
// that was already under way, the error also is ErrUnknownOutcome. Any call
// may return ErrInvalidKey, ErrPermission or ErrNoStore.
type Store interface {
	// Get reads a whole object; the caller owns the returned slice.
	// Errors: ErrNotFound, ErrUnavailable.
	Get(ctx context.Context, key string) ([]byte, ObjectInfo, error)

	// GetRange reads exactly length bytes, at least one, from offset; the
	// caller owns the slice. Errors: ErrNotFound, ErrInvalidRange when the
	// object ends earlier or the range is empty or negative, ErrUnavailable.
	GetRange(ctx context.Context, key string, offset, length int64) ([]byte, error)

	// Put writes an object unconditionally, from the start of body. It is
	// for keys that are unique by construction and for hints. When it
	// returns nil the object is durable. body is only read, possibly more
	// than once. Errors: ErrUnknownOutcome, ErrFull.
	Put(ctx context.Context, key string, body io.ReadSeeker) (ObjectInfo, error)

	// PutIfAbsent writes an object that must not exist yet, in exactly one
	// request. Errors: ErrAlreadyExists, ErrUnknownOutcome, ErrFull.
	PutIfAbsent(ctx context.Context, key string, data []byte) (ObjectInfo, error)

	// PutIfMatch replaces an object whose ETag is still etag, in exactly one
	// request. Errors: ErrPreconditionFailed (also when the object is gone or
	// etag is empty), ErrUnknownOutcome, ErrFull.
	PutIfMatch(ctx context.Context, key string, data []byte, etag ETag) (ObjectInfo, error)

	// List yields the objects whose key starts with prefix and is greater
	// than startAfter (empty: from the first), in ascending byte order of
	// the key. It fetches pages as they are consumed: an object that is
	// written or deleted meanwhile may or may not come; every other comes
	// once. An error ends it, and what came before is then no full answer.
	List(ctx context.Context, prefix, startAfter string) iter.Seq2[ObjectInfo, error]

	// Delete removes an object; removing what is not there is no error. A
	// PutIfMatch that runs at the same time may bring the object back on some
	// servers (versitygw 1.8.0 does): no protocol may rest on a delete that
	// races with a replacement. Errors: ErrUnknownOutcome.
	Delete(ctx context.Context, key string) error

	// Now is the store's clock. It costs a request only if no earlier
	// response carried the time.
	Now(ctx context.Context) (time.Time, error)
}

// Wrapper is implemented by decorators.
type Wrapper interface{ Unwrap() Store }

// PathStore is implemented by backends whose objects are files that can be
// opened in place.
type PathStore interface {
	// Path returns the file that holds key, whether or not it exists.
	Path(key string) string
}

// LocalPath returns the file that holds key if the store, or a store it
// decorates, keeps objects as local files.
func LocalPath(s Store, key string) (string, bool) {
	for s != nil {
		if p, ok := s.(PathStore); ok {
			return p.Path(key), true
		}
		w, ok := s.(Wrapper)
		if !ok {
			return "", false
		}
		s = w.Unwrap()
	}
	return "", false
}

// Limits of a key.
const (
	// MaxKeyBytes bounds a key; S3 allows 1024 bytes, the store's prefix
	// included.
	MaxKeyBytes = 900
	// MaxKeyElementBytes bounds what lies between two slashes. Linux takes
	// file names of 255 bytes; S3 servers that keep objects as files add to
	// them while they write (versitygw 28 bytes).
	MaxKeyElementBytes = 220
)

// ValidateKey accepts relative slash-separated paths in UTF-8 that every
// backend can hold: no empty, "." or ".." element, none longer than
// MaxKeyElementBytes, at most MaxKeyBytes in all, and only characters that
// XML 1.0 can carry, since S3 lists in XML: no control characters and no
// noncharacters U+FFFE, U+FFFF. It returns an error that wraps ErrInvalidKey.
func ValidateKey(key string) error {
	if key == "" || len(key) > MaxKeyBytes {
		return fmt.Errorf("%w: length %d is outside 1–%d", ErrInvalidKey, len(key), MaxKeyBytes)
	}
	for element := range strings.SplitSeq(key, "/") {
		switch {
		case element == "" || element == "." || element == "..":
			return fmt.Errorf("%w: element %q in %q", ErrInvalidKey, element, key)
		case len(element) > MaxKeyElementBytes:
			return fmt.Errorf("%w: an element of %d bytes in %q", ErrInvalidKey, len(element), key)
		}
	}
	if !utf8.ValidString(key) {
		return fmt.Errorf("%w: %q is not UTF-8", ErrInvalidKey, key)
	}
	for _, r := range key {
		if unicode.IsControl(r) || r == '\uFFFE' || r == '\uFFFF' {
			return fmt.Errorf("%w: character %U in %q", ErrInvalidKey, r, key)
		}
	}
	return nil
}

// Collect drains a listing into a slice; for prefixes known to be small.
func Collect(seq iter.Seq2[ObjectInfo, error]) ([]ObjectInfo, error) {
	var out []ObjectInfo
	for info, err := range seq {
		if err != nil {
			return nil, err
		}
		out = append(out, info)
	}
	return out, nil
}
