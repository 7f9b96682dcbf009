package golden

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// folder is where the tables are, as an absolute path.
func folder(tb testing.TB) string {
	tb.Helper()
	dir := os.Getenv("CARDINAL_GOLDEN")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared", "golden")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		tb.Fatal(err)
	}
	switch _, err := os.Stat(filepath.Join(dir, "MANIFEST.tsv")); {
	case errors.Is(err, fs.ErrNotExist):
		tb.Skipf("no tables of other engines in %s; set CARDINAL_GOLDEN to a folder with a MANIFEST.tsv", dir)
	case err != nil:
		tb.Fatal(err)
	}
	return dir
}

// row is one line of a TSV file, by column.
type row map[string]string

// number is a count in a column; ok is false where the cell is empty.
func (r row) number(tb testing.TB, column string) (n int64, ok bool) {
	tb.Helper()
	text, has := r[column]
	if !has {
		tb.Fatalf("no column %q", column)
	}
	if text == "" {
		return 0, false
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		tb.Fatalf("column %s: %v", column, err)
	}
	return n, true
}

// readTSV reads a file of the folder; one that is missing has no rows.
func readTSV(tb testing.TB, dir, name string) []row {
	tb.Helper()
	f, err := os.Open(filepath.Join(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	r := csv.NewReader(f)
	r.Comma, r.LazyQuotes, r.FieldsPerRecord = '\t', true, -1
	lines, err := r.ReadAll()
	if err != nil {
		tb.Fatal(fmt.Errorf("%s: %w", name, err))
	}
	if len(lines) == 0 {
		return nil
	}
	var out []row
	for _, line := range lines[1:] {
		one := row{}
		for i, column := range lines[0] {
			one[column] = ""
			if i < len(line) {
				one[column] = line[i]
			}
		}
		out = append(out, one)
	}
	return out
}

// table is one row of the manifest with what the other files say of it.
type table struct {
	name     string // path below the folder
	manifest row
	active   []row
	versions []row
}

func readManifest(tb testing.TB, dir string) []table {
	tb.Helper()
	byName := func(rows []row, column string) map[string][]row {
		m := map[string][]row{}
		for _, r := range rows {
			m[r[column]] = append(m[r[column]], r)
		}
		return m
	}
	active := byName(readTSV(tb, dir, "ACTIVE.tsv"), "table")
	versions := byName(readTSV(tb, dir, "VERSIONS.tsv"), "table")
	var out []table
	for _, r := range readTSV(tb, dir, "MANIFEST.tsv") {
		name := r["table_path"]
		out = append(out, table{name: name, manifest: r, active: active[name], versions: versions[name]})
	}
	if len(out) == 0 {
		tb.Fatal("MANIFEST.tsv has no rows")
	}
	return out
}

func (t *table) note() string      { return t.manifest["note"] }
func (t *table) isArchive() bool   { return strings.HasSuffix(t.name, ".tar.zst") }
func (t *table) has(s string) bool { return strings.Contains(t.note(), s) }

// expected lists the Parquet files with the rows of the latest version.
func (t *table) expected(dir string) ([]string, error) {
	if files, err := t.expectedAt(dir, "latest"); err != nil || len(files) > 0 {
		return files, err
	}
	return t.expectedAt(dir, "")
}

// expectedAt lists those of a version. The tables that have some are called
// delta, and the rows lie in the folder expected beside them.
func (t *table) expectedAt(dir, version string) ([]string, error) {
	at := filepath.Join(dir, filepath.FromSlash(t.name))
	if filepath.Base(at) != "delta" {
		return nil, nil
	}
	var files []string
	err := filepath.WalkDir(filepath.Join(filepath.Dir(at), "expected", version), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.HasSuffix(path, ".parquet") {
			files = append(files, path)
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	slices.Sort(files)
	return files, err
}
