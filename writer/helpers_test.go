package writer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/internal/merge"
	"cardinalsin/series"
	"cardinalsin/shard"
	"cardinalsin/storage"
	"cardinalsin/storage/mem"
	"cardinalsin/txlog"
	"cardinalsin/wal"
)

const root = "tenant/metrics"

// day is the first microsecond of an arbitrary day.
var day = series.Date(20_000).Start()

func createTable(t testing.TB, store storage.Store) *txlog.Log {
	t.Helper()
	l, err := txlog.Create(t.Context(), store, root, txlog.CreateOptions{
		Schema: chunk.BaseSchema(), PartitionColumns: chunk.PartitionColumns(),
		Domains: map[string]string{shard.Domain: shard.Initial().Encode()},
	}, txlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func openTable(t testing.TB, store storage.Store) *txlog.Log {
	t.Helper()
	l, err := txlog.Open(t.Context(), store, root, txlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func openWAL(t testing.TB, dir string) *wal.Log {
	t.Helper()
	l, err := wal.Open(dir, wal.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func openWriter(t testing.TB, log *txlog.Log, l WAL, opts Options) *Writer {
	t.Helper()
	w, err := Open(t.Context(), log, l, opts)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// newWriter opens a writer of a new table in a new store.
func newWriter(t testing.TB, opts Options) (*Writer, *mem.Store) {
	t.Helper()
	store := mem.New(mem.Options{})
	return openWriter(t, createTable(t, store), openWAL(t, t.TempDir()), opts), store
}

func mustAppend(t testing.TB, w *Writer, b series.Batch) {
	t.Helper()
	if err := w.Append(t.Context(), b); err != nil {
		t.Fatal(err)
	}
}

func mustFlush(t testing.TB, w *Writer) {
	t.Helper()
	if err := w.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// one is a batch of one series: name and labels in pairs, then samples.
func one(name string, pairs []string, samples ...series.Sample) series.Batch {
	return series.Batch{{Labels: labels.FromStrings(append([]string{series.MetricName, name}, pairs...)...), Samples: samples}}
}

func at0(offset int64, value float64) series.Sample {
	return series.Sample{Time: day + series.Timestamp(offset), Value: value}
}

// point is one observation of one series.
type point struct {
	labels string
	time   series.Timestamp
	nanos  uint16
}

// rows counts observations: how often each value of each point occurs.
type rows map[point]map[string]int

func (r rows) add(l series.Labels, samples []series.Sample) {
	for _, s := range samples {
		p := point{l.String(), s.Time, s.Nanos}
		if r[p] == nil {
			r[p] = map[string]int{}
		}
		v := strconv.FormatUint(math.Float64bits(s.Value), 16)
		if s.Histogram != nil {
			v = fmt.Sprintf("histogram %x", s.Histogram)
		}
		if s.Start != 0 {
			v += fmt.Sprintf(" since %d", s.Start)
		}
		r[p][v]++
	}
}

func (r rows) addBatch(b series.Batch) {
	for _, s := range b {
		r.add(s.Labels, s.Samples)
	}
}

func (r rows) clone() rows {
	out := rows{}
	for p, v := range r {
		out[p] = maps.Clone(v)
	}
	return out
}

func (r rows) String() string {
	var lines []string
	for p, values := range r {
		for v, n := range values {
			lines = append(lines, fmt.Sprintf("%s %d+%dns %s ×%d", p.labels, p.time-day, p.nanos, v, n))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// tableRows reads every live file, and checks on the way what must hold of
// each: it exists with its size, its tags and statistics tell the truth, and
// each row lies in its day and shard.
func tableRows(t testing.TB, store storage.Store) rows {
	t.Helper()
	out := rows{}
	for s := range tableSeries(t, store) {
		out.add(s.Labels, s.Samples)
	}
	return out
}

// tableSeries yields the series of every live file, one file after another.
func tableSeries(t testing.TB, store storage.Store) func(func(merge.Series) bool) {
	t.Helper()
	log := openTable(t, store)
	snap, err := log.Snapshot(t.Context(), txlog.Latest())
	if err != nil {
		t.Fatal(err)
	}
	conf, _ := snap.Domain(shard.Domain)
	m, err := shard.Parse(conf)
	if err != nil {
		t.Fatal(err)
	}
	return func(yield func(merge.Series) bool) {
		for a := range snap.Files() {
			for _, s := range readFile(t, log, a) {
				owner, _ := a.PartitionValues.Get(chunk.ColumnShard)
				// A file from before a split may lie in the parent.
				if got := m.Of(shard.KeyOf(s.Labels, s.ID)); !strings.HasPrefix(string(got), owner) {
					t.Errorf("%s: %s belongs to shard %s", a.Path, s.Labels, got)
				}
				if !yield(s) {
					return
				}
			}
		}
	}
}

func readFile(t testing.TB, log *txlog.Log, a *action.Add) []merge.Series {
	t.Helper()
	key, err := log.Key(a.Path)
	if err != nil {
		t.Fatal(err)
	}
	data, _, err := log.Store().Get(t.Context(), key)
	if err != nil {
		t.Fatalf("dangling reference: %v", err)
	}
	if int64(len(data)) != a.Size {
		t.Errorf("%s: %d bytes, the log says %d", a.Path, len(data), a.Size)
	}
	if err := chunk.Verify(data); err != nil {
		t.Errorf("%s: %v", a.Path, err)
	}
	f, err := chunk.Open(t.Context(), chunk.BytesSource(a.Path, data), a.Size)
	if err != nil {
		t.Fatal(err)
	}
	tags, ok, err := chunk.ParseTags(a.Tags)
	if err != nil || !ok {
		t.Fatalf("%s: tags %s: %v", a.Path, a.Tags, err)
	}
	date, _ := a.PartitionValues.Get(chunk.ColumnDate)
	var out []merge.Series
	n := int64(0)
	for s, err := range f.Select(t.Context(), series.Selector{Range: series.AllTime}, nil) {
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range s.Samples {
			if p.Time.Date().String() != date || !tags.Time.Contains(p.Time) {
				t.Errorf("%s: sample of %s in date %s, range %v", a.Path, p.Time.Time(), date, tags.Time)
			}
		}
		n += int64(len(s.Samples))
		out = append(out, s)
	}
	stats, ok, err := action.ParseStats(a.Stats)
	if err != nil || !ok || stats.NumRecords != n {
		t.Errorf("%s: %d rows, statistics say %d (%v)", a.Path, n, stats.NumRecords, err)
	}
	return out
}

// viewRows is what a view shows.
func viewRows(v *HeadView) rows {
	out := rows{}
	for s := range v.Select(series.Selector{Range: series.AllTime}) {
		out.add(s.Labels, s.AllSamples())
	}
	return out
}

// checkOnce fails unless what is stored, in the table and in the head of a
// writer that has just been opened, holds every acknowledged row exactly
// once, and no other row than those that were sent.
func checkOnce(t testing.TB, store storage.Store, w *Writer, acked, sent rows) {
	t.Helper()
	got := tableRows(t, store)
	for p, values := range viewRows(w.Head()) {
		for v, n := range values {
			if got[p] == nil {
				got[p] = map[string]int{}
			}
			got[p][v] += n
		}
	}
	for p, values := range acked {
		if d := cmp.Diff(values, got[p]); d != "" {
			t.Errorf("acknowledged row %s %d (-want +got):\n%s", p.labels, p.time-day, d)
		}
	}
	for p, values := range got {
		for v, n := range values {
			if sent[p][v] < n {
				t.Errorf("row that nobody sent, or twice: %s %d %s ×%d", p.labels, p.time-day, v, n)
			}
		}
	}
}

// copyDir copies a WAL directory as a crash leaves it, without the lock.
func copyDir(t testing.TB, from string) string {
	t.Helper()
	to := t.TempDir()
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == "LOCK" {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, d.Name()), data, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
	return to
}

// copyStore copies every object into a new store.
func copyStore(t testing.TB, from storage.Store) *mem.Store {
	t.Helper()
	to := mem.New(mem.Options{})
	objects, err := storage.Collect(from.List(context.Background(), "", ""))
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objects {
		data, _, err := from.Get(context.Background(), o.Key)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := to.PutIfAbsent(context.Background(), o.Key, data); err != nil {
			t.Fatal(err)
		}
	}
	return to
}

// spyWAL is a WAL whose calls a test watches, holds up, or fails.
type spyWAL struct {
	*wal.Log
	// before and after run around each call; an error of before is returned
	// instead of making it, one of after instead of its result.
	before, after func(call string) error
}

func (s *spyWAL) around(call string, do func() error) error {
	if s.before != nil {
		if err := s.before(call); err != nil {
			return err
		}
	}
	err := do()
	if s.after != nil {
		err = errors.Join(err, s.after(call))
	}
	return err
}

func (s *spyWAL) Append(r []wal.Record) (first, last wal.Sequence, err error) {
	err = s.around(fmt.Sprintf("append %d", len(r)), func() (err error) {
		first, last, err = s.Log.Append(r)
		return err
	})
	return first, last, err
}

func (s *spyWAL) Replay(after wal.Sequence, fn func(wal.Sequence, series.Batch) error) error {
	return s.around(fmt.Sprintf("replay after %d", after), func() error { return s.Log.Replay(after, fn) })
}

func (s *spyWAL) Sync() error { return s.around("sync", s.Log.Sync) }

func (s *spyWAL) Truncate(through wal.Sequence) error {
	return s.around(fmt.Sprintf("truncate through %d", through), func() error { return s.Log.Truncate(through) })
}

// mergedTable shows the one series of a table as readers see it: files merged
// by their rank.
func mergedTable(t testing.TB, store storage.Store) string {
	t.Helper()
	log := openTable(t, store)
	snap, err := log.Snapshot(t.Context(), txlog.Latest())
	if err != nil {
		t.Fatal(err)
	}
	var sources []merge.Source
	for a := range snap.Files() {
		tags, _, err := chunk.ParseTags(a.Tags)
		if err != nil {
			t.Fatal(err)
		}
		sources = append(sources, merge.Source{
			Rank:   merge.Rank{Order: tags.Order.Hi, Tie: a.Path},
			Series: merge.Slice(readFile(t, log, a)),
		})
	}
	var out []string
	for s, err := range merge.Sources(sources...) {
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range s.Samples {
			out = append(out, fmt.Sprintf("%d+%d=%g", p.Time-day, p.Nanos, p.Value))
		}
	}
	return strings.Join(out, " ")
}
