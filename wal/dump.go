package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"cardinalsin/series"
)

// EntryKind says what a part of a segment is.
type EntryKind string

// Kinds of entries. Entries of all but EntryDamage are intact.
const (
	EntryHeader EntryKind = "header"
	EntryBatch  EntryKind = "batch"
	EntrySeal   EntryKind = "seal"
	// EntryDamage: bytes that are no frame, or a frame out of place; Err says
	// why. At the end of the last segment it may be a torn tail.
	EntryDamage EntryKind = "damage"
)

// Entry is one part of a segment, as Dump finds it.
type Entry struct {
	Segment  string // file name
	Offset   int64
	Bytes    int64
	Kind     EntryKind
	Writer   WriterID     // of a header
	Sequence Sequence     // of a header, the first of the segment
	Batch    series.Batch // of a batch; the callback may keep it
	Err      error        // of damage; wraps ErrCorrupt or ErrUnsupportedVersion
}

// Dump calls fn for every part of every segment in order. It changes and locks
// nothing, and does not stop at damage: what is intact after it is found by its
// checksum, so that it can be saved. On the directory of an open log the end
// may look torn. An error of fn ends it and is returned; damage is no error.
// Errors: those of reading the files.
func Dump(dir string, fn func(Entry) error) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("dump wal: %w", err)
	}
	var firsts []Sequence
	for _, e := range entries {
		if first, ok := parseSegmentName(e.Name()); ok {
			firsts = append(firsts, first)
		}
	}
	slices.Sort(firsts)
	for _, first := range firsts {
		if err := dumpSegment(dir, first, fn); err != nil {
			return fmt.Errorf("dump wal: segment %s: %w", segmentName(first), err)
		}
	}
	return nil
}

func dumpSegment(dir string, first Sequence, fn func(Entry) error) error {
	name := segmentName(first)
	in, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return err
	}
	defer in.Close() //nolint:errcheck // only read
	info, err := in.Stat()
	if err != nil {
		return err
	}
	r, err := openSegmentReader(name, in, info.Size())
	switch {
	case err == nil:
		err = fn(Entry{Segment: name, Bytes: segmentHeaderBytes, Kind: EntryHeader, Writer: r.header.writer, Sequence: first})
	case errors.Is(err, ErrCorrupt) || errors.Is(err, ErrUnsupportedVersion):
		bad := Entry{Segment: name, Bytes: min(info.Size(), segmentHeaderBytes), Kind: EntryDamage, Err: err}
		if r, err = salvageReader(name, in, info.Size()); err == nil {
			err = fn(bad)
		}
	}
	if err != nil || r == nil {
		return err
	}
	return r.dump(fn)
}

// salvageReader reads a segment whose header is bad, on the assumption that
// the checksum in it, from which those of the frames go on, is not. It is nil
// when there is nothing behind the header.
func salvageReader(name string, in io.ReaderAt, size int64) (*segmentReader, error) {
	if size <= segmentHeaderBytes {
		return nil, nil
	}
	var b [segmentHeaderBytes]byte
	if _, err := in.ReadAt(b[:], 0); err != nil {
		return nil, err
	}
	first, _ := parseSegmentName(name)
	r := &segmentReader{name: name, file: in, size: size, next: first}
	r.seek(segmentHeaderBytes)
	r.seed = binary.LittleEndian.Uint32(b[36:])
	return r, nil
}

func (r *segmentReader) dump(fn func(Entry) error) error {
	for {
		at := r.offset
		f, err := r.read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		e := Entry{Segment: r.name, Offset: at, Bytes: r.offset - at}
		switch {
		case err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnsupportedVersion):
			return err
		case err != nil:
			if e.Bytes, err = r.skip(err, &e); err != nil {
				return err
			}
		case f.kind == kindSeal:
			e.Kind, e.Sequence = EntrySeal, f.sequence
		default:
			e.Kind, e.Sequence = EntryBatch, f.sequence
			if e.Batch, err = decodePayload(f.codec, f.payload); err != nil {
				e.Kind, e.Err = EntryDamage, err
			}
		}
		if err := fn(e); err != nil {
			return err
		}
	}
}

// skip moves the reader to the next intact frame, or to the end, makes e the
// entry for what lies between, and returns its size.
func (r *segmentReader) skip(reason error, e *Entry) (int64, error) {
	e.Kind, e.Err = EntryDamage, reason
	from := r.offset
	at, found, err := r.find(-1)
	if err != nil {
		return 0, err
	}
	if !found {
		r.seek(r.size)
		return r.size - from, nil
	}
	var b [frameHeaderBytes]byte
	if _, err := r.file.ReadAt(b[:], at); err != nil {
		return 0, err
	}
	f, _, ok := parseFrameHeader(b[:])
	if !ok {
		return 0, fmt.Errorf("frame at offset %d changed while it was read", at)
	}
	r.seek(at)
	r.sealed = false
	if r.next = f.sequence; f.kind == kindSeal {
		r.next++
	}
	return at - from, nil
}
