package action

import (
	"errors"
	"fmt"
)

// Commit is one log entry: the actions of one version, by kind. Within a
// version the order of actions has no meaning, except that Info is first.
type Commit struct {
	Info     *CommitInfo
	Protocol *Protocol
	Metadata *Metadata
	Txns     []SetTransaction
	Domains  []DomainMetadata
	Removes  []Remove
	Adds     []Add
}

var errTwice = errors.New("action occurs twice in one version")

// Sink puts all actions of a scan into c. The caller may replace what it takes
// in another way. Two actions that one version may hold only once give an
// error that wraps ErrCorrupt.
func (c *Commit) Sink() *Sink {
	return &Sink{
		Add:    func(a *Add) error { c.Adds = append(c.Adds, *a); return nil },
		Remove: func(r *Remove) error { c.Removes = append(c.Removes, *r); return nil },
		Txn:    func(t *SetTransaction) error { c.Txns = append(c.Txns, *t); return nil },
		Domain: func(d *DomainMetadata) error { c.Domains = append(c.Domains, *d); return nil },
		Metadata: func(m *Metadata) error {
			if c.Metadata != nil {
				return fmt.Errorf("%w: metaData: %w", ErrCorrupt, errTwice)
			}
			c.Metadata = m
			return nil
		},
		Protocol: func(p *Protocol) error {
			if c.Protocol != nil {
				return fmt.Errorf("%w: protocol: %w", ErrCorrupt, errTwice)
			}
			c.Protocol = p
			return nil
		},
		Info: func(i *CommitInfo) error {
			if c.Info == nil {
				c.Info = i
			}
			return nil
		},
	}
}

// Decode reads a log entry whole. Its errors are those of [Scan], which see
// also for what strings hold on to, and of [Commit.Sink].
func Decode(data []byte) (*Commit, error) {
	c := &Commit{}
	s := &scanner{data: data}
	sink := c.Sink()
	sink.Add = func(a *Add) error {
		c.Adds = append(grow(c.Adds, s.pos, len(data)), *a)
		return nil
	}
	sink.Remove = func(r *Remove) error {
		c.Removes = append(grow(c.Removes, s.pos, len(data)), *r)
		return nil
	}
	if err := s.run(sink); err != nil {
		return nil, err
	}
	return c, nil
}

// grow makes room in a list that is full: as much as it will need if the rest
// of the data is like what was read, and at least twice as much as it had.
func grow[T any](list []T, done, total int) []T {
	n := len(list)
	if n < cap(list) {
		return list
	}
	room := 4
	if n > 0 {
		room = max(2*n, n+n*(total-done)/done+n/16+1)
	}
	bigger := make([]T, n, room)
	copy(bigger, list)
	return bigger
}

// InCommitTimestamp returns the commit's own time in ms since the epoch.
func (c *Commit) InCommitTimestamp() (int64, bool) {
	if c.Info == nil || c.Info.InCommitTimestamp == nil {
		return 0, false
	}
	return *c.Info.InCommitTimestamp, true
}
