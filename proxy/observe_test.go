package proxy_test

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"tokenward/enforce"
	"tokenward/enforce/canon"
	"tokenward/proxy"
)

// observing lets every route be observed for an hour, and notes outcomes.
func observing(t *testing.T, strip bool, f func(t *testing.T, w *world, addr string, outcomes func() []proxy.Outcome)) {
	t.Helper()
	for _, d := range doors {
		t.Run(d.name, func(t *testing.T) {
			w := newWorld(t, canon.Options{Credentials: []string{"authorization", "api-token", "query:access_token"}})
			var seen []proxy.Outcome
			w.rules.Observe = func(_ int, _ enforce.Reason, o proxy.Outcome, _ time.Duration) {
				w.note(func() { seen = append(seen, o) })
			}
			w.rules.Default.ObserveUntil = time.Now().Add(time.Hour)
			w.rules.StripObserved = strip
			f(t, w, d.open(t, w), func() []proxy.Outcome {
				<-w.noted
				w.mu.Lock()
				defer w.mu.Unlock()
				return seen
			})
		})
	}
}

func TestObservedRefusalIsForwardedWithoutIdentity(t *testing.T) {
	observing(t, false, func(t *testing.T, w *world, addr string, outcomes func() []proxy.Outcome) {
		resp, body := ask(t, addr, "GET /accounts/2?access_token=x&a=1 HTTP/1.1\r\nHost: a\r\nX-Token-Id: 9\r\nx_token_account: 9\r\nApi-Token: "+w.secrets["account1"]+"\r\nAuthorization: Basic dTpw\r\n\r\n")
		if resp.StatusCode != 200 {
			t.Fatalf("%d %s", resp.StatusCode, body)
		}
		seen := w.upstream.last()
		for _, want := range []string{"access_token=x", w.secrets["account1"], "Basic dTpw"} {
			if !strings.Contains(seen, want) {
				t.Errorf("the upstream did not see %q as it was sent:\n%s", want, seen)
			}
		}
		if strings.Contains(strings.ToLower(seen), "x-token-") || strings.Contains(seen, "x_token_account") {
			t.Errorf("an identity was forwarded:\n%s", seen)
		}
		if got := outcomes(); len(got) != 1 || got[0] != proxy.Observed {
			t.Errorf("outcomes %v", got)
		}
	})
}

func TestObservedAllowanceKeepsItsCredentialUnlessToldOtherwise(t *testing.T) {
	for _, strip := range []bool{false, true} {
		observing(t, strip, func(t *testing.T, w *world, addr string, outcomes func() []proxy.Outcome) {
			if resp, body := ask(t, addr, "GET /accounts/1 HTTP/1.1\r\nHost: a\r\nApi-Token: "+w.secrets["account1"]+"\r\n\r\n"); resp.StatusCode != 200 {
				t.Fatalf("%d %s", resp.StatusCode, body)
			}
			seen := w.upstream.last()
			if kept := strings.Contains(seen, w.secrets["account1"]); kept == strip {
				t.Errorf("strip %v: credential kept %v", strip, kept)
			}
			if !strings.Contains(strings.ToLower(seen), "x-token-id: ") {
				t.Errorf("no identity:\n%s", seen)
			}
			if got := outcomes(); len(got) != 1 || got[0] != proxy.Allowed {
				t.Errorf("outcomes %v", got)
			}
		})
	}
}

func TestProtocolRefusalsAreRefusedWhileObserving(t *testing.T) {
	observing(t, false, func(t *testing.T, w *world, addr string, _ func() []proxy.Outcome) {
		for _, raw := range []string{
			"GET /accounts/../1 HTTP/1.1\r\nHost: a\r\n\r\n",
			"GET /accounts/1;x HTTP/1.1\r\nHost: a\r\nApi-Token: " + w.secrets["full"] + "\r\n\r\n",
			"TRACE /accounts/1 HTTP/1.1\r\nHost: a\r\n\r\n",
		} {
			if resp, _ := ask(t, addr, raw); resp.StatusCode != 400 && resp.StatusCode != 405 {
				t.Errorf("%q: %d", raw, resp.StatusCode)
			}
		}
		if n := w.upstream.count(); n != 0 {
			t.Errorf("%d were forwarded", n)
		}
	})
}

func TestObservingUsesNoLimitUp(t *testing.T) {
	for _, d := range doors {
		t.Run(d.name, func(t *testing.T) {
			w := newWorld(t, canon.Options{})
			w.rules.Default.ObserveUntil = time.Now().Add(time.Hour)
			addr := d.open(t, w)
			raw := "GET /echo/ HTTP/1.1\r\nHost: a\r\nApi-Token: " + w.secrets["limited"] + "\r\n\r\n"
			for range 3 {
				if resp, _ := ask(t, addr, raw); resp.StatusCode != 200 {
					t.Fatal(resp.StatusCode)
				}
			}
			enforced := *w.rules
			enforced.Default.ObserveUntil = time.Time{}
			w.guard.SetRules(&enforced)
			for i, want := range []int{200, 429} {
				if resp, _ := ask(t, addr, raw); resp.StatusCode != want {
					t.Fatalf("enforced request %d: %d, want %d", i, resp.StatusCode, want)
				}
			}
		})
	}
}

func TestObservingEndsByItself(t *testing.T) {
	for _, d := range doors {
		t.Run(d.name, func(t *testing.T) {
			w := newWorld(t, canon.Options{})
			until := time.Now().Add(time.Hour)
			w.rules.Default.ObserveUntil = until
			var mu sync.Mutex
			now := until.Add(-time.Millisecond)
			w.guard.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
			addr := d.open(t, w)
			raw := "GET /accounts/1 HTTP/1.1\r\nHost: a\r\n\r\n"
			if resp, _ := ask(t, addr, raw); resp.StatusCode != 200 {
				t.Fatal(resp.StatusCode)
			}
			mu.Lock()
			now = until
			mu.Unlock()
			if resp, _ := ask(t, addr, raw); resp.StatusCode != 401 {
				t.Fatalf("at the end: %d", resp.StatusCode)
			}
		})
	}
}

// safeBuffer can be written by a server and read by a test.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func TestRecordHoldsNoSecretAndCannotBeForged(t *testing.T) {
	for _, d := range doors {
		t.Run(d.name, func(t *testing.T) {
			w := newWorld(t, canon.Options{Credentials: []string{"authorization", "query:access_token"}})
			var out safeBuffer
			w.guard.Log = slog.New(slog.NewTextHandler(&out, nil))
			w.rules.Record = proxy.Recording{All: true}
			addr := d.open(t, w)
			ask(t, addr, "GET /echo/a%0db?access_token="+w.secrets["full"]+" HTTP/1.1\r\nHost: a\r\n\r\n")
			ask(t, addr, "GET /echo/"+strings.Repeat("x", 5000)+"?access_token="+w.secrets["full"]+" HTTP/1.1\r\nHost: a\r\n\r\n")
			ask(t, addr, "GET /accounts/2 HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer "+w.secrets["account1"]+"\r\n\r\n")
			for range 3 {
				<-w.noted
			}
			text := out.String()
			for name, secret := range w.secrets {
				if strings.Contains(text, secret) {
					t.Errorf("the log shows the secret of %s", name)
				}
			}
			lines := strings.Split(strings.TrimSpace(text), "\n")
			for _, line := range lines {
				if len(line) > 1200 || !strings.Contains(line, "msg=request ") {
					t.Errorf("record %q", line)
				}
			}
			if !strings.Contains(text, "reason=resource_not_granted") || !strings.Contains(text, "status=403") || !strings.Contains(text, "status=200") {
				t.Errorf("records:\n%s", text)
			}
		})
	}
}

// TestRecordOfALongPathHoldsNoPartOfASecret puts a secret of the path where the
// record cuts that.
func TestRecordOfALongPathHoldsNoPartOfASecret(t *testing.T) {
	w := newWorld(t, canon.Options{})
	var out safeBuffer
	w.guard.Log = slog.New(slog.NewTextHandler(&out, nil))
	w.rules.Record = proxy.Recording{All: true}
	addr := openWire(t, w)
	secret := w.secrets["full"]
	for legible := range len(secret) {
		path := "/echo/" + strings.Repeat("x", 256-len("/echo//")-legible) + "/" + secret
		ask(t, addr, "GET "+path+" HTTP/1.1\r\nHost: a\r\n\r\n")
		<-w.noted
	}
	if text := out.String(); strings.Contains(text, secret[:len("tw_")+5]) || strings.Count(text, "msg=request ") != len(secret) {
		t.Errorf("the log holds a part of the secret:\n%s", text)
	}
}

func TestOnlyDeniedRequestsAreRecordedIfAskedFor(t *testing.T) {
	w := newWorld(t, canon.Options{})
	var out safeBuffer
	w.guard.Log = slog.New(slog.NewTextHandler(&out, nil))
	w.rules.Record = proxy.Recording{Denied: true, Every: 2}
	addr := openWire(t, w)
	for range 4 {
		ask(t, addr, "GET /accounts/1 HTTP/1.1\r\nHost: a\r\n\r\n")
		ask(t, addr, "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
	}
	for range 8 {
		<-w.noted
	}
	if n := strings.Count(out.String(), "msg=request "); n != 2 || strings.Contains(out.String(), "outcome=allowed") {
		t.Errorf("%d records of 4 refusals, one in 2:\n%s", n, out.String())
	}
}

// TestFailingUpstreamDoesNotHideAStoreThatCannotBeRead: both are logged once a
// second, and an upstream that is down fails every request.
func TestFailingUpstreamDoesNotHideAStoreThatCannotBeRead(t *testing.T) {
	w := newWorld(t, canon.Options{})
	w.rules.Default.Upstreams = upstreamsAt(t, nil, refusing(t))
	var out safeBuffer
	w.guard.Log = slog.New(slog.NewTextHandler(&out, nil))
	addr := openWire(t, w)
	if resp, _ := ask(t, addr, request("GET", "/echo/", w.secrets["full"], "")); resp.StatusCode != 502 {
		t.Fatalf("got %d of an upstream that is down", resp.StatusCode)
	}
	w.broken.Store(true)
	if resp, _ := ask(t, addr, request("GET", "/echo/", w.secrets["full"], "")); resp.StatusCode != 503 {
		t.Fatalf("got %d of a store that cannot be read", resp.StatusCode)
	}
	for _, want := range []string{"the upstream did not answer", "tokens or limits cannot be read"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the log does not say that %s:\n%s", want, out.String())
		}
	}
}

// TestReasonIsNamedWhenTheStoreCannotBeRead: its number says nothing to an operator.
func TestReasonIsNamedWhenTheStoreCannotBeRead(t *testing.T) {
	w := newWorld(t, canon.Options{})
	var out safeBuffer
	w.guard.Log = slog.New(slog.NewJSONHandler(&out, nil))
	w.broken.Store(true)
	ask(t, openWire(t, w), "GET /accounts/1 HTTP/1.1\r\nHost: a\r\nApi-Token: "+w.secrets["full"]+"\r\n\r\n")
	<-w.noted
	if !strings.Contains(out.String(), `"reason":"store_unavailable"`) {
		t.Errorf("the log says %s", out.String())
	}
}
