package proxy_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"testing"
	"time"

	"tokenward/enforce/canon"
	"tokenward/proxy"
)

// secureWorld is a proxy behind TLS.
func secureWorld(t testing.TB, files proxy.ServerTLSFiles) (w *world, addr string, s *proxy.ServerTLS) {
	t.Helper()
	w = newWorld(t, canon.Options{})
	s, err := proxy.NewServerTLS(files)
	if err != nil {
		t.Fatal(err)
	}
	return w, openProxy(t, w, s.Listener), s
}

// session is one HTTP/1.1 connection over TLS.
type session struct {
	t  testing.TB
	tc *tls.Conn
	br *bufio.Reader
}

func connect(t testing.TB, addr string, config *tls.Config) *session {
	t.Helper()
	tc, err := tls.Dial("tcp", addr, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tc.Close() })
	_ = tc.SetDeadline(time.Now().Add(patience))
	return &session{t, tc, bufio.NewReader(tc)}
}

func (s *session) ask(raw string) int {
	s.t.Helper()
	if _, err := io.WriteString(s.tc, raw); err != nil {
		s.t.Fatal(err)
	}
	resp, err := http.ReadResponse(s.br, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode
}

// TestCertificateIsReplacedWithoutDroppingConnections also holds that a broken
// file changes nothing.
func TestCertificateIsReplacedWithoutDroppingConnections(t *testing.T) {
	a, b := newAuthority(t), newAuthority(t)
	cert, key := a.issue("api.example")
	w, addr, s := secureWorld(t, proxy.ServerTLSFiles{CertFile: cert, KeyFile: key})
	before := connect(t, addr, a.client("http/1.1"))
	raw := request("GET", "/echo/", w.secrets["full"], "")
	if status := before.ask(raw); status != 200 {
		t.Fatal(status)
	}
	newCert, newKey := b.issue("api.example")
	move := func(from, to string) {
		data, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	move(newCert, cert)
	if err := s.Reload(); err == nil {
		t.Error("a certificate with another's key is taken")
	}
	if status := connect(t, addr, a.client("http/1.1")).ask(raw); status != 200 {
		t.Error("the last good certificate is gone")
	}
	move(newKey, key)
	if err := s.Reload(); err != nil {
		t.Fatal(err)
	}
	if status := connect(t, addr, b.client("http/1.1")).ask(raw); status != 200 {
		t.Error("new connections do not have the new certificate")
	}
	if _, err := tls.Dial("tcp", addr, a.client("http/1.1")); err == nil {
		t.Error("new connections have the old certificate")
	}
	if status := before.ask(raw); status != 200 {
		t.Error("the connection from before was dropped")
	}
}

func TestClientCertificateIsAGateOnly(t *testing.T) {
	a, clients, others := newAuthority(t), newAuthority(t), newAuthority(t)
	cert, key := a.issue("api.example")
	load := func(a *authority) []tls.Certificate {
		certFile, keyFile := a.issue("client.example")
		c, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			t.Fatal(err)
		}
		return []tls.Certificate{c}
	}
	good, bad := load(clients), load(others)
	for _, c := range []struct {
		auth    proxy.ClientAuth
		shown   []tls.Certificate
		opens   bool
		comment string
	}{
		{proxy.ClientAuthNone, nil, true, "none, nothing"},
		{proxy.ClientAuthRequest, nil, true, "request, nothing"},
		{proxy.ClientAuthRequest, good, true, "request, good"},
		{proxy.ClientAuthRequest, bad, false, "request, bad"},
		{proxy.ClientAuthRequire, nil, false, "require, nothing"},
		{proxy.ClientAuthRequire, good, true, "require, good"},
		{proxy.ClientAuthRequire, bad, false, "require, bad"},
	} {
		t.Run(c.comment, func(t *testing.T) {
			files := proxy.ServerTLSFiles{CertFile: cert, KeyFile: key, ClientAuth: c.auth}
			if c.auth != proxy.ClientAuthNone {
				files.ClientCAFile = clients.file
			}
			w, addr, _ := secureWorld(t, files)
			for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
				config := a.client("http/1.1")
				config.Certificates, config.MaxVersion = c.shown, version
				// Sent whatever the server asks for, which a good client would not.
				config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
					if len(c.shown) == 0 {
						return &tls.Certificate{}, nil
					}
					return &c.shown[0], nil
				}
				status, err := try(addr, config, "GET /echo/ HTTP/1.1\r\nHost: a\r\n\r\n")
				if c.opens && (err != nil || status != 401) {
					t.Errorf("without a token: %d, %v", status, err)
				}
				if !c.opens && err == nil {
					t.Errorf("the connection was opened: %d", status)
				}
				if status, err := try(addr, config, request("GET", "/echo/", w.secrets["full"], "")); c.opens && (err != nil || status != 200) {
					t.Errorf("with a token: %d, %v", status, err)
				}
			}
		})
	}
}

// try asks once on a new connection.
func try(addr string, config *tls.Config, raw string) (int, error) {
	tc, err := tls.Dial("tcp", addr, config)
	if err != nil {
		return 0, err
	}
	defer tc.Close()
	_ = tc.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(tc, raw); err != nil {
		return 0, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(tc), nil)
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, resp.Body.Close()
}

// TestRemovedAuthorityEndsResumption: a session from before cannot carry a
// client certificate past the removal of its authority.
func TestRemovedAuthorityEndsResumption(t *testing.T) {
	a, clients, others := newAuthority(t), newAuthority(t), newAuthority(t)
	cert, key := a.issue("api.example")
	certFile, keyFile := clients.issue("client.example")
	shown, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	w, addr, s := secureWorld(t, proxy.ServerTLSFiles{CertFile: cert, KeyFile: key, ClientCAFile: clients.file, ClientAuth: proxy.ClientAuthRequire})
	config := a.client("http/1.1")
	config.Certificates, config.ClientSessionCache = []tls.Certificate{shown}, tls.NewLRUClientSessionCache(10)
	raw := request("GET", "/echo/", w.secrets["full"], "")
	if status, err := try(addr, config, raw); err != nil || status != 200 {
		t.Fatal(status, err)
	}
	pem, err := os.ReadFile(others.file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(clients.file, pem, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Reload(); err != nil {
		t.Fatal(err)
	}
	if status, err := try(addr, config, raw); err == nil {
		t.Errorf("let in with a resumed session: %d", status)
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	a := newAuthority(t)
	cert, key := a.issue("api.example")
	_, addr, _ := secureWorld(t, proxy.ServerTLSFiles{CertFile: cert, KeyFile: key})
	config := a.client()
	config.MinVersion, config.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	if _, err := tls.Dial("tcp", addr, config); err == nil {
		t.Error("TLS 1.1 is taken")
	}
	for _, c := range []struct {
		offered []string
		want    string
	}{{[]string{"h2", "http/1.1"}, "h2"}, {[]string{"http/1.1"}, "http/1.1"}, {[]string{"h2"}, "h2"}, {nil, ""}} {
		tc, err := tls.Dial("tcp", addr, a.client(c.offered...))
		if err != nil {
			t.Fatal(err)
		}
		if got := tc.ConnectionState().NegotiatedProtocol; got != c.want {
			t.Errorf("%v: ALPN chose %q, want %q", c.offered, got, c.want)
		}
		_ = tc.Close()
	}
	if _, err := tls.Dial("tcp", addr, a.client("spdy/3")); err == nil {
		t.Error("an unknown protocol is taken")
	}
}

func TestTLSFilesThatCannotBeUsed(t *testing.T) {
	a := newAuthority(t)
	cert, key := a.issue("api.example")
	for name, files := range map[string]proxy.ServerTLSFiles{
		"no certificate":      {CertFile: "none.pem", KeyFile: key},
		"no key":              {CertFile: cert, KeyFile: "none.key"},
		"no authority":        {CertFile: cert, KeyFile: key, ClientAuth: proxy.ClientAuthRequire},
		"empty authority":     {CertFile: cert, KeyFile: key, ClientAuth: proxy.ClientAuthRequest, ClientCAFile: key},
		"missing authorities": {CertFile: cert, KeyFile: key, ClientAuth: proxy.ClientAuthRequest, ClientCAFile: "none.pem"},
	} {
		if _, err := proxy.NewServerTLS(files); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestSlowHandshakeHoldsUpNobody: a client that says nothing after connecting does
// not keep others from being accepted.
func TestSlowHandshakeHoldsUpNobody(t *testing.T) {
	a := newAuthority(t)
	cert, key := a.issue("api.example")
	w, addr, _ := secureWorld(t, proxy.ServerTLSFiles{CertFile: cert, KeyFile: key})
	for range 20 {
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		fmt.Fprint(nc, "\x16\x03\x01")
	}
	if status := connect(t, addr, a.client("http/1.1")).ask(request("GET", "/echo/", w.secrets["full"], "")); status != 200 {
		t.Fatal(status)
	}
}
