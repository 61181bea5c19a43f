package http1

import (
	"bufio"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"
)

// A client may end its side in the same moment in which its request arrives. It is told
// of together with that, and not again.
func TestEndThatCameWithARequestIsNoticed(t *testing.T) {
	settled(t)
	entered, leave := make(chan struct{}), make(chan struct{})
	s := &Server{NoHijack: true, Timeouts: Timeouts{Idle: -1}, Handler: func(x *Exchange) {
		if string(x.Request().Target) == "/wait" {
			close(entered)
			<-leave
		}
		_ = x.Respond(200, nil, []byte("ok"))
	}}
	near, far := tcpPair(t)
	served := make(chan struct{})
	go func() {
		defer close(served)
		s.ServeConn(near) // which is never parked, and so woken by nothing else
	}()
	_ = far.SetDeadline(time.Now().Add(patience))
	c := &client{t: t, nc: far, br: bufio.NewReader(far)}
	c.send(get).want("GET", 200, "ok")
	raw, _ := socketOf(c.nc)
	// Held back by the socket until its end, so that both leave in one segment.
	if err := errors.Join(raw.Control(cork), sendAndEnd(c.nc, "GET /wait HTTP/1.1\r\nHost: h\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	<-entered
	close(leave)
	c.want("GET", 200, "ok")
	c.wantEnd()
	<-served
	_ = s.Close()
}

func sendAndEnd(nc net.Conn, s string) error {
	_, err := io.WriteString(nc, s)
	return errors.Join(err, closeWrite(nc))
}

// cork has a socket hold back what is written until there is a whole segment, or its end.
func cork(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_CORK, 1) }
