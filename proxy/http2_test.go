package proxy_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"tokenward/enforce/canon"
	"tokenward/proxy"
	"tokenward/proxy/http1"
)

// authority is a certificate authority for one test, in files.
type authority struct {
	t    testing.TB
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir(), pool: x509.NewCertPool()}
	a.key = newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pool.AddCert(a.cert)
	a.file = filepath.Join(a.dir, "ca.pem")
	writePEM(t, a.file, "CERTIFICATE", der)
	return a
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func writePEM(t testing.TB, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// issue writes a certificate for name, which is good for servers and clients, to
// NAME.pem and NAME.key.
func (a *authority) issue(name string) (certFile, keyFile string) {
	a.t.Helper()
	key := newKey(a.t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(a.dir, name+".pem"), filepath.Join(a.dir, name+".key")
	writePEM(a.t, certFile, "CERTIFICATE", der)
	writePEM(a.t, keyFile, "EC PRIVATE KEY", keyDER)
	return certFile, keyFile
}

// client trusts the authority, and offers HTTP/2 and HTTP/1.1.
func (a *authority) client(protocols ...string) *tls.Config {
	return &tls.Config{RootCAs: a.pool, ServerName: "api.example", NextProtos: protocols, MinVersion: tls.VersionTLS12}
}

// openProxy serves both doors on one listener, as the program does: HTTP/1.1 by
// the engine, HTTP/2 by net/http. wrap may put something around the listener.
func openProxy(t testing.TB, w *world, wrap func(net.Listener) net.Listener) string {
	t.Helper()
	w.enforceRules(t)
	wire := proxy.NewWire(w.guard)
	h2 := proxy.NewHTTP2(proxy.NewHTTP(w.guard), 5*time.Second, time.Minute, 32<<10, slog.New(slog.DiscardHandler))
	s := &http1.Server{Handler: wire.Serve, HTTP2: h2.ServeConn, Refused: wire.Refuse}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	if wrap != nil {
		ln = wrap(ln)
	}
	served := make(chan struct{})
	go func() { defer close(served); _ = s.Serve(ln) }()
	t.Cleanup(func() { _, _ = h2.Close(), s.Close(); <-served })
	return addr
}

func openH2(t testing.TB, w *world) string {
	t.Helper()
	a := newAuthority(t)
	cert, key := a.issue("api.example")
	s, err := proxy.NewServerTLS(proxy.ServerTLSFiles{CertFile: cert, KeyFile: key})
	if err != nil {
		t.Fatal(err)
	}
	return "h2://" + openProxy(t, w, s.Listener)
}

func openH2C(t testing.TB, w *world) string {
	t.Helper()
	return "h2c://" + openProxy(t, w, nil)
}

// h2conn is a client that writes frames as it is told to.
type h2conn struct {
	t      testing.TB
	nc     net.Conn
	framer *http2.Framer
	fields *hpack.Decoder
	stream uint32
}

func dialH2(t testing.TB, addr string) *h2conn {
	t.Helper()
	scheme, hostport, _ := strings.Cut(addr, "://")
	nc, err := net.Dial("tcp", hostport)
	if err != nil {
		t.Fatal(err)
	}
	if scheme == "h2" {
		tc := tls.Client(nc, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}) //nolint:gosec // the certificate is tested elsewhere
		if err := tc.Handshake(); err != nil {
			t.Fatal(err)
		}
		if got := tc.ConnectionState().NegotiatedProtocol; got != "h2" {
			t.Fatalf("ALPN chose %q", got)
		}
		nc = tc
	}
	t.Cleanup(func() { _ = nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(patience))
	c := &h2conn{t: t, nc: nc, framer: http2.NewFramer(nc, nc), fields: hpack.NewDecoder(4096, nil), stream: 1}
	c.framer.AllowIllegalWrites = true
	if _, err := io.WriteString(nc, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := c.framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return c
}

// headers sends a header block; a name and a value each.
func (c *h2conn) headers(end bool, fields ...string) {
	c.t.Helper()
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for i := 0; i < len(fields); i += 2 {
		if err := enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}); err != nil {
			c.t.Fatal(err)
		}
	}
	for first := true; first || block.Len() > 0; first = false {
		piece := block.Next(16000)
		var err error
		if first {
			err = c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: c.stream, BlockFragment: piece, EndStream: end, EndHeaders: block.Len() == 0})
		} else {
			err = c.framer.WriteContinuation(c.stream, block.Len() == 0, piece)
		}
		if err != nil {
			c.t.Fatal(err)
		}
	}
}

func (c *h2conn) data(end bool, s string) {
	c.t.Helper()
	if err := c.framer.WriteData(c.stream, end, []byte(s)); err != nil {
		c.t.Fatal(err)
	}
}

var errReset = errors.New("the stream was reset")

// answer reads the answer of the stream, and leaves it for the next one; Close says
// that its head was its end. An error is errReset, or that the connection ended.
func (c *h2conn) answer() (*http.Response, string, error) {
	c.t.Helper()
	defer func() { c.stream += 2 }()
	resp := &http.Response{Header: make(http.Header), Trailer: make(http.Header)}
	var body bytes.Buffer
	for {
		f, err := c.framer.ReadFrame()
		if err != nil {
			return nil, "", err
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				_ = c.framer.WriteSettingsAck()
			}
		case *http2.HeadersFrame:
			into := resp.Header
			if resp.StatusCode >= 200 {
				into = resp.Trailer
			}
			fields, err := c.fields.DecodeFull(f.HeaderBlockFragment())
			if err != nil {
				c.t.Fatal(err)
			}
			for _, one := range fields {
				if one.Name == ":status" {
					resp.StatusCode, _ = strconv.Atoi(one.Value)
				} else {
					into.Add(one.Name, one.Value)
				}
			}
			if f.StreamEnded() {
				resp.Close = body.Len() == 0 && len(resp.Trailer) == 0
				return resp, body.String(), nil
			}
		case *http2.DataFrame:
			body.Write(f.Data())
			if f.StreamEnded() {
				return resp, body.String(), nil
			}
		case *http2.RSTStreamFrame:
			if resp.StatusCode != 0 && f.ErrCode == http2.ErrCodeNo {
				return resp, body.String(), nil // the answer is whole; the body is not wanted
			}
			return resp, body.String(), fmt.Errorf("%w: %v", errReset, f.ErrCode)
		case *http2.GoAwayFrame:
			if f.ErrCode != http2.ErrCodeNo {
				return nil, "", fmt.Errorf("goaway: %v", f.ErrCode)
			}
		}
	}
}

// askH2 says in HTTP/2 what raw says in HTTP/1.1, and reads the answer.
func askH2(t testing.TB, addr, raw string) (*http.Response, string) {
	t.Helper()
	head, body, _ := strings.Cut(raw, "\r\n\r\n")
	lines := strings.Split(head, "\r\n")
	parts := strings.Split(lines[0], " ")
	fields := []string{":method", parts[0], ":scheme", "http", ":path", parts[1]}
	var rest []string
	for _, line := range lines[1:] {
		name, value, _ := strings.Cut(line, ":")
		name, value = strings.ToLower(name), strings.TrimSpace(value)
		switch name {
		case "host":
			fields = append(fields, ":authority", value)
		case "keep-alive": // is malformed here
		default:
			rest = append(rest, name, value)
		}
	}
	c := dialH2(t, addr)
	c.headers(body == "", append(fields, rest...)...)
	if body != "" {
		c.data(true, body)
	}
	resp, text, err := c.answer()
	if err != nil {
		t.Fatalf("read answer to %q: %v", raw, err)
	}
	return resp, text
}

// TestMalformedHTTP2NeverReachesTheUpstream sends what no client library would.
func TestMalformedHTTP2NeverReachesTheUpstream(t *testing.T) {
	get := []string{":method", "GET", ":scheme", "http", ":authority", "a", ":path", "/echo/"}
	with := func(more ...string) []string { return append(slices.Clone(get), more...) }
	replace := func(name, value string) []string {
		out := slices.Clone(get)
		out[slices.Index(out, name)+1] = value
		return out
	}
	without := func(name string) []string {
		out := slices.Clone(get)
		i := slices.Index(out, name)
		return slices.Delete(out, i, i+2)
	}
	for _, c := range []struct {
		name   string
		fields []string
	}{
		{"connection", with("connection", "x-token-id")},
		{"keep-alive", with("keep-alive", "timeout=5")},
		{"proxy-connection", with("proxy-connection", "close")},
		{"transfer-encoding", with("transfer-encoding", "chunked")},
		{"upgrade", with("upgrade", "websocket")},
		{"te", with("te", "gzip")},
		{"upper-case name", with("X-Token-Id", "1")},
		{"space in name", with("x token", "1")},
		{"colon in name", with("x:y", "1")},
		{"empty name", with("", "1")},
		{"line break in value", with("x-a", "1\r\nx-token-id: 1")},
		{"NUL in value", with("x-a", "1\x00")},
		{"line break in path", replace(":path", "/echo/ HTTP/1.1\r\nX-Token-Id: 1\r\n\r\n")},
		{"space in path", replace(":path", "/echo/ x")},
		{"fragment in path", replace(":path", "/echo/#x")},
		{"empty path", replace(":path", "")},
		{"absolute path", replace(":path", "http://a/echo/")},
		{"no leading slash", replace(":path", "echo/")},
		{"asterisk", replace(":path", "*")},
		{"line break in method", replace(":method", "GET /echo/ HTTP/1.1\r\n")},
		{"connect", replace(":method", "CONNECT")},
		{"trace", replace(":method", "TRACE")},
		{"bad authority", replace(":authority", "a/b")},
		{"user in authority", replace(":authority", "user@a")},
		{"authority and host differ", with("host", "b")},
		{"two hosts", append(without(":authority"), "host", "a", "host", "b")},
		{"no authority", without(":authority")},
		{"no path", without(":path")},
		{"no method", without(":method")},
		{"path twice", append(slices.Clone(get), ":path", "/echo/x")},
		{"pseudo field after others", append([]string{"x-a", "1"}, get...)},
		{"unknown pseudo field", append([]string{":x", "1"}, get...)},
		{"extended connect", append(replace(":method", "CONNECT"), ":protocol", "websocket")},
		{"status", append([]string{":status", "200"}, get...)},
		{"content-length twice", with("content-length", "0", "content-length", "1")},
		{"content-length without body", with("content-length", "5")},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, open := range []func(testing.TB, *world) string{openH2, openH2C} {
				w := newWorld(t, canon.Options{})
				conn := dialH2(t, open(t, w))
				conn.headers(true, append(slices.Clone(c.fields), "api-token", w.secrets["full"])...)
				resp, body, err := conn.answer()
				if err == nil && (resp.StatusCode < 400 || resp.StatusCode > 501) {
					t.Errorf("answered with %d %s", resp.StatusCode, body)
				}
				if n := w.upstream.count(); n != 0 {
					t.Errorf("the upstream saw %q", w.upstream.last())
				}
			}
		})
	}
}

// TestHTTP2BodyIsAsLongAsItSays: a length that is not the body's must not reach an
// HTTP/1.1 upstream, which would take the rest for another request.
func TestHTTP2BodyIsAsLongAsItSays(t *testing.T) {
	for _, c := range []struct{ length, body string }{{"3", "abcdef"}, {"9", "abc"}, {"0", "GET / HTTP/1.1\r\n\r\n"}} {
		w := newWorld(t, canon.Options{})
		conn := dialH2(t, openH2C(t, w))
		conn.headers(false, ":method", "POST", ":scheme", "http", ":authority", "a", ":path", "/echo/", "content-length", c.length, "api-token", w.secrets["full"])
		conn.data(true, c.body)
		if resp, _, err := conn.answer(); err == nil && resp.StatusCode == 200 {
			t.Errorf("%s for %d bytes was answered with 200", c.length, len(c.body))
		}
		if n := w.upstream.count(); n > 1 || n == 1 && (c.length == "0" || strings.HasSuffix(w.upstream.last(), "abcdef") || strings.Contains(w.upstream.last(), "GET / ")) {
			t.Errorf("the upstream saw %d requests, last %q", n, w.upstream.last())
		}
	}
}

// TestHTTP2BodyMayEndAfterItsHead: that there is none can be said in the head, and
// shown by a frame of its own.
func TestHTTP2BodyMayEndAfterItsHead(t *testing.T) {
	w := newWorld(t, canon.Options{})
	conn := dialH2(t, openH2C(t, w))
	conn.headers(false, ":method", "POST", ":scheme", "http", ":authority", "a", ":path", "/echo/", "content-length", "0", "api-token", w.secrets["full"])
	if n := w.upstream.count(); n != 0 {
		t.Errorf("the upstream saw %q before the request was whole", w.upstream.last())
	}
	conn.data(true, "")
	if resp, body, err := conn.answer(); err != nil || resp.StatusCode != 200 || body != "hello " {
		t.Errorf("%v %q, %v", resp, body, err)
	}
}

// TestHTTP2TrailersCannotBearIdentity sends trailers that a backend may merge.
func TestHTTP2TrailersCannotBearIdentity(t *testing.T) {
	w := newWorld(t, canon.Options{})
	conn := dialH2(t, openH2C(t, w))
	conn.headers(false, ":method", "POST", ":scheme", "http", ":authority", "a", ":path", "/echo/", "trailer", "x-token-id, x-kept, x-forwarded-for", "api-token", w.secrets["full"])
	conn.data(false, "abc")
	conn.headers(true, "x-token-id", "9", "x-kept", "yes", "x-forwarded-for", "10.0.0.1", "x_token_account", "0")
	if _, body, err := conn.answer(); err != nil || body != "hello abc" {
		t.Fatalf("%q, %v", body, err)
	}
	seen := w.upstream.last()
	_, trailers, _ := strings.Cut(seen, "\r\n0\r\n")
	if !strings.Contains(trailers, "X-Kept: yes") || strings.Contains(trailers, "oken") || strings.Contains(trailers, "orwarded") || strings.Contains(trailers, "uthor") {
		t.Errorf("trailers arrived as %q", trailers)
	}
}

// TestCookieCrumbsAreOneField: HTTP/2 may split Cookie (RFC 9113 section 8.2.3).
func TestCookieCrumbsAreOneField(t *testing.T) {
	w := newWorld(t, canon.Options{})
	conn := dialH2(t, openH2C(t, w))
	conn.headers(true, ":method", "GET", ":scheme", "http", ":authority", "a", ":path", "/echo/", "cookie", "a=1", "cookie", "b=2", "api-token", w.secrets["full"])
	if resp, _, err := conn.answer(); err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	if seen := w.upstream.last(); !strings.Contains(seen, "\r\nCookie: a=1; b=2\r\n") {
		t.Errorf("arrived: %q", seen)
	}
}

// TestAnswerThatEndsWithItsHeadDoesSo: gRPC refuses calls like that, and takes an end
// in a frame of its own for a lost answer. Nothing tells it from an answer with a
// body but what net/http does with it, so it is asked for many times.
func TestAnswerThatEndsWithItsHeadDoesSo(t *testing.T) {
	w := newWorld(t, canon.Options{})
	w.rules.Default.Upstreams = upstreamsAt(t, nil, serveH2C(t, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header()["Date"] = nil
		rw.Header().Set("Content-Type", "application/grpc")
		rw.Header().Set("Grpc-Status", "12")
	})))
	conn := dialH2(t, openH2C(t, w))
	for range 100 {
		conn.headers(true, ":method", "POST", ":scheme", "http", ":authority", "a", ":path", "/echo/", "te", "trailers", "api-token", w.secrets["full"])
		if resp, _, err := conn.answer(); err != nil || resp.Header.Get("Grpc-Status") != "12" || !resp.Close {
			t.Fatalf("%+v, %v", resp, err)
		}
	}
}

// TestNotModifiedMayNameALength, which is that of the answer it stands for.
func TestNotModifiedMayNameALength(t *testing.T) {
	w := newWorld(t, canon.Options{})
	w.rules.Default.Upstreams = upstreamsAt(t, nil, serveH2C(t, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Length", "10")
		rw.Header().Set("Etag", `"v1"`)
		rw.WriteHeader(http.StatusNotModified)
	})))
	for _, addr := range []string{openH2C(t, w), openWire(t, w)} {
		resp, body := ask(t, addr, "GET /echo/ HTTP/1.1\r\nHost: a\r\nApi-Token: "+w.secrets["full"]+"\r\n\r\n")
		if resp.StatusCode != 304 || body != "" || resp.Header.Get("Etag") != `"v1"` {
			t.Errorf("%d %q %v", resp.StatusCode, body, resp.Header)
		}
	}
}

// TestTrailersWithoutABodyDoNotHoldTheRequestOpen: they are announced, and the
// request ends with its head all the same.
func TestTrailersWithoutABodyDoNotHoldTheRequestOpen(t *testing.T) {
	upstream := serveH2C(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		_, _ = fmt.Fprintf(rw, "%q %v %v", body, err, r.Trailer)
	}))
	for _, d := range doors {
		t.Run(d.name, func(t *testing.T) {
			w := newWorld(t, canon.Options{})
			w.rules.Default = proxy.RouteOptions{Upstreams: upstreamsAt(t, nil, upstream), ResponseHeader: 2 * time.Second}
			for _, method := range []string{"GET", "POST"} {
				resp, body := ask(t, d.open(t, w), request(method, "/echo/", w.secrets["full"], "", "Trailer: X-Sum, X-Token-Id"))
				if want := `"" <nil> map[]`; resp.StatusCode != 200 || body != want {
					t.Errorf("%s: %d %s, want %s", method, resp.StatusCode, body, want)
				}
			}
		})
	}
}
