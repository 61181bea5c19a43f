package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"tokenward/enforce/canon"
	"tokenward/proxy"
	"tokenward/proxy/http1"
)

const v2Start = "\r\n\r\n\x00\r\nQUIT\n"

// v2 makes a header of version 2: version and command, family, and what follows.
func v2(command, family byte, rest string) string {
	head := append([]byte(v2Start), command, family, 0, 0)
	binary.BigEndian.PutUint16(head[14:], uint16(len(rest)))
	return string(head) + rest
}

const (
	tcp4From198 = "\xc6\x33\x64\x07" + "\x0a\x00\x00\x01" + "\x30\x39" + "\x01\xbb" // 198.51.100.7:12345 to 10.0.0.1:443
	get         = "GET /echo/ HTTP/1.1\r\nHost: a\r\nApi-Token: "
)

// protocolWorld is a proxy behind load balancers in from.
func protocolWorld(t testing.TB, from string, timeout time.Duration, wrap func(net.Listener) net.Listener) (*world, string) {
	t.Helper()
	w := newWorld(t, canon.Options{})
	return w, openProxy(t, w, func(l net.Listener) net.Listener {
		l = proxy.NewProxyProtocol(l, []netip.Prefix{netip.MustParsePrefix(from)}, timeout, w.guard.Headerless)
		if wrap != nil {
			l = wrap(l)
		}
		return l
	})
}

// send writes raw, and gives the status of the answer, 0 where there was none.
func send(t testing.TB, addr, raw string) int {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(patience))
	_, _ = io.WriteString(nc, raw) // it may be refused before it is written
	resp, err := http.ReadResponse(bufio.NewReader(nc), nil)
	if err != nil {
		return 0
	}
	return resp.StatusCode
}

// TestProxyProtocolNamesThePeer: the token "elsewhere" is good from
// 198.51.100.0/24 only.
func TestProxyProtocolNamesThePeer(t *testing.T) {
	w, addr := protocolWorld(t, "127.0.0.1/32", patience, nil)
	raw := get + w.secrets["elsewhere"] + "\r\n\r\n"
	for _, c := range []struct {
		name, header string
		status       int
	}{
		{"v1", "PROXY TCP4 198.51.100.7 10.0.0.1 12345 443\r\n", 200},
		{"v1 from elsewhere", "PROXY TCP4 203.0.113.7 10.0.0.1 12345 443\r\n", 403},
		{"v1 IPv6", "PROXY TCP6 2001:db8::1 2001:db8::2 12345 443\r\n", 403},
		{"v1 mapped", "PROXY TCP6 ::ffff:198.51.100.7 ::ffff:10.0.0.1 12345 443\r\n", 200},
		{"v1 unknown", "PROXY UNKNOWN\r\n", 403},
		{"v1 unknown with addresses", "PROXY UNKNOWN 198.51.100.7 10.0.0.1 1 2\r\n", 403},
		{"v2", v2(0x21, 0x11, tcp4From198), 200},
		{"v2 with TLV", v2(0x21, 0x11, tcp4From198+"\x04\x00\x03abc"), 200},
		{"v2 unspecified", v2(0x21, 0x00, ""), 0},
		{"v2 local", v2(0x20, 0x00, ""), 403},
		{"none", "", 0},
		{"none, blank lines", "\r\n\r\n", 0},
		{"v1 lower case", "proxy TCP4 198.51.100.7 10.0.0.1 12345 443\r\n", 0},
		{"v1 bare LF", "PROXY TCP4 198.51.100.7 10.0.0.1 12345 443\n", 0},
		{"v1 leading zero", "PROXY TCP4 198.51.100.07 10.0.0.1 12345 443\r\n", 0},
		{"v1 two spaces", "PROXY TCP4  198.51.100.7 10.0.0.1 12345 443\r\n", 0},
		{"v1 endless", "PROXY TCP4 " + strings.Repeat("1", 200), 0},
		{"v1 port too large", "PROXY TCP4 198.51.100.7 10.0.0.1 65536 443\r\n", 0},
		{"v1 another family", "PROXY UDP4 198.51.100.7 10.0.0.1 1 2\r\n", 0},
		{"v2 version 3", v2(0x31, 0x11, tcp4From198), 0},
		{"v2 unknown command", v2(0x22, 0x11, tcp4From198), 0},
		{"v2 datagram", v2(0x21, 0x12, tcp4From198), 0},
		{"v2 too short", v2(0x21, 0x11, tcp4From198[:8]), 0},
		{"v2 endless", v2(0x21, 0x11, tcp4From198+strings.Repeat("\x00", 5000)), 0},
		{"two headers", "PROXY TCP4 203.0.113.7 10.0.0.1 1 2\r\nPROXY TCP4 198.51.100.7 10.0.0.1 1 2\r\n", 400},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := send(t, addr, c.header+raw); got != c.status {
				t.Errorf("status %d, want %d", got, c.status)
			}
		})
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.Contains(w.refused, proxy.CodeProxyProtocol) {
		t.Errorf("counted %v", w.refused)
	}
}

// A client of whom the load balancer knows nothing must not be taken for the load
// balancer, which may be an allowed source.
func TestUnknownPeerIsNotTheLoadBalancer(t *testing.T) {
	w, addr := protocolWorld(t, "127.0.0.1/32", patience, nil)
	raw := get + w.secrets["full"] + "\r\n\r\n"
	for header, want := range map[string]string{
		"PROXY TCP4 198.51.100.7 10.0.0.1 12345 443\r\n": "198.51.100.7",
		v2(0x21, 0x11, tcp4From198):                      "198.51.100.7",
		"PROXY UNKNOWN\r\n":                              "",
		v2(0x21, 0x31, strings.Repeat("a", 216)):         "", // a Unix socket
		v2(0x20, 0x00, ""):                               "127.0.0.1",
		v2(0x20, 0x11, tcp4From198):                      "127.0.0.1",
	} {
		if got := send(t, addr, header+raw); got != 200 {
			t.Errorf("%q: status %d", header, got)
		}
		_, got, _ := strings.Cut(w.upstream.last(), "X-Forwarded-For: ")
		if got, _, _ = strings.Cut(got, "\r\n"); got != want {
			t.Errorf("%q: comes from %q, want %q", header, got, want)
		}
	}
}

func TestPeerThatWasNamedIsServedBySocket(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	pp := proxy.NewProxyProtocol(l, []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}, 10*time.Second, nil)
	defer pp.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	_, _ = io.WriteString(client, "PROXY TCP4 198.51.100.7 10.0.0.1 12345 443\r\n") // Accept notices what is wrong
	nc, err := pp.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	for _, nc := range []net.Conn{nc, http1.DirectConn(nc)} {
		socket, ok := nc.(interface{ TCPConn() *net.TCPConn })
		if !ok || socket.TCPConn() == nil || nc.RemoteAddr().String() != "198.51.100.7:12345" {
			t.Errorf("%T from %v shows the engine no socket", nc, nc.RemoteAddr())
		}
	}
}

// TestProxyProtocolFromOthersIsABadRequest: whoever is not listed cannot name an
// address.
func TestProxyProtocolFromOthersIsABadRequest(t *testing.T) {
	w, addr := protocolWorld(t, "192.0.2.0/24", patience, nil)
	raw := get + w.secrets["elsewhere"] + "\r\n\r\n"
	for _, header := range []string{"PROXY TCP4 198.51.100.7 10.0.0.1 12345 443\r\n", v2(0x21, 0x11, tcp4From198), "PROXY UNKNOWN\r\n"} {
		if got := send(t, addr, header+raw); got != 400 {
			t.Errorf("%q: status %d", header, got)
		}
	}
	if got := send(t, addr, raw); got != 403 {
		t.Errorf("without a header: status %d", got)
	}
	w.mu.Lock()
	if want := slices.Repeat([]string{proxy.CodeProxyProtocol}, 3); !slices.Equal(w.refused, want) {
		t.Errorf("counted %v, want %v", w.refused, want)
	}
	w.mu.Unlock()
	if n := w.upstream.count(); n != 0 {
		t.Errorf("%d requests were forwarded", n)
	}
}

// TestSilentLoadBalancerHoldsUpNobody: accepting goes on while headers are awaited,
// and the wait ends.
func TestSilentLoadBalancerHoldsUpNobody(t *testing.T) {
	begin := func(addr string) (silent []net.Conn) {
		for range 20 {
			nc, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = nc.Close() })
			_, _ = io.WriteString(nc, "PROXY TCP4 198.51.")
			silent = append(silent, nc)
		}
		return silent
	}
	w, addr := protocolWorld(t, "127.0.0.1/32", time.Hour, nil)
	begin(addr)
	if got := send(t, addr, "PROXY TCP4 198.51.100.7 10.0.0.1 1 2\r\n"+get+w.secrets["full"]+"\r\n\r\n"); got != 200 {
		t.Fatalf("status %d", got)
	}
	_, addr = protocolWorld(t, "127.0.0.1/32", 20*time.Millisecond, nil)
	for _, nc := range begin(addr) {
		_ = nc.SetReadDeadline(time.Now().Add(patience))
		if _, err := nc.Read(make([]byte, 1)); err == nil || isTimeout(err) {
			t.Fatalf("still open: %v", err)
		}
	}
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// TestProxyProtocolBeforeTLS: the handshake follows the header, for both protocols.
func TestProxyProtocolBeforeTLS(t *testing.T) {
	a := newAuthority(t)
	cert, key := a.issue("api.example")
	s, err := proxy.NewServerTLS(proxy.ServerTLSFiles{CertFile: cert, KeyFile: key})
	if err != nil {
		t.Fatal(err)
	}
	w, addr := protocolWorld(t, "127.0.0.1/32", patience, s.Listener)
	for header, want := range map[string]int{
		"PROXY TCP4 198.51.100.7 10.0.0.1 12345 443\r\n": 200, v2(0x21, 0x11, tcp4From198): 200,
		"PROXY TCP4 203.0.113.7 10.0.0.1 12345 443\r\n": 403, "PROXY UNKNOWN\r\n": 403,
	} {
		for _, protocol := range []string{"http/1.1", "h2"} {
			nc, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			_ = nc.SetDeadline(time.Now().Add(patience))
			_, _ = io.WriteString(nc, header)
			transport := &http.Transport{ForceAttemptHTTP2: protocol == "h2", DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				tc := tls.Client(nc, a.client(protocol))
				return tc, tc.HandshakeContext(ctx)
			}}
			req, err := http.NewRequest("GET", "https://api.example/echo/", nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Api-Token", w.secrets["elsewhere"])
			resp, err := transport.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if resp.StatusCode != want || (resp.ProtoMajor == 2) != (protocol == "h2") {
				t.Errorf("%q, %s: %s %d, want %d", header, protocol, resp.Proto, resp.StatusCode, want)
			}
			if forwarded := "X-Forwarded-For: 198.51.100.7\r\n"; want == 200 && !strings.Contains(w.upstream.last(), forwarded) {
				t.Errorf("the upstream saw %q", w.upstream.last())
			}
			transport.CloseIdleConnections()
		}
	}
}

// TestClosingEndsTheWaitForHeaders: no connection is left behind.
func TestClosingEndsTheWaitForHeaders(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := proxy.NewProxyProtocol(ln, []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}, time.Hour, nil)
	done := make(chan error)
	go func() {
		_, err := l.Accept()
		done <- err
	}()
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err == nil {
		t.Error("Accept gave a connection")
	}
	_ = nc.SetReadDeadline(time.Now().Add(patience))
	if _, err := nc.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("the connection is open still: %v", err)
	}
}

// closeTeller is a listener whose connections tell of their end.
type closeTeller struct {
	net.Listener
	tell chan<- string
}

func (l closeTeller) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	return closingConn{nc, l.tell}, err
}

type closingConn struct {
	net.Conn
	tell chan<- string
}

func (c closingConn) Close() error {
	c.tell <- "closed"
	return c.Conn.Close()
}

// TestRefusedPeerIsToldOfBeforeItsEnd: who sees a connection end and looks at the
// metrics then finds it there.
func TestRefusedPeerIsToldOfBeforeItsEnd(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	events := make(chan string, 2)
	l := proxy.NewProxyProtocol(closeTeller{ln, events}, []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}, patience,
		func(net.Addr, error) { events <- "told" })
	accepted := make(chan struct{})
	go func() {
		defer close(accepted)
		_, _ = l.Accept() // it ends with the listener
	}()
	if status := send(t, l.Addr().String(), get+"\r\n\r\n"); status != 0 {
		t.Errorf("answered with %d", status)
	}
	if first, second := <-events, <-events; first != "told" || second != "closed" {
		t.Errorf("%s, then %s", first, second)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	<-accepted
}

// A load balancer looks whether the port is open every few seconds, for years.
func TestPortChecksWithoutAHeaderDoNotFillTheLog(t *testing.T) {
	var log bytes.Buffer
	g := proxy.NewGuard(nil, slog.New(slog.NewTextHandler(&log, nil)), time.Now)
	counted := 0
	g.Refused = func(code string) {
		if code == proxy.CodeProxyProtocol {
			counted++
		}
	}
	for range 100 {
		g.Headerless(&net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 4711}, errors.New("no header"))
	}
	if lines := strings.Count(log.String(), "\n"); counted != 100 || lines != 1 || !strings.Contains(log.String(), "192.0.2.1:4711") {
		t.Errorf("%d are counted, and %d told of:\n%s", counted, lines, &log)
	}
}
