package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tokenward/enforce"
	"tokenward/enforce/canon"
	"tokenward/proxy"
	"tokenward/proxy/http1"
	"tokenward/proxy/identity"
	"tokenward/tokenstore"
	"tokenward/tokenstore/boltstore"
)

// world is everything around a door: a real store, a real upstream that notes
// what it saw, and the guard.
type world struct {
	guard    *proxy.Guard
	rules    *proxy.Ruleset // put in force when the door is opened
	store    *boltstore.Store
	cache    *tokenstore.Cache
	upstream *upstream
	secrets  map[string]string        // by the name of the token
	broken   atomic.Bool              // the store does not answer
	lose     func(*tokenstore.Change) // makes less of a change before it is told; nil: all is told

	mu       sync.Mutex
	observed []enforce.Reason
	failed   []string
	refused  []string
	noted    chan struct{} // one for each of the above
}

// upstream is a raw socket, so that what arrived is known to the byte.
type upstream struct {
	url  *url.URL
	mu   sync.Mutex
	seen []string // requests with their bodies as they came, one each
}

func newUpstream(t testing.TB) *upstream {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	u := &upstream{url: &url.URL{Scheme: "http", Host: ln.Addr().String()}}
	go func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			go u.serve(nc)
		}
	}()
	return u
}

// serve answers each request by its path: /die/… breaks off, all else is 200.
func (u *upstream) serve(nc net.Conn) {
	defer nc.Close()
	r := bufio.NewReader(nc)
	for {
		var raw bytes.Buffer
		req, err := http.ReadRequest(bufio.NewReader(io.TeeReader(oneByOne{r}, &raw)))
		if err != nil {
			return
		}
		body, _ := io.ReadAll(req.Body)
		u.mu.Lock()
		u.seen = append(u.seen, raw.String())
		u.mu.Unlock()
		if strings.HasPrefix(req.URL.Path, "/die") {
			return
		}
		fmt.Fprintf(nc, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\nX-Upstream: yes\r\n\r\nhello %s", 6+len(body), body)
	}
}

// oneByOne reads a byte at a time, so that the reader above takes no more than
// it needs.
type oneByOne struct{ r io.Reader }

func (o oneByOne) Read(p []byte) (int, error) { return o.r.Read(p[:min(1, len(p))]) }

func (u *upstream) last() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.seen) == 0 {
		return ""
	}
	return u.seen[len(u.seen)-1]
}

func (u *upstream) count() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.seen)
}

// Find implements enforce.Finder over the real cache, and can be broken.
type breakable struct {
	*tokenstore.Cache
	w *world
}

func (b breakable) Find(ctx context.Context, text []byte) (tokenstore.Match, error) {
	if b.w.broken.Load() {
		return tokenstore.Match{}, errors.New("disk gone")
	}
	return b.Cache.Find(ctx, text)
}

var routes = []enforce.RouteSpec{
	{Match: "GET /healthz", Public: true},
	{Match: "* /die/{x...}", RestrictedTokens: true},
	{Match: "* /echo/{x...}", RestrictedTokens: true},
	{Match: "GET,HEAD /accounts/{account}", Scopes: []string{"accounts"}, Resources: []string{"account:{account}"}},
	{Match: "POST /accounts/{account}", Scopes: []string{"accounts"}, Resources: []string{"account:{account}"}},
	{Match: "GET /accounts/{account}/live", Resources: []string{"account:{account}"}},
}

func newWorld(t testing.TB, opts canon.Options) *world {
	t.Helper()
	w := &world{upstream: newUpstream(t), secrets: make(map[string]string), noted: make(chan struct{}, 1000)}
	var cache *tokenstore.Cache
	store, err := boltstore.Create(boltstore.Options{Path: filepath.Join(t.TempDir(), "t.db"), OnChange: func(c tokenstore.Change) {
		if w.lose != nil {
			w.lose(&c)
		}
		cache.Changed(c)
		w.guard.Streams.Changed(c)
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	w.store = store
	if cache, err = tokenstore.NewCache(store, nil, tokenstore.NewFormats("tw"), 100); err != nil {
		t.Fatal(err)
	}
	w.cache = cache
	w.guard = proxy.NewGuard(enforce.NewEngine(breakable{cache, w}, 0), slog.New(slog.DiscardHandler), time.Now)
	w.guard.Failed = func(code string) { w.note(func() { w.failed = append(w.failed, code) }) }
	w.guard.Refused = func(code string) { w.note(func() { w.refused = append(w.refused, code) }) }
	headers, err := identity.New(identity.DefaultNames())
	if err != nil {
		t.Fatal(err)
	}
	opts.Sets = append(opts.Sets, headers.Names()...)
	rules, err := canon.NewRules(opts)
	if err != nil {
		t.Fatal(err)
	}
	policy, faults := enforce.Compile(routes, enforce.Options{})
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	w.rules = &proxy.Ruleset{Canon: rules, Policy: policy, Identity: headers, Observe: func(_ int, r enforce.Reason, _ proxy.Outcome, _ time.Duration) {
		w.note(func() { w.observed = append(w.observed, r) })
	}, Default: proxy.RouteOptions{ResponseHeader: patience}}
	w.mint(t, "full", nil)
	w.mint(t, "expired", func(t *tokenstore.Token) { t.Expiry = tokenstore.EndsAt(time.Now().Add(-time.Hour)) })
	w.mint(t, "elsewhere", func(t *tokenstore.Token) {
		t.Sources = tokenstore.Sources{Allow: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}}
	})
	w.mint(t, "scopeless", func(t *tokenstore.Token) { t.Scopes = []string{"cards"} })
	w.mint(t, "account1", func(t *tokenstore.Token) {
		t.Resources = tokenstore.Resources{Grants: []tokenstore.Grant{{Type: "account", ID: "1", Level: tokenstore.LevelRead}}}
	})
	w.mint(t, "limited", func(t *tokenstore.Token) { t.Limits = tokenstore.Limits{Rate: 0.001, Burst: 1} })
	return w
}

func (w *world) note(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
	w.noted <- struct{}{}
}

// counts are what was told to the guard's observers.
type counts struct{ failed, refused []string }

func (w *world) counted() counts {
	w.mu.Lock()
	defer w.mu.Unlock()
	return counts{slices.Clone(w.failed), slices.Clone(w.refused)}
}

// mint stores a token called name and keeps its secret.
func (w *world) mint(t testing.TB, name string, change func(*tokenstore.Token)) {
	t.Helper()
	secret := tokenstore.NewSecret("tw").Reveal()
	w.secrets[name] = secret
	now := time.Now().UTC().Truncate(time.Millisecond)
	err := w.store.Change(t.Context(), func(tx tokenstore.Tx) error {
		id, err := tx.NewID()
		if err != nil {
			return err
		}
		tok := &tokenstore.Token{
			ID: id, Account: 42, Owner: 1, Name: name, Scopes: []string{"*"}, Resources: tokenstore.Resources{All: true},
			Sources: tokenstore.Sources{Any: true}, Expiry: tokenstore.Never(), State: tokenstore.StateActive, CreatedAt: now, UpdatedAt: now,
			Secrets: []tokenstore.SecretRecord{{Digest: sha256.Sum256([]byte(secret)), Scheme: tokenstore.SchemeNative, CreatedAt: now, Ends: tokenstore.Never()}},
		}
		if change != nil {
			change(tok)
		}
		tx.Emit([]byte("{}"))
		return tx.Put(tok)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// door is one way in. It returns the address that takes raw HTTP/1.1, or with a
// scheme h2 or h2c before it, frames.
type door struct {
	name string
	open func(t testing.TB, w *world) string
}

var doors = []door{
	{"wire", openWire},
	{"net/http", openHTTP},
	{"h2", openH2},
	{"h2c", openH2C},
}

// enforceRules puts the world's rules in force, with its upstream where they name none.
func (w *world) enforceRules(t testing.TB) {
	t.Helper()
	if w.rules == nil {
		return
	}
	if w.rules.Default.Upstreams == nil {
		w.rules.Default.Upstreams = upstreamsAt(t, nil, w.upstream.url)
	}
	w.guard.SetRules(w.rules)
}

// upstreamsAt are upstreams whose idle connections are closed at the end.
func upstreamsAt(t testing.TB, config *proxy.ClientTLS, urls ...*url.URL) *proxy.Upstreams {
	t.Helper()
	var list []*proxy.Upstream
	for _, u := range urls {
		one, err := proxy.NewUpstream(u, config, proxy.Timeouts{Dial: time.Second, Idle: 5 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(one.CloseIdle)
		list = append(list, one)
	}
	us, err := proxy.NewUpstreams(list...)
	if err != nil {
		t.Fatal(err)
	}
	return us
}

func openWire(t testing.TB, w *world) string {
	t.Helper()
	w.enforceRules(t)
	wire := proxy.NewWire(w.guard)
	s := &http1.Server{Handler: wire.Serve, Refused: wire.Refuse}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = s.Serve(ln) }()
	t.Cleanup(func() { _ = s.Close() })
	return ln.Addr().String()
}

func openHTTP(t testing.TB, w *world) string {
	t.Helper()
	w.enforceRules(t)
	s := httptest.NewUnstartedServer(proxy.NewHTTP(w.guard))
	s.Config.DisableGeneralOptionsHandler = true
	s.Start()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// ask sends raw bytes, or frames that say the same, and reads one answer.
func ask(t testing.TB, addr, raw string) (*http.Response, string) {
	t.Helper()
	if strings.Contains(addr, "://") {
		return askH2(t, addr, raw)
	}
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(nc, raw); err != nil {
		t.Fatal(err)
	}
	method, _, _ := strings.Cut(raw, " ")
	resp, err := http.ReadResponse(bufio.NewReader(nc), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("read answer to %q: %v", raw, err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("read body of answer to %q: %v", raw, err)
	}
	return resp, string(body)
}

// eachDoor runs f once for each way in.
func eachDoor(t *testing.T, opts canon.Options, f func(t *testing.T, w *world, addr string)) {
	t.Helper()
	for _, d := range doors {
		t.Run(d.name, func(t *testing.T) {
			w := newWorld(t, opts)
			f(t, w, d.open(t, w))
		})
	}
}

// TestEveryRowOfTheAnswerTable walks what clients are told through every door.
func TestEveryRowOfTheAnswerTable(t *testing.T) {
	get := func(target string, fields ...string) string {
		return "GET " + target + " HTTP/1.1\r\nHost: api.example\r\n" + strings.Join(append(fields, ""), "\r\n") + "\r\n"
	}
	for _, c := range []struct {
		name      string
		raw       func(secret map[string]string) string
		status    int
		code      string
		challenge string
		before    func(w *world)
		http1     bool // it cannot be said in HTTP/2
	}{
		{name: "no credential", raw: func(map[string]string) string { return get("/accounts/1") },
			status: 401, code: "missing_token", challenge: `Bearer realm="tokenward"`},
		{name: "no credential and no route", raw: func(map[string]string) string { return get("/nothing") },
			status: 401, code: "missing_token", challenge: `Bearer realm="tokenward"`},
		{name: "no credential for all of the server", raw: func(map[string]string) string { return "OPTIONS * HTTP/1.1\r\nHost: api.example\r\n\r\n" },
			status: 401, code: "missing_token", challenge: `Bearer realm="tokenward"`},
		{name: "no route for all of the server", raw: func(s map[string]string) string {
			return "OPTIONS * HTTP/1.1\r\nHost: api.example\r\nApi-Token: " + s["full"] + "\r\n\r\n"
		}, status: 403, code: "no_route"},
		{name: "malformed", raw: func(map[string]string) string { return get("/accounts/1", "Authorization: Bearer tw_x") },
			status: 401, code: "invalid_token", challenge: `Bearer realm="tokenward", error="invalid_token"`},
		{name: "unknown", raw: func(map[string]string) string {
			return get("/accounts/1", "Api-Token: "+tokenstore.NewSecret("tw").Reveal())
		}, status: 401, code: "invalid_token", challenge: `Bearer realm="tokenward", error="invalid_token"`},
		{name: "expired", raw: func(s map[string]string) string { return get("/accounts/1", "Authorization: Bearer "+s["expired"]) },
			status: 401, code: "invalid_token", challenge: `Bearer realm="tokenward", error="invalid_token"`},
		{name: "two credentials that differ", raw: func(s map[string]string) string {
			return get("/accounts/1", "Authorization: Bearer "+s["full"], "Api-Token: "+s["account1"])
		}, status: 400, code: "ambiguous_credential"},
		{name: "one header twice", raw: func(s map[string]string) string {
			return get("/accounts/1", "Api-Token: "+s["full"], "Api-Token: "+s["full"])
		}, status: 400, code: "ambiguous_credential"},
		{name: "source", raw: func(s map[string]string) string { return get("/accounts/1", "Api-Token: "+s["elsewhere"]) },
			status: 403, code: "source_not_allowed"},
		{name: "spoofed source", raw: func(s map[string]string) string {
			return get("/accounts/1", "Api-Token: "+s["elsewhere"], "X-Forwarded-For: 198.51.100.1")
		}, status: 403, code: "source_not_allowed"},
		{name: "scope", raw: func(s map[string]string) string { return get("/accounts/1", "Api-Token: "+s["scopeless"]) },
			status: 403, code: "insufficient_scope", challenge: `Bearer realm="tokenward", error="insufficient_scope", scope="accounts"`},
		{name: "resource", raw: func(s map[string]string) string { return get("/accounts/2", "Api-Token: "+s["account1"]) },
			status: 403, code: "resource_not_granted"},
		{name: "level", raw: func(s map[string]string) string {
			return "POST /accounts/1 HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nApi-Token: " + s["account1"] + "\r\n\r\n"
		}, status: 403, code: "resource_not_granted"},
		{name: "upgrade needs write", raw: func(s map[string]string) string {
			return get("/accounts/1/live", "Api-Token: "+s["account1"], "Connection: upgrade", "Upgrade: websocket")
		}, status: 403, code: "resource_not_granted", http1: true},
		{name: "no route", raw: func(s map[string]string) string { return get("/nothing", "Api-Token: "+s["full"]) },
			status: 403, code: "no_route"},
		{name: "rate", raw: func(s map[string]string) string { return get("/accounts/1", "Api-Token: "+s["limited"]) },
			status: 429, code: "rate_limited", before: func(w *world) {}},
		{name: "store", raw: func(s map[string]string) string { return get("/accounts/1", "Api-Token: "+s["full"]) },
			status: 503, code: "store_unavailable", before: func(w *world) { w.broken.Store(true) }},
		{name: "bad path", raw: func(s map[string]string) string { return get("/accounts/../admin", "Api-Token: "+s["full"]) },
			status: 400, code: "bad_request"},
		{name: "encoded slash", raw: func(s map[string]string) string { return get("/accounts/1%2f2", "Api-Token: "+s["full"]) },
			status: 400, code: "bad_request"},
		{name: "method in the query", raw: func(s map[string]string) string { return get("/accounts/1?_method=POST", "Api-Token: "+s["account1"]) },
			status: 400, code: "bad_request"},
		{name: "trace", raw: func(s map[string]string) string {
			return "TRACE /accounts/1 HTTP/1.1\r\nHost: a\r\nApi-Token: " + s["full"] + "\r\n\r\n"
		}, status: 405, code: "method_not_allowed"},
		{name: "long target", raw: func(s map[string]string) string {
			return get("/"+strings.Repeat("a", 9000), "Api-Token: "+s["full"])
		}, status: 414, code: "uri_too_long"},
		{name: "many fields", raw: func(s map[string]string) string {
			return get("/accounts/1", "Api-Token: "+s["full"]+strings.Repeat("\r\nX-A: b", 101))
		}, status: 431, code: "header_fields_too_large"},
		{name: "unknown method", raw: func(s map[string]string) string {
			return "get /accounts/1 HTTP/1.1\r\nHost: a\r\nApi-Token: " + s["full"] + "\r\n\r\n"
		}, status: 501, code: "not_implemented"},
		{name: "upstream broke", raw: func(s map[string]string) string {
			return "POST /die/now HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nApi-Token: " + s["full"] + "\r\n\r\n"
		}, status: 502, code: "upstream_broke"},
	} {
		t.Run(c.name, func(t *testing.T) {
			eachDoor(t, canon.Options{}, func(t *testing.T, w *world, addr string) {
				if c.http1 && strings.HasPrefix(addr, "h2") {
					t.Skip("HTTP/2 has no such request")
				}
				if c.status == 429 {
					if resp, _ := ask(t, addr, c.raw(w.secrets)); resp.StatusCode != 200 {
						t.Fatalf("the first request: %d", resp.StatusCode)
					}
				}
				if c.before != nil {
					c.before(w)
				}
				before := w.upstream.count()
				resp, body := ask(t, addr, c.raw(w.secrets))
				if resp.StatusCode != c.status {
					t.Fatalf("status %d, want %d: %s", resp.StatusCode, c.status, body)
				}
				var problem struct {
					Status              int
					Code, Detail, Title string
					RequestID           string `json:"request_id"`
				}
				if err := json.Unmarshal([]byte(body), &problem); err != nil {
					t.Fatalf("body %q: %v", body, err)
				}
				if problem.Code != c.code || problem.Status != c.status || problem.Detail == "" || problem.Title == "" {
					t.Errorf("body %s, want code %s", body, c.code)
				}
				if ct := resp.Header.Get("Content-Type"); ct != "application/problem+json" {
					t.Errorf("content type %q", ct)
				}
				if id := resp.Header.Get("X-Request-Id"); id == "" || id != problem.RequestID {
					t.Errorf("request id %q in the header, %q in the body", id, problem.RequestID)
				}
				if got := resp.Header.Get("WWW-Authenticate"); got != c.challenge {
					t.Errorf("challenge %q, want %q", got, c.challenge)
				}
				if retry := resp.Header.Get("Retry-After"); (c.status == 429 || c.status == 503) != (retry != "") {
					t.Errorf("Retry-After %q with status %d", retry, c.status)
				}
				if c.status != 502 && w.upstream.count() != before {
					t.Errorf("the upstream saw a refused request: %q", w.upstream.last())
				}
				for name, secret := range w.secrets {
					if strings.Contains(body+fmt.Sprint(resp.Header), secret) {
						t.Errorf("the answer shows the secret of %s", name)
					}
				}
			})
		})
	}
}

// TestUnknownExpectationIsRefused: net/http's own HTTP/1.1 says so without a body.
func TestUnknownExpectationIsRefused(t *testing.T) {
	eachDoor(t, canon.Options{}, func(t *testing.T, w *world, addr string) {
		for expectation, status := range map[string]int{"200-maybe": 417, "100-Continue": 200} {
			resp, body := ask(t, addr, "POST /accounts/1 HTTP/1.1\r\nHost: api.example\r\nApi-Token: "+w.secrets["full"]+"\r\nContent-Length: 0\r\nExpect: "+expectation+"\r\n\r\n")
			if resp.StatusCode != status {
				t.Errorf("Expect: %q: %d %s, want %d", expectation, resp.StatusCode, body, status)
			}
		}
	})
}

func TestUpstreamThatIsDownIsABadGateway(t *testing.T) {
	for _, d := range doors {
		t.Run(d.name, func(t *testing.T) {
			w := newWorld(t, canon.Options{})
			w.upstream.url = refusing(t)
			resp, body := ask(t, d.open(t, w), "GET /echo/ HTTP/1.1\r\nHost: a\r\nApi-Token: "+w.secrets["full"]+"\r\n\r\n")
			if resp.StatusCode != 502 || !strings.Contains(body, `"code":"upstream_refused"`) || !slices.Contains(w.counted().failed, "upstream_refused") {
				t.Fatalf("%d %s, counted %v", resp.StatusCode, body, w.counted().failed)
			}
		})
	}
}

func TestSilentUpstreamIsAGatewayTimeout(t *testing.T) {
	for _, d := range doors {
		t.Run(d.name, func(t *testing.T) {
			w := newWorld(t, canon.Options{})
			ln, err := net.Listen("tcp", "127.0.0.1:0") // accepts in the kernel, never answers
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = ln.Close() })
			w.upstream.url = &url.URL{Scheme: "http", Host: ln.Addr().String()}
			w.rules.Default.ResponseHeader = 100 * time.Millisecond
			resp, body := ask(t, d.open(t, w), "GET /echo/ HTTP/1.1\r\nHost: a\r\nApi-Token: "+w.secrets["full"]+"\r\n\r\n")
			if resp.StatusCode != 504 || !strings.Contains(body, `"code":"upstream_timeout"`) {
				t.Fatalf("%d %s", resp.StatusCode, body)
			}
		})
	}
}

// TestUpstreamSeesWhatWasJudged looks at the bytes that arrive.
func TestUpstreamSeesWhatWasJudged(t *testing.T) {
	eachDoor(t, canon.Options{Credentials: []string{"authorization", "api-token", "query:access_token"}}, func(t *testing.T, w *world, addr string) {
		resp, body := ask(t, addr, strings.Join([]string{
			"POST /echo/%61%7e/x?a=1&access_token=" + w.secrets["full"] + "&b=%41 HTTP/1.1",
			"Host: API.example", "Content-Length: 4",
			"Authorization: Bearer " + w.secrets["full"],
			"X-Token-Id: 1", "x_token_account: 0", "X-TOKEN.SCOPES: *",
			"X-Forwarded-For: 10.0.0.1", "Forwarded: for=10.0.0.1", "X-Real-IP: 10.0.0.1", "X-Forwarded-Host: evil", "X-Original-URL: /admin",
			"X-HTTP-Method-Override: DELETE", "X-Request-Id: mine", "Proxy-Authorization: Basic x",
			"Keep-Alive: timeout=5", "HTTP2-Settings: AAA", "Accept: text/*", "X-Kept: yes", "", "body",
		}, "\r\n"))
		if resp.StatusCode != 200 || body != "hello body" || resp.Header.Get("X-Upstream") != "yes" {
			t.Fatalf("%d %q", resp.StatusCode, body)
		}
		proto := "http"
		if strings.HasPrefix(addr, "h2://") {
			proto = "https"
		}
		seen := w.upstream.last()
		if line, _, _ := strings.Cut(seen, "\r\n"); line != "POST /echo/a~/x?a=1&b=%41 HTTP/1.1" {
			t.Errorf("request line %q", line)
		}
		req, err := http.ReadRequest(bufio.NewReader(strings.NewReader(seen)))
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string][]string{
			"X-Token-Id": {"1"}, "X-Token-Account": {"42"}, "X-Token-Owner": {"1"}, "X-Token-Name": {"full"}, "X-Token-Scopes": {"*"}, "X-Token-Resources": {"all"},
			"X-Forwarded-For": {"127.0.0.1"}, "X-Forwarded-Proto": {proto}, "X-Forwarded-Host": {"api.example"}, "X-Request-Id": {resp.Header.Get("X-Request-Id")},
			"Authorization": nil, "X_token_account": nil, "X-Token.scopes": nil, "Forwarded": nil, "X-Real-Ip": nil, "X-Original-Url": nil,
			"X-Http-Method-Override": nil, "Proxy-Authorization": nil, "Keep-Alive": nil, "Http2-Settings": nil, "Accept": {"text/*"}, "X-Kept": {"yes"}, "User-Agent": nil,
		} {
			if got := req.Header[name]; !slices.Equal(got, want) {
				t.Errorf("%s arrived as %q, want %q", name, got, want)
			}
		}
		if req.Host != "api.example" {
			t.Errorf("Host %q", req.Host)
		}
		if strings.Contains(seen, w.secrets["full"]) {
			t.Errorf("the upstream saw the secret:\n%s", seen)
		}
	})
}

func TestClientCannotStripIdentityHeader(t *testing.T) {
	eachDoor(t, canon.Options{}, func(t *testing.T, w *world, addr string) {
		for _, named := range []string{"X-Token-Id", "x_token_scopes", "X-Forwarded-For", "close, X-Token-Account", "X-Request-Id", "Authorization"} {
			before := w.upstream.count()
			resp, body := ask(t, addr, "GET /echo/ HTTP/1.1\r\nHost: a\r\nX-Token-Id: 9\r\nAuthorization: Bearer "+w.secrets["full"]+"\r\nConnection: "+named+"\r\n\r\n")
			if resp.StatusCode != 400 || w.upstream.count() != before {
				t.Errorf("Connection: %s was answered with %d %s", named, resp.StatusCode, body)
			}
		}
	})
}

func TestPublicRouteForwardsNoCredentialAndNoIdentity(t *testing.T) {
	eachDoor(t, canon.Options{}, func(t *testing.T, w *world, addr string) {
		resp, _ := ask(t, addr, "GET /healthz HTTP/1.1\r\nHost: a\r\nX-Token-Id: 9\r\nApi-Token: x\r\nAuthorization: Bearer "+w.secrets["full"]+"\r\n\r\n")
		if resp.StatusCode != 200 {
			t.Fatal(resp.StatusCode)
		}
		if seen := strings.ToLower(w.upstream.last()); strings.Contains(seen, "x-token") || strings.Contains(seen, "authorization") || strings.Contains(seen, "api-token") {
			t.Errorf("arrived: %s", seen)
		}
	})
}

func TestRevokedTokenIsDeadOnTheNextRequest(t *testing.T) {
	eachDoor(t, canon.Options{}, func(t *testing.T, w *world, addr string) {
		raw := "GET /echo/ HTTP/1.1\r\nHost: a\r\nApi-Token: " + w.secrets["full"] + "\r\n\r\n"
		if resp, _ := ask(t, addr, raw); resp.StatusCode != 200 {
			t.Fatal(resp.StatusCode)
		}
		if err := w.store.Change(t.Context(), func(tx tokenstore.Tx) error {
			tok, err := tx.Token(1)
			if err != nil {
				return err
			}
			tok.State = tokenstore.StateRevoked
			tok.EndedAt = time.Now()
			tx.Emit([]byte("{}"))
			return tx.Put(tok)
		}); err != nil {
			t.Fatal(err)
		}
		if resp, _ := ask(t, addr, raw); resp.StatusCode != 401 {
			t.Fatalf("after the revocation: %d", resp.StatusCode)
		}
	})
}

func TestMountTakesItsPathsBeforeRoutes(t *testing.T) {
	for _, d := range doors {
		t.Run(d.name, func(t *testing.T) {
			w := newWorld(t, canon.Options{})
			w.guard.Mounts = []proxy.Mount{proxy.PrefixMount(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				fmt.Fprintf(rw, "mounted %s %s", r.Method, r.URL.Path)
			}), "/v1", "/users/{user}/api-tokens")}
			addr := d.open(t, w)
			for target, mounted := range map[string]bool{
				"/v1": true, "/v1/tokens": true, "/%76%31/tokens": true, "/users/7/api-tokens": true, "/users/7/api-tokens/1": true,
				"/v12": false, "/v1x/tokens": false, "/users/api-tokens": false, "/users/7/api-token": false, "/x/v1": false,
			} {
				for _, method := range []string{"GET", "DELETE", "PATCH"} {
					resp, body := ask(t, addr, method+" "+target+" HTTP/1.1\r\nHost: a\r\n\r\n")
					if got := resp.StatusCode == 200 && strings.HasPrefix(body, "mounted "+method); got != mounted {
						t.Errorf("%s %s: mounted %v, want %v (%d %s)", method, target, got, mounted, resp.StatusCode, body)
					}
				}
			}
			if n := w.upstream.count(); n != 0 {
				t.Errorf("%d requests were forwarded", n)
			}
		})
	}
}

func TestGuardWithoutRulesRefuses(t *testing.T) {
	for _, d := range doors {
		t.Run(d.name, func(t *testing.T) {
			w := newWorld(t, canon.Options{})
			w.guard, w.rules = proxy.NewGuard(w.guard.Engine, w.guard.Log, time.Now), nil
			resp, body := ask(t, d.open(t, w), "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
			if resp.StatusCode != 503 || !strings.Contains(body, "overloaded") {
				t.Fatalf("%d %s", resp.StatusCode, body)
			}
		})
	}
}

func TestEachJudgedRequestIsObservedOnce(t *testing.T) {
	eachDoor(t, canon.Options{}, func(t *testing.T, w *world, addr string) {
		for _, request := range []string{
			"GET /echo/ HTTP/1.1\r\nHost: a\r\nApi-Token: " + w.secrets["full"] + "\r\n\r\n",
			"GET /echo/ HTTP/1.1\r\nHost: a\r\n\r\n",
			"GET /echo/../ HTTP/1.1\r\nHost: a\r\n\r\n",
		} {
			ask(t, addr, request)
			<-w.noted // the door leaves after the answer's last byte
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if want := []enforce.Reason{enforce.Allowed, enforce.MissingToken}; !slices.Equal(w.observed, want) {
			t.Errorf("observed %v, want %v", w.observed, want)
		}
		if want := []string{"bad_request"}; !slices.Equal(w.refused, want) {
			t.Errorf("refused %v, want %v", w.refused, want)
		}
	})
}

// TestAnswerBearsOneRequestID: that of our log, whatever the upstream says.
func TestAnswerBearsOneRequestID(t *testing.T) {
	upstream := urlOf(t, startServer(t, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header()["x-request-id"] = []string{"theirs", "again"}
	})))
	for _, d := range doors {
		t.Run(d.name, func(t *testing.T) {
			w := newWorld(t, canon.Options{})
			w.rules.Default.Upstreams = upstreamsAt(t, nil, upstream)
			addr := d.open(t, w)
			corsWorld(t, w)
			for _, path := range []string{"/accounts/1", "/echo/"} { // with CORS and without
				resp, _ := ask(t, addr, "GET "+path+" HTTP/1.1\r\nHost: a\r\nApi-Token: "+w.secrets["full"]+"\r\n\r\n")
				if ids := resp.Header.Values("X-Request-Id"); resp.StatusCode != 200 || len(ids) != 1 || len(ids[0]) != 26 {
					t.Errorf("%s: %d with the ids %q", path, resp.StatusCode, ids)
				}
			}
		})
	}
}
