package action

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// stdDecode is Decode by encoding/json alone, the peer to compare with.
func stdDecode(data []byte) (*Commit, error) {
	c := &Commit{}
	dec := json.NewDecoder(bytes.NewReader(data))
	for {
		var l line
		if err := dec.Decode(&l); errors.Is(err, io.EOF) {
			return c, nil
		} else if err != nil {
			return nil, err
		}
		switch {
		case l.Add != nil:
			c.Adds = append(c.Adds, *l.Add)
		case l.Remove != nil:
			c.Removes = append(c.Removes, *l.Remove)
		}
	}
}

// benchEntries are the entries to decode: made up, or, with CARDINAL_BENCH_LOG
// set to a _delta_log, those of a real table.
func benchEntries(b *testing.B) map[string][][]byte {
	b.Helper()
	out := map[string][][]byte{
		"adds=100000":           {entryOf(100_000, false)},
		"adds=20000/stats=true": {entryOf(20_000, true)},
	}
	if dir := os.Getenv("CARDINAL_BENCH_LOG"); dir != "" {
		names, err := filepath.Glob(filepath.Join(dir, "*.json"))
		if err != nil {
			b.Fatal(err)
		}
		for _, name := range names {
			data, err := os.ReadFile(name)
			if err != nil {
				b.Fatal(err)
			}
			out["log"] = append(out["log"], data)
		}
	}
	return out
}

func BenchmarkDecode(b *testing.B) {
	for name, entries := range benchEntries(b) {
		size := int64(0)
		for _, data := range entries {
			size += int64(len(data))
		}
		for _, c := range []struct {
			by     string
			decode func(data []byte) error
		}{
			{"scan", func(data []byte) error {
				adds := 0
				err := Scan(data, &Sink{Add: func(*Add) error { adds++; return nil }})
				if adds == 0 && len(data) > 1<<20 {
					return fmt.Errorf("no adds: %w", err)
				}
				return err
			}},
			{"decode", func(data []byte) error { _, err := Decode(data); return err }},
			{"encoding-json", func(data []byte) error { _, err := stdDecode(data); return err }},
		} {
			b.Run(name+"/by="+c.by, func(b *testing.B) {
				b.SetBytes(size)
				b.ReportAllocs()
				for b.Loop() {
					for _, data := range entries {
						if err := c.decode(data); err != nil {
							b.Fatal(err)
						}
					}
				}
			})
		}
	}
}

func BenchmarkEncode(b *testing.B) {
	c, err := Decode(entryOf(10_000, true))
	if err != nil {
		b.Fatal(err)
	}
	for by, encode := range map[string]func() ([]byte, error){"append": c.Encode, "encoding-json": func() ([]byte, error) { return stdEncode(c) }} {
		b.Run("adds=10000/by="+by, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				data, err := encode()
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(int64(len(data)))
			}
		})
	}
}

func BenchmarkObjectMap(b *testing.B) {
	o := Object(`{"cardinal.keys":"0000000000000001/node_cpu_seconds_total,ffffffffffffffff/node_memory_Active_bytes","cardinal.level":"0","cardinal.order":"20000-20001","cardinal.time":"1790000000000000..1790000300000000"}`)
	for by, read := range map[string]func() (map[string]*string, error){
		"scan": o.Map,
		"encoding-json": func() (m map[string]*string, err error) {
			err = json.Unmarshal([]byte(o), &m)
			return m, err
		},
	} {
		b.Run("by="+by, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if m, err := read(); err != nil || len(m) != 4 {
					b.Fatal(m, err)
				}
			}
		})
	}
}
