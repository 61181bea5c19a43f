package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"tokenward/admin"
	"tokenward/enforce"
)

func TestEveryReasonHasItsKind(t *testing.T) {
	for _, r := range enforce.Reasons() {
		kind, ok := gateKinds[r]
		switch {
		case r.Allows() && ok:
			t.Errorf("%v refuses nothing, but is answered as %v", r, kind)
		case !r.Allows() && (!ok || kind == admin.KindInternal):
			t.Errorf("%v is answered as a fault of the program", r)
		}
	}
}

// TestUnusableStoreSaysWhenToComeBack: the engine waits for nothing in particular
// when the store fails, but a client has to be told something.
func TestUnusableStoreSaysWhenToComeBack(t *testing.T) {
	e := (&gate{}).refused(&enforce.Decision{Reason: enforce.StoreUnavailable, Cause: errors.New("the disk is gone")})
	if e.Kind != admin.KindUnavailable || e.RetryAfter != time.Second || e.Cause == nil {
		t.Errorf("%+v", e)
	}
}

// TestMissingTokenIsAskedForWhereItIsRead: a client that does as it is told gets in.
func TestMissingTokenIsAskedForWhereItIsRead(t *testing.T) {
	s := startApp(t, "routes: []\n", "credentials: [x-key, authorization], ")
	for url, want := range map[string]string{
		s.proxy + "/a": "x-key: TOKEN",
		"http://" + s.adminListener.Addr().String() + "/v1/tokens": "Authorization: Bearer TOKEN",
	} {
		answer, err := http.Get(url) // the server ends with the test
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil || answer.StatusCode != http.StatusUnauthorized || !strings.Contains(string(body), "An API token is required: send it as `"+want+"`.") {
			t.Errorf("%s: %d %s, want %q", url, answer.StatusCode, body, want)
		}
	}
}

// TestEncodedLetterHidesNoPath: the judgement decodes what is encoded for no reason, and
// a mount goes by that, so a token API must know the path too.
func TestEncodedLetterHidesNoPath(t *testing.T) {
	s := startApp(t, "routes: []\n")
	listener := "http://" + s.adminListener.Addr().String()
	for path, want := range map[string]int{
		"/users/%31/api-tokens":            http.StatusOK,
		"/users/1/api%2dtokens":            http.StatusOK,
		"/user/api%2Dtokens?limit=%31":     http.StatusOK,
		"/%61pi/accounts/%31/api%5Ftokens": http.StatusOK,
		"/v1/token%73/%31":                 http.StatusOK,
		"/v1/tokens%2F1":                   http.StatusBadRequest,
		"/users/1%2Fapi-tokens":            http.StatusNotFound,
		"/users/%2531/api-tokens":          http.StatusBadRequest,
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, listener+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Api-Token", s.root)
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != want {
			t.Errorf("GET %s: %s, want %d", path, answer.Status, want)
		}
	}
}

// TestRefusedCallLearnsItsLimit asks each token API twice with a token that may
// ask once.
func TestRefusedCallLearnsItsLimit(t *testing.T) {
	s := startApp(t, "routes: []\n")
	listener := "http://" + s.adminListener.Addr().String()
	for _, path := range []string{"/users/1/api-tokens", "/user/api-tokens", "/api/api_tokens", "/v1/whoami"} {
		body := `{"name":"once","limits":{"quota":[{"count":1,"per":"hour"}]}}`
		_, secret, _ := strings.Cut(send(t, "POST", listener+"/v1/tokens", s.root, body), `"token":"`)
		secret, _, _ = strings.Cut(secret, `"`)
		for i, want := range []string{"", `"hour";q=1;w=3600`} {
			r, _ := http.NewRequestWithContext(t.Context(), "GET", listener+path, nil)
			r.Header.Set("Api-Token", secret)
			answer, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			answer.Body.Close()
			policy, left := answer.Header.Get("RateLimit-Policy"), answer.Header.Get("RateLimit")
			refused := answer.StatusCode == http.StatusTooManyRequests
			if refused != (i == 1) || policy != want || strings.HasPrefix(left, `"hour";r=0;t=`) != refused || (answer.Header.Get("Retry-After") != "") != refused {
				t.Errorf("request %d to %s: %s %v", i+1, path, answer.Status, answer.Header)
			}
		}
	}
}

// TestUsedUpAccountCanStillRevoke: who has a stolen token uses up all that its account
// may do, and the account takes the token away by another one all the same.
func TestUsedUpAccountCanStillRevoke(t *testing.T) {
	s := startApp(t, "enforce: {limits: {account: {per_month: 1}, owner: {per_month: 1}}}\nroutes: []\n")
	listener := "http://" + s.adminListener.Addr().String()
	var made [5]struct {
		ID     uint64 `json:"id"`
		Secret string `json:"token"`
	}
	for i := range made {
		if err := json.Unmarshal([]byte(send(t, "POST", listener+"/v1/tokens", s.root, `{"name":"one"}`)), &made[i]); err != nil {
			t.Fatal(err)
		}
	}
	ask := func(method, path string) int {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, listener+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+made[0].Secret)
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		return answer.StatusCode
	}
	if first, again := ask("GET", "/v1/whoami"), ask("GET", "/v1/whoami"); first != http.StatusOK || again != http.StatusTooManyRequests {
		t.Fatalf("%d, then %d", first, again)
	}
	for i, path := range []string{"/v1/tokens/%d", "/users/1/api-tokens/%d", "/api/accounts/1/api_tokens/%d", "/v1/tokens/%d?descendants=true"} {
		if status := ask("DELETE", fmt.Sprintf(path, made[4-i].ID)); status/100 != 2 {
			t.Errorf("revoking by %s: %d", path, status)
		}
	}
	if status := ask("GET", "/v1/whoami"); status != http.StatusTooManyRequests {
		t.Errorf("asking again: %d", status)
	}
}
