package sqlengine

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/RoaringBitmap/roaring/v2/roaring64"
	"github.com/google/go-cmp/cmp"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/reader"
	"cardinalsin/series"
	"cardinalsin/storage/local"
	"cardinalsin/txlog"
)

// lake is a table that another engine wrote, as far as anybody can see: its
// log is written by hand, its data by DuckDB.
type lake struct {
	*table
	dir  string // of the store
	root string
	next action.Version
}

// newLake makes a table of columns, each "name type" with the type in Delta's
// JSON but for the quotes of a primitive one, and metadata in JSON behind a |.
func newLake(t *testing.T, conf map[string]string, partitions []string, columns ...string) *lake {
	t.Helper()
	l := &lake{dir: t.TempDir(), root: "lake/orders"}
	schema := &action.Schema{}
	for _, c := range columns {
		c, meta, _ := strings.Cut(c, "|")
		name, typ, _ := strings.Cut(c, " ")
		if !strings.HasPrefix(typ, "{") {
			typ = `"` + typ + `"`
		}
		f := action.Field{Name: name, Type: json.RawMessage(typ), Nullable: true}
		if meta != "" {
			if err := json.Unmarshal([]byte(meta), &f.Metadata); err != nil {
				t.Fatal(err)
			}
		}
		schema.Fields = append(schema.Fields, f)
	}
	text, err := schema.Encode()
	if err != nil {
		t.Fatal(err)
	}
	features := []string{"columnMapping", "deletionVectors", "timestampNtz", "typeWidening", "variantType"}
	l.commit(t, &action.Commit{
		Protocol: &action.Protocol{MinReaderVersion: 3, MinWriterVersion: 7, ReaderFeatures: features, WriterFeatures: features},
		Metadata: &action.Metadata{ID: "x", Format: action.Format{Provider: "parquet"}, SchemaString: text, PartitionColumns: partitions, Configuration: conf},
	})
	store, err := local.New(l.dir, local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	log, err := txlog.Open(context.Background(), store, l.root, txlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	l.table = &table{store: store, log: log, reader: reader.New(log, nil, reader.Options{})}
	if l.engine, err = New(context.Background(), l.reader, Options{Table: "orders"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.engine.Close)
	return l
}

func (l *lake) file(path string) string { return filepath.Join(l.dir, filepath.FromSlash(path)) }

func (l *lake) write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(l.file(path)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(l.file(path), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (l *lake) commit(t *testing.T, c *action.Commit) {
	t.Helper()
	data, err := c.Encode()
	if err != nil {
		t.Fatal(err)
	}
	l.write(t, l.root+"/_delta_log/"+l.next.String()+".json", data)
	l.next++
}

// data writes the rows of a SELECT to a file below the store. Options are
// those of DuckDB's COPY.
func (l *lake) data(t *testing.T, path, sql, options string) int64 {
	t.Helper()
	d, err := openDatabase(context.Background(), settings{threads: 1, memoryBytes: 256 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	if err := os.MkdirAll(filepath.Dir(l.file(path)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := d.exec(context.Background(), "COPY ("+sql+") TO "+quoteText(l.file(path))+" (FORMAT parquet"+options+")"); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(l.file(path))
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// add commits a file of the table.
func (l *lake) add(t *testing.T, path, sql, options string, change func(*action.Add)) {
	t.Helper()
	a := action.Add{Path: (&url.URL{Path: path}).EscapedPath(), Size: l.data(t, l.root+"/"+path, sql, options), DataChange: true}
	if change != nil {
		change(&a)
	}
	l.commit(t, &action.Commit{Adds: []action.Add{a}})
}

// deleted is a deletion vector in the log.
func deleted(t *testing.T, rows ...uint64) *action.DeletionVector {
	t.Helper()
	b, err := roaring64.BitmapOf(rows...).ToPortableBytes()
	if err != nil {
		t.Fatal(err)
	}
	data := append(binary.LittleEndian.AppendUint32(nil, 1681511377), b...)
	const digits = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
	var text []byte
	for padded := append(bytes.Clone(data), 0, 0, 0); len(padded) >= 4; padded = padded[4:] {
		n := binary.BigEndian.Uint32(padded)
		for _, place := range []uint32{85 * 85 * 85 * 85, 85 * 85 * 85, 85 * 85, 85, 1} {
			text = append(text, digits[n/place%85])
		}
	}
	return &action.DeletionVector{StorageType: "i", PathOrInlineDV: string(text), SizeInBytes: int32(len(data)), Cardinality: int64(len(rows))}
}

func (l *lake) expect(t *testing.T, sql string, want ...string) {
	t.Helper()
	if d := cmp.Diff(want, l.query(t, sql)); d != "" {
		t.Errorf("%s (-want +got):\n%s", sql, d)
	}
}

func (l *lake) fails(t *testing.T, sql string, target error, names string) {
	t.Helper()
	_, err := l.tryQuery(sql, QueryOptions{})
	if !errors.Is(err, target) || !strings.Contains(err.Error(), names) {
		t.Errorf("%s: error is %v, not %v naming %q", sql, err, target, names)
	}
}

// TestDeletedRows: deleted rows are found by their place in the file, also
// where DuckDB skips row groups, and each file has its own.
func TestDeletedRows(t *testing.T) {
	l := newLake(t, nil, nil, "id long", "file_row_number string")
	const rows = ", ROW_GROUP_SIZE 2048"
	l.add(t, "a.parquet", "SELECT i AS id, 'a' AS file_row_number FROM range(10000) t(i)", rows, func(a *action.Add) {
		a.DeletionVector = deleted(t, 0, 5000, 5001, 9999)
	})
	l.add(t, "b.parquet", "SELECT i AS id, 'b' AS file_row_number FROM range(10000) t(i)", rows, nil)
	l.add(t, "c.parquet", "SELECT i AS id, 'c' AS file_row_number FROM range(10000) t(i)", rows, func(a *action.Add) {
		a.DeletionVector = deleted(t, 7000)
	})
	l.expect(t, "SELECT count(*), sum(id), min(id) FILTER (file_row_number = 'a') FROM orders", "29995,149958000,1")
	l.expect(t, "SELECT id, file_row_number FROM orders WHERE id IN (5001, 7000, 9999) ORDER BY ALL",
		"5001,b", "5001,c", "7000,a", "7000,b", "9999,b", "9999,c")
	l.expect(t, "SELECT count(*) FROM orders WHERE id >= 9998 AND file_row_number = 'a'", "1")
	l.expect(t, "SELECT count(*) FROM orders AT (VERSION => 1)", "9996")
}

// TestNoSkippingByStatistics: what looks like a table of ours and is none is
// read whole, whatever its statistics say.
func TestNoSkippingByStatistics(t *testing.T) {
	l := newLake(t, nil, []string{"date", "shard"}, "timestamp timestamp", "nanos integer", "metric_name string", "series_id long",
		"value double", "histogram binary", `labels_overflow {"type":"map","keyType":"string","valueType":"string","valueContainsNull":true}`, "date date", "shard string")
	l.add(t, "a.parquet", "SELECT TIMESTAMPTZ '2026-01-02 00:00:00.000999Z' AS timestamp, 'up' AS metric_name, 1::BIGINT AS series_id, 2::DOUBLE AS value", "", func(a *action.Add) {
		a.PartitionValues = action.ObjectOf(map[string]string{"date": "2020-02-02", "shard": "1"})
		a.Stats = `{"numRecords":1,"tightBounds":false,"minValues":{"timestamp":"2020-02-02T00:00:00.000Z","metric_name":"x"},"maxValues":{"timestamp":"2020-02-02T00:00:00.000Z","metric_name":"y"},"nullCount":{"metric_name":1}}`
	})
	l.expect(t, "SELECT value FROM orders WHERE timestamp = TIMESTAMPTZ '2026-01-02 00:00:00.000999Z' AND metric_name = 'up'", "2")
}

// TestMappedColumns: the table's names are not those of its files.
func TestMappedColumns(t *testing.T) {
	meta := func(id int, physical string) string {
		return fmt.Sprintf(`|{"delta.columnMapping.id":%d,"delta.columnMapping.physicalName":%q}`, id, physical)
	}
	inner := func(name string, id int, physical, typ string) string {
		return fmt.Sprintf(`{"name":%q,"type":%s,"nullable":true,"metadata":{"delta.columnMapping.id":%d,"delta.columnMapping.physicalName":%q}}`, name, typ, id, physical)
	}
	point := func(id int) string {
		return `{"type":"struct","fields":[` + inner("px", id, "p-x", `"double"`) + `,` + inner("pz", id+1, "p-z", `"long"`) + `]}`
	}
	columns := []string{
		"a long" + meta(1, "c-1"), "b long" + meta(2, "c-2"),
		"point " + point(40) + meta(3, "c-3"),
		`points {"type":"array","elementType":` + point(50) + `,"containsNull":true}` + meta(7, "c-7"),
		`by_name {"type":"map","keyType":"string","valueType":` + point(60) + `,"valueContainsNull":true}` + meta(8, "c-8"),
		"part integer" + meta(9, "c-9"),
		"later string" + meta(10, "c-10"),
	}
	want := []string{
		`1,2,"{""px"":1.5,""pz"":null}","[{""px"":2.5,""pz"":null},null]","{""k"":{""px"":3.5,""pz"":null},""n"":null}",5,`,
		"3,4,,,,5,",
	}
	partition := func(a *action.Add) { a.PartitionValues = action.ObjectOf(map[string]string{"c-9": "5"}) }
	t.Run("name", func(t *testing.T) {
		l := newLake(t, map[string]string{"delta.columnMapping.mode": "name"}, []string{"part"}, columns...)
		l.add(t, "x.parquet", `SELECT 2 AS "c-2", 1 AS "c-1", {'p-x': 1.5::DOUBLE, 'dropped': 1} AS "c-3", [{'p-x': 2.5::DOUBLE}, NULL] AS "c-7", MAP {'k': {'p-x': 3.5::DOUBLE}, 'n': NULL} AS "c-8", 9 AS a
			UNION ALL SELECT 4, 3, NULL, NULL, NULL, 9`, "", partition)
		l.expect(t, "SELECT * FROM orders ORDER BY a", want...)
	})
	t.Run("id", func(t *testing.T) {
		l := newLake(t, map[string]string{"delta.columnMapping.mode": "id"}, []string{"part"}, columns...)
		// The names would lead astray: a and b are exchanged.
		l.add(t, "x.parquet", `SELECT 2 AS "c-1", 1 AS "c-2", {'q': 1.5::DOUBLE, 'p-x': 1} AS r, [{'q': 2.5::DOUBLE}, NULL] AS s, MAP {'k': {'q': 3.5::DOUBLE}, 'n': NULL} AS u
			UNION ALL SELECT 4, 3, NULL, NULL, NULL`, `, FIELD_IDS {"c-1": 2, "c-2": 1, r: {__duckdb_field_id: 3, q: 40, "p-x": 5}, s: {__duckdb_field_id: 7, element: {q: 50}}, u: {__duckdb_field_id: 8, value: {q: 60}}}`, partition)
		l.expect(t, "SELECT * FROM orders ORDER BY a", want...)
		l.add(t, "y.parquet", `SELECT 1::BIGINT AS "c-1"`, "", partition)
		l.fails(t, "SELECT a FROM orders", txlog.ErrUnsupported, "y.parquet")
	})
	t.Run("unknown mode", func(t *testing.T) {
		l := newLake(t, map[string]string{"delta.columnMapping.mode": "color"}, nil, "a long")
		l.fails(t, "SELECT a FROM orders", txlog.ErrUnsupported, "color")
	})
}

// TestWidenedTypes: old files hold narrower types. Others are refused, never
// cast.
func TestWidenedTypes(t *testing.T) {
	l := newLake(t, nil, nil, "n long", "f double", "i double", "d decimal(12,4)", "at timestamp_ntz", `s {"type":"struct","fields":[{"name":"x","type":"long","nullable":true,"metadata":{}}]}`, "nothing void", "text string")
	l.add(t, "a.parquet", "SELECT 7::TINYINT AS n, 1.5::FLOAT AS f, 3::INTEGER AS i, 1.25::DECIMAL(5,2) AS d, DATE '2026-01-02' AS at, {'x': 8::SMALLINT} AS s, 'a'::BLOB AS text", "", nil)
	l.add(t, "b.parquet", "SELECT 1::BIGINT << 40 AS n, 0.1::DOUBLE AS f, 0.5::DOUBLE AS i, 1.2345::DECIMAL(12,4) AS d, TIMESTAMP '2026-01-02 03:04:05' AS at, {'x': 9::BIGINT} AS s, 'b' AS text", "", nil)
	l.expect(t, "SELECT * FROM orders ORDER BY n",
		`7,1.5,3,1.2500,2026-01-02T00:00:00,"{""x"":8}",,a`,
		`1099511627776,0.1,0.5,1.2345,2026-01-02T03:04:05,"{""x"":9}",,b`)
	for _, sql := range []string{"SELECT 'x' AS n", "SELECT 1.5::DOUBLE AS n", "SELECT 1.23456::DECIMAL(12,5) AS d", "SELECT 1.5::DOUBLE AS d", "SELECT TIMESTAMP '2026-01-02' AS n", "SELECT [1] AS n", "SELECT 1 AS s", "SELECT MAP {1: 2} AS s"} {
		t.Run(sql, func(t *testing.T) {
			l := newLake(t, nil, nil, "n long", "d decimal(12,4)", `s {"type":"struct","fields":[{"name":"x","type":"long","nullable":true,"metadata":{}}]}`)
			l.add(t, "bad.parquet", sql, "", nil)
			l.fails(t, "SELECT * FROM orders", txlog.ErrUnsupported, "bad.parquet")
		})
	}
}

// TestPartitionValues: the log holds them as text, null as the empty text.
func TestPartitionValues(t *testing.T) {
	l := newLake(t, nil, []string{"day", "ts", "ntz", "yes", "raw", "n", "f", "price", "s"},
		"id long", "day date", "ts timestamp", "ntz timestamp_ntz", "yes boolean", "raw binary", "n short", "f float", "price decimal(5,2)", "s string")
	values := func(m map[string]string) func(*action.Add) {
		return func(a *action.Add) { a.PartitionValues = action.ObjectOf(m) }
	}
	l.add(t, "a.parquet", "SELECT 1::BIGINT AS id, 'in the file' AS s", "", values(map[string]string{
		"day": "2026-01-02", "ts": "2026-01-02 03:04:05.000006", "ntz": "2026-01-02 03:04:05", "yes": "true", "raw": "\x01\\x41'", "n": "-7", "f": "1.5", "price": "9.50", "s": "it's\x00"}))
	l.add(t, "b.parquet", "SELECT 2::BIGINT AS id, 'in the file' AS s", "", values(map[string]string{
		"day": "0001-01-01", "ts": "2026-01-02T03:04:05.000006Z", "ntz": "1969-12-31 23:59:59.999999", "yes": "false", "raw": "", "n": "", "f": "", "price": "", "s": ""}))
	l.expect(t, "SELECT id, day, ts, ntz, yes, hex(raw) AS raw, n, f, price, hex(s) AS s FROM orders ORDER BY id",
		"1,2026-01-02,2026-01-02T03:04:05.000006Z,2026-01-02T03:04:05,true,015C78343127,-7,1.5,9.50,69742773"+"00",
		"2,0001-01-01,2026-01-02T03:04:05.000006Z,1969-12-31T23:59:59.999999,false,,,,,")
	l.expect(t, "SELECT id FROM orders WHERE s IS NULL AND day < DATE '2000-01-01'", "2")
}

// TestPlaces: where files lie and what they are called.
func TestPlaces(t *testing.T) {
	l := newLake(t, nil, nil, "id long")
	one := func(n int) string { return fmt.Sprintf("SELECT %d::BIGINT AS id", n) }
	l.data(t, l.root+"/x1zz.parquet", one(99), "") // what the next name is a pattern of
	l.add(t, "x[1]*?.parquet", one(1), "", nil)
	l.add(t, `sub dir/100%/"it's"#ü\{a,b}.parquet`, one(2), "", nil)
	size := l.data(t, "elsewhere/a b.parquet", one(3), "")
	l.commit(t, &action.Commit{Adds: []action.Add{
		{Path: "file:" + (&url.URL{Path: l.file("elsewhere/a b.parquet")}).EscapedPath(), Size: size, DataChange: true},
	}})
	l.expect(t, "SELECT id FROM orders ORDER BY id", "1", "2", "3")
	for _, path := range []string{"file:///somewhere/else.parquet", "/somewhere/else.parquet", "s3://bucket/lake/orders/a.parquet", "abfss://c@a.dfs.core.windows.net/a.parquet"} {
		t.Run(path, func(t *testing.T) {
			l := newLake(t, nil, nil, "id long")
			l.commit(t, &action.Commit{Adds: []action.Add{{Path: path, Size: 1, DataChange: true}}})
			l.fails(t, "SELECT id FROM orders", txlog.ErrUnsupported, path)
		})
	}
}

// TestColumnsOfUnknownTypes: they are there, and refused only when they are
// read.
func TestColumnsOfUnknownTypes(t *testing.T) {
	l := newLake(t, nil, nil, "id long", "v variant", `vs {"type":"array","elementType":"variant","containsNull":true}`)
	l.add(t, "a.parquet", "SELECT 1::BIGINT AS id, {'metadata': 'a'::BLOB, 'value': 'b'::BLOB} AS v, [{'metadata': 'a'::BLOB, 'value': 'b'::BLOB}] AS vs", "", nil)
	l.expect(t, "SELECT count(*), sum(id) FROM orders", "1,1")
	l.expect(t, "SELECT o.id FROM orders o JOIN orders p AT (VERSION => 1) USING (id)", "1")
	l.expect(t, "SELECT column_name FROM (DESCRIBE FROM orders)", "id", "v", "vs")
	l.fails(t, "SELECT v FROM orders", txlog.ErrUnsupported, "column v:")
	l.fails(t, "SELECT id FROM orders WHERE vs IS NOT NULL", txlog.ErrUnsupported, "column vs:")
}

// TestTablesWithoutRows: columns come from the log, not from files.
func TestTablesWithoutRows(t *testing.T) {
	l := newLake(t, nil, []string{"part"}, "id long", "part date", "later string")
	l.expect(t, "SELECT column_name || ' ' || column_type FROM (DESCRIBE FROM orders)", "id BIGINT", "part DATE", "later VARCHAR")
	l.expect(t, "SELECT count(*) FROM orders", "0")
	l.add(t, "a.parquet", "SELECT 1::BIGINT AS id, 2 AS dropped LIMIT 0", "", nil)
	l.expect(t, "SELECT count(id), count(later) FROM orders", "0,0")
	none := newLake(t, nil, nil)
	none.expect(t, "SELECT count(*) FROM orders", "0")
	none.add(t, "a.parquet", "SELECT 1::BIGINT AS id FROM range(3)", "", nil)
	none.expect(t, "SELECT count(*) FROM orders", "3")
}

// TestForeignHasNoSeries: what is not ours is not read as chunks.
func TestForeignHasNoSeries(t *testing.T) {
	l := newLake(t, nil, nil, "id long")
	l.add(t, "a.parquet", "SELECT 1::BIGINT AS id", "", nil)
	v, err := l.reader.At(context.Background(), txlog.Latest())
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	for _, err := range v.Select(context.Background(), series.Selector{Range: series.AllTime}) {
		if !errors.Is(err, txlog.ErrUnsupported) {
			t.Errorf("error is %v", err)
		}
	}
	l.fails(t, "SELECT * FROM orders_series", ErrSyntax, "no series")
}

// TestForeignFilesThatLie: a file that is not what the log names is never
// read as if it were.
func TestForeignFilesThatLie(t *testing.T) {
	l := newLake(t, nil, nil, "id long")
	l.add(t, "a.parquet", "SELECT 1::BIGINT AS id", "", func(a *action.Add) { a.Size++ })
	l.fails(t, "SELECT id FROM orders", chunk.ErrCorrupt, "a.parquet")
	l = newLake(t, nil, nil, "id long")
	l.commit(t, &action.Commit{Adds: []action.Add{{Path: "gone.parquet", Size: 1, DataChange: true}}})
	l.fails(t, "SELECT id FROM orders", chunk.ErrCorrupt, "gone.parquet")
}

// FuzzDeltaType: what a log calls a type is translated or refused.
func FuzzDeltaType(f *testing.F) {
	f.Add(`"decimal(10,2)"`, 0)
	f.Add(`{"type":"map","keyType":"string","valueType":{"type":"array","elementType":"date"}}`, 1)
	f.Add(`{"type":"struct","fields":[{"name":"a\"b","type":"long","metadata":{"delta.columnMapping.id":1,"delta.columnMapping.physicalName":"p"}}]}`, 2)
	f.Fuzz(func(t *testing.T, raw string, mode int) {
		typ, err := mapping(mode&3).parse(json.RawMessage(raw), 0)
		if err != nil && !errors.Is(err, txlog.ErrUnsupported) || err == nil && typ.sql == "" {
			t.Fatalf("%+v, %v", typ, err)
		}
	})
}
