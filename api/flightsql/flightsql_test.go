package flightsql

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/flight"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/lease"
	"cardinalsin/series"
	"cardinalsin/sqlengine"
	"cardinalsin/storage"
	"cardinalsin/txlog"
)

func TestStatements(t *testing.T) {
	s := serve(t, Options{})
	for _, c := range []struct {
		name, sql, pin string
		want           []string
		versions       string
	}{
		{"rows", "SELECT host, value FROM metrics ORDER BY timestamp", "", []string{"a,0", "a,1"}, "3"},
		{"pinned by metadata", "SELECT count(*) FROM metrics", "1", []string{"1"}, "1"},
		{"AT goes before the pin", "SELECT count(*) FROM metrics AT (VERSION => 2)", "1", []string{"2"}, "2"},
		{"two versions", "SELECT value FROM metrics AT (VERSION => 2) WHERE value NOT IN (SELECT value FROM metrics AT (VERSION => 1))", "", []string{"1"}, "1,2"},
		{"no table", "SELECT 1", "", []string{"1"}, ""},
		{"no rows", "SELECT host, value FROM metrics WHERE false", "", nil, "3"},
		{"qualified", `SELECT count(*) FROM "cardinal"."main"."metrics"`, "", []string{"2"}, "3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx := t.Context()
			if c.pin != "" {
				ctx = with(ctx, VersionHeader, c.pin)
			}
			info, err := s.Execute(ctx, c.sql)
			if err != nil {
				t.Fatal(err)
			}
			promised, err := flight.DeserializeSchema(info.Schema, memory.DefaultAllocator)
			if err != nil {
				t.Fatal(err)
			}
			// The ticket alone must do: metadata need not come again.
			schema, rows, versions, err := s.fetch(t.Context(), info)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, rows); diff != "" {
				t.Errorf("rows (-want +got):\n%s", diff)
			}
			if versions != c.versions {
				t.Errorf("versions %q, want %q", versions, c.versions)
			}
			if !schema.Equal(promised) {
				t.Errorf("schema %s, promised %s", schema, promised)
			}
			asked, err := s.GetExecuteSchema(ctx, c.sql)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := flight.DeserializeSchema(asked.Schema, memory.DefaultAllocator); err != nil || !got.Equal(promised) {
				t.Errorf("GetSchema: %v, %v", got, err)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	s := serve(t, Options{Limits: sqlengine.QueryOptions{MaxRows: 1000, Timeout: 5 * time.Second}})
	for _, c := range []struct {
		sql, version, tenant string
		code                 codes.Code
		reason               string
	}{
		{sql: "SELEC 1", code: codes.InvalidArgument, reason: "syntax"},
		{sql: "SELECT nothing FROM metrics", code: codes.InvalidArgument, reason: "syntax"},
		{sql: "SELECT * FROM nothing", code: codes.InvalidArgument, reason: "syntax"},
		{sql: "DROP TABLE metrics", code: codes.PermissionDenied, reason: "not_allowed"},
		{sql: "SELECT * FROM read_csv('/etc/passwd')", code: codes.PermissionDenied, reason: "not_allowed"},
		{sql: "SELECT 1; SELECT 2", code: codes.PermissionDenied, reason: "not_allowed"},
		{sql: "SELECT $1::INTEGER", code: codes.InvalidArgument, reason: "bad_request"},
		{sql: "SELECT CAST(host AS INTEGER) FROM metrics", code: codes.InvalidArgument, reason: "execution"},
		{sql: "SELECT * FROM range(100000)", code: codes.ResourceExhausted, reason: "too_large"},
		{sql: "SELECT * FROM metrics", version: "99", code: codes.NotFound, reason: "version_not_found"},
		{sql: "SELECT * FROM metrics", version: "0", code: codes.NotFound, reason: "version_vacuumed"},
		{sql: "SELECT * FROM metrics", version: "-1", code: codes.InvalidArgument, reason: "bad_request"},
		{sql: "SELECT * FROM metrics", version: "one", code: codes.InvalidArgument, reason: "bad_request"},
		{sql: "SELECT * FROM metrics", tenant: "nobody", code: codes.NotFound, reason: "not_a_table"},
		{sql: "SELECT * FROM metrics", tenant: "a/b", code: codes.InvalidArgument, reason: "bad_request"},
	} {
		t.Run(c.sql+c.version+c.tenant, func(t *testing.T) {
			ctx := t.Context()
			if c.version != "" {
				ctx = with(ctx, VersionHeader, c.version)
			}
			if c.tenant != "" {
				ctx = with(ctx, "x-scope-orgid", c.tenant)
			}
			_, _, err := s.query(ctx, c.sql)
			if code, reason := says(err); code != c.code || reason != c.reason {
				t.Errorf("%v, reason %q: %v; want %v, %q", code, reason, err, c.code, c.reason)
			}
		})
	}
	if s.logged() != "" {
		t.Errorf("what clients do wrong is in the log:\n%s", s.logged())
	}
}

// TestConditions: every condition that is not the client's has its code, and
// only what is our fault is logged.
func TestConditions(t *testing.T) {
	s := serve(t, Options{})
	for _, c := range []struct {
		err    error
		code   codes.Code
		reason string
		logged bool
	}{
		{chunk.ErrCorrupt, codes.DataLoss, "corrupt", true},
		{action.ErrCorrupt, codes.DataLoss, "corrupt", true},
		{sqlengine.ErrTimeout, codes.DeadlineExceeded, "timeout", false},
		{lease.ErrPinLost, codes.Unavailable, "unavailable", false},
		{storage.ErrUnavailable, codes.Unavailable, "unavailable", false},
		{txlog.ErrUnsupported, codes.Unimplemented, "unsupported", false},
		{errors.New("a secret of ours"), codes.Internal, "internal", true},
	} {
		t.Run(c.reason+" "+c.err.Error(), func(t *testing.T) {
			s.err = fmt.Errorf("step: %w", c.err)
			defer func() { s.err = nil }()
			before := len(s.logged())
			_, err := s.Execute(t.Context(), "SELECT 1")
			if code, reason := says(err); code != c.code || reason != c.reason {
				t.Errorf("%v, reason %q: %v; want %v, %q", code, reason, err, c.code, c.reason)
			}
			if got := len(s.logged()) > before; got != c.logged {
				t.Errorf("logged: %v, want %v", got, c.logged)
			}
			if c.code == codes.Internal && strings.Contains(status.Convert(err).Message(), "secret") {
				t.Errorf("the client is told %v", err)
			}
		})
	}
}

// TestFailsLate: a query that fails behind its first rows ends with an error,
// never as if it were whole.
func TestFailsLate(t *testing.T) {
	s := serve(t, Options{})
	rows, _, err := s.query(t.Context(), "SELECT CASE WHEN range < 100000 THEN range ELSE error('late') END FROM range(200000)")
	if code, reason := says(err); code != codes.InvalidArgument || reason != "execution" {
		t.Errorf("%v, %q after %d rows: %v", code, reason, len(rows), err)
	}
}

// TestStreams: rows come while the query runs, and it ends when the client
// goes.
func TestStreams(t *testing.T) {
	s := serve(t, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	info, err := s.Execute(ctx, "SELECT range, range * 2 FROM range(1000000000000)")
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.DoGet(ctx, info.Endpoint[0].Ticket)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Release()
	for range 100 {
		if !r.Next() {
			t.Fatal(r.Err())
		}
	}
	if n := s.open.Load(); n != 1 {
		t.Errorf("%d engines in use, want 1", n)
	}
	cancel()
	await(t, func() bool { return s.open.Load() == 0 })
}

// TestMemory: a result of 1 GiB that is not read costs next to nothing.
func TestMemory(t *testing.T) {
	s := serve(t, Options{})
	info, err := s.Execute(t.Context(), "SELECT range, repeat('x', 1000) FROM range(1000000)")
	if err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r, err := s.DoGet(t.Context(), info.Endpoint[0].Ticket)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Release()
	var rows int64
	for r.Next() {
		if rows += r.RecordBatch().NumRows(); rows > 100_000 {
			break
		}
	}
	time.Sleep(200 * time.Millisecond) // time to run ahead
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 64<<20 {
		t.Errorf("the heap has grown by %d MiB", grown>>20)
	}
}

// TestLargeRows: no message is larger than what clients take, by default 4 MiB.
func TestLargeRows(t *testing.T) {
	s := serve(t, Options{})
	rows, _, err := s.query(t.Context(), "SELECT repeat('x', 10000) FROM range(5000)")
	if err != nil || len(rows) != 5000 || len(rows[4999]) != 10000 {
		t.Errorf("%d rows: %v", len(rows), err)
	}
}

func TestCancel(t *testing.T) {
	s := serve(t, Options{})
	info, err := s.Execute(t.Context(), "SELECT * FROM range(1000000000000)")
	if err != nil {
		t.Fatal(err)
	}
	cancel := func() flight.CancelStatus {
		t.Helper()
		result, err := s.CancelFlightInfo(t.Context(), &flight.CancelFlightInfoRequest{Info: info})
		if err != nil {
			t.Fatal(err)
		}
		return result.Status
	}
	if got := cancel(); got != flight.CancelStatusNotCancellable {
		t.Errorf("before it runs: %v", got)
	}
	r, err := s.DoGet(t.Context(), info.Endpoint[0].Ticket)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Release()
	if !r.Next() {
		t.Fatal(r.Err())
	}
	if got := cancel(); got != flight.CancelStatusCancelling {
		t.Errorf("while it runs: %v", got)
	}
	for r.Next() {
	}
	if code, reason := says(r.Err()); code != codes.Canceled || reason != "cancelled" {
		t.Errorf("it ends with %v, %q: %v", code, reason, r.Err())
	}
	if got := cancel(); got != flight.CancelStatusNotCancellable {
		t.Errorf("behind its end: %v", got)
	}
}

// TestSchemaChanges: the rows are those that were promised, or none.
func TestSchemaChanges(t *testing.T) {
	s := serve(t, Options{})
	info, err := s.Execute(t.Context(), "SELECT * FROM metrics")
	if err != nil {
		t.Fatal(err)
	}
	s.add(labels.FromStrings(series.MetricName, "up", "zone", "z"), 2)
	_, rows, _, err := s.fetch(t.Context(), info)
	if code, reason := says(err); code != codes.Aborted || reason != "schema_changed" || len(rows) > 0 {
		t.Errorf("%d rows, %v, %q: %v", len(rows), code, reason, err)
	}
	if rows, _, err := s.query(t.Context(), "SELECT * FROM metrics"); err != nil || len(rows) != 3 {
		t.Errorf("again: %d rows, %v", len(rows), err)
	}
}

func TestTransactions(t *testing.T) {
	s := serve(t, Options{})
	if _, err := s.BeginTransaction(t.Context()); err == nil {
		t.Error("a transaction begins")
	} else if code, _ := says(err); code != codes.Unimplemented {
		t.Errorf("%v: %v", code, err)
	}
	if _, err := s.ExecuteUpdate(t.Context(), "DELETE FROM metrics"); err == nil {
		t.Error("an update runs")
	} else if code, _ := says(err); code != codes.Unimplemented {
		t.Errorf("%v: %v", code, err)
	}
}

func TestFingerprint(t *testing.T) {
	schema := func(name string, typ arrow.DataType) *arrow.Schema {
		return arrow.NewSchema([]arrow.Field{{Name: name, Type: typ}}, nil)
	}
	a := fingerprint(schema("a", arrow.PrimitiveTypes.Int64))
	for name, other := range map[string]*arrow.Schema{
		"name": schema("b", arrow.PrimitiveTypes.Int64), "type": schema("a", arrow.PrimitiveTypes.Int32), "none": nil,
		"zone": schema("a", &arrow.TimestampType{Unit: arrow.Microsecond}),
	} {
		if fingerprint(other) == a {
			t.Errorf("%s makes no difference", name)
		}
	}
	if a != fingerprint(schema("a", arrow.PrimitiveTypes.Int64)) {
		t.Error("not the same for the same schema")
	}
}

func await(t *testing.T, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not end")
		}
	}
}

// silent is a dispatcher whose rows ended early, without an error.
type silent struct{ flight.BaseFlightServer }

func (*silent) DoGet(*flight.Ticket, flight.FlightService_DoGetServer) error { return nil }

type streamOf struct {
	flight.FlightService_DoGetServer
	ctx context.Context
}

func (s streamOf) Context() context.Context { return s.ctx }

// TestDeadline: a stream that the deadline has cut short does not end as if it
// were whole, also where the server sees the deadline before the client.
func TestDeadline(t *testing.T) {
	sql := &service{}
	sql.opts.EnsureDefaults()
	ctx, cancel := context.WithDeadline(t.Context(), time.Now())
	defer cancel()
	err := (&front{FlightServer: &silent{}, sql: sql}).DoGet(&flight.Ticket{}, streamOf{ctx: ctx})
	if code, reason := says(err); code != codes.DeadlineExceeded || reason != "timeout" {
		t.Errorf("%v, %q: %v", code, reason, err)
	}
}

// TestConcurrent: calls that end, are left behind, are cancelled or fail, all
// at once, leave nothing behind: no engine in use, no memory held.
func TestConcurrent(t *testing.T) {
	s := serve(t, Options{})
	var group errgroup.Group
	for i := range 24 {
		group.Go(func() error {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			switch i % 4 {
			case 0:
				rows, _, err := s.query(ctx, "SELECT count(*) FROM metrics")
				if err != nil || len(rows) != 1 || rows[0] != "2" {
					return fmt.Errorf("%v: %w", rows, err)
				}
			case 1:
				if _, _, err := s.query(ctx, "SELECT error('x') FROM metrics"); err == nil {
					return errors.New("it does not fail")
				}
			default:
				info, err := s.Execute(ctx, "SELECT * FROM range(1000000000000)")
				if err != nil {
					return err
				}
				r, err := s.DoGet(ctx, info.Endpoint[0].Ticket)
				if err != nil {
					return err
				}
				defer r.Release()
				if !r.Next() {
					return r.Err()
				}
				if i%4 == 3 {
					_, err := s.CancelFlightInfo(ctx, &flight.CancelFlightInfoRequest{Info: info})
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	await(t, func() bool { return s.open.Load() == 0 })
	// As many as the engine's memory is for at one time.
	for range 5 {
		if _, _, err := s.query(t.Context(), "SELECT count(*) FROM metrics"); err != nil {
			t.Fatal(err)
		}
	}
}
