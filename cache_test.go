package cardinalsin

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cardinalsin/storage"
	"cardinalsin/storage/cache"
)

// TestDamageOfCacheIsTold: the log and who asked for it hear of a damaged file.
func TestDamageOfCacheIsTold(t *testing.T) {
	dir := t.TempDir()
	short := filepath.Join(dir, "obj-"+strings.Repeat("0", 32)+"-100-"+strings.Repeat("0", 16))
	if err := os.WriteFile(short, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	var told []cache.Damage
	db, err := Open(t.Context(), Options{
		Store: "file://" + t.TempDir(), Create: true, CacheDir: dir, Logger: slog.New(slog.NewTextHandler(&log, nil)),
		// A store whose files have no paths is cached.
		Wrap:        func(s storage.Store) storage.Store { return struct{ storage.Store }{s} },
		CacheEvents: cache.Events{Damaged: func(d cache.Damage) { told = append(told, d) }},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(told) != 1 || told[0].Path != short || told[0].Length != 100 || !errors.Is(told[0].Err, cache.ErrDamaged) {
		t.Errorf("told %+v", told)
	}
	if !strings.Contains(log.String(), "level=WARN") || !strings.Contains(log.String(), short) {
		t.Errorf("the log says %q", log.String())
	}
}
