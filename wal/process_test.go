package wal

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestLockedWithinOneProcess(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, dir, Options{})
	if _, err := Open(dir, Options{}); !errors.Is(err, ErrLocked) {
		t.Fatalf("second Open: error is %v", err)
	}
	mustAppend(t, l, 1) // the refused Open did no harm
	mustClose(t, l)
	l = mustOpen(t, dir, Options{})
	wantContents(t, l, 0, "1:1")
}

// TestCloseUnlocksBesideACopyOfTheLock: as a process has it that was forked and
// has not run its program yet.
func TestCloseUnlocksBesideACopyOfTheLock(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, dir, Options{})
	forked, err := unix.Dup(int(l.lock.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	mustClose(t, l)
	mustOpen(t, dir, Options{})
	if err := unix.Close(forked); err != nil {
		t.Fatal(err)
	}
}

// TestMain lets the test binary be the other process: with WAL_TEST_DIR it
// appends to that log without end, printing each acknowledged sequence.
func TestMain(m *testing.M) {
	if dir := os.Getenv("WAL_TEST_DIR"); dir != "" {
		fmt.Println(appendForEver(dir))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func appendForEver(dir string) error {
	l, err := Open(dir, Options{SegmentBytes: 64 << 10})
	if err != nil {
		return err
	}
	for n := 0; ; n++ {
		var group []Record
		for i := range 1 + n%5 {
			r, err := encodeBatch(testBatch(n*10 + i))
			if err != nil {
				return err
			}
			group = append(group, r)
		}
		first, last, err := l.Append(group)
		if err != nil {
			return err
		}
		for s := first; s <= last; s++ {
			fmt.Printf("%d:%d\n", s, n*10+int(s-first))
		}
	}
}

// TestKill ends another process by kill -9 while it appends: what it had
// acknowledged is there, and as long as it lived the directory was locked.
func TestKill(t *testing.T) {
	t.Parallel()
	for _, acks := range []int{1, 50, 500} {
		t.Run(strconv.Itoa(acks), func(t *testing.T) {
			dir := t.TempDir()
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), "WAL_TEST_DIR="+dir)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var acked []string
			for lines := bufio.NewScanner(out); lines.Scan(); {
				acked = append(acked, lines.Text())
				if len(acked) == acks {
					if _, err := Open(dir, Options{}); !errors.Is(err, ErrLocked) {
						t.Errorf("Open beside a living process: error is %v", err)
					}
					if err := cmd.Process.Kill(); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := cmd.Wait(); err == nil {
				t.Fatal("the other process ended by itself")
			}
			l := mustOpen(t, dir, Options{})
			got := strings.Fields(contents(t, l, 0))
			if len(acked) < acks || len(got) < len(acked) {
				t.Fatalf("%d records replayed of %d acknowledged", len(got), len(acked))
			}
			if diff := cmp.Diff(acked, got[:len(acked)]); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestIdentity(t *testing.T) {
	t.Run("segments without identity", func(t *testing.T) {
		dir := t.TempDir()
		mustClose(t, mustOpen(t, dir, Options{}))
		if err := os.Remove(filepath.Join(dir, identityName)); err != nil {
			t.Fatal(err)
		}
		before := dirState(t, dir)
		_, err := Open(dir, Options{})
		if damage := (*CorruptionError)(nil); !errors.Is(err, ErrCorrupt) || errors.As(err, &damage) {
			t.Errorf("error is %v", err) // no segment is to blame
		}
		if diff := cmp.Diff(before, dirState(t, dir)); diff != "" {
			t.Errorf("the refused Open changed the directory: %s", diff)
		}
	})
	t.Run("identity without segments", func(t *testing.T) {
		dir := t.TempDir()
		l := mustOpen(t, dir, Options{})
		old := l.Writer()
		mustClose(t, l)
		for _, name := range segmentNames(t, dir) {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
		l = mustOpen(t, dir, Options{})
		if l.Writer() == old {
			t.Error("the counter is lost and the identity is the same")
		}
	})
	t.Run("left by a crash before the rename", func(t *testing.T) {
		dir := t.TempDir()
		for _, name := range []string{identityName, segmentName(1), segmentName(7)} {
			if err := os.WriteFile(filepath.Join(dir, name+tempSuffix), []byte("half"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		l := mustOpen(t, dir, Options{})
		mustAppend(t, l, 1)
		if left, err := filepath.Glob(filepath.Join(dir, "*"+tempSuffix)); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	})
	for name, text := range map[string]string{"empty": "", "no uuid": "hello\n", "long": strings.Repeat("0", 70)} {
		t.Run("damaged: "+name, func(t *testing.T) {
			dir := t.TempDir()
			mustClose(t, mustOpen(t, dir, Options{}))
			if err := os.WriteFile(filepath.Join(dir, identityName), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(dir, Options{}); !errors.Is(err, ErrCorrupt) {
				t.Errorf("error is %v", err)
			}
		})
	}
	t.Run("of another writer", func(t *testing.T) {
		dir, other := t.TempDir(), t.TempDir()
		mustClose(t, mustOpen(t, dir, Options{}))
		mustClose(t, mustOpen(t, other, Options{}))
		copyFile(t, filepath.Join(other, identityName), filepath.Join(dir, identityName))
		_, err := Open(dir, Options{})
		wantDamage(t, err, segmentName(1), 0)
	})
}
