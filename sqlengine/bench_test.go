package sqlengine

import (
	"context"
	"fmt"
	"testing"

	"cardinalsin/chunk"
	"cardinalsin/series"
)

// benchTable has files of 250,000 rows each: 250 series of 1,000 samples, one a
// second. step is the distance of two files' starts in seconds: below 1,000
// they overlap. shift moves each file's samples by so many µs more than those
// of the file before: with 1 no two are the same observation, but that has to
// be found out; with 0 those that overlap are.
func benchTable(b *testing.B, files, step, shift int) *table {
	b.Helper()
	tb := newTable(b, Options{})
	tb.shape = chunk.Options{}
	for f := range files {
		var rows []series.Series
		for s := range 250 {
			one := series.Series{Labels: lbl("cpu", "host", fmt.Sprintf("host-%03d", s), "dc", fmt.Sprint(s%3), "os", "linux", "arch", "x64", "rack", fmt.Sprint(s%50))}
			for i := range 1000 {
				at := day + series.Timestamp((f*step+i)*1_000_000+f*shift)
				one.Samples = append(one.Samples, series.Sample{Time: at, Value: float64(i)})
			}
			rows = append(rows, one)
		}
		tb.flush(b, rows...)
	}
	return tb
}

var benchQueries = map[string]string{
	"one": "SELECT 1",
	"avg": "SELECT avg(value) FROM @",
	"by":  "SELECT host, max(value) FROM @ GROUP BY host",
	"sel": "SELECT avg(value) FROM @ WHERE host = 'host-007' AND timestamp >= '2026-01-02 00:10:00'",
}

// BenchmarkQuery compares a query through the engine with the same query on
// the same files by DuckDB alone, each opening a database of its own.
func BenchmarkQuery(b *testing.B) {
	for _, layout := range []struct {
		name        string
		step, shift int
	}{{"disjoint", 1000, 0}, {"jitter", 990, 1}, {"duplicates", 990, 0}, {"overlap", 0, 1}} {
		tb := benchTable(b, 8, layout.step, layout.shift)
		ctx := context.Background()
		for _, name := range []string{"one", "avg", "by", "sel"} {
			b.Run(layout.name+"/"+name+"/engine", func(b *testing.B) {
				for b.Loop() {
					if _, err := tb.tryQuery(replaceTable(benchQueries[name], "metrics"), QueryOptions{}); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.Run(layout.name+"/"+name+"/plain", func(b *testing.B) {
				paths := tb.dataFiles(b)
				for b.Loop() {
					d, err := openDatabase(ctx, settings{threads: 2, memoryBytes: 1 << 30})
					if err != nil {
						b.Fatal(err)
					}
					if err := d.exec(ctx, replaceTable(benchQueries[name], "read_parquet("+quoteTexts(paths)+")")); err != nil {
						b.Fatal(err)
					}
					d.close()
				}
			})
		}
	}
}

func replaceTable(sql, table string) string {
	for i := range sql {
		if sql[i] == '@' {
			return sql[:i] + table + sql[i+1:]
		}
	}
	return sql
}
