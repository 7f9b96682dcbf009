package flightsql

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/flight"
	"github.com/apache/arrow-go/v18/arrow/flight/flightsql"
	"github.com/prometheus/prometheus/model/labels"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/ingest"
	"cardinalsin/internal/merge"
	"cardinalsin/reader"
	"cardinalsin/series"
	"cardinalsin/shard"
	"cardinalsin/sqlengine"
	"cardinalsin/storage"
	"cardinalsin/storage/local"
	"cardinalsin/txlog"
)

const (
	day  = series.Timestamp(1767312000_000_000) // 2026-01-02
	root = "default/metrics"
)

// server is a server over a table of one tenant, "" or "default".
type server struct {
	*flightsql.Client
	t      testing.TB
	store  storage.Store
	table  *txlog.Log
	files  int
	engine *sqlengine.Engine
	err    error        // returned in place of a result
	panics bool         // in place of a result
	open   atomic.Int32 // engines that were not released
	mu     sync.Mutex
	log    bytes.Buffer
}

func (s *server) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.Write(p)
}

func (s *server) logged() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.String()
}

// failing is the engine, unless the server has an error to return.
type failing struct{ s *server }

func (f failing) Tables() []string { return f.s.engine.Tables() }

func (f failing) Prepare(ctx context.Context, sql string, o sqlengine.QueryOptions) (*sqlengine.Prepared, error) {
	if f.s.panics {
		panic("a bug")
	}
	if f.s.err != nil {
		return nil, f.s.err
	}
	return f.s.engine.Prepare(ctx, sql, o)
}

func (f failing) Query(ctx context.Context, sql string, o sqlengine.QueryOptions) (*sqlengine.Rows, error) {
	if f.s.err != nil {
		return nil, f.s.err
	}
	return f.s.engine.Query(ctx, sql, o)
}

// serve serves a table with version 0, which is empty, and 1 and 2, each with
// one sample of up{host="a"}; in version 3 the watermark becomes 1.
func serve(t testing.TB, opts Options) *server {
	t.Helper()
	ctx := context.Background()
	store, err := local.New(t.TempDir(), local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	log, err := txlog.Create(ctx, store, root, txlog.CreateOptions{
		Schema: chunk.BaseSchema(), PartitionColumns: chunk.PartitionColumns(), Domains: map[string]string{shard.Domain: shard.Initial().Encode()},
	}, txlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, store: store, table: log}
	for i := range 2 {
		s.add(labels.FromStrings(series.MetricName, "up", "host", "a"), float64(i))
	}
	s.commit(func(txn *txlog.Transaction) { txn.SetDomain(txlog.WatermarkDomain, txlog.EncodeWatermark(1)) })
	s.engine, err = sqlengine.New(ctx, reader.New(log, nil, reader.Options{}), sqlengine.Options{MemoryBytes: 128 << 20, Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.engine.Close() })

	opts.Version = "1.2.3"
	opts.Logger = slog.New(slog.NewTextHandler(s, nil))
	open := func(_ context.Context, tenant string) (Engine, func(), error) {
		switch tenant {
		case "", "default":
			s.open.Add(1)
			return failing{s}, func() { s.open.Add(-1) }, nil
		case "a/b":
			return nil, nil, fmt.Errorf("%w: %q", ingest.ErrInvalidTenant, tenant)
		}
		return nil, nil, fmt.Errorf("tenant %s: %w", tenant, txlog.ErrNotTable)
	}
	g := grpc.NewServer(grpc.MaxRecvMsgSize(16<<20), grpc.WaitForHandlers(true))
	Register(g, open, opts)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	if s.Client, err = flightsql.NewClient(l.Addr().String(), nil, nil, grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Client.Close(); err != nil {
			t.Error(err)
		}
		g.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
		if n := s.open.Load(); n != 0 {
			t.Errorf("%d engines were not released", n)
		}
	})
	return s
}

func (s *server) commit(change func(*txlog.Transaction)) {
	s.t.Helper()
	snap, err := s.table.Snapshot(context.Background(), txlog.Latest())
	if err != nil {
		s.t.Fatal(err)
	}
	txn := s.table.Begin(snap, txlog.Operation{Name: "TEST"})
	change(txn)
	if _, err := txn.Commit(context.Background()); err != nil {
		s.t.Fatal(err)
	}
}

// add commits a file with one sample; the schema grows as a writer grows it.
func (s *server) add(l labels.Labels, value float64) {
	s.t.Helper()
	snap, err := s.table.Snapshot(context.Background(), txlog.Latest())
	if err != nil {
		s.t.Fatal(err)
	}
	schema := snap.Schema()
	layout, err := chunk.LayoutOf(schema)
	if err != nil {
		s.t.Fatal(err)
	}
	var names []string
	l.Range(func(l labels.Label) {
		if l.Name != series.MetricName {
			names = append(names, l.Name)
		}
	})
	grown := layout.Grow(names)
	if layout, err = chunk.LayoutOf(&action.Schema{Fields: append(schema.Fields[:len(schema.Fields):len(schema.Fields)], grown...)}); err != nil {
		s.t.Fatal(err)
	}
	n := int64(s.files)
	s.files++
	enc, err := chunk.Encode(chunk.Options{}, layout, merge.Slice([]merge.Series{{
		Labels: l, ID: series.IDOf(l), Samples: []series.Sample{{Time: day + series.Timestamp(n)*1_000_000, Value: value}},
	}}))
	if err != nil {
		s.t.Fatal(err)
	}
	path := fmt.Sprintf("date=2026-01-02/shard=1/%d.parquet", n)
	if _, err := s.store.Put(context.Background(), root+"/"+path, bytes.NewReader(enc.Data)); err != nil {
		s.t.Fatal(err)
	}
	s.commit(func(txn *txlog.Transaction) {
		if len(grown) > 0 {
			txn.AddColumns(grown...)
		}
		txn.Add(action.Add{
			Path: path, Size: int64(len(enc.Data)), DataChange: true,
			PartitionValues: action.ObjectOf(map[string]string{"date": "2026-01-02", "shard": "1"}),
			Tags:            chunk.Tags{Order: chunk.Order{Lo: n, Hi: n}, Time: enc.Time, Keys: enc.Keys}.Encode(),
		})
	})
}

// fetch reads all that a FlightInfo leads to: the schema, the rows as JSON, and
// the versions that the server says it has read.
func (s *server) fetch(ctx context.Context, info *flight.FlightInfo) (schema *arrow.Schema, rows []string, versions string, err error) {
	var headers metadata.MD
	r, err := s.DoGet(ctx, info.Endpoint[0].Ticket, grpc.Header(&headers))
	if err != nil {
		return nil, nil, "", err
	}
	defer r.Release()
	for r.Next() {
		rows = append(rows, texts(r.RecordBatch())...)
	}
	return r.Schema(), rows, strings.Join(headers.Get(VersionHeader), ","), r.Err()
}

// texts are the rows of a record, cells separated by commas.
func texts(rec arrow.RecordBatch) (rows []string) {
	for i := range int(rec.NumRows()) {
		var cells []string
		for _, c := range rec.Columns() {
			cells = append(cells, c.ValueStr(i))
		}
		rows = append(rows, strings.Join(cells, ","))
	}
	return rows
}

// query runs a statement.
func (s *server) query(ctx context.Context, sql string) (rows []string, versions string, err error) {
	info, err := s.Execute(ctx, sql)
	if err != nil {
		return nil, "", err
	}
	_, rows, versions, err = s.fetch(ctx, info)
	return rows, versions, err
}

// says is the code of an error and the reason that it carries.
func says(err error) (codes.Code, string) {
	st := status.Convert(err)
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.Domain == domain {
			return st.Code(), info.Reason
		}
	}
	return st.Code(), ""
}

func with(ctx context.Context, pairs ...string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, pairs...)
}
