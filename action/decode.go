package action

import (
	"encoding/json"
	"fmt"
)

// Sink receives the actions of an entry in the order in which they stand. A
// nil function drops its actions, of which then only the form is checked. An
// error ends the scan.
//
// What a Txn, Domain, Remove or Add function is given is good until it
// returns; a copy of the struct, and all that it points to, may be kept.
type Sink struct {
	Info     func(*CommitInfo) error
	Protocol func(*Protocol) error
	Metadata func(*Metadata) error
	Txn      func(*SetTransaction) error
	Domain   func(*DomainMetadata) error
	Remove   func(*Remove) error
	Add      func(*Add) error
	// Other receives actions of any other name, as text that is good until
	// it returns.
	Other func(name string, value json.RawMessage) error
}

// Scan reads a log entry, a log compaction or a V2 checkpoint in JSON: one
// object after another, each with one action, whatever the white space between
// them. It does not keep data: strings that it hands out are copies, packed
// into blocks of at most 64 KiB, so one that is kept alone holds on to as much.
//
// Names are compared exactly, as Delta's own readers do; encoding/json alone
// would take "PATH" for "path". Names inside of commitInfo, protocol and
// metaData are encoding/json's affair.
//
// An error wraps ErrCorrupt where an object is damaged, holds more than one
// action, or an action with a member twice (each of which readers could take
// for something else), for a value of the wrong type and for a file action
// without a path; or it wraps the sink's error. Both name the action, counted
// from 1. What is allocated is less than the data for common entries, and at
// most 20 times the data for any (TestDecodeMemory).
func Scan(data []byte, sink *Sink) error {
	return (&scanner{data: data}).run(sink)
}

func (s *scanner) run(sink *Sink) error {
	var l actionLine
	for n := 1; ; n++ {
		if s.peek(); s.pos == len(s.data) {
			return nil
		}
		if err := s.line(&l, sink); err != nil {
			return fmt.Errorf("action %d: %w", n, err)
		}
		if l.kind == noAction {
			continue
		}
		if err := l.deliver(sink); err != nil {
			return fmt.Errorf("action %d: %w", n, err)
		}
	}
}

type lineKind uint8

const (
	noAction lineKind = iota
	infoLine
	protocolLine
	metadataLine
	txnLine
	domainLine
	removeLine
	addLine
	droppedLine // of a kind that the sink does not want
)

// actionLine is one object of an entry. The structs are used again for the
// next line.
type actionLine struct {
	kind     lineKind
	info     *CommitInfo
	protocol *Protocol
	metadata *Metadata
	txn      SetTransaction
	domain   DomainMetadata
	remove   Remove
	add      Add
}

func (l *actionLine) deliver(sink *Sink) error {
	switch l.kind {
	case addLine:
		return sink.Add(&l.add)
	case removeLine:
		return sink.Remove(&l.remove)
	case txnLine:
		return sink.Txn(&l.txn)
	case domainLine:
		return sink.Domain(&l.domain)
	case infoLine:
		return sink.Info(l.info)
	case protocolLine:
		return sink.Protocol(l.protocol)
	case metadataLine:
		return sink.Metadata(l.metadata)
	}
	return nil
}

// line reads one object. A member that is null is as good as none.
func (s *scanner) line(l *actionLine, sink *Sink) error {
	l.kind = noAction
	if err := s.open(); err != nil {
		return err
	}
	for first := true; ; first = false {
		name, more, err := s.member(first)
		if err != nil {
			return err
		}
		if !more {
			return nil
		}
		kind, wanted := noAction, false
		switch string(name) {
		case "add":
			kind, wanted = addLine, sink.Add != nil
		case "remove":
			kind, wanted = removeLine, sink.Remove != nil
		case "txn":
			kind, wanted = txnLine, sink.Txn != nil
		case "domainMetadata":
			kind, wanted = domainLine, sink.Domain != nil
		case "commitInfo":
			kind, wanted = infoLine, sink.Info != nil
		case "protocol":
			kind, wanted = protocolLine, sink.Protocol != nil
		case "metaData":
			kind, wanted = metadataLine, sink.Metadata != nil
		}
		if kind == noAction {
			if err := s.other(name, sink); err != nil {
				return err
			}
			continue
		}
		if s.null() {
			continue
		}
		if l.kind != noAction {
			return s.fail("two actions in one object")
		}
		l.kind = kind
		switch {
		case !wanted:
			l.kind = droppedLine
			if s.peek() != '{' {
				return s.fail("want an object")
			}
			err = s.skip(2)
		case kind == addLine:
			err = s.add(&l.add)
		case kind == removeLine:
			err = s.remove(&l.remove)
		case kind == txnLine:
			err = s.txn(&l.txn)
		case kind == domainLine:
			err = s.domain(&l.domain)
		case kind == infoLine:
			l.info = new(CommitInfo)
			err = s.unmarshal(l.info)
		case kind == protocolLine:
			l.protocol = new(Protocol)
			err = s.unmarshal(l.protocol)
		case kind == metadataLine:
			l.metadata = new(Metadata)
			err = s.unmarshal(l.metadata)
		}
		if err != nil {
			return err
		}
	}
}

func (s *scanner) other(name []byte, sink *Sink) error {
	if sink.Other == nil {
		return s.skip(2)
	}
	what := string(name) // which the next string would overwrite
	s.peek()
	start := s.pos
	if err := s.skip(2); err != nil {
		return err
	}
	value := s.data[start:s.pos]
	if string(value) == "null" {
		return nil
	}
	return sink.Other(what, value)
}

// unmarshal leaves an action that is rare, and has many forms, to
// encoding/json.
func (s *scanner) unmarshal(into any) error {
	if s.peek() != '{' {
		return s.fail("want an object")
	}
	start := s.pos
	if err := s.skip(2); err != nil {
		return err
	}
	if err := json.Unmarshal(s.data[start:s.pos], into); err != nil {
		return fmt.Errorf("%w: byte %d: %w", ErrCorrupt, start, err)
	}
	return nil
}

func (s *scanner) add(a *Add) error {
	*a = Add{}
	seen := uint(0)
	if err := s.open(); err != nil {
		return err
	}
	for first := true; ; first = false {
		name, more, err := s.member(first)
		if err != nil {
			return err
		}
		if !more {
			break
		}
		bit := uint(0)
		switch string(name) {
		case "path":
			bit = 1 << 0
			a.Path, err = s.text()
		case "partitionValues":
			bit = 1 << 1
			a.PartitionValues, err = s.partition()
		case "size":
			bit = 1 << 2
			a.Size, _, err = s.integer(64)
		case "modificationTime":
			bit = 1 << 3
			a.ModificationTime, _, err = s.integer(64)
		case "dataChange":
			bit = 1 << 4
			a.DataChange, err = s.boolean()
		case "stats":
			bit = 1 << 5
			a.Stats, err = s.text()
		case "tags":
			bit = 1 << 6
			a.Tags, err = s.tags()
		case "deletionVector":
			bit = 1 << 7
			a.DeletionVector, err = s.vector()
		case "baseRowId":
			bit = 1 << 8
			a.BaseRowID, err = s.optional()
		case "defaultRowCommitVersion":
			bit = 1 << 9
			a.DefaultRowCommitVersion, err = s.optional()
		case "clusteringProvider":
			bit = 1 << 10
			a.ClusteringProvider, err = s.text()
		default:
			err = s.skip(3)
		}
		if seen, err = s.once(seen, bit, err); err != nil {
			return err
		}
	}
	if a.Path == "" {
		return s.fail("add without a path")
	}
	return nil
}

func (s *scanner) remove(r *Remove) error {
	*r = Remove{}
	seen := uint(0)
	if err := s.open(); err != nil {
		return err
	}
	for first := true; ; first = false {
		name, more, err := s.member(first)
		if err != nil {
			return err
		}
		if !more {
			break
		}
		bit := uint(0)
		switch string(name) {
		case "path":
			bit = 1 << 0
			r.Path, err = s.text()
		case "deletionTimestamp":
			bit = 1 << 1
			r.DeletionTimestamp, _, err = s.integer(64)
		case "dataChange":
			bit = 1 << 2
			r.DataChange, err = s.boolean()
		case "extendedFileMetadata":
			bit = 1 << 3
			r.ExtendedFileMetadata, err = s.boolean()
		case "partitionValues":
			bit = 1 << 4
			r.PartitionValues, err = s.partition()
		case "size":
			bit = 1 << 5
			r.Size, _, err = s.integer(64)
		case "stats":
			bit = 1 << 6
			r.Stats, err = s.text()
		case "tags":
			bit = 1 << 7
			r.Tags, err = s.tags()
		case "deletionVector":
			bit = 1 << 8
			r.DeletionVector, err = s.vector()
		case "baseRowId":
			bit = 1 << 9
			r.BaseRowID, err = s.optional()
		case "defaultRowCommitVersion":
			bit = 1 << 10
			r.DefaultRowCommitVersion, err = s.optional()
		default:
			err = s.skip(3)
		}
		if seen, err = s.once(seen, bit, err); err != nil {
			return err
		}
	}
	if r.Path == "" {
		return s.fail("remove without a path")
	}
	return nil
}

func (s *scanner) vector() (*DeletionVector, error) {
	if s.null() {
		return nil, nil
	}
	if err := s.open(); err != nil {
		return nil, err
	}
	d := s.vectors.next()
	seen := uint(0)
	for first := true; ; first = false {
		name, more, err := s.member(first)
		if err != nil {
			return nil, err
		}
		if !more {
			return d, nil
		}
		bit := uint(0)
		switch string(name) {
		case "storageType":
			bit = 1 << 0
			d.StorageType, err = s.text()
		case "pathOrInlineDv":
			bit = 1 << 1
			d.PathOrInlineDV, err = s.text()
		case "offset":
			bit = 1 << 2
			var v int64
			var null bool
			if v, null, err = s.integer(32); !null {
				d.Offset = s.int32s.next()
				*d.Offset = int32(v)
			}
		case "sizeInBytes":
			bit = 1 << 3
			var v int64
			v, _, err = s.integer(32)
			d.SizeInBytes = int32(v)
		case "cardinality":
			bit = 1 << 4
			d.Cardinality, _, err = s.integer(64)
		default:
			err = s.skip(4)
		}
		if seen, err = s.once(seen, bit, err); err != nil {
			return nil, err
		}
	}
}

func (s *scanner) txn(t *SetTransaction) error {
	*t = SetTransaction{}
	seen := uint(0)
	if err := s.open(); err != nil {
		return err
	}
	for first := true; ; first = false {
		name, more, err := s.member(first)
		if err != nil || !more {
			return err
		}
		bit := uint(0)
		switch string(name) {
		case "appId":
			bit = 1 << 0
			t.AppID, err = s.text()
		case "version":
			bit = 1 << 1
			t.Version, _, err = s.integer(64)
		case "lastUpdated":
			bit = 1 << 2
			t.LastUpdated, _, err = s.integer(64)
		default:
			err = s.skip(3)
		}
		if seen, err = s.once(seen, bit, err); err != nil {
			return err
		}
	}
}

func (s *scanner) domain(d *DomainMetadata) error {
	*d = DomainMetadata{}
	seen := uint(0)
	if err := s.open(); err != nil {
		return err
	}
	for first := true; ; first = false {
		name, more, err := s.member(first)
		if err != nil || !more {
			return err
		}
		bit := uint(0)
		switch string(name) {
		case "domain":
			bit = 1 << 0
			d.Domain, err = s.text()
		case "configuration":
			bit = 1 << 1
			d.Configuration, err = s.text()
		case "removed":
			bit = 1 << 2
			d.Removed, err = s.boolean()
		default:
			err = s.skip(3)
		}
		if seen, err = s.once(seen, bit, err); err != nil {
			return err
		}
	}
}

// once notes that a member was read and fails if it had been before. A bit of
// 0 stands for a member that nobody knows.
func (s *scanner) once(seen, bit uint, err error) (uint, error) {
	if err == nil && seen&bit != 0 {
		err = s.fail("member occurs twice")
	}
	return seen | bit, err
}
