package sqlengine

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/chunk"
	"cardinalsin/series"
)

// A flipped byte anywhere in a chunk fails every query over it, by the file's
// name; DuckDB alone reads some of them as other values.
func TestFlippedByteFailsTheQuery(t *testing.T) {
	tb := newTable(t, Options{})
	var rows []series.Series
	for i := range 20 {
		s := series.Series{Labels: labels.FromStrings("__name__", "m", "i", string(rune('a'+i)))}
		for j := range 30 {
			s.Samples = append(s.Samples, series.Sample{Time: day + series.Timestamp(j), Value: float64(i*j) / 7})
		}
		rows = append(rows, s)
	}
	tb.flush(t, rows...)
	var key string
	for a := range tb.snapshot(t).Files() {
		key = root + "/" + a.Path
	}
	sound, _, err := tb.store.Get(context.Background(), key)
	if err != nil {
		t.Fatal(err)
	}
	const sql = "SELECT bit_xor(hash(value)), count(*), max(i) FROM metrics"
	want := tb.query(t, sql)
	step := max(len(sound)/60, 1)
	for at := 0; at < len(sound); at += step {
		data := bytes.Clone(sound)
		data[at] ^= 1 << (at % 8)
		if _, err := tb.store.Put(context.Background(), key, bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
		clear(tb.engine.sound) // as a process that starts anew
		if got, err := tb.tryQuery(sql, QueryOptions{}); !errors.Is(err, chunk.ErrCorrupt) {
			t.Errorf("byte %d of %d: %v, %v", at, len(sound), got, err)
		}
	}
	if _, err := tb.store.Put(context.Background(), key, bytes.NewReader(sound)); err != nil {
		t.Fatal(err)
	}
	if got := tb.query(t, sql); got[0] != want[0] {
		t.Errorf("sound again: %v, was %v", got, want)
	}
}
