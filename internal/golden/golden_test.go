package golden

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"cardinalsin/action"
	"cardinalsin/checkpoint"
	"cardinalsin/chunk"
	"cardinalsin/deletion"
	"cardinalsin/storage/local"
	"cardinalsin/txlog"
)

// tally counts what was compared, over all tables.
type tally struct {
	tables, passed, refused            int
	files, versions, counted, compared int
	countedVersions, vacuumed          int
	exceptions                         []string
	partial                            []string
}

// TestGolden compares each table with the manifests. It prints one line for
// each table that fails or is compared in part, and the totals.
func TestGolden(t *testing.T) {
	dir := folder(t)
	tables := readManifest(t, dir)
	var sum tally
	t.Cleanup(func() {
		if sum.tables == 0 {
			return // another test was asked for
		}
		slices.Sort(sum.partial)
		for _, s := range slices.Compact(sum.partial) {
			fmt.Println("partial  ", s)
		}
		for _, s := range sum.exceptions {
			fmt.Println("exception", s)
		}
		fmt.Printf("compared  %d files, %d versions; %d tables refused as they must be\n", sum.files, sum.versions, sum.refused)
		fmt.Printf("rows      counted in %d tables and %d older versions, and compared one by one in %d; the files of %d older versions are gone\n",
			sum.counted, sum.countedVersions, sum.compared, sum.vacuumed)
		fmt.Printf("golden %d/%d\n", sum.passed, sum.tables)
	})
	for i := range tables {
		tab := &tables[i]
		t.Run(tab.name, func(t *testing.T) {
			sum.tables++
			c := &comparison{table: tab, sum: &sum, dir: dir}
			err := c.run(t)
			if why, ok := exception(err); ok {
				sum.exceptions = append(sum.exceptions, fmt.Sprintf("%s: %s: %v", tab.name, why, err))
				return
			}
			if err != nil {
				t.Error(err)
				return
			}
			sum.passed++
		})
	}
}

// exception says why an error is right though the manifest has figures for
// the table.
func exception(err error) (why string, ok bool) {
	if errors.Is(err, txlog.ErrUnsupported) && strings.Contains(err.Error(), `reader feature "catalog`) {
		return "only a catalog knows the latest version; a reader without one must refuse", true
	}
	return "", false
}

// comparison is one table under test.
type comparison struct {
	table *table
	sum   *tally
	dir   string
	log   *txlog.Log
	snap  *txlog.Snapshot
}

func (c *comparison) run(t *testing.T) error {
	dir, root := c.dir, c.table.name
	var err error
	if c.table.isArchive() {
		dir = t.TempDir()
		if root, err = unpack(filepath.Join(c.dir, filepath.FromSlash(c.table.name)), dir); err != nil {
			return fmt.Errorf("unpack: %w", err)
		}
	}
	if !c.table.isArchive() {
		if dir, err = c.instance(t); err != nil {
			return err
		}
	}
	store, err := local.New(dir, local.Options{})
	if err != nil {
		return err
	}
	ctx := t.Context()
	c.log, err = txlog.Open(ctx, store, root, txlog.Options{})
	if refusal, ok := c.mustFail(); ok {
		if err == nil {
			err = c.readAll(t) // the log may be sound and the data not
		}
		if err := refusal.check(err); err != nil {
			return err
		}
		c.sum.refused++
		return nil
	}
	if err != nil && (c.table.has("no metaData") || c.table.has("no metadata")) {
		// Without MUST_FAIL the manifest only tried whether it can be replayed.
		if !errors.Is(err, action.ErrCorrupt) || !strings.Contains(err.Error(), "metaData") && !strings.Contains(err.Error(), ".json") {
			return err
		}
		c.sum.refused++
		return nil
	}
	if err != nil {
		return err
	}
	if c.snap, err = c.log.Snapshot(ctx, txlog.Latest()); err != nil {
		return err
	}
	if c.table.has("replay:") {
		// It takes one action a line, and this log has many lines for one.
		c.sum.partial = append(c.sum.partial, fmt.Sprintf("%s: read, and nothing to compare with: the manifest's own replay failed (%s)", c.table.name, c.table.note()))
		c.table.manifest["expected_rows"] = ""
		return c.compareRows(t)
	}
	return errors.Join(c.compareState(t), c.compareFiles(t), c.compareVersions(t), c.compareRows(t))
}

// refusal is how a table must fail.
type refusal struct {
	any   []error  // one of these
	names []string // the error names one of these
}

func (r refusal) check(err error) error {
	if err == nil {
		return fmt.Errorf("opens, and must fail")
	}
	if !slices.ContainsFunc(r.any, func(target error) bool { return errors.Is(err, target) }) {
		return fmt.Errorf("fails by another error than %v: %w", r.any, err)
	}
	if !slices.ContainsFunc(r.names, func(name string) bool { return strings.Contains(err.Error(), name) }) {
		return fmt.Errorf("the error names none of %q: %w", r.names, err)
	}
	return nil
}

// mustFail reads from the note whether a correct reader refuses the table.
func (c *comparison) mustFail() (refusal, bool) {
	t := c.table
	must := t.has("MUST_FAIL")
	corrupt := []error{action.ErrCorrupt, checkpoint.ErrCorrupt}
	switch {
	case must && (t.has("version too high") || t.has("reader version") || t.has("feature") || t.has("readers without") || t.has("unsupported")):
		return refusal{[]error{txlog.ErrUnsupported}, []string{"reader version", "reader feature"}}, true
	case must && t.has("gap"):
		return refusal{corrupt, []string{".json"}}, true
	case must && (t.has("metaData") || t.has("protocol")):
		return refusal{corrupt, []string{"protocol", "metaData"}}, true
	case must: // for a reason that the note does not tell in words we know
		return refusal{
			append(corrupt, txlog.ErrUnsupported, txlog.ErrNotTable, chunk.ErrCorrupt, deletion.ErrCorrupt),
			[]string{t.name, ".json", ".parquet", ".bin", "feature", "version"},
		}, true
	case t.has("no commits"):
		return refusal{[]error{txlog.ErrNotTable}, []string{t.name}}, true
	}
	return refusal{}, false
}

// compareState compares the latest version with the manifest.
func (c *comparison) compareState(t *testing.T) error {
	m := c.table.manifest
	want := map[string]string{}
	for _, column := range []string{"latest_version", "active_files", "tombstones", "active_bytes", "dv_files:deleted_rows", "live_txn_appids", "live_domain_metadata", "protocol_r/w"} {
		want[column] = m[column]
	}
	if c.table.has("EXPECTED active=0") {
		// The manifest's own replay does not unify the forms of a path.
		want["active_files"], want["active_bytes"] = "0", "0"
	}
	var dvs, deleted int64
	for f := range c.snap.Files() {
		if f.DeletionVector != nil {
			dvs++
			deleted += f.DeletionVector.Cardinality
		}
	}
	domains, txns := 0, 0
	for range c.snap.Domains() {
		domains++
	}
	for range c.snap.Transactions() {
		txns++
	}
	p := c.snap.Protocol()
	got := map[string]string{
		"latest_version":        fmt.Sprint(int64(c.snap.Version())),
		"active_files":          fmt.Sprint(c.snap.NumFiles()),
		"tombstones":            fmt.Sprint(c.snap.NumTombstones()),
		"active_bytes":          fmt.Sprint(c.snap.Bytes()),
		"dv_files:deleted_rows": fmt.Sprintf("%d:%d", dvs, deleted),
		"live_txn_appids":       fmt.Sprint(txns),
		"live_domain_metadata":  fmt.Sprint(domains),
		"protocol_r/w":          fmt.Sprintf("%d/%d", p.MinReaderVersion, p.MinWriterVersion),
	}
	for column, value := range want {
		if value == "" {
			got[column] = ""
		}
	}
	return differ("state", want, got)
}

func differ(what string, want, got any) error {
	if d := cmp.Diff(want, got); d != "" {
		return fmt.Errorf("%s differs (-manifest +ours):\n%s", what, d)
	}
	return nil
}

// compareFiles compares the live files with ACTIVE.tsv.
func (c *comparison) compareFiles(t *testing.T) error {
	active := c.table.active
	if len(active) == 0 && c.snap.NumFiles() > 0 {
		if !c.table.isArchive() {
			c.sum.partial = append(c.sum.partial, c.table.name+": its files are not in ACTIVE.tsv")
		}
		return nil
	}
	if c.table.has("EXPECTED active=0") {
		active = nil
	}
	var want, got []string
	stated := map[action.Key]bool{}
	for _, r := range active {
		stated[action.Key{Path: r["path_as_logged"], DV: r["dv_unique_id"]}] = r["numRecords"] != ""
		want = append(want, strings.Join([]string{r["path_as_logged"], r["dv_unique_id"], r["size"], r["numRecords"], r["dv_cardinality"]}, " | "))
	}
	for f := range c.snap.Files() {
		records, cardinality := "", "0"
		n, ok, err := recordsOf(f)
		if err != nil {
			return err
		}
		if ok && stated[f.Key()] {
			records = fmt.Sprint(n)
		}
		if f.DeletionVector != nil {
			cardinality = fmt.Sprint(f.DeletionVector.Cardinality)
		}
		got = append(got, strings.Join([]string{f.Path, f.DeletionVector.UniqueID(), fmt.Sprint(f.Size), records, cardinality}, " | "))
	}
	slices.Sort(want)
	slices.Sort(got)
	c.sum.files += len(got)
	return differ("active files", want, got)
}

// compareVersions travels to each version of VERSIONS.tsv.
func (c *comparison) compareVersions(t *testing.T) error {
	for _, r := range c.table.versions {
		v, ok := r.number(t, "version")
		if !ok {
			return fmt.Errorf("VERSIONS.tsv: a row without a version")
		}
		s, err := c.log.Snapshot(t.Context(), txlog.AtVersion(action.Version(v)))
		if err != nil {
			return fmt.Errorf("version %d: %w", v, err)
		}
		want := map[string]string{"active_files": r["active_files"], "tombstones": r["tombstones"], "active_bytes": r["active_bytes"], "rows": r["rows_from_stats_minus_dv"]}
		if c.table.has("EXPECTED active=0") && v > 0 {
			want["active_files"], want["active_bytes"] = "0", "0"
		}
		got := map[string]string{
			"active_files": fmt.Sprint(s.NumFiles()), "tombstones": fmt.Sprint(s.NumTombstones()),
			"active_bytes": fmt.Sprint(s.Bytes()), "rows": "",
		}
		if v == int64(c.snap.Version()) && c.table.manifest["tombstones"] != "" {
			// VERSIONS.tsv replays the commits; a checkpoint leaves out
			// tombstones past their retention, as MANIFEST.tsv knows.
			want["tombstones"] = c.table.manifest["tombstones"]
		}
		if want["rows"] != "" {
			rows, ok, err := rowsOf(s)
			if err != nil {
				return fmt.Errorf("version %d: %w", v, err)
			}
			if got["rows"] = fmt.Sprint(rows); !ok {
				want["rows"], got["rows"] = "", "" // a checkpoint without statistics
			}
		}
		c.sum.versions++
		if err := differ(fmt.Sprintf("version %d", v), want, got); err != nil {
			return err
		}
	}
	return nil
}

// recordsOf is the number of rows that a file's statistics state; ok is false
// where they do not.
func recordsOf(f *action.Add) (n int64, ok bool, err error) {
	if f.Stats == "" {
		return 0, false, nil
	}
	var s struct{ NumRecords *int64 }
	if err := json.Unmarshal([]byte(f.Stats), &s); err != nil {
		return 0, false, fmt.Errorf("statistics of %s: %w", f.Path, err)
	}
	if s.NumRecords == nil {
		return 0, false, nil
	}
	return *s.NumRecords, true, nil
}

// rowsOf is the number of live rows by the statistics.
func rowsOf(s *txlog.Snapshot) (rows int64, ok bool, err error) {
	for f := range s.Files() {
		n, known, err := recordsOf(f)
		if err != nil || !known {
			return 0, false, err
		}
		rows += n
		if f.DeletionVector != nil {
			rows -= f.DeletionVector.Cardinality
		}
	}
	return rows, true, nil
}

// unpack unpacks an archive and returns the path of the table in it.
func unpack(archive, into string) (root string, err error) {
	f, err := os.Open(archive)
	if err != nil {
		return "", err
	}
	defer f.Close()
	z, err := zstd.NewReader(f)
	if err != nil {
		return "", err
	}
	defer z.Close()
	to, err := os.OpenRoot(into)
	if err != nil {
		return "", err
	}
	defer to.Close()
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", err
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		name := filepath.Clean(h.Name)
		if err := to.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return "", err
		}
		out, err := to.Create(name)
		if err != nil {
			return "", err
		}
		_, err = io.Copy(out, r)
		if err := errors.Join(err, out.Close()); err != nil {
			return "", err
		}
		if dir := filepath.ToSlash(filepath.Dir(name)); strings.HasSuffix(dir, "_delta_log") {
			root = strings.TrimSuffix(strings.TrimSuffix(dir, "_delta_log"), "/")
		}
	}
	if root == "" {
		return "", fmt.Errorf("no table in %s", archive)
	}
	return root, nil
}
