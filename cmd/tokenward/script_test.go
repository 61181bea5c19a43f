package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"tokenward/tokenstore/etcdstore/etcdtest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"tokenward": main})
}

// TestScripts runs the command line as people do, against real servers. Besides
// testscript's own commands there are those of scriptCommands.
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		Cmds:                scriptCommands(),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			e.Values[scriptKey{}] = &script{servers: map[string]*scriptServer{}}
			e.Setenv("GORACE", "atexit_sleep_ms=0") // the race detector has every process end a second later
			return nil
		},
	})
}

type scriptKey struct{}

// script is the state of one script.
type script struct {
	servers map[string]*scriptServer
	slow    *slowAPI
	held    chan heldAnswer
}

func scriptOf(ts *testscript.TestScript) *script { return ts.Value(scriptKey{}).(*script) }

func scriptCommands() map[string]func(*testscript.TestScript, bool, []string) {
	return map[string]func(*testscript.TestScript, bool, []string){
		"exits": exits, "start": startServer, "halt": haltServer, "terminate": terminateServer,
		"request": scriptRequest, "upstream": startUpstream, "hold": holdRequest, "release": releaseRequest,
		"certificate": makeCertificate, "take": takeField, "put": putFile, "expand": expandFile, "nosecrets": noSecrets, "sameobject": sameObject,
		"etcd": startEtcd,
		"edit": editFile, "truncateline": truncateLine,
	}
}

func wantArgs(ts *testscript.TestScript, neg bool, ok bool, text string) {
	if neg || !ok {
		ts.Fatalf("usage: %s", text)
	}
}

// exits CODE ARG… runs tokenward and wants its exit code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	wantArgs(ts, neg, len(args) > 0, "exits CODE ARG…")
	code := 0
	err := ts.Exec("tokenward", args[1:]...)
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		code = e.ExitCode()
	} else {
		ts.Check(err)
	}
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("exit code %d instead of %s", code, args[0])
	}
}

// etcd runs a member of etcd until the script ends, and sets $etcd to its URL.
func startEtcd(ts *testscript.TestScript, neg bool, args []string) {
	wantArgs(ts, neg, len(args) == 0, "etcd")
	specs, err := etcdtest.Specs(ts.MkAbs("etcd"), "http", 1)
	ts.Check(err)
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- specs[0].Run(ctx, func() { close(ready) }) }()
	ts.Defer(func() {
		cancel()
		<-ended
	})
	select {
	case <-ready:
	case err := <-ended:
		ended <- err
		ts.Fatalf("etcd ended: %v", err)
	}
	ts.Setenv("etcd", specs[0].ClientURL)
}

// scriptServer is a server in a process of its own.
type scriptServer struct {
	cmd *exec.Cmd

	// mu guards log, what it wrote so far; the reading goroutine writes it.
	mu  sync.Mutex
	log bytes.Buffer

	lines chan string // each line of the log; closed at its end
}

// start NAME CONFIG runs `tokenward serve`, waits until it is ready, and sets
// $proxy, $admin, $metrics and $TOKENWARD_ADMIN to its URLs, and $admin_address.
func startServer(ts *testscript.TestScript, neg bool, args []string) {
	wantArgs(ts, neg, len(args) == 2, "start NAME CONFIG")
	s := &scriptServer{lines: make(chan string, 1024)}
	s.cmd = exec.Command("tokenward", "serve", "--config", args[1]) //nolint:gosec // the test's own
	s.cmd.Dir = ts.MkAbs(".")
	for _, name := range []string{"PATH", "HOME", "TMPDIR", envBootstrapFile, envBootstrapToken} {
		if value := ts.Getenv(name); value != "" {
			s.cmd.Env = append(s.cmd.Env, name+"="+value)
		}
	}
	stderr, err := s.cmd.StderrPipe()
	ts.Check(err)
	ts.Check(s.cmd.Start())
	go s.read(stderr)
	ts.Defer(func() {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
	})
	scriptOf(ts).servers[args[0]] = s
	var ready struct{ Proxy, Admin, Metrics string }
	ts.Check(json.Unmarshal([]byte(s.await(ts, "tokenward is ready")), &ready))
	for name, address := range map[string]string{"proxy": ready.Proxy, "admin": ready.Admin, "metrics": ready.Metrics, envAdmin: ready.Admin} {
		ts.Setenv(name, "http://"+address)
	}
	ts.Setenv("admin_address", ready.Admin)
}

func (s *scriptServer) read(stderr io.Reader) {
	defer close(s.lines)
	for in := bufio.NewScanner(stderr); in.Scan(); {
		s.mu.Lock()
		s.log.WriteString(in.Text() + "\n")
		s.mu.Unlock()
		s.lines <- in.Text()
	}
}

// await is the next line of the log with the text in it.
func (s *scriptServer) await(ts *testscript.TestScript, text string) string {
	for line := range s.lines {
		if strings.Contains(line, text) {
			return line
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	ts.Fatalf("the server ended without saying %q:\n%s", text, s.log.String())
	return ""
}

func server(ts *testscript.TestScript, name string) *scriptServer {
	s := scriptOf(ts).servers[name]
	if s == nil {
		ts.Fatalf("no server is called %s", name)
	}
	return s
}

// terminate NAME sends SIGTERM and waits until the server says that it stops.
func terminateServer(ts *testscript.TestScript, neg bool, args []string) {
	wantArgs(ts, neg, len(args) == 1, "terminate NAME")
	s := server(ts, args[0])
	ts.Check(s.cmd.Process.Signal(syscall.SIGTERM))
	s.await(ts, "stopping")
}

// halt NAME sends SIGTERM, wants exit code 0, and writes the log to NAME.log.
func haltServer(ts *testscript.TestScript, neg bool, args []string) {
	wantArgs(ts, neg, len(args) == 1, "halt NAME")
	s := server(ts, args[0])
	ts.Check(s.cmd.Process.Signal(syscall.SIGTERM))
	for range s.lines { // to the end
	}
	err := s.cmd.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".log"), s.log.Bytes(), 0o600))
	if err != nil {
		ts.Fatalf("the server ended with %v:\n%s", err, s.log.String())
	}
}

// request METHOD URL STATUS [CODE] [HEADER…] makes a request and wants its
// status, and its code where it is a problem. The body is its standard output.
func scriptRequest(ts *testscript.TestScript, neg bool, args []string) {
	wantArgs(ts, neg, len(args) >= 3, "request METHOD URL STATUS [CODE] [HEADER…]")
	req, err := http.NewRequest(args[0], args[1], nil)
	ts.Check(err)
	wanted, rest := args[2], args[3:]
	code := ""
	if len(rest) > 0 && !strings.Contains(rest[0], ":") {
		code, rest = rest[0], rest[1:]
	}
	for _, header := range rest {
		name, value, _ := strings.Cut(header, ": ")
		req.Header.Set(name, value)
	}
	answer := makeRequest(req)
	ts.Check(answer.err)
	fmt.Fprintln(ts.Stdout(), answer.body)
	var problem struct{ Code string }
	_ = json.Unmarshal([]byte(answer.body), &problem)
	if strconv.Itoa(answer.status) != wanted || problem.Code != code {
		ts.Fatalf("answered %d %s", answer.status, problem.Code)
	}
}

type heldAnswer struct {
	status int
	body   string
	err    error
}

func makeRequest(req *http.Request) heldAnswer {
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return heldAnswer{err: err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return heldAnswer{resp.StatusCode, string(body), err}
}

// slowAPI answers /hold only when it is told to.
type slowAPI struct{ arrived, released chan struct{} }

func (a *slowAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/hold" {
		a.arrived <- struct{}{}
		<-a.released
	}
	fmt.Fprintf(w, "upstream got %s %s for token %s\n", r.Method, r.URL.Path, r.Header.Get("X-Token-Id"))
}

// upstream starts an API to guard and sets $upstream to its URL.
func startUpstream(ts *testscript.TestScript, neg bool, args []string) {
	wantArgs(ts, neg, len(args) == 0, "upstream")
	api := &slowAPI{arrived: make(chan struct{}), released: make(chan struct{})}
	behind := httptest.NewServer(api)
	ts.Defer(behind.Close)
	scriptOf(ts).slow = api
	ts.Setenv("upstream", behind.URL)
}

// hold URL HEADER… begins a request that the upstream keeps waiting.
func holdRequest(ts *testscript.TestScript, neg bool, args []string) {
	wantArgs(ts, neg, len(args) >= 1, "hold URL HEADER…")
	req, err := http.NewRequest(http.MethodGet, args[0], nil)
	ts.Check(err)
	for _, header := range args[1:] {
		name, value, _ := strings.Cut(header, ": ")
		req.Header.Set(name, value)
	}
	s := scriptOf(ts)
	s.held = make(chan heldAnswer, 1)
	go func() { s.held <- makeRequest(req) }()
	select {
	case <-s.slow.arrived:
	case answer := <-s.held:
		ts.Fatalf("answered too early: %+v", answer)
	}
}

// release STATUS lets the upstream answer the request that it holds.
func releaseRequest(ts *testscript.TestScript, neg bool, args []string) {
	wantArgs(ts, neg, len(args) == 1, "release STATUS")
	s := scriptOf(ts)
	s.slow.released <- struct{}{}
	answer := <-s.held
	ts.Check(answer.err)
	fmt.Fprint(ts.Stdout(), answer.body)
	if strconv.Itoa(answer.status) != args[0] {
		ts.Fatalf("answered %d", answer.status)
	}
}

// certificate CERT KEY makes a certificate for 127.0.0.1 that nobody signed.
func makeCertificate(ts *testscript.TestScript, neg bool, args []string) {
	wantArgs(ts, neg, len(args) == 2, "certificate CERT KEY")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(90 * 24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	ts.Check(err)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	ts.Check(err)
	for _, file := range []struct {
		name  string
		block pem.Block
	}{{args[0], pem.Block{Type: "CERTIFICATE", Bytes: cert}}, {args[1], pem.Block{Type: "PRIVATE KEY", Bytes: der}}} {
		ts.Check(os.WriteFile(ts.MkAbs(file.name), pem.EncodeToMemory(&file.block), 0o600))
	}
}

// take FILE FIELD VAR sets an environment variable to a field of a JSON object.
func takeField(ts *testscript.TestScript, neg bool, args []string) {
	wantArgs(ts, neg, len(args) == 3, "take FILE FIELD VAR")
	fields := map[string]any{}
	dec := json.NewDecoder(strings.NewReader(ts.ReadFile(args[0])))
	dec.UseNumber()
	ts.Check(dec.Decode(&fields))
	if fields[args[1]] == nil {
		ts.Fatalf("there is no %s in %s", args[1], args[0])
	}
	ts.Setenv(args[2], fmt.Sprint(fields[args[1]]))
}

// put FILE TEXT writes a file that only its owner can read.
func putFile(ts *testscript.TestScript, neg bool, args []string) {
	wantArgs(ts, neg, len(args) == 2, "put FILE TEXT")
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(args[1]+"\n"), 0o600))
}

// expand FILE… puts environment variables into files.
func expandFile(ts *testscript.TestScript, neg bool, args []string) {
	wantArgs(ts, neg, len(args) > 0, "expand FILE…")
	for _, name := range args {
		ts.Check(os.WriteFile(ts.MkAbs(name), []byte(os.Expand(ts.ReadFile(name), ts.Getenv)), 0o600))
	}
}

// edit FILE OLD NEW puts one text in the place of another, where it first stands.
func editFile(ts *testscript.TestScript, neg bool, args []string) {
	wantArgs(ts, neg, len(args) == 3, "edit FILE OLD NEW")
	before, after, found := strings.Cut(ts.ReadFile(args[0]), args[1])
	if !found {
		ts.Fatalf("%s has no %q", args[0], args[1])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(before+args[2]+after), 0o600))
}

// truncateline FILE cuts the last line off.
func truncateLine(ts *testscript.TestScript, neg bool, args []string) {
	wantArgs(ts, neg, len(args) == 1, "truncateline FILE")
	text := strings.TrimSuffix(ts.ReadFile(args[0]), "\n")
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text[:strings.LastIndexByte(text, '\n')+1]), 0o600))
}

// nosecrets FILE… wants no secret of a token in the files, or in stdout or
// stderr.
func noSecrets(ts *testscript.TestScript, neg bool, args []string) {
	wantArgs(ts, neg, len(args) > 0, "nosecrets FILE…")
	for _, name := range args {
		if text := ts.ReadFile(name); secretInText.MatchString(text) {
			ts.Fatalf("%s shows a secret:\n%s", name, text)
		}
	}
}

// sameobject FILE URL TOKEN wants the file to hold what the server answers to a
// GET, byte for byte but for the white space between values and what the two calls
// themselves changed: when a secret was last used.
func sameObject(ts *testscript.TestScript, neg bool, args []string) {
	wantArgs(ts, neg, len(args) == 3, "sameobject FILE URL TOKEN")
	req, err := http.NewRequest(http.MethodGet, args[1], nil)
	ts.Check(err)
	req.Header.Set("Authorization", "Bearer "+args[2])
	answer := makeRequest(req)
	ts.Check(answer.err)
	if got, want := compactJSON(ts, ts.ReadFile(args[0])), compactJSON(ts, answer.body); got != want {
		ts.Fatalf("printed:\n%s\nanswered:\n%s", got, want)
	}
}

func compactJSON(ts *testscript.TestScript, text string) string {
	var b bytes.Buffer
	ts.Check(json.Compact(&b, []byte(text)))
	return lastUsed.ReplaceAllString(b.String(), `"last_used":{}`)
}

var lastUsed = regexp.MustCompile(`"last_used":\{[^}]*\}`)

// TestNoScriptEndsBeforeItsEnd looks for testscript's own stop and skip, which pass over
// what follows. A command of ours by the name of one of its own is never called.
func TestNoScriptEndsBeforeItsEnd(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d scripts, %v", len(files), err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for i, line := range strings.Split(string(b), "\n") {
			if word, _, _ := strings.Cut(line, " "); word == "stop" || word == "skip" {
				t.Errorf("%s:%d: %q ends the script here: halt ends a server", file, i+1, line)
			}
		}
	}
}
