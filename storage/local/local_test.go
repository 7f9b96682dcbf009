package local_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"cardinalsin/storage"
	"cardinalsin/storage/local"
	"cardinalsin/storage/storetest"
)

func newStore(t *testing.T, dir string) *local.Store {
	t.Helper()
	s, err := local.New(dir, local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// fastDir is a directory in memory, where an fsync costs nothing, if the
// machine has such a file system; the other kind is under TestConformance.
func fastDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "cardinal-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storage.Store {
		return newStore(t, filepath.Join(t.TempDir(), "not", "there", "yet"))
	})
}

// Two stores on one directory are one store.
func TestConformanceShared(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storage.Store {
		dir := fastDir(t)
		return &alternating{stores: []storage.Store{newStore(t, dir), newStore(t, dir)}}
	})
}

func put(t *testing.T, s storage.Store, key, data string) storage.ObjectInfo {
	t.Helper()
	info, err := s.Put(t.Context(), key, strings.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func keys(t *testing.T, s storage.Store, prefix string) []string {
	t.Helper()
	infos, err := storage.Collect(s.List(t.Context(), prefix, ""))
	if err != nil {
		t.Fatal(err)
	}
	out := []string{}
	for _, info := range infos {
		out = append(out, info.Key)
	}
	return out
}

func TestReadingCreatesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	s := newStore(t, dir)
	if got := keys(t, s, ""); len(got) != 0 {
		t.Errorf("%q", got)
	}
	if _, _, err := s.Get(t.Context(), "k"); !errors.Is(err, storage.ErrNotFound) {
		t.Error(err)
	}
	if _, err := s.PutIfMatch(t.Context(), "k", nil, "x"); !errors.Is(err, storage.ErrPreconditionFailed) {
		t.Error(err)
	}
	if err := s.Delete(t.Context(), "k"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is there: %v", err)
	}
}

func TestNotADirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := local.New(file, local.Options{}); !errors.Is(err, storage.ErrNoStore) {
		t.Error(err)
	}
}

func TestPath(t *testing.T) {
	s := newStore(t, t.TempDir())
	put(t, s, "a/b c", "value")
	path, ok := storage.LocalPath(s, "a/b c")
	if !ok {
		t.Fatal("no path")
	}
	if data, err := os.ReadFile(path); err != nil || string(data) != "value" {
		t.Errorf("%q, %v", data, err)
	}
}

// The order of the steps is what makes an object durable: the file before its
// name, the name before the acknowledgement.
func TestStepsOfWrites(t *testing.T) {
	s := newStore(t, t.TempDir())
	put(t, s, "made/x", "x")
	for _, c := range []struct {
		name  string
		write func(ctx context.Context) error
		want  string
	}{
		{
			"put in new directories",
			func(ctx context.Context) error {
				_, err := s.Put(ctx, "a/b/k", strings.NewReader("1"))
				return err
			},
			"mkdir a|sync dir .|mkdir a/b|sync dir a|create|write|sync|lock|rename|sync dir a/b|remove temp",
		},
		{
			"put",
			func(ctx context.Context) error { _, err := s.Put(ctx, "a/b/k", strings.NewReader("2")); return err },
			"create|write|sync|lock|rename|sync dir a/b|remove temp",
		},
		{
			"put if absent",
			func(ctx context.Context) error { _, err := s.PutIfAbsent(ctx, "made/k", nil); return err },
			"create|write|sync|link|sync dir made|remove temp",
		},
		{
			"put if absent, lost",
			func(ctx context.Context) error {
				if _, err := s.PutIfAbsent(ctx, "made/k", nil); !errors.Is(err, storage.ErrAlreadyExists) {
					return err
				}
				return nil
			},
			"create|write|sync|link|remove temp",
		},
		{
			"put if match",
			func(ctx context.Context) error {
				_, info, err := s.Get(ctx, "made/k")
				if err != nil {
					return err
				}
				_, err = s.PutIfMatch(ctx, "made/k", nil, info.ETag)
				return err
			},
			"create|write|sync|lock|rename|sync dir made|remove temp",
		},
		{
			"put if match, lost",
			func(ctx context.Context) error {
				if _, err := s.PutIfMatch(ctx, "made/k", nil, "x"); !errors.Is(err, storage.ErrPreconditionFailed) {
					return err
				}
				return nil
			},
			"",
		},
		{
			"delete",
			func(ctx context.Context) error { return s.Delete(ctx, "made/k") },
			"lock|unlink|sync dir made",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			var steps []string
			s.SetStep(func(name string) error { steps = append(steps, name); return nil })
			defer s.SetStep(nil)
			if err := c.write(t.Context()); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, strings.Join(steps, "|")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// Each step of each write fails once, by each error: the object is then as
// before or as written, and if it is as written the error says "unknown".
func TestBrokenSteps(t *testing.T) {
	writes := map[string]func(context.Context, storage.Store, storage.ETag) error{
		"put": func(ctx context.Context, s storage.Store, _ storage.ETag) error {
			_, err := s.Put(ctx, "d/k", strings.NewReader("new"))
			return err
		},
		"put if absent": func(ctx context.Context, s storage.Store, _ storage.ETag) error {
			_, err := s.PutIfAbsent(ctx, "e/f/n", []byte("new"))
			return err
		},
		"put if match": func(ctx context.Context, s storage.Store, etag storage.ETag) error {
			_, err := s.PutIfMatch(ctx, "d/k", []byte("new"), etag)
			return err
		},
		"delete": func(ctx context.Context, s storage.Store, _ storage.ETag) error { return s.Delete(ctx, "d/k") },
	}
	state := func(t *testing.T, s storage.Store) string {
		var out strings.Builder
		for _, key := range keys(t, s, "") {
			data, _, err := s.Get(t.Context(), key)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&out, "%s=%s ", key, data)
		}
		return out.String()
	}
	const before = "d/k=old "
	after := map[string]string{"put": "d/k=new ", "put if absent": "d/k=old e/f/n=new ", "put if match": "d/k=new ", "delete": ""}
	for name, write := range writes {
		for _, errno := range []syscall.Errno{syscall.EIO, syscall.ENOSPC, syscall.EDQUOT, syscall.EACCES} {
			t.Run(fmt.Sprintf("%s/%v", name, errno), func(t *testing.T) {
				for i := 0; ; i++ {
					dir := fastDir(t)
					s := newStore(t, dir)
					etag := put(t, s, "d/k", "old").ETag
					n, broken := 0, ""
					s.SetStep(func(step string) error {
						n++
						if n-1 == i {
							broken = step
							return errno
						}
						return nil
					})
					err := write(t.Context(), s, etag)
					s.SetStep(nil)
					got := state(t, newStore(t, dir))
					switch {
					case broken == "":
						if err != nil || got != after[name] {
							t.Errorf("unbroken: %q, %v", got, err)
						}
						return
					case err == nil:
						// Only the temporary name may stay behind unpunished.
						if broken != "remove temp" || got != after[name] {
							t.Errorf("%s: no error, state %q", broken, got)
						}
						continue
					case errors.Is(err, storage.ErrUnknownOutcome):
						if got != before && got != after[name] {
							t.Errorf("%s: state %q, %v", broken, got, err)
						}
						if !strings.HasPrefix(broken, "sync dir") && errno != syscall.EIO {
							t.Errorf("%s: %v leaves nothing unknown", broken, err)
						}
					default:
						if got != before {
							t.Errorf("%s: state %q, but the error says nothing was stored: %v", broken, got, err)
						}
						full := errno == syscall.ENOSPC || errno == syscall.EDQUOT
						if full != errors.Is(err, storage.ErrFull) || (errno == syscall.EACCES) != errors.Is(err, storage.ErrPermission) {
							t.Errorf("%s: %v is not typed", broken, err)
						}
					}
					if left, err := os.ReadDir(filepath.Join(dir, local.TempDir)); err != nil || (len(left) > 0 && broken != "remove temp") {
						t.Errorf("%s: %d temporary files are left, %v", broken, len(left), err)
					}
				}
			})
		}
	}
}

// States of one object differ in their ETags however fast they follow each
// other, whatever the clock does and whichever inode they get.
func TestETagsNeverRepeat(t *testing.T) {
	clocks := map[string]func() func() time.Time{
		"running": func() func() time.Time { return time.Now },
		"stopped": func() func() time.Time { at := time.Now(); return func() time.Time { return at } },
		"going back": func() func() time.Time {
			at := time.Now()
			return func() time.Time { at = at.Add(-time.Second); return at }
		},
	}
	for name, clock := range clocks {
		t.Run(name, func(t *testing.T) {
			s, err := local.New(fastDir(t), local.Options{Now: clock()})
			if err != nil {
				t.Fatal(err)
			}
			seen := map[storage.ETag]int{}
			last := put(t, s, "k", "same")
			for i := range 100 {
				if j, ok := seen[last.ETag]; ok {
					t.Fatalf("state %d has the ETag %s of state %d", i, last.ETag, j)
				}
				seen[last.ETag] = i
				var next storage.ObjectInfo
				if i%2 == 0 {
					next = put(t, s, "k", "same")
				} else if next, err = s.PutIfMatch(t.Context(), "k", []byte("same"), last.ETag); err != nil {
					t.Fatal(err)
				}
				if !next.ModTime.After(last.ModTime) {
					t.Errorf("state %d of %v follows one of %v", i, next.ModTime, last.ModTime)
				}
				last = next
			}
		})
	}
	t.Run("deleted between", func(t *testing.T) {
		s := newStore(t, fastDir(t))
		seen := map[storage.ETag]bool{}
		for range 100 {
			info, err := s.PutIfAbsent(t.Context(), "k", []byte("same"))
			if err != nil {
				t.Fatal(err)
			}
			if seen[info.ETag] {
				t.Fatalf("ETag %s again", info.ETag)
			}
			seen[info.ETag] = true
			if err := s.Delete(t.Context(), "k"); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// A replacement that races with a delete wins before it or not at all: here,
// unlike on some servers, it never brings the object back.
func TestDeleteIsFinal(t *testing.T) {
	dir := fastDir(t)
	s, other := newStore(t, dir), newStore(t, dir)
	for range 50 {
		etag := put(t, s, "k", "x").ETag
		var group sync.WaitGroup
		group.Go(func() {
			if _, err := s.PutIfMatch(t.Context(), "k", []byte("y"), etag); err != nil && !errors.Is(err, storage.ErrPreconditionFailed) {
				t.Error(err)
			}
		})
		group.Go(func() {
			if err := other.Delete(t.Context(), "k"); err != nil {
				t.Error(err)
			}
		})
		group.Wait()
		if _, _, err := s.Get(t.Context(), "k"); !errors.Is(err, storage.ErrNotFound) {
			t.Fatalf("the object is back: %v", err)
		}
	}
	// And the narrow moments themselves: neither gets between the other's look
	// and its step.
	etag := put(t, s, "k", "x").ETag
	deleted := make(chan error, 1)
	s.SetStep(func(name string) error {
		if name == "rename" {
			go func() { deleted <- other.Delete(context.Background(), "k") }()
			time.Sleep(20 * time.Millisecond) // let it get as far as it can
		}
		return nil
	})
	if _, err := s.PutIfMatch(t.Context(), "k", []byte("y"), etag); err != nil {
		t.Fatal(err)
	}
	if err := <-deleted; err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Get(t.Context(), "k"); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("the object is back: %v", err)
	}

	etag = put(t, other, "k", "x").ETag
	renames := make(chan struct{}, 1)
	s.SetStep(func(name string) error {
		if name == "rename" {
			renames <- struct{}{}
		}
		return nil
	})
	replaced := make(chan error, 1)
	other.SetStep(func(name string) error {
		if name != "unlink" {
			return nil
		}
		go func() { _, err := s.PutIfMatch(context.Background(), "k", []byte("y"), etag); replaced <- err }()
		select {
		case <-renames:
			t.Error("a replacement is under way within a delete")
		case <-time.After(20 * time.Millisecond):
		}
		return nil
	})
	if err := other.Delete(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	if err := <-replaced; !errors.Is(err, storage.ErrPreconditionFailed) {
		t.Errorf("it was replaced: %v", err)
	}
}

func TestHiddenDirectory(t *testing.T) {
	s := newStore(t, t.TempDir())
	put(t, s, "k", "x")
	put(t, s, ".cardinal-not", "x")
	put(t, s, "a/.cardinal/k", "x")
	if diff := cmp.Diff([]string{".cardinal-not", "a/.cardinal/k", "k"}, keys(t, s, "")); diff != "" {
		t.Error(diff)
	}
	for _, prefix := range []string{".cardinal/", ".cardinal/tmp/", ".cardinal/l"} {
		if got := keys(t, s, prefix); len(got) != 0 {
			t.Errorf("List(%q) = %q", prefix, got)
		}
	}
	for _, key := range []string{local.HiddenDir, local.LockFile, local.TempDir + "/x"} {
		if _, _, err := s.Get(t.Context(), key); !errors.Is(err, storage.ErrInvalidKey) {
			t.Errorf("Get(%q): %v", key, err)
		}
		if _, err := s.PutIfAbsent(t.Context(), key, nil); !errors.Is(err, storage.ErrInvalidKey) {
			t.Errorf("PutIfAbsent(%q): %v", key, err)
		}
		if err := s.Delete(t.Context(), key); !errors.Is(err, storage.ErrInvalidKey) {
			t.Errorf("Delete(%q): %v", key, err)
		}
	}
}

func TestLeftoversAreRemovedByAge(t *testing.T) {
	dir := t.TempDir()
	put(t, newStore(t, dir), "k", "x")
	for name, age := range map[string]time.Duration{"old": local.TempMaxAge + time.Minute, "young": local.TempMaxAge - time.Minute} {
		path := filepath.Join(dir, local.TempDir, name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		at := time.Now().Add(-age)
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	put(t, newStore(t, dir), "k", "x")
	left, err := os.ReadDir(filepath.Join(dir, local.TempDir))
	if err != nil || len(left) != 1 || left[0].Name() != "young" {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestLinksOut(t *testing.T) {
	outside := t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, target := range map[string]string{"file": filepath.Join(outside, "secret"), "dir": outside, "up": "..", "dangling": "nothing"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := newStore(t, dir)
	put(t, s, "k", "x")
	if diff := cmp.Diff([]string{"k"}, keys(t, s, "")); diff != "" {
		t.Error(diff)
	}
	for _, key := range []string{"file", "dir/secret", "up/" + filepath.Base(outside) + "/secret"} {
		if data, _, err := s.Get(t.Context(), key); !errors.Is(err, storage.ErrInvalidKey) {
			t.Errorf("Get(%q) = %q, %v", key, data, err)
		}
	}
	for _, key := range []string{"dir/new", "up/new"} {
		if _, err := s.Put(t.Context(), key, strings.NewReader("x")); !errors.Is(err, storage.ErrInvalidKey) {
			t.Errorf("Put(%q): %v", key, err)
		}
		if _, err := s.PutIfAbsent(t.Context(), key, nil); !errors.Is(err, storage.ErrInvalidKey) {
			t.Errorf("PutIfAbsent(%q): %v", key, err)
		}
	}
	if err := s.Delete(t.Context(), "dir/secret"); !errors.Is(err, storage.ErrInvalidKey) {
		t.Errorf("Delete: %v", err)
	}
	if infos, err := storage.Collect(s.List(t.Context(), "dir/", "")); len(infos) != 0 || !errors.Is(err, storage.ErrInvalidKey) {
		t.Errorf("List: %v, %v", infos, err)
	}
	for _, key := range []string{"dangling", "fifo"} {
		if _, _, err := s.Get(t.Context(), key); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("Get(%q): %v", key, err)
		}
		if _, err := s.PutIfAbsent(t.Context(), key, nil); !errors.Is(err, storage.ErrInvalidKey) {
			t.Errorf("PutIfAbsent(%q): %v", key, err)
		}
	}
	left, err := os.ReadDir(outside)
	if err != nil || len(left) != 1 {
		t.Errorf("outside there is %v, %v", left, err)
	}
}

// A file system cannot hold "a" and "a/b": that is an error, not a lost race.
func TestKeyThatIsADirectory(t *testing.T) {
	s := newStore(t, t.TempDir())
	put(t, s, "a/b", "x")
	put(t, s, "f", "x")
	for _, key := range []string{"a", "f/x", "f/x/y"} {
		if _, err := s.Put(t.Context(), key, strings.NewReader("x")); !errors.Is(err, storage.ErrInvalidKey) {
			t.Errorf("Put(%q): %v", key, err)
		}
		if _, err := s.PutIfAbsent(t.Context(), key, nil); !errors.Is(err, storage.ErrInvalidKey) {
			t.Errorf("PutIfAbsent(%q): %v", key, err)
		}
	}
	if diff := cmp.Diff([]string{"a/b", "f"}, keys(t, s, "")); diff != "" {
		t.Error(diff)
	}
}

func TestDirectoryRemovedUnderUs(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir)
	for _, write := range []func() error{
		func() error { _, err := s.Put(t.Context(), "a/b/k", strings.NewReader("x")); return err },
		func() error { _, err := s.PutIfAbsent(t.Context(), "a/b/k", nil); return err },
	} {
		put(t, s, "a/b/other", "x")
		if err := os.RemoveAll(filepath.Join(dir, "a")); err != nil {
			t.Fatal(err)
		}
		var steps []string
		s.SetStep(func(name string) error { steps = append(steps, name); return nil })
		if err := write(); err != nil {
			t.Fatal(err)
		}
		s.SetStep(nil)
		if !slices.Contains(steps, "sync dir .") {
			t.Errorf("the new directory's name was not synced: %q", steps)
		}
		if diff := cmp.Diff([]string{"a/b/k"}, keys(t, s, "")); diff != "" {
			t.Error(diff)
		}
	}
}

// Someone removes the lock file while we wait for it. Another then makes and
// locks a new one, and is about to replace the object, when we get the lock on
// the old one: it must not count.
func TestLockFileRemovedUnderUs(t *testing.T) {
	dir := t.TempDir()
	s, other := newStore(t, dir), newStore(t, dir)
	etag := put(t, s, "k", "x").ETag
	lockPath := filepath.Join(dir, local.LockFile)
	old, err := os.Open(lockPath)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(old.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	opened := make(chan struct{})
	s.SetStep(func(name string) error {
		if name == "lock" {
			close(opened) // it has opened the old lock, and waits for it next
			s.SetStep(nil)
		}
		return nil
	})
	result := make(chan error, 1)
	go func() { _, err := s.PutIfMatch(t.Context(), "k", []byte("s"), etag); result <- err }()
	<-opened
	if err := os.Remove(lockPath); err != nil {
		t.Fatal(err)
	}
	other.SetStep(func(name string) error {
		if name == "rename" {
			if err := old.Close(); err != nil {
				return err
			}
			time.Sleep(50 * time.Millisecond) // let s go on, if it does
		}
		return nil
	})
	if _, err := other.PutIfMatch(t.Context(), "k", []byte("other"), etag); err != nil {
		t.Fatal(err)
	}
	if err := <-result; !errors.Is(err, storage.ErrPreconditionFailed) {
		t.Errorf("both replaced the object: %v", err)
	}
}

func TestWaitForTheLockEndsWithTheContext(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir)
	etag := put(t, s, "k", "x").ETag
	lock, err := os.Open(filepath.Join(dir, local.LockFile))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	for name, call := range map[string]func(context.Context) error{
		"Put":        func(ctx context.Context) error { _, err := s.Put(ctx, "k", bytes.NewReader(nil)); return err },
		"PutIfMatch": func(ctx context.Context) error { _, err := s.PutIfMatch(ctx, "k", nil, etag); return err },
		"Delete":     func(ctx context.Context) error { return s.Delete(ctx, "k") },
		"List":       func(ctx context.Context) error { _, err := storage.Collect(s.List(ctx, "", "")); return err },
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if err := call(ctx); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, storage.ErrUnknownOutcome) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := s.PutIfAbsent(t.Context(), "free", nil); err != nil {
		t.Errorf("PutIfAbsent needs no lock: %v", err)
	}
	if data, _, err := s.Get(t.Context(), "k"); err != nil || string(data) != "x" {
		t.Errorf("%q, %v", data, err)
	}
}

// A listing does not lose an object that is replaced while it reads, because
// it shares the lock with who replaces.
func TestListSharesTheLock(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir)
	put(t, s, "k", "x")
	lock, err := os.Open(filepath.Join(dir, local.LockFile))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_SH); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"k"}, keys(t, s, "")); diff != "" {
		t.Error(diff)
	}
}

func TestListIgnoresWhatIsNoKey(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir)
	put(t, s, "d/k", "x")
	for _, name := range []string{"d/line\nfeed", "d/\xff", "bad\x01dir/k"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Skipf("this file system does not take the name %q: %v", name, err)
		}
	}
	if diff := cmp.Diff([]string{"d/k"}, keys(t, s, "")); diff != "" {
		t.Error(diff)
	}
}

// A listing that is broken off by its context says so, and is no short
// answer.
func TestListCancelledMidway(t *testing.T) {
	s := newStore(t, t.TempDir())
	for i := range 6 {
		put(t, s, fmt.Sprintf("d%d/k", i), "x")
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n := 0
	var last error
	for _, err := range s.List(ctx, "", "") {
		n++
		last = err
		if n == 3 {
			cancel()
		}
	}
	if n != 4 || !errors.Is(last, context.Canceled) {
		t.Errorf("%d steps, the last %v", n, last)
	}
}

func TestFilesAreShareable(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	old := syscall.Umask(0o002)
	defer syscall.Umask(old)
	s := newStore(t, dir)
	put(t, s, "a/k", "x")
	for name, want := range map[string]os.FileMode{"": 0o775 | os.ModeDir, "a": 0o775 | os.ModeDir, "a/k": 0o664, local.LockFile: 0o664} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != want {
			t.Errorf("%q has mode %v, want %v", name, info.Mode(), want)
		}
	}
}
