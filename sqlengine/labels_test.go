package sqlengine

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/action"
	"cardinalsin/check"
	"cardinalsin/chunk"
	"cardinalsin/compactor"
	"cardinalsin/lease"
	"cardinalsin/series"
	"cardinalsin/storage/local"
	"cardinalsin/txlog"
	"cardinalsin/wal"
	"cardinalsin/writer"
)

// realWriter opens a writer of its own, as another process would.
func (tb *table) realWriter(t *testing.T) *writer.Writer {
	t.Helper()
	log, err := txlog.Open(t.Context(), tb.store, root, txlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	w, err := wal.Open(t.TempDir(), wal.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	out, err := writer.Open(t.Context(), log, w, writer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// compact merges all that can be merged and returns how many files are left.
func (tb *table) compact(t *testing.T) int {
	t.Helper()
	pins := lease.NewPins(tb.store, root+"/_cardinal/pins", "test", lease.Options{})
	r := compactor.NewRunner(tb.log, pins, "test", compactor.Options{Policy: compactor.Policy{All: true, Settle: 1}})
	if _, err := r.RunAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	n := 0
	for range tb.snapshot(t).Files() {
		n++
	}
	return n
}

// sound has the table checked, every row against what the log says of it.
func (tb *table) sound(t *testing.T) {
	t.Helper()
	found, err := check.Run(t.Context(), tb.log, check.Options{Deep: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		t.Errorf("check: %+v", f)
	}
}

// labelColumns returns the label columns of the latest version.
func (tb *table) labelColumns(t *testing.T) map[string]string {
	t.Helper()
	columns := map[string]string{}
	folded := map[string]string{}
	for _, f := range tb.snapshot(t).Schema().Fields {
		key := strings.ToLower(f.Name)
		if other, ok := folded[key]; ok {
			t.Errorf("columns %q and %q differ in case only", other, f.Name)
		}
		folded[key] = f.Name
		if l, ok := f.Metadata[chunk.LabelMetadata].(string); ok {
			columns[l] = f.Name
		}
	}
	return columns
}

// TestManyLabelNames: a tenant with 5,000 label names has a column for as many
// as the limit says and the rest in the map, and queries see no difference.
func TestManyLabelNames(t *testing.T) {
	const names = 5000
	tb := newTable(t, Options{})
	w := tb.realWriter(t)
	name := func(i int) string { return fmt.Sprintf("l%04d", i) }
	for round := range 5 { // the schema grows from flush to flush
		var batch series.Batch
		for i := round * names / 5; i < (round+1)*names/5; i++ {
			batch = append(batch, one(float64(i), lbl("m", name(i), fmt.Sprint("v", i), "all", "x"), int64(round)))
		}
		if err := w.Append(t.Context(), batch); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	verify := func(t *testing.T) {
		if n := len(tb.labelColumns(t)); n != chunk.DefaultMaxLabels {
			t.Errorf("%d label columns, want %d", n, chunk.DefaultMaxLabels)
		}
		tb.sound(t)
		v, err := tb.reader.At(t.Context(), txlog.Latest())
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		known, err := v.LabelNames(t.Context(), series.Selector{Range: series.AllTime}, 0)
		if err != nil {
			t.Fatal(err)
		}
		if len(known) != names+2 { // and __name__ and all
			t.Errorf("%d label names, want %d", len(known), names+2)
		}
		for _, i := range []int{0, 998, 999, 1000, 1001, 4321, 4999} {
			sel := series.Selector{Range: series.AllTime, Matchers: []*labels.Matcher{labels.MustNewMatcher(labels.MatchRegexp, name(i), "v.+")}}
			var got []string
			for s, err := range v.Select(t.Context(), sel) {
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, fmt.Sprint(s.Labels, s.Samples[0].Value))
			}
			want := []string{fmt.Sprint(lbl("m", name(i), fmt.Sprint("v", i), "all", "x"), i)}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("label %s: -want +got:\n%s", name(i), d)
			}
		}
		if got := tb.query(t, `SELECT count(*), sum(value), count("all"), count(l0500), sum(cardinality(labels_overflow)) FROM metrics`); got[0] != fmt.Sprintf("%d,%d,%d,1,%d", names, names*(names-1)/2, names, names-chunk.DefaultMaxLabels+1) {
			t.Errorf("SQL: %s", got)
		}
		if got := tb.query(t, `SELECT value FROM metrics WHERE labels_overflow['l4321'] = 'v4321'`); len(got) != 1 || got[0] != "4321" {
			t.Errorf("SQL by a label of the map: %s", got)
		}
	}
	t.Run("as written", verify)
	if n := tb.compact(t); n != 1 {
		t.Fatalf("%d files after compaction", n)
	}
	t.Run("compacted", verify)
}

// hostileNames come in pairs, one for each of two writers: names that differ
// in case only, that are those of fixed columns, or that no column can have.
var hostileNames = [][2]string{
	{"host", "HOST"}, {"Rack", "rack"}, {"ſ", "s"}, {"\u212a", "k"}, {"value", "Value"}, {"_value", "__value"}, {"timestamp", "_timestamp"},
	{"start_time_unix_nano", "_start_time_unix_nano"}, {"date", "shard"}, {"nanos", "Nanos"}, {"metric_name", "series_id"},
	{"labels_overflow", "histogram"}, {"a b", "a,b"}, {"a=b", "{a}"}, {"tab\tname", "new\nline"}, {"a.b", "a.B"},
	{strings.Repeat("n", 255), strings.Repeat("n", 256)}, {"_", "__"}, {"é", "É"}, {"c0", "file_index"},
}

// TestTwoWritersGrowTheSchema: two writers bring clashing label names at the
// same time. Whoever wins, no two columns clash, and every row is there as it
// was written, from the head, from files, and compacted.
func TestTwoWritersGrowTheSchema(t *testing.T) {
	tb := newTable(t, Options{})
	writers := []*writer.Writer{tb.realWriter(t), tb.realWriter(t)}
	var want []string
	for round, pair := range hostileNames {
		var running sync.WaitGroup
		errs := make([]error, len(writers))
		for k, w := range writers {
			// The same pair on both sides, the other way round, and one more.
			batch := series.Batch{
				one(float64(round), lbl("m", pair[k], "x", "writer", fmt.Sprint(k)), int64(round)),
				one(-1, lbl("both", pair[k], "x", pair[1-k], "y", "writer", fmt.Sprint(k)), int64(round)),
			}
			if pair[0] == pair[1] {
				t.Fatalf("pair %d is none", round)
			}
			for _, s := range batch {
				want = append(want, rowText(s.Labels, s.Samples[0]))
			}
			running.Go(func() {
				if errs[k] = w.Append(context.Background(), batch); errs[k] == nil {
					errs[k] = w.Flush(context.Background())
				}
			})
		}
		running.Wait()
		for k, err := range errs {
			if err != nil {
				t.Fatalf("names %q, writer %d: %v", pair, k, err)
			}
		}
	}
	slices.Sort(want)
	verify := func(t *testing.T) {
		tb.sound(t)
		columns := tb.labelColumns(t)
		for _, pair := range hostileNames {
			a, b := columns[pair[0]], columns[pair[1]]
			if strings.ContainsAny(a+b, " ,;{}()\n\t=") || len(a) > 255 || len(b) > 255 {
				t.Errorf("columns %q and %q", a, b)
			}
		}
		for label, want := range map[string]string{"value": "_value", "_value": "__value", "date": "_date", "start_time_unix_nano": "_start_time_unix_nano", "writer": "writer"} {
			// Of two names of which one is the other's in another case only one
			// has a column.
			if got, ok := columns[label]; ok && got != want || !ok && label == "writer" {
				t.Errorf("label %q lives in column %q", label, got)
			}
		}
		if d := cmp.Diff(want, tb.readerRows(t, txlog.Latest())); d != "" {
			t.Errorf("reader: -want +got:\n%s", d)
		}
		if d := cmp.Diff(want, tb.sqlRows(t, "SELECT * FROM metrics", QueryOptions{})); d != "" {
			t.Errorf("SQL: -want +got:\n%s", d)
		}
	}
	t.Run("as written", verify)
	if n := tb.compact(t); n != 1 {
		t.Fatalf("%d files after compaction", n)
	}
	t.Run("compacted", verify)
}

// TestTableWithoutStartTimes: a table from before there were start times is
// read as it is, and gets the column with the next flush.
func TestTableWithoutStartTimes(t *testing.T) {
	store, err := local.New(t.TempDir(), local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	schema := chunk.BaseSchema()
	schema.Fields = slices.DeleteFunc(schema.Fields, func(f action.Field) bool { return f.Name == chunk.ColumnStart })
	tb := newTableOf(t, store, schema, Options{})
	if got := tb.query(t, "SELECT count(start_time_unix_nano) FROM metrics"); got[0] != "0" {
		t.Fatalf("empty table: %s", got)
	}
	old, started := one(1, lbl("m", "host", "a"), 1), one(2, lbl("m", "host", "b"), 2)
	started.Samples[0].Start = 12345
	w := tb.realWriter(t)
	for _, s := range []series.Series{old, started} {
		if err := w.Append(t.Context(), series.Batch{s}); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, state := range []string{"as written", "compacted"} {
		tb.sound(t)
		want := []string{rowText(old.Labels, old.Samples[0]), rowText(started.Labels, started.Samples[0])}
		if d := cmp.Diff(want, tb.sqlRows(t, "SELECT * FROM metrics", QueryOptions{})); d != "" {
			t.Errorf("%s: SQL: -want +got:\n%s", state, d)
		}
		if d := cmp.Diff(want, tb.readerRows(t, txlog.Latest())); d != "" {
			t.Errorf("%s: reader: -want +got:\n%s", state, d)
		}
		tb.compact(t)
	}
}
