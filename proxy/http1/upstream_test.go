package http1

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// piped is an Upstream whose connections lead nowhere.
func piped(u *Upstream) *Upstream {
	u.Dial = func(context.Context) (net.Conn, error) {
		nc, _ := net.Pipe()
		return nc, nil
	}
	return u
}

// take gives a connection as Forward gets one.
func take(t *testing.T, u *Upstream) *upConn {
	t.Helper()
	pc := u.takeIdle()
	if pc == nil {
		var err error
		if pc, err = u.dial(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	return pc
}

func TestIdleConnectionsEndInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := piped(&Upstream{IdleTimeout: time.Minute})
		old, young := take(t, u), take(t, u)
		u.put(old)
		time.Sleep(50 * time.Second) //nolint:forbidigo // in a bubble
		synctest.Wait()
		u.put(young)
		if u.Idle() != 2 {
			t.Fatalf("%d idle connections before their time, want 2", u.Idle())
		}
		time.Sleep(41 * time.Second) //nolint:forbidigo // in a bubble
		synctest.Wait()
		if u.Idle() != 1 || u.Open() != 1 {
			t.Errorf("%d idle of %d connections, want the younger one", u.Idle(), u.Open())
		}
		if pc := u.takeIdle(); pc != young {
			t.Error("the younger one ended first")
		}
		u.put(young)
		time.Sleep(91 * time.Second) //nolint:forbidigo // in a bubble
		synctest.Wait()
		if u.Idle() != 0 || u.Open() != 0 {
			t.Errorf("%d idle of %d connections after their time", u.Idle(), u.Open())
		}
	})
}

func TestUpstreamConnectionsAreBounded(t *testing.T) {
	u := piped(&Upstream{MaxIdle: 2, MaxConns: 3})
	defer u.Close()
	a, b, c := take(t, u), take(t, u), take(t, u)
	if _, err := u.dial(t.Context()); !errors.Is(err, ErrUpstreamBusy) {
		t.Errorf("a fourth connection: %v", err)
	}
	for _, pc := range []*upConn{a, b, c} {
		u.put(pc)
	}
	if u.Idle() != 2 || u.Open() != 2 {
		t.Errorf("%d idle of %d connections, want 2 of 2", u.Idle(), u.Open())
	}
	if pc := u.takeIdle(); pc != b {
		t.Error("not the one that came last")
	}
	u.Close()
	u.put(b)
	if u.Idle() != 0 || u.Open() != 0 {
		t.Errorf("%d idle of %d connections of an upstream that is closed", u.Idle(), u.Open())
	}
}

// TestConnectionThatEndsIsNotUsedAgain: the upstream said so, and must not be asked to
// say it twice.
func TestConnectionThatEndsIsNotUsedAgain(t *testing.T) {
	for _, head := range []string{"1.1 200 OK\r\nConnection: close\r\n", "1.1 200 OK\r\nConnection: x, Close\r\n", "1.0 200 OK\r\nConnection: keep-alive\r\n"} {
		up := scripted(t, func(_ int, c *client) {
			for c.request() != nil {
				c.reply("HTTP/" + head + "Content-Length: 2\r\n\r\nok")
			}
		})
		c := dial(t, start(t, &Server{Handler: forwarding(upstreamTo(t, up.addr()), nil)}))
		c.send(get).want("GET", 200, "ok")
		c.send(get).want("GET", 200, "ok")
		if up.connections() != 2 {
			t.Errorf("%q: %d connections, want 2", head, up.connections())
		}
	}
}

// corked is a connection whose writes leave at once when it is uncorked.
type corked struct {
	net.Conn
	held bytes.Buffer
	cork bool
}

func (c *corked) Write(p []byte) (int, error) {
	if c.cork {
		return c.held.Write(p)
	}
	return c.Conn.Write(p)
}

// TestWhatTLSHoldsBackIsNotSilence: bytes that were taken off the socket and decrypted
// with the answer cannot be seen on the socket, nor can an end that TLS was told of.
func TestWhatTLSHoldsBackIsNotSilence(t *testing.T) {
	serverTLS, clientTLS := testTLS(t)
	for name, rest := range map[string]func(*tls.Conn){
		"nothing":            func(*tls.Conn) {},
		"more of the record": nil,
		"another record":     func(c *tls.Conn) { _, _ = c.Write([]byte("x")) },
		"the end":            func(c *tls.Conn) { _ = c.CloseWrite() },
	} {
		t.Run(name, func(t *testing.T) {
			sent := make(chan struct{})
			up := scripted(t, func(_ int, c *client) {
				under := &corked{Conn: c.nc}
				secure := tls.Server(under, serverTLS)
				if secure.Handshake() != nil {
					return
				}
				under.cork = true
				if rest == nil {
					_, _ = secure.Write([]byte("ax"))
				} else {
					_, _ = secure.Write([]byte("a"))
					rest(secure)
				}
				_ = c.nc.SetDeadline(time.Now().Add(patience)) // which the end has set to now
				c.reply(under.held.String())
				<-sent
			})
			pool := upstreamTo(t, up.addr())
			plain := pool.Dial
			pool.Dial = func(ctx context.Context) (net.Conn, error) {
				nc, err := plain(ctx)
				if err != nil {
					return nil, err
				}
				return tls.Client(DirectConn(nc), clientTLS), nil
			}
			pc := take(t, pool)
			defer pool.discard(pc)
			defer close(sent)
			if n, err := pc.rd.Read(make([]byte, 1)); n != 1 || err != nil {
				t.Fatal(n, err)
			}
			waitFor(t, "silence to be what it is", func() bool { return pc.silent() == (name == "nothing") })
		})
	}
}
