package txlog

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
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

// ErrCommitted: the transaction was given to Commit before. What became of it
// then, the latest version tells; to try again takes a new transaction.
var ErrCommitted = errors.New("transaction was committed before")

// Transaction collects the changes of one version and the requirements under
// which they make sense. It is built by one goroutine and committed once.
type Transaction struct {
	log  *Log
	used atomic.Bool // Commit was called
	base *Snapshot   // nil: before version 0
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
	// restore, if set, makes the adds and removes anew for what the
	// transaction comes to follow.
	restore *Restore
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

// AddColumns makes sure that the schema has these columns, which must be
// nullable: what others added meanwhile is merged. A column that is there with
// another type, or under a name that differs in case only, which Delta takes
// for the same, fails the commit with ErrSchemaConflict; a type that Delta has
// not, with ErrUnsupported.
func (t *Transaction) AddColumns(fields ...action.Field) { t.columns = append(t.columns, fields...) }

// Require adds conditions on the version that the transaction will follow.
func (t *Transaction) Require(r ...Requirement) { t.requirements = append(t.requirements, r...) }

// Commit makes the transaction a version and returns the snapshot at it. On
// the happy path it costs one conditional put, shared with the transactions
// that waited for the same one. When it returns nil the version is durable.
//
// Errors: one of a failed requirement; ErrReadOnly, ErrAppendOnly;
// ErrTableExists (Create); ErrQueueFull; ErrCommitted;
// storage.ErrUnknownOutcome when ctx ended while it was not known whether the
// entry exists: the next load settles it, by ID. A context that ends before
// the entry is sent gives the context's error, and nothing was committed.
func (t *Transaction) Commit(ctx context.Context) (*Snapshot, error) {
	if t.used.Swap(true) {
		return nil, fmt.Errorf("commit %s %s: %w", t.op.Name, t.id, ErrCommitted)
	}
	if n := t.actions(); n > maxGroupActions {
		return nil, fmt.Errorf("commit %s: %d file actions exceed the limit of %d", t.op.Name, n, maxGroupActions)
	}
	s, err := t.log.commit(ctx, t)
	if err != nil {
		return nil, fmt.Errorf("commit %s: %w", t.op.Name, err)
	}
	return s, nil
}

// actions counts the file actions.
func (t *Transaction) actions() int { return len(t.adds) + len(t.removes) }

// follow returns t's own actions, if it may follow head.
func (t *Transaction) follow(head *Snapshot, now time.Time) (*action.Commit, error) {
	if t.metadata != nil {
		if head.Version() >= 0 {
			return nil, ErrTableExists
		}
	} else if err := checkWritable(head); err != nil {
		return nil, err
	}
	base := t.base
	if base == nil {
		base = head
	}
	if err := t.check(base, head, now, func(r Requirement) bool { return !aboutNewFiles(r) }); err != nil {
		return nil, err
	}
	c := &action.Commit{
		Protocol: t.protocol, Metadata: t.metadata,
		Txns: slices.Clone(t.txns), Domains: slices.Clone(t.domains),
		Removes: slices.Clone(t.removes), Adds: slices.Clone(t.adds),
	}
	if t.restore != nil {
		if err := t.restore.follow(head, c); err != nil {
			return nil, err
		}
	}
	if err := t.checkFiles(head, c); err != nil {
		return nil, err
	}
	// Last, since where an input is gone a file often came in its place, and
	// that it is gone says more.
	if err := t.check(base, head, now, aboutNewFiles); err != nil {
		return nil, err
	}
	if t.metadata == nil {
		var err error
		if c.Metadata, err = t.grow(head); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (t *Transaction) check(base, head *Snapshot, now time.Time, which func(Requirement) bool) error {
	for _, r := range t.requirements {
		if !which(r) {
			continue
		}
		if err := r.check(base, head, now); err != nil {
			return err
		}
	}
	return nil
}

func aboutNewFiles(r Requirement) bool {
	_, ok := r.(noNewFiles)
	return ok
}

// checkFiles applies the rules that every transaction is under: what it
// removes is live, what it adds is not, and no data leaves a table that only
// grows.
func (t *Transaction) checkFiles(head *Snapshot, c *action.Commit) error {
	removed := make(map[action.Key]bool, len(c.Removes))
	for i := range c.Removes {
		r := &c.Removes[i]
		if err := FilesLive(r.Key()).check(nil, head, time.Time{}); err != nil {
			return err
		}
		if r.DataChange && appendOnly(head) {
			return fmt.Errorf("%w: %s cannot be removed", ErrAppendOnly, r.Path)
		}
		removed[r.Key()] = true
	}
	for i := range c.Adds {
		k := c.Adds[i].Key()
		if _, live := head.File(k); live && !removed[k] {
			return fmt.Errorf("%w: %s is live already", ErrConflict, k.Path)
		}
	}
	return nil
}

// grow returns the metadata with the columns that head lacks, nil if it has
// them all.
func (t *Transaction) grow(head *Snapshot) (*action.Metadata, error) {
	if len(t.columns) == 0 {
		return nil, nil
	}
	fields := slices.Clone(head.Schema().Fields)
	for _, f := range t.columns {
		i := slices.IndexFunc(fields, func(have action.Field) bool { return sameName(have.Name, f.Name) })
		switch {
		case !validType(f.Type):
			return nil, fmt.Errorf("%w: type %s of column %q", ErrUnsupported, f.Type, f.Name)
		case i < 0 && !f.Nullable:
			return nil, fmt.Errorf("%w: column %q must be nullable, since there are rows without it", ErrSchemaConflict, f.Name)
		case i < 0:
			fields = append(fields, f)
		case fields[i].Name != f.Name:
			return nil, fmt.Errorf("%w: columns %q and %q differ in case only", ErrSchemaConflict, fields[i].Name, f.Name)
		case !bytes.Equal(fields[i].Type, f.Type):
			return nil, fmt.Errorf("%w: column %q has type %s, not %s", ErrSchemaConflict, f.Name, fields[i].Type, f.Type)
		}
	}
	if len(fields) == len(head.Schema().Fields) {
		return nil, nil
	}
	schema := action.Schema{Fields: fields}
	text, err := schema.Encode()
	if err != nil {
		return nil, err
	}
	m := *head.Metadata()
	m.SchemaString = text
	return &m, nil
}

// validType reports whether a column's type is one of the protocol's
// (PROTOCOL.md, "Schema Serialization Format"), of nested ones by the kind only.
func validType(raw json.RawMessage) bool {
	var name string
	if json.Unmarshal(raw, &name) == nil {
		return slices.Contains(primitives, name) || strings.HasPrefix(name, "decimal(") && strings.HasSuffix(name, ")")
	}
	var nested struct {
		Type string `json:"type"`
	}
	return json.Unmarshal(raw, &nested) == nil && slices.Contains([]string{"struct", "array", "map"}, nested.Type)
}

var primitives = []string{
	"string", "long", "integer", "short", "byte", "float", "double", "boolean",
	"binary", "date", "timestamp", "timestamp_ntz", "variant",
}

// sameName reports whether some engine takes two column names for the same:
// by Unicode's folding or by lower-casing, which differ for a few letters.
func sameName(a, b string) bool {
	if strings.EqualFold(a, b) {
		return true
	}
	x, y := strings.ToLower(a), strings.ToLower(b)
	return x == y
}

// entryInfo describes the entry that the members of a group share.
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
