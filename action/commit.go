package action

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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

// line is one action as it stands in the file.
type line struct {
	CommitInfo     *CommitInfo     `json:"commitInfo,omitempty"`
	Protocol       *Protocol       `json:"protocol,omitempty"`
	MetaData       *Metadata       `json:"metaData,omitempty"`
	Txn            *SetTransaction `json:"txn,omitempty"`
	DomainMetadata *DomainMetadata `json:"domainMetadata,omitempty"`
	Remove         *Remove         `json:"remove,omitempty"`
	Add            *Add            `json:"add,omitempty"`
}

// Encode returns the entry's bytes, one action a line, commitInfo first, as
// the table feature inCommitTimestamp requires.
func (c *Commit) Encode() ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	var err error
	put := func(l line) {
		if err == nil {
			err = enc.Encode(l)
		}
	}
	if c.Info != nil {
		put(line{CommitInfo: c.Info})
	}
	if c.Protocol != nil {
		put(line{Protocol: c.Protocol})
	}
	if c.Metadata != nil {
		put(line{MetaData: c.Metadata})
	}
	for i := range c.Txns {
		put(line{Txn: &c.Txns[i]})
	}
	for i := range c.Domains {
		put(line{DomainMetadata: &c.Domains[i]})
	}
	for i := range c.Removes {
		put(line{Remove: &c.Removes[i]})
	}
	for i := range c.Adds {
		put(line{Add: &c.Adds[i]})
	}
	if err != nil {
		return nil, fmt.Errorf("encode commit: %w", err)
	}
	return buf.Bytes(), nil
}

// Decode parses a log entry. It returns an error that wraps ErrCorrupt for a
// line that is no JSON object, for a file action without a path, and for two
// actions that one version may hold only once.
func Decode(data []byte) (*Commit, error) {
	c := &Commit{}
	dec := json.NewDecoder(bytes.NewReader(data))
	for n := 1; ; n++ {
		var l line
		if err := dec.Decode(&l); errors.Is(err, io.EOF) {
			return c, nil
		} else if err != nil {
			return nil, fmt.Errorf("%w: action %d: %w", ErrCorrupt, n, err)
		}
		if err := c.put(&l); err != nil {
			return nil, fmt.Errorf("%w: action %d: %w", ErrCorrupt, n, err)
		}
	}
}

var (
	errTwice  = errors.New("action occurs twice in one version")
	errNoPath = errors.New("file action without a path")
)

func (c *Commit) put(l *line) error {
	switch {
	case l.Add != nil:
		if l.Add.Path == "" {
			return errNoPath
		}
		c.Adds = append(c.Adds, *l.Add)
	case l.Remove != nil:
		if l.Remove.Path == "" {
			return errNoPath
		}
		c.Removes = append(c.Removes, *l.Remove)
	case l.Txn != nil:
		c.Txns = append(c.Txns, *l.Txn)
	case l.DomainMetadata != nil:
		c.Domains = append(c.Domains, *l.DomainMetadata)
	case l.MetaData != nil:
		if c.Metadata != nil {
			return fmt.Errorf("metaData: %w", errTwice)
		}
		c.Metadata = l.MetaData
	case l.Protocol != nil:
		if c.Protocol != nil {
			return fmt.Errorf("protocol: %w", errTwice)
		}
		c.Protocol = l.Protocol
	case l.CommitInfo != nil:
		if c.Info == nil {
			c.Info = l.CommitInfo
		}
	}
	return nil
}

// InCommitTimestamp returns the commit's own time in ms since the epoch.
func (c *Commit) InCommitTimestamp() (int64, bool) {
	if c.Info == nil || c.Info.InCommitTimestamp == nil {
		return 0, false
	}
	return *c.Info.InCommitTimestamp, true
}
