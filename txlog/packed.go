package txlog

import (
	"encoding/binary"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"

	"cardinalsin/action"
)

// packed is one file action, add or remove, as a snapshot keeps it: a few
// bytes beside its text, in memory that many share.
//
//	uvarint  length of the key
//	key      path in its one spelling; "\x00" and the id of the deletion
//	         vector, where there is one
//	uvarint  flags, see below
//	varint   size in bytes
//	varint   modificationTime of an add, deletionTimestamp of a remove, ms
//	         what the flags say is there, in the order of the flags:
//	         numbers as varints, texts as uvarint length and bytes
//
// INVARIANT: a packed was made by a packer, so that reading it needs no
// checks; it is never made from bytes that came from outside.
type packed string

const (
	flagDataChange  = 1 << iota
	flagExtended    // extendedFileMetadata of a remove
	flagScheme      // the path was spelled "file:" + path
	flagAuthority   // the path was spelled "file://" + path
	flagValuesTable // partition values, by their number in the table of values
	flagValues      // partition values, their text
	flagTags
	flagStats
	flagVector // storage type, path or inline vector, size, cardinality
	flagOffset // of the vector
	flagBaseRow
	flagRowCommit
	flagClustering
)

// valueTable numbers the partition values that files share. It only grows,
// and is shared by all snapshots that come from one load.
type valueTable struct {
	texts atomic.Pointer[[]action.Object]

	mu      sync.Mutex // guards numbers and the change of texts
	numbers map[action.Object]uint32
}

const (
	// maxValues bounds the table: one that is partitioned by something that is
	// different for each file gains nothing by it.
	maxValues = 1 << 16
	// maxValueText bounds a text in it, and so the memory of what no file has
	// any more.
	maxValueText = 1 << 10
)

func newValueTable() *valueTable {
	t := &valueTable{numbers: map[action.Object]uint32{}}
	t.texts.Store(&[]action.Object{})
	return t
}

// number returns the number of a text; ok is false if it has none.
func (t *valueTable) number(o action.Object) (n uint32, ok bool) {
	if len(o) > maxValueText {
		return 0, false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if n, ok = t.numbers[o]; ok || len(t.numbers) >= maxValues {
		return n, ok
	}
	o = action.Object(strings.Clone(string(o)))
	n = uint32(len(t.numbers))
	t.numbers[o] = n
	// Readers have the slice up to their own length: what is appended lies
	// beyond.
	texts := append(*t.texts.Load(), o)
	t.texts.Store(&texts)
	return n, true
}

// canonicalPath is the one spelling of a path by which files are told apart,
// and the flag of the spelling that it had: Spark takes file:/x, file:///x and
// /x for one file.
func canonicalPath(p string) (path string, flag uint64) {
	if rest, ok := strings.CutPrefix(p, "file:"); ok && strings.HasPrefix(rest, "/") {
		switch {
		case strings.HasPrefix(rest, "///"):
			return rest[2:], flagAuthority
		case !strings.HasPrefix(rest, "//"):
			return rest, flagScheme
		}
	}
	return p, 0
}

// arenaBytes is how much memory a packer takes at a time.
const arenaBytes = 64 << 10

// packer makes packed actions. Their text is cut from arenas, which live as
// long as one action in them.
type packer struct {
	values *valueTable
	arena  []byte // cut up to its length
	buf    []byte // the action that is being made

	last       action.Object // the values numbered last
	lastNumber uint32
	lastOK     bool
}

// grow makes room for about n bytes in one arena, for a packer that is known
// to make no more.
func (k *packer) grow(n int) {
	if n < arenaBytes && n > cap(k.arena)-len(k.arena) {
		k.arena = make([]byte, 0, n)
	}
}

// cut copies the finished action into an arena.
func (k *packer) cut() packed {
	n := len(k.buf)
	if n > cap(k.arena)-len(k.arena) {
		if n > arenaBytes/8 {
			return packed(k.buf)
		}
		k.arena = make([]byte, 0, arenaBytes)
	}
	at := len(k.arena)
	k.arena = append(k.arena, k.buf...)
	b := k.arena[at:]
	// Nothing writes to these bytes any more.
	return packed(unsafe.String(unsafe.SliceData(b), len(b)))
}

// begin writes the key and returns the flags that it gives rise to.
func (k *packer) begin(key action.Key) (flags uint64, err error) {
	if strings.IndexByte(key.Path, 0) >= 0 {
		return 0, fmt.Errorf("%w: NUL in path %.200q", action.ErrCorrupt, key.Path)
	}
	path, flags := canonicalPath(key.Path)
	n := len(path)
	if key.DV != "" {
		n += 1 + len(key.DV)
	}
	k.buf = binary.AppendUvarint(k.buf[:0], uint64(n))
	k.buf = append(k.buf, path...)
	if key.DV != "" {
		k.buf = append(k.buf, 0)
		k.buf = append(k.buf, key.DV...)
	}
	return flags, nil
}

// key returns a probe that finds the action with that key; it is no whole
// action.
func (k *packer) key(key action.Key) (packed, error) {
	if _, err := k.begin(key); err != nil {
		return "", err
	}
	return packed(k.buf), nil
}

func (k *packer) text(s string) {
	k.buf = binary.AppendUvarint(k.buf, uint64(len(s)))
	k.buf = append(k.buf, s...)
}

// file is what adds and removes have in common, and what only one has.
type file struct {
	path               string
	dataChange         bool
	extended           bool
	size, time         int64
	values, tags       action.Object
	stats, clustering  string
	vector             *action.DeletionVector
	baseRow, rowCommit *int64
}

func (k *packer) add(a *action.Add) (packed, error) {
	return k.pack(&file{
		path: a.Path, dataChange: a.DataChange, size: a.Size, time: a.ModificationTime,
		values: a.PartitionValues, tags: a.Tags, stats: a.Stats, clustering: a.ClusteringProvider,
		vector: a.DeletionVector, baseRow: a.BaseRowID, rowCommit: a.DefaultRowCommitVersion,
	})
}

func (k *packer) remove(r *action.Remove) (packed, error) {
	return k.pack(&file{
		path: r.Path, dataChange: r.DataChange, extended: r.ExtendedFileMetadata, size: r.Size, time: r.DeletionTimestamp,
		values: r.PartitionValues, tags: r.Tags, stats: r.Stats,
		vector: r.DeletionVector, baseRow: r.BaseRowID, rowCommit: r.DefaultRowCommitVersion,
	})
}

func (k *packer) pack(f *file) (packed, error) {
	key := action.Key{Path: f.path, DV: f.vector.UniqueID()}
	flags, err := k.begin(key)
	if err != nil {
		return "", err
	}
	set := func(flag uint64, on bool) {
		if on {
			flags |= flag
		}
	}
	set(flagDataChange, f.dataChange)
	set(flagExtended, f.extended)
	if f.values != "" {
		if f.values != k.last {
			k.last = f.values
			k.lastNumber, k.lastOK = k.values.number(f.values)
		}
		set(flagValuesTable, k.lastOK)
		set(flagValues, !k.lastOK)
	}
	set(flagTags, f.tags != "")
	set(flagStats, f.stats != "")
	set(flagVector, f.vector != nil)
	set(flagOffset, f.vector != nil && f.vector.Offset != nil)
	set(flagBaseRow, f.baseRow != nil)
	set(flagRowCommit, f.rowCommit != nil)
	set(flagClustering, f.clustering != "")

	k.buf = binary.AppendUvarint(k.buf, flags)
	k.buf = binary.AppendVarint(k.buf, f.size)
	k.buf = binary.AppendVarint(k.buf, f.time)
	if flags&flagValuesTable != 0 {
		k.buf = binary.AppendUvarint(k.buf, uint64(k.lastNumber))
	}
	if flags&flagValues != 0 {
		k.text(string(f.values))
	}
	if flags&flagTags != 0 {
		k.text(string(f.tags))
	}
	if flags&flagStats != 0 {
		k.text(f.stats)
	}
	if flags&flagVector != 0 {
		k.text(f.vector.StorageType)
		k.text(f.vector.PathOrInlineDV)
		k.buf = binary.AppendVarint(k.buf, int64(f.vector.SizeInBytes))
		k.buf = binary.AppendVarint(k.buf, f.vector.Cardinality)
	}
	if flags&flagOffset != 0 {
		k.buf = binary.AppendVarint(k.buf, int64(*f.vector.Offset))
	}
	if flags&flagBaseRow != 0 {
		k.buf = binary.AppendVarint(k.buf, *f.baseRow)
	}
	if flags&flagRowCommit != 0 {
		k.buf = binary.AppendVarint(k.buf, *f.rowCommit)
	}
	if flags&flagClustering != 0 {
		k.text(f.clustering)
	}
	return k.cut(), nil
}

// uvarint is binary.Uvarint over a string that is known to be sound.
func uvarint(p packed) (v uint64, rest packed) {
	if p[0] < 0x80 {
		return uint64(p[0]), p[1:]
	}
	for shift, i := uint(0), 0; ; shift, i = shift+7, i+1 {
		b := p[i]
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return v, p[i+1:]
		}
	}
}

func varint(p packed) (int64, packed) {
	u, p := uvarint(p)
	return int64(u>>1) ^ -int64(u&1), p
}

func text(p packed) (string, packed) {
	n, p := uvarint(p)
	return string(p[:n]), p[n:]
}

// key is what orders packed actions.
func (p packed) key() string {
	if n := int(p[0]); n < 0x80 { // small enough to be inlined
		return string(p[1 : 1+n])
	}
	return p.longKey()
}

func (p packed) longKey() string {
	k, _ := text(p)
	return k
}

// size is the file's size.
func (p packed) size() int64 {
	_, p = text(p)
	_, p = uvarint(p)
	n, _ := varint(p)
	return n
}

// time is the action's time.
func (p packed) time() int64 {
	_, p = text(p)
	_, p = uvarint(p)
	_, p = varint(p)
	n, _ := varint(p)
	return n
}

// unpack reads an action. Its texts share memory with p and the table of
// values.
func (p packed) unpack(values []action.Object, f *file) {
	key, p := text(p)
	flags, p := uvarint(p)
	f.dataChange, f.extended = flags&flagDataChange != 0, flags&flagExtended != 0
	f.size, p = varint(p)
	f.time, p = varint(p)
	f.values, f.tags, f.stats, f.clustering = "", "", "", ""
	f.vector, f.baseRow, f.rowCommit = nil, nil, nil
	if flags&flagValuesTable != 0 {
		var n uint64
		n, p = uvarint(p)
		f.values = values[n]
	}
	if flags >= flagValues { // what is rare
		if flags&flagValues != 0 {
			var s string
			s, p = text(p)
			f.values = action.Object(s)
		}
		if flags&flagTags != 0 {
			var s string
			s, p = text(p)
			f.tags = action.Object(s)
		}
		if flags&flagStats != 0 {
			f.stats, p = text(p)
		}
		if flags&flagVector != 0 {
			key, _, _ = strings.Cut(key, "\x00")
			p = f.unpackVector(p, flags)
		}
		f.unpackRows(p, flags)
	}
	f.path = key
	switch {
	case flags&flagScheme != 0:
		f.path = "file:" + key
	case flags&flagAuthority != 0:
		f.path = "file://" + key
	}
}

func (f *file) unpackVector(p packed, flags uint64) packed {
	d := &action.DeletionVector{}
	var n int64
	d.StorageType, p = text(p)
	d.PathOrInlineDV, p = text(p)
	n, p = varint(p)
	d.SizeInBytes = int32(n)
	d.Cardinality, p = varint(p)
	if flags&flagOffset != 0 {
		n, p = varint(p)
		offset := int32(n)
		d.Offset = &offset
	}
	f.vector = d
	return p
}

func (f *file) unpackRows(p packed, flags uint64) {
	if flags&flagBaseRow != 0 {
		var n int64
		n, p = varint(p)
		f.baseRow = &n
	}
	if flags&flagRowCommit != 0 {
		var n int64
		n, p = varint(p)
		f.rowCommit = &n
	}
	if flags&flagClustering != 0 {
		f.clustering, _ = text(p)
	}
}

func (f *file) add(a *action.Add) {
	*a = action.Add{
		Path: f.path, PartitionValues: f.values, Size: f.size, ModificationTime: f.time, DataChange: f.dataChange,
		Stats: f.stats, Tags: f.tags, DeletionVector: f.vector, BaseRowID: f.baseRow,
		DefaultRowCommitVersion: f.rowCommit, ClusteringProvider: f.clustering,
	}
}

func (f *file) remove(r *action.Remove) {
	*r = action.Remove{
		Path: f.path, DeletionTimestamp: f.time, DataChange: f.dataChange, ExtendedFileMetadata: f.extended,
		PartitionValues: f.values, Size: f.size, Stats: f.stats, Tags: f.tags, DeletionVector: f.vector,
		BaseRowID: f.baseRow, DefaultRowCommitVersion: f.rowCommit,
	}
}
