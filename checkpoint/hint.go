package checkpoint

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"

	"cardinalsin/action"
	"cardinalsin/storage"
)

// Hint is what _last_checkpoint says. It may be stale, ahead of what is
// listed, or wrong; only Version is meant to be used, as the place to start a
// listing from.
type Hint struct {
	Version     action.Version
	Size        int64 // actions
	Parts       int64 // of a multi-part checkpoint, else 0
	SizeInBytes int64 // 0 where not given
	NumAdds     int64 // 0 where not given
}

// hintFile is the JSON form (PROTOCOL.md, "Last Checkpoint File Schema").
type hintFile struct {
	Version     *int64  `json:"version"`
	Size        int64   `json:"size"`
	Parts       *int64  `json:"parts,omitempty"`
	SizeInBytes int64   `json:"sizeInBytes,omitempty"`
	NumAdds     int64   `json:"numOfAddFiles,omitempty"`
	Checksum    *string `json:"checksum,omitempty"`
}

func hintKey(logDir string) string { return path.Join(logDir, "_last_checkpoint") }

// ReadHint reads _last_checkpoint, in one GET. ok is false where there is none
// or where it is empty or damaged, its checksum included; errors are only
// those of the store.
func ReadHint(ctx context.Context, store storage.Store, logDir string) (h Hint, ok bool, err error) {
	data, _, err := store.Get(ctx, hintKey(logDir))
	if errors.Is(err, storage.ErrNotFound) {
		return Hint{}, false, nil
	}
	if err != nil {
		return Hint{}, false, fmt.Errorf("read checkpoint hint: %w", err)
	}
	h, ok = parseHint(data)
	return h, ok, nil
}

func parseHint(data []byte) (Hint, bool) {
	var f hintFile
	if err := json.Unmarshal(data, &f); err != nil || f.Version == nil || *f.Version < 0 {
		return Hint{}, false
	}
	if f.Checksum != nil {
		sum, err := hintChecksum(data)
		if err != nil || sum != *f.Checksum {
			return Hint{}, false
		}
	}
	h := Hint{Version: action.Version(*f.Version), Size: f.Size, SizeInBytes: f.SizeInBytes, NumAdds: f.NumAdds}
	if f.Parts != nil {
		h.Parts = *f.Parts
	}
	return h, true
}

// writeHint points _last_checkpoint to a checkpoint, unless it names a newer
// one. Between the look and the write another process may have moved it on;
// then it goes back, which costs readers a longer listing and nothing else.
func writeHint(ctx context.Context, store storage.Store, logDir string, info Info) (moved bool, err error) {
	old, ok, err := ReadHint(ctx, store, logDir)
	if err != nil {
		return false, err
	}
	if ok && old.Version > info.Ref.Version {
		return false, nil
	}
	v := int64(info.Ref.Version)
	f := hintFile{Version: &v, Size: info.Size, SizeInBytes: info.Ref.SizeInBytes(), NumAdds: info.NumAdds}
	data, err := json.Marshal(f)
	if err != nil {
		return false, fmt.Errorf("encode checkpoint hint: %w", err)
	}
	sum, err := hintChecksum(data)
	if err != nil {
		return false, fmt.Errorf("encode checkpoint hint: %w", err)
	}
	f.Checksum = &sum
	if data, err = json.Marshal(f); err != nil {
		return false, fmt.Errorf("encode checkpoint hint: %w", err)
	}
	if _, err := store.Put(ctx, hintKey(logDir), bytes.NewReader(data)); err != nil {
		return false, fmt.Errorf("write checkpoint hint: %w", err)
	}
	return true, nil
}

// hintChecksum is the MD5 of the canonical form of a JSON object, its own
// field "checksum" left out (PROTOCOL.md, "JSON checksum").
func hintChecksum(data []byte) (string, error) {
	c := canonicalizer{dec: json.NewDecoder(bytes.NewReader(data))}
	c.dec.UseNumber()
	if err := c.value(""); err != nil {
		return "", err
	}
	if _, err := c.dec.Token(); !errors.Is(err, io.EOF) {
		return "", errors.New("more than one value")
	}
	slices.SortFunc(c.pairs, func(a, b [2]string) int { return strings.Compare(a[0], b[0]) })
	sum := md5.New()
	first := true
	for i, p := range c.pairs {
		if i > 0 && p[0] == c.pairs[i-1][0] {
			return "", fmt.Errorf("key %s occurs twice", p[0])
		}
		if p[0] == `"checksum"` {
			continue
		}
		if !first {
			sum.Write([]byte(","))
		}
		first = false
		sum.Write([]byte(p[0] + "=" + p[1]))
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// canonicalizer flattens JSON into pairs of path and literal.
type canonicalizer struct {
	dec   *json.Decoder
	pairs [][2]string
}

func (c *canonicalizer) value(at string) error {
	t, err := c.dec.Token()
	if err != nil {
		return err
	}
	under := at
	if at != "" {
		under += "+"
	}
	switch t := t.(type) {
	case json.Delim:
		for i := 0; c.dec.More(); i++ {
			name := strconv.Itoa(i)
			if t == '{' {
				key, err := c.dec.Token()
				if err != nil {
					return err
				}
				s, _ := key.(string) // the decoder admits no other keys
				name = urlEncode(s)
			}
			if err := c.value(under + name); err != nil {
				return err
			}
		}
		_, err := c.dec.Token() // the closing bracket
		return err
	case string:
		c.pairs = append(c.pairs, [2]string{at, urlEncode(t)})
	case json.Number:
		c.pairs = append(c.pairs, [2]string{at, t.String()})
	case bool:
		c.pairs = append(c.pairs, [2]string{at, strconv.FormatBool(t)})
	case nil:
		c.pairs = append(c.pairs, [2]string{at, "null"})
	}
	return nil
}

// urlEncode quotes a string and escapes all but the unreserved characters.
func urlEncode(s string) string {
	const hexDigits = "0123456789ABCDEF"
	b := append(make([]byte, 0, len(s)+2), '"')
	for _, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '.', c == '_', c == '~':
			b = append(b, c)
		default:
			b = append(b, '%', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	return string(append(b, '"'))
}
