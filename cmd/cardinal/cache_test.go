package main

import (
	"errors"
	"os"
	"testing"

	"cardinalsin/storage/cache"
)

// TestTwoCaches: a second process is not in the way of the first, nor leaves
// anything behind; a directory that was asked for is never exchanged.
func TestTwoCaches(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	first, own, err := openCache("", 1<<20)
	if err != nil || own != "" {
		t.Fatal(own, err)
	}
	second, own, err := openCache("", 1<<20)
	if err != nil || own == "" {
		t.Fatal(own, err)
	}
	if err := errors.Join(first.Close(), second.Close(), os.RemoveAll(own)); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	named, _, err := openCache(dir, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer named.Close()
	if _, _, err := openCache(dir, 1<<20); !errors.Is(err, cache.ErrInUse) {
		t.Errorf("error is %v", err)
	}
}
