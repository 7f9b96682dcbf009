package checkpoint

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/cespare/xxhash/v2"

	"cardinalsin/action"
)

// contents sums up the actions of a checkpoint. It is written into the
// Parquet footer and compared when all actions have been read, so that no
// damage that changes an action goes unseen, wherever in the file it is: page
// checksums cover neither headers nor the footer.
//
// INVARIANT: the sums of what was written and of what is read are equal.
type contents struct {
	Version action.Version `json:"version"`
	Adds    int64          `json:"adds"`
	Removes int64          `json:"removes"`
	Others  int64          `json:"others"`
	// Sum is the sum, modulo 2^64, of the xxHash64 of each action; so it does
	// not depend on their order, and parts can be summed up apart.
	Sum uint64 `json:"sum,string"`
}

// contentsKey is the key in the footer's key-value metadata.
const contentsKey = "cardinalsin.contents"

func (c *contents) merge(o contents) {
	c.Adds += o.Adds
	c.Removes += o.Removes
	c.Others += o.Others
	c.Sum += o.Sum
}

func (c *contents) encode() (string, error) {
	b, err := json.Marshal(c)
	if err != nil {
		return "", fmt.Errorf("encode contents: %w", err)
	}
	return string(b), nil
}

func parseContents(s string) (c contents, err error) {
	if err := json.Unmarshal([]byte(s), &c); err != nil {
		return c, fmt.Errorf("contents: %w", err)
	}
	return c, nil
}

// hasher turns actions into bytes; it keeps its buffer.
type hasher struct{ buf []byte }

func (h *hasher) str(s string) {
	h.buf = binary.AppendUvarint(h.buf, uint64(len(s)))
	h.buf = append(h.buf, s...)
}

func (h *hasher) int(v int64) { h.buf = binary.LittleEndian.AppendUint64(h.buf, uint64(v)) }

func (h *hasher) bool(v bool) {
	b := byte(0)
	if v {
		b = 1
	}
	h.buf = append(h.buf, b)
}

func (h *hasher) optInt(v *int64) {
	h.bool(v != nil)
	if v != nil {
		h.int(*v)
	}
}

func (h *hasher) vector(d *action.DeletionVector) {
	h.bool(d != nil)
	if d == nil {
		return
	}
	h.str(d.StorageType)
	h.str(d.PathOrInlineDV)
	h.bool(d.Offset != nil)
	if d.Offset != nil {
		h.int(int64(*d.Offset))
	}
	h.int(int64(d.SizeInBytes))
	h.int(d.Cardinality)
}

// add hashes an add whose objects are canonical.
func (h *hasher) add(a *action.Add) uint64 {
	h.buf = append(h.buf[:0], 'a')
	h.str(a.Path)
	h.str(string(a.PartitionValues))
	h.int(a.Size)
	h.int(a.ModificationTime)
	h.bool(a.DataChange)
	h.str(a.Stats)
	h.str(string(a.Tags))
	h.vector(a.DeletionVector)
	h.optInt(a.BaseRowID)
	h.optInt(a.DefaultRowCommitVersion)
	h.str(a.ClusteringProvider)
	return xxhash.Sum64(h.buf)
}

// remove hashes a remove whose objects are canonical.
func (h *hasher) remove(r *action.Remove) uint64 {
	h.buf = append(h.buf[:0], 'r')
	h.str(r.Path)
	h.int(r.DeletionTimestamp)
	h.bool(r.DataChange)
	h.bool(r.ExtendedFileMetadata)
	h.str(string(r.PartitionValues))
	h.int(r.Size)
	h.vector(r.DeletionVector)
	h.optInt(r.BaseRowID)
	h.optInt(r.DefaultRowCommitVersion)
	return xxhash.Sum64(h.buf)
}

func (h *hasher) txn(t *action.SetTransaction) uint64 {
	h.buf = append(h.buf[:0], 't')
	h.str(t.AppID)
	h.int(t.Version)
	h.int(t.LastUpdated)
	return xxhash.Sum64(h.buf)
}

func (h *hasher) domain(d *action.DomainMetadata) uint64 {
	h.buf = append(h.buf[:0], 'd')
	h.str(d.Domain)
	h.str(d.Configuration)
	h.bool(d.Removed)
	return xxhash.Sum64(h.buf)
}

func (h *hasher) strs(list []string) {
	h.int(int64(len(list)))
	for _, s := range list {
		h.str(s)
	}
}

func (h *hasher) strMap(m map[string]string) {
	members := membersOf(m)
	h.int(int64(len(members)))
	for _, e := range members {
		h.str(e.key)
		h.str(e.value)
	}
}

func (h *hasher) protocol(p *action.Protocol) uint64 {
	h.buf = append(h.buf[:0], 'p')
	h.int(int64(p.MinReaderVersion))
	h.int(int64(p.MinWriterVersion))
	h.strs(p.ReaderFeatures)
	h.strs(p.WriterFeatures)
	return xxhash.Sum64(h.buf)
}

func (h *hasher) metadata(m *action.Metadata) uint64 {
	h.buf = append(h.buf[:0], 'm')
	h.str(m.ID)
	h.str(m.Name)
	h.str(m.Description)
	h.str(m.Format.Provider)
	h.strMap(m.Format.Options)
	h.str(m.SchemaString)
	h.strs(m.PartitionColumns)
	h.strMap(m.Configuration)
	h.optInt(m.CreatedTime)
	return xxhash.Sum64(h.buf)
}

// membersOf lists a map in ascending order of the keys.
func membersOf(m map[string]string) []member {
	members := make([]member, 0, len(m))
	for k, v := range m {
		members = append(members, member{key: k, value: v})
	}
	slices.SortFunc(members, func(a, b member) int { return strings.Compare(a.key, b.key) })
	return members
}
