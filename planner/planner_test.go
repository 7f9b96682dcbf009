package planner

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/internal/merge"
	"cardinalsin/series"
	"cardinalsin/shard"
	"cardinalsin/storage/mem"
	"cardinalsin/txlog"
)

// tester is what both the golden and the property test need of *testing.T.
type tester interface {
	Helper()
	Fatalf(format string, args ...any)
}

// table is a table in memory whose files exist in the log only.
type table struct {
	log    *txlog.Log
	layout *chunk.Layout
	shards shard.Map
}

type tableOptions struct {
	labels        []string // those with a column
	shards        shard.Map
	schema        *action.Schema // default: that of our tables
	partitions    []string
	configuration map[string]string
	domains       map[string]string
}

func newTable(t tester, o tableOptions) *table {
	t.Helper()
	if o.schema == nil {
		o.schema = chunk.BaseSchema()
		base, err := chunk.LayoutOf(o.schema)
		if err != nil {
			t.Fatalf("base layout: %v", err)
		}
		o.schema.Fields = append(o.schema.Fields, base.Grow(o.labels)...)
	}
	if o.partitions == nil {
		o.partitions = chunk.PartitionColumns()
	}
	if o.domains == nil && len(o.shards.Shards) > 0 {
		o.domains = map[string]string{shard.Domain: o.shards.Encode()}
	}
	l, err := txlog.Create(context.Background(), mem.New(mem.Options{}), "tenant/metrics", txlog.CreateOptions{
		Schema: o.schema, PartitionColumns: o.partitions, Configuration: o.configuration, Domains: o.domains,
	}, txlog.Options{})
	if err != nil {
		t.Fatalf("create table: %v", err)
	}
	layout, _ := chunk.LayoutOf(o.schema) // nil for a schema that is not ours
	return &table{log: l, layout: layout, shards: o.shards}
}

func (tb *table) add(t tester, adds ...action.Add) *txlog.Snapshot {
	t.Helper()
	txn := tb.log.Begin(nil, txlog.Operation{Name: "WRITE"})
	for _, a := range adds {
		txn.Add(a)
	}
	s, err := txn.Commit(context.Background())
	if err != nil {
		t.Fatalf("commit: %v", err)
	}
	return s
}

func (tb *table) snapshot(t tester) *txlog.Snapshot {
	t.Helper()
	s, err := tb.log.Snapshot(context.Background(), txlog.Latest())
	if err != nil {
		t.Fatalf("snapshot: %v", err)
	}
	return s
}

// TestPlanGolden prints scans with the reason of every skip.
//
//	table [labels=(a,b)] [split=(metric,…)] [layout=foreign|mapped]
//	add path [date=] [shard=] [order=lo-hi] [time=lo..hi] [names=(min,max)]
//	<statistics, JSON>
//	plan [from=] [to=]
//	<selector>
//
// Times are µs after 2026-01-02T00:00:00Z.
func TestPlanGolden(t *testing.T) {
	datadriven.Walk(t, "testdata/plan", func(t *testing.T, path string) {
		var tb *table
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			switch d.Cmd {
			case "table":
				tb = newTable(t, goldenTable(t, d))
				var out strings.Builder
				for _, s := range tb.shards.Shards {
					fmt.Fprintf(&out, "shard %s from %016x\n", s.ID, uint64(s.Range.Min))
				}
				return out.String()
			case "add":
				tb.add(t, goldenAdd(t, d))
				return ""
			case "plan":
				return goldenPlan(t, tb, d)
			}
			t.Fatalf("unknown command %q", d.Cmd)
			return ""
		})
	})
}

const day = series.Timestamp(1767312000_000_000) // 2026-01-02

func goldenTable(t *testing.T, d *datadriven.TestData) tableOptions {
	o := tableOptions{shards: shard.Initial()}
	for _, arg := range d.CmdArgs {
		switch arg.Key {
		case "labels":
			o.labels = arg.Vals
		case "split":
			// Cut where the keys of each metric begin.
			for _, metric := range arg.Vals {
				key := shard.KeyOf(labels.FromStrings(series.MetricName, metric), 0)
				next, err := o.shards.Split(o.shards.Of(key), key)
				if err != nil {
					t.Fatal(err)
				}
				o.shards = next
			}
		case "layout":
			switch arg.Vals[0] {
			case "foreign":
				o.schema = &action.Schema{Fields: []action.Field{
					{Name: "timestamp", Type: action.PrimitiveType("timestamp"), Nullable: true},
					{Name: "date", Type: action.PrimitiveType("date"), Nullable: true},
					{Name: "shard", Type: action.PrimitiveType("string"), Nullable: true},
				}}
			case "mapped":
				o.configuration = map[string]string{"delta.columnMapping.mode": "name"}
			case "bad-map":
				o.domains = map[string]string{shard.Domain: "{}"}
			}
		}
	}
	return o
}

func goldenAdd(t *testing.T, d *datadriven.TestData) action.Add {
	a := action.Add{Path: d.CmdArgs[0].Key, Size: 1, DataChange: true, Stats: strings.TrimSpace(d.Input)}
	parts := map[string]string{}
	tags := chunk.Tags{}
	tagged := false
	for _, arg := range d.CmdArgs[1:] {
		v := arg.Vals[0]
		switch arg.Key {
		case "date", "shard":
			parts[arg.Key] = v
		case "order":
			tagged = true
			lo, hi, _ := strings.Cut(v, "-")
			tags.Order = chunk.Order{Lo: number(t, lo), Hi: number(t, hi)}
		case "time":
			tagged = true
			lo, hi, _ := strings.Cut(v, "..")
			tags.Time = series.TimeRange{Min: day + series.Timestamp(number(t, lo)), Max: day + series.Timestamp(number(t, hi))}
		case "names":
			tagged = true
			tags.Keys = chunk.KeyRange{MinName: v, MaxName: arg.Vals[1], Bounded: true}
		case "tags":
			a.Tags = action.ObjectOf(map[string]string{chunk.TagOrder: v})
		default:
			t.Fatalf("unknown argument %s", arg.Key)
		}
	}
	a.PartitionValues = action.ObjectOf(parts)
	if tagged {
		a.Tags = tags.Encode()
	}
	return a
}

func goldenPlan(t *testing.T, tb *table, d *datadriven.TestData) string {
	sel := series.Selector{Range: series.AllTime}
	for _, arg := range d.CmdArgs {
		switch arg.Key {
		case "from":
			sel.Range.Min = day + series.Timestamp(number(t, arg.Vals[0]))
		case "to":
			sel.Range.Max = day + series.Timestamp(number(t, arg.Vals[0]))
		default:
			t.Fatalf("unknown argument %s", arg.Key)
		}
	}
	if in := strings.TrimSpace(d.Input); in != "" {
		var err error
		if sel.Matchers, err = parser.NewParser(parser.Options{}).ParseMetricSelector(in); err != nil {
			t.Fatal(err)
		}
	}
	scan, err := new(Planner).Plan(tb.snapshot(t), sel)
	if err != nil {
		return fmt.Sprintf("error: %v\n", err)
	}
	var out strings.Builder
	for _, f := range scan.Files {
		fmt.Fprintf(&out, "read %s\n", f.Add.Path)
	}
	for _, r := range Reasons {
		if n := scan.Skipped[r]; n > 0 {
			fmt.Fprintf(&out, "skip %d by %s\n", n, r)
		}
	}
	return out.String()
}

func number(t *testing.T, s string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestFilesAscendByRank: a merge relies on the order, and on ties going to the
// greater path.
func TestFilesAscendByRank(t *testing.T) {
	tb := newTable(t, tableOptions{shards: shard.Initial()})
	file := func(path string, hi int64) action.Add {
		return action.Add{Path: path, DataChange: true, Tags: chunk.Tags{
			Order: chunk.Order{Lo: 1, Hi: hi}, Time: series.AllTime,
		}.Encode()}
	}
	snap := tb.add(t, file("c", 5), file("a", 9), file("b", 5), file("z", 10), action.Add{Path: "foreign", DataChange: true})
	scan, err := new(Planner).Plan(snap, series.Selector{Range: series.AllTime})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	var ranks []merge.Rank
	for _, f := range scan.Files {
		got = append(got, f.Add.Path)
		ranks = append(ranks, f.Rank())
	}
	if want := []string{"foreign", "b", "c", "a", "z"}; !slices.Equal(got, want) {
		t.Errorf("order = %v, want %v", got, want)
	}
	if !slices.IsSortedFunc(ranks, merge.Rank.Compare) {
		t.Errorf("ranks do not ascend: %v", ranks)
	}
	if ranks[len(ranks)-1].Compare(merge.HeadRank) >= 0 {
		t.Error("a file outranks the head")
	}
}

// TestRememberedFacts: what is remembered of a file holds as long as the log says
// the same of it, and what is remembered of the table as long as its metadata
// and shards are the same.
func TestRememberedFacts(t *testing.T) {
	tb := newTable(t, tableOptions{labels: []string{"pod"}, shards: shard.Initial()})
	file := func(pod string, order int64) action.Add {
		return action.Add{
			Path: "a", DataChange: true,
			Tags:  chunk.Tags{Order: chunk.Order{Lo: 1, Hi: order}, Time: series.AllTime, Keys: chunk.KeyRange{MinName: "m", MaxName: "m", Bounded: true}}.Encode(),
			Stats: `{"numRecords":1,"minValues":{"pod":"` + pod + `"},"maxValues":{"pod":"` + pod + `"},"nullCount":{"pod":0}}`,
		}
	}
	p := New(1 << 20)
	plan := func(snap *txlog.Snapshot, name, pod string) []File {
		t.Helper()
		scan, err := p.Plan(snap, series.Selector{Range: series.AllTime, Matchers: []*labels.Matcher{
			labels.MustNewMatcher(labels.MatchEqual, series.MetricName, name), labels.MustNewMatcher(labels.MatchEqual, "pod", pod),
		}})
		if err != nil {
			t.Fatal(err)
		}
		return scan.Files
	}
	first := tb.add(t, file("x", 1))
	if got := plan(first, "m", "x"); len(got) != 1 || got[0].Tags.Order.Hi != 1 {
		t.Errorf("the file is not found: %v", got)
	}
	if got := plan(first, "m", "y"); len(got) != 0 {
		t.Errorf("by another pod: %v", got)
	}
	gone := tb.log.Begin(nil, txlog.Operation{Name: "DELETE"})
	gone.Remove(action.Remove{Path: "a", DataChange: true})
	if _, err := gone.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	second := tb.add(t, file("y", 2))
	if got := plan(second, "m", "y"); len(got) != 1 || got[0].Tags.Order.Hi != 2 {
		t.Errorf("after its statistics changed: %v", got)
	}
	if got := plan(first, "m", "y"); len(got) != 0 {
		t.Errorf("at the version before: %v", got)
	}
	grow := tb.log.Begin(nil, txlog.Operation{Name: "WRITE"})
	grow.AddColumns(tb.layout.Grow([]string{"zone"})...)
	third, err := grow.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := plan(third, "m", "y"); len(got) != 1 {
		t.Errorf("after the schema grew: %v", got)
	}
	if _, ok := p.table.Load().layout.Column("zone"); !ok {
		t.Error("the schema of before is remembered")
	}
	if p.files.Len() != 1 {
		t.Errorf("facts of %d files are kept", p.files.Len())
	}
}

// TestTimeBoundForms: what Delta writers put into statistics, and what must
// stay unknown.
func TestTimeBoundForms(t *testing.T) {
	at := series.FromTime(time.Date(2026, 1, 2, 3, 4, 5, 678_000_000, time.UTC))
	for _, c := range []struct {
		raw  string
		want series.Timestamp
		ok   bool
	}{
		{`"2026-01-02T03:04:05.678Z"`, at, true},
		{`"2026-01-02T03:04:05.678+00:00"`, at, true},
		{`"2026-01-01T19:04:05.678-08:00"`, at, true},
		{`"2026-01-02T03:04:05.678"`, 0, false}, // no zone
		{`"2026-01-02"`, 0, false},
		{`1767323045678`, 0, false},
		{`null`, 0, false},
		{``, 0, false},
	} {
		t.Run(c.raw, func(t *testing.T) {
			got, ok := timeBound([]byte(c.raw))
			if ok != c.ok || ok && got != c.want {
				t.Errorf("timeBound(%s) = %d, %v; want %d, %v", c.raw, got, ok, c.want, c.ok)
			}
		})
	}
}
