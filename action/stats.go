package action

import (
	"encoding/json"
	"fmt"
)

// Stats summarises the rows of one file (PROTOCOL.md, "Per-file
// Statistics"). Bounds are JSON values in the form of the protocol: numbers,
// strings, timestamps as ISO-8601 text in milliseconds, rounded down. String
// bounds may be cut: a minimum to a prefix, a maximum to a greater string.
type Stats struct {
	NumRecords int64 `json:"numRecords"`
	// TightBounds false means that bounds may be wider than the rows; absent
	// means true.
	TightBounds *bool                      `json:"tightBounds,omitempty"`
	Min         map[string]json.RawMessage `json:"minValues,omitempty"`
	Max         map[string]json.RawMessage `json:"maxValues,omitempty"`
	NullCount   map[string]json.RawMessage `json:"nullCount,omitempty"`
}

// ParseStats decodes the statistics of an add; ok is false where there are
// none.
func ParseStats(raw string) (s Stats, ok bool, err error) {
	if raw == "" {
		return Stats{}, false, nil
	}
	if err := json.Unmarshal([]byte(raw), &s); err != nil {
		return Stats{}, false, fmt.Errorf("%w: statistics: %w", ErrCorrupt, err)
	}
	return s, true, nil
}

// Encode is the inverse of ParseStats.
func (s *Stats) Encode() (string, error) {
	b, err := json.Marshal(s)
	if err != nil {
		return "", fmt.Errorf("encode statistics: %w", err)
	}
	return string(b), nil
}
