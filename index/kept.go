package index

import (
	"container/list"
	"context"
	"sync"
)

// keptBlocks keeps blocks that were opened for questions which need few of
// them, the last used, up to a number of bytes. Segments are immutable, so that
// a block is true for good. The zero value keeps nothing.
type keptBlocks struct {
	most int64 // bytes

	mu    sync.Mutex // guards what follows
	bytes int64
	byKey map[blockKey]*list.Element
	order list.List // of *keptBlock, the latest in front
}

type blockKey struct {
	segment string
	offset  int64
}

type keptBlock struct {
	key blockKey
	raw []byte
}

// size is what a block takes, with its place.
func (k *keptBlock) size() int64 { return int64(cap(k.raw)) + int64(len(k.key.segment)) + 256 }

// get returns a block; it must not be changed.
func (b *keptBlocks) get(key blockKey) ([]byte, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e, ok := b.byKey[key]
	if !ok {
		return nil, false
	}
	b.order.MoveToFront(e)
	return e.Value.(*keptBlock).raw, true
}

func (b *keptBlocks) put(key blockKey, raw []byte) {
	k := &keptBlock{key, raw}
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.byKey[key]; ok || k.size() > b.most/8 {
		return
	}
	if b.byKey == nil {
		b.byKey = map[blockKey]*list.Element{}
	}
	b.byKey[key] = b.order.PushFront(k)
	b.bytes += k.size()
	for b.bytes > b.most {
		old := b.order.Remove(b.order.Back()).(*keptBlock)
		delete(b.byKey, old.key)
		b.bytes -= old.size()
	}
}

// fewBlocks is how many blocks a call may want for them to be kept: one that
// wants more reads much, and would displace what many small ones share.
const fewBlocks = 64

// blocks reads and opens blocks; spans ascend. They must not be changed.
func (s *segment) blocks(ctx context.Context, spans []span) ([][]byte, error) {
	if len(spans) > fewBlocks {
		return s.stored(ctx, spans, openBlock)
	}
	kept := &s.index.blocks
	out := make([][]byte, len(spans))
	var missing []span
	for i, at := range spans {
		var ok bool
		if out[i], ok = kept.get(blockKey{s.key, at.offset}); !ok {
			missing = append(missing, at)
		}
	}
	if len(missing) == 0 {
		return out, nil
	}
	read, err := s.stored(ctx, missing, openBlock)
	if err != nil {
		return nil, err
	}
	for i, at := range spans {
		if out[i] == nil && len(missing) > 0 && missing[0] == at {
			out[i] = read[0]
			kept.put(blockKey{s.key, at.offset}, read[0])
			read, missing = read[1:], missing[1:]
		}
	}
	return out, nil
}
