package main_test

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
)

const module = "tokenward"

// room is one package of the house: what it may lean on and what it must never
// touch. Folders are relative to the root, imports of ours begin with module.
type room struct {
	// what the package is, in one line. It is quoted in failures.
	what string
	// ours lists the packages of the module that production files may import.
	ours []string
	// outside lists modules of others, each only where it is needed.
	outside []string
	// never lists imports with the reason why not; it gives a better answer than
	// absence from ours and is all there is for the standard library.
	never []ban
	// testOnly packages exist for tests; production files cannot import them, save
	// where an entry names one among ours.
	testOnly bool
	// inTests lists what test files may import beside ours and test packages.
	inTests []string
	// everything is for the one package that wires all others.
	everything bool
	// clockless packages are handed the time; reading it would make a decision
	// depend on more than its arguments.
	clockless bool
	// threadless packages start no goroutines.
	threadless bool
	// slogValue: of log/slog only what a redacting LogValue method needs.
	slogValue bool
}

// ban is an import path that must not be used, or with a trailing /... all below
// it as well.
type ban struct{ path, because string }

var (
	noHTTP    = ban{"net/http/...", "what a token is and how it is judged does not depend on how requests travel"}
	noSockets = ban{"net", "it works on local data; addresses are net/netip"}
	noTLS     = ban{"crypto/tls", "it works on local data"}
	noOS      = ban{"os/...", "what it needs is handed to it, so that the same input has the same answer everywhere"}
	noFiles   = ban{"io/fs", "what it needs is handed to it"}
	noLog     = ban{"log/...", "it answers with values; who calls it decides what is logged"}
	noBolt    = ban{"go.etcd.io/bbolt/...", "only tokenstore/boltstore knows the file"}
	noEtcd    = ban{"go.etcd.io/etcd/...", "only tokenstore/etcdstore knows the cluster"}
	noDrivers = ban{module + "/tokenstore/boltstore", "drivers are chosen in cmd/tokenward; use the contract in tokenstore"}
	noCluster = ban{module + "/tokenstore/etcdstore", "drivers are chosen in cmd/tokenward; use the contract in tokenstore"}
	noAdmin   = ban{module + "/admin/...", "the data plane judges tokens and does not manage them"}
	noGRPC    = ban{"google.golang.org/grpc/...", "only tokenstore/etcdstore speaks gRPC"}
	noProm    = ban{"github.com/prometheus/...", "only metrics knows Prometheus; others are handed an observer"}
	noHTML    = ban{"html/...", "no pages are made"}
	noOurs    = ban{module + "/...", "it is a leaf and knows nothing of ours"}
)

// house is the house of docs/design.md: every package, its arrows, and what it must
// not touch. A package that is not here fails the test. An entry changes in the
// commit that changes the import, together with docs/design.md.
var house = map[string]room{
	"tokenstore": {
		what:      "what a token is; the store contract; secrets and digests; the bounded cache",
		outside:   []string{"github.com/dchest/siphash"},
		never:     []ban{noHTTP, noSockets, noTLS, noOS, noFiles, {"log", noLog.because}, noBolt, noEtcd, noOurs},
		clockless: true,
		slogValue: true,
	},
	"tokenstore/boltstore": {
		what:    "durable local copy; on a single node also the writer",
		ours:    []string{"tokenstore"},
		outside: []string{"go.etcd.io/bbolt", "github.com/cespare/xxhash/v2"}, // the latter for the sums of a backup's pieces
		never:   []ban{noHTTP, noSockets, noTLS, noEtcd, noCluster},
	},
	"tokenstore/etcdstore": {
		what:    "cluster writer and mirror into the local copy",
		ours:    []string{"tokenstore"},
		outside: []string{"go.etcd.io/etcd", "go.uber.org/zap", "golang.org/x/sync", "google.golang.org/grpc"},
		never:   []ban{noBolt, {module + "/tokenstore/boltstore", "it is handed a small replica interface"}},
		inTests: []string{"tokenstore/boltstore"},
	},
	"tokenstore/etcdstore/etcdtest": {
		what:     "real etcd members in a test, and what befalls them and the network before them",
		outside:  []string{"go.etcd.io/etcd", "go.uber.org/zap", "google.golang.org/grpc"}, // to embed a member, keep its log, and end it at once
		testOnly: true,
	},
	"tokenstore/usage": {
		what:    "write-behind counters: last used, uses, quotas",
		ours:    []string{"tokenstore"},
		never:   []ban{noHTTP, noDrivers, noCluster},
		inTests: []string{"tokenstore/boltstore"}, // writing behind is worth what the real store makes of it
	},
	"tokenstore/importer": {
		what:    "readers of other products' key exports",
		ours:    []string{"tokenstore"},
		outside: []string{"github.com/goccy/go-yaml"}, // decK and standalone APISIX write YAML
		never:   []ban{noHTTP, noDrivers, noCluster, noBolt, noEtcd},
	},
	"tokenstore/storetest": {
		what:     "conformance suite, in-memory reference store, fault injector",
		ours:     []string{"tokenstore"},
		outside:  []string{"github.com/google/go-cmp"},
		testOnly: true,
	},
	"enforce": {
		what:       "judge a request: routes, token state, source, scope, resource, limits",
		ours:       []string{"enforce/canon", "tokenstore"},
		outside:    []string{"golang.org/x/time"},
		never:      []ban{noHTTP, noSockets, noTLS, noOS, noFiles, noLog, noProm, {module + "/metrics", noProm.because}, noDrivers, noCluster},
		inTests:    []string{"tokenstore/boltstore"}, // for the numbers with a million tokens
		clockless:  true,
		threadless: true,
	},
	"enforce/canon": {
		what:       "bytes to canonical method, authority, path, client address, credential",
		never:      []ban{noHTTP, noSockets, noTLS, noOS, noFiles, noLog, noOurs},
		clockless:  true,
		threadless: true,
	},
	"proxy": {
		what:    "the data plane: listeners, facts, judge, forward",
		ours:    []string{"proxy/http1", "proxy/identity", "enforce", "enforce/canon", "tokenstore"},
		outside: []string{"golang.org/x/time", "golang.org/x/sync", "github.com/pires/go-proxyproto", "github.com/maypok86/otter/v2"},
		never:   []ban{noAdmin, noDrivers, noCluster, noBolt, noEtcd, noGRPC, noProm, {module + "/metrics", noProm.because}},
		inTests: []string{"tokenstore/boltstore"},
	},
	"proxy/http1": {
		what:    "strict, fast HTTP/1.1 wire engine; knows nothing of tokens",
		outside: []string{"golang.org/x/sys"},
		never:   []ban{{module + "/...", "the wire engine knows nothing of tokens and stands by itself"}},
	},
	"proxy/identity": {
		what:    "identity headers to the upstream, the signed one, its keys",
		ours:    []string{"tokenstore"},
		outside: []string{"github.com/maypok86/otter/v2"},
		never:   []ban{noAdmin, noDrivers, noCluster},
	},
	"admin": {
		what:    "the token service: verbs, who may call, errors by kind, shared handler plumbing",
		ours:    []string{"enforce", "enforce/canon", "tokenstore", "tokenstore/usage", "audit"},
		outside: []string{"github.com/gorilla/mux", "golang.org/x/time"},
		never:   []ban{noHTML, noDrivers, noCluster, noBolt, noEtcd, {module + "/admin/...", "the service does not know the faces it is shown through"}},
		inTests: []string{"tokenstore/boltstore", "admin/unit", "admin/fynn", "admin/mailtrap", "admin/native", "admin/leaks"}, // one table of cases runs through all faces
	},
	"admin/unit":     dialect("the Unit token API"),
	"admin/fynn":     dialect("the Fynn token API"),
	"admin/mailtrap": dialect("the Mailtrap token API"),
	"admin/native":   dialect("tokenward's own token API"),
	"admin/leaks":    outlet("leak reports in"),
	"admin/notify":   outlet("signed webhooks out"),
	"admin/admintest": {
		what:     "a token service with a cast of callers, and transcripts played against a face",
		ours:     []string{"admin", "tokenstore", "tokenstore/boltstore", "tokenstore/storetest", "audit", "enforce", "enforce/canon"},
		outside:  []string{"github.com/getkin/kin-openapi", "github.com/google/go-cmp", "github.com/gorilla/mux"},
		testOnly: true,
	},
	"admin/clients": {
		what:     "the vendors' own clients against the real program",
		testOnly: true,
	},
	"audit": {
		what:  "Event and an append-only, chained, signed log",
		never: []ban{noOurs, noHTTP},
	},
	"metrics": {
		what:    "registry, collectors, the observers handed to others; health and debug mux",
		outside: []string{"github.com/prometheus/client_golang", "github.com/prometheus/client_model"},
		never:   []ban{noOurs},
	},
	"cmd/tokenward": {
		what:       "config, flags, env, signals, wiring, command-line verbs",
		outside:    []string{"github.com/spf13/cobra", "github.com/spf13/pflag", "github.com/goccy/go-yaml", "github.com/gorilla/mux", "golang.org/x/sys"},
		never:      []ban{noBolt, noEtcd, noGRPC, noProm},
		everything: true,
	},
	"bench": {
		what:    "measures tokenward beside other proxies; a program of its own, never shipped",
		ours:    []string{"tokenstore", "tokenstore/boltstore", "tokenstore/etcdstore", "tokenstore/etcdstore/etcdtest"}, // the last to run members as processes, and relays
		outside: []string{"github.com/google/pprof", "go.etcd.io/etcd", "go.uber.org/zap"},                               // to merge profiles without what they say of the machine; to ask members what they have spent and hold
		never:   []ban{noBolt},
	},
}

// dialect is a face of the token service.
func dialect(what string) room {
	return room{
		what:    what,
		ours:    []string{"admin", "tokenstore", "tokenstore/usage"},
		outside: []string{"github.com/gorilla/mux"},
		never: []ban{
			noDrivers, noCluster, noBolt, noEtcd,
			{module + "/admin/...", "faces do not know one another; what they share stands in admin"},
			{module + "/audit", "a face has no rule of its own; the service records what was done"},
			{module + "/enforce/...", "a face has no rule of its own; the service decides who may"},
		},
		inTests: []string{"tokenstore/boltstore", "audit"},
	}
}

// outlet is a package beside the token service that tells or is told about tokens.
func outlet(what string) room {
	return room{
		what:  what,
		ours:  []string{"admin", "audit", "tokenstore"},
		never: []ban{noDrivers, noCluster, noBolt, noEtcd},
	}
}

// inTests lists the modules that only test files may import.
var inTests = []string{"github.com/anishathalye/porcupine", "github.com/coder/websocket", "github.com/getkin/kin-openapi", "github.com/google/go-cmp", "github.com/rogpeppe/go-internal", "github.com/summerwind/h2spec", "golang.org/x/net", "golang.org/x/sys", "google.golang.org/grpc", "google.golang.org/protobuf"}

// everywhere lists what no production file of ours imports, save the packages and
// files named in but.
var everywhere = []struct {
	ban
	but []string
}{
	{ban: ban{"C", "the binary is static and runs in an empty image"}},
	{ban: ban{"unsafe", "a guard keeps Go's memory safety"}, but: []string{
		"proxy/http1/raw_linux.go", // hands buffers to the kernel, for the length of a call
		"tokenstore/entry.go",      // makes strings of bytes that nobody writes to any more
	}},
	{ban: ban{"plugin", "the binary is static"}},
	{ban: ban{"os/exec", "a guard starts no programs"}, but: []string{"bench"}},
	{ban: ban{"expvar", "it registers itself on the default mux; metrics come from package metrics"}},
	{ban: ban{"net/http/pprof", "it registers itself on the default mux; use runtime/pprof as package metrics does"}},
	{ban: ban{"math/rand", "its state is global; crypto/rand for what must not be guessed, else math/rand/v2"}},
	{ban: ban{"testing/...", "it would put test flags into the binary"}},
	{ban: ban{"log", "its state is global; a *slog.Logger is handed in"}, but: []string{"proxy", "cmd/tokenward"}}, // http.Server.ErrorLog wants one
	{ban: noHTML},
}

// drawers are names under which anything can be put, and then is.
var drawers = []string{"util", "utils", "common", "config", "types", "internal", "helpers", "misc", "shared", "base"}

// clock lists what reads the clock or waits for it.
var clock = map[string][]string{
	"time":                   {"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker"},
	"context":                {"WithTimeout", "WithTimeoutCause", "WithDeadline", "WithDeadlineCause"},
	"golang.org/x/time/rate": {"Sometimes"},
}

// limiterClock lists the methods of rate.Limiter that read the clock, with their
// number of arguments; beside each stands one that is handed the time.
var limiterClock = map[string]int{"Allow": 0, "Reserve": 0, "Tokens": 0, "SetLimit": 1, "SetBurst": 1, "Wait": 1, "WaitN": 2}

func TestPackagesKeepToTheirArrows(t *testing.T) {
	t.Parallel()
	faults, packages := inspect(os.DirFS("../.."))
	for _, f := range faults {
		t.Error(f)
	}
	if len(packages) < 10 {
		t.Errorf("found only the packages %q; is this the root of the module?", packages)
	}
}

func TestHouseNamesOnlyItsOwnRooms(t *testing.T) {
	t.Parallel()
	for name, r := range house {
		for _, dep := range slices.Concat(r.ours, r.inTests) {
			if _, ok := house[dep]; !ok {
				t.Errorf("%s may import %s, which is not a package of the house", name, dep)
			}
		}
		if r.what == "" {
			t.Errorf("%s does not say what it is", name)
		}
	}
}

// TestNothingBelowReachesTheNetwork follows imports through modules of others,
// which an import clause of ours does not show.
func TestNothingBelowReachesTheNetwork(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"tokenstore", "tokenstore/boltstore", "enforce", "enforce/canon", "proxy/identity", "audit"} {
		out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", module+"/"+name).Output()
		if err != nil {
			t.Fatalf("go list -deps %s: %v", name, err)
		}
		for dep := range strings.Lines(string(out)) {
			switch dep = strings.TrimSpace(dep); dep {
			case "net/http", "os/exec", "plugin", "expvar":
				t.Errorf("%s reaches %s through a module of others: find it with `go mod why`, and do without", name, dep)
			}
		}
	}
}

// inspect reads every Go file below root and returns what breaks the rules of the
// house, and the packages it saw.
func inspect(root fs.FS) (faults, packages []string) {
	seen := make(map[string]bool)
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return enter(root, name, &faults)
		}
		if path.Ext(name) == ".go" {
			folder := path.Dir(name)
			if !seen[folder] {
				seen[folder] = true
				faults = append(faults, registered(folder)...)
			}
			faults = append(faults, inspectFile(root, name)...)
		}
		return nil
	})
	if err != nil {
		faults = append(faults, err.Error())
	}
	return faults, slices.Sorted(maps.Keys(seen))
}

// enter skips what the go command skips, and modules of their own.
func enter(root fs.FS, name string, faults *[]string) error {
	base := path.Base(name)
	switch {
	case name == ".":
		return nil
	case base == "testdata", base == "vendor", base == "node_modules", strings.HasPrefix(base, "."), strings.HasPrefix(base, "_"):
		return fs.SkipDir
	case slices.Contains(drawers, base):
		*faults = append(*faults, fmt.Sprintf("%s: no folder is named %s: a helper stands beside its single caller, and three callers that share a noun make that noun a package", name, base))
	}
	if _, err := fs.Stat(root, path.Join(name, "go.mod")); err == nil {
		return fs.SkipDir
	}
	return nil
}

func registered(folder string) []string {
	if _, ok := house[folder]; ok {
		return nil
	}
	return []string{fmt.Sprintf("%s: unknown package: give it a place in the house of docs/design.md and an entry in `house` in cmd/tokenward/deps_test.go, with what it may import and what it must not touch", folder)}
}

func inspectFile(root fs.FS, name string) []string {
	src, err := fs.ReadFile(root, name)
	if err != nil {
		return []string{err.Error()}
	}
	r, known := house[path.Dir(name)]
	if !known {
		return nil // registered has said so
	}
	in := inspection{name: name, folder: path.Dir(name), room: r, files: token.NewFileSet()}
	if strings.HasSuffix(name, "_test.go") {
		in.parse(src, parser.ImportsOnly)
		in.testImports()
		return in.faults
	}
	mode := parser.ImportsOnly
	if r.clockless || r.threadless || r.slogValue {
		mode = parser.SkipObjectResolution
	}
	in.parse(src, mode)
	in.imports()
	in.body()
	return in.faults
}

// inspection is the look at one file.
type inspection struct {
	name   string
	folder string
	room   room
	files  *token.FileSet
	file   *ast.File
	faults []string
}

func (in *inspection) parse(src []byte, mode parser.Mode) {
	file, err := parser.ParseFile(in.files, in.name, src, mode)
	if err != nil {
		in.faults = append(in.faults, err.Error())
		file = &ast.File{}
	}
	in.file = file
}

func (in *inspection) fault(at token.Pos, format string, args ...any) {
	pos := in.files.Position(at)
	in.faults = append(in.faults, fmt.Sprintf("%s:%d: %s", pos.Filename, pos.Line, fmt.Sprintf(format, args...)))
}

// imports judges the import clauses of a production file.
func (in *inspection) imports() {
	for _, spec := range in.file.Imports {
		imported := importPath(spec)
		if spec.Name != nil && spec.Name.Name == "." {
			in.fault(spec.Pos(), "dot import of %s: a reader, and this test, must see where a name comes from", imported)
		}
		if spec.Name != nil && spec.Name.Name == "_" && imported != "embed" {
			in.fault(spec.Pos(), "blank import of %s: nothing registers itself here; what is needed is handed over", imported)
		}
		if why := in.forbidden(imported); why != "" {
			in.fault(spec.Pos(), "%s (%s) must not import %s: %s", in.folder, in.room.what, imported, why)
		}
	}
}

// forbidden returns why a production file must not import a path, or nothing.
func (in *inspection) forbidden(imported string) string {
	ours, isOurs := strings.CutPrefix(imported, module+"/")
	allowed := slices.Contains(in.room.ours, ours) || in.room.everything
	if isOurs && house[ours].testOnly && !in.room.testOnly && !slices.Contains(in.room.ours, ours) {
		return "it is for tests only"
	}
	for _, b := range in.room.never {
		if b.covers(imported) && !(isOurs && allowed) {
			return b.because
		}
	}
	if !in.room.testOnly {
		for _, rule := range everywhere {
			if rule.covers(imported) && !slices.Contains(rule.but, in.folder) && !slices.Contains(rule.but, in.name) {
				return rule.because
			}
		}
	}
	switch {
	case isOurs && !allowed:
		return fmt.Sprintf("of ours it may import %s; if that is to change, change the house of docs/design.md and `house` in cmd/tokenward/deps_test.go with it", orNothing(in.room.ours))
	case isOutside(imported) && !isOurs && !within(imported, in.room.outside):
		return fmt.Sprintf("of others it may import %s; a further module is named in `house` in cmd/tokenward/deps_test.go, by a commit that says what it buys", orNothing(in.room.outside))
	}
	return ""
}

// testImports judges the import clauses of a test file. Tests may use the test
// packages, and drivers where an entry says so; anything of the standard library.
func (in *inspection) testImports() {
	for _, spec := range in.file.Imports {
		imported := importPath(spec)
		ours, isOurs := strings.CutPrefix(imported, module+"/")
		switch {
		case isOurs:
			if ours != in.folder && !in.room.everything && !house[ours].testOnly && !slices.Contains(slices.Concat(in.room.ours, in.room.inTests), ours) {
				in.fault(spec.Pos(), "tests of %s (%s) must not import %s: they may import %s and test packages; more is named as inTests in cmd/tokenward/deps_test.go", in.folder, in.room.what, imported, orNothing(slices.Concat(in.room.ours, in.room.inTests)))
			}
		case isOutside(imported) && !within(imported, slices.Concat(in.room.outside, inTests)):
			in.fault(spec.Pos(), "tests of %s must not import %s: the modules for tests are listed as inTests in cmd/tokenward/deps_test.go", in.folder, imported)
		}
	}
}

// body looks for the clock and for goroutines where there must be none.
func (in *inspection) body() {
	names := make(map[string]string, len(in.file.Imports)) // as written in this file: its path
	for _, spec := range in.file.Imports {
		imported := importPath(spec)
		name := path.Base(imported)
		if spec.Name != nil {
			name = spec.Name.Name
		}
		names[name] = imported
	}
	hasLimiter := slices.Contains(slices.Collect(maps.Values(names)), "golang.org/x/time/rate")
	ast.Inspect(in.file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			in.goroutine(n.Pos())
		case *ast.CallExpr:
			if method, ok := n.Fun.(*ast.SelectorExpr); ok {
				in.method(method, len(n.Args), hasLimiter)
			}
		case *ast.SelectorExpr:
			if pkg, ok := n.X.(*ast.Ident); ok {
				in.selector(n, names[pkg.Name])
			}
		}
		return true
	})
}

func (in *inspection) goroutine(at token.Pos) {
	if in.room.threadless {
		in.fault(at, "%s starts a goroutine: %s happens on the goroutine of the request, so that it cannot outlive it or race with it", in.folder, in.room.what)
	}
}

func (in *inspection) method(method *ast.SelectorExpr, args int, hasLimiter bool) {
	if method.Sel.Name == "Go" && args == 1 { // sync.WaitGroup, errgroup
		in.goroutine(method.Pos())
	}
	if want, ok := limiterClock[method.Sel.Name]; ok && want == args && hasLimiter && in.room.clockless {
		in.fault(method.Pos(), "%s calls %s of a rate limiter, which reads the clock: call the one beside it that is handed the time", in.folder, method.Sel.Name)
	}
}

func (in *inspection) selector(sel *ast.SelectorExpr, imported string) {
	if in.room.clockless && slices.Contains(clock[imported], sel.Sel.Name) {
		in.fault(sel.Pos(), "%s uses %s.%s: it must not read the clock: the time is an argument, so that a decision depends on nothing else", in.folder, path.Base(imported), sel.Sel.Name)
	}
	if in.room.threadless && imported == "context" && sel.Sel.Name == "AfterFunc" {
		in.goroutine(sel.Pos())
	}
	if in.room.slogValue && imported == "log/slog" && !slices.Contains([]string{"Value", "StringValue", "GroupValue", "LogValuer", "Attr", "String"}, sel.Sel.Name) {
		in.fault(sel.Pos(), "%s uses slog.%s: %s; of log/slog it has what a redacting LogValue needs", in.folder, sel.Sel.Name, noLog.because)
	}
}

func (b ban) covers(imported string) bool {
	if below, ok := strings.CutSuffix(b.path, "/..."); ok {
		return imported == below || strings.HasPrefix(imported, below+"/")
	}
	return imported == b.path
}

func importPath(spec *ast.ImportSpec) string {
	p, err := strconv.Unquote(spec.Path.Value)
	if err != nil {
		return spec.Path.Value
	}
	return p
}

// isOutside tells modules from the standard library: the first element of their
// path has a dot.
func isOutside(imported string) bool {
	first, _, _ := strings.Cut(imported, "/")
	return strings.Contains(first, ".")
}

func within(imported string, modules []string) bool {
	return slices.ContainsFunc(modules, func(m string) bool { return imported == m || strings.HasPrefix(imported, m+"/") })
}

func orNothing(list []string) string {
	if len(list) == 0 {
		return "nothing"
	}
	return strings.Join(list, ", ")
}

// TestArrowsCheckerFindsEachFault holds the checker itself to its word: a rule that cannot
// fail guards nothing.
func TestArrowsCheckerFindsEachFault(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		file, src string
		want      string // part of the only fault; empty: there is none
	}{
		"the store speaks HTTP":               {"tokenstore/a.go", `import "net/http"`, "tokenstore/a.go:2: tokenstore (what a token is"},
		"the store speaks HTTP below":         {"tokenstore/a.go", `import "net/http/httputil"`, "must not import net/http/httputil: what a token is and how it is judged"},
		"the store reads files":               {"tokenstore/a.go", `import "os"`, "must not import os"},
		"the store logs":                      {"tokenstore/a.go", `import "log"`, "must not import log"},
		"the store logs with slog":            {"tokenstore/a.go", "import \"log/slog\"\nfunc f() { slog.Info(\"\") }", "uses slog.Info"},
		"the store redacts":                   {"tokenstore/a.go", "import \"log/slog\"\nfunc f() slog.Value { return slog.StringValue(\"\") }", ""},
		"the store knows bbolt":               {"tokenstore/a.go", `import "go.etcd.io/bbolt"`, "only tokenstore/boltstore knows the file"},
		"the store knows its judge":           {"tokenstore/a.go", `import "tokenward/enforce"`, "it is a leaf"},
		"the store reads the clock":           {"tokenstore/a.go", "import \"time\"\nvar f = time.Now()", "uses time.Now"},
		"the store is handed time":            {"tokenstore/a.go", "import \"time\"\nfunc f(now time.Time) time.Time { return now.Add(time.Second) }", ""},
		"the clock under another name":        {"enforce/a.go", "import clock \"time\"\nvar f = clock.Since", "uses time.Since"},
		"the clock as a value":                {"enforce/a.go", "import \"time\"\nvar now = time.Now", "uses time.Now"},
		"the clock through a timer":           {"enforce/a.go", "import \"time\"\nfunc f() { time.NewTimer(1) }", "uses time.NewTimer"},
		"the clock through a context":         {"enforce/a.go", "import \"context\"\nfunc f() { context.WithTimeout(nil, 1) }", "uses context.WithTimeout"},
		"the clock through a limiter":         {"enforce/a.go", "import \"golang.org/x/time/rate\"\nfunc f(l *rate.Limiter) { l.Allow() }", "calls Allow of a rate limiter"},
		"a limiter that is handed time":       {"enforce/a.go", "import \"golang.org/x/time/rate\"\nfunc f(l *rate.Limiter) { l.AllowN(now, 1) }", ""},
		"Allow of something else":             {"enforce/a.go", "func f(l list) { l.Allow() }", ""},
		"the judge starts a goroutine":        {"enforce/a.go", "func f() { go f() }", "starts a goroutine"},
		"the judge has a group do it":         {"enforce/a.go", "import \"sync\"\nfunc f(g *sync.WaitGroup) { g.Go(f) }", "starts a goroutine"},
		"the judge has a context do it":       {"enforce/a.go", "import \"context\"\nfunc f() { context.AfterFunc(nil, f) }", "starts a goroutine"},
		"the judge logs":                      {"enforce/a.go", `import "log/slog"`, "must not import log/slog"},
		"the judge reads the environment":     {"enforce/a.go", `import "os"`, "must not import os"},
		"the judge counts":                    {"enforce/a.go", `import "tokenward/metrics"`, "only metrics knows Prometheus"},
		"the judge manages":                   {"enforce/a.go", `import "tokenward/admin"`, "of ours it may import enforce/canon, tokenstore"},
		"a canonical form knows tokens":       {"enforce/canon/a.go", `import "tokenward/tokenstore"`, "it is a leaf"},
		"a canonical form speaks HTTP":        {"enforce/canon/a.go", `import "net/http"`, "must not import net/http"},
		"an unwanted module":                  {"enforce/canon/a.go", `import "example.com/x"`, "of others it may import nothing"},
		"the data plane manages":              {"proxy/a.go", `import "tokenward/admin"`, "does not manage them"},
		"the data plane manages below":        {"proxy/a.go", `import "tokenward/admin/native"`, "does not manage them"},
		"the data plane knows its driver":     {"proxy/a.go", `import "tokenward/tokenstore/boltstore"`, "drivers are chosen in cmd/tokenward"},
		"the data plane knows Prometheus":     {"proxy/a.go", `import "github.com/prometheus/client_golang/prometheus"`, "only metrics knows Prometheus"},
		"the data plane speaks gRPC":          {"proxy/a.go", `import "google.golang.org/grpc"`, "only tokenstore/etcdstore"},
		"the wire engine knows tokens":        {"proxy/http1/a.go", `import "tokenward/enforce"`, "knows nothing of tokens"},
		"the file driver opens sockets":       {"tokenstore/boltstore/a.go", `import "net"`, "must not import net:"},
		"the file driver reads addresses":     {"tokenstore/boltstore/a.go", `import "net/netip"`, ""},
		"the cluster driver knows the file":   {"tokenstore/etcdstore/a.go", `import "tokenward/tokenstore/boltstore"`, "small replica interface"},
		"the service knows a face":            {"admin/a.go", `import "tokenward/admin/unit"`, "does not know the faces"},
		"the service makes pages":             {"admin/a.go", `import "html/template"`, "no pages"},
		"a face knows another":                {"admin/unit/a.go", `import "tokenward/admin/fynn"`, "do not know one another"},
		"a face knows the service":            {"admin/unit/a.go", `import "tokenward/admin"`, ""},
		"a face knows a driver":               {"admin/unit/a.go", `import "tokenward/tokenstore/boltstore"`, "drivers are chosen in cmd/tokenward"},
		"a face judges":                       {"admin/unit/a.go", `import "tokenward/enforce"`, "the service decides"},
		"the log knows tokens":                {"audit/a.go", `import "tokenward/tokenstore"`, "it is a leaf"},
		"metrics know the judge":              {"metrics/a.go", `import "tokenward/enforce"`, "it is a leaf"},
		"metrics serve the default mux":       {"metrics/a.go", `import "net/http/pprof"`, "registers itself"},
		"test code in production":             {"proxy/a.go", `import "tokenward/tokenstore/storetest"`, "for tests only"},
		"test code in the command":            {"cmd/tokenward/a.go", `import "tokenward/tokenstore/storetest"`, "for tests only"},
		"test flags in production":            {"proxy/a.go", `import "testing"`, "test flags"},
		"memory tricks":                       {"tokenstore/a.go", `import "unsafe"`, "memory safety"},
		"memory tricks beside the one file":   {"proxy/http1/raw_darwin.go", `import "unsafe"`, "memory safety"},
		"the one file that hands over memory": {"proxy/http1/raw_linux.go", `import "unsafe"`, ""},
		"cgo":                                 {"proxy/a.go", `import "C"`, "the binary is static"},
		"programs started":                    {"cmd/tokenward/a.go", `import "os/exec"`, "starts no programs"},
		"random numbers with global state":    {"admin/a.go", `import "math/rand"`, "its state is global"},
		"random numbers":                      {"proxy/a.go", `import "math/rand/v2"`, ""},
		"dot import":                          {"audit/a.go", `import . "strings"`, "dot import of strings"},
		"blank import":                        {"audit/a.go", `import _ "crypto/md5"`, "blank import of crypto/md5"},
		"embedding":                           {"admin/a.go", `import _ "embed"`, ""},
		"the command wires":                   {"cmd/tokenward/a.go", `import "tokenward/tokenstore/boltstore"`, ""},
		"the command knows bbolt":             {"cmd/tokenward/a.go", `import "go.etcd.io/bbolt"`, "only tokenstore/boltstore"},
		"a test uses a test package":          {"enforce/a_test.go", `import "tokenward/tokenstore/storetest"`, ""},
		"a test uses a driver it may":         {"proxy/a_test.go", `import "tokenward/tokenstore/boltstore"`, ""},
		"a test plays all faces":              {"admin/a_test.go", `import "tokenward/admin/unit"`, ""},
		"a test of a face plays another":      {"admin/unit/a_test.go", `import "tokenward/admin/fynn"`, "tests of admin/unit"},
		"a test uses a driver it may not":     {"proxy/identity/a_test.go", `import "tokenward/tokenstore/boltstore"`, "tests of proxy/identity (identity"},
		"a test of the wire engine":           {"proxy/http1/a_test.go", `import "tokenward/tokenstore"`, "tests of proxy/http1"},
		"a test speaks HTTP":                  {"enforce/a_test.go", `import "net/http"`, ""},
		"a test from outside its package":     {"enforce/a_test.go", `import "tokenward/enforce"`, ""},
		"a test with an unwanted module":      {"enforce/a_test.go", `import "example.com/x"`, "modules for tests are listed"},
		"a test reads the clock":              {"enforce/a_test.go", "import \"time\"\nvar f = time.Now()", ""},
		"an unknown package":                  {"proxy/socks/a.go", "", "proxy/socks: unknown package: give it a place in the house of docs/design.md"},
		"an unknown package of the root":      {"a.go", "", ".: unknown package"},
		"a file that does not parse":          {"audit/a.go", "import (", "expected"},
		"another operating system":            {"proxy/a_windows.go", `import "tokenward/admin"`, "does not manage them"},
		"test data of the go command":         {"proxy/testdata/a.go", `import "C"`, ""},
		"a hidden folder":                     {".cache/a.go", `import "C"`, ""},
		"a drawer":                            {"proxy/util/a.txt", "", "no folder is named util"},
		"a drawer for settings":               {"config/a.txt", "", "no folder is named config"},
		"a drawer out of sight":               {"admin/internal/a.txt", "", "no folder is named internal"},
		"a test package uses what tests may":  {"tokenstore/storetest/a.go", "import \"testing\"\nimport \"github.com/google/go-cmp/cmp\"", ""},
		"the harness runs members":            {"bench/a.go", `import "tokenward/tokenstore/etcdstore/etcdtest"`, ""},
		"the harness uses a test package":     {"bench/a.go", `import "tokenward/tokenstore/storetest"`, "for tests only"},
		"the command runs members":            {"cmd/tokenward/a.go", `import "tokenward/tokenstore/etcdstore/etcdtest"`, "for tests only"},
		"a test package uses another":         {"admin/admintest/a.go", `import "tokenward/tokenstore/storetest"`, ""},
		"a test package uses what it may not": {"tokenstore/storetest/a.go", `import "tokenward/proxy"`, "of ours it may import tokenstore"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			src := new(bytes.Buffer)
			if strings.HasSuffix(tt.file, ".go") {
				src.WriteString("package a\n")
			}
			src.WriteString(tt.src + "\n")
			faults, _ := inspect(fstest.MapFS{tt.file: {Data: src.Bytes()}})
			switch {
			case tt.want == "" && len(faults) > 0:
				t.Errorf("refused what is allowed: %q", faults)
			case tt.want != "" && (len(faults) != 1 || !strings.Contains(faults[0], tt.want)):
				t.Errorf("got faults %q, want one with %q", faults, tt.want)
			}
		})
	}
}

func TestArrowsCheckerLeavesOtherModulesAlone(t *testing.T) {
	t.Parallel()
	faults, packages := inspect(fstest.MapFS{
		"tools/go.mod":    {Data: []byte("module tokenward/tools\n")},
		"tools/a/main.go": {Data: []byte("package main\nimport \"C\"\n")},
	})
	if len(faults) > 0 || len(packages) > 0 {
		t.Errorf("looked into another module: %q in %q", faults, packages)
	}
}
