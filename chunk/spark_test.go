package chunk

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/format"

	"cardinalsin/action"
	"cardinalsin/series"
)

// TestStatsAreThoseOfSpark computes the statistics of files that Spark wrote
// with what computes ours, and compares them with Spark's own.
func TestStatsAreThoseOfSpark(t *testing.T) {
	const golden = "../../shared/golden/kernel-data"
	if _, err := os.Stat(golden); errors.Is(err, os.ErrNotExist) {
		t.Skipf("no %s: the tables of other engines are not part of the project", golden)
	}
	compared := map[string]int{}
	for _, table := range []string{"stats-writing-all-types/delta", "timestamp-truncation-stats"} {
		entries, err := filepath.Glob(filepath.Join(golden, table, "_delta_log", "*.json"))
		if err != nil {
			t.Fatal(err)
		}
		for _, entry := range entries {
			data, err := os.ReadFile(entry)
			if err != nil {
				t.Fatal(err)
			}
			c, err := action.Decode(data)
			if err != nil {
				t.Fatal(err)
			}
			for _, a := range c.Adds {
				compareSpark(t, filepath.Join(golden, table, a.Path), a.Stats, compared)
			}
		}
	}
	t.Logf("columns compared: %v", compared)
	for _, kind := range []string{"timestamp", "string", "double", "int", "nested", "binary"} {
		if compared[kind] == 0 {
			t.Errorf("no column of kind %s was compared", kind)
		}
	}
	// The table is there for times between two milliseconds.
	if compared["odd microseconds"] == 0 {
		t.Error("no time was rounded")
	}
}

func compareSpark(t *testing.T, file, text string, compared map[string]int) {
	t.Helper()
	want, ok, err := action.ParseStats(text)
	if err != nil || !ok {
		t.Fatalf("%s: %v, %v", file, ok, err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	f, err := parquet.OpenFile(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	if f.NumRows() != want.NumRecords {
		t.Errorf("%s: %d rows, Spark says %d", file, f.NumRows(), want.NumRecords)
	}
	var walk func(c *parquet.Column)
	walk = func(c *parquet.Column) {
		for _, child := range c.Columns() {
			walk(child)
		}
		if !c.Leaf() || c.MaxRepetitionLevel() > 0 {
			return
		}
		path := c.Path()
		kind, lower, upper, nulls := ownBounds(t, c, compared)
		if kind == "" {
			return
		}
		compared[kind]++
		if len(path) > 1 {
			compared["nested"]++
		}
		for what, pair := range map[string][2]string{
			"min":       {string(lower), at(t, want.Min, path)},
			"max":       {string(upper), at(t, want.Max, path)},
			"nullCount": {string(intJSON(nulls)), at(t, want.NullCount, path)},
		} {
			if pair[0] != pair[1] {
				t.Errorf("%s: %s of column %s (%s): ours %s, Spark's %s", file, what, strings.Join(path, "."), kind, pair[0], pair[1])
			}
		}
	}
	walk(f.Root())
}

// at returns a member of nested statistics, "" where there is none.
func at(t *testing.T, m map[string]json.RawMessage, path []string) string {
	t.Helper()
	for _, name := range path[:len(path)-1] {
		var inner map[string]json.RawMessage
		if err := json.Unmarshal(m[name], &inner); err != nil {
			t.Fatal(err)
		}
		m = inner
	}
	return string(m[path[len(path)-1]])
}

// ownBounds reads a column and bounds its values; kind is "" for types that
// our files have not.
func ownBounds(t *testing.T, c *parquet.Column, compared map[string]int) (kind string, lower, upper json.RawMessage, nulls int64) {
	t.Helper()
	var logical any
	if l := c.Type().LogicalType(); l != nil {
		logical = l.Value
	}
	var values []parquet.Value
	pages := c.Pages()
	defer pages.Close()
	for {
		p, err := pages.ReadPage()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]parquet.Value, p.NumValues())
		if n, err := p.Values().ReadValues(buf); err != nil && !errors.Is(err, io.EOF) || n != len(buf) {
			t.Fatalf("%d of %d values: %v", n, len(buf), err)
		}
		for _, v := range buf {
			if v.IsNull() {
				nulls++
				continue
			}
			values = append(values, v.Clone())
		}
	}
	times := func(micros func(parquet.Value) int64) {
		span := series.TimeRange{Min: math.MaxInt64, Max: math.MinInt64}
		for _, v := range values {
			at := series.Timestamp(micros(v))
			span = series.TimeRange{Min: min(span.Min, at), Max: max(span.Max, at)}
		}
		if span.Min%1000 != 0 || span.Max%1000 != 0 {
			compared["odd microseconds"]++
		}
		kind, lower, upper = "timestamp", timeJSON(span.Min), timeJSON(span.Max)
	}
	switch c.Type().Kind() {
	case parquet.Int96:
		times(func(v parquet.Value) int64 {
			w := v.Int96()
			return (int64(w[2])-2440588)*86400e6 + int64(uint64(w[0])|uint64(w[1])<<32)/1000
		})
	case parquet.Int64:
		if ts, ok := logical.(*format.TimestampType); ok && ts.IsAdjustedToUTC {
			times(parquet.Value.Int64)
			return kind, lower, upper, nulls
		}
		if _, ok := logical.(*format.IntType); logical != nil && !ok {
			return "", nil, nil, 0
		}
		kind = "int"
		numbers := make([]int64, len(values))
		for i, v := range values {
			numbers[i] = v.Int64()
		}
		lower, upper = intJSON(slices.Min(numbers)), intJSON(slices.Max(numbers))
	case parquet.Double:
		var b floatBounds
		for _, v := range values {
			b.add(v.Double())
		}
		kind = "double"
		lower, upper = b.json()
	case parquet.ByteArray:
		if _, ok := logical.(*format.StringType); !ok {
			return "binary", nil, nil, nulls // counted, never bounded
		}
		var b stringBounds
		for _, v := range values {
			b.add(string(v.ByteArray()))
		}
		hi, ok := upperBound(b.max, statsStringChars)
		if !ok {
			t.Fatalf("no upper bound of %q", b.max)
		}
		kind, lower, upper = "string", stringJSON(cutChars(b.min, statsStringChars)), stringJSON(hi)
	}
	return kind, lower, upper, nulls
}
