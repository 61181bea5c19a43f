package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"tokenward/metrics"
)

// lockedBuffer is a log that a test reads while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// started is an app over a file, served until the test ends.
type started struct {
	*app
	file  string
	proxy string
	root  string // the root token's secret
	log   *lockedBuffer
}

// startApp serves an app with the routes; more are further keys of proxy.
func startApp(t *testing.T, routes string, more ...string) *started {
	t.Helper()
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.URL.Path) }))
	t.Cleanup(upstream.Close)
	dir := t.TempDir()
	s := &started{file: filepath.Join(dir, "tokenward.yaml"), log: &lockedBuffer{}}
	s.write(t, upstream.URL, dir, routes, strings.Join(more, ""))
	cfg, err := loadConfig(s.file)
	if err != nil {
		t.Fatal(err)
	}
	level := new(slog.LevelVar)
	log := newLeveledLogger(cfg, s.log, level)
	made, _, err := initialise(t.Context(), cfg, log, false)
	if err != nil {
		t.Fatal(err)
	}
	s.root = made.Secret.Reveal()
	if s.app, err = newApp(t.Context(), cfg, log, time.Now); err != nil {
		t.Fatal(err)
	}
	s.level = level
	s.proxy = "http://" + s.proxyListener.Addr().String()
	failed := s.start() // nothing is watched: the test reloads when it wants to
	t.Cleanup(func() {
		if err := s.shutdown(); err != nil {
			t.Error(err)
		}
		select {
		case err := <-failed:
			t.Error(err)
		default:
		}
	})
	return s
}

func (s *started) write(t *testing.T, upstream, dir, routes, more string) {
	t.Helper()
	text := fmt.Sprintf("proxy: {%slisten: '127.0.0.1:0', upstream: '%s'}\nadmin: {listen: '127.0.0.1:0'}\nmetrics: {listen: '127.0.0.1:0'}\n"+
		"tokenstore: {path: %s/t.db}\naudit: {path: %s/a.jsonl}\n%s", more, upstream, dir, dir, routes)
	if err := os.WriteFile(s.file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// rewrite replaces the routes in the file.
func (s *started) rewrite(t *testing.T, routes string) {
	t.Helper()
	text, err := os.ReadFile(s.file)
	if err != nil {
		t.Fatal(err)
	}
	head, _, _ := strings.Cut(string(text), "routes:")
	if err := os.WriteFile(s.file, []byte(head+routes), 0o600); err != nil {
		t.Fatal(err)
	}
}

func status(t *testing.T, url string) int {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode
}

func configCheck(t *testing.T, s *started) metrics.Check {
	t.Helper()
	_, checks := s.health.Ready()
	for _, c := range checks {
		if c.Name == "config" {
			return c
		}
	}
	return metrics.Check{}
}

func TestReloadPutsRoutesInForceAndRefusesABadFileWhole(t *testing.T) {
	s := startApp(t, "routes:\n  - {match: GET /a, public: true}\n")
	if got := status(t, s.proxy+"/a"); got != 200 {
		t.Fatalf("/a: %d", got)
	}
	s.rewrite(t, "routes:\n  - {match: GET /b, public: true}\n")
	s.reload(s.file)
	if a, b := status(t, s.proxy+"/a"), status(t, s.proxy+"/b"); a != 401 || b != 200 {
		t.Fatalf("after the reload /a is %d and /b %d", a, b)
	}
	s.rewrite(t, "routes:\n  - {match: GET /c, public: true}\n  - {match: GET /c, public: true}\n")
	s.reload(s.file)
	if b, c := status(t, s.proxy+"/b"), status(t, s.proxy+"/c"); b != 200 || c != 401 {
		t.Errorf("after a bad file /b is %d and /c %d", b, c)
	}
	if c := configCheck(t, s); c.State != metrics.Warning || !strings.Contains(s.log.String(), "the last good one stays in force") {
		t.Errorf("nobody is told of the bad file: %+v\n%s", c, s.log)
	}
	s.rewrite(t, "routes:\n  - {match: GET /c, public: true}\n")
	s.reload(s.file)
	if c := status(t, s.proxy+"/c"); c != 200 || configCheck(t, s).State != metrics.Passing {
		t.Errorf("after it was mended /c is %d, and the check %+v", c, configCheck(t, s))
	}
}

// TestUpstreamThatIsNotConfiguredAnyMoreIsForgotten: else one that was down when it
// was taken out would be reported for ever.
func TestUpstreamThatIsNotConfiguredAnyMoreIsForgotten(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := "http://" + closed.Addr().String()
	_ = closed.Close()
	s := startApp(t, "routes:\n  - {match: GET /a, public: true, upstream: '"+gone+"'}\n")
	for range 3 {
		if got := status(t, s.proxy+"/a"); got != 502 {
			t.Fatalf("from an upstream that is not there: %d", got)
		}
	}
	if state, _ := s.upstreams.check(); state != metrics.Warning {
		t.Error("nobody is told of an upstream that is down")
	}
	s.rewrite(t, "routes:\n  - {match: GET /a, public: true}\n")
	s.reload(s.file)
	if state, said := s.upstreams.check(); state != metrics.Passing || len(s.upstreams.stats()) != 1 {
		t.Errorf("after it was taken out: %v %s, %v", state, said, s.upstreams.stats())
	}
	if got := status(t, s.proxy+"/a"); got != 200 {
		t.Errorf("from the upstream of all routes: %d", got)
	}
	s.rewrite(t, "routes:\n  - {match: GET /a, public: true, upstream: '"+gone+"'}\n  - {match: GET /a, public: true}\n")
	s.reload(s.file)
	if n := len(s.upstreams.stats()); n != 1 {
		t.Errorf("a file that was refused left %d upstreams, want 1", n)
	}
}

// TestReloadThatFailsReplacesNothing: of several certificates not even the sound
// ones, and no word that tokens are made with.
func TestReloadThatFailsReplacesNothing(t *testing.T) {
	dir, year := t.TempDir(), time.Now().AddDate(1, 0, 0)
	cert, key := writeCertificate(t, dir, "served", time.Now(), year)
	old, _ := writeCertificate(t, dir, "old", time.Now(), year)
	other, _ := writeCertificate(t, dir, "other", time.Now(), year)
	const routes = "routes:\n  - {match: GET /a, scopes: [%s], upstream: 'https://127.0.0.1:1'}\n"
	s := startApp(t, fmt.Sprintf(routes, "before"), fmt.Sprintf("tls: {cert_file: %s, key_file: %s}, upstream_tls: {ca_file: %s}, ", cert, key, old))
	shown := func() string {
		nc, err := tls.Dial("tcp", s.proxyListener.Addr().String(), &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // which one it is, is the question
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		return string(nc.ConnectionState().PeerCertificates[0].Raw)
	}
	before := shown()
	writeCertificate(t, dir, "served", time.Now(), year)
	if err := os.WriteFile(old, []byte("nothing"), 0o600); err != nil { // which the new file does not name, but which is in use
		t.Fatal(err)
	}
	s.rewrite(t, fmt.Sprintf(routes, "after"))
	text, err := os.ReadFile(s.file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.file, bytes.ReplaceAll(text, []byte(old), []byte(other)), 0o600); err != nil {
		t.Fatal(err)
	}
	s.reload(s.file)
	if c := configCheck(t, s); c.State != metrics.Warning {
		t.Fatalf("the reload was not refused: %+v", c)
	}
	if shown() != before {
		t.Error("the listener's certificate was replaced")
	}
	if words := s.vault.service.Vocabulary().Scopes; !slices.Equal(words, []string{"before"}) {
		t.Errorf("tokens are made with the scopes %v", words)
	}
	if err := os.Rename(other, old); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	s.reload(s.file)
	if words := s.vault.service.Vocabulary().Scopes; shown() == before || !slices.Equal(words, []string{"after"}) {
		t.Errorf("after it was mended the certificate is the old one, or the scopes: %v", words)
	}
}

func TestEveryFileThatAReloadReadsIsWatched(t *testing.T) {
	dir := t.TempDir()
	file := func(name string) string { return writeFile(t, filepath.Join(dir, name), name, 0o600) }
	side := func(name string) TLSConfig {
		return TLSConfig{CertFile: file(name + ".pem"), KeyFile: file(name + ".key"), ClientCAFile: file(name + ".ca")}
	}
	a := &app{cfg: defaultConfig()}
	a.cfg.Proxy.TLS, a.cfg.Admin.TLS = side("proxy"), side("admin")
	a.cfg.Proxy.UpstreamTLS = UpstreamTLSConfig{CAFile: file("up.ca"), CertFile: file("up.pem"), KeyFile: file("up.key")}
	a.cfg.Proxy.Identity.SigningKeyFiles = []string{file("first.pem"), file("second.pem")}
	path := file("tokenward.yaml")
	all, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(all) != 12 {
		t.Fatal(all, err)
	}
	for _, one := range all {
		before := a.cfg.fingerprint(path)
		writeFile(t, one, "changed", 0o600)
		if a.cfg.fingerprint(path) == before {
			t.Errorf("a change of %s is not noticed", filepath.Base(one))
		}
	}
}

// TestPipeInThePlaceOfAFileDoesNotHoldUpTheWatcher: whoever opens one waits for its
// other end, and the watcher is also what SIGTERM is told to.
func TestPipeInThePlaceOfAFileDoesNotHoldUpTheWatcher(t *testing.T) {
	dir := t.TempDir()
	path, cert := filepath.Join(dir, "tokenward.yaml"), filepath.Join(dir, "cert.pem")
	cfg := defaultConfig()
	cfg.Proxy.TLS.CertFile = cert
	gone := cfg.fingerprint(path)
	for _, pipe := range []string{path, cert} {
		if err := syscall.Mkfifo(pipe, 0o600); err != nil {
			t.Fatal(err)
		}
		var other sync.WaitGroup
		other.Go(func() { // lets go whoever waits
			if err := os.WriteFile(pipe, []byte("read"), 0o600); err != nil && !errors.Is(err, syscall.EPIPE) {
				t.Error(err)
			}
		})
		if cfg.fingerprint(path) != gone {
			t.Errorf("%s is a pipe, and is read", filepath.Base(pipe))
		}
		in, err := os.OpenFile(pipe, os.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		other.Wait()
		if err := errors.Join(in.Close(), os.Remove(pipe)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestReloadSaysWhatNeedsARestart(t *testing.T) {
	s := startApp(t, "routes:\n  - {match: GET /a, public: true}\n")
	s.rewrite(t, "log: {level: debug}\nroutes:\n  - {match: GET /a, public: true}\nenforce: {on_no_route: 404}\n")
	text, err := os.ReadFile(s.file)
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.Replace(string(text), "proxy: {", "proxy: {limits: {header_count: 50}, ", 1)
	if err := os.WriteFile(s.file, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
	s.reload(s.file)
	if out := s.log.String(); !strings.Contains(out, "proxy.limits.header_count") {
		t.Errorf("the restart is not asked for:\n%s", out)
	}
	if s.level.Level() != slog.LevelDebug {
		t.Errorf("the log level is %v", s.level.Level())
	}
}

func TestNoRequestIsLostDuringReloads(t *testing.T) {
	s := startApp(t, "routes:\n  - {match: GET /a, public: true}\n")
	var asked, lost atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				resp, err := http.Get(s.proxy + "/a")
				asked.Add(1)
				if err != nil {
					lost.Add(1)
					continue
				}
				if resp.StatusCode != 200 {
					lost.Add(1)
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
			}
		})
	}
	for i := range 20 {
		s.rewrite(t, fmt.Sprintf("routes:\n  - {match: GET /a, public: true}\n  - {match: GET /n%d, public: true}\n", i))
		s.reload(s.file)
		if got := status(t, fmt.Sprintf("%s/n%d", s.proxy, i)); got != 200 {
			t.Errorf("reload %d is not in force: %d", i, got)
		}
	}
	close(stop)
	wg.Wait()
	if lost.Load() > 0 || asked.Load() == 0 {
		t.Errorf("%d of %d requests were lost", lost.Load(), asked.Load())
	}
}

func TestObservingIsVisible(t *testing.T) {
	s := startApp(t, "enforce: {mode: observe, observe_until: '2999-01-01T00:00:00Z'}\nroutes:\n  - {match: GET /a, scopes: [x]}\n")
	if got := status(t, s.proxy+"/a"); got != 200 {
		t.Errorf("a request that would be refused: %d", got)
	}
	ready, checks := s.health.Ready()
	if !ready || !strings.Contains(fmt.Sprint(checks), "only observed") || !strings.Contains(s.log.String(), "OBSERVING") {
		t.Errorf("ready %v, checks %+v, log:\n%s", ready, checks, s.log)
	}
}

// TestStoreThatIsTakenAwayIsToldOf, and goes on being served.
func TestStoreThatIsTakenAwayIsToldOf(t *testing.T) {
	s := startApp(t, "routes: []\n")
	if state, detail := s.checkStore(); state != metrics.Passing {
		t.Fatalf("%v: %s", state, detail)
	}
	if err := os.Rename(s.cfg.TokenStore.Path, s.cfg.TokenStore.Path+".away"); err != nil {
		t.Fatal(err)
	}
	if state, detail := s.checkStore(); state != metrics.Warning || !strings.Contains(detail, "no longer at "+s.cfg.TokenStore.Path) || !strings.Contains(detail, "tokenward backup") {
		t.Errorf("%v: %s", state, detail)
	}
}

func TestTwoAppsLiveInOneProcess(t *testing.T) {
	a := startApp(t, "routes:\n  - {match: GET /a, public: true}\n")
	b := startApp(t, "routes:\n  - {match: GET /b, public: true}\n")
	for url, want := range map[string]int{a.proxy + "/a": 200, a.proxy + "/b": 401, b.proxy + "/a": 401, b.proxy + "/b": 200} {
		if got := status(t, url); got != want {
			t.Errorf("%s: %d, want %d", url, got, want)
		}
	}
	for _, s := range []*started{a, b} {
		if _, err := net.Dial("tcp", s.metricsListener.Addr().String()); err != nil {
			t.Error(err)
		}
	}
}

// newIdentityKey makes a key of the signed identity.
func newIdentityKey(t *testing.T) (path string, private ed25519.PrivateKey) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "identity.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path, private
}

// TestSoundFileThatNeedsARestartSaysSo: keys that a reload applies need not fit to old
// values of those that it does not. Who is told to make a key for a header that the file
// turns off looks for a fault that is not there.
func TestSoundFileThatNeedsARestartSaysSo(t *testing.T) {
	key, _ := newIdentityKey(t)
	signed := fmt.Sprintf("identity: {signed: X-Token-Jwt, signing_key_files: [%s]}, ", key)
	s := startApp(t, "routes:\n  - {match: GET /a, public: true}\n", signed)
	text, err := os.ReadFile(s.file)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, s.file, strings.Replace(string(text), signed, "", 1), 0o600)
	s.reload(s.file)
	if want := "does not fit to the old values of proxy.identity.signed, which stay in force until a restart"; !strings.Contains(s.log.String(), want) {
		t.Errorf("want %q in\n%s", want, s.log)
	}
	if got := status(t, s.proxy+"/a"); got != http.StatusOK {
		t.Errorf("the route that was there: %d", got)
	}
}

func TestSignedIdentityReachesTheUpstreamAndItsKeyIsPublished(t *testing.T) {
	key, private := newIdentityKey(t)
	var jwt atomic.Pointer[string]
	upstream := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		text := strings.Join(r.Header["X-Token-Jwt"], "|")
		jwt.Store(&text)
	}))
	t.Cleanup(upstream.Close)
	s := startApp(t, fmt.Sprintf("routes:\n  - {match: GET /a, restricted_tokens: allow, upstream: '%s'}\n", upstream.URL),
		fmt.Sprintf("identity: {signed: X-Token-Jwt, signing_key_files: [%s]}, ", key))
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.proxy+"/a", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Api-Token", s.root)
	req.Header.Set("X_Token_Jwt", "forged")
	req.Header.Set("X-Token-Jwt", "forged")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if got := *jwt.Load(); resp.StatusCode != 200 || strings.Contains(got, "forged") || strings.Count(got, ".") != 2 {
		t.Fatalf("%d, the upstream saw %q", resp.StatusCode, got)
	}
	keys, err := http.Get("http://" + s.metricsListener.Addr().String() + "/.well-known/jwks.json")
	if err != nil {
		t.Fatal(err)
	}
	defer keys.Body.Close()
	body, err := io.ReadAll(keys.Body)
	if x := base64.RawURLEncoding.EncodeToString(private.Public().(ed25519.PublicKey)); err != nil || !strings.Contains(string(body), x) {
		t.Errorf("published: %s, %v", body, err)
	}
}

// TestHalfWrittenFileIsNotLoaded looks at files as watch does, once each tick.
func TestHalfWrittenFileIsNotLoaded(t *testing.T) {
	c := newChanges([32]byte{'a'})
	for i, look := range []struct {
		found byte
		load  bool
	}{{'a', false}, {'h', false}, {'b', false}, {'b', true}, {'b', true}, {'h', false}, {'a', false}, {'a', false}} {
		if got := c.settled([32]byte{look.found}); got != look.load {
			t.Errorf("look %d at %c: load is %v", i+1, look.found, got)
		}
	}
}

// TestAHangupDuringTheStartEndsNothing asks for a reload while the program waits for
// an etcd that accepts connections and says nothing.
func TestAHangupDuringTheStartEndsNothing(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	dir := t.TempDir()
	config := filepath.Join(dir, "tokenward.yaml")
	writeFile(t, config, fmt.Sprintf(`proxy: {listen: "127.0.0.1:0", upstream: "http://127.0.0.1:9"}
admin: {listen: "127.0.0.1:0"}
metrics: {listen: "127.0.0.1:0"}
tokenstore:
  path: %[2]s/t.db
  etcd: {endpoints: ["http://%[1]s"], node: a}
audit: {path: %[2]s/audit.jsonl}
`, silent.Addr(), dir), 0o600)
	cmd := exec.CommandContext(t.Context(), "tokenward", "serve", "--config", config)
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c, err := silent.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// Of two pending signals the kernel delivers the one with the lower number first.
	if err := errors.Join(cmd.Process.Signal(syscall.SIGHUP), cmd.Process.Signal(syscall.SIGTERM)); err != nil {
		t.Fatal(err)
	}
	err = cmd.Wait()
	if e, ok := errors.AsType[*exec.ExitError](err); ok && !e.Exited() {
		t.Fatalf("the hangup ended the program: %v\n%s", err, said.String())
	}
}
