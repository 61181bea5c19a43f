package http1

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// between serves one connection in the bubble of a test, and forwards what comes to an
// upstream that do plays. The client is the test's.
func between(t *testing.T, s *Server, up *Upstream, do func(c *client)) *client {
	t.Helper()
	var upstream sync.WaitGroup
	up.Dial = func(context.Context) (net.Conn, error) {
		ours, theirs := net.Pipe()
		upstream.Go(func() {
			defer theirs.Close()
			do(&client{t: t, nc: theirs, br: bufio.NewReader(theirs)})
		})
		return ours, nil
	}
	s.Handler = forwarding(up, func(_ *Exchange, e *Edit) { e.Upgrade = true })
	near, far := net.Pipe()
	go s.ServeConn(far)
	t.Cleanup(func() {
		_ = near.Close()
		up.Close()
		upstream.Wait()
		time.Sleep(time.Second) //nolint:forbidigo // in a bubble: until the sweeper has ended
	})
	return &client{t: t, nc: near, br: bufio.NewReader(near)}
}

func TestUpgradedConnectionIsNotHeldToTheStallOfAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const quiet = 50 * time.Minute
		s := &Server{Timeouts: Timeouts{Stall: time.Second, Tunnel: time.Hour}}
		c := between(t, s, &Upstream{}, func(c *client) {
			c.request()
			c.reply("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
			time.Sleep(quiet) //nolint:forbidigo // in a bubble
			c.reply("at last")
			_, _ = io.Copy(io.Discard, c.br)
		})
		began := time.Now()
		c.send("GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
		if resp, err := http.ReadResponse(c.br, nil); err != nil || resp.StatusCode != 101 {
			t.Fatal(resp, err)
		}
		if got, _ := io.ReadAll(c.br); string(got) != "at last" {
			t.Errorf("got %q", got)
		}
		if took := time.Since(began); took < quiet+time.Hour || took > quiet+time.Hour+time.Second {
			t.Errorf("ended after %v", took)
		}
	})
}

// TestPauseInAnAnswerIsHeldToTheStall: the answer begins before the body has ended, and
// pauses after that for longer than its head would have been waited for, or for less.
func TestPauseInAnAnswerIsHeldToTheStall(t *testing.T) {
	for name, test := range map[string]struct {
		stall, header, pause time.Duration
		whole                bool
	}{
		"longer than the head's time":  {stall: time.Minute, header: time.Second, pause: 50 * time.Second, whole: true},
		"shorter than the head's time": {stall: time.Second, header: time.Minute, pause: 50 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &Server{Timeouts: Timeouts{Stall: test.stall}}
				c := between(t, s, &Upstream{HeaderTimeout: test.header}, func(c *client) {
					_, _ = c.br.ReadString('@') // which came with the head
					c.reply("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\none")
					_, _ = io.ReadFull(c.br, make([]byte, len("\r\n1\r\nz\r\n0\r\n\r\n")))
					time.Sleep(test.pause) //nolint:forbidigo // in a bubble
					c.reply("two")
					_, _ = io.Copy(io.Discard, c.br)
				})
				c.send("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n@\r\n")
				resp, err := http.ReadResponse(c.br, nil)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(resp.Body, make([]byte, 3)); err != nil {
					t.Fatal(err)
				}
				synctest.Wait() // until the rest of the answer is waited for
				c.send("1\r\nz\r\n0\r\n\r\n")
				rest, err := io.ReadAll(resp.Body)
				if whole := err == nil && string(rest) == "two"; whole != test.whole {
					t.Errorf("then %q, %v", rest, err)
				}
			})
		})
	}
}
