package golden

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"cardinalsin/action"
	"cardinalsin/reader"
	"cardinalsin/sqlengine"
	"cardinalsin/storage"
	"cardinalsin/txlog"
)

// compareRows reads the table by SQL: all rows of the latest version, compared
// with those expected where the folder has them; and the number of rows of
// each version.
func (c *comparison) compareRows(t *testing.T) error {
	e, err := sqlengine.New(t.Context(), reader.New(c.log, nil, reader.Options{}), sqlengine.Options{})
	if err != nil {
		return err
	}
	defer e.Close()
	latest := int64(c.snap.Version())
	errs := []error{c.compareLatest(t, e)}
	for _, r := range c.table.versions {
		v, _ := r.number(t, "version")
		want, ok := r.number(t, "rows_from_stats_minus_dv")
		if !ok || v == latest {
			continue
		}
		at := txlog.AtVersion(action.Version(v))
		s, err := c.log.Snapshot(t.Context(), at)
		if err != nil {
			return err
		}
		if lost, err := c.lost(s); err != nil {
			return err
		} else if lost != "" {
			c.sum.vacuumed++
			continue
		}
		got, err := c.count(t.Context(), e, at)
		if err == nil && got != want {
			err = fmt.Errorf("%d rows, not %d", got, want)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("version %d: %w", v, err))
		}
		c.sum.countedVersions++
		expected, err := c.table.expectedAt(c.dir, fmt.Sprintf("v%d", v))
		if err != nil {
			return err
		}
		if len(expected) > 0 {
			if err := c.compareContent(t, e, at, expected); err != nil {
				errs = append(errs, fmt.Errorf("version %d: %w", v, err))
			}
		}
	}
	return errors.Join(errs...)
}

// readAll reads all rows and columns of the latest version.
func (c *comparison) readAll(t *testing.T) error {
	e, err := sqlengine.New(t.Context(), reader.New(c.log, nil, reader.Options{}), sqlengine.Options{})
	if err != nil {
		return err
	}
	defer e.Close()
	return c.write(t.Context(), e, txlog.Latest(), "*", os.DevNull)
}

func (c *comparison) compareLatest(t *testing.T, e *sqlengine.Engine) error {
	lost, err := c.lost(c.snap)
	if err != nil {
		return err
	}
	want, known := c.table.manifest.number(t, "expected_rows")
	if lost != "" {
		if !known {
			return nil // the manifest has no rows either
		}
		rows, ok, err := rowsOf(c.snap)
		if err != nil {
			return err
		}
		if !ok || rows != want {
			return fmt.Errorf("%d rows by the statistics, not %d; the folder lacks %s", rows, want, lost)
		}
		c.sum.partial = append(c.sum.partial, c.table.name+": its data files are not in the folder, rows counted by the statistics")
		return nil
	}
	got, err := c.count(t.Context(), e, txlog.Latest())
	if err != nil {
		return err
	}
	if known && got != want {
		return fmt.Errorf("%d rows, not %d", got, want)
	}
	if known {
		c.sum.counted++
	}
	expected, err := c.table.expected(c.dir)
	if err != nil {
		return err
	}
	return c.compareContent(t, e, txlog.Latest(), expected)
}

// count counts the rows at a version.
func (c *comparison) count(ctx context.Context, e *sqlengine.Engine, at txlog.At) (int64, error) {
	var b strings.Builder
	rows, err := e.Query(ctx, "SELECT count(*) AS n FROM this_table", sqlengine.QueryOptions{At: at})
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	if _, err := sqlengine.FormatCSV.Write(ctx, &b, rows); err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(strings.TrimPrefix(b.String(), "n")), 10, 64)
}

// maxWritten is the number of rows up to which a table without expected rows
// is turned into Parquet.
const maxWritten = 1_000_000

// compareContent reads every column of every row, and compares them with the
// expected ones if there are any.
func (c *comparison) compareContent(t *testing.T, e *sqlengine.Engine, at txlog.At, expected []string) error {
	columns, err := c.readable(t.Context(), e, at)
	if err != nil {
		return err
	}
	if len(columns) == 0 {
		return nil
	}
	if len(expected) == 0 {
		n, err := c.count(t.Context(), e, at)
		if err != nil {
			return err
		}
		if n > maxWritten {
			// Every value is decoded all the same.
			for i := range columns {
				columns[i] = "max(hash(" + columns[i] + "))"
			}
		}
		return c.write(t.Context(), e, at, strings.Join(columns, ", "), os.DevNull)
	}
	file := filepath.Join(t.TempDir(), "ours.parquet")
	if err := c.write(t.Context(), e, at, strings.Join(columns, ", "), file); err != nil {
		return err
	}
	j := newJudge(t)
	missing, err := j.sameRows(file, expected, nil)
	if err != nil {
		// A timestamp in a path has no zone: it is the local time of whoever
		// wrote it, which only the writer knows (PROTOCOL.md, "Partition
		// Value Serialization"). We take it for UTC, as the kernels do.
		local := c.localTimes()
		if len(local) == 0 {
			return err
		}
		if missing, err = j.sameRows(file, expected, local); err != nil {
			return err
		}
		for _, column := range local {
			missing = append(missing, column+" (partition values in the writer's unknown time zone, taken for UTC)")
		}
	}
	c.sum.compared++
	if len(missing) > 0 {
		c.sum.partial = append(c.sum.partial, c.table.name+": not compared: "+strings.Join(missing, ", "))
	}
	return nil
}

// localTimes lists the partition columns with timestamps that have no zone.
func (c *comparison) localTimes() []string {
	var columns []string
	for _, column := range c.snap.Metadata().PartitionColumns {
		f := c.snap.Schema().Field(column)
		if f == nil || f.Primitive() != "timestamp" {
			continue
		}
		for file := range c.snap.Files() {
			if v, ok := file.PartitionValues.Get(column); ok && v != "" && !strings.HasSuffix(v, "Z") {
				columns = append(columns, column)
				break
			}
		}
	}
	return columns
}

// readable lists the columns that can be read, quoted. Of the others the
// table is compared without.
func (c *comparison) readable(ctx context.Context, e *sqlengine.Engine, at txlog.At) ([]string, error) {
	s, err := c.log.Snapshot(ctx, at)
	if err != nil {
		return nil, err
	}
	var columns, variants []string
	for i := range s.Schema().Fields {
		f := &s.Schema().Fields[i]
		if strings.Contains(string(f.Type), `"variant"`) {
			variants = append(variants, f.Name)
			if err := c.write(ctx, e, at, name(f.Name), os.DevNull); !errors.Is(err, txlog.ErrUnsupported) || !strings.Contains(err.Error(), f.Name) {
				return nil, fmt.Errorf("variant column %s: %w", f.Name, err)
			}
			continue
		}
		columns = append(columns, name(f.Name))
	}
	if len(variants) > 0 {
		c.sum.partial = append(c.sum.partial, fmt.Sprintf("%s: rows counted; columns %v hold variants, which we refuse to read", c.table.name, variants))
	}
	return columns, nil
}

func (c *comparison) write(ctx context.Context, e *sqlengine.Engine, at txlog.At, columns, file string) error {
	rows, err := e.Query(ctx, "SELECT "+columns+" FROM this_table", sqlengine.QueryOptions{At: at})
	if err != nil {
		return err
	}
	defer rows.Close()
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	_, err = sqlengine.FormatParquet.Write(ctx, f, rows)
	return errors.Join(err, f.Close())
}

// lost names a live file that the folder does not have.
func (c *comparison) lost(s *txlog.Snapshot) (string, error) {
	for f := range s.Files() {
		key, err := c.log.Key(f.Path)
		if errors.Is(err, txlog.ErrUnsupported) {
			return f.Path, nil // an absolute path, of a machine that is not ours
		}
		if err != nil {
			return "", err
		}
		path, _ := storage.LocalPath(c.log.Store(), key)
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return f.Path, nil
		} else if err != nil {
			return "", err
		}
	}
	return "", nil
}

// templates are what published tables have in place of an absolute path: the
// text in the log, and the directory of the table that it stands for.
var templates = map[string]string{"{{FOLDER_WITH_SPECIAL_CHAR}}": "folder&with%special char"}

// instance returns the folder that has the table: c.dir, or for a table whose
// log is a template a temporary one with a copy that is filled in.
func (c *comparison) instance(t *testing.T) (string, error) {
	from := filepath.Join(c.dir, filepath.FromSlash(c.table.name))
	logs, err := filepath.Glob(filepath.Join(from, "_delta_log", "*.json"))
	if err != nil {
		return "", err
	}
	read := map[string]string{}
	isTemplate := false
	for _, path := range logs {
		data, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		read[filepath.Base(path)] = string(data)
		for template := range templates {
			isTemplate = isTemplate || strings.Contains(string(data), template)
		}
	}
	if !isTemplate {
		return c.dir, nil
	}
	dir := t.TempDir()
	to := filepath.Join(dir, filepath.FromSlash(c.table.name))
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		return "", err
	}
	fill := func(s string) string {
		for template, folder := range templates {
			s = strings.ReplaceAll(s, template, (&url.URL{Path: filepath.ToSlash(filepath.Join(to, folder))}).EscapedPath())
		}
		return s
	}
	for base, text := range read {
		path := filepath.Join(to, "_delta_log", base)
		if err := os.Remove(path); err != nil { // a copy is read-only like its original
			return "", err
		}
		if err := os.WriteFile(path, []byte(fill(text)), 0o600); err != nil {
			return "", err
		}
	}
	for _, r := range c.table.active {
		for column := range r {
			r[column] = fill(r[column])
		}
	}
	return dir, nil
}
