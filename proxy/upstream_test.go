package proxy_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"tokenward/enforce/canon"
	"tokenward/proxy"
)

// urlOf parses a URL of the test's own.
func urlOf(t testing.TB, raw string) *url.URL {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// refusing is an address at which nobody listens. It is that of a connection's own end,
// so that no listener of the test can get its port meanwhile.
func refusing(t testing.TB) *url.URL {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	nc, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	return &url.URL{Scheme: "http", Host: nc.LocalAddr().String()}
}

// breaking is an upstream that reads a request and hangs up.
func breaking(t testing.TB) *url.URL {
	t.Helper()
	return talking(t, func(nc net.Conn) {
		_, _ = http.ReadRequest(bufio.NewReader(nc))
	})
}

// talking is an upstream that does as it is told with each connection.
func talking(t testing.TB, do func(net.Conn)) *url.URL {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer nc.Close()
				do(nc)
			}()
		}
	}()
	return &url.URL{Scheme: "http", Host: ln.Addr().String()}
}

func request(method, target, secret, body string, fields ...string) string {
	return method + " " + target + " HTTP/1.1\r\nHost: api.example\r\nApi-Token: " + secret + "\r\n" +
		strings.Join(append(fields, ""), "\r\n") + fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(body), body)
}

// TestFailover: what reached nobody goes to the next upstream, and nothing twice.
func TestFailover(t *testing.T) {
	for _, c := range []struct {
		name         string
		first        func(testing.TB) *url.URL
		method, body string
		status       int
	}{
		{"refused, read", refusing, "GET", "", 200},
		{"refused, write", refusing, "POST", "abc", 200},
		{"broke, read", breaking, "GET", "", 200},
		{"broke, write", breaking, "POST", "abc", 502},
		{"broke, write without a body", breaking, "POST", "", 502},
		{"broke, write that is idempotent", breaking, "DELETE", "", 502},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, d := range doors {
				t.Run(d.name, func(t *testing.T) {
					w := newWorld(t, canon.Options{})
					w.rules.Default.Upstreams = upstreamsAt(t, nil, c.first(t), w.upstream.url)
					resp, body := ask(t, d.open(t, w), request(c.method, "/echo/", w.secrets["full"], c.body))
					if resp.StatusCode != c.status || c.status == 200 && body != "hello "+c.body {
						t.Fatalf("%d %q", resp.StatusCode, body)
					}
					w.mu.Lock()
					defer w.mu.Unlock()
					if want := map[bool]string{true: "failed_over", false: "upstream_broke"}[c.status == 200]; !slices.Equal(w.failed, []string{want}) {
						t.Errorf("counted %v", w.failed)
					}
				})
			}
		})
	}
}

// TestRequestThatActsIsNotRepeated: on a connection that has served before, and breaks
// when it has read the request, also if the client says that it may be.
func TestRequestThatActsIsNotRepeated(t *testing.T) {
	for _, d := range doors {
		for _, method := range []string{"POST", "DELETE"} {
			t.Run(d.name+" "+method, func(t *testing.T) {
				var acted, named atomic.Int32
				w := newWorld(t, canon.Options{})
				w.rules.Default.Upstreams = upstreamsAt(t, nil, talking(t, func(nc net.Conn) {
					br := bufio.NewReader(nc)
					for {
						r, err := http.ReadRequest(br)
						if err != nil {
							return
						}
						if r.Header.Get("Idempotency-Key") != "" {
							acted.Add(1)
							named.Add(int32(len(r.Header["X-Idempotency-Key"])))
							return
						}
						fmt.Fprint(nc, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
					}
				}))
				addr := d.open(t, w)
				if resp, body := ask(t, addr, request("GET", "/echo/", w.secrets["full"], "")); resp.StatusCode != 200 {
					t.Fatal(resp.StatusCode, body)
				}
				resp, _ := ask(t, addr, request(method, "/echo/", w.secrets["full"], "", "Idempotency-Key: k", "X-Idempotency-Key: k"))
				if n := acted.Load(); resp.StatusCode != 502 || n != 1 || named.Load() != n {
					t.Errorf("%d, and the upstream got it %d times (%d with all fields), want once", resp.StatusCode, n, named.Load())
				}
			})
		}
	}
}

// TestUpstreamThatKeepsFailingIsLeftOut: after three failures in a row it is not
// asked any more, and an answer brings it back.
func TestUpstreamThatKeepsFailingIsLeftOut(t *testing.T) {
	eachDoor(t, canon.Options{}, func(t *testing.T, w *world, addr string) {
		asked := make(chan struct{}, 100)
		first := talking(t, func(nc net.Conn) {
			if _, err := http.ReadRequest(bufio.NewReader(nc)); err == nil {
				asked <- struct{}{}
			}
		})
		us := upstreamsAt(t, nil, first, w.upstream.url)
		w.rules.Default.Upstreams = us
		w.guard.SetRules(w.rules)
		for range 10 {
			if resp, body := ask(t, addr, request("GET", "/echo/", w.secrets["full"], "")); resp.StatusCode != 200 {
				t.Fatal(resp.StatusCode, body)
			}
		}
		if n := len(asked); n != 3 {
			t.Errorf("asked %d times, want 3", n)
		}
	})
}

// TestAllUpstreamsDown: the one whose failure is the longest ago is tried still.
func TestAllUpstreamsDown(t *testing.T) {
	eachDoor(t, canon.Options{}, func(t *testing.T, w *world, addr string) {
		w.rules.Default.Upstreams = upstreamsAt(t, nil, refusing(t), refusing(t))
		w.guard.SetRules(w.rules)
		for range 8 {
			resp, body := ask(t, addr, request("GET", "/echo/", w.secrets["full"], ""))
			if resp.StatusCode != 502 || !strings.Contains(body, "upstream_refused") {
				t.Fatal(resp.StatusCode, body)
			}
		}
	})
}

func TestRouteHasItsOwnUpstream(t *testing.T) {
	eachDoor(t, canon.Options{}, func(t *testing.T, w *world, addr string) {
		own := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { fmt.Fprint(rw, "own "+r.Host) }))
		t.Cleanup(own.Close)
		w.rules.Routes = make([]proxy.RouteOptions, len(routes))
		w.rules.Routes[2].Upstreams = upstreamsAt(t, nil, urlOf(t, own.URL)) // /echo/
		w.guard.SetRules(w.rules)
		if _, body := ask(t, addr, request("GET", "/echo/", w.secrets["full"], "")); body != "own api.example" {
			t.Errorf("/echo/: %q", body)
		}
		if _, body := ask(t, addr, request("GET", "/accounts/1", w.secrets["full"], "")); body != "hello " {
			t.Errorf("/accounts/1: %q", body)
		}
	})
}

func TestRouteWithoutUpstreamIsUnavailable(t *testing.T) {
	eachDoor(t, canon.Options{}, func(t *testing.T, w *world, addr string) {
		w.rules.Default.Upstreams = nil
		w.guard.SetRules(w.rules)
		resp, body := ask(t, addr, request("GET", "/echo/", w.secrets["full"], ""))
		if resp.StatusCode != 503 || !strings.Contains(body, "overloaded") {
			t.Fatal(resp.StatusCode, body)
		}
	})
}

// protocolOf answers with the protocol that a request came by.
func protocolOf(rw http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	fmt.Fprintf(rw, "%s %s %s %s", r.Proto, r.Method, r.RequestURI, body)
}

// serveH2C is an upstream that speaks cleartext HTTP/2 and nothing else.
func serveH2C(t testing.TB, h http.Handler) *url.URL {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	return &url.URL{Scheme: "h2c", Host: s.Listener.Addr().String()}
}

// serveTLS is an upstream with a certificate of a.
func serveTLS(t testing.TB, a *authority, h http.Handler, auth tls.ClientAuthType, protocols ...string) *url.URL {
	t.Helper()
	certFile, keyFile := a.issue("upstream.example")
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(h)
	s.EnableHTTP2 = slices.Contains(protocols, "h2")
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: a.pool, ClientAuth: auth, NextProtos: protocols}
	s.StartTLS()
	t.Cleanup(s.Close)
	return &url.URL{Scheme: "https", Host: s.Listener.Addr().String()}
}

// TestProtocolOfTheUpstream walks client's protocol by upstream's.
func TestProtocolOfTheUpstream(t *testing.T) {
	a := newAuthority(t)
	config, err := proxy.NewClientTLS(proxy.ClientTLSFiles{CAFile: a.file, ServerName: "upstream.example"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name          string
		upstream      *url.URL
		http1, overH2 string
	}{
		{"http", urlOf(t, startServer(t, http.HandlerFunc(protocolOf))), "HTTP/1.1", "HTTP/1.1"},
		{"h2c", serveH2C(t, http.HandlerFunc(protocolOf)), "HTTP/2.0", "HTTP/2.0"},
		{"https with HTTP/2", serveTLS(t, a, http.HandlerFunc(protocolOf), tls.NoClientCert, "h2", "http/1.1"), "HTTP/1.1", "HTTP/2.0"},
		{"https without", serveTLS(t, a, http.HandlerFunc(protocolOf), tls.NoClientCert, "http/1.1"), "HTTP/1.1", "HTTP/1.1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, d := range []door{doors[0], doors[2], doors[3]} {
				t.Run(d.name, func(t *testing.T) {
					w := newWorld(t, canon.Options{})
					w.rules.Default.Upstreams = upstreamsAt(t, config, c.upstream)
					addr := d.open(t, w)
					want := c.http1
					if strings.HasPrefix(addr, "h2") {
						want = c.overH2
					}
					for range 2 { // also on a connection that was used before
						resp, body := ask(t, addr, request("POST", "/echo/x?a=b", w.secrets["full"], "abc"))
						if resp.StatusCode != 200 || body != want+" POST /echo/x?a=b abc" {
							t.Errorf("%d %q, want %s", resp.StatusCode, body, want)
						}
					}
				})
			}
		})
	}
}

func startServer(t testing.TB, h http.Handler) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

// TestUpstreamIsWhoItsCertificateSays: no trust but in the authority and the name
// that are configured.
func TestUpstreamIsWhoItsCertificateSays(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	cert, key := a.issue("proxy.example")
	upstream := serveTLS(t, a, http.HandlerFunc(protocolOf), tls.RequireAndVerifyClientCert, "h2", "http/1.1")
	for _, c := range []struct {
		name  string
		files proxy.ClientTLSFiles
		ok    bool
		fix   string // that the log names
	}{
		{"all is right", proxy.ClientTLSFiles{CAFile: a.file, CertFile: cert, KeyFile: key, ServerName: "upstream.example"}, true, ""},
		{"name of the URL", proxy.ClientTLSFiles{CAFile: a.file, CertFile: cert, KeyFile: key}, true, ""}, // 127.0.0.1 is in it
		{"another authority", proxy.ClientTLSFiles{CAFile: other.file, CertFile: cert, KeyFile: key, ServerName: "upstream.example"}, false, "ca_file"},
		{"the system's authorities", proxy.ClientTLSFiles{CertFile: cert, KeyFile: key, ServerName: "upstream.example"}, false, "ca_file"},
		{"another name", proxy.ClientTLSFiles{CAFile: a.file, CertFile: cert, KeyFile: key, ServerName: "evil.example"}, false, "server_name"},
		{"no client certificate", proxy.ClientTLSFiles{CAFile: a.file, ServerName: "upstream.example"}, false, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			config, err := proxy.NewClientTLS(c.files)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range doors {
				w := newWorld(t, canon.Options{})
				w.rules.Default.Upstreams = upstreamsAt(t, config, upstream)
				var out safeBuffer
				w.guard.Log = slog.New(slog.NewTextHandler(&out, nil))
				resp, body := ask(t, d.open(t, w), request("GET", "/echo/", w.secrets["full"], ""))
				if ok := resp.StatusCode == 200; ok != c.ok || !ok && resp.StatusCode != 502 {
					t.Errorf("%s: %d %s", d.name, resp.StatusCode, body)
				}
				said := out.String()
				if !c.ok && !strings.Contains(said, "upstream=["+upstream.String()+"]") {
					t.Errorf("%s: the log does not name the upstream: %s", d.name, said)
				}
				if strings.Contains(said, "fix=") != (c.fix != "") || !strings.Contains(said, c.fix) {
					t.Errorf("%s: the log does not say %q as the fix: %s", d.name, c.fix, said)
				}
			}
		})
	}
}

// TestUpstreamWithoutTLSIsNamed: the log says what to do about an https URL of a
// server that speaks none.
func TestUpstreamWithoutTLSIsNamed(t *testing.T) {
	for _, d := range doors {
		w := newWorld(t, canon.Options{})
		plain := talking(t, func(nc net.Conn) {
			_, _ = nc.Read(make([]byte, 4<<10))
			_, _ = io.WriteString(nc, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
		})
		plain.Scheme = "https"
		w.rules.Default.Upstreams = upstreamsAt(t, nil, plain)
		var out safeBuffer
		w.guard.Log = slog.New(slog.NewTextHandler(&out, nil))
		if resp, body := ask(t, d.open(t, w), request("GET", "/echo/", w.secrets["full"], "")); resp.StatusCode != 502 {
			t.Errorf("%s: %d %s", d.name, resp.StatusCode, body)
		}
		if said := out.String(); !strings.Contains(said, "it does not speak TLS") {
			t.Errorf("%s: the log says %s", d.name, said)
		}
	}
}

// TestClientTLSIsReadAgain: new connections use what the files hold now.
func TestClientTLSIsReadAgain(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	w := newWorld(t, canon.Options{})
	config, err := proxy.NewClientTLS(proxy.ClientTLSFiles{CAFile: a.file, ServerName: "upstream.example"})
	if err != nil {
		t.Fatal(err)
	}
	w.rules.Default.Upstreams = upstreamsAt(t, config, serveTLS(t, other, http.HandlerFunc(protocolOf), tls.NoClientCert, "http/1.1"))
	addr := openWire(t, w)
	if resp, _ := ask(t, addr, request("GET", "/echo/", w.secrets["full"], "")); resp.StatusCode != 502 {
		t.Fatal(resp.StatusCode)
	}
	if err := os.WriteFile(a.file, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := config.Reload(); err == nil {
		t.Error("a file without a certificate is taken")
	}
	pem, err := os.ReadFile(other.file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(a.file, pem, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := config.Reload(); err != nil {
		t.Fatal(err)
	}
	if resp, body := ask(t, addr, request("GET", "/echo/", w.secrets["full"], "")); resp.StatusCode != 200 {
		t.Fatal(resp.StatusCode, body)
	}
}

func TestListsOfUpstreamsAreOfOneKind(t *testing.T) {
	one := func(raw string) *proxy.Upstream {
		u, err := proxy.NewUpstream(urlOf(t, raw), nil, proxy.Timeouts{})
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	if _, err := proxy.NewUpstreams(); err == nil {
		t.Error("an empty list is taken")
	}
	if _, err := proxy.NewUpstreams(one("http://a"), one("h2c://b")); err == nil {
		t.Error("a mixed list is taken")
	}
	if _, err := proxy.NewUpstreams(slices.Repeat([]*proxy.Upstream{one("http://a")}, proxy.MaxUpstreams+1)...); err == nil {
		t.Error("an endless list is taken")
	}
	if _, err := proxy.NewUpstream(urlOf(t, "ftp://a"), nil, proxy.Timeouts{}); err == nil {
		t.Error("ftp is taken")
	}
}
