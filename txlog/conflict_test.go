package txlog_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/datadriven"

	"cardinalsin/action"
	"cardinalsin/shard"
	"cardinalsin/storage"
	"cardinalsin/storage/mem"
	"cardinalsin/txlog"
)

// TestConflicts is the table of log-protocol 3, a file a row of it. Each case
// lets a winner commit and then tries a transaction that was planned on the
// same version; what it says of the state is that of a process which opens the
// table afterwards.
//
//	race           a winner commits, then ours, which does not know of it yet
//	won OP | mine OP | again    (again: plan anew on the latest, once)
//
//	group          both go into one entry: the second follows the first
//	first OP | second OP
//
// An OP is what a part of the program commits, with the requirements that it
// sets (log-protocol 2):
//
//	append writer=w last=N file=F order=N [shard=S] [column=NAME:TYPE] [age=D]
//	compact in=F,F out=F [narrow] [age=D]    narrow: its rows do not fit another column "pod"
//	begin-split | progress | cutover [out=F,F]
//	retain in=F [out=F]
//	vacuum mark=N
//	column name=NAME type=TYPE [required]
//	property KEY=VALUE
//	restore version=N
//	reads in=F           (needs the file, removes nothing)
//	sequence app=A at=N  (requires nothing)
//
// Between the winner's, "waits D" lets time pass, "loses F" takes an object away.
//
// The table before: version 1 has file a (writer w at 5, order 10), 2 adds b
// (writer v at 3, order 20) and z in shard 2; both in shard 1; 3 begins a split
// of shard 1.
func TestConflicts(t *testing.T) {
	datadriven.Walk(t, "testdata/conflict", func(t *testing.T, path string) {
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			var out strings.Builder
			// The clock stands still but for what a case waits for.
			synctest.Test(t, func(t *testing.T) {
				switch d.Cmd {
				case "race":
					newContest(t, d).race(&out)
				case "group":
					newContest(t, d).group(&out)
				default:
					d.Fatalf(t, "no command %q", d.Cmd)
				}
			})
			return out.String()
		})
	})
}

// contest is one case.
type contest struct {
	t     *testing.T
	d     *datadriven.TestData
	store *gate
	log   *txlog.Log // ours
	base  *txlog.Snapshot
}

const splitDomain = "cardinal.split.1"

func newContest(t *testing.T, d *datadriven.TestData) *contest {
	t.Helper()
	c := &contest{t: t, d: d, store: &gate{Store: mem.New(mem.Options{Now: time.Now})}}
	conf := map[string]string{}
	for _, a := range d.CmdArgs {
		if a.Key == "property" {
			k, v, _ := strings.Cut(a.Vals[0], ":")
			conf[k] = v
		}
	}
	l, err := txlog.Create(t.Context(), c.store, root, txlog.CreateOptions{
		Schema: &action.Schema{Fields: []action.Field{
			{Name: "timestamp", Type: action.PrimitiveType("timestamp")},
			{Name: "date", Type: action.PrimitiveType("date"), Nullable: true},
			{Name: "shard", Type: action.PrimitiveType("string"), Nullable: true},
		}},
		PartitionColumns: []string{"date", "shard"},
		Configuration:    conf,
		Domains:          map[string]string{shard.Domain: "1,2"},
	}, txlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	c.log = l
	for _, line := range []string{
		"append writer=w last=5 file=a order=10",
		"append writer=v last=3 file=b,z:2 order=20",
		"begin-split",
	} {
		tx := c.plan(line, l)
		if c.base, err = tx.Commit(t.Context()); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
	}
	return c
}

// lines yields the operations of the case by who does them.
func (c *contest) lines(who string) []string {
	var out []string
	for line := range strings.SplitSeq(c.d.Input, "\n") {
		if rest, ok := strings.CutPrefix(line, who); ok {
			out = append(out, strings.TrimSpace(rest))
		}
	}
	if len(out) == 0 {
		c.d.Fatalf(c.t, "nobody is %q", who)
	}
	return out
}

func (c *contest) race(out *strings.Builder) {
	rival := open(c.t, c.store)
	mine := c.lines("mine")[0]
	tx := c.plan(mine, c.log)
	for _, line := range c.lines("won") {
		if sleep, ok := strings.CutPrefix(line, "waits "); ok {
			d, err := time.ParseDuration(sleep)
			if err != nil {
				c.t.Fatal(err)
			}
			time.Sleep(d)
			continue
		}
		if lost, ok := strings.CutPrefix(line, "loses "); ok {
			if err := c.store.Delete(c.t.Context(), root+"/"+lost); err != nil {
				c.t.Fatal(err)
			}
			continue
		}
		if _, err := c.plan(line, rival).Commit(c.t.Context()); err != nil {
			c.d.Fatalf(c.t, "the winner's %s: %v", line, err)
		}
	}
	won := c.latest().Version()
	s, err := tx.Commit(c.t.Context())
	fmt.Fprintf(out, "mine: %s\n", c.outcome(s, err, won))
	if strings.Contains("\n"+c.d.Input+"\n", "\nagain\n") {
		s, err := c.plan(mine, c.log).Commit(c.t.Context())
		fmt.Fprintf(out, "again: %s\n", c.outcome(s, err, won))
	}
	c.print(out)
}

func (c *contest) group(out *strings.Builder) {
	first, second := c.plan(c.lines("first")[0], c.log), c.plan(c.lines("second")[0], c.log)
	// An entry that is on its way lets the two wait for the next one.
	c.store.hold = make(chan struct{})
	type result struct {
		s   *txlog.Snapshot
		err error
	}
	start := func(tx committer) chan result {
		done := make(chan result, 1)
		go func() {
			s, err := tx.Commit(c.t.Context())
			done <- result{s, err}
		}()
		synctest.Wait()
		return done
	}
	blocker := start(c.plan("append writer=x last=1 file=x:2 order=25", c.log))
	one, two := start(first), start(second)
	close(c.store.hold)
	if r := <-blocker; r.err != nil {
		c.t.Fatal(r.err)
	}
	before := c.base.Version() + 1
	a, b := <-one, <-two
	fmt.Fprintf(out, "first: %s\n", c.outcome(a.s, a.err, before))
	fmt.Fprintf(out, "second: %s\n", c.outcome(b.s, b.err, before))
	c.print(out)
}

func (c *contest) latest() *txlog.Snapshot { return latest(c.t, open(c.t, c.store)) }

// names of the conditions, the particular before the general.
var conditions = []struct {
	is   error
	name string
}{
	{txlog.ErrFilesRemoved, "ErrFilesRemoved"},
	{txlog.ErrNewFiles, "ErrNewFiles"},
	{txlog.ErrDomainChanged, "ErrDomainChanged"},
	{txlog.ErrUploadsTooOld, "ErrUploadsTooOld"},
	{txlog.ErrSchemaConflict, "ErrSchemaConflict"},
	{txlog.ErrFenced, "ErrFenced"},
	{txlog.ErrAppendOnly, "ErrAppendOnly"},
	{txlog.ErrReadOnly, "ErrReadOnly"},
	{txlog.ErrVersionVacuumed, "ErrVersionVacuumed"},
	{txlog.ErrNotRestorable, "ErrNotRestorable"},
	{txlog.ErrConflict, "ErrConflict"},
	{txlog.ErrUnsupported, "ErrUnsupported"},
	{action.ErrCorrupt, "ErrCorrupt"},
}

// outcome prints how a commit ended that was tried after version won.
func (c *contest) outcome(s *txlog.Snapshot, err error, won action.Version) string {
	if err == nil {
		return fmt.Sprintf("version %d, %d after the winner's", s.Version(), s.Version()-won)
	}
	for _, k := range conditions {
		if errors.Is(err, k.is) {
			after := "terminal"
			if errors.Is(err, txlog.ErrConflict) {
				after = "plan anew"
			}
			return k.name + ", " + after
		}
	}
	c.t.Fatalf("untyped error: %v", err)
	return ""
}

// print says what a process finds that opens the table now.
func (c *contest) print(out *strings.Builder) {
	s := c.latest()
	var files, txns, columns []string
	for a := range s.Files() {
		id, _ := a.PartitionValues.Get("shard")
		files = append(files, a.Path+":"+id)
	}
	for t := range s.Transactions() {
		txns = append(txns, fmt.Sprintf("%s=%d", t.AppID, t.Version))
	}
	fmt.Fprintf(out, "files %s\ntxns %s\n", strings.Join(files, " "), strings.Join(txns, " "))
	for d, conf := range s.Domains() {
		fmt.Fprintf(out, "%s %s\n", d, conf)
	}
	for _, f := range s.Schema().Fields[3:] {
		columns = append(columns, f.Name+":"+strings.Trim(string(f.Type), `"`))
	}
	if len(columns) > 0 {
		fmt.Fprintf(out, "columns %s\n", strings.Join(columns, " "))
	}
}

// committer is a transaction or a restore.
type committer interface {
	Commit(context.Context) (*txlog.Snapshot, error)
}

// arguments of an operation.
type arguments map[string]string

func (a arguments) list(key string) []string {
	if a[key] == "" {
		return nil
	}
	return strings.Split(a[key], ",")
}

func (a arguments) number(t *testing.T, key string) int64 {
	n, err := strconv.ParseInt(a[key], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// tagsOf are the tags of the files here: "order lo hi writers…".
func tagsOf(lo, hi int64, writers ...string) action.Object {
	return action.ObjectOf(map[string]string{"lo": strconv.FormatInt(lo, 10), "hi": strconv.FormatInt(hi, 10), "writers": strings.Join(writers, " ")})
}

func orderOf(t *testing.T, a *action.Add) (lo, hi int64, writers []string) {
	m, err := a.Tags.Map()
	if err != nil || m["lo"] == nil {
		t.Fatalf("tags of %s: %v", a.Path, err)
	}
	args := arguments{"lo": *m["lo"], "hi": *m["hi"]}
	return args.number(t, "lo"), args.number(t, "hi"), strings.Fields(*m["writers"])
}

// plan builds an operation on the latest version that l knows of, as whoever
// commits it would.
func (c *contest) plan(line string, l *txlog.Log) committer {
	t := c.t
	fields := strings.Fields(line)
	args := arguments{}
	for _, f := range fields[1:] {
		k, v, _ := strings.Cut(f, "=")
		args[k] = v
	}
	base := latest(t, l)
	if fields[0] == "restore" {
		r, err := l.PlanRestore(t.Context(), action.Version(args.number(t, "version")))
		if err != nil {
			return failed{err}
		}
		return r
	}
	tx := l.Begin(base, txlog.Operation{Name: strings.ToUpper(fields[0])})
	shardMap, _ := base.Domain(shard.Domain)
	began := l.Now()
	put := func(name string, dataChange bool, tags action.Object) {
		path, id, ok := strings.Cut(name, ":")
		if !ok {
			id = "1"
		}
		if !slices.Contains(strings.Split(shardMap, ","), id) && fields[0] == "append" {
			id += "0" // routed by the map of the base
		}
		if _, err := c.store.Put(t.Context(), root+"/"+path, bytes.NewReader(make([]byte, 10))); err != nil {
			t.Fatal(err)
		}
		tx.Add(action.Add{
			Path: path, Size: 10, DataChange: dataChange, Tags: tags,
			PartitionValues: action.ObjectOf(map[string]string{"date": "2026-11-22", "shard": id}),
		})
	}
	file := func(path string) *action.Add {
		a, ok := base.File(action.Key{Path: path})
		if !ok {
			c.d.Fatalf(t, "%s: %s is not live", line, path)
		}
		return a
	}
	switch fields[0] {
	case "append":
		app := "cardinal/writer/" + args["writer"]
		order := args.number(t, "order")
		for _, f := range args.list("file") {
			put(f, true, tagsOf(order, order, args["writer"]))
		}
		if col, typ, ok := strings.Cut(args["column"], ":"); ok {
			tx.AddColumns(action.Field{Name: col, Type: action.PrimitiveType(typ), Nullable: true})
		}
		at, _ := base.Transaction(app)
		tx.SetTransaction(app, args.number(t, "last"))
		tx.Require(
			txlog.TransactionAt(app, at.Version), txlog.DomainUnchanged(shard.Domain),
			txlog.UploadedSince(began, time.Hour),
			txlog.NoNewFiles(func(a *action.Add) bool {
				_, hi, writers := orderOf(t, a)
				return slices.Contains(writers, args["writer"]) && hi >= order
			}))
	case "compact":
		lo, hi := int64(1<<62), int64(0)
		var writers []string
		for _, p := range args.list("in") {
			l, h, w := orderOf(t, file(p))
			lo, hi, writers = min(lo, l), max(hi, h), append(writers, w...)
			tx.Remove(file(p).Tombstone(false))
		}
		put(args["out"], false, tagsOf(lo, hi, writers...))
		_, narrow := args["narrow"]
		tx.Require(
			txlog.UploadedSince(began, time.Hour),
			txlog.SchemaAllows(func(s *action.Schema) bool { return !narrow || s.Field("pod") == nil }),
			txlog.NoNewFiles(func(a *action.Add) bool {
				l, h, _ := orderOf(t, a)
				id, _ := a.PartitionValues.Get("shard")
				return id == "1" && l <= hi && h >= lo
			}))
	case "begin-split":
		tx.SetDomain(splitDomain, "backfilling")
		tx.Require(txlog.DomainUnchanged(splitDomain), txlog.DomainUnchanged(shard.Domain))
	case "progress":
		tx.SetDomain(splitDomain, "backfilling, more done")
		tx.Require(txlog.DomainUnchanged(splitDomain))
	case "cutover":
		parents := func(a *action.Add) bool {
			id, _ := a.PartitionValues.Get("shard")
			return id == "1"
		}
		for a := range base.Files() {
			if parents(a) {
				tx.Remove(a.Tombstone(false))
				lo, hi, writers := orderOf(t, a)
				put(a.Path+"0:10", false, tagsOf(lo, hi, writers...))
				put(a.Path+"1:11", false, tagsOf(lo, hi, writers...))
			}
		}
		tx.SetDomain(shard.Domain, "10,11,2")
		tx.RemoveDomain(splitDomain)
		tx.Require(
			txlog.DomainUnchanged(splitDomain), txlog.DomainUnchanged(shard.Domain),
			txlog.NoNewFiles(parents), txlog.UploadedSince(began, time.Hour))
	case "retain":
		for _, p := range args.list("in") {
			tx.Remove(file(p).Tombstone(true))
		}
		for _, p := range args.list("out") {
			lo, hi, writers := orderOf(t, file(args.list("in")[0]))
			put(p, true, tagsOf(lo, hi, writers...))
		}
	case "reads":
		for _, p := range args.list("in") {
			tx.Require(txlog.FilesLive(file(p).Key()))
		}
		tx.SetDomain("read", "done")
	case "sequence":
		tx.SetTransaction(args["app"], args.number(t, "at"))
	case "vacuum":
		tx.SetDomain(txlog.WatermarkDomain, txlog.EncodeWatermark(action.Version(args.number(t, "mark"))))
		tx.Require(txlog.DomainUnchanged(txlog.WatermarkDomain))
	case "column":
		_, required := args["required"]
		tx.AddColumns(action.Field{Name: args["name"], Type: action.PrimitiveType(args["type"]), Nullable: !required})
	default:
		c.d.Fatalf(t, "no operation %q", fields[0])
	}
	return tx
}

// failed is an operation that could not be planned.
type failed struct{ err error }

func (f failed) Commit(context.Context) (*txlog.Snapshot, error) { return nil, f.err }

// gate is a store that lets a conditional put wait.
type gate struct {
	storage.Store
	hold chan struct{} // closed: go on
}

func (g *gate) PutIfAbsent(ctx context.Context, key string, data []byte) (storage.ObjectInfo, error) {
	if g.hold != nil {
		<-g.hold
	}
	return g.Store.PutIfAbsent(ctx, key, data)
}
