package lint

import (
	"go/token"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
)

// source parses a file that exists only here.
func memory(t *testing.T, name, text string) *source {
	t.Helper()
	dir, file := path.Split(name)
	s, err := parse(strings.TrimSuffix(dir, "/"), file, text, token.NewFileSet(), name)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return s
}

// TestRulesBite shows each rule what it must find, and what looks like it and
// is allowed.
func TestRulesBite(t *testing.T) {
	const head = "package p\n"
	imports := func(paths ...string) string {
		text := head
		for _, p := range paths {
			text += "import _ \"" + p + "\"\n"
		}
		return text
	}
	fn := func(body string, packages ...string) string {
		text := head
		for _, p := range packages {
			text += "import \"" + p + "\"\n"
		}
		return text + "func f() {\n" + body + "\n}\n"
	}
	for _, tc := range []struct {
		rule, name string
		file, text string
		want       int // findings
	}{
		{"layers", "lower", "wal/a.go", imports("cardinalsin/series", "fmt"), 0},
		{"layers", "higher", "wal/a.go", imports("cardinalsin/writer"), 1},
		{"layers", "the same", "writer/a.go", imports("cardinalsin/reader"), 1},
		{"layers", "the root from below", "txlog/a.go", imports("cardinalsin"), 1},
		{"layers", "the root from above", "api/prom/a.go", imports("cardinalsin"), 0},
		{"layers", "without a layer", "wal/a.go", imports("cardinalsin/helpers"), 1},
		{"layers", "under another name", "wal/a.go", head + "import w \"cardinalsin/writer\"\nvar _ = w.Open\n", 1},
		{"layers", "a test beside it", "writer/a_test.go", imports("cardinalsin/reader", "cardinalsin/writer", "cardinalsin/storage/fault"), 0},
		{"layers", "a test, support of a higher layer", "storage/a_test.go", imports("cardinalsin/storage/mem"), 0},
		{"layers", "a test, higher", "writer/a_test.go", imports("cardinalsin/sqlengine"), 1},

		{"exclusive imports", "a backend", "txlog/a.go", imports("cardinalsin/storage/mem"), 1},
		{"exclusive imports", "a backend where stores are opened", "storage/storeurl/a.go", imports("cardinalsin/storage/mem"), 0},
		{"exclusive imports", "a backend in a test", "txlog/a_test.go", imports("cardinalsin/storage/mem"), 0},
		{"exclusive imports", "faults outside tests", "cmd/cardinal/a.go", imports("cardinalsin/storage/fault"), 1},
		{"exclusive imports", "stores by URL in a program", "cmd/cardinal/a.go", imports("cardinalsin/storage/storeurl"), 0},
		{"exclusive imports", "DuckDB", "reader/a.go", imports("github.com/duckdb/duckdb-go/v2"), 1},
		{"exclusive imports", "DuckDB's bindings", "cmd/cardinal/a.go", imports("github.com/duckdb/duckdb-go-bindings/lib"), 1},
		{"exclusive imports", "DuckDB in its place", "sqlengine/a.go", imports("github.com/duckdb/duckdb-go/v2"), 0},

		{"exclusive powers", "put-if-absent", "compactor/a.go", fn("s.PutIfAbsent(ctx, k, b)"), 1},
		{"exclusive powers", "put-if-absent through a field", "writer/a.go", fn("w.log.Store().PutIfAbsent(ctx, k, b)"), 1},
		{"exclusive powers", "put-if-absent of a commit", "txlog/a.go", fn("s.PutIfAbsent(ctx, k, b)"), 0},
		{"exclusive powers", "put-if-absent of a pin", "lease/a.go", fn("s.PutIfAbsent(ctx, k, b)"), 0},
		{"exclusive powers", "put-if-absent passed on", "storage/meter/a.go", fn("s.PutIfAbsent(ctx, k, b)"), 0},
		{"exclusive powers", "put-if-match", "vacuum/a.go", fn("s.PutIfMatch(ctx, k, b, e)"), 1},
		{"exclusive powers", "delete", "compactor/a.go", fn("r.store.Delete(ctx, key)"), 1},
		{"exclusive powers", "delete as a value", "compactor/a.go", fn("go r.store.Delete(ctx, key)"), 1},
		{"exclusive powers", "delete by vacuum", "vacuum/a.go", fn("p.log.Store().Delete(ctx, key)"), 0},
		{"exclusive powers", "delete of other things", "compactor/a.go", fn("m.Delete(key); slices.Delete(s, 1, 2); delete(n, key)", "slices"), 0},
		{"exclusive powers", "delete in a test", "compactor/a_test.go", fn("store.Delete(ctx, key)"), 0},

		{"cgo", "outside", "reader/a.go", imports("C"), 1},
		{"cgo", "in its place", "sqlengine/a.go", imports("C"), 0},

		{"error text", "contains", "txlog/a.go", fn(`if strings.Contains(err.Error(), "exists") { return }`, "strings"), 1},
		{"error text", "lower case", "txlog/a.go", fn(`if strings.HasPrefix(strings.ToLower(err.Error()), "x") { return }`, "strings"), 1},
		{"error text", "a regular expression", "txlog/a.go", fn(`if re.MatchString(err.Error()) { return }`), 1},
		{"error text", "package regexp", "txlog/a.go", fn(`regexp.MatchString("x", err.Error())`, "regexp"), 1},
		{"error text", "equal", "txlog/a.go", fn(`if err.Error() == "EOF" { return }`), 1},
		{"error text", "not equal", "txlog/a.go", fn(`if "EOF" != err.Error() { return }`), 1},
		{"error text", "switch", "txlog/a.go", fn(`switch err.Error() { case "EOF": }`), 1},
		{"error text", "strings under another name", "txlog/a.go", head + "import str \"strings\"\nvar x = str.Contains(err.Error(), \"a\")\n", 1},
		{"error text", "in a test", "txlog/a_test.go", fn(`if !strings.Contains(err.Error(), "exists") { return }`, "strings"), 1},
		{"error text", "in a test beside the condition", "txlog/a_test.go", fn(`if !errors.Is(err, ErrX) || !strings.Contains(err.Error(), key) { return }`, "strings", "errors"), 0},
		{"error text", "beside the condition, but no test", "txlog/a.go", fn(`if !errors.Is(err, ErrX) || !strings.Contains(err.Error(), key) { return }`, "strings", "errors"), 1},
		{"error text", "printed", "txlog/a.go", fn(`http.Error(w, err.Error(), 500); x := strings.Contains(body, "a")`, "net/http", "strings"), 0},

		{"skips", "without a reason", "wal/a_test.go", fn("t.Skip()"), 1},
		{"skips", "now", "wal/a_test.go", fn("b.SkipNow()"), 1},
		{"skips", "with an empty one", "wal/a_test.go", fn(`t.Skip(" ")`), 1},
		{"skips", "with a reason", "wal/a_test.go", fn(`t.Skip("needs root"); t.Skipf("%v", err); r.Skip()`), 0},

		{"unfinished", "panic", "wal/a.go", fn(`panic("not implemented")`), 1},
		{"unfinished", "panic with a marker", "wal/a.go", fn(`panic(fmt.Sprintf("to`+`do: %d", 1))`, "fmt"), 1},
		{"unfinished", "panic for a bug of ours", "wal/a.go", fn(`panic("close of a closed log")`), 0},
		{"unfinished", "marker", "wal/a.go", head + "// TO" + "DO: later\n", 1},
		{"unfinished", "marker in a test", "wal/a_test.go", head + "/* FIX" + "ME */\n", 1},
		{"unfinished", "context.TODO is caught by review, not here", "wal/a.go", fn("g(context.TO"+"DO())", "context"), 0},

		{"output", "print", "wal/a.go", fn(`fmt.Println("x")`, "fmt"), 1},
		{"output", "builtin", "wal/a.go", fn(`println("x")`), 1},
		{"output", "exit", "wal/a.go", fn("os.Exit(1)", "os"), 1},
		{"output", "stderr", "wal/a.go", fn(`fmt.Fprintln(os.Stderr, "x")`, "fmt", "os"), 1},
		{"output", "log", "wal/a.go", fn(`log.Printf("x")`, "log"), 1},
		{"output", "everybody's slog", "wal/a.go", fn(`slog.Warn("x"); slog.Default().Info("y")`, "log/slog"), 2},
		{"output", "a logger of its own", "wal/a.go", fn(`opts.Logger.Warn("x"); slog.New(slog.DiscardHandler); fmt.Fprintf(w, "x"); log.Printf("mine")`, "log/slog", "fmt"), 0},
		{"output", "a program", "cmd/cardinal/a.go", fn(`fmt.Println("x"); os.Exit(1)`, "fmt", "os"), 0},
		{"output", "a test", "wal/a_test.go", fn("os.Exit(m.Run())", "os"), 0},
	} {
		t.Run(tc.rule+": "+tc.name, func(t *testing.T) {
			for _, r := range rules {
				if r.name != tc.rule {
					continue
				}
				found := r.check(memory(t, tc.file, tc.text))
				if len(found) != tc.want {
					t.Errorf("%d findings, want %d: %q", len(found), tc.want, found)
				}
				for _, f := range found {
					if !strings.HasPrefix(f, tc.file+":") {
						t.Errorf("no place in %q", f)
					}
				}
				return
			}
			t.Fatalf("no rule %q", tc.rule)
		})
	}
}

// TestReachBites: the chain from the writer to DuckDB is found through any
// number of packages, and not through tests.
func TestReachBites(t *testing.T) {
	file := func(name, importPath string) *source {
		return memory(t, name, "package p\nimport _ \""+importPath+"\"\n")
	}
	graph := []*source{
		file("cmd/cardinal-writer/main.go", "cardinalsin/cmd/internal/daemon"),
		file("cmd/internal/daemon/a.go", "cardinalsin"),
		file("a_test.go", "cardinalsin/sqlengine"),
		file("sqlengine/a.go", "cardinalsin/reader"),
	}
	if chains := reaches(graph, "cmd/cardinal-writer", "sqlengine"); len(chains) != 0 {
		t.Errorf("found %q", chains)
	}
	graph = append(graph, file("a.go", "cardinalsin/sqlengine"))
	const want = "cardinalsin/cmd/cardinal-writer → cardinalsin/cmd/internal/daemon → cardinalsin → cardinalsin/sqlengine"
	if chains := reaches(graph, "cmd/cardinal-writer", "sqlengine"); len(chains) != 1 || chains[0] != want {
		t.Errorf("found %q", chains)
	}
}

func TestMatches(t *testing.T) {
	for _, tc := range []struct {
		pattern, s string
		want       bool
	}{
		{"a/b", "a/b", true}, {"a/b", "a/bc", false}, {"", "", true}, {"", "a", false},
		{"a/*", "a/b", true}, {"a/*", "a/b/c", true}, {"a/*", "b/a", false}, {"a/*", "a", false},
		{"a/*/*", "a/b/c", true}, {"a/*/*", "a/b", false},
	} {
		if got := matches(tc.pattern, tc.s); got != tc.want {
			t.Errorf("%q, %q: %t", tc.pattern, tc.s, got)
		}
	}
}

// TestLayersAreWellFormed: a package has one place, and the lists name only
// packages that have one.
func TestLayersAreWellFormed(t *testing.T) {
	places := map[string]int{}
	for _, layer := range layers {
		for _, pkg := range layer {
			places[pkg]++
		}
	}
	for pkg, n := range places {
		if n != 1 {
			t.Errorf("%q stands on %d layers", pkg, n)
		}
	}
	named := append([]string{}, testSupport...)
	for importPath := range importers {
		if dir, ours := local(importPath); ours {
			named = append(named, dir)
		}
	}
	for _, p := range powers {
		named = append(named, p.held...)
	}
	for _, pkg := range named {
		if places[pkg] != 1 {
			t.Errorf("%q has no layer", pkg)
		}
	}
}

// TestLoad: every package of the module is read, and nothing else.
func TestLoad(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"go.mod": "module x\n", "a.go": "package x\n", "wal/b.go": "package wal\n", "wal/b_test.go": "package wal\n",
		"wal/testdata/c.go": "not Go", ".tools/d.go": "not Go", "tools/go.mod": "module y\n", "tools/e.go": "not Go", "wal/f.txt": "",
	} {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	sources, err := load(root)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range sources {
		got = append(got, s.pkg+":"+s.file)
	}
	if want := ":a.go wal:b.go wal:b_test.go"; strings.Join(got, " ") != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if err := os.WriteFile(filepath.Join(root, "broken.go"), []byte("not Go"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := load(root); err == nil {
		t.Error("a file that does not parse was passed over")
	}
}
