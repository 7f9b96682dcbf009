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

// VacuumDomain holds how far a finished vacuum came: the files that commits up
// to that version removed are dealt with, and the log before it may be
// trimmed. All commits after it are there.
const VacuumDomain = "cardinal.vacuum"

type vacuumed struct {
	Through   action.Version `json:"deleted_through"`
	Timestamp int64          `json:"timestamp"` // of that version, in-commit, ms
}

// EncodeVacuumed returns the configuration of VacuumDomain; timestamp is the
// version's in-commit timestamp in ms since the epoch.
func EncodeVacuumed(through action.Version, timestamp int64) string {
	return fmt.Sprintf(`{"deleted_through":%d,"timestamp":%d}`, int64(through), timestamp)
}

// Vacuumed returns what VacuumDomain holds, -1 before the first vacuum. Its
// error wraps action.ErrCorrupt.
func (s *Snapshot) Vacuumed() (through action.Version, timestamp int64, err error) {
	conf, ok := s.Domain(VacuumDomain)
	if !ok {
		return -1, 0, nil
	}
	var v vacuumed
	if err := json.Unmarshal([]byte(conf), &v); err != nil || v.Through < 0 || v.Through > s.version {
		return 0, 0, fmt.Errorf("%w: %s: %.200q", action.ErrCorrupt, VacuumDomain, conf)
	}
	return v.Through, v.Timestamp, nil
}
