package importer

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"cardinalsin/ingest/ingesttest"
	"cardinalsin/storage/local"
	"cardinalsin/txlog"
)

// TestMain plays the process that is killed: it imports a file into a folder.
func TestMain(m *testing.M) {
	if path := os.Getenv("IMPORTER_TEST_FILE"); path != "" {
		os.Exit(importInto(os.Getenv("IMPORTER_TEST_STORE"), path))
	}
	os.Exit(m.Run())
}

// killOptions make a commit of every twenty samples.
var killOptions = Options{FlushBytes: 1, partSamples: 20}

func importInto(dir, path string) int {
	store, err := local.New(dir, local.Options{})
	if err == nil {
		_, err = Run(context.Background(), &tables{store: store, logs: map[Kind]*txlog.Log{}}, path, killOptions)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// TestKill: an import that is killed over and over goes on where it was, and
// in the end every row lies in one file.
func TestKill(t *testing.T) {
	const lines = 1000 // fifty commits
	path, dir := write1(t, "a.om", longText(lines)), t.TempDir()
	kills := 0
	for ended := false; !ended; {
		cmd := exec.Command(os.Args[0], "-test.run=^$")
		cmd.Env = append(os.Environ(), "IMPORTER_TEST_FILE="+path, "IMPORTER_TEST_STORE="+dir)
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		exited := make(chan error, 1)
		go func() { exited <- cmd.Wait() }()
		// A little longer each time, so that it ends.
		select {
		case err := <-exited:
			if err != nil {
				t.Fatal(err)
			}
			ended = true
		case <-time.After(time.Duration(60+20*kills) * time.Millisecond):
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			<-exited
			kills++
		}
	}
	t.Logf("%d kills", kills)
	want := newTables(t)
	if _, err := Run(t.Context(), want, path, killOptions); err != nil {
		t.Fatal(err)
	}
	got := newTables(t)
	store, err := local.New(dir, local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	got.store = store
	again, err := Run(t.Context(), got, path, killOptions)
	if err != nil || again[0].Rows != 0 || again[0].Files != 0 {
		t.Errorf("a run after the last: %+v, %v", again, err)
	}
	if n := got.liveRows(); n != lines {
		t.Errorf("%d rows in all files, want %d", n, lines)
	}
	if ingesttest.Print(got.rows(Samples)) != ingesttest.Print(want.rows(Samples)) {
		t.Error("other samples than an import without kills has")
	}
	if kills == 0 {
		t.Error("it was never killed")
	}
}
