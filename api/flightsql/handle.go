package flightsql

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/apache/arrow-go/v18/arrow"

	"cardinalsin/action"
)

// handleFormat is the one that this version writes and reads.
const handleFormat = 1

// maxHandleBytes bounds a handle, arguments and all.
const maxHandleBytes = 8 << 20

// handle is all that is known of a statement; see the package comment.
type handle struct {
	Format     int          `json:"format"`
	SQL        string       `json:"sql"`
	Version    *int64       `json:"version,omitempty"`
	Parameters []string     `json:"parameters,omitempty"`
	Arguments  [][]argument `json:"arguments,omitempty"`
	Schema     string       `json:"schema,omitempty"`
	ID         string       `json:"id,omitempty"`
}

// encode returns the handle's bytes.
func (h *handle) encode() ([]byte, error) {
	h.Format = handleFormat
	b, err := json.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("encode a handle: %w", err)
	}
	if len(b) > maxHandleBytes {
		return nil, fmt.Errorf("%w: the statement and its arguments take %d bytes, at most %d", errBadRequest, len(b), maxHandleBytes)
	}
	return b, nil
}

// decodeHandle reads what encode wrote, or what somebody made up.
func decodeHandle(b []byte, maxRuns int) (*handle, error) {
	if len(b) > maxHandleBytes {
		return nil, fmt.Errorf("%w: a handle of %d bytes", errBadRequest, len(b))
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	h := &handle{}
	if err := d.Decode(h); err != nil {
		return nil, fmt.Errorf("%w: handle: %w", errBadRequest, err)
	}
	switch {
	case h.Format != handleFormat:
		return nil, fmt.Errorf("%w: handle of format %d; this server reads %d", errBadRequest, h.Format, handleFormat)
	case h.Version != nil && *h.Version < 0:
		return nil, fmt.Errorf("%w: handle: version %d", errBadRequest, *h.Version)
	case len(h.Arguments) > maxRuns:
		return nil, fmt.Errorf("%w: %d rows of parameters, at most %d", errBadRequest, len(h.Arguments), maxRuns)
	}
	for _, row := range h.Arguments {
		if len(row) != len(h.Parameters) {
			return nil, fmt.Errorf("%w: handle: %d arguments for %d parameters", errBadRequest, len(row), len(h.Parameters))
		}
	}
	return h, nil
}

// pin takes the version that a call's metadata names, which goes before that of
// the handle.
func (h *handle) pin(text string) error {
	if text == "" {
		return nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return fmt.Errorf("%w: %s: %q is no version", errBadRequest, VersionHeader, text)
	}
	h.Version = &n
	return nil
}

// version is the one that is pinned.
func (h *handle) version() (v action.Version, ok bool) {
	if h.Version == nil {
		return 0, false
	}
	return action.Version(*h.Version), true
}

// fingerprint tells schemas apart; that of no schema is empty.
func fingerprint(s *arrow.Schema) string {
	if s == nil {
		return ""
	}
	h := sha256.New()
	for _, f := range s.Fields() {
		fmt.Fprintf(h, "%q %s\n", f.Name, f.Type)
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// argument is the value of a parameter: nil, bool, string, int64, uint64,
// float64, []byte or time.Time.
type argument struct{ value any }

// Members of the objects that stand for values which JSON cannot tell apart.
const (
	memberInt   = "int"
	memberUint  = "uint"
	memberFloat = "float"
	memberBytes = "bytes"
	memberTime  = "time"
)

// MarshalJSON implements json.Marshaler.
func (a argument) MarshalJSON() ([]byte, error) {
	switch v := a.value.(type) {
	case nil, bool, string:
		return json.Marshal(v)
	case int64:
		return json.Marshal(map[string]string{memberInt: strconv.FormatInt(v, 10)})
	case uint64:
		return json.Marshal(map[string]string{memberUint: strconv.FormatUint(v, 10)})
	case float64:
		return json.Marshal(map[string]string{memberFloat: strconv.FormatFloat(v, 'g', -1, 64)})
	case []byte:
		return json.Marshal(map[string][]byte{memberBytes: v})
	case time.Time:
		return json.Marshal(map[string]string{memberTime: v.UTC().Format(time.RFC3339Nano)})
	}
	return nil, fmt.Errorf("%w: argument of type %T", errBadRequest, a.value)
}

// UnmarshalJSON implements json.Unmarshaler.
func (a *argument) UnmarshalJSON(b []byte) error {
	if len(b) == 0 || b[0] != '{' {
		if err := json.Unmarshal(b, &a.value); err != nil {
			return err
		}
		switch a.value.(type) {
		case nil, bool, string:
			return nil
		}
		return fmt.Errorf("an argument of type %T", a.value)
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(b, &members); err != nil {
		return err
	}
	for name, raw := range members {
		if len(members) > 1 {
			break
		}
		if name == memberBytes {
			var v []byte
			err := json.Unmarshal(raw, &v)
			a.value = v
			return err
		}
		var text string
		if err := json.Unmarshal(raw, &text); err != nil {
			return err
		}
		return a.parse(name, text)
	}
	return fmt.Errorf("an argument is an object of one member")
}

// parse reads the value of a member.
func (a *argument) parse(name, text string) (err error) {
	switch name {
	case memberInt:
		a.value, err = strconv.ParseInt(text, 10, 64)
	case memberUint:
		a.value, err = strconv.ParseUint(text, 10, 64)
	case memberFloat:
		a.value, err = strconv.ParseFloat(text, 64)
	case memberTime:
		a.value, err = time.Parse(time.RFC3339Nano, text)
	default:
		err = fmt.Errorf("argument of type %q", name)
	}
	return err
}
