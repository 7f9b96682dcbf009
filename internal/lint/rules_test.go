package lint

import (
	"fmt"
	"go/ast"
	"go/token"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// rule is one habit of the house. check returns where it is broken and how.
type rule struct {
	name    string
	instead string
	check   func(*source) []string
}

var rules = []rule{
	{"layers", "move the code, or let the lower package take an interface that it declares itself; see layers", checkLayers},
	{"exclusive imports", "take the storage.Store that you are given; see importers", checkImporters},
	{"exclusive powers", "ask the package that has the power; see powers", checkPowers},
	{"cgo", "only sqlengine may need a C compiler: put the code there", checkCgo},
	{"error text", "declare a sentinel, wrap it with %w and test with errors.Is", checkErrorText},
	{"skips", "print the reason: t.Skip(\"needs root\")", checkSkips},
	{"unfinished", "do it now, or write an issue and return a typed error", checkUnfinished},
	{"output", "return an error, or take a *slog.Logger or Events in Options; only cmd prints and exits", checkOutput},
}

// layers are the packages of the module, lowest first: a package imports only
// packages of lower layers, which DESIGN.md's table shows. Those that are only
// planned stand here too, so that the first of their files has its place.
var layers = [][]string{
	{"storage", "series", "internal/crashpoint", "internal/s3server", "internal/glob", "internal/lru", "internal/remotewrite", "internal/interop/process", "checkpoint/internal/parquetcol"},
	{"internal/symbols"},
	{
		"storage/local", "storage/mem", "storage/s3",
		"storage/retry", "storage/meter", "storage/fault", "storage/cache", "storage/storetest",
		"lease", "shard", "action", "wal", "internal/merge", "internal/faultproxy",
	},
	{"storage/storeurl", "chunk", "checkpoint", "deletion", "reader/readertest"},
	{"txlog"},
	{"planner", "index"},
	{"writer", "reader", "compactor", "vacuum", "check"},
	{"sqlengine", "ingest"},
	{"", "ingest/ingesttest", "internal/httpbody", "internal/lineproto", "internal/arrowbatch", "internal/flightguard", "internal/nativehist"}, // the module's root: wiring; and what stands in for it in tests
	{"api/prom", "api/otlp", "api/influx", "api/sql", "api/flight", "api/flightsql", "importer", "scrape", "console"},
	{"cmd/internal/cli"},
	{"cmd/internal/daemon"},
	{"cmd/cardinal", "cmd/cardinal-writer"},
	{"internal/bench/harness"},
	{"internal/sim", "internal/crash", "internal/consistency", "internal/interop/prometheus", "internal/interop/compliance", "internal/interop/write", "internal/interop/read", "internal/interop/s3", "internal/interop/tables", "internal/bench/log", "internal/bench/read", "internal/bench/write", "internal/golden", "internal/lint"},
}

// testSupport are packages that tests of every layer may import.
var testSupport = []string{
	"storage/local", "storage/mem", "storage/meter", "storage/fault", "storage/retry", "storage/storetest",
	"internal/s3server", "internal/faultproxy", "internal/merge", "ingest/ingesttest", "reader/readertest",
}

func layerOf(pkg string) (int, bool) {
	for i, layer := range layers {
		if slices.Contains(layer, pkg) {
			return i, true
		}
	}
	return 0, false
}

// checkLayers: code imports lower layers only; tests also their own layer, to
// try neighbours together, and what supports tests.
func checkLayers(s *source) []string {
	own, ok := layerOf(s.pkg)
	if !ok {
		return nil // another check says so
	}
	var found []string
	for _, spec := range s.ast.Imports {
		dir, ours := local(unquote(spec.Path))
		if !ours || dir == s.pkg {
			continue
		}
		layer, ok := layerOf(dir)
		switch {
		case !ok:
			found = append(found, fmt.Sprintf("%s: imports %s, which has no layer", s.at(spec), spec.Path.Value))
		case layer < own, s.test() && (layer == own || slices.Contains(testSupport, dir)):
		default:
			found = append(found, fmt.Sprintf("%s: %q is on layer %d and imports %s on layer %d", s.at(spec), path.Join(module, s.pkg), own, spec.Path.Value, layer))
		}
	}
	return found
}

// importers names the only packages whose code may import a package. Tests may
// import what their layer may.
var importers = map[string][]string{
	// Whoever needs a store is given one: which, and in what wrapping, only
	// the wiring knows.
	module + "/storage/local":       {"storage/storeurl"},
	module + "/storage/mem":         {"storage/storeurl", "ingest/ingesttest"},
	module + "/storage/s3":          {"storage/storeurl"},
	module + "/storage/retry":       {"storage/storeurl", ""},
	module + "/storage/meter":       {"", "api/*", "console", "cmd/*", "cmd/internal/*", "internal/bench/log", "internal/bench/read", "internal/bench/write"},
	module + "/storage/cache":       {"", "sqlengine", "cmd/*"},
	module + "/storage/storeurl":    {"", "cmd/*", "cmd/internal/*", "internal/bench/log", "internal/bench/read", "internal/bench/write"},
	module + "/storage/fault":       {},
	module + "/storage/storetest":   {},
	module + "/internal/faultproxy": {},
	module + "/internal/s3server":   {"storage/storetest", "cmd/*", "internal/*", "internal/*/*"},
	// DuckDB is one package's affair.
	"github.com/duckdb/*": {"sqlengine", "internal/bench/read"},
}

func checkImporters(s *source) []string {
	if s.test() {
		return nil
	}
	var found []string
	for _, spec := range s.ast.Imports {
		importPath := unquote(spec.Path)
		for pattern, allowed := range importers {
			if !matches(pattern, importPath) || matchesAny(allowed, s.pkg) {
				continue
			}
			if dir, ours := local(importPath); ours && dir == s.pkg {
				continue
			}
			found = append(found, fmt.Sprintf("%s: imports %q, which is for %q alone", s.at(spec), importPath, allowed))
		}
	}
	return found
}

// matches: a * at the end stands for everything that begins like it, and one
// before it for an element of the path.
func matches(pattern, s string) bool {
	prefix, open := strings.CutSuffix(pattern, "*")
	if !open {
		return pattern == s
	}
	if before, after, ok := strings.Cut(prefix, "*/"); ok {
		rest, ok := strings.CutPrefix(s, before)
		if !ok {
			return false
		}
		_, rest, ok = strings.Cut(rest, "/")
		return ok && strings.HasPrefix(rest, after)
	}
	return strings.HasPrefix(s, prefix)
}

func matchesAny(patterns []string, s string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matches(p, s) })
}

// power is a call that only some packages may make. The storage packages
// implement and pass on all of them.
type power struct {
	method string
	args   int
	held   []string
	why    string
}

var powers = []power{
	{"PutIfAbsent", 3, []string{"txlog", "lease"}, "a version exists when, and only when, txlog's put-if-absent made it; lease makes pins and claims"},
	{"PutIfMatch", 4, []string{"txlog", "lease"}, "pins and claims change by it; nothing else of ours changes in place"},
	{"Delete", 2, []string{"vacuum", "lease"}, "vacuum knows what nobody needs; lease gives back its own pins and claims"},
}

func checkPowers(s *source) []string {
	if s.test() || s.pkg == "storage" || strings.HasPrefix(s.pkg, "storage/") {
		return nil
	}
	names := s.imports()
	var found []string
	ast.Inspect(s.ast, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		receiver, method, ok := selector(call.Fun)
		if !ok || names[receiver] != "" {
			return true // a function of a package, not a method
		}
		for _, p := range powers {
			if method == p.method && len(call.Args) == p.args && !slices.Contains(p.held, s.pkg) {
				found = append(found, fmt.Sprintf("%s: %s calls %s on a store: %s", s.at(call), path.Join(module, s.pkg), method, p.why))
			}
		}
		return true
	})
	return found
}

func checkCgo(s *source) []string {
	if s.pkg == "sqlengine" {
		return nil
	}
	var found []string
	for _, spec := range s.ast.Imports {
		if unquote(spec.Path) == "C" {
			found = append(found, s.at(spec)+": imports \"C\"")
		}
	}
	return found
}

// matchers are functions that look for something in a text.
var matchers = map[string]*regexp.Regexp{
	"strings": regexp.MustCompile(`^(Contains|HasPrefix|HasSuffix|Index|LastIndex|EqualFold|Count|Cut|Compare)`),
	"regexp":  regexp.MustCompile(`^Match`),
}

// checkErrorText: a condition is never told by an error's text. A test may
// look there for what an error must name, or must not, such as a key or a
// secret, if it tells the condition by errors.Is or errors.As.
func checkErrorText(s *source) []string {
	names := s.imports()
	var found []string
	for _, decl := range s.ast.Decls {
		if s.test() && callsErrorsIs(decl, names) {
			continue
		}
		ast.Inspect(decl, func(n ast.Node) bool {
			matched := false
			switch n := n.(type) {
			case *ast.CallExpr:
				receiver, name, ok := selector(n.Fun)
				pattern := matchers[names[receiver]]
				byPackage := ok && pattern != nil && pattern.MatchString(name)
				searched := n.Args
				if s.test() && len(searched) > 1 {
					searched = searched[:1] // an output may be searched for what an error says
				}
				matched = (byPackage || name == "MatchString") && slices.ContainsFunc(searched, isErrorText)
			case *ast.BinaryExpr:
				matched = (n.Op == token.EQL || n.Op == token.NEQ) && (isErrorText(n.X) || isErrorText(n.Y))
			case *ast.SwitchStmt:
				matched = n.Tag != nil && isErrorText(n.Tag)
			}
			if matched {
				found = append(found, s.at(n)+": a condition is told by an error's text")
			}
			return true
		})
	}
	return found
}

// isErrorText: x.Error() somewhere in the expression, without arguments.
func isErrorText(e ast.Expr) bool {
	is := false
	ast.Inspect(e, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok && len(call.Args) == 0 {
			if sel, ok := call.Fun.(*ast.SelectorExpr); ok && sel.Sel.Name == "Error" {
				is = true
			}
		}
		return !is
	})
	return is
}

func callsErrorsIs(decl ast.Decl, names map[string]string) bool {
	calls := false
	ast.Inspect(decl, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok {
			receiver, name, ok := selector(call.Fun)
			calls = calls || ok && names[receiver] == "errors" && (name == "Is" || name == "As" || name == "AsType")
		}
		return !calls
	})
	return calls
}

func checkSkips(s *source) []string {
	var found []string
	ast.Inspect(s.ast, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		receiver, name, ok := selector(call.Fun)
		if !ok || !slices.Contains([]string{"t", "tb", "b", "f"}, receiver) {
			return true
		}
		empty := len(call.Args) == 0
		if len(call.Args) == 1 {
			text, ok := call.Args[0].(*ast.BasicLit)
			empty = ok && strings.TrimSpace(unquote(text)) == ""
		}
		if name == "SkipNow" || empty && (name == "Skip" || name == "Skipf") {
			found = append(found, s.at(call)+": a test is skipped without a reason")
		}
		return true
	})
	return found
}

var (
	marker     = regexp.MustCompile(`\b(TODO|FIXME|XXX|HACK)\b`)
	unfinished = regexp.MustCompile(`(?i)todo|not (yet )?implemented|unimplemented`)
)

func checkUnfinished(s *source) []string {
	var found []string
	for _, group := range s.ast.Comments {
		for _, c := range group.List {
			if m := marker.FindString(c.Text); m != "" {
				found = append(found, fmt.Sprintf("%s: %s in a comment", s.at(c), m))
			}
		}
	}
	ast.Inspect(s.ast, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		if id, ok := call.Fun.(*ast.Ident); !ok || id.Name != "panic" {
			return true
		}
		ast.Inspect(call, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok && unfinished.MatchString(lit.Value) {
				found = append(found, s.at(call)+": panic instead of code")
			}
			return true
		})
		return true
	})
	return found
}

// output names what prints, ends the process or is everybody's logger. An
// empty pattern stands for every function.
var output = map[string]*regexp.Regexp{
	"fmt":      regexp.MustCompile(`^Print`),
	"os":       regexp.MustCompile(`^(Exit|Stdout|Stderr)$`),
	"log":      regexp.MustCompile(``),
	"log/slog": regexp.MustCompile(`^((Debug|Info|Warn|Error|Log|LogAttrs)(Context)?|Default|SetDefault)$`),
}

func checkOutput(s *source) []string {
	// A test binary's TestMain exits, and one that plays another process
	// prints.
	if s.test() || strings.HasPrefix(s.pkg, "cmd/") || strings.HasPrefix(s.pkg, "internal/interop/") || strings.HasPrefix(s.pkg, "internal/bench/") {
		return nil
	}
	names := s.imports()
	var found []string
	ast.Inspect(s.ast, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.SelectorExpr:
			receiver, name, ok := selector(n)
			if pattern := output[names[receiver]]; ok && pattern != nil && pattern.MatchString(name) {
				found = append(found, fmt.Sprintf("%s: uses %s.%s", s.at(n), receiver, name))
			}
		case *ast.CallExpr:
			if id, ok := n.Fun.(*ast.Ident); ok && (id.Name == "print" || id.Name == "println") {
				found = append(found, fmt.Sprintf("%s: calls %s", s.at(n), id.Name))
			}
		}
		return true
	})
	return found
}

// selector splits x.name; x is empty unless it is an identifier.
func selector(e ast.Expr) (receiver, name string, ok bool) {
	sel, ok := e.(*ast.SelectorExpr)
	if !ok {
		return "", "", false
	}
	if id, ok := sel.X.(*ast.Ident); ok {
		receiver = id.Name
	}
	return receiver, sel.Sel.Name, true
}

// unquote is the value of a string literal, "" of any other.
func unquote(lit *ast.BasicLit) string {
	v, err := strconv.Unquote(lit.Value)
	if err != nil {
		return ""
	}
	return v
}
