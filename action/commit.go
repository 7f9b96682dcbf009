package action

import (
	"bytes"
	"encoding/json"
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

// InCommitTimestamp returns the commit's own time in ms since the epoch.
func (c *Commit) InCommitTimestamp() (int64, bool) {
	if c.Info == nil || c.Info.InCommitTimestamp == nil {
		return 0, false
	}
	return *c.Info.InCommitTimestamp, true
}
