// Package clients drives the vendors' own, unmodified clients against the real
// program. They are Node packages, pinned in package-lock.json.
package clients

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// config serves the vendors' APIs on both listeners. The grace period is long
// enough to be seen and short enough to be waited for.
const config = `
proxy:
  listen: 127.0.0.1:0
  upstream: http://127.0.0.1:9
admin:
  listen: 127.0.0.1:0
  mount: [unit, fynn, mailtrap]
metrics:
  listen: 127.0.0.1:0
enforce:
  known_scopes: [accounts, cards]
tokenstore:
  path: tokens.db
  reset_grace: 4s
audit:
  path: audit.jsonl
`

func TestVendorsOwnClientsWork(t *testing.T) {
	node := installed(t)
	program := build(t)
	for _, client := range []struct {
		script string
		steps  []string // as root; a plain caller has more
		plain  []string
	}{
		{
			"unit.js",
			[]string{"create", "list", "use what was made", "validation failure", "missing scope", "unknown id", "grace period", "wrong token", "revoke", "revoke twice"},
			[]string{"another user", "more than the caller has"},
		},
		{
			"mailtrap.js",
			[]string{"create", "list", "get", "use what was made", "never ends", "validation failure", "missing scope", "unknown id", "wrong token", "reset", "grace period", "reset twice", "end of the grace period", "reset with an end", "delete in the grace period", "delete twice"},
			[]string{"another account"},
		},
	} {
		for _, listener := range []string{"admin", "proxy"} {
			t.Run(client.script+" on the "+listener+" listener", func(t *testing.T) {
				t.Parallel() // most of it is waiting for ends of grace periods
				s := start(t, program, config)
				s.address = s.addresses[listener]
				plain := s.make(`{"name":"plain","account":7,"owner":70,"scopes":["accounts","user:api-token:read","user:api-token:write"]}`)
				poor := s.make(`{"name":"without scope","account":7,"owner":70,"scopes":["accounts"]}`)
				poorAtHome := s.make(`{"name":"without scope","account":1,"owner":1,"scopes":["accounts"]}`)
				t.Run("root", func(t *testing.T) {
					s.run(t, node, client.script, client.steps, "SECRET="+s.root, "WITHOUT_SCOPE="+poorAtHome, "USER=1", "ACCOUNT=1", "ROOT=1")
				})
				t.Run("plain caller", func(t *testing.T) {
					s.run(t, node, client.script, slices.Concat(client.steps, client.plain), "SECRET="+plain, "WITHOUT_SCOPE="+poor, "USER=70", "ACCOUNT=7", "ROOT=")
				})
			})
		}
	}
}

// installed returns Node after it installed the clients, or skips the test: with
// CI=true it fails instead.
func installed(t *testing.T) (node string) {
	t.Helper()
	give := t.Skipf
	if os.Getenv("CI") == "true" {
		give = t.Fatalf
	}
	node, err := exec.LookPath("node")
	npm, nerr := exec.LookPath("npm")
	if err != nil || nerr != nil {
		give("the vendors' clients are not driven: that needs node and npm in PATH")
	}
	if upToDate() {
		return node
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	install := exec.CommandContext(ctx, npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund")
	if out, err := install.CombinedOutput(); err != nil {
		give("the vendors' clients are not driven: `npm ci` in admin/clients failed (%v): %s", err, out)
	}
	return node
}

// upToDate reports whether what is installed is younger than the lock file.
func upToDate() bool {
	lock, err := os.Stat("package-lock.json")
	have, herr := os.Stat(filepath.Join("node_modules", ".package-lock.json"))
	return err == nil && herr == nil && have.ModTime().After(lock.ModTime())
}

func build(t *testing.T) (program string) {
	t.Helper()
	program = filepath.Join(t.TempDir(), "tokenward")
	out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, "tokenward/cmd/tokenward").CombinedOutput()
	if err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return program
}

// server is a running tokenward.
type server struct {
	t         *testing.T
	addresses map[string]string // by listener
	address   string            // of the one that clients use
	root      string
}

// start runs the program with this configuration and a new store until the test ends,
// and then expects it to end well.
func start(t *testing.T, program, config string) *server {
	t.Helper()
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "tokenward.yaml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	initialise := exec.CommandContext(t.Context(), program, "init", "--json")
	initialise.Dir = folder
	var told bytes.Buffer
	initialise.Stderr = &told
	out, err := initialise.Output()
	if err != nil {
		t.Fatalf("init: %v: %s", err, told.String())
	}
	var root struct{ Token string }
	if err := json.Unmarshal(out, &root); err != nil {
		t.Fatal(err)
	}
	serve := exec.Command(program, "serve")
	serve.Dir = folder
	log, err := serve.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := serve.Start(); err != nil {
		t.Fatal(err)
	}
	logged := &tail{ready: make(chan map[string]string, 1), done: make(chan struct{})}
	go logged.read(log)
	t.Cleanup(func() { stop(t, serve, logged) })
	select {
	case addresses := <-logged.ready:
		return &server{t: t, addresses: addresses, root: root.Token}
	case <-logged.done:
	case <-time.After(time.Minute):
	}
	t.Fatalf("the server did not begin:\n%s", logged.text())
	return nil
}

func stop(t *testing.T, serve *exec.Cmd, logged *tail) {
	if err := serve.Process.Signal(os.Interrupt); err != nil {
		t.Error(err)
	}
	<-logged.done // before Wait, which closes the pipe
	if err := serve.Wait(); err != nil || t.Failed() {
		t.Errorf("the server ended with %v, and told:\n%s", err, logged.text())
	}
}

// tail reads the log of a server.
type tail struct {
	ready chan map[string]string // gets the addresses once
	done  chan struct{}          // closed at the end of the log

	mu    sync.Mutex // guards lines
	lines []string
}

func (l *tail) read(log io.Reader) {
	defer close(l.done)
	lines := bufio.NewScanner(log)
	for lines.Scan() {
		var line struct{ Msg, Admin, Proxy string }
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Admin != "" && line.Proxy != "" {
			l.ready <- map[string]string{"admin": line.Admin, "proxy": line.Proxy}
		}
		l.mu.Lock()
		l.lines = append(l.lines, lines.Text())
		l.mu.Unlock()
	}
}

func (l *tail) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines, "\n")
}

// make makes a token by root through the native API and returns its secret.
func (s *server) make(spec string) string {
	s.t.Helper()
	status, body := s.call("admin", s.root, http.MethodPost, "/v1/tokens", spec)
	var made struct{ Token string }
	if err := json.Unmarshal(body, &made); err != nil || made.Token == "" {
		s.t.Fatalf("%d: %s", status, body)
	}
	return made.Token
}

// call makes one request on a listener.
func (s *server) call(listener, secret, method, target, body string) (status int, answer []byte) {
	s.t.Helper()
	r, err := http.NewRequestWithContext(s.t.Context(), method, "http://"+s.addresses[listener]+target, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+secret)
	got, err := http.DefaultClient.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer got.Body.Close() //nolint:errcheck // it was only read
	answer, err = io.ReadAll(got.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return got.StatusCode, answer
}

// run runs a script to its end, and expects it to tell of each step once.
func (s *server) run(t *testing.T, node, script string, steps []string, env ...string) {
	t.Helper()
	port, authority := s.terminate(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var args []string
	if script == "mailtrap.js" {
		args = []string{"--require", "./redirect.js"}
	}
	command := exec.CommandContext(ctx, node, append(args, script)...)
	command.Env = append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(),
		"BASE=http://" + s.address, "ADMIN=http://" + s.addresses["admin"],
		"MAILTRAP_PORT=" + port, "NODE_EXTRA_CA_CERTS=" + authority,
	}, env...)
	var out, errs bytes.Buffer
	command.Stdout, command.Stderr = &out, &errs
	if err := command.Run(); err != nil {
		t.Fatalf("%s: %v\n%s%s", script, err, out.String(), errs.String())
	}
	told := strings.Split(strings.TrimSpace(out.String()), "\n")
	slices.Sort(told)
	want := slices.Sorted(slices.Values(append(slices.Clone(steps), "end")))
	if !slices.Equal(told, want) {
		t.Errorf("%s took the steps %q, not %q", script, told, want)
	}
}

// terminate listens as mailtrap.io and hands every byte on to the server. It
// returns its port, and the file of the authority that vouches for it.
func (s *server) terminate(t *testing.T) (port, authority string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, DNSNames: []string{"mailtrap.io"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	authority = filepath.Join(t.TempDir(), "authority.pem")
	if err := os.WriteFile(authority, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS12,
	})
	if err != nil {
		t.Fatal(err)
	}
	var copies sync.WaitGroup
	copies.Go(func() {
		for {
			from, err := listener.Accept()
			if err != nil {
				return // the test ends
			}
			copies.Go(func() { s.relay(from) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		copies.Wait()
	})
	return fmt.Sprint(listener.Addr().(*net.TCPAddr).Port), authority
}

// relay copies in both directions until either side ends.
func (s *server) relay(from net.Conn) {
	to, err := net.Dial("tcp", s.address)
	if err != nil {
		_ = from.Close()
		return
	}
	var one sync.WaitGroup
	for _, way := range []struct{ from, to net.Conn }{{from, to}, {to, from}} {
		one.Go(func() {
			_, _ = io.Copy(way.to, way.from) // ends with either connection
			_ = way.to.Close()
			_ = way.from.Close()
		})
	}
	one.Wait()
}
