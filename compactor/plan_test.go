package compactor

import (
	"bufio"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"pgregory.net/rapid"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/shard"
	"cardinalsin/storage/mem"
	"cardinalsin/txlog"
)

const root = "default/metrics"

var epoch = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func newLog(t testing.TB, now func() time.Time) *txlog.Log {
	t.Helper()
	log, err := txlog.Create(context.Background(), mem.New(mem.Options{Now: now}), root, txlog.CreateOptions{
		Schema: chunk.BaseSchema(), PartitionColumns: chunk.PartitionColumns(),
		Domains: map[string]string{shard.Domain: shard.Initial().Encode()},
	}, txlog.Options{Now: now})
	if err != nil {
		t.Fatal(err)
	}
	return log
}

// planned is a file as the scripts of TestPlan write it:
//
//	name order=lo-hi [level=n] [bytes=n] [shard=id] [date=day] [writer=name] [untagged] [damaged]
type planned struct {
	name, date, shard, writer string
	order                     chunk.Order
	level                     int
	bytes                     int64
	untagged, damaged         bool
}

func (p planned) add() action.Add {
	tags := chunk.Tags{Level: p.level, Order: p.order, WAL: []chunk.WALRange{{Writer: p.writer, First: 1, Last: 2}}}.Encode()
	if p.untagged {
		tags = ""
	}
	if p.damaged {
		tags = action.ObjectOf(map[string]string{chunk.TagOrder: "2-1"})
	}
	return action.Add{
		Path:            fmt.Sprintf("date=%s/shard=%s/%s.parquet", p.date, p.shard, p.name),
		PartitionValues: action.ObjectOf(map[string]string{"date": p.date, "shard": p.shard}),
		Size:            p.bytes, Tags: tags, DataChange: true,
	}
}

func parsePlanned(line string) (planned, error) {
	f := strings.Fields(line)
	p := planned{name: f[0], date: "2026-11-22", shard: "1", writer: "w", bytes: 10}
	for _, arg := range f[1:] {
		k, v, _ := strings.Cut(arg, "=")
		var err error
		switch k {
		case "order":
			_, err = fmt.Sscanf(v, "%d-%d", &p.order.Lo, &p.order.Hi)
		case "level":
			p.level, err = strconv.Atoi(v)
		case "bytes":
			p.bytes, err = strconv.ParseInt(v, 10, 64)
		case "shard":
			p.shard = v
		case "date":
			p.date = v
		case "writer":
			p.writer = v
		case "untagged":
			p.untagged = true
		case "damaged":
			p.damaged = true
		default:
			err = fmt.Errorf("no argument %q", k)
		}
		if err != nil {
			return p, err
		}
	}
	return p, nil
}

// apply commits what the jobs would, without data: one output each.
func apply(t testing.TB, log *txlog.Log, snap *txlog.Snapshot, jobs []Job) *txlog.Snapshot {
	t.Helper()
	for i, j := range jobs {
		tx := log.Begin(snap, txlog.Operation{Name: "OPTIMIZE"})
		for _, a := range j.Inputs {
			tx.Remove(a.Tombstone(false))
		}
		out := planned{
			name: fmt.Sprintf("out%d-%d", snap.Version(), i), date: j.Date.String(), shard: string(j.Shard),
			order: j.Order, level: j.Level, bytes: j.Bytes, writer: "w",
		}
		tx.Add(out.add())
		next, err := tx.Commit(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		snap = next
	}
	return snap
}

func printJobs(jobs []Job) string {
	var out strings.Builder
	for _, j := range jobs {
		fmt.Fprintf(&out, "%s: level %d, order %d-%d, %d bytes:", j.Key(), j.Level, j.Order.Lo, j.Order.Hi, j.Bytes)
		for _, a := range j.Inputs {
			name := a.Path[strings.LastIndexByte(a.Path, '/')+1:]
			out.WriteString(" " + strings.TrimSuffix(name, ".parquet"))
		}
		out.WriteByte('\n')
	}
	if len(jobs) == 0 {
		return "no jobs\n"
	}
	return out.String()
}

func policyOf(d *datadriven.TestData) (Policy, error) {
	p := Policy{TargetBytes: 100}
	for _, a := range d.CmdArgs {
		var err error
		switch a.Key {
		case "target":
			p.TargetBytes, err = strconv.ParseInt(a.Vals[0], 10, 64)
		case "min":
			p.MinInputs, err = strconv.Atoi(a.Vals[0])
		case "max":
			p.MaxInputs, err = strconv.Atoi(a.Vals[0])
		case "all":
			p.All = true
		case "exclude":
			p.Exclude = map[string]bool{"date=2026-11-22/shard=1/" + a.Vals[0] + ".parquet": true}
		default:
			err = fmt.Errorf("no option %q", a.Key)
		}
		if err != nil {
			return p, err
		}
	}
	return p, nil
}

// TestPlan runs the scripts in testdata/plan. After each plan it runs the
// jobs, as far as the log is concerned, and plans again: there must be none.
func TestPlan(t *testing.T) {
	datadriven.Walk(t, "testdata/plan", func(t *testing.T, path string) {
		var log *txlog.Log
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			switch d.Cmd {
			case "files":
				log = newLog(t, func() time.Time { return epoch })
				base := snapshot(t, log)
				tx := log.Begin(base, txlog.Operation{Name: "WRITE"})
				for lines := bufio.NewScanner(strings.NewReader(d.Input)); lines.Scan(); {
					p, err := parsePlanned(lines.Text())
					if err != nil {
						d.Fatalf(t, "%v", err)
					}
					tx.Add(p.add())
				}
				if _, err := tx.Commit(t.Context()); err != nil {
					d.Fatalf(t, "%v", err)
				}
				return "ok\n"
			case "plan":
				policy, err := policyOf(d)
				if err != nil {
					d.Fatalf(t, "%v", err)
				}
				snap := snapshot(t, log)
				jobs := Plan(snap, policy)
				scratch := newLog(t, func() time.Time { return epoch })
				after := apply(t, scratch, copySnapshot(t, scratch, snap), jobs)
				if again := Plan(after, policy); len(again) != 0 {
					t.Errorf("%s: planning again yields\n%s", d.Pos, printJobs(again))
				}
				return printJobs(jobs)
			}
			d.Fatalf(t, "no command %q", d.Cmd)
			return ""
		})
	})
}

func snapshot(t testing.TB, log *txlog.Log) *txlog.Snapshot {
	t.Helper()
	s, err := log.Snapshot(context.Background(), txlog.Latest())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// copySnapshot commits the live files of a snapshot to another table.
func copySnapshot(t testing.TB, to *txlog.Log, s *txlog.Snapshot) *txlog.Snapshot {
	t.Helper()
	tx := to.Begin(snapshot(t, to), txlog.Operation{Name: "WRITE"})
	for a := range s.Files() {
		tx.Add(*a)
	}
	out, err := tx.Commit(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestPlanProperties: whatever the files, jobs are disjoint, keep the limits,
// never leave a file with an order in between behind, and leave nothing to
// do – unless MaxInputs cut them short, and then each round leaves less.
func TestPlanProperties(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		log := newLog(t, func() time.Time { return epoch })
		base := snapshot(t, log)
		tx := log.Begin(base, txlog.Operation{Name: "WRITE"})
		n := rapid.IntRange(0, 40).Draw(rt, "files")
		next := int64(0)
		for i := range n {
			lo := max(0, next-rapid.Int64Range(-3, 3).Draw(rt, "back"))
			hi := lo + rapid.Int64Range(0, 4).Draw(rt, "span")
			next = max(next, hi)
			p := planned{
				name: fmt.Sprintf("f%02d", i), date: "2026-11-22", shard: rapid.SampledFrom([]string{"1", "10"}).Draw(rt, "shard"), writer: "w",
				order: chunk.Order{Lo: lo, Hi: hi}, level: rapid.IntRange(0, 2).Draw(rt, "level"),
				bytes: rapid.Int64Range(1, 120).Draw(rt, "bytes"), untagged: rapid.IntRange(0, 20).Draw(rt, "untagged") == 0,
			}
			tx.Add(p.add())
		}
		snap, err := tx.Commit(context.Background())
		if err != nil {
			rt.Fatal(err)
		}
		policy := Policy{
			TargetBytes: rapid.Int64Range(1, 400).Draw(rt, "target"), MinInputs: rapid.IntRange(2, 5).Draw(rt, "min"),
			MaxInputs: rapid.SampledFrom([]int{5, 12, 200}).Draw(rt, "max"), All: rapid.Bool().Draw(rt, "all"),
		}
		jobs := Plan(snap, policy)
		taken := map[string]bool{}
		for _, j := range jobs {
			if len(j.Inputs) < 2 || len(j.Inputs) > max(policy.MaxInputs, policy.MinInputs) || j.Bytes > policy.TargetBytes {
				rt.Fatalf("job breaks a limit: %s", printJobs([]Job{j}))
			}
			for _, a := range j.Inputs {
				if taken[a.Path] {
					rt.Fatalf("%s is in two jobs", a.Path)
				}
				taken[a.Path] = true
			}
			for a := range snap.Files() {
				in := slices.ContainsFunc(j.Inputs, func(b *action.Add) bool { return b.Path == a.Path })
				tags, tagged, err := chunk.ParseTags(a.Tags)
				if err != nil {
					rt.Fatal(err)
				}
				if !tagged && in {
					rt.Fatalf("%s has no tags and is an input", a.Path)
				}
				samePartition := a.PartitionValues == j.Inputs[0].PartitionValues
				if in && !samePartition {
					rt.Fatalf("%s is of another partition", a.Path)
				}
				if tagged && !in && samePartition && tags.Order.Lo <= j.Order.Hi && tags.Order.Hi >= j.Order.Lo {
					rt.Fatalf("%s, order %v, stands among the inputs of %s", a.Path, tags.Order, printJobs([]Job{j}))
				}
			}
		}
		for round := 1; len(jobs) > 0; round++ {
			cut := slices.ContainsFunc(jobs, func(j Job) bool { return 2*len(j.Inputs) > policy.MaxInputs })
			before := snap.NumFiles()
			snap = apply(t, log, snap, jobs)
			again := Plan(snap, policy)
			if len(again) > 0 && !cut || snap.NumFiles() >= before {
				rt.Fatalf("planned\n%sand then again\n%s", printJobs(jobs), printJobs(again))
			}
			jobs = again
		}
	})
}
