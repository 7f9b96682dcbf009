package flightsql

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/flight"
	"github.com/apache/arrow-go/v18/arrow/flight/flightsql"
	"github.com/apache/arrow-go/v18/arrow/flight/flightsql/schema_ref"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"cardinalsin/sqlengine"
	"cardinalsin/txlog"
)

// Kinds of tables: the views are what the engine makes of the table and its log.
const (
	typeTable = "TABLE"
	typeView  = "VIEW"
)

// here is the answer to a command whose rows this server makes from the command
// itself.
func here(d *flight.FlightDescriptor, schema *arrow.Schema) (*flight.FlightInfo, error) {
	return &flight.FlightInfo{
		Schema: flight.SerializeSchema(schema, memory.DefaultAllocator), FlightDescriptor: d,
		Endpoint:     []*flight.FlightEndpoint{{Ticket: &flight.Ticket{Ticket: d.Cmd}}},
		TotalRecords: -1, TotalBytes: -1,
	}, nil
}

// rowsOf streams one record of these rows; nil is null.
func rowsOf(schema *arrow.Schema, rows [][]any) (*arrow.Schema, <-chan flight.StreamChunk, error) {
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	for _, row := range rows {
		for k, v := range row {
			if err := appendValue(b.Field(k), v); err != nil {
				return nil, nil, fmt.Errorf("column %s: %w", schema.Field(k).Name, err)
			}
		}
	}
	out := make(chan flight.StreamChunk, 1)
	out <- flight.StreamChunk{Data: b.NewRecordBatch()}
	close(out)
	return schema, out, nil
}

func appendValue(b array.Builder, v any) error {
	switch v := v.(type) {
	case nil:
		b.AppendNull()
	case string:
		b.(*array.StringBuilder).Append(v)
	case []byte:
		b.(*array.BinaryBuilder).Append(v)
	case int32:
		b.(*array.Int32Builder).Append(v)
	case bool:
		b.(*array.BooleanBuilder).Append(v)
	case []string:
		l := b.(*array.ListBuilder)
		l.Append(true)
		for _, s := range v {
			l.ValueBuilder().(*array.StringBuilder).Append(s)
		}
	default:
		return fmt.Errorf("value of type %T", v)
	}
	return nil
}

// like makes a matcher of a SQL pattern, in which % is any text and _ any
// character; no pattern matches all.
func like(pattern *string) func(string) bool {
	if pattern == nil {
		return func(string) bool { return true }
	}
	var b strings.Builder
	b.WriteString("(?s)^")
	for _, r := range *pattern {
		switch r {
		case '%':
			b.WriteString(".*")
		case '_':
			b.WriteString(".")
		default:
			b.WriteString(regexp.QuoteMeta(string(r)))
		}
	}
	return regexp.MustCompile(b.String() + "$").MatchString
}

// isCatalog reports whether a filter leaves our catalog: none does, and its
// name; "" is for what has no catalog, of which there is nothing.
func isCatalog(filter *string) bool { return filter == nil || *filter == sqlengine.Catalog }

// GetFlightInfoCatalogs implements flightsql.Server.
func (s *service) GetFlightInfoCatalogs(_ context.Context, d *flight.FlightDescriptor) (*flight.FlightInfo, error) {
	return here(d, schema_ref.Catalogs)
}

// DoGetCatalogs implements flightsql.Server.
func (s *service) DoGetCatalogs(context.Context) (*arrow.Schema, <-chan flight.StreamChunk, error) {
	return rowsOf(schema_ref.Catalogs, [][]any{{sqlengine.Catalog}})
}

// GetFlightInfoSchemas implements flightsql.Server.
func (s *service) GetFlightInfoSchemas(_ context.Context, _ flightsql.GetDBSchemas, d *flight.FlightDescriptor) (*flight.FlightInfo, error) {
	return here(d, schema_ref.DBSchemas)
}

// DoGetDBSchemas implements flightsql.Server.
func (s *service) DoGetDBSchemas(_ context.Context, c flightsql.GetDBSchemas) (*arrow.Schema, <-chan flight.StreamChunk, error) {
	var rows [][]any
	if isCatalog(c.GetCatalog()) && like(c.GetDBSchemaFilterPattern())(sqlengine.Schema) {
		rows = [][]any{{sqlengine.Catalog, sqlengine.Schema}}
	}
	return rowsOf(schema_ref.DBSchemas, rows)
}

// GetFlightInfoTableTypes implements flightsql.Server.
func (s *service) GetFlightInfoTableTypes(_ context.Context, d *flight.FlightDescriptor) (*flight.FlightInfo, error) {
	return here(d, schema_ref.TableTypes)
}

// DoGetTableTypes implements flightsql.Server.
func (s *service) DoGetTableTypes(context.Context) (*arrow.Schema, <-chan flight.StreamChunk, error) {
	return rowsOf(schema_ref.TableTypes, [][]any{{typeTable}, {typeView}})
}

// tablesSchema is that of the list of tables.
func tablesSchema(c flightsql.GetTables) *arrow.Schema {
	if c.GetIncludeSchema() {
		return schema_ref.TablesWithIncludedSchema
	}
	return schema_ref.Tables
}

// GetFlightInfoTables implements flightsql.Server.
func (s *service) GetFlightInfoTables(_ context.Context, c flightsql.GetTables, d *flight.FlightDescriptor) (*flight.FlightInfo, error) {
	return here(d, tablesSchema(c))
}

// DoGetTables implements flightsql.Server. A tenant without a table has none.
func (s *service) DoGetTables(ctx context.Context, c flightsql.GetTables) (*arrow.Schema, <-chan flight.StreamChunk, error) {
	schema := tablesSchema(c)
	h, err := s.statement(ctx, "", nil)
	if err != nil {
		return nil, nil, err
	}
	engine, release, err := s.open(ctx, tenantOf(ctx))
	if errors.Is(err, txlog.ErrNotTable) {
		return rowsOf(schema, nil)
	}
	if err != nil {
		return nil, nil, err
	}
	defer release()
	if !isCatalog(c.GetCatalog()) || !like(c.GetDBSchemaFilterPattern())(sqlengine.Schema) {
		return rowsOf(schema, nil)
	}
	types := map[string]bool{}
	for _, t := range c.GetTableTypes() {
		types[t] = true
	}
	matches := like(c.GetTableNameFilterPattern())
	var rows [][]any
	for i, name := range engine.Tables() {
		kind := typeView
		if i == 0 {
			kind = typeTable
		}
		if !matches(name) || len(types) > 0 && !types[kind] {
			continue
		}
		row := []any{sqlengine.Catalog, sqlengine.Schema, name, kind}
		if c.GetIncludeSchema() {
			p, err := engine.Prepare(ctx, `SELECT * FROM "`+strings.ReplaceAll(name, `"`, `""`)+`"`, s.options(h, 0))
			if errors.Is(err, sqlengine.ErrSyntax) {
				continue // a table of another engine lacks some of the views
			}
			if err != nil {
				return nil, nil, fmt.Errorf("columns of %s: %w", name, err)
			}
			row = append(row, flight.SerializeSchema(described(p.Schema, name), memory.DefaultAllocator))
		}
		rows = append(rows, row)
	}
	return rowsOf(schema, rows)
}

// described adds what Flight SQL says of columns.
func described(schema *arrow.Schema, table string) *arrow.Schema {
	fields := schema.Fields()
	for i := range fields {
		b := flightsql.NewColumnMetadataBuilder()
		b.CatalogName(sqlengine.Catalog)
		b.SchemaName(sqlengine.Schema)
		b.TableName(table)
		b.IsReadOnly(true)
		b.IsAutoIncrement(false)
		b.IsSearchable(true)
		fields[i].Metadata = b.Metadata()
	}
	return arrow.NewSchema(fields, nil)
}

// There are no keys.

// GetFlightInfoPrimaryKeys implements flightsql.Server.
func (s *service) GetFlightInfoPrimaryKeys(_ context.Context, _ flightsql.TableRef, d *flight.FlightDescriptor) (*flight.FlightInfo, error) {
	return here(d, schema_ref.PrimaryKeys)
}

// DoGetPrimaryKeys implements flightsql.Server.
func (s *service) DoGetPrimaryKeys(context.Context, flightsql.TableRef) (*arrow.Schema, <-chan flight.StreamChunk, error) {
	return rowsOf(schema_ref.PrimaryKeys, nil)
}

// GetFlightInfoExportedKeys implements flightsql.Server.
func (s *service) GetFlightInfoExportedKeys(_ context.Context, _ flightsql.TableRef, d *flight.FlightDescriptor) (*flight.FlightInfo, error) {
	return here(d, schema_ref.ExportedKeys)
}

// DoGetExportedKeys implements flightsql.Server.
func (s *service) DoGetExportedKeys(context.Context, flightsql.TableRef) (*arrow.Schema, <-chan flight.StreamChunk, error) {
	return rowsOf(schema_ref.ExportedKeys, nil)
}

// GetFlightInfoImportedKeys implements flightsql.Server.
func (s *service) GetFlightInfoImportedKeys(_ context.Context, _ flightsql.TableRef, d *flight.FlightDescriptor) (*flight.FlightInfo, error) {
	return here(d, schema_ref.ImportedKeys)
}

// DoGetImportedKeys implements flightsql.Server.
func (s *service) DoGetImportedKeys(context.Context, flightsql.TableRef) (*arrow.Schema, <-chan flight.StreamChunk, error) {
	return rowsOf(schema_ref.ImportedKeys, nil)
}

// GetFlightInfoCrossReference implements flightsql.Server.
func (s *service) GetFlightInfoCrossReference(_ context.Context, _ flightsql.CrossTableRef, d *flight.FlightDescriptor) (*flight.FlightInfo, error) {
	return here(d, schema_ref.CrossReference)
}

// DoGetCrossReference implements flightsql.Server.
func (s *service) DoGetCrossReference(context.Context, flightsql.CrossTableRef) (*arrow.Schema, <-chan flight.StreamChunk, error) {
	return rowsOf(schema_ref.CrossReference, nil)
}
