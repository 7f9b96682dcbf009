package checkpoint

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"cardinalsin/action"
	"cardinalsin/storage"
)

// Read decodes a checkpoint and hands its actions to the sink.
//
// It costs one GET an object up to 4 MiB, and ranged reads of about 16 MiB for
// a greater one; sidecars likewise. Objects are read ahead and decoded on all
// processors. Memory is bounded: some 64 MiB of file, or one row group of a
// writer that makes greater ones, and the actions in between.
//
// Errors: ErrCorrupt, which names the object, also for one that is missing;
// ErrIncomplete; ErrUnsupported; those of the store; those of the sink. After
// an error the sink holds a part of the actions, of which none is to be used.
func Read(ctx context.Context, store storage.Store, logDir string, ref Ref, sink Sink) error {
	d := &delivery{sink: sink}
	if err := read(ctx, store, logDir, ref, d); err != nil {
		if d.sinkErr != nil {
			return d.sinkErr
		}
		return fmt.Errorf("read checkpoint %d: %w", ref.Version, err)
	}
	return nil
}

// delivery hands actions to the sink and keeps account of them.
type delivery struct {
	sink    Sink
	sinkErr error

	// sum is of the actions of files that carry their contents; counts are of
	// all.
	sum  contents
	want *contents // what the file says it holds

	protocols, metadatas, manifests int
	manifestVersion                 int64
	sidecars                        []sidecar
}

// sidecar is the action of a V2 checkpoint that names a file of file actions.
type sidecar struct {
	Path        string `json:"path"`
	SizeInBytes int64  `json:"sizeInBytes"`
}

// batch is a number of decoded actions.
type batch struct {
	adds      []action.Add
	removes   []action.Remove
	txns      []action.SetTransaction
	domains   []action.DomainMetadata
	protocols []action.Protocol
	metadatas []action.Metadata
	sidecars  []sidecar
	manifests []int64 // versions of checkpointMetadata actions
	sum       contents
}

func (b *batch) len() int {
	return len(b.adds) + len(b.removes) + len(b.txns) + len(b.domains) +
		len(b.protocols) + len(b.metadatas) + len(b.sidecars) + len(b.manifests)
}

// all reports whether the sink takes all actions, so that they can be summed up.
func (s *Sink) all() bool { return s.Add != nil && s.Remove != nil }

func (d *delivery) deliver(b *batch) error {
	d.sum.merge(b.sum)
	d.protocols += len(b.protocols)
	d.metadatas += len(b.metadatas)
	d.manifests += len(b.manifests)
	for _, v := range b.manifests {
		d.manifestVersion = v
	}
	d.sidecars = append(d.sidecars, b.sidecars...)
	s := &d.sink
	for i := range b.protocols {
		if err := d.call(s.Protocol != nil, func() error { return s.Protocol(&b.protocols[i]) }); err != nil {
			return err
		}
	}
	for i := range b.metadatas {
		if err := d.call(s.Metadata != nil, func() error { return s.Metadata(&b.metadatas[i]) }); err != nil {
			return err
		}
	}
	for i := range b.txns {
		if err := d.call(s.Txn != nil, func() error { return s.Txn(b.txns[i]) }); err != nil {
			return err
		}
	}
	for i := range b.domains {
		if err := d.call(s.Domain != nil, func() error { return s.Domain(b.domains[i]) }); err != nil {
			return err
		}
	}
	if s.Remove != nil {
		for i := range b.removes {
			if err := s.Remove(&b.removes[i]); err != nil {
				d.sinkErr = err
				return err
			}
		}
	}
	if s.Add != nil {
		for i := range b.adds {
			if err := s.Add(&b.adds[i]); err != nil {
				d.sinkErr = err
				return err
			}
		}
	}
	return nil
}

func (d *delivery) call(wanted bool, f func() error) error {
	if !wanted {
		return nil
	}
	d.sinkErr = f()
	return d.sinkErr
}

func read(ctx context.Context, store storage.Store, logDir string, ref Ref, d *delivery) error {
	if len(ref.Keys) == 0 {
		return fmt.Errorf("%w: no object is named", ErrCorrupt)
	}
	if ref.Kind == UUIDJSON {
		if err := readJSON(ctx, store, ref.Keys[0], d); err != nil {
			return err
		}
	} else if err := readParquet(ctx, store, parts(ref.Keys, ref.Sizes), false, d); err != nil {
		return err
	}
	if err := d.checkManifest(ref); err != nil {
		return damaged(ref.Keys[0], err)
	}
	if len(d.sidecars) > 0 && (d.sink.Add != nil || d.sink.Remove != nil) {
		files, err := sidecarParts(logDir, d.sidecars)
		if err != nil {
			return damaged(ref.Keys[0], err)
		}
		if err := readParquet(ctx, store, files, true, d); err != nil {
			return err
		}
	}
	return d.check(ref)
}

// checkManifest holds a V2 checkpoint to what it says of itself.
func (d *delivery) checkManifest(ref Ref) error {
	switch v2 := ref.Kind == UUIDJSON || ref.Kind == UUIDParquet; {
	case d.manifests > 1:
		return fmt.Errorf("%d checkpointMetadata actions", d.manifests)
	case d.manifests == 1 && d.manifestVersion != int64(ref.Version):
		return fmt.Errorf("is of version %d", d.manifestVersion)
	case d.manifests == 0 && (v2 || len(d.sidecars) > 0):
		return errors.New("no checkpointMetadata")
	}
	return nil
}

// check holds the actions to what their writer said, and to what every
// checkpoint must have.
func (d *delivery) check(ref Ref) error {
	if d.want != nil {
		d.sum.Version = ref.Version
		if d.want.Version != ref.Version {
			return damaged(ref.Keys[0], fmt.Errorf("is of version %d", d.want.Version))
		}
		if d.sink.all() && d.sum != *d.want {
			return damaged(ref.Keys[0], fmt.Errorf("holds %+v, want %+v", d.sum, *d.want))
		}
	}
	if d.protocols > 1 || d.metadatas > 1 {
		return damaged(ref.Keys[0], fmt.Errorf("%d protocol and %d metaData actions", d.protocols, d.metadatas))
	}
	if d.protocols == 0 || d.metadatas == 0 {
		return fmt.Errorf("%w: %s: %d protocol and %d metaData actions", ErrIncomplete, ref.Keys[0], d.protocols, d.metadatas)
	}
	return nil
}

func sidecarParts(logDir string, sidecars []sidecar) ([]part, error) {
	var out []part
	seen := map[string]bool{}
	for _, s := range sidecars {
		key, err := sidecarKey(logDir, s.Path)
		if err != nil {
			return nil, fmt.Errorf("sidecar: %w", err)
		}
		if seen[key] {
			return nil, fmt.Errorf("sidecar %q occurs twice", s.Path)
		}
		seen[key] = true
		out = append(out, part{key: key, size: max(s.SizeInBytes, 0)})
	}
	return out, nil
}

// readJSON reads a V2 checkpoint in JSON: one action a line, and none of them
// a commitInfo.
func readJSON(ctx context.Context, store storage.Store, key string, d *delivery) error {
	data, _, err := store.Get(ctx, key)
	if err != nil {
		return storeErr(key, err)
	}
	b := &batch{}
	full := func() error {
		if b.len() < batchRows {
			return nil
		}
		err := d.deliver(b)
		b = &batch{}
		return err
	}
	sink := &action.Sink{
		Protocol: func(p *action.Protocol) error { b.protocols = append(b.protocols, *p); return full() },
		Metadata: func(m *action.Metadata) error { b.metadatas = append(b.metadatas, *m); return full() },
		Txn:      func(t *action.SetTransaction) error { b.txns = append(b.txns, *t); return full() },
		Domain:   func(m *action.DomainMetadata) error { b.domains = append(b.domains, *m); return full() },
		Other: func(name string, value json.RawMessage) error {
			switch name {
			case "sidecar":
				var s sidecar
				if err := json.Unmarshal(value, &s); err != nil {
					return fmt.Errorf("sidecar: %w", err)
				}
				b.sidecars = append(b.sidecars, s)
			case "checkpointMetadata":
				var m struct {
					Version int64 `json:"version"`
				}
				if err := json.Unmarshal(value, &m); err != nil {
					return fmt.Errorf("checkpointMetadata: %w", err)
				}
				b.manifests = append(b.manifests, m.Version)
			}
			return full()
		},
	}
	if d.sink.Add != nil {
		sink.Add = func(a *action.Add) error { b.adds = append(b.adds, *a); return full() }
	}
	if d.sink.Remove != nil {
		sink.Remove = func(r *action.Remove) error { b.removes = append(b.removes, *r); return full() }
	}
	if err := action.Scan(data, sink); err != nil {
		return damaged(key, err) // or the sink's error, which Read finds in d
	}
	return d.deliver(b)
}
