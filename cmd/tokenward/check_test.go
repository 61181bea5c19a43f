package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// runCheck runs the command and returns what it printed.
func runCheck(t *testing.T, stdin string, args ...string) (string, error) {
	t.Helper()
	cmd := newCheckCommand()
	var out bytes.Buffer
	cmd.SetArgs(args)
	cmd.SetIn(strings.NewReader(stdin))
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	err := cmd.ExecuteContext(context.Background())
	return out.String(), err
}

func TestCheckListsRoutes(t *testing.T) {
	got, err := runCheck(t, "", "--config", examplePath)
	if err != nil {
		t.Fatal(err)
	}
	want := `config is fine: 7 routes, 0 warnings

 LINE  METHODS   PATH                              ASKS FOR
`
	if !strings.HasPrefix(got, want) {
		t.Fatalf("got\n%s\nwant it to begin with\n%s", got, want)
	}
	var rows []string
	for line := range strings.Lines(got[len(want):]) {
		rows = append(rows, strings.Join(strings.Fields(line)[1:], " "))
	}
	wantRows := []string{
		"GET /healthz nothing (public)",
		"GET,HEAD /accounts/{account} scope accounts, resource account:{account}",
		"* /accounts/{account}/cards/{card} scope cards or cards-write, resource card:{card} or account:{account}",
		"GET /statements/{account} scope statements, the token's account in {account}",
		"POST /files/{account}/search/{name} scope files, resource account:{account}, read access, relaxes encoded_percent",
		"POST /reports/{account} scope reports, resource account:{account}",
		"GET,POST /app/{path...} scope app",
	}
	if diff := cmp.Diff(wantRows, rows); diff != "" {
		t.Errorf("routes (-want +got):\n%s", diff)
	}
}

func TestCheckSaysWhatARouteLeavesOpen(t *testing.T) {
	for _, c := range []struct {
		route RouteConfig
		want  string
	}{
		{RouteConfig{Match: "GET /"}, "any valid token, not restricted to resources"},
		{RouteConfig{Match: "GET /", RestrictedTokens: "allow"}, "any valid token"},
		{RouteConfig{Match: "GET /", Public: true}, "nothing (public)"},
		{RouteConfig{Match: "GET /", Scopes: []string{"a|b", "c"}}, "scope a or b and c, not restricted to resources"},
	} {
		if got := describeRoute(&c.route).Asks; got != c.want {
			t.Errorf("%+v asks for %q, want %q", c.route, got, c.want)
		}
	}
}

func TestCheckReadsStandardInput(t *testing.T) {
	got, err := runCheck(t, "log:\n  level: debug\n", "--config", "-")
	if err != nil || !strings.HasPrefix(got, "config is fine: 0 routes, 1 warning\n") || !strings.Contains(got, "every request is refused") {
		t.Errorf("got %q, %v", got, err)
	}
	_, err = runCheck(t, "log:\n  level: loud\n", "--config", "-")
	if err == nil || !strings.Contains(err.Error(), "standard input:2:10: log.level:") {
		t.Errorf("got %v", err)
	}
}

func TestCheckPrintsFaultsAsJSON(t *testing.T) {
	got, err := runCheck(t, "log:\n  level: loud\n", "--config", "-", "--json")
	if err == nil || err.Error() != "the configuration has 1 fault" {
		t.Errorf("error %v", err)
	}
	var r checkReport
	if err := json.Unmarshal([]byte(got), &r); err != nil {
		t.Fatalf("%v in %s", err, got)
	}
	want := []configFault{{Line: 2, Column: 10, Key: "log.level", Rule: ruleChoice, Problem: `"loud" is not a choice here`, Fix: "write debug, info, warn or error"}}
	if diff := cmp.Diff(want, r.Faults, cmp.AllowUnexported(configFault{})); r.OK || diff != "" {
		t.Errorf("ok %v, faults (-want +got):\n%s", r.OK, diff)
	}
	got, err = runCheck(t, "routes:\n  - match: GET /\n    public: true\n", "--config", "-", "--json")
	if err != nil {
		t.Fatal(err)
	}
	r = checkReport{}
	if err := json.Unmarshal([]byte(got), &r); err != nil || !r.OK || len(r.Routes) != 1 || r.Routes[0] != (checkRoute{Line: 2, Methods: "GET", Path: "/", Asks: "nothing (public)"}) {
		t.Errorf("%v in %s", err, got)
	}
	if strings.Contains(got, "null") {
		t.Errorf("an empty list is null in %s", got)
	}
}

func TestCheckOfAMissingFileSaysSo(t *testing.T) {
	_, err := runCheck(t, "", "--config", filepath.Join(t.TempDir(), "none.yaml"))
	e, ok := errors.AsType[*configError](err)
	if !ok || e.Faults[0].Rule != ruleFile {
		t.Errorf("got %v", err)
	}
}

// writeFile makes a file with exactly this mode, whatever the umask.
func writeFile(t *testing.T, path, content string, mode os.FileMode) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// writeCertificate makes a certificate for the years given, and its key.
func writeCertificate(t *testing.T, dir, name string, from, to time.Time) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: from, NotAfter: to}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	encode := func(typ string, b []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: b}))
	}
	return writeFile(t, filepath.Join(dir, name+".pem"), encode("CERTIFICATE", cert), 0o644),
		writeFile(t, filepath.Join(dir, name+".key"), encode("PRIVATE KEY", der), 0o600)
}

// ed25519PEM is a new signing key.
func ed25519PEM(t *testing.T) string {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func TestNamedFilesAreLookedAt(t *testing.T) {
	dir := t.TempDir()
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	at := func(name string) string { return filepath.Join(dir, name) }
	cert, key := writeCertificate(t, dir, "good", now.AddDate(-1, 0, 0), now.AddDate(1, 0, 0))
	old, oldKey := writeCertificate(t, dir, "old", now.AddDate(-2, 0, 0), now.AddDate(0, 0, -1))
	soon, soonKey := writeCertificate(t, dir, "soon", now.AddDate(-1, 0, 0), now.AddDate(0, 0, 3))
	early, earlyKey := writeCertificate(t, dir, "early", now.AddDate(0, 0, 1), now.AddDate(1, 0, 0))
	openCert, openKey := writeCertificate(t, dir, "open", now.AddDate(-1, 0, 0), now.AddDate(1, 0, 0))
	if err := os.Chmod(openKey, 0o604); err != nil {
		t.Fatal(err)
	}
	good := strings.Repeat("pepper", 8)
	pepper := writeFile(t, at("pepper"), good, 0o600)
	signing := ed25519PEM(t)
	if err := os.Mkdir(at("shared"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(at("shared"), 0o777); err != nil { //nolint:gosec // that is the fault to find
		t.Fatal(err)
	}

	for _, c := range []struct {
		name    string
		change  func(c *Config)
		fault   string // key: part of the problem
		warning string
	}{
		{name: "all is well", change: func(c *Config) {
			c.Proxy.TLS = TLSConfig{CertFile: cert, KeyFile: key}
			c.TokenStore.PepperFiles = []string{pepper}
		}},
		{name: "certificate is missing", change: func(c *Config) { c.Proxy.TLS = TLSConfig{CertFile: at("none.pem"), KeyFile: key} }, fault: "proxy.tls.cert_file: no such file"},
		{name: "key is missing", change: func(c *Config) { c.Admin.TLS = TLSConfig{CertFile: cert, KeyFile: at("none.key")} }, fault: "admin.tls.key_file: no such file"},
		{name: "key of another certificate", change: func(c *Config) { c.Proxy.TLS = TLSConfig{CertFile: cert, KeyFile: oldKey} }, fault: "proxy.tls: do not belong together"},
		{name: "key for everybody", change: func(c *Config) { c.Proxy.TLS = TLSConfig{CertFile: openCert, KeyFile: openKey} }, fault: "proxy.tls.key_file: everybody"},
		{name: "certificate has ended", change: func(c *Config) { c.Proxy.TLS = TLSConfig{CertFile: old, KeyFile: oldKey} }, warning: "proxy.tls.cert_file: ended on 2026-11-20"},
		{name: "certificate ends soon", change: func(c *Config) { c.Proxy.TLS = TLSConfig{CertFile: soon, KeyFile: soonKey} }, warning: "proxy.tls.cert_file: ends on 2026-11-24"},
		{name: "certificate of tomorrow", change: func(c *Config) { c.Proxy.TLS = TLSConfig{CertFile: early, KeyFile: earlyKey} }, warning: "proxy.tls.cert_file: valid only from 2026-11-22"},
		{name: "pepper is missing", change: func(c *Config) { c.TokenStore.PepperFiles = []string{pepper, at("none")} }, fault: "tokenstore.pepper_files[1]: no such file"},
		{name: "pepper for everybody", change: func(c *Config) { c.TokenStore.PepperFiles = []string{writeFile(t, at("open"), good, 0o644)} }, fault: "tokenstore.pepper_files[0]: everybody"},
		{name: "pepper writable by a group", change: func(c *Config) { c.TokenStore.PepperFiles = []string{writeFile(t, at("gw"), good, 0o660)} }, fault: "tokenstore.pepper_files[0]: its group can write"},
		{name: "pepper readable by a group", change: func(c *Config) { c.TokenStore.PepperFiles = []string{writeFile(t, at("gr"), good, 0o640)} }, warning: "tokenstore.pepper_files[0]: its group can read"},
		{name: "pepper is short", change: func(c *Config) { c.TokenStore.PepperFiles = []string{writeFile(t, at("short"), "salt\n", 0o600)} }, fault: "tokenstore.pepper_files[0]: fewer than 32 bytes"},
		{name: "same pepper twice", change: func(c *Config) {
			c.TokenStore.PepperFiles = []string{pepper, writeFile(t, at("copy"), good+"\n", 0o600)}
		}, fault: "tokenstore.pepper_files: the same pepper"},
		{name: "pepper is a folder", change: func(c *Config) { c.TokenStore.PepperFiles = []string{dir} }, fault: "tokenstore.pepper_files[0]: is a directory"},
		{name: "identity key for everybody", change: func(c *Config) {
			c.Proxy.Identity.SigningKeyFiles = []string{writeFile(t, at("identity.pem"), signing, 0o644)}
		}, fault: "proxy.identity.signing_key_files[0]: everybody"},
		{name: "identity key of another kind", change: func(c *Config) { c.Proxy.Identity.SigningKeyFiles = []string{key} }, fault: "proxy.identity.signing_key_files[0]: no Ed25519 private key"},
		{name: "audit key for everybody", change: func(c *Config) { c.Audit.SigningKeyFile = writeFile(t, at("audit.pem"), signing, 0o644) }, fault: "audit.signing_key_file: everybody"},
		{name: "store in a missing folder", change: func(c *Config) { c.TokenStore.Path = at("no/tokens.db") }, fault: "tokenstore.path: no such file"},
		{name: "store below a file", change: func(c *Config) { c.TokenStore.Path = filepath.Join(pepper, "tokens.db") }, fault: "tokenstore.path: not a folder"},
		{name: "store is a folder", change: func(c *Config) { c.TokenStore.Path = dir }, fault: "tokenstore.path: is a directory"},
		{name: "log that a group can write", change: func(c *Config) { c.Audit.Path = writeFile(t, at("group.jsonl"), "", 0o660) }, warning: "audit.path: others can write to"},
		{name: "log that a group can read", change: func(c *Config) { c.Audit.Path = writeFile(t, at("read.jsonl"), "", 0o640) }},
		{name: "log in a folder for everybody", change: func(c *Config) { c.Audit.Path = at("shared/audit.jsonl") }, warning: "audit.path: everybody on this machine can write"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := defaultConfig()
			cfg.TokenStore.Path, cfg.Audit.Path = at("tokens.db"), at("audit.jsonl")
			c.change(cfg)
			faults, warnings := cfg.checkFiles(now)
			expectFault(t, "fault", faults, c.fault)
			expectFault(t, "warning", warnings, c.warning)
			for _, f := range slices.Concat(faults, warnings) {
				if shown := fmt.Sprint(f); strings.Contains(shown, good) || strings.Contains(shown, "salt") {
					t.Errorf("the content of a secret file is shown: %v", shown)
				}
			}
		})
	}
}

// expectFault wants exactly one fault, `key: part of the problem`, or none.
func expectFault(t *testing.T, kind string, faults []configFault, want string) {
	t.Helper()
	if want == "" {
		if len(faults) > 0 {
			t.Errorf("%s: %+v", kind, faults)
		}
		return
	}
	key, part, _ := strings.Cut(want, ": ")
	if len(faults) != 1 || faults[0].Key != key || !strings.Contains(faults[0].Problem, part) || faults[0].Rule != ruleNamedFile || faults[0].Fix == "" {
		t.Errorf("%s: got %+v, want %q", kind, faults, want)
	}
}

func TestCheckOfTheTextAloneLooksAtNoFile(t *testing.T) {
	text := "proxy:\n  tls: {cert_file: /none/a, key_file: /none/b}\n"
	if _, err := runCheck(t, text, "--config", "-"); err == nil {
		t.Error("missing files are not refused")
	}
	if got, err := runCheck(t, text, "--config", "-", "--text-only"); err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestVariableInTheNotationOfOtherRoutersIsWarnedOf(t *testing.T) {
	for text, want := range map[string]string{
		":id": "{id}", "<Id>": "{id}", "[id]": "{id}",
		"%3Aid": "", "%3Cid>": "", "things:batch": "", ":": "", ":1": "", ":a:b": "", "{id}": "", "$metadata": "",
	} {
		got, err := runCheck(t, "routes:\n  - match: 'GET /m/"+text+"/x'\n", "--config", "-", "--text-only")
		if err != nil {
			t.Errorf("%s: %v", text, err)
		}
		if warned := strings.Contains(got, "stands for this very text"); warned != (want != "") || !strings.Contains(got, "write "+want) && warned {
			t.Errorf("%s:\n%s", text, got)
		}
	}
	var log bytes.Buffer
	c := mustParse(t, "routes:\n  - match: GET /m/:id\n    public: true\n")
	warnOf(slog.New(slog.NewTextHandler(&log, nil)), c, nil)
	if !strings.Contains(log.String(), "key=routes[0].match") || !strings.Contains(log.String(), "%3Aid") {
		t.Error(log.String())
	}
}

// TestFaultsOfTextAndFilesAreShownInOneRun: but nothing is said of a file whose name could
// not be read, or is not written there.
func TestFaultsOfTextAndFilesAreShownInOneRun(t *testing.T) {
	text := "log: {level: loud}\n" +
		"tokenstore: {path: /none/t.db, pepper_files: [/none/pepper, 7]}\n" +
		"audit: {path: '${HOME}/none/a.jsonl'}\n" +
		"proxy: {tls: {cert_file: /none/cert.pem}}\n"
	got, err := runCheck(t, text, "--config", "-", "--json")
	if err == nil {
		t.Fatal("it is fine")
	}
	var r checkReport
	if err := json.Unmarshal([]byte(got), &r); err != nil {
		t.Fatalf("%v in %s", err, got)
	}
	var keys []string
	for _, f := range r.Faults {
		keys = append(keys, fmt.Sprintf("%d %s %s", f.Line, f.Key, f.Rule))
	}
	want := []string{
		"1 log.level bad_choice",
		"2 tokenstore.path named_file",
		"2 tokenstore.pepper_files[0] named_file",
		"2 tokenstore.pepper_files[1] wrong_type",
		"3 audit.path bad_path",
		"4 proxy.tls half_tls",
		"4 proxy.tls.cert_file named_file",
	}
	if diff := cmp.Diff(want, keys); diff != "" {
		t.Errorf("faults (-want +got):\n%s%s", diff, got)
	}
	if _, err = runCheck(t, text, "--config", "-", "--text-only"); err == nil || strings.Contains(err.Error(), "/none/pepper\" ") {
		t.Errorf("with --text-only: %v", err)
	}
}

// TestUnreadableKeyIsNotSaidToBeTheWrongOne: the kernel refuses to read the beginning of
// a process's memory, whoever asks.
func TestUnreadableKeyIsNotSaidToBeTheWrongOne(t *testing.T) {
	const unreadable = "/proc/self/mem"
	if _, err := os.Stat(unreadable); err != nil {
		t.Skip(err)
	}
	cert := writeFile(t, filepath.Join(t.TempDir(), "cert.pem"), "", 0o600)
	f := fileChecker{now: time.Now()}
	f.certificate("proxy.tls", TLSConfig{CertFile: cert, KeyFile: unreadable})
	if len(f.faults) != 1 || f.faults[0].Key != "proxy.tls.key_file" || !strings.Contains(f.faults[0].Problem, "cannot be read") {
		t.Errorf("faults are %v", f.faults)
	}
}
