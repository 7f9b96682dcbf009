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

	mu     sync.Mutex // guards what follows
	bytes  int64
	files  map[string]*list.Element // of kept, by name
	coming map[string]*opening
	order  list.List // the last used in front
}

// open returns the file that a source reads, which costs a request or two
// unless it is kept, or on its way to another caller.
func (f *footers) open(ctx context.Context, src *fencedSource) (*chunk.File, error) {
	for {
		if kept := f.get(src.Name()); kept != nil {
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
