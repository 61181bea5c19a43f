package clients

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"strings"
	"testing"
	"time"
)

// unitScopes are those that Unit's API uses: a plain name reads, and has a twin
// that writes.
const (
	unitScopes = `applications customers customer-token accounts cards cards-sensitive transactions payments
		counterparties events webhooks authorization-requests batch-releases check-deposits check-payments
		received-payments chargebacks rewards wire-drawdowns`
	unitReadOnly  = `authorizations statements`
	unitWriteOnly = `customer-tags-write payments-write-counterparty payments-write-linked-account
		payments-write-ach-debit ach-payments-write wire-payments-write`
)

// TestExampleForUnitWorks serves deploy/examples/unit.yaml in front of an API
// that has every path.
func TestExampleForUnitWorks(t *testing.T) {
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		account := map[string]string{"6": "10000", "1": "10000"}[path.Base(r.URL.Path)]
		if account == "" {
			account = "10001"
		}
		_, _ = fmt.Fprintf(w, `{"data":{"relationships":{"account":{"data":{"type":"depositAccount","id":%q}}}}}`, account)
	}))
	defer upstream.Close()
	example, err := os.ReadFile("../../deploy/examples/unit.yaml")
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, build(t), strings.NewReplacer(
		"127.0.0.1:8080", "127.0.0.1:0", "127.0.0.1:8081", "127.0.0.1:0", "http://127.0.0.1:3000", upstream.URL,
		"\nroutes:", "\nmetrics: {listen: \"127.0.0.1:0\"}\nroutes:",
	).Replace(string(example)))

	all := strings.Fields(unitReadOnly + " " + unitWriteOnly)
	for _, scope := range strings.Fields(unitScopes) {
		all = append(all, scope, scope+"-write")
	}
	secret := s.unitToken(t, strings.Join(all, " "), "")
	for target, want := range map[string]int{
		"GET /accounts":                          200,
		"GET /accounts/10000":                    200,
		"GET /cards/5/secure-data/pan":           200,
		"POST /payments":                         200,
		"PATCH /customers/7":                     200,
		"POST /payments/5/cancel":                200,
		"GET /statements/1/pdf":                  200,
		"DELETE /statements/1":                   404,
		"GET /nothing":                           404,
		"GET /users/1/api-tokens":                403, // answered here: the token has no scope for it
		"GET /users/1/api-tokens/1/whatever":     404,
		"GET /accounts/10000/transactions/5":     200,
		"GET /accounts/10000/cards/5":            200,
		"POST /authorization-requests/1/approve": 200,
	} {
		s.expect(t, secret, target, want)
	}

	restricted := s.unitToken(t, "accounts cards transactions payments", `,"resources":[{"type":"account","ids":["10000"]},{"type":"card","ids":["5"]}]`)
	for target, want := range map[string]int{
		"GET /accounts/10000":                200,
		"GET /accounts/10000/limits":         200,
		"GET /accounts/10000/transactions/5": 200,
		"GET /accounts/10000/cards/6":        200, // through its account
		"GET /accounts/10001/cards/5":        200, // by itself
		"GET /accounts/10001":                403,
		"GET /accounts/10001/cards/7":        403,
		"GET /accounts":                      403, // names no resource
		"GET /cards/5":                       200,
		"GET /cards/6":                       200, // the API tells its account
		"GET /cards/7":                       403,
		"GET /payments/1":                    200,
		"GET /payments/2":                    403,
		"POST /payments/1/cancel":            403,
		"GET /payments":                      403,
		"GET /cards/5/secure-data/pan":       403, // another scope
		"POST /accounts/10000/close":         403, // write does not follow from read
	} {
		s.expect(t, restricted, target, want)
	}
}

// unitToken makes a token of the default user through Unit's API, where its
// clients look for it.
func (s *server) unitToken(t *testing.T, scope, more string) (secret string) {
	t.Helper()
	end := time.Now().AddDate(1, 0, 0).UTC().Format(time.RFC3339)
	status, body := s.call("proxy", s.root, "POST", "/users/1/api-tokens",
		`{"data":{"type":"apiToken","attributes":{"description":"example","scope":"`+scope+`","expiration":"`+end+`"`+more+`}}}`)
	var made struct {
		Data struct{ Attributes struct{ Token string } }
	}
	if err := json.Unmarshal(body, &made); err != nil || status != http.StatusCreated {
		t.Fatalf("%d %s", status, body)
	}
	return made.Data.Attributes.Token
}

func (s *server) expect(t *testing.T, secret, target string, want int) {
	t.Helper()
	method, path, _ := strings.Cut(target, " ")
	if status, body := s.call("proxy", secret, method, path, ""); status != want {
		t.Errorf("%s gives %d, want %d: %s", target, status, want, body)
	}
}
