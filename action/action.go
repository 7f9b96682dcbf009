// Package action is the vocabulary of the Delta transaction log: the action
// types and their JSON form.
//
// It stands on layer 1, does no I/O and imports nothing of ours. txlog gives
// actions their meaning; checkpoint stores them in Parquet.
//
// A commit is one JSON object a line. [Decode] and [Scan] read it by a scanner
// of our own, which takes what encoding/json takes at ten times its speed;
// FuzzDecode holds the two together. They ignore unknown actions and
// unknown fields, as the protocol demands (PROTOCOL.md, "Actions"); they never
// ignore a damaged line. Facts of file actions that a log replay does not
// look at (partition values, tags, statistics) stay in their compact JSON
// form until somebody asks, so that a snapshot of a million files is small.
package action

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
)

// ErrCorrupt marks bytes that are no valid log entry.
var ErrCorrupt = errors.New("corrupt log entry")

// Version numbers a table's commits from 0, without gaps.
type Version int64

// String formats a version as in the names of log objects: 20 digits.
func (v Version) String() string { return fmt.Sprintf("%020d", int64(v)) }

// ParseVersion is the inverse of String; ok is false for anything else than
// exactly 20 digits that fit an int64.
func ParseVersion(s string) (v Version, ok bool) {
	if len(s) != 20 {
		return 0, false
	}
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, false
		}
		d := Version(c - '0')
		if v > (1<<63-1-d)/10 {
			return 0, false
		}
		v = v*10 + d
	}
	return v, true
}

// Object is a flat JSON object with string or null values, kept as text:
// partition values and tags. The zero value is an object without members.
type Object string

// ObjectOf encodes a map, in ascending order of the keys.
func ObjectOf(m map[string]string) Object {
	if len(m) == 0 {
		return ""
	}
	b, err := json.Marshal(m)
	if err != nil {
		panic(err) // a map of strings always encodes
	}
	return Object(b)
}

// Map decodes the object; members that are null have a nil value. Of members
// with the same name the last counts.
func (o Object) Map() (map[string]*string, error) {
	var m map[string]*string
	err := o.each(func(s *scanner, name []byte) error {
		if m == nil {
			m = map[string]*string{}
		}
		key := s.kept.keep(name, len(o))
		if s.null() {
			m[key] = nil
			return nil
		}
		value, err := s.text()
		m[key] = &value
		return err
	})
	if err != nil {
		return nil, err
	}
	return m, nil
}

// Get returns one member; ok is false where it is absent or null, or where
// the object is damaged.
func (o Object) Get(key string) (value string, ok bool) {
	err := o.each(func(s *scanner, name []byte) (err error) {
		if string(name) != key {
			if !s.null() {
				if s.peek() != '"' {
					return s.fail("want a string or null")
				}
				err = s.skipString()
			}
			return err
		}
		if ok = !s.null(); ok {
			value, err = s.text()
		} else {
			value = ""
		}
		return err
	})
	if err != nil {
		return "", false
	}
	return value, ok
}

// each calls member with each name; it must read the value, which may be of
// any form yet. An error says what object it was.
func (o Object) each(member func(s *scanner, name []byte) error) error {
	if o == "" {
		return nil
	}
	s := &scanner{data: []byte(o)}
	more := !s.null()
	var err error
	if more {
		err = s.open()
	}
	for first := true; err == nil && more; first = false {
		var name []byte
		if name, more, err = s.member(first); err == nil && more {
			err = member(s, name)
		}
	}
	if s.peek(); err == nil && s.pos < len(s.data) {
		err = s.fail("want the end")
	}
	if err != nil {
		return fmt.Errorf("object %.200q: %w", string(o), err)
	}
	return nil
}

// MarshalJSON writes the object as it is, {} for the zero value.
func (o Object) MarshalJSON() ([]byte, error) {
	if o == "" {
		return []byte("{}"), nil
	}
	return []byte(o), nil
}

// UnmarshalJSON checks that the value is a flat object and keeps its text.
func (o *Object) UnmarshalJSON(b []byte) error {
	s := scanner{data: b}
	text, err := s.object()
	if err != nil {
		return err
	}
	if s.peek(); s.pos < len(b) {
		return s.fail("want the end")
	}
	*o = Object(text)
	return nil
}

// Protocol states what a client must support (PROTOCOL.md, "Protocol
// Evolution").
type Protocol struct {
	MinReaderVersion int      `json:"minReaderVersion"`
	MinWriterVersion int      `json:"minWriterVersion"`
	ReaderFeatures   []string `json:"readerFeatures,omitempty"`
	WriterFeatures   []string `json:"writerFeatures,omitempty"`
}

// Format names the encoding of data files.
type Format struct {
	Provider string            `json:"provider"`
	Options  map[string]string `json:"options"`
}

// Metadata holds a table's schema and configuration.
type Metadata struct {
	ID               string            `json:"id"`
	Name             string            `json:"name,omitempty"`
	Description      string            `json:"description,omitempty"`
	Format           Format            `json:"format"`
	SchemaString     string            `json:"schemaString"`
	PartitionColumns []string          `json:"partitionColumns"`
	CreatedTime      *int64            `json:"createdTime,omitempty"` // ms since the epoch
	Configuration    map[string]string `json:"configuration"`
}

// MarshalJSON writes empty maps and lists as such: delta-rs refuses a table
// that has null there, which is what a checkpoint's empty map may come back as.
func (m Metadata) MarshalJSON() ([]byte, error) {
	if m.Format.Options == nil {
		m.Format.Options = map[string]string{}
	}
	if m.PartitionColumns == nil {
		m.PartitionColumns = []string{}
	}
	if m.Configuration == nil {
		m.Configuration = map[string]string{}
	}
	type plain Metadata // without this method
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	err := enc.Encode(plain(m))
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), err
}

// DeletionVector marks rows of a file as deleted (PROTOCOL.md, "Deletion
// Vectors").
type DeletionVector struct {
	StorageType    string `json:"storageType"`
	PathOrInlineDV string `json:"pathOrInlineDv"`
	Offset         *int32 `json:"offset,omitempty"`
	SizeInBytes    int32  `json:"sizeInBytes"`
	Cardinality    int64  `json:"cardinality"`
}

// UniqueID is the part of a file's identity that its deletion vector gives.
func (d *DeletionVector) UniqueID() string {
	if d == nil {
		return ""
	}
	id := d.StorageType + d.PathOrInlineDV
	if d.Offset != nil {
		id += fmt.Sprintf("@%d", *d.Offset)
	}
	return id
}

// Add puts a data file into the table.
type Add struct {
	Path             string          `json:"path"` // URI, relative to the table's root or absolute
	PartitionValues  Object          `json:"partitionValues"`
	Size             int64           `json:"size"`             // bytes
	ModificationTime int64           `json:"modificationTime"` // ms since the epoch
	DataChange       bool            `json:"dataChange"`
	Stats            string          `json:"stats,omitempty"` // JSON, see ParseStats
	Tags             Object          `json:"tags,omitempty"`
	DeletionVector   *DeletionVector `json:"deletionVector,omitempty"`
	BaseRowID        *int64          `json:"baseRowId,omitempty"`
	// DefaultRowCommitVersion belongs to row tracking; kept, never used.
	DefaultRowCommitVersion *int64 `json:"defaultRowCommitVersion,omitempty"`
	ClusteringProvider      string `json:"clusteringProvider,omitempty"`
}

// Remove takes a data file out of the table; while retention lasts it is a
// tombstone.
type Remove struct {
	Path                 string          `json:"path"`
	DeletionTimestamp    int64           `json:"deletionTimestamp,omitempty"` // ms since the epoch
	DataChange           bool            `json:"dataChange"`
	ExtendedFileMetadata bool            `json:"extendedFileMetadata,omitempty"`
	PartitionValues      Object          `json:"partitionValues,omitempty"`
	Size                 int64           `json:"size,omitempty"`
	Stats                string          `json:"stats,omitempty"`
	Tags                 Object          `json:"tags,omitempty"`
	DeletionVector       *DeletionVector `json:"deletionVector,omitempty"`
	BaseRowID            *int64          `json:"baseRowId,omitempty"`
	// DefaultRowCommitVersion belongs to row tracking; kept, never used.
	DefaultRowCommitVersion *int64 `json:"defaultRowCommitVersion,omitempty"`
}

// SetTransaction records an application's progress: the last of its own
// sequence numbers that is in the table.
type SetTransaction struct {
	AppID       string `json:"appId"`
	Version     int64  `json:"version"`
	LastUpdated int64  `json:"lastUpdated,omitempty"` // ms since the epoch
}

// DomainMetadata is a named configuration; Removed suppresses it.
type DomainMetadata struct {
	Domain        string `json:"domain"`
	Configuration string `json:"configuration"`
	Removed       bool   `json:"removed"`
}

// CommitInfo says who made a commit, when and why. Only TxnID and
// InCommitTimestamp carry meaning for us.
type CommitInfo struct {
	TxnID               string            `json:"txnId,omitempty"`
	InCommitTimestamp   *int64            `json:"inCommitTimestamp,omitempty"` // ms since the epoch
	Timestamp           int64             `json:"timestamp,omitempty"`         // ms since the epoch
	Operation           string            `json:"operation,omitempty"`
	OperationParameters map[string]any    `json:"operationParameters,omitempty"`
	OperationMetrics    map[string]string `json:"operationMetrics,omitempty"`
	ReadVersion         *int64            `json:"readVersion,omitempty"`
	IsBlindAppend       *bool             `json:"isBlindAppend,omitempty"`
	EngineInfo          string            `json:"engineInfo,omitempty"`
	// GroupTxnIDs lists the transactions that share this commit, where there
	// is more than one; the first is TxnID.
	GroupTxnIDs []string `json:"cardinalGroupTxnIds,omitempty"`
}

// UnmarshalJSON takes what carries meaning for us strictly, and everything
// else as far as it has the expected form: commitInfo is free text of its
// engine (PROTOCOL.md, "Commit Provenance Information"), and some write
// metrics as numbers.
func (c *CommitInfo) UnmarshalJSON(b []byte) error {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(b, &m); err != nil {
		return err
	}
	*c = CommitInfo{}
	for key, into := range map[string]any{"txnId": &c.TxnID, "inCommitTimestamp": &c.InCommitTimestamp} {
		if raw, ok := m[key]; ok {
			if err := json.Unmarshal(raw, into); err != nil {
				return fmt.Errorf("%s: %w", key, err)
			}
		}
	}
	pick(m, "timestamp", &c.Timestamp)
	pick(m, "operation", &c.Operation)
	pick(m, "operationParameters", &c.OperationParameters)
	pick(m, "readVersion", &c.ReadVersion)
	pick(m, "isBlindAppend", &c.IsBlindAppend)
	pick(m, "engineInfo", &c.EngineInfo)
	pick(m, "cardinalGroupTxnIds", &c.GroupTxnIDs)
	var metrics map[string]json.RawMessage
	pick(m, "operationMetrics", &metrics)
	for key, raw := range metrics {
		var text string
		if json.Unmarshal(raw, &text) != nil {
			text = string(raw)
		}
		if c.OperationMetrics == nil {
			c.OperationMetrics = make(map[string]string, len(metrics))
		}
		c.OperationMetrics[key] = text
	}
	return nil
}

// pick decodes a member, and leaves out what has another form.
func pick[T any](m map[string]json.RawMessage, key string, into *T) {
	var v T
	if raw, ok := m[key]; ok && json.Unmarshal(raw, &v) == nil {
		*into = v
	}
}

// Key identifies a file in a replay: its path as logged and its deletion
// vector (PROTOCOL.md, "Action Reconciliation").
type Key struct{ Path, DV string }

// Key returns the identity of the file that is added.
func (a *Add) Key() Key { return Key{a.Path, a.DeletionVector.UniqueID()} }

// Key returns the identity of the file that is removed.
func (r *Remove) Key() Key { return Key{r.Path, r.DeletionVector.UniqueID()} }

// Tombstone is the remove that undoes an add. Of the statistics it keeps the
// number of rows, by which a version says how many it took away.
func (a *Add) Tombstone(dataChange bool) Remove {
	var rows string
	if st, ok, err := ParseStats(a.Stats); err == nil && ok {
		rows = `{"numRecords":` + strconv.FormatInt(st.NumRecords, 10) + `}`
	}
	return Remove{
		Path: a.Path, DataChange: dataChange, ExtendedFileMetadata: true,
		PartitionValues: a.PartitionValues, Size: a.Size, Stats: rows, Tags: a.Tags,
		DeletionVector: a.DeletionVector, BaseRowID: a.BaseRowID,
		DefaultRowCommitVersion: a.DefaultRowCommitVersion,
	}
}

// DecodePath turns a logged path into a storage path: it undoes the percent
// encoding of RFC 2396. A path with a scheme is returned as it is.
func DecodePath(p string) (string, error) {
	if strings.Contains(p, "://") {
		return p, nil
	}
	d, err := url.PathUnescape(p)
	if err != nil {
		return "", fmt.Errorf("%w: path %.200q: %w", ErrCorrupt, p, err)
	}
	return d, nil
}
