package flightsql

import (
	"errors"
	"io"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/flight"
	"github.com/apache/arrow-go/v18/arrow/flight/flightsql"
	pb "github.com/apache/arrow-go/v18/arrow/flight/gen/flight"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"cardinalsin/series"
)

// record makes a record of columns, given as name, type, name, type, from JSON.
func record(t testing.TB, rows string, columns ...any) arrow.RecordBatch {
	t.Helper()
	var fields []arrow.Field
	for i := 0; i < len(columns); i += 2 {
		fields = append(fields, arrow.Field{Name: columns[i].(string), Type: columns[i+1].(arrow.DataType), Nullable: true})
	}
	rec, _, err := array.RecordFromJSON(memory.DefaultAllocator, arrow.NewSchema(fields, nil), strings.NewReader(rows))
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

var (
	i64   = arrow.PrimitiveTypes.Int64
	text  = arrow.BinaryTypes.String
	micro = arrow.FixedWidthTypes.Timestamp_us
)

func TestPrepared(t *testing.T) {
	s := serve(t, Options{})
	for _, c := range []struct {
		name, sql  string
		parameters string // schema
		bind       []arrow.RecordBatch
		want       []string
		code       codes.Code
	}{
		{name: "none", sql: "SELECT count(*) FROM metrics", want: []string{"2"}},
		{name: "one", sql: "SELECT value FROM metrics WHERE host = ? ORDER BY 1", parameters: "1 utf8",
			bind: []arrow.RecordBatch{record(t, `[{"0": "a"}]`, "0", text)}, want: []string{"0", "1"}},
		{name: "once for each row", sql: "SELECT value + ? FROM metrics WHERE value = ?", parameters: "1 any, 2 float64",
			bind: []arrow.RecordBatch{record(t, `[{"0": 10, "1": 0}, {"0": 20, "1": 1}, {"0": 30, "1": 2}]`, "0", i64, "1", i64)}, want: []string{"10", "21"}},
		{name: "by name", sql: "SELECT $b || $a", parameters: "b any, a any",
			bind: []arrow.RecordBatch{record(t, `[{"a": "x", "b": "y"}]`, "a", text, "b", text)}, want: []string{"yx"}},
		{name: "by place", sql: "SELECT $b || $a",
			bind: []arrow.RecordBatch{record(t, `[{"a": "x", "c": "y"}]`, "a", text, "c", text)}, want: []string{"xy"}},
		{name: "rebound", sql: "SELECT ?",
			bind: []arrow.RecordBatch{record(t, `[{"0": 1}]`, "0", i64), record(t, `[{"0": null}]`, "0", i64)}, want: []string{"(null)"}},
		{name: "version", sql: "SELECT count(*) FROM metrics AT (VERSION => ?)", parameters: "1 any",
			bind: []arrow.RecordBatch{record(t, `[{"0": 1}, {"0": 2}]`, "0", i64)}, want: []string{"1", "2"}},
		{name: "dictionary", sql: "SELECT count(*) FROM metrics WHERE host = ?",
			bind: []arrow.RecordBatch{record(t, `[{"0": "a"}]`, "0", &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int8, ValueType: text})}, want: []string{"2"}},
		{name: "all types", sql: "SELECT typeof(?), typeof(?), typeof(?), typeof(?), typeof(?), typeof(?), hex(?)",
			bind: []arrow.RecordBatch{record(t, `[{"a": true, "b": 1, "c": 2, "d": 1.5, "e": "2026-01-02T00:00:00", "f": "2026-01-02", "g": "YWI="}]`,
				"a", arrow.FixedWidthTypes.Boolean, "b", arrow.PrimitiveTypes.Int8, "c", arrow.PrimitiveTypes.Uint16, "d", arrow.PrimitiveTypes.Float32,
				"e", micro, "f", arrow.FixedWidthTypes.Date32, "g", arrow.BinaryTypes.Binary)},
			want: []string{"BOOLEAN,BIGINT,BIGINT,DOUBLE,TIMESTAMP WITH TIME ZONE,VARCHAR,6162"}},
		{name: "not bound", sql: "SELECT ?", code: codes.InvalidArgument},
		{name: "too few", sql: "SELECT ?, ?", bind: []arrow.RecordBatch{record(t, `[{"0": 1}]`, "0", i64)}, code: codes.InvalidArgument},
		{name: "too many", sql: "SELECT 1", bind: []arrow.RecordBatch{record(t, `[{"0": 1}]`, "0", i64)}, code: codes.InvalidArgument},
		{name: "list", sql: "SELECT ?", bind: []arrow.RecordBatch{record(t, `[{"0": [1]}]`, "0", arrow.ListOf(i64))}, code: codes.InvalidArgument},
		{name: "does not fit", sql: "SELECT value FROM metrics WHERE timestamp > ?",
			bind: []arrow.RecordBatch{record(t, `[{"0": "yesterday"}]`, "0", text)}, code: codes.InvalidArgument},
		{name: "other types later", sql: "SELECT value FROM metrics WHERE value > CAST(? AS DOUBLE)",
			bind: []arrow.RecordBatch{record(t, `[{"0": "0.5"}, {"0": "x"}]`, "0", text)}, code: codes.InvalidArgument},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := s.Prepare(t.Context(), c.sql)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := p.Close(t.Context()); err != nil {
					t.Error(err)
				}
			}()
			if c.parameters != "" {
				var got []string
				for _, f := range p.ParameterSchema().Fields() {
					typ := f.Type.String()
					if f.Type.ID() == arrow.STRING && strings.Contains(c.parameters, f.Name+" any") {
						typ = "any"
					}
					got = append(got, f.Name+" "+typ)
				}
				if diff := cmp.Diff(c.parameters, strings.Join(got, ", ")); diff != "" {
					t.Errorf("parameters (-want +got):\n%s", diff)
				}
			}
			var info *flight.FlightInfo
			if len(c.bind) == 0 {
				info, err = p.Execute(t.Context())
			}
			for _, rec := range c.bind {
				p.SetParameters(rec)
				info, err = p.Execute(t.Context())
			}
			var rows []string
			if err == nil {
				_, rows, _, err = s.fetch(t.Context(), info)
			}
			if code, _ := says(err); code != c.code {
				t.Fatalf("%v, want %v", err, c.code)
			}
			if diff := cmp.Diff(c.want, rows); err == nil && diff != "" {
				t.Errorf("rows (-want +got):\n%s", diff)
			}
		})
	}
	if s.logged() != "" {
		t.Errorf("what clients do wrong is in the log:\n%s", s.logged())
	}
}

// TestPreparedPin: a statement keeps the version of the call that prepared it,
// and the handle alone is enough for another server of the same table.
func TestPreparedPin(t *testing.T) {
	s := serve(t, Options{})
	p, err := s.Prepare(with(t.Context(), VersionHeader, "1"), "SELECT count(*) FROM metrics WHERE host = ?")
	if err != nil {
		t.Fatal(err)
	}
	s.add(labels.FromStrings(series.MetricName, "up", "host", "a"), 2)
	p.SetParameters(record(t, `[{"0": "a"}]`, "0", text))
	info, err := p.Execute(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, rows, versions, err := s.fetch(t.Context(), info)
	if err != nil || versions != "1" || cmp.Diff([]string{"1"}, rows) != "" {
		t.Errorf("%v of version %s: %v", rows, versions, err)
	}
	_, rows, versions, err = s.fetch(with(t.Context(), VersionHeader, "2"), info)
	if err != nil || versions != "2" || cmp.Diff([]string{"2"}, rows) != "" {
		t.Errorf("with a header: %v of version %s: %v", rows, versions, err)
	}
	other := serve(t, Options{})
	_, rows, _, err = other.fetch(t.Context(), info)
	if err != nil || cmp.Diff([]string{"1"}, rows) != "" {
		t.Errorf("another server: %v, %v", rows, err)
	}
}

// TestManyRows: the rows of parameters are bounded.
func TestManyRows(t *testing.T) {
	s := serve(t, Options{MaxRuns: 3})
	p, err := s.Prepare(t.Context(), "SELECT ?")
	if err != nil {
		t.Fatal(err)
	}
	p.SetParameters(record(t, `[{"0": 1}, {"0": 2}, {"0": 3}, {"0": 4}]`, "0", i64))
	if _, err := p.Execute(t.Context()); err == nil {
		t.Error("four rows are bound")
	} else if code, _ := says(err); code != codes.InvalidArgument {
		t.Error(err)
	}
}

// command wraps a message as clients do.
func command(t testing.TB, m proto.Message) []byte {
	t.Helper()
	wrapped, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	b, err := proto.Marshal(wrapped)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestHostileCalls: whatever a client sends, it gets a status, and the server
// lives.
func TestHostileCalls(t *testing.T) {
	s := serve(t, Options{})
	good, err := (&handle{SQL: "SELECT ?", Parameters: []string{"1"}}).encode()
	if err != nil {
		t.Fatal(err)
	}
	ticket := func(handle string) func() error {
		return func() error {
			raw, err := flightsql.CreateStatementQueryTicket([]byte(handle))
			if err != nil {
				return err
			}
			r, err := s.DoGet(t.Context(), &flight.Ticket{Ticket: raw})
			if err != nil {
				return err
			}
			defer r.Release()
			for r.Next() {
			}
			return r.Err()
		}
	}
	put := func(change func([]*flight.FlightData)) func() error {
		return func() error {
			var out recorder
			rec := record(t, `[{"0": "some text"}]`, "0", text)
			w := flight.NewRecordWriter(&out, ipc.WithSchema(rec.Schema()))
			w.SetFlightDescriptor(&flight.FlightDescriptor{Type: flight.DescriptorCMD, Cmd: command(t, &pb.CommandPreparedStatementQuery{PreparedStatementHandle: good})})
			if err := w.Write(rec); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			change(out)
			stream, err := s.Client.Client.DoPut(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range out {
				if err := stream.Send(d); err != nil && !errors.Is(err, io.EOF) {
					t.Fatal(err)
				}
			}
			if err := stream.CloseSend(); err != nil {
				t.Fatal(err)
			}
			_, err = stream.Recv()
			return err
		}
	}
	for _, c := range []struct {
		name string
		call func() error
		code codes.Code
	}{
		{"the stream as it should be", put(func([]*flight.FlightData) {}), codes.OK},
		{"a stream without a command", put(func(d []*flight.FlightData) { d[0].FlightDescriptor = nil }), codes.InvalidArgument},
		{"a stream with an empty command", put(func(d []*flight.FlightData) { d[0].FlightDescriptor.Cmd = nil }), codes.InvalidArgument},
		{"a header of noise", put(func(d []*flight.FlightData) { d[1].DataHeader = []byte(strings.Repeat("\xf3", 64)) }), codes.InvalidArgument},
		{"a body that is cut", put(func(d []*flight.FlightData) { d[1].DataBody = d[1].DataBody[:3] }), codes.InvalidArgument},
		{"offsets beyond the text", put(func(d []*flight.FlightData) {
			for i := range d[1].DataBody {
				if d[1].DataBody[i] == 9 { // the length of the text
					d[1].DataBody[i+3] = 0x7f
				}
			}
		}), codes.InvalidArgument},
		{"text that is not UTF-8", put(func(d []*flight.FlightData) {
			d[1].DataBody[strings.Index(string(d[1].DataBody), "some")] = 0xff
		}), codes.InvalidArgument},
		{"a ticket of noise", func() error {
			r, err := s.DoGet(t.Context(), &flight.Ticket{Ticket: []byte("noise")})
			if err == nil {
				r.Release()
			}
			return err
		}, codes.InvalidArgument},
		{"a handle of noise", ticket("noise"), codes.InvalidArgument},
		{"an empty handle", ticket(""), codes.InvalidArgument},
		{"no format", ticket(`{"sql": "SELECT 1"}`), codes.InvalidArgument},
		{"another format", ticket(`{"format": 2, "sql": "SELECT 1"}`), codes.InvalidArgument},
		{"a member too many", ticket(`{"format": 1, "sql": "SELECT 1", "tenant": "b"}`), codes.InvalidArgument},
		{"a negative version", ticket(`{"format": 1, "sql": "SELECT 1", "version": -1}`), codes.InvalidArgument},
		{"arguments without parameters", ticket(`{"format": 1, "sql": "SELECT 1", "arguments": [[1]]}`), codes.InvalidArgument},
		{"a number as argument", ticket(`{"format": 1, "sql": "SELECT ?", "parameters": ["1"], "arguments": [[1]]}`), codes.InvalidArgument},
		{"an argument of no type", ticket(`{"format": 1, "sql": "SELECT ?", "parameters": ["1"], "arguments": [[{"x": "1"}]]}`), codes.InvalidArgument},
		{"parameters that are not there", ticket(`{"format": 1, "sql": "SELECT 1", "parameters": ["1"], "arguments": [["x"]]}`), codes.InvalidArgument},
		{"a handle that writes", ticket(`{"format": 1, "sql": "COPY metrics TO 'x'"}`), codes.PermissionDenied},
		{"no command", func() error {
			_, err := s.Client.Client.GetFlightInfo(t.Context(), &flight.FlightDescriptor{})
			return err
		}, codes.InvalidArgument},
		{"a cancellation of nothing", func() error {
			_, err := s.CancelFlightInfo(t.Context(), &flight.CancelFlightInfoRequest{})
			return err
		}, codes.OK},
		{"a cancellation of noise", func() error {
			_, err := s.CancelFlightInfo(t.Context(), &flight.CancelFlightInfoRequest{Info: &flight.FlightInfo{Endpoint: []*flight.FlightEndpoint{{Ticket: &flight.Ticket{Ticket: []byte("noise")}}}}})
			return err
		}, codes.InvalidArgument},
		{"a handle that is not ours is closed", func() error {
			stream, err := s.Client.Client.DoAction(t.Context(), &flight.Action{Type: flightsql.ClosePreparedStatementActionType, Body: command(t, &pb.ActionClosePreparedStatementRequest{PreparedStatementHandle: []byte("x")})})
			if err != nil {
				return err
			}
			_, err = stream.Recv()
			return err
		}, codes.InvalidArgument},
	} {
		t.Run(c.name, func(t *testing.T) {
			if code, _ := says(c.call()); code != c.code {
				t.Errorf("%v, want %v: %v", code, c.code, c.call())
			}
		})
	}
	if s.logged() != "" {
		t.Errorf("what clients do wrong is in the log:\n%s", s.logged())
	}
}

// TestPanics: a bug of ours ends the call and not the process.
func TestPanics(t *testing.T) {
	s := serve(t, Options{})
	s.panics = true
	_, err := s.Execute(t.Context(), "SELECT 1")
	if code, reason := says(err); code != codes.Internal || reason != "internal" || !strings.Contains(s.logged(), "panicked") {
		t.Errorf("%v; log: %s", err, s.logged())
	}
}

type recorder []*flight.FlightData

func (r *recorder) Send(d *flight.FlightData) error {
	*r = append(*r, proto.Clone(d).(*flight.FlightData))
	return nil
}

// TestHandles: what is encoded comes back, arguments of every type.
func TestHandles(t *testing.T) {
	version := int64(7)
	h := &handle{
		SQL: "SELECT …", Version: &version, Parameters: []string{"1", "2", "x", "4", "5", "6", "7", "8", "9"}, Schema: "ab", ID: "id",
		Arguments: [][]argument{{{nil}, {true}, {"text \"\u2028"}, {int64(math.MinInt64)}, {uint64(math.MaxUint64)}, {0.1}, {math.Inf(-1)}, {[]byte{0, 255}}, {time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)}}},
	}
	b, err := h.encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeHandle(b, 1)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(h, got, cmp.AllowUnexported(argument{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if _, err := (&handle{SQL: strings.Repeat("x", maxHandleBytes)}).encode(); !errors.Is(err, errBadRequest) {
		t.Errorf("too long: %v", err)
	}
	if _, err := (&handle{Parameters: []string{"1"}, Arguments: [][]argument{{{int8(1)}}}}).encode(); !errors.Is(err, errBadRequest) {
		t.Errorf("an argument of another type: %v", err)
	}
}

// FuzzHandle: whatever the bytes, they are refused or mean what they say when
// they are written again.
func FuzzHandle(f *testing.F) {
	b, err := (&handle{SQL: "SELECT ?", Parameters: []string{"1"}, Arguments: [][]argument{{{int64(1)}}, {{nil}}, {{[]byte("x")}}, {{time.Unix(1, 0)}}, {{1.5}}}}).encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"format":1,"sql":"","version":0,"arguments":[[]]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := decodeHandle(b, 10)
		if err != nil {
			if !errors.Is(err, errBadRequest) {
				t.Errorf("an error of no kind: %v", err)
			}
			return
		}
		again, err := h.encode()
		if errors.Is(err, errBadRequest) {
			return // longer than it was: escapes
		}
		if err != nil {
			t.Fatal(err)
		}
		back, err := decodeHandle(again, 10)
		if err != nil {
			t.Fatalf("%s: %v", again, err)
		}
		if third, err := back.encode(); err != nil || string(third) != string(again) {
			t.Errorf("%s becomes %s: %v", again, third, err)
		}
	})
}
