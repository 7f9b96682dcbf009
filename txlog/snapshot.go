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
	values  *valueTable
	files   fileSet
	tombs   fileSet
	txns    *btree.Map[string, action.SetTransaction]
	domains *btree.Map[string, string]
}

// emptySnapshot is the state before version 0.
func emptySnapshot() *Snapshot {
	return &Snapshot{
		version: -1,
		values:  newValueTable(),
		files:   newFileSet(),
		tombs:   newFileSet(),
		txns:    btree.NewMap[string, action.SetTransaction](0),
		domains: btree.NewMap[string, string](0),
	}
}

// Version is the snapshot's version.
func (s *Snapshot) Version() action.Version { return s.version }

// Time is the version's in-commit timestamp, in milliseconds; where the table
// has none, the time that its commit gives or that the store gives the commit,
// but later than the version before.
func (s *Snapshot) Time() time.Time { return time.UnixMilli(s.ict).UTC() }

// Protocol returns the protocol; do not modify it.
func (s *Snapshot) Protocol() *action.Protocol { return s.protocol }

// Metadata returns the metadata; do not modify it.
func (s *Snapshot) Metadata() *action.Metadata { return s.metadata }

// Schema returns the table's schema; do not modify it.
func (s *Snapshot) Schema() *action.Schema { return s.schema }

// NumFiles counts the live files.
func (s *Snapshot) NumFiles() int { return s.files.tree.Len() }

// Bytes is the size of all live files.
func (s *Snapshot) Bytes() int64 { return s.bytes }

// Files yields the live files in ascending order of their paths. Each is the
// caller's; its texts share memory with the snapshot. Cost: about 100 ns a
// file.
func (s *Snapshot) Files() iter.Seq[*action.Add] { return s.files.adds(s.values) }

// File returns the live file with that key.
func (s *Snapshot) File(k action.Key) (*action.Add, bool) {
	p, ok := s.find(k)
	if !ok {
		return nil, false
	}
	var f file
	p.unpack(*s.values.texts.Load(), &f)
	a := &action.Add{}
	f.add(a)
	return a, true
}

func (s *Snapshot) find(k action.Key) (packed, bool) {
	var pk packer
	probe, err := pk.key(k)
	if err != nil {
		return "", false // no file has such a path
	}
	return s.files.tree.Get(probe)
}

// Tombstones yields the removed files inside retention, in ascending order of
// their paths.
func (s *Snapshot) Tombstones() iter.Seq[*action.Remove] { return s.tombs.removes(s.values) }

// NumTombstones counts them.
func (s *Snapshot) NumTombstones() int { return s.tombs.tree.Len() }

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

// domainActions are the domains as a checkpoint and a checksum hold them.
func (s *Snapshot) domainActions() []action.DomainMetadata {
	var out []action.DomainMetadata
	for d, c := range s.Domains() {
		out = append(out, action.DomainMetadata{Domain: d, Configuration: c})
	}
	return out
}

// clone returns a mutable copy that shares all structure.
func (s *Snapshot) clone() *Snapshot {
	s.copying.Lock()
	defer s.copying.Unlock()
	return &Snapshot{
		version: s.version, ict: s.ict, txnID: s.txnID,
		protocol: s.protocol, metadata: s.metadata, schema: s.schema, bytes: s.bytes, recent: s.recent,
		values: s.values,
		files:  fileSet{s.files.tree.Copy()}, tombs: fileSet{s.tombs.tree.Copy()},
		txns: s.txns.Copy(), domains: s.domains.Copy(),
	}
}

// entry is a commit, or a range of them, that is ready to be replayed: its
// file actions are packed, and nothing points to the text that it came from
// but what commit still holds.
type entry struct {
	commit        *action.Commit // without file actions
	modified      int64          // when the store says it was written, ms; 0 where not known
	removes, adds []packed
}

// prepare packs the file actions of a commit. An error wraps
// action.ErrCorrupt.
func prepare(values *valueTable, c *action.Commit) (*entry, error) {
	k := packer{values: values}
	n := 0
	for i := range c.Adds {
		a := &c.Adds[i]
		n += 48 + len(a.Path) + len(a.Stats) + len(a.Tags)
	}
	for i := range c.Removes {
		r := &c.Removes[i]
		n += 48 + len(r.Path) + len(r.Stats) + len(r.Tags)
	}
	k.grow(n)
	rest := *c
	rest.Adds, rest.Removes = nil, nil
	e := &entry{commit: &rest, removes: make([]packed, len(c.Removes)), adds: make([]packed, len(c.Adds))}
	var err error
	for i := range c.Removes {
		if e.removes[i], err = k.remove(&c.Removes[i]); err != nil {
			return nil, err
		}
	}
	for i := range c.Adds {
		if e.adds[i], err = k.add(&c.Adds[i]); err != nil {
			return nil, err
		}
	}
	if len(e.adds) >= bulkMin {
		sortPacked(e.adds) // here, where others may run beside it
	}
	return e, nil
}

// prepareText is Decode and prepare in one, which for a great entry saves the
// actions in between.
func prepareText(values *valueTable, data []byte) (*entry, error) {
	if len(data) < arenaBytes {
		c, err := action.Decode(data)
		if err != nil {
			return nil, err
		}
		return prepare(values, c)
	}
	k := packer{values: values}
	c := &action.Commit{}
	e := &entry{commit: c}
	sink := c.Sink()
	sink.Remove = func(r *action.Remove) error {
		p, err := k.remove(r)
		e.removes = append(e.removes, p)
		return err
	}
	sink.Add = func(a *action.Add) error {
		p, err := k.add(a)
		e.adds = append(e.adds, p)
		return err
	}
	if err := action.Scan(data, sink); err != nil {
		return nil, err
	}
	if len(e.adds) >= bulkMin {
		sortPacked(e.adds)
	}
	return e, nil
}

// apply returns the next version: removes first, then adds (PROTOCOL.md,
// "Action Reconciliation"). Cost follows the commit, not the table. An error
// wraps action.ErrCorrupt or ErrUnsupported.
func (s *Snapshot) apply(v action.Version, c *action.Commit) (*Snapshot, error) {
	return s.applyAt(v, c, 0)
}

// applyAt is apply for a commit that the store wrote at modified, in ms.
func (s *Snapshot) applyAt(v action.Version, c *action.Commit, modified int64) (*Snapshot, error) {
	e, err := prepare(s.values, c)
	if err != nil {
		return nil, err
	}
	e.modified = modified
	n := s.clone()
	if err := n.step(v, e); err != nil {
		return nil, err
	}
	if err := checkReadable(n.protocol); err != nil {
		return nil, err
	}
	n.recent = s.recent.then(v, e.keys(n.values))
	return n, nil
}

// keys is a commit of the files that are added, by name alone: the texts of
// the original would hold on to all that was read with it.
func (e *entry) keys(values *valueTable) *action.Commit {
	c := &action.Commit{Adds: make([]action.Add, len(e.adds))}
	texts := *values.texts.Load()
	var f file
	for i, p := range e.adds {
		p.unpack(texts, &f)
		c.Adds[i] = action.Add{Path: f.path, DeletionVector: f.vector}
	}
	return c
}

// step makes a mutable snapshot the next version. Whether we support it is
// for the caller to see.
func (s *Snapshot) step(v action.Version, e *entry) error {
	if v != s.version+1 {
		return fmt.Errorf("%w: version %d cannot follow %d", action.ErrCorrupt, int64(v), int64(s.version))
	}
	s.version = v
	s.setInfo(e.commit, e.modified)
	s.replay(e)
	return s.finish()
}

// setInfo takes over what a version's commit says of itself. Without an
// in-commit timestamp its time is the one that its writer or the store gave it,
// moved on where clocks stood still or went back.
func (s *Snapshot) setInfo(c *action.Commit, modified int64) {
	s.txnID = ""
	if c.Info != nil {
		s.txnID = c.Info.TxnID
	}
	if ict, ok := c.InCommitTimestamp(); ok {
		s.ict = ict
		return
	}
	s.ict = max(commitTime(c, modified), s.ict+1)
}

// commitTime is the time of a commit without an in-commit timestamp.
func commitTime(c *action.Commit, modified int64) int64 {
	if c.Info != nil && c.Info.Timestamp != 0 {
		return c.Info.Timestamp
	}
	return modified
}

// replay reconciles the actions of one entry into a mutable snapshot.
func (s *Snapshot) replay(e *entry) {
	c := e.commit
	if c.Protocol != nil {
		s.protocol = c.Protocol
	}
	if c.Metadata != nil {
		s.metadata, s.schema = c.Metadata, nil
	}
	for _, t := range c.Txns {
		s.txns.Set(t.AppID, t)
	}
	vacuumed := false
	for _, d := range c.Domains {
		if d.Removed {
			s.domains.Delete(d.Domain)
		} else {
			s.domains.Set(d.Domain, d.Configuration)
		}
		vacuumed = vacuumed || d.Domain == VacuumDomain
	}
	gone := func(old packed) { s.bytes -= old.size() }
	s.files.remove(e.removes, gone)
	s.tombs.put(e.removes, func(packed) {})
	if vacuumed {
		// After the removes: those of an entry that stands for a range of
		// versions may be settled by a vacuum in that range. A commit's own
		// are younger than what it settles.
		s.dropSettled()
	}
	for _, p := range e.adds {
		s.bytes += p.size()
	}
	s.tombs.remove(e.adds, func(packed) {})
	s.files.put(e.adds, gone)
}

// dropSettled forgets the tombstones of files that a vacuum has dealt with.
// Else they would fill the memory of whoever runs for months.
func (s *Snapshot) dropSettled() {
	through, at, err := s.Vacuumed()
	if err != nil || through < 0 {
		return // vacuum and check say what is wrong with it
	}
	var settled []packed
	s.tombs.tree.Scan(func(p packed) bool {
		if p.time() <= at {
			settled = append(settled, p)
		}
		return true
	})
	s.tombs.remove(settled, func(packed) {})
}

// finish checks what every version must have and parses the schema if it is
// new.
func (s *Snapshot) finish() error {
	if s.protocol == nil || s.metadata == nil {
		return fmt.Errorf("%w: version %d has no protocol or no metaData", action.ErrCorrupt, int64(s.version))
	}
	if s.schema != nil {
		return nil
	}
	if s.metadata.SchemaString == "" {
		s.schema = &action.Schema{} // of old engines: a table without columns
		return nil
	}
	schema, err := action.ParseSchema(s.metadata.SchemaString)
	if err != nil {
		return fmt.Errorf("version %d: %w", int64(s.version), err)
	}
	s.schema = schema
	return nil
}
