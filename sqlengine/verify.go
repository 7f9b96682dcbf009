package sqlengine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"cardinalsin/action"
	"cardinalsin/chunk"
)

// maxSound bounds the memory of which files are sound: about 100 bytes each.
const maxSound = 100_000

// verify checks a chunk of ours against its seal, once in the engine's life.
// DuckDB looks at no sum of ours, and of bits flipped in a page some pass its
// decoders as other values. Files of other engines have no seal.
func (e *Engine) verify(ctx context.Context, path string, add *action.Add) (err error) {
	if _, ours, err := chunk.ParseTags(add.Tags); err != nil || !ours {
		return err
	}
	e.soundMu.Lock()
	_, done := e.sound[add.Path]
	e.soundMu.Unlock()
	if done {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("verify %s: %w", add.Path, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	c, err := chunk.Open(ctx, fileSource{f, add.Path}, add.Size)
	if err != nil {
		return err
	}
	if err := c.Verify(ctx); err != nil {
		return err
	}
	e.soundMu.Lock()
	defer e.soundMu.Unlock()
	if len(e.sound) >= maxSound {
		clear(e.sound)
	}
	e.sound[add.Path] = struct{}{}
	return nil
}

// fileSource reads a chunk from a local file.
type fileSource struct {
	f    *os.File
	name string
}

func (s fileSource) Name() string { return s.name }

func (s fileSource) ReadRange(_ context.Context, offset, length int64) ([]byte, error) {
	data := make([]byte, length)
	if _, err := s.f.ReadAt(data, offset); errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: %s ends before %d", chunk.ErrCorrupt, s.name, offset+length)
	} else if err != nil {
		return nil, fmt.Errorf("read %s: %w", s.name, err)
	}
	return data, nil
}
