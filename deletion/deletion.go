// Package deletion reads deletion vectors: which rows of a data file are
// deleted, by their place in the file.
//
// It stands on layer 2, over storage and action, and only reads; tables of
// ours have none. A vector is a bitmap that lies in the log itself, or in an
// object that it may share with others.
//
// Format (PROTOCOL.md, "Deletion Vectors" and "Deletion Vector Format"):
//
//	storageType u  object deletion_vector_<uuid>.bin below the table's root, in
//	               a directory of its own where a prefix is given:
//	               pathOrInlineDv = prefix, then the UUID's 16 bytes in Z85
//	storageType p  object at the absolute URI pathOrInlineDv
//	storageType i  the bitmap itself in Z85, zeros or the digits # making the
//	               last group a whole one
//
//	object   1 byte version 1, then vectors at the offsets that the log states
//	vector   4 bytes size, big-endian | bitmap | 4 bytes CRC-32 (IEEE) of it, big-endian
//	bitmap   4 bytes magic 1681511377, little-endian | 64-bit Roaring bitmap, portable format
//
// INVARIANT: a vector that Read returns has as many rows as the log states.
// Of what is damaged nothing is returned, for each lost bit is a deleted row
// that comes back.
package deletion

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"

	"github.com/RoaringBitmap/roaring/v2/roaring64"

	"cardinalsin/action"
	"cardinalsin/storage"
)

// ErrCorrupt: the vector is not what the log states, or its object is
// missing. The error names the object.
var ErrCorrupt = errors.New("corrupt deletion vector")

const (
	version    = 1
	magic      = 1681511377
	frameBytes = 4 // of the size, the magic and the sum alike

	// maxBytes bounds a vector: each of the 2^15 containers that 2^31 rows
	// need has at most 8 KiB.
	maxBytes = 1 << 28
	// maxRows is what a file can have: row numbers are signed.
	maxRows = 1 << 63
)

// Vector is a set of rows of one file. It is immutable and may be used
// concurrently.
type Vector struct{ rows *roaring64.Bitmap }

// Len is the number of rows.
func (v *Vector) Len() int64 { return int64(v.rows.GetCardinality()) } //nolint:gosec // Read has compared it with an int64

// Rows starts a pass over the rows in ascending order, the first row of a
// file being 0. Each call of the function that it returns puts the next rows
// into a slice and says how many; 0 ends the pass.
func (v *Vector) Rows() func(into []uint64) int { return v.rows.ManyIterator().NextMany }

// Locations say where the objects of a table are.
type Locations interface {
	// Root is the table's key prefix.
	Root() string
	// Key returns the key of an absolute URI.
	Key(uri string) (string, error)
}

// Read reads one vector: one ranged read, none for an inline one. Errors:
// ErrCorrupt, those of Locations.Key, storage errors.
func Read(ctx context.Context, store storage.Store, at Locations, d *action.DeletionVector) (*Vector, error) {
	var data []byte
	var name string
	var err error
	if d.StorageType == "i" {
		name = "inline deletion vector"
		data, err = inline(d)
	} else {
		name, data, err = load(ctx, store, at, d)
	}
	if err != nil {
		return nil, err
	}
	v, err := decode(data, d.Cardinality)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrCorrupt, name, err)
	}
	return v, nil
}

// inline returns the bitmap of a vector in the log.
func inline(d *action.DeletionVector) ([]byte, error) {
	data, err := decodeZ85(d.PathOrInlineDV)
	if err != nil {
		return nil, fmt.Errorf("%w: inline deletion vector: %w", ErrCorrupt, err)
	}
	// Z85 writes four bytes at a time; what is over is padding.
	if n := int(d.SizeInBytes); n < 0 || n > len(data) || len(data)-n > 3 {
		return nil, fmt.Errorf("%w: inline deletion vector of %d bytes, the log says %d", ErrCorrupt, len(data), n)
	}
	return data[:d.SizeInBytes], nil
}

// testPrefix stands before the names of the objects that delta-spark writes
// in its own tests (DeletionVectorDescriptor), whose tables are published.
const testPrefix = "test%dv%prefix-"

// keys lists where a vector's object may be.
func keys(at Locations, d *action.DeletionVector) ([]string, error) {
	switch d.StorageType {
	case "p":
		key, err := at.Key(d.PathOrInlineDV)
		return []string{key}, err
	case "u":
		const encoded = 20 // 16 bytes in Z85
		if len(d.PathOrInlineDV) < encoded {
			return nil, fmt.Errorf("%w: %q is too short for a UUID", ErrCorrupt, d.PathOrInlineDV)
		}
		prefix, id := d.PathOrInlineDV[:len(d.PathOrInlineDV)-encoded], d.PathOrInlineDV[len(d.PathOrInlineDV)-encoded:]
		u, err := decodeZ85(id)
		if err != nil {
			return nil, fmt.Errorf("%w: UUID %q: %w", ErrCorrupt, id, err)
		}
		dir := at.Root() + "/"
		if prefix != "" {
			dir += prefix + "/"
		}
		name := fmt.Sprintf("deletion_vector_%x-%x-%x-%x-%x.bin", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
		list := []string{dir + name, dir + testPrefix + name}
		for _, key := range list {
			if err := storage.ValidateKey(key); err != nil {
				return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
			}
		}
		return list, nil
	}
	return nil, fmt.Errorf("%w: storage type %.20q", ErrCorrupt, d.StorageType)
}

// load reads a vector's object and takes the frame off.
func load(ctx context.Context, store storage.Store, at Locations, d *action.DeletionVector) (name string, bitmap []byte, err error) {
	list, err := keys(at, d)
	if err != nil {
		return "", nil, err
	}
	// The first vector follows the version; where no offset is given, it is
	// that one.
	offset := int64(1)
	if d.Offset != nil {
		offset = int64(*d.Offset)
	}
	size := int64(d.SizeInBytes)
	if offset < 1 || size < frameBytes || size > maxBytes {
		return "", nil, fmt.Errorf("%w: %s: offset %d, size %d", ErrCorrupt, list[0], offset, size)
	}
	from, length := offset, frameBytes+size+frameBytes
	if offset == 1 {
		from, length = 0, length+1 // with the version; of others it costs a read
	}
	var data []byte
	for _, key := range list {
		name = key
		if data, err = store.GetRange(ctx, key, from, length); !errors.Is(err, storage.ErrNotFound) {
			break
		}
	}
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return "", nil, fmt.Errorf("%w: the log names %s, which does not exist: %w", ErrCorrupt, list[0], err)
	case errors.Is(err, storage.ErrInvalidRange):
		return "", nil, fmt.Errorf("%w: %s ends before byte %d: %w", ErrCorrupt, name, from+length, err)
	case err != nil:
		return "", nil, fmt.Errorf("read deletion vector: %w", err)
	}
	if offset == 1 {
		if data[0] != version {
			return "", nil, fmt.Errorf("%w: %s has version %d", ErrCorrupt, name, data[0])
		}
		data = data[1:]
	}
	bitmap, err = unframe(data)
	if err != nil {
		return "", nil, fmt.Errorf("%w: %s: %w", ErrCorrupt, name, err)
	}
	return name, bitmap, nil
}

// unframe checks and removes the size and the sum around a bitmap.
func unframe(data []byte) ([]byte, error) {
	if len(data) < 2*frameBytes {
		return nil, fmt.Errorf("%d bytes are no vector", len(data))
	}
	bitmap := data[frameBytes : len(data)-frameBytes]
	if stated := binary.BigEndian.Uint32(data); uint64(stated) != uint64(len(bitmap)) {
		return nil, fmt.Errorf("size %d in the object, %d in the log", stated, len(bitmap))
	}
	if stated, is := binary.BigEndian.Uint32(data[len(data)-frameBytes:]), crc32.ChecksumIEEE(bitmap); stated != is {
		return nil, fmt.Errorf("CRC-32 is %08x, not %08x", is, stated)
	}
	return bitmap, nil
}

// decode reads a bitmap of a stated number of rows.
func decode(data []byte, cardinality int64) (*Vector, error) {
	if len(data) < frameBytes || binary.LittleEndian.Uint32(data) != magic {
		return nil, errors.New("no magic number")
	}
	v := &Vector{rows: roaring64.New()}
	r := bytes.NewReader(data[frameBytes:])
	if _, err := v.rows.ReadPortableFrom(r); err != nil {
		return nil, fmt.Errorf("bitmap: %w", err)
	}
	if r.Len() > 0 {
		return nil, fmt.Errorf("%d bytes after the bitmap", r.Len())
	}
	if err := v.rows.Validate(); err != nil {
		return nil, fmt.Errorf("bitmap: %w", err)
	}
	if n := v.rows.GetCardinality(); cardinality < 0 || n != uint64(cardinality) {
		return nil, fmt.Errorf("%d rows, the log says %d", n, cardinality)
	}
	if cardinality > 0 && v.rows.Maximum() >= maxRows {
		return nil, fmt.Errorf("row %d", v.rows.Maximum())
	}
	return v, nil
}

// z85 are the digits of base 85 (ZeroMQ RFC 32).
const z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"

// padding stands at the front of a last group that holds fewer than four
// bytes, as the Rust kernel writes it (crate z85). No group of four bytes
// begins with this digit.
const padding = '#'

// decodeZ85 turns each five digits into four bytes.
func decodeZ85(s string) ([]byte, error) {
	if len(s)%5 != 0 {
		return nil, fmt.Errorf("%d digits are no multiple of 5", len(s))
	}
	out := make([]byte, 0, len(s)/5*4)
	for ; s != ""; s = s[5:] {
		group, size := s[:5], 4
		if len(s) == 5 {
			for size > 1 && group[0] == padding {
				group, size = group[1:], size-1
			}
		}
		var n uint64
		for i := range len(group) {
			digit := strings.IndexByte(z85, group[i])
			if digit < 0 {
				return nil, fmt.Errorf("%q is no digit of Z85", group[i])
			}
			n = n*85 + uint64(digit)
		}
		if n>>(8*size) > 0 {
			return nil, fmt.Errorf("%q is more than %d bytes", s[:5], size)
		}
		out = append(out, binary.BigEndian.AppendUint32(nil, uint32(n))[4-size:]...)
	}
	return out, nil
}
