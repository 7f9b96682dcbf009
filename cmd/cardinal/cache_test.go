package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"cardinalsin"
	"cardinalsin/storage"
	"cardinalsin/storage/cache"
)

// remote hides that a store's objects are files.
type remote struct{ storage.Store }

// TestTwoCaches: a second process is not in the way of the first, nor leaves
// anything behind; a directory that was asked for is never exchanged.
func TestTwoCaches(t *testing.T) {
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	o := cardinalsin.Options{Store: t.TempDir(), Create: true, Wrap: func(s storage.Store) storage.Store { return remote{s} }}
	_, closeFirst, err := openWithCache(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	second, closeSecond, err := openWithCache(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(cacheMetrics(second.Cache()))
	if families, err := registry.Gather(); err != nil || len(families) != len(cacheCounts) {
		t.Errorf("%d metrics, %v", len(families), err)
	}
	dirs := func() int {
		t.Helper()
		found, err := filepath.Glob(filepath.Join(temp, "cardinal-cache-*"))
		if err != nil {
			t.Fatal(err)
		}
		return len(found)
	}
	if n := dirs(); n != 2 {
		t.Errorf("%d directories", n)
	}
	if err := errors.Join(closeSecond(t.Context()), closeFirst(t.Context())); err != nil {
		t.Fatal(err)
	}
	if n := dirs(); n != 1 {
		t.Errorf("%d directories are left", n)
	}
	o.CacheDir = t.TempDir()
	_, closeNamed, err := openWithCache(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := openWithCache(t.Context(), o); !errors.Is(err, cache.ErrInUse) {
		t.Errorf("error is %v", err)
	}
	if err := closeNamed(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(o.CacheDir); err != nil {
		t.Error(err)
	}
}
