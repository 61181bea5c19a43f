package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"tokenward/tokenstore"
)

// fakeServer answers in the place of a native API, and remembers what came.
type fakeServer struct {
	url  string
	read func(body []byte) // is given each request's body; nil: nobody is

	mu       sync.Mutex // guards requests
	requests []*http.Request
}

func newFakeServer(t *testing.T, answer http.HandlerFunc) *fakeServer {
	t.Helper()
	f := &fakeServer{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		f.requests = append(f.requests, r)
		f.mu.Unlock()
		body, _ := io.ReadAll(r.Body)
		if f.read != nil {
			f.read(body)
		}
		answer(w, r)
	}))
	t.Cleanup(s.Close)
	f.url = s.URL
	return f
}

func (f *fakeServer) seen() []*http.Request {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.requests
}

// callingToken is a secret in the right form, which no output may show.
var callingToken = tokenstore.NewSecret("tw")

// runToken runs a verb of token against the server.
func runToken(t *testing.T, server string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	t.Setenv(envAdmin, server)
	t.Setenv(envToken, callingToken.Reveal())
	var out, errs strings.Builder
	code = run(t.Context(), append([]string{"token"}, args...), strings.NewReader(""), &out, &errs)
	if strings.Contains(out.String()+errs.String(), callingToken.Reveal()) {
		t.Errorf("the calling token is shown:\n%s\n%s", out.String(), errs.String())
	}
	return code, out.String(), errs.String()
}

func answerJSON(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body)
}

func answerProblem(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body)
}

// breakOff ends the connection without an answer.
func breakOff(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

// breakWithin ends the connection within the answer.
func breakWithin(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Length", "1000")
	answerJSON(w, http.StatusCreated, `{"id":7,`)
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

const made = `{"id":7,"name":"ci","state":"active","scopes":[],"resources":"all","sources":"any","secrets":[],"token":"shown-once"}`

// TestAdminIsNamedAsItCanBeReached: what init and explain print is to be pasted.
func TestAdminIsNamedAsItCanBeReached(t *testing.T) {
	const tls = ", tls: {cert_file: c, key_file: k}"
	for config, want := range map[string]string{
		"listen: 127.0.0.1:8081":                       "http://127.0.0.1:8081",
		"listen: 'localhost:8081'" + tls:               "https://localhost:8081",
		"listen: ':8443'" + tls:                        "https://127.0.0.1:8443",
		"listen: '[::]:8443'" + tls:                    "https://127.0.0.1:8443",
		"listen: 0.0.0.0:8081, insecure: true":         "http://127.0.0.1:8081",
		"listen: '[2001:db8::1]:8081', insecure: true": "http://[2001:db8::1]:8081",
		"listen: 192.0.2.1:8081, insecure: true" + tls: "https://192.0.2.1:8081",
	} {
		if got := mustParse(t, "admin: {"+config+"}").adminURL(); got != want {
			t.Errorf("%s: %s, want %s", config, got, want)
		}
	}
}

// fullDisk takes nothing.
type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

// TestSecretThatCannotBePrintedSaysHowToHaveAnother: it is made, and nobody has it.
func TestSecretThatCannotBePrintedSaysHowToHaveAnother(t *testing.T) {
	rotated := strings.Replace(made, `"secrets":[]`, `"secrets":[{"last4":"abcd","created_at":"2026-11-22T00:00:00.000Z"},{"last4":"efgh","created_at":"2026-11-21T00:00:00.000Z"}]`, 1)
	for _, c := range []struct {
		args         []string
		answer, want string
	}{
		{[]string{"create", "--name", "ci"}, made, "Run `tokenward token rotate 7` to have another\n"},
		{[]string{"reset", "6"}, made, "Run `tokenward token rotate 7` to have another\n"},
		{[]string{"rotate", "7"}, rotated, "run `tokenward token rotate 7 --finish`, which ends that one too, and then `tokenward token rotate 7`\n"},
	} {
		for _, form := range []string{"--json=false", "--json"} {
			f := newFakeServer(t, func(w http.ResponseWriter, _ *http.Request) { answerJSON(w, http.StatusCreated, c.answer) })
			t.Setenv(envAdmin, f.url)
			t.Setenv(envToken, callingToken.Reveal())
			var errs strings.Builder
			code := run(t.Context(), append(append([]string{"token"}, c.args...), form), strings.NewReader(""), fullDisk{}, &errs)
			if text := errs.String(); code != exitFailed || !strings.Contains(text, "token 7 has a new secret, but it could not be printed") || !strings.HasSuffix(text, c.want) {
				t.Errorf("%q %s: exit code %d\n%s", c.args, form, code, text)
			}
		}
	}
	path := writeFile(t, filepath.Join(t.TempDir(), "tokenward.yaml"), fmt.Sprintf("tokenstore: {path: %[1]s/t.db}\naudit: {path: %[1]s/a.jsonl}\n", t.TempDir()), 0o600)
	for _, args := range [][]string{{"init"}, {"init", "--new-root", "--json"}} {
		var errs strings.Builder
		code := run(t.Context(), append(args, "--config", path), strings.NewReader(""), fullDisk{}, &errs)
		if text := errs.String(); code != exitFailed || !strings.Contains(text, "was made, but its secret could not be printed") || !strings.HasSuffix(text, "run `tokenward init --new-root --config "+path+"`\n") {
			t.Errorf("%q: exit code %d\n%s", args, code, text)
		}
	}
}

// TestSecretIsNotLostToABrokenPipeWithoutAWord: the program that was to take it, as
// in `tokenward init --json | jq`, is not there.
func TestSecretIsNotLostToABrokenPipeWithoutAWord(t *testing.T) {
	f := newFakeServer(t, func(w http.ResponseWriter, _ *http.Request) { answerJSON(w, http.StatusCreated, made) })
	dir := t.TempDir()
	path := writeFile(t, filepath.Join(dir, "tokenward.yaml"), fmt.Sprintf("tokenstore: {path: %[1]s/t.db}\naudit: {path: %[1]s/a.jsonl}\n", dir), 0o600)
	for want, args := range map[string][]string{
		"token 7 has a new secret":              {"token", "create", "--name", "ci"},
		"run `tokenward init --new-root --conf": {"init", "--json", "--config", path},
	} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), "tokenward", args...) //nolint:gosec // the test's own
		cmd.Env = append(os.Environ(), envAdmin+"="+f.url, envToken+"="+callingToken.Reveal())
		var errs strings.Builder
		cmd.Stdout, cmd.Stderr = w, &errs
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		err = cmd.Run()
		if cmd.ProcessState.ExitCode() != exitFailed || !strings.Contains(errs.String(), want) {
			t.Errorf("%q: %v\n%s", args, err, errs.String())
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMigrateLeavesNoCopyOfWhatItCannotUpgrade(t *testing.T) {
	for want, spoil := range map[string]func([]byte) []byte{
		"is not a token store": func([]byte) []byte { return []byte(strings.Repeat("no store ", 1000)) },
		"use the newer program": func(file []byte) []byte {
			return bytes.ReplaceAll(file, []byte("schema\x00\x00\x00\x00\x00\x00\x00\x01"), []byte("schema\x00\x00\x00\x00\x00\x00\x00\x09"))
		},
	} {
		dir := t.TempDir()
		path := writeFile(t, filepath.Join(dir, "c.yaml"), fmt.Sprintf("tokenstore: {path: %[1]s/t.db}\naudit: {path: %[1]s/a.jsonl}\n", dir), 0o600)
		if code := run(t.Context(), []string{"init", "--config", path}, strings.NewReader(""), io.Discard, io.Discard); code != exitFine {
			t.Fatalf("exit code %d", code)
		}
		store := filepath.Join(dir, "t.db")
		file, err := os.ReadFile(store) //nolint:gosec // the test's own
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, store, string(spoil(file)), 0o600)
		var errs strings.Builder
		if code := run(t.Context(), []string{"migrate", "--config", path}, strings.NewReader(""), io.Discard, &errs); code != exitFailed || !strings.Contains(errs.String(), want) {
			t.Errorf("exit code %d\n%s", code, &errs)
		}
		if left, err := filepath.Glob(filepath.Join(dir, "t.db*")); err != nil || len(left) != 1 {
			t.Errorf("there is %q, %v", left, err)
		}
	}
}

func TestAnErrorEndsWithACommandThatCanBeTypedForAnyConfiguration(t *testing.T) {
	dir := t.TempDir()
	path := writeFile(t, filepath.Join(dir, "two words.yaml"), fmt.Sprintf("tokenstore: {path: %[1]s/t.db}\naudit: {path: %[1]s/a.jsonl}\n", dir), 0o600)
	for _, args := range [][]string{{"serve"}, {"init"}} {
		var errs strings.Builder
		if code := run(t.Context(), append(args, "--config", path), strings.NewReader(""), io.Discard, &errs); code != exitFailed {
			t.Fatalf("%q: exit code %d\n%s", args, code, &errs)
		}
		said := strings.Split(errs.String(), "`")
		if len(said) < 3 {
			t.Fatalf("%q: no command to type in\n%s", args, &errs)
		}
		next := shellWords(t, said[len(said)-2])
		errs.Reset()
		if code := run(t.Context(), next[1:], strings.NewReader(""), io.Discard, &errs); code != exitFine {
			t.Errorf("%q: exit code %d\n%s", next, code, &errs)
		}
	}
}

func TestLostAnswerIsAskedForAgainUnderTheSameKey(t *testing.T) {
	for name, lose := range map[string]http.HandlerFunc{"before the answer": breakOff, "within the answer": breakWithin} {
		for _, args := range [][]string{{"create", "--name", "ci"}, {"rotate", "7"}, {"reset", "7"}} {
			t.Run(name+" to "+args[0], func(t *testing.T) {
				var f *fakeServer
				f = newFakeServer(t, func(w http.ResponseWriter, r *http.Request) {
					if len(f.seen()) == 1 {
						lose(w, r)
					}
					answerJSON(w, http.StatusCreated, made)
				})
				code, out, stderr := runToken(t, f.url, args...)
				if code != exitFine || !strings.Contains(out, "shown-once") {
					t.Fatalf("exit code %d: %s", code, stderr)
				}
				seen := f.seen()
				if len(seen) != 2 || seen[0].Header.Get("Idempotency-Key") == "" || seen[0].Header.Get("Idempotency-Key") != seen[1].Header.Get("Idempotency-Key") {
					t.Errorf("%d requests; the second must bear the key of the first", len(seen))
				}
			})
		}
	}
}

func TestEachCreationHasItsOwnKey(t *testing.T) {
	f := newFakeServer(t, func(w http.ResponseWriter, _ *http.Request) { answerJSON(w, http.StatusCreated, made) })
	for range 2 {
		if code, _, stderr := runToken(t, f.url, "create", "--name", "ci"); code != exitFine {
			t.Fatal(stderr)
		}
	}
	if seen := f.seen(); seen[0].Header.Get("Idempotency-Key") == seen[1].Header.Get("Idempotency-Key") {
		t.Error("two creations share a key: the second would make nothing")
	}
}

func TestAnswerLostTwiceSaysThatItMayBeDone(t *testing.T) {
	f := newFakeServer(t, breakOff)
	code, _, stderr := runToken(t, f.url, "create", "--name", "ci")
	if code != exitFailed || len(f.seen()) != 2 || !strings.Contains(stderr, "It may have been done nevertheless") {
		t.Errorf("exit code %d after %d requests: %s", code, len(f.seen()), stderr)
	}
}

func TestChangeWithoutAKeyIsNotRepeated(t *testing.T) {
	for _, args := range [][]string{{"revoke", "7"}, {"disable", "7"}, {"update", "7", "--name", "x"}} {
		f := newFakeServer(t, breakOff)
		code, _, stderr := runToken(t, f.url, args...)
		if code != exitFailed || len(f.seen()) != 1 || !strings.Contains(stderr, "It may have been done nevertheless") {
			t.Errorf("%s: exit code %d after %d requests: %s", args, code, len(f.seen()), stderr)
		}
	}
}

func TestRefusalIsNotRepeated(t *testing.T) {
	f := newFakeServer(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "5")
		answerProblem(w, http.StatusServiceUnavailable, `{"code":"store_unavailable","detail":"The token store cannot be used just now.","request_id":"r-1"}`)
	})
	code, _, stderr := runToken(t, f.url, "create", "--name", "ci")
	if code != exitFailed || len(f.seen()) != 1 {
		t.Errorf("exit code %d after %d requests", code, len(f.seen()))
	}
	for _, want := range []string{"cannot create the token: the token store cannot be used just now", "Try again in 5s", "request r-1"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("%q is not said in: %s", want, stderr)
		}
	}
}

func TestRedirectDoesNotCarryTheTokenAway(t *testing.T) {
	elsewhere := newFakeServer(t, func(w http.ResponseWriter, _ *http.Request) { answerJSON(w, http.StatusOK, made) })
	f := newFakeServer(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, elsewhere.url+r.URL.Path, http.StatusTemporaryRedirect)
	})
	code, _, stderr := runToken(t, f.url, "show")
	if code != exitFailed || len(elsewhere.seen()) != 0 {
		t.Errorf("exit code %d, %d requests elsewhere: %s", code, len(elsewhere.seen()), stderr)
	}
}

// listServer has so many tokens, with ids from the highest down.
func listServer(t *testing.T, tokens int) *fakeServer {
	return newFakeServer(t, func(w http.ResponseWriter, r *http.Request) {
		limit, after := 0, tokens+1
		_, _ = fmt.Sscan(r.URL.Query().Get("limit"), &limit)
		_, _ = fmt.Sscan(r.URL.Query().Get("cursor"), &after)
		var items []string
		for id := after - 1; id > 0 && len(items) < limit; id-- {
			items = append(items, fmt.Sprintf(`{"id":%d,"name":"n%d","state":"active","scopes":["a"],"resources":"all","sources":"any"}`, id, id))
			after = id
		}
		next := "null"
		if after > 1 {
			next = fmt.Sprintf(`"%d"`, after)
		}
		answerJSON(w, http.StatusOK, `{"items":[`+strings.Join(items, ",")+`],"next":`+next+`}`)
	})
}

func TestListGoesThroughAllPages(t *testing.T) {
	const tokens = 2*pageTokens + 5
	for _, c := range []struct {
		name               string
		args               []string
		count, calls, last int
		more               bool
	}{
		{"all", nil, tokens, 3, 1, false},
		{"limit within a page", []string{"--limit", "3"}, 3, 1, tokens - 2, true},
		{"limit at the end of a page", []string{"--limit", fmt.Sprint(pageTokens)}, pageTokens, 1, tokens - pageTokens + 1, true},
		{"limit over pages", []string{"--limit", fmt.Sprint(pageTokens + 7)}, pageTokens + 7, 2, tokens - pageTokens - 6, true},
		{"limit over all", []string{"--limit", "5000"}, tokens, 3, 1, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := listServer(t, tokens)
			code, out, stderr := runToken(t, f.url, append([]string{"list", "--json"}, c.args...)...)
			var list struct {
				Items []struct{ ID int }
				Next  *string
			}
			if err := json.Unmarshal([]byte(out), &list); code != exitFine || err != nil {
				t.Fatalf("exit code %d, %v: %s", code, err, stderr)
			}
			if len(list.Items) != c.count || len(f.seen()) != c.calls || list.Items[c.count-1].ID != c.last || (list.Next != nil) != c.more {
				t.Errorf("%d tokens in %d calls, next %v", len(list.Items), len(f.seen()), list.Next)
			}
			code, out, stderr = runToken(t, f.url, append([]string{"list"}, c.args...)...)
			rows := strings.Count(out, "active")
			if code != exitFine || rows != c.count || strings.Contains(out, "There are more") != c.more {
				t.Errorf("exit code %d, %d rows: %s", code, rows, stderr)
			}
		})
	}
}

func TestBrokenListIsNeverWhole(t *testing.T) {
	pages := listServer(t, 3000)
	for name, broken := range map[string]http.HandlerFunc{
		"no answer":        breakOff,
		"cut within":       func(w http.ResponseWriter, r *http.Request) { breakWithin(w, r) },
		"cut short":        func(w http.ResponseWriter, _ *http.Request) { answerJSON(w, 200, `{"items":[{"id":1}`) },
		"another document": func(w http.ResponseWriter, _ *http.Request) { answerJSON(w, 200, `[]`) },
		"no list":          func(w http.ResponseWriter, _ *http.Request) { answerJSON(w, 200, `{"items":{}}`) },
		"a refusal": func(w http.ResponseWriter, _ *http.Request) {
			answerProblem(w, http.StatusUnauthorized, `{"code":"invalid_token"}`)
		},
		"a circle": func(w http.ResponseWriter, r *http.Request) {
			answerJSON(w, 200, `{"items":[],"next":"`+r.URL.Query().Get("cursor")+`"}`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeServer(t, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Query().Get("cursor") != "" {
					broken(w, r)
					return
				}
				resp, err := http.Get(pages.url + r.URL.RequestURI())
				if err != nil {
					panic(err)
				}
				defer resp.Body.Close()
				body, _ := io.ReadAll(resp.Body)
				answerJSON(w, resp.StatusCode, string(body))
			})
			code, out, stderr := runToken(t, f.url, "list", "--json")
			if code != exitFailed || json.Valid([]byte(out)) || stderr == "" {
				t.Errorf("exit code %d, valid %v: %s", code, json.Valid([]byte(out)), stderr)
			}
			if code, _, stderr := runToken(t, f.url, "list"); code != exitFailed || stderr == "" {
				t.Errorf("exit code %d: %s", code, stderr)
			}
		})
	}
}

func TestServerCannotSteerTheTerminal(t *testing.T) {
	const evil = `\u001b[2J\u202eevil\r\n\u0007`
	answer := `{"id":7,"name":"` + evil + `","state":"` + evil + `","scopes":["` + evil + `"],"resources":[{"type":"` + evil + `","id":"` + evil + `","level":"` + evil +
		`"}],"sources":{"allow":["` + evil + `"],"deny":["` + evil + `"]},"limits":{"quota":[{"count":1,"per":"` + evil + `"}]},"created_by":{"id":1,"name":"` + evil +
		`"},"secrets":[{"last4":"` + evil + `"},{"last4":"` + evil + `"}],"token":"` + evil + `"}`
	good := newFakeServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/tokens" && r.Method == http.MethodGet {
			answer := `{"items":[` + answer + `],"next":"` + evil + `"}`
			answerJSON(w, http.StatusOK, answer)
			return
		}
		answerJSON(w, http.StatusOK, answer)
	})
	bad := newFakeServer(t, func(w http.ResponseWriter, _ *http.Request) {
		answerProblem(w, http.StatusTeapot, `{"code":"`+evil+`","title":"`+evil+`","detail":"`+evil+`","request_id":"`+evil+`","errors":[{"field":"`+evil+`","detail":"`+evil+`"}]}`)
	})
	worse := newFakeServer(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/\u0085evil\u009b2J")
		w.WriteHeader(http.StatusOK)
	})
	for _, args := range [][]string{{"show", "7"}, {"create", "--name", "x"}, {"rotate", "7"}, {"list", "--limit", "1"}, {"enable", "7"}} {
		for _, f := range []*fakeServer{good, bad, worse} {
			_, out, stderr := runToken(t, f.url, args...)
			for _, r := range out + stderr {
				if r != '\n' && hidden(r) {
					t.Errorf("%s prints %q:\n%q", args, r, out+stderr)
					break
				}
			}
		}
	}
}

func TestEndlessAnswerIsGivenUp(t *testing.T) {
	f := newFakeServer(t, func(w http.ResponseWriter, _ *http.Request) {
		answerJSON(w, http.StatusOK, `{"id":7,"name":"`)
		block := strings.Repeat("x", 1<<20)
		for range 2 * maxAnswer >> 20 {
			if _, err := io.WriteString(w, block); err != nil {
				return
			}
		}
	})
	code, _, stderr := runToken(t, f.url, "disable", "7")
	if code != exitFailed || !strings.Contains(stderr, "far too long") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

func TestTokenInClearAcrossTheNetworkIsWarnedOf(t *testing.T) {
	for url, warned := range map[string]bool{
		"http://192.0.2.1:1": true, "https://192.0.2.1:1": false, "http://127.0.0.1:1": false, "http://[::1]:1": false, "http://localhost:1": false,
	} {
		var stderr strings.Builder
		cmd := newTokenCommand()
		cmd.SetErr(&stderr)
		t.Setenv(envToken, callingToken.Reveal())
		flags := serverFlags{admin: url}
		if _, err := flags.client(cmd); err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(stderr.String(), "in clear"); got != warned {
			t.Errorf("%s: warned %v", url, got)
		}
	}
}

func TestFaultIsNamedByItsFlag(t *testing.T) {
	names := fieldNames{
		"scopes": {flag: "scopes", values: []string{"a", "b"}}, "resources": {flag: "resource", values: []string{"x:1:read"}},
		"limits/quota": {flag: "quota", values: []string{"1/day"}}, "name": {flag: "name"}, "sources": {flag: "source"},
	}
	for pointer, want := range map[string]string{
		"/name": "--name", "/scopes": "--scopes", "/scopes/1": `--scopes "b"`, "/scopes/7": "--scopes", "/resources/0/id": `--resource "x:1:read"`,
		"/resources/0": `--resource "x:1:read"`, "/limits/quota/0/count": `--quota "1/day"`, "/sources/allow/0": "--source",
		"/other": "other", "": "", "/": "", "name": "--name", "/a/b/c": "a/b/c", "/-1": "-1", "/scopes/-1": "--scopes",
	} {
		if got := names.name(pointer); got != want {
			t.Errorf("%q is %q instead of %q", pointer, got, want)
		}
	}
	if got := (fieldNames)(nil).name("/name"); got != "name" {
		t.Errorf("without names: %q", got)
	}
}

// TestBurstGoesWithItsRate: alone it means nothing, and the server refuses it.
func TestBurstGoesWithItsRate(t *testing.T) {
	for args, want := range map[string]string{
		"--rate none": `{"limits":{"burst":null,"rate":null}}`, "--rate 5": `{"limits":{"rate":5}}`,
		"--rate none --burst none": `{"limits":{"burst":null,"rate":null}}`, "--burst 3": `{"limits":{"burst":3}}`, "--rate none --burst 3": `{"limits":{"burst":3,"rate":null}}`,
	} {
		var body []byte
		f := newFakeServer(t, func(w http.ResponseWriter, _ *http.Request) { answerJSON(w, http.StatusOK, made) })
		f.read = func(b []byte) { body = b }
		if code, _, stderr := runToken(t, f.url, append([]string{"update", "7"}, strings.Fields(args)...)...); code != exitFine || string(body) != want {
			t.Errorf("%s: %s, want %s: %s", args, body, want, stderr)
		}
	}
}

func TestTimesAreToldFromNow(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	for d, want := range map[time.Duration]string{
		0: "now", 400 * time.Millisecond: "now", time.Second: "in 1 second", -time.Second: "1 second ago", 119 * time.Second: "in 119 seconds",
		2 * time.Minute: "in 2 minutes", -2*time.Hour + time.Minute: "119 minutes ago", -2*time.Hour + time.Second: "2 hours ago", 12*time.Hour - 10*time.Millisecond: "in 12 hours",
		48*time.Hour - time.Minute: "in 2 days", 47 * time.Hour: "in 47 hours", 90 * 24 * time.Hour: "in 90 days", -10 * 8766 * time.Hour: "10 years ago",
	} {
		if got := fromNow(now.Add(d), now); got != want {
			t.Errorf("%v: %q instead of %q", d, got, want)
		}
	}
}

func TestEndsAndBeginningsAreRead(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 5e8, time.UTC)
	for text, want := range map[string]string{
		"90d": "2027-02-19T12:00:00.500Z", "12h": "2026-11-22T00:00:00.500Z", "1d12h": "2026-11-23T00:00:00.500Z",
		"2027-01-31T00:00:00Z": "2027-01-31T00:00:00.000Z", "2027-01-31T02:00:00+02:00": "2027-01-31T00:00:00.000Z",
		"": "", "0": "", "-3d": "", "3": "", "tomorrow": "", "2027-01-31": "", "2027-01-31T00:00:00": "", "3y": "", "9999d": "",
	} {
		got, err := parseWhen(text, now)
		if (err == nil) != (want != "") || err == nil && wireTime(got) != want {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	if _, err := parseWhen("4000d", now); err == nil || !strings.Contains(err.Error(), "longer than ten years") {
		t.Errorf("4000d: %v", err)
	}
	for _, read := range []func(string, time.Time) (any, error){expiry, start} {
		if _, err := read("soon", now); err == nil {
			t.Error("nonsense is taken")
		}
	}
	if at, err := expiry("never", now); at != nil || err != nil {
		t.Errorf("never: %v, %v", at, err)
	}
}

// FuzzGrant holds the flag to the grants that print back as they were written.
func FuzzGrant(f *testing.F) {
	for _, text := range []string{"account:1001:read", "card:*:write", "a:b:c:read", ":x:read", "a::read", "a:read", "read", "", "a:b:own", "a:\x00:read"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		g, ok := parseGrant(text)
		if ok && g.Type+":"+g.ID+":"+g.Level.String() != text {
			t.Errorf("%q reads as %+v", text, g)
		}
		if ok && (g.Type == "" || g.ID == "" || strings.Contains(g.Type, ":")) {
			t.Errorf("%q reads as %+v", text, g)
		}
	})
}

// FuzzPage holds the reader of lists to what the JSON decoder makes of whole
// documents, and to giving up on all others.
func FuzzPage(f *testing.F) {
	for _, text := range []string{
		`{"items":[{"id":1},{"id":2}],"next":"x"}`, `{"next":null,"items":[]}`, `{"items":[1,"a",null,[]]}`, `{"items":null}`, `{"items":[{]}`,
		`{"items":[1]`, `[]`, `{}`, ``, `{"next":5}`, `{"a":{"b":[1]},"items":[2]}`, `{"items":[1],"items":[2]}`, `{"next":"a","next":null}`,
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var items []json.RawMessage
		p := pageReader{dec: json.NewDecoder(strings.NewReader(text)), each: func(one json.RawMessage) error {
			items = append(items, one)
			return nil
		}}
		p.read()
		for _, one := range items {
			if !json.Valid(one) || !strings.Contains(text, string(one)) {
				t.Fatalf("%q yields %q", text, one)
			}
		}
		var whole struct {
			Items []json.RawMessage `json:"items"`
		}
		// The decoder of whole documents takes the last of several, and any case.
		once := strings.Count(strings.ToLower(text), "items") == 1 && !strings.Contains(text, `\`)
		if json.Unmarshal([]byte(text), &whole) == nil && p.err == nil && once && strings.Contains(text, `"items"`) && len(whole.Items) != len(items) {
			t.Fatalf("%q yields %d of %d", text, len(items), len(whole.Items))
		}
	})
}

// FuzzCallingToken holds what is read from files and variables to what fits
// into a header.
func FuzzCallingToken(f *testing.F) {
	for _, text := range []string{callingToken.Reveal(), " x \n", "", "{}", "a b", "a\nb", "a\x00", "ä"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		secret, err := secretFromText(text, "here")
		if err != nil {
			return
		}
		req := httptest.NewRequest(http.MethodGet, "/", nil)
		req.Header.Set("Authorization", "Bearer "+secret.Reveal())
		var wire strings.Builder
		if err := req.Header.Write(&wire); err != nil || wire.String() != "Authorization: Bearer "+secret.Reveal()+"\r\n" {
			t.Errorf("%q goes out as %q, %v", text, wire.String(), err)
		}
	})
}

// TestErrorsForWantOfDescriptorsSayWhatToRaise: whatever is opened can meet that, and it is
// no fault of the disk's.
func TestErrorsForWantOfDescriptorsSayWhatToRaise(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts real processes")
	}
	v := newVictim(t)
	told := 0
	for limit := 7; limit < 12; limit++ { // below, the program cannot begin
		backup := v.command("backup", "--config", v.config, "-o", filepath.Join(v.dir, fmt.Sprint(limit)))
		cmd := exec.CommandContext(t.Context(), "sh", append([]string{"-c", fmt.Sprintf(`ulimit -n %d && exec "$@"`, limit), "sh"}, backup.Args...)...) //nolint:gosec // the test's own
		cmd.Env = backup.Env
		out, _ := cmd.CombinedOutput()
		text := string(out)
		if !strings.HasPrefix(text, "tokenward: ") {
			continue
		}
		told++
		if !strings.Contains(text, "too many open files") || strings.Contains(text, "check the disk") || !strings.HasSuffix(text, "raise its limit, with `ulimit -n 65536`, or LimitNOFILE in its systemd unit\n") {
			t.Errorf("with %d: %s", limit, text)
		}
	}
	if told < 2 {
		t.Errorf("it failed %d times", told)
	}
}
