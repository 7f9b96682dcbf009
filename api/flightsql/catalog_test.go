package flightsql

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/flight"
	"github.com/apache/arrow-go/v18/arrow/flight/flightsql"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/cockroachdb/datadriven"
	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/series"
)

// TestMetadata prints what clients are told of the tables. Arguments of the
// commands are those of Flight SQL; one that is
// not there is not set.
func TestMetadata(t *testing.T) {
	s := serve(t, Options{})
	// A name that a pattern could take for more than it says.
	s.add(labels.FromStrings(series.MetricName, "up", "host", "b", "a.zone", "z"), 2)
	datadriven.RunTest(t, "testdata/metadata", func(t *testing.T, d *datadriven.TestData) string {
		ctx := context.Background()
		text := func(key string) *string {
			var v string
			if !d.HasArg(key) {
				return nil
			}
			if d.MaybeScanArgs(t, key, &v); v == `""` {
				v = ""
			}
			return &v
		}
		if tenant := text("tenant"); tenant != nil {
			ctx = with(ctx, "x-scope-orgid", *tenant)
		}
		if version := text("version"); version != nil {
			ctx = with(ctx, VersionHeader, *version)
		}
		var info *flight.FlightInfo
		var err error
		ref := flightsql.TableRef{Table: "metrics"}
		switch d.Cmd {
		case "catalogs":
			info, err = s.GetCatalogs(ctx)
		case "schemas":
			info, err = s.GetDBSchemas(ctx, &flightsql.GetDBSchemasOpts{Catalog: text("catalog"), DbSchemaFilterPattern: text("schema")})
		case "table-types":
			info, err = s.GetTableTypes(ctx)
		case "tables":
			o := &flightsql.GetTablesOpts{Catalog: text("catalog"), DbSchemaFilterPattern: text("schema"), TableNameFilterPattern: text("table"), IncludeSchema: d.HasArg("columns")}
			if kind := text("type"); kind != nil {
				o.TableTypes = []string{*kind}
			}
			info, err = s.GetTables(ctx, o)
		case "types":
			var of *int32
			if d.HasArg("of") {
				var n int
				d.ScanArgs(t, "of", &n)
				code := int32(n)
				of = &code
			}
			info, err = s.GetXdbcTypeInfo(ctx, of)
		case "info":
			info, err = s.GetSqlInfo(ctx, []flightsql.SqlInfo{
				flightsql.SqlInfoFlightSqlServerName, flightsql.SqlInfoFlightSqlServerVersion, flightsql.SqlInfoFlightSqlServerReadOnly,
				flightsql.SqlInfoFlightSqlServerTransaction, flightsql.SqlInfoFlightSqlServerCancel,
			})
		case "primary-keys":
			info, err = s.GetPrimaryKeys(ctx, ref)
		case "exported-keys":
			info, err = s.GetExportedKeys(ctx, ref)
		case "imported-keys":
			info, err = s.GetImportedKeys(ctx, ref)
		case "cross-reference":
			info, err = s.GetCrossReference(ctx, ref, ref)
		default:
			t.Fatalf("no command %s", d.Cmd)
		}
		if err != nil {
			return fmt.Sprintln(says(err))
		}
		return s.show(ctx, info)
	})
	if s.logged() != "" {
		t.Errorf("log:\n%s", s.logged())
	}
}

// show prints the columns and the rows behind a FlightInfo.
func (s *server) show(ctx context.Context, info *flight.FlightInfo) string {
	r, err := s.DoGet(ctx, info.Endpoint[0].Ticket)
	if err != nil {
		return fmt.Sprintln(says(err))
	}
	defer r.Release()
	promised, err := flight.DeserializeSchema(info.Schema, memory.DefaultAllocator)
	if err != nil {
		s.t.Fatal(err)
	}
	if !promised.Equal(r.Schema()) {
		s.t.Errorf("schema %s, promised %s", r.Schema(), promised)
	}
	var b strings.Builder
	for i, f := range r.Schema().Fields() {
		if i > 0 {
			b.WriteString(" | ")
		}
		b.WriteString(f.Name)
	}
	b.WriteByte('\n')
	for r.Next() {
		rec := r.RecordBatch()
		for i := range int(rec.NumRows()) {
			for k, c := range rec.Columns() {
				if k > 0 {
					b.WriteString(" | ")
				}
				if schemas, ok := c.(*array.Binary); ok {
					b.WriteString("\n" + columnsOf(s.t, schemas.Value(i)))
					continue
				}
				b.WriteString(c.ValueStr(i))
			}
			b.WriteByte('\n')
		}
	}
	if r.Err() != nil {
		return fmt.Sprintln(says(r.Err()))
	}
	return strings.ReplaceAll(b.String(), "\n\n", "\n")
}

// columnsOf prints a schema in a cell.
func columnsOf(t testing.TB, b []byte) string {
	t.Helper()
	schema, err := flight.DeserializeSchema(b, memory.DefaultAllocator)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for _, f := range schema.Fields() {
		m := flightsql.ColumnMetadata{Data: &f.Metadata}
		table, _ := m.TableName()
		readOnly, _ := m.IsReadOnly()
		fmt.Fprintf(&out, "  %s %s of %s, read only: %v\n", f.Name, f.Type, table, readOnly)
	}
	return out.String()
}
