package http1

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

var (
	// ErrUpstreamBusy says that MaxConns connections are in use.
	ErrUpstreamBusy = errors.New("http1: all connections to the upstream are in use")
	// ErrUpstreamClosed says that Close was called.
	ErrUpstreamClosed = errors.New("http1: upstream is closed")
)

// Upstream is one server that exchanges are forwarded to, with its idle
// connections. Set the fields before the first use and leave them alone
// afterwards. It is safe for concurrent use, also by several Servers.
type Upstream struct {
	// Dial opens a connection, with TLS where that is wanted; ALPN must not have
	// chosen anything but HTTP/1.1. It should heed ctx.
	Dial func(ctx context.Context) (net.Conn, error)

	MaxIdle       int           // idle connections kept; 0: 256, less: none
	MaxConns      int           // open connections; 0: unbounded; beyond: ErrUpstreamBusy, without waiting
	IdleTimeout   time.Duration // an idle connection is closed after one to one and a half times this; 0: 60 s
	DialTimeout   time.Duration // 0: 5 s
	HeaderTimeout time.Duration // from the last byte of the request to the last of the answer's head; 0: 30 s
	HeaderBytes   int           // of an answer; 0: 65536
	HeaderCount   int           // field lines of an answer; 0: 256

	mu     sync.Mutex // guards what follows; held for moments only
	idle   []*upConn  // last in, first out
	open   int        // with those in use
	epoch  int        // grows every half IdleTimeout while there are idle connections
	aging  bool       // the timer that calls age is set
	closed bool
}

// upConn is one connection to an upstream. It belongs to one exchange, or to
// the idle list.
type upConn struct {
	up     *Upstream
	nc     net.Conn
	raw    syscall.RawConn // the socket beneath, nil if there is none
	tcp    *net.TCPConn    // the connection itself where it is cleartext TCP
	rd     io.Reader       // reads the connection
	wr     io.Writer       // writes it
	in     stream
	limits Limits // of an answer's head
	epoch  int    // when it became idle
	pooled bool   // it has served an exchange before
	asker  asker  // looks, writes and reads at once; nil: it cannot
	calm   bool   // what check found
	check  func(fd uintptr)
}

// asker does what every exchange on an idle connection begins with: it looks that the
// connection is silent, writes the request, and waits for the answer.
type asker interface{ ask(q question) reply }

// question is what an asker is to do.
type question struct {
	request  []byte
	answer   []byte // read into; nil: the answer is not waited for
	sent     *conn  // is armed with patience once the request was sent whole
	patience time.Duration
}

// reply is what an asker did. If the connection was not silent, err is errNotQuiet.
// Nothing was waited for if the socket did not take all of the request at once.
type reply struct {
	sent   int  // bytes of the request
	waited bool // for the answer, of which err says why nothing was read
	read   int  // bytes of the answer
	err    error
}

// errNotQuiet says that an idle connection was closed or sent something, and that
// nothing was written to it.
var errNotQuiet = errors.New("http1: idle connection is not silent")

// Idle is the number of idle connections.
func (u *Upstream) Idle() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.idle)
}

// Open is the number of open connections, idle and in use.
func (u *Upstream) Open() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.open
}

// CloseIdle closes the idle connections.
func (u *Upstream) CloseIdle() {
	u.mu.Lock()
	idle := u.idle
	u.idle = nil
	u.open -= len(idle)
	u.mu.Unlock()
	for _, pc := range idle {
		_ = pc.nc.Close() // it is given up
	}
}

// Close closes the idle connections, and has those in use closed after their
// exchange. Nothing can be forwarded afterwards.
func (u *Upstream) Close() {
	u.mu.Lock()
	u.closed = true
	u.mu.Unlock()
	u.CloseIdle()
}

// takeIdle gives a connection that is open and silent, or nil. One with an asker was
// not looked at yet.
func (u *Upstream) takeIdle() *upConn {
	for {
		u.mu.Lock()
		n := len(u.idle)
		if n == 0 {
			u.mu.Unlock()
			return nil
		}
		pc := u.idle[n-1]
		u.idle[n-1] = nil
		u.idle = u.idle[:n-1]
		u.mu.Unlock()
		if pc.asker != nil || pc.silent() {
			return pc
		}
		u.discard(pc)
	}
}

// silent reports whether an idle connection can be used again: the upstream has
// neither closed it nor sent anything (RFC 9112 §9.2).
func (pc *upConn) silent() bool {
	if t, ok := pc.nc.(*tls.Conn); ok && !tlsSilent(t) {
		return false
	}
	if pc.raw == nil {
		return true
	}
	pc.calm = false
	err := pc.raw.Control(pc.check)
	return err == nil && pc.calm
}

// tlsSilent reports whether the TLS layer holds nothing that was decrypted
// already. The socket is not asked.
func tlsSilent(t *tls.Conn) bool {
	if t.SetReadDeadline(past) != nil {
		return false
	}
	var one [1]byte
	n, err := t.Read(one[:])
	return n == 0 && errors.Is(err, os.ErrDeadlineExceeded) && t.SetReadDeadline(time.Time{}) == nil
}

// dial opens a new connection.
func (u *Upstream) dial(ctx context.Context) (*upConn, error) {
	u.mu.Lock()
	switch {
	case u.closed:
		u.mu.Unlock()
		return nil, ErrUpstreamClosed
	case u.MaxConns > 0 && u.open >= u.MaxConns:
		u.mu.Unlock()
		return nil, ErrUpstreamBusy
	}
	u.open++
	u.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, orDuration(u.DialTimeout, 5*time.Second))
	defer cancel()
	nc, err := u.Dial(ctx)
	if err != nil {
		u.mu.Lock()
		u.open--
		u.mu.Unlock()
		return nil, err
	}
	pc := &upConn{up: u, nc: nc}
	raw, tcp := socketOf(nc)
	pc.raw = raw
	if _, ok := nc.(*tls.Conn); !ok {
		pc.tcp = tcp
	}
	pc.rd, pc.wr = directIO(nc, pc.tcp, raw)
	if pc.tcp != nil && raw != nil {
		pc.asker = newAsker(raw)
	}
	pc.check = func(fd uintptr) { pc.calm = quiet(fd) }
	pc.limits = Limits{HeaderBytes: orInt(u.HeaderBytes, 64<<10), HeaderCount: orInt(u.HeaderCount, 256)}
	return pc, nil
}

// put makes a connection idle. It must hold no block.
func (u *Upstream) put(pc *upConn) {
	most := u.MaxIdle
	if most == 0 {
		most = 256
	}
	u.mu.Lock()
	if u.closed || len(u.idle) >= most {
		u.mu.Unlock()
		u.discard(pc)
		return
	}
	pc.pooled = true
	pc.epoch = u.epoch
	u.idle = append(u.idle, pc)
	if !u.aging {
		u.aging = true
		time.AfterFunc(u.halfIdle(), u.age)
	}
	u.mu.Unlock()
}

// discard closes a connection that is not in the idle list.
func (u *Upstream) discard(pc *upConn) {
	_ = closeNow(pc.nc) // it is given up
	u.mu.Lock()
	u.open--
	u.mu.Unlock()
}

func (u *Upstream) halfIdle() time.Duration {
	return max(orDuration(u.IdleTimeout, time.Minute)/2, time.Millisecond)
}

// age closes connections that were idle for two epochs, and comes back as long
// as there are others.
func (u *Upstream) age() {
	u.mu.Lock()
	u.epoch++
	n := 0
	for n < len(u.idle) && u.idle[n].epoch+2 < u.epoch {
		n++
	}
	old := append([]*upConn(nil), u.idle[:n]...)
	u.idle = append(u.idle[:0], u.idle[n:]...)
	clear(u.idle[len(u.idle):cap(u.idle)])
	u.open -= n
	if u.aging = len(u.idle) > 0; u.aging {
		time.AfterFunc(u.halfIdle(), u.age)
	}
	u.mu.Unlock()
	for _, pc := range old {
		_ = pc.nc.Close() // it is given up
	}
}
