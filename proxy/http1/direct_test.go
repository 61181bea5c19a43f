package http1

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// tlsWriter is the server's end of a TLS connection as an exchange writes to it.
func tlsWriter(t *testing.T) (c *conn, reader net.Conn) {
	t.Helper()
	serverTLS, clientTLS := testTLS(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	accepted, err := Direct(l).Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = accepted.Close() })
	s := &Server{}
	s.init()
	secure := tls.Server(accepted, serverTLS)
	raw, _ := socketOf(secure)
	c = &conn{srv: s, nc: secure, raw: raw, wr: secure}
	peer := tls.Client(nc, clientTLS)
	shaken := make(chan error, 1)
	go func() { shaken <- peer.Handshake() }()
	if !c.handshake(secure) || <-shaken != nil {
		t.Fatal("the handshake failed")
	}
	_ = peer.SetDeadline(time.Now().Add(patience))
	return c, peer
}

const tooMuch = 16 << 20 // for the buffers of two sockets

type written struct {
	n   int
	err error
}

func (c *conn) writeMuch() <-chan written {
	done := make(chan written, 1)
	go func() {
		n, err := c.write(c.wr, bytes.Repeat([]byte("x"), tooMuch), time.Hour)
		done <- written{n, err}
	}()
	return done
}

// interrupt wakes the writer, and waits until it has noticed.
func interrupt(t *testing.T, c *conn) {
	t.Helper()
	c.wake()
	waitFor(t, "the writer to notice", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return !c.woken
	})
}

func TestInterruptionDoesNotEndWritesOverTLS(t *testing.T) {
	c, reader := tlsWriter(t)
	c.arm(time.Hour)
	done := c.writeMuch()
	interrupt(t, c)
	interrupt(t, c)
	n, err := io.CopyN(io.Discard, reader, tooMuch)
	if w := <-done; err != nil || n != tooMuch || w.err != nil || w.n != tooMuch {
		t.Errorf("read %d, %v; wrote %d, %v; want %d of both", n, err, w.n, w.err, tooMuch)
	}
}

func TestSlowReaderOverTLSIsGivenItsTimeAgain(t *testing.T) {
	c, reader := tlsWriter(t)
	c.arm(time.Nanosecond) // over as soon as it is looked at
	c.srv.now.Add(int64(time.Minute))
	done := c.writeMuch()
	if _, err := io.ReadFull(reader, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	interrupt(t, c) // something was written: it has an hour more
	n, err := io.CopyN(io.Discard, reader, tooMuch-1)
	if w := <-done; err != nil || n != tooMuch-1 || w.err != nil {
		t.Errorf("read %d, %v; wrote %d, %v", n, err, w.n, w.err)
	}
}

func TestReaderThatTakesNothingOverTLSEndsTheWrite(t *testing.T) {
	c, _ := tlsWriter(t)
	c.arm(time.Hour)
	done := c.writeMuch()
	var w written
	waitFor(t, "the write to end", func() bool { // once the sockets are full
		c.srv.now.Add(int64(2 * time.Hour))
		c.wake()
		select {
		case w = <-done:
			return true
		default:
			return false
		}
	})
	if !errors.Is(w.err, os.ErrDeadlineExceeded) {
		t.Fatalf("wrote %d, %v; want a timeout", w.n, w.err)
	}
	if n, err := c.write(c.wr, []byte("x"), time.Hour); n != 0 || err == nil {
		t.Errorf("wrote %d, %v after a write that failed; want an error at once", n, err)
	}
}

func TestRequestOverTLSThatArrivedBeforeTheEndIsServed(t *testing.T) {
	c, client := tlsWriter(t)
	c.srv.closing.Store(true)
	c.wake() // as Shutdown does
	if ready, _ := c.waitForRequest(); ready {
		t.Fatal("a silent connection has a request")
	}
	_, _ = io.WriteString(client, get) // the server finds out
	waitFor(t, "the request to arrive", func() bool {
		silent := true
		return c.raw.Control(func(fd uintptr) { silent = quiet(fd) }) == nil && !silent
	})
	c.wake()
	if ready, _ := c.waitForRequest(); !ready || c.phase.Load() != phaseHead {
		t.Error("a request that had arrived was not taken")
	}
}

func TestClientOverTLSThatLeavesBeforeTheEndHoldsUpNothing(t *testing.T) {
	c, client := tlsWriter(t)
	c.srv.closing.Store(true)
	_ = client.Close()
	waitFor(t, "the end to arrive", func() bool {
		silent := true
		return c.raw.Control(func(fd uintptr) { silent = quiet(fd) }) == nil && !silent
	})
	c.wake()
	if ready, _ := c.waitForRequest(); ready {
		t.Error("a client that left has a request")
	}
}
