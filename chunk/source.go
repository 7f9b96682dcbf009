package chunk

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"cardinalsin/storage"
)

// Source gives ranges of one immutable object. Implementations may be called
// concurrently.
type Source interface {
	// Name is how errors name the object.
	Name() string
	// ReadRange reads exactly length bytes from offset. The caller does not
	// change the slice.
	ReadRange(ctx context.Context, offset, length int64) ([]byte, error)
}

// StoreSource reads an object of a store; each range costs one ranged GET.
func StoreSource(store storage.Store, key string) Source { return storeSource{store, key} }

type storeSource struct {
	store storage.Store
	key   string
}

func (s storeSource) Name() string { return s.key }

func (s storeSource) ReadRange(ctx context.Context, offset, length int64) ([]byte, error) {
	return s.store.GetRange(ctx, s.key, offset, length)
}

// BytesSource reads a file that is in memory.
func BytesSource(name string, data []byte) Source { return bytesSource{name, data} }

type bytesSource struct {
	name string
	data []byte
}

func (s bytesSource) Name() string { return s.name }

func (s bytesSource) ReadRange(_ context.Context, offset, length int64) ([]byte, error) {
	if offset < 0 || length < 0 || offset > int64(len(s.data)) || length > int64(len(s.data))-offset {
		return nil, fmt.Errorf("%w: %d bytes at %d of %d", storage.ErrInvalidRange, length, offset, len(s.data))
	}
	return s.data[offset : offset+length : offset+length], nil
}

const (
	// footerGuess is read first; it holds the footer of all but the widest
	// and largest files, and all of a small file.
	footerGuess = 64 << 10
	// maxGap joins two ranges into one request: a request costs about as
	// much time as this many bytes.
	maxGap = 512 << 10
	// maxRequest bounds what is read ahead of need, and so the memory that a
	// sequence over a file holds beside the row group it stands on.
	maxRequest = 8 << 20
)

// span is a range of bytes in a file.
type span struct{ offset, length int64 }

func (s span) end() int64 { return s.offset + s.length }

// blocks are ranges of a file in memory.
type blocks struct {
	spans []span
	data  [][]byte
}

// slice returns the bytes of a span that lies in one block.
func (b *blocks) slice(s span) ([]byte, bool) {
	for i, have := range b.spans {
		if have.offset <= s.offset && s.end() <= have.end() {
			at := s.offset - have.offset
			return b.data[i][at : at+s.length : at+s.length], true
		}
	}
	return nil, false
}

// fetch reads spans, those that lie close together with one request.
func (f *File) fetch(ctx context.Context, spans []span) (*blocks, error) {
	if f.whole != nil {
		return &blocks{spans: []span{{0, f.size}}, data: [][]byte{f.whole}}, nil
	}
	out := &blocks{spans: joined(spans)}
	for _, s := range out.spans {
		data, err := readRange(ctx, f.src, s)
		if err != nil {
			return nil, err
		}
		out.data = append(out.data, data)
	}
	return out, nil
}

// joined sorts spans, and joins those that lie close together within a request.
func joined(spans []span) []span {
	sorted := slices.Clone(spans)
	slices.SortFunc(sorted, func(a, b span) int {
		switch {
		case a.offset < b.offset:
			return -1
		case a.offset > b.offset:
			return 1
		}
		return 0
	})
	var out []span
	for _, s := range sorted {
		if n := len(out); n > 0 {
			last := &out[n-1]
			end := max(last.end(), s.end())
			if s.offset-last.end() <= maxGap && (s.end() <= last.end() || end-last.offset <= maxRequest) {
				last.length = end - last.offset
				continue
			}
		}
		out = append(out, s)
	}
	return out
}

// readRange reads one span. An object that is shorter than its log entry
// says is damaged.
func readRange(ctx context.Context, src Source, s span) ([]byte, error) {
	data, err := src.ReadRange(ctx, s.offset, s.length)
	if errors.Is(err, storage.ErrInvalidRange) {
		return nil, fmt.Errorf("%w: read %d bytes at %d: %w", ErrCorrupt, s.length, s.offset, err)
	}
	if err != nil {
		return nil, fmt.Errorf("read %d bytes at %d: %w", s.length, s.offset, err)
	}
	if int64(len(data)) != s.length {
		return nil, fmt.Errorf("%w: %d of %d bytes at %d", ErrCorrupt, len(data), s.length, s.offset)
	}
	return data, nil
}
