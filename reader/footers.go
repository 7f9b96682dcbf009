package reader

import (
	"container/list"
	"context"
	"sync"

	"cardinalsin/chunk"
)

// footers keeps files open from one query to the next: their parsed footers,
// and small files whole. A file is immutable, so what is kept stays true. The
// zero value keeps nothing.
type footers struct {
	limit int64 // bytes

	mu    sync.Mutex // guards what follows
	bytes int64
	files map[string]*list.Element // of kept, by name
	order list.List                // the last used in front
}

// open returns the file that a source reads, which costs a request or two
// unless it is kept.
func (f *footers) open(ctx context.Context, src *fencedSource) (*chunk.File, error) {
	if kept := f.get(src.Name()); kept != nil {
		return kept.From(src), nil
	}
	open, err := chunk.Open(ctx, src, src.size)
	if err != nil {
		return nil, err
	}
	f.put(src.Name(), open.From(nil)) // a view must not be kept alive
	return open, nil
}

func (f *footers) get(name string) *chunk.File {
	f.mu.Lock()
	defer f.mu.Unlock()
	e, ok := f.files[name]
	if !ok {
		return nil
	}
	f.order.MoveToFront(e)
	return e.Value.(kept).file
}

// kept is a file under its name: without a source it has none.
type kept struct {
	name string
	file *chunk.File
}

func (f *footers) put(name string, file *chunk.File) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := file.MemoryBytes()
	if _, ok := f.files[name]; ok || n > f.limit/8 {
		return
	}
	if f.files == nil {
		f.files = map[string]*list.Element{}
	}
	f.files[name] = f.order.PushFront(kept{name, file})
	f.bytes += n
	for f.bytes > f.limit {
		f.remove(f.order.Back())
	}
}

// drop forgets a file of which something proved to be damaged.
func (f *footers) drop(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if e, ok := f.files[name]; ok {
		f.remove(e)
	}
}

// remove takes an element out. mu is held.
func (f *footers) remove(e *list.Element) {
	k := f.order.Remove(e).(kept)
	delete(f.files, k.name)
	f.bytes -= k.file.MemoryBytes()
}
