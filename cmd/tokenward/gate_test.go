package main

import (
	"errors"
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
		answer, err := http.Get(url) //nolint:noctx // the server ends with the test
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
