// Package ingesttest gives tests of protocols a real Sink, over a store in
// memory, and reads back what it has taken: from the head and, after Flush,
// from chunks.
//
// It stands beside the module's root and serves tests only.
package ingesttest

import (
	"context"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"cardinalsin/chunk"
	"cardinalsin/ingest"
	"cardinalsin/lease"
	"cardinalsin/reader"
	"cardinalsin/series"
	"cardinalsin/shard"
	"cardinalsin/storage"
	"cardinalsin/storage/mem"
	"cardinalsin/txlog"
	"cardinalsin/wal"
	"cardinalsin/writer"
)

// Sink is an Ingester over tables in memory, with WALs that are not synced.
// What it takes stays in the head until Flush.
type Sink struct {
	*ingest.Ingester

	t     testing.TB
	store storage.Store
	dir   string // of the WALs
	now   func() time.Time

	mu       sync.Mutex // guards what follows
	tables   map[string]*table
	fail     error
	refused  map[ingest.Reason]int
	requests int
}

// Options of a Sink; the zero value is useful.
type Options struct {
	// Now is the clock of the store and of everything above it. Default
	// 2026-01-02 03:04:05 UTC, standing still.
	Now    func() time.Time
	Limits ingest.Limits // of every tenant
}

type table struct {
	log    *txlog.Log
	wal    *wal.Log
	writer *writer.Writer
	reader *reader.Reader
}

// New makes a Sink that is closed with the test.
func New(t testing.TB, o Options) *Sink {
	t.Helper()
	if o.Now == nil {
		o.Now = func() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }
	}
	s := &Sink{
		t: t, store: mem.New(mem.Options{Now: o.Now}), dir: t.TempDir(), now: o.Now,
		tables: map[string]*table{}, refused: map[ingest.Reason]int{},
	}
	s.Ingester = ingest.New(ingest.Options{
		Tables: s, Now: o.Now,
		Limits: func(string) ingest.Limits { return o.Limits },
		Events: ingest.Events{AppendEnd: s.appendEnd, Refused: s.countRefused},
	})
	t.Cleanup(s.close)
	return s
}

func (s *Sink) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, t := range s.tables {
		if err := t.wal.Close(); err != nil {
			s.t.Errorf("close the wal of %s: %v", name, err)
		}
	}
}

func (s *Sink) appendEnd(e ingest.AppendEvent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests++
	if e.Err != nil {
		s.refused[e.Reason]++
	}
}

func (s *Sink) countRefused(_ ingest.Protocol, reason ingest.Reason, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused[reason] += max(n, 1)
}

// FailWith lets Append fail with err before anything is stored, as the writer
// of a table would; nil ends that.
func (s *Sink) FailWith(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = err
}

// Requests counts the calls of Append.
func (s *Sink) Requests() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests
}

// Refused counts what was refused for a reason: a whole request as one, by
// Append or by the protocol; and the samples that a protocol left out.
func (s *Sink) Refused(reason ingest.Reason) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refused[reason]
}

// Table implements ingest.Tables.
func (s *Sink) Table(ctx context.Context, tenant, name string) (ingest.Appender, func(), error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return nil, nil, s.fail
	}
	t, err := s.open(ctx, tenant, name)
	if err != nil {
		return nil, nil, err
	}
	return t.writer, func() {}, nil
}

// open opens or makes a table. mu is held.
func (s *Sink) open(ctx context.Context, tenant, name string) (*table, error) {
	root := tenant + "/" + name
	if t, ok := s.tables[root]; ok {
		return t, nil
	}
	t := &table{}
	var err error
	t.log, err = txlog.Create(ctx, s.store, root, txlog.CreateOptions{
		Schema: chunk.BaseSchema(), PartitionColumns: chunk.PartitionColumns(),
		Domains: map[string]string{shard.Domain: shard.Initial().Encode()},
	}, txlog.Options{Now: s.now})
	if err != nil {
		return nil, err
	}
	if t.wal, err = wal.Open(s.dir+"/"+root, wal.Options{Sync: wal.SyncDeferred}); err != nil {
		return nil, err
	}
	if t.writer, err = writer.Open(ctx, t.log, t.wal, writer.Options{Now: s.now}); err != nil {
		return nil, err
	}
	pins := lease.NewPins(s.store, root+"/_cardinal/pins", "test", lease.Options{Now: s.now})
	t.reader = reader.New(t.log, pins, reader.Options{Head: func() reader.HeadView { return t.writer.Head() }})
	s.tables[root] = t
	return t, nil
}

// Flush commits the heads of all tables, so that everything is read from
// chunks from then on.
func (s *Sink) Flush() {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, t := range s.tables {
		if err := t.writer.Flush(context.Background()); err != nil {
			s.t.Fatalf("flush %s: %v", name, err)
		}
		if _, some := t.writer.Head().Range(); some {
			s.t.Fatalf("%s has a head after its flush", name)
		}
	}
}

// Reader reads a table of the tenant ("" is the default one): "metrics", or
// what ingest.ExemplarsTable and ingest.MetadataTable make of that. It is nil
// while nothing was ever written there.
func (s *Sink) Reader(tenant, table string) *reader.Reader {
	if tenant == "" {
		tenant = "default"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.tables[tenant+"/"+table]
	if !ok {
		return nil
	}
	return t.reader
}

// Tables counts the tables that were made, over all tenants: 0 where nothing
// was ever accepted.
func (s *Sink) Tables() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.tables)
}

// Samples are all series of a tenant in the order of series.Compare, each with
// its samples in the order of time.
func (s *Sink) Samples(tenant string) []series.Series {
	s.t.Helper()
	return s.rows(tenant, "metrics")
}

// Exemplars are all exemplars of a tenant, in the order of their rows.
func (s *Sink) Exemplars(tenant string) []series.Exemplar {
	s.t.Helper()
	var out []series.Exemplar
	for _, row := range s.rows(tenant, ingest.ExemplarsTable("metrics")) {
		out = append(out, ingest.ExemplarsOf(row)...)
	}
	return out
}

// Metadata is all metadata of a tenant, in the order of its rows; what was
// sent on several days comes once.
func (s *Sink) Metadata(tenant string) []series.Metadata {
	s.t.Helper()
	var out []series.Metadata
	for _, row := range s.rows(tenant, ingest.MetadataTable("metrics")) {
		out = append(out, ingest.MetadataOf(row.Labels))
	}
	return out
}

func (s *Sink) rows(tenant, table string) []series.Series {
	s.t.Helper()
	r := s.Reader(tenant, table)
	if r == nil {
		return nil
	}
	ctx := context.Background()
	view, err := r.At(ctx, txlog.Latest())
	if err != nil {
		s.t.Fatal(err)
	}
	defer view.Close()
	var out []series.Series
	for row, err := range view.Select(ctx, series.Selector{Range: series.AllTime}) {
		if err != nil {
			s.t.Fatal(err)
		}
		row.Samples = append([]series.Sample(nil), row.Samples...)
		out = append(out, row)
	}
	return out
}

// Print is a line a sample, for goldens and cmp.Diff: labels, time in ns, the
// value's bits or the histogram's bytes in hex, and the start if there is one.
func Print(rows []series.Series) string {
	var b strings.Builder
	for _, row := range rows {
		for _, p := range row.Samples {
			fmt.Fprintf(&b, "%s %d%03d ", row.Labels, p.Time, p.Nanos)
			if p.Histogram != nil {
				fmt.Fprintf(&b, "%x", p.Histogram)
			} else {
				fmt.Fprintf(&b, "%016x", math.Float64bits(p.Value))
			}
			if p.Start != 0 {
				fmt.Fprintf(&b, " start %d", p.Start)
			}
			b.WriteByte('\n')
		}
	}
	return b.String()
}
