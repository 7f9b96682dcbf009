package checkpoint

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"

	"cardinalsin/action"
	"cardinalsin/storage"
)

// Write makes sure that the classic checkpoint of a version exists and is
// sound, and moves _last_checkpoint on to it.
//
// The file is built on disk, in row groups, so memory does not grow with the
// table. It costs a LIST, a Put, the reads of Read, and a GET and a Put of the
// hint. A sound checkpoint of the version that is already there is kept. Any
// number of processes may write the same version at a time: the bytes follow
// from the state alone.
//
// Errors: ErrInvalidState; ErrCorrupt when what was read back is damaged (the
// hint is not moved then); those of the store. After an error a reader finds
// what it found before, or the new checkpoint, whole.
func Write(ctx context.Context, store storage.Store, logDir string, s State, opts Options) (Info, error) {
	opts.EnsureDefaults()
	info, err := write(ctx, store, logDir, s, opts)
	if err != nil {
		return Info{}, fmt.Errorf("write checkpoint %d: %w", s.Version, err)
	}
	return info, nil
}

func write(ctx context.Context, store storage.Store, logDir string, s State, opts Options) (info Info, err error) {
	if s, err = normalState(s); err != nil {
		return Info{}, err
	}
	ref, sum, err := existing(ctx, store, logDir, s.Version)
	if err != nil {
		return Info{}, err
	}
	info.Existed = sum != nil
	if sum == nil {
		size, err := putFile(ctx, store, logDir, s, opts)
		if err != nil {
			return Info{}, err
		}
		if size >= collectEvery {
			// What the encoder held lies in pools, which outlive one collection.
			runtime.GC()
			runtime.GC()
		}
		// What was stored is read back before any hint names it. Another
		// process may have replaced it meanwhile, by a checkpoint that is as
		// good.
		ref = Ref{Version: s.Version, Kind: Classic, Keys: []string{ClassicKey(logDir, s.Version)}, Sizes: []int64{size}}
		if sum, err = verify(ctx, store, logDir, ref); err != nil {
			return Info{}, fmt.Errorf("read back: %w", err)
		}
	}
	info.Ref = ref
	info.NumAdds, info.NumRemoves = sum.Adds, sum.Removes
	info.Size = sum.Adds + sum.Removes + sum.Others
	if info.HintMoved, err = writeHint(ctx, store, logDir, info); err != nil {
		return Info{}, err
	}
	return info, nil
}

// existing looks for a sound classic checkpoint of the version. One that is
// damaged counts as absent and is written anew.
func existing(ctx context.Context, store storage.Store, logDir string, v action.Version) (Ref, *contents, error) {
	key := ClassicKey(logDir, v)
	for o, err := range store.List(ctx, key, "") {
		if err != nil {
			return Ref{}, nil, err
		}
		if o.Key != key || o.Size <= 0 {
			continue
		}
		ref := Ref{Version: v, Kind: Classic, Keys: []string{key}, Sizes: []int64{o.Size}}
		sum, err := verify(ctx, store, logDir, ref)
		switch {
		case err == nil:
			return ref, sum, nil
		case errors.Is(err, ErrCorrupt), errors.Is(err, ErrIncomplete), errors.Is(err, ErrUnsupported):
			return Ref{}, nil, nil
		}
		return Ref{}, nil, err
	}
	return Ref{}, nil, nil
}

// verify reads a checkpoint whole and sums it up.
func verify(ctx context.Context, store storage.Store, logDir string, ref Ref) (*contents, error) {
	d := &delivery{sink: Sink{
		Protocol: func(*action.Protocol) error { return nil },
		Metadata: func(*action.Metadata) error { return nil },
		Txn:      func(action.SetTransaction) error { return nil },
		Domain:   func(action.DomainMetadata) error { return nil },
		Add:      func(*action.Add) error { return nil },
		Remove:   func(*action.Remove) error { return nil },
		sumOnly:  true,
	}}
	if err := read(ctx, store, logDir, ref, d); err != nil {
		return nil, err
	}
	return &d.sum, nil
}

// putFile builds the file and stores it.
func putFile(ctx context.Context, store storage.Store, logDir string, s State, opts Options) (size int64, err error) {
	f, err := os.CreateTemp(opts.TempDir, "checkpoint-*.parquet")
	if err != nil {
		return 0, fmt.Errorf("create temporary file: %w", err)
	}
	defer func() {
		err = errors.Join(err, f.Close(), os.Remove(f.Name()))
	}()
	out := bufio.NewWriterSize(f, 1<<20)
	if _, err := encode(out, s, opts); err != nil {
		return 0, err
	}
	if err := out.Flush(); err != nil {
		return 0, fmt.Errorf("write temporary file: %w", err)
	}
	if size, err = f.Seek(0, io.SeekEnd); err != nil {
		return 0, fmt.Errorf("measure temporary file: %w", err)
	}
	if _, err := store.Put(ctx, ClassicKey(logDir, s.Version), f); err != nil {
		return 0, err
	}
	return size, nil
}

// normalState checks a state and orders what has no order of its own.
func normalState(s State) (State, error) {
	switch {
	case s.Version < 0:
		return s, fmt.Errorf("%w: version %d", ErrInvalidState, s.Version)
	case s.Protocol == nil:
		return s, fmt.Errorf("%w: no protocol", ErrInvalidState)
	case s.Metadata == nil:
		return s, fmt.Errorf("%w: no metaData", ErrInvalidState)
	}
	s.Txns = slices.SortedFunc(slices.Values(s.Txns), func(a, b action.SetTransaction) int {
		return cmp.Or(strings.Compare(a.AppID, b.AppID), cmp.Compare(a.Version, b.Version))
	})
	for i := 1; i < len(s.Txns); i++ {
		if s.Txns[i].AppID == s.Txns[i-1].AppID {
			return s, fmt.Errorf("%w: two txn of %q", ErrInvalidState, s.Txns[i].AppID)
		}
	}
	s.Domains = slices.SortedFunc(slices.Values(s.Domains), func(a, b action.DomainMetadata) int {
		return strings.Compare(a.Domain, b.Domain)
	})
	for i, d := range s.Domains {
		if d.Removed {
			return s, fmt.Errorf("%w: domain %q is removed", ErrInvalidState, d.Domain)
		}
		if i > 0 && d.Domain == s.Domains[i-1].Domain {
			return s, fmt.Errorf("%w: two domainMetadata of %q", ErrInvalidState, d.Domain)
		}
	}
	return s, nil
}

// collectEvery is how much garbage a checkpoint may leave before it is
// collected. The collector alone would let it grow to the size of all that the
// process holds, which with a great table is the table.
const collectEvery = 6 << 20

// garbage counts what was allocated and is not used any more, roughly.
type garbage int64

func (g *garbage) add(n int64) {
	if *g += garbage(n); *g >= collectEvery {
		*g = 0
		runtime.GC()
	}
}
