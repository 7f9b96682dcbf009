package sqlengine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/deletion"
	"cardinalsin/reader"
	"cardinalsin/series"
	"cardinalsin/storage/local"
	"cardinalsin/txlog"
)

// put writes the rows of a SELECT as a Parquet file by DuckDB and commits it.
func (tb *table) put(t *testing.T, sql, path string, partitions map[string]string, tags action.Object, change func(*action.Add)) {
	t.Helper()
	ctx := context.Background()
	d, err := openDatabase(ctx, settings{threads: 1, memoryBytes: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	file := filepath.Join(t.TempDir(), "x.parquet")
	if err := d.exec(ctx, "COPY ("+sql+") TO "+quoteText(file)+" (FORMAT parquet)"); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tb.store.Put(ctx, root+"/"+path, strings.NewReader(string(data))); err != nil {
		t.Fatal(err)
	}
	add := action.Add{Path: path, Size: int64(len(data)), DataChange: true, PartitionValues: action.ObjectOf(partitions), Tags: tags}
	if change != nil {
		change(&add)
	}
	txn := tb.log.Begin(tb.snapshot(t), txlog.Operation{Name: "WRITE"})
	txn.Add(add)
	if _, err := txn.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	// A file with our tags and without our seal: no chunk can hold what some
	// tests need.
	tb.engine.soundMu.Lock()
	tb.engine.sound[add.Path] = struct{}{}
	tb.engine.soundMu.Unlock()
}

// TestEqualHashes: series whose hashes collide stay apart. series_id finds
// candidates for duplicates; the full label set decides, columns and overflow
// map together.
func TestEqualHashes(t *testing.T) {
	tb := newTable(t, Options{})
	tb.flush(t, one(1, lbl("up", "host", "z", "zone", "z"), 99)) // makes the columns
	file := func(path string, order int64, rows ...string) {
		tags := chunk.Tags{
			Order: chunk.Order{Lo: order, Hi: order}, Time: series.TimeRange{Min: day, Max: day + 60_000_000},
			Keys: chunk.KeyRange{MinName: "up", MaxName: "up", MaxID: 1 << 40, Bounded: true},
		}
		tb.put(t, "SELECT make_timestamptz("+fmt.Sprint(int64(day))+") + to_seconds(c0) AS timestamp, 'up' AS metric_name, 7::BIGINT AS series_id, c1 AS host, c2 AS zone, c3::MAP(VARCHAR, VARCHAR) AS labels_overflow, c4::DOUBLE AS value FROM (VALUES "+strings.Join(rows, ", ")+") v(c0, c1, c2, c3, c4)",
			"date=2026-01-02/shard=1/"+path, map[string]string{"date": "2026-01-02", "shard": "1"}, tags.Encode(), nil)
	}
	// second, host, zone, overflow, value
	file("b.parquet", 20,
		"(1, 'a', NULL, NULL, 1)",
		"(2, 'a', 'b', NULL, 2)",
		"(3, NULL, NULL, MAP {'x y': '1', 'a b': '2'}, 3)",
		"(4, 'a', NULL, NULL, 4)")
	file("a.parquet", 30,
		"(1, NULL, 'a', NULL, 10)",                          // other labels: stays
		"(2, 'a', 'b', NULL, 20)",                           // the same: wins
		"(3, NULL, NULL, MAP {'a b': '2', 'x y': '1'}, 30)", // the same in another order: wins
		"(3, NULL, NULL, MAP {'x y': '1'}, 31)",             // other labels: stays
		"(5, 'a', NULL, NULL, 50)")
	got := tb.query(t, "SELECT epoch(timestamp)::BIGINT % 86400 AS s, host, zone, labels_overflow, value FROM metrics WHERE series_id = 7 ORDER BY ALL")
	want := []string{
		"1,a,,,1",
		"1,,a,,10",
		"2,a,b,,20",
		`3,,,"{""a b"":""2"",""x y"":""1""}",30`,
		`3,,,"{""x y"":""1""}",31`,
		"4,a,,,4",
		"5,a,,,50",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// TestOtherEngine reads a table in another layout: any columns, typed
// partitions, columns that old files lack, columns under mapped names.
func TestOtherEngine(t *testing.T) {
	store, err := local.New(t.TempDir(), local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	field := func(name, typ string, meta map[string]any) action.Field {
		return action.Field{Name: name, Type: json.RawMessage(typ), Nullable: true, Metadata: meta}
	}
	log, err := txlog.Create(ctx, store, root, txlog.CreateOptions{
		Schema: &action.Schema{Fields: []action.Field{
			field("id", `"long"`, nil),
			field("price", `"decimal(10,2)"`, nil),
			field("file_index", `"string"`, nil),
			field("day", `"date"`, nil),
			field("bucket", `"integer"`, nil),
			field("tags", `{"type":"array","elementType":"string","containsNull":true}`, nil),
			field("point", `{"type":"struct","fields":[{"name":"x","type":"double","nullable":true,"metadata":{}}]}`, nil),
			field("attrs", `{"type":"map","keyType":"string","valueType":"integer","valueContainsNull":true}`, nil),
			field("at", `"timestamp_ntz"`, nil),
			field("shown", `"string"`, map[string]any{"delta.columnMapping.physicalName": "col-1"}),
			field("ID", `"long"`, nil), // SQL cannot tell it from id
		}},
		PartitionColumns: []string{"day", "bucket"},
		Configuration:    map[string]string{"delta.columnMapping.mode": "name"},
	}, txlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	tb := &table{store: store, log: log, reader: reader.New(log, nil, reader.Options{})}
	if tb.engine, err = New(ctx, tb.reader, Options{Table: "Orders"}); err != nil {
		t.Fatal(err)
	}
	defer tb.engine.Close()
	tb.put(t, `SELECT 1 AS id, 9.5::DECIMAL(10,2) AS price, 'f' AS file_index, ['a'] AS tags, {'x': 1.5::DOUBLE} AS point, MAP {'k': 1} AS attrs, TIMESTAMP '2026-01-02 03:04:05' AS at, 'm' AS "col-1"`,
		"day=x/bucket=9/it's [one].parquet", map[string]string{"day": "2026-01-02", "bucket": "9"}, "", func(a *action.Add) {
			a.Path = "day=x/bucket=9/it's%20%5Bone%5D.parquet"
		})
	tb.put(t, "SELECT 1 AS id", "two.parquet", map[string]string{"day": "", "bucket": "10"}, "", nil)
	got := tb.query(t, "SELECT * FROM orders ORDER BY bucket")
	want := []string{
		`1,9.50,f,2026-01-02,9,"[""a""]","{""x"":1.5}","{""k"":1}",2026-01-02T03:04:05,m`,
		"1,,,,10,,,,,",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if got := tb.query(t, "SELECT count(*), sum(bucket) FROM this_table WHERE day IS NULL OR day = '2026-01-02'"); got[0] != "2,19" {
		t.Errorf("got %v", got)
	}
	if got := tb.query(t, "SELECT num_rows, path FROM orders_files ORDER BY path DESC LIMIT 1"); got[0] != ",two.parquet" {
		t.Errorf("got %v", got)
	}
	if _, err := tb.tryQuery("FROM orders_series", QueryOptions{}); !errors.Is(err, ErrSyntax) {
		t.Errorf("error is %v", err)
	}
	// Rows that a deletion vector hides are not shown by accident.
	tb.put(t, "SELECT 1 AS id", "three.parquet", map[string]string{"day": "", "bucket": "10"}, "", func(a *action.Add) {
		a.DeletionVector = &action.DeletionVector{StorageType: "i", PathOrInlineDV: "x", SizeInBytes: 1, Cardinality: 1}
	})
	if _, err := tb.tryQuery("FROM orders", QueryOptions{}); !errors.Is(err, deletion.ErrCorrupt) {
		t.Errorf("error is %v", err)
	}
}

func TestUnsupportedTypes(t *testing.T) {
	for _, typ := range []string{`"variant"`, `"decimal(39,0)"`, `"decimal(3,4)"`, `{"type":"struct","fields":[]}`, `{"type":"row"}`, `1`, `{"type":"array","elementType":"x"}`} {
		if got, err := byName.parse(json.RawMessage(typ), 0); !errors.Is(err, txlog.ErrUnsupported) {
			t.Errorf("%s: %v, %v", typ, got, err)
		}
	}
}

// TestRewrittenStatements: a statement with AT goes through the parse tree and
// back to text. It must mean the same as without.
func TestRewrittenStatements(t *testing.T) {
	tb := newTable(t, Options{Threads: 1})
	tb.flush(t, one(1, lbl("up", "host", "a", "zone", "x"), 1, 2, 3), one(2.5, lbl("up", "host", "b"), 1, 2, 9))
	tb.flush(t, one(4, lbl("cpu", "host", "a"), 2, 3, 4), one(5, lbl("cpu", "host", "c", "zone", "y"), 8))
	for _, sql := range []string{
		"SELECT * FROM metrics@ ORDER BY ALL",
		"FROM metrics@ SELECT host, count(*) GROUP BY host ORDER BY 1 NULLS FIRST",
		"SELECT DISTINCT ON (host) host, value FROM metrics@ ORDER BY host, value DESC, timestamp",
		"SELECT m.host, n.value FROM metrics m@ JOIN metrics n@ USING (series_id, timestamp) WHERE m.value > 1 ORDER BY ALL",
		"SELECT m.host, n.value FROM metrics m@ ASOF JOIN metrics n@ ON m.host = n.host AND m.timestamp >= n.timestamp ORDER BY ALL",
		"SELECT host FROM metrics m@ SEMI JOIN (VALUES ('a')) v(host) USING (host) ORDER BY ALL",
		"SELECT host, sum(value) OVER (PARTITION BY host ORDER BY timestamp ROWS BETWEEN 1 PRECEDING AND CURRENT ROW EXCLUDE TIES) AS s FROM metrics@ ORDER BY ALL",
		"SELECT host, row_number() OVER w AS n FROM metrics@ WINDOW w AS (PARTITION BY host ORDER BY timestamp, value) QUALIFY n <= 2 ORDER BY ALL",
		"SELECT host, count(*) FILTER (WHERE value > 1) AS n, list(value ORDER BY value DESC), string_agg(DISTINCT zone, ',' ORDER BY zone) FROM metrics@ GROUP BY ALL HAVING count(*) > 1 ORDER BY ALL",
		"SELECT host, zone, grouping(host), sum(value) FROM metrics@ GROUP BY GROUPING SETS ((host), (zone), ()) ORDER BY ALL",
		"SELECT host, zone, count(*) FROM metrics@ GROUP BY CUBE (host, zone) ORDER BY ALL LIMIT 5 OFFSET 2",
		"WITH a AS MATERIALIZED (SELECT host, max(value) AS v FROM metrics@ GROUP BY 1), b(h) AS (SELECT host FROM a) SELECT * FROM a, b WHERE a.host = b.h ORDER BY ALL",
		"WITH RECURSIVE t(n, v) AS (SELECT 1, max(value) FROM metrics@ UNION ALL SELECT n + 1, v FROM t WHERE n < 4) SELECT * FROM t ORDER BY n",
		"SELECT host FROM metrics@ WHERE value > 2 UNION SELECT zone FROM metrics@ EXCEPT SELECT 'a' ORDER BY 1",
		"SELECT host FROM metrics@ UNION ALL BY NAME SELECT zone, host FROM metrics@ ORDER BY ALL",
		"SELECT * FROM metrics@ PIVOT (sum(value) FOR metric_name IN ('up', 'cpu') GROUP BY host) ORDER BY ALL",
		"SELECT * FROM (SELECT host, zone, value FROM metrics@) UNPIVOT (v FOR k IN (host, zone)) ORDER BY ALL",
		"SELECT CASE host WHEN 'a' THEN 1 ELSE 2 END AS c, coalesce(zone, '-') AS z, value BETWEEN 1 AND 2 AS b, host IN ('a', 'c') AS i, host LIKE '%a' ESCAPE '$' AS l, host SIMILAR TO 'a|b' AS s, NOT host = 'a' AS n, zone IS NULL, host IS DISTINCT FROM zone AS d FROM metrics@ ORDER BY ALL",
		"SELECT extract(hour FROM timestamp) AS h, timestamp AT TIME ZONE 'Asia/Tokyo' AS tz, date_trunc('minute', timestamp) AS m, timestamp - INTERVAL '1' DAY AS y, time_bucket(INTERVAL '2 seconds', timestamp) AS b, timestamp::DATE AS d FROM metrics@ ORDER BY ALL",
		"SELECT [value, 1][1] AS a, {'h': host}.h AS b, MAP {host: value}[host] AS c, list_transform([1, 2], lambda x: x + value) AS d, [x * 2 FOR x IN [1, 2, 3] IF x > 1] AS e FROM metrics@ ORDER BY ALL",
		"SELECT * EXCLUDE (histogram) REPLACE (value * 2 AS value) RENAME (host AS machine) FROM metrics@ ORDER BY ALL",
		"SELECT max(COLUMNS('^(host|zone)$')) FROM metrics@",
		"SELECT (SELECT max(value) FROM metrics n@ WHERE n.host = m.host) AS best, EXISTS (FROM metrics x@ WHERE x.zone = m.zone) AS e, value = ANY (SELECT value FROM metrics@ WHERE host = 'b') AS f FROM metrics m@ ORDER BY ALL",
		"SELECT host, u FROM metrics@, unnest([1, 2]) AS t(u), LATERAL (SELECT u + 1) ORDER BY ALL",
		"SELECT quantile_cont(value, 0.5) AS q, approx_count_distinct(host) AS a, arg_max(host, value) AS m, histogram(host) AS h FROM metrics@",
		"SELECT 1.50 AS a, 1e10 AS b, -0.0 AS c, 1e400 AS i, -1e400 AS j, 0.30000000000000004e0 AS k, 5e-324 AS l, typeof(1e10) AS t, 170141183460469231731687303715884105727::VARCHAR AS d, 'it''s' AS e, E'a\\nb' AS f, '\\xAA'::BLOB AS g, DATE '2026-01-02' AS h, count(*) AS n FROM metrics@",
		"SELECT \"m\".\"host\" AS \"select\", 'x' AS \"a\"\"b\" FROM metrics AS \"m\"@ ORDER BY \"select\" COLLATE NOCASE DESC, m.timestamp, m.value",
		"DESCRIBE SELECT host, value + 1 AS v FROM metrics@",
		"SUMMARIZE SELECT host, value FROM metrics@",
		"VALUES ((SELECT count(*) FROM metrics@))",
		"SELECT count(*) FROM (FROM metrics@ ORDER BY value LIMIT 50%)",
		"SELECT count(*) FROM (FROM metrics@ USING SAMPLE reservoir(3 ROWS) REPEATABLE (7))",
		"TABLE metrics@",
	} {
		t.Run(sql, func(t *testing.T) {
			at := QueryOptions{At: txlog.AtVersion(2)}
			plain, err := tb.text(strings.ReplaceAll(sql, "@", ""), FormatNDJSON, at)
			if err != nil {
				t.Fatalf("plain: %v", err)
			}
			if sql == "TABLE metrics@" { // its grammar has no AT
				return
			}
			rewritten, err := tb.text(strings.ReplaceAll(sql, "@", " AT (VERSION => 2)"), FormatNDJSON, QueryOptions{})
			if err != nil {
				t.Fatalf("rewritten: %v", err)
			}
			if d := cmp.Diff(plain, rewritten); d != "" {
				t.Errorf("(-plain +rewritten):\n%s", d)
			}
		})
	}
}
