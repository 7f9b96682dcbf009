package checkpoint

import (
	"slices"

	"github.com/parquet-go/parquet-go"
)

// createdBy marks files of ours; they must carry their contents' sum.
const createdBy = "cardinalsin"

// ordered is a group whose fields keep their order; upstream's Group sorts
// them. Readers go by name, people by order.
type ordered struct {
	parquet.Group
	names []string
}

// Fields returns the fields in the order in which they were given.
func (o ordered) Fields() []parquet.Field {
	fields := o.Group.Fields()
	slices.SortFunc(fields, func(a, b parquet.Field) int {
		return slices.Index(o.names, a.Name()) - slices.Index(o.names, b.Name())
	})
	return fields
}

// group builds an optional group from pairs of name and node.
func group(pairs ...any) parquet.Node { return parquet.Optional(required(pairs...)) }

func required(pairs ...any) ordered {
	o := ordered{Group: parquet.Group{}}
	for i := 0; i < len(pairs); i += 2 {
		name, node := pairs[i].(string), pairs[i+1].(parquet.Node)
		o.Group[name] = node
		o.names = append(o.names, name)
	}
	return o
}

// newSchema is the checkpoint schema (PROTOCOL.md, "Checkpoint Schema").
// Encodings are the oldest, so that every reader knows them: a dictionary for
// text that repeats, plain for the rest.
func newSchema() *parquet.Schema {
	text := func() parquet.Node {
		return parquet.Optional(parquet.Encoded(parquet.String(), &parquet.Plain))
	}
	word := func() parquet.Node {
		return parquet.Optional(parquet.Encoded(parquet.String(), &parquet.RLEDictionary))
	}
	leaf := func(t parquet.Type) parquet.Node {
		return parquet.Optional(parquet.Encoded(parquet.Leaf(t), &parquet.Plain))
	}
	long := func() parquet.Node { return leaf(parquet.Int64Type) }
	integer := func() parquet.Node { return leaf(parquet.Int32Type) }
	boolean := func() parquet.Node { return leaf(parquet.BooleanType) }
	stringMap := func(value parquet.Node) parquet.Node {
		return parquet.Optional(parquet.Map(parquet.Encoded(parquet.String(), &parquet.RLEDictionary), value))
	}
	list := func() parquet.Node { return parquet.Optional(parquet.List(text())) }
	vector := func() parquet.Node {
		return group(
			"storageType", word(), "pathOrInlineDv", text(), "offset", integer(),
			"sizeInBytes", integer(), "cardinality", long())
	}
	return parquet.NewSchema("checkpoint", required(
		"txn", group("appId", text(), "version", long(), "lastUpdated", long()),
		"add", group(
			"path", text(), "partitionValues", stringMap(word()), "size", long(),
			"modificationTime", long(), "dataChange", boolean(), "stats", text(),
			"tags", stringMap(text()), "deletionVector", vector(), "baseRowId", long(),
			"defaultRowCommitVersion", long(), "clusteringProvider", word()),
		"remove", group(
			"path", text(), "deletionTimestamp", long(), "dataChange", boolean(),
			"extendedFileMetadata", boolean(), "partitionValues", stringMap(word()),
			"size", long(), "deletionVector", vector(), "baseRowId", long(),
			"defaultRowCommitVersion", long()),
		"metaData", group(
			"id", text(), "name", text(), "description", text(),
			"format", group("provider", text(), "options", stringMap(text())),
			"schemaString", text(), "partitionColumns", list(),
			"configuration", stringMap(text()), "createdTime", long()),
		"protocol", group(
			"minReaderVersion", integer(), "minWriterVersion", integer(),
			"readerFeatures", list(), "writerFeatures", list()),
		"domainMetadata", group("domain", text(), "configuration", text(), "removed", boolean()),
	))
}
