package txlog

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"cardinalsin/action"
	"cardinalsin/checkpoint"
	"cardinalsin/storage"
)

// maxUpkeep bounds the versions whose checksum is still to be written; the
// oldest are left without one, which harms nobody.
const maxUpkeep = 256

// addUpkeep notes a version that this process committed.
func (l *Log) addUpkeep(s *Snapshot) {
	l.mu.Lock()
	if len(l.upkeep) == maxUpkeep {
		l.upkeep = append(l.upkeep[:0], l.upkeep[1:]...)
	}
	l.upkeep = append(l.upkeep, s)
	l.mu.Unlock()
	select {
	case l.due <- struct{}{}:
	default:
	}
}

// Run does the upkeep of the versions that this process commits, until ctx
// ends. Failures are logged and tried again with a later version.
func (l *Log) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.due:
		}
		if err := l.Upkeep(ctx); err != nil && ctx.Err() == nil {
			l.opts.Logger.Warn("log upkeep failed", "table", l.root, "err", err)
		}
	}
}

// Upkeep writes what is derived from the versions that this process committed
// since the last call: a checksum each, and a log compaction and a checkpoint
// where one is due. None of it is needed for correctness. Cost: one put a
// version; a compaction reads its commits; a checkpoint follows the size of the
// table.
func (l *Log) Upkeep(ctx context.Context) error {
	l.mu.Lock()
	todo := l.upkeep
	l.upkeep = nil
	l.mu.Unlock()
	var errs []error
	for _, s := range todo {
		if err := l.writeChecksum(ctx, s); err != nil {
			errs = append(errs, err)
		}
		// Compactions end where checkpoints may lie, so that the next one
		// begins right after.
		if n := l.opts.CompactEvery; n > 1 && s.version > 0 && int64(s.version)%n == 0 {
			if err := l.writeCompaction(ctx, Compaction{s.version - action.Version(n) + 1, s.version}); err != nil {
				errs = append(errs, err)
			}
		}
		if s.version > 0 && int64(s.version)%l.opts.CheckpointEvery == 0 {
			if err := l.writeCheckpoint(ctx, s); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// Checkpoint writes a checkpoint of the latest version and returns it.
// ErrReadOnly: the table is another engine's, and nothing is written to it.
func (l *Log) Checkpoint(ctx context.Context) (*Snapshot, error) {
	s, err := l.Snapshot(ctx, Latest())
	if err != nil {
		return nil, err
	}
	if err := checkWritable(s); err != nil {
		return nil, fmt.Errorf("checkpoint: %w", err)
	}
	return s, l.writeCheckpoint(ctx, s)
}

func (l *Log) writeCheckpoint(ctx context.Context, s *Snapshot) error {
	start := l.opts.Now()
	info, err := checkpoint.Write(ctx, l.store, l.Dir(), l.checkpointState(s), checkpoint.Options{})
	if l.opts.Events.CheckpointEnd != nil {
		l.opts.Events.CheckpointEnd(CheckpointEvent{Version: s.version, Actions: info.Size, Duration: elapsed(start, l.opts.Now()), Err: err})
	}
	if err != nil {
		return fmt.Errorf("write checkpoint %d: %w", int64(s.version), err)
	}
	return nil
}

// checkpointState is the snapshot as a checkpoint holds it. Tombstones past
// retention are left out, except that none is dropped before vacuum could
// have seen it: retention is counted from the version's own time.
func (l *Log) checkpointState(s *Snapshot) checkpoint.State {
	oldest := s.ict - l.opts.TombstoneRetention.Milliseconds()
	return checkpoint.State{
		Version: s.version, Protocol: s.protocol, Metadata: s.metadata,
		Txns: slices.Collect(s.Transactions()), Domains: s.domainActions(),
		Adds: s.files.each(s.values), NumAdds: int64(s.NumFiles()),
		Removes: func(yield func(*action.Remove) bool) {
			for r := range s.Tombstones() {
				if r.DeletionTimestamp >= oldest && !yield(r) {
					return
				}
			}
		},
		NumRemoves: int64(s.NumTombstones()),
	}
}

// readCheckpoint builds a snapshot from a checkpoint alone. Its time and
// transaction are for readInfo.
func (l *Log) readCheckpoint(ctx context.Context, ref checkpoint.Ref) (*Snapshot, error) {
	s := emptySnapshot()
	s.version = ref.Version
	fill := filler{s: s, pack: packer{values: s.values}}
	err := checkpoint.Read(ctx, l.store, l.Dir(), ref, fill.sink())
	if err == nil {
		fill.done()
		if err = s.finish(); err == nil {
			err = checkReadable(s.protocol)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read checkpoint %d: %w", int64(ref.Version), err)
	}
	s.recent = recentAdds{from: s.version}
	return s, nil
}

// filler puts a checkpoint's actions into a snapshot that nobody else sees.
type filler struct {
	s             *Snapshot
	pack          packer
	adds, removes []packed
}

func (f *filler) sink() checkpoint.Sink {
	s := f.s
	return checkpoint.Sink{
		Protocol: func(p *action.Protocol) error { s.protocol = p; return nil },
		Metadata: func(m *action.Metadata) error { s.metadata = m; return nil },
		Txn:      func(t action.SetTransaction) error { s.txns.Set(t.AppID, t); return nil },
		Domain: func(d action.DomainMetadata) error {
			if !d.Removed {
				s.domains.Set(d.Domain, d.Configuration)
			}
			return nil
		},
		Add: func(a *action.Add) error {
			p, err := f.pack.add(a)
			f.adds = append(f.adds, p)
			return err
		},
		Remove: func(r *action.Remove) error {
			p, err := f.pack.remove(r)
			f.removes = append(f.removes, p)
			return err
		},
	}
}

// done is called when all actions are there. It does not hide that a file is
// both live and removed, which check reports.
func (f *filler) done() {
	s := f.s
	for _, p := range f.adds {
		s.bytes += p.size()
	}
	s.files.put(f.adds, func(old packed) { s.bytes -= old.size() })
	s.tombs.put(f.removes, func(packed) {})
	f.adds, f.removes = nil, nil
}

// Checksum is a version checksum (PROTOCOL.md, "Version Checksum File"): what
// a replay up to that version must find.
type Checksum struct {
	TxnID             string                  `json:"txnId,omitempty"`
	TableSizeBytes    int64                   `json:"tableSizeBytes"`
	NumFiles          int64                   `json:"numFiles"`
	NumMetadata       int64                   `json:"numMetadata"`
	NumProtocol       int64                   `json:"numProtocol"`
	InCommitTimestamp *int64                  `json:"inCommitTimestampOpt,omitempty"`
	SetTransactions   []action.SetTransaction `json:"setTransactions,omitempty"`
	DomainMetadata    []action.DomainMetadata `json:"domainMetadata,omitempty"`
	Metadata          *action.Metadata        `json:"metadata,omitempty"`
	Protocol          *action.Protocol        `json:"protocol,omitempty"`
}

func (l *Log) checksumKey(v action.Version) string { return l.Dir() + "/" + v.String() + ".crc" }

// writeChecksum is put-if-absent: a checksum is never overwritten.
func (l *Log) writeChecksum(ctx context.Context, s *Snapshot) error {
	sum := Checksum{
		TxnID: s.txnID, TableSizeBytes: s.bytes, NumFiles: int64(s.NumFiles()),
		NumMetadata: 1, NumProtocol: 1, InCommitTimestamp: &s.ict,
		SetTransactions: slices.Collect(s.Transactions()), DomainMetadata: s.domainActions(),
		Metadata: s.metadata, Protocol: s.protocol,
	}
	var buf bytes.Buffer
	if err := json.NewEncoder(&buf).Encode(sum); err != nil {
		return fmt.Errorf("encode checksum %d: %w", int64(s.version), err)
	}
	_, err := l.store.PutIfAbsent(ctx, l.checksumKey(s.version), buf.Bytes())
	if err != nil && !errors.Is(err, storage.ErrAlreadyExists) {
		return fmt.Errorf("write checksum %d: %w", int64(s.version), err)
	}
	return nil
}

// ReadChecksum returns a version's checksum; ok is false where there is none
// or it is damaged: it is only a hint.
func (l *Log) ReadChecksum(ctx context.Context, v action.Version) (sum Checksum, ok bool, err error) {
	data, _, err := l.store.Get(ctx, l.checksumKey(v))
	if errors.Is(err, storage.ErrNotFound) {
		return Checksum{}, false, nil
	}
	if err != nil {
		return Checksum{}, false, fmt.Errorf("read checksum %d: %w", int64(v), err)
	}
	return sum, json.Unmarshal(data, &sum) == nil, nil
}
