package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"tokenward/admin"
	"tokenward/tokenstore"
)

// explained makes a store with one token over the configuration, and gives what
// `explain` says with the further arguments.
func explained(t *testing.T, config string, spec admin.Spec) (secret string, id tokenstore.ID, explain func(args ...string) string) {
	t.Helper()
	dir := t.TempDir()
	path := writeFile(t, filepath.Join(dir, "tokenward.yaml"), fmt.Sprintf("tokenstore: {path: %s/t.db}\naudit: {path: %s/a.jsonl}\n%s", dir, dir, config), 0o600)
	cfg, err := loadConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	if _, _, err := initialise(t.Context(), cfg, log, false); err != nil {
		t.Fatal(err)
	}
	v, err := openVault(t.Context(), cfg, log, time.Now, opening{})
	if err != nil {
		t.Fatal(err)
	}
	made, err := v.service.Create(t.Context(), admin.Operator(""), spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.close(); err != nil {
		t.Fatal(err)
	}
	return made.Secret.Reveal(), made.Token.ID, func(args ...string) string {
		t.Helper()
		var out bytes.Buffer
		cmd := newExplainCommand()
		cmd.SetOut(&out)
		cmd.SetArgs(append([]string{"--config", path}, args...))
		if err := cmd.ExecuteContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
}

// TestExplainKnowsParentsAsTheServerDoes: else it would call a request refused that
// passes.
func TestExplainKnowsParentsAsTheServerDoes(t *testing.T) {
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, `{"account":%q}`, map[string]string{"/cards/7": "1", "/cards/8": "2"}[r.URL.Path])
	}))
	t.Cleanup(api.Close)
	_, id, explain := explained(t, fmt.Sprintf("proxy: {upstream: '%s'}\nenforce: {parents: {card: {get: '/cards/{id}', pointer: /account, type: account}}}\n"+
		"routes:\n  - {match: 'GET /cards/{card}', resources: ['card:{card}']}\n", api.URL),
		admin.Spec{Name: "one account", Scopes: []string{"a"}, Resources: &tokenstore.Resources{Grants: []tokenstore.Grant{{Type: "account", ID: "1", Level: tokenstore.LevelRead}}}})
	for target, want := range map[string]string{
		"/cards/7": `it belongs to account:"1"`,
		"/cards/8": "it belongs to another account",
	} {
		out := explain("--token-id", strconv.FormatUint(uint64(id), 10), "GET", target)
		if strings.HasPrefix(out, "ALLOWED") != (target == "/cards/7") || !strings.Contains(out, want) {
			t.Errorf("%s: want %q in\n%s", target, want, out)
		}
	}
}

func TestExplainBearsTheSecretWhereItIsRead(t *testing.T) {
	for _, carrier := range []string{"authorization", "api-token", "query:access_token", "subprotocol:bearer"} {
		t.Run(carrier, func(t *testing.T) {
			secret, _, explain := explained(t, fmt.Sprintf("proxy: {credentials: ['%s']}\nroutes:\n  - {match: GET /a}\n", carrier), admin.Spec{Name: "any", Scopes: []string{"a"}})
			file := writeFile(t, filepath.Join(t.TempDir(), "secret"), secret+"\n", 0o600)
			for _, target := range []string{"/a", "/a?b=1"} {
				if out := explain("--token-file", file, "GET", target); !strings.HasPrefix(out, "ALLOWED") || strings.Contains(out, secret) {
					t.Errorf("%s:\n%s", target, out)
				}
			}
		})
	}
}

// TestExplainKnowsWhatIsNotJudged, as the server does it: what Connection names, the
// paths of mounted token APIs, and routes that are only observed.
func TestExplainKnowsWhatIsNotJudged(t *testing.T) {
	_, id, explain := explained(t, fmt.Sprintf("admin: {mount: [mailtrap]}\nenforce: {observe_until: '%s'}\n"+
		"routes:\n  - {match: GET /a}\n  - {match: GET /b, scopes: [b], mode: observe}\n", time.Now().Add(24*time.Hour).UTC().Format(time.RFC3339)),
		admin.Spec{Name: "any", Scopes: []string{"a"}})
	token := []string{"--token-id", strconv.FormatUint(uint64(id), 10)}
	for name, c := range map[string]struct {
		args []string
		want []string
	}{
		"allowed":    {[]string{"GET", "/a"}, []string{"ALLOWED"}},
		"connection": {[]string{"-H", "Connection: X-Token-Id", "GET", "/a"}, []string{"REFUSED: bad_request", "Connection names"}},
		"mounted":    {[]string{"GET", "/api/accounts/1/api_tokens"}, []string{"NOT FORWARDED: a mounted token API answers", "token API mailtrap"}},
		"observed":   {[]string{"GET", "/b"}, []string{"ONLY OBSERVED: forwarded, although refused by scope_missing", "without identity"}},
	} {
		out := explain(append(slices.Clone(token), c.args...)...)
		for i, want := range c.want {
			if i == 0 && !strings.HasPrefix(out, want+"\n") || !strings.Contains(out, want) {
				t.Errorf("%s: want %q in\n%s", name, want, out)
			}
		}
	}
}

// TestExplainTakesForAnUpgradeWhatTheListenerDoes: an upgraded connection may write,
// an Upgrade that Connection does not name is a field like any other.
func TestExplainTakesForAnUpgradeWhatTheListenerDoes(t *testing.T) {
	_, id, explain := explained(t, "routes:\n  - {match: 'GET /rooms/{room}', resources: ['room:{room}']}\n", admin.Spec{Name: "reads", Scopes: []string{"a"},
		Resources: &tokenstore.Resources{Grants: []tokenstore.Grant{{Type: "room", ID: "1", Level: tokenstore.LevelRead}}}})
	for _, c := range []struct {
		headers []string
		want    string
	}{
		{nil, "ALLOWED"},
		{[]string{"Upgrade: websocket"}, "ALLOWED"},
		{[]string{"Connection: upgrade"}, "ALLOWED"},
		{[]string{"Connection: keep-alive", "Upgrade: websocket"}, "ALLOWED"},
		{[]string{"Connection: upgrade", "Upgrade: websocket", "Upgrade: h2c"}, "ALLOWED"},
		{[]string{"Connection: upgrade", "Upgrade:"}, "ALLOWED"},
		{[]string{"connection: keep-alive, Upgrade", "upgrade: websocket"}, "REFUSED: level_too_low"},
	} {
		args := []string{"--token-id", strconv.FormatUint(uint64(id), 10)}
		for _, h := range c.headers {
			args = append(args, "-H", h)
		}
		if out := explain(append(args, "GET", "/rooms/1")...); !strings.HasPrefix(out, c.want) {
			t.Errorf("%q: want %s in\n%s", c.headers, c.want, out)
		}
	}
}

// TestExplainSaysHowToAskTheServer that has the store, in a line that works.
func TestExplainSaysHowToAskTheServer(t *testing.T) {
	dir := t.TempDir()
	path := writeFile(t, filepath.Join(dir, "tokenward.yaml"), fmt.Sprintf("tokenstore: {path: %s/t.db}\naudit: {path: %s/a.jsonl}\nroutes:\n  - {match: GET /a}\n", dir, dir), 0o600)
	cfg, err := loadConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	if _, _, err := initialise(t.Context(), cfg, log, false); err != nil {
		t.Fatal(err)
	}
	v, err := openVault(t.Context(), cfg, log, time.Now, opening{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.close(); err != nil {
			t.Error(err)
		}
	})
	cmd := newExplainCommand()
	cmd.SetArgs([]string{"--config", path, "--token-id", "1", "GET", "/a"})
	err = cmd.ExecuteContext(t.Context())
	if err == nil || !strings.Contains(err.Error(), `-H "Content-Type: application/json"`) {
		t.Errorf("a store in use: %v", err)
	}
}

// TestNoRequestHasALineBreakInAHeader: judged as one that has, it would be another.
func TestNoRequestHasALineBreakInAHeader(t *testing.T) {
	for _, header := range []string{"X-A: b\r\nApi-Token: c", "X-A: b\x00", "X-A: b\x7f"} {
		var out, problem bytes.Buffer
		code := run(t.Context(), []string{"explain", "--config", "nowhere.yaml", "-H", header, "GET", "/"}, nil, &out, &problem)
		if code != exitUsage || !strings.Contains(problem.String(), `-H "X-A" holds a control character`) {
			t.Errorf("%q: %d %s", header, code, &problem)
		}
	}
}
