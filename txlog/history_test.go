//go:build unix

package txlog_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	gocmp "github.com/google/go-cmp/cmp"

	"cardinalsin/action"
	"cardinalsin/storage"
	"cardinalsin/txlog"
)

// operation is an invocation with its outcome; one that was never reported is
// of unknown outcome.
type operation struct {
	event // the invocation, with the outcome's findings
	end   int64
	lane  int
	// inLog and grouped are what the log says: the version that holds it, -1
	// for none, and whether others share it.
	inLog   int64
	grouped bool
}

type history struct {
	first int64 // version after the set-up
	ops   map[string]*operation
}

// newHistory pairs the events of the workers.
func newHistory(t *testing.T, outputs [][]event, first *txlog.Snapshot) *history {
	h := &history{first: int64(first.Version()), ops: map[string]*operation{}}
	for worker, events := range outputs {
		if len(events) == 0 {
			t.Errorf("worker %d recorded nothing", worker)
		}
		for _, e := range events {
			o, ok := h.ops[e.ID]
			switch {
			case e.Kind == "upkeep":
				t.Errorf("%s: %s", e.ID, e.Error)
			case !ok && e.Outcome == "":
				h.ops[e.ID] = &operation{event: e, end: math.MaxInt64, lane: worker, inLog: -1}
			case ok && o.Outcome == "" && e.Outcome != "":
				at := o.At
				o.event, o.end = e, e.At
				o.At = at
			default:
				t.Errorf("worker %d recorded %+v out of turn", worker, e)
			}
		}
	}
	for _, o := range h.ops {
		switch o.Outcome {
		case "":
			o.Outcome = unknown // its process was killed
		case untyped:
			t.Errorf("%s %s: an error of no type: %s", o.Kind, o.ID, o.Error)
		}
		if o.Outcome == unknown {
			o.end = math.MaxInt64
		}
	}
	return h
}

func (h *history) outcomes() map[string]int {
	n := map[string]int{}
	for _, o := range h.ops {
		n[o.Kind+" "+o.Outcome]++
	}
	return n
}

func (h *history) sorted() []*operation {
	return slices.SortedFunc(maps.Values(h.ops), func(a, b *operation) int { return strings.Compare(a.ID, b.ID) })
}

// checkLog reads every commit: versions are contiguous and their timestamps
// ascend; every transaction is in one of them if it was reported so, in none
// if it failed, and in at most one otherwise. What they add up to is what a
// process that opens the table finds.
func (h *history) checkLog(t *testing.T, store storage.Store) {
	t.Helper()
	l := open(t, store)
	head := latest(t, l)
	var commits []action.Version
	for o, err := range store.List(t.Context(), l.Dir()+"/", "") {
		if err != nil {
			t.Fatal(err)
		}
		name, isCommit := strings.CutSuffix(strings.TrimPrefix(o.Key, l.Dir()+"/"), ".json")
		if v, ok := action.ParseVersion(name); isCommit && ok {
			commits = append(commits, v)
		}
	}
	for i, v := range commits {
		if v != action.Version(i) {
			t.Fatalf("the log has versions %v", commits)
		}
	}
	if len(commits) != int(head.Version())+1 {
		t.Errorf("the log has %d versions, the latest is %d", len(commits), head.Version())
	}
	count, last := register{}, int64(math.MinInt64)
	sequence, live := map[string]int64{}, map[string]bool{}
	for v := range commits {
		c, err := l.Commit(t.Context(), action.Version(v))
		if err != nil {
			t.Fatal(err)
		}
		ict, ok := c.InCommitTimestamp()
		if !ok || ict <= last {
			t.Errorf("version %d has the timestamp %d, after %d", v, ict, last)
		}
		last = ict
		var ids []string
		for _, r := range c.Removes {
			if !live[r.Path] {
				t.Errorf("version %d removes %s, which is not live", v, r.Path)
			}
			delete(live, r.Path)
		}
		for _, a := range c.Adds {
			if live[a.Path] {
				t.Errorf("version %d adds %s, which is live", v, a.Path)
			}
			live[a.Path] = true
			ids = append(ids, filepath.Base(a.Path))
		}
		for _, x := range c.Txns {
			if x.Version != sequence[x.AppID]+1 {
				t.Errorf("version %d moves %s from %d to %d", v, x.AppID, sequence[x.AppID], x.Version)
			}
			sequence[x.AppID] = x.Version
		}
		for _, d := range c.Domains {
			if d.Domain != registerDomain || int64(v) <= h.first {
				continue
			}
			was := count.Value
			if err := json.Unmarshal([]byte(d.Configuration), &count); err != nil || count.Value != was+1 {
				t.Errorf("version %d moves the register from %d to %s, %v", v, was, d.Configuration, err)
			}
			ids = append(ids, count.By)
		}
		if int64(v) > h.first {
			h.found(t, int64(v), ids)
		}
	}
	for _, o := range h.sorted() {
		switch {
		case o.Kind == "read":
		case o.Outcome == committed && o.inLog != o.Version:
			t.Errorf("%s %s is in version %d (-1: none), reported in %d", o.Kind, o.ID, o.inLog, o.Version)
		case (o.Outcome == notDone || o.Outcome == conflict) && o.inLog >= 0:
			t.Errorf("%s %s is in version %d, reported: %s", o.Kind, o.ID, o.inLog, o.Error)
		}
	}
	if diff := gocmp.Diff(slices.Sorted(maps.Keys(live)), paths(head)); diff != "" {
		t.Errorf("files by all commits, and as opened (-want +got):\n%s", diff)
	}
	if r, err := registerOf(head); err != nil || r != count {
		t.Errorf("the register is %+v, %v, by all commits %+v", r, err, count)
	}
}

// found notes which operations a version holds.
func (h *history) found(t *testing.T, v int64, ids []string) {
	t.Helper()
	if len(ids) == 0 {
		t.Errorf("version %d holds nothing of ours", v)
	}
	for _, id := range ids {
		o, ok := h.ops[id]
		switch {
		case !ok:
			t.Errorf("version %d holds %s, which nobody did", v, id)
		case o.inLog >= 0:
			t.Errorf("%s %s is in the versions %d and %d", o.Kind, id, o.inLog, v)
		default:
			o.inLog, o.grouped = v, len(ids) > 1
		}
	}
}

// checkConflicts: an increment may conflict only with another on the same
// register, that began before it was told so. (The model could say that too,
// but what changes no state and fits nearly everywhere makes the search long.)
func (h *history) checkConflicts(t *testing.T) {
	t.Helper()
	moved := map[int64]int64{} // register to when its increment was invoked
	for _, o := range h.ops {
		if o.Kind == "increment" && o.inLog >= 0 {
			moved[o.Base] = o.At
		}
	}
	for _, o := range h.sorted() {
		if o.Kind != "increment" || o.Outcome != conflict {
			continue
		}
		if at, ok := moved[o.Base]; !ok || at > o.end {
			t.Errorf("increment %s from %d conflicts with nothing: %s", o.ID, o.Base, o.Error)
		}
	}
}

// table is the state of the model: the latest version, and the register in it.
type table struct{ version, register int64 }

// checkLinearizable asks whether there is one order of all operations, each
// between its invocation and its outcome, in which every commit makes the next
// version (or is in the one just made, with others), every increment finds the
// register that it builds on, and every read sees the latest version. One of
// unknown outcome may come at any time after its invocation.
func (h *history) checkLinearizable(t *testing.T) {
	t.Helper()
	var ops []porcupine.Operation
	for _, o := range h.sorted() {
		switch {
		case o.Kind == "read" && o.Outcome != committed:
			continue // it saw nothing
		case o.Kind != "read" && o.inLog < 0:
			continue // it did nothing
		}
		ops = append(ops, porcupine.Operation{ClientId: o.lane, Input: o, Call: o.At, Return: o.end})
	}
	model := porcupine.Model{
		Init: func() any { return table{version: h.first} },
		Step: func(state, input, _ any) (bool, any) { return step(state.(table), input.(*operation)) },
		DescribeOperation: func(input, _ any) string {
			return input.(*operation).String()
		},
		DescribeState: func(state any) string { return fmt.Sprintf("%+v", state) },
	}
	narrowed, clash := narrow(ops)
	if clash == "" && porcupine.CheckOperationsTimeout(model, narrowed, time.Minute) == porcupine.Ok {
		t.Logf("%d operations are linearizable", len(ops))
		return
	}
	result, info := porcupine.CheckOperationsVerbose(model, ops, 20*time.Second)
	t.Errorf("linearizable: %s (unknown is what a long search ends with); %s", result, clash)
	path := filepath.Join(t.ArtifactDir(), "history.html")
	if err := porcupine.VisualizePath(model, info, path); err != nil {
		t.Error(err)
	}
	t.Logf("with -artifacts, the history is kept in %s", path)
}

func (o *operation) String() string {
	return fmt.Sprintf("%s %s %s, version %d, base %d, value %d", o.Kind, o.ID, o.Outcome, max(o.inLog, o.Version), o.Base, o.Value)
}

// narrow shortens the operations' intervals by what the versions say: none
// comes before one of an earlier version was invoked, or after one of a later
// version has ended. The search, which else may take hours, is then short; and
// what is linearizable in shorter intervals is so in the longer ones. Two
// operations that contradict each other are returned as clash.
func narrow(ops []porcupine.Operation) (narrowed []porcupine.Operation, clash string) {
	const ranks = 1 << 13 // times are in ns since the machine's start: there is room
	rank := func(o porcupine.Operation) int64 {
		in := o.Input.(*operation)
		if in.Kind == "read" {
			return 2*in.Version + 1
		}
		return 2 * in.inLog
	}
	sorted := slices.SortedFunc(slices.Values(ops), func(a, b porcupine.Operation) int { return cmp.Compare(rank(a), rank(b)) })
	narrowed = slices.Clone(sorted)
	for i := range sorted { // O(n²), of some thousand
		from, to := sorted[i], sorted[i]
		for _, o := range sorted {
			switch r := rank(o); {
			case r < rank(sorted[i]) && o.Call > from.Call:
				from = o
			case r > rank(sorted[i]) && o.Return < to.Return:
				to = o
			}
		}
		if from.Call > to.Return {
			return nil, fmt.Sprintf("%v began after the end of %v", from.Input, to.Input)
		}
		narrowed[i].Call = from.Call*ranks + rank(sorted[i])
		narrowed[i].Return = math.MaxInt64
		if to.Return < math.MaxInt64 {
			narrowed[i].Return = to.Return*ranks + ranks - 1
		}
	}
	return narrowed, ""
}

func step(s table, o *operation) (bool, table) {
	switch {
	case o.Kind == "read":
		return o.Version == s.version && o.Value == s.register, s
	case o.inLog != s.version+1 && !(o.grouped && o.inLog == s.version):
		return false, s
	case o.Kind == "increment":
		return s.register == o.Base, table{o.inLog, s.register + 1}
	}
	return true, table{o.inLog, s.register}
}
