package checkpoint

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"testing"

	"cardinalsin/action"
	"cardinalsin/storage"
)

const logDir = "t/_delta_log"

// table is a state in a form that tests can compare.
type table struct {
	Version  action.Version
	Protocol *action.Protocol
	Metadata *action.Metadata
	Txns     []action.SetTransaction
	Domains  []action.DomainMetadata
	Adds     []action.Add
	Removes  []action.Remove
}

func (t *table) state() State {
	return State{
		Version: t.Version, Protocol: t.Protocol, Metadata: t.Metadata, Txns: t.Txns, Domains: t.Domains,
		Adds: pointers(t.Adds), Removes: pointers(t.Removes),
		NumAdds: int64(len(t.Adds)), NumRemoves: int64(len(t.Removes)),
	}
}

func pointers[T any](list []T) iter.Seq[*T] {
	return func(yield func(*T) bool) {
		for i := range list {
			if !yield(&list[i]) {
				return
			}
		}
	}
}

// sink collects into t.
func (t *table) sink() Sink {
	return Sink{
		Protocol: func(p *action.Protocol) error { t.Protocol = p; return nil },
		Metadata: func(m *action.Metadata) error { t.Metadata = m; return nil },
		Txn:      func(x action.SetTransaction) error { t.Txns = append(t.Txns, x); return nil },
		Domain:   func(d action.DomainMetadata) error { t.Domains = append(t.Domains, d); return nil },
		Add:      func(a *action.Add) error { t.Adds = append(t.Adds, *a); return nil },
		Remove:   func(r *action.Remove) error { t.Removes = append(t.Removes, *r); return nil },
	}
}

func readTable(ctx context.Context, store storage.Store, ref Ref) (*table, error) {
	t := &table{Version: ref.Version}
	if err := Read(ctx, store, logDir, ref, t.sink()); err != nil {
		return nil, err
	}
	return t, nil
}

// stored is what a checkpoint keeps of a table: no dataChange, no statistics
// and tags of removes, objects in canonical form, everything in order.
func stored(t *table) *table {
	out := *t
	out.Protocol = &action.Protocol{
		MinReaderVersion: t.Protocol.MinReaderVersion, MinWriterVersion: t.Protocol.MinWriterVersion,
		ReaderFeatures: orNil(t.Protocol.ReaderFeatures), WriterFeatures: orNil(t.Protocol.WriterFeatures),
	}
	m := *t.Metadata
	m.PartitionColumns = append([]string{}, m.PartitionColumns...)
	m.Configuration = orEmpty(m.Configuration)
	m.Format.Options = orEmpty(m.Format.Options)
	out.Metadata = &m
	out.Txns = slices.SortedFunc(slices.Values(t.Txns), func(a, b action.SetTransaction) int { return strings.Compare(a.AppID, b.AppID) })
	out.Domains = slices.SortedFunc(slices.Values(t.Domains), func(a, b action.DomainMetadata) int { return strings.Compare(a.Domain, b.Domain) })
	out.Adds, out.Removes = nil, nil
	for _, a := range t.Adds {
		a.DataChange = false
		a.PartitionValues, a.Tags = canonical(a.PartitionValues), canonical(a.Tags)
		out.Adds = append(out.Adds, a)
	}
	for _, r := range t.Removes {
		r.DataChange, r.Stats, r.Tags = false, "", ""
		r.PartitionValues = canonical(r.PartitionValues)
		out.Removes = append(out.Removes, r)
	}
	return &out
}

func orNil(s []string) []string {
	if len(s) == 0 {
		return nil
	}
	return s
}

func orEmpty(m map[string]string) map[string]string {
	out := map[string]string{}
	maps.Copy(out, m)
	return out
}

// canonical goes a way of its own, by maps, so that it checks the package's.
func canonical(o action.Object) action.Object {
	m, err := o.Map()
	if err != nil {
		panic(err)
	}
	if len(m) == 0 {
		return ""
	}
	var b strings.Builder
	for i, k := range slices.Sorted(maps.Keys(m)) {
		b.WriteString(map[bool]string{true: "{", false: ","}[i == 0])
		one := string(action.ObjectOf(map[string]string{k: ""}))
		b.WriteString(one[1 : len(one)-3])
		if m[k] == nil {
			b.WriteString("null")
		} else {
			one = string(action.ObjectOf(map[string]string{"": *m[k]}))
			b.WriteString(one[4 : len(one)-1])
		}
	}
	return action.Object(b.String() + "}")
}

func (t *table) sort() {
	byKey := func(a, b action.Key) int { return cmp.Or(strings.Compare(a.Path, b.Path), strings.Compare(a.DV, b.DV)) }
	slices.SortFunc(t.Adds, func(a, b action.Add) int { return byKey(a.Key(), b.Key()) })
	slices.SortFunc(t.Removes, func(a, b action.Remove) int { return byKey(a.Key(), b.Key()) })
}

func ptr[T any](v T) *T { return &v }

// sample is a table of n files with everything that an action can have.
func sample(n int) *table {
	t := &table{
		Version:  10,
		Protocol: &action.Protocol{MinReaderVersion: 1, MinWriterVersion: 7, WriterFeatures: []string{"cardinal-exclusive", "domainMetadata", "inCommitTimestamp"}},
		Metadata: &action.Metadata{
			ID: "3b5d1c5e-8e7c-4e0c-9c59-9a1b6a0f7a11", Name: "metrics",
			Format:           action.Format{Provider: "parquet", Options: map[string]string{}},
			SchemaString:     `{"type":"struct","fields":[{"name":"value","type":"long","nullable":true,"metadata":{}},{"name":"date","type":"date","nullable":true,"metadata":{}},{"name":"shard","type":"string","nullable":true,"metadata":{}}]}`,
			PartitionColumns: []string{"date", "shard"}, CreatedTime: ptr(int64(1700000000000)),
			Configuration: map[string]string{"delta.enableInCommitTimestamps": "true", "x": ""},
		},
		Txns: []action.SetTransaction{
			{AppID: "cardinal/writer/b", Version: 17},
			{AppID: "cardinal/writer/a", Version: 42, LastUpdated: 1700000000123},
		},
		Domains: []action.DomainMetadata{
			{Domain: "cardinal.shards", Configuration: `{"epoch":3}`},
			{Domain: "cardinal.watermark", Configuration: `{"version":2}`},
		},
	}
	for i := range n {
		date, shard := fmt.Sprintf("2026-11-%02d", 1+i*28/max(n, 1)), fmt.Sprintf("%02x", i%4)
		a := action.Add{
			Path:            fmt.Sprintf("date=%s/shard=%s/%08d-2f1c-4b3a-9d55-%012x.parquet", date, shard, i, i*7919),
			PartitionValues: action.ObjectOf(map[string]string{"date": date, "shard": shard}),
			Size:            int64(1_000_000 + i), ModificationTime: 1700000000000 + int64(i), DataChange: i%3 == 0,
			Stats: fmt.Sprintf(`{"numRecords":%d,"minValues":{"timestamp":"2026-11-22T00:00:00.000Z","metric_name":"go_gc_%d","value":%d.5},"maxValues":{"timestamp":"2026-11-22T23:59:59.999Z","metric_name":"up","value":%d},"nullCount":{"timestamp":0,"metric_name":0,"value":%d}}`, 1000+i, i%100, i, 2*i, i%5),
			Tags:  action.ObjectOf(map[string]string{"cardinal.level": "1", "cardinal.min_ts": fmt.Sprint(1700000000000000 + i)}),
		}
		if i%7 == 3 {
			a.DeletionVector = &action.DeletionVector{StorageType: "u", PathOrInlineDV: fmt.Sprintf("ab^-aqEH.-t@S}K{vb[*k^%d", i), Offset: ptr(int32(4)), SizeInBytes: 40, Cardinality: 6}
		}
		if i%11 == 5 {
			a.BaseRowID, a.DefaultRowCommitVersion, a.ClusteringProvider = ptr(int64(i)), ptr(int64(0)), "liquid"
		}
		t.Adds = append(t.Adds, a)
		if i%5 == 0 {
			r := action.Remove{Path: a.Path + "-old", DeletionTimestamp: 1700000000000 + int64(i), DataChange: true}
			if i%2 == 0 {
				r.ExtendedFileMetadata, r.PartitionValues, r.Size, r.DeletionVector = true, a.PartitionValues, int64(i), a.DeletionVector
			}
			t.Removes = append(t.Removes, r)
		}
	}
	t.sort()
	return t
}

func classic(t testing.TB, store storage.Store, v action.Version) Ref {
	t.Helper()
	objs, err := storage.Collect(store.List(t.Context(), logDir+"/", ""))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range FromListing(objs) {
		if r.Version == v && r.Kind == Classic {
			return r
		}
	}
	t.Fatalf("no classic checkpoint %d in %v", v, objs)
	return Ref{}
}
