package txlog

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"

	"cardinalsin/action"
)

// Operation says what a commit is for, as commitInfo records it.
type Operation struct {
	Name       string // e.g. "WRITE", "OPTIMIZE", "VACUUM START"
	Parameters map[string]any
	Metrics    map[string]string // added to the counts that txlog fills in
	// BlindAppend: nothing was read to decide what is written.
	BlindAppend bool
}

// Transaction collects the changes of one version and the requirements under
// which they make sense. It is built by one goroutine and committed once.
type Transaction struct {
	log  *Log
	base *Snapshot // nil: before version 0
	id   string
	op   Operation

	protocol     *action.Protocol
	metadata     *action.Metadata
	columns      []action.Field
	adds         []action.Add
	removes      []action.Remove
	txns         []action.SetTransaction
	domains      []action.DomainMetadata
	requirements []Requirement
}

// Begin starts a transaction that was planned on base. Every file that it
// removes is required to be live; whatever else it rests on, Require must
// say.
func (l *Log) Begin(base *Snapshot, op Operation) *Transaction {
	return &Transaction{log: l, base: base, id: uuid.NewString(), op: op}
}

// ID is the transaction's UUID, commitInfo.txnId of its entry.
func (t *Transaction) ID() string { return t.id }

// Add puts a data file into the table. A ModificationTime of 0 becomes the
// commit's timestamp.
func (t *Transaction) Add(a action.Add) { t.adds = append(t.adds, a) }

// Remove takes a file out. Its DeletionTimestamp becomes the commit's.
func (t *Transaction) Remove(r action.Remove) { t.removes = append(t.removes, r) }

// SetTransaction records an application's sequence number.
func (t *Transaction) SetTransaction(appID string, version int64) {
	t.txns = append(t.txns, action.SetTransaction{AppID: appID, Version: version})
}

// SetDomain sets a domain's configuration.
func (t *Transaction) SetDomain(domain, configuration string) {
	t.domains = append(t.domains, action.DomainMetadata{Domain: domain, Configuration: configuration})
}

// RemoveDomain removes a domain.
func (t *Transaction) RemoveDomain(domain string) {
	t.domains = append(t.domains, action.DomainMetadata{Domain: domain, Removed: true})
}

// AddColumns makes sure that the schema has these columns; those that it has
// already must have the same type.
func (t *Transaction) AddColumns(fields ...action.Field) { t.columns = append(t.columns, fields...) }

// Require adds conditions on the version that the transaction will follow.
func (t *Transaction) Require(r ...Requirement) { t.requirements = append(t.requirements, r...) }

// Commit makes the transaction a version and returns the snapshot at it. On
// the happy path it costs one conditional put, shared with the transactions
// that waited for the same one. When it returns nil the version is durable.
//
// Errors: one of a failed requirement; ErrReadOnly; ErrTableExists (Create);
// storage.ErrUnknownOutcome when ctx ended while it was not known whether the
// entry exists: the next load settles it, by ID. A context that ends before
// the entry is sent gives the context's error, and nothing was committed.
func (t *Transaction) Commit(ctx context.Context) (*Snapshot, error) {
	if len(t.adds)+len(t.removes) > maxGroupActions {
		return nil, fmt.Errorf("commit %s: %d file actions exceed the limit of %d", t.op.Name, len(t.adds)+len(t.removes), maxGroupActions)
	}
	s, err := t.log.commit(ctx, t)
	if err != nil {
		return nil, fmt.Errorf("commit %s: %w", t.op.Name, err)
	}
	return s, nil
}

// follow checks that t may follow head and appends its actions to c. It does
// not change c if it returns an error.
func (t *Transaction) follow(head *Snapshot, c *action.Commit, now time.Time) error {
	if t.metadata != nil {
		if head.Version() >= 0 {
			return ErrTableExists
		}
	} else if err := checkWritable(head.Protocol()); err != nil {
		return err
	}
	base := t.base
	if base == nil {
		base = head
	}
	for _, r := range t.requirements {
		if err := r.check(base, head, now); err != nil {
			return err
		}
	}
	for i := range t.removes {
		if err := FilesLive(t.removes[i].Key()).check(base, head, now); err != nil {
			return err
		}
	}
	for i := range t.adds {
		if _, live := head.File(t.adds[i].Key()); live && !slices.ContainsFunc(t.removes, func(r action.Remove) bool { return r.Key() == t.adds[i].Key() }) {
			return fmt.Errorf("%w: %s is live already", ErrConflict, t.adds[i].Path)
		}
	}
	meta, err := t.grow(head)
	if err != nil {
		return err
	}
	if t.metadata != nil {
		meta = t.metadata
	}
	if t.protocol != nil {
		c.Protocol = t.protocol
	}
	if meta != nil {
		c.Metadata = meta
	}
	c.Txns = append(c.Txns, t.txns...)
	c.Domains = append(c.Domains, t.domains...)
	c.Removes = append(c.Removes, t.removes...)
	c.Adds = append(c.Adds, t.adds...)
	return nil
}

// grow returns the metadata with the columns that head lacks, nil if it has
// them all.
func (t *Transaction) grow(head *Snapshot) (*action.Metadata, error) {
	var missing []action.Field
	for _, f := range t.columns {
		have := head.Schema().Field(f.Name)
		switch {
		case have == nil:
			missing = append(missing, f)
		case !bytes.Equal(have.Type, f.Type):
			return nil, fmt.Errorf("%w: column %q has type %s, not %s", ErrSchemaConflict, f.Name, have.Type, f.Type)
		}
	}
	if missing == nil {
		return nil, nil
	}
	schema := action.Schema{Fields: append(slices.Clone(head.Schema().Fields), missing...)}
	text, err := schema.Encode()
	if err != nil {
		return nil, err
	}
	m := *head.Metadata()
	m.SchemaString = text
	return &m, nil
}

// info describes the entry that the members of a group share.
func entryInfo(group []*pending, c *action.Commit, head *Snapshot, ict int64, engine string) *action.CommitInfo {
	op := group[0].t.op
	blind := true
	metrics := map[string]string{}
	for _, p := range group {
		blind = blind && p.t.op.BlindAppend
		if p.t.op.Name != op.Name {
			op.Name, op.Parameters = "GROUP", nil
		}
		for k, v := range p.t.op.Metrics {
			metrics[k] = sumMetric(metrics[k], v)
		}
	}
	var bytesAdded, bytesRemoved int64
	for i := range c.Adds {
		bytesAdded += c.Adds[i].Size
	}
	for i := range c.Removes {
		bytesRemoved += c.Removes[i].Size
	}
	metrics["numAddedFiles"] = strconv.Itoa(len(c.Adds))
	metrics["numRemovedFiles"] = strconv.Itoa(len(c.Removes))
	metrics["numAddedBytes"] = strconv.FormatInt(bytesAdded, 10)
	metrics["numRemovedBytes"] = strconv.FormatInt(bytesRemoved, 10)
	info := &action.CommitInfo{
		TxnID: group[0].t.id, InCommitTimestamp: &ict, Timestamp: ict,
		Operation: op.Name, OperationParameters: op.Parameters, OperationMetrics: metrics,
		IsBlindAppend: &blind, EngineInfo: engine,
	}
	if info.OperationParameters == nil {
		info.OperationParameters = map[string]any{}
	}
	if head.Version() >= 0 {
		v := int64(head.Version())
		info.ReadVersion = &v
	}
	if len(group) > 1 {
		for _, p := range group {
			info.GroupTxnIDs = append(info.GroupTxnIDs, p.t.id)
		}
	}
	return info
}

// sumMetric adds two decimal counts; what is no number, the later one wins.
func sumMetric(a, b string) string {
	x, errA := strconv.ParseInt(a, 10, 64)
	y, errB := strconv.ParseInt(b, 10, 64)
	if errA != nil || errB != nil {
		return b
	}
	return strconv.FormatInt(x+y, 10)
}
