package vacuum

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/google/go-cmp/cmp"

	"cardinalsin/action"
	"cardinalsin/storage"
	"cardinalsin/storage/fault"
	"cardinalsin/storage/mem"
	"cardinalsin/storage/meter"
	"cardinalsin/txlog"
)

// used is a table with something of every kind to delete: removed files, an
// orphan, log objects below a checkpoint, an expired pin. Also what must stay:
// live files, a file that came back, a young upload, a living pin's files.
func used(t testing.TB) *table {
	t.Helper()
	tab := newTable(t)
	tab.write(t, "a", "b", "c")
	tab.upload(t, "orphan")
	tab.remove(t, "a")
	if _, err := tab.log.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	tab.remove(t, "b")
	tab.clock.tick(25 * time.Hour)
	tab.run(t, short(Options{Retain: NoRetention})) // settles, so that the log may be trimmed
	tab.upload(t, "a", "b")                         // as a crash left them
	tab.commit(t, "RESTORE", []string{"a"}, nil)
	tab.write(t, "d", "e")
	tab.remove(t, "d")
	// Old enough, but beyond what is settled: the log is not trimmed to it
	// before the run that settles more has finished.
	if _, err := tab.log.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	putPin(t, tab.store, "expired", 1)
	tab.clock.tick(25 * time.Hour)
	pinned := tab.write(t, "f")
	putPin(t, tab.store, "living", pinned)
	tab.remove(t, "f")
	tab.upload(t, "young")
	return tab
}

var everything = short(Options{Retain: NoRetention, Full: true, Parallel: 1})

func TestExecute(t *testing.T) {
	tab := used(t)
	r := tab.run(t, everything)
	// b was left by a crash of the run that settled it: no removal leads to
	// it any more, but a full run finds it, as old as it is.
	want := Report{Start: 11, End: 12, Earliest: 9, Reached: 9, Files: 1, Orphans: 2, LogObjects: 2, PinsRevoked: 1, Bytes: r.Bytes, Duration: r.Duration}
	if d := cmp.Diff(want, r); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"a", "c", "e", "f", "young"}, data(t, tab.store)); d != "" {
		t.Error(d)
	}
	log := keys(t, tab.store, "_delta_log")
	if log[0] != "_delta_log/00000000000000000002.checkpoint.parquet" {
		t.Errorf("the log begins with %s", log[0])
	}
	reopen(t, tab.store)
}

// reopen loads the table from nothing and reads every file of the latest
// version, which must be there.
func reopen(t testing.TB, store storage.Store) *txlog.Snapshot {
	t.Helper()
	log, err := txlog.Open(t.Context(), store, root, txlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s, err := log.Snapshot(t.Context(), txlog.Latest())
	if err != nil {
		t.Fatal(err)
	}
	for a := range s.Files() {
		if _, _, err := store.Get(t.Context(), root+"/"+a.Path); err != nil {
			t.Errorf("live file: %v", err)
		}
	}
	return s
}

// A printed plan is a preview: it writes nothing, and deletes nothing.
func TestDryRunOnlyReads(t *testing.T) {
	tab := used(t)
	before := snapshotBytes(t, tab.store)
	m := meter.New(tab.store, meter.Options{})
	log, err := txlog.Open(t.Context(), m, root, txlog.Options{Now: tab.clock.now})
	if err != nil {
		t.Fatal(err)
	}
	p, err := NewPlan(t.Context(), log, everything)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Files) == 0 || len(p.Orphans) == 0 || len(p.LogObjects) == 0 {
		t.Errorf("the plan lacks something: %+v", p)
	}
	for op, n := range m.Snapshot() {
		if op.Writes() {
			t.Errorf("%s: %d calls", op, n.Calls)
		}
	}
	if d := cmp.Diff(before, snapshotBytes(t, tab.store)); d != "" {
		t.Error(d)
	}
}

// TestTrace pins the sequence of store calls: their order is what the proof of
// log-protocol 6 rests on, and their number is the cost.
func TestTrace(t *testing.T) {
	datadriven.RunTest(t, "testdata/trace/vacuum", func(t *testing.T, d *datadriven.TestData) string {
		var tab *table
		opts := everything
		switch d.CmdArgs[0].Key {
		case "full":
			tab = used(t)
		case "incremental", "dry":
			// 100 versions since the last run, two removed files among them.
			tab = newTable(t)
			tab.write(t, "old")
			tab.remove(t, "old")
			tab.clock.tick(25 * time.Hour)
			tab.run(t, short(Options{Retain: NoRetention}))
			tab.write(t, "a", "b")
			tab.remove(t, "a")
			for i := range 94 {
				tab.write(t, fmt.Sprintf("x%02d", i))
			}
			tab.remove(t, "b")
			tab.clock.tick(time.Hour)
			opts.Full = false
		default:
			d.Fatalf(t, "no case %q", d.CmdArgs[0].Key)
		}
		trace := &meter.Trace{}
		m := meter.New(tab.store, meter.Options{OnCall: trace.Record})
		log, err := txlog.Open(t.Context(), m, root, txlog.Options{Now: tab.clock.now})
		if err != nil {
			t.Fatal(err)
		}
		trace.Take()
		plan := &Plan{log: log, opts: opts, rules: theRules()}
		plan.opts.EnsureDefaults()
		if d.CmdArgs[0].Key == "dry" {
			err = plan.preview(t.Context())
		} else {
			_, err = plan.Execute(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		return folded(trace.Take())
	})
}

// folded joins neighbouring lines that differ only in a version number, and
// hides what is random in names.
func folded(trace string) string {
	var out []string
	var first, last string
	n := 0
	flush := func() {
		if n > 2 {
			out = append(out, fmt.Sprintf("%s … %s (%d calls)", first, last, n))
		} else {
			out = append(out, []string{first, last}[2-n:]...)
		}
		n = 0
	}
	for line := range strings.Lines(trace) {
		line = strings.TrimSuffix(strings.ReplaceAll(line, root+"/", ""), "\n")
		if n > 0 && shape(line) != shape(last) {
			flush()
		}
		if n == 0 {
			first = line
		}
		last = line
		n++
	}
	flush()
	return strings.Join(out, "\n") + "\n"
}

func shape(line string) string {
	return strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' {
			return '#'
		}
		return r
	}, line)
}

// Whatever call of a run fails, and however – or whenever its process is
// killed – nothing is lost meanwhile, and the next runs end where undisturbed
// ones do: what has to be deleted is known from the log alone.
func TestNextRunFinishes(t *testing.T) {
	tab := used(t)
	quiet := copyTable(t, tab)
	quiet.run(t, everything)
	quiet.run(t, everything)
	want := kept(t, quiet.store)
	for _, mode := range fault.Modes {
		t.Run(mode.String(), func(t *testing.T) {
			for i := 0; ; i++ {
				if failOnce(t, tab, i, mode, want) {
					continue
				}
				if i < 30 {
					t.Errorf("only %d calls", i)
				}
				break
			}
		})
	}
}

// failOnce runs vacuum on a copy of the table with one call failing, and then
// twice without. It reports whether there was such a call.
func failOnce(t *testing.T, tab *table, i int, mode fault.Mode, want []string) (fired bool) {
	c := copyTable(t, tab)
	f := fault.New(c.store)
	log, err := txlog.Open(t.Context(), f, root, txlog.Options{Now: c.clock.now})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	crash := fault.Fault{Skip: i, Mode: mode}
	if mode == fault.CrashBefore || mode == fault.CrashAfter {
		crash.OnReturn = func(context.Context, fault.Call, error) { cancel() } // nobody waits on in a dead process
	}
	f.Inject(crash)
	p := &Plan{log: log, opts: everything, rules: theRules()}
	p.opts.EnsureDefaults()
	_, err = p.Execute(ctx)
	if f.Fired() == 0 {
		if err != nil {
			t.Fatalf("no call failed, and the run did: %v", err)
		}
		return false
	}
	f.Land(t.Context())
	reopen(t, c.store)
	if c.log, err = txlog.Open(t.Context(), c.store, root, txlog.Options{Now: c.clock.now}); err != nil {
		t.Fatal(err)
	}
	c.run(t, everything)
	c.run(t, everything)
	reopen(t, c.store)
	if d := cmp.Diff(want, kept(t, c.store)); d != "" {
		t.Fatalf("call %d: %s", i, d)
	}
	return true
}

// kept is what is there, less commits of vacuum's own, of which a disturbed
// run needs more.
func kept(t testing.TB, store storage.Store) []string {
	out := []string{}
	for _, k := range keys(t, store, "") {
		if v, ok := parseLogName(k); !ok || v <= 10 {
			out = append(out, k)
		}
	}
	return out
}

// copyTable returns the same table in a store of its own, with the same
// modification times.
func copyTable(t testing.TB, tab *table) *table {
	t.Helper()
	now := tab.clock.now()
	c := &table{clock: newClock()}
	store := mem.New(mem.Options{Now: c.clock.now})
	objs, err := storage.Collect(tab.store.List(t.Context(), "", ""))
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(objs, func(a, b storage.ObjectInfo) int { return a.ModTime.Compare(b.ModTime) })
	for _, o := range objs {
		b, _, err := tab.store.Get(t.Context(), o.Key)
		if err != nil {
			t.Fatal(err)
		}
		c.clock.set(o.ModTime)
		if _, err := store.PutIfAbsent(t.Context(), o.Key, b); err != nil {
			t.Fatal(err)
		}
	}
	c.clock.set(now)
	c.store = store
	if c.log, err = txlog.Open(t.Context(), store, root, txlog.Options{Now: c.clock.now}); err != nil {
		t.Fatal(err)
	}
	return c
}

// A damaged checkpoint is not what the log is trimmed to: the one before it
// is, or nothing.
func TestLogIsTrimmedToASoundCheckpoint(t *testing.T) {
	build := func(t *testing.T) *table {
		tab := newTable(t)
		for i := range 4 {
			tab.write(t, fmt.Sprint(i))
			if i%2 == 1 {
				if _, err := tab.log.Checkpoint(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		}
		tab.clock.tick(25 * time.Hour)
		tab.run(t, short(Options{Retain: NoRetention}))
		return tab
	}
	damage := func(t *testing.T, tab *table, v action.Version) {
		key := fmt.Sprintf("%s/_delta_log/%s.checkpoint.parquet", root, v)
		b, info, err := tab.store.Get(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		b = b[:len(b)/2]
		now := tab.clock.now()
		tab.clock.set(info.ModTime)
		if _, err := tab.store.PutIfMatch(t.Context(), key, b, info.ETag); err != nil {
			t.Fatal(err)
		}
		tab.clock.set(now)
	}
	for _, tc := range []struct {
		damaged []action.Version
		first   action.Version // that is kept
	}{
		{nil, 4},
		{[]action.Version{4}, 2},
		{[]action.Version{2, 4}, 0},
	} {
		t.Run(fmt.Sprint(tc.damaged), func(t *testing.T) {
			tab := build(t)
			for _, v := range tc.damaged {
				damage(t, tab, v)
			}
			r := tab.run(t, short(Options{Retain: NoRetention}))
			v, ok := parseLogName(keys(t, tab.store, "_delta_log")[0])
			if !ok || v != tc.first {
				t.Errorf("the log begins at %d, want %d; %v", v, tc.first, r)
			}
			reopen(t, tab.store)
		})
	}
}

// A file that a later version took up again is live: without the look at
// later commits a run would delete it.
func TestMutantReaddBlind(t *testing.T) {
	build := func(t *testing.T) *table {
		tab := newTable(t)
		tab.write(t, "a")
		removed := tab.remove(t, "a")
		tab.commit(t, "RESTORE", []string{"a"}, nil)
		tab.remove(t, "a") // so that it is no longer live, but is in version 3
		putPin(t, tab.store, "reader", removed)
		tab.clock.tick(time.Minute)
		return tab
	}
	for name, blind := range map[string]bool{"rule": false, "mutant": true} {
		t.Run(name, func(t *testing.T) {
			tab := build(t)
			// Without the tombstone in memory, as after a load from a
			// checkpoint that has dropped it.
			p := &Plan{log: tab.log, opts: short(Options{Retain: NoRetention, Full: true}), rules: theRules()}
			p.opts.EnsureDefaults()
			p.rules.readdBlind = blind
			if _, err := p.Execute(t.Context()); err != nil {
				t.Fatal(err)
			}
			if lost := len(data(t, tab.store)) == 0; lost != blind {
				t.Errorf("the file is lost: %v", lost)
			}
		})
	}
}

// A split's progress may name files that no version does yet: nobody looks for
// orphans until it is over.
func TestNoOrphansDuringASplit(t *testing.T) {
	tab := newTable(t)
	tab.upload(t, "child")
	tab.clock.tick(48 * time.Hour)
	base, err := tab.log.Snapshot(t.Context(), txlog.Latest())
	if err != nil {
		t.Fatal(err)
	}
	tx := tab.log.Begin(base, txlog.Operation{Name: "SPLIT"})
	tx.SetDomain("cardinal.split.1", `{}`)
	if _, err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := tab.run(t, everything); r.Orphans != 0 {
		t.Errorf("deleted %d", r.Orphans)
	}
}

// Whatever a log entry names, vacuum deletes nothing that is hidden or outside
// the table.
func TestRefusesToDeleteHiddenNames(t *testing.T) {
	for _, path := range []string{"_delta_log/00000000000000000000.json", "date=1/_x/a.parquet", "../other/a.parquet", "s3://bucket/a.parquet", "%5Fdelta_log/x"} {
		t.Run(path, func(t *testing.T) {
			tab := newTable(t)
			base, err := tab.log.Snapshot(t.Context(), txlog.Latest())
			if err != nil {
				t.Fatal(err)
			}
			a := addOf("x")
			a.Path = path
			tx := tab.log.Begin(base, txlog.Operation{Name: "WRITE"})
			tx.Add(a)
			if base, err = tx.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			tx = tab.log.Begin(base, txlog.Operation{Name: "DELETE"})
			tx.Remove(a.Tombstone(true))
			if _, err := tx.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			tab.clock.tick(time.Hour)
			before := len(keys(t, tab.store, ""))
			_, err = tab.plan2(t, short(Options{Retain: NoRetention}))
			if !errors.Is(err, action.ErrCorrupt) && !errors.Is(err, txlog.ErrUnsupported) {
				t.Errorf("got %v", err)
			}
			if n := len(keys(t, tab.store, "")); n != before {
				t.Errorf("%d objects are gone", before-n)
			}
		})
	}
}

func (tab *table) plan2(t testing.TB, opts Options) (*Plan, error) {
	return NewPlan(t.Context(), tab.log, opts)
}

// A run that is overtaken by another that trims the log it reads says so.
func TestSuperseded(t *testing.T) {
	tab := newTable(t)
	tab.write(t, "a")
	tab.remove(t, "a")
	if _, err := tab.log.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	tab.clock.tick(25 * time.Hour)
	f := fault.New(tab.store)
	log, err := txlog.Open(t.Context(), f, root, txlog.Options{Now: tab.clock.now})
	if err != nil {
		t.Fatal(err)
	}
	slow, err := NewPlan(t.Context(), log, short(Options{Retain: NoRetention, Parallel: 1}))
	if err != nil {
		t.Fatal(err)
	}
	// After its start commit, when it lists the pins, others run twice.
	f.Inject(fault.Fault{Op: storage.OpList, Key: "*/_cardinal/pins/", OnCall: func(context.Context, fault.Call) {
		tab.run(t, short(Options{Retain: NoRetention}))
		tab.run(t, short(Options{Retain: NoRetention}))
	}})
	r, err := slow.Execute(t.Context())
	if !errors.Is(err, ErrSuperseded) || !errors.Is(err, txlog.ErrConflict) {
		t.Fatalf("got %v", err)
	}
	if r.Start < 0 || r.End >= 0 {
		t.Errorf("got %+v", r)
	}
	reopen(t, tab.store)
}

// The watermark never goes back: a start that was planned before another run
// raised it plans anew. Else a version could be opened whose files are gone.
func TestMutantWatermarkBlind(t *testing.T) {
	for name, blind := range map[string]bool{"rule": false, "mutant": true} {
		t.Run(name, func(t *testing.T) {
			tab := newTable(t)
			tab.write(t, "a")
			f := fault.New(tab.store)
			log, err := txlog.Open(t.Context(), f, root, txlog.Options{Now: tab.clock.now})
			if err != nil {
				t.Fatal(err)
			}
			p := &Plan{log: log, opts: short(Options{Retain: NoRetention}), rules: theRules()}
			p.opts.EnsureDefaults()
			p.rules.markBlind = blind
			f.Inject(fault.Fault{Op: storage.OpPutIfAbsent, OnCall: func(context.Context, fault.Call) {
				tab.remove(t, "a")
				tab.clock.tick(time.Hour)
				tab.run(t, short(Options{Retain: NoRetention}))
			}})
			if _, err := p.Execute(t.Context()); err != nil {
				t.Fatal(err)
			}
			mark, err := reopen(t, tab.store).Watermark()
			if err != nil {
				t.Fatal(err)
			}
			if back := mark < 2; back != blind {
				t.Errorf("the watermark is %d; version 1 is not whole", mark)
			}
		})
	}
}

// A run that ends after another which came further does not take that back:
// the log is trimmed by what has been recorded.
func TestEndNeverGoesBack(t *testing.T) {
	tab := newTable(t)
	tab.write(t, "a")
	tab.remove(t, "a")
	tab.clock.tick(time.Hour)
	f := fault.New(tab.store)
	log, err := txlog.Open(t.Context(), f, root, txlog.Options{Now: tab.clock.now})
	if err != nil {
		t.Fatal(err)
	}
	slow, err := NewPlan(t.Context(), log, short(Options{Retain: NoRetention, Parallel: 1}))
	if err != nil {
		t.Fatal(err)
	}
	var other Report
	f.Inject(fault.Fault{Op: storage.OpDelete, OnCall: func(context.Context, fault.Call) {
		tab.write(t, "b")
		tab.clock.tick(time.Hour)
		other = tab.run(t, short(Options{Retain: NoRetention}))
	}})
	r, err := slow.Execute(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if other.Reached <= r.Reached {
		t.Fatalf("the other run reached %d, this one %d", other.Reached, r.Reached)
	}
	through, _, err := reopen(t, tab.store).Vacuumed()
	if err != nil || through != other.Reached {
		t.Errorf("settled at %d, want %d; %v", through, other.Reached, err)
	}
}

// A commit that is missing for no good reason is corruption, and nothing is
// deleted.
func TestMissingCommitIsCorruption(t *testing.T) {
	tab := newTable(t)
	tab.write(t, "a")
	v := tab.remove(t, "a")
	tab.clock.tick(time.Hour)
	if err := tab.store.Delete(t.Context(), tab.log.CommitKey(v)); err != nil {
		t.Fatal(err)
	}
	if _, err := tab.plan2(t, short(Options{Retain: NoRetention})); !errors.Is(err, action.ErrCorrupt) {
		t.Fatalf("got %v", err)
	}
	if d := cmp.Diff([]string{"a"}, data(t, tab.store)); d != "" {
		t.Error(d)
	}
}

// A table that another engine made is not vacuumed.
func TestForeignTable(t *testing.T) {
	store := mem.New(mem.Options{})
	entry := `{"protocol":{"minReaderVersion":1,"minWriterVersion":2}}
{"metaData":{"id":"x","format":{"provider":"parquet","options":{}},"schemaString":"{\"type\":\"struct\",\"fields\":[]}","partitionColumns":[],"configuration":{}}}
`
	if _, err := store.PutIfAbsent(t.Context(), root+"/_delta_log/00000000000000000000.json", []byte(entry)); err != nil {
		t.Fatal(err)
	}
	log, err := txlog.Open(t.Context(), store, root, txlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	p, err := NewPlan(t.Context(), log, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Execute(t.Context()); !errors.Is(err, txlog.ErrReadOnly) {
		t.Fatalf("got %v", err)
	}
}

func TestMargins(t *testing.T) {
	tab := newTable(t)
	for name, opts := range map[string]Options{
		"retention": {Retain: time.Minute},
		"nothing":   {Retain: NoRetention},
		"orphans":   {Margins: Margins{OrphanAge: time.Hour}},
		"log":       {Margins: Margins{LogAge: time.Hour}},
		"margin":    {Retain: time.Minute, Margins: Margins{Retain: time.Second}},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := tab.plan2(t, opts); !errors.Is(err, ErrMarginTooSmall) {
				t.Errorf("got %v", err)
			}
			if _, err := tab.plan2(t, short(opts)); err != nil {
				t.Error(err)
			}
		})
	}
}

// The event and the end's metrics tell what was done.
func TestEndTells(t *testing.T) {
	tab := used(t)
	var seen []Report
	opts := everything
	opts.Events.VacuumEnd = func(r Report, err error) {
		if err != nil {
			t.Error(err)
		}
		seen = append(seen, r)
	}
	r := tab.run(t, opts)
	if d := cmp.Diff([]Report{r}, seen); d != "" {
		t.Error(d)
	}
	c, err := tab.log.Commit(t.Context(), r.End)
	if err != nil {
		t.Fatal(err)
	}
	for k := range maps.Keys(c.Info.OperationMetrics) {
		if strings.HasPrefix(k, "numAdded") || strings.HasPrefix(k, "numRemoved") {
			delete(c.Info.OperationMetrics, k)
		}
	}
	want := map[string]string{"numDeletedFiles": "1", "numDeletedOrphans": "2", "numDeletedSegments": "0", "numDeletedLogObjects": "2", "numDeletedBytes": fmt.Sprint(r.Bytes), "numRevokedPins": "1"}
	if d := cmp.Diff(want, c.Info.OperationMetrics); d != "" {
		t.Error(d)
	}
}
