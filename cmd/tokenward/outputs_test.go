//go:build linux

package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"tokenward/tokenstore"
	"tokenward/tokenstore/boltstore"
)

// outputs is everything that a program said, by where.
type outputs struct {
	mu   sync.Mutex
	said map[string][]byte
}

func (o *outputs) add(where string, text []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.said[where] = append(append(o.said[where], text...), '\n')
}

// TestNoOutputHoldsASecret has the real program do all that it can at the highest
// log level, with profiles, audit, notifications and a backup, and in the end abort
// with all its stacks, and looks in everything that came out of it for every secret
// there was, and for their digests in everything but the store and its backup.
func TestNoOutputHoldsASecret(t *testing.T) {
	out := &outputs{said: map[string][]byte{}}
	listener := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		out.add("webhook", fmt.Appendf(body, "\n%v %v", r.URL, r.Header))
	}))
	t.Cleanup(listener.Close)
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		out.add("upstream", fmt.Appendf(body, "\n%v %v", r.URL, r.Header))
		fmt.Fprint(w, "ok")
	}))
	t.Cleanup(api.Close)

	v := newVictim(t)
	text := fmt.Sprintf("proxy: {listen: '127.0.0.1:0', upstream: '%[1]s', credentials: [authorization, api-token, 'query:access_token']}\n"+
		"admin: {listen: '127.0.0.1:0'}\nmetrics: {listen: '127.0.0.1:0', pprof: true}\n"+
		"tokenstore: {path: %[2]s/t.db, pepper_files: [%[2]s/pepper]}\naudit: {path: %[2]s/a.jsonl, denials: on}\n"+
		"notify: {url: '%[3]s', secret_file: %[2]s/hook}\nlog: {level: debug, requests: all}\nenforce: {known_scopes: [a], failures: {per_minute: 0}}\n"+
		"routes:\n  - {match: GET /a, scopes: [a]}\n  - {match: 'GET /{path...}', scopes: [b]}\n", api.URL, v.dir, listener.URL)
	writeFile(t, v.config, text, 0o600)
	writeFile(t, filepath.Join(v.dir, "hook"), "a secret of the webhook of the test", 0o600)
	pepper, err := os.ReadFile(filepath.Join(v.dir, "pepper"))
	if err != nil {
		t.Fatal(err)
	}
	v.start(t)
	secrets := speak(t, v, out)
	secrets = append(secrets, v.root, string(pepper), "a secret of the webhook of the test")

	backup := filepath.Join(v.dir, "tokens.backup")
	for _, args := range [][]string{{"backup", "-o", backup}, {"token", "list"}, {"token", "show", "2", "--json"}, {"report"}, {"token", "create", "--name", "cli"}} {
		cmd := v.command(args...)
		if args[len(args)-1] == "cli" { // the one place where a secret is to be seen
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			made, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			secrets = append(secrets, secretInText.FindString(string(made)))
			out.add("cli", stderr.Bytes())
			continue
		}
		said, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v %s", err, said)
		}
		out.add("cli", said)
	}
	metrics := "http://" + v.metrics
	for _, path := range []string{"/metrics", "/readyz", "/healthz", "/debug/pprof/", "/debug/pprof/goroutine?debug=2", "/debug/pprof/heap?debug=1", "/debug/pprof/allocs", "/debug/pprof/cmdline", "/debug/pprof/profile?seconds=1", "/debug/pprof/trace?seconds=1"} {
		status, answer, _, err := v.ask("GET", metrics+path, "", "", "")
		if err != nil || status >= 500 {
			t.Errorf("%s: %d %v", path, status, err)
		}
		out.add(path, answer)
	}
	if err := v.cmd.Process.Signal(unix.SIGQUIT); err != nil { // as a fatal panic, with all stacks
		t.Fatal(err)
	}
	<-v.ended
	if !strings.Contains(v.said(), "SIGQUIT") {
		t.Error("there is no dump")
	}
	out.add("log", []byte(v.said()))
	for _, name := range []string{"audit verify", "doctor"} {
		said, err := v.command(append(strings.Fields(name), "--config", v.config)...).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		out.add(name, said)
	}
	addFile(t, out, "audit", filepath.Join(v.dir, "a.jsonl"))
	if !bytes.Contains(out.said["audit"], []byte(`"verb":"deny"`)) && !bytes.Contains(out.said["audit"], []byte(`"verb":"create"`)) {
		t.Error("the audit log is empty")
	}

	for where, text := range out.said {
		if len(text) == 0 {
			t.Errorf("%s said nothing", where)
		}
		for i, s := range secrets {
			if shows(text, s) {
				t.Errorf("%s shows secret %d", where, i)
			}
		}
		for i, d := range digests(t, v, pepper, secrets) {
			if showsBytes(text, d) {
				t.Errorf("%s shows digest %d", where, i)
			}
		}
	}
	addFile(t, out, "store", filepath.Join(v.dir, "t.db"))
	addFile(t, out, "backup", backup)
	for _, where := range []string{"store", "backup"} {
		for i, s := range secrets {
			if shows(out.said[where], s) {
				t.Errorf("%s holds secret %d", where, i)
			}
		}
	}
	if !showsBytes(out.said["store"], digests(t, v, pepper, secrets)[0]) {
		t.Error("the scan finds nothing even where it must: the store has digests")
	}
	t.Logf("%d secrets, %d outputs", len(secrets), len(out.said))
}

// speak makes tokens through every API, uses them in every way, right and wrong, and
// returns the secrets. What answers, but for those that yield a secret, is kept.
func speak(t *testing.T, v *victim, out *outputs) []string {
	t.Helper()
	var secrets []string
	call := func(method, path, secret, media, body string) {
		status, answer, _, err := v.ask(method, v.admin+path, secret, media, body)
		if err != nil || status >= 500 {
			t.Fatalf("%s %s: %d %s %v", method, path, status, answer, err)
		}
		if found := secretInText.FindString(string(answer)); status < 300 && found != "" {
			secrets = append(secrets, found)
			answer = secretInText.ReplaceAll(answer, []byte("[yielded]"))
		}
		out.add("answers", answer)
	}
	const plain = "application/json"
	call("POST", "/v1/tokens", v.root, plain, `{"name":"native","scopes":["a","user:api-token:read","user:api-token:write"]}`)
	call("POST", "/users/1/api-tokens", v.root, "application/vnd.api+json", `{"data":{"type":"apiToken","attributes":{"description":"unit","scope":"a","expiration":"2099-01-01T00:00:00Z"}}}`)
	call("POST", "/user/api-tokens", v.root, plain, `{"description":"fynn","expiresAt":null}`)
	call("POST", "/api/api_tokens", v.root, plain, `{"name":"mailtrap","resources":[{"resource_type":"account","resource_id":1,"access_level":100}]}`)
	if len(secrets) != 4 {
		t.Fatalf("%d secrets of 4", len(secrets))
	}
	holder := secrets[0]
	call("POST", "/v1/tokens/2/rotate", v.root, plain, `{"old_ends_at":"2099-01-01T00:00:00Z"}`)
	call("POST", "/v1/tokens/4/reset", v.root, plain, `{}`)
	imported := "an-old-key-" + strings.ToLower(secrets[1][5:25])
	secrets = append(secrets, imported)
	call("POST", "/v1/import", v.root, "application/x-ndjson", fmt.Sprintf(`{"name":"old","secret":%q,"scopes":["a"]}`+"\n"+`{"name":"again","secret":%q}`+"\n"+`{"secret":1,"x":%q}`, imported, imported, imported))
	for _, path := range []string{"/v1/tokens", "/v1/tokens/2", "/v1/whoami", "/v1/report", "/users/1/api-tokens", "/user/api-tokens", "/api/api_tokens", "/v1/tokens/" + holder} {
		call("GET", path, holder, "", "")
		call("GET", path, holder+"x", "", "")
	}
	call("POST", "/v1/introspect", v.root, "application/x-www-form-urlencoded", "token="+holder)
	call("POST", "/v1/explain", v.root, plain, fmt.Sprintf(`{"method":"GET","target":"/a?access_token=%s","headers":{"Host":"a","Authorization":"Bearer %s"}}`, holder, holder))
	call("POST", "/v1/tokens", v.root, plain, fmt.Sprintf(`{"name":"x","scopes":"%s"}`, holder)) // refused, with the field
	call("PATCH", "/v1/tokens/3", holder, "application/merge-patch+json", `{"name":"renamed"}`)

	broken := holder[:len(holder)-1] + "-"
	unknown := "tw_" + strings.Repeat("0", 38)
	for _, secret := range []string{holder, imported, broken, unknown, "other " + holder, secrets[3]} {
		for _, path := range []string{"/a", "/a?access_token=" + broken, "/b/" + holder, "/a%2f" + broken} {
			knock(t, v, out, secret, path)
		}
	}
	call("DELETE", "/v1/tokens/3", v.root, "", "")
	call("DELETE", "/v1/tokens/2", v.root, "", "")
	knock(t, v, out, holder, "/a")
	return append(secrets, broken)
}

// knock shows a secret to the proxy, and in fields where none belongs.
func knock(t *testing.T, v *victim, out *outputs, secret, path string) {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, v.proxy+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+secret)
	req.Header.Set("Referer", "http://a/?access_token="+secret)
	req.Header.Set("X-Request-Id", secret)
	resp, err := v.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	out.add("answers", fmt.Appendf(answer, "\n%v", resp.Header))
}

func addFile(t *testing.T, out *outputs, where, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	out.add(where, b)
}

// digests are what is stored of the secrets, and their plain SHA-256.
func digests(t *testing.T, v *victim, pepper []byte, secrets []string) (all [][]byte) {
	t.Helper()
	peppers, err := tokenstore.NewPeppers(pepper)
	if err != nil {
		t.Fatal(err)
	}
	store, err := boltstore.Open(boltstore.Options{Path: filepath.Join(v.dir, "t.db"), Peppers: peppers})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.Close() }()
	for token, err := range store.List(t.Context(), tokenstore.Query{AllAccounts: true, Revoked: true}) {
		if err != nil {
			t.Fatal(err)
		}
		for i := range token.Secrets {
			all = append(all, bytes.Clone(token.Secrets[i].Digest[:]))
		}
	}
	for _, s := range secrets {
		sum := sha256.Sum256([]byte(s))
		all = append(all, sum[:])
	}
	return all
}

// shows reports whether the text has the secret, a good part of it, or another
// writing of it.
func shows(text []byte, secret string) bool {
	part := secret[max(0, len(secret)/2-8):][:12]
	quoted, _ := json.Marshal(secret)
	return bytes.Contains(text, []byte(part)) || bytes.Contains(text, quoted) ||
		bytes.Contains(text, []byte(base64.StdEncoding.EncodeToString([]byte(secret))[:16])) || bytes.Contains(text, []byte(hex.EncodeToString([]byte(secret[:12]))))
}

func showsBytes(text, digest []byte) bool {
	for _, form := range []string{
		string(digest), hex.EncodeToString(digest), strings.ToUpper(hex.EncodeToString(digest)),
		base64.StdEncoding.EncodeToString(digest)[:40], base64.URLEncoding.EncodeToString(digest)[:40], fmt.Sprint(digest),
	} {
		if bytes.Contains(text, []byte(form)) {
			return true
		}
	}
	return false
}
