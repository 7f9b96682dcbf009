package action

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

// InCommitTimestamp returns the commit's own time in ms since the epoch.
func (c *Commit) InCommitTimestamp() (int64, bool) {
	if c.Info == nil || c.Info.InCommitTimestamp == nil {
		return 0, false
	}
	return *c.Info.InCommitTimestamp, true
}
