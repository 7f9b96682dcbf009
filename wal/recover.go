package wal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// recoverDir brings the directory and the log to where appends can go on. The
// caller holds the directory's lock.
func (l *Log) recoverDir() error {
	names, err := tidyDir(l.dir)
	if err != nil {
		return err
	}
	id, found, err := loadIdentity(l.dir)
	if err != nil {
		return err
	}
	if !found && len(names) > 0 {
		return fmt.Errorf("%w: %d segments and no %s", ErrCorrupt, len(names), identityName)
	}
	if len(names) == 0 {
		// Also when an identity was found: a crash came before the first
		// segment, or the segments are lost and the counter with them.
		if l.writer, err = createIdentity(l.dir); err != nil {
			return err
		}
		return l.createSegment(1)
	}
	l.writer = id
	for _, first := range names[:len(names)-1] {
		info, err := os.Stat(l.path(segmentName(first)))
		if err != nil {
			return fmt.Errorf("stat segment: %w", err)
		}
		l.segments = append(l.segments, segment{first: first, bytes: info.Size()})
	}
	return l.recoverLast(names[len(names)-1])
}

// tidyDir removes what a crash left half made and lists the segments in order.
func tidyDir(dir string) ([]Sequence, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list directory: %w", err)
	}
	var firsts []Sequence
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), tempSuffix) {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return nil, fmt.Errorf("remove temporary file: %w", err)
			}
		}
		if first, ok := parseSegmentName(e.Name()); ok {
			firsts = append(firsts, first)
		}
	}
	slices.Sort(firsts)
	// A rename or removal of a log that failed may not be durable yet.
	if err := syncDir(dir); err != nil {
		return nil, err
	}
	return firsts, nil
}

// recoverLast reads the last segment, trims a torn tail, makes what is left
// durable beyond doubt and takes the segment for appends; if it is sealed, a
// new one.
func (l *Log) recoverLast(first Sequence) error {
	name := segmentName(first)
	in, err := os.Open(l.path(name))
	if err != nil {
		return fmt.Errorf("open segment: %w", err)
	}
	defer in.Close() //nolint:errcheck // only read
	info, err := in.Stat()
	if err != nil {
		return fmt.Errorf("stat segment: %w", err)
	}
	r, err := openSegmentReader(name, in, info.Size())
	if err != nil {
		return err
	}
	if r.header.writer != l.writer {
		return &CorruptionError{Segment: name, Err: fmt.Errorf("%w: writer is %s, not %s", ErrCorrupt, r.header.writer, l.writer)}
	}
	if err := r.readToTear(); err != nil {
		return err
	}
	l.segments = append(l.segments, segment{first: first, bytes: r.offset})
	l.last = r.next - 1
	if r.sealed {
		return l.createSegment(r.next)
	}
	if err := l.activate(r.header, r.offset); err != nil {
		return err
	}
	if err := l.writeOver(in, r.synced, r.offset); err != nil {
		return fmt.Errorf("secure end of segment %s: %w", name, full(err))
	}
	if trimmed := info.Size() - r.offset; trimmed > 0 {
		l.opts.Events.TailTrimmed(name, r.offset, trimmed)
	}
	return nil
}

// readToTear reads up to the end or to a torn tail, and returns the error for
// damage; see "Torn tail or damage".
func (r *segmentReader) readToTear() error {
	for {
		_, err := r.read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			continue
		}
		if damage := (*CorruptionError)(nil); !errors.As(err, &damage) || r.sealed {
			return err
		}
		at, found, findErr := r.find(r.offset)
		if findErr != nil {
			return findErr
		}
		if found {
			return fmt.Errorf("%w (a later frame, at offset %d, proves that it was durable)", err, at)
		}
		return nil
	}
}

// blockBytes is the largest unit in which a kernel writes back a file and may
// therefore have spoilt bytes beside those that a failed sync was about.
const blockBytes = 64 << 10

// writeOver writes the bytes from synced to end over themselves, cuts off what
// follows, and syncs. What was read may exist only in the page cache, marked
// clean by a sync that failed before the log was opened; written again, it
// must go to the disk.
func (l *Log) writeOver(in io.ReaderAt, synced, end int64) error {
	buf := make([]byte, blockBytes)
	for at := synced &^ (blockBytes - 1); at < end; at += blockBytes {
		b := buf[:min(blockBytes, end-at)]
		if _, err := in.ReadAt(b, at); err != nil {
			return fmt.Errorf("read: %w", err)
		}
		if _, err := l.active.WriteAt(b, at); err != nil {
			return fmt.Errorf("write: %w", err)
		}
	}
	if err := l.active.Truncate(end); err != nil {
		return fmt.Errorf("truncate: %w", err)
	}
	if err := l.active.Sync(); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	l.synced = end
	return nil
}
