package txlog

import (
	"encoding/json"
	"fmt"

	"cardinalsin/action"
)

// WatermarkDomain holds the oldest version that may still be read, as vacuum
// committed it before it deleted anything (log-protocol 6).
const WatermarkDomain = "cardinal.watermark"

type watermark struct {
	Version action.Version `json:"version"`
}

// EncodeWatermark returns the configuration of WatermarkDomain.
func EncodeWatermark(v action.Version) string { return fmt.Sprintf(`{"version":%d}`, int64(v)) }

// Watermark returns the oldest version that may be read as of this version of
// the table, 0 before the first vacuum. Its error wraps action.ErrCorrupt.
func (s *Snapshot) Watermark() (action.Version, error) {
	conf, ok := s.Domain(WatermarkDomain)
	if !ok {
		return 0, nil
	}
	var w watermark
	if err := json.Unmarshal([]byte(conf), &w); err != nil || w.Version < 0 {
		return 0, fmt.Errorf("%w: %s: %.200q", action.ErrCorrupt, WatermarkDomain, conf)
	}
	return w.Version, nil
}
