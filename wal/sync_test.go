package wal

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// slowDisk holds up each datasync until it is told its outcome.
type slowDisk struct {
	begun   chan struct{}
	outcome chan error
	through atomic.Bool // from now on, none is held up
}

type slowFile struct {
	file
	disk *slowDisk
}

func (d *slowDisk) open(path string) (file, error) {
	f, err := openOSFile(path)
	return &slowFile{file: f, disk: d}, err
}

func (f *slowFile) Datasync() error {
	if f.disk.through.Load() {
		return f.file.Datasync()
	}
	f.disk.begun <- struct{}{}
	if err := <-f.disk.outcome; err != nil {
		return err
	}
	return f.file.Datasync()
}

// countingDisk counts syncs, and fails them on demand.
type countingDisk struct {
	syncs atomic.Int64
	fail  atomic.Bool
}

type countingFile struct {
	file
	disk *countingDisk
}

func (d *countingDisk) open(path string) (file, error) {
	f, err := openOSFile(path)
	return &countingFile{file: f, disk: d}, err
}

func (f *countingFile) Datasync() error {
	f.disk.syncs.Add(1)
	if f.disk.fail.Load() {
		return unix.EIO
	}
	return f.file.Datasync()
}

// TestRun: what is appended is synced once an interval, counted from the first
// record that waits; an idle log is left alone.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := &countingDisk{}
		l := mustOpen(t, t.TempDir(), Options{openFile: disk.open, Sync: SyncDeferred, SyncInterval: 100 * time.Millisecond})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- l.Run(ctx) }()

		want := func(after time.Duration, n int64) {
			t.Helper()
			time.Sleep(after)
			synctest.Wait()
			if got := disk.syncs.Load(); got != n {
				t.Errorf("%d syncs, want %d", got, n)
			}
		}
		want(time.Hour, 0)
		for n := range 9 { // at 0, 10, … 80 ms
			mustAppend(t, l, n+1)
			time.Sleep(10 * time.Millisecond)
		}
		want(9*time.Millisecond, 0)
		want(time.Millisecond, 1)
		l.appendMu.Lock()
		if l.synced != l.Bytes() {
			t.Errorf("%d of %d bytes are synced", l.synced, l.Bytes())
		}
		l.appendMu.Unlock()
		want(time.Hour, 1)
		mustAppend(t, l, 10)
		want(100*time.Millisecond, 2)

		disk.fail.Store(true)
		mustAppend(t, l, 11)
		if err := <-ended; !errors.Is(err, ErrFailed) || !errors.Is(err, unix.EIO) {
			t.Errorf("Run: %v", err)
		}
		if _, _, err := l.Append(testRecords(t, 12)); !errors.Is(err, ErrFailed) {
			t.Errorf("Append after a sync that failed: %v", err)
		}
		cancel()
	})
}

func TestRunEnds(t *testing.T) {
	always := mustOpen(t, t.TempDir(), Options{})
	if err := always.Run(t.Context()); err != nil {
		t.Error(err)
	}
	deferred := mustOpen(t, t.TempDir(), Options{Sync: SyncDeferred, SyncInterval: time.Hour})
	mustAppend(t, deferred, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := deferred.Run(ctx); err != nil {
		t.Error(err)
	}
}

// TestAppendBesideSync: a slow disk does not hold up appends, and what they
// write is not taken for durable; what closes the file waits.
func TestAppendBesideSync(t *testing.T) {
	disk := &slowDisk{begun: make(chan struct{}), outcome: make(chan error)}
	dir := t.TempDir()
	l := mustOpen(t, dir, Options{openFile: disk.open, Sync: SyncDeferred})
	mustAppend(t, l, 1)
	end := l.Bytes()
	synced := make(chan error, 1)
	go func() { synced <- l.Sync() }()
	<-disk.begun
	mustAppend(t, l, 2)
	disk.outcome <- nil
	if err := <-synced; err != nil {
		t.Fatal(err)
	}
	if l.synced != end {
		t.Errorf("%d bytes are synced, want %d", l.synced, end)
	}

	// The second one fails, while the log is being closed: whoever waited must
	// not hear of success, though the kernel would say so.
	go func() { synced <- l.Sync() }()
	<-disk.begun
	closed := make(chan error, 1)
	go func() { closed <- l.Close() }()
	select {
	case err := <-closed:
		t.Errorf("closed while it was being synced: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	disk.through.Store(true)
	disk.outcome <- unix.EIO
	if err := <-synced; !errors.Is(err, unix.EIO) {
		t.Errorf("Sync: %v", err)
	}
	if err := <-closed; !errors.Is(err, ErrFailed) {
		t.Errorf("Close: %v", err)
	}
}

// TestMaxBytes: the limit refuses, keeps nothing of what it refused, and gives
// way when the log is truncated.
func TestMaxBytes(t *testing.T) {
	const limit = 16 << 10
	l := mustOpen(t, t.TempDir(), Options{MaxBytes: limit, SegmentBytes: 4 << 10})
	n := 0
	var err error
	for err == nil && n < 10_000 {
		n++
		_, _, err = l.Append(testRecords(t, n))
	}
	if !errors.Is(err, ErrFull) || errors.Is(err, ErrFailed) {
		t.Fatalf("error is %v", err)
	}
	if l.Bytes() > limit || l.Bytes() < limit-4<<10 || l.LastSequence() != Sequence(n-1) {
		t.Errorf("%d bytes, last %d of %d", l.Bytes(), l.LastSequence(), n-1)
	}
	if err := l.Truncate(l.LastSequence() - 1); err != nil {
		t.Fatal(err)
	}
	if l.Bytes() > limit/2 {
		t.Errorf("%d bytes with one record", l.Bytes())
	}
	large := make([]int, limit/20)
	if _, _, err := l.Append(testRecords(t, large...)); !errors.Is(err, ErrFull) {
		t.Errorf("a group above the limit: %v", err)
	}
	if err := l.Truncate(l.LastSequence()); err != nil {
		t.Fatal(err)
	}
	if first, _ := mustAppend(t, l, n); first != Sequence(n) {
		t.Errorf("sequence %d after the truncation, want %d", first, n)
	}
	if err := l.Truncate(l.LastSequence()); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, l, large...) // when there is nothing else, there is no better time
}

// TestPending: a log says that it may hold something unless it was closed with
// all of it covered; its counter and identity go on all the same.
func TestPending(t *testing.T) {
	dir := t.TempDir()
	want := func(pending bool) {
		t.Helper()
		got, err := Pending(dir)
		if err != nil || got != pending {
			t.Errorf("pending %t, error %v, want %t", got, err, pending)
		}
	}
	want(false)
	l := mustOpen(t, dir, Options{})
	id := l.Writer()
	want(false)
	mustAppend(t, l, 1, 2, 3)
	want(true)
	if err := l.Truncate(2); err != nil {
		t.Fatal(err)
	}
	mustClose(t, l)
	want(true)

	l = mustOpen(t, dir, Options{})
	mustAppend(t, l, 4)
	if err := l.Truncate(4); err != nil {
		t.Fatal(err)
	}
	want(true)
	mustClose(t, l)
	want(false)
	l = mustOpen(t, dir, Options{})
	if first, _ := mustAppend(t, l, 5); first != 5 || l.Writer() != id {
		t.Errorf("sequence %d of writer %s, want 5 of %s", first, l.Writer(), id)
	}
}
