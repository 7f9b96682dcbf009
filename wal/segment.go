package wal

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strconv"
	"strings"
)

const (
	segmentMagic   = "CARDWAL\n"
	segmentVersion = 1
	segmentSuffix  = ".wal"

	segmentHeaderBytes = 40
	frameHeaderBytes   = 26
	frameFixedBytes    = frameHeaderBytes - 8 // of a frame's length, what is not payload
)

// Kinds of frames. The numbers are stored.
const (
	kindBatch byte = 1
	kindSeal  byte = 2
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func segmentName(first Sequence) string { return fmt.Sprintf("%020d%s", uint64(first), segmentSuffix) }

// parseSegmentName is the inverse of segmentName.
func parseSegmentName(name string) (Sequence, bool) {
	digits, ok := strings.CutSuffix(name, segmentSuffix)
	if !ok || len(digits) != 20 {
		return 0, false
	}
	v, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || v == 0 {
		return 0, false
	}
	return Sequence(v), true
}

type segmentHeader struct {
	writer WriterID
	first  Sequence
}

func (h segmentHeader) encode() []byte {
	b := make([]byte, 0, segmentHeaderBytes)
	b = append(b, segmentMagic...)
	b = binary.LittleEndian.AppendUint16(b, segmentVersion)
	b = append(b, 0, 0)
	b = append(b, h.writer[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(h.first))
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// seed is the header's checksum, from which those of the frames go on.
func (h segmentHeader) seed() uint32 {
	return binary.LittleEndian.Uint32(h.encode()[segmentHeaderBytes-4:])
}

// parseSegmentHeader checks the magic, then the checksum, then the version, so
// that damage is not taken for a later version.
func parseSegmentHeader(b []byte) (segmentHeader, error) {
	if len(b) < segmentHeaderBytes {
		return segmentHeader{}, fmt.Errorf("%w: header of %d bytes", ErrCorrupt, len(b))
	}
	b = b[:segmentHeaderBytes]
	if magic := string(b[:8]); magic != segmentMagic {
		return segmentHeader{}, fmt.Errorf("%w: magic is %q", ErrCorrupt, magic)
	}
	if got, want := crc32.Checksum(b[:36], castagnoli), binary.LittleEndian.Uint32(b[36:]); got != want {
		return segmentHeader{}, fmt.Errorf("%w: header checksum is %08x, not %08x", ErrCorrupt, got, want)
	}
	if v := binary.LittleEndian.Uint16(b[8:]); v != segmentVersion || b[10] != 0 || b[11] != 0 {
		return segmentHeader{}, fmt.Errorf("%w: segment format %d, flags %x", ErrUnsupportedVersion, v, b[10:12])
	}
	h := segmentHeader{first: Sequence(binary.LittleEndian.Uint64(b[28:]))}
	copy(h.writer[:], b[12:])
	return h, nil
}

// frame is one record or seal of a segment.
type frame struct {
	kind     byte
	codec    byte
	sequence Sequence
	synced   int64
	payload  []byte
}

func (f frame) bytes() int64 { return frameHeaderBytes + int64(len(f.payload)) }

// append writes the frame behind dst.
func (f frame) append(dst []byte, seed uint32) []byte {
	at := len(dst)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(frameFixedBytes+len(f.payload)))
	dst = append(dst, 0, 0, 0, 0)
	dst = append(dst, f.kind, f.codec)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(f.sequence))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(f.synced))
	dst = append(dst, f.payload...)
	binary.LittleEndian.PutUint32(dst[at+4:], frameChecksum(dst[at:], seed))
	return dst
}

// frameChecksum covers the length and all that follows the checksum of b,
// which is one whole frame.
func frameChecksum(b []byte, seed uint32) uint32 {
	return crc32.Update(crc32.Update(seed, castagnoli, b[:4]), castagnoli, b[8:])
}

// parseFrameHeader reads the fixed fields; b has frameHeaderBytes or more. ok
// is false when the length is out of bounds; the rest is not checked.
func parseFrameHeader(b []byte) (f frame, payloadBytes int, ok bool) {
	n := binary.LittleEndian.Uint32(b)
	if n < frameFixedBytes || n > frameFixedBytes+MaxRecordBytes {
		return frame{}, 0, false
	}
	f = frame{
		kind:     b[8],
		codec:    b[9],
		sequence: Sequence(binary.LittleEndian.Uint64(b[10:])),
		synced:   int64(binary.LittleEndian.Uint64(b[18:])),
	}
	return f, int(n) - frameFixedBytes, true
}

// segmentReader reads the frames of one segment in order. Its errors are
// *CorruptionError for bytes that do not fit, errors that wrap
// ErrUnsupportedVersion, or those of the file.
type segmentReader struct {
	name   string
	file   io.ReaderAt
	size   int64 // of the file, or as far as it may be read
	header segmentHeader
	seed   uint32

	buffered *bufio.Reader
	offset   int64    // of the next frame
	next     Sequence // sequence of the next frame
	synced   int64    // what the frames read so far prove durable
	sealed   bool
	buf      []byte
}

// openSegmentReader reads and checks the header, its first sequence against
// the name.
func openSegmentReader(name string, file io.ReaderAt, size int64) (*segmentReader, error) {
	r := &segmentReader{name: name, file: file, size: size}
	b := make([]byte, min(size, segmentHeaderBytes))
	if _, err := file.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read header of segment %s: %w", name, err)
	}
	h, err := parseSegmentHeader(b)
	if err != nil {
		return nil, r.wrap(0, err)
	}
	if first, ok := parseSegmentName(name); !ok || first != h.first {
		return nil, r.wrap(0, fmt.Errorf("%w: first sequence is %d by the header", ErrCorrupt, h.first))
	}
	r.header, r.seed, r.next, r.synced = h, h.seed(), h.first, segmentHeaderBytes
	r.seek(segmentHeaderBytes)
	return r, nil
}

// wrap puts the place to an error.
func (r *segmentReader) wrap(offset int64, err error) error {
	if errors.Is(err, ErrCorrupt) {
		return &CorruptionError{Segment: r.name, Offset: offset, Err: err}
	}
	return fmt.Errorf("segment %s at offset %d: %w", r.name, offset, err)
}

func (r *segmentReader) seek(offset int64) {
	r.offset = offset
	section := io.NewSectionReader(r.file, offset, r.size-offset)
	if r.buffered == nil {
		r.buffered = bufio.NewReaderSize(section, int(min(256<<10, r.size)))
		return
	}
	r.buffered.Reset(section)
}

// read returns the next frame, whose payload is valid until the next call, or
// io.EOF at the end of the file. After a *CorruptionError the reader stays
// where it is.
func (r *segmentReader) read() (frame, error) {
	if r.offset == r.size {
		return frame{}, io.EOF
	}
	f, err := r.readFrame()
	if err != nil {
		return frame{}, r.wrap(r.offset, err)
	}
	r.offset += f.bytes()
	r.synced = max(r.synced, f.synced)
	if f.kind == kindSeal {
		r.sealed = true
	} else {
		r.next++
	}
	return f, nil
}

func (r *segmentReader) readFrame() (frame, error) {
	f, err := r.readIntact()
	if err != nil {
		return frame{}, err
	}
	// The frame is what was written; now it must be what belongs here.
	want := r.next
	switch {
	case r.sealed:
		return frame{}, fmt.Errorf("%w: frame after the seal", ErrCorrupt)
	case f.kind == kindSeal:
		want-- // of the last record
	case f.kind != kindBatch:
		return frame{}, fmt.Errorf("%w: frame kind %d", ErrUnsupportedVersion, f.kind)
	}
	if f.sequence != want {
		return frame{}, fmt.Errorf("%w: sequence %d, not %d", ErrCorrupt, f.sequence, want)
	}
	if f.synced < 0 || f.synced > r.offset {
		return frame{}, fmt.Errorf("%w: synced to %d", ErrCorrupt, f.synced)
	}
	return f, nil
}

// readIntact reads one frame and checks its checksum. Nothing is allocated for
// a length that the file does not have.
func (r *segmentReader) readIntact() (frame, error) {
	left := r.size - r.offset
	if left < frameHeaderBytes {
		return frame{}, fmt.Errorf("%w: %d bytes of a frame", ErrCorrupt, left)
	}
	r.buf = grow(r.buf, frameHeaderBytes)
	if _, err := io.ReadFull(r.buffered, r.buf); err != nil {
		return frame{}, readError(err)
	}
	f, n, ok := parseFrameHeader(r.buf)
	if !ok {
		return frame{}, fmt.Errorf("%w: frame length %d", ErrCorrupt, binary.LittleEndian.Uint32(r.buf))
	}
	if int64(n) > left-frameHeaderBytes {
		return frame{}, fmt.Errorf("%w: %d of %d bytes of a payload", ErrCorrupt, left-frameHeaderBytes, n)
	}
	r.buf = grow(r.buf, frameHeaderBytes+n)
	if _, err := io.ReadFull(r.buffered, r.buf[frameHeaderBytes:]); err != nil {
		return frame{}, readError(err)
	}
	if got, want := frameChecksum(r.buf, r.seed), binary.LittleEndian.Uint32(r.buf[4:]); got != want {
		return frame{}, fmt.Errorf("%w: frame checksum is %08x, not %08x", ErrCorrupt, got, want)
	}
	f.payload = r.buf[frameHeaderBytes:]
	return f, nil
}

// readError tells a file that has become shorter from one that cannot be read.
func readError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: file ends within a frame", ErrCorrupt)
	}
	return err
}

// grow returns b with length n, its first bytes kept.
func grow(b []byte, n int) []byte {
	if n <= cap(b) {
		return b[:n]
	}
	return append(make([]byte, 0, n), b...)[:n]
}

// scanBytes is how much find reads at once.
const scanBytes = 1 << 20

// find returns the offset of the first intact frame after the reader's place
// that proves more than minSynced bytes durable. It tries every offset; the
// sequence and synced fields are so rarely plausible by chance that hardly any
// checksum is computed in vain. The reader stays where it is.
func (r *segmentReader) find(minSynced int64) (offset int64, found bool, err error) {
	// Windows overlap by what a header at the end of one would lack.
	window := make([]byte, 0, min(scanBytes+frameHeaderBytes-1, r.size-r.offset))
	var whole []byte
	for base := r.offset + 1; r.size-base >= frameHeaderBytes; base += scanBytes {
		window = window[:min(int64(cap(window)), r.size-base)]
		if _, err := r.file.ReadAt(window, base); err != nil {
			return 0, false, fmt.Errorf("scan segment %s: %w", r.name, err)
		}
		for i := 0; i+frameHeaderBytes <= len(window); i++ {
			at := base + int64(i)
			f, n, ok := parseFrameHeader(window[i:])
			if !ok || int64(n) > r.size-at-frameHeaderBytes || !r.plausible(f, at, minSynced) {
				continue
			}
			whole = grow(whole[:0], frameHeaderBytes+n)
			if _, err := r.file.ReadAt(whole, at); err != nil {
				return 0, false, fmt.Errorf("scan segment %s: %w", r.name, err)
			}
			if frameChecksum(whole, r.seed) == binary.LittleEndian.Uint32(whole[4:]) {
				return at, true, nil
			}
		}
	}
	return 0, false, nil
}

// plausible: between the reader's place and at there is room for so many
// records, and a frame cannot know of durable bytes behind itself.
func (r *segmentReader) plausible(f frame, at, minSynced int64) bool {
	room := Sequence((at - r.offset) / frameHeaderBytes)
	return f.sequence+1 >= r.next && f.sequence <= r.next+room && f.synced > minSynced && f.synced <= at
}
