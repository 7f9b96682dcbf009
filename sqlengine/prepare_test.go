package sqlengine

import (
	"context"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/series"
)

// prepareTable has two files of one day each, and a store that counts.
func prepareTable(t *testing.T) *table {
	t.Helper()
	tb := newTable(t, Options{MemoryBytes: 128 << 20, Threads: 1})
	for i, host := range []string{"a", "b"} {
		l := labels.FromStrings(series.MetricName, "up", "host", host)
		tb.flush(t, series.Series{Labels: l, Samples: []series.Sample{{Time: day + series.Timestamp(i)*86_400_000_000, Value: float64(i) + 0.5}}})
	}
	return tb
}

func TestPrepare(t *testing.T) {
	tb := prepareTable(t)
	for _, c := range []struct {
		sql        string
		arguments  []any
		columns    string // name type, …; "" where they depend on the arguments
		parameters string
	}{
		{"SELECT host, value FROM metrics", nil, "host utf8, value float64", ""},
		{"SELECT * FROM metrics_log WHERE version = ?", nil, "version int64, timestamp timestamp[us, tz=UTC], operation utf8, files_added int64, files_removed int64, rows_added int64, bytes_added int64, bytes_removed int64, transaction utf8, engine utf8", "1 int64"},
		{"SELECT value FROM metrics WHERE host = $host AND timestamp >= $from", nil, "value float64", "host utf8, from timestamp[us, tz=UTC]"},
		{"SELECT value FROM cardinal.main.metrics AT (VERSION => $1)", nil, "value float64", "1 any"},
		{"SELECT $1", nil, "", "1 any"},
		{"SELECT $1", []any{int64(1)}, "$1 int64", ""},
		{"SELECT host FROM metrics_series LIMIT ?", []any{int64(1)}, "host utf8", ""},
	} {
		t.Run(c.sql, func(t *testing.T) {
			p, err := tb.engine.Prepare(context.Background(), c.sql, QueryOptions{Arguments: c.arguments})
			if err != nil {
				t.Fatal(err)
			}
			var columns, parameters []string
			if p.Schema != nil {
				for _, f := range p.Schema.Fields() {
					columns = append(columns, f.Name+" "+f.Type.String())
				}
			}
			for _, f := range p.Parameters {
				typ := "any"
				if f.Type != nil {
					typ = f.Type.String()
				}
				parameters = append(parameters, f.Name+" "+typ)
			}
			if diff := cmp.Diff(c.columns, strings.Join(columns, ", ")); diff != "" {
				t.Errorf("columns (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(c.parameters, strings.Join(parameters, ", ")); diff != "" {
				t.Errorf("parameters (-want +got):\n%s", diff)
			}
		})
	}
}

// TestPrepareRunsNothing: what would fail or last for ever is only compiled,
// and the schema is that of the result, for every table, whose files are not
// read.
func TestPrepareRunsNothing(t *testing.T) {
	tb := prepareTable(t)
	if _, err := tb.engine.Prepare(context.Background(), "SELECT sum(range) + error('it runs') FROM range(1000000000000)", QueryOptions{}); err != nil {
		t.Error(err)
	}
	whole := map[string]*arrow.Schema{}
	for _, name := range tb.engine.Tables() {
		rows, err := tb.engine.Query(context.Background(), "SELECT * FROM "+name, QueryOptions{})
		if err != nil {
			t.Fatal(err)
		}
		whole[name] = rows.Schema()
		rows.Close()
	}
	for a := range tb.snapshot(t).Files() {
		if err := tb.store.Delete(context.Background(), tb.log.Root()+"/"+a.Path); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range tb.engine.Tables() {
		p, err := tb.engine.Prepare(context.Background(), "SELECT * FROM "+name, QueryOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if !whole[name].Equal(p.Schema) {
			t.Errorf("%s: %s, prepared %s", name, whole[name], p.Schema)
		}
	}
}

func TestArguments(t *testing.T) {
	tb := prepareTable(t)
	for _, c := range []struct {
		sql       string
		arguments []any
		want      string // header and rows
	}{
		{"SELECT value FROM metrics WHERE host = ?", []any{"b"}, "value;1.5"},
		{"SELECT value FROM metrics WHERE host = $h AND value > $v", []any{"b", 1.0}, "value;1.5"},
		{"SELECT host FROM metrics WHERE timestamp >= $1", []any{day.Time().Add(time.Hour)}, "host;b"},
		{"SELECT host FROM metrics WHERE timestamp < ?", []any{"2026-01-02 12:00:00Z"}, "host;a"},
		{"SELECT count(*) AS n FROM main.metrics AT (VERSION => $1)", []any{int64(1)}, "n;1"},
		{"SELECT host FROM metrics ORDER BY host LIMIT ? OFFSET ?", []any{int64(1), uint64(1)}, "host;b"},
		{"SELECT $1, typeof($1), $2 + $2 AS twice, ?", []any{int64(1), 0.1, "x'y"}, "$1,typeof($1),twice,$3;1,BIGINT,0.2,x'y"},
		{"SELECT ? AS a, ? IS NULL AS b, hex(?) AS c, ? AS d", []any{true, nil, []byte{0, 0xfe, '\\'}, uint64(math.MaxUint64)}, "a,b,c,d;true,true,00FE5C,18446744073709551615"},
		{"SELECT ? = 'Infinity'::DOUBLE AS a", []any{math.Inf(1)}, "a;true"},
		{"SELECT host FROM metrics WHERE host IN (SELECT ?)", []any{"'; DROP TABLE metrics; --"}, "host"},
	} {
		t.Run(c.sql, func(t *testing.T) {
			rows, err := tb.engine.Query(context.Background(), c.sql, QueryOptions{Arguments: c.arguments})
			if err != nil {
				t.Fatal(err)
			}
			defer rows.Close()
			var out strings.Builder
			if _, err := FormatCSV.Write(context.Background(), &out, rows); err != nil && !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
			if got := strings.ReplaceAll(strings.ReplaceAll(strings.TrimSpace(out.String()), "\r", ""), "\n", ";"); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
	for _, c := range []struct {
		sql       string
		arguments []any
		want      error
	}{
		{"SELECT ?", nil, ErrArgument},
		{"FROM other.main.metrics", nil, ErrNotAllowed},
		{"FROM cardinal.other.metrics", nil, ErrNotAllowed},
		{"SELECT 1", []any{"x"}, ErrArgument},
		{"SELECT ?, ?", []any{"x"}, ErrArgument},
		{"SELECT ?", []any{int8(1)}, ErrArgument},
		{"SELECT ?", []any{"a\x00b"}, ErrArgument},
		{"SELECT value FROM metrics WHERE timestamp > ?", []any{"yesterday"}, ErrExecution},
		{"SELECT * FROM metrics AT (VERSION => ?)", []any{"x"}, ErrSyntax},
	} {
		t.Run(c.sql, func(t *testing.T) {
			rows, err := tb.engine.Query(context.Background(), c.sql, QueryOptions{Arguments: c.arguments})
			if err == nil {
				_, err = rows.Next(context.Background())
				rows.Close()
			}
			if !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
		})
	}
}

// TestArgumentsPrune: a file that the arguments rule out is not opened.
func TestArgumentsPrune(t *testing.T) {
	tb := prepareTable(t)
	rows, err := tb.engine.Query(context.Background(), "SELECT value FROM metrics WHERE timestamp >= ?", QueryOptions{Arguments: []any{day.Time().Add(12 * time.Hour)}})
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	if s := rows.Tables()[0]; s.Files != 1 {
		t.Errorf("%d files, skipped %v; want 1", s.Files, s.Skipped)
	}
}
