package checkpoint

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress"
	"github.com/parquet-go/parquet-go/compress/snappy"

	"cardinalsin/action"
)

// zstdCodec compresses pages. Its encoders see no further back than a page is
// long: with the library's own window they take 8 MB each.
type zstdCodec struct{ compress.Codec }

var zstdEncoders = sync.Pool{New: func() any {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest),
		zstd.WithWindowSize(pageBytes), zstd.WithLowerEncoderMem(true), zstd.WithZeroFrames(true), zstd.WithEncoderCRC(false))
	if err != nil {
		panic(err) // the options are constants
	}
	return e
}}

func (zstdCodec) Encode(dst, src []byte) ([]byte, error) {
	e := zstdEncoders.Get().(*zstd.Encoder)
	defer zstdEncoders.Put(e)
	return e.EncodeAll(src, dst[:0]), nil
}

// pageBytes is about how long a page is before compression.
const pageBytes = 1 << 18

// batchRows is how many rows are gathered before they go to the column
// writers.
const batchRows = 1000

// encoder turns actions into the rows of one Parquet file. It writes by
// column, since a row of Go structs would cost reflection a field.
type encoder struct {
	w       *parquet.Writer
	columns []encoderColumn
	nulls   []parquet.Value

	batch    int // rows in the columns' values
	group    int // rows in the current row group, the batch included
	maxGroup int

	// text backs the values of the current batch.
	text    []byte
	garbage garbage
	members []member
	sum     contents
	hasher  hasher

	txn, add, remove, metaData, protocol, domain columnRange
}

// encoderColumn gathers the values of one leaf.
type encoderColumn struct {
	name   string
	def    int // its definition level when present
	values []parquet.Value
	active bool // has values of its own in this batch
}

// columnRange is the range of an action's columns; they lie side by side.
type columnRange struct{ from, to int }

func newEncoder(out io.Writer, opts Options) (*encoder, error) {
	schema := newSchema()
	config, err := parquet.NewWriterConfig(
		schema,
		parquet.CreatedBy(createdBy, "1", "checkpoint"),
		parquet.DataPageVersion(1),
		parquet.DataPageStatistics(false),
		parquet.PageBufferSize(pageBytes),
		parquet.Compression(zstdCodec{&parquet.Zstd}),
	)
	if err != nil {
		return nil, fmt.Errorf("configure parquet writer: %w", err)
	}
	if opts.Snappy {
		config.Compression = &snappy.Codec{}
	}
	e := &encoder{maxGroup: opts.RowGroupActions}
	paths := schema.Columns()
	for i, p := range paths {
		leaf, ok := schema.Lookup(p...)
		if !ok || leaf.ColumnIndex != i {
			return nil, fmt.Errorf("column %s is not number %d", strings.Join(p, "."), i)
		}
		e.columns = append(e.columns, encoderColumn{name: strings.Join(p, "."), def: leaf.MaxDefinitionLevel})
		// Bounds of free text are of no use to any reader of a checkpoint,
		// and a footer full of them costs each reader.
		config.SkipPageBounds = append(config.SkipPageBounds, p)
	}
	rangeOf := func(name string) columnRange {
		in := func(p []string) bool { return p[0] == name }
		from := slices.IndexFunc(paths, in)
		to := from
		for to < len(paths) && in(paths[to]) {
			to++
		}
		return columnRange{from, to}
	}
	e.txn, e.add, e.remove = rangeOf("txn"), rangeOf("add"), rangeOf("remove")
	e.metaData, e.protocol, e.domain = rangeOf("metaData"), rangeOf("protocol"), rangeOf("domainMetadata")
	e.nulls = make([]parquet.Value, batchRows)
	e.w = parquet.NewWriter(out, config)
	return e, nil
}

// row adds the values of one action, in the order of its columns.
type row struct {
	e    *encoder
	next int
	to   int
}

func (e *encoder) begin(s columnRange) row { return row{e: e, next: s.from, to: s.to} }

// put appends a value; def is the definition level.
func (r *row) put(v parquet.Value, rep, def int) {
	c := &r.e.columns[r.next]
	c.active = true
	c.values = append(c.values, v.Level(rep, def, r.next))
}

// null is an absent field inside present ones; outer counts the levels above
// it that are present.
func (r *row) null(outer int) { r.put(parquet.NullValue(), 0, outer); r.next++ }

func (r *row) str(s string) {
	r.put(r.e.bytes(s), 0, r.e.columns[r.next].def)
	r.next++
}

// optStr writes "" as null.
func (r *row) optStr(s string, outer int) {
	if s == "" {
		r.null(outer)
		return
	}
	r.str(s)
}

func (r *row) int64(v int64) {
	r.put(parquet.Int64Value(v), 0, r.e.columns[r.next].def)
	r.next++
}

func (r *row) optInt64(v *int64, outer int) {
	if v == nil {
		r.null(outer)
		return
	}
	r.int64(*v)
}

func (r *row) int32(v int32) {
	r.put(parquet.Int32Value(v), 0, r.e.columns[r.next].def)
	r.next++
}

func (r *row) bool(v bool) {
	r.put(parquet.BooleanValue(v), 0, r.e.columns[r.next].def)
	r.next++
}

// pairs writes a map, which takes two columns. outer is the level of the
// struct around it; an empty map is present, a nil one is null.
func (r *row) pairs(members []member, null bool, outer int) {
	if len(members) == 0 {
		def := outer + 1
		if null {
			def = outer
		}
		r.null(def)
		r.null(def)
		return
	}
	key := r.next
	for i, m := range members {
		rep := 1
		if i == 0 {
			rep = 0
		}
		r.next = key
		r.put(r.e.bytes(m.key), rep, r.e.columns[key].def)
		r.next = key + 1
		if def := r.e.columns[key+1].def; m.null {
			r.put(parquet.NullValue(), rep, def-1)
		} else {
			r.put(r.e.bytes(m.value), rep, def)
		}
	}
	r.next = key + 2
}

// list writes a list of strings; an empty one is present, unless null is set.
func (r *row) list(values []string, null bool, outer int) {
	if len(values) == 0 {
		if null {
			r.null(outer)
		} else {
			r.null(outer + 1)
		}
		return
	}
	for i, v := range values {
		r.put(r.e.bytes(v), min(i, 1), r.e.columns[r.next].def)
	}
	r.next++
}

func (r *row) vector(d *action.DeletionVector, outer int) {
	if d == nil {
		for range 5 {
			r.null(outer)
		}
		return
	}
	r.str(d.StorageType)
	r.str(d.PathOrInlineDV)
	if d.Offset != nil {
		r.int32(*d.Offset)
	} else {
		r.null(outer + 1)
	}
	r.int32(d.SizeInBytes)
	r.int64(d.Cardinality)
}

// end completes the row: the columns of other actions are null.
func (r *row) end() error {
	if r.next != r.to {
		return fmt.Errorf("row ends at column %d, want %d", r.next, r.to)
	}
	r.e.batch++
	r.e.group++
	if r.e.group >= r.e.maxGroup {
		return r.e.endGroup()
	}
	if r.e.batch >= batchRows {
		return r.e.endBatch()
	}
	return nil
}

// bytes copies text into the batch's memory. Growing moves only what comes
// later; values made before keep the old memory.
func (e *encoder) bytes(s string) parquet.Value {
	at := len(e.text)
	e.text = append(e.text, s...)
	return parquet.ByteArrayValue(e.text[at:len(e.text):len(e.text)])
}

func (e *encoder) endBatch() error {
	if e.batch == 0 {
		return nil
	}
	writers := e.w.ColumnWriters()
	for i := range e.columns {
		c := &e.columns[i]
		values := c.values
		if !c.active {
			values = e.nulls[:e.batch]
		}
		n, err := writers[i].WriteRowValues(values)
		if err != nil {
			return fmt.Errorf("write column %s: %w", c.name, err)
		}
		if n != e.batch {
			return fmt.Errorf("write column %s: %d rows of %d", c.name, n, e.batch)
		}
		c.values, c.active = c.values[:0], false
	}
	// The library leaves about a quarter of what it is given.
	e.garbage.add(int64(len(e.text)+16*e.batch) / 4)
	e.batch, e.text = 0, e.text[:0]
	return nil
}

func (e *encoder) endGroup() error {
	if err := e.endBatch(); err != nil {
		return err
	}
	e.group = 0
	if err := e.w.Flush(); err != nil {
		return fmt.Errorf("write row group: %w", err)
	}
	return nil
}

// switchTo fills up the batch before rows of another action begin: within a
// batch a column either has a value a row or none.
func (e *encoder) switchTo() error { return e.endBatch() }

func (e *encoder) putProtocol(p *action.Protocol) error {
	e.sum.Others++
	e.sum.Sum += e.hasher.protocol(p)
	r := e.begin(e.protocol)
	r.int32(int32(p.MinReaderVersion))
	r.int32(int32(p.MinWriterVersion))
	// PROTOCOL.md, "Checkpoint Schema": not null for 3 and 7, null before.
	r.list(p.ReaderFeatures, p.MinReaderVersion < 3, 1)
	r.list(p.WriterFeatures, p.MinWriterVersion < 7, 1)
	if err := r.end(); err != nil {
		return err
	}
	return e.switchTo()
}

func (e *encoder) putMetadata(m *action.Metadata) error {
	e.sum.Others++
	e.sum.Sum += e.hasher.metadata(m)
	r := e.begin(e.metaData)
	r.str(m.ID)
	r.optStr(m.Name, 1)
	r.optStr(m.Description, 1)
	r.str(m.Format.Provider)
	r.pairs(membersOf(m.Format.Options), false, 2)
	r.str(m.SchemaString)
	r.list(m.PartitionColumns, false, 1)
	r.pairs(membersOf(m.Configuration), false, 1)
	r.optInt64(m.CreatedTime, 1)
	if err := r.end(); err != nil {
		return err
	}
	return e.switchTo()
}

func (e *encoder) putTxn(t *action.SetTransaction) error {
	e.sum.Others++
	e.sum.Sum += e.hasher.txn(t)
	r := e.begin(e.txn)
	r.str(t.AppID)
	r.int64(t.Version)
	if t.LastUpdated == 0 {
		r.null(1)
	} else {
		r.int64(t.LastUpdated)
	}
	return r.end()
}

func (e *encoder) putDomain(d *action.DomainMetadata) error {
	e.sum.Others++
	e.sum.Sum += e.hasher.domain(d)
	r := e.begin(e.domain)
	r.str(d.Domain)
	r.str(d.Configuration)
	r.bool(d.Removed)
	return r.end()
}

// object parses an object and returns its canonical text beside it. The
// members are valid until the next call.
func (e *encoder) object(o action.Object) ([]member, action.Object, error) {
	var err error
	if e.members, err = parseObject(e.members[:0], o); err != nil {
		return nil, "", err
	}
	at := len(e.text)
	e.text = appendObject(e.text, e.members)
	text := e.text[at:]
	if string(text) == string(o) { // no copy: it is canonical already
		e.text = e.text[:at]
		return e.members, o, nil
	}
	canonical := action.Object(text)
	e.text = e.text[:at]
	return e.members, canonical, nil
}

func (e *encoder) putAdd(a *action.Add) error {
	c := *a
	c.DataChange = false // a checkpoint changes nothing
	r := e.begin(e.add)
	r.str(c.Path)
	members, text, err := e.object(a.PartitionValues)
	if err != nil {
		return fmt.Errorf("add %q: partition values: %w", a.Path, err)
	}
	c.PartitionValues = text
	r.pairs(members, false, 1)
	r.int64(c.Size)
	r.int64(c.ModificationTime)
	r.bool(c.DataChange)
	r.optStr(c.Stats, 1)
	if members, text, err = e.object(a.Tags); err != nil {
		return fmt.Errorf("add %q: tags: %w", a.Path, err)
	}
	c.Tags = text
	r.pairs(members, true, 1)
	r.vector(c.DeletionVector, 1)
	r.optInt64(c.BaseRowID, 1)
	r.optInt64(c.DefaultRowCommitVersion, 1)
	r.optStr(c.ClusteringProvider, 1)
	e.sum.Adds++
	e.sum.Sum += e.hasher.add(&c)
	return r.end()
}

func (e *encoder) putRemove(t *action.Remove) error {
	c := *t
	c.DataChange = false
	r := e.begin(e.remove)
	r.str(c.Path)
	if c.DeletionTimestamp == 0 {
		r.null(1)
	} else {
		r.int64(c.DeletionTimestamp)
	}
	r.bool(c.DataChange)
	r.bool(c.ExtendedFileMetadata)
	members, text, err := e.object(t.PartitionValues)
	if err != nil {
		return fmt.Errorf("remove %q: partition values: %w", t.Path, err)
	}
	c.PartitionValues = text
	r.pairs(members, !c.ExtendedFileMetadata, 1)
	if c.Size == 0 && !c.ExtendedFileMetadata {
		r.null(1)
	} else {
		r.int64(c.Size)
	}
	r.vector(c.DeletionVector, 1)
	r.optInt64(c.BaseRowID, 1)
	r.optInt64(c.DefaultRowCommitVersion, 1)
	e.sum.Removes++
	e.sum.Sum += e.hasher.remove(&c)
	return r.end()
}

// encode writes the whole state and returns what it holds.
func encode(out io.Writer, s State, opts Options) (contents, error) {
	e, err := newEncoder(out, opts)
	if err != nil {
		return contents{}, err
	}
	e.sum.Version = s.Version
	if err := e.putProtocol(s.Protocol); err != nil {
		return contents{}, err
	}
	if err := e.putMetadata(s.Metadata); err != nil {
		return contents{}, err
	}
	for i := range s.Txns {
		if err := e.putTxn(&s.Txns[i]); err != nil {
			return contents{}, err
		}
	}
	if err := e.switchTo(); err != nil {
		return contents{}, err
	}
	for i := range s.Domains {
		if err := e.putDomain(&s.Domains[i]); err != nil {
			return contents{}, err
		}
	}
	if err := e.endGroup(); err != nil {
		return contents{}, err
	}
	if s.Adds != nil {
		var last action.Key
		for a := range s.Adds {
			if err := ascending(&last, a.Key(), e.sum.Adds == 0); err != nil {
				return contents{}, fmt.Errorf("add: %w", err)
			}
			if err := e.putAdd(a); err != nil {
				return contents{}, err
			}
		}
	}
	if err := e.endGroup(); err != nil {
		return contents{}, err
	}
	if s.Removes != nil {
		var last action.Key
		for r := range s.Removes {
			if err := ascending(&last, r.Key(), e.sum.Removes == 0); err != nil {
				return contents{}, fmt.Errorf("remove: %w", err)
			}
			if err := e.putRemove(r); err != nil {
				return contents{}, err
			}
		}
	}
	if err := e.endGroup(); err != nil {
		return contents{}, err
	}
	text, err := e.sum.encode()
	if err != nil {
		return contents{}, err
	}
	e.w.SetKeyValueMetadata(contentsKey, text)
	if err := e.w.Close(); err != nil {
		return contents{}, fmt.Errorf("write footer: %w", err)
	}
	return e.sum, nil
}

// ascending checks the order of keys, and so that each occurs once.
func ascending(last *action.Key, k action.Key, first bool) error {
	if k.Path == "" {
		return fmt.Errorf("%w: no path", ErrInvalidState)
	}
	if !first {
		if c := strings.Compare(last.Path, k.Path); c > 0 || (c == 0 && last.DV >= k.DV) {
			return fmt.Errorf("%w: %q after %q", ErrInvalidState, k, *last)
		}
	}
	*last = k
	return nil
}
