package checkpoint

import (
	"archive/tar"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"cardinalsin/action"
	"cardinalsin/checkpoint/internal/parquetcol"
	"cardinalsin/storage"
	"cardinalsin/storage/mem"
)

// goldenDir holds tables that other engines wrote, outside the project.
const goldenDir = "../../shared/golden"

// goldenTable is a row of the manifest.
type goldenTable struct {
	path               string
	latest             action.Version
	active, tombstones int
	txns, domains      int
	used, note         string
}

func tsv(t testing.TB, name string) [][]string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(goldenDir, name))
	if errors.Is(err, os.ErrNotExist) {
		t.Skipf("no %s: the tables of other engines are not part of the project", filepath.Join(goldenDir, name))
	}
	if err != nil {
		t.Fatal(err)
	}
	var rows [][]string
	for _, line := range strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")[1:] {
		rows = append(rows, strings.Split(line, "\t"))
	}
	return rows
}

func manifest(t testing.TB) []goldenTable {
	t.Helper()
	int := func(s string) int {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("manifest: %v", err)
		}
		return n
	}
	var out []goldenTable
	for _, r := range tsv(t, "MANIFEST.tsv") {
		out = append(out, goldenTable{
			path: r[0], latest: action.Version(int(r[5])), active: int(r[6]), tombstones: int(r[7]),
			txns: int(r[10]), domains: int(r[11]), used: r[13], note: r[len(r)-1],
		})
	}
	return out
}

// loadLog copies a table's log into a store in memory.
func loadLog(t testing.TB, table string) storage.Store {
	t.Helper()
	store := mem.New(mem.Options{})
	put := func(name string, data []byte) {
		if len(name) == 0 || storage.ValidateKey(path.Join(logDir, name)) != nil {
			return
		}
		if _, err := store.Put(t.Context(), path.Join(logDir, name), bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(goldenDir, table)
	if strings.HasSuffix(table, ".tar.zst") {
		packed, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		z, err := zstd.NewReader(bytes.NewReader(packed))
		if err != nil {
			t.Fatal(err)
		}
		defer z.Close()
		for r := tar.NewReader(z); ; {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				return store
			}
			if err != nil {
				t.Fatal(err)
			}
			_, name, ok := strings.Cut(h.Name, "_delta_log/")
			if !ok || h.Typeflag != tar.TypeReg {
				continue
			}
			data, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			put(name, data)
		}
	}
	root := filepath.Join(file, "_delta_log")
	err := filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, p)
		put(filepath.ToSlash(name), data)
		return err
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return store
}

// replay is a plain replay of the log, the yardstick for checkpoints.
type replay struct {
	adds     map[action.Key]action.Add
	removes  map[action.Key]action.Remove
	txns     map[string]action.SetTransaction
	domains  map[string]action.DomainMetadata
	protocol *action.Protocol
	metadata *action.Metadata
}

func newReplay() *replay {
	return &replay{
		adds: map[action.Key]action.Add{}, removes: map[action.Key]action.Remove{},
		txns: map[string]action.SetTransaction{}, domains: map[string]action.DomainMetadata{},
	}
}

func (r *replay) sink() Sink {
	return Sink{
		Protocol: func(p *action.Protocol) error { r.protocol = p; return nil },
		Metadata: func(m *action.Metadata) error { r.metadata = m; return nil },
		Txn:      func(x action.SetTransaction) error { r.txns[x.AppID] = x; return nil },
		Domain:   func(d action.DomainMetadata) error { r.domains[d.Domain] = d; return nil },
		Add: func(a *action.Add) error {
			if _, ok := r.adds[a.Key()]; ok {
				return fmt.Errorf("add of %v twice", a.Key())
			}
			r.adds[a.Key()] = *a
			return nil
		},
		Remove: func(x *action.Remove) error { r.removes[x.Key()] = *x; return nil },
	}
}

func (r *replay) apply(c *action.Commit) {
	if c.Protocol != nil {
		r.protocol = c.Protocol
	}
	if c.Metadata != nil {
		r.metadata = c.Metadata
	}
	for _, x := range c.Txns {
		r.txns[x.AppID] = x
	}
	for _, d := range c.Domains {
		r.domains[d.Domain] = d
	}
	for _, x := range c.Removes {
		delete(r.adds, x.Key())
		r.removes[x.Key()] = x
	}
	for _, a := range c.Adds {
		delete(r.removes, a.Key())
		r.adds[a.Key()] = a
	}
	for k, d := range r.domains {
		if d.Removed {
			delete(r.domains, k)
		}
	}
}

// commits replays the commits from..to; ok is false where one is missing.
func (r *replay) commits(t testing.TB, store storage.Store, from, to action.Version) bool {
	t.Helper()
	for v := from; v <= to; v++ {
		data, _, err := store.Get(t.Context(), path.Join(logDir, v.String()+".json"))
		if errors.Is(err, storage.ErrNotFound) {
			return false
		}
		if err != nil {
			t.Fatal(err)
		}
		// Who made a commit is no part of a checkpoint, and its form varies.
		var actions []byte
		for line := range bytes.Lines(data) {
			if !bytes.HasPrefix(line, []byte(`{"commitInfo":`)) {
				actions = append(actions, line...)
			}
		}
		c, err := action.Decode(actions)
		if err != nil {
			t.Fatal(err)
		}
		r.apply(c)
	}
	return true
}

// comparable forms of file actions: what a checkpoint must keep, and what
// engines agree on. Statistics are compared apart.
func (r *replay) files() []string {
	var out []string
	for _, a := range r.adds {
		a.PartitionValues, a.Tags = canonical(a.PartitionValues), canonical(a.Tags)
		out = append(out, fmt.Sprintf("%s dv=%v %s %d %d tags=%s row=%v/%v", a.Path, gocmp.Diff(a.DeletionVector, (*action.DeletionVector)(nil)) != "", a.PartitionValues, a.Size, a.ModificationTime, a.Tags, deref(a.BaseRowID), deref(a.DefaultRowCommitVersion)))
	}
	slices.Sort(out)
	return out
}

func deref(p *int64) any {
	if p == nil {
		return nil
	}
	return *p
}

func TestGoldenCheckpoints(t *testing.T) {
	active := map[string][]string{}
	for _, r := range tsv(t, "ACTIVE.tsv") {
		active[r[0]] = append(active[r[0]], r[2]+" "+cmp.Or(r[3], "-"))
	}
	tables, checkpoints, against, rebuilt := 0, map[Kind]int{}, 0, 0
	for _, g := range manifest(t) {
		t.Run(g.path, func(t *testing.T) {
			store := loadLog(t, g.path)
			objs, err := storage.Collect(store.List(t.Context(), logDir+"/0", ""))
			if err != nil {
				t.Fatal(err)
			}
			refs := FromListing(objs)
			if len(refs) > 0 {
				tables++
			} else if g.used != "-" {
				t.Fatalf("no checkpoint found, want %s", g.used)
			}
			for i, ref := range refs {
				checkpoints[ref.Kind]++
				got := newReplay()
				err := Read(t.Context(), store, logDir, ref, got.sink())
				if strings.Contains(g.note, "MUST_FAIL checkpoint") {
					if !errors.Is(err, ErrIncomplete) {
						t.Fatalf("%s: %v, want ErrIncomplete", ref.Keys, err)
					}
					return
				}
				if err != nil {
					t.Fatalf("%s: %v", ref.Keys, err)
				}
				// Where the commits are still there, the checkpoint must
				// equal their replay.
				want := newReplay()
				if want.commits(t, store, 0, ref.Version) {
					against++
					if diff := gocmp.Diff(want.files(), got.files()); diff != "" {
						t.Errorf("%s: files: -commits +checkpoint\n%s", ref.Keys, diff)
					}
					rebuilt += compareStats(t, want, got)
					if diff := gocmp.Diff(want.txns, got.txns); diff != "" {
						t.Errorf("%s: txns: -commits +checkpoint\n%s", ref.Keys, diff)
					}
					if diff := gocmp.Diff(want.domains, got.domains); diff != "" {
						t.Errorf("%s: domains: -commits +checkpoint\n%s", ref.Keys, diff)
					}
					if diff := gocmp.Diff(want.protocol, got.protocol); diff != "" {
						t.Errorf("%s: protocol: -commits +checkpoint\n%s", ref.Keys, diff)
					}
					if want.metadata != nil && !oddMetadata[g.path] {
						want.metadata.SchemaString = compact(t, want.metadata.SchemaString)
						got.metadata.SchemaString = compact(t, got.metadata.SchemaString)
						if diff := gocmp.Diff(stored(&table{Protocol: want.protocol, Metadata: want.metadata}).Metadata, got.metadata); diff != "" {
							t.Errorf("%s: metadata: -commits +checkpoint\n%s", ref.Keys, diff)
						}
					}
				}
				if i > 0 && ref.Version < refs[0].Version {
					continue
				}
				if !got.commits(t, store, ref.Version+1, g.latest) {
					t.Fatalf("commits after %d are missing", ref.Version)
				}
				var keys []string
				for k := range got.adds {
					keys = append(keys, k.Path+" "+cmp.Or(k.DV, "-"))
				}
				slices.Sort(keys)
				slices.Sort(active[g.path])
				if diff := gocmp.Diff(active[g.path], keys); diff != "" && !strings.HasSuffix(g.path, ".zst") {
					t.Errorf("%s: active files: -manifest +checkpoint and tail\n%s", ref.Keys, diff)
				}
				if len(got.adds) != g.active || len(got.removes) != g.tombstones || len(got.txns) != g.txns || len(got.domains) != g.domains {
					t.Errorf("%s: %d files, %d tombstones, %d txns, %d domains, want %+v", ref.Keys, len(got.adds), len(got.removes), len(got.txns), len(got.domains), g)
				}
			}
		})
	}
	t.Logf("%d tables with checkpoints: %v; %d compared with the replay of their commits; statistics of %d files rebuilt", tables, checkpoints, against, rebuilt)
	if tables < 50 || len(checkpoints) != 4 {
		t.Errorf("%d tables, %d kinds of checkpoints: the golden tables are not all there", tables, len(checkpoints))
	}
}

// oddMetadata names tables whose checkpoint was made for another table than
// their commits, to test something else.
var oddMetadata = map[string]bool{"kernel-data/parquet_row_group_skipping": true}

func compact(t testing.TB, s string) string {
	var b bytes.Buffer
	if s == "" {
		return ""
	}
	if err := json.Compact(&b, []byte(s)); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// compareStats compares the statistics of a checkpoint with those of the
// commits. A checkpoint may lack some, or all; what it has must be equal. It
// returns the number of files whose statistics were in struct form only.
func compareStats(t *testing.T, want, got *replay) (rebuilt int) {
	t.Helper()
	for k, a := range got.adds {
		w := want.adds[k]
		if a.Stats == "" || w.Stats == "" || a.Stats == w.Stats {
			continue
		}
		rebuilt++
		for _, diff := range statsDiff("", decodeStats(t, w.Stats), decodeStats(t, a.Stats)) {
			t.Errorf("%s: statistics: %s\ncommit:     %s\ncheckpoint: %s", k.Path, diff, w.Stats, a.Stats)
		}
	}
	return rebuilt
}

func decodeStats(t testing.TB, s string) any {
	d := json.NewDecoder(strings.NewReader(s))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%v: %s", err, s)
	}
	return v
}

var noZone = regexp.MustCompile(`^\d{4}-\d\d-\d\dT[\d:.]+$`)

func statsDiff(at string, want, got any) (diffs []string) {
	switch g := got.(type) {
	case map[string]any:
		w, ok := want.(map[string]any)
		if !ok {
			return []string{fmt.Sprintf("%s: want %v, got an object", at, want)}
		}
		for k, v := range g {
			diffs = append(diffs, statsDiff(at+"."+k, w[k], v)...)
		}
		return diffs
	case json.Number:
		w, ok := want.(json.Number)
		a, ok1 := new(big.Rat).SetString(w.String())
		b, ok2 := new(big.Rat).SetString(g.String())
		if ok && ok1 && ok2 && a.Cmp(b) == 0 {
			return nil
		}
	default:
		if want == got {
			return nil
		}
		// delta-rs once stored instants without saying so in Parquet, so
		// nothing in the struct tells that the text ends in Z.
		if g, ok := got.(string); ok && want == g+"Z" && noZone.MatchString(g) {
			return nil
		}
	}
	return []string{fmt.Sprintf("%s: want %v, got %v", at, want, got)}
}

// TestGoldenStructStats rebuilds statistics and partition values from their
// struct form in every file of another engine that has them, as if the text
// were not there, and compares the two.
func TestGoldenStructStats(t *testing.T) {
	files, stats, values := 0, 0, 0
	for _, g := range manifest(t) {
		store := loadLog(t, g.path)
		objs, err := storage.Collect(store.List(t.Context(), logDir+"/", ""))
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range objs {
			if !strings.HasSuffix(o.Key, ".parquet") {
				continue
			}
			src, err := openSource(t.Context(), store, part{key: o.Key, size: o.Size})
			if err != nil {
				t.Fatal(err)
			}
			add := src.file.Root.Child("add")
			if add.Child("stats_parsed") == nil && add.Child("partitionValues_parsed") == nil {
				continue
			}
			files++
			text := addsOf(t, src)
			add.Children = slices.DeleteFunc(add.Children, func(n *parquetcol.Node) bool {
				return (n.Name == "stats" && add.Child("stats_parsed") != nil) ||
					(n.Name == "partitionValues" && add.Child("partitionValues_parsed") != nil)
			})
			for i, a := range addsOf(t, src) {
				w := text[i]
				if a.PartitionValues != "" {
					values++
				}
				wantValues, gotValues := members(t, w.PartitionValues), members(t, a.PartitionValues)
				if diff := gocmp.Diff(wantValues, gotValues); diff != "" {
					t.Errorf("%s: partition values: -text +struct\n%s", o.Key, diff)
				}
				if w.Stats == "" || a.Stats == "" {
					continue
				}
				stats++
				for _, diff := range statsDiff("", decodeStats(t, w.Stats), decodeStats(t, a.Stats)) {
					t.Errorf("%s %s: %s\ntext:   %s\nstruct: %s", g.path, a.Path, diff, w.Stats, a.Stats)
				}
			}
		}
	}
	if stats < 150 || values < 8 {
		t.Errorf("%d statistics and %d partition values compared: the golden tables are not all there", stats, values)
	}
	t.Logf("%d files with structs: %d statistics and %d partition values rebuilt", files, stats, values)
}

func members(t testing.TB, o action.Object) map[string]*string {
	m, err := o.Map()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// addsOf decodes the adds of one file.
func addsOf(t testing.TB, src *source) (adds []action.Add) {
	t.Helper()
	sink := (&table{}).sink()
	r, err := newFileReader(src.file, &sink, true, false, newInterner())
	if err != nil {
		t.Fatal(err)
	}
	for _, sp := range src.spans(spanBytes, r.chunks) {
		w, err := src.fetch(t.Context(), sp)
		if err != nil {
			t.Fatal(err)
		}
		for _, group := range sp.groups {
			if err := r.readGroup(group, w, func(b *batch) error {
				adds = append(adds, b.adds...)
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		}
	}
	return adds
}
