// Package checkpoint writes, finds and reads checkpoints of a Delta log: the
// reconciled actions of one version, so that a reader need not replay all
// commits (PROTOCOL.md, "Checkpoints").
//
// It stands on action and storage; txlog decides when to write one, which to
// read, and what to do when one is damaged. A checkpoint is derived: it can be
// lost and rebuilt, and a listed checkpoint that cannot be read is skipped for
// the one before. This package never deletes, and never touches a commit.
//
// # What is written
//
// One classic checkpoint by the V1 specification, <version>.checkpoint.parquet,
// in row groups of at most Options.RowGroupActions rows, one row an action,
// of which exactly one struct is not null:
//
//	row group   rows
//	first       protocol, metaData, txn (by appId), domainMetadata (by domain)
//	next …      add, ascending by path and deletion vector
//	last …      remove, likewise
//
//	struct          fields (all optional; map = map<string,string>)
//	txn             appId string, version long, lastUpdated long
//	add             path string, partitionValues map, size long, modificationTime long,
//	                dataChange boolean (false), stats string, tags map, deletionVector,
//	                baseRowId long, defaultRowCommitVersion long, clusteringProvider string
//	remove          path string, deletionTimestamp long, dataChange boolean (false),
//	                extendedFileMetadata boolean, partitionValues map, size long,
//	                deletionVector, baseRowId long, defaultRowCommitVersion long
//	metaData        id, name, description string, format {provider string, options map},
//	                schemaString string, partitionColumns list<string>, configuration map,
//	                createdTime long
//	protocol        minReaderVersion int, minWriterVersion int,
//	                readerFeatures list<string>, writerFeatures list<string>
//	domainMetadata  domain string, configuration string, removed boolean
//	deletionVector  storageType string, pathOrInlineDv string, offset int,
//	                sizeInBytes int, cardinality long
//
// The footer's key-value metadata holds cardinalsin.contents: the version, the
// number of actions and the sum of their hashes.
//
// _last_checkpoint is {version, size (actions), sizeInBytes, numOfAddFiles,
// checksum}. It is a hint.
//
// # What is read
//
// Checkpoints of all engines: classic, multi-part, and V2 named by UUID, in
// Parquet and JSON, with sidecars; columns that are missing are null, columns
// that are not known are passed over. Where a file has statistics or partition
// values only as structs (stats_parsed, partitionValues_parsed), their text is
// rebuilt.
//
// # What damage is found
//
// In a checkpoint of ours: any change of any action, by the sum in the footer
// (a 64-bit hash, so up to one chance in 2^64). In one of another engine: what
// breaks the format, a page whose checksum is wrong (Spark 3.2 and later write
// them, delta-rs does not), a missing part, protocol or metaData. Not found
// there: a changed byte in a page without a checksum that still decodes.
//
// # Crashes while writing
//
//	before the Put of the checkpoint   nothing is stored
//	after it                           a complete checkpoint that no hint names yet;
//	                                   readers that list find it
//	after the Put of the hint          done
package checkpoint

import (
	"errors"
	"fmt"
	"iter"

	"cardinalsin/action"
)

var (
	// ErrCorrupt: a checkpoint or a part of it is damaged or missing. The
	// error names the object. Another checkpoint, or the commits, may serve.
	ErrCorrupt = errors.New("corrupt checkpoint")
	// ErrIncomplete: a checkpoint is sound, but was written without a protocol
	// or a metaData action. Its writer broke the protocol, so nothing else
	// that it wrote is to be trusted: there is nothing to fall back on.
	ErrIncomplete = fmt.Errorf("%w: checkpoint without protocol or metaData", ErrCorrupt)
	// ErrUnsupported: a checkpoint uses a Parquet feature that is not read
	// here, such as encryption.
	ErrUnsupported = errors.New("unsupported checkpoint")
	// ErrInvalidState: Write was given a state that no checkpoint can hold.
	ErrInvalidState = errors.New("invalid state for a checkpoint")
)

// State is what a checkpoint holds: the reconciled actions at one version.
type State struct {
	Version  action.Version
	Protocol *action.Protocol
	Metadata *action.Metadata
	Txns     []action.SetTransaction // one an appId, in any order
	Domains  []action.DomainMetadata // one a domain, in any order, no removed ones
	// Adds and Removes are the live files and the tombstones inside
	// retention, each in strictly ascending order of path, then deletion
	// vector. Which tombstones are inside must follow from the version alone,
	// so that all who write its checkpoint write the same bytes. Nil means
	// none. They are ranged over once, and nothing is kept of what they yield.
	Adds    iter.Seq[*action.Add]
	Removes iter.Seq[*action.Remove]
	// NumAdds and NumRemoves are hints for buffer sizes; the true numbers are
	// counted.
	NumAdds, NumRemoves int64
}

// Sink receives the actions of a checkpoint, one call at a time, in no
// particular order: the protocol may come last, so a caller checks it when
// Read has returned. An error ends the reading and is returned as it is. A nil
// function drops its actions; without Add and Remove their columns are not
// decoded, and the sum of the contents is not checked.
//
// The receiver owns what it gets. Strings share memory with those of their
// neighbours: one that is kept alone holds on to about a megabyte.
type Sink struct {
	Protocol func(*action.Protocol) error
	Metadata func(*action.Metadata) error
	Txn      func(action.SetTransaction) error
	Domain   func(action.DomainMetadata) error
	Add      func(*action.Add) error
	Remove   func(*action.Remove) error

	// sumOnly: file actions are only summed up, and never delivered. It keeps
	// memory low rather than reading far ahead.
	sumOnly bool
}

// Info describes a checkpoint that Write has made sure of.
type Info struct {
	Ref Ref
	// Size is the number of actions in it, NumAdds and NumRemoves those of
	// two kinds.
	Size, NumAdds, NumRemoves int64
	// Existed: a sound checkpoint of the version was there, and was kept.
	Existed bool
	// HintMoved: _last_checkpoint names this checkpoint now. It is left alone
	// when it names a newer one.
	HintMoved bool
}

// Options configure Write; the zero value is ready to use.
type Options struct {
	// RowGroupActions bounds the rows of a row group, and with it the memory
	// of writer and readers. Default 10,000.
	RowGroupActions int
	// TempDir is where the file is built; default os.TempDir().
	TempDir string
	// Snappy compresses with snappy instead of zstd, for readers of old.
	Snappy bool
}

// EnsureDefaults fills what is not set.
func (o *Options) EnsureDefaults() {
	if o.RowGroupActions <= 0 {
		o.RowGroupActions = 10_000
	}
}
