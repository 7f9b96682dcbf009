package index

import (
	"context"

	"cardinalsin/internal/lru"
)

// keptBlocks keeps blocks that were opened for questions which need few of
// them, the last used, up to a number of bytes. Segments are immutable, so that
// a block is true for good, and must not be changed.
type keptBlocks struct {
	*lru.Cache[blockKey, []byte]
}

type blockKey struct {
	segment string
	offset  int64
}

// put keeps a block, unless it would take the place of too many others.
func (b keptBlocks) put(key blockKey, raw []byte) {
	if n := int64(cap(raw)) + int64(len(key.segment)) + 256; n <= b.Most()/8 {
		b.Put(key, raw, n)
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
	kept := s.index.blocks
	out := make([][]byte, len(spans))
	var missing []span
	for i, at := range spans {
		var ok bool
		if out[i], ok = kept.Get(blockKey{s.key, at.offset}); !ok {
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
