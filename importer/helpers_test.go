package importer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"cardinalsin/chunk"
	"cardinalsin/ingest"
	"cardinalsin/ingest/ingesttest"
	"cardinalsin/lease"
	"cardinalsin/reader"
	"cardinalsin/series"
	"cardinalsin/shard"
	"cardinalsin/storage"
	"cardinalsin/storage/mem"
	"cardinalsin/txlog"
)

// tables are the tables of one tenant in memory.
type tables struct {
	t     testing.TB
	store storage.Store

	mu   sync.Mutex
	logs map[Kind]*txlog.Log
}

func newTables(t testing.TB) *tables {
	return &tables{t: t, store: mem.New(mem.Options{}), logs: map[Kind]*txlog.Log{}}
}

func (f *tables) Table(ctx context.Context, kind Kind) (*txlog.Log, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if log := f.logs[kind]; log != nil {
		return log, nil
	}
	root := "default/" + [kinds]string{"metrics", ingest.ExemplarsTable("metrics"), ingest.MetadataTable("metrics")}[kind]
	log, err := txlog.Open(ctx, f.store, root, txlog.Options{})
	if errors.Is(err, txlog.ErrNotTable) {
		log, err = txlog.Create(ctx, f.store, root, txlog.CreateOptions{
			Schema: chunk.BaseSchema(), PartitionColumns: chunk.PartitionColumns(),
			Domains: map[string]string{shard.Domain: shard.Initial().Encode()},
		}, txlog.Options{})
	}
	if err == nil {
		f.logs[kind] = log
	}
	return log, err
}

// version is a table's latest, -1 if it does not exist.
func (f *tables) version(kind Kind) int64 {
	f.t.Helper()
	log := f.logs[kind]
	if log == nil {
		return -1
	}
	s, err := log.Snapshot(context.Background(), txlog.Latest())
	if err != nil {
		f.t.Fatal(err)
	}
	return int64(s.Version())
}

// rows reads a whole table.
func (f *tables) rows(kind Kind) []series.Series {
	f.t.Helper()
	log := f.logs[kind]
	if log == nil {
		return nil
	}
	ctx := context.Background()
	r := reader.New(log, lease.NewPins(f.store, log.Root()+"/_cardinal/pins", "test", lease.Options{}), reader.Options{})
	view, err := r.At(ctx, txlog.Latest())
	if err != nil {
		f.t.Fatal(err)
	}
	defer view.Close()
	var out []series.Series
	for s, err := range view.Select(ctx, series.Selector{Range: series.AllTime}) {
		if err != nil {
			f.t.Fatal(err)
		}
		s.Samples = append([]series.Sample(nil), s.Samples...)
		out = append(out, s)
	}
	return out
}

// print is all that the tables hold.
func (f *tables) print() string {
	f.t.Helper()
	out := ingesttest.Print(f.rows(Samples))
	for _, row := range f.rows(Exemplars) {
		for _, e := range ingest.ExemplarsOf(row) {
			out += fmt.Sprintf("exemplar %s %s %d%03d %v\n", e.Series, e.Labels, e.Time, e.Nanos, e.Value)
		}
	}
	for _, row := range f.rows(Metadata) {
		m := ingest.MetadataOf(row.Labels)
		out += fmt.Sprintf("metadata %s type=%s unit=%s help=%q on %s\n", m.Metric, m.Type, m.Unit, m.Help, row.Samples[0].Time.Date())
	}
	return out
}

// versions of all tables.
func (f *tables) versions() [kinds]int64 {
	return [kinds]int64{f.version(Samples), f.version(Exemplars), f.version(Metadata)}
}

func write1(t testing.TB, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// total adds up results.
func total(results []Result) Result {
	var sum Result
	for _, r := range results {
		sum.Samples += r.Samples
		sum.Exemplars += r.Exemplars
		sum.Metadata += r.Metadata
		sum.Rows += r.Rows
		sum.Files += r.Files
		sum.LeftOut += r.LeftOut
	}
	return sum
}

// liveRows counts the rows of all files of samples, those that two files have
// twice.
func (f *tables) liveRows() int64 {
	f.t.Helper()
	s, err := f.logs[Samples].Snapshot(context.Background(), txlog.Latest())
	if err != nil {
		f.t.Fatal(err)
	}
	n := int64(0)
	for a := range s.Files() {
		var stats struct {
			NumRecords int64 `json:"numRecords"`
		}
		if err := json.Unmarshal([]byte(a.Stats), &stats); err != nil {
			f.t.Fatal(err)
		}
		n += stats.NumRecords
	}
	return n
}

// sortRows brings series into the order of a table.
func sortRows(rows []series.Series) {
	slices.SortStableFunc(rows, func(a, b series.Series) int {
		return series.Compare(a.Labels, b.Labels, series.IDOf(a.Labels), series.IDOf(b.Labels))
	})
}
