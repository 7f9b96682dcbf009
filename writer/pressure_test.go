package writer

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/storage"
	"cardinalsin/storage/mem"
	"cardinalsin/txlog"
)

// The nearer to the limit, the longer a batch waits; beyond it none is taken,
// at once. Nothing waits in the first half.
func TestDelayGrows(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const limit = 64 << 10
		var delays []time.Duration
		w, _ := newWriter(t, Options{FlushBytes: 1 << 30, MaxHeadBytes: limit, MaxDelay: time.Second, Events: Events{
			AppendEnd: func(e AppendEvent) {
				if e.Err == nil {
					delays = append(delays, e.Delay)
				}
			},
		}})
		var err error
		halfway := -1
		for i := 0; err == nil; i++ {
			if w.headBytes.Load() > limit/2 && halfway < 0 {
				halfway = i
			}
			began := time.Now()
			if err = w.Append(t.Context(), one("m", []string{"i", fmt.Sprint(i)}, at0(int64(i), 1))); err == nil {
				if d := time.Since(began); d != delays[i] {
					t.Fatalf("append %d took %v, it says that it waited %v", i, d, delays[i])
				}
			}
		}
		if !errors.Is(err, ErrOverloaded) {
			t.Fatal(err)
		}
		for i, d := range delays {
			if i < halfway && d != 0 || i > 0 && d < delays[i-1] {
				t.Fatalf("append %d of %d waited %v after %v; half of the limit is reached at %d", i, len(delays), d, delays[i-1], halfway)
			}
		}
		if last := delays[len(delays)-1]; halfway < 10 || last < 900*time.Millisecond || last > time.Second {
			t.Errorf("the last of %d appends waited %v; half of the limit is reached at %d", len(delays), last, halfway)
		}
		if p := w.Stats().Pressure; p < 0.95 {
			t.Errorf("pressure %g at the limit", p)
		}

		// Who does not want to wait is let go, and nothing is stored.
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		before := w.wal.LastSequence()
		w.headBytes.Add(-1 << 10) // else it would be refused
		if err := w.Append(ctx, one("gone", nil, at0(0, 1))); !errors.Is(err, context.DeadlineExceeded) || w.wal.LastSequence() != before {
			t.Errorf("error %v, last record %d, before %d", err, w.wal.LastSequence(), before)
		}
	})
}

// dropFiles commits the removal of all files, as a compaction does of its inputs.
func dropFiles(t *testing.T, store storage.Store) {
	t.Helper()
	log := openTable(t, store)
	snap := latest(t, store)
	tx := log.Begin(snap, txlog.Operation{Name: "OPTIMIZE"})
	for a := range snap.Files() {
		tx.Remove(a.Tombstone(false))
	}
	if _, err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// Files that nobody compacts slow batches and then stop them; when they were
// compacted, Run finds out, though there is nothing to flush. Who does not
// write costs no store request meanwhile.
func TestLevelZeroPilesUp(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const limit = 40
		w, f, store, stop := runWriter(t, Options{MaxLevelZero: limit})
		defer stop()
		append1 := func(i int) error { return w.Append(t.Context(), one("m", nil, at0(int64(i), 1))) }
		i, slowed := 0, 0
		for ; i < 2*limit; i++ {
			began := time.Now()
			if err := append1(i); err != nil {
				if !errors.Is(err, ErrOverloaded) {
					t.Fatal(err)
				}
				break
			}
			if time.Since(began) > 0 {
				slowed++
			}
			mustFlush(t, w)
		}
		if i != limit || slowed < limit/4 || slowed > limit/2 {
			t.Errorf("refused after %d files, slowed %d times", i, slowed)
		}
		time.Sleep(10 * time.Second) // the refusal lets Run look once
		synctest.Wait()
		before := f.Calls()
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := f.Calls() - before; n != 0 {
			t.Errorf("%d store calls in an idle hour", n)
		}
		dropFiles(t, store)
		if err := append1(0); !errors.Is(err, ErrOverloaded) {
			t.Errorf("before Run has looked: %v", err)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if err := append1(0); err != nil {
			t.Errorf("after the compaction: %v", err)
		}
		if s := w.Stats(); s.LevelZero != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// The count is by partition, of uncompacted files only; it is there after a
// restart; and files that went are forgotten, also where it is far below the
// limit.
func TestPile(t *testing.T) {
	store := mem.New(mem.Options{})
	dir := t.TempDir()
	w := openWriter(t, createTable(t, store), openWAL(t, dir), Options{})
	for i := range 20 {
		mustAppend(t, w, one("m", nil, at0(int64(i), 1)))
		if i < 5 {
			mustAppend(t, w, one("m", nil, at0(-int64(i)-1, 1))) // the day before
		}
		mustFlush(t, w)
	}
	if got := w.Stats().LevelZero; got != 20 {
		t.Errorf("%d files, want 20", got)
	}
	next := openWriter(t, openTable(t, store), openWAL(t, copyDir(t, dir)), Options{})
	if got := next.Stats().LevelZero; got != 20 {
		t.Errorf("%d files after a restart, want 20", got)
	}
	dropFiles(t, store)
	for range 20 { // up to twice of what was there when it was last looked up
		mustAppend(t, next, one("m", nil, at0(0, 1)))
		mustFlush(t, next)
	}
	if got := next.Stats().LevelZero; got != 20 {
		t.Errorf("%d files after a compaction, want 20", got)
	}
	held := 0
	for _, s := range next.pile.partitions {
		held += len(s.files)
	}
	if held > 20+5 {
		t.Errorf("%d files are remembered of 20", held)
	}
}

func TestIsLevelZero(t *testing.T) {
	got := map[string]bool{}
	for _, level := range []int{0, 1, 10} {
		got[fmt.Sprint(level)] = isLevelZero(string(chunk.Tags{Level: level, Order: chunk.Order{Lo: 1, Hi: 1}}.Encode()))
	}
	for _, tags := range []action.Object{action.Object(""), action.Object(`{}`), action.Object(`{"other":"0"}`), action.Object("{ \"cardinal.level\" :\n\"0\" }"), action.Object(`{"cardinal.level": "01"}`)} {
		got[string(tags)] = isLevelZero(string(tags))
	}
	want := map[string]bool{
		"0": true, "1": false, "10": false, "": false, `{}`: false, `{"other":"0"}`: false,
		"{ \"cardinal.level\" :\n\"0\" }": true, `{"cardinal.level": "01"}`: false,
	}
	if d := gocmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}
