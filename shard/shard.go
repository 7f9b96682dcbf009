// Package shard is the pure map of the key space: which shard owns a series,
// and what the map is after a split.
//
// It stands on layer 1 and does no I/O. The map lives in the table's log as
// the domain [Domain]; a commit that depends on it requires that the domain
// did not change, so routing never trusts a stale copy.
//
// A key has 64 bits: the high half is a hash of the metric name, the low half
// a hash of the label set. So the series of one metric lie together, and a
// single hot metric can still be cut.
//
// INVARIANT: the ranges of a map tile the whole key space in ascending order,
// with no gap and no overlap.
package shard

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/cespare/xxhash/v2"

	"cardinalsin/series"
)

// Domain is the domainMetadata that holds a table's map.
const Domain = "cardinal.shards"

// Column is the partition column that holds a file's shard.
const Column = "shard"

// Conditions a caller branches on.
var (
	// ErrNotFound: no shard of the map has that ID.
	ErrNotFound = errors.New("shard not found")
	// ErrInvalidMap: the ranges do not tile the key space.
	ErrInvalidMap = errors.New("invalid shard map")
	// ErrInvalidBoundary: a split must leave both children non-empty.
	ErrInvalidBoundary = errors.New("invalid split boundary")
)

// ID names a shard for ever. The first is "1"; the children of x are x0 and
// x1, so IDs are prefixes of one another and are only ever compared for
// equality.
type ID string

// Key places a series in the key space.
type Key uint64

// KeyOf computes the key of a series from its full label set and its hash.
func KeyOf(l series.Labels, id series.ID) Key {
	return KeyOfMetric(l.Get(series.MetricName), id)
}

// KeyOfMetric is KeyOf for who knows the metric name.
func KeyOfMetric(name string, id series.ID) Key {
	return Key(xxhash.Sum64String(name)>>32<<32 | uint64(id)>>32)
}

// Range is an interval of keys, both ends inclusive.
type Range struct {
	Min Key `json:"min"`
	Max Key `json:"max"`
}

// Contains reports whether k lies in the range.
func (r Range) Contains(k Key) bool { return r.Min <= k && k <= r.Max }

// Shard is one owner of a range.
type Shard struct {
	ID    ID    `json:"id"`
	Range Range `json:"range"`
}

// Map is the owner of every key. The zero value is invalid; use Initial or
// Parse.
type Map struct {
	// Epoch grows by one with each change.
	Epoch  int64   `json:"epoch"`
	Shards []Shard `json:"shards"` // ascending by range
}

// Initial is the map of a new table: one shard owns everything.
func Initial() Map {
	return Map{Epoch: 1, Shards: []Shard{{ID: "1", Range: Range{0, math.MaxUint64}}}}
}

// Of returns the owner of a key.
func (m Map) Of(k Key) ID {
	i, _ := slices.BinarySearchFunc(m.Shards, k, func(s Shard, k Key) int {
		switch {
		case s.Range.Max < k:
			return -1
		case s.Range.Min > k:
			return 1
		}
		return 0
	})
	return m.Shards[i].ID
}

// Split returns the map in which id's range is cut: the first child owns the
// keys below boundary, the second boundary and above. Errors: ErrNotFound,
// ErrInvalidBoundary.
func (m Map) Split(id ID, boundary Key) (Map, error) {
	i := slices.IndexFunc(m.Shards, func(s Shard) bool { return s.ID == id })
	if i < 0 {
		return Map{}, fmt.Errorf("split %q: %w", id, ErrNotFound)
	}
	r := m.Shards[i].Range
	if boundary <= r.Min || boundary > r.Max {
		return Map{}, fmt.Errorf("split %q at %d: %w: range is %d–%d", id, boundary, ErrInvalidBoundary, r.Min, r.Max)
	}
	out := Map{Epoch: m.Epoch + 1}
	out.Shards = append(out.Shards, m.Shards[:i]...)
	out.Shards = append(out.Shards,
		Shard{ID: id + "0", Range: Range{r.Min, boundary - 1}},
		Shard{ID: id + "1", Range: Range{boundary, r.Max}})
	out.Shards = append(out.Shards, m.Shards[i+1:]...)
	return out, nil
}

// Validate checks the invariant; its error wraps ErrInvalidMap.
func (m Map) Validate() error {
	if len(m.Shards) == 0 || m.Epoch < 1 {
		return fmt.Errorf("%w: %d shards at epoch %d", ErrInvalidMap, len(m.Shards), m.Epoch)
	}
	seen := make(map[ID]bool, len(m.Shards))
	next := Key(0)
	for i, s := range m.Shards {
		if s.ID == "" || seen[s.ID] {
			return fmt.Errorf("%w: shard ID %q is empty or occurs twice", ErrInvalidMap, s.ID)
		}
		seen[s.ID] = true
		if s.Range.Min != next || s.Range.Max < s.Range.Min {
			return fmt.Errorf("%w: shard %q owns %d–%d, expected from %d", ErrInvalidMap, s.ID, s.Range.Min, s.Range.Max, next)
		}
		last := i == len(m.Shards)-1
		if (s.Range.Max == math.MaxUint64) != last {
			return fmt.Errorf("%w: shard %q ends at %d", ErrInvalidMap, s.ID, s.Range.Max)
		}
		next = s.Range.Max + 1
	}
	return nil
}

// Encode returns the configuration of the domain.
func (m Map) Encode() string {
	b, err := json.Marshal(m)
	if err != nil {
		panic(err) // numbers and strings always encode
	}
	return string(b)
}

// Parse is the inverse of Encode; it validates. Its error wraps
// ErrInvalidMap.
func Parse(configuration string) (Map, error) {
	var m Map
	if err := json.Unmarshal([]byte(configuration), &m); err != nil {
		return Map{}, fmt.Errorf("%w: %w", ErrInvalidMap, err)
	}
	if err := m.Validate(); err != nil {
		return Map{}, err
	}
	return m, nil
}
