package wal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// faultyDisk opens files whose calls fail on demand.
type faultyDisk struct {
	fail map[string]error // by "write", "truncate", "sync", "datasync"; taken out when used
	// short is how much of a failing write is done before it fails.
	short int
	calls map[string]int
}

func newFaultyDisk() *faultyDisk {
	return &faultyDisk{fail: map[string]error{}, calls: map[string]int{}}
}

func (d *faultyDisk) open(path string) (file, error) {
	f, err := openOSFile(path)
	return &faultyFile{file: f, disk: d}, err
}

func (d *faultyDisk) take(call string) error {
	d.calls[call]++
	err := d.fail[call]
	delete(d.fail, call)
	return err
}

type faultyFile struct {
	file
	disk *faultyDisk
}

func (f *faultyFile) WriteAt(b []byte, offset int64) (int, error) {
	if err := f.disk.take("write"); err != nil {
		n, writeErr := f.file.WriteAt(b[:min(f.disk.short, len(b))], offset)
		return n, errors.Join(err, writeErr)
	}
	return f.file.WriteAt(b, offset)
}

func (f *faultyFile) Truncate(size int64) error {
	if err := f.disk.take("truncate"); err != nil {
		return err
	}
	return f.file.Truncate(size)
}

func (f *faultyFile) Sync() error {
	if err := f.disk.take("sync"); err != nil {
		return err
	}
	return f.file.Sync()
}

func (f *faultyFile) Datasync() error {
	if err := f.disk.take("datasync"); err != nil {
		return err
	}
	return f.file.Datasync()
}

// TestFailedWrite: nothing of a group whose write failed is kept, however much
// of it had reached the file, and the log goes on.
func TestFailedWrite(t *testing.T) {
	t.Parallel()
	group := testRecords(t, 3, 4)
	for _, cause := range []error{unix.ENOSPC, unix.EDQUOT, unix.EIO} {
		for _, short := range []int{0, 1, group[0].Bytes(), group[0].Bytes() + 5, group[0].Bytes() + group[1].Bytes()} {
			t.Run(fmt.Sprint(cause, " after ", short), func(t *testing.T) {
				dir, disk := t.TempDir(), newFaultyDisk()
				l := mustOpen(t, dir, Options{openFile: disk.open})
				mustAppend(t, l, 1, 2)
				bytes := l.Bytes()
				disk.short, disk.fail["write"] = short, cause
				_, _, err := l.Append(group)
				if !errors.Is(err, cause) || errors.Is(err, ErrFull) == errors.Is(cause, unix.EIO) || errors.Is(err, ErrFailed) {
					t.Fatalf("error is %v", err)
				}
				if l.LastSequence() != 2 || l.Bytes() != bytes {
					t.Errorf("after the failure the log ends at %d, of %d bytes", l.LastSequence(), l.Bytes())
				}
				copied := copyDir(t, dir)
				wantContents(t, mustOpen(t, copied, Options{}), 0, "1:1 2:2")

				if first, last := mustAppend(t, l, 5); first != 3 || last != 3 {
					t.Errorf("the next group is %d to %d", first, last)
				}
				wantContents(t, l, 0, "1:1 2:2 3:5")
				crash(t, l)
				wantContents(t, mustOpen(t, dir, Options{}), 0, "1:1 2:2 3:5")
			})
		}
	}
}

// TestFailureThatLeavesDoubt: once the state of the file is unknown nothing is
// acknowledged, until the log is opened again.
func TestFailureThatLeavesDoubt(t *testing.T) {
	for name, arm := range map[string]func(d *faultyDisk){
		"datasync":                   func(d *faultyDisk) { d.fail["datasync"] = unix.EIO },
		"datasync, no space":         func(d *faultyDisk) { d.fail["datasync"] = unix.ENOSPC },
		"truncate after short write": func(d *faultyDisk) { d.short = 9; d.fail["write"] = unix.ENOSPC; d.fail["truncate"] = unix.EIO },
		"sync after the truncate":    func(d *faultyDisk) { d.short = 9; d.fail["write"] = unix.ENOSPC; d.fail["sync"] = unix.EIO },
	} {
		t.Run(name, func(t *testing.T) {
			dir, disk := t.TempDir(), newFaultyDisk()
			l := mustOpen(t, dir, Options{openFile: disk.open})
			mustAppend(t, l, 1)
			arm(disk)
			for range 3 {
				if _, _, err := l.Append(testRecords(t, 2)); !errors.Is(err, ErrFailed) {
					t.Fatalf("error is %v", err)
				}
			}
			if err := l.Sync(); !errors.Is(err, ErrFailed) {
				t.Errorf("sync: error is %v", err)
			}
			wantContents(t, l, 0, "1:1")
			if err := l.Truncate(1); err != nil {
				t.Errorf("truncate: %v", err)
			}
			mustClose(t, l)
			l = mustOpen(t, dir, Options{})
			mustAppend(t, l, 3)
			if got := contents(t, l, 0); got != "1:1 2:3" && got != "1:1 2:2 3:3" {
				t.Errorf("the log holds %q", got)
			}
		})
	}
}

// TestSyncPolicy: SyncAlways syncs once a group, SyncDeferred when told to and
// before a segment is left behind.
func TestSyncPolicy(t *testing.T) {
	t.Run("always", func(t *testing.T) {
		disk := newFaultyDisk()
		l := mustOpen(t, t.TempDir(), Options{openFile: disk.open})
		clear(disk.calls)
		mustAppend(t, l, 1, 2, 3, 4, 5)
		mustAppend(t, l, 6)
		if disk.calls["write"] != 2 || disk.calls["datasync"] != 2 {
			t.Errorf("two groups took %v", disk.calls)
		}
		if err := l.Sync(); err != nil || disk.calls["datasync"] != 2 {
			t.Errorf("with nothing to sync: %v, error %v", disk.calls, err)
		}
	})
	t.Run("deferred", func(t *testing.T) {
		disk, dir := newFaultyDisk(), t.TempDir()
		l := mustOpen(t, dir, Options{openFile: disk.open, Sync: SyncDeferred, SegmentBytes: 4 << 10})
		clear(disk.calls)
		mustAppend(t, l, 1)
		mustAppend(t, l, 2)
		if disk.calls["datasync"] != 0 {
			t.Errorf("appends took %v", disk.calls)
		}
		for range 2 {
			if err := l.Sync(); err != nil || disk.calls["datasync"] != 1 {
				t.Errorf("sync: %v, error %v", disk.calls, err)
			}
		}
		for n := 3; len(segmentNames(t, dir)) == 1; n++ {
			mustAppend(t, l, n)
		}
		if disk.calls["datasync"] != 3 { // the records, then the seal that vouches for them
			t.Errorf("rotation: %v", disk.calls)
		}
		disk.fail["datasync"] = unix.EIO
		if err := l.Sync(); !errors.Is(err, ErrFailed) {
			t.Errorf("error is %v", err)
		}
		if _, _, err := l.Append(testRecords(t, 1)); !errors.Is(err, ErrFailed) {
			t.Errorf("error is %v", err)
		}
	})
	t.Run("events", func(t *testing.T) {
		disk := newFaultyDisk()
		var syncs []string
		l := mustOpen(t, t.TempDir(), Options{openFile: disk.open, Events: Events{
			SyncEnd: func(n int64, _ time.Duration, err error) { syncs = append(syncs, fmt.Sprint(n, " ", err)) },
		}})
		group := testRecords(t, 1)
		mustAppend(t, l, 1)
		disk.fail["datasync"] = unix.EIO
		if _, _, err := l.Append(group); !errors.Is(err, ErrFailed) {
			t.Errorf("error is %v", err)
		}
		want := fmt.Sprintf("[%d <nil> %d %v]", group[0].Bytes(), group[0].Bytes(), unix.EIO)
		if got := fmt.Sprint(syncs); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}

// lyingDisk is a kernel after fsyncgate: files read as they were written, from
// the page cache, while the image holds what is on the disk. A sync that fails
// leaves the pages clean, so that no later sync takes them to the image.
type lyingDisk struct {
	image    string // directory
	failSync bool   // the next sync
}

type lyingFile struct {
	file
	disk  *lyingDisk
	path  string
	dirty [][2]int64
}

func (d *lyingDisk) open(path string) (file, error) {
	f, err := openOSFile(path)
	return &lyingFile{file: f, disk: d, path: path}, err
}

func (f *lyingFile) WriteAt(b []byte, offset int64) (int, error) {
	f.dirty = append(f.dirty, [2]int64{offset, offset + int64(len(b))})
	return f.file.WriteAt(b, offset)
}

func (f *lyingFile) Datasync() error { return f.Sync() }

func (f *lyingFile) Sync() error {
	dirty := f.dirty
	f.dirty = nil
	if f.disk.failSync {
		f.disk.failSync = false
		return unix.EIO
	}
	cache, err := os.ReadFile(f.path)
	if err != nil {
		return err
	}
	path := filepath.Join(f.disk.image, filepath.Base(f.path))
	image, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		image, err = cache[:segmentHeaderBytes], nil // as writeFile left it
	}
	if err != nil {
		return err
	}
	grown := make([]byte, len(cache))
	copy(grown, image)
	for _, d := range dirty {
		if d[0] < int64(len(cache)) {
			copy(grown[d[0]:min(d[1], int64(len(cache)))], cache[d[0]:])
		}
	}
	return os.WriteFile(path, grown, 0o600)
}

// TestReopenAfterFailedSync: a group that only the page cache has is either on
// the disk once the log was opened again and acknowledges more, or gone; it
// must not be a hole before acknowledged records.
func TestReopenAfterFailedSync(t *testing.T) {
	t.Parallel()
	dir, disk := t.TempDir(), &lyingDisk{image: t.TempDir()}
	opts := Options{openFile: disk.open}
	l := mustOpen(t, dir, opts)
	copyFile(t, filepath.Join(dir, identityName), filepath.Join(disk.image, identityName))
	mustAppend(t, l, 1)
	mustAppend(t, l, 2)
	disk.failSync = true
	if _, _, err := l.Append(testRecords(t, 3, 1003, 1004)); !errors.Is(err, ErrFailed) {
		t.Fatalf("error is %v", err)
	}
	mustClose(t, l)
	l = mustOpen(t, dir, opts)
	mustAppend(t, l, 4)
	acked := contents(t, l, 0)
	crash(t, l)

	afterPowerLoss := mustOpen(t, disk.image, Options{})
	if got := contents(t, afterPowerLoss, 0); got != acked || !strings.HasSuffix(acked, ":4") {
		t.Errorf("on the disk is %q, acknowledged was %q", got, acked)
	}
}

// TestFailureDuringRotation fails each call of a rotation in turn.
func TestFailureDuringRotation(t *testing.T) {
	for _, call := range []string{"write", "datasync", "open"} {
		t.Run(call, func(t *testing.T) {
			dir, disk := t.TempDir(), newFaultyDisk()
			opts := Options{SegmentBytes: 1, openFile: func(path string) (file, error) {
				if err := disk.take("open"); err != nil {
					return nil, err
				}
				return disk.open(path)
			}}
			l := mustOpen(t, dir, opts)
			mustAppend(t, l, 1)
			disk.fail[call] = unix.ENOSPC
			_, _, err := l.Append(testRecords(t, 2))
			if err == nil {
				t.Fatal("the failure was swallowed")
			}
			if call == "write" {
				if !errors.Is(err, ErrFull) || errors.Is(err, ErrFailed) {
					t.Fatalf("error is %v", err)
				}
			} else {
				if !errors.Is(err, ErrFailed) {
					t.Fatalf("error is %v", err)
				}
				mustClose(t, l)
				l = mustOpen(t, dir, opts)
			}
			mustAppend(t, l, 3)
			wantContents(t, l, 0, "1:1 2:3")
			crash(t, l)
			wantContents(t, mustOpen(t, dir, opts), 0, "1:1 2:3")
		})
	}
}

// TestFullDisk runs a real file system of 1 MiB full, several times, and makes
// space by Truncate.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("a file system of its own cannot be mounted (needs root): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	opts := Options{SegmentBytes: 128 << 10}
	l, err := Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	through := Sequence(0)
	n := 0
	for round := range 4 {
		for {
			ns := []int{n, n + 1, n + 2, n + 3}
			first, last, err := l.Append(testRecords(t, ns...))
			if err != nil {
				if !errors.Is(err, ErrFull) || errors.Is(err, ErrFailed) {
					t.Fatalf("error is %v", err)
				}
				break
			}
			for s := first; s <= last; s++ {
				want = append(want, fmt.Sprintf("%d:%d", s, n))
				n++
			}
		}
		if len(want) < 100 {
			t.Fatalf("only %d records fit", len(want))
		}
		wantContents(t, l, through, strings.Join(want[through:], " "))
		if round%2 == 1 { // opening works on a full disk, too
			crash(t, l)
			if l, err = Open(dir, opts); err != nil {
				t.Fatal(err)
			}
			wantContents(t, l, through, strings.Join(want[through:], " "))
		}
		through = l.LastSequence() - 10
		if err := l.Truncate(through); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil && !errors.Is(err, ErrFull) {
		t.Error(err)
	}
}
