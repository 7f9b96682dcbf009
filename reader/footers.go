package reader

import (
	"context"
	"sync"

	"cardinalsin/chunk"
	"cardinalsin/internal/lru"
)

// footers keeps files open from one query to the next, without a source: their
// parsed footers, and small files whole. A file is immutable, so what is kept
// stays true.
type footers struct {
	files *lru.Cache[string, *chunk.File] // by name

	mu     sync.Mutex
	coming map[string]*opening // guarded by mu
}

// open returns the file that a source reads, which costs a request or two
// unless it is kept, or on its way to another caller.
func (f *footers) open(ctx context.Context, src *fencedSource) (*chunk.File, error) {
	for {
		if kept, ok := f.files.Get(src.Name()); ok {
			return kept.From(src), nil
		}
		other, mine := f.begin(src.Name())
		if mine != nil {
			open, err := chunk.Open(ctx, src, src.size)
			if err == nil {
				f.put(src.Name(), open.From(nil)) // a view must not be kept alive
				mine.file = open.From(nil)
			}
			f.end(src.Name(), mine)
			return open, err
		}
		select {
		case <-other.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if other.file != nil {
			return other.file.From(src), nil
		}
		// What it failed with, such as its pin, may be its own: try again.
	}
}

// has reports whether a file is kept.
func (f *footers) has(name string) bool {
	_, ok := f.files.Get(name)
	return ok
}

// opening is a file on its way.
type opening struct {
	done chan struct{} // closed when file can be read
	file *chunk.File   // nil: it failed
}

// begin returns either another's opening of a file, or one that the caller is
// to end.
func (f *footers) begin(name string) (other, mine *opening) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if o, ok := f.coming[name]; ok {
		return o, nil
	}
	if f.coming == nil {
		f.coming = map[string]*opening{}
	}
	mine = &opening{done: make(chan struct{})}
	f.coming[name] = mine
	return nil, mine
}

func (f *footers) end(name string, mine *opening) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.coming, name)
	close(mine.done)
}

// put keeps a file, unless it would take the place of too many others.
func (f *footers) put(name string, file *chunk.File) {
	if n := file.MemoryBytes(); n <= f.files.Most()/8 {
		f.files.Put(name, file, n)
	}
}
