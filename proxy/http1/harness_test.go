package http1

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience bounds every wait of a test for something that must happen. It only ends
// a test that hangs, on however busy a machine.
const patience = time.Minute

// start serves s on a loopback socket until the test ends, and checks that
// nothing of it is left over.
func start(t testing.TB, s *Server) (addr string) {
	t.Helper()
	s.NoHijack = true
	return startHijackable(t, s)
}

// startHijackable is start for a server whose handler may take over connections.
func startHijackable(t testing.TB, s *Server) (addr string) {
	t.Helper()
	l := listen(t)
	serve(t, s, l)
	return l.Addr().String()
}

// startTLS is start over TLS; it returns what connects.
func startTLS(t *testing.T, s *Server) (dialTLS func() *client) {
	t.Helper()
	serverTLS, clientTLS := testTLS(t)
	clientTLS = clientTLS.Clone()
	clientTLS.NextProtos = []string{"http/1.1"}
	s.NoHijack = true
	l := listen(t)
	serve(t, s, tls.NewListener(Direct(l), serverTLS))
	return func() *client {
		c := dial(t, l.Addr().String())
		c.nc = tls.Client(c.nc, clientTLS)
		c.br.Reset(c.nc)
		return c
	}
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func serve(t testing.TB, s *Server, l net.Listener) {
	t.Helper()
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		_ = s.Close()
		if err := <-served; !errors.Is(err, ErrServerClosed) {
			t.Errorf("Serve: %v", err)
		}
		waitFor(t, "connections to end", func() bool { return s.Connections() == 0 })
	})
}

// waitFor polls until ok holds.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	end := time.After(patience)
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for !ok() {
		select {
		case <-look.C:
		case <-end:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// upstreamTo is an Upstream for a TCP address, closed when the test ends.
func upstreamTo(t testing.TB, addr string) *Upstream {
	t.Helper()
	u := &Upstream{Dial: func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addr)
	}}
	t.Cleanup(u.Close)
	return u
}

// client is a connection to a server under test.
type client struct {
	t  testing.TB
	nc net.Conn
	br *bufio.Reader
}

func dial(t testing.TB, addr string) *client {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(patience))
	return &client{t: t, nc: nc, br: bufio.NewReader(nc)}
}

func (c *client) send(s string) *client {
	c.t.Helper()
	if _, err := io.WriteString(c.nc, s); err != nil {
		c.t.Fatalf("send: %v", err)
	}
	return c
}

// answer reads one answer with its body, by net/http.
func (c *client) answer(method string) (*http.Response, string) {
	c.t.Helper()
	resp, err := http.ReadResponse(c.br, &http.Request{Method: method})
	if err != nil {
		c.t.Fatalf("read answer: %v", err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatalf("read answer's body: %v (after %q)", err, body)
	}
	_ = resp.Body.Close()
	return resp, string(body)
}

// want reads one answer and checks its status and body.
func (c *client) want(method string, status int, body string) *http.Response {
	c.t.Helper()
	resp, got := c.answer(method)
	if resp.StatusCode != status || got != body {
		c.t.Fatalf("answer %d %q, want %d %q", resp.StatusCode, got, status, body)
	}
	return resp
}

// wantEnd checks that the server closes the connection without another byte.
func (c *client) wantEnd() {
	c.t.Helper()
	rest, err := io.ReadAll(c.br)
	if err != nil || len(rest) > 0 {
		c.t.Fatalf("after the last answer: %q, %v; want the end", rest, err)
	}
}

// wantReset checks that the server resets the connection without another byte.
func (c *client) wantReset() {
	c.t.Helper()
	rest, err := io.ReadAll(c.br)
	if !errors.Is(err, syscall.ECONNRESET) || len(rest) > 0 {
		c.t.Fatalf("after the last answer: %q, %v; want a reset", rest, err)
	}
}

// script is an upstream that handles each connection with its own function.
type script struct {
	t     testing.TB
	l     net.Listener
	conns sync.WaitGroup
	mu    sync.Mutex
	count int // connections accepted
}

// scripted runs do for each connection that is made to it.
func scripted(t testing.TB, do func(n int, c *client)) *script {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &script{t: t, l: l}
	s.conns.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.count++
			n := s.count
			s.mu.Unlock()
			s.conns.Go(func() {
				defer nc.Close()
				_ = nc.SetDeadline(time.Now().Add(patience))
				do(n, &client{t: t, nc: nc, br: bufio.NewReader(nc)})
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		s.conns.Wait()
	})
	return s
}

func (s *script) addr() string { return s.l.Addr().String() }

func (s *script) connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count
}

// request reads one request with its body, by net/http; nil at the end.
func (c *client) request() *http.Request {
	r, err := http.ReadRequest(c.br)
	if err != nil {
		return nil
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil
	}
	r.Body = io.NopCloser(strings.NewReader(string(body)))
	return r
}

// reply writes, and ignores that the other side may be gone.
func (c *client) reply(s string) { _, _ = io.WriteString(c.nc, s) }

// echoing answers each request with a line that shows what arrived.
func echoing(_ int, c *client) {
	for {
		r := c.request()
		if r == nil {
			return
		}
		body, _ := io.ReadAll(r.Body)
		out := fmt.Sprintf("%s %s %s %d %s", r.Method, r.RequestURI, r.Host, len(body), body)
		if len(out) > 200 {
			out = out[:200]
		}
		c.reply(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", len(out)))
		if r.Method != "HEAD" {
			c.reply(out)
		}
	}
}

// forwarding is a handler that forwards everything and answers failures with
// the stage.
func forwarding(up *Upstream, edit func(*Exchange, *Edit)) func(*Exchange) {
	return func(x *Exchange) {
		e := x.Edit()
		if edit != nil {
			edit(x, e)
		}
		res, err := x.Forward(up, e)
		if status := answerStatus(res, err); status != 0 {
			_ = x.Respond(status, nil, []byte(res.Stage.String()))
		}
	}
}

// answerStatus is the status to answer a failed Forward with: 413, 400 and the
// like where the request was at fault, 502, 503, 504 where the upstream was; 0
// where nothing can or need be answered.
func answerStatus(r Result, err error) int {
	if err == nil || r.HeadSent {
		return 0
	}
	switch r.Stage {
	case StageRequest:
		if refusal, ok := errors.AsType[*ProtocolError](err); ok {
			return refusal.Status
		}
		return 400
	case StagePool:
		return 503
	case StageDial, StageWrite, StageHead, StageBody:
		if r.Timeout {
			return 504
		}
		return 502
	case StageEdit:
		return 500
	case StageNone, StageClient, StageCut:
	}
	return 0
}

// settled checks, when the test ends, that no goroutine and no descriptor is
// left beyond those that were there.
func settled(t *testing.T) {
	t.Helper()
	wakePoller(t)
	goroutines, files := runtime.NumGoroutine(), openFiles()
	t.Cleanup(func() {
		waitFor(t, "goroutines to end", func() bool { return runtime.NumGoroutine() <= goroutines })
		waitFor(t, "descriptors to be closed", func() bool {
			runtime.GC() // the standard library keeps pipes for splice until then
			return openFiles() <= files
		})
	})
}

// wakePoller has the runtime open the descriptors by which it waits for others: it
// does so with the first socket, and keeps them.
func wakePoller(t *testing.T) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func openFiles() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(entries)
}
