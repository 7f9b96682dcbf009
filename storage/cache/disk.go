package cache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"
)

const (
	mapSuffix   = ".map"
	recordBytes = 32
)

var sparseName = regexp.MustCompile(`^rng-([0-9a-f]{32})-([0-9]{1,18})((?:\.[a-z0-9]{1,16})?)$`)

func (r *ranges) path(o *object) string {
	return filepath.Join(r.dir, fmt.Sprintf("rng-%s-%d%s", o.id.keyHash, o.id.size, o.ext))
}

// appendRecord writes a piece's line of the map.
func appendRecord(b []byte, p *piece) []byte {
	at := len(b)
	b = binary.LittleEndian.AppendUint64(b, uint64(p.Offset))
	b = binary.LittleEndian.AppendUint64(b, uint64(p.Length))
	b = binary.LittleEndian.AppendUint64(b, p.sum)
	return binary.LittleEndian.AppendUint64(b, xxhash.Sum64(b[at:]))
}

// parseMap reads the pieces of a map up to the first record that is not whole.
func parseMap(b []byte, size int64) (pieces []*piece) {
	for ; len(b) >= recordBytes; b = b[recordBytes:] {
		p := &piece{Span: Span{int64(binary.LittleEndian.Uint64(b)), int64(binary.LittleEndian.Uint64(b[8:]))}, sum: binary.LittleEndian.Uint64(b[16:]), disk: true}
		if xxhash.Sum64(b[:24]) != binary.LittleEndian.Uint64(b[24:]) ||
			p.Offset < 0 || p.Length <= 0 || p.Length > pieceBytes || p.Offset > size-p.Length {
			break
		}
		pieces = append(pieces, p)
	}
	return pieces
}

// store writes pieces, whose bytes data gives, to the object's file. Where it
// cannot, they are fetched again when they are no longer in memory.
func (r *ranges) store(o *object, pieces []*piece, data func(*piece) []byte) {
	var need int64
	for _, p := range pieces {
		need += p.Length + recordBytes
	}
	o.writing.Lock()
	defer o.writing.Unlock()
	r.mu.Lock()
	o.users++ // not to be let go meanwhile
	room := r.disk.grow(&o.item, need)
	life, there := o.life, o.file
	r.mu.Unlock()
	written := room && r.write(o, there, pieces, data) == nil
	r.mu.Lock()
	defer r.mu.Unlock()
	o.users--
	for _, p := range pieces {
		p.storing = false
		p.disk = p.disk || written && life == o.life
	}
	if written && life == o.life {
		o.file = true
		return
	}
	if room && life == o.life {
		r.disk.add(&o.item, -need)
		if !there {
			r.disk.remove(&o.item)
		}
	}
	if !written {
		r.stats.Unwritten++
	}
}

// write puts bytes first and their records last, so that no record speaks of
// bytes that were never written.
func (r *ranges) write(o *object, there bool, pieces []*piece, data func(*piece) []byte) (err error) {
	flags := os.O_RDWR
	if !there {
		flags |= os.O_CREATE | os.O_TRUNC
	}
	path := r.path(o)
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	m, err := os.OpenFile(path+mapSuffix, flags, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	if !there {
		if err := f.Truncate(o.id.size); err != nil {
			return err
		}
	}
	var records []byte
	for _, p := range pieces {
		if err := r.writeAt(f, data(p), p.Offset); err != nil {
			return err
		}
		records = appendRecord(records, p)
	}
	end, err := m.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	end -= end % recordBytes // over what an earlier write left torn
	return r.writeAt(m, records, end)
}

// load reads a piece from disk; false: it is not there, or was damaged, and is
// to be fetched.
func (r *ranges) load(o *object, p *piece) ([]byte, bool) {
	data := make([]byte, p.Length)
	f, err := os.Open(r.path(o))
	if err == nil {
		_, err = f.ReadAt(data, p.Offset)
		err = errors.Join(err, f.Close())
	}
	ok := err == nil && xxhash.Sum64(data) == p.sum
	if key, damaged := r.loaded(o, p, data, ok, err); damaged {
		r.events.damaged(r.path(o), key, p.Span, err)
	}
	return data, ok
}

// loaded notes what reading a piece came to, and tells of which object one that
// is damaged was.
func (r *ranges) loaded(o *object, p *piece, data []byte, ok bool, err error) (key string, damaged bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case ok:
		r.remember(o, p, data)
	case p.disk:
		r.stats.Damaged++
		if errors.Is(err, fs.ErrNotExist) {
			r.lose(o)
			return o.key, true
		}
		p.disk = false
		r.disk.add(&o.item, -p.Length-recordBytes)
		return o.key, true
	}
	return "", false // it was let go meanwhile
}

// forget removes an object's file. The caller holds mu, and has taken or takes
// the object out of the disk tier.
func (r *ranges) forget(o *object) {
	// Where a file stays, it is found when the directory is opened.
	_ = os.Remove(r.path(o) + mapSuffix)
	_ = os.Remove(r.path(o))
	o.file = false
	o.life++
	for _, p := range o.pieces {
		p.disk = false
	}
}

// lose gives up a file that is not what it was. The caller holds mu.
func (r *ranges) lose(o *object) {
	r.forget(o)
	r.disk.remove(&o.item)
}

// open indexes the files that an earlier process left. Sums are looked at when
// bytes are read.
func (r *ranges) open() error {
	dir, err := os.ReadDir(r.dir)
	if err != nil {
		return err
	}
	type found struct {
		o       *object
		written time.Time
	}
	var files []found
	remove := func(name string) error {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	for _, f := range dir {
		name := filepath.Join(r.dir, f.Name())
		base, isMap := strings.CutSuffix(f.Name(), mapSuffix)
		parts := sparseName.FindStringSubmatch(base)
		if parts == nil || !f.Type().IsRegular() {
			continue
		}
		if isMap {
			if _, err := os.Stat(strings.TrimSuffix(name, mapSuffix)); errors.Is(err, fs.ErrNotExist) {
				if err := remove(name); err != nil {
					return err
				}
			}
			continue
		}
		info, err := f.Info()
		if err != nil {
			return err
		}
		size, err := strconv.ParseInt(parts[2], 10, 64)
		if err != nil {
			continue // no file of ours
		}
		o := &object{id: entryID{parts[1], size}, ext: parts[3], file: true}
		o.item = item{id: o.id, owner: o}
		records, err := os.ReadFile(name + mapSuffix)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, p := range parseMap(records, size) {
			o.insert(p)
		}
		if info.Size() != size || len(o.pieces) == 0 || r.objects[o.id] != nil {
			if err := errors.Join(remove(name+mapSuffix), remove(name)); err != nil {
				return err
			}
			if info.Size() != size {
				r.events.damaged(name, "", Span{0, size}, fmt.Errorf("%w: %d bytes", ErrSizeMismatch, info.Size()))
			}
			continue
		}
		r.objects[o.id] = o
		files = append(files, found{o, info.ModTime()})
	}
	slices.SortFunc(files, func(a, b found) int { return b.written.Compare(a.written) })
	for _, f := range files {
		var bytes int64
		for _, p := range f.o.pieces {
			bytes += p.Length + recordBytes
		}
		if r.disk.used+bytes > r.disk.max {
			r.forget(f.o)
			delete(r.objects, f.o.id)
			continue
		}
		r.disk.ghosts[f.o.id] = struct{}{} // not new
		r.disk.grow(&f.o.item, bytes)
		delete(r.disk.ghosts, f.o.id)
		// The last written one came first and belongs to the front.
		r.disk.main.MoveToBack(f.o.item.element)
	}
	return nil
}

// insert adds a piece of a map. A later record of the same bytes takes the
// place of an earlier one.
func (o *object) insert(p *piece) {
	i, same := slices.BinarySearchFunc(o.pieces, p.Offset, func(a *piece, at int64) int {
		return int(min(max(a.Offset-at, -1), 1))
	})
	switch {
	case same && o.pieces[i].Length == p.Length:
		o.pieces[i] = p
	case same, i > 0 && o.pieces[i-1].end() > p.Offset, i < len(o.pieces) && o.pieces[i].Offset < p.end():
	default:
		o.pieces = slices.Insert(o.pieces, i, p)
	}
}
