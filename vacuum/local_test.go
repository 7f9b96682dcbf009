package vacuum

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cardinalsin/lease"
	"cardinalsin/storage/local"
	"cardinalsin/txlog"
)

// On a directory, with the clock of the file system: a run deletes what it
// should and no more, under a pin of the real kind.
func TestOnADirectory(t *testing.T) {
	store, err := local.New(t.TempDir(), local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	log, err := createTable(t.Context(), store, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	tab := &table{store: store, log: log, clock: newClock()}
	opts := short(Options{Retain: NoRetention, Full: true, Margins: Margins{OrphanAge: time.Nanosecond, LogAge: time.Nanosecond}})
	tab.write(t, "a", "b")
	tab.upload(t, "orphan")
	old := tab.remove(t, "a")
	if _, err := log.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	pins := lease.NewPins(store, root+"/_cardinal/pins", "test", lease.Options{})
	hold, err := pins.Hold(t.Context(), int64(old))
	if err != nil {
		t.Fatal(err)
	}
	tab.remove(t, "b")
	tab.write(t, "c")
	time.Sleep(20 * time.Millisecond) // so that what is there is older than the start
	tab.run(t, opts)
	if d := cmp.Diff([]string{"b", "c"}, data(t, store)); d != "" {
		t.Errorf("under the pin: %s", d)
	}
	if err := hold.Check(); err != nil {
		t.Fatal(err)
	}
	hold.Release()
	if err := pins.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	tab.run(t, opts)
	if d := cmp.Diff([]string{"c"}, data(t, store)); d != "" {
		t.Error(d)
	}
	if _, err := tab.log.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	tab.run(t, opts)
	reopen(t, store)
	first := keys(t, store, "_delta_log")[0]
	if v, ok := parseLogName(first); !ok || v != old {
		t.Errorf("the log begins with %s, want the checkpoint at %d", first, old)
	}
	if _, err := log.Snapshot(t.Context(), txlog.AtVersion(old)); err != nil {
		t.Errorf("the oldest base is not one: %v", err)
	}
}
