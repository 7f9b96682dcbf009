package checkpoint

import (
	"fmt"
	"sync"

	"github.com/parquet-go/parquet-go/format"

	"cardinalsin/action"
	"cardinalsin/checkpoint/internal/parquetcol"
)

// fileReader knows where the fields of actions lie in one file. A field that
// the file lacks is a nil node.
type fileReader struct {
	file     *parquetcol.File
	hash     bool
	sumOnly  bool // file actions are summed up and not delivered
	interned *interner
	actions  []actionNodes
	// stats and values are the struct forms of statistics and partition
	// values of adds, nil where there are none.
	stats, values *parquetcol.Node
}

type actionKind uint8

const (
	addAction actionKind = iota
	removeAction
	txnAction
	domainAction
	protocolAction
	metadataAction
	sidecarAction
	manifestAction
)

// actionNodes is an action's struct in the schema.
type actionNodes struct {
	kind  actionKind
	node  *parquetcol.Node
	probe *parquetcol.Node // a field that the action always has
}

// newFileReader finds the actions in a file's schema. Of a sidecar it takes
// only file actions.
func newFileReader(f *parquetcol.File, sink *Sink, sidecar, hash bool, in *interner) (*fileReader, error) {
	r := &fileReader{file: f, hash: hash, sumOnly: sink.sumOnly, interned: in}
	for _, a := range []struct {
		kind        actionKind
		name, probe string
		wanted      bool
	}{
		{addAction, "add", "path", sink.Add != nil},
		{removeAction, "remove", "path", sink.Remove != nil},
		{txnAction, "txn", "appId", !sidecar && (sink.Txn != nil || hash)},
		{domainAction, "domainMetadata", "domain", !sidecar && (sink.Domain != nil || hash)},
		{protocolAction, "protocol", "minReaderVersion", !sidecar},
		{metadataAction, "metaData", "id", !sidecar},
		{sidecarAction, "sidecar", "path", !sidecar},
		{manifestAction, "checkpointMetadata", "version", !sidecar},
	} {
		n := f.Root.Child(a.name)
		if n == nil || !a.wanted {
			continue
		}
		probe := n.Child(a.probe)
		if n.Leaf >= 0 || probe == nil || probe.Leaf < 0 || probe.Rep > 0 {
			return nil, fmt.Errorf("column %s lacks %s", a.name, a.probe)
		}
		r.actions = append(r.actions, actionNodes{a.kind, n, probe})
		if a.kind == addAction {
			r.stats = structForm(n, "stats_parsed", "numRecords")
			if n.Child("partitionValues") == nil {
				r.values = structForm(n, "partitionValues_parsed", "")
			}
		}
	}
	return r, nil
}

func structForm(add *parquetcol.Node, name, child string) *parquetcol.Node {
	n := add.Child(name)
	if n == nil || n.Leaf >= 0 || n.Rep > 0 || (child != "" && n.Child(child) == nil) {
		return nil
	}
	return n
}

// needsStruct tells whether a row group has adds with no statistics but in
// struct form. The writer's null counts only save work: without them the
// answer is yes.
func (r *fileReader) needsStruct(g *parquetcol.RowGroup) bool {
	if r.stats == nil {
		return false
	}
	add := r.file.Root.Child("add")
	text, path := add.Child("stats"), add.Child("path")
	if text == nil || text.Leaf < 0 {
		return true
	}
	missing, absent := g.Chunks[text.Leaf].NullCount, g.Chunks[path.Leaf].NullCount
	return missing < 0 || absent < 0 || missing > absent
}

// chunks lists what must be read of a row group.
func (r *fileReader) chunks(group int) []parquetcol.Chunk {
	g := &r.file.RowGroups[group]
	var out []parquetcol.Chunk
	var walk func(n *parquetcol.Node)
	walk = func(n *parquetcol.Node) {
		switch {
		case n.Leaf >= 0:
			out = append(out, g.Chunks[n.Leaf])
		case n == r.stats || n == r.values || !parsedNames[n.Name]:
			for _, c := range n.Children {
				walk(c)
			}
		}
	}
	for _, a := range r.actions {
		for _, c := range a.node.Children {
			if c == r.stats && !r.needsStruct(g) {
				continue
			}
			walk(c)
		}
	}
	return out
}

// parsedNames are groups that may be large and are only read when needed.
var parsedNames = map[string]bool{"stats_parsed": true, "partitionValues_parsed": true}

// groupReader reads one row group.
type groupReader struct {
	*fileReader
	rows    *parquetcol.RowGroup
	window  *window
	columns []*parquetcol.Column // opened, to be asked for errors
	borrow  bool                 // columns that are opened now may lend their text
	err     error
	hasher  hasher
	batch   *batch

	members, last []member
	lastValues    action.Object
	text          []byte
	files         contents // of the file actions that were only summed up
}

// kindReader reads one action.
type kindReader struct {
	kind  actionKind
	def   int // definition level from which on the action is present
	probe *parquetcol.Column
	read  func(row int64)
}

// readGroup decodes a row group and emits its actions in batches.
func (f *fileReader) readGroup(group int, w *window, emit func(*batch) error) error {
	g := &groupReader{fileReader: f, rows: &f.file.RowGroups[group], window: w, batch: &batch{}}
	defer func() {
		for _, c := range g.columns {
			c.Close()
		}
	}()
	var kinds []*kindReader
	for _, a := range f.actions {
		g.borrow = g.sumOnly && a.kind.file()
		k := &kindReader{kind: a.kind, def: a.node.Def, probe: g.column(a.node, a.probe.Name, anyType)}
		if k.probe == nil {
			return g.err
		}
		// Other columns are opened when the first action of the kind turns
		// up: most row groups hold one kind only.
		kinds = append(kinds, k)
	}
	if len(kinds) == 0 {
		return nil
	}
	nodes := map[actionKind]*parquetcol.Node{}
	for _, a := range f.actions {
		nodes[a.kind] = a.node
	}
	for row := range g.rows.NumRows {
		for i, k := range kinds {
			def := k.probe.At(row)
			if def < 0 {
				return k.probe.Err()
			}
			if def < k.def {
				continue
			}
			if k.read == nil {
				g.borrow = g.sumOnly && k.kind.file()
				k.read = g.open(k.kind, nodes[k.kind], k.probe)
			}
			k.read(row)
			if g.sumOnly && k.kind.file() {
				g.sumFile()
			}
			if i > 0 { // a row holds one action; the next is likely of its kind
				copy(kinds[1:], kinds[:i])
				kinds[0] = k
			}
			break
		}
		if g.batch.len() >= batchRows || row+1 == g.rows.NumRows {
			for _, c := range g.columns {
				if err := c.Err(); err != nil {
					return err
				}
			}
			if g.err != nil {
				return g.err
			}
			if g.batch.len() == 0 && g.files == (contents{}) {
				continue
			}
			g.sumUp()
			g.batch.sum.merge(g.files)
			g.files = contents{}
			if err := emit(g.batch); err != nil {
				return err
			}
			g.batch = &batch{adds: make([]action.Add, 0, min(cap(g.batch.adds), batchRows))}
		}
	}
	return nil
}

func (g *groupReader) fail(err error) {
	if g.err == nil {
		g.err = err
	}
}

// Which physical types a field may have.
type wantType uint8

const (
	anyType wantType = iota
	textType
	intType
	boolType
)

// column opens a column, nil if the file lacks it.
func (g *groupReader) column(parent *parquetcol.Node, name string, want wantType) *parquetcol.Column {
	n := parent.Child(name)
	if n == nil {
		return nil
	}
	ok := n.Leaf >= 0
	if ok {
		switch want {
		case textType:
			ok = n.Physical == format.ByteArray
		case intType:
			ok = n.Physical == format.Int32 || n.Physical == format.Int64
		case boolType:
			ok = n.Physical == format.Boolean
		case anyType:
		}
	}
	if !ok {
		g.fail(fmt.Errorf("%w: column %s.%s is of another type", parquetcol.ErrCorrupt, parent.Name, name))
		return nil
	}
	if n.Rep > 0 {
		g.fail(fmt.Errorf("%w: column %s.%s repeats", parquetcol.ErrCorrupt, parent.Name, name))
		return nil
	}
	return g.leaf(n)
}

func (g *groupReader) leaf(n *parquetcol.Node) *parquetcol.Column {
	chunk := g.rows.Chunks[n.Leaf]
	c := parquetcol.NewColumn(n, chunk, g.window.chunk(chunk))
	if err := c.End(g.rows.NumRows); err != nil {
		g.fail(err)
	}
	g.columns = append(g.columns, c)
	if g.borrow {
		c.Borrow()
	}
	return c
}

// file reports whether a kind is of files; the others are few.
func (k actionKind) file() bool { return k == addAction || k == removeAction }

// sumFile sums up the file action that was just read and forgets it.
func (g *groupReader) sumFile() {
	b, h := g.batch, &g.hasher
	if g.hash {
		for i := range b.adds {
			g.files.Sum += h.add(&b.adds[i])
		}
		for i := range b.removes {
			g.files.Sum += h.remove(&b.removes[i])
		}
		g.files.Adds += int64(len(b.adds))
		g.files.Removes += int64(len(b.removes))
	}
	b.adds, b.removes = b.adds[:0], b.removes[:0]
}

// sumUp sums up the batch's actions, where the file says what they come to.
func (g *groupReader) sumUp() {
	if !g.hash {
		return
	}
	b, h := g.batch, &g.hasher
	s := &b.sum
	s.Adds, s.Removes = int64(len(b.adds)), int64(len(b.removes))
	s.Others = int64(len(b.txns) + len(b.domains) + len(b.protocols) + len(b.metadatas))
	for i := range b.adds {
		s.Sum += h.add(&b.adds[i])
	}
	for i := range b.removes {
		s.Sum += h.remove(&b.removes[i])
	}
	for i := range b.txns {
		s.Sum += h.txn(&b.txns[i])
	}
	for i := range b.domains {
		s.Sum += h.domain(&b.domains[i])
	}
	for i := range b.protocols {
		s.Sum += h.protocol(&b.protocols[i])
	}
	for i := range b.metadatas {
		s.Sum += h.metadata(&b.metadatas[i])
	}
}

// interner makes equal objects share memory. It is safe for concurrent use.
type interner struct {
	// mu guards objects.
	mu      sync.Mutex
	objects map[string]action.Object
}

// maxInterned bounds the interner: tables partitioned by something that is
// different for each file gain nothing by it.
const maxInterned = 1 << 16

func newInterner() *interner { return &interner{objects: map[string]action.Object{}} }

func (in *interner) object(text []byte) action.Object {
	if len(text) == 0 {
		return ""
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if o, ok := in.objects[string(text)]; ok {
		return o
	}
	o := action.Object(text)
	if len(in.objects) < maxInterned {
		in.objects[string(o)] = o
	}
	return o
}
