package txlog

import (
	"fmt"
	"strings"
	"time"

	"cardinalsin/action"
)

// Requirement is a condition under which a transaction may follow a version.
// It is checked against every state that the transaction comes to follow: a
// version, with what stands before the transaction in its own entry. check is
// pure: base is the snapshot that the transaction was planned on, head what it
// would follow, now the local clock.
type Requirement interface {
	check(base, head *Snapshot, now time.Time) error
}

// FilesLive requires that every file is live: the inputs of a compaction.
// It fails with ErrFilesRemoved.
func FilesLive(keys ...action.Key) Requirement { return filesLive(keys) }

type filesLive []action.Key

func (r filesLive) check(_, head *Snapshot, _ time.Time) error {
	for _, k := range r {
		if _, ok := head.File(k); !ok {
			return fmt.Errorf("%w: %s is not live in version %d", ErrFilesRemoved, k.Path, int64(head.Version()))
		}
	}
	return nil
}

// NoNewFiles requires that no file which match accepts came after the base and
// is live: the cutover of a split. It fails with ErrNewFiles. match must be
// pure.
func NoNewFiles(match func(*action.Add) bool) Requirement { return noNewFiles(match) }

type noNewFiles func(*action.Add) bool

func (match noNewFiles) check(base, head *Snapshot, _ time.Time) error {
	for a := range head.AddedSince(base) {
		if match(a) {
			return fmt.Errorf("%w: %s came after version %d", ErrNewFiles, a.Path, int64(base.Version()))
		}
	}
	return nil
}

// DomainUnchanged requires that a domain is what it was in the base. It fails
// with ErrDomainChanged.
func DomainUnchanged(domain string) Requirement { return domainUnchanged(domain) }

type domainUnchanged string

func (r domainUnchanged) check(base, head *Snapshot, _ time.Time) error {
	was, had := base.Domain(string(r))
	is, has := head.Domain(string(r))
	if had != has || was != is {
		return fmt.Errorf("%w: %s differs between versions %d and %d", ErrDomainChanged, string(r), int64(base.Version()), int64(head.Version()))
	}
	return nil
}

// TransactionAt requires that an application's last recorded sequence number
// is version, 0 meaning none was recorded: a writer's flush. It fails with
// ErrFenced, which is terminal.
func TransactionAt(appID string, version int64) Requirement { return transactionAt{appID, version} }

type transactionAt struct {
	appID   string
	version int64
}

func (r transactionAt) check(_, head *Snapshot, _ time.Time) error {
	t, _ := head.Transaction(r.appID)
	if t.Version != r.version {
		return fmt.Errorf("%w: %s is at %d in version %d, expected %d", ErrFenced, r.appID, t.Version, int64(head.Version()), r.version)
	}
	return nil
}

// UploadedSince requires that less than limit has passed since the first of
// the transaction's files began to be uploaded, by the local clock. With
// limit at most half of vacuum's minimum age of orphans, no file that gets
// committed can have been listed as one (log-protocol 6). It fails with
// ErrUploadsTooOld.
func UploadedSince(start time.Time, limit time.Duration) Requirement {
	return uploadedSince{start, limit}
}

type uploadedSince struct {
	start time.Time
	limit time.Duration
}

func (r uploadedSince) check(_, _ *Snapshot, now time.Time) error {
	if age := elapsed(r.start, now); age >= r.limit {
		return fmt.Errorf("%w: the upload began %v ago, the limit is %v", ErrUploadsTooOld, age, r.limit)
	}
	return nil
}

// SchemaAllows requires that allow agrees to the schema of the version that
// the transaction would follow, before its own columns are added: a flush
// whose new columns must not clash with others that came meanwhile. allow must
// be pure. It fails with ErrSchemaConflict.
func SchemaAllows(allow func(*action.Schema) bool) Requirement { return schemaAllows(allow) }

type schemaAllows func(*action.Schema) bool

func (allow schemaAllows) check(base, head *Snapshot, _ time.Time) error {
	if head.Schema() != base.Schema() && !allow(head.Schema()) {
		return fmt.Errorf("%w: columns came between versions %d and %d", ErrSchemaConflict, int64(base.Version()), int64(head.Version()))
	}
	return nil
}

// readable requires that vacuum has not passed a version: the files that a
// restore names are still there. It fails with ErrVersionVacuumed.
type readable action.Version

func (r readable) check(_, head *Snapshot, _ time.Time) error {
	mark, err := head.Watermark()
	if err != nil {
		return err
	}
	if action.Version(r) < mark {
		return &VacuumedError{Version: action.Version(r), Oldest: mark}
	}
	return nil
}

// ErrAppendOnly: the table's property delta.appendOnly is true, so no data may
// be taken out. To rewrite it is allowed. It wraps ErrReadOnly.
var ErrAppendOnly = fmt.Errorf("%w: delta.appendOnly is set", ErrReadOnly)

func appendOnly(s *Snapshot) bool {
	return strings.EqualFold(s.Metadata().Configuration["delta.appendOnly"], "true")
}
