package txlog

import (
	"fmt"
	"slices"

	"cardinalsin/action"
)

// ExclusiveFeature is the private writer-only table feature that keeps other
// engines' writers and VACUUM off our tables, while every reader still may
// (log-protocol 2).
const ExclusiveFeature = "cardinal-exclusive"

// OwnProtocol is the protocol of every table we create. "invariants" is what
// Spark takes a NOT NULL column for, and it refuses to read a table of writer
// version 7 that has such a column and does not list it.
func OwnProtocol() action.Protocol {
	return action.Protocol{
		MinReaderVersion: 1,
		MinWriterVersion: 7,
		WriterFeatures:   []string{ExclusiveFeature, "domainMetadata", "inCommitTimestamp", "invariants"},
	}
}

// readerFeatures are the ones whose log we understand. Whether a file's rows
// can be decoded is a question for whoever reads files.
var readerFeatures = []string{
	"columnMapping", "deletionVectors", "timestampNtz", "typeWidening",
	"typeWidening-preview", "v2Checkpoint", "vacuumProtocolCheck",
	"variantShredding", "variantShredding-preview", "variantType", "variantType-preview",
}

// checkReadable returns an error that wraps ErrUnsupported and names what is
// missing.
func checkReadable(p *action.Protocol) error {
	if p.MinReaderVersion < 1 || p.MinReaderVersion > 3 {
		return fmt.Errorf("%w: reader version %d", ErrUnsupported, p.MinReaderVersion)
	}
	if p.MinReaderVersion < 3 {
		return nil
	}
	for _, f := range p.ReaderFeatures {
		if !slices.Contains(readerFeatures, f) {
			return fmt.Errorf("%w: reader feature %q", ErrUnsupported, f)
		}
	}
	return nil
}

// checkWritable accepts exactly the tables of ours: the private feature, no
// writer feature that we do not know, and no column with a condition on its
// values, which we would not check. Its error wraps ErrReadOnly.
func checkWritable(s *Snapshot) error {
	p := s.protocol
	if p.MinWriterVersion != 7 || !slices.Contains(p.WriterFeatures, ExclusiveFeature) {
		return fmt.Errorf("%w: it lacks the writer feature %q", ErrReadOnly, ExclusiveFeature)
	}
	own := OwnProtocol().WriterFeatures
	for _, f := range p.WriterFeatures {
		if !slices.Contains(own, f) {
			return fmt.Errorf("%w: writer feature %q", ErrReadOnly, f)
		}
	}
	for i := range s.schema.Fields {
		if f := &s.schema.Fields[i]; f.Metadata["delta.invariants"] != nil {
			return fmt.Errorf("%w: column %q has delta.invariants", ErrReadOnly, f.Name)
		}
	}
	return nil
}
