package http1

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// TestIdleConnectionIsAskedAsANewOneIs: what can befall an exchange on a new
// connection to the upstream befalls one on an idle connection in the same way.
func TestIdleConnectionIsAskedAsANewOneIs(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	for name, c := range map[string]struct {
		request string
		serve   func(c *client)     // what the upstream does once it has the second request
		during  func(k Cutter) bool // done while the answer is awaited; nil: nothing
		status  int                 // 0: the connection is reset
		stage   Stage
		body    string
	}{
		"answered at once":      {get, func(c *client) { c.reply(ok) }, nil, 200, StageNone, "ok"},
		"answered byte by byte": {get, byteByByte(ok), nil, 200, StageNone, "ok"},
		"with an interim answer": {get, func(c *client) {
			c.reply("HTTP/1.1 103 Early Hints\r\n\r\n" + ok)
		}, nil, 103, StageNone, ""},
		"never answered": {get, func(c *client) { _, _ = io.Copy(io.Discard, c.br) }, nil, 504, StageHead, "head"},
		"half a head, then nothing": {get, func(c *client) {
			c.reply("HTTP/1.1 200 OK\r\nContent-")
			_, _ = io.Copy(io.Discard, c.br)
		}, nil, 504, StageHead, "head"},
		"closed without an answer":     {"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx", func(*client) {}, nil, 502, StageHead, "head"},
		"half a head, then closed":     {get, func(c *client) { c.reply("HTTP/1.1 2") }, nil, 502, StageHead, "head"},
		"malformed":                    {get, func(c *client) { c.reply("HTTP/1.1 200 OK\nX: 1\n\n") }, nil, 502, StageHead, "head"},
		"cut while it waits":           {get, func(c *client) { _, _ = io.Copy(io.Discard, c.br) }, Cutter.Cut, 0, StageCut, ""},
		"a body that is here":          {"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc", func(c *client) { c.reply(ok) }, nil, 200, StageNone, "ok"},
		"a body too large for a piece": {"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 200000\r\n\r\n" + strings.Repeat("b", 200_000), func(c *client) { c.reply(ok) }, nil, 200, StageNone, "ok"},
		"a body that waits to be asked for": {"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
			func(c *client) { c.reply(ok) }, nil, 200, StageNone, "ok"},
	} {
		t.Run(name, func(t *testing.T) {
			settled(t)
			arrived := make(chan struct{}, 1)
			up := scripted(t, func(n int, uc *client) {
				uc.request()
				uc.reply("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst")
				if uc.request() != nil {
					arrived <- struct{}{}
					c.serve(uc)
				}
			})
			pool := upstreamTo(t, up.addr())
			results, cutters := make(chan Result, 2), make(chan Cutter, 2)
			wait := patience // of the first exchange, which is answered
			addr := start(t, &Server{Timeouts: Timeouts{Stall: patience}, Handler: func(x *Exchange) {
				cutters <- x.Cutter()
				e := x.Edit()
				e.HeaderTimeout = wait
				if c.status == http.StatusGatewayTimeout {
					wait = 100 * time.Millisecond
				}
				res, err := x.Forward(pool, e)
				if status := answerStatus(res, err); status != 0 {
					_ = x.Respond(status, nil, []byte(res.Stage.String()))
				}
				results <- res
			}})
			cl := dial(t, addr)
			cl.send(get).want("GET", 200, "first")
			<-results
			<-cutters
			if pool.Idle() != 1 {
				t.Fatalf("%d connections are idle", pool.Idle())
			}
			cl.send(c.request)
			k := <-cutters
			if c.during != nil {
				<-arrived
				if !c.during(k) {
					t.Error("there was nothing to cut")
				}
			}
			if c.status == 0 {
				cl.wantReset()
			} else {
				cl.want(strings.Fields(c.request)[0], c.status, c.body)
			}
			if c.status == http.StatusEarlyHints {
				cl.want("GET", 200, "ok")
			}
			if res := <-results; res.Stage != c.stage || res.Retried {
				t.Errorf("%+v, want stage %v", res, c.stage)
			}
			if n := up.connections(); n != 1 {
				t.Errorf("%d connections were made", n)
			}
		})
	}
}

func byteByByte(s string) func(*client) {
	return func(c *client) {
		for i := range len(s) {
			c.reply(s[i : i+1])
		}
	}
}

// TestNoAnswerOfAnIdleConnectionIsMissed has the answer arrive at every moment from
// the sending of the request on: the poller tells of it once only.
func TestNoAnswerOfAnIdleConnectionIsMissed(t *testing.T) {
	near, far := tcpPair(t)
	raw, _ := socketOf(near)
	a := newAsker(raw)
	if a == nil {
		t.Skip("this system asks step by step")
	}
	const rounds = 20_000
	served := make(chan error, 1)
	go func() {
		buf := make([]byte, 8)
		for i := range rounds {
			if _, err := io.ReadFull(far, buf); err != nil {
				served <- err
				return
			}
			for range i % 64 { // spends a moment, more in each round
				_ = bytes.IndexByte(buf, 0xff)
			}
			if _, err := far.Write(buf); err != nil {
				served <- err
				return
			}
		}
		served <- nil
	}()
	c, answer := &conn{srv: &Server{}}, make([]byte, 64)
	for i := range rounds {
		request := fmt.Appendf(nil, "%08d", i)
		r := a.ask(question{request: request, answer: answer, sent: c})
		if r.err != nil || !r.waited || r.sent != 8 {
			t.Fatalf("round %d: %+v", i, r)
		}
		for r.read < 8 {
			n, err := near.Read(answer[r.read:])
			if err != nil {
				t.Fatal(err)
			}
			r.read += n
		}
		if !bytes.Equal(answer[:8], request) {
			t.Fatalf("round %d was answered %q", i, answer[:8])
		}
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// TestAskerSaysWhatItDid looks at each way in which it can end.
func TestAskerSaysWhatItDid(t *testing.T) {
	request, answer := []byte("question"), make([]byte, 64)
	untilHeard := func(near *net.TCPConn) {
		raw, _ := socketOf(near)
		waitFor(t, "it to arrive", func() bool {
			silent := true
			err := raw.Control(func(fd uintptr) { silent = quiet(fd) })
			return err != nil || !silent
		})
	}
	for name, c := range map[string]struct {
		before func(near, far *net.TCPConn)
		q      question
		check  func(r reply) bool
	}{
		"bytes that nobody asked for": {func(near, far *net.TCPConn) { _, _ = far.Write([]byte("x")); untilHeard(near) }, question{request: request, answer: answer},
			func(r reply) bool { return errors.Is(r.err, errNotQuiet) && r.sent == 0 && !r.waited }},
		"closed by the other side": {func(near, far *net.TCPConn) { _ = far.Close(); untilHeard(near) }, question{request: request, answer: answer},
			func(r reply) bool { return errors.Is(r.err, errNotQuiet) && r.sent == 0 && !r.waited }},
		"closed by this side": {func(near, _ *net.TCPConn) { _ = near.Close() }, question{request: request, answer: answer},
			func(r reply) bool { return errors.Is(r.err, net.ErrClosed) && r.sent == 0 }},
		"interrupted before": {func(near, _ *net.TCPConn) { _ = near.SetDeadline(past) }, question{request: request, answer: answer},
			func(r reply) bool { return errors.Is(r.err, os.ErrDeadlineExceeded) && r.sent == 0 }},
		"interrupted while it waits": {func(near, far *net.TCPConn) {
			go func() { // once it has asked
				_, _ = io.ReadFull(far, make([]byte, len(request)))
				_ = near.SetDeadline(past)
			}()
		}, question{request: request, answer: answer},
			func(r reply) bool {
				return errors.Is(r.err, os.ErrDeadlineExceeded) && r.sent == len(request) && r.waited
			}},
		"nothing to wait for": {nil, question{request: request},
			func(r reply) bool { return r.err == nil && r.sent == len(request) && !r.waited }},
		"more than the socket takes": {nil, question{request: make([]byte, 64<<20), answer: answer},
			func(r reply) bool { return r.err == nil && r.sent > 0 && r.sent < 64<<20 && !r.waited }},
	} {
		t.Run(name, func(t *testing.T) {
			near, far := tcpPair(t)
			raw, _ := socketOf(near)
			a := newAsker(raw)
			if a == nil {
				t.Skip("this system asks step by step")
			}
			if c.before != nil {
				c.before(near, far)
			}
			c.q.sent = &conn{srv: &Server{}}
			if r := a.ask(c.q); !c.check(r) {
				t.Errorf("%+v", r)
			}
		})
	}
}

// tcpPair is both ends of a connection on loopback.
func tcpPair(t *testing.T) (near, far *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	other, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = nc.Close(), other.Close() })
	return nc.(*net.TCPConn), other.(*net.TCPConn)
}
