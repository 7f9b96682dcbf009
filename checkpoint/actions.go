package checkpoint

import (
	"fmt"
	"slices"
	"unsafe"

	"github.com/parquet-go/parquet-go/format"

	"cardinalsin/action"
	"cardinalsin/checkpoint/internal/parquetcol"
)

// str returns a column's text at a row, "" for null.
func str(c *parquetcol.Column, row int64) string {
	if c == nil || !c.Present(row) {
		return ""
	}
	return c.Str()
}

func num(c *parquetcol.Column, row int64) int64 {
	if c == nil || !c.Present(row) {
		return 0
	}
	return c.Int()
}

func optNum(c *parquetcol.Column, row int64) *int64 {
	if c == nil || !c.Present(row) {
		return nil
	}
	v := c.Int()
	return &v
}

// mapReader reads a map<string,string>: a group that holds one repeated group
// of a key and a value, whatever their names (parquet-format, "Maps").
type mapReader struct {
	key, value *parquetcol.Column
	entry      int // definition level of an entry
}

func (g *groupReader) openMap(parent *parquetcol.Node, name string) *mapReader {
	n := parent.Child(name)
	if n == nil {
		return nil
	}
	if n.Leaf < 0 && len(n.Children) == 1 && n.Rep == 0 {
		if kv := n.Children[0]; kv.Rep == 1 && len(kv.Children) >= 1 {
			m := &mapReader{entry: kv.Def}
			for i, c := range kv.Children {
				if c.Leaf < 0 || c.Rep != 1 || c.Physical != format.ByteArray || i > 1 {
					g.fail(fmt.Errorf("%w: column %s.%s is no map of text", parquetcol.ErrCorrupt, parent.Name, name))
					return nil
				}
			}
			m.key = g.leaf(kv.Children[0])
			if len(kv.Children) > 1 {
				m.value = g.leaf(kv.Children[1])
			}
			return m
		}
	}
	g.fail(fmt.Errorf("%w: column %s.%s is no map", parquetcol.ErrCorrupt, parent.Name, name))
	return nil
}

// members appends the entries of a row.
func (g *groupReader) mapMembers(m *mapReader, row int64, dst []member) []member {
	if m == nil {
		return dst
	}
	keys := m.key.Row(row)
	var values []parquetcol.Entry
	if m.value != nil {
		if values = m.value.Row(row); len(values) != len(keys) {
			g.fail(fmt.Errorf("%w: %d keys and %d values", parquetcol.ErrCorrupt, len(keys), len(values)))
			return dst
		}
	}
	for i, k := range keys {
		if k.Def < m.entry {
			continue
		}
		e := member{key: k.Str, null: true}
		if values != nil && values[i].Def == m.value.Node().Def {
			e.value, e.null = values[i].Str, false
		}
		dst = append(dst, e)
	}
	return dst
}

// object reads a map as the canonical text of an object.
func (g *groupReader) object(m *mapReader, row int64) action.Object {
	g.members = sortMembers(g.mapMembers(m, row, g.members[:0]))
	g.text = appendObject(g.text[:0], g.members)
	if g.sumOnly {
		return action.Object(unsafe.String(unsafe.SliceData(g.text), len(g.text))) // summed up before the next one
	}
	return action.Object(g.text)
}

// partition is object for partition values, which many files share: equal
// ones become one string.
func (g *groupReader) partition(m *mapReader, row int64) action.Object {
	g.members = sortMembers(g.mapMembers(m, row, g.members[:0]))
	if !g.sumOnly && slices.Equal(g.members, g.last) {
		return g.lastValues
	}
	g.text = appendObject(g.text[:0], g.members)
	if g.sumOnly { // what the last members point to may be gone
		if string(g.text) != string(g.lastValues) {
			g.lastValues = g.interned.object(g.text)
		}
		return g.lastValues
	}
	g.lastValues = g.interned.object(g.text)
	g.last = append(g.last[:0], g.members...)
	return g.lastValues
}

// strings reads a map as a Go map; a null value is "".
func (g *groupReader) stringMap(m *mapReader, row int64) map[string]string {
	out := map[string]string{}
	for _, e := range g.mapMembers(m, row, nil) {
		out[e.key] = e.value
	}
	return out
}

// openList opens a list of text, in two or three levels (parquet-format,
// "Lists"): a group around one leaf.
func (g *groupReader) openList(parent *parquetcol.Node, name string) *parquetcol.Column {
	n := parent.Child(name)
	if n == nil {
		return nil
	}
	for n.Leaf < 0 && len(n.Children) == 1 {
		n = n.Children[0]
	}
	if n.Leaf < 0 || n.Rep != 1 || n.Physical != format.ByteArray {
		g.fail(fmt.Errorf("%w: column %s.%s is no list of text", parquetcol.ErrCorrupt, parent.Name, name))
		return nil
	}
	return g.leaf(n)
}

func list(c *parquetcol.Column, row int64) []string {
	if c == nil {
		return nil
	}
	var out []string
	for _, e := range c.Row(row) {
		if e.Def == c.Node().Def {
			out = append(out, e.Str)
		}
	}
	return out
}

// vectorReader reads a deletion vector.
type vectorReader struct {
	def                                                 int
	storageType, path, offset, sizeInBytes, cardinality *parquetcol.Column
}

func (g *groupReader) openVector(parent *parquetcol.Node) *vectorReader {
	n := parent.Child("deletionVector")
	if n == nil || n.Child("storageType") == nil {
		return nil
	}
	return &vectorReader{
		def:         n.Def,
		storageType: g.column(n, "storageType", textType),
		path:        g.column(n, "pathOrInlineDv", textType),
		offset:      g.column(n, "offset", intType),
		sizeInBytes: g.column(n, "sizeInBytes", intType),
		cardinality: g.column(n, "cardinality", intType),
	}
}

func (v *vectorReader) read(row int64) *action.DeletionVector {
	if v == nil || v.storageType == nil || v.storageType.At(row) < v.def {
		return nil
	}
	// Some writers store a struct of nulls for an absent vector.
	if !v.storageType.Present(row) {
		return nil
	}
	d := &action.DeletionVector{
		StorageType:    v.storageType.Str(),
		PathOrInlineDV: str(v.path, row),
		SizeInBytes:    int32(num(v.sizeInBytes, row)),
		Cardinality:    num(v.cardinality, row),
	}
	if off := optNum(v.offset, row); off != nil {
		o := int32(*off)
		d.Offset = &o
	}
	return d
}

// open returns the function that reads one action of a kind.
func (g *groupReader) open(kind actionKind, n *parquetcol.Node, probe *parquetcol.Column) func(row int64) {
	text := func(name string) *parquetcol.Column { return g.column(n, name, textType) }
	integer := func(name string) *parquetcol.Column { return g.column(n, name, intType) }
	boolean := func(name string) *parquetcol.Column { return g.column(n, name, boolType) }
	if probe.Node().Physical != format.ByteArray {
		switch kind {
		case addAction, removeAction, txnAction, domainAction, sidecarAction, metadataAction:
			g.fail(fmt.Errorf("%w: column %s.%s is not text", parquetcol.ErrCorrupt, n.Name, probe.Node().Name))
		}
	}
	switch kind {
	case addAction:
		return g.openAdd(n, probe)
	case removeAction:
		return g.openRemove(n, probe)
	case txnAction:
		version, updated := integer("version"), integer("lastUpdated")
		return func(row int64) {
			g.batch.txns = append(g.batch.txns, action.SetTransaction{
				AppID: str(probe, row), Version: num(version, row), LastUpdated: num(updated, row),
			})
		}
	case domainAction:
		configuration, removed := text("configuration"), boolean("removed")
		return func(row int64) {
			g.batch.domains = append(g.batch.domains, action.DomainMetadata{
				Domain: str(probe, row), Configuration: str(configuration, row), Removed: num(removed, row) != 0,
			})
		}
	case protocolAction:
		reader, writer := integer("minReaderVersion"), integer("minWriterVersion")
		readerFeatures, writerFeatures := g.openList(n, "readerFeatures"), g.openList(n, "writerFeatures")
		return func(row int64) {
			g.batch.protocols = append(g.batch.protocols, action.Protocol{
				MinReaderVersion: int(num(reader, row)), MinWriterVersion: int(num(writer, row)),
				ReaderFeatures: list(readerFeatures, row), WriterFeatures: list(writerFeatures, row),
			})
		}
	case metadataAction:
		return g.openMetadata(n, probe)
	case sidecarAction:
		size := integer("sizeInBytes")
		return func(row int64) {
			g.batch.sidecars = append(g.batch.sidecars, sidecar{Path: str(probe, row), SizeInBytes: num(size, row)})
		}
	}
	version := integer("version")
	return func(row int64) { g.batch.manifests = append(g.batch.manifests, num(version, row)) }
}

func (g *groupReader) openMetadata(n *parquetcol.Node, id *parquetcol.Column) func(row int64) {
	name, description := g.column(n, "name", textType), g.column(n, "description", textType)
	schema, created := g.column(n, "schemaString", textType), g.column(n, "createdTime", intType)
	columns, configuration := g.openList(n, "partitionColumns"), g.openMap(n, "configuration")
	var provider *parquetcol.Column
	var options *mapReader
	if f := n.Child("format"); f != nil {
		provider, options = g.column(f, "provider", textType), g.openMap(f, "options")
	}
	return func(row int64) {
		m := action.Metadata{
			ID: str(id, row), Name: str(name, row), Description: str(description, row),
			Format:           action.Format{Provider: str(provider, row), Options: g.stringMap(options, row)},
			SchemaString:     str(schema, row),
			PartitionColumns: list(columns, row),
			CreatedTime:      optNum(created, row),
			Configuration:    g.stringMap(configuration, row),
		}
		if m.PartitionColumns == nil {
			m.PartitionColumns = []string{} // so that it is [] in JSON, not null
		}
		g.batch.metadatas = append(g.batch.metadatas, m)
	}
}

func (g *groupReader) openAdd(n *parquetcol.Node, path *parquetcol.Column) func(row int64) {
	values, tags := g.openMap(n, "partitionValues"), g.openMap(n, "tags")
	size, modified := g.column(n, "size", intType), g.column(n, "modificationTime", intType)
	change, stats := g.column(n, "dataChange", boolType), g.column(n, "stats", textType)
	vector := g.openVector(n)
	baseRow, commit := g.column(n, "baseRowId", intType), g.column(n, "defaultRowCommitVersion", intType)
	clustering := g.column(n, "clusteringProvider", textType)
	var parsedStats, parsedValues *structReader
	if g.stats != nil && g.needsStruct(g.rows) {
		parsedStats = g.openStruct(g.stats)
	}
	if g.values != nil {
		parsedValues = g.openStruct(g.values)
	}
	return func(row int64) {
		a := action.Add{
			Path: str(path, row), PartitionValues: g.partition(values, row),
			Size: num(size, row), ModificationTime: num(modified, row), DataChange: num(change, row) != 0,
			Stats: str(stats, row), DeletionVector: vector.read(row),
			BaseRowID: optNum(baseRow, row), DefaultRowCommitVersion: optNum(commit, row),
			ClusteringProvider: str(clustering, row),
		}
		if tags != nil {
			a.Tags = g.object(tags, row)
		}
		if a.Path == "" {
			g.fail(fmt.Errorf("%w: add without a path", parquetcol.ErrCorrupt))
		}
		if a.Stats == "" && parsedStats != nil {
			a.Stats = parsedStats.stats(row)
		}
		if parsedValues != nil {
			a.PartitionValues = g.interned.object(parsedValues.values(row))
		}
		g.batch.adds = append(g.batch.adds, a)
	}
}

func (g *groupReader) openRemove(n *parquetcol.Node, path *parquetcol.Column) func(row int64) {
	deleted, change := g.column(n, "deletionTimestamp", intType), g.column(n, "dataChange", boolType)
	extended, size := g.column(n, "extendedFileMetadata", boolType), g.column(n, "size", intType)
	values, tags := g.openMap(n, "partitionValues"), g.openMap(n, "tags")
	vector := g.openVector(n)
	baseRow, commit := g.column(n, "baseRowId", intType), g.column(n, "defaultRowCommitVersion", intType)
	stats := g.column(n, "stats", textType)
	return func(row int64) {
		r := action.Remove{
			Path: str(path, row), DeletionTimestamp: num(deleted, row), DataChange: num(change, row) != 0,
			ExtendedFileMetadata: num(extended, row) != 0, PartitionValues: g.partition(values, row),
			Size: num(size, row), Stats: str(stats, row), DeletionVector: vector.read(row),
			BaseRowID: optNum(baseRow, row), DefaultRowCommitVersion: optNum(commit, row),
		}
		if tags != nil {
			r.Tags = g.object(tags, row)
		}
		if r.Path == "" {
			g.fail(fmt.Errorf("%w: remove without a path", parquetcol.ErrCorrupt))
		}
		g.batch.removes = append(g.batch.removes, r)
	}
}
