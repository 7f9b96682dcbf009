// Package lint holds the rules of the house that no compiler knows, as an
// ordinary test: who may import whom, who has which power, and what no code of
// ours does. It reads the module's sources, so run it with -count=1: Go's test
// cache does not see them change.
//
// It stands outside the layers and imports nothing of ours. Each rule is shown
// to bite by bite_test.go.
package lint

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// module is the path that our import paths begin with.
const module = "cardinalsin"

// source is one Go file of the module.
type source struct {
	pkg  string // directory within the module; "" is its root
	file string // name within the directory
	fset *token.FileSet
	ast  *ast.File
}

func (s *source) test() bool { return strings.HasSuffix(s.file, "_test.go") }

// at is where a node stands, for a person to click on.
func (s *source) at(n ast.Node) string {
	return fmt.Sprintf("%s:%d", path.Join(s.pkg, s.file), s.fset.Position(n.Pos()).Line)
}

// imports maps the name of each import within the file to its path. A package
// under its own name goes by the last element of the path.
func (s *source) imports() map[string]string {
	names := map[string]string{}
	for _, spec := range s.ast.Imports {
		importPath, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			continue // the parser has refused such a file
		}
		name := path.Base(importPath)
		if spec.Name != nil {
			name = spec.Name.Name
		}
		names[name] = importPath
	}
	return names
}

// local is an import path as a directory of ours.
func local(importPath string) (dir string, ours bool) {
	if importPath == module {
		return "", true
	}
	return strings.CutPrefix(importPath, module+"/")
}

func parse(pkg, file string, text any, fset *token.FileSet, name string) (*source, error) {
	tree, err := parser.ParseFile(fset, name, text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	return &source{pkg: pkg, file: file, fset: fset, ast: tree}, nil
}

// load parses every Go file of the module at root: not those of modules
// within it, of testdata, and of hidden directories.
func load(root string) ([]*source, error) {
	var sources []*source
	fset := token.NewFileSet()
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name == root {
				return nil
			}
			if strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" {
				return filepath.SkipDir
			}
			if _, err := os.Stat(filepath.Join(name, "go.mod")); err == nil {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		dir, err := filepath.Rel(root, filepath.Dir(name))
		if err != nil {
			return err
		}
		if dir = filepath.ToSlash(dir); dir == "." {
			dir = ""
		}
		s, err := parse(dir, d.Name(), nil, fset, name)
		sources = append(sources, s)
		return err
	})
	return sources, err
}

func moduleRoot(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod above this directory")
		}
		dir = filepath.Dir(dir)
	}
}

// TestHouse runs every rule over every file of the module.
func TestHouse(t *testing.T) {
	sources, err := load(moduleRoot(t))
	if err != nil {
		t.Fatal(err)
	}
	if len(sources) < 50 {
		t.Fatalf("only %d files found: the walk is wrong", len(sources))
	}
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			for _, s := range sources {
				for _, finding := range r.check(s) {
					t.Errorf("%s\n\tinstead: %s", finding, r.instead)
				}
			}
		})
	}
	t.Run("every package has a layer", func(t *testing.T) {
		seen := map[string]bool{}
		for _, s := range sources {
			if _, ok := layerOf(s.pkg); !ok && !seen[s.pkg] {
				seen[s.pkg] = true
				t.Errorf("%s: package %q has no layer\n\tinstead: give it one in layers, after DESIGN.md and with the layer's owner", s.at(s.ast.Name), s.pkg)
			}
		}
	})
}

// TestWriterNeedsNoCgo: the write daemon is a static binary, so what it links
// must not need a C compiler.
func TestWriterNeedsNoCgo(t *testing.T) {
	const program = "cmd/cardinal-writer"
	root := moduleRoot(t)
	sources, err := load(root)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(sources, func(s *source) bool { return s.pkg == program }) {
		t.Fatalf("%s is missing", program)
	}
	for _, chain := range reaches(sources, program, "sqlengine") {
		t.Errorf("%s\n\tinstead: wire sqlengine in cmd/cardinal alone", chain)
	}

	cmd := exec.Command("go", "list", "-e", "-deps", "-json=ImportPath,Standard,Error", "./"+program)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v: %s", err, &stderr)
	}
	packages := 0
	for dec := json.NewDecoder(bytes.NewReader(out)); ; packages++ {
		var p struct {
			ImportPath string
			Error      *struct{ Err string }
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(p.ImportPath, "github.com/duckdb/") {
			t.Errorf("%s links %s\n\tinstead: keep DuckDB behind sqlengine", program, p.ImportPath)
		}
		if p.Error != nil {
			t.Errorf("%s without cgo: %s: %s", program, p.ImportPath, p.Error.Err)
		}
	}
	if packages < 50 {
		t.Errorf("go list told of only %d packages", packages)
	}
}

// reaches lists one chain of imports from a package to each file that imports
// the target, following the imports of all files but tests.
func reaches(sources []*source, from, target string) []string {
	imports := map[string]map[string]bool{}
	for _, s := range sources {
		if s.test() {
			continue
		}
		if imports[s.pkg] == nil {
			imports[s.pkg] = map[string]bool{}
		}
		for _, importPath := range s.imports() {
			if dir, ours := local(importPath); ours {
				imports[s.pkg][dir] = true
			}
		}
	}
	var chains []string
	seen := map[string]bool{}
	var visit func(pkg string, chain []string)
	visit = func(pkg string, chain []string) {
		chain = append(slices.Clone(chain), path.Join(module, pkg))
		if pkg == target {
			chains = append(chains, strings.Join(chain, " → "))
			return
		}
		if seen[pkg] {
			return
		}
		seen[pkg] = true
		for next := range imports[pkg] {
			visit(next, chain)
		}
	}
	visit(from, nil)
	slices.Sort(chains)
	return chains
}
