package sqlengine

import (
	"context"
	"testing"
)

// TestSpares: after a query databases wait for the next ones, each of which has
// one of its own with its own settings; none is left behind.
func TestSpares(t *testing.T) {
	ctx := context.Background()
	var s spares
	s.fill()
	s.filler.Wait()
	if len(s.ready) != maxSpares {
		t.Fatalf("%d databases wait, want %d", len(s.ready), maxSpares)
	}
	dir := t.TempDir()
	first, err := s.take(ctx, settings{threads: 3, memoryBytes: 96 << 20, spillDir: dir, spillBytes: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	defer first.close()
	if len(s.ready) != maxSpares-1 {
		t.Errorf("%d databases wait, want %d", len(s.ready), maxSpares-1)
	}
	if err := first.exec(ctx, "CREATE TABLE secret AS SELECT 1"); err != nil {
		t.Fatal(err)
	}
	second, err := s.take(ctx, settings{threads: 1, memoryBytes: 128 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer second.close()
	if err := second.exec(ctx, "FROM secret"); err == nil {
		t.Error("a query sees another one's table")
	}
	for _, c := range []struct {
		d    *database
		want [3]string
	}{{first, [3]string{"3", "96.0 MiB", first.spill}}, {second, [3]string{"1", "128.0 MiB", ""}}} {
		rows, err := c.d.rows(ctx, "SELECT current_setting('threads')::VARCHAR, current_setting('memory_limit')::VARCHAR, current_setting('temp_directory')::VARCHAR")
		if err != nil {
			t.Fatal(err)
		}
		if got := [3]string(rows[0]); got != c.want {
			t.Errorf("settings are %v, want %v", got, c.want)
		}
	}
	s.fill()
	s.close()
	s.fill()
	s.filler.Wait()
	if len(s.ready) != 0 {
		t.Errorf("%d databases are left", len(s.ready))
	}
}
