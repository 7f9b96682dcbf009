package flightsql

import (
	"context"
	"math"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/flight"
	"github.com/apache/arrow-go/v18/arrow/flight/flightsql"
	"github.com/apache/arrow-go/v18/arrow/flight/flightsql/schema_ref"
	pb "github.com/apache/arrow-go/v18/arrow/flight/gen/flight"
)

// dataType is one type of the columns, as XDBC describes it.
type dataType struct {
	name           string
	code           pb.XdbcDataType
	size           int32 // digits or bytes; 0 for what has no bound
	prefix, suffix string
	parameters     []string
	unsigned       any // bool, nil for what is no number
	radix          any // int32, nil for what is no number
	scale          any // int32, nil for what has none
	subcode        pb.XdbcDatetimeSubcode
}

// dataTypes are those that columns of the tables and of most results have.
var dataTypes = []dataType{
	{name: "BOOLEAN", code: pb.XdbcDataType_XDBC_BIT, size: 1},
	{name: "TINYINT", code: pb.XdbcDataType_XDBC_TINYINT, size: 3, unsigned: false, radix: int32(10), scale: int32(0)},
	{name: "SMALLINT", code: pb.XdbcDataType_XDBC_SMALLINT, size: 5, unsigned: false, radix: int32(10), scale: int32(0)},
	{name: "INTEGER", code: pb.XdbcDataType_XDBC_INTEGER, size: 10, unsigned: false, radix: int32(10), scale: int32(0)},
	{name: "BIGINT", code: pb.XdbcDataType_XDBC_BIGINT, size: 19, unsigned: false, radix: int32(10), scale: int32(0)},
	{name: "UBIGINT", code: pb.XdbcDataType_XDBC_BIGINT, size: 20, unsigned: true, radix: int32(10), scale: int32(0)},
	{name: "DECIMAL", code: pb.XdbcDataType_XDBC_DECIMAL, size: 38, parameters: []string{"precision", "scale"}, unsigned: false, radix: int32(10), scale: int32(38)},
	{name: "FLOAT", code: pb.XdbcDataType_XDBC_REAL, size: 24, unsigned: false, radix: int32(2)},
	{name: "DOUBLE", code: pb.XdbcDataType_XDBC_DOUBLE, size: 53, unsigned: false, radix: int32(2)},
	{name: "VARCHAR", code: pb.XdbcDataType_XDBC_VARCHAR, prefix: "'", suffix: "'"},
	{name: "BLOB", code: pb.XdbcDataType_XDBC_VARBINARY, prefix: "'", suffix: "'::BLOB"},
	{name: "DATE", code: pb.XdbcDataType_XDBC_DATE, size: 10, prefix: "DATE '", suffix: "'", subcode: pb.XdbcDatetimeSubcode_XDBC_SUBCODE_DATE},
	{name: "TIME", code: pb.XdbcDataType_XDBC_TIME, size: 15, prefix: "TIME '", suffix: "'", scale: int32(6), subcode: pb.XdbcDatetimeSubcode_XDBC_SUBCODE_TIME},
	{name: "TIMESTAMP", code: pb.XdbcDataType_XDBC_TIMESTAMP, size: 26, prefix: "TIMESTAMP '", suffix: "'", scale: int32(6), subcode: pb.XdbcDatetimeSubcode_XDBC_SUBCODE_TIMESTAMP},
	{name: "TIMESTAMP WITH TIME ZONE", code: pb.XdbcDataType_XDBC_TIMESTAMP, size: 32, prefix: "TIMESTAMPTZ '", suffix: "'", scale: int32(6), subcode: pb.XdbcDatetimeSubcode_XDBC_SUBCODE_TIMESTAMP_WITH_TIMEZONE},
	{name: "INTERVAL", code: pb.XdbcDataType_XDBC_INTERVAL, prefix: "INTERVAL '", suffix: "'"},
}

// row is the type in the columns of schema_ref.XdbcTypeInfo.
func (t *dataType) row() []any {
	optional := func(s string) any {
		if s == "" {
			return nil
		}
		return s
	}
	var size, minScale, parameters, subcode any
	if t.size > 0 {
		size = t.size
	}
	if t.scale != nil {
		minScale = int32(0)
	}
	if t.parameters != nil {
		parameters = t.parameters
	}
	if t.subcode != pb.XdbcDatetimeSubcode_XDBC_SUBCODE_UNKNOWN {
		subcode = int32(t.subcode)
	}
	text := t.code == pb.XdbcDataType_XDBC_VARCHAR
	searchable := pb.Searchable_SEARCHABLE_BASIC
	if text {
		searchable = pb.Searchable_SEARCHABLE_FULL
	}
	return []any{
		t.name, int32(t.code), size, optional(t.prefix), optional(t.suffix), parameters,
		int32(pb.Nullable_NULLABILITY_NULLABLE), text, int32(searchable), t.unsigned, false, false, t.name,
		minScale, t.scale, int32(t.code), subcode, t.radix, nil,
	}
}

// GetFlightInfoXdbcTypeInfo implements flightsql.Server.
func (s *service) GetFlightInfoXdbcTypeInfo(_ context.Context, _ flightsql.GetXdbcTypeInfo, d *flight.FlightDescriptor) (*flight.FlightInfo, error) {
	return here(d, schema_ref.XdbcTypeInfo)
}

// DoGetXdbcTypeInfo implements flightsql.Server.
func (s *service) DoGetXdbcTypeInfo(_ context.Context, c flightsql.GetXdbcTypeInfo) (*arrow.Schema, <-chan flight.StreamChunk, error) {
	var rows [][]any
	for i := range dataTypes {
		if want := c.GetDataType(); want == nil || *want == int32(dataTypes[i].code) {
			rows = append(rows, dataTypes[i].row())
		}
	}
	return rowsOf(schema_ref.XdbcTypeInfo, rows)
}

// registerInfo says what the server is and can.
func (s *service) registerInfo() {
	for id, v := range map[flightsql.SqlInfo]any{
		flightsql.SqlInfoFlightSqlServerName:                     "CardinalSin",
		flightsql.SqlInfoFlightSqlServerVersion:                  s.opts.Version,
		flightsql.SqlInfoFlightSqlServerArrowVersion:             arrow.PkgVersion,
		flightsql.SqlInfoFlightSqlServerReadOnly:                 true,
		flightsql.SqlInfoFlightSqlServerSql:                      true,
		flightsql.SqlInfoFlightSqlServerSubstrait:                false,
		flightsql.SqlInfoFlightSqlServerTransaction:              int32(flightsql.SqlTransactionNone),
		flightsql.SqlInfoFlightSqlServerCancel:                   true,
		flightsql.SqlInfoFlightSqlServerBulkIngestion:            false,
		flightsql.SqlInfoFlightSqlServerTransactionTimeout:       int32(0),
		flightsql.SqlInfoDDLCatalog:                              false,
		flightsql.SqlInfoDDLSchema:                               false,
		flightsql.SqlInfoDDLTable:                                false,
		flightsql.SqlInfoIdentifierCase:                          int64(flightsql.SqlCaseSensitivityCaseInsensitive),
		flightsql.SqlInfoIdentifierQuoteChar:                     `"`,
		flightsql.SqlInfoQuotedIdentifierCase:                    int64(flightsql.SqlCaseSensitivityCaseInsensitive),
		flightsql.SqlInfoAllTablesAreASelectable:                 true,
		flightsql.SqlInfoNullOrdering:                            int64(flightsql.SqlNullOrderingSortAtEnd),
		flightsql.SqlInfoSupportsColumnAliasing:                  true,
		flightsql.SqlInfoNullPlusNullIsNull:                      true,
		flightsql.SqlInfoSupportsTableCorrelationNames:           true,
		flightsql.SqlInfoSupportsExpressionsInOrderBy:            true,
		flightsql.SqlInfoSupportsOrderByUnrelated:                true,
		flightsql.SqlInfoSupportsLikeEscapeClause:                true,
		flightsql.SqlInfoSupportsNonNullableColumns:              false,
		flightsql.SqlInfoSupportsIntegrityEnhancementFacility:    false,
		flightsql.SqlInfoSchemaTerm:                              "schema",
		flightsql.SqlInfoCatalogTerm:                             "catalog",
		flightsql.SqlInfoCatalogAtStart:                          true,
		flightsql.SqlInfoSelectForUpdateSupported:                false,
		flightsql.SqlInfoStoredProceduresSupported:               false,
		flightsql.SqlInfoCorrelatedSubqueriesSupported:           true,
		flightsql.SqlInfoTransactionsSupported:                   false,
		flightsql.SqlInfoBatchUpdatesSupported:                   false,
		flightsql.SqlInfoSavePointsSupported:                     false,
		flightsql.SqlInfoNamedParametersSupported:                true,
		flightsql.SqlInfoLocatorsUpdateCopy:                      false,
		flightsql.SqlInfoStoredFunctionsUsingCallSyntaxSupported: false,
	} {
		s.say(id, v)
	}
	if t := s.opts.Limits.Timeout; t > 0 { // else it is the engine's, which we do not know
		s.say(flightsql.SqlInfoFlightSqlServerStatementTimeout, int32(min(t.Milliseconds(), math.MaxInt32)))
	}
}

func (s *service) say(id flightsql.SqlInfo, v any) {
	if err := s.RegisterSqlInfo(id, v); err != nil {
		panic(err) // a value of a type that it does not take: our bug
	}
}
