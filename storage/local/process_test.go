package local_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cardinalsin/storage"
	"cardinalsin/storage/local"
)

// alternating sends each call to the next of several stores that are one.
type alternating struct {
	stores []storage.Store
	n      atomic.Int64
}

func (a *alternating) next() storage.Store {
	return a.stores[int(a.n.Add(1))%len(a.stores)]
}

func (a *alternating) Get(ctx context.Context, key string) ([]byte, storage.ObjectInfo, error) {
	return a.next().Get(ctx, key)
}

func (a *alternating) GetRange(ctx context.Context, key string, offset, length int64) ([]byte, error) {
	return a.next().GetRange(ctx, key, offset, length)
}

func (a *alternating) Put(ctx context.Context, key string, body io.ReadSeeker) (storage.ObjectInfo, error) {
	return a.next().Put(ctx, key, body)
}

func (a *alternating) PutIfAbsent(ctx context.Context, key string, data []byte) (storage.ObjectInfo, error) {
	return a.next().PutIfAbsent(ctx, key, data)
}

func (a *alternating) PutIfMatch(ctx context.Context, key string, data []byte, etag storage.ETag) (storage.ObjectInfo, error) {
	return a.next().PutIfMatch(ctx, key, data, etag)
}

func (a *alternating) List(ctx context.Context, prefix, startAfter string) iter.Seq2[storage.ObjectInfo, error] {
	return a.next().List(ctx, prefix, startAfter)
}

func (a *alternating) Delete(ctx context.Context, key string) error { return a.next().Delete(ctx, key) }

func (a *alternating) Now(ctx context.Context) (time.Time, error) { return a.next().Now(ctx) }

// The test binary runs itself again as another process: envChild names the
// task, and its arguments follow.
const envChild = "CARDINAL_LOCAL_TEST_CHILD"

func TestMain(m *testing.M) {
	task, ok := os.LookupEnv(envChild)
	if !ok {
		os.Exit(m.Run())
	}
	if err := child(context.Background(), strings.Split(task, "|")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func childCommand(t *testing.T, task ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), envChild+"="+strings.Join(task, "|"))
	return cmd
}

func child(ctx context.Context, task []string) error {
	s, err := local.New(task[1], local.Options{})
	if err != nil {
		return err
	}
	switch task[0] {
	case "claim":
		return claim(ctx, s, task[2])
	case "count":
		return count(ctx, s, task[2])
	case "fill":
		return fillUp(ctx, s, task[1])
	}
	return fmt.Errorf("no task %q", task[0])
}

const (
	processes = 4
	claims    = 40
	counts    = 25
)

// claim tries for every slot, as fast as it can, and prints those it won.
func claim(ctx context.Context, s storage.Store, name string) error {
	for slot := range claims {
		_, err := s.PutIfAbsent(ctx, fmt.Sprintf("slot/%03d", slot), []byte(name))
		switch {
		case err == nil:
			fmt.Println(slot)
		case !errors.Is(err, storage.ErrAlreadyExists):
			return err
		}
	}
	return nil
}

// count adds to one counter, by PutIfMatch.
func count(ctx context.Context, s storage.Store, name string) error {
	for i := 0; i < counts; {
		data, info, err := s.Get(ctx, "n")
		if err != nil {
			return err
		}
		n, err := strconv.Atoi(string(data))
		if err != nil {
			return err
		}
		_, err = s.PutIfMatch(ctx, "n", []byte(strconv.Itoa(n+1)), info.ETag)
		switch {
		case err == nil:
			i++
		case !errors.Is(err, storage.ErrPreconditionFailed):
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func runChildren(t *testing.T, dir, task string) []string {
	t.Helper()
	var cmds []*exec.Cmd
	outs := make([]bytes.Buffer, processes)
	for i := range processes {
		cmd := childCommand(t, task, dir, fmt.Sprintf("process %d", i))
		cmd.Stdout, cmd.Stderr = &outs[i], os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		cmds = append(cmds, cmd)
	}
	var texts []string
	for i, cmd := range cmds {
		if err := cmd.Wait(); err != nil {
			t.Errorf("process %d: %v", i, err)
		}
		texts = append(texts, outs[i].String())
	}
	return texts
}

func TestProcessesRaceToCreate(t *testing.T) {
	dir := fastDir(t)
	winner := map[string]int{}
	for i, out := range runChildren(t, dir, "claim") {
		for slot := range strings.FieldsSeq(out) {
			if other, ok := winner[slot]; ok {
				t.Errorf("slot %s was won by %d and %d", slot, other, i)
			}
			winner[slot] = i
		}
	}
	if len(winner) != claims {
		t.Errorf("%d of %d slots were won", len(winner), claims)
	}
	s := newStore(t, dir)
	for slot, i := range winner {
		n, err := strconv.Atoi(slot)
		if err != nil {
			t.Fatal(err)
		}
		data, _, err := s.Get(t.Context(), fmt.Sprintf("slot/%03d", n))
		if err != nil || string(data) != fmt.Sprintf("process %d", i) {
			t.Errorf("slot %s, won by %d, holds %q, %v", slot, i, data, err)
		}
	}
}

func TestProcessesRaceToReplace(t *testing.T) {
	dir := fastDir(t)
	s := newStore(t, dir)
	put(t, s, "n", "0")
	runChildren(t, dir, "count")
	data, _, err := s.Get(t.Context(), "n")
	if err != nil || string(data) != strconv.Itoa(processes*counts) {
		t.Errorf("counted to %s, %v; want %d", data, err, processes*counts)
	}
}

// A real full disk: a small tmpfs, mounted by the child in a namespace of its
// own.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	cmd := childCommand(t, "fill", dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if bytes.Contains(out, []byte(noMount)) || errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EINVAL) {
		t.Skipf("this machine lets no user mount a tmpfs: %v %s", err, out)
	}
	if err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

const noMount = "cannot mount"

func fillUp(ctx context.Context, s storage.Store, dir string) error {
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		return fmt.Errorf("%s: %w", noMount, err)
	}
	data := make([]byte, 100<<10)
	stored := 0
	for i := range 10 {
		key := fmt.Sprintf("d%d/k", i)
		_, err := s.PutIfAbsent(ctx, key, data)
		if err == nil {
			stored++
			continue
		}
		if !errors.Is(err, storage.ErrFull) || errors.Is(err, storage.ErrUnknownOutcome) {
			return fmt.Errorf("put %d: not typed: %w", i, err)
		}
		if _, _, err := s.Get(ctx, key); !errors.Is(err, storage.ErrNotFound) {
			return fmt.Errorf("put %d failed, but get says %w", i, err)
		}
	}
	if stored == 0 || stored == 10 {
		return fmt.Errorf("%d of 10 puts were stored", stored)
	}
	// A failed put leaves nothing behind, so that a delete makes room.
	infos, err := storage.Collect(s.List(ctx, "", ""))
	if err != nil || len(infos) != stored {
		return fmt.Errorf("%d objects are listed, error %w", len(infos), err)
	}
	if err := s.Delete(ctx, infos[0].Key); err != nil {
		return err
	}
	_, err = s.Put(ctx, "last", bytes.NewReader(data))
	return err
}
