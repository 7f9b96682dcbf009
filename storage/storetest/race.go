package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"

	"cardinalsin/storage"
)

const racers = 32

// race lets the racers begin at one moment, and returns their errors.
func race(try func(racer int) error) [racers]error {
	var (
		errs  [racers]error
		start = make(chan struct{})
		group sync.WaitGroup
	)
	for i := range racers {
		group.Go(func() {
			<-start
			errs[i] = try(i)
		})
	}
	close(start)
	group.Wait()
	return errs
}

// oneWinner checks that the race admitted one racer, told the others so by
// the typed error lost, and that the object holds the winner's bytes. A racer
// whose outcome is unknown counts as admitted if the object holds its bytes.
func oneWinner(t *testing.T, s storage.Store, key string, errs [racers]error, lost error) {
	t.Helper()
	holds, _ := get(t, s, key)
	winners := 0
	for i, err := range errs {
		mine := holds == strconv.Itoa(i)
		switch {
		case err == nil:
			winners++
			if !mine {
				t.Errorf("racer %d won, but the object holds %q", i, holds)
			}
		case errors.Is(err, storage.ErrUnknownOutcome):
			if mine {
				winners++
			}
		case !errors.Is(err, lost):
			t.Errorf("racer %d: error %v, want %v", i, err, lost)
		case mine:
			t.Errorf("racer %d was told %v, but the object holds its bytes", i, err)
		}
	}
	if winners != 1 {
		t.Errorf("%d of %d racers won", winners, racers)
	}
}

func testRacePutIfAbsent(t *testing.T, s storage.Store) {
	for round := range 4 {
		key := fmt.Sprintf("log/%d", round)
		errs := race(func(racer int) error {
			_, err := s.PutIfAbsent(t.Context(), key, []byte(strconv.Itoa(racer)))
			return err
		})
		oneWinner(t, s, key, errs, storage.ErrAlreadyExists)
	}
}

func testRacePutIfMatch(t *testing.T, s storage.Store) {
	etag := put(t, s, "pin", "start").ETag
	for range 4 {
		errs := race(func(racer int) error {
			_, err := s.PutIfMatch(t.Context(), "pin", []byte(strconv.Itoa(racer)), etag)
			return err
		})
		oneWinner(t, s, "pin", errs, storage.ErrPreconditionFailed)
		// A state no racer wrote, so that the next round begins anew.
		etag = put(t, s, "pin", "between").ETag
	}
}

// Increments by read and PutIfMatch lose none, also while others overwrite
// the object with Put of the same count.
func testRaceCounter(t *testing.T, s storage.Store) {
	const perRacer = 3
	put(t, s, "n", "0 start")
	errs := race(func(racer int) error {
		if racer >= 8 {
			return nil // 8 are enough here: each lost race is a request
		}
		for i := 0; i < perRacer; {
			data, info, err := s.Get(t.Context(), "n")
			if err != nil {
				return err
			}
			var n int
			if _, err := fmt.Sscanf(string(data), "%d", &n); err != nil {
				return fmt.Errorf("object holds %q: %w", data, err)
			}
			mine := fmt.Sprintf("%d by %d.%d", n+1, racer, i)
			_, err = s.PutIfMatch(t.Context(), "n", []byte(mine), info.ETag)
			switch {
			case err == nil:
				i++
			case !errors.Is(err, storage.ErrPreconditionFailed):
				return err
			}
		}
		return nil
	})
	for racer, err := range errs {
		if err != nil {
			t.Errorf("racer %d: %v", racer, err)
		}
	}
	data, _ := get(t, s, "n")
	var n int
	if _, err := fmt.Sscanf(data, "%d", &n); err != nil || n != 8*perRacer {
		t.Errorf("counted %q, want %d", data, 8*perRacer)
	}
}

// Of replacements that race with a delete at most one is admitted, and if none
// is, the object is gone.
func testRaceDelete(t *testing.T, s storage.Store) {
	for round := range 8 {
		key := fmt.Sprintf("k%d", round)
		etag := put(t, s, key, "start").ETag
		errs := race(func(racer int) error {
			if racer == 0 {
				return s.Delete(t.Context(), key)
			}
			_, err := s.PutIfMatch(t.Context(), key, []byte(strconv.Itoa(racer)), etag)
			return err
		})
		if errs[0] != nil {
			t.Fatal(errs[0])
		}
		winner := ""
		for racer, err := range errs[1:] {
			switch {
			case err == nil && winner != "":
				t.Errorf("%s and %d won", winner, racer+1)
			case err == nil:
				winner = strconv.Itoa(racer + 1)
			case !errors.Is(err, storage.ErrPreconditionFailed):
				t.Errorf("racer %d: %v", racer+1, err)
			}
		}
		data, _, err := s.Get(t.Context(), key)
		if !errors.Is(err, storage.ErrNotFound) && (err != nil || winner == "" || string(data) != winner) {
			t.Errorf("%q won, the object holds %q, %v", winner, data, err)
		}
	}
}

// Readers see one state or the other, whole, never a mixture, a part or
// nothing.
func testPutsAreAtomic(t *testing.T, s storage.Store) {
	const size = 256 << 10
	state := func(i int) []byte { return bytes.Repeat([]byte{byte('a' + i)}, size+i) }
	if _, err := s.Put(t.Context(), "k", bytes.NewReader(state(0))); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var group, reading sync.WaitGroup
	for range 4 {
		reading.Add(1)
		group.Go(func() {
			begun := sync.OnceFunc(reading.Done)
			defer begun()
			for ctx.Err() == nil {
				data, info, err := s.Get(t.Context(), "k")
				if err != nil {
					t.Errorf("while it was overwritten: %v", err)
					return
				}
				i := len(data) - size
				if i < 0 || i > 20 || !bytes.Equal(data, state(i)) || info.Size != int64(len(data)) {
					t.Errorf("read %d bytes of no one state, info %+v", len(data), info)
					return
				}
				begun()
			}
		})
	}
	reading.Wait() // all have read once, and go on
	var etag storage.ETag
	for i := 1; i <= 20; i++ {
		var info storage.ObjectInfo
		var err error
		if i%2 == 0 {
			info, err = s.PutIfMatch(t.Context(), "k", state(i), etag)
		} else {
			info, err = s.Put(t.Context(), "k", bytes.NewReader(state(i)))
		}
		if err != nil {
			t.Fatal(err)
		}
		etag = info.ETag
	}
	cancel()
	group.Wait()
}
