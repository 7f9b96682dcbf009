package txlog

import (
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/tidwall/btree"

	"cardinalsin/action"
)

// Snapshot is the table at one version. It is immutable, may be used
// concurrently, and shares structure with its neighbours: a version costs
// memory for its own actions, not for the table's.
type Snapshot struct {
	version  action.Version
	ict      int64 // ms since the epoch
	txnID    string
	protocol *action.Protocol
	metadata *action.Metadata
	schema   *action.Schema
	bytes    int64
	recent   recentAdds

	copying sync.Mutex // serialises Copy, which marks the source too
	files   *btree.Map[string, *action.Add]
	tombs   *btree.Map[string, *action.Remove]
	txns    *btree.Map[string, action.SetTransaction]
	domains *btree.Map[string, string]
}

// treeKey orders files by path; a deletion vector tells apart the states of
// one file.
func treeKey(k action.Key) string {
	if k.DV == "" {
		return k.Path
	}
	return k.Path + "\x00" + k.DV
}

// emptySnapshot is the state before version 0.
func emptySnapshot() *Snapshot {
	return &Snapshot{
		version: -1,
		files:   btree.NewMap[string, *action.Add](0),
		tombs:   btree.NewMap[string, *action.Remove](0),
		txns:    btree.NewMap[string, action.SetTransaction](0),
		domains: btree.NewMap[string, string](0),
	}
}

// Version is the snapshot's version.
func (s *Snapshot) Version() action.Version { return s.version }

// Time is the version's in-commit timestamp, in milliseconds.
func (s *Snapshot) Time() time.Time { return time.UnixMilli(s.ict).UTC() }

// Protocol returns the protocol; do not modify it.
func (s *Snapshot) Protocol() *action.Protocol { return s.protocol }

// Metadata returns the metadata; do not modify it.
func (s *Snapshot) Metadata() *action.Metadata { return s.metadata }

// Schema returns the table's schema; do not modify it.
func (s *Snapshot) Schema() *action.Schema { return s.schema }

// NumFiles counts the live files.
func (s *Snapshot) NumFiles() int { return s.files.Len() }

// Bytes is the size of all live files.
func (s *Snapshot) Bytes() int64 { return s.bytes }

// Files yields the live files in ascending order of their paths; do not
// modify them.
func (s *Snapshot) Files() iter.Seq[*action.Add] {
	return func(yield func(*action.Add) bool) {
		s.files.Scan(func(_ string, a *action.Add) bool { return yield(a) })
	}
}

// File returns the live file with that key.
func (s *Snapshot) File(k action.Key) (*action.Add, bool) { return s.files.Get(treeKey(k)) }

// Tombstones yields the removed files inside retention, in ascending order of
// their paths; do not modify them.
func (s *Snapshot) Tombstones() iter.Seq[*action.Remove] {
	return func(yield func(*action.Remove) bool) {
		s.tombs.Scan(func(_ string, r *action.Remove) bool { return yield(r) })
	}
}

// NumTombstones counts them.
func (s *Snapshot) NumTombstones() int { return s.tombs.Len() }

// Transaction returns the last sequence number that an application recorded.
func (s *Snapshot) Transaction(appID string) (action.SetTransaction, bool) { return s.txns.Get(appID) }

// Transactions yields all of them in ascending order of the application.
func (s *Snapshot) Transactions() iter.Seq[action.SetTransaction] {
	return func(yield func(action.SetTransaction) bool) {
		s.txns.Scan(func(_ string, t action.SetTransaction) bool { return yield(t) })
	}
}

// Domain returns the configuration of a domain; ok is false where there is
// none.
func (s *Snapshot) Domain(name string) (configuration string, ok bool) { return s.domains.Get(name) }

// Domains yields name and configuration in ascending order of the name.
func (s *Snapshot) Domains() iter.Seq2[string, string] {
	return func(yield func(string, string) bool) { s.domains.Scan(yield) }
}

// clone returns a mutable copy that shares all structure.
func (s *Snapshot) clone() *Snapshot {
	s.copying.Lock()
	defer s.copying.Unlock()
	return &Snapshot{
		version: s.version, ict: s.ict, txnID: s.txnID,
		protocol: s.protocol, metadata: s.metadata, schema: s.schema, bytes: s.bytes, recent: s.recent,
		files: s.files.Copy(), tombs: s.tombs.Copy(), txns: s.txns.Copy(), domains: s.domains.Copy(),
	}
}

// apply returns the next version: removes first, then adds (PROTOCOL.md,
// "Action Reconciliation"). Cost follows the commit, not the table. An error
// wraps action.ErrCorrupt or ErrUnsupported.
func (s *Snapshot) apply(v action.Version, c *action.Commit) (*Snapshot, error) {
	if v != s.version+1 {
		return nil, fmt.Errorf("%w: version %d cannot follow %d", action.ErrCorrupt, int64(v), int64(s.version))
	}
	n := s.clone()
	n.version = v
	n.txnID = ""
	if c.Info != nil {
		n.txnID = c.Info.TxnID
	}
	if ict, ok := c.InCommitTimestamp(); ok {
		n.ict = ict
	} else if c.Info != nil {
		n.ict = c.Info.Timestamp
	}
	if err := n.replay(c); err != nil {
		return nil, err
	}
	n.recent = s.recent.then(v, c)
	if err := n.finish(); err != nil {
		return nil, err
	}
	return n, nil
}

// replay reconciles the actions of one entry into a mutable snapshot.
func (s *Snapshot) replay(c *action.Commit) error {
	if c.Protocol != nil {
		s.protocol = c.Protocol
	}
	if c.Metadata != nil {
		s.metadata, s.schema = c.Metadata, nil
	}
	for _, t := range c.Txns {
		s.txns.Set(t.AppID, t)
	}
	for _, d := range c.Domains {
		if d.Removed {
			s.domains.Delete(d.Domain)
		} else {
			s.domains.Set(d.Domain, d.Configuration)
		}
		if d.Domain == VacuumDomain {
			s.dropSettled()
		}
	}
	for i := range c.Removes {
		r := c.Removes[i]
		k := treeKey(r.Key())
		if old, ok := s.files.Delete(k); ok {
			s.bytes -= old.Size
		}
		s.tombs.Set(k, &r)
	}
	for i := range c.Adds {
		a := c.Adds[i]
		s.put(&a)
	}
	return nil
}

// dropSettled forgets the tombstones of files that a vacuum has dealt with.
// Else they would fill the memory of whoever runs for months.
func (s *Snapshot) dropSettled() {
	through, at, err := s.Vacuumed()
	if err != nil || through < 0 {
		return // vacuum and check say what is wrong with it
	}
	var settled []string
	s.tombs.Scan(func(k string, r *action.Remove) bool {
		if r.DeletionTimestamp <= at {
			settled = append(settled, k)
		}
		return true
	})
	for _, k := range settled {
		s.tombs.Delete(k)
	}
}

func (s *Snapshot) put(a *action.Add) {
	k := treeKey(a.Key())
	s.tombs.Delete(k)
	if old, ok := s.files.Set(k, a); ok {
		s.bytes -= old.Size
	}
	s.bytes += a.Size
}

// finish checks what every version must have and parses the schema if it is
// new.
func (s *Snapshot) finish() error {
	if s.protocol == nil || s.metadata == nil {
		return fmt.Errorf("%w: version %d has no protocol or no metaData", action.ErrCorrupt, int64(s.version))
	}
	if err := checkReadable(s.protocol); err != nil {
		return err
	}
	if s.schema == nil {
		schema, err := action.ParseSchema(s.metadata.SchemaString)
		if err != nil {
			return fmt.Errorf("version %d: %w", int64(s.version), err)
		}
		s.schema = schema
	}
	return nil
}
