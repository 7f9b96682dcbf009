package action

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"unicode/utf8"
)

// header is an action that occurs once in an entry, as it stands there.
type header struct {
	CommitInfo *CommitInfo `json:"commitInfo,omitempty"`
	Protocol   *Protocol   `json:"protocol,omitempty"`
	MetaData   *Metadata   `json:"metaData,omitempty"`
}

// Encode returns the entry's bytes, one action a line, commitInfo first, as
// the table feature inCommitTimestamp requires. They are the bytes that
// encoding/json would write.
func (c *Commit) Encode() ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	for _, h := range []struct {
		has    bool
		header header
	}{
		{c.Info != nil, header{CommitInfo: c.Info}},
		{c.Protocol != nil, header{Protocol: c.Protocol}},
		{c.Metadata != nil, header{MetaData: c.Metadata}},
	} {
		if !h.has {
			continue
		}
		if err := enc.Encode(h.header); err != nil {
			return nil, fmt.Errorf("encode commit: %w", err)
		}
	}
	e := encoder{buf: append(make([]byte, 0, buf.Len()+c.room()), buf.Bytes()...)}
	for i := range c.Txns {
		e.txn(&c.Txns[i])
	}
	for i := range c.Domains {
		e.domain(&c.Domains[i])
	}
	for i := range c.Removes {
		e.remove(&c.Removes[i])
	}
	for i := range c.Adds {
		e.add(&c.Adds[i])
	}
	if e.err != nil {
		return nil, fmt.Errorf("encode commit: %w", e.err)
	}
	return e.buf, nil
}

// room is about how many bytes the actions take, so that the buffer of a large
// entry is not copied over and over.
func (c *Commit) room() int {
	const names = 160 // names, numbers and marks of a file action
	n := 0
	for i := range c.Removes {
		r := &c.Removes[i]
		n += names + len(r.Path) + len(r.PartitionValues) + len(r.Stats)*5/4 + len(r.Tags)
	}
	for i := range c.Adds {
		a := &c.Adds[i]
		n += names + len(a.Path) + len(a.PartitionValues) + len(a.Stats)*5/4 + len(a.Tags)
	}
	return n
}

// encoder appends actions. A name is given with what stands before it and the
// colon.
type encoder struct {
	buf []byte
	err error // of the first object that is no JSON
}

func (e *encoder) add(a *Add) {
	e.text(`{"add":{"path":`, a.Path)
	e.object(`,"partitionValues":`, a.PartitionValues)
	e.integer(`,"size":`, a.Size)
	e.integer(`,"modificationTime":`, a.ModificationTime)
	e.boolean(`,"dataChange":`, a.DataChange)
	e.someText(`,"stats":`, a.Stats)
	e.someObject(`,"tags":`, a.Tags)
	e.vector(a.DeletionVector)
	e.optional(`,"baseRowId":`, a.BaseRowID)
	e.optional(`,"defaultRowCommitVersion":`, a.DefaultRowCommitVersion)
	e.someText(`,"clusteringProvider":`, a.ClusteringProvider)
	e.end()
}

func (e *encoder) remove(r *Remove) {
	e.text(`{"remove":{"path":`, r.Path)
	e.someInteger(`,"deletionTimestamp":`, r.DeletionTimestamp)
	e.boolean(`,"dataChange":`, r.DataChange)
	if r.ExtendedFileMetadata {
		e.boolean(`,"extendedFileMetadata":`, true)
	}
	e.someObject(`,"partitionValues":`, r.PartitionValues)
	e.someInteger(`,"size":`, r.Size)
	e.someText(`,"stats":`, r.Stats)
	e.someObject(`,"tags":`, r.Tags)
	e.vector(r.DeletionVector)
	e.optional(`,"baseRowId":`, r.BaseRowID)
	e.optional(`,"defaultRowCommitVersion":`, r.DefaultRowCommitVersion)
	e.end()
}

func (e *encoder) txn(t *SetTransaction) {
	e.text(`{"txn":{"appId":`, t.AppID)
	e.integer(`,"version":`, t.Version)
	e.someInteger(`,"lastUpdated":`, t.LastUpdated)
	e.end()
}

func (e *encoder) domain(d *DomainMetadata) {
	e.text(`{"domainMetadata":{"domain":`, d.Domain)
	e.text(`,"configuration":`, d.Configuration)
	e.boolean(`,"removed":`, d.Removed)
	e.end()
}

func (e *encoder) vector(d *DeletionVector) {
	if d == nil {
		return
	}
	e.text(`,"deletionVector":{"storageType":`, d.StorageType)
	e.text(`,"pathOrInlineDv":`, d.PathOrInlineDV)
	if d.Offset != nil {
		e.integer(`,"offset":`, int64(*d.Offset))
	}
	e.integer(`,"sizeInBytes":`, int64(d.SizeInBytes))
	e.integer(`,"cardinality":`, d.Cardinality)
	e.buf = append(e.buf, '}')
}

func (e *encoder) end() { e.buf = append(e.buf, "}}\n"...) }

func (e *encoder) integer(name string, v int64) {
	e.buf = strconv.AppendInt(append(e.buf, name...), v, 10)
}

func (e *encoder) someInteger(name string, v int64) {
	if v != 0 {
		e.integer(name, v)
	}
}

func (e *encoder) optional(name string, v *int64) {
	if v != nil {
		e.integer(name, *v)
	}
}

func (e *encoder) boolean(name string, v bool) {
	e.buf = strconv.AppendBool(append(e.buf, name...), v)
}

func (e *encoder) someText(name, s string) {
	if s != "" {
		e.text(name, s)
	}
}

// text appends a string with the escapes of encoding/json.
func (e *encoder) text(name, s string) {
	b := append(e.buf, name...)
	b = append(b, '"')
	from := 0
	for i := 0; i < len(s); {
		c := s[i]
		if ' ' <= c && c < utf8.RuneSelf && c != '"' && c != '\\' {
			i++
			continue
		}
		if c < utf8.RuneSelf {
			b = append(b, s[from:i]...)
			switch c {
			case '"', '\\':
				b = append(b, '\\', c)
			case '\b':
				b = append(b, '\\', 'b')
			case '\f':
				b = append(b, '\\', 'f')
			case '\n':
				b = append(b, '\\', 'n')
			case '\r':
				b = append(b, '\\', 'r')
			case '\t':
				b = append(b, '\\', 't')
			default:
				b = append(b, '\\', 'u', '0', '0', '0'+c>>4, "0123456789abcdef"[c&15])
			}
			i++
			from = i
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			b = append(append(b, s[from:i]...), `\ufffd`...)
			from = i + 1
		case r == '\u2028' || r == '\u2029': // end lines in JavaScript
			b = append(append(b, s[from:i]...), `\u202`...)
			b = append(b, '8'+byte(r-'\u2028'))
			from = i + n
		}
		i += n
	}
	e.buf = append(append(b, s[from:]...), '"')
}

func (e *encoder) someObject(name string, o Object) {
	if o != "" {
		e.object(name, o)
	}
}

// object appends an object's text, without its spaces.
func (e *encoder) object(name string, o Object) {
	e.buf = append(e.buf, name...)
	if o == "" {
		e.buf = append(e.buf, '{', '}')
		return
	}
	from := len(e.buf)
	e.buf = append(e.buf, o...)
	text := e.buf[from:]
	s := scanner{data: text}
	if _, err := s.object(); err == nil && s.pos == len(text) && !spaced(text) {
		return
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, text); err != nil && e.err == nil {
		e.err = fmt.Errorf("object %.200q: %w", string(o), err)
	}
	e.buf = append(e.buf[:from], compact.Bytes()...)
}

// spaced reports whether there may be white space between tokens.
func spaced(text []byte) bool {
	for _, c := range text {
		if c <= ' ' {
			return true
		}
	}
	return false
}
