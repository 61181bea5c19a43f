package proxy_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tokenward/enforce/canon"
	"tokenward/proxy"
	"tokenward/tokenstore"
)

// TestExplainSaysWhatTheDoorsDo, also where a request is never judged: what explain
// calls allowed and a door refuses, nobody finds.
func TestExplainSaysWhatTheDoorsDo(t *testing.T) {
	for _, d := range doors {
		t.Run(d.name, func(t *testing.T) {
			w := newWorld(t, canon.Options{})
			mount := proxy.PrefixMount(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(rw, "mounted") }), "/accounts/1/api-tokens")
			mount.Name = "mailtrap"
			w.guard.Mounts = []proxy.Mount{mount}
			corsWorld(t, w)
			for i := range routes {
				if strings.HasSuffix(routes[i].Match, " /echo/{x...}") {
					w.rules.Routes[i].ObserveUntil = time.Now().Add(time.Hour)
				}
			}
			addr := d.open(t, w)
			token := "Api-Token: " + w.secrets["full"]
			for _, c := range []struct {
				name, method, target string
				fields               []string
				reason               string
				http1                bool // it cannot be said in HTTP/2
			}{
				{name: "allowed", method: "GET", target: "/accounts/1", fields: []string{token}, reason: "allowed"},
				{name: "public", method: "GET", target: "/healthz", reason: "public"},
				{name: "no credential", method: "GET", target: "/accounts/1", reason: "missing_token"},
				{name: "two credentials", method: "GET", target: "/accounts/1", fields: []string{token, "Authorization: Bearer x"}, reason: "ambiguous_credential"},
				{name: "no route", method: "GET", target: "/nothing", fields: []string{token}, reason: "no_route"},
				{name: "dot segments", method: "GET", target: "/accounts/../1", fields: []string{token}, reason: "bad_request"},
				{name: "method", method: "TRACE", target: "/accounts/1", fields: []string{token}, reason: "method_not_allowed"},
				{name: "identity by Connection", method: "GET", target: "/accounts/1", fields: []string{token, "Connection: keep-alive, X-Token-Id"}, reason: "bad_request", http1: true},
				{name: "credential by Connection", method: "GET", target: "/accounts/1", fields: []string{token, "Connection: api-token"}, reason: "bad_request", http1: true},
				{name: "public with an identity by Connection", method: "GET", target: "/healthz", fields: []string{"Connection: x_token.id"}, reason: "bad_request", http1: true},
				{name: "other Connection", method: "GET", target: "/accounts/1", fields: []string{token, "Connection: X-Mine"}, reason: "allowed", http1: true},
				{name: "mounted", method: "GET", target: "/accounts/1/api-tokens/7", reason: "mounted"},
				{name: "mounted with dots", method: "GET", target: "/accounts/1/api-tokens/../7", reason: "bad_request"},
				{name: "observed refusal", method: "GET", target: "/echo/a", reason: "missing_token"},
				{name: "observed allowance", method: "GET", target: "/echo/a", fields: []string{token}, reason: "allowed"},
				{name: "observed irregular path", method: "GET", target: "/echo/a;b", fields: []string{token}, reason: "irregular_path"},
				{name: "preflight", method: "OPTIONS", target: "/accounts/1", fields: []string{"Origin: https://app.example", "Access-Control-Request-Method: GET"}, reason: "preflight"},
				{name: "preflight of another origin", method: "OPTIONS", target: "/accounts/1", fields: []string{"Origin: https://evil.example", "Access-Control-Request-Method: GET"}, reason: "cors_refused"},
			} {
				if c.http1 && strings.HasPrefix(addr, "h2") {
					continue // HTTP/2 has no such request
				}
				t.Run(c.name, func(t *testing.T) {
					head := canon.Head{Method: []byte(c.method), Target: []byte(c.target), Major: 1, Minor: 1, Peer: netip.MustParseAddrPort("127.0.0.1:1")}
					for _, line := range append([]string{"Host: a"}, c.fields...) {
						name, value, _ := strings.Cut(line, ": ")
						head.Fields = append(head.Fields, canon.Field{Name: []byte(name), Value: []byte(value)})
					}
					refused := len(w.counted().refused)
					e := w.guard.Explain(t.Context(), head, nil, time.Now())
					if n := len(w.counted().refused); n != refused {
						t.Errorf("asking was counted as a refusal: %d, then %d", refused, n)
					}
					resp, body := ask(t, addr, fmt.Sprintf("%s %s HTTP/1.1\r\nHost: a\r\n%s\r\n", c.method, c.target, strings.Join(append(c.fields, ""), "\r\n")))
					if e.Reason != c.reason || e.Passes != (resp.StatusCode < 300) {
						t.Errorf("passes %v by %s %+v; the door answered %d %s", e.Passes, e.Reason, e.Steps, resp.StatusCode, body)
					}
					var problem struct{ Code string }
					if !e.Passes && json.Unmarshal([]byte(body), &problem) != nil {
						t.Fatalf("the door answered %s", body)
					}
					if e.Code != problem.Code {
						t.Errorf("the client is told %q, not %q", problem.Code, e.Code)
					}
				})
			}
			revoked := &tokenstore.Match{Token: &tokenstore.Token{ID: 9, State: tokenstore.StateRevoked}, Secret: &tokenstore.SecretRecord{Ends: tokenstore.Never()}}
			head := canon.Head{Method: []byte("GET"), Target: []byte("/echo/a"), Major: 1, Minor: 1, Fields: []canon.Field{{Name: []byte("Host"), Value: []byte("a")}}}
			if e := w.guard.Explain(t.Context(), head, revoked, time.Now().Add(2*time.Hour)); e.Passes || e.Reason != "revoked_token" {
				t.Errorf("once it is enforced again: %+v", e)
			}
		})
	}
}
