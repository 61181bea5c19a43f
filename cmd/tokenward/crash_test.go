//go:build linux

package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tokenward/audit"
	"tokenward/tokenstore/storetest"
)

// victim is a server in a process of its own, which is killed and started again
// over the same files, and what it has acknowledged.
type victim struct {
	dir, config, root string
	cmd               *exec.Cmd
	ended             chan struct{} // closed once the server has said its last word
	proxy, admin      string
	metrics           string // address
	client            *http.Client

	mu     sync.Mutex // guards what follows
	tokens []*witnessed
	calls  map[string]string // acknowledged changes: request id to what was asked
	log    strings.Builder   // what the server wrote
}

// witnessed is a token as its worker knows it. Only one worker changes it.
type witnessed struct {
	id          uint64
	alive, dead []string // secrets
	disabled    bool
	revoked     bool
	unsure      bool // a change was not answered: it may have been made
	uses, used  int  // 0: not limited
}

func newVictim(t *testing.T) *victim {
	t.Helper()
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") }))
	t.Cleanup(api.Close)
	v := &victim{dir: t.TempDir(), calls: map[string]string{}, client: &http.Client{Timeout: 20 * time.Second}}
	v.config = filepath.Join(v.dir, "tokenward.yaml")
	text := fmt.Sprintf("proxy: {listen: '127.0.0.1:0', upstream: '%s'}\nadmin: {listen: '127.0.0.1:0'}\nmetrics: {listen: '127.0.0.1:0'}\n"+
		"tokenstore: {path: %[2]s/t.db, pepper_files: [%[2]s/pepper]}\naudit: {path: %[2]s/a.jsonl}\nenforce: {known_scopes: [a], failures: {per_minute: 0}}\n"+
		"routes:\n  - {match: GET /a, scopes: [a]}\n", api.URL, v.dir)
	writeFile(t, v.config, text, 0o600)
	writeFile(t, filepath.Join(v.dir, "pepper"), rand.Text()+rand.Text(), 0o600)
	out, err := v.command("init", "--config", v.config, "--json").Output()
	var made struct{ Token string }
	if err == nil {
		err = json.Unmarshal(out, &made)
	}
	if err != nil {
		t.Fatal(err)
	}
	v.root = made.Token
	return v
}

func (v *victim) command(args ...string) *exec.Cmd {
	cmd := exec.Command("tokenward", args...) //nolint:gosec // the test's own
	cmd.Env = append(os.Environ(), "TOKENWARD_TOKEN="+v.root, "TOKENWARD_ADMIN="+v.admin,
		"GORACE=atexit_sleep_ms=0") // the race detector has every process end a second later
	return cmd
}

// start serves, and returns once the server is ready.
func (v *victim) start(t *testing.T) {
	t.Helper()
	v.cmd = v.command("serve", "--config", v.config)
	stderr, err := v.cmd.StderrPipe()
	if err == nil {
		err = v.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := v.cmd
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		v.heard(lines.Text())
		var line struct{ Msg, Proxy, Admin, Metrics string }
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "tokenward is ready" {
			v.proxy, v.admin, v.metrics = "http://"+line.Proxy, "http://"+line.Admin, line.Metrics
			ended := make(chan struct{})
			v.ended = ended
			go func() {
				defer close(ended)
				for lines.Scan() {
					v.heard(lines.Text())
				}
			}()
			return
		}
	}
	t.Fatalf("the server ended:\n%s", v.said())
}

func (v *victim) heard(line string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.log.WriteString(line + "\n")
}

func (v *victim) said() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.log.String()
}

func (v *victim) kill(t *testing.T) {
	t.Helper()
	if err := v.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = v.cmd.Wait()
	v.client.CloseIdleConnections()
}

func (v *victim) stop(t *testing.T) {
	t.Helper()
	if err := errors.Join(v.cmd.Process.Signal(unix.SIGTERM), v.cmd.Wait()); err != nil {
		t.Fatalf("%v\n%s", err, v.said())
	}
	v.client.CloseIdleConnections()
}

// ask makes a call of the token API, as the holder of a secret. An error means that
// there was no whole answer.
func (v *victim) ask(method, url, secret, media, body string) (status int, answer []byte, request string, err error) {
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		return 0, nil, "", err
	}
	req.Header.Set("Authorization", "Bearer "+secret)
	if body != "" {
		req.Header.Set("Content-Type", media)
	}
	resp, err := v.client.Do(req)
	if err != nil {
		return 0, nil, "", err
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(resp.Body)
	return resp.StatusCode, answer, resp.Header.Get("X-Request-Id"), err
}

// change makes a call that changes something. It reports whether it was acknowledged;
// w is in doubt when there was no answer.
func (v *victim) change(t *testing.T, w *witnessed, method, path, media, body string, into any) bool {
	status, answer, request, err := v.ask(method, v.admin+"/v1"+path, v.root, media, body)
	if err != nil || status >= 500 {
		w.unsure = true
		return false
	}
	if status >= 300 {
		t.Errorf("%s %s: %d %s", method, path, status, answer)
		return false
	}
	if into != nil {
		if err := json.Unmarshal(answer, into); err != nil {
			t.Error(err)
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.calls[request] = method + " " + path
	return true
}

type madeToken struct {
	ID      uint64
	Token   string
	FirstID uint64 `json:"first_id"`
	LastID  uint64 `json:"last_id"`
}

func (v *victim) create(t *testing.T, limits string, uses int) *witnessed {
	w, made := &witnessed{uses: uses}, madeToken{}
	if !v.change(t, w, "POST", "/tokens", "application/json", `{"name":"c","scopes":["a"]`+limits+`}`, &made) {
		return nil
	}
	w.id, w.alive = made.ID, []string{made.Token}
	v.witness(w)
	return w
}

func (v *victim) witness(ws ...*witnessed) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.tokens = append(v.tokens, ws...)
}

// work makes changes of all kinds until the server does not answer any more.
func (v *victim) work(ctx context.Context, t *testing.T) {
	var own []*witnessed
	for ctx.Err() == nil {
		if len(own) == 0 || mathrand.IntN(4) == 0 {
			var w *witnessed
			if mathrand.IntN(4) == 0 {
				w = v.create(t, `,"limits":{"uses":5}`, 5)
			} else {
				w = v.create(t, "", 0)
			}
			if w == nil {
				return
			}
			own = append(own, w)
			continue
		}
		w := own[mathrand.IntN(len(own))]
		if w.revoked || w.unsure {
			own = append(own[:0:0], v.imported(t)...)
			continue
		}
		v.changeAny(t, w)
		if w.unsure {
			return
		}
	}
}

// changeAny does something to a token that is not revoked.
func (v *victim) changeAny(t *testing.T, w *witnessed) {
	path := fmt.Sprintf("/tokens/%d", w.id)
	var made madeToken
	switch verb := mathrand.IntN(7); {
	case verb == 0:
		if v.change(t, w, "DELETE", path, "", "", nil) {
			w.revoked, w.dead, w.alive = true, append(w.dead, w.alive...), nil
		}
	case verb == 1 && len(w.alive) == 1 && !w.disabled:
		if v.change(t, w, "POST", path+"/rotate", "application/json", `{"old_ends_at":"2099-01-01T00:00:00Z"}`, &made) {
			w.alive = append(w.alive, made.Token)
		}
	case verb == 2 && len(w.alive) == 2 && !w.disabled:
		if v.change(t, w, "POST", path+"/rotate/finish", "", "", nil) {
			w.dead, w.alive = append(w.dead, w.alive[0]), w.alive[1:]
		}
	case verb == 3 && !w.disabled:
		if v.change(t, w, "POST", path+"/disable", "", "", nil) {
			w.disabled = true
		}
	case verb == 4 && w.disabled:
		if v.change(t, w, "POST", path+"/enable", "", "", nil) {
			w.disabled = false
		}
	case w.uses > 0 && !w.disabled:
		status, _, _, err := v.ask("GET", v.proxy+"/a", w.alive[0], "", "")
		if err != nil {
			w.unsure = true // it may have been used
		}
		if status == http.StatusOK {
			w.used++
		}
	default:
		v.change(t, w, "PATCH", path, "application/merge-patch+json", `{"name":"`+rand.Text()+`"}`, nil)
	}
}

// imported takes tokens over from elsewhere, in one call.
func (v *victim) imported(t *testing.T) []*witnessed {
	var body strings.Builder
	batch := make([]*witnessed, 20)
	for i := range batch {
		secret := rand.Text() + "-" + rand.Text()
		batch[i] = &witnessed{alive: []string{secret}}
		fmt.Fprintf(&body, `{"name":"i","secret":%q,"scopes":["a"]}`+"\n", secret)
	}
	var done madeToken
	if !v.change(t, &witnessed{}, "POST", "/import", "application/x-ndjson", body.String(), &done) {
		return nil
	}
	if done.LastID-done.FirstID != uint64(len(batch))-1 {
		t.Errorf("imported %+v", done)
	}
	v.witness(batch...)
	status, answer, _, err := v.ask("GET", v.admin+"/v1/tokens/self", batch[0].alive[0], "", "")
	if err != nil {
		return nil
	}
	var self madeToken
	if err := json.Unmarshal(answer, &self); err != nil || status != http.StatusOK || self.ID < done.FirstID || self.ID > done.LastID {
		t.Errorf("imported as %d to %d: %d %s", done.FirstID, done.LastID, status, answer)
		return nil
	}
	batch[0].id = self.ID
	return batch[:1]
}

// examine holds the server to what was acknowledged, by the answers of its doors.
func (v *victim) examine(t *testing.T, tokens []*witnessed) {
	t.Helper()
	for _, w := range tokens {
		if w.used > w.uses {
			t.Errorf("token %d was used %d times of %d", w.id, w.used, w.uses)
		}
		if w.unsure && !w.revoked {
			continue
		}
		wants := map[string]int{}
		for _, s := range w.alive {
			wants[s] = http.StatusOK
			if w.disabled {
				wants[s] = http.StatusUnauthorized
			}
		}
		for _, s := range w.dead {
			wants[s] = http.StatusUnauthorized
		}
		for secret, want := range wants {
			status, answer, _, err := v.ask("GET", v.proxy+"/a", secret, "", "")
			switch {
			case err != nil:
				t.Fatal(err)
			case status == http.StatusOK && w.uses > 0:
				if w.used++; w.used > w.uses {
					t.Errorf("token %d was used %d times of %d", w.id, w.used, w.uses)
				}
			case status == http.StatusTooManyRequests && w.uses > 0 && want == http.StatusOK:
				continue // what was counted ahead is lost, in favour of denying
			}
			if status != want {
				t.Errorf("token %d: %d %s, want %d", w.id, status, answer, want)
			}
		}
	}
}

// events waits until the audit log has all changes that were acknowledged.
func (v *victim) events(t *testing.T) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		told := v.told(t)
		missing := ""
		v.mu.Lock()
		for request, what := range v.calls {
			if !told[request] {
				missing = what
			}
		}
		v.mu.Unlock()
		if missing == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s was acknowledged and has no event", missing)
		}
		time.Sleep(20 * time.Millisecond) //nolint:forbidigo // the audit log is a file: nobody tells when it grows
	}
}

// told are the requests of which the audit log has a success.
func (v *victim) told(t *testing.T) map[string]bool {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(v.dir, "a.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	told := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		if rec, ok, err := audit.ParseRecord([]byte(strings.TrimSuffix(line, "\n"))); ok && err == nil && rec.Event.Outcome == audit.Success {
			told[rec.Event.Request] = true
		}
	}
	return told
}

func crashes() int {
	if storetest.Soak() {
		return 500
	}
	return 12
}

// round serves while four workers make changes, for so long, and kills it.
func (v *victim) round(t *testing.T, length time.Duration) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var workers sync.WaitGroup
	for range 4 {
		workers.Go(func() { v.work(ctx, t) })
	}
	time.Sleep(length) //nolint:forbidigo // the kill comes at any moment
	v.kill(t)
	cancel()
	workers.Wait()
}

// TestKilledServerLosesNothingAcknowledged kills the program at random instants
// while tokens are made, imported, rotated, disabled, revoked and used up, and holds
// the next one to what the ones before acknowledged.
func TestKilledServerLosesNothingAcknowledged(t *testing.T) {
	if testing.Short() {
		t.Skip("it kills real processes")
	}
	v := newVictim(t)
	v.start(t)
	seen := 0
	for range crashes() {
		v.round(t, time.Duration(5+mathrand.IntN(200))*time.Millisecond)
		if out, err := v.command("audit", "verify", "--config", v.config).CombinedOutput(); err != nil {
			t.Fatalf("%v %s", err, out)
		}
		v.start(t)
		fresh := v.tokens[seen:]
		seen = len(v.tokens)
		v.examine(t, fresh)
		for range min(20, seen) {
			v.examine(t, []*witnessed{v.tokens[mathrand.IntN(seen)]})
		}
		v.events(t)
		if t.Failed() {
			return
		}
	}
	v.examine(t, v.tokens)
	v.stop(t)
	if out, err := v.command("doctor", "--config", v.config).CombinedOutput(); err != nil {
		t.Errorf("%v %s", err, out)
	}
	t.Logf("%d tokens and %d changes acknowledged over %d kills", len(v.tokens), len(v.calls), crashes())
}

// TestKilledRestoreRevivesNothing kills restores of a backup from before tokens were
// revoked, and wants them revoked whichever store is there then.
func TestKilledRestoreRevivesNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("it kills real processes")
	}
	v := newVictim(t)
	v.start(t)
	var tokens []*witnessed
	for range 30 {
		tokens = append(tokens, v.create(t, "", 0))
	}
	backup := filepath.Join(v.dir, "tokens.backup")
	if out, err := v.command("backup", "-o", backup).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	for _, w := range tokens[:15] {
		if v.change(t, w, "DELETE", fmt.Sprintf("/tokens/%d", w.id), "", "", nil) {
			w.revoked, w.dead, w.alive = true, w.alive, nil
		}
	}
	v.stop(t)
	broken := 0
	for range crashes() {
		cmd := v.command("restore", "--config", v.config, "--replace", backup)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(mathrand.IntN(80)) * time.Millisecond) //nolint:forbidigo // the kill comes at any moment
		_ = cmd.Process.Kill()
		if cmd.Wait() != nil {
			broken++
		}
		if _, err := os.Stat(filepath.Join(v.dir, "t.db")); err == nil {
			v.start(t)
			v.examine(t, tokens)
			v.stop(t)
		}
	}
	if out, err := v.command("restore", "--config", v.config, "--replace", backup).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	v.start(t)
	v.examine(t, tokens)
	v.events(t)
	v.stop(t)
	if out, err := v.command("doctor", "--config", v.config).CombinedOutput(); err != nil {
		t.Errorf("%v %s", err, out)
	}
	t.Logf("%d of %d restores were killed", broken, crashes())
}

// TestFullDiskRefusesAndRecovers lets no file of a running server grow any more:
// changes are refused, the log says what to do, what there is goes on being served,
// and once there is room again all is well.
func TestFullDiskRefusesAndRecovers(t *testing.T) {
	v := newVictim(t)
	v.start(t)
	kept := v.create(t, "", 0)
	v.events(t)
	// A full disk takes no new pages. It does not cut off the store's two headers, as a
	// lower limit would do to the commit that is under way.
	v.limitFiles(t, 2*uint64(os.Getpagesize())) //nolint:gosec // a size
	for range 3 {
		w := &witnessed{}
		status, answer, _, err := v.ask("POST", v.admin+"/v1/tokens", v.root, "application/json", `{"name":"x"}`)
		if err != nil || status < 500 {
			t.Errorf("on a full disk: %d %s, %v", status, answer, err)
		}
		v.change(t, w, "DELETE", fmt.Sprintf("/tokens/%d", kept.id), "", "", nil)
		if !w.unsure {
			t.Error("a revocation was acknowledged on a full disk")
		}
	}
	v.examine(t, []*witnessed{kept})
	v.limitFiles(t, unix.RLIM_INFINITY)
	after := v.create(t, "", 0)
	if after == nil {
		t.Fatalf("nothing can be made although there is room again:\n%s", v.said())
	}
	v.events(t)
	if !strings.Contains(v.said(), "check its disk, then try again") {
		t.Errorf("the log does not say what to do:\n%s", v.said())
	}
	v.kill(t)
	v.start(t)
	v.examine(t, []*witnessed{kept, after})
	v.stop(t)
	if out, err := v.command("doctor", "--config", v.config).CombinedOutput(); err != nil {
		t.Errorf("%v %s", err, out)
	}
}

// limitFiles lets the server's files grow to so many bytes.
func (v *victim) limitFiles(t *testing.T, bytes uint64) {
	t.Helper()
	if err := unix.Prlimit(v.cmd.Process.Pid, unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: bytes, Max: unix.RLIM_INFINITY}, nil); err != nil {
		t.Fatal(err)
	}
}
