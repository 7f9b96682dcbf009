package vacuum

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cardinalsin/action"
	"cardinalsin/txlog"
)

// A log compaction goes with the commits where its range begins: nobody can
// begin to read there any more. One that follows the base that is kept stays,
// and serves who opens the table.
func TestLogCompactionsGoWithTheLog(t *testing.T) {
	tab := newTable(t)
	log, err := txlog.Open(t.Context(), tab.store, root, txlog.Options{Now: tab.clock.now, CompactEvery: 2})
	if err != nil {
		t.Fatal(err)
	}
	tab.log = log
	for i := range 6 {
		v := tab.write(t, fmt.Sprint(i))
		if v == 4 {
			if _, err := log.Checkpoint(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := log.Upkeep(t.Context()); err != nil {
		t.Fatal(err)
	}
	across := log.CompactionKey(txlog.Compaction{First: 3, Last: 6})
	text, _, err := tab.store.Get(t.Context(), log.CompactionKey(txlog.Compaction{First: 5, Last: 6}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tab.store.PutIfAbsent(t.Context(), across, text); err != nil { // another engine's; never read after this
		t.Fatal(err)
	}
	compactions := func() []string {
		var out []string
		for _, k := range keys(t, tab.store, "_delta_log") {
			if name, ok := strings.CutSuffix(k[strings.LastIndexByte(k, '/')+1:], ".compacted.json"); ok {
				first, _ := action.ParseVersion(name[:20])
				last, _ := action.ParseVersion(name[21:])
				out = append(out, fmt.Sprintf("%d-%d", first, last))
			}
		}
		return out
	}
	if d := cmp.Diff([]string{"1-2", "3-4", "3-6", "5-6"}, compactions()); d != "" {
		t.Fatal(d)
	}
	tab.clock.tick(25 * time.Hour)
	tab.run(t, short(Options{Retain: NoRetention}))
	tab.run(t, short(Options{Retain: NoRetention}))
	if d := cmp.Diff([]string{"5-6"}, compactions()); d != "" {
		t.Error(d)
	}
	if _, _, err := tab.store.Get(t.Context(), log.CommitKey(3)); err == nil {
		t.Error("commit 3 is still there")
	}
	for _, v := range []action.Version{5, 6} { // the compaction alone leads on from the checkpoint
		if err := tab.store.Delete(t.Context(), log.CommitKey(v)); err != nil {
			t.Fatal(err)
		}
	}
	s := reopen(t, tab.store)
	if got := slices.Collect(s.Files()); len(got) != 6 {
		t.Errorf("%d files, want 6", len(got))
	}
}
